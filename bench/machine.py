"""What stands beside every figure: the machine and the date."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path
from typing import Any


def describe_machine() -> str:
    """Return the CPU's name and the number of cores."""
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{match[1].strip() if match else 'unknown CPU'}, {os.cpu_count()} cores"


def row(
    name: str, ours: float, unit: str, *, peer: str = "", peer_value: float | None = None, higher: bool
) -> dict[str, Any]:
    """Return one result; the ratio is above 1 where ours is better."""
    ratio = None
    if peer_value:
        ratio = ours / peer_value if higher else peer_value / ours
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": ratio,
        "higher_is_better": higher,
        "unit": unit,
        "machine": describe_machine(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
    }
