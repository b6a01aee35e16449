"""Chains of certificates from a trust anchor down to the one in question, judged against our profiles. Pure.

The paths are found and checked by ``cryptography``'s verifier (RFC 5280 §6.1 with the stricter habits of the web); the
rules here say which extensions, keys, signatures and uses it may accept, and why a chain was refused.
"""

from __future__ import annotations

import datetime
import enum
import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID
from cryptography.x509.verification import Criticality, ExtensionPolicy

from tidegate.base.errors import Rejected
from tidegate.pki.errors import (
    KeyUnsupported,
    PathExpired,
    PathExtensionRefused,
    PathKeyRefused,
    PathLimit,
    PathMalformed,
    PathNameRefused,
    PathNotCa,
    PathSignatureRefused,
    PathTooLong,
    PathUntrusted,
    PathUsageRefused,
)
from tidegate.pki.keyadapter import UNREADABLE, public_key_of

Kind = TypeVar("Kind", bound=x509.ExtensionType)

MAX_CERTIFICATES = 8  # in a chain: a root, two CAs, the one in question, and what a rollover sends besides
MAX_CERTIFICATE_BYTES = 16_384  # one with ML-DSA-87 keys has 7 KiB
MAX_ANCHORS = 16  # the library's search is bounded, but ours explains refusals with all of them
DEPTH = 2  # CAs between an anchor and the certificate in question: ours have one, cross-certified ones two
_PROOF = object()
_KNOWN: tuple[type[x509.ExtensionType], ...] = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectAlternativeName,
    x509.NameConstraints,
    x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier,
    x509.AuthorityInformationAccess,
)
SIGNATURES = {  # on certificates
    SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    SignatureAlgorithmOID.RSA_WITH_SHA256,
    SignatureAlgorithmOID.RSA_WITH_SHA384,
    SignatureAlgorithmOID.RSA_WITH_SHA512,
    SignatureAlgorithmOID.RSASSA_PSS,  # the verifier takes it with SHA-2 and matching parameters only
    x509.ObjectIdentifier("2.16.840.1.101.3.4.3.18"),  # ML-DSA-65
    x509.ObjectIdentifier("2.16.840.1.101.3.4.3.19"),  # ML-DSA-87
}


