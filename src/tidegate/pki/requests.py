"""Certification requests (PKCS#10, RFC 2986): made with a key in its provider, judged before anybody signs. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID, NameOID

from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.pki.errors import KeyNotAllowed, KeyUnsupported, RequestForged, RequestMalformed
from tidegate.pki.keyadapter import UNREADABLE, hash_for, padding_for, private_key_for, public_key_of

MAX_REQUEST_BYTES = 16_384  # one with a 4,096-bit RSA key and 64 names has a third of it
MAX_NAMES = 64
MAX_PASSWORD = 255  # RFC 2985 §5.4.1
_PROOF = object()
# what may sign a request with a key: its own hash, nothing older
_SIGNED_WITH = {
    SignatureAlgorithm.ECDSA_P256: {"ecdsa-with-SHA256", "ecdsa-with-SHA384", "ecdsa-with-SHA512"},
    SignatureAlgorithm.ECDSA_P384: {"ecdsa-with-SHA256", "ecdsa-with-SHA384", "ecdsa-with-SHA512"},
    SignatureAlgorithm.ED25519: {"ed25519"},
    SignatureAlgorithm.RSA_PSS: {"rsassaPss", "sha256WithRSAEncryption", "sha384WithRSAEncryption"},
}


@dataclass(frozen=True, slots=True)
class VerifiedRequest:
    """A request whose sender has the private key; only ``verify_request`` makes one.

    ``common_name`` and ``serial_number`` are "" where the subject has none. ``names`` are the alternative names that it
    asks for: wishes, until a profile allows them. Who sent it is not known.
    """

    der: bytes
    subject: x509.Name
    common_name: str
    serial_number: str
    names: tuple[x509.GeneralName, ...]
    public_key: PublicKey
    challenge_password: bytes | None
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedRequest comes from verify_request alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks for: who to be called, and by which names to be reached."""

    common_name: str = ""
    serial_number: str = ""
    names: tuple[x509.GeneralName, ...] = ()


def verify_request(der: bytes) -> VerifiedRequest:
    """Return a request that proves possession of its key, or raise a ``Rejected``.

    Duties, in this order:
    1. it is no longer than 16 KiB and one PKCS#10 structure in DER, of version 1 (``pki.request.malformed``);
    2. its key is of an allowed algorithm and size (``pki.key.not-allowed``);
    3. it is signed with that key's own kind of algorithm, no SHA-1 (``pki.key.not-allowed``);
    4. the signature holds: the sender has the private key (``pki.request.forged``);
    5. each name stands once in the subject, there are at most 64 alternative names (``pki.request.malformed``).

    Not checked: whether the sender is who he says.
    """
    if len(der) > MAX_REQUEST_BYTES:  # 1
        raise RequestMalformed(f"a request has at most {MAX_REQUEST_BYTES} bytes, not {len(der)}")
    try:
        request = x509.load_der_x509_csr(der)
        key = public_key_of(request.public_key())  # 2
        method = request.signature_algorithm_oid._name
        if method not in _SIGNED_WITH[key.algorithm]:  # 3
            raise KeyNotAllowed(f"a request with a {key.algorithm.label} key is not to be signed with {method}")
        holds = request.is_signature_valid  # 4
        subject = request.subject
        names, password = _names(request), _password(request)
    except KeyUnsupported as error:
        raise KeyNotAllowed(error.message) from error
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, *UNREADABLE) as error:
        raise RequestMalformed(f"no certification request: {error}") from error
    if not holds:
        raise RequestForged("the request is not signed with the key that it asks a certificate for")
    return VerifiedRequest(
        der,
        subject,
        _single(subject, NameOID.COMMON_NAME),  # 5
        _single(subject, NameOID.SERIAL_NUMBER),
        names,
        key,
        password,
        _PROOF,
    )


def encode_request(signer: Signer, wish: Wish, *, challenge_password: bytes | None = None) -> bytes:
    """Return a request (DER) for ``signer``'s key, signed by it.

    ``challenge_password`` carries a channel binding (RFC 7030 §3.5). Raises ``pki.key.unsupported``.
    """
    attributes = []
    if wish.common_name:
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, wish.common_name))
    if wish.serial_number:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, wish.serial_number))
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    if wish.names:
        builder = builder.add_extension(x509.SubjectAlternativeName(wish.names), critical=False)
    if challenge_password is not None:
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, challenge_password)
    public = signer.public_key
    made = builder.sign(private_key_for(signer), hash_for(public), rsa_padding=padding_for(public))
    return made.public_bytes(Encoding.DER)


def _names(request: x509.CertificateSigningRequest) -> tuple[x509.GeneralName, ...]:
    try:
        names = tuple(request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return ()
    if len(names) > MAX_NAMES:
        raise RequestMalformed(f"a request has at most {MAX_NAMES} alternative names, not {len(names)}")
    return names


def _password(request: x509.CertificateSigningRequest) -> bytes | None:
    try:
        value = request.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD).value
    except x509.AttributeNotFound:
        return None
    if len(value) > MAX_PASSWORD:
        raise RequestMalformed(f"a challenge password has at most {MAX_PASSWORD} bytes, not {len(value)}")
    return value


def _single(subject: x509.Name, kind: x509.ObjectIdentifier) -> str:
    found = subject.get_attributes_for_oid(kind)
    if len(found) > 1:
        raise RequestMalformed(f"the subject has {len(found)} attributes of one kind")
    return str(found[0].value) if found else ""
