"""One enrolment over one connection: what a device asks for, and what it demands of the answer.

Touches: the connection inside the ``EstClient`` that it is given; the clock that it is given.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.base.clock import Clock
from tidegate.crypto.signing import Signer
from tidegate.pki.errors import IdentityMissing
from tidegate.pki.est import order_chain
from tidegate.pki.est_client import EstClient, Token, require_answer
from tidegate.pki.identity_flow import Issued
from tidegate.pki.path import PathRule, Purpose, verify_chain
from tidegate.pki.requests import Wish, encode_request


class EstEnrolment:
    """An ``EnrolmentPeer``: asks with the certificate ``chain`` that the connection was made with, or with a token.

    ``anchors`` are what certificates from here have to lead to.
    """

    def __init__(
        self, client: EstClient, *, chain: Sequence[bytes], anchors: Sequence[bytes], token: Token | None, clock: Clock
    ) -> None:
        self._client, self._anchors, self._token, self._clock = client, tuple(anchors), token, clock
        self._own = x509.load_der_x509_certificate(chain[0]) if chain else None

    def enrol(self, signer: Signer, *, renew: bool) -> Issued:
        """Return a certificate for ``signer``'s key, verified.

        1. The request names this device and is bound to the connection. 2. The answer is for that key and name. 3. It
        leads to an anchor. Raises ``pki.est.*``, ``pki.path.*`` and what the connection raises.
        """
        binding = self._client.binding() if self._client.wanted().challenge_password else None
        request = encode_request(signer, self._wish(renew=renew), challenge_password=binding)  # 1
        certificate = self._client.enrol(request, renew=renew, token=self._token)
        require_answer(certificate, x509.load_der_x509_csr(request))  # 2
        return self._verified(certificate)  # 3

    def prove(self) -> float:
        """Ask for something over a connection that our certificate opened; return the server's time."""
        self._client.authorities()
        return self._client.server_time_s or 0.0

    def _wish(self, *, renew: bool) -> Wish:
        if self._own is None:
            if self._token is None:
                raise IdentityMissing("there is neither a certificate nor a token to enrol with")
            return Wish(serial_number=self._token.device)
        serial = _one(self._own.subject, NameOID.SERIAL_NUMBER)
        if not renew:
            return Wish(serial_number=serial)
        names = self._own.extensions
        try:
            sans = tuple(names.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            sans = ()
        return Wish(common_name=_one(self._own.subject, NameOID.COMMON_NAME), serial_number=serial, names=sans)

    def _verified(self, certificate: x509.Certificate) -> Issued:
        chain = order_chain(certificate, self._client.authorities())
        raw = tuple(one.public_bytes(Encoding.DER) for one in chain)
        # a device without a clock believes the server's, which TLS has verified
        now_s = max(self._clock.now_s(), self._client.server_time_s or 0.0)
        now = datetime.datetime.fromtimestamp(now_s, tz=datetime.UTC)
        verify_chain(raw, PathRule(anchors=self._anchors, now=now, purpose=Purpose.CLIENT))
        return Issued(
            chain=raw,
            not_before_s=int(certificate.not_valid_before_utc.timestamp()),
            not_after_s=int(certificate.not_valid_after_utc.timestamp()),
        )


def _one(subject: x509.Name, kind: x509.ObjectIdentifier) -> str:
    found = subject.get_attributes_for_oid(kind)
    return str(found[0].value) if len(found) == 1 else ""
