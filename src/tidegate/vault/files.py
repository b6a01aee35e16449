"""The vault's folder on the storage: record, listing, item files, the lock.

Touches: ``vault.cbor``, ``manifest``, ``items/ID.GENERATION`` and ``lock``. Plaintext passes through memory only;
nothing is ever written before it is encrypted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tidegate.base.clock import Entropy
from tidegate.base.durable import sync_folder, translate_os_errors, write_all
from tidegate.base.errors import StorageMissing
from tidegate.crypto.aead import NONCE_BYTES, Secret
from tidegate.vault.errors import FileMissing, ItemTooLarge
from tidegate.vault.format import (
    BODY_OFFSET,
    CHUNK_OVERHEAD,
    KEY_BYTES,
    MAX_FILE_BYTES,
    SLOT_BYTES,
    SLOTS,
    ChunkCipher,
    Expected,
    Header,
    VaultKeys,
    encode_slot,
    slot_mac,
    verify_size,
    verify_slots,
)

_BATCH_CHUNKS = 16  # chunks a system call reads or writes: 256 KiB, so that streaming is not a call per 16 KiB
_LOCK_POLL_S = 0.02


def item_path(folder: Path, item: Expected) -> Path:
    """Return where the item's file is; the name tells nothing but the generation."""
    return folder / "items" / f"{item.file_id.hex()}.{item.generation}"


def write_item_file(  # the pieces of a file, each from another source
    path: Path, header: Header, stream: BinaryIO, *, keys: VaultKeys, entropy: Entropy
) -> Expected:
    """Write a new file at ``path``, encrypted under a new key, and return what the listing has to say about it.

    ``header`` names everything but the length, which is that of the stream. Durable, name included, when this
    returns; on a failure the file is erased. Raises ``base.storage.*``.
    """
    try:
        with translate_os_errors(path), Secret(entropy.random_bytes(KEY_BYTES)) as file_key:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.lseek(descriptor, BODY_OFFSET, os.SEEK_SET)
                length = _write_chunks(descriptor, header, stream, file_key, entropy)
                expected = _write_slots(descriptor, header, length, file_key=file_key, keys=keys, entropy=entropy)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(path.parent)
    except BaseException:
        erase_file(path)
        raise
    return expected


def _write_chunks(descriptor: int, header: Header, stream: BinaryIO, file_key: Secret, entropy: Entropy) -> int:
    """Encrypt the stream chunk by chunk and return its length; the last chunk is marked as the last."""
    cipher = ChunkCipher(file_key, file_id=header.file_id, path_hash=header.path_hash)
    size, index, length = header.chunk_bytes, 0, 0
    current = _read_full(stream, size * _BATCH_CHUNKS)
    while True:
        following = _read_full(stream, size * _BATCH_CHUNKS) if current else b""
        length += len(current)
        if length > MAX_FILE_BYTES:
            raise ItemTooLarge(f"an item has at most {MAX_FILE_BYTES} bytes")
        pieces = [memoryview(current)[start : start + size] for start in range(0, len(current), size)] or [
            memoryview(b"")
        ]
        nonces = entropy.random_bytes(NONCE_BYTES * len(pieces))
        sealed = [
            cipher.encrypt(
                index + number,
                piece,
                nonce=nonces[NONCE_BYTES * number : NONCE_BYTES * (number + 1)],
                final=not following and number == len(pieces) - 1,
            )
            for number, piece in enumerate(pieces)
        ]
        _write_pieces(descriptor, sealed)
        index += len(pieces)
        if not following:
            return length
        current = following


def _write_pieces(descriptor: int, pieces: list[bytes]) -> None:
    """Write the pieces one after the other, as a rule in one system call and without joining them in memory."""
    done = os.writev(descriptor, pieces)
    if done < sum(map(len, pieces)):
        write_all(descriptor, b"".join(pieces)[done:])


def _read_full(stream: BinaryIO, count: int) -> bytes:
    """Return ``count`` bytes, fewer only at the end; pipes and sockets give what they have."""
    data = stream.read(count)
    if not data or len(data) == count:
        return data
    parts, missing = [data], count - len(data)
    while missing and (piece := stream.read(missing)):
        parts.append(piece)
        missing -= len(piece)
    return b"".join(parts)


