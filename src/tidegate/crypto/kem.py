"""Wrapping a key for a recipient who is not there: HPKE (RFC 9180) over X-Wing, X25519 and ML-KEM-768 together.

Whoever breaks only one of the two, now or in twenty years, opens nothing. A recipient's private half is a seed of 32
bytes; the rest follows from it (draft-connolly-cfrg-xwing-kem: SHAKE-256 of the seed).
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from tidegate.crypto.aead import Secret
from tidegate.crypto.errors import KemRefused
from tidegate.crypto.memory import ProtectedSecret, take_bytes

SEED_BYTES = 32
_MLKEM_PUBLIC_BYTES = 1184
PUBLIC_BYTES = _MLKEM_PUBLIC_BYTES + 32
_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def kem_public(seed: Secret) -> bytes:
    """Return the public half (1,216 bytes: ML-KEM-768, then X25519) that belongs to ``seed`` (32 bytes)."""
    mlkem, x25519 = _expand(seed)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def kem_wrap(public: bytes, secret: Secret, info: bytes) -> bytes:
    """Return ``secret`` encrypted for the holder of ``public``, bound to ``info``; raise ``crypto.kem.refused``."""
    if len(public) != PUBLIC_BYTES:
        raise KemRefused("the recipient's public key has the wrong length", size=len(public))
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes(public[:_MLKEM_PUBLIC_BYTES])
        x25519 = X25519PublicKey.from_public_bytes(public[_MLKEM_PUBLIC_BYTES:])
        return _SUITE.encrypt(secret.view(), hpke.MLKEM768X25519PublicKey(mlkem, x25519), info)
    except ValueError as error:
        raise KemRefused("the recipient's public key is no key") from error


def kem_unwrap(seed: Secret, wrapped: bytes, info: bytes) -> ProtectedSecret:
    """Return what was wrapped for ``seed``'s public half with this ``info``, or raise ``crypto.kem.refused``."""
    mlkem, x25519 = _expand(seed)
    try:
        return take_bytes(_SUITE.decrypt(wrapped, hpke.MLKEM768X25519PrivateKey(mlkem, x25519), info))
    except (InvalidTag, ValueError) as error:
        raise KemRefused("the key is not wrapped for this recipient") from error


def _expand(seed: Secret) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    with take_bytes(hashlib.shake_256(seed.view()).digest(96)) as expanded:
        mlkem, x25519 = expanded.view()[:64], expanded.view()[64:]
        return MLKEM768PrivateKey.from_seed_bytes(mlkem), X25519PrivateKey.from_private_bytes(x25519)
