"""The vault: named items, encrypted at rest, in a folder.

    with Vault.open(folder, KeyStoreUnlocker(keys, "vault")) as vault:
        vault.write("patients/17", record)

One process has a vault open at a time, and one thread uses it. Order of writing: the item's new file, then the
listing that names it (an atomic replacement: this is the moment of the change), then the counter in the key store,
then the old file is erased. A power cut leaves the old item or the new one; the next ``open`` finishes the rest.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tidegate.base.clock import Entropy, SystemEntropy
from tidegate.base.durable import (
    read_file_bounded,
    require_private,
    sync_folder,
    translate_os_errors,
    write_file_atomic,
)
from tidegate.base.errors import Rejected
from tidegate.base.lock import FolderLock
from tidegate.crypto import cbor
from tidegate.crypto.aead import NONCE_BYTES, Secret
from tidegate.vault.errors import (
    ItemUnknown,
    ManifestMissing,
    RecordMalformed,
    UnlockRefused,
    VaultBusy,
    VaultClosed,
    VaultExists,
)
from tidegate.vault.files import (
    ItemReader,
    erase_file,
    item_path,
    remove_orphans,
    require_vault_folder,
    write_item_file,
)
from tidegate.vault.format import (
    CHUNK_LOG2,
    ID_BYTES,
    KEY_BYTES,
    Expected,
    Header,
    VaultKeys,
    check_name,
    hash_path,
)
from tidegate.vault.manifest import (
    MAX_MANIFEST_BYTES,
    Manifest,
    encode_manifest,
    verify_anchor,
    verify_manifest,
)
from tidegate.vault.unlockers import Unlocker

MAX_RECORD_BYTES = 65_536  # a vault's identity and a slot of a few hundred bytes for each unlocker
_FORMAT = "tidegate.vault.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemInfo:
    """What the vault tells about an item without reading it."""

    name: str
    size_bytes: int
    generation: int


class Vault:
    """An open vault; made by ``create`` or ``open``, closed by ``close`` or the end of a ``with``, which wipes keys."""

    def __init__(self, folder: Path, unlocker: Unlocker, *, entropy: Entropy, wait_s: float) -> None:
        """Open what is there; callers use ``create`` and ``open``."""
        self._folder = folder
        self._entropy = entropy
        require_private(folder)
        require_vault_folder(folder)
        self._lock = FolderLock(folder, wait_s=wait_s, busy=VaultBusy)
        try:
            raw = read_file_bounded(folder / "vault.cbor", limit_bytes=MAX_RECORD_BYTES)
            self._id, slots = _parse_record(raw)
            with _unwrap(unlocker, slots, _context(self._id)) as vault_key:
                self._keys: VaultKeys | None = VaultKeys(vault_key, self._id)
            self._anchor = unlocker.anchor(self._id)
            self._manifest = self._load_manifest()
            self._settle_anchor()
            remove_orphans(folder, {item_path(folder, item) for item in self._manifest.items.values()})
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, folder: Path, unlocker: Unlocker, *, entropy: Entropy | None = None, wait_s: float = 2.0) -> Self:
        """Make an empty vault in ``folder`` (created, mode 700) and return it open.

        Raises ``vault.folder.exists`` if the folder holds anything else, and what the unlocker raises.
        """
        entropy = entropy or SystemEntropy()
        with translate_os_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            require_private(folder)
            unfinished = {"lock", "items", "manifest"}  # an earlier attempt that a power cut ended
            if any(path.name not in unfinished and not path.name.endswith(".new") for path in folder.iterdir()):
                raise VaultExists(f"{folder} is not empty", path=str(folder))
            (folder / "items").mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)
        vault_id = entropy.random_bytes(ID_BYTES)
        with Secret(entropy.random_bytes(KEY_BYTES)) as vault_key:
            slot = {"kind": unlocker.kind, **unlocker.wrap(vault_key, _context(vault_id))}
            keys = VaultKeys(vault_key, vault_id)
        listing = encode_manifest(
            Manifest(generation=1, items={}), vault_id=vault_id, nonce=entropy.random_bytes(NONCE_BYTES), keys=keys
        )
        keys.wipe()
        write_file_atomic(folder / "manifest", listing, mode=0o600)
        record = cbor.encode({"format": _FORMAT, "id": vault_id, "slots": [slot]})
        write_file_atomic(folder / "vault.cbor", record, mode=0o600)
        return cls(folder, unlocker, entropy=entropy, wait_s=wait_s)

    @classmethod
    def open(cls, folder: Path, unlocker: Unlocker, *, entropy: Entropy | None = None, wait_s: float = 2.0) -> Self:
        """Return the vault in ``folder``, unlocked and checked against its counter.

        Raises ``base.storage.missing``, ``base.permissions.unsafe``, ``vault.folder.busy`` after ``wait_s``,
        ``vault.unlock.refused``, ``vault.record.malformed``, ``vault.manifest.missing``, ``vault.manifest.altered``,
        ``vault.manifest.rollback``, ``vault.anchor.mismatch``. The items' own files are checked when they are read.
        """
        return cls(folder, unlocker, entropy=entropy or SystemEntropy(), wait_s=wait_s)

    # -- items --------------------------------------------------------------------------------------------------------

    def read(self, name: str) -> bytes:
        """Return the item's content, every byte authenticated; raise ``vault.item.unknown``, ``vault.file.*``, …"""
        with self.open_item(name) as reader:
            return b"".join(reader.iter_content())

    def read_range(self, name: str, offset: int, count: int) -> bytes:
        """Return up to ``count`` bytes from ``offset``, decrypting only the chunks they lie in."""
        with self.open_item(name) as reader:
            return reader.read_range(offset, count)

    def open_item(self, name: str) -> ItemReader:
        """Return the item open for reading in any order; it is authenticated as far as it is read.

        Raises ``vault.item.unknown``, ``vault.file.*`` and ``vault.header.*``; reading raises ``vault.chunk.*``.
        """
        keys = self._require_open()
        expected = self._find(name)
        return ItemReader(
            item_path(self._folder, expected), expected=expected, path_hash=hash_path(keys, name), keys=keys
        )

    def write(self, name: str, data: bytes) -> ItemInfo:
        """Make ``data`` the item's content; durable when this returns, and until then the old content stays.

        Raises ``vault.item.name``, ``vault.folder.full``, ``base.storage.*``; then the item is wholly old or wholly
        new, and reading says which.
        """
        return self.write_from(name, io.BytesIO(data))

    def write_from(self, name: str, stream: BinaryIO) -> ItemInfo:
        """Make what ``stream`` yields the item's content, in constant memory; otherwise as ``write``."""
        keys = self._require_open()
        old = self._manifest.items.get(check_name(name))
        header = Header(
            file_id=old.file_id if old else self._entropy.random_bytes(ID_BYTES),
            generation=old.generation + 1 if old else 1,
            sequence=0,
            length_bytes=0,
            path_hash=hash_path(keys, name),
            chunk_log2=CHUNK_LOG2,
        )
        place = Expected(file_id=header.file_id, generation=header.generation, sequence=0, length_bytes=0, mac=b"")
        path = item_path(self._folder, place)
        new = write_item_file(path, header, stream, keys=keys, entropy=self._entropy)
        self._commit({**self._manifest.items, name: new})
        if old:
            erase_file(item_path(self._folder, old))
        return self.stat(name)

    def delete(self, name: str) -> None:
        """Remove the item and destroy its key; raise ``vault.item.unknown``, ``base.storage.*``."""
        self._require_open()
        old = self._find(name)
        self._commit({other: item for other, item in self._manifest.items.items() if other != name})
        erase_file(item_path(self._folder, old))

    def list(self) -> tuple[ItemInfo, ...]:
        """Return every item, by name."""
        self._require_open()
        return tuple(self.stat(name) for name in sorted(self._manifest.items))

    def stat(self, name: str) -> ItemInfo:
        """Return what is known of the item; raise ``vault.item.unknown``."""
        self._require_open()
        item = self._find(name)
        return ItemInfo(name=name, size_bytes=item.length_bytes, generation=item.generation)

    def verify(self, name: str) -> ItemInfo:
        """Return the item's information after every byte of its file was authenticated; raise as ``read``."""
        with self.open_item(name) as reader:
            for _ in reader.iter_content():
                pass
        return self.stat(name)

    def __iter__(self) -> Iterator[str]:
        """Yield the items' names in order."""
        return iter([item.name for item in self.list()])

    def close(self) -> None:
        """Wipe the keys and let the next one open the vault; harmless when repeated."""
        keys = getattr(self, "_keys", None)
        if keys is not None:
            keys.wipe()
        self._keys = None
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _require_open(self) -> VaultKeys:
        if self._keys is None:
            raise VaultClosed("the vault is closed")
        return self._keys

    def _find(self, name: str) -> Expected:
        item = self._manifest.items.get(check_name(name))
        if item is None:
            raise ItemUnknown("there is no such item in the vault", item=name)
        return item

    def _load_manifest(self) -> Manifest:
        path = self._folder / "manifest"
        if not path.is_file():  # a pipe in its place would block the reader
            raise ManifestMissing(f"{self._folder} has no listing", path=str(path))
        raw = read_file_bounded(path, limit_bytes=MAX_MANIFEST_BYTES)
        return verify_manifest(raw, vault_id=self._id, keys=self._require_open())

    def _settle_anchor(self) -> None:
        """Compare with the counter and finish the step that a power cut may have left open."""
        if self._anchor is None:
            return
        counter = self._anchor.read()
        verify_anchor(self._manifest.generation, counter)
        if counter < self._manifest.generation:
            self._anchor.advance()

    def _commit(self, items: Mapping[str, Expected]) -> None:
        """Make ``items`` the listing; on a failure the listing on the storage says which of the two counts."""
        manifest = Manifest(generation=self._manifest.generation + 1, items=items)
        try:
            self._settle_anchor()
            raw = encode_manifest(
                manifest,
                vault_id=self._id,
                nonce=self._entropy.random_bytes(NONCE_BYTES),
                keys=self._require_open(),
            )
            write_file_atomic(self._folder / "manifest", raw, mode=0o600)
        except BaseException:  # an interruption included: memory and storage must agree again
            self._manifest = self._load_manifest()
            remove_orphans(self._folder, {item_path(self._folder, item) for item in self._manifest.items.values()})
            raise
        self._manifest = manifest
        self._settle_anchor()


