"""One read or write beside the ciphers, by the C library's asynchronous I/O (aio(7)).

The library's ciphers keep the interpreter's lock, so that a thread of ours could not begin its system call while they
run, and waking one takes as long as twenty chunks. The C library's own threads need no lock. Where it has none that we
know (another C library, 32 bits) or it refuses, the call is made at once: slower, and nothing else is different.

Touches: descriptors of the caller's.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os


class _Request(ctypes.Structure):
    """``struct aiocb`` of glibc with 64 bits (bits/types/…, aio.h): what is ours, then room for what is its own."""

    _fields_ = (
        ("descriptor", ctypes.c_int),
        ("operation", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("memory", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("notify_value", ctypes.c_void_p),  # struct sigevent, 64 bytes
        ("notify_signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("notify_rest", ctypes.c_char * 48),
        ("own", ctypes.c_char * 32),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_char * 32),
    )


_SIGEV_NONE = 1
_REQUEST_BYTES = 168
_ADDRESS_BYTES = 8


def _library() -> ctypes.CDLL | None:
    """Return the C library if its asynchronous I/O is the one that we know."""
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):  # another C library
        return None
    known = version.startswith("glibc") and ctypes.sizeof(ctypes.c_void_p) == _ADDRESS_BYTES
    library = ctypes.CDLL(None, use_errno=True)
    names = ("aio_write", "aio_read", "aio_error", "aio_return", "aio_suspend")
    if not known or ctypes.sizeof(_Request) != _REQUEST_BYTES or not all(hasattr(library, name) for name in names):
        return None
    library.aio_return.restype = ctypes.c_ssize_t
    return library


_LIBRARY = _library()


class Beside:
    """At most one transfer that is under way; ``write`` and ``read`` come behind a ``wait``. For use by one thread."""

    def __init__(self) -> None:
        self._request: _Request | None = None
        self._memory: object = None  # what the C library reads or fills stays until it is done
        self._done = 0
        self._process = 0

    def write(self, descriptor: int, data: memoryview, offset: int) -> None:
        """Begin to write ``data``, which nobody may change before ``wait``; raise ``OSError``."""
        if not self._begin("aio_write", descriptor, data, offset):
            self._done = os.pwrite(descriptor, data, offset)

    def read(self, descriptor: int, target: memoryview, offset: int) -> None:
        """Begin to fill ``target``, which nobody may use before ``wait``; raise ``OSError``."""
        if not self._begin("aio_read", descriptor, target, offset):
            self._done = os.preadv(descriptor, [target], offset)

    def wait(self) -> int:
        """Return how many bytes the transfer moved, perhaps fewer than wanted; 0 without one. Raise ``OSError``."""
        request, library = self._request, _LIBRARY
        if request is not None and library is not None and self._process == os.getpid():
            waited = (ctypes.c_void_p * 1)(ctypes.addressof(request))
            while (error := library.aio_error(ctypes.byref(request))) == errno.EINPROGRESS:
                library.aio_suspend(waited, 1, None)  # a signal ends it early: then Python runs its handler
            self._done = library.aio_return(ctypes.byref(request))
            if error:
                self._request, self._memory, self._done = None, None, 0
                raise OSError(error, os.strerror(error))
        self._request = self._memory = None  # in a forked child nobody goes on with it
        done, self._done = self._done, 0
        return done

    def close(self) -> None:
        """Wait, whatever comes of it."""
        with contextlib.suppress(OSError):
            self.wait()

    def __del__(self) -> None:
        self.close()

    def _begin(self, call: str, descriptor: int, memory: memoryview, offset: int) -> bool:
        if self._request is not None:
            raise RuntimeError("a transfer is under way")
        if _LIBRARY is None or not memory:
            return False
        self._memory = (ctypes.c_char * len(memory)).from_buffer(memory)
        request = _Request(
            descriptor=descriptor,
            memory=ctypes.addressof(self._memory),
            size=len(memory),
            notify=_SIGEV_NONE,
            offset=offset,
        )
        if getattr(_LIBRARY, call)(ctypes.byref(request)):
            self._memory = None
            return False
        self._request, self._process = request, os.getpid()
        return True
