"""What leaves the vault and its end: backup, erasure, editing in RAM, databases, asyncio, the machine."""

import asyncio
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from tidegate.base.errors import Fault, Rejected, StorageFailed, TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.crypto.trust import TrustPolicy
from tidegate.keys.errors import CapabilityMissing, KeyMissing
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.testing.swtpm import SwTpm
from tidegate.vault import age, machine, ramedit
from tidegate.vault.age_recipients import HybridIdentity, X25519Identity
from tidegate.vault.aio import AsyncVault
from tidegate.vault.backup import read_backup, write_backup
from tidegate.vault.erase import erase_vault, verify_receipt
from tidegate.vault.errors import EditFailed, KeyUnknown
from tidegate.vault.fileobject import EditingFile
from tidegate.vault.machine import Attitude, Finding, MachineRules
from tidegate.vault.ramedit import edit_in_ram
from tidegate.vault.record import parse_record
from tidegate.vault.store import Vault
from tidegate.vault.threshold import ThresholdUnlocker
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

FAST = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
MARK = b"4111 1111 1111 1111 / Jane Roe"


def by_passphrase(text=b"first"):
    return PassphraseUnlocker(Secret(text), cost=FAST)


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", by_passphrase()) as vault:
        yield vault


@pytest.fixture
def keys(tmp_path):
    secret = tmp_path / "device-secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    store = SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(secret))
    store.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    store.generate("events", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    return store


# -- backup -----------------------------------------------------------------------------------------------------------


def fill(vault):
    vault.write("patients/Größe", MARK * 5000)
    vault.write("empty", b"")
    for number in range(300):
        vault.records("table")[f"key {number}"] = os.urandom(number * 50)
    vault.records("other")[b"\0\xff"] = b"x"
    return key_of(vault)


def key_of(vault, **options):
    with vault.application_key("database", **options) as key:
        return bytes(key.view())


@pytest.mark.parametrize("kind", [X25519Identity, HybridIdentity])
def test_backup_and_restore(vault, tmp_path, kind):
    key, identity, archive = fill(vault), kind.generate(), io.BytesIO()
    assert write_backup(vault, archive, [identity.recipient()]) == 2
    assert MARK not in archive.getvalue()
    with Vault.create(tmp_path / "other", by_passphrase(b"x")) as other:
        other.write("stays", b"1")
        archive.seek(0)
        assert read_backup(other, archive, [identity]) == 2
        assert other.read("patients/Größe") == MARK * 5000
        assert sorted(other) == ["empty", "patients/Größe", "stays"]
        assert dict(other.records("table").items()) == dict(vault.records("table").items())
        assert other.records("other")[b"\0\xff"] == b"x"
        assert key_of(other, create=False) == key
        assert other.stat("empty").size_bytes == 0


def test_backup_is_a_tar_archive_for_others(vault):
    fill(vault)
    identity, archive = X25519Identity.generate(), io.BytesIO()
    write_backup(vault, archive, [identity.recipient()])
    archive.seek(0)
    plain = io.BytesIO(b"".join(age.decrypt(archive, [identity])))
    with tarfile.open(fileobj=plain) as members:
        names = members.getnames()
    assert names[:2] == ["items/empty", "items/patients/Größe"]
    assert names[2:] == ["records/other", "records/table", "keys/database"]


def test_backup_of_a_damaged_item_is_no_backup(vault, tmp_path):
    fill(vault)
    path = max((vault.folder / "items").iterdir(), key=lambda path: path.stat().st_size)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    identity, archive = X25519Identity.generate(), io.BytesIO()
    with pytest.raises(Rejected) as caught:
        write_backup(vault, archive, [identity.recipient()])
    assert caught.value.code == "vault.chunk.altered"
    archive.seek(0)
    with Vault.create(tmp_path / "other", by_passphrase(b"x")) as other, pytest.raises(Rejected):
        read_backup(other, archive, [identity])


@pytest.mark.parametrize("member", ["items", "strange/x", "items/../x", "records/x"])
def test_strange_archive_is_refused(vault, member):
    plain, sealed, identity = io.BytesIO(), io.BytesIO(), X25519Identity.generate()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        info = tarfile.TarInfo(member)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"\0\0\0\1"))
    plain.seek(0)
    age.encrypt(plain, sealed, [identity.recipient()])
    sealed.seek(0)
    with pytest.raises(TidegateError) as caught:
        read_backup(vault, sealed, [identity])
    assert caught.value.code in {"vault.backup.malformed", "vault.item.name", "crypto.cbor.malformed"}
    assert list(vault) == []


