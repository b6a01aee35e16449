"""The self-check: does this Python's ``ssl`` take keys from a provider? Asked once a process, then remembered.

It costs 10 to 20 ms. Order: library and version, layout of the context object, provider, a mutual handshake in memory
with a throw-away key. Nothing is used before it is proven.
"""

from __future__ import annotations

import datetime
import os
import ssl
import sys
import threading
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.tls.errors import HandshakeUnsupported
from tidegate.tls.failures import Failures
from tidegate.tls.hooks import Hooks
from tidegate.tls.identity import use_identity
from tidegate.tls.layout import ContextLayout, prove_layout
from tidegate.tls.libssl import Library, load_library
from tidegate.tls.provider import Provider

_NAME = "self-check.invalid"
_MAX_ROUNDS = 16  # a TLS 1.2 handshake has three
_VERSIONS = ("TLSv1.2", "TLSv1.3")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """A Python and OpenSSL that were proven to work together here."""

    library: Library
    layout: ContextLayout
    provider: Provider
    hooks: Hooks
    versions: tuple[str, ...]


class _Memory:
    platform: Platform | None = None
    lock = threading.Lock()


def _forget_lock() -> None:
    _Memory.lock = threading.Lock()  # another thread may have held it when this process was forked


os.register_at_fork(after_in_child=_forget_lock)


def require_platform() -> Platform:
    """Return the proven platform; raise ``tls.unsupported.*`` saying what was found and what is needed."""
    if _Memory.platform is None:
        with _Memory.lock:
            if _Memory.platform is None:
                _Memory.platform = examine_platform()
    return _Memory.platform


def examine_platform() -> Platform:
    """Run the whole self-check and return what it proved; raise ``tls.unsupported.*``."""
    library = load_library()
    layout = prove_layout(library)
    provider = Provider(library)
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        _try_handshake(library, layout, provider, version)
    return Platform(library=library, layout=layout, provider=provider, hooks=Hooks(library), versions=_VERSIONS)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let two contexts of this process shake hands in memory; return server's and client's end.

    Raises ``ssl.SSLError`` from whichever end refuses first.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = {
        "client": client.wrap_bio(to_client, to_server, server_hostname=name),
        "server": server.wrap_bio(to_server, to_client, server_side=True),
    }
    waiting = dict(ends)
    for _ in range(_MAX_ROUNDS):
        for side, end in list(waiting.items()):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            del waiting[side]
        if not waiting:
            # in TLS 1.3 the client is done before the server has judged its certificate; both are here
            return ends["server"], ends["client"]
    raise ssl.SSLError(f"no handshake after {_MAX_ROUNDS} rounds")


class _ThrowAwayKey:
    """A key in this process's memory, for the self-check alone."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        point = self._key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        self.public_key = PublicKey(SignatureAlgorithm.ECDSA_P256, point)
        self.signatures = 0

    def sign(self, message: bytes) -> bytes:
        self.signatures += 1
        r, s = utils.decode_dss_signature(self._key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def certificate(self) -> bytes:
        """Return a self-signed certificate that no clock calls expired."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self._key.public_key())
            .serial_number(1)
            .not_valid_before(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))
            .not_valid_after(datetime.datetime(9999, 12, 31, tzinfo=datetime.UTC))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def _try_handshake(library: Library, layout: ContextLayout, provider: Provider, version: ssl.TLSVersion) -> None:
    key = _ThrowAwayKey()
    certificate = key.certificate()
    contexts = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(protocol)
        context.minimum_version = context.maximum_version = version
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=certificate)
        pkey = provider.new_key(key, Failures())
        try:
            use_identity(library, layout.pointer(context), [certificate], pkey)
        finally:
            library.EVP_PKEY_free(pkey)
        contexts.append(context)
    try:
        server, _ = shake_hands(contexts[0], contexts[1], _NAME)
    except ssl.SSLError as error:
        raise _failed(f"the trial handshake ended with {error}") from error
    if key.signatures != 2 or server.getpeercert(binary_form=True) != certificate:
        raise _failed(f"of two signatures {key.signatures} came from the provider")


def _failed(what: str) -> HandshakeUnsupported:
    python = sys.version.split()[0]
    return HandshakeUnsupported(f"Python {python} with {ssl.OPENSSL_VERSION}: {what}", python=python)
