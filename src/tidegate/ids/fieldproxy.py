"""A proxy before a TCP service that passes on only what a field rule allows.

For kernels without a packet queue, and for servers that should get nothing incomplete: a message reaches the server
when it is whole and allowed (of an MQTT PUBLISH, the payload follows as it comes). A Modbus client gets exception 1,
"illegal function", for a request that is refused, and its connection goes on; of other protocols, the connection ends
before the refused message. Answers are not judged.

Every buffer is bounded, every wait has a deadline. Touches: TCP sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tidegate.ids.errors import ConfigInvalid, ProxyListen
from tidegate.ids.inline import FieldStream

READ_BYTES = 16_384  # of one side at a time; four sides' worth at most are held for each connection
MAX_CONNECTIONS = 64  # 64 KiB each: 4 MiB; a Modbus server takes 1 to 16 (messaging guide, 4.2)
CONNECT_S = 5.0  # a server in the same network answers in milliseconds
MESSAGE_S = 30.0  # from the first byte of a message to its last: 16 KiB at 9,600 baud are 14 s
WRITE_S = 30.0  # a peer that takes nothing for so long is gone
IDLE_S = 7440.0  # 2 h 4 min, what NAT devices keep (RFC 5382)
HALF_CLOSED_S = 60.0  # for the answers to the last requests
END_S = 2.0  # for what is still to be sent when a connection ends
REPORTS_PER_S = 50
ILLEGAL_FUNCTION = 1  # Modbus application protocol 1.1b3, section 7
MAX_MODBUS_BODY = 254  # unit and PDU: Modbus messaging guide, 3.1.3

_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An IP address and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyRule:
    """The field rule of a proxy: the inspector's configuration, and which rule of it holds."""

    config_json: str
    id: int
    name: str
    protocol: str
    observe: bool = False


@dataclass(slots=True)
class ProxyCounters:
    """What a proxy counted since it began."""

    connections: int = 0
    turned_away: int = 0  # too many at once
    unreachable: int = 0  # the server did not answer
    refused: int = 0
    reports_suppressed: int = 0


def parse_endpoint(text: str) -> Endpoint:
    """Return ``"192.0.2.1:502"`` or ``"[2001:db8::1]:502"`` as an endpoint; raises ``ids.config.invalid``."""
    match = _ADDRESS.match(text)
    try:
        host, port = str(ipaddress.ip_address(match[1] or match[2])) if match else "", int(match[3]) if match else 0
    except ValueError:
        host, port = "", 0
    if not host or not 1 <= port <= 65535:
        raise ConfigInvalid(f"{text!r} is no address with a port, as in '192.0.2.1:502' or '[::1]:502'", field="listen")
    return Endpoint(host=host, port=port)


