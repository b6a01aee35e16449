"""Layer-2 rules on the real kernel: random frames through a cable, and the evaluator asked about each."""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from typing import Any

import msgspec
import pytest

from tidegate.firewall.link import Cast, Frame, LinkPlan, encode_links, evaluate_frame, plan_links
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import Link
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

ROUNDS, FRAMES = 40, 150
NOBODY = "0.0.0.0"  # noqa: S104 - a source, not a place to listen
MACS = ["02:00:00:00:0b:01", "02:00:00:00:0b:02", "02:00:00:00:0b:03"]
SOURCES4 = ["10.0.0.2", "10.0.0.3", NOBODY, "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"]
SOURCES6 = ["fe80::2", "::", "::1", "ff02::1", "::ffff:10.0.0.2", "2001:db8::2"]
ETHERTYPES = [0x0800, 0x0806, 0x86DD, 0x88CC, 0x88B8]
BROADCAST, MULTICAST = "ff:ff:ff:ff:ff:ff", "33:33:00:00:00:01"


class Lab:
    def __init__(self, device: Namespace, others: Namespace) -> None:
        self.device = device
        with device.inside():
            self.nft = Nft.open()
        with others.inside():
            self.wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self.wire.bind(("eth0", 0))

    def load(self, link: LinkPlan) -> None:
        self.nft.run("flush ruleset")
        self.nft.run(encode_links([link]))

    def count(self) -> int:
        """Return how many frames were refused so far, by every reason's counter together."""
        listing = self.device.run(["nft", "list", "counters", "table", "netdev", "tidegate_link"]).stdout.decode()
        return sum(int(line.split()[1]) for line in listing.splitlines() if line.strip().startswith("packets"))

    def close(self) -> None:
        self.wire.close()
        self.nft.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("tgli-dev")) as device, Namespace.create(make_unique("tgli-oth")) as others:
        join(device, others)
        for space in (device, others):  # nothing but the test's own frames
            space.run(["sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1"])
            space.run(["ip", "link", "set", "eth0", "arp", "off"])
        made = Lab(device, others)
        yield made
        made.close()


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def draw_frame(chance: random.Random) -> tuple[Frame, bytes]:
    """Return a frame as the evaluator is asked about it, and its bytes."""
    source = chance.choice(MACS)
    cast = chance.choice([Cast.HOST, Cast.HOST, Cast.BROADCAST, Cast.MULTICAST])
    to = {Cast.HOST: "02:00:00:00:0c:01", Cast.BROADCAST: BROADCAST, Cast.MULTICAST: MULTICAST}[cast]
    kind = chance.choice(ETHERTYPES + [0x0800] * 3 + [0x0806] * 2)
    head = mac(to) + mac(source)
    asked: dict[str, Any] = {"ethertype": kind, "source_mac": source, "cast": cast}
    if kind == 0x0806:
        inside, claimed = chance.choice(MACS), chance.choice(["10.0.0.1", "10.0.0.2"])
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, chance.choice([1, 2])) + mac(inside)
        body += IPv4Address(claimed).packed + bytes(6) + IPv4Address("10.0.0.9").packed
        asked |= {"arp_sender": IPv4Address(claimed), "arp_sender_mac": inside}
    elif kind == 0x0800:
        body, more = draw_ipv4(chance)
        asked |= more
    elif kind == 0x86DD:
        body, more = draw_ipv6(chance)
        asked |= more
    else:
        body = bytes(46)
    tag = b""
    if chance.random() < 0.15:
        asked["tag"], tag = 0x8100, struct.pack("!HH", 0x8100, 7)
    return Frame(**asked), head + tag + struct.pack("!H", kind) + body + bytes(max(0, 46 - len(body)))


