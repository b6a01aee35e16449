"""``tidegate identity``: enrol, renew, move, show and reset the device's certificate; keep it alive as a service."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    import ssl

    from cryptography import x509

    from tidegate.pki.identity import Endpoint, Record
    from tidegate.pki.identity_flow import IdentityReport, Keeper
    from tidegate.pki.identity_store import Credential, IdentityStore

DEFAULT_FOLDER = Path("/var/lib/tidegate/identity")
_MAX_ANCHOR_BYTES = 262_144
_LONGEST_SLEEP_S = 600.0  # the clock may jump: look at it again by then


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    enrol = add_verb(verbs, "enrol", "ask an EST server for this device's certificate, with its IDevID or a token")
    _add_store(enrol)
    _add_endpoint(enrol, required=True)
    _add_bootstrap(enrol)
    enrol.set_defaults(run=run_enrol)
    renew = add_verb(verbs, "renew", "renew the certificate if it is due")
    _add_store(renew)
    _add_bootstrap(renew)
    renew.add_argument("--force", action="store_true", help="renew although it is not due")
    renew.set_defaults(run=run_renew)
    move = add_verb(verbs, "move", "enrol at another server; the old certificate serves until the new one worked")
    _add_store(move)
    _add_endpoint(move, required=True)
    _add_bootstrap(move)
    move.set_defaults(run=run_move)
    run = add_verb(verbs, "run", "keep the certificate alive until SIGTERM")
    _add_store(run)
    _add_endpoint(run, required=False)
    _add_bootstrap(run)
    run.add_argument("--set-clock", action="store_true", help="set the system's clock to the clock floor if behind it")
    run.set_defaults(run=run_service)
    status = add_verb(verbs, "status", "say what the identity is; exit code 1 if there is no usable certificate")
    status.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"default {DEFAULT_FOLDER}")
    status.set_defaults(run=show_status)
    show = add_verb(verbs, "show", "show the certificates of the chain in force")
    show.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"default {DEFAULT_FOLDER}")
    show.set_defaults(run=show_chain)
    export = add_verb(verbs, "export", "write the chain in force as PEM")
    export.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"default {DEFAULT_FOLDER}")
    export.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    export.set_defaults(run=export_chain)
    reset = add_verb(verbs, "reset", "destroy every certificate and key since delivery; the IDevID stays")
    _add_store(reset)
    reset.add_argument("--retire", action="store_true", help="for ever: this identity cannot enrol again")
    reset.add_argument("--yes", action="store_true", required=True, help="confirm: there is no way back")
    reset.set_defaults(run=run_reset)


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help=f"default {DEFAULT_FOLDER}")
    parser.add_argument("--keys", required=True, help="store of the device's keys as a URI (docs/keys.md)")
    parser.add_argument("--algorithm", default="ecdsa-p256", help="of new keys: ecdsa-p256 (default), ecdsa-p384, …")
    parser.add_argument(
        "--events", type=Path, help="folder of an event log of its own for what happens (default: none)"
    )
    parser.add_argument("--event-key", help="key URI that signs that log")


def _add_endpoint(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--url", required=required, help="the EST server: https://HOST[:PORT][/LABEL]")
    parser.add_argument("--anchors", type=Path, required=required, help="PEM: what it and its certificates lead to")


def _add_bootstrap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--idevid", default="identity", help="name of the IDevID's key (default identity)")
    parser.add_argument("--idevid-chain", type=Path, help="PEM, where the provider keeps no certificates")
    parser.add_argument("--token-file", type=Path, help="private file with a one-time token (/dev/fd/N works)")
    parser.add_argument("--serial", help="the device's serial number, with a token")
    parser.add_argument(
        "--without-clock",
        action="store_true",
        help="the device has no clock: take a server whose certificate is not valid yet by the clock floor",
    )


def run_enrol(arguments: argparse.Namespace, output: Output) -> int:
    """Enrol now."""
    from tidegate.pki.errors import IdentityTransition
    from tidegate.pki.identity import trusted_now_s

    endpoint = _endpoint(arguments)
    with _opened(arguments, output, endpoint) as (keeper, store):
        active = store.record.active
        if active is not None and trusted_now_s(store.record, time.time()) <= active.not_after_s:
            raise IdentityTransition("there is a valid certificate; use renew or move", state=store.record.state.value)
        if store.record.pending is None or store.record.pending.endpoint != endpoint:
            keeper.begin(endpoint)
        keeper.run_until_settled()
        return _tell(store.record, output)


def run_renew(arguments: argparse.Namespace, output: Output) -> int:
    """Renew now if due or forced."""
    with _opened(arguments, output, None) as (keeper, store):
        if arguments.force and store.record.pending is None and store.record.active is not None:
            keeper.begin(store.record.active.endpoint)
        keeper.run_until_settled()
        return _tell(store.record, output)


def run_move(arguments: argparse.Namespace, output: Output) -> int:
    """Enrol elsewhere."""
    endpoint = _endpoint(arguments)
    with _opened(arguments, output, endpoint) as (keeper, store):
        if store.record.pending is None or store.record.pending.endpoint != endpoint:
            keeper.begin(endpoint)
        keeper.run_until_settled()
        return _tell(store.record, output)


def run_service(arguments: argparse.Namespace, output: Output) -> int:
    """Take step after step; systemd restarts us should the storage fail.

    The signals that end it are waited for, not handled: no step is broken off, and none takes longer than its
    connection's deadlines.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    endpoint = _endpoint(arguments) if arguments.url else None
    with _opened(arguments, output, endpoint) as (keeper, store):
        if endpoint is not None:
            keeper.follow()
        wait_s = 0.0
        while signal.sigtimedwait(ends, min(wait_s, _LONGEST_SLEEP_S)) is None:
            if arguments.set_clock:
                _set_clock(store.record.floor_s)
            wait_s = keeper.step()
    return 0


