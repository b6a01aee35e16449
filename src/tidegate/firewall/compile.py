"""From a ruleset to the text of one nftables transaction.

Pure, and deterministic: equal rulesets give equal text. Written for the grammar of nft 1.0.6.

Two tables. ``inet tidegate`` is replaced whole by each policy. ``inet tidegate_bans`` keeps its sets of banned
addresses through every policy; only its chain and its lists of protected addresses are written anew. Both are IPv4 and
IPv6 at once. Services are found by one verdict map (protocol . port -> chain) and peers by interval sets, so that the
cost of a packet does not grow with the policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidegate.firewall.model import MLD_OUT, ND_HOP_LIMIT, ND_IN, ND_OUT, PeerGroup, Ruleset, Service, Threshold
from tidegate.firewall.section import Default, EgressDefault, Forward, Mode

TABLE = "tidegate"
BAN_TABLE = "tidegate_bans"
# A source is forgotten after so long without a new connection, or later if its burst takes longer to refill: forgotten
# earlier, it would start with a full burst again. Shorter, a flood of forged sources gets in at a higher rate (sources
# divided by this); longer, strangers wait longer after it.
MIN_RATE_MEMORY_S = 10
REJECTS_PER_S = 10  # answers to refused packets: enough for a person's mistakes, useless as a reflector
LOG_SNAPLEN = 128  # IPv6 header, TCP header and options; no payload leaves by the log
LOOPBACK = {4: "127.0.0.0/8", 6: "::1"}
_SADDR = {4: "ip saddr", 6: "ip6 saddr"}
_DADDR = {4: "ip daddr", 6: "ip6 daddr"}
_FAMILY = {4: "ipv4", 6: "ipv6"}


def encode_ruleset(ruleset: Ruleset) -> str:
    """Return the transaction that puts ``ruleset`` in force: all of it or, when the kernel refuses, nothing.

    Sets of banned addresses keep their elements and remaining times. Older kernels may also keep their old size.
    """
    parts = [
        # Declared first so that the delete cannot fail on a fresh kernel.
        f"table inet {TABLE}\ndelete table inet {TABLE}\n",
        _encode_table(ruleset),
        _encode_ban_table(ruleset),
    ]
    return "".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortGroup:
    """A span of ports on which the same services answer."""

    protocol: str
    first: int
    last: int
    services: tuple[str, ...]

    @property
    def key(self) -> str:
        """The span as a key of the verdict map."""
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.protocol} . {ports}"


def plan_port_groups(services: Iterable[Service]) -> tuple[PortGroup, ...]:
    """Return disjoint spans that cover every port of every service, each with all services that answer there."""
    groups: list[PortGroup] = []
    by_protocol: dict[str, list[Service]] = {}
    for service in services:
        by_protocol.setdefault(service.protocol.value, []).append(service)
    for protocol, members in sorted(by_protocol.items()):
        starts: dict[int, list[str]] = {}
        ends: dict[int, list[str]] = {}
        for service in members:
            for span in service.spans:
                starts.setdefault(span.first, []).append(service.name)
                ends.setdefault(span.last + 1, []).append(service.name)
        active: set[str] = set()
        edges = sorted(starts.keys() | ends.keys())
        for edge, following in zip(edges, [*edges[1:], 65536], strict=True):
            active.difference_update(ends.get(edge, ()))
            active.update(starts.get(edge, ()))
            if active:
                names = tuple(sorted(active))
                groups.append(PortGroup(protocol=protocol, first=edge, last=following - 1, services=names))
    return tuple(groups)


class _Block:
    """One table under construction: its objects and chains as text."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def counter(self, name: str) -> None:
        self._parts.append(f"\tcounter {name} {{ }}\n")

    def static_set(self, name: str, family: int, elements: Sequence[object]) -> None:
        """Add an interval set; an empty one has no ``elements`` line, which the grammar would refuse."""
        lines = [f"type ipv{family}_addr", "flags interval"]
        if elements:
            lines.append("elements = { " + ", ".join(str(element) for element in elements) + " }")
        self._add("set", name, lines)

    def dynamic_set(self, name: str, family: int, *, size: int, timeout_s: int | None) -> None:
        """Add a set that rules fill; ``size`` bounds its memory."""
        lines = [f"type ipv{family}_addr", f"size {size}"]
        if timeout_s is None:
            lines.append("flags dynamic")
        else:
            lines += ["flags dynamic,timeout", f"timeout {timeout_s}s"]
        self._add("set", name, lines)

    def ban_set(self, name: str, family: int, *, size: int) -> None:
        """Add a set whose elements each bring their own timeout."""
        self._add("set", name, [f"type ipv{family}_addr", "flags timeout", f"size {size}"])

    def verdict_map(self, name: str, groups: Sequence[tuple[PortGroup, str]]) -> None:
        """Add the map from protocol and port to chain; interval lookups only if the policy has ranges."""
        lines = ["type inet_proto . inet_service : verdict"]
        if any(group.first != group.last for group, _ in groups):
            lines.append("flags interval")
        if groups:
            elements = ", ".join(f"{group.key} : jump {chain}" for group, chain in groups)
            lines.append("elements = { " + elements + " }")
        self._add("map", name, lines)

    def chain(self, name: str, lines: Sequence[str]) -> None:
        self._add("chain", name, lines)

    def _add(self, kind: str, name: str, lines: Sequence[str]) -> None:
        body = "".join(f"\t\t{line}\n" for line in lines)
        self._parts.append(f"\t{kind} {name} {{\n{body}\t}}\n")

    def encode(self, table: str) -> str:
        return f"table inet {table} {{\n{''.join(self._parts)}}}\n"


