"""Certificate profiles: what each kind of certificate may say, and for how long. A table, and the one builder. Pure.

Source: RFC 5280; IEEE 802.1AR-2018 §8 (an IDevID has no well-defined expiry: 99991231235959Z, RFC 5280 §4.1.2.5).
"""

from __future__ import annotations

import datetime
import enum
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.pki.errors import IssuerMismatch, KeyUnsupported, NameInvalid, ProfileRefused
from tidegate.pki.keyadapter import hash_for, library_public_key, padding_for, private_key_for

SERIAL_BYTES = 20  # RFC 5280 §4.1.2.2 at most; 158 random bits of them
HARDWARE_MODULE_NAME = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")
MAX_NAME_CHARACTERS = 64  # RFC 5280, appendix A: ub-common-name, ub-serial-number
NO_EXPIRY = datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
BACKDATED = datetime.timedelta(minutes=5)  # so that a device whose clock is a little late takes its new certificate
_DAY = datetime.timedelta(days=1)


class NameKind(enum.Enum):
    """Kinds of alternative names that a profile may allow."""

    DNS = x509.DNSName
    IP = x509.IPAddress
    URI = x509.UniformResourceIdentifier
    EMAIL = x509.RFC822Name
    HARDWARE = x509.OtherName  # hardware_module_name, and no other kind of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One kind of certificate. ``lifetime`` is the default and ``longest`` what may be asked for; None is no expiry."""

    name: str
    purpose: str
    lifetime: datetime.timedelta | None
    longest: datetime.timedelta | None
    is_ca: bool = False
    path_length: int | None = None
    usages: frozenset[str] = frozenset({"digital_signature"})
    extended: tuple[x509.ObjectIdentifier, ...] = ()
    names: frozenset[NameKind] = frozenset()
    needs_serial_number: bool = False
    needs_name: bool = False
    short_lived: bool = False  # revoked by running out; no revocation pointers needed
    ocsp_no_check: bool = False


