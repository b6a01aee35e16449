"""The power is cut after every change that a software key store makes: each key is there and works, or it is gone."""

from __future__ import annotations

import pytest

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.errors import KeyMissing, UnlockRefused
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

SIGNING = KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256)


def generate(store):
    store.generate("new", SIGNING)


def destroy(store):
    store.destroy("key")


def keep_certificates(store):
    store.keep_certificates("key", [b"another"])


def count(store):
    store.counter_increment("c")


def change_unlock(store):
    store.change_unlock(store.other)


@pytest.mark.parametrize("change", [generate, destroy, keep_certificates, count, change_unlock])
def test_every_key_works_or_is_gone(storage, tmp_path, monkeypatch, change):
    for name in ("secret", "other"):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_bytes(name.encode().ljust(32, b"-"))
    unlocks = [DeviceSecretUnlock(tmp_path / name) for name in ("secret", "other")]
    store = SoftwareKeyStore.create(storage.root / "keys", unlocks[0])
    store.other = unlocks[1]
    for name in ("key", "bystander"):
        store.generate(name, SIGNING)
        store.keep_certificates(name, [b"certificate"])
    store.counter_increment("c")
    with storage.recording(monkeypatch):
        change(store)
    names = set()
    for cut in storage.images(tmp_path / "image"):
        found = opened(tmp_path / "image" / "keys", unlocks)
        present = {info.name for info in found.list_keys()}
        names.add(frozenset(present))
        assert present >= {"bystander"}, cut
        for name in present:
            found.public_key(name).verify(found.signer(name).sign(b"m"), b"m")
            assert found.certificates(name) in {(), (b"certificate",), (b"another",)}, cut
        assert found.certificates("bystander") == (b"certificate",), cut
        assert found.counter_read("c") in {1, 2}, cut
        for name in {"key", "new"} - present:
            with pytest.raises(KeyMissing):
                found.public_key(name)
            found.generate(name, SIGNING)  # the name is free
            assert found.certificates(name) == (), cut
        found.close()
    assert frozenset({"key", "bystander"}) in names
    if change in (generate, destroy):
        assert len(names) == 2


def opened(folder, unlocks):
    """Return the store, by whichever of the two unlockers opens it; one of them does after any cut."""
    first, second = unlocks
    try:
        return SoftwareKeyStore(folder, first)
    except UnlockRefused:
        return SoftwareKeyStore(folder, second)


def test_what_a_cut_left_of_a_destroyed_key_goes_with_the_next_one(storage, tmp_path, monkeypatch):
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_bytes(bytes(32))
    unlock = DeviceSecretUnlock(tmp_path / "secret")
    store = SoftwareKeyStore.create(storage.root / "keys", unlock)
    for name in ("first", "second"):
        store.generate(name, SIGNING)
    with storage.recording(monkeypatch):
        store.destroy("first")
    left = 0
    for _ in storage.images(tmp_path / "image"):
        folder = tmp_path / "image" / "keys"
        left += len(list(folder.glob(".*.gone")))
        found = SoftwareKeyStore(folder, unlock)
        found.destroy("second")
        assert list(folder.glob(".*.gone")) == []
        found.close()
    assert left > 0
