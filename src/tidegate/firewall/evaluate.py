"""What a ruleset does with one packet, and which of its rules says so. Pure.

Written from the meaning of the policy and not from the compiler's output, so that a test can hold both, and the
kernel, against each other. What the layer-2 table refuses is ``link.evaluate_frame``'s; what a packet's content
decides is the inspector's.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from tidegate.firewall.model import (
    Address,
    Direction,
    Icmp,
    ManagementPath,
    Network,
    Packet,
    Resolved,
    Rule,
    Ruleset,
    State,
    Verdict,
)
from tidegate.firewall.section import Count, Default, EgressDefault, Forward, Mode, Protocol

ND_HOP_LIMIT = 255  # RFC 4861 §11.2: a neighbour message that was routed has less
LINK_LOCAL = IPv6Network("fe80::/10")
# What a host needs to hear and to say on an IPv6 link (RFC 4890 §4.4). A host takes no router solicitations.
ND_IN = (Icmp.NEIGHBOUR_SOLICIT, Icmp.NEIGHBOUR_ADVERT, Icmp.ROUTER_ADVERT)
ND_OUT = (Icmp.NEIGHBOUR_SOLICIT, Icmp.NEIGHBOUR_ADVERT, Icmp.ROUTER_SOLICIT)
MLD_OUT = (Icmp.LISTENER_REPORT, Icmp.LISTENER_DONE, Icmp.LISTENER_REPORT_V2)
_ANSWERING = (State.ESTABLISHED, State.RELATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict, the rule that gives it (``services.web``, ``management``, ``default``, ...), and why in words."""

    verdict: Verdict
    rule: str
    reason: str
    fields: str | None = None  # the field rules that still have their say about the content


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the kernel holds besides the policy: bans in force, and what DNS names stand for."""

    banned: Collection[Address | Network] = ()
    resolved: Resolved = field(default_factory=dict)


def evaluate_packet(
    ruleset: Ruleset,
    packet: Packet,
    *,
    banned: Collection[Address | Network] = (),
    resolved: Resolved | None = None,
) -> Verdict:
    """Return what the compiled ruleset does with ``packet``; arguments as ``explain_packet``."""
    return explain_packet(ruleset, packet, banned=banned, resolved=resolved).verdict


def explain_packet(
    ruleset: Ruleset,
    packet: Packet,
    *,
    banned: Collection[Address | Network] = (),
    resolved: Resolved | None = None,
) -> Decision:
    """Return what the compiled ruleset does with ``packet``, and by which rule.

    Order of duties: bans (never against never-listed, management or loopback sources), loopback, then by direction and
    mode. In observe mode everything passes, and the decision's rule is the one that would refuse it.
    """
    around = Surroundings(banned=banned, resolved=resolved or {})
    decision = _decide(ruleset, packet, around)
    if ruleset.mode is Mode.OBSERVE and decision.verdict is not Verdict.ACCEPT:
        return Decision(verdict=Verdict.ACCEPT, rule=decision.rule, reason=f"observed only: {decision.reason}")
    return decision


def _decide(ruleset: Ruleset, packet: Packet, around: Surroundings) -> Decision:
    if packet.direction is not Direction.OUT and packet.interface != "lo" and _is_banned(ruleset, packet, around):
        return Decision(verdict=Verdict.DROP, rule="bans", reason=f"{packet.source} is banned")
    if packet.direction is Direction.THROUGH:
        return _decide_through(ruleset, packet, around)
    if packet.interface == "lo":
        return _accept("loopback", "it never leaves the device")
    if packet.direction is Direction.OUT:
        return _decide_out(ruleset, packet, around)
    return _decide_in(ruleset, packet, around)


def _is_banned(ruleset: Ruleset, packet: Packet, around: Surroundings) -> bool:
    management = ruleset.management
    if management is not None and not management.peers.everyone and management.peers.has(packet.source):
        return False
    if ruleset.never.has(packet.source):
        return False
    return any(_is_of(packet.source, banned) for banned in around.banned)


def _is_of(address: Address, banned: Address | Network) -> bool:
    if isinstance(banned, IPv4Network | IPv6Network):
        return address in banned
    return address == banned


def _decide_in(ruleset: Ruleset, packet: Packet, around: Surroundings) -> Decision:
    if packet.state is State.INVALID:
        return _drop("invalid", "connection tracking knows no connection that it belongs to")
    if _is_neighbour_talk(packet):
        return _accept("neighbours", "IPv6 neighbours have to talk")
    management = ruleset.management
    if management is not None and _is_for(management.service, packet) and management.peers.has(packet.source):
        return _accept("management", f"{packet.source} may manage the device")
    if ruleset.mode is Mode.LOCKDOWN:
        return _decide_locked_in(ruleset, management, packet, around)
    over = _over_packets(ruleset.services, packet, around) or _over_all(ruleset, packet)
    if over is not None:
        return over
    if packet.state in _ANSWERING:
        return _accept(
            "established", "it belongs to a connection that was allowed", _fields_of(ruleset.services, packet)
        )
    if packet.protocol is Protocol.PING and ruleset.ping_per_s and not packet.over_threshold:
        return _accept("ping", f"up to {ruleset.ping_per_s} echo requests a second are answered")
    return _first_of(ruleset.services, packet, around) or _refuse(ruleset, packet, "service answers")


def _over_all(ruleset: Ruleset, packet: Packet) -> Decision | None:
    """Return a refusal when the packet is over what bounds everything that comes in."""
    begins = packet.state not in _ANSWERING
    if packet.over_threshold and any(begins or one.count is Count.PACKETS for one in ruleset.thresholds):
        return _drop("thresholds", "too much comes in from there, or in all")
    return None


def _decide_locked_in(
    ruleset: Ruleset, management: ManagementPath | None, packet: Packet, around: Surroundings
) -> Decision:
    if packet.icmp is not None and packet.state is State.RELATED:
        return _accept("lockdown", "an ICMP error about a connection that is open")
    for rule in ruleset.services:
        if rule.kept and _is_for(rule, packet) and _is_peer(rule, packet, around):
            return _accept(rule.label, "it stays open in lockdown", rule.fields)
    callers = [rule for rule in ruleset.egress if rule.kept]
    if management is not None and management.egress is not None:
        callers.append(management.egress)
    if packet.state is State.ESTABLISHED:
        for rule in callers:
            if _answers(rule, packet, packet.source, around.resolved):
                return _accept(rule.label, "an answer to a call that stays open in lockdown")
    return _drop("lockdown", "the device is locked down")


def _decide_out(ruleset: Ruleset, packet: Packet, around: Surroundings) -> Decision:
    if packet.icmp in ND_OUT or packet.icmp in MLD_OUT:
        return _accept("neighbours", "IPv6 neighbours have to talk")
    if ruleset.mode is Mode.LOCKDOWN:
        return _decide_locked_out(ruleset, packet, around)
    if packet.state in _ANSWERING:
        return _accept("established", "it belongs to a connection that was allowed", _fields_of(ruleset.egress, packet))
    allowed = _first_of(ruleset.egress, packet, around)
    if allowed is not None:
        return allowed
    if ruleset.egress_default is EgressDefault.ALLOW:
        return _accept("egress", "what the device opens is allowed")
    return Decision(verdict=Verdict.REJECT, rule="egress", reason=f"no egress service calls {_words(packet)}")


def _decide_locked_out(ruleset: Ruleset, packet: Packet, around: Surroundings) -> Decision:
    if packet.icmp is not None and packet.state is State.RELATED:
        return _accept("lockdown", "an ICMP error about a connection that is open")
    management = ruleset.management
    if management is not None:
        if _is_answer_of(management.service, packet) and management.peers.has(packet.destination):
            return _accept("management", f"{packet.destination} may manage the device")
        way_out = management.egress
        if way_out is not None and _is_for(way_out, packet) and _is_peer(way_out, packet, around):
            return _accept("management", "the way out to the manager")
    for rule in ruleset.services if packet.state is State.ESTABLISHED else ():
        if rule.kept and _answers(rule, packet, packet.destination, around.resolved):
            return _accept(rule.label, "it stays open in lockdown")
    for rule in ruleset.egress:
        if rule.kept and _is_for(rule, packet) and _is_peer(rule, packet, around):
            return _accept(rule.label, "it stays open in lockdown", rule.fields)
    return Decision(verdict=Verdict.REJECT, rule="lockdown", reason="the device is locked down")


def _decide_through(ruleset: Ruleset, packet: Packet, around: Surroundings) -> Decision:
    if ruleset.forward is Forward.LEAVE and ruleset.mode is not Mode.LOCKDOWN:
        return _accept("forward", "forwarding is left to other tables")
    if ruleset.mode is Mode.LOCKDOWN:
        for rule in ruleset.routes:
            if rule.kept and (
                (_is_for(rule, packet) and _is_peer(rule, packet, around)) or _goes_back(rule, packet, around)
            ):
                return _accept(rule.label, "it stays open in lockdown", rule.fields)
        return _drop("lockdown", "the device is locked down")
    if packet.state is State.INVALID:
        return _drop("invalid", "connection tracking knows no connection that it belongs to")
    over = _over_packets(ruleset.routes, packet, around)
    if over is not None:
        return over
    if packet.state in _ANSWERING:
        return _accept("established", "it belongs to a connection that was allowed", _fields_of(ruleset.routes, packet))
    return _first_of(ruleset.routes, packet, around) or _drop("forward", f"no route allows {_words(packet)}")


def _first_of(rules: Sequence[Rule], packet: Packet, around: Surroundings) -> Decision | None:
    """Return the decision of the first rule that allows the packet; None when none does."""
    for rule in rules:
        is_over = packet.over_threshold and rule.is_limited and not rule.observe
        if not is_over and _is_for(rule, packet) and _is_peer(rule, packet, around):
            return _accept(rule.label, "the rule allows it", rule.fields)
    return None


def _over_packets(rules: Sequence[Rule], packet: Packet, around: Surroundings) -> Decision | None:
    """Return a refusal when the packet is over a threshold that counts every packet: no other rule overrides that."""
    if not packet.over_threshold:
        return None
    for rule in rules:
        counts = any(one.count is Count.PACKETS for one in rule.thresholds)
        if counts and not rule.observe and _is_for(rule, packet) and _is_peer(rule, packet, around):
            return _drop(rule.label, "over a threshold that counts every packet")
    return None


def _fields_of(rules: Sequence[Rule], packet: Packet) -> str | None:
    """Return the field rules that look at packets of established connections, too."""
    return next((rule.fields for rule in rules if rule.fields is not None and _is_for(rule, packet)), None)


def _is_for(rule: Rule, packet: Packet) -> bool:
    """Return whether protocol, port and interfaces are the rule's."""
    return (
        packet.protocol is rule.protocol
        and (not rule.spans or any(span.first <= packet.port <= span.last for span in rule.spans))
        and _is_on(rule.interfaces, packet.interface)
        and _is_on(rule.out_interfaces, packet.out_interface)
        and (packet.translated or not rule.translated)
    )


