"""What the section's types refuse by themselves, and what ``plan_ruleset`` refuses after them."""

from __future__ import annotations

import tomllib
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.model import Kind, PortSpan, parse_peers, plan_ruleset
from tidegate.firewall.peers import MAX_EXCLUSIONS, MAX_NESTING
from tidegate.firewall.section import FirewallSection, Mode, Per, Protocol

EXAMPLE = """
mode = "enforce"
default = "deny"
confirm_timeout_s = 30

[zones.lan]
interfaces = ["eth0", "eth1"]
[zones.wan]
interfaces = ["wan0"]

[peers]
plant = ["10.0.0.0/8", "!10.9.9.9"]
everybody-inside = ["@plant", "fd00::/8"]

[management]
peers = ["192.0.2.0/24"]
service = "ssh"

[services.ssh]
protocol = "tcp"
ports = [22]
peers = []

[services.web]
protocol = "tcp"
ports = [8080, "9000-9010", 9011]
zones = ["lan"]
interfaces = ["usb0"]
peers = ["@everybody-inside", "AA:bb:cc:dd:ee:ff", "Panel.Example.ORG."]
limit = { new_per_s = 50, burst = 100, connections = 64 }
thresholds = [{ interval_s = 10, high = 100, low = 40 }, { per = "service", high = 9 }]
fields = "reads"

[services.ping]
protocol = "ping"
peers = ["any"]

[fields.reads]
protocol = "modbus"
allow = [{ functions = [3] }]

[egress]
default = "deny"
[egress.services.ntp]
protocol = "udp"
ports = [123]
peers = ["198.51.100.1", "2001:db8::123"]

[routes.out]
protocol = "tcp"
ports = [443]
sources = ["10.0.0.0/8"]
destinations = ["any"]
from_zones = ["lan"]
to_zones = ["wan"]

[nat.masquerade.inside]
sources = ["10.0.0.0/8"]
zones = ["wan"]
[nat.port_forwards.camera]
protocol = "tcp"
port = 8443
zones = ["wan"]
peers = ["203.0.113.0/24"]
to = "10.0.0.7"
to_port = 443

[[thresholds]]
per = "total"
high = 5000

[link.lan]
arp_bindings = { "10.0.0.7" = "aa:bb:cc:dd:ee:ff" }

[bans]
max = 4096
never = ["192.0.2.10"]
"""


def section(**changes: Any) -> FirewallSection:
    return msgspec.convert({**tomllib.loads(EXAMPLE), **changes}, FirewallSection)


def test_example_means_what_it_says() -> None:
    ruleset = plan_ruleset(section())
    assert ruleset.mode is Mode.ENFORCE
    web = next(service for service in ruleset.services if service.name == "web")
    assert web.spans == (PortSpan(first=8080, last=8080), PortSpan(first=9000, last=9011))
    assert web.interfaces == ("eth0", "eth1", "usb0")
    assert (web.peers.macs, web.peers.names) == (("aa:bb:cc:dd:ee:ff",), ("panel.example.org",))
    assert not web.peers.has(ip_address("10.9.9.9"))
    assert web.peers.has(ip_address("10.9.9.8"))
    assert web.limit is not None
    assert (web.limit.new_per_s, web.limit.burst, web.limit.connections) == (50, 100, 64)
    assert [(one.per, one.high, one.low) for one in web.thresholds] == [(Per.SOURCE, 100, 40), (Per.SERVICE, 9, 9)]
    assert (web.fields, web.label) == ("reads", "services.web")
    assert ruleset.management is not None
    assert ruleset.management.service.name == "ssh"
    assert ruleset.dns_names() == ("panel.example.org",)


def test_routes_and_port_forwards_are_rules_of_their_own() -> None:
    ruleset = plan_ruleset(section())
    out, camera = ruleset.routes
    assert (out.kind, out.interfaces, out.out_interfaces) == (Kind.ROUTE, ("eth0", "eth1"), ("wan0",))
    assert (camera.kind, camera.spans, camera.translated) == (Kind.PORT_FORWARD, (PortSpan(first=443, last=443),), True)
    assert camera.destinations.has(ip_address("10.0.0.7"))
    [forward] = ruleset.port_forwards
    assert (forward.port, str(forward.to), forward.to_port, forward.interfaces) == (8443, "10.0.0.7", 443, ("wan0",))
    assert ruleset.masquerades[0].interfaces == ("wan0",)
    assert [link.zone for link in ruleset.links] == ["lan"]


