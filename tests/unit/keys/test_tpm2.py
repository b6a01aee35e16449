"""The TPM provider against a TPM in software: attacks, power cuts, killed processes, full TPMs."""

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE, TPMA_NV
from tpm2_pytss.tsskey import TSSPrivKey
from tpm2_pytss.types import (
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_NV_PUBLIC,
    TPMS_SENSITIVE_CREATE,
)

from tidegate.base.errors import TidegateError
from tidegate.base.program import run_program
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys import tpm2_commands, tpm2_device
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.keys.tpm2 import Tpm2KeyStore, Tpm2Pins
from tidegate.keys.tpm2_commands import extend_pcr
from tidegate.keys.tpm2_counter import Counter
from tidegate.keys.tpm2_device import Chip, _Patient, public_of, tpm_at
from tidegate.keys.tpm2_files import PRIMARY_TEMPLATE, parse_pem, parse_public_area, policy_of
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.processes import started
from tidegate.testing.swtpm import SwTpm

P256, P384, RSA = SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.RSA_PSS
DIGEST = hashlib.sha256(b"another system").digest()


def signing(algorithm=P256, **policy):
    return KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm, policy=KeyPolicy(**policy))


def sealing(**policy):
    return KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(**policy))


def attesting(algorithm=P256):
    return KeySpec(purpose=KeyPurpose.ATTEST, algorithm=algorithm)


def refusal(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value


def code_of(call, *arguments, **named):
    return refusal(call, *arguments, **named).code


@pytest.fixture(scope="module")
def chip(tmp_path_factory):
    """One TPM for the tests that leave it as it was."""
    with SwTpm(tmp_path_factory.mktemp("shared")) as tpm:
        yield tpm


@pytest.fixture
def own(tmp_path):
    """A TPM of the test's own."""
    with SwTpm(tmp_path / "tpm") as tpm:
        yield tpm


@pytest.fixture
def store(chip, tmp_path):
    return Tpm2KeyStore.create(tmp_path / "keys", chip.tcti, pins=pins())


def pins(key=b"2580", owner=None):
    return Tpm2Pins(key=lambda what: Secret(key), owner=owner and (lambda: Secret(owner)))


def write(path, raw):
    path.write_bytes(raw)
    path.chmod(0o600)


# ---- what a TPM can do ---------------------------------------------------------------------------------------


def test_capabilities_are_the_chips(store):
    able = store.capabilities()
    assert able.hardware
    assert able.counter_resists_rollback
    assert able.algorithms == {P256, P384, RSA}
    assert not able.can_export
    for other in set(SignatureAlgorithm) - able.algorithms:
        assert code_of(store.generate, "k", signing(other)) == "keys.capability.missing"


def test_every_kind_of_key_under_every_policy(store):
    policies = [{}, {"user_auth": True}, {"pcrs": frozenset({0, 16})}, {"pcrs": frozenset({16}), "user_auth": True}]
    for number, policy in enumerate(policies):
        for algorithm in (P256, P384):
            name = f"{algorithm.label}-{number}"
            info = store.generate(name, signing(algorithm, **policy))
            info.public_key.verify(store.signer(name).sign(b"m"), b"m")
        store.generate(f"seal-{number}", sealing(**policy))
        sealed = store.seal(f"seal-{number}", b"secret" * 100, b"c")
        assert bytes(store.unseal(f"seal-{number}", sealed, b"c").view()) == b"secret" * 100
    assert len(store.list_keys()) == 12


def test_rsa_with_the_salt_that_tls_wants(store):
    info = store.generate("rsa", signing(RSA))
    info.public_key.verify(store.signer("rsa").sign(b"m"), b"m")


def test_what_the_tpm_made_says_what_we_asked_for(store, chip):
    """Our policy digest and public areas against the TPM's own."""
    store.generate("k", sealing(pcrs=frozenset({0, 7}), user_auth=True))
    area = parse_public_area(parse_pem((store._folder.path / "k.pem").read_bytes()).public)
    with ESAPI(chip.tcti) as esys:
        session = esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, None, TPM2_ALG.SHA256)
        esys.policy_pcr(session, b"", "sha256:0,7")
        esys.policy_auth_value(session)
        assert bytes(esys.policy_get_digest(session)) == area.auth_policy
        esys.flush_context(session)
    assert policy_of(KeyPolicy(user_auth=True), {}) == b""


# ---- registers -----------------------------------------------------------------------------------------------


