"""Escrow: a way in for whoever holds a key that is kept offline. The device has the public half alone.

Touches: the two key files, when they are written and read. Bytes: docs/formats/vault.md, "Escrow keys".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path

from tidegate.base.durable import read_file_bounded, write_file_new
from tidegate.base.errors import Misuse
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.kem import PUBLIC_BYTES, SEED_BYTES, kem_public
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.errors import EscrowKeyMalformed, EscrowOffline
from tidegate.vault.record import ESCROW_KIND
from tidegate.vault.unlockers import Anchor

_PUBLIC, _PRIVATE = "tidegate-escrow-public:", "TIDEGATE-ESCROW-PRIVATE:"
_MAX_FILE_BYTES = 8192


class EscrowUnlocker:
    """Open with the private half (a ``seed``), or add the slot with the ``public`` half alone."""

    kind = ESCROW_KIND

    def __init__(self, *, public: bytes | None = None, seed: Secret | None = None) -> None:
        if (public is None) == (seed is None):
            raise ValueError("give the public half to add a slot, the private half to open one")
        self.public_only = public if public is not None else kem_public(seed) if seed is not None else None
        self._seed = seed

    def wrap(self, secret: Secret, context: bytes) -> dict[str, cbor.Value]:  # noqa: ARG002
        raise Misuse("an escrow slot has no seed to wrap: it is made from the public half")

    def unwrap(self, slot: Mapping[str, cbor.Value], context: bytes) -> Secret:  # noqa: ARG002
        if self._seed is None:
            raise EscrowOffline("only the public half of the escrow key is here")
        return ProtectedSecret(self._seed.view())

    def anchor(self, vault_id: bytes) -> Anchor | None:  # noqa: ARG002  # whoever recovers has no counter
        return None


def write_escrow_pair(private: Path, public: Path) -> str:
    """Make an escrow key, write its halves as text files of mode 600 and 644, and return the fingerprint.

    Raises ``FileExistsError`` rather than replacing either.
    """
    with ProtectedSecret.random(SEED_BYTES) as seed:
        half = kem_public(seed)
        text = bytearray(_PRIVATE.encode() + base64.b64encode(seed.view()) + b"\n")
        try:
            write_file_new(private, bytes(text), mode=0o600)
        finally:
            text[:] = bytes(len(text))
    write_file_new(public, _PUBLIC.encode() + base64.b64encode(half) + b"\n", mode=0o644)
    return fingerprint(half)


def read_escrow_public(path: Path) -> bytes:
    """Return the public half; raise ``vault.escrow.malformed``, ``base.storage.*``."""
    return _read(path, _PUBLIC, PUBLIC_BYTES)


def read_escrow_private(path: Path) -> ProtectedSecret:
    """Return the private half; raise ``vault.escrow.malformed``, ``base.storage.*``."""
    return ProtectedSecret(_read(path, _PRIVATE, SEED_BYTES))


def fingerprint(public: bytes) -> str:
    """Return what people compare: the first 16 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def _read(path: Path, head: str, size: int) -> bytes:
    text = read_file_bounded(path, limit_bytes=_MAX_FILE_BYTES).decode("ascii", errors="replace").strip()
    try:
        raw = base64.b64decode(text.removeprefix(head), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not text.startswith(head) or len(raw) != size:
        raise EscrowKeyMalformed(f"{path} is no such half of an escrow key", path=str(path))
    return raw
