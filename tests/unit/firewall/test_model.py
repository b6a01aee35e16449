"""The evaluator: a row per kind of packet and mode."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.evaluate import evaluate_packet, explain_packet
from tidegate.firewall.model import Direction, Icmp, Packet, Ruleset, State, Verdict, plan_ruleset
from tidegate.firewall.section import FirewallSection, Protocol

SECTION: dict[str, Any] = {
    "zones": {"lan": {"interfaces": ["eth0", "eth1"]}, "wan": {"interfaces": ["wan0"]}},
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
        "web-lan": {"protocol": "tcp", "ports": ["80-81"], "peers": ["10.0.0.0/8", "!10.1.1.9"]},
        "kept": {"protocol": "tcp", "ports": [9000], "peers": ["any"], "lockdown": True},
        "plc": {"protocol": "tcp", "ports": [502], "peers": ["10.0.0.0/8"], "fields": "reads", "lockdown": True},
        "flow": {
            "protocol": "udp",
            "ports": [5000],
            "peers": ["any"],
            "thresholds": [{"high": 5, "count": "packets"}],
        },
        "seen": {"protocol": "udp", "ports": [5001], "peers": ["any"], "mode": "observe", "thresholds": [{"high": 5}]},
        "panel": {"protocol": "udp", "ports": [6000], "peers": ["aa:bb:cc:dd:ee:ff", "panel.example.org"]},
        "igmp": {"protocol": "igmp", "peers": ["10.0.0.0/8"]},
    },
    "fields": {"reads": {"protocol": "modbus", "allow": [{"functions": [3]}]}},
    "egress": {
        "default": "deny",
        "services": {
            "manager": {"protocol": "tcp", "ports": [443], "peers": ["any"]},
            "time": {"protocol": "udp", "ports": [123], "peers": ["time.example.org"], "lockdown": True},
        },
    },
    "routes": {
        "out": {
            "protocol": "tcp",
            "ports": [443],
            "sources": ["10.0.0.0/8"],
            "destinations": ["any", "!198.51.100.9"],
            "from_zones": ["lan"],
            "to_zones": ["wan"],
            "lockdown": True,
        },
        "slow": {
            "protocol": "tcp",
            "ports": [8443],
            "sources": ["10.0.0.0/8"],
            "destinations": ["any"],
            "from_zones": ["lan"],
            "to_zones": ["wan"],
            "limit": {"new_per_s": 1},
        },
    },
    "nat": {
        "port_forwards": {
            "camera": {
                "protocol": "tcp",
                "port": 8443,
                "zones": ["wan"],
                "peers": ["any"],
                "to": "10.0.0.7",
                "to_port": 4443,
            }
        }
    },
    "bans": {"never": ["203.0.113.9"]},
}

A, D, R = Verdict.ACCEPT, Verdict.DROP, Verdict.REJECT
IN, OUT, THROUGH = Direction.IN, Direction.OUT, Direction.THROUGH
OPENED: dict[str, Any] = {"state": State.ESTABLISHED}
RELATED: dict[str, Any] = {"state": State.RELATED}
OVER: dict[str, Any] = {"over_threshold": True}
UDP: dict[str, Any] = {"protocol": Protocol.UDP}
BANNED = (ip_address("203.0.113.8"), ip_address("203.0.113.9"), ip_address("192.0.2.5"), ip_network("203.0.114.0/24"))
PANEL = ip_address("10.0.0.88")
RESOLVED = {"panel.example.org": {PANEL: 60}, "time.example.org": {ip_address("198.51.100.123"): 60}}


def ruleset(**changes: Any) -> Ruleset:
    return plan_ruleset(msgspec.convert({**SECTION, **changes}, FirewallSection))


def packet(source: str, port: int = 0, **more: Any) -> Packet:
    values: dict[str, Any] = {
        "interface": "eth0",
        "source": ip_address(source),
        "destination": ip_address("10.0.0.1"),
        "protocol": Protocol.TCP if port or more.get("source_port") else None,
        "port": port,
    }
    return Packet(**(values | more))


def out(destination: str, port: int = 0, **more: Any) -> Packet:
    return packet("10.0.0.1", port, direction=OUT, destination=ip_address(destination), **more)


def through(source: str, destination: str, port: int = 0, **more: Any) -> Packet:
    sides = {"interface": "eth0", "out_interface": "wan0"} | more
    return packet(source, port, direction=THROUGH, destination=ip_address(destination), **sides)


PING: dict[str, Any] = {"protocol": Protocol.PING, "icmp": Icmp.ECHO_REQUEST}


def talk(icmp: Icmp, hop_limit: int = 255) -> dict[str, Any]:
    return {"icmp": icmp, "hop_limit": hop_limit, "state": State.UNTRACKED}


# the packet; in enforce, in lockdown; the rule in enforce, in lockdown
ROWS: list[tuple[Packet, Verdict, Verdict, str, str]] = [
    (packet("192.0.2.5", 22), A, A, "management", "management"),
    (packet("192.0.2.5", 22, **OVER), A, A, "management", "management"),
    (packet("192.0.2.5", 22, **OPENED), A, A, "management", "management"),
    (packet("192.0.2.5", 22, state=State.INVALID), D, D, "invalid", "invalid"),
    (packet("198.51.100.5", 22), D, D, "default", "lockdown"),
    (packet("198.51.100.5", 80), A, D, "services.web", "lockdown"),
    (packet("198.51.100.5", 80, **OPENED), A, D, "established", "lockdown"),
    (packet("198.51.100.5", 80, interface="eth1"), D, D, "default", "lockdown"),
    (packet("198.51.100.5", 80, interface=None), A, D, "services.web", "lockdown"),
    (packet("198.51.100.5", 80, **OVER), D, D, "default", "lockdown"),
    (packet("10.1.1.1", 80, **OVER), A, D, "services.web-lan", "lockdown"),  # the other service allows it
    (packet("10.1.1.1", 81, interface="eth1"), A, D, "services.web-lan", "lockdown"),
    (packet("10.1.1.9", 81), D, D, "default", "lockdown"),  # excluded
    (packet("10.1.1.1", 82), D, D, "default", "lockdown"),
    (packet("10.1.1.1", 80, **UDP), D, D, "default", "lockdown"),
    (packet("198.51.100.5", 9000), A, A, "services.kept", "services.kept"),
    (packet("198.51.100.5", 9000, **OPENED), A, A, "established", "services.kept"),
    (packet("10.1.1.1", 502), A, A, "services.plc", "services.plc"),
    (packet("10.1.1.1", 5000, **UDP), A, D, "services.flow", "lockdown"),
    (packet("10.1.1.1", 5000, **UDP, **OVER), D, D, "services.flow", "lockdown"),
    (packet("10.1.1.1", 5000, **UDP, **OVER, **OPENED), D, D, "services.flow", "lockdown"),  # it counts every packet
    (packet("10.1.1.1", 5001, **UDP, **OVER), A, D, "services.seen", "lockdown"),  # only observed
    (packet("10.1.1.1", 6000, **UDP), D, D, "default", "lockdown"),
    (packet("10.1.1.1", 6000, **UDP, mac="aa:bb:cc:dd:ee:ff"), A, D, "services.panel", "lockdown"),
    (packet("10.1.1.1", 6000, **UDP, mac="aa:bb:cc:dd:ee:fe"), D, D, "default", "lockdown"),
    (packet(str(PANEL), 6000, **UDP), A, D, "services.panel", "lockdown"),
    (packet("10.1.1.1", protocol=Protocol.IGMP), A, D, "services.igmp", "lockdown"),
    (packet("198.51.100.5", protocol=Protocol.IGMP), D, D, "default", "lockdown"),
    (packet("198.51.100.5", protocol=Protocol.GRE), D, D, "default", "lockdown"),
    (packet("127.0.0.1", 9999, interface="lo"), A, A, "loopback", "loopback"),
    (packet("198.51.100.5", **PING), A, D, "ping", "lockdown"),
    (packet("198.51.100.5", **PING, **OVER), D, D, "default", "lockdown"),
    (packet("fe80::5", **talk(Icmp.NEIGHBOUR_SOLICIT)), A, A, "neighbours", "neighbours"),
    (packet("fe80::5", **talk(Icmp.NEIGHBOUR_SOLICIT, 254)), D, D, "default", "lockdown"),
    (packet("fe80::5", **talk(Icmp.ROUTER_SOLICIT)), D, D, "default", "lockdown"),
    (packet("fe80::5", **talk(Icmp.LISTENER_QUERY, 1)), A, A, "neighbours", "neighbours"),
    (packet("2001:db8::5", **talk(Icmp.LISTENER_QUERY, 1)), D, D, "default", "lockdown"),
    (packet("198.51.100.5", icmp=Icmp.OTHER, **RELATED), A, A, "established", "lockdown"),
    (packet("198.51.100.5", 5555, source_port=443, **OPENED), A, A, "established", "egress.manager"),
    (packet("198.51.100.5", 5555, source_port=443), D, D, "default", "lockdown"),
    (packet("203.0.113.8", 80), D, D, "bans", "bans"),
    (packet("203.0.114.77", 80), D, D, "bans", "bans"),  # inside a banned prefix
    (packet("203.0.113.9", 80), A, D, "services.web", "lockdown"),  # banned, but never to be
    (packet("203.0.113.8", 80, interface="lo"), A, A, "loopback", "loopback"),
    (out("198.51.100.5", 443), A, A, "egress.manager", "management"),
    (out("198.51.100.5", 444), R, R, "egress", "lockdown"),
    (out("198.51.100.123", 123, **UDP), A, A, "egress.time", "egress.time"),
    (out("198.51.100.124", 123, **UDP), R, R, "egress", "lockdown"),  # the name stands for another address
    (out("192.0.2.5", 5555, source_port=22), R, A, "egress", "management"),
    (out("10.1.1.1", 5555, source_port=80, **OPENED), A, R, "established", "lockdown"),
    (out("10.1.1.1", 5555, source_port=9000, **OPENED), A, A, "established", "services.kept"),
    (out("fe80::1", icmp=Icmp.NEIGHBOUR_SOLICIT), A, A, "neighbours", "neighbours"),
    (out("fe80::1", icmp=Icmp.ROUTER_ADVERT), R, R, "egress", "lockdown"),
    (out("203.0.113.8", 443), A, A, "egress.manager", "management"),  # a ban is about what comes
    (through("10.1.1.1", "198.51.100.5", 443), A, A, "routes.out", "routes.out"),
    (through("10.1.1.1", "198.51.100.9", 443), D, D, "forward", "lockdown"),  # excluded
    (through("10.1.1.1", "198.51.100.5", 444), D, D, "forward", "lockdown"),
    (through("172.16.1.1", "198.51.100.5", 443), D, D, "forward", "lockdown"),
    (through("10.1.1.1", "198.51.100.5", 443, interface="wan0"), D, D, "forward", "lockdown"),
    (through("10.1.1.1", "198.51.100.5", 443, out_interface="eth1"), D, D, "forward", "lockdown"),
    (through("10.1.1.1", "198.51.100.5", 443, state=State.INVALID), D, A, "invalid", "routes.out"),
    (through("10.1.1.1", "198.51.100.5", 8443), A, D, "routes.slow", "lockdown"),
    (through("10.1.1.1", "198.51.100.5", 8443, **OVER), D, D, "forward", "lockdown"),
    (
        through("198.51.100.5", "10.1.1.1", 5555, source_port=443, interface="wan0", out_interface="eth0", **OPENED),
        A,
        A,
        "established",
        "routes.out",
    ),
    (through("203.0.113.8", "10.0.0.7", 4443, interface="wan0", out_interface="eth0"), D, D, "bans", "bans"),
    (  # described as it is after the translation
        through("198.51.100.5", "10.0.0.7", 4443, interface="wan0", out_interface="eth0", translated=True),
        A,
        D,
        "port-forwards.camera",
        "lockdown",
    ),
    (through("198.51.100.5", "10.0.0.7", 4443, interface="wan0", out_interface="eth0"), D, D, "forward", "lockdown"),
]


@pytest.mark.parametrize(("probe", "enforce", "lockdown", "rule", "locked_rule"), ROWS)
def test_verdicts(probe: Packet, enforce: Verdict, lockdown: Verdict, rule: str, locked_rule: str) -> None:
    for mode, verdict, by in (("enforce", enforce, rule), ("lockdown", lockdown, locked_rule)):
        decision = explain_packet(ruleset(mode=mode), probe, banned=BANNED, resolved=RESOLVED)
        assert (decision.verdict, decision.rule) == (verdict, by), mode
    observed = explain_packet(ruleset(mode="observe"), probe, banned=BANNED, resolved=RESOLVED)
    assert (observed.verdict, observed.rule) == (A, rule)


def test_reject_answers_and_forward_can_be_left() -> None:
    left = ruleset(default="reject", forward="leave", routes={}, nat={}, ping_per_s=0)
    assert evaluate_packet(left, packet("198.51.100.5", 22)) is R
    assert evaluate_packet(left, packet("198.51.100.5", **PING)) is R
    assert evaluate_packet(left, through("10.1.1.1", "198.51.100.5", 22)) is A
    assert evaluate_packet(replace(left, mode=ruleset(mode="lockdown").mode), through("10.1.1.1", "1.2.3.4", 22)) is D


def test_a_ping_service_answers_beyond_the_general_rate() -> None:
    services = {**SECTION["services"], "echo": {"protocol": "ping", "peers": ["10.0.0.0/8"]}}
    rules = ruleset(services=services)
    assert explain_packet(rules, packet("10.1.1.1", **PING, **OVER)).rule == "services.echo"
    assert evaluate_packet(rules, packet("198.51.100.5", **PING, **OVER)) is D


def test_thresholds_over_everything_spare_the_management_path() -> None:
    for count in ("new", "packets"):
        rules = ruleset(thresholds=[{"per": "total", "high": 9, "count": count}])
        assert explain_packet(rules, packet("198.51.100.5", 9000, **OVER)).rule == "thresholds"
        assert explain_packet(rules, packet("192.0.2.5", 22, **OVER)).rule == "management"
        opened = explain_packet(rules, packet("198.51.100.5", 9000, **OVER, **OPENED))
        assert opened.rule == ("thresholds" if count == "packets" else "established")


def test_by_a_port_that_stays_open_in_lockdown_no_program_calls_out() -> None:
    """A kept service answers who called it; that its port is open makes it no way out for whatever runs there."""
    locked = ruleset(mode="lockdown")
    assert evaluate_packet(locked, out("198.51.100.5", 6666, source_port=9000, **OPENED)) is A
    assert evaluate_packet(locked, out("198.51.100.5", 6666, source_port=9000)) is R
    lines = [line for line in encode_ruleset(locked).splitlines() if "sport 9000" in line]
    assert lines
    assert all("ct state established " in line for line in lines)


def test_content_rules_follow_the_verdict() -> None:
    for state in (State.NEW, State.ESTABLISHED):
        decision = explain_packet(ruleset(), packet("10.1.1.1", 502, state=state))
        assert (decision.verdict, decision.fields) == (A, "reads")
    assert explain_packet(ruleset(), packet("10.1.1.1", 80)).fields is None


def test_the_management_peers_can_be_banned_only_if_they_are_everyone() -> None:
    everyone = ruleset(management={"peers": ["any"], "service": "ssh"})
    probe = packet("192.0.2.5", 22)
    assert evaluate_packet(everyone, probe, banned=BANNED) is D
    assert evaluate_packet(ruleset(), probe, banned=BANNED) is A


def test_what_a_name_stands_for_decides() -> None:
    assert evaluate_packet(ruleset(), packet(str(PANEL), 6000, **UDP)) is D
    assert evaluate_packet(ruleset(), packet(str(PANEL), 6000, **UDP), resolved=RESOLVED) is A
