"""Chapter 6: what is discarded, what is installed, what falls back, and a writer that is killed fifty times.

Touches: the device's storage; processes that are killed.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from tidegate.agent.updates import install_update
from tidegate.base.blockdev import FileBlockDevice
from tidegate.base.errors import TidegateError
from tidegate.boot.chain import choose_slot, verify_system
from tidegate.boot.control import RecordBootControl
from tidegate.boot.slots import SlotState
from tidegate.boot.storage import JOURNAL_OFFSET, DeviceStorage
from tidegate.demo.board import Board
from tidegate.demo.booting import slot_state, wait_for_version
from tidegate.demo.lab import Lab
from tidegate.demo.making import Bench
from tidegate.demo.product import Release, build_release
from tidegate.demo.report import Report, require, wait_until
from tidegate.demo.witness import EventReader, OperatorShell, kind_of
from tidegate.update.journal import UpdateJournal

KILLS = 50
TRIES = 2


def tell_update(report: Report, bench: Bench, board: Board, lab: Lab, reader: EventReader) -> None:
    """Chapter 6: refusals, a good update, a power-cut drill, a broken update."""
    report.chapter("6  Update")
    for title, bundle, code in _bad_bundles(bench):
        with report.step(f"discarded: {title}") as step:
            step.evidence.append(_discarded(board, reader, bundle, code))
    with report.step(f"the writer of version 2.0.0 is killed at {KILLS} random moments") as step:
        board.stop_agent()
        board.power_off()
        step.evidence += kill_writer(board.storage, bench.bundles["2.0.0"], KILLS)
    with report.step("version 2.0.0 is tried, proves healthy, is confirmed") as step:
        started = board.power_on()
        require(started.version == "2.0.0", f"version {started.version} started")
        wait_for_version(lab.device, "2.0.0")
        board.start_agent()
        wait_until(
            lambda: slot_state(board.storage, "b") is SlotState.CONFIRMED, "2.0.0 is not confirmed", timeout_s=10
        )
        step.evidence.append(
            "slot b: version 2.0.0 answers, health probe passed, confirmed; 1.0.0 is below the new floor"
        )


def tell_fallback(
    report: Report, bench: Bench, board: Board, lab: Lab, reader: EventReader, shell: OperatorShell
) -> None:
    """Chapter 6, continued: version 3, whose service is broken."""
    with report.step("version 3.0.0 is installed by the agent while version 2.0.0 serves") as step:
        answer = board.ask({"op": "install-update", "bundle": str(bench.bundles["3.0.0"])})
        require(answer.get("version") == "3.0.0", f"the agent answers {answer}")
        step.evidence.append(f"slot {answer['slot']} written, read back, verified; the next boot tries it")
        wait_for_version(lab.device, "2.0.0")
        board.power_off()
    with report.step("version 3.0.0 is tried, its service is broken, the device falls back by itself") as step:
        started = board.power_on()
        require(started.version == "3.0.0", f"version {started.version} started")
        board.start_agent()
        request = board.run / "reboot-request"
        seconds = wait_until(request.exists, "the agent does not reject 3.0.0", timeout_s=15)
        step.evidence.append(f"health probe failed for {seconds:.1f} s: slot rejected, reboot asked for")
        board.power_off()
        started = board.power_on()
        require(started.version == "2.0.0", f"version {started.version} started")
        wait_for_version(lab.device, "2.0.0")
        board.start_agent()
        shell.serve()
        rolled_back = [event for event in reader.events() if kind_of(event) == "update.rolled-back"]
        require(len(rolled_back) == 1, "the fall-back is not in the event log")
        step.evidence.append(str(rolled_back[0]["message"]))


def _bad_bundles(bench: Bench) -> list[tuple[str, Path, str]]:
    tampered = bench.work / "tampered.tgb"
    raw = bytearray(bench.bundles["2.0.0"].read_bytes())
    raw[len(raw) // 2] ^= 0x01
    tampered.write_bytes(raw)
    older, _ = build_release(
        bench.work,
        Release(version="0.9.0", security_version=1),
        trust=bench.maker.trust,
        signers=bench.maker.signers,
    )
    return [
        ("a tampered bundle", tampered, "image.payload.corrupt"),
        ("a bundle of an unknown maker", bench.bundles["stranger"], "crypto.signature.unknown-key"),
        ("an older bundle", older, "update.version.downgrade"),
    ]


def _discarded(board: Board, reader: EventReader, bundle: Path, code: str) -> str:
    """Offer a bad bundle to the agent; return the evidence that it changed nothing but the event log."""
    before, count = fingerprint(board.storage), reader.count()
    answer: dict[str, Any] = board.ask({"op": "install-update", "bundle": str(bundle)})
    refused = answer.get("error", {}).get("code")
    require(refused == code, f"the agent answers {refused or 'yes'} instead of {code}")
    require(fingerprint(board.storage) == before, "the storage changed")
    reader.wait_for(
        lambda event: kind_of(event) == "update.refused" and event["status_code"] == code,
        "no event tells of it",
        after=count,
        timeout_s=2,
    )
    return f"[{code}]; both slots and the boot state byte for byte as before ({before[:16]}…)"


def fingerprint(storage: DeviceStorage) -> str:
    """Return a digest over both slots and the raw state: all that an update may write to."""
    digest = hashlib.sha256()
    for name in ("a", "b"):
        digest.update(storage.slot_path(name).read_bytes())
    with storage.data_path.open("rb") as data:
        digest.update(data.read(1 << 20))
    return digest.hexdigest()


def kill_writer(storage: DeviceStorage, bundle: Path, kills: int) -> list[str]:
    """Kill the installing process ``kills`` times at random moments; after each the device must boot and go on.

    The writer is a process of its own, killed with SIGKILL. After each kill the first and the second stage's own code
    choose a slot and verify every block of it; a writer that was quicker than its killer starts over from a copy of
    the storage. At the end the update is finished from where the last kill left it.
    """
    chance = random.Random()  # noqa: S311  # moments, not secrets
    pristine = storage.folder.with_name("pristine")
    _copy_parts(storage.folder, pristine)
    duration_s = _timed_install(storage, bundle)
    _copy_parts(pristine, storage.folder)
    done, resumed, booted = 0, 0, {"1.0.0": 0, "2.0.0": 0}
    while done < kills:
        if not _killed_install(storage, bundle, chance.uniform(0, duration_s)):
            _copy_parts(pristine, storage.folder)
            continue
        done += 1
        resumed += _journal_position(storage) > 0
        _finish_on_copy(storage, bundle)
        version = _boot_authentic(storage)
        booted[version] += 1
        if version == "2.0.0":  # killed after the last write: the update is done, and the next trial starts over
            _copy_parts(pristine, storage.folder)
    installed = install_update(storage, bundle, None, tries=TRIES)
    shutil.rmtree(pristine)
    shutil.rmtree(storage.folder.with_name("after-kill"))
    return [
        f"one whole write takes {duration_s * 1000:.0f} ms; {done} kills, {resumed} left a journal to resume from",
        f"after each kill the update finishes on a copy, and an authentic system boots: {booted}",
        f"then the update finishes: resumed at byte {installed.resumed_at:,}, slot {installed.slot} verified whole",
    ]


def _finish_on_copy(storage: DeviceStorage, bundle: Path) -> None:
    """Prove on a copy that the update can be finished from where the kill left it."""
    copy = DeviceStorage(storage.folder.with_name("after-kill"))
    _copy_parts(storage.folder, copy.folder)
    if not copy.rom.exists():
        shutil.copytree(storage.rom, copy.rom)
    installed = install_update(copy, bundle, None, tries=TRIES)
    require(installed.image.manifest.version == "2.0.0", "the update does not finish")


def _timed_install(storage: DeviceStorage, bundle: Path) -> float:
    began_s = time.monotonic()
    pid = _fork_writer(storage, bundle)
    _, status = os.waitpid(pid, 0)
    require(os.waitstatus_to_exitcode(status) == 0, "the undisturbed update failed")
    return time.monotonic() - began_s


def _killed_install(storage: DeviceStorage, bundle: Path, after_s: float) -> bool:
    """Start a writer and kill it ``after_s`` later; return whether it was still writing."""
    pid = _fork_writer(storage, bundle)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    require(code in (0, -signal.SIGKILL), "the writer failed by itself")
    return code == -signal.SIGKILL


def _fork_writer(storage: DeviceStorage, bundle: Path) -> int:
    """Return the process id of a child that installs ``bundle`` and exits with 0, or 1 if that fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            install_update(storage, bundle, None, tries=TRIES)
            status = 0
        except TidegateError as error:
            os.write(2, f"writer: {error.message} [{error.code}]\n".encode())
        finally:
            os._exit(status)
    return pid


def _boot_authentic(storage: DeviceStorage) -> str:
    """Do what both boot stages do, up to the start; return the version that would start."""
    with storage.opened(writable=True) as parts:
        control = RecordBootControl(parts.state)
        slot, image, _ = choose_slot(control, dict(parts.slots), storage.maker_rule(), lambda _: None)
        verify_system(parts.slots[slot], storage.maker_rule(), lambda _: None)
    return image.manifest.version


def _journal_position(storage: DeviceStorage) -> int:
    with FileBlockDevice(storage.data_path) as device:
        progress = UpdateJournal(device, JOURNAL_OFFSET).read()
    return progress.verified_bytes if progress else 0


def _copy_parts(source: Path, target: Path) -> None:
    """Copy slots and data image; the ROM does not change."""
    target.mkdir(exist_ok=True)
    for name in ("slot-a.img", "slot-b.img", "data.img"):
        shutil.copyfile(source / name, target / name)