def test_the_register_that_changed_is_named(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti, pins=pins())
    store.generate("seal", sealing(pcrs=frozenset({0, 7, 16})))
    store.generate("pin", sealing(pcrs=frozenset({7}), user_auth=True))
    store.generate("sign", signing(pcrs=frozenset({7})))
    sealed = store.seal("seal", b"s", b"")
    before = store.pcr_values(frozenset({7}))[7]
    store.extend(7, DIGEST)
    now = hashlib.sha256(before + DIGEST).digest()
    assert store.pcr_values(frozenset({7})) == {7: now}
    error = refusal(store.unseal, "seal", sealed, b"")
    assert error.code == "keys.pcr.mismatch"
    assert error.fields == {"key": "seal", "pcrs": "7", "pcr7_recorded": before.hex(), "pcr7_current": now.hex()}
    assert code_of(store.signer("sign").sign, b"m") == "keys.pcr.mismatch"
    assert code_of(store.seal, "pin", b"s", b"") == "keys.pcr.mismatch"
    own.restart()
    assert bytes(store.unseal("seal", sealed, b"").view()) == b"s"


@pytest.mark.parametrize("call", ["pcr_values", "extend", "digest", "quote"])
def test_registers_that_are_none(store, call):
    store.generate("ak", attesting())
    wrong = {
        "pcr_values": lambda: store.pcr_values(frozenset({24})),
        "extend": lambda: store.extend(-1, DIGEST),
        "digest": lambda: store.extend(16, b"short"),
        "quote": lambda: store.quote("ak", bytes(8), frozenset()),
    }
    assert code_of(wrong[call]) == "keys.capability.missing"


def test_all_registers_at_once(store):
    assert set(store.pcr_values(frozenset(range(24)))) == set(range(24))


def test_a_tpm_without_the_bank(own, tmp_path):
    run_program(["tpm2_pcrallocate", "-T", own.tcti, "sha1:all+sha256:none+sha384:all+sha512:all"])
    own.restart()
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    assert code_of(store.generate, "k", sealing(pcrs=frozenset({7}))) == "keys.capability.missing"
    assert code_of(store.pcr_values, frozenset({7})) == "keys.capability.missing"
    assert store.list_keys() == []


def test_registers_that_change_while_they_are_quoted(store, monkeypatch):
    store.generate("ak", attesting())
    real, calls = Chip.pcr_values, []

    def changing(self, pcrs, times):
        if len(calls) < times:
            calls.append(extend_pcr(self, 16, DIGEST))
        return real(self, pcrs)

    monkeypatch.setattr(Chip, "pcr_values", lambda self, pcrs: changing(self, pcrs, 2))
    assert store.quote("ak", bytes(8), frozenset({16})).pcrs == store.pcr_values(frozenset({16}))
    calls.clear()
    monkeypatch.setattr(Chip, "pcr_values", lambda self, pcrs: changing(self, pcrs, 9))
    assert code_of(store.quote, "ak", bytes(8), frozenset({16})) == "keys.provider.failed"


@pytest.mark.parametrize("purpose", [KeyPurpose.SIGN, KeyPurpose.ATTEST])
def test_a_tpm_with_other_rsa_salts(store, monkeypatch, purpose):
    """It would make signatures that no TLS peer takes."""
    monkeypatch.setattr(tpm2_commands, "_raw", lambda signature: bytes(384))
    spec = KeySpec(purpose=purpose, algorithm=RSA)
    assert code_of(store.generate, "k", spec) == "keys.capability.missing"
    assert store.list_keys() == []


def test_a_tpm_without_elliptic_curves(store, monkeypatch):
    real = _Patient.__getattr__

    def poorer(self, name):
        if name == "test_parms":
            raise TSS2_Exception(0x1C4)
        return real(self, name)

    monkeypatch.setattr(_Patient, "__getattr__", poorer)
    monkeypatch.setattr(tpm2_commands, "ALG_ECDSA", 0x7FFF)
    assert store._run(tpm2_commands.algorithms_of) == frozenset()


@pytest.mark.parametrize("size", [0, 7, 33])
def test_nonces_that_are_none(store, size):
    store.generate("ak", attesting())
    assert code_of(store.quote, "ak", bytes(size), frozenset({0})) == "keys.capability.missing"


# ---- PINs ----------------------------------------------------------------------------------------------------


def test_guessing_a_pin_ends_in_a_lock_with_its_time(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti, pins=pins())
    store.generate("locked", signing(user_auth=True))
    store.generate("free", signing())
    codes, left = [], []
    for guess in range(12):
        thief = Tpm2KeyStore(tmp_path / "keys", own.tcti, pins=pins(b"%04d" % guess))
        error = refusal(thief.signer("locked").sign, b"m")
        codes.append(error.code)
        left.append(error.fields.get("tries_left"))
    assert codes[0] == "keys.pin.refused"
    assert codes[-1] == "keys.pin.locked"
    assert left[: codes.index("keys.pin.locked")] == list(reversed(range(codes.index("keys.pin.locked"))))
    assert error.fields["wait_s"] > 0
    assert code_of(store.signer("locked").sign, b"m") == "keys.pin.locked"
    store.signer("free").sign(b"m")


