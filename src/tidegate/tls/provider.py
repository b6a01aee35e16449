"""An OpenSSL provider inside this process: its keys are handles, its one private operation is ``Signer.sign``.

Promises: none of its functions returns a private key, each key carries its own signer, no exception crosses C. It
lives in a library context of its own, so nothing else in the process (hashlib, other contexts) is ever served by it.
Touches: libcrypto, which keeps pointers to the callbacks until the process ends.
Source: OpenSSL provider-base(7); numbers from core_dispatch.h, which OpenSSL keeps stable.
"""

from __future__ import annotations

import ctypes
import itertools
from ctypes import c_void_p
from typing import Any

from tidegate.crypto.signing import Signer
from tidegate.tls.algorithms import EC, ED25519, RSA
from tidegate.tls.dispatch import CTables, one_number
from tidegate.tls.errors import LibraryUnsupported
from tidegate.tls.failures import Failures
from tidegate.tls.keymgmt import HANDLE, OP_SIGNATURE, KeyManagement, PrivateKey
from tidegate.tls.libssl import Library
from tidegate.tls.signature import Signatures

NAME = b"tidegate"
_QUERY_OPERATION, _OP_KEYMGMT = 1027, 10
_KEYPAIR = 0x87  # EVP_PKEY_KEYPAIR: both halves and the parameters
_FAMILIES = (EC, RSA, ED25519)


class Provider:
    """The provider, registered; make one for a process and keep it."""

    def __init__(self, library: Library) -> None:
        """Register with ``library``; raise ``tls.unsupported.library``."""
        self._library = library
        tables, numbers = CTables(), itertools.count(1)
        self._management = KeyManagement(library, numbers)
        self._signatures = Signatures(library, self._management.keys, numbers)
        entry = self._register(tables)
        tables.keep_for_ever()
        self._context = library.OSSL_LIB_CTX_new()
        if (
            not self._context
            or library.OSSL_PROVIDER_add_builtin(self._context, NAME, entry) != 1
            or not library.OSSL_PROVIDER_load(self._context, NAME)
        ):
            raise LibraryUnsupported(f"OpenSSL does not take a provider: {library.reason()}")

    def new_key(self, signer: Signer, failures: Failures) -> int:
        """Return an EVP_PKEY (to be freed by the caller) that signs with ``signer`` and notes what fails.

        Raises ``tls.key.unsupported``.
        """
        key, library, result = PrivateKey(signer, failures), self._library, c_void_p()
        name = key.traits.family.names.partition(b":")[0]
        number = self._management.hand_over(key)
        holder = ctypes.c_uint64(number)
        making = library.EVP_PKEY_CTX_new_from_name(self._context, name, None)
        try:
            made = (
                making
                and library.EVP_PKEY_fromdata_init(making) == 1
                and library.EVP_PKEY_fromdata(making, ctypes.byref(result), _KEYPAIR, one_number(HANDLE, holder)) == 1
            )
        finally:
            self._management.withdraw(number)
            library.EVP_PKEY_CTX_free(making)
        if not made or not result.value:
            raise LibraryUnsupported(f"OpenSSL does not take a provider's key: {library.reason()}")
        return result.value

    def live_handles(self) -> tuple[int, int]:
        """Return how many keys and signatures OpenSSL holds."""
        return len(self._management.keys), len(self._signatures.operations)

    def _register(self, tables: CTables) -> int:
        """Return OSSL_provider_init as a C function."""
        properties = b"provider=" + NAME
        management = {
            one.names: tables.dispatch(self._management.functions(tables, one.operation)) for one in _FAMILIES
        }
        signatures = tables.dispatch(self._signatures.functions(tables))
        algorithms = {
            _OP_KEYMGMT: tables.algorithms(properties, management),
            OP_SIGNATURE: tables.algorithms(properties, {one.operation: signatures for one in _FAMILIES}),
        }

        def query(_: int, operation: int, no_cache: Any) -> int:
            no_cache[0] = 0
            return algorithms.get(operation, 0)

        top = tables.dispatch({_QUERY_OPERATION: tables.function("uintptr_t(uintptr_t, int, int *)", query)})

        def start(_: int, __: int, out: Any, context: Any) -> int:
            out[0], context[0] = top, 1
            return 1

        return tables.function("int(uintptr_t, uintptr_t, uintptr_t *, uintptr_t *)", start)
