"""An update, cut at every single write and flush, with every fate of what was still in the caches.

After each cut: an authentic system boots; what runs was never written to; the update finishes when it is repeated.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tidegate.base.errors import TidegateError
from tidegate.boot.chain import choose_slot, verify_system
from tidegate.boot.control import RecordBootControl
from tidegate.boot.slots import SlotState
from tidegate.boot.storage import JOURNAL_OFFSET
from tidegate.image.manifest import Version
from tidegate.image.verify import AcceptanceRule, verify_image
from tidegate.testing.errors import PowerCut
from tidegate.testing.maker import TEST_HARDWARE, TestMaker, TestRelease
from tidegate.testing.power import Outage, PowerSupply, SimulatedBlockDevice, count_operations, plan_outages
from tidegate.update import installer
from tidegate.update.installer import Target, install_bundle
from tidegate.update.journal import Progress, UpdateJournal

SEEDS = (1, 2, 3)
SLOT_BYTES = 192 << 10
STATE_BYTES = JOURNAL_OFFSET + 8192
HOLDS_AN_IMAGE = (SlotState.WRITTEN, SlotState.PENDING, SlotState.TRIAL, SlotState.CONFIRMED)


@dataclass(frozen=True)
class Bytes:
    """What the storage holds, apart from any device."""

    a: bytes
    b: bytes
    state: bytes


class Bench:
    """One device and its maker; ``start`` is the storage with version 1.0.0 confirmed in slot a and running."""

    def __init__(self, folder) -> None:
        maker = TestMaker(folder)
        self.rule = AcceptanceRule(trust=maker.trust, hardware=TEST_HARDWARE, security_floor=0)
        self.first = maker.build(TestRelease(version="1.0.0", security_version=1))
        self.second = maker.build(TestRelease(version="2.0.0", security_version=2, rootfs_bytes=40_000))
        self.third = maker.build(TestRelease(version="3.0.0", security_version=2, rootfs_bytes=30_000))
        # The idle slot holds an older image, as in life: a head that was not erased would show.
        self.old = maker.build(TestRelease(version="0.9.0", security_version=1, rootfs_bytes=50_000))
        blank = Bytes(a=bytes(SLOT_BYTES), b=self.old.ljust(SLOT_BYTES, b"\xff"), state=bytes(STATE_BYTES))
        storage = Storage(blank, PowerSupply())
        RecordBootControl.provision(storage.state)
        install_bundle(Source(self.first), self.target(storage))
        storage.control.activate("a", tries=3)
        assert self.boot(storage) == "1.0.0"
        storage.control.confirm("a")
        self.start = storage.read_all()
        assert storage.control.state().idle_slot() == "b"

    def target(self, storage: Storage) -> Target:
        control = storage.control
        state = control.state()
        running = state.slots[state.started].version if state.started else ""
        return Target(
            slots=dict(storage.slots),
            control=control,
            journal=UpdateJournal(storage.state, JOURNAL_OFFSET),
            rule=AcceptanceRule(
                trust=self.rule.trust, hardware=self.rule.hardware, security_floor=state.security_floor
            ),
            running=Version.parse(running) if running else None,
        )

    def install(self, storage: Storage, bundle: bytes | None = None) -> int:
        return install_bundle(Source(bundle or self.second), self.target(storage)).resumed_at

    def boot(self, storage: Storage) -> str:
        """Do what both stages do, up to the start of the verified system; return its version."""
        slot, image, _ = choose_slot(storage.control, dict(storage.slots), self.rule, lambda _: None)
        again, _ = verify_system(storage.slots[slot], self.rule, lambda _: None)
        assert again.digest == image.digest
        return image.manifest.version

    def check_states(self, storage: Storage) -> None:
        """A slot whose state says that it holds an image does hold a whole and authentic one."""
        for name, slot in storage.control.state().slots.items():
            if slot.state in HOLDS_AN_IMAGE:
                assert verify_image(storage.slots[name], self.rule).manifest.version == slot.version


class Storage:
    """Both slots and the state partition on one supply."""

    def __init__(self, content: Bytes, supply: PowerSupply) -> None:
        self.slots = {name: SimulatedBlockDevice(getattr(content, name), supply) for name in ("a", "b")}
        self.state = SimulatedBlockDevice(content.state, supply)

    @property
    def control(self) -> RecordBootControl:
        return RecordBootControl(self.state)

    def read_all(self) -> Bytes:
        parts = {name: device.read_at(0, device.size_bytes) for name, device in self.slots.items()}
        return Bytes(**parts, state=self.state.read_at(0, self.state.size_bytes))

    def after(self, outage: Outage) -> Bytes:
        chance = random.Random(outage.seed * 1_000_003 + outage.at)
        restarted = {
            name: device.restart(PowerSupply(), outage.fate, chance)
            for name, device in (*self.slots.items(), ("state", self.state))
        }
        return Bytes(**{name: device.durable() for name, device in restarted.items()})


class Source:
    """A bundle in memory."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.size_bytes = len(raw)

    def read_at(self, offset: int, count: int) -> bytes:
        assert offset + count <= len(self._raw)
        return self._raw[offset : offset + count]


