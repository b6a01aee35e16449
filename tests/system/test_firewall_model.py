"""The evaluator against the kernel: random policies, random packets, one verdict.

Every packet is a frame or a datagram made by hand, so that the kernel sees exactly what the evaluator was asked about.
The kernel's verdict is read behind the filter: a table of the test's own, at a later priority of the same hooks, notes
what the filter let through (by IPv4 identification or IPv6 flow label, which the test numbers) and drops it, so that
no packet leaves a connection behind.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

import msgspec
import pytest

from tidegate.firewall.bantable import BAN_LENGTHS, Prefix, gate_of, plan_elements
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.evaluate import explain_packet
from tidegate.firewall.model import Direction, Icmp, Packet, Ruleset, State, Verdict, plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection, Protocol
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

ROUNDS = 100
PACKETS = 300
OWN = {"eth0": ("10.0.0.1", "fd00:0:0:1::1"), "eth1": ("10.0.1.1", "fd00:0:0:2::1")}
# Sources inside and outside of the prefixes that policies draw from.
SOURCES4 = [f"10.0.{net}.{n}" for net in (0, 1) for n in (2, 65, 66, 130, 200)] + ["172.16.3.9"]
SOURCES6 = [f"fd00:0:0:{net}::{n}" for net in (1, 2) for n in ("2", "65", "8001")] + ["2001:db8::9"]
FAR4, FAR6 = ["10.0.0.77", "10.0.1.77", "10.0.1.99"], ["fd00:0:0:1::77", "fd00:0:0:2::77"]
MACS = ["02:00:00:00:0a:01", "02:00:00:00:0a:02", "02:00:00:00:0a:03"]
PREFIXES = [
    "any",
    "10.0.0.0/24",
    "10.0.0.64/26",
    "10.0.0.66",
    "10.0.1.0/25",
    "10.0.0.0/8",
    "fd00:0:0:1::/64",
    "fd00:0:0:2::/64",
    "fd00:0:0:1::8000/113",
    "fd00:0:0:1::65",
]
PEERS = [*PREFIXES, "!10.0.0.65", "!10.0.0.128/25", "!fd00:0:0:1::2", MACS[0], MACS[1], "plc.example.com", "@set"]
NAMES = {"plc.example.com": {ip_address("10.0.0.200"): 3600, ip_address("fd00:0:0:2::8001"): 3600}}
PORTS: list[int | str] = [22, 80, 443, 5683, "80-90", "85-100", "20-30", "1-65535"]
PROBED = [21, 22, 30, 31, 80, 84, 85, 90, 91, 100, 101, 443, 5683, 65535]
NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132, "gre": 47, "esp": 50, "ospf": 89, "vrrp": 112}
ICMP_TYPES = {
    Icmp.NEIGHBOUR_SOLICIT: 135,
    Icmp.NEIGHBOUR_ADVERT: 136,
    Icmp.ROUTER_SOLICIT: 133,
    Icmp.ROUTER_ADVERT: 134,
    Icmp.LISTENER_QUERY: 130,
}
XMAS, SYN = 0x29, 0x02
OUR_MARK = 0x77
WATCH = "".join(
    f"""
 set {hook}4 {{ typeof ip id; size 65535; flags dynamic; }}
 set {hook}6 {{ typeof ip6 flowlabel; size 65535; flags dynamic; }}
 chain {hook} {{
  type filter hook {hook} priority 200; policy accept;
  {own} drop
  update @{hook}4 {{ ip id }}
  update @{hook}6 {{ ip6 flowlabel }}
  drop
 }}
"""
    # The kernel's answers to refused packets carry numbers of its own, and would leave a connection behind.
    for hook, own in (("input", 'iifname "lo"'), ("forward", 'iifname "lo"'), ("output", f"meta mark != {OUR_MARK}"))
)
HOOK = {Direction.IN: "input", Direction.THROUGH: "forward", Direction.OUT: "output"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A packet as it is sent, and as the evaluator is asked about it (they differ where the kernel translates)."""

    packet: Packet
    asked: Packet


