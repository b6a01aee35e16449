"""The end of a vault: its keys are destroyed where they live, then on the storage, and what was done is written down.

Touches: the key stores' keys, the vault's folder. Needs no unlocking: a device that is taken away erases what it cannot
open. The record is read for the receipt alone: nobody can verify it without opening the vault, so it decides nothing.
Receipt: docs/formats/vault.md, "Erasure receipt".
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.durable import require_private, translate_os_errors
from tidegate.base.errors import Fault, Rejected, StorageFailed, StorageMissing, TidegateError
from tidegate.base.lock import FolderLock
from tidegate.crypto import cbor
from tidegate.crypto.cose import sign_envelope, verify_envelope
from tidegate.crypto.signing import Signer
from tidegate.crypto.trust import TrustPolicy
from tidegate.keys.errors import KeyMissing
from tidegate.keys.store import KeyInfo, KeyStore
from tidegate.vault.errors import EraseIncomplete, ReceiptMalformed, VaultBusy
from tidegate.vault.files import pwrite_all
from tidegate.vault.format import BODY_OFFSET
from tidegate.vault.record import MAX_RECORD_BYTES, Record, Slot, parse_record, slot_context
from tidegate.vault.threshold import MAX_PARTS

CONTEXT = "tidegate.vault-erasure.v1"
MAX_RECEIPT_BYTES = 65_536
MAX_FAILURES = 32  # told one by one; a receipt has to find room in an envelope, and all items may fail alike
MAX_TEXT = 64  # characters of a name that the record or the folder gives
_MAX_DEPTH = 4  # of shares in shares: nobody has more than one, but the record is not to be trusted
_MAX_WHOLE_BYTES = 64 << 20  # of a file that is overwritten to its end: what the vault itself writes there is smaller
_ROUND_BYTES = 1 << 20
_FOLDERS = ("table", "items", "new")
_MARKS = {"vault.cbor", "table", "items"}  # one of them is in every vault, and in what interrupted erasures leave
_READ_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AS_IT_IS = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC  # a pipe or a link in a file's place neither hangs nor leads

Keys = Sequence[tuple[KeyStore, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReceipt:
    """What was done: ``document`` in words and numbers, ``signed`` as an envelope if there was a signer."""

    document: Mapping[str, object]
    signed: bytes | None


def erase_vault(folder: Path, keys: Keys, *, reason: str, signer: Signer | None, now_s: float) -> EraseReceipt:
    """Make everything in the vault unreadable for ever, prove it as far as it can be, and return the receipt.

    1. **Every** key of ``keys`` (pairs of a store and a name; a mapping of names to stores is taken too) is destroyed,
    whatever the folder holds, whether it is in use, or there. Each then must refuse: what it sealed, else to seal.
    2. Record, manifest, redo file and the headers of every file are overwritten, read back, and the files removed. In
    this order: if the power goes after 1, the keys are gone whatever the storage keeps; calling it again goes on.
    3. The receipt is signed.

    What the record names of other kinds (passphrase, drive, key server, escrow), or without a key here, is told as
    left: a copy of the storage taken before opens with it. Raises ``vault.erase.incomplete`` if a key still works, a
    byte could not be overwritten, something led out of the folder, or the receipt could not be signed; all the rest was
    done all the same, and the field ``receipt`` has the document as JSON. Without any key: ``base.storage.missing``,
    ``base.permissions.unsafe``, ``vault.folder.busy``, and then nothing was done.
    """
    given = list(keys)
    fates = [_destroy(store, name) for store, name in given]
    raw, state = _read_raw(folder)
    record = _parse(raw)
    lines = [_report_key(*key, fate, record) for key, fate in zip(given, fates, strict=True)]
    failures = [f"key {line['key']}: {line['proof']}" for line in lines if line["state"] == "failed"]
    files = 0
    try:
        files, failed = _erase_folder(folder)
        failures += failed
    except TidegateError as error:
        if not given:
            raise
        if not isinstance(error, StorageMissing):  # nothing there: nothing to erase
            failures.append(f"the vault's folder: {error.code}")
    document: dict[str, object] = {
        "vault": record.vault_id.hex() if record else None,
        "record": state if record or state == "missing" else "unreadable",
        "record_sha256": hashlib.sha256(raw).hexdigest(),
        "erased_at": int(now_s),
        "reason": reason,
        "keys": lines,
        "slots": [_report_slot(slot, lines) for slot in record.slots] if record else [],
        "files_erased": files,
        "failures": _first(failures),
    }
    return EraseReceipt(document=document, signed=_sign(document, signer))


def require_erasable(folder: Path) -> None:
    """Return if ``erase_vault`` would find a vault there, or what is left of one, and nobody else reaches into it.

    For who asks people: it keeps a mistyped folder from costing a key. Raises ``base.storage.missing``,
    ``base.permissions.unsafe``.
    """
    with _opened(folder) as place:
        _require_marks(folder, place)


def verify_receipt(raw: bytes, trust: TrustPolicy) -> Mapping[str, object]:
    """Return what an erasure receipt says if ``trust`` vouches for it; raise ``crypto.signature.*`` and the like."""
    envelope = verify_envelope(raw, context=CONTEXT, trust=trust)
    document = cbor.decode(envelope.payload, limit_bytes=MAX_RECEIPT_BYTES)
    if not isinstance(document, dict) or "vault" not in document:
        raise ReceiptMalformed("the envelope holds no erasure receipt")
    return {str(name): value for name, value in document.items()}


def _sign(document: dict[str, object], signer: Signer | None) -> bytes | None:
    """Return the receipt's envelope; whatever is not as it should be raises with the document."""
    failures, signed = document["failures"], None
    if not failures and signer is not None:
        try:
            signed = sign_envelope(CONTEXT, cbor.encode(document), [signer])
        except TidegateError as error:
            failures = document["failures"] = [f"the receipt's signature: {error.code}"]
    if isinstance(failures, list) and failures:
        raise EraseIncomplete(
            f"not everything could be erased or signed: {failures[0]}",
            failures=len(failures),
            receipt=json.dumps(document, ensure_ascii=False),
        )
    return signed


