"""The power is cut after every change that the vault makes to its storage, in four ways; each time every item, record
and unlocker is old or new, whole, what returned is there, nothing is left over, and the vault goes on.
"""

import copy
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tidegate.base.errors import StorageMissing, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault import beside
from tidegate.vault import editor as editor_module
from tidegate.vault import table as table_module
from tidegate.vault.rotation import is_pending, rekey
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

OLD, NEW, OTHER = b"old content " * 2000, b"new content " * 5000, b"untouched"
WAYS = ("written", "synced", "named", "content")
CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)  # what a passphrase costs is not what is tried here


@dataclass
class Model:
    """What the vault has to hold: the same steps are done to it and to the vault."""

    items: dict[str, bytes] = field(default_factory=dict)
    records: dict[bytes, bytes] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    unlockers: tuple[str, ...] = ("",)


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


@pytest.fixture
def image():
    """Where the storage is rebuilt after a cut: in memory, since it is rebuilt a thousand times."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder) / "image"


def report(text):
    print(text)  # noqa: T201  # how much was tried: pytest shows it with -s


def passphrase():
    return PassphraseUnlocker(Secret(b"correct horse"), cost=CHEAP)


# -- what is done: each step changes the vault and the model, and counts at once ---------------------------------------


def put(vault, model):
    vault.write("item", NEW)
    model.items["item"] = NEW


def put_from_stream(vault, model):
    with vault.open_file("item", "w") as target:
        for start in range(0, len(NEW), 7000):
            target.write(NEW[start : start + 7000])
    model.items["item"] = NEW


def put_padded(vault, model):
    vault.write("item", OLD)
    model.items["item"] = OLD


def delete(vault, model):
    vault.delete("item")
    del model.items["item"]


def edit(vault, model):
    """Two distant chunks and one over a boundary, with one ``close``."""
    content = bytearray(model.items["item"])
    with vault.open_file("item", "r+") as target:
        for offset in (100, 16_380, 20_000):
            target.seek(offset)
            target.write(b"EDITED!!")
            content[offset : offset + 8] = b"EDITED!!"
    model.items["item"] = bytes(content)


def edit_twice(vault, model):
    """The same chunk under the second sequence: the redo file of the first has to be gone."""
    edit(vault, model)


def grow(vault, model):
    with vault.open_file("item", "r+") as target:
        target.seek(10_000)
        target.write(NEW)
    model.items["item"] = model.items["item"][:10_000] + NEW


def grow_with_gap(vault, model):
    with vault.open_file("item", "r+") as target:
        target.truncate(90_000)
        target.seek(80_000)
        target.write(b"behind a gap")
    content = model.items["item"].ljust(90_000, b"\0")
    model.items["item"] = content[:80_000] + b"behind a gap" + content[80_012:]


def shrink(vault, model):
    with vault.open_file("item", "r+") as target:
        target.truncate(17_000)
        target.write(b"SHORT")
    model.items["item"] = b"SHORT" + model.items["item"][5:17_000]


def empty(vault, model):
    with vault.open_file("item", "r+") as target:
        target.truncate(0)
    model.items["item"] = b""


def append(vault, model):
    with vault.open_file("item", "a") as target:
        target.write(b"appended " * 4000)
    model.items["item"] += b"appended " * 4000


def record_put(vault, model):
    vault.records("sessions")["17"] = b"new"
    model.records[b"17"] = b"new"


def record_delete(vault, model):
    del vault.records("sessions")["first"]
    del model.records[b"first"]


def transaction(vault, model):
    with vault.records("sessions").transaction() as change:
        for number in range(20):
            change[f"many-{number:02}"] = b"together"
        del change["second"]
    model.records |= {b"many-%02d" % number: b"together" for number in range(20)}
    del model.records[b"second"]


def merge(vault, model):
    vault.table.merge()


def key_create(vault, model):
    with vault.application_key("database") as key:
        model.keys["database"] = bytes(key.view())


def key_destroy(vault, model):
    vault.destroy_application_key("old key")
    del model.keys["old key"]


def unlocker_add(vault, model):
    vault.add_unlocker(passphrase(), label="spare")
    model.unlockers = ("", "spare")


def unlocker_remove(vault, model):
    vault.remove_unlocker(2)
    model.unlockers = ("",)


def rekey_headers(vault, model):
    if isinstance(vault, Vault):
        rekey(vault)


def rekey_contents(vault, model):
    if isinstance(vault, Vault):
        rekey(vault, contents=True)


def close(vault, model):
    vault.close()


OPERATIONS = {
    "put": (put,),
    "put-stream": (put_from_stream,),
    "overwrite": (put_padded, put),
    "delete": (put_padded, delete),
    "delete-and-put": (put_padded, delete, put),
    "edit": (put, edit),
    "edit-twice": (put, edit, edit_twice),
    "edit-then-overwrite": (put_padded, edit, put),
    "edit-then-delete": (put_padded, edit, delete),
    "grow": (put_padded, grow),
    "grow-with-gap": (put_padded, grow_with_gap),
    "shrink": (put_padded, shrink),
    "empty": (put_padded, empty),
    "append": (put_padded, append),
    "append-new": (append,),
    "records": (record_put, record_delete, transaction),
    "merge": (record_put, merge, record_delete, merge),
    "put-then-merge": (put, merge),
    "delete-then-merge": (put_padded, delete, merge),
    "edit-then-merge": (put_padded, edit, merge),
    "keys": (key_create, key_destroy),
    "unlocker": (unlocker_add, unlocker_remove),
    "close": (put, record_delete, close),
}
BEFORE = {"append-new": ("item", b"")}  # the item that the file object makes first is a change of its own


def prepare(vault, model, before=None):
    """Fill a vault with what the steps change, and with what they must leave alone."""
    model.items = {"other": OTHER, "folder/two chunks": OLD}
    if before is not None:
        model.items[before[0]] = before[1]
    for name, content in model.items.items():
        vault.write(name, content)
    model.records = {b"first": b"1", b"second": b"2"}
    for key, value in model.records.items():
        vault.records("sessions")[key] = value
    with vault.application_key("old key") as key:
        model.keys = {"old key": bytes(key.view())}


def look(vault):
    """Return what the vault holds, every byte of it authenticated."""
    found = Model(
        items={item.name: read_or_code(vault, item.name) for item in vault.iter_items()},
        records=dict(vault.records("sessions").items()),
        unlockers=tuple(slot.label for slot in vault.keyring.record.slots),
    )
    for name in ("old key", "database"):
        try:
            with vault.application_key(name, create=False) as key:
                found.keys[name] = bytes(key.view())
        except TidegateError as error:
            assert error.code == "vault.key.unknown"
    return found


def short(model):
    """Say of a model what fits on a line."""
    items = {name: content if isinstance(content, str) else len(content) for name, content in model.items.items()}
    return f"{items}, {sorted(model.records)}, {sorted(model.keys)}, {model.unlockers}"


def read_or_code(vault, name):
    try:
        return vault.read(name)
    except TidegateError as error:
        return error.code


def require_tidy(folder, vault):
    """Nothing but what the vault lists is in its folder; each item's file is good to the last byte."""
    vault.verify_folder()
    for name in list(vault):
        vault.verify(name)
    assert len(list((folder / "items").iterdir())) == len(list(vault))
    assert list((folder / "new").iterdir()) == []
    assert not (folder / "redo").exists()
    assert {path.suffix for path in (folder / "table").iterdir()} <= {".snapshot", ".journal"}
    assert len(list((folder / "table").iterdir())) <= 2


