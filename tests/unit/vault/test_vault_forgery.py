"""Who can write the storage and knows no secret; who knew one once; counters that fail; threads in each other's way."""

import contextlib
import io
import os
import shutil
import threading
from dataclasses import replace

import pytest

from tidegate.base.durable import write_file_atomic
from tidegate.base.errors import Fault, Misuse, Rejected, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.crypto.memory import ProtectedSecret
from tidegate.keys.software import Argon2Cost
from tidegate.vault import table as table_module
from tidegate.vault.format import VaultKeys
from tidegate.vault.keyring import make_slot
from tidegate.vault.padding import Padding
from tidegate.vault.record import encode_record, parse_record, wrap_identity, wrap_root, wrap_vault_key
from tidegate.vault.rotation import rekey
from tidegate.vault.store import Vault
from tidegate.vault.table import Table, TableSettings
from tidegate.vault.unlockers import PassphraseUnlocker

FAST = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


class Counting(PassphraseUnlocker):
    """A passphrase with a counter in this process, and what may go wrong with it."""

    counters: dict = {}  # noqa: RUF012  # of all vaults, as a TPM's
    fails = ()  # "before" or "after" the step, one for each call

    def __init__(self, text=b"owner"):
        super().__init__(Secret(text), cost=FAST)

    def anchor(self, vault_id):
        self.vault_id = vault_id
        return self

    def read(self):
        return self.counters.get(self.vault_id, 0)

    def advance(self):
        how = Counting.fails[0] if Counting.fails else None
        Counting.fails = Counting.fails[1:]
        if how == "before":
            raise KeyboardInterrupt
        self.counters[self.vault_id] = self.read() + 1
        if how == "after":
            raise OSError(5, "the answer was lost")
        return self.read()


@pytest.fixture(autouse=True)
def no_failures():
    yield
    Counting.fails = ()


def by_passphrase(text=b"owner"):
    return PassphraseUnlocker(Secret(text), cost=FAST)


@pytest.fixture
def vault(tmp_path):
    with Vault.create(tmp_path / "vault", Counting()) as vault:
        vault.write("a", b"old")
        yield vault


def code_of(call):
    with pytest.raises(TidegateError) as caught:
        call()
    return caught.value.code


# -- forgery ----------------------------------------------------------------------------------------------------------


def forge(folder, old, root, identity, *more):
    """Put a vault of one's own in the place of this one, with its slots as they are."""
    vault_key = ProtectedSecret.random(32)
    mine = replace(old, version=9, epoch=1, anchor=0, vault_keys={}, padding=Padding("none"))
    mine = wrap_identity(mine, root, identity, nonce=os.urandom(12))
    mine = wrap_root(replace(mine, slots=(*old.slots, *(make_slot(mine, one, label="") for one in more))), root)
    mine = replace(mine, vault_keys={1: wrap_vault_key(mine, root, vault_key, epoch=1, nonce=os.urandom(12))})
    for place in ("items", "table", "new"):
        for path in (folder / place).iterdir():
            path.unlink()
    keys = VaultKeys(vault_key, mine.vault_id)
    settings = TableSettings(folder=folder, vault_id=mine.vault_id, algorithm=mine.algorithm)
    Table.create(settings, keys, epoch=1, record_version=1)
    write_file_atomic(folder / "vault.cbor", encode_record(mine, identity), mode=0o600)


@pytest.mark.parametrize("counts", [False, True])
def test_a_vault_of_the_attackers_own_does_not_open(tmp_path, counts):
    folder, unlocker = tmp_path / "vault", Counting() if counts else by_passphrase()
    Vault.create(folder, unlocker).close()
    old, _ = parse_record((folder / "vault.cbor").read_bytes())
    forge(folder, old, ProtectedSecret.random(32), ProtectedSecret.random(32), by_passphrase(b"attacker"))
    assert code_of(lambda: Vault.open(folder, unlocker)) == "vault.record.altered"


def test_who_opened_it_once_can_forge_is_a_known_limitation(vault):
    """docs/formats/vault.md, "Limits": the identity key opens with any root key of the past."""
    root, identity = (ProtectedSecret(secret.view()) for secret in (vault.keyring.root, vault.keyring.identity))
    old = vault.keyring.record
    vault.close()
    forge(vault.folder, old, root, identity)
    Vault.open(vault.folder, by_passphrase()).close()


