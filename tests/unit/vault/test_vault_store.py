"""The vault in use: round trips, limits, what is on the storage and what is not."""

import errno
import io
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.base.errors import StorageFull, StorageMissing, UnsafePermissions
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault.errors import ItemUnknown, RecordMalformed, VaultBusy, VaultClosed, VaultExists
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

FAST = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
MARK = b"4111 1111 1111 1111 / Jane Roe / HIV negative"
NAME = "patients/jane-roe-1970"


@pytest.fixture
def unlocker():
    return PassphraseUnlocker(Secret(b"correct horse battery staple"), cost=FAST)


@pytest.fixture
def vault(tmp_path, unlocker):
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        yield vault


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.one_of(st.integers(0, 200), st.integers(16380, 16390), st.integers(0, 600_000)), data=st.data())
def test_round_trip_and_ranges(vault, size, data):
    content = os.urandom(size)
    vault.write("a", content)
    assert vault.read("a") == content
    assert vault.stat("a").size_bytes == size
    offset, count = data.draw(st.integers(0, size + 10)), data.draw(st.integers(0, size + 10))
    assert vault.read_range("a", offset, count) == content[offset : offset + count]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), st.binary(max_size=50))), max_size=12))
def test_behaves_like_a_dictionary(tmp_path, unlocker, steps):
    model = {}
    with Vault.create(tmp_path / os.urandom(8).hex(), unlocker) as vault:
        for name, content in steps:
            if content is None and name in model:
                del model[name]
                vault.delete(name)
            elif content is not None:
                model[name] = content
                vault.write(name, content)
        folder = vault._folder
    with Vault.open(folder, unlocker) as vault:
        assert {name: vault.read(name) for name in vault} == model
        assert len(list((folder / "items").iterdir())) == len(model)


def test_stream_that_gives_short_reads(vault):
    class Slow(io.RawIOBase):
        def __init__(self):
            self.rest = b"x" * 100_000

        def read(self, count=-1):
            piece, self.rest = self.rest[:777], self.rest[777:]
            return piece

    vault.write_from("a", io.BufferedReader(_Raw(b"y" * 100_000)))
    assert vault.read("a") == b"y" * 100_000
    vault.write_from("b", Slow())
    assert vault.read("b") == b"x" * 100_000


