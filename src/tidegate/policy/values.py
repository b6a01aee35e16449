"""What a wrong value of the policy should have been, in words. Pure.

msgspec says which value is wrong; the types of the sections say what is right.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from tidegate.firewall import section as firewall

if TYPE_CHECKING:
    from msgspec import inspect

MAX_SHOWN = 60  # characters of a value, or keys of a table, in a message

# Words of other firewalls, and ours. A word counts only where it is valid.
_SYNONYMS = {
    "icmp": "ping",
    "icmpv6": "ping",
    "echo": "ping",
    "drop": "deny",
    "block": "deny",
    "refuse": "reject",
    "accept": "allow",
    "permit": "allow",
    "pass": "allow",
    "monitor": "observe",
    "learn": "observe",
    "report-only": "observe",
    "active": "enforce",
    "src": "source",
    "all": "total",
}
_PORTS = {"ssh": 22, "dns": 53, "http": 80, "ntp": 123, "snmp": 161, "https": 443, "modbus": 502, "mqtt": 1883}  # IANA

_PLAIN = {
    "BoolType": "true or false",
    "DictType": "a table",
    "DateTimeType": "a moment such as 2030-01-01T00:00:00Z",
}


def _pattern(alias: Any) -> str:
    """Return the pattern of an annotated type."""
    return next(str(meta.pattern) for meta in get_args(alias) if getattr(meta, "pattern", None))


_NAME, _INTERFACE, _MAC = _pattern(firewall.Name), _pattern(firewall.Interface), _pattern(firewall.Mac)
_RANGE = r"^[0-9]{1,5}-[0-9]{1,5}\Z"  # firewall.Port
_FORMS = {
    _NAME: "a name of up to 32 lower-case letters, digits and hyphens that begins with a letter",
    _INTERFACE: "an interface of up to 15 letters, digits, dots, hyphens and underscores",
    _MAC: 'a MAC address such as "02:00:5e:10:00:01"',
    _RANGE: 'a rising range such as "6000-6010"',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why a value is refused, and the nearest valid one: as a value, and as TOML writes it."""

    reason: str
    nearest: str | None = None
    spelling: str | None = None


def find_value(document: object, path: tuple[str, ...]) -> object:
    """Return what stands at ``path`` in a parsed document; ``None`` for nothing."""
    for step in path:
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and step.isdigit() and int(step) < len(document):
            document = document[int(step)]
        else:
            return None
    return document


def explain_value(root: type, path: tuple[str, ...], value: object, refusal: str, *, is_key: bool) -> Explanation:
    """Return why ``value`` at ``path`` below ``root`` is refused; ``refusal`` are msgspec's words for it.

    ``is_key``: not what stands at the path is wrong but its last name, which is then the ``value`` too.
    """
    missing = re.match(r"Object missing required field `(.*)`", refusal)
    if missing:
        return Explanation(reason=f"the key {missing[1]!r} is missing")
    kinds = _find_kinds(root, path, is_key=is_key)
    if not kinds:
        return Explanation(reason=refusal[:300])
    reason = f"expected {_one_of(kinds)}, got {_show(value)}"
    nearest = _nearest(kinds, value)
    if nearest is None:
        return Explanation(reason=reason)
    spelling = repr(nearest) if isinstance(nearest, str) else _write(nearest)
    return Explanation(
        reason=reason, nearest=nearest if isinstance(nearest, str) else _write(nearest), spelling=spelling
    )


def _find_kinds(root: type, path: tuple[str, ...], *, is_key: bool) -> list[inspect.Type]:
    """Return the types that the value at ``path``, or the name at its end, may have."""
    from msgspec import inspect

    kinds = _members(inspect.type_info(root))
    for position, step in enumerate(path):
        table = next((kind for kind in kinds if isinstance(kind, inspect.DictType)), None)
        if is_key and position == len(path) - 1:
            return [] if table is None else _members(table.key_type)
        kinds = [below for kind in kinds for below in _descend(kind, step)]
    return [kind for kind in kinds if not isinstance(kind, inspect.NoneType)]


def _descend(kind: inspect.Type, step: str) -> list[inspect.Type]:
    """Return the types of what stands at ``step`` in a value of type ``kind``."""
    from msgspec import inspect

    if isinstance(kind, inspect.StructType):
        return [one for entry in kind.fields if entry.encode_name == step for one in _members(entry.type)]
    if isinstance(kind, inspect.DictType):
        return _members(kind.value_type)
    return _members(kind.item_type) if isinstance(kind, inspect.CollectionType) else []


def _members(kind: inspect.Type) -> list[inspect.Type]:
    """Return the types that a value of ``kind`` may have, bare."""
    from msgspec import inspect

    if isinstance(kind, inspect.Metadata):
        return _members(kind.type)
    return [one for member in kind.types for one in _members(member)] if isinstance(kind, inspect.UnionType) else [kind]


def _one_of(kinds: Iterable[inspect.Type]) -> str:
    return " or ".join(_describe(kind) for kind in kinds)