class Purpose(enum.Enum):
    """What a certificate is about to be used for: the extended key usage that allows it, and whether it must have it.

    Devices' birth certificates name no extended use (IEEE 802.1AR §8.10), so clients may go without.
    """

    CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH, False)
    SERVER = (ExtendedKeyUsageOID.SERVER_AUTH, True)
    CODE_SIGNING = (ExtendedKeyUsageOID.CODE_SIGNING, True)
    OCSP = (ExtendedKeyUsageOID.OCSP_SIGNING, True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PathRule:
    """What a chain has to satisfy. Nothing in it switches a check off.

    ``anchors``: 1 to 16 trusted certificates in DER. ``now`` is aware. ``server_name``: the host name or address that a
    server's certificate has to carry; it belongs to ``Purpose.SERVER`` and to no other. ``depth``: CAs between anchor
    and certificate.
    """

    anchors: Sequence[bytes]
    now: datetime.datetime
    purpose: Purpose
    server_name: str | None = None
    depth: int = DEPTH

    def __post_init__(self) -> None:
        if (self.purpose is Purpose.SERVER) != (self.server_name is not None):
            raise ValueError("a server is verified by its name, and only a server")
        if not 0 <= self.depth <= MAX_CERTIFICATES or self.now.tzinfo is None:
            raise ValueError("depth is out of range or the time has no zone")


@dataclass(frozen=True, slots=True)
class VerifiedChain:
    """A certificate and what vouches for it up to an anchor; ``verify_chain`` alone makes one.

    ``certificates`` begin with the one in question and end with the anchor. Revocation was not asked for.
    """

    certificates: tuple[x509.Certificate, ...]
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedChain comes from verify_chain alone")

    @property
    def certificate(self) -> x509.Certificate:
        """Return the certificate in question."""
        return self.certificates[0]

    @property
    def issuer(self) -> x509.Certificate:
        """Return its issuer."""
        return self.certificates[1]

    @property
    def anchor(self) -> x509.Certificate:
        """Return the trust anchor."""
        return self.certificates[-1]

    def encode(self) -> tuple[bytes, ...]:
        """Return the certificates in DER."""
        return tuple(one.public_bytes(Encoding.DER) for one in self.certificates)


def verify_chain(chain: Sequence[bytes], rule: PathRule) -> VerifiedChain:
    """Return the path from ``chain[0]`` to one of ``rule``'s anchors, or raise a ``Rejected``.

    ``chain`` is DER, the certificate in question first; the others may come in any order and be of no use.
    Duties, in this order:
    1. there are 1 to 8 certificates of at most 16 KiB, and 1 to 16 anchors (``pki.path.limit``), all of them X.509
       (``pki.path.malformed``);
    2. the first is for ``rule``'s purpose and no CA's (``pki.path.usage``);
    3. a path leads to an anchor, each of its certificates is signed by the next, in date, and allowed by those above
       it: the library's word, which ``pki.path.*`` explains where it refuses;
    4. every key is of an allowed kind and size (``pki.path.key``), every signature made with SHA-2
       (``pki.path.signature``), every CA allowed for the purpose (``pki.path.usage``).

    Not checked: revocation (``revocation``), possession of the key (TLS does that), and names of clients.
    """
    leaf, *others = _load(chain, MAX_CERTIFICATES)  # 1
    anchors = _load(rule.anchors, MAX_ANCHORS)
    _check_use(leaf, rule.purpose)  # 2
    found = _search(leaf, others, anchors, rule)  # 3
    for one in found[:-1]:  # 4; an anchor's signature means nothing, it is trusted as it is
        _check_signature_kind(one)
    for one in found:
        _check_key(one)
    for authority in found[1:]:
        _check_authority_use(authority, rule.purpose)
    return VerifiedChain(tuple(found), _PROOF)


def load_certificate(raw: bytes) -> x509.Certificate:
    """Return a certificate with every part that is looked at parsed, unverified.

    Raises ``pki.path.limit``, ``pki.path.malformed``.
    """
    if len(raw) > MAX_CERTIFICATE_BYTES:
        raise PathLimit(f"a certificate has at most {MAX_CERTIFICATE_BYTES} bytes")
    try:
        certificate = x509.load_der_x509_certificate(raw)
        _ = certificate.extensions, certificate.subject, certificate.issuer  # the library parses late
        if certificate.serial_number <= 0:
            raise PathMalformed("a serial number is not positive")
    except (ValueError, TypeError, UnsupportedAlgorithm, *UNREADABLE) as error:
        raise PathMalformed(f"no X.509 certificate in DER: {error}") from error
    return certificate


def _load(raw: Sequence[bytes], limit: int) -> list[x509.Certificate]:
    if not 1 <= len(raw) <= limit:
        raise PathLimit(f"there are 1 to {limit} certificates, not {len(raw)}")
    return [load_certificate(one) for one in raw]


def _search(
    leaf: x509.Certificate, others: list[x509.Certificate], anchors: list[x509.Certificate], rule: PathRule
) -> list[x509.Certificate]:
    """Return the library's path, or raise what explains that there is none."""
    builder = (
        verification.PolicyBuilder()
        .store(verification.Store(anchors))
        .time(rule.now.astimezone(datetime.UTC).replace(tzinfo=None))
        .max_chain_depth(rule.depth)
        .extension_policies(ca_policy=_ca_policy(), ee_policy=_ee_policy(rule.purpose))
    )
    try:
        if rule.server_name is None:
            return list(builder.build_client_verifier().verify(leaf, others).chain)
        return list(_server_verifier(builder, rule.server_name).verify(leaf, others))
    except verification.VerificationError as error:
        raise _explain(leaf, others, anchors, rule, str(error)) from error


def _ca_policy() -> ExtensionPolicy:
    """Return what CAs between may carry: the web's rules, with extended uses judged by us (duty 4)."""
    return ExtensionPolicy.webpki_defaults_ca().may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)


def _ee_policy(purpose: Purpose) -> ExtensionPolicy:
    """Return what the certificate in question may carry; a critical extension that is not named here is refused.

    Devices are called by a serial number in their subject, so only servers need an alternative name.
    """
    policy = ExtensionPolicy.webpki_defaults_ee()
    if purpose is not Purpose.SERVER:
        policy = policy.may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    policy = policy.may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, None)
    return policy.may_be_present(x509.AuthorityKeyIdentifier, Criticality.NON_CRITICAL, None)


def _server_verifier(builder: verification.PolicyBuilder, name: str) -> verification.ServerVerifier:
    try:
        subject: verification.Subject = x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        subject = x509.DNSName(name) if name.isascii() else x509.DNSName("")
    try:
        return builder.build_server_verifier(subject)
    except ValueError as error:
        raise PathNameRefused(f"{name[:64]!r} is no host name or address") from error


# -- our rules --------------------------------------------------------------------------------------------------------


