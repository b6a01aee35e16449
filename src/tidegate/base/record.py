"""A small record kept in two alternating copies, so that one intact copy survives a cut at any write.

Layout: docs/formats/record.md. Each copy fills one 4 KiB block: magic (8), sequence (8, big-endian), length (4),
SHA-256 over sequence, length and body (32), body, zeros. The copy with the higher sequence and a right digest counts;
a write always goes over the other one.
"""

from __future__ import annotations

import hashlib

from tidegate.base.blockdev import BLOCK_BYTES, BlockDevice
from tidegate.base.errors import RecordCorrupt

_HEADER_BYTES = 8 + 8 + 4 + 32
MAX_BODY_BYTES = BLOCK_BYTES - _HEADER_BYTES
RECORD_BYTES = 2 * BLOCK_BYTES


class AlternatingRecord:
    """Two copies of one record at ``offset`` of ``device``; ``magic`` (8 bytes) names the kind of record.

    Guards against power cuts and torn or decayed blocks, not against somebody who writes to the storage: the digest
    is no signature.
    """

    def __init__(self, device: BlockDevice, offset: int, magic: bytes) -> None:
        if len(magic) != 8 or offset % BLOCK_BYTES:
            raise ValueError("magic has 8 bytes and offset is a multiple of the block")
        self._device = device
        self._offset = offset
        self._magic = magic

    def read(self) -> bytes:
        """Return the newest intact body, or raise ``base.record.corrupt`` when neither copy is intact."""
        found = self._newest()
        if found is None:
            raise RecordCorrupt(f"no intact copy of record {self._magic!r}", offset=self._offset)
        return found[2]

    def exists(self) -> bool:
        """Return whether an intact copy is there (a fresh device has none)."""
        return self._newest() is not None

    def write(self, body: bytes) -> None:
        """Make ``body`` the record; until the flush returns, the previous body is still what a boot would read."""
        if len(body) > MAX_BODY_BYTES:
            raise ValueError(f"record body has at most {MAX_BODY_BYTES} bytes")
        found = self._newest()
        sequence, copy = (1, 0) if found is None else (found[0] + 1, 1 - found[1])
        numbers = sequence.to_bytes(8, "big") + len(body).to_bytes(4, "big")
        block = self._magic + numbers + hashlib.sha256(numbers + body).digest() + body
        self._device.write_at(self._offset + copy * BLOCK_BYTES, block.ljust(BLOCK_BYTES, b"\0"))
        self._device.flush()

    def _newest(self) -> tuple[int, int, bytes] | None:
        """Return (sequence, copy index, body) of the newest intact copy."""
        intact = []
        for copy in (0, 1):
            block = self._device.read_at(self._offset + copy * BLOCK_BYTES, BLOCK_BYTES)
            length = int.from_bytes(block[16:20], "big")
            if block[:8] != self._magic or length > MAX_BODY_BYTES:
                continue
            body = block[_HEADER_BYTES : _HEADER_BYTES + length]
            if hashlib.sha256(block[8:20] + body).digest() == block[20:52]:
                intact.append((int.from_bytes(block[8:16], "big"), copy, body))
        return max(intact, default=None)