def _is_peer(rule: Rule, packet: Packet, around: Surroundings) -> bool:
    far = packet.destination if packet.direction is Direction.OUT else packet.source
    if not rule.peers.has(far, mac=packet.mac, resolved=around.resolved):
        return False
    return packet.direction is not Direction.THROUGH or rule.destinations.has(
        packet.destination, resolved=around.resolved
    )


def _is_answer_of(rule: Rule, packet: Packet) -> bool:
    """Return whether the packet's source port and interface are those that the rule's port answers from."""
    return (
        packet.protocol is rule.protocol
        and (not rule.spans or any(span.first <= packet.source_port <= span.last for span in rule.spans))
        and _is_on(rule.interfaces, packet.interface)
    )


def _answers(rule: Rule, packet: Packet, far: Address, resolved: Resolved) -> bool:
    return bool(rule.spans) and _is_answer_of(rule, packet) and rule.peers.has(far, resolved=resolved)


def _goes_back(rule: Rule, packet: Packet, around: Surroundings) -> bool:
    """Return whether the packet is an established answer on a route, seen the other way round."""
    return (
        packet.state is State.ESTABLISHED
        and packet.protocol is rule.protocol
        and any(span.first <= packet.source_port <= span.last for span in rule.spans)
        and _is_on(rule.interfaces, packet.out_interface)
        and _is_on(rule.out_interfaces, packet.interface)
        and rule.peers.has(packet.destination, resolved=around.resolved)
        and rule.destinations.has(packet.source, resolved=around.resolved)
    )


