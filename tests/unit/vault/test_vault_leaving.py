"""What leaves the vault and its end: backup, erasure, editing in RAM, databases, asyncio, the machine."""

import asyncio
import io
import os
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tidegate.base.errors import Fault, Rejected, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.crypto.trust import TrustPolicy
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault import age, machine
from tidegate.vault.age_recipients import HybridIdentity, X25519Identity
from tidegate.vault.aio import AsyncVault
from tidegate.vault.backup import read_backup, write_backup
from tidegate.vault.erase import erase_vault, verify_receipt
from tidegate.vault.machine import Attitude, Finding, MachineRules
from tidegate.vault.ramedit import edit_in_ram
from tidegate.vault.store import Vault
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


# -- the end ----------------------------------------------------------------------------------------------------------


def test_erase_destroys_the_key_and_what_it_wrapped(tmp_path, keys):
    folder = tmp_path / "vault"
    with Vault.create(folder, KeyStoreUnlocker(keys, "vault")) as vault:
        vault.write("a", MARK * 1000)
        vault.keyring.add(by_passphrase(), vault.table)
    stolen = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    receipt = erase_vault(folder, {"vault": keys}, reason="end of life", signer=keys.signer("events"), now_s=1000.5)
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
    for path, content in stolen.items():
        path.write_bytes(content)
    with pytest.raises(Rejected) as caught:
        Vault.open(folder, KeyStoreUnlocker(keys, "vault"))
    assert caught.value.code == "vault.unlock.refused"


def test_erase_overwrites_before_it_removes(vault, monkeypatch):
    vault.write("a", MARK)
    vault.close()
    record = (vault.folder / "vault.cbor").read_bytes()
    seen, unlink = {}, Path.unlink

    def look(path, **options):
        seen[path.name] = path.read_bytes()
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", look)
    erase_vault(vault.folder, {}, reason="test", signer=None, now_s=1)
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
        erase_vault(folder, {"vault": Stubborn()}, reason="test", signer=None, now_s=1)
    assert caught.value.code == "vault.erase.incomplete"


def test_a_damaged_vault_is_erased_too(vault):
    vault.close()
    (vault.folder / "vault.cbor").write_bytes(b"rubbish")
    receipt = erase_vault(vault.folder, {}, reason="test", signer=None, now_s=1)
    assert receipt.document["vault"] is None
    assert not (vault.folder / "vault.cbor").exists()


def test_an_erasure_that_was_cut_behind_the_record_goes_on(vault):
    vault.write("a", MARK)
    vault.close()
    (vault.folder / "vault.cbor").unlink()
    receipt = erase_vault(vault.folder, {}, reason="again", signer=None, now_s=1)
    assert receipt.document["files_erased"] == 4
    assert [path.name for path in vault.folder.rglob("*") if path.is_file()] == ["lock"]


def test_where_no_vault_is_nothing_is_erased(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(Fault) as caught:
        erase_vault(tmp_path, {}, reason="x", signer=None, now_s=1)
    assert caught.value.code == "base.storage.missing"
    assert (tmp_path / "holiday.jpg").exists()


def test_a_vault_in_use_is_not_erased(vault, monkeypatch):
    monkeypatch.setattr("tidegate.base.lock._POLL_S", 1.0)
    with pytest.raises(Fault) as caught:
        erase_vault(vault.folder, {}, reason="test", signer=None, now_s=1)
    assert caught.value.code == "vault.folder.busy"


def test_receipt_of_another_signer_is_refused(tmp_path, keys):
    folder = tmp_path / "vault"
    Vault.create(folder, by_passphrase()).close()
    receipt = erase_vault(folder, {}, reason="x", signer=keys.signer("events"), now_s=1)
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
