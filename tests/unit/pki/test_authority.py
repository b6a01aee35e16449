"""The CA at work: one certificate for one request, nothing lost, nothing told twice without need, tokens used once."""

import contextlib
import dataclasses
import datetime
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from cryptography import x509

from tidegate.base.clock import SystemEntropy
from tidegate.base.errors import StorageFailed
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.ca_store import DATABASE, Act, CaStore, Reason
from tidegate.pki.profiles import PROFILES, Pointers, Subject, draw_serial
from tidegate.pki.revocation import verify_crl
from tidegate.pki.tokens import issue_token
from tidegate.testing.certificates import MemorySigner
from tidegate.testing.processes import started


def token(bench, device="SN-1", **named):
    return issue_token(bench.store, device, now_s=bench.clock.now_s(), entropy=SystemEntropy(), **named)


def test_a_certificate_is_recorded_before_it_is_given(bench, der):
    certificate = bench.issue(request_id=b"1")
    found = bench.store.find(certificate.serial_number)
    assert (found.profile, found.device, found.request_id) == ("ldevid", "SN-1", b"1")
    assert found.der == der(certificate)
    assert [(one.act, one.serial) for one in bench.acts] == [(Act.ISSUED, f"{certificate.serial_number:x}")]


def test_the_same_request_again_gets_the_same_certificate(bench):
    first = bench.issue(request_id=b"1")
    bench.clock.now += datetime.timedelta(days=1)
    assert bench.issue(request_id=b"1") == first
    assert bench.store.count() == 1
    assert len(bench.acts) == 1


@pytest.mark.parametrize("change", ["subject", "key", "profile"])
def test_the_same_id_for_another_request(bench, code_of, change):
    bench.issue(request_id=b"1")
    grant = bench.grant(request_id=b"1")
    other = {
        "subject": {"subject": Subject(serial_number="SN-2")},
        "key": {"public_key": MemorySigner(SignatureAlgorithm.ECDSA_P256).public_key},
        "profile": {"profile": PROFILES["idevid"]},
    }
    grant = dataclasses.replace(grant, **other[change])
    assert code_of(bench.authority.issue, grant) == "pki.request.conflict"
    assert bench.store.count() == 1


def test_without_an_id_every_request_is_a_new_one(bench):
    assert bench.issue().serial_number != bench.issue().serial_number


def test_serials_come_from_the_generator_and_are_never_0(bench):
    assert draw_serial(bytes(20)).bit_length() == 159
    assert draw_serial(b"\xff" * 20).bit_length() == 159
    with pytest.raises(ValueError, match="20"):
        draw_serial(bytes(16))


def test_a_generator_that_repeats_itself_issues_nothing(bench, code_of):
    class Stuck:
        def random_bytes(self, count):
            return b"\x55" * count

    authority = bench.make_authority()
    authority._entropy = Stuck()
    authority.issue(bench.grant())
    assert code_of(authority.issue, bench.grant()) == "pki.entropy.repeated"
    assert bench.store.count() == 1


def test_tokens_work_once(bench, code_of):
    secret = token(bench)
    first = bench.issue(request_id=b"1", token=secret)
    assert bench.issue(request_id=b"1", token=secret) == first  # the answer was lost: the device asks again
    assert code_of(bench.issue, request_id=b"2", token=secret) == "pki.token.replayed"
    assert bench.store.count() == 1


def test_tokens_are_for_one_device(bench, code_of):
    secret = token(bench)
    assert code_of(bench.issue, "SN-2", request_id=b"1", token=secret) == "pki.token.device"
    bench.issue(request_id=b"1", token=secret)  # and nobody else's try used it up


def test_tokens_expire(bench, code_of):
    secret = token(bench, lifetime_s=60)
    bench.clock.now += datetime.timedelta(seconds=60)
    assert code_of(bench.issue, request_id=b"1", token=secret) == "pki.token.expired"


@pytest.mark.parametrize("text", [b"", b"x", b"A" * 43, b"A" * 10_000])
def test_what_is_no_token(bench, code_of, text):
    token(bench)
    assert code_of(bench.issue, request_id=b"1", token=Secret(text)) == "pki.token.unknown"


