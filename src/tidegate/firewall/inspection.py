"""How packets of rules with content rules reach the inspector, and what becomes of those that do not. Pure.

Three chains a hook, after the filter has let a packet through: ``fields_mark`` writes into the top byte of the packet's
mark which content rule has to be satisfied; then the packet goes to the inspector (nft's ``queue``, or where the kernel
lacks that, iptables' NFQUEUE in its ``security`` table, which ``xtqueue`` keeps); ``fields_check`` refuses what still
has to be inspected. The inspector clears the top byte of what it lets pass, so without inspector, without queue or with
a full one, nothing passes that the policy wants inspected. Packets of established connections go the same way: a
connection that is older than the policy is no way around it, and neither is one that goes on by another interface, from
another MAC address, or after the name that let it in stands for somebody else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

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
from tidegate.firewall.section import EgressDefault, Mode

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
        lines = _stray_lines(block, hook, ruleset, marks)
        lines += [line for rule in rules for line in _mark_lines(block, hook, rule, marks[rule.fields or ""])]
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


def _stray_lines(block: Block, hook: str, ruleset: Ruleset, marks: Mapping[str, int]) -> list[str]:
    """Return the lines that mark packets of open connections to the ports of content rules, whoever sends them.

    The filter lets a connection go on that was let in once, so who its peer is may have changed since. Whom a rule
    without content rules (or the management path) lets in on these ports is spared again by the lines behind. Where
    what no rule allows passes anyway, there is nothing to go around.
    """
    open_ended = hook == "output" and ruleset.egress_default is EgressDefault.ALLOW
    if open_ended or ruleset.mode is Mode.OBSERVE:
        return []
    rules = {"input": ruleset.services, "output": ruleset.egress, "forward": ruleset.routes}[hook]
    inspected = _inspected(ruleset, rules)
    start = "oifname" if hook == "output" else "iifname"
    lines = []
    for rule in inspected:
        # With two content rules on a port it is not known which one is meant: no rule has number 0, so none passes.
        is_alone = all(other.fields == rule.fields for other in inspected if _share_ports(rule, other))
        mark = marks[rule.fields or ""] if is_alone else MARK_INSPECT
        known = f'{start} != "lo" ct state established ct direction original '
        lines += [f"{known}{one.words} {_set_mark(mark, rule)}" for one in protocol_matches(rule.protocol, rule.spans)]
    spared = {f"{chain_name(rule)}_spared": rule for rule in rules if rule.fields is None}
    if hook == "input" and ruleset.management is not None:
        spared["management_spared"] = replace(ruleset.management.service, peers=ruleset.management.peers)
    for name, rule in spared.items():
        if any(_share_ports(rule, one) for one in inspected):
            lines += _lines(block, hook, rule, name, _set_mark(0, rule))
    return lines


def _share_ports(a: Rule, b: Rule) -> bool:
    return a.protocol is b.protocol and any(x.first <= y.last and y.first <= x.last for x in a.spans for y in b.spans)


def _mark_lines(block: Block, hook: str, rule: Rule, mark: int) -> list[str]:
    """Return the lines that mark packets to the server. What stays on the device (``lo``) is not looked at."""
    return _lines(block, hook, rule, f"{chain_name(rule)}_fields", _set_mark(mark, rule))


def _set_mark(mark: int, rule: Rule) -> str:
    ours = f" | {mark:#010x}" if mark else ""
    return f"meta mark set meta mark & {MARK_REST:#010x}{ours} {comment(rule.label)}"


def _lines(block: Block, hook: str, rule: Rule, name: str, words: str) -> list[str]:
    """Return a line with ``words`` for every way to be a packet of the rule."""
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
    if rule.translated:
        start += "ct status dnat "
    matches = join_matches(protocol_matches(rule.protocol, rule.spans), *sides)
    return [f"{start}{match.words} {words}" for match in matches]


def _head(hook: str, priority: int) -> str:
    return f"type filter hook {hook} priority {priority}; policy accept;"