def run_reset(arguments: argparse.Namespace, output: Output) -> int:
    """Forget everything since delivery."""
    from tidegate.cli.keyuri import open_keys
    from tidegate.pki.identity import Event, forget
    from tidegate.pki.identity_flow import IdentityReport
    from tidegate.pki.identity_store import IdentityStore

    event = Event.RETIRE if arguments.retire else Event.RESET
    keys, _ = open_keys(arguments.keys)
    with (
        contextlib.closing(keys),
        _opened_events(arguments) as tell,
        IdentityStore(arguments.folder, keys, for_reset=True) as store,
    ):
        store.claim()
        store.change(lambda record: forget(record, event))
        store.clean()
        message = "every certificate and key since delivery is gone"
        tell(IdentityReport(kind=event.value, state=store.record.state.value, generation=None, message=message))
        output.line(message)
        output.result({"state": store.record.state.value})
    return 0


def show_status(arguments: argparse.Namespace, output: Output) -> int:
    """Say what the identity is, from its record alone."""
    from tidegate.pki.identity_store import read_record

    return _tell(read_record(arguments.folder), output)


def show_chain(arguments: argparse.Namespace, output: Output) -> int:
    """Show the chain."""
    from tidegate.pki.identity_store import read_record

    rows = [
        {
            "subject": one.subject.rfc4514_string(),
            "issuer": one.issuer.rfc4514_string(),
            "serial": f"{one.serial_number:x}",
            "not_before": one.not_valid_before_utc.isoformat(),
            "not_after": one.not_valid_after_utc.isoformat(),
        }
        for one in _chain(read_record(arguments.folder))
    ]
    for row in rows:
        for name, value in row.items():
            output.line(f"{name:12} {value}")
        output.line()
    output.result({"chain": rows})
    return 0


