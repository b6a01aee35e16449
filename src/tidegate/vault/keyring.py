"""The vault's record in use: who opens it, the keys of its epochs, the counter that anchors it.

Touches: ``vault.cbor`` and ``lock`` in the vault's folder.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from tidegate.base.durable import (
    read_file_bounded,
    require_private,
    sync_folder,
    translate_os_errors,
    write_file_atomic,
)
from tidegate.base.errors import StorageMissing, TidegateError
from tidegate.base.lock import FolderLock
from tidegate.crypto.aead import KEY_BYTES, NONCE_BYTES, AeadAlgorithm, fastest_aead
from tidegate.crypto.kem import SEED_BYTES, kem_public
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.errors import (
    RecordRolledBack,
    RekeyingPending,
    UnlockerLast,
    UnlockersFull,
    UnlockerUnknown,
    UnlockRefused,
    VaultBusy,
    VaultExists,
)
from tidegate.vault.format import ID_BYTES, VaultKeys
from tidegate.vault.padding import Padding
from tidegate.vault.record import (
    MAX_EPOCHS,
    MAX_RECORD_BYTES,
    MAX_SLOTS,
    Record,
    Slot,
    bind_slot,
    encode_record,
    parse_record,
    slot_context,
    unwrap_identity,
    unwrap_root,
    unwrap_vault_key,
    verify_record,
    verify_slot,
    wrap_identity,
    wrap_root,
    wrap_vault_key,
)
from tidegate.vault.table import Table, TableSettings
from tidegate.vault.unlockers import Anchor, Unlocker

FOLDERS = ("items", "new", "table")
_UNFINISHED = {"lock", "manifest", *FOLDERS}  # what an attempt to create leaves that a power cut ended


class Keyring:
    """The keys of an open vault; wiped by ``close``, which lets the next process open it."""

    def __init__(self, folder: Path, lock: FolderLock) -> None:
        self._folder = folder
        self._lock = lock
        self.record: Record
        self.root: ProtectedSecret
        self.identity: ProtectedSecret
        self.keys: dict[int, VaultKeys] = {}
        self.slot: Slot  # the one that opened the vault
        self.anchor: Anchor | None = None
        self.counted: int | None = None  # what the anchor is known to be

    @property
    def vault_id(self) -> bytes:
        """Return the vault's id, 16 bytes."""
        return self.record.vault_id

    def unlock(self, unlocker: Unlocker) -> None:
        """Read the record and open it; raise ``vault.unlock.refused``, ``vault.record.*`` and what unlockers raise."""
        raw = read_file_bounded(self._folder / "vault.cbor", limit_bytes=MAX_RECORD_BYTES)
        unverified, signature = parse_record(raw)
        self.slot, self.root = _open_slot(unverified, unlocker)
        self.record = verify_record(unverified, signature)
        self.identity = unwrap_identity(self.record, self.root)
        self.adopt(self.record, self.root)
        if self.record.anchor == self.slot.number:
            self.anchor = unlocker.anchor(self.vault_id)

    def adopt(self, record: Record, root: ProtectedSecret) -> None:
        """Take the keys of the record's epochs, and wipe those of epochs that it does not have."""
        for epoch in record.vault_keys:
            if epoch not in self.keys:
                with unwrap_vault_key(record, root, epoch) as vault_key:
                    self.keys[epoch] = VaultKeys(vault_key, record.vault_id)
        for epoch in [epoch for epoch in self.keys if epoch not in record.vault_keys]:
            self.keys.pop(epoch).wipe()
        self.record, self.root = record, root

    def require_newest(self, table: Table) -> None:
        """Refuse a record that is older than the table says (``vault.record.rollback``)."""
        if self.record.version < table.record_version:
            raise RecordRolledBack(
                f"the record is version {self.record.version}, the vault had {table.record_version} already",
                found=self.record.version,
                expected=table.record_version,
            )

    def write(self, record: Record, table: Table, *, root: ProtectedSecret | None = None) -> None:
        """Make ``record`` the vault's, one version newer, durable; older ones are refused from now on.

        With ``root`` it is the root key from then on. The vault counts the change (``Vault`` sees to that).
        """
        record = replace(record, version=self.record.version + 1)
        raw = encode_record(record, self.identity)
        write_file_atomic(self._folder / "vault.cbor", raw, mode=0o600)
        self.record = record
        if root is not None:
            self.root.wipe()
            self.root = root
        table.note_record(record.version)

    def add(self, unlocker: Unlocker, table: Table, *, label: str = "") -> Slot:
        """Add a way to open the vault and return it; raise ``vault.unlockers.full`` and what the unlocker raises.

        The first one with a counter anchors the vault.
        """
        if len(self.record.slots) >= MAX_SLOTS:
            raise UnlockersFull(f"the vault has {MAX_SLOTS} unlockers already")
        slot = make_slot(self.record, unlocker, label=label)
        wrapped = wrap_root(replace(self.record, slots=(slot,)), self.root).slots[0]
        record = replace(self.record, slots=(*self.record.slots, wrapped))
        anchor = unlocker.anchor(self.vault_id) if not self.record.anchor else None
        if anchor is None:
            self.write(record, table)
            return wrapped
        counted = anchor.read()
        table.note_record(self.record.version, anchor=counted)  # first: as long as no slot counts nobody compares
        self.write(replace(record, anchor=slot.number), table)
        self.anchor, self.counted = anchor, counted
        return wrapped

    def remove(self, number: int, table: Table) -> Slot:
        """Take away a way to open the vault and begin a new epoch, in one step; return what was removed.

        Who used it may have kept the keys: until the vault is re-keyed, they open what was written before. Raises
        ``vault.unlockers.unknown``, ``vault.unlockers.last``.
        """
        slot = next((slot for slot in self.record.slots if slot.number == number), None)
        if slot is None:
            raise UnlockerUnknown(f"the vault has no unlocker {number}", number=number)
        if len(self.record.slots) == 1:
            raise UnlockerLast("this is the only unlocker of the vault", number=number)
        rest = tuple(one for one in self.record.slots if one.number != number)
        counts = self.record.anchor == number
        self.begin_epoch(table, replace(self.record, slots=rest, anchor=0 if counts else self.record.anchor))
        if counts:
            self.anchor, self.counted = None, None
        return slot

    def begin_epoch(self, table: Table, record: Record | None = None) -> None:
        """Make a new root key for the slots of ``record``, and a vault key of a new epoch; older ones stay as yet."""
        old = self.record
        if len(old.vault_keys) >= MAX_EPOCHS:
            raise RekeyingPending("the vault was re-keyed too often without an end")
        epoch, root = old.epoch + 1, ProtectedSecret.random(KEY_BYTES)
        new = wrap_root(replace(record or old, epoch=epoch), root)
        new = wrap_identity(new, root, self.identity, nonce=os.urandom(NONCE_BYTES))
        with ProtectedSecret.random(KEY_BYTES) as vault_key:
            vault_keys = {epoch: _wrap(new, root, vault_key, epoch)}
            for one in old.vault_keys:
                with unwrap_vault_key(old, self.root, one) as old_key:
                    vault_keys[one] = _wrap(new, root, old_key, one)
            self.keys[epoch] = VaultKeys(vault_key, new.vault_id)
        try:
            self.write(replace(new, vault_keys=vault_keys), table, root=root)
        except BaseException:
            if self.record is old:  # it did not come to be the vault's
                self.keys.pop(epoch).wipe()
            raise

    def end_epochs(self, table: Table) -> None:
        """Forget the vault keys of all epochs but the newest, here and on the storage."""
        epoch = self.record.epoch
        self.write(replace(self.record, vault_keys={epoch: self.record.vault_keys[epoch]}), table)
        self.adopt(self.record, self.root)

    def close(self) -> None:
        """Wipe everything and let the next one in; harmless when repeated."""
        for keys in self.keys.values():
            keys.wipe()
        self.keys.clear()
        for secret in ("root", "identity"):
            if hasattr(self, secret):
                getattr(self, secret).wipe()
        self._lock.release()


