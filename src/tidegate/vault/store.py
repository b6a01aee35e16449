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
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, overload

from tidegate.base.durable import sync_folder, translate_os_errors
from tidegate.crypto.aead import NONCE_BYTES, AeadAlgorithm
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.appkeys import unwrap_application_key, wrap_application_key
from tidegate.vault.editor import Editor
from tidegate.vault.errors import (
    FileModeUnknown,
    HeaderAltered,
    ItemBusy,
    ItemUnknown,
    KeyUnknown,
    VaultClosed,
)
from tidegate.vault.fileobject import EditingFile, ReadingFile, WritingFile
from tidegate.vault.files import BATCH_BYTES, ItemReader, ItemWriter, erase_buffer, erase_file
from tidegate.vault.format import ID_BYTES, Expected, Header, check_name, hash_path, slot_tag
from tidegate.vault.journal import NO_DIGEST, Change
from tidegate.vault.keyring import Keyring, create_vault, open_keyring
from tidegate.vault.listing import ITEMS, application_key, decode_item, encode_item, file_name, item_key
from tidegate.vault.machine import MachineRules, harden_process
from tidegate.vault.manifest import verify_anchor
from tidegate.vault.padding import Padding
from tidegate.vault.records import Records
from tidegate.vault.recovery import recover_items, require_only_listed, sync_items
from tidegate.vault.redo import FileChange, apply_redo, discard_redo, release_room, write_redo
from tidegate.vault.table import Table, TableSettings
from tidegate.vault.unlockers import Unlocker

