"""From the boot log to events: what was verified, what was refused and why. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tidegate.agent.errors import UnknownRefusal
from tidegate.base.errors import TidegateError, registered_codes
from tidegate.boot.measure import BootLogEntry, Measurement, Refusal, Started
from tidegate.events import catalogue
from tidegate.events.model import Event


def plan_boot_events(entries: Iterable[BootLogEntry]) -> Iterator[Event]:
    """Yield the events of one boot, in the order in which it happened."""
    refused: Refusal | None = None
    for entry in entries:
        if isinstance(entry, Measurement):
            yield catalogue.boot_stage_verified(
                stage=entry.stage, version=f"register {entry.register}: {entry.what}", digest=entry.digest
            )
        elif isinstance(entry, Refusal):
            refused = entry
            yield catalogue.boot_stage_refused(stage=entry.stage, error=_error_of(entry))
        elif isinstance(entry, Started) and refused is not None and refused.slot != entry.slot:
            yield catalogue.boot_fell_back(from_slot=refused.slot, to_slot=entry.slot, reason=refused.code)
            refused = None  # the boots after this one fall back no further


def _error_of(entry: Refusal) -> TidegateError:
    """Return the refusal as the error that it was when a boot stage raised it."""
    kind = registered_codes().get(entry.code)
    if kind is None:
        return UnknownRefusal(f"{entry.code}: {entry.message}")
    return kind(f"slot {entry.slot}: {entry.message}")
