"""The model's answer and the kernel's trace, compared and put into words. Pure.

The kernel's word is what counts: a packet is allowed when it came to the end of its way, and refused when it did not,
whatever the rules said on the way. The model says what the policy means. Where the two differ, the answer says so.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tidegate.firewall.compile import BAN_TABLE, TABLE
from tidegate.firewall.errors import WhyDisagree
from tidegate.firewall.evaluate import Decision
from tidegate.firewall.link import LINK_TABLE
from tidegate.firewall.model import Direction, Packet, Ruleset, Verdict
from tidegate.firewall.probe_packet import WHY_TABLE, Probe
from tidegate.firewall.section import Protocol
from tidegate.firewall.trace import Kind, Outcome, TraceEvent

OUR_TABLES = (TABLE, BAN_TABLE, LINK_TABLE)
_CHAIN = re.compile(r"\tchain (?P<name>\S+) \{(?: # handle \d+)?\Z")
_HOOK = re.compile(r"\t\ttype \S+ hook (?P<hook>\S+)")
_RULE_END = re.compile(r"(?P<text>.*) # handle (?P<handle>\d+)\Z", re.DOTALL)
_COMMENT = re.compile(r' comment "(?P<comment>[^"]*)"')
_COUNTER = re.compile(r'\bcounter name "?(?P<name>[^\s"]+)')
_MAP = re.compile(r"(?P<key>\S+(?: \S+)?(?: \. \S+(?: \S+)?)*) vmap @(?P<map>\S+)")
_OWN_HOOKS = {"input_end": "input", "postrouting_end": "postrouting"}  # the other chains are named after their hook


class Answer(StrEnum):
    """What becomes of the packet."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    UNDECIDED = "undecided"  # something outside the rules has it: a queue's program


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleText:
    """One rule as nftables lists it; ``number`` counts from 1 within its chain."""

    number: int
    text: str
    comment: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainText:
    """One chain: its hook, if the kernel calls it by itself, and its rules by handle."""

    hook: str | None
    rules: Mapping[int, RuleText]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happened to the packet. ``hook`` is where it was then; ``rule`` is missing for policies and for
    rules that were removed before they could be listed.
    """

    family: str
    table: str
    chain: str
    hook: str
    handle: int | None
    rule: RuleText | None
    kind: Kind
    outcome: Outcome
    target: str | None = None
    queue: int | None = None
    key: str | None = None  # what a verdict map was asked for

    @property
    def is_ours(self) -> bool:
        """Whether the step is in one of Tidegate's tables."""
        return self.table in OUR_TABLES

    @property
    def is_end(self) -> bool:
        """Whether the packet was dropped here."""
        return self.outcome is Outcome.DROP

    @property
    def name(self) -> str | None:
        """The policy's name of the rule, else that of its counter."""
        if self.rule is None:
            return None
        if self.rule.comment is not None:
            return self.rule.comment
        counter = _COUNTER.search(self.rule.text)
        return counter["name"] if counter else None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDecision:
    """What the kernel did. ``step`` decided it; without one, something that is no nftables rule did."""

    answer: Answer
    verdict: str
    step: Step | None
    reason: str
    path: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """The whole answer. ``conflict`` says in words how model and kernel differ, if both were asked and do."""

    answer: Answer
    verdict: str
    model: Decision | None
    kernel: KernelDecision | None
    conflict: str | None
    notes: tuple[str, ...]

    @property
    def code(self) -> str | None:
        """The code of the disagreement."""
        return None if self.conflict is None else WhyDisagree.code


def parse_rules(listing: str) -> dict[str, ChainText]:
    """Return the chains of one table as ``nft -a -t list table`` prints it."""
    chains: dict[str, ChainText] = {}
    lines = iter(listing.splitlines())
    for line in lines:
        opening = _CHAIN.match(line)
        if opening is not None:
            chains[opening["name"]] = _parse_chain(lines)
    return chains


def _parse_chain(lines: Iterator[str]) -> ChainText:
    hook: str | None = None
    rules: dict[int, RuleText] = {}
    pending = ""
    for line in lines:
        if line == "\t}":
            break
        found = _HOOK.match(line)
        if found is not None and not pending:
            hook = found["hook"]
            continue
        pending = f"{pending} {line.strip()}".strip()  # a long list of elements goes over several lines
        ended = _RULE_END.match(pending)
        if ended is not None:
            comment = _COMMENT.search(ended["text"])
            rules[int(ended["handle"])] = RuleText(
                number=len(rules) + 1,
                text=_COMMENT.sub("", ended["text"]),
                comment=None if comment is None else comment["comment"],
            )
            pending = ""
    return ChainText(hook=hook, rules=rules)


