"""The proxy between real sockets: what reaches the server, and what the client is told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from tidegate.base.errors import TidegateError
from tidegate.ids import fieldproxy
from tidegate.ids.fieldproxy import Endpoint, FieldProxy, ProxyRule, parse_endpoint

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")

READS = {"functions": [[1, 4]]}
TOPICS = {"actions": [[3, 3]], "topics": ["ok"]}
WAIT_S = 3.0


def rule(protocol: str = "modbus", *, observe: bool = False, unparsable: str = "drop") -> ProxyRule:
    allow = [READS] if protocol == "modbus" else [TOPICS, {"actions": [[1, 1]]}]
    document = {
        "id": 1,
        "name": "reads",
        "protocol": protocol,
        "mode": "observe" if observe else "enforce",
        "unparsable": unparsable,
        "allow": allow,
        "deny": [],
    }
    config = json.dumps({"version": 1, "memory_bytes": 1 << 20, "rules": [document]})
    return ProxyRule(config_json=config, id=1, name="reads", protocol=protocol, observe=observe)


def request(function: int, transaction: int = 1) -> bytes:
    return transaction.to_bytes(2) + b"\0\0\0\6\1" + bytes([function]) + b"\0\x28\0\1"


def exception(function: int, transaction: int = 1) -> bytes:
    return transaction.to_bytes(2) + b"\0\0\0\3\1" + bytes([function | 0x80, 1])


class Bench:
    """A server that keeps what it gets and echoes it, and a proxy before it."""

    def __init__(self) -> None:
        self.got = b""
        self.reports: list[dict[str, object]] = []
        self.proxy: FieldProxy
        self.port = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                self.got += data
                writer.write(data)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def bench(with_rule: ProxyRule) -> AsyncIterator[Bench]:
    made = Bench()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    to = Endpoint(host="127.0.0.1", port=server.sockets[0].getsockname()[1])
    probe = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = probe.sockets[0].getsockname()[1]
    probe.close()
    await probe.wait_closed()
    made.proxy = FieldProxy(
        with_rule, listen=Endpoint(host="127.0.0.1", port=made.port), to=to, report=made.reports.append
    )
    await made.proxy.start()
    try:
        yield made
    finally:
        await made.proxy.close()
        server.close()


def play(with_rule: ProxyRule, game: Callable[[Bench], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        async with asyncio.timeout(15), bench(with_rule) as made:
            await game(made)

    asyncio.run(all_of_it())


async def hear(reader: asyncio.StreamReader, count: int) -> bytes:
    async with asyncio.timeout(WAIT_S):
        return await reader.readexactly(count)


async def hear_end(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(WAIT_S):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


def test_a_refused_request_is_answered_and_the_connection_goes_on():
    async def writes(made: Bench) -> None:
        reader, writer = await made.connect()
        for number in range(1, 4):
            writer.write(request(6, number))
            assert await hear(reader, 9) == exception(6, number)
        writer.write(request(3, 9))
        assert await hear(reader, 12) == request(3, 9)
        assert made.got == request(3, 9)
        assert [report["event_type"] for report in made.reports] == ["drop"] * 3
        assert made.proxy.counters.refused == 3
        writer.close()

    play(rule(), writes)


def test_split_and_pipelined_writes_stay_away_from_the_server():
    async def game(made: Bench) -> None:
        reader, writer = await made.connect()
        for byte in request(6, 5):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.002)
        assert await hear(reader, 9) == exception(6, 5)
        assert made.got == b""
        writer.write(request(3, 1) + request(6, 2) + request(4, 3))
        answers = await hear(reader, 12 + 9 + 12)
        for answer in (request(3, 1), exception(6, 2), request(4, 3)):  # in whatever order, but whole
            assert answer in answers
        assert made.got == request(3, 1) + request(4, 3)
        writer.close()

    play(rule(), game)


def test_an_incomplete_request_never_reaches_the_server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fieldproxy, "MESSAGE_S", 0.3)

    async def game(made: Bench) -> None:
        reader, writer = await made.connect()
        writer.write(request(3)[:11])
        assert await hear_end(reader) == b""
        assert made.got == b""
        writer.close()

    play(rule(), game)


def test_noise_ends_the_connection_or_passes_as_the_rule_says():
    noise = b"GET / HTTP/1.1\r\n\r\n"

    async def strict(made: Bench) -> None:
        reader, writer = await made.connect()
        writer.write(request(3) + noise)
        assert (await hear_end(reader))[12:] == b""
        assert made.got in (b"", request(3))
        writer.close()

    async def lenient(made: Bench) -> None:
        _, writer = await made.connect()
        writer.write(noise)
        async with asyncio.timeout(WAIT_S):
            while made.got != noise:
                await asyncio.sleep(0.01)
        writer.close()

    play(rule(), strict)
    play(rule(unparsable="pass"), lenient)


def test_other_protocols_end_before_the_refused_message():
    connect = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02me"
    good, bad = b"\x30\x07\x00\x02okyes", b"\x30\x07\x00\x02noyes"

    async def game(made: Bench) -> None:
        reader, writer = await made.connect()
        writer.write(connect + good + bad + good)
        await hear_end(reader)
        assert made.got == connect + good
        assert len(made.reports) == 1
        writer.close()

    play(rule("mqtt"), game)


def test_observing_passes_all_and_reports():
    async def game(made: Bench) -> None:
        reader, writer = await made.connect()
        writer.write(request(6) + request(3))
        assert await hear(reader, 24) == request(6) + request(3)
        assert [report["event_type"] for report in made.reports] == ["alert"]
        writer.close()

    play(rule(observe=True), game)


def test_the_answers_to_the_last_requests_still_come():
    async def game(made: Bench) -> None:
        reader, writer = await made.connect()
        writer.write(request(3))
        writer.write_eof()
        assert await hear_end(reader) == request(3)
        writer.close()

    play(rule(), game)


def test_more_connections_than_allowed_are_turned_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fieldproxy, "MAX_CONNECTIONS", 2)

    async def game(made: Bench) -> None:
        held = [await made.connect() for _ in range(2)]
        for reader, writer in held:
            writer.write(request(3))
            assert await hear(reader, 12) == request(3)
        reader, writer = await made.connect()
        assert await hear_end(reader) == b""
        assert made.proxy.counters.turned_away == 1
        for _, one in (*held, (reader, writer)):
            one.close()

    play(rule(), game)


def test_a_server_that_is_not_there_ends_the_connection():
    async def game() -> None:
        reports: list[dict[str, object]] = []
        blocked = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = blocked.sockets[0].getsockname()[1]
        taken = FieldProxy(
            rule(),
            listen=Endpoint(host="127.0.0.1", port=port),
            to=Endpoint(host="127.0.0.1", port=1),
            report=reports.append,
        )
        with pytest.raises(TidegateError) as caught:
            await taken.start()
        assert caught.value.code == "ids.proxy.listen"
        blocked.close()
        await blocked.wait_closed()
        await taken.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await hear_end(reader) == b""
        assert taken.counters.unreachable == 1
        writer.close()
        await taken.close()
        await taken.close()

    asyncio.run(game())


def test_addresses_have_an_ip_address_and_a_port():
    assert parse_endpoint("192.0.2.1:502") == Endpoint(host="192.0.2.1", port=502)
    assert str(parse_endpoint("[2001:db8::1]:502")) == "[2001:db8::1]:502"
    for text in (
        "",
        "502",
        "host:502",
        "192.0.2.1",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "192.0.2.300:1",
        "2001:db8::1:502",
    ):
        with pytest.raises(TidegateError) as caught:
            parse_endpoint(text)
        assert caught.value.code == "ids.config.invalid"


def test_reports_are_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fieldproxy, "REPORTS_PER_S", 3)

    async def game(made: Bench) -> None:
        reader, writer = await made.connect()
        writer.write(b"".join(request(6, number) for number in range(50)))
        await hear(reader, 50 * 9)
        assert 3 <= len(made.reports) <= 6  # the second may change meanwhile
        assert made.proxy.counters.reports_suppressed == 50 - len(made.reports)
        writer.close()

    play(rule(), game)
