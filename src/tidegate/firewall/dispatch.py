"""How a hook finds the rule that allows a packet: verdict maps, and a chain for what a map cannot say. Pure.

A *plain* rule (prefixes or everyone, no limit, no content rules, alone on its ports) becomes elements of one map per
direction, family and list of interfaces, whose key is protocol, port and addresses: a policy of plain rules is as
quick with a thousand of them as with one, and has no chain of its own for any. Every other rule has a chain, found by
a map of protocol and port.
"""

from __future__ import annotations

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
    protocol_matches,
)
from tidegate.firewall.meters import Exits, add_rule_meters
from tidegate.firewall.model import Kind, Rule
from tidegate.firewall.section import Protocol

PORTS = "meta l4proto { 6, 17, 132 } "  # protocols whose header begins with the ports
MAX_CELLS = 1024  # map elements of one plain rule; with more, sets in a chain are smaller
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

    ``log`` are the words that report a packet, empty when nothing is logged.
    """
    groups = plan_port_groups(rules)
    shared = {(rule.kind, rule.name) for group in groups if len(group.rules) > 1 for rule in group.rules}
    plain = [rule for rule in rules if (rule.kind, rule.name) not in shared and _is_plain(rule, side)]
    fast = {(rule.kind, rule.name) for rule in plain}
    lines = _add_plain(block, side, plain)
    for rule in rules:
        if (rule.kind, rule.name) not in fast:
            _add_chain(block, side, rule, log)
    leads = []
    for group in groups:
        if (group.rules[0].kind, group.rules[0].name) in fast:
            continue
        chains = [chain_name(rule) for rule in group.rules]
        if len(chains) > 1:
            name = f"{side.name}_{group.protocol}_{group.first}_{group.last}"
            chains = [block.chain(name, [f"jump {chain}" for chain in chains])]
        leads.append((group, chains[0]))
    if leads:
        elements = [f"{group.key} : jump {chain}" for group, chain in leads]
        ranges = any(group.first != group.last for group, _ in leads)
        name = block.map(f"{side.name}_rules", "inet_proto . inet_service : verdict", elements, interval=ranges)
        lines.append(f"{PORTS}meta l4proto . th dport vmap @{name}")
    for rule in rules:
        if not rule.protocol.has_ports:
            matches = protocol_matches(rule.protocol, ())
            lines += [f"{match.words} jump {chain_name(rule)}" for match in matches]
    return lines


def chain_name(rule: Rule) -> str:
    """Return the name of the rule's chain, and of its counter."""
    return identifier(_PREFIX[rule.kind], rule.name)


def _is_plain(rule: Rule, side: Side) -> bool:
    if not rule.protocol.has_ports or rule.is_limited or rule.fields or rule.observe or rule.syn_proxy:
        return False
    if rule.translated or not (rule.peers.is_static and rule.destinations.is_static):
        return False
    return all(len(rule.spans) * len(_addresses(rule, side, family)) <= MAX_CELLS for family in (4, 6))


def _addresses(rule: Rule, side: Side, family: int) -> list[str]:
    """Return the keys, without protocol and port, that stand for the rule's peers in a map of one family."""
    far = [str(prefix) for prefix in rule.peers.prefixes(family)]
    if not side.routed:
        return far
    near = [str(prefix) for prefix in rule.destinations.prefixes(family)]
    return [f"{a} . {b}" for a in far for b in near]


def _add_plain(block: Block, side: Side, rules: Sequence[Rule]) -> list[str]:
    """Add the maps of plain rules, one set of maps for each list of interfaces; return the lines that look there."""
    if not rules:
        return []
    counters = _add_counters(block, side, rules)
    block.chain(
        f"{side.name}_admit",
        [f"counter name meta l4proto . th dport map @{counters} accept {comment(f'{side.name} maps')}"],
    )
    places: dict[tuple[tuple[str, ...], tuple[str, ...]], list[Rule]] = {}
    for rule in rules:
        places.setdefault((rule.interfaces, rule.out_interfaces), []).append(rule)
    lines = []
    for number, ((incoming, outgoing), members) in enumerate(sorted(places.items(), key=lambda item: item[0])):
        start = interface_words(side.interface, incoming) + interface_words("oifname", outgoing)
        lines += _add_place(block, side, number, start, members)
    return lines


def _add_place(block: Block, side: Side, number: int, start: str, rules: Sequence[Rule]) -> list[str]:
    """Add the maps of one list of interfaces: one for rules that are for everyone, one for each family's addresses."""
    verdict = f"goto {side.name}_admit"
    is_open = [rule for rule in rules if _is_open(rule)]
    lines = []
    if is_open:
        elements = [f"{_key(rule, span)} : {verdict}" for rule in is_open for span in rule.spans]
        kind = "inet_proto . inet_service : verdict"
        name = block.map(f"{side.name}_open_{number}", kind, elements, interval=_has_ranges(is_open))
        lines.append(f"{start}{PORTS}meta l4proto . th dport vmap @{name}")
    for family in (4, 6):
        elements = [
            f"{_key(rule, span)} . {address} : {verdict}"
            for rule in rules
            if not _is_open(rule)
            for span in rule.spans
            for address in _addresses(rule, side, family)
        ]
        if elements:
            address = f"ipv{family}_addr . ipv{family}_addr" if side.routed else f"ipv{family}_addr"
            kind = f"inet_proto . inet_service . {address} : verdict"
            name = block.map(f"{side.name}_to{family}_{number}", kind, elements, interval=True)
            key = f"{side.far[family]} . {DADDR[family]}" if side.routed else side.far[family]
            lines.append(f"{start}{PORTS}meta l4proto . th dport . {key} vmap @{name}")
    return lines


def _add_counters(block: Block, side: Side, rules: Sequence[Rule]) -> str:
    """Add a counter for each rule, and the map that finds it by protocol and port."""
    elements = []
    for rule in rules:
        counter = block.counter(chain_name(rule))
        elements += [f'{_key(rule, span)} : "{counter}"' for span in rule.spans]
    kind = "inet_proto . inet_service : counter"
    return block.map(f"{side.name}_counters", kind, elements, interval=_has_ranges(rules))


def _is_open(rule: Rule) -> bool:
    return rule.peers.everyone and rule.destinations.everyone


def _key(rule: Rule, span: object) -> str:
    return f"{PROTOCOL_NUMBERS[rule.protocol]} . {span}"


def _has_ranges(rules: Sequence[Rule]) -> bool:
    return any(span.first != span.last for rule in rules for span in rule.spans)


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
