"""Suricata's public test suite judges the sensor, as ``make suricata-verify`` does.

The folder is found through TIDEGATE_CORPORA, or beside the repository as ``shared/corpora``.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bench.suricata_verify.cases import find_cases
from bench.suricata_verify.checks import Verdict
from bench.suricata_verify.groups import Group
from bench.suricata_verify.judge import CaseResult, judge_case

sensor_module = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
pytest.importorskip("yaml", reason="the suite's cases are YAML")

CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", Path(__file__).resolve().parents[2].parent / "shared" / "corpora"))
FOLDER = CORPORA / "suricata-verify"
SLICES = 12  # a slice takes a few seconds: each case starts an interpreter
JOBS = 2
LEAST = {
    Group.STRICT: 0.97,
    Group.CORE: 0.90,
}  # of alert checks that pass; the rest is what docs/formats/eve.md leaves out
LEAST_JUDGED = 50  # fewer checks prove nothing

judged: dict[int, list[CaseResult]] = {}


@pytest.mark.parametrize("number", range(SLICES))
def test_no_case_makes_the_sensor_stop(number):
    if not FOLDER.is_dir():
        pytest.skip("no corpus suricata-verify: set TIDEGATE_CORPORA")
    cases = find_cases(FOLDER)[number::SLICES]
    with ThreadPoolExecutor(max_workers=JOBS) as pool:
        judged[number] = list(pool.map(judge_case, cases))
    for result in judged[number]:
        said = " ".join(result.reasons)
        assert "ids.sensor.internal" not in said, (result.name, said)
        assert "exit status -" not in said, (result.name, said)
        assert "longer than" not in said, (result.name, said)


@pytest.mark.parametrize("group", LEAST)
def test_alerts_are_suricata_s(group):
    if not FOLDER.is_dir():
        pytest.skip("no corpus suricata-verify: set TIDEGATE_CORPORA")
    if len(judged) < SLICES:
        pytest.skip("only a part of the suite was judged")
    results = [result for part in judged.values() for result in part if result.group is group]
    checks = [check for result in results for check in result.checks if check.is_alert]
    counted = [check for check in checks if check.verdict is not Verdict.SKIPPED]
    passed = sum(check.verdict is Verdict.PASSED for check in counted)
    if len(counted) < LEAST_JUDGED:
        pytest.skip(f"only {len(counted)} checks of this group in this part of the suite")
    failed = sorted({result.name for result in results for check in result.checks if check.verdict is Verdict.FAILED})
    assert passed >= LEAST[group] * len(counted), f"{passed} of {len(counted)}; not passed: {failed}"