_USAGE_BITS = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
_CA = frozenset({"key_cert_sign", "crl_sign"})
_DEVICE = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="root-ca",
            purpose="trust anchor, kept offline; signs issuing CAs alone",
            lifetime=9131 * _DAY,  # 25 years: longer than the devices live
            longest=14_610 * _DAY,
            is_ca=True,
            path_length=1,
            usages=_CA,
        ),
        Profile(
            name="issuing-ca",
            purpose="CA that works online; signs no other CA",
            lifetime=3653 * _DAY,
            longest=7305 * _DAY,
            is_ca=True,
            path_length=0,
            usages=_CA,
        ),
        Profile(
            name="factory-ca",
            purpose="CA of the maker's bench for IDevIDs; they have no expiry, so it has none",
            lifetime=None,
            longest=None,
            is_ca=True,
            path_length=0,
            usages=_CA,
        ),
        Profile(
            name="idevid",
            purpose="initial device identity (IEEE 802.1AR), for life",
            lifetime=None,
            longest=None,
            names=frozenset({NameKind.HARDWARE}),
            needs_serial_number=True,
        ),
        Profile(
            name="ldevid",
            purpose="operational device identity (IEEE 802.1AR), short-lived and renewed by the device",
            lifetime=7 * _DAY,
            longest=398 * _DAY,
            extended=_DEVICE,
            names=frozenset({NameKind.DNS, NameKind.IP}),
            needs_serial_number=True,
            short_lived=True,
        ),
        Profile(
            name="server",
            purpose="TLS server",
            lifetime=90 * _DAY,
            longest=398 * _DAY,
            extended=(ExtendedKeyUsageOID.SERVER_AUTH,),
            names=frozenset({NameKind.DNS, NameKind.IP}),
            needs_name=True,
        ),
        Profile(
            name="operator",
            purpose="a person at a console",
            lifetime=30 * _DAY,
            longest=398 * _DAY,
            extended=(ExtendedKeyUsageOID.CLIENT_AUTH,),
            names=frozenset({NameKind.EMAIL}),
        ),
        Profile(
            name="code-signing",
            purpose="signs programs and images for tools that want a certificate",
            lifetime=1096 * _DAY,
            longest=3653 * _DAY,
            extended=(ExtendedKeyUsageOID.CODE_SIGNING,),
        ),
        Profile(
            name="ocsp-responder",
            purpose="answers for a CA whether its certificates were revoked (RFC 6960 §4.2.2.2)",
            lifetime=30 * _DAY,
            longest=90 * _DAY,
            extended=(ExtendedKeyUsageOID.OCSP_SIGNING,),
            short_lived=True,
            ocsp_no_check=True,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who a certificate is for. Each text has 1 to 64 printable characters, or is "" where the profile allows it."""

    common_name: str = ""
    serial_number: str = ""
    organization: str = ""
    names: tuple[x509.GeneralName, ...] = ()

    def name(self) -> x509.Name:
        """Return the distinguished name; raise ``pki.name.invalid``."""
        parts = (
            (NameOID.ORGANIZATION_NAME, self.organization),
            (NameOID.COMMON_NAME, self.common_name),
            (NameOID.SERIAL_NUMBER, self.serial_number),
        )
        return x509.Name([x509.NameAttribute(kind, check_name(text)) for kind, text in parts if text])


@dataclass(frozen=True, slots=True, kw_only=True)
class NameLimits:
    """What a CA may vouch for (RFC 5280 §4.2.1.10): DNS domains and IP networks; empty is no limit of that kind."""

    dns: tuple[str, ...] = ()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    def extension(self) -> x509.NameConstraints | None:
        """Return the extension, None where there is no limit."""
        trees: list[x509.GeneralName] = [x509.DNSName(domain) for domain in self.dns]
        trees += [x509.IPAddress(network) for network in self.networks]
        return x509.NameConstraints(permitted_subtrees=trees, excluded_subtrees=None) if trees else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pointers:
    """Where relying parties learn of revocations; "" is nowhere."""

    crl_url: str = ""
    ocsp_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A certificate to be made: for whom, with which key, from when, with which serial, and what deviates from default.

    ``serial`` comes from the CSPRNG (``draw_serial``). ``lifetime`` None is the profile's default.
    """

    profile: Profile
    subject: Subject
    public_key: PublicKey
    now: datetime.datetime
    serial: int
    lifetime: datetime.timedelta | None = None
    limits: NameLimits = field(default_factory=NameLimits)
    pointers: Pointers = field(default_factory=Pointers)


def hardware_module_name(hardware_type: str, serial: bytes) -> x509.OtherName:
    """Return a hardwareModuleName (RFC 4108 §5) for an IDevID: the maker's OID for the hardware, and its serial number.

    ``serial`` has 1 to 64 bytes. Raises ``pki.name.invalid``.
    """
    arcs = [int(arc) for arc in hardware_type.split(".") if arc.isascii() and arc.isdecimal()]
    if not 2 < len(arcs) == hardware_type.count(".") + 1 or not 1 <= len(serial) <= MAX_NAME_CHARACTERS:
        raise NameInvalid(f"{hardware_type[:64]!r} is no object identifier, or the serial number is no 1 to 64 bytes")
    body = b"".join(_base128(arc) for arc in (40 * arcs[0] + arcs[1], *arcs[2:]))
    content = bytes((0x06, len(body))) + body + bytes((0x04, len(serial))) + serial
    if arcs[0] > 2 or (arcs[0] < 2 and arcs[1] > 39) or len(content) > 127:
        raise NameInvalid(f"{hardware_type[:64]!r} is no object identifier of sensible length")
    return x509.OtherName(HARDWARE_MODULE_NAME, bytes((0x30, len(content))) + content)


def _base128(number: int) -> bytes:
    """Return a number as DER has the arcs of an object identifier: seven bits a byte, the last without the high bit."""
    septets = [number & 0x7F]
    while number := number >> 7:
        septets.append(number & 0x7F | 0x80)
    return bytes(reversed(septets))


def draw_serial(random_bytes: bytes) -> int:
    """Return a serial number of ``SERIAL_BYTES`` random bytes: positive, of full length, never 0."""
    if len(random_bytes) != SERIAL_BYTES:
        raise ValueError(f"a serial number takes {SERIAL_BYTES} bytes")
    return int.from_bytes(random_bytes, "big") >> 2 | 1 << (8 * SERIAL_BYTES - 2)


def check_name(text: str) -> str:
    """Return ``text`` if it may stand in a name, else raise ``pki.name.invalid``."""
    if not 1 <= len(text) <= MAX_NAME_CHARACTERS or not text.isprintable() or text != text.strip():
        raise NameInvalid(f"{text[:MAX_NAME_CHARACTERS]!r} is empty, too long or not printable")
    return text


def sign_certificate(order: Order, issuer: x509.Certificate | None, signer: Signer) -> x509.Certificate:
    """Return the certificate of ``order``, signed by ``signer`` for ``issuer`` (None: it signs itself).

    Duties, in this order:
    1. the issuer is a CA certificate of ``signer``'s key (``pki.issuer.mismatch``);
    2. subject and names are what the profile allows (``pki.profile.refused``, ``pki.name.invalid``);
    3. the validity lies within the profile's longest and within the issuer's (``pki.profile.refused``);
    4. nothing but the profile's extensions gets in, whatever a request asked for.

    Raises ``pki.key.unsupported``. Whether the issuer is to be trusted is not checked.
    """
    if issuer is not None:
        require_issuer(issuer, signer)  # 1
    _require_subject(order)  # 2
    start, end = _validity(order, issuer)  # 3
    name = order.subject.name()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject if issuer is not None else name)
        .public_key(library_public_key(order.public_key))
        .serial_number(order.serial)
        .not_valid_before(start)
        .not_valid_after(end)
    )
    for extension, critical in _extensions(order, issuer, signer):  # 4
        builder = builder.add_extension(extension, critical=critical)
    public = signer.public_key
    return builder.sign(private_key_for(signer), hash_for(public), rsa_padding=padding_for(public))


