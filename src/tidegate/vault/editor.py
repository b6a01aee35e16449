"""Changing an item in place: chunks are decrypted, changed in memory, and written back together as one transaction.

Touches: nothing by itself; ``Committer`` (the vault) writes. Between two ``flush`` the item is wholly as before; an
edit of more than 4 MiB of chunks flushes by itself meanwhile, in steps that each are wholly old or new.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Protocol

from tidegate.crypto.aead import NONCE_BYTES
from tidegate.vault.errors import ItemTooLarge
from tidegate.vault.extents import MAX_EXTENTS, mark_written
from tidegate.vault.files import ItemReader, erase_buffer
from tidegate.vault.format import (
    CHUNK_OVERHEAD,
    MAX_CHUNK_WRITES,
    MAX_FILE_BYTES,
    ChunkCipher,
    Header,
    VaultKeys,
    encode_slot,
)
from tidegate.vault.listing import file_name
from tidegate.vault.padding import Padding
from tidegate.vault.redo import FileChange

MAX_DIRTY_CHUNKS = 256  # of 16 KiB: 4 MiB of plaintext in memory


class Committer(Protocol):
    """Who makes changes count: the vault."""

    def current_keys(self) -> tuple[int, VaultKeys]:
        """Return the newest epoch and its keys."""
        ...

    def commit_change(self, header: Header, change: FileChange) -> None:
        """Make a change in place count, durable."""
        ...

    def settle(self) -> None:
        """End a change: raise what failed behind it, although it counts."""
        ...

    def rewrite(self, editor: Editor) -> ItemReader:
        """Write the item anew with the content that ``editor`` has, and return it open."""
        ...


class Editor:
    """An item open for changing. ``reader`` is what stands on the storage; ``dirty`` chunks are newer."""

    def __init__(self, reader: ItemReader, *, padding: Padding, committer: Committer) -> None:
        self._reader = reader
        self._padding = padding
        self._committer = committer
        self._dirty: dict[int, bytearray] = {}
        self._length = reader.header.length_bytes
        self._size = reader.header.chunk_bytes

    @property
    def header(self) -> Header:
        """Return the header of what stands on the storage."""
        return self._reader.header

    @property
    def length_bytes(self) -> int:
        """Return the length of the content, changes included."""
        return self._length

    @property
    def is_dirty(self) -> bool:
        """Return whether anything waits for ``flush``."""
        return bool(self._dirty) or self._length != self._reader.header.length_bytes

    def read_into(self, offset: int, target: memoryview) -> int:
        """Fill ``target`` from ``offset`` on, changes included; return how many bytes there were."""
        done, end = 0, min(offset + len(target), self._length)
        while offset < end:
            index, start = divmod(offset, self._size)
            count = min(self._size - start, end - offset)
            piece = target[done : done + count]
            if index in self._dirty:
                piece[:] = self._dirty[index][start : start + count]
            else:  # one that is not dirty stands on the storage as far as the content goes
                self._reader.read_into(offset, piece)
            offset, done = offset + count, done + count
        return done

    def write(self, offset: int, data: memoryview) -> None:
        """Change content from ``offset`` on; a gap behind the end reads zeros. Raises ``vault.item.size``."""
        if offset + len(data) > MAX_FILE_BYTES:
            raise ItemTooLarge(f"an item has at most {MAX_FILE_BYTES} bytes")
        if data and offset > self._length:
            self.truncate(offset)
        while data:
            index, start = divmod(offset, self._size)
            count = min(self._size - start, len(data))
            chunk = self._load(index)
            if start + count > len(chunk):
                chunk.extend(bytes(start + count - len(chunk)))
            chunk[start : start + count] = data[:count]
            offset, data = offset + count, data[count:]
            self._length = max(self._length, offset)
            if len(self._dirty) >= MAX_DIRTY_CHUNKS:
                self.flush()

    def truncate(self, length: int) -> None:
        """Make the content ``length`` bytes long; what is added reads zeros."""
        if length > MAX_FILE_BYTES:
            raise ItemTooLarge(f"an item has at most {MAX_FILE_BYTES} bytes")
        if length < self._length:
            for index in [index for index in self._dirty if index * self._size >= length]:
                erase_buffer(self._dirty.pop(index))
            index, keep = divmod(length, self._size)
            if keep or length == 0:
                chunk = self._load(index)
                del chunk[keep:]
            self._length = length
            return
        while self._length < length:  # chunk by chunk: what is added has to be encrypted as well
            index = self._length // self._size
            end = min((index + 1) * self._size, length)
            chunk = self._load(index)
            chunk.extend(bytes(max(0, end - index * self._size - len(chunk))))
            self._length = end
            if len(self._dirty) >= MAX_DIRTY_CHUNKS:
                self.flush()

    def flush(self) -> None:
        """Make the changes count, all of them, durable. Raises ``base.storage.*``: then none does."""
        if not self.is_dirty:
            return
        completing = self._completing()
        if len(self._dirty) + len(completing) > 2 * MAX_DIRTY_CHUNKS:
            self._rebase()
            return
        epoch, keys = self._committer.current_keys()  # it may have been re-keyed since the editor was opened
        for index in completing:
            self._load(index)
        header = replace(self._next_header(), epoch=epoch)
        if len(header.extents) > MAX_EXTENTS or header.writes > MAX_CHUNK_WRITES:
            self._rebase()
            return
        slot = encode_slot(header, file_key=self._reader.file_key, nonce=os.urandom(NONCE_BYTES), keys=keys)
        change = FileChange(
            name=file_name(header),
            slot=slot,
            sequence=header.sequence,
            size_bytes=header.file_bytes,
            pieces=tuple(self._seal(header)),
        )
        self._committer.commit_change(header, change)
        self._reader.header = header
        self.forget()
        self._committer.settle()

    def _rebase(self) -> None:
        """Have the item written anew, under a new key, where changing it in place does not pay or is not allowed."""
        reader = self._committer.rewrite(self)
        self._reader.close()
        self._reader = reader
        self.forget()

    def forget(self) -> None:
        """Drop and wipe what waits for ``flush``."""
        for chunk in self._dirty.values():
            erase_buffer(chunk)
        self._dirty.clear()
        self._length = self._reader.header.length_bytes

    def close(self) -> None:
        """Drop what was not flushed; wipe everything."""
        self.forget()
        self._reader.close()

    def _load(self, index: int) -> bytearray:
        """Return a chunk to change: what it holds now, as far as the content goes."""
        if index not in self._dirty:
            have = max(0, min(self._size, self._length - index * self._size))
            chunk = bytearray(have)
            self._reader.read_into(index * self._size, memoryview(chunk))
            self._dirty[index] = chunk
        return self._dirty[index]

    def _completing(self) -> set[int]:
        """Return the chunks that change with the length: the old last one, the new last one, padding and what it hides
        of a longer content."""
        old, new = self._reader.header, self._next_header()
        wanted = set(range(-(-self._length // self._size), new.chunks)) if self._length < old.length_bytes else set()
        if old.stored_bytes != new.stored_bytes:
            wanted |= {old.chunks - 1, new.chunks - 1, *range(old.chunks, new.chunks)}
        return {index for index in wanted if index < new.chunks} - self._dirty.keys()

    def _next_header(self) -> Header:
        old = self._reader.header
        stored = self._padding.padded(self._length)
        resized = replace(old, length_bytes=self._length, stored_bytes=stored)
        sequence = old.sequence + 1
        extents = mark_written(old.extents, self._dirty, sequence=sequence, chunks=resized.chunks)
        return replace(
            resized,
            sequence=sequence,
            writes=old.writes + len(self._dirty),
            extents=tuple(extents),
        )

    def _seal(self, header: Header) -> list[tuple[int, bytes]]:
        cipher = ChunkCipher(self._reader.file_key, header)
        target = memoryview(bytearray(self._size + CHUNK_OVERHEAD))
        pieces = []
        for index in sorted(self._dirty):
            if index >= header.chunks:
                continue
            chunk = self._dirty[index]
            size = header.chunk_size(index) - CHUNK_OVERHEAD
            chunk.extend(bytes(max(0, size - len(chunk))))  # padding
            taken = cipher.encrypt(
                index,
                memoryview(chunk)[:size],
                target,
                nonces=os.urandom(NONCE_BYTES),
                sequence=header.sequence,
                ends=index == header.chunks - 1,
            )
            pieces.append((header.chunk_offset(index), bytes(target[:taken])))
        return pieces
