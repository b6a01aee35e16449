"""Power cuts: block devices whose supply goes away at a chosen write or flush, and what their storage holds after it.

Promises: a write is durable only once a flush returned; what was not flushed is kept, lost, reordered or torn, as real
caches do. Every outcome follows from its seed, so a failure can be repeated. Leaves to others: assertions; file systems
(these are raw devices); flash that loses blocks which were durable before.

A drill, in four steps: ``count_operations`` says how many places there are to cut; ``plan_outages`` lists them with
every fate of the cache; a ``PowerSupply`` with ``cut_at`` raises ``PowerCut`` there; ``SimulatedBlockDevice.restart``
gives the device as the next boot finds it.
"""

from __future__ import annotations

import enum
import errno
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Self

from tidegate.base.errors import InputTruncated, StorageFailed
from tidegate.testing.errors import PowerCut

SECTOR_BYTES = 512  # the smallest unit that disks and eMMC promise to write whole


class CacheFate(enum.Enum):
    """What becomes of the writes that no flush had confirmed when the power went away."""

    DROPPED = "dropped"  # none of them reached the storage
    KEPT = "kept"  # all of them did, the one under way included
    SUBSET = "subset"  # some of them, in any order
    TORN = "torn"  # some of them, in any order, and one in part: only some of its sectors


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """One power cut: at which operation (counted from 1), and what the caches keep. ``seed`` fixes all chance in it."""

    at: int
    fate: CacheFate
    seed: int = 0


class PowerSupply:
    """Feeds any number of devices and counts their writes and flushes together.

    With ``cut_at`` the operation of that number (from 1) does not complete: it raises ``PowerCut``, and so does all
    that any of the devices is asked for afterwards, reading included.
    """

    def __init__(self, *, cut_at: int | None = None) -> None:
        if cut_at is not None and cut_at < 1:
            raise ValueError("operations are counted from 1")
        self.cut_at = cut_at
        self.operations = 0
        self.is_on = True

    def require(self) -> None:
        """Raise ``PowerCut`` if the power is away."""
        if not self.is_on:
            raise PowerCut(f"the power was cut at operation {self.operations}")

    def spend(self) -> None:
        """Count one write or flush; raise ``PowerCut`` if it is the one that does not complete."""
        self.require()
        self.operations += 1
        if self.operations == self.cut_at:
            self.is_on = False
            raise PowerCut(f"the power was cut at operation {self.operations}")


@dataclass(frozen=True, slots=True)
class _Write:
    offset: int
    data: bytes

    def sectors(self) -> Iterator[_Write]:
        """Yield the parts of this write that are written whole or not at all."""
        start, end = self.offset, self.offset + len(self.data)
        while start < end:
            stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
            yield _Write(start, self.data[start - self.offset : stop - self.offset])
            start = stop


class SimulatedBlockDevice:
    """A ``tidegate.base.blockdev.BlockDevice`` in memory with a volatile write cache.

    Readers see what was written last, flushed or not. A write past the end raises ``base.storage.failed`` and a read
    past it ``base.input.truncated``, as a partition's would.
    """

    def __init__(self, content: bytes, supply: PowerSupply) -> None:
        """Hold ``content``, all of it durable; its length is the capacity."""
        self._durable = bytearray(content)
        self._seen = bytearray(content)
        self._cache: list[_Write] = []
        self._supply = supply
        self.writes = 0

    @property
    def size_bytes(self) -> int:
        return len(self._durable)

    def read_at(self, offset: int, count: int) -> bytes:
        self._supply.require()
        if offset < 0 or count < 0 or offset + count > len(self._seen):
            raise InputTruncated(f"the device ends before byte {offset + count}", have=len(self._seen))
        return bytes(self._seen[offset : offset + count])

    def write_at(self, offset: int, data: bytes) -> None:
        self._supply.require()
        if offset < 0 or offset + len(data) > len(self._seen):
            raise StorageFailed("write past the end of the device", errno=errno.EFBIG)
        self.writes += 1
        self._cache.append(_Write(offset, bytes(data)))  # a cut during this write may find it in the cache already
        self._supply.spend()
        self._seen[offset : offset + len(data)] = data

    def flush(self) -> None:
        self._supply.spend()  # a cut during a flush confirms nothing
        self._durable[:] = self._seen
        self._cache.clear()

    @property
    def unflushed(self) -> int:
        """Return how many writes a power cut could still take."""
        return len(self._cache)

    def durable(self) -> bytes:
        """Return the content that no power cut can take any more; needs no power."""
        return bytes(self._durable)

    def restart(self, supply: PowerSupply, fate: CacheFate, chance: random.Random) -> Self:
        """Return the device as the next boot finds it, on ``supply``; this one stays as it is, for another try.

        ``chance`` decides which writes survive, in which order, and which sectors of the torn one.
        """
        content = bytearray(self._durable)
        for write in _surviving(self._cache, fate, chance):
            content[write.offset : write.offset + len(write.data)] = write.data
        return type(self)(bytes(content), supply)


def count_operations(operation: Callable[[PowerSupply], object]) -> int:
    """Return how many writes and flushes ``operation`` makes on a supply that holds: so many places there are to cut.

    ``operation`` makes its devices on the supply it is given, and must do the same each time.
    """
    supply = PowerSupply()
    operation(supply)
    return supply.operations


def plan_outages(operations: int, *, seeds: Iterable[int] = (0,)) -> Iterator[Outage]:
    """Yield a cut at each of ``operations`` with each fate of the cache; those that chance decides, once per seed."""
    chosen = tuple(seeds)
    for at in range(1, operations + 1):
        yield Outage(at=at, fate=CacheFate.DROPPED)
        yield Outage(at=at, fate=CacheFate.KEPT)
        for seed in chosen:
            yield Outage(at=at, fate=CacheFate.SUBSET, seed=seed)
            yield Outage(at=at, fate=CacheFate.TORN, seed=seed)


def _surviving(cache: list[_Write], fate: CacheFate, chance: random.Random) -> list[_Write]:
    """Return the writes of ``cache`` that reach the storage, in the order in which they do."""
    if fate is CacheFate.DROPPED or not cache:
        return []
    if fate is CacheFate.KEPT:
        return list(cache)
    torn = chance.randrange(len(cache)) if fate is CacheFate.TORN else None
    survivors: list[_Write] = []
    for number, write in enumerate(cache):
        if number == torn:
            sectors = list(write.sectors())
            survivors += chance.sample(sectors, chance.randrange(len(sectors)))
        elif chance.random() < 0.5:
            survivors.append(write)
    chance.shuffle(survivors)
    return survivors
