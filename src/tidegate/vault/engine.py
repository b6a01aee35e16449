"""Item files and the table together: what counts, when, and what has to follow. The inside of ``Vault``.

Touches: the vault's folder. Every method is called with ``mutex`` held or takes it. A transaction of the table is the
moment of a change; what follows it (moving a file, erasing the old one, writing in place) either succeeds, or the vault
goes on no more and the next opening finishes it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tidegate.base.durable import sync_folder, translate_os_errors
from tidegate.vault.editor import Editor
from tidegate.vault.errors import HeaderAltered, ItemBusy, ItemUnknown, VaultClosed
from tidegate.vault.files import BATCH_BYTES, ItemReader, ItemWriter, erase_buffer, erase_file
from tidegate.vault.format import ID_BYTES, Expected, Header, VaultKeys, check_name, hash_path, slot_tag
from tidegate.vault.journal import NO_DIGEST, Change
from tidegate.vault.keyring import Keyring
from tidegate.vault.listing import decode_item, encode_item, file_name, item_key
from tidegate.vault.manifest import verify_anchor
from tidegate.vault.redo import FileChange, apply_redo, discard_redo, release_room, write_redo
from tidegate.vault.table import Table


class Engine:
    """The items of an open vault."""

    def __init__(self, folder: Path, ring: Keyring, table: Table, mutex: threading.RLock) -> None:
        self.folder = folder
        self.ring = ring
        self.table = table
        self.mutex = mutex
        self._reading: Counter[str] = Counter()
        self._editing: dict[bytes, str] = {}  # file id -> name of what is being changed in place
        self._writing: set[str] = set()
        self._readers: weakref.WeakSet[ItemReader] = weakref.WeakSet()
        self._late: BaseException | None = None

    # -- reading ------------------------------------------------------------------------------------------------------

    def require_open(self) -> None:
        """Raise ``vault.folder.closed`` once the vault's keys are wiped: file objects may outlive it."""
        if not self.ring.keys:
            raise VaultClosed("the vault is closed")

    def find(self, name: str) -> Expected:
        """Return what the table says of an item; raise ``vault.item.unknown``."""
        with self.mutex:
            self.require_open()
            value = self.table.get(item_key(check_name(name)))
        if value is None:
            raise ItemUnknown("there is no such item in the vault", item=name)
        return decode_item(value)

    def open_reader(self, name: str) -> ItemReader:
        """Return the item open for reading; until it is closed nobody changes the item in place."""
        with self.mutex:
            expected = self.find(name)
            self.require_idle(name)
            reader = self._open(name, expected, lambda: self._stop_reading(name))
            self._reading[name] += 1
            self._readers.add(reader)
            return reader

    def close_readers(self) -> None:
        """Wipe the keys of items that are open still: they end with the vault."""
        for reader in list(self._readers):
            reader.close()

    def require_idle(self, name: str) -> None:
        """Raise ``vault.item.busy`` while the item is changed in place."""
        if name in self._editing.values():
            raise ItemBusy("the item is being changed in place", item=name)

    def _open(self, name: str, expected: Expected, done: Callable[[], None] = lambda: None) -> ItemReader:
        keys = self.ring.keys.get(expected.epoch)
        if keys is None:
            raise HeaderAltered("the item is of an epoch that the vault does not have", epoch=expected.epoch)
        path = self.folder / "items" / file_name(expected)
        path_hash = hash_path(self.ring.vault_id, name)
        return ItemReader(path, expected=expected, path_hash=path_hash, keys=keys, done=done)

    def _stop_reading(self, name: str) -> None:
        with self.mutex:
            self._reading -= Counter([name])

    # -- a new content ------------------------------------------------------------------------------------------------

    def start(self, name: str, *, editing: bool = False) -> tuple[ItemWriter, Path]:
        """Return a writer of the item's next generation, and where it writes; raise ``vault.item.busy``."""
        with self.mutex:
            self.require_open()
            value = self.table.get(item_key(check_name(name)))
            if not editing:
                self.require_idle(name)
            old = None if value is None else decode_item(value)
            record = self.ring.record
            header = Header(
                file_id=old.file_id if old else os.urandom(ID_BYTES),
                generation=old.generation + 1 if old else 1,
                sequence=0,
                length_bytes=0,
                stored_bytes=0,
                path_hash=hash_path(self.ring.vault_id, name),
                epoch=record.epoch,
                algorithm=record.algorithm,
            )
            path = self.folder / "new" / file_name(header)
            if name in self._writing:
                raise ItemBusy("the item is being written elsewhere in this program", item=name)
            writer = ItemWriter(path, header, padding=record.padding, done=lambda: self._writing.discard(name))
            self._writing.add(name)
            return writer, path

    def finish(self, name: str, writer: ItemWriter, path: Path, *, editing: bool = False) -> Expected:
        """Make what was written count, move it to its place, erase what it replaces."""
        with self.mutex:
            try:
                self.require_open()
                if not editing:
                    self.require_idle(name)
                epoch, keys = self.current_keys()
                new = replace(writer.finish(keys, epoch=epoch), modified_s=int(time.time()))
                value = self.table.get(item_key(name))
                self.commit((Change(item_key(name), encode_item(new)),))
            except BaseException:
                writer.abandon()
                if not self.table.is_broken:
                    erase_file(path)
                raise
            with self._following():
                with translate_os_errors(path):
                    path.rename(self.folder / "items" / path.name)
                self._erase(decode_item(value) if value is not None else None)
            self.settle()
            return new

    def delete(self, name: str) -> None:
        """Remove an item and destroy its key."""
        with self.mutex:
            old = self.find(name)
            self.require_idle(name)
            self.commit((Change(item_key(name), encode_item(old), deletes=True),))
            with self._following():
                self._erase(old)
            self.settle()

    def _erase(self, item: Expected | None) -> None:
        """Erase an item's file and make it durable which there are: a merge, or the next file in ``new``, must not
        outrun it."""
        if item is not None:
            erase_file(self.folder / "items" / file_name(item))
        with translate_os_errors(self.folder):
            sync_folder(self.folder / "items")

    # -- changing in place --------------------------------------------------------------------------------------------

    def open_editor(self, name: str) -> Editor:
        """Return the item open for changing; raise ``vault.item.busy`` if anybody reads or changes it."""
        with self.mutex:
            expected = self.find(name)
            self.require_idle(name)
            if self._reading[name]:
                raise ItemBusy("the item is open for reading; changing it in place would break that", item=name)
            record = self.ring.record
            reader = self._open(name, expected)
            self._editing[expected.file_id] = name
            return Editor(reader, padding=record.padding, committer=self)

    def current_keys(self) -> tuple[int, VaultKeys]:
        """Return the newest epoch and its keys; raise ``vault.folder.closed``."""
        self.require_open()
        epoch = self.ring.record.epoch
        return epoch, self.ring.keys[epoch]

    def stop_editing(self, name: str) -> None:
        """Let others have the item again."""
        with self.mutex:
            self._editing = {file_id: other for file_id, other in self._editing.items() if other != name}

    def commit_change(self, header: Header, change: FileChange) -> None:
        """Make a change in place count, durable; called by ``Editor``."""
        with self.mutex:
            name = self._editing[header.file_id]
            expected = Expected(
                file_id=header.file_id,
                generation=header.generation,
                sequence=header.sequence,
                tag=slot_tag(change.slot),
                length_bytes=header.length_bytes,
                stored_bytes=header.stored_bytes,
                epoch=header.epoch,
                modified_s=int(time.time()),
            )
            self.change_files([change], (Change(item_key(name), encode_item(expected)),))

    def change_files(self, files: Sequence[FileChange], changes: tuple[Change, ...]) -> None:
        """Make changes of item files count together with those of the table, durable: all or none. Call ``settle``
        afterwards."""
        with self.mutex:
            epoch, keys = self.current_keys()
            digest = write_redo(self.folder, files, keys=keys, epoch=epoch)
            try:
                self.commit(changes, redo=digest)
            except BaseException:
                if not self.table.is_broken:
                    discard_redo(self.folder)
                    release_room(self.folder, files)
                raise
            with self._following():
                apply_redo(self.folder, files)

    def rewrite(self, editor: Editor) -> ItemReader:
        """Write an item anew with the content that ``editor`` has, and return it open; called by ``Editor``."""
        with self.mutex:
            name = self._editing[editor.header.file_id]
            writer, path = self.start(name, editing=True)
            buffer = memoryview(bytearray(BATCH_BYTES))
            try:
                for offset in range(0, editor.length_bytes, len(buffer)):
                    writer.write(buffer[: editor.read_into(offset, buffer)])
            except BaseException:
                writer.abandon()
                raise
            finally:
                erase_buffer(buffer)
            self.finish(name, writer, path, editing=True)
            return self._open(name, self.find(name))

    # -- transactions -------------------------------------------------------------------------------------------------

    def commit(self, changes: tuple[Change, ...], *, redo: bytes = NO_DIGEST) -> None:
        """Make changes of the table count, durable; if this raises, none does. Call ``settle`` when all is done.

        What interrupts or fails behind the transaction, such as the counter, is told by ``settle``; the next change
        moves the counter first. (If the table is broken afterwards, only the next opening knows whether they count.)
        """
        self.require_open()
        self.settle_anchor()
        self.table.commit(changes, anchored=self.ring.anchor is not None, redo=redo)
        try:
            self.settle_anchor()
        except BaseException as error:  # noqa: BLE001  # raised by ``settle``: an interruption must take nothing back
            self._late = error

    def commit_alone(self, changes: tuple[Change, ...]) -> None:
        """Make changes count that no file belongs to."""
        with self.mutex:
            self.commit(changes)
            self.settle()

    def settle_anchor(self) -> None:
        """Compare with the counter and finish the step that a power cut may have left open."""
        ring = self.ring
        if ring.anchor is None:
            return
        counted, ring.counted = ring.counted, None  # if anything fails here, the counter is read again the next time
        if counted is None:
            counted = ring.anchor.read()
        verify_anchor(self.table.anchor, counted)
        if counted < self.table.anchor:
            counted = ring.anchor.advance()
        ring.counted = counted

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Do what follows a transaction that counts; if it fails, nothing else may be begun before it is finished."""
        try:
            yield
        except BaseException:
            self.table.fail()
            raise

    def settle(self) -> None:
        """End a change: tell what failed behind its transaction, although it counts; merge the table if it is due."""
        with self.mutex:
            late, self._late = self._late, None
            if late is not None:
                raise late
            self.table.merge_if_due()
