"""The vault in use: round trips, limits, what is on the storage and what is not."""

import errno
import io
import itertools
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Misuse, Rejected, StorageFull, StorageMissing, UnsafePermissions
from tidegate.crypto import cbor
from tidegate.crypto.aead import AeadAlgorithm, Secret
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault.beside import Beside
from tidegate.vault.errors import ItemUnknown, KeyUnknown, RecordMalformed, VaultBusy, VaultClosed, VaultExists
from tidegate.vault.files import BATCH_BYTES
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
        folder = vault.folder
    with Vault.open(folder, unlocker) as vault:
        assert {name: vault.read(name) for name in vault} == model
        assert len(list((folder / "items").iterdir())) == len(model)


def test_stream_that_gives_short_reads(vault):
    class Slow:
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
    assert [item.name for item in vault.list("b")] == ["b"]
    assert vault.list("c") == ()
    assert abs(vault.stat("a").modified_s - time.time()) < 60
    assert ("a" in vault, "c" in vault) == (True, False)


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
        vault.records("visits")[NAME] = MARK
        keys = vault.keyring.keys[1]
        kept = [vault.keyring.root, keys.header, keys.manifest, keys.redo, vault.table._journal_key]
        views = [key.view() for key in kept]
        secrets = [bytes(view) for view in views]
        with vault.open_item(NAME) as reader:
            secrets.append(bytes(reader.file_key.view()))
        with vault.application_key("database") as key:
            secrets.append(bytes(key.view()))
        image = b"".join(path.read_bytes() + path.name.encode() for path in vault.folder.rglob("*") if path.is_file())
    needles = [MARK[start : start + 8] for start in range(0, len(MARK) - 8, 4)]
    needles += [NAME.encode(), b"patients", b"jane", b"visits", *secrets]
    assert [needle for needle in needles if needle in image] == []
    assert not any(any(view) for view in views)


def watch_unlinked(monkeypatch):
    """Return a list that every file's content is put into at the moment when it is removed."""
    seen, unlink = [], Path.unlink

    def look(path, **options):
        if path.is_file():
            seen.append(path.read_bytes())
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", look)
    return seen


@pytest.mark.parametrize("how", ["delete", "replace", "destroy an application key", "abandon", "rewrite the table"])
def test_removed_file_has_lost_its_key(vault, monkeypatch, how):
    vault.write("a", b"secret")
    vault.application_key("database").wipe()
    if how == "abandon":
        stream = vault.open_file("b", "w")
        stream.write(b"x" * 6_000_000)
    before = [path.read_bytes() for path in vault.folder.rglob("*") if path.is_file()]
    seen = watch_unlinked(monkeypatch)
    if how == "delete":
        vault.delete("a")
    elif how == "replace":
        vault.write("a", b"new")
    elif how == "abandon":
        stream.abandon()
    elif how == "rewrite the table":
        vault.table.merge()
    else:
        vault.destroy_application_key("database")
    overwritten = [raw for raw in seen if len(raw) > 8192 or "table" in how or "application" in how]
    assert overwritten
    for raw in overwritten:
        assert not any(raw[:100] == old[:100] or raw[4096:4196] == old[4096:4196] != b"" for old in before)
    vault.verify_folder()


def test_old_content_is_erased_when_it_is_replaced(vault):
    vault.write("a", b"one")
    old = next((vault.folder / "items").iterdir()).name
    vault.write("a", b"two")
    names = [path.name for path in (vault.folder / "items").iterdir()]
    assert len(names) == 1
    assert old not in names


def test_files_are_private(vault):
    vault.write("a", b"1")
    assert {path.stat().st_mode & 0o777 for path in vault.folder.rglob("*") if path.is_file()} == {0o600}
    assert (vault.folder / "items").stat().st_mode & 0o777 == 0o700


def test_one_opener_at_a_time(vault, unlocker):
    with pytest.raises(VaultBusy):
        Vault.open(vault.folder, unlocker, wait_s=0.05)
    vault.close()
    Vault.open(vault.folder, unlocker).close()


def test_closed_vault_does_nothing(vault):
    vault.write("a", b"1")
    vault.close()
    vault.close()
    records = vault.records("t")
    for call in (
        lambda: vault.read("a"),
        lambda: vault.write("a", b""),
        vault.list,
        lambda: vault.delete("a"),
        lambda: vault.open_file("a", "r+"),
        lambda: vault.open_file("a", "w"),
        lambda: "a" in vault,
        lambda: records.get("k"),
        lambda: records.__setitem__("k", b""),
        lambda: list(records),
        lambda: vault.application_key("k"),
        lambda: vault.vault_id,
        lambda: vault.keyring,
        lambda: vault.table,
        vault.verify_folder,
    ):
        with pytest.raises(VaultClosed):
            call()


