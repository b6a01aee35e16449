"""Chapter 3: the device boots, and everything that is not the maker's is refused.

Touches: the device's storage, loop mounts inside the device's namespaces.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.blockdev import FileBlockDevice
from tidegate.boot.control import RecordBootControl
from tidegate.boot.measure import Measurement, Refusal, Started, replay
from tidegate.boot.slots import SlotState
from tidegate.boot.storage import DeviceStorage
from tidegate.demo.board import Board
from tidegate.demo.lab import DEVICE_ADDRESS, Lab
from tidegate.demo.making import Bench, create_keys
from tidegate.demo.product import SERVICE_PORT, Release, build_release
from tidegate.demo.report import Report, require, wait_until
from tidegate.demo.witness import EventReader, kind_of
from tidegate.image.layout import plan_extents
from tidegate.image.manifest import PayloadKind
from tidegate.image.verify import verify_head
from tidegate.testing.netns import Namespace

SERVICE_TIMEOUT_S = 5.0
VERSION_URL = f"http://{DEVICE_ADDRESS}:{SERVICE_PORT}/version"


def fetch_version(client: Namespace, *, timeout_s: float = 2.0) -> str | None:
    """Return what the device's service answers to ``client``, or None if it does not answer."""
    script = (
        "import sys, urllib.request\n"
        "opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))\n"
        "print(opener.open(sys.argv[1], timeout=float(sys.argv[2])).read().decode())"
    )
    done = client.run(["python3", "-I", "-c", script, VERSION_URL, str(timeout_s)], check=False)
    return done.stdout.decode().strip() or None if done.returncode == 0 else None


def wait_for_version(client: Namespace, version: str) -> float:
    """Return the seconds until the service answers with ``version``."""
    return wait_until(
        lambda: fetch_version(client) == version, f"the service does not say {version}", timeout_s=SERVICE_TIMEOUT_S
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Something that must not boot, the code that says why, and the way to get it into a slot."""

    title: str
    code: str
    bundle: Path
    flip: PayloadKind | None = None


def tell_boot(report: Report, bench: Bench, board: Board, lab: Lab, reader: EventReader) -> None:
    """Chapter 3: one good boot; the refusals; each time the fall-back to the good slot, reported as events."""
    report.chapter("3  Boot")
    with report.step("first stage → second stage → operating system → application") as step:
        started = board.power_on()
        seconds = wait_for_version(lab.device, started.version)
        step.evidence.append(f"slot {started.slot}: version {started.version} answers {seconds:.1f} s after its start")
        log = board.boot_log()
        step.evidence += [
            f"{entry.stage} measured {entry.what:<22} {entry.digest[:16]}… into register {entry.register}"
            for entry in log
            if isinstance(entry, Measurement)
        ]
        rom = board.storage.rom / "anchors.cbor"
        written = subprocess.run(board.inside(["sh", "-c", f"echo x >> {rom}"]), capture_output=True, check=False)
        require(written.returncode != 0, "the ROM can be written from the device")
        step.evidence.append("the ROM is read-only on the device, for root too")
        step.evidence.append(f"the log replays to registers {', '.join(map(str, replay(log)))}")
    with report.step("the agent proves the new system healthy and confirms its slot") as step:
        board.start_agent()
        wait_until(
            lambda: slot_state(board.storage, "a") is SlotState.CONFIRMED, "slot a is not confirmed", timeout_s=10
        )
        board.stop_agent()
        board.power_off()
        with board.storage.opened(writable=False) as parts:
            floor = RecordBootControl(parts.state).state().security_floor
        step.evidence.append(f"slot a confirmed; security floor {floor}")
    for attempt in plan_attempts(bench):
        with report.step(f"refused: {attempt.title}") as step:
            refusal, started = refused_boot(board, attempt)
            wait_for_version(lab.device, started.version)
            board.report_boot()
            codes = [event.get("status_code") for event in reader.events() if kind_of(event) == "boot.stage.refused"]
            require(codes[-1:] == [attempt.code], f"the event log ends with refusals {codes[-1:]}")
            step.evidence.append(f"{refusal.stage}: {refusal.message} [{refusal.code}]")
            step.evidence.append(f"slot {started.slot}, version {started.version}, started instead; event written")
            board.power_off()


def plan_attempts(bench: Bench) -> list[Attempt]:
    """Return everything that must not boot."""
    stranger = create_keys(bench.work / "stranger-keys")
    maker = bench.maker
    good = bench.bundles["2.0.0"]
    release = Release(version="1.0.1", security_version=1)
    old = Release(version="1.0.1", security_version=0)
    others, _ = build_release(bench.work, release, trust=maker.trust, signers=stranger.signers, name="stranger.tgb")
    half, _ = build_release(bench.work, release, trust=maker.trust, signers=maker.signers[:1], name="half.tgb")
    older, _ = build_release(bench.work, old, trust=maker.trust, signers=maker.signers, name="older.tgb")
    bench.bundles.update({"stranger": others, "half": half, "older": older})
    return [
        Attempt(
            title="a flipped bit in the second stage", code="boot.stage2.corrupt", bundle=good, flip=PayloadKind.STAGE2
        ),
        Attempt(title="a flipped bit in the OS image", code="boot.os.corrupt", bundle=good, flip=PayloadKind.ROOTFS),
        Attempt(
            title="a flipped bit in an application",
            code="boot.application.corrupt",
            bundle=good,
            flip=PayloadKind.APPLICATION,
        ),
        Attempt(title="a manifest signed by other keys", code="crypto.signature.unknown-key", bundle=others),
        Attempt(
            title="a manifest signed by one of the two keys only", code="crypto.signature.missing-class", bundle=half
        ),
        Attempt(title="an older security version", code="image.version.security-downgrade", bundle=older),
    ]


def refused_boot(board: Board, attempt: Attempt) -> tuple[Refusal, Started]:
    """Put the attempt into slot b as a thief would, switch on; return the refusal and what started instead."""
    raw = attempt.bundle.read_bytes()
    with board.storage.opened(writable=True) as parts:
        control = RecordBootControl(parts.state)
        control.begin_write("b")
        parts.slots["b"].write_at(0, raw)
        parts.slots["b"].flush()
        control.mark_written("b", version="9.9.9", security_version=9)
        control.activate("b", tries=1)
    if attempt.flip is not None:
        flip_bit(board.storage, "b", attempt.flip)
    started = board.power_on()
    refusals = board.refusals()
    require(len(refusals) == 1 and refusals[0].slot == "b", "slot b was not refused")
    require(refusals[0].code == attempt.code, f"refused as {refusals[0].code}, not as {attempt.code}")
    require(started.slot == "a", f"slot {started.slot} started")
    require(slot_state(board.storage, "b") is SlotState.FAILED, "slot b is not marked as failed")
    return refusals[0], started


def slot_state(storage: DeviceStorage, name: str) -> SlotState:
    """Return the state of one slot."""
    with storage.opened(writable=False) as parts:
        return RecordBootControl(parts.state).state().slots[name].state


def flip_bit(storage: DeviceStorage, slot: str, kind: PayloadKind) -> None:
    """Flip one bit in the middle of the first payload of ``kind`` in ``slot``."""
    with FileBlockDevice(storage.slot_path(slot), writable=True) as device:
        manifest = verify_head(device, storage.maker_rule()).manifest
        extent = next(extent for extent in plan_extents(manifest) if extent.payload.kind is kind)
        offset = extent.data_offset + extent.payload.size // 2
        device.write_at(offset, bytes([device.read_at(offset, 1)[0] ^ 0x10]))
        device.flush()