def export_chain(arguments: argparse.Namespace, output: Output) -> int:
    """Write the chain."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.pki.certificate import encode_pem
    from tidegate.pki.identity_store import read_record

    chain = _chain(read_record(arguments.folder))
    write_file_atomic(arguments.output, encode_pem(*chain))
    output.line(f"wrote {len(chain)} certificates to {arguments.output}")
    output.result({"certificates": len(chain), "path": str(arguments.output)})
    return 0


def _chain(record: Record) -> list[x509.Certificate]:
    from cryptography import x509

    from tidegate.pki.errors import IdentityMissing

    if record.active is None:
        raise IdentityMissing("there is no certificate yet")
    return [x509.load_der_x509_certificate(one) for one in record.active.chain]


def _tell(record: Record, output: Output) -> int:
    """Show the record; 1 where nothing in it can be used now."""
    from tidegate.pki.identity import trusted_now_s

    now_s = trusted_now_s(record, time.time())
    active = record.active
    usable = active is not None and now_s <= active.not_after_s
    answer: dict[str, object] = {
        "state": record.state.value,
        "usable": usable,
        "failures": record.failures,
        "clock_floor": _moment(record.floor_s),
    }
    if active is not None:
        certificate = _chain(record)[0]
        answer |= {
            "generation": active.number,
            "key": active.key_name,
            "subject": certificate.subject.rfc4514_string(),
            "serial": f"{certificate.serial_number:x}",
            "server": f"{active.endpoint.host}:{active.endpoint.port}",
            "not_after": _moment(active.not_after_s),
            "renew_at": _moment(record.renew_at_s),
        }
    if record.pending is not None:
        answer["under_way"] = {
            "generation": record.pending.number,
            "issued": bool(record.pending.chain),
            "retry_at": _moment(record.retry_at_s),
        }
    for name, value in answer.items():
        output.line(f"{name:12} {value}")
    output.result(answer)
    return 0 if usable else 1


@contextlib.contextmanager
def _opened(
    arguments: argparse.Namespace, output: Output, endpoint: Endpoint | None
) -> Iterator[tuple[Keeper, IdentityStore]]:
    """Open store, keys and identity; without ``endpoint`` the one in force counts."""
    from tidegate.base.clock import SystemClock, SystemEntropy
    from tidegate.cli.keyuri import open_keys
    from tidegate.crypto.signing import parse_algorithm
    from tidegate.pki.errors import IdentityMissing
    from tidegate.pki.identity_flow import Keeper
    from tidegate.pki.identity_store import IdentityStore

    keys, _ = open_keys(arguments.keys)
    try:
        bootstrap = _bootstrap(arguments, keys)
        with (
            _opened_events(arguments) as tell,
            IdentityStore(arguments.folder, keys, algorithm=parse_algorithm(arguments.algorithm)) as store,
        ):

            def report(told: IdentityReport) -> None:
                _log(told, output)
                tell(told)

            record = store.record
            known = record.active or record.pending
            chosen = endpoint or (known.endpoint if known else None)
            if chosen is None:
                raise IdentityMissing("no server is known: enrol first, or give --url and --anchors")
            keeper = Keeper(
                store,
                _connector(arguments, lambda: store.record),
                endpoint=chosen,
                bootstrap=bootstrap,
                clock=SystemClock(),
                entropy=SystemEntropy(),
                report=report,
            )
            yield keeper, store
    finally:
        keys.close()


@contextlib.contextmanager
def _opened_events(arguments: argparse.Namespace) -> Iterator[Callable[[IdentityReport], None]]:
    """Yield what writes each step into the event log that the arguments name, if they do."""
    from tidegate.base.clock import SystemEntropy
    from tidegate.base.errors import TidegateError
    from tidegate.cli.keyuri import open_key
    from tidegate.events.catalogue import identity_changed
    from tidegate.events.spool import EventLog

    if arguments.events is None:
        yield lambda _: None
        return
    log = EventLog(
        arguments.events,
        device_id=getattr(arguments, "serial", None) or "identity",
        boot_id=SystemEntropy().random_bytes(8).hex(),  # of this run
        signer=open_key(arguments.event_key) if arguments.event_key else None,
    )

    def tell(told: IdentityReport) -> None:
        event = identity_changed(
            kind=told.kind, state=told.state, generation=told.generation, message=told.message, code=told.code
        )
        try:
            log.append(event)
        except TidegateError as error:  # a full log must not cost the device its certificate; the journal has both
            print(f"event not written: {error.message} [{error.code}]", file=sys.stderr, flush=True)

    with log:
        yield tell


def _bootstrap(arguments: argparse.Namespace, keys: Any) -> Credential | None:
    """Return the IDevID, None where a token takes its place or nothing is known of one."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from tidegate.base.durable import read_file_bounded
    from tidegate.keys.errors import KeyMissing
    from tidegate.pki.errors import CertificateMalformed, IdentityMissing
    from tidegate.pki.identity_store import idevid_credential

    if arguments.token_file is not None:
        return None
    chain: list[bytes] = []
    if arguments.idevid_chain is not None:
        try:
            found = x509.load_pem_x509_certificates(
                read_file_bounded(arguments.idevid_chain, limit_bytes=_MAX_ANCHOR_BYTES)
            )
        except ValueError as error:
            raise CertificateMalformed(f"{arguments.idevid_chain} holds no certificates") from error
        chain = [one.public_bytes(Encoding.DER) for one in found]
    try:
        return idevid_credential(keys, arguments.idevid, chain)
    except (KeyMissing, IdentityMissing):
        return None


