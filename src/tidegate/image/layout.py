"""Where everything lies in a bundle and in a slot: the same bytes in both.

A head of 64 KiB (magic, length, signed manifest, zeros), then for each payload in the manifest's order its hash tree
and its data, each filling whole blocks. Bytes: docs/formats/image.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.base.blockdev import BLOCK_BYTES
from tidegate.crypto.cose import MAX_ENVELOPE_BYTES
from tidegate.image.errors import LayoutMalformed
from tidegate.image.manifest import Manifest, Payload
from tidegate.image.verity import count_blocks, tree_bytes

HEAD_BYTES = 65_536
_MAGIC = b"TGIMAGE1"
_PREFIX_BYTES = len(_MAGIC) + 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where one payload lies, in bytes from the start of the slot or bundle."""

    payload: Payload
    tree_offset: int
    tree_size: int
    data_offset: int
    data_blocks: int

    @property
    def end(self) -> int:
        """Return the first byte behind the payload."""
        return self.data_offset + self.data_blocks * BLOCK_BYTES


def plan_extents(manifest: Manifest) -> tuple[Extent, ...]:
    """Return where each payload of ``manifest`` lies."""
    extents = []
    offset = HEAD_BYTES
    for payload in manifest.payloads:
        blocks = count_blocks(payload.size)
        size = tree_bytes(blocks)
        extent = Extent(
            payload=payload, tree_offset=offset, tree_size=size, data_offset=offset + size, data_blocks=blocks
        )
        extents.append(extent)
        offset = extent.end
    return tuple(extents)


def total_bytes(manifest: Manifest) -> int:
    """Return the exact size of a bundle with this manifest."""
    return plan_extents(manifest)[-1].end


def encode_head(envelope: bytes) -> bytes:
    """Return the 64 KiB head that carries ``envelope``."""
    return (_MAGIC + len(envelope).to_bytes(4, "big") + envelope).ljust(HEAD_BYTES, b"\0")


def parse_head(head: bytes) -> bytes:
    """Return the unverified envelope in a head, or raise ``image.layout.malformed``."""
    if head[: len(_MAGIC)] != _MAGIC:
        raise LayoutMalformed("no image here: the magic number is missing")
    length = int.from_bytes(head[len(_MAGIC) : _PREFIX_BYTES], "big")
    if not 0 < length <= MAX_ENVELOPE_BYTES:
        raise LayoutMalformed(f"an envelope of {length} bytes is outside the limits")
    envelope, rest = head[_PREFIX_BYTES : _PREFIX_BYTES + length], head[_PREFIX_BYTES + length :]
    if any(rest):
        raise LayoutMalformed("the head is not empty behind its envelope")
    return envelope
