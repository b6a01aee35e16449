"""``tidegate ids rules``: what the sensor makes of rule files, and which of them a device should carry."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.ids_options import REFUSED_STATUS, clip, read_settings, rule_text
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.ids.inspector import RuleSet


def add_to(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs below ``rules``."""
    rules = add_verb(verbs, "rules", "check signature rules, choose those that a device should carry")
    below = rules.add_subparsers(dest="subverb", metavar="ACTION", required=True)

    check = add_verb(
        below, "check", "say which rules load as written, which with differences and which not; 3 if any not"
    )
    _add_files(check)
    check.add_argument("--summary", action="store_true", help="totals and the commonest reasons, not every rule")
    check.set_defaults(run=run_check)

    budget = add_verb(below, "budget", "choose the rules that matter for a device's services, at most so many")
    _add_files(budget)
    budget.add_argument(
        "--service",
        action="append",
        default=[],
        metavar="SERVICE",
        help="a port that is served or used, such as tcp/502, or a protocol, such as modbus; repeat it",
    )
    budget.add_argument("--limit", type=int, default=500, metavar="N", help="at most so many rules; default 500")
    budget.add_argument("--output", type=Path, metavar="FILE", help="write the chosen rules here")
    budget.set_defaults(run=run_budget)


def run_check(arguments: argparse.Namespace, output: Output) -> int:
    """Load the rules and report; nothing is inspected."""
    report = _load(arguments).report()
    if arguments.summary:
        for reason, count in Counter((rule.outcome, rule.reason) for rule in report.rules).most_common(50):
            output.line(f"{count:7}  {reason[0]}: {clip(reason[1])}")
    else:
        for rule in report.rules:
            if rule.outcome != "loaded":
                output.line(f"{rule.outcome}: {rule_text(rule)}")
    output.line(f"{report.loaded} loaded, {report.approximated} approximated, {report.refused} refused")
    output.result(asdict(report))
    return REFUSED_STATUS if report.refused else 0


def run_budget(arguments: argparse.Namespace, output: Output) -> int:
    """Choose, say what was chosen, write it where asked."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.ids.rulebudget import encode_rules, parse_budget, plan_budget
    from tidegate.ids.rulefiles import read_rules

    question = plan_budget(arguments.service, arguments.limit, year=datetime.now(UTC).year)
    rules = _load(arguments)
    answer = parse_budget(rules.budget(question))
    for choice in answer.kept if arguments.output is None else ():
        output.line(f"{choice.source}:{choice.line}  sid {choice.sid}  {clip(choice.reason)}")
    if arguments.output is not None:
        write_file_atomic(arguments.output, encode_rules(read_rules(rules.paths), answer.kept))
        output.line(f"written: {arguments.output}")
    output.line(f"{len(answer.kept)} rules chosen, {len(answer.left_out)} left out")
    for reason, count in Counter(choice.reason for choice in answer.left_out).most_common(10):
        output.line(f"{count:7}  left out: {clip(reason)}")
    output.result(asdict(answer))
    return 0


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("rules", nargs="+", type=Path, metavar="FILE", help="rule files")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="NAME=VALUE", help="a setting; repeat it"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="take variables from this suricata.yaml")


def _load(arguments: argparse.Namespace) -> RuleSet:
    from tidegate.ids.inspector import RuleSet

    settings, rules = read_settings(arguments)
    return RuleSet.load(*rules, settings=settings)
