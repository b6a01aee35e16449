"""A vault on a real ext4 whose disk remembers every write: cut anywhere, the journal's replay gives old or new, whole;
and nothing that is secret is in any byte that the disk ever saw.
"""

import contextlib
import copy
import io
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tidegate.base.errors import Fault
from tidegate.base.program import run_program
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.testing.cutdisk import RecordedDisk, iter_cuts
from tidegate.vault.age_recipients import X25519Identity
from tidegate.vault.backup import read_backup, write_backup
from tidegate.vault.ramedit import edit_in_ram
from tidegate.vault.rotation import is_pending, rekey
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting an image needs root"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="the recorded disk needs /dev/fuse"),
]

SIZE = 16 << 20
MEMORY = Path("/dev/shm")
PIECE = 12  # so many bytes of a secret in a row are a leak
CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


@dataclass
class Model:
    """What the vault has to hold."""

    items: dict[str, bytes] = field(default_factory=dict)
    records: dict[bytes, bytes] = field(default_factory=dict)
    unlockers: int = 1


@pytest.fixture
def work():
    """A folder in memory: images are written by the hundred."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


@contextlib.contextmanager
def mounted(image, place, *, journal="ordered"):
    place.mkdir(exist_ok=True)
    run_program(["mount", "-t", "ext4", "-o", f"loop,data={journal}", str(image), str(place)])
    try:
        yield place
    finally:
        run_program(["umount", str(place)])


@contextlib.contextmanager
def recorded_ext4(work, *, journal="ordered"):
    """A fresh ext4 on a recorded disk; yields where it is mounted, and the disk."""
    try:
        disk = RecordedDisk(work / "disk", size_bytes=SIZE)
    except Fault as fault:
        pytest.skip(fault.message)
    with disk:
        run_program(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-m", "0", str(disk.path)])
        with mounted(disk.path, work / "live", journal=journal) as place:
            yield place, disk


@contextlib.contextmanager
def mounted_again(content, work, *, journal="ordered"):
    """Mount what a cut left; yields the mount and the image. A file of its own each time: as long as somebody looks at
    its loop device (blkid does), ``mount`` would take that one again, with what it remembers of the last content.
    """
    with tempfile.NamedTemporaryFile(dir=work, prefix="image-") as image:
        image.write(content)
        image.flush()
        with mounted(image.name, work / "again", journal=journal) as place:
            yield place, image.name


def unlocker_at(place, work):
    """The key store lies on the same disk, so that its counter is cut with the vault; the device's secret does not."""
    secret = work / "device-secret"
    if not secret.exists():
        secret.touch(mode=0o600)
        secret.write_bytes(bytes(range(32)))
        keys = SoftwareKeyStore.create(place / "keys", DeviceSecretUnlock(secret))
        keys.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    return KeyStoreUnlocker(SoftwareKeyStore(place / "keys", DeviceSecretUnlock(secret)), "vault")


# -- cuts --------------------------------------------------------------------------------------------------------------


def put(vault, model):
    vault.write("item", b"new content " * 5000)
    model.items["item"] = b"new content " * 5000


def put_another(vault, model):
    with vault.open_file("second", "w") as target:
        target.write(b"streamed " * 3000)
    model.items["second"] = b"streamed " * 3000


def overwrite(vault, model):
    vault.write("item", b"newer content " * 3000)
    model.items["item"] = b"newer content " * 3000


def edit(vault, model):
    content = bytearray(model.items["item"])
    with vault.open_file("item", "r+") as target:
        for offset in (5, 16_380, 33_000):
            target.seek(offset)
            target.write(b"EDITED!!")
            content[offset : offset + 8] = b"EDITED!!"
    model.items["item"] = bytes(content)


def grow(vault, model):
    with vault.open_file("item", "a") as target:
        target.write(b"appended " * 5000)
    model.items["item"] += b"appended " * 5000


def shrink(vault, model):
    with vault.open_file("item", "r+") as target:
        target.truncate(20_000)
    model.items["item"] = model.items["item"][:20_000]


def transaction(vault, model):
    with vault.records("sessions").transaction() as change:
        for number in range(20):
            change[f"many-{number:02}"] = b"together"
        del change["first"]
    model.records |= {b"many-%02d" % number: b"together" for number in range(20)}
    del model.records[b"first"]


def merge(vault, model):
    vault.table.merge()


def add_unlocker(vault, model):
    vault.add_unlocker(PassphraseUnlocker(Secret(b"correct horse"), cost=CHEAP))
    model.unlockers = 2


def rekey_headers(vault, model):
    rekey(vault)


def delete(vault, model):
    vault.delete("item")
    del model.items["item"]


def close(vault, model):
    vault.close()


STEPS = (
    put,
    put_another,
    overwrite,
    edit,
    grow,
    shrink,
    transaction,
    merge,
    add_unlocker,
    rekey_headers,
    delete,
    close,
)