def test_scan_that_was_begun_ends_with_the_vault(vault):
    for name in "abc":
        vault.write(name, b"")
    names = iter(vault)
    assert next(names) == "a"
    vault.close()
    with pytest.raises(VaultClosed):
        next(names)


def test_vault_is_not_created_over_something(tmp_path, unlocker):
    (tmp_path / "vault").mkdir(mode=0o700)
    (tmp_path / "vault" / "holiday.jpg").touch()
    with pytest.raises(VaultExists):
        Vault.create(tmp_path / "vault", unlocker)
    with pytest.raises(StorageMissing):
        Vault.open(tmp_path / "vault", unlocker)


def test_vault_is_not_created_twice(vault, unlocker):
    with pytest.raises(VaultExists):
        Vault.create(vault.folder, unlocker)


def test_folder_open_to_others_is_refused(tmp_path, unlocker):
    (tmp_path / "vault").mkdir(mode=0o755)
    with pytest.raises(UnsafePermissions):
        Vault.create(tmp_path / "vault", unlocker)


def test_full_storage_leaves_the_old_content(vault, monkeypatch):
    vault.write("a", b"old")
    real = os.pwrite

    def full(descriptor, data, offset):
        real(descriptor, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "full")

    for content in (b"new" * 10_000, bytes(3_000_000)):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(StorageFull):
                vault.write("a", content)
        assert vault.read("a") == b"old"
        vault.verify_folder()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_full_storage_in_the_middle_of_a_stream(vault, monkeypatch, number):
    """Each batch but the last is written beside the ciphers: what failed is told by the next one, or at the end."""
    vault.write("a", b"old")
    real, count = Beside.wait, itertools.count(1)

    def full(beside):
        done = real(beside)
        if done and next(count) == number:
            raise OSError(errno.ENOSPC, "full")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Beside, "wait", full)
        with pytest.raises(StorageFull):
            vault.write("a", bytes(3 * BATCH_BYTES + 1))
    assert vault.read("a") == b"old"
    vault.verify_folder()


def test_full_storage_is_noticed_before_anything_is_written(vault, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        patch.setattr(os, "pwrite", None)
        with pytest.raises(StorageFull):
            vault.write("a", bytes(3_000_000))
    assert list(vault) == []
    vault.verify_folder()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_storage_that_cannot_reserve(vault, monkeypatch, number):
    def refuse(descriptor, offset, size):
        raise OSError(number, "no")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    vault.write("a", bytes(100_000))
    assert vault.read("a") == bytes(100_000)


def test_short_writes_and_reads_of_the_kernel(vault, monkeypatch):
    content = os.urandom(2 * BATCH_BYTES + 300_000)
    write, read, begin_write, begin_read = os.pwrite, os.preadv, Beside.write, Beside.read
    with monkeypatch.context() as patch:
        patch.setattr(Beside, "write", lambda self, fd, data, offset: begin_write(self, fd, data[:700_000], offset))
        patch.setattr(Beside, "read", lambda self, fd, data, offset: begin_read(self, fd, data[:700_000], offset))
        patch.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:5000], offset))
        patch.setattr(os, "preadv", lambda descriptor, pieces, offset: read(descriptor, [pieces[0][:3000]], offset))
        vault.write("a", content)
        vault.records("t")["k"] = bytes(20_000)
        assert vault.read("a") == content
    assert vault.read("a") == content
    assert vault.records("t")["k"] == bytes(20_000)


def test_failing_source_leaves_the_old_content(vault):
    class Broken(io.BytesIO):
        def readinto(self, buffer):
            if self.tell() > 300_000:
                raise RuntimeError("the sensor was unplugged")
            return super().readinto(buffer)

    vault.write("a", b"old")
    with pytest.raises(RuntimeError):
        vault.write_from("a", Broken(bytes(2_000_000)))
    assert vault.read("a") == b"old"
    assert len(list((vault.folder / "items").iterdir())) == 1


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


def test_borrowed_content_is_wiped(vault):
    vault.write("a", MARK)
    with vault.borrow("a") as content:
        assert content == MARK
    assert bytes(content) == bytes(len(MARK))
    with pytest.raises(KeyError), vault.borrow("a") as content:
        raise KeyError
    assert not any(content)


