"""How far an update has come: which image, into which slot, up to where it is durable.

Pure but for the two-copy record it is kept in. Bytes: docs/formats/storage.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidegate.base.blockdev import BlockDevice
from tidegate.base.record import AlternatingRecord
from tidegate.crypto import cbor

_MAGIC = b"TGUPDJNL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """``verified_bytes`` from the start of the slot are written and durable, the head excepted."""

    image_digest: bytes
    slot: str
    verified_bytes: int


class UpdateJournal:
    """The journal at ``offset`` of the state partition."""

    def __init__(self, device: BlockDevice, offset: int) -> None:
        self._record = AlternatingRecord(device, offset, _MAGIC)

    def read(self) -> Progress | None:
        """Return where the last update stopped, or None if there is nothing to resume."""
        if not self._record.exists():
            return None
        match cbor.decode(self._record.read(), limit_bytes=512):
            case {"digest": bytes() as digest, "slot": str() as slot, "verified": int() as verified}:
                return Progress(image_digest=digest, slot=slot, verified_bytes=verified)
        return None  # another version's journal: starting again is always safe

    def write(self, progress: Progress) -> None:
        """Make ``progress`` durable."""
        document = {"digest": progress.image_digest, "slot": progress.slot, "verified": progress.verified_bytes}
        self._record.write(cbor.encode(document))

    def clear(self) -> None:
        """Forget the update; a later one starts from nothing."""
        self._record.write(cbor.encode(None))
