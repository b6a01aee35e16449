"""Unlockers: what has to be there to open a vault; here those by a key store and by a passphrase.

Each wraps the private seed of one slot of the vault's record. What wraps never is in the vault's folder. Others:
``usbdrive.py``, ``tang.py``, ``threshold.py``, ``escrow.py``; one more is one file with a class of this shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from tidegate.base.clock import Entropy, SystemEntropy
from tidegate.crypto import cbor
from tidegate.crypto.aead import NONCE_BYTES, Secret, argon2id, open_aes256gcm, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed
from tidegate.crypto.memory import take_bytes
from tidegate.keys.errors import KeyMissing, SealedMalformed
from tidegate.keys.errors import UnlockRefused as StoreUnlockRefused
from tidegate.keys.software import Argon2Cost
from tidegate.keys.store import KeyStore
from tidegate.vault.errors import RecordMalformed, UnlockRefused

MAX_MEMORY_KIB = 1 << 20  # 1 GiB: an altered record must not exhaust the device before it is refused
MAX_ITERATIONS = 16
MAX_LANES = 16
_SALT_BYTES = 32
_TAG_BYTES = 16


class Anchor(Protocol):
    """A counter outside the vault that only goes up."""

    def read(self) -> int:
        """Return the value, 0 before the first step."""
        ...

    def advance(self) -> int:
        """Add one, durable, and return the value."""
        ...


class Unlocker(Protocol):
    """What wraps and unwraps a slot's seed of 32 bytes. ``context`` binds the wrapping to one vault."""

    @property
    def kind(self) -> str:
        """Return what the slots of this sort are called in the record."""
        ...

    def wrap(self, secret: Secret, context: bytes) -> dict[str, cbor.Value]:
        """Return what the slot keeps."""
        ...

    def unwrap(self, slot: Mapping[str, cbor.Value], context: bytes) -> Secret:
        """Return the seed; raise ``vault.unlock.refused`` or ``vault.record.malformed``."""
        ...

    def anchor(self, vault_id: bytes) -> Anchor | None:
        """Return the counter that holds the vault's generation, if this unlocker has one."""
        ...


class KeyStoreUnlocker:
    """Unlock by a sealing key of a ``KeyStore``; its counter, if it has one, anchors the vault against rollback."""

    kind = "keystore"

    def __init__(self, store: KeyStore, key_name: str) -> None:
        self._store = store
        self._key_name = key_name

    def wrap(self, secret: Secret, context: bytes) -> dict[str, cbor.Value]:
        return {"key": self._key_name, "sealed": self._store.seal(self._key_name, secret.view(), context)}

    def unwrap(self, slot: Mapping[str, cbor.Value], context: bytes) -> Secret:
        match slot:
            case {"key": str(), "sealed": bytes() as sealed, **rest} if not rest:
                pass
            case _:
                raise RecordMalformed("the key store slot of the vault's record is malformed")
        try:
            return self._store.unseal(self._key_name, sealed, context)
        except (SealedMalformed, StoreUnlockRefused, KeyMissing) as error:
            raise UnlockRefused(f"key {self._key_name!r} does not open the vault", key=self._key_name) from error

    def anchor(self, vault_id: bytes) -> Anchor | None:
        if not self._store.capabilities().can_count:
            return None
        return _StoreCounter(self._store, f"vault-{vault_id.hex()}")


class _StoreCounter:
    """A counter of a key store."""

    def __init__(self, store: KeyStore, name: str) -> None:
        self._store = store
        self._name = name

    def read(self) -> int:
        return self._store.counter_read(self._name)

    def advance(self) -> int:
        return self._store.counter_increment(self._name)


class PassphraseUnlocker:
    """Unlock by something a person knows (Argon2id). There is no counter: an old copy of the whole vault opens."""

    kind = "passphrase"

    def __init__(self, passphrase: Secret, *, cost: Argon2Cost | None = None, entropy: Entropy | None = None) -> None:
        self._passphrase = passphrase
        self._cost = cost or Argon2Cost()
        self._entropy = entropy or SystemEntropy()

    def wrap(self, secret: Secret, context: bytes) -> dict[str, cbor.Value]:
        salt, nonce = self._entropy.random_bytes(_SALT_BYTES), self._entropy.random_bytes(NONCE_BYTES)
        parameters: dict[str, cbor.Value] = {
            "salt": salt,
            "memory": self._cost.memory_kib,
            "iterations": self._cost.iterations,
            "lanes": self._cost.lanes,
        }
        with self._derive(salt, self._cost) as key:
            sealed = seal_aes256gcm(key.view(), nonce, secret.view(), _bind(context, parameters))
        return {**parameters, "sealed": nonce + sealed}

    def unwrap(self, slot: Mapping[str, cbor.Value], context: bytes) -> Secret:
        match slot:
            case {
                "salt": bytes() as salt,
                "memory": int() as memory,
                "iterations": int() as iterations,
                "lanes": int() as lanes,
                "sealed": bytes() as sealed,
                **rest,
            } if (
                not rest
                and len(salt) == _SALT_BYTES
                and 1 <= lanes <= MAX_LANES
                and 8 * lanes <= memory <= MAX_MEMORY_KIB
                and 1 <= iterations <= MAX_ITERATIONS
            ):
                pass
            case _:
                raise RecordMalformed("the passphrase slot of the vault's record is malformed or asks for too much")
        parameters = {name: value for name, value in slot.items() if name != "sealed"}
        with self._derive(salt, Argon2Cost(memory_kib=memory, iterations=iterations, lanes=lanes)) as key:
            try:
                return take_bytes(
                    open_aes256gcm(key.view(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bind(context, parameters))
                )
            except AeadFailed as error:
                raise UnlockRefused("the passphrase does not open the vault") from error

    def anchor(self, vault_id: bytes) -> Anchor | None:  # noqa: ARG002  # a passphrase has nowhere to count
        return None

    def _derive(self, salt: bytes, cost: Argon2Cost) -> Secret:
        key = argon2id(
            self._passphrase.view(),
            salt=salt,
            iterations=cost.iterations,
            lanes=cost.lanes,
            memory_kib=cost.memory_kib,
        )
        return take_bytes(key)


def _bind(context: bytes, parameters: Mapping[str, cbor.Value]) -> bytes:
    """Return what an altered cost or salt would no longer match."""
    return cbor.encode([context, dict(parameters)])
