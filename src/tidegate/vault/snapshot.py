"""The snapshot: the table's entries in order of their keys, as the content of a vault file. Pure but for the reader.

Entries stand in blocks of about 8 KiB; behind them the first key and the place of each block, so that a lookup reads
one block. Bytes: docs/formats/vault.md.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Protocol

from tidegate.vault.errors import ManifestAltered

BLOCK_BYTES = 8192
_ENTRY = struct.Struct(">HI")  # length of the key, length of the value
_FENCE = struct.Struct(">HQ")  # length of the key, where the block begins
_TRAILER = struct.Struct(">QIQ8s")  # where the fences begin, how many, how many entries, magic
_MAGIC = b"TGTABLE2"
_MAX_FENCES = 1 << 20  # 8 GiB of entries


class Source(Protocol):
    """Where a snapshot's content is read from: an ``ItemReader``."""

    def read_range(self, offset: int, count: int) -> bytes:
        """Return content, authenticated."""
        ...


def encode_snapshot(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Yield the content for ``entries``, which come in strict order of their keys, in constant memory but for a key a
    block."""
    fences: list[bytes] = []
    block: list[bytes] = []
    size = offset = count = 0
    last: bytes | None = None
    for key, value in entries:
        if last is not None and key <= last:
            raise ValueError("the entries of a snapshot come in strict order")  # a bug of ours: never a lost entry
        last = key
        if not block:
            fences.append(_FENCE.pack(len(key), offset) + key)
        entry = _ENTRY.pack(len(key), len(value)) + key + value
        block.append(entry)
        size += len(entry)
        count += 1
        if size >= BLOCK_BYTES:
            yield b"".join(block)
            offset, size = offset + size, 0
            block.clear()
    if block:
        yield b"".join(block)
        offset += size
    yield b"".join([*fences, _TRAILER.pack(offset, len(fences), count, _MAGIC)])


class SnapshotReader:
    """Looks keys up in a snapshot; holds a key and a place for each block."""

    def __init__(self, source: Source, length_bytes: int) -> None:
        """Read the fences; raise ``vault.manifest.altered`` if the content is no snapshot."""
        self._source = source
        trailer = source.read_range(length_bytes - _TRAILER.size, _TRAILER.size) if length_bytes >= 0 else b""
        if len(trailer) != _TRAILER.size:
            raise ManifestAltered("the vault's snapshot is cut off")
        self._end, fences, self.count, magic = _TRAILER.unpack(trailer)
        if magic != _MAGIC or self._end > length_bytes or fences > _MAX_FENCES:
            raise ManifestAltered("the vault's snapshot is malformed")
        raw = source.read_range(self._end, length_bytes - _TRAILER.size - self._end)
        self._keys: list[bytes] = []
        self._offsets: list[int] = []
        position = 0
        for _ in range(fences):
            key_bytes, offset = _FENCE.unpack_from(raw, position)
            position += _FENCE.size
            self._keys.append(raw[position : position + key_bytes])
            self._offsets.append(offset)
            position += key_bytes

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None."""
        number = bisect_right(self._keys, key) - 1
        if number < 0:
            return None
        for found, value in self._entries(number):
            if found == key:
                return value
            if found > key:
                break
        return None

    def scan(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries from key ``start`` on, in order."""
        for number in range(max(0, bisect_right(self._keys, start) - 1), len(self._keys)):
            for key, value in self._entries(number):
                if key >= start:
                    yield key, value

    def _entries(self, number: int) -> Iterator[tuple[bytes, bytes]]:
        begin = self._offsets[number]
        end = self._offsets[number + 1] if number + 1 < len(self._offsets) else self._end
        block = self._source.read_range(begin, end - begin)
        position = 0
        while position < len(block):
            key_bytes, value_bytes = _ENTRY.unpack_from(block, position)
            position += _ENTRY.size + key_bytes
            yield block[position - key_bytes : position], block[position : position + value_bytes]
            position += value_bytes