def plan_path(probe: Probe, events: Sequence[TraceEvent], tables: Mapping[tuple[str, str], str]) -> tuple[Step, ...]:
    """Return the packet's steps in their order, each with its rule's text, those of the temporary table included."""
    chains = {name: parse_rules(listing) for name, listing in tables.items()}
    steps: list[Step] = []
    hook, port = "", probe.port
    for event in events:
        chain = chains.get((event.family, event.table), {}).get(event.chain)
        own = _OWN_HOOKS.get(event.chain, event.chain) if event.table == WHY_TABLE else None
        hook = own or (chain.hook if chain is not None else None) or hook
        if len(event.transport) >= 4 and probe.protocol.has_ports:
            port = struct.unpack_from("!H", event.transport, 2)[0]
        rule = chain.rules.get(event.handle) if chain is not None and event.handle is not None else None
        steps.append(
            Step(
                family=event.family,
                table=event.table,
                chain=event.chain,
                hook=hook,
                handle=event.handle,
                rule=rule,
                kind=event.kind,
                outcome=event.outcome,
                target=event.target,
                queue=event.queue,
                key=_read_key(rule, probe, port),
            )
        )
    return tuple(steps)


def judge_path(probe: Probe, steps: Sequence[Step]) -> KernelDecision:
    """Return what the kernel decided, from the steps of ``plan_path``; ``steps`` must not be empty."""
    last = steps[-1]
    # A rule without a handle is the kernel's way to tell that a chain ended without a verdict.
    path = tuple(step for step in steps if step.table != WHY_TABLE)
    if last.table == WHY_TABLE and last.chain in _OWN_HOOKS and last.kind is Kind.RULE:
        if last.hook == "input":
            where = "it comes to the programs of this device"
        elif probe.interface == "lo":
            where = "it goes to this device itself; the rules of its way in were not asked"
        else:
            where = "it leaves the device"
        return KernelDecision(answer=Answer.ALLOWED, verdict="accept", step=_accepter(path), reason=where, path=path)
    if last.outcome is Outcome.DROP:
        verdict = "reject" if last.rule is not None and re.search(r"\breject\b", last.rule.text) else "drop"
        return KernelDecision(answer=Answer.REFUSED, verdict=verdict, step=last, reason="", path=path)
    if last.outcome is Outcome.STOLEN and last.rule is not None and "synproxy" in last.rule.text:
        reason = "the SYN proxy answers; the service sees the connection when its handshake is complete"
        return KernelDecision(answer=Answer.ALLOWED, verdict="synproxy", step=last, reason=reason, path=path)
    if last.outcome in (Outcome.QUEUE, Outcome.STOLEN):
        taker = "another part of the kernel" if last.queue is None else f"the program behind queue {last.queue}"
        return KernelDecision(
            answer=Answer.UNDECIDED, verdict="none", step=last, reason=f"{taker} has it and did not answer", path=path
        )
    return KernelDecision(answer=Answer.REFUSED, verdict="drop", step=None, reason=_lost(probe, last), path=path)


def compare(model: Decision | None, kernel: KernelDecision | None) -> Why:
    """Return the answer from both decisions, or from the one that there is; at least one must be there."""
    notes: list[str] = []
    if model is not None and model.fields is not None:
        notes.append(f"what it carries is judged by the field rules {model.fields}")
    if kernel is None:
        if model is None:
            return Why(answer=Answer.UNDECIDED, verdict="none", model=None, kernel=None, conflict=None, notes=())
        answer = Answer.ALLOWED if model.verdict is Verdict.ACCEPT else Answer.REFUSED
        verdict = model.verdict.value
        return Why(answer=answer, verdict=verdict, model=model, kernel=None, conflict=None, notes=tuple(notes))
    conflict = None
    if model is not None and kernel.step is not None and kernel.step.table == LINK_TABLE and kernel.step.is_end:
        notes.append("the policy's rules for the link refuse it before its other rules are asked")
    elif model is not None and kernel.answer is not Answer.UNDECIDED:
        if (model.verdict is Verdict.ACCEPT) is not (kernel.answer is Answer.ALLOWED):
            conflict = _explain_conflict(model, kernel)
        else:
            notes += _compare_names(model, kernel)
    return Why(
        answer=kernel.answer,
        verdict=kernel.verdict,
        model=model,
        kernel=kernel,
        conflict=conflict,
        notes=tuple(notes),
    )


