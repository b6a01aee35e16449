"""What a library freed as it was is overwritten: blocks of every size, cached and not."""

from __future__ import annotations

import ctypes
import threading

import pytest

from tidegate.crypto import heap
from tidegate.crypto.heap import overwritten_heap

pytestmark = pytest.mark.skipif(heap._ALLOCATOR is None, reason="the C library is not glibc")
MARK = bytes(range(200, 216))
LINKS = 32  # a free block's first bytes hold the allocator's own pointers


def leave(sizes, count):
    """Free ``count`` marked blocks of each size; return where they were."""
    blocks = [(heap._ALLOCATOR.malloc(size), size) for size in sizes for _ in range(count)]
    heap._ALLOCATOR.malloc(64)  # stays, so that the heap does not shrink and what was freed can be looked at
    for address, size in blocks:
        ctypes.memmove(address, MARK * (size // len(MARK)), size // len(MARK) * len(MARK))
    for address, _ in blocks:
        heap._ALLOCATOR.free(address)
    return blocks


def marked(blocks):
    return sum(MARK[:8] in ctypes.string_at(address, size)[LINKS:] for address, size in blocks)


@pytest.mark.parametrize("count", [1, 7, 8, 40])
def test_blocks_of_every_size_are_overwritten(count) -> None:
    sizes = range(64, 4_000, 48)
    control = leave(sizes, count)
    assert marked(control)  # without it they stay
    with overwritten_heap():
        blocks = leave(sizes, count)
    assert marked(blocks) == 0


def test_also_where_the_call_fails_and_in_every_thread() -> None:
    left = []

    def run():
        with pytest.raises(ValueError, match="wrong"), overwritten_heap():
            blocks = leave([128], 3)
            raise ValueError("wrong")
        left.append(marked(blocks))

    for _ in range(8):  # one after the other: the next one would mark a heap that it shares
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert left == [0] * 8


def test_another_c_library(monkeypatch) -> None:
    monkeypatch.setattr(heap, "_ALLOCATOR", None)
    with overwritten_heap():
        pass
