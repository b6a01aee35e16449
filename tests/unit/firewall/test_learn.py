"""Learning: every answered flow is allowed, no rule is idle, nothing is allowed that was not seen."""

from __future__ import annotations

import json
import random
import struct
import time
import tomllib
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.firewall import learn
from tidegate.firewall.evaluate import evaluate_packet
from tidegate.firewall.eveflows import MAX_LINE_BYTES, find_direction, parse_flow, parse_names
from tidegate.firewall.learn import MAX_LISTED, Flow, Learner, Proposal, Session, Why, Wishes
from tidegate.firewall.model import Direction, Icmp, Packet, Ruleset, Verdict, plan_ruleset
from tidegate.firewall.observe import parse_notice
from tidegate.firewall.proposal import encode_proposal, plan_section
from tidegate.firewall.section import FirewallSection, Protocol

IN, OUT, THROUGH = Direction.IN, Direction.OUT, Direction.THROUGH
TCP, UDP, PING = Protocol.TCP, Protocol.UDP, Protocol.PING
DEVICE, DEVICE6 = "10.0.0.1", "fd00::1"
NO_ADDRESS = str(ip_address(0))  # of a client that asks for one


def flow(direction: Direction, far: str, port: int = 0, near: str = "", **more: Any) -> Flow:
    protocol = more.pop("protocol", TCP)
    own = near or (DEVICE6 if ":" in far else DEVICE)
    source, destination = (own, far) if direction is OUT else (far, own)
    values: dict[str, Any] = {"source_port": 40_000, "first_s": 1000.0, "last_s": 1060.0, "is_answered": True}
    return Flow(
        direction=direction,
        protocol=protocol,
        source=ip_address(source),
        destination=ip_address(destination),
        port=port,
        **(values | more),
    )


def propose(*flows: Flow, wishes: Wishes | None = None) -> Proposal:
    learner = Learner()
    for one in flows:
        learner.add(one)
    return learner.propose(wishes)


def rules(proposal: Proposal) -> list[tuple[str, str, tuple[int, ...], tuple[str, ...]]]:
    return [(str(one.direction), one.name, one.ports, one.far) for one in proposal.rules]


def reasons(proposal: Proposal) -> list[tuple[Why, str]]:
    return [(one.why, one.label) for one in proposal.aside]


def test_one_service_has_all_its_clients() -> None:
    found = propose(*(flow(IN, f"10.0.0.{n}", 502) for n in (9, 8, 12, 9)), flow(IN, "fd00::8", 502))
    assert rules(found) == [("in", "modbus", (502,), ("10.0.0.8/31", "10.0.0.12", "fd00::8"))]
    [rule] = found.rules
    assert (rule.seen, rule.evidence.connections, rule.is_wider) == (4, 5, False)


def test_ports_with_the_same_peers_are_one_rule() -> None:
    found = propose(
        *(flow(OUT, "198.51.100.7", port) for port in (443, 80, 8443)), flow(OUT, "198.51.100.8", 123, protocol=UDP)
    )
    assert rules(found) == [
        ("out", "http", (80, 443, 8443), ("198.51.100.7",)),
        ("out", "ntp", (123,), ("198.51.100.8",)),
    ]


def test_routes_allow_only_pairs_that_were_seen() -> None:
    pairs = (("10.0.0.2", "192.0.2.1"), ("10.0.0.2", "192.0.2.5"), ("10.0.0.3", "192.0.2.1"), ("10.0.0.4", "192.0.2.1"))
    found = propose(*(flow(THROUGH, far, 443, near) for far, near in pairs))
    assert [(one.far, one.near) for one in found.rules] == [
        (("10.0.0.2",), ("192.0.2.1", "192.0.2.5")),
        (("10.0.0.3", "10.0.0.4"), ("192.0.2.1",)),
    ]


def test_prefixes_hold_what_was_seen_unless_more_is_asked_for() -> None:
    flows = [flow(IN, f"10.0.0.{2 * n}", 502) for n in range(1, MAX_LISTED + 2)]
    exact = propose(*flows).rules[0]
    assert (len(exact.far), exact.is_wider) == (MAX_LISTED + 1, False)
    wide = propose(*flows, wishes=Wishes(widen_v4=24)).rules[0]
    assert (wide.far, wide.is_wider) == (("10.0.0.0/24",), True)
    few = propose(*flows[:MAX_LISTED], wishes=Wishes(widen_v4=24)).rules[0]
    assert not few.is_wider


