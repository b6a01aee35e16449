"""Limits and thresholds as nftables statements. Pure.

Positive logic throughout: what is under its limit is admitted, and only that. A set that is full cannot take a new
source, the statement breaks, nothing is admitted; "over the limit: drop" would break likewise, and let the packet
through.

A threshold with hysteresis has three sets: ``rate`` measures against the high mark, ``hot`` holds who went beyond it,
``low`` measures those against the low mark. Whoever is hot stays so until an interval goes by below the low mark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.firewall.blocks import SADDR, Block, masked
from tidegate.firewall.model import Limit, Rule, Threshold
from tidegate.firewall.section import Count, Per

# A source is forgotten after so long without a new connection, or later if its burst takes longer to refill: forgotten
# earlier, it would start with a full burst again. Shorter, a flood of forged sources gets in at a higher rate (sources
# divided by this); longer, strangers wait longer after it.
MIN_RATE_MEMORY_S = 10
# A host picks its IPv6 addresses within a /64 (RFC 4291 §2.5.4): that is a source, or it would be as many as it likes.
_LIMIT_LENGTHS = {4: 32, 6: 64}
_ONE_KEY = "meta mark & 0x0"  # always 0: one meter for all, of both families
_UNITS_S = (("second", 1), ("minute", 60), ("hour", 3600), ("day", 86400))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exits:
    """Where a metered packet goes: the words of admission, of refusal, and the counter of refusals."""

    admit: str
    refuse: str  # without a verdict: back to the caller, where another rule may allow it
    counter: str
    report: str = ""  # words that log a refused packet


def encode_rate(high: int, interval_s: int) -> str:
    """Return ``limit``'s words for ``high`` packets an interval: the smallest unit in which the rate is whole."""
    for unit, seconds in _UNITS_S:
        if high * seconds % interval_s == 0:
            return f"limit rate {high * seconds // interval_s}/{unit} burst {high} packets"
    unit, seconds = _UNITS_S[-1]
    return f"limit rate {max(1, high * seconds // interval_s)}/{unit} burst {high} packets"


def add_rule_meters(block: Block, name: str, rule: Rule, exits: Exits) -> str:
    """Declare the meters of a rule's new packets and return the chain in which they are decided.

    A chain for each threshold with hysteresis, and a last one for everything else. Named counters are the caller's.
    """
    counted = [one for one in rule.thresholds if one.count is Count.NEW]
    steep = [one for one in counted if one.low < one.high]
    plain = [one for one in counted if one.low == one.high]
    names = [f"{name}_gate", *(f"{name}_gate{number}" for number in range(1, len(steep) + 1))]
    for number, threshold in enumerate(steep):
        _add_steep(block, f"{name}_t{number}", threshold, names[number], f"goto {names[number + 1]}", exits)
    words = {family: _plain_words(block, name, rule.limit, plain, family) for family in (4, 6)}
    lines = [f"meta nfproto ipv{family} {words[family]} {exits.admit}" for family in (4, 6)]
    block.chain(names[-1], [*lines, *_refusal(exits)])
    return names[0]


def add_total(block: Block, name: str, threshold: Threshold, exits: Exits) -> str:
    """Declare the meter of one threshold alone, and return its chain."""
    if threshold.low < threshold.high:
        _add_steep(block, name, threshold, f"{name}_gate", exits.admit, exits)
        return f"{name}_gate"
    words = {family: _rate_words(block, f"{name}_rate", threshold, family) for family in (4, 6)}
    lines = [f"{_family(threshold, family)}{words[family]} {exits.admit}" for family in _families(threshold)]
    return block.chain(f"{name}_gate", [*lines, *_refusal(exits)])


