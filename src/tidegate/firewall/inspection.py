"""How packets of rules with content rules reach the inspector, and what becomes of those that do not. Pure.

Three chains a hook, after the filter has let a packet through: ``fields_mark`` writes into the top byte of the packet's
mark which content rule has to be satisfied; then the packet goes to the inspector (nft's ``queue``, or where the kernel
lacks that, iptables' NFQUEUE in its ``security`` table, which ``xtqueue`` keeps); ``fields_check`` refuses what still
has to be inspected. The inspector clears the top byte of what it lets pass, so without inspector, without queue or with
a full one, nothing passes that the policy wants inspected. Packets of established connections go the same way: a
connection that is older than the policy is no way around it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidegate.firewall.blocks import (
    DADDR,
    SADDR,
    Block,
    comment,
    interface_words,
    join_matches,
    protocol_matches,
)
from tidegate.firewall.dispatch import chain_name
from tidegate.firewall.model import Rule, Ruleset
from tidegate.firewall.section import Mode

MARK_INSPECT = 0x40000000  # has to be inspected
MARK_OPEN = 0x80000000  # may pass if nobody inspects it
MARK_REST = 0x00FFFFFF  # what belongs to others
ID_SHIFT = 24
QUEUE = 5454  # NFQUEUE's number, of 65,536
QUEUE_PRIORITY = 50
# Behind both queues: iptables-nft gives its security table 150, three times what the kernel's header says.
_MARK_PRIORITY, _CHECK_PRIORITY = QUEUE_PRIORITY - 10, 160


def add_inspection(block: Block, ruleset: Ruleset, *, queue: bool) -> None:
    """Declare the chains of every hook in which some rule has content rules; none where there are none."""
    marks = {
        plan.name: MARK_INSPECT | (MARK_OPEN if plan.fail_open or plan.observe else 0) | (plan.id << ID_SHIFT)
        for plan in ruleset.fields
    }
    hooks = (("input", "iifname", ruleset.services), ("output", "oifname", ruleset.egress))
    inspected = {hook: _inspected(ruleset, rules) for hook, _, rules in hooks}
    inspected["forward"] = _inspected(ruleset, ruleset.routes)
    if not any(inspected.values()):
        return
    block.counter("fields_uninspected")
    for hook, rules in inspected.items():
        if not rules:
            continue
        lines = [line for rule in rules for line in _mark_lines(block, hook, rule, marks[rule.fields or ""])]
        block.chain(f"fields_mark_{hook}", [_head(hook, _MARK_PRIORITY), *lines])
        has_to = f"meta mark & {MARK_INSPECT:#x} == {MARK_INSPECT:#x}"
        if queue:
            block.chain(
                f"fields_queue_{hook}", [_head(hook, QUEUE_PRIORITY), f"{has_to} queue flags bypass to {QUEUE}"]
            )
        closed = f"meta mark & {MARK_INSPECT | MARK_OPEN:#x} == {MARK_INSPECT:#x}"
        verdict = "accept" if ruleset.mode is Mode.OBSERVE else "drop"
        refusal = f"{closed} counter name fields_uninspected {verdict} {comment('fields')}"
        block.chain(f"fields_check_{hook}", [_head(hook, _CHECK_PRIORITY), refusal])


def needs_inspector(ruleset: Ruleset) -> bool:
    """Return whether some rule in force has content rules."""
    return any(_inspected(ruleset, rules) for rules in (ruleset.services, ruleset.egress, ruleset.routes))


def _inspected(ruleset: Ruleset, rules: Sequence[Rule]) -> list[Rule]:
    locked = ruleset.mode is Mode.LOCKDOWN
    return [rule for rule in rules if rule.fields is not None and (rule.kept or not locked)]


def _mark_lines(block: Block, hook: str, rule: Rule, mark: int) -> list[str]:
    """Return the lines that mark packets to the server. What stays on the device (``lo``) is not looked at."""
    name = f"{chain_name(rule)}_fields"
    if hook == "output":
        start = interface_words("oifname", rule.interfaces) or 'oifname != "lo" '
        sides = [block.peer_matches(name, rule.peers, DADDR)]
    else:
        start = interface_words("iifname", rule.interfaces) or 'iifname != "lo" '
        sides = [block.peer_matches(name, rule.peers, SADDR)]
    if hook == "forward":
        start += interface_words("oifname", rule.out_interfaces)
        sides.append(block.peer_matches(f"{name}_to", rule.destinations, DADDR))
    if not all(sides):
        return []
    words = f"meta mark set meta mark & {MARK_REST:#010x} | {mark:#010x} {comment(rule.label)}"
    matches = join_matches(protocol_matches(rule.protocol, rule.spans), *sides)
    return [f"{start}{match.words} {words}" for match in matches]


def _head(hook: str, priority: int) -> str:
    return f"type filter hook {hook} priority {priority}; policy accept;"
