"""One room measured alone takes nothing of the others out of bench/RESULTS.md."""

from __future__ import annotations

import json

import pytest
from bench import run


def test_a_room_measured_alone_leaves_the_others(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "OUTPUT", tmp_path)
    monkeypatch.setattr(run, "PLOTS", tmp_path / "plots")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "RESULTS.md")
    row = dict.fromkeys(run.FIELDS) | {"name": "a", "ours": 1.0, "unit": "s", "machine": "m", "date": "d"}
    for name in ("aa", "zz"):
        (tmp_path / f"{name}.json").write_text(json.dumps([row]))
    run.write_results()
    both = run.RESULTS.read_text()
    (tmp_path / "aa.json").unlink()
    (tmp_path / "zz.json").write_text(json.dumps([row | {"ours": 2.0}]))
    run.write_results()
    assert run.RESULTS.read_text() == both[: both.index("## zz")] + both[both.index("## zz") :].replace(
        "| 1 |", "| 2 |"
    )
    assert both.count("## ") == 2