def rate_words(block: Block, name: str, limit: Limit | None, family: int) -> str:
    """Return the words that admit what is under the limit's rate; nothing when it has none."""
    if limit is None or limit.new_per_s is None:
        return ""
    refill_s = -(-limit.burst // limit.new_per_s) + 1
    memory_s = max(MIN_RATE_MEMORY_S, refill_s)
    known = block.dynamic_set(f"{name}_rate{family}", f"ipv{family}_addr", size=limit.sources, timeout_s=memory_s)
    source = masked(SADDR[family], family, _LIMIT_LENGTHS[family])
    return f"update @{known} {{ {source} limit rate {limit.new_per_s}/second burst {limit.burst} packets }} "


def _plain_words(block: Block, name: str, limit: Limit | None, plain: Sequence[Threshold], family: int) -> str:
    words = rate_words(block, name, limit, family)
    for number, threshold in enumerate(plain):
        words += _rate_words(block, f"{name}_p{number}_rate", threshold, family)
    if limit is not None and limit.connections is not None:
        # No timeout: the kernel drops an element by itself when its last connection ends.
        known = block.dynamic_set(f"{name}_conns{family}", f"ipv{family}_addr", size=limit.sources, timeout_s=None)
        source = masked(SADDR[family], family, _LIMIT_LENGTHS[family])
        words += f"add @{known} {{ {source} ct count {limit.connections} }} "
    if limit is not None and limit.total_connections is not None:
        known = block.dynamic_set(f"{name}_all", "mark", size=16, timeout_s=None)
        words += f"add @{known} {{ {_ONE_KEY} ct count {limit.total_connections} }} "
    return words.strip()


def _add_steep(block: Block, name: str, threshold: Threshold, gate: str, admit: str, exits: Exits) -> None:
    """Add the chains of a threshold with hysteresis: the gate, the way over it, and where the hot wait."""
    over, hot = f"{name}_over", f"{name}_hot"
    gate_lines, over_lines, hot_lines = [], [], []
    for family in _families(threshold):
        key, start = _key(threshold, family), _family(threshold, family)
        size, kind = _size(threshold), _kind(threshold, family)
        hot_set = block.dynamic_set(f"{name}_hot{family}", kind, size=size, timeout_s=threshold.interval_s)
        low_set = block.dynamic_set(f"{name}_low{family}", kind, size=size, timeout_s=_memory_s(threshold))
        low = encode_rate(threshold.low, threshold.interval_s).replace("limit rate ", "limit rate over ")
        gate_lines += [
            f"{start}{key} @{hot_set} goto {hot}",
            f"{start}{_rate_words(block, f'{name}_rate', threshold, family)}{admit}",
        ]
        over_lines.append(f"{start}update @{hot_set} {{ {key} }}")
        hot_lines.append(f"{start}update @{low_set} {{ {key} {low} }} update @{hot_set} {{ {key} }}")
    block.chain(over, [*over_lines, *_refusal(exits)])
    block.chain(hot, [*hot_lines, *_refusal(exits)])
    block.chain(gate, [*gate_lines, f"goto {over}"])


def _rate_words(block: Block, name: str, threshold: Threshold, family: int) -> str:
    family = family if threshold.per is Per.SOURCE else 4
    known = block.dynamic_set(
        f"{name}{family}", _kind(threshold, family), size=_size(threshold), timeout_s=_memory_s(threshold)
    )
    return f"update @{known} {{ {_key(threshold, family)} {encode_rate(threshold.high, threshold.interval_s)} }} "


def _families(threshold: Threshold) -> tuple[int, ...]:
    """A meter for all has one set for both families; it is called that of IPv4."""
    return (4, 6) if threshold.per is Per.SOURCE else (4,)


def _family(threshold: Threshold, family: int) -> str:
    return f"meta nfproto ipv{family} " if threshold.per is Per.SOURCE else ""


def _kind(threshold: Threshold, family: int) -> str:
    return f"ipv{family}_addr" if threshold.per is Per.SOURCE else "mark"


def _size(threshold: Threshold) -> int:
    """A meter for all has one key; 16 is the least that the policy lets a set have."""
    return threshold.sources if threshold.per is Per.SOURCE else 16


def _key(threshold: Threshold, family: int) -> str:
    if threshold.per is not Per.SOURCE:
        return _ONE_KEY
    return masked(SADDR[family], family, threshold.prefix_v4 if family == 4 else threshold.prefix_v6)


def _memory_s(threshold: Threshold) -> int:
    return max(MIN_RATE_MEMORY_S, threshold.interval_s + 1)


def _refusal(exits: Exits) -> list[str]:
    report = [exits.report] if exits.report else []
    return [*report, f"counter name {exits.counter} {exits.refuse}".rstrip()]
