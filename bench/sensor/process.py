"""Programs run to their end, and what they cost: processor time and the largest resident size."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUBJECT = Path(__file__).resolve().parent / "subject.py"
CORE = 0  # everything that is compared runs on this one
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """User and system time of a whole process, its start included, and its largest resident size."""

    cpu_s: float
    max_rss_mb: float
    output: str


def run_measured(command: list[str]) -> Cost:
    """Run a program on one core to its end, or leave the bench.

    The peak of memory is read while it runs: what wait4 reports includes the parent's own at the time of the fork.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0) & {CORE} or os.sched_getaffinity(0))})
        peak_mb = 0.0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            peak_mb = max(peak_mb, int(peak[1]) / 1024 if peak else 0.0)
            time.sleep(0.005)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output = process.stdout.read().decode(errors="replace") if process.stdout else ""
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} ended with status {process.returncode}")
    return Cost(cpu_s=usage.ru_utime + usage.ru_stime, max_rss_mb=peak_mb, output=output)


def run_subject(**config: Any) -> dict[str, Any]:
    """Run one of our sensors in a process of its own; return what ``subject.py`` prints, and ``whole_cpu_s``."""
    cost = run_measured([sys.executable, str(SUBJECT), json.dumps(config)])
    found: dict[str, Any] = json.loads(cost.output)
    return {**found, "whole_cpu_s": cost.cpu_s}


def cpu_s(pid: int) -> float:
    """Return the processor time of a running process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S  # utime and stime, proc(5)


def memory_mb(pid: int) -> tuple[float, float]:
    """Return RSS and PSS; the capture ring's pages are part of both."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("Rss", "Pss"))
    return int(rss[1]) / 1024 if rss else 0.0, int(pss[1]) / 1024 if pss else 0.0
