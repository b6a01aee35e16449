"""Keys of a ``KeyStore`` in the shape that certificate builders expect; the private half stays in its provider. Pure.

Certificates carry ECDSA, Ed25519 and RSA keys (RSA signs with PSS alone). ML-DSA signs images and policies, not yet
certificates: hardly any peer reads those.
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from tidegate.crypto.signing import (
    RSA_EXPONENT,
    PublicKey,
    SignatureAlgorithm,
    Signer,
    curve_of,
    load_rsa_public,
    rsa_pss_padding,
)
from tidegate.pki.errors import KeyUnsupported

LibraryPublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
LibraryPrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
# what the library raises, besides ValueError and UnsupportedAlgorithm, for structures that it does not take; none of
# these is a ValueError, and each can be provoked by whoever sends a request, a certificate, an answer or a list
UNREADABLE = (x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
_CURVES = {"secp256r1": SignatureAlgorithm.ECDSA_P256, "secp384r1": SignatureAlgorithm.ECDSA_P384}


class _StaysInside:
    """What every key here refuses, and what it shares."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def private_numbers(self) -> NoReturn:
        raise TypeError("a key does not leave its provider")

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,  # noqa: A002  # the name is the library's
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> NoReturn:
        raise TypeError("a key does not leave its provider")

    def private_bytes_raw(self) -> NoReturn:
        raise TypeError("a key does not leave its provider")

    def __copy__(self) -> Any:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Any:
        return self


class KeyStoreEcKey(_StaysInside, ec.EllipticCurvePrivateKey):
    """An ECDSA key in a ``KeyStore``."""

    def __init__(self, signer: Signer) -> None:
        super().__init__(signer)
        self._curve, self._hash, self._size = curve_of(signer.public_key.algorithm)

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return a DER signature; only the hash that belongs to the curve is accepted."""
        if getattr(signature_algorithm.algorithm, "name", None) != self._hash.name:
            raise ValueError("this key signs with the hash of its curve only")
        raw = self._signer.sign(bytes(data))
        return utils.encode_dss_signature(
            int.from_bytes(raw[: self._size], "big"), int.from_bytes(raw[self._size :], "big")
        )

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return ec.EllipticCurvePublicKey.from_encoded_point(self._curve, self._signer.public_key.raw)

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._curve

    @property
    def key_size(self) -> int:
        return self._curve.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        raise TypeError("a signing key does not agree on keys")


class KeyStoreEd25519Key(_StaysInside, ed25519.Ed25519PrivateKey):
    """An Ed25519 key in a ``KeyStore``."""

    def sign(self, data: Any) -> bytes:
        """Return the raw signature."""
        return self._signer.sign(bytes(data))

    def public_key(self) -> ed25519.Ed25519PublicKey:
        return ed25519.Ed25519PublicKey.from_public_bytes(self._signer.public_key.raw)


class KeyStoreRsaKey(_StaysInside, rsa.RSAPrivateKey):
    """An RSA key in a ``KeyStore``; it signs with PSS, SHA-256 and a salt of 32 bytes."""

    def sign(self, data: Any, padding: Any, algorithm: Any) -> bytes:
        """Return the raw signature; any other padding or hash is refused."""
        if not _is_our_pss(padding) or getattr(algorithm, "name", None) != "sha256":
            raise ValueError("this key signs with RSA-PSS, SHA-256 and a salt of 32 bytes only")
        return self._signer.sign(bytes(data))

    def public_key(self) -> rsa.RSAPublicKey:
        return load_rsa_public(self._signer.public_key.raw)

    @property
    def key_size(self) -> int:
        return self.public_key().key_size

    def decrypt(self, ciphertext: bytes, padding: Any) -> NoReturn:
        raise TypeError("a signing key does not decrypt")


def private_key_for(signer: Signer) -> LibraryPrivateKey:
    """Return ``signer`` as the library's kind of private key; raise ``pki.key.unsupported`` for ML-DSA."""
    algorithm = signer.public_key.algorithm
    if algorithm in _CURVES.values():
        return KeyStoreEcKey(signer)
    if algorithm is SignatureAlgorithm.ED25519:
        return KeyStoreEd25519Key(signer)
    if algorithm is SignatureAlgorithm.RSA_PSS:
        return KeyStoreRsaKey(signer)
    raise _unsupported(signer.public_key)


def hash_for(key: PublicKey) -> hashes.SHA256 | hashes.SHA384 | None:
    """Return the hash that a certificate builder is to be told for this key; None for Ed25519, which has its own."""
    if key.algorithm is SignatureAlgorithm.ED25519:
        return None
    return hashes.SHA384() if key.algorithm is SignatureAlgorithm.ECDSA_P384 else hashes.SHA256()


def padding_for(key: PublicKey) -> padding.PSS | None:
    """Return the padding that a certificate builder is to be told: PSS for RSA."""
    return rsa_pss_padding() if key.algorithm is SignatureAlgorithm.RSA_PSS else None


def library_public_key(key: PublicKey) -> LibraryPublicKey:
    """Return a public key as the library's object; raise ``pki.key.unsupported`` for ML-DSA."""
    if key.algorithm in _CURVES.values():
        return ec.EllipticCurvePublicKey.from_encoded_point(curve_of(key.algorithm)[0], key.raw)
    if key.algorithm is SignatureAlgorithm.ED25519:
        return ed25519.Ed25519PublicKey.from_public_bytes(key.raw)
    if key.algorithm is SignatureAlgorithm.RSA_PSS:
        return load_rsa_public(key.raw)
    raise _unsupported(key)


def public_key_of(key: CertificatePublicKeyTypes) -> PublicKey:
    """Return the library's public key as ours; raise ``pki.key.unsupported`` for other kinds and sizes."""
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        point = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        return PublicKey(_CURVES[key.curve.name], point)
    if isinstance(key, ed25519.Ed25519PublicKey):
        return PublicKey(SignatureAlgorithm.ED25519, key.public_bytes_raw())
    if isinstance(key, rsa.RSAPublicKey):
        numbers = key.public_numbers()
        raw = numbers.n.to_bytes((key.key_size + 7) // 8, "big")
        if numbers.e == RSA_EXPONENT and key.key_size in (3072, 4096):
            return PublicKey(SignatureAlgorithm.RSA_PSS, raw)
        raise KeyUnsupported(f"an RSA key of {key.key_size} bits with exponent {numbers.e} is not allowed")
    raise KeyUnsupported(f"a key of kind {type(key).__name__} is not allowed in certificates")


def _is_our_pss(scheme: object) -> bool:
    ours = rsa_pss_padding()
    return (
        isinstance(scheme, padding.PSS)
        and scheme.mgf._algorithm.name == "sha256"
        and scheme._salt_length == ours._salt_length
    )


def _unsupported(key: PublicKey) -> KeyUnsupported:
    return KeyUnsupported(
        f"key {key.key_id} is {key.algorithm.label}: certificates do not carry it", key=str(key.key_id)
    )
