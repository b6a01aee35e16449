"""EST over HTTP as an ASGI application, with no framework; the TLS server around it says who is at the other end.

Touches: what ASGI hands over, and one worker thread in which the registrar signs and stores. Judging is the
``Registrar``'s; here are paths, methods, sizes, words and status numbers. To the peer one word is told, to ``report``
the whole story.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from cryptography import x509

from tidegate.base.clock import Clock
from tidegate.base.errors import Fault, Rejected, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.pki import est
from tidegate.pki.errors import (
    EstBodyMalformed,
    EstContentTypeWrong,
    EstMethodWrong,
    EstOperationRefused,
    EstOperationUnknown,
    EstPending,
    EstRateExceeded,
    EstTooLarge,
    EstUnauthenticated,
)
from tidegate.pki.est import CsrAttributes, Operation
from tidegate.pki.rate import Rate, RateLimit

MAX_WAITING = 256  # requests before the one worker; at 100 a second none of them waits three seconds
_BUSY_S = 10
_MAX_CREDENTIALS = 512  # of a Basic header: a serial number and a token have 128


class PeerTls(Protocol):
    """What the TLS server knows of the peer: ``tidegate.tls.asgi.PeerTls``, or another server's equal."""

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The verified certificates it sent (DER, its own first), empty without one."""
        ...

    @property
    def binding(self) -> bytes | None:
        """The channel binding of the connection."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """A request for a certificate, with all that the one who judges it has to know."""

    label: str
    request: bytes
    renew: bool
    chain: tuple[bytes, ...]
    token: tuple[str, Secret] | None
    binding: bytes | None
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EstRefusal:
    """A request that was not answered as asked, for the operator; nothing in it is secret."""

    operation: str
    address: str
    code: str
    message: str
    status: int


class Registrar(Protocol):
    """Who judges; called in the worker thread only, one request at a time."""

    def authorities(self) -> Sequence[x509.Certificate]:
        """Return what devices may trust: the CA's certificates, in a rollover the old ones with the new."""
        ...

    def wanted(self) -> CsrAttributes:
        """Return what requests should have."""
        ...

    def enrol(self, application: Application) -> x509.Certificate:
        """Return the certificate, durably recorded; raise ``pki.*`` for everything that is not in order."""
        ...


# status and the one word for the peer; the first that matches counts
_ANSWERS: tuple[tuple[type[TidegateError], int, str], ...] = (
    (EstOperationUnknown, 404, "unknown"),
    (EstMethodWrong, 405, "method"),
    (EstOperationRefused, 501, "refused"),
    (EstContentTypeWrong, 415, "content-type"),
    (EstTooLarge, 413, "too-large"),
    (EstBodyMalformed, 400, "malformed"),
    (EstUnauthenticated, 401, "unauthenticated"),
    (EstPending, 202, "pending"),
    (EstRateExceeded, 429, "rate"),
    (Rejected, 403, "refused"),
    (Fault, 503, "busy"),
)


