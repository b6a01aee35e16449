"""Where in an operator's policy a room's refusal comes from: the line to correct. Pure.

Rooms plan from values, not from text; their errors name a place ("service web") and what is wrong there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tidegate.base.errors import Rejected
from tidegate.policy.lines import KeyLines

# How rooms name a place in their messages and fields, and where that stands in the policy.
_PLACES = (
    ("egress service ", ("firewall", "egress", "services")),
    ("service ", ("firewall", "services")),
    ("route ", ("firewall", "routes")),
    ("port forward ", ("firewall", "nat", "port_forwards")),
    ("masquerade ", ("firewall", "nat", "masquerade")),
    # labels of findings
    ("services.", ("firewall", "services")),
    ("egress.", ("firewall", "egress", "services")),
    ("routes.", ("firewall", "routes")),
    ("port-forwards.", ("firewall", "nat", "port_forwards")),
    ("nat.masquerade.", ("firewall", "nat", "masquerade")),
    ("peers.", ("firewall", "peers")),
    ("zones.", ("firewall", "zones")),
    ("fields.", ("firewall", "fields")),
    ("link.", ("firewall", "link")),
    ("vault.", ("vault",)),
)
_WHERE = ("where", "service", "subject")  # fields of errors that name a place
_WHAT = ("peer", "port", "zone", "name")  # fields of errors that hold the offending value


@contextmanager
def with_lines(text: str, *, name: str) -> Iterator[None]:
    """Give every refusal of the body the line of ``text`` that it is about: same code, ``name: line N:`` before its
    message, and the field ``line``."""
    try:
        yield
    except Rejected as error:
        if "line" in error.fields:
            raise
        line = find_line(text, error)
        raise type(error)(f"{name}: line {line}: {error.message}", **error.fields, line=line) from error


def find_line(text: str, error: Rejected) -> int:
    """Return the line of the value that ``error`` is about, or the nearest line above it that is known."""
    lines = KeyLines(text)
    where = next((str(error.fields[key]) for key in _WHERE if error.fields.get(key)), "")
    if error.code.startswith("ids.") and "field" in error.fields:
        return lines.find(("ids", *str(error.fields["field"]).split(".")))
    path = find_path(where) or find_path(error.message.removeprefix("[").partition(":")[0].partition("]")[0])
    what = next((str(error.fields[key]) for key in _WHAT if error.fields.get(key)), "")
    if not path and "zone" in error.fields:
        path = ("firewall", "zones", what)
    line = lines.find(path) if path else 1
    return _find_value(text, line, what) or _find_key(lines, path, error.message) or line


def find_subjects(text: str, subjects: Sequence[str]) -> list[int]:
    """Return the line of what each finding is about; that of the section for what the policy does not say."""
    lines = KeyLines(text)
    return [lines.find(find_path(subject) or ("firewall", subject)) for subject in subjects]


def find_path(where: str) -> tuple[str, ...]:
    """Return the keys that lead to a place that a room names; none when it is not known."""
    for start, path in _PLACES:
        if where.startswith(start):
            return (*path, *_steps(where.removeprefix(start)))
    if where.startswith("firewall."):
        return tuple(_steps(where))
    return ("firewall", where) if where in ("management", "thresholds", "conntrack", "mode", "set_budget") else ()


def _steps(where: str) -> list[str]:
    return [step for step in re.split(r"[.\[\]]", where.partition(" ")[0]) if step]


def _find_value(text: str, first: int, what: str) -> int | None:
    """Return the line of the quoted value ``what`` in the table from line ``first`` on, or else of its only place.

    A peer may have come by a named list, and stands in that one's lines then.
    """
    if not what:
        return None
    quoted = (f'"{what}"', f"'{what}'")
    found = [number for number, line in enumerate(text.split("\n"), start=1) if any(one in line for one in quoted)]
    headings = [number for number, line in enumerate(text.split("\n"), start=1) if line.lstrip().startswith("[")]
    end = next((number for number in headings if number > first), len(text))
    inside = [number for number in found if first <= number < end]
    if inside:
        return inside[0]
    return found[0] if len(found) == 1 else None


def _find_key(lines: KeyLines, path: tuple[str, ...], message: str) -> int | None:
    """Return the line of the first key of that table that the message names."""
    for word in re.findall(r"[a-z_]+", message.partition(": ")[2] or message):
        if path and (line := lines.at((*path, word))) is not None:
            return line
    return None
