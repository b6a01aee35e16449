"""Factory CA and IDevID certificates, and certificates as PEM files. Pure: time and serial come in as parameters."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.crypto.signing import PublicKey, Signer
from tidegate.pki.errors import CertificateMalformed
from tidegate.pki.profiles import PROFILES, Order, Subject, check_name, sign_certificate

MAX_PEM_BYTES = 65_536  # a chain of eight with many extensions has a fifth of it
MAX_CHAIN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuance:
    """What every certificate needs from outside: from when, and a serial number from the CSPRNG (20 bytes at most)."""

    not_before: datetime.datetime
    serial: int


def issue_factory_ca(signer: Signer, *, organization: str, issuance: Issuance) -> x509.Certificate:
    """Return a self-signed CA certificate that may issue device certificates and nothing below them.

    Raises ``pki.key.unsupported`` and ``pki.name.invalid``.
    """
    common_name = f"{check_name(organization)} factory CA"
    order = Order(
        profile=PROFILES["factory-ca"],
        subject=Subject(organization=organization, common_name=common_name),
        public_key=signer.public_key,
        now=issuance.not_before,
        serial=issuance.serial,
    )
    return sign_certificate(order, None, signer)


def issue_idevid(
    ca: x509.Certificate, signer: Signer, device_key: PublicKey, *, serial_number: str, issuance: Issuance
) -> x509.Certificate:
    """Return the initial identity of a device: its key and serial number, vouched for by the factory CA, for life.

    Raises ``pki.issuer.mismatch`` unless ``ca`` is a CA certificate of ``signer``'s key, ``pki.key.unsupported`` and
    ``pki.name.invalid``. Whether the CA certificate itself is to be trusted is not checked.
    """
    organizations = ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    order = Order(
        profile=PROFILES["idevid"],
        subject=Subject(
            organization=str(organizations[0].value) if organizations else "", serial_number=check_name(serial_number)
        ),
        public_key=device_key,
        now=issuance.not_before,
        serial=issuance.serial,
    )
    return sign_certificate(order, ca, signer)


def encode_pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates in PEM, in the order given."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def parse_pem(raw: bytes) -> x509.Certificate:
    """Return the one certificate in ``raw``, unverified, or raise ``pki.certificate.malformed``."""
    chain = parse_pem_chain(raw)
    if len(chain) != 1:
        raise CertificateMalformed(f"{len(chain)} certificates where one belongs")
    return chain[0]


def parse_pem_chain(raw: bytes) -> Sequence[x509.Certificate]:
    """Return the one to eight certificates in ``raw``, unverified, or raise ``pki.certificate.malformed``."""
    if len(raw) > MAX_PEM_BYTES:
        raise CertificateMalformed(f"more than {MAX_PEM_BYTES} bytes of certificates")
    try:
        chain = x509.load_pem_x509_certificates(raw)
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateMalformed(f"no certificate in PEM: {error}") from error
    if len(chain) > MAX_CHAIN:
        raise CertificateMalformed(f"{len(chain)} certificates; a chain has at most {MAX_CHAIN}")
    return chain
