"""What a ruleset may come to occupy in the kernel, were all its sets full. Pure.

An upper bound: sets that the compiler declares once for several rules are counted for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tidegate.firewall.bantable import set_names
from tidegate.firewall.blocks import DNS_SET_SIZE
from tidegate.firewall.dispatch import MAX_CELLS, MAX_PORTS
from tidegate.firewall.model import PeerGroup, Rule, Ruleset, Threshold
from tidegate.firewall.section import Per

# Measured on Linux 6 for sets of 100,000 elements and for 5,000 rules: 14.4 MB, 16.6 MB, 2.3 MB.
HASH_BYTES, INTERVAL_BYTES, RULE_BYTES = 147, 170, 470
FIXED_RULES = 48  # the chains that every policy has, in both tables
ONE_FOR_ALL = 16  # the size of a set with a single key
_MAX_GATES = 65_536  # there are no more /16s (bantable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Elements of hash sets and of interval sets, and rules."""

    hashed: int = 0
    intervals: int = 0
    rules: int = 0

    @property
    def elements(self) -> int:
        """Elements of both kinds of set: what ``set_budget`` bounds."""
        return self.hashed + self.intervals

    @property
    def size_bytes(self) -> int:
        """Kernel memory, as far as it grows with the policy."""
        return self.hashed * HASH_BYTES + self.intervals * INTERVAL_BYTES + self.rules * RULE_BYTES

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            hashed=self.hashed + other.hashed,
            intervals=self.intervals + other.intervals,
            rules=self.rules + other.rules,
        )


def measure_cost(ruleset: Ruleset) -> Cost:
    """Return what ``ruleset`` can occupy at most."""
    total = Cost(rules=FIXED_RULES)
    for part in _parts(ruleset):
        total += part
    return total


def measure_rule(rule: Rule) -> Cost:
    """Return what one rule can occupy at most: its ports, peers and meters."""
    sizes = [span.last - span.first + 1 for span in rule.spans]
    ports = sum(size if size <= MAX_PORTS else 1 for size in sizes)
    far, near = _count_peers(rule.peers), _count_peers(rule.destinations)
    dynamic = _limit_elements(rule) + sum(_threshold_elements(one) for one in rule.thresholds)
    macs = len(rule.peers.macs) + 2 * DNS_SET_SIZE * (len(rule.peers.names) + len(rule.destinations.names))
    # As keys of hash maps, each port with each pair of prefixes, or else as sets of prefixes in a chain.
    cells = ports * max(1, far) * max(1, near)
    if cells <= MAX_CELLS and not (rule.is_limited or rule.fields or rule.observe):
        return Cost(hashed=cells + ports + macs, intervals=0 if rule.spans else far + near, rules=1)
    return Cost(hashed=ports + macs + dynamic, intervals=far + near, rules=4 + 3 * len(rule.thresholds))


def count_elements(ruleset: Ruleset) -> int:
    """Return how many set elements the ruleset can hold at most in the kernel, fixed and dynamic."""
    return measure_cost(ruleset).elements


def _parts(ruleset: Ruleset) -> Iterator[Cost]:
    gates = 2 * min(4 * ruleset.ban_max, _MAX_GATES)
    yield Cost(hashed=len(set_names()) * ruleset.ban_max + gates, intervals=2 + _count_peers(ruleset.never))
    if ruleset.management is not None:
        yield Cost(intervals=2 * _count_peers(ruleset.management.peers))  # in the table of bans, too
    for rule in ruleset.rules():
        yield measure_rule(rule)
    for masquerade in ruleset.masquerades:
        yield Cost(intervals=_count_peers(masquerade.sources), rules=2)
    yield Cost(
        hashed=sum(_threshold_elements(one) for one in ruleset.thresholds),
        rules=len(ruleset.port_forwards) + 8 * len(ruleset.thresholds),
    )


def _limit_elements(rule: Rule) -> int:
    limit = rule.limit
    if limit is None:
        return 0
    per_source = sum(kind is not None for kind in (limit.new_per_s, limit.connections))
    if rule.syn_proxy and limit.new_per_s is not None:
        per_source += 1  # handshakes are metered apart
    return 2 * limit.sources * per_source + (0 if limit.total_connections is None else ONE_FOR_ALL)


def _threshold_elements(one: Threshold) -> int:
    """With hysteresis there are three sets (``meters``); per source, of each family."""
    sets = 3 if one.low < one.high else 1
    return sets * (2 * one.sources if one.per is Per.SOURCE else ONE_FOR_ALL)


def _count_peers(group: PeerGroup) -> int:
    return 0 if group.everyone else len(group.v4) + len(group.v6)