def _encode_table(ruleset: Ruleset) -> str:
    block = _Block()
    locked = ruleset.mode is Mode.LOCKDOWN
    for name in ("invalid", "denied", "egress_denied", "forward_denied", "management", "ping"):
        block.counter(name)
    _add_management(block, ruleset)
    if not locked:
        _add_services(block, ruleset.services, kind="svc", services_map="services", peer=_SADDR)
        _add_services(block, ruleset.egress, kind="out", services_map="egress", peer=_DADDR)
    block.chain("input", _input_locked(ruleset) if locked else _input_rules(ruleset))
    if locked or ruleset.egress_default is EgressDefault.DENY:
        block.chain("output", _output_locked(ruleset) if locked else _output_rules(ruleset))
    if ruleset.forward is Forward.DENY:
        verdict = _final_verdict(ruleset)
        head = f"type filter hook forward priority filter; policy {verdict};"
        block.chain("forward", [head, f"counter name forward_denied {verdict}"])
    return block.encode(TABLE)


def _input_rules(ruleset: Ruleset) -> list[str]:
    verdict = _final_verdict(ruleset)
    lines = [
        f"type filter hook input priority filter; policy {verdict};",
        'iifname "lo" accept',
        "ct state vmap { established : accept, related : accept }",
        f"ct state invalid counter name invalid {verdict}",
        *_neighbour_in(),
        # Before everything that has a threshold: a flood from elsewhere must not use up the manager's share.
        "jump management",
    ]
    if ruleset.ping_per_s:
        limit = f"limit rate {ruleset.ping_per_s}/second burst {ruleset.ping_per_s} packets counter name ping accept"
        lines += [f"icmp type echo-request {limit}", f"icmpv6 type echo-request {limit}"]
    lines.append("meta l4proto { tcp, udp } meta l4proto . th dport vmap @services")
    lines += _log(ruleset, "tidegate-denied ")
    if ruleset.default is Default.REJECT and ruleset.mode is Mode.ENFORCE:
        bound = f"limit rate {REJECTS_PER_S}/second burst {REJECTS_PER_S} packets counter name denied"
        lines += [
            f"meta l4proto tcp {bound} reject with tcp reset",
            f"meta l4proto != tcp {bound} reject with icmpx type admin-prohibited",
        ]
    return [*lines, f"counter name denied {verdict}"]


def _output_rules(ruleset: Ruleset) -> list[str]:
    observed = ruleset.mode is Mode.OBSERVE
    # Only local programs see the answer, and it tells them at once what a silent drop would tell after minutes.
    refusal = "accept" if observed else "reject with icmpx type admin-prohibited"
    return [
        f"type filter hook output priority filter; policy {_final_verdict(ruleset)};",
        'oifname "lo" accept',
        "ct state vmap { established : accept, related : accept }",
        *_neighbour_out(),
        "meta l4proto { tcp, udp } meta l4proto . th dport vmap @egress",
        *_log(ruleset, "tidegate-egress "),
        f"counter name egress_denied {refusal}",
    ]


