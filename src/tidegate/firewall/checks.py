"""What can be seen wrong with a ruleset before any kernel sees it.

Pure. An *error* finding keeps a ruleset from being applied; a *warning* is for the operator to read. What cannot be
seen here (a management network that is well written but the wrong one) is what the armed rollback is for. Rules that
meet each other: ``overlaps``. What the sets may come to occupy: ``budget``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from tidegate.base.errors import Rejected
from tidegate.firewall.budget import count_elements, measure_cost
from tidegate.firewall.dispatch import plan_port_groups
from tidegate.firewall.errors import FieldsOverlap, ManagementCut, SessionCut, SetBudget, TooManyOverlaps
from tidegate.firewall.evaluate import explain_packet
from tidegate.firewall.findings import Finding, Severity, error, warning
from tidegate.firewall.link import check_links
from tidegate.firewall.model import (
    Address,
    Direction,
    Kind,
    ManagementPath,
    Packet,
    PeerGroup,
    PortForward,
    Rule,
    Ruleset,
    Verdict,
)
from tidegate.firewall.nameset import MAX_NAMES
from tidegate.firewall.overlaps import check_overlaps
from tidegate.firewall.section import Count, EgressDefault, FirewallSection, Mode, Per, Protocol

__all__ = [
    "Finding",
    "Severity",
    "VerifiedRuleset",
    "check_ruleset",
    "check_written",
    "count_elements",
    "verify_ruleset",
]

_RESOLVER_PORTS = (53, 853)  # RFC 1035, RFC 7858
_ERRORS: dict[str, type[Rejected]] = {
    kind.code: kind for kind in (ManagementCut, SessionCut, SetBudget, FieldsOverlap, TooManyOverlaps)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedRuleset:
    """A ruleset without error findings. Made by ``verify_ruleset`` alone; ``commit`` accepts nothing else."""

    ruleset: Ruleset
    warnings: tuple[Finding, ...]


def verify_ruleset(
    ruleset: Ruleset, *, must_pass: Sequence[Packet] = (), own: Collection[Address] = ()
) -> VerifiedRuleset:
    """Return ``ruleset`` as one that may be applied, or raise the first error found.

    ``must_pass`` are packets that have to be accepted, above all those of the session from which the policy is
    applied; ``own``: the device's addresses, as far as they are known. Raises ``firewall.check.management-cut``,
    ``.session-cut``, ``.set-budget``, ``.fields-overlap``, ``.too-many-overlaps``.
    """
    findings = check_ruleset(ruleset, must_pass=must_pass, own=own)
    for finding in findings:
        if finding.severity is Severity.ERROR:
            raise _ERRORS[finding.code](finding.message, subject=finding.subject)
    return VerifiedRuleset(ruleset=ruleset, warnings=tuple(findings))


def check_ruleset(
    ruleset: Ruleset, *, must_pass: Sequence[Packet] = (), own: Collection[Address] = ()
) -> list[Finding]:
    """Return all findings, errors first; arguments as ``verify_ruleset``."""
    findings = [
        *_check_management(ruleset),
        *_check_sessions(ruleset, must_pass),
        *_check_budget(ruleset),
        *(finding for rules in (ruleset.services, ruleset.egress, ruleset.routes) for finding in check_overlaps(rules)),
        *_check_reach(ruleset),
        *_check_families(ruleset),
        *_check_translation(ruleset, {*own, *(one.destination for one in must_pass if one.direction is Direction.IN)}),
        *_check_bounds(ruleset),
        *_check_names(ruleset),
        *_check_reports(ruleset),
    ]
    return sorted(findings, key=lambda finding: finding.severity is not Severity.ERROR)


def check_written(section: FirewallSection) -> list[Finding]:
    """Return warnings that only the written section shows: names that nothing uses, interfaces in no zone."""
    used = {peer.lstrip("!")[1:] for peer in _written_peers(section) if peer.lstrip("!").startswith("@")}
    fields = {service.fields for service in section.services.values()}
    fields |= {call.fields for call in section.egress.services.values()}
    fields |= {route.fields for route in section.routes.values()}
    zones = _used_zones(section)
    known = {interface for zone in section.zones.values() for interface in zone.interfaces}
    findings = [
        warning("unused", f"{what}.{name}", f"{what}.{name} is used nowhere")
        for what, defined, uses in (
            ("peers", section.peers, used),
            ("fields", section.fields, fields),
            ("zones", section.zones, zones),
        )
        for name in defined
        if name not in uses
    ]
    findings += _check_empty_limits(section)
    places = [(f"{Kind.SERVICE}.{name}", rule.interfaces) for name, rule in section.services.items()]
    places += [(f"{Kind.EGRESS}.{name}", rule.interfaces) for name, rule in section.egress.services.items()]
    for label, interfaces in places if known else ():
        if lost := [one for one in interfaces if one not in known]:
            findings.append(warning("no-zone", label, f"{label} is on {', '.join(lost)}, which belongs to no zone"))
    return findings


def _check_empty_limits(section: FirewallSection) -> Iterator[Finding]:
    limits = [(f"{Kind.SERVICE}.{name}", rule.limit) for name, rule in section.services.items()]
    limits += [(f"{Kind.ROUTE}.{name}", rule.limit) for name, rule in section.routes.items()]
    for label, limit in limits:
        if limit is not None and (limit.new_per_s, limit.connections, limit.total_connections) == (None, None, None):
            yield warning("limit-empty", label, f"{label} has a limit with no rate and no number: nothing is limited")


def _written_peers(section: FirewallSection) -> Iterator[str]:
    for group in section.peers.values():
        yield from group
    for service in section.services.values():
        yield from service.peers
    for call in section.egress.services.values():
        yield from call.peers
    for route in section.routes.values():
        yield from (*route.sources, *route.destinations)
    for masquerade in section.nat.masquerade.values():
        yield from masquerade.sources
    for forward in section.nat.port_forwards.values():
        yield from forward.peers
    yield from section.bans.never
    yield from () if section.management is None else section.management.peers


def _used_zones(section: FirewallSection) -> set[str]:
    named = [one.zones for one in section.services.values()]
    named += [one.zones for one in section.egress.services.values()]
    named += [one.zones for one in section.nat.masquerade.values()]
    named += [one.zones for one in section.nat.port_forwards.values()]
    for route in section.routes.values():
        named += [route.from_zones, route.to_zones]
    return {zone for zones in named for zone in zones} | set(section.link)


def _check_management(ruleset: Ruleset) -> Iterator[Finding]:
    management = ruleset.management
    if management is None:
        yield error(ManagementCut.code, "management", "the policy names no management path")
        return
    if management.peers.empty:
        yield error(ManagementCut.code, "management", "the management path has no peers")
    else:
        yield from _check_way_in(ruleset, management)
        yield from _check_link(ruleset, management)
    if management.service.fields is not None:
        text = "the management service has content rules: without an inspector nobody could manage the device"
        yield error(ManagementCut.code, management.service.label, text)
    if management.egress is not None and management.egress.peers.empty:
        yield error(ManagementCut.code, management.egress.label, "the way out to the manager has no peers")
    elif management.egress is not None:
        yield from _check_way_out(ruleset, management.egress)
    if management.peers.everyone:
        text = "everyone is a management peer: none of them is limited there, and a ban can hit the operator"
        yield warning("management-any", "management", text)
    if management.service.syn_proxy:
        text = f"{management.service.label} is the management service: behind a SYN proxy it depends on limits"
        yield warning("management-syn-proxy", management.service.label, text)


def _check_way_in(ruleset: Ruleset, management: ManagementPath) -> Iterator[Finding]:
    """Ask the evaluator, which knows nothing of this file, for a packet of each family, interface and port edge."""
    service = management.service
    for packet in _samples(service, management.peers, Direction.IN):
        decision = explain_packet(ruleset, packet)
        if decision.verdict is not Verdict.ACCEPT:
            text = f"{packet.source} may manage the device, and {decision.rule} refuses it: {decision.reason}"
            yield error(ManagementCut.code, "management", text)
            return
    for forward in ruleset.port_forwards:
        if not _takes(forward, service):
            continue
        label = _label(forward)
        everywhere = not forward.interfaces or (
            bool(service.interfaces) and set(service.interfaces) <= set(forward.interfaces)
        )
        if everywhere and all(span.first == span.last == forward.port for span in service.spans):
            text = f"{label} sends the port of the management service {service.label} to {forward.to}"
            yield error(ManagementCut.code, label, text)


def _check_link(ruleset: Ruleset, management: ManagementPath) -> Iterator[Finding]:
    """Layer-2 rules that keep managers out: an error where they come in by those interfaces alone."""
    inside = management.service.interfaces
    versions = _families(management.peers)
    found = check_links(ruleset.links, management_interfaces=inside, needs_v4=4 in versions, needs_v6=6 in versions)
    refusing = {subject for subject, _ in found}
    closed = {name for link in ruleset.links if link.label in refusing for name in link.interfaces}
    for subject, text in found:
        if inside and set(inside) <= closed:
            yield error(ManagementCut.code, subject, text)
        else:
            yield warning("management-link", subject, text)


def _check_way_out(ruleset: Ruleset, egress: Rule) -> Iterator[Finding]:
    for packet in _samples(egress, egress.peers, Direction.OUT):
        decision = explain_packet(ruleset, packet)
        if decision.verdict is not Verdict.ACCEPT:
            text = f"{decision.rule} refuses the way out to the manager at {packet.destination}: {decision.reason}"
            yield error(ManagementCut.code, egress.label, text)
            return


def _samples(rule: Rule, peers: PeerGroup, direction: Direction) -> Iterator[Packet]:
    """Yield a packet for each address family of the peers, each interface and each edge of the rule's ports."""
    hosts: list[Address] = [group[0].network_address for group in (peers.v4, peers.v6) if group]
    for far in hosts or ([IPv4Address("198.51.100.1")] if peers.everyone else []):
        near = type(far)(1)
        for interface in rule.interfaces or (None,):
            for port in {edge for span in rule.spans for edge in (span.first, span.last)} or {0}:
                yield Packet(
                    direction=direction,
                    interface=interface,
                    source=far if direction is Direction.IN else near,
                    destination=near if direction is Direction.IN else far,
                    protocol=rule.protocol,
                    port=port,
                )