def _is_on(interfaces: Sequence[str], interface: str | None) -> bool:
    return not interfaces or interface is None or interface in interfaces


def _is_neighbour_talk(packet: Packet) -> bool:
    """IPv6 breaks without these: they are accepted in every mode, but never from beyond the link."""
    if packet.icmp in ND_IN:
        return packet.hop_limit == ND_HOP_LIMIT
    return packet.icmp is Icmp.LISTENER_QUERY and packet.source in LINK_LOCAL


def _refuse(ruleset: Ruleset, packet: Packet, what: str) -> Decision:
    verdict = Verdict.REJECT if ruleset.default is Default.REJECT else Verdict.DROP
    return Decision(verdict=verdict, rule="default", reason=f"no {what} {_words(packet)} for {packet.source}")


def _words(packet: Packet) -> str:
    if packet.protocol is None:
        return packet.icmp.value if packet.icmp is not None else "its protocol"
    return f"{packet.protocol}/{packet.port}" if packet.protocol.has_ports else packet.protocol.value


def _accept(rule: str, reason: str, fields: str | None = None) -> Decision:
    return Decision(verdict=Verdict.ACCEPT, rule=rule, reason=reason, fields=fields)


def _drop(rule: str, reason: str) -> Decision:
    return Decision(verdict=Verdict.DROP, rule=rule, reason=reason)
