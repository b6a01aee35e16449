"""DNS messages, as far as "which addresses has this name" needs them (RFC 1035, 2181, 2308, 6891). Pure.

Written here and not taken from a library: what is needed is one question and one answer, with every loop bounded, and
a resolver library would be the largest part of the process that keeps names up to date.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address

from tidegate.firewall.errors import NameAnswerRefused
from tidegate.firewall.peers import Address

MAX_MESSAGE = 65_535  # of TCP, whose length has 16 bits
UDP_PAYLOAD = 1232  # fits every path without fragments (DNS flag day 2020)
MAX_RECORDS = 512  # of one answer: 64 addresses, aliases and signatures have fewer
MAX_NAME_BYTES = 255  # RFC 1035 §2.3.4
MAX_JUMPS = 64  # of compression in one name; a name has at most 127 labels
MAX_CHAIN = 8  # aliases in a row: content networks use three or four
_TYPES = {4: 1, 6: 28}  # A, AAAA
_CNAME, _SOA, _OPT, _IN = 5, 6, 41, 1
_HEADER = struct.Struct(">HHHHHH")
_RECORD = struct.Struct(">HHIH")
_RESPONSE, _TRUNCATED, _RECURSE = 0x8000, 0x0200, 0x0100
_OPCODE_AND_REPLY = 0xF800
_NO_ERROR, _NO_NAME = 0, 3


class AnswerKind(StrEnum):
    """What a resolver said."""

    FOUND = "found"
    NOTHING = "nothing"  # the name has no address of this family, or does not exist
    TRUNCATED = "truncated"  # ask again by TCP
    FAILED = "failed"  # the resolver cannot or will not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question as it was sent; an answer has to repeat identifier and name, upper and lower case alike."""

    name: str
    family: int
    ident: int
    wire_name: bytes

    def encode(self, *, edns: bool) -> bytes:
        """Return the message; ``edns`` says that a large answer may come by UDP."""
        message = _HEADER.pack(self.ident, _RECURSE, 1, 0, 0, int(edns)) + self.section
        return message + b"\0" + _RECORD.pack(_OPT, UDP_PAYLOAD, 0, 0) if edns else message

    @property
    def section(self) -> bytes:
        """The question as it stands in the message."""
        return self.wire_name + struct.pack(">HH", _TYPES[self.family], _IN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``addresses`` with the seconds that they hold; ``ttl_s`` of an answer without any; ``code`` of a failure."""

    kind: AnswerKind
    addresses: Mapping[Address, int] = field(default_factory=dict)
    ttl_s: int = 0
    code: int = 0


def plan_question(name: str, family: int, entropy: bytes) -> Question:
    """Return the question for ``name``, its letters in random case (draft-vixie-dnsext-dns0x20).

    ``entropy``: 34 random bytes. With the identifier and the port, a forger off the path has to guess 16 + 16 bits and
    one more for each letter.
    """
    bits = int.from_bytes(entropy[2:34], "big")
    mixed = "".join(
        one.upper() if bits >> (place & 255) & 1 else one for place, one in enumerate(name.lower().removesuffix("."))
    )
    wire = b"".join(bytes([len(label)]) + label for label in mixed.encode("ascii").split(b".")) + b"\0"
    return Question(name=name, family=family, ident=int.from_bytes(entropy[:2], "big"), wire_name=wire)


def parse_answer(message: bytes, question: Question) -> Answer:
    """Return what the message answers to ``question``, or raise ``firewall.names.answer``.

    Only addresses that the asked name leads to, by aliases in the same answer, are taken.
    """
    if len(message) < _HEADER.size:
        raise NameAnswerRefused("an answer without a header")
    ident, flags, questions, answers, authorities, _ = _HEADER.unpack_from(message)
    if ident != question.ident or flags & _OPCODE_AND_REPLY & ~0x0400 != _RESPONSE or questions != 1:
        raise NameAnswerRefused("an answer to something that was not asked")
    end = _HEADER.size + len(question.section)
    if message[_HEADER.size : end] != question.section:
        raise NameAnswerRefused("an answer about another name, or one that does not keep upper and lower case")
    if flags & _TRUNCATED:
        return Answer(kind=AnswerKind.TRUNCATED)
    if flags & 15 not in (_NO_ERROR, _NO_NAME):
        return Answer(kind=AnswerKind.FAILED, code=flags & 15)
    if answers + authorities > MAX_RECORDS:
        raise NameAnswerRefused(f"an answer with more than {MAX_RECORDS} records")
    records = list(_records(message, end, answers + authorities))
    found = _follow(records[:answers], question)
    if found:
        return Answer(kind=AnswerKind.FOUND, addresses=found)
    return Answer(kind=AnswerKind.NOTHING, ttl_s=_negative_ttl_s(message, records[answers:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    owner: str
    kind: int
    ttl_s: int
    data: bytes
    target: str  # of an alias


def _records(message: bytes, place: int, count: int) -> Iterator[_Record]:
    for _ in range(count):
        owner, place = _read_name(message, place)
        if place + _RECORD.size > len(message):
            raise NameAnswerRefused("an answer that ends within a record")
        kind, klass, ttl_s, length = _RECORD.unpack_from(message, place)
        place += _RECORD.size
        data = message[place : place + length]
        if len(data) != length:
            raise NameAnswerRefused("an answer that ends within a record")
        target = _read_name(message, place)[0] if kind == _CNAME else ""
        place += length
        if klass == _IN:
            # RFC 2181 §8: a time with the highest bit set is none.
            yield _Record(owner=owner, kind=kind, ttl_s=ttl_s if ttl_s < 1 << 31 else 0, data=data, target=target)


def _follow(records: list[_Record], question: Question) -> dict[Address, int]:
    """Return the addresses at the end of the aliases; each holds as long as the shortest step to it."""
    aliases = {record.owner: record for record in reversed(records) if record.kind == _CNAME}
    name, ttl_s = question.name.lower().removesuffix("."), (1 << 31) - 1
    for _ in range(MAX_CHAIN + 1):
        alias = aliases.get(name)
        if alias is None:
            break
        name, ttl_s = alias.target, min(ttl_s, alias.ttl_s)
    size, kind = (4, IPv4Address) if question.family == 4 else (16, IPv6Address)
    return {
        kind(record.data): min(ttl_s, record.ttl_s)
        for record in records
        if record.kind == _TYPES[question.family] and record.owner == name and len(record.data) == size
    }


def _negative_ttl_s(message: bytes, records: list[_Record]) -> int:
    """Return for how long "nothing" holds (RFC 2308 §5); 0 when the answer does not say."""
    for record in records:
        if record.kind == _SOA and len(record.data) >= 20:
            return min(record.ttl_s, int.from_bytes(record.data[-4:], "big"))
    return 0


def _read_name(message: bytes, place: int) -> tuple[str, int]:
    """Return the name at ``place`` in lower case, and where the next thing begins."""
    labels: list[bytes] = []
    after, size = None, 0
    for _ in range(MAX_JUMPS + 128):
        if place >= len(message):
            break
        length = message[place]
        if length == 0:
            name = b".".join(labels).lower().decode("latin-1")
            return name, place + 1 if after is None else after
        if length & 0xC0 == 0xC0 and place + 1 < len(message):
            target = int.from_bytes(message[place : place + 2], "big") & 0x3FFF
            after = place + 2 if after is None else after
            if target >= place:
                break  # compression points backwards
            place = target
            continue
        size += length + 1
        if length & 0xC0 or size > MAX_NAME_BYTES:
            break
        labels.append(message[place + 1 : place + 1 + length])
        place += 1 + length
    raise NameAnswerRefused("an answer with a name that is none")
