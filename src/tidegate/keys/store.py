"""The ``KeyStore`` protocol: what every provider of keys offers, and the records it speaks in.

Adding a provider is one file with a class of this shape and one line in ``uri.py``.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Protocol

from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.keys.errors import KeyNameInvalid

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class KeyPurpose(enum.Enum):
    """What a key is for; a key has one purpose for life."""

    SIGN = "sign"
    SEAL = "seal"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """What to generate: a signing key of ``algorithm``, or a sealing key (AES-256-GCM, no algorithm)."""

    purpose: KeyPurpose
    algorithm: SignatureAlgorithm | None = None

    def __post_init__(self) -> None:
        if (self.purpose is KeyPurpose.SIGN) != (self.algorithm is not None):
            raise ValueError("a signing key has an algorithm, a sealing key has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """What may be told about a key: all but its secret."""

    name: str
    spec: KeySpec
    public_key: PublicKey | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a provider can do; ask before, instead of failing late."""

    hardware: bool
    algorithms: frozenset[SignatureAlgorithm]
    can_seal: bool
    can_count: bool
    counter_resists_rollback: bool
    can_quote: bool


class KeyStore(Protocol):
    """A provider of keys. No operation returns a private key."""

    def capabilities(self) -> Capabilities:
        """Return what this provider can do."""
        ...

    def generate(self, name: str, spec: KeySpec) -> KeyInfo:
        """Make a key called ``name``, durable before this returns; raise ``keys.key.exists``."""
        ...

    def list_keys(self) -> list[KeyInfo]:
        """Return every key, by name."""
        ...

    def public_key(self, name: str) -> PublicKey:
        """Return the public half; raise ``keys.key.missing`` or ``keys.key.purpose``."""
        ...

    def signer(self, name: str) -> Signer:
        """Return something that signs with the key inside the provider."""
        ...

    def seal(self, name: str, secret: bytes | memoryview, context: bytes) -> bytes:
        """Return ``secret`` encrypted so that only this key, asked with this ``context``, opens it."""
        ...

    def unseal(self, name: str, sealed: bytes, context: bytes) -> Secret:
        """Return what was sealed, or raise ``keys.sealed.malformed``."""
        ...

    def counter_read(self, name: str) -> int:
        """Return a counter's value; 0 if it never was incremented."""
        ...

    def counter_increment(self, name: str) -> int:
        """Return the counter's value after adding one, durable before this returns."""
        ...

    def quote(self, nonce: bytes) -> bytes:
        """Return a signed statement of the platform's measurements; raise ``keys.capability.missing``."""
        ...

    def destroy(self, name: str) -> None:
        """Make the key unusable for ever; using it afterwards raises ``keys.key.missing``."""
        ...


def check_key_name(name: str) -> str:
    """Return ``name`` if it may name a key, else raise ``keys.name.invalid``."""
    if not _NAME.fullmatch(name):
        raise KeyNameInvalid(f"{name!r} is no key name")
    return name
