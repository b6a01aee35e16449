"""From MUD files to rules: what becomes of every entry, and that nothing becomes wider silently."""

from __future__ import annotations

import datetime
import os
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from tests.unit.firewall.mudfiles import DEVICE, FILES, MAC, NAMES, NOW, RESOLVED, ace, file, packets, policy, site

from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.errors import BadMud, MudPeers, MudUnsupported
from tidegate.firewall.evaluate import evaluate_packet
from tidegate.firewall.model import Direction, Packet, Verdict, plan_ruleset
from tidegate.firewall.mud import parse_mud
from tidegate.firewall.mud_import import Imported, Role, plan_import
from tidegate.firewall.mud_openings import FindingKind
from tidegate.firewall.section import FirewallSection, Protocol
from tidegate.policy.document import parse_policy

CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", Path(__file__).parents[4] / "shared" / "corpora"))
CORPUS = CORPORA / "mud"
ALL_PORTS = ("1-65535",)


def take(raw: bytes, role: Role = Role.DEVICE, **changes: Any) -> Imported:
    return plan_import(parse_mud(raw), site(role, **changes), now=NOW)


def kinds(made: Imported) -> set[FindingKind]:
    return {one.kind for one in made.findings}


@pytest.mark.parametrize("role", [*Role])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_becomes_a_policy_that_loads_and_compiles(path: Path, role: Role) -> None:
    zone = {"zone": "iot"} if role is Role.GATEWAY else {}
    made = take(path.read_bytes(), role, **zone)
    read = parse_policy(policy(made.text, role)).firewall
    assert read is not None
    assert read.services == made.section.services
    assert read.routes == made.section.routes
    assert read.egress == made.section.egress
    assert encode_ruleset(plan_ruleset(read), resolved=RESOLVED)


LAN = ["192.168.1.1", "192.168.1.5", "192.168.1.80", "192.168.1.99", "fd00::1", "fd00::5", "fd00::99"]
ALLOWED = {  # what the files mean, in words of their own: (direction, protocol, port) -> the others
    "bulb-v6": {("out", "tcp", 443): ["service.bulb.example.com"]},
    "plc": {
        ("in", "tcp", 502): ["10.1.0.5", "10.1.0.6"],
        ("in", "tcp", 4840): ["192.168.1.5"],
        ("in", "tcp", 49152): ["198.51.100.7"],
        ("in", "tcp", 65535): ["198.51.100.7"],
        ("out", "udp", 514): ["192.0.2.55"],
    },
    "thermostat": {
        ("out", "tcp", 8883): ["mqtt.thermo.example"],
        ("out", "udp", 53): ["192.168.1.1", "fd00::1"],
        ("out", "tcp", 53): ["192.168.1.1", "fd00::1"],
        ("in", "udp", 5683): ["192.168.1.80"],
        ("out", "udp", 5683): ["192.168.1.80"],
    },
    "printer": {
        ("in", "tcp", 9100): LAN,
        ("in", "ping", 0): LAN,
        ("in", "tcp", 443): ["192.168.1.5"],
        ("out", "udp", 53): ["192.168.1.1", "fd00::1"],
        ("out", "udp", 123): ["192.168.1.1"],
    },
    "doorbell-generated": {
        ("out", "udp", 67): ["192.168.1.1"],
        ("out", "udp", 53): ["192.168.1.1"],
        ("out", "tcp", 443): ["push.doorbell.example"],
        ("out", "udp", 123): ["2.pool.ntp.example"],
    },
}


@pytest.mark.parametrize("name", ALLOWED)
def test_exactly_what_the_file_means_may_be_begun(name: str) -> None:
    path = next(path for path in FILES if path.stem == name)
    ruleset = plan_ruleset(take(path.read_bytes()).section)
    wanted = {
        (*key, ip_address(one))
        for key, others in ALLOWED[name].items()
        for other in others
        for one in NAMES.get(other, (other,))
    }
    found = {
        (one.direction.value, one.protocol.value, one.port, one.destination if one.direction == "out" else one.source)
        for one in packets()
        if one.protocol is not None and evaluate_packet(ruleset, one, resolved=RESOLVED) is Verdict.ACCEPT
    }
    assert found == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_gateway_lets_through_what_the_device_would_let_in_and_out(path: Path) -> None:
    ours = plan_ruleset(take(path.read_bytes()).section)
    gateway = plan_ruleset(take(path.read_bytes(), Role.GATEWAY).section)
    for one in packets():
        through = Packet(
            direction=Direction.THROUGH,
            interface="iot0",
            out_interface="wan0",
            source=one.source,
            destination=one.destination,
            protocol=one.protocol,
            port=one.port,
            source_port=one.source_port,
            icmp=one.icmp,
        )
        passes = evaluate_packet(gateway, through, resolved=RESOLVED) is Verdict.ACCEPT
        if passes:  # the gateway knows the device's families better, so it may allow less
            assert evaluate_packet(ours, one, resolved=RESOLVED) is Verdict.ACCEPT, one
        elif path.stem in ("camera", "thermostat"):  # both families: the same
            assert evaluate_packet(ours, one, resolved=RESOLVED) is not Verdict.ACCEPT, one


