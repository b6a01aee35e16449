"""The EVE lines of a process that runs, each with the time at which it was read.

Promises: whoever waits for a line gets it the moment it is written, or ``None`` when the time is over. Leaves to
others: how the process is started, assertions. Touches: the process's standard output and its end.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

CHUNK_BYTES = 65_536  # a pipe holds no more

Event = dict[str, Any]


class EveReader:
    """Reads what ``process`` writes; ``events`` has all of it, with the seconds since 1970."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events: list[tuple[float, Event]] = []
        self._rest = b""

    def read_until(self, wanted: Callable[[Event], bool], timeout_s: float) -> Event | None:
        """Return the first new event that is ``wanted``; ``None`` at the end of the time or of the process."""
        if self.process.stdout is None:
            return None
        deadline_s = time.monotonic() + timeout_s
        descriptor = self.process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while selector.select(max(0.0, deadline_s - time.monotonic())):
                data = os.read(descriptor, CHUNK_BYTES)
                if not data:
                    return None
                *lines, self._rest = (self._rest + data).split(b"\n")
                events: list[Event] = [json.loads(line) for line in lines]
                self.events += [(time.time(), event) for event in events]
                for event in events:
                    if wanted(event):
                        return event
        return None

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 5.0) -> int:
        """Ask the process to end, read its last words, return its status."""
        self.process.send_signal(number)
        self.read_until(lambda _: False, timeout_s)
        status = self.process.wait(timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def alerts(self) -> list[Event]:
        """Return the alerts so far."""
        return [event for _, event in self.events if event["event_type"] == "alert"]

    def read_s(self, event: Event) -> float:
        """Return when an event was read."""
        return next(read_s for read_s, known in self.events if known is event)
