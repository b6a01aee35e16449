"""The hash chain: is this log whole, in order and signed, and if not, where exactly is it wrong? Pure.

Every line holds the SHA-256 of the line before; the first line of a boot binds device, boot and the end of the boot
before. A signed checkpoint therefore vouches for its own line and for every line before it. Where events gave way to
the size limit, gap records stand, which a checkpoint accounts for; anything else that is absent counts as removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from tidegate.events.checkpoint import Checkpoint, verify_checkpoint
from tidegate.events.errors import (
    ChainAltered,
    ChainDuplicated,
    ChainForeign,
    ChainMissing,
    ChainReordered,
    ChainTruncated,
    ChainUnsigned,
    CheckpointInvalid,
    CheckpointMissing,
    LogEmpty,
)
from tidegate.events.lines import NO_HEAD, Entry, StoredLine, genesis, hash_gaps, parse_line

if TYPE_CHECKING:
    from tidegate.crypto.trust import TrustPolicy

_PROOF = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedLog:
    """What a whole, ordered and signed log amounts to; only ``verify_chain`` makes one.

    ``unsigned_tail`` events are newer than the last checkpoint: they are in order, but nothing proves them yet.
    ``removed`` events gave way to the size limit, and a signed event says so.
    """

    device: str
    boots: tuple[str, ...]
    signed: int
    unsigned_tail: int
    removed: int
    checkpoints: int
    last_boot: str
    last_sequence: int
    head: bytes
    proof: object = field(repr=False)

    def __post_init__(self) -> None:
        if self.proof is not _PROOF:
            raise TypeError("a VerifiedLog comes from verify_chain alone")


def verify_chain(lines: Iterable[StoredLine], checkpoints: Iterable[StoredLine], *, trust: TrustPolicy) -> VerifiedLog:
    """Return what the log amounts to if it is whole up to its last checkpoint, else raise naming the exact place.

    Duties, in this order; every error has the fields ``file``, ``line``, ``boot`` and ``sequence`` where they apply:
    1. every checkpoint is signed under ``trust`` (``events.checkpoint.invalid``), and there is one
       (``events.chain.unsigned``; ``events.log.empty`` if there is no line either);
    2. every line is canonical and consistent in itself (``events.chain.malformed``);
    3. lines and checkpoints are of one device (``events.chain.foreign``);
    4. sequence numbers rise by one and boots follow each other (``events.chain.missing``, ``.reordered``,
       ``.duplicated``, ``.foreign``), and every line holds the hash of the one before (``events.chain.altered``);
    5. checkpoints follow each other without a hole (``events.checkpoint.missing``), name lines that are there
       (``events.chain.truncated``) and agree with them (``events.chain.altered``);
    6. a checkpoint accounts for each gap record, and a signed event for an absent start (``events.chain.missing``).

    A last line without a newline is what a writer at work or a power cut leaves; it counts as not written.

    Not checked: whether the log goes on elsewhere. Somebody who removes the newest events together with their
    checkpoints leaves a shorter log that is whole; compare ``head`` with one that left the device earlier.
    """
    statements = [(line, verify_checkpoint(line, trust)) for line in _without_torn(checkpoints)]  # 1
    entries = [parse_line(line) for line in _without_torn(lines)]  # 2
    if not entries and not statements:
        raise LogEmpty("there is no event and no checkpoint")
    if not statements:
        raise ChainUnsigned(f"no checkpoint covers any of {len(entries)} lines", **entries[0].fields)
    if not entries:
        raise ChainTruncated("checkpoints are there, but no event", sequence=statements[-1][1].last)
    _check_device(entries, statements)  # 3
    walk = _Walk(entries, [statement for _, statement in statements])
    walk.check_start()  # 4
    walk.check_order()
    signed = _check_checkpoints(entries, statements)  # 5
    _check_gaps(entries, statements)  # 6
    _check_log_start(entries, signed)
    events = [entry.kind is not None for entry in entries]
    return VerifiedLog(
        device=entries[0].device,
        boots=tuple(dict.fromkeys(entry.boot for entry in entries)),
        signed=sum(events[:signed]),
        unsigned_tail=sum(events[signed:]),
        removed=sum(entry.last - entry.first + 1 for entry in entries if entry.kind is None),
        checkpoints=len(statements),
        last_boot=entries[-1].boot,
        last_sequence=entries[-1].last,
        head=entries[-1].head,
        proof=_PROOF,
    )


def verify_segment(
    lines: Iterable[StoredLine], checkpoints: Iterable[StoredLine], *, trust: TrustPolicy | None
) -> list[Entry]:
    """Return the entries of a part of a log if it is consistent in itself and with its checkpoints.

    For a writer that is about to replace the part by a shorter one and to sign that: it must not sign what somebody
    altered. Errors as for ``verify_chain``. Not checked: what lies before and behind. ``trust`` is ``None`` where the
    writer does not sign, so that there is nothing to sign wrongly; then the checkpoints are not looked at.
    """
    entries = [parse_line(line) for line in lines]
    if not entries:
        raise LogEmpty("the segment holds no event")
    statements = [] if trust is None else [(line, verify_checkpoint(line, trust)) for line in checkpoints]
    if statements:
        _check_device(entries, statements)
    _Walk(entries, [statement for _, statement in statements]).check_order()
    _check_checkpoints(entries, statements)
    if trust is not None:
        _check_gaps(entries, statements)
    return entries


def _without_torn(lines: Iterable[StoredLine]) -> list[StoredLine]:
    found = list(lines)
    return found[:-1] if found and not found[-1].complete else found


def _check_device(entries: Sequence[Entry], statements: Sequence[tuple[StoredLine, Checkpoint]]) -> None:
    """Duty 3: one device, the one that signed."""
    device = statements[0][1].device
    for line, statement in statements:
        if statement.device != device:
            raise ChainForeign(f"{line.file} line {line.number} is of {statement.device}", line=line.number)
    for entry in entries:
        if entry.device != device:
            raise ChainForeign(f"{entry.place} is of device {entry.device}, not {device}", **entry.fields)


class _Walk:
    """Duty 4: order and links, each fault named as what it most probably is."""

    def __init__(self, entries: Sequence[Entry], statements: Sequence[Checkpoint]) -> None:
        self._entries = entries
        self._signed_heads = {(statement.boot, statement.last): statement.head for statement in statements}

    def check_start(self) -> None:
        """Raise if something that stands later belongs before the log's first line."""
        first = self._entries[0]
        boot, sequence = (first.link.previous_boot, None) if first.first == 1 else (first.boot, first.first - 1)
        if boot is not None and self._stands_later(0, boot, sequence):
            raise ChainReordered(f"{first.place} stands before what it continues", **first.fields)
        self._check_genesis(first)

    def check_order(self) -> None:
        """Raise for the first place where the log does not continue."""
        for index, (before, entry) in enumerate(pairwise(self._entries), start=1):
            if entry.boot != before.boot:
                self._check_boot_change(index, before, entry)
            elif entry.first != before.last + 1:
                raise self._out_of_order(index, before, entry)
            elif entry.link.prev != before.head:
                raise self._altered(index, before, entry)

    def _check_genesis(self, entry: Entry) -> None:
        head = entry.link.previous_head
        if head is not None and entry.link.prev != genesis(entry.device, entry.boot, head):
            raise ChainAltered(f"{entry.place} does not begin its boot as it was written", **entry.fields)

    def _check_boot_change(self, index: int, before: Entry, entry: Entry) -> None:
        continues = entry.first == 1 and entry.link.previous_boot == before.boot
        if continues and entry.link.previous_head == before.head:
            self._check_genesis(entry)
            return
        if any(earlier.head == entry.head for earlier in self._entries[:index]):
            raise ChainDuplicated(f"{entry.place} is a copy of an earlier line", **entry.fields)
        if self._stands_later(index, before.boot, before.last + 1):
            raise ChainForeign(f"{entry.place} is of boot {entry.boot}, in the middle of another", **entry.fields)
        if continues and self._signed_heads.get((before.boot, before.last)) != before.head:
            beyond = any(boot == before.boot and last > before.last for boot, last in self._signed_heads)
            if not beyond:
                raise ChainAltered(
                    f"{before.place} is not the end of its boot that {entry.place} continues", **before.fields
                )
        raise ChainMissing(f"events are missing between {before.place} and {entry.place}", **entry.fields)

    def _out_of_order(self, index: int, before: Entry, entry: Entry) -> Exception:
        if entry.first <= before.last:
            if any(earlier.head == entry.head for earlier in self._entries[:index]):
                return ChainDuplicated(f"{entry.place} is a copy of an earlier line", **entry.fields)
            return ChainAltered(f"{entry.place} claims a sequence number that is taken", **entry.fields)
        expected = before.last + 1
        if self._stands_later(index, entry.boot, expected):
            return ChainReordered(f"{entry.place} stands before event {expected}", **entry.fields)
        return ChainMissing(
            f"events {expected} to {entry.first - 1} are missing before {entry.place}",
            **{**entry.fields, "sequence": expected},
        )

    def _altered(self, index: int, before: Entry, entry: Entry) -> ChainAltered:
        """Name the one of two lines that others do not vouch for."""
        wrong = before if self._is_vouched(index) or index == len(self._entries) - 1 else entry
        return ChainAltered(f"{wrong.place} (event {wrong.first}) is not as it was written", **wrong.fields)

    def _is_vouched(self, index: int) -> bool:
        entry = self._entries[index]
        if self._signed_heads.get((entry.boot, entry.last)) == entry.head:
            return True
        if index + 1 == len(self._entries):
            return False
        after = self._entries[index + 1]
        return entry.head in (after.link.prev, after.link.previous_head)

    def _stands_later(self, index: int, boot: str, sequence: int | None) -> bool:
        return any(
            later.boot == boot and (sequence is None or later.first <= sequence <= later.last)
            for later in self._entries[index + 1 :]
        )