def _connector(arguments: argparse.Namespace, record: Callable[[], Record]) -> Any:
    """Return how to reach an EST server: with the credential given, else with the token.

    The server is verified by the system's clock, or by the record's floor where that clock stands in the past.
    """
    from tidegate.base.clock import SystemClock
    from tidegate.keys.uri import read_passphrase
    from tidegate.pki.enrolment import EstEnrolment
    from tidegate.pki.errors import EstUnauthenticated
    from tidegate.pki.est_client import EstClient, Token
    from tidegate.tls.context import client_context
    from tidegate.tls.https import connect_at

    token = None
    if arguments.token_file is not None:
        if not arguments.serial:
            raise EstUnauthenticated("a token is for one device: give its --serial")
        token = Token(device=arguments.serial, secret=read_passphrase(arguments.token_file))

    @contextlib.contextmanager
    def connect(endpoint: Endpoint, credential: Credential | None) -> Iterator[EstEnrolment]:
        if credential is None and token is None:
            raise EstUnauthenticated("there is neither a valid certificate, nor an IDevID, nor a token")
        signer, chain = (credential.signer, credential.chain) if credential else (None, ())

        def context(at_s: float | None) -> ssl.SSLContext:
            return client_context(signer, chain, anchors=endpoint.anchors, at_s=at_s)

        place = (endpoint.host, endpoint.port)
        with connect_at(*place, context, record().floor_s, patient=arguments.without_clock) as transport:
            client = EstClient(transport, label=endpoint.label)
            yield EstEnrolment(
                client,
                chain=chain,
                anchors=endpoint.anchors,
                token=token if credential is None else None,
                clock=SystemClock(),
            )

    return connect


def _endpoint(arguments: argparse.Namespace) -> Endpoint:
    from urllib.parse import urlsplit

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from tidegate.base.durable import read_file_bounded
    from tidegate.pki.errors import CertificateMalformed, EstUrlMalformed
    from tidegate.pki.identity import Endpoint

    if arguments.anchors is None:
        raise EstUrlMalformed("--url needs --anchors")
    try:
        parts = urlsplit(arguments.url)
        port = parts.port or 443
    except ValueError as error:
        raise EstUrlMalformed(f"{arguments.url!r} is no URL") from error
    label = parts.path.strip("/")
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.query or "/" in label:
        raise EstUrlMalformed(f"{arguments.url!r} is no https://HOST[:PORT][/LABEL]")
    try:
        found = x509.load_pem_x509_certificates(read_file_bounded(arguments.anchors, limit_bytes=_MAX_ANCHOR_BYTES))
    except ValueError as error:
        raise CertificateMalformed(f"{arguments.anchors} holds no certificates") from error
    anchors = tuple(one.public_bytes(Encoding.DER) for one in found)
    return Endpoint(host=parts.hostname, port=port, label=label, anchors=anchors)


def _log(report: IdentityReport, output: Output) -> None:
    """Say one line, for a person or, with --json, for a journal; results alone go to standard output."""
    code = f" [{report.code}]" if report.code else ""
    stream = sys.stderr if output.as_json else sys.stdout
    print(
        f"{report.kind}: {report.message}{code} (identity {report.generation}, {report.state})", file=stream, flush=True
    )


def _set_clock(floor_s: int) -> None:
    """Set the system's clock to the floor if it stands before it; TLS judges certificates by that clock."""
    from tidegate.base.errors import NotRoot

    if time.time() >= floor_s:
        return
    try:
        time.clock_settime(time.CLOCK_REALTIME, floor_s)
    except PermissionError as error:
        raise NotRoot("setting the clock needs CAP_SYS_TIME") from error


def _moment(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, tz=datetime.UTC).isoformat()
