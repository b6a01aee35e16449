"""The event log's one writer: bounded, durable, chained, signed.

Touches: the log's folder through ``segments.py``. One thread of one process writes; short-lived commands open, append
and close in turn, and wait for each other a bounded time.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tidegate.base.clock import Clock, SystemClock
from tidegate.base.durable import sync_folder, translate_os_errors
from tidegate.base.errors import Fault, Rejected, StorageFull
from tidegate.base.lock import FolderLock
from tidegate.events import catalogue
from tidegate.events.chain import verify_segment
from tidegate.events.checkpoint import Checkpoint, parse_checkpoint_line, sign_checkpoint
from tidegate.events.errors import LogEmpty, SpoolBusy
from tidegate.events.lines import NO_HEAD, StoredLine, first_link, hash_line
from tidegate.events.model import Event, EventId, Link, check_identifier, encode_line
from tidegate.events.retention import Segment, SegmentKind, ThinSegments, last_entry, plan_next, thin_entries
from tidegate.events.segments import (
    MAX_SEGMENT_BYTES,
    AppendFile,
    checkpoints_path,
    events_path,
    list_segments,
    read_segment,
    remove_leftovers,
    remove_segment,
    replace_segments,
    set_aside_strangers,
)

if TYPE_CHECKING:
    from tidegate.crypto.signing import Signer
    from tidegate.crypto.trust import TrustPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolLimits:
    """How large the log gets and how much a power cut may cost.

    ``total_bytes`` holds the closed segments and the one being written; information gives way first, alerts last.
    Events below alert level become durable after ``sync_every_events`` or, at the next append, ``sync_every_s``.
    """

    total_bytes: int = 8 << 20  # about 12,000 events of 700 bytes
    segment_bytes: int = 256 << 10
    sync_every_events: int = 64
    sync_every_s: float = 1.0
    checkpoint_every_events: int = 256

    def __post_init__(self) -> None:
        if not 4096 <= self.segment_bytes <= MAX_SEGMENT_BYTES // 2 or self.total_bytes < 4 * self.segment_bytes:
            raise ValueError("a segment has 4 KiB to 8 MiB, and the log room for four of them")


class EventLog:
    """Writes events of ``device_id`` in its boot ``boot_id`` behind what the folder holds already.

    Opening takes the writer's lock (``events.spool.busy`` after ``wait_s``), removes a line that a power cut tore and
    reports it as an event. Without ``signer`` there are no checkpoints, and ``verify_folder`` refuses the log.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device_id: str,
        boot_id: str,
        signer: Signer | None,
        clock: Clock | None = None,
        limits: SpoolLimits | None = None,
        wait_s: float = 2.0,
    ) -> None:
        self._folder = folder
        self._device = check_identifier(device_id)
        self._boot = check_identifier(boot_id)
        self._signer = signer
        self._clock = clock or SystemClock()
        self._limits = limits or SpoolLimits()
        self._head, self._sequence, self._checkpointed = NO_HEAD, 0, 0
        self._unsynced = 0
        self._unsynced_since_s = 0.0
        self._lost = 0
        self._files: tuple[AppendFile, ...] = ()
        with translate_os_errors(folder):
            if not folder.exists():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_folder(folder.parent)
        self._lock = FolderLock(folder, wait_s=wait_s, busy=SpoolBusy)
        try:
            self._open()
        except BaseException:
            self._release()
            raise

    # -- what callers use ---------------------------------------------------------------------------------------------

    def append(self, event: Event) -> EventId:
        """Write ``event`` as the next line and return its identity.

        An alert is durable when this returns; others after the limits' interval or ``sync``. Raises
        ``base.storage.*`` with nothing half written; the loss is counted, and the count becomes an event as soon as
        there is room again. Raises ``events.event.invalid`` for an event that no line can hold.
        """
        self._report_lost()
        try:
            self._make_room()
            identity = self._write(event)
        except Fault:
            self._lost += 1
            raise
        self._settle(event)
        return identity

    def sync(self) -> None:
        """Return once every event so far is durable."""
        if self._unsynced:
            self._events.sync()
            self._unsynced = 0

    def checkpoint(self) -> None:
        """Sign everything so far; nothing to do without a signer or without news. Durable when this returns.

        The events are made durable first: a checkpoint that survives a power cut always finds its lines.
        """
        if self._signer is None or self._sequence == self._checkpointed:
            return
        self.sync()
        statement = Checkpoint(
            device=self._device,
            boot=self._boot,
            first=self._checkpointed + 1,
            last=self._sequence,
            head=self._head,
        )
        self._checkpoints.append(sign_checkpoint(statement, [self._signer]))
        self._checkpoints.sync()
        self._checkpointed = self._sequence

    def close(self) -> None:
        """Sign, make durable, and let the next writer in; harmless when repeated."""
        if not self._files:
            return
        try:
            self._report_lost()
            self.sync()
            self.checkpoint()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- opening ------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Find the end of the log, mend it, and continue this boot or begin it."""
        strangers = set_aside_strangers(self._folder)
        remove_leftovers(self._folder)
        segments = list_segments(self._folder)
        open_end = bool(segments) and segments[-1].kind is SegmentKind.FULL
        cut = self._mend(segments[-1].last) if open_end else 0
        boot, damaged, where = self._find_end(segments)
        number = segments[-1].last if segments else 0
        self._enter_segment(number if open_end and boot == self._boot else number + 1)
        if boot == self._boot:
            self._link = Link(prev=self._head)
            self._checkpointed = self._last_checkpointed(segments)
        else:
            self._sequence = 0
            self._link = first_link(self._device, self._boot, previous_boot=boot, previous_head=self._head)
        if cut or damaged or strangers:
            self.append(catalogue.log_recovered(file=where, cut_bytes=cut, damaged_lines=damaged + strangers))

    def _find_end(self, segments: list[Segment]) -> tuple[str | None, int, str]:
        """Set head and sequence to the last line's; return its boot, how many unreadable lines follow it, its file."""
        for segment in reversed(segments):
            lines, _ = read_segment(self._folder, segment)
            if not lines:
                continue  # created just before a power cut
            try:
                entry, damaged = last_entry(lines)
            except LogEmpty:  # not one line is readable: begin a chain that no verifier takes for its continuation
                self._head = hash_line(lines[-1].raw)
                return None, len(lines), lines[-1].file
            self._sequence = entry.last + damaged
            self._head = hash_line(lines[-1].raw) if damaged else entry.head
            return entry.boot, damaged, lines[-1].file
        return None, 0, ""

    def _mend(self, number: int) -> int:
        """Remove torn lines at the end of a segment's two files; return how many bytes they had."""
        cut = 0
        for path in (events_path(self._folder, number), checkpoints_path(self._folder, number)):
            file = AppendFile(path)
            try:
                cut += file.cut_torn_line()
            finally:
                file.close()
        return cut

    def _last_checkpointed(self, segments: list[Segment]) -> int:
        """Return the last sequence number of this boot that a checkpoint covers, by the plain hints."""
        for segment in reversed(segments):
            for line in reversed(read_segment(self._folder, segment)[1]):
                try:
                    hint = parse_checkpoint_line(line)
                except Rejected:  # tampering: the verifier names the line; the writer has to go on
                    continue
                return min(hint.last, self._sequence) if hint.boot == self._boot else 0
        return 0

    def _enter_segment(self, number: int) -> None:
        """Open both files of segment ``number``, or change nothing."""
        events = AppendFile(events_path(self._folder, number))
        try:
            checkpoints = AppendFile(checkpoints_path(self._folder, number))
        except Fault:
            events.close()
            raise
        for file in self._files:
            file.close()
        self._number, self._events, self._checkpoints = number, events, checkpoints
        self._files = (events, checkpoints)

    def _release(self) -> None:
        for file in self._files:
            file.close()
        self._files = ()
        self._lock.release()

    # -- writing ------------------------------------------------------------------------------------------------------

    def _write(self, event: Event) -> EventId:
        identity = EventId(device=self._device, boot=self._boot, sequence=self._sequence + 1)
        now_ms = int(self._clock.now_s() * 1000)
        line = encode_line(event, identity=identity, link=self._link, time_ms=now_ms)
        self._events.append(line)
        self._sequence += 1
        self._head = hash_line(line)
        self._link = Link(prev=self._head)
        return identity

    def _settle(self, event: Event) -> None:
        """Make the line just written durable and signed as soon as the limits ask for it."""
        now_s = self._clock.monotonic_s()
        if not self._unsynced:
            self._unsynced_since_s = now_s
        self._unsynced += 1
        overdue = now_s - self._unsynced_since_s >= self._limits.sync_every_s
        if event.is_alert or overdue or self._unsynced >= self._limits.sync_every_events:
            self.sync()
        if self._sequence - self._checkpointed >= self._limits.checkpoint_every_events:
            # the event is written; a checkpoint that finds no room is due again at the next event
            with contextlib.suppress(StorageFull):
                self.checkpoint()

    def _account(self, event: Event) -> None:
        """Write down, durable and signed, what is about to be removed."""
        self._write(event)
        self._unsynced += 1
        self.sync()
        self.checkpoint()

    def _report_lost(self) -> None:
        """Say how many events found no room; if there still is none, the count stays."""
        if not self._lost:
            return
        try:
            self._make_room()
            event = catalogue.log_lost(count=self._lost, reason="storage full or failing")
            self._write(event)
        except Fault:
            return
        self._lost = 0
        self._settle(event)

    # -- size ---------------------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Begin a new segment when this one is full, then let old events give way until the log fits."""
        if self._events.size_bytes < self._limits.segment_bytes:
            return
        self.sync()
        self.checkpoint()
        self._enter_segment(self._number + 1)
        limit = self._limits.total_bytes - self._limits.segment_bytes
        with contextlib.suppress(StorageFull):  # no room to make room: due again with the next segment
            while step := plan_next(
                self._closed_segments(), limit_bytes=limit, merge_bytes=self._limits.segment_bytes // 2
            ):
                if isinstance(step, ThinSegments):
                    self._thin(step.segments)
                else:
                    self._drop(step.segment)

    def _closed_segments(self) -> list[Segment]:
        return [segment for segment in list_segments(self._folder) if segment.last != self._number]

    def _thin(self, segments: tuple[Segment, ...]) -> None:
        """Replace the segments by a thinned one, or keep the last of them as evidence if it was altered."""
        lines: list[StoredLine] = []
        checkpoints: list[StoredLine] = []
        for segment in segments:
            found = read_segment(self._folder, segment)
            lines += found[0]
            checkpoints += found[1]
        try:
            entries = verify_segment(lines, checkpoints, trust=self._own_trust())
        except Rejected:  # the verifier names the place; the writer has to go on
            if len(segments) > 1:
                self._thin(segments[-1:])
                return
            rows = [line.raw for line in (*lines, *checkpoints)]
            replace_segments(self._folder, segments, SegmentKind.KEPT, rows)
            return
        thinned = thin_entries(lines, entries)
        rows = list(thinned.lines)
        if self._signer is not None:
            rows += [sign_checkpoint(statement, [self._signer]) for statement in thinned.checkpoints]
        replace_segments(self._folder, segments, SegmentKind.THINNED, rows)
        if thinned.removed:
            self._write(catalogue.log_thinned(segment=segments[-1].last, count=thinned.removed))

    def _own_trust(self) -> TrustPolicy | None:
        """Return the policy that trusts what this writer signs."""
        if self._signer is None:
            return None
        from tidegate.crypto.trust import TrustPolicy  # heavy: loaded already by the signer

        return TrustPolicy(keys=(self._signer.public_key,), threshold=1, required_classes=frozenset())

    def _drop(self, segment: Segment) -> None:
        """Remove the oldest segment after a signed event said so."""
        lines, _ = read_segment(self._folder, segment)
        head, count = NO_HEAD, 0
        if lines:
            head, count = hash_line(lines[-1].raw), len(lines)
            with contextlib.suppress(LogEmpty):
                entry, behind = last_entry(lines)
                head = head if behind else entry.head
        self._account(catalogue.log_dropped(segment=segment.last, count=count, head=head.hex()))
        remove_segment(self._folder, segment)
