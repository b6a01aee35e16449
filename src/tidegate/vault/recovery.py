"""What a power cut left of a change, finished when the vault is opened: files to move or erase, a change in place.

Touches: the vault's folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from tidegate.base.durable import sync_folder, translate_os_errors
from tidegate.vault.errors import FileUnexpected
from tidegate.vault.files import erase_file
from tidegate.vault.format import Expected, VaultKeys
from tidegate.vault.journal import NO_DIGEST
from tidegate.vault.listing import ITEMS, decode_item, file_name
from tidegate.vault.redo import recover_redo
from tidegate.vault.table import Table

# strangers in table/ are removed when the vault is opened
_KNOWN = {"vault.cbor", "manifest", "lock", "redo", "items", "new", "table"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What ``open`` had to do because the vault was not closed: torn bytes of a change that never counted, files."""

    torn_bytes: int = 0
    files: int = 0


def recover_items(folder: Path, table: Table, keys: Mapping[int, VaultKeys]) -> Recovery:
    """Finish the last transaction and undo what came after it. Raises ``base.storage.*``, ``vault.redo.altered``.

    New files that a transaction names move to their place, others are erased; of the last transaction, what it
    replaced or deleted is erased. Only the last one can be unfinished: the next begins when it is done.
    """
    last = table.recovered
    with translate_os_errors(folder):
        fresh = list((folder / "new").iterdir())
    files = len(fresh)
    listed = {file_name(decode_item(value)) for _, value in table.changed(ITEMS)} if fresh else set()
    for path in fresh:
        if path.is_dir() and not path.is_symlink():
            raise FileUnexpected(f"the vault did not write new/{path.name}", path=f"new/{path.name}")
        if path.name in listed:
            with translate_os_errors(path):
                path.rename(folder / "items" / path.name)
                path.unlink(missing_ok=True)  # where a cut left both names of one file, renaming does nothing
        else:
            erase_file(path)
    files += recover_redo(folder, last.redo if last else NO_DIGEST, keys)
    for change in last.changes if last else ():
        if change.key.startswith(ITEMS):
            files += _erase_replaced(folder, decode_item(change.value), deleted=change.deletes)
    if files:
        sync_items(folder)
    return Recovery(torn_bytes=table.torn_bytes, files=files)


def sync_items(folder: Path) -> None:
    """Make it durable which item files there are."""
    with translate_os_errors(folder):
        sync_folder(folder / "items")
        sync_folder(folder / "new")


def require_only_listed(folder: Path, listed: AbstractSet[str]) -> None:
    """Raise ``vault.file.unexpected`` for anything in the folder that the vault does not know."""
    with translate_os_errors(folder):
        found = {
            "": {path.name for path in folder.iterdir()} - _KNOWN,
            "items/": {path.name for path in (folder / "items").iterdir()} - listed,
            "new/": {path.name for path in (folder / "new").iterdir()},
        }
    strange = sorted(place + name for place, names in found.items() for name in names)
    if strange:
        raise FileUnexpected(f"the vault did not write {strange[0]}", path=strange[0], count=len(strange))


def _erase_replaced(folder: Path, item: Expected, *, deleted: bool) -> int:
    path = folder / "items" / file_name(item if deleted else replace(item, generation=item.generation - 1))
    if not path.exists():
        return 0
    erase_file(path)
    return 1
