"""The provider's signatures: OpenSSL hands in a message, the key's ``Signer`` signs it.

The message comes whole (a one-shot operation), so the signer hashes it inside its own provider as it always does.
These functions run in every handshake and are kept short.
Source: OpenSSL provider-signature(7); RSA in TLS is PSS with SHA-256 and a salt of 32 bytes, RFC 8446 §4.2.3.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from tidegate.tls.algorithms import RSA, SHA256_NAMES
from tidegate.tls.dispatch import UTF8, CTables, read_parameters
from tidegate.tls.keymgmt import PrivateKey, PublicOnly
from tidegate.tls.libssl import Library

_NEW, _DIGEST_SIGN_INIT, _DIGEST_SIGN, _FREE, _SET, _SETTABLE = 1, 8, 11, 16, 20, 21
_PSS_PADDING, _SALT_LIKE_DIGEST, _SALT_BYTES = 6, -1, 32  # rsa.h
_REFUSED = 0


class _Operation:
    """What stands behind a signature handle."""

    __slots__ = ("key", "pss")

    def __init__(self) -> None:
        self.key: PrivateKey | None = None
        self.pss = False


class Signatures:
    """The signatures under way, by handle."""

    def __init__(
        self, library: Library, keys: Mapping[int, PrivateKey | PublicOnly], numbers: itertools.count[int]
    ) -> None:
        self._set_mark, self._pop_to_mark = library.ERR_set_mark, library.ERR_pop_to_mark
        self._keys = keys
        self._numbers = numbers
        self.operations: dict[int, _Operation] = {}

    def functions(self, tables: CTables) -> dict[int, int]:
        """Return the C functions; they are the same for every key type."""
        settable = tables.descriptions({b"pad-mode": UTF8, b"saltlen": UTF8, b"digest": UTF8, b"mgf1-digest": UTF8})
        make = tables.function
        return {
            _NEW: make("uintptr_t(uintptr_t, uintptr_t)", self._new),
            _DIGEST_SIGN_INIT: make("int(uintptr_t, uintptr_t, uintptr_t, uintptr_t)", self._begin),
            _DIGEST_SIGN: make("int(uintptr_t, uintptr_t, size_t *, size_t, uintptr_t, size_t)", self._sign),
            _FREE: make("void(uintptr_t)", self.operations.__delitem__),  # C itself: nothing can come between
            _SET: make("int(uintptr_t, uintptr_t)", self._set),
            _SETTABLE: make("uintptr_t(uintptr_t, uintptr_t)", lambda _, __: settable),
        }

    def _new(self, _: int, __: int) -> int:
        number = next(self._numbers)
        self.operations[number] = _Operation()
        return number

    def _begin(self, number: int, digest: int, key_number: int, parameters: int) -> int:
        key = self._keys[key_number]
        if not isinstance(key, PrivateKey):
            return _REFUSED
        if digest and ctypes.string_at(digest).upper() not in key.traits.digests:
            return _REFUSED  # OpenSSL asks so what a key can do, and takes another scheme
        self.operations[number].key = key
        return self._set(number, parameters) if parameters else 1

    def _set(self, number: int, parameters: int) -> int:
        operation = self.operations[number]
        for name, value in read_parameters(parameters):
            if name not in _ALLOWED or not _ALLOWED[name](value):
                return _REFUSED
            operation.pss |= name == b"pad-mode"
        return 1

    def _sign(self, number: int, signature: int, length: Any, capacity: int, message: int, size: int) -> int:
        operation = self.operations[number]
        key = operation.key
        if key is None or (key.traits.family is RSA and not operation.pss):
            return _REFUSED  # RSA signs in one padding
        if not signature:
            length[0] = key.traits.max_signature
            return 1
        self._set_mark()
        try:
            made = key.encode(key.sign(ctypes.string_at(message, size)))
        except BaseException as error:  # noqa: BLE001  # nothing may cross C; last_failure() has it
            key.failures.note(error)
            return _REFUSED
        finally:
            self._pop_to_mark()  # a token's module may share libcrypto: its errors would fail a good handshake
        if len(made) > capacity:
            return _REFUSED
        ctypes.memmove(signature, made, len(made))
        length[0] = len(made)
        return 1


def _is_word_or(word: bytes, *numbers: int) -> Callable[[bytes], bool]:
    """Return a check of a value that OpenSSL sends as a word or as a C int."""

    def check(value: bytes) -> bool:
        return value.rstrip(b"\0").lower() == word or int.from_bytes(value, sys.byteorder, signed=True) in numbers

    return check


def _is_sha256(value: bytes) -> bool:
    return value.rstrip(b"\0").upper() in SHA256_NAMES


_ALLOWED: dict[bytes, Callable[[bytes], bool]] = {
    b"pad-mode": _is_word_or(b"pss", _PSS_PADDING),
    b"saltlen": _is_word_or(b"digest", _SALT_LIKE_DIGEST, _SALT_BYTES),
    b"digest": _is_sha256,
    b"mgf1-digest": _is_sha256,
}
