"""Sources of packets and inline rules on the real kernel: NFLOG, a shared interface, a queue."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidegate.testing.netns import Namespace, join, make_unique

sensor_module = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces, packet queues and packet sockets need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
    pytest.mark.skipif(shutil.which("iptables-nft") is None, reason="iptables is not installed"),
    pytest.mark.skipif(not hasattr(sensor_module, "InlineInspector"), reason="the Rust module is older"),
    pytest.mark.timeout(60),
]

DEVICE, CLIENT = "192.0.2.1", "192.0.2.2"
DEVICE6, CLIENT6 = "2001:db8::1", "2001:db8::2"
PORT, DATAGRAMS = 80, 5353
QUEUE, GROUP = 5455, 55
PATIENCE_S = 3.0  # a line is written within a second of its packet; the machine may be busy
SILENCE_S = 0.7  # a pair of namespaces answers in microseconds
RULE = 'http any any -> any any (msg:"marked"; http.uri; content:"/secret"; sid:1; rev:1;)'


class Server(http.server.ThreadingHTTPServer):
    """Answers every request, and keeps the paths."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def __init__(self) -> None:
        self.paths: list[str] = []
        super().__init__(("::", PORT), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.paths.append(self.path)
        body = b"answer\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Run:
    """``tidegate ids run`` and what it says."""

    def __init__(self, space: Namespace, *words: str) -> None:
        command = [sys.executable, "-m", "tidegate.cli.main", "ids", "run", *words]
        self.process = space.popen(command, stderr=subprocess.PIPE)
        self.lines: list[dict[str, Any]] = []
        assert self.process.stderr is not None
        self.said = []
        while line := self.process.stderr.readline():
            self.said.append(line.decode().strip())
            if self.said[-1] == "ready":
                break
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def _follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def events(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many lines of a kind and return them all."""
        deadline_s = time.monotonic() + PATIENCE_S
        while len(found := [line for line in self.lines if line["event_type"] == kind]) < count:
            assert time.monotonic() < deadline_s, [line["event_type"] for line in self.lines]
            time.sleep(0.02)
        return found

    def status(self) -> dict[str, str]:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)

    def stop(self) -> dict[str, Any]:
        """End it in order and return its last counters."""
        self.process.send_signal(signal.SIGTERM)
        self._end()
        assert self.process.returncode == 0
        return self.lines[-1]["stats"]

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def _end(self) -> None:
        self.process.wait(10)
        self._reader.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Lab:
    """A device with a server, and a client at the other end of a cable."""

    def __init__(self, device: Namespace, client: Namespace, folder: Path) -> None:
        self.device, self.client, self.folder = device, client, folder
        self.runs: list[Run] = []
        with device.inside():
            self.server = Server()
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def run(self, *words: str, rule: str = f"alert {RULE}") -> Run:
        rules = self.folder / "test.rules"
        rules.write_text(rule + "\n")
        made = Run(self.device, *words, "--rules", str(rules), "--set", "detectors.enabled=no")
        assert made.said[-1] == "ready", made.said
        self.runs.append(made)
        return made

    def firewall(self, *rule: str) -> None:
        """Add a rule for both families to the device's firewall."""
        for program in ("iptables-nft", "ip6tables-nft"):
            self.device.run([program, *rule])

    def hand_to_queue(self, *chains: str, bypass: bool = False) -> None:
        for chain in chains:
            more = ["--queue-bypass"] if bypass else []
            self.firewall("-A", chain, "-j", "NFQUEUE", "--queue-num", str(QUEUE), *more)

    def connect(self, address: str = DEVICE) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(address, PORT, timeout=SILENCE_S)
        with self.client.inside():
            connection.connect()
        return connection

    def get(self, path: str, address: str = DEVICE) -> str:
        """Return ``answer``, ``reset``, ``closed``, or ``silence`` where nothing comes."""
        try:
            connection = self.connect(address)
        except TimeoutError:
            return "silence"
        with contextlib.closing(connection):
            return ask(connection, path)

    def close(self) -> None:
        for run in self.runs:
            if run.process.poll() is None:
                run.kill()
        self.server.shutdown()
        self.server.server_close()


def ask(connection: http.client.HTTPConnection, path: str) -> str:
    try:
        connection.request("GET", path)
        return "answer" if connection.getresponse().read() == b"answer\n" else "other"
    except TimeoutError:
        return "silence"
    except http.client.RemoteDisconnected:
        return "closed"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Namespace.create(make_unique("tgso-dev")) as device, Namespace.create(make_unique("tgso-cli")) as client:
        join(
            device,
            client,
            addresses_a=[f"{DEVICE}/24", f"{DEVICE6}/64"],
            addresses_b=[f"{CLIENT}/24", f"{CLIENT6}/64"],
        )
        made = Lab(device, client, tmp_path)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("address", [DEVICE, DEVICE6])
def test_logged_packets_are_inspected(lab: Lab, address: str) -> None:
    lab.firewall("-A", "INPUT", "-p", "tcp", "-j", "NFLOG", "--nflog-group", str(GROUP), "--nflog-prefix", "in")
    lab.firewall("-A", "OUTPUT", "-p", "tcp", "-j", "NFLOG", "--nflog-group", str(GROUP))
    run = lab.run("--nflog", str(GROUP))
    assert lab.get("/index", address) == "answer"
    assert lab.get("/secret", address) == "answer"
    (alert,) = run.events("alert")
    assert (alert["alert"]["signature_id"], alert["dest_port"], alert["app_proto"]) == (1, PORT, "http")
    assert alert["http"]["url"] == "/secret"
    assert int(run.status()["CapEff"], 16) == 0
    assert run.status()["Uid"].split() == ["65534"] * 4
    stats = run.stop()
    assert stats["capture"]["kernel_packets"] >= 20
    assert stats["capture"]["kernel_drops"] == stats["capture"]["overruns"] == 0
    assert [event["flow"]["state"] for event in run.events("flow")] == ["closed"] * 2
    assert stats["tcp"].get("invalid_checksum", 0) == 0


def test_a_reader_that_sleeps_counts_what_it_lost(lab: Lab) -> None:
    lab.firewall("-A", "INPUT", "-p", "udp", "-j", "NFLOG", "--nflog-group", str(GROUP))
    run = lab.run("--nflog", str(GROUP))
    run.process.send_signal(signal.SIGSTOP)
    with lab.client.inside():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(sender):
        for _ in range(20_000):
            with contextlib.suppress(OSError):
                sender.sendto(b"x" * 1000, (DEVICE, DATAGRAMS))
        run.process.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        sender.sendto(b"the last one tells the number", (DEVICE, DATAGRAMS))
        time.sleep(0.5)
    stats = run.stop()
    assert stats["capture"]["overruns"] >= 1
    assert stats["capture"]["kernel_drops"] > 0
    assert stats["decoder"]["pkts"] + stats["capture"]["kernel_drops"] == stats["capture"]["kernel_packets"]
    assert stats["capture"]["kernel_packets"] >= 20_000


def test_workers_share_flows_and_each_has_both_ways(lab: Lab) -> None:
    run = lab.run("--interface", "eth0", "--workers", "2", "--memory", "24MiB")
    flows = 24
    for number in range(flows):
        assert lab.get("/secret" if number % 2 else "/index") == "answer"
    assert {alert["http"]["url"] for alert in run.events("alert", flows // 2)} == {"/secret"}
    assert run.status()["Uid"].split() == ["65534"] * 4
    tasks = [path.read_text() for path in Path(f"/proc/{run.process.pid}/task").glob("*/status")]
    assert len(tasks) >= 3
    assert all("CapEff:\t0000000000000000" in task for task in tasks)
    stats = run.stop()
    assert len(run.events("alert", flows // 2)) == flows // 2, "each is seen once"
    made = [event for event in run.events("flow", flows) if event.get("dest_port") == PORT]
    assert len(made) == flows
    for event in made:
        assert event["flow"]["pkts_toserver"] >= 4
        assert event["flow"]["pkts_toclient"] >= 3
    assert stats["app_layer"]["tx"]["http"] == flows
    assert stats["capture"]["kernel_drops"] == 0


def test_the_kernel_uses_both_workers(lab: Lab, tmp_path: Path) -> None:
    from tidegate.ids.fanout import Workers
    from tidegate.ids.inspector import SensorConfig

    with lab.device.inside():
        workers = Workers(SensorConfig(interface="eth0", memory="24MiB"), 2)
    with workers:
        workers.start()
        for _ in range(24):
            assert lab.get("/index") == "answer"
        time.sleep(0.5)
        lines = [json.loads(line) for line in workers.finish()]
        shares = [json.loads(sensor.stats_line())["stats"]["flow"].get("tcp", 0) for sensor in workers.sensors]
        merged = json.loads(workers.stats_line())["stats"]
    assert sum(shares) == merged["flow"]["tcp"] == 24
    assert min(shares) >= 1, "2 to the power of -23 says that this is no chance"
    assert lines


@pytest.mark.parametrize("address", [DEVICE, DEVICE6])
def test_a_drop_rule_stops_a_marked_request_and_no_other(lab: Lab, address: str) -> None:
    run = lab.run("--queue", str(QUEUE), rule=f"drop {RULE}")
    lab.hand_to_queue("INPUT", "OUTPUT")
    assert lab.get("/index", address) == "answer"
    assert lab.get("/secret", address) == "silence"
    with contextlib.closing(lab.connect(address)) as connection:
        assert ask(connection, "/before") == "answer"
        assert ask(connection, "/secret/2") == "silence"
    assert lab.get("/after", address) == "answer"
    assert lab.server.paths == ["/index", "/before", "/after"]
    alerts = run.events("alert", 2)
    assert {alert["alert"]["action"] for alert in alerts} == {"blocked"}
    status = run.status()
    assert int(status["CapEff"], 16) == 1 << 12, "CAP_NET_ADMIN alone: the kernel wants it for verdicts"
    stats = run.stop()
    assert stats["ips"]["blocked"] >= 2
    assert stats["ips"]["accepted"] > 10
    assert stats["capture"]["kernel_drops"] == 0


def test_a_marked_request_in_pieces_is_stopped(lab: Lab) -> None:
    run = lab.run("--queue", str(QUEUE), rule=f"drop {RULE}")
    lab.hand_to_queue("INPUT", "OUTPUT")
    with contextlib.closing(lab.connect()) as connection:
        wire = connection.sock
        assert wire is not None
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n":
            wire.sendall(bytes([byte]))
            time.sleep(0.002)
        with pytest.raises(TimeoutError):
            wire.recv(100)
    assert lab.server.paths == []
    assert run.events("alert")[0]["alert"]["action"] == "blocked"


def test_requests_alone_are_enough_where_the_settings_say_so(lab: Lab) -> None:
    lab.run("--queue", str(QUEUE), "--set", "stream.async-oneside=yes", rule=f"reject {RULE}")
    lab.hand_to_queue("INPUT")
    assert lab.get("/index") == "answer"
    assert lab.get("/secret") == "reset"
    assert lab.server.paths == ["/index"]


@pytest.mark.parametrize("address", [DEVICE, DEVICE6])
def test_reject_sends_a_reset(lab: Lab, address: str) -> None:
    run = lab.run("--queue", str(QUEUE), rule=f"reject {RULE}")
    lab.hand_to_queue("INPUT", "OUTPUT")
    assert lab.get("/index", address) == "answer"
    assert lab.get("/secret", address) == "reset"
    assert lab.server.paths == ["/index"]
    (alert,) = run.events("alert")
    assert alert["alert"]["action"] == "blocked"
    stats = run.stop()
    assert (stats["ips"]["rejected"], stats["ips"]["replies"], stats["ips"]["replies_suppressed"]) == (1, 1, 0)


def test_reject_tells_both_ends(lab: Lab) -> None:
    lab.run("--queue", str(QUEUE), rule=f"rejectboth {RULE}")
    lab.hand_to_queue("INPUT", "OUTPUT")
    with lab.device.inside():
        listener = socket.create_server((DEVICE, 8080))
    with lab.client.inside():
        client = socket.create_connection((DEVICE, 8080), timeout=SILENCE_S)
    with contextlib.closing(listener), contextlib.closing(client), contextlib.closing(listener.accept()[0]) as server:
        server.settimeout(SILENCE_S)
        client.sendall(b"GET /secret HTTP/1.1\r\nHost: x\r\n\r\n")
        for end in (client, server):
            with pytest.raises(ConnectionResetError):
                end.recv(100)


def test_a_rejected_datagram_is_answered_with_icmp(lab: Lab) -> None:
    rule = f'reject udp any any -> any {DATAGRAMS} (msg:"no"; content:"secret"; sid:2;)'
    lab.run("--queue", str(QUEUE), rule=rule)
    lab.hand_to_queue("INPUT", "OUTPUT")
    with lab.device.inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((DEVICE, DATAGRAMS))
    with lab.client.inside():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(server), contextlib.closing(client):
        server.settimeout(SILENCE_S)
        client.settimeout(SILENCE_S)
        client.connect((DEVICE, DATAGRAMS))
        client.send(b"hello")
        assert server.recv(100) == b"hello"
        client.send(b"secret")
        with pytest.raises(OSError, match=r"No route to host|Permission denied|unreachable|refused"):
            client.recv(100)
        with pytest.raises(TimeoutError):
            server.recv(100)


@pytest.mark.parametrize("is_open", [False, True])
def test_without_inspector_closed_or_open_as_the_firewall_says(lab: Lab, is_open: bool) -> None:
    run = lab.run("--queue", str(QUEUE), rule=f"drop {RULE}")
    lab.hand_to_queue("INPUT", bypass=is_open)
    lab.hand_to_queue("OUTPUT", bypass=is_open)
    assert lab.get("/secret") == "silence"
    run.kill()
    assert lab.get("/index") == ("answer" if is_open else "silence")
    assert lab.get("/secret") == ("answer" if is_open else "silence")
    lab.run("--queue", str(QUEUE), rule=f"drop {RULE}")
    assert lab.get("/index") == "answer"
    assert lab.get("/secret") == "silence"


@pytest.mark.parametrize("is_open", [False, True])
def test_a_full_queue_drops_or_lets_go_as_set(lab: Lab, is_open: bool) -> None:
    more = ["--fail-open"] if is_open else []
    run = lab.run("--queue", str(QUEUE), *more, rule=f"drop {RULE}")
    lab.hand_to_queue("INPUT")
    run.process.send_signal(signal.SIGSTOP)
    with lab.client.inside():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with lab.device.inside():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(sender), contextlib.closing(receiver):
        receiver.bind((DEVICE, DATAGRAMS))
        receiver.settimeout(SILENCE_S)
        for number in range(1200):  # the queue holds 1,024
            sender.sendto(str(number).encode(), (DEVICE, DATAGRAMS))
        if is_open:
            assert int(receiver.recv(100)) >= 1000, "what found no room"
        else:
            with pytest.raises(TimeoutError):
                receiver.recv(100)
        run.process.send_signal(signal.SIGCONT)
        assert receiver.recv(100)
    time.sleep(0.5)
    assert (run.stop()["capture"]["kernel_drops"] > 0) == (not is_open)


def test_a_queue_and_a_group_have_one_owner(lab: Lab) -> None:
    for words, code in ((["--queue", str(QUEUE)], "ids.queue.busy"), (["--nflog", str(GROUP)], "ids.log.busy")):
        lab.run(*words)
        second = Run(lab.device, *words)
        second.kill()
        assert second.process.returncode == 4
        assert any(code in line for line in second.said), second.said


def test_without_the_capability_the_code_says_so(lab: Lab) -> None:
    for words in (["--queue", str(QUEUE)], ["--nflog", str(GROUP)]):
        command = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
        command += [sys.executable, "-m", "tidegate.cli.main", "ids", "run", *words]
        done = lab.device.run(command, check=False)
        assert done.returncode == 4
        assert b"ids.queue.permission" in done.stderr
