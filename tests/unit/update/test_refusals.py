"""A row for everything that must not boot and everything that must not be installed (steps 3 and 6 of the demo).

Each row: the code; the storage byte for byte as before; an event with that code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tidegate.agent.bootreport import plan_boot_events
from tidegate.agent.updates import install_update
from tidegate.base.blockdev import FileBlockDevice
from tidegate.base.clock import SystemEntropy
from tidegate.base.errors import TidegateError
from tidegate.boot import stage2
from tidegate.boot.chain import choose_slot
from tidegate.boot.control import RecordBootControl
from tidegate.boot.log import BootLog
from tidegate.boot.measure import Began
from tidegate.boot.slots import SlotState
from tidegate.boot.storage import DeviceStorage, StorageSizes
from tidegate.crypto.cose import sign_envelope
from tidegate.events.spool import EventLog
from tidegate.factory.provision import install_first_image
from tidegate.image.layout import encode_head
from tidegate.image.manifest import PayloadKind
from tidegate.image.verify import AcceptanceRule, verify_head
from tidegate.testing.maker import TEST_HARDWARE, TestMaker, TestRelease

needs_mkfs = pytest.mark.skipif(
    shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin") is None, reason="mkfs.ext4 (e2fsprogs) is missing"
)
pytestmark = needs_mkfs
SLOT_BYTES = 1 << 20
SPARSE_BYTES = 3 << 30
RUNNING = TestRelease(version="1.5.0", security_version=2)


class Works:
    """The maker, a stranger, and a device that runs 1.5.0 (security version 2) from slot a."""

    def __init__(self, folder: Path) -> None:
        self.maker, self.stranger = TestMaker(folder / "maker"), TestMaker(folder / "stranger")
        self.pristine = DeviceStorage.provision(
            folder / "device",
            StorageSizes(slot=SLOT_BYTES, data=0),
            maker=self.maker.trust,
            owner=self.stranger.trust,
            hardware=TEST_HARDWARE,
            entropy=SystemEntropy(),
        )
        bundle = folder / "first.tgb"
        bundle.write_bytes(self.maker.build(RUNNING))
        install_first_image(self.pristine, bundle)
        with self.pristine.opened(writable=True) as parts:
            control = RecordBootControl(parts.state)
            choose_slot(control, dict(parts.slots), self.pristine.maker_rule(), lambda _: None)
            control.confirm("a")
        self.good = self.maker.build(TestRelease(version="2.0.0", security_version=2))

    def device(self, folder: Path) -> DeviceStorage:
        shutil.copytree(self.pristine.folder, folder)
        return DeviceStorage(folder)

    def offset_in(self, bundle: bytes, kind: PayloadKind, *, tree: bool = False) -> int:
        """Return the place of a byte in the middle of a payload, or in its hash tree."""
        rule = AcceptanceRule(trust=self.maker.trust, hardware=TEST_HARDWARE, security_floor=0)
        image = verify_head(Memory(bundle), rule)
        (payload,) = image.manifest.of_kind(kind)
        extent = image.extent(payload.name)
        return extent.tree_offset + 3 if tree else extent.data_offset + payload.size // 2

    def flipped(self, kind: PayloadKind, *, tree: bool = False) -> bytes:
        return flip(self.good, self.offset_in(self.good, kind, tree=tree))


class Memory:
    def __init__(self, raw: bytes) -> None:
        self._raw, self.size_bytes = raw, len(raw)

    def read_at(self, offset: int, count: int) -> bytes:
        return self._raw[offset : offset + count]


def flip(raw: bytes, offset: int) -> bytes:
    return raw[:offset] + bytes([raw[offset] ^ 0x10]) + raw[offset + 1 :]


@pytest.fixture(scope="module")
def works(tmp_path_factory) -> Works:
    return Works(tmp_path_factory.mktemp("works"))


@pytest.fixture
def events(tmp_path):
    with EventLog(tmp_path / "events", device_id="test", boot_id="boot", signer=None) as log:
        yield log


def read_events(folder: Path) -> list[dict]:
    lines = [line for path in sorted(folder.glob("*.events")) for line in path.read_bytes().splitlines()]
    return [event for event in map(json.loads, lines) if "unmapped" in event]


def kind_of(event: dict) -> str:
    return event["unmapped"]["tidegate"]["kind"]


def slots_of(storage: DeviceStorage) -> dict[str, bytes]:
    return {name: storage.slot_path(name).read_bytes() for name in ("a", "b")}


def everything(storage: DeviceStorage) -> str:
    digest = hashlib.sha256()
    for path in sorted(storage.folder.rglob("*")):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


# -- step 3: what must not boot ---------------------------------------------------------------------------------------

Make = Callable[[Works], bytes]
RELEASE = TestRelease(version="2.0.0", security_version=2)

BOOT: list[tuple[str, Make, str, str]] = [
    ("second stage flipped", lambda w: w.flipped(PayloadKind.STAGE2), "stage1", "boot.stage2.corrupt"),
    (
        "second stage's tree flipped",
        lambda w: w.flipped(PayloadKind.STAGE2, tree=True),
        "stage1",
        "boot.stage2.corrupt",
    ),
    ("OS image flipped", lambda w: w.flipped(PayloadKind.ROOTFS), "stage2", "boot.os.corrupt"),
    ("OS image's tree flipped", lambda w: w.flipped(PayloadKind.ROOTFS, tree=True), "stage2", "boot.os.corrupt"),
    ("application flipped", lambda w: w.flipped(PayloadKind.APPLICATION), "stage2", "boot.application.corrupt"),
    (
        "application's tree flipped",
        lambda w: w.flipped(PayloadKind.APPLICATION, tree=True),
        "stage2",
        "boot.application.corrupt",
    ),
    ("other keys", lambda w: w.stranger.build(RELEASE), "stage1", "crypto.signature.unknown-key"),
    (
        "the classical key only",
        lambda w: w.maker.build(RELEASE, signers=w.maker.signers[:1]),
        "stage1",
        "crypto.signature.missing-class",
    ),
    (
        "the post-quantum key only",
        lambda w: w.maker.build(RELEASE, signers=w.maker.signers[1:]),
        "stage1",
        "crypto.signature.missing-class",
    ),
    (
        "one of ours, one of a stranger",
        lambda w: w.maker.build(RELEASE, signers=[w.maker.signers[0], w.stranger.signers[1]]),
        "stage1",
        "crypto.signature.unknown-key",
    ),
    (
        "older security version",
        lambda w: w.maker.build(TestRelease(version="2.0.0", security_version=1)),
        "stage1",
        "image.version.security-downgrade",
    ),
    (
        "other hardware",
        lambda w: w.maker.build(TestRelease(version="2.0.0", security_version=2, hardware=("other-r1",))),
        "stage1",
        "image.hardware.mismatch",
    ),
    ("a signature flipped", lambda w: flip(w.good, 12 + 3000), "stage1", "crypto.signature.invalid"),
    (
        "signed, but as a policy",
        lambda w: encode_head(sign_envelope("tidegate.policy.v1", b"x", w.maker.signers)) + w.good[65536:],
        "stage1",
        "crypto.envelope.context",
    ),
    (
        "signed by the maker, but no manifest",
        lambda w: encode_head(sign_envelope("tidegate.image.v1", b"\xa0", w.maker.signers)) + w.good[65536:],
        "stage1",
        "image.manifest.malformed",
    ),
    ("something behind the envelope", lambda w: flip(w.good, 65_535), "stage1", "image.layout.malformed"),
    ("an empty slot", lambda _: b"", "stage1", "image.layout.malformed"),
]


@pytest.mark.parametrize(("title", "make", "stage", "code"), BOOT, ids=[row[0] for row in BOOT])
def test_what_must_not_boot(
    works, tmp_path, monkeypatch, events, title: str, make: Make, stage: str, code: str
) -> None:
    storage = works.device(tmp_path / "device")
    put_into_b(storage, make(works))
    before = slots_of(storage)
    run = tmp_path / "run"
    (run / "root").mkdir(parents=True)
    monkeypatch.setattr(stage2, "_own_anchors", lambda: works.maker.trust)
    started = [power_on(storage, run, monkeypatch) for _ in range(2)]
    assert started[-1] == "1.5.0", "the good slot starts instead"
    assert slots_of(storage) == before, "boot writes to no slot"
    with storage.opened(writable=False) as parts:
        state = RecordBootControl(parts.state).state()
    assert state.slots["b"].state is SlotState.FAILED
    assert state.slots["a"].state is SlotState.CONFIRMED
    assert state.security_floor == 2
    for event in plan_boot_events(BootLog(run).read()):
        events.append(event)
    events.close()
    written = read_events(tmp_path / "events")
    refused = [event for event in written if kind_of(event) == "boot.stage.refused"]
    assert [event["status_code"] for event in refused] == [code]
    assert refused[0]["unmapped"]["tidegate"]["data"]["stage"] == stage
    assert sum(kind_of(event) == "boot.fell-back" for event in written) == 1


def put_into_b(storage: DeviceStorage, raw: bytes) -> None:
    """As a thief with the storage in hand would: any bytes, any state."""
    with storage.opened(writable=True) as parts:
        control = RecordBootControl(parts.state)
        control.begin_write("b")
        parts.slots["b"].write_at(0, raw)
        control.mark_written("b", version="9.9.9", security_version=9)
        control.activate("b", tries=3)


def power_on(storage: DeviceStorage, run: Path, monkeypatch) -> str | None:
    """Run both stages in this process, up to the mounts; return the version that would start, if one would."""
    log = BootLog(run)
    log(Began())
    with storage.opened(writable=True) as parts:
        control = RecordBootControl(parts.state)
        rule = storage.maker_rule()
        slot, image, _ = choose_slot(control, dict(parts.slots), rule, log)
        floor = max(rule.security_floor, control.state().security_floor)
    options = {
        "slot": slot,
        "image": storage.slot_path(slot),
        "data": storage.data_path,
        "run": run,
        "hardware": rule.hardware,
        "floor": floor,
        "manifest": image.digest.hex(),
    }
    monkeypatch.setattr(
        sys, "argv", ["stage2", *(str(w) for pair in options.items() for w in (f"--{pair[0]}", pair[1]))]
    )
    mounted = []
    monkeypatch.setattr(stage2, "_mount", lambda manifest, loaded, _: mounted.append((manifest, loaded)))
    monkeypatch.setattr(stage2, "enter_root", lambda *_: None)
    status = stage2.main()
    assert status == (0 if mounted else 3)
    return mounted[0][0].version if mounted else None


def test_a_manifest_swapped_between_the_stages_is_refused(works, tmp_path, monkeypatch) -> None:
    """The second stage insists on the manifest that the first one verified, even if both are the maker's."""
    storage = works.device(tmp_path / "device")
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(stage2, "_own_anchors", lambda: works.maker.trust)
    monkeypatch.setattr(stage2, "_mount", lambda *_: pytest.fail("mounted"))
    options = {"slot": "a", "image": storage.slot_path("a"), "data": storage.data_path, "run": run}
    options |= {"hardware": TEST_HARDWARE, "floor": 0, "manifest": "0" * 64}
    monkeypatch.setattr(
        sys, "argv", ["stage2", *(str(w) for pair in options.items() for w in (f"--{pair[0]}", pair[1]))]
    )
    assert stage2.main() == 3
    (refusal,) = (entry for entry in BootLog(run).read() if hasattr(entry, "code"))
    assert refusal.code == "boot.os.corrupt"