def do_recorded(work, *, journal):
    """Do all steps on a recorded ext4; return what the disk saw, where that begins, and what counts from when on."""
    with recorded_ext4(work, journal=journal) as (place, disk):
        model = Model(items={"other": b"untouched"}, records={b"first": b"1"})
        with Vault.create(place / "vault", unlocker_at(place, work)) as vault:
            vault.write("other", b"untouched")
            vault.records("sessions")["first"] = b"1"
            states, begin = [(0, copy.deepcopy(model))], disk.position()
            for step in STEPS:
                step(vault, model)
                states.append((disk.position(), copy.deepcopy(model)))
    return disk.steps(), begin, states


def look(vault):
    return Model(
        items={item.name: vault.read(item.name) for item in vault.iter_items()},
        records=dict(vault.records("sessions").items()),
        unlockers=len(vault.keyring.record.slots),
    )


def examine(place, work, allowed, what):
    folder, unlocker = place / "vault", unlocker_at(place, work)
    with Vault.open(folder, unlocker) as vault:
        assert look(vault) in allowed, what
        vault.verify_folder()
        assert len(list((folder / "items").iterdir())) == len(list(vault)), what
        assert not (folder / "redo").exists(), what
        if is_pending(vault):
            rekey(vault)
        vault.write("item", b"life goes on")
        with vault.open_file("other", "r+") as target:
            target.write(b"UNTOUCHED")
    with Vault.open(folder, unlocker) as vault:
        assert (vault.read("item"), vault.read("other")) == (b"life goes on", b"UNTOUCHED"), what
        vault.verify_folder()


def try_cuts(work, *, stride, journal="ordered"):
    """Cut behind every ``stride``-th step of the disk, in two ways; examine what the replay of the journal gives."""
    steps, begin, states = do_recorded(work, journal=journal)
    cuts, reached = 0, set()
    for cut in iter_cuts(steps, size_bytes=SIZE, first=begin + 1, stride=stride):
        what = f"{cut.way} {cut.position}/{len(steps)}"
        done = sum(1 for position, _ in states[1:] if position <= cut.position)
        with mounted_again(cut.content, work, journal=journal) as (place, image):
            examine(place, work, [state for _, state in states[done : done + 2]], what)
            if cuts % 25 == 0:
                run_program(["umount", str(place)])
                run_program(["e2fsck", "-fn", image])
                run_program(["mount", "-t", "ext4", "-o", "loop", image, str(place)])
        reached.add(done)
        cuts += 1
    report(f"ext4 data={journal}: {cuts} cuts at every {stride} of {len(steps) - begin} steps of the disk")
    assert reached == set(range(len(STEPS) + 1))
    return cuts


def report(text):
    print(text)  # noqa: T201  # how much was tried: pytest shows it with -s


@pytest.mark.timeout(60)
def test_cut_at_a_sample_of_the_disks_steps(work):
    """Every thirteenth step; the whole is in the slow test."""
    assert try_cuts(work, stride=13) > 60


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("journal", ["ordered", "writeback", "journal"])
def test_cut_at_every_step_of_the_disk(work, journal):
    assert try_cuts(work, stride=1, journal=journal) > 800


def test_disk_that_forgets_what_was_flushed_is_noticed(work):
    """The examination can fail: cuts are examined as if everything had returned that did later."""
    steps, begin, states = do_recorded(work, journal="ordered")
    failed = 0
    for cut in iter_cuts(steps, size_bytes=SIZE, first=begin + 1, stride=60):
        with mounted_again(cut.content, work) as (place, _):
            try:
                examine(place, work, [states[-1][1]], cut.position)
            except AssertionError:
                failed += 1
    assert failed > 5


# -- what the disk saw -------------------------------------------------------------------------------------------------


def printable(count):
    return os.urandom(count).hex().encode()[:count]


def pieces(secret):
    return {secret[start : start + PIECE] for start in range(len(secret) - PIECE + 1)}


def keys_of(vault):
    """Return every key that the open vault has in memory."""
    ring = vault.keyring
    found = [bytes(ring.root.view()), bytes(ring.identity.view())]
    for keys in ring.keys.values():
        found += [bytes(key.view()) for key in (keys.header, keys.manifest, keys.redo)]
    for name in vault:
        with vault.open_item(name) as reader:
            found.append(bytes(reader.file_key.view()))
    with vault.application_key("database") as key:
        found.append(bytes(key.view()))
    return found


def use_everything(place, work, marker, name):
    """Put the marker through everything that a vault can do; return the keys that it had on the way."""
    content, keys = marker * 300, []
    identity = X25519Identity.generate()
    with Vault.create(place / "vault", unlocker_at(place, work), padding="padme") as vault:
        vault.write(name, content)
        vault.write(name, content[::-1] + content)
        with vault.open_file(name, "r+") as target:
            target.seek(20_000)
            target.write(marker)
            target.truncate(90_000)
            target.write(content)
        with vault.open_file(name, "a") as target:
            target.write(content)
        vault.write_from(f"{name}/imported", io.BytesIO(content))
        vault.records(name)[name] = marker
        with vault.records(name).transaction() as change:
            change["2"] = marker
            del change[name]
        keys += keys_of(vault)
        edited = edit_in_ram(vault.read(name), editor="sed -i s/^/x/", name=f"{name}.txt")
        assert edited == b"x" + vault.read(name)
        vault.write(name, edited)
        backup = place / "backup.age"
        with backup.open("wb") as target:
            assert write_backup(vault, target, [identity.recipient()]) == 2
        vault.delete(f"{name}/imported")
        rekey(vault)
        keys += keys_of(vault)
        rekey(vault, contents=True)
        with backup.open("rb") as source:
            assert read_backup(vault, source, [identity]) == 2
        vault.table.merge()
        keys += keys_of(vault)
        vault.delete(name)
    with Vault.open(place / "vault", unlocker_at(place, work)) as vault:
        assert vault.read(f"{name}/imported") == content
    return keys


