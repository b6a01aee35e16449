"""From the operator's TOML to a typed policy, and what is wrong with it in words that help. Pure."""

from __future__ import annotations

import datetime
import fnmatch
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


class PolicyHeader(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which policy this is. ``version`` only ever rises; ``devices`` are ids or patterns with ``*``."""

    version: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    devices: Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=128)], ...], Meta(min_length=1)] = ("*",)
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

    Raises ``policy.syntax``; ``policy.key.unknown`` naming every unknown key with its line and the nearest valid one;
    ``policy.value.invalid`` with line and reason. Whether the values make sense together is each room's to check
    (``tidegate policy check`` asks them all).
    """
    import tomllib  # here and below: only who writes a policy pays for reading one, not the device that follows it

    from msgspec import inspect

    if len(text.encode()) > MAX_POLICY_BYTES:
        raise PolicySyntax(f"{name} is larger than {MAX_POLICY_BYTES} bytes")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PolicySyntax(f"{name}: {error}") from error
    lines = KeyLines(text)
    unknown = [
        UnknownKey(path=".".join(path), line=lines.find(path), nearest=nearest)
        for path, nearest in _unknown_keys(document, inspect.type_info(Policy), ())
    ]
    if unknown:
        listed = "; ".join(str(key) for key in unknown)
        raise PolicyUnknownKey(f"{name}: {listed}", line=unknown[0].line, nearest=unknown[0].nearest)
    try:
        return msgspec.convert(document, Policy, strict=True)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$.")
        path = tuple(part for part in re.split(r"[.\[\]`]+", where) if part and part != "...")
        line = lines.find(path)
        raise PolicyValue(f"{name}: line {line}: {'.'.join(path)}: {reason}", line=line) from error


class KeyLines:
    """Finds the line on which a key of a TOML text stands; only for messages, so near is good enough."""

    _TABLE = re.compile(r"\s*\[\[?\s*([^\]]+?)\s*\]\]?")
    _KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")

    def __init__(self, text: str) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        self._texts = text.splitlines()
        table: tuple[str, ...] = ()
        for number, line in enumerate(self._texts, start=1):
            if match := self._TABLE.match(line):
                table = self._split(match[1])
                self._lines.setdefault(table, number)
            elif match := self._KEY.match(line):
                self._lines.setdefault((*table, *self._split(match[1])), number)

    def find(self, path: tuple[str, ...]) -> int:
        """Return the line of ``path``, or of the nearest key above it; 1 if nothing of it is there."""
        for length in range(len(path), 0, -1):
            line = self._lines.get(path[:length])
            if line is not None:
                return line
            below = [line for key, line in self._lines.items() if key[:length] == path[:length]]
            if below:
                return min(below)
        return 1

    @staticmethod
    def _split(dotted: str) -> tuple[str, ...]:
        return tuple(part.strip().strip("\"'") for part in dotted.split("."))


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
        for item in value:
            yield from _unknown_keys(item, kind.item_type, path)