_COPY_BYTES = BATCH_BYTES


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
        self._reading: Counter[str] = Counter()
        self._editing: dict[bytes, str] = {}  # file id -> name of what is being changed in place
        self._erase_due = False
        self._table: Table | None = None
        self._keyring: Keyring | None = open_keyring(folder, unlock, wait_s=wait_s)
        try:
            ring = self._keyring
            settings = TableSettings(folder=folder, vault_id=ring.vault_id, algorithm=ring.record.algorithm)
            self._table = Table(settings, ring.keys)
            ring.check_version(self._table)
            self._settle_anchor()
            self.recovery = recover_items(folder, self._table, ring.keys)
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
        with self._mutex:
            expected = self._find(name)
            if name in self._editing.values():
                raise ItemBusy("the item is being changed in place", item=name)
            return self._open_reader(name, expected)

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
        with self._mutex:
            if mode == "r":
                reader = self.open_item(name)
                self._reading[name] += 1
                return ReadingFile(name, reader, lambda: self._stop_reading(name))
            if mode == "w":
                writer, path = self._start(name)
                return WritingFile(name, writer, lambda writer: self._finish_quietly(name, writer, path))
            if mode == "a" and self._require_table().get(item_key(check_name(name))) is None:
                self.write(name, b"")
            if mode in ("a", "r+"):
                editor = self._open_editor(name)
                return EditingFile(name, mode, editor, lambda: self._stop_editing(name))
        raise FileModeUnknown(f"{mode!r} is no way to open an item", mode=mode)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> ItemInfo:
        """Make ``data`` the item's content; durable when this returns, and until then the old content stays.

        Raises ``vault.item.name``, ``vault.item.busy``, ``base.storage.*``; then the item is wholly old or wholly new,
        and reading says which.
        """
        with self._mutex:
            writer, path = self._start(name)
            try:
                writer.expect(len(data))
                writer.write(data)
            except BaseException:
                writer.abandon()
                raise
            return self._finish(name, writer, path)

    def write_from(self, name: str, stream: BinaryIO) -> ItemInfo:
        """Make what ``stream`` yields the item's content, in constant memory; otherwise as ``write``.

        The vault is not held meanwhile: other threads use it.
        """
        writer, path = self._start(name)
        buffer = memoryview(bytearray(_COPY_BYTES))
        try:
            readinto = getattr(stream, "readinto", None)
            if readinto is None:
                while piece := stream.read(_COPY_BYTES):
                    writer.write(piece)
            else:
                while count := readinto(buffer):
                    writer.write(buffer[:count])
        except BaseException:
            writer.abandon()
            raise
        finally:
            erase_buffer(buffer)
        return self._finish(name, writer, path)

    def delete(self, name: str) -> None:
        """Remove the item and destroy its key; raise ``vault.item.unknown``, ``base.storage.*``."""
        with self._mutex:
            old = self._find(name)
            self._require_idle(name)
            self._commit((Change(item_key(name), encode_item(old), deletes=True),))
            self._erase_item(old)

    def list(self, prefix: str = "") -> tuple[ItemInfo, ...]:
        """Return every item whose name begins with ``prefix``, by name."""
        return tuple(self.iter_items(prefix))

    def iter_items(self, prefix: str = "") -> Iterator[ItemInfo]:
        """Yield the items one by one, for vaults with very many; changes meanwhile may be seen or not."""
        for key, value in self.table_scan(ITEMS + prefix.encode()):
            yield _info(key[1:].decode(), decode_item(value))

    def stat(self, name: str) -> ItemInfo:
        """Return what is known of the item; raise ``vault.item.unknown``."""
        return _info(name, self._find(name))

    def __contains__(self, name: str) -> bool:
        return self._require_table().get(item_key(check_name(name))) is not None

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
            epoch, nonce = ring.record.epoch, os.urandom(NONCE_BYTES)
            wrapped = wrap_application_key(name, key, ring.keys[epoch], epoch=epoch, nonce=nonce)
            self._commit((Change(application_key(name), wrapped),))
            return key

    def put_application_key(self, name: str, key: ProtectedSecret) -> None:
        """Keep a key that comes from elsewhere, such as a backup, in place of the one of this name; wipes ``key``."""
        with self._mutex, key:
            ring = self._require_open()
            epoch, nonce = ring.record.epoch, os.urandom(NONCE_BYTES)
            wrapped = wrap_application_key(check_name(name), key, ring.keys[epoch], epoch=epoch, nonce=nonce)
            self._commit((Change(application_key(name), wrapped),))

    def destroy_application_key(self, name: str) -> None:
        """Remove an application key, and with it what it encrypts, from the storage; raise ``vault.key.unknown``."""
        with self._mutex:
            if self._require_table().get(application_key(check_name(name))) is None:
                raise KeyUnknown(f"there is no application key {name!r}", key=name)
            self._commit((Change(application_key(name), b"", deletes=True),))
            self._require_table().merge()

    def table_get(self, key: bytes) -> bytes | None:
        """Return a value of the vault's table; for the rooms' own use, as the two that follow."""
        with self._mutex:
            return self._require_table().get(key)

    def table_scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yield entries of the table in order; the vault is held only from one entry to the next."""
        last: bytes | None = None
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
            self._commit(changes)
            self._erase_due = self._erase_due or any(change.deletes for change in changes)
            self._require_table().merge_if_due()

    # -- the whole ----------------------------------------------------------------------------------------------------

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
                    if self._erase_due:
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

    # -- changing items: who makes changes in place count -------------------------------------------------------------

    def commit_change(self, header: Header, change: FileChange) -> None:
        """Make a change in place count, durable; called by ``Editor``."""
        with self._mutex:
            name = self._editing[header.file_id]
            expected = _expect(header, slot_tag(change.slot))
            self.change_files([change], (Change(item_key(name), encode_item(expected)),))

    def change_files(self, files: Sequence[FileChange], changes: tuple[Change, ...]) -> None:
        """Make changes of item files count together with those of the table, durable: all or none."""
        with self._mutex:
            ring = self._require_open()
            epoch = ring.record.epoch
            digest = write_redo(self.folder, files, keys=ring.keys[epoch], epoch=epoch)
            try:
                self._commit(changes, redo=digest)
            except BaseException:
                if not self._require_table().is_broken:
                    discard_redo(self.folder)
                    release_room(self.folder, files)
                raise
            apply_redo(self.folder, files)
            self._require_table().merge_if_due()

    def rewrite(self, editor: Editor) -> ItemReader:
        """Write an item anew with the content that ``editor`` has, and return it open; called by ``Editor``."""
        with self._mutex:
            name = self._editing[editor.header.file_id]
            writer, path = self._start(name, editing=True)
            buffer = memoryview(bytearray(_COPY_BYTES))
            try:
                for offset in range(0, editor.length_bytes, _COPY_BYTES):
                    writer.write(buffer[: editor.read_into(offset, buffer)])
            except BaseException:
                writer.abandon()
                raise
            finally:
                erase_buffer(buffer)
            self._finish(name, writer, path, editing=True)
            return self._open_reader(name, self._find(name))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _require_open(self) -> Keyring:
        if self._keyring is None:
            raise VaultClosed("the vault is closed")
        return self._keyring

    def _require_table(self) -> Table:
        if self._table is None:
            raise VaultClosed("the vault is closed")
        return self._table

    def _require_idle(self, name: str) -> None:
        if name in self._editing.values():
            raise ItemBusy("the item is being changed in place", item=name)

    def _find(self, name: str) -> Expected:
        with self._mutex:
            value = self._require_table().get(item_key(check_name(name)))
        if value is None:
            raise ItemUnknown("there is no such item in the vault", item=name)
        return decode_item(value)

    def _item_path(self, item: Expected) -> Path:
        return self.folder / "items" / file_name(item)

    def _open_reader(self, name: str, expected: Expected) -> ItemReader:
        ring = self._require_open()
        keys = ring.keys.get(expected.epoch)
        if keys is None:
            raise HeaderAltered("the item is of an epoch that the vault does not have", epoch=expected.epoch)
        path_hash = hash_path(ring.vault_id, name)
        return ItemReader(self._item_path(expected), expected=expected, path_hash=path_hash, keys=keys)

    def _stop_reading(self, name: str) -> None:
        with self._mutex:
            self._reading -= Counter([name])

    def _open_editor(self, name: str) -> Editor:
        expected = self._find(name)
        self._require_idle(name)
        if self._reading[name]:
            raise ItemBusy("the item is open for reading; changing it in place would break that", item=name)
        ring = self._require_open()
        epoch = ring.record.epoch
        reader = self._open_reader(name, expected)
        self._editing[expected.file_id] = name
        return Editor(reader, keys=ring.keys[epoch], epoch=epoch, padding=ring.record.padding, committer=self)

    def _stop_editing(self, name: str) -> None:
        with self._mutex:
            self._editing = {file_id: other for file_id, other in self._editing.items() if other != name}

    def _start(self, name: str, *, editing: bool = False) -> tuple[ItemWriter, Path]:
        """Return a writer of the item's next generation, and where it writes."""
        with self._mutex:
            ring = self._require_open()
            value = self._require_table().get(item_key(check_name(name)))
            if not editing:
                self._require_idle(name)
            old = None if value is None else decode_item(value)
            header = Header(
                file_id=old.file_id if old else os.urandom(ID_BYTES),
                generation=old.generation + 1 if old else 1,
                sequence=0,
                length_bytes=0,
                stored_bytes=0,
                path_hash=hash_path(ring.vault_id, name),
                epoch=ring.record.epoch,
                algorithm=ring.record.algorithm,
            )
            path = self.folder / "new" / file_name(header)
            if path.exists():  # what power cuts left was removed when the vault was opened
                raise ItemBusy("the item is being written elsewhere in this program", item=name)
            return ItemWriter(path, header, keys=ring.keys[header.epoch], padding=ring.record.padding), path

    def _finish_quietly(self, name: str, writer: ItemWriter, path: Path) -> None:
        self._finish(name, writer, path)

    def _finish(self, name: str, writer: ItemWriter, path: Path, *, editing: bool = False) -> ItemInfo:
        """Make what was written count, move it to its place, erase what it replaces."""
        with self._mutex:
            try:
                if not editing:
                    self._require_idle(name)
                new = replace(writer.finish(), modified_s=int(time.time()))
                value = self._require_table().get(item_key(name))
                old = None if value is None else decode_item(value)
                self._commit((Change(item_key(name), encode_item(new)),))
            except BaseException:
                writer.abandon()
                if not self._require_table().is_broken:
                    erase_file(path)
                raise
            with translate_os_errors(path):
                path.rename(self.folder / "items" / path.name)
            if old is None:  # a merge, or the next file in new/, must not outrun the move
                self._sync_items()
            else:
                self._erase_item(old)
            self._require_table().merge_if_due()
            return _info(name, new)

    def _erase_item(self, item: Expected) -> None:
        erase_file(self._item_path(item))
        self._sync_items()

    def _sync_items(self) -> None:
        with translate_os_errors(self.folder):
            sync_folder(self.folder / "items")

    def _commit(self, changes: tuple[Change, ...], *, redo: bytes = NO_DIGEST) -> None:
        """Make changes count; on a failure of the counter they do, and the next change moves it first."""
        self._settle_anchor()
        ring, table = self._require_open(), self._require_table()
        table.commit(changes, anchored=ring.anchor is not None, redo=redo)
        self._settle_anchor()

    def _settle_anchor(self) -> None:
        """Compare with the counter and finish the step that a power cut may have left open."""
        ring, table = self._require_open(), self._require_table()
        if ring.anchor is None:
            return
        if ring.counted is None:
            ring.counted = ring.anchor.read()
        verify_anchor(table.anchor, ring.counted)
        if ring.counted < table.anchor:
            ring.counted = ring.anchor.advance()

    def _release(self) -> None:
        if self._table is not None:
            self._table.close()
        if self._keyring is not None:
            self._keyring.close()
        self._table = self._keyring = None


def _info(name: str, item: Expected) -> ItemInfo:
    return ItemInfo(name=name, size_bytes=item.length_bytes, generation=item.generation, modified_s=item.modified_s)


def _expect(header: Header, tag: bytes) -> Expected:
    return Expected(
        file_id=header.file_id,
        generation=header.generation,
        sequence=header.sequence,
        tag=tag,
        length_bytes=header.length_bytes,
        stored_bytes=header.stored_bytes,
        epoch=header.epoch,
        modified_s=int(time.time()),
    )
