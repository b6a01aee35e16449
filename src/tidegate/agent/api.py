"""Local APIs: one JSON object a line over a Unix socket, for whom the kernel says is at the other end.

Touches: sockets in the run folder. Sizes, times and connections are bounded. docs/agent.md names every operation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tidegate.agent.errors import AgentAbsent, RequestDenied, RequestMalformed, TooManyConnections
from tidegate.base.errors import TidegateError

MAX_REQUEST_BYTES = 131_072  # a signed policy in base64 has 82 KiB
REQUEST_TIMEOUT_S = 600.0  # an update of the largest image from slow storage
LAST_WORDS_S = 1.0  # for the answer to who is refused
MOST_HEARD_OUT = 16
_UCRED = struct.Struct("3i")

Handler = Callable[[dict[str, object]], Awaitable[dict[str, object]]]
LineHandler = Callable[[bytes, int], Awaitable[bytes]]


def require_root(user: int) -> None:
    """Return if ``user`` is root; raise ``agent.request.denied``."""
    if user != 0:
        raise RequestDenied(f"user {user} may not ask the agent", user=user)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Who is served at a socket, and what he may cost. ``admit`` raises for users who are not served at all.

    ``timeout_s`` is for one request, from the end of the one before it; ``requests`` for one connection.
    """

    admit: Callable[[int], None] = require_root
    mode: int = 0o600
    request_bytes: int = MAX_REQUEST_BYTES
    timeout_s: float = REQUEST_TIMEOUT_S
    requests: int = 1
    connections: int = 256
    connections_of_user: int = 256


async def serve(path: Path, handle: Handler) -> asyncio.Server:
    """Answer requests at ``path``, which only root can reach; ``handle`` gets a parsed request."""

    async def answer(line: bytes, _: int) -> bytes:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RequestMalformed("the request is no JSON object on one line") from error
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            raise RequestMalformed("the request is no JSON object with an `op`")
        return json.dumps(await handle(request)).encode()

    return await serve_lines(path, answer, Service())


async def serve_lines(path: Path, answer: LineHandler, service: Service) -> asyncio.Server:
    """Answer lines at ``path`` by lines of JSON; ``answer`` gets a line and the user whom the kernel names.

    What it raises of ``TidegateError`` is told the peer, as ``{"error": ...}``.
    """
    connected: Counter[int] = Counter()
    refused: set[asyncio.StreamReader] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        user = _user_of(writer.get_extra_info("socket"))
        try:
            with _admitted(service, connected, user):
                for number in range(service.requests):
                    async with asyncio.timeout(service.timeout_s):
                        line = await _next_line(reader)
                        if not line and number:
                            return
                        await _tell(writer, await _answered(answer, line, user))
        except TidegateError as error:  # who is not admitted, or sends what is no line: told once, then let go
            with contextlib.suppress(TimeoutError, ConnectionError, ValueError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await _tell(writer, _describe(error))
                    await _hear_out(reader, refused)
        except (TimeoutError, ConnectionError):
            pass  # the peer went away or never spoke: nobody is left to tell
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(converse, path, limit=service.request_bytes)
    path.chmod(service.mode)
    return server


@contextlib.contextmanager
def _admitted(service: Service, connected: Counter[int], user: int) -> Iterator[None]:
    """Count the user's connection for as long as it lasts; who is not served at all takes nobody's place."""
    service.admit(user)
    if connected.total() >= service.connections or connected[user] >= service.connections_of_user:
        raise TooManyConnections(f"user {user} finds as many connections as there may be", user=user)
    connected[user] += 1
    try:
        yield
    finally:
        connected[user] -= 1
        if not connected[user]:
            del connected[user]


async def _next_line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ValueError as error:
        raise RequestMalformed("the request is longer than a line may be") from error


async def _answered(answer: LineHandler, line: bytes, user: int) -> bytes:
    try:
        return await answer(line, user)
    except TidegateError as error:
        return _describe(error)


async def _tell(writer: asyncio.StreamWriter, said: bytes) -> None:
    writer.write(said + b"\n")
    await writer.drain()


async def _hear_out(reader: asyncio.StreamReader, refused: set[asyncio.StreamReader]) -> None:
    """Wait a moment for what the peer is still sending: closed before, a program would fail at that, and read nothing.

    Not for more than a few at a time: who is refused holds up nobody.
    """
    if len(refused) >= MOST_HEARD_OUT:
        return
    refused.add(reader)
    try:
        await reader.readline()
    finally:
        refused.discard(reader)


def _describe(error: TidegateError) -> bytes:
    return json.dumps({"error": error.describe()}).encode()


def _user_of(peer: socket.socket) -> int:
    user: int = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    return user


def ask_agent(path: Path, request: dict[str, object], *, timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, object]:
    """Return the agent's answer to one request; raise ``agent.absent`` if nobody at ``path`` gives a whole one."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(timeout_s)
        try:
            peer.connect(str(path))
            with contextlib.suppress(BrokenPipeError):  # refused before it was read: the answer says why
                peer.sendall(json.dumps(request).encode() + b"\n")
            raw = b""
            while not raw.endswith(b"\n"):
                piece = peer.recv(65_536)
                if not piece:
                    break
                raw += piece
        except OSError as error:
            raise AgentAbsent(f"no agent answers at {path}: {error}", path=str(path)) from error
    if not raw.endswith(b"\n"):
        raise AgentAbsent(f"the agent at {path} ended before its answer did", path=str(path))
    answer: dict[str, object] = json.loads(raw)
    return answer
