"""The PINs of a TPM store: where they come from, and which of them the TPM refused already.

Touches nothing. A wrong PIN counts against a lockout that is the TPM's and one for all keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass

from tidegate.base.clock import Entropy
from tidegate.crypto.aead import KEY_BYTES, Secret
from tidegate.keys.errors import PinMissing, PinRefused

MAX_PIN_BYTES = 32  # an authorisation value is no longer than the name's hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Tpm2Pins:
    """Where PINs come from: a key's (asked with a description), the owner's, the storage key's; ``None``: empty.

    The TPM's last try is not spent on a key's PIN that comes from no person (``key_by_person``).
    """

    key: Callable[[str], Secret] | None = None
    key_by_person: bool = True
    owner: Callable[[], Secret] | None = None
    parent: Callable[[], Secret] | None = None


class KeyPins:
    """Asks for keys' PINs; one that the TPM refused is not sent again."""

    def __init__(self, pins: Tpm2Pins, entropy: Entropy) -> None:
        self._pins = pins
        self._guess_key = entropy.random_bytes(KEY_BYTES)
        self._guesses: set[bytes] = set()

    def ask(self, name: str, what: str) -> Secret:
        """Return a PIN for the key ``name``; raise ``keys.pin.missing``, ``keys.pin.refused``."""
        if self._pins.key is None:
            raise PinMissing(f"nothing says where {what} of key {name!r} comes from", key=name)
        pin = self._pins.key(f"{what} of TPM key {name}")
        if not 0 < len(pin) <= MAX_PIN_BYTES or pin.view()[-1] == 0:
            raise PinRefused(f"a PIN of a TPM key has 1 to {MAX_PIN_BYTES} bytes, the last not zero", key=name)
        return pin

    def ask_again(self, name: str, object_name: bytes) -> Secret:
        """Return the PIN of a key that has one, unless it is one that the TPM refused (``keys.pin.refused``)."""
        pin = self.ask(name, "the PIN")
        if self._guess(object_name, pin) in self._guesses:
            pin.wipe()
            raise PinRefused(f"the TPM refused this PIN of key {name!r} before", key=name)
        return pin

    def remember_wrong(self, object_name: bytes, pin: Secret) -> None:
        """Remember that the TPM refused ``pin``, by a digest under a key of this process."""
        self._guesses.add(self._guess(object_name, pin))

    def _guess(self, object_name: bytes, pin: Secret) -> bytes:
        return hmac.digest(self._guess_key, object_name + bytes(pin.view()), "sha256")
