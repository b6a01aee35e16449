"""The slot states: every pair of state and event, the order of booting, falling back, the floor, settling."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from tidegate.base.errors import Rejected, TidegateError
from tidegate.boot.control import RecordBootControl
from tidegate.boot.slots import (
    MAX_TRIES,
    TRANSITIONS,
    BootState,
    Slot,
    SlotEvent,
    SlotState,
    after_boot_attempt,
    after_confirm,
    after_event,
    after_exhausted,
    boot_order,
    fresh_state,
    parse_state,
)
from tidegate.crypto import cbor
from tidegate.testing.power import PowerSupply, SimulatedBlockDevice

S, E = SlotState, SlotEvent

# Written from the promises, not from the table: what an event needs, and where it leads.
EXPECTED: dict[SlotEvent, dict[SlotState, SlotState]] = {
    E.BEGIN_WRITE: {state: S.WRITING for state in S if state is not S.TRIAL},  # a system on trial is never written to
    E.VERIFIED: {S.WRITING: S.WRITTEN},
    E.ACTIVATE: {S.WRITTEN: S.PENDING},  # nothing is tried that was not verified whole
    E.BOOT: {S.PENDING: S.TRIAL, S.TRIAL: S.TRIAL, S.CONFIRMED: S.CONFIRMED},
    E.CONFIRM: {S.TRIAL: S.CONFIRMED, S.CONFIRMED: S.CONFIRMED},  # only what was booted can be confirmed
    E.EXHAUSTED: {S.TRIAL: S.FAILED},
    E.REFUSED: {S.PENDING: S.FAILED, S.TRIAL: S.FAILED, S.CONFIRMED: S.FAILED},
    E.REJECT: {S.TRIAL: S.FAILED},
    E.SUPERSEDED: {S.CONFIRMED: S.FAILED},  # only a fall-back can be too old to be one
}


def make_state(a: Slot, b: Slot, **fields) -> BootState:
    return BootState(slots={"a": a, "b": b}, **fields)


def control_over(state: BootState) -> RecordBootControl:
    control = RecordBootControl.provision(SimulatedBlockDevice(bytes(8192), PowerSupply()))
    control._store(state)
    return control


@pytest.mark.parametrize(("state", "event"), list(itertools.product(S, E)), ids=lambda member: member.value)
def test_every_pair_leads_somewhere_or_is_refused(state: SlotState, event: SlotEvent) -> None:
    before = make_state(Slot(state=state), Slot(state=S.CONFIRMED))
    target = EXPECTED[event].get(state)
    assert TRANSITIONS.get((state, event)) is target
    if target is None:
        with pytest.raises(TidegateError) as caught:
            after_event(before, "a", event)
        assert caught.value.code == "boot.slot.transition"
        return
    after = after_event(before, "a", event)
    assert after.slots["a"].state is target
    assert after.slots["b"] == before.slots["b"]
    assert (after.preferred, after.started, after.security_floor) == ("a", None, 0)


def test_the_table_has_no_row_that_nobody_expects() -> None:
    assert set(TRANSITIONS) == {(state, event) for event, row in EXPECTED.items() for state in row}


@pytest.mark.parametrize(
    ("a", "b", "preferred", "order"),
    [
        (Slot(), Slot(), "a", []),
        (Slot(state=S.CONFIRMED), Slot(), "a", ["a"]),
        (Slot(state=S.CONFIRMED), Slot(state=S.CONFIRMED), "a", ["a", "b"]),
        (Slot(state=S.CONFIRMED), Slot(state=S.CONFIRMED), "b", ["b", "a"]),
        (Slot(state=S.CONFIRMED), Slot(state=S.PENDING, tries_left=1), "a", ["b", "a"]),
        (Slot(state=S.CONFIRMED), Slot(state=S.TRIAL, tries_left=1), "a", ["b", "a"]),
        (Slot(state=S.CONFIRMED), Slot(state=S.TRIAL, tries_left=0), "a", ["a"]),
        (Slot(state=S.CONFIRMED), Slot(state=S.PENDING, tries_left=0), "a", ["a"]),
        (Slot(state=S.CONFIRMED), Slot(state=S.WRITING), "b", ["a"]),
        (Slot(state=S.CONFIRMED), Slot(state=S.WRITTEN, tries_left=3), "b", ["a"]),
        (Slot(state=S.FAILED, tries_left=3), Slot(state=S.CONFIRMED), "a", ["b"]),
        (Slot(state=S.FAILED), Slot(state=S.WRITING), "a", []),
        (Slot(state=S.PENDING, tries_left=2), Slot(), "a", ["a"]),
    ],
)
def test_boot_order(a: Slot, b: Slot, preferred: str, order: list[str]) -> None:
    assert boot_order(make_state(a, b, preferred=preferred)) == order


@pytest.mark.parametrize("tries", range(1, MAX_TRIES + 1))
def test_falls_back_after_exactly_as_many_boots_as_were_allowed(tries: int) -> None:
    control = control_over(make_state(Slot(state=S.CONFIRMED, version="1"), Slot(state=S.WRITTEN, version="2")))
    control.activate("b", tries=tries)
    started = []
    for _ in range(tries + 2):
        control.settle()
        name = boot_order(control.state())[0]
        control.boot_attempt(name)
        started.append(name)
    assert started == ["b"] * tries + ["a", "a"]
    assert control.state().slots["b"].state is S.FAILED
    assert control.state().preferred == "a"


def test_a_boot_is_counted_only_for_a_system_on_trial() -> None:
    state = make_state(Slot(state=S.CONFIRMED, tries_left=0), Slot(state=S.PENDING, tries_left=2))
    assert after_boot_attempt(state, "a").slots["a"] == state.slots["a"]
    assert after_boot_attempt(state, "a").started == "a"
    once = after_boot_attempt(state, "b")
    assert (once.slots["b"].state, once.slots["b"].tries_left, once.started) == (S.TRIAL, 1, "b")


def test_settle_fails_only_what_has_no_tries_left() -> None:
    state = make_state(Slot(state=S.TRIAL, tries_left=0), Slot(state=S.TRIAL, tries_left=1))
    after = after_exhausted(state)
    assert after.slots["a"].state is S.FAILED
    assert after.slots["b"] == state.slots["b"]


def test_settle_names_what_failed_and_writes_only_then() -> None:
    device = SimulatedBlockDevice(bytes(8192), PowerSupply())
    control = RecordBootControl.provision(device)
    writes = device.writes
    assert control.settle() == []
    assert device.writes == writes
    control._store(make_state(Slot(state=S.CONFIRMED), Slot(state=S.TRIAL, tries_left=0)))
    assert control.settle() == ["b"]
    assert control.state().slots["b"].state is S.FAILED


# -- the floor --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "floor", "expected"),
    [
        # the new one is on trial in b; a is what it replaces
        (Slot(state=S.CONFIRMED, security_version=1), 2, 1, 2),  # the older one is no fall-back any more
        (Slot(state=S.CONFIRMED, security_version=2), 2, 1, 2),  # both are at 2: nothing below is needed any more
        (Slot(state=S.CONFIRMED, security_version=5), 3, 1, 3),
        (Slot(state=S.CONFIRMED, security_version=1), 2, 2, 2),  # never down
        (Slot(state=S.FAILED, security_version=1), 7, 1, 7),  # a slot that does not boot holds nothing back
        (Slot(state=S.WRITING), 7, 1, 7),
        (Slot(), 1, 0, 1),
    ],
)
def test_floor_rises_to_what_was_confirmed(a: Slot, b: int, floor: int, expected: int) -> None:
    state = make_state(a, Slot(state=S.TRIAL, tries_left=1, security_version=b), started="b", security_floor=floor)
    after = after_confirm(state, "b")
    assert after.security_floor == expected
    assert after.preferred == "b"
    assert after.slots["b"].tries_left == 0
    assert boot_order(after)[0] == "b"
    assert all(slot.security_version >= expected for slot in after.slots.values() if slot.state is S.CONFIRMED)


@pytest.mark.parametrize("event", [event for event in E if event is not E.CONFIRM])
def test_no_other_event_moves_floor_or_preference(event: SlotEvent) -> None:
    for state in EXPECTED[event]:
        before = make_state(Slot(state=S.CONFIRMED), Slot(state=state, security_version=9), security_floor=3)
        after = after_event(before, "b", event)
        assert (after.security_floor, after.preferred) == (3, "a")


# -- which slot an update may write -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "idle"),
    [
        (fresh_state(), "a"),
        (make_state(Slot(state=S.CONFIRMED), Slot()), "b"),
        (make_state(Slot(), Slot(state=S.CONFIRMED), preferred="b"), "a"),
        (make_state(Slot(state=S.CONFIRMED), Slot(state=S.CONFIRMED), started="b"), "a"),
        (make_state(Slot(state=S.CONFIRMED), Slot(state=S.TRIAL), started="b"), "a"),
        (make_state(Slot(state=S.PENDING, tries_left=3), Slot()), "a"),
    ],
)
def test_idle_slot_is_never_the_running_one(state: BootState, idle: str) -> None:
    assert state.idle_slot() == idle


@pytest.mark.parametrize("running", [S.TRIAL, S.FAILED])
def test_the_fall_back_of_an_unproven_system_is_not_written(running: SlotState) -> None:
    """On trial, or rejected and not rebooted yet: the other slot is all that still boots."""
    control = control_over(make_state(Slot(state=S.CONFIRMED), Slot(state=running, tries_left=1), started="b"))
    before = control.state()
    with pytest.raises(TidegateError) as caught:
        control.begin_write(control.idle_slot())
    assert caught.value.code == "boot.slot.trial-unconfirmed"
    assert control.state() == before


def test_a_device_with_nothing_left_to_boot_can_be_recovered() -> None:
    control = control_over(make_state(Slot(state=S.FAILED), Slot(state=S.FAILED), started="b"))
    control.begin_write(control.idle_slot())
    assert control.state().slots["a"].state is S.WRITING


def test_reject_and_refuse_take_the_tries_away() -> None:
    for change in (RecordBootControl.reject, RecordBootControl.refuse):
        control = control_over(make_state(Slot(state=S.CONFIRMED), Slot(state=S.TRIAL, tries_left=3), started="b"))
        change(control, "b")
        slot = control.state().slots["b"]
        assert (slot.state, slot.tries_left) == (S.FAILED, 0)
        assert boot_order(control.state()) == ["a"]


def test_a_refused_confirmed_slot_leaves_the_other() -> None:
    control = control_over(make_state(Slot(state=S.CONFIRMED), Slot(state=S.CONFIRMED), preferred="a"))
    control.refuse("a")
    assert boot_order(control.state()) == ["b"]


def test_begin_write_forgets_what_was_in_the_slot() -> None:
    old = Slot(state=S.CONFIRMED, version="0.9.0", security_version=9, tries_left=2)
    control = control_over(make_state(Slot(state=S.CONFIRMED), old, started="a"))
    control.begin_write("b")
    assert control.state().slots["b"] == Slot(state=S.WRITING)


@pytest.mark.parametrize("tries", [-1, 0, MAX_TRIES + 1, 1000])
def test_tries_outside_the_range_never_become_durable(tries: int) -> None:
    """A state with more tries than the format allows could not be read by the next boot."""
    control = control_over(make_state(Slot(state=S.CONFIRMED), Slot(state=S.WRITTEN)))
    before = control.state()
    with pytest.raises(ValueError, match="tried 1 to 7 times"):
        control.activate("b", tries=tries)
    assert control.state() == before


# -- the record's bytes -----------------------------------------------------------------------------------------------


def damaged(**changes) -> bytes:
    document = msgspec.to_builtins(make_state(Slot(state=S.CONFIRMED), Slot()))
    return cbor.encode(document | changes)


@pytest.mark.parametrize(
    "raw",
    [
        damaged(preferred="c"),
        damaged(preferred=None),
        damaged(started="c"),
        damaged(started=""),
        damaged(slots={"a": {}}),
        damaged(slots={"a": {}, "b": {}, "c": {}}),
        damaged(slots={"a": {}, "c": {}}),
        damaged(slots={"a": {"state": "ready"}, "b": {}}),
        damaged(slots={"a": {"tries_left": MAX_TRIES + 1}, "b": {}}),
        damaged(slots={"a": {"tries_left": -1}, "b": {}}),
        damaged(slots={"a": {"unknown": 1}, "b": {}}),
        damaged(security_floor=-1),
        damaged(security_floor=2**32),
        damaged(security_floor="1"),
        damaged(more=1),
        cbor.encode([]),
        cbor.encode(None),
        b"",
        b"\xff" * 40,
        damaged() + b"\0",
        cbor.encode("x" * 4000),
    ],
)
def test_malformed_states_are_refused_by_code(raw: bytes) -> None:
    with pytest.raises(Rejected) as caught:
        parse_state(raw)
    assert caught.value.code in {"boot.state.malformed", "crypto.cbor.malformed", "crypto.cbor.limit"}


def test_states_survive_encoding() -> None:
    for a, b in itertools.product(S, S):
        state = make_state(Slot(state=a, version="1.2.3"), Slot(state=b, security_version=2**32 - 1), started="b")
        assert parse_state(state.encode()) == state


def test_without_a_record_the_device_is_not_provisioned() -> None:
    with pytest.raises(TidegateError) as caught:
        RecordBootControl(SimulatedBlockDevice(bytes(8192), PowerSupply())).state()
    assert caught.value.code == "boot.device.not-provisioned"