@pytest.mark.parametrize(
    ("flows", "why"),
    [
        ([flow(IN, "192.0.2.9", 23, is_answered=False)], Why.UNANSWERED),
        ([flow(OUT, "192.0.2.9", 443, is_answered=False)], Why.UNANSWERED),
        ([flow(IN, "192.0.2.9", protocol=PING, is_answered=False)], Why.UNANSWERED),
        ([flow(IN, "192.0.2.9", protocol=None)], Why.PROTOCOL),
        ([flow(IN, "192.0.2.9", 8080, is_translated=True)], Why.TRANSLATED),
        ([flow(IN, "192.0.2.9", 1900, "239.255.255.250", protocol=UDP, is_answered=False)], Why.MULTICAST),
        (
            [
                flow(OUT, "192.0.2.9", 53, protocol=UDP, source_port=40_001),
                flow(IN, "192.0.2.9", 40_001, protocol=UDP, source_port=53, is_answered=False),
            ],
            Why.LATE_ANSWER,
        ),
    ],
)
def test_what_is_not_proposed_is_listed(flows: list[Flow], why: Why) -> None:
    found = propose(*flows)
    assert [one.why for one in found.aside] == [why]
    assert len(found.rules) == len(flows) - 1


def test_groups_that_the_device_talks_to_are_proposed() -> None:
    mdns = [flow(OUT, "224.0.0.251", 5353, protocol=UDP, is_answered=False)]
    mdns.append(flow(IN, "10.0.0.7", 5353, "224.0.0.251", protocol=UDP, is_answered=False))
    assert rules(propose(*mdns)) == [
        ("in", "mdns", (5353,), ("10.0.0.7",)),
        ("out", "mdns", (5353,), ("224.0.0.251",)),
    ]
    membership = flow(OUT, "224.0.0.22", protocol=Protocol.IGMP, is_answered=False)
    assert rules(propose(membership)) == [("out", "igmp", (), ("224.0.0.22",))]


def test_a_dhcp_client_is_proposed_with_its_servers_answer() -> None:
    asks = flow(OUT, "255.255.255.255", 67, NO_ADDRESS, protocol=UDP, source_port=68, is_answered=False)
    answer = flow(IN, "10.0.0.254", 68, protocol=UDP, source_port=67, is_answered=False)
    assert rules(propose(asks, answer)) == [
        ("in", "dhcp-client", (68,), ("10.0.0.254",)),
        ("out", "dhcp-server", (67,), ("255.255.255.255",)),
    ]
    assert reasons(propose(answer)) == [(Why.UNANSWERED, "in udp/68 from 10.0.0.254")]


def test_a_dhcp_client_is_no_server_because_it_hears_others_ask() -> None:
    asks = flow(OUT, "10.0.0.254", 67, protocol=UDP, source_port=68)
    other = flow(IN, NO_ADDRESS, 67, "255.255.255.255", protocol=UDP, source_port=68, is_answered=False)
    assert rules(propose(asks, other)) == [("out", "dhcp-server", (67,), ("10.0.0.254",))]
    offer = flow(OUT, "255.255.255.255", 68, protocol=UDP, source_port=67, is_answered=False)
    assert ("in", "dhcp-server", (67,), (NO_ADDRESS,)) in rules(propose(other, offer))


def test_broadcasts_of_our_own_networks_are_groups() -> None:
    learner = Learner([ip_address("10.0.0.255")])
    learner.add(flow(IN, "10.0.0.7", 137, "10.0.0.255", protocol=UDP, is_answered=False))
    assert [one.why for one in learner.propose().aside] == [Why.MULTICAST]


