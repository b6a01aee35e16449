"""EST on the wire: bodies, certificates-only CMS, CSR attributes, content types. Pure.

Source: RFC 7030 with the clarifications of RFC 8951; certificates-only CMS RFC 5272 §4.1 and RFC 5652 §5.
"""

from __future__ import annotations

import base64
import binascii
import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from tidegate.pki.errors import EstBodyMalformed, EstContentTypeWrong, EstOperationUnknown, EstTooLarge

WELL_KNOWN = "/.well-known/est"
MAX_REQUEST_BYTES = 32_768  # of a body: a request with an ML-DSA-87 key has 8 KiB, base64 makes 11 KiB of it
MAX_ANSWER_BYTES = 262_144  # MAX_CERTIFICATES of 16 KiB in base64 with room to spare
MAX_CERTIFICATES = 8  # in one answer: a chain and two anchors in a rollover
MAX_ATTRIBUTES = 32  # of csrattrs; ours has three
_MAX_LABEL = 64
_WHITESPACE = b" \t\r\n"

PKCS10 = "application/pkcs10"
CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
CSR_ATTRIBUTES = "application/csrattrs"

_SIGNED_DATA = bytes.fromhex("06092a864886f70d010702")
_DATA = bytes.fromhex("06092a864886f70d010701")
_VERSION_1 = bytes.fromhex("020101")
_CHALLENGE_PASSWORD = bytes.fromhex("06092a864886f70d010907")
_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_P256 = bytes.fromhex("06082a8648ce3d030107")
_P384 = bytes.fromhex("06052b81040022")
_CURVES = {_P256: "ecdsa-p256", _P384: "ecdsa-p384"}
_OID, _SEQUENCE, _SET, _CONTEXT_0 = 0x06, 0x30, 0x31, 0xA0


class Operation(enum.Enum):
    """The operations of RFC 7030 §3.2.2 with the method of each."""

    CACERTS = "cacerts"
    SIMPLE_ENROLL = "simpleenroll"
    SIMPLE_REENROLL = "simplereenroll"
    FULL_CMC = "fullcmc"
    SERVER_KEYGEN = "serverkeygen"
    CSR_ATTRS = "csrattrs"

    @property
    def method(self) -> str:
        """Return the one HTTP method that it is asked with."""
        return "GET" if self in (Operation.CACERTS, Operation.CSR_ATTRS) else "POST"


@dataclass(frozen=True, slots=True, kw_only=True)
class CsrAttributes:
    """What a server wants in a request (RFC 7030 §4.5.2): proof of the channel, keys on one of these curves."""

    challenge_password: bool = True
    algorithms: tuple[str, ...] = ("ecdsa-p256",)


def parse_path(path: str) -> tuple[str, Operation]:
    """Return the label (empty for none) and the operation; raise ``pki.est.operation-unknown``."""
    if not path.startswith(WELL_KNOWN + "/"):
        raise EstOperationUnknown("not an EST path")
    *label, name = path.removeprefix(WELL_KNOWN + "/").split("/")
    if len(label) > 1 or not all(1 <= len(one) <= _MAX_LABEL and one.isprintable() for one in label):
        raise EstOperationUnknown("not an EST path")
    try:
        return "".join(label), Operation(name)
    except ValueError as error:
        raise EstOperationUnknown("EST has no such operation") from error


def encode_path(operation: Operation, label: str = "") -> str:
    """Return the path of an operation, below ``label`` if there is one."""
    return "/".join(part for part in (WELL_KNOWN, label, operation.value) if part)


def check_content_type(given: str | None, wanted: str) -> None:
    """Return if a Content-Type is the wanted one; raise ``pki.est.content-type``.

    Parameters are not compared: RFC 8951 §3.2 finds them in several forms in the field.
    """
    if (given or "").partition(";")[0].strip().lower() != wanted.partition(";")[0]:
        raise EstContentTypeWrong(f"expected {wanted.partition(';')[0]}")


def encode_body(der: bytes) -> bytes:
    """Return DER as base64 in lines of 76, which every decoder in the field reads (RFC 8951 §3.1)."""
    return base64.encodebytes(der)


