"""The evaluator against the kernel: random policies, random packets, one verdict.

The kernel's verdict is read behind the filter: a table of the test's own, at a later priority of the same hook, notes
what the filter let through.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import Packet, Ruleset, Verdict, evaluate_packet, plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection, Protocol
from tidegate.firewall.snapshot import parse_listing
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

ROUNDS = 12
PACKETS = 150
# Two cables; sources inside and outside of the prefixes that policies draw from.
CABLES = {
    "eth0": ([f"10.0.0.{n}" for n in (2, 65, 66, 130, 200)], "10.0.0.1"),
    "eth1": ([f"10.0.1.{n}" for n in (2, 65, 130)], "10.0.1.1"),
}
CABLES6 = {
    "eth0": ([f"fd00:0:0:1::{n:x}" for n in (2, 0x65, 0x8001)], "fd00:0:0:1::1"),
    "eth1": ([f"fd00:0:0:2::{n:x}" for n in (2, 0x8001)], "fd00:0:0:2::1"),
}
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
PORTS: list[int | str] = [22, 80, 443, 5683, "80-90", "85-100", "20-30", "1-65535"]
PROBED = [21, 22, 30, 31, 80, 84, 85, 90, 91, 100, 101, 443, 5683, 65535]

WATCH = """
table inet watch
delete table inet watch
table inet watch {
 set seen4 {
  type ifname . ipv4_addr . inet_proto . inet_service
  size 65535
  flags dynamic
 }
 set seen6 {
  type ifname . ipv6_addr . inet_proto . inet_service
  size 65535
  flags dynamic
 }
 chain late {
  type filter hook input priority 100; policy accept;
  meta l4proto { tcp, udp } update @seen4 { iifname . ip saddr . meta l4proto . th dport }
  meta l4proto { tcp, udp } update @seen6 { iifname . ip6 saddr . meta l4proto . th dport }
  meta l4proto { tcp, udp } drop
 }
}
"""

Key = tuple[str, str, str, str]


class Lab:
    def __init__(self, device: Namespace, others: Namespace) -> None:
        self.device, self.others = device, others
        with device.inside():
            self.nft = Nft.open()

    def send(self, packet: Packet) -> None:
        """Send the first packet of a connection, or a datagram, and do not wait for anything."""
        family = socket.AF_INET if packet.source.version == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if packet.protocol is Protocol.TCP else socket.SOCK_DGRAM
        with self.others.inside(), socket.socket(family, kind) as sender:
            sender.setblocking(False)
            sender.bind((str(packet.source), 0))
            assert sender.connect_ex((str(packet.destination), packet.port)) in (0, errno.EINPROGRESS)
            if packet.protocol is Protocol.UDP:
                sender.send(b"x")

    def seen(self) -> set[Key]:
        listing = self.nft.list_table("watch") or ""
        found: set[Key] = set()
        for thing in parse_listing(listing):
            for element in thing.elements:
                interface, source, protocol, port = element.split(" . ")
                found.add((interface.strip('"'), source, protocol, port))
        return found


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("tgmo-dev")) as device, Namespace.create(make_unique("tgmo-oth")) as others:
        for name, (sources, own) in CABLES.items():
            sources6, own6 = CABLES6[name]
            join(
                device,
                others,
                interfaces=(name, f"far{name[-1]}"),
                addresses_a=[f"{own}/24", f"{own6}/64"],
                addresses_b=[f"{one}/24" for one in sources] + [f"{one}/64" for one in sources6],
            )
        yield Lab(device, others)


def draw_policy(chance: random.Random) -> dict[str, Any]:
    def service() -> dict[str, Any]:
        drawn: dict[str, Any] = {
            "protocol": chance.choice(["tcp", "udp"]),
            "ports": chance.sample(PORTS, chance.randint(1, 3)),
            "peers": chance.sample(PREFIXES, chance.randint(0, 3)),
            "interfaces": chance.sample(sorted(CABLES), chance.randint(0, 2)),
        }
        if chance.random() < 0.3:  # never reached by one packet: such a service is like one without
            drawn["limit"] = {"new_per_s": 100_000, "connections": 60_000}
        return drawn

    services = {name: service() for name in chance.sample(["a", "b", "c-d", "e", "web"], chance.randint(1, 5))}
    return {
        "mode": chance.choice(["enforce", "enforce", "enforce", "observe", "lockdown"]),
        "default": chance.choice(["deny", "reject"]),
        "log_per_s": chance.choice([0, 5]),
        "management": {"peers": chance.sample(PREFIXES[1:], 2), "service": chance.choice(sorted(services))},
        "services": services,
        "bans": {"never": chance.sample(PREFIXES[1:], chance.randint(0, 1))},
    }


def draw_packet(chance: random.Random) -> Packet:
    interface = chance.choice(sorted(CABLES))
    sources, destination = chance.choice([CABLES, CABLES6])[interface]
    return Packet(
        interface=interface,
        source=ip_address(chance.choice(sources)),
        destination=ip_address(destination),
        protocol=chance.choice(list(Protocol)),
        port=chance.choice(PROBED),
    )


def key(packet: Packet) -> Key:
    assert packet.protocol is not None
    return (str(packet.interface), str(packet.source), packet.protocol.value, str(packet.port))


def load(lab: Lab, ruleset: Ruleset, banned: list[str]) -> None:
    lab.nft.run("flush ruleset")
    lab.nft.run(WATCH + encode_ruleset(ruleset))
    for address in banned:
        family = 6 if ":" in address else 4
        lab.nft.run(f"add element inet tidegate_bans banned{family} {{ {address} timeout 600s }}")


@pytest.mark.parametrize("seed", [1, 2])
def test_model_and_kernel_agree(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    pairs = accepted = 0
    everybody = [source for cables in (CABLES, CABLES6) for sources, _ in cables.values() for source in sources]
    for _ in range(ROUNDS):
        policy = draw_policy(chance)
        ruleset = plan_ruleset(msgspec.convert(policy, FirewallSection))
        banned = chance.sample(everybody, chance.randint(0, 2))
        load(lab, ruleset, banned)
        packets = {key(packet): packet for packet in (draw_packet(chance) for _ in range(PACKETS))}
        for packet in packets.values():
            lab.send(packet)
        time.sleep(0.05)  # the first packets wait for the neighbour's address
        seen = lab.seen()
        for name, packet in packets.items():
            verdict = evaluate_packet(ruleset, packet, banned=frozenset(ip_address(one) for one in banned))
            assert (verdict is Verdict.ACCEPT) is (name in seen), (name, policy, banned)
            pairs += 1
            accepted += name in seen
    sys.stdout.write(f"model and kernel agree on {pairs} packets under {ROUNDS} policies; {accepted} were accepted\n")
    assert 0.1 < accepted / pairs < 0.9  # a sample that is nearly all one verdict would prove little
