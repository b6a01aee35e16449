"""A whole vault as one age file, so that others can read it: a tar archive, encrypted for recipients.

Touches: the binary streams that the caller passes. Members: ``items/NAME``, ``records/TABLE`` (CBOR arrays of key
and value, each behind its length in 4 bytes), ``keys/NAME``. docs/formats/vault.md, "Backup".
"""

from __future__ import annotations

import contextlib
import io
import queue
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from tidegate.crypto import cbor
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault import age
from tidegate.vault.age_recipients import Identity, Recipient
from tidegate.vault.errors import BackupMalformed, ItemBusy, ItemUnknown, KeyUnknown
from tidegate.vault.files import ItemReader
from tidegate.vault.format import check_name
from tidegate.vault.journal import MAX_ENTRY_BYTES, MAX_VALUE_BYTES
from tidegate.vault.listing import KEYS, RECORDS

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from tidegate.vault.store import Vault

MAX_TABLE_BYTES = 256 << 20  # of one table in a backup: it is in memory meanwhile
BUSY_WAIT_S = 5.0  # for an item that is changed in place: who holds one open for longer would hold up the backup
_BUSY_POLL_S = 0.02
_PIPE_PIECES = 4
_LENGTH_BYTES = 4

Report = Callable[[str], None]


def write_backup(
    vault: Vault, target: BinaryIO, recipients: Sequence[Recipient], *, report: Report | None = None
) -> int:
    """Write everything in the vault to ``target``, readable for ``recipients`` alone; return how many items.

    Item for item in constant memory; what changes meanwhile is in it or not, what is deleted meanwhile is not. An item
    that is being changed in place is waited for, some seconds. Raises what reading raises (``vault.item.busy`` for one
    that stays so) and ``vault.age.*``; then ``target`` holds the beginning of a file, which every reader refuses.
    """
    pipe = _Pipe()
    failures: list[BaseException] = []

    def encrypt() -> None:
        try:
            age.encrypt(cast("BinaryIO", pipe), target, recipients)
        except BaseException as error:  # noqa: BLE001  # handed to the thread that asked, which raises it
            failures.append(error)
            pipe.drain()

    worker = threading.Thread(target=encrypt, name="vault-backup")
    worker.start()
    try:
        count = _write_archive(vault, pipe, report)
    except BaseException:
        pipe.fail()
        worker.join()
        raise
    pipe.end()
    worker.join()
    if failures:
        raise failures[0]
    return count


def read_backup(vault: Vault, source: BinaryIO, identities: Sequence[Identity], *, report: Report | None = None) -> int:
    """Put what a backup holds into the vault, replacing what has the same names; return how many items.

    Raises ``vault.age.*``, ``vault.backup.malformed``, ``vault.item.name``; the items before that are in the vault.
    """
    stream = _Pieces(age.decrypt(source, identities))
    count = 0
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                kind, _, name = member.name.partition("/")
                if content is None or not name:
                    raise BackupMalformed(f"{member.name[:80]!r} has no place in a vault")
                if report is not None:
                    report(member.name)
                count += _restore(vault, kind, name, cast("BinaryIO", content), member.size)
    except tarfile.TarError as error:
        raise BackupMalformed("the file holds no backup of a vault") from error
    for _ in stream.rest():  # the end of the file is authenticated too
        pass
    return count