def _first(failures: list[str]) -> list[str]:
    more = len(failures) - MAX_FAILURES
    return failures if more <= 0 else [*failures[:MAX_FAILURES], f"and {more} more"]


# -- keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fate:
    """What came between a key and its end, and whether its provider ends copies of it as well (None: nobody knows)."""

    refusal: TidegateError | None
    revocable: bool | None


def _destroy(store: KeyStore, name: str) -> _Fate:
    """Destroy the key. One store that fails keeps no other key alive."""
    revocable = None
    with contextlib.suppress(TidegateError):  # a store that cannot list may destroy all the same
        revocable = next((key.spec.policy.revocable for key in store.list_keys() if key.name == name), None)
    try:
        store.destroy(name)
    except TidegateError as error:
        return _Fate(refusal=error, revocable=revocable)
    return _Fate(refusal=None, revocable=revocable)


def _report_key(store: KeyStore, name: str, fate: _Fate, record: Record | None) -> dict[str, object]:
    """Return the receipt's line of a key after having it refuse."""
    provider, refusal = "unknown", fate.refusal
    with contextlib.suppress(TidegateError):
        provider = store.capabilities().provider
    sealed = [entry for entry in _iter_sealed(record) if entry[1] == name]
    line: dict[str, object] = {
        "key": _plain(name),
        "provider": provider,
        "slots": sorted({number for number, *_ in sealed}),
        "copies": "not proven",
    }
    if refusal is not None and not isinstance(refusal, KeyMissing):
        return {**line, "state": "failed", "proof": refusal.code}
    try:
        proof = _prove(store, name, [(raw, context) for _, _, raw, context in sealed])
    except EraseIncomplete as error:
        return {**line, "state": "failed", "proof": error.message}
    except TidegateError as error:  # it may live
        return {**line, "state": "failed", "proof": error.code}
    if refusal is not None:
        return {**line, "state": "missing", "proof": "the store had no such key: destroyed before, or never there"}
    return {**line, "state": "destroyed", "proof": proof, "copies": "dead" if fate.revocable else "not proven"}


def _prove(store: KeyStore, name: str, sealed: Sequence[tuple[bytes, bytes]]) -> str:
    """Return how the store refused to use the key; raise ``vault.erase.incomplete`` if it did not.

    Only ``keys.key.missing`` counts: a living key refuses what was damaged, too. Where the store refuses for another
    reason (this caller may not seal, say), it has to say so of destroying the key once more.
    """
    tried = "unseal what the record has of it" if sealed else "seal; the record has nothing that names it"
    for raw, context in sealed or ((b"", b""),):
        try:
            if sealed:
                store.unseal(name, raw, context).wipe()
            else:
                store.seal(name, bytes(32), CONTEXT.encode())
        except KeyMissing:
            continue
        except TidegateError as error:
            tried = f"destroy it once more; to use it: {error.code}"
            with contextlib.suppress(KeyMissing):
                store.destroy(name)
                raise EraseIncomplete("the store says that it destroyed the key, and has it still") from error
            continue
        raise EraseIncomplete(f"the key still {'unseals' if sealed else 'seals'}")
    listed: list[KeyInfo] = []
    with contextlib.suppress(TidegateError):  # another key of the store may be damaged
        listed = store.list_keys()
    if any(key.name == name for key in listed):
        raise EraseIncomplete("the store still lists the key")
    return f"{KeyMissing.code}: the provider refuses to {tried}"


