"""Whether a certificate was taken back: OCSP answers and revocation lists, judged before anybody believes them. Pure.

Source: RFC 6960 (OCSP), RFC 5280 §5 (lists, deltas) and §6.3 (their validation), RFC 9654 (nonces).
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from tidegate.crypto.signing import rsa_pss_padding
from tidegate.pki.errors import (
    CertificateRevoked,
    CrlDeltaMismatch,
    CrlExtensionRefused,
    CrlForged,
    CrlIssuerMismatch,
    CrlMalformed,
    CrlStale,
    KeyUnsupported,
    OcspForged,
    OcspMalformed,
    OcspNonceMismatch,
    OcspOther,
    OcspResponderRefused,
    OcspStale,
    OcspStatusUnknown,
    OcspUnsuccessful,
)
from tidegate.pki.keyadapter import UNREADABLE, public_key_of

MAX_OCSP_BYTES = 65_536  # an answer with an ML-DSA-87 responder certificate has 13 KiB
MAX_ANSWERS = 16  # single answers in one response; ours have one
MAX_RESPONDERS = 4  # certificates sent along with an answer
MAX_CRL_BYTES = 16 << 20  # 400,000 revoked certificates; OpenSSL's own limit for a fetched list is 100 MiB
CLOCK_SKEW = datetime.timedelta(minutes=5)  # the issuer's clock may be ahead of ours; there is no grace at the end
_PROOF = object()
_OCSP = x509.oid.OCSPExtensionOID
_HASHES: dict[x509.ObjectIdentifier, hashes.HashAlgorithm] = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: hashes.SHA256(),
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: hashes.SHA384(),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: hashes.SHA512(),
    SignatureAlgorithmOID.RSA_WITH_SHA256: hashes.SHA256(),
    SignatureAlgorithmOID.RSA_WITH_SHA384: hashes.SHA384(),
    SignatureAlgorithmOID.RSA_WITH_SHA512: hashes.SHA512(),
}
# of a list: what else signs, without a hash of its own choosing; RSASSA-PSS is looked into by the library
_SIGNED_WITHOUT_SHA1 = {
    *_HASHES,
    SignatureAlgorithmOID.RSASSA_PSS,
    SignatureAlgorithmOID.ED25519,
    x509.ObjectIdentifier("2.16.840.1.101.3.4.3.18"),  # ML-DSA-65
    x509.ObjectIdentifier("2.16.840.1.101.3.4.3.19"),  # ML-DSA-87
}


@dataclass(frozen=True, slots=True)
class VerifiedOcsp:
    """The issuer's word, in force at the time of judging, that a certificate is good; ``verify_ocsp`` alone makes one.

    ``serial`` is the certificate's, ``delegated`` whether a responder of the issuer signed instead of the issuer.
    """

    serial: int
    this_update: datetime.datetime
    next_update: datetime.datetime
    delegated: bool
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedOcsp comes from verify_ocsp alone")


@dataclass(frozen=True, slots=True)
class VerifiedCrl:
    """An issuer's list, in force at the time of judging; ``verify_crl`` alone makes one.

    ``revoked`` has serial numbers with the time and the reason of each.
    """

    issuer: x509.Name
    number: int
    this_update: datetime.datetime
    next_update: datetime.datetime
    revoked: Mapping[int, tuple[datetime.datetime, str]]
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedCrl comes from verify_crl alone")

    def require_good(self, certificate: x509.Certificate) -> None:
        """Return if the certificate is this issuer's and not on its list.

        Raises ``pki.crl.issuer``, ``pki.certificate.revoked``.
        """
        if certificate.issuer != self.issuer:
            raise CrlIssuerMismatch("the list is of another issuer than the certificate")
        if certificate.serial_number in self.revoked:
            raise _revoked(certificate.serial_number, *self.revoked[certificate.serial_number])


def encode_ocsp_request(certificate: x509.Certificate, issuer: x509.Certificate, nonce: bytes | None = None) -> bytes:
    """Return the question (DER) for the status of ``certificate``; ``nonce`` has 1 to 128 bytes (RFC 9654)."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA256())
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def verify_ocsp(
    raw: bytes,
    *,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    now: datetime.datetime,
    nonce: bytes | None = None,
) -> VerifiedOcsp:
    """Return the issuer's word that ``certificate`` is good, or raise a ``Rejected``.

    Duties, in this order:
    1. the answer is one OCSP response in DER of at most 64 KiB (``pki.ocsp.malformed``) and no refusal
       (``pki.ocsp.unsuccessful``);
    2. its signer is ``issuer``, or a responder that ``issuer`` itself certified for that, in date and marked
       ``id-pkix-ocsp-nocheck``, as we would not know whom to ask about it (``pki.ocsp.responder``);
    3. the signature holds and uses no SHA-1 (``pki.ocsp.forged``);
    4. no critical extension is unknown (``pki.ocsp.malformed``); the nonce is ours if we sent one (``pki.ocsp.nonce``);
    5. it speaks of this serial number under this issuer's name and key (``pki.ocsp.other``);
    6. it has an end, and now lies within its time (``pki.ocsp.stale``);
    7. the status is good (``pki.certificate.revoked``, ``pki.ocsp.unknown``).

    ``now`` is aware. Not checked: whether ``issuer`` is trusted and whether it issued ``certificate``; ``path`` does.
    """
    response = _parse_ocsp(raw)  # 1
    signer, delegated = _responder(response, issuer, now)  # 2
    _check_ocsp_signature(response, signer)  # 3
    _check_ocsp_extensions(response, nonce)  # 4
    answer = _answer_for(response, certificate, issuer)  # 5
    end = answer.next_update_utc
    if end is None or not answer.this_update_utc - CLOCK_SKEW <= now <= end:  # 6
        raise OcspStale(f"the answer counts from {answer.this_update_utc} to {end}; now it is {now}")
    if answer.certificate_status is ocsp.OCSPCertStatus.REVOKED:  # 7
        reason = answer.revocation_reason
        when = answer.revocation_time_utc or answer.this_update_utc
        raise _revoked(certificate.serial_number, when, reason.value if reason else "unspecified")
    if answer.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        raise OcspStatusUnknown(f"the issuer does not know serial {certificate.serial_number:x}")
    return VerifiedOcsp(certificate.serial_number, answer.this_update_utc, end, delegated, _PROOF)


