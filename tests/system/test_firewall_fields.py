"""Field rules on the real kernel: marked packets, the queue, the inspector, real clients and servers."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tidegate.base.errors import TidegateError
from tidegate.cli import firewall_fields
from tidegate.cli.output import Output
from tidegate.firewall import xtqueue
from tidegate.testing.netns import Namespace, join, make_unique

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces, nftables and packet queues need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
    pytest.mark.skipif(shutil.which("iptables-nft-restore") is None, reason="iptables is not installed"),
    pytest.mark.timeout(60),
]

QUEUE = 5454
DEVICE, CLIENT, BEHIND = "192.0.2.1", "192.0.2.2", "198.51.100.1"
DEVICE6, CLIENT6 = "2001:db8::1", "2001:db8::2"
STRICT, WATCHED, OPEN = 502, 503, 504  # enforced; observed; enforced, but passing when nobody inspects
MQTT, COAP, DNS = 1883, 5683, 5353
ANSWER_S = 2.0
SILENCE_S = 0.4  # a pair of namespaces answers in microseconds

REPEATED_S = 8.0  # TCP repeats after 0.2, 0.4, 0.8, 1.6, 3.2 s

READS = [{"functions": [[1, 4]]}]
RULES: dict[int, dict[str, Any]] = {
    1: {"name": "reads", "protocol": "modbus", "allow": READS},
    2: {"name": "watched", "protocol": "modbus", "mode": "observe", "allow": READS},
    3: {
        "name": "topics",
        "protocol": "mqtt",
        "allow": [{"actions": [[1, 1]]}, {"actions": [[3, 3]], "topics": ["plant/+/temperature"]}],
    },
    4: {"name": "paths", "protocol": "coap", "allow": [{"methods": [[1, 1]], "paths": ["/time"]}]},
    5: {"name": "names", "protocol": "dns", "allow": [{"names": ["*.example.com"]}]},
}
CONFIG = json.dumps(
    {
        "version": 1,
        "memory_bytes": 4 << 20,
        "rules": [
            {"id": number, "mode": "enforce", "unparsable": "drop", "deny": [], **rule}
            for number, rule in RULES.items()
        ],
    }
)
MARKS = (
    ("tcp", STRICT, 0x41000000),
    ("tcp", WATCHED, 0xC2000000),
    ("tcp", OPEN, 0xC1000000),
    ("tcp", MQTT, 0x43000000),
    ("udp", COAP, 0x44000000),
    ("udp", DNS, 0x45000000),
)


def policy(*hooks: str) -> bytes:
    """What the compiler makes of field rules: marks before iptables' rules, and behind them no way around."""
    before, behind = min(xtqueue.PRIORITIES) - 10, max(xtqueue.PRIORITIES) + 10
    lines = ["table inet fields {", "counter uninspected { }"]
    for hook in hooks:
        marks = [f"{p} dport {port} meta mark set meta mark & 0x00ffffff | {mark:#x}" for p, port, mark in MARKS]
        lines += [f"chain mark_{hook} {{", f"type filter hook {hook} priority {before}; policy accept;"]
        lines += ["ct state invalid drop", *marks, "}"]
        lines += [f"chain check_{hook} {{", f"type filter hook {hook} priority {behind}; policy accept;"]
        lines += ["meta mark & 0xc0000000 == 0x40000000 counter name uninspected drop", "}"]
    return "\n".join([*lines, "}", ""]).encode()


def request(function: int) -> bytes:
    return b"\0\1\0\0\0\6\1" + bytes([function]) + b"\0\x28\0\1"


