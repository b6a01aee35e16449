"""What a firewall section means: a typed ruleset, independent of nftables. Pure.

``plan_ruleset`` is the only way from what was written to what is meant; ``evaluate`` says what the meaning does with a
packet, ``compile`` says it to the kernel.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tidegate.firewall import section as written
from tidegate.firewall.blocks import log_words
from tidegate.firewall.errors import BadPeer, BadPort, BadRule, UnknownService, UnknownZone
from tidegate.firewall.fields import PlannedField, plan_fields
from tidegate.firewall.link import LinkPlan, plan_links
from tidegate.firewall.peers import Address, Network, PeerGroup, PeerReader, Resolved, parse_one_address, parse_peers
from tidegate.firewall.section import (
    Conntrack,
    Count,
    Default,
    EgressDefault,
    FirewallSection,
    Forward,
    Mode,
    Per,
    Protocol,
    RuleMode,
    Tamper,
)

__all__ = ["Address", "Network", "PeerGroup", "Resolved", "parse_peers"]


class Verdict(StrEnum):
    """What happens to a packet."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"


class Direction(StrEnum):
    """Which way a packet goes, seen from the device."""

    IN = "in"
    OUT = "out"
    THROUGH = "through"


class State(StrEnum):
    """What connection tracking says of a packet."""

    NEW = "new"
    ESTABLISHED = "established"
    RELATED = "related"
    INVALID = "invalid"
    UNTRACKED = "untracked"


class Icmp(StrEnum):
    """The ICMP messages that are told apart; the value is nft's name for the type."""

    ECHO_REQUEST = "echo-request"
    NEIGHBOUR_SOLICIT = "nd-neighbor-solicit"
    NEIGHBOUR_ADVERT = "nd-neighbor-advert"
    ROUTER_SOLICIT = "nd-router-solicit"
    ROUTER_ADVERT = "nd-router-advert"
    LISTENER_QUERY = "mld-listener-query"
    LISTENER_REPORT = "mld-listener-report"
    LISTENER_DONE = "mld-listener-done"
    LISTENER_REPORT_V2 = "mld2-listener-report"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PortSpan:
    """Ports ``first`` to ``last``, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """Limits of one rule; ``None`` means that this one is not set. All but ``total_connections`` are per source."""

    new_per_s: int | None
    burst: int
    connections: int | None
    total_connections: int | None
    sources: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Water marks over an interval; ``low`` equals ``high`` where there is no hysteresis."""

    per: Per
    count: Count
    interval_s: int
    high: int
    low: int
    sources: int
    prefix_v4: int
    prefix_v6: int


EVERYONE = PeerGroup(everyone=True)


