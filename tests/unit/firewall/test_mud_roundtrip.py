"""Policies nobody wrote, exported and imported again: every sampled packet meets the same verdict."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, event, given, reject, settings
from hypothesis import strategies as st
from tests.unit.firewall.mudfiles import NOW, site

from tidegate.firewall.errors import MudExport
from tidegate.firewall.evaluate import evaluate_packet
from tidegate.firewall.model import Direction, Icmp, Packet, Verdict, plan_ruleset
from tidegate.firewall.mud import parse_mud
from tidegate.firewall.mud_export import KNOWN_LISTS, About, encode_mud
from tidegate.firewall.mud_import import plan_import
from tidegate.firewall.section import FirewallSection, Protocol

ABOUT = About(
    url="https://things.example.com/thing.json", manufacturer="Things", model="T", last_update=NOW, classes=KNOWN_LISTS
)
OWN4, OWN6 = ip_address("192.168.1.77"), ip_address("fd00::77")
LISTS = {
    "my-controller": ["10.7.0.5", "fd00:7::5"],
    "local-networks": ["192.168.1.0/24", "!192.168.1.9"],
    "same-manufacturer": ["192.168.1.80"],
    "controller-dns": ["192.168.1.1", "fd00::1"],
    "plant": ["10.5.0.0/16", "!10.5.9.0/24", "plant.example.com"],
}
PEER = st.sampled_from(
    [
        *("any", "10.0.0.0/8", "10.5.9.1", "fd00::/8", "2001:db8::5", "a.example.com", "plant.example.com"),
        *("0.0.0.0/0", "!10.5.9.1", "!192.168.1.0/24", "!fd00::/16", *(f"@{name}" for name in LISTS)),
    ]
)
PEERS = st.lists(PEER, min_size=1, max_size=4, unique=True)
PORT = st.one_of(
    st.sampled_from([1, 22, 53, 443, 502, 65535]),
    st.builds(lambda first, more: f"{first}-{first + more}", st.sampled_from([1, 22, 440, 5000]), st.integers(0, 80)),
)
PORTS = st.lists(PORT, min_size=1, max_size=3, unique=True)
RULE = st.one_of(
    st.fixed_dictionaries({"protocol": st.sampled_from(["tcp", "udp"]), "ports": PORTS, "peers": PEERS}),
    st.fixed_dictionaries({"protocol": st.sampled_from(["ping", "gre", "esp"]), "peers": PEERS}),
)
RULES = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), RULE, max_size=4)
FAR = [
    *("10.0.0.9", "10.5.8.1", "10.5.9.1", "10.5.9.2", "10.7.0.5", "192.168.1.1", "192.168.1.9", "192.168.1.80"),
    *("203.0.113.1", "203.0.113.2", "fd00::1", "fd00:7::5", "2001:db8::5", "2001:db8::6", "2001:db8:1::1"),
]
RESOLVED = {
    "a.example.com": {ip_address("203.0.113.1"): 60, ip_address("2001:db8:1::1"): 60},
    "plant.example.com": {ip_address("203.0.113.2"): 60},
}
PROBED = (1, 2, 22, 23, 53, 102, 440, 443, 502, 520, 521, 5000, 5080, 5081, 65535)


def _packets() -> list[Packet]:
    found = []
    for far in map(ip_address, FAR):
        own = OWN4 if far.version == 4 else OWN6
        for direction, ends in ((Direction.IN, (far, own)), (Direction.OUT, (own, far))):
            about = {"direction": direction, "interface": "eth0", "source": ends[0], "destination": ends[1]}
            for protocol in (Protocol.TCP, Protocol.UDP):
                found += [Packet(**about, protocol=protocol, port=port, source_port=40000) for port in PROBED]
            found += [Packet(**about, protocol=protocol) for protocol in (Protocol.GRE, Protocol.ESP, Protocol.AH)]
            found.append(Packet(**about, protocol=Protocol.PING, icmp=Icmp.ECHO_REQUEST))
    return found


PACKETS = _packets()


@pytest.mark.slow
@pytest.mark.timeout(120)
@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # shrinking takes minutes here
    suppress_health_check=[HealthCheck.too_slow],
)
@given(RULES, RULES, st.integers())
def test_import_of_an_export_decides_as_the_policy(services: Any, egress: Any, seed: int) -> None:
    document = {"ping_per_s": 0, "peers": LISTS, "services": services, "egress": {"services": egress}}
    section = msgspec.convert(document, FirewallSection)
    try:
        made = encode_mud(section, ABOUT)
    except MudExport:  # exclusions split networks into more entries than a file has
        reject()
    assert not [one for one in made.warnings if "answers cannot be told apart" not in one]
    given_lists = {
        "my_controller": tuple(LISTS["my-controller"]),
        "local_networks": tuple(LISTS["local-networks"]),
        "same_manufacturer": tuple(LISTS["same-manufacturer"]),
        "classes": {"urn:ietf:params:mud:dns": tuple(LISTS["controller-dns"])},
    }
    again = plan_import(parse_mud(made.text.encode()), site(**given_lists), now=NOW)
    before, after = plan_ruleset(section), plan_ruleset(again.section)
    accepted = 0
    for one in random.Random(seed).sample(PACKETS, 150):
        verdict = evaluate_packet(before, one, resolved=RESOLVED)
        assert evaluate_packet(after, one, resolved=RESOLVED) is verdict, (one, again.text)
        accepted += verdict is Verdict.ACCEPT
    event("some pass" if accepted else "none passes")


def test_the_samples_reach_both_verdicts() -> None:
    rule = {"protocol": "tcp", "ports": ["1-80"], "peers": ["any", "!10.5.9.1"]}
    section = msgspec.convert({"ping_per_s": 0, "services": {"a": rule}}, FirewallSection)
    verdicts = {evaluate_packet(plan_ruleset(section), one) for one in PACKETS}
    assert {Verdict.ACCEPT, Verdict.DROP} <= verdicts
