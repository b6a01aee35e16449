"""Keys that follow a PCR authority, on a TPM in software: updates with their statement, and every statement that lies.

What our own check refuses the TPM refuses as well; ``test_the_tpm_itself_refuses`` leaves our check out.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tpm2_pytss import ESAPI
from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE

from tidegate.base.errors import TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys import pcr_policy, tpm2
from tidegate.keys.keyd_wire import Operation, encode_answer, parse_reply
from tidegate.keys.pcr_policy import (
    MAX_STATEMENT_BYTES,
    MAX_STATEMENTS,
    Statement,
    VerifiedStatement,
    authority_area,
    authority_name,
    encode_statement,
    parse_statement,
    sign_statement,
)
from tidegate.keys.remote import RemoteKeyStore
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec, PcrAuthority
from tidegate.keys.tpm2 import Tpm2KeyStore, Tpm2Pins
from tidegate.keys.tpm2_device import public_of
from tidegate.keys.tpm2_files import parse_pem, parse_public_area
from tidegate.keys.tpm2_policy import approve
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.keyd import running_keyd
from tidegate.testing.swtpm import SwTpm

P256, P384, RSA = SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.RSA_PSS
DIGEST = hashlib.sha256(b"the next system").digest()
PCRS = frozenset({7, 16})


def refusal(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value


def code_of(call, *arguments, **named):
    return refusal(call, *arguments, **named).code


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    """The maker's keys: one authority of each algorithm that TPMs verify, and another one."""
    root = tmp_path_factory.mktemp("maker")
    (root / "secret").write_bytes(bytes(range(32)))
    (root / "secret").chmod(0o600)
    store = SoftwareKeyStore.create(root / "store", DeviceSecretUnlock(root / "secret"))
    for name, algorithm in (("p256", P256), ("p384", P384), ("rsa", RSA), ("other", P256)):
        store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
    return store


class Device:
    """A TPM, its store, and a sealing key that follows the maker's authority."""

    def __init__(self, root, chip, maker, authority="p256", **policy):
        self.root, self.chip, self.maker, self.authority = root, chip, maker, authority
        self.store = Tpm2KeyStore.create(root / "keys", chip.tcti, pins=Tpm2Pins(key=lambda what: Secret(b"2580")))
        self.spec = self.spec_of(**policy)
        self.store.generate("k", self.spec)

    def spec_of(self, purpose=KeyPurpose.SEAL, algorithm=None, product="box", pcrs=PCRS, floor=None, **policy):
        authority = PcrAuthority(key=self.maker.public_key(self.authority), product=product, floor=floor)
        return KeySpec(
            purpose=purpose, algorithm=algorithm, policy=KeyPolicy(pcrs=pcrs, pcr_authority=authority, **policy)
        )

    def now(self, pcrs=PCRS):
        return self.store.pcr_values(pcrs)

    def sign(self, values=None, *, by=None, product="box", version=None):
        return sign_statement(self.maker.signer(by or self.authority), product, values or self.now(), version=version)

    def place(self, raw, name="statement"):
        folder = self.root / "keys" / "statements"
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(raw)

    def take_away(self):
        for path in (self.root / "keys" / "statements").iterdir():
            path.unlink()

    def opens(self, sealed):
        with self.store.unseal("k", sealed, b"context") as secret:
            return bytes(secret.view()) == b"the vault's key"

    def sealed(self):
        self.place(self.sign(), "first")
        sealed = self.store.seal("k", b"the vault's key", b"context")
        assert self.opens(sealed)
        return sealed


@pytest.fixture
def own(tmp_path):
    with SwTpm(tmp_path / "tpm") as tpm:
        yield tpm


@pytest.fixture
def device(own, tmp_path, maker):
    return Device(tmp_path, own, maker)


# ---- updates -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("authority", ["p256", "p384", "rsa"])
@pytest.mark.parametrize("user_auth", [False, True])
def test_an_update_brings_its_statement(own, tmp_path, maker, authority, user_auth):
    device = Device(tmp_path, own, maker, authority, user_auth=user_auth)
    sealed, before = device.sealed(), device.now()
    device.store.extend(7, DIGEST)
    predicted = before | {7: hashlib.sha256(before[7] + DIGEST).digest()}
    error = refusal(device.store.unseal, "k", sealed, b"context")
    assert error.code == "keys.pcr.no-statement"
    assert (error.fields["other_values"], error.fields["pcr7_current"]) == (1, predicted[7].hex())
    device.place(device.sign(predicted), "second")
    assert device.opens(sealed)
    (tmp_path / "keys" / "statements" / "second").unlink()
    assert code_of(device.store.unseal, "k", sealed, b"context") == "keys.pcr.no-statement"
    device.place(device.sign(predicted), "second")
    own.restart()
    assert device.opens(sealed), "the old system has its statement still"
    (tmp_path / "keys" / "statements" / "first").unlink()
    assert code_of(device.store.unseal, "k", sealed, b"context") == "keys.pcr.no-statement"