@pytest.mark.parametrize(
    ("side", "matches"),
    [
        ("from", {"ipv4": {"protocol": 6, "dscp": 8}}),
        ("from", {"ipv4": {"protocol": 99}}),
        ("from", {"ipv4": {"protocol": 58}}),
        ("from", {"icmp": {"type": 13}}),
        ("from", {"udp": {"source-port": {"port": 68}, "destination-port": {"port": 67}}}),
        ("from", {"tcp": {"ietf-mud:direction-initiated": "from-device", "source-port": {"port": 68}}}),
        ("from", {"tcp": {"destination-port": {"port": 0}}}),
        ("from", {"mud": {"controller": "https://unknown.example/"}, "tcp": {}}),
        ("from", {"mud": {"manufacturer": "unknown.example"}, "tcp": {}}),
        ("to", {"mud": {"model": "https://unknown.example/m"}, "tcp": {}}),
    ],
)
def test_what_cannot_be_said_is_refused_or_left_out_and_named(side: str, matches: dict[str, Any]) -> None:
    raw = file([ace("odd", **matches), ace("even", udp={"destination-port": {"port": 7}})], side=side)
    with pytest.raises(MudUnsupported):
        take(raw)
    made = take(raw, partial=True)
    assert [one.where for one in made.findings if one.kind is FindingKind.LEFT_OUT] == ["list/odd"]
    assert "left-out: list/odd" in made.text
    assert len([*made.section.services, *made.section.egress.services]) == 1  # the other entry


def test_a_list_of_peers_that_the_operator_did_not_give_is_asked_for() -> None:
    raw = file([ace(mud={"my-controller": [None]}, tcp={"destination-port": {"port": 443}})])
    with pytest.raises(MudUnsupported) as caught:
        take(raw, my_controller=())
    assert "--my-controller" in caught.value.message


def test_an_entry_behind_a_refusal_of_a_part_of_it_is_left_out() -> None:
    web = {"destination-port": {"port": 443}}
    refusing = ace("no", forwarding="drop", ipv4={"destination-ipv4-network": "10.0.0.0/8"}, tcp=web)
    apart = ace("apart", ipv4={"destination-ipv4-network": "192.0.2.0/24"}, tcp=web)
    other = ace("other", tcp={"destination-port": {"port": 80}})
    inside = ace("inside", ipv4={"destination-ipv4-network": "10.1.0.0/16"}, tcp=web)
    everybody = ace("everybody", tcp=web)
    raw = file([refusing, apart, other, inside, everybody])
    made = take(raw, partial=True)
    assert {one.where for one in made.findings} == {"list/inside", "list/everybody"}
    assert not take(file([apart, other, refusing])).findings  # behind them it is the default


def test_a_refusal_that_is_not_understood_may_be_about_everything() -> None:
    refusing = ace("no", forwarding="reject", ipv4={"dscp": 8})
    made = take(file([refusing, ace("yes", tcp={"destination-port": {"port": 443}})]), partial=True)
    assert not made.section.egress.services


def test_frames_open_nothing_whatever_stands_before_them() -> None:
    frames = {"name": "frames", "matches": {"eth": {"ethertype": "0x888e"}}, "actions": {"forwarding": "accept"}}
    refusing = ace("no", forwarding="drop", mud={"local-networks": [None]})
    raw = file([refusing, frames]).replace(b"ipv4-acl-type", b"ethernet-acl-type")
    made = take(raw, partial=True)
    assert not made.section.services
    assert not made.section.egress.services


def test_a_device_that_everybody_may_call_is_said() -> None:
    made = take(file([ace(tcp={"destination-port": {"port": 23}})], side="to"))
    assert [one.peers for one in made.section.services.values()] == [("0.0.0.0/0",)]
    assert any("everybody" in one.message for one in made.findings)


def test_more_rules_than_a_policy_has_are_refused() -> None:
    entries = [ace(f"e{n}", ipv4={"destination-ipv4-network": f"10.{n >> 8}.{n & 255}.1"}) for n in range(1000)]
    ports = [
        ace(f"p{n}", tcp={"destination-port": {"port": 2 * n + 1}}, ipv4=e["matches"]["ipv4"])
        for n, e in enumerate(entries)
    ]
    both = [file(ports)]
    assert len(take(both[0]).section.egress.services) == 1000


def test_one_family_alone() -> None:
    web = {"protocol": 6}
    ports = {"destination-port": {"port": 443}}
    made = take(file([ace(ipv4=web, tcp=ports)]))
    assert [one.peers for one in made.section.egress.services.values()] == [("0.0.0.0/0",)]
    made = take(file([ace(ipv6=web, tcp=ports)], family=6))
    assert [one.peers for one in made.section.egress.services.values()] == [("::/0",)]
    made = take(file([ace(ipv4=web, tcp=ports, mud={"local-networks": [None]})]))
    assert [one.peers for one in made.section.egress.services.values()] == [("192.168.1.0/24",)]
    named = file([ace(ipv4=web | {"ietf-acldns:dst-dnsname": "a.example.com"}, tcp=ports)])
    assert FindingKind.WIDENED in kinds(take(named))
    assert FindingKind.WIDENED not in kinds(take(named, Role.GATEWAY, device=(DEVICE,)))  # it has IPv4 alone
    assert FindingKind.WIDENED in kinds(take(named, Role.GATEWAY, device=(DEVICE, MAC)))


