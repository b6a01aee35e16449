"""Which rules a device should carry: the question to the rule engine, and the rule file from its answer. Pure.

The question, as JSON: ``{"services": [{"protocol": "tcp", "port": 502}, {"application": "modbus"}], "limit": 500,
"year": 2026}``.
The answer: ``{"kept": [...], "left_out": [...]}``, each entry with ``source``, ``line`` (of its beginning), ``sid``,
``reason``; ``kept`` in order of worth. docs/how-to/detect-intrusions.md says what that order is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tidegate.ids.errors import BudgetInvalid, SensorInternal

MAX_SERVICES = 256  # a device offers a handful; the rest are what it talks to
MAX_LIMIT = 1_000_000  # all public sets together have a tenth of it
MAX_CONTINUED = 64  # lines of one rule; public sets have one a rule

_TRANSPORT = re.compile(r"(tcp|udp|sctp)/([0-9]{1,5})\Z")
_APPLICATION = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChoice:
    """A rule and why it stays or goes."""

    source: str
    line: int
    sid: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetAnswer:
    """The rules that the device should carry, and the others."""

    kept: tuple[RuleChoice, ...]
    left_out: tuple[RuleChoice, ...]


def plan_budget(services: Sequence[str], limit: int, *, year: int) -> dict[str, object]:
    """Return the question for services such as ``tcp/502`` and ``modbus``; rules lose weight with age, which ``year``,
    the present one, tells. Raises ``ids.budget.invalid``."""
    if not 1 <= limit <= MAX_LIMIT:
        raise BudgetInvalid(f"the limit must be from 1 to {MAX_LIMIT}, not {limit}", limit=limit)
    if not 1 <= len(services) <= MAX_SERVICES:
        raise BudgetInvalid(f"name 1 to {MAX_SERVICES} services with --service", count=len(services))
    return {"services": [_parse_service(text) for text in services], "limit": limit, "year": year}


def parse_budget(document: Mapping[str, object]) -> BudgetAnswer:
    """Return the engine's answer; raises ``ids.sensor.internal`` if it is none."""
    try:
        return BudgetAnswer(kept=_choices(document["kept"]), left_out=_choices(document.get("left_out", ())))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SensorInternal(f"the rule budget cannot be read: {error!r}") from error


def encode_rules(sources: Iterable[tuple[str, bytes]], kept: Iterable[RuleChoice]) -> bytes:
    """Return a rule file with the kept rules as they were written, in order, each once."""
    lines = {name: text.split(b"\n") for name, text in sources}
    written: dict[tuple[str, int], bytes] = {}
    for choice in kept:
        if (choice.source, choice.line) not in written:
            written[choice.source, choice.line] = _rule_at(lines.get(choice.source, []), choice.line)
    return b"".join(text + b"\n" for text in written.values() if text.strip())


def _rule_at(lines: Sequence[bytes], number: int) -> bytes:
    """Return the rule that begins on line ``number``, with the lines that a backslash continues it on."""
    taken = []
    for line in lines[max(number - 1, 0) : max(number - 1, 0) + MAX_CONTINUED]:
        taken.append(line.rstrip(b"\r"))
        if not taken[-1].rstrip().endswith(b"\\"):
            break
    return b"\n".join(taken)


def _choices(entries: object) -> tuple[RuleChoice, ...]:
    if not isinstance(entries, (list, tuple)):
        raise TypeError("no list")
    return tuple(
        RuleChoice(
            source=str(entry["source"]),
            line=int(entry["line"]),
            sid=int(entry.get("sid", 0)),
            reason=str(entry.get("reason") or ""),
        )
        for entry in entries
    )


def _parse_service(text: str) -> dict[str, object]:
    match = _TRANSPORT.match(text)
    if match and 1 <= int(match[2]) <= 65535:
        return {"protocol": match[1], "port": int(match[2])}
    if match or not _APPLICATION.match(text):
        raise BudgetInvalid(f"{text[:64]!r} is no service; write tcp/502 or modbus", service=text[:64])
    return {"application": text}