class Lab:
    def __init__(self, device: Namespace, others: Namespace) -> None:
        self.device, self.others = device, others
        with device.inside():
            self.nft = Nft.open()
            self.hardware = {name: device.run(["cat", f"/sys/class/net/{name}/address"]).stdout for name in OWN}
            self.out4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self.out6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW)
            self.out6.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL (linux/in6.h)
            for one in (self.out4, self.out6):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OUR_MARK)
        self.wires = {}
        with others.inside():
            for name in OWN:
                self.wires[name] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                self.wires[name].bind((f"far{name[-1]}", 0))

    def load(self, ruleset: Ruleset, banned: list[Prefix]) -> None:
        self.nft.run("flush ruleset")
        text = encode_ruleset(ruleset, resolved=NAMES)
        for prefix in banned:
            for element in plan_elements(prefix):
                for name, key in (element, gate_of(element[1])):
                    text += f"add element inet tidegate_bans {name} {{ {ip_address(key)} timeout 600s }}\n"
        self.nft.run(f"{text}table inet watch {{\n{WATCH}\n}}\n")

    def send(self, number: int, packet: Packet) -> None:
        raw = encode_packet(number, packet)
        if packet.direction is Direction.OUT:
            sender = self.out4 if packet.source.version == 4 else self.out6
            try:
                sender.sendto(raw, (str(packet.destination), 0))
            except PermissionError:
                return  # that is how a local sender is told of a refusal
        else:
            assert packet.interface is not None
            assert packet.mac is not None
            kind = 0x0800 if packet.source.version == 4 else 0x86DD
            frame = (
                encode_mac(self.hardware[packet.interface].decode().strip())
                + encode_mac(packet.mac)
                + struct.pack("!H", kind)
                + raw
            )
            self.wires[packet.interface].send(frame)

    def seen(self) -> dict[str, set[int]]:
        """Return the numbers of the packets that got through, by hook."""
        found: dict[str, set[int]] = {}
        listing = self.nft.list_table("watch") or ""
        for block in listing.split("\tset ")[1:]:
            name, _, body = block.partition(" ")
            elements = body.partition("elements = {")[2].partition("}")[0]
            found.setdefault(name[:-1], set()).update(int(word, 0) for word in elements.replace(",", " ").split())
        return found

    def close(self) -> None:
        for one in (self.out4, self.out6, *self.wires.values()):
            one.close()
        self.nft.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("tgmo-dev")) as device, Namespace.create(make_unique("tgmo-oth")) as others:
        for name, (own, own6) in OWN.items():
            join(
                device,
                others,
                interfaces=(name, f"far{name[-1]}"),
                addresses_a=[f"{own}/24", f"{own6}/64"],
            )
        settings = ["ipv4.ip_forward=1", "ipv6.conf.all.forwarding=1", "ipv4.conf.all.rp_filter=0"]
        settings += [f"ipv4.conf.{name}.rp_filter=0" for name in OWN]
        for one in settings:
            device.run(["sysctl", "-qw", f"net.{one}"])
        # Everything is on some link: the forward hook comes before anybody asks for a neighbour.
        for route in (["route", "add", "default", "dev", "eth1"], ["-6", "route", "add", "default", "dev", "eth1"]):
            device.run(["ip", *route])
        made = Lab(device, others)
        try:
            yield made
        finally:
            made.close()


def encode_mac(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def encode_packet(number: int, packet: Packet) -> bytes:
    """Return the IP packet; ``number`` goes where the kernel's set will find it."""
    protocol, body = encode_body(packet)
    source, destination = packet.source.packed, packet.destination.packed
    if packet.source.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, 0, packet.hop_limit, protocol, 0)
        total = checksum(head + source + destination)
        return head[:10] + struct.pack("!H", total) + source + destination + body
    head = struct.pack("!IHBB", (6 << 28) | number, len(body), protocol, packet.hop_limit)
    return head + source + destination + body