def test_a_port_to_come_from_alone_never_lets_the_other_side_begin() -> None:
    raw = file([ace(ipv4={"protocol": 6}, tcp={"source-port": {"port": 443}})], side="to")
    made = take(raw)
    assert kinds(made) == {FindingKind.NARROWED}
    assert not made.section.services


def test_an_asked_for_widening_is_said() -> None:
    raw = file([ace(udp={"source-port": {"port": 68}, "destination-port": {"port": 67}})])
    made = take(raw, any_source_port=True)
    assert kinds(made) == {FindingKind.WIDENED}
    assert [one.ports for one in made.section.egress.services.values()] == [(67,)]


def test_every_protocol_means_those_that_can_be_named() -> None:
    made = take(file([ace(mud={"my-controller": [None]})]))
    found = {one.protocol: one.ports for one in made.section.egress.services.values()}
    assert found == {Protocol.TCP: ALL_PORTS, Protocol.UDP: ALL_PORTS, Protocol.PING: ()}
    assert FindingKind.NARROWED in kinds(made)


def test_a_file_out_of_date_and_a_device_out_of_support_are_said() -> None:
    mud = parse_mud(file([ace(tcp={})], **{"is-supported": False, "cache-validity": 24}))
    fetched = NOW - datetime.timedelta(hours=25)
    found = {one.kind for one in plan_import(mud, site(), now=NOW, retrieved=fetched).findings}
    assert {FindingKind.EXPIRED, FindingKind.NOT_SUPPORTED} <= found
    fresh = NOW - datetime.timedelta(hours=23)
    assert FindingKind.EXPIRED not in {one.kind for one in plan_import(mud, site(), now=NOW, retrieved=fresh).findings}


def test_the_gateways_own_services_are_no_routes() -> None:
    camera = next(path for path in FILES if path.stem == "camera")
    made = take(camera.read_bytes(), Role.GATEWAY, device=(DEVICE, MAC), gateway=("192.168.1.1", "fd00::1"))
    assert [(one.ports, one.peers) for one in made.section.services.values()] == [((53, 123), (MAC,))]
    sources = {one.sources for one in made.section.routes.values()}
    assert (MAC,) in sources
    assert all("192.168.1.1" not in one.destinations for one in made.section.routes.values())
    assert FindingKind.WIDENED in kinds(made)


@pytest.mark.parametrize(
    "changes",
    [
        {"device": ()},
        {"device": ("any",)},
        {"device": ("camera.example.com",)},
        {"device": ("999.1.1.1",)},
        {"gateway": ("gateway.example.com",)},
        {"my_controller": (MAC,)},
        {"name": "Camera"},
        {"name": "x" * 13},
        {"zone": "Not a zone"},
        {"name": 'a"]\n[firewall'},
    ],
)
def test_a_site_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    raw = file([ace(mud={"my-controller": [None]}, tcp={})])
    with pytest.raises(MudPeers):
        take(raw, Role.GATEWAY, **changes)


def test_nothing_that_a_file_says_gets_out_of_its_comment_or_its_quotes() -> None:
    evil = 'x" ]\\u000a[firewall.services.open]'
    raw = file([ace(evil, mud={"controller": evil}, tcp={})], **{"model-name": evil, "systeminfo": "\u202ex\u2066"})
    try:
        made = take(raw, classes={evil: ("192.0.2.1",)})
    except BadMud:  # not printable: refused even before
        return
    assert set(made.section.services) == set()
    assert made.text.isascii()
    assert parse_policy(policy(made.text)).firewall == made.section


def test_names_of_rules_are_unique_and_fit() -> None:
    entries = [
        ace(f"e{number}", ipv4={"destination-ipv4-network": f"192.0.2.{number}"}, tcp={"destination-port": ports})
        for number in range(30)
        for ports in [{"lower-port": 100, "upper-port": 101 + number}]
    ]
    made = take(file(entries, **{"model-name": "A very long model name, 2nd edition"}))
    assert len(made.section.egress.services) == 30
    assert isinstance(made.section, FirewallSection)


@pytest.mark.skipif(not CORPUS.is_dir(), reason="there is no corpus of MUD files (corpora/mud) on this machine")
def test_the_corpus_is_read() -> None:
    found = 0
    for path in CORPUS.rglob("*.json"):
        mud = parse_mud(path.read_bytes())
        made = plan_import(mud, site(partial=True, any_source_port=True), now=NOW)
        assert encode_ruleset(plan_ruleset(made.section)), path
        found += 1
    assert found
