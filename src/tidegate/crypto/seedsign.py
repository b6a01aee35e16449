"""Signatures by a key that is nothing but a seed of 32 bytes, for documents that their own reader signs.

Ed25519, RFC 8032. For roles, trust and hardware keys there is ``signing.py``.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from tidegate.crypto.aead import Secret, clear_registers
from tidegate.crypto.errors import SignatureInvalid

SEED_BYTES = 32
PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64


def seed_public(seed: Secret) -> bytes:
    """Return the public half (32 bytes) that belongs to ``seed``."""
    public = Ed25519PrivateKey.from_private_bytes(seed.view()).public_key().public_bytes_raw()
    clear_registers()
    return public


def seed_sign(seed: Secret, message: bytes) -> bytes:
    """Return the signature (64 bytes) over ``message``."""
    signature = Ed25519PrivateKey.from_private_bytes(seed.view()).sign(message)
    clear_registers()
    return signature


def seed_verify(public: bytes, signature: bytes, message: bytes) -> None:
    """Return if ``signature`` is by ``public`` over ``message``, else raise ``crypto.signature.invalid``."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise SignatureInvalid("the signature does not hold") from error