def encode_body(packet: Packet) -> tuple[int, bytes]:
    six = packet.source.version == 6
    if packet.icmp is not None:
        kind = ICMP_TYPES.get(packet.icmp, 0)
        if packet.icmp is Icmp.ECHO_REQUEST:
            kind = 128 if six else 8
        body = struct.pack("!BBHI", kind, 0, 0, 0) + bytes(16)
        number = 58 if six else 1
        total = checksum((pseudo_header(packet, number, len(body)) if six else b"") + body)
        return number, body[:2] + struct.pack("!H", total) + body[4:]
    assert packet.protocol is not None
    number = NUMBERS[packet.protocol.value]
    ports = struct.pack("!HH", packet.source_port, packet.port)
    if packet.protocol is Protocol.TCP:
        flags = XMAS if packet.state is State.INVALID else SYN
        body = ports + struct.pack("!IIBBHHH", 1, 0, 0x50, flags, 1024, 0, 0)
        total = checksum(pseudo_header(packet, number, len(body)) + body)
        return number, body[:16] + struct.pack("!H", total) + body[18:]
    if packet.protocol is Protocol.UDP:
        body = ports + struct.pack("!HH", 12, 0) + b"tide"
        total = checksum(pseudo_header(packet, number, len(body)) + body)
        return number, body[:6] + struct.pack("!H", total) + body[8:]
    if packet.protocol is Protocol.SCTP:  # INIT chunk; connection tracking looks at its verification tag
        chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 1500, 1, 1, 1)
        return number, ports + bytes(4) + struct.pack("<I", crc32c(ports + bytes(8) + chunk)) + chunk
    return number, bytes(24)


def pseudo_header(packet: Packet, number: int, length: int) -> bytes:
    return packet.source.packed + packet.destination.packed + struct.pack("!II", length, number)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def crc32c(data: bytes) -> int:
    """Return the checksum of RFC 9260 appendix A."""
    total = 0xFFFFFFFF
    for byte in data:
        total ^= byte
        for _ in range(8):
            total = (total >> 1) ^ (0x82F63B78 if total & 1 else 0)
    return total ^ 0xFFFFFFFF


