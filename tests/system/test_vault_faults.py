"""A running vault meets what goes wrong on a device: a full disk, two writers, kills, a drive that is pulled, a stolen
copy that comes back, other measurements, a key server that is away. Each ends with a code, and with old or new.
"""

import contextlib
import fcntl
import itertools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from tidegate.base.errors import Fault, TidegateError
from tidegate.base.program import run_program
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tangd import Tangd
from tidegate.vault import usbdrive
from tidegate.vault.store import Vault
from tidegate.vault.tang import TangUnlocker
from tidegate.vault.threshold import ThresholdUnlocker
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker
from tidegate.vault.usbdrive import UsbUnlocker, write_key_file

CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
OLD, NEW = b"old content " * 4000, b"new content " * 9000
EXT4_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
NO_LOG_FLUSH = 2


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def passphrase(text=b"correct horse"):
    return PassphraseUnlocker(Secret(text), cost=CHEAP)


def report(text):
    print(text)  # noqa: T201  # how much was tried: pytest shows it with -s


@contextlib.contextmanager
def ext4(folder, *, size=16 << 20, label="", read_only=False):
    """An ext4 image below ``folder``, mounted; yields the mount. At the end it has to be free: nothing is open."""
    image, place = folder / "image", folder / "mount"
    place.mkdir(parents=True, exist_ok=True)
    if not image.exists():
        make_ext4(image, size=size, label=label)
    try:
        run_program(["mount", "-o", "loop,ro" if read_only else "loop", str(image), str(place)])
    except Fault as fault:
        pytest.skip(f"an ext4 image cannot be mounted here: {fault.message}")
    try:
        yield place
    finally:
        run_program(["umount", str(place)])


def make_ext4(image, *, size=16 << 20, label=""):
    image.parent.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as stream:
        stream.truncate(size)
    run_program(["mkfs.ext4", "-q", "-m", "0", "-L", label, str(image)])


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["ext4", "tmpfs"])
def small(request, tmp_path):
    """A file system with room for a few items, mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    if request.param == "ext4":
        with ext4(tmp_path / "small", size=12 << 20) as place:
            yield place
        return
    place = tmp_path / "small"
    place.mkdir()
    run_program(["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "tmpfs", str(place)])
    try:
        yield place
    finally:
        run_program(["umount", str(place)])


def fill(place, *, leave=0):
    """Take all room but ``leave`` bytes, to the last block."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as stream:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    stream.write(bytes(size))
        if leave:
            stream.truncate(max(0, stream.tell() - leave))
        os.fsync(stream.fileno())
    return filler


def make_vault(place):
    vault = Vault.create(place / "vault", passphrase())
    vault.write("item", OLD)
    vault.write("other", b"untouched")
    vault.records("sessions")["1"] = b"old"
    return vault


def grow(vault):
    with vault.open_file("item", "r+") as target:
        target.seek(0, os.SEEK_END)
        target.write(NEW)


def stream(vault):
    with vault.open_file("streamed", "w") as target:
        for _ in range(40):
            target.write(NEW)


def many_records(vault):
    with vault.records("sessions").transaction() as change:
        for number in range(40):
            change[f"many-{number}"] = bytes(4000)


FULL = {
    "put": lambda vault: vault.write("new", NEW),
    "stream": stream,
    "overwrite": lambda vault: vault.write("item", NEW),
    "grow": grow,
    "records": many_records,
    "merge": lambda vault: vault.table.merge(),
    "unlocker": lambda vault: vault.add_unlocker(passphrase(b"another")),
}


def require_as_before(vault):
    assert vault.read("item") == OLD
    assert vault.read("other") == b"untouched"
    assert list(vault) == ["item", "other"]
    assert dict(vault.records("sessions").items()) == {b"1": b"old"}
    assert len(vault.keyring.record.slots) == 1
    vault.verify_folder()


