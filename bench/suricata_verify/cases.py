"""Reads cases: every ``test.yaml`` below a folder, with its capture, rules and configuration.

Touches: the corpus' files.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_VARIABLE = re.compile(r"\$\{(TEST_DIR|OUTPUT_DIR|SRCDIR|TOPDIR)\}|\$(TEST_DIR|OUTPUT_DIR|SRCDIR|TOPDIR)\b")
_FLAGS_WITHOUT_MEANING = frozenset(  # threads, verbosity and accounts: they change no event
    {"--no-random", "--init-errors-fatal", "--disable-detection", "--engine-analysis", "-T", "--strict-rule-keywords"}
)
# What Suricata takes from its environment, as settings.
_ENVIRONMENT = {"SURICATA_EVE_DNS_VERSION": "outputs.eve-log.types.dns.version"}
_VALUED_WITHOUT_MEANING = frozenset({"--runmode", "-l", "--user", "--group", "--pidfile"})


@dataclass(slots=True, kw_only=True)
class Invocation:
    """What Suricata would be run with, in our words. ``notes``: options that we do not have."""

    capture: Path | None = None
    rules: list[Path] = field(default_factory=list)
    config: Path | None = None
    settings: list[str] = field(default_factory=list)
    checksums: str = ""  # as Suricata's configuration says
    simulate_ips: bool = False
    bpf: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A folder with a ``test.yaml``; ``problem`` says why it cannot be run at all."""

    name: str
    folder: Path
    document: Mapping[str, Any]
    problem: str = ""

    @property
    def requires(self) -> Mapping[str, Any]:
        return self.document.get("requires") or {}

    @property
    def checks(self) -> list[tuple[str, Any]]:
        """Return the checks as pairs of kind and content."""
        listed = self.document.get("checks") or []
        return [pair for check in listed if isinstance(check, Mapping) for pair in check.items()]

    @property
    def exit_code(self) -> int:
        return int(self.document.get("exit-code", 0))


def find_cases(root: Path) -> list[Case]:
    """Return every case below ``root``, in the order of their names."""
    return [_read_case(root, path) for path in sorted(root.rglob("test.yaml"))]


def plan_invocation(case: Case, output: Path) -> Invocation:
    """Return what the case is to be run with, as the suite's runner builds Suricata's command line."""
    plan = Invocation()
    for name, value in (case.document.get("env") or {}).items():
        if name in _ENVIRONMENT:
            plan.settings.append(f"{_ENVIRONMENT[name]}={value}")
        else:
            plan.notes.append(f"environment variable {name} is not known")
    command = case.document.get("command")
    if command:
        _read_words(plan, case.folder, _command_words(str(command), case.folder, output))
        return plan
    config = case.folder / "suricata.yaml"
    plan.config = config if config.is_file() else None
    # The suite's rule: a folder with `ips` in its name is run inline.
    plan.simulate_ips = "ips" in case.folder.name
    words = [
        word for text in case.document.get("args") or [] for word in _expand(str(text), case.folder, output).split()
    ]
    _read_words(plan, case.folder, words)
    if plan.capture is None:
        plan.capture = _default_capture(case)
    if not plan.rules:
        plan.rules = _default_rules(case.folder)
    return plan


def _read_case(root: Path, path: Path) -> Case:
    name = str(path.parent.relative_to(root)) if path.parent != root else path.parent.name
    try:
        document = yaml.safe_load(path.read_bytes()) or {}
    except (yaml.YAMLError, OSError, RecursionError) as error:
        return Case(name=name, folder=path.parent, document={}, problem=f"test.yaml cannot be read: {error}")
    if not isinstance(document, dict):
        return Case(name=name, folder=path.parent, document={}, problem="test.yaml is no mapping")
    return Case(name=name, folder=path.parent.resolve(), document=document)


def needs_capture(case: Case) -> bool:
    """Return whether a capture has to be there; rules alone are judged where the case says ``pcap: false``."""
    says_no = case.document.get("pcap") is False or case.requires.get("pcap") is False
    return not says_no and "command" not in case.document


def _default_capture(case: Case) -> Path | None:
    named = case.document.get("pcap")
    if isinstance(named, str):
        return (case.folder / named).resolve()
    found = sorted([*case.folder.glob("*.pcap"), *case.folder.glob("*.pcapng")])
    return found[0] if found else None


def _default_rules(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.rules"))
    usual = [path for path in found if path.name == "test.rules"]
    return usual or found


def _expand(text: str, folder: Path, output: Path) -> str:
    """Replace the runner's variables; Suricata's sources are not here, and what names them is recognised by that."""
    values = {"TEST_DIR": str(folder), "OUTPUT_DIR": str(output), "SRCDIR": "/SRCDIR", "TOPDIR": "/SRCDIR"}
    return _VARIABLE.sub(lambda found: values[found[1] or found[2]], text)


def _command_words(command: str, folder: Path, output: Path) -> list[str]:
    """Return Suricata's arguments in a shell command, with the file that is piped into it as ``-r``."""
    text = _expand(command, folder, output).replace("\\\n", " ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    start = next((number for number, word in enumerate(words) if word.endswith("src/suricata")), None)
    if start is None:
        return []
    rest = words[start + 1 :]
    end = next(
        (number for number, word in enumerate(rest) if word in ("|", "||", "&&", ";", "&", ">", ">>", "<")), len(rest)
    )
    taken = rest[:end]
    piped = words[1] if words[:1] == ["cat"] and "|" in words[:start] else None
    return [piped if word in ("/dev/stdin", "-") and piped else word for word in taken]


def _read_words(plan: Invocation, folder: Path, words: list[str]) -> None:
    left = list(words)
    while left:
        word = left.pop(0)
        name, has_value, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name in _FLAGS_WITHOUT_MEANING or re.fullmatch(r"-v+", word):
            continue
        if name == "--simulate-ips":
            plan.simulate_ips = True
        elif name.startswith("--simulate-") and has_value:
            plan.settings.append(f"{name.removeprefix('--')}={value}")
        elif name in _TAKES_VALUE or name in _VALUED_WITHOUT_MEANING:
            if not has_value:
                value = left.pop(0) if left else ""
            if name in _TAKES_VALUE:
                _TAKES_VALUE[name](plan, folder, value)
        elif word.startswith("-"):
            plan.notes.append(f"option {word} is not known")
        else:
            plan.bpf.append(word)


def _set_config(plan: Invocation, folder: Path, value: str) -> None:
    plan.config = None if value.startswith("/SRCDIR") else folder / value


def _set_filter_file(plan: Invocation, folder: Path, value: str) -> None:
    path = folder / value
    plan.bpf += path.read_text(errors="replace").split() if path.is_file() else []


def _add_setting(plan: Invocation, _folder: Path, value: str) -> None:
    if "/SRCDIR" not in value:  # Suricata's own classification and the like: the sensor's own are the same
        plan.settings.append(value)


_TAKES_VALUE: dict[str, Callable[[Invocation, Path, str], None]] = {
    "-r": lambda plan, folder, value: setattr(plan, "capture", (folder / value).resolve()),
    "-S": lambda plan, folder, value: setattr(plan, "rules", [folder / value]),
    "-s": lambda plan, folder, value: plan.rules.append(folder / value),
    "-c": _set_config,
    "-k": lambda plan, _folder, value: setattr(plan, "checksums", value),
    "-F": _set_filter_file,
    "--set": _add_setting,
    "--data-dir": lambda plan, _folder, value: plan.settings.append(f"default-data-dir={value}"),
}
