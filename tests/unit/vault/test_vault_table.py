"""The vault's table: records like a dictionary, transactions whole or not at all, the journal's torn end."""

import errno
import itertools
import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tidegate.base.errors import Misuse, Rejected, StorageFailed, StorageFull
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost
from tidegate.vault import table as table_module
from tidegate.vault.errors import ManifestAltered, VaultFailed
from tidegate.vault.journal import Change, Tail, Transaction, encode_entry, iter_entries
from tidegate.vault.snapshot import SnapshotReader, encode_snapshot
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

UNLOCKER = PassphraseUnlocker(Secret(b"correct horse"), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
KEY = Secret(bytes(32))
NO_REDO = bytes(32)


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", UNLOCKER) as vault:
        yield vault


@pytest.fixture
def short_journal(monkeypatch):
    """Merge all the time."""
    monkeypatch.setattr(table_module, "MERGE_BYTES", 600)


def journal_of(folder):
    (path,) = (folder / "table").glob("*.journal")
    return path


def refused(code, call):
    with pytest.raises(Rejected) as caught:
        call()
    assert caught.value.code == code


# -- records as a dictionary ------------------------------------------------------------------------------------------

KEYS = st.one_of(st.sampled_from([b"a", b"b", b"ab", b"\0", b"\xff", b"k" * 1024]), st.binary(min_size=1, max_size=3))
VALUES = st.one_of(st.binary(max_size=40), st.just(b"v" * 65_536))


class RecordsMachine(RuleBasedStateMachine):
    """Two tables against two dictionaries, across commits, transactions, merges, items and openings."""

    @initialize(merge_bytes=st.sampled_from([1, 500, 5000, 4 << 20]))
    def create(self, merge_bytes):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(table_module, "MERGE_BYTES", merge_bytes)
        self.base = self.patch_folder()
        self.vault = Vault.create(self.base / "vault", UNLOCKER)
        self.models = {"one": {}, "two": {}}

    def patch_folder(self):
        import tempfile
        from pathlib import Path

        self.temporary = tempfile.TemporaryDirectory()
        return Path(self.temporary.name)

    @rule(table=st.sampled_from(["one", "two"]), key=KEYS, value=VALUES)
    def put(self, table, key, value):
        self.vault.records(table)[key] = value
        self.models[table][key] = value

    @rule(table=st.sampled_from(["one", "two"]), key=KEYS)
    def delete(self, table, key):
        if key in self.models[table]:
            del self.vault.records(table)[key]
            del self.models[table][key]
        else:
            with pytest.raises(KeyError):
                del self.vault.records(table)[key]

    @rule(
        table=st.sampled_from(["one", "two"]),
        changes=st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=40))), max_size=8),
        fails=st.booleans(),
    )
    def transaction(self, table, changes, fails):
        model = dict(self.models[table])
        try:
            with self.vault.records(table).transaction() as change:
                for key, value in changes:
                    if value is not None:
                        change[key] = model[key] = value
                    elif key in model:
                        del change[key]
                        del model[key]
                    assert change.get(key) == model.get(key)
                    assert self.vault.records(table).get(key) == self.models[table].get(key)
                if fails:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            return
        self.models[table] = model

    @rule()
    def merge(self):
        self.vault.table.merge()

    @rule()
    def write_an_item(self):
        self.vault.write("item", os.urandom(30))

    @rule()
    def reopen(self):
        self.vault.close()
        self.vault = Vault.open(self.base / "vault", UNLOCKER)

    @rule()
    @precondition(lambda self: True)
    def lose_the_power(self):
        self.vault._release()
        self.vault = Vault.open(self.base / "vault", UNLOCKER)
        assert self.vault.recovery.torn_bytes == 0

    @invariant()
    def agrees(self):
        if not hasattr(self, "vault"):
            return
        for table, model in self.models.items():
            records = self.vault.records(table)
            assert list(records.items()) == sorted(model.items())
            assert list(records) == sorted(model)
            for key in (b"a", b"b", b"\0"):
                assert (key in records, records.get(key)) == (key in model, model.get(key))
            assert dict(records.items(b"a")) == {key: value for key, value in model.items() if key.startswith(b"a")}

    def teardown(self):
        if hasattr(self, "vault"):
            self.vault.close()
            self.temporary.cleanup()
            self.patch.undo()


RecordsMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
test_records_are_like_a_dictionary = RecordsMachine.TestCase


def test_tables_with_like_names_are_apart(vault):
    for name in ("a", "ab", "b"):
        vault.records(name)["k"] = name.encode()
    vault.records("a")["b"] = b"no record of table ab"
    assert [dict(vault.records(name).items())[b"k"] for name in ("a", "ab", "b")] == [b"a", b"ab", b"b"]
    assert dict(vault.records("ab").items()) == {b"k": b"ab"}
    assert list(vault) == []


@pytest.mark.parametrize("name", ["", "a\0b", "a\nb", "x" * 256, "\ud800"])
def test_table_name_is_refused(vault, name):
    with pytest.raises(Misuse) as caught:
        vault.records(name)
    assert caught.value.code == "vault.entry.name"


@pytest.mark.parametrize("key", ["", b"", b"k" * 1025, "ä" * 513])
def test_key_is_refused(vault, key):
    for call in (lambda: vault.records("a").get(key), lambda: vault.records("a").__setitem__(key, b"")):
        with pytest.raises(Misuse) as caught:
            call()
        assert caught.value.code == "vault.entry.name"


def test_value_that_is_too_large_is_refused(vault):
    records = vault.records("a")
    records["k"] = bytes(65_536)
    with pytest.raises(Misuse) as caught:
        records["k"] = bytes(65_537)
    assert caught.value.code == "vault.entry.size"
    assert records["k"] == bytes(65_536)


def test_transaction_that_is_too_large_is_refused_as_a_whole(vault):
    records = vault.records("a")
    records["0"] = b"old"
    with pytest.raises(Misuse) as caught, records.transaction() as change:
        for number in range(70):
            change[str(number)] = bytes(65_536)
    assert caught.value.code == "vault.transaction.size"
    assert dict(records.items()) == {b"0": b"old"}
    records["1"] = b"life goes on"


def test_deleted_records_are_erased_when_the_vault_is_closed(tmp_path, monkeypatch):
    """By the bytes that were encrypted: neither snapshot nor journal has an entry left that held them."""
    with Vault.create(tmp_path / "vault", UNLOCKER) as vault:
        records = vault.records("a")
        records["k"] = b"secret"
        journal = journal_of(vault.folder)
        sealed = journal.read_bytes()
        del records["k"]
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert sealed[16:] not in left
    with Vault.open(tmp_path / "vault", UNLOCKER) as vault:
        assert vault.table.get(b"ra\0k") is None
        assert vault.table._snapshot.count == 0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(
        st.integers(0, 119), st.tuples(st.integers(0, 119), st.sampled_from(["put", "delete", "merge"])), max_size=15
    )
)
def test_iterating_while_the_table_changes_and_is_merged(vault, changes):
    """What is not touched comes exactly once, in order, whatever happens beside it."""
    records = vault.records(os.urandom(8).hex())
    model = {b"%04d" % number: os.urandom(200) for number in range(120)}
    with records.transaction() as change:
        for key, value in list(model.items())[:60]:
            change[key] = value
    vault.table.merge()  # one half in the snapshot, the other in the journal
    with records.transaction() as change:
        for key, value in list(model.items())[60:]:
            change[key] = value
    touched, seen = set(), []
    for number, pair in enumerate(records.items()):
        seen.append(pair)
        place, what = changes.get(number, (0, ""))
        key = b"%04d" % place
        if what == "put":
            records[key] = b"newer"
        elif what == "delete" and key in records:
            del records[key]
        elif what == "merge":
            vault.table.merge()
        touched |= {key} if what in ("put", "delete") else set()
    keys = [key for key, _ in seen]
    assert keys == sorted(set(keys))
    assert {key: value for key, value in seen if key not in touched} == {
        key: value for key, value in model.items() if key not in touched
    }


def test_iterating_over_items_that_are_written_meanwhile(vault, short_journal):
    for number in range(30):
        vault.write(f"{number:03}", b"old")
    seen = []
    for name in vault:
        seen.append(name)
        vault.write(name, b"new")
    assert seen == [f"{number:03}" for number in range(30)]


def test_merge_makes_the_storage_smaller(vault, short_journal):
    records = vault.records("a")
    for _ in range(50):
        records["k"] = bytes(100)
    files = list((vault.folder / "table").iterdir())
    assert sum(path.stat().st_size for path in files) < 8192 + 3000


