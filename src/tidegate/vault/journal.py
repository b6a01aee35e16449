"""The journal: transactions appended to a file, each encrypted and chained to the one before. Pure.

An entry is a length, a nonce, and the transaction sealed with the number of the entry and the tag of the one before as
associated data: entries cannot be left out, exchanged or taken from another journal. docs/formats/vault.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tidegate.crypto.aead import NONCE_BYTES, TAG_BYTES, Secret, open_aes256gcm, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed
from tidegate.vault.errors import JournalAltered, TransactionTooLarge

MAX_ENTRY_BYTES = 4 << 20  # of one transaction: it is in memory as a whole
MAX_VALUE_BYTES = 65_536  # of one record; larger data are items
NO_TAG = bytes(TAG_BYTES)
NO_DIGEST = bytes(32)
_LENGTH = struct.Struct(">I")
_ASSOCIATED = struct.Struct(">Q16sI")
_HEAD = struct.Struct(">QQ32s")  # generation and anchor of the vault behind the transaction, digest of the redo file
_OP = struct.Struct(">BHI")  # 1 puts, 2 deletes; length of the key; length of the value
_PUT, _DELETE = 1, 2
_OVERHEAD = _LENGTH.size + NONCE_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Change:
    """``key`` gets ``value``, or goes; then ``value`` is what it had, where an interrupted erasure has to be ended."""

    key: bytes
    value: bytes
    deletes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """Changes that count all or not at all. ``redo`` is the digest of the redo file that goes with them, or zeros."""

    generation: int
    anchor: int
    redo: bytes
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A transaction as it stands in the journal: at ``offset``, ``size`` bytes long, ending with ``tag``."""

    transaction: Transaction
    offset: int
    size: int
    number: int
    tag: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tail:
    """Where the good part of a journal ends."""

    number: int = 0
    tag: bytes = NO_TAG
    size: int = 0


def encode_entry(transaction: Transaction, *, after: Tail, nonce: bytes, key: Secret) -> bytes:
    """Return the entry that follows ``after``; raise ``vault.transaction.size``."""
    parts = [_HEAD.pack(transaction.generation, transaction.anchor, transaction.redo)]
    for change in transaction.changes:
        kind = _DELETE if change.deletes else _PUT
        parts += [_OP.pack(kind, len(change.key), len(change.value)), change.key, change.value]
    plain = b"".join(parts)
    if len(plain) > MAX_ENTRY_BYTES:
        raise TransactionTooLarge(f"a transaction has at most {MAX_ENTRY_BYTES} bytes", size=len(plain))
    length = len(plain) + NONCE_BYTES + TAG_BYTES
    associated = _ASSOCIATED.pack(after.number, after.tag, length)
    return _LENGTH.pack(length) + nonce + seal_aes256gcm(key.view(), nonce, plain, associated)


def open_entry(raw: bytes | memoryview, *, after: Tail, key: Secret) -> bytes:
    """Return the transaction's bytes of one whole entry, or raise ``vault.journal.altered``."""
    length = len(raw) - _LENGTH.size
    associated = _ASSOCIATED.pack(after.number, after.tag, length)
    nonce, sealed = bytes(raw[_LENGTH.size : _LENGTH.size + NONCE_BYTES]), raw[_LENGTH.size + NONCE_BYTES :]
    try:
        return open_aes256gcm(key.view(), nonce, sealed, associated)
    except AeadFailed as error:
        raise JournalAltered(f"entry {after.number} of the journal is not as it was written") from error


def decode_transaction(plain: bytes) -> Transaction:
    """Return the transaction of an authentic entry; raise ``vault.journal.altered``."""
    if len(plain) < _HEAD.size:
        raise JournalAltered("an entry of the journal is malformed")
    generation, anchor, redo = _HEAD.unpack(plain[: _HEAD.size])
    changes, position = [], _HEAD.size
    while position < len(plain):
        if position + _OP.size > len(plain):
            raise JournalAltered("an entry of the journal is malformed")
        kind, key_bytes, value_bytes = _OP.unpack_from(plain, position)
        key_at = position + _OP.size
        value_at = key_at + key_bytes
        position = value_at + value_bytes
        if kind not in (_PUT, _DELETE) or position > len(plain):
            raise JournalAltered("an entry of the journal is malformed")
        changes.append(Change(plain[key_at:value_at], plain[value_at:position], kind == _DELETE))
    return Transaction(generation=generation, anchor=anchor, redo=redo, changes=tuple(changes))


def entry_size(head: bytes | memoryview) -> int:
    """Return how long the entry is that begins with these bytes; 0 if no entry begins like that."""
    if len(head) < _LENGTH.size:
        return 0
    (length,) = _LENGTH.unpack(head[: _LENGTH.size])
    good = NONCE_BYTES + TAG_BYTES + _HEAD.size <= length <= MAX_ENTRY_BYTES + NONCE_BYTES + TAG_BYTES
    return _LENGTH.size + length if good else 0


def iter_entries(raw: memoryview, *, key: Secret, upto: int) -> Iterator[Entry]:
    """Yield the entries of a journal in order.

    The first ``upto`` bytes have to be entries (``vault.journal.altered``). Behind them the last entry may be torn, as
    a power cut leaves it: it is not yielded. One that does not fit but has more behind it was altered, and is refused.
    """
    tail = Tail()
    while tail.size < len(raw):
        rest = raw[tail.size :]
        size = entry_size(rest)
        whole = 0 < size <= len(rest)
        try:
            if not whole:
                raise JournalAltered(f"entry {tail.number} of the journal is cut off")
            plain = open_entry(rest[:size], after=tail, key=key)
        except JournalAltered:
            torn = tail.size >= upto and len(rest) <= MAX_ENTRY_BYTES + _OVERHEAD
            if torn and (not whole or size == len(rest) or not any(rest[_LENGTH.size :])):
                return  # the last case: of the length a part was written, and of the rest nothing
            raise
        entry = Entry(
            transaction=decode_transaction(plain),
            offset=tail.size,
            size=size,
            number=tail.number,
            tag=bytes(rest[size - TAG_BYTES : size]),
        )
        yield entry
        tail = Tail(number=entry.number + 1, tag=entry.tag, size=entry.offset + entry.size)


def value_places(changes: Sequence[Change]) -> Iterator[int]:
    """Yield where each change's value lies in the opened entry."""
    position = _HEAD.size
    for change in changes:
        position += _OP.size + len(change.key)
        yield position
        position += len(change.value)