def _describe(kind: inspect.Type) -> str:
    """Return what a value of ``kind`` is."""
    from msgspec import inspect

    if isinstance(kind, inspect.EnumType):
        return "one of " + ", ".join(repr(str(word.value)) for word in kind.cls)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        noun = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
        return noun + _bounds(kind.ge if kind.ge is not None else kind.gt, kind.le if kind.le is not None else kind.lt)
    if isinstance(kind, inspect.StrType):
        if kind.pattern is not None:
            return _FORMS.get(kind.pattern, f"a text of the form {kind.pattern}")
        return "a text" + (f" of at most {kind.max_length} characters" if kind.max_length else "")
    if isinstance(kind, inspect.CollectionType):
        return "a list" + (_bounds(kind.min_length, kind.max_length, of=" of") if kind.max_length else "")
    if isinstance(kind, inspect.StructType):
        return "a table with the keys " + ", ".join(entry.encode_name for entry in kind.fields[:MAX_SHOWN])
    return _PLAIN.get(type(kind).__name__, "another kind of value")


def _bounds(first: float | None, last: float | None, *, of: str = "") -> str:
    if first is not None and last is not None:
        return f"{of or ' from'} {first} to {last}"
    if last is not None:
        return f"{of} at most {last}"
    return "" if first is None else f"{of} at least {first}"


def _show(value: object) -> str:
    """Return what was written, in words and no longer than a person reads."""
    if isinstance(value, str):
        return repr(value if len(value) <= MAX_SHOWN else value[:MAX_SHOWN] + "...")
    if isinstance(value, list):
        return "an empty list" if not value else f"a list of {len(value)}"
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, datetime.date | datetime.time):
        return f"the date or time {value}"
    return "nothing" if value is None else _write(value)[:MAX_SHOWN]


def _nearest(kinds: Iterable[inspect.Type], value: object) -> object | None:
    """Return the valid value that ``value`` was probably meant to be."""
    return next((found for kind in kinds if (found := _nearest_of(kind, value)) is not None), None)


def _nearest_of(kind: inspect.Type, value: object) -> object | None:
    from msgspec import inspect

    if isinstance(kind, inspect.EnumType):
        return _nearest_word([str(word.value) for word in kind.cls], value)
    if isinstance(kind, inspect.BoolType):
        words: dict[object, bool] = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        words |= {1: True, 0: False}
        return words.get(value.lower()) if isinstance(value, str) else words.get(_whole(value))
    if isinstance(kind, inspect.IntType):
        number = _PORTS.get(value.lower()) if isinstance(value, str) and kind.le == 65535 else None
        number = _whole(value) if number is None else number
        return number if type(value) is not int and _fits(kind, number) else None
    if isinstance(kind, inspect.StrType):
        return _nearest_text(kind.pattern, value) if kind.pattern is not None and isinstance(value, str) else None
    if isinstance(kind, inspect.CollectionType) and not isinstance(value, list):
        return _nearest_list(_members(kind.item_type), value)
    return _nearest_moment(value) if isinstance(kind, inspect.DateTimeType) else None


def _nearest_moment(value: object) -> datetime.datetime | None:
    try:
        day = datetime.date.fromisoformat(str(value)[:10])
    except ValueError:
        return None
    return datetime.datetime.combine(day, datetime.time(), tzinfo=datetime.UTC)


def _nearest_word(words: list[str], value: object) -> str | None:
    import difflib

    if not isinstance(value, str):
        return None
    synonym = _SYNONYMS.get(value.lower())
    if synonym in words:
        return synonym
    return next(iter(difflib.get_close_matches(value.lower(), words, n=1, cutoff=0.5)), None)


def _nearest_text(pattern: str, value: str) -> str | None:
    """Return ``value`` in the form that ``pattern`` asks for, if that can be told."""
    changed = value.strip()
    if pattern == _NAME:
        changed = re.sub(r"[^a-z0-9]+", "-", changed.lower()).strip("-")
    elif pattern == _MAC:
        digits = re.sub(r"[-:. ]", "", changed.lower())
        changed = ":".join(re.findall("..", digits)) if len(digits) == 12 else ""
    elif pattern == _RANGE:
        changed = re.sub(r"\s*(?:-|:|\.\.+|\u2013)\s*", "-", changed)
    return changed if changed != value and re.search(pattern, changed) else None


def _nearest_list(kinds: list[inspect.Type], value: object) -> list[object] | None:
    """Return the list of one value that was given without brackets."""
    from msgspec import inspect

    for kind in kinds:
        if isinstance(kind, inspect.IntType) and (number := _whole(value)) is not None and _fits(kind, number):
            return [number]
        if isinstance(kind, inspect.StrType) and isinstance(value, str) and value:
            parts = [part for part in re.split(r"[,\s]+", value) if part]
            if kind.pattern is None or all(re.search(kind.pattern, part) for part in parts):
                return list(parts)
    return None


def _whole(value: object) -> int | None:
    """Return the whole number that ``value`` writes in another type."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,10}", value.strip()):
        return int(value)
    return value if isinstance(value, int) else None


def _fits(kind: inspect.IntType, number: int | None) -> bool:
    return number is not None and (kind.ge is None or number >= kind.ge) and (kind.le is None or number <= kind.le)


def _write(value: object) -> str:
    """Return ``value`` as TOML writes it; lists, numbers, texts and truth."""
    if isinstance(value, list):
        return f"[{', '.join(_write(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.datetime):
        return value.isoformat().replace("+00:00", "Z")
    return f'"{value}"' if isinstance(value, str) else str(value)