def plan_packet(probe: Probe, ruleset: Ruleset | None, *, mac: bytes | None = None) -> Packet:
    """Return the probe as the model knows packets. A port forward of ``ruleset`` is taken: the packet is described as
    it is behind the translation.
    """
    packet = Packet(
        direction=probe.direction,
        interface=probe.interface,
        out_interface=probe.out_interface,
        source=probe.source,
        destination=probe.destination,
        mac=None if mac is None else mac.hex(":"),
        protocol=probe.protocol,
        port=probe.port,
        source_port=probe.source_port,
    )
    if ruleset is None or probe.direction is not Direction.IN:
        return packet
    for forward in ruleset.port_forwards:
        if (
            forward.protocol is probe.protocol
            and forward.port == probe.port
            and forward.to.version == probe.destination.version
            and (not forward.interfaces or probe.interface in forward.interfaces)
        ):
            return replace(
                packet,
                direction=Direction.THROUGH,
                destination=forward.to,
                port=forward.to_port,
                translated=True,
            )
    return packet


def encode_lines(probe: Probe, why: Why) -> list[str]:
    """Return the answer for a person."""
    lines = [f"{describe_probe(probe)}: {why.answer.value.upper()}{_in_brackets(why)}"]
    if why.model is not None:
        lines.append(f"model:  {why.model.rule} - {why.model.reason}")
    if why.kernel is not None:
        lines.append(f"kernel: {describe_decision(why.kernel)}")
        lead = find_lead(why.kernel)
        lines += [] if lead is None else [f"led by: {describe_step(lead)}"]
        lines.append(f"path:   {describe_path(why.kernel.path) or 'no rule of any table'}")
    lines += [f"note:   {note}" for note in why.notes]
    if why.conflict is not None:
        lines.append(f"MODEL AND KERNEL DISAGREE: {why.conflict} [{why.code}]")
    return lines


def encode_document(probe: Probe, why: Why) -> dict[str, object]:
    """Return the answer for a program."""
    kernel = why.kernel
    return {
        "packet": {
            "direction": probe.direction.value,
            "interface": probe.interface,
            "source": str(probe.source),
            "destination": str(probe.destination),
            "protocol": probe.protocol.value,
            "port": probe.port if probe.protocol.has_ports else None,
        },
        "answer": why.answer.value,
        "verdict": why.verdict,
        "agree": None if why.model is None or kernel is None else why.conflict is None,
        "code": why.code,
        "conflict": why.conflict,
        "notes": list(why.notes),
        "model": None
        if why.model is None
        else {
            "verdict": why.model.verdict.value,
            "rule": why.model.rule,
            "reason": why.model.reason,
            "fields": why.model.fields,
        },
        "kernel": None
        if kernel is None
        else {
            "verdict": kernel.verdict,
            "reason": kernel.reason,
            "decided_by": None if kernel.step is None else _encode_step(kernel.step),
            "led_by": None if (lead := find_lead(kernel)) is None else _encode_step(lead),
            "path": [_encode_step(step) for step in kernel.path],
        },
    }


def describe_probe(probe: Probe) -> str:
    """Return the question: ``10.0.0.9 → tcp/502 on eth0``."""
    what = f"{probe.protocol.value}/{probe.port}" if probe.protocol.has_ports else probe.protocol.value
    if probe.direction is Direction.OUT:
        return f"this device → {probe.destination} {what}" + (f" by {probe.interface}" if probe.interface else "")
    where = f" on {probe.interface}" if probe.interface else ""
    if probe.direction is Direction.THROUGH:
        return f"{probe.source} → {probe.destination} {what}{where}"
    return f"{probe.source} → {what}{where}"


def describe_step(step: Step) -> str:
    """Return where a step is, and its rule: ``inet tidegate input, rule 14 "denied": counter name denied drop``."""
    where = f"{step.family} {step.table} {step.chain}"
    if step.kind is Kind.POLICY:
        return f"{where}, policy {step.outcome.value}"
    if step.rule is None and step.handle is None:
        return f"{where}, its end"
    if step.rule is None:
        return f"{where}, a rule that is gone (handle {step.handle})"
    name = "" if step.name is None else f' "{step.name}"'
    key = "" if step.key is None else f"  [{step.key} → {step.target or step.outcome.value}]"
    return f"{where}, rule {step.rule.number}{name}: {step.rule.text}{key}"


def describe_decision(kernel: KernelDecision) -> str:
    """Return what decided, and what that means."""
    parts = [] if kernel.step is None else [describe_step(kernel.step)]
    return " - ".join([*parts, kernel.reason] if kernel.reason else parts)


def find_lead(kernel: KernelDecision) -> Step | None:
    """Return the verdict map's rule that led to the chain of the deciding rule, if one did."""
    if kernel.step is None:
        return None
    leads = [step for step in kernel.path if step.key is not None and step.target == kernel.step.chain]
    return leads[-1] if leads else None