def test_backup_target_that_fails(vault):
    class Full(io.RawIOBase):
        def write(self, data):
            raise OSError(28, "full")

    vault.write("a", os.urandom(5_000_000))
    with pytest.raises(OSError, match="full"):
        write_backup(vault, Full(), [X25519Identity.generate().recipient()])


def names_in_backup(archive, identity):
    archive.seek(0)
    with tarfile.open(fileobj=io.BytesIO(b"".join(age.decrypt(archive, [identity])))) as members:
        return members.getnames()


def test_what_is_deleted_meanwhile_is_not_in_the_backup(vault, monkeypatch):
    for name in ("a", "b", "c"):
        vault.write(name, MARK)
    key_of(vault)
    identity, archive, told, listed = X25519Identity.generate(), io.BytesIO(), [], vault.iter_items

    def list_then_delete():
        for item in listed():
            if item.name == "b":
                vault.delete("b")
            yield item

    monkeypatch.setattr(vault, "iter_items", list_then_delete)
    assert write_backup(vault, archive, [identity.recipient()], report=told.append) == 2
    assert told == ["a", "c"]
    assert names_in_backup(archive, identity) == ["items/a", "items/c", "keys/database"]


def test_backup_without_a_key_that_goes_while_it_is_read(vault, monkeypatch):
    key_of(vault)

    def gone(*_, **__):
        raise KeyUnknown("destroyed meanwhile")

    monkeypatch.setattr(vault, "application_key", gone)
    identity, archive = X25519Identity.generate(), io.BytesIO()
    assert write_backup(vault, archive, [identity.recipient()]) == 0
    assert names_in_backup(archive, identity) == []


def test_backup_waits_for_who_edits(vault):
    vault.write("a", MARK)
    editing = vault.open_file("a", "r+")
    editing.write(b"X")
    timer = threading.Timer(0.3, editing.close)
    timer.start()
    identity, archive = X25519Identity.generate(), io.BytesIO()
    assert write_backup(vault, archive, [identity.recipient()]) == 1
    timer.join()
    assert names_in_backup(archive, identity) == ["items/a"]


def test_backup_does_not_wait_for_ever(vault, monkeypatch):
    monkeypatch.setattr("tidegate.vault.backup.BUSY_WAIT_S", 0.1)
    vault.write("a", MARK)
    with vault.open_file("a", "r+"), pytest.raises(Fault) as caught:
        write_backup(vault, io.BytesIO(), [X25519Identity.generate().recipient()])
    assert caught.value.code == "vault.item.busy"


# -- the end ----------------------------------------------------------------------------------------------------------


def test_erase_destroys_the_key_and_what_it_wrapped(tmp_path, keys):
    folder = tmp_path / "vault"
    with Vault.create(folder, KeyStoreUnlocker(keys, "vault")) as vault:
        vault.write("a", MARK * 1000)
        vault.add_unlocker(by_passphrase())
    stolen = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    receipt = erase_vault(folder, [(keys, "vault")], reason="end of life", signer=keys.signer("events"), now_s=1000.5)
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / "lock"]
    assert "vault" not in {key.name for key in keys.list_keys()}
    trust = TrustPolicy(keys=(keys.public_key("events"),), threshold=1, required_classes=frozenset())
    document = verify_receipt(receipt.signed, trust)
    assert document["reason"] == "end of life"
    assert [(slot["kind"], slot["state"]) for slot in document["slots"]] == [
        ("keystore", "destroyed"),
        ("passphrase", "left"),
    ]
    assert document["files_erased"] == len(stolen) - 1
    for name in ("items", "new", "table"):
        (folder / name).mkdir(mode=0o700)
    for path, content in stolen.items():
        path.write_bytes(content)
    with pytest.raises(Rejected) as caught:
        Vault.open(folder, KeyStoreUnlocker(keys, "vault"))
    assert caught.value.code == "vault.unlock.refused"


def test_erase_overwrites_before_it_removes(vault, monkeypatch):
    vault.write("a", MARK)
    vault.close()
    record = (vault.folder / "vault.cbor").read_bytes()
    seen, unlink = {}, os.unlink

    def look(name, **options):
        path = Path(f"/proc/self/fd/{options['dir_fd']}") / name
        seen[path.name] = path.read_bytes()
        unlink(name, **options)

    monkeypatch.setattr(os, "unlink", look)
    erase_vault(vault.folder, [], reason="test", signer=None, now_s=1)
    assert not set(_pieces(record)) & set(_pieces(seen["vault.cbor"]))
    assert len(seen) == 5  # record, manifest, snapshot, journal, item


def _pieces(data):
    return [data[start : start + 16] for start in range(0, len(data) - 16, 16)]


