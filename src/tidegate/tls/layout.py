"""Where a Python ``SSLContext`` keeps its ``SSL_CTX *``: guessed from CPython's layout, proven before it is used.

Touches: memory of this process, read only; a pointer is followed only after the memory map says that it can be.
"""

from __future__ import annotations

import ssl
import sys
from ctypes import c_void_p, sizeof
from typing import NoReturn

from tidegate.tls.errors import LayoutUnsupported
from tidegate.tls.libssl import Library, Mapping, read_mappings

_OFFSET = object.__basicsize__  # CPython: PyObject_HEAD, then ``SSL_CTX *ctx`` (Modules/_ssl.c, 3.11 to 3.13)
_CONTEXT_BYTES = 2048  # an SSL_CTX of OpenSSL 3.0 has 1,048; what follows has to be readable as well
_VERIFY_PEER = 3  # SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT
# options in patterns that no other field of the structure follows by chance
_PATTERNS = (
    ssl.OP_NO_RENEGOTIATION,
    ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE,
    ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION,
)


class ContextLayout:
    """A proven way from an ``SSLContext`` to its ``SSL_CTX *``; ``prove_layout`` alone makes one."""

    __slots__ = ("offset",)

    def __init__(self, offset: int, proof: object) -> None:
        if proof is not _PROOF:
            raise TypeError("call prove_layout()")
        self.offset = offset

    def pointer(self, context: ssl.SSLContext) -> int:
        """Return the ``SSL_CTX *`` of ``context``; it is good for as long as the object lives."""
        return c_void_p.from_address(id(context) + self.offset).value or 0


_PROOF = object()


def prove_layout(library: Library, offset: int = _OFFSET, mappings: list[Mapping] | None = None) -> ContextLayout:
    """Return the layout if what stands at ``offset`` of a fresh context is its ``SSL_CTX *``.

    Else raise ``tls.unsupported.layout``. The proof:
    1. This is CPython. 2. The object is large enough for a pointer there. 3. The value is an aligned address within
    writable memory of this process, with room for the structure behind it. 4. OpenSSL, asked through that pointer,
    tells the options and verify modes that Python set, three times over.
    """
    if sys.implementation.name != "cpython":
        _refuse(f"{sys.implementation.name} is not CPython", offset)  # 1
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if offset + sizeof(c_void_p) > sys.getsizeof(context):  # 2
        _refuse("the object ends before it", offset)
    candidate = c_void_p.from_address(id(context) + offset).value or 0
    if not _is_readable(candidate, mappings):  # 3
        _refuse("no pointer to memory of this process stands there", offset)
    for options in _PATTERNS:  # 4
        for mode in (ssl.CERT_NONE, ssl.CERT_REQUIRED):
            context.options, context.verify_mode = options, mode
            seen = (library.SSL_CTX_get_options(candidate), library.SSL_CTX_get_verify_mode(candidate))
            if seen != (int(context.options), _VERIFY_PEER if mode is ssl.CERT_REQUIRED else 0):
                _refuse("OpenSSL sees other settings through it than Python made", offset)
    return ContextLayout(offset, _PROOF)


def _is_readable(address: int, mappings: list[Mapping] | None) -> bool:
    if address == 0 or address % sizeof(c_void_p):
        return False
    try:
        known = read_mappings() if mappings is None else mappings
    except OSError:  # no /proc: nothing proves that the address can be read
        return False
    return any(one.writable and one.start <= address and address + _CONTEXT_BYTES <= one.end for one in known)


def _refuse(why: str, offset: int) -> NoReturn:
    raise LayoutUnsupported(
        f"Python {sys.version.split()[0]} does not keep its SSL_CTX at offset {offset}: {why}",
        python=sys.version.split()[0],
        offset=offset,
    )
