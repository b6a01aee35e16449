"""Slot states as a table, and the choice of the slot to start. Pure: no storage, no clock.

docs/boot-and-update.md has the diagram, drawn from ``TRANSITIONS``.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec

from tidegate.boot.errors import SlotTransition, StateMalformed
from tidegate.crypto import cbor

SLOT_NAMES = ("a", "b")
MAX_TRIES = 7
MAX_STATE_BYTES = 2048


class SlotState(enum.Enum):
    """What is known of a slot's content."""

    EMPTY = "empty"
    WRITING = "writing"
    WRITTEN = "written"
    PENDING = "pending"
    TRIAL = "trial"
    CONFIRMED = "confirmed"
    FAILED = "failed"


class SlotEvent(enum.Enum):
    """What can happen to a slot."""

    BEGIN_WRITE = "begin-write"
    VERIFIED = "verified"
    ACTIVATE = "activate"
    BOOT = "boot"
    CONFIRM = "confirm"
    EXHAUSTED = "exhausted"
    REFUSED = "refused"
    REJECT = "reject"
    SUPERSEDED = "superseded"


_S, _E = SlotState, SlotEvent
TRANSITIONS: dict[tuple[SlotState, SlotEvent], SlotState] = {
    (_S.EMPTY, _E.BEGIN_WRITE): _S.WRITING,
    (_S.WRITING, _E.BEGIN_WRITE): _S.WRITING,
    (_S.WRITTEN, _E.BEGIN_WRITE): _S.WRITING,
    (_S.PENDING, _E.BEGIN_WRITE): _S.WRITING,
    (_S.CONFIRMED, _E.BEGIN_WRITE): _S.WRITING,
    (_S.FAILED, _E.BEGIN_WRITE): _S.WRITING,
    (_S.WRITING, _E.VERIFIED): _S.WRITTEN,
    (_S.WRITTEN, _E.ACTIVATE): _S.PENDING,
    (_S.PENDING, _E.BOOT): _S.TRIAL,
    (_S.TRIAL, _E.BOOT): _S.TRIAL,
    (_S.CONFIRMED, _E.BOOT): _S.CONFIRMED,
    (_S.TRIAL, _E.CONFIRM): _S.CONFIRMED,
    (_S.CONFIRMED, _E.CONFIRM): _S.CONFIRMED,
    (_S.TRIAL, _E.EXHAUSTED): _S.FAILED,
    (_S.TRIAL, _E.REJECT): _S.FAILED,
    (_S.PENDING, _E.REFUSED): _S.FAILED,
    (_S.TRIAL, _E.REFUSED): _S.FAILED,
    (_S.CONFIRMED, _E.REFUSED): _S.FAILED,
    (_S.CONFIRMED, _E.SUPERSEDED): _S.FAILED,
}


class Slot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One slot: its state, the boots it may still try, and what was last verified in it."""

    state: SlotState = SlotState.EMPTY
    tries_left: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRIES)] = 0
    version: str = ""
    security_version: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0


class BootState(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that survives a reboot: both slots, the slot last confirmed, the slot last started, the floor."""

    slots: dict[str, Slot]
    preferred: str = "a"
    started: str | None = None
    security_floor: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 0

    def idle_slot(self) -> str:
        """Return the slot that an update may write: never the one that runs, nor the one preferred when none does."""
        running = self.started or (self.preferred if self.slots[self.preferred].state is SlotState.CONFIRMED else None)
        return next(name for name in SLOT_NAMES if name != running)

    def encode(self) -> bytes:
        """Return the state as deterministic CBOR."""
        return cbor.encode(msgspec.to_builtins(self))


def fresh_state() -> BootState:
    """Return the state of a device whose slots hold nothing."""
    return BootState(slots={name: Slot() for name in SLOT_NAMES})


def parse_state(raw: bytes) -> BootState:
    """Return the state in ``raw`` or raise ``boot.state.malformed`` or ``crypto.cbor.*``."""
    try:
        state = msgspec.convert(cbor.decode(raw, limit_bytes=MAX_STATE_BYTES), BootState, strict=True)
    except msgspec.ValidationError as error:
        raise StateMalformed(f"boot state: {error}") from error
    if tuple(sorted(state.slots)) != SLOT_NAMES or not {state.preferred, state.started} <= {*SLOT_NAMES, None}:
        raise StateMalformed("the boot state names other slots than a and b")
    return state


def after_event(state: BootState, name: str, event: SlotEvent, **changes: str | int) -> BootState:
    """Return ``state`` after ``event`` on slot ``name``; raise ``boot.slot.transition`` if the table has no such step.

    ``changes`` are further fields of the slot (``tries_left``, ``version``, ``security_version``).
    """
    slot = state.slots[name]
    target = TRANSITIONS.get((slot.state, event))
    if target is None:
        raise SlotTransition(f"slot {name} is {slot.state.value}: {event.value} is not possible", slot=name)
    changed = msgspec.structs.replace(slot, state=target, **changes)
    return msgspec.structs.replace(state, slots={**state.slots, name: changed})


def boot_order(state: BootState) -> list[str]:
    """Return the slots to try: one on trial with tries left, then the preferred, then any other confirmed one."""
    trial = [
        name
        for name in SLOT_NAMES
        if state.slots[name].state in (SlotState.PENDING, SlotState.TRIAL) and state.slots[name].tries_left > 0
    ]
    confirmed = [name for name in SLOT_NAMES if state.slots[name].state is SlotState.CONFIRMED]
    return trial + sorted(confirmed, key=lambda name: name != state.preferred)


def after_boot_attempt(state: BootState, name: str) -> BootState:
    """Return the state to make durable before slot ``name`` is started: one try fewer, if it is on trial."""
    slot = state.slots[name]
    tries = slot.tries_left - 1 if slot.state in (SlotState.PENDING, SlotState.TRIAL) else slot.tries_left
    return msgspec.structs.replace(after_event(state, name, SlotEvent.BOOT, tries_left=tries), started=name)


def after_exhausted(state: BootState) -> BootState:
    """Return the state in which every slot on trial without tries left has failed."""
    for name in SLOT_NAMES:
        slot = state.slots[name]
        if slot.state is SlotState.TRIAL and slot.tries_left == 0:
            state = after_event(state, name, SlotEvent.EXHAUSTED)
    return state


def after_confirm(state: BootState, name: str) -> BootState:
    """Return the state after the running slot proved healthy.

    The security floor rises to its security version. A slot below the floor is no fall-back any more: who holds the
    storage could have it booted by damaging the newer one. A release that closes no hole keeps its security version,
    and then the older slot stays.
    """
    state = after_event(state, name, SlotEvent.CONFIRM, tries_left=0)
    floor = max(state.security_floor, state.slots[name].security_version)
    for other, slot in state.slots.items():
        if slot.state is SlotState.CONFIRMED and slot.security_version < floor:
            state = after_event(state, other, SlotEvent.SUPERSEDED)
    return msgspec.structs.replace(state, preferred=name, security_floor=floor)
