"""Every room says what it promises; every error has a permanent, advised code; start-up stays small."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tidegate
from tidegate.base.errors import Fault, Misuse, Rejected, TidegateError
from tidegate.cli.error import load_all_codes

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted(room.name for room in pkgutil.iter_modules(tidegate.__path__) if room.ispkg)
CODES = load_all_codes()


@pytest.mark.parametrize("room", ROOMS)
def test_room_says_what_it_promises(room: str) -> None:
    text = importlib.import_module(f"tidegate.{room}").__doc__ or ""
    assert "romises" in text
    assert "Leaves to others" in text or room == "cli"
    assert "Read first" in text


@pytest.mark.parametrize("code", sorted(CODES))
def test_code_is_dotted_advised_and_its_rooms_own(code: str) -> None:
    kind: type[TidegateError] = CODES[code]
    assert re.fullmatch(r"[a-z0-9]+(\.[a-z0-9-]+)+", code)
    assert code.split(".", maxsplit=1)[0] == kind.__module__.split(".")[1]
    assert issubclass(kind, (Misuse, Rejected, Fault))
    assert kind.advice.endswith(".")
    assert len(kind.advice) > 20


def test_there_are_codes() -> None:
    assert len(CODES) > 80


def test_help_imports_neither_cryptography_nor_the_sensor() -> None:
    program = (
        "import sys\n"
        "from tidegate.cli.main import build_parser\n"
        "build_parser(None).format_help()\n"
        "print([name for name in sys.modules if name.startswith('cryptography') or name == 'tidegate.ids._sensor'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_assert_guards_anything_in_the_package() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_broad_handlers_stand_in_the_outermost_loop_alone() -> None:
    found = {
        str(path.relative_to(ROOT / "src" / "tidegate"))
        for path in sorted((ROOT / "src").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Name) and node.type.id == "Exception"
    }
    assert found <= {"agent/daemon.py"}
