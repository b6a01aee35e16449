"""The boot state, cut at every write of every step: the old state or the new one, never a third, never none."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tidegate.base.errors import TidegateError
from tidegate.boot.control import RecordBootControl
from tidegate.boot.slots import BootState, SlotState, boot_order
from tidegate.boot.storage import JOURNAL_OFFSET
from tidegate.testing.errors import PowerCut
from tidegate.testing.power import CacheFate, Outage, PowerSupply, SimulatedBlockDevice, count_operations, plan_outages
from tidegate.update.journal import Progress, UpdateJournal

SIZE_BYTES = JOURNAL_OFFSET + 8192
Step = Callable[[RecordBootControl], object]


def boot(control: RecordBootControl) -> None:
    control.settle()
    order = boot_order(control.state())
    if order:
        control.boot_attempt(order[0])


STEPS: dict[str, Step] = {
    "begin-write": lambda control: control.begin_write(control.idle_slot()),
    "written": lambda control: control.mark_written(control.idle_slot(), version="2.0.0", security_version=2),
    "activate": lambda control: control.activate(control.idle_slot(), tries=2),
    "boot": boot,
    "confirm": lambda control: control.confirm(control.state().started or "a"),
    "reject": lambda control: control.reject(control.state().started or "a"),
    "refuse": lambda control: control.refuse(boot_order(control.state())[0]),
    "settle": lambda control: control.settle(),
}
# The life of a device, up to the step that is cut; each row is one reachable state.
LIVES: dict[str, tuple[str, ...]] = {
    "blank": (),
    "factory image being written": ("begin-write",),
    "factory image pending": ("begin-write", "written", "activate"),
    "factory image on trial": ("begin-write", "written", "activate", "boot"),
    "running": ("begin-write", "written", "activate", "boot", "confirm"),
    "update being written": ("begin-write", "written", "activate", "boot", "confirm", "begin-write"),
    "update written": ("begin-write", "written", "activate", "boot", "confirm", "begin-write", "written"),
    "update on trial": (
        *("begin-write", "written", "activate", "boot", "confirm"),
        *("begin-write", "written", "activate", "boot"),
    ),
    "update tried for the last time": (
        *("begin-write", "written", "activate", "boot", "confirm"),
        *("begin-write", "written", "activate", "boot", "boot"),
    ),
}


def lived(names: tuple[str, ...]) -> bytes:
    device = SimulatedBlockDevice(bytes(SIZE_BYTES), PowerSupply())
    control = RecordBootControl.provision(device)
    for name in names:
        STEPS[name](control)
    return device.durable()


def after_cut(content: bytes, step: Step, outage: Outage) -> bytes:
    device = SimulatedBlockDevice(content, PowerSupply(cut_at=outage.at))
    with pytest.raises(PowerCut):
        step(RecordBootControl(device))
    return device.restart(PowerSupply(), outage.fate, random.Random(outage.seed)).durable()


def state_in(content: bytes) -> BootState:
    return RecordBootControl(SimulatedBlockDevice(content, PowerSupply())).state()


@pytest.mark.parametrize("life", LIVES)
def test_every_step_is_old_or_new(life: str) -> None:
    content = lived(LIVES[life])
    before = state_in(content)
    cuts = 0
    for name, step in STEPS.items():
        device = SimulatedBlockDevice(content, PowerSupply())
        try:
            step(RecordBootControl(device))
        except (TidegateError, IndexError):
            assert device.read_at(0, SIZE_BYTES) == content, f"{name} is not possible, and yet something was written"
            continue
        whole = device.read_at(0, SIZE_BYTES)
        states = [before, state_in(whole)]
        if name == "boot":  # two durable steps: settle, then count the attempt
            settled = SimulatedBlockDevice(content, PowerSupply())
            RecordBootControl(settled).settle()
            states.append(state_in(settled.durable()))
        operations = count_operations(
            lambda supply, step=step: step(RecordBootControl(SimulatedBlockDevice(content, supply)))
        )
        for outage in plan_outages(operations, seeds=range(8)):
            cuts += 1
            found = after_cut(content, step, outage)
            assert state_in(found) in states, (name, outage)
    assert cuts > 0


def test_a_confirmed_device_always_has_something_to_boot() -> None:
    """A walk through 4,000 steps by chance, a third of them cut: once a slot was confirmed one is always bootable."""
    chance = random.Random(7)
    content = lived(LIVES["running"])
    cuts, states = 0, set()
    for _ in range(4000):
        name = chance.choice([name for name in STEPS if name not in ("refuse", "reject")] * 2 + ["reject"])
        step = STEPS[name]
        if name == "reject" and _nothing_confirmed(content):
            continue  # nothing else to fall back to: an operator's own decision, not a power cut's
        supply = PowerSupply(cut_at=chance.choice([1, 2, None, None, None, None]))
        device = SimulatedBlockDevice(content, supply)
        try:
            step(RecordBootControl(device))
        except PowerCut:
            cuts += 1
        except TidegateError:
            pass
        fate = chance.choice(list(CacheFate)) if not supply.is_on else CacheFate.KEPT
        content = device.restart(PowerSupply(), fate, chance).durable()
        if not supply.is_on:  # power came back: it boots
            rebooted = SimulatedBlockDevice(content, PowerSupply())
            boot(RecordBootControl(rebooted))
            content = rebooted.durable()
        state = state_in(content)
        states.add(tuple(slot.state for slot in state.slots.values()))
        settled = SimulatedBlockDevice(content, PowerSupply())
        RecordBootControl(settled).settle()
        assert boot_order(state_in(settled.durable())), state
    assert cuts > 300
    assert len(states) > 8


def _nothing_confirmed(content: bytes) -> bool:
    return all(slot.state is not SlotState.CONFIRMED for slot in state_in(content).slots.values())


def test_journal_is_old_or_new_and_leaves_the_boot_state_alone() -> None:
    content = lived(LIVES["running"])
    device = SimulatedBlockDevice(content, PowerSupply())
    first = Progress(image_digest=bytes(32), slot="b", verified_bytes=65_536)
    second = Progress(image_digest=bytes(32), slot="b", verified_bytes=131_072)
    UpdateJournal(device, JOURNAL_OFFSET).write(first)
    content = device.durable()
    before = state_in(content)
    for change, expected in (
        (lambda journal: journal.write(second), (first, second)),
        (lambda journal: journal.clear(), (first, None)),
    ):
        for outage in plan_outages(2, seeds=range(20)):
            cut = SimulatedBlockDevice(content, PowerSupply(cut_at=outage.at))
            with pytest.raises(PowerCut):
                change(UpdateJournal(cut, JOURNAL_OFFSET))
            restarted = cut.restart(PowerSupply(), outage.fate, random.Random(outage.seed))
            assert UpdateJournal(restarted, JOURNAL_OFFSET).read() in expected, outage
            assert RecordBootControl(restarted).state() == before


def test_provisioning_cut_anywhere_can_be_repeated() -> None:
    for outage in plan_outages(2, seeds=range(8)):
        device = SimulatedBlockDevice(bytes(SIZE_BYTES), PowerSupply(cut_at=outage.at))
        with pytest.raises(PowerCut):
            RecordBootControl.provision(device)
        restarted = device.restart(PowerSupply(), outage.fate, random.Random(outage.seed))
        try:
            state = RecordBootControl(restarted).state()
        except TidegateError as error:
            assert error.code == "boot.device.not-provisioned"
            state = RecordBootControl.provision(restarted).state()
        assert boot_order(state) == []