@pytest.mark.root
@pytest.mark.parametrize("operation", FULL)
def test_full_disk_is_refused_and_nothing_changes(small, operation):
    with make_vault(small) as vault:
        filler = fill(small)
        for _ in range(3):
            assert code_of(FULL[operation], vault) == "base.storage.full"
            require_as_before(vault)
        filler.unlink()
        require_as_before(vault)
        FULL[operation](vault)
        vault.write("after", NEW)
    with Vault.open(small / "vault", passphrase()) as vault:
        assert vault.read("after") == NEW
        assert vault.read("other") == b"untouched"
        for name in list(vault):
            vault.verify(name)
        vault.verify_folder()


@pytest.mark.root
@pytest.mark.parametrize("operation", FULL)
def test_full_disk_in_the_middle(small, operation):
    """With a little room, more each time, the operation gets further each time before it is refused."""
    outcomes = []
    for leave in range(0, 400_000, 12_288):
        folder = small / "vault"
        with make_vault(small) as vault:
            filler = fill(small, leave=leave)
            try:
                FULL[operation](vault)
            except TidegateError as error:
                outcomes.append(error.code)
                assert error.code == "base.storage.full"
                require_as_before(vault)
            else:
                outcomes.append("done")
            filler.unlink()
        with Vault.open(folder, passphrase()) as vault:
            if outcomes[-1] != "done":
                require_as_before(vault)
            vault.write("after", b"room again")
            vault.verify_folder()
        shutil.rmtree(folder)
    report(f"{operation}: refused {outcomes.count('base.storage.full')} times, done {outcomes.count('done')} times")
    assert "base.storage.full" in outcomes


@pytest.mark.root
def test_refused_growth_gives_back_the_room_that_it_reserved(small):
    """There is room for the larger item, but not for its redo file as well."""
    with make_vault(small) as vault:
        vault.records("sessions")["2"] = b"the journal has its block"
        filler = fill(small, leave=220_000)
        before = room(small)
        for _ in range(3):
            assert code_of(grow, vault) == "base.storage.full"
        assert room(small) > before - 20_000
        filler.unlink()
        grow(vault)
        vault.verify_folder()


def room(place):
    os.sync()
    status = os.statvfs(place)
    return status.f_bavail * status.f_bsize


@pytest.mark.root
def test_deleting_makes_room_on_a_full_disk(small):
    """Otherwise a full vault could never be emptied."""
    with make_vault(small) as vault:
        filler = fill(small)
        vault.delete("item")
        assert "item" not in vault
        del vault.records("sessions")["1"]
        assert dict(vault.records("sessions").items()) == {}
        filler.unlink()
    with Vault.open(small / "vault", passphrase()) as vault:
        assert list(vault) == ["other"]


@pytest.mark.root
def test_close_and_open_on_a_full_disk(small):
    """What was read can be read: closing may say that the disk is full, and leaves nothing locked."""
    vault = make_vault(small)
    fill(small)
    try:
        vault.close()
    except TidegateError as error:
        assert error.code == "base.storage.full"
    with contextlib.suppress(Fault), Vault.open(small / "vault", passphrase()) as vault:
        require_as_before(vault)
    (small / "filler").unlink()
    with Vault.open(small / "vault", passphrase()) as vault:
        require_as_before(vault)


# -- several at once ---------------------------------------------------------------------------------------------------


def test_second_process_is_told_that_the_vault_is_busy(tmp_path):
    script = """
import sys
from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker
try:
    with Vault.open(sys.argv[1], PassphraseUnlocker(Secret(b"correct horse")), wait_s=float(sys.argv[2])) as vault:
        vault.write("item", b"the second one's")
    print("done")
except TidegateError as error:
    print(error.code)
"""

    def second(wait_s):
        command = [sys.executable, "-c", script, str(tmp_path / "vault"), str(wait_s)]
        return subprocess.run(command, capture_output=True, text=True, timeout=15, check=True).stdout.strip()

    with Vault.create(tmp_path / "vault", passphrase()) as vault:
        vault.write("item", OLD)
        assert second(0.1) == "vault.folder.busy"
        assert code_of(Vault.open, tmp_path / "vault", passphrase(), wait_s=0.1) == "vault.folder.busy"
        vault.write("item", NEW)
    assert second(5) == "done"
    with Vault.open(tmp_path / "vault", passphrase()) as vault:
        assert vault.read("item") == b"the second one's"


