"""Layer-2 rules: what they mean, what they refuse to mean, and what their text promises."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.link import (
    ACK,
    FIN,
    PSH,
    SYN,
    URG,
    Cast,
    Frame,
    LinkPlan,
    Reason,
    check_links,
    encode_links,
    evaluate_frame,
    link_interfaces,
    plan_links,
)
from tidegate.firewall.section import Link

NOBODY = "0.0.0.0"  # noqa: S104 - a source, not a place to listen
OWNER, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:02"


def plan(**values: Any) -> LinkPlan:
    return plan_links({"wan": (["eth0", "eth1"], msgspec.convert(values, Link))})[0]


def frame(**values: Any) -> Frame:
    return Frame(**{"ethertype": 0x0800, "source_mac": OWNER, **values})


@pytest.mark.parametrize(
    ("rules", "seen", "reason"),
    [
        ({}, frame(), None),
        ({}, frame(ethertype=0x88CC), Reason.ETHERTYPE),
        ({"ethertypes": ["ipv4", "lldp"]}, frame(ethertype=0x88CC), None),
        ({}, frame(tag=0x8100), Reason.ETHERTYPE),
        ({"ethertypes": ["ipv4", "vlan"]}, frame(tag=0x8100), None),
        ({"ethertypes": ["ipv4", "vlan"]}, frame(tag=0x8100, ethertype=0x86DD), Reason.ETHERTYPE),  # no hiding in a tag
        ({"ethertypes": ["ipv4", "llc"]}, frame(ethertype=4), None),
        ({"macs": [OWNER.upper()]}, frame(), None),
        ({"macs": [OWNER]}, frame(source_mac=OTHER), Reason.MAC),
        ({"macs": [OWNER]}, frame(source_mac=None), Reason.MAC),  # a device without Ethernet
        ({}, frame(source=ip_address("127.0.0.1")), Reason.BOGON),
        ({}, frame(source=ip_address(NOBODY)), Reason.BOGON),
        ({}, frame(source=ip_address(NOBODY), is_unconfigured=True), None),
        ({}, frame(source=ip_address("::ffff:10.0.0.1")), Reason.BOGON),
        ({}, frame(source=ip_address("::")), None),
        ({"bogons": False}, frame(source=ip_address("127.0.0.1")), None),
        ({}, frame(tcp_flags=SYN), None),
        ({}, frame(tcp_flags=FIN | ACK), None),
        ({}, frame(tcp_flags=SYN | FIN), Reason.FLAGS),
        ({}, frame(tcp_flags=0), Reason.FLAGS),
        ({}, frame(tcp_flags=FIN | PSH | URG), Reason.FLAGS),
        ({}, frame(cast=Cast.BROADCAST, over_limit=True), Reason.BROADCAST_STORM),
        ({"broadcast_per_s": None}, frame(cast=Cast.BROADCAST, over_limit=True), None),
        ({}, frame(cast=Cast.MULTICAST, over_limit=True), Reason.MULTICAST_STORM),
        ({}, frame(is_fragment=True, over_limit=True), Reason.FRAGMENT_STORM),
        ({}, frame(over_limit=True), None),
        ({}, frame(ethertype=0x0806, cast=Cast.BROADCAST, over_limit=True), Reason.ARP_STORM),
    ],
)
def test_what_a_frame_meets(rules: dict[str, Any], seen: Frame, reason: Reason | None) -> None:
    decision = evaluate_frame(plan(**rules), seen)
    assert decision.reason is reason
    assert decision.accept is (reason is None)
    assert evaluate_frame(plan(**rules, mode="observe"), seen).accept


@pytest.mark.parametrize(
    ("claimed", "inside", "outside", "accept"),
    [
        ("10.0.0.1", OWNER, OWNER, True),
        ("10.0.0.1", OTHER, OTHER, False),
        ("10.0.0.1", OWNER, OTHER, False),  # the packet says one thing, the frame another
        ("10.0.0.1", OTHER, OWNER, False),
        ("10.0.0.2", OTHER, OTHER, True),  # bound to nobody
    ],
)
def test_a_bound_address_is_its_owners(claimed: str, inside: str, outside: str, accept: bool) -> None:
    link = plan(arp_bindings={"10.0.0.1": OWNER})
    seen = frame(ethertype=0x0806, source_mac=outside, arp_sender=ip_address(claimed), arp_sender_mac=inside)
    assert evaluate_frame(link, seen).accept is accept


@pytest.mark.parametrize(
    "values",
    [{"ethertypes": ["ipv5"]}, {"ethertypes": [12]}, {"ethertypes": [70000]}, {"arp_bindings": {"10.0.0.300": OWNER}}],
)
def test_what_no_frame_can_match_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(TidegateError) as caught:
        plan(**values)
    assert caught.value.code == "firewall.policy.link"


def test_a_misspelt_ethertype_is_told_the_nearest() -> None:
    with pytest.raises(TidegateError, match="'ipv4'"):
        plan(ethertypes=["ip4"])


def test_limits_are_positive_and_every_refusal_is_counted() -> None:
    text = encode_links([plan(arp_bindings={"10.0.0.1": OWNER}, macs=[OWNER])])
    for line in text.splitlines():
        if "limit rate" in line and " log " not in line:
            assert line.endswith("return"), line
        if " drop" in line:
            assert "counter name link_wan_" in line, line
        if " log " in line:
            assert line.strip().startswith("limit rate "), line
    declared = set(re.findall(r"\tcounter (\S+) {", text))
    assert declared == {f"link_wan_{reason}" for reason in Reason}


def test_zones_with_the_same_bindings_name_no_set_that_is_not_there() -> None:
    """Equal sets are declared once: what refers to them must say the name that they were given."""
    link = Link(arp_bindings={"10.0.0.1": OWNER}, macs=(OWNER,))
    text = encode_links(plan_links({"lan": (["eth0"], link), "wan": (["eth1"], link)}))
    declared = set(re.findall(r"\tset (\S+) {", text))
    assert set(re.findall(r"@(\S+)", text)) == declared


def test_a_zone_that_observes_drops_nothing() -> None:
    assert " drop" not in encode_links([plan(mode="observe", macs=[OWNER])])


def test_a_policy_that_observes_drops_nothing_here_either() -> None:
    zones = {"wan": (["eth0"], Link())}
    assert " drop" not in encode_links(plan_links(zones, observe=True))
    assert evaluate_frame(plan_links(zones, observe=True)[0], frame(ethertype=0x88CC)).accept


def test_loopback_is_no_wire() -> None:
    with pytest.raises(TidegateError) as caught:
        plan_links({"inside": (["lo"], Link())})
    assert caught.value.code == "firewall.policy.link"


def test_zones_with_names_within_names_have_objects_of_their_own() -> None:
    links = plan_links({name: ([f"e{name}"], Link()) for name in ("a", "a-bogon", "a-odd", "a-cast", "a-arp-limit")})
    names = re.findall(r"\t(?:chain|set|counter) (\S+) {", encode_links(links))
    assert len(names) == len(set(names))


def test_absent_interfaces_get_no_chain() -> None:
    links = [plan()]
    assert link_interfaces(links) == ("eth0", "eth1")
    assert encode_links(links).count("hook ingress") == 2
    some = encode_links(links, present={"eth1"})
    assert some.count("hook ingress") == 1
    assert 'device "eth1"' in some
    assert encode_links([]) == ""


@pytest.mark.parametrize(
    ("values", "interfaces", "v4", "v6", "found"),
    [
        ({}, (), True, True, 0),
        ({"ethertypes": ["ipv6"]}, (), True, False, 1),
        ({"ethertypes": ["ipv4"]}, (), True, False, 1),  # nobody finds a neighbour without ARP
        ({"ethertypes": ["ipv6"]}, (), False, True, 0),
        ({"ethertypes": ["ipv6"]}, ("eth9",), True, False, 0),
        ({"ethertypes": ["ipv6"]}, ("eth1",), True, False, 1),
        ({"ethertypes": ["ipv6"], "mode": "observe"}, (), True, False, 0),
    ],
)
def test_rules_that_no_manager_can_pass_are_found(
    values: dict[str, Any], interfaces: tuple[str, ...], v4: bool, v6: bool, found: int
) -> None:
    assert len(check_links([plan(**values)], management_interfaces=interfaces, needs_v4=v4, needs_v6=v6)) == found
