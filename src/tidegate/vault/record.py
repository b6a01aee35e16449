"""The vault's record ``vault.cbor``: who opens the vault, and the keys that this gives. Pure.

Each slot has a key pair of its own; its private seed is wrapped by an unlocker, and the vault's root key is wrapped for
its public half. So a new root key is given to every slot without asking for a passphrase or a drive. The root key wraps
the vault key of each epoch; there are two epochs only while the vault is re-keyed. Bytes: docs/formats/vault.md.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tidegate.base.errors import Rejected
from tidegate.crypto import cbor
from tidegate.crypto.aead import (
    KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    AeadAlgorithm,
    Secret,
    hkdf_sha256_into,
    open_aes256gcm_into,
    seal_aes256gcm,
)
from tidegate.crypto.errors import AeadFailed, KemRefused
from tidegate.crypto.kem import PUBLIC_BYTES, kem_unwrap, kem_wrap
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.errors import PaddingUnknown, RecordAltered, RecordMalformed, RecordUnsupported, UnlockRefused
from tidegate.vault.format import ID_BYTES, VaultKeys
from tidegate.vault.padding import Padding

MAX_RECORD_BYTES = 131_072  # 32 slots of 3 KiB, some of them with a certificate or a key server's answer
MAX_SLOTS = 32
MAX_LABEL_BYTES = 64
_FORMAT = "tidegate.vault.v2"
_MAC_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One way to open the vault. ``sealed`` is the unlocker's own; ``wrapped`` is the root key for ``public``."""

    number: int
    label: str
    kind: str
    public: bytes
    sealed: Mapping[str, cbor.Value]
    wrapped: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What stands in ``vault.cbor``. ``unverified`` until ``verify_record`` returned it."""

    vault_id: bytes
    version: int
    epoch: int
    algorithm: AeadAlgorithm
    padding: Padding
    slots: tuple[Slot, ...]
    anchor: int = 0  # number of the slot whose key store counts, 0 for none
    vault_keys: Mapping[int, bytes] = field(default_factory=dict)

    def next_number(self) -> int:
        """Return a number that no slot has or had while others with higher ones stay."""
        return max((slot.number for slot in self.slots), default=0) + 1


def slot_context(vault_id: bytes) -> bytes:
    """Return what binds whatever an unlocker seals to this vault."""
    return _FORMAT.encode() + b" " + vault_id


def wrap_root(record: Record, root: Secret) -> Record:
    """Return the record with ``root`` wrapped for every slot."""
    slots = [
        replace(slot, wrapped=kem_wrap(slot.public, root, _slot_info(record.vault_id, slot.number)))
        for slot in record.slots
    ]
    return replace(record, slots=tuple(slots))


def unwrap_root(record: Record, slot: Slot, seed: Secret) -> ProtectedSecret:
    """Return the root key by a slot's private seed, or raise ``vault.unlock.refused``."""
    try:
        with kem_unwrap(seed, slot.wrapped, _slot_info(record.vault_id, slot.number)) as root:
            return ProtectedSecret(root.view())
    except KemRefused as error:
        raise UnlockRefused(f"slot {slot.number} does not open the vault", slot=slot.number) from error


def wrap_vault_key(record: Record, root: Secret, vault_key: Secret, *, epoch: int, nonce: bytes) -> bytes:
    """Return the vault key of ``epoch`` wrapped under the root key."""
    with _root_wrapping_key(root, record.vault_id) as key:
        return nonce + seal_aes256gcm(key.view(), nonce, vault_key.view(), _epoch_aad(record.vault_id, epoch))


