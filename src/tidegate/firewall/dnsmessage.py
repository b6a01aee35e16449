"""DNS messages, as far as asking for addresses needs them (RFC 1035 §4, RFC 3596). Pure.

Ours and not a library's: one question, four fields of its answer, and the process that asks lives as long as the
device (docs/firewall-names.md has the figures). No EDNS: what does not fit 512 bytes comes over TCP, unfragmented.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address

from tidegate.firewall.nameplan import NEGATIVE_TTL_S, Address, Answer, pick_addresses

MAX_UDP_BYTES = 512  # RFC 1035 §4.2.1
MAX_RECORDS = 1_024  # of an answer section; real ones have some dozens
MAX_ALIASES = 16  # links of one CNAME chain; resolvers stop at 8 to 12
MAX_NAME_BYTES = 255  # RFC 1035 §2.3.4
MAX_LABEL_BYTES = 63
MAX_POINTERS = 127  # of one name: it has no more labels, and a pointer to a pointer is nothing that a server writes
TYPES = {4: 1, 6: 28}  # A, AAAA

_HEADER = struct.Struct(">6H")
_RECORD = struct.Struct(">HHIH")
_CLASS_IN, _CNAME = 1, 5
_RESPONSE, _OPCODE, _TRUNCATED, _RECURSE, _RCODE = 0x8000, 0x7800, 0x0200, 0x0100, 0x000F
_NO_ERROR, _NO_NAME = 0, 3
_POINTER = 0xC0
_MAX_TTL = 0x7FFFFFFF  # RFC 2181 §8: with the topmost bit set it counts as 0


class Trouble(enum.Enum):
    """Why a message is no answer."""

    FOREIGN = "not the answer to this question"  # to be ignored: the true one may still come
    TRUNCATED = "truncated"
    REFUSED = "the resolver refused or failed"
    MALFORMED = "malformed"


class _MalformedMessageError(Exception):
    """Never leaves this file."""


def encode_question(name: str, family: int, ident: int) -> bytes:
    """Return the request for a name's addresses; ``name`` is one that ``peers`` accepts."""
    return _HEADER.pack(ident, _RECURSE, 1, 0, 0, 0) + _encode_question(name, family)


def parse_answer(data: bytes, name: str, family: int, ident: int) -> Answer | Trouble:
    """Return what ``data`` says of ``name``, following aliases from it, or why it says nothing.

    An answer must repeat ``ident`` and the question. Records of other names, types and sections are not read. The TTL
    is the lowest of the chain. A name that does not exist, or has no address of the family, has none.
    """
    if len(data) < _HEADER.size:
        return Trouble.FOREIGN
    found, flags, questions, answers, _, _ = _HEADER.unpack_from(data)
    asked = _encode_question(name, family)
    at = _HEADER.size + len(asked)
    if found != ident or not flags & _RESPONSE or flags & _OPCODE:
        return Trouble.FOREIGN
    rcode = flags & _RCODE
    if questions == 0 and rcode not in (_NO_ERROR, _NO_NAME):
        return Trouble.REFUSED  # some servers do not repeat what they could not read
    if questions != 1 or _lower(data[_HEADER.size : at - 4]) + data[at - 4 : at] != asked:
        return Trouble.FOREIGN
    if flags & _TRUNCATED:
        return Trouble.TRUNCATED
    if rcode not in (_NO_ERROR, _NO_NAME):
        return Trouble.REFUSED
    try:
        return _follow(asked[:-4], family, list(_parse_records(data, at, answers)))
    except (_MalformedMessageError, struct.error, IndexError):
        return Trouble.MALFORMED


def _follow(name: bytes, family: int, records: list[tuple[bytes, int, int, bytes]]) -> Answer:
    """Return the addresses at the end of the chain of aliases."""
    aliases = {owner: (target, ttl_s) for owner, kind, ttl_s, target in records if kind == _CNAME}
    lowest_s = _MAX_TTL
    seen = {name}
    while name in aliases:
        name, ttl_s = aliases[name]
        lowest_s = min(lowest_s, ttl_s)
        if name in seen or len(seen) > MAX_ALIASES:
            raise _MalformedMessageError("a chain of aliases without an end")
        seen.add(name)
    mine = [(ttl_s, value) for owner, kind, ttl_s, value in records if kind == TYPES[family] and owner == name]
    if not mine:
        return Answer(ttl_s=int(NEGATIVE_TTL_S))
    addresses: list[Address] = [IPv4Address(value) if family == 4 else IPv6Address(value) for _, value in mine]
    return pick_addresses(addresses, min([lowest_s, *(ttl_s for ttl_s, _ in mine)]))


def _parse_records(data: bytes, at: int, count: int) -> Iterator[tuple[bytes, int, int, bytes]]:
    """Yield (owner, type, TTL, value) of the records that may matter; the value of an alias is a name."""
    if count > MAX_RECORDS:
        raise _MalformedMessageError("too many records")
    sizes = {TYPES[4]: 4, TYPES[6]: 16}
    for _ in range(count):
        owner, at = _parse_name(data, at)
        kind, kind_class, ttl_s, length = _RECORD.unpack_from(data, at)
        at += _RECORD.size
        value = data[at : at + length]
        if len(value) != length:
            raise _MalformedMessageError("a record beyond the end")
        if kind_class == _CLASS_IN and kind == _CNAME:
            value, end = _parse_name(data, at)
            if end != at + length:
                raise _MalformedMessageError("an alias of another length")
        elif kind_class == _CLASS_IN and kind in sizes and length != sizes[kind]:
            raise _MalformedMessageError("an address of another length")
        if kind_class == _CLASS_IN:
            yield owner, kind, ttl_s if ttl_s <= _MAX_TTL else 0, value
        at += length


def _parse_name(data: bytes, at: int) -> tuple[bytes, int]:
    """Return a name uncompressed and in lower case, and where what follows it begins.

    Each pointer must lead to before the one that led there, so that there is an end, and soon: thousands of records
    with a name of thousands of pointers took a second.
    """
    name = b""
    end, before, pointers = None, at, 0
    while True:
        length = data[at]
        if length & _POINTER == _POINTER:
            target = (length & ~_POINTER) << 8 | data[at + 1]
            end = at + 2 if end is None else end
            pointers += 1
            if target >= before or pointers > MAX_POINTERS:
                raise _MalformedMessageError("a pointer forwards, or too many")
            at = before = target
            continue
        if length > MAX_LABEL_BYTES:
            raise _MalformedMessageError("a label of an unknown kind")
        name += data[at : at + 1 + length]
        at += 1 + length
        if len(name) > MAX_NAME_BYTES:
            raise _MalformedMessageError("a name too long")
        if length == 0:
            return _lower(name), at if end is None else end


def _encode_question(name: str, family: int) -> bytes:
    labels = name.lower().encode("ascii").split(b".")
    encoded = b"".join(bytes((len(label),)) + label for label in labels)
    return encoded + b"\0" + struct.pack(">HH", TYPES[family], _CLASS_IN)


def _lower(name: bytes) -> bytes:
    """Return a name in lower case; lengths are below 64 and so are no letters."""
    return name.lower()
