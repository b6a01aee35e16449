"""One line of the log: parsed strictly, its links computed. Pure.

A line is an event (``model.encode_line``) or a gap record, which stands where events below alert level gave way to
the size limit. Bytes: docs/formats/events.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tidegate.events.errors import LineMalformed
from tidegate.events.model import MAX_LINE_BYTES, EventId, Json, Link, encode_canonical

HASH_BYTES = 32
NO_HEAD = bytes(HASH_BYTES)  # the "boot before" of a device's very first boot
_GENESIS_LABEL = b"tidegate.events.genesis.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLine:
    """A line as it was found: its file, its number in that file from 1, its bytes without the newline.

    ``complete`` is false for a last line without a newline: it is being written, or a power cut tore it.
    """

    file: str
    number: int
    raw: bytes
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A parsed line: an event, or a gap from ``first`` to ``last``. ``head`` is the SHA-256 of its (last) line."""

    file: str
    number: int
    device: str
    boot: str
    first: int
    last: int
    link: Link
    head: bytes
    kind: str | None  # None: a gap record
    alert: bool
    data: Mapping[str, Json]

    @property
    def place(self) -> str:
        """Return where the line stands, for people."""
        return f"{self.file} line {self.number}"

    @property
    def fields(self) -> dict[str, str | int | None]:
        """Return where the line stands, for programs."""
        return {"file": self.file, "line": self.number, "boot": self.boot, "sequence": self.first}


def hash_line(raw: bytes) -> bytes:
    """Return what the next line's ``prev`` has to be."""
    return hashlib.sha256(raw).digest()


def genesis(device: str, boot: str, previous_head: bytes) -> bytes:
    """Return the ``prev`` of a boot's first line: it binds device, boot, and the last line of the boot before."""
    parts = [_GENESIS_LABEL, device.encode(), boot.encode(), previous_head]
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()


def first_link(device: str, boot: str, *, previous_boot: str | None, previous_head: bytes) -> Link:
    """Return the link of a boot's first line."""
    return Link(prev=genesis(device, boot, previous_head), previous_boot=previous_boot, previous_head=previous_head)


def encode_gap(entries: Sequence[Entry]) -> bytes:
    """Return the gap record that stands for ``entries``, consecutive events or gap records of one boot."""
    first, last = entries[0], entries[-1]
    gap: dict[str, Json] = {
        "device": first.device,
        "boot": first.boot,
        "first": first.first,
        "last": last.last,
        "prev": first.link.prev.hex(),
        "head": last.head.hex(),
    }
    return encode_canonical({"gap": gap})


def hash_gaps(gaps: Iterable[Entry]) -> bytes:
    """Return what a checkpoint says about the gap records among its events: nothing if there are none."""
    records = [encode_gap([gap]) for gap in gaps]
    return hashlib.sha256(b"\n".join(records)).digest() if records else b""


class _Previous(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    boot: str | None
    head: str


class _Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: str
    boot: str
    seq: int
    prev: str
    kind: str
    data: dict[str, object] = {}  # msgspec copies it
    previous: _Previous | None = None


class _Unmapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tidegate: _Place


class _Metadata(msgspec.Struct, frozen=True):
    uid: str
    sequence: int


class _EventLine(msgspec.Struct, frozen=True):
    unmapped: _Unmapped
    metadata: _Metadata
    severity_id: int


class _Gap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    device: str
    boot: str
    first: int
    last: int
    prev: str
    head: str


class _GapLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gap: _Gap


_event_decoder = msgspec.json.Decoder(_EventLine)
_gap_decoder = msgspec.json.Decoder(_GapLine)
_any_decoder = msgspec.json.Decoder()


def parse_line(line: StoredLine) -> Entry:
    """Return what the line says, or raise ``events.chain.malformed`` naming file and line.

    The line must be canonical JSON of at most 16 KiB, an event whose identity stands in it twice alike, or a gap
    record. Links are not checked.
    """
    raw = line.raw
    if len(raw) > MAX_LINE_BYTES:
        raise _malformed(line, f"has over {MAX_LINE_BYTES} bytes")
    if not line.complete:
        raise _malformed(line, "ends without a newline")
    try:
        if raw != encode_canonical(_any_decoder.decode(raw)):
            raise _malformed(line, "is not canonical JSON")
        return _parse_gap(line) if raw.startswith(b'{"gap":') else _parse_event(line)
    except (msgspec.MsgspecError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _malformed(line, f"is no event ({error})") from error


def _parse_event(line: StoredLine) -> Entry:
    document = _event_decoder.decode(line.raw)
    place = document.unmapped.tidegate
    identity = EventId(device=place.device, boot=place.boot, sequence=place.seq)
    if document.metadata.uid != str(identity) or document.metadata.sequence != place.seq:
        raise _malformed(line, "contradicts itself about its identity")
    if place.seq < 1 or (place.seq == 1) != (place.previous is not None):
        raise _malformed(line, "has an impossible sequence number")
    return Entry(
        file=line.file,
        number=line.number,
        device=place.device,
        boot=place.boot,
        first=place.seq,
        last=place.seq,
        link=Link(
            prev=_hash(line, place.prev),
            previous_boot=place.previous.boot if place.previous else None,
            previous_head=_hash(line, place.previous.head) if place.previous else None,
        ),
        head=hash_line(line.raw),
        kind=place.kind,
        alert=document.severity_id >= 3,
        data=place.data,  # type: ignore[arg-type]  # decoded from JSON
    )


def _parse_gap(line: StoredLine) -> Entry:
    gap = _gap_decoder.decode(line.raw).gap
    if not 2 <= gap.first <= gap.last:  # a boot's first line is always kept
        raise _malformed(line, "is an impossible gap")
    return Entry(
        file=line.file,
        number=line.number,
        device=gap.device,
        boot=gap.boot,
        first=gap.first,
        last=gap.last,
        link=Link(prev=_hash(line, gap.prev)),
        head=_hash(line, gap.head),
        kind=None,
        alert=False,
        data={},
    )


def _hash(line: StoredLine, text: str) -> bytes:
    value = bytes.fromhex(text)
    if len(value) != HASH_BYTES or value.hex() != text:
        raise _malformed(line, "has a hash of the wrong form")
    return value


def _malformed(line: StoredLine, why: str) -> LineMalformed:
    return LineMalformed(f"{line.file} line {line.number} {why}", file=line.file, line=line.number)
