"""Real attackers against the compiled policy: scanners, floods, fragments, header chains, storms at layer 2.

Each attack is made twice: without the rule, where it has to work (or the test would prove nothing), and with it.
Through the second one, a manager and an honest visitor go on with their sessions. What the kernel should decide is not
written down here but asked of ``evaluate.explain_packet`` and ``link.evaluate_frame``.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.firewall.checks import verify_ruleset
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.evaluate import evaluate_packet
from tidegate.firewall.link import Cast, Frame, evaluate_frame
from tidegate.firewall.model import Packet, Ruleset, State, Verdict, plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection, Protocol
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("nmap") is None, reason="the program nmap is not installed"),
    pytest.mark.skipif(shutil.which("hping3") is None, reason="the program hping3 is not installed"),
]

DEVICE, MANAGER, HONEST, STRANGER, OTHER = (f"192.0.2.{n}" for n in (1, 2, 3, 66, 67))
DEVICE6, STRANGER6 = "2001:db8::1", "2001:db8::66"
ROUTER_MAC, FOREIGN_MAC = "02:00:00:00:0d:01", "02:00:00:00:0d:02"
TCP_PORTS, UDP_PORTS = (22, 8080, 8443, 9999), (5683, 7000)
UNUSED = 10_001  # nobody listens there: what a scan calls closed
REFUSED_S = 0.25  # a veth pair answers in microseconds
SESSION_BAR_S = 1.0  # a lost packet costs 0.2 s, a second one 0.4 s more; the machine that tests may be busy
FLOOD = 2000
ROOM = 16  # the least that a table of sources may have
MEAGRE = {"new_per_s": 1, "burst": 1, "sources": ROOM}
POLICY: dict[str, Any] = {
    "management": {"peers": [MANAGER], "service": "ssh"},
    "zones": {"wan": {"interfaces": ["eth0"]}},
    "services": {
        "ssh": {"protocol": "tcp", "ports": [22], "peers": []},
        "web": {"protocol": "tcp", "ports": [8080], "peers": ["any"]},
        "six": {"protocol": "tcp", "ports": [8443], "peers": ["2001:db8::/64"], "zones": ["wan"]},
        "coap": {"protocol": "udp", "ports": [5683], "peers": ["any", f"!{OTHER}"]},
    },
}


def change_services(**changes: dict[str, Any]) -> dict[str, Any]:
    """Return the policy's services with more said about some."""
    return {name: rule | changes.get(name, {}) for name, rule in POLICY["services"].items()}


class Session(threading.Thread):
    """Sessions that were open before the attack: something to and fro every 100 ms, and how long it took at worst."""

    def __init__(self, pairs: Sequence[tuple[socket.socket, socket.socket]]) -> None:
        super().__init__(daemon=True)
        self.pairs, self.ended = pairs, threading.Event()
        self.taken_s: list[float] = []
        self.broken: OSError | None = None

    def run(self) -> None:
        number = 0
        while not self.ended.wait(0.1):
            number += 1
            for near, far in self.pairs:
                begin = time.monotonic()
                try:
                    self.exchange(near, far, struct.pack("!Q", number))
                except OSError as error:
                    self.broken = error
                    return
                self.taken_s.append(time.monotonic() - begin)

    def exchange(self, near: socket.socket, far: socket.socket, word: bytes) -> None:
        for sender, receiver in ((near, far), (far, near)):
            sender.sendall(word)
            got = receiver.recv(100)
            if got != word:
                raise ConnectionError(f"{got!r} instead of {word!r}")