def test_a_refused_certificate_leaves_the_token(bench, code_of):
    secret = token(bench)
    grant = bench.grant(request_id=b"1", token=secret, lifetime=datetime.timedelta(days=10_000))
    assert code_of(bench.authority.issue, grant) == "pki.profile.refused"
    bench.issue(request_id=b"1", token=secret)


def test_the_store_does_not_know_the_token(bench):
    secret = token(bench)
    text = bytes(secret.view())
    bench.store.close()
    for path in bench.folder.iterdir():
        assert text not in path.read_bytes()


@pytest.mark.parametrize("lifetime_s", [0, 59, 31 * 86_400])
def test_lifetimes_of_tokens(bench, code_of, lifetime_s):
    assert code_of(token, bench, lifetime_s=lifetime_s) == "pki.profile.refused"


def test_revocation_is_told_once(bench, code_of):
    serial = bench.issue().serial_number
    bench.authority.revoke(serial, Reason.KEY_COMPROMISE)
    assert bench.authority.revoke(serial, Reason.SUPERSEDED).reason is Reason.KEY_COMPROMISE
    assert [one.act for one in bench.acts] == [Act.ISSUED, Act.REVOKED]
    assert code_of(bench.authority.revoke, 1, Reason.UNSPECIFIED) == "pki.serial.unknown"


def test_numbers_of_lists_only_rise(bench):
    numbers = []
    for make in (bench.authority.crl, bench.authority.delta_crl, bench.authority.delta_crl, bench.authority.crl):
        made = x509.load_der_x509_crl(make())
        numbers.append(made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number)
    assert numbers == [1, 2, 3, 4]
    bench.store.close()
    bench.store = CaStore(bench.folder)
    made = x509.load_der_x509_crl(bench.make_authority().crl())
    assert made.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 5


def test_clock_put_back_hides_no_revocation_from_a_delta(bench):
    serial = bench.issue(profile="code-signing").serial_number
    bench.clock.now += datetime.timedelta(hours=2)
    full = verify_crl(bench.authority.crl(), issuer=bench.issuing, now=bench.now)
    bench.clock.now -= datetime.timedelta(hours=1)
    bench.authority.revoke(serial, Reason.KEY_COMPROMISE)
    bench.clock.now += datetime.timedelta(hours=2)
    delta = verify_crl(bench.authority.delta_crl(), issuer=bench.issuing, now=bench.now, base=full)
    assert serial in delta.revoked


def test_revoked_by_another_process_while_a_list_is_being_made(bench, monkeypatch):
    """Whoever gets the higher number knows of it: the list is read in the transaction that numbers it."""
    serial, begin = bench.issue(profile="code-signing").serial_number, bench.store._transaction
    with CaStore(bench.folder) as other:

        @contextlib.contextmanager
        def late():
            other.revoke(serial, Reason.KEY_COMPROMISE, int(bench.clock.now_s()))
            with begin() as database:
                yield database

        monkeypatch.setattr(bench.store, "_transaction", late)
        raw = bench.authority.crl()
    assert serial in verify_crl(raw, issuer=bench.issuing, now=bench.now).revoked


def test_short_lived_certificates_carry_no_pointers_and_others_do(bench):
    authority = bench.make_authority(pointers=Pointers(crl_url="http://ca.example/crl", ocsp_url="http://ca.example/o"))
    kinds = {
        name: {type(one.value) for one in authority.issue(bench.grant(profile=name)).extensions}
        for name in ("ldevid", "code-signing")
    }
    pointers = {x509.CRLDistributionPoints, x509.AuthorityInformationAccess}
    assert not pointers & kinds["ldevid"]
    assert pointers <= kinds["code-signing"]


def test_a_log_that_is_busy_hears_of_it_later(bench):
    told = []

    def deaf(act):
        raise StorageFailed("busy")

    bench.make_authority(report=deaf).issue(bench.grant())
    assert told == []
    bench.make_authority(report=told.append)
    assert [one.act for one in told] == [Act.ISSUED]
    bench.store.close()
    bench.store = CaStore(bench.folder)
    bench.make_authority(report=told.append)
    assert len(told) == 1