def test_our_digests_are_the_tpms(device):
    """The TPM's own computation, in a trial session, and its own name for the authority."""
    area = parse_public_area(parse_pem((device.root / "keys" / "k.pem").read_bytes()).public)
    policy = device.spec.policy
    for name in ("p256", "p384", "rsa"):
        key = device.maker.public_key(name)
        with ESAPI(device.chip.tcti) as esys:
            handle = esys.load_external(public_of(authority_area(key)), None, ESYS_TR.OWNER)
            assert bytes(esys.tr_get_name(handle)) == authority_name(key)
            esys.flush_context(handle)
    with ESAPI(device.chip.tcti) as esys:
        session = esys.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.TRIAL, None, TPM2_ALG.SHA256)
        esys.policy_pcr(session, b"", "sha256:7,16")
        assert bytes(esys.policy_get_digest(session)) == pcr_policy.pcr_policy(device.now())
        ticket = device.store._run(lambda chip: approve(chip, verified(device, device.sign()))).ticket
        reference = pcr_policy.policy_reference("box", PCRS, None)
        name = authority_name(policy.pcr_authority.key)
        esys.policy_authorize(session, pcr_policy.pcr_policy(device.now()), name, ticket, reference)
        assert bytes(esys.policy_get_digest(session)) == area.auth_policy
        esys.flush_context(session)


def test_a_statement_is_needed_to_seal_as_well(device):
    assert code_of(device.store.seal, "k", b"s", b"") == "keys.pcr.no-statement"
    device.place(device.sign())
    device.store.seal("k", b"s", b"")


def test_keys_that_sign_and_attest_follow_it_too(device):
    for name, purpose in (("sign", KeyPurpose.SIGN), ("ak", KeyPurpose.ATTEST)):
        device.store.generate(name, device.spec_of(purpose, P256))
    signer = device.store.signer("sign")
    assert code_of(signer.sign, b"m") == "keys.pcr.no-statement"
    assert code_of(device.store.quote, "ak", bytes(16), PCRS) == "keys.pcr.no-statement"
    device.place(device.sign())
    signer.public_key.verify(signer.sign(b"m"), b"m")
    assert device.store.quote("ak", bytes(16), PCRS).pcrs == device.now()


def test_the_key_is_the_same_when_it_is_read_again(device):
    again = Tpm2KeyStore(device.root / "keys", device.chip.tcti)
    (info,) = again.list_keys()
    assert info.spec == device.spec
    assert parse_reply(Operation.LIST, encode_answer(Operation.LIST, [info])) == [info]


def test_a_persistent_key(device):
    device.store.generate("sign", device.spec_of(KeyPurpose.SIGN, P256))
    device.store.persist("sign", 0x81000200)
    assert code_of(device.store.signer("sign").sign, b"m") == "keys.pcr.no-statement"
    device.place(device.sign())
    device.store.public_key("sign").verify(device.store.signer("sign").sign(b"m"), b"m")
    assert code_of(device.store.signer, "0x81000200") == "keys.store.malformed"


def test_the_folder_may_be_a_link_to_what_the_system_brings(device):
    (device.root / "system").mkdir()
    (device.root / "keys" / "statements").symlink_to(device.root / "system")
    (device.root / "system" / "s").write_bytes(device.sign())
    device.store.seal("k", b"s", b"")


def test_a_wrong_pin_is_still_a_wrong_pin(own, tmp_path, maker):
    device = Device(tmp_path, own, maker, user_auth=True)
    sealed = device.sealed()
    thief = Tpm2KeyStore(tmp_path / "keys", own.tcti, pins=Tpm2Pins(key=lambda what: Secret(b"1111")))
    assert code_of(thief.unseal, "k", sealed, b"context") == "keys.pin.refused"
    assert device.opens(sealed)


