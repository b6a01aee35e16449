"""Signature algorithms, public keys and their names.

Source: COSE keys RFC 9052 §7, key thumbprints RFC 9679, Ed25519 and ECDSA identifiers RFC 9864, RSA-PSS RFC 8230,
ML-DSA FIPS 204 with the COSE registrations of draft-ietf-cose-dilithium. Signatures are raw: r and s side by side
for ECDSA, no DER.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa, utils

from tidegate.crypto import cbor
from tidegate.crypto.errors import AlgorithmUnknown, PublicKeyMalformed, SignatureInvalid

RSA_GENERATED_BITS = 3072  # NIST SP 800-57: 128 bits of strength
RSA_EXPONENT = 65_537
RSA_PSS_SALT_BYTES = 32  # the length of the hash, as RFC 8230 and TLS 1.3 want it
_RSA_BITS = (3072, 4096)
MAX_PUBLIC_KEY_BYTES = 4096  # a COSE_Key with ML-DSA-87 has 2,602


class AlgorithmClass(enum.Enum):
    """What has to be broken before a signature of this class can be forged."""

    CLASSICAL = "classical"
    POST_QUANTUM = "post-quantum"


class SignatureAlgorithm(enum.IntEnum):
    """The allowed algorithms with their COSE identifiers."""

    ED25519 = -19
    ECDSA_P256 = -9
    ECDSA_P384 = -51
    ML_DSA_65 = -49
    ML_DSA_87 = -50
    RSA_PSS = -37  # SHA-256, 3072 or 4096 bits, exponent 65537: for boot ROMs and peers that know nothing newer

    @property
    def algorithm_class(self) -> AlgorithmClass:
        """Return whether a quantum computer would break it."""
        post_quantum = self in (SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ML_DSA_87)
        return AlgorithmClass.POST_QUANTUM if post_quantum else AlgorithmClass.CLASSICAL

    @property
    def label(self) -> str:
        """Return the name used on the command line: ``ed25519``, ``ml-dsa-65``, …"""
        return self.name.lower().replace("_", "-")


def parse_algorithm(label: str) -> SignatureAlgorithm:
    """Return the algorithm called ``label`` or raise ``crypto.algorithm.unknown``."""
    for algorithm in SignatureAlgorithm:
        if algorithm.label == label:
            return algorithm
    allowed = ", ".join(algorithm.label for algorithm in SignatureAlgorithm)
    raise AlgorithmUnknown(f"no signature algorithm {label!r}; allowed: {allowed}", algorithm=label)


@dataclass(frozen=True, slots=True)
class KeyId:
    """The SHA-256 thumbprint of a public key (RFC 9679)."""

    digest: bytes

    def __str__(self) -> str:
        return self.digest.hex()[:16]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key.

    ``raw`` is 32 bytes for Ed25519, the uncompressed point for ECDSA, FIPS 204 bytes for ML-DSA, the modulus for RSA
    (big endian, without leading zeros; the exponent is always 65537).
    """

    algorithm: SignatureAlgorithm
    raw: bytes

    @property
    def key_id(self) -> KeyId:
        """Return the thumbprint over the required members of the COSE_Key."""
        members = dict(_cose_members(self))
        if members[1] != 7:  # AKP alone counts the algorithm among its required members
            members.pop(3)
        return KeyId(hashlib.sha256(cbor.encode(members)).digest())

    def encode(self) -> bytes:
        """Return the COSE_Key in deterministic CBOR."""
        return cbor.encode(_cose_members(self))

    def verify(self, signature: bytes, message: bytes) -> None:
        """Return if ``signature`` over ``message`` is this key's, else raise ``crypto.signature.invalid``."""
        try:
            _VERIFIERS[self.algorithm](self.raw, signature, message)
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid(
                f"the {self.algorithm.label} signature of key {self.key_id} does not hold", key=str(self.key_id)
            ) from error


class Signer(Protocol):
    """A private key that stays where it is and signs."""

    @property
    def public_key(self) -> PublicKey:
        """Return the public half."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the raw signature over ``message``."""
        ...


# curve identifier (RFC 9053 §7.1), curve, hash, bytes of a coordinate
_CURVES: dict[SignatureAlgorithm, tuple[int, ec.EllipticCurve, hashes.HashAlgorithm, int]] = {
    SignatureAlgorithm.ECDSA_P256: (1, ec.SECP256R1(), hashes.SHA256(), 32),
    SignatureAlgorithm.ECDSA_P384: (2, ec.SECP384R1(), hashes.SHA384(), 48),
}


def curve_of(algorithm: SignatureAlgorithm) -> tuple[ec.EllipticCurve, hashes.HashAlgorithm, int]:
    """Return curve, hash and coordinate size in bytes of an ECDSA algorithm."""
    return _CURVES[algorithm][1:]