def draw_ipv4(chance: random.Random) -> tuple[bytes, dict[str, Any]]:
    source, to = ip_address(chance.choice(SOURCES4)), "10.0.0.9"
    protocol, flags, offset = chance.choice([6, 17, 2]), None, chance.choice([0, 0, 0, 0x2000, 0x0010])
    unconfigured = False
    if protocol == 6:
        bits = chance.randrange(64)
        payload = struct.pack("!HHIIBBHHH", 1, 2, 0, 0, 0x50, bits, 0, 0, 0)
        flags = bits if not offset & 0x1FFF else None  # a later fragment has no header
    elif protocol == 17:
        asks = chance.random() < 0.5
        payload = struct.pack("!HHHH", *((68, 67) if asks else (68, 68)), 8, 0)
        to = chance.choice(["10.0.0.9", "255.255.255.255"])
        unconfigured = asks and to == "255.255.255.255" and str(source) == NOBODY and not offset & 0x1FFF
    else:
        payload = bytes(8)
        unconfigured = str(source) == NOBODY
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, offset, 64, protocol, 0)
    more = {
        "source": source,
        "tcp_flags": flags,
        "is_fragment": bool(offset),
        "is_unconfigured": unconfigured,
    }
    return head + source.packed + ip_address(to).packed + payload, more


def draw_ipv6(chance: random.Random) -> tuple[bytes, dict[str, Any]]:
    source = ip_address(chance.choice(SOURCES6))
    bits = chance.randrange(64)
    payload = struct.pack("!HHIIBBHHH", 1, 2, 0, 0, 0x50, bits, 0, 0, 0)
    chain, first, fragment, offset = b"", 6, False, chance.choice([0, 0, 8])
    for kind in chance.sample([0, 60, 44], chance.randint(0, 2)):  # hop-by-hop, destination options, fragment
        fragment |= kind == 44
        chain = struct.pack("!BBHI", first, 0, offset << 3 | 1 if kind == 44 else 0, 7) + chain
        first = kind
    head = struct.pack("!IHBB", 6 << 28, len(chain) + len(payload), first, 64)
    is_later = fragment and offset > 0
    more = {"source": source, "tcp_flags": None if is_later else bits, "is_fragment": fragment}
    return head + source.packed + ip_address("fe80::9").packed + chain + payload, more


def draw_rules(chance: random.Random) -> dict[str, Any]:
    kinds: list[Any] = ["ipv4", "ipv6", "arp", "lldp", 0x88B8, "vlan"]
    return {
        "ethertypes": chance.sample(kinds, chance.randint(2, 6)),
        "macs": chance.sample(MACS, chance.choice([0, 0, 2])),
        "arp_bindings": {"10.0.0.1": MACS[0]} if chance.random() < 0.5 else {},
        "bogons": chance.random() < 0.7,
        "arp_per_s": 1_000_000,
        "broadcast_per_s": 1_000_000,
        "multicast_per_s": 1_000_000,
        "fragments_per_s": chance.choice([None, 1_000_000]),
    }


@pytest.mark.parametrize("seed", [1, 2])
def test_the_evaluator_and_the_kernel_agree_about_frames(lab: Lab, seed: int) -> None:
    chance = random.Random(seed)
    pairs = refused = 0
    for _ in range(ROUNDS):
        link = plan_links({"wan": (["eth0"], msgspec.convert(draw_rules(chance), Link))})[0]
        lab.load(link)
        expected, stories = 0, []
        for _ in range(FRAMES):
            frame, raw = draw_frame(chance)
            before = expected
            expected += not evaluate_frame(link, frame).accept
            lab.wire.send(raw)
            pairs += 1
            refused += expected - before
            stories.append((frame, expected - before, raw))
        if lab.count() != expected:
            find_disagreement(lab, link, stories)
    sys.stdout.write(f"evaluator and kernel agree on {pairs} frames; {refused} were refused\n")
    assert 0.1 < refused / pairs < 0.9