@pytest.mark.parametrize("when", ["before the session", "at the use"])
def test_a_register_that_changes_in_the_middle(device, monkeypatch, when):
    """Between reading the registers and using the key: the TPM notices, and the message is about the registers."""
    sealed = device.sealed()
    real, changed = tpm2.satisfy, []

    def late(chip, session, record, approval):
        if when == "at the use":
            real(chip, session, record, approval)
        changed.append(tpm2.extend_pcr(chip, 7, DIGEST))
        if when == "before the session":
            real(chip, session, record, approval)

    monkeypatch.setattr(tpm2, "satisfy", late)
    assert code_of(device.store.unseal, "k", sealed, b"context") == "keys.pcr.no-statement"
    assert changed


def test_nothing_stays_loaded(device):
    """A bare TPM has three places; the authority's key takes one only for a moment."""
    sealed = device.sealed()
    for _ in range(5):
        assert device.opens(sealed)
        device.place(encode_statement(forged(device)), "a-forgery")
        assert device.opens(sealed)
    device.store.close()
    with ESAPI(device.chip.tcti) as esys:
        for first in (0x80000000, 0x02000000):
            _, answer = esys.get_capability(1, first, 8)
            assert not [handle for handle in answer.data.handles if int(handle) >> 24 in (0x80, 0x02, 0x03)]


def test_behind_the_key_process(own, maker):
    """Its clients name an authority and know nothing of statements; what is refused there is told here."""
    folder = Path(tempfile.mkdtemp(prefix="tidegate-"))  # a socket's path has at most 107 bytes
    uri = f"tpm2:{folder}/keys?tcti={own.tcti}"
    store = open_store(parse_key_uri(uri), create=True)
    authority = PcrAuthority(key=maker.public_key("p256"), product="box", floor="count")
    spec = KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(pcrs=PCRS, pcr_authority=authority))
    grant = f'[[grant]]\nuser = {os.getuid()}\nkeys = ["*"]\noperations = ["generate", "list", "seal", "unseal"]\n'
    (folder / "keyd.toml").write_text(f'[keyd]\nsocket = "{folder}/socket"\nstore = {json.dumps(uri)}\n{grant}')
    with running_keyd(folder / "keyd.toml"):
        client = RemoteKeyStore(folder / "socket")
        assert client.generate("k", spec).spec == client.list_keys()[0].spec == spec
        error = refusal(client.seal, "k", b"s", b"")
        assert error.code == "keys.pcr.no-statement"
        assert error.fields["other_values"] == 0
        (folder / "keys" / "statements").mkdir()
        raw = sign_statement(maker.signer("p256"), "box", store.pcr_values(PCRS), version=1)
        (folder / "keys" / "statements" / "one").write_bytes(raw)
        assert bytes(client.unseal("k", client.seal("k", b"s", b""), b"").view()) == b"s"
    shutil.rmtree(folder)


# ---- statements that open nothing ----------------------------------------------------------------------------


def changed(raw, **members):
    return cbor.encode(cbor.decode(raw, limit_bytes=MAX_STATEMENT_BYTES) | members)


def forged(device, **members):
    """The right claims, signed by another key."""
    real = parse_statement(device.sign(by="other"))
    claims = {"product": real.product, "pcrs": real.pcrs, "signature": real.signature}
    return Statement(**(claims | {"key_id": device.maker.public_key("p256").key_id.digest} | members))


LIES = {
    "nothing": (lambda device: None, "keys.pcr.no-statement"),
    "signed by another authority": (lambda device: device.sign(by="other"), "keys.pcr.no-statement"),
    "signed by another, named as ours": (lambda device: encode_statement(forged(device)), "keys.pcr.statement"),
    "for another product": (lambda device: device.sign(product="cam"), "keys.pcr.no-statement"),
    "for another product, renamed": (
        lambda device: changed(device.sign(product="cam"), product="box"),
        "keys.pcr.statement",
    ),
    "for fewer registers": (lambda device: device.sign(device.now(frozenset({7}))), "keys.pcr.no-statement"),
    "for more registers": (lambda device: device.sign(device.now(PCRS | {0})), "keys.pcr.no-statement"),
    "for more registers, cut": (
        lambda device: changed(device.sign(device.now(PCRS | {0})), pcrs=device.now()),
        "keys.pcr.statement",
    ),
    "for other values": (lambda device: device.sign(device.now() | {7: DIGEST}), "keys.pcr.no-statement"),
    "for other values, changed": (
        lambda device: changed(device.sign(device.now() | {7: DIGEST}), pcrs=device.now()),
        "keys.pcr.statement",
    ),
    "signature of a bit less": (
        lambda device: changed(device.sign(), signature=flipped(parse_statement(device.sign()).signature)),
        "keys.pcr.statement",
    ),
    "signature cut": (lambda device: changed(device.sign(), signature=b"1"), "keys.pcr.statement"),
    "empty": (lambda device: b"", "keys.pcr.no-statement"),
    "cut": (lambda device: device.sign()[:-1], "keys.pcr.no-statement"),
    "too long": (lambda device: device.sign() + bytes(MAX_STATEMENT_BYTES), "keys.pcr.no-statement"),
    "of another version": (
        lambda device: changed(device.sign(), format="tidegate.pcr-statement.v2"),
        "keys.pcr.no-statement",
    ),
}