def test_a_service_that_starts_again_with_a_wrong_pin_file_locks_nothing(own, tmp_path):
    Tpm2KeyStore.create(tmp_path / "keys", own.tcti, pins=pins()).generate("k", signing(user_auth=True))
    file = tmp_path / "pin"
    file.write_bytes(b"wrong")
    file.chmod(0o600)
    uri = parse_key_uri(f"tpm2:{tmp_path}/keys?key=k&tcti={own.tcti}&key-pin-source={file}")
    for _ in range(12):
        service = open_store(uri)
        assert code_of(service.signer("k").sign, b"m") == "keys.pin.refused"
        service.close()
    Tpm2KeyStore(tmp_path / "keys", own.tcti, pins=pins()).signer("k").sign(b"a person has the last try")


@pytest.mark.parametrize("pcrs", [frozenset(), frozenset({16})])
def test_a_wrong_pin_is_sent_once(own, tmp_path, pcrs):
    """A service with a wrong PIN file must not lock the TPM for everybody by trying again and again."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti, pins=pins())
    store.generate("k", sealing(user_auth=True, pcrs=pcrs))
    sealed = store.seal("k", b"s", b"")
    wrong = Tpm2KeyStore(tmp_path / "keys", own.tcti, pins=pins(b"1111"))
    assert [code_of(wrong.unseal, "k", sealed, b"") for _ in range(10)] == ["keys.pin.refused"] * 10
    assert bytes(store.unseal("k", sealed, b"").view()) == b"s"


@pytest.mark.parametrize("pin", [b"", b"x" * 33, b"12\0"])
def test_pins_that_a_tpm_cannot_hold(chip, tmp_path, pin):
    store = Tpm2KeyStore.create(tmp_path / "keys", chip.tcti, pins=pins(pin))
    assert code_of(store.generate, "k", signing(user_auth=True)) == "keys.pin.refused"
    assert store.list_keys() == []


def test_no_source_for_the_pin(chip, tmp_path):
    uri = parse_key_uri(f"tpm2:{tmp_path}/keys?tcti={chip.tcti}")
    assert code_of(open_store(uri, create=True).generate, "k", signing(user_auth=True)) == "keys.pin.missing"


def test_pins_from_files(own, tmp_path):
    write(tmp_path / "pin", b"2580\n")
    write(tmp_path / "owner", b"owner secret\n")
    text = f"tpm2:{tmp_path}/keys?tcti={own.tcti}&key-pin-source={tmp_path}/pin"
    with ESAPI(own.tcti) as esys:
        esys.hierarchy_change_auth(ESYS_TR.OWNER, b"owner secret")
    assert code_of(open_store, parse_key_uri(text), create=True) == "keys.pin.refused"
    uri = parse_key_uri(f"{text}&owner-auth-source={tmp_path}/owner")
    store = open_store(uri, create=True)
    info = store.generate("k", signing(user_auth=True))
    info.public_key.verify(store.signer("k").sign(b"m"), b"m")
    assert store.counter_increment("c") == 1
    store.persist("k", 0x81000100)
    store.destroy("k")


# ---- the folder in somebody else's hands ---------------------------------------------------------------------


def test_a_copy_of_the_folder_at_another_tpm(store, own, tmp_path):
    store.generate("k", signing())
    assert code_of(Tpm2KeyStore, store._folder.path, own.tcti) == "keys.unlock.refused"


def test_a_tpm_that_was_cleared(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    store.generate("k", signing())
    signer = store.signer("k")
    own.wipe()
    assert code_of(signer.sign, b"m") == "keys.unlock.refused"


def test_a_key_of_another_parent(store, own, tmp_path):
    """The attacker's own key, wrapped by his TPM, in place of ours."""
    store.generate("k", signing())
    other = Tpm2KeyStore.create(tmp_path / "other", own.tcti)
    other.generate("k", signing())
    path = store._folder.path / "k.pem"
    write(path, (tmp_path / "other" / "k.pem").read_bytes())
    assert code_of(store.public_key, "k") == "keys.unlock.refused"
    assert code_of(store.signer, "k") == "keys.unlock.refused"


