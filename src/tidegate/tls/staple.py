"""OCSP stapling: a server shows its CA's fresh word on its certificate, a client demands and verifies it.

Source: RFC 6066 §8, RFC 8446 §4.4.2.1, RFC 6960. Whether an answer is good is ``pki.revocation``'s to say.
"""

from __future__ import annotations

import datetime
import enum
import threading
from collections.abc import Callable, Sequence

from cryptography import x509

from tidegate.base.clock import Clock, SystemClock
from tidegate.base.errors import TidegateError
from tidegate.pki.revocation import verify_ocsp
from tidegate.tls.errors import ChainMalformed, StapleMissing

_RETRY_S = 60.0  # after a refresh that failed: the responder is not asked again by every handshake


class OcspRule(enum.Enum):
    """What a client expects of a server."""

    REQUIRE = "require"
    IF_PRESENT = "if-present"  # asked for; a server that has none may go on


class Stapler:
    """A server's OCSP answer, renewed in time; one that has expired is never sent."""

    def __init__(self, fetch: Callable[[], bytes], chain: Sequence[bytes], *, clock: Clock | None = None) -> None:
        """Get the first answer at once.

        ``fetch`` returns an OCSP response (DER) for the first certificate of ``chain``, from its CA's responder or a
        file; ``chain`` has the issuer second. Raises what ``refresh`` raises.
        """
        try:
            self._certificate, self._issuer = (x509.load_der_x509_certificate(one) for one in chain[:2])
        except ValueError as error:
            raise ChainMalformed(f"a certificate and its issuer are needed: {error}") from error
        self._fetch = fetch
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._answer = b""
        self._due_s = self._expires_s = 0.0
        self.last_error: TidegateError | OSError | None = None
        self.refresh()

    def refresh(self) -> None:
        """Fetch a new answer and put it in place; raise what ``fetch`` and ``pki.revocation.verify_ocsp`` raise."""
        raw = self._fetch()
        now_s = self._clock.now_s()
        good = verify_ocsp(raw, certificate=self._certificate, issuer=self._issuer, now=_moment(now_s))
        expires_s = good.next_update.timestamp()
        self._answer, self._expires_s, self._due_s = raw, expires_s, (now_s + expires_s) / 2

    def current(self) -> bytes | None:
        """Return the answer to staple now, or None.

        At half of an answer's life one handshake fetches the next one, while others go on with what there is; an owner
        whose ``fetch`` is slow calls ``refresh`` from a thread of its own before that.
        """
        now_s = self._clock.now_s()
        if now_s >= self._due_s and self._lock.acquire(blocking=False):
            try:
                self.refresh()
            except (TidegateError, OSError) as error:  # what there is stays good meanwhile
                self.last_error, self._due_s = error, now_s + _RETRY_S
            finally:
                self._lock.release()
        return self._answer if now_s < self._expires_s else None


class StapleCheck:
    """A client's judgement of the server's answer."""

    def __init__(self, rule: OcspRule, at_s: float | None = None) -> None:
        """``at_s`` is the moment to judge by; None is the system's clock."""
        self._rule = rule
        self._at_s = at_s

    def judge(self, answer: bytes | None, chain: Sequence[bytes]) -> None:
        """Return if the handshake may go on.

        ``chain`` is the verified chain, the server's certificate first; one that says of itself that an answer comes
        with it (RFC 7633) is held to that under every rule. Raises ``tls.staple.missing`` and what
        ``pki.revocation.verify_ocsp`` raises. Only the server's own certificate is asked for, not those above it.
        """
        if answer is None:
            if self._rule is OcspRule.REQUIRE or (chain and _must_staple(chain[0])):
                raise StapleMissing("the server sent no OCSP answer")
            return
        if len(chain) < 2:
            raise StapleMissing("the server's certificate is an anchor itself: nobody above it can vouch for it")
        certificate, issuer = (x509.load_der_x509_certificate(one) for one in chain[:2])
        verify_ocsp(
            answer,
            certificate=certificate,
            issuer=issuer,
            now=_moment(SystemClock().now_s() if self._at_s is None else self._at_s),
        )


def _must_staple(der: bytes) -> bool:
    try:
        promised = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.TLSFeature).value
    except x509.ExtensionNotFound:
        return False
    return x509.TLSFeatureType.status_request in promised


def _moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC)
