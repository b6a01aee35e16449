"""The import contracts are the law: a broken floor fails them, and the tree as it stands does not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOORS = "Imports go down only; rooms on one floor do not know each other"
SIMULATORS = "Nothing that runs on a device imports the simulators"


def lint_copy(folder: Path, file: str, line: str) -> tuple[int, str]:
    """Run the project's contracts over a copy of it in which ``file`` has one more line."""
    shutil.copytree(
        ROOT / "src" / "tidegate", folder / "tidegate", ignore=shutil.ignore_patterns("__pycache__", "*.so")
    )
    shutil.copy(ROOT / "pyproject.toml", folder)
    with (folder / "tidegate" / file).open("a") as stream:
        stream.write(line)
    program = (
        f"import sys; sys.path[:0] = [{str(folder)!r}]; from importlinter.cli import lint_imports_command; "
        "lint_imports_command(['--no-cache'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "broken"),
    [
        ("base/clock.py", "", None),
        ("base/clock.py", "import tidegate.crypto.cbor\n", FLOORS),  # upwards
        ("image/layout.py", "from tidegate.boot import slots\n", FLOORS),  # upwards
        ("update/journal.py", "from tidegate.boot import slots\n", FLOORS),  # sideways
        ("policy/check.py", "def late():\n    import tidegate.agent.home\n", FLOORS),  # hidden in a function
        ("agent/home.py", "import tidegate.testing.netns\n", SIMULATORS),
    ],
    ids=["as it stands", "base to crypto", "image to boot", "update to boot", "policy to agent", "agent to testing"],
)
def test_a_broken_floor_fails(tmp_path: Path, file: str, line: str, broken: str | None) -> None:
    status, said = lint_copy(tmp_path, file, line)
    verdicts = dict(re.findall(r"^(.+) (KEPT|BROKEN)$", said, re.MULTILINE))
    assert set(verdicts) == {FLOORS, SIMULATORS}, said
    assert status == (1 if broken else 0), said
    assert [name for name, verdict in verdicts.items() if verdict == "BROKEN"] == ([broken] if broken else [])