class PlcServer:
    """A Modbus server that keeps what it was asked."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener, self.functions, self.received = listener, [], b""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self.listener.accept()[0]
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        held = b""
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(4096):
                self.received += data
                held += data
                while len(held) >= 12:
                    message, held = held[:12], held[12:]
                    self.functions.append(message[7])
                    connection.sendall(message[:4] + b"\0\5" + message[6:8] + b"\2\0\7")


class Inspector:
    """The worker's process and what it says."""

    def __init__(self, space: Namespace, number: int = QUEUE) -> None:
        arguments = [sys.executable, "-m", "tidegate.ids.inline", "--queue", str(number)]
        self.process = space.popen(arguments, stdin=subprocess.PIPE, stderr=None)
        assert self.process.stdin is not None
        self.process.stdin.write(CONFIG.encode() + b"\n")
        self.process.stdin.close()
        self.lines: list[dict[str, Any]] = []
        self.first = self._read()
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def _follow(self) -> None:
        while line := self._read():
            self.lines.append(line)

    def events(self, kind: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait for so many lines of a kind and return them all."""
        deadline_s = time.monotonic() + ANSWER_S
        while len(found := [line for line in self.lines if line["event_type"] == kind]) < count:
            assert time.monotonic() < deadline_s, self.lines
            time.sleep(0.01)
        return found

    def stop(self) -> dict[str, int]:
        """End it in order and return its last counters."""
        self.process.terminate()
        self._end()
        assert self.process.returncode == 0
        return self.lines[-1]["stats"]["inline"]

    def kill(self) -> None:
        self.process.kill()
        self._end()

    def _end(self) -> None:
        self.process.wait(5)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Lab:
    """A device with servers, and a client at the other end of a cable."""

    def __init__(self, device: Namespace, other: Namespace) -> None:
        self.device, self.other = device, other
        self.inspectors: list[Inspector] = []
        self.sockets: list[socket.socket] = []

    def enforce(self, *hooks: str) -> None:
        self.device.run(["nft", "-f", "-"], stdin=policy(*hooks))
        with self.device.inside():
            xtqueue.install_queue_rules(QUEUE)

    def inspect(self) -> Inspector:
        made = Inspector(self.device)
        assert made.first["event_type"] == "ready", made.first
        self.inspectors.append(made)
        return made

    def serve(self, port: int, space: Namespace | None = None) -> PlcServer:
        with (space or self.device).inside():
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        self.sockets.append(listener)
        return PlcServer(listener)

    def connect(self, port: int, address: str = DEVICE, space: Namespace | None = None) -> socket.socket | None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with (space or self.other).inside():
            made = socket.socket(family)
        self.sockets.append(made)
        made.settimeout(SILENCE_S)
        try:
            made.connect((address, port))
        except TimeoutError:
            return None
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(ANSWER_S)
        return made

    def ask(self, connection: socket.socket | None, *pieces: bytes, patience_s: float = SILENCE_S) -> str:
        """Send the pieces one by one; return ``answer``, ``reset``, ``closed`` or ``silence``."""
        assert connection is not None
        try:
            for piece in pieces:
                connection.sendall(piece)
                if len(pieces) > 1:
                    time.sleep(0.005)  # a segment for each
            connection.settimeout(patience_s)
            return "answer" if connection.recv(100) else "closed"
        except TimeoutError:
            return "silence"
        except (ConnectionResetError, BrokenPipeError):
            return "reset"

    def close(self) -> None:
        for one in self.inspectors:
            if one.process.poll() is None:
                one.kill()
        for one in self.sockets:
            one.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("tgfi-dev")) as device, Namespace.create(make_unique("tgfi-oth")) as other:
        join(
            device,
            other,
            addresses_a=[f"{DEVICE}/24", f"{DEVICE6}/64"],
            addresses_b=[f"{CLIENT}/24", f"{CLIENT6}/64"],
        )
        made = Lab(device, other)
        try:
            yield made
        finally:
            made.close()


def test_the_way_to_the_inspector_is_found_laid_and_taken_away(lab: Lab) -> None:
    others = "-A INPUT -p tcp -m tcp --dport 9 -j DROP"
    with lab.device.inside():
        assert xtqueue.queue_support().xt
        assert lab.device.run(["nft", "list", "ruleset"]).stdout.strip() == b""  # asking changed nothing
        lab.device.run(["iptables-nft", "-t", "security", *others.split()])
        for number in (7, QUEUE, QUEUE):
            xtqueue.install_queue_rules(number)
            assert all(rules.is_complete(number) for rules in xtqueue.inspect_queue_rules())
        lab.device.run(["iptables-nft", "-t", "security", "-A", "INPUT", "-j", xtqueue.CHAIN])  # twice now
        lab.device.run(["ip6tables-nft", "-t", "security", "-F", xtqueue.CHAIN])
        assert not any(rules.is_complete(QUEUE) for rules in xtqueue.inspect_queue_rules())
        xtqueue.install_queue_rules(QUEUE)
        assert all(rules.is_complete(QUEUE) for rules in xtqueue.inspect_queue_rules())
        for _ in range(2):
            xtqueue.remove_queue_rules()
            assert [(rules.queues, rules.hooks) for rules in xtqueue.inspect_queue_rules()] == [((), ())] * 2
    left = lab.device.run(["iptables-nft-save", "-t", "security"]).stdout.decode()
    assert others in left
    assert xtqueue.CHAIN not in left


@pytest.mark.parametrize("address", [DEVICE, DEVICE6])
def test_modbus_reads_pass_and_writes_do_not(lab: Lab, address: str) -> None:
    server = lab.serve(STRICT)
    lab.enforce("input")
    inspector = lab.inspect()
    read, write = request(3), request(6)
    connection = lab.connect(STRICT, address)
    assert lab.ask(connection, read) == "answer"
    assert lab.ask(connection, write) == "reset"
    assert lab.ask(lab.connect(STRICT, address), *(bytes([byte]) for byte in read)) == "answer"
    attempts = [
        [bytes([byte]) for byte in write],  # byte by byte
        [write[:7], write[7:]],
        [read + write],  # behind a read in one segment
        [read + write[:11], write[11:]],
        [read[:5], read[5:] + write],
    ]
    for pieces in attempts:
        assert lab.ask(lab.connect(STRICT, address), *pieces) in {"reset", "answer"}  # the answer is to a read
    assert set(server.functions) == {3}
    assert all(len(bytes(server.received)) % 12 != 0 or function == 3 for function in server.functions)
    drops = inspector.events("drop", 6)
    assert len(drops) == 6
    assert {drop["metadata"]["rule"] for drop in drops} == {"reads"}
    assert {(drop["dest_ip"], drop["dest_port"], drop["proto"]) for drop in drops} == {(address, STRICT, "TCP")}
    assert all("function 6" in drop["metadata"]["what"] for drop in drops)
    counted = inspector.stop()
    assert counted["refused"] == 6
    assert counted["queue_dropped"] == counted["user_dropped"] == 0


def test_without_inspector_closed_or_open_as_the_mark_says(lab: Lab) -> None:
    strict, lenient = lab.serve(STRICT), lab.serve(OPEN)
    lab.enforce("input")
    assert lab.connect(STRICT) is None
    assert lab.ask(lab.connect(OPEN), request(6)) == "answer"
    first = lab.inspect()
    old, old_lenient = lab.connect(STRICT), lab.connect(OPEN)
    assert lab.ask(old, request(3)) == "answer"
    assert lab.ask(old_lenient, request(3)) == "answer"
    assert lab.ask(lab.connect(OPEN), request(6)) == "reset"
    first.kill()
    assert lab.ask(old, request(3)) == "silence"
    assert lab.ask(old_lenient, request(6)) == "answer"
    assert lab.connect(STRICT) is None
    second = lab.inspect()
    # its place among the messages is not known any more; the client speaks when its next repetition is due
    assert lab.ask(old, request(3), patience_s=REPEATED_S) == "reset"
    assert lab.ask(old_lenient, request(6), patience_s=REPEATED_S) == "reset"
    assert lab.ask(lab.connect(STRICT), request(3)) == "answer"
    assert {drop["drop"]["reason"] for drop in second.events("drop")} == {"stream.midstream"}
    assert second.stop()["mid_stream"] >= 2
    assert set(strict.functions) == {3}
    assert 6 in lenient.functions


def test_a_hung_inspector_closes_and_goes_on_where_it_was(lab: Lab) -> None:
    server = lab.serve(STRICT)
    lab.enforce("input")
    inspector = lab.inspect()
    connection = lab.connect(STRICT)
    assert lab.ask(connection, request(3)) == "answer"
    inspector.process.send_signal(signal.SIGSTOP)
    assert lab.ask(connection, request(6)) == "silence"
    assert lab.connect(STRICT) is None
    inspector.process.send_signal(signal.SIGCONT)
    assert inspector.events("drop")[0]["drop"]["reason"] == "field.refused"
    assert server.functions == [3]


def test_rules_that_somebody_flushed_close_the_service(lab: Lab) -> None:
    server = lab.serve(STRICT)
    lab.enforce("input")
    lab.inspect()
    connection = lab.connect(STRICT)
    assert lab.ask(connection, request(3)) == "answer"
    lab.device.run(["iptables-nft", "-t", "security", "-F"])
    assert lab.ask(connection, request(6)) == "silence"
    assert lab.connect(STRICT) is None
    assert server.functions == [3]


def test_observing_reports_and_stops_nothing(lab: Lab) -> None:
    server = lab.serve(WATCHED)
    lab.enforce("input")
    inspector = lab.inspect()
    connection = lab.connect(WATCHED)
    assert lab.ask(connection, request(6)) == "answer"
    assert lab.ask(connection, request(3)) == "answer"
    (alert,) = inspector.events("alert")
    assert alert["alert"]["action"] == "allowed"
    assert alert["metadata"]["rule"] == "watched"
    assert server.functions == [6, 3]


def test_the_worker_gives_up_what_it_does_not_need(lab: Lab) -> None:
    inspector = lab.inspect()
    status = Path(f"/proc/{inspector.process.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == fields["Gid"].split() == ["65534"] * 4
    assert fields["Groups"].strip() == ""
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm")} == {1 << 12}  # CAP_NET_ADMIN
    assert {int(fields[name], 16) for name in ("CapInh", "CapAmb")} == {0}
    assert fields["NoNewPrivs"] == "1"
    second = Inspector(lab.device)
    assert second.first["code"] == "ids.queue.busy"
    assert second.process.wait(5) == 4
    second.kill()


def test_the_worker_dies_with_its_parent(lab: Lab) -> None:
    script = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'tidegate.ids.inline', '--queue', '{QUEUE}'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        f"child.stdin.write({CONFIG.encode()!r} + b'\\n'); child.stdin.flush()\n"
        "print(child.stdout.readline().decode(), flush=True); time.sleep(60)\n"
    )
    parent = lab.device.popen([sys.executable, "-c", script], stderr=None)
    assert parent.stdout is not None
    worker = json.loads(parent.stdout.readline())["pid"]
    parent.kill()
    parent.wait(5)
    parent.stdout.close()
    deadline_s = time.monotonic() + ANSWER_S
    while worker in lab.device.pids():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_forwarded_connections_are_inspected(lab: Lab) -> None:
    with Namespace.create(make_unique("tgfi-beh")) as behind:
        join(
            lab.device,
            behind,
            interfaces=("eth1", "eth0"),
            addresses_a=["198.51.100.254/24"],
            addresses_b=[f"{BEHIND}/24"],
        )
        behind.run(["ip", "route", "add", "default", "via", "198.51.100.254"])
        lab.other.run(["ip", "route", "add", "default", "via", DEVICE])
        lab.device.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"])
        server = lab.serve(STRICT, behind)
        lab.enforce("forward")
        lab.inspect()
        connection = lab.connect(STRICT, BEHIND)
        assert lab.ask(connection, request(3)) == "answer"
        assert lab.ask(connection, request(6)[:9], request(6)[9:]) == "reset"
        assert server.functions == [3]


def test_what_the_device_sends_is_inspected(lab: Lab) -> None:
    server = lab.serve(STRICT, lab.other)
    lab.enforce("output")
    lab.inspect()
    connection = lab.connect(STRICT, CLIENT, lab.device)
    assert lab.ask(connection, request(3)) == "answer"
    assert lab.ask(connection, request(6)[:9], request(6)[9:]) in {"reset", "closed"}
    assert server.functions == [3]


class RawClient:
    """A TCP client that sends whatever it is told; the kernel's own resets are kept from going out."""

    def __init__(self, lab: Lab, port: int) -> None:
        lab.other.run(["nft", "-f", "-"], stdin=QUIET)
        with lab.other.inside():
            self.socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
        lab.sockets.append(self.socket)
        self.socket.bind((CLIENT, 0))
        self.socket.connect((DEVICE, 0))
        self.ports = struct.pack("!HH", 40_000, port)
        self.initial, self.acknowledgement = 1_000_000, 0

    def send(self, offset: int, payload: bytes = b"", *, flags: int = 0x10) -> None:
        """Send one segment; ``offset`` counts from the initial sequence number, which is the SYN's."""
        head = self.ports + struct.pack(
            "!IIBBHHH", self.initial + offset, self.acknowledgement, 0x50, flags, 8192, 0, 0
        )
        covered = socket.inet_aton(CLIENT) + socket.inet_aton(DEVICE) + struct.pack("!BBH", 0, 6, len(head + payload))
        covered += head + payload + b"\0" * (len(payload) % 2)
        total = sum(struct.unpack(f"!{len(covered) // 2}H", covered))
        while total > 0xFFFF:
            total = (total & 0xFFFF) + (total >> 16)
        self.socket.send(head[:16] + struct.pack("!H", ~total & 0xFFFF) + head[18:] + payload)

    def open(self) -> None:
        self.send(0, flags=0x02)
        while select.select([self.socket], [], [], ANSWER_S)[0]:
            segment = self.socket.recv(2048)[20:]
            if segment[:4] == self.ports[2:] + self.ports[:2] and segment[13] == 0x12:
                self.acknowledgement = struct.unpack("!I", segment[4:8])[0] + 1
                self.send(1)
                return
        raise AssertionError("no answer to the SYN")


QUIET = b"table ip quiet { chain out { type filter hook output priority 0; tcp flags & rst == rst drop\n }\n }\n"
READ, WRITE = request(3), request(6)


@pytest.mark.parametrize(
    "segments",
    [
        pytest.param([(1, READ[:10]), (7, WRITE[6:])], id="a tail sent again with another function"),
        pytest.param([(1, READ[:8]), (1, WRITE)], id="all sent again with another function"),
        pytest.param([(7, WRITE[6:]), (1, WRITE[:6])], id="the tail before the head"),
        pytest.param([(7, WRITE[6:]), (1, READ[:6]), (7, READ[6:])], id="a poisoned tail ahead of honest bytes"),
        pytest.param([(1, READ), (1, WRITE), (13, WRITE)], id="a complete message again, changed, with another behind"),
        pytest.param([(1, WRITE[:11]), (0, None), (12, WRITE[11:])], id="a SYN in the middle"),
        pytest.param([(1, WRITE[:8]), (-3, None), (9, WRITE[8:])], id="a SYN with another number"),
        pytest.param([(1, WRITE[:8]), (2, READ)], id="an overlap that begins within"),
    ],
)
def test_an_attacker_with_raw_segments_writes_nothing(lab: Lab, segments: list[tuple[int, bytes | None]]) -> None:
    server = lab.serve(STRICT)
    lab.enforce("input")
    inspector = lab.inspect()
    client = RawClient(lab, STRICT)
    client.open()
    for offset, payload in segments:
        client.send(offset, payload or b"", flags=0x02 if payload is None else 0x18)
        time.sleep(0.03)
    time.sleep(0.1)
    assert 6 not in server.functions
    counted = inspector.stop()
    assert counted["tampered"] + counted["refused"] + counted["out_of_order"] >= 1


def wait_for(condition, patience_s: float = 5.0) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(condition())


def test_without_inspection_such_an_attack_writes(lab: Lab) -> None:
    server = lab.serve(STRICT)
    client = RawClient(lab, STRICT)
    client.open()
    for offset, payload in ((7, WRITE[6:]), (1, WRITE[:6])):
        client.send(offset, payload, flags=0x18)
    assert wait_for(lambda: server.functions == [6]), server.functions


def test_the_raw_client_can_do_what_an_honest_one_does(lab: Lab) -> None:
    server = lab.serve(STRICT)
    lab.enforce("input")
    lab.inspect()
    client = RawClient(lab, STRICT)
    client.open()
    for offset, payload in ((7, READ[6:]), (1, READ[:6]), (7, READ[6:]), (1, READ), (13, READ)):
        client.send(offset, payload, flags=0x18)
        time.sleep(0.03)
    assert wait_for(lambda: server.functions == [3, 3]), server.functions


def test_ip_fragments_are_put_together_and_judged(lab: Lab) -> None:
    server = lab.serve(STRICT)
    lab.enforce("input")
    inspector = lab.inspect()
    client = RawClient(lab, STRICT)
    client.open()
    lab.other.run(["ip", "link", "set", "eth0", "mtu", "1280"])
    with lab.other.inside():
        client.socket.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: IP_PMTUDISC_DONT
    client.send(1, READ * 200 + WRITE, flags=0x18)
    time.sleep(0.2)
    assert server.functions == []
    assert inspector.stop()["refused"] == 1


@pytest.mark.skipif(shutil.which("mosquitto") is None, reason="the broker mosquitto is not installed")
@pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="mosquitto-clients is not installed")
def test_mqtt_topics(lab: Lab, tmp_path: Path) -> None:
    settings = tmp_path / "mosquitto.conf"
    settings.write_text(f"listener {MQTT}\nallow_anonymous true\nlog_dest stdout\nlog_type all\n")
    log = tmp_path / "log"
    with log.open("wb") as stream:
        broker = lab.device.popen(["mosquitto", "-c", str(settings)], stdout=stream, stderr=subprocess.STDOUT)
    try:
        lab.enforce("input")
        inspector = lab.inspect()

        def publish(topic: str, *more: str) -> int:
            words = ["mosquitto_pub", "-h", DEVICE, "-p", str(MQTT), "-q", "1", "-t", topic, *more]
            return lab.other.run(["timeout", "3", *words], check=False).returncode

        deadline_s = time.monotonic() + 5
        while publish("plant/1/temperature", "-m", "20") != 0:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        assert publish("plant/1/temperature", "-m", "21", "-V", "5") == 0
        (tmp_path / "large").write_bytes(b"0123456789abcdef" * 20_000)
        assert publish("plant/2/temperature", "-f", str(tmp_path / "large")) == 0
        assert publish("plant/1/valve", "-m", "open") != 0
        assert publish("plant/1/valve", "-m", "open", "-V", "5") != 0
        drops = inspector.events("drop", 2)
        assert all("plant/1/valve" in drop["metadata"]["what"] for drop in drops)
        inspector.stop()
    finally:
        broker.terminate()
        broker.wait(5)
    said = log.read_text()
    assert "'plant/2/temperature'" in said
    assert "valve" not in said


