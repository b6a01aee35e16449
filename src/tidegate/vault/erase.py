"""The end of a vault: its keys are destroyed where they live, then on the storage, and what was done is written down.

Touches: the key stores' keys, the vault's folder. Needs no unlocking: a device that is taken away erases what it cannot
open. Receipt: docs/formats/vault.md, "Erasure receipt".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.durable import read_file_bounded, sync_folder, translate_os_errors
from tidegate.base.errors import Fault, InputTooLarge, Rejected, StorageMissing, TidegateError
from tidegate.base.lock import FolderLock
from tidegate.crypto import cbor
from tidegate.crypto.cose import sign_envelope, verify_envelope
from tidegate.crypto.signing import Signer
from tidegate.crypto.trust import TrustPolicy
from tidegate.keys.errors import KeyMissing
from tidegate.keys.store import KeyStore
from tidegate.vault.errors import EraseIncomplete, ReceiptMalformed, VaultBusy
from tidegate.vault.files import erase_file
from tidegate.vault.keyring import require_vault_folder
from tidegate.vault.record import MAX_RECORD_BYTES, Record, Slot, parse_record, slot_context

CONTEXT = "tidegate.vault-erasure.v1"
MAX_RECEIPT_BYTES = 65_536
_ROUND_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReceipt:
    """What was done: ``document`` in words and numbers, ``signed`` as an envelope if there was a signer."""

    document: Mapping[str, object]
    signed: bytes | None


def erase_vault(
    folder: Path, providers: Mapping[str, KeyStore], *, reason: str, signer: Signer | None, now_s: float
) -> EraseReceipt:
    """Make everything in the vault unreadable for ever, prove it as far as it can be, and return the receipt.

    1. The keys of ``providers`` (by the name in the vault's slots) are destroyed; each then must refuse what it sealed.
    2. Record, manifest, redo file and the headers of every file are overwritten, read back, and the files removed. In
    this order: if the power goes after 1, the keys are gone whatever the storage keeps; calling it again goes on.

    Slots of other kinds (passphrase, drive, key server, escrow), and key store slots without a provider, are named as
    left: a copy of the storage taken before opens with them. Raises ``vault.erase.incomplete`` if a key still works
    or a byte could not be overwritten; everything else was erased all the same. ``vault.folder.busy`` if it is in use.
    """
    _require_something(folder)
    lock = FolderLock(folder, wait_s=2.0, busy=VaultBusy)
    try:
        raw = _read_raw(folder)
        record = _read_record(raw)
        slots = [_erase_slot(record, slot, providers) for slot in record.slots] if record else []
        failures = [str(slot["proof"]) for slot in slots if slot["state"] == "failed"]
        files, failed = _erase_folder(folder)
        failures += failed
    finally:
        lock.release()
    document: dict[str, object] = {
        "vault": record.vault_id.hex() if record else None,
        "record_sha256": hashlib.sha256(raw).hexdigest(),
        "erased_at": int(now_s),
        "reason": reason,
        "slots": slots,
        "files_erased": files,
        "failures": failures,
    }
    signed = sign_envelope(CONTEXT, cbor.encode(document), [signer]) if signer is not None else None
    if failures:
        raise EraseIncomplete(f"not everything could be erased: {failures[0]}", failures=len(failures))
    return EraseReceipt(document=document, signed=signed)


def verify_receipt(raw: bytes, trust: TrustPolicy) -> Mapping[str, object]:
    """Return what an erasure receipt says if ``trust`` vouches for it; raise ``crypto.signature.*`` and the like."""
    envelope = verify_envelope(raw, context=CONTEXT, trust=trust)
    document = cbor.decode(envelope.payload, limit_bytes=MAX_RECEIPT_BYTES)
    if not isinstance(document, dict) or "vault" not in document:
        raise ReceiptMalformed("the envelope holds no erasure receipt")
    return {str(name): value for name, value in document.items()}


def _require_something(folder: Path) -> None:
    """Raise ``base.storage.missing`` unless there is a vault, or what an interrupted erasure left of one."""
    if not (folder / "table").is_dir():
        require_vault_folder(folder)


def _read_raw(folder: Path) -> bytes:
    """Return the record; nothing if an interrupted erasure removed it already, or it is larger than any."""
    try:
        return read_file_bounded(folder / "vault.cbor", limit_bytes=MAX_RECORD_BYTES)
    except (StorageMissing, InputTooLarge):
        return b""


def _read_record(raw: bytes) -> Record | None:
    """Return the record, or None: a damaged vault is erased as well, only nobody knows its slots."""
    try:
        return parse_record(raw)[0]
    except Rejected:
        return None


def _erase_slot(record: Record, slot: Slot, providers: Mapping[str, KeyStore]) -> dict[str, object]:
    """Destroy the key behind a slot and have it refuse; return the receipt's line."""
    line: dict[str, object] = {"number": slot.number, "kind": slot.kind, "key": "", "provider": ""}
    name, sealed = slot.sealed.get("key"), slot.sealed.get("sealed")
    if slot.kind != "keystore" or not isinstance(name, str) or not isinstance(sealed, bytes):
        return {**line, "state": "left", "proof": f"a {slot.kind} is not this machine's to destroy"}
    store = providers.get(name)
    if store is None:
        return {**line, "key": name, "state": "left", "proof": "its key store was not given"}
    line |= {"key": name, "provider": store.capabilities().provider}
    try:
        with contextlib.suppress(KeyMissing):  # by an erasure that was interrupted
            store.destroy(name)
        store.unseal(name, sealed, slot_context(record.vault_id)).wipe()
    except (KeyMissing, Rejected) as error:
        return {**line, "state": "destroyed", "proof": f"the provider refuses to unseal: {error.code}"}
    except TidegateError as error:
        return {**line, "state": "failed", "proof": f"slot {slot.number}: {error.code}"}
    return {**line, "state": "failed", "proof": f"slot {slot.number}: the key still unseals"}


def _erase_folder(folder: Path) -> tuple[int, list[str]]:
    """Overwrite what unlocks and what wraps, remove every file; return how many, and which could not be."""
    count, failures = 0, []
    for path in _files(folder):
        try:
            if path.parent == folder:
                _overwrite_whole(path)
            erase_file(path)
            count += 1
        except Fault as error:
            failures.append(f"{path.name}: {error.code}")
    for place in ("items", "new", "table", ""):
        with contextlib.suppress(Fault), translate_os_errors(folder), contextlib.suppress(FileNotFoundError):
            sync_folder(folder / place)
    return count, failures


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files, the record first: without it nothing opens."""
    if os.path.lexists(folder / "vault.cbor"):
        yield folder / "vault.cbor"
    for place in (".", "table", "items", "new"):
        with translate_os_errors(folder):
            found = sorted((folder / place).iterdir()) if (folder / place).is_dir() else []
        yield from (path for path in found if path.name not in ("lock", "vault.cbor") and not path.is_dir())


def _overwrite_whole(path: Path) -> None:
    """Overwrite a small file with random bytes, durable, and read them back."""
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(descriptor).st_size
            for offset in range(0, size, _ROUND_BYTES):
                noise = os.urandom(min(_ROUND_BYTES, size - offset))
                os.pwrite(descriptor, noise, offset)
                os.fsync(descriptor)
                if os.pread(descriptor, len(noise), offset) != noise:
                    raise EraseIncomplete(f"{path.name} does not hold what was written over it", file=path.name)
        finally:
            os.close(descriptor)
