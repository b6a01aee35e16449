"""Whether an event matches what a check says. Pure; the suite's README describes it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_PART = re.compile(r"([^\[\]]*)((?:\[[0-9]+\])*)\Z")
_INDEX = re.compile(r"\[([0-9]+)\]")


def find_value(name: str, document: object) -> Any:
    """Return what ``alert.metadata.tag[0]`` names, or None; ``__len`` is a length, -1 of what has none."""
    value: Any = document
    for part in name.split("."):
        if part == "__len":
            return len(value) if isinstance(value, (str, list, dict)) else -1
        if part in _TESTS:
            return value
        found = _PART.match(part)
        if found is None or not isinstance(value, Mapping) or found[1] not in value:
            return None
        value = value[found[1]]
        for position in map(int, _INDEX.findall(found[2])):
            if not isinstance(value, list) or position >= len(value):
                return None
            value = value[position]
    return value


def is_match(wanted: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Say whether the event has everything that a filter's ``match`` asks for."""
    return all(_is_one(name, expected, event) for name, expected in wanted.items())


def _is_one(name: str, expected: Any, event: Mapping[str, Any]) -> bool:
    if name in ("has-key", "not-has-key"):
        keys = expected if isinstance(expected, list) else [expected]
        return all((find_value(str(key), event) is not None) == (name == "has-key") for key in keys)
    value = find_value(name, event)
    test = _TESTS.get(name.rpartition(".")[2])
    return is_equal(value, expected) if test is None else test(value, expected)


def is_equal(value: Any, expected: Any) -> bool:
    """Say whether two values are equal; numbers and their texts are, as YAML reads some of the one as the other."""
    return bool(value == expected) or (value is not None and str(value) == str(expected))


def _find(value: Any, expected: Any) -> bool:
    return value is not None and str(expected) in str(value)


def _contains(value: Any, expected: Any) -> bool:
    if isinstance(value, list):
        return any(is_equal(one, expected) for one in value)
    if isinstance(value, dict):
        return expected in value
    return isinstance(value, str) and str(expected) in value


_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "__find": _find,
    "__contains": _contains,
    "__startswith": lambda value, expected: value is not None and str(value).startswith(str(expected)),
    "__endswith": lambda value, expected: value is not None and str(value).endswith(str(expected)),
}
