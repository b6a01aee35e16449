"""The image description: what ``tidegate image build`` reads. Pure.

.. code-block:: toml

    vendor = "Example Maker"
    product = "Gateway"
    hardware = ["gateway-r1"]
    version = "1.0.0"
    security_version = 1
    [[payload]]
    name = "stage2"
    kind = "stage2"      # no file: built from this installation with --anchors
    [[payload]]
    name = "rootfs"
    kind = "rootfs"
    file = "rootfs.sqfs" # relative to the description
    [[payload]]
    name = "service"
    kind = "application"
    file = "service.sqfs"
    start = ["/apps/service/start"]
"""

from __future__ import annotations

import tomllib
from typing import Annotated

import msgspec

from tidegate.image.build import ImageIdentity
from tidegate.image.errors import ImageDescription
from tidegate.image.manifest import PayloadKind

MAX_DESCRIPTION_BYTES = 65_536


class PayloadDescription(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One payload of the description."""

    name: str
    kind: PayloadKind
    file: str | None = None
    start: tuple[str, ...] = ()


class ImageDescriptionFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole description."""

    vendor: str
    product: str
    hardware: tuple[str, ...]
    version: str
    security_version: int
    payload: Annotated[tuple[PayloadDescription, ...], msgspec.Meta(min_length=1)]
    sbom: str | None = None

    def identity(self, sbom_sha256: bytes | None) -> ImageIdentity:
        """Return what the manifest says of the image."""
        return ImageIdentity(
            vendor=self.vendor,
            product=self.product,
            hardware=self.hardware,
            version=self.version,
            security_version=self.security_version,
            sbom_sha256=sbom_sha256,
        )


def parse_description(raw: bytes, *, name: str) -> ImageDescriptionFile:
    """Return the description that ``raw`` writes, or raise ``image.build.description`` with the place."""
    try:
        return msgspec.convert(tomllib.loads(raw.decode()), ImageDescriptionFile, strict=True)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:  # TOML's and UTF-8's errors are ValueErrors
        raise ImageDescription(f"{name}: {error}") from error