def test_an_unlocker_removed_while_a_rekeying_waits_gets_nothing_new(tmp_path):
    with Vault.create(tmp_path / "vault", by_passphrase()) as vault:
        vault.write("a", b"old")
        slot = vault.add_unlocker(by_passphrase(b"leaver"))
        with pytest.raises(RuntimeError):
            rekey(vault, report=lambda _: (_ for _ in ()).throw(RuntimeError))
        shutil.copy(vault.folder / "vault.cbor", tmp_path / "kept")
        vault.remove_unlocker(slot.number)
        rekey(vault)
        vault.write("b", b"new")
    shutil.copy(tmp_path / "kept", vault.folder / "vault.cbor")
    assert code_of(lambda: Vault.open(vault.folder, by_passphrase(b"leaver"))) == "vault.manifest.altered"


@pytest.mark.parametrize("finished", [False, True])
def test_a_removal_is_counted(vault, tmp_path, finished):
    slot = vault.add_unlocker(by_passphrase(b"leaver"))
    vault.close()
    shutil.copytree(vault.folder, tmp_path / "copy")
    with Vault.open(vault.folder, Counting()) as again:
        again.remove_unlocker(slot.number)
        if finished:
            rekey(again)
    shutil.rmtree(vault.folder)
    (tmp_path / "copy").rename(vault.folder)
    assert code_of(lambda: Vault.open(vault.folder, Counting())) == "vault.manifest.rollback"


def test_changes_by_another_unlocker_are_counted_when_the_counter_is_there_again(vault, tmp_path):
    vault.add_unlocker(by_passphrase(b"other"))
    vault.close()
    shutil.copytree(vault.folder, tmp_path / "copy")
    with Vault.open(vault.folder, by_passphrase(b"other")) as other:
        other.write("a", b"new")
    Vault.open(vault.folder, Counting()).close()
    shutil.rmtree(vault.folder)
    (tmp_path / "copy").rename(vault.folder)
    assert code_of(lambda: Vault.open(vault.folder, Counting())) == "vault.manifest.rollback"


@pytest.mark.parametrize("place", ["items", "new", "table"])
def test_a_link_in_the_place_of_a_folder_costs_nobody_a_file(vault, tmp_path, place):
    vault.close()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "precious").write_bytes(b"precious")
    shutil.rmtree(vault.folder / place)
    (vault.folder / place).symlink_to(foreign)
    assert code_of(lambda: Vault.open(vault.folder, Counting())) == "base.permissions.unsafe"
    assert (foreign / "precious").read_bytes() == b"precious"


def test_an_older_vault_does_not_cost_the_newer_one_its_table(vault, tmp_path):
    shutil.copy(vault.folder / "manifest", tmp_path / "manifest")
    vault.table.merge()
    vault.close()
    shutil.copy(vault.folder / "manifest", tmp_path / "newest")
    shutil.copy(tmp_path / "manifest", vault.folder / "manifest")
    with pytest.raises(Rejected):
        Vault.open(vault.folder, Counting())
    shutil.copy(tmp_path / "newest", vault.folder / "manifest")
    with Vault.open(vault.folder, Counting()) as again:
        assert again.read("a") == b"old"


# -- keys of yesterday ------------------------------------------------------------------------------------------------


def test_what_was_begun_before_a_rekeying_ends_under_the_new_keys(vault):
    vault.write("edited", b"x" * 100)
    writing = vault.open_file("written", "w")
    writing.write(b"new content")
    rekey(vault)
    writing.close()
    assert vault.read("written") == b"new content"
    editing = vault.open_file("edited", "r+")
    editing.write(b"begun")
    with pytest.raises(Fault) as caught:
        rekey(vault)
    assert caught.value.code == "vault.item.busy"
    editing.close()
    rekey(vault)
    assert vault.read("edited") == b"begun" + b"x" * 95
    vault.close()
    with Vault.open(vault.folder, Counting()) as again:
        assert [again.read(name) for name in again] == [b"old", b"begun" + b"x" * 95, b"new content"]


