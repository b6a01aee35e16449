"""``tidegate ca serve``: the CA's EST server, and its CRL and OCSP over plain HTTP, until SIGTERM.

Every act and refusal is one line of JSON on standard output (systemd's journal keeps them). Acts go into the CA's event
log as well, and so do refusals that are about an identity.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.cli.ca_open import CaEvents, add_responder, add_store, opened_with_events, read_chain
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from cryptography import x509

    from tidegate.pki.authority import Authority, CaReport
    from tidegate.pki.est_server import EstRefusal, EstServer
    from tidegate.pki.registrar import Conditions
    from tidegate.pki.revocation import VerifiedCrl
    from tidegate.tls.asgi import HttpServer

_MOST_A_MINUTE = 1_000_000
_REFUSALS_A_MINUTE = 20.0
# refusals that tell of somebody whose token, certificate or name is not right
_IDENTITY_CODES = (
    "pki.token.",
    "pki.certificate.",
    "pki.path.",
    "pki.est.identity",
    "pki.est.binding",
    "pki.est.renewal",
)


def add_serve(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb to ``tidegate ca``."""
    serve = add_verb(verbs, "serve", "run the EST server, and CRL and OCSP on a second port, until SIGTERM")
    add_store(serve, key=True)
    add_responder(serve)
    serve.add_argument("--tls-key", required=True, help="the server's own key as a URI")
    serve.add_argument("--tls-chain", type=Path, required=True, help="PEM: the server's certificate, then those above")
    serve.add_argument("--listen", default="127.0.0.1:8443", help="HOST:PORT of EST (default 127.0.0.1:8443)")
    serve.add_argument("--status-listen", help="HOST:PORT of CRL (/crl) and OCSP (/ocsp), in plain HTTP")
    serve.add_argument("--idevid-anchors", type=Path, help="PEM: CAs of makers whose IDevIDs may enrol")
    serve.add_argument("--idevid-crl", type=Path, action="append", default=[], help="their CRL in DER; may be repeated")
    serve.add_argument("--extra", type=Path, help="PEM: what cacerts gives besides the chain, in a rollover")
    serve.add_argument("--previous", type=Path, help="PEM: this CA's earlier certificates; theirs are renewed here")
    serve.add_argument("--label", action="append", default=[], help="answer below this EST label too; may be repeated")
    serve.add_argument("--lifetime-days", type=float, help="of device certificates (default: the profile's)")
    serve.add_argument("--require-binding", action="store_true", help="refuse requests not bound to their connection")
    serve.add_argument("--device-rate", type=_rate, default=2.0, help="certificates a minute for a device (default 2)")
    serve.add_argument(
        "--address-rate", type=_rate, default=60.0, help="requests a minute from an address (default 60)"
    )
    serve.set_defaults(run=serve_ca)


def serve_ca(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001  # every verb has this form
    """Serve; 0 after SIGTERM or SIGINT."""
    with opened_with_events(arguments, watch=_tell_act) as (authority, events):
        asyncio.run(_serve(arguments, authority, events))
    return 0


async def _serve(arguments: argparse.Namespace, authority: Authority, events: CaEvents) -> None:
    from tidegate.base.clock import SystemClock
    from tidegate.pki.status_server import StatusServer
    from tidegate.tls.asgi import HttpServer

    est, status = _est(arguments, authority, events), StatusServer(authority, clock=SystemClock())
    context = _context(arguments, authority)
    listener = _listener(arguments.listen)
    servers = [HttpServer(est, listener, context, report_handshake=lambda why: _log("tls.refused", message=why))]
    _log("est.listening", address=_shown(listener.getsockname()))
    if arguments.status_listen:
        listener = _listener(arguments.status_listen)
        servers.append(HttpServer(status, listener, None))
        _log("status.listening", address=_shown(listener.getsockname()))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, servers)
    async with asyncio.TaskGroup() as group:
        for server in servers:
            group.create_task(server.serve())
    est.close()
    status.close()
    _log("stopped")


def _est(arguments: argparse.Namespace, authority: Authority, events: CaEvents) -> EstServer:
    from tidegate.base.clock import SystemClock
    from tidegate.pki.est_server import EstServer
    from tidegate.pki.rate import Rate
    from tidegate.pki.registrar import CaRegistrar

    registrar = CaRegistrar(
        authority,
        clock=SystemClock(),
        conditions=_conditions(arguments),
        extra=_optional(arguments.extra),
        previous=_optional(arguments.previous),
    )
    return EstServer(
        registrar,
        clock=SystemClock(),
        report=_refusals(events),
        labels=frozenset({"", *arguments.label}),
        rate=Rate(burst=max(60, int(arguments.address_rate)), per_minute=arguments.address_rate),
    )


def _refusals(events: CaEvents) -> Callable[[EstRefusal], None]:
    """Return who hears of refusals: the journal of all, the event log of those that are about an identity.

    An event of an alert's rank is durable at once: nobody gets more than 20 a minute into the log from one address.
    """
    from tidegate.base.clock import SystemClock
    from tidegate.base.errors import TidegateError
    from tidegate.pki.rate import Rate, RateLimit

    limit, clock = RateLimit(Rate(burst=int(_REFUSALS_A_MINUTE), per_minute=_REFUSALS_A_MINUTE)), SystemClock()

    def report(refusal: EstRefusal) -> None:
        _log("est.refused", **_plain(refusal))
        if not refusal.code.startswith(_IDENTITY_CODES) or limit.take(refusal.address, clock.monotonic_s()):
            return
        try:
            events.refused(refusal)
        except TidegateError as error:  # the peer is refused all the same; the journal has it
            _log("events.failed", code=error.code, message=error.message)

    return report


