"""``tidegate ca``: a root kept offline, CAs that issue online, and everything that they sign."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli import ca_records
from tidegate.cli.ca_open import CHAIN, add_store, opened, opened_events, read_chain, write_chain
from tidegate.cli.ca_serve import add_serve
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from cryptography import x509

    from tidegate.crypto.signing import PublicKey
    from tidegate.pki.ca_store import CaStore
    from tidegate.pki.profiles import NameLimits, Order, Subject


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    root = add_verb(verbs, "init-root", "make a root CA: certificate and store for a key that is there")
    add_store(root, key=True)
    root.add_argument("--organization", required=True, help="the owner's name")
    root.add_argument("--common-name", required=True, help="the CA's name")
    _add_lifetime(root)
    root.set_defaults(run=init_root)
    request = add_verb(verbs, "request", "make a certification request (PKCS#10) with a key")
    request.add_argument("--key", required=True, help="key URI of the key that is to be certified")
    _add_subject(request)
    _add_output(request, "request to write (DER)")
    request.set_defaults(run=make_request)
    sign = add_verb(verbs, "sign-ca", "at the root: issue an issuing CA's certificate for its request")
    sign.add_argument("request", type=Path, help="request of the issuing CA (PEM or DER)")
    add_store(sign, key=True)
    sign.add_argument("--permit-dns", action="append", default=[], help="DNS domain it may vouch for; may be repeated")
    sign.add_argument("--permit-ip", action="append", default=[], help="network it may vouch for; may be repeated")
    _add_lifetime(sign)
    _add_output(sign, "certificate with its chain to write (PEM)")
    sign.set_defaults(run=sign_ca)
    issuing = add_verb(verbs, "init-issuing", "make the store of an issuing CA from what the root signed")
    add_store(issuing, key=True)
    issuing.set_defaults(run=init_issuing)
    issue = add_verb(verbs, "issue", "issue a certificate of a profile, for a request or for a key that is here")
    issue.add_argument("profile", help="see `tidegate ca profiles`")
    add_store(issue, key=True)
    what = issue.add_mutually_exclusive_group(required=True)
    what.add_argument("--request", type=Path, help="PKCS#10 request (PEM or DER); who sent it is yours to know")
    what.add_argument("--subject-key", help="key URI whose public key is certified")
    _add_subject(issue)
    issue.add_argument("--request-id", help="in hexadecimal: asked again with it, the same certificate comes back")
    _add_lifetime(issue)
    _add_output(issue, "certificate with its chain to write (PEM)")
    issue.set_defaults(run=issue_certificate)
    rollover = add_verb(verbs, "rollover", "replace a root: the new one and both cross-certificates")
    add_store(rollover, key=True)
    rollover.add_argument("--new-key", required=True, help="key URI of the new root")
    rollover.add_argument("--new-store", type=Path, required=True, help="folder of the new root, made here")
    _add_output(rollover, "folder for new-root.pem, new-with-old.pem and old-with-new.pem")
    rollover.set_defaults(run=roll_over)
    ca_records.add_verbs(verbs)
    add_serve(verbs)


def init_root(arguments: argparse.Namespace, output: Output) -> int:
    """Make a root CA."""
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.profiles import Subject, require_ca_key, sign_certificate

    signer = open_key(arguments.key)
    require_ca_key(signer.public_key)
    subject = Subject(organization=arguments.organization, common_name=arguments.common_name)
    order = _order("root-ca", subject, signer.public_key, lifetime=_lifetime(arguments))
    root = sign_certificate(order, None, signer)
    _create(arguments, [root], [(root, "root-ca")])
    _show(output, arguments.store / CHAIN, root)
    return 0


def make_request(arguments: argparse.Namespace, output: Output) -> int:
    """Write a request."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.requests import Wish, encode_request

    subject = _subject(arguments, organization="")
    wish = Wish(common_name=subject.common_name, serial_number=subject.serial_number, names=subject.names)
    write_file_atomic(arguments.output, encode_request(open_key(arguments.key), wish))
    output.line(f"wrote {arguments.output}")
    output.result({"file": str(arguments.output)})
    return 0


