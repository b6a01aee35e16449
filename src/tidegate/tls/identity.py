"""A certificate chain and a provider's key put into an ``SSL_CTX``, in memory.

Touches: libssl. Nothing is written to a file on the way.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence

from tidegate.tls.errors import CertificateMismatch, ChainMalformed, ContextRefused
from tidegate.tls.libssl import CTRL_CHAIN_CERTIFICATE, Library

MAX_CHAIN = 8  # certificates; a device's own has two or three above it
MAX_CERTIFICATE_BYTES = 16_384  # one with ML-DSA keys has 6 KiB
_ADD_AND_COUNT = 1  # SSL_CTX_add1_chain_cert: the context holds its own reference


@contextlib.contextmanager
def parsed_certificate(library: Library, der: bytes) -> Iterator[int]:
    """Yield an ``X509 *`` of exactly ``der``; raise ``tls.chain.malformed``."""
    if not 0 < len(der) <= MAX_CERTIFICATE_BYTES:
        raise ChainMalformed(f"a certificate has 1 to {MAX_CERTIFICATE_BYTES} bytes, not {len(der)}")
    buffer = ctypes.create_string_buffer(der, len(der))
    cursor = ctypes.c_void_p(ctypes.addressof(buffer))
    parsed = library.d2i_X509(None, ctypes.byref(cursor), len(der))
    if not parsed:
        raise ChainMalformed(f"no X.509 certificate in DER: {library.reason()}")
    try:
        if cursor.value != ctypes.addressof(buffer) + len(der):
            raise ChainMalformed("something follows a certificate")
        yield parsed
    finally:
        library.X509_free(parsed)


def use_identity(library: Library, pointer: int, chain: Sequence[bytes], key: int) -> None:
    """Let the ``SSL_CTX`` at ``pointer`` show ``chain`` and sign with the ``EVP_PKEY`` ``key``.

    The caller keeps its own references. Raises ``tls.chain.malformed``, ``tls.certificate.mismatch`` where OpenSSL
    finds another public key in the certificate, ``tls.context.refused`` where its security level forbids it.
    """
    if not 0 < len(chain) <= MAX_CHAIN:
        raise ChainMalformed(f"a chain has 1 to {MAX_CHAIN} certificates, not {len(chain)}")
    with parsed_certificate(library, chain[0]) as leaf:
        if library.SSL_CTX_use_certificate(pointer, leaf) != 1:
            raise ContextRefused(f"OpenSSL refuses the certificate: {library.reason()}")
    for der in chain[1:]:
        with parsed_certificate(library, der) as link:
            if library.SSL_CTX_ctrl(pointer, CTRL_CHAIN_CERTIFICATE, _ADD_AND_COUNT, link) != 1:
                raise ContextRefused(f"OpenSSL refuses a certificate of the chain: {library.reason()}")
    if library.SSL_CTX_use_PrivateKey(pointer, key) != 1 or library.SSL_CTX_check_private_key(pointer) != 1:
        raise CertificateMismatch(f"the first certificate is not the key's: {library.reason()}")


def announce_anchor(library: Library, pointer: int, der: bytes) -> None:
    """Let a server name this CA when it asks for a certificate, so that clients with several choose well."""
    with parsed_certificate(library, der) as anchor:
        if library.SSL_CTX_add_client_CA(pointer, anchor) != 1:
            raise ContextRefused(f"OpenSSL does not announce a trust anchor: {library.reason()}")