def test_failed_merge_leaves_the_table_as_it_was(vault, monkeypatch):
    records = vault.records("a")
    records["k"] = b"v"
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing_pwrite(os.pwrite, errno.ENOSPC, lambda data: True))
        with pytest.raises(StorageFull):
            vault.table.merge()
    assert records["k"] == b"v"
    records["l"] = b"w"
    vault.table.merge()
    assert dict(records.items()) == {b"k": b"v", b"l": b"w"}
    assert len(list((vault.folder / "table").iterdir())) == 1


# -- the torn end -----------------------------------------------------------------------------------------------------


@pytest.fixture
def unclosed(tmp_path):
    """Return the folder of a vault that lost its power behind three transactions, and where the last one begins."""
    vault = Vault.create(tmp_path / "vault", UNLOCKER)
    records = vault.records("a")
    records["1"] = b"one"
    with records.transaction() as change:
        change["1"], change["2"] = b"ONE", b"two"
    begin = journal_of(vault.folder).stat().st_size
    with records.transaction() as change:
        change["3"] = b"three"
        del change["1"]
    vault._release()
    return tmp_path / "vault", begin


OLD, NEW = {b"1": b"ONE", b"2": b"two"}, {b"2": b"two", b"3": b"three"}


def read_all(folder):
    with Vault.open(folder, UNLOCKER) as vault:
        return dict(vault.records("a").items()), vault.recovery.torn_bytes


def test_every_cut_of_the_last_entry(unclosed, tmp_path):
    folder, begin = unclosed
    whole = journal_of(folder).read_bytes()
    for size in range(begin, len(whole) + 1):
        copy = shutil.copytree(folder, tmp_path / str(size))
        os.truncate(journal_of(copy), size)
        found, torn = read_all(copy)
        assert (found, torn) == ((NEW, 0) if size == len(whole) else (OLD, size - begin)), size
        assert read_all(copy) == (found, 0)  # and closed by then: nothing is torn any more


def test_every_damaged_byte_of_the_last_entry(unclosed, tmp_path):
    """Blocks of an append reach the storage in any order: the last entry may have holes. It never counts then."""
    folder, begin = unclosed
    whole = journal_of(folder).read_bytes()
    for at in range(begin, len(whole)):
        copy = shutil.copytree(folder, tmp_path / str(at))
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        journal_of(copy).write_bytes(damaged)
        assert read_all(copy)[0] == OLD, at


def test_last_entry_of_zeros(unclosed):
    """What ext4 shows after a power cut where the size was written and the content was not."""
    folder, begin = unclosed
    path = journal_of(folder)
    path.write_bytes(path.read_bytes()[:begin] + bytes(500))
    assert read_all(folder) == (OLD, 500)


def test_every_beginning_of_the_last_entry_with_zeros_behind(tmp_path):
    """The file's size and its first sector reached the storage, the next sector did not."""
    vault = Vault.create(tmp_path / "vault", UNLOCKER)
    vault.records("a")["1"] = b"one"
    begin = journal_of(vault.folder).stat().st_size
    vault.records("a")["2"] = os.urandom(420)  # so that the length has two bytes that are not zero
    vault._release()
    whole = journal_of(vault.folder).read_bytes()
    stays_shut = []
    for at in [*range(begin, begin + 30), *range(begin + 30, len(whole), 19)]:
        copy = shutil.copytree(vault.folder, tmp_path / str(at))
        journal_of(copy).write_bytes(whole[:at] + bytes(len(whole) - at))
        try:
            assert read_all(copy)[0] == {b"1": b"one"}, at
        except Rejected:
            stays_shut.append(at - begin)
    assert stays_shut == []


def test_change_after_a_torn_end_is_kept(unclosed):
    folder, begin = unclosed
    os.truncate(journal_of(folder), begin + 17)
    with Vault.open(folder, UNLOCKER) as vault:
        vault.records("a")["4"] = b"four"
        vault._release()
    assert read_all(folder)[0] == {**OLD, b"4": b"four"}