def flipped(raw):
    return bytes([raw[0] ^ 1]) + raw[1:]


@pytest.mark.parametrize("row", LIES)
def test_statements_that_open_nothing(device, row):
    sealed = device.sealed()
    device.take_away()
    make, code = LIES[row]
    raw = make(device)
    if raw is not None:
        device.place(raw)
    assert code_of(device.store.unseal, "k", sealed, b"context") == code
    device.place(device.sign(), "z-good")
    assert device.opens(sealed), "what lies beside a good one does no harm"


def test_every_byte_of_a_statement_counts(device):
    """No change of one bit leaves a statement that opens."""
    sealed = device.sealed()
    good = device.sign()
    for at in range(0, len(good), 11):
        device.place(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], "first")
        assert code_of(device.store.unseal, "k", sealed, b"context").startswith("keys.pcr."), at


def verified(device, raw, **members):
    """A proof that our own check did not make: what is below it has to hold by itself."""
    statement = parse_statement(raw)
    known = {name: getattr(statement, name) for name in ("pcrs", "signature", "version")}
    claims = {"authority": device.spec.policy.pcr_authority, **known}
    return VerifiedStatement(**(claims | members), _proof=pcr_policy._PROOF)


LIES_TO_THE_TPM = {
    "signed by another": (lambda device: verified(device, device.sign(by="other")), "keys.pcr.statement"),
    "of another authority": (
        lambda device: verified(
            device,
            device.sign(by="other"),
            authority=PcrAuthority(key=device.maker.public_key("other"), product="box"),
        ),
        "keys.provider.failed",
    ),
    "for another product": (lambda device: verified(device, device.sign(product="cam")), "keys.pcr.statement"),
    "for another product, as such": (
        lambda device: verified(
            device,
            device.sign(product="cam"),
            authority=PcrAuthority(key=device.spec.policy.pcr_authority.key, product="cam"),
        ),
        "keys.provider.failed",
    ),
    "for fewer registers": (
        lambda device: verified(device, device.sign(device.now(frozenset({7})))),
        "keys.provider.failed",
    ),
    "for other values": (
        lambda device: verified(device, device.sign(device.now() | {7: DIGEST})),
        "keys.provider.failed",
    ),
    "for other values, changed": (
        lambda device: verified(device, device.sign(device.now() | {7: DIGEST}), pcrs=device.now()),
        "keys.pcr.statement",
    ),
    "signature cut": (lambda device: verified(device, device.sign(), signature=bytes(64)), "keys.pcr.statement"),
}


@pytest.mark.parametrize("row", LIES_TO_THE_TPM)
def test_the_tpm_itself_refuses(device, monkeypatch, row):
    sealed = device.sealed()
    make, code = LIES_TO_THE_TPM[row]
    lie = make(device)
    monkeypatch.setattr(tpm2, "find_approval", lambda chip, record, statements: approve(chip, lie))
    assert code_of(device.store.unseal, "k", sealed, b"context") == code
    truth = verified(device, device.sign())
    monkeypatch.setattr(tpm2, "find_approval", lambda chip, record, statements: approve(chip, truth))
    assert device.opens(sealed)


def test_too_many_files(device):
    for number in range(MAX_STATEMENTS + 1):
        device.place(b"", f"{number:04}")
    error = refusal(device.store.seal, "k", b"s", b"")
    assert (error.code, error.fields["check"]) == ("keys.pcr.statement", "number")
    (device.root / "keys" / "statements" / "0000").unlink()
    device.place(device.sign(), "0001")
    (device.root / "keys" / "statements" / ".hidden").write_bytes(b"")
    (device.root / "keys" / "statements" / "folder").mkdir()
    device.store.seal("k", b"s", b"")


# ---- a floor under the versions ------------------------------------------------------------------------------


