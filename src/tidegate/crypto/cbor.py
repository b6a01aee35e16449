"""Deterministic CBOR (RFC 8949 §4.2.1), written and read in one strict profile.

Only integers of 64 bits, byte and text strings, arrays, maps, tags, booleans and null; definite lengths; shortest
heads; map keys sorted by their encoded bytes and unique; nothing behind the value. Whatever a decoder accepts
encodes to the same bytes again, so a signature over the bytes is a signature over the meaning.

Written by hand because the bytes are hostile until a signature holds: the library decodes dates, regular expressions
and shared references before anybody can look (docs/decisions/0002-cbor.md); the tests compare both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tidegate.crypto.errors import CborLimit, CborMalformed

MAX_DEPTH = 16  # the deepest document of ours, a manifest in its envelope, needs 8
MAX_ITEMS = 65_536  # elements in one array or map; a vault listing is the largest


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged:
    """A value under a CBOR tag."""

    tag: int
    value: Value


Value: TypeAlias = "int | bytes | str | bool | list[Value] | dict[Value, Value] | Tagged | None"

_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None}


def encode(value: object) -> bytes:
    """Return the one encoding of ``value``; raise ``TypeError`` for a type outside the profile."""
    if value is None or isinstance(value, bool):
        return bytes([0xF6 if value is None else 0xF5 if value else 0xF4])
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, (bytes, bytearray)):
        return _head(2, len(value)) + bytes(value)
    if isinstance(value, str):
        raw = value.encode()
        return _head(3, len(raw)) + raw
    if isinstance(value, (list, tuple)):
        return _head(4, len(value)) + b"".join(encode(item) for item in value)
    if isinstance(value, dict):
        pairs = sorted((_encode_key(key), encode(item)) for key, item in value.items())
        return _head(5, len(pairs)) + b"".join(key + item for key, item in pairs)
    if isinstance(value, Tagged):
        return _head(6, value.tag) + encode(value.value)
    raise TypeError(f"{type(value).__name__} has no place in deterministic CBOR")


def decode(raw: bytes, *, limit_bytes: int) -> Value:
    """Return the value that encodes to exactly ``raw``.

    Raises ``crypto.cbor.limit`` (longer than ``limit_bytes``, too deep, too many elements) or
    ``crypto.cbor.malformed`` (anything outside the profile, at which byte).
    """
    if len(raw) > limit_bytes:
        raise CborLimit(f"CBOR of {len(raw)} bytes is over the limit of {limit_bytes}")
    reader = _Reader(raw)
    value = reader.value(MAX_DEPTH)
    if reader.position != len(raw):
        raise reader.malformed("bytes behind the value")
    return value


def _encode_key(key: object) -> bytes:
    if not isinstance(key, (int, str, bytes)) or isinstance(key, bool):
        raise TypeError(f"{type(key).__name__} is no key in deterministic CBOR")
    return encode(key)


def _head(major: int, number: int) -> bytes:
    for code, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 24:
            return bytes([major << 5 | number])
        if number < 1 << (8 * width):
            return bytes([major << 5 | code]) + number.to_bytes(width, "big")
    raise TypeError("an integer in deterministic CBOR has at most 64 bits")


class _Reader:
    """A position in hostile bytes."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self.position = 0

    def malformed(self, why: str) -> CborMalformed:
        return CborMalformed(f"CBOR at byte {self.position}: {why}", offset=self.position)

    def value(self, depth: int) -> Value:
        if depth == 0:
            raise CborLimit(f"CBOR is nested deeper than {MAX_DEPTH}")
        first = self._take(1)[0]
        if first >= 0xE0:
            if first not in _SIMPLE:
                raise self.malformed("a float or simple value outside the profile")
            return _SIMPLE[first]
        major, number = first >> 5, self._number(first & 31)
        if major <= 1:
            return number if major == 0 else -1 - number
        if major == 2:
            return self._take(number)
        if major == 3:
            return self._text(number)
        if major == 6:
            return Tagged(tag=number, value=self.value(depth - 1))
        if number > MAX_ITEMS:
            raise CborLimit(f"CBOR has {number} elements in one place, over {MAX_ITEMS}")
        return self._array(number, depth) if major == 4 else self._map(number, depth)

    def _number(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise self.malformed("an indefinite or reserved length")
        width = 1 << (info - 24)
        number = int.from_bytes(self._take(width), "big")
        if number < 24 or (width > 1 and number < 1 << (4 * width)):
            raise self.malformed("a number that is not in its shortest form")
        return number

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._raw):
            raise self.malformed("the input ends early")
        piece = self._raw[self.position : end]
        self.position = end
        return piece

    def _text(self, count: int) -> str:
        try:
            return self._take(count).decode()
        except UnicodeDecodeError as error:
            raise self.malformed("text that is not UTF-8") from error

    def _array(self, count: int, depth: int) -> Value:
        return [self.value(depth - 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> Value:
        result: dict[Value, Value] = {}
        previous = b""
        for _ in range(count):
            start = self.position
            key = self.value(depth - 1)
            encoded = self._raw[start : self.position]
            if not isinstance(key, (int, str, bytes)) or isinstance(key, bool):
                raise self.malformed("a map key that is neither integer nor string")
            if encoded <= previous:
                raise self.malformed("map keys out of order or repeated")
            previous = encoded
            result[key] = self.value(depth - 1)
        return result