def require_ca_key(key: PublicKey) -> None:
    """Refuse a CA key whose certificates ``path`` cannot judge (its library knows no Ed25519 signatures)."""
    if key.algorithm is SignatureAlgorithm.ED25519:
        raise KeyUnsupported("a CA has an ECDSA or RSA key: what an Ed25519 key signs, no path validation here takes")


def require_issuer(ca: x509.Certificate, signer: Signer) -> None:
    """Refuse a pair that would give a whole line of devices identities that nobody can verify."""
    if ca.public_key() != library_public_key(signer.public_key):
        raise IssuerMismatch("the CA certificate is for another key than the one that is to sign")
    try:
        constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise IssuerMismatch("the certificate says nothing of being a CA") from error
    if not constraints.ca:
        raise IssuerMismatch("the certificate is no CA's")


def _require_subject(order: Order) -> None:
    profile, subject = order.profile, order.subject
    if profile.needs_serial_number and not subject.serial_number:
        raise ProfileRefused(f"{profile.name}: a device's certificate has a serial number in its subject")
    if not (subject.common_name or subject.serial_number):
        raise ProfileRefused(f"{profile.name}: the subject has no name")
    if profile.needs_name and not subject.names:
        raise ProfileRefused(f"{profile.name}: no DNS name or address is asked for")
    allowed = tuple(kind.value for kind in profile.names)
    refused = [name for name in subject.names if not isinstance(name, allowed)]
    if refused:
        raise ProfileRefused(f"{profile.name}: a name of kind {type(refused[0]).__name__} is not allowed")
    for name in subject.names:
        if isinstance(name, x509.OtherName) and name.type_id != HARDWARE_MODULE_NAME:
            raise ProfileRefused(f"{profile.name}: the kind of name {name.type_id.dotted_string} is not allowed")
        if isinstance(name, x509.DNSName) and ("*" in name.value or not name.value.isascii() or not name.value):
            raise ProfileRefused(f"{profile.name}: {name.value!r} is no plain DNS name")