class Lab:
    """A device and, on the other end of its cable, a manager, an honest visitor and the attackers."""

    def __init__(self, device: Namespace, others: Namespace) -> None:
        self.device, self.others = device, others
        self.closing = contextlib.ExitStack()
        with device.inside():
            self.nft = Nft.open()
            servers = [
                socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
                for port in TCP_PORTS
            ]
            udp = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in UDP_PORTS]
        with others.inside():
            self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self.wire.bind(("eth0", 0))
        for one in (*servers, *udp, self.wire):
            self.closing.enter_context(one)
        self.closing.callback(self.nft.close)
        self.servers = dict(zip(TCP_PORTS, servers, strict=True))
        for server, port in zip(udp, UDP_PORTS, strict=True):
            server.bind(("::", port))
            self.closing.enter_context(answering(server))
        self.device_mac = device.run(["cat", "/sys/class/net/eth0/address"]).stdout.decode().strip()
        self.others_mac = others.run(["cat", "/sys/class/net/eth0/address"]).stdout.decode().strip()

    def load(self, **changes: Any) -> Ruleset:
        """Put a policy in force; the namespace's earlier one, and what it remembers, is gone."""
        section = msgspec.convert(POLICY | {"log_per_s": 0} | changes, FirewallSection)
        ruleset = verify_ruleset(plan_ruleset(section)).ruleset
        self.clear()
        self.nft.run(encode_ruleset(ruleset))
        return ruleset

    def clear(self) -> None:
        """Leave nothing but connection tracking, which has nothing to do with being filtered."""
        self.nft.run("flush ruleset\n" + BARE)

    def connect(self, port: int, source: str = STRANGER, timeout_s: float = 2.0) -> socket.socket | None:
        six = ":" in source
        with self.others.inside():
            client = self.closing.enter_context(socket.socket(socket.AF_INET6 if six else socket.AF_INET))
        client.settimeout(timeout_s)
        client.bind((source, 0))
        try:
            client.connect((DEVICE6 if six else DEVICE, port))
        except TimeoutError:
            client.close()
            return None
        return client

    @contextlib.contextmanager
    def sessions(self, what: str) -> Iterator[dict[str, int]]:
        """Hold a manager's and a visitor's session through the body, and judge them at its end.

        Yields the ports on their side.
        """
        pairs, ports = [], {}
        for source, port in ((MANAGER, 22), (HONEST, 8080)):
            client = self.connect(port, source)
            assert client is not None
            far, peer = self.servers[port].accept()
            while peer[0] != f"::ffff:{source}":  # whom an attack of before left in the queue
                far.close()
                far, peer = self.servers[port].accept()
            far.settimeout(5)
            client.settimeout(5)
            self.closing.enter_context(far)
            pairs.append((client, far))
            ports[source] = client.getsockname()[1]
        session = Session(pairs)
        session.start()
        try:
            yield ports
            time.sleep(0.25)
        finally:
            session.ended.set()
            session.join(10)
        assert session.broken is None
        assert len(session.taken_s) >= 4
        worst_s = max(session.taken_s)
        told = f"{what}: {len(session.taken_s)} exchanges of open sessions, the slowest took {worst_s * 1000:.1f} ms"
        sys.stdout.write(told + "\n")
        assert worst_s < SESSION_BAR_S

    def flood(self, *words: str, count: int = FLOOD, every_us: int = 200) -> None:
        """Send ``count`` packets at the device with hping3, and wait until they are sent."""
        command = ["hping3", "-q", "-i", f"u{every_us}", "-c", str(count), *words, DEVICE]
        self.others.run(command, check=False, timeout_s=15)

    @contextlib.contextmanager
    def background(self, *command: str) -> Iterator[None]:
        process = self.others.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            assert process.poll() is None  # an attack that never began proves nothing
            yield
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()

    def counter(self, name: str, table: str = "inet tidegate") -> int:
        listing = self.device.run(["nft", "list", "counter", *table.split(), name]).stdout.decode()
        return int(listing.split("packets ")[1].split()[0])

    def members(self, name: str) -> int:
        """Return how many elements a set has."""
        listing = self.device.run(["nft", "list", "set", "inet", "tidegate", name]).stdout.decode()
        elements = listing.partition("elements = {")[2].partition("}")[0]
        return elements.count(",") + 1 if elements else 0

    def tracked(self) -> int:
        return int(self.device.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_count"]).stdout)


BARE = """
table inet bare {
 counter arrived { }
 chain input {
  type filter hook input priority 100; policy accept;
  ct state != established counter name arrived
 }
}
"""


@contextlib.contextmanager
def answering(server: socket.socket) -> Iterator[None]:
    """Send every datagram back to whom it came from, so that a scan finds the port open."""
    ended = threading.Event()
    server.settimeout(0.1)

    def work() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):  # nothing for a while, or the answer was refused
                server.sendto(*server.recvfrom(2048))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("tgat-dev")) as device, Namespace.create(make_unique("tgat-oth")) as others:
        join(
            device,
            others,
            addresses_a=[f"{DEVICE}/24", f"{DEVICE6}/64"],
            addresses_b=[f"{one}/24" for one in (MANAGER, HONEST, STRANGER, OTHER)] + [f"{STRANGER6}/64"],
        )
        # Forged sources have to be somewhere: answers to them go to a router that does not exist.
        for words in (
            "ip route add default via 192.0.2.254",
            f"ip neigh add 192.0.2.254 dev eth0 lladdr {ROUTER_MAC} nud permanent",
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=0",
        ):
            device.run(words.split())
        made = Lab(device, others)
        with made.closing:
            made.clear()
            yield made