def _context(vault_id: bytes) -> bytes:
    """Return what binds a wrapped vault key to this vault."""
    return _FORMAT.encode() + b" " + vault_id


def _parse_record(raw: bytes) -> tuple[bytes, list[dict[str, cbor.Value]]]:
    """Return the vault's id and its slots, or raise ``vault.record.malformed``."""
    try:
        document = cbor.decode(raw, limit_bytes=MAX_RECORD_BYTES)
    except Rejected as error:
        raise RecordMalformed(f"the vault's record is damaged: {error.message}") from error
    match document:
        case {"format": str() as form, "id": bytes() as vault_id, "slots": [*entries], **rest} if (
            not rest and form == _FORMAT and len(vault_id) == ID_BYTES and entries
        ):
            pass
        case _:
            raise RecordMalformed("the vault's record is malformed or of another version")
    slots: list[dict[str, cbor.Value]] = []
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("kind"), str):
            raise RecordMalformed("a slot of the vault's record is malformed")
        slots.append({str(name): value for name, value in entry.items()})
    return vault_id, slots


def _unwrap(unlocker: Unlocker, slots: list[dict[str, cbor.Value]], context: bytes) -> Secret:
    """Return the vault's key from the first slot that this unlocker opens."""
    refused: UnlockRefused | None = None
    for slot in slots:
        if slot["kind"] == unlocker.kind:
            try:
                return unlocker.unwrap({name: value for name, value in slot.items() if name != "kind"}, context)
            except UnlockRefused as error:
                refused = error
    kinds = ", ".join(sorted({str(slot["kind"]) for slot in slots}))
    raise refused or UnlockRefused(f"the vault opens with {kinds}, not with a {unlocker.kind}", needs=kinds)
