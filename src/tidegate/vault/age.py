"""age v1 files: encrypted for recipients, opened by identities, in a stream of constant memory.

Touches: the binary streams that the caller passes, whose ``OSError`` passes through, and the randomness for keys.
Files, their names and their permissions are the caller's.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from tidegate.base.clock import Entropy, SystemEntropy
from tidegate.base.errors import InputTooLarge
from tidegate.crypto.aead import Secret
from tidegate.vault.age_errors import AgeHeaderMalformed, AgeSettingWrong
from tidegate.vault.age_format import (
    FILE_KEY_BYTES,
    PAYLOAD_NONCE_BYTES,
    SEALED_CHUNK_BYTES,
    ArmorDecoder,
    ArmorEncoder,
    PayloadCipher,
    encode_header,
    parse_header,
    verify_header,
)
from tidegate.vault.age_recipients import Identity, Recipient, unwrap_file_key, wrap_file_key

_ARMOR_STARTS = (b"-", b" ", b"\t", b"\r", b"\n")  # a binary file starts with an "a"


def encrypt(
    source: BinaryIO,
    target: BinaryIO,
    recipients: Sequence[Recipient],
    *,
    armored: bool = False,
    entropy: Entropy | None = None,
) -> None:
    """Write ``source`` to ``target`` so that only one of the recipients can read it and nobody can change it unseen.

    On an error ``target`` holds the beginning of a file, which every reader refuses as truncated. ``armored`` writes
    text of 7-bit characters. Raises ``vault.age.recipients`` and what a recipient's ``wrap`` raises, both before
    anything is written. Who wrote a file is not part of it: anybody who knows a recipient can make one.
    """
    _encrypt(functools.partial(_read_full, source), target, recipients, armored=armored, entropy=entropy)


def encrypt_secret(
    secret: Secret,
    target: BinaryIO,
    recipients: Sequence[Recipient],
    *,
    armored: bool = False,
    entropy: Entropy | None = None,
) -> None:
    """Write ``secret`` as ``encrypt`` does, without a copy of it in between."""
    view = secret.view()
    position = 0

    def read(size: int) -> memoryview:
        nonlocal position
        position += size
        return view[position - size : position]

    _encrypt(read, target, recipients, armored=armored, entropy=entropy)


def decrypt(source: BinaryIO, identities: Sequence[Identity], *, armored: bool | None = None) -> Iterator[bytes]:
    """Return the content in pieces of at most 64 KiB, each of them genuine; all of it only if no error ends it.

    Header and identities are judged before this returns; the pieces, as they are asked for. ``armored`` says that
    the file has to be in text form, or must not be; without it both are read. Raises ``vault.age.armor``,
    ``.header``, ``.version``, ``.stanza``, ``.work-factor``, ``.no-match``, ``.mac``, ``.memory``, and while the
    pieces are read ``.armor``, ``.payload``, ``.truncated``, ``.extended``. Source: C2SP age.
    """
    chunks = _open(source, identities, armored)
    return (bytes(chunk) for chunk in chunks)


def decrypt_secret(
    source: BinaryIO, identities: Sequence[Identity], *, limit_bytes: int, armored: bool | None = None
) -> Secret:
    """Return the whole content as a secret that was verified to its end; the buffers in between are overwritten.

    Raises what ``decrypt`` raises, and ``base.input.too-large`` above ``limit_bytes``.
    """
    collected, length = bytearray(limit_bytes), 0  # of full size at once: growing would leave copies behind
    try:
        for chunk in _open(source, identities, armored):
            if length + len(chunk) > limit_bytes:
                raise InputTooLarge(f"the file holds more than {limit_bytes} bytes", limit=limit_bytes)
            collected[length : length + len(chunk)] = chunk
            length += len(chunk)
        content = collected[:length]
        secret = Secret(content)
        content[:] = bytes(length)
        return secret
    finally:
        collected[:] = bytes(len(collected))


def _encrypt(
    read: Callable[[int], bytes | memoryview],
    target: BinaryIO,
    recipients: Sequence[Recipient],
    *,
    armored: bool,
    entropy: Entropy | None,
) -> None:
    entropy = entropy or SystemEntropy()
    nonce = entropy.random_bytes(PAYLOAD_NONCE_BYTES)
    with Secret(entropy.random_bytes(FILE_KEY_BYTES)) as file_key:
        header = encode_header(wrap_file_key(file_key, recipients), file_key)
        cipher = PayloadCipher(file_key, nonce)
    armor = ArmorEncoder() if armored else None
    _write_all(target, armor.feed(header + nonce) if armor else header + nonce)
    for chunk in cipher.seal_chunks(read):
        _write_all(target, armor.feed(chunk) if armor else chunk)
    if armor:
        _write_all(target, armor.finish())


def _open(source: BinaryIO, identities: Sequence[Identity], armored: bool | None) -> Iterator[memoryview]:
    """Return the plaintext's chunks, each in the same memory as the one before."""
    if not identities:
        raise AgeSettingWrong("there is no identity to open the file with")
    stream = _buffer(_Bytes(source))
    if armored is None:
        armored = stream.peek(1)[:1] in _ARMOR_STARTS
    if armored:
        stream = _buffer(_Armored(stream))
    header = parse_header(stream.readline)
    with unwrap_file_key(header.stanzas, identities) as file_key:
        verify_header(header, file_key)
        nonce = stream.read(PAYLOAD_NONCE_BYTES)
        if len(nonce) != PAYLOAD_NONCE_BYTES:
            raise AgeHeaderMalformed("the file ends in the payload's nonce")
        cipher = PayloadCipher(file_key, nonce)
    return cipher.open_chunks(stream.read)


def _buffer(raw: io.RawIOBase) -> io.BufferedReader[io.RawIOBase]:
    return io.BufferedReader(raw, SEALED_CHUNK_BYTES)


class _Bytes(io.RawIOBase):
    """A caller's stream, whichever kind it is and however little it gives at a time."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader passes nothing else
        data = _read_some(self._source, len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Armored(io.RawIOBase):
    """The bytes that a stream says in text form."""

    def __init__(self, stream: io.BufferedReader[io.RawIOBase]) -> None:
        self._stream = stream
        self._decoder: ArmorDecoder | None = ArmorDecoder()
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # BufferedReader passes nothing else
        while not self._ready and self._decoder is not None:
            text = self._stream.read1(SEALED_CHUNK_BYTES)
            self._ready = memoryview(self._decoder.feed(text) if text else self._decoder.finish())
            self._decoder = self._decoder if text else None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _read_full(source: BinaryIO, size: int) -> bytes:
    """Return ``size`` bytes, fewer only at the end of the stream."""
    data = _read_some(source, size)
    if len(data) == size or not data:
        return data
    pieces, left = [data], size - len(data)
    while left and (piece := _read_some(source, left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def _read_some(source: BinaryIO, size: int) -> bytes:
    data: bytes | None = source.read(size)
    if data is None:  # a raw stream that has nothing yet: taken for the end it would cut the content off
        raise AgeSettingWrong("the stream to read from does not block")
    return data


def _write_all(target: BinaryIO, data: bytes | memoryview) -> None:
    """Write every byte, however short the stream's single writes are."""
    rest = memoryview(data)
    while rest:
        written: int | None = target.write(rest)
        if written is None:
            raise AgeSettingWrong("the stream to write to does not block")
        rest = rest[written:]