def _input_locked(ruleset: Ruleset) -> list[str]:
    """Running sessions of other services end too, so ``established`` alone admits nothing."""
    lines = [
        "type filter hook input priority filter; policy drop;",
        'iifname "lo" accept',
        "ct state invalid counter name invalid drop",
        *_neighbour_in(),
        "jump management",
        "meta l4proto { icmp, ipv6-icmp } ct state related accept",
    ]
    management = ruleset.management
    if management is not None and management.egress is not None:
        start = f"ct state established {_interfaces('iifname', management.egress)}{_ports('sport', management.egress)}"
        lines += _for_peers("manager", management.egress.peers, _SADDR, start, "accept")
    return [*lines, *_log(ruleset, "tidegate-locked "), "counter name denied drop"]


def _output_locked(ruleset: Ruleset) -> list[str]:
    lines = [
        "type filter hook output priority filter; policy drop;",
        'oifname "lo" accept',
        *_neighbour_out(),
        "meta l4proto { icmp, ipv6-icmp } ct state related accept",
    ]
    management = ruleset.management
    if management is not None:
        start = f"{_interfaces('oifname', management.service)}{_ports('sport', management.service)}"
        lines += _for_peers("management", management.peers, _DADDR, start, "accept")
        if management.egress is not None:
            start = f"{_interfaces('oifname', management.egress)}{_ports('dport', management.egress)}"
            lines += _for_peers("manager", management.egress.peers, _DADDR, start, "accept")
    return [*lines, "counter name egress_denied reject with icmpx type admin-prohibited"]


def _add_management(block: _Block, ruleset: Ruleset) -> None:
    management = ruleset.management
    lines: list[str] = []
    if management is not None:
        _add_peer_sets(block, "management", management.peers)
        if management.egress is not None and ruleset.mode is Mode.LOCKDOWN:
            _add_peer_sets(block, "manager", management.egress.peers)
        start = f"{_interfaces('iifname', management.service)}{_ports('dport', management.service)}"
        lines = _for_peers("management", management.peers, _SADDR, start, "counter name management accept")
    block.chain("management", lines)


def _add_services(
    block: _Block, services: Sequence[Service], *, kind: str, services_map: str, peer: dict[int, str]
) -> None:
    """Add the sets and chain of each service, the chains of shared ports, and the map that leads to them."""
    for service in services:
        name = _identifier(kind, service.name)
        block.counter(name)
        _add_peer_sets(block, name, service.peers)
        if service.threshold is not None:
            block.counter(f"{name}_over")
            _add_threshold_sets(block, name, service.threshold)
        block.chain(name, _service_rules(name, service, peer))
    leads = []
    for group in plan_port_groups(services):
        chains = [_identifier(kind, name) for name in group.services]
        if len(chains) > 1:
            shared = f"{kind}_{group.protocol}_{group.first}_{group.last}"
            block.chain(shared, [f"jump {chain}" for chain in chains])
            chains = [shared]
        leads.append((group, chains[0]))
    block.verdict_map(services_map, leads)


def _service_rules(name: str, service: Service, peer: dict[int, str]) -> list[str]:
    """Accept what is allowed and return: another service on the same port may allow the rest."""
    interface = "iifname" if peer is _SADDR else "oifname"
    start = _interfaces(interface, service)
    accept = f"counter name {name} accept"
    if service.threshold is None:
        return _for_peers(name, service.peers, peer, start, accept)
    lines = []
    for family in (4, 6):
        match = _peer_match(name, service.peers, peer, family)
        if match:
            admit = _threshold_match(name, service.threshold, family)
            lines += [f"{start}{match} {admit} {accept}", f"{start}{match} counter name {name}_over"]
    return lines


def _threshold_match(name: str, threshold: Threshold, family: int) -> str:
    """Match a source that is under its thresholds.

    Positive logic on purpose: a set that is full cannot take the source, the statement breaks, nothing is accepted.
    "over the limit: drop" would break likewise, and let the packet through.
    """
    source = _SADDR[family]
    words = []
    if threshold.new_per_s is not None:
        rate = f"limit rate {threshold.new_per_s}/second burst {threshold.burst} packets"
        words.append(f"update @{name}_rate{family} {{ {source} {rate} }}")
    if threshold.connections is not None:
        words.append(f"add @{name}_conns{family} {{ {source} ct count {threshold.connections} }}")
    return " ".join(words)


