"""The vault: named items and records, encrypted at rest, in a folder.

    with Vault.open(folder, KeyStoreUnlocker(keys, "vault")) as vault:
        vault.write("patients/17", record)

One process has a vault open at a time; its threads may share it. Order of writing: the item's new file in ``new/``,
then the transaction that names it (this is the moment of the change), then the counter in the key store, then the file
moves to ``items/`` and the old one is erased. A power cut leaves the old item or the new one; the next ``open``
finishes the rest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, overload

from tidegate.crypto.aead import NONCE_BYTES, AeadAlgorithm
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.appkeys import unwrap_application_key, wrap_application_key
from tidegate.vault.engine import Engine
from tidegate.vault.errors import FileModeUnknown, KeyUnknown, StreamNotReady, VaultClosed
from tidegate.vault.fileobject import EditingFile, ReadingFile, WritingFile
from tidegate.vault.files import BATCH_BYTES, ItemReader, ItemWriter, erase_buffer
from tidegate.vault.format import Expected, check_name
from tidegate.vault.journal import Change
from tidegate.vault.keyring import Keyring, create_vault, open_keyring
from tidegate.vault.listing import ITEMS, application_key, decode_item, file_name, item_key
from tidegate.vault.machine import MachineRules, harden_process
from tidegate.vault.padding import Padding
from tidegate.vault.record import Slot
from tidegate.vault.records import Records
from tidegate.vault.recovery import recover_items, require_only_listed, sync_items
from tidegate.vault.table import Table, TableSettings
from tidegate.vault.unlockers import Unlocker


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemInfo:
    """What the vault tells about an item without reading it; ``modified_s`` is by the device's clock."""

    name: str
    size_bytes: int
    generation: int
    modified_s: int = 0