def create_vault(
    folder: Path, unlocker: Unlocker, *, label: str, padding: Padding, algorithm: AeadAlgorithm | None
) -> None:
    """Write an empty vault; see ``Vault.create``."""
    with translate_os_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(folder)
        if any(path.name not in _UNFINISHED and not path.name.endswith(".new") for path in folder.iterdir()):
            raise VaultExists(f"{folder} is not empty", path=str(folder))
        for name in FOLDERS:
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        sync_folder(folder.parent)
    record = Record(
        vault_id=os.urandom(ID_BYTES),
        version=1,
        epoch=1,
        algorithm=algorithm or fastest_aead(),
        padding=padding,
        slots=(),
    )
    identity = ProtectedSecret.random(SEED_BYTES)
    with identity, ProtectedSecret.random(KEY_BYTES) as root, ProtectedSecret.random(KEY_BYTES) as vault_key:
        record = wrap_identity(record, root, identity, nonce=os.urandom(NONCE_BYTES))
        slot = make_slot(record, unlocker, label=label)
        counts = unlocker.anchor(record.vault_id) is not None
        record = replace(record, slots=(slot,), anchor=slot.number if counts else 0)
        record = replace(wrap_root(record, root), vault_keys={1: _wrap(record, root, vault_key, 1)})
        keys = VaultKeys(vault_key, record.vault_id)
        try:
            settings = TableSettings(folder=folder, vault_id=record.vault_id, algorithm=record.algorithm)
            Table.create(settings, keys, epoch=1, record_version=1)
            write_file_atomic(folder / "vault.cbor", encode_record(record, identity), mode=0o600)
        finally:
            keys.wipe()