def test_two_processes_at_one_ca(bench):
    """An operator revokes while the server is running."""
    with CaStore(bench.folder) as other:
        certificate = bench.issue()
        assert other.find(certificate.serial_number) is not None
        other.revoke(certificate.serial_number, Reason.SUPERSEDED, 1)
    assert bench.store.find(certificate.serial_number).reason is Reason.SUPERSEDED


def test_a_writer_that_hangs(bench, code_of, monkeypatch):
    monkeypatch.setattr("tidegate.pki.ca_store._LOCK_WAIT_S", 0.05)
    with CaStore(bench.folder) as other, bench.store._transaction():
        assert code_of(other.revoke, 1, Reason.SUPERSEDED, 1) == "pki.ca-store.busy"


@pytest.mark.parametrize("damage", ["bytes", "version", "empty"])
def test_a_store_that_cannot_be_relied_on(bench, code_of, damage):
    bench.store.close()
    path = bench.folder / DATABASE
    if damage == "bytes":
        path.write_bytes(b"no database, " * 400)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
    assert code_of(CaStore, bench.folder) == "pki.ca-store.corrupt"


def test_a_store_that_others_read(bench, code_of):
    bench.store.close()
    bench.folder.chmod(0o755)
    assert code_of(CaStore, bench.folder) == "base.permissions.unsafe"


_ISSUER = """
import sys, pathlib, datetime
from cryptography.hazmat.primitives import serialization
from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.authority import Authority, Grant
from tidegate.pki.ca_store import CaStore
from tidegate.pki.certificate import parse_pem_chain
from tidegate.pki.profiles import PROFILES, Subject
from tidegate.testing.certificates import MemorySigner, public_key_of
folder = pathlib.Path(sys.argv[1])
signer = MemorySigner(SignatureAlgorithm.ECDSA_P256)
signer.key = serialization.load_pem_private_key((folder / "key").read_bytes(), None)
signer.public_key = public_key_of(signer.key.public_key(), SignatureAlgorithm.ECDSA_P256)
authority = Authority(parse_pem_chain((folder / "chain.pem").read_bytes()), signer, CaStore(folder / "ca"),
    clock=SystemClock(), entropy=SystemEntropy(), report=lambda act: print("told", act.serial, flush=True))
number = int(sys.argv[2])
while True:
    for repeat in range(2):  # the second time as a device that got no answer
        grant = Grant(profile=PROFILES["ldevid"], subject=Subject(serial_number=f"SN-{number}"),
            public_key=signer.public_key, request_id=f"{number}".encode())
        print("issued", number, f"{authority.issue(grant).serial_number:x}", flush=True)
    number += 1
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_kill_9_while_it_issues(tmp_path, bench):
    """Twenty times in the middle of whatever it does: nothing that was answered is lost, nothing issued twice."""
    from tidegate.pki.certificate import encode_pem

    now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    root = bench.sign("root-ca", Subject(common_name="Root"), bench.root_key, now=now)
    (tmp_path / "chain.pem").write_bytes(encode_pem(root))
    (tmp_path / "key").write_bytes(bench.root_key.pem())
    answered, told, start = {}, set(), 0
    for round_ in range(20):
        command = [sys.executable, "-c", _ISSUER, str(tmp_path), str(start)]
        with started(command, stdout=subprocess.PIPE, text=True) as process:
            first = process.stdout.readline()  # it is up
            time.sleep(0.05 + 0.013 * round_)
            os.kill(process.pid, signal.SIGKILL)
            lines = [first, *process.stdout.read().splitlines()]
        for line in lines:
            words = line.split()
            if words[:1] == ["told"] and len(words) == 2:
                told.add(words[1])
            if words[:1] == ["issued"] and len(words) == 3 and len(words[2]) == 40:
                assert answered.setdefault(int(words[1]), words[2]) == words[2]
        start = max(answered)  # asks for the last one again
    with CaStore(tmp_path / "ca") as store:
        records = store.certificates(limit=1_000_000)
        by_request = {one.request_id: f"{one.serial:x}" for one in records}
        assert len(by_request) == len(records) == len({one.serial for one in records})
        assert all(by_request[f"{number}".encode()] == serial for number, serial in answered.items())
        untold = {f"{one.issued.serial:x}" for one in store.pending_acts()}
    assert {
        f"{one.serial:x}" for one in records
    } <= told | untold  # every issuance is an event, now or at the next start
    assert len(records) > 20