def go_on(folder, vault, unlocker):
    """The vault takes changes of every sort, and they are there when it is opened again."""
    vault.write("item", b"life goes on")
    with vault.open_file("other", "r+") as target:
        target.write(b"UNTOUCHED")
    vault.records("sessions")["after"] = b"1"
    vault.close()
    with Vault.open(folder, unlocker) as again:
        assert again.recovery.files == again.recovery.torn_bytes == 0
        assert again.read("item") == b"life goes on"
        assert again.read("other") == b"UNTOUCHED"
        assert again.records("sessions")["after"] == b"1"
        require_tidy(folder, again)


def examine(folder, unlocker, states, cut):
    """Open what a cut left and check all of it; ``states`` are what it may hold."""
    try:
        vault = Vault.open(folder, unlocker)
    except TidegateError as error:
        raise AssertionError(f"after the cut {cut} the vault does not open: {error.code}") from error
    try:
        found = look(vault)
        assert found in states, f"{cut}: {short(found)}"
        require_tidy(folder, vault)
        go_on(folder, vault, unlocker)
    finally:
        vault.close()
    return found


def record(storage, monkeypatch, make_unlocker, steps, before=None, **options):
    """Do the steps, recorded; return what the vault has to hold before the first and behind each."""
    unlocker = make_unlocker(storage.root, create=True)
    model = Model()
    vault = Vault.create(storage.root / "vault", unlocker, **options)
    try:
        prepare(vault, model, before)
        states = [copy.deepcopy(model)]
        with storage.recording(monkeypatch):
            for step in steps:
                step(vault, model)
                storage.mark()
                states.append(copy.deepcopy(model))
    finally:
        vault.close()
    return states


