"""Start-up: ``tidegate --help`` beside an interpreter that imports no more than an argument parser."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.machine import row

RUNS = 15


def run() -> list[dict[str, Any]]:
    ours, bare = [], []
    for _ in range(RUNS):
        ours.append(_timed([sys.executable, "-m", "tidegate.cli.main", "--help"]))
        bare.append(_timed([sys.executable, "-c", "import argparse, json"]))
    return [
        row(
            "tidegate --help",
            statistics.median(ours) * 1000,
            "ms",
            peer="python -c 'import argparse, json'",
            peer_value=statistics.median(bare) * 1000,
            higher=False,
        )
    ]


def _timed(command: list[str]) -> float:
    began_s = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