# -- step 6: what must not be installed -------------------------------------------------------------------------------


def sparse(path: Path, head: bytes) -> Path:
    with path.open("wb") as stream:
        stream.write(head)
        stream.truncate(SPARSE_BYTES)
    return path


def saved(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


UPDATE: list[tuple[str, Callable[[Works, Path], Path], str]] = [
    ("tampered payload", lambda w, p: saved(p, w.flipped(PayloadKind.ROOTFS)), "image.payload.corrupt"),
    ("tampered application", lambda w, p: saved(p, w.flipped(PayloadKind.APPLICATION)), "image.payload.corrupt"),
    ("tampered tree", lambda w, p: saved(p, w.flipped(PayloadKind.ROOTFS, tree=True)), "image.payload.tree-corrupt"),
    ("last byte tampered", lambda w, p: saved(p, flip(w.good, len(w.good) - 1)), "image.payload.corrupt"),
    ("tampered signature", lambda w, p: saved(p, flip(w.good, 12 + 3000)), "crypto.signature.invalid"),
    ("unknown maker", lambda w, p: saved(p, w.stranger.build(RELEASE)), "crypto.signature.unknown-key"),
    (
        "one of two keys",
        lambda w, p: saved(p, w.maker.build(RELEASE, signers=w.maker.signers[:1])),
        "crypto.signature.missing-class",
    ),
    (
        "older bundle",
        lambda w, p: saved(p, w.maker.build(TestRelease(version="1.4.9", security_version=2))),
        "update.version.downgrade",
    ),
    ("the running bundle", lambda w, p: saved(p, w.maker.build(RUNNING)), "update.version.downgrade"),
    (
        "newer number, older security version",
        lambda w, p: saved(p, w.maker.build(TestRelease(version="3.0.0", security_version=1))),
        "image.version.security-downgrade",
    ),
    ("truncated by one byte", lambda w, p: saved(p, w.good[:-1]), "image.layout.size"),
    ("truncated behind the head", lambda w, p: saved(p, w.good[:65_536]), "image.layout.size"),
    ("truncated in the head", lambda w, p: saved(p, w.good[:30_000]), "base.input.truncated"),
    ("empty", lambda _, p: saved(p, b""), "base.input.truncated"),
    ("one byte too long", lambda w, p: saved(p, w.good + b"\0"), "image.layout.size"),
    ("3 GiB of nothing", lambda _, p: sparse(p, b""), "image.layout.malformed"),
    ("3 GiB behind a good head", lambda w, p: sparse(p, w.good[:65_536]), "image.layout.size"),
    ("3 GiB behind a good bundle", lambda w, p: sparse(p, w.good), "image.layout.size"),
    (
        "too large for the slot",
        lambda w, p: saved(p, w.maker.build(TestRelease(version="2.0.0", security_version=2, rootfs_bytes=SLOT_BYTES))),
        "update.slot.too-small",
    ),
    (
        "wrong hardware",
        lambda w, p: saved(p, w.maker.build(TestRelease(version="2.0.0", security_version=2, hardware=("x-r1",)))),
        "image.hardware.mismatch",
    ),
    ("no bundle at all", lambda _, p: saved(p, b"#!/bin/sh\n" * 10_000), "image.layout.malformed"),
    ("a missing file", lambda _, p: p, "base.storage.missing"),
    ("a folder", lambda _, p: p.mkdir() or p, "base.storage.failed"),
    ("a pipe that nobody writes to", lambda _, p: os.mkfifo(p) or p, "base.storage.failed"),
    ("a device without an end", lambda _, p: p.symlink_to("/dev/zero") or p, "image.layout.malformed"),
]


@pytest.mark.parametrize(("title", "make", "code"), UPDATE, ids=[row[0] for row in UPDATE])
def test_what_must_not_be_installed(works, tmp_path, events, title: str, make, code: str) -> None:
    storage = works.device(tmp_path / "device")
    before = everything(storage)
    bundle = make(works, tmp_path / "bundle.tgb")
    began_s = time.monotonic()
    with pytest.raises(TidegateError) as caught:
        install_update(storage, bundle, events, tries=2)
    assert caught.value.code == code
    assert time.monotonic() - began_s < 2, "refused early, whatever its size"
    assert everything(storage) == before
    events.close()
    refused = [event for event in read_events(tmp_path / "events") if kind_of(event) == "update.refused"]
    assert [event["status_code"] for event in refused] == [code]


def test_the_good_one_is_installed(works, tmp_path, events) -> None:
    """The rows above are refused for their fault alone."""
    storage = works.device(tmp_path / "device")
    installed = install_update(storage, saved(tmp_path / "good.tgb", works.good), events, tries=2)
    assert (installed.slot, installed.resumed_at) == ("b", 0)
    assert storage.slot_path("a").read_bytes() == slots_of(works.pristine)["a"]
    assert storage.slot_path("b").read_bytes()[: len(works.good)] == works.good
    events.close()
    assert [kind_of(event) for event in read_events(tmp_path / "events")] == ["update.progress"]


def test_a_bundle_that_changes_while_it_is_written_never_becomes_bootable(works, tmp_path) -> None:
    """Verified once, read again: what was swapped in between is caught by the block that is about to be written."""
    storage = works.device(tmp_path / "device")
    bundle = saved(tmp_path / "good.tgb", works.good)
    offset = works.offset_in(works.good, PayloadKind.APPLICATION)

    def swap(step: str, done: int, total: int) -> None:
        with FileBlockDevice(bundle, writable=True) as device:
            device.write_at(offset, b"swapped in by somebody")

    with pytest.raises(TidegateError) as caught:
        install_update(storage, bundle, None, tries=2, observe=swap)
    assert caught.value.code == "image.payload.corrupt"
    with storage.opened(writable=False) as parts:
        state = RecordBootControl(parts.state).state()
    assert state.slots["b"].state is SlotState.WRITING
    assert b"swapped in" not in storage.slot_path("b").read_bytes()
    assert storage.slot_path("a").read_bytes() == slots_of(works.pristine)["a"]
    installed = install_update(storage, saved(bundle, works.good), None, tries=2)
    assert installed.image.manifest.version == "2.0.0"
