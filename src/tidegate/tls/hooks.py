"""OpenSSL's questions during a handshake, answered in Python: what to staple, what a staple says, which lists count.

One C function for each question serves every context; a number says which. Touches: libssl and libcrypto.
Source: OpenSSL SSL_CTX_set_tlsext_status_cb(3), SSL_CTX_set_cert_verify_callback(3).
"""

from __future__ import annotations

import ctypes
import itertools
import ssl
import weakref
from collections.abc import Sequence
from ctypes import c_void_p
from typing import Protocol, TypeVar

from tidegate.tls.dispatch import CTables
from tidegate.tls.errors import ContextRefused, CrlMalformed
from tidegate.tls.failures import Failures
from tidegate.tls.libssl import (
    CTRL_GET_STATUS,
    CTRL_SET_STATUS,
    CTRL_STATUS_ARGUMENT,
    CTRL_STATUS_CALLBACK,
    CTRL_STATUS_TYPE,
    STATUS_TYPE_OCSP,
    Library,
)

_STAPLE_SENT, _STAPLE_NONE = 0, 3  # SSL_TLSEXT_ERR_OK, SSL_TLSEXT_ERR_NOACK
_STAPLE_GOOD, _STAPLE_BAD = 1, 0
_VERIFY_NO_CRL = 3  # X509_V_ERR_UNABLE_TO_GET_CRL
_Attached = TypeVar("_Attached")
_MAX_STAPLE_BYTES = 16_384  # an answer with its responder's certificate has 2 KiB


class StapleSource(Protocol):
    """Where a server's OCSP answer comes from."""

    def current(self) -> bytes | None:
        """Return an answer that is good now, or None."""
        ...


class StapleJudge(Protocol):
    """Who decides on the client's side."""

    def judge(self, answer: bytes | None, chain: Sequence[bytes]) -> None:
        """Return if the handshake may go on; ``chain`` is the verified one, the server's certificate first."""
        ...


class ListSource(Protocol):
    """Where the revocation lists in force come from."""

    def in_force(self) -> CrlStack | None:
        """Return the lists that count now, or None while there are none."""
        ...


class CrlStack:
    """Revocation lists as OpenSSL wants them; freed when the last handshake that uses them is over."""

    def __init__(self, library: Library, lists: Sequence[bytes]) -> None:
        """Parse ``lists`` (DER); raise ``tls.crl.malformed``."""
        self.pointer: int = library.OPENSSL_sk_new_null()
        parsed: list[int] = []
        weakref.finalize(self, _free_lists, library, self.pointer, parsed).atexit = False
        for der in lists:
            buffer = ctypes.create_string_buffer(der, len(der))
            cursor = c_void_p(ctypes.addressof(buffer))
            one = library.d2i_X509_CRL(None, ctypes.byref(cursor), len(der))
            if not one:
                raise CrlMalformed(f"no revocation list in DER: {library.reason()}")
            parsed.append(one)
            library.OPENSSL_sk_push(self.pointer, one)


def _free_lists(library: Library, stack: int, parsed: list[int]) -> None:
    library.OPENSSL_sk_free(stack)
    for one in parsed:
        library.X509_CRL_free(one)


