"""Revocation lists for contexts: verified when they come, replaced while connections run, never missing silently.

A context with lists refuses every peer until the first list of the peer's issuer is there, and again when its
``nextUpdate`` has passed (by the system's clock, which OpenSSL reads).
"""

from __future__ import annotations

import datetime
import threading
from collections.abc import Sequence

from cryptography import x509

from tidegate.base.clock import Clock, SystemClock
from tidegate.base.errors import Rejected
from tidegate.pki.revocation import MAX_CRL_BYTES, VerifiedCrl, verify_crl
from tidegate.tls.errors import ChainMalformed, CrlMalformed, CrlRollback
from tidegate.tls.hooks import CrlStack
from tidegate.tls.selfcheck import require_platform

MAX_LISTS = 16  # issuers whose lists one context follows


class RevocationLists:
    """The lists in force; contexts that share this object see every update at their next handshake."""

    def __init__(self, issuers: Sequence[bytes], *, whole_chain: bool = False, clock: Clock | None = None) -> None:
        """``issuers``: certificates (DER) of the CAs whose lists are taken, each already trusted by the caller.

        ``whole_chain``: every certificate of a peer's chain has to be absent from its issuer's list, not only its own.
        """
        if not 0 < len(issuers) <= MAX_LISTS:
            raise ChainMalformed(f"lists of 1 to {MAX_LISTS} issuers, not {len(issuers)}")
        try:
            self._issuers = [x509.load_der_x509_certificate(one) for one in issuers]
        except ValueError as error:
            raise ChainMalformed(f"an issuer is no X.509 certificate in DER: {error}") from error
        self.whole_chain = whole_chain
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._lists: dict[int, tuple[VerifiedCrl, bytes]] = {}  # by the issuer's place: a new key keeps the name
        self._stack: CrlStack | None = None

    def update(self, raw: bytes) -> None:
        """Put a list (DER) in force in place of its issuer's former one.

        Raises ``tls.crl.malformed`` for a list of another issuer, ``tls.crl.rollback`` for one older than that in
        force, and what ``pki.revocation.verify_crl`` raises; the former list then stays.
        """
        place, verified = self._verify(raw)
        with self._lock:
            held = self._lists.get(place)
            if held is not None and verified.number < held[0].number:
                raise CrlRollback(
                    f"the list has number {verified.number}, the one in force {held[0].number}",
                    number=verified.number,
                    in_force=held[0].number,
                )
            updated = {**self._lists, place: (verified, raw)}
            self._stack = CrlStack(require_platform().library, [der for _, der in updated.values()])
            self._lists = updated

    def in_force(self) -> CrlStack | None:
        """Return the lists for a verification, or None while there are none."""
        return self._stack

    def _verify(self, raw: bytes) -> tuple[int, VerifiedCrl]:
        """Return the list and its issuer's place; a CA with a new key has the name of the old one."""
        if len(raw) > MAX_CRL_BYTES:
            raise CrlMalformed(f"a list of {len(raw)} bytes; {MAX_CRL_BYTES} are taken")
        try:
            name = x509.load_der_x509_crl(raw).issuer
        except ValueError as error:
            raise CrlMalformed(f"no revocation list in DER: {error}") from error
        now = datetime.datetime.fromtimestamp(self._clock.now_s(), tz=datetime.UTC)
        refusal: Rejected = CrlMalformed("the list is none of the named issuers'", issuer=name.rfc4514_string())
        for place, issuer in enumerate(self._issuers):
            if issuer.subject == name:
                try:
                    return place, verify_crl(raw, issuer=issuer, now=now)
                except Rejected as error:
                    refusal = error
        raise refusal
