"""Application keys: random keys that the vault keeps for who encrypts something outside it. Pure."""

from __future__ import annotations

from tidegate.crypto.aead import NONCE_BYTES, TAG_BYTES, Secret, open_aes256gcm_into, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.errors import HeaderAltered
from tidegate.vault.format import VaultKeys
from tidegate.vault.listing import KEYS

_EPOCH_BYTES = 4


def wrap_application_key(name: str, key: Secret, keys: VaultKeys, *, epoch: int, nonce: bytes) -> bytes:
    """Return what the table holds of an application key."""
    head = epoch.to_bytes(_EPOCH_BYTES, "big")
    return head + nonce + seal_aes256gcm(keys.header.view(), nonce, key.view(), head + KEYS + name.encode())


def unwrap_application_key(name: str, stored: bytes, keys: dict[int, VaultKeys]) -> ProtectedSecret:
    """Return the key that the table holds; raise ``vault.header.altered``."""
    head, rest = stored[:_EPOCH_BYTES], stored[_EPOCH_BYTES:]
    nonce, sealed = rest[:NONCE_BYTES], rest[NONCE_BYTES:]
    epoch = int.from_bytes(head, "big")
    aad = head + KEYS + name.encode()
    try:
        wrapping = keys[epoch].header
        return ProtectedSecret.fill(
            len(sealed) - TAG_BYTES, lambda target: open_aes256gcm_into(wrapping.view(), nonce, sealed, aad, target)
        )
    except (AeadFailed, KeyError) as error:
        raise HeaderAltered("an application key does not unwrap") from error