def _check_sessions(ruleset: Ruleset, must_pass: Sequence[Packet]) -> Iterator[Finding]:
    if ruleset.mode is Mode.OBSERVE:
        return
    for packet in must_pass:
        decision = explain_packet(ruleset, packet)
        if decision.verdict is not Verdict.ACCEPT:
            by = f"{decision.rule} refuses it ({decision.reason})"
        elif (forward := _taken_by(ruleset, packet)) is not None:
            by = f"{_label(forward)} would send it to {forward.to}"
        else:
            continue
        text = f"{_session(packet)}, by which this device is being managed, would be cut: {by}"
        yield error(SessionCut.code, str(packet.source), text)


def _session(packet: Packet) -> str:
    protocol = packet.protocol.value if packet.protocol is not None else "session"
    where = f" on {packet.interface}" if packet.interface else ""
    if packet.direction is Direction.OUT:
        return f"the session to {packet.destination} {protocol}/{packet.port}{where}"
    return f"the session of {packet.source} on {protocol}/{packet.port}{where}"


def _taken_by(ruleset: Ruleset, packet: Packet) -> PortForward | None:
    """Return the port forward that would translate the packet; none where its interface is not known."""
    if packet.direction is not Direction.IN or packet.translated:
        return None
    for one in ruleset.port_forwards:
        same = one.protocol is packet.protocol and one.port == packet.port and one.to.version == packet.source.version
        if same and (not one.interfaces or packet.interface in one.interfaces):
            return one
    return None


