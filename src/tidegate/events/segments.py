"""The log's folder: numbered segment files, their checkpoint files, the writer's lock.

Touches: ``NNNNNNNN.events`` (lines as written), ``NNNNNNNN.thinned`` (alerts and gap records), ``NNNNNNNN.checkpoints``
and ``lock``. Bytes: docs/formats/events.md.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
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
from tidegate.events.errors import SpoolBusy
from tidegate.events.lines import StoredLine
from tidegate.events.retention import Segment

if TYPE_CHECKING:
    from tidegate.crypto.trust import TrustPolicy

MAX_SEGMENT_BYTES = 16 << 20  # what is read into memory at once; a segment is a small part of a small log
_NAME = re.compile(r"([0-9]{8})\.(events|thinned|checkpoints)")
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


class WriterLock:
    """The right to write into the folder; one process has it at a time, and it goes when the process does."""

    def __init__(self, folder: Path, *, wait_s: float) -> None:
        path = folder / "lock"
        with translate_os_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            for attempt in range(int(wait_s / _LOCK_POLL_S) + 1):
                if attempt:
                    time.sleep(_LOCK_POLL_S)
                try:
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                return
        self.release()
        raise SpoolBusy(f"{folder} has another writer (waited {wait_s:g} s)", folder=str(folder))

    def release(self) -> None:
        """Let the next writer in; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def events_path(folder: Path, number: int) -> Path:
    """Return where the lines of segment ``number`` are written."""
    return folder / f"{number:08}.events"


def thinned_path(folder: Path, number: int) -> Path:
    """Return where the thinned lines of segment ``number`` are."""
    return folder / f"{number:08}.thinned"


def checkpoints_path(folder: Path, number: int) -> Path:
    """Return where the checkpoints of segment ``number`` are."""
    return folder / f"{number:08}.checkpoints"


def list_segments(folder: Path) -> list[Segment]:
    """Return the segments in order; of one that is there whole and thinned (a cut while thinning) the whole."""
    sizes: dict[tuple[int, str], int] = {}
    with translate_os_errors(folder):
        for path in folder.iterdir():
            if match := _NAME.fullmatch(path.name):
                sizes[int(match[1]), match[2]] = path.stat().st_size
    segments = []
    for number in sorted({number for number, kind in sizes if kind != "checkpoints"}):
        thinned = (number, "events") not in sizes
        lines = sizes[number, "thinned" if thinned else "events"]
        size_bytes = lines + sizes.get((number, "checkpoints"), 0)
        segments.append(Segment(number=number, size_bytes=size_bytes, thinned=thinned))
    return segments


def read_segment(folder: Path, segment: Segment) -> list[StoredLine]:
    """Return the lines of one segment, unverified; a last line without newline counts as a line."""
    path = (thinned_path if segment.thinned else events_path)(folder, segment.number)
    return _read_lines(path)


def read_checkpoints(folder: Path, number: int) -> list[StoredLine]:
    """Return the checkpoint lines of one segment, unverified."""
    try:
        return _read_lines(checkpoints_path(folder, number))
    except StorageMissing:
        return []


def read_log(folder: Path) -> Iterator[StoredLine]:
    """Yield every line of the log in order, unverified."""
    for segment in list_segments(folder):
        yield from read_segment(folder, segment)


def follow_log(folder: Path, wait: Callable[[], None]) -> Iterator[StoredLine]:
    """Yield every line of the log and then each new one, unverified; ``wait`` is called when there is none.

    Lines that are thinned or dropped while nobody looks are not yielded.
    """
    seen = (0, 0)  # segment, line
    while True:
        for segment in list_segments(folder):
            if segment.number < seen[0]:
                continue
            for line in read_segment(folder, segment):
                if (segment.number, line.number) > seen and line.complete:
                    seen = (segment.number, line.number)
                    yield line
        wait()


def verify_folder(folder: Path, trust: TrustPolicy) -> VerifiedLog:
    """Return what the log in ``folder`` amounts to; errors and what is not checked as for ``verify_chain``."""
    checkpoints = [line for segment in list_segments(folder) for line in read_checkpoints(folder, segment.number)]
    return verify_chain(read_log(folder), checkpoints, trust=trust)


def replace_by_thinned(folder: Path, number: int, content: bytes) -> None:
    """Put the thinned segment in the place of the whole one; a cut leaves one of them, or both alike."""
    write_file_atomic(thinned_path(folder, number), content, mode=0o600)
    _remove(events_path(folder, number))


def remove_segment(folder: Path, number: int) -> None:
    """Remove a thinned segment, then its checkpoints: without lines they are not read any more."""
    _remove(thinned_path(folder, number))
    _remove(checkpoints_path(folder, number))


def remove_orphans(folder: Path) -> None:
    """Remove what a power cut left of steps that were under way: checkpoints without lines, unfinished copies."""
    numbers = {segment.number for segment in list_segments(folder)}
    with translate_os_errors(folder):
        for path in list(folder.iterdir()):
            match = _NAME.fullmatch(path.name)
            if (match and int(match[1]) not in numbers) or (path.name.startswith(".") and path.suffix == ".new"):
                _remove(path)


def _remove(path: Path) -> None:
    with translate_os_errors(path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def _read_lines(path: Path) -> list[StoredLine]:
    data = read_file_bounded(path, limit_bytes=MAX_SEGMENT_BYTES)
    rows = data.split(b"\n")
    torn = rows.pop()
    lines = [StoredLine(file=path.name, number=number, raw=raw) for number, raw in enumerate(rows, start=1)]
    if torn:
        lines.append(StoredLine(file=path.name, number=len(rows) + 1, raw=torn, complete=False))
    return lines
