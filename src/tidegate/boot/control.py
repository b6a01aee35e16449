"""Boot control kept in a raw partition: which slot to start, how often to try, what the floor is.

Touches: the two-copy record at the head of the state partition. The record is no secret and not signed: who can write
it can choose among authentic images at or above the floor, and can put the floor back to an older copy; a TPM counter
for the floor comes with the hardware providers (docs/threat-model.md, "rollback of the boot state").
"""

from __future__ import annotations

from tidegate.base.blockdev import BlockDevice
from tidegate.base.record import AlternatingRecord
from tidegate.boot.errors import NotProvisioned, TrialUnconfirmed
from tidegate.boot.slots import (
    MAX_TRIES,
    BootState,
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

BOOT_RECORD_OFFSET = 0
_MAGIC = b"TGBOOTST"


class RecordBootControl:
    """Boot control in an ``AlternatingRecord``; each method is one durable step, old or new after a power cut."""

    def __init__(self, device: BlockDevice) -> None:
        self._record = AlternatingRecord(device, BOOT_RECORD_OFFSET, _MAGIC)

    @classmethod
    def provision(cls, device: BlockDevice) -> RecordBootControl:
        """Write the state of an empty device."""
        control = cls(device)
        control._record.write(fresh_state().encode())
        return control

    def state(self) -> BootState:
        """Return the state, or raise ``boot.device.not-provisioned``."""
        if not self._record.exists():
            raise NotProvisioned("the state partition holds no boot state")
        return parse_state(self._record.read())

    def idle_slot(self) -> str:
        """Return the slot that an update may write."""
        return self.state().idle_slot()

    def begin_write(self, slot: str) -> None:
        """Make ``slot`` unbootable before its first byte changes.

        Raises ``boot.slot.trial-unconfirmed`` while the running slot is on trial, and after it was rejected until the
        reboot that leaves it: ``slot`` is what it falls back to.
        """
        state = self.state()
        running = None if state.started is None else state.slots[state.started].state
        if running is SlotState.TRIAL or (running is SlotState.FAILED and slot in boot_order(state)):
            raise TrialUnconfirmed(
                f"slot {state.started}, started last, is {running.value}; slot {slot} is its fall-back", slot=slot
            )
        self._store(after_event(state, slot, SlotEvent.BEGIN_WRITE, tries_left=0, version="", security_version=0))

    def mark_written(self, slot: str, *, version: str, security_version: int) -> None:
        """Record that ``slot`` holds a whole, verified image."""
        state = self.state()
        changes: dict[str, str | int] = {"version": version, "security_version": security_version}
        self._store(after_event(state, slot, SlotEvent.VERIFIED, **changes))

    def activate(self, slot: str, *, tries: int) -> None:
        """Have the next boot try ``slot``, at most ``tries`` times (1 to 7)."""
        if not 1 <= tries <= MAX_TRIES:  # a boot could not read the state that more would make
            raise ValueError(f"a slot is tried 1 to {MAX_TRIES} times, not {tries}")
        self._store(after_event(self.state(), slot, SlotEvent.ACTIVATE, tries_left=tries))

    def boot_attempt(self, slot: str) -> None:
        """Count a boot of ``slot``; durable before it starts."""
        self._store(after_boot_attempt(self.state(), slot))

    def settle(self) -> list[str]:
        """Fail every slot whose tries are used up and return their names; writes only if there is one."""
        state = self.state()
        settled = after_exhausted(state)
        if settled != state:
            self._store(settled)
        return [name for name, slot in settled.slots.items() if slot != state.slots[name]]

    def refuse(self, slot: str) -> None:
        """Record that ``slot`` did not verify; it is not tried again."""
        self._store(after_event(self.state(), slot, SlotEvent.REFUSED, tries_left=0))

    def reject(self, slot: str) -> None:
        """Record that ``slot``, on trial, is not healthy; the next boot takes the other one."""
        self._store(after_event(self.state(), slot, SlotEvent.REJECT, tries_left=0))

    def confirm(self, slot: str) -> None:
        """Make ``slot`` the one to start from now on."""
        self._store(after_confirm(self.state(), slot))

    def _store(self, state: BootState) -> None:
        self._record.write(state.encode())