class _Raw(io.RawIOBase):
    def __init__(self, data):
        self._data = data

    def readable(self):
        return True

    def readinto(self, buffer):
        count = min(len(buffer), 333, len(self._data))
        buffer[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


def test_list_and_stat(vault):
    vault.write("b", b"12")
    vault.write("a", b"1")
    vault.write("b", b"123")
    assert [(item.name, item.size_bytes, item.generation) for item in vault.list()] == [("a", 1, 1), ("b", 3, 2)]


@pytest.mark.parametrize("call", ["read", "delete", "stat", "verify"])
def test_unknown_item(vault, call):
    with pytest.raises(ItemUnknown):
        getattr(vault, call)("nothing")


def test_nothing_readable_is_on_the_storage(tmp_path):
    keys_folder = tmp_path / "keys"
    keys_folder.mkdir(mode=0o700)
    secret = keys_folder / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(os.urandom(32))
    keys = SoftwareKeyStore.create(keys_folder / "store", DeviceSecretUnlock(secret))
    keys.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    with Vault.create(tmp_path / "vault", KeyStoreUnlocker(keys, "vault")) as vault:
        vault.write(NAME, MARK * 1000)
        vault.write(NAME, MARK * 3)
        kept = [getattr(vault._keys, name) for name in ("wrapping", "header", "manifest", "name")]
        secrets = [bytes(key.view()) for key in kept]
        with vault.open_item(NAME) as reader:
            secrets.append(bytes(reader._key.view()))
        image = b"".join(path.read_bytes() + path.name.encode() for path in vault._folder.rglob("*") if path.is_file())
    needles = [MARK[start : start + 8] for start in range(0, len(MARK) - 8, 4)]
    needles += [NAME.encode(), b"patients", b"jane", *secrets]
    assert [needle for needle in needles if needle in image] == []
    assert all(bytes(key.view()) == bytes(32) for key in kept)


def test_delete_destroys_the_key(vault, monkeypatch):
    vault.write("a", b"secret")
    path = next((vault._folder / "items").iterdir())
    before, seen = path.read_bytes(), []
    unlink = os.unlink

    def look(target, **options):
        if os.fspath(target) == str(path):
            seen.append(path.read_bytes())
        unlink(target, **options)

    monkeypatch.setattr(os, "unlink", look)
    vault.delete("a")
    assert not path.exists()
    overwritten = seen[0]
    assert len(overwritten) == len(before)
    assert overwritten[:4096] != before[:4096]
    assert overwritten[4096:8192] != before[4096:8192]


def test_old_content_is_erased_when_it_is_replaced(vault):
    vault.write("a", b"one")
    old = next((vault._folder / "items").iterdir()).name
    vault.write("a", b"two")
    names = [path.name for path in (vault._folder / "items").iterdir()]
    assert len(names) == 1
    assert old not in names


def test_files_are_private(vault):
    vault.write("a", b"1")
    assert {path.stat().st_mode & 0o777 for path in vault._folder.rglob("*") if path.is_file()} == {0o600}
    assert (vault._folder / "items").stat().st_mode & 0o777 == 0o700


def test_one_opener_at_a_time(vault, unlocker):
    with pytest.raises(VaultBusy):
        Vault.open(vault._folder, unlocker, wait_s=0.05)
    vault.close()
    Vault.open(vault._folder, unlocker).close()


def test_closed_vault_does_nothing(vault):
    vault.write("a", b"1")
    vault.close()
    vault.close()
    for call in (lambda: vault.read("a"), lambda: vault.write("a", b""), vault.list, lambda: vault.delete("a")):
        with pytest.raises(VaultClosed):
            call()


def test_vault_is_not_created_over_something(tmp_path, unlocker):
    (tmp_path / "vault").mkdir(mode=0o700)
    (tmp_path / "vault" / "holiday.jpg").touch()
    with pytest.raises(VaultExists):
        Vault.create(tmp_path / "vault", unlocker)
    with pytest.raises(StorageMissing):
        Vault.open(tmp_path / "vault", unlocker)


def test_vault_is_not_created_twice(vault, unlocker):
    with pytest.raises(VaultExists):
        Vault.create(vault._folder, unlocker)


def test_folder_open_to_others_is_refused(tmp_path, unlocker):
    (tmp_path / "vault").mkdir(mode=0o755)
    with pytest.raises(UnsafePermissions):
        Vault.create(tmp_path / "vault", unlocker)


def test_full_storage_leaves_the_old_content(vault, monkeypatch):
    vault.write("a", b"old")

    def full(descriptor, pieces):
        os.write(descriptor, pieces[0])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", full)
        with pytest.raises(StorageFull):
            vault.write("a", b"new" * 10_000)
    assert vault.read("a") == b"old"
    assert len(list((vault._folder / "items").iterdir())) == 1


def test_short_writes_of_the_kernel(vault, monkeypatch):
    content = os.urandom(300_000)
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", lambda descriptor, pieces: os.write(descriptor, pieces[0][:5000]))
        vault.write("a", content)
    assert vault.read("a") == content


def test_failing_source_leaves_the_old_content(vault):
    class Broken(io.BytesIO):
        def read(self, count=-1):
            if self.tell() > 300_000:
                raise RuntimeError("the sensor was unplugged")
            return super().read(count)

    vault.write("a", b"old")
    with pytest.raises(RuntimeError):
        vault.write_from("a", Broken(bytes(2_000_000)))
    assert vault.read("a") == b"old"
    assert len(list((vault._folder / "items").iterdir())) == 1


@pytest.mark.parametrize(
    "change", [{"memory": 1 << 40}, {"iterations": 10_000}, {"lanes": 0}, {"salt": b""}, {"more": 1}], ids=str
)
def test_costs_out_of_bounds_are_refused_before_they_are_paid(unlocker, change):
    slot = unlocker.wrap(Secret(bytes(32)), b"context")
    with pytest.raises(RecordMalformed):
        unlocker.unwrap({**slot, **change}, b"context")


def test_passphrase_slot_is_bound_to_its_vault(unlocker):
    slot = unlocker.wrap(Secret(b"k" * 32), b"context")
    assert bytes(unlocker.unwrap(slot, b"context").view()) == b"k" * 32
    for changed, context in (
        (slot, b"other"),
        ({**slot, "iterations": 2}, b"context"),
        ({**slot, "sealed": b""}, b"context"),
    ):
        with pytest.raises(Exception, match="does not open"):
            unlocker.unwrap(changed, context)