def test_every_bit_of_the_wrapped_key_counts(store):
    store.generate("k", signing())
    path = store._folder.path / "k.pem"
    good = path.read_bytes()
    key = parse_pem(good)
    for at in (*range(0, len(good), 17), len(good) - 1):
        write(path, good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        assert code_of(store.public_key, "k") in {"keys.store.malformed", "keys.unlock.refused"}, at
    for cut in (0, 1, 40, len(good) - 1):
        write(path, good[:cut])
        assert code_of(store.public_key, "k") == "keys.store.malformed"
    write(path, good)
    assert store.public_key("k") == parse_public_area(key.public).public_key


def test_a_key_that_may_leave_or_was_made_outside_is_none_of_ours(store, chip):
    """A key that tpm2-tools made with other attributes, under our own parent."""
    store.generate("k", signing())
    template = "ecc:ecdsa"
    with ESAPI(chip.tcti) as esys:
        parent = TSSPrivKey._getparent(esys, None, 0x40000001)
        private, public, *_ = esys.create(
            parent,
            TPM2B_SENSITIVE_CREATE(),
            TPM2B_PUBLIC.parse(template, objectAttributes="userwithauth|sign|sensitivedataorigin"),
        )
        esys.flush_context(parent)
    write(store._folder.path / "k.pem", TSSPrivKey(private, public).to_pem())
    assert code_of(store.signer, "k") == "keys.store.malformed"


RECORDS = {
    "not-cbor": lambda record: None,
    "purpose": lambda record: record | {"purpose": "attest"},
    "unknown purpose": lambda record: record | {"purpose": "decrypt"},
    "sealing": lambda record: record | {"purpose": "seal", "algorithm": None},
    "algorithm": lambda record: record | {"algorithm": -51},
    "unknown algorithm": lambda record: record | {"algorithm": -7},
    "another name": lambda record: record | {"name": "other"},
    "format": lambda record: record | {"format": "tidegate.tpm2.key.v2"},
    "more": lambda record: record | {"more": 1},
    "less": lambda record: {key: value for key, value in record.items() if key != "handle"},
    "no PIN": lambda record: record | {"user_auth": False},
    "registers": lambda record: record | {"pcrs": {7: bytes(32)}},
    "no registers": lambda record: record | {"pcrs": {}},
    "register number": lambda record: record | {"pcrs": {24: bytes(32)}},
    "register size": lambda record: record | {"pcrs": {16: bytes(20)}},
    "handle": lambda record: record | {"handle": 0x80000000},
    "certificates": lambda record: record | {"certificates": [b""]},
    "certificate": lambda record: record | {"certificates": ["text"]},
    "too many": lambda record: record | {"certificates": [b"0"] * 9},
    "text": lambda record: "text",
}


@pytest.mark.parametrize("row", RECORDS)
def test_records_that_are_none(store, row):
    """Who writes to the folder weakens no key: record and TPM object have to say the same."""
    store.generate("k", signing(user_auth=True, pcrs=frozenset({16})))
    path = store._folder.path / "k.key"
    altered = RECORDS[row](cbor.decode(path.read_bytes(), limit_bytes=4096))
    write(path, b"\xff" if altered is None else cbor.encode(altered))
    assert code_of(store.signer, "k") == "keys.store.malformed"


STORES = [
    {},
    {"format": "tidegate.tpm2.v2", "parent": 0x40000001, "parent_name": bytes(34)},
    {"format": "tidegate.tpm2.v1", "parent": 0x40000007, "parent_name": bytes(34)},
    {"format": "tidegate.tpm2.v1", "parent": 0x40000001, "parent_name": bytes(32)},
    {"format": "tidegate.tpm2.v1", "parent": 0x40000001, "parent_name": bytes(34), "more": 1},
]


@pytest.mark.parametrize("document", STORES)
def test_store_files_that_are_none(chip, tmp_path, document):
    tmp_path.chmod(0o700)
    write(tmp_path / "store.cbor", cbor.encode(document))
    assert code_of(Tpm2KeyStore, tmp_path, chip.tcti) == "keys.store.malformed"


def test_a_store_is_made_once(store, chip):
    assert code_of(Tpm2KeyStore.create, store._folder.path, chip.tcti) == "keys.key.exists"


@pytest.mark.parametrize("name", ["", "store.cbor", "k.key", "k.pem"])
def test_files_that_others_can_reach(store, name):
    store.generate("k", signing())
    path = store._folder.path / name
    path.chmod(path.stat().st_mode | 0o040)
    used = (lambda: Tpm2KeyStore(store._folder.path, store._tpm.tcti)) if name == "store.cbor" else store.signer
    assert code_of(used, *([] if name == "store.cbor" else ["k"])) == "base.permissions.unsafe"


def test_files_are_private(store):
    store.generate("k", signing())
    store.counter_increment("private")
    assert {path.stat().st_mode & 0o777 for path in store._folder.path.iterdir()} == {0o600}
    assert store._folder.path.stat().st_mode & 0o777 == 0o700


def test_what_a_power_cut_leaves_in_the_folder(store):
    folder = store._folder.path
    info = store.generate("k", signing())
    (folder / "k.key").rename(folder / "lost")
    assert store.list_keys() == []
    assert code_of(store.signer, "k") == "keys.key.missing"
    assert store.generate("k", signing()).public_key != info.public_key
    store.signer("k").sign(b"m")
    (folder / "k.pem").unlink()
    assert code_of(store.signer, "k") == "keys.key.missing"
    assert code_of(store.generate, "k", signing()) == "keys.key.exists"
    store.destroy("k")
    assert code_of(store.destroy, "k") == "keys.key.missing"
    assert list(folder.glob("k.*")) == []


def test_a_destroyed_file_is_overwritten(store):
    """A hard link shows what became of the blocks."""
    store.generate("k", signing())
    path, link = store._folder.path / "k.pem", store._folder.path / "link"
    link.hardlink_to(path)
    store.destroy("k")
    assert set(link.read_bytes()) == {0}


def test_a_copy_from_the_backup_works_again(store):
    """No promise but a limit, on the page and in ``destroy``: the TPM cannot know that a wrapped key was destroyed."""
    info = store.generate("k", signing())
    kept = {name: (store._folder.path / name).read_bytes() for name in ("k.pem", "k.key")}
    store.destroy("k")
    for name, raw in kept.items():
        write(store._folder.path / name, raw)
    info.public_key.verify(store.signer("k").sign(b"m"), b"m")


# ---- counters ------------------------------------------------------------------------------------------------


def test_counters_start_at_zero_beside_each_other(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    assert [store.counter_read("a"), store.counter_increment("a"), store.counter_increment("a")] == [0, 1, 2]
    assert [store.counter_read("b"), store.counter_increment("b"), store.counter_read("a")] == [0, 1, 2]
    own.restart()
    assert [store.counter_read("a"), store.counter_increment("a")] == [2, 3]
    own.kill()
    own.start()
    assert store.counter_read("a") == 3


def test_an_old_folder_brings_no_old_count(own, tmp_path):
    """The folder is restored from a backup, or is a new one: the count is the TPM's."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    for _ in range(5):
        store.counter_increment("a")
    (tmp_path / "keys" / "a.counter").unlink()
    assert store.counter_read("a") == 5
    assert Tpm2KeyStore.create(tmp_path / "new", own.tcti).counter_read("a") == 5
    assert store.counter_increment("a") == 6


def indices(own, store, name):
    index = cbor.decode((store._folder.path / f"{name}.counter").read_bytes(), limit_bytes=512)["index"]
    return index, index + 1


def test_nothing_turns_a_counter_back(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    for _ in range(5):
        store.counter_increment("a")
    count, base = indices(own, store, "a")
    with ESAPI(own.tcti) as esys:
        for index in (count, base):
            handle = esys.tr_from_tpmpublic(index)
            with pytest.raises(TSS2_Exception):
                esys.nv_write(handle, bytes(8), 0, auth_handle=handle)
        esys.nv_undefine_space(esys.tr_from_tpmpublic(count))
    assert code_of(store.counter_read, "a") == "keys.store.malformed"
    assert code_of(store.counter_increment, "a") == "keys.store.malformed"
    (tmp_path / "keys" / "a.counter").unlink()
    assert store.counter_increment("a") > 5, "a counter that was deleted goes on above all that there ever was"


def test_an_owner_who_deletes_everything_in_the_tpm_is_noticed(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    store.counter_increment("a")
    with ESAPI(own.tcti) as esys:
        for index in indices(own, store, "a"):
            esys.nv_undefine_space(esys.tr_from_tpmpublic(index))
    assert code_of(store.counter_read, "a") == "keys.store.malformed"


@pytest.mark.parametrize("change", [{"base": 0}, {"base": 99}, {"index": 0x01500000}, {"index": 1}, {"more": 1}])
def test_counter_records_that_are_none(own, tmp_path, change):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    store.counter_increment("a")
    path = tmp_path / "keys" / "a.counter"
    write(path, cbor.encode(cbor.decode(path.read_bytes(), limit_bytes=512) | change))
    assert code_of(store.counter_read, "a") == "keys.store.malformed"


def test_a_counter_whose_making_was_cut_off(own, tmp_path, monkeypatch):
    """The power goes before each command of the first increment; what is there afterwards counts from 0 on, upwards."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    real = _Patient.__getattr__

    class PowerCutError(BaseException):
        pass

    for cut in range(1, 8):
        done, name = [], f"cut{cut}"

        def counted(self, command, cut=cut, done=done):
            if command.startswith("nv_") and command not in ("nv_read", "nv_read_public"):
                done.append(command)
                if len(done) == cut:
                    raise PowerCutError
            return real(self, command)

        monkeypatch.setattr(_Patient, "__getattr__", counted)
        with contextlib.suppress(PowerCutError):
            store.counter_increment(name)
        monkeypatch.setattr(_Patient, "__getattr__", real)
        before = store.counter_read(name)
        assert before == (1 if len(done) < cut else 0)
        assert store.counter_increment(name) == before + 1
    assert done == ["nv_define_space", "nv_increment", "nv_define_space", "nv_write", "nv_write_lock", "nv_increment"]


def test_counters_that_want_one_place(own, tmp_path):
    """Two names whose labels point at one pair of indices, and a third that finds all its places taken."""
    store, seen = Tpm2KeyStore.create(tmp_path / "keys", own.tcti), {}
    for number in range(100_000):
        first = Counter(None, f"c{number}")._slots()[0]
        if first in seen:
            break
        seen[first] = f"c{number}"
    pair = [seen[first], f"c{number}"]
    assert [store.counter_increment(name) for name in (*pair, *pair, pair[0])] == [1, 1, 2, 2, 3]
    assert [store.counter_read(name) for name in pair] == [3, 2]


def test_a_counter_without_a_place(own, tmp_path, monkeypatch):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    monkeypatch.setattr(Counter, "_slots", lambda self: [0x01500000])
    assert store.counter_increment("a") == 1
    assert code_of(store.counter_increment, "b") == "keys.provider.failed"
    assert store.counter_read("b") == 0


@pytest.mark.parametrize("base", [0x01500000, 0x01500001])
def test_an_index_that_somebody_else_made(own, tmp_path, monkeypatch, base):
    """An ordinary index in a counter's place, with a counter's label: it could be written at will."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    monkeypatch.setattr(Counter, "_slots", lambda self: [0x01500000])
    store.counter_increment("a")
    with ESAPI(own.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(base))
        public = TPMS_NV_PUBLIC(
            nvIndex=base,
            nameAlg=TPM2_ALG.SHA256,
            attributes=TPMA_NV.AUTHWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA,
            authPolicy=hashlib.sha256(b"tidegate counter v1\0a").digest(),
            dataSize=8,
        )
        handle = esys.nv_define_space(b"", TPM2B_NV_PUBLIC(public))
        esys.nv_write(handle, bytes(7) + b"\x09", auth_handle=handle)
    (tmp_path / "keys" / "a.counter").unlink()
    assert code_of(store.counter_read, "a") == "keys.store.malformed"
    assert code_of(store.counter_increment, "a") == "keys.store.malformed"


# ---- persistent keys -----------------------------------------------------------------------------------------


def test_a_persistent_key(store):
    info = store.generate("k", signing())
    other = store.generate("other", signing())
    store.persist("k", 0x81000200)
    store.persist("k", 0x81000200)
    assert code_of(store.persist, "k", 0x81000201) == "keys.key.exists"
    assert code_of(store.persist, "other", 0x81000200) == "keys.key.exists"
    for handle in (0x81000001, 0x81800000, 0x80000000, 0):
        assert code_of(store.persist, "other", handle) == "keys.name.invalid"
    for name in ("k", "0x81000200"):
        assert store.public_key(name) == info.public_key
        info.public_key.verify(store.signer(name).sign(b"m"), b"m")
    assert code_of(store.generate, "0x81000201", signing()) == "keys.name.invalid"
    assert code_of(store.signer, "0x81000201") == "keys.key.missing"
    assert code_of(store.signer, "0x81800001") == "keys.key.missing"
    assert code_of(store.persist, "0x81000200", 0x81000202) == "keys.key.exists"
    store.destroy("k")
    for name in ("k", "0x81000200"):
        assert code_of(store.signer, name) == "keys.key.missing"
    other.public_key.verify(store.signer("other").sign(b"m"), b"m")


def test_a_persistent_key_asks_for_its_pin_each_time(own, tmp_path):
    """One right PIN in this process does not open the key for whoever comes next."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti, pins=pins())
    store.generate("k", signing(user_auth=True))
    store.persist("k", 0x81000220)
    store.signer("k").sign(b"m")
    other = Tpm2KeyStore(store._folder.path, store._tpm.tcti, pins=pins(b"1111"))
    assert code_of(other.signer("k").sign, b"m") == "keys.pin.refused"
    assert code_of(other.signer("0x81000220").sign, b"m") == "keys.pin.refused"
    store.signer("0x81000220").sign(b"m")
    store.destroy("k")


def test_a_key_destroyed_by_its_handle(store):
    store.generate("k", signing())
    store.persist("k", 0x81000210)
    store.destroy("0x81000210")
    assert code_of(store.signer, "0x81000210") == "keys.key.missing"
    store.signer("k").sign(b"m")


def test_a_storage_key_is_no_signing_key(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    store._run(lambda chip: chip.esys.evict_control(ESYS_TR.OWNER, store._primary(chip), 0x81000300))
    assert code_of(store.signer, "0x81000300") == "keys.store.malformed"


def test_the_provisioned_storage_key_is_taken(own, tmp_path):
    first = Tpm2KeyStore.create(tmp_path / "first", own.tcti)
    first.generate("k", signing())
    first._run(lambda chip: chip.esys.evict_control(ESYS_TR.OWNER, first._primary(chip), 0x81000001))
    second = Tpm2KeyStore.create(tmp_path / "second", own.tcti)
    second.generate("k", signing())
    assert parse_pem((tmp_path / "second" / "k.pem").read_bytes()).parent == 0x81000001
    tpm_at(own.tcti)._contexts.clear()
    for store in (first, second):
        store.public_key("k").verify(store.signer("k").sign(b"m"), b"m")
    with ESAPI(own.tcti) as esys:
        esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(0x81000001), 0x81000001)
    own.restart()
    assert code_of(second.signer, "k") == "keys.unlock.refused"


def test_a_storage_key_with_an_authorisation_of_its_own(own, tmp_path):
    with ESAPI(own.tcti) as esys:
        sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=b"parent secret"))
        handle = esys.create_primary(sensitive, public_of(PRIMARY_TEMPLATE))[0]
        esys.evict_control(ESYS_TR.OWNER, handle, 0x81000001)
        esys.flush_context(handle)
    write(tmp_path / "parent", b"parent secret\n")
    text = f"tpm2:{tmp_path}/keys?tcti={own.tcti}"
    store = open_store(parse_key_uri(f"{text}&auth-source={tmp_path}/parent"), create=True)
    store.generate("k", signing())
    store.public_key("k").verify(store.signer("k").sign(b"m"), b"m")
    other = open_store(parse_key_uri(text))
    assert code_of(other.generate, "other", signing()) == "keys.pin.refused"