def _check_checkpoints(entries: Sequence[Entry], statements: Sequence[tuple[StoredLine, Checkpoint]]) -> int:
    """Duty 5: return how many of ``entries`` the checkpoints cover."""
    available: dict[str, tuple[int, int]] = {}
    for entry in entries:
        low, _ = available.get(entry.boot, (entry.first, 0))
        available[entry.boot] = (low, entry.last)
    ends = {(entry.boot, entry.last): index for index, entry in enumerate(entries)}
    covered = 0
    expected: dict[str, int] = {}
    for line, statement in statements:
        fields: dict[str, str | int | None] = {"file": line.file, "line": line.number, "boot": statement.boot}
        place = f"checkpoint in {line.file} line {line.number}"
        low, high = available.get(statement.boot, (0, 0))
        if statement.last > high:
            raise ChainTruncated(f"{place} names event {statement.last}; the log ends at {high}", **fields)
        begin = expected.get(statement.boot, min(low, statement.first) if low > 1 else 1)
        if statement.first > begin:
            raise CheckpointMissing(f"no checkpoint for events {begin} to {statement.first - 1}", **fields)
        if statement.first < begin:
            raise CheckpointInvalid(f"{place} stands twice or out of order", **fields)
        expected[statement.boot] = statement.last + 1
        index = ends.get((statement.boot, statement.last))
        if index is None and statement.last < low:
            raise ChainMissing(f"{place} names events before {low}, where the log's boot begins", **fields)
        if index is None:
            raise CheckpointInvalid(f"{place} names an event that is not there", **fields)
        if entries[index].head != statement.head:
            raise ChainAltered(f"{entries[index].place} is not what was signed", **entries[index].fields)
        if index + 1 <= covered:
            raise CheckpointInvalid(f"{place} stands out of order", **fields)
        covered = index + 1
    return covered


