"""The device's half of EST: asks for certificates over a connection that it is given, believes nothing unverified.

Touches: the connection passed in, nothing else. The certificate that comes back has to be for the key and the names
that were asked for, and lead to an anchor that was known before.
"""

from __future__ import annotations

import base64
import datetime
import email.utils
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from tidegate.crypto.aead import Secret
from tidegate.pki import est
from tidegate.pki.errors import (
    EstAnswerWrong,
    EstBodyMalformed,
    EstPending,
    EstRateExceeded,
    EstRefused,
    EstUnavailable,
)
from tidegate.pki.est import CsrAttributes, Operation
from tidegate.pki.keyadapter import UNREADABLE

_MAX_WORD = 64  # of a server's refusal that is worth showing


class Answer(Protocol):
    """An HTTP answer; header names in lower case."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


class Transport(Protocol):
    """A connection: ``tidegate.tls.https.HttpsClient``, or another one like it."""

    def binding(self) -> bytes | None:
        """Return the channel binding of the connection, made first if need be."""
        ...

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"", limit_bytes: int
    ) -> Answer:
        """Return the answer to one request."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A one-time enrolment token and the serial number of the device that it is for."""

    device: str
    secret: Secret

    def header(self) -> str:
        """Return the Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(self.device.encode() + b":" + bytes(self.secret.view())).decode()


class EstClient:
    """One EST server below ``label``. Every method raises ``pki.est.*`` and what the connection raises."""

    def __init__(self, transport: Transport, *, label: str = "") -> None:
        self._transport, self._label = transport, label
        self.server_time_s: float | None = None  # of the last answer, as the verified server dates it

    def authorities(self) -> tuple[x509.Certificate, ...]:
        """Return the CA's certificates, unverified: they extend chains and never become anchors by themselves."""
        return self._certificates(self._ask(Operation.CACERTS, {}, b""))

    def wanted(self) -> CsrAttributes:
        """Return what the server wants in requests; nothing special where it does not say (204 or 404)."""
        answer = self._ask(Operation.CSR_ATTRS, {}, b"", also=(204, 404))
        if answer.status != 200:
            return CsrAttributes(challenge_password=False, algorithms=())
        est.check_content_type(answer.headers.get("content-type"), est.CSR_ATTRIBUTES)
        return est.parse_csr_attributes(est.decode_body(answer.body, limit_bytes=est.MAX_REQUEST_BYTES))

    def enrol(self, request: bytes, *, renew: bool, token: Token | None = None) -> x509.Certificate:
        """Return the certificate that the server issued for a PKCS#10 request (DER), unverified.

        Raises ``pki.est.pending`` (its field ``retry_after_s`` says when to ask again, with the same request),
        ``pki.est.refused``, ``pki.est.rate``, ``pki.est.unavailable``, ``pki.est.answer``.
        """
        headers = {"Content-Type": est.PKCS10, "Content-Transfer-Encoding": "base64"}
        if token is not None:
            headers["Authorization"] = token.header()
        operation = Operation.SIMPLE_REENROLL if renew else Operation.SIMPLE_ENROLL
        found = self._certificates(self._ask(operation, headers, est.encode_body(request)))
        if len(found) != 1:
            raise EstAnswerWrong(f"{len(found)} certificates came back for one request", count=len(found))
        return found[0]

    def binding(self) -> bytes | None:
        """Return the channel binding in the form that a challenge password has (RFC 7030 §3.5)."""
        binding = self._transport.binding()
        return base64.b64encode(binding) if binding else None

    def _ask(
        self, operation: Operation, headers: Mapping[str, str], body: bytes, *, also: Sequence[int] = ()
    ) -> Answer:
        answer = self._transport.request(
            operation.method,
            est.encode_path(operation, self._label),
            headers={"Accept": "*/*", **headers},
            body=body,
            limit_bytes=est.MAX_ANSWER_BYTES,
        )
        self.server_time_s = _date(answer.headers.get("date"))
        if answer.status != 200 and answer.status not in also:
            _refuse(answer)
        return answer

    def _certificates(self, answer: Answer) -> tuple[x509.Certificate, ...]:
        est.check_content_type(answer.headers.get("content-type"), est.CERTS_ONLY)
        raw = est.parse_certificates(est.decode_body(answer.body, limit_bytes=est.MAX_ANSWER_BYTES))
        try:
            found = tuple(x509.load_der_x509_certificate(one) for one in raw)
            _ = [(one.subject, one.issuer) for one in found]  # the library parses names late
        except (ValueError, *UNREADABLE) as error:
            raise EstBodyMalformed("the CMS message carries something else than X.509 certificates") from error
        return found


def _refuse(answer: Answer) -> NoReturn:
    """Raise what a status other than 200 means to the one who asked."""
    word = answer.body[:_MAX_WORD].decode("ascii", "replace").strip()
    word = word if word.isprintable() else ""
    told = f"the server answers {answer.status}" + (f" ({word})" if word else "")
    after = answer.headers.get("retry-after", "")
    retry_after_s = int(after) if after.isdecimal() and len(after) < 10 else 0
    if answer.status == 202:
        raise EstPending("the request waits for approval", retry_after_s=retry_after_s)
    if answer.status == 429:
        raise EstRateExceeded(told, retry_after_s=retry_after_s)
    if 400 <= answer.status < 500 or answer.status == 501:
        raise EstRefused(told, status=answer.status)
    raise EstUnavailable(told, status=answer.status, retry_after_s=retry_after_s)


def _date(header: str | None) -> float | None:
    """Return the seconds that a Date header stands for, None where it cannot be read."""
    try:
        moment = email.utils.parsedate_to_datetime(header or "")
    except (TypeError, ValueError):
        return None
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


def require_answer(certificate: x509.Certificate, request: x509.CertificateSigningRequest) -> None:
    """Return if ``certificate`` is for the key of ``request`` and names nobody else; raise ``pki.est.answer``.

    Every attribute of the request's subject has to be there; what a CA adds (its organization) is its own affair.
    """
    try:
        key, given = certificate.public_key(), {(one.oid, one.value) for one in certificate.subject}
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EstAnswerWrong("the certificate cannot be read") from error
    if key != request.public_key():
        raise EstAnswerWrong("the certificate is for another key")
    asked = {(one.oid, one.value) for one in request.subject}
    if not asked <= given:
        raise EstAnswerWrong("the certificate is for another name")