def draw_policy(chance: random.Random) -> dict[str, Any]:
    def rule(**more: Any) -> dict[str, Any]:
        protocol = chance.choice(["tcp", "tcp", "udp", "udp", "sctp", "ping", "gre", "esp", "ospf", "vrrp"])
        drawn: dict[str, Any] = {"protocol": protocol, **more}
        if protocol in ("tcp", "udp", "sctp"):
            drawn["ports"] = chance.sample(PORTS, chance.randint(1, 3))
        drawn["lockdown"] = chance.random() < 0.3
        drawn["mode"] = chance.choice(["enforce", "enforce", "observe"])
        return drawn

    def peers(choices: list[str] = PEERS) -> list[str]:
        return chance.sample(choices, chance.randint(0, 4))

    def limited(drawn: dict[str, Any]) -> dict[str, Any]:
        # Never reached by one packet: a rule with such a limit is like one without.
        if chance.random() < 0.3:
            drawn["limit"] = {"new_per_s": 100_000, "connections": 60_000, "total_connections": 60_000}
        if chance.random() < 0.3:
            high = {"high": 900_000, "low": chance.choice([900_000, 100_000]), "interval_s": chance.randint(1, 3)}
            drawn["thresholds"] = [
                {**high, "per": chance.choice(["source", "service"]), "count": count}
                for count in chance.choice([["new"], ["packets"], ["new", "packets"]])
            ]
        return drawn

    def names(few: int) -> list[str]:
        return chance.sample(["a", "b", "c-d", "e", "web"], chance.randint(1, few))

    no_macs = [peer for peer in PEERS if peer not in (*MACS, "@set")]
    zones = {"lan": {"interfaces": ["eth1"]}, "wan": {"interfaces": ["eth0"]}}
    where = lambda few: chance.sample(sorted(zones), chance.randint(0, few))  # noqa: E731
    services = {name: limited(rule(peers=peers(), zones=where(1))) for name in names(5)}
    services["ssh"] = {"protocol": "tcp", "ports": [22], "peers": peers()}
    egress = {name: rule(peers=peers(no_macs), zones=where(1)) for name in names(4)}
    egress["manager"] = {"protocol": "tcp", "ports": [443], "peers": ["10.0.1.77", "fd00:0:0:2::77"]}
    routes = {
        name: limited(
            rule(sources=peers(), destinations=peers(no_macs) + ["any"] * chance.randint(0, 1))
            | {"from_zones": where(1), "to_zones": where(1)}
        )
        for name in names(4)
    }
    forwards = {
        name: {
            "protocol": chance.choice(["tcp", "udp"]),
            "port": chance.choice(PROBED),
            "zones": ["wan"],
            "peers": peers(),
            "to": chance.choice(FAR4[1:] + FAR6[1:]),
            "to_port": chance.choice([None, 8080]),
        }
        for name in chance.sample(["f", "g"], chance.randint(0, 1))
    }
    policy = {
        "mode": chance.choice(["enforce"] * 5 + ["observe", "lockdown", "lockdown"]),
        "default": chance.choice(["deny", "reject"]),
        "log_per_s": chance.choice([0, 5]),
        "ping_per_s": chance.choice([0, 1_000_000]),
        "zones": zones,
        "peers": {"set": chance.sample(PREFIXES[1:], 2)},
        "management": {"peers": chance.sample(PREFIXES[1:], 2), "service": "ssh", "egress": "manager"},
        "services": services,
        "egress": {"default": chance.choice(["deny", "deny", "allow"]), "services": egress},
        "bans": {"never": chance.sample(PREFIXES[1:], chance.randint(0, 1))},
    }
    if chance.random() < 0.85:
        policy |= {"routes": routes, "nat": {"port_forwards": forwards}}
    else:
        policy["forward"] = "leave"
    if chance.random() < 0.2:
        policy["thresholds"] = [{"high": 900_000, "low": 10_000, "per": "total"}, {"high": 900_000, "count": "packets"}]
    return policy


def draw_packet(chance: random.Random) -> Packet:
    direction = chance.choice([Direction.IN, Direction.IN, Direction.THROUGH, Direction.OUT])
    six = chance.random() < 0.4
    interface, other = chance.choice([("eth0", "eth1"), ("eth1", "eth0")])
    own = ip_address(OWN[interface][six])
    far = [ip_address(one) for one in (SOURCES6 if six else SOURCES4)]
    packet = Packet(
        direction=direction,
        interface=interface,
        source=chance.choice(far),
        destination=own,
        mac=chance.choice(MACS),
        port=0,
        source_port=chance.choice([22, 443, 50000]),
    )
    if direction is Direction.THROUGH:
        # The kernel decides by the destination which interface it leaves by.
        inside = [one for one in (FAR6 if six else FAR4) if _leaves_by(one, other)]
        packet = replace(packet, destination=ip_address(chance.choice(inside)), out_interface=other)
    elif direction is Direction.OUT:
        out = [one for one in far if _leaves_by(str(one), interface)]
        packet = replace(packet, source=own, destination=chance.choice(out), mac=None)
    return _draw_content(chance, packet, six=six)


def _leaves_by(address: str, interface: str) -> bool:
    """Return whether the device's routes send ``address`` to ``interface``; the default route is eth1's."""
    on_eth0 = (
        ip_address(address) in IPv4Network("10.0.0.0/24")
        if "." in address
        else (ip_address(address) in IPv6Network("fd00:0:0:1::/64"))
    )
    return on_eth0 == (interface == "eth0")


