"""A real device: real squashfs, both stages as processes, the service in its chroot, the plug pulled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidegate.base.blockdev import FileBlockDevice
from tidegate.base.clock import SystemEntropy
from tidegate.boot.control import RecordBootControl
from tidegate.boot.measure import Began, Measurement, Refusal, Started, replay
from tidegate.boot.slots import SlotState
from tidegate.boot.storage import DeviceStorage, StorageSizes
from tidegate.cli.main import main
from tidegate.demo import product
from tidegate.demo.board import Board
from tidegate.demo.booting import flip_bit
from tidegate.demo.product import HARDWARE, Release, build_release
from tidegate.factory.provision import install_first_image
from tidegate.image.manifest import PayloadKind
from tidegate.testing.maker import TestMaker
from tidegate.testing.netns import Namespace, make_unique

PROGRAMS = ("mksquashfs", "busybox", "mkfs.ext4", "ip", "unshare", "nsenter", "mount")
MISSING = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin") is None]
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts and namespaces need root"),
    pytest.mark.skipif(bool(MISSING), reason=f"missing programs: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def factory(tmp_path_factory):
    """A device as it leaves the factory, and its maker."""
    folder = tmp_path_factory.mktemp("factory")
    maker = TestMaker(folder / "maker")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, "_BALLAST_BYTES", 100_000)
        bundles = [
            build_release(folder, Release(version=v, security_version=1), trust=maker.trust, signers=maker.signers)[0]
            for v in ("1.0.0", "2.0.0")
        ]
    storage = DeviceStorage.provision(
        folder / "device",
        StorageSizes(slot=8 << 20, data=8 << 20),
        maker=maker.trust,
        owner=maker.trust,
        hardware=HARDWARE,
        entropy=SystemEntropy(),
    )
    install_first_image(storage, bundles[0])
    return storage, bundles


@pytest.fixture
def storage(factory, tmp_path) -> DeviceStorage:
    shutil.copytree(factory[0].folder, tmp_path / "device")
    return DeviceStorage(tmp_path / "device")


@pytest.fixture
def netns():
    with Namespace.create(make_unique("tgd")) as space:
        space.run(["ip", "link", "set", "lo", "up"])
        yield space


@pytest.fixture
def board(storage, netns, tmp_path):
    made = Board(storage, netns, tmp_path / "console")
    yield made
    made.power_off()


def fetch(netns: Namespace, *, timeout_s: float = 5.0) -> str:
    script = "import sys,urllib.request as u; print(u.urlopen(sys.argv[1], timeout=2).read().decode())"
    deadline = time.monotonic() + timeout_s
    while True:
        done = netns.run(["/usr/bin/python3", "-I", "-c", script, "http://127.0.0.1:8080/version"], check=False)
        if done.returncode == 0:
            return done.stdout.decode().strip()
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.05)


def loops_of(board: Board) -> set[tuple[str, str]]:
    """Return (device, inode behind it) of every loop device that the running board has mounted."""
    mounts = Path(f"/proc/{board.init_pid()}/mounts").read_text().splitlines()
    names = {line.split()[0] for line in mounts if line.startswith("/dev/loop")}
    return {(name, inode) for name, inode in all_loops() if name in names}


def all_loops() -> set[tuple[str, str]]:
    listed = subprocess.run(
        ["/sbin/losetup", "--list", "--noheadings", "--output", "NAME,BACK-INO"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {(words[0], words[1]) for words in map(str.split, listed.splitlines()) if len(words) == 2}


def is_gone(loops: set[tuple[str, str]], timeout_s: float = 3.0) -> bool:
    """Return whether none of ``loops`` is left; the kernel gives them back a moment after the last mount."""
    deadline = time.monotonic() + timeout_s
    while loops & all_loops():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_boots_serves_and_leaves_nothing_behind(board, storage, netns) -> None:
    mounts = Path("/proc/mounts").read_text()
    started = board.power_on()
    assert (started.slot, started.version) == ("a", "1.0.0")
    assert fetch(netns) == "1.0.0"
    log = board.boot_log()
    assert isinstance(log[0], Began)
    assert isinstance(log[-1], Started)
    assert replay(log).keys() == {4, 8, 9}
    loops, run = loops_of(board), board.run
    assert len(loops) == 3, "operating system, application, data"
    pids = netns.pids()
    assert len(pids) >= 3
    board.power_off()
    assert netns.pids() == []
    assert is_gone(loops)
    assert not run.exists()
    assert Path("/proc/mounts").read_text().count(str(storage.folder)) == mounts.count(str(storage.folder)) == 0
    deadline = time.monotonic() + 5  # whoever inherits the dead takes a moment to reap them
    while alive := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


def test_what_runs_is_confined_to_the_verified_image(board, netns) -> None:
    board.power_on()
    fetch(netns)
    root = Path(f"/proc/{board.init_pid()}/root")
    assert (root / "etc" / "os-release").read_text().endswith("VERSION_ID=1.0.0\n")
    assert not (root / "home").exists()
    for name in ("bin/busybox", "etc/passwd", "apps/service/www/version"):
        with pytest.raises(OSError, match="Read-only"):
            (root / name).open("ab")
    with pytest.raises(OSError, match="Read-only"):
        (root / "sbin" / "planted").touch()
    options = {line.split()[1].rsplit("/root", 1)[-1]: line.split()[3] for line in mounts_inside(board)}
    for flag in ("nodev", "nosuid", "noexec"):
        assert flag in options["/data"].split(",")
    for place in ("", "/apps/service"):
        assert {"ro", "nodev", "nosuid"} <= set(options[place].split(","))


def mounts_inside(board: Board) -> list[str]:
    lines = Path(f"/proc/{board.init_pid()}/mountinfo").read_text().splitlines()
    found = []
    for line in lines:
        words = line.split()
        if words[4].startswith(("/", str(board.run))) and (words[4] == "/" or "/dev/shm" not in words[4]):
            found.append(line)
    return [f"x {line.split()[4] if line.split()[4] != '/' else '/root'} x {line.split()[5]}" for line in found]


def test_the_service_runs_without_privileges(board, netns) -> None:
    board.power_on()
    fetch(netns)
    users = {}
    for pid in netns.pids():
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"httpd" in words:
            users[pid] = Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0]
    assert "65534" in users.values()


def test_a_slot_that_is_overwritten_while_it_runs_changes_nothing(board, storage, netns) -> None:
    """What is mounted is the verified copy: whoever writes to the slot afterwards reaches only the next boot."""
    board.power_on()
    fetch(netns)
    with FileBlockDevice(storage.slot_path("a"), writable=True) as slot:
        slot.write_at(65_536, b"\xff" * (slot.size_bytes - 65_536))
        slot.flush()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert fetch(netns) == "1.0.0"
    root = Path(f"/proc/{board.init_pid()}/root")
    assert len((root / "usr" / "ballast").read_bytes()) == 100_000


@pytest.mark.parametrize(
    ("kind", "stage", "code"),
    [
        (PayloadKind.STAGE2, "stage1", "boot.stage2.corrupt"),
        (PayloadKind.ROOTFS, "stage2", "boot.os.corrupt"),
        (PayloadKind.APPLICATION, "stage2", "boot.application.corrupt"),
    ],
)
def test_flipped_in_the_new_slot_the_old_one_starts(board, storage, netns, factory, kind, stage, code) -> None:
    with storage.opened(writable=True) as parts:
        control = RecordBootControl(parts.state)
        control.boot_attempt("a")
        control.confirm("a")
        control.begin_write("b")
        parts.slots["b"].write_at(0, factory[1][1].read_bytes())
        control.mark_written("b", version="2.0.0", security_version=1)
        control.activate("b", tries=2)
    flip_bit(storage, "b", kind)
    assert board.power_on().version == "1.0.0"
    assert fetch(netns) == "1.0.0"
    assert [(refusal.stage, refusal.slot, refusal.code) for refusal in board.refusals()] == [(stage, "b", code)]
    with storage.opened(writable=False) as parts:
        assert RecordBootControl(parts.state).state().slots["b"].state is SlotState.FAILED


def test_nothing_authentic_nothing_starts(board, storage, netns) -> None:
    flip_bit(storage, "a", PayloadKind.ROOTFS)
    with pytest.raises(Exception, match=r"none-bootable|boot\.os\.corrupt"):
        board.power_on()
    assert not any(isinstance(entry, Started) for entry in board.boot_log())
    board.power_off()
    assert netns.pids() == []


def test_the_stages_exit_codes(storage, tmp_path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tidegate.boot.stage1", "--storage", str(storage.folder), "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "base.storage.missing" in done.stderr) == (4, True), "no run folder"
    run.mkdir()
    flip_bit(storage, "a", PayloadKind.STAGE2)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "boot.slot.none-bootable" in done.stderr) == (3, True)
    (storage.rom / "anchors.cbor").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "boot.device.not-provisioned" in done.stderr) == (4, True)


def test_the_first_process_dies_and_everything_goes(board, netns) -> None:
    board.power_on()
    fetch(netns)
    loops = loops_of(board)
    os.kill(board.init_pid(), signal.SIGKILL)
    deadline = time.monotonic() + 5
    while netns.pids() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert netns.pids() == []
    assert is_gone(loops)


def test_started_and_looked_at_by_the_command_line(storage, netns, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "tidegate.cli.main", "boot", "start", str(storage.folder)]
    command += ["--run", str(run), "--netns", netns.name]
    with (tmp_path / "console").open("wb") as console:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
    try:
        assert fetch(netns, timeout_s=10) == "1.0.0"
        assert main(["boot", "log", str(run)]) == 0
        said = capsys.readouterr().out
        assert "measured  rootfs rootfs" in said
        assert "started   slot a, version 1.0.0" in said
        assert "register 9:" in said
        assert main(["boot", "status", str(storage.folder)]) == 0
        assert "trial" in capsys.readouterr().out
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 5
    while netns.pids() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert netns.pids() == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_refusals_are_listed_by_the_command_line(board, storage, capsys) -> None:
    flip_bit(storage, "a", PayloadKind.APPLICATION)
    with pytest.raises(Exception, match="nothing started"):
        board.power_on()
    assert any(isinstance(entry, Refusal) for entry in board.boot_log())
    assert any(isinstance(entry, Measurement) for entry in board.boot_log())
    assert main(["boot", "log", str(board.run)]) == 0
    assert "REFUSED   slot a" in capsys.readouterr().out
