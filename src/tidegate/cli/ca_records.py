"""``tidegate ca``: what a CA has issued and what became of it; answers and lists; chains judged."""

from __future__ import annotations

import argparse
import datetime
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.ca_open import add_responder, add_store, opened, opened_store, read_chain, write_chain
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from cryptography import x509

    from tidegate.pki.ca_store import Issued
    from tidegate.pki.path import VerifiedChain
    from tidegate.pki.profiles import Profile
    from tidegate.pki.requests import VerifiedRequest

_REASONS = (
    "unspecified",
    "key-compromise",
    "ca-compromise",
    "affiliation-changed",
    "superseded",
    "cessation-of-operation",
    "privilege-withdrawn",
)
_MOST_ROWS = 1 << 31
_PURPOSES = ("client", "server", "code-signing", "ocsp")


def add_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs that look at records and answer from them."""
    profiles = add_verb(verbs, "profiles", "show what each profile allows")
    profiles.set_defaults(run=show_profiles)
    token = add_verb(verbs, "token", "issue a one-time enrolment token for a device; it is shown once")
    token.add_argument("device", help="the device's serial number")
    token.add_argument("--store", type=Path, required=True, help="the CA's folder")
    token.add_argument("--lifetime-s", type=int, default=86_400, help="seconds it is good for (default a day)")
    token.set_defaults(run=make_token)
    listing = add_verb(verbs, "list", "list certificates")
    listing.add_argument("--store", type=Path, required=True, help="the CA's folder")
    listing.add_argument("--device", help="of this device only")
    listing.add_argument("--limit", type=int, default=1000, help="how many at most (default 1000)")
    listing.add_argument("--after", default="0", help="serial number (hexadecimal) to go on behind")
    listing.set_defaults(run=list_certificates)
    for name, purpose, run in (
        ("show", "show one certificate's record", show_certificate),
        ("export", "write one certificate (PEM)", export_certificate),
    ):
        verb = add_verb(verbs, name, purpose)
        verb.add_argument("serial", help="serial number in hexadecimal")
        verb.add_argument("--store", type=Path, required=True, help="the CA's folder")
        if name == "export":
            verb.add_argument("-o", "--output", type=Path, required=True, help="file to write")
        verb.set_defaults(run=run)
    _add_revocation(verbs)
    _add_verify(verbs)
    _add_follow(verbs)


def _add_revocation(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    revoke = add_verb(verbs, "revoke", "take a certificate back")
    revoke.add_argument("serial", help="serial number in hexadecimal")
    revoke.add_argument("--reason", choices=_REASONS, default="unspecified", help="why (default unspecified)")
    add_store(revoke, key=True)
    revoke.set_defaults(run=revoke_certificate)
    crl = add_verb(verbs, "crl", "make a new revocation list")
    crl.add_argument("--delta", action="store_true", help="only what changed since the last full one")
    crl.add_argument("-o", "--output", type=Path, required=True, help="list to write (DER)")
    add_store(crl, key=True)
    crl.set_defaults(run=make_crl)
    ocsp = add_verb(verbs, "ocsp", "answer an OCSP question from a file, or make what a server staples")
    what = ocsp.add_mutually_exclusive_group(required=True)
    what.add_argument("--question", type=Path, help="OCSP request (DER)")
    what.add_argument("--certificate", type=Path, help="certificate (PEM) whose status is to be stapled")
    add_responder(ocsp)
    ocsp.add_argument("-o", "--output", type=Path, required=True, help="OCSP response to write (DER)")
    add_store(ocsp, key=True)
    ocsp.set_defaults(run=answer_ocsp)


def _add_verify(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = add_verb(verbs, "verify", "judge a chain: may the certificate be relied on for this?")
    verify.add_argument("file", type=Path, help="PEM: the certificate, then those above it")
    verify.add_argument("--anchors", type=Path, required=True, help="PEM: trust anchors")
    verify.add_argument("--purpose", choices=_PURPOSES, default="client", help="what for (default client)")
    verify.add_argument("--name", help="host name or address of a server")
    verify.add_argument("--crl", type=Path, help="its issuer's revocation list (DER)")
    verify.add_argument("--ocsp", type=Path, help="an OCSP answer about it (DER)")
    verify.set_defaults(run=verify_file)


def _add_follow(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    follow = add_verb(verbs, "follow", "take a new root that a root held here vouches for, into a file of anchors")
    follow.add_argument("new_root", type=Path, help="new-root.pem of a rollover")
    follow.add_argument("cross", type=Path, help="new-with-old.pem of the same rollover")
    follow.add_argument("--anchors", type=Path, required=True, help="PEM: trust anchors held; the new root is added")
    follow.set_defaults(run=follow_root)


def show_profiles(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001  # every verb has this form
    """Show the table of profiles."""
    from tidegate.pki.profiles import PROFILES

    def days(span: datetime.timedelta | None) -> str:
        return "no expiry" if span is None else f"{span.days} days"

    rows = [
        (one.name, days(one.lifetime), days(one.longest), " ".join(sorted(kind.name.lower() for kind in one.names)))
        for one in PROFILES.values()
    ]
    output.table(("profile", "lifetime", "longest", "names a request may ask for"), rows)
    output.result({"profiles": [dict(zip(("name", "lifetime", "longest", "names"), row, strict=True)) for row in rows]})
    return 0


def make_token(arguments: argparse.Namespace, output: Output) -> int:
    """Issue a token and show it, this once."""
    from tidegate.base.clock import SystemClock, SystemEntropy
    from tidegate.pki.tokens import issue_token

    with (
        opened_store(arguments.store) as store,
        issue_token(
            store,
            arguments.device,
            now_s=SystemClock().now_s(),
            entropy=SystemEntropy(),
            lifetime_s=arguments.lifetime_s,
        ) as token,
    ):
        text = bytes(token.view()).decode()
    output.line(text)
    output.result({"device": arguments.device, "token": text, "lifetime_s": arguments.lifetime_s})
    return 0


def list_certificates(arguments: argparse.Namespace, output: Output) -> int:
    """List certificates."""
    from tidegate.pki.errors import SerialUnknown

    after = int.from_bytes(parse_hex(arguments.after), "big")
    if after.bit_length() > 160:
        raise SerialUnknown("no serial number has more than 160 bits")
    with opened_store(arguments.store) as store:
        found = store.certificates(device=arguments.device, limit=min(arguments.limit, _MOST_ROWS), after=after)
    rows = [
        (f"{one.serial:x}", one.profile, one.subject, _moment(one.expires_s), "revoked" if one.revoked_s else "")
        for one in found
    ]
    output.table(("serial", "profile", "subject", "until", ""), rows)
    output.result({"certificates": [_document(one) for one in found]})
    return 0


def show_certificate(arguments: argparse.Namespace, output: Output) -> int:
    """Show one record."""
    document = _document(_find(arguments))
    for name, value in document.items():
        output.line(f"{name}: {value}")
    output.result(document)
    return 0


def export_certificate(arguments: argparse.Namespace, output: Output) -> int:
    """Write one certificate."""
    from cryptography import x509

    from tidegate.base.durable import write_file_atomic
    from tidegate.pki.certificate import encode_pem

    write_file_atomic(arguments.output, encode_pem(x509.load_der_x509_certificate(_find(arguments).der)))
    output.line(f"wrote {arguments.output}")
    output.result({"file": str(arguments.output)})
    return 0


def revoke_certificate(arguments: argparse.Namespace, output: Output) -> int:
    """Take a certificate back."""
    from tidegate.pki.ca_store import Reason

    reason = next(one for one in Reason if one.label == arguments.reason)
    with opened(arguments) as authority:
        issued = authority.revoke(int.from_bytes(parse_hex(arguments.serial), "big"), reason)
    output.line(f"revoked {issued.serial:x}: {issued.subject}; make a new list now (`tidegate ca crl`)")
    output.result(_document(issued))
    return 0


def make_crl(arguments: argparse.Namespace, output: Output) -> int:
    """Make a list."""
    from tidegate.base.durable import write_file_atomic

    with opened(arguments) as authority:
        raw = authority.delta_crl() if arguments.delta else authority.crl()
        made = authority.store.newest_crl(delta=arguments.delta)
    write_file_atomic(arguments.output, raw)
    number = made.number if made is not None else None
    output.line(f"wrote {arguments.output}: number {number}, {len(raw)} bytes")
    output.result({"file": str(arguments.output), "number": number, "size_bytes": len(raw)})
    return 0


def answer_ocsp(arguments: argparse.Namespace, output: Output) -> int:
    """Answer one question, or one that was not asked yet."""
    from tidegate.base.durable import read_file_bounded, write_file_atomic
    from tidegate.pki.ocsp import MAX_REQUEST_BYTES

    with opened(arguments) as authority:
        if arguments.question is not None:
            question = read_file_bounded(arguments.question, limit_bytes=MAX_REQUEST_BYTES)
            answer = authority.answer_ocsp(question)
        else:
            answer = authority.staple_for(read_chain(arguments.certificate)[0])
    write_file_atomic(arguments.output, answer)
    output.line(f"wrote {arguments.output}")
    output.result({"file": str(arguments.output)})
    return 0


def verify_file(arguments: argparse.Namespace, output: Output) -> int:
    """Judge a chain."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from tidegate.base.durable import read_file_bounded
    from tidegate.pki.path import PathRule, Purpose, verify_chain
    from tidegate.pki.revocation import MAX_CRL_BYTES, MAX_OCSP_BYTES, verify_crl, verify_ocsp

    now = datetime.datetime.now(tz=datetime.UTC)
    purpose = Purpose[arguments.purpose.upper().replace("-", "_")]
    anchors = [one.public_bytes(Encoding.DER) for one in read_chain(arguments.anchors)]
    chain = [one.public_bytes(Encoding.DER) for one in read_chain(arguments.file)]
    rule = PathRule(anchors=anchors, now=now, purpose=purpose, server_name=_server_name(arguments, purpose))
    verified = verify_chain(chain, rule)
    asked = []
    if arguments.crl is not None:
        raw = read_file_bounded(arguments.crl, limit_bytes=MAX_CRL_BYTES)
        below, above = _listed(raw, verified)
        verify_crl(raw, issuer=above, now=now).require_good(below)
        asked.append("CRL" if below is verified.certificate else f"CRL of {above.subject.rfc4514_string()} alone")
    if arguments.ocsp is not None:
        raw = read_file_bounded(arguments.ocsp, limit_bytes=MAX_OCSP_BYTES)
        verify_ocsp(raw, certificate=verified.certificate, issuer=verified.issuer, now=now)
        asked.append("OCSP")
    path = [one.subject.rfc4514_string() for one in verified.certificates]
    output.line(" <- ".join(path))
    output.line(f"revocation: {', '.join(asked) if asked else 'not asked'}")
    output.result({"path": path, "revocation": asked})
    return 0


