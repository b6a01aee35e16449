"""``tidegate firewall plan``: what a policy means, what is wrong with it, what it would change."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.firewall.checks import Finding
    from tidegate.firewall.diff import Difference
    from tidegate.firewall.model import Packet, Rule, Ruleset
    from tidegate.firewall.section import FirewallSection

_MAX_CHANGES = 200  # lines on a terminal; --json has all


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser], default_state: str) -> None:
    """Add the verb."""
    plan = add_verb(
        verbs, "plan", "say what a policy's [firewall] section means, what is wrong with it, what it changes"
    )
    plan.add_argument("policy", type=Path, metavar="POLICY.toml", help="the policy as an operator writes it")
    plan.add_argument("--nft", action="store_true", help="print exactly what `nft -f` would take, and nothing else")
    plan.add_argument(
        "--against", type=Path, metavar="OLD.toml", help="compare with this policy, not with the one in force"
    )
    plan.add_argument("--offline", action="store_true", help="look at nothing but the policy")
    plan.add_argument(
        "--state",
        type=Path,
        default=Path(default_state),
        metavar="DIR",
        help=f"the state folder; default {default_state}",
    )
    plan.set_defaults(run=run_plan)


def run_plan(arguments: argparse.Namespace, output: Output) -> int:
    """Print meaning, findings and differences, or the transaction; 1 when an error finding stands."""
    from tidegate.cli.policy import read_text
    from tidegate.firewall.checks import Severity, check_ruleset, check_written
    from tidegate.firewall.compile import encode_ruleset
    from tidegate.policy.check import read_ruleset

    policy, ruleset = read_ruleset(read_text(arguments.policy), arguments.policy.name)
    text = encode_ruleset(ruleset)
    if arguments.nft:
        output.line(text.rstrip())
        output.result({"nft": text})
        return 0
    before = _section_before(arguments)
    findings = check_ruleset(ruleset, must_pass=_live_sessions(arguments, ruleset, before))
    findings += check_written(policy.firewall) if policy.firewall is not None else []
    difference = _difference(before, ruleset)
    kernel = _kernel_changes(arguments, text)
    _print_meaning(output, ruleset, findings)
    _print_changes(output, difference, kernel)
    output.result(
        {
            "mode": ruleset.mode,
            "findings": [
                {"severity": one.severity, "code": one.code, "subject": one.subject, "message": one.message}
                for one in findings
            ],
            "decided_differently": None if difference is None else [str(change) for change in difference.changes],
            "notes": None if difference is None else list(difference.notes),
            "kernel_changes": kernel,
            "nft": text,
        }
    )
    return 1 if any(finding.severity is Severity.ERROR for finding in findings) else 0


def _print_meaning(output: Output, ruleset: Ruleset, findings: list[Finding]) -> None:
    from tidegate.firewall.budget import measure_cost

    output.line(f"mode {ruleset.mode}, default {ruleset.default}, egress {ruleset.egress_default}")
    output.table(("rule", "protocol", "ports", "interfaces", "peers"), [_row(rule) for rule in ruleset.rules()])
    cost = measure_cost(ruleset)
    share = f"{cost.elements:,} set elements of {ruleset.set_budget:,}"
    output.line(f"at most {share}: {cost.size_bytes / 1e6:.1f} MB of kernel memory")
    for finding in findings:
        output.line(f"{finding.severity}: {finding.message} [{finding.code}]")


def _print_changes(output: Output, difference: Difference | None, kernel: list[str] | None) -> None:
    if difference is not None:
        output.line(
            "decided differently than by the policy in force:"
            if difference.changes
            else "no packet is decided differently"
        )
        for change in difference.changes[:_MAX_CHANGES]:
            output.line(f"  {change}")
        if len(difference.changes) > _MAX_CHANGES:
            output.line(f"  and {len(difference.changes) - _MAX_CHANGES} more; --json has all")
        for note in difference.notes:
            output.line(f"  {note}")
        if difference.stopped:
            output.line("  there may be more: the comparison stopped at its bound")
    if kernel is not None:
        output.line("in the kernel:" if kernel else "in the kernel: nothing changes")
        for line in kernel[:_MAX_CHANGES]:
            output.line(f"  {line}")


def _row(rule: Rule) -> tuple[str, ...]:
    peers = rule.peers
    count = len(peers.v4) + len(peers.v6) + len(peers.macs) + len(peers.names)
    return (
        rule.label,
        rule.protocol,
        ", ".join(str(span) for span in rule.spans),
        ", ".join(rule.interfaces) or "all",
        "any" if peers.everyone else str(count),
    )


def _section_before(arguments: argparse.Namespace) -> FirewallSection | None:
    """Return the section to compare with: the one that was asked for, or the one in force where it can be read."""
    from tidegate.base.errors import TidegateError
    from tidegate.cli.policy import read_text
    from tidegate.firewall.statefolder import load_section_in_force
    from tidegate.policy.document import parse_policy

    if arguments.against is not None:
        return parse_policy(read_text(arguments.against), name=arguments.against.name).firewall
    if arguments.offline or not arguments.state.exists():
        return None
    try:
        return load_section_in_force(arguments.state)
    except (TidegateError, PermissionError):
        return None  # not root: the policy is judged by itself


def _live_sessions(arguments: argparse.Namespace, ruleset: Ruleset, before: FirewallSection | None) -> list[Packet]:
    """Return the sessions that manage this machine now; none when it is not the one that the policy is for."""
    from tidegate.firewall.live import find_must_pass

    if arguments.offline or arguments.against is not None or os.geteuid() != 0:
        return []
    return find_must_pass(ruleset, before)


def _difference(before: FirewallSection | None, ruleset: Ruleset) -> Difference | None:
    from tidegate.firewall.diff import diff_rulesets
    from tidegate.firewall.model import plan_ruleset

    return None if before is None else diff_rulesets(plan_ruleset(before), ruleset)


def _kernel_changes(arguments: argparse.Namespace, text: str) -> list[str] | None:
    """Return what changes in the kernel, object by object; None without the right to look."""
    from tidegate.firewall.scratch import diff_with_kernel

    if arguments.offline or arguments.against is not None or os.geteuid() != 0:
        return None
    return diff_with_kernel(text)
