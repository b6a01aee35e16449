"""Memory of the agent with firewall, sensor and events running, process by process, on the demo's device.

Resident size counts shared pages in every process that maps them; proportional size (PSS) divides them. The bar of
60 MB is on the sum of the resident sizes. The peer is a bare interpreter with nothing imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.machine import row
from tidegate.demo.board import Board
from tidegate.demo.lab import build_lab
from tidegate.demo.making import tell_factory, tell_maker
from tidegate.demo.report import Report
from tidegate.testing.netns import make_unique

SETTLE_S = 3.0


def run() -> list[dict[str, Any]]:
    report = Report(quiet=True, stepping=False)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        lab = build_lab(make_unique("tgb"), stack)
        storage, _ = tell_factory(report, tell_maker(report, Path(folder)))
        board = Board(storage, lab.device, Path(folder) / "console")
        try:
            board.power_on()
            board.start_agent()
            time.sleep(SETTLE_S)
            sizes = {_name(pid): _sizes(pid) for pid in board.agent_pids()}
        finally:
            board.power_off()
    bare = _bare_interpreter()
    rows = [
        row(f"{name}, resident", resident, "MB", peer="bare interpreter", peer_value=bare, higher=False)
        for name, (resident, _) in sorted(sizes.items())
    ]
    resident, proportional = (sum(size[index] for size in sizes.values()) for index in (0, 1))
    rows.append(row("all processes, resident (bar: 60)", resident, "MB", higher=False))
    rows.append(row("all processes, proportional", proportional, "MB", higher=False))
    return rows


def _sizes(pid: int) -> tuple[float, float]:
    """Return resident and proportional size in MB (10^6 bytes)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    values = {line.split(":")[0]: int(line.split()[1]) for line in text.splitlines()[1:]}
    return values["Rss"] * 1024 / 1e6, values["Pss"] * 1024 / 1e6


def _name(pid: int) -> str:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    return next(word for word in words if word.startswith("tidegate.") or "guard" in word)


def _bare_interpreter() -> float:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        time.sleep(0.3)
        size, _ = _sizes(process.pid)
        process.communicate(b"\n")
    return size


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
