"""A learnt proposal as a policy that an operator reads, corrects and signs. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from tidegate.firewall.learn import MAX_LISTED, Aside, Evidence, Proposal, Proposed, Why
from tidegate.firewall.model import Direction
from tidegate.firewall.section import FirewallSection

MAX_ASIDE = 100  # lines of each reason; a scan leaves thousands
_LINE_PEERS = 4  # peers a line
_TABLES = {
    Direction.IN: "firewall.services",
    Direction.OUT: "firewall.egress.services",
    Direction.THROUGH: "firewall.routes",
}
LEARNT_PINGS_PER_S = 10  # the default of a policy
CONFIRM = "the session in which this was learnt; confirm that it manages the device: it is never limited or banned"
NAME_THEM = "to be confirmed: who manages this device, and by which service? They are never limited or banned, so not"
NAME_THEM_MORE = (
    "simply everybody who was seen: a guessed password is a session, too. No policy is applied without them."
)


def plan_section(proposal: Proposal) -> FirewallSection:
    """Return the section that ``encode_proposal`` writes."""
    return msgspec.convert(_document(proposal), FirewallSection)


def encode_proposal(proposal: Proposal, *, description: str) -> str:
    """Return the proposal as a policy in TOML: the evidence of each rule above it, what was left out at the end."""
    lines = [
        "[policy]",
        "version = 1",
        f"description = {json.dumps(description[:256])}",
        "",
        "[firewall]",
        'mode = "observe"  # refuses nothing yet: look at what is logged, then write "enforce"',
        (
            f"ping_per_s = {LEARNT_PINGS_PER_S if proposal.answers_ping else 0}"
            f"  # echo requests were {'answered' if proposal.answers_ping else 'not seen'}"
        ),
        "",
        *_management(proposal),
        "[firewall.egress]",
        'default = "deny"',
        "",
    ]
    for rule in proposal.rules:
        lines += [*_rule(proposal, rule), ""]
    lines += list(_left_out(proposal))
    return "\n".join(lines).rstrip() + "\n"


def describe_evidence(evidence: Evidence) -> str:
    """Return in one line what was seen."""
    size = f", {evidence.size_bytes:,} bytes" if evidence.size_bytes else ""
    once = "once" if evidence.is_once else f"{evidence.connections} times"
    if evidence.last_s - evidence.first_s < 1:
        return f"seen {once}, {_time(evidence.first_s)}{size}; {evidence.example}"
    return f"seen {once}, {_time(evidence.first_s)} to {_time(evidence.last_s)}{size}; {evidence.example}"


def _document(proposal: Proposal) -> dict[str, Any]:
    document: dict[str, Any] = {
        "mode": "observe",
        "ping_per_s": LEARNT_PINGS_PER_S if proposal.answers_ping else 0,
        "services": {},
        "egress": {"default": "deny", "services": {}},
        "routes": {},
    }
    if proposal.manager is not None and proposal.wishes.session is not None:
        document["management"] = {
            "peers": [str(proposal.wishes.session.client)],
            "service": proposal.manager.name,
        }
    places = {
        Direction.IN: document["services"],
        Direction.OUT: document["egress"]["services"],
        Direction.THROUGH: document["routes"],
    }
    for rule in proposal.rules:
        places[rule.direction][rule.name] = _keys(proposal, rule)
    return document


def _keys(proposal: Proposal, rule: Proposed) -> dict[str, Any]:
    keys: dict[str, Any] = {"protocol": rule.protocol.value}
    if rule.ports:
        keys["ports"] = _spans(rule.ports)
    if rule.direction is Direction.THROUGH:
        keys |= {"sources": list(rule.far), "destinations": list(rule.near)}
        return keys
    keys["peers"] = list(rule.far)
    if proposal.wishes.interface is not None:
        keys["interfaces"] = [proposal.wishes.interface]
    return keys


def _management(proposal: Proposal) -> Iterator[str]:
    manager, session = proposal.manager, proposal.wishes.session
    if manager is None or session is None:
        service = "ssh" if manager is None else manager.name
        yield from (f"# {NAME_THEM}", f"# {NAME_THEM_MORE}", "#[firewall.management]", "#peers = []")
        yield from (f"#service = {json.dumps(service)}", "")
        return
    yield f"# {CONFIRM}"
    yield "[firewall.management]"
    yield f"peers = {json.dumps([str(session.client)])}"
    yield f"service = {json.dumps(manager.name)}"
    yield ""


def _rule(proposal: Proposal, rule: Proposed) -> Iterator[str]:
    yield f"# {describe_evidence(rule.evidence)}"
    whose = "destinations" if rule.direction is Direction.OUT else "sources"
    yield f"# {rule.seen} {whose if rule.seen != 1 else whose[:-1]}{_flags(rule)}"
    yield f"[{_TABLES[rule.direction]}.{rule.name}]"
    for key, value in _keys(proposal, rule).items():
        is_list = key in ("peers", "sources", "destinations")
        yield f"{key} = {_peers(value) if is_list else json.dumps(value)}"


def _flags(rule: Proposed) -> str:
    flags = ["seen once: is it needed?"] if rule.evidence.is_once else []
    if rule.evidence.is_guess:
        flags.append("it was open before the watch, so who called whom is a guess")
    if rule.is_wider:
        flags.append("gathered into prefixes that hold more than was seen")
    elif len(rule.far) > MAX_LISTED:
        flags.append("--widen-v4 and --widen-v6 gather them into prefixes")
    return "".join(f"; {flag}" for flag in flags)


def _left_out(proposal: Proposal) -> Iterator[str]:
    for why in Why:
        found = [one for one in proposal.aside if one.why is why]
        if not found:
            continue
        yield f"# Not proposed: {why}"
        yield from (f"#   {_aside(one)}" for one in found[:MAX_ASIDE])
        if len(found) > MAX_ASIDE:
            yield f"#   and {len(found) - MAX_ASIDE} more"
    if proposal.forgotten:
        yield f"# {proposal.forgotten} flows were too many to be remembered: this proposal lacks them"


def _aside(one: Aside) -> str:
    return f"{one.label} ({describe_evidence(one.evidence)})"


def _spans(ports: tuple[int, ...]) -> list[int | str]:
    """Return the ports as a policy writes them: neighbours as a range."""
    spans: list[list[int]] = []
    for port in ports:
        if spans and port == spans[-1][1] + 1:
            spans[-1][1] = port
        else:
            spans.append([port, port])
    return [first if first == last else f"{first}-{last}" for first, last in spans]


def _peers(peers: list[str]) -> str:
    if len(peers) <= _LINE_PEERS:
        return json.dumps(peers)
    rows = [peers[at : at + _LINE_PEERS] for at in range(0, len(peers), _LINE_PEERS)]
    return "[\n" + "".join(f"  {', '.join(map(json.dumps, row))},\n" for row in rows) + "]"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