def unwrap_vault_key(record: Record, root: Secret, epoch: int) -> ProtectedSecret:
    """Return the vault key of ``epoch``; raise ``vault.record.altered``."""
    sealed = record.vault_keys[epoch]
    aad = _epoch_aad(record.vault_id, epoch)
    with _root_wrapping_key(root, record.vault_id) as key:
        try:
            return ProtectedSecret.fill(
                KEY_BYTES,
                lambda target: open_aes256gcm_into(key.view(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad, target),
            )
        except AeadFailed as error:
            raise RecordAltered("a vault key in the record does not unwrap") from error


def encode_record(record: Record, keys: VaultKeys) -> bytes:
    """Return the file, authenticated under the record key of the newest epoch."""
    document = _document(record)
    return cbor.encode({**document, "mac": _mac(document, keys)})


def parse_record(raw: bytes) -> tuple[Record, bytes]:
    """Return what the file says, **unverified**, and its code; raise ``vault.record.malformed``, ``.unsupported``."""
    try:
        document = cbor.decode(raw, limit_bytes=MAX_RECORD_BYTES)
    except Rejected as error:
        raise RecordMalformed(f"the vault's record is damaged: {error.message}") from error
    match document:
        case {"format": str() as form, **_others} if form != _FORMAT:
            raise RecordUnsupported(f"the vault is of format {form[:40]!r}", format=form[:40])
        case {
            "format": str(),
            "id": bytes() as vault_id,
            "version": int() as version,
            "epoch": int() as epoch,
            "cipher": int() as cipher,
            "padding": str() as padding,
            "slots": [*slots],
            "anchor": int() as anchor,
            "keys": dict() as vault_keys,
            "mac": bytes() as mac,
            **rest,
        } if not rest and len(vault_id) == ID_BYTES and len(mac) == _MAC_BYTES and 1 <= len(slots) <= MAX_SLOTS:
            pass
        case _:
            raise RecordMalformed("the vault's record is malformed")
    if cipher not in (1, 2) or min(version, epoch) < 1 or epoch not in vault_keys or len(vault_keys) > 2:
        raise RecordMalformed("the vault's record contradicts itself")
    record = Record(
        vault_id=vault_id,
        version=version,
        epoch=epoch,
        algorithm=AeadAlgorithm(cipher),
        padding=_parse_padding(padding),
        slots=tuple(_parse_slot(slot) for slot in slots),
        anchor=anchor,
        vault_keys=dict(_parse_vault_keys(vault_keys)),
    )
    if len({slot.number for slot in record.slots}) != len(record.slots):
        raise RecordMalformed("two slots of the record have one number")
    return record, mac


def verify_record(unverified: Record, mac: bytes, keys: VaultKeys) -> Record:
    """Return the record if the vault's own keys authenticate it, else raise ``vault.record.altered``.

    Without this, who can write to the storage adds a public key of his own and waits for the next re-keying.
    """
    if not hmac.compare_digest(_mac(_document(unverified), keys), mac):
        raise RecordAltered("the vault's record is not as this vault wrote it")
    return unverified


def _document(record: Record) -> dict[str, object]:
    slots = [
        {
            "number": slot.number,
            "label": slot.label,
            "kind": slot.kind,
            "public": slot.public,
            "sealed": dict(slot.sealed),
            "wrapped": slot.wrapped,
        }
        for slot in record.slots
    ]
    return {
        "format": _FORMAT,
        "id": record.vault_id,
        "version": record.version,
        "epoch": record.epoch,
        "cipher": record.algorithm.value,
        "padding": record.padding.rule,
        "slots": slots,
        "anchor": record.anchor,
        "keys": dict(record.vault_keys),
    }


def _mac(document: Mapping[str, object], keys: VaultKeys) -> bytes:
    return hmac.digest(keys.record.view(), cbor.encode(dict(document)), hashlib.sha256)


def _parse_slot(value: cbor.Value) -> Slot:
    match value:
        case {
            "number": int() as number,
            "label": str() as label,
            "kind": str() as kind,
            "public": bytes() as public,
            "sealed": dict() as sealed,
            "wrapped": bytes() as wrapped,
            **rest,
        } if (
            not rest
            and number >= 1
            and label.isprintable()
            and len(label.encode()) <= MAX_LABEL_BYTES
            and len(public) == PUBLIC_BYTES
            and all(isinstance(name, str) for name in sealed)
        ):
            return Slot(
                number=number,
                label=label,
                kind=kind,
                public=public,
                sealed={str(name): member for name, member in sealed.items()},
                wrapped=wrapped,
            )
    raise RecordMalformed("a slot of the vault's record is malformed")


def _parse_vault_keys(values: Mapping[cbor.Value, cbor.Value]) -> Iterable[tuple[int, bytes]]:
    for epoch, sealed in values.items():
        good = isinstance(epoch, int) and isinstance(sealed, bytes)
        if not good or len(sealed) != NONCE_BYTES + KEY_BYTES + TAG_BYTES:  # type: ignore[arg-type]  # bytes by then
            raise RecordMalformed("a vault key of the record is malformed")
        yield epoch, sealed  # type: ignore[misc]  # both were looked at


def _parse_padding(rule: str) -> Padding:
    try:
        return Padding(rule)
    except PaddingUnknown as error:
        raise RecordMalformed("the record's padding is unknown") from error


def _slot_info(vault_id: bytes, number: int) -> bytes:
    return b"tidegate.vault.v2 root " + vault_id + number.to_bytes(8, "big")


def _epoch_aad(vault_id: bytes, epoch: int) -> bytes:
    return b"tidegate.vault.v2 key " + vault_id + epoch.to_bytes(8, "big")


def _root_wrapping_key(root: Secret, vault_id: bytes) -> ProtectedSecret:
    info = b"tidegate.vault.v2 wrapping"
    return ProtectedSecret.fill(
        KEY_BYTES, lambda target: hkdf_sha256_into(root.view(), salt=vault_id, info=info, target=target)
    )
