"""Bans on disk, so that they keep their remaining time over reboots.

Touches: ``bans.journal`` in the firewall's state folder. Deciding (records to bytes and back, what is left of a ban)
stands first and is pure.

Every change is one record at the end of the file; when superseded records make up most of it, it is written anew
without them. A record that a power cut tore or that decayed is skipped, the others count. Appending does not wait for
the storage: ``sync`` does, and whoever must not lose the last bans calls it. Format: docs/firewall-bans.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import tidegate
from tidegate.base.durable import require_private, sync_folder, translate_os_errors, write_all
from tidegate.firewall.bantable import BAN_LENGTHS, set_name
from tidegate.firewall.errors import BanStoreForeign

JOURNAL = "bans.journal"
LOCK = "bans.lock"
RECORD_BYTES = 36
BLOCK_RECORDS = 1024  # read at a time, so that memory does not grow with the file
MIN_COMPACTION = 4096  # records (144 KiB) below which writing anew is not worth the erase cycles
MAX_RECORDS = 1 << 22  # read at most, newest first: twice all the elements that the largest sets of one family hold
_MAGIC = b"tidegate bans 1\n"
_RECORD = struct.Struct(">BBBx16sQI")


class Act(IntEnum):
    """What a record says."""

    BAN = 1
    LIFT = 2
    CLEAR = 3  # everything before it is void


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One change to one element of the sets of bans; ``seconds`` is what was left at ``noted_s`` of the wall clock."""

    act: Act
    name: str
    key: bytes
    noted_s: int
    seconds: int

    def left_s(self, now_s: float) -> float:
        """Return the seconds left at ``now_s``.

        A clock that shows a time before the ban was noted is wrong (a device without a battery starts in the past):
        then all that was left counts. Never more than that, whatever the clock says.
        """
        return self.seconds - max(0.0, now_s - self.noted_s)


def encode_record(record: Record) -> bytes:
    """Return the record as it stands in the file."""
    version, length = 4 if len(record.key) == 4 else 6, 0
    if record.act is not Act.CLEAR:
        length = int(record.name.partition("_")[2] or 8 * len(record.key))
    body = _RECORD.pack(record.act, version, length, record.key.ljust(16, b"\0"), record.noted_s, record.seconds)
    return body + zlib.crc32(body).to_bytes(4, "big")


def parse_record(data: bytes) -> Record | None:
    """Return the record, or ``None`` when it is damaged."""
    if len(data) != RECORD_BYTES or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
        return None
    act, version, length, key, noted_s, seconds = _RECORD.unpack_from(data)
    if act == Act.CLEAR:
        return Record(act=Act.CLEAR, name="", key=b"", noted_s=noted_s, seconds=0)
    if act not in _ACTS or length not in BAN_LENGTHS.get(version, ()):
        return None
    return Record(
        act=_ACTS[act],
        name=_NAMES[version, length],
        key=key[:4] if version == 4 else key,
        noted_s=noted_s,
        seconds=seconds,
    )


def encode_header(live: int) -> bytes:
    """Return the first record of a file: its kind, and how many records it had when it was written anew."""
    body = _MAGIC.ljust(24, b"\0") + live.to_bytes(8, "big")
    return body + zlib.crc32(body).to_bytes(4, "big")


def parse_header(data: bytes) -> int:
    """Return the number of records at the last compaction; 0 when the header decayed.

    Raises ``firewall.ban.store`` for a file that is whole but not of this kind.
    """
    sound = len(data) == RECORD_BYTES and zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "big")
    if sound and not data.startswith(_MAGIC):
        raise BanStoreForeign("the journal of bans has another format")
    return int.from_bytes(data[24:32], "big") if sound else 0


