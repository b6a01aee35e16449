"""How a hook finds the rule that allows a packet: verdict maps, and a chain for what a map cannot say. Pure.

A *plain* rule (prefixes or everyone, few ports, no limit, no content rules, alone on its ports) becomes elements of
hash maps, one for each prefix length, whose key is protocol, port and the masked address: a policy of plain rules is as
quick with a thousand of them as with one, and has no chain of its own for any. (One map of concatenated intervals would
say the same in less text; the kernel takes 6.8 microseconds to search one of a thousand elements, and 0.3 for a hash.)
Every other rule has a chain, found by protocol and port.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidegate.firewall.blocks import (
    DADDR,
    PROTOCOL_NUMBERS,
    SADDR,
    Block,
    comment,
    identifier,
    interface_words,
    join_matches,
    masked,
    protocol_matches,
)
from tidegate.firewall.meters import Exits, add_rule_meters
from tidegate.firewall.model import Kind, Rule
from tidegate.firewall.section import Protocol

MAX_PORTS = 64  # of one rule in hash maps, where a range is written port by port
MAX_CELLS = 1024  # map elements of one plain rule; with more, sets in a chain are smaller
MAX_LENGTHS = 6  # prefix lengths, or pairs of them, that a packet is looked up by: 0.3 microseconds each
_PREFIX = {Kind.SERVICE: "svc", Kind.EGRESS: "out", Kind.ROUTE: "fwd", Kind.PORT_FORWARD: "pf"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What differs between the three hooks that rules are compiled for."""

    name: str  # of the maps and chains
    interface: str
    far: dict[int, str]
    routed: bool