@pytest.fixture
def floored(own, tmp_path, maker):
    return Device(tmp_path, own, maker, floor="count")


def replaced(device, version, name="first"):
    device.place(device.sign(version=version), name)


def test_the_counter_ends_old_versions(floored):
    """And nothing brings them back: not the folder's old files, not the owner who deletes the counter."""
    device = floored
    assert device.store.counter_read("count") == 1
    replaced(device, 1)
    sealed = device.store.seal("k", b"the vault's key", b"context")
    assert device.opens(sealed)
    before = {path: path.read_bytes() for path in (device.root / "keys").iterdir() if path.is_file()}
    device.store.counter_increment("count")
    error = refusal(device.store.unseal, "k", sealed, b"context")
    assert (error.code, error.fields["other_versions"]) == ("keys.pcr.no-statement", 1)
    for version in (2, 3, 64):
        replaced(device, version, "second")
        assert device.opens(sealed)
    for path, raw in before.items():
        path.write_bytes(raw)
    (device.root / "keys" / "statements" / "second").unlink()
    assert code_of(device.store.unseal, "k", sealed, b"context") == "keys.pcr.no-statement"
    for path in (device.root / "keys").glob("*.counter"):
        path.unlink()
    assert code_of(device.store.unseal, "k", sealed, b"context") == "keys.pcr.no-statement"
    with ESAPI(device.chip.tcti) as esys:
        for index in nv_indices(esys):
            esys.nv_undefine_space(esys.tr_from_tpmpublic(index))
    device.store.counter_increment("count")
    assert code_of(device.store.unseal, "k", sealed, b"context") == "keys.store.malformed"


def nv_indices(esys):
    _, answer = esys.get_capability(1, 0x01500000, 64)
    return {int(handle) for handle in answer.data.handles}


@pytest.mark.parametrize("version", [None, 65, 1000])
def test_versions_that_the_key_does_not_know(floored, version):
    replaced(floored, version)
    error = refusal(floored.store.seal, "k", b"s", b"")
    assert error.code == "keys.pcr.no-statement"
    assert error.fields["other_keys" if version is None else "other_versions"] == 1
    replaced(floored, 64, "z")
    floored.store.seal("k", b"s", b"")


def test_a_version_is_for_keys_with_a_floor(device):
    replaced(device, 1)
    assert refusal(device.store.seal, "k", b"s", b"").fields["other_keys"] == 1


def test_a_key_that_is_born_later_begins_later(floored):
    for _ in range(9):
        floored.store.counter_increment("count")
    floored.store.generate("late", floored.spec_of(floor="count", user_auth=True))
    for version, codes in ((9, ["keys.pcr.no-statement"] * 2), (10, []), (64, []), (73, ["keys.pcr.no-statement"])):
        replaced(floored, version)
        found = []
        for name in ("k", "late"):
            try:
                sealed = floored.store.seal(name, b"s", b"")
                floored.store.unseal(name, sealed, b"").wipe()
            except TidegateError as error:
                found.append(error.code)
        assert found == codes, version


def test_the_tpm_itself_compares_the_versions(floored, monkeypatch):
    """Our own comparison left out: an old version, one that is called newer, and the right one."""
    for _ in range(2):
        floored.store.counter_increment("count")
    replaced(floored, 3)
    sealed = floored.store.seal("k", b"the vault's key", b"context")
    key_files = floored.store._folder.key("k")
    for statement, code in (
        (verified(floored, floored.sign(version=2)), "keys.provider.failed"),
        (verified(floored, floored.sign(version=2), version=3), "keys.pcr.statement"),
        (verified(floored, floored.sign(), version=None), "keys.provider.failed"),
    ):
        monkeypatch.setattr(tpm2, "find_approval", lambda chip, record, statements, one=statement: approve(chip, one))
        assert code_of(floored.store.unseal, "k", sealed, b"context") == code
    assert floored.store._folder.key("k") == key_files
    truth = verified(floored, floored.sign(version=3))
    monkeypatch.setattr(tpm2, "find_approval", lambda chip, record, statements: approve(chip, truth))
    assert floored.opens(sealed)