def drill(
    start: Bytes, operation: Callable[[Storage], object], outages: Iterator[Outage] | None = None
) -> Iterator[tuple[Outage, Bytes]]:
    """Cut ``operation`` everywhere; yield each outage with the storage that the next boot finds."""
    if outages is None:
        outages = plan_outages(count_operations(lambda supply: operation(Storage(start, supply))), seeds=SEEDS)
    at, storage = 0, None
    for outage in outages:
        if outage.at != at or storage is None:  # the fates of one cut share its run
            at, storage = outage.at, Storage(start, PowerSupply(cut_at=outage.at))
            with pytest.raises(PowerCut):
                operation(storage)
        yield outage, storage.after(outage)


def say(text: str) -> None:
    print(text)  # noqa: T201  # how much was tried: pytest shows it with -s


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("maker"))


@pytest.fixture(autouse=True)
def _journal_often(monkeypatch) -> None:
    """Small images, so a small distance: the journal moves with nearly every chunk."""
    monkeypatch.setattr(installer, "JOURNAL_EVERY_BYTES", 8192)
    monkeypatch.setattr("tidegate.image.verify._CHUNK_BLOCKS", 1)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_install_cut_at_every_write(bench: Bench) -> None:
    cuts, points, resumed = 0, set(), 0
    for outage, content in drill(bench.start, bench.install):
        cuts += 1
        points.add(outage.at)
        storage = Storage(content, PowerSupply())
        bench.check_states(storage)
        assert bench.boot(storage) == "1.0.0", outage  # nothing was activated: the old system, whatever happened
        resumed += bench.install(storage) > 0
        assert content.a == bench.start.a, outage
        assert storage.slots["a"].writes == 0, outage
        assert verify_image(storage.slots["b"], bench.rule).manifest.version == "2.0.0"
        assert storage.control.state().slots["b"].state is SlotState.WRITTEN
        storage.control.activate("b", tries=1)
        assert bench.boot(storage) == "2.0.0", outage
    say(f"install: {len(points)} cut points, {cuts} outages, {resumed} resumed from the journal")
    assert len(points) > 40
    assert resumed > cuts / 2


def test_resume_starts_behind_what_was_durable(bench: Bench) -> None:
    """The journal is worth its writes: the later the cut, the less is written again, and never more than one step."""
    positions = {}
    for outage, content in drill(bench.start, bench.install):
        storage = Storage(content, PowerSupply())
        progress = UpdateJournal(storage.state, JOURNAL_OFFSET).read()
        position = progress.verified_bytes if progress else 0
        assert content.b[4096:position][65536 - 4096 :] == bench.second[65536:position], outage
        positions.setdefault(outage.at, []).append(position)
    lowest = [min(found) for _, found in sorted(positions.items())]
    assert max(lowest) == len(bench.second)
    assert sorted(set(lowest))[1] == 65_536


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_cut_again_while_resuming(bench: Bench) -> None:
    """A second cut, during the resumed install; both cuts and both fates of the caches by chance, all seeds fixed."""
    first = list(drill(bench.start, bench.install))
    chance = random.Random(20)
    cuts = 0
    for outage, content in chance.sample(first, 120):
        operations = count_operations(lambda supply, content=content: bench.install(Storage(content, supply)))
        outages = sorted(chance.sample(list(plan_outages(operations, seeds=SEEDS)), 5), key=lambda cut: cut.at)
        for second, again in drill(content, bench.install, iter(outages)):
            cuts += 1
            storage = Storage(again, PowerSupply())
            bench.check_states(storage)
            assert bench.boot(storage) == "1.0.0", (outage, second)
            bench.install(storage)
            assert storage.read_all().a == bench.start.a
            assert verify_image(storage.slots["b"], bench.rule).manifest.version == "2.0.0", (outage, second)
    say(f"cut again while resuming: {cuts} pairs of outages")
    assert cuts == 600


