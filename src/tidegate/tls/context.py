"""Contexts for servers and clients: what a peer may do with us, decided once and safely.

Every context: TLS 1.2 or 1.3; in 1.2 only ECDHE with an AEAD; signature algorithms without SHA-1, our key's own first;
security level 2 (112 bits); strict X.509 rules; no compression, no renegotiation, no session tickets or cache, so
that each connection proves its certificate afresh and a revocation counts at once.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tidegate.crypto.signing import Signer
from tidegate.pki.keyadapter import library_public_key
from tidegate.tls.algorithms import SIGALGS_WITHOUT_KEY, traits_of
from tidegate.tls.errors import (
    AnchorsMissing,
    CertificateMismatch,
    ChainMalformed,
    ChainMissing,
    ContextRefused,
)
from tidegate.tls.failures import Failures, keep_failures
from tidegate.tls.identity import MAX_CERTIFICATE_BYTES, announce_anchor, use_identity
from tidegate.tls.libssl import CTRL_SESSION_CACHE, CTRL_SIGNATURE_ALGORITHMS
from tidegate.tls.revocation import RevocationLists
from tidegate.tls.selfcheck import Platform, require_platform
from tidegate.tls.staple import OcspRule, StapleCheck, Stapler

_TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:@SECLEVEL=2"
MAX_ANCHORS = 64  # a device trusts one or two CAs, a gateway a few makers


def server_context(
    signer: Signer,
    chain: Sequence[bytes],
    *,
    clients: Sequence[bytes] | None,
    clients_required: bool = True,
    lists: RevocationLists | None = None,
    stapler: Stapler | None = None,
) -> ssl.SSLContext:
    """Return a server's context that proves ``chain`` with ``signer`` and admits only clients it can verify.

    ``chain``: certificates in DER, the key's own first. ``clients``: trust anchors (DER) of the clients' certificates;
    None for a server that is open to everybody. ``clients_required`` False also admits clients without a certificate;
    one that is shown is verified all the same. ``lists``: revocation lists that client certificates have to be absent
    from. ``stapler``: where the server's own OCSP answer comes from.

    Raises ``tls.unsupported.*``, ``tls.key.unsupported``, ``tls.certificate.mismatch``, ``tls.chain.*``,
    ``tls.anchors.missing``, ``tls.context.refused``. That the chain leads to an anchor of the clients is not checked.
    """
    if lists is not None and clients is None:
        raise AnchorsMissing("revocation lists are for clients' certificates, but no client's is asked for")
    platform, failures = require_platform(), Failures()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(platform, context, signer)
    _use_key(platform, context, signer, chain, failures)
    if clients is not None:
        _trust(context, clients)
        for anchor in clients:
            announce_anchor(platform.library, platform.layout.pointer(context), anchor)
        context.verify_mode = ssl.CERT_REQUIRED if clients_required else ssl.CERT_OPTIONAL
    if lists is not None:
        _use_lists(platform, context, lists, failures)
    if stapler is not None:
        platform.hooks.attach_source(context, platform.layout.pointer(context), stapler, failures)
    keep_failures(context, failures)
    return context


def client_context(
    signer: Signer | None = None,
    chain: Sequence[bytes] = (),
    *,
    anchors: Sequence[bytes],
    lists: RevocationLists | None = None,
    ocsp: OcspRule = OcspRule.IF_PRESENT,
    at_s: float | None = None,
) -> ssl.SSLContext:
    """Return a client's context that verifies the server's certificate and host name, and proves ``chain`` if given.

    ``anchors``: trust anchors (DER) of the server. ``lists``: revocation lists that the server's certificate has to be
    absent from. ``ocsp``: whether the server has to staple an OCSP answer; one that it staples always has to be good.
    ``at_s``: judge certificates and staples as of that moment instead of the system's clock, for a device whose clock
    floor knows better; such a context is for one connection, its time stands still.

    Raises what ``server_context`` raises.
    """
    if (signer is None) != (not chain):
        raise ChainMissing("a key without its certificate, or a certificate without its key")
    platform, failures = require_platform(), Failures()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    _harden(platform, context, signer)
    _trust(context, anchors)
    if signer is not None:
        _use_key(platform, context, signer, chain, failures)
    if lists is not None:
        _use_lists(platform, context, lists, failures)
    if at_s is not None:
        parameters = platform.library.SSL_CTX_get0_param(platform.layout.pointer(context))
        platform.library.X509_VERIFY_PARAM_set_time(parameters, int(at_s))
    platform.hooks.attach_judge(context, platform.layout.pointer(context), StapleCheck(ocsp, at_s), failures)
    keep_failures(context, failures)
    return context


def _harden(platform: Platform, context: ssl.SSLContext, signer: Signer | None) -> None:
    platform.library.ERR_clear_error()  # what another user of libcrypto left in this thread would be blamed on us
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    # strict: what RFC 5280 demands and OpenSSL overlooks by default; partial: an anchor need not be a root
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    if context.protocol is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    library, pointer = platform.library, platform.layout.pointer(context)
    library.SSL_CTX_ctrl(pointer, CTRL_SESSION_CACHE, 0, None)
    sigalgs = (traits_of(signer.public_key).sigalgs() if signer else SIGALGS_WITHOUT_KEY).encode()
    if library.SSL_CTX_ctrl(pointer, CTRL_SIGNATURE_ALGORITHMS, 0, sigalgs) != 1:
        raise ContextRefused(f"OpenSSL refuses our signature algorithms: {library.reason()}")


def _use_key(
    platform: Platform, context: ssl.SSLContext, signer: Signer, chain: Sequence[bytes], failures: Failures
) -> None:
    """Give the context certificate and key; the key lives as long as OpenSSL's context does."""
    traits_of(signer.public_key)
    if not chain:
        raise ChainMissing("a key without its certificate")
    try:
        certified = x509.load_der_x509_certificate(chain[0]).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ChainMalformed(f"no X.509 certificate in DER: {error}") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certified.public_bytes(*form) != library_public_key(signer.public_key).public_bytes(*form):
        raise CertificateMismatch("the first certificate is another key's", key=str(signer.public_key.key_id))
    library = platform.library
    key = platform.provider.new_key(signer, failures)
    try:
        use_identity(library, platform.layout.pointer(context), chain, key)
    finally:
        library.EVP_PKEY_free(key)  # the context holds its own reference


def _use_lists(platform: Platform, context: ssl.SSLContext, lists: RevocationLists, failures: Failures) -> None:
    """Have OpenSSL look into the lists in force; it refuses a peer whose issuer's list is missing or stale."""
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN if lists.whole_chain else ssl.VERIFY_CRL_CHECK_LEAF
    platform.hooks.attach_lists(context, platform.layout.pointer(context), lists, failures)


def _trust(context: ssl.SSLContext, anchors: Sequence[bytes]) -> None:
    if not anchors:
        raise AnchorsMissing("no trust anchors were given")
    if len(anchors) > MAX_ANCHORS or any(not 0 < len(one) <= MAX_CERTIFICATE_BYTES for one in anchors):
        raise ChainMalformed(f"at most {MAX_ANCHORS} anchors of {MAX_CERTIFICATE_BYTES} bytes")
    for der in anchors:
        try:
            x509.load_der_x509_certificate(der)
            context.load_verify_locations(cadata=der)
        except (ValueError, ssl.SSLError) as error:
            raise ChainMalformed(f"a trust anchor is no X.509 certificate in DER: {error}") from error
