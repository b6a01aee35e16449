"""The files that the tool ``fscrypt`` keeps below ``.fscrypt``: protectors and policies, and the keys wrapped in them.

Pure: bytes and values. A *raw key* (32 bytes) opens a *protector*; the protector's key opens the *policy*'s wrapped
key, which is the directory key (64 bytes). Format: Protocol Buffers as the messages ProtectorData and PolicyData of
google/fscrypt, metadata/metadata.proto; wrapping as its crypto.Wrap: HKDF-SHA256, AES-256-CTR, then HMAC-SHA256.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.crypto.aead import Secret
from tidegate.vault.fscrypt_layout import Policy, key_identifier, require_key
from tidegate.vault.kernel_errors import DirectoryKeySize, MetadataMalformed, MetadataRefused

RAW_KEY_BYTES = 32
SOURCE_RAW_KEY = 3
MAX_FILE_BYTES = 16 << 10  # the tool's own files have 200 bytes, and 120 more for each protector of a policy
MAX_FIELDS = 128
MAX_WRAPPED_KEYS = 32

_IV_BYTES, _MAC_BYTES = 16, 32
_MAX_WRAPPED_BYTES = 64
_MAX_VARINT_BYTES = 10
_VARINT, _LENGTH_DELIMITED = 0, 2
_POLICY_VERSION = 2
_DESCRIPTOR = re.compile(r"[0-9a-f]{16}")
_IDENTIFIER = re.compile(r"[0-9a-f]{32}")

Fields = dict[int, list[int | bytes]]
Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A key under another key."""

    iv: bytes
    ciphertext: bytes
    mac: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Protector:
    """What a person or a device has, and the key that it opens; ``source`` 3 is a raw key."""

    descriptor: str
    source: int
    name: str
    wrapped: WrappedKey


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord:
    """Which protectors open the directory key of an identifier (32 hex digits)."""

    identifier: str
    wrapped_keys: tuple[tuple[str, WrappedKey], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """Content and names of the two files that let the tool open a directory."""

    protector_name: str
    protector: bytes
    policy_name: str
    policy: bytes


def plan_files(key: Secret, raw_key: Secret, *, name: str, policy: Policy, entropy: Entropy) -> Files:
    """Return the files by which ``fscrypt unlock --key=FILE`` opens a directory.

    ``key`` is the directory's (64 bytes) and ``policy`` its policy; ``raw_key`` (32 bytes) is what FILE holds; ``name``
    is what the tool shows. Raises ``vault.directory.key-size``.
    """
    require_key(key)
    if policy.identifier != key_identifier(key):
        raise ValueError("the key is not the policy's")
    with Secret(entropy(RAW_KEY_BYTES)) as protector_key:
        digest = hashlib.sha512(hashlib.sha512(protector_key.view()).digest()).hexdigest()
        protector = Protector(
            descriptor=digest[:16],
            source=SOURCE_RAW_KEY,
            name=name,
            wrapped=wrap(raw_key, protector_key, iv=entropy(_IV_BYTES)),
        )
        wrapped = wrap(protector_key, key, iv=entropy(_IV_BYTES))
    return Files(
        protector_name=protector.descriptor,
        protector=encode_protector(protector),
        policy_name=policy.identifier.hex(),
        policy=encode_policy_record(policy, protector.descriptor, wrapped),
    )


def wrap(wrapping: Secret, secret: Secret, *, iv: bytes) -> WrappedKey:
    """Return ``secret`` under ``wrapping`` (32 bytes); ``iv`` (16 bytes) is never used twice with the same key."""
    with _stretched(wrapping) as pair:
        encryptor = Cipher(algorithms.AES(pair.view()[:32]), modes.CTR(iv)).encryptor()
        ciphertext = encryptor.update(secret.view()) + encryptor.finalize()
        return WrappedKey(iv=iv, ciphertext=ciphertext, mac=_mac(pair, iv, ciphertext).finalize())


def unwrap(wrapping: Secret, wrapped: WrappedKey) -> Secret:
    """Return the wrapped key, or raise ``vault.fscrypt.refused`` if ``wrapping`` is another key or a byte changed."""
    with _stretched(wrapping) as pair:
        try:
            _mac(pair, wrapped.iv, wrapped.ciphertext).verify(wrapped.mac)
        except InvalidSignature as error:
            raise MetadataRefused("the wrapped key's authentication code does not hold") from error
        secret = Secret(bytes(len(wrapped.ciphertext)))
        decryptor = Cipher(algorithms.AES(pair.view()[:32]), modes.CTR(wrapped.iv)).decryptor()
        decryptor.update_into(wrapped.ciphertext, secret.view())
        return secret


def encode_protector(protector: Protector) -> bytes:
    """Return a protector file."""
    return (
        _bytes_field(1, protector.descriptor.encode())
        + _varint_field(2, protector.source)
        + _bytes_field(3, protector.name.encode())
        + _bytes_field(7, _encode_wrapped(protector.wrapped))
    )


def encode_policy_record(policy: Policy, descriptor: str, wrapped: WrappedKey) -> bytes:
    """Return a policy file with one protector."""
    options = (
        _varint_field(1, policy.padding_bytes)
        + _varint_field(2, policy.contents)
        + _varint_field(3, policy.names)
        + _varint_field(4, _POLICY_VERSION)
    )
    entry = _bytes_field(1, descriptor.encode()) + _bytes_field(2, _encode_wrapped(wrapped))
    return _bytes_field(1, policy.identifier.hex().encode()) + _bytes_field(2, options) + _bytes_field(3, entry)


def parse_protector(raw: bytes) -> Protector:
    """Return a protector, or raise ``vault.fscrypt.malformed``; of a passphrase's, costs and salt are not kept."""
    fields = _parse_fields(raw, known=range(1, 8))
    return Protector(
        descriptor=_text(_one(fields, 1), _DESCRIPTOR),
        source=_integer(fields, 2),
        name=_text(_one(fields, 3), None) if 3 in fields else "",
        wrapped=_parse_wrapped(_one(fields, 7)),
    )


def parse_policy_record(raw: bytes) -> PolicyRecord:
    """Return a policy's record, or raise ``vault.fscrypt.malformed``; its options are the kernel's to say."""
    fields = _parse_fields(raw, known=range(1, 4))
    entries = fields.get(3, [])
    if not 1 <= len(entries) <= MAX_WRAPPED_KEYS:
        raise MetadataMalformed(f"the policy has {len(entries)} protectors, not 1 to {MAX_WRAPPED_KEYS}")
    wrapped_keys = []
    for entry in entries:
        inner = _parse_fields(_blob(entry), known=range(1, 3))
        wrapped_keys.append((_text(_one(inner, 1), _DESCRIPTOR), _parse_wrapped(_one(inner, 2))))
    return PolicyRecord(identifier=_text(_one(fields, 1), _IDENTIFIER), wrapped_keys=tuple(wrapped_keys))


def _stretched(wrapping: Secret) -> Secret:
    """Return the key of encryption and the key of authentication, 32 bytes each."""
    if len(wrapping) != RAW_KEY_BYTES:
        raise DirectoryKeySize(f"a wrapping key has {RAW_KEY_BYTES} bytes, this one has {len(wrapping)}")
    pair = Secret(bytes(64))
    HKDF(algorithm=hashes.SHA256(), length=64, salt=None, info=b"").derive_into(wrapping.view(), pair.view())
    return pair


def _mac(pair: Secret, iv: bytes, ciphertext: bytes) -> HMAC:
    mac = HMAC(pair.view()[32:], hashes.SHA256())
    mac.update(iv)
    mac.update(ciphertext)
    return mac


def _encode_wrapped(wrapped: WrappedKey) -> bytes:
    return _bytes_field(1, wrapped.iv) + _bytes_field(2, wrapped.ciphertext) + _bytes_field(3, wrapped.mac)


def _parse_wrapped(raw: bytes) -> WrappedKey:
    fields = _parse_fields(raw, known=range(1, 4))
    wrapped = WrappedKey(iv=_one(fields, 1), ciphertext=_one(fields, 2), mac=_one(fields, 3))
    sizes = (len(wrapped.iv), len(wrapped.mac))
    if sizes != (_IV_BYTES, _MAC_BYTES) or not 0 < len(wrapped.ciphertext) <= _MAX_WRAPPED_BYTES:
        raise MetadataMalformed("a wrapped key's parts have the wrong lengths")
    return wrapped


def _parse_fields(raw: bytes, *, known: range) -> Fields:
    """Return a message's fields by number; refuse numbers that are not ``known`` and types that the format lacks."""
    fields: Fields = {}
    for number, value in _iter_fields(raw):
        if number not in known:
            raise MetadataMalformed(f"the message has the unknown field {number}")
        fields.setdefault(number, []).append(value)
    return fields


def _iter_fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    if len(raw) > MAX_FILE_BYTES:
        raise MetadataMalformed(f"the message has more than {MAX_FILE_BYTES} bytes")
    position = 0
    for _ in range(MAX_FIELDS):
        if position == len(raw):
            return
        tag, position = _parse_varint(raw, position)
        value, position = _parse_varint(raw, position)
        if tag & 7 == _VARINT:
            yield tag >> 3, value
        elif tag & 7 == _LENGTH_DELIMITED and value <= len(raw) - position:
            yield tag >> 3, raw[position : position + value]
            position += value
        else:
            raise MetadataMalformed("a field is cut off, or of a type that the format does not have")
    if position != len(raw):
        raise MetadataMalformed(f"the message has more than {MAX_FIELDS} fields")


def _parse_varint(raw: bytes, position: int) -> tuple[int, int]:
    """Return the number at ``position`` and the position behind it."""
    value = 0
    for index, byte in enumerate(raw[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if not byte & 0x80:
            return value, position + index + 1
    raise MetadataMalformed("a number is cut off or too long")


def _one(fields: Fields, number: int) -> bytes:
    values = fields.get(number, [])
    if len(values) != 1:
        raise MetadataMalformed(f"field {number} is there {len(values)} times, not once")
    return _blob(values[0])


def _blob(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise MetadataMalformed("a field is a number where bytes are expected")
    return value


def _integer(fields: Fields, number: int) -> int:
    values = fields.get(number, [0])
    if len(values) != 1 or not isinstance(values[0], int):
        raise MetadataMalformed(f"field {number} is not one number")
    return values[0]


def _text(raw: bytes, pattern: re.Pattern[str] | None) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise MetadataMalformed("a text is not UTF-8") from error
    if pattern is not None and pattern.fullmatch(text) is None:
        raise MetadataMalformed("a descriptor is not made of hexadecimal digits")
    return text


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
