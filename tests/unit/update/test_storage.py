"""Updates on storage that is full, read-only, locked, or was never provisioned."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tidegate.agent.updates import install_update, opened_target, running_version, settle_trial
from tidegate.base.clock import SystemEntropy
from tidegate.base.errors import TidegateError
from tidegate.boot.chain import choose_slot, verify_system
from tidegate.boot.control import RecordBootControl
from tidegate.boot.slots import SlotState
from tidegate.boot.storage import STATE_BYTES, DeviceStorage, StorageSizes
from tidegate.cli.main import main
from tidegate.events.spool import EventLog
from tidegate.factory.provision import install_first_image
from tidegate.image.verify import verify_image
from tidegate.testing.maker import TEST_HARDWARE, TestMaker, TestRelease

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
pytestmark = pytest.mark.skipif(
    shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") is None, reason="mkfs.ext4 (e2fsprogs) is missing"
)
SLOT_BYTES = 6 << 20
IMAGE_BYTES = 4 << 20


@pytest.fixture(scope="module")
def maker(tmp_path_factory) -> TestMaker:
    return TestMaker(tmp_path_factory.mktemp("maker"))


@pytest.fixture(scope="module")
def bundle(maker, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "second.tgb"
    path.write_bytes(maker.build(TestRelease(version="2.0.0", rootfs_bytes=IMAGE_BYTES)))
    return path


@pytest.fixture
def make_device(maker, tmp_path):
    """Provision a device in a folder, 1.0.0 confirmed in slot a, slot b a hole of six megabytes."""

    def make(folder: Path) -> DeviceStorage:
        storage = DeviceStorage.provision(
            folder,
            StorageSizes(slot=SLOT_BYTES, data=0),
            maker=maker.trust,
            owner=maker.trust,
            hardware=TEST_HARDWARE,
            entropy=SystemEntropy(),
        )
        first = tmp_path / "first.tgb"
        first.write_bytes(maker.build(TestRelease(version="1.0.0")))
        install_first_image(storage, first)
        assert boot(storage) == "1.0.0"
        with storage.opened(writable=True) as parts:
            RecordBootControl(parts.state).confirm("a")
        return storage

    return make


def boot(storage: DeviceStorage) -> str:
    with storage.opened(writable=True) as parts:
        control = RecordBootControl(parts.state)
        slot, image, _ = choose_slot(control, dict(parts.slots), storage.maker_rule(), lambda _: None)
        verify_system(parts.slots[slot], storage.maker_rule(), lambda _: None)
    return image.manifest.version


def state_of(storage: DeviceStorage, slot: str) -> SlotState:
    with storage.opened(writable=False) as parts:
        return RecordBootControl(parts.state).state().slots[slot].state


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own in memory, unmounted at the end whatever happens."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["/usr/bin/umount", str(folder)], check=True)


def fill(folder: Path, *, leave_bytes: int) -> Path:
    path = folder / "filler"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_bsize
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, free - leave_bytes)
    return path


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("leave_bytes", [0, 8192, 65_536, 1_500_000, 3_000_000])
def test_a_full_disk_while_an_update_is_written(make_device, small_disk, bundle, leave_bytes: int) -> None:
    storage = make_device(small_disk / "device")
    running = storage.slot_path("a").read_bytes()
    filler = fill(small_disk, leave_bytes=leave_bytes)
    for _ in range(2):
        with pytest.raises(TidegateError) as caught:
            install_update(storage, bundle, None, tries=2)
        assert caught.value.code == "base.storage.full"
        assert storage.slot_path("a").read_bytes() == running
        assert state_of(storage, "b") is SlotState.WRITING
        assert boot(storage) == "1.0.0"
    filler.unlink()
    installed = install_update(storage, bundle, None, tries=2)
    assert (installed.resumed_at > 1 << 20) == (leave_bytes > 1 << 20), "goes on where the journal says"
    assert storage.slot_path("a").read_bytes() == running
    assert boot(storage) == "2.0.0"


@pytest.mark.root
@needs_root
def test_an_event_log_on_the_full_disk_does_not_hide_why_a_bundle_was_refused(make_device, small_disk, maker) -> None:
    storage = make_device(small_disk / "device")
    bad = small_disk / "bad.tgb"
    bad.write_bytes(b"no bundle" * 10_000)
    with EventLog(small_disk / "events", device_id="test", boot_id="boot", signer=None) as events:
        filler = fill(small_disk, leave_bytes=0)
        for _ in range(40):  # until the log's own last block is full
            with pytest.raises(TidegateError) as caught:
                install_update(storage, bad, events, tries=2)
            assert caught.value.code == "image.layout.malformed"
        filler.unlink()


@pytest.mark.root
@needs_root
def test_read_only_storage(make_device, small_disk, bundle) -> None:
    storage = make_device(small_disk / "device")
    subprocess.run(["/usr/bin/mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(TidegateError) as caught:
        install_update(storage, bundle, None, tries=2)
    assert caught.value.code == "base.storage.failed"
    assert state_of(storage, "a") is SlotState.CONFIRMED


def test_one_update_at_a_time(make_device, tmp_path, bundle, capsys) -> None:
    storage = make_device(tmp_path / "device")
    before = storage.slot_path("b").read_bytes()
    with opened_target(storage):
        with pytest.raises(TidegateError) as caught:
            install_update(storage, bundle, None, tries=2)
        assert caught.value.code == "update.busy"
        assert main(["update", "install", str(bundle), "--storage", str(storage.folder)]) == 4
        assert "update.busy" in capsys.readouterr().err
    assert storage.slot_path("b").read_bytes() == before
    assert install_update(storage, bundle, None, tries=2).slot == "b"


def test_the_lock_goes_with_a_killed_writer(make_device, tmp_path, bundle) -> None:
    storage = make_device(tmp_path / "device")
    child = os.fork()
    if child == 0:
        with opened_target(storage):
            os.kill(os.getpid(), 9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    assert install_update(storage, bundle, None, tries=2).slot == "b"


def test_storage_that_was_never_provisioned(tmp_path, bundle) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(TidegateError) as caught:
            install_update(DeviceStorage(folder), bundle, None, tries=2)
        assert caught.value.code == "boot.device.not-provisioned"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gone", ["rom/anchors.cbor", "rom/hardware", "slot-b.img", "data.img"])
def test_a_missing_part_is_named_and_leaves_nothing_open(make_device, tmp_path, bundle, gone: str) -> None:
    storage = make_device(tmp_path / "device")
    (storage.folder / gone).unlink()
    opened = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(TidegateError) as caught:
        install_update(storage, bundle, None, tries=2)
    assert caught.value.code in {"boot.device.not-provisioned", "base.storage.missing"}
    assert gone.rsplit("/", 1)[-1] in caught.value.message or gone == "data.img"
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_state_that_was_wiped(make_device, tmp_path, bundle) -> None:
    storage = make_device(tmp_path / "device")
    with storage.data_path.open("r+b") as stream:
        stream.write(bytes(STATE_BYTES))
    with pytest.raises(TidegateError) as caught:
        install_update(storage, bundle, None, tries=2)
    assert caught.value.code == "boot.device.not-provisioned"


def test_provisioning_does_not_replace_a_device(make_device, tmp_path, maker) -> None:
    storage = make_device(tmp_path / "device")
    before = {path: path.read_bytes() for path in storage.folder.rglob("*") if path.is_file()}
    with pytest.raises(TidegateError) as caught:
        make_device(storage.folder)
    assert caught.value.code == "base.storage.failed"
    assert {path: path.read_bytes() for path in storage.folder.rglob("*") if path.is_file()} == before


def test_the_rom_is_readable_and_nothing_else(make_device, tmp_path) -> None:
    storage = make_device(tmp_path / "device")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (storage.rom, *storage.rom.iterdir())}
    assert modes.pop("device-secret") == "0o400"
    assert modes.pop("rom") == "0o500"
    assert set(modes.values()) == {"0o444"}


@pytest.mark.root
@needs_root
def test_provisioning_on_a_full_disk_leaves_nothing_half_made(make_device, small_disk) -> None:
    filler = fill(small_disk, leave_bytes=12_288)
    with pytest.raises(TidegateError) as caught:
        make_device(small_disk / "device")
    assert caught.value.code in {"base.storage.full", "base.program.failed"}
    filler.unlink()
    make_device(small_disk / "device")  # the same command, once there is room


# -- the trial --------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_trial(make_device, tmp_path, bundle) -> DeviceStorage:
    storage = make_device(tmp_path / "device")
    install_update(storage, bundle, None, tries=2)
    assert boot(storage) == "2.0.0"
    return storage


@pytest.fixture
def events(tmp_path):
    with EventLog(tmp_path / "events", device_id="test", boot_id="boot", signer=None) as log:
        yield log


def test_a_healthy_trial_is_confirmed(on_trial, events) -> None:
    assert running_version(on_trial) == "2.0.0"
    assert settle_trial(on_trial, None, events) is False
    assert state_of(on_trial, "b") is SlotState.CONFIRMED
    assert settle_trial(on_trial, "too late", events) is False, "a confirmed system is on no trial"
    assert boot(on_trial) == "2.0.0"


def test_an_unhealthy_trial_is_rejected_and_its_fall_back_is_safe_until_the_reboot(on_trial, events, maker) -> None:
    fall_back = on_trial.slot_path("a").read_bytes()
    assert settle_trial(on_trial, "port 8080: no answer", events) is True
    third = on_trial.folder / "third.tgb"
    third.write_bytes(maker.build(TestRelease(version="3.0.0")))
    with pytest.raises(TidegateError) as caught:  # the operator's quick correction comes before the reboot
        install_update(on_trial, third, events, tries=2)
    assert caught.value.code == "boot.slot.trial-unconfirmed"
    assert on_trial.slot_path("a").read_bytes() == fall_back
    assert boot(on_trial) == "1.0.0"
    assert install_update(on_trial, third, events, tries=2).slot == "b"


def test_no_update_over_the_fall_back_of_a_trial(on_trial, maker, tmp_path) -> None:
    third = tmp_path / "third.tgb"
    third.write_bytes(maker.build(TestRelease(version="3.0.0")))
    with pytest.raises(TidegateError) as caught:
        install_update(on_trial, third, None, tries=2)
    assert caught.value.code == "boot.slot.trial-unconfirmed"
    with on_trial.opened(writable=False) as parts:
        assert verify_image(parts.slots["a"], on_trial.maker_rule()).manifest.version == "1.0.0"


def test_confirm_and_reject_by_hand(on_trial, capsys) -> None:
    where = ["--storage", str(on_trial.folder)]
    assert main(["update", "--json", "confirm", *where]) == 0
    assert '"state": "confirmed"' in capsys.readouterr().out
    assert main(["update", "reject", *where]) == 2, "a confirmed system is not rejected"
    assert "boot.slot.transition" in capsys.readouterr().err
    assert main(["boot", "--json", "audit", str(on_trial.folder)]) == 0
    assert '"b"' in capsys.readouterr().out


def test_audit_names_what_is_wrong_and_changes_nothing(on_trial, capsys) -> None:
    with on_trial.opened(writable=True) as parts:
        parts.slots["b"].write_at(80_000, b"x")
    before = [path.read_bytes() for path in sorted(on_trial.folder.glob("*.img"))]
    assert main(["boot", "audit", str(on_trial.folder)]) == 0
    said = capsys.readouterr().out
    assert "image.payload" in said
    assert "would boot: a" in said
    assert [path.read_bytes() for path in sorted(on_trial.folder.glob("*.img"))] == before
    with on_trial.opened(writable=True) as parts:
        parts.slots["a"].write_at(0, b"x")
    assert main(["boot", "audit", str(on_trial.folder)]) == 1
    assert "would boot: nothing" in capsys.readouterr().out


def test_check_writes_nothing(make_device, tmp_path, bundle, capsys) -> None:
    storage = make_device(tmp_path / "device")
    before = [path.read_bytes() for path in sorted(storage.folder.glob("*.img"))]
    assert main(["update", "check", str(bundle), "--storage", str(storage.folder)]) == 0
    assert "2.0.0" in capsys.readouterr().out
    assert [path.read_bytes() for path in sorted(storage.folder.glob("*.img"))] == before


def test_status_tells_slots_and_floor(make_device, tmp_path, capsys) -> None:
    storage = make_device(tmp_path / "device")
    assert main(["boot", "status", str(storage.folder)]) == 0
    said = capsys.readouterr().out
    assert "confirmed" in said
    assert "floor: 1" in said
