"""The manual page of MUD files: its options, codes, findings and its example are those of the program."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tests.unit.firewall.mudfiles import FILES, MAC, NOW, site

from tidegate.base.errors import TidegateError
from tidegate.cli import firewall_mud
from tidegate.firewall import errors
from tidegate.firewall.mud import parse_mud
from tidegate.firewall.mud_import import Role, plan_import
from tidegate.firewall.mud_openings import FindingKind

PAGE = (Path(__file__).parents[3] / "docs" / "firewall-mud.md").read_text()
SILENT = {"--help", "--strict", "--zone"}  # what is the default, and another spelling


def _options(parser: argparse.ArgumentParser) -> set[str]:
    found = set()
    for action in parser._actions:
        found |= {word for word in action.option_strings if word.startswith("--")}
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                found |= _options(child)
    return found


def test_every_option_is_on_the_page_and_no_other() -> None:
    parser = argparse.ArgumentParser()
    firewall_mud.add(parser.add_subparsers())
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) == _options(parser) - SILENT


def test_every_code_and_every_finding_is_on_the_page() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, TidegateError)]
    codes = {kind.code for kind in kinds if kind.code.startswith("firewall.mud.")}
    assert codes == set(re.findall(r"`(firewall\.mud\.[a-z-]+)`", PAGE))
    for kind in FindingKind:
        assert f"| `{kind}` |" in PAGE


def test_the_example_is_what_the_program_writes() -> None:
    camera = next(path for path in FILES if path.stem == "camera")
    given = site(Role.GATEWAY, device=("192.168.1.77", MAC), gateway=("192.168.1.1",), zone="iot")
    made = plan_import(parse_mud(camera.read_bytes()), given, now=NOW)
    example = re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    assert example[1] in made.text
