"""How often somebody may ask: a token bucket for each name, in a table of bounded size. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MAX_NAMES = 16_384  # some 2 MiB; beyond it the one that was quiet longest is forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """``burst`` at once, then ``per_minute`` of them."""

    burst: int
    per_minute: float


class RateLimit:
    """Counts by name; forgetting a name only ever gives it its full burst again."""

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, now_s: float) -> int:
        """Return 0 if ``name`` may go on, else in how many whole seconds it may. ``now_s`` is monotonic."""
        level, since = self._buckets.pop(name, (float(self._rate.burst), now_s))
        level = min(float(self._rate.burst), level + (now_s - since) * self._rate.per_minute / 60)
        allowed = level >= 1
        self._buckets[name] = (level - 1 if allowed else level, now_s)
        while len(self._buckets) > MAX_NAMES:
            self._buckets.popitem(last=False)
        return 0 if allowed else int((1 - level) * 60 / self._rate.per_minute) + 1