def test_a_key_that_still_works_is_told(tmp_path, keys):
    class Stubborn:
        def __getattr__(self, name):
            return getattr(keys, name)

        def destroy(self, name):
            pass

    folder = tmp_path / "vault"
    Vault.create(folder, KeyStoreUnlocker(keys, "vault")).close()
    with pytest.raises(Fault) as caught:
        erase_vault(folder, [(Stubborn(), "vault")], reason="test", signer=None, now_s=1)
    assert caught.value.code == "vault.erase.incomplete"
    document = json.loads(caught.value.fields["receipt"])
    assert [line["state"] for line in (*document["keys"], *document["slots"])] == ["failed", "failed"]
    assert not (folder / "vault.cbor").exists(), "the rest was erased all the same"


def test_a_damaged_vault_is_erased_too(vault):
    vault.close()
    (vault.folder / "vault.cbor").write_bytes(b"rubbish")
    receipt = erase_vault(vault.folder, [], reason="test", signer=None, now_s=1)
    assert receipt.document["vault"] is None
    assert not (vault.folder / "vault.cbor").exists()


def test_an_erasure_that_was_cut_behind_the_record_goes_on(vault):
    vault.write("a", MARK)
    vault.close()
    (vault.folder / "vault.cbor").unlink()
    receipt = erase_vault(vault.folder, [], reason="again", signer=None, now_s=1)
    assert receipt.document["files_erased"] == 4
    assert [path.name for path in vault.folder.rglob("*") if path.is_file()] == ["lock"]


def key_names(keys):
    return {key.name for key in keys.list_keys()}


def erase(folder, *given, signer=None):
    return erase_vault(folder, given, reason="stolen", signer=signer, now_s=1).document


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def cut_record(folder):
    path = folder / "vault.cbor"
    path.write_bytes(path.read_bytes()[:-1])


def rename_kind(folder):
    path = folder / "vault.cbor"
    assert b"\x68keystore" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b"\x68keystore", b"\x68abcdefgh"))


def make_pipe(folder):
    (folder / "vault.cbor").unlink()
    os.mkfifo(folder / "vault.cbor")


def make_folder(folder):
    (folder / "vault.cbor").unlink()
    (folder / "vault.cbor").mkdir()


def make_link(folder):
    (folder / "vault.cbor").rename(folder.parent / "elsewhere.cbor")
    (folder / "vault.cbor").symlink_to(folder.parent / "elsewhere.cbor")


@pytest.mark.parametrize(
    ("harm", "record"),
    [
        (lambda folder: None, "read"),
        (cut_record, "unreadable"),
        (rename_kind, "read"),
        (make_pipe, "unreadable"),
        (make_folder, "unreadable"),
        (make_link, "unreadable"),
        (lambda folder: (folder / "vault.cbor").write_bytes(bytes(200_000)), "unreadable"),
        (lambda folder: (folder / "vault.cbor").unlink(), "missing"),
        (lambda folder: shutil.rmtree(folder / "table"), "read"),
        (shutil.rmtree, "missing"),
    ],
    ids=["as it was", "cut", "kind", "pipe", "folder", "link", "large", "removed", "no table", "no folder"],
)
def test_the_record_decides_nothing(tmp_path, keys, harm, record):
    folder = tmp_path / "vault"
    Vault.create(folder, KeyStoreUnlocker(keys, "vault")).close()
    harm(folder)
    document = erase(folder, (keys, "vault"))
    assert "vault" not in key_names(keys)
    assert (document["record"], document["failures"]) == (record, [])
    (line,) = document["keys"]
    assert (line["key"], line["state"], line["slots"]) == ("vault", "destroyed", [1] if record == "read" else [])
    assert line["proof"].startswith("keys.key.missing")
    assert not folder.exists() or names_in(folder) == ["lock"]
    elsewhere = tmp_path / "elsewhere.cbor"
    assert not elsewhere.exists() or parse_record(elsewhere.read_bytes()), "what a link leads to is not the vault's"


def test_a_key_that_no_slot_names_is_destroyed_and_told(vault, keys):
    vault.close()
    document = erase(vault.folder, (keys, "vault"), (keys, "never"))
    assert [(line["key"], line["state"], line["slots"]) for line in document["keys"]] == [
        ("vault", "destroyed", []),
        ("never", "missing", []),
    ]
    assert document["slots"][0]["state"] == "left"