def _iter_sealed(record: Record | None) -> Iterator[tuple[int, str, bytes, bytes]]:
    """Yield slot number, key name, sealed bytes and context of everything that a key store's key sealed."""
    if record is None:
        return
    for slot in record.slots:
        for found in _walk(slot.sealed, slot_context(record.vault_id), 0):
            yield (slot.number, *found)


def _walk(members: Mapping[str, cbor.Value], context: bytes, depth: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Look at what is there, not at the slot's kind: that can be altered."""
    match members:
        case {"key": str() as key, "sealed": bytes() as sealed}:
            yield key, sealed, context
    for number, share in enumerate(_shares(members, depth), 1):
        yield from _walk(share, context + b" share " + bytes([number]), depth + 1)


def _shares(members: Mapping[str, cbor.Value], depth: int) -> list[Mapping[str, cbor.Value]]:
    """Return the shares of a threshold slot, in order."""
    shares = members.get("shares")
    if not isinstance(shares, list) or depth >= _MAX_DEPTH:
        return []
    found: list[Mapping[str, cbor.Value]] = []
    for share in shares[:MAX_PARTS]:
        sealed = share.get("sealed") if isinstance(share, dict) else None
        found.append({str(name): value for name, value in sealed.items()} if isinstance(sealed, dict) else {})
    return found


# -- slots ------------------------------------------------------------------------------------------------------------


def _report_slot(slot: Slot, keys: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return the receipt's line of a slot, by what became of the keys that it names."""
    names = {
        state: {key["key"] for key in keys if key["state"] == state} for state in ("destroyed", "missing", "failed")
    }
    destroyed, missing = names["destroyed"] - names["failed"], names["missing"] - names["failed"]
    key = slot.sealed.get("key")
    name = _plain(key) if isinstance(key, str) else ""
    provider = next((key["provider"] for key in keys if key["key"] == name), "")
    line: dict[str, object] = {"number": slot.number, "kind": _plain(slot.kind), "key": name, "provider": provider}
    if _is_dead(slot.sealed, destroyed, 0):
        return {**line, "state": "destroyed", "proof": f"{KeyMissing.code}: the provider refuses to unseal"}
    if _is_dead(slot.sealed, destroyed | missing, 0):
        return {**line, "state": "missing", "proof": "the store had no such key: destroyed before, or never there"}
    if key in names["failed"]:
        return {**line, "state": "failed", "proof": "its key still works, or nobody knows"}
    if name:
        return {**line, "state": "left", "proof": "its key store was not given"}
    shares = _shares(slot.sealed, 0)
    if shares:
        dead = sum(_is_dead(share, destroyed | missing, 1) for share in shares)
        return {**line, "state": "left", "proof": f"{dead} of its {len(shares)} shares are destroyed, too few"}
    return {**line, "state": "left", "proof": f"a {_plain(slot.kind)} is not this machine's to destroy"}


def _is_dead(members: Mapping[str, cbor.Value], dead: set[object], depth: int) -> bool:
    """Return whether a slot, or a share, cannot be opened any more when the keys in ``dead`` are gone."""
    key = members.get("key")
    if isinstance(key, str):
        return key in dead
    shares, need = _shares(members, depth), members.get("need")
    alive = sum(not _is_dead(share, dead, depth + 1) for share in shares)
    return bool(shares) and isinstance(need, int) and alive < need


def _plain(text: str) -> str:
    """Return what others wrote so that it can stand in a receipt and on a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_TEXT])


# -- the record -------------------------------------------------------------------------------------------------------


def _read_raw(folder: Path) -> tuple[bytes, str]:
    """Return the record's bytes and ``read``; or nothing and ``missing`` or ``unreadable``."""
    try:
        with _opened(folder) as place, translate_os_errors(folder / "vault.cbor"):
            descriptor = os.open("vault.cbor", os.O_RDONLY | _AS_IT_IS, dir_fd=place)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    return b"", "unreadable"
                raw = os.read(descriptor, MAX_RECORD_BYTES + 1)
                return (raw, "read") if len(raw) <= MAX_RECORD_BYTES else (b"", "unreadable")
            finally:
                os.close(descriptor)
    except StorageMissing:
        return b"", "missing"
    except TidegateError:
        return b"", "unreadable"


def _parse(raw: bytes) -> Record | None:
    """Return the record, **unverified**, or None: a damaged vault is erased as well, only nobody knows its slots."""
    try:
        return parse_record(raw)[0]
    except Rejected:
        return None


# -- the folder -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Give the folder as a descriptor, by which everything in it is reached: no link leads out of it."""
    require_private(folder)
    with translate_os_errors(folder):
        place = os.open(folder, _READ_FOLDER)
    try:
        yield place
    finally:
        os.close(place)


def _require_marks(folder: Path, place: int) -> None:
    with translate_os_errors(folder):
        names = set(os.listdir(place))
    if not names & _MARKS:
        raise StorageMissing(f"{folder} holds no vault", path=str(folder))


def _erase_folder(folder: Path) -> tuple[int, list[str]]:
    """Overwrite what unlocks and what wraps, remove every file; return how many, and which could not be."""
    with _opened(folder) as place:
        _require_marks(folder, place)
        failures: list[str] = []
        with _locked(folder, place, failures):
            count = _erase_entries(place, failures, whole=True)  # the record is among these: without it nothing opens
            for name in _FOLDERS:
                count += _erase_inner(place, name, failures)
            _note(failures, folder.name, lambda: os.fsync(place))
    return count, failures


@contextlib.contextmanager
def _locked(folder: Path, place: int, failures: list[str]) -> Iterator[None]:
    """Hold the vault's lock; raise ``vault.folder.busy``. A lock that cannot be made keeps nothing from erasure."""
    with contextlib.suppress(OSError):
        if not stat.S_ISREG(os.stat("lock", dir_fd=place, follow_symlinks=False).st_mode):
            _erase_entry(place, "lock", whole=False)
    lock = None
    try:
        lock = FolderLock(folder, wait_s=2.0, busy=VaultBusy)
    except VaultBusy:
        raise
    except Fault as error:
        failures.append(f"lock: {error.code}")
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def _erase_inner(place: int, name: str, failures: list[str]) -> int:
    """Erase what is in a folder of the vault, and the folder; return how many files that were."""
    try:
        inner = os.open(name, _READ_FOLDER, dir_fd=place)
    except FileNotFoundError:
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            failures.append(f"{name}: {StorageFailed.code}")
        else:
            failures.append(f"{name}: something else was in its place; where that leads nothing was erased")
            _note(failures, name, lambda: _erase_entry(place, name, whole=False))
        return 0
    before = len(failures)
    try:
        count = _erase_entries(inner, failures, whole=False)
        _note(failures, name, lambda: os.fsync(inner))
    finally:
        os.close(inner)
    if len(failures) == before:
        _note(failures, name, lambda: os.rmdir(name, dir_fd=place))
    return count


def _erase_entries(place: int, failures: list[str], *, whole: bool) -> int:
    """Erase everything in a folder but the lock and the vault's own folders, the record first; return how many."""
    with translate_os_errors("the vault's folder"):
        names = sorted(os.listdir(place), key=lambda name: (name != "vault.cbor", name))
    kept = {"lock", *_FOLDERS} if whole else set()
    before = len(failures)
    wanted = [name for name in names if name not in kept]
    for name in wanted:
        _note(failures, name, lambda name=name: _erase_entry(place, name, whole=whole))  # type: ignore[misc]  # bound
    return len(wanted) - (len(failures) - before)


def _erase_entry(place: int, name: str, *, whole: bool) -> None:
    """Overwrite a file, then remove it, or whatever is in its place; what could not be overwritten is removed too."""
    kind = os.stat(name, dir_fd=place, follow_symlinks=False).st_mode
    if stat.S_ISDIR(kind):
        os.rmdir(name, dir_fd=place)
        return
    try:
        if stat.S_ISREG(kind):
            _overwrite(place, name, _MAX_WHOLE_BYTES if whole else BODY_OFFSET)
    finally:
        os.unlink(name, dir_fd=place)


def _overwrite(place: int, name: str, limit: int) -> None:
    """Overwrite up to ``limit`` bytes of a file with random ones, durable, and read them back."""
    descriptor = os.open(name, os.O_RDWR | _AS_IT_IS, dir_fd=place)
    try:
        status = os.fstat(descriptor)
        size = min(status.st_size, limit) if stat.S_ISREG(status.st_mode) else 0
        for offset in range(0, size, _ROUND_BYTES):
            noise = os.urandom(min(_ROUND_BYTES, size - offset))
            pwrite_all(descriptor, memoryview(noise), offset)
            os.fsync(descriptor)
            if os.pread(descriptor, len(noise), offset) != noise:
                raise EraseIncomplete(f"{_plain(name)} does not hold what was written over it")
    finally:
        os.close(descriptor)


def _note(failures: list[str], name: str, step: Callable[[], None]) -> None:
    """Take a step; what fails is written down, and the next one is taken."""
    try:
        with translate_os_errors(_plain(name)):
            step()
    except TidegateError as error:
        failures.append(f"{_plain(name)}: {error.code}")
