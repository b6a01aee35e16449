"""The image manifest: who made it, for which hardware, how new, and the digest of every payload.

Bytes: docs/formats/image.md. Deterministic CBOR inside an envelope of role ``tidegate.image.v1``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Annotated, Self

import msgspec

from tidegate.crypto import cbor
from tidegate.image.errors import ManifestMalformed

CONTEXT = "tidegate.image.v1"
MAX_MANIFEST_BYTES = 32_768
MAX_PAYLOADS = 32
MAX_PAYLOAD_BYTES = 2 << 30  # 2 GiB: its leaf digests take 16 MiB of memory while it is verified
NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}\Z"  # "$" would let a newline follow
_LABEL = r"^[^\x00-\x1f\x7f-\x9f]+\Z"  # shown to people before anything is verified: no terminal escapes
_VERSION = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Label = Annotated[str, msgspec.Meta(max_length=128, pattern=_LABEL)]
Argument = Annotated[str, msgspec.Meta(pattern=r"^[^\0]+\Z")]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class PayloadKind(enum.Enum):
    """What a payload is to the chain of trust."""

    STAGE2 = "stage2"
    ROOTFS = "rootfs"
    APPLICATION = "application"


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """A release number, ``MAJOR.MINOR.PATCH``, ordered by its numbers."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the version that ``text`` writes, or raise ``image.manifest.malformed``."""
        match = _VERSION.fullmatch(text)
        if match is None:
            raise ManifestMalformed(f"{text!r} is no MAJOR.MINOR.PATCH version")
        return cls(*(int(part) for part in match.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class Payload(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of bytes under its own hash tree. ``start`` is the command of an application, inside the OS."""

    name: Name
    kind: PayloadKind
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_PAYLOAD_BYTES)]
    sha256: Digest
    verity_root: Digest
    verity_salt: Digest
    start: Annotated[tuple[Argument, ...], msgspec.Meta(max_length=32)] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the device must hold. ``security_version`` only ever rises, with each fixed vulnerability."""

    vendor: Label
    product: Label
    hardware: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=64)]
    version: str
    security_version: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    payloads: Annotated[tuple[Payload, ...], msgspec.Meta(min_length=1, max_length=MAX_PAYLOADS)]
    sbom_sha256: Digest | None = None

    @property
    def release(self) -> Version:
        """Return the version as numbers."""
        return Version.parse(self.version)

    def of_kind(self, kind: PayloadKind) -> tuple[Payload, ...]:
        """Return the payloads of one kind, in the order of the manifest."""
        return tuple(payload for payload in self.payloads if payload.kind is kind)

    def encode(self) -> bytes:
        """Return the manifest as deterministic CBOR."""
        return cbor.encode(msgspec.to_builtins(self, builtin_types=(bytes,)))


def parse_manifest(raw: bytes) -> Manifest:
    """Return the manifest in ``raw``; raise ``image.manifest.malformed`` or ``crypto.cbor.*``.

    Exactly one second stage and one root file system; payload names are unique; unknown fields are refused.
    """
    try:
        manifest = msgspec.convert(
            cbor.decode(raw, limit_bytes=MAX_MANIFEST_BYTES), Manifest, strict=True, builtin_types=(bytes,)
        )
    except msgspec.ValidationError as error:
        raise ManifestMalformed(f"manifest: {error}") from error
    Version.parse(manifest.version)
    if len({payload.name for payload in manifest.payloads}) != len(manifest.payloads):
        raise ManifestMalformed("two payloads have one name")
    for kind in (PayloadKind.STAGE2, PayloadKind.ROOTFS):
        if len(manifest.of_kind(kind)) != 1:
            raise ManifestMalformed(f"a manifest has exactly one payload of kind {kind.value}")
    if any(payload.kind is not PayloadKind.APPLICATION and payload.start for payload in manifest.payloads):
        raise ManifestMalformed("only applications are started")
    return manifest