def test_two_stores_with_one_name(tmp_path, keys):
    (tmp_path / "second").touch(mode=0o600)
    (tmp_path / "second").write_bytes(b"2" * 32)
    other = SoftwareKeyStore.create(tmp_path / "others", DeviceSecretUnlock(tmp_path / "second"))
    other.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    folder = tmp_path / "vault"
    Vault.create(folder, KeyStoreUnlocker(keys, "vault")).close()
    document = erase(folder, (other, "vault"), (keys, "vault"))
    assert key_names(keys) == {"events"}
    assert key_names(other) == set()
    assert [line["state"] for line in document["keys"]] == ["destroyed", "destroyed"]


@pytest.mark.parametrize(("need", "state"), [(1, "left"), (2, "destroyed")])
def test_a_share_in_a_key_store_is_destroyed(tmp_path, keys, need, state):
    folder = tmp_path / "vault"
    parts = [KeyStoreUnlocker(keys, "vault"), by_passphrase()]
    Vault.create(folder, ThresholdUnlocker(need, parts)).close()
    document = erase(folder, (keys, "vault"))
    assert document["keys"][0]["state"] == "destroyed"
    assert document["keys"][0]["slots"] == [1]
    assert document["slots"][0]["state"] == state
    assert "vault" not in key_names(keys)


def test_a_share_that_still_opens_is_told(tmp_path, keys):
    class Stubborn:
        """A store that keeps sealing off but opens what was sealed."""

        def __getattr__(self, name):
            return getattr(keys, name)

        def destroy(self, name):
            pass

        def list_keys(self):
            return []

        def seal(self, *_):
            raise KeyMissing("gone, it says")

    folder = tmp_path / "vault"
    Vault.create(folder, ThresholdUnlocker(2, [by_passphrase(), KeyStoreUnlocker(keys, "vault")])).close()
    with pytest.raises(Fault) as caught:
        erase(folder, (Stubborn(), "vault"))
    assert json.loads(caught.value.fields["receipt"])["failures"] == ["key vault: the key still unseals"]


@pytest.mark.parametrize("stubborn", [False, True])
def test_who_may_destroy_but_not_use_proves_it_by_destroying(vault, keys, stubborn):
    class Granted:
        """As a remote store for whom nothing but ``destroy`` is granted."""

        def __getattr__(self, name):
            return getattr(keys, name)

        def destroy(self, name):
            if not stubborn:
                keys.destroy(name)

        def seal(self, *_):
            raise CapabilityMissing("not granted")

        list_keys = seal

    vault.close()
    if stubborn:
        with pytest.raises(Fault) as caught:
            erase(vault.folder, (Granted(), "vault"))
        assert "has it still" in caught.value.message
        return
    (line,) = erase(vault.folder, (Granted(), "vault"))["keys"]
    assert line["state"] == "destroyed"
    assert "keys.capability.missing" in line["proof"]


@pytest.mark.parametrize("revocable", [True, False])
def test_a_thief_with_the_tpm_and_copies_of_everything(tmp_path, revocable):
    """A revocable key is dead in them too, and the receipt says so; of another one it promises nothing, rightly."""
    from tidegate.keys.tpm2 import Tpm2KeyStore

    with SwTpm(tmp_path / "tpm") as tpm:
        keys = Tpm2KeyStore.create(tmp_path / "device" / "keys", tpm.tcti)
        keys.generate("vault", KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(revocable=revocable)))
        folder = tmp_path / "device" / "vault"
        with Vault.create(folder, KeyStoreUnlocker(keys, "vault")) as vault:
            vault.write("card", MARK)
        shutil.copytree(tmp_path / "device", tmp_path / "copies")
        (line,) = erase(folder, (keys, "vault"))["keys"]
        assert (line["state"], line["copies"]) == ("destroyed", "dead" if revocable else "not proven")
        stolen = Tpm2KeyStore(tmp_path / "copies" / "keys", tpm.tcti)
        thief = KeyStoreUnlocker(stolen, "vault")
        if not revocable:
            with Vault.open(tmp_path / "copies" / "vault", thief) as vault:
                assert vault.read("card") == MARK
            return
        with pytest.raises(TidegateError) as caught:
            Vault.open(tmp_path / "copies" / "vault", thief)
        assert caught.value.code == "vault.unlock.refused"
        with pytest.raises(KeyMissing):
            stolen.seal("vault", b"s", b"")


def test_a_store_that_fails_keeps_no_other_key_alive(tmp_path, keys):
    class Broken:
        def __getattr__(self, name):
            def fail(*_):
                raise StorageFailed("no answer")

            return fail

    folder = tmp_path / "vault"
    Vault.create(folder, KeyStoreUnlocker(keys, "vault")).close()
    with pytest.raises(Fault) as caught:
        erase(folder, (Broken(), "vault"), (keys, "vault"))
    assert caught.value.code == "vault.erase.incomplete"
    assert key_names(keys) == {"events"}
    assert not (folder / "vault.cbor").exists()


