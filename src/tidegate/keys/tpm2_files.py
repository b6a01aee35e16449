"""What a TPM made and a folder keeps, the key file and its public area: bytes to values and back, nothing else.

A TSS2 PRIVATE KEY file (the ASN.1 of draft-bottomley-tpm2-keys) is accepted if it encodes to the same bytes again; a
public area (TPM 2.0 Part 2, §12.2.4) if it is exactly what this provider makes for the purpose in the key's record.
Bytes: docs/formats/tpm2.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.base.errors import Rejected
from tidegate.crypto.signing import RSA_EXPONENT, RSA_GENERATED_BITS, PublicKey, SignatureAlgorithm, parse_public_key
from tidegate.keys.errors import StoreMalformed
from tidegate.keys.pcr_policy import (
    ALG_ECDSA,
    ALG_RSAPSS,
    ALG_SHA256,
    ECC,
    authorized_policy,
    pcr_policy,
    with_auth_value,
)
from tidegate.keys.store import (
    KeyInfo,
    KeyPolicy,
    KeyPurpose,
    KeySpec,
)
from tidegate.keys.tpm2_floor import Floor, floored_policy
from tidegate.keys.tpm2_nvpolicy import Revocation, revocable_policy
from tidegate.keys.tpm2_records import KeyRecord

MAX_PEM_BYTES = 4096  # an RSA-4096 key has 2.2 KiB

_ALG_RSA, _ALG_KEYEDHASH, _ALG_ECC, _ALG_NULL = 0x0001, 0x0008, 0x0023, 0x0010
_FIXED_TPM, _FIXED_PARENT, _ORIGIN, _USER_WITH_AUTH = 1 << 1, 1 << 4, 1 << 5, 1 << 6
_NO_DA, _RESTRICTED, _DECRYPT, _SIGN = 1 << 10, 1 << 16, 1 << 17, 1 << 18

_OID = bytes.fromhex("06066781050a0103")  # 2.23.133.10.1.3, a loadable key
_EMPTY_AUTH, _ASKS = bytes.fromhex("a0030101ff"), bytes.fromhex("a003010100")  # emptyAuth [0] TRUE, FALSE
_PEM_HEAD, _PEM_FOOT = b"-----BEGIN TSS2 PRIVATE KEY-----\n", b"-----END TSS2 PRIVATE KEY-----\n"


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _sized(data: bytes) -> bytes:
    return _u16(len(data)) + data


# The storage primary: the ECC template that tpm2-tss, tpm2-openssl and the TSS2 PEM form agree on (P-256, AES-128-CFB,
# no authorisation, no unique bytes); the same seed gives the same key whenever it is made again.
PRIMARY_TEMPLATE = (
    _u16(_ALG_ECC)
    + _u16(ALG_SHA256)
    + (_FIXED_TPM | _FIXED_PARENT | _ORIGIN | _USER_WITH_AUTH | _NO_DA | _RESTRICTED | _DECRYPT).to_bytes(4, "big")
    + _sized(b"")
    + _u16(0x0006)  # AES
    + _u16(128)
    + _u16(0x0043)  # CFB
    + _u16(_ALG_NULL)
    + _u16(0x0003)  # P-256
    + _u16(_ALG_NULL)
    + _sized(b"")
    + _sized(b"")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A key as the TPM gives it out: public area, wrapped private area (without their size fields), its parent."""

    parent: int
    public: bytes
    private: bytes
    user_auth: bool = False

    @property
    def name(self) -> bytes:
        """Return the object's name, by which the TPM and we know that it is this key."""
        return object_name(self.public)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicArea:
    """What a public area says."""

    attributes: int
    auth_policy: bytes
    purpose: KeyPurpose
    public_key: PublicKey | None


def object_name(public: bytes) -> bytes:
    """Return the name of the object with this public area."""
    return _u16(ALG_SHA256) + hashlib.sha256(public).digest()


def policy_of(
    policy: KeyPolicy, pcrs: Mapping[int, bytes], *, floor: Floor | None = None, revocation: Revocation | None = None
) -> bytes:
    """Return the authPolicy of a key under ``policy``: empty for one that is neither bound to PCRs nor revocable.

    ``pcrs`` are the values at birth of a key without an authority.
    """
    authority = policy.pcr_authority
    if authority is None:
        digest = pcr_policy(pcrs) if pcrs else b""
    elif floor is None:
        digest = authorized_policy(authority, policy.pcrs, None)
    else:
        digest = floored_policy(authority, policy.pcrs, floor)
    if revocation is not None:
        digest = revocable_policy(digest, revocation)
    return with_auth_value(digest) if digest and policy.user_auth else digest


