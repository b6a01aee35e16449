"""``python -m bench.suricata_verify DIR``: judge every case below a folder and print the totals."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from bench.suricata_verify.cases import Case, find_cases
from bench.suricata_verify.checks import CheckResult, Verdict
from bench.suricata_verify.groups import Group
from bench.suricata_verify.judge import CaseResult, judge_case
from bench.suricata_verify.requirements import VERSION

MAX_REASONS = 4  # of a case on the terminal; --json has all


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, print, and return 0 if every case that applies passed, else 1."""
    parser = argparse.ArgumentParser(prog="suricata-verify", description=__doc__)
    parser.add_argument("folder", type=Path, help="below it, every folder with a test.yaml is a case")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="only cases whose name has TEXT")
    parser.add_argument("-j", dest="jobs", type=int, default=2, metavar="N", help="cases at a time; default 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result here")
    parser.add_argument("--quiet", action="store_true", help="totals alone")
    parsed = parser.parse_args(arguments)
    cases = [case for case in find_cases(parsed.folder) if not parsed.only or any(t in case.name for t in parsed.only)]
    if not cases:
        parser.error(f"no case below {parsed.folder}: a case is a folder with a test.yaml")
    results = []
    with ThreadPoolExecutor(max_workers=max(parsed.jobs, 1)) as pool:
        for result in pool.map(_timed, cases):
            results.append(result)
            if result.verdict is Verdict.FAILED and not parsed.quiet:
                print("\n".join(_describe(result)), flush=True)
    print("\n".join(summarise(results)))
    if parsed.json is not None:
        parsed.json.write_text(json.dumps([asdict(result) for result in results], indent=1, default=str) + "\n")
    return 0 if all(result.verdict is not Verdict.FAILED for result in results) else 1


def _timed(case: Case) -> CaseResult:
    started = time.monotonic()
    result = judge_case(case)
    result.seconds = round(time.monotonic() - started, 3)
    return result


def _describe(result: CaseResult) -> Iterator[str]:
    passed = sum(check.verdict is Verdict.PASSED for check in result.checks)
    yield f"{result.name} [{result.group}] {passed} of {len(result.checks)} checks"
    yield from (f"    {reason[:200]}" for reason in result.reasons[:MAX_REASONS])
    if len(result.reasons) > MAX_REASONS:
        yield f"    and {len(result.reasons) - MAX_REASONS} more"


def summarise(results: Sequence[CaseResult]) -> Iterator[str]:
    """Yield the lines of the summary; the last two have the totals."""
    yield ""
    yield f"Suricata's public suite, judged as version {'.'.join(map(str, VERSION))}"
    skipped = Counter(result.reasons[0] for result in results if result.verdict is Verdict.SKIPPED)
    for reason, count in skipped.most_common():
        yield f"  skipped {count:4}  {reason[:100]}"
    judged = [result for result in results if result.verdict is not Verdict.SKIPPED]
    for group in Group:
        members = [result for result in judged if result.group is group]
        checks = [check for result in members for check in result.checks]
        alerts = [check for check in checks if check.is_alert]
        cases = sum(result.verdict is Verdict.PASSED for result in members)
        yield (
            f"  {group.value:7} alert checks {_share(alerts)}, all checks {_share(checks)}, "
            f"cases {cases} of {len(members)}"
        )
    checks = [check for result in judged for check in result.checks]
    yield f"checks: {_share(checks)}"
    yield f"cases: {sum(result.verdict is Verdict.PASSED for result in judged)} of {len(judged)}"


def _share(checks: Sequence[CheckResult]) -> str:
    judged = [check for check in checks if check.verdict is not Verdict.SKIPPED]
    return f"{sum(check.verdict is Verdict.PASSED for check in judged)} of {len(judged)}"


if __name__ == "__main__":
    sys.exit(main())
