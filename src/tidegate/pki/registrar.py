"""Who may get which certificate: the one place where a request for one is judged (RFC 7030's registration authority).

Touches: the CA's store, through the ``Authority``; the clock that it is given.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.base.clock import Clock
from tidegate.crypto.aead import Secret
from tidegate.pki.authority import Authority
from tidegate.pki.ca_store import Reason
from tidegate.pki.errors import (
    CertificateRevoked,
    EstBindingMismatch,
    EstIdentityMismatch,
    EstPending,
    EstRateExceeded,
    EstRenewalRefused,
    EstUnauthenticated,
    TokenUnknown,
    TokenWrongDevice,
)
from tidegate.pki.est import CsrAttributes
from tidegate.pki.est_server import Application
from tidegate.pki.path import PathRule, Purpose, verify_chain
from tidegate.pki.profiles import PROFILES, Profile
from tidegate.pki.rate import Rate, RateLimit
from tidegate.pki.requests import VerifiedRequest, verify_request
from tidegate.pki.revocation import VerifiedCrl
from tidegate.pki.tokens import token_digest

_MAX_IN_A_ROW = 64  # certificates that one key gets with one credential, each after the one before ran out
_APPROVAL_S = 600
_OUT_OF_SERVICE = (Reason.CESSATION_OF_OPERATION, Reason.PRIVILEGE_WITHDRAWN)  # of the device, not of one key of it

Approve = Callable[[str, VerifiedRequest], bool]
Lists = Callable[[], Sequence[VerifiedCrl]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What a registrar demands.

    ``idevid_anchors``: the makers' CAs (DER) whose IDevIDs may enrol. ``lists``: their revocation lists, asked for at
    each request. ``binding_required``: refuse requests that are not bound to their connection. ``approve``: a person's
    word for a device; until then it is told to wait. ``rate``: of certificates for one device.
    """

    profile: Profile = PROFILES["ldevid"]
    lifetime: datetime.timedelta | None = None
    idevid_anchors: tuple[bytes, ...] = ()
    lists: Lists = tuple
    binding_required: bool = False
    approve: Approve | None = None
    rate: Rate = field(default_factory=lambda: Rate(burst=20, per_minute=2))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Requester:
    """Who asks, proven by a certificate, or claimed with a token that is redeemed later. One of the two is set."""

    device: str
    certificate: x509.Certificate | None = None
    token: Secret | None = None

    def credential(self) -> bytes:
        """Return what tells this way of asking from every other."""
        if self.certificate is not None:
            return hashlib.sha256(self.certificate.public_bytes(Encoding.DER)).digest()
        return token_digest(self.token) if self.token is not None else b""


