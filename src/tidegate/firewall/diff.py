"""Which packets two rulesets decide differently, and which objects two listings of the kernel have differently. Pure.

The space of packets is cut where either ruleset could change its mind: at protocols, edges of ports, interfaces, and
edges of prefixes. One packet of each cell is put to the evaluator under both. Only rules on the same ports and for the
same addresses are put together, so that a thousand services cost a thousand small comparisons.
"""

from __future__ import annotations

import difflib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise, product

from tidegate.firewall.changes import BEYOND, NOT, WHOLE, WITHIN, Change, Identity, Outcome, Span, Who, merge_changes
from tidegate.firewall.dispatch import PortGroup, plan_port_groups
from tidegate.firewall.evaluate import Decision, explain_packet
from tidegate.firewall.model import Address, Direction, Icmp, Packet, PeerGroup, PortSpan, Rule, Ruleset, Verdict
from tidegate.firewall.section import Default, Mode, Protocol
from tidegate.firewall.snapshot import Listed, parse_listing, split_tables

__all__ = ["MAX_CELLS", "Change", "Difference", "diff_rulesets", "diff_texts"]

MAX_CELLS = 100_000  # two packets under both rulesets each, 20 to 40 microseconds: a few seconds at the most
_OTHER = "*"  # an interface that neither ruleset names
_MACLESS = "00:00:00:00:00:00"  # a sender whose address on the link no rule names
_ADDRESS: Mapping[int, type[IPv4Address | IPv6Address]] = {4: IPv4Address, 6: IPv6Address}

_Where = frozenset[tuple[str | None, str | None]]  # incoming and outgoing interfaces
_Kind = tuple[str, Outcome, Outcome]  # load, old, new


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What two rulesets decide differently. ``stopped``: there were more than ``MAX_CELLS`` cells, the rest is open.

    ``notes`` are differences that no single packet shows: limits that changed, how refused packets are answered.
    """

    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    stopped: bool = False


def diff_rulesets(old: Ruleset, new: Ruleset) -> Difference:
    """Return the packets that begin something and that one of both accepts and the other refuses, or whose content
    other rules look at.

    Not compared: packets of running connections, bans, layer-2 rules, what address translation does to a packet. Where
    a sender is of two DNS names at once, only each of them alone is considered.
    """
    comparison = _Comparison(old, new)
    changes = merge_changes(comparison.run())
    return Difference(changes=changes, notes=tuple(_find_notes(old, new)), stopped=comparison.is_over)


def diff_texts(old: str | None, new: str) -> list[str]:
    """Return what changes from one listing of our tables to another: ``+`` and ``-`` and the name of each object that
    comes or goes, ``~`` for one that changes, with its lines that do.

    Both must be listed by the same nft, which spells everything its own way. Elements that rules or bans filled, and
    the order of elements, make no difference.
    """
    before, after = _read_objects(old or ""), _read_objects(new)
    lines: list[str] = []
    for name in dict.fromkeys((*before, *after)):
        if name not in after:
            lines.append(f"- {name}")
        elif name not in before:
            lines.append(f"+ {name}")
        elif before[name] != after[name]:
            lines.append(f"~ {name}")
            lines += [f"    {line}" for line in _changed_lines(before[name], after[name])]
    return lines


def _read_objects(text: str) -> dict[str, list[str]]:
    """Return the lines of every object by its table, kind and name."""
    return {
        f"{table} {thing.kind} {thing.name}": _lines(thing)
        for table, listing in split_tables(text).items()
        for thing in parse_listing(listing)
    }


def _lines(thing: Listed) -> list[str]:
    lines = [" ".join(line.split()) for line in thing.lines]
    return lines if thing.filled_by_rules else [*lines, *sorted(f"element {one}" for one in thing.elements)]


def _changed_lines(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    """Yield what was taken out and put in. Sets with thousands of elements: hence no search for near misses."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            yield from (f"- {line}" for line in before[a:b])
            yield from (f"+ {line}" for line in after[c:d])


@dataclass(frozen=True, slots=True)
class _Spot:
    """What the cells of one comparison have in common, and the interfaces to try."""

    direction: Direction
    protocol: Protocol | None
    spans: tuple[PortSpan, ...]
    is_rest: bool
    translated: bool | None
    places: Sequence[str | None]
    outs: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class _Cell:
    """Addresses that no rule of either ruleset tells apart, wherever they are, and the rulesets without rules for
    others.
    """

    old: Ruleset
    new: Ruleset
    version: int
    far: tuple[Span, ...]
    near: tuple[Span, ...] | None


