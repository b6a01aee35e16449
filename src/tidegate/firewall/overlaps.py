"""Rules that meet on one port: which of them decide nothing, add their limits up, or contradict each other. Pure.

Rules meet when some packet is for both. They are found port by port, and there by one walk over their prefixes: a
thousand rules that never meet cost a thousand steps, not a million.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

from tidegate.firewall.dispatch import plan_port_groups
from tidegate.firewall.errors import FieldsOverlap, TooManyOverlaps
from tidegate.firewall.findings import Finding, error, warning
from tidegate.firewall.model import Kind, PeerGroup, PortSpan, Rule
from tidegate.firewall.section import Count, Protocol

# Pairs that are looked at: every rule of 400 with every other. 0.2 s; more of them nobody can judge, us included.
MAX_PAIRS = 100_000
MAX_STEPS = 5_000_000  # of the walk over prefixes: a second
MAX_TOLD = 3  # findings of one kind about one rule

Span = tuple[int, int]  # first and last address, both included, as numbers
Spans = tuple[tuple[Span, ...], tuple[Span, ...]]  # of IPv4 and IPv6, disjoint and rising
_WHOLE: Spans = (((0, (1 << 32) - 1),), ((0, (1 << 128) - 1),))


def check_overlaps(rules: Sequence[Rule]) -> Iterator[Finding]:
    """Yield what is wrong with the rules of one hook where they meet.

    ``firewall.check.fields-overlap`` and ``.too-many-overlaps`` are errors; ``.duplicate``, ``.shadowed``,
    ``.overlapping`` are warnings. A rule that several others cover together, and none of them alone, is not found.
    """
    pairs = _Pairs()
    told: dict[tuple[str, str], int] = defaultdict(int)
    for a, b in pairs.find(rules):
        for finding in _judge(pairs, a, b):
            key = (finding.code, finding.subject)
            told[key] += 1
            if told[key] <= MAX_TOLD:
                yield finding
    if pairs.is_over:
        text = f"more than {MAX_PAIRS} pairs of rules overlap; they cannot be judged"
        yield error(TooManyOverlaps.code, str(rules[0].kind), text)


class _Pairs:
    """Finds the pairs of rules that meet, and remembers each group's addresses as numbers."""

    def __init__(self) -> None:
        self._spans: dict[int, Spans] = {}
        self._steps = 0
        self.is_over = False

    def find(self, rules: Sequence[Rule]) -> Iterator[tuple[Rule, Rule]]:
        """Yield each pair of rules that meet, once."""
        seen: set[tuple[int, int]] = set()
        for members in _meeting_places(rules):
            for a, b in self._meet(members):
                first, second = (a, b) if (a.kind, a.name) < (b.kind, b.name) else (b, a)
                if (id(first), id(second)) in seen:
                    continue
                if len(seen) >= MAX_PAIRS:
                    self.is_over = True
                    return
                seen.add((id(first), id(second)))
                if self._overlap(first, second):
                    yield first, second

    def contains(self, outer: Rule, inner: Rule) -> bool:
        """Return whether every packet for ``inner`` is one for ``outer``."""
        return (
            outer.protocol is inner.protocol
            and all(any(_holds(mine, theirs) for mine in outer.spans) for theirs in inner.spans)
            and _places_hold(outer.interfaces, inner.interfaces)
            and _places_hold(outer.out_interfaces, inner.out_interfaces)
            and (inner.translated or not outer.translated)
            and self._covers(outer.peers, inner.peers)
            and self._covers(outer.destinations, inner.destinations)
        )

    def _overlap(self, a: Rule, b: Rule) -> bool:
        """Return whether interfaces and destinations meet too; protocol, ports and peers are known to."""
        return (
            _places_meet(a.interfaces, b.interfaces)
            and _places_meet(a.out_interfaces, b.out_interfaces)
            and (a.destinations is b.destinations or self._groups_meet(a.destinations, b.destinations))
        )

    def _meet(self, members: Sequence[Rule]) -> Iterator[tuple[Rule, Rule]]:
        """Yield pairs of rules some of whose peers are the same."""
        met: dict[int, set[int]] = {id(rule): {id(rule)} for rule in members}
        for version in (0, 1):
            marked = [(first, -last, rule) for rule in members for first, last in self._of(rule.peers)[version]]
            yield from self._walk(sorted(marked, key=_by_span), met)
        named: dict[str, list[Rule]] = defaultdict(list)
        for rule in members:
            for name in (*rule.peers.macs, *rule.peers.names):
                for other in named[name]:
                    yield other, rule
                named[name].append(rule)

    def _walk(self, marked: Iterable[tuple[int, int, Rule]], met: dict[int, set[int]]) -> Iterator[tuple[Rule, Rule]]:
        """Yield pairs whose spans meet and that are not in ``met``.

        Prefixes lie inside one another or apart, so the spans that meet one are those open where it begins.
        """
        opened: list[tuple[int, Rule]] = []
        for first, negative_last, rule in marked:
            while opened and opened[-1][0] < first:
                opened.pop()
            mine = met[id(rule)]
            if len(mine) < len(met):
                self._steps += len(opened)
                for _, other in opened:
                    if id(other) not in mine:
                        mine.add(id(other))
                        met[id(other)].add(id(rule))
                        yield other, rule
            opened.append((-negative_last, rule))
            if self._steps > MAX_STEPS:
                self.is_over = True
                return

    def _groups_meet(self, a: PeerGroup, b: PeerGroup) -> bool:
        if set(a.names) & set(b.names):
            return True
        few, many = sorted((self._of(a), self._of(b)), key=lambda spans: len(spans[0]) + len(spans[1]))
        return any(_find_meeting(many[version], span) for version in (0, 1) for span in few[version])

    def _covers(self, outer: PeerGroup, inner: PeerGroup) -> bool:
        if outer is inner or outer.everyone:
            return True
        if inner.everyone or not (set(inner.macs) <= set(outer.macs) and set(inner.names) <= set(outer.names)):
            return False
        mine, theirs = self._of(outer), self._of(inner)
        return all(_find_holding(mine[version], span) for version in (0, 1) for span in theirs[version])

    def _of(self, group: PeerGroup) -> Spans:
        if group.everyone:
            return _WHOLE
        known = self._spans.get(id(group))  # the groups outlive this object, so an id stays the group's
        if known is None:
            known = self._spans[id(group)] = (_numbers(group.v4), _numbers(group.v6))
        return known