def test_of_a_flow_that_was_running_the_lower_port_is_the_servers() -> None:
    for client_port in (50_000, 4446):
        late = flow(OUT, "10.0.0.9", client_port, source_port=502, is_late=True)
        found = propose(late)
        assert rules(found) == [("in", "modbus", (502,), ("10.0.0.9",))]
        assert "is a guess" in encode_proposal(found, description="")
    assert "is a guess" not in encode_proposal(propose(late, flow(IN, "10.0.0.9", 502)), description="")
    seen_backwards = flow(OUT, "10.0.0.9", 50_000, source_port=502, is_late=True)
    assert rules(propose(seen_backwards)) == [("in", "modbus", (502,), ("10.0.0.9",))]
    begun = replace(seen_backwards, is_late=False)
    assert rules(propose(begun)) == [("out", "tcp-50000", (50_000,), ("10.0.0.9",))]


def test_pings_need_no_rule_where_they_come_in() -> None:
    assert propose(flow(IN, "10.0.0.9", protocol=PING)).answers_ping
    assert rules(propose(flow(IN, "10.0.0.9", protocol=PING))) == []
    assert rules(propose(flow(OUT, "10.0.0.9", protocol=PING))) == [("out", "ping", (), ("10.0.0.9",))]


def test_names_stand_for_the_addresses_that_answers_gave() -> None:
    names = {ip_address("198.51.100.7"): "up.example.org"}
    flows = (flow(OUT, "198.51.100.7", 443), flow(OUT, "198.51.100.9", 443), flow(IN, "198.51.100.7", 443))
    found = propose(*flows, wishes=Wishes(names=names))
    assert rules(found) == [
        ("in", "https", (443,), ("198.51.100.7",)),
        ("out", "https", (443,), ("198.51.100.9", "up.example.org")),
    ]


def test_memory_is_bounded_and_what_was_forgotten_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "MAX_KEYS", 3)
    found = propose(*(flow(IN, f"10.0.0.{n}", 80) for n in range(1, 6)))
    assert (found.rules[0].seen, found.forgotten) == (3, 2)
    assert "2 flows were too many" in encode_proposal(found, description="")


# -- as a policy --


def test_the_text_says_what_the_section_means() -> None:
    found = propose(
        flow(IN, "192.0.2.9", 22),
        flow(IN, "10.0.0.9", 502, size_bytes=1200),
        flow(OUT, "198.51.100.7", 123, protocol=UDP),
        flow(THROUGH, "10.0.0.9", 443, "198.51.100.7"),
        flow(IN, "192.0.2.66", 23, is_answered=False),
        wishes=Wishes(interface="eth0", session=Session(client=ip_address("192.0.2.8"), port=22)),
    )
    text = encode_proposal(found, description='from "here"\n')
    document = tomllib.loads(text)
    assert msgspec.convert(document["firewall"], FirewallSection) == plan_section(found)
    section = plan_section(found)
    assert section.management is not None
    assert (section.management.peers, section.management.service) == (("192.0.2.8",), "ssh")
    assert section.services["ssh"].peers == ("192.0.2.9",)
    assert section.services["modbus"].interfaces == ("eth0",)
    for words in (
        "seen once",
        "1,200 bytes",
        "1970-01-01T00:16:40Z",
        "10.0.0.9 -> 10.0.0.1 tcp/502",
        "in tcp/23 from 192.0.2.66",
    ):
        assert words in text


@pytest.mark.parametrize("port", [22, 502])
def test_without_a_session_nobody_is_taken_for_the_manager(port: int) -> None:
    """Whoever logged in meanwhile would otherwise never be limited, never be banned, and survive lockdown."""
    text = encode_proposal(propose(flow(IN, "10.0.0.9", port)), description="")
    assert "#[firewall.management]" in text
    assert "management" not in tomllib.loads(text)["firewall"]


def test_a_session_on_another_port_names_its_service() -> None:
    session = Session(client=ip_address("10.0.0.9"), port=2222)
    seen = [flow(IN, "10.0.0.9", port) for port in (2222, 502)]
    section = plan_section(propose(*seen, wishes=Wishes(session=session)))
    assert section.management is not None
    assert section.services[section.management.service].ports == (2222,)


# -- bounds --


def test_a_scan_hides_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "MAX_KEYS", 10)
    scan = [flow(IN, "192.0.2.66", port, is_answered=False) for port in range(1000, 1020)]
    late = [flow(IN, "10.0.0.9", port) for port in (502, 503)]
    found = propose(*scan, *late)
    assert [one.ports for one in found.rules] == [(502, 503)]
    assert (len(found.aside), found.forgotten) == (8, 12)


