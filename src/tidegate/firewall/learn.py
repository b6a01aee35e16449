"""From the flows that were seen to the smallest policy that allows them, with the evidence for each rule. Pure.

Smallest means: every flow that somebody answered is allowed by exactly one rule, and no rule allows an address, a port
or a pair of addresses that was not seen (unless ``Wishes.widen_v4`` and ``widen_v6`` ask for whole prefixes). What
nobody answered is not proposed but listed. ``proposal`` writes the result as a policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import collapse_addresses, ip_network

from tidegate.firewall.model import Address, Direction
from tidegate.firewall.section import MAX_PEERS, MAX_SERVICES, Protocol

MAX_KEYS = 8192  # different flows that are remembered: 17 MB with what a proposal makes of them (measured)
MAX_LISTED = 32  # peers that a rule names one by one before prefixes are worth asking for
EPHEMERAL_FIRST = 32_768  # net.ipv4.ip_local_port_range, Linux's default
PRIVILEGED_END = 1024  # below it, ports are no client's
SSH_PORT = 22
MAX_PORTS = 256  # of one rule (section.Ports)
_DHCP = {68: 67, 546: 547}  # client and server ports: RFC 2131 §4.1, RFC 8415 §7.2
_LIMITED_BROADCAST = "255.255.255.255"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One connection, or one exchange of datagrams; ``source`` is who began it. Times in seconds since the epoch."""

    direction: Direction
    protocol: Protocol | None  # None: none that a rule can name
    source: Address
    destination: Address
    port: int = 0  # of the destination
    source_port: int = 0
    first_s: float
    last_s: float
    size_bytes: int = 0  # 0: not counted
    is_answered: bool
    is_translated: bool = False  # its destination was changed on the way
    is_late: bool = False  # it was running before the watch began, so who began it is a guess