def test_every_damaged_byte_of_an_entry_in_the_middle(unclosed, tmp_path):
    folder, begin = unclosed
    whole = journal_of(folder).read_bytes()
    for at in range(4, begin):  # the length of the first one, which hides where the next begins: below
        if 0 <= at - first_size(whole) < 4:
            continue
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        journal_of(folder).write_bytes(damaged)
        refused("vault.journal.altered", lambda: Vault.open(folder, UNLOCKER))


def first_size(raw):
    return 4 + int.from_bytes(raw[:4], "big")


def test_length_of_an_entry_that_is_vouched_for(tmp_path):
    """A length that points behind the end looks like a torn end; what a close vouched for is never taken for one."""
    with Vault.create(tmp_path / "vault", UNLOCKER) as vault:
        vault.records("a")["1"] = b"one"
    vault = Vault.open(tmp_path / "vault", UNLOCKER)
    vault.records("a")["2"] = b"two"
    vault._release()
    path = journal_of(tmp_path / "vault")
    whole = path.read_bytes()
    for length in (b"\0\0\xff\xff", bytes(4), b"\xff\xff\xff\xff"):
        path.write_bytes(length + whole[4:])
        refused("vault.journal.altered", lambda: Vault.open(tmp_path / "vault", UNLOCKER))
    for size in range(first_size(whole)):
        path.write_bytes(whole[:size])
        refused("vault.journal.truncated", lambda: Vault.open(tmp_path / "vault", UNLOCKER))


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=6), data=st.data())
def test_entries_come_back_up_to_any_cut(sizes, data):
    raw, ends, tail = b"", [0], Tail()
    for number, size in enumerate(sizes):
        change = Change(b"k", os.urandom(size), deletes=bool(size % 2))
        transaction = Transaction(generation=number, anchor=0, redo=NO_REDO, changes=(change,) * (size % 3))
        entry = encode_entry(transaction, after=tail, nonce=os.urandom(12), key=KEY)
        raw += entry
        ends.append(len(raw))
        tail = Tail(number=tail.number + 1, tag=entry[-16:], size=len(raw))
    cut = data.draw(st.integers(0, len(raw)))
    upto = data.draw(st.sampled_from([end for end in ends if end <= cut]))
    found = list(iter_entries(memoryview(raw[:cut]), key=KEY, upto=upto))
    assert len(found) == sum(end <= cut for end in ends) - 1
    if cut not in ends:
        refused("vault.journal.altered", lambda: list(iter_entries(memoryview(raw[:cut]), key=KEY, upto=cut)))


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=300), upto=st.integers(0, 300))
def test_journal_parser_raises_only_rejected(raw, upto):
    try:
        assert list(iter_entries(memoryview(raw), key=KEY, upto=min(upto, len(raw)))) == []
    except Rejected as error:
        assert error.code == "vault.journal.altered"


def test_entries_of_another_order_key_or_journal_are_refused():
    def entries(key, count=3):
        tail, found = Tail(), []
        for number in range(count):
            transaction = Transaction(generation=number, anchor=0, redo=NO_REDO, changes=())
            found.append(encode_entry(transaction, after=tail, nonce=os.urandom(12), key=key))
            tail = Tail(number=number + 1, tag=found[-1][-16:], size=tail.size + len(found[-1]))
        return found

    mine, other = entries(KEY), entries(KEY)
    assert len(list(iter_entries(memoryview(b"".join(mine)), key=KEY, upto=0))) == 3
    orders = [order for order in itertools.permutations(mine) if order != tuple(mine)]
    for wrong in (*orders, (mine[0], other[1], mine[2]), (mine[1], mine[2]), entries(Secret(b"k" * 32))):
        raw = memoryview(b"".join(wrong))
        refused("vault.journal.altered", lambda raw=raw: list(iter_entries(raw, key=KEY, upto=len(raw))))


# -- storage that fails -----------------------------------------------------------------------------------------------


def failing_pwrite(real, number, when):
    """Return a pwrite that writes a part of what is to be written, then fails."""

    def pwrite(descriptor, data, offset):
        if when(data):
            real(descriptor, bytes(data[: len(data) // 2]), offset)
            raise OSError(number, os.strerror(number))
        return real(descriptor, data, offset)

    return pwrite


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EIO, StorageFailed)])
def test_failing_write_of_the_journal_changes_nothing(vault, monkeypatch, number, error):
    records = vault.records("a")
    records["k"] = b"old"
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", failing_pwrite(os.pwrite, number, lambda data: True))
            with pytest.raises(error):
                records["k"] = b"new" * 100
        assert records["k"] == b"old"
    records["l"] = b"goes on"
    assert dict(records.items()) == {b"k": b"old", b"l": b"goes on"}
    vault._release()
    assert read_all(vault.folder) == ({b"k": b"old", b"l": b"goes on"}, 0)