def cut_everywhere(storage, image, make_unlocker, states, ways=WAYS):
    """Examine every cut, each state that has to be between what returned and what comes next; return how many."""
    cuts = 0
    for cut in storage.images(image, ways=ways):
        examine(image / "vault", make_unlocker(image), states[storage.reached : storage.reached + 2], cut)
        cuts += 1
    return cuts


@pytest.mark.parametrize("operation", OPERATIONS)
def test_wholly_old_or_wholly_new(storage, image, monkeypatch, make_unlocker, operation):
    states = record(storage, monkeypatch, make_unlocker, OPERATIONS[operation], BEFORE.get(operation))
    cuts, seen = 0, []
    for cut in storage.images(image, ways=WAYS):
        allowed = states[storage.reached : storage.reached + 2]
        seen.append(examine(image / "vault", make_unlocker(image), allowed, cut))
        cuts += 1
    report(f"{operation}: {cuts} cuts")
    assert cuts > 20
    assert seen[0] == states[0]
    assert seen[-1] == states[-1]
    assert all(state in seen for state in states)


def test_every_change_is_merged_at_once(storage, image, monkeypatch, make_unlocker):
    """With a merge due after each transaction its cuts come between all others."""
    monkeypatch.setattr(table_module, "MERGE_BYTES", 1)
    states = record(storage, monkeypatch, make_unlocker, (put, edit, record_put, delete))
    cuts = cut_everywhere(storage, image, make_unlocker, states, ("synced", "named"))
    report(f"merged at once: {cuts} cuts")
    assert cuts > 100


@pytest.mark.parametrize("padding", ["padme", "65536"])
def test_changes_in_place_of_padded_items(storage, image, monkeypatch, make_unlocker, padding):
    """Chunks of padding come and go with the length."""
    steps = (put_padded, edit, grow, shrink, empty, append)
    states = record(storage, monkeypatch, make_unlocker, steps, padding=padding)
    cuts = cut_everywhere(storage, image, make_unlocker, states, ("written", "synced"))
    report(f"padding {padding}: {cuts} cuts")
    assert cuts > 100


def test_change_in_place_that_writes_the_item_anew(storage, image, monkeypatch, make_unlocker):
    """Where a header has no room for another extent."""
    monkeypatch.setattr(editor_module, "MAX_EXTENTS", 1)
    states = record(storage, monkeypatch, make_unlocker, (put, edit, edit_twice, append))
    cuts = cut_everywhere(storage, image, make_unlocker, states)
    report(f"written anew: {cuts} cuts")
    assert cuts > 100


def test_long_change_in_place_is_a_row_of_whole_steps(storage, image, monkeypatch, make_unlocker):
    """More than an edit keeps in memory is flushed on the way: a prefix of the steps counts, and never part of one."""
    monkeypatch.setattr(editor_module, "MAX_DIRTY_CHUNKS", 2)
    chunk, count = 16_384, 8

    def rewrite(vault, model):
        with vault.open_file("long", "r+") as target:
            for number in range(count):
                target.write(bytes([number + 1]) * chunk)
        model.items["long"] = b"".join(bytes([number + 1]) * chunk for number in range(count))

    record(storage, monkeypatch, make_unlocker, (rewrite,), ("long", bytes(chunk * count)))
    seen = set()
    for cut in storage.images(image, ways=WAYS):
        with Vault.open(image / "vault", make_unlocker(image)) as vault:
            content = vault.read("long")
            require_tidy(image / "vault", vault)
        changed = len(content) - len(content.replace(b"\0", b""))
        found = len(content.rstrip(b"\0")) // chunk
        assert changed == len(content) - found * chunk, cut
        expected = b"".join(bytes([number + 1]) * chunk for number in range(found))
        assert content == expected.ljust(chunk * count, b"\0"), cut
        assert found == count or not storage.reached, cut
        seen.add(found)
    report(f"a long edit: cuts left {sorted(seen)} of {count} chunks changed")
    assert {0, count} < seen
    assert all(found % 2 == 0 for found in seen)


