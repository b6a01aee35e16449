"""The vault's record ``vault.cbor``: who opens the vault, and the keys that this gives. Pure.

Each slot has a key pair of its own; its private seed is wrapped by an unlocker, and the vault's root key is wrapped for
its public half. So a new root key is given to every slot without asking for a passphrase or a drive. The root key wraps
the vault key of each epoch (there are several only while the vault is re-keyed) and the vault's identity key, which
signs the record. Each slot vouches, by a code under its seed, for the identity: whoever can write to the storage knows
neither, and cannot put a vault of his own in the place of this one. Bytes: docs/formats/vault.md.
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
from tidegate.crypto.errors import AeadFailed, KemRefused, SignatureInvalid
from tidegate.crypto.kem import PUBLIC_BYTES, kem_unwrap, kem_wrap
from tidegate.crypto.memory import ProtectedSecret
from tidegate.crypto.seedsign import PUBLIC_BYTES as PUBLIC_BYTES_OF_IDENTITY
from tidegate.crypto.seedsign import SIGNATURE_BYTES, seed_public, seed_sign, seed_verify
from tidegate.vault.errors import PaddingUnknown, RecordAltered, RecordMalformed, RecordUnsupported, UnlockRefused
from tidegate.vault.format import ID_BYTES
from tidegate.vault.padding import Padding

MAX_RECORD_BYTES = 131_072  # 32 slots of 3 KiB, some of them with a certificate or a key server's answer
MAX_SLOTS = 32
MAX_LABEL_BYTES = 64
MAX_EPOCHS = 4  # one, and those that re-keyings left which were interrupted by the removal of an unlocker
ESCROW_KIND = "escrow"  # the one sort of slot that is made without its seed
_FORMAT = "tidegate.vault.v2"
_BOUND_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One way to open the vault. ``sealed`` is the unlocker's own; ``bound`` vouches for the vault's identity;
    ``wrapped`` is the root key for ``public``."""

    number: int
    label: str
    kind: str
    public: bytes
    sealed: Mapping[str, cbor.Value]
    bound: bytes = b""
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
    identity: bytes = b""  # public half
    identity_key: bytes = b""  # its seed, wrapped under the root key

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
    return _wrap_under(record, root, vault_key, aad=_epoch_aad(record.vault_id, epoch), nonce=nonce)


def unwrap_vault_key(record: Record, root: Secret, epoch: int) -> ProtectedSecret:
    """Return the vault key of ``epoch``; raise ``vault.record.altered``."""
    return _unwrap_under(record, root, record.vault_keys[epoch], aad=_epoch_aad(record.vault_id, epoch))


def wrap_identity(record: Record, root: Secret, seed: Secret, *, nonce: bytes) -> Record:
    """Return the record with the identity's seed wrapped under ``root``."""
    sealed = _wrap_under(record, root, seed, aad=_identity_aad(record.vault_id), nonce=nonce)
    return replace(record, identity=seed_public(seed), identity_key=sealed)


def unwrap_identity(record: Record, root: Secret) -> ProtectedSecret:
    """Return the identity's seed; raise ``vault.record.altered``."""
    return _unwrap_under(record, root, record.identity_key, aad=_identity_aad(record.vault_id))


def _wrap_under(record: Record, root: Secret, secret: Secret, *, aad: bytes, nonce: bytes) -> bytes:
    with _root_wrapping_key(root, record.vault_id) as key:
        return nonce + seal_aes256gcm(key.view(), nonce, secret.view(), aad)


def _unwrap_under(record: Record, root: Secret, sealed: bytes, *, aad: bytes) -> ProtectedSecret:
    with _root_wrapping_key(root, record.vault_id) as key:
        try:
            return ProtectedSecret.fill(
                KEY_BYTES,
                lambda target: open_aes256gcm_into(key.view(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], aad, target),
            )
        except AeadFailed as error:
            raise RecordAltered("a key in the record does not unwrap") from error


def bind_slot(slot: Slot, seed: Secret, record: Record) -> Slot:
    """Return the slot with its code over the vault's identity, by the seed that is at hand when it is made."""
    return replace(slot, bound=_bound(slot.number, seed, record))