class FieldProxy:
    """Listens and relays; ``report`` gets each refusal as an EVE object (docs/firewall-fields.md).

    ``start`` raises ``ids.proxy.listen``; ``ids.config.invalid`` comes at once for a rule that does not exist.
    """

    def __init__(
        self, rule: ProxyRule, *, listen: Endpoint, to: Endpoint, report: Callable[[dict[str, object]], None]
    ) -> None:
        self._rule, self._listen, self._to = rule, listen, to
        self._reports = _Reports(report)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.counters = ProxyCounters()
        FieldStream(rule.config_json, rule.id)

    async def start(self) -> None:
        """Listen; connections are served as long as the event loop runs."""
        try:
            self._server = await asyncio.start_server(
                self._serve, self._listen.host, self._listen.port, limit=READ_BYTES, backlog=MAX_CONNECTIONS
            )
        except OSError as error:
            raise ProxyListen(f"cannot listen on {self._listen}: {error.strerror}", errno=error.errno) from error

    async def close(self) -> None:
        """End every connection and stop listening; harmless when repeated."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            self.counters.turned_away += 1
            writer.transport.abort()
            return
        self._connections.add(task)
        self.counters.connections += 1
        try:
            await self._join(reader, writer)
        finally:
            self._connections.discard(task)
            await _end(writer)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client from the connection to its server to the end of either."""
        try:
            async with asyncio.timeout(CONNECT_S):
                above, below = await asyncio.open_connection(self._to.host, self._to.port, limit=READ_BYTES)
        except (OSError, TimeoutError):
            self.counters.unreachable += 1
            return
        pair = _Pair(client=(reader, writer), server=(above, below))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._relay_requests(pair))
                group.create_task(_relay_answers(pair, is_modbus=self._rule.protocol == "modbus"))
        except* (_Over, OSError, TimeoutError):
            pass
        finally:
            await _end(below)

    async def _relay_requests(self, pair: _Pair) -> None:
        stream = FieldStream(self._rule.config_json, self._rule.id)
        (reader, _), (_, server) = pair.client, pair.server
        deadline_s: float | None = None
        while True:
            wait_s = IDLE_S if deadline_s is None else deadline_s - time.monotonic()
            async with asyncio.timeout(wait_s):
                data = await reader.read(READ_BYTES)
            if not data:
                server.write_eof()
                await asyncio.sleep(HALF_CLOSED_S)
                raise _Over
            allowed, violations, refused, is_condemned = stream.feed(data)
            if allowed:
                server.write(allowed)
                async with asyncio.timeout(WRITE_S):
                    await server.drain()
            is_waiting = not allowed and not violations
            deadline_s = (deadline_s or time.monotonic() + MESSAGE_S) if is_waiting else None
            if violations:
                await self._refuse(pair, violations, refused, is_condemned=is_condemned)

    async def _refuse(self, pair: _Pair, violations: list[str], refused: list[bytes], *, is_condemned: bool) -> None:
        """Report, and answer or end: a Modbus request can be answered by itself."""
        self.counters.refused += len(violations)
        for what in violations:
            if not self._reports.add(self._describe(pair, what)):
                self.counters.reports_suppressed += 1
        if is_condemned or (refused and self._rule.protocol != "modbus"):
            raise _Over
        writer = pair.client[1]
        for head in refused:
            writer.write(head[:4] + b"\x00\x03" + bytes([head[6], head[7] | 0x80, ILLEGAL_FUNCTION]))
        async with asyncio.timeout(WRITE_S):
            await writer.drain()

    def _describe(self, pair: _Pair, what: str) -> dict[str, object]:
        client = pair.client[1].get_extra_info("peername") or ("", 0)
        kind, action = ("alert", "allowed") if self._rule.observe else ("drop", "blocked")
        event: dict[str, object] = {
            "timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+0000"),
            "event_type": kind,
            "src_ip": client[0],
            "src_port": client[1],
            "dest_ip": self._to.host,
            "dest_port": self._to.port,
            "proto": "TCP",
            "alert": {
                "action": action,
                "gid": 1,
                "signature_id": 2900101,
                "rev": 1,
                "signature": "TIDEGATE FIELD message not allowed by a field rule",
                "category": "Detection of a Field Rule Violation",
                "severity": 2,
            },
            "metadata": {
                "detector": "field.proxy",
                "rule": self._rule.name,
                "rule_id": self._rule.id,
                "protocol": self._rule.protocol,
                "what": what,
            },
        }
        return event if self._rule.observe else {**event, "drop": {"reason": "field.refused"}}


class _Over(Exception):
    """The connection is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    client: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    server: tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class _Reports:
    """Passes on so many reports a second."""

    report: Callable[[dict[str, object]], None]
    _second: int = field(default=0, init=False)
    _count: int = field(default=0, init=False)

    def add(self, event: dict[str, object]) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        if self._count > REPORTS_PER_S:
            return False
        self.report(event)
        return True


async def _end(writer: asyncio.StreamWriter) -> None:
    """Close once what was written is sent, or at once when it is not taken."""
    writer.close()
    try:
        async with asyncio.timeout(END_S):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


async def _relay_answers(pair: _Pair, *, is_modbus: bool) -> None:
    """Pass on what the server says; of Modbus, whole messages, so that our own answers do not come in between."""
    (reader, _), (_, client) = pair.server, pair.client
    while True:
        async with asyncio.timeout(IDLE_S):
            data = await _read_answer(reader) if is_modbus else await reader.read(READ_BYTES)
        if not data:
            raise _Over
        client.write(data)
        async with asyncio.timeout(WRITE_S):
            await client.drain()


async def _read_answer(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(asyncio.IncompleteReadError):
        head = await reader.readexactly(6)
        length = int.from_bytes(head[4:6])
        if 2 <= length <= MAX_MODBUS_BODY:
            return head + await reader.readexactly(length)
    return b""