def _write_slots(  # as above
    descriptor: int, header: Header, length: int, *, file_key: Secret, keys: VaultKeys, entropy: Entropy
) -> Expected:
    """Write both slots of a new file, the second with the higher sequence, which is the one in force."""
    mac = b""
    for sequence in range(SLOTS):
        slot = encode_slot(
            Header(
                file_id=header.file_id,
                generation=header.generation,
                sequence=sequence,
                length_bytes=length,
                path_hash=header.path_hash,
                chunk_log2=header.chunk_log2,
            ),
            file_key=file_key,
            nonce=entropy.random_bytes(NONCE_BYTES),
            keys=keys,
        )
        os.lseek(descriptor, sequence % SLOTS * SLOT_BYTES, os.SEEK_SET)
        write_all(descriptor, slot)
        mac = slot_mac(slot)
    return Expected(
        file_id=header.file_id, generation=header.generation, sequence=SLOTS - 1, length_bytes=length, mac=mac
    )


class ItemReader:
    """An open, authenticated item file: reads any range, decrypting only the chunks it touches."""

    def __init__(self, path: Path, *, expected: Expected, path_hash: bytes, keys: VaultKeys) -> None:
        self._path = path
        with translate_os_errors(path):
            try:
                # not blocking: in the file's place there may be a pipe that nobody writes to
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except FileNotFoundError as error:
                raise FileMissing("the file of an item that the vault lists is not there") from error
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise FileMissing("a symbolic link is in the place of an item's file") from error
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise FileMissing("something else is in the place of an item's file")
            slots = self._read_at(0, BODY_OFFSET)
            self.header, self._key = verify_slots(slots, expected=expected, path_hash=path_hash, keys=keys)
            with translate_os_errors(path):
                verify_size(self.header, os.fstat(self._descriptor).st_size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._cipher = ChunkCipher(self._key, file_id=expected.file_id, path_hash=path_hash)

    def iter_content(self, first: int = 0) -> Iterator[bytes]:
        """Yield the content of chunk ``first`` and of every one behind it, each authenticated."""
        chunks, stride, size = self.header.chunks, self.header.chunk_bytes + CHUNK_OVERHEAD, self.header.file_bytes
        for begin in range(first, chunks, _BATCH_CHUNKS):
            end = min(begin + _BATCH_CHUNKS, chunks)
            start = BODY_OFFSET + begin * stride
            batch = memoryview(self._read_at(start, min(BODY_OFFSET + end * stride, size) - start))
            for index in range(begin, end):
                offset = (index - begin) * stride
                yield self._cipher.decrypt(index, batch[offset : offset + stride], chunks=chunks)

    def read_range(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``offset``; fewer only at the end of the content."""
        end = min(offset + count, self.header.length_bytes)
        if offset >= end:
            return b""
        size = self.header.chunk_bytes
        parts = []
        for index in range(offset // size, (end - 1) // size + 1):
            chunk = self._read_at(self.header.chunk_offset(index), self.header.chunk_size(index))
            content = self._cipher.decrypt(index, chunk, chunks=self.header.chunks)
            parts.append(content[max(0, offset - index * size) : end - index * size])
        return b"".join(parts)

    def close(self) -> None:
        """Wipe the file's key and give the descriptor back; harmless when repeated."""
        self._key.wipe()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_at(self, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes of the file; a file that shrinks meanwhile fails authentication."""
        with translate_os_errors(self._path):
            data = os.pread(self._descriptor, count, offset)
            while data and len(data) < count:
                more = os.pread(self._descriptor, count - len(data), offset + len(data))
                if not more:
                    break
                data += more
        return data


def erase_file(path: Path) -> None:
    """Overwrite the header, which holds the only copy of the file's key, then remove the file.

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
                write_all(descriptor, os.urandom(min(BODY_OFFSET, os.fstat(descriptor).st_size)))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        path.unlink()
        sync_folder(path.parent)


def remove_orphans(folder: Path, listed: set[Path]) -> None:
    """Erase item files that the listing does not name: what a power cut left of writes and deletions."""
    with translate_os_errors(folder):
        for path in list((folder / "items").iterdir()):
            if path not in listed:
                erase_file(path)
        for path in list(folder.glob(".*.new")):  # an unfinished copy of record or listing; encrypted as they are
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def require_vault_folder(folder: Path) -> None:
    """Raise ``base.storage.missing`` unless the folder holds a vault's record."""
    if not (folder / "vault.cbor").is_file():
        raise StorageMissing(f"{folder} holds no vault", path=str(folder))
