"""What gives way when the log reaches its size: information first, alerts last. Pure.

A full segment is *thinned*: its alerts stay byte for byte, each run of other events becomes one gap record. Only when
every closed segment is thinned and they are still too large does the oldest one go. Both are written down as signed
events before they happen, so that a verifier tells them from tampering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.base.errors import Rejected
from tidegate.events.chain import gaps_digest
from tidegate.events.errors import LogEmpty
from tidegate.events.lines import Entry, StoredLine, encode_gap, parse_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A closed segment of the log; its size counts its checkpoints."""

    number: int
    size_bytes: int
    thinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinSegment:
    """Replace the segment by its alerts and gap records."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSegment:
    """Remove the segment, which is the oldest."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinned:
    """A thinned segment: its new content, how many events went, and the digest that accounts for them."""

    content: bytes
    removed: int
    digest: str


def plan_next(closed: Sequence[Segment], *, limit_bytes: int) -> ThinSegment | DropSegment | None:
    """Return the one step to take next, or ``None`` if the closed segments fit into ``limit_bytes``."""
    if sum(segment.size_bytes for segment in closed) <= limit_bytes:
        return None
    for segment in closed:
        if not segment.thinned:
            return ThinSegment(number=segment.number)
    return DropSegment(number=closed[0].number)


def thin_segment(lines: Sequence[StoredLine]) -> Thinned:
    """Return the segment without its events below alert level; a boot's first line and gap records stay.

    Raises ``events.chain.malformed`` for a segment that was altered: evidence of that is not to be thinned.
    """
    kept: list[bytes] = []
    gaps: list[bytes] = []
    run: list[Entry] = []
    removed = 0
    for line in [*lines, None]:
        entry = None if line is None else parse_line(line)
        if entry is not None and entry.kind is not None and not entry.alert and entry.first > 1:
            run.append(entry)
            continue
        if run:
            gaps.append(encode_gap(run))
            kept.append(gaps[-1])
            removed += len(run)
            run = []
        if line is not None:
            kept.append(line.raw)
    return Thinned(content=b"".join(raw + b"\n" for raw in kept), removed=removed, digest=gaps_digest(gaps))


def last_entry(lines: Sequence[StoredLine]) -> tuple[Entry, int]:
    """Return the last line that parses and how many unreadable lines follow it; ``events.log.empty`` if none does."""
    for behind, line in enumerate(reversed(lines)):
        try:
            return parse_line(line), behind
        except Rejected:  # tampering: the verifier names the place; the writer has to go on
            continue
    raise LogEmpty("no line can be read")
