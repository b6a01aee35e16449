"""What the tls room refuses, and why."""

from __future__ import annotations

from tidegate.base.errors import Fault, Misuse, Rejected


class LibraryUnsupported(Fault):
    code = "tls.unsupported.library"
    advice = (
        "Use a CPython whose ssl module is linked with a shared OpenSSL 3 or 4, as Debian's is; "
        "a statically linked one hides what is needed."
    )


class VersionUnsupported(Fault):
    code = "tls.unsupported.version"
    advice = "Use a Python whose ssl module runs on OpenSSL 3.0 or newer (`tidegate tls check` names the one in use)."


class LayoutUnsupported(Fault):
    code = "tls.unsupported.layout"
    advice = "Use a CPython release listed in docs/tls.md, and report this one with the output of `tidegate tls check`."


class HandshakeUnsupported(Fault):
    code = "tls.unsupported.handshake"
    advice = "The trial handshake failed as quoted: report it with the output of `tidegate tls check`."


class KeyUnsupported(Misuse):
    code = "tls.key.unsupported"
    advice = "TLS signs with ecdsa-p256, ecdsa-p384, ed25519 or rsa-pss; generate such a key for it."


class CertificateMismatch(Misuse):
    code = "tls.certificate.mismatch"
    advice = "Give the certificate that was issued for this key, first in its chain."


class ChainMissing(Misuse):
    code = "tls.chain.missing"
    advice = "A key in TLS needs its certificate, and a certificate its key: give both or neither."


class AnchorsMissing(Misuse):
    code = "tls.anchors.missing"
    advice = "Name at least one trust anchor; without one no peer could be verified."


class ChainMalformed(Rejected):
    code = "tls.chain.malformed"
    advice = "Give X.509 certificates in DER, one item each, at most as many and as large as the message says."


class ContextRefused(Fault):
    code = "tls.context.refused"
    advice = "OpenSSL refused the setting as quoted; check key sizes and signatures of the certificates."


class CrlMalformed(Rejected):
    code = "tls.crl.malformed"
    advice = "Give revocation lists in DER, one item each, issued by the CAs that were named."


class CrlRollback(Rejected):
    code = "tls.crl.rollback"
    advice = "The list is older than the one in force, which stays; fetch the newest from the CA."


class StapleMissing(Rejected):
    code = "tls.staple.missing"
    advice = (
        "The server sent no OCSP answer although one is required; have it staple, or wait until it has a fresh one."
    )


class ExporterUnsupported(Fault):
    code = "tls.unsupported.exporter"
    advice = "Channel binding on TLS 1.3 needs a CPython listed in docs/tls.md; TLS 1.2 has one everywhere."


class HttpUnreachable(Fault):
    code = "tls.http.unreachable"
    advice = "Check address, port and network; if the peer is up, its log says why it refused the connection."


class HttpUntrusted(Rejected):
    code = "tls.http.untrusted"
    advice = "The server's certificate leads to no trusted anchor for this name: check clock, anchors and address."


class HttpMalformed(Rejected):
    code = "tls.http.malformed"
    advice = "What answers there does not speak HTTP/1.1; check the port."


class HttpTooLarge(Rejected):
    code = "tls.http.too-large"
    advice = "The answer is larger than any right one; check what answers at this address."
