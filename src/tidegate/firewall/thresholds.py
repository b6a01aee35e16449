"""The state of limits and thresholds, as the kernel lists it. Pure.

Which sources a rule knows, how full its tables are, who is over a high water mark and until when.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from tidegate.firewall.snapshot import Listed, parse_listing

# The names that meters and compile give: kind of rule, rule, threshold (t and p count new packets, k every packet),
# table, family. Names of rules have no "_".
_NAME = re.compile(
    r"(?P<kind>svc|fwd)_(?P<name>[a-z0-9-]+)_(?:syn_)?(?:(?P<mark>[tpk])(?P<number>\d+)_)?"
    r"(?P<table>rate|hot|low|conns|all)(?P<family>[46])?\Z"
)
_TOTAL = re.compile(r"all_(?P<number>\d+)_(?P<table>rate|hot|low)(?P<family>[46])\Z")
_KINDS = {"svc": "services", "fwd": "routes"}
_SIZE = re.compile(r"\t\tsize (\d+)\Z")
_EXPIRES = re.compile(r"expires (?P<left>\S+)")
_PART = re.compile(r"(\d+)(ms|[dhms])")
_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


class Table(StrEnum):
    """What a meter's table holds."""

    RATE = "rate"  # who is measured against the high mark, or a limit
    HOT = "hot"  # who is over the high mark and refused
    LOW = "low"  # who is hot and measured against the low mark
    CONNECTIONS = "conns"  # who has connections open
    TOTAL = "all"  # the one entry of a limit for all


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterState:
    """One table of one meter. ``sources`` are (address, seconds left or None), at most as many as it has room for."""

    rule: str
    table: Table
    family: int | None
    size: int
    sources: tuple[tuple[str, float | None], ...]

    @property
    def is_full(self) -> bool:
        """Whether a new source is refused because there is no room for it."""
        return len(self.sources) >= self.size


def parse_meters(listing: str) -> list[MeterState]:
    """Return the state of every meter in the listing (with state) of table ``inet tidegate``."""
    found = []
    for thing in parse_listing(listing):
        meter = _parse_meter(thing) if thing.kind == "set" else None
        if meter is not None:
            found.append(meter)
    return sorted(found, key=lambda meter: (meter.rule, meter.table, meter.family or 0))


def _parse_meter(thing: Listed) -> MeterState | None:
    total, rule = _TOTAL.match(thing.name), _NAME.match(thing.name)
    size = next((int(match[1]) for line in thing.lines if (match := _SIZE.match(line)) is not None), 0)
    if total is not None:
        label, match = f"thresholds.{total['number']}", total
    elif rule is not None and rule["kind"] in _KINDS:
        label, match = f"{_KINDS[rule['kind']]}.{rule['name']}", rule
        if rule["number"] is not None:
            label += f" threshold {rule['number']}"
    else:
        return None
    return MeterState(
        rule=label,
        table=Table(match["table"]),
        family=int(match["family"]) if match["family"] else None,
        size=size,
        sources=tuple(_parse_elements(thing.elements)),
    )


def _parse_elements(elements: Iterable[str]) -> Iterable[tuple[str, float | None]]:
    for element in elements:
        expires = _EXPIRES.search(element)
        left = None
        if expires is not None:
            left = sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(expires["left"]))
        yield element.split(" ", 1)[0], left