def test_a_scan_is_judged_in_linear_time() -> None:
    """Quadratic, it was ten seconds for 8,000 ports, and minutes for as many as are remembered."""
    scan = [flow(IN, "10.0.0.9", port, protocol=UDP, is_answered=False) for port in range(1, 16_000)]
    began_s = time.perf_counter()
    assert propose(*scan).rules == ()
    assert time.perf_counter() - began_s < 5.0  # 0.4 s on the bench machine


def test_more_ports_than_a_rule_holds_are_more_rules() -> None:
    found = propose(*(flow(IN, "10.0.0.9", port) for port in range(1000, 1600, 2)))
    assert [len(one.ports) for one in found.rules] == [256, 44]
    assert "services" in tomllib.loads(encode_proposal(found, description=""))["firewall"]


def test_more_than_a_policy_holds_is_left_out_the_least_used_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "MAX_SERVICES", 1)
    monkeypatch.setattr(learn, "MAX_PEERS", 2)
    once, twice = flow(IN, "10.0.0.9", 501), flow(IN, "10.0.0.8", 502)
    crowd = [flow(OUT, f"10.0.0.{n}", 80) for n in (3, 5, 7)]
    found = propose(once, twice, twice, *crowd)
    assert [one.ports for one in found.rules] == [(502,)]
    assert [one.why for one in found.aside] == [Why.TOO_MANY] * 2


# -- the property --

HOSTS = [f"10.0.{n % 3}.{n}" for n in range(2, 60)] + [f"fd00::{n:x}" for n in range(2, 30)]


def random_flow(chance: random.Random) -> Flow:
    direction = chance.choice([IN, IN, OUT, OUT, THROUGH])
    protocol = chance.choice([TCP, TCP, UDP, PING, Protocol.GRE])
    far = chance.choice(HOSTS)
    near = chance.choice([host for host in HOSTS if (":" in host) == (":" in far)]) if direction is THROUGH else ""
    port = chance.choice([22, 53, 80, 443, 502, 5353, 40_000]) if protocol.has_ports else 0
    answered = chance.random() < 0.8
    return flow(direction, far, port, near, protocol=protocol, is_answered=answered, is_late=chance.random() < 0.1)


def packet_of(one: Flow) -> Packet:
    return Packet(
        direction=one.direction,
        interface="eth0",
        out_interface="eth1" if one.direction is THROUGH else None,
        source=one.source,
        destination=one.destination,
        protocol=one.protocol,
        port=one.port,
        icmp=Icmp.ECHO_REQUEST if one.protocol is PING else None,
    )


def enforced(section: FirewallSection) -> Ruleset:
    return plan_ruleset(msgspec.structs.replace(section, mode="enforce"))


def without(section: FirewallSection, direction: Direction, name: str) -> FirewallSection:
    def rest(rules: dict[str, Any]) -> dict[str, Any]:
        return {key: rule for key, rule in rules.items() if key != name}

    if direction is IN:
        return msgspec.structs.replace(section, services=rest(section.services))
    if direction is OUT:
        egress = msgspec.structs.replace(section.egress, services=rest(section.egress.services))
        return msgspec.structs.replace(section, egress=egress)
    return msgspec.structs.replace(section, routes=rest(section.routes))


@pytest.mark.parametrize("seed", range(20))
def test_the_proposal_allows_what_was_seen_and_none_of_its_rules_is_idle(seed: int) -> None:
    chance = random.Random(seed)
    learner = Learner()
    seen = [random_flow(chance) for _ in range(chance.randint(5, 150))]
    for one in seen:
        learner.add(one)
    proposal = learner.propose()
    section, wanted = plan_section(proposal), [packet_of(one) for one in learner.wanted()]
    whole = enforced(section)
    assert all(evaluate_packet(whole, packet) is Verdict.ACCEPT for packet in wanted)
    for rule in proposal.rules:
        if rule is proposal.manager:
            continue  # the management path names it
        less = enforced(without(section, rule.direction, rule.name))
        assert any(evaluate_packet(less, packet) is not Verdict.ACCEPT for packet in wanted), rule.name
    allowed = {packet for packet in wanted if packet.protocol is not PING or packet.direction is not IN}
    for _ in range(300):
        packet = packet_of(random_flow(chance))
        if packet not in allowed and (packet.protocol is not PING or packet.direction is not IN):
            assert evaluate_packet(whole, packet) is not Verdict.ACCEPT


