"""What the section's types refuse by themselves, and what ``plan_ruleset`` refuses after them."""

from __future__ import annotations

import tomllib
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.model import PortSpan, parse_peers, plan_ruleset
from tidegate.firewall.section import FirewallSection, Mode

EXAMPLE = """
mode = "enforce"
default = "deny"
confirm_timeout_s = 30

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
interfaces = ["eth0"]
peers = ["any"]
limit = { new_per_s = 50, burst = 100, connections = 64 }

[egress]
default = "deny"
[egress.services.ntp]
protocol = "udp"
ports = [123]
peers = ["198.51.100.1", "2001:db8::123"]

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
    assert web.threshold is not None
    assert (web.threshold.new_per_s, web.threshold.burst, web.threshold.connections) == (50, 100, 64)
    assert ruleset.management is not None
    assert ruleset.management.service.name == "ssh"


SERVICE: dict[str, Any] = {"protocol": "tcp", "ports": [80], "peers": ["any"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"mdoe": "enforce"},
        {"mode": "Enforce"},
        {"confirm_timeout_s": 0},
        {"services": {"web": {**SERVICE, "ports": []}}},
        {"services": {"web": {**SERVICE, "ports": [0]}}},
        {"services": {"web": {**SERVICE, "ports": [65536]}}},
        {"services": {"web": {**SERVICE, "ports": ["80; drop"]}}},
        {"services": {"web": {**SERVICE, "ports": ["80-90\n"]}}},
        {"services": {"web": {**SERVICE, "interfaces": ['eth0" accept #']}}},
        {"services": {"web": {**SERVICE, "interfaces": ["eth0\n"]}}},
        {"services": {"web": {**SERVICE, "interfaces": ["x" * 16]}}},
        {"services": {"web": {**SERVICE, "protocol": "sctp"}}},
        {"services": {"web": {**SERVICE, "limit": {"new_per_s": 0}}}},
        {"services": {"web": {"protocol": "tcp", "ports": [80]}}},  # peers must be said
        {"services": {"web { }": SERVICE}},
        {"services": {"a_b": SERVICE}},
        {"services": {"web\n": SERVICE}},
    ],
)
def test_types_refuse(changes: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        section(**changes)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"services": {"ssh": {**SERVICE, "peers": ["192.0.2.1/24"]}}}, "firewall.policy.peer"),
        ({"services": {"ssh": {**SERVICE, "peers": ["example.org"]}}}, "firewall.policy.peer"),
        ({"services": {"ssh": {**SERVICE, "peers": ["fe80::1%eth0"]}}}, "firewall.policy.peer"),
        ({"services": {"ssh": {**SERVICE, "peers": ["1.2.3.4 }"]}}}, "firewall.policy.peer"),
        ({"services": {"ssh": {**SERVICE, "ports": ["90-80"]}}}, "firewall.policy.port"),
        ({"services": {"ssh": {**SERVICE, "ports": ["1-70000"]}}}, "firewall.policy.port"),
        ({"management": {"peers": ["any"], "service": "shh"}}, "firewall.policy.unknown-service"),
        ({"management": {"peers": ["any"], "service": "ssh", "egress": "x"}}, "firewall.policy.unknown-service"),
        ({"bans": {"never": ["nobody"]}}, "firewall.policy.peer"),
    ],
)
def test_planning_refuses(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(TidegateError) as caught:
        plan_ruleset(section(**changes))
    assert caught.value.code == code


def test_peers_are_merged_and_found() -> None:
    peers = parse_peers(["10.0.0.0/25", "10.0.0.128/25", "10.0.0.7", "2001:db8::/33", "2001:db8:8000::/33"], "test")
    assert [str(prefix) for prefix in (*peers.v4, *peers.v6)] == ["10.0.0.0/24", "2001:db8::/32"]
    assert peers.has(ip_address("10.0.0.200"))
    assert not peers.has(ip_address("10.0.1.0"))
    assert peers.covers(parse_peers(["10.0.0.64/26"], "test"))
    assert not peers.covers(parse_peers(["10.0.0.0/23"], "test"))
    assert not peers.covers(parse_peers(["any"], "test"))
    assert parse_peers(["any", "10.0.0.1"], "test").covers(peers)