def _draw_content(chance: random.Random, packet: Packet, *, six: bool) -> Packet:
    drawn = chance.random()
    if drawn < 0.6:
        protocol = chance.choice([Protocol.TCP, Protocol.UDP, Protocol.SCTP])
        state = State.INVALID if protocol is Protocol.TCP and chance.random() < 0.1 else State.NEW
        return replace(packet, protocol=protocol, port=chance.choice(PROBED), state=state)
    if drawn < 0.75:
        return replace(packet, protocol=Protocol.PING, icmp=Icmp.ECHO_REQUEST)
    if drawn < 0.85 and six and packet.direction is not Direction.THROUGH:
        # What connection tracking says of these is "untracked"; the evaluator takes that for new.
        return replace(
            packet,
            icmp=chance.choice(list(ICMP_TYPES)),
            hop_limit=chance.choice([64, 255]),
            source=packet.source
            if chance.random() < 0.5 or packet.direction is Direction.OUT
            else ip_address("fe80::9"),
        )
    return replace(packet, protocol=chance.choice([Protocol.GRE, Protocol.ESP, Protocol.OSPF, Protocol.VRRP]))


def translate(ruleset: Ruleset, packet: Packet) -> Packet:
    """Return the packet as the filter sees it behind the translation of destinations."""
    if packet.direction is not Direction.IN or packet.state is State.INVALID:
        return packet
    for forward in ruleset.port_forwards:
        if (
            forward.protocol is packet.protocol
            and forward.port == packet.port
            and packet.interface in forward.interfaces
            and forward.to.version == packet.source.version
        ):
            out = "eth0" if _leaves_by(str(forward.to), "eth0") else "eth1"
            return replace(
                packet,
                direction=Direction.THROUGH,
                destination=forward.to,
                port=forward.to_port,
                out_interface=out,
                translated=True,
            )
    return packet


def draw_bans(chance: random.Random) -> list[Prefix]:
    banned: list[Prefix] = []
    for _ in range(chance.randint(0, 2)):
        address = ip_address(chance.choice(SOURCES4 + SOURCES6))
        length = chance.choice(BAN_LENGTHS[address.version])
        kind: Any = IPv4Network if isinstance(address, IPv4Address) else IPv6Network
        assert isinstance(address, IPv4Address | IPv6Address)
        banned.append(kind((address, length), strict=False))
    return banned


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_model_and_kernel_agree(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    accepted = dict.fromkeys(Direction, 0)
    pairs = dict(accepted)
    for _ in range(ROUNDS):
        policy = draw_policy(chance)
        ruleset = plan_ruleset(msgspec.convert(policy, FirewallSection))
        banned = draw_bans(chance)
        lab.load(ruleset, banned)
        packets = {}
        for number in range(1, PACKETS + 1):
            packet = draw_packet(chance)
            packets[number] = Sent(packet=packet, asked=translate(ruleset, packet))
            lab.send(number, packet)
        seen = lab.seen()
        for number, sent in packets.items():
            asked = sent.asked
            decision = explain_packet(ruleset, asked, banned=banned, resolved=NAMES)
            passed = number in seen[HOOK[asked.direction]]
            if (decision.verdict is Verdict.ACCEPT) is not passed:
                hooks = [hook for hook, numbers in seen.items() if number in numbers]
                pytest.fail(f"{decision}\nkernel: seen in {hooks}\n{asked}\nbanned {banned}\n{policy}")
            pairs[asked.direction] += 1
            accepted[asked.direction] += passed
    told = ", ".join(f"{pairs[way]} {way} ({accepted[way]} accepted)" for way in Direction)
    sys.stdout.write(f"model and kernel agree on {sum(pairs.values())} packets under {ROUNDS} policies: {told}\n")
    for way in Direction:
        assert 0.1 < accepted[way] / pairs[way] < 0.9  # a sample that is nearly all one verdict would prove little
