"""The local API: one JSON object a line over a Unix socket, for root only.

Touches: the socket in the run folder. Sizes and times are bounded; the peer's user is asked from the kernel.
docs/agent.md names every operation.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from tidegate.agent.errors import AgentAbsent, RequestDenied, RequestMalformed
from tidegate.base.errors import TidegateError

MAX_REQUEST_BYTES = 131_072  # a signed policy in base64 has 82 KiB
REQUEST_TIMEOUT_S = 600.0  # an update of the largest image from slow storage
_UCRED = struct.Struct("3i")

Handler = Callable[[dict[str, object]], Awaitable[dict[str, object]]]


async def serve(path: Path, handle: Handler) -> asyncio.Server:
    """Answer requests at ``path``, which only root can reach; ``handle`` gets a parsed request."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                answer = await _answer(reader, writer, handle)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ConnectionError):
            pass  # the peer went away or never spoke: nobody is left to tell
        finally:
            writer.close()

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(converse, path, limit=MAX_REQUEST_BYTES)
    path.chmod(0o600)
    return server


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler) -> dict[str, object]:
    try:
        _require_root(writer.get_extra_info("socket"))
        try:
            request = json.loads(await reader.readline())
        except (ValueError, RecursionError) as error:
            raise RequestMalformed("the request is no JSON object on one line") from error
        if not isinstance(request, dict) or not isinstance(request.get("op"), str):
            raise RequestMalformed("the request is no JSON object with an `op`")
        return await handle(request)
    except TidegateError as error:
        return {"error": error.describe()}


def _require_root(peer: socket.socket) -> None:
    _, user, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if user != 0:
        raise RequestDenied(f"user {user} may not ask the agent", user=user)


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
