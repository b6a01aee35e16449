"""Who is banned and who is spared: a row for each way to misuse a ban."""

from __future__ import annotations

import pytest

from tidegate.ids.response import PEER_MEMORY_S, Action, decide_response
from tidegate.ids.section import IdsSection, Respond

NOW_S = 1_800_000_000.0
SECTION = IdsSection(respond=Respond.BAN, ban_s=120, allow=("192.0.2.0/28", "2001:db8:1::/48"))


def alert(source="198.51.100.7", **metadata):
    event = {
        "event_type": "alert",
        "dest_ip": "203.0.113.1",
        "metadata": {"detector": "scan.syn", "state": "start", "count": 20, "direction": "in", **metadata},
    }
    return event if source is None else {**event, "src_ip": source}


@pytest.mark.parametrize("source", ["198.51.100.7", "2001:db8:2::7", "fe80::7"])
@pytest.mark.parametrize("state", ["start", "update"])
def test_a_stranger_who_attacks_is_banned_for_the_policy_s_time(source, state):
    decision = decide_response(alert(source, state=state), SECTION, NOW_S)
    assert decision is not None
    assert (decision.action, decision.address) == (Action.BAN, source)
    assert (decision.duration_s, decision.until_s) == (120, NOW_S + 120)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (alert("192.0.2.5"), "the policy never bans this address"),
        (alert("2001:db8:1::5"), "the policy never bans this address"),
        (alert(None, detector="flood.syn"), "no single source sent most of it"),
        (alert(direction="out"), "this device is the sender"),
        (alert("224.0.0.1"), "no host can have this address"),
        (alert("255.255.255.255"), "no host can have this address"),
        (alert("0.0.0.0"), "no host can have this address"),  # noqa: S104  # an address in a packet
        (alert("127.0.0.1"), "no host can have this address"),
        (alert("::1"), "no host can have this address"),
        (alert("ff02::1"), "no host can have this address"),
        (alert(peer_age_s=0), "a genuine peer 0 s ago: the packets may be somebody else's"),
        (
            alert(peer_age_s=PEER_MEMORY_S, detector="flood.syn"),
            "a genuine peer 3600 s ago: the packets may be somebody else's",
        ),
    ],
)
def test_a_ban_that_could_be_turned_against_somebody_is_only_a_report(event, reason):
    decision = decide_response(event, SECTION, NOW_S)
    assert decision is not None
    assert (decision.action, decision.reason, decision.duration_s) == (Action.REPORT, reason, 0)


def test_a_lockdown_is_decided_as_a_ban_is():
    locking = IdsSection(respond=Respond.LOCKDOWN, ban_s=120, allow=SECTION.allow)
    decision = decide_response(alert(), locking, 1000.0)
    assert decision.action is Action.LOCKDOWN
    assert decision.duration_s == 120
    assert decide_response(alert(source="192.0.2.5"), locking, 1000.0).action is Action.REPORT


def test_a_peer_of_long_ago_is_a_stranger():
    decision = decide_response(alert(peer_age_s=PEER_MEMORY_S + 1), SECTION, NOW_S)
    assert decision is not None
    assert decision.action is Action.BAN


def test_a_policy_that_only_reports_never_bans():
    decision = decide_response(alert(), IdsSection(), NOW_S)
    assert decision is not None
    assert decision.action is Action.REPORT


def rule_alert(source="198.51.100.7", *, severity=1, alert=None, **members):
    return {
        "event_type": "alert",
        "timestamp": "2026-11-28T10:00:02.500000+0000",
        "src_ip": source,
        "proto": "TCP",
        "flow": {"start": "2026-11-28T10:00:00.000000+0000"},
        "alert": {"signature_id": 7, "signature": "LOCAL x", "severity": severity, **(alert or {})},
        "peer": {},
        **members,
    }


RULES_TOO = IdsSection(respond=Respond.BAN, ban_s=120, allow=SECTION.allow, respond_severity=2)
NO_FLOW = {"proto": "UDP", "flow": {"start": "2026-11-28T10:00:00.000000+0000"}}


@pytest.mark.parametrize(
    ("title", "event", "reason"),
    [
        ("a stranger", rule_alert(), None),
        ("a stranger's datagram", rule_alert(**NO_FLOW), None),
        ("who proved himself in this connection only", rule_alert(peer={"age_s": 0, "known_s": 3}), None),
        ("a peer of before", rule_alert(peer={"age_s": 0, "known_s": 4}), "genuine"),
        ("a peer of before, connection unknown", rule_alert(peer={"age_s": 0, "known_s": 1}, flow={}), "genuine"),
        ("a peer, by a datagram", rule_alert(peer={"age_s": 0, "known_s": 1}, **NO_FLOW), "genuine"),
        ("a peer of long ago", rule_alert(peer={"age_s": PEER_MEMORY_S + 1, "known_s": 9999}), None),
        ("nobody knows peers", rule_alert(peer=None), "cannot say"),
        ("this device", rule_alert("198.51.100.99"), "this device"),
        ("allowed", rule_alert("192.0.2.5"), "never bans"),
        ("the rule blames the other", rule_alert(alert={"source": {"ip": "198.51.100.8"}}), "victim"),
        ("the rule blames this one", rule_alert(alert={"source": {"ip": "198.51.100.7"}}), None),
        (
            "a detector of the inspector",
            rule_alert(metadata={"detector": "scan.udp", "state": "start"}, **NO_FLOW),
            None,
        ),
        ("whom somebody imitates", rule_alert(metadata={"detector": "spoof.arp", "state": "start"}), "victim"),
    ],
)
def test_alerts_of_rules_ban_under_the_same_duties(title, event, reason):
    decision = decide_response(event, RULES_TOO, NOW_S, lambda address: address == "198.51.100.99")
    assert decision is not None, title
    assert (decision.action is Action.BAN) == (reason is None), (title, decision.reason)
    assert reason is None or reason in decision.reason, title


@pytest.mark.parametrize("event", [rule_alert(severity=3), rule_alert(severity="1"), rule_alert(severity=None)])
def test_alerts_of_rules_that_the_policy_does_not_name_need_no_decision(event):
    assert decide_response(event, RULES_TOO, NOW_S) is None
    assert decide_response(rule_alert(), SECTION, NOW_S) is None


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"event_type": "flow", "metadata": {"state": "start"}},
        {"event_type": "alert"},
        {"event_type": "alert", "metadata": 7},
        alert(state="end"),
        {"event_type": "alert", "src_ip": "198.51.100.7", "metadata": {"flowbits": ["x"]}},
    ],
)
def test_what_is_no_beginning_alert_of_ours_needs_no_decision(event):
    assert decide_response(event, SECTION, NOW_S) is None