def verify_crl(
    raw: bytes, *, issuer: x509.Certificate, now: datetime.datetime, base: VerifiedCrl | None = None
) -> VerifiedCrl:
    """Return ``issuer``'s list, or raise a ``Rejected``; with ``base`` a delta is combined with it.

    Duties, in this order:
    1. it is one list in DER of at most 16 MiB (``pki.crl.malformed``);
    2. it names ``issuer``, whose certificate lets it sign lists, and whose key it names (``pki.crl.issuer``);
    3. the signature holds and uses no SHA-1 (``pki.crl.forged``);
    4. it has an end, and now lies within its time (``pki.crl.stale``);
    5. it covers everything that the issuer issues: no partial, no indirect list, no unknown critical extension
       (``pki.crl.extension``); it has a number (``pki.crl.malformed``);
    6. a delta continues ``base``, which is at least the one it was made against and not a newer one
       (``pki.crl.delta``).

    ``now`` is aware. Not checked: whether ``issuer`` is trusted.
    """
    crl = _parse_crl(raw)  # 1
    _check_crl_issuer(crl, issuer)  # 2
    if crl.signature_algorithm_oid not in _SIGNED_WITHOUT_SHA1 or not _crl_signature_holds(crl, issuer):  # 3
        raise CrlForged("the list is not signed by its issuer, or in a way that anybody could forge")
    start, end = crl.last_update_utc, crl.next_update_utc
    if end is None or not start - CLOCK_SKEW <= now <= end:  # 4
        raise CrlStale(f"the list counts from {start} to {end}; now it is {now}")
    number, base_number = _crl_numbers(crl)  # 5
    revoked = _crl_entries(crl)
    if base_number is not None:  # 6
        revoked = _combine(revoked, number, base_number, base, crl.issuer)
    return VerifiedCrl(crl.issuer, number, start, end, _without_removed(revoked), _PROOF)


# -- OCSP -------------------------------------------------------------------------------------------------------------


def _parse_ocsp(raw: bytes) -> ocsp.OCSPResponse:
    if len(raw) > MAX_OCSP_BYTES:
        raise OcspMalformed(f"an answer has at most {MAX_OCSP_BYTES} bytes")
    try:
        response = ocsp.load_der_ocsp_response(raw)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise OcspUnsuccessful(f"the responder says {response.response_status.name.lower()}")
        _ = response.extensions, response.certificates, response.produced_at_utc
    except (ValueError, UnsupportedAlgorithm, *UNREADABLE) as error:
        raise OcspMalformed(f"no OCSP response: {error}") from error
    return response


def _responder(
    response: ocsp.OCSPResponse, issuer: x509.Certificate, now: datetime.datetime
) -> tuple[x509.Certificate, bool]:
    """Return the certificate of whoever signed, and whether it is a delegate's."""
    if _is_responder(response, issuer):
        return issuer, False
    for candidate in islice(response.certificates, MAX_RESPONDERS):
        if _is_responder(response, candidate):
            _check_delegate(candidate, issuer, now)
            return candidate, True
    raise OcspResponderRefused("the answer is signed by nobody whom the issuer named")