class _Comparison:
    """Walks over the cells in which both rulesets may differ."""

    def __init__(self, old: Ruleset, new: Ruleset) -> None:
        self._rules = (old, new)
        self._bare = (replace(old, services=(), egress=(), routes=()), replace(new, services=(), egress=(), routes=()))
        self._alike = _frame(old) == _frame(new)
        self._left = MAX_CELLS
        self.is_over = False

    def run(self) -> Iterator[Change]:
        """Yield the changes cell by cell."""
        for direction in Direction:
            for protocol in (*Protocol, None):
                before, after = (
                    [rule for rule in _rules_of(ruleset, direction) if rule.protocol is protocol]
                    for ruleset in self._rules
                )
                if protocol is not None and protocol.has_ports:
                    yield from self._compare_ports(direction, protocol, before, after)
                else:
                    spot = _Spot(direction, protocol, (), False, None, (), ())
                    yield from self._compare(spot, before, after)

    def _compare_ports(
        self, direction: Direction, protocol: Protocol, before: Sequence[Rule], after: Sequence[Rule]
    ) -> Iterator[Change]:
        groups = [plan_port_groups(before), plan_port_groups(after)]
        managed = [span for rule, _ in self._paths(direction, protocol) for span in rule.spans]
        edges = {1, 65536}
        for first, last in (
            *((g.first, g.last) for both in groups for g in both),
            *((s.first, s.last) for s in managed),
        ):
            edges |= {first, last + 1}
        cuts = sorted(edges)
        mine, theirs = (_by_cut(both, cuts) for both in groups)
        rest: list[PortSpan] = []
        for first, following in pairwise(cuts):
            span = PortSpan(first=first, last=following - 1)
            if first in mine or first in theirs or any(one.first <= first <= one.last for one in managed):
                spot = _Spot(direction, protocol, (span,), False, None, (), ())
                yield from self._compare(spot, mine.get(first, ()), theirs.get(first, ()))
            else:
                rest.append(span)
        if rest:
            yield from self._compare(_Spot(direction, protocol, tuple(rest), True, None, (), ()), (), ())

    def _compare(self, spot: _Spot, before: Sequence[Rule], after: Sequence[Rule]) -> Iterator[Change]:
        """Compare all rules for the spot's packets, under all that can be said of such a packet."""
        if self.is_over or (self._alike and list(before) == list(after)):
            return
        paths = [
            (rule, peers)
            for rule, peers in self._paths(spot.direction, spot.protocol)
            if not spot.spans or any(one.first <= spot.spans[0].first <= one.last for one in rule.spans)
        ]
        rules = [*before, *after]
        through = spot.direction is Direction.THROUGH
        spot = replace(
            spot,
            places=_places([rule.interfaces for rule in (*rules, *(rule for rule, _ in paths))]),
            outs=_places([rule.out_interfaces for rule in rules]) if through else (None,),
        )
        translations = (False, True) if any(rule.translated for rule in rules) else (None,)
        for translated in translations:
            at = replace(spot, translated=translated)
            for cell in self._cells(at, before, after, [peers for _, peers in paths]):
                yield from _compare_cell(at, cell)

    def _cells(
        self, spot: _Spot, before: Sequence[Rule], after: Sequence[Rule], managers: Sequence[PeerGroup]
    ) -> Iterator[_Cell]:
        made: dict[tuple[int, tuple[int, ...]], Ruleset] = {}
        for version in (4, 6):
            for far, mine, theirs in _sweep(before, after, managers, version):
                for side, rules in enumerate((mine, theirs)):
                    if (side, _ids(rules)) not in made:
                        made[side, _ids(rules)] = _with_rules(self._bare[side], spot.direction, rules)
                old, new = made[0, _ids(mine)], made[1, _ids(theirs)]
                destinations = [rule.destinations for rule in (*mine, *theirs)]
                through = spot.direction is Direction.THROUGH
                nears = _classify(destinations, version).values() if through else [None]
                self._left -= len(far)
                for near in nears:
                    self._left -= len(spot.places) * len(spot.outs)
                    if self._left < 0:
                        self.is_over = True
                        return
                    yield _Cell(old, new, version, far, near)

    def _paths(self, direction: Direction, protocol: Protocol | None) -> list[tuple[Rule, PeerGroup]]:
        """Return the management rules of both rulesets for that direction and protocol, with whom they are for."""
        paths = [ruleset.management for ruleset in self._rules if ruleset.management is not None]
        pairs: list[tuple[Rule, PeerGroup]] = []
        if direction is Direction.IN:
            pairs = [(path.service, path.peers) for path in paths]
        elif direction is Direction.OUT:
            pairs = [(path.egress, path.egress.peers) for path in paths if path.egress is not None]
        return [(rule, peers) for rule, peers in pairs if rule.protocol is protocol]