def encode_template(spec: KeySpec, auth_policy: bytes) -> bytes:
    """Return the TPMT_PUBLIC that makes a key of ``spec``; its unique field is empty."""
    attest = spec.purpose is KeyPurpose.ATTEST
    if spec.algorithm is None:
        return _head(_ALG_KEYEDHASH, spec, auth_policy) + _u16(_ALG_NULL) + _sized(b"")
    if spec.algorithm is SignatureAlgorithm.RSA_PSS:
        scheme = _u16(ALG_RSAPSS) + _u16(ALG_SHA256) if attest else _u16(_ALG_NULL)
        size = _u16(RSA_GENERATED_BITS) + (0).to_bytes(4, "big")  # exponent 0 is 65537
        return _head(_ALG_RSA, spec, auth_policy) + _u16(_ALG_NULL) + scheme + size + _sized(b"")
    curve, digest, _ = ECC[spec.algorithm]
    scheme = _u16(ALG_ECDSA) + _u16(digest) if attest else _u16(_ALG_NULL)
    middle = _u16(_ALG_NULL) + scheme + _u16(curve) + _u16(_ALG_NULL)
    return _head(_ALG_ECC, spec, auth_policy) + middle + _sized(b"") + _sized(b"")


def _head(kind: int, spec: KeySpec, auth_policy: bytes) -> bytes:
    return _u16(kind) + _u16(ALG_SHA256) + _attributes(spec).to_bytes(4, "big") + _sized(auth_policy)


def _attributes(spec: KeySpec) -> int:
    bits = _FIXED_TPM | _FIXED_PARENT
    if spec.purpose is not KeyPurpose.SEAL:
        bits |= _ORIGIN | _SIGN  # a sealed secret comes from outside, of a key the TPM may say that it made it
    if spec.purpose is KeyPurpose.ATTEST:
        bits |= _RESTRICTED
    if not spec.policy.pcrs and not spec.policy.revocable:
        bits |= _USER_WITH_AUTH  # else the policy is the only way in
    if not spec.policy.user_auth:
        bits |= _NO_DA  # no PIN to guess, and it goes on working while other keys are locked
    return bits


