"""What gives way when the log reaches its size: information first, alerts last. Pure.

A closed segment is *thinned*: its alerts and the first line of each boot stay byte for byte, each run of other events
becomes one gap record. Small thinned segments are merged, so that any amount of information ends in one gap record
between two alerts. Only when every closed segment is thinned and they are still too large does the oldest go.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.base.errors import Rejected
from tidegate.events.checkpoint import Checkpoint
from tidegate.events.errors import LogEmpty
from tidegate.events.lines import Entry, StoredLine, encode_gap, hash_gaps, parse_line


class SegmentKind(enum.Enum):
    """How a segment is stored; the value is its file's suffix."""

    FULL = "events"
    THINNED = "thinned"
    KEPT = "kept"  # altered by somebody: kept byte for byte as evidence until it is the oldest


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A part of the log in files of its own; it stands for the numbers ``first`` to ``last``, checkpoints included."""

    first: int
    last: int
    size_bytes: int
    kind: SegmentKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinSegments:
    """Replace the segments, neighbours, by one thinned segment."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DropSegment:
    """Remove the segment, which is the oldest."""

    segment: Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinned:
    """A thinned segment: its lines, what its new checkpoints have to say, and how many events went."""

    lines: tuple[bytes, ...]
    checkpoints: tuple[Checkpoint, ...]
    removed: int


def plan_next(closed: Sequence[Segment], *, limit_bytes: int, merge_bytes: int) -> ThinSegments | DropSegment | None:
    """Return the one step to take next, or ``None`` if the closed segments fit into ``limit_bytes``.

    A thinned segment of at most ``merge_bytes`` is merged with the one behind it.
    """
    if sum(segment.size_bytes for segment in closed) <= limit_bytes:
        return None
    for index, segment in enumerate(closed):
        if segment.kind is SegmentKind.FULL:
            before = closed[index - 1] if index else segment
            merged = before.kind is SegmentKind.THINNED and before.size_bytes <= merge_bytes
            return ThinSegments(segments=(before, segment) if merged else (segment,))
    return DropSegment(segment=closed[0])


def thin_entries(lines: Sequence[StoredLine], entries: Sequence[Entry]) -> Thinned:
    """Return the part without its events below alert level; ``entries`` are the verified ``lines``."""
    kept: list[bytes] = []
    groups: list[list[Entry]] = []
    removed = 0
    for line, entry in zip(lines, entries, strict=True):
        gives_way = not entry.alert and entry.first > 1  # a gap record is no alert
        removed += gives_way and entry.kind is not None
        continues = gives_way and groups and groups[-1][-1].boot == entry.boot and kept[-1] == b""
        if continues:
            groups[-1].append(entry)
        else:
            groups.append([entry])
            kept.append(b"" if gives_way else line.raw)
    records = tuple(raw or encode_gap(group) for raw, group in zip(kept, groups, strict=True))
    return Thinned(lines=records, checkpoints=_account(records), removed=removed)


def _account(lines: Sequence[bytes]) -> tuple[Checkpoint, ...]:
    """Return a checkpoint per boot over the lines of a thinned segment."""
    boots: dict[str, list[Entry]] = {}
    for number, raw in enumerate(lines, start=1):
        entry = parse_line(StoredLine(file="", number=number, raw=raw))
        boots.setdefault(entry.boot, []).append(entry)
    return tuple(
        Checkpoint(
            device=entries[0].device,
            boot=boot,
            first=entries[0].first,
            last=entries[-1].last,
            head=entries[-1].head,
            gaps=hash_gaps(entry for entry in entries if entry.kind is None),
        )
        for boot, entries in boots.items()
    )


def last_entry(lines: Sequence[StoredLine]) -> tuple[Entry, int]:
    """Return the last line that parses and how many unreadable lines follow it; ``events.log.empty`` if none does."""
    for behind, line in enumerate(reversed(lines)):
        try:
            return parse_line(line), behind
        except Rejected:  # tampering: the verifier names the place; the writer has to go on
            continue
    raise LogEmpty("no line can be read")