def sign_ca(arguments: argparse.Namespace, output: Output) -> int:
    """Issue an issuing CA's certificate."""
    from tidegate.pki.profiles import PROFILES, require_ca_key

    request = ca_records.read_request(arguments.request)
    require_ca_key(request.public_key)
    with opened(arguments) as authority:
        grant = authority.grant(PROFILES["issuing-ca"], request, lifetime=_lifetime(arguments))
        certificate = authority.issue(dataclasses.replace(grant, limits=_limits(arguments)))
        write_chain(arguments.output, [certificate, *authority.chain])
    _show(output, arguments.output, certificate)
    return 0


def init_issuing(arguments: argparse.Namespace, output: Output) -> int:
    """Make the store of an issuing CA."""
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.errors import IssuerMismatch
    from tidegate.pki.profiles import require_issuer

    if arguments.chain is None:
        raise IssuerMismatch("the chain that the root signed is missing: name it with --chain")
    chain = read_chain(arguments.chain)
    require_issuer(chain[0], open_key(arguments.key))
    _create(arguments, chain, [])
    _show(output, arguments.store / CHAIN, chain[0])
    return 0


def issue_certificate(arguments: argparse.Namespace, output: Output) -> int:
    """Issue a certificate."""
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.authority import Grant

    profile = ca_records.find_profile(arguments.profile)
    with opened(arguments) as authority:
        if arguments.request is not None:
            request = ca_records.read_request(arguments.request)
            grant = authority.grant(profile, request, lifetime=_lifetime(arguments))
        else:
            grant = Grant(
                profile=profile,
                subject=_subject(arguments, organization=authority.organization),
                public_key=open_key(arguments.subject_key).public_key,
                lifetime=_lifetime(arguments),
            )
        if arguments.request_id:
            grant = dataclasses.replace(grant, request_id=_request_id(arguments.request_id))
        certificate = authority.issue(grant)
        write_chain(arguments.output, [certificate, *authority.chain[:-1]])
    _show(output, arguments.output, certificate)
    return 0


def roll_over(arguments: argparse.Namespace, output: Output) -> int:
    """Replace a root."""
    from tidegate.base.clock import SystemEntropy
    from tidegate.base.durable import translate_os_errors
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.profiles import SERIAL_BYTES, draw_serial, require_ca_key
    from tidegate.pki.rollover import make_rollover

    new_signer = open_key(arguments.new_key)
    require_ca_key(new_signer.public_key)
    serials = [draw_serial(SystemEntropy().random_bytes(SERIAL_BYTES)) for _ in range(3)]
    now = datetime.datetime.now(tz=datetime.UTC)
    with opened(arguments) as authority:
        made = make_rollover(authority.certificate, open_key(arguments.key), new_signer, now=now, serials=serials)
        _record(authority.store, made.new_with_old, "root-ca")
        authority.tell()
    arguments.store, arguments.chain = arguments.new_store, None
    _create(arguments, [made.new_root], [(made.new_root, "root-ca"), (made.old_with_new, "root-ca")])
    with translate_os_errors(arguments.output):
        arguments.output.mkdir(parents=True, exist_ok=True)
    for name in ("new_root", "new_with_old", "old_with_new"):
        write_chain(arguments.output / f"{name.replace('_', '-')}.pem", [getattr(made, name)])
    _show(output, arguments.output, made.new_root)
    return 0


# -- parts ------------------------------------------------------------------------------------------------------------


