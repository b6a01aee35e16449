"""An ASGI server (uvicorn, HTTP/1.1) on a ready TLS context that tells the application who is at the other end.

Touches: sockets, uvicorn. ``scope["extensions"]["tls"]`` is a ``PeerTls``: the peer's certificates, already verified by
the context, the TLS version and the channel binding. Limits: requests that do not come to an end in time are dropped,
connections are counted, a handshake has ten seconds. No WebSockets, no HTTP/2, no proxy headers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tidegate.keys.errors import ProviderAbsent
from tidegate.tls.exporter import channel_binding

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:  # the extra `ca` was not installed
    raise ProviderAbsent("serving HTTPS needs uvicorn: install tidegate[ca]", package="uvicorn") from error

Application = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
ReportHandshake = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server spends on its peers."""

    connections: int = (
        512  # each has up to 64 KiB in buffers; from here on they are told 503, from twice as many on cut
    )
    header_bytes: int = 16_384
    handshake_s: float = 10.0
    request_s: float = 20.0  # from the connection, or the answer before, to the end of a request
    idle_s: int = 30
    stop_s: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTls:
    """What is known of a connection: ``chain`` as the peer sent it (DER, its own first; empty if it sent none)."""

    chain: tuple[bytes, ...]
    version: str
    cipher: str
    binding: bytes | None


class HttpServer:
    """Serves ``application`` on ``listener``; without a ``context`` in plain HTTP, for what is signed anyway.

    ``report_handshake`` is told, in OpenSSL's words, why a handshake failed: the application never hears of it.
    """

    def __init__(
        self,
        application: Application,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        *,
        limits: Limits | None = None,
        report_handshake: ReportHandshake | None = None,
    ) -> None:
        self._limits = limits or Limits()
        if context is not None and report_handshake is not None:
            context.sslobject_class = _watched(report_handshake)
        config = uvicorn.Config(
            application,
            http=_protocol(self._limits),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=self._limits.connections,
            h11_max_incomplete_event_size=self._limits.header_bytes,
            timeout_keep_alive=self._limits.idle_s,
            timeout_graceful_shutdown=self._limits.stop_s,
        )
        self._server = _Server(config, listener, context, self._limits)

    async def serve(self) -> None:
        """Serve until ``stop``; what is being answered is answered first, for ``stop_s`` at most."""
        await self._server.serve()

    def stop(self) -> None:
        """Take no new connection and end; harmless when repeated."""
        self._server.should_exit = True


def open_listener(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=256)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited; asyncio sets it on other sockets only
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """Uvicorn's server on our socket and context; signals are the caller's."""

    def __init__(
        self, config: uvicorn.Config, listener: socket.socket, context: ssl.SSLContext | None, limits: Limits
    ) -> None:
        super().__init__(config)
        self._listener, self._context, self._limits = listener, context, limits

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002  # uvicorn's form
        loop = asyncio.get_running_loop()
        await self.lifespan.startup()

        def make(_loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Protocol:
            kind: Any = self.config.http_protocol_class
            protocol: asyncio.Protocol = kind(config=self.config, server_state=self.server_state, app_state={})
            return protocol

        deadline: dict[str, Any] = {}
        if self._context is not None:
            deadline = {"ssl_handshake_timeout": self._limits.handshake_s, "ssl_shutdown_timeout": 2.0}
        server = await loop.create_server(make, sock=self._listener, ssl=self._context, backlog=256, **deadline)
        self.servers = [server]
        self.started = True


def _protocol(limits: Limits) -> type[H11Protocol]:
    class Protocol(H11Protocol):
        """Uvicorn's protocol with the peer in the scope and a deadline for each request."""

        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > 2 * limits.connections:  # who does not even ask is not told
                transport.abort()
                return
            connection = transport.get_extra_info("ssl_object")
            peer = _peer(connection) if connection is not None else None
            application: Any = self.app

            async def with_peer(scope: dict[str, Any], receive: Any, send: Any) -> None:
                scope.setdefault("extensions", {})["tls"] = peer
                if {b"content-length", b"transfer-encoding"} <= {name for name, _ in scope["headers"]}:
                    await _refuse_ambiguous(send)
                    return
                await application(scope, receive, send)

            self.app = with_peer
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            # after an answer ``cycle`` is still the request before: the first bytes of the next one end nothing
            answering = self.cycle is not None and not self.cycle.response_complete
            if self._deadline is not None and answering and not self.cycle.more_body:
                self._deadline.cancel()
                self._deadline = None

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            super().connection_lost(exc)

        def _wait(self) -> None:
            """Give the peer its time for the next request: who trickles bytes must not hold a connection for ever."""
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = self.loop.call_later(max(limits.request_s, limits.idle_s), self.transport.abort)

    return Protocol


async def _refuse_ambiguous(send: Any) -> None:
    """Refuse a request of two lengths and what follows it (RFC 9112 §6.1): a proxy may have seen another end."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"10"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": b"malformed\n"})


def _peer(connection: ssl.SSLObject) -> PeerTls:
    inner: Any = getattr(connection, "_sslobj", None)
    chain: tuple[bytes, ...] = ()
    own = connection.getpeercert(binary_form=True)
    if own is not None:
        sent = getattr(inner, "get_unverified_chain", lambda: None)() or ()  # CPython has it since 3.10, public in 3.13
        chain = (own, *(one.public_bytes(_DER) for one in sent[1:]))
    cipher = connection.cipher()
    return PeerTls(
        chain=chain,
        version=connection.version() or "",
        cipher=cipher[0] if cipher else "",
        binding=channel_binding(connection),
    )


_DER = 2  # _ssl.ENCODING_DER


def _watched(report: ReportHandshake) -> type[ssl.SSLObject]:
    class Watched(ssl.SSLObject):
        """An ``SSLObject`` whose failed handshake does not go unheard."""

        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                report(getattr(error, "verify_message", None) or error.reason or "handshake failed")
                raise

    return Watched
