"""Factory CA and IDevID certificates, signed inside a ``KeyStore``. Pure: time and serial come in as parameters.

Source: RFC 5280, IEEE 802.1AR-2018 §8 (an IDevID has no well-defined expiry: 99991231235959Z, RFC 5280 §4.1.2.5).
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.x509.oid import NameOID

from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer, curve_of
from tidegate.pki.errors import CertificateMalformed, IssuerMismatch, KeyUnsupported, NameInvalid

MAX_PEM_BYTES = 65_536  # a certificate with ML-DSA keys and many extensions has a tenth of it
_MAX_NAME = 64  # RFC 5280, appendix A: ub-common-name, ub-serial-number
_NO_EXPIRY = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
_HASHES: dict[SignatureAlgorithm, type[hashes.SHA256 | hashes.SHA384]] = {
    SignatureAlgorithm.ECDSA_P256: hashes.SHA256,
    SignatureAlgorithm.ECDSA_P384: hashes.SHA384,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuance:
    """What every certificate needs from outside: from when, and a serial number from the CSPRNG (20 bytes at most)."""

    not_before: datetime.datetime
    serial: int


class KeyStoreEcKey(ec.EllipticCurvePrivateKey):
    """An ECDSA key in a ``KeyStore`` in the shape that certificate builders expect; the private half stays there."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._curve, self._hash, self._size = curve_of(signer.public_key.algorithm)

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """Return a DER signature; only the hash that belongs to the curve is accepted."""
        if getattr(signature_algorithm.algorithm, "name", None) != self._hash.name:
            raise ValueError("this key signs with the hash of its curve only")
        raw = self._signer.sign(bytes(data))
        return utils.encode_dss_signature(
            int.from_bytes(raw[: self._size], "big"), int.from_bytes(raw[self._size :], "big")
        )

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return load_ec_public(self._signer.public_key)

    @property
    def curve(self) -> ec.EllipticCurve:
        return self._curve

    @property
    def key_size(self) -> int:
        return self._curve.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        raise TypeError("a signing key does not agree on keys")

    def private_numbers(self) -> NoReturn:
        raise TypeError("a key does not leave its provider")

    def private_bytes(
        self,
        encoding: serialization.Encoding,
        format: serialization.PrivateFormat,  # noqa: A002  # the name is the library's
        encryption_algorithm: serialization.KeySerializationEncryption,
    ) -> NoReturn:
        raise TypeError("a key does not leave its provider")

    def __copy__(self) -> KeyStoreEcKey:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> KeyStoreEcKey:
        return self


def load_ec_public(key: PublicKey) -> ec.EllipticCurvePublicKey:
    """Return an ECDSA public key as the library's object; raise ``pki.key.unsupported`` for any other."""
    if key.algorithm not in _HASHES:
        raise KeyUnsupported(f"key {key.key_id} is {key.algorithm.label}, not ECDSA", key=str(key.key_id))
    curve, _, _ = curve_of(key.algorithm)
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, key.raw)


def issue_factory_ca(signer: Signer, *, organization: str, issuance: Issuance) -> x509.Certificate:
    """Return a self-signed CA certificate that may issue device certificates and nothing below them.

    Raises ``pki.key.unsupported`` and ``pki.name.invalid``.
    """
    public = load_ec_public(signer.public_key)
    common_name = f"{_check_name(organization)} factory CA"
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, _check_name(common_name)),
        ]
    )
    key = KeyStoreEcKey(signer)
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(name, name, public, issuance)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, _HASHES[signer.public_key.algorithm]())


def issue_idevid(
    ca: x509.Certificate, signer: Signer, device_key: PublicKey, *, serial_number: str, issuance: Issuance
) -> x509.Certificate:
    """Return the initial identity of a device: its key and serial number, vouched for by the factory CA, for life.

    Raises ``pki.issuer.mismatch`` unless ``ca`` is a CA certificate of ``signer``'s key, ``pki.key.unsupported`` and
    ``pki.name.invalid``. Whether the CA certificate itself is to be trusted is not checked.
    """
    _check_issuer(ca, signer)
    subject = x509.Name(
        [
            *ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, _check_name(serial_number)),
        ]
    )
    builder = _builder(subject, ca.subject, load_ec_public(device_key), issuance)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(load_ec_public(signer.public_key)), critical=False
    )
    return builder.sign(KeyStoreEcKey(signer), _HASHES[signer.public_key.algorithm]())


def encode_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def parse_pem(raw: bytes) -> x509.Certificate:
    """Return the one certificate in ``raw``, unverified, or raise ``pki.certificate.malformed``."""
    try:
        (certificate,) = x509.load_pem_x509_certificates(raw)
    except ValueError as error:
        raise CertificateMalformed(f"no single certificate: {error}") from error
    return certificate


def _check_issuer(ca: x509.Certificate, signer: Signer) -> None:
    """Refuse a pair that would give a whole line of devices identities that nobody can verify."""
    if ca.public_key() != load_ec_public(signer.public_key):
        raise IssuerMismatch("the CA certificate is for another key than the one that is to sign")
    try:
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise IssuerMismatch("the certificate says nothing of being a CA") from error
    if not constraints.ca:
        raise IssuerMismatch("the certificate is no CA's")


def _check_name(text: str) -> str:
    if not 1 <= len(text) <= _MAX_NAME or not text.isprintable():
        raise NameInvalid(f"{text[:_MAX_NAME]!r} is empty, too long or not printable")
    return text


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, issuance: Issuance
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(issuance.serial)
        .not_valid_before(issuance.not_before)
        .not_valid_after(_NO_EXPIRY)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
