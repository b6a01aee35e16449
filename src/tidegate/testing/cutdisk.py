"""A disk that remembers every write and every flush, for a real file system: what it holds after a cut at any of them.

Promises: the kernel's own block layer writes to it (a loop device on a file that this serves by FUSE, without a cache
of its own), so that what ext4 and its journal do is recorded as it reaches the hardware, in order, with its barriers.
Touches: /dev/fuse, a mount, a process that serves it. Needs root. Leaves to others: making, mounting and checking file
systems.

    with RecordedDisk(folder, size_bytes=16 << 20) as disk:
        ...                                   # mkfs and mount -o loop on disk.path, work, umount
    for cut in iter_cuts(disk.steps(), size_bytes=16 << 20, first=start):
        ...                                   # mount a file with cut.content
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegate.base.program import run_program
from tidegate.testing.errors import CutDiskFailed

BLOCK_BYTES = 4096  # written whole or not at all, as today's flash does: ext4's superblock does not bear less
_START_S = 10.0
_MAX_WRITE = 128 << 10
_NODE = 2  # of the only file; 1 is the root
_NAME = "disk"
_RECORD = struct.Struct("<cQI")  # "W" or "S", offset, length; the data follow
_IN = struct.Struct("<IIQQIIIHH")  # fuse_in_header
_OUT = struct.Struct("<IiQ")  # fuse_out_header
_IO = struct.Struct("<QQII")  # the beginning of fuse_read_in and fuse_write_in: handle, offset, size
_IO_BYTES = 40
_VALID_S = 3600  # the kernel may keep names and attributes so long: nobody else changes them
_PR_SET_PDEATHSIG = 1
# opcodes of fuse_kernel.h that are always answered alike. INIT: version 7.31, writes of many pages, no cache of writes
_FIXED = {
    26: struct.pack("<IIIIHHIIHHI28x", 7, 31, 0, 1 << 5 | 1 << 22, 8, 6, _MAX_WRITE, 1, _MAX_WRITE >> 12, 0, 0),
    14: struct.pack("<QIi", 0, 0, 0),  # OPEN
    27: struct.pack("<QIi", 0, 0, 0),  # OPENDIR
    17: struct.pack("<QQQQQIIII24x", 0, 0, 0, 1, 0, 4096, 255, 4096, 0),  # STATFS
    18: b"",  # RELEASE
    25: b"",  # FLUSH
    29: b"",  # RELEASEDIR
    38: b"",  # DESTROY
}
_SILENT = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET: the kernel waits for no answer


@dataclass(frozen=True, slots=True)
class Step:
    """One write, or one flush (``data`` is None): all writes before it are durable."""

    offset: int
    data: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A disk as the next boot finds it. ``position``: steps that were done; ``way``: which unflushed writes it kept."""

    position: int
    way: str
    content: bytearray