def follow_root(arguments: argparse.Namespace, output: Output) -> int:
    """Add a new root to the anchors, once."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from tidegate.pki.rollover import verify_new_root

    held = list(read_chain(arguments.anchors))
    new, cross = (read_chain(path)[0].public_bytes(Encoding.DER) for path in (arguments.new_root, arguments.cross))
    now = datetime.datetime.now(tz=datetime.UTC)
    anchor = verify_new_root(new, cross, anchors=[one.public_bytes(Encoding.DER) for one in held], now=now)
    if anchor.certificate not in held:
        write_chain(arguments.anchors, [*held, anchor.certificate])
    subject = anchor.certificate.subject.rfc4514_string()
    output.line(f"{arguments.anchors} has the new root {subject}, serial {anchor.certificate.serial_number:x}")
    output.result(
        {"file": str(arguments.anchors), "subject": subject, "serial": f"{anchor.certificate.serial_number:x}"}
    )
    return 0


# -- parts ------------------------------------------------------------------------------------------------------------


def find_profile(name: str) -> Profile:
    """Return the profile called ``name``; raise ``pki.profile.unknown``."""
    from tidegate.pki.errors import ProfileUnknown
    from tidegate.pki.profiles import PROFILES

    if name not in PROFILES:
        raise ProfileUnknown(f"no profile {name!r}; there are {', '.join(PROFILES)}")
    return PROFILES[name]


def read_request(path: Path) -> VerifiedRequest:
    """Return the request in a file, PEM or DER."""
    import base64

    from tidegate.base.durable import read_file_bounded
    from tidegate.pki.errors import RequestMalformed
    from tidegate.pki.requests import MAX_REQUEST_BYTES, verify_request

    raw = read_file_bounded(path, limit_bytes=2 * MAX_REQUEST_BYTES)
    if raw.startswith(b"-----BEGIN"):
        try:
            raw = base64.b64decode(b"".join(raw.split(b"-----")[2].split()), validate=True)
        except (ValueError, IndexError) as error:
            raise RequestMalformed(f"{path} is no PEM file") from error
    return verify_request(raw)


def parse_hex(text: str) -> bytes:
    """Return the bytes that hexadecimal digits stand for; raise ``pki.serial.unknown``."""
    from tidegate.pki.errors import SerialUnknown

    try:
        return bytes.fromhex(text if len(text) % 2 == 0 else f"0{text}")
    except ValueError as error:
        raise SerialUnknown(f"{text[:64]!r} is not hexadecimal") from error


def _listed(raw: bytes, verified: VerifiedChain) -> tuple[x509.Certificate, x509.Certificate]:
    """Return whom a list is about, and who made it: the certificate itself unless the list is that of a CA above."""
    from cryptography import x509

    pairs = list(itertools.pairwise(verified.certificates))
    try:
        named = x509.load_der_x509_crl(raw).issuer
    except (ValueError, x509.InvalidVersion):
        return pairs[0]  # what is wrong with it, the verifier says
    return next((pair for pair in pairs if pair[1].subject == named), pairs[0])


def _server_name(arguments: argparse.Namespace, purpose: object) -> str | None:
    from tidegate.pki.errors import NameInvalid
    from tidegate.pki.path import Purpose

    if (purpose is Purpose.SERVER) != (arguments.name is not None):
        raise NameInvalid("a server is judged by the name it is reached under (--name), and only a server")
    return str(arguments.name) if arguments.name is not None else None


def _find(arguments: argparse.Namespace) -> Issued:
    from tidegate.pki.errors import SerialUnknown

    with opened_store(arguments.store) as store:
        found = store.find(int.from_bytes(parse_hex(arguments.serial), "big"))
    if found is None:
        raise SerialUnknown(f"this CA issued nothing with serial {arguments.serial}")
    return found


def _document(one: Issued) -> dict[str, object]:
    return {
        "serial": f"{one.serial:x}",
        "profile": one.profile,
        "subject": one.subject,
        "device": one.device,
        "issued": _moment(one.issued_s),
        "expires": _moment(one.expires_s),
        "revoked": None if one.revoked_s is None else _moment(one.revoked_s),
        "reason": one.reason.label if one.reason is not None else None,
    }


def _moment(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).isoformat()