INPUT = Side(name="in", interface="iifname", far=SADDR, routed=False)
OUTPUT = Side(name="out", interface="oifname", far=DADDR, routed=False)
FORWARD = Side(name="fwd", interface="iifname", far=SADDR, routed=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortGroup:
    """A span of ports on which the same rules answer."""

    protocol: Protocol
    first: int
    last: int
    rules: tuple[Rule, ...]

    @property
    def span(self) -> str:
        """The ports as nft reads them."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @property
    def key(self) -> str:
        """Protocol and ports as the key of a map."""
        return f"{PROTOCOL_NUMBERS[self.protocol]} . {self.span}"


def plan_port_groups(rules: Iterable[Rule]) -> tuple[PortGroup, ...]:
    """Return disjoint spans that cover every port of every rule, each with all rules that answer there."""
    groups: list[PortGroup] = []
    by_protocol: dict[Protocol, list[Rule]] = {}
    for rule in rules:
        if rule.protocol.has_ports:
            by_protocol.setdefault(rule.protocol, []).append(rule)
    for protocol, members in sorted(by_protocol.items()):
        starts: dict[int, list[Rule]] = {}
        ends: dict[int, list[Rule]] = {}
        for rule in members:
            for span in rule.spans:
                starts.setdefault(span.first, []).append(rule)
                ends.setdefault(span.last + 1, []).append(rule)
        active: dict[tuple[Kind, str], Rule] = {}
        edges = sorted(starts.keys() | ends.keys())
        for edge, following in zip(edges, [*edges[1:], 65536], strict=True):
            for rule in ends.get(edge, ()):
                active.pop((rule.kind, rule.name), None)
            active.update({(rule.kind, rule.name): rule for rule in starts.get(edge, ())})
            if active:
                found = tuple(active[key] for key in sorted(active))
                groups.append(PortGroup(protocol=protocol, first=edge, last=following - 1, rules=found))
    return tuple(groups)


def add_rules(block: Block, side: Side, rules: Sequence[Rule], *, log: str) -> list[str]:
    """Declare what ``rules`` need, and return the lines of the hook's chain that lead a new packet to them.

    ``log`` are the words that report a packet, empty when nothing is logged. Protocols without ports are left to
    ``lead_to_portless``.
    """
    groups = plan_port_groups(rules)
    shared = {id(rule) for group in groups if len(group.rules) > 1 for rule in group.rules}
    plain = _plan_plain(side, [rule for rule in rules if id(rule) not in shared])
    fast = {id(rule) for rule in plain}
    lines = _add_plain(block, side, plain)
    for rule in rules:
        if id(rule) not in fast:
            _add_chain(block, side, rule, log)
    leads = [(group, _add_shared(block, side, group)) for group in groups if id(group.rules[0]) not in fast]
    return lines + _lead_to_chains(block, side, leads)


def lead_to_portless(rules: Sequence[Rule]) -> list[str]:
    """Return the lines that lead packets of protocols without ports to the chains of their rules."""
    return [
        f"{match.words} jump {chain_name(rule)}"
        for rule in rules
        if not rule.protocol.has_ports
        for match in protocol_matches(rule.protocol, ())
    ]


def _add_shared(block: Block, side: Side, group: PortGroup) -> str:
    """Return the chain of a span's only rule, or one that leads to each of its rules."""
    chains = [chain_name(rule) for rule in group.rules]
    if len(chains) == 1:
        return chains[0]
    name = f"{side.name}_{group.protocol}_{group.first}_{group.last}"
    return block.chain(name, [f"jump {chain}" for chain in chains])


def _lead_to_chains(block: Block, side: Side, leads: Sequence[tuple[PortGroup, str]]) -> list[str]:
    """Return the lines to the chains of rules: one map for single ports, one for ranges of each protocol."""
    lines = []
    exact: list[str] = []
    ranges: dict[Protocol, list[str]] = {}
    for group, chain in leads:
        if group.last - group.first < MAX_PORTS:
            number = PROTOCOL_NUMBERS[group.protocol]
            exact += [f"{number} . {port} : jump {chain}" for port in range(group.first, group.last + 1)]
        else:
            ranges.setdefault(group.protocol, []).append(f"{group.span} : jump {chain}")
    if exact:
        name = block.map(f"{side.name}_rules", "inet_proto . inet_service : verdict", exact)
        lines.append(f"meta l4proto . th dport vmap @{name}")
    for protocol, elements in ranges.items():
        name = block.map(f"{side.name}_{protocol}_ranges", "inet_service : verdict", elements, interval=True)
        lines.append(f"meta l4proto {PROTOCOL_NUMBERS[protocol]} th dport vmap @{name}")
    return lines


def chain_name(rule: Rule) -> str:
    """Return the name of the rule's chain, and of its counter."""
    return identifier(_PREFIX[rule.kind], rule.name)


def _plan_plain(side: Side, rules: Sequence[Rule]) -> list[Rule]:
    """Return the rules that maps can say, as long as they agree on few enough prefix lengths."""
    able = [rule for rule in rules if _is_plain(rule, side)]
    uses: Counter[tuple[Place, Lengths]] = Counter()
    for rule in able:
        uses.update({(_place(rule), cell.lengths) for cell in _cells(rule, side)})
    kept: set[tuple[Place, Lengths]] = set()
    for found, _ in sorted(uses.items(), key=lambda item: (-item[1], item[0])):
        if sum(one[0] == found[0] and one[1][0] == found[1][0] for one in kept) < MAX_LENGTHS:
            kept.add(found)
    return [rule for rule in able if all((_place(rule), cell.lengths) in kept for cell in _cells(rule, side))]


def _is_plain(rule: Rule, side: Side) -> bool:
    if not rule.protocol.has_ports or rule.is_limited or rule.fields or rule.observe or rule.syn_proxy:
        return False
    if rule.translated or not (rule.peers.is_static and rule.destinations.is_static):
        return False
    count = len(_ports(rule))
    near = 1 if not side.routed else len(rule.destinations.v4) + len(rule.destinations.v6) + 1
    return count <= MAX_PORTS and count * (len(rule.peers.v4) + len(rule.peers.v6) + 1) * near <= MAX_CELLS


Place = tuple[
    tuple[str, ...], tuple[str, ...]
]  # the interfaces where a rule is: incoming (outgoing for egress), outgoing
Lengths = tuple[int, int, int]  # IP version, prefix lengths of the far and the near side (0: not looked at)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One pair of prefixes that a plain rule allows, as the key of a map of their lengths."""

    lengths: Lengths
    key: str


def _cells(rule: Rule, side: Side) -> list[_Cell]:
    if _is_open(rule):
        return []
    cells = []
    for family in (4, 6):
        near = rule.destinations.prefixes(family) if side.routed else ()
        for a in rule.peers.prefixes(family):
            lengths = (family, a.prefixlen, 0)
            if not side.routed:
                cells.append(_Cell(lengths=lengths, key=str(a.network_address)))
            cells += [
                _Cell(lengths=(family, a.prefixlen, b.prefixlen), key=f"{a.network_address} . {b.network_address}")
                for b in near
            ]
    return cells


def _add_plain(block: Block, side: Side, rules: Sequence[Rule]) -> list[str]:
    """Add the maps of plain rules, some for each list of interfaces; return the lines that look there."""
    if not rules:
        return []
    counters = [f'{key} : "{block.counter(chain_name(rule))}"' for rule in rules for key in _keys(rule)]
    name = block.map(f"{side.name}_counters", "inet_proto . inet_service : counter", counters)
    admit = f"counter name meta l4proto . th dport map @{name} accept {comment(f'{side.name} maps')}"
    block.chain(f"{side.name}_admit", [admit])
    places: dict[Place, list[Rule]] = {}
    for rule in rules:
        places.setdefault(_place(rule), []).append(rule)
    lines = []
    for number, (place, members) in enumerate(sorted(places.items())):
        start = interface_words(side.interface, place[0]) + interface_words("oifname", place[1])
        lines += [f"{start}{words}" for words in _add_place(block, side, number, members)]
    return lines


def _add_place(block: Block, side: Side, number: int, rules: Sequence[Rule]) -> list[str]:
    """Add the maps of one list of interfaces: for rules that are for everyone, and for each prefix length."""
    verdict = f"goto {side.name}_admit"
    lines = []
    opened = [f"{key} : {verdict}" for rule in rules if _is_open(rule) for key in _keys(rule)]
    if opened:
        name = block.map(f"{side.name}_open_{number}", "inet_proto . inet_service : verdict", opened)
        lines.append(f"meta l4proto . th dport vmap @{name}")
    by_lengths: dict[Lengths, list[str]] = {}
    for rule in rules:
        for cell in _cells(rule, side):
            by_lengths.setdefault(cell.lengths, []).extend(f"{key} . {cell.key} : {verdict}" for key in _keys(rule))
    for (family, far, near), elements in sorted(by_lengths.items()):
        kind = f"ipv{family}_addr"
        name, key = f"{side.name}_to{family}_{number}_{far}", masked(side.far[family], family, far)
        if side.routed:
            name, key, kind = f"{name}_{near}", f"{key} . {masked(DADDR[family], family, near)}", f"{kind} . {kind}"
        block.map(name, f"inet_proto . inet_service . {kind} : verdict", elements)
        lines.append(f"meta l4proto . th dport . {key} vmap @{name}")
    return lines


def _place(rule: Rule) -> Place:
    return rule.interfaces, rule.out_interfaces


def _ports(rule: Rule) -> Sequence[int]:
    """Return every port of the rule, as far as anybody asks: one more than a plain rule may have."""
    few = [range(span.first, min(span.last, span.first + MAX_PORTS) + 1) for span in rule.spans]
    return [port for span in few for port in span][: MAX_PORTS + 1]


def _keys(rule: Rule) -> list[str]:
    return [f"{PROTOCOL_NUMBERS[rule.protocol]} . {port}" for port in _ports(rule)]


def _is_open(rule: Rule) -> bool:
    return rule.peers.everyone and rule.destinations.everyone


def _add_chain(block: Block, side: Side, rule: Rule, log: str) -> None:
    """Add the chain of a rule: accept what is allowed and return, for another rule may allow the rest."""
    name, label = chain_name(rule), comment(rule.label)
    block.counter(name)
    start = interface_words(side.interface, rule.interfaces) + interface_words("oifname", rule.out_interfaces)
    if rule.translated:
        start += "ct status dnat "
    far = block.peer_matches(name, rule.peers, side.far)
    near = block.peer_matches(f"{name}_to", rule.destinations, DADDR) if side.routed else []
    matches = [f"{start}{match.words}".strip() for match in join_matches(far, *([near] if near else []))]
    if side.routed and not near:
        matches = []
    report = [f"ct state new {log}"] if rule.observe and log else []
    if not rule.is_limited:
        lines = [f"{match} {words}" for match in matches for words in (*report, f"counter name {name} accept {label}")]
        block.chain(name, [line.strip() for line in lines])
        return
    block.counter(f"{name}_over")
    over = f"accept {label}" if rule.observe else label
    exits = Exits(
        admit=f"counter name {name} accept {label}",
        refuse=over,
        counter=f"{name}_over",
        report=log if rule.observe else "",
    )
    gate = add_rule_meters(block, name, rule, exits)
    lines = [f"{match} {words}" for match in matches for words in (*report, f"jump {gate}")]
    block.chain(name, [line.strip() for line in lines])
