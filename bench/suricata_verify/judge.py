"""Runs one case and judges it. Touches: processes, temporary folders."""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from bench.suricata_verify.cases import Case, Invocation, needs_capture, plan_invocation
from bench.suricata_verify.checks import CheckResult, Verdict, judge_checks, without_proof
from bench.suricata_verify.command import PROGRAM, build_command
from bench.suricata_verify.groups import Group, group_of
from bench.suricata_verify.requirements import reason_in_skip_list, reason_to_skip

TIMEOUT_S = 60
REFUSED_STATUS = 3  # of the command: data was rejected, here rules
MAX_SAID = 300  # characters of what a command said, in a reason


@dataclass(slots=True, kw_only=True)
class CaseResult:
    """What became of a case: not passed if its command or any of its checks did not pass."""

    name: str
    group: Group = Group.OTHER
    verdict: Verdict = Verdict.PASSED
    reasons: list[str] = field(default_factory=list)
    checks: list[CheckResult] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def fail(self, reason: str) -> None:
        self.verdict = Verdict.FAILED
        self.reasons.append(reason)


def judge_case(case: Case, program: tuple[str, ...] = PROGRAM) -> CaseResult:
    """Run the case's command and judge its checks; a case that does not apply to us is skipped with the reason."""
    result = CaseResult(name=case.name)
    skip = reason_to_skip(case.requires) or reason_in_skip_list(case.document.get("skip"))
    if skip:
        result.verdict = Verdict.SKIPPED
        result.reasons.append(skip)
        return result
    with tempfile.TemporaryDirectory(prefix="suricata-verify-") as name:
        output = Path(name)
        plan = Invocation()
        try:
            plan = plan_invocation(case, output)
        except (OSError, ValueError, TypeError) as error:
            result.fail(f"the case cannot be read: {error}")
        if (plan.capture is None and needs_capture(case)) or (plan.capture is not None and not plan.capture.exists()):
            result.verdict = Verdict.SKIPPED
            result.reasons.append("the corpus lacks the capture")
            return result
        _judge_planned(case, plan, output, result, program)
    return result


def _judge_planned(case: Case, plan: Invocation, output: Path, result: CaseResult, program: tuple[str, ...]) -> None:
    result.group = group_of(path.read_text(errors="replace") for path in plan.rules if path.is_file())
    problem = case.problem or _problem(plan)
    is_refused = False
    if not problem:
        result.command = build_command(plan, output, program)
        problem, is_refused = _run(result.command, case, output)
    checks = judge_checks(case.checks, case.folder, output)
    if problem and not is_refused:
        checks = [without_proof(check, "the command failed") for check in checks]
    elif problem:
        checks = [
            without_proof(check, "0 proves nothing where rules are refused") if check.expects_none else check
            for check in checks
        ]
    if problem:
        result.fail(problem)
    result.checks = checks
    result.reasons += plan.notes
    for check in result.checks:
        if check.verdict is Verdict.FAILED:
            result.fail(check.reason)


def _problem(plan: Invocation) -> str:
    if plan.capture is None:
        return "" if plan.rules else "there is neither a capture nor a rule file"
    if plan.capture.is_dir():
        return "the capture is a folder"
    missing = next((path for path in (plan.capture, *plan.rules) if not path.is_file()), None)
    return f"{missing.name} is missing" if missing is not None else ""


def _run(command: list[str], case: Case, output: Path) -> tuple[str, bool]:
    """Run the command with the EVE lines into the output folder.

    Returns why the case cannot pass (empty: it can), and whether that is refused rules alone: then there are events.
    """
    environment = {**os.environ, "TZ": "UTC", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    eve, said = output / "eve.json", output / "stderr"
    try:
        with eve.open("wb") as out, said.open("wb") as err:
            done = subprocess.run(
                command,
                cwd=case.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=TIMEOUT_S,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return f"longer than {TIMEOUT_S} s", False
    words = " ".join(said.read_text(errors="replace").split())[:MAX_SAID]
    if done.returncode not in (0, REFUSED_STATUS):
        return f"exit status {done.returncode}: {words}", False
    if bool(done.returncode) != bool(case.exit_code):  # Suricata has one status for everything that it refuses
        is_refused = done.returncode == REFUSED_STATUS and eve.stat().st_size > 0
        return f"exit status {done.returncode} instead of {case.exit_code}: {words}", is_refused
    return "", False
