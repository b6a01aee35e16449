"""What ties something to one TLS connection: tls-unique for TLS 1.2 (RFC 5929), tls-exporter for TLS 1.3 (RFC 9266).

Touches: for tls-exporter the ``SSL *`` of the connection, through ctypes. ``ssl`` knows tls-unique alone, which TLS 1.3
does not have. The way to the pointer is proven before it is used: OpenSSL, asked through it, has to name the context
that the connection belongs to.
"""

from __future__ import annotations

import _ssl
import ctypes
import functools
import ssl
from ctypes import c_char_p, c_int, c_size_t, c_void_p, sizeof

from tidegate.base.errors import TidegateError
from tidegate.tls.errors import ExporterUnsupported
from tidegate.tls.layout import ContextLayout
from tidegate.tls.libssl import read_mappings
from tidegate.tls.selfcheck import require_platform

_LABEL = b"EXPORTER-Channel-Binding"  # RFC 9266 §4.2, with an empty context
BINDING_BYTES = 32
_OFFSET = object.__basicsize__ + sizeof(c_void_p)  # PySSLSocket: head, ``PyObject *Socket``, ``SSL *ssl``
_SSL_BYTES = 4096  # an SSL of OpenSSL 3.0 has 6,752 on the heap; its ``ctx`` stands in the first 3 KiB


def channel_binding(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes | None:
    """Return what only the two ends of this connection know; None where no way to it is proven.

    The connection has to have finished its handshake.
    """
    if connection.version() != "TLSv1.3":
        return connection.get_channel_binding("tls-unique")
    try:
        return _export(connection)
    except TidegateError:  # another build of Python or OpenSSL: whoever needs a binding refuses, the rest goes on
        return None


def _export(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes:
    exporter = _prove()
    pointer = exporter.pointer(connection)
    out = ctypes.create_string_buffer(BINDING_BYTES)
    if exporter.material(pointer, out, BINDING_BYTES, _LABEL, len(_LABEL), b"", 0, 1) != 1:
        raise ExporterUnsupported("OpenSSL exports no keying material on this connection")
    return out.raw


class _Exporter:
    """The two functions with their types, and the proven way to the pointer."""

    def __init__(self, layout: ContextLayout) -> None:
        self._layout = layout
        handle = ctypes.CDLL(getattr(_ssl, "__file__", None))
        self.context_of = handle.SSL_get_SSL_CTX
        self.context_of.restype, self.context_of.argtypes = c_void_p, (c_void_p,)
        self.material = handle.SSL_export_keying_material
        self.material.restype = c_int
        self.material.argtypes = (c_void_p, c_char_p, c_size_t, c_char_p, c_size_t, c_char_p, c_size_t, c_int)

    def candidate(self, connection: ssl.SSLObject | ssl.SSLSocket) -> int:
        inner = getattr(connection, "_sslobj", None)
        if inner is None:
            raise ExporterUnsupported("the connection has no TLS yet")
        return c_void_p.from_address(id(inner) + _OFFSET).value or 0

    def pointer(self, connection: ssl.SSLObject | ssl.SSLSocket) -> int:
        """Return the ``SSL *``; raise ``tls.unsupported.exporter`` unless it belongs to the connection's context."""
        found = self.candidate(connection)
        if not found or self.context_of(found) != self._layout.pointer(connection.context):
            raise ExporterUnsupported("the connection's structure is another one than expected")
        return found


@functools.cache
def _prove() -> _Exporter:
    """Return the way, tried on a fresh connection whose pointer has to lie in readable memory before it is followed."""
    try:
        exporter = _Exporter(require_platform().layout)
    except (OSError, AttributeError) as error:
        raise ExporterUnsupported(f"the ssl module's library does not show what is needed: {error}") from error
    trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="trial")
    address = exporter.candidate(trial)
    known = any(one.writable and one.start <= address and address + _SSL_BYTES <= one.end for one in read_mappings())
    if address % sizeof(c_void_p) or not known:
        raise ExporterUnsupported("no pointer to memory of this process stands where SSL * should")
    exporter.pointer(trial)
    return exporter
