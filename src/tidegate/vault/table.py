"""The vault's table: an encrypted, authenticated map from bytes to bytes with transactions.

Touches: ``manifest`` and ``table/N.snapshot``, ``table/N.journal``. A transaction is one entry appended to the journal
and one fdatasync; from time to time journal and snapshot are merged into a new snapshot. Values stay on the storage
and are decrypted when asked for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from tidegate.base.durable import (
    read_file_bounded,
    sync_folder,
    translate_os_errors,
    write_file_atomic,
)
from tidegate.base.errors import StorageFull
from tidegate.crypto.aead import KEY_BYTES, NONCE_BYTES, AeadAlgorithm, hkdf_sha256_into
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.errors import (
    FileMissing,
    FileUnexpected,
    JournalExtended,
    JournalMissing,
    JournalTruncated,
    ManifestAltered,
    ManifestMissing,
    VaultFailed,
)
from tidegate.vault.files import ItemReader, ItemWriter, erase_file, open_regular, pwrite_all
from tidegate.vault.format import ID_BYTES, Expected, Header, VaultKeys, hash_path
from tidegate.vault.journal import (
    NO_DIGEST,
    NO_TAG,
    Change,
    Tail,
    Transaction,
    encode_entry,
    iter_entries,
    open_entry,
    value_places,
)
from tidegate.vault.listing import KEYS, RECORDS
from tidegate.vault.manifest import (
    MAX_MANIFEST_BYTES,
    SALT_BYTES,
    Manifest,
    encode_manifest,
    manifest_epoch,
    table_path_name,
    verify_manifest,
)
from tidegate.vault.snapshot import SnapshotReader, encode_snapshot

MERGE_BYTES = 4 << 20  # a journal this long, and half as long as the snapshot, is merged into it
MAX_MERGE_BYTES = 32 << 20  # this long, it is merged whatever the snapshot's length
MERGE_KEYS = 8192  # so many changed keys are kept in memory: about 3 MiB
CLOSE_KEYS = 1024  # closing merges from so many on: reading them again would make the next opening slow
MAX_JOURNAL_BYTES = 64 << 20  # longer than any that is written: it would have been merged


class _Place(NamedTuple):
    """Where the value of a changed key is: an entry of the journal, and the part of it."""

    offset: int
    size: int
    number: int
    after: bytes
    position: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSettings:
    """What a table is made with."""

    folder: Path
    vault_id: bytes
    algorithm: AeadAlgorithm


class Table:
    """An open table. One thread uses it at a time; the vault sees to that."""

    def __init__(self, settings: TableSettings, keys: dict[int, VaultKeys]) -> None:
        """Open what is there and check it; raise ``vault.manifest.*``, ``vault.journal.*``, ``vault.file.*``.

        ``recovered`` is then the last transaction if the vault was not closed properly, ``torn_bytes`` what a power
        cut left of one that did not come to count.
        """
        self._settings = settings
        self._folder = settings.folder
        self._keys = keys
        self._manifest: Manifest
        self._snapshot: SnapshotReader
        self._reader: ItemReader | None = None
        self._changed: dict[bytes, _Place | None] = {}
        self._tail = Tail()
        self._journal = -1
        self._journal_key: ProtectedSecret | None = None
        self.recovered: Transaction | None = None
        self._broken = False
        self.torn_bytes = 0
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, settings: TableSettings, keys: VaultKeys, *, epoch: int, record_version: int) -> None:
        """Write an empty table, generation 1."""
        with translate_os_errors(settings.folder):
            (settings.folder / "table").mkdir(mode=0o700, exist_ok=True)
        files = _write_table(settings, keys, epoch, 1, iter(()))
        manifest = Manifest(
            epoch=epoch,
            generation=1,
            anchor=0,
            clean=True,
            uncounted=False,
            number=1,
            snapshot=files,
            salt=os.urandom(SALT_BYTES),
            journal_bytes=0,
            journal_tag=NO_TAG,
            record_version=record_version,
        )
        _write_manifest(settings, manifest, keys)

    # -- what it says -------------------------------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Return how many changes the vault has seen."""
        return self._manifest.generation

    @property
    def anchor(self) -> int:
        """Return what the counter of the key store has to be."""
        return self._manifest.anchor

    @property
    def record_version(self) -> int:
        """Return the oldest record that counts."""
        return self._manifest.record_version

    @property
    def uncounted(self) -> bool:
        """Return whether there are changes that no counter counted."""
        return self._manifest.uncounted

    @property
    def has_deleted_records(self) -> bool:
        """Return whether the journal took records or keys away that the snapshot or itself still holds."""
        return any(place is None and key[:1] in (RECORDS, KEYS) for key, place in self._changed.items())

    def note_counted(self) -> None:
        """Note that a counter has counted now whatever was not."""
        self.settle()
        self._write_manifest(replace(self._manifest, uncounted=False))

    def _vouch(self, manifest: Manifest) -> Manifest:
        """Have the manifest vouch for the journal as far as it is written: it says what its last entry said."""
        return replace(manifest, journal_bytes=self._tail.size, journal_tag=self._tail.tag)

    @property
    def is_broken(self) -> bool:
        """Return whether the storage failed so that nothing can be committed any more."""
        return self._broken

    @property
    def number(self) -> int:
        """Return which table it is: one more with every merge."""
        return self._manifest.number

    @property
    def epoch(self) -> int:
        """Return the epoch whose keys the table is under."""
        return self._manifest.epoch

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None."""
        if key in self._changed:
            place = self._changed[key]
            return None if place is None else self._read_place(place)
        return self._snapshot.get(key)

    def changed(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries that changed since the last merge."""
        for key, place in list(self._changed.items()):
            if key.startswith(prefix) and place is not None:
                yield key, self._read_place(place)

    def scan(self, prefix: bytes, *, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield the entries whose keys begin with ``prefix``, in order, those behind ``after`` if it is given.

        Changes meanwhile may be seen or not; after a merge (another ``number``) the scan has to begin anew.
        """
        start = prefix if after is None else after + b"\0"
        changed = sorted(key for key in self._changed if key.startswith(prefix) and key >= start)
        base = self._snapshot.scan(start)
        entry = next(base, None)
        for key in [*changed, None]:
            while entry is not None and entry[0].startswith(prefix) and (key is None or entry[0] < key):
                yield entry
                entry = next(base, None)
            if key is None:
                return
            if entry is not None and entry[0] == key:
                entry = next(base, None)
            place = self._changed.get(key)
            if place is not None:
                yield key, self._read_place(place)

    # -- what changes it ----------------------------------------------------------------------------------------------

    def commit(self, changes: tuple[Change, ...], *, anchored: bool, redo: bytes = NO_DIGEST) -> None:
        """Make the changes count, all of them, durable; on a failure none does. ``anchored``: a counter follows.

        Raises ``base.storage.*`` (nothing changed), ``vault.transaction.size``, ``vault.folder.failed`` (what the
        storage holds is not known: the table cannot go on).
        """
        self._require_good()
        uncounted = self._manifest.uncounted or not anchored
        if self._manifest.clean or uncounted != self._manifest.uncounted:
            self._write_manifest(self._vouch(replace(self._manifest, clean=False, uncounted=uncounted)))
        transaction = Transaction(
            generation=self._manifest.generation + 1,
            anchor=self._manifest.anchor + anchored,
            redo=redo,
            changes=changes,
        )
        entry = encode_entry(transaction, after=self._tail, nonce=os.urandom(NONCE_BYTES), key=self._key())
        self._append(entry)
        try:  # it counts: an interruption here must not let anybody believe otherwise
            self._remember(transaction.changes, self._tail, len(entry))
            self._tail = Tail(number=self._tail.number + 1, tag=entry[-16:], size=self._tail.size + len(entry))
            self._manifest = replace(self._manifest, generation=transaction.generation, anchor=transaction.anchor)
        except BaseException:
            self._broken = True
            raise

    def merge_if_due(self) -> None:
        """Merge the journal into a new snapshot if it has grown long enough.

        Where there is no room for that it waits for the next time, as long as the journal stays within its limit: what
        was committed counts, and who committed it must not be told otherwise. Raises ``base.storage.*``.
        """
        half = self._manifest.snapshot.length_bytes // 2
        if self._tail.size > min(max(MERGE_BYTES, half), MAX_MERGE_BYTES) or len(self._changed) > max(
            MERGE_KEYS, self._snapshot.count // 8
        ):
            try:
                self.merge()
            except StorageFull:
                if self._tail.size > MAX_JOURNAL_BYTES // 2:
                    raise

    def merge(self, *, epoch: int | None = None) -> None:
        """Write everything into a new snapshot under new keys and begin a new journal; the old files are erased."""
        self._require_good()
        epoch = epoch or self._manifest.epoch
        number = self._manifest.number + 1
        snapshot = _write_table(self._settings, self._keys[epoch], epoch, number, self.scan(b""))
        old = self._manifest
        manifest = replace(
            old,
            epoch=epoch,
            number=number,
            snapshot=snapshot,
            salt=os.urandom(SALT_BYTES),
            journal_bytes=0,
            journal_tag=NO_TAG,
            clean=True,
        )
        self._write_manifest(manifest)
        self._drop()
        for path in _table_paths(self._folder, old.number):
            erase_file(path)
        self._load()
        self.recovered = None

    def note_record(self, version: int, *, anchor: int | None = None) -> None:
        """Refuse records older than ``version`` from now on; with ``anchor`` another counter counts from there."""
        self.settle()  # what the manifest says of the anchor is that of the last transaction
        anchor = self._manifest.anchor if anchor is None else anchor
        self._write_manifest(replace(self._manifest, record_version=version, anchor=anchor))

    def settle(self) -> None:
        """Note durably that the journal ends where it ends: whatever is there afterwards is checked to the byte."""
        if len(self._changed) > max(CLOSE_KEYS, self._snapshot.count // 32):
            self.merge()
        elif not self._manifest.clean:
            self._write_manifest(self._vouch(replace(self._manifest, clean=True)))

    def close(self) -> None:
        """Wipe keys and give descriptors back; harmless when repeated. What counts is what was committed."""
        self._drop()
        self._changed = {}

    # -- inside -------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        path = self._folder / "manifest"
        if not path.is_file():  # a pipe in its place would block the reader
            raise ManifestMissing(f"{self._folder} has no manifest", path=str(path))
        raw = read_file_bounded(path, limit_bytes=MAX_MANIFEST_BYTES)
        vault_id = self._settings.vault_id
        keys = self._keys.get(manifest_epoch(raw, vault_id=vault_id))
        if keys is None:
            raise ManifestAltered("the manifest is of an epoch that the record does not have")
        self._manifest = manifest = verify_manifest(raw, vault_id=vault_id, keys=keys)
        snapshot_path, journal_path = _table_paths(self._folder, manifest.number)
        self._reader = ItemReader(
            snapshot_path,
            expected=manifest.snapshot,
            path_hash=hash_path(vault_id, table_path_name()),
            keys=keys,
        )
        self._snapshot = SnapshotReader(self._reader, manifest.snapshot.length_bytes)
        self._journal_key = ProtectedSecret.fill(KEY_BYTES, lambda target: _derive_journal_key(keys, manifest, target))
        self._changed = {}
        self._tail = Tail()
        self._open_journal(journal_path)
        self._replay()

    def _open_journal(self, path: Path) -> None:
        """A new table's journal appears with its first transaction: until then there is none."""
        if not path.exists() and self._manifest.journal_bytes == 0:
            self._journal = -1
            return
        try:
            self._journal = open_regular(path, os.O_RDWR)
        except FileMissing as error:
            raise JournalMissing("the vault's journal is not there") from error

    def _replay(self) -> None:
        raw = self._read_journal()
        manifest = self._manifest
        if len(raw) < manifest.journal_bytes:
            raise JournalTruncated(f"the journal has {len(raw)} of {manifest.journal_bytes} bytes", size=len(raw))
        if manifest.clean and len(raw) > manifest.journal_bytes:
            raise JournalExtended(f"the journal has {len(raw)} bytes, {manifest.journal_bytes} count", size=len(raw))
        generation, anchor = manifest.generation, manifest.anchor
        for entry in iter_entries(memoryview(raw), key=self._key(), upto=manifest.journal_bytes):
            self._remember(entry.transaction.changes, self._tail, entry.size)
            self._tail = Tail(number=entry.number + 1, tag=entry.tag, size=entry.offset + entry.size)
            self.recovered = entry.transaction
            if entry.offset >= manifest.journal_bytes:  # up to there the manifest knows: the counter may be another
                generation, anchor = entry.transaction.generation, entry.transaction.anchor
        if manifest.clean:
            self.recovered = None
            if self._tail.tag != manifest.journal_tag:
                raise ManifestAltered("the journal is not the one that the manifest names")
            return
        self.torn_bytes = len(raw) - self._tail.size
        if self.torn_bytes:
            with translate_os_errors(self._folder):
                os.ftruncate(self._journal, self._tail.size)
                os.fsync(self._journal)
        self._manifest = replace(manifest, generation=generation, anchor=anchor)

    def _read_journal(self) -> bytes:
        if self._journal < 0:
            return b""
        with translate_os_errors(self._folder):
            size = os.fstat(self._journal).st_size
            if size > MAX_JOURNAL_BYTES:
                raise JournalExtended(f"the journal has {size} bytes, more than any that is written", size=size)
            return os.pread(self._journal, size, 0)

    def _append(self, entry: bytes) -> None:
        try:
            with translate_os_errors(self._folder):
                if self._journal < 0:
                    path = _table_paths(self._folder, self._manifest.number)[1]
                    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                    self._journal = os.open(path, flags, 0o600)
                    sync_folder(path.parent)
                pwrite_all(self._journal, memoryview(entry), self._tail.size)
                os.fdatasync(self._journal)
        except BaseException:
            self._take_back()
            raise

    def _take_back(self) -> None:
        """Cut off a transaction that did not come to count; if that fails too, nothing may be appended any more."""
        try:
            if self._journal >= 0:
                os.ftruncate(self._journal, self._tail.size)
                os.fsync(self._journal)
        except OSError:
            os.close(self._journal)
            self._journal = -1
            self._broken = True

    def fail(self) -> None:
        """Note that what a transaction brings with it could not be finished: the next opening has to do it."""
        self._broken = True

    def _require_good(self) -> None:
        if self._broken:
            raise VaultFailed("the storage failed in the middle of a change; open the vault again")

    def _remember(self, changes: tuple[Change, ...], after: Tail, size: int) -> None:
        for change, position in zip(changes, value_places(changes), strict=True):
            self._changed[change.key] = (
                None
                if change.deletes
                else _Place(after.size, size, after.number, after.tag, position, len(change.value))
            )

    def _read_place(self, place: _Place) -> bytes:
        with translate_os_errors(self._folder):
            raw = os.pread(self._journal, place.size, place.offset)
        plain = open_entry(raw, after=Tail(number=place.number, tag=place.after), key=self._key())
        return plain[place.position : place.position + place.length]

    def _key(self) -> ProtectedSecret:
        if self._journal_key is None:
            raise VaultFailed("the table is closed")
        return self._journal_key

    def _write_manifest(self, manifest: Manifest) -> None:
        _write_manifest(self._settings, manifest, self._keys[manifest.epoch])
        self._manifest = manifest

    def _drop(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._journal >= 0:
            os.close(self._journal)
            self._journal = -1
        if self._journal_key is not None:
            self._journal_key.wipe()
            self._journal_key = None

    def remove_others(self) -> None:
        """Erase tables that a power cut left: a merge that did not come to count, or the one before it. Only when it is
        known that this table is the newest."""
        keep = set(_table_paths(self._folder, self._manifest.number))
        with translate_os_errors(self._folder):
            for path in list((self._folder / "table").iterdir()):
                if path.is_dir() and not path.is_symlink():
                    raise FileUnexpected(f"the vault did not write table/{path.name}", path=f"table/{path.name}")
                if path not in keep:
                    erase_file(path)
            for path in list(self._folder.glob(".*.new")):  # an unfinished copy of record or manifest
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()


def _table_paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / "table" / f"{number}.snapshot", folder / "table" / f"{number}.journal"


def _write_table(
    settings: TableSettings, keys: VaultKeys, epoch: int, number: int, entries: Iterator[tuple[bytes, bytes]]
) -> Expected:
    """Write a snapshot, durable, and return what the manifest has to say of it; a leftover in its place goes."""
    path, journal = _table_paths(settings.folder, number)
    erase_file(path)
    erase_file(journal)
    header = Header(
        file_id=os.urandom(ID_BYTES),
        generation=number,
        sequence=0,
        length_bytes=0,
        stored_bytes=0,
        path_hash=hash_path(settings.vault_id, table_path_name()),
        epoch=epoch,
        algorithm=settings.algorithm,
    )
    writer = ItemWriter(path, header)
    try:
        for piece in encode_snapshot(entries):
            writer.write(piece)
        return writer.finish(keys, epoch=epoch)
    except BaseException:
        writer.abandon()
        raise


def _write_manifest(settings: TableSettings, manifest: Manifest, keys: VaultKeys) -> None:
    raw = encode_manifest(manifest, vault_id=settings.vault_id, nonce=os.urandom(NONCE_BYTES), keys=keys)
    write_file_atomic(settings.folder / "manifest", raw, mode=0o600)


def _derive_journal_key(keys: VaultKeys, manifest: Manifest, target: memoryview) -> None:
    info = b"tidegate.vault.v2 journal"
    hkdf_sha256_into(keys.manifest.view(), salt=manifest.salt, info=info, target=target)
