"""OCSP answers as a CA gives them (RFC 6960), with the nonce of the question (RFC 8954). Pure.

``revocation.py`` judges answers.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from tidegate.crypto.signing import SignatureAlgorithm, Signer
from tidegate.pki.ca_store import Issued
from tidegate.pki.crl import flag_of, moment
from tidegate.pki.errors import KeyUnsupported
from tidegate.pki.keyadapter import UNREADABLE, hash_for, private_key_for

MAX_REQUEST_BYTES = 4096  # a question about one certificate has 120
MAX_NONCE_BYTES = 32  # RFC 8954 §2.1
LIFETIME = datetime.timedelta(hours=12)
_HASHES: dict[str, hashes.HashAlgorithm] = {"sha1": hashes.SHA1(), "sha256": hashes.SHA256()}  # noqa: S303  # SHA-1 names a certificate here (RFC 5019), nothing rests on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Responder:
    """Who answers: the CA itself, or a responder that it named (profile ``ocsp-responder``); not with an RSA key."""

    issuer: x509.Certificate
    certificate: x509.Certificate
    signer: Signer

    def __post_init__(self) -> None:
        if self.signer.public_key.algorithm is SignatureAlgorithm.RSA_PSS:
            raise KeyUnsupported("OCSP answers are signed with ECDSA or Ed25519: name a responder with such a key")


def answer_question(
    raw: bytes, responder: Responder, find: Callable[[int], Issued | None], now: datetime.datetime
) -> bytes:
    """Return the answer (DER) to a question (DER) about one certificate; every input gets one.

    1. What is no question is answered ``malformedRequest``. 2. A certificate of another CA: ``unauthorized``. 3. One
    that this CA never issued: unknown, which no verifier takes for good. 4. Else good or revoked, for 12 hours, with
    the question's nonce.
    """
    try:
        if len(raw) > MAX_REQUEST_BYTES:
            raise ValueError
        question = ocsp.load_der_ocsp_request(raw)  # 1
        name = question.hash_algorithm.name
        nonce = _nonce(question)
        serial = question.serial_number
        if serial <= 0 or serial.bit_length() > 160:
            raise ValueError
    except (ValueError, UnsupportedAlgorithm, NotImplementedError, *UNREADABLE):
        return _unsuccessful(ocsp.OCSPResponseStatus.MALFORMED_REQUEST)
    if name not in _HASHES or (question.issuer_name_hash, question.issuer_key_hash) != _hashes(responder.issuer, name):
        return _unsuccessful(ocsp.OCSPResponseStatus.UNAUTHORIZED)  # 2
    found = find(serial)  # 3
    status = ocsp.OCSPCertStatus.UNKNOWN
    if found is not None:  # 4
        status = ocsp.OCSPCertStatus.GOOD if found.revoked_s is None else ocsp.OCSPCertStatus.REVOKED
    revoked_at = moment(found.revoked_s) if found is not None and found.revoked_s is not None else None
    builder = ocsp.OCSPResponseBuilder().add_response_by_hash(
        issuer_name_hash=question.issuer_name_hash,
        issuer_key_hash=question.issuer_key_hash,
        serial_number=serial,
        algorithm=_HASHES[name],
        cert_status=status,
        this_update=now,
        next_update=now + LIFETIME,
        revocation_time=revoked_at,
        revocation_reason=flag_of(found.reason) if found is not None and revoked_at is not None else None,
    )
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return _signed(builder, responder)


def answer_for(
    certificate: x509.Certificate, responder: Responder, find: Callable[[int], Issued | None], now: datetime.datetime
) -> bytes:
    """Return the answer about ``certificate`` without having been asked: what its owner staples."""
    question = ocsp.OCSPRequestBuilder().add_certificate(certificate, responder.issuer, hashes.SHA256()).build()
    return answer_question(question.public_bytes(Encoding.DER), responder, find, now)


def _signed(builder: ocsp.OCSPResponseBuilder, responder: Responder) -> bytes:
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder.certificate)
    if responder.certificate != responder.issuer:
        builder = builder.certificates([responder.certificate])
    made = builder.sign(private_key_for(responder.signer), hash_for(responder.signer.public_key))
    return made.public_bytes(Encoding.DER)


def _unsuccessful(status: ocsp.OCSPResponseStatus) -> bytes:
    return ocsp.OCSPResponseBuilder.build_unsuccessful(status).public_bytes(Encoding.DER)


def _nonce(question: ocsp.OCSPRequest) -> bytes | None:
    try:
        nonce = question.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        return None
    if not 1 <= len(nonce) <= MAX_NONCE_BYTES:
        raise ValueError
    return nonce


@functools.lru_cache(maxsize=16)
def _hashes(issuer: x509.Certificate, name: str) -> tuple[bytes, bytes]:
    """Return how a question names this issuer: the hashes of its name and of its key."""
    asked = ocsp.OCSPRequestBuilder().add_certificate(issuer, issuer, _HASHES[name]).build()
    return hashlib.new(name, issuer.subject.public_bytes()).digest(), asked.issuer_key_hash