class Kind(StrEnum):
    """Which list of the policy a rule stands in; the value is how messages and comments name it."""

    SERVICE = "services"
    EGRESS = "egress"
    ROUTE = "routes"
    PORT_FORWARD = "port-forwards"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What one rule allows. No interfaces: all. ``peers`` are the far side: sources, or for egress destinations."""

    kind: Kind
    name: str
    protocol: Protocol
    spans: tuple[PortSpan, ...] = ()  # empty for protocols without ports
    interfaces: tuple[str, ...] = ()  # where it comes in; for egress, where it goes out
    out_interfaces: tuple[str, ...] = ()  # routes: where it goes out
    peers: PeerGroup
    destinations: PeerGroup = EVERYONE  # routes
    limit: Limit | None = None
    thresholds: tuple[Threshold, ...] = ()
    fields: str | None = None
    syn_proxy: bool = False
    observe: bool = False
    kept: bool = False  # stays open in lockdown
    translated: bool = False  # only connections whose destination was translated (port forwards)

    @property
    def label(self) -> str:
        """The rule's name in messages, comments and answers: ``services.web``."""
        return f"{self.kind}.{self.name}"

    @property
    def is_limited(self) -> bool:
        """Whether a packet that the rule is for may still be over a limit or threshold."""
        return self.limit is not None or bool(self.thresholds)


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementPath:
    """The service by which the device is managed, who may always use it, and the way out to the manager."""

    service: Rule
    peers: PeerGroup
    egress: Rule | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Masquerade:
    """Sources that leave by these interfaces under the device's own address."""

    name: str
    sources: PeerGroup
    interfaces: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PortForward:
    """One port on these interfaces whose connections go to ``to`` and ``to_port``."""

    name: str
    protocol: Protocol
    port: int
    interfaces: tuple[str, ...]
    to: Address
    to_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """One policy's meaning. Rules of each kind are sorted by name."""

    mode: Mode
    default: Default
    forward: Forward
    tamper: Tamper
    management: ManagementPath | None
    services: tuple[Rule, ...]
    egress_default: EgressDefault
    egress: tuple[Rule, ...]
    routes: tuple[Rule, ...]  # port forwards' own routes included
    masquerades: tuple[Masquerade, ...]
    port_forwards: tuple[PortForward, ...]
    thresholds: tuple[Threshold, ...]
    fields: tuple[PlannedField, ...]
    links: tuple[LinkPlan, ...]
    conntrack: Conntrack
    ban_max: int
    never: PeerGroup
    ping_per_s: int
    log_group: int
    log_per_s: int
    set_budget: int
    confirm_timeout_s: int

    def rules(self) -> tuple[Rule, ...]:
        """Return every rule of every kind."""
        return (*self.services, *self.egress, *self.routes)

    def dns_names(self) -> tuple[str, ...]:
        """Return every DNS name that some rule means, sorted."""
        groups = [group for rule in self.rules() for group in (rule.peers, rule.destinations)]
        return tuple(sorted({name for group in groups for name in group.names}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What the evaluator needs to know of a packet. ``port`` is the destination's, ``source_port`` the other.

    A port forward's packet is described as it is after the translation, with ``translated``.
    """

    direction: Direction = Direction.IN
    interface: str | None  # where it came in, or goes out (OUT); None: not known, taken for one that a rule is on
    out_interface: str | None = None  # THROUGH
    source: Address
    destination: Address
    mac: str | None = None  # the sender's on the link; None: not known
    protocol: Protocol | None = None  # None: none that a rule can name, or an ICMP message other than a ping
    port: int = 0
    source_port: int = 0
    icmp: Icmp | None = None
    hop_limit: int = 64
    state: State = State.NEW
    translated: bool = False
    over_threshold: bool = False  # its source has used up every limit and threshold that applies


def plan_ruleset(section: FirewallSection) -> Ruleset:
    """Return the meaning of ``section``.

    Raises ``firewall.policy.peer``, ``.port``, ``.rule``, ``.zone``, ``.field``, ``.link``, ``.unknown-service``. Does
    not judge whether the policy is a good one: ``checks.check_ruleset`` does.
    """
    planner = _Planner(section)
    services = {name: planner.plan_service(name, rule) for name, rule in sorted(section.services.items())}
    egress = {name: planner.plan_egress(name, rule) for name, rule in sorted(section.egress.services.items())}
    routes = [planner.plan_route(name, rule) for name, rule in sorted(section.routes.items())]
    forwards = [planner.plan_forward(name, one) for name, one in sorted(section.nat.port_forwards.items())]
    return Ruleset(
        mode=section.mode,
        default=section.default,
        forward=section.forward,
        tamper=section.tamper,
        management=planner.plan_management(services, egress),
        services=tuple(services.values()),
        egress_default=section.egress.default,
        egress=tuple(egress.values()),
        routes=(*routes, *(route for _, route in forwards)),
        masquerades=tuple(planner.plan_masquerade(name, one) for name, one in sorted(section.nat.masquerade.items())),
        port_forwards=tuple(forward for forward, _ in forwards),
        thresholds=planner.plan_thresholds("firewall.thresholds", section.thresholds, (Per.SOURCE, Per.TOTAL)),
        fields=plan_fields(section.fields),
        links=plan_links(
            {name: (zone.interfaces, section.link.get(name)) for name, zone in section.zones.items()},
            observe=section.mode is Mode.OBSERVE,
            log=log_words(section.log_per_s, section.log_group, "tidegate-link "),
        ),
        conntrack=section.conntrack,
        ban_max=section.bans.max,
        never=planner.plan_addresses(section.bans.never, "firewall.bans.never"),
        ping_per_s=section.ping_per_s,
        log_group=section.log_group,
        log_per_s=section.log_per_s,
        set_budget=section.set_budget,
        confirm_timeout_s=section.confirm_timeout_s,
    )


class _Planner:
    """Plans rules within the names that one section defines."""

    def __init__(self, section: FirewallSection) -> None:
        self._section = section
        self._zones: Mapping[str, tuple[str, ...]] = {
            name: tuple(sorted(set(zone.interfaces))) for name, zone in section.zones.items()
        }
        self._reader = PeerReader(section.peers)
        self._check_zones()
        for name, peers in sorted(section.peers.items()):  # those that nothing uses, too
            self._reader.read(peers, f"peers.{name}")

    def plan_service(self, name: str, rule: written.Service) -> Rule:
        where = f"service {name}"
        if rule.syn_proxy and rule.protocol is not Protocol.TCP:
            raise BadRule(f"{where}: syn_proxy is for TCP", where=where)
        return Rule(
            kind=Kind.SERVICE,
            name=name,
            protocol=rule.protocol,
            spans=_plan_spans(where, rule.protocol, rule.ports),
            interfaces=self._interfaces(where, rule.zones, rule.interfaces),
            peers=self._peers(rule.peers, where),
            limit=_plan_limit(rule.limit),
            thresholds=self.plan_thresholds(f"{where}.thresholds", rule.thresholds, (Per.SOURCE, Per.SERVICE)),
            fields=self._fields(where, rule.fields, rule.protocol),
            syn_proxy=rule.syn_proxy,
            observe=rule.mode is RuleMode.OBSERVE,
            kept=rule.lockdown,
        )

    def plan_egress(self, name: str, rule: written.EgressService) -> Rule:
        where = f"egress service {name}"
        return Rule(
            kind=Kind.EGRESS,
            name=name,
            protocol=rule.protocol,
            spans=_plan_spans(where, rule.protocol, rule.ports),
            interfaces=self._interfaces(where, rule.zones, rule.interfaces),
            peers=self._without_macs(self._peers(rule.peers, where), where),
            fields=self._fields(where, rule.fields, rule.protocol),
            observe=rule.mode is RuleMode.OBSERVE,
            kept=rule.lockdown,
        )

    def plan_route(self, name: str, rule: written.Route) -> Rule:
        where = f"route {name}"
        self._refuse_left_forwarding(where)
        return Rule(
            kind=Kind.ROUTE,
            name=name,
            protocol=rule.protocol,
            spans=_plan_spans(where, rule.protocol, rule.ports),
            interfaces=self._interfaces(where, rule.from_zones, ()),
            out_interfaces=self._interfaces(where, rule.to_zones, ()),
            peers=self._peers(rule.sources, where),
            destinations=self._without_macs(self._peers(rule.destinations, where), where),
            limit=_plan_limit(rule.limit),
            thresholds=self.plan_thresholds(f"{where}.thresholds", rule.thresholds, (Per.SOURCE, Per.SERVICE)),
            fields=self._fields(where, rule.fields, rule.protocol),
            observe=rule.mode is RuleMode.OBSERVE,
            kept=rule.lockdown,
        )

    def plan_forward(self, name: str, forward: written.PortForward) -> tuple[PortForward, Rule]:
        """Return the translation and the route that lets its connections through."""
        where = f"port forward {name}"
        self._refuse_left_forwarding(where)
        if not forward.protocol.has_ports:
            raise BadRule(f"{where}: {forward.protocol} has no ports", where=where)
        to = parse_one_address(forward.to, where)
        to_port = forward.to_port or forward.port
        interfaces = self._interfaces(where, forward.zones, ())
        translation = PortForward(
            name=name, protocol=forward.protocol, port=forward.port, interfaces=interfaces, to=to, to_port=to_port
        )
        route = Rule(
            kind=Kind.PORT_FORWARD,
            name=name,
            protocol=forward.protocol,
            spans=(PortSpan(first=to_port, last=to_port),),
            interfaces=interfaces,
            peers=self._peers(forward.peers, where),
            destinations=parse_peers((forward.to,), where),
            translated=True,
        )
        return translation, route

    def plan_masquerade(self, name: str, one: written.Masquerade) -> Masquerade:
        where = f"masquerade {name}"
        return Masquerade(
            name=name,
            sources=self.plan_addresses(one.sources, where),
            interfaces=self._interfaces(where, one.zones, ()),
        )

    def plan_management(self, services: Mapping[str, Rule], egress: Mapping[str, Rule]) -> ManagementPath | None:
        management = self._section.management
        if management is None:
            return None
        service = _named(services, management.service, "firewall.services")
        if not service.protocol.has_ports:
            raise BadRule(f"[firewall.management] is {service.protocol}, which nobody manages by", where="management")
        return ManagementPath(
            service=service,
            peers=self.plan_addresses(management.peers, "firewall.management"),
            egress=None if management.egress is None else _named(egress, management.egress, "firewall.egress.services"),
        )

    def plan_addresses(self, peers: Sequence[str], where: str) -> PeerGroup:
        """Return a group of addresses alone: where a name that does not resolve, or a forged MAC, would be a hole."""
        group = self._peers(peers, where)
        if not group.is_static:
            named = ", ".join((*group.macs, *group.names))
            raise BadPeer(f"{where}: only addresses and networks can stand here, not {named}", where=where)
        return group

    def plan_thresholds(
        self, where: str, thresholds: Iterable[written.Threshold], allowed: tuple[Per, ...]
    ) -> tuple[Threshold, ...]:
        return tuple(_plan_threshold(f"{where}[{place}]", one, allowed) for place, one in enumerate(thresholds))

    def _peers(self, peers: Sequence[str], where: str) -> PeerGroup:
        return self._reader.read(peers, where)

    def _without_macs(self, group: PeerGroup, where: str) -> PeerGroup:
        if group.macs:
            raise BadPeer(f"{where}: a MAC address says who sent a packet, not where it goes", where=where)
        return group

    def _interfaces(self, where: str, zones: Sequence[str], interfaces: Sequence[str]) -> tuple[str, ...]:
        names = set(interfaces)
        for zone in zones:
            if zone not in self._zones:
                raise UnknownZone(f"{where}: there is no zone {zone!r}{_near(zone, self._zones)}", zone=zone)
            names.update(self._zones[zone])
        return tuple(sorted(names))

    def _check_zones(self) -> None:
        owner: dict[str, str] = {}
        for zone, interfaces in self._zones.items():
            for interface in interfaces:
                if owner.setdefault(interface, zone) != zone:
                    raise UnknownZone(f"{interface} is in zone {owner[interface]} and in zone {zone}", zone=zone)
        for name in self._section.link:
            if name not in self._zones:
                raise UnknownZone(f"firewall.link.{name}: there is no such zone{_near(name, self._zones)}", zone=name)

    def _fields(self, where: str, name: str | None, protocol: Protocol) -> str | None:
        if name is None:
            return None
        if name not in self._section.fields:
            near = _near(name, self._section.fields)
            raise BadRule(f"{where}: [firewall.fields] defines no {name!r}{near}", where=where)
        if protocol not in (Protocol.TCP, Protocol.UDP):
            raise BadRule(f"{where}: fields are looked at in TCP and UDP only", where=where)
        return name

    def _refuse_left_forwarding(self, where: str) -> None:
        if self._section.forward is Forward.LEAVE:
            raise BadRule(f'{where}: forward = "leave" gives all forwarding to another table', where=where)


def _plan_limit(limit: written.Limit | None) -> Limit | None:
    if limit is None or (limit.new_per_s, limit.connections, limit.total_connections) == (None, None, None):
        return None
    return Limit(
        new_per_s=limit.new_per_s,
        burst=limit.burst or limit.new_per_s or 1,
        connections=limit.connections,
        total_connections=limit.total_connections,
        sources=limit.sources,
    )


def _plan_threshold(where: str, one: written.Threshold, allowed: tuple[Per, ...]) -> Threshold:
    low = one.high if one.low is None else one.low
    if low > one.high:
        raise BadRule(f"{where}: the low water mark {low} is above the high one {one.high}", where=where)
    if one.per not in allowed:
        raise BadRule(f"{where}: a threshold here is per {' or '.join(allowed)}, not per {one.per}", where=where)
    return Threshold(
        per=one.per,
        count=one.count,
        interval_s=one.interval_s,
        high=one.high,
        low=low,
        sources=one.sources,
        prefix_v4=one.prefix_v4,
        prefix_v6=one.prefix_v6,
    )


def _plan_spans(where: str, protocol: Protocol, ports: Sequence[int | str]) -> tuple[PortSpan, ...]:
    """Return disjoint rising spans; neighbours and overlaps are merged."""
    if bool(ports) is not protocol.has_ports:
        text = f"{where}: {protocol} {'needs ports' if protocol.has_ports else 'has no ports'}"
        raise BadPort(text, service=where, port="")
    spans = []
    for port in ports:
        first, last = (port, port) if isinstance(port, int) else (int(part) for part in port.split("-"))
        if not 1 <= first <= last <= 65535:
            near = f"; did you mean '{last}-{first}'?" if 1 <= last < first <= 65535 else ""
            raise BadPort(f"{where}: {port!r} is no port or rising range{near}", service=where, port=str(port))
        spans.append(PortSpan(first=first, last=last))
    merged: list[PortSpan] = []
    for span in sorted(spans):
        if merged and span.first <= merged[-1].last + 1:
            merged[-1] = PortSpan(first=merged[-1].first, last=max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return tuple(merged)


def _named(rules: Mapping[str, Rule], name: str, where: str) -> Rule:
    if name not in rules:
        near = _near(name, rules)
        raise UnknownService(f"[firewall.management] names {name!r}, which [{where}] does not define{near}", name=name)
    return rules[name]


def _near(name: str, names: Iterable[str]) -> str:
    """Return a hint at the nearest of ``names``."""
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
