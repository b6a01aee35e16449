"""The vault's manifest: which table is in force, how far its journal counts, how new all of it is. Pure.

Encrypted and authenticated as a whole; its generation is anchored in a counter of the key store, where the unlocker has
one. Through the table's tags it authenticates every item. Bytes: docs/formats/vault.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tidegate.base.errors import Rejected
from tidegate.crypto import cbor
from tidegate.crypto.aead import TAG_BYTES, open_aes256gcm, seal_aes256gcm
from tidegate.vault.errors import AnchorMismatch, ManifestAltered, VaultRolledBack
from tidegate.vault.format import Expected, VaultKeys
from tidegate.vault.listing import decode_item, encode_item

MAX_MANIFEST_BYTES = 4096
SALT_BYTES = 32
_MAGIC = b"TGVMANI2"
_HEAD = struct.Struct(">8s16sI12s")  # magic, vault id, epoch, nonce
_MEMBERS = {"generation", "anchor", "clean", "uncounted", "number", "snapshot", "salt", "journal", "tag", "record"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The state of a vault at ``generation``, the number of its changes. ``anchor`` is how many of them were counted in
    the key store that anchors the vault: those made while it was open with another unlocker are not, and ``uncounted``
    says that there are such.

    ``number`` names the files of the table; ``snapshot`` is what its snapshot has to be. While ``clean`` the journal
    has exactly ``journal_bytes`` and ends with ``journal_tag``; otherwise it has at least those and may go on.
    ``record_version`` is the oldest record that counts.
    """

    epoch: int
    generation: int
    anchor: int
    clean: bool
    uncounted: bool
    number: int
    snapshot: Expected
    salt: bytes
    journal_bytes: int
    journal_tag: bytes
    record_version: int


def encode_manifest(manifest: Manifest, *, vault_id: bytes, nonce: bytes, keys: VaultKeys) -> bytes:
    """Return the manifest's file."""
    document = {
        "generation": manifest.generation,
        "anchor": manifest.anchor,
        "clean": manifest.clean,
        "uncounted": manifest.uncounted,
        "number": manifest.number,
        "snapshot": encode_item(manifest.snapshot),
        "salt": manifest.salt,
        "journal": manifest.journal_bytes,
        "tag": manifest.journal_tag,
        "record": manifest.record_version,
    }
    head = _HEAD.pack(_MAGIC, vault_id, manifest.epoch, nonce)
    return head + seal_aes256gcm(keys.manifest.view(), nonce, cbor.encode(document), head)


def manifest_epoch(raw: bytes, *, vault_id: bytes) -> int:
    """Return the epoch whose keys the manifest is under, **unverified**, or raise ``vault.manifest.altered``."""
    if len(raw) < _HEAD.size + TAG_BYTES:
        raise ManifestAltered("the vault's manifest is cut off", size=len(raw))
    magic, found_id, epoch, _ = _HEAD.unpack(raw[: _HEAD.size])
    if magic != _MAGIC or found_id != vault_id:
        raise ManifestAltered("the file is no manifest of this vault")
    return int(epoch)


def verify_manifest(raw: bytes, *, vault_id: bytes, keys: VaultKeys) -> Manifest:
    """Return the manifest if it is this vault's and unaltered, else raise ``vault.manifest.altered``.

    Whether it is the newest is not checked: see ``verify_anchor``.
    """
    epoch = manifest_epoch(raw, vault_id=vault_id)
    head, sealed = raw[: _HEAD.size], raw[_HEAD.size :]
    try:
        opened = open_aes256gcm(keys.manifest.view(), head[-12:], sealed, head)
        document = cbor.decode(opened, limit_bytes=MAX_MANIFEST_BYTES)
    except Rejected as error:
        raise ManifestAltered("the vault's manifest is not as it was written") from error
    match document:
        case dict() if document.keys() != _MEMBERS:
            pass
        case {
            "generation": int() as generation,
            "anchor": int() as anchor,
            "clean": bool() as clean,
            "uncounted": bool() as uncounted,
            "number": int() as number,
            "snapshot": bytes() as snapshot,
            "salt": bytes() as salt,
            "journal": int() as journal_bytes,
            "tag": bytes() as tag,
            "record": int() as record_version,
        } if len(salt) == SALT_BYTES and len(tag) == TAG_BYTES:
            return Manifest(
                epoch=epoch,
                generation=generation,
                anchor=anchor,
                clean=clean,
                uncounted=uncounted,
                number=number,
                snapshot=decode_item(snapshot),
                salt=salt,
                journal_bytes=journal_bytes,
                journal_tag=tag,
                record_version=record_version,
            )
    raise ManifestAltered("the vault's manifest is malformed")


def verify_anchor(anchor: int, counter: int) -> None:
    """Return if a vault with this ``anchor`` is the newest, by the key store's counter.

    The journal is written first and the counter moved then, so after a power cut between the two it may be one
    ahead. Raises ``vault.manifest.rollback`` for an older one, ``vault.anchor.mismatch`` for one that is too new.
    """
    if anchor < counter:
        raise VaultRolledBack(f"the vault is at {anchor}, the counter at {counter}", found=anchor, expected=counter)
    if anchor > counter + 1:
        raise AnchorMismatch(f"the vault is at {anchor}, the counter only at {counter}", found=anchor, counter=counter)


def table_path_name() -> str:
    """Return the path that a snapshot is bound to; no item can have it."""
    return "\0table"
