"""Key management of the provider: handles for keys whose private half is a ``Signer``.

Source: OpenSSL provider-keymgmt(7).
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable

from tidegate.crypto.signing import Signer
from tidegate.tls.algorithms import Traits, identity_of, public_identity, traits_of
from tidegate.tls.dispatch import INTEGER, OCTETS, UNSIGNED, UTF8, CTables, answer_parameters, read_parameters
from tidegate.tls.failures import Failures
from tidegate.tls.libssl import Library

OP_SIGNATURE = 12
HANDLE = b"tidegate-handle"  # the one member of an import of our own: the number of a waiting key
_PRIVATE = 0x01  # OSSL_KEYMGMT_SELECT_PRIVATE_KEY
_NEW, _FREE, _GET, _GETTABLE, _OPERATION_NAME, _HAS, _MATCH, _IMPORT, _IMPORTABLE = 1, 10, 11, 12, 20, 21, 23, 40, 41


class PrivateKey:
    """A signer in OpenSSL's terms, and where its failures go."""

    __slots__ = ("encode", "failures", "identity", "sign", "traits")

    def __init__(self, signer: Signer, failures: Failures) -> None:
        """Raise ``tls.key.unsupported`` for a key that TLS cannot use."""
        public = signer.public_key
        self.traits: Traits = traits_of(public)
        self.identity = identity_of(public)
        self.sign = signer.sign
        self.encode = self.traits.encode_signature
        self.failures = failures


class PublicOnly:
    """A public key that OpenSSL hands in to have it compared."""

    __slots__ = ("identity",)

    def __init__(self) -> None:
        self.identity: tuple[bytes, ...] | None = None


class KeyManagement:
    """The keys that OpenSSL holds, by handle; each has its own signer.

    There is no export function: nothing here could hand out a private key, and a public key is compared by importing
    the other one.
    """

    def __init__(self, library: Library, numbers: itertools.count[int]) -> None:
        self._library = library
        self._numbers = numbers  # never reused: a stale handle finds nothing
        self._waiting: dict[int, PrivateKey] = {}
        self.keys: dict[int, PrivateKey | PublicOnly] = {}

    def hand_over(self, key: PrivateKey) -> int:
        """Return the number under which the next import takes ``key``."""
        number = next(self._numbers)
        self._waiting[number] = key
        return number

    def withdraw(self, number: int) -> None:
        """Forget a key that no import took."""
        self._waiting.pop(number, None)

    def functions(self, tables: CTables, operation: bytes) -> dict[int, int]:
        """Return the C functions of one key type whose signature is called ``operation``."""
        name = tables.text(operation)
        gettable = tables.descriptions(
            {b"bits": INTEGER, b"security-bits": INTEGER, b"max-size": INTEGER}
            | {b"group": UTF8, b"default-digest": UTF8, b"mandatory-digest": UTF8}
        )
        importable = tables.descriptions({b"group": UTF8, b"pub": OCTETS, b"n": UNSIGNED, b"e": UNSIGNED})
        make = tables.function
        return {
            _NEW: make("uintptr_t(uintptr_t)", self._new),
            _FREE: make("void(uintptr_t)", self.keys.__delitem__),  # C itself: nothing can come between
            _GET: make("int(uintptr_t, uintptr_t)", self._get),
            _GETTABLE: make("uintptr_t(uintptr_t)", lambda _: gettable),
            _OPERATION_NAME: make("uintptr_t(int)", lambda wanted: name if wanted == OP_SIGNATURE else 0),
            _HAS: make("int(uintptr_t, int)", self._has),
            _MATCH: make("int(uintptr_t, uintptr_t, int)", self._match),
            _IMPORT: make("int(uintptr_t, int, uintptr_t)", self._import),
            _IMPORTABLE: make("uintptr_t(int)", lambda selection: 0 if selection & _PRIVATE else importable),
        }

    def _new(self, _: int) -> int:
        number = next(self._numbers)
        self.keys[number] = PublicOnly()
        return number

    def _has(self, number: int, selection: int) -> int:
        key = self.keys[number]
        lacks_private = selection & _PRIVATE and not isinstance(key, PrivateKey)
        return int(key.identity is not None and not lacks_private)

    def _match(self, left: int, right: int, _: int) -> int:
        """Compare the public halves whatever was selected: stricter is right here, and there is nothing else."""
        ours, theirs = self.keys[left].identity, self.keys[right].identity
        return int(ours is not None and ours == theirs)

    def _import(self, number: int, selection: int, parameters: int) -> int:
        members = dict(read_parameters(parameters))
        if HANDLE in members:
            self.keys[number] = self._waiting.pop(int.from_bytes(members[HANDLE], sys.byteorder))
            return 1
        key = self.keys[number]
        if selection & _PRIVATE or isinstance(key, PrivateKey):
            return 0  # a private key from outside has no place here, and a key of ours does not change
        key.identity = public_identity(members)
        return int(key.identity is not None)

    def _get(self, number: int, parameters: int) -> int:
        key = self.keys[number]
        if isinstance(key, PrivateKey):
            answer_parameters(parameters, _answers(self._library, key.traits))
        return 1


@functools.lru_cache(maxsize=16)  # one an algorithm (and RSA size)
def _answers(library: Library, traits: Traits) -> dict[bytes, Callable[[int], object]]:
    """Return who fills in which parameter."""
    set_int, set_text = library.OSSL_PARAM_set_int, library.OSSL_PARAM_set_utf8_string

    def setter(value: int | bytes) -> Callable[[int], object]:
        return lambda address: (set_int if isinstance(value, int) else set_text)(address, value)

    return {name: setter(value) for name, value in traits.parameters().items()}
