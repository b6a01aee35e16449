"""Which write made which chunk: runs of chunks, each with the header sequence under which it was written. Pure.

A chunk's sequence is part of its associated data, so that an older chunk of the same place does not fit any more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

EXTENT_BYTES = 12
MAX_EXTENTS = 320  # what fits into a header slot beside its other fields (3,840 of 3,930 bytes)


class Extent(NamedTuple):
    """Chunks from ``first`` up to the next extent were written under ``sequence``."""

    first: int
    sequence: int


def check_extents(extents: tuple[Extent, ...], chunks: int) -> bool:
    """Return whether these cover every chunk exactly once, in order."""
    firsts = [extent.first for extent in extents]
    return bool(firsts) and firsts[0] == 0 and firsts == sorted(set(firsts)) and firsts[-1] < chunks


def sequence_of(extents: tuple[Extent, ...], index: int) -> int:
    """Return the sequence under which chunk ``index`` was written."""
    if len(extents) == 1:
        return extents[0].sequence
    return extents[bisect_right(extents, (index, 1 << 64)) - 1].sequence


def mark_written(extents: tuple[Extent, ...], written: Iterable[int], *, sequence: int, chunks: int) -> list[Extent]:
    """Return the extents after the chunks ``written`` got ``sequence`` in a file of ``chunks``; may be too many."""
    marks: dict[int, int] = {extent.first: extent.sequence for extent in extents if extent.first < chunks}
    for index in sorted(written):
        following = index + 1
        if following < chunks and following not in marks:
            marks[following] = sequence_of(extents, following)
        marks[index] = sequence
    merged: list[Extent] = []
    for first in sorted(marks):
        if not merged or merged[-1].sequence != marks[first]:
            merged.append(Extent(first, marks[first]))
    return merged