class CaRegistrar:
    """The registrar of one CA."""

    def __init__(
        self,
        authority: Authority,
        *,
        clock: Clock,
        conditions: Conditions | None = None,
        extra: Sequence[x509.Certificate] = (),
        previous: Sequence[x509.Certificate] = (),
    ) -> None:
        """``extra`` are certificates for ``cacerts`` besides the CA's chain: those of a rollover.

        ``previous`` are certificates of this CA's earlier keys and names: what they issued can still be renewed, if
        the store knows it.
        """
        self._authority, self._clock, self._extra = authority, clock, tuple(extra)
        self._conditions = conditions or Conditions()
        self._rate = RateLimit(self._conditions.rate)
        own = (authority.certificate, *previous)
        self._own = tuple(one.public_bytes(Encoding.DER) for one in own)
        self._issuers = {one.subject for one in own}

    def authorities(self) -> Sequence[x509.Certificate]:
        """Return the CA's chain and what a rollover adds to it."""
        return (*self._authority.chain, *self._extra)

    def wanted(self) -> CsrAttributes:
        """Return what requests should have."""
        return CsrAttributes(challenge_password=True, algorithms=("ecdsa-p256", "ecdsa-p384"))

    def enrol(self, application: Application) -> x509.Certificate:
        """Return the certificate for an application, recorded before it is returned.

        Duties, in this order:
        1. the request is well formed and proves possession of its key (``pki.request.*``, ``pki.key.not-allowed``);
        2. it is bound to this connection, or binds itself to none (``pki.est.binding``);
        3. who asks has a certificate that is valid and not revoked, or a token (``pki.path.*``,
           ``pki.certificate.revoked``, ``pki.est.unauthenticated``);
        4. the request is for who asks: an enrolment for the serial number alone (``pki.est.identity``), a renewal for
           exactly the names of this CA's certificate that is renewed (``pki.est.renewal``);
        5. the device was not taken out of service, unless it has a new token (``pki.certificate.revoked``), it has not
           asked too often (``pki.est.rate``), and a person approved where one has to;
        6. the same application gets the certificate that it got before; a token is redeemed in the same transaction
           (``pki.token.*``).
        """
        request = verify_request(application.request)  # 1
        self._require_binding(request, application.binding)  # 2
        requester = self._authenticate(application)  # 3
        if application.renew:  # 4
            self._require_renewal(request, requester)
        else:
            _require_enrolment(request, requester.device)
        self._require_in_service(requester)  # 5
        wait_s = self._rate.take(requester.device, self._clock.monotonic_s())
        if wait_s:
            raise EstRateExceeded(f"device {requester.device} asks too often", retry_after_s=wait_s)
        if self._conditions.approve is not None and not self._conditions.approve(requester.device, request):
            raise EstPending(f"device {requester.device} waits for approval", retry_after_s=_APPROVAL_S)
        return self._issue(request, requester)  # 6

    def _require_binding(self, request: VerifiedRequest, binding: bytes | None) -> None:
        """RFC 7030 §3.5: a request that was taken from another connection is not this device's."""
        given = request.challenge_password
        if given is None:
            if self._conditions.binding_required:
                raise EstBindingMismatch("the request is not bound to its connection")
            return
        if binding is None or not hmac.compare_digest(given, base64.b64encode(binding)):
            raise EstBindingMismatch("the request is bound to another connection")

    def _authenticate(self, application: Application) -> _Requester:
        """Return who asks. A certificate counts before a token; a token cannot renew."""
        if application.chain:
            certificate = self._require_certificate(application.chain)
            found = certificate.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
            if len(found) != 1:
                raise EstIdentityMismatch("the certificate names no device: it has not one serial number")
            return _Requester(device=str(found[0].value), certificate=certificate)
        if application.token is None or application.renew:
            raise EstUnauthenticated("there is neither a certificate nor a token, or a token where none is taken")
        device, token = application.token
        known = self._authority.store.token(token_digest(token))
        # redeeming it comes last and says the same; until then nobody shall spend another device's allowance
        if known is None:
            raise TokenUnknown("no such enrolment token was issued")
        if known.device != device:
            raise TokenWrongDevice(f"the token is for {known.device}, not for {device}", device=known.device)
        return _Requester(device=device, token=token)

    def _require_certificate(self, chain: tuple[bytes, ...]) -> x509.Certificate:
        """Return the peer's certificate, judged anew: TLS knows neither our profiles nor what we revoked."""
        now = datetime.datetime.fromtimestamp(self._clock.now_s(), tz=datetime.UTC)
        anchors = (*self._conditions.idevid_anchors, *self._own)
        verified = verify_chain(chain, PathRule(anchors=anchors, now=now, purpose=Purpose.CLIENT))
        certificate = verified.certificate
        if certificate.issuer in self._issuers:
            known = self._authority.store.find(certificate.serial_number)
            if known is None or known.der != chain[0]:
                raise CertificateRevoked("this CA has no record of having issued that certificate")
            if known.revoked_s is not None:
                raise CertificateRevoked(f"the certificate of {known.device} was revoked", device=known.device)
            if known.profile != self._conditions.profile.name:
                raise EstIdentityMismatch(f"the certificate is of profile {known.profile}, not a device's")
            return certificate  # the store knows more than any list, and a maker's stale one stops no renewal here
        for one in self._conditions.lists():
            for judged in verified.certificates[:-1]:  # the makers' CAs between among them; an anchor is not revoked
                if one.issuer == judged.issuer:
                    one.require_good(judged)
        return certificate

    def _require_renewal(self, request: VerifiedRequest, requester: _Requester) -> None:
        """RFC 7030 §4.2.2: subject and alternative names are those of the certificate that is renewed."""
        old = requester.certificate
        if old is None or old.issuer not in self._issuers:
            raise EstRenewalRefused("only a certificate of this CA can be renewed")
        try:
            names = set(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            names = set()
        kept = {(one.oid, one.value) for one in old.subject}
        asked = {(one.oid, one.value) for one in request.subject}
        added = {one for one in kept - asked if one[0] != NameOID.ORGANIZATION_NAME}  # the CA's own addition
        if asked - kept or added or set(request.names) != names:
            raise EstIdentityMismatch(f"{requester.device} asks for other names than it has", device=requester.device)

    def _require_in_service(self, requester: _Requester) -> None:
        """The owner cannot take a certificate of birth back, but what a device got last here says whether it is his."""
        if requester.certificate is None:
            return
        newest = self._authority.store.newest(requester.device, self._conditions.profile.name)
        if newest is not None and newest.reason in _OUT_OF_SERVICE:
            raise CertificateRevoked(f"{requester.device} was taken out of service", device=requester.device)

    def _issue(self, request: VerifiedRequest, requester: _Requester) -> x509.Certificate:
        """Return the certificate; one that ran out since is followed by another, one that was revoked by none."""
        for number in range(_MAX_IN_A_ROW):
            grant = self._authority.grant(
                self._conditions.profile,
                request,
                request_id=_request_id(request, requester, number),
                token=requester.token,
                lifetime=self._conditions.lifetime,
            )
            certificate = self._authority.issue(grant)
            if certificate.not_valid_after_utc.timestamp() < self._clock.now_s():
                continue
            known = self._authority.store.find(certificate.serial_number)
            if known is not None and known.revoked_s is not None:
                raise CertificateRevoked(f"what {known.device} asks for was revoked", device=known.device)
            return certificate
        raise EstRenewalRefused("one key had too many certificates: make a new one")


def _require_enrolment(request: VerifiedRequest, device: str) -> None:
    """A device asks for its serial number and nothing else; a common name may repeat it."""
    if request.serial_number != device or request.common_name not in ("", device):
        asked = request.serial_number or request.common_name
        raise EstIdentityMismatch(f"{device} asks for a certificate of {asked!r}", device=device)
    if request.names:
        raise EstIdentityMismatch(f"{device} asks for names that nobody gave it", device=device)


def _request_id(request: VerifiedRequest, requester: _Requester, number: int) -> bytes:
    """Return what is the same whenever this device asks for this again with the same credential.

    The signature and the channel binding are left out: who asks again on a new connection has to sign anew.
    """
    parts = (
        requester.device.encode(),
        requester.credential(),
        request.public_key.encode(),
        request.subject.public_bytes(),
        *sorted(repr(name).encode() for name in request.names),
        number.to_bytes(4, "big"),
    )
    digest = hashlib.sha256(b"tidegate est request\0")
    for part in parts:
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()