def test_streamed_content_is_wiped(vault):
    content = os.urandom(2_000_000)
    vault.write("a", content)
    with vault.open_item("a") as reader:
        pieces = reader.iter_content()
        first = next(pieces)
        assert first == content[: len(first)]
        pieces.close()
        assert not any(first)
        assert b"".join(bytes(piece) for piece in reader.iter_content()) == content


@pytest.mark.parametrize("size", [0, 1, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, 3 << 19])
@pytest.mark.parametrize("algorithm", AeadAlgorithm)
def test_sizes_around_the_batches(tmp_path, unlocker, size, algorithm):
    content = os.urandom(size)
    with Vault.create(tmp_path / "vault", unlocker, algorithm=algorithm) as vault:
        vault.write_from("a", io.BytesIO(content))
        vault.write("b", content)
        assert vault.read("a") == vault.read("b") == content
        assert vault.read_range("a", size - 3 if size > 3 else 0, 10) == content[-3:]


@pytest.mark.parametrize("padding", ["padme", "512", "100000"])
def test_padding_hides_sizes(tmp_path, unlocker, padding):
    with Vault.create(tmp_path / "vault", unlocker, padding=padding) as vault:
        vault.write("a", bytes(99_001))
        vault.write("b", bytes(99_007))
        vault.write("empty", b"")
        assert [vault.read(name) for name in ("a", "b", "empty")] == [bytes(99_001), bytes(99_007), b""]
        sizes = sorted(path.stat().st_size for path in (vault.folder / "items").iterdir())
    assert sizes[-1] == sizes[-2]
    assert (len(set(sizes)) == 1) == (padding == "100000")


@pytest.mark.parametrize(
    "padding",
    [
        "",
        "0",
        "-1",
        "1.5",
        "padded",
        "9999999999",
        "1073741825",
        "\u0663",
    ],
)
def test_unknown_padding(tmp_path, unlocker, padding):
    with pytest.raises(Misuse) as caught:
        Vault.create(tmp_path / "vault", unlocker, padding=padding)
    assert caught.value.code == "vault.padding.unknown"
    assert not (tmp_path / "vault").exists()


def test_application_keys(vault, unlocker):
    with vault.application_key("database") as key, vault.application_key("disk", size_bytes=64) as other:
        first, second = bytes(key.view()), bytes(other.view())
    assert (len(first), len(second)) == (32, 64)
    vault.close()
    with Vault.open(vault.folder, unlocker) as again:
        with again.application_key("database", create=False) as key:
            assert bytes(key.view()) == first
        again.destroy_application_key("database")
        for call in (
            lambda: again.application_key("database", create=False),
            lambda: again.destroy_application_key("database"),
        ):
            with pytest.raises(KeyUnknown):
                call()
        with again.application_key("database") as key:
            assert bytes(key.view()) != first


def test_threads_share_a_vault(vault):
    """Each thread has an item and a record of its own, and all have one in common."""
    errors = []

    def work(number):
        try:
            for turn in range(15):
                content = bytes([number, turn]) * (1 + 20_000 * (turn % 2))
                vault.write(f"own/{number}", content)
                vault.records("own")[str(number)] = content[:100]
                if vault.read(f"own/{number}") != content or vault.records("own")[str(number)] != content[:100]:
                    errors.append((number, turn))
                vault.records("common")["k"] = content[:100]
                list(vault.iter_items("own/"))
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    vault.verify_folder()


@pytest.mark.parametrize("place", [(0, -1), (10, 0), (40_000, 1), (1 << 50, 1)])
def test_ranges_outside_of_the_content(vault, place):
    vault.write("a", bytes(40_000))
    assert vault.read_range("a", *place) == b""


@pytest.mark.parametrize("offset", [-1, -20_000])
def test_range_before_the_content(vault, offset):
    vault.write("a", bytes(40_000))
    with pytest.raises((Misuse, ValueError)):
        vault.read_range("a", offset, 5)


def test_vault_of_the_older_format_is_refused(vault, unlocker):
    folder = vault.folder
    vault.close()
    (folder / "vault.cbor").write_bytes(cbor.encode({"format": "tidegate.vault.v1", "id": bytes(16), "slots": []}))
    with pytest.raises(Rejected) as caught:
        Vault.open(folder, unlocker)
    assert caught.value.code == "vault.record.unsupported"


def test_attempt_to_create_that_a_power_cut_ended_can_be_repeated(tmp_path, unlocker):
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        vault.write("a", b"1")
    (tmp_path / "vault" / "vault.cbor").unlink()  # it is written last
    for path in (tmp_path / "vault" / "items").iterdir():
        path.unlink()
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        assert list(vault) == []
        vault.write("a", b"2")
