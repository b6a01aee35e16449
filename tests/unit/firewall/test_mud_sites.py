"""What a network's owner says beside a MUD file: lists that must not be mixed up, exclusions, zones, bounds."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest
from tests.unit.firewall.mudfiles import DEVICE, MAC, NOW, ace, file, policy, site

from tidegate.firewall.errors import BadMud, MudPeers
from tidegate.firewall.model import PeerGroup, plan_ruleset
from tidegate.firewall.mud import parse_mud
from tidegate.firewall.mud_import import Imported, Role, plan_import
from tidegate.firewall.peers import parse_peers
from tidegate.policy.document import parse_policy

WEB = {"destination-port": {"operator": "eq", "port": 443}}
ZONES = '[firewall.zones.lan]\ninterfaces = ["lan0"]\n[firewall.zones.wan]\ninterfaces = ["wan0"]\n'


def take(aces: list[dict[str, Any]], role: Role = Role.DEVICE, side: str = "from", **changes: Any) -> Imported:
    return plan_import(parse_mud(file(aces, side=side)), site(role, **changes), now=NOW)


def callees(made: Imported, protocol: str, port: int) -> PeerGroup:
    """Return everybody whom the device may call so."""
    rules = plan_ruleset(made.section).egress
    found = [
        one.peers
        for one in rules
        if one.protocol == protocol and any(span.first <= port <= span.last for span in one.spans)
    ]
    return PeerGroup(v4=tuple(sorted(network for one in found for network in one.v4)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://a.example/x", "https://b.example/x"),
        ("urn:ietf:params:mud:dns", "https://evil.example/dns"),
        (f"https://a.example/{'long' * 9}-1", f"https://a.example/{'long' * 9}-2"),
        ("https://a.example/\u00fc", "https://a.example/\u00e4"),
    ],
)
def test_two_controllers_that_end_in_the_same_word_are_two(one: str, other: str) -> None:
    """Or the peers of the one would be let in where the other is meant."""
    aces = [ace("a", mud={"controller": one}, tcp=WEB), ace("b", mud={"controller": other}, udp=WEB)]
    made = take(aces, classes={one: ("10.0.0.1",), other: ("10.0.0.2",)})
    assert len(made.section.peers) == 2
    assert callees(made, "tcp", 443) == parse_peers(("10.0.0.1",), "test")
    assert callees(made, "udp", 443) == parse_peers(("10.0.0.2",), "test")
    assert parse_policy(policy(made.text)).firewall == made.section


def test_an_exclusion_is_the_business_of_its_own_list() -> None:
    """Who is taken out of one class may still be named by another entry, and by no merging comes back."""
    others = {"destination-ipv4-network": "10.0.0.7/32"}
    aces = [ace("a", mud={"my-controller": [None]}, tcp=WEB), ace("b", ipv4=others, tcp=WEB)]
    made = take(aces, my_controller=("10.0.0.0/24", "!10.0.0.7", "!10.0.0.9"))
    rules = plan_ruleset(made.section).egress
    assert len(rules) == 2
    whole = parse_peers(("10.0.0.0/24", "!10.0.0.9"), "test")
    assert parse_peers([str(one) for one in callees(made, "tcp", 443).v4], "test") == whole


@pytest.mark.parametrize("given", [("any", "!10.0.0.7"), ("10.0.0.0/8", "!10.0.0.7", "fd00::/64")])
def test_an_exclusion_stays_whatever_family_the_entry_is_of(given: tuple[str, ...]) -> None:
    made = take([ace("a", mud={"my-controller": [None]}, tcp=WEB)], my_controller=given)
    group = callees(made, "tcp", 443)
    assert group.has(ip_address("10.0.0.8"))
    assert not group.has(ip_address("10.0.0.7"))


def test_more_ports_than_a_rule_has_become_more_rules() -> None:
    aces = [ace(f"e{number}", udp={"destination-port": {"port": 2 * number + 1}}) for number in range(600)]
    made = take(aces)
    ports = [port for rule in made.section.egress.services.values() for port in rule.ports]
    assert sorted(ports, key=str) == sorted(range(1, 1200, 2), key=str)
    assert parse_policy(policy(made.text)).firewall == made.section


def test_zones_stand_on_both_sides_of_a_route() -> None:
    aces = [ace("a", mud={"my-controller": [None]}, tcp=WEB)]
    zones = {"zone": "lan", "far_zone": "wan"}
    (out,) = take(aces, Role.GATEWAY, **zones).section.routes.values()
    (into,) = take(aces, Role.GATEWAY, side="to", **zones).section.routes.values()
    assert (out.from_zones, out.to_zones, out.sources) == (("lan",), ("wan",), (DEVICE,))
    assert (into.from_zones, into.to_zones, into.destinations) == (("wan",), ("lan",), (DEVICE,))


def test_the_gateways_own_service_is_open_in_the_devices_zone_alone() -> None:
    aces = [ace("a", mud={"controller": "urn:ietf:params:mud:dns"}, udp={"destination-port": {"port": 53}})]
    made = take(aces, Role.GATEWAY, zone="lan", far_zone="wan", gateway=("192.168.1.1",), device=(DEVICE, MAC))
    (rule,) = made.section.services.values()
    assert (rule.zones, rule.peers) == (("lan",), (MAC,))
    read = parse_policy(f"[policy]\nversion = 1\n{ZONES}{made.text}").firewall
    assert read is not None
    (planned,) = plan_ruleset(read).services
    assert planned.interfaces == ("lan0",)


@pytest.mark.parametrize("name", ["LAN", "", "\U0001f600", 'a"]', "x" * 33, "1a"])
@pytest.mark.parametrize("key", ["zone", "far_zone"])
def test_a_name_that_is_no_zones_is_refused(key: str, name: str) -> None:
    with pytest.raises(MudPeers):
        take([ace(tcp=WEB)], Role.GATEWAY, **{key: name})


def test_a_version_is_a_number_and_a_name_is_ascii() -> None:
    with pytest.raises(BadMud):
        parse_mud(file([ace(tcp=WEB)], **{"mud-version": True}))
    kelvin = "\u212aelvin.example"  # lower case of it is plain k
    (one,) = parse_mud(file([ace(ipv4={"ietf-acldns:dst-dnsname": kelvin}, tcp=WEB)])).aces
    assert one.unsupported
