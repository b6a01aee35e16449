"""What opens a software store: a passphrase by Argon2id, or a secret that the hardware keeps.

Touches: the device secret's file. Bytes: docs/formats/keystore.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.clock import Entropy
from tidegate.base.durable import read_file_bounded, require_private
from tidegate.crypto import cbor
from tidegate.crypto.aead import KEY_BYTES, NONCE_BYTES, Secret, argon2id, hkdf_sha256, seal_aes256gcm
from tidegate.keys.errors import StoreMalformed, UnlockRefused

STORE_FORMAT = "tidegate.keystore.v1"
SALT_BYTES = 32
_MAX_MEMORY_KIB = 1 << 20  # 1 GiB: more would let an altered file exhaust the device
_MAX_ITERATIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2Cost:
    """Cost of guessing a passphrase; the default is RFC 9106's second recommendation (64 MiB, 3 passes, 4 lanes)."""

    memory_kib: int = 65_536
    iterations: int = 3
    lanes: int = 4


class PassphraseUnlock:
    """Unlock by something a person knows."""

    kind = "argon2id"

    def __init__(self, passphrase: Secret, cost: Argon2Cost | None = None) -> None:
        self._passphrase = passphrase
        self._cost = cost or Argon2Cost()

    def parameters(self) -> dict[cbor.Value, cbor.Value]:
        """Return what the store's file records, so that later cost changes do not lock anybody out."""
        return {
            "memory": self._cost.memory_kib,
            "iterations": self._cost.iterations,
            "lanes": self._cost.lanes,
        }

    def derive(self, salt: bytes, parameters: Mapping[cbor.Value, cbor.Value]) -> bytes:
        """Return the store's key; raise ``keys.store.malformed`` for costs that no sane store asks for."""
        match parameters:
            case {"memory": int() as memory, "iterations": int() as iterations, "lanes": int() as lanes} if (
                len(parameters) == 3
                and not any(isinstance(value, bool) for value in parameters.values())
                and 8 * lanes <= memory <= _MAX_MEMORY_KIB
                and 1 <= iterations <= _MAX_ITERATIONS
                and 1 <= lanes <= 16
            ):
                return argon2id(
                    self._passphrase.view(), salt=salt, iterations=iterations, lanes=lanes, memory_kib=memory
                )
        raise StoreMalformed("the store asks for an Argon2id cost outside the limits")


class DeviceSecretUnlock:
    """Unlock by a 32-byte secret that the hardware keeps (fuses, protected memory), given as a private file."""

    kind = "device-secret"

    def __init__(self, path: Path) -> None:
        self._path = path

    def parameters(self) -> dict[cbor.Value, cbor.Value]:
        return {}

    def derive(self, salt: bytes, parameters: Mapping[cbor.Value, cbor.Value]) -> bytes:
        """Return the store's key; raise ``base.permissions.unsafe`` if others can read the secret."""
        if parameters:
            raise StoreMalformed("a device secret has no parameters")
        require_private(self._path)
        secret = read_file_bounded(self._path, limit_bytes=KEY_BYTES)
        if len(secret) != KEY_BYTES:
            raise UnlockRefused(f"{self._path} holds no {KEY_BYTES}-byte device secret", path=str(self._path))
        return hkdf_sha256(secret, salt=salt, info=b"tidegate keystore device-secret", length=KEY_BYTES)


Unlock = PassphraseUnlock | DeviceSecretUnlock


def new_store_file(unlock: Unlock, entropy: Entropy) -> tuple[dict[cbor.Value, cbor.Value], Secret]:
    """Return the document of a store that ``unlock`` opens, and the key that it derives."""
    salt, parameters = entropy.random_bytes(SALT_BYTES), unlock.parameters()
    key = Secret(unlock.derive(salt, parameters))
    nonce = entropy.random_bytes(NONCE_BYTES)
    document: dict[cbor.Value, cbor.Value] = {
        "format": STORE_FORMAT,
        "kdf": unlock.kind,
        "salt": salt,
        "parameters": parameters,
        "check": nonce + seal_aes256gcm(key.view(), nonce, b"", b"check"),
    }
    return document, key