def test_what_is_refused_unless_it_is_said() -> None:
    plain = plan_ruleset(FirewallSection())
    assert (plain.mode, plain.default, plain.forward, plain.egress_default, plain.tamper) == (
        "enforce",
        "deny",
        "deny",
        "deny",
        "report",
    )


SERVICE: dict[str, Any] = {"protocol": "tcp", "ports": [80], "peers": ["any"]}
ROUTE: dict[str, Any] = {"protocol": "tcp", "ports": [80], "sources": ["any"], "destinations": ["any"]}
FORWARD: dict[str, Any] = {"protocol": "tcp", "port": 80, "zones": ["wan"], "peers": ["any"], "to": "10.0.0.7"}


@pytest.mark.parametrize(
    "changes",
    [
        {"mdoe": "enforce"},
        {"mode": "Enforce"},
        {"tamper": "ignore"},
        {"confirm_timeout_s": 0},
        {"services": {"web": {**SERVICE, "ports": [0]}}},
        {"services": {"web": {**SERVICE, "ports": [65536]}}},
        {"services": {"web": {**SERVICE, "ports": ["80; drop"]}}},
        {"services": {"web": {**SERVICE, "ports": ["80-90\n"]}}},
        {"services": {"web": {**SERVICE, "interfaces": ['eth0" accept #']}}},
        {"services": {"web": {**SERVICE, "interfaces": ["eth0\n"]}}},
        {"services": {"web": {**SERVICE, "interfaces": ["x" * 16]}}},
        {"services": {"web": {**SERVICE, "zones": ["LAN"]}}},
        {"services": {"web": {**SERVICE, "protocol": "icmp"}}},
        {"services": {"web": {**SERVICE, "mode": "lockdown"}}},
        {"services": {"web": {**SERVICE, "limit": {"new_per_s": 0}}}},
        {"services": {"web": {**SERVICE, "limit": {"sources": 15}}}},
        {"services": {"web": {**SERVICE, "thresholds": [{"low": 1}]}}},
        {"services": {"web": {**SERVICE, "thresholds": [{"high": 1}] * 5}}},
        {"services": {"web": {**SERVICE, "thresholds": [{"high": 1, "prefix_v4": 7}]}}},
        {"services": {"web": {**SERVICE, "peers": ["x" * 255]}}},
        {"services": {"web": {"protocol": "tcp", "ports": [80]}}},  # peers must be said
        {"services": {"web { }": SERVICE}},
        {"services": {"a_b": SERVICE}},
        {"services": {"web\n": SERVICE}},
        {"zones": {"lan": {"interfaces": []}}},
        {"peers": {"a b": ["any"]}},
        {"routes": {"r": {**ROUTE, "peers": ["any"]}}},
        {"nat": {"port_forwards": {"f": {**FORWARD, "zones": []}}}},
        {"nat": {"port_forwards": {"f": {**FORWARD, "port": "80-90"}}}},
        {"link": {"lan": {"macs": ["aa:bb:cc:dd:ee"]}}},
        {"link": {"lan": {"macs": ["aa:bb:cc:dd:ee:ff; drop"]}}},
        {"conntrack": {"max": 1}},
        {"bans": {"max": 15}},
    ],
)
def test_types_refuse(changes: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        section(**changes)


def deep(levels: int) -> dict[str, list[str]]:
    return {f"n{level}": [f"@n{level + 1}"] for level in range(levels)} | {f"n{levels}": ["10.0.0.1"]}


PLANNING: list[tuple[dict[str, Any], str]] = [
    ({"services": {"ssh": {**SERVICE, "peers": ["192.0.2.1/24"]}}}, "firewall.policy.peer"),
    ({"services": {"ssh": {**SERVICE, "peers": ["fe80::1%eth0"]}}}, "firewall.policy.peer"),
    ({"services": {"ssh": {**SERVICE, "peers": ["1.2.3.4 }"]}}}, "firewall.policy.peer"),
    (
        {"services": {"ssh": {**SERVICE, "peers": ["localhost"]}}},
        "firewall.policy.peer",
    ),  # no dot: a slip, says the parser
    ({"services": {"ssh": {**SERVICE, "peers": ["@plnt"]}}}, "firewall.policy.peer"),
    ({"services": {"ssh": {**SERVICE, "peers": ["!aa:bb:cc:dd:ee:ff"]}}}, "firewall.policy.peer"),
    ({"services": {"ssh": {**SERVICE, "peers": ["!example.org"]}}}, "firewall.policy.peer"),
    ({"services": {"ssh": {**SERVICE, "peers": ["!@ring"]}}, "peers": {"ring": ["any"]}}, "firewall.policy.peer"),
    ({"services": {"ssh": {**SERVICE, "peers": ["@ring"]}}, "peers": {"ring": ["@ring"]}}, "firewall.policy.peer"),
    ({"services": {"ssh": {**SERVICE, "peers": ["@n0"]}}, "peers": deep(MAX_NESTING + 1)}, "firewall.policy.peer"),
    (
        {"services": {"ssh": {**SERVICE, "peers": ["any", *(f"!10.0.0.{n}" for n in range(MAX_EXCLUSIONS + 1))]}}},
        "firewall.policy.peer",
    ),
    ({"management": {"peers": ["manager.example.org"], "service": "ssh"}}, "firewall.policy.peer"),
    ({"management": {"peers": ["aa:bb:cc:dd:ee:ff"], "service": "ssh"}}, "firewall.policy.peer"),
    ({"bans": {"never": ["nobody"]}}, "firewall.policy.peer"),
    ({"bans": {"never": ["manager.example.org"]}}, "firewall.policy.peer"),
    ({"egress": {"services": {"a": {**SERVICE, "peers": ["aa:bb:cc:dd:ee:ff"]}}}}, "firewall.policy.peer"),
    ({"routes": {"r": {**ROUTE, "destinations": ["aa:bb:cc:dd:ee:ff"]}}}, "firewall.policy.peer"),
    ({"nat": {"masquerade": {"m": {"sources": ["example.org"], "zones": ["wan"]}}}}, "firewall.policy.peer"),
    ({"nat": {"port_forwards": {"f": {**FORWARD, "to": "10.0.0.0/24"}}}}, "firewall.policy.peer"),
    ({"nat": {"port_forwards": {"f": {**FORWARD, "to": "camera.example.org"}}}}, "firewall.policy.peer"),
    ({"services": {"ssh": {**SERVICE, "ports": ["90-80"]}}}, "firewall.policy.port"),
    ({"services": {"ssh": {**SERVICE, "ports": ["1-70000"]}}}, "firewall.policy.port"),
    ({"services": {"ssh": {**SERVICE, "ports": []}}}, "firewall.policy.port"),
    ({"services": {"ssh": {**SERVICE, "protocol": "ping"}}}, "firewall.policy.port"),
    ({"management": {"peers": ["any"], "service": "shh"}}, "firewall.policy.unknown-service"),
    ({"management": {"peers": ["any"], "service": "ssh", "egress": "x"}}, "firewall.policy.unknown-service"),
    ({"management": {"peers": ["any"], "service": "ping"}}, "firewall.policy.rule"),
    ({"services": {"ssh": {**SERVICE, "protocol": "udp", "syn_proxy": True}}}, "firewall.policy.rule"),
    ({"services": {"ssh": {**SERVICE, "fields": "raeds"}}}, "firewall.policy.rule"),
    ({"services": {"ssh": {**SERVICE, "protocol": "sctp", "fields": "reads"}}}, "firewall.policy.rule"),
    ({"services": {"ssh": {**SERVICE, "thresholds": [{"high": 1, "low": 2}]}}}, "firewall.policy.rule"),
    ({"services": {"ssh": {**SERVICE, "thresholds": [{"high": 1, "per": "total"}]}}}, "firewall.policy.rule"),
    ({"thresholds": [{"high": 1, "per": "service"}]}, "firewall.policy.rule"),
    ({"forward": "leave"}, "firewall.policy.rule"),  # and a route
    ({"forward": "leave", "routes": {}}, "firewall.policy.rule"),  # and a port forward
    ({"nat": {"port_forwards": {"f": {**FORWARD, "protocol": "ping"}}}}, "firewall.policy.rule"),
    ({"services": {"ssh": {**SERVICE, "zones": ["lna"]}}}, "firewall.policy.zone"),
    ({"routes": {"r": {**ROUTE, "to_zones": ["lna"]}}}, "firewall.policy.zone"),
    ({"link": {"lna": {}}}, "firewall.policy.zone"),
    (
        {"zones": {"lan": {"interfaces": ["eth0"]}, "wan": {"interfaces": ["wan0", "eth0"]}}},
        "firewall.policy.zone",
    ),
    ({"fields": {"reads": {"protocol": "modbus"}}}, "firewall.policy.field"),
]


@pytest.mark.parametrize(("changes", "code"), PLANNING)
def test_planning_refuses(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(TidegateError) as caught:
        plan_ruleset(section(**changes))
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("changes", "nearest"),
    [
        ({"services": {"ssh": {**SERVICE, "peers": ["192.0.2.1/24"]}}}, "192.0.2.0/24"),
        ({"services": {"ssh": {**SERVICE, "peers": ["ayn"]}}}, "any"),
        ({"services": {"ssh": {**SERVICE, "peers": ["@plnt"]}}}, "@plant"),
        ({"services": {"ssh": {**SERVICE, "zones": ["lna"]}}}, "lan"),
        ({"services": {"ssh": {**SERVICE, "fields": "raeds"}}}, "reads"),
        ({"management": {"peers": ["any"], "service": "shh"}}, "ssh"),
        ({"link": {"lna": {}}}, "lan"),
    ],
)
def test_the_nearest_valid_spelling_is_named(changes: dict[str, Any], nearest: str) -> None:
    with pytest.raises(TidegateError) as caught:
        plan_ruleset(section(**changes))
    assert f"'{nearest}'" in caught.value.message


def test_peers_are_merged_and_found() -> None:
    peers = parse_peers(["10.0.0.0/25", "10.0.0.128/25", "10.0.0.7", "2001:db8::/33", "2001:db8:8000::/33"], "test")
    assert [str(prefix) for prefix in (*peers.v4, *peers.v6)] == ["10.0.0.0/24", "2001:db8::/32"]
    assert peers.has(ip_address("10.0.0.200"))
    assert not peers.has(ip_address("10.0.1.0"))
    assert peers.covers(parse_peers(["10.0.0.64/26"], "test"))
    assert not peers.covers(parse_peers(["10.0.0.0/23"], "test"))
    assert not peers.covers(parse_peers(["any"], "test"))
    assert parse_peers(["any", "10.0.0.1"], "test").covers(peers)


def test_exclusions_leave_prefixes() -> None:
    peers = parse_peers(["10.0.0.0/24", "any", "!10.0.0.0/25", "!fe80::/10"], "test")
    assert not peers.everyone
    assert not peers.has(ip_address("10.0.0.127"))
    assert peers.has(ip_address("10.0.0.128"))
    assert peers.has(ip_address("2001:db8::1"))
    assert not peers.has(ip_address("fe80::1"))
    assert parse_peers(["10.0.0.0/24", "!10.0.0.0/8"], "test").empty


def test_macs_and_names_are_peers_of_their_own() -> None:
    peers = parse_peers(["AA:BB:cc:dd:ee:ff", "Example.ORG."], "test")
    somebody = ip_address("10.0.0.1")
    assert peers.has(somebody, mac="aa:bb:cc:dd:ee:ff")
    assert not peers.has(somebody, mac="aa:bb:cc:dd:ee:fe")
    assert peers.has(somebody, resolved={"example.org": {somebody: 60}})
    assert not peers.has(somebody, resolved={"example.net": {somebody: 60}})
    assert peers.overlaps(parse_peers(["example.org"], "test"))
    assert not peers.overlaps(parse_peers(["10.0.0.1"], "test"))


@pytest.mark.parametrize("protocol", list(Protocol))
def test_every_protocol_can_be_planned(protocol: Protocol) -> None:
    ports = [80] if protocol.has_ports else []
    plan_ruleset(section(services={"ssh": SERVICE, "a": {"protocol": protocol, "ports": ports, "peers": ["any"]}}))
