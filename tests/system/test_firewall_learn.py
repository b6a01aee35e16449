"""Learning on the real kernel: a device is used for some seconds, and the proposal is what was used."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.cli.firewall_learn import add
from tidegate.cli.output import Output
from tidegate.firewall.checks import verify_ruleset
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.observe import LEARN_TABLE, broadcast_addresses, own_addresses
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and connection tracking need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

DEVICE, PEER, OTHER = "10.20.30.1", "10.20.30.2", "10.20.30.3"
DEVICE6, PEER6 = "2001:db8:1:2::1", "2001:db8:1:2::2"

# What uses the device: argument 1 is a list of (protocol, from, to, port).
USE = """
import json, socket, sys
for kind, source, target, port in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as s:
        s.settimeout(0.5)
        s.bind((source, 0))
        try:
            s.connect((target, port))
            s.send(b"hello")
            s.recv(100)
        except OSError:
            pass
"""

PING = """
import socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
    s.settimeout(2)
    head = struct.pack(">BBHHH", 8, 0, 0, 77, 1)
    s.sendto(struct.pack(">BBHHH", 8, 0, 0xFFFF - sum(struct.unpack(">HHHH", head)), 77, 1), (sys.argv[1], 0))
    s.recv(100)
"""


class Servers:
    """Answers on TCP and UDP ports of one namespace."""

    def __init__(self, space: Namespace, tcp: tuple[int, ...] = (), udp: tuple[int, ...] = ()) -> None:
        self._ends: list[socket.socket] = []
        with space.inside():
            for port in tcp:
                self._ends.append(socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True))
            for port in udp:
                end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                end.bind(("", port))
                self._ends.append(end)
        self._threads = [threading.Thread(target=self._serve, args=(end,), daemon=True) for end in self._ends]
        for thread in self._threads:
            thread.start()

    def _serve(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                if end.type == socket.SOCK_STREAM:
                    session, _ = end.accept()
                    with session:
                        session.recv(100)
                        session.send(b"answer")
                else:
                    data, address = end.recvfrom(100)
                    if not data:
                        return  # it was shut down
                    end.sendto(b"answer", address)

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Lab:
    """A device and what it talks to."""

    def __init__(self, device: Namespace, peer: Namespace) -> None:
        self.device, self.peer = device, peer

    def use(self, space: Namespace, *flows: tuple[str, str, str, int]) -> None:
        space.run([sys.executable, "-c", USE, json.dumps(flows)])

    def learn(self, *words: str) -> int:
        parser = argparse.ArgumentParser()
        add(parser.add_subparsers())
        arguments = parser.parse_args(["learn", *words])
        with self.device.inside():
            return int(arguments.run(arguments, Output(as_json=True)))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("tgdev")) as device, Namespace.create(make_unique("tgpeer")) as peer:
        join(
            device,
            peer,
            addresses_a=[f"{DEVICE}/24", f"{DEVICE6}/64"],
            addresses_b=[f"{PEER}/24", f"{OTHER}/24", f"{PEER6}/64"],
        )
        servers = [Servers(device, tcp=(22, 502, 8080), udp=(47808,)), Servers(peer, tcp=(443,), udp=(123,))]
        try:
            yield Lab(device, peer)
        finally:
            for one in servers:
                one.close()


def watch_while(lab: Lab, use: Any, *words: str) -> int:
    """Learn, and use the device meanwhile."""
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(lab.learn(*words)))
    thread.start()
    deadline = time.monotonic() + 5
    with lab.device.inside():
        nft = Nft.open()
        while nft.list_table(LEARN_TABLE) is None and time.monotonic() < deadline:
            time.sleep(0.05)
    use()
    thread.join()
    return status[0]


def test_what_was_used_is_proposed_and_nothing_else(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def use() -> None:
        lab.use(
            lab.peer,
            ("tcp", PEER, DEVICE, 22),
            ("tcp", PEER, DEVICE, 502),
            ("tcp", OTHER, DEVICE, 502),
            ("tcp", PEER6, DEVICE6, 502),
            ("udp", OTHER, DEVICE, 47808),
            ("tcp", OTHER, DEVICE, 23),  # refused
            ("udp", OTHER, DEVICE, 161),  # refused
        )
        lab.use(lab.device, ("tcp", DEVICE, PEER, 443), ("udp", DEVICE, PEER, 123), ("tcp", DEVICE, "127.0.0.1", 22))
        lab.device.run([sys.executable, "-c", PING, PEER])

    policy = tmp_path / "learnt.toml"
    monkeypatch.setenv("SSH_CONNECTION", f"{PEER} 40000 {DEVICE} 22")
    assert watch_while(lab, use, "--for", "6", "-o", str(policy)) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policy"] == policy.read_text()
    section = msgspec.convert(tomllib.loads(policy.read_text())["firewall"], FirewallSection)
    assert {name: (rule.ports, rule.peers) for name, rule in section.services.items()} == {
        "ssh": ((22,), (PEER,)),
        "modbus": ((502,), ("10.20.30.2/31", PEER6)),
        "bacnet": ((47808,), (OTHER,)),
    }
    assert section.management is not None
    assert (section.management.peers, section.management.service) == ((PEER,), "ssh")
    assert {name: rule.peers for name, rule in section.egress.services.items() if rule.protocol != "igmp"} == {
        "https": (PEER,),
        "ntp": (PEER,),
        "ping": (PEER,),
    }
    unanswered = [one["flow"] for one in told["left_out"] if one["why"] == "nobody answered"]
    assert {f"in tcp/23 from {OTHER}", f"in udp/161 from {OTHER}"} <= set(unanswered)
    with lab.device.inside():
        assert Nft.open().list_table(LEARN_TABLE) is None  # nothing is left behind


def test_under_the_proposal_everything_still_works(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", f"{PEER} 40000 {DEVICE} 22")
    flows = [("tcp", PEER, DEVICE, 22), ("tcp", OTHER, DEVICE, 502), ("udp", OTHER, DEVICE, 47808)]
    policy = tmp_path / "learnt.toml"
    assert watch_while(lab, lambda: lab.use(lab.peer, *flows), "--for", "4", "-o", str(policy)) == 0
    section = msgspec.convert(tomllib.loads(policy.read_text())["firewall"] | {"mode": "enforce"}, FirewallSection)
    with lab.device.inside():
        Nft.open().run(encode_ruleset(verify_ruleset(plan_ruleset(section)).ruleset))
    assert reaches(lab, OTHER, 502)
    assert not reaches(lab, PEER, 502)  # it never used that service
    assert not reaches(lab, OTHER, 8080)  # nobody did


def reaches(lab: Lab, source: str, port: int) -> bool:
    with lab.peer.inside(), socket.socket() as probe:
        probe.settimeout(1.0)
        probe.bind((source, 0))
        try:
            probe.connect((DEVICE, port))
        except OSError:
            return False
    return True


def test_connections_that_were_open_before_are_seen(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with lab.peer.inside():
        session = socket.create_connection((DEVICE, 502), timeout=2)

    def use() -> None:
        session.send(b"still here")
        session.recv(100)

    with session:
        assert watch_while(lab, use, "--for", "3") == 0
    [rule] = json.loads(capsys.readouterr().out)["rules"]
    assert (rule["direction"], rule["name"], rule["far"]) == ("in", "modbus", [PEER])


def test_the_machines_addresses_are_known(lab: Lab) -> None:
    with lab.device.inside():
        own = {str(address) for address in own_addresses()}
        assert {DEVICE, DEVICE6} <= own
        assert PEER not in own
        assert "10.20.30.255" in {str(address) for address in broadcast_addresses()}


def test_a_watch_that_is_cut_short_still_proposes(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import argparse, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tidegate.cli.firewall_learn import add\n"
        "from tidegate.cli.output import Output\n"
        "p = argparse.ArgumentParser(); add(p.add_subparsers())\n"
        "a = p.parse_args(['learn', '--for', '600'])\n"
        "raise SystemExit(a.run(a, Output(as_json=True)))\n"
    )
    process = lab.device.popen([sys.executable, "-c", program])
    with lab.device.inside():
        nft = Nft.open()
        deadline = time.monotonic() + 5
        while nft.list_table(LEARN_TABLE) is None and time.monotonic() < deadline:
            time.sleep(0.05)
    lab.use(lab.peer, ("tcp", PEER, DEVICE, 502))
    time.sleep(0.3)
    process.send_signal(2)
    told, complaint = process.communicate(timeout=10)
    assert process.returncode == 0, complaint.decode()
    assert [rule["name"] for rule in json.loads(told)["rules"]] == ["modbus"]


def test_learning_from_a_file_needs_no_kernel(lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    event = {
        "event_type": "flow",
        "src_ip": PEER,
        "src_port": 40000,
        "dest_ip": DEVICE,
        "dest_port": 5683,
        "proto": "UDP",
        "flow": {
            "pkts_toserver": 1,
            "pkts_toclient": 1,
            "bytes_toserver": 60,
            "bytes_toclient": 60,
            "start": "2026-11-23T08:28:00.000000+0000",
            "end": "2026-11-23T08:28:07.000000+0000",
        },
    }
    path = tmp_path / "eve.json"
    path.write_text(f"no json\n{json.dumps(event)}\n" + json.dumps(event | {"proto": "GRE2"}) + "\n")
    assert lab.learn("--eve", str(path), "--device", DEVICE) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(rule["name"], rule["far"], rule["once"]) for rule in told["rules"]] == [("coap", [PEER], True)]
    assert [one["why"] for one in told["left_out"]] == ["of a protocol that no rule can name"]