def in_threads(*works):
    """Run all at once; raise the first failure."""
    failures = []

    def guarded(work):
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
        assert not thread.is_alive(), "the vault's threads wait for each other"
    if failures:
        raise failures[0]


@pytest.mark.parametrize("mode", ["w", "r+"])
def test_two_threads_on_one_item(tmp_path, mode):
    """Each change is whole, and readers see one or the other; who comes second in place is told so."""
    contents = [bytes([65 + number]) * 40_000 for number in range(2)]
    codes, seen = set(), set()
    stop = threading.Event()
    with Vault.create(tmp_path / "vault", passphrase()) as vault:
        vault.write("item", contents[0])

        def writer(content):
            for _ in range(40):
                try:
                    with vault.open_file("item", mode) as target:
                        target.write(content)
                except TidegateError as error:
                    codes.add(error.code)

        def reader():
            while not stop.is_set():
                try:
                    seen.add(vault.read("item"))
                except TidegateError as error:
                    codes.add(error.code)

        def writers():
            try:
                in_threads(*(lambda content=content: writer(content) for content in contents))
            finally:
                stop.set()

        in_threads(writers, reader)
        assert seen <= set(contents)
        assert codes <= {"vault.item.busy"}
        assert vault.read("item") in contents
        vault.verify_folder()
    report(f"two threads, mode {mode}: readers saw {len(seen)} contents, codes {sorted(codes)}")


def test_threads_on_different_items_with_readers(tmp_path):
    """Four writers of 100 changes each, in place and anew, records beside them, two readers."""
    with Vault.create(tmp_path / "vault", passphrase()) as vault:
        for number in range(4):
            vault.write(f"item-{number}", b"%d" % number * 30_000)
        stop, reads = threading.Event(), []

        def write(number):
            for turn in range(100):
                if turn % 2:
                    vault.write(f"item-{number}", b"%d" % number * (20_000 + turn))
                else:
                    with open_when_idle(vault, f"item-{number}") as target:
                        target.truncate(30_000 + turn)
                        target.write(b"%d" % number * (30_000 + turn))
                vault.records(f"table-{number}")[str(turn)] = b"%d" % number

        def read():
            chance = random.Random(1)  # which item comes next
            while not stop.is_set():
                number = chance.randrange(4)
                with not_busy():
                    content = vault.read(f"item-{number}")
                    assert set(content) == set(b"%d" % number)
                    reads.append(len(content))
                for key, value in vault.records(f"table-{number}").items():
                    assert (key.isdigit(), value) == (True, b"%d" % number)

        def writers():
            try:
                in_threads(*(lambda number=number: write(number) for number in range(4)))
            finally:
                stop.set()

        in_threads(writers, read, read)
        assert len(reads) > 20
        for number in range(4):
            assert vault.read(f"item-{number}") == b"%d" % number * 20_099
            assert len(list(vault.records(f"table-{number}"))) == 100
        vault.verify_folder()
    report(f"{len(reads)} reads during 400 changes")


def open_when_idle(vault, name):
    """An item that is being read cannot be changed in place: try until nobody reads it."""
    for _ in range(5000):
        with not_busy():
            return vault.open_file(name, "r+")
        time.sleep(0.001)
    pytest.fail("the item never was idle")


@contextlib.contextmanager
def not_busy():
    """An item that is being changed in place cannot be opened for reading: that is told, and nothing else is."""
    try:
        yield
    except TidegateError as error:
        assert error.code == "vault.item.busy"


# -- kills -------------------------------------------------------------------------------------------------------------