# -- EVE --

OWN = {ip_address(DEVICE)}
EVENT: dict[str, Any] = {
    "timestamp": "2026-11-23T08:28:07.123456+0000",
    "event_type": "flow",
    "src_ip": "10.0.0.9",
    "src_port": 40_000,
    "dest_ip": DEVICE,
    "dest_port": 502,
    "proto": "TCP",
    "flow": {
        "pkts_toserver": 5,
        "pkts_toclient": 4,
        "bytes_toserver": 500,
        "bytes_toclient": 400,
        "start": "2026-11-23T08:28:00.000000+0000",
        "end": "2026-11-23T08:28:07.000000+0000",
        "state": "closed",
    },
    "tcp": {"tcp_flags": "1b", "tcp_flags_ts": "1b", "tcp_flags_tc": "1b"},
}


def eve(**changes: Any) -> Flow | None:
    return parse_flow(json.dumps(EVENT | changes), OWN)


def test_a_flow_event_is_a_flow() -> None:
    found = eve()
    assert found is not None
    assert (found.direction, found.protocol, found.port, found.is_answered, found.is_late) == (
        IN,
        TCP,
        502,
        True,
        False,
    )
    assert (found.size_bytes, found.last_s - found.first_s) == (900, 7.0)


@pytest.mark.parametrize(
    ("changes", "answered", "late"),
    [
        ({"tcp": {"tcp_flags_ts": "02", "tcp_flags_tc": "14"}}, False, False),  # refused by a reset
        (
            {"flow": EVENT["flow"] | {"pkts_toclient": 0}, "tcp": {"tcp_flags_ts": "02", "tcp_flags_tc": "00"}},
            False,
            False,
        ),
        ({"tcp": {"tcp_flags_ts": "18", "tcp_flags_tc": "18"}}, True, True),  # it was running before
        ({"proto": "UDP", "tcp": None}, True, False),
        ({"proto": "UDP", "tcp": None, "flow": EVENT["flow"] | {"pkts_toclient": 0}}, False, False),
    ],
)
def test_who_was_answered(changes: dict[str, Any], answered: bool, late: bool) -> None:
    found = eve(**changes)
    assert found is not None
    assert (found.is_answered, found.is_late) == (answered, late)


@pytest.mark.parametrize(
    ("changes", "protocol"),
    [
        ({"proto": "ICMP", "icmp_type": 8, "tcp": None}, PING),
        ({"proto": "ICMP", "icmp_type": 13, "tcp": None}, None),
        ({"proto": "IPv6-ICMP", "icmp_type": 128, "tcp": None}, PING),
        ({"proto": "047", "tcp": None}, Protocol.GRE),
        ({"proto": "099", "tcp": None}, None),
    ],
)
def test_protocols_of_events(changes: dict[str, Any], protocol: Protocol | None) -> None:
    found = eve(**changes)
    assert found is not None
    assert found.protocol is protocol


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        '{"event_type": "alert"}',
        '{"event_type": "flow"}',
        '{"event_type": "flow", "flow": 1}',
        "[" * 50_000,
        json.dumps(EVENT | {"src_ip": "x"}),
        json.dumps(EVENT | {"dest_port": "x"}),
        json.dumps(EVENT | {"tcp": {"tcp_flags_ts": "zz", "tcp_flags_tc": "00"}}),
        json.dumps(EVENT | {"flow": EVENT["flow"] | {"start": "yesterday"}}),
        json.dumps(EVENT | {"src_ip": DEVICE}),  # to itself
        json.dumps(EVENT) + " " * MAX_LINE_BYTES,
        json.dumps(EVENT | {"dest_port": float("inf")}),
        json.dumps(EVENT | {"dest_port": 65_536}),
        json.dumps(EVENT | {"src_port": -1}),
        json.dumps(EVENT | {"src_ip": 167_772_169}),
        json.dumps(EVENT | {"src_ip": "fe80::9%eth0"}),
        json.dumps(EVENT | {"src_ip": 'fe80::9%\n[firewall.management]\npeers = ["any"]\n#'}),
        json.dumps(EVENT | {"flow": EVENT["flow"] | {"bytes_toserver": float("inf")}}),
        json.dumps(EVENT | {"flow": EVENT["flow"] | {"start": "0001-01-01T00:00:00+23:59"}}),
        json.dumps({"event_type": "dns", "dns": {"rrname": "a.example", "answers": [{"rrtype": "A", "rdata": 5}]}}),
    ],
)
def test_other_lines_are_none(line: str) -> None:
    assert parse_flow(line, OWN) is None
    assert parse_names(line) == {}


