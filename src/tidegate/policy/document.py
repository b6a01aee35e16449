"""From the operator's TOML to a typed policy, and what is wrong with it in words that help. Pure."""

from __future__ import annotations

import datetime
import fnmatch
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta, Struct

from tidegate.firewall.section import FirewallSection
from tidegate.ids.section import IdsSection, WatchSection
from tidegate.policy.errors import PolicySyntax, PolicyUnknownKey, PolicyValue, PolicyWrongDevice
from tidegate.update.section import UpdateSection

if TYPE_CHECKING:
    from msgspec import inspect

MAX_POLICY_BYTES = 262_144  # 10,000 peers in one list leave room
MAX_NAMED_KEYS = 20  # unknown keys in one message: more than a person corrects in one go
MAX_KEY_PARTS = 16  # the deepest key of ours has 6; the parser's time grows with the square
_PART = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+"""
_DEEP_KEY = rf"(?<![\w-])(?:{_PART}\.[ \t]*+){{{MAX_KEY_PARTS}}}"


# no "?" and no brackets: fnmatch would give them a meaning that the policy does not promise
DevicePattern = Annotated[str, Meta(max_length=128, pattern=r"^[^?\[\]]+\Z")]


class PolicyHeader(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which policy this is. ``version`` only ever rises; ``devices`` are ids or patterns with ``*``."""

    version: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    devices: Annotated[tuple[DevicePattern, ...], Meta(min_length=1)] = ("*",)
    description: Annotated[str, Meta(max_length=256)] = ""
    expires: datetime.datetime | None = None


class Policy(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole policy; a room without a section is left alone."""

    policy: PolicyHeader
    firewall: FirewallSection | None = None
    ids: IdsSection | None = None
    watch: WatchSection | None = None
    update: UpdateSection | None = None

    def require_device(self, device: str) -> None:
        """Raise ``policy.device.mismatch`` unless the policy is for ``device``."""
        if not any(fnmatch.fnmatchcase(device, pattern) for pattern in self.policy.devices):
            raise PolicyWrongDevice(f"the policy is for {', '.join(self.policy.devices)}", device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnknownKey:
    """A key that no section has: where it stands and what was probably meant."""

    path: str
    line: int
    nearest: str | None

    def __str__(self) -> str:
        hint = f"; did you mean {self.nearest!r}?" if self.nearest else ""
        return f"line {self.line}: unknown key {self.path!r}{hint}"


def parse_policy(text: str, *, name: str = "policy") -> Policy:
    """Return the policy that ``text`` writes; ``name`` is the file's, for messages.

    Raises ``policy.syntax``; ``policy.key.unknown`` naming the first 20 unknown keys, each with its line and the
    nearest valid one; ``policy.value.invalid`` with line, reason and, for a word that is one of a few, the nearest of
    them. Whether the values make sense together is each room's to check (``tidegate policy check`` asks them all).
    """

    from msgspec import inspect

    document = _load_toml(text, name)
    lines = KeyLines(text)
    found = itertools.islice(_unknown_keys(document, inspect.type_info(Policy), ()), MAX_NAMED_KEYS)
    unknown = [UnknownKey(path=".".join(path)[:200], line=lines.find(path), nearest=nearest) for path, nearest in found]
    if unknown:
        listed = "; ".join(str(key) for key in unknown)
        raise PolicyUnknownKey(f"{name}: {listed}", line=unknown[0].line, nearest=unknown[0].nearest)
    try:
        return msgspec.convert(document, Policy, strict=True)
    except msgspec.ValidationError as error:
        path = _locate(document, error)
        reason = str(error).partition(" - at `")[0][:300]
        line = lines.find(path)
        nearest = _nearest_value(document, path)
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        text = f"{name}: line {line}: {'.'.join(path)[:200]!r}: {reason}{hint}"
        raise PolicyValue(text, line=line, nearest=nearest) from error


def _load_toml(text: str, name: str) -> dict[str, object]:
    import tomllib  # here and below: only who writes a policy pays for reading one, not the device that follows it

    if re.search(_DEEP_KEY, text):
        raise PolicySyntax(f"{name}: a dotted key has more than {MAX_KEY_PARTS} parts")
    try:
        if len(text.encode()) > MAX_POLICY_BYTES:
            raise PolicySyntax(f"{name} is larger than {MAX_POLICY_BYTES} bytes")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits, a lone surrogate
        raise PolicySyntax(f"{name}: {str(error)[:300]}") from error


class KeyLines:
    """Finds the line on which a key of a TOML text stands; only for messages, so near is good enough.

    A table of an array of tables is counted: the second ``[[update.http]]`` is ``("update", "http", "1")``.
    """

    _TABLE = re.compile(r"\s*(\[\[?)([^\[\]]+)\]")
    _KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")

    def __init__(self, text: str) -> None:
        self._exact: dict[tuple[str, ...], int] = {}
        self._below: dict[tuple[str, ...], int] = {}
        self._tables: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        for number, line in enumerate(text.split("\n"), start=1):
            if match := self._TABLE.match(line):
                table = self._enter(self._split(match[2]), is_array=match[1] == "[[")
                self._add(table, number)
            elif match := self._KEY.match(line):
                self._add((*table, *self._split(match[1])), number)

    def find(self, path: tuple[str, ...]) -> int:
        """Return the line of ``path``, or of the nearest key above it; 1 if nothing of it is there."""
        for length in range(len(path), 0, -1):
            line = self._exact.get(path[:length]) or self._below.get(path[:length])
            if line is not None:
                return line
        return 1

    def at(self, path: tuple[str, ...]) -> int | None:
        """Return the line of ``path``; ``None`` when it is not written there."""
        return self._exact.get(path)

    def _enter(self, parts: tuple[str, ...], *, is_array: bool) -> tuple[str, ...]:
        """Return the table that a header opens, with the numbers of the arrays on its way."""
        table: tuple[str, ...] = ()
        for position, part in enumerate(parts, start=1):
            table = (*table, part)
            if is_array and position == len(parts):
                self._tables[table] = self._tables.get(table, -1) + 1
            if table in self._tables:
                table = (*table, str(self._tables[table]))
        return table

    def _add(self, path: tuple[str, ...], number: int) -> None:
        self._exact.setdefault(path, number)
        for length in range(1, len(path)):
            self._below.setdefault(path[:length], number)

    @staticmethod
    def _split(dotted: str) -> tuple[str, ...]:
        return tuple(part.strip("\"'") for part in re.findall(r"""[\w-]+|"[^"]*"|'[^']*'""", dotted))


