"""New keys for a vault that stays in use: re-keying writes headers anew, re-encryption the contents as well.

Touches: the vault's item files, through its redo file. Both go on where a power cut ended them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tidegate.crypto.aead import NONCE_BYTES
from tidegate.vault.appkeys import unwrap_application_key, wrap_application_key
from tidegate.vault.errors import ItemBusy, ItemUnknown
from tidegate.vault.files import erase_buffer
from tidegate.vault.format import Expected, encode_slot, reseal, slot_tag
from tidegate.vault.journal import Change
from tidegate.vault.listing import ITEMS, KEYS, decode_item, encode_item, file_name, item_key
from tidegate.vault.redo import FileChange

if TYPE_CHECKING:
    from tidegate.vault.store import Vault

BATCH_ITEMS = 64  # headers in one transaction: half a MiB of redo
_COPY_BYTES = 1 << 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far it is: items done and to do, by the listing."""

    done: int
    total: int
    name: str


Report = Callable[[Progress], None]


def rekey(vault: Vault, *, contents: bool = False, report: Report | None = None) -> int:
    """Give the vault new keys of every level and return how many items were written anew.

    Old copies of the record with their passphrases, drives and so on open nothing that is written from now on, nor what
    is on the storage when this returns. With ``contents`` every item is encrypted anew under a new file key (who had
    the old file keys reads nothing any more); without, headers alone are. Other threads use the vault meanwhile, an
    item at a time. Interrupted at any point, the next call goes on. Raises ``vault.item.busy`` if an item stays open
    for changing in place, ``base.storage.*``, and what reading an item raises.
    """
    with vault.mutex:
        if not is_pending(vault):
            vault.keyring.begin_epoch(vault.table)
            vault.engine.commit_alone(())
    total = sum(1 for _ in _old_items(vault))
    done = 0
    while True:
        while batch := _next_batch(vault):
            if contents:
                for name in batch:
                    _rewrite(vault, name)
            else:
                _reseal(vault, batch)
            done += len(batch)
            if report is not None:
                report(Progress(done=done, total=max(total, done), name=batch[-1]))
        with vault.mutex:
            if _next_batch(vault):
                continue
            _rewrap_application_keys(vault)
            vault.table.merge(epoch=vault.keyring.record.epoch)
            vault.keyring.end_epochs(vault.table)
            vault.engine.commit_alone(())
            return done


def is_pending(vault: Vault) -> bool:
    """Return whether a re-keying was begun and not ended."""
    return len(vault.keyring.record.vault_keys) > 1


def _old_items(vault: Vault) -> Iterator[str]:
    epoch = vault.keyring.record.epoch
    for key, value in vault.table_scan(ITEMS):
        if decode_item(value).epoch != epoch:
            yield key[len(ITEMS) :].decode()


def _next_batch(vault: Vault) -> list[str]:
    batch: list[str] = []
    for name in _old_items(vault):
        batch.append(name)
        if len(batch) == BATCH_ITEMS:
            break
    return batch


def _reseal(vault: Vault, names: list[str]) -> None:
    """Write the headers of these items under the newest epoch, in one transaction."""
    with vault.mutex:
        epoch = vault.keyring.record.epoch
        keys = vault.keyring.keys[epoch]
        changes: list[tuple[str, Expected, FileChange]] = []
        for name in names:
            if name not in vault:
                continue  # deleted meanwhile
            with vault.open_item(name) as reader:
                header = reseal(reader.header, epoch=epoch)
                slot = encode_slot(header, file_key=reader.file_key, nonce=os.urandom(NONCE_BYTES), keys=keys)
            old = decode_item(vault.table_get(item_key(name)) or b"")
            new = replace(old, sequence=header.sequence, tag=slot_tag(slot), epoch=epoch)
            change = FileChange(
                name=file_name(header), slot=slot, sequence=header.sequence, size_bytes=header.file_bytes
            )
            changes.append((name, new, change))
        if changes:
            table_changes = tuple(Change(item_key(name), encode_item(new)) for name, new, _ in changes)
            vault.engine.change_files([change for _, _, change in changes], table_changes)
            vault.engine.settle()


def _rewrite(vault: Vault, name: str) -> None:
    """Encrypt one item anew; the vault is held meanwhile only at the beginning and the end.

    The new content counts only if the item is still the one that was read: deleted or replaced meanwhile, it is not
    brought back (a replacement is under the new keys already).
    """
    try:
        old = vault.stat(name)
        source = vault.open_file(name, "r")
    except ItemUnknown:
        return
    except ItemBusy as error:
        raise _in_use(name) from error
    with source:
        try:
            target = vault.open_file(name, "w")
        except ItemBusy as error:
            raise _in_use(name) from error
        buffer = memoryview(bytearray(_COPY_BYTES))
        try:
            while count := source.readinto(buffer):
                target.write(buffer[:count])
            with vault.mutex:
                if name in vault and vault.stat(name).generation == old.generation:
                    target.close()
                    _keep_time(vault, name, old.modified_s)
        finally:
            erase_buffer(buffer)
            target.abandon()  # harmless once it is closed


def _in_use(name: str) -> ItemBusy:
    return ItemBusy(f"{name} is in use and keeps its old key; close it and go on with `rekey`", item=name)


def _keep_time(vault: Vault, name: str, modified_s: int) -> None:
    item = replace(decode_item(vault.table_get(item_key(name)) or b""), modified_s=modified_s)
    vault.table_commit((Change(item_key(name), encode_item(item)),))


def _rewrap_application_keys(vault: Vault) -> None:
    epoch = vault.keyring.record.epoch
    keys = vault.keyring.keys
    changes = []
    for key, value in list(vault.table_scan(KEYS)):
        name = key[len(KEYS) :].decode()
        if int.from_bytes(value[:4], "big") != epoch:
            with unwrap_application_key(name, value, keys) as secret:
                nonce = os.urandom(NONCE_BYTES)
                changes.append(Change(key, wrap_application_key(name, secret, keys[epoch], epoch=epoch, nonce=nonce)))
    if changes:
        vault.table_commit(tuple(changes))