def test_names_come_from_answers() -> None:
    answers = [{"rrname": "cdn.example.net", "rrtype": "A", "rdata": "198.51.100.7"}, {"rrtype": "CNAME", "rdata": "x"}]
    line = json.dumps({"event_type": "dns", "dns": {"rrname": "Up.Example.org", "answers": answers}})
    assert parse_names(line) == {ip_address("198.51.100.7"): "up.example.org"}
    evil = json.dumps({"event_type": "dns", "dns": {"rrname": 'x"\n[evil]', "answers": answers}})
    assert parse_names(evil) == {}


@pytest.mark.parametrize(
    ("source", "destination", "direction"),
    [
        ("10.0.0.9", DEVICE, IN),
        (DEVICE, "10.0.0.9", OUT),
        (NO_ADDRESS, "255.255.255.255", IN),  # this device has an address, so another one asks
        ("10.0.0.9", "224.0.0.251", IN),
        ("10.0.0.9", "10.0.0.255", IN),
        ("10.0.0.9", "192.0.2.1", THROUGH),
    ],
)
def test_directions(source: str, destination: str, direction: Direction) -> None:
    a, b = ip_address(source), ip_address(destination)
    assert find_direction(a, b, OWN, {ip_address("10.0.0.255")}) is direction


def test_a_device_without_an_address_asks_for_one() -> None:
    nobody, everybody = ip_address(NO_ADDRESS), ip_address("255.255.255.255")
    assert find_direction(nobody, everybody, {ip_address("fe80::1"), ip_address("169.254.3.4")}) is OUT


# -- notices of the kernel --


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def tuple_of(source: str, destination: str, ports: tuple[int, int]) -> bytes:
    ends = [ip_address(source).packed, ip_address(destination).packed]
    addresses = b"".join(attribute(kind, raw) for kind, raw in zip((1, 2), ends, strict=True))
    proto = (
        attribute(1, b"\x06") + attribute(2, struct.pack(">H", ports[0])) + attribute(3, struct.pack(">H", ports[1]))
    )
    return attribute(1, addresses) + attribute(2, proto)


NOTICE = (
    attribute(1, tuple_of("10.0.0.9", DEVICE, (40_000, 502)))
    + attribute(2, tuple_of(DEVICE, "10.0.0.9", (502, 40_000)))
    + attribute(3, struct.pack(">I", 0x0E))
    + attribute(4, attribute(1, attribute(1, b"\x03")))
    + attribute(12, struct.pack(">I", 77))
    + attribute(9, attribute(1, struct.pack(">Q", 5)) + attribute(2, struct.pack(">Q", 500)))
)


def test_a_notice_is_read() -> None:
    found = parse_notice(2, memoryview(NOTICE))
    assert found is not None
    assert (found.key, found.is_end, found.number, found.port, found.source_port) == (77, True, 6, 502, 40_000)
    assert (str(found.source), str(found.destination), str(found.reply_source)) == ("10.0.0.9", DEVICE, DEVICE)
    assert (found.tcp_state, found.size_bytes) == (3, 500)


def test_a_cut_or_changed_notice_is_no_exception() -> None:
    chance = random.Random(7)
    for length in range(len(NOTICE)):
        parse_notice(0, memoryview(NOTICE[:length]))
    for _ in range(3000):
        spoilt = bytearray(NOTICE)
        for _ in range(chance.randint(1, 4)):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        parse_notice(0, memoryview(spoilt))