class Hooks:
    """The C functions, and what each context has attached to them."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._numbers = itertools.count(1)
        self._sources: dict[int, tuple[StapleSource, Failures]] = {}
        self._judges: dict[int, tuple[StapleJudge, Failures]] = {}
        self._lists: dict[int, tuple[ListSource, Failures]] = {}
        tables = CTables()
        question = "int(uintptr_t, uintptr_t)"
        self._staple_function = tables.function(question, self._staple)
        self._judge_function = tables.function(question, self._judge)
        self._verify_function = tables.function(question, self._verify)
        tables.keep_for_ever()

    def attach_source(self, context: ssl.SSLContext, pointer: int, source: StapleSource, failures: Failures) -> None:
        """Let a server's context staple what ``source`` has."""
        self._set_status(pointer, self._staple_function, self._attach(context, self._sources, (source, failures)))

    def attach_judge(self, context: ssl.SSLContext, pointer: int, judge: StapleJudge, failures: Failures) -> None:
        """Let a client's context ask for an OCSP answer and have it judged."""
        self._set_status(pointer, self._judge_function, self._attach(context, self._judges, (judge, failures)))
        if self._library.SSL_CTX_ctrl(pointer, CTRL_STATUS_TYPE, STATUS_TYPE_OCSP, None) != 1:
            raise ContextRefused(f"OpenSSL does not ask for OCSP answers: {self._library.reason()}")

    def attach_lists(self, context: ssl.SSLContext, pointer: int, lists: ListSource, failures: Failures) -> None:
        """Let a context verify its peers against the lists in force at that moment."""
        number = self._attach(context, self._lists, (lists, failures))
        self._library.SSL_CTX_set_cert_verify_callback(pointer, self._verify_function, number)

    def live(self) -> int:
        """Return how many attachments there are."""
        return len(self._sources) + len(self._judges) + len(self._lists)

    def _attach(self, context: ssl.SSLContext, table: dict[int, _Attached], what: _Attached) -> int:
        """Keep ``what`` for as long as ``context`` lives; return its number, which no other ever has."""
        number = next(self._numbers)
        table[number] = what
        weakref.finalize(context, table.pop, number, None).atexit = False
        return number

    def _set_status(self, pointer: int, function: int, number: int) -> None:
        library = self._library
        if (
            library.SSL_CTX_callback_ctrl(pointer, CTRL_STATUS_CALLBACK, function) != 1
            or library.SSL_CTX_ctrl(pointer, CTRL_STATUS_ARGUMENT, 0, number) != 1
        ):
            raise ContextRefused(f"OpenSSL does not take an OCSP callback: {library.reason()}")

    def _staple(self, connection: int, number: int) -> int:
        source, failures = self._sources[number]
        try:
            answer = source.current()
        except BaseException as error:  # noqa: BLE001  # nothing may cross C; last_failure() has it
            failures.note(error)
            return _STAPLE_NONE
        if not answer:
            return _STAPLE_NONE
        memory = self._library.CRYPTO_malloc(len(answer), None, 0)  # OpenSSL frees it with the connection
        if not memory:
            return _STAPLE_NONE
        ctypes.memmove(memory, answer, len(answer))
        self._library.SSL_ctrl(connection, CTRL_SET_STATUS, len(answer), memory)
        return _STAPLE_SENT

    def _judge(self, connection: int, number: int) -> int:
        judge, failures = self._judges[number]
        place = c_void_p()
        size = self._library.SSL_ctrl(connection, CTRL_GET_STATUS, 0, ctypes.addressof(place))
        try:
            answer = ctypes.string_at(place.value, min(size, _MAX_STAPLE_BYTES)) if place.value and size > 0 else None
            judge.judge(answer, self._verified_chain(connection))
        except BaseException as error:  # noqa: BLE001  # nothing may cross C; last_failure() has it
            failures.note(error)
            return _STAPLE_BAD
        return _STAPLE_GOOD

    def _verify(self, verification: int, number: int) -> int:
        lists, failures = self._lists[number]
        try:
            held = lists.in_force()
        except BaseException as error:  # noqa: BLE001  # nothing may cross C; last_failure() has it
            failures.note(error)
            held = None
        if held is None:
            self._library.X509_STORE_CTX_set_error(verification, _VERIFY_NO_CRL)
            return 0
        self._library.X509_STORE_CTX_set0_crls(verification, held.pointer)
        verdict: int = self._library.X509_verify_cert(verification)
        return int(verdict == 1)  # ``held`` lives until here, whatever replaced it meanwhile

    def _verified_chain(self, connection: int) -> list[bytes]:
        library = self._library
        stack = library.SSL_get0_verified_chain(connection)
        return [
            _encode(library, library.OPENSSL_sk_value(stack, place))
            for place in range(library.OPENSSL_sk_num(stack) if stack else 0)
        ]


def _encode(library: Library, certificate: int) -> bytes:
    size = library.i2d_X509(certificate, None)
    buffer = ctypes.create_string_buffer(size)
    library.i2d_X509(certificate, ctypes.byref(c_void_p(ctypes.addressof(buffer))))
    return buffer.raw
