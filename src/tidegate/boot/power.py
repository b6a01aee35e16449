"""Switching on: the first stage in namespaces of its own, with the ROM where nobody on the device can write.

Touches: nothing; the caller runs the command. Stands for the board: mounts and processes go when the power goes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tidegate.base.program import find_program

# The ROM becomes a read-only mount before the first instruction of the device runs.
_SCRIPT = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'


def power_command(storage: Path, run: Path) -> list[str]:
    """Return the command that switches on the device in folder ``storage``; ``run`` is its memory."""
    unshare = [find_program("unshare"), "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    stage1 = [sys.executable, "-m", "tidegate.boot.stage1", "--storage", str(storage), "--run", str(run)]
    return [*unshare, "--", find_program("sh"), "-c", _SCRIPT, "sh", str(storage / "rom"), *stage1]