def _add_threshold_sets(block: _Block, name: str, threshold: Threshold) -> None:
    for family in (4, 6):
        if threshold.new_per_s is not None:
            refill_s = -(-threshold.burst // threshold.new_per_s) + 1
            memory_s = max(MIN_RATE_MEMORY_S, refill_s)
            block.dynamic_set(f"{name}_rate{family}", family, size=threshold.sources, timeout_s=memory_s)
        if threshold.connections is not None:
            # No timeout: the kernel drops an element by itself when its last connection ends.
            block.dynamic_set(f"{name}_conns{family}", family, size=threshold.sources, timeout_s=None)


def _add_peer_sets(block: _Block, name: str, peers: PeerGroup) -> None:
    if peers.v4:
        block.static_set(f"{name}_peers4", 4, peers.v4)
    if peers.v6:
        block.static_set(f"{name}_peers6", 6, peers.v6)


def _for_peers(name: str, peers: PeerGroup, field: dict[int, str], start: str, end: str) -> list[str]:
    """Return one rule per family that has peers; one for both when everyone is meant; none for nobody."""
    if peers.everyone:
        return [f"{start}{end}"]
    matches = [_peer_match(name, peers, field, family) for family in (4, 6)]
    return [f"{start}{match} {end}" for match in matches if match]


def _peer_match(name: str, peers: PeerGroup, field: dict[int, str], family: int) -> str:
    if peers.everyone:
        return f"meta nfproto {_FAMILY[family]}"
    return f"{field[family]} @{name}_peers{family}" if (peers.v4 if family == 4 else peers.v6) else ""


def _interfaces(word: str, service: Service) -> str:
    names = ", ".join(f'"{name}"' for name in service.interfaces)
    return f"{word} {{ {names} }} " if names else ""


def _ports(word: str, service: Service) -> str:
    return f"{service.protocol.value} {word} {{ {', '.join(str(span) for span in service.spans)} }} "


def _neighbour_in() -> list[str]:
    hop = f"ip6 hoplimit {ND_HOP_LIMIT}"
    return [
        f"icmpv6 type {{ {', '.join(ND_IN)} }} {hop} accept",
        "icmpv6 type mld-listener-query ip6 saddr fe80::/10 accept",
    ]


def _neighbour_out() -> list[str]:
    return [f"icmpv6 type {{ {', '.join((*ND_OUT, *MLD_OUT))} }} accept"]


def _log(ruleset: Ruleset, prefix: str) -> list[str]:
    """Behind ``limit`` always: unlimited, a flood would turn into work for whoever reads the log."""
    if not ruleset.log_per_s:
        return []
    rate = f"limit rate {ruleset.log_per_s}/second burst {2 * ruleset.log_per_s} packets"
    return [f'{rate} log prefix "{prefix}" group {ruleset.log_group} snaplen {LOG_SNAPLEN}']


def _final_verdict(ruleset: Ruleset) -> str:
    return "accept" if ruleset.mode is Mode.OBSERVE else "drop"


def _identifier(kind: str, name: str) -> str:
    """Return the nft name of a service; service names have no "_", so the result is unique."""
    return f"{kind}_{name.replace('-', '_')}"


def _encode_ban_table(ruleset: Ruleset) -> str:
    """Bans are met before connection tracking, so that a banned flood costs no entry there."""
    verdict = _final_verdict(ruleset)
    management = ruleset.management
    managers = PeerGroup() if management is None or management.peers.everyone else management.peers
    never = ruleset.never
    block = _Block()
    block.counter("banned")
    # What these sets and chains held before; declared first so that the flush finds them.
    names = ("never4", "never6", "managers4", "managers6")
    for name in names:
        block.static_set(name, int(name[-1]), ())
    for family in (4, 6):
        block.ban_set(f"banned{family}", family, size=ruleset.ban_max)
    block.chain("spare", [])
    block.chain("early", ["type filter hook prerouting priority raw; policy accept;"])
    head = block.encode(BAN_TABLE)
    flushes = [f"flush set inet {BAN_TABLE} {name}\n" for name in names]
    flushes += [f"flush chain inet {BAN_TABLE} {name}\n" for name in ("early", "spare")]
    filled = _Block()
    filled.static_set("never4", 4, ["0.0.0.0/0"] if never.everyone else [*never.v4, LOOPBACK[4]])
    filled.static_set("never6", 6, ["::/0"] if never.everyone else [*never.v6, LOOPBACK[6]])
    filled.static_set("managers4", 4, managers.v4)
    filled.static_set("managers6", 6, managers.v6)
    spare = [f"{_SADDR[family]} @{name}{family} return" for name in ("never", "managers") for family in (4, 6)]
    filled.chain("spare", ['iifname "lo" return', *spare, f"counter name banned {verdict}"])
    filled.chain("early", [f"{_SADDR[family]} @banned{family} jump spare" for family in (4, 6)])
    return head + "".join(flushes) + filled.encode(BAN_TABLE)