class Why(StrEnum):
    """Why a flow is not proposed."""

    UNANSWERED = "nobody answered"
    MULTICAST = "sent to a group that this device does not talk to"
    LATE_ANSWER = "a late answer to a call of this device"
    PROTOCOL = "of a protocol that no rule can name"
    TRANSLATED = "its destination was translated: write a port forward"
    TOO_MANY = "more rules or peers than a policy can hold: widen them, or learn for a shorter time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The remote shell in which learning was asked for: the one manager that is known."""

    client: Address
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the proposal may do beyond what was seen: prefix lengths into which more than ``MAX_LISTED`` peers of a rule
    are gathered, and the interface that its rules are for."""

    widen_v4: int | None = None
    widen_v6: int | None = None
    interface: str | None = None
    names: Mapping[Address, str] = field(default_factory=dict)  # DNS names of destinations, to be written instead
    session: Session | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen of one rule or of one flow."""

    first_s: float
    last_s: float
    connections: int
    size_bytes: int
    example: str
    is_guess: bool = False  # all of it was running before the watch began: which side is the server is a guess

    @property
    def is_once(self) -> bool:
        """Whether it was seen a single time: an accident, or the yearly maintenance."""
        return self.connections == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """One rule: ``far`` are its peers (sources, or destinations of egress), ``near`` a route's destinations."""

    direction: Direction
    name: str
    protocol: Protocol
    ports: tuple[int, ...]
    far: tuple[str, ...]
    near: tuple[str, ...] = ()
    seen: int  # addresses on the far side
    is_wider: bool = False  # its prefixes hold addresses that were not seen
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Aside:
    """Flows that are not proposed, of one kind."""

    why: Why
    label: str  # "in udp/1900 from 192.0.2.7"
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The rules, and what was left out. ``answers_ping``: echo requests came in and were answered."""

    rules: tuple[Proposed, ...]
    aside: tuple[Aside, ...]
    answers_ping: bool
    manager: Proposed | None  # the service of the session that asks, else SSH: the likely management path
    wishes: Wishes
    forgotten: int  # flows for which there was no room


_Key = tuple[Direction, Protocol | None, int, Address, Address, bool]


class Learner:
    """Counts flows, at most ``MAX_KEYS`` different ones; what comes beyond that is counted as forgotten.

    Of those that nobody answered, the oldest makes room for one that was answered: a scan hides no service.
    """

    def __init__(self, broadcasts: Collection[Address] = ()) -> None:
        """``broadcasts``: the broadcast addresses of this device's networks."""
        self._broadcasts = frozenset(broadcasts)
        self._tallies: dict[_Key, _Tally] = {}
        self._silent: dict[_Key, None] = {}  # those that nobody answered, oldest first
        self.forgotten = 0
        self.flows = 0

    def add(self, flow: Flow) -> None:
        """Count one flow."""
        self.flows += 1
        flow = _orient(flow)
        key = (flow.direction, flow.protocol, flow.port, flow.source, flow.destination, flow.is_translated)
        tally = self._tallies.get(key)
        if tally is None:
            if len(self._tallies) >= MAX_KEYS:
                self.forgotten += 1
                if not (flow.is_answered and self._silent):
                    return
                oldest = next(iter(self._silent))
                del self._silent[oldest], self._tallies[oldest]
            tally = self._tallies[key] = _Tally(first_s=flow.first_s, last_s=flow.last_s)
        tally.add(flow)
        if tally.answered:
            self._silent.pop(key, None)
        else:
            self._silent[key] = None

    def propose(self, wishes: Wishes | None = None) -> Proposal:
        """Return the smallest policy for what was seen so far."""
        wishes = wishes or Wishes()
        wanted: dict[_Key, _Tally] = {}
        aside: list[tuple[Why, _Key, _Tally]] = []
        spoken = {(key[1], key[2]) for key in self._tallies if key[0] is Direction.OUT}
        for key, tally in self._tallies.items():
            why = self._judge(key, tally, spoken)
            if why is None:
                wanted[key] = tally
            else:
                aside.append((why, key, tally))
        pings = {key for key in wanted if key[0] is Direction.IN and key[1] is Protocol.PING}
        planned = _plan_rules({key: one for key, one in wanted.items() if key not in pings}, wishes)
        kept, too_many = _bound(planned)
        rules = _name(kept)
        path = (Direction.IN, Protocol.TCP, (_managing_port(wishes),))
        managing = [one for one in rules if (one.direction, one.protocol, one.ports) == path]
        return Proposal(
            rules=tuple(rules),
            aside=tuple(sorted((*_gather_aside(aside), *too_many), key=lambda one: (one.why, one.label))),
            answers_ping=bool(pings),
            manager=managing[0] if managing else None,
            wishes=wishes,
            forgotten=self.forgotten,
        )

    def wanted(self) -> Iterator[Flow]:
        """Yield one flow for each that the proposal has to allow."""
        spoken = {(key[1], key[2]) for key in self._tallies if key[0] is Direction.OUT}
        for key, tally in self._tallies.items():
            if self._judge(key, tally, spoken) is None:
                yield tally.example(key)

    def _judge(self, key: _Key, tally: _Tally, spoken: set[tuple[Protocol | None, int]]) -> Why | None:
        """Return why a flow is not proposed; None for one that is."""
        direction, protocol, port, source, destination, is_translated = key
        if protocol is None:
            return Why.PROTOCOL
        if is_translated:
            return Why.TRANSLATED
        if is_group(destination) or destination in self._broadcasts:
            ours = direction is not Direction.IN or (protocol, _sent_as(protocol, port)) in spoken
            return None if ours or _is_dhcp_answer(key, spoken) else Why.MULTICAST
        if tally.answered or _is_dhcp_answer(key, spoken):
            return None
        back = (_opposite(direction), protocol, tally.source_port, destination, source, False)
        if port >= EPHEMERAL_FIRST and protocol is Protocol.UDP and back in self._tallies:
            return Why.LATE_ANSWER
        return Why.UNANSWERED


@dataclass(slots=True)
class _Tally:
    """How often and how much of one kind of flow."""

    first_s: float
    last_s: float
    connections: int = 0
    answered: int = 0
    size_bytes: int = 0
    source_port: int = 0
    late: int = 0

    def add(self, flow: Flow) -> None:
        self.first_s, self.last_s = min(self.first_s, flow.first_s), max(self.last_s, flow.last_s)
        self.connections += 1
        self.answered += flow.is_answered
        self.size_bytes += flow.size_bytes
        self.source_port = flow.source_port
        self.late += flow.is_late

    def example(self, key: _Key) -> Flow:
        direction, protocol, port, source, destination, is_translated = key
        return Flow(
            direction=direction,
            protocol=protocol,
            port=port,
            source=source,
            destination=destination,
            first_s=self.first_s,
            last_s=self.last_s,
            is_answered=self.answered > 0,
            is_translated=is_translated,
        )


def _orient(flow: Flow) -> Flow:
    """Return the flow seen from who began it, as far as its ports tell that of one that was running already."""
    if not (flow.is_late and flow.source_port and _rank(flow.source_port) < _rank(flow.port)):
        return flow
    return replace(
        flow,
        direction=_opposite(flow.direction),
        source=flow.destination,
        destination=flow.source,
        port=flow.source_port,
        source_port=flow.port,
    )


def _rank(port: int) -> int:
    """Return how little a port looks like a server's: privileged or known, other, handed out by Linux."""
    if port < PRIVILEGED_END or port in _NAMES:
        return 0
    return 1 if port < EPHEMERAL_FIRST else 2


