"""The words of ``tidegate firewall why``: listings, paths, comparisons and questions, without a kernel."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.cli.firewall_why import parse_question
from tidegate.firewall.evaluate import Decision
from tidegate.firewall.model import Direction, Verdict, plan_ruleset
from tidegate.firewall.probe_packet import (
    WHY_TABLE,
    Probe,
    encode_frame,
    encode_packet,
    encode_probe_table,
    encode_wait_table,
    is_like,
    is_probe,
    plan_layout,
    plan_unrouted,
    read_constant,
)
from tidegate.firewall.section import FirewallSection, Protocol
from tidegate.firewall.trace import Kind, Outcome, TraceEvent
from tidegate.firewall.why import (
    Answer,
    KernelDecision,
    compare,
    describe_path,
    encode_document,
    encode_lines,
    judge_path,
    parse_rules,
    plan_packet,
    plan_path,
)

LISTING = """table inet tidegate { # handle 4
	counter denied { # handle 1
		packets 1 bytes 40
	}

	set peers4 { # handle 3
		type ipv4_addr
		flags interval
	}

	map services { # handle 5
		type inet_proto . inet_service : verdict
	}

	chain input { # handle 9
		type filter hook input priority filter; policy drop;
		iifname "lo" accept # handle 20
		tcp dport { 1, 2,
			3 } counter accept comment "with # handle 77" # handle 21
		meta l4proto { tcp, udp } meta l4proto . th dport vmap @services # handle 22
		counter name "denied" drop comment "default" # handle 24
	}

	chain svc_web { # handle 10
		counter name "svc_web" accept # handle 30
	}
}
"""


def probe(**changes: Any) -> Probe:
    values: dict[str, Any] = {
        "direction": Direction.IN,
        "interface": "eth0",
        "source": ip_address("10.0.0.9"),
        "destination": ip_address("10.0.0.1"),
        "protocol": Protocol.TCP,
        "port": 502,
        "source_port": 50000,
        "nonce": b"\x11\x22\x33\x44\x55\x66\x77\x88",
    }
    return Probe(**values | changes)


def event(
    chain: str, outcome: Outcome, *, table: str = "tidegate", handle: int | None = None, **more: Any
) -> TraceEvent:
    values: dict[str, Any] = {"packet": 1, "family": "inet", "kind": Kind.RULE if handle else Kind.POLICY} | more
    return TraceEvent(chain=chain, outcome=outcome, table=table, handle=handle, **values)


TABLES = {("inet", "tidegate"): LISTING}
MARKED = event("prerouting", Outcome.CONTINUE, table=WHY_TABLE, handle=1)
ARRIVED = event("input_end", Outcome.DROP, table=WHY_TABLE, handle=2)


def judge(*events: TraceEvent, **changes: Any) -> KernelDecision:
    asked = probe(**changes)
    return judge_path(asked, plan_path(asked, [MARKED, *events], TABLES))


def decided(verdict: Verdict, rule: str = "services.web", **more: Any) -> Decision:
    return Decision(verdict=verdict, rule=rule, reason="it says so", **more)


# --- listings ---


def test_rules_are_found_by_handle_and_counted() -> None:
    chains = parse_rules(LISTING)
    assert list(chains) == ["input", "svc_web"]
    assert chains["input"].hook == "input"
    assert chains["svc_web"].hook is None
    rules = chains["input"].rules
    assert [(handle, one.number) for handle, one in rules.items()] == [(20, 1), (21, 2), (22, 3), (24, 4)]
    assert rules[21].text == "tcp dport { 1, 2, 3 } counter accept"
    assert rules[21].comment == "with # handle 77"
    assert rules[24].comment == "default"


def test_a_listing_that_ends_early_gives_what_it_has() -> None:
    for length in range(0, len(LISTING), 7):
        parse_rules(LISTING[:length])
    assert parse_rules("") == {}


# --- what the kernel decided ---


def test_a_rule_drops() -> None:
    decision = judge(event("input", Outcome.DROP, handle=24))
    assert (decision.answer, decision.verdict) == (Answer.REFUSED, "drop")
    assert decision.step is not None
    assert (decision.step.name, decision.step.hook) == ("default", "input")
    assert describe_path(decision.path) == "tidegate input → drop"


def test_a_policy_drops() -> None:
    decision = judge(event("input", Outcome.DROP))
    assert (decision.answer, decision.step is not None and decision.step.kind) == (Answer.REFUSED, Kind.POLICY)
    assert describe_path(decision.path) == "tidegate input → policy drop"


def test_a_reject_is_told_from_a_drop() -> None:
    listing = LISTING.replace('counter name "denied" drop', "reject with tcp reset")
    asked = probe()
    steps = plan_path(asked, [event("input", Outcome.DROP, handle=24)], {("inet", "tidegate"): listing})
    assert judge_path(asked, steps).verdict == "reject"


def test_arrival_counts_and_names_the_rule_of_ours_that_let_it_through() -> None:
    decision = judge(
        event("input", Outcome.JUMP, handle=22, target="svc_web"),
        event("svc_web", Outcome.ACCEPT, handle=30),
        event("late", Outcome.ACCEPT, table="other"),
        ARRIVED,
    )
    assert decision.answer is Answer.ALLOWED
    assert decision.step is not None
    assert (decision.step.chain, decision.step.name) == ("svc_web", "svc_web")
    assert [step.table for step in decision.path] == ["tidegate", "tidegate", "other"]
    document = encode_document(probe(), compare(None, decision))
    assert document["kernel"]["led_by"]["key"] == "tcp . 502 in @services"  # type: ignore[index]


def test_a_drop_in_the_temporary_table_elsewhere_is_no_arrival() -> None:
    steps = plan_path(probe(), [MARKED], TABLES)
    assert judge_path(probe(), steps).answer is Answer.REFUSED


def test_the_key_of_a_map_has_the_translated_port() -> None:
    transport = struct.pack("!HH", 50000, 1502) + bytes(16)
    asked = probe()
    steps = plan_path(asked, [event("input", Outcome.JUMP, handle=22, target="x", transport=transport)], TABLES)
    assert steps[0].key == "tcp . 1502 in @services"


def test_a_packet_that_is_gone_before_the_input_hook() -> None:
    early = event("early", Outcome.ACCEPT, table="tidegate_bans")
    decision = judge(early)
    assert (decision.answer, decision.step) == (Answer.REFUSED, None)
    assert "before the input hook" in decision.reason
    assert "rp_filter of eth0" in judge(early, unrouted="the rp_filter of eth0 does not").reason


def test_a_packet_that_is_gone_behind_a_hook() -> None:
    decision = judge(event("input", Outcome.ACCEPT, handle=20))
    assert (decision.answer, decision.step) == (Answer.REFUSED, None)
    assert "iptables-legacy" in decision.reason


def test_a_queue_that_does_not_answer() -> None:
    decision = judge(event("input", Outcome.QUEUE, handle=24, queue=7))
    assert decision.answer is Answer.UNDECIDED
    assert "queue 7" in decision.reason
    why = compare(decided(Verdict.ACCEPT), decision)
    assert (why.answer, why.conflict) == (Answer.UNDECIDED, None)


def test_a_rule_that_was_removed_has_its_number() -> None:
    decision = judge(event("input", Outcome.DROP, handle=99))
    assert "handle 99" in encode_lines(probe(), compare(None, decision))[1]


# --- model against kernel ---


def test_both_agree() -> None:
    why = compare(decided(Verdict.DROP, "default"), judge(event("input", Outcome.DROP, handle=24)))
    assert (why.answer, why.conflict, why.code, why.notes) == (Answer.REFUSED, None, None, ())
    assert encode_lines(probe(), why)[0] == "10.0.0.9 → tcp/502 on eth0: REFUSED (drop)"


def test_drop_and_reject_are_one_refusal() -> None:
    why = compare(decided(Verdict.REJECT, "default"), judge(event("input", Outcome.DROP, handle=24)))
    assert (why.answer, why.code) == (Answer.REFUSED, None)


@pytest.mark.parametrize(
    ("verdict", "events", "words"),
    [
        (Verdict.ACCEPT, [event("c", Outcome.DROP, table="foreign", family="ip")], "ip foreign c, policy drop"),
        (Verdict.ACCEPT, [event("input", Outcome.DROP, handle=24)], "rule 4"),
        (Verdict.ACCEPT, [event("input", Outcome.ACCEPT, handle=20)], "iptables-legacy"),
        (Verdict.DROP, [event("c", Outcome.ACCEPT, table="foreign"), ARRIVED], "not in force"),
        (Verdict.DROP, [event("input", Outcome.ACCEPT, handle=20), ARRIVED], "rule 1"),
    ],
)
def test_they_disagree_and_the_answer_says_where(verdict: Verdict, events: list[TraceEvent], words: str) -> None:
    why = compare(decided(verdict), judge(*events))
    assert why.code == "firewall.why.disagree"
    assert why.conflict is not None
    assert words in why.conflict
    assert (why.answer is Answer.REFUSED) is (verdict is Verdict.ACCEPT)  # the kernel's word counts
    assert "DISAGREE" in encode_lines(probe(), why)[-1]


def test_the_links_own_rules_are_no_disagreement() -> None:
    link = event("eth0", Outcome.DROP, table="tidegate_link", family="netdev", handle=1)
    why = compare(decided(Verdict.ACCEPT), judge(link))
    assert (why.answer, why.code, len(why.notes)) == (Answer.REFUSED, None, 1)


def test_two_names_for_one_verdict_are_noted() -> None:
    listing = LISTING.replace('name "svc_web" accept', 'name "svc_web" accept comment "services.other"')
    asked = probe()
    steps = plan_path(
        asked,
        [
            event(
                "svc_web",
                Outcome.ACCEPT,
                handle=30,
            ),
            ARRIVED,
        ],
        {("inet", "tidegate"): listing},
    )
    why = compare(decided(Verdict.ACCEPT), judge_path(asked, steps))
    assert why.code is None
    assert "services.other" in why.notes[0]


def test_the_model_alone() -> None:
    why = compare(decided(Verdict.REJECT, "default", fields="plc"), None)
    assert (why.answer, why.verdict, why.kernel) == (Answer.REFUSED, "reject", None)
    assert "plc" in why.notes[0]
    assert encode_document(probe(), why)["agree"] is None


# --- the model's packet ---


def test_a_port_forward_is_asked_behind_the_translation() -> None:
    section = {
        "forward": "deny",
        "zones": {"out": {"interfaces": ["eth0"]}},
        "nat": {
            "port_forwards": {
                "plc": {"protocol": "tcp", "port": 502, "zones": ["out"], "peers": ["any"], "to": "10.1.0.5"}
            }
        },
    }
    ruleset = plan_ruleset(msgspec.convert(section, FirewallSection))
    packet = plan_packet(probe(), ruleset)
    assert (packet.direction, str(packet.destination), packet.port) == (Direction.THROUGH, "10.1.0.5", 502)
    assert packet.translated
    for other in (probe(port=503), probe(interface="eth1"), probe(protocol=Protocol.UDP)):
        assert plan_packet(other, ruleset).direction is Direction.IN


def test_the_model_alone_takes_the_question_as_it_is() -> None:
    asked = plan_unrouted(parse_question(["fd00::9", "udp/53"]))
    assert (asked.direction, asked.interface, str(asked.destination)) == (Direction.IN, None, "::")
    assert plan_unrouted(parse_question(["10.0.0.9", "10.1.0.1", "udp/53"])).direction is Direction.THROUGH
    out = plan_unrouted(parse_question(["self", "10.1.0.1", "udp/53"], interface="eth7"))
    assert (out.direction, out.interface, str(out.source)) == (Direction.OUT, "eth7", str(ip_address(0)))


# --- the probe ---


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@pytest.mark.parametrize("protocol", [one for one in Protocol if one is not Protocol.AH])
@pytest.mark.parametrize("addresses", [("10.0.0.9", "10.0.0.1"), ("fd00::9", "fd00::1")])
def test_each_protocols_packet_is_whole_and_known_again(protocol: Protocol, addresses: tuple[str, str]) -> None:
    source, destination = (ip_address(one) for one in addresses)
    asked = probe(protocol=protocol, source=source, destination=destination)
    layout = plan_layout(asked)
    if protocol is Protocol.IGMP and source.version == 6:
        assert layout is None  # there, it is MLD
        return
    assert layout is not None
    packet = encode_packet(asked, layout)
    at = 20 if source.version == 4 else 40
    body = packet[at:]
    if source.version == 4:
        assert checksum(packet[:20]) == 0xFFFF
        assert (packet[9], struct.unpack_from("!H", packet, 2)[0]) == (layout.number, len(packet))
    else:
        assert (packet[6], struct.unpack_from("!H", packet, 4)[0]) == (layout.number, len(body))
    if protocol in (Protocol.TCP, Protocol.UDP) or (protocol is Protocol.PING and source.version == 6):
        pseudo = source.packed + destination.packed + struct.pack("!II", len(body), layout.number)
        assert checksum(pseudo + body) == 0xFFFF
    assert is_probe(layout, packet[:at], body[:20])  # the kernel shows 20 bytes of the transport header
    assert not is_probe(layout, packet[:at], bytes(20))
    assert not is_probe(layout, b"", body[:20])
    assert encode_frame(asked, packet)[12:14] == (b"\x08\x00" if source.version == 4 else b"\x86\xdd")
    assert is_like(asked, packet[:at], body[:20])
    assert read_constant(asked, body[:20])


def test_sctps_checksum_is_the_published_one() -> None:
    """The check value of CRC-32C over the digits 1 to 9 is 0xe3069283 (the catalogue of parametrised CRCs)."""
    from tidegate.firewall.probe_packet import _crc32c

    assert _crc32c(b"123456789") == 0xE3069283


def test_ah_has_no_probe() -> None:
    assert plan_layout(probe(protocol=Protocol.AH)) is None


def test_the_table_drops_only_by_the_nonce_and_last() -> None:
    layout = plan_layout(probe())
    assert layout is not None
    text = encode_probe_table(probe(), layout, owned=True, ingress=True)
    assert "flags owner" in text
    drops = [line.strip() for line in text.splitlines() if line.strip().endswith("drop")]
    assert len(drops) == 4
    for line in drops:
        assert "0x11223344" in line or "tcp ackseq 287454021" in line
    assert text.count("priority 2147483646") == 2
    waiting = encode_wait_table(probe(), owned=False, ingress=False)
    assert " drop" not in waiting
    assert "syn" in waiting
    assert "ingress" not in waiting
    assert "owner" not in waiting


# --- the question ---


@pytest.mark.parametrize(
    ("words", "source", "destination", "protocol", "port"),
    [
        ("10.0.0.9 tcp/502", "10.0.0.9", None, Protocol.TCP, 502),
        ("10.0.0.9 → tcp/502", "10.0.0.9", None, Protocol.TCP, 502),
        ("10.0.0.9 -> 192.168.1.20 tcp/443", "10.0.0.9", "192.168.1.20", Protocol.TCP, 443),
        ("10.0.0.9 to udp/53", "10.0.0.9", None, Protocol.UDP, 53),
        ("self → 198.51.100.7 ping", None, "198.51.100.7", Protocol.PING, 0),
        ("fd00::9 sctp/2905", "fd00::9", None, Protocol.SCTP, 2905),
    ],
)
def test_questions(words: str, source: str | None, destination: str | None, protocol: Protocol, port: int) -> None:
    question = parse_question([words])
    asked = (question.source, question.destination, question.protocol, question.port)
    expected = tuple(None if one is None else ip_address(one) for one in (source, destination))
    assert asked == (*expected, protocol, port)
    assert parse_question(words.split()) == question


def test_a_zone_names_the_interface() -> None:
    assert parse_question(["fe80::1%eth1", "udp/53"]).interface == "eth1"
    assert parse_question(["fe80::1%eth1", "udp/53"], interface="eth2").interface == "eth2"
    assert parse_question(["10.0.0.9", "ping"], mac="02:00:5E:10:00:01").mac == b"\x02\x00\x5e\x10\x00\x01"


@pytest.mark.parametrize(
    "words",
    [
        "10.0.0.9",
        "tcp/502",
        "10.0.0.9 502",
        "10.0.0.9 tcp",
        "10.0.0.9 tcp/",
        "10.0.0.9 tcp/0",
        "10.0.0.9 tcp/65536",
        "10.0.0.9 tcp/+5",
        "10.0.0.9 tcp/\u0665",
        "10.0.0.9 ping/5",
        "10.0.0.9 nosuch/5",
        "10.0.0.999 tcp/5",
        "self tcp/5",
        "self self tcp/5",
        "10.0.0.9 fd00::1 tcp/5",
        "10.0.0.9 10.0.0.1 10.0.0.2 tcp/5",
        "10.0.0.0/24 tcp/5",
        "",
    ],
)
def test_questions_that_are_none(words: str) -> None:
    with pytest.raises(TidegateError) as caught:
        parse_question([words])
    assert caught.value.code == "firewall.why.question"


def test_a_mac_that_is_none() -> None:
    with pytest.raises(TidegateError) as caught:
        parse_question(["10.0.0.9", "tcp/5"], mac="02:00:5e:10:00")
    assert caught.value.code == "firewall.why.question"