class Newest:
    """The newest record of every element of a journal that is read from its end."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self.cleared = False
        self.corrupt = 0

    def take(self, raw: bytes) -> Record | None:
        """Return the ban that ``raw`` holds if nothing newer was said about its element."""
        record = parse_record(raw)
        if record is None:
            self.corrupt += 1
            return None
        if record.act is Act.CLEAR:
            self.cleared = True
            return None
        place = raw[2:3] + record.key
        if place in self._seen:
            return None
        self._seen.add(place)
        return record if record.act is Act.BAN else None


class BanStore:
    """The journal in one state folder; several processes may use it at once."""

    def __init__(self, state_dir: Path) -> None:
        """Raises ``base.permissions.unsafe``, ``base.storage.*``."""
        self.path = state_dir / JOURNAL
        self._lock_path = state_dir / LOCK
        with translate_os_errors(state_dir):
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(state_dir)  # what lies here is loaded into the kernel
        self._descriptor: int | None = None
        self._compaction: subprocess.Popen[bytes] | None = None
        self._not_before = 0  # records: a compaction that failed is not tried again at every ban

    def append(self, records: Sequence[Record]) -> None:
        """Add ``records``; they are durable after ``sync``. Raises ``base.storage.*``, ``firewall.ban.store``."""
        data = b"".join(encode_record(record) for record in records)
        with translate_os_errors(self.path), self._locked():
            descriptor = self._current()
            torn = -os.fstat(descriptor).st_size % RECORD_BYTES
            write_all(descriptor, bytes(torn) + data)  # what a power cut left of a record becomes a damaged one

    def sync(self) -> None:
        """Return when what was appended is on the storage; raises ``base.storage.*``."""
        if self._descriptor is not None:
            with translate_os_errors(self.path):
                os.fdatasync(self._descriptor)

    def read_newest_first(self) -> Iterator[bytes]:
        """Yield the raw records from the last to the first; a torn one at the end comes out short.

        Raises ``firewall.ban.store``, ``base.storage.*``; yields nothing when there is no journal.
        """
        with translate_os_errors(self.path), contextlib.suppress(FileNotFoundError), self.path.open("rb") as stream:
            parse_header(stream.read(RECORD_BYTES))
            end = os.fstat(stream.fileno()).st_size
            yield from _backwards(stream.fileno(), end)

    @property
    def is_due(self) -> bool:
        """Whether superseded records make up most of the journal; a compaction that runs already counts as none."""
        if self._compaction is not None:
            if self._compaction.poll() is None:
                return False
            self._not_before = self._not_before if self._compaction.returncode else 0
            self._compaction = None
        try:
            with self.path.open("rb") as stream:
                live = parse_header(stream.read(RECORD_BYTES))
                records = os.fstat(stream.fileno()).st_size // RECORD_BYTES - 1
        except FileNotFoundError:
            return False
        return records > max(MIN_COMPACTION, 2 * live, self._not_before)

    def start_compaction(self) -> None:
        """Have a process of its own write the journal anew: this one's memory does not grow by it."""
        code = (
            f"import sys, time; sys.path.insert(0, {str(Path(tidegate.__file__).parent.parent)!r}); "
            "from pathlib import Path; from tidegate.firewall.banstore import BanStore; "
            "BanStore(Path(sys.argv[1])).compact(time.time())"
        )
        command = [sys.executable, "-I", "-S", "-c", code, str(self.path.parent.absolute())]
        with translate_os_errors(self.path):
            self._not_before = self.path.stat().st_size // RECORD_BYTES - 1 + MIN_COMPACTION
            self._compaction = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def compact(self, now_s: float) -> int:
        """Write the journal anew with nothing but bans that have time left; return how many records were damaged.

        What others append meanwhile is kept. After a power cut there is the old file or the new one, whole.
        Raises ``base.storage.*``, ``firewall.ban.store``.
        """
        neighbour = self.path.with_name(f".{JOURNAL}.new")
        with translate_os_errors(self.path), self._locked("compact.lock"):
            try:
                source = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return 0
            try:
                with neighbour.open("wb") as target:
                    os.fchmod(target.fileno(), 0o600)
                    return self._rewrite(source, target.fileno(), now_s)
            finally:
                os.close(source)
                neighbour.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal and wait for a compaction that this object started; harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._compaction is not None:
            self._compaction.wait()
            self._compaction = None

    def _rewrite(self, source: int, target: int, now_s: float) -> int:
        parse_header(os.pread(source, RECORD_BYTES, 0))
        end = os.fstat(source).st_size
        end -= end % RECORD_BYTES
        newest, live = Newest(), 0
        write_all(target, encode_header(0))
        # The order turns round: it does not matter, for each element has one record now.
        kept: list[bytes] = []
        for raw in _backwards(source, end):
            record = newest.take(raw)
            if newest.cleared:
                break
            if record is not None and record.left_s(now_s) > 0:
                kept.append(raw)
                live += 1
            if len(kept) == BLOCK_RECORDS:
                write_all(target, b"".join(kept))
                kept.clear()
        write_all(target, b"".join(kept))
        os.pwrite(target, encode_header(live), 0)
        os.fsync(target)  # the bulk of it before others wait for the lock
        with self._locked():
            write_all(target, _read_from(source, end))
            os.fsync(target)
            self.path.with_name(f".{JOURNAL}.new").rename(self.path)
            sync_folder(self.path.parent)
        return newest.corrupt

    def _current(self) -> int:
        """Return a descriptor of the journal that the name stands for now; create it if there is none."""
        if self._descriptor is not None:
            here = os.fstat(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                there = self.path.stat()
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    return self._descriptor
            os.close(self._descriptor)
            self._descriptor = None
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self.path, flags, 0o600)
        if os.fstat(self._descriptor).st_size < RECORD_BYTES:
            os.ftruncate(self._descriptor, 0)  # the power went between its creation and its header
            write_all(self._descriptor, encode_header(0))
            sync_folder(self.path.parent)
        parse_header(os.pread(self._descriptor, RECORD_BYTES, 0))
        return self._descriptor

    @contextlib.contextmanager
    def _locked(self, name: str = LOCK) -> Iterator[None]:
        lock = os.open(self._lock_path.with_name(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _backwards(descriptor: int, end: int) -> Iterator[bytes]:
    """Yield the records before ``end``, last first, without the header; a piece of one at the end comes first."""
    torn = end % RECORD_BYTES
    if torn and end > RECORD_BYTES:
        yield os.pread(descriptor, torn, end - torn)
    left = min((end - torn) // RECORD_BYTES - 1, MAX_RECORDS)
    place = end - torn
    while left > 0:
        count = min(left, BLOCK_RECORDS)
        place -= count * RECORD_BYTES
        block = os.pread(descriptor, count * RECORD_BYTES, place)
        for number in reversed(range(count)):
            yield block[number * RECORD_BYTES : (number + 1) * RECORD_BYTES]
        left -= count


def _read_from(descriptor: int, start: int) -> bytes:
    parts = []
    while part := os.pread(descriptor, 1 << 16, start):
        parts.append(part)
        start += len(part)
    return b"".join(parts)


_ACTS = {int(act): act for act in Act}
_NAMES = {
    (version, length): set_name(version, length) for version, lengths in BAN_LENGTHS.items() for length in lengths
}
