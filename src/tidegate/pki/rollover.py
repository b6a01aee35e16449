"""From one trust anchor to the next: the new root and the two cross-certificates that lead over. Pure.

Source: RFC 4210 §4.4. The new root keeps the old one's name; its key is another. NewWithOld (the new key, signed with
the old one) lets a device that holds the old root take the new one; OldWithNew (the old key, signed with the new one)
lets a device that holds the new root go on with what was issued below the old one.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.base.errors import Rejected
from tidegate.crypto.signing import PublicKey, Signer
from tidegate.pki.errors import KeyUnsupported, RolloverRefused
from tidegate.pki.keyadapter import public_key_of
from tidegate.pki.path import MAX_ANCHORS, SIGNATURES, load_certificate
from tidegate.pki.profiles import PROFILES, Order, Subject, require_issuer, sign_certificate

_PROOF = object()
_KNOWN = (x509.BasicConstraints, x509.KeyUsage, x509.NameConstraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollover:
    """What a maker publishes when a root is replaced."""

    new_root: x509.Certificate
    new_with_old: x509.Certificate
    old_with_new: x509.Certificate


@dataclass(frozen=True, slots=True)
class VerifiedAnchor:
    """A certificate that may become a trust anchor, and the anchor that vouches for it; the verifiers here make one."""

    certificate: x509.Certificate
    vouched_by: x509.Certificate
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedAnchor comes from this module's verifiers alone")

    def encode(self) -> bytes:
        """Return the new anchor in DER."""
        return self.certificate.public_bytes(Encoding.DER)


def make_rollover(
    old_root: x509.Certificate,
    old_signer: Signer,
    new_signer: Signer,
    *,
    now: datetime.datetime,
    serials: Sequence[int],
) -> Rollover:
    """Return a new root of the old one's name for ``new_signer``'s key, and both cross-certificates.

    ``serials`` are three numbers from ``draw_serial``. NewWithOld lives as long as the old root, OldWithNew as long as
    the shorter of both. Raises ``pki.issuer.mismatch``, ``pki.rollover.refused`` for a root that is none of ours, whose
    name could not be kept, or for a key that is not a new one.
    """
    require_issuer(old_root, old_signer)
    if old_root.subject != old_root.issuer or old_signer.public_key == new_signer.public_key:
        raise RolloverRefused("a rollover goes from a self-signed root to another key")
    new_root = sign_certificate(_order(old_root, new_signer.public_key, now, serials[0]), None, new_signer)
    ends = min(old_root.not_valid_after_utc, new_root.not_valid_after_utc)
    left = ends - now.replace(microsecond=0)
    if new_root.subject != old_root.subject or left <= datetime.timedelta():
        raise RolloverRefused("the old root has another kind of name than ours, or has expired: nothing leads over")
    return Rollover(
        new_root=new_root,
        new_with_old=sign_certificate(
            _order(old_root, new_signer.public_key, now, serials[1], left), old_root, old_signer
        ),
        old_with_new=sign_certificate(
            _order(old_root, old_signer.public_key, now, serials[2], left), new_root, new_signer
        ),
    )


def verify_new_root(
    new_root: bytes, new_with_old: bytes, *, anchors: Sequence[bytes], now: datetime.datetime
) -> VerifiedAnchor:
    """Return the new root as an anchor, if one of ``anchors`` vouches for it; else raise ``pki.rollover.refused``.

    Duties, in this order:
    1. both are CA certificates in DER of at most 16 KiB, in date, with an allowed key, no unknown critical extension;
    2. NewWithOld is signed by an anchor that is held and in date, and bears that anchor's own name: an issuing CA,
       which has another, never becomes an anchor;
    3. the new root is self-signed and has that name and NewWithOld's key.

    All in DER; ``now`` is aware. Not checked: whether the old anchor was given up as compromised; who holds a thief's
    key cannot be led over by it (docs/ca.md).
    """
    cross, root = _load_authority(new_with_old, now), _load_authority(new_root, now)  # 1
    anchor = _anchor_of(cross, anchors, now)  # 2
    if root.subject != cross.subject or root.public_key() != cross.public_key() or not _issued(root, root):  # 3
        raise RolloverRefused("the new root is not the one that the old root vouches for")
    return VerifiedAnchor(root, anchor, _PROOF)


def verify_old_key(old_with_new: bytes, *, anchors: Sequence[bytes], now: datetime.datetime) -> VerifiedAnchor:
    """Return OldWithNew as an anchor for what was issued below the old root; else raise ``pki.rollover.refused``.

    Duties 1 and 2 of ``verify_new_root``, with OldWithNew in NewWithOld's place.
    """
    cross = _load_authority(old_with_new, now)
    return VerifiedAnchor(cross, _anchor_of(cross, anchors, now), _PROOF)


def _order(
    root: x509.Certificate,
    key: PublicKey,
    now: datetime.datetime,
    serial: int,
    lifetime: datetime.timedelta | None = None,
) -> Order:
    subject = Subject(
        organization=_text(root, NameOID.ORGANIZATION_NAME),
        common_name=_text(root, NameOID.COMMON_NAME),
        serial_number=_text(root, NameOID.SERIAL_NUMBER),
    )
    profile = PROFILES["root-ca"]
    return Order(profile=profile, subject=subject, public_key=key, now=now, serial=serial, lifetime=lifetime)


def _text(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> str:
    found = certificate.subject.get_attributes_for_oid(kind)
    return str(found[0].value) if len(found) == 1 else ""


def _load_authority(raw: bytes, now: datetime.datetime) -> x509.Certificate:
    try:
        certificate = load_certificate(raw)
        extensions = certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        public_key_of(certificate.public_key())
    except (ValueError, UnsupportedAlgorithm, KeyUnsupported, Rejected, x509.ExtensionNotFound) as error:
        raise RolloverRefused(f"no CA certificate that is allowed: {error}") from error
    if not basic.ca or not usage.key_cert_sign or certificate.signature_algorithm_oid not in SIGNATURES:
        raise RolloverRefused("the certificate is no CA's, or signed in a way that is not allowed")
    if any(one.critical and not isinstance(one.value, _KNOWN) for one in extensions):
        raise RolloverRefused("the certificate has an unknown critical extension")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise RolloverRefused(f"the certificate is out of date; now it is {now}")
    return certificate


def _anchor_of(cross: x509.Certificate, anchors: Sequence[bytes], now: datetime.datetime) -> x509.Certificate:
    if not 1 <= len(anchors) <= MAX_ANCHORS:
        raise RolloverRefused(f"1 to {MAX_ANCHORS} anchors are held, not {len(anchors)}")
    for raw in anchors:
        anchor = _load_authority(raw, now)
        if cross.subject == anchor.subject and cross.public_key() != anchor.public_key() and _issued(cross, anchor):
            return anchor
    raise RolloverRefused("no anchor that is held vouches for the certificate")


def _issued(below: x509.Certificate, above: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(above)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True