def open_keyring(folder: Path, unlocker: Unlocker, *, wait_s: float) -> Keyring:
    """Return the keys of the vault in ``folder``; see ``Vault.open``."""
    require_private(folder)
    require_vault_folder(folder)
    for name in FOLDERS:  # a link in their place leads to somebody else's files
        require_private(folder / name)
    ring = Keyring(folder, FolderLock(folder, wait_s=wait_s, busy=VaultBusy))
    try:
        ring.unlock(unlocker)
    except BaseException:
        ring.close()
        raise
    return ring


def read_slots(folder: Path) -> Record:
    """Return the record, **unverified**: enough to say what would open the vault. Raises ``vault.record.*``."""
    require_vault_folder(folder)
    return parse_record(read_file_bounded(folder / "vault.cbor", limit_bytes=MAX_RECORD_BYTES))[0]


def require_vault_folder(folder: Path) -> None:
    """Raise ``base.storage.missing`` unless the folder holds a vault's record."""
    if not (folder / "vault.cbor").is_file():
        raise StorageMissing(f"{folder} holds no vault", path=str(folder))


def make_slot(record: Record, unlocker: Unlocker, *, label: str) -> Slot:
    """Return a new slot for ``unlocker``, without the root key yet."""
    public = getattr(unlocker, "public_only", None)
    if public is not None:  # an escrow key, whose private half is elsewhere
        return Slot(number=record.next_number(), label=label, kind=unlocker.kind, public=public, sealed={})
    with ProtectedSecret.random(SEED_BYTES) as seed:
        sealed = unlocker.wrap(seed, slot_context(record.vault_id))
        slot = Slot(
            number=record.next_number(), label=label, kind=unlocker.kind, public=kem_public(seed), sealed=sealed
        )
        return bind_slot(slot, seed, record)


def _wrap(record: Record, root: ProtectedSecret, vault_key: ProtectedSecret, epoch: int) -> bytes:
    return wrap_vault_key(record, root, vault_key, epoch=epoch, nonce=os.urandom(NONCE_BYTES))


def _open_slot(record: Record, unlocker: Unlocker) -> tuple[Slot, ProtectedSecret]:
    """Return the first slot that this unlocker opens, and the root key."""
    refused: TidegateError | None = None
    for slot in record.slots:
        if slot.kind == unlocker.kind:
            try:
                with unlocker.unwrap(slot.sealed, slot_context(record.vault_id)) as seed:
                    verify_slot(slot, seed, record)
                    return slot, unwrap_root(record, slot, seed)
            except TidegateError as error:
                refused = refused or error
    kinds = ", ".join(sorted({slot.kind for slot in record.slots}))
    raise refused or UnlockRefused(f"the vault opens with {kinds}, not with a {unlocker.kind}", needs=kinds)