def _validity(order: Order, issuer: x509.Certificate | None) -> tuple[datetime.datetime, datetime.datetime]:
    profile = order.profile
    lifetime = profile.lifetime if order.lifetime is None else order.lifetime
    if profile.longest is not None and (lifetime is None or not datetime.timedelta() < lifetime <= profile.longest):
        raise ProfileRefused(f"{profile.name}: it lives at most {profile.longest.days} days")
    start = order.now.replace(microsecond=0) - (datetime.timedelta() if profile.is_ca else BACKDATED)
    try:
        end = NO_EXPIRY if lifetime is None else order.now.replace(microsecond=0) + lifetime
    except OverflowError as error:
        raise ProfileRefused(f"{profile.name}: no calendar has a day that far off") from error
    if issuer is not None:
        start = max(start, issuer.not_valid_before_utc)
        if end > issuer.not_valid_after_utc:
            last = f"{issuer.not_valid_after_utc:%Y-%m-%d}"
            raise ProfileRefused(f"{profile.name}: it would live until {end:%Y-%m-%d}, its issuer lives until {last}")
    return start, end


def _extensions(
    order: Order, issuer: x509.Certificate | None, signer: Signer
) -> Sequence[tuple[x509.ExtensionType, bool]]:
    """Return extension and criticality of everything that the profile has."""
    profile = order.profile
    extensions: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=profile.is_ca, path_length=profile.path_length), True),
        (key_usage(profile.usages), True),
        (x509.SubjectKeyIdentifier.from_public_key(library_public_key(order.public_key)), False),
    ]
    if issuer is not None:
        extensions.append((authority_key(issuer, signer), False))
    if profile.extended:
        extensions.append((x509.ExtendedKeyUsage(profile.extended), False))
    if order.subject.names:
        extensions.append((x509.SubjectAlternativeName(order.subject.names), False))
    constraints = order.limits.extension() if profile.is_ca else None
    if constraints is not None:
        extensions.append((constraints, True))
    if profile.ocsp_no_check:
        extensions.append((x509.OCSPNoCheck(), False))
    elif issuer is not None:
        extensions += _pointers(order.pointers)
    return extensions


def authority_key(issuer: x509.Certificate, signer: Signer) -> x509.AuthorityKeyIdentifier:
    """Return the issuer's key by the identifier that its own certificate gives it, so that verifiers find it."""
    try:
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(library_public_key(signer.public_key))
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _pointers(pointers: Pointers) -> list[tuple[x509.ExtensionType, bool]]:
    found: list[tuple[x509.ExtensionType, bool]] = []
    if pointers.crl_url:
        place: list[x509.GeneralName] = [x509.UniformResourceIdentifier(pointers.crl_url)]
        point = x509.DistributionPoint(full_name=place, relative_name=None, reasons=None, crl_issuer=None)
        found.append((x509.CRLDistributionPoints([point]), False))
    if pointers.ocsp_url:
        where = x509.UniformResourceIdentifier(pointers.ocsp_url)
        access = x509.AccessDescription(AuthorityInformationAccessOID.OCSP, where)
        found.append((x509.AuthorityInformationAccess([access]), False))
    return found


def key_usage(wanted: frozenset[str]) -> x509.KeyUsage:
    """Return a key usage with exactly the ``wanted`` bits, by the library's names."""
    return x509.KeyUsage(**{bit: bit in wanted for bit in _USAGE_BITS})
