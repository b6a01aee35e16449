"""A small CA in memory that issues what a test asks for, wrong things included; keys that count their signatures."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, utils
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer, curve_of, load_rsa_public, rsa_pss_padding

DAY = datetime.timedelta(days=1)
_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey
_PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


def now() -> datetime.datetime:
    """Return the time in whole seconds."""
    return datetime.datetime.now(tz=datetime.UTC).replace(microsecond=0)


class MemorySigner:
    """A ``Signer`` whose key lies in this process's memory; ``pem`` is for peers that read files."""

    def __init__(self, algorithm: SignatureAlgorithm) -> None:
        self._algorithm = algorithm
        self.key: _PrivateKey = _make(algorithm)
        self.public_key = public_key_of(self.key.public_key(), algorithm)

    def sign(self, message: bytes) -> bytes:
        """Return the raw signature."""
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            _, digest, size = curve_of(self._algorithm)
            r, s = utils.decode_dss_signature(self.key.sign(message, ec.ECDSA(digest)))
            return r.to_bytes(size, "big") + s.to_bytes(size, "big")
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(message, rsa_pss_padding(), hashes.SHA256())
        return self.key.sign(message)

    def pem(self) -> bytes:
        """Return the private key in PKCS#8."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


class CountingSigner:
    """Counts what another signer signs."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._lock = threading.Lock()
        self.signatures = 0

    @property
    def public_key(self) -> PublicKey:
        """Return the other's."""
        return self._signer.public_key

    def sign(self, message: bytes) -> bytes:
        """Sign and count."""
        with self._lock:
            self.signatures += 1
        return self._signer.sign(message)


class Authority:
    """A CA whose key lies in memory: its certificate, and whatever it is asked to sign."""

    def __init__(
        self,
        name: str = "test CA",
        *,
        parent: Authority | None = None,
        key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    ) -> None:
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = _certificate(
            (parent or self), self.name, self.key.public_key(), authority=True, span=(-DAY, 365 * DAY), names=()
        )

    @property
    def der(self) -> bytes:
        """Return the CA's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def pem(self) -> bytes:
        """Return the CA's certificate for peers that read files."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        key: PublicKey,
        name: str = "localhost",
        *,
        span: tuple[datetime.timedelta, datetime.timedelta] = (-DAY, 30 * DAY),
        usage: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    ) -> bytes:
        """Return a certificate (DER) for ``key`` and host ``name``, valid for ``span`` from now."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = _certificate(self, subject, library_key(key), authority=False, span=span, names=(name,), usage=usage)
        return made.public_bytes(serialization.Encoding.DER)

    def answer(
        self,
        certificate: bytes,
        *,
        revoked: bool = False,
        span: tuple[datetime.timedelta, datetime.timedelta] = (-DAY / 24, DAY),
    ) -> bytes:
        """Return an OCSP answer (DER) for one of this CA's certificates, signed by the CA itself."""
        start, end = (now() + part for part in span)
        builder = ocsp.OCSPResponseBuilder().add_response(
            cert=x509.load_der_x509_certificate(certificate),
            issuer=self.certificate,
            algorithm=hashes.SHA256(),
            cert_status=ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            this_update=start,
            next_update=end,
            revocation_time=start if revoked else None,
            revocation_reason=x509.ReasonFlags.key_compromise if revoked else None,
        )
        signed = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, self.certificate).sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.DER)

    def crl(
        self,
        revoked: Sequence[bytes] = (),
        *,
        number: int = 1,
        span: tuple[datetime.timedelta, datetime.timedelta] = (-DAY / 24, DAY),
    ) -> bytes:
        """Return a revocation list (DER) with ``revoked`` certificates."""
        start, end = (now() + part for part in span)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.name).last_update(start).next_update(end)
        for der in revoked:
            serial = x509.load_der_x509_certificate(der).serial_number
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(start)
            builder = builder.add_revoked_certificate(entry.build())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(identifier, critical=False).add_extension(
            x509.CRLNumber(number), critical=False
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def to_pem(*chain: bytes) -> bytes:
    """Return certificates in PEM."""
    return b"".join(x509.load_der_x509_certificate(one).public_bytes(serialization.Encoding.PEM) for one in chain)


def library_key(key: PublicKey) -> _PublicKey:
    """Return ``key`` as certificate builders take it."""
    if key.algorithm is SignatureAlgorithm.RSA_PSS:
        return load_rsa_public(key.raw)
    if key.algorithm is SignatureAlgorithm.ED25519:
        return ed25519.Ed25519PublicKey.from_public_bytes(key.raw)
    return ec.EllipticCurvePublicKey.from_encoded_point(curve_of(key.algorithm)[0], key.raw)


def public_key_of(key: _PublicKey, algorithm: SignatureAlgorithm) -> PublicKey:
    """Return the other way round."""
    if isinstance(key, rsa.RSAPublicKey):
        modulus = key.public_numbers().n
        return PublicKey(algorithm, modulus.to_bytes((modulus.bit_length() + 7) // 8, "big"))
    if isinstance(key, ed25519.Ed25519PublicKey):
        return PublicKey(algorithm, key.public_bytes_raw())
    form = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return PublicKey(algorithm, key.public_bytes(*form))


def _make(algorithm: SignatureAlgorithm) -> _PrivateKey:
    if algorithm is SignatureAlgorithm.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm is SignatureAlgorithm.RSA_PSS:
        return rsa.generate_private_key(65_537, 3072)
    return ec.generate_private_key(curve_of(algorithm)[0])


def _certificate(
    issuer: Authority,
    subject: x509.Name,
    key: _PublicKey,
    *,
    authority: bool,
    span: tuple[datetime.timedelta, datetime.timedelta],
    names: Sequence[str],
    usage: Sequence[x509.ObjectIdentifier] = (),
) -> x509.Certificate:
    flags = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"), False
    )
    key_usage = x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, decipher_only=False, **flags
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.name)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() + span[0])
        .not_valid_after(now() + span[1])
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    if names:
        alternative = x509.SubjectAlternativeName([x509.DNSName(one) for one in names])
        builder = builder.add_extension(alternative, critical=False)
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usage), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())