def leaks(haystack, marker, name, keys):
    """Return what of all secrets is in the bytes."""
    found = [("content", piece) for piece in pieces(marker) if piece in haystack]
    found += [("content", piece) for piece in pieces(marker[::-1]) if piece in haystack]
    found += [("name", piece) for piece in pieces(name.encode()) if piece in haystack]
    for key in {*keys}:
        found += [("key", key[at : at + PIECE]) for at in (0, 10, 20) if key[at : at + PIECE] in haystack]
    return found


@pytest.mark.timeout(60)
def test_nothing_secret_is_in_any_byte_that_the_disk_ever_saw(work):
    """Journal, slack and freed blocks included: what is searched is every write, not what is left at the end."""
    marker, name, control = printable(120), printable(40).decode(), printable(120)
    with recorded_ext4(work) as (place, disk):
        keys = use_everything(place, work, marker, name)
        (place / "control").write_bytes(control)
        os.sync()
        (place / "control").unlink()
    image = (work / "disk" / "content").read_bytes()
    written = b"".join(step.data for step in disk.steps() if step.data is not None)
    assert len(written) > 10 * len(marker) * 300
    assert len({*keys}) > 10
    for haystack in (image, written):
        assert all(piece in haystack for piece in pieces(control))  # so the search finds what is there, though freed
        assert leaks(haystack, marker, name, keys) == []
    report(f"searched {len(written)} bytes written, {len({*keys})} keys, {len(pieces(marker))} pieces")


@pytest.mark.timeout(120)
def test_nothing_secret_is_left_in_files_elsewhere(work):
    """The folders for temporary files and the working folder: everything that changed meanwhile is searched."""
    marker, name, control = printable(120), printable(40).decode(), printable(120)
    stamp = work / "stamp"
    stamp.touch()
    time.sleep(0.02)  # the file system's clock ticks
    with recorded_ext4(work) as (place, _):
        keys = use_everything(place, work, marker, name)
    with tempfile.NamedTemporaryFile() as kept:
        kept.write(control)
        kept.flush()
        found, seen, searched = [], False, 0
        for path in changed_since(stamp, ("/tmp", "/var/tmp", "/dev/shm", "/run", str(Path.cwd() / "tests"))):
            with contextlib.suppress(OSError):  # others' files come and go
                haystack = path.read_bytes()
                searched += 1
                seen = seen or control in haystack
                found += [(path, kind) for kind, _ in leaks(haystack, marker, name, keys)]
                assert name not in path.name
    assert seen
    assert found == []
    report(f"searched {searched} files that changed meanwhile")


def changed_since(stamp, folders):
    places = [folder for folder in folders if Path(folder).is_dir()]
    command = ["find", *places, "-xdev", "-type", "f", "-cnewer", str(stamp), "-size", "-65536k", "-print0"]
    done = run_program(command, check=False, timeout_s=60)
    return [Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name]


def test_nothing_secret_is_in_swap(work):
    devices = [Path(line.split()[0]) for line in Path("/proc/swaps").read_text().splitlines()[1:]]
    if not devices:
        pytest.skip("this machine has no swap on: there is nothing to search")
    marker, name = printable(120), printable(40).decode()
    with recorded_ext4(work) as (place, _):
        keys = use_everything(place, work, marker, name)
    for device in devices:
        with device.open("rb") as stream:
            while haystack := stream.read(64 << 20):
                assert leaks(haystack, marker, name, keys) == []


def test_recorded_disk_gives_back_what_was_written(work):
    """The simulator itself: a file system's last content is the replay of its steps, and cuts differ from it."""
    with recorded_ext4(work) as (place, disk):
        (place / "file").write_bytes(b"content" * 1000)
        os.sync()
        begin = disk.position()
        (place / "file").write_bytes(b"CONTENT" * 1000)
    steps = disk.steps()
    assert any(step.data is None for step in steps[begin:])
    last = list(iter_cuts(steps, size_bytes=SIZE, first=len(steps)))
    assert last[0].content == (work / "disk" / "content").read_bytes()
    found = set()
    for cut in iter_cuts(steps, size_bytes=SIZE, first=begin):
        with mounted_again(cut.content, work) as (again, _):
            found.add((again / "file").read_bytes())
    assert {b"content" * 1000, b"CONTENT" * 1000} <= found