def keep_changing(folder, unlocker, pipe):
    """A writer that never stops; each change that returned is told."""
    with Vault.open(folder, unlocker) as vault:
        for turn in itertools.count():
            content = struct.pack(">Q", turn) * (3000 + turn % 7 * 1000)
            if turn % 3 == 1:
                with vault.open_file("item", "r+") as target:
                    target.truncate(len(content))
                    target.write(content)
            else:
                vault.write("item", content)
            with vault.records("turns").transaction() as change:
                change["turn"] = b"%d" % turn
                change["again"] = b"%d" % turn
            if turn % 10 == 9:
                vault.table.merge()
            os.write(pipe, struct.pack(">Q", turn))


def test_writer_is_killed_fifty_times(tmp_path):
    """At random moments (the seed is fixed, the scheduling is not): what returned is there, all is whole."""
    keys = SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(new_secret(tmp_path)))
    keys.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    unlocker, folder = KeyStoreUnlocker(keys, "vault"), tmp_path / "vault"
    Vault.create(folder, unlocker).close()
    chance, recovered, turns = random.Random(7), 0, 0
    for _ in range(50):
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                keep_changing(folder, unlocker, send)
            finally:
                os._exit(1)
        os.close(send)
        told = os.read(receive, 8)  # it is under way
        time.sleep(chance.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(receive, 8):
            told = more
        os.close(receive)
        (turn,) = struct.unpack(">Q", told)
        turns += turn + 1
        with Vault.open(folder, unlocker) as vault:
            recovered += bool(vault.recovery.files or vault.recovery.torn_bytes)
            content = vault.read("item")
            (found,) = struct.unpack(">Q", content[:8])
            assert content == content[:8] * (3000 + found % 7 * 1000)
            assert found in (turn, turn + 1)
            records = dict(vault.records("turns").items())
            assert records in [dict.fromkeys((b"turn", b"again"), b"%d" % one) for one in (turn, turn + 1)]
            vault.verify_folder()
    report(f"50 kills in {turns} changes; {recovered} of them left something to finish")
    assert recovered > 3


def new_secret(folder):
    secret = folder / "device-secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(range(32)))
    return secret


# -- a stolen copy -----------------------------------------------------------------------------------------------------


@pytest.fixture
def tpm(tmp_path):
    pytest.importorskip("tpm2_pytss", reason="python tpm2-pytss is not installed")
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed")
    with SwTpm(tmp_path / "tpm") as running:
        yield running


@pytest.fixture
def tpm_keys(tpm, tmp_path):
    from tidegate.keys.tpm2 import Tpm2KeyStore

    keys = Tpm2KeyStore.create(tmp_path / "tpm-keys", tpm.tcti)
    keys.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    policy = KeyPolicy(pcrs=frozenset({16}))
    keys.generate("measured", KeySpec(purpose=KeyPurpose.SEAL, policy=policy))
    yield keys
    keys.close()


def copy_and_go_on(folder, unlocker):
    """Make a vault, copy it, change it; return the copy."""
    with Vault.create(folder, unlocker) as vault:
        vault.write("item", OLD)
    stolen = folder.with_name("stolen")
    shutil.copytree(folder, stolen)
    with Vault.open(folder, unlocker) as vault:
        vault.write("item", NEW)
    return stolen


def put_back(stolen, folder):
    shutil.rmtree(folder)
    shutil.copytree(stolen, folder)


def test_old_copy_of_the_whole_vault_is_refused_by_the_tpms_counter(tpm_keys, tpm, tmp_path):
    from tidegate.keys.tpm2 import Tpm2KeyStore

    folder, unlocker = tmp_path / "vault", KeyStoreUnlocker(tpm_keys, "vault")
    stolen = copy_and_go_on(folder, unlocker)
    shutil.copytree(tmp_path / "tpm-keys", tmp_path / "stolen-keys")
    newest = tmp_path / "newest"
    shutil.copytree(folder, newest)
    put_back(stolen, folder)
    assert code_of(Vault.open, folder, unlocker) == "vault.manifest.rollback"
    tpm.restart()
    assert code_of(Vault.open, folder, unlocker) == "vault.manifest.rollback"
    shutil.rmtree(tmp_path / "tpm-keys")  # the key store's folder put back as well: the counter is in the chip
    shutil.copytree(tmp_path / "stolen-keys", tmp_path / "tpm-keys")
    again = Tpm2KeyStore(tmp_path / "tpm-keys", tpm.tcti)
    assert code_of(Vault.open, folder, KeyStoreUnlocker(again, "vault")) == "vault.manifest.rollback"
    put_back(newest, folder)
    with Vault.open(folder, KeyStoreUnlocker(again, "vault")) as vault:
        assert vault.read("item") == NEW
    again.close()


def test_old_copy_is_refused_by_a_software_counter_that_was_not_copied(tmp_path):
    """And opens if the key store is put back with it, as docs/formats/vault.md says: the counter is a file too."""
    secret = new_secret(tmp_path)
    keys = SoftwareKeyStore.create(tmp_path / "keys", DeviceSecretUnlock(secret))
    keys.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    folder = tmp_path / "vault"
    with Vault.create(folder, KeyStoreUnlocker(keys, "vault")) as vault:
        vault.write("item", OLD)
    keys.close()
    shutil.copytree(folder, tmp_path / "stolen")
    shutil.copytree(tmp_path / "keys", tmp_path / "stolen-keys")
    unlocker = KeyStoreUnlocker(SoftwareKeyStore(tmp_path / "keys", DeviceSecretUnlock(secret)), "vault")
    with Vault.open(folder, unlocker) as vault:
        vault.write("item", NEW)
    put_back(tmp_path / "stolen", folder)
    assert code_of(Vault.open, folder, unlocker) == "vault.manifest.rollback"
    put_back(tmp_path / "stolen-keys", tmp_path / "keys")
    unlocker = KeyStoreUnlocker(SoftwareKeyStore(tmp_path / "keys", DeviceSecretUnlock(secret)), "vault")
    with Vault.open(folder, unlocker) as vault:
        assert vault.read("item") == OLD


def test_old_copy_opens_by_passphrase(tmp_path):
    """The documented limitation: nothing outside the storage counts. A part of it alone is still refused."""
    folder = tmp_path / "vault"
    stolen = copy_and_go_on(folder, passphrase())
    newest = tmp_path / "newest"
    shutil.copytree(folder, newest)
    shutil.copy(stolen / "manifest", folder / "manifest")
    assert code_of(Vault.open, folder, passphrase()).startswith(("vault.journal.", "vault.file."))
    put_back(newest, folder)
    shutil.rmtree(folder / "items")
    shutil.copytree(stolen / "items", folder / "items")
    with Vault.open(folder, passphrase()) as vault:
        assert code_of(vault.read, "item") == "vault.file.missing"
    put_back(stolen, folder)
    with Vault.open(folder, passphrase()) as vault:
        assert vault.read("item") == OLD


# -- a drive that is pulled --------------------------------------------------------------------------------------------


def pull(place):
    """Take the file system away as a pulled drive does: nothing more reaches the medium, the log included."""
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(descriptor, EXT4_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(descriptor)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_drive_with_the_vault_is_pulled_while_writing(tmp_path):
    """Twelve times, later each time. ``ext4`` unmounts at the end of its ``with``: so nothing of the vault is open."""
    codes = set()
    for turn in range(12):
        disk = tmp_path / str(turn)
        with ext4(disk) as place:
            vault = Vault.create(place / "vault", passphrase())
            vault.write("item", struct.pack(">Q", 0) * 3000)
            last = [0]
            timer = threading.Timer(0.01 + 0.012 * turn, pull, [place])
            timer.start()
            with pytest.raises(TidegateError) as caught:
                for number in itertools.count(1):
                    change(vault, number)
                    last[0] = number
            codes.add(caught.value.code)
            timer.join()
            codes.add(code_of(vault.write, "x", b"y"))
            codes.add(code_of(vault.records("t").__setitem__, "k", b"v"))
            try:
                vault.close()
            except TidegateError as error:
                codes.add(error.code)
            assert code_of(vault.read, "item") == "vault.folder.closed"
        with ext4(disk) as place, Vault.open(place / "vault", passphrase()) as vault:
            content = vault.read("item")
            (found,) = struct.unpack(">Q", content[:8])
            assert content == content[:8] * 3000
            assert found in (last[0], last[0] + 1)
            vault.verify_folder()
            vault.write("item", NEW)
    report(f"a pulled drive: {sorted(codes)}")
    assert codes <= {"base.storage.failed", "base.storage.missing", "vault.folder.failed"}


def change(vault, number):
    content = struct.pack(">Q", number) * 3000
    if number % 2:
        with vault.open_file("item", "r+") as target:
            target.write(content)
    else:
        vault.write("item", content)


# -- the drive with the key --------------------------------------------------------------------------------------------


@pytest.fixture
def label():
    return f"TG{os.urandom(5).hex()}"


@contextlib.contextmanager
def plugged_in(image):
    """A loop device on ``image``, as udev would show a drive; yields the device."""
    try:
        device = run_program(["losetup", "--find", "--show", str(image)]).stdout.decode().strip()
    except Fault as fault:
        pytest.skip(f"no loop device: {fault.message}")
    try:
        yield device
    finally:
        run_program(["losetup", "--detach", device])


def make_drive(folder, label, *, key=b""):
    """An image of a drive with a key file; returns it and the file's bytes."""
    with ext4(folder, size=4 << 20, label=label) as place:
        if key:
            (place / "tidegate.key").touch(mode=0o400)
            (place / "tidegate.key").write_bytes(key)
        else:
            write_key_file(place / "tidegate.key")
        content = (place / "tidegate.key").read_bytes()
    return folder / "image", content


needs_drives = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("blkid", path="/usr/sbin:/sbin:/usr/bin") is None,
    reason="drives need root and blkid",
)


@pytest.mark.root
@needs_drives
def test_drive_opens_the_vault_and_without_it_nothing_does(tmp_path, label):
    image, _ = make_drive(tmp_path / "drive", label)
    unlocker, folder = UsbUnlocker(label), tmp_path / "vault"
    with plugged_in(image), Vault.create(folder, unlocker) as vault:
        vault.write("item", OLD)
    assert code_of(Vault.open, folder, unlocker) == "vault.drive.missing"
    with plugged_in(image), Vault.open(folder, unlocker) as vault:
        assert vault.read("item") == OLD
    with plugged_in(image) as device:
        assert run_program(["findmnt", "-n", "-S", device], check=False).stdout == b""  # our own mount is gone
        (tmp_path / "drive" / "mount").mkdir(exist_ok=True)
        run_program(["mount", device, str(tmp_path / "drive" / "mount")])
        try:
            with Vault.open(folder, unlocker) as vault:  # the system has mounted it already
                assert vault.read("item") == OLD
            assert (tmp_path / "drive" / "mount" / "tidegate.key").exists()  # and keeps it
        finally:
            run_program(["umount", str(tmp_path / "drive" / "mount")])
    assert list(Path("/run").glob("tidegate-drive-*")) == []


@pytest.mark.root
@needs_drives
@pytest.mark.parametrize(
    "name", ["Schlüssel für Größe", "tab\tand\nline", "back\\040slash", os.fsdecode(b"latin-\xfc")]
)
def test_drive_that_is_mounted_under_a_strange_name(tmp_path, label, name):
    image, _ = make_drive(tmp_path / "drive", label)
    unlocker, folder, place = UsbUnlocker(label), tmp_path / "vault", tmp_path / name
    place.mkdir()
    with plugged_in(image) as device:
        run_program(["mount", "-o", "ro", device, str(place)])
        try:
            with Vault.create(folder, unlocker) as vault:
                vault.write("item", OLD)
        finally:
            run_program(["umount", str(place)])


def test_mount_points_are_decoded_byte_by_byte():
    lines = (
        b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
        b"23 1 8:17 /below /wrong rw - ext4 /dev/sdb1 rw\n"
        b"24 1 8:17 / /media/J\xc3\xbcrgen\\040x\\134040\r\xa0 rw shared:1 - ext4 /dev/sdb1 rw\n"
    )
    assert usbdrive._find_mount(lines, "8:17") == Path(os.fsdecode(b"/media/J\xc3\xbcrgen x\\040\r\xa0"))
    assert usbdrive._find_mount(lines, "8:1") == Path("/")
    assert usbdrive._find_mount(lines, "8:2") is None
    assert usbdrive._find_mount(b"\n1 2 8:1\n", "8:1") is None


@pytest.mark.root
@needs_drives
def test_wrong_drives(tmp_path, label):
    image, _ = make_drive(tmp_path / "drive", label)
    unlocker, folder = UsbUnlocker(label), tmp_path / "vault"
    with plugged_in(image):
        Vault.create(folder, unlocker).close()
    other, _ = make_drive(tmp_path / "other", label)
    with plugged_in(other):
        assert code_of(Vault.open, folder, unlocker) == "vault.unlock.refused"  # the same label, another key
        with plugged_in(image):
            assert code_of(Vault.open, folder, unlocker) == "vault.drive.missing"  # two of that label
    short, _ = make_drive(tmp_path / "short", label, key=bytes(31))
    with plugged_in(short):
        assert code_of(Vault.open, folder, unlocker) == "vault.drive.key"
    with plugged_in(image):
        assert code_of(Vault.open, folder, UsbUnlocker(label, "other.key")) == "vault.unlock.refused"
        Vault.open(folder, unlocker).close()
    with ext4(tmp_path / "drive") as place:
        (place / "tidegate.key").rename(place / "kept.key")
        (place / "tidegate.key").symlink_to("kept.key")
    with plugged_in(image):
        assert code_of(Vault.open, folder, unlocker) == "vault.drive.key"  # a link may lead off the drive


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(120)  # everything that lies in the temporary folder is looked at
@needs_drives
def test_key_file_is_copied_nowhere(tmp_path, label):
    image, key = make_drive(tmp_path / "drive", label)
    stamp = tmp_path / "stamp"
    stamp.touch()
    time.sleep(0.02)  # the file system's clock ticks
    folder = tmp_path / "vault"
    with plugged_in(image), Vault.create(folder, UsbUnlocker(label)) as vault:
        vault.write("item", OLD)
        searched = list(iter_changed(stamp, "/run", "/dev/shm", tempfile.gettempdir(), str(folder)))
    control = tmp_path / "control"
    control.write_bytes(b"before" + key)
    places = [path for path in (*searched, control) if holds(path, key)]
    assert places == [control]
    assert any(path.is_relative_to(folder) for path in searched)


def iter_changed(stamp, *folders):
    command = ["find", *folders, "-xdev", "-type", "f", "-cnewer", str(stamp), "-size", "-65536k", "-print0"]
    done = run_program(command, check=False, timeout_s=60)
    for name in done.stdout.split(b"\0"):
        if name:
            yield Path(os.fsdecode(name))


def holds(path, key):
    """Say whether any 16 bytes in a row of the key are in the file."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return any(key[start : start + 16] in content for start in range(len(key) - 15))


@pytest.mark.root
@needs_drives
def test_drive_goes_away_while_its_key_is_read(tmp_path, label, monkeypatch):
    """Between finding the drive and reading it: told as a drive that is missing, and no mount is left."""
    image, _ = make_drive(tmp_path / "drive", label)
    folder = tmp_path / "vault"
    with plugged_in(image):
        Vault.create(folder, UsbUnlocker(label)).close()
    real = usbdrive.find_drive

    def find_and_pull(wanted):
        with plugged_in(image):
            return real(wanted)

    monkeypatch.setattr(usbdrive, "find_drive", find_and_pull)
    assert code_of(Vault.open, folder, UsbUnlocker(label)) in ("vault.drive.missing", "base.storage.missing")
    assert list(Path("/run").glob("tidegate-drive-*")) == []


# -- measurements, the key server, and parts of them -------------------------------------------------------------------


def test_other_measurements_do_not_open_but_the_passphrase_beside_them_does(tpm_keys, tpm, tmp_path):
    folder, unlocker = tmp_path / "vault", KeyStoreUnlocker(tpm_keys, "measured")
    with Vault.create(folder, unlocker) as vault:
        vault.write("item", OLD)
        vault.add_unlocker(passphrase(), label="spare")
    tpm_keys.extend(16, bytes(32))
    assert code_of(Vault.open, folder, unlocker) == "keys.pcr.mismatch"
    with Vault.open(folder, passphrase()) as vault:
        assert vault.read("item") == OLD
    tpm.restart()  # a boot: the registers begin anew
    with Vault.open(folder, unlocker) as vault:
        assert vault.read("item") == OLD


def test_another_tpm_opens_nothing(tpm_keys, tpm, tmp_path):
    from tidegate.keys.tpm2 import Tpm2KeyStore

    folder = tmp_path / "vault"
    Vault.create(folder, KeyStoreUnlocker(tpm_keys, "vault")).close()
    tpm_keys.close()
    tpm.wipe()
    assert code_of(Tpm2KeyStore, tmp_path / "tpm-keys", tpm.tcti) == "keys.unlock.refused"


@pytest.fixture
def tangd(tmp_path):
    if not Tangd.is_installed():
        pytest.skip("tangd is not installed (Debian package tang)")
    with Tangd(tmp_path / "tang") as server:
        yield server


def at_server(server, **options):
    return TangUnlocker(server.url, thumbprint=server.thumbprint(), **options)


def test_key_server_down_slow_and_replaced(tangd, tmp_path):
    folder, unlocker = tmp_path / "vault", at_server(tangd, timeout_s=1.0)
    with Vault.create(folder, unlocker) as vault:
        vault.write("item", OLD)
    with Vault.open(folder, unlocker) as vault:
        assert vault.read("item") == OLD
    tangd.delay_s = 2.0
    started = time.monotonic()
    assert code_of(Vault.open, folder, unlocker) == "vault.tang.slow"
    assert time.monotonic() - started < 4
    tangd.close()
    assert code_of(Vault.open, folder, unlocker) == "vault.tang.unreachable"
    with Tangd(tmp_path / "stranger", port=tangd.port):
        assert code_of(Vault.open, folder, unlocker) == "vault.tang.key-gone"
    with Tangd(tangd.folder, port=tangd.port), Vault.open(folder, unlocker) as vault:
        assert vault.read("item") == OLD


def test_vault_that_was_refused_is_not_left_locked(tangd, tmp_path):
    """An attempt that fails gives the folder free: the next one is not busy."""
    folder = tmp_path / "vault"
    with Vault.create(folder, at_server(tangd)) as vault:
        vault.add_unlocker(passphrase())
    tangd.close()
    for _ in range(3):
        assert code_of(Vault.open, folder, at_server(tangd), wait_s=0.0) == "vault.tang.unreachable"
        assert code_of(Vault.open, folder, passphrase(b"wrong"), wait_s=0.0) == "vault.unlock.refused"
    Vault.open(folder, passphrase(), wait_s=0.0).close()


def test_two_of_three(tpm_keys, tangd, tmp_path):
    """TPM, key server, passphrase: any two open the vault, one does not, whichever it is."""
    measured, network, person = KeyStoreUnlocker(tpm_keys, "measured"), at_server(tangd, timeout_s=1.0), passphrase()
    folder = tmp_path / "vault"
    with Vault.create(folder, ThresholdUnlocker(2, [measured, network, person])) as vault:
        vault.write("item", OLD)

    def outcome(*parts):
        try:
            with Vault.open(folder, ThresholdUnlocker(2, parts)) as vault:
                return vault.read("item") == OLD
        except TidegateError as error:
            return error.code

    assert outcome(measured, network) is True
    assert outcome(measured, person) is True
    assert outcome(network, person) is True
    for part in (measured, network, person):
        assert outcome(part) == "vault.unlock.threshold"
    tpm_keys.extend(16, bytes(32))
    assert outcome(measured, network, person) is True
    assert outcome(measured, network, passphrase(b"wrong")) == "vault.unlock.threshold"
    tangd.close()
    assert outcome(measured, network, person) == "vault.unlock.threshold"
