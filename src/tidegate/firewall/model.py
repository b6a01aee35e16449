"""What a firewall section means: a typed ruleset, and the verdict it gives on one packet.

Pure. The evaluator is written from the meaning of the policy and not from the compiler's output, so that a test can
hold both, and the kernel, against each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_network,
)

from tidegate.firewall import section as written
from tidegate.firewall.errors import BadPeer, BadPort, UnknownService
from tidegate.firewall.section import Default, EgressDefault, FirewallSection, Forward, Mode, Protocol

Address = IPv4Address | IPv6Address

ND_HOP_LIMIT = 255  # RFC 4861 §11.2: a neighbour message that was routed has less
LINK_LOCAL = IPv6Network("fe80::/10")


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


# What a host needs to hear and to say on an IPv6 link (RFC 4890 §4.4). A host takes no router solicitations.
ND_IN = (Icmp.NEIGHBOUR_SOLICIT, Icmp.NEIGHBOUR_ADVERT, Icmp.ROUTER_ADVERT)
ND_OUT = (Icmp.NEIGHBOUR_SOLICIT, Icmp.NEIGHBOUR_ADVERT, Icmp.ROUTER_SOLICIT)
MLD_OUT = (Icmp.LISTENER_REPORT, Icmp.LISTENER_DONE, Icmp.LISTENER_REPORT_V2)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGroup:
    """A set of addresses as disjoint sorted prefixes; ``everyone`` stands for both whole families."""

    everyone: bool = False
    v4: tuple[IPv4Network, ...] = ()
    v6: tuple[IPv6Network, ...] = ()

    def has(self, address: Address) -> bool:
        """Return whether ``address`` belongs to the group."""
        if self.everyone:
            return True
        if isinstance(address, IPv4Address):
            return any(address in prefix for prefix in self.v4)
        return any(address in prefix for prefix in self.v6)

    def covers(self, other: PeerGroup) -> bool:
        """Return whether every address of ``other`` belongs to this group."""
        if self.everyone:
            return True
        if other.everyone:
            return False
        return all(any(mine.supernet_of(theirs) for mine in self.v4) for theirs in other.v4) and all(
            any(mine.supernet_of(theirs) for mine in self.v6) for theirs in other.v6
        )

    @property
    def empty(self) -> bool:
        """Whether nobody belongs to the group."""
        return not (self.everyone or self.v4 or self.v6)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class PortSpan:
    """Ports ``first`` to ``last``, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Per-source limits; ``None`` means that this one is not set."""

    new_per_s: int | None
    burst: int
    connections: int | None
    sources: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Ports of one protocol, on some interfaces (none named: all), for some peers."""

    name: str
    protocol: Protocol
    spans: tuple[PortSpan, ...]
    interfaces: tuple[str, ...]
    peers: PeerGroup
    threshold: Threshold | None = None

    def is_for(self, packet: Packet, peer: Address) -> bool:
        """Return whether the packet's protocol, port, interface and peer are this service's."""
        return self.is_for_port(packet, packet.port) and self.peers.has(peer)

    def is_for_port(self, packet: Packet, port: int) -> bool:
        """Return whether protocol and interface are this service's, and ``port`` is one of its ports."""
        return (
            packet.protocol == self.protocol
            and any(span.first <= port <= span.last for span in self.spans)
            and (not self.interfaces or packet.interface is None or packet.interface in self.interfaces)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagementPath:
    """The service by which the device is managed, who may always use it, and the way out to the manager."""

    service: Service
    peers: PeerGroup
    egress: Service | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """One policy's meaning, independent of nftables. Services are sorted by name."""

    mode: Mode
    default: Default
    forward: Forward
    management: ManagementPath | None
    services: tuple[Service, ...]
    egress_default: EgressDefault
    egress: tuple[Service, ...]
    ban_max: int
    never: PeerGroup
    ping_per_s: int
    log_group: int
    log_per_s: int
    set_budget: int
    confirm_timeout_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What the evaluator needs to know of a packet. ``port`` is the destination's, ``source_port`` the other."""

    direction: Direction = Direction.IN
    interface: str | None  # None: not known, taken for one that the service is on
    source: Address
    destination: Address
    protocol: Protocol | None = None  # None: neither TCP nor UDP
    port: int = 0
    source_port: int = 0
    icmp: Icmp | None = None
    hop_limit: int = 64
    state: State = State.NEW
    over_threshold: bool = False  # its source has used up every threshold that applies


def plan_ruleset(section: FirewallSection) -> Ruleset:
    """Return the meaning of ``section``.

    Raises ``firewall.policy.peer``, ``firewall.policy.port``, ``firewall.policy.unknown-service``. Does not judge
    whether the policy is a good one: ``checks.check_ruleset`` does.
    """
    services = {name: _plan_service(name, service) for name, service in sorted(section.services.items())}
    egress = {name: _plan_service(name, service) for name, service in sorted(section.egress.services.items())}
    management = None
    if section.management is not None:
        management = ManagementPath(
            service=_named(services, section.management.service, "firewall.services"),
            peers=parse_peers(section.management.peers, "firewall.management"),
            egress=None
            if section.management.egress is None
            else _named(egress, section.management.egress, "firewall.egress.services"),
        )
    return Ruleset(
        mode=section.mode,
        default=section.default,
        forward=section.forward,
        management=management,
        services=tuple(services.values()),
        egress_default=section.egress.default,
        egress=tuple(egress.values()),
        ban_max=section.bans.max,
        never=parse_peers(section.bans.never, "firewall.bans.never"),
        ping_per_s=section.ping_per_s,
        log_group=section.log_group,
        log_per_s=section.log_per_s,
        set_budget=section.set_budget,
        confirm_timeout_s=section.confirm_timeout_s,
    )


def parse_peers(peers: Sequence[str], where: str) -> PeerGroup:
    """Return the addresses that ``peers`` name, or raise ``firewall.policy.peer`` with the place in the policy."""
    v4: list[IPv4Network] = []
    v6: list[IPv6Network] = []
    everyone = False
    for peer in peers:
        if peer == "any":
            everyone = True
            continue
        try:
            prefix = ip_network(peer)  # strict: host bits beside a prefix are more often a slip than a wish
        except ValueError as error:
            raise BadPeer(f"{where}: {peer!r} is no address or network: {error}", where=where, peer=peer) from error
        if "%" in peer:
            raise BadPeer(f"{where}: {peer!r} has a zone; name the interface instead", where=where, peer=peer)
        if isinstance(prefix, IPv4Network):
            v4.append(prefix)
        else:
            v6.append(prefix)
    if everyone:
        return PeerGroup(everyone=True)
    return PeerGroup(v4=tuple(collapse_addresses(v4)), v6=tuple(collapse_addresses(v6)))


def evaluate_packet(ruleset: Ruleset, packet: Packet, *, banned: frozenset[Address] = frozenset()) -> Verdict:
    """Return what the compiled ruleset does with ``packet``.

    Order of duties: bans (never against never-listed, management or loopback sources), loopback, then by mode and
    direction. In observe mode everything passes.
    """
    if ruleset.mode is Mode.OBSERVE:
        return Verdict.ACCEPT
    if packet.direction is Direction.THROUGH:
        if _is_banned(ruleset, packet, banned):
            return Verdict.DROP
        return Verdict.ACCEPT if ruleset.forward is Forward.LEAVE else Verdict.DROP
    if packet.interface == "lo":
        return Verdict.ACCEPT
    if packet.direction is Direction.OUT:
        return _evaluate_out(ruleset, packet)
    if _is_banned(ruleset, packet, banned):
        return Verdict.DROP
    return _evaluate_in(ruleset, packet)


def _is_banned(ruleset: Ruleset, packet: Packet, banned: frozenset[Address]) -> bool:
    management = ruleset.management
    is_manager = management is not None and not management.peers.everyone and management.peers.has(packet.source)
    return packet.source in banned and not is_manager and not ruleset.never.has(packet.source)


def _evaluate_in(ruleset: Ruleset, packet: Packet) -> Verdict:
    management = ruleset.management
    refusal = Verdict.REJECT if ruleset.default is Default.REJECT else Verdict.DROP
    managed = management is not None and (
        management.service.is_for_port(packet, packet.port) and management.peers.has(packet.source)
    )
    if packet.state is State.INVALID:
        return Verdict.DROP
    if _is_neighbour_talk(packet):
        return Verdict.ACCEPT
    if ruleset.mode is Mode.LOCKDOWN:
        from_manager = (
            management is not None
            and management.egress is not None
            and management.egress.is_for_port(packet, packet.source_port)
            and management.egress.peers.has(packet.source)
            and packet.state is State.ESTABLISHED
        )
        about_errors = packet.icmp is not None and packet.state is State.RELATED
        return Verdict.ACCEPT if managed or from_manager or about_errors else Verdict.DROP
    if packet.state in (State.ESTABLISHED, State.RELATED) or managed:
        return Verdict.ACCEPT
    if packet.icmp is Icmp.ECHO_REQUEST and ruleset.ping_per_s:
        return refusal if packet.over_threshold else Verdict.ACCEPT
    for service in ruleset.services:
        if service.is_for(packet, packet.source) and not (packet.over_threshold and service.threshold):
            return Verdict.ACCEPT
    return refusal


def _evaluate_out(ruleset: Ruleset, packet: Packet) -> Verdict:
    if ruleset.mode is not Mode.LOCKDOWN and ruleset.egress_default is EgressDefault.ALLOW:
        return Verdict.ACCEPT
    if packet.icmp in ND_OUT or packet.icmp in MLD_OUT:
        return Verdict.ACCEPT
    if ruleset.mode is Mode.LOCKDOWN:
        management = ruleset.management
        answers = management is not None and (
            management.service.is_for_port(packet, packet.source_port) and management.peers.has(packet.destination)
        )
        calls = (
            management is not None
            and management.egress is not None
            and management.egress.is_for(packet, packet.destination)
        )
        about_errors = packet.icmp is not None and packet.state is State.RELATED
        return Verdict.ACCEPT if answers or calls or about_errors else Verdict.REJECT
    if packet.state in (State.ESTABLISHED, State.RELATED):
        return Verdict.ACCEPT
    allowed = any(service.is_for(packet, packet.destination) for service in ruleset.egress)
    return Verdict.ACCEPT if allowed else Verdict.REJECT


def _is_neighbour_talk(packet: Packet) -> bool:
    """IPv6 breaks without these: they are accepted in every mode, but never from beyond the link."""
    if packet.icmp in ND_IN:
        return packet.hop_limit == ND_HOP_LIMIT
    return packet.icmp is Icmp.LISTENER_QUERY and packet.source in LINK_LOCAL


def _plan_service(name: str, service: written.Service | written.EgressService) -> Service:
    limit = service.limit if isinstance(service, written.Service) else None
    threshold = None
    if limit is not None and (limit.new_per_s is not None or limit.connections is not None):
        threshold = Threshold(
            new_per_s=limit.new_per_s,
            burst=limit.burst or limit.new_per_s or 1,
            connections=limit.connections,
            sources=limit.sources,
        )
    return Service(
        name=name,
        protocol=service.protocol,
        spans=_plan_spans(name, service.ports),
        interfaces=tuple(sorted(set(service.interfaces))),
        peers=parse_peers(service.peers, f"service {name}"),
        threshold=threshold,
    )


def _plan_spans(name: str, ports: Sequence[int | str]) -> tuple[PortSpan, ...]:
    """Return disjoint rising spans; neighbours and overlaps are merged."""
    spans = []
    for port in ports:
        first, last = (port, port) if isinstance(port, int) else (int(part) for part in port.split("-"))
        if not 1 <= first <= last <= 65535:
            raise BadPort(f"service {name}: {port!r} is no port or rising range", service=name, port=str(port))
        spans.append(PortSpan(first=first, last=last))
    merged: list[PortSpan] = []
    for span in sorted(spans):
        if merged and span.first <= merged[-1].last + 1:
            merged[-1] = PortSpan(first=merged[-1].first, last=max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return tuple(merged)


def _named(services: dict[str, Service], name: str, where: str) -> Service:
    if name not in services:
        raise UnknownService(f"[firewall.management] names {name!r}, which [{where}] does not define", name=name)
    return services[name]
