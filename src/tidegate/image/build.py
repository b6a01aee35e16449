"""The maker's side: payload files in, one signed bundle out. Reads and writes only the streams it is given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from tidegate.base.blockdev import BLOCK_BYTES
from tidegate.crypto.cose import sign_envelope
from tidegate.crypto.errors import CborLimit
from tidegate.crypto.signing import Signer
from tidegate.image.errors import ImageDescription, ManifestMalformed
from tidegate.image.layout import encode_head
from tidegate.image.manifest import CONTEXT, MAX_PAYLOAD_BYTES, Manifest, Payload, PayloadKind, parse_manifest
from tidegate.image.verity import build_tree


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadSource:
    """A payload to be: ``stream`` is seekable and read from its start."""

    name: str
    kind: PayloadKind
    stream: BinaryIO
    start: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageIdentity:
    """What the maker says of an image."""

    vendor: str
    product: str
    hardware: tuple[str, ...]
    version: str
    security_version: int
    sbom_sha256: bytes | None = None


def write_bundle(
    identity: ImageIdentity, sources: Sequence[PayloadSource], signers: Sequence[Signer], out: BinaryIO
) -> Manifest:
    """Write a bundle that every one of ``signers`` signed, and return its manifest.

    The same payloads and identity give the same manifest: the salt of a tree is derived from its content. Raises
    ``image.build.description`` before anything is written.
    """
    described = [_describe(source) for source in sources]
    manifest = Manifest(
        vendor=identity.vendor,
        product=identity.product,
        hardware=identity.hardware,
        version=identity.version,
        security_version=identity.security_version,
        payloads=tuple(payload for payload, _ in described),
        sbom_sha256=identity.sbom_sha256,
    )
    encoded = manifest.encode()
    try:
        parse_manifest(encoded)
    except (ManifestMalformed, CborLimit) as error:
        raise ImageDescription(error.message) from error
    out.write(encode_head(sign_envelope(CONTEXT, encoded, signers)))
    for source, (_, tree) in zip(sources, described, strict=True):
        out.write(tree)
        out.writelines(_blocks(source.stream))
    return manifest


def _describe(source: PayloadSource) -> tuple[Payload, bytes]:
    """Return the manifest's entry for a payload, and its hash tree."""
    whole, size = hashlib.sha256(), 0
    source.stream.seek(0)
    while chunk := source.stream.read(1 << 20):
        whole.update(chunk)
        size += len(chunk)
    if not 0 < size <= MAX_PAYLOAD_BYTES:
        raise ImageDescription(f"payload {source.name} has {size} bytes; 1 to {MAX_PAYLOAD_BYTES} are allowed")
    salt = hashlib.sha256(b"tidegate verity salt" + whole.digest()).digest()
    root, tree = build_tree(_blocks(source.stream), salt)
    payload = Payload(
        name=source.name,
        kind=source.kind,
        size=size,
        sha256=whole.digest(),
        verity_root=root,
        verity_salt=salt,
        start=source.start,
    )
    return payload, tree


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the stream from its start in full blocks, the last one padded with zeros."""
    stream.seek(0)
    while block := stream.read(BLOCK_BYTES):
        yield block.ljust(BLOCK_BYTES, b"\0")