class EstServer:
    """The application. ``labels`` are the ones it answers below, the empty one is the path without a label.

    ``rate`` bounds what one address may ask for before it is known who it is.
    """

    def __init__(
        self,
        registrar: Registrar,
        *,
        clock: Clock,
        report: Callable[[EstRefusal], None],
        labels: frozenset[str] = frozenset({""}),
        rate: Rate | None = None,
    ) -> None:
        self._registrar, self._clock, self._report, self._labels = registrar, clock, report, labels
        self._rate = RateLimit(rate or Rate(burst=60, per_minute=60))
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="est")
        self._waiting = 0

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise EstOperationUnknown(f"EST does not speak {scope['type']}")
        try:
            content_type, body = await self._answer(scope, receive)
        except TidegateError as error:
            await self._refuse(scope, send, error)
            return
        headers = [(b"content-type", content_type.encode()), (b"content-transfer-encoding", b"base64")]
        await _send(send, 200, headers, est.encode_body(body))

    def close(self) -> None:
        """Finish what is being issued and end the worker."""
        self._worker.shutdown(wait=True)

    async def _answer(self, scope: Mapping[str, Any], receive: Any) -> tuple[str, bytes]:
        """Return content type and DER of the answer.

        1. The operation is one of ours. 2. So is the label. 3. The method is the operation's. 4. The address has not
        asked too often. 5. The body is of the right type and size. 6. The registrar judges.
        """
        label, operation = est.parse_path(str(scope["path"]).removeprefix(scope.get("root_path") or ""))  # 1
        if label not in self._labels:  # 2
            raise EstOperationUnknown(f"there is no label {label!r}")
        if operation in (Operation.SERVER_KEYGEN, Operation.FULL_CMC):
            raise EstOperationRefused(f"{operation.value} is not offered")
        if scope["method"] != operation.method:  # 3
            raise EstMethodWrong(f"{operation.value} is asked with {operation.method}", allow=operation.method)
        wait_s = self._rate.take(_address(scope), self._clock.monotonic_s())  # 4
        if wait_s:
            raise EstRateExceeded("the address asks too often", retry_after_s=wait_s)
        if operation is Operation.CACERTS:
            return est.CERTS_ONLY, est.encode_certificates(await self._work(self._registrar.authorities))
        if operation is Operation.CSR_ATTRS:
            return est.CSR_ATTRIBUTES, est.encode_csr_attributes(await self._work(self._registrar.wanted))
        headers = _headers(scope)
        est.check_content_type(headers.get("content-type"), est.PKCS10)  # 5
        request = est.decode_body(await _read(headers, receive), limit_bytes=est.MAX_REQUEST_BYTES)
        peer: PeerTls | None = scope.get("extensions", {}).get("tls")
        if peer is None:  # a token in clear would be everybody's
            raise EstUnauthenticated("certificates are asked for over TLS only")
        application = Application(
            label=label,
            request=request,
            renew=operation is Operation.SIMPLE_REENROLL,
            chain=peer.chain,
            token=_credentials(headers.get("authorization")),
            binding=peer.binding,
            address=_address(scope),
        )
        certificate = await self._work(lambda: self._registrar.enrol(application))  # 6
        return est.CERTS_ONLY, est.encode_certificates([certificate])

    async def _work(self, call: Callable[[], Any]) -> Any:
        """Call in the worker thread, unless too many are waiting for it already."""
        if self._waiting >= MAX_WAITING:
            raise EstRateExceeded("the server has more to do than it can", retry_after_s=_BUSY_S)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, call)
        finally:
            self._waiting -= 1

    async def _refuse(self, scope: Mapping[str, Any], send: Any, error: TidegateError) -> None:
        status, word = next(
            ((status, word) for kind, status, word in _ANSWERS if isinstance(error, kind)), (500, "failed")
        )
        refusal = EstRefusal(
            operation=str(scope["path"])[-80:],
            address=_address(scope),
            code=error.code,
            message=error.message,
            status=status,
        )
        self._report(refusal)
        headers = [(b"content-type", b"text/plain")]
        if status == 401:
            headers.append((b"www-authenticate", b'Basic realm="est"'))
        if status == 405:
            headers.append((b"allow", str(error.fields.get("allow")).encode()))
        if status in (202, 429, 503):
            headers.append((b"retry-after", str(error.fields.get("retry_after_s") or _BUSY_S).encode()))
        if status == 413:
            headers.append((b"connection", b"close"))  # the rest of the body is not read
        await _send(send, status, headers, word.encode() + b"\n")


async def _read(headers: Mapping[str, str], receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> bytes:
    """Return the body; raise ``pki.est.too-large`` before more than its limit was kept."""
    promised = headers.get("content-length", "0")
    if not promised.isdecimal() or int(promised[:20]) > est.MAX_REQUEST_BYTES:
        raise EstTooLarge(f"requests have at most {est.MAX_REQUEST_BYTES} bytes")
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise EstBodyMalformed("the peer hung up in its request")
        body += message.get("body", b"")
        more = bool(message.get("more_body", False))
        if len(body) > est.MAX_REQUEST_BYTES:
            raise EstTooLarge(f"requests have at most {est.MAX_REQUEST_BYTES} bytes")
    return bytes(body)


def _headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return the headers by lower-case name; of one that is repeated, nothing is left to guess: it is refused."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        if name in found and name in ("authorization", "content-type", "content-length"):
            raise EstBodyMalformed(f"the header {name} is there twice")
        found[name] = raw_value.decode("latin-1")
    return found


def _credentials(header: str | None) -> tuple[str, Secret] | None:
    """Return user and password of HTTP Basic (RFC 7617), None without the header."""
    if header is None:
        return None
    scheme, _, rest = header.partition(" ")
    if scheme.lower() != "basic" or len(rest) > _MAX_CREDENTIALS:
        raise EstUnauthenticated("the credentials are of another kind than Basic")
    try:
        user, colon, password = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, ValueError) as error:
        raise EstUnauthenticated("the Basic credentials cannot be read") from error
    if not (user and colon and password):
        raise EstUnauthenticated("the Basic credentials are incomplete")
    return user, Secret(password.encode())


def _address(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    return str(client[0]) if client else "unknown"


async def _send(send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