@pytest.mark.skipif(shutil.which("coap-client-notls") is None, reason="libcoap3-bin is not installed")
def test_coap_paths(lab: Lab) -> None:
    server = lab.device.popen(["coap-server-notls", "-A", DEVICE, "-p", str(COAP)])
    try:
        lab.enforce("input")
        inspector = lab.inspect()

        def get(path: str, method: str = "get") -> bytes:
            words = ["coap-client-notls", "-B", "1", "-m", method, f"coap://{DEVICE}:{COAP}{path}"]
            return lab.other.run(["timeout", "5", *words], check=False).stdout

        deadline_s = time.monotonic() + 10
        while not get("/time"):
            assert time.monotonic() < deadline_s
        assert get("/example_data") == b""
        assert get("/time", "put") == b""
        drops = inspector.events("drop", 2)
        assert {(drop["proto"], drop["metadata"]["protocol"]) for drop in drops} == {("UDP", "coap")}
        inspector.stop()
    finally:
        server.terminate()
        server.communicate(timeout=5)


def test_dns_names(lab: Lab) -> None:
    with lab.device.inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with lab.other.inside():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    lab.sockets += [server, client]
    server.bind((DEVICE, DNS))
    lab.enforce("input")
    inspector = lab.inspect()

    def question(name: str) -> bytes:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        return bytes.fromhex("123401000001000000000000") + labels + b"\0\0\1\0\1"

    for sent in (question("a.example.org"), question("www.example.com")[:-1], question("www.example.com") + b"\0"):
        client.sendto(sent, (DEVICE, DNS))
    client.sendto(question("www.example.com"), (DEVICE, DNS))
    server.settimeout(ANSWER_S)
    assert server.recv(512) == question("www.example.com")
    assert not select.select([server], [], [], SILENCE_S)[0]
    assert "example.org" in inspector.events("drop", 3)[0]["metadata"]["what"]