@pytest.mark.parametrize("kind", ["headers", "contents"])
@pytest.mark.parametrize("way", WAYS)
def test_rekeying_goes_on_after_a_cut(storage, image, monkeypatch, make_unlocker, kind, way):
    """Contents, records and keys stay; ``rekey`` again ends what was begun, and leaves one epoch."""
    steps = (rekey_contents if kind == "contents" else rekey_headers,)
    states = record(storage, monkeypatch, make_unlocker, (*steps,))
    cuts, pending = 0, 0
    for cut in storage.images(image, ways=(way,)):
        unlocker = make_unlocker(image)
        with Vault.open(image / "vault", unlocker) as vault:
            assert look(vault) == states[0], cut
            require_tidy(image / "vault", vault)
            begun = is_pending(vault)
            assert not (begun and storage.reached), cut  # what returned is at its end
            if begun:
                rekey(vault, contents=kind == "contents")
            assert not is_pending(vault), cut
            assert set(vault.keyring.keys) == {vault.keyring.record.epoch} == {vault.table.epoch}, cut
            assert look(vault) == states[0], cut
        examine(image / "vault", unlocker, states, cut)
        cuts, pending = cuts + 1, pending + begun
    report(f"rekey {kind}, {way}: {cuts} cuts, {pending} of them in the middle")
    assert pending > 10


def test_removed_unlocker_is_out_and_added_one_is_in(storage, image, monkeypatch, make_unlocker):
    """As soon as ``add`` or ``remove`` has returned; in between the record says which."""
    record(storage, monkeypatch, make_unlocker, (unlocker_add, unlocker_remove))
    opened = {0: set(), 1: set(), 2: set()}
    for _ in storage.images(image, ways=("synced", "named")):
        try:
            Vault.open(image / "vault", passphrase()).close()
            opened[storage.reached].add(True)
        except TidegateError as error:
            assert error.code == "vault.unlock.refused"
            opened[storage.reached].add(False)
    assert opened[0] == {False, True}
    assert opened[1] == {True, False}
    assert opened[2] == {False}