def _add_subject(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--common-name", default="", help="name in the subject")
    verb.add_argument("--serial-number", default="", help="a device's serial number, in the subject")
    verb.add_argument("--dns", action="append", default=[], help="DNS name; may be repeated")
    verb.add_argument("--ip", action="append", default=[], help="IP address; may be repeated")
    verb.add_argument("--email", action="append", default=[], help="mail address; may be repeated")


def _add_lifetime(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--lifetime-days", type=float, help="how long it is valid (default: the profile's)")


def _add_output(verb: argparse.ArgumentParser, what: str) -> None:
    verb.add_argument("-o", "--output", type=Path, required=True, help=what)


def _lifetime(arguments: argparse.Namespace) -> datetime.timedelta | None:
    from tidegate.pki.errors import ProfileRefused

    try:
        return None if arguments.lifetime_days is None else datetime.timedelta(days=arguments.lifetime_days)
    except (OverflowError, ValueError) as error:
        raise ProfileRefused(f"{arguments.lifetime_days} days are no lifetime") from error


def _subject(arguments: argparse.Namespace, *, organization: str) -> Subject:
    import ipaddress

    from cryptography import x509

    from tidegate.pki.errors import NameInvalid
    from tidegate.pki.profiles import Subject

    try:
        names: list[x509.GeneralName] = [x509.DNSName(one) for one in arguments.dns]
        names += [x509.IPAddress(ipaddress.ip_address(one)) for one in arguments.ip]
        names += [x509.RFC822Name(one) for one in arguments.email]
    except ValueError as error:
        raise NameInvalid(f"no name for a certificate: {error}") from error
    return Subject(
        common_name=arguments.common_name,
        serial_number=arguments.serial_number,
        organization=organization,
        names=tuple(names),
    )


def _request_id(text: str) -> bytes:
    from tidegate.pki.authority import MAX_REQUEST_ID
    from tidegate.pki.errors import RequestMalformed

    found = ca_records.parse_hex(text)
    if len(found) > MAX_REQUEST_ID:
        raise RequestMalformed(f"a request id has at most {MAX_REQUEST_ID} bytes, not {len(found)}")
    return found


def _limits(arguments: argparse.Namespace) -> NameLimits:
    import ipaddress

    from tidegate.pki.errors import NameInvalid
    from tidegate.pki.profiles import NameLimits

    try:
        networks = tuple(ipaddress.ip_network(one) for one in arguments.permit_ip)
    except ValueError as error:
        raise NameInvalid(f"no network: {error}") from error
    return NameLimits(dns=tuple(arguments.permit_dns), networks=networks)


def _order(profile: str, subject: Subject, key: PublicKey, *, lifetime: datetime.timedelta | None) -> Order:
    from tidegate.base.clock import SystemEntropy
    from tidegate.pki.profiles import PROFILES, SERIAL_BYTES, Order, draw_serial

    return Order(
        profile=PROFILES[profile],
        subject=subject,
        public_key=key,
        now=datetime.datetime.now(tz=datetime.UTC),
        serial=draw_serial(SystemEntropy().random_bytes(SERIAL_BYTES)),
        lifetime=lifetime,
    )


def _create(
    arguments: argparse.Namespace, chain: Sequence[x509.Certificate], own: list[tuple[x509.Certificate, str]]
) -> None:
    """Make the store of a new CA with its chain, record its ``own`` certificates, report them."""
    from tidegate.base.clock import SystemClock, SystemEntropy
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.authority import Authority
    from tidegate.pki.ca_store import CaStore
    from tidegate.pki.errors import CaStoreExists

    if (arguments.store / CHAIN).exists():
        raise CaStoreExists(f"{arguments.store} is a CA's folder already", folder=str(arguments.store))
    key = getattr(arguments, "new_key", None) or arguments.key
    with CaStore(arguments.store, create=True) as store, opened_events(arguments, chain[0]) as events:
        for certificate, profile in own:
            _record(store, certificate, profile)
        write_chain(arguments.store / CHAIN, chain)
        Authority(chain, open_key(key), store, clock=SystemClock(), entropy=SystemEntropy(), report=events.report)


def _record(store: CaStore, certificate: x509.Certificate, profile: str) -> None:
    """Record a certificate that was signed outside of an ``Authority``: a root's own."""
    import hashlib

    from cryptography.hazmat.primitives.serialization import Encoding

    from tidegate.pki.ca_store import Issued

    der = certificate.public_bytes(Encoding.DER)

    def made() -> Issued:
        return Issued(
            serial=certificate.serial_number,
            profile=profile,
            subject=certificate.subject.rfc4514_string(),
            device="",
            issued_s=int(certificate.not_valid_before_utc.timestamp()),
            expires_s=int(certificate.not_valid_after_utc.timestamp()),
            der=der,
        )

    store.issue_once(None, hashlib.sha256(der).digest(), made)


def _show(output: Output, path: Path, certificate: x509.Certificate) -> None:
    subject, ends = certificate.subject.rfc4514_string(), certificate.not_valid_after_utc
    output.line(f"wrote {path}: {subject}, serial {certificate.serial_number:x}, until {ends:%Y-%m-%d %H:%M} UTC")
    output.result(
        {"file": str(path), "serial": f"{certificate.serial_number:x}", "subject": subject, "expires": ends.isoformat()}
    )