def describe_path(path: Sequence[Step]) -> str:
    """Return the chains that the packet went through, and its end."""
    words: list[str] = []
    for step in path:
        name = f"{step.table} {step.chain}"
        if not words or words[-1] != name:
            words.append(name)
    if path and path[-1].outcome is Outcome.DROP:
        words.append("policy drop" if path[-1].kind is Kind.POLICY else "drop")
    return " → ".join(words)


def _accepter(path: Sequence[Step]) -> Step | None:
    """Return the step that let the packet through: ours where we have one, at the last hook that it met."""
    for ours in (True, False):
        accepting = [step for step in path if step.outcome is Outcome.ACCEPT and step.is_ours is ours]
        filters = [step for step in accepting if step.hook in ("input", "forward", "output")]
        by_rule = [step for step in filters if step.kind is Kind.RULE]
        for found in (by_rule, filters):
            if found:
                return found[-1]
    return path[-1] if path else None


def _lost(probe: Probe, last: Step) -> str:
    """Return what can have taken a packet that no rule dropped."""
    if last.hook in ("ingress", "prerouting", ""):
        if probe.unrouted is not None:
            return f"the kernel dropped it before the input hook: {probe.unrouted}"
        return "the kernel dropped it before the input hook: routing, rp_filter, or a table of iptables-legacy"
    return (
        f"no rule of nftables dropped it, but it was gone behind {last.family} {last.table} {last.chain} "
        f"({last.hook} hook): a table of iptables-legacy, an eBPF program or IPsec"
    )


def _explain_conflict(model: Decision, kernel: KernelDecision) -> str:
    said = f"the policy's {model.rule} says {model.verdict.value}"
    if kernel.answer is Answer.REFUSED:
        if kernel.step is None:
            return f"{said}, but {kernel.reason}"
        whose = "" if kernel.step.is_ours else "a table that is not Tidegate's, "
        return f"{said}, but {whose}{describe_step(kernel.step)} refuses it"
    if not any(step.table == TABLE for step in kernel.path):
        return f"{said}, but the packet met no rule of table {TABLE}: the policy is not in force"
    if kernel.step is not None:
        return (
            f"{said}, but {describe_step(kernel.step)} lets it through: another policy is in force, or it was changed"
        )
    return f"{said}, but the kernel lets it through"


def _compare_names(model: Decision, kernel: KernelDecision) -> list[str]:
    """Return a note where both give the same verdict by rules of different names."""
    step = kernel.step
    if step is None:
        return []
    if not step.is_ours:
        return [f"the kernel's verdict is that of a table which is not Tidegate's: {step.family} {step.table}"]
    comment = None if step.rule is None else step.rule.comment
    # Rules that admit for many of the policy's rules at once have a comment with a space, which is no policy's name.
    if comment is None or " " in comment or comment == model.rule:
        return []
    return [f"the policy's {model.rule} decides in the model, {comment} in the kernel"]


def _read_key(rule: RuleText | None, probe: Probe, port: int) -> str | None:
    """Return what a named verdict map was asked for, in the map's own spelling, as far as the probe tells."""
    found = _MAP.search(rule.text) if rule is not None else None
    if found is None:
        return None
    values = {
        "meta l4proto": "icmp" if probe.protocol is Protocol.PING else probe.protocol.value,
        "ip protocol": probe.protocol.value,
        "th dport": str(port),
        "tcp dport": str(port),
        "udp dport": str(port),
        "iifname": f'"{probe.interface}"',
        "ip saddr": str(probe.source),
        "ip6 saddr": str(probe.source),
        "ip daddr": str(probe.destination),
        "ip6 daddr": str(probe.destination),
    }
    parts = found["key"].split(" . ")
    # Before the first part other matches of the rule may stand; its last word or two are the key's.
    first = next((name for name in (parts[0], parts[0].split(" ")[-1]) if name in values), parts[0])
    return " . ".join(values.get(part, part) for part in (first, *parts[1:])) + f" in @{found['map']}"


def _encode_step(step: Step) -> dict[str, object]:
    return {
        "family": step.family,
        "table": step.table,
        "chain": step.chain,
        "hook": step.hook,
        "kind": step.kind.value,
        "handle": step.handle,
        "number": None if step.rule is None else step.rule.number,
        "name": step.name,
        "rule": None if step.rule is None else step.rule.text,
        "outcome": step.outcome.value,
        "target": step.target,
        "key": step.key,
    }


def _in_brackets(why: Why) -> str:
    return "" if why.answer is not Answer.REFUSED else f" ({why.verdict})"
