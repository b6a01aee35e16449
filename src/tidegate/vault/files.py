"""A vault file on the storage: written in one go, read in any order, erased.

Touches: one file at a time. Plaintext passes through two fixed buffers, which are wiped; nothing is ever written before
it is encrypted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegate.base.durable import sync_folder, translate_os_errors
from tidegate.crypto.aead import KEY_BYTES, NONCE_BYTES, Secret
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.beside import Beside
from tidegate.vault.errors import FileMissing, FileTruncated, ItemTooLarge, RangeInvalid, VaultClosed, WriterEnded
from tidegate.vault.format import (
    BODY_OFFSET,
    CHUNK_OVERHEAD,
    MAX_FILE_BYTES,
    SLOT_BYTES,
    ChunkCipher,
    Expected,
    Header,
    VaultKeys,
    encode_slot,
    slot_tag,
    verify_size,
    verify_slots,
)
from tidegate.vault.padding import Padding

BATCH_BYTES = 2 << 20  # encrypted and written at once, so that streaming is not a call per 16 KiB


def batch_chunks(header: Header) -> int:
    """Return how many chunks are read or written at once."""
    return max(1, BATCH_BYTES >> header.chunk_log2)


def erase_buffer(buffer: bytearray | memoryview) -> None:
    """Overwrite plaintext that is not needed any more."""
    buffer[:] = bytes(len(buffer))


class ItemWriter:
    """Writes a new vault file under a new key, in constant memory; nothing counts before ``finish`` returned.

    While a batch is written, the next one is encrypted.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        *,
        padding: Padding | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Create ``path``; ``header`` names everything but epoch, lengths and writes. Raises ``base.storage.*``.

        ``done`` is called when the writer is finished or given up.
        """
        self._path = path
        self._header = header
        self._done = done
        self._padding = padding or Padding()
        self._key = ProtectedSecret.random(KEY_BYTES)
        self._cipher = ChunkCipher(self._key, header)
        self._batch = header.chunk_bytes * batch_chunks(header)
        self._pending = bytearray()  # grows up to a batch; the bytes behind ``filled`` mean nothing
        self._filled = 0
        self._lent = memoryview(b"")  # waits as ``pending`` does, where the caller has it: bytes do not change
        self._length = 0
        self._index = 0
        self._finished = False
        self._output = _Output(path)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append ``data``; raise ``vault.item.size``, ``base.storage.*``."""
        if self._finished:
            raise WriterEnded("the new content was given up or is finished")
        try:
            self._write(memoryview(data).cast("B"))
        except BaseException:
            self.abandon()  # there may be a hole: it must not come to count
            raise

    def _write(self, rest: memoryview) -> None:
        self._length += len(rest)
        if self._length > MAX_FILE_BYTES:
            raise ItemTooLarge(f"an item has at most {MAX_FILE_BYTES} bytes")
        lent, self._lent = self._lent, memoryview(b"")
        self._keep(lent)
        while self._filled + len(rest) > self._batch:  # only behind a full batch comes another one
            if self._filled:
                taken = self._batch - self._filled
                self._keep(rest[:taken])
                self._emit(memoryview(self._pending), ends=False)
                self._filled = 0
            else:
                taken = self._batch
                self._emit(rest[:taken], ends=False)
            rest = rest[taken:]
        if isinstance(rest.obj, bytes) and not self._filled:
            self._lent = rest
        else:
            self._keep(rest)

    def _keep(self, data: memoryview) -> None:
        """Take ``data`` for later; a buffer that is too small is wiped when it is replaced."""
        end = self._filled + len(data)
        if end > len(self._pending):
            larger = bytearray(min(self._batch, max(end, 2 * len(self._pending))))
            larger[: self._filled] = memoryview(self._pending)[: self._filled]
            erase_buffer(self._pending)
            self._pending = larger
        self._pending[self._filled : end] = data
        self._filled = end

    def expect(self, length_bytes: int) -> None:
        """Reserve the storage for a content of so many bytes: a full disk is noticed before anything is written."""
        stored = self._padding.padded(length_bytes)
        self._output.reserve(replace(self._header, stored_bytes=stored).file_bytes)

    def finish(self, keys: VaultKeys, *, epoch: int) -> Expected:
        """Make the file durable, name included, and return what the listing has to say of it.

        ``keys`` are those of ``epoch``, the newest one now: the vault may have been re-keyed since this began. Raises
        ``vault.item.ended`` if it was given up, as it is by the first error of ``write``.
        """
        if self._finished:
            raise WriterEnded("the new content was given up or is finished")
        length, stored = self._length, self._padding.padded(self._length)
        zeros = bytes(min(stored - length, self._batch))
        while self._length < stored:
            self._write(memoryview(zeros)[: stored - self._length])
        self._emit(self._lent or memoryview(self._pending)[: self._filled], ends=True)
        header = replace(self._header, epoch=epoch, length_bytes=length, stored_bytes=stored, writes=self._index)
        slot = encode_slot(header, file_key=self._key, nonce=os.urandom(NONCE_BYTES), keys=keys)
        self._output.finish(slot + slot, header.file_bytes)
        self._forget()
        return Expected(
            file_id=header.file_id,
            generation=header.generation,
            sequence=header.sequence,
            tag=slot_tag(slot),
            length_bytes=length,
            stored_bytes=stored,
            epoch=header.epoch,
            modified_s=0,
        )

    def abandon(self) -> None:
        """Erase what was written; harmless when repeated and after ``finish``."""
        if not self._finished:
            try:
                self._output.abandon()
            finally:
                self._forget()

    def _emit(self, content: memoryview, *, ends: bool) -> None:
        count = max(1, -(-len(content) // self._header.chunk_bytes))
        nonces = os.urandom(NONCE_BYTES * count)
        target = self._output.next_buffer(len(content) + count * CHUNK_OVERHEAD)
        size = self._cipher.encrypt(
            self._index, content, target, nonces=nonces, sequence=self._header.sequence, ends=ends
        )
        self._output.submit(target[:size], self._header.chunk_offset(self._index), last=ends)
        self._index += count

    def _forget(self) -> None:
        erase_buffer(self._pending)
        self._pending, self._lent = bytearray(), memoryview(b"")
        self._key.wipe()
        if not self._finished:
            self._finished = True
            self._done()


class _Output:
    """The descriptor behind a writer, and two buffers of which one is written while the other is filled."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with translate_os_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._buffers = [memoryview(b""), memoryview(b"")]
        self._turn = 0
        self._beside = Beside()
        self._under_way = (memoryview(b""), 0)

    def reserve(self, size: int) -> None:
        with translate_os_errors(self._path), contextlib.suppress(_NotSupported):
            _fallocate(self._descriptor, size)

    def next_buffer(self, size: int) -> memoryview:
        self._turn ^= 1
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = memoryview(bytearray(size))
        return self._buffers[self._turn]

    def submit(self, data: memoryview, offset: int, *, last: bool) -> None:
        self._settle()
        if last:
            self._write(data, offset)
            return
        with translate_os_errors(self._path):
            self._beside.write(self._descriptor, data, offset)
        self._under_way = data, offset

    def _settle(self) -> None:
        """Have the batch that is under way written, all of it."""
        data, offset = self._under_way
        with translate_os_errors(self._path):
            done = self._beside.wait()
        self._under_way = (memoryview(b""), 0)
        self._write(data[done:], offset + done)

    def finish(self, head: bytes, size: int) -> None:
        self._settle()
        self._write(memoryview(head), 0)
        with translate_os_errors(self._path):
            if os.fstat(self._descriptor).st_size != size:
                os.ftruncate(self._descriptor, size)  # more was expected than came
            os.fsync(self._descriptor)
            sync_folder(self._path.parent)
        self._close()

    def abandon(self) -> None:
        if self._descriptor >= 0:
            self._close()
            erase_file(self._path)

    def _write(self, data: memoryview, offset: int) -> None:
        with translate_os_errors(self._path):
            pwrite_all(self._descriptor, data, offset)

    def _close(self) -> None:
        self._beside.close()
        os.close(self._descriptor)
        self._descriptor = -1


class _NotSupported(Exception):
    """The file system cannot reserve."""


def _fallocate(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, max(1, size))
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise _NotSupported from error
        raise


def pwrite_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write every byte of ``data`` at ``offset``, however short the kernel's single writes are."""
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


class ItemReader:
    """An open, authenticated vault file: reads any range, decrypting only the chunks it touches."""

    def __init__(
        self,
        path: Path,
        *,
        expected: Expected,
        path_hash: bytes,
        keys: VaultKeys,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Open it, check its headers and size; raise ``vault.file.*``, ``vault.header.*``, ``base.storage.*``."""
        self._path = path
        self._done = done
        self._key: Secret | None = None
        self._descriptor = open_regular(path)
        try:
            slots = self._read_at(0, BODY_OFFSET)
            self.header, self._key = verify_slots(slots, expected=expected, path_hash=path_hash, keys=keys)
            with translate_os_errors(path):
                verify_size(self.header, os.fstat(self._descriptor).st_size)
        except BaseException:
            self._done = lambda: None
            self.close()
            raise
        self._cipher = ChunkCipher(self.file_key, self.header)
        self._plain = memoryview(bytearray(self.header.chunk_bytes))
        self._sealed = memoryview(bytearray(self.header.chunk_bytes + CHUNK_OVERHEAD))

    @property
    def file_key(self) -> Secret:
        """Return the file's key, for who changes the file; it is wiped when this closes."""
        if self._key is None:
            raise VaultClosed("the item is closed")
        return self._key

    def iter_content(self) -> Iterator[memoryview]:
        """Yield the whole content in pieces, each authenticated and good until the next one is asked for."""
        batch = self.header.chunk_bytes * batch_chunks(self.header)
        buffer = memoryview(bytearray(min(batch, self.header.chunks * self.header.chunk_bytes)))
        left = self.header.length_bytes
        pieces = self._sealed_batches()
        try:
            for first, sealed in pieces:
                given = self._cipher.decrypt(first, sealed, buffer, header=self.header)
                yield buffer[: min(given, left)]
                left = max(0, left - given)
        finally:
            pieces.close()
            erase_buffer(buffer)

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill ``target`` from ``offset`` on and return how many bytes there were; fewer only at the end.

        Raises ``vault.item.range`` for an offset below 0.
        """
        if offset < 0:
            raise RangeInvalid(f"{offset} is before the beginning of the item", offset=offset)
        size, end = self.header.chunk_bytes, min(offset + len(target), self.header.length_bytes)
        done = 0
        while offset < end:
            index, start = divmod(offset, size)
            chunk = self._sealed[: self.header.chunk_size(index)]
            self._fill(chunk, self.header.chunk_offset(index))
            self._cipher.decrypt(index, chunk, self._plain, header=self.header)
            count = min(size - start, end - offset)
            target[done : done + count] = self._plain[start : start + count]
            offset, done = offset + count, done + count
        erase_buffer(self._plain)
        return done

    def read_range(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``offset``; fewer only at the end of the content."""
        target = bytearray(max(0, min(count, self.header.length_bytes - offset)))
        self.read_into(offset, memoryview(target))
        return bytes(target)

    def close(self) -> None:
        """Wipe the file's key and give the descriptor back; harmless when repeated."""
        if self._key is not None:
            self._key.wipe()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._done()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sealed_batches(self) -> Generator[tuple[int, memoryview], None, None]:
        """Yield the file's chunks as they stand there, a batch at a time; the next one is read meanwhile."""
        stride = self.header.chunk_bytes + CHUNK_OVERHEAD
        chunks = batch_chunks(self.header)
        step = chunks * stride
        size = self.header.file_bytes
        offsets = range(BODY_OFFSET, size, step)
        buffers = [memoryview(bytearray(min(step, size - BODY_OFFSET))) for _ in offsets[:2]]

        beside = Beside()
        given = buffers[0][: size - BODY_OFFSET]
        self._fill(given, BODY_OFFSET)
        try:
            for number, offset in enumerate(offsets[1:], 1):
                ahead = buffers[number % 2][: size - offset]
                with translate_os_errors(self._path):
                    beside.read(self._require_open(), ahead, offset)
                yield (number - 1) * chunks, given
                with translate_os_errors(self._path):
                    done = beside.wait()
                self._fill(ahead[done:], offset + done)
                given = ahead
            yield (len(offsets) - 1) * chunks, given
        finally:
            beside.close()

    def _fill(self, target: memoryview, offset: int) -> None:
        done = self._read_into(target, offset)
        if done < len(target):
            raise FileTruncated("the file became shorter while it was read", size=offset + done)

    def _read_at(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes of the file."""
        data = bytearray(count)
        return bytes(data[: self._read_into(memoryview(data), offset)])

    def _require_open(self) -> int:
        if self._descriptor < 0:
            raise VaultClosed("the item is closed")
        return self._descriptor

    def _read_into(self, target: memoryview, offset: int) -> int:
        done, descriptor = 0, self._require_open()
        with translate_os_errors(self._path):
            while done < len(target):
                more = os.preadv(descriptor, [target[done:]], offset + done)
                if not more:
                    break
                done += more
        return done


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Return a descriptor of a vault's file; raise ``vault.file.missing`` if it, or what is in its place, is none."""
    with translate_os_errors(path):
        try:
            # not blocking: in the file's place there may be a pipe that nobody writes to
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise FileMissing("a file that the vault lists is not there") from error
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
                raise
            raise FileMissing("something else is in the place of a vault's file") from error
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileMissing("something else is in the place of a vault's file")
    return descriptor


def write_headers(descriptor: int, slot: bytes, sequence: int) -> None:
    """Put ``slot`` in both places, that of its sequence first and durably, so that one of the two is always whole."""
    for turn in (sequence, sequence + 1):
        pwrite_all(descriptor, memoryview(slot), turn % 2 * SLOT_BYTES)
        os.fsync(descriptor)


def erase_file(path: Path) -> None:
    """Overwrite the headers, which hold the only copy of the file's key, then remove the file; the name's end is not
    synchronised.

    On flash the controller may keep the old block for a while; what it holds then is wrapped under the vault's key.
    """
    with translate_os_errors(path), contextlib.suppress(FileNotFoundError):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):  # a link, a pipe: nothing of ours to overwrite
                raise
        else:
            try:
                size = min(BODY_OFFSET, os.fstat(descriptor).st_size)
                pwrite_all(descriptor, memoryview(os.urandom(size)), 0)
                os.fsync(descriptor)
            except OSError as error:  # full: no header was written yet, or the file system never writes in place
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            finally:
                os.close(descriptor)
        path.unlink()