def test_a_counter_of_another_count_is_no_floor(floored, own, monkeypatch):
    """Who deletes both indices and makes them anew gets a raw count above all that the key's policy allows."""
    replaced(floored, 64)
    sealed = floored.store.seal("k", b"the vault's key", b"context")
    for _ in range(64):
        floored.store.counter_increment("count")
    with ESAPI(own.tcti) as esys:
        for index in nv_indices(esys):
            esys.nv_undefine_space(esys.tr_from_tpmpublic(index))
    (floored.root / "keys" / "count.counter").unlink()
    assert floored.store.counter_increment("count") == 1
    path = floored.root / "keys" / "k.key"
    document = cbor.decode(path.read_bytes(), limit_bytes=4096)
    raw = cbor.decode((floored.root / "keys" / "count.counter").read_bytes(), limit_bytes=512)
    assert code_of(floored.store.unseal, "k", sealed, b"context") == "keys.store.malformed"
    truth = verified(floored, floored.sign(version=64))
    with monkeypatch.context() as patch:
        patch.setattr(tpm2, "find_approval", lambda chip, record, statements: approve(chip, truth))
        patch.setattr(tpm2, "require_state", lambda *arguments: None)
        assert code_of(floored.store.unseal, "k", sealed, b"context") == "keys.provider.failed"
    name, index, _, first = document["authority"]["floor"]
    path.write_bytes(cbor.encode(altered(document, floor=[name, index, raw["base"], first])))
    assert code_of(floored.store.unseal, "k", sealed, b"context") == "keys.store.malformed"


FLOORS = [["count"], ["count", 1, 1, 1], ["Count", 0x01500000, 1, 1], ["count", 0x01500000, -1, 1], "count", {}, 1]


@pytest.mark.parametrize("floor", FLOORS)
def test_floors_in_records_that_are_none(floored, floor):
    path = floored.root / "keys" / "k.key"
    document = cbor.decode(path.read_bytes(), limit_bytes=4096)
    for wrong in (floor, None):
        path.write_bytes(cbor.encode(altered(document, floor=wrong)))
        assert code_of(floored.store.seal, "k", b"s", b"") == "keys.store.malformed"


# ---- the record in somebody else's hands ---------------------------------------------------------------------


def altered(document, **members):
    return document | {"authority": document["authority"] | members}


RECORDS = {
    "another product": lambda document, other: altered(document, product="cam"),
    "no product": lambda document, other: altered(document, product=""),
    "another authority": lambda document, other: altered(document, key=other.encode()),
    "no key": lambda document, other: altered(document, key=b""),
    "fewer registers": lambda document, other: altered(document, pcrs=[7]),
    "no register": lambda document, other: altered(document, pcrs=[]),
    "registers twice": lambda document, other: altered(document, pcrs=[7, 7, 16]),
    "registers that are none": lambda document, other: altered(document, pcrs=[7, 16, "x"]),
    "truth for one": lambda document, other: altered(document, pcrs=[True, 16]),
    "more": lambda document, other: altered(document, more=1),
    "a floor": lambda document, other: altered(document, floor=["count", 0x01500000, 1, 1]),
    "values as well": lambda document, other: document | {"pcrs": {7: bytes(32)}},
    "no authority": lambda document, other: {key: value for key, value in document.items() if key != "authority"},
    "text": lambda document, other: document | {"authority": "text"},
}


@pytest.mark.parametrize("row", RECORDS)
def test_records_that_are_none(device, row):
    """Who writes to the folder cannot let the key follow himself."""
    device.place(device.sign())
    path = device.root / "keys" / "k.key"
    document = RECORDS[row](cbor.decode(path.read_bytes(), limit_bytes=4096), device.maker.public_key("other"))
    path.write_bytes(cbor.encode(document))
    assert code_of(device.store.seal, "k", b"s", b"") == "keys.store.malformed"


def test_an_authority_that_this_tpm_cannot_load(device, monkeypatch):
    """Found when the key is made, not after the first update."""
    real = tpm2.require_authority

    def smaller(chip, policy):
        area = authority_area(policy.pcr_authority.key).replace((0x0003).to_bytes(2, "big"), b"\0\x7f", 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tidegate.keys.tpm2_policy.authority_area", lambda key: area)
            real(chip, policy)

    monkeypatch.setattr(tpm2, "require_authority", smaller)
    assert code_of(device.store.generate, "other", device.spec) in {"keys.capability.missing", "keys.unlock.refused"}
    assert [info.name for info in device.store.list_keys()] == ["k"]


def test_other_providers_refuse(maker, device):
    spec = device.spec_of(KeyPurpose.SIGN, P256)
    assert code_of(maker.generate, "follows", spec) == "keys.capability.missing"
    with contextlib.suppress(TidegateError):
        maker.destroy("follows")
    assert "follows" not in {info.name for info in maker.list_keys()}
