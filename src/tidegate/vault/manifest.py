"""The vault's listing: which items there are and exactly which file belongs to each. Pure.

Encrypted and authenticated as a whole; its generation rises with every change and is anchored in a counter of the
key store, where the unlocker has one. Bytes: docs/formats/vault.md.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.base.errors import Rejected
from tidegate.crypto import cbor
from tidegate.crypto.aead import TAG_BYTES, open_aes256gcm, seal_aes256gcm
from tidegate.vault.errors import AnchorMismatch, ManifestAltered, VaultFull, VaultRolledBack
from tidegate.vault.format import ID_BYTES, MAC_BYTES, Expected, VaultKeys, check_name

MAX_ITEMS = cbor.MAX_ITEMS
MAX_MANIFEST_BYTES = 96 << 20  # the largest listing: every item with the longest name
_MAGIC = b"TGVMANI1"
_HEAD = struct.Struct(">8s16sQ12s")  # magic, vault id, generation, nonce


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The items of a vault by name, at one ``generation`` of the vault."""

    generation: int
    items: Mapping[str, Expected]


def encode_manifest(manifest: Manifest, *, vault_id: bytes, nonce: bytes, keys: VaultKeys) -> bytes:
    """Return the manifest's file; raise ``vault.folder.full`` above 65,536 items."""
    if len(manifest.items) > MAX_ITEMS:
        raise VaultFull(f"a vault holds at most {MAX_ITEMS} items")
    items = {
        name: [item.file_id, item.generation, item.sequence, item.length_bytes, item.mac]
        for name, item in manifest.items.items()
    }
    head = _HEAD.pack(_MAGIC, vault_id, manifest.generation, nonce)
    return head + seal_aes256gcm(keys.manifest.view(), nonce, cbor.encode(items), head)


def verify_manifest(raw: bytes, *, vault_id: bytes, keys: VaultKeys) -> Manifest:
    """Return the listing if it is this vault's and unaltered, else raise ``vault.manifest.altered``.

    Whether it is the newest is not checked: see ``verify_anchor``.
    """
    if len(raw) < _HEAD.size + TAG_BYTES:
        raise ManifestAltered("the vault's listing is cut off", size=len(raw))
    head, sealed = raw[: _HEAD.size], raw[_HEAD.size :]
    magic, found_id, generation, nonce = _HEAD.unpack(head)
    if magic != _MAGIC or found_id != vault_id:
        raise ManifestAltered("the file is no listing of this vault")
    try:
        document = cbor.decode(
            open_aes256gcm(keys.manifest.view(), nonce, sealed, head), limit_bytes=MAX_MANIFEST_BYTES
        )
    except Rejected as error:
        raise ManifestAltered("the vault's listing is not as it was written") from error
    if not isinstance(document, dict):
        raise ManifestAltered("the vault's listing is no map")
    return Manifest(generation=generation, items={_name(key): _parse_item(value) for key, value in document.items()})


def verify_anchor(generation: int, counter: int) -> None:
    """Return if a manifest of ``generation`` is the newest, by the key store's counter.

    The manifest is written first and the counter moved then, so after a power cut between the two it may be one
    ahead. Raises ``vault.manifest.rollback`` for an older one, ``vault.anchor.mismatch`` for one that is too new.
    """
    if generation < counter:
        raise VaultRolledBack(
            f"the vault is of generation {generation}, the counter at {counter}", found=generation, expected=counter
        )
    if generation > counter + 1:
        raise AnchorMismatch(
            f"the vault is of generation {generation}, the counter only at {counter}", found=generation, counter=counter
        )


def _name(value: cbor.Value) -> str:
    if not isinstance(value, str):
        raise ManifestAltered("a name in the vault's listing is no text")
    return check_name(value)


def _parse_item(value: cbor.Value) -> Expected:
    match value:
        case [bytes() as file_id, int() as generation, int() as sequence, int() as length, bytes() as mac] if (
            len(file_id) == ID_BYTES and len(mac) == MAC_BYTES
        ):
            return Expected(file_id=file_id, generation=generation, sequence=sequence, length_bytes=length, mac=mac)
    raise ManifestAltered("an item in the vault's listing is malformed")