def _compare_cell(spot: _Spot, cell: _Cell) -> Iterator[Change]:
    """Yield the changes of one cell, each with the identities for which it is so."""
    rules = [rule for ruleset in (cell.old, cell.new) for rule in _rules_of(ruleset, spot.direction)]
    macs = sorted({mac for rule in rules for mac in rule.peers.macs})
    names = sorted({name for rule in rules for name in rule.peers.names})
    near = sorted({f"to {name}" for rule in rules for name in rule.destinations.names})
    choices = product(*([(), *((one,) for one in some)] for some in (macs, names, near)))
    identities = [tuple(name for choice in together for name in choice) for together in choices]
    holds: dict[tuple[_Kind, _Where], list[Identity]] = {}
    for identity in identities:
        for kind, where in _compare_places(spot, cell, identity).items():
            holds.setdefault((kind, where), []).append(identity)
    for (kind, where), found in holds.items():
        everybody = len(found) == len(identities)
        yield from _encode(
            spot, cell, (() if everybody else (*macs, *names, *near), ((),) if everybody else tuple(found)), kind, where
        )


def _compare_places(spot: _Spot, cell: _Cell, identity: Identity) -> dict[_Kind, _Where]:
    """Return for each kind of difference the interfaces where it is."""
    there = _ADDRESS[cell.version](cell.far[0][0])
    # From the other end of its ranges: a name that stands for one side must not stand for the other by accident.
    here = _ADDRESS[cell.version](cell.near[-1][1] if cell.near is not None else 1)
    outgoing = spot.direction is Direction.OUT
    mac = next((name for name in identity if ":" in name), _MACLESS)
    resolved: dict[str, dict[Address, int]] = {}
    for name in identity:
        if ":" not in name:
            resolved.setdefault(name.removeprefix("to "), {})[here if name.startswith("to ") else there] = 1
    base = Packet(
        direction=spot.direction,
        interface=None,
        source=here if outgoing else there,
        destination=there if outgoing else here,
        mac=mac,
        protocol=spot.protocol,
        port=spot.spans[0].first if spot.spans else 0,
        icmp=Icmp.ECHO_REQUEST if spot.protocol is Protocol.PING else None,
        translated=bool(spot.translated),
    )
    found: dict[_Kind, set[tuple[str | None, str | None]]] = {}
    limits = spot.protocol is Protocol.PING or any(_has_limits(ruleset) for ruleset in (cell.old, cell.new))
    for place, out in product(spot.places, spot.outs):
        packet = replace(base, interface=place, out_interface=out)
        within = [_outcome(explain_packet(ruleset, packet, resolved=resolved)) for ruleset in (cell.old, cell.new)]
        beyond = within
        if limits:
            packet = replace(packet, over_threshold=True)
            beyond = [_outcome(explain_packet(ruleset, packet, resolved=resolved)) for ruleset in (cell.old, cell.new)]
        for kind in _describe(within, beyond):
            found.setdefault(kind, set()).add((place, out))
    return {kind: frozenset(where) for kind, where in found.items()}


def _has_limits(ruleset: Ruleset) -> bool:
    return bool(ruleset.thresholds) or any(rule.is_limited for rule in ruleset.rules())


def _describe(within: Sequence[Outcome], beyond: Sequence[Outcome]) -> Iterator[_Kind]:
    """Yield what differs, within and beyond limits; once where that is the same."""
    if _differ(*within) and [_gist(one) for one in within] == [_gist(one) for one in beyond]:
        yield "", within[0], within[1]
        return
    if _differ(*within):
        yield WITHIN, within[0], within[1]
    if _differ(*beyond):
        yield BEYOND, beyond[0], beyond[1]


def _gist(one: Outcome) -> tuple[bool, str | None]:
    return one.accepted, one.fields


def _differ(old: Outcome, new: Outcome) -> bool:
    return _gist(old) != _gist(new)


def _outcome(decision: Decision) -> Outcome:
    return Outcome(accepted=decision.verdict is Verdict.ACCEPT, rule=decision.rule, fields=decision.fields)


def _encode(
    spot: _Spot, cell: _Cell, who: tuple[Identity, tuple[Identity, ...]], kind: _Kind, where: _Where
) -> Iterator[Change]:
    """Yield the changes of one kind in one cell: those incoming interfaces together that have the same outgoing."""
    by_outs: dict[tuple[str | None, ...], list[str | None]] = {}
    for place in spot.places:
        if outs := tuple(out for out in spot.outs if (place, out) in where):
            by_outs.setdefault(outs, []).append(place)
    for outs, places in by_outs.items():
        yield Change(
            direction=spot.direction,
            protocol=spot.protocol,
            spans=spot.spans,
            is_rest=spot.is_rest,
            interfaces=_spell(places, spot.places),
            out_interfaces=_spell(outs, spot.outs),
            far=_who(cell.version, cell.far),
            near=None if cell.near is None else _who(cell.version, cell.near),
            names=who[0],
            identities=who[1],
            load=kind[0],
            translated=spot.translated,
            old=kind[1],
            new=kind[2],
        )


