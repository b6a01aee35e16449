"""Judges the checks of a case on what it wrote. Touches: the output folder; ``bash`` for harmless text tools."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench.suricata_verify.matching import find_value, is_equal, is_match
from bench.suricata_verify.requirements import reason_to_skip

SHELL_S = 20
_TOOL_NAMES = "cat grep egrep jq wc xargs awk test [ sort uniq head tail cut tr echo true"
_TOOLS = frozenset(_TOOL_NAMES.split())
_OPERATORS = frozenset({"|", "||", "&&", ";"})
_FILE = re.compile(
    r"(?:\./)?[A-Za-z0-9_-][A-Za-z0-9_./-]*\.(?:json|log|txt|csv|lst|data|yaml|pcap(?:\.[0-9]+)?|pem|meta)\Z|std(?:err|out)\Z"
)


class Verdict(StrEnum):
    """What became of a check or a case."""

    PASSED = "passed"
    FAILED = "not passed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """A check, whether it is about alerts, what became of it and why."""

    kind: str
    is_alert: bool
    verdict: Verdict
    reason: str = ""
    expects_none: bool = False  # it counts events and expects 0


def judge_checks(checks: list[tuple[str, Any]], folder: Path, output: Path) -> list[CheckResult]:
    """Return a result for each check, in their order."""
    files = _Files(output)
    return [_judge(kind, content, folder, files) for kind, content in checks]


def without_proof(check: CheckResult, reason: str) -> CheckResult:
    """Return a check as not passed for this reason if it passed, because what it passed on shows nothing."""
    return replace(check, verdict=Verdict.FAILED, reason=reason) if check.verdict is Verdict.PASSED else check


class _Files:
    """The output's JSON files, each read once."""

    def __init__(self, output: Path) -> None:
        self.folder = output
        self._read: dict[str, list[dict[str, Any]] | None] = {}

    def events(self, name: str) -> list[dict[str, Any]] | None:
        """Return a file's lines, None if there is no such file; raise ``ValueError`` for a line that is no JSON."""
        if name not in self._read:
            path = self.folder / name
            text = path.read_text(errors="replace") if path.is_file() else None
            self._read[name] = None if text is None else [json.loads(line) for line in text.splitlines() if line]
        return self._read[name]


def _judge(kind: str, content: Any, folder: Path, files: _Files) -> CheckResult:
    match = content.get("match") if isinstance(content, Mapping) else None
    is_alert = kind == "filter" and isinstance(match, Mapping) and match.get("event_type") == "alert"
    skip = _reason_to_skip(content)
    if skip:
        return CheckResult(kind=kind, is_alert=is_alert, verdict=Verdict.SKIPPED, reason=skip)
    judge = _JUDGES.get(kind)
    try:
        reason = f"check {kind} is not known" if judge is None else judge(content, folder, files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{kind}: {type(error).__name__}: {error}"
    return CheckResult(
        kind=kind,
        is_alert=is_alert,
        verdict=Verdict.FAILED if reason else Verdict.PASSED,
        reason=reason or "",
        expects_none=kind == "filter" and content.get("count") == 0,
    )


def _reason_to_skip(content: Any) -> str | None:
    """A check's own requirements stand below ``requires``, or, in older cases, beside what it says."""
    if not isinstance(content, Mapping):
        return None
    beside = {name: content[name] for name in ("min-version", "lt-version", "version", "feature") if name in content}
    if "feature" in beside:
        beside["features"] = beside.pop("feature")
    return reason_to_skip({**beside, **(content.get("requires") or {})})


def _judge_filter(content: Any, _folder: Path, files: _Files) -> str | None:
    name = str(content.get("filename", "eve.json"))
    events = files.events(name)
    if events is None:
        return f"there is no {name}"
    count = sum(is_match(content["match"], event) for event in events)
    if count == content["count"]:
        return None
    return f"{count} instead of {content['count']} of {json.dumps(content['match'], default=str)}"


def _judge_stats(content: Any, _folder: Path, files: _Files) -> str | None:
    stats = [event["stats"] for event in files.events("eve.json") or [] if event.get("event_type") == "stats"]
    for name, expected in content.items():
        value = find_value(name, stats[-1]) if stats else None
        if not is_equal(value, expected):
            return f"stats.{name} is {value} instead of {expected}"
    return None


def _judge_file(content: Any, folder: Path, files: _Files) -> str | None:
    written, expected = files.folder / str(content["filename"]), folder / str(content["expected"])
    if not written.is_file() or not expected.is_file():
        return f"there is no {written.name if not written.is_file() else expected}"
    is_same = written.read_bytes().splitlines() == expected.read_bytes().splitlines()
    return None if is_same else f"{written.name} differs from {content['expected']}"


def _judge_shell(content: Any, _folder: Path, files: _Files) -> str | None:
    text = str(content["args"])
    reason = reason_not_to_run(text, files.folder)
    if reason:
        return f"shell: {reason}: {text.strip()[:120]}"
    done = subprocess.run(
        ["/bin/bash", "-c", text],
        cwd=files.folder,
        env={"PATH": "/usr/bin:/bin", "TZ": "UTC"},
        capture_output=True,
        timeout=SHELL_S,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    said = done.stdout.decode(errors="replace").strip()
    if done.returncode:
        return f"shell: exit status {done.returncode}: {text.strip()[:120]}"
    if "expect" in content and said != str(content["expect"]).strip():
        return f"shell: {said[:40]!r} instead of {content['expect']!r}: {text.strip()[:120]}"
    return None


def reason_not_to_run(text: str, output: Path) -> str | None:
    """Return why a shell check is not run: it must be a pipe of text tools over files that the case wrote.

    A file that is missing counts as a reason, because ``grep … | wc -l`` on nothing says 0, which some checks expect.
    """
    if "`" in text or "$(" in text or "<(" in text or "system(" in text or "getline" in text:
        return "it starts other programs"
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError as error:
        return f"it cannot be read ({error})"
    is_start, files, previous = True, [], ""
    for word in words:
        if word in _OPERATORS:
            is_start = True
            continue
        if set(word) <= set("<>&()"):
            return "it writes or reads elsewhere"
        if (is_start or previous == "xargs") and not word.startswith("-") and word not in _TOOLS:
            return f"{word[:40]} is no text tool"
        if not is_start and (_FILE.match(word) or word.startswith("/")):
            files.append(word)
        previous, is_start = word, False
    missing = next((name for name in files if name.startswith("/") or not (output / name).is_file()), None)
    if missing is not None:
        return f"{missing} is nothing that we write"
    return None if files else "it names no file that we write"


_JUDGES = {
    "filter": _judge_filter,
    "stats": _judge_stats,
    "file-compare": _judge_file,
    "shell": _judge_shell,
}
