"""A CA on the command line: its folder, its key, its event log."""

from __future__ import annotations

import argparse
import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from cryptography import x509

    from tidegate.crypto.signing import Signer
    from tidegate.events.model import Event
    from tidegate.events.spool import EventLog
    from tidegate.pki.authority import Authority, CaReport
    from tidegate.pki.ca_store import CaStore
    from tidegate.pki.est_server import EstRefusal
    from tidegate.pki.ocsp import Responder

CHAIN = "chain.pem"  # in the CA's folder: its own certificate, then those above it
_EVENTS = "events"
_LOG_WAIT_S = 0.5  # a server that keeps the log open reports our acts for us


class CaEvents:
    """The CA's event log, opened at the first act; while another process has it, acts stay in the store for that one.

    ``report`` goes to an ``Authority``. Close it before the store, so that nothing is struck out before it is durable.
    """

    def __init__(self, folder: Path, certificate: x509.Certificate, signer: Signer | None) -> None:
        """``signer`` signs the log's checkpoints; without one nothing proves that the log is whole."""
        self._folder, self._certificate, self._signer = folder / _EVENTS, certificate, signer
        self._log: EventLog | None = None
        self._lock = threading.Lock()  # a server's acts and its refusals come from two threads

    def report(self, report: CaReport) -> None:
        """Append one act; raise ``events.spool.busy``, ``base.storage.*``."""
        from tidegate.events.catalogue import certificate_act

        self._append(
            certificate_act(
                act=report.act.value,
                serial=report.serial,
                profile=report.profile,
                subject=report.subject,
                detail=report.reason,
            )
        )

    def refused(self, refusal: EstRefusal) -> None:
        """Append one refusal of the EST server; raise ``events.spool.busy``, ``base.storage.*``."""
        from tidegate.events.catalogue import enrolment_refused

        self._append(
            enrolment_refused(
                operation=refusal.operation, source=refusal.address, code=refusal.code, message=refusal.message
            )
        )

    def close(self) -> None:
        """Make everything durable; harmless when repeated."""
        with self._lock:
            if self._log is not None:
                self._log.close()
                self._log = None

    def _append(self, event: Event) -> None:
        with self._lock:
            if self._log is None:
                self._log = self._open()
            self._log.append(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> EventLog:
        import hashlib

        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        from tidegate.base.clock import SystemEntropy
        from tidegate.events.spool import EventLog

        key = self._certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return EventLog(
            self._folder,
            device_id=f"ca-{hashlib.sha256(key).hexdigest()[:16]}",
            boot_id=SystemEntropy().random_bytes(8).hex(),  # of this run
            signer=self._signer,
            wait_s=_LOG_WAIT_S,
        )


def add_store(verb: argparse.ArgumentParser, *, key: bool) -> None:
    """Add what names the CA; with ``key`` also what it signs with."""
    verb.add_argument("--store", type=Path, required=True, help="the CA's folder")
    if key:
        verb.add_argument("--key", required=True, help="the CA's key as a URI")
    verb.add_argument("--chain", type=Path, help="PEM: the CA's certificate, then those above (default: in the folder)")
    verb.add_argument("--event-key", help="key URI that signs the CA's event log")
    verb.add_argument("--crl-url", default="", help="where certificates from here say the CRL is")
    verb.add_argument("--ocsp-url", default="", help="where certificates from here say OCSP is answered")


def add_responder(verb: argparse.ArgumentParser) -> None:
    """Add what names a responder that answers OCSP in the CA's place."""
    verb.add_argument(
        "--responder-key", help="key URI of a responder (profile ocsp-responder); else the CA signs itself"
    )
    verb.add_argument("--responder-certificate", type=Path, help="its certificate (PEM)")


def open_responder(arguments: argparse.Namespace, issuer: x509.Certificate) -> Responder | None:
    """Return the responder that the arguments name; raise ``pki.issuer.mismatch`` for half of one or another CA's."""
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.errors import IssuerMismatch
    from tidegate.pki.keyadapter import library_public_key
    from tidegate.pki.ocsp import Responder

    key, path = getattr(arguments, "responder_key", None), getattr(arguments, "responder_certificate", None)
    if key is None and path is None:
        return None
    if key is None or path is None:
        raise IssuerMismatch("a responder has a key and a certificate: name both")
    signer, certificate = open_key(key), read_chain(path)[0]
    if certificate.issuer != issuer.subject or certificate.public_key() != library_public_key(signer.public_key):
        raise IssuerMismatch("the responder's certificate is another CA's, or for another key")
    return Responder(issuer=issuer, certificate=certificate, signer=signer)


@contextlib.contextmanager
def opened_store(folder: Path) -> Iterator[CaStore]:
    """Yield the CA's store."""
    from tidegate.pki.ca_store import CaStore

    with CaStore(folder) as store:
        yield store


@contextlib.contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Authority]:
    """Yield the CA that the arguments name, its acts going into its event log."""
    with opened_with_events(arguments) as (authority, _):
        yield authority


@contextlib.contextmanager
def opened_with_events(
    arguments: argparse.Namespace, *, watch: Callable[[CaReport], None] = lambda _: None
) -> Iterator[tuple[Authority, CaEvents]]:
    """Yield the CA that the arguments name with its event log, into which its acts go, and then to ``watch``."""
    from tidegate.base.clock import SystemClock, SystemEntropy
    from tidegate.cli.keyuri import open_key
    from tidegate.pki.authority import Authority
    from tidegate.pki.profiles import Pointers

    chain = read_chain(arguments.chain or arguments.store / CHAIN)
    signer = open_key(arguments.key)
    with opened_store(arguments.store) as store, opened_events(arguments, chain[0]) as events:

        def report(act: CaReport) -> None:
            events.report(act)
            watch(act)

        authority = Authority(
            chain,
            signer,
            store,
            clock=SystemClock(),
            entropy=SystemEntropy(),
            report=report,
            pointers=Pointers(crl_url=arguments.crl_url, ocsp_url=arguments.ocsp_url),
            responder=open_responder(arguments, chain[0]),
        )
        yield authority, events


def opened_events(arguments: argparse.Namespace, certificate: x509.Certificate) -> CaEvents:
    """Return the CA's event log."""
    from tidegate.cli.keyuri import open_key

    signer = open_key(arguments.event_key) if arguments.event_key else None
    return CaEvents(arguments.store, certificate, signer)


def read_chain(path: Path) -> Sequence[x509.Certificate]:
    """Return the certificates in a PEM file."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.pki.certificate import MAX_PEM_BYTES, parse_pem_chain

    return parse_pem_chain(read_file_bounded(path, limit_bytes=MAX_PEM_BYTES))


def write_chain(path: Path, certificates: Sequence[x509.Certificate]) -> None:
    """Write certificates as PEM."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.pki.certificate import encode_pem

    write_file_atomic(path, encode_pem(*certificates))