def scan(lab: Lab, *words: str, source: str = STRANGER, ports: Sequence[int] = (*TCP_PORTS, UNUSED)) -> dict[int, str]:
    """Return what nmap says of each TCP port."""
    return scan_both(lab, *words, source=source, ports=",".join(str(port) for port in ports))["tcp"]


def scan_both(lab: Lab, *words: str, source: str, ports: str) -> dict[str, dict[int, str]]:
    six = ["-6"] if ":" in source else []
    command = [
        "nmap",
        "-n",
        "-Pn",
        "--max-retries",
        "1",
        "--host-timeout",
        "15s",
        "-e",
        "eth0",
        "-S",
        source,
        "-p",
        ports,
    ]
    said = lab.others.run([*command, *six, *words, "-oG", "-", DEVICE6 if six else DEVICE], timeout_s=18)
    found: dict[str, dict[int, str]] = {"tcp": {}, "udp": {}}
    for port, state, protocol in re.findall(r"(\d+)/([a-z|]+)/(tcp|udp)/", said.stdout.decode()):
        found[protocol][int(port)] = state
    return found


def asked(source: str, port: int, protocol: Protocol = Protocol.TCP, **more: Any) -> Packet:
    to = DEVICE6 if ":" in source else DEVICE
    return Packet(
        interface="eth0", source=ip_address(source), destination=ip_address(to), protocol=protocol, port=port, **more
    )


def allowed(ruleset: Ruleset, source: str, ports: Sequence[int], protocol: Protocol = Protocol.TCP) -> set[int]:
    return {port for port in ports if evaluate_packet(ruleset, asked(source, port, protocol)) is Verdict.ACCEPT}


@pytest.mark.parametrize("source", [STRANGER, OTHER, MANAGER, STRANGER6])
def test_a_scan_finds_the_ports_of_the_policy_and_no_others(lab: Lab, source: str) -> None:
    ports = f"T:{','.join(map(str, (*TCP_PORTS, UNUSED)))},U:{','.join(map(str, UDP_PORTS))}"
    bare = scan_both(lab, "-sS", "-sU", source=source, ports=ports)
    assert {port for port, state in bare["tcp"].items() if state == "open"} == set(TCP_PORTS)
    assert {port for port, state in bare["udp"].items() if state == "open"} == set(UDP_PORTS)
    assert bare["tcp"][UNUSED] == "closed"
    ruleset = lab.load()
    with lab.sessions(f"scan from {source}"):
        found = scan_both(lab, "-sS", "-sU", source=source, ports=ports)
    tcp, udp = (
        allowed(ruleset, source, some, kind) for some, kind in ((TCP_PORTS, Protocol.TCP), (UDP_PORTS, Protocol.UDP))
    )
    assert tcp != set(TCP_PORTS)  # the policy does refuse something
    assert found["tcp"] == {port: "open" if port in tcp else "filtered" for port in (*TCP_PORTS, UNUSED)}
    assert found["udp"] == {port: "open" if port in udp else "open|filtered" for port in UDP_PORTS}


@pytest.mark.parametrize(
    ("source", "link", "counter"),
    [(STRANGER, {}, "inet tidegate invalid"), (STRANGER6, {"wan": {}}, "netdev tidegate_link link_wan_flags")],
)
@pytest.mark.parametrize("kind", ["-sX", "-sN", "-sF"])
def test_stealth_scans_learn_nothing(lab: Lab, kind: str, source: str, link: dict[str, Any], counter: str) -> None:
    assert scan(lab, kind, source=source)[UNUSED] == "closed"  # the kernel alone tells
    lab.load(link=link)
    assert set(scan(lab, kind, source=source).values()) == {"open|filtered"}
    table, _, name = counter.rpartition(" ")
    assert lab.counter(name, table) >= len(TCP_PORTS)


