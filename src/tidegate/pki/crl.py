"""Revocation lists as a CA makes them: full, and delta on top of a full one. Pure.

Source: RFC 5280 §5. ``revocation.py`` judges them.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.crypto.signing import Signer
from tidegate.pki.ca_store import Issued, Reason
from tidegate.pki.keyadapter import hash_for, padding_for, private_key_for
from tidegate.pki.profiles import authority_key, require_issuer

FULL_LIFETIME = datetime.timedelta(days=7)
DELTA_LIFETIME = datetime.timedelta(days=1)
_FLAGS = {
    Reason.KEY_COMPROMISE: x509.ReasonFlags.key_compromise,
    Reason.CA_COMPROMISE: x509.ReasonFlags.ca_compromise,
    Reason.AFFILIATION_CHANGED: x509.ReasonFlags.affiliation_changed,
    Reason.SUPERSEDED: x509.ReasonFlags.superseded,
    Reason.CESSATION_OF_OPERATION: x509.ReasonFlags.cessation_of_operation,
    Reason.PRIVILEGE_WITHDRAWN: x509.ReasonFlags.privilege_withdrawn,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlPlan:
    """Which list to make: its number, when, for how long, and for a delta the number of the full list below it."""

    number: int
    now: datetime.datetime
    lifetime: datetime.timedelta
    base: int | None = None


def encode_crl(plan: CrlPlan, revoked: Iterable[Issued], issuer: x509.Certificate, signer: Signer) -> bytes:
    """Return the list in DER; raise ``pki.issuer.mismatch`` if ``signer`` is not the key of ``issuer``."""
    require_issuer(issuer, signer)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(plan.now)
        .next_update(plan.now + plan.lifetime)
        .add_extension(authority_key(issuer, signer), critical=False)
        .add_extension(x509.CRLNumber(plan.number), critical=False)
    )
    if plan.base is not None:
        builder = builder.add_extension(x509.DeltaCRLIndicator(plan.base), critical=True)
    for one in revoked:
        builder = builder.add_revoked_certificate(_entry(one))
    public = signer.public_key
    return builder.sign(private_key_for(signer), hash_for(public), rsa_padding=padding_for(public)).public_bytes(
        Encoding.DER
    )


def serials_of(der: bytes) -> frozenset[int]:
    """Return the serial numbers on a list that this CA made."""
    return frozenset(entry.serial_number for entry in x509.load_der_x509_crl(der))


def flag_of(reason: Reason | None) -> x509.ReasonFlags | None:
    """Return the library's word for a reason; an unspecified one is left out (RFC 5280 §5.3.1)."""
    return _FLAGS.get(reason) if reason is not None else None


def moment(seconds: float) -> datetime.datetime:
    """Return a time in whole seconds."""
    return datetime.datetime.fromtimestamp(int(seconds), tz=datetime.UTC)


def _entry(one: Issued) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(one.serial).revocation_date(moment(one.revoked_s or 0))
    flag = flag_of(one.reason)
    if flag is not None:
        builder = builder.add_extension(x509.CRLReason(flag), critical=False)
    return builder.build()
