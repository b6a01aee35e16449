"""The local API against whoever may reach it: wrong users, garbage, floods, peers that vanish."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
import threading
from pathlib import Path

import pytest

from tidegate.agent.api import MAX_REQUEST_BYTES, ask_agent, serve
from tidegate.agent.errors import AgentBusy
from tidegate.base.errors import TidegateError

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may ask the agent")


class Served:
    """A server in a thread of its own; counts what reaches the handler."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handled: list[dict] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    async def _handle(self, request: dict) -> dict:
        self.handled.append(request)
        if request["op"] == "busy":
            raise AgentBusy("at work", seconds=3)
        return {"echo": request}

    def __enter__(self):
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(serve(self.path, self._handle), self._loop).result(5)
        return self

    def __exit__(self, *_) -> None:
        async def end() -> None:
            self._server.close()
            rest = asyncio.all_tasks() - {asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture
def served():
    with tempfile.TemporaryDirectory(prefix="tga-") as folder:
        Path(folder).chmod(0o755)
        with Served(Path(folder) / "agent.sock") as server:
            yield server


def converse(path: Path, raw: bytes, *, shut: bool = True) -> dict:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(5)
        peer.connect(str(path))
        try:
            peer.sendall(raw)
            if shut:
                peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it stopped listening: the answer says why
        answer = b""
        while piece := peer.recv(65_536):
            answer += piece
            if answer.endswith(b"\n"):
                break
    return json.loads(answer)


def test_answers_one_request(served) -> None:
    assert ask_agent(served.path, {"op": "x", "n": [1, None, "ü"]}) == {"echo": {"op": "x", "n": [1, None, "ü"]}}


def test_an_error_is_told_whole(served) -> None:
    error = ask_agent(served.path, {"op": "busy"})["error"]
    assert (error["code"], error["fields"]) == ("agent.busy", {"seconds": 3})
    assert error["advice"]


def test_the_socket_is_for_root_alone(served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


@pytest.mark.root
@pytest.mark.parametrize("reachable", [False, True], ids=["as it is", "even if its mode were open"])
def test_another_user_is_refused(served, reachable: bool) -> None:
    if reachable:
        served.path.chmod(0o666)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            try:
                answer = ask_agent(served.path, {"op": "status"}, timeout_s=5)
                os.write(writer, answer["error"]["code"].encode())
            except TidegateError as error:
                os.write(writer, error.code.encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        assert stream.read() == ("agent.request.denied" if reachable else "agent.absent")
    assert served.handled == []


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\n",
        b"status\n",
        b"{\n",
        b"null\n",
        b"[]\n",
        b'"status"\n',
        b"{}\n",
        b'{"op": 1}\n',
        b'{"op": null}\n',
        b'{"op": ["status"]}\n',
        b'{"OP": "status"}\n',
        b"\xff\xfe\x00\x01\n",
        bytes(range(256)) * 16 + b"\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"[" * 100_000 + b"\n",
        b'{"a":' * 20_000 + b"\n",
        b'{"op": "x", "n": ' + b"9" * 10_000 + b"}\n",
        b"x" * (MAX_REQUEST_BYTES + 1) + b"\n",
        b'{"op": "' + b"x" * (4 * MAX_REQUEST_BYTES) + b'"}\n',
    ],
    ids=lambda raw: repr(raw[:12]),
)
def test_garbage_is_answered_by_code_and_never_handled(served, raw: bytes) -> None:
    assert converse(served.path, raw)["error"]["code"] == "agent.request.malformed"
    assert served.handled == []
    assert ask_agent(served.path, {"op": "x"}) == {"echo": {"op": "x"}}, "the next one is served as ever"


def test_a_request_just_within_the_limit_is_served(served) -> None:
    room = MAX_REQUEST_BYTES - len(b'{"op": "x", "policy": ""}') - 1
    request = json.dumps({"op": "x", "policy": "y" * room}).encode() + b"\n"
    assert len(request) == MAX_REQUEST_BYTES
    assert "echo" in converse(served.path, request, shut=False)


def test_peers_that_say_nothing_or_vanish_hold_up_nobody(served) -> None:
    silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    for peer in silent:
        peer.connect(str(served.path))
        peer.sendall(b'{"op": "half')
    assert ask_agent(served.path, {"op": "x"}, timeout_s=5) == {"echo": {"op": "x"}}
    for peer in silent:
        peer.close()
    assert ask_agent(served.path, {"op": "x"}, timeout_s=5) == {"echo": {"op": "x"}}


def test_only_the_first_line_counts(served) -> None:
    assert converse(served.path, b'{"op": "one"}\n{"op": "two"}\n')["echo"] == {"op": "one"}
    assert [request["op"] for request in served.handled] == ["one"]


def test_nobody_there(tmp_path) -> None:
    for path in (tmp_path / "missing.sock", tmp_path):
        with pytest.raises(TidegateError) as caught:
            ask_agent(path, {"op": "status"})
        assert caught.value.code == "agent.absent"


def test_a_stale_socket_is_replaced(served, tmp_path) -> None:
    stale = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(stale))
    with Served(stale):
        assert ask_agent(stale, {"op": "x"}) == {"echo": {"op": "x"}}


def test_an_agent_that_dies_within_its_answer_is_absent(tmp_path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def die() -> None:
            peer, _ = listener.accept()
            peer.recv(100)
            peer.sendall(b'{"half": ')
            peer.close()

        thread = threading.Thread(target=die)
        thread.start()
        with pytest.raises(TidegateError) as caught:
            ask_agent(path, {"op": "status"}, timeout_s=5)
        thread.join()
    assert caught.value.code == "agent.absent"