def test_behind_a_resource_manager(own, tmp_path, monkeypatch):
    """What others have loaded is not ours to flush there."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti, pins=pins())
    monkeypatch.setattr(store._tpm, "_managed", True)
    store.close()
    store = Tpm2KeyStore(tmp_path / "keys", own.tcti, pins=pins())
    with ESAPI(own.tcti) as esys:
        theirs = esys.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc")[0]
        store.generate("k", signing(user_auth=True))
        store.public_key("k").verify(store.signer("k").sign(b"m"), b"m")
        esys.read_public(theirs)
        esys.flush_context(theirs)


# ---- bad weather ---------------------------------------------------------------------------------------------


def test_keys_survive_reboots_and_power_cuts(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    info = store.generate("k", signing())
    signer = store.signer("k")
    for again in (own.restart, lambda: (own.kill(), own.start())):
        again()
        info.public_key.verify(signer.sign(b"m"), b"m")
        assert Tpm2KeyStore(tmp_path / "keys", own.tcti).public_key("k") == info.public_key


def test_a_tpm_that_is_gone(own, tmp_path):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    store.generate("k", signing())
    signer = store.signer("k")
    own.stop()
    assert code_of(signer.sign, b"m") == "keys.token.missing"
    assert code_of(Tpm2KeyStore, tmp_path / "keys", own.tcti) == "keys.token.missing"
    own.start()
    signer.sign(b"m")


@pytest.mark.parametrize(
    ("tcti", "code"),
    [
        ("swtpm:path=/nowhere/tpm", "keys.token.missing"),
        ("swtpm:port=abc", "keys.token.missing"),
        ("device:/nowhere/tpmrm0", "keys.token.missing"),
        ("/tmp/evil.so", "keys.uri.malformed"),
        ("libevil.so", "keys.uri.malformed"),
        ("pcap:swtpm", "keys.uri.malformed"),
        ("", "keys.uri.malformed"),
    ],
)
def test_tctis_without_a_tpm(tmp_path, tcti, code):
    """A TCTI's name is a library that gets loaded: only known ones are."""
    assert code_of(open_store, parse_key_uri(f"tpm2:{tmp_path}/keys?tcti={tcti}"), create=True) == code


