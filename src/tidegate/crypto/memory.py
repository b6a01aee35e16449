"""Secret memory: pages that are locked in RAM, left out of core dumps, gone in forked children, wiped when freed.

Touches: anonymous memory of this process (memfd_secret(2) where the kernel has it, else mlock(2) and madvise(2)).
Secrets of one process share a few pages; a secret has at least 64 bytes of its own.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import mmap
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from tidegate.crypto.aead import Secret, clear_registers, overwrite_bytes
from tidegate.crypto.errors import SecretForked, SecretMemoryShort, SecretWiped

ARENA_BYTES = 64 << 10  # 1,024 keys; RLIMIT_MEMLOCK is 8 MiB as a rule, 64 KiB on old systems
_SLOT_BYTES = 64
_SYS_MEMFD_SECRET = 447  # the same number on every architecture since Linux 5.14


class Protection(enum.Enum):
    """What holds for secret memory on this machine, the best first."""

    HIDDEN = "memfd_secret"  # unreadable even for the kernel's own copies and for debuggers
    LOCKED = "mlock"  # never swapped, not dumped
    PLAIN = "none"  # the limit on locked memory is used up: not dumped, but may be swapped


class _Arena:
    """One mapping, cut into slots of 64 bytes."""

    def __init__(self) -> None:
        self.pages, self.protection = _map_pages(ARENA_BYTES)
        self.view = memoryview(self.pages)
        self.free = [(0, ARENA_BYTES // _SLOT_BYTES)]  # runs of slots: start, count

    def take(self, slots: int) -> int | None:
        """Return the first slot of a free run, or None."""
        for number, (start, count) in enumerate(self.free):
            if count >= slots:
                self.free[number : number + 1] = [(start + slots, count - slots)] if count > slots else []
                return start
        return None

    def give(self, start: int, slots: int) -> None:
        """Take a run back, joined with its neighbours."""
        runs: list[tuple[int, int]] = []
        for run, count in sorted([*self.free, (start, slots)]):
            if runs and runs[-1][0] + runs[-1][1] == run:
                runs[-1] = (runs[-1][0], runs[-1][1] + count)
            else:
                runs.append((run, count))
        self.free = runs


class ProtectedSecret(Secret):
    """A ``Secret`` in secret memory; ``fill`` makes it without a copy elsewhere.

    After a fork the child has no such memory: ``view`` raises ``crypto.secret.forked`` there.
    """

    __slots__ = ("_pid", "_wiped")

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._reserve(len(data))
        self._buffer[:] = data
        clear_registers()

    @classmethod
    def fill(cls, count: int, write: Callable[[memoryview], object]) -> ProtectedSecret:
        """Return a secret of ``count`` bytes that ``write`` put into its memory; wiped if ``write`` fails."""
        secret = cls.__new__(cls)
        secret._reserve(count)
        try:
            write(secret.view())
        except BaseException:
            secret.wipe()
            raise
        finally:
            clear_registers()
        return secret

    @classmethod
    def random(cls, count: int) -> ProtectedSecret:
        """Return ``count`` bytes of the kernel's random generator, read straight into secret memory."""
        return cls.fill(count, _read_random)

    def _reserve(self, count: int) -> None:
        self._pid, self._wiped = os.getpid(), False
        slots = max(1, -(-count // _SLOT_BYTES))
        arena, start = _allocate(slots)
        block = (ctypes.c_ubyte * count).from_buffer(arena.pages, start * _SLOT_BYTES)
        weakref.finalize(block, _give_back, arena, start, slots, self._pid).atexit = False
        # keeps the memory as long as anybody has a view of it: meanwhile it is never another secret's
        self._buffer = memoryview(block).cast("B")  # type: ignore[assignment]  # writable like a bytearray

    def view(self) -> memoryview:
        """Return the secret's own memory; raise ``crypto.secret.wiped`` after ``wipe``: zeros would pass for a key."""
        if os.getpid() != self._pid:
            raise SecretForked("the secret belongs to the parent process")
        if self._wiped:
            raise SecretWiped("the secret was wiped")
        return memoryview(self._buffer)

    def wipe(self) -> None:
        """Overwrite the secret; harmless when repeated, and in a forked child. Its memory goes with its last view."""
        if os.getpid() == self._pid:
            self._wiped = True
            self._buffer[:] = bytes(len(self._buffer))
            self._buffer = bytearray(len(self._buffer))

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")


def take_bytes(data: bytes) -> ProtectedSecret:
    """Move a secret that a library returned as ``bytes`` into secret memory, and overwrite those bytes.

    Nobody else may hold ``data``: it is what the library returned just now, and reads zeros afterwards.
    """
    secret = ProtectedSecret(data)
    overwrite_bytes(data)
    return secret


_lock = threading.Lock()
_arenas: list[_Arena] = []
_given_back: deque[tuple[_Arena, int, int]] = deque()  # runs of secrets that are gone, until the next one is made
_owner = 0  # the process whose arenas these are


def protection() -> Protection:
    """Return what secret memory is here; takes some if there is none yet."""
    ProtectedSecret.random(1).wipe()
    order = list(Protection)
    return max((arena.protection for arena in _arenas), key=order.index)


def _allocate(slots: int) -> tuple[_Arena, int]:
    global _owner  # noqa: PLW0603  # a fork takes the arenas away; the child starts its own
    if slots * _SLOT_BYTES > ARENA_BYTES:
        raise SecretMemoryShort(f"a secret has at most {ARENA_BYTES} bytes", limit=ARENA_BYTES)
    with _lock:
        if _owner != os.getpid():
            _arenas.clear()
            _given_back.clear()
            _owner = os.getpid()
        while _given_back:
            owner, start, count = _given_back.popleft()
            owner.give(start, count)
        for arena in _arenas:
            found = arena.take(slots)
            if found is not None:
                return arena, found
        arena = _Arena()
        _arenas.append(arena)
        return arena, arena.take(slots) or 0


def _give_back(arena: _Arena, start: int, slots: int, owner: int) -> None:
    """Wipe a run and let it be used again. Garbage is collected at any point, ``_allocate`` included: no lock here."""
    if os.getpid() == owner:  # in a forked child the memory is not there
        arena.view[start * _SLOT_BYTES : (start + slots) * _SLOT_BYTES] = bytes(slots * _SLOT_BYTES)
        _given_back.append((arena, start, slots))


def _renew_lock() -> None:
    """A thread that is not there in the child may have held it."""
    global _lock  # noqa: PLW0603  # as above
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def _map_pages(size: int) -> tuple[mmap.mmap, Protection]:
    """Return zeroed pages, protected as well as this kernel and this process's limits allow."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(_SYS_MEMFD_SECRET, os.O_CLOEXEC)
    if descriptor >= 0:
        try:
            os.ftruncate(descriptor, size)
            pages = mmap.mmap(descriptor, size)
        except OSError:
            pass  # over the limit on locked memory: the next best
        else:
            pages.madvise(mmap.MADV_DONTFORK)
            return pages, Protection.HIDDEN
        finally:
            os.close(descriptor)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_DONTDUMP)
    pages.madvise(mmap.MADV_DONTFORK)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    locked = libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)) == 0
    return pages, Protection.LOCKED if locked else Protection.PLAIN


def _read_random(target: memoryview) -> None:
    """Fill ``target`` by getrandom(2), which waits until the kernel's generator is seeded, as /dev/urandom may not."""
    block = (ctypes.c_ubyte * len(target)).from_buffer(target)
    libc = ctypes.CDLL(None, use_errno=True)
    done = 0
    while done < len(target):
        more = libc.getrandom(ctypes.byref(block, done), ctypes.c_size_t(len(target) - done), 0)
        if more < 0 and ctypes.get_errno() != errno.EINTR:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        done += max(0, more)