def _spell(places: Sequence[str | None], every: Sequence[str | None]) -> tuple[str, ...]:
    """Return interfaces by name; where those that nobody names are among them, by the names that are not."""
    if _OTHER in places:
        return tuple(f"{NOT}{name}" for name in every if name is not None and name not in places)
    return tuple(name for name in places if name is not None)


def _who(version: int, spans: tuple[Span, ...]) -> Who:
    return Who(v4=spans) if version == 4 else Who(v6=spans)


def _places(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return (*sorted({name for names in lists for name in names}), _OTHER)


def _rules_of(ruleset: Ruleset, direction: Direction) -> tuple[Rule, ...]:
    if direction is Direction.IN:
        return ruleset.services
    return ruleset.egress if direction is Direction.OUT else ruleset.routes


def _with_rules(bare: Ruleset, direction: Direction, rules: Sequence[Rule]) -> Ruleset:
    if direction is Direction.IN:
        return replace(bare, services=tuple(rules))
    return replace(bare, egress=tuple(rules)) if direction is Direction.OUT else replace(bare, routes=tuple(rules))


def _ids(rules: Sequence[Rule]) -> tuple[int, ...]:
    return tuple(id(rule) for rule in rules)


def _by_cut(groups: Sequence[PortGroup], cuts: Sequence[int]) -> dict[int, Sequence[Rule]]:
    """Return the rules of each span between two cuts, by its first port."""
    found: dict[int, Sequence[Rule]] = {}
    for group in groups:
        for cut in cuts[bisect_left(cuts, group.first) : bisect_left(cuts, group.last + 1)]:
            found[cut] = group.rules
    return found


def _spans(group: PeerGroup, version: int) -> list[Span]:
    if group.everyone:
        return [WHOLE[version]]
    prefixes = group.v4 if version == 4 else group.v6
    return [(int(prefix.network_address), int(prefix.broadcast_address)) for prefix in prefixes]


def _classify(groups: Iterable[PeerGroup], version: int) -> dict[frozenset[int], tuple[Span, ...]]:
    """Return all addresses by the numbers of the groups that have them, as rising ranges.

    An exclusion leaves dozens of prefixes, all of which are of the same groups: one packet speaks for them.
    """
    begins: defaultdict[int, list[int]] = defaultdict(list)
    ends: defaultdict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        for first, last in _spans(group, version):
            begins[first].append(number)
            ends[last + 1].append(number)
    classes: defaultdict[frozenset[int], list[Span]] = defaultdict(list)
    active: set[int] = set()
    for first, following in pairwise(sorted({0, WHOLE[version][1] + 1, *begins, *ends})):
        active.difference_update(ends.get(first, ()))
        active.update(begins.get(first, ()))
        classes[frozenset(active)].append((first, following - 1))
    return {active: tuple(spans) for active, spans in classes.items()}


def _sweep(
    before: Sequence[Rule], after: Sequence[Rule], managers: Sequence[PeerGroup], version: int
) -> Iterator[tuple[tuple[Span, ...], list[Rule], list[Rule]]]:
    """Yield addresses that no rule tells apart, each with the rules of both sides that may be for them."""
    rules = [*before, *after]
    always = {number for number, rule in enumerate(rules) if rule.peers.names or rule.peers.macs}
    for active, spans in _classify([*(rule.peers for rule in rules), *managers], version).items():
        found = sorted(number for number in active | always if number < len(rules))
        mine = [rules[number] for number in found if number < len(before)]
        yield spans, mine, [rules[number] for number in found if number >= len(before)]


def _frame(ruleset: Ruleset) -> tuple[object, ...]:
    """Return what decides about packets besides the rules."""
    return (
        ruleset.mode,
        ruleset.forward,
        ruleset.management,
        ruleset.egress_default,
        bool(ruleset.ping_per_s),
        bool(ruleset.thresholds),
    )


def _find_notes(old: Ruleset, new: Ruleset) -> Iterator[str]:
    if old.default is not new.default:
        answers = "silence" if new.default is Default.DENY else "an answer"
        yield f"what no service allows now meets {answers}"
    if Mode.LOCKDOWN in (old.mode, new.mode) and old.mode is not new.mode:
        yield f"running connections that lockdown does not keep {'end' if new.mode is Mode.LOCKDOWN else 'may go on'}"
    for name in ("ping_per_s", "thresholds", "masquerades", "port_forwards", "links", "fields", "conntrack", "never"):
        if getattr(old, name) != getattr(new, name):
            yield f"{name.replace('_', ' ')} changed"
    before = {rule.label: rule for rule in old.rules()}
    for rule in new.rules():
        was = before.get(rule.label)
        if was is None:
            continue
        for name in ("limit", "thresholds", "syn_proxy", "observe", "kept"):
            if getattr(was, name) != getattr(rule, name):
                yield f"{rule.label}: {name} changed"