def _managing_port(wishes: Wishes) -> int:
    return SSH_PORT if wishes.session is None else wishes.session.port


def _sent_as(protocol: Protocol | None, port: int) -> int:
    """Return the port to which a device sends that takes part in what others send to ``port``.

    Every host on a link hears clients ask for a DHCP server; who answers them is one, who asks, too, is not.
    """
    servers = {server: client for client, server in _DHCP.items()}
    return servers.get(port, port) if protocol is Protocol.UDP else port


def _is_dhcp_answer(key: _Key, spoken: Collection[tuple[Protocol | None, int]]) -> bool:
    """A DHCP server answers to a port, not to a connection: the kernel takes it for a flow of its own."""
    direction, protocol, port, *_ = key
    is_client = direction is Direction.IN and protocol is Protocol.UDP and port in _DHCP
    return is_client and (protocol, _DHCP[port]) in spoken


def _opposite(direction: Direction) -> Direction:
    return {Direction.IN: Direction.OUT, Direction.OUT: Direction.IN}.get(direction, direction)


def is_group(address: Address) -> bool:
    """Return whether packets to ``address`` are for a group of hosts."""
    return address.is_multicast or str(address) == _LIMITED_BROADCAST


@dataclass(slots=True)
class _Draft:
    """A rule without its name."""

    direction: Direction
    protocol: Protocol
    ports: set[int]
    far: frozenset[Address]
    near: frozenset[Address]
    tallies: list[tuple[_Key, _Tally]]


def _plan_rules(wanted: Mapping[_Key, _Tally], wishes: Wishes) -> list[Proposed]:
    """Return rules that allow each of ``wanted`` once: peers gathered by port, then ports by equal peers."""
    by_port: dict[tuple[Direction, Protocol, int], list[tuple[_Key, _Tally]]] = {}
    for key, tally in wanted.items():
        direction, protocol, port, *_ = key
        if protocol is not None:
            by_port.setdefault((direction, protocol, port), []).append((key, tally))
    drafts: dict[tuple[object, ...], _Draft] = {}
    every: list[_Draft] = []
    for (direction, protocol, port), found in sorted(by_port.items(), key=lambda item: item[0]):
        for far, near, tallies in _pair(direction, found):
            # The likely management service stays apart: [firewall.management] names it.
            same = (direction, protocol, far, near, port == _managing_port(wishes))
            draft = drafts.get(same)
            if draft is None or len(draft.ports) >= MAX_PORTS:
                draft = drafts[same] = _Draft(direction, protocol, set(), far, near, [])
                every.append(draft)
            draft.ports.add(port)
            draft.tallies += tallies
    return [_finish(draft, wishes) for draft in every]


def _bound(rules: Sequence[Proposed]) -> tuple[list[Proposed], list[Aside]]:
    """Return the rules that a policy can hold, the most used of each direction, and the others."""
    kept: set[int] = set()
    aside: list[Aside] = []
    counts: dict[Direction, int] = {}
    for number, rule in sorted(enumerate(rules), key=lambda one: -one[1].evidence.connections):
        counts[rule.direction] = counts.get(rule.direction, 0) + 1
        if max(len(rule.far), len(rule.near)) <= MAX_PEERS and counts[rule.direction] <= MAX_SERVICES:
            kept.add(number)
        else:
            ports = f"/{rule.ports[0]}" if rule.ports else ""
            label = f"{rule.direction} {rule.protocol}{ports}, {rule.seen} addresses"
            aside.append(Aside(why=Why.TOO_MANY, label=label, evidence=rule.evidence))
    return [rule for number, rule in enumerate(rules) if number in kept], aside


def _pair(
    direction: Direction, found: Sequence[tuple[_Key, _Tally]]
) -> Iterator[tuple[frozenset[Address], frozenset[Address], list[tuple[_Key, _Tally]]]]:
    """Yield far and near sides whose every pair was seen: of a route, those sources together that go to the same."""
    if direction is not Direction.THROUGH:
        far = frozenset(key[4] if direction is Direction.OUT else key[3] for key, _ in found)
        yield far, frozenset(), list(found)
        return
    reached: dict[Address, set[Address]] = {}
    for key, _ in found:
        reached.setdefault(key[3], set()).add(key[4])
    together: dict[frozenset[Address], set[Address]] = {}
    for source, destinations in reached.items():
        together.setdefault(frozenset(destinations), set()).add(source)
    for near, sources in together.items():
        yield frozenset(sources), near, [one for one in found if one[0][3] in sources]