class RecordedDisk:
    """A blank disk in ``path``, to attach a loop device to; its files are in ``folder``. A context manager."""

    def __init__(self, folder: Path, *, size_bytes: int) -> None:
        """Start serving; raise ``testing.cutdisk.failed`` where FUSE is not to be had."""
        self._folder = folder
        self._mount = folder / "mount"
        self._mount.mkdir(parents=True)
        with (folder / "content").open("wb") as stream:
            stream.truncate(size_bytes)
        (folder / "log").touch()
        self.path = self._mount / _NAME
        command = [sys.executable, "-m", "tidegate.testing.cutdisk", str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        end = time.monotonic() + _START_S
        while not self._mount.is_mount():
            if self._process.poll() is not None or time.monotonic() > end:
                self.close()
                raise CutDiskFailed("the recorded disk cannot be served: see the process's own message")
            time.sleep(0.01)

    def position(self) -> int:
        """Return how many steps there were until now."""
        return len(self.steps())

    def steps(self) -> list[Step]:
        """Return every step so far, from the blank disk on."""
        raw = memoryview((self._folder / "log").read_bytes())
        steps, at = [], 0
        while at + _RECORD.size <= len(raw):
            kind, offset, length = _RECORD.unpack_from(raw, at)
            at += _RECORD.size
            if at + length > len(raw):
                break  # it is being written
            steps.append(Step(offset, bytes(raw[at : at + length]) if kind == b"W" else None))
            at += length
        return steps

    def close(self) -> None:
        """Stop serving; harmless when repeated. Raises ``base.program.failed`` while a loop device still uses it."""
        if self._mount.is_mount():
            run_program(["umount", str(self._mount)])
        try:
            self._process.wait(_START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def iter_cuts(steps: list[Step], *, size_bytes: int, first: int, stride: int = 1) -> Iterator[Cut]:
    """Yield the disk cut behind every ``stride``-th step from ``first`` on, in two ways each.

    ``kept``: every write before the cut reached the medium. ``subset``: those before the last flush did, and of the
    others a part that chance takes (its seed is the position), one of them only in its first blocks. The cut right
    behind a flush has one way, since nothing is left to chance. ``content`` is the caller's.
    """
    kept, flushed = bytearray(size_bytes), bytearray(size_bytes)
    waiting: list[Step] = []
    for position, step in enumerate(steps, start=1):
        if step.data is None:
            for one in waiting:
                _put(flushed, one)
            waiting.clear()
        else:
            _put(kept, step)
            waiting.append(step)
        if position < first or (position - first) % stride:
            continue
        yield Cut(position=position, way="kept", content=bytearray(kept))
        if waiting:
            chance = random.Random(position)  # noqa: S311  # has to be repeatable, not secret
            yield Cut(position=position, way="subset", content=_subset(flushed, waiting, chance))


def _put(content: bytearray, step: Step) -> None:
    if step.data is not None:
        content[step.offset : step.offset + len(step.data)] = step.data


def _subset(flushed: bytearray, waiting: list[Step], chance: random.Random) -> bytearray:
    content = bytearray(flushed)
    torn = chance.randrange(len(waiting))
    for number, step in enumerate(waiting):
        if number == torn and step.data is not None:
            blocks = chance.randrange(len(step.data) // BLOCK_BYTES + 1)
            _put(content, Step(step.offset, step.data[: blocks * BLOCK_BYTES]))
        elif chance.random() < 0.5:
            _put(content, step)
    return content


# -- the process that serves -------------------------------------------------------------------------------------------


class _Server:
    """Answers the kernel's requests for a folder with one file; every write and flush goes to the log first."""

    def __init__(self, folder: Path) -> None:
        self._content = os.open(folder / "content", os.O_RDWR | os.O_CLOEXEC)
        self._log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._size = os.fstat(self._content).st_size
        self._device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._device},rootmode=40700,user_id=0,group_id=0"
        library = ctypes.CDLL(None, use_errno=True)
        if library.mount(b"cutdisk", os.fsencode(folder / "mount"), b"fuse", 6, options.encode()) != 0:  # nosuid, nodev
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def serve(self) -> None:
        """Answer until the mount goes away."""
        while True:
            try:
                request = os.read(self._device, _MAX_WRITE + (64 << 10))
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                raise
            _, opcode, unique, node, *_ = _IN.unpack_from(request)
            answer = self._answer(opcode, node, memoryview(request)[_IN.size :])
            if answer is not None:
                code, data = (-answer, b"") if isinstance(answer, int) else (0, answer)
                os.write(self._device, _OUT.pack(_OUT.size + len(data), code, unique) + data)

    def _answer(self, opcode: int, node: int, body: memoryview) -> bytes | int | None:
        """Return the answer's data, or an error number, or None where the kernel wants no answer."""
        if opcode in _SILENT:
            return None
        if opcode in _FIXED:
            return _FIXED[opcode]
        handler = {1: self._lookup, 3: self._attributes, 4: self._attributes, 15: self._read, 16: self._write}
        handler[20] = self._flush
        return handler[opcode](node, body) if opcode in handler else errno.ENOSYS

    def _lookup(self, node: int, body: memoryview) -> bytes | int:  # noqa: ARG002  # every handler has it
        if bytes(body).rstrip(b"\0") != _NAME.encode():
            return errno.ENOENT
        return struct.pack("<QQQQII", _NODE, 0, _VALID_S, _VALID_S, 0, 0) + self._attr(_NODE)

    def _attributes(self, node: int, body: memoryview) -> bytes:  # noqa: ARG002
        return struct.pack("<QII", _VALID_S, 0, 0) + self._attr(node)

    def _read(self, node: int, body: memoryview) -> bytes:  # noqa: ARG002
        _, offset, size, _ = _IO.unpack_from(body)
        return os.pread(self._content, size, offset)

    def _flush(self, node: int, body: memoryview) -> bytes:  # noqa: ARG002
        os.write(self._log, _RECORD.pack(b"S", 0, 0))
        return b""

    def _write(self, node: int, body: memoryview) -> bytes:  # noqa: ARG002
        _, offset, size, _ = _IO.unpack_from(body)
        data = body[_IO_BYTES : _IO_BYTES + size]
        os.writev(self._log, [_RECORD.pack(b"W", offset, size), data])
        os.pwrite(self._content, data, offset)
        return struct.pack("<II", size, 0)

    def _attr(self, node: int) -> bytes:
        mode, size = (stat.S_IFREG | 0o600, self._size) if node == _NODE else (stat.S_IFDIR | 0o700, 0)
        return struct.pack("<6Q10I", node, size, size >> 9, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def main(folder: str) -> None:
    """Serve the disk in ``folder``; ends with its mount, or with the process that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _Server(Path(folder)).serve()


if __name__ == "__main__":
    main(sys.argv[1])