class Vault:
    """An open vault; made by ``create`` or ``open``, closed by ``close`` or the end of a ``with``, which wipes keys."""

    def __init__(self, folder: Path, unlock: Unlocker, *, wait_s: float, machine: MachineRules) -> None:
        """Open what is there; callers use ``create`` and ``open``."""
        self.folder = folder
        self.warnings = harden_process(machine)
        self._mutex = threading.RLock()
        self._table: Table | None = None
        self._engine: Engine | None = None
        self._keyring: Keyring | None = open_keyring(folder, unlock, wait_s=wait_s)
        try:
            ring = self._keyring
            settings = TableSettings(folder=folder, vault_id=ring.vault_id, algorithm=ring.record.algorithm)
            self._table = Table(settings, ring.keys)
            ring.require_newest(self._table)
            engine = Engine(folder, ring, self._table, self._mutex)
            engine.settle_anchor()  # before anything is cleaned up: an older vault must not cost the newer one's files
            self.recovery = recover_items(folder, self._table, ring.keys)
            self._table.remove_others()
            self._engine = engine
            self._count_what_was_not()
        except BaseException:
            self._release()
            raise

    @classmethod
    def create(
        cls,
        folder: Path | str,
        unlock: Unlocker,
        *,
        label: str = "",
        padding: str = "none",
        algorithm: AeadAlgorithm | None = None,
    ) -> Self:
        """Make an empty vault in ``folder`` (created, mode 700) and return it open.

        ``padding`` hides sizes: ``none``, ``padme`` or a block size in bytes. The cipher is the faster one here unless
        ``algorithm`` names it. Raises ``vault.folder.exists`` if the folder holds anything else, and what the unlocker
        raises.
        """
        folder = Path(folder)
        create_vault(folder, unlock, label=label, padding=Padding(padding), algorithm=algorithm)
        return cls(folder, unlock, wait_s=2.0, machine=MachineRules())

    @classmethod
    def open(
        cls,
        folder: Path | str,
        unlock: Unlocker,
        *,
        wait_s: float = 2.0,
        machine: MachineRules | None = None,
    ) -> Self:
        """Open the vault in ``folder``; it is checked as a whole but for the items' own files, which are when read.

        ``wait_s``: how long another process may keep it open. ``machine``: what this machine has to grant secrets in
        RAM. Raises ``vault.unlock.refused``, ``vault.folder.busy``, ``vault.record.*``, ``vault.manifest.*``,
        ``vault.journal.*``, ``vault.anchor.mismatch``, ``vault.machine.*``, and what the unlocker raises.
        """
        return cls(Path(folder), unlock, wait_s=wait_s, machine=machine or MachineRules())

    # -- items --------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """Return the item's content, every byte authenticated; raise ``vault.item.unknown``, ``vault.file.*``, …

        Python keeps the content until it reuses the memory; ``borrow`` gives it in memory that is wiped.
        """
        with self.borrow(name) as content:
            return bytes(content)

    @contextlib.contextmanager
    def borrow(self, name: str) -> Iterator[memoryview]:
        """Give the item's content in memory that is wiped at the end of the ``with``; raise as ``read``."""
        with self.open_item(name) as reader:
            buffer = memoryview(bytearray(reader.header.length_bytes))
            try:
                position = 0
                for piece in reader.iter_content():
                    buffer[position : position + len(piece)] = piece
                    position += len(piece)
                yield buffer
            finally:
                erase_buffer(buffer)

    def read_range(self, name: str, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``offset``, decrypting only the chunks they lie in."""
        with self.open_item(name) as reader:
            return reader.read_range(offset, count)

    def open_item(self, name: str) -> ItemReader:
        """Return the item open for reading in any order; it is authenticated as far as it is read.

        Raises ``vault.item.unknown``, ``vault.item.busy`` while it is changed in place, ``vault.file.*`` and
        ``vault.header.*``; reading raises ``vault.chunk.*``.
        """
        return self.engine.open_reader(name)

    @overload
    def open_file(self, name: str, mode: Literal["r"] = "r") -> ReadingFile: ...

    @overload
    def open_file(self, name: str, mode: Literal["w"]) -> WritingFile: ...

    @overload
    def open_file(self, name: str, mode: Literal["r+", "a"]) -> EditingFile: ...

    def open_file(self, name: str, mode: str = "r") -> ReadingFile | WritingFile | EditingFile:
        """Return the item as a Python file object of bytes.

        ``r`` reads in any order; ``w`` takes a new content, which counts at ``close``; ``r+`` and ``a`` change it in
        place, and what was written counts at ``flush`` and ``close``. In a ``with`` that ends by an exception nothing
        that waits counts. Raises ``vault.file.mode``, ``vault.item.busy``, otherwise as ``open_item`` and ``write``.
        """
        engine = self.engine
        with self._mutex:
            if mode == "r":
                return ReadingFile(name, engine.open_reader(name))
            if mode == "w":
                writer, path = engine.start(name)
                return WritingFile(name, writer, lambda writer: _finish(engine, name, writer, path))
            if mode == "a" and name not in self:
                self.write(name, b"")
            if mode in ("a", "r+"):
                return EditingFile(name, mode, engine.open_editor(name), lambda: engine.stop_editing(name))
        raise FileModeUnknown(f"{mode!r} is no way to open an item", mode=mode)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> ItemInfo:
        """Make ``data`` the item's content; durable when this returns, and until then the old content stays.

        Raises ``vault.item.name``, ``vault.item.busy``, ``base.storage.*``; then the item is wholly old or wholly new,
        and reading says which.
        """
        with self._mutex:
            writer, path = self.engine.start(name)
            try:
                writer.expect(len(data))
                writer.write(data)
            except BaseException:
                writer.abandon()
                raise
            return _info(name, self.engine.finish(name, writer, path))

    def write_from(self, name: str, stream: BinaryIO) -> ItemInfo:
        """Make what ``stream`` yields the item's content, in constant memory; otherwise as ``write``.

        The vault is not held meanwhile: other threads use it.
        """
        engine = self.engine
        writer, path = engine.start(name)
        buffer = memoryview(bytearray(BATCH_BYTES))
        try:
            for piece in _pieces(stream, buffer):
                writer.write(piece)
        except BaseException:
            writer.abandon()
            raise
        finally:
            erase_buffer(buffer)
        return _info(name, engine.finish(name, writer, path))

    def delete(self, name: str) -> None:
        """Remove the item and destroy its key; raise ``vault.item.unknown``, ``base.storage.*``."""
        self.engine.delete(name)

    def list(self, prefix: str = "") -> tuple[ItemInfo, ...]:
        """Return every item whose name begins with ``prefix``, by name."""
        return tuple(self.iter_items(prefix))

    def iter_items(self, prefix: str = "") -> Iterator[ItemInfo]:
        """Yield the items one by one, for vaults with very many; changes meanwhile may be seen or not."""
        for key, value in self.table_scan(ITEMS + prefix.encode()):
            yield _info(key[1:].decode(), decode_item(value))

    def stat(self, name: str) -> ItemInfo:
        """Return what is known of the item; raise ``vault.item.unknown``."""
        return _info(name, self.engine.find(name))

    def __contains__(self, name: str) -> bool:
        return self.table_get(item_key(check_name(name))) is not None

    def verify(self, name: str) -> ItemInfo:
        """Return the item's information after every byte of its file was authenticated; raise as ``read``."""
        with self.open_item(name) as reader:
            for _ in reader.iter_content():
                pass
        return self.stat(name)

    def __iter__(self) -> Iterator[str]:
        """Yield the items' names in order."""
        return (item.name for item in self.iter_items())

    def verify_folder(self) -> None:
        """Return if the vault's folder holds what the vault wrote and nothing else; raise ``vault.file.unexpected``.

        With ``verify`` of every item this has seen every byte there is.
        """
        with self._mutex:
            listed = {file_name(decode_item(value)) for _, value in self.table_scan(ITEMS)}
            require_only_listed(self.folder, listed)

    # -- records and keys ---------------------------------------------------------------------------------------------

    def records(self, table: str) -> Records:
        """Return a table of small records with transactions; it is there as soon as something is in it."""
        return Records(self, table)

    def application_key(self, name: str, *, size_bytes: int = 32, create: bool = True) -> ProtectedSecret:
        """Return a random key of the application's own, made at the first use; the caller wipes it.

        For what has to be encrypted outside the vault's files: a database, a directory of the kernel's. Raises
        ``vault.key.unknown`` if it is not there and ``create`` is off.
        """
        with self._mutex:
            ring = self._require_open()
            stored = self._require_table().get(application_key(check_name(name)))
            if stored is not None:
                return unwrap_application_key(name, stored, ring.keys)
            if not create:
                raise KeyUnknown(f"there is no application key {name!r}", key=name)
            key = ProtectedSecret.random(size_bytes)
            self._keep_key(name, key)
            return key

    def put_application_key(self, name: str, key: ProtectedSecret) -> None:
        """Keep a key that comes from elsewhere, such as a backup, in place of the one of this name; wipes ``key``."""
        with self._mutex, key:
            self._keep_key(check_name(name), key)

    def destroy_application_key(self, name: str) -> None:
        """Remove an application key, and with it what it encrypts, from the storage; raise ``vault.key.unknown``."""
        with self._mutex:
            if self._require_table().get(application_key(check_name(name))) is None:
                raise KeyUnknown(f"there is no application key {name!r}", key=name)
            try:
                self.engine.commit_alone((Change(application_key(name), b"", deletes=True),))
            finally:
                self._require_table().merge()

    def table_get(self, key: bytes) -> bytes | None:
        """Return a value of the vault's table; for the rooms' own use, as the two that follow."""
        with self._mutex:
            return self._require_table().get(key)

    def table_scan(self, prefix: bytes, *, after: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield entries of the table in order, those behind the key ``after`` if it is given; the vault is held only
        from one entry to the next."""
        last = after
        entries: Iterator[tuple[bytes, bytes]] = iter(())
        number = -1
        while True:
            with self._mutex:
                table = self._require_table()
                if table.number != number:  # the first time, and when it was merged meanwhile
                    entries, number = table.scan(prefix, after=last), table.number
                entry = next(entries, None)
            if entry is None:
                return
            last = entry[0]
            yield entry

    def table_commit(self, changes: tuple[Change, ...]) -> None:
        """Make changes to the table count, together."""
        with self._mutex:
            self.engine.commit_alone(changes)

    # -- who opens it -------------------------------------------------------------------------------------------------

    def add_unlocker(self, unlock: Unlocker, *, label: str = "") -> Slot:
        """Add a way to open the vault and return it; raise ``vault.unlockers.full`` and what the unlocker raises."""
        with self._mutex:
            slot = self._require_open().add(unlock, self._require_table(), label=label)
            self.engine.commit_alone(())  # counted: the record from before is an older vault
            return slot

    def remove_unlocker(self, number: int) -> Slot:
        """Take away a way to open the vault and return it; a new epoch begins, ``rotation.rekey`` ends the old ones.

        Raises ``vault.unlockers.unknown``, ``vault.unlockers.last``.
        """
        with self._mutex:
            slot = self._require_open().remove(number, self._require_table())
            self.engine.commit_alone(())
            return slot

    # -- the whole ----------------------------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """Return what tells this vault from every forged one: 16 hexadecimal digits of its identity's SHA-256."""
        return hashlib.sha256(self._require_open().record.identity).hexdigest()[:16]

    @property
    def vault_id(self) -> str:
        """Return what names this vault among all others, in hexadecimal."""
        return self._require_open().vault_id.hex()

    @property
    def keyring(self) -> Keyring:
        """Return the vault's unlockers and keys."""
        return self._require_open()

    @property
    def table(self) -> Table:
        """Return the vault's table, for who re-keys or checks it."""
        return self._require_table()

    @property
    def engine(self) -> Engine:
        """Return what makes changes of items count, for who re-keys."""
        if self._engine is None:
            raise VaultClosed("the vault is closed")
        return self._engine

    @property
    def mutex(self) -> threading.RLock:
        """Return what is held while the vault changes."""
        return self._mutex

    def close(self) -> None:
        """Wipe the keys and let the next one open the vault; harmless when repeated.

        What deleted records held is erased here. Raises ``base.storage.*`` if that or the closing mark fails: the
        vault is closed all the same, and the next ``open`` recovers.
        """
        with self._mutex:
            try:
                if self._table is not None and self._keyring is not None and not self._table.is_broken:
                    if self._table.has_deleted_records:
                        self._table.merge()
                    sync_items(self.folder)
                    self._table.settle()
            finally:
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _require_open(self) -> Keyring:
        if self._keyring is None:
            raise VaultClosed("the vault is closed")
        return self._keyring

    def _require_table(self) -> Table:
        if self._table is None:
            raise VaultClosed("the vault is closed")
        return self._table

    def _keep_key(self, name: str, key: ProtectedSecret) -> None:
        epoch, keys = self.engine.current_keys()
        wrapped = wrap_application_key(name, key, keys, epoch=epoch, nonce=os.urandom(NONCE_BYTES))
        self.engine.commit_alone((Change(application_key(name), wrapped),))

    def _count_what_was_not(self) -> None:
        """Have the counter count what was changed while the vault was open without it, and a newer record."""
        ring, table = self._require_open(), self._require_table()
        newer = ring.record.version > table.record_version
        if newer:
            table.note_record(ring.record.version)
        if ring.anchor is not None and (newer or table.uncounted):
            self.engine.commit_alone(())
            table.note_counted()

    def _release(self) -> None:
        if self._engine is not None:
            self._engine.close_readers()
        if self._table is not None:
            self._table.close()
        if self._keyring is not None:
            self._keyring.close()
        self._table = self._keyring = self._engine = None


def _finish(engine: Engine, name: str, writer: ItemWriter, path: Path) -> None:
    engine.finish(name, writer, path)


def _pieces(stream: BinaryIO, buffer: memoryview) -> Iterator[memoryview | bytes]:
    """Yield what the stream has, where it can be by way of ``buffer``, which is wiped afterwards."""
    readinto = getattr(stream, "readinto", None)
    try:
        count = readinto(buffer) if readinto is not None else None
    except (NotImplementedError, io.UnsupportedOperation):  # what a raw stream that overrides ``read`` alone raises
        readinto = None
    if readinto is None:
        while piece := stream.read(BATCH_BYTES):
            yield piece
        return
    while count or count is None:
        if count is None:
            raise StreamNotReady("the source has nothing yet, and does not wait for it")
        yield buffer[:count]
        count = readinto(buffer)


def _info(name: str, item: Expected) -> ItemInfo:
    return ItemInfo(name=name, size_bytes=item.length_bytes, generation=item.generation, modified_s=item.modified_s)
