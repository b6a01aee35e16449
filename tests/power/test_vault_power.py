"""The power is cut after every change that the vault makes to its storage; each time an item is old or new, whole."""

import os

import pytest

from tidegate.base.errors import StorageMissing
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker

OLD, NEW, OTHER = b"old content " * 2000, b"new content " * 5000, b"untouched"


@pytest.fixture
def make_unlocker(tmp_path):
    """Open the key store below a folder: it lies on the same storage, so that its counter is cut as well."""
    secret = tmp_path / "device-secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(range(32)))

    def make(root, *, create=False):
        kind = SoftwareKeyStore.create if create else SoftwareKeyStore
        keys = kind(root / "keys", DeviceSecretUnlock(secret))
        if create:
            keys.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
        return KeyStoreUnlocker(keys, "vault")

    return make


def put(vault):
    vault.write("item", NEW)


def overwrite(vault):
    vault.write("item", NEW)


def delete(vault):
    vault.delete("item")


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [(put, None, NEW), (overwrite, OLD, NEW), (delete, OLD, None)],
    ids=["put", "overwrite", "delete"],
)
def test_item_is_wholly_old_or_wholly_new(storage, tmp_path, monkeypatch, make_unlocker, change, before, after):
    unlocker = make_unlocker(storage.root, create=True)
    with Vault.create(storage.root / "vault", unlocker) as vault:
        vault.write("other", OTHER)
        if before is not None:
            vault.write("item", before)
        with storage.recording(monkeypatch):
            change(vault)
    seen = []
    for cut in storage.images(tmp_path / "image"):
        with Vault.open(tmp_path / "image" / "vault", make_unlocker(tmp_path / "image")) as vault:
            assert vault.read("other") == OTHER, cut
            found = vault.read("item") if "item" in list(vault) else None
            assert found in (before, after), cut
            seen.append(found)
            left = {path.name for path in (tmp_path / "image" / "vault" / "items").iterdir()}
            assert len(left) == len(list(vault)), cut  # nothing is left over
            vault.write("item", b"life goes on")
            assert vault.read("item") == b"life goes on", cut
    assert seen[0] == before
    assert seen[-1] == after


def test_change_that_returned_is_durable(storage, tmp_path, monkeypatch, make_unlocker):
    unlocker = make_unlocker(storage.root, create=True)
    with Vault.create(storage.root / "vault", unlocker) as vault, storage.recording(monkeypatch):
        vault.write("item", NEW)
    last = ""
    for cut in storage.images(tmp_path / "image"):
        way, place, _ = cut.split(" ", 2)
        number, _, total = place.partition("/")
        if number == total:
            with Vault.open(tmp_path / "image" / "vault", make_unlocker(tmp_path / "image")) as vault:
                assert vault.read("item") == NEW, cut
            last += way
    assert last == "writtensyncednamed"


def test_vault_is_created_or_can_be_created_again(storage, tmp_path, monkeypatch, make_unlocker):
    unlocker = make_unlocker(storage.root, create=True)
    with storage.recording(monkeypatch):
        Vault.create(storage.root / "vault", unlocker).close()
    created = []
    for cut in storage.images(tmp_path / "image"):
        unlocker = make_unlocker(tmp_path / "image")
        try:
            vault = Vault.open(tmp_path / "image" / "vault", unlocker)
        except StorageMissing:
            created.append(False)
            vault = Vault.create(tmp_path / "image" / "vault", unlocker)
        else:
            created.append(True)
        with vault:
            vault.write("item", NEW)
            assert vault.read("item") == NEW, cut
    assert (created[0], created[-1]) == (False, True)


def test_no_plaintext_is_ever_written(storage, monkeypatch, make_unlocker):
    unlocker = make_unlocker(storage.root, create=True)
    with Vault.create(storage.root / "vault", unlocker) as vault, storage.recording(monkeypatch):
        vault.write("patients/jane-roe", NEW)
        vault.write("patients/jane-roe", OLD)
        vault.delete("patients/jane-roe")
    written = b"".join(step[3] for step in storage._steps if step[0] == "write")
    named = " ".join(step[1] for step in storage._steps if step[0] == "create")
    assert len(written) > len(NEW) + len(OLD)
    assert b"content" not in written
    assert b"jane" not in written
    assert "jane" not in named


@pytest.mark.parametrize("kind", ["overwrite", "delete"])
def test_process_killed_at_each_system_call(tmp_path, make_unlocker, kind):
    """Not the power but the process goes, without any clean-up of ours: the kernel keeps what was written."""
    unlocker = make_unlocker(tmp_path, create=True)
    folder = tmp_path / "vault"
    Vault.create(folder, unlocker).close()
    for count in range(1, 60):
        with Vault.open(folder, unlocker) as vault:
            vault.write("item", OLD)
        child = os.fork()
        if child == 0:
            _die_after(count)
            try:
                with Vault.open(folder, unlocker) as vault:
                    _change(vault, kind)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        with Vault.open(folder, unlocker) as vault:
            found = vault.read("item") if "item" in list(vault) else None
            assert found in (OLD, NEW if kind == "overwrite" else None)
        if os.waitstatus_to_exitcode(status) == 0:
            assert found != OLD
            break
    else:
        pytest.fail("the change never came to its end")
    assert count > 8


def _change(vault, kind):
    if kind == "overwrite":
        vault.write("item", NEW)
    else:
        vault.delete("item")


def _die_after(count):
    """End this process at the ``count``-th system call that changes storage; a write is done in half before that."""
    left = [count]

    def wrap(real, *, writes=False):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                if writes:
                    data = bytes(arguments[1])
                    real(arguments[0], data[: len(data) // 2])
                os._exit(9)
            return real(*arguments, **options)

        return call

    for name in ("fsync", "rename", "unlink", "mkdir"):
        setattr(os, name, wrap(getattr(os, name)))
    os.write = wrap(os.write, writes=True)
    os.writev = lambda descriptor, pieces: os.write(descriptor, b"".join(pieces))
