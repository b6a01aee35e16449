"""From bytes to a ``VerifiedImage``: the only way in for everything that boots or stores an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from tidegate.base.blockdev import BLOCK_BYTES
from tidegate.crypto.cose import verify_envelope
from tidegate.crypto.signing import KeyId
from tidegate.crypto.trust import TrustPolicy
from tidegate.image.errors import HardwareMismatch, LayoutSize, PayloadCorrupt, SecurityDowngrade
from tidegate.image.layout import HEAD_BYTES, Extent, parse_head, plan_extents, total_bytes
from tidegate.image.manifest import CONTEXT, Manifest, parse_manifest
from tidegate.image.verity import VerityVerifier

_CHUNK_BLOCKS = 64  # 256 KiB a read: large enough for speed, small enough for a device
_PROOF = object()


class ImageSource(Protocol):
    """Something with an image in it: a slot, a bundle file."""

    @property
    def size_bytes(self) -> int:
        """Return the capacity."""
        ...

    def read_at(self, offset: int, count: int) -> bytes:
        """Return exactly ``count`` bytes or raise ``base.input.truncated``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceRule:
    """What this device accepts: whose signatures, for which hardware, at or above which security version."""

    trust: TrustPolicy
    hardware: str
    security_floor: int


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """A manifest that the maker signed for this device; only ``verify_head`` makes one. Payloads are not covered."""

    manifest: Manifest
    digest: bytes
    signers: tuple[KeyId, ...]
    head: bytes
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedImage comes from verify_head alone")

    def extent(self, name: str) -> Extent:
        """Return where the payload called ``name`` lies."""
        return next(extent for extent in plan_extents(self.manifest) if extent.payload.name == name)


def verify_head(source: ImageSource, rule: AcceptanceRule) -> VerifiedImage:
    """Return the image whose head lies at the start of ``source``, or raise a ``Rejected``.

    Duties, in this order:
    1. the head is well formed (``image.layout.malformed``, ``base.input.truncated``);
    2. the trust policy accepts its envelope as an image manifest (``crypto.*``);
    3. the manifest is of our format (``image.manifest.malformed``);
    4. it names this hardware (``image.hardware.mismatch``);
    5. its security version is not below the floor (``image.version.security-downgrade``).

    Not checked: the payloads (``read_payload``), whether it is newer than what runs (``update`` asks that).
    """
    head = source.read_at(0, HEAD_BYTES)
    envelope = verify_envelope(parse_head(head), context=CONTEXT, trust=rule.trust)  # 1, 2
    manifest = parse_manifest(envelope.payload)  # 3
    if rule.hardware not in manifest.hardware:  # 4
        raise HardwareMismatch(
            f"the image is for {', '.join(manifest.hardware)}, this is {rule.hardware}", hardware=rule.hardware
        )
    if manifest.security_version < rule.security_floor:  # 5
        raise SecurityDowngrade(
            f"security version {manifest.security_version} is below the floor of {rule.security_floor}",
            security_version=manifest.security_version,
            floor=rule.security_floor,
        )
    return VerifiedImage(manifest, hashlib.sha256(envelope.payload).digest(), envelope.signers, head, _PROOF)


def read_tree(source: ImageSource, extent: Extent) -> tuple[bytes, VerityVerifier]:
    """Return a payload's tree and its verifier; raise ``image.payload.tree-corrupt``."""
    payload = extent.payload
    tree = source.read_at(extent.tree_offset, extent.tree_size)
    verifier = VerityVerifier(
        root=payload.verity_root, salt=payload.verity_salt, data_blocks=extent.data_blocks, tree=tree
    )
    return tree, verifier


def read_payload(source: ImageSource, extent: Extent, *, start_block: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of a payload from ``start_block`` on, each block verified before it is handed out.

    Raises ``image.payload.corrupt`` or ``image.payload.tree-corrupt`` and hands out nothing of the bad chunk. When
    read from the start, the SHA-256 over the whole payload is checked as well before the last chunk is handed out.
    """
    _, verifier = read_tree(source, extent)
    whole = hashlib.sha256() if start_block == 0 else None
    left = extent.payload.size
    for first in range(start_block, extent.data_blocks, _CHUNK_BLOCKS):
        count = min(_CHUNK_BLOCKS, extent.data_blocks - first)
        offset = extent.data_offset + first * BLOCK_BYTES
        chunk = source.read_at(offset, count * BLOCK_BYTES)
        view = memoryview(chunk)
        for number in range(count):
            verifier.verify_block(first + number, view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES])
        if whole is not None:
            whole.update(view[: min(left, len(chunk))])
            left -= min(left, len(chunk))
            if left == 0 and whole.digest() != extent.payload.sha256:
                raise PayloadCorrupt(f"the digest of payload {extent.payload.name} does not hold")
        yield offset, chunk


def verify_image(source: ImageSource, rule: AcceptanceRule, *, exact_size: bool = False) -> VerifiedImage:
    """Return the image if head and every block of every payload hold; ``exact_size`` is for bundle files.

    Raises what ``verify_head`` and ``read_payload`` raise, and ``image.layout.size`` where the source is too short or,
    with ``exact_size``, has a single byte too many.
    """
    image = verify_head(source, rule)
    needed = total_bytes(image.manifest)
    if source.size_bytes < needed or (exact_size and source.size_bytes != needed):
        raise LayoutSize(f"{source.size_bytes} bytes instead of {needed}", have=source.size_bytes, need=needed)
    for extent in plan_extents(image.manifest):
        for _ in read_payload(source, extent):
            pass
    return image