def _meeting_places(rules: Sequence[Rule]) -> Iterator[Sequence[Rule]]:
    """Yield every list of rules that have a port, or a protocol without ports, in common."""
    yield from (group.rules for group in plan_port_groups(rules) if len(group.rules) > 1)
    portless: Mapping[Protocol, list[Rule]] = defaultdict(list)
    for rule in rules:
        if not rule.protocol.has_ports:
            portless[rule.protocol].append(rule)
    yield from (members for members in portless.values() if len(members) > 1)


def _by_span(marked: tuple[int, int, Rule]) -> tuple[int, int]:
    return marked[0], marked[1]


def _judge(pairs: _Pairs, a: Rule, b: Rule) -> Iterator[Finding]:
    """Yield what is to be said of two rules that meet; ``a`` has the smaller name."""
    if a.fields != b.fields:
        text = f"{b.label} and {a.label} overlap, with different content rules ({_fields(b)} and {_fields(a)})"
        yield error(FieldsOverlap.code, b.label, text)
        return
    b_in_a, a_in_b = pairs.contains(a, b), pairs.contains(b, a)
    if a_in_b and b_in_a and _treats_alike(a, b):
        yield warning("duplicate", b.label, f"{b.label} says the same as {a.label}")
    elif b_in_a and _makes_idle(a, b):
        yield warning("shadowed", b.label, f"{b.label} decides nothing: {a.label} allows all of it without a limit")
    elif a_in_b and _makes_idle(b, a):
        yield warning("shadowed", a.label, f"{a.label} decides nothing: {b.label} allows all of it without a limit")
    elif _adds_up(a) and _adds_up(b):
        text = f"{b.label} and {a.label} overlap: who is over the limit of one has the other's, so the sum counts"
        yield warning("overlapping", b.label, text)


def _fields(rule: Rule) -> str:
    return rule.fields or "none"


def _treats_alike(a: Rule, b: Rule) -> bool:
    return (a.limit, a.thresholds, a.observe, a.kept, a.syn_proxy) == (
        b.limit,
        b.thresholds,
        b.observe,
        b.kept,
        b.syn_proxy,
    )


def _makes_idle(outer: Rule, inner: Rule) -> bool:
    """Return whether ``inner`` changes nothing, where ``outer`` contains it."""
    counts_packets = any(one.count is Count.PACKETS for one in inner.thresholds)  # no other rule overrides that
    keeps_open = inner.kept and not outer.kept
    proxies = inner.syn_proxy and not outer.syn_proxy
    return not (outer.is_limited or counts_packets or keeps_open or proxies) and inner.kind is not Kind.PORT_FORWARD


def _adds_up(rule: Rule) -> bool:
    """Return whether a packet over the rule's limits may still pass by another rule."""
    counts_new = rule.limit is not None or any(one.count is Count.NEW for one in rule.thresholds)
    return counts_new and not rule.observe


def _holds(outer: PortSpan, inner: PortSpan) -> bool:
    return outer.first <= inner.first and inner.last <= outer.last


def _places_hold(outer: Sequence[str], inner: Sequence[str]) -> bool:
    return not outer or (bool(inner) and set(inner) <= set(outer))


def _places_meet(a: Sequence[str], b: Sequence[str]) -> bool:
    return not a or not b or not set(a).isdisjoint(b)


def _numbers(prefixes: Sequence[IPv4Network] | Sequence[IPv6Network]) -> tuple[Span, ...]:
    spans = []
    for prefix in prefixes:
        first = int(prefix.network_address)
        spans.append((first, first | ((1 << (prefix.max_prefixlen - prefix.prefixlen)) - 1)))
    return tuple(spans)


def _find_holding(spans: Sequence[Span], wanted: Span) -> bool:
    """Return whether one of the disjoint rising ``spans`` holds all of ``wanted``."""
    place = bisect_right(spans, (wanted[0], 1 << 128)) - 1
    return place >= 0 and spans[place][1] >= wanted[1]


def _find_meeting(spans: Sequence[Span], wanted: Span) -> bool:
    """Return whether one of the disjoint rising ``spans`` has an address of ``wanted``."""
    place = bisect_right(spans, (wanted[1], 1 << 128)) - 1
    return place >= 0 and spans[place][1] >= wanted[0]