def verify_slot(slot: Slot, seed: Secret, record: Record) -> None:
    """Return if the slot was made for the vault with this identity, else raise ``vault.record.altered``.

    A slot that was made from a public half alone (escrow) vouches for nothing: its opener looks at the identity's
    fingerprint.
    """
    if slot.kind == ESCROW_KIND:
        return
    if not hmac.compare_digest(slot.bound, _bound(slot.number, seed, record)):
        raise RecordAltered("the record is of a vault that this slot was not made for")


def encode_record(record: Record, identity: Secret) -> bytes:
    """Return the file, signed by the vault's identity."""
    document = _document(record)
    return cbor.encode({**document, "signature": seed_sign(identity, _signed(document))})


def parse_record(raw: bytes) -> tuple[Record, bytes]:
    """Return what the file says, **unverified**, and its signature; ``vault.record.malformed``, ``.unsupported``."""
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
            "identity": bytes() as identity,
            "identity_key": bytes() as identity_key,
            "signature": bytes() as signature,
            **rest,
        } if (
            not rest
            and len(vault_id) == ID_BYTES
            and len(identity) == PUBLIC_BYTES_OF_IDENTITY
            and len(signature) == SIGNATURE_BYTES
            and 1 <= len(slots) <= MAX_SLOTS
        ):
            pass
        case _:
            raise RecordMalformed("the vault's record is malformed")
    if cipher not in (1, 2) or min(version, epoch) < 1 or epoch not in vault_keys or len(vault_keys) > MAX_EPOCHS:
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
        identity=identity,
        identity_key=identity_key,
    )
    if len({slot.number for slot in record.slots}) != len(record.slots):
        raise RecordMalformed("two slots of the record have one number")
    return record, signature


def verify_record(unverified: Record, signature: bytes) -> Record:
    """Return the record if its identity signed it, else raise ``vault.record.altered``.

    That the identity is the vault's own is for ``verify_slot``. Without both, who can write to the storage adds a
    public half of his own, or replaces the vault.
    """
    try:
        seed_verify(unverified.identity, signature, _signed(_document(unverified)))
    except SignatureInvalid as error:
        raise RecordAltered("the vault's record is not as this vault wrote it") from error
    return unverified


def _document(record: Record) -> dict[str, object]:
    slots = [
        {
            "number": slot.number,
            "label": slot.label,
            "kind": slot.kind,
            "public": slot.public,
            "sealed": dict(slot.sealed),
            "bound": slot.bound,
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
        "identity": record.identity,
        "identity_key": record.identity_key,
    }


def _signed(document: Mapping[str, object]) -> bytes:
    return b"tidegate.vault.v2 record\0" + cbor.encode(dict(document))


def _bound(number: int, seed: Secret, record: Record) -> bytes:
    """Return the code under a slot's seed over what the slot was made for."""
    info = b"tidegate.vault.v2 slot"
    with ProtectedSecret.fill(
        KEY_BYTES, lambda target: hkdf_sha256_into(seed.view(), salt=record.vault_id, info=info, target=target)
    ) as key:
        return hmac.digest(key.view(), record.identity + number.to_bytes(8, "big"), hashlib.sha256)


def _parse_slot(value: cbor.Value) -> Slot:
    match value:
        case {
            "number": int() as number,
            "label": str() as label,
            "kind": str() as kind,
            "public": bytes() as public,
            "sealed": dict() as sealed,
            "bound": bytes() as bound,
            "wrapped": bytes() as wrapped,
            **rest,
        } if (
            not rest
            and number >= 1
            and label.isprintable()
            and len(label.encode()) <= MAX_LABEL_BYTES
            and len(public) == PUBLIC_BYTES
            and len(bound) == (0 if kind == ESCROW_KIND else _BOUND_BYTES)
            and all(isinstance(name, str) for name in sealed)
        ):
            return Slot(
                number=number,
                label=label,
                kind=kind,
                public=public,
                sealed={str(name): member for name, member in sealed.items()},
                bound=bound,
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


def _identity_aad(vault_id: bytes) -> bytes:
    return b"tidegate.vault.v2 identity " + vault_id


def _root_wrapping_key(root: Secret, vault_id: bytes) -> ProtectedSecret:
    info = b"tidegate.vault.v2 wrapping"
    return ProtectedSecret.fill(
        KEY_BYTES, lambda target: hkdf_sha256_into(root.view(), salt=vault_id, info=info, target=target)
    )