def _check_budget(ruleset: Ruleset) -> Iterator[Finding]:
    cost = measure_cost(ruleset)
    if cost.elements > ruleset.set_budget:
        text = (
            f"the policy's sets can hold {cost.elements} elements, the budget is {ruleset.set_budget}; "
            f"all full, the policy takes {cost.size_bytes} bytes of kernel memory"
        )
        yield error(SetBudget.code, "set_budget", text)


def _check_reach(ruleset: Ruleset) -> Iterator[Finding]:
    """Rules that no packet can be for, or that change nothing."""
    management = ruleset.management
    managed = management.service if management is not None else None
    for rule in ruleset.rules():
        if rule.peers.empty or rule.destinations.empty:
            if rule is not managed:  # there, only the management peers may be meant
                who = "peers" if rule.peers.empty else "destinations"
                yield warning("no-peers", rule.label, f"{rule.label} has no {who}: nobody can use it")
        elif rule.kind is Kind.ROUTE and len(rule.interfaces) == 1 and rule.interfaces == rule.out_interfaces:
            text = f"{rule.label} goes out by {rule.interfaces[0]}, where it comes in: neighbours need no route"
            yield warning("route-hairpin", rule.label, text)
    for rule in ruleset.egress if ruleset.egress_default is EgressDefault.ALLOW else ():
        called = management is not None and rule is management.egress
        if not (called or rule.fields or rule.observe or rule.kept):
            text = f'{rule.label} decides nothing: egress.default = "allow" allows every call'
            yield warning("egress-open", rule.label, text)
    yield from _check_taken(ruleset)