def _is_responder(response: ocsp.OCSPResponse, candidate: x509.Certificate) -> bool:
    if response.responder_name is not None:
        return response.responder_name == candidate.subject
    return response.responder_key_hash == _key_hash(candidate, hashes.SHA1())  # noqa: S303  # RFC 6960 fixes it


def _check_delegate(candidate: x509.Certificate, issuer: x509.Certificate, now: datetime.datetime) -> None:
    try:
        candidate.verify_directly_issued_by(issuer)
        extensions = candidate.extensions
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        extensions.get_extension_for_class(x509.OCSPNoCheck)
    except (
        ValueError,
        TypeError,
        InvalidSignature,
        UnsupportedAlgorithm,
        *UNREADABLE,
        x509.ExtensionNotFound,
    ) as error:
        raise OcspResponderRefused(f"the responder's certificate does not hold: {error}") from error
    known = (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.OCSPNoCheck)
    if any(one.critical and not isinstance(one.value, known) for one in extensions):
        raise OcspResponderRefused("the responder's certificate has an unknown critical extension")
    if candidate.signature_algorithm_oid not in _SIGNED_WITHOUT_SHA1:
        raise OcspResponderRefused("the responder's certificate is signed in a way that anybody could forge")
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usage:
        raise OcspResponderRefused("the issuer certified that key for something else than OCSP")
    if not candidate.not_valid_before_utc <= now <= candidate.not_valid_after_utc:
        raise OcspResponderRefused("the responder's certificate is out of date")


def _check_ocsp_signature(response: ocsp.OCSPResponse, signer: x509.Certificate) -> None:
    key, oid, message = signer.public_key(), response.signature_algorithm_oid, response.tbs_response_bytes
    digest = _HASHES.get(oid)
    try:
        public_key_of(key)  # refuses small and unknown keys
        if isinstance(key, ec.EllipticCurvePublicKey) and digest is not None:
            key.verify(response.signature, message, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey) and oid == SignatureAlgorithmOID.RSASSA_PSS:
            key.verify(response.signature, message, rsa_pss_padding(), hashes.SHA256())
        elif isinstance(key, rsa.RSAPublicKey) and digest is not None:
            key.verify(response.signature, message, padding.PKCS1v15(), digest)
        elif isinstance(key, ed25519.Ed25519PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey):
            key.verify(response.signature, message)
        else:
            raise OcspForged(f"{oid.dotted_string} is no allowed signature by that kind of key")
    except (InvalidSignature, KeyUnsupported, ValueError) as error:
        raise OcspForged("the answer is not signed by the responder that it names") from error


def _check_ocsp_extensions(response: ocsp.OCSPResponse, nonce: bytes | None) -> None:
    if any(one.critical and not isinstance(one.value, x509.OCSPNonce) for one in response.extensions):
        raise OcspMalformed("the answer has an unknown critical extension")
    if nonce is None:
        return
    try:
        theirs = response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound as error:
        raise OcspNonceMismatch("the answer does not repeat the nonce") from error
    if not hmac.compare_digest(theirs, nonce):
        raise OcspNonceMismatch("the answer is to another question")