def test_nobody_elses_files_are_erased(tmp_path, keys):
    folder, others = tmp_path / "vault", tmp_path / "others"
    Vault.create(folder, KeyStoreUnlocker(keys, "vault")).close()
    others.mkdir()
    (others / "holiday.jpg").write_bytes(MARK)
    shutil.rmtree(folder / "items")
    (folder / "items").symlink_to(others)
    (folder / "table" / "link").symlink_to(others / "holiday.jpg")
    with pytest.raises(Fault) as caught:
        erase(folder, (keys, "vault"))
    assert caught.value.code == "vault.erase.incomplete"
    assert (others / "holiday.jpg").read_bytes() == MARK
    assert "vault" not in key_names(keys)
    assert names_in(folder) == ["lock"]
    assert erase(folder, (keys, "vault"))["keys"][0]["state"] == "missing"


@pytest.mark.parametrize("harm", ["mode", "link"])
def test_a_folder_that_others_reach_into_costs_the_key_alone(tmp_path, keys, harm):
    real = folder = tmp_path / "vault"
    Vault.create(folder, KeyStoreUnlocker(keys, "vault")).close()
    if harm == "mode":
        folder.chmod(0o777)
    else:
        folder = tmp_path / "link"
        folder.symlink_to(real)
    with pytest.raises(Rejected) as refused:
        erase(folder)
    assert refused.value.code == "base.permissions.unsafe"
    with pytest.raises(Fault) as caught:
        erase(folder, (keys, "vault"))
    assert json.loads(caught.value.fields["receipt"])["failures"] == ["the vault's folder: base.permissions.unsafe"]
    assert (real / "vault.cbor").exists()
    assert "vault" not in key_names(keys)


def test_a_vault_in_use_costs_the_key_first(tmp_path, keys, monkeypatch):
    monkeypatch.setattr("tidegate.base.lock._POLL_S", 1.0)
    folder = tmp_path / "vault"
    with Vault.create(folder, KeyStoreUnlocker(keys, "vault")):
        with pytest.raises(Fault) as caught:
            erase(folder, (keys, "vault"))
        assert "vault.folder.busy" in caught.value.message
        assert "vault" not in key_names(keys)
    assert erase(folder, (keys, "vault"))["record"] == "read"


