"""A small HTTPS client: one connection, one given TLS context, bounded answers, deadlines, no redirects.

Touches: the network. Nothing is tried again here: whoever asks knows what may be repeated.
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from cryptography import x509

from tidegate.tls.errors import HttpMalformed, HttpTooLarge, HttpUnreachable, HttpUntrusted
from tidegate.tls.exporter import channel_binding

_CHUNK_BYTES = 65_536
_NOT_YET_VALID = 9  # X509_V_ERR_CERT_NOT_YET_VALID


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """An answer; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpsClient:
    """One connection to ``host``; who it is was verified by ``context`` before anything is sent.

    ``timeout_s`` bounds each wait, ``deadline_s`` the reading of a body. Every method raises ``tls.http.unreachable``
    (a refused or broken connection, a time out) and ``tls.http.untrusted`` (the server's certificate).
    """

    def __init__(
        self, host: str, port: int, context: ssl.SSLContext, *, timeout_s: float = 10.0, deadline_s: float = 30.0
    ) -> None:
        self._where = f"{host}:{port}"
        self._deadline_s = deadline_s
        self._connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Connect and shake hands, unless that is done already."""
        if self._connection.sock is None:
            with self._translated():
                self._connection.connect()

    def binding(self) -> bytes | None:
        """Return the channel binding of the connection, made first if need be; None where none is to be had."""
        self.connect()
        sock = self._connection.sock
        return channel_binding(sock) if isinstance(sock, ssl.SSLSocket) else None

    def unverified_peer(self) -> bytes:
        """Return the certificate (DER) that the server showed, verified as far as the context does; "" for none."""
        sock = self._connection.sock
        return (sock.getpeercert(binary_form=True) or b"") if isinstance(sock, ssl.SSLSocket) else b""

    def request(
        self, method: str, path: str, *, headers: Mapping[str, str], body: bytes = b"", limit_bytes: int
    ) -> HttpAnswer:
        """Return the answer to one request; raise also ``tls.http.too-large`` and ``tls.http.malformed``.

        A redirect is an answer like any other and not followed.
        """
        self.connect()
        end = time.monotonic() + self._deadline_s
        try:
            with self._translated():
                self._connection.request(method, path, body=body or None, headers=dict(headers))
                response = self._connection.getresponse()
                found = bytearray()
                while piece := response.read1(_CHUNK_BYTES):
                    found += piece
                    if len(found) > limit_bytes:
                        raise HttpTooLarge(f"{self._where} answers with more than {limit_bytes} bytes")
                    if time.monotonic() > end:
                        raise HttpUnreachable(f"{self._where} did not answer within {self._deadline_s:g} s")
                if response.length:  # more was promised
                    raise HttpUnreachable(f"{self._where} closed the connection in an answer")
                response.read()  # nothing is left; this lets http.client see it too
        except BaseException:
            self.close()  # what comes next on it would be the rest of this answer
            raise
        names = {name.lower(): value for name, value in response.getheaders()}
        return HttpAnswer(status=response.status, headers=names, body=bytes(found))

    def close(self) -> None:
        """Close the connection; the next request makes a new one."""
        self._connection.close()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise HttpUntrusted(
                f"{self._where}: {error.verify_message}", peer=self._where, verify_code=error.verify_code
            ) from error
        except OSError as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror or type(error).__name__
            raise HttpUnreachable(f"{self._where}: {reason}", peer=self._where) from error
        except (http.client.HTTPException, ValueError) as error:
            raise HttpMalformed(f"{self._where} does not speak HTTP/1.1", peer=self._where) from error


def connect_at(
    host: str, port: int, make_context: Callable[[float | None], ssl.SSLContext], floor_s: float, *, patient: bool
) -> HttpsClient:
    """Return an open connection to a server that was verified, by the system's clock if that will do.

    Only where the server's certificate is *not valid yet* by that clock, it is judged once more as of ``floor_s``, the
    device's clock floor, if that is later; and with ``patient``, for a device that has no clock, as of the moment from
    which the certificate is valid. What a patient device gives away: a stolen certificate that began after its clock
    floor and has ended since is not seen to have ended, as one that began before never was. Raises ``tls.http.*``.
    """
    moments: list[Callable[[], float | None]] = [lambda: None]
    if floor_s > time.time():
        moments.append(lambda: floor_s)
    if patient:
        moments.append(lambda: _unverified_not_before_s(host, port))
    for moment in moments[:-1]:
        try:
            return _connected(host, port, make_context(moment()))
        except HttpUntrusted as error:
            if error.fields.get("verify_code") != _NOT_YET_VALID:
                raise
    return _connected(host, port, make_context(moments[-1]()))


def _connected(host: str, port: int, context: ssl.SSLContext) -> HttpsClient:
    client = HttpsClient(host, port, context)
    client.connect()
    return client


def _unverified_not_before_s(host: str, port: int) -> float:
    """Return from when on the server's certificate claims to be valid; nothing is sent, and nobody was verified."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the connection that follows verifies it
    probe = HttpsClient(host, port, context)
    try:
        probe.connect()
        certificate = probe.unverified_peer()
        return x509.load_der_x509_certificate(certificate).not_valid_before_utc.timestamp()
    except ValueError as error:
        raise HttpMalformed(f"{host}:{port} shows no certificate") from error
    finally:
        probe.close()
