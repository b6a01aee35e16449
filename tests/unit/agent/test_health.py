"""Is it healthy? Asked of services that lie, stall, answer in pieces, or answer too late."""

from __future__ import annotations

import asyncio
import time

import pytest

from tidegate.agent import health
from tidegate.agent.health import ask_http, prove_health
from tidegate.update.section import HttpProbe, UpdateSection

OK = b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\n"


class Service:
    """Answers each connection with scripted pieces; a number is a pause in seconds."""

    def __init__(self, *pieces) -> None:
        self._pieces = pieces
        self.asked: list[bytes] = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_) -> None:
        self._server.close()

    async def _serve(self, reader, writer) -> None:
        try:
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            for piece in self._pieces:
                if isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                else:
                    await asyncio.sleep(piece)
        except ConnectionError:
            pass
        finally:
            writer.close()


def ask(*pieces, expect: str = "", version: str = "2.0.0") -> str | None:
    async def run() -> str | None:
        async with Service(*pieces) as service:
            complaint = await ask_http(HttpProbe(port=service.port, path="/version", expect=expect), version)
            assert service.asked[0].startswith(b"GET /version HTTP/1.0\r\n")
            return complaint

    return asyncio.run(run())


@pytest.mark.parametrize(
    "pieces",
    [
        (OK + b"2.0.0\n",),
        (OK, 0.1, b"2.0.0\n"),
        (OK[:5], 0.05, OK[5:20], 0.05, OK[20:], 0.05, b"2.", 0.05, b"0.0\n"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n2.0.0\n",),
        (b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 30_000 + b"2.0.0",),
    ],
)
def test_healthy(pieces) -> None:
    assert ask(*pieces, expect="{version}") is None


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.0 500 Internal Server Error\r\n\r\n2.0.0\n",),
        (b"HTTP/1.0 500 it was 200 OK\r\n\r\n2.0.0\n",),
        (b"HTTP/1.0 404 Not Found\r\nX: HTTP/1.0 200 OK\r\n\r\n2.0.0\n",),
        (b"HTTP/1.0 2000 OK\r\n\r\n2.0.0\n",),
        (OK + b"1.0.0\n",),
        (OK,),
        (b"HTTP/1.0 200 OK\r\nX: 2.0.0\r\n",),
        (b"2.0.0\n",),
        (b"\xff\x00" * 1000,),
        (),
    ],
)
def test_not_healthy(pieces) -> None:
    assert "port" in ask(*pieces, expect="{version}")


def test_a_stalled_service_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(health, "_PROBE_TIMEOUT_S", 0.2)
    began_s = time.monotonic()
    assert "in time" in ask(OK, 8, b"2.0.0\n", expect="{version}")
    assert time.monotonic() - began_s < 1


def test_an_endless_answer_is_bounded() -> None:
    assert ask(OK + b"x" * 65_536, *([b"x" * 65_536] * 50), expect="{version}") is not None


def test_nobody_listens() -> None:
    async def run() -> str | None:
        async with Service() as service:
            port = service.port
        return await ask_http(HttpProbe(port=port), "2.0.0")

    assert "port" in asyncio.run(run())


def prove(*services: Service, deadline_s: int, version: str = "2.0.0") -> tuple[str | None, float]:
    async def run():
        probes = []
        for service in services:
            await service.__aenter__()
            probes.append(HttpProbe(port=service.port, expect="{version}"))
        began_s = time.monotonic()
        complaint = await prove_health(UpdateSection(deadline_s=deadline_s, http=tuple(probes)), version)
        for service in services:
            await service.__aexit__()
        return complaint, time.monotonic() - began_s

    return asyncio.run(run())


def test_without_probes_started_is_healthy_enough() -> None:
    assert prove(deadline_s=1)[0] is None


def test_every_probe_has_to_pass() -> None:
    good, bad = OK + b"2.0.0\n", OK + b"1.0.0\n"
    assert prove(Service(good), Service(good), deadline_s=5)[0] is None
    complaint, seconds = prove(Service(good), Service(bad), deadline_s=1)
    assert "lacks" in complaint
    assert 0.9 < seconds < 2


def test_a_pass_after_the_deadline_is_none() -> None:
    """Slow is not healthy: each answer would do, but it comes when the time is over."""
    complaint, seconds = prove(Service(8, OK + b"2.0.0\n"), deadline_s=1)
    assert complaint is not None
    assert seconds < 1.5


def test_a_service_that_comes_up_late_but_in_time_is_healthy() -> None:
    async def run() -> str | None:
        async with Service(OK + b"2.0.0\n") as first:
            port = first.port

        async def come_up() -> asyncio.Server:
            await asyncio.sleep(0.5)
            return await asyncio.start_server(first._serve, "127.0.0.1", port)

        coming = asyncio.create_task(come_up())
        section = UpdateSection(deadline_s=5, http=(HttpProbe(port=port, expect="{version}"),))
        complaint = await prove_health(section, "2.0.0")
        (await coming).close()
        return complaint

    assert asyncio.run(run()) is None