def _check_taken(ruleset: Ruleset) -> Iterator[Finding]:
    """Services on a port whose packets a port forward sends elsewhere before any service sees them."""
    forwards = sorted(ruleset.port_forwards, key=lambda one: (one.protocol, one.port))
    keys = [(one.protocol, one.port) for one in forwards]
    for group in plan_port_groups(ruleset.services) if forwards else ():
        begin = bisect_left(keys, (group.protocol, group.first))
        for forward in forwards[begin : bisect_right(keys, (group.protocol, group.last))]:
            for rule in group.rules:
                if _takes(forward, rule):
                    text = f"{rule.label} loses {forward.protocol}/{forward.port} to {_label(forward)}"
                    yield warning("port-taken", rule.label, text)


def _takes(forward: PortForward, rule: Rule) -> bool:
    """Return whether the port forward translates some packets that the service was written for."""
    return (
        rule.protocol is forward.protocol
        and any(span.first <= forward.port <= span.last for span in rule.spans)
        and (not rule.interfaces or not forward.interfaces or not set(rule.interfaces).isdisjoint(forward.interfaces))
    )


def _label(forward: PortForward) -> str:
    return f"{Kind.PORT_FORWARD}.{forward.name}"


def _check_families(ruleset: Ruleset) -> Iterator[Finding]:
    """A list that names one family only is often half a thought: the other family is refused."""
    half: list[tuple[Rule, str]] = []
    both = False
    for rule in ruleset.rules():
        far, near = _families(rule.peers), _families(rule.destinations)
        if not far or not near:
            continue
        if not far & near:
            text = f"{rule.label} has IPv{min(far)} on one side and IPv{min(near)} on the other: no packet is for it"
            yield warning("unreachable", rule.label, text)
        elif len(far & near) == 1 and rule.kind is not Kind.PORT_FORWARD:  # one address, hence one family
            half.append((rule, "IPv6" if 4 in far & near else "IPv4"))
        else:
            both = both or not (rule.peers.everyone and rule.destinations.everyone)
    if ruleset.management is not None:
        both = both or len(_families(ruleset.management.peers)) == 2
    missing = {name for _, name in half}
    if len(half) > 1 and len(missing) == 1 and not both:
        text = f"no rule names an {min(missing)} address: where rules have peers, all {min(missing)} is refused"
        yield warning("family-parity", "policy", text)
        return
    for rule, name in half:
        yield warning("family-parity", rule.label, f"{rule.label} has no {name} peer: all {name} is refused there")


