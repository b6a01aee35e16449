"""Reads EVE JSON files: whole, or as they grow, through rotation and truncation.

Touches: EVE files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tidegate.base.durable import translate_os_errors
from tidegate.ids.errors import EveInvalid

MAX_LINE_BYTES = 1 << 20  # Suricata's buffer of a line ends at 64 KiB times its growth; payloads in base64 included
READ_BYTES = 1 << 16
MAX_LINES_A_POLL = 10_000  # then the caller gets to look at its clock


def parse_eve_line(line: bytes) -> dict[str, Any] | None:
    """Return the event of a line, or None for a line that is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event_type"), str) else None


def read_eve(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a file; lines that are none are passed over.

    Raises ``ids.eve.invalid`` if the file has lines and none is an event, ``base.storage.*`` if it is not readable.
    """
    events = lines = 0
    with translate_os_errors(path), path.open("rb") as stream:
        for line in _lines(stream):
            lines += 1
            event = parse_eve_line(line)
            if event is not None:
                events += 1
                yield event
    if lines and not events:
        raise EveInvalid(f"{path} has no EVE line among its {lines}", file=str(path))


class EveTail:
    """Follows a file by its name: what is appended, the new file after a rotation, the rest after a truncation.

    ``poll`` never waits. What was written to the old file before its rotation is read first. A line longer than
    ``MAX_LINE_BYTES`` is passed over and counted, and so is a line that is no event.
    """

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        self._path = path
        self._stream: BinaryIO | None = None
        self._place: tuple[int, int] | None = None
        self._rest = bytearray()
        self._is_skipping = False
        self._is_last_look = False  # the new file has lines; what the old one got meanwhile is read before
        self.damaged = 0
        self.rotations = 0
        self._open(at_end=not from_start)

    def poll(self) -> list[dict[str, Any]]:
        """Return the events that have come since, at most ``MAX_LINES_A_POLL``."""
        events: list[dict[str, Any]] = []
        with translate_os_errors(self._path):
            while len(events) < MAX_LINES_A_POLL:
                data = self._stream.read(READ_BYTES) if self._stream is not None else b""
                if data:
                    events += self._take(data)
                elif not self._follow_name():
                    break
        return events

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _open(self, *, at_end: bool) -> bool:
        try:
            stream = self._path.open("rb")
        except FileNotFoundError:
            return False  # between a rotation's two steps, or the writer has not begun: it comes
        except OSError:
            with translate_os_errors(self._path):
                raise
        self.close()
        status = os.fstat(stream.fileno())
        self._stream, self._place = stream, (status.st_dev, status.st_ino)
        self._rest.clear()
        self._is_skipping = self._is_last_look = False
        if at_end:
            stream.seek(0, os.SEEK_END)
        return True

    def _follow_name(self) -> bool:
        """Look at what the name stands for now; return whether there is something new to read."""
        if self._stream is None:
            return self._open(at_end=False)
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        if (status.st_dev, status.st_ino) != self._place:
            # The writer goes on with the old file until it is told, even where the new one is there already.
            if not status.st_size:
                return False
            if not self._is_last_look:
                self._is_last_look = True
                return True
            self.rotations += 1
            return self._open(at_end=False)
        if status.st_size < self._stream.tell():  # truncated in place: copytruncate of logrotate
            self.rotations += 1
            self._stream.seek(0)
            self._rest.clear()
            return True
        return False

    def _take(self, data: bytes) -> Iterable[dict[str, Any]]:
        *whole, rest = (bytes(self._rest) + data).split(b"\n")
        for line in whole:
            event = None if self._is_skipping else parse_eve_line(line)
            if event is not None:
                yield event
            elif line.strip() or self._is_skipping:
                self.damaged += 1
            self._is_skipping = False
        self._rest = bytearray(rest)
        if len(self._rest) > MAX_LINE_BYTES:
            self._is_skipping = True
            self._rest.clear()


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    while line := stream.readline(MAX_LINE_BYTES):
        if not line.endswith(b"\n") and len(line) == MAX_LINE_BYTES:
            while more := stream.readline(MAX_LINE_BYTES):  # the rest of a line that is too long
                if more.endswith(b"\n"):
                    break
            continue
        if line.strip():
            yield line