def test_nothing_is_written_under_wiped_keys(vault):
    writing, reading = vault.open_file("b", "w"), vault.open_file("a", "r")
    writing.write(b"secret")
    vault.close()
    assert code_of(writing.close) == "vault.folder.closed"
    with pytest.raises(Misuse):
        reading.read()
    assert list((vault.folder / "new").iterdir()) == []
    secret = ProtectedSecret(b"k" * 32)
    secret.wipe()
    assert code_of(secret.view) == "crypto.secret.wiped"


# -- a counter that fails ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("change", ["write", "edit", "delete", "record"])
def test_a_change_that_counts_is_not_taken_back(vault, how, change):
    vault.write("b", b"x")
    Counting.fails = (how,)
    with pytest.raises((KeyboardInterrupt, OSError)):
        if change == "write":
            vault.write("a", b"new")
        elif change == "delete":
            vault.delete("a")
        elif change == "record":
            vault.records("t")["k"] = b"v"
        else:
            with vault.open_file("a", "r+") as item:
                item.write(b"new")
    for _ in range(2):
        assert vault.records("t").get("k") == (b"v" if change == "record" else None)
        assert ("a" in vault) is (change != "delete")
        if change in ("write", "edit"):
            assert vault.read("a") == b"new"
        vault.write("b", b"goes on")
        vault.verify_folder()
        vault.close()
        vault = Vault.open(vault.folder, Counting())
    vault.close()


def test_lost_answers_do_not_count_twice(vault):
    for fails in (("after",), ("after", "after"), ("after", "before")):
        Counting.fails = fails
        for content in (b"1", b"2", b"3"):
            with contextlib.suppress(OSError, KeyboardInterrupt):
                vault.write("a", content)
        with pytest.raises(Misuse):
            vault.table_commit((table_module.Change(b"rx\0k", b"x" * (5 << 20)),))  # too large: nothing counts
        vault.close()
        vault = Vault.open(vault.folder, Counting())
        assert vault.read("a") in (b"2", b"3")
    vault.close()


# -- threads and limits -----------------------------------------------------------------------------------------------


def test_asking_whether_an_item_is_there_disturbs_nobody(vault, monkeypatch):
    monkeypatch.setattr(table_module, "MERGE_BYTES", 20_000)
    records = vault.records("t")
    with records.transaction() as change:
        for number in range(2000):
            change[f"{number:04}"] = b"v" * 20
    errors, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            if "a" not in vault or "never" in vault:
                errors.append("wrong answer")

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(400):
            records[f"{number:04}"] = b"w" * 20
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []
    assert sum(1 for _ in records) == 2000


def test_two_writers_of_a_new_name(vault):
    first = vault.open_file("new", "w")
    assert code_of(lambda: vault.open_file("new", "w")) == "vault.item.busy"
    first.abandon()
    vault.write("new", b"now")
    assert vault.read("new") == b"now"


def test_the_journal_is_merged_before_it_is_too_long_to_open(vault, monkeypatch):
    monkeypatch.setattr(table_module, "MERGE_BYTES", 1000)
    monkeypatch.setattr(table_module, "MAX_MERGE_BYTES", 50_000)
    monkeypatch.setattr(table_module, "MAX_JOURNAL_BYTES", 120_000)
    records = vault.records("t")
    for number in range(20):
        records[f"large {number}"] = b"x" * 20_000  # a snapshot of 400 kB: half of it is more than the limit
    for number in range(200):
        records["same"] = bytes([number]) * 1000
    vault.close()
    with Vault.open(vault.folder, Counting()) as again:
        assert again.records("t")["same"] == bytes([199]) * 1000


def test_a_stream_that_has_nothing_yet_is_no_end(vault):
    class NotReady(io.RawIOBase):
        def readinto(self, buffer):
            return None

    assert code_of(lambda: vault.write_from("a", NotReady())) == "vault.stream.not-ready"
    assert vault.read("a") == b"old"


def test_records_deleted_before_a_crash_are_erased_at_the_next_close(vault):
    vault.records("t")["k"] = b"v"
    vault.table.merge()
    del vault.records("t")["k"]
    number = vault.table.number
    vault._release()
    with Vault.open(vault.folder, Counting()):
        pass
    with Vault.open(vault.folder, Counting()) as again:
        assert again.table.number == number + 1