def _stop(servers: Sequence[HttpServer]) -> None:
    for server in servers:
        server.stop()


def _conditions(arguments: argparse.Namespace) -> Conditions:
    from tidegate.pki.rate import Rate
    from tidegate.pki.registrar import Conditions

    anchors = _optional(arguments.idevid_anchors)
    rate = Rate(burst=max(20, int(arguments.device_rate)), per_minute=arguments.device_rate)
    return Conditions(
        lifetime=_lifetime(arguments.lifetime_days),
        idevid_anchors=tuple(_der(one) for one in anchors),
        lists=_Lists(arguments.idevid_crl, anchors),
        binding_required=arguments.require_binding,
        rate=rate,
    )


class _Lists:
    """The makers' revocation lists, read again whenever one of the files changed; none of them may be stale."""

    def __init__(self, paths: Sequence[Path], issuers: Sequence[x509.Certificate]) -> None:
        self._paths, self._issuers = list(paths), issuers
        self._seen: dict[Path, tuple[int, VerifiedCrl]] = {}
        self()  # a list that cannot be used stops the start, not a device

    def __call__(self) -> Sequence[VerifiedCrl]:
        from tidegate.base.durable import read_file_bounded, translate_os_errors
        from tidegate.pki.revocation import MAX_CRL_BYTES

        found = []
        for path in self._paths:
            with translate_os_errors(path):
                changed = path.stat().st_mtime_ns
            known = self._seen.get(path)
            if known is None or known[0] != changed or known[1].next_update <= datetime.datetime.now(tz=datetime.UTC):
                raw = read_file_bounded(path, limit_bytes=MAX_CRL_BYTES)
                known = self._seen[path] = (changed, self._verify(raw, path))
            found.append(known[1])
        return found

    def _verify(self, raw: bytes, path: Path) -> VerifiedCrl:
        from cryptography import x509

        from tidegate.base.errors import Rejected
        from tidegate.pki.errors import CrlMalformed
        from tidegate.pki.revocation import verify_crl

        try:
            named = x509.load_der_x509_crl(raw).issuer
        except (ValueError, x509.InvalidVersion) as error:
            raise CrlMalformed(f"{path} is no CRL in DER") from error
        refusal: Rejected = CrlMalformed(f"{path} is the list of none of the --idevid-anchors")
        for issuer in (one for one in self._issuers if one.subject == named):  # a maker's CA may have had two keys
            try:
                return verify_crl(raw, issuer=issuer, now=datetime.datetime.now(tz=datetime.UTC))
            except Rejected as error:
                refusal = error
        raise refusal


def _context(arguments: argparse.Namespace, authority: Authority) -> Any:
    """Return the server's TLS context; who comes with a certificate has to have one of the makers' or of this CA."""
    from tidegate.cli.keyuri import open_key
    from tidegate.tls.context import server_context

    anchors = (*_optional(arguments.previous), *_optional(arguments.idevid_anchors))
    return server_context(
        open_key(arguments.tls_key),
        [_der(one) for one in read_chain(arguments.tls_chain)],
        clients=[_der(one) for one in (authority.certificate, *anchors)],
        clients_required=False,
    )


def _optional(path: Path | None) -> Sequence[x509.Certificate]:
    return read_chain(path) if path else ()


def _der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _lifetime(days: float | None) -> datetime.timedelta | None:
    """Return the lifetime of device certificates; what no profile allows stops the start, not each device."""
    from tidegate.pki.errors import ProfileRefused
    from tidegate.pki.profiles import PROFILES

    longest = PROFILES["ldevid"].longest
    if days is None:
        return None
    if longest is None or not 0 < days <= longest.days:
        raise ProfileRefused(f"device certificates live more than 0 and at most {longest.days if longest else 0} days")
    return datetime.timedelta(days=days)


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= _MOST_A_MINUTE:
        raise argparse.ArgumentTypeError(f"{text} is no rate: more than 0 and at most {_MOST_A_MINUTE} a minute")
    return rate


def _listener(text: str) -> socket.socket:
    from tidegate.tls.asgi import open_listener
    from tidegate.tls.errors import HttpUnreachable

    try:
        return open_listener(*_place(text))
    except OSError as error:
        raise HttpUnreachable(f"cannot listen on {text}: {error.strerror or error}", peer=text) from error


def _place(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT; an IPv6 address stands in brackets."""
    from tidegate.pki.errors import EstUrlMalformed

    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535 or not host:
        raise EstUrlMalformed(f"{text!r} is no HOST:PORT")
    return host.strip("[]"), int(port)


def _shown(name: Sequence[Any]) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _plain(record: Any) -> dict[str, object]:
    """Return a record's fields as plain values; ``act`` is in the line's kind already."""
    import dataclasses

    return {name: value for name, value in dataclasses.asdict(record).items() if name != "act"}


def _tell_act(report: CaReport) -> None:
    _log(f"ca.{report.act.value}", **_plain(report))


def _log(kind: str, **fields: object) -> None:
    moment = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="milliseconds")
    sys.stdout.write(json.dumps({"time": moment, "kind": kind, **fields}, default=str) + "\n")
    sys.stdout.flush()