def parse_public_key(raw: bytes) -> PublicKey:
    """Return the key that encodes to exactly ``raw``, or raise ``crypto.key.malformed`` or ``crypto.cbor.*``.

    The point is checked to lie on its curve and the length to fit the algorithm. Whether the key is to be trusted is
    not checked.
    """
    members = cbor.decode(raw, limit_bytes=MAX_PUBLIC_KEY_BYTES)
    if not isinstance(members, dict) or not isinstance(number := members.get(3), int):
        raise PublicKeyMalformed("a COSE_Key is a map with an algorithm")
    try:
        algorithm = SignatureAlgorithm(number)
    except ValueError as error:
        raise AlgorithmUnknown(f"COSE algorithm {number} is not allowed", algorithm=number) from error
    if algorithm in _CURVES:
        parts = [b"\x04", members.get(-2), members.get(-3)]
    else:
        parts = [members.get(-2 if algorithm is SignatureAlgorithm.ED25519 else -1)]  # ML-DSA's key, RSA's modulus
    if not all(isinstance(part, bytes) for part in parts):
        raise PublicKeyMalformed("a coordinate of the COSE_Key is missing")
    key = PublicKey(algorithm, b"".join(part for part in parts if isinstance(part, bytes)))
    try:
        _LOADERS[algorithm](key.raw)
    except ValueError as error:
        raise PublicKeyMalformed(f"no {algorithm.label} key: {error}") from error
    if key.encode() != raw:
        raise PublicKeyMalformed("the COSE_Key has members that it may not have")
    return key


def _cose_members(key: PublicKey) -> dict[int, int | bytes]:
    if key.algorithm is SignatureAlgorithm.ED25519:
        return {1: 1, 3: key.algorithm, -1: 6, -2: key.raw}
    if key.algorithm in _CURVES:
        curve, _, _, size = _CURVES[key.algorithm]
        return {1: 2, 3: key.algorithm, -1: curve, -2: key.raw[1 : 1 + size], -3: key.raw[1 + size :]}
    if key.algorithm is SignatureAlgorithm.RSA_PSS:
        return {1: 3, 3: key.algorithm, -1: key.raw, -2: RSA_EXPONENT.to_bytes(3, "big")}
    return {1: 7, 3: key.algorithm, -1: key.raw}


def load_rsa_public(raw: bytes) -> rsa.RSAPublicKey:
    """Return the RSA key with modulus ``raw``; raise ``ValueError`` for a size that is not allowed."""
    modulus = int.from_bytes(raw, "big")
    if 8 * len(raw) not in _RSA_BITS or modulus.bit_length() != 8 * len(raw) or modulus % 2 == 0:
        raise ValueError(f"{modulus.bit_length()} bits; a modulus is odd and has {_RSA_BITS[0]} or {_RSA_BITS[1]}")
    return rsa.RSAPublicNumbers(RSA_EXPONENT, modulus).public_key()


def rsa_pss_padding() -> padding.PSS:
    """Return the one padding of ``RSA_PSS``: MGF1 with SHA-256 and a salt of 32 bytes."""
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=RSA_PSS_SALT_BYTES)


def _verify_ecdsa(algorithm: SignatureAlgorithm) -> Callable[[bytes, bytes, bytes], None]:
    curve, digest, size = curve_of(algorithm)

    def verify(raw: bytes, signature: bytes, message: bytes) -> None:
        if len(signature) != 2 * size:
            raise ValueError("signature has the wrong length")
        pair = (int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big"))
        key = ec.EllipticCurvePublicKey.from_encoded_point(curve, raw)
        key.verify(utils.encode_dss_signature(*pair), message, ec.ECDSA(digest))

    return verify


_VERIFIERS: dict[SignatureAlgorithm, Callable[[bytes, bytes, bytes], None]] = {
    SignatureAlgorithm.ED25519: lambda raw, signature, message: ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(
        signature, message
    ),
    SignatureAlgorithm.RSA_PSS: lambda raw, signature, message: load_rsa_public(raw).verify(
        signature, message, rsa_pss_padding(), hashes.SHA256()
    ),
    SignatureAlgorithm.ECDSA_P256: _verify_ecdsa(SignatureAlgorithm.ECDSA_P256),
    SignatureAlgorithm.ECDSA_P384: _verify_ecdsa(SignatureAlgorithm.ECDSA_P384),
    SignatureAlgorithm.ML_DSA_65: lambda raw, signature, message: mldsa.MLDSA65PublicKey.from_public_bytes(raw).verify(
        signature, message
    ),
    SignatureAlgorithm.ML_DSA_87: lambda raw, signature, message: mldsa.MLDSA87PublicKey.from_public_bytes(raw).verify(
        signature, message
    ),
}

_LOADERS: dict[SignatureAlgorithm, Callable[[bytes], object]] = {
    SignatureAlgorithm.ED25519: ed25519.Ed25519PublicKey.from_public_bytes,
    SignatureAlgorithm.ECDSA_P256: lambda raw: ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw),
    SignatureAlgorithm.ECDSA_P384: lambda raw: ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), raw),
    SignatureAlgorithm.ML_DSA_65: mldsa.MLDSA65PublicKey.from_public_bytes,
    SignatureAlgorithm.ML_DSA_87: mldsa.MLDSA87PublicKey.from_public_bytes,
    SignatureAlgorithm.RSA_PSS: load_rsa_public,
}
