"""The evaluator: a row per kind of packet and mode."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.firewall.model import Direction, Icmp, Packet, State, Verdict, evaluate_packet, plan_ruleset
from tidegate.firewall.section import FirewallSection, Protocol

SECTION: dict[str, Any] = {
    "management": {"peers": ["192.0.2.0/24"], "service": "ssh", "egress": "manager"},
    "services": {
        "ssh": {"protocol": "tcp", "ports": [22], "peers": []},
        "web": {
            "protocol": "tcp",
            "ports": [80],
            "peers": ["any"],
            "interfaces": ["eth0"],
            "limit": {"new_per_s": 1},
        },
        "web-lan": {"protocol": "tcp", "ports": ["80-81"], "peers": ["10.0.0.0/8"]},
    },
    "egress": {"default": "deny", "services": {"manager": {"protocol": "tcp", "ports": [443], "peers": ["any"]}}},
    "bans": {"never": ["203.0.113.9"]},
}

A, D, R = Verdict.ACCEPT, Verdict.DROP, Verdict.REJECT


def packet(source: str, port: int = 0, **more: Any) -> Packet:
    values: dict[str, Any] = {
        "interface": "eth0",
        "source": ip_address(source),
        "destination": ip_address("10.0.0.1"),
        "protocol": Protocol.TCP if port or more.get("source_port") else None,
        "port": port,
    }
    return Packet(**(values | more))


OUT = {"direction": Direction.OUT}


@pytest.mark.parametrize(
    ("probe", "enforce", "lockdown"),
    [
        (packet("192.0.2.5", 22), A, A),
        (packet("192.0.2.5", 22, state=State.ESTABLISHED), A, A),
        (packet("192.0.2.5", 22, state=State.INVALID), D, D),
        (packet("198.51.100.5", 22), D, D),
        (packet("198.51.100.5", 80), A, D),
        (packet("198.51.100.5", 80, state=State.ESTABLISHED), A, D),
        (packet("198.51.100.5", 80, interface="eth1"), D, D),
        (packet("198.51.100.5", 80, over_threshold=True), D, D),
        (packet("10.1.1.1", 80, over_threshold=True), A, D),  # the other service allows it
        (packet("10.1.1.1", 81, interface="eth1"), A, D),
        (packet("10.1.1.1", 82), D, D),
        (packet("10.1.1.1", 80, protocol=Protocol.UDP), D, D),
        (packet("127.0.0.1", 9999, interface="lo"), A, A),
        (packet("198.51.100.5", icmp=Icmp.ECHO_REQUEST), A, D),
        (packet("198.51.100.5", icmp=Icmp.ECHO_REQUEST, over_threshold=True), D, D),
        (packet("fe80::5", icmp=Icmp.NEIGHBOUR_SOLICIT, hop_limit=255, state=State.UNTRACKED), A, A),
        (packet("fe80::5", icmp=Icmp.NEIGHBOUR_SOLICIT, hop_limit=254, state=State.UNTRACKED), D, D),
        (packet("fe80::5", icmp=Icmp.ROUTER_SOLICIT, hop_limit=255, state=State.UNTRACKED), D, D),
        (packet("fe80::5", icmp=Icmp.LISTENER_QUERY, hop_limit=1, state=State.UNTRACKED), A, A),
        (packet("2001:db8::5", icmp=Icmp.LISTENER_QUERY, hop_limit=1, state=State.UNTRACKED), D, D),
        (packet("198.51.100.5", icmp=Icmp.OTHER, state=State.RELATED), A, A),
        (packet("198.51.100.5", 5555, source_port=443, state=State.ESTABLISHED), A, A),
        (packet("198.51.100.5", 5555, source_port=443), D, D),
        (packet("10.0.0.1", 443, **OUT), A, A),
        (packet("10.0.0.1", 444, **OUT), R, R),
        (packet("10.0.0.1", 5555, source_port=22, destination=ip_address("192.0.2.5"), **OUT), R, A),
        (packet("10.0.0.1", 5555, source_port=80, state=State.ESTABLISHED, **OUT), A, R),
        (packet("fe80::1", icmp=Icmp.NEIGHBOUR_SOLICIT, **OUT), A, A),
        (packet("198.51.100.5", 22, direction=Direction.THROUGH), D, D),
        (packet("203.0.113.8", 80), D, D),  # banned
        (packet("203.0.113.9", 80), A, D),  # banned, but never to be
    ],
)
def test_verdicts(probe: Packet, enforce: Verdict, lockdown: Verdict) -> None:
    banned = frozenset({ip_address("203.0.113.8"), ip_address("203.0.113.9"), ip_address("192.0.2.5")})
    for mode, verdict in (("enforce", enforce), ("lockdown", lockdown), ("observe", A)):
        ruleset = plan_ruleset(msgspec.convert({**SECTION, "mode": mode}, FirewallSection))
        assert evaluate_packet(ruleset, probe, banned=banned) is verdict, mode


def test_reject_answers_and_forward_can_be_left() -> None:
    ruleset = plan_ruleset(
        msgspec.convert({**SECTION, "default": "reject", "forward": "leave", "ping_per_s": 0}, FirewallSection)
    )
    assert evaluate_packet(ruleset, packet("198.51.100.5", 22)) is R
    assert evaluate_packet(ruleset, packet("198.51.100.5", icmp=Icmp.ECHO_REQUEST)) is R
    assert evaluate_packet(ruleset, packet("198.51.100.5", 22, direction=Direction.THROUGH)) is A