def _locate(document: dict[str, object], error: msgspec.ValidationError) -> tuple[str, ...]:
    """Return the path of the value that ``error`` is about.

    msgspec writes ``[...]`` for a table's key that is not a field's name: it is found again by trying the members.
    """
    message = str(error)
    where = re.search(r"(` in )?`\$([^`]*)`\Z", message)
    if where is None:
        return ()
    path: list[str] = []
    place: object = document
    for index, field in re.findall(r"\[(\.\.\.|\d+)\]|([^.\[\]]+)", where[2] + ("[...]" if where[1] else "")):
        step: str | None = index or field
        if step == "..." and isinstance(place, dict):
            step = next((key for key in place if _repeats(message, (*path, key), place[key])), None)
        if step is None:
            break
        path.append(step)
        if isinstance(place, list):
            place = place[int(step)]
        elif isinstance(place, dict):
            place = place.get(step)
    return tuple(path)


def _repeats(message: str, path: tuple[str, ...], value: object) -> bool:
    """Return whether a policy with nothing but ``value`` at ``path`` is refused in the same words."""
    for step in reversed(path):
        value = {step: value}
    header: dict[str, object] = {"policy": {"version": 1}}
    try:
        msgspec.convert(header | value if isinstance(value, dict) else header, Policy, strict=True)
    except msgspec.ValidationError as error:
        return str(error) == message
    return False


def _nearest_value(document: dict[str, object], path: tuple[str, ...]) -> str | None:
    """Return the valid word nearest to the one at ``path``; ``None`` where not just a few words are valid."""
    import difflib

    from msgspec import inspect

    kind: inspect.Type = inspect.type_info(Policy)
    value: object = document
    for step in path:
        found = _descend(kind, step)
        if found is None:
            return None
        kind = found
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list):
            value = value[int(step)]
    words = [str(word) for member in _members(kind) if isinstance(member, inspect.EnumType) for word in member.cls]
    near = difflib.get_close_matches(value.lower(), words, n=1, cutoff=0.5) if isinstance(value, str) else []
    return near[0] if near else None


def _descend(kind: inspect.Type, step: str) -> inspect.Type | None:
    """Return the type of what stands below a value of type ``kind`` at ``step``."""
    from msgspec import inspect

    for member in _members(kind):
        if isinstance(member, inspect.StructType):
            return next((entry.type for entry in member.fields if entry.encode_name == step), None)
        if isinstance(member, inspect.DictType):
            return member.value_type
        if isinstance(member, inspect.VarTupleType | inspect.ListType):
            return member.item_type
    return None


def _members(kind: inspect.Type) -> list[inspect.Type]:
    """Return the types that a value of ``kind`` may have, bare."""
    from msgspec import inspect

    if isinstance(kind, inspect.Metadata):
        return _members(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [one for member in kind.types for one in _members(member)]
    return [kind]


def _unknown_keys(
    value: object, kind: inspect.Type, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Yield (path, nearest valid key) of every key below ``value`` that ``kind`` has no field for."""
    import difflib

    from msgspec import inspect

    while isinstance(kind, (inspect.Metadata, inspect.UnionType)):
        if isinstance(kind, inspect.Metadata):
            kind = kind.type
            continue
        wanted = inspect.StructType if isinstance(value, dict) else inspect.CollectionType
        matching = [member for member in kind.types if isinstance(member, wanted)]
        if not matching:
            return
        kind = matching[0]
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        fields = {entry.encode_name: entry.type for entry in kind.fields}
        for key, item in value.items():
            if key in fields:
                yield from _unknown_keys(item, fields[key], (*path, key))
            else:
                nearest = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
                yield (*path, key), nearest[0] if nearest else None
    elif isinstance(kind, inspect.DictType) and isinstance(value, dict):
        for key, item in value.items():
            yield from _unknown_keys(item, kind.value_type, (*path, key))
    elif isinstance(kind, inspect.CollectionType) and isinstance(value, list):
        for number, item in enumerate(value):
            yield from _unknown_keys(item, kind.item_type, (*path, str(number)))
