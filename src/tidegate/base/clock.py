"""Time and randomness as parameters, so that deciding code reads neither by itself."""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    """Where a room gets its time."""

    def now_s(self) -> float:
        """Return seconds since 1970-01-01 UTC."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds that never run backwards, from an arbitrary start."""
        ...


class Entropy(Protocol):
    """Where a room gets its randomness."""

    def random_bytes(self, count: int) -> bytes:
        """Return ``count`` bytes that nobody can predict."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_s(self) -> float:
        return time.time()

    def monotonic_s(self) -> float:
        return time.monotonic()


class SystemEntropy:
    """The kernel's random generator, blocking until it is seeded."""

    def random_bytes(self, count: int) -> bytes:
        return os.getrandom(count) if count <= 256 else os.urandom(count)