def test_a_missing_library_is_named():
    script = (
        "import sys; sys.modules['tpm2_pytss'] = None\n"
        "from tidegate.base.errors import TidegateError\n"
        "from tidegate.keys.uri import open_store, parse_key_uri\n"
        "try:\n    open_store(parse_key_uri('tpm2:/nowhere'))\n"
        "except TidegateError as error:\n    print(error.code, error.fields['extra'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["keys.provider.absent", "tpm2"]


def test_nothing_is_written_to_stderr(own, tmp_path):
    """ESYS logs each refusal to stderr unless it is told not to."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti, pins=pins())
    store.generate("k", signing(user_auth=True))
    script = (
        "import sys; from pathlib import Path\n"
        "from tidegate.crypto.aead import Secret\n"
        "from tidegate.keys.tpm2 import Tpm2KeyStore, Tpm2Pins\n"
        "store = Tpm2KeyStore(Path(sys.argv[1]), sys.argv[2], pins=Tpm2Pins(key=lambda what: Secret(b'no')))\n"
        "try:\n    store.signer('k').sign(b'm')\n"
        "except Exception as error:\n    print(error.code)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "keys"), own.tcti]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("keys.pin.refused\n", "")


@pytest.mark.parametrize("code", [0x908, 0x90A, 0x920, 0x922, 0x923])
def test_a_busy_tpm_is_asked_again_but_not_for_ever(monkeypatch, code):
    monkeypatch.setattr(tpm2_device, "_FIRST_WAIT_S", 0.0)

    class Busy:
        def __init__(self, times):
            self.times, self.calls = times, 0

        def get_random(self, count):
            self.calls += 1
            if self.calls <= self.times:
                raise TSS2_Exception(code)
            return bytes(count)

    assert _Patient(Busy(3)).get_random(4) == bytes(4)
    never = Busy(10**6)
    with pytest.raises(TSS2_Exception):
        _Patient(never).get_random(4)
    assert never.calls == tpm2_device._MAX_TRIES


def test_a_tpm_full_of_leftovers(own, tmp_path):
    """Somebody else's three objects and three sessions fill every slot of the TPM."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    store.generate("k", sealing())
    store.close()
    esys = ESAPI(own.tcti)
    for _ in range(3):
        esys.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc")
        esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.HMAC, None, TPM2_ALG.SHA256)
    with pytest.raises(TSS2_Exception):
        esys.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc")
    esys.close()
    store = Tpm2KeyStore(tmp_path / "keys", own.tcti)
    assert bytes(store.unseal("k", store.seal("k", b"s", b""), b"").view()) == b"s"