def _answer_for(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> ocsp.OCSPSingleResponse:
    try:
        for single in islice(response.responses, MAX_ANSWERS):
            algorithm = single.hash_algorithm
            name = issuer.subject.public_bytes()
            if (
                single.serial_number == certificate.serial_number
                and single.issuer_name_hash == hashlib.new(algorithm.name, name).digest()
                and single.issuer_key_hash == _key_hash(issuer, algorithm)
            ):
                _check_single(single)
                return single
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OcspMalformed(f"a single answer cannot be read: {error}") from error
    raise OcspOther(f"the answer says nothing of serial {certificate.serial_number:x} of this issuer")


def _check_single(single: ocsp.OCSPSingleResponse) -> None:
    extensions = getattr(single, "extensions", ())
    if any(one.critical for one in extensions):
        raise OcspMalformed("the single answer has an unknown critical extension")


def _key_hash(certificate: x509.Certificate, algorithm: hashes.HashAlgorithm) -> bytes:
    """Return the hash over the bits of the key, without its algorithm, as CertID and ResponderID have it."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise OcspResponderRefused(f"the key of a responder cannot be read: {error}") from error
    if isinstance(key, ec.EllipticCurvePublicKey):
        bits = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    elif isinstance(key, rsa.RSAPublicKey):
        bits = key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    elif isinstance(key, ed25519.Ed25519PublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey):
        bits = key.public_bytes_raw()
    else:
        raise OcspResponderRefused(f"no responder signs with a key of kind {type(key).__name__}")
    return hashlib.new(algorithm.name, bits).digest()


# -- lists ------------------------------------------------------------------------------------------------------------


def _parse_crl(raw: bytes) -> x509.CertificateRevocationList:
    if len(raw) > MAX_CRL_BYTES:
        raise CrlMalformed(f"a list has at most {MAX_CRL_BYTES} bytes")
    try:
        crl = x509.load_der_x509_crl(raw)
        _ = crl.extensions, crl.signature_algorithm_oid, crl.issuer, crl.last_update_utc, crl.next_update_utc
    except (ValueError, UnsupportedAlgorithm, *UNREADABLE) as error:
        raise CrlMalformed(f"no revocation list in DER: {error}") from error
    return crl


def _check_crl_issuer(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> None:
    if crl.issuer != issuer.subject:
        raise CrlIssuerMismatch("the list is of another issuer")
    try:
        extensions = issuer.extensions
        usage = next((one.value for one in extensions if isinstance(one.value, x509.KeyUsage)), None)
        ours = next((one.value.digest for one in extensions if isinstance(one.value, x509.SubjectKeyIdentifier)), None)
        theirs = next((one.value for one in crl.extensions if isinstance(one.value, x509.AuthorityKeyIdentifier)), None)
    except ValueError as error:
        raise CrlIssuerMismatch(f"the issuer's certificate cannot be read: {error}") from error
    if usage is not None and not usage.crl_sign:
        raise CrlIssuerMismatch("the issuer's key may not sign lists")
    if ours is not None and theirs is not None and theirs.key_identifier not in (None, ours):
        raise CrlIssuerMismatch("the list names another key of a CA of the same name")


def _crl_signature_holds(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    key = issuer.public_key()
    try:
        public_key_of(key)  # refuses small and unknown keys
        return crl.is_signature_valid(key)  # type: ignore[arg-type]  # its kind was just checked
    except (KeyUnsupported, ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CrlForged(f"the list's signature cannot be judged: {error}") from error


def _crl_numbers(crl: x509.CertificateRevocationList) -> tuple[int, int | None]:
    """Return the list's number and, for a delta, the number of the list that it was made against."""
    number, base = None, None
    for extension in crl.extensions:
        value = extension.value
        if isinstance(value, x509.CRLNumber):
            number = value.crl_number
            if extension.critical:
                raise CrlMalformed("the list's number is critical, which RFC 5280 §5.2.3 forbids")
        elif isinstance(value, x509.DeltaCRLIndicator):
            base = value.crl_number
        elif isinstance(value, x509.IssuingDistributionPoint):
            _check_scope(value)
        elif extension.critical:
            raise CrlExtensionRefused(f"the critical extension {extension.oid.dotted_string} is unknown")
    if number is None:
        raise CrlMalformed("the list has no number")
    return number, base


def _check_scope(scope: x509.IssuingDistributionPoint) -> None:
    partial = (
        scope.only_contains_user_certs,
        scope.only_contains_ca_certs,
        scope.only_contains_attribute_certs,
        scope.indirect_crl,
        scope.only_some_reasons,
    )
    if any(partial):
        raise CrlExtensionRefused("the list covers a part of what its issuer issues, or others' certificates")


def _crl_entries(crl: x509.CertificateRevocationList) -> dict[int, tuple[datetime.datetime, str]]:
    revoked: dict[int, tuple[datetime.datetime, str]] = {}
    try:
        for entry in crl:
            reason = "unspecified"
            for extension in entry.extensions:
                if isinstance(extension.value, x509.CRLReason):
                    reason = extension.value.reason.value
                elif extension.critical:
                    raise CrlExtensionRefused(f"an entry's critical extension {extension.oid.dotted_string} is unknown")
            revoked[entry.serial_number] = (entry.revocation_date_utc, reason)
    except (ValueError, *UNREADABLE) as error:
        raise CrlMalformed(f"an entry cannot be read: {error}") from error
    return revoked


def _combine(
    changed: dict[int, tuple[datetime.datetime, str]],
    number: int,
    base_number: int,
    base: VerifiedCrl | None,
    issuer: x509.Name,
) -> dict[int, tuple[datetime.datetime, str]]:
    """Return a full list's entries after a delta (RFC 5280 §5.2.4)."""
    if base is None or base.issuer != issuer:
        raise CrlDeltaMismatch("a delta list needs its issuer's full list")
    if not base_number <= base.number <= number:
        raise CrlDeltaMismatch(f"the delta {number} was made against {base_number}, the list at hand is {base.number}")
    return {**base.revoked, **changed}


def _without_removed(entries: dict[int, tuple[datetime.datetime, str]]) -> dict[int, tuple[datetime.datetime, str]]:
    return {serial: entry for serial, entry in entries.items() if entry[1] != x509.ReasonFlags.remove_from_crl.value}


def _revoked(serial: int, when: datetime.datetime, reason: str) -> CertificateRevoked:
    return CertificateRevoked(
        f"certificate {serial:x} was revoked on {when:%Y-%m-%d %H:%M} UTC ({reason})",
        serial=f"{serial:x}",
        reason=reason,
    )