def _check_gaps(entries: Sequence[Entry], statements: Sequence[tuple[StoredLine, Checkpoint]]) -> None:
    """Duty 6: each checkpoint accounts for exactly the gap records among its events, and no gap is elsewhere."""
    gaps = [entry for entry in entries if entry.kind is None]
    accounted = 0
    for _, statement in statements:
        inside = [
            gap
            for gap in gaps
            if gap.boot == statement.boot and statement.first <= gap.first and gap.last <= statement.last
        ]
        accounted += len(inside)
        if hash_gaps(inside) != statement.gaps:
            place = inside[0] if inside else entries[0]
            raise ChainMissing(f"the signed account of gaps near {place.place} is another one", **place.fields)
    if accounted != len(gaps):
        loose = gaps[accounted]
        raise ChainMissing(f"no checkpoint accounts for the gap at {loose.place}", **loose.fields)


def _check_log_start(entries: Sequence[Entry], signed: int) -> None:
    """Duty 6: a log that does not begin at the beginning continues what a signed event says was removed."""
    dropped = {str(entry.data.get("head")) for entry in entries[:signed] if entry.kind == "events.dropped"}
    first = entries[0]
    start = first.link.prev if first.link.previous_head is None else first.link.previous_head
    if start != NO_HEAD and start.hex() not in dropped:
        raise ChainMissing(
            f"the log begins at {first.place} with event {first.first}, not at its start", **first.fields
        )