@pytest.mark.parametrize("kind", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"), Path.mkdir])
def test_strange_things_among_the_files_are_removed(vault, keys, kind):
    vault.close()
    (vault.folder / "lock").unlink()
    for place in ("lock", "manifest.x", "items/strange", "new/strange", "table/strange"):
        kind(vault.folder / place)
    assert erase(vault.folder, (keys, "vault"))["failures"] == []
    assert names_in(vault.folder) == ["lock"]
    assert (vault.folder / "lock").is_file()


def test_a_folder_with_files_of_others_is_a_failure(vault):
    vault.close()
    (vault.folder / "items" / "deep").mkdir()
    (vault.folder / "items" / "deep" / "holiday.jpg").touch()
    with pytest.raises(Fault) as caught:
        erase(vault.folder)
    assert "deep" in caught.value.message
    assert (vault.folder / "items" / "deep" / "holiday.jpg").exists()


def test_a_receipt_that_cannot_be_signed_is_not_lost(tmp_path, keys):
    class Unable:
        @property
        def public_key(self):
            raise StorageFailed("the key is damaged")

    folder = tmp_path / "vault"
    Vault.create(folder, KeyStoreUnlocker(keys, "vault")).close()
    with pytest.raises(Fault) as caught:
        erase(folder, (keys, "vault"), signer=Unable())
    document = json.loads(caught.value.fields["receipt"])
    assert document["failures"] == ["the receipt's signature: base.storage.failed"]
    assert document["keys"][0]["state"] == document["slots"][0]["state"] == "destroyed"
    assert names_in(folder) == ["lock"]


def test_an_altered_record_cannot_make_the_receipt_too_large_or_write_to_terminals(tmp_path, keys):
    folder = tmp_path / "vault"
    Vault.create(folder, by_passphrase()).close()
    document = cbor.decode((folder / "vault.cbor").read_bytes(), limit_bytes=1 << 20)
    document["slots"][0] |= {"kind": "keystore", "sealed": {"key": "\x1b[2J" + "x" * 90_000, "sealed": b""}}
    (folder / "vault.cbor").write_bytes(cbor.encode(document))
    receipt = erase_vault(folder, [(keys, "vault")], reason="x", signer=keys.signer("events"), now_s=1)
    assert receipt.signed is not None
    assert receipt.document["record"] == "read"
    assert receipt.document["slots"][0]["key"].startswith("?[2Jxxx")


def test_failures_without_number_find_room(vault, monkeypatch):
    vault.close()
    for number in range(100):
        (vault.folder / "items" / f"x{number}").write_bytes(b"x")

    def refuse(*_, **__):
        raise OSError(5, "no")

    monkeypatch.setattr(os, "pread", refuse)
    with pytest.raises(Fault) as caught:
        erase(vault.folder)
    document = json.loads(caught.value.fields["receipt"])
    assert len(document["failures"]) == 33
    assert document["failures"][-1].startswith("and ")
    assert names_in(vault.folder / "items") == [], "what could not be overwritten is removed all the same"


def test_where_no_vault_is_nothing_is_erased(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(Fault) as caught:
        erase_vault(tmp_path, [], reason="x", signer=None, now_s=1)
    assert caught.value.code == "base.storage.missing"
    assert (tmp_path / "holiday.jpg").exists()


def test_a_vault_in_use_is_not_erased(vault, monkeypatch):
    monkeypatch.setattr("tidegate.base.lock._POLL_S", 1.0)
    with pytest.raises(Fault) as caught:
        erase_vault(vault.folder, [], reason="test", signer=None, now_s=1)
    assert caught.value.code == "vault.folder.busy"


def test_receipt_of_another_signer_is_refused(tmp_path, keys):
    folder = tmp_path / "vault"
    Vault.create(folder, by_passphrase()).close()
    receipt = erase_vault(folder, [(keys, "vault")], reason="x", signer=keys.signer("events"), now_s=1)
    assert key_names(keys) == {"events"}
    keys.generate("other", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    trust = TrustPolicy(keys=(keys.public_key("other"),), threshold=1, required_classes=frozenset())
    with pytest.raises(Rejected):
        verify_receipt(receipt.signed, trust)


# -- editing in RAM ---------------------------------------------------------------------------------------------------


def editor(tmp_path, script):
    path = tmp_path / "editor"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return str(path)


def edit(content, **options):
    try:
        return edit_in_ram(content, **options)
    except Fault as error:
        if "could be mounted" in error.message:
            pytest.skip("neither root nor user namespaces here")
        raise


def test_edit_leaves_nothing_on_the_storage(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    script = editor(
        tmp_path,
        f'echo more >> "$1"; cp "$1" "$1~"; stat -f -c %T "$1" > {tmp_path}/type; echo "$HOME" > {tmp_path}/home\n',
    )
    assert edit(MARK, editor=script, name="record.txt") == MARK + b"more\n"
    assert (tmp_path / "type").read_text().strip() == "tmpfs"
    home = Path((tmp_path / "home").read_text().strip())
    assert not home.exists()  # and while it was there, only the editor saw it
    assert all(MARK not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_editor_with_arguments_and_one_that_fails(tmp_path):
    assert edit(b"a", editor=f"{editor(tmp_path, 'printf %s $1 > $2')} new", name="x") == b"new"
    with pytest.raises(Fault) as caught:
        edit(b"a", editor=editor(tmp_path, "exit 3"), name="x")
    assert caught.value.code == "vault.edit.failed"
    assert caught.value.fields["status"] == 3
    with pytest.raises(Fault):
        edit(b"a", editor="/nowhere/at/all", name="x")


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("letter.txt", "item.txt"),
        ("x" * 250 + "ü" * 20 + ".json", "item.json"),
        ("archive." + "x" * 300, "item"),
        ("strange.a b", "item"),
        (".profile", "item"),
        ("", "item"),
    ],
)
def test_the_editor_sees_a_short_name(tmp_path, name, seen):
    assert edit(b"", editor=editor(tmp_path, 'printf %s "${1##*/}" > "$1"'), name=name) == seen.encode()


@pytest.mark.parametrize("error", [OSError(28, "full"), MemoryError(), KeyboardInterrupt(), SystemExit(0)])
def test_what_fails_in_the_child_ends_the_child(monkeypatch, tmp_path, error):
    """What is raised there must not run the ``with`` blocks that the parent has open."""
    ran = tmp_path / "ran"
    ran.touch()

    def fail(_):
        raise error

    monkeypatch.setattr(ramedit, "_mount_private", fail)
    try:
        edit_in_ram(b"a", editor="true", name="x")
    except EditFailed as caught:
        assert caught.fields["status"] == 125
    finally:
        with ran.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
    assert ran.read_text() == f"{os.getpid()}\n"


def test_a_command_that_cannot_be_split(tmp_path):
    with pytest.raises(Fault) as caught:
        edit_in_ram(b"a", editor="vi 'x", name="x")
    assert caught.value.code == "vault.edit.failed"


def test_no_editing_where_it_could_be_swapped(monkeypatch, tmp_path):
    bad = Finding(what="swap", holds=False, detail="on, in the clear: /dev/sda2")
    mount = ramedit._mount_private
    monkeypatch.setattr(ramedit, "examine_swap", lambda: bad)
    monkeypatch.setattr(ramedit, "_mount_private", lambda place: mount(place) or True)
    assert edit(b"a", editor="true", name="x") == b"a", "with noswap it may be edited"
    monkeypatch.setattr(ramedit, "_mount_private", lambda place: mount(place) and False)
    with pytest.raises(Fault) as caught:
        edit_in_ram(b"a", editor="true", name="x")
    assert caught.value.code == "vault.machine.swap"


# -- databases --------------------------------------------------------------------------------------------------------


def test_database_under_a_key_of_the_vault(vault, tmp_path):
    pytest.importorskip("sqlcipher3")
    from tidegate.vault.sqlite import open_database

    path = tmp_path / "patients.db"
    database = open_database(vault, path)
    database.execute("CREATE TABLE t (x TEXT)")
    database.execute("INSERT INTO t VALUES (?)", (MARK.decode(),))
    database.commit()
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert database.execute("PRAGMA cipher_version").fetchone()[0].startswith("4.")
    database.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert all(MARK not in file.read_bytes() for file in tmp_path.glob("patients.db*"))
    again = open_database(vault, path, create=False)
    assert again.execute("SELECT x FROM t").fetchone() == (MARK.decode(),)
    again.close()
    with pytest.raises(Rejected) as caught:
        open_database(vault, path, key_name="another")
    assert caught.value.code == "vault.database.refused"
    vault.destroy_application_key("database/patients.db")
    with pytest.raises(Fault) as caught:
        open_database(vault, path, create=False)
    assert caught.value.code == "vault.key.unknown"


def test_without_the_library(vault, tmp_path, monkeypatch):
    from tidegate.vault.sqlite import open_database

    monkeypatch.setitem(sys.modules, "sqlcipher3", None)
    with pytest.raises(Fault) as caught:
        open_database(vault, tmp_path / "x.db")
    assert caught.value.code == "vault.database.library"
    assert not (tmp_path / "x.db").exists()


# -- asyncio ----------------------------------------------------------------------------------------------------------


def test_async_vault(vault):
    folder = vault.folder
    vault.close()

    async def use():
        async with await AsyncVault.open(folder, by_passphrase()) as opened:
            content = os.urandom(1_500_000)
            await asyncio.gather(*(opened.write(f"item/{number}", content) for number in range(4)))
            assert [item.name for item in await opened.list("item/")] == [f"item/{number}" for number in range(4)]
            assert await opened.read("item/2") == content
            assert b"".join([piece async for piece in opened.iter_content("item/3")]) == content
            await opened.write_from("item/0", io.BytesIO(b"short"))
            assert await opened.read_range("item/0", 1, 2) == b"ho"
            await opened.put_records("t", {"a": b"1", "b": b"2"})
            await opened.put_records("t", {"a": None, "c": b"3", "never": None})
            assert [await opened.get_record("t", key) for key in "abc"] == [None, b"2", b"3"]
            await opened.delete("item/1")
            with pytest.raises(TidegateError):
                await opened.stat("item/1")

    asyncio.run(use())


def test_file_objects_of_asyncio(vault):
    folder = vault.folder
    vault.close()

    async def use():
        async with await AsyncVault.open(folder, by_passphrase()) as opened:
            async with await opened.open_file("log", "w") as file:
                assert await file.write(b"one\n") == 4
                with pytest.raises(io.UnsupportedOperation):
                    await file.read()
            async with await opened.open_file("log", "a") as file:
                await asyncio.gather(*(file.write(b"%d\n" % number) for number in range(50)))
                await file.flush()
                assert (file.name, await file.tell()) == ("log", 4 + 10 * 2 + 40 * 3)
            async with await opened.open_file("log") as file:
                assert await file.read(4) == b"one\n"
                assert sorted((await file.read()).split()) == sorted(b"%d" % number for number in range(50))
                assert await file.seek(-1, io.SEEK_END) == 143
                assert (await file.read(), await file.read()) == (b"\n", b"")
            async with await opened.open_file("log", "r+") as file:
                assert await file.truncate(3) == 3
                await file.seek(1)
                await file.write(b"NE!")
                await file.close()
                await file.close()
            assert await opened.read("log") == b"oNE!"
            for mode in ("w", "r+"):
                with pytest.raises(RuntimeError):
                    async with await opened.open_file("log", mode) as file:
                        await file.write(b"never")
                        raise RuntimeError
            assert await opened.read("log") == b"oNE!"

    asyncio.run(use())


def test_a_cancelled_operation_of_a_file_ends_before_the_next_one(vault, monkeypatch):
    folder = vault.folder
    vault.close()
    real = EditingFile.write

    def slow(file, data):
        time.sleep(0.2)
        return real(file, data)

    async def use():
        async with await AsyncVault.open(folder, by_passphrase()) as opened:
            async with await opened.open_file("log", "a") as file:
                first = asyncio.create_task(file.write(b"first"))
                await asyncio.sleep(0.05)
                first.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await first
                await file.write(b" second")
            assert await opened.read("log") == b"first second"

    monkeypatch.setattr(EditingFile, "write", slow)
    asyncio.run(use())


def test_the_loop_does_not_wait(vault):
    folder = vault.folder
    vault.close()

    async def use():
        async with await AsyncVault.open(folder, by_passphrase()) as opened:
            ticks, stop = 0, asyncio.Event()

            async def tick():
                nonlocal ticks
                while not stop.is_set():
                    ticks += 1
                    await asyncio.sleep(0.001)

            ticking = asyncio.create_task(tick())
            await asyncio.to_thread(opened.blocking.write_from, "big", _Slow())
            stop.set()
            await ticking
            assert ticks > 20

    asyncio.run(use())


class _Slow(io.RawIOBase):
    left = 20

    def readinto(self, buffer):
        time.sleep(0.01)
        self.left -= 1
        return 100 if self.left else 0


# -- the machine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        (MachineRules(swap=Attitude.REFUSE), "vault.machine.swap"),
        (MachineRules(memory=Attitude.REFUSE), "vault.machine.memory"),
        (MachineRules(swap=Attitude.IGNORE, memory=Attitude.IGNORE), None),
        (MachineRules(), None),
    ],
)
def test_rules_about_the_machine(vault, monkeypatch, rules, code):
    vault.close()
    bad = Finding(what="swap", holds=False, detail="on, in the clear: /dev/sda2")
    monkeypatch.setattr(machine, "examine_swap", lambda: bad)
    monkeypatch.setattr(machine, "examine_memory", lambda: bad)
    if code is not None:
        with pytest.raises(Fault) as caught:
            Vault.open(vault.folder, by_passphrase(), machine=rules)
        assert caught.value.code == code
        return
    with Vault.open(vault.folder, by_passphrase(), machine=rules) as again:
        assert len(again.warnings) == (0 if rules.swap is Attitude.IGNORE else 2)


@pytest.mark.parametrize(
    ("swaps", "files", "holds"),
    [
        ("", {}, True),
        ("/dev/sda2 partition 1 0 -2\n", {}, False),
        ("/swapfile file 1 0 -2\n", {}, False),
        ("/dev/zram0 partition 1 0 100\n", {"/sys/class/block/zram0/backing_dev": "none\n"}, True),
        ("/dev/zram0 partition 1 0 100\n", {"/sys/class/block/zram0/backing_dev": "/dev/sda3\n"}, False),
        ("/dev/dm-3 partition 1 0 -2\n", {"/sys/class/block/dm-3/dm/uuid": "CRYPT-PLAIN-swap\n"}, True),
        ("/dev/dm-3 partition 1 0 -2\n", {"/sys/class/block/dm-3/dm/uuid": "LVM-x\n"}, False),
    ],
)
def test_swap_is_judged(monkeypatch, swaps, files, holds):
    known = {"/proc/swaps": "Filename Type Size Used Priority\n" + swaps, **files}
    monkeypatch.setattr(machine, "_read", lambda path, **_: known.get(str(path), ""))
    assert machine.examine_swap().holds is holds


def test_open_vault_leaves_no_core_dump(tmp_path):
    code = (
        "import sys, os, resource\n"
        "from tidegate.vault.store import Vault\n"
        "from tidegate.vault.unlockers import PassphraseUnlocker\n"
        "from tidegate.crypto.aead import Secret\n"
        "from tidegate.keys.software import Argon2Cost\n"
        "u = PassphraseUnlocker(Secret(b'x'), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (-1, -1))\n"
        f"v = Vault.create({str(tmp_path / 'vault')!r}, u)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE)[0], flush=True)\n"
        "os.abort()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, check=False)
    assert done.stdout.strip() == b"0", done.stderr
    assert done.returncode == -6
    assert not list(tmp_path.glob("core*"))
