"""How many bytes an item takes on the storage, so that its size does not tell what it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.vault.errors import PaddingUnknown

MAX_BLOCK_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Padding:
    """``none``; ``padme`` (at most 12 % more, and only O(log log n) bits of the size are told); a block size in bytes.

    Source of ``padme``: Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs",
    2019, algorithm 1.
    """

    rule: str = "none"

    def __post_init__(self) -> None:
        if self.rule not in ("none", "padme"):
            block = int(self.rule) if self.rule.isascii() and self.rule.isdigit() and len(self.rule) <= 10 else 0
            if not 1 <= block <= MAX_BLOCK_BYTES:
                raise PaddingUnknown(f"{self.rule[:40]!r} is no way to pad")

    def padded(self, length: int) -> int:
        """Return the stored length for a content of ``length`` bytes."""
        if self.rule == "none":
            return length
        if self.rule != "padme":
            block = int(self.rule)
            return max(1, -(-length // block)) * block
        if length < 2:
            return length
        exponent = length.bit_length() - 1
        mask = (1 << max(0, exponent - exponent.bit_length())) - 1
        return (length + mask) & ~mask
