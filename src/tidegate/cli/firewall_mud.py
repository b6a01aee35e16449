"""``tidegate firewall mud``: rules from a manufacturer's MUD file, a MUD file from rules, and what a MUD file says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable, Sequence

    from tidegate.firewall.mud_import import Site
    from tidegate.firewall.mud_match import Span
    from tidegate.firewall.mud_openings import Finding
    from tidegate.firewall.section import FirewallSection

_MAX_KEY_BYTES = 65_536  # an RSA-8192 key in PEM has 6 KB
_PEERS = "addresses, networks, DNS names, separated by commas"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb and its acts."""
    mud = add_verb(verbs, "mud", "import and export MUD files (RFC 8520)")
    acts = mud.add_subparsers(dest="subverb", metavar="ACT", required=True)
    _add_import(acts)
    export = add_verb(acts, "export", "write a policy's [firewall] section as a MUD file")
    export.add_argument("policy", type=Path, metavar="POLICY.toml", help="the policy as an operator writes it")
    export.add_argument("--url", required=True, metavar="URL", help="where the file will be fetched: https://...")
    export.add_argument("--manufacturer", required=True, metavar="NAME", help="mfg-name")
    export.add_argument("--model", required=True, metavar="NAME", help="model-name")
    export.add_argument("--info", default="", metavar="TEXT", help="systeminfo, up to 60 characters")
    export.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="LIST=URI",
        help="the list of peers LIST is a controller called URI",
    )
    export.add_argument("-o", dest="output", type=Path, metavar="FILE.json", help="default: standard output")
    export.add_argument("--sign-key", type=Path, metavar="PEM", help="sign: the private key")
    export.add_argument("--sign-cert", type=Path, metavar="PEM", help="sign: its certificate, then the chain")
    export.set_defaults(run=run_export)
    check = add_verb(acts, "check", "say what a MUD file lets a device do, and what of it no rule can say")
    check.add_argument("file", type=Path, metavar="FILE", help="the MUD file")
    _add_trust(check)
    check.set_defaults(run=run_check)


