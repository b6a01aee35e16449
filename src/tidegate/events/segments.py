"""The log's folder: numbered segment files, their checkpoint files, the writer's lock.

Touches: ``NNNNNNNN.events`` (lines as written) with ``NNNNNNNN.checkpoints``; ``NNNNNNNN-NNNNNNNN.thinned`` (alerts and
gap records) and ``.kept`` (evidence), which hold their checkpoints themselves; ``lock``. Bytes: docs/formats/events.md.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.base.durable import (
    read_file_bounded,
    sync_folder,
    translate_os_errors,
    write_all,
    write_file_atomic,
)
from tidegate.base.errors import StorageMissing
from tidegate.events.chain import VerifiedLog, verify_chain
from tidegate.events.checkpoint import CHECKPOINT_START
from tidegate.events.errors import LineMalformed
from tidegate.events.lines import StoredLine
from tidegate.events.retention import Segment, SegmentKind

if TYPE_CHECKING:
    from tidegate.crypto.trust import TrustPolicy

MAX_SEGMENT_BYTES = 16 << 20  # what is read into memory at once; a segment is a small part of a small log
_NAME = re.compile(r"([0-9]{8,10})(?:-([0-9]{8,10}))?\.(events|thinned|kept)")
_LOCK_POLL_S = 0.02


class AppendFile:
    """A file that only grows, by whole lines: a write that fails leaves it as it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_os_errors(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._descriptor = os.open(path, flags, 0o600)
            self.size_bytes = os.fstat(self._descriptor).st_size
            sync_folder(path.parent)

    def append(self, line: bytes) -> None:
        """Add ``line`` and a newline; on ``base.storage.*`` nothing of it stays. Durable only after ``sync``."""
        data = line + b"\n"
        with translate_os_errors(self.path):
            try:
                write_all(self._descriptor, data)
            except OSError:
                os.ftruncate(self._descriptor, self.size_bytes)
                raise
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Return once every line is durable."""
        with translate_os_errors(self.path):
            os.fdatasync(self._descriptor)

    def cut_torn_line(self) -> int:
        """Remove bytes behind the last newline, which a power cut left; return how many there were."""
        torn = self.size_bytes - (read_file_bounded(self.path, limit_bytes=MAX_SEGMENT_BYTES).rfind(b"\n") + 1)
        if torn:
            with translate_os_errors(self.path):
                os.ftruncate(self._descriptor, self.size_bytes - torn)
                os.fsync(self._descriptor)
            self.size_bytes -= torn
        return torn

    def close(self) -> None:
        """Give the descriptor back; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def events_path(folder: Path, number: int) -> Path:
    """Return where the lines of segment ``number`` are written."""
    return folder / f"{number:08}.events"


def checkpoints_path(folder: Path, number: int) -> Path:
    """Return where the checkpoints of a segment that is written, or was, but not thinned, are."""
    return folder / f"{number:08}.checkpoints"


def list_segments(folder: Path) -> list[Segment]:
    """Return the segments in order. One that a thinned segment stands for does not count (a cut while thinning)."""
    found = []
    with translate_os_errors(folder):
        for path in folder.iterdir():
            match = _NAME.fullmatch(path.name)
            if not match:
                continue
            first = int(match[1])
            size_bytes = path.lstat().st_size
            if match[3] == SegmentKind.FULL.value and checkpoints_path(folder, first).exists():
                size_bytes += checkpoints_path(folder, first).stat().st_size
            last = int(match[2]) if match[2] else first
            found.append(Segment(first=first, last=last, size_bytes=size_bytes, kind=SegmentKind(match[3])))
    segments: list[Segment] = []
    for segment in sorted(found, key=lambda one: (one.first, -one.last, one.kind is SegmentKind.FULL)):
        if not segments or segment.first > segments[-1].last:
            segments.append(segment)
    return segments


def read_segment(folder: Path, segment: Segment) -> tuple[list[StoredLine], list[StoredLine]]:
    """Return the lines and the checkpoints of one segment, unverified; a torn last line counts as a line."""
    if segment.kind is SegmentKind.FULL:
        try:
            checkpoints = _read_lines(checkpoints_path(folder, segment.first))
        except StorageMissing:
            checkpoints = []
        return _read_lines(events_path(folder, segment.first)), checkpoints
    rows = _read_lines(_compact_path(folder, segment))
    return (
        [row for row in rows if not row.raw.startswith(CHECKPOINT_START)],
        [row for row in rows if row.raw.startswith(CHECKPOINT_START)],
    )


def read_log(folder: Path) -> Iterator[StoredLine]:
    """Yield every line of the log in order, unverified."""
    for segment in list_segments(folder):
        yield from read_segment(folder, segment)[0]


def follow_log(folder: Path, wait: Callable[[], None]) -> Iterator[StoredLine]:
    """Yield every line of the log and then each new one, unverified; ``wait`` is called when there is none.

    Lines that are thinned or dropped while nobody looks are not yielded.
    """
    seen = (0, 0)  # segment, line
    while True:
        for segment in list_segments(folder):
            if segment.first < seen[0]:
                continue
            for line in read_segment(folder, segment)[0]:
                if (segment.first, line.number) > seen and line.complete:
                    seen = (segment.first, line.number)
                    yield line
        wait()


def verify_folder(folder: Path, trust: TrustPolicy) -> VerifiedLog:
    """Return what the log in ``folder`` amounts to; errors and what is not checked as for ``verify_chain``."""
    lines: list[StoredLine] = []
    checkpoints: list[StoredLine] = []
    for segment in list_segments(folder):
        found = read_segment(folder, segment)
        lines += found[0]
        checkpoints += found[1]
    return verify_chain(lines, checkpoints, trust=trust)


def replace_segments(folder: Path, segments: Sequence[Segment], kind: SegmentKind, rows: Iterable[bytes]) -> None:
    """Put one file of ``rows`` in the place of neighbouring segments; a cut leaves the old ones or the new one."""
    first, last = segments[0].first, segments[-1].last
    compact = Segment(first=first, last=last, size_bytes=0, kind=kind)
    write_file_atomic(_compact_path(folder, compact), b"".join(row + b"\n" for row in rows), mode=0o600)
    for segment in segments:
        if (segment.first, segment.last, segment.kind) != (first, last, kind):
            remove_segment(folder, segment)


def remove_segment(folder: Path, segment: Segment) -> None:
    """Remove a segment's files, the lines first: without them its checkpoints are not read any more."""
    if segment.kind is SegmentKind.FULL:
        _remove(events_path(folder, segment.first))
        _remove(checkpoints_path(folder, segment.first))
    else:
        _remove(_compact_path(folder, segment))


def remove_leftovers(folder: Path) -> None:
    """Remove what a power cut left of steps that were under way: parts that were replaced, unfinished copies."""
    used = set()
    for segment in list_segments(folder):
        if segment.kind is SegmentKind.FULL:
            used |= {events_path(folder, segment.first), checkpoints_path(folder, segment.first)}
        else:
            used.add(_compact_path(folder, segment))
    with translate_os_errors(folder):
        for path in list(folder.iterdir()):
            ours = _NAME.fullmatch(path.name) or path.suffix == ".checkpoints" or path.name.startswith(".")
            if ours and path not in used:
                _remove(path)


def set_aside_strangers(folder: Path) -> int:
    """Rename what cannot be a part of the log but has the name of one, so that it stops nobody; return how many.

    A pipe would block a reader, a huge file exhaust it. The verifier then misses the segment, which is the truth.
    """
    count = 0
    with translate_os_errors(folder):
        for path in list(folder.iterdir()):
            if not _NAME.fullmatch(path.name) and path.suffix != ".checkpoints":
                continue
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SEGMENT_BYTES:
                path.rename(path.with_name(f"{path.name}.aside"))
                count += 1
    return count


def _compact_path(folder: Path, segment: Segment) -> Path:
    return folder / f"{segment.first:08}-{segment.last:08}.{segment.kind.value}"


def _remove(path: Path) -> None:
    with translate_os_errors(path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def _read_lines(path: Path) -> list[StoredLine]:
    with translate_os_errors(path):
        if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would block the reader
            raise LineMalformed(f"{path.name} is no regular file", file=path.name)
    data = read_file_bounded(path, limit_bytes=MAX_SEGMENT_BYTES)
    rows = data.split(b"\n")
    torn = rows.pop()
    lines = [StoredLine(file=path.name, number=number, raw=raw) for number, raw in enumerate(rows, start=1)]
    if torn:
        lines.append(StoredLine(file=path.name, number=len(rows) + 1, raw=torn, complete=False))
    return lines