def _finish(draft: _Draft, wishes: Wishes) -> Proposed:
    names = wishes.names if draft.direction is Direction.OUT else {}
    far, is_wider = _encode_peers(draft.far, wishes, names)
    near, near_wider = _encode_peers(draft.near, wishes, {})
    return Proposed(
        direction=draft.direction,
        name="",
        protocol=draft.protocol,
        ports=tuple(sorted(draft.ports)) if draft.protocol.has_ports else (),
        far=far,
        near=near,
        seen=len(draft.far),
        is_wider=is_wider or near_wider,
        evidence=_evidence(draft.tallies),
    )


def _encode_peers(
    addresses: Iterable[Address], wishes: Wishes, names: Mapping[Address, str]
) -> tuple[tuple[str, ...], bool]:
    """Return the peers as a policy writes them, and whether they are more than was seen."""
    known = sorted({names[address] for address in addresses if address in names})
    plain = [address for address in addresses if address not in names]
    is_wider = False
    written: list[str] = []
    for version, widen in ((4, wishes.widen_v4), (6, wishes.widen_v6)):
        mine = [address for address in plain if address.version == version]
        if widen is not None and len(mine) > MAX_LISTED:
            prefixes = [ip_network(f"{address}/{widen}", strict=False) for address in mine]
            is_wider = True
        else:
            prefixes = [ip_network(address) for address in mine]
        written += [_spell(str(prefix)) for prefix in collapse_addresses(prefixes)]  # type: ignore[type-var]
    return (*written, *known), is_wider


def _spell(prefix: str) -> str:
    address, _, length = prefix.partition("/")
    return address if length == ("128" if ":" in address else "32") else prefix


def _evidence(tallies: Sequence[tuple[_Key, _Tally]]) -> Evidence:
    key, _ = max(tallies, key=lambda one: (one[1].connections, str(one[0][3]), str(one[0][4])))
    return Evidence(
        first_s=min(tally.first_s for _, tally in tallies),
        last_s=max(tally.last_s for _, tally in tallies),
        connections=sum(tally.connections for _, tally in tallies),
        size_bytes=sum(tally.size_bytes for _, tally in tallies),
        is_guess=all(tally.late == tally.connections for _, tally in tallies),
        example=f"{key[3]} -> {key[4]}" + (f" {key[1].value}/{key[2]}" if key[1] and key[1].has_ports else ""),
    )


def _gather_aside(aside: Iterable[tuple[Why, _Key, _Tally]]) -> Iterator[Aside]:
    """Yield one entry for each reason, port and far side."""
    gathered: dict[tuple[Why, str], list[tuple[_Key, _Tally]]] = {}
    for why, key, tally in aside:
        direction, protocol, port, source, destination, _ = key
        name = "other" if protocol is None else protocol.value
        port_words = f"/{port}" if protocol is not None and protocol.has_ports else ""
        ends = f"from {source}" if direction is not Direction.OUT else f"to {destination}"
        ends += f" to {destination}" if direction is Direction.THROUGH or is_group(destination) else ""
        gathered.setdefault((why, f"{direction} {name}{port_words} {ends}"), []).append((key, tally))
    for (why, label), tallies in gathered.items():
        yield Aside(why=why, label=label, evidence=_evidence(tallies))


# What rules are called after; the names that IANA has for these ports, or the field's.
_NAMES = {
    20: "ftp-data", 21: "ftp", 22: "ssh", 23: "telnet", 25: "smtp", 53: "dns", 67: "dhcp-server", 68: "dhcp-client",
    80: "http", 102: "iso-tsap", 123: "ntp", 161: "snmp", 162: "snmp-trap", 443: "https", 502: "modbus",
    514: "syslog", 546: "dhcpv6-client", 547: "dhcpv6-server", 853: "dns-over-tls", 1883: "mqtt", 1900: "ssdp",
    2404: "iec-104", 3702: "ws-discovery", 4840: "opc-ua", 5353: "mdns", 5355: "llmnr", 5683: "coap", 5684: "coaps",
    8080: "http-alt", 8883: "mqtts", 20000: "dnp3", 44818: "ethernet-ip", 47808: "bacnet",
}  # fmt: skip


def _name(rules: Iterable[Proposed]) -> list[Proposed]:
    """Return the rules with names that are unique among those of one direction."""
    taken: dict[tuple[Direction, str], int] = {}
    named = []
    for rule in rules:
        base = rule.protocol.value if not rule.ports else _NAMES.get(rule.ports[0], f"{rule.protocol}-{rule.ports[0]}")
        number = taken[rule.direction, base] = taken.get((rule.direction, base), 0) + 1
        named.append(replace(rule, name=base if number == 1 else f"{base}-{number}"))
    return sorted(named, key=lambda rule: (list(Direction).index(rule.direction), rule.name))