_KILLED = """
import sys
from pathlib import Path
from tidegate.keys.tpm2 import Tpm2KeyStore
store = Tpm2KeyStore(Path(sys.argv[1]), sys.argv[2])
print("ready", flush=True)
while True:
    store.seal("k", b"s", b"")
"""


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_processes_killed_in_the_middle(own, tmp_path):
    """Twenty processes die while they hold the primary, a key and a session; the next one finds room."""
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    store.generate("k", sealing(pcrs=frozenset({16})))
    chance = random.Random(3)
    for _ in range(20):
        command = [sys.executable, "-c", _KILLED, str(tmp_path / "keys"), own.tcti]
        with started(command, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.01, 0.1))
            process.send_signal(signal.SIGKILL)
        assert bytes(store.unseal("k", store.seal("k", b"s", b""), b"").view()) == b"s"
    store.close()
    time.sleep(0.3)  # the TPM may still be busy with the last command of the last one killed
    store = Tpm2KeyStore(tmp_path / "keys", own.tcti)
    assert bytes(store.unseal("k", store.seal("k", b"s", b""), b"").view()) == b"s"
    store.close()
    with ESAPI(own.tcti) as esys:
        for _ in range(3):
            esys.create_primary(TPM2B_SENSITIVE_CREATE(), "ecc")