def test_counter_moves_to_another_key_store(storage, image, monkeypatch, make_unlocker, tmp_path):
    """The old one is removed, a new one with a fresh counter added: whoever the record lists opens the vault."""

    def second(root, *, create=False):
        (root / "second").mkdir(mode=0o700, exist_ok=True)
        return make_unlocker(root / "second", create=create)

    first, other = make_unlocker(storage.root, create=True), second(storage.root, create=True)
    with Vault.create(storage.root / "vault", first) as vault:
        vault.write("item", OLD)
        vault.write("item", NEW)
        vault.add_unlocker(passphrase(), label="spare")
    with Vault.open(storage.root / "vault", passphrase()) as vault, storage.recording(monkeypatch):
        vault.remove_unlocker(1)
        storage.mark()
        vault.add_unlocker(other, label="second")
        storage.mark()
        vault.write("item", OLD)
        storage.mark()
    cuts, codes = 0, {}
    for cut in storage.images(image, ways=WAYS):
        with Vault.open(image / "vault", passphrase()) as vault:
            labels = [slot.label for slot in vault.keyring.record.slots]
        for label, unlocker in (("", make_unlocker(image)), ("second", second(image))):
            try:
                with Vault.open(image / "vault", unlocker) as vault:
                    assert vault.read("item") in (OLD, NEW)
                assert label in labels, cut
            except TidegateError as error:
                if label in labels:
                    codes[cut] = error.code
        cuts += 1
    report(f"the counter moves: {cuts} cuts")
    assert codes == {}
    assert cuts > 20


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("name", "steps"),
    {
        "changes": (put_padded, edit, put, delete),
        "merges": (put_padded, merge, record_delete, merge),
        "unlockers": (unlocker_add, unlocker_remove),
        "rekeying": (put_padded, rekey_headers),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_second_cut_while_the_first_is_repaired(storage, image, monkeypatch, make_unlocker, name, steps):
    """Every second recovery is recorded and cut itself, in one of the ways in turn; every fourth image is tried."""
    states = record(storage, monkeypatch, make_unlocker, steps)
    first, cuts = image.with_name("first"), 0
    for number, cut in enumerate(storage.images(first, ways=("written", "synced"))):
        if number % 2:
            continue
        allowed = states[storage.reached : storage.reached + 2]
        inner = type(storage)(first)
        with inner.recording(monkeypatch):
            Vault.open(first / "vault", make_unlocker(first)).close()
        for second in inner.images(image, ways=(WAYS[number // 2 % len(WAYS)],)):
            if cuts % 4 == 0:
                examine(image / "vault", make_unlocker(image), allowed, f"{cut}, {second}")
            cuts += 1
    report(f"second cuts, {name}: {-(-cuts // 4)} of {cuts}")
    assert cuts > 50


def test_vault_is_created_or_can_be_created_again(storage, image, monkeypatch, make_unlocker):
    unlocker = make_unlocker(storage.root, create=True)
    with storage.recording(monkeypatch):
        Vault.create(storage.root / "vault", unlocker).close()
        storage.mark()
    created = []
    for cut in storage.images(image, ways=WAYS):
        unlocker = make_unlocker(image)
        try:
            vault = Vault.open(image / "vault", unlocker)
        except StorageMissing:
            assert not storage.reached, cut
            created.append(False)
            vault = Vault.create(image / "vault", unlocker)
        else:
            created.append(True)
        with vault:
            vault.write("item", NEW)
            assert vault.read("item") == NEW, cut
            vault.verify_folder()
    report(f"create: {len(created)} cuts")
    assert (created[0], created[-1]) == (False, True)


def test_no_plaintext_is_ever_written(storage, monkeypatch, make_unlocker):
    unlocker = make_unlocker(storage.root, create=True)
    with Vault.create(storage.root / "vault", unlocker) as vault, storage.recording(monkeypatch):
        vault.write("patients/jane-roe", NEW)
        vault.write("patients/jane-roe", OLD)
        with vault.open_file("patients/jane-roe", "r+") as target:
            target.write(b"fresh content")
        vault.records("sessions")["jane"] = b"record content"
        rekey(vault, contents=True)
        vault.delete("patients/jane-roe")
    written = storage.written_bytes()
    names = " ".join(storage.created_names())
    assert len(written) > len(NEW) + 2 * len(OLD)
    assert b"content" not in written
    assert b"jane" not in written
    assert "items/" in names
    assert "jane" not in names


@pytest.mark.parametrize(
    "step", [put, delete, edit, grow, shrink, rekey_headers, merge], ids=lambda step: step.__name__
)
def test_process_killed_at_each_system_call(tmp_path, make_unlocker, step):
    """Not the power but the process goes, without any clean-up of ours: the kernel keeps what was written."""
    unlocker = make_unlocker(tmp_path, create=True)
    folder = tmp_path / "vault"
    Vault.create(folder, unlocker).close()
    for count in range(1, 120):
        before = Model(items={"item": OLD})
        with Vault.open(folder, unlocker) as vault:
            vault.write("item", OLD)
        child = os.fork()
        if child == 0:
            _die_after(count)
            try:
                with Vault.open(folder, unlocker) as vault:
                    step(vault, copy.deepcopy(before))
            finally:
                os._exit(0)
        after = copy.deepcopy(before)
        _, status = os.waitpid(child, 0)
        with Vault.open(folder, unlocker) as vault:
            found = look(vault)
            require_tidy(folder, vault)
            step(_Nothing(), after)
            assert found in (before, after)
        if os.waitstatus_to_exitcode(status) == 0:
            assert found == after
            break
    else:
        pytest.fail("the change never came to its end")
    report(f"{step.__name__}: killed at {count - 1} system calls")
    assert count > 8


class _Nothing:
    """A vault that does nothing, so that a step changes the model alone."""

    def __getattr__(self, name):
        return self

    def __call__(self, *arguments, **options):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def _die_after(count):
    """End this process at the ``count``-th system call that changes storage; a write is done in half before that."""
    left = [count]

    def wrap(real, *, writes=False):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                if writes:
                    data = bytes(arguments[1])
                    real(arguments[0], data[: len(data) // 2], *arguments[2:])
                os._exit(9)
            return real(*arguments, **options)

        return call

    for name in ("fsync", "fdatasync", "rename", "unlink", "mkdir", "ftruncate", "posix_fallocate"):
        setattr(os, name, wrap(getattr(os, name)))
    beside._LIBRARY = None  # what the C library writes by itself would not be counted
    os.write = wrap(os.write, writes=True)
    os.pwrite = wrap(os.pwrite, writes=True)
    os.writev = lambda descriptor, pieces: os.write(descriptor, b"".join(pieces))