def test_another_bundle_after_a_cut(bench: Bench) -> None:
    """The journal of one image never lets another one skip anything, in either order and with a cut in both."""
    cuts = 0
    for outage, content in drill(bench.start, bench.install):
        if outage.at % 12:
            continue
        operations = count_operations(
            lambda supply, content=content: bench.install(Storage(content, supply), bench.third)
        )
        outages = list(plan_outages(operations, seeds=(outage.at,)))[:: operations // 2]
        for second, again in drill(content, lambda storage: bench.install(storage, bench.third), iter(outages)):
            cuts += 1
            storage = Storage(again, PowerSupply())
            bench.check_states(storage)
            assert bench.boot(storage) == "1.0.0", (outage, second)
            bench.install(storage)
            assert verify_image(storage.slots["b"], bench.rule).manifest.version == "2.0.0", (outage, second)
    say(f"another bundle after a cut: {cuts} pairs of outages")
    assert cuts > 80


def test_activation_trial_and_confirmation_cut_at_every_write(bench: Bench) -> None:
    ready = Storage(bench.start, PowerSupply())
    bench.install(ready)
    content = ready.read_all()

    def live(storage: Storage) -> None:
        storage.control.activate("b", tries=3)
        assert bench.boot(storage) == "2.0.0"
        storage.control.confirm("b")

    cuts, booted = 0, set()
    for outage, after in drill(content, live):
        cuts += 1
        storage = Storage(after, PowerSupply())
        bench.check_states(storage)
        version = bench.boot(storage)
        booted.add(version)
        state = storage.control.state()
        if version == "1.0.0":  # the activation had not become durable: it can be repeated
            assert state.slots["b"].state is SlotState.WRITTEN, outage
            live(storage)
        elif state.slots["b"].state is SlotState.TRIAL:
            storage.control.confirm("b")
        final = storage.control.state()
        assert final.slots["b"].state is SlotState.CONFIRMED, outage
        assert final.preferred == "b"
        assert final.slots["a"].state is SlotState.FAILED  # 1.0.0 has a lower security version
        assert final.security_floor == 2
        assert bench.boot(storage) == "2.0.0"
    say(f"activation, trial, confirmation: {cuts} outages, booted {sorted(booted)}")
    assert booted == {"1.0.0", "2.0.0"}


def test_trial_that_is_never_confirmed_falls_back_whatever_is_cut(bench: Bench) -> None:
    """A version that hangs: the power is cut at every write of its boots, and yet the tries run out."""
    ready = Storage(bench.start, PowerSupply())
    bench.install(ready)
    ready.control.activate("b", tries=2)
    for outage, after in drill(ready.read_all(), bench.boot):
        storage = Storage(after, PowerSupply())
        versions = [bench.boot(storage) for _ in range(4)]
        assert versions.count("2.0.0") <= 2, outage
        assert versions[-1] == "1.0.0", outage
        assert storage.control.state().slots["b"].state is SlotState.FAILED


def test_factory_image_cut_at_every_write(bench: Bench) -> None:
    """Nothing to fall back to yet: the first image of a blank device is finished by repeating the command."""
    blank = Storage(Bytes(a=bytes(SLOT_BYTES), b=bytes(SLOT_BYTES), state=bytes(STATE_BYTES)), PowerSupply())
    RecordBootControl.provision(blank.state)
    cuts = 0
    for outage, after in drill(blank.read_all(), lambda storage: bench.install(storage, bench.first)):
        cuts += 1
        storage = Storage(after, PowerSupply())
        bench.check_states(storage)
        with pytest.raises(TidegateError) as caught:
            bench.boot(storage)
        assert caught.value.code == "boot.slot.none-bootable", outage
        bench.install(storage, bench.first)
        storage.control.activate("a", tries=3)
        assert bench.boot(storage) == "1.0.0", outage
    say(f"factory image: {cuts} outages")


@pytest.mark.parametrize("defect", ["journal ahead of its data", "slot stays bootable", "written before it is whole"])
def test_the_drill_notices(bench: Bench, monkeypatch, defect: str) -> None:
    """The same drill over an installer with a defect fails: this suite would see it come."""
    if defect == "journal ahead of its data":

        def hasty(writer, end: int) -> None:
            writer._journal.write(Progress(image_digest=writer._image.digest, slot="b", verified_bytes=end))
            writer._slot.flush()

        monkeypatch.setattr(installer._Writer, "_make_durable", hasty)
    elif defect == "slot stays bootable":
        monkeypatch.setattr(RecordBootControl, "begin_write", lambda *_: None)
    else:
        monkeypatch.setattr(SimulatedBlockDevice, "flush", _flush_unless_slot(SimulatedBlockDevice.flush))
    with pytest.raises((AssertionError, TidegateError)):
        test_install_cut_at_every_write(bench)


def _flush_unless_slot(flush):
    def lazily(device) -> None:
        if device.size_bytes == SLOT_BYTES:
            device._supply.spend()  # an fsync that a file system forgot
        else:
            flush(device)

    return lazily
