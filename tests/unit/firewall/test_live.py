from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.firewall.live import Session, Sockets, parse_socket, pick_managing
from tidegate.firewall.model import Direction, ManagementPath, Packet, Ruleset, plan_ruleset
from tidegate.firewall.section import FirewallSection

DEVICE = "192.0.2.1"
SSH = {"protocol": "tcp", "ports": [22], "peers": []}
CONSOLE = {"protocol": "tcp", "ports": [8443], "peers": []}
CALL = {"protocol": "tcp", "ports": [8883], "peers": ["198.51.100.7"]}
POLICY: dict[str, Any] = {
    "management": {"peers": ["192.0.2.0/24"], "service": "console", "egress": "manager"},
    "services": {"ssh": SSH, "console": CONSOLE},
    "egress": {"services": {"manager": CALL}},
}


def plan(values: dict[str, Any]) -> Ruleset:
    return plan_ruleset(msgspec.convert(values, FirewallSection))


def path(values: dict[str, Any]) -> ManagementPath:
    management = plan(values).management
    assert management is not None
    return management


def session(remote: str, remote_port: int, local_port: int, local: str = DEVICE) -> Session:
    return Session(local=ip_address(local), local_port=local_port, remote=ip_address(remote), remote_port=remote_port)


def pick(*sessions: Session, old: ManagementPath | None = None, wanted: dict[str, Any] = POLICY, **more: Any) -> Any:
    sockets = Sockets(
        sessions=sessions, listening=frozenset((22, 443, 2222, 8443)), shell_ports=frozenset(more.pop("ports", ()))
    )
    return [describe(packet) for packet in pick_managing(sockets, plan(wanted), old, **more)]


def describe(packet: Packet) -> tuple[str, str, int]:
    far = packet.destination if packet.direction is Direction.OUT else packet.source
    return packet.direction.value, str(far), packet.port


LINES = [
    (
        "   0: 0100007F:0016 010200C0:0000 0A 0:0 00:0 0 0 0 1234 1 0 100 0 0 10 0",
        ("127.0.0.1", 22, "192.0.2.1", 0, 10),
    ),
    ("  1: 010200C0:20FB 076433C6:C350 01 0:0 00:0 0 0 0 77 1", ("192.0.2.1", 8443, "198.51.100.7", 50000, 1)),
    (
        " 2: 0000000000000000FFFF0000010200C0:0016 0000000000000000FFFF0000020200C0:C350 01 0:0 00:0 0 0 0 5 1",
        ("192.0.2.1", 22, "192.0.2.2", 50000, 1),
    ),
    (
        " 3: B80D0120000000000000000001000000:0016 B80D0120000000000000000002000000:C350 01 0:0 00:0 0 0 0 5 1",
        ("2001:db8::1", 22, "2001:db8::2", 50000, 1),
    ),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_lines_of_the_kernel(line: str, expected: tuple[str, int, str, int, int]) -> None:
    parsed = parse_socket(line, "little")
    assert parsed is not None
    found, state, _ = parsed
    assert (str(found.local), found.local_port, str(found.remote), found.remote_port, state) == expected


def test_the_other_byte_order() -> None:
    parsed = parse_socket(" 1: C0000201:0016 C0000202:C350 01 0:0 00:0 0 0 0 77 1", "big")
    assert parsed is not None
    assert str(parsed[0].remote) == "192.0.2.2"


@pytest.mark.parametrize("line", ["", "  sl  local_address rem_address   st", "0: 01:22 02:33 01", "0: zz:16 00:00 01"])
def test_other_lines_are_none(line: str) -> None:
    assert parse_socket(line) is None


def test_nothing_known_everyone_on_the_wanted_service_counts() -> None:
    found = pick(session("203.0.113.5", 50000, 8443), session("203.0.113.5", 50001, 443))
    assert found == [("in", "203.0.113.5", 8443)]


def test_known_only_its_managers_count() -> None:
    old = path({**POLICY, "management": {"peers": ["203.0.113.0/24"], "service": "ssh"}})
    found = pick(
        session("203.0.113.5", 50000, 22),  # of the old path
        session("192.0.2.9", 50000, 8443),  # of the wanted one
        session("203.0.113.5", 50000, 8443),  # of neither
        old=old,
        shells=False,
    )
    assert found == [("in", "203.0.113.5", 22), ("in", "192.0.2.9", 8443)]


def test_shells_wherever_they_listen() -> None:
    sessions = session("203.0.113.5", 50000, 22), session("203.0.113.6", 50000, 2222)
    assert pick(*sessions, old=path(POLICY), ports={2222}) == [
        ("in", "203.0.113.5", 22),
        ("in", "203.0.113.6", 2222),
    ]
    assert pick(*sessions, old=path(POLICY), ports={2222}, shells=False) == []


def test_the_call_to_the_manager() -> None:
    wanted = {**POLICY, "egress": {"services": {"manager": {**CALL, "peers": ["198.51.100.9"]}}}}
    sessions = session("198.51.100.7", 8883, 50000), session("198.51.100.8", 8883, 50000)
    assert pick(*sessions, old=path(POLICY), wanted=wanted) == [("out", "198.51.100.7", 8883)]


def test_what_a_name_decides_is_left_out() -> None:
    wanted = {**POLICY, "egress": {"services": {"manager": {**CALL, "peers": ["manager.example.com"]}}}}
    assert pick(session("198.51.100.7", 8883, 50000), old=path(POLICY), wanted=wanted) == []


def test_each_client_once_and_loopback_never() -> None:
    same = [session("192.0.2.9", port, 8443) for port in range(50000, 50100)]
    own = session(DEVICE, 50000, 8443), session("127.0.0.1", 50000, 22, local="127.0.0.1")
    assert pick(*same, *own) == [("in", "192.0.2.9", 8443)]
