"""The bytes of an age file: header, payload in chunks, armor; and the text of keys.

Decides only: streams are parameters, keys and nonces too.

Source: the C2SP specification "age" (c2sp.org/age); docs/formats/age.md says what of it is read and written.
"""

from __future__ import annotations

import binascii
import enum
import hmac
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.crypto.aead import NONCE_BYTES, TAG_BYTES, Secret
from tidegate.vault.age_errors import (
    AgeArmorMalformed,
    AgeHeaderMalformed,
    AgeKeyMalformed,
    AgeMacWrong,
    AgePayloadAltered,
    AgePayloadExtended,
    AgePayloadTruncated,
    AgeRecipientsWrong,
    AgeStanzaMalformed,
    AgeVersionUnknown,
)

FILE_KEY_BYTES = 16
PAYLOAD_NONCE_BYTES = 16
CHUNK_BYTES = 64 << 10
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
# Ours, the format has none: the largest stanza that we know has 1.6 KiB, and each costs a curve multiplication.
MAX_STANZAS = 1024
MAX_HEADER_BYTES = 2 << 20
MAX_ARMOR_SPACE_BYTES = 1024  # white space before and behind the armor: enough for what editors and mail add

_MAGIC = b"age-encryption.org/"
_VERSION_LINE = _MAGIC + b"v1\n"
_MAX_VERSION_BYTES = 128  # so that another kind of file is not searched far for a line feed
_MAC_MARK = b"---"
_COLUMNS = 64
_ROW_BYTES = _COLUMNS + 1
_LINE_BYTES = 48  # that fill 64 columns of base64
_MAC_BYTES = 32
_ALONE = "scrypt"
_ARMOR_BEGIN = b"-----BEGIN AGE ENCRYPTED FILE-----"
_ARMOR_END = b"-----END AGE ENCRYPTED FILE-----"
_SPACE = b" \t\r\n"
MAX_KEY_TEXT_CHARS = 2048  # a hybrid recipient has 1959
_BECH32_ALPHABET = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32_VALUES = bytes(_BECH32_ALPHABET.find(code) & 0xFF for code in range(256))  # 255: none
_BECH32_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_BECH32_CHECKSUM_CHARS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Stanza:
    """One recipient's entry in a header: how the file key is wrapped for it."""

    kind: str
    arguments: tuple[str, ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A header that was parsed; ``verify_header`` says whether it is genuine."""

    stanzas: tuple[Stanza, ...]
    unverified_mac: bytes
    covered: bytes  # the header's own bytes under the MAC: encoded anew they could differ


def parse_header(read_line: Callable[[int], bytes]) -> Header:
    """Return the header that a stream begins with, every line of it canonical; the MAC is *not* checked here.

    ``read_line(limit)`` returns the next line with its line feed, cut at ``limit`` bytes. A scrypt stanza beside
    another one is refused here, so that no identity has to think of it. Raises ``vault.age.header``, ``.version``
    and ``.stanza``. Source: C2SP age, "ABNF definition of file header".
    """
    lines = _Lines(read_line)
    _check_version(lines.take(_MAX_VERSION_BYTES))
    stanzas: list[Stanza] = []
    while True:
        line = lines.take()
        if not line.startswith(b"->"):
            break
        if len(stanzas) == MAX_STANZAS:
            raise AgeHeaderMalformed(f"the header has more than {MAX_STANZAS} stanzas")
        stanzas.append(_parse_stanza(line, lines))
    if not stanzas:
        raise AgeHeaderMalformed("the header has no stanza")
    if len(stanzas) > 1 and any(stanza.kind == _ALONE for stanza in stanzas):
        # a second stanza would let whoever wrote it open a file that only the passphrase should
        raise AgeStanzaMalformed("a passphrase stanza stands beside another stanza")
    return Header(stanzas=tuple(stanzas), unverified_mac=_parse_mac(line), covered=lines.covered(_MAC_MARK))


class _Lines:
    """The header's lines, within its limit, and what was read of them."""

    def __init__(self, read_line: Callable[[int], bytes]) -> None:
        self._read_line = read_line
        self._seen: list[bytes] = []
        self._left = MAX_HEADER_BYTES

    def take(self, limit_bytes: int = MAX_HEADER_BYTES) -> bytes:
        """Return the next line without its line feed."""
        line = self._read_line(min(self._left, limit_bytes))
        if not line.endswith(b"\n"):
            raise AgeHeaderMalformed("the header is cut off or too long")
        self._seen.append(line)
        self._left -= len(line)
        return line[:-1]

    def covered(self, end: bytes) -> bytes:
        """Return all lines but the last, and the mark ``end`` that the last begins with."""
        return b"".join(self._seen[:-1]) + end


def _check_version(line: bytes) -> None:
    if line + b"\n" == _VERSION_LINE:
        return
    version = line.removeprefix(_MAGIC)
    if version and version != line and _is_visible(version):
        raise AgeVersionUnknown(f"the file is of version {version.decode('ascii')!r}")
    raise AgeHeaderMalformed("the file does not begin like an age file")


def _is_visible(text: bytes | bytearray) -> bool:
    return all(0x21 <= code <= 0x7E for code in text)


def _parse_stanza(line: bytes, lines: _Lines) -> Stanza:
    words = line.split(b" ")
    if words[0] != b"->" or len(words) < 2 or not all(word and _is_visible(word) for word in words[1:]):
        raise AgeHeaderMalformed("a stanza's first line is malformed")
    kind, *arguments = (word.decode("ascii") for word in words[1:])
    body = bytearray()
    while True:
        text = lines.take()
        if len(text) > _COLUMNS:
            raise AgeHeaderMalformed("a line of a stanza's body is too long")
        body += decode_base64(text, AgeHeaderMalformed)
        if len(text) < _COLUMNS:
            return Stanza(kind=kind, arguments=tuple(arguments), body=bytes(body))


def _parse_mac(line: bytes) -> bytes:
    mark, space, text = line.partition(b" ")
    if mark != _MAC_MARK or not space:
        raise AgeHeaderMalformed("a line of the header is neither a stanza nor the MAC")
    mac = decode_base64(text, AgeHeaderMalformed)
    if len(mac) != _MAC_BYTES:
        raise AgeHeaderMalformed(f"the header's MAC has not {_MAC_BYTES} bytes")
    return mac


def decode_base64(text: bytes, error: type[AgeHeaderMalformed | AgeStanzaMalformed]) -> bytes:
    """Return what canonical base64 without padding says (RFC 4648 section 3.5), or raise ``error``."""
    try:
        data = binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error as cause:
        raise error("base64 in the header is malformed") from cause
    if encode_base64(data) != text:
        raise error("base64 in the header is not canonical")
    return data


def encode_base64(data: bytes) -> bytes:
    """Return base64 without padding."""
    return binascii.b2a_base64(data, newline=False).rstrip(b"=")


def encode_header(stanzas: Sequence[Stanza], file_key: Secret) -> bytes:
    """Return the header for these stanzas, with its MAC under the file key; ``vault.age.recipients``."""
    parts = [_VERSION_LINE]
    for stanza in stanzas:
        words = [word.encode() for word in (stanza.kind, *stanza.arguments)]
        if not all(word and _is_visible(word) for word in words):
            raise AgeRecipientsWrong("a recipient made a stanza whose arguments are not visible ASCII")
        parts.append(b" ".join([b"->", *words]) + b"\n")
        # the step behind the end gives the empty line that a body of full lines needs
        parts += [
            encode_base64(stanza.body[start : start + _LINE_BYTES]) + b"\n"
            for start in range(0, len(stanza.body) + 1, _LINE_BYTES)
        ]
    covered = b"".join([*parts, _MAC_MARK])
    return covered + b" " + encode_base64(_header_mac(covered, file_key)) + b"\n"


def verify_header(header: Header, file_key: Secret) -> None:
    """Raise ``vault.age.mac`` unless whoever wrote the header knew the file key."""
    if not hmac.compare_digest(_header_mac(header.covered, file_key), header.unverified_mac):
        raise AgeMacWrong("the header's MAC does not hold")


def _header_mac(covered: bytes, file_key: Secret) -> bytes:
    with _derive(file_key, b"", b"header") as key:
        return hmac.digest(key.view(), covered, "sha256")


def _derive(file_key: Secret, salt: bytes, info: bytes) -> Secret:
    key = bytearray(32)
    HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive_into(file_key.view(), key)
    secret = Secret(key)
    key[:] = bytes(len(key))
    return secret


class PayloadCipher:
    """The payload's chunks under one file key and nonce, each bound to its place and the last one to being last."""

    __slots__ = ("_cipher",)

    def __init__(self, file_key: Secret, nonce: bytes) -> None:
        with _derive(file_key, nonce, b"payload") as key:
            self._cipher = ChaCha20Poly1305(key.view())

    def seal_chunks(self, read: Callable[[int], bytes | memoryview]) -> Iterator[memoryview]:
        """Yield the payload of the plaintext that ``read`` gives, each piece valid until the next one is asked for.

        ``read(size)`` returns ``size`` bytes, and less only at the end.
        """
        sealed = bytearray(SEALED_CHUNK_BYTES)
        index, piece = 0, read(CHUNK_BYTES)
        while True:
            following = read(CHUNK_BYTES) if len(piece) == CHUNK_BYTES else b""
            into = memoryview(sealed)[: len(piece) + TAG_BYTES]
            self._cipher.encrypt_into(_chunk_nonce(index, final=not len(following)), piece, None, into)
            yield into
            if not len(following):
                return
            index, piece = index + 1, following

    def open_chunks(self, read: Callable[[int], bytes]) -> Iterator[memoryview]:
        """Yield the plaintext of the payload that ``read`` gives, each piece authenticated, valid until the next one.

        What was yielded is whole only when the iterator ends without an error. Raises ``vault.age.payload``,
        ``.truncated`` and ``.extended``. The plaintext's buffer is overwritten at the end.
        """
        plain = bytearray(CHUNK_BYTES)
        try:
            index, piece = 0, read(SEALED_CHUNK_BYTES)
            while True:
                following = read(SEALED_CHUNK_BYTES) if len(piece) == SEALED_CHUNK_BYTES else b""
                into = _check_length(index, piece, plain)
                if not self._open_chunk(index, piece, into, final=not following):
                    yield from self._open_misplaced(index, piece, into, final=bool(following))
                yield into
                if not following:
                    return
                index, piece = index + 1, following
        finally:
            plain[:] = bytes(len(plain))

    def _open_chunk(self, index: int, piece: bytes, into: memoryview, *, final: bool) -> bool:
        """Say whether the chunk is genuine; if it is not, ``into`` holds nothing of it."""
        try:
            self._cipher.decrypt_into(_chunk_nonce(index, final=final), piece, None, into)
        except InvalidTag:
            into[:] = bytes(len(into))  # the library leaves the plaintext of a forged chunk there
            return False
        return True

    def _open_misplaced(self, index: int, piece: bytes, into: memoryview, *, final: bool) -> Iterator[memoryview]:
        """Yield a chunk that is genuine but whose mark of being the last is wrong here, and raise what that means."""
        full = len(piece) == SEALED_CHUNK_BYTES  # a shorter chunk that is not the last is nobody's
        if not full or not self._open_chunk(index, piece, into, final=final):
            raise AgePayloadAltered(f"chunk {index} is not authentic", chunk=index)
        yield into
        if final:
            raise AgePayloadExtended(f"the file goes on behind chunk {index}, its last one", chunk=index)
        raise AgePayloadTruncated(f"the file ends behind chunk {index}, not its last one", chunk=index)


def _check_length(index: int, piece: bytes, plain: bytearray) -> memoryview:
    """Return the part of ``plain`` that the chunk's plaintext fills."""
    if not piece:
        raise AgePayloadTruncated("the file has no payload")
    if len(piece) < TAG_BYTES:
        raise AgePayloadAltered(f"chunk {index} is shorter than its tag", chunk=index)
    if index and len(piece) == TAG_BYTES:
        raise AgePayloadAltered("the last chunk is empty", chunk=index)  # a second form of the same content
    return memoryview(plain)[: len(piece) - TAG_BYTES]


def _chunk_nonce(index: int, *, final: bool) -> bytes:
    return index.to_bytes(NONCE_BYTES - 1, "big") + bytes([final])


class ArmorEncoder:
    """Text around and instead of the bytes of a file; ``feed`` and ``finish`` return what is to be written."""

    __slots__ = ("_begun", "_rest")

    def __init__(self) -> None:
        self._begun = False
        self._rest = b""

    def feed(self, data: bytes | memoryview) -> bytes:
        """Return the full lines that are complete with ``data``."""
        joined = self._rest + data
        whole = len(joined) - len(joined) % _LINE_BYTES
        self._rest = joined[whole:]
        begin = b"" if self._begun else _ARMOR_BEGIN + b"\n"
        self._begun = True
        return begin + _wrap(binascii.b2a_base64(joined[:whole], newline=False))

    def finish(self) -> bytes:
        """Return the last lines."""
        return self.feed(b"") + _wrap(binascii.b2a_base64(self._rest, newline=False)) + _ARMOR_END + b"\n"


def _wrap(text: bytes) -> bytes:
    rows, rest = divmod(len(text), _COLUMNS)
    lines = struct.unpack(f"{_COLUMNS}s" * rows + f"{rest}s", text)  # slicing would take most of the time
    return b"".join(line + b"\n" for line in lines if line)


class ArmorDecoder:
    """Strict reader of the text form (RFC 7468 figure 3, canonical base64), fed in pieces of any size.

    Accepted besides: white space around the block, and CR LF at the end of lines. Raises ``vault.age.armor``.
    """

    __slots__ = ("_full", "_part", "_rest", "_space_left")

    def __init__(self) -> None:
        self._part = _Part.BEFORE
        self._rest = b""  # the line that is not complete yet
        self._full = True  # every line of the body so far was
        self._space_left = MAX_ARMOR_SPACE_BYTES

    def feed(self, data: bytes) -> bytes:
        """Return the bytes that are certain with ``data``."""
        text = self._rest + data
        if self._part is _Part.BEFORE:
            text = self._skip_space(text)
        decoded = [self._take_rows(text)]
        *lines, self._rest = text[len(decoded[0]) // _LINE_BYTES * _ROW_BYTES :].split(b"\n")
        position = 0
        while position < len(lines) and self._part is not _Part.BEHIND:
            decoded.append(self._take_line(lines[position].removesuffix(b"\r")))
            position += 1
        if self._part is _Part.BEHIND:
            self._rest = self._skip_space(b"\n".join([*lines[position:], self._rest]))
            if self._rest:
                raise AgeArmorMalformed("there is something behind the armor")
        elif len(self._rest) > _COLUMNS + MAX_ARMOR_SPACE_BYTES:
            raise AgeArmorMalformed("a line of the armor is too long")
        return b"".join(decoded)

    def finish(self) -> bytes:
        """Return what the last line adds, or raise because the block has no end."""
        decoded = self.feed(b"\n")  # the file's last line may lack it
        if self._part is not _Part.BEHIND:
            raise AgeArmorMalformed("the armor has no end line")
        return decoded

    def _skip_space(self, text: bytes) -> bytes:
        stripped = text.lstrip(_SPACE)
        self._space_left -= len(text) - len(stripped)
        if self._space_left < 0:
            raise AgeArmorMalformed(f"more than {MAX_ARMOR_SPACE_BYTES} bytes of white space surround the armor")
        return stripped

    def _take_line(self, line: bytes) -> bytes:
        if self._part is _Part.BEFORE:
            if line != _ARMOR_BEGIN:
                raise AgeArmorMalformed("the armor does not begin with its begin line")
            self._part = _Part.BODY
            return b""
        if line.startswith(_ARMOR_END):
            self._part, self._space_left = _Part.BEHIND, MAX_ARMOR_SPACE_BYTES
            if self._skip_space(line[len(_ARMOR_END) :]):
                raise AgeArmorMalformed("there is something behind the armor")
            return b""
        if not line or len(line) > _COLUMNS or not self._full:
            raise AgeArmorMalformed("a line of the armor has the wrong length")
        data = _decode_padded(line)
        self._full = len(data) == _LINE_BYTES
        return data

    def _take_rows(self, text: bytes) -> bytes:
        """Return what the full lines say that ``text`` begins with, or nothing if there is anything odd about them.

        For speed only: ``_take_line`` takes each line that is left, and finds the words for what is wrong.
        """
        if self._part is not _Part.BODY or not self._full:
            return b""
        ends = text[_COLUMNS::_ROW_BYTES]
        rows = len(ends) - len(ends.lstrip(b"\n"))
        joined = text[: rows * _ROW_BYTES].replace(b"\n", b"")
        if len(joined) != rows * _COLUMNS or b"=" in joined:
            return b""
        try:
            return _decode_padded(joined)
        except AgeArmorMalformed:
            return b""


class _Part(enum.Enum):
    """Where in its text an armor decoder is."""

    BEFORE = enum.auto()
    BODY = enum.auto()
    BEHIND = enum.auto()


def _decode_padded(text: bytes) -> bytes:
    try:
        data = binascii.a2b_base64(text)  # lenient and quick: the comparison below is the strict part
    except binascii.Error as error:
        raise AgeArmorMalformed("base64 in the armor is malformed") from error
    if binascii.b2a_base64(data, newline=False) != text:
        raise AgeArmorMalformed("base64 in the armor is not canonical")
    return data


def decode_bech32(text: bytearray) -> tuple[bytes, bytearray]:
    """Return what a key's text is called and says (BIP 173, any length), or raise ``vault.age.key``.

    The name keeps its case, all upper or all lower. Copies of ``text`` that are not returned are overwritten.
    """
    if len(text) > MAX_KEY_TEXT_CHARS:
        raise AgeKeyMalformed(f"a key's text has at most {MAX_KEY_TEXT_CHARS} characters")
    lowered = text.lower()
    split = lowered.rfind(b"1")
    values = lowered[split + 1 :].translate(_BECH32_VALUES)
    try:
        if (text != lowered and not text.isupper()) or split < 1 or not _is_visible(lowered[:split]):
            raise AgeKeyMalformed("a key's text mixes cases or has no beginning")
        if len(values) < _BECH32_CHECKSUM_CHARS or max(values) > 31 or _polymod(lowered[:split], values) != 1:
            raise AgeKeyMalformed("a character of a key's text is wrong, missing or too much")
        return bytes(text[:split]), _join_fives(values[:-_BECH32_CHECKSUM_CHARS])
    finally:
        lowered[:], values[:] = bytes(len(lowered)), bytes(len(values))


def encode_bech32(name: bytes, data: bytes | memoryview) -> bytearray:
    """Return a key's text in lower case; ``name`` is in lower case, too."""
    number, bits, values = 0, 0, bytearray()
    for byte in data:
        number, bits = (number << 8 | byte) & 0xFFF, bits + 8
        while bits >= 5:
            bits -= 5
            values.append(number >> bits & 31)
    if bits:
        values.append(number << (5 - bits) & 31)
    checksum = _polymod(name, values + bytes(_BECH32_CHECKSUM_CHARS)) ^ 1
    values += bytes(checksum >> shift & 31 for shift in range(25, -1, -5))
    text = bytearray(name + b"1") + values.translate(_BECH32_ALPHABET.ljust(256, b"?"))
    values[:] = bytes(len(values))
    return text


def _join_fives(values: bytearray) -> bytearray:
    number, bits, data = 0, 0, bytearray()
    for value in values:
        number, bits = (number << 5 | value) & 0xFFF, bits + 5
        if bits >= 8:
            bits -= 8
            data.append(number >> bits & 0xFF)
    values[:] = bytes(len(values))
    if bits >= 5 or number & ((1 << bits) - 1):
        data[:] = bytes(len(data))
        raise AgeKeyMalformed("a key's text has bits behind its end")
    return data


def _polymod(name: bytes | bytearray, values: bytearray) -> int:
    checksum = 1
    for value in (*(code >> 5 for code in name), 0, *(code & 31 for code in name), *values):
        top = checksum >> 25
        checksum = (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(_BECH32_GENERATOR):
            checksum ^= generator if top >> bit & 1 else 0
    return checksum