def _families(group: PeerGroup) -> frozenset[int]:
    if group.everyone or group.macs or group.names:
        return frozenset((4, 6))
    return frozenset(version for version, prefixes in ((4, group.v4), (6, group.v6)) if prefixes)


def _check_translation(ruleset: Ruleset, own: Collection[Address]) -> Iterator[Finding]:
    for one in ruleset.masquerades:
        label = f"nat.masquerade.{one.name}"
        if one.sources.empty:
            yield warning("no-peers", label, f"{label} has no sources: nothing is translated")
        elif one.sources.v6:
            text = f"{label} translates IPv6, which needs no translation: give the inside a routed prefix"
            yield warning("masquerade-ipv6", label, text)
    for forward in ruleset.port_forwards:
        label, to = _label(forward), forward.to
        if to in own or to.is_loopback or to.is_unspecified or to.is_multicast:
            text = f"{label} leads to {to}, which is no inside host: write a service for what the device itself answers"
            yield warning("forward-to-self", label, text)


def _check_bounds(ruleset: Ruleset) -> Iterator[Finding]:
    limited = [rule.limit for rule in ruleset.rules() if rule.limit is not None]
    most = sum(limit.total_connections or limit.connections or 0 for limit in limited)
    if ruleset.conntrack.max is not None and ruleset.conntrack.max < most:
        text = f"conntrack.max = {ruleset.conntrack.max} is below the {most} connections that limits allow together"
        yield warning("conntrack-small", "conntrack", text)
    totals = [one for one in ruleset.thresholds if one.per is Per.TOTAL]
    for rule in ruleset.services:
        for one in totals:
            rate = rule.limit.new_per_s if rule.limit is not None else None
            if rate is not None and one.count is Count.NEW and rate * one.interval_s > one.high:
                text = (
                    f"{rule.label} allows one source {rate} a second; all together have {one.high} in {one.interval_s}"
                )
                yield warning("threshold-low", rule.label, text)
    management = ruleset.management
    if management is not None and management.egress is not None:
        for one in ruleset.thresholds:
            if one.count is Count.PACKETS:
                text = "a threshold counts every packet, and so the manager's answers: a flood cuts the way out to it"
                yield warning("threshold-manager", management.egress.label, text)


def _check_names(ruleset: Ruleset) -> Iterator[Finding]:
    names = ruleset.dns_names()
    if len(names) > MAX_NAMES:
        yield error(SetBudget.code, "names", f"{len(names)} DNS names are more than the {MAX_NAMES} that are kept up")
    if not names or ruleset.egress_default is EgressDefault.ALLOW:
        return
    for rule in ruleset.egress:
        transport = rule.protocol in (Protocol.UDP, Protocol.TCP)
        if transport and any(span.first <= port <= span.last for span in rule.spans for port in _RESOLVER_PORTS):
            return
    text = f"no egress service reaches a DNS server (port 53 or 853), so {names[0]!r} cannot be resolved"
    yield warning("names-unresolvable", "egress", text)


def _check_reports(ruleset: Ruleset) -> Iterator[Finding]:
    if ruleset.log_per_s:
        return
    if ruleset.mode is Mode.OBSERVE:
        text = 'mode = "observe" with log_per_s = 0: nothing is refused, and nobody is told what would be'
        yield warning("observe-silent", "mode", text)
    for rule in ruleset.rules():
        if rule.observe:
            text = f'{rule.label} has mode = "observe", and log_per_s = 0 keeps its reports back'
            yield warning("observe-silent", rule.label, text)
