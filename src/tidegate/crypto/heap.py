"""Overwrites what a library frees without doing so itself.

Touches: the C library's allocator. glibc only; elsewhere ``overwritten_heap`` changes nothing.
Source: mallopt(3), M_PERTURB; glibc malloc/malloc.c, the per-thread cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

_M_PERTURB, _FILL, _OFF = -6, 0x55, 0
_CACHED_SIZES = range(24, 1033, 16)  # what the cache keeps (TCACHE_MAX_BINS), which fills nothing
_CACHED_BLOCKS = 7  # of each size (TCACHE_FILL_COUNT)
_ONE_AT_A_TIME = threading.Lock()  # the setting is the whole process's


def _find_allocator() -> ctypes.CDLL | None:
    allocator = ctypes.CDLL(None)
    if not hasattr(allocator, "gnu_get_libc_version"):
        return None
    allocator.malloc.restype, allocator.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    allocator.free.restype, allocator.free.argtypes = None, [ctypes.c_void_p]
    allocator.mallopt.argtypes = [ctypes.c_int, ctypes.c_int]
    return allocator


_ALLOCATOR = _find_allocator()


@contextlib.contextmanager
def overwritten_heap() -> Iterator[None]:
    """Leave nothing in the heap that this thread freed within: its blocks are overwritten, in a millisecond."""
    if _ALLOCATOR is None:
        yield
        return
    with _ONE_AT_A_TIME:
        _ALLOCATOR.mallopt(_M_PERTURB, _FILL)
        try:
            yield
        finally:
            _ALLOCATOR.mallopt(_M_PERTURB, _OFF)
            _overwrite_cached(_ALLOCATOR)


def _overwrite_cached(allocator: ctypes.CDLL) -> None:
    """Take every block that this thread's cache can hold, and give it back overwritten."""
    for size in _CACHED_SIZES:
        blocks = [block for _ in range(_CACHED_BLOCKS) if (block := allocator.malloc(size))]
        for block in blocks:
            ctypes.memset(block, _FILL, size)
        for block in blocks:
            allocator.free(block)
