"""Block storage behind one small interface, so that a power cut can be simulated at every write.

Touches: partitions, or files that stand for them. ``tidegate.testing.power`` implements the same interface.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tidegate.base.durable import translate_os_errors
from tidegate.base.errors import InputTruncated

BLOCK_BYTES = 4096  # the unit of every write we make; flash pages and dm-verity use the same


class BlockDevice(Protocol):
    """A run of bytes of fixed size that reads, writes and flushes."""

    @property
    def size_bytes(self) -> int:
        """Return the capacity."""
        ...

    def read_at(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes or raise ``base.input.truncated``."""
        ...

    def write_at(self, offset: int, data: bytes) -> None:
        """Write ``data``; durable only after ``flush``."""
        ...

    def flush(self) -> None:
        """Return once everything written before is durable."""
        ...


class FileBlockDevice:
    """A partition, or a file that stands for one. Never grows: a write past the end raises ``base.storage.failed``."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        with translate_os_errors(path):
            # Without O_NONBLOCK a pipe under this name would hold us up until somebody writes to it.
            flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(path, flags)
            try:
                self._size = os.lseek(self._descriptor, 0, os.SEEK_END)
            except OSError:  # a pipe or a terminal: nothing that has blocks
                os.close(self._descriptor)
                raise

    @property
    def size_bytes(self) -> int:
        return self._size

    def read_at(self, offset: int, count: int) -> bytes:
        with translate_os_errors(self.path):
            data = os.pread(self._descriptor, count, offset)
            while len(data) < count:
                more = os.pread(self._descriptor, count - len(data), offset + len(data))
                if not more:
                    raise InputTruncated(f"{self.path} ends before byte {offset + count}", path=str(self.path))
                data += more
        return data

    def write_at(self, offset: int, data: bytes) -> None:
        with translate_os_errors(self.path):
            if offset < 0 or offset + len(data) > self._size:
                raise OSError(27, "write past the end of the device")  # EFBIG, as a real partition answers
            done = 0
            while done < len(data):
                done += os.pwrite(self._descriptor, memoryview(data)[done:], offset + done)

    def flush(self) -> None:
        with translate_os_errors(self.path):
            os.fdatasync(self._descriptor)
            # What is read back afterwards comes from the medium, not from memory, as far as the kernel lets go of it.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Give the descriptor back; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def create_device_file(path: Path, size_bytes: int) -> None:
    """Create a file of ``size_bytes`` zeros that stands for a partition; refuse to replace one that exists."""
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
