"""What the image room refuses, and why."""

from tidegate.base.errors import Misuse, Rejected


class ManifestMalformed(Rejected):
    code = "image.manifest.malformed"
    advice = "The signed manifest is not of a format that this version reads; build the image with matching tools."


class HardwareMismatch(Rejected):
    code = "image.hardware.mismatch"
    advice = "The image is for other hardware; fetch the one whose list names this device's hardware id."


class SecurityDowngrade(Rejected):
    code = "image.version.security-downgrade"
    advice = "The image is older than the security floor of this device; use a release at or above the floor."


class LayoutMalformed(Rejected):
    code = "image.layout.malformed"
    advice = "There is no image at this place, or its head is damaged; obtain the bundle again."


class LayoutSize(Rejected):
    code = "image.layout.size"
    advice = "The file is longer or shorter than its manifest says; obtain the bundle again."


class PayloadCorrupt(Rejected):
    code = "image.payload.corrupt"
    advice = "A block differs from what the maker signed; obtain the bundle again, or boot the other slot."


class TreeCorrupt(Rejected):
    code = "image.payload.tree-corrupt"
    advice = "The hash tree differs from what the maker signed; obtain the bundle again, or boot the other slot."


class ImageDescription(Misuse):
    code = "image.build.description"
    advice = "Correct the image description; docs/formats/image.md names every field and its limits."