class _Reader:
    """A position in a public area."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._position = 0

    def take(self, count: int) -> bytes:
        piece = self._raw[self._position : self._position + count]
        if len(piece) != count:
            raise StoreMalformed("a TPM public area ends early")
        self._position += count
        return piece

    def number(self, width: int = 2) -> int:
        return int.from_bytes(self.take(width), "big")

    def sized(self) -> bytes:
        return self.take(self.number())

    def end(self) -> None:
        if self._position != len(self._raw):
            raise StoreMalformed("a TPM public area has bytes behind its end")


def parse_public_area(raw: bytes) -> PublicArea:
    """Return what a TPMT_PUBLIC says, or raise ``keys.store.malformed`` for one that no key of ours has."""
    reader = _Reader(raw)
    kind, name_algorithm, attributes = reader.number(), reader.number(), reader.number(4)
    auth_policy = reader.sized()
    if name_algorithm != ALG_SHA256 or len(auth_policy) not in (0, 32):
        raise StoreMalformed("a TPM public area is of a form that is not ours")
    public = None if kind == _ALG_KEYEDHASH else _parse_asymmetric(kind, reader)
    if kind == _ALG_KEYEDHASH:
        if reader.number() != _ALG_NULL or len(reader.sized()) != 32:
            raise StoreMalformed("a sealed object is of a form that is not ours")
        purpose = KeyPurpose.SEAL
    else:
        purpose = KeyPurpose.ATTEST if attributes & _RESTRICTED else KeyPurpose.SIGN
    reader.end()
    return PublicArea(attributes=attributes, auth_policy=auth_policy, purpose=purpose, public_key=public)


def _parse_asymmetric(kind: int, reader: _Reader) -> PublicKey:
    if reader.number() != _ALG_NULL:
        raise StoreMalformed("a TPM key for storage is no key of ours")
    scheme = reader.number()
    if scheme in (ALG_ECDSA, ALG_RSAPSS):
        reader.number()  # its hash; the TPM itself refuses to sign with another one
    elif scheme != _ALG_NULL:
        raise StoreMalformed("a TPM key has a scheme that is not ours")
    if kind == _ALG_RSA:
        reader.number()
        if reader.number(4) not in (0, RSA_EXPONENT):
            raise StoreMalformed("a TPM key has an RSA exponent that is not ours")
        return _checked(PublicKey(SignatureAlgorithm.RSA_PSS, reader.sized()))
    curve = reader.number()
    for algorithm, (number, _, size) in ECC.items():
        if kind == _ALG_ECC and curve == number and reader.number() == _ALG_NULL:
            point = b"\x04" + reader.sized().rjust(size, b"\0") + reader.sized().rjust(size, b"\0")
            return _checked(PublicKey(algorithm, point))
    raise StoreMalformed("a TPM key is of a type that is not ours")


def _checked(key: PublicKey) -> PublicKey:
    try:
        return parse_public_key(key.encode())
    except Rejected as error:
        raise StoreMalformed(f"a TPM key's public half is none: {error.message}") from error


def check_key(record: KeyRecord, key: WrappedKey, parent: int) -> KeyInfo:
    """Return what is known of a key whose record and public area say the same, else raise ``keys.store.malformed``.

    The record is nobody's signature; the public area is bound to the private one by the TPM when it loads them. So a
    changed purpose, policy, PIN flag or recorded register value is found here.
    """
    area = parse_public_area(key.public)
    algorithm = area.public_key.algorithm if area.public_key else None
    policy = policy_of(record.spec.policy, record.pcrs, floor=record.floor, revocation=record.revocation)
    same = (
        area.purpose is record.spec.purpose
        and algorithm is record.spec.algorithm
        and area.attributes == _attributes(record.spec)
        and area.auth_policy == policy
        and key.user_auth is record.spec.policy.user_auth
        and key.parent == parent
    )
    if not same:
        raise StoreMalformed(f"record and TPM object of key {record.name!r} contradict each other", key=record.name)
    return KeyInfo(name=record.name, spec=record.spec, public_key=area.public_key)


def spec_of(public: bytes) -> KeySpec:
    """Return the spec of a key found in the TPM, made by others: signing or attesting, fixed to the TPM, no policy."""
    area = parse_public_area(public)
    wanted = _FIXED_TPM | _FIXED_PARENT | _ORIGIN | _USER_WITH_AUTH | _SIGN
    if area.public_key is None or area.auth_policy or area.attributes & (wanted | _DECRYPT) != wanted:
        raise StoreMalformed("the key at this handle is no signing key that was born in the TPM")
    policy = KeyPolicy(user_auth=not area.attributes & _NO_DA)
    return KeySpec(purpose=area.purpose, algorithm=area.public_key.algorithm, policy=policy)


def encode_pem(key: WrappedKey) -> bytes:
    """Return the TSS2 PRIVATE KEY file of ``key``."""
    parent = key.parent.to_bytes(5, "big").lstrip(b"\0") or b"\0"
    parent = b"\0" + parent if parent[0] & 0x80 else parent
    body = _OID + (_ASKS if key.user_auth else _EMPTY_AUTH) + _der(0x02, parent)
    body += _der(0x04, _sized(key.public)) + _der(0x04, _sized(key.private))
    text = base64.b64encode(_der(0x30, body))
    lines = [text[start : start + 64] + b"\n" for start in range(0, len(text), 64)]
    return _PEM_HEAD + b"".join(lines) + _PEM_FOOT


def parse_pem(raw: bytes) -> WrappedKey:
    """Return the key in a TSS2 PRIVATE KEY file that encodes to exactly ``raw``; raise ``keys.store.malformed``."""
    if not raw.startswith(_PEM_HEAD) or not raw.endswith(_PEM_FOOT) or len(raw) > MAX_PEM_BYTES:
        raise StoreMalformed("a file is no TSS2 PRIVATE KEY")
    try:
        der = base64.b64decode(raw[len(_PEM_HEAD) : -len(_PEM_FOOT)].replace(b"\n", b""), validate=True)
        sequence, rest = _take(der, 0x30)
        user_auth, body = sequence[len(_OID) : len(_OID) + 5] == _ASKS, sequence[len(_OID) + 5 :]
        parent, body = _take(body, 0x02)
        public, body = _take(body, 0x04)
        private, body = _take(body, 0x04)
        key = WrappedKey(
            parent=int.from_bytes(parent, "big"), public=public[2:], private=private[2:], user_auth=user_auth
        )
        if not rest and not body and 0 < len(parent) <= 5 and encode_pem(key) == raw:
            return key
    except (binascii.Error, ValueError, OverflowError) as error:
        raise StoreMalformed("a TSS2 PRIVATE KEY file is damaged") from error
    raise StoreMalformed("a TSS2 PRIVATE KEY file is of a form that is not ours")


def _der(tag: int, content: bytes) -> bytes:
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(size)]) + size + content


def _take(raw: bytes, tag: int) -> tuple[bytes, bytes]:
    """Return content and rest; the comparison with the encoding afterwards finds every other form."""
    if len(raw) < 2 or raw[0] != tag:
        raise ValueError("another element was expected")
    start, size = 2, raw[1]
    if size >= 0x80:
        start += size & 0x7F
        size = int.from_bytes(raw[2:start], "big")
    if size > len(raw) - start:
        raise ValueError("an element ends early")
    return raw[start : start + size], raw[start + size :]