def test_a_flood_of_connections_is_refused_and_an_old_one_lives_on(lab: Lab) -> None:
    lab.serve(STRICT)
    lab.enforce("input")
    inspector = lab.inspect()
    connection = lab.connect(STRICT)
    assert lab.ask(connection, request(3)) == "answer"
    client = RawClient(lab, STRICT)
    for port in range(20_000, 26_000):
        client.ports = struct.pack("!HH", port, STRICT)
        client.send(0, flags=0x02)
    assert lab.ask(connection, request(3)) == "answer"
    counted = inspector.stop()
    assert counted["table_full"] > 0
    assert counted["flows_live"] <= counted["flow_slots"]


def test_how_many_requests_a_second(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.serve(STRICT)
    figures = {}
    for name in ("plain", "inspected"):
        if name == "inspected":
            lab.enforce("input")
            inspector = lab.inspect()
        connection = lab.connect(STRICT)
        assert connection is not None
        count, started_s = 3_000, time.perf_counter()
        for _ in range(count):
            connection.sendall(READ)
            connection.recv(100)
        figures[name] = count / (time.perf_counter() - started_s)
    counted = inspector.stop()
    assert counted["refused"] == counted["queue_dropped"] == counted["user_dropped"] == 0
    with capsys.disabled():
        sys.stdout.write(
            f"\nModbus requests a second, one by one: {figures['plain']:.0f}, inspected {figures['inspected']:.0f}\n"
        )
    assert figures["inspected"] > 200  # a PLC's masters ask ten times a second


POLICY = """
[policy]
version = 1

[firewall.management]
peers = ["192.0.2.0/24"]
service = "ssh"

[firewall.services.ssh]
protocol = "tcp"
ports = [22]
peers = []

[firewall.services.plc]
protocol = "tcp"
ports = [502]
peers = ["any"]
fields = "reads"

[firewall.fields.reads]
protocol = "modbus"
allow = [{ functions = ["1-4"] }]
"""


def test_the_command_line_runs_inspector_and_proxy(lab: Lab, tmp_path: Path) -> None:
    written = tmp_path / "policy.toml"
    written.write_text(POLICY)
    tidegate = [sys.executable, "-c", DRIVER]
    lab.device.run(["nft", "-f", "-"], stdin=policy("input"))
    server = lab.serve(STRICT)
    with lab.device.inside():
        xtqueue.remove_queue_rules()
    started = [
        lab.device.popen([*tidegate, "run", "--queue", str(QUEUE), str(written)], stderr=None),
        lab.device.popen(
            [
                *tidegate,
                "proxy",
                "--listen",
                f"{DEVICE}:1502",
                "--to",
                "127.0.0.1:502",
                "--rules",
                "reads",
                str(written),
            ],
            stderr=None,
        ),
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["event_type"] == "ready"
        with lab.device.inside():
            assert all(rules.is_complete(QUEUE) for rules in xtqueue.inspect_queue_rules())
        assert lab.ask(lab.connect(STRICT), request(3)) == "answer"
        assert lab.ask(lab.connect(STRICT), request(6)) == "reset"
        connection = lab.connect(1502)
        assert connection is not None
        connection.sendall(request(6))
        assert connection.recv(100) == b"\0\1\0\0\0\3\1\x86\1"
        assert set(server.functions) == {3}
    finally:
        for process in started:
            process.terminate()
            process.communicate(timeout=5)
    assert [process.returncode for process in started] == [0, 0]


DRIVER = """
import argparse, sys
from tidegate.cli import firewall_fields
from tidegate.cli.output import Output
parser = argparse.ArgumentParser()
firewall_fields.add(parser.add_subparsers(required=True))
parsed = parser.parse_args(["fields", *sys.argv[1:]])
sys.exit(parsed.run(parsed, Output(as_json=False)))
"""


def test_a_rule_that_the_policy_does_not_have_is_named(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    firewall_fields.add(parser.add_subparsers(required=True))
    written = tmp_path / "policy.toml"
    without = POLICY.partition("[firewall.fields")[0].replace('fields = "reads"', "")
    for text in (POLICY, without):
        written.write_text(text)
        words = ["proxy", "--listen", "127.0.0.1:1502", "--to", "127.0.0.1:502", "--rules", "no", str(written)]
        parsed = parser.parse_args(["fields", *words])
        with pytest.raises(TidegateError) as caught:
            parsed.run(parsed, Output(as_json=False))
        assert caught.value.code == "firewall.policy.field", caught.value