@pytest.mark.parametrize("source", [STRANGER, STRANGER6])
def test_a_scan_with_bare_acks_tells_what_anybody_may_know(lab: Lab, source: str) -> None:
    """Tracking that picks up connections in the middle takes an ACK for something new: the policy decides then."""
    assert set(scan(lab, "-sA", source=source).values()) == {"unfiltered"}
    ruleset = lab.load()
    found = scan(lab, "-sA", source=source)
    assert {port for port, state in found.items() if state == "unfiltered"} == allowed(ruleset, source, TCP_PORTS)
    lab.device.run(["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"])
    assert set(scan(lab, "-sA", source=source).values()) == {"filtered"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """What hping3 is told, and what the device may have to remember of it."""

    words: str
    most: int  # packets that get through the policy, and connection entries that they make
    leaves_entries: bool = True  # without a policy
    counter: str | None = None  # of admitted packets
    remembered: str | None = None  # the set of sources


FLOODS = {
    "syn": Flood(words="-S -p 8080 --rand-source", most=ROOM, counter="svc_web", remembered="svc_web_rate4"),
    "ack": Flood(
        words="-A -p 8080 --rand-source", most=ROOM, leaves_entries=False, counter="svc_web", remembered="svc_web_rate4"
    ),
    "syn-refused": Flood(words="-S -p 9999 --rand-source", most=0),
    "udp": Flood(words="-2 -p 5683 --rand-source", most=ROOM, counter="svc_coap", remembered="svc_coap_rate4"),
    "udp-refused": Flood(words="-2 -p 7000 --rand-source", most=0),
    "icmp": Flood(words="-1 --rand-source", most=100),  # ten a second, and it takes less than nine
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_forged_sources_finds_its_bound(lab: Lab, name: str) -> None:
    flood = FLOODS[name]
    lab.load(services=change_services(web={"limit": MEAGRE}, coap={"limit": MEAGRE}))
    with lab.sessions(f"flood {name}"):
        passed, grown = flood_with(lab, flood)
        if flood.counter is not None and flood.remembered is not None:
            assert lab.counter(f"{flood.counter}_over") > FLOOD // 2
            # The sixteen that found room, one packet each; the visitor of ``sessions`` is one of web's.
            assert lab.counter(flood.counter) == ROOM
            assert lab.members(flood.remembered) == ROOM
        if flood.counter == "svc_web":
            assert lab.connect(8080, timeout_s=REFUSED_S) is None  # full: strangers are refused, not let in
        assert lab.connect(22, MANAGER) is not None
    assert max(passed, grown) <= flood.most
    lab.clear()
    bare_passed, bare_grown = flood_with(lab, flood)
    told = f"{passed} passed, {grown} connection entries; without a policy {bare_passed} and {bare_grown}"
    sys.stdout.write(f"flood {name}, {FLOOD} packets: {told}\n")
    assert bare_passed > FLOOD // 2
    assert bare_grown > FLOOD // 2 or not flood.leaves_entries


def flood_with(lab: Lab, flood: Flood) -> tuple[int, int]:
    """Return how many packets got through, and how many entries of connection tracking they left."""
    arrived, tracked = lab.counter("arrived", "inet bare"), lab.tracked()
    lab.flood(*flood.words.split())
    return lab.counter("arrived", "inet bare") - arrived, lab.tracked() - tracked


@pytest.mark.parametrize("low", [4, 20])
def test_who_went_over_a_water_mark_waits_until_he_is_quiet(lab: Lab, low: int) -> None:
    """Ten a second are under the high mark and over the low one: that depends on what was before."""
    marks = {"per": "source", "high": 20, "low": low, "sources": ROOM}
    lab.load(services=change_services(web={"thresholds": [marks]}))
    with lab.sessions(f"water marks 20 and {low}"):
        lab.flood("-S", "-p", "8080", "-a", OTHER, count=150, every_us=5000)
        burst = lab.counter("svc_web")
        assert burst < 75  # the burst, a second's worth more, and the visitor
        assert lab.connect(8080) is not None  # somebody else's mark is untouched
        before = lab.counter("svc_web")
        lab.flood("-S", "-p", "8080", "-a", OTHER, count=15, every_us=100_000)
        slowly = lab.counter("svc_web") - before
    if low == 20:
        assert slowly >= 12  # the counter-proof: one mark alone forgives at once
    else:
        assert slowly == 0
        time.sleep(1.2)
        assert lab.connect(8080, OTHER) is not None


def test_a_mark_over_everything_spares_the_manager(lab: Lab) -> None:
    flood = ["hping3", "-q", "-S", "-p", "8080", "--rand-source", "-i", "u500", DEVICE]
    with lab.background(*flood):
        assert lab.connect(8080) is not None  # the flood alone shuts nobody out
    lab.load(thresholds=[{"per": "total", "high": 50, "low": 10}])
    with lab.sessions("a mark over everything"), lab.background(*flood):
        assert lab.connect(8080, timeout_s=REFUSED_S) is None
        assert lab.connect(22, MANAGER) is not None
        assert lab.counter("all_0_over") > 100
        assert lab.counter("svc_web") <= 60  # the visitor, the mark, and what it regains while it is reached
    time.sleep(1.2)
    assert lab.connect(8080) is not None