def test_failing_write_of_the_journal_leaves_the_item(vault, monkeypatch):
    vault.write("a", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing_pwrite(os.pwrite, errno.ENOSPC, lambda data: len(data) < 300))
        with pytest.raises(StorageFull):
            vault.write("a", b"n" * 1000)
    assert vault.read("a") == b"old"
    vault.verify_folder()
    vault.write("a", b"newer")
    assert vault.read("a") == b"newer"


def test_failing_synchronisation_takes_the_transaction_back(vault, monkeypatch):
    records = vault.records("a")
    records["k"] = b"old"

    def fail(descriptor):
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(StorageFailed):
            records["k"] = b"new"
    assert records["k"] == b"old"
    records["l"] = b"goes on"
    vault._release()
    assert read_all(vault.folder) == ({b"k": b"old", b"l": b"goes on"}, 0)


def test_storage_that_fails_for_good_stops_the_table(vault, monkeypatch):
    """What it holds is not known then: nothing may be appended behind it. Opening finds the old or the new, whole."""
    records = vault.records("a")
    records["k"] = b"old"

    def fail(*arguments):
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        patch.setattr(os, "ftruncate", fail)
        with pytest.raises(StorageFailed):
            records["k"] = b"new"
    with pytest.raises(VaultFailed):
        records["l"] = b"too late"
    with pytest.raises(VaultFailed):
        vault.table.merge()
    vault.close()
    assert read_all(vault.folder)[0] in ({b"k": b"old"}, {b"k": b"new"})


def test_failing_first_manifest_changes_nothing(tmp_path, monkeypatch):
    Vault.create(tmp_path / "vault", UNLOCKER).close()
    with Vault.open(tmp_path / "vault", UNLOCKER) as vault:

        def fail(*arguments, **options):
            raise StorageFull("full")

        with monkeypatch.context() as patch:
            patch.setattr(table_module, "write_file_atomic", fail)
            with pytest.raises(StorageFull):
                vault.records("a")["k"] = b"v"
        assert vault.records("a").get("k") is None
        vault.records("a")["k"] = b"w"
    assert read_all(tmp_path / "vault")[0] == {b"k": b"w"}


# -- snapshots --------------------------------------------------------------------------------------------------------


class Buffer:
    """Content in memory, read like an item."""

    def __init__(self, data):
        self.data = data

    def read_range(self, offset, count):
        return self.data[max(0, offset) : max(0, offset) + count]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    entries=st.dictionaries(st.binary(min_size=1, max_size=40), st.binary(max_size=3000), max_size=40),
    key=st.binary(min_size=1, max_size=2),
)
def test_snapshot_round_trip(entries, key):
    raw = b"".join(encode_snapshot(sorted(entries.items())))
    reader = SnapshotReader(Buffer(raw), len(raw))
    assert reader.count == len(entries)
    assert list(reader.scan()) == sorted(entries.items())
    assert all(reader.get(one) == value for one, value in entries.items())
    assert reader.get(key) == entries.get(key)
    assert list(reader.scan(key)) == [pair for pair in sorted(entries.items()) if pair[0] >= key]


def test_snapshot_reads_a_block_for_a_key():
    raw = b"".join(encode_snapshot((f"{number:06}".encode(), bytes(100)) for number in range(5000)))
    source = Buffer(raw)
    reader = SnapshotReader(source, len(raw))
    read = []
    source.read_range = lambda offset, count: (read.append(count), raw[offset : offset + count])[1]
    assert reader.get(b"002500") == bytes(100)
    assert len(read) == 1
    assert read[0] <= 8192 + 200


@pytest.mark.parametrize("raw", [b"", b"x", bytes(28), bytes(20) + b"TGTABLE1", b"\xff" * 20 + b"TGTABLE2"])
def test_malformed_snapshot_is_refused(raw):
    with pytest.raises(ManifestAltered):
        SnapshotReader(Buffer(raw), len(raw))