def _add_import(acts: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    read = add_verb(acts, "import", "turn a MUD file into a part of a policy")
    read.add_argument("file", type=Path, metavar="FILE", help="the MUD file")
    _add_trust(read)
    read.add_argument(
        "--as", dest="role", required=True, choices=("gateway", "device"), help="whose policy: in front of it, or its"
    )
    read.add_argument("--device", action="append", default=[], metavar="ADDRESS|MAC", help="gateway: the device")
    read.add_argument(
        "--gateway-address", action="append", default=[], metavar="ADDRESS", help="gateway: an address of its own"
    )
    read.add_argument(
        "--from-zone", "--zone", dest="zone", metavar="NAME", help="gateway: the zone that the device is in"
    )
    read.add_argument("--to-zone", metavar="NAME", help="gateway: the zone of all whom it talks to; default: any")
    for option in ("controller", "manufacturer", "model"):
        read.add_argument(
            f"--{option}", action="append", default=[], metavar=f"{'URI' if option != 'manufacturer' else 'NAME'}=PEERS"
        )
    for option in ("my-controller", "local-networks", "same-manufacturer"):
        read.add_argument(f"--{option}", default="", metavar="PEERS", help=_PEERS)
    read.add_argument("--name", metavar="NAME", help="how the names of rules begin; default: by the model")
    strict = read.add_mutually_exclusive_group()
    strict.add_argument("--strict", action="store_true", help="refuse a file that has what no rule can say (default)")
    strict.add_argument("--partial", action="store_true", help="leave out what no rule can say, and list it")
    read.add_argument(
        "--any-source-port", action="store_true", help="take over entries without the port that a call comes from"
    )
    read.add_argument("-o", dest="output", type=Path, metavar="FILE.toml", help="default: standard output")
    read.set_defaults(run=run_import)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--signature", type=Path, metavar="FILE.p7s", help="the file's detached signature (DER)")
    parser.add_argument("--trust", type=Path, metavar="CA.pem", help="whom signers' certificates must lead to")
    parser.add_argument(
        "--idevid", type=Path, metavar="CERT.pem", help="the device's certificate: it may name a signer"
    )
    parser.add_argument("--insecure-unsigned", action="store_true", help="take a file that nobody signed")


def run_import(arguments: argparse.Namespace, output: Output) -> int:
    """Write the fragment; 1 when something was left out."""
    from tidegate.firewall.mud import parse_mud
    from tidegate.firewall.mud_import import plan_import
    from tidegate.firewall.mud_openings import FindingKind

    raw, signer, retrieved = _read(arguments, must_be_signed=True)
    made = plan_import(parse_mud(raw), _site(arguments), now=_now(), retrieved=retrieved, signer=signer)
    _show(output, made.findings)
    _write(arguments.output, made.text, output)
    output.result({"toml": made.text, "signer": signer, "findings": _rows(made.findings)})
    return 1 if any(one.kind is FindingKind.LEFT_OUT for one in made.findings) else 0


def run_check(arguments: argparse.Namespace, output: Output) -> int:
    """Say who may begin what; 1 when some of it no rule can say."""
    from tidegate.firewall.mud import parse_mud
    from tidegate.firewall.mud_openings import FindingKind, plan_openings

    raw, signer, _ = _read(arguments, must_be_signed=False)
    mud = parse_mud(raw)
    openings, findings = plan_openings(mud)
    output.line(f"{mud.url}, {mud.last_update.isoformat()}, {'signed by ' + signer if signer else 'not verified'}")
    rows = [
        (one.side, f"IPv{one.family}", one.protocol, _spans(one.ports), one.peer, one.peer_value) for one in openings
    ]
    output.table(("may begin", "family", "protocol", "ports", "other side", "which"), rows)
    _show(output, findings)
    for note in mud.notes:
        output.line(f"note: {note}")
    output.result(
        {
            "url": mud.url,
            "last_update": mud.last_update.isoformat(),
            "is_supported": mud.is_supported,
            "signer": signer,
            "openings": [list(map(str, row)) for row in rows],
            "findings": _rows(findings),
            "notes": list(mud.notes),
        }
    )
    return 1 if any(one.kind is FindingKind.LEFT_OUT for one in findings) else 0


def run_export(arguments: argparse.Namespace, output: Output) -> int:
    """Write the MUD file, and beside it its signature where a key is given."""
    from tidegate.firewall.errors import MudExport
    from tidegate.firewall.mud_export import KNOWN_LISTS, About, encode_mud
    from tidegate.firewall.mud_match import PeerKind

    if (arguments.sign_key is None) is not (arguments.sign_cert is None):
        raise MudExport("--sign-key and --sign-cert go together")
    if arguments.sign_key is not None and arguments.output is None:
        raise MudExport("a signed file needs -o FILE.json; the signature is written to FILE.p7s")
    named = {name: (PeerKind.CONTROLLER, uri) for name, uri in (_split(word, last=False) for word in arguments.classes)}
    signature_url = None if arguments.sign_key is None else f"{arguments.url.removesuffix('.json')}.p7s"
    about = About(
        url=arguments.url,
        manufacturer=arguments.manufacturer,
        model=arguments.model,
        systeminfo=arguments.info,
        last_update=_now(),
        signature_url=signature_url,
        classes={**KNOWN_LISTS, **named},
    )
    made = encode_mud(_read_section(arguments.policy), about)
    for warning in made.warnings:
        _complain(output, f"not said: {warning}")
    _write(arguments.output, made.text, output)
    signature = _sign(arguments, made.text.encode())
    if signature is not None:
        output.line(f"Signature: {signature}; fetched from {signature_url}")
    output.result({"mud": made.text, "warnings": list(made.warnings), "signature": signature and str(signature)})
    return 0


def _sign(arguments: argparse.Namespace, raw: bytes) -> Path | None:
    if arguments.sign_key is None:
        return None
    from tidegate.base.durable import read_file_bounded, write_file_atomic
    from tidegate.firewall.mud_signature import sign_mud

    key, certificate = (
        read_file_bounded(path, limit_bytes=_MAX_KEY_BYTES) for path in (arguments.sign_key, arguments.sign_cert)
    )
    target: Path = arguments.output.with_suffix(".p7s")
    write_file_atomic(target, sign_mud(raw, key_pem=key, certificate_pem=certificate))
    return target


def _read(arguments: argparse.Namespace, *, must_be_signed: bool) -> tuple[bytes, str | None, datetime.datetime | None]:
    """Return the file's bytes, who signed them, and when the file was fetched (as its date says)."""
    import datetime as dates

    from tidegate.base.durable import read_file_bounded, translate_os_errors
    from tidegate.firewall.errors import MudUnsigned
    from tidegate.firewall.mud import MAX_MUD_BYTES

    raw = read_file_bounded(arguments.file, limit_bytes=MAX_MUD_BYTES)
    with translate_os_errors(arguments.file):
        retrieved = dates.datetime.fromtimestamp(arguments.file.stat().st_mtime, tz=dates.UTC)
    if (arguments.signature is None) is not (arguments.trust is None):
        raise MudUnsigned("--signature and --trust go together")
    if arguments.signature is not None:
        if arguments.insecure_unsigned:
            raise MudUnsigned("--insecure-unsigned does not go with --signature")
        return raw, _verify(arguments, raw), retrieved
    if must_be_signed and not arguments.insecure_unsigned:
        raise MudUnsigned(f"{arguments.file.name} comes without a signature")
    return raw, None, retrieved


def _verify(arguments: argparse.Namespace, raw: bytes) -> str:
    from cryptography import x509

    from tidegate.base.durable import read_file_bounded
    from tidegate.firewall.errors import MudSignatureBad
    from tidegate.firewall.mud_signature import MAX_ANCHOR_BYTES, MAX_SIGNATURE_BYTES, verify_mud

    idevid = None
    if arguments.idevid is not None:
        try:
            idevid = x509.load_pem_x509_certificate(read_file_bounded(arguments.idevid, limit_bytes=_MAX_KEY_BYTES))
        except ValueError as error:
            raise MudSignatureBad(f"{arguments.idevid.name} is no certificate in PEM: {error}") from error
    return verify_mud(
        raw,
        read_file_bounded(arguments.signature, limit_bytes=MAX_SIGNATURE_BYTES),
        anchors=read_file_bounded(arguments.trust, limit_bytes=MAX_ANCHOR_BYTES),
        now=_now(),
        idevid=idevid,
    ).signer


def _site(arguments: argparse.Namespace) -> Site:
    from tidegate.firewall.mud_import import Role, Site

    given = [_split(word) for word in (*arguments.controller, *arguments.manufacturer, *arguments.model)]
    return Site(
        role=Role(arguments.role),
        device=tuple(arguments.device),
        gateway=tuple(arguments.gateway_address),
        my_controller=_peers(arguments.my_controller),
        local_networks=_peers(arguments.local_networks),
        same_manufacturer=_peers(arguments.same_manufacturer),
        classes={name: _peers(peers) for name, peers in given},
        zone=arguments.zone,
        far_zone=arguments.to_zone,
        name=arguments.name,
        partial=arguments.partial,
        any_source_port=arguments.any_source_port,
    )


def _split(word: str, *, last: bool = True) -> tuple[str, str]:
    """Return both sides of the last ``=``, or the first: a URI can have some of its own."""
    from tidegate.firewall.errors import MudPeers

    name, found, value = word.rpartition("=") if last else word.partition("=")
    if not found or not name or not value:
        raise MudPeers(f"{word!r} is not written NAME=VALUE")
    return name, value


def _peers(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _read_section(path: Path) -> FirewallSection:
    from tidegate.base.durable import read_file_bounded
    from tidegate.firewall.errors import MudExport
    from tidegate.policy.document import MAX_POLICY_BYTES, parse_policy

    text = read_file_bounded(path, limit_bytes=MAX_POLICY_BYTES).decode(errors="replace")
    section = parse_policy(text, name=path.name).firewall
    if section is None:
        raise MudExport(f"{path.name} has no [firewall] section")
    return section


def _write(path: Path | None, text: str, output: Output) -> None:
    if path is None:
        output.line(text.rstrip())
        return
    from tidegate.base.durable import write_file_atomic

    write_file_atomic(path, text.encode())
    output.line(f"Written: {path}")


def _show(output: Output, findings: Iterable[Finding]) -> None:
    for one in findings:
        _complain(output, f"{one.kind}: {one.where}: {one.message}")


def _complain(output: Output, text: str) -> None:
    """Say it beside the document, which may be piped into a file."""
    if not output.as_json:
        print(text, file=sys.stderr)


def _rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [{"kind": one.kind, "where": one.where, "message": one.message} for one in findings]


def _spans(ports: Sequence[Span]) -> str:
    return ", ".join(str(one.first) if one.first == one.last else f"{one.first}-{one.last}" for one in ports)


def _now() -> datetime.datetime:
    import datetime as dates

    return dates.datetime.now(tz=dates.UTC)