def decode_body(raw: bytes, *, limit_bytes: int) -> bytes:
    """Return what base64 in ``raw`` stands for; raise ``pki.est.too-large`` or ``pki.est.body-malformed``.

    White space may stand anywhere and padding is required; anything else outside the alphabet is refused (RFC 8951
    §3.1), a PEM header among it.
    """
    if len(raw) > limit_bytes:
        raise EstTooLarge(f"the body is larger than {limit_bytes} bytes", limit=limit_bytes)
    packed = raw.translate(None, _WHITESPACE)
    try:
        decoded = binascii.a2b_base64(packed, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise EstBodyMalformed("the body is no base64") from error
    if not decoded or len(packed) % 4:
        raise EstBodyMalformed("the body is empty or padded too far")
    return decoded


def encode_certificates(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return a certificates-only CMS message in DER; its order means nothing (it is a SET)."""
    return pkcs7.serialize_certificates(list(certificates), Encoding.DER)


def parse_certificates(raw: bytes) -> tuple[bytes, ...]:
    """Return the certificates (DER) of a certificates-only CMS message, unverified; raise ``pki.est.body-malformed``.

    The message has version 1, no digest, no content, no signer; revocation lists beside the certificates are passed
    over. Definite lengths only, nothing behind the end. Each certificate is looked into by who verifies it.
    """
    content_info = _sole(raw, _SEQUENCE)
    if not content_info.startswith(_SIGNED_DATA):
        raise EstBodyMalformed("the CMS message is no SignedData")
    signed = _sole(_sole(content_info[len(_SIGNED_DATA) :], _CONTEXT_0), _SEQUENCE)
    parts = list(_elements(signed))
    kinds = [tag for tag, _, _ in parts]
    if kinds not in ([0x02, _SET, _SEQUENCE, _CONTEXT_0, _SET], [0x02, _SET, _SEQUENCE, _CONTEXT_0, 0xA1, _SET]):
        raise EstBodyMalformed("the CMS message has another form than certificates only")
    if parts[0][2] != _VERSION_1 or parts[1][1] or parts[2][1] != _DATA or parts[-1][1]:
        raise EstBodyMalformed("the CMS message signs or carries something")
    certificates = [(tag, whole) for tag, _, whole in _elements(parts[3][1])]
    if not 1 <= len(certificates) <= MAX_CERTIFICATES or any(tag != _SEQUENCE for tag, _ in certificates):
        raise EstBodyMalformed(f"the CMS message has no 1 to {MAX_CERTIFICATES} certificates")
    return tuple(whole for _, whole in certificates)


def encode_csr_attributes(wanted: CsrAttributes) -> bytes:
    """Return ``wanted`` as CsrAttrs in DER."""
    parts = [_CHALLENGE_PASSWORD] if wanted.challenge_password else []
    curves = [oid for oid, label in _CURVES.items() if label in wanted.algorithms]
    parts += [_wrap(_SEQUENCE, _EC_PUBLIC_KEY + _wrap(_SET, oid)) for oid in curves]
    return _wrap(_SEQUENCE, b"".join(parts))


def parse_csr_attributes(raw: bytes) -> CsrAttributes:
    """Return what a server asks for; what we do not know is passed over (RFC 7030 §4.5.2 leaves it to the client).

    Raises ``pki.est.body-malformed``.
    """
    challenge, algorithms = False, []
    for number, (tag, content, whole) in enumerate(_elements(_sole(raw, _SEQUENCE))):
        if number == MAX_ATTRIBUTES or tag not in (_OID, _SEQUENCE):
            raise EstBodyMalformed("no list of CSR attributes")
        challenge = challenge or whole == _CHALLENGE_PASSWORD
        if content.startswith(_EC_PUBLIC_KEY):
            curves = _sole(content[len(_EC_PUBLIC_KEY) :], _SET)
            algorithms += [_CURVES[oid] for _, _, oid in _elements(curves) if oid in _CURVES]
    return CsrAttributes(challenge_password=challenge, algorithms=tuple(algorithms))


def order_chain(leaf: x509.Certificate, others: Iterable[x509.Certificate]) -> tuple[x509.Certificate, ...]:
    """Return ``leaf`` and its issuers as far as ``others`` has them, without roots and their cross-certificates.

    A CA that got a new key kept its name: of several of one name the one that signed counts. Unverified.
    """
    pool, chain = [one for one in others if one.subject != one.issuer], [leaf]
    while len(chain) < MAX_CERTIFICATES:
        namesakes = [one for one in pool if one.subject == chain[-1].issuer and one not in chain]
        issuer = next((one for one in namesakes if _signed(one, chain[-1])), None)
        if issuer is None:
            break
        chain.append(issuer)
    return tuple(chain)


def _signed(issuer: x509.Certificate, below: x509.Certificate) -> bool:
    try:
        below.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def _sole(raw: bytes, tag: int) -> bytes:
    """Return the content of the one element in ``raw``, which has to have ``tag``."""
    found = list(_elements(raw))
    if len(found) != 1 or found[0][0] != tag:
        raise EstBodyMalformed("an element is missing, of another kind, or followed by more")
    return found[0][1]


def _elements(raw: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield (tag, content, whole element) of DER side by side: one-byte tags, minimal definite lengths."""
    position = 0
    while position < len(raw):
        start, (tag, length) = position, (raw[position], raw[position + 1] if position + 1 < len(raw) else 0x80)
        position += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(raw[position : position + count], "big")
            if not 1 <= count <= 3 or length < (0x80 if count == 1 else 1 << 8 * (count - 1)):
                raise EstBodyMalformed("a length is indefinite, too large or longer than it has to be")
            position += count
        if tag & 0x1F == 0x1F or position + length > len(raw):
            raise EstBodyMalformed("an element is cut or has a long tag")
        yield tag, raw[position : position + length], raw[start : position + length]
        position += length


def _wrap(tag: int, content: bytes) -> bytes:
    """Return a short DER element; ours have fewer than 128 bytes."""
    return bytes((tag, len(content))) + content