def _write_archive(vault: Vault, pipe: _Pipe, report: Report | None) -> int:
    count = 0
    with tarfile.open(fileobj=cast("BinaryIO", pipe), mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for item in vault.iter_items():
            reader = _open_item(vault, item.name)
            if reader is None:
                continue
            with reader:
                if report is not None:
                    report(item.name)
                _add(archive, f"items/{item.name}", reader.header.length_bytes, item.modified_s, _Content(reader))
            count += 1
        for table, raw in _tables(vault):
            _add(archive, f"records/{table}", len(raw), 0, io.BytesIO(raw))
        for key, _ in vault.table_scan(KEYS):
            name = key[len(KEYS) :].decode()
            with contextlib.suppress(KeyUnknown), vault.application_key(name, create=False) as secret:
                _add(archive, f"keys/{name}", len(secret), 0, io.BytesIO(secret.view()))
    return count


def _open_item(vault: Vault, name: str) -> ItemReader | None:
    """Return the item open for reading, or None if it was deleted since it was listed; wait for who changes it."""
    until_s = time.monotonic() + BUSY_WAIT_S
    while True:
        try:
            return vault.open_item(name)
        except ItemUnknown:
            return None
        except ItemBusy:
            if time.monotonic() >= until_s:
                raise
        time.sleep(_BUSY_POLL_S)


def _add(archive: tarfile.TarFile, name: str, size: int, modified_s: int, content: io.RawIOBase | io.BytesIO) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, modified_s, 0o600
    archive.addfile(member, cast("BinaryIO", content))


def _tables(vault: Vault) -> Iterator[tuple[str, bytes]]:
    """Yield each record table with its records."""
    parts: list[bytes] = []
    size = 0
    current: bytes | None = None
    for full, value in vault.table_scan(RECORDS):
        table, _, key = full[len(RECORDS) :].partition(b"\0")
        if table != current and current is not None:
            yield current.decode(), b"".join(parts)
            parts, size = [], 0
        current = table
        pair = cbor.encode([key, value])
        parts.append(len(pair).to_bytes(_LENGTH_BYTES, "big") + pair)
        size += len(parts[-1])
        if size > MAX_TABLE_BYTES:
            raise BackupMalformed(f"the table {table.decode()!r} is larger than {MAX_TABLE_BYTES} bytes")
    if current is not None:
        yield current.decode(), b"".join(parts)


def _restore(vault: Vault, kind: str, name: str, content: BinaryIO, size: int) -> int:
    if kind == "items":
        vault.write_from(check_name(name), content)
        return 1
    if size > MAX_TABLE_BYTES:
        raise BackupMalformed(f"{kind}/{name[:80]} is larger than {MAX_TABLE_BYTES} bytes")
    if kind == "keys":
        vault.put_application_key(name, ProtectedSecret(content.read(size)))
        return 0
    if kind != "records":
        raise BackupMalformed(f"a vault has no {kind[:40]!r}")
    _restore_table(vault, name, content.read(size))
    return 0


def _restore_table(vault: Vault, name: str, raw: bytes) -> None:
    """Put records back, as many in a transaction as one may hold."""
    records = vault.records(name)
    pending, position = 0, 0
    change = records.transaction()
    while position < len(raw):
        end = position + _LENGTH_BYTES + int.from_bytes(raw[position : position + _LENGTH_BYTES], "big")
        pair = cbor.decode(raw[position + _LENGTH_BYTES : end], limit_bytes=2 * MAX_VALUE_BYTES)
        position = end
        match pair:
            case [bytes() as key, bytes() as value]:
                change[key] = value
                pending += len(key) + len(value) + 64
            case _:
                raise BackupMalformed(f"the table {name[:80]!r} of the backup is malformed")
        if pending > MAX_ENTRY_BYTES // 2:
            change.commit()
            pending = 0
    change.commit()


class _Content(io.RawIOBase):
    """An item's content for the archive."""

    def __init__(self, reader: ItemReader) -> None:
        super().__init__()
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        done = self._reader.read_into(self._position, memoryview(buffer).cast("B"))
        self._position += done
        return done


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def rest(self) -> Iterator[bytes]:
        """Yield what was not read."""
        return self._pieces

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        if not self._left:
            self._left = memoryview(next(self._pieces, b""))
        count = min(len(target), len(self._left))
        target[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class _Pipe(io.RawIOBase):
    """Carries pieces from the thread that archives to the one that encrypts; a few wait at most."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: queue.Queue[bytes | None] = queue.Queue(_PIPE_PIECES)
        self._left = b""
        self._ended = self._failed = False

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        piece = bytes(data)
        if piece and not self._ended:
            self._queue.put(piece)
        return len(piece)

    def end(self) -> None:
        """Say that nothing follows."""
        self._queue.put(None)

    def fail(self) -> None:
        """End the stream so that the encrypting side gives up instead of making a whole file of it."""
        self._failed = True
        self._queue.put(None)

    def drain(self) -> None:
        """Take and drop what comes: the encrypting side gave up."""
        self._ended = True
        while not self._queue.empty():
            self._queue.get()

    def read(self, size: int = -1) -> bytes:
        if not self._left:
            piece = self._queue.get() if not self._ended else None
            if piece is None:
                self._ended = True
                if self._failed:
                    raise BackupMalformed("the vault could not be read to its end")
                return b""
            self._left = piece
        taken = self._left[:size] if size >= 0 else self._left
        self._left = self._left[len(taken) :]
        return taken