def find_disagreement(lab: Lab, link: LinkPlan, stories: list[tuple[Frame, int, bytes]]) -> None:
    """Send them again one by one, to name the one."""
    for frame, expected, raw in stories:
        before = lab.count()
        lab.wire.send(raw)
        if lab.count() - before != expected:
            pytest.fail(f"{frame}\nexpected {'refused' if expected else 'accepted'} by {link}\n{raw.hex()}")
    pytest.fail("the sums differ, and no frame alone does")


def limited(**values: Any) -> LinkPlan:
    return plan_links({"wan": (["eth0"], msgspec.convert(values, Link))})[0]


@pytest.mark.parametrize(
    ("limit", "to", "kind"),
    [("broadcast_per_s", BROADCAST, 0x0800), ("multicast_per_s", MULTICAST, 0x86DD), ("arp_per_s", BROADCAST, 0x0806)],
)
def test_a_storm_is_cut_to_its_limit(lab: Lab, limit: str, to: str, kind: int) -> None:
    lab.load(limited(**{limit: 10}))
    raw = mac(to) + mac(MACS[0]) + struct.pack("!H", kind)
    body = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 46, 1, 0, 64, 99, 0, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 9]))
    for _ in range(500):
        lab.wire.send(raw + (body if kind == 0x0800 else bytes(20)) + bytes(26))
    assert 440 <= lab.count() <= 490


def test_neighbours_find_each_other_in_a_storm(lab: Lab) -> None:
    """The multicast limit is used up by others; neighbour discovery still has its own."""
    lab.load(limited(multicast_per_s=20))
    storm = mac(MULTICAST) + mac(MACS[0]) + struct.pack("!H", 0x86DD)
    head = struct.pack("!IHBB", 6 << 28, 24, 17, 64) + ip_address("fe80::2").packed + ip_address("ff02::1").packed
    for _ in range(200):
        lab.wire.send(storm + head + bytes(24))
    used = lab.count()
    assert used > 150
    head = struct.pack("!IHBB", 6 << 28, 24, 58, 255) + ip_address("fe80::2").packed + ip_address("ff02::1").packed
    for _ in range(15):
        lab.wire.send(storm + head + bytes([135]) + bytes(23))
    assert lab.count() == used


def test_a_storm_of_arp_cuts_off_nobody_whose_address_is_bound(lab: Lab) -> None:
    lab.load(limited(arp_per_s=10, arp_bindings={"10.0.0.1": MACS[0]}))

    def claim(owner: str, address: str) -> bytes:
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + mac(owner) + IPv4Address(address).packed
        return mac(BROADCAST) + mac(owner) + struct.pack("!H", 0x0806) + body + bytes(18 + 10)

    for _ in range(300):
        lab.wire.send(claim(MACS[1], "10.0.0.7"))
    used = lab.count()
    assert used > 250
    for _ in range(8):
        lab.wire.send(claim(MACS[0], "10.0.0.1"))
    assert lab.count() == used


def test_arp_in_a_tag_is_arp(lab: Lab) -> None:
    lab.load(limited(arp_per_s=10, ethertypes=["arp", "vlan"]))
    for _ in range(100):
        lab.wire.send(mac(MACS[2]) + mac(MACS[0]) + struct.pack("!HHH", 0x8100, 7, 0x0806) + bytes(46))
    assert 80 <= lab.count() <= 90


def test_frames_too_short_for_what_they_say_pass_no_rule_by_it(lab: Lab) -> None:
    """A rule that cannot read what it looks for does not match: an allow-list still refuses, nothing crashes."""
    lab.load(limited(macs=[MACS[0]], arp_bindings={"10.0.0.1": MACS[0]}))
    for kind in (0x0800, 0x0806, 0x86DD, 0x8100, 0x88A8):
        for length in (0, 1, 4, 19, 39):
            lab.wire.send(mac(BROADCAST) + mac(MACS[1]) + struct.pack("!H", kind) + bytes(length))
    # Six are too short for the tag that they announce: the kernel drops those before any hook.
    assert lab.count() == 25 - 6
