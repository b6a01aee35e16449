"""What the software provider does with private keys, by algorithm: generate, sign, to PKCS#8 and back.

The private bytes in a store: the seed (Ed25519, ML-DSA), the scalar (ECDSA), PKCS#1 DER (RSA). Source: RFC 5958;
ML-DSA in PKCS#8 as draft-ietf-lamps-dilithium-certificates has it (the seed).
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa, utils

from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import (
    RSA_EXPONENT,
    RSA_GENERATED_BITS,
    PublicKey,
    SignatureAlgorithm,
    curve_of,
    load_rsa_public,
    rsa_pss_padding,
)
from tidegate.keys.errors import ImportRefused, StoreMalformed

MAX_PKCS8_BYTES = 8192  # RSA of 4096 bits needs 2.4 KiB, ML-DSA-87 with its expanded key 5 KiB

_LibraryKey = (
    ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | rsa.RSAPrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)


class SoftwareSigner:
    """Signs with a key of a software store; the private half is unsealed for each signature and dropped again."""

    def __init__(self, public_key: PublicKey, unseal: Callable[[], Secret]) -> None:
        self._public_key = public_key
        self._unseal = unseal

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """Return the raw signature over ``message``."""
        with self._unseal() as private:
            return sign_raw(self._public_key.algorithm, bytes(private.view()), message)


def generate_pair(algorithm: SignatureAlgorithm) -> tuple[bytes, PublicKey]:
    """Return the private bytes and the public key of a new key pair."""
    match algorithm:
        case SignatureAlgorithm.ED25519:
            return _pair(ed25519.Ed25519PrivateKey.generate())
        case SignatureAlgorithm.ML_DSA_65:
            return _pair(mldsa.MLDSA65PrivateKey.generate())
        case SignatureAlgorithm.ML_DSA_87:
            return _pair(mldsa.MLDSA87PrivateKey.generate())
        case SignatureAlgorithm.RSA_PSS:
            return _pair(rsa.generate_private_key(RSA_EXPONENT, RSA_GENERATED_BITS))
        case _:
            return _pair(ec.generate_private_key(curve_of(algorithm)[0]))


def sign_raw(algorithm: SignatureAlgorithm, private: bytes, message: bytes) -> bytes:
    """Return the raw signature over ``message``."""
    key = _load(algorithm, private)
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, rsa_pss_padding(), hashes.SHA256())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        _, digest, size = curve_of(algorithm)
        r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    return key.sign(message)


def to_pkcs8(algorithm: SignatureAlgorithm, private: bytes) -> bytes:
    """Return the unencrypted PKCS#8 DER of private bytes."""
    return _load(algorithm, private).private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def from_pkcs8(der: bytes, algorithm: SignatureAlgorithm) -> tuple[bytes, PublicKey]:
    """Return private bytes and public key of unencrypted PKCS#8 DER of ``algorithm``, as ``parse_pkcs8`` does."""
    private, public = parse_pkcs8(der)
    if public.algorithm is not algorithm:
        raise ImportRefused(f"the key is {public.algorithm.label}, not {algorithm.label}")
    return private, public


def parse_pkcs8(der: bytes) -> tuple[bytes, PublicKey]:
    """Return private bytes and public key of unencrypted PKCS#8 DER, or raise ``keys.import.refused``.

    Only a key of an allowed algorithm and size, whose halves belong together; nothing behind it.
    """
    if len(der) > MAX_PKCS8_BYTES or int.from_bytes(der[:1], "big") != 0x30 or len(der) != _der_length(der):
        raise ImportRefused("these bytes are no single PKCS#8 structure in DER")
    try:
        key = serialization.load_der_private_key(der, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # cause suppressed: libraries quote what they could not read
        raise ImportRefused("these bytes are no unencrypted PKCS#8 private key of a known algorithm") from None
    if not isinstance(key, _LibraryKey):
        raise ImportRefused(f"{type(key).__name__} is of no algorithm that is allowed here")
    try:
        private, public = _pair(key)
        if public.algorithm is SignatureAlgorithm.RSA_PSS:
            load_rsa_public(public.raw)
    except (ValueError, KeyError) as error:
        raise ImportRefused("the key's curve, size or exponent is not allowed") from error
    return private, public


def _pair(key: _LibraryKey) -> tuple[bytes, PublicKey]:
    """Return what is sealed of ``key``, and its public half; raise ``ValueError`` for what is not allowed."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.private_bytes_raw(), PublicKey(SignatureAlgorithm.ED25519, key.public_key().public_bytes_raw())
    if isinstance(key, rsa.RSAPrivateKey):
        public = key.public_key().public_numbers()
        if public.e != RSA_EXPONENT:
            raise ValueError("another exponent")
        der = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        return der, PublicKey(SignatureAlgorithm.RSA_PSS, public.n.to_bytes((public.n.bit_length() + 7) // 8, "big"))
    if isinstance(key, ec.EllipticCurvePrivateKey):
        curves = (SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384)
        algorithm = {curve_of(one)[0].name: one for one in curves}[key.curve.name]
        raw = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        size = curve_of(algorithm)[2]
        return key.private_numbers().private_value.to_bytes(size, "big"), PublicKey(algorithm, raw)
    is_65 = isinstance(key, mldsa.MLDSA65PrivateKey)
    lattice = SignatureAlgorithm.ML_DSA_65 if is_65 else SignatureAlgorithm.ML_DSA_87
    return key.private_bytes_raw(), PublicKey(lattice, key.public_key().public_bytes_raw())


def _load(algorithm: SignatureAlgorithm, private: bytes) -> _LibraryKey:
    """Return the library's key of private bytes that a store opened (they were checked when they were sealed)."""
    match algorithm:
        case SignatureAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.from_private_bytes(private)
        case SignatureAlgorithm.ML_DSA_65:
            return mldsa.MLDSA65PrivateKey.from_seed_bytes(private)
        case SignatureAlgorithm.ML_DSA_87:
            return mldsa.MLDSA87PrivateKey.from_seed_bytes(private)
        case SignatureAlgorithm.RSA_PSS:
            key = serialization.load_der_private_key(private, password=None, unsafe_skip_rsa_key_validation=True)
            if not isinstance(key, rsa.RSAPrivateKey):
                raise StoreMalformed("a sealed RSA key is another kind of key")
            return key
        case _:
            return ec.derive_private_key(int.from_bytes(private, "big"), curve_of(algorithm)[0])


def _der_length(der: bytes) -> int:
    """Return how many bytes the outermost element of ``der`` has, 0 if that cannot be said."""
    if len(der) < 2:
        return 0
    first = der[1]
    if first < 0x80:
        return 2 + first
    width = first & 0x7F
    return 2 + width + int.from_bytes(der[2 : 2 + width], "big") if 1 <= width <= 3 else 0