def test_threads(store):
    infos = [store.generate(f"k{number}", signing()) for number in range(8)]
    failed = []

    def work(info):
        try:
            for number in range(15):
                message = b"%d" % number
                info.public_key.verify(store.signer(info.name).sign(message), message)
                store.counter_increment("threads")
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work, args=(info,)) for info in infos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert store.counter_read("threads") == 8 * 15


def test_forks(store):
    """Children sign with the parent's signer, at the same time as the parent and each other, also amid its threads."""
    info = store.generate("k", signing())
    signer, stop = store.signer("k"), threading.Event()

    def sign_on():
        while not stop.is_set():
            info.public_key.verify(signer.sign(b"m"), b"m")

    thread = threading.Thread(target=sign_on)
    thread.start()
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for _ in range(10):
                    info.public_key.verify(signer.sign(b"m"), b"m")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    for _ in range(10):
        info.public_key.verify(signer.sign(b"m"), b"m")
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    stop.set()
    thread.join()


def test_a_tpm_that_another_process_keeps(own, tmp_path, monkeypatch):
    store = Tpm2KeyStore.create(tmp_path / "keys", own.tcti)
    monkeypatch.setattr(tpm2_device, "_BUSY_S", 0.05)
    other = tpm2_device.Tpm(own.tcti)
    with other._only_process():
        assert code_of(store.random, 8) == "keys.token.missing"
    assert len(store.random(8)) == 8


# ---- what the TPM's answers mean -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rc", "code"),
    [
        (0x98E, "keys.pin.refused"),
        (0x9A2, "keys.pin.refused"),
        (0x14B, "keys.provider.failed"),
        (0x101, "keys.provider.failed"),
        (0xA000A, "keys.token.missing"),
        (0xA0008, "keys.token.missing"),
        (0xA0002, "keys.provider.absent"),
        (0x70007, "keys.provider.failed"),
    ],
)
def test_every_answer_has_a_code(store, rc, code):
    def work(chip):
        raise TSS2_Exception(rc)

    assert code_of(store._run, work) == code
    assert len(store.random(8)) == 8