def _check_use(leaf: x509.Certificate, purpose: Purpose) -> None:
    """Refuse a certificate that is not made for ``purpose``."""
    basic, usage, extended = (
        _value(leaf, x509.BasicConstraints),
        _value(leaf, x509.KeyUsage),
        _value(leaf, x509.ExtendedKeyUsage),
    )
    if basic is not None and basic.ca:
        raise PathUsageRefused("a CA's certificate is no identity to work with")
    if usage is not None and not usage.digital_signature:
        raise PathUsageRefused("its key may not sign")
    wanted, required = purpose.value
    if extended is None and required:
        raise PathUsageRefused(f"it names no use, and {purpose.name.lower()} has to be named")
    if extended is not None and wanted not in extended:
        raise PathUsageRefused(f"it is for other uses than {purpose.name.lower()}")


def _check_authority_use(authority: x509.Certificate, purpose: Purpose) -> None:
    extended = _value(authority, x509.ExtendedKeyUsage)
    if extended is not None and not {purpose.value[0], ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(extended):
        raise PathUsageRefused(f"the CA {_name(authority)} may not issue for {purpose.name.lower()}")


def _check_key(certificate: x509.Certificate) -> None:
    try:
        public_key_of(certificate.public_key())
    except (KeyUnsupported, ValueError, UnsupportedAlgorithm) as error:
        raise PathKeyRefused(f"the key of {_name(certificate)} is not allowed: {error}") from error


def _check_signature_kind(certificate: x509.Certificate) -> None:
    oid = certificate.signature_algorithm_oid
    if oid not in SIGNATURES:
        raise PathSignatureRefused(f"{_name(certificate)} is signed with {oid.dotted_string}, which is not allowed")


# -- why a chain was refused ------------------------------------------------------------------------------------------


def _explain(
    leaf: x509.Certificate,
    others: list[x509.Certificate],
    anchors: list[x509.Certificate],
    rule: PathRule,
    story: str,
) -> Rejected:
    """Return the error that fits best: the first thing wrong on the likeliest path. It decides nothing."""
    path = _likely_path(leaf, others, anchors)
    try:
        for place, certificate in enumerate(path):
            _explain_one(certificate, rule.now, place, is_anchor=certificate in anchors)
        for below, above in itertools.pairwise(path):
            _explain_link(below, above)
    except Rejected as reason:
        return reason
    if path[-1] not in anchors or len(path) < 2:
        return PathUntrusted(f"{_name(path[-1])} leads to no trust anchor")
    said = story.partition(" (encountered")[0]
    if len(path) - 2 > rule.depth or "path length" in said or "depth" in said:
        return PathTooLong(f"there are more CAs between than are allowed: {said}")
    if any(word in said for word in ("name constraint", "subjectAltName", "SAN")):
        return PathNameRefused(f"a name is not the expected one, or none that its CA may vouch for: {said}")
    if "public key" in said:
        return PathKeyRefused(f"a key of the chain is not allowed: {said[:128]}")
    return PathExtensionRefused(f"the chain breaks a rule for certificates: {said}")


def _likely_path(
    leaf: x509.Certificate, others: list[x509.Certificate], anchors: list[x509.Certificate]
) -> list[x509.Certificate]:
    path = [leaf]
    while path[-1] not in anchors and len(path) <= MAX_CERTIFICATES:
        candidates = [one for one in (*anchors, *others) if one.subject == path[-1].issuer and one not in path]
        if not candidates:
            break
        path.append(next((one for one in candidates if _issued(path[-1], one)), candidates[0]))
    return path


def _explain_one(certificate: x509.Certificate, now: datetime.datetime, place: int, *, is_anchor: bool) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        span = f"{certificate.not_valid_before_utc} to {certificate.not_valid_after_utc}"
        raise PathExpired(f"{_name(certificate)} counts from {span}; now it is {now}")
    _check_key(certificate)
    if not is_anchor:
        _check_signature_kind(certificate)
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _KNOWN):
            oid = extension.oid.dotted_string
            raise PathExtensionRefused(f"{_name(certificate)} has the unknown critical extension {oid}")
    if place == 0:
        return
    basic, usage = _value(certificate, x509.BasicConstraints), _value(certificate, x509.KeyUsage)
    if basic is None or not basic.ca or (usage is not None and not usage.key_cert_sign):
        raise PathNotCa(f"{_name(certificate)} is no CA's certificate")
    if basic.path_length is not None and place - 1 > basic.path_length:
        raise PathTooLong(f"{_name(certificate)} allows {basic.path_length} CAs below it, there are {place - 1}")


def _explain_link(below: x509.Certificate, above: x509.Certificate) -> None:
    if not _issued(below, above):
        raise PathSignatureRefused(f"{_name(below)} is not signed by {_name(above)}, which it names")


def _issued(below: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(above)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _value(certificate: x509.Certificate, kind: type[Kind]) -> Kind | None:
    """Return the certificate's extension of one kind, if it has it."""
    return next((one.value for one in certificate.extensions if isinstance(one.value, kind)), None)


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()[:128] or f"serial {certificate.serial_number:x}"
