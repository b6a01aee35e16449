"""A CA at work: issues, revokes, lists, answers. Every certificate is recorded before anybody gets it.

Touches: its store; the signer's provider. Time and randomness come from what it is given.
"""

from __future__ import annotations

import datetime
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.base.clock import Clock, Entropy
from tidegate.base.errors import Fault
from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import PublicKey, Signer
from tidegate.pki import crl, ocsp
from tidegate.pki.ca_store import Act, CaStore, CrlRecord, Issued, PendingAct, Reason
from tidegate.pki.errors import IssuerMismatch, ProfileRefused
from tidegate.pki.profiles import (
    SERIAL_BYTES,
    NameLimits,
    Order,
    Pointers,
    Profile,
    Subject,
    draw_serial,
    require_issuer,
    sign_certificate,
)
from tidegate.pki.requests import VerifiedRequest
from tidegate.pki.tokens import token_digest

MAX_REQUEST_ID = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CaReport:
    """One act of a CA, for its event log; nothing in it is secret. ``serial`` is hexadecimal, "" for a list."""

    act: Act
    serial: str
    profile: str
    subject: str
    expires_s: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A certificate that somebody with the right to decide has granted.

    ``request_id`` (1 to 64 bytes) makes it idempotent: asked again with the same content, the same certificate comes
    back. ``token`` is redeemed in the same transaction, for the subject's serial number.
    """

    profile: Profile
    subject: Subject
    public_key: PublicKey
    lifetime: datetime.timedelta | None = None
    limits: NameLimits = field(default_factory=NameLimits)
    request_id: bytes | None = None
    token: Secret | None = None

    def digest(self) -> bytes:
        """Return what the same request has again: profile, subject, names and key."""
        names = [repr(name) for name in self.subject.names]
        told = (self.profile.name, self.subject.common_name, self.subject.serial_number, *names)
        text = "\0".join(told).encode()
        return hashlib.sha256(len(text).to_bytes(4, "big") + text + self.public_key.encode()).digest()


class Authority:
    """A CA: ``chain`` is its certificate and those above it, ``signer`` its key, ``store`` its memory.

    One thread at a time writes; the store sees to that. ``report`` gets every act after it is durable, at least once:
    what a power cut or a ``Fault`` of ``report`` left untold is told at the next act, or by the next ``Authority``.
    """

    def __init__(
        self,
        chain: Sequence[x509.Certificate],
        signer: Signer,
        store: CaStore,
        *,
        clock: Clock,
        entropy: Entropy,
        report: Callable[[CaReport], None],
        pointers: Pointers | None = None,
        responder: ocsp.Responder | None = None,
    ) -> None:
        """Raise ``pki.issuer.mismatch`` if the first certificate is not a CA's with ``signer``'s key."""
        if not chain:
            raise IssuerMismatch("a CA has a certificate")
        require_issuer(chain[0], signer)
        self.chain = tuple(chain)
        self.store = store
        self._signer, self._clock, self._entropy, self._report = signer, clock, entropy, report
        self._pointers = pointers or Pointers()
        self._responder = responder
        self._telling = threading.Lock()
        self.tell()

    @property
    def certificate(self) -> x509.Certificate:
        """Return the CA's own certificate."""
        return self.chain[0]

    @property
    def organization(self) -> str:
        """Return the organization that stands in its certificates."""
        found = self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        return str(found[0].value) if found else ""

    def grant(
        self,
        profile: Profile,
        request: VerifiedRequest,
        *,
        request_id: bytes | None = None,
        token: Secret | None = None,
        lifetime: datetime.timedelta | None = None,
    ) -> Grant:
        """Return the grant of what ``request`` asks for, as far as ``profile`` lets it; who sent it is not checked."""
        subject = Subject(
            organization=self.organization,
            common_name=request.common_name,
            serial_number=request.serial_number,
            names=request.names,
        )
        return Grant(
            profile=profile,
            subject=subject,
            public_key=request.public_key,
            lifetime=lifetime,
            request_id=request_id,
            token=token,
        )

    def issue(self, grant: Grant) -> x509.Certificate:
        """Return the certificate of ``grant``, durably recorded with its request id before it is returned.

        Raises ``pki.profile.refused`` (also for a CA below one that may have none), ``pki.name.invalid``,
        ``pki.key.unsupported``, ``pki.request.conflict``, ``pki.token.*``; nothing is recorded then.
        """
        if grant.profile.is_ca and self._path_length() == 0:
            raise ProfileRefused(f"{grant.profile.name}: this CA may have no other below it")
        if grant.request_id is not None and not 1 <= len(grant.request_id) <= MAX_REQUEST_ID:
            raise ValueError(f"a request id has 1 to {MAX_REQUEST_ID} bytes")
        now_s = int(self._clock.now_s())
        issued, _ = self.store.issue_once(
            grant.request_id,
            grant.digest(),
            lambda: self._make(grant, now_s),
            token=token_digest(grant.token) if grant.token is not None else None,
            now_s=now_s,
            device=grant.subject.serial_number,
        )
        self.tell()
        return x509.load_der_x509_certificate(issued.der)

    def revoke(self, serial: int, reason: Reason) -> Issued:
        """Take a certificate back; harmless when repeated. Raise ``pki.serial.unknown``."""
        issued, _ = self.store.revoke(serial, reason, int(self._clock.now_s()))
        self.tell()
        return issued

    def crl(self) -> bytes:
        """Return a new full list (DER) of everything revoked that has not expired."""
        return self._list(crl.FULL_LIFETIME, None)

    def delta_crl(self) -> bytes:
        """Return a new list (DER) of what is revoked and not on the newest full one, which is made if there is none.

        What that list says counts, not when: a clock that was put back in between hides no revocation.
        """
        base = self.store.newest_crl(delta=False)
        if base is None:
            self.crl()
            base = self.store.newest_crl(delta=False)
        return self._list(crl.DELTA_LIFETIME, base)

    def answer_ocsp(self, question: bytes) -> bytes:
        """Return the answer (DER) to an OCSP question (DER); every input gets one.

        Raises ``pki.key.unsupported`` for a CA with an RSA key and no responder.
        """
        return ocsp.answer_question(question, self._answering(), self.store.find, crl.moment(self._clock.now_s()))

    def staple_for(self, certificate: x509.Certificate) -> bytes:
        """Return an OCSP answer about a certificate, for its owner to staple."""
        return ocsp.answer_for(certificate, self._answering(), self.store.find, crl.moment(self._clock.now_s()))

    def tell(self) -> None:
        """Report what was not reported yet; a ``Fault`` of the one who is told leaves it for later."""
        with self._telling:
            for pending in self.store.pending_acts():
                try:
                    self._report(_report_of(pending, self.certificate.subject.rfc4514_string()))
                except Fault:
                    return
                self.store.strike_out(pending)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _path_length(self) -> int | None:
        return self.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length

    def _answering(self) -> ocsp.Responder:
        return self._responder or ocsp.Responder(
            issuer=self.certificate, certificate=self.certificate, signer=self._signer
        )

    def _make(self, grant: Grant, now_s: int) -> Issued:
        order = Order(
            profile=grant.profile,
            subject=grant.subject,
            public_key=grant.public_key,
            now=crl.moment(now_s),
            serial=draw_serial(self._entropy.random_bytes(SERIAL_BYTES)),
            lifetime=grant.lifetime,
            limits=grant.limits,
            pointers=Pointers() if grant.profile.short_lived else self._pointers,
        )
        certificate = sign_certificate(order, self.certificate, self._signer)
        return Issued(
            serial=certificate.serial_number,
            profile=grant.profile.name,
            subject=certificate.subject.rfc4514_string(),
            device=grant.subject.serial_number,
            issued_s=now_s,
            expires_s=int(certificate.not_valid_after_utc.timestamp()),
            der=certificate.public_bytes(Encoding.DER),
        )

    def _list(self, lifetime: datetime.timedelta, base: CrlRecord | None) -> bytes:
        now_s, below = int(self._clock.now_s()), base.number if base else None
        listed = crl.serials_of(base.der) if base else frozenset()

        def make(number: int, revoked: list[Issued]) -> CrlRecord:
            plan = crl.CrlPlan(number=number, now=crl.moment(now_s), lifetime=lifetime, base=below)
            fresh = [one for one in revoked if one.serial not in listed]
            der = crl.encode_crl(plan, fresh, self.certificate, self._signer)
            return CrlRecord(number=number, made_s=now_s, base=below, der=der)

        record = self.store.add_crl(make, alive_s=now_s)
        self.tell()
        return record.der


def _report_of(pending: PendingAct, authority: str) -> CaReport:
    """Return an act in the words of an event log."""
    if pending.issued is not None:
        one = pending.issued
        reason = one.reason.label if pending.act is Act.REVOKED and one.reason is not None else ""
        return CaReport(
            act=pending.act,
            serial=f"{one.serial:x}",
            profile=one.profile,
            subject=one.subject,
            expires_s=one.expires_s,
            reason=reason,
        )
    made = pending.crl
    return CaReport(
        act=pending.act,
        serial="",
        profile="delta-crl" if made is not None and made.base is not None else "crl",
        subject=authority,
        expires_s=0,
        reason=f"number {made.number}" if made is not None else "",
    )
