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
from tidegate.vault.section import VaultSection

if TYPE_CHECKING:
    from msgspec import inspect

    from tidegate.policy.lines import KeyLines

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
    vault: VaultSection | None = None

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

    Raises ``policy.syntax`` with line and nearest valid statement; ``policy.key.unknown`` naming the first 20 unknown
    keys, each with its line and the nearest valid one; ``policy.value.invalid`` with line, what is expected and, where
    it can be told, the nearest valid value. Whether the values make sense together is each room's to check (``tidegate
    policy check`` asks them all).
    """

    from msgspec import inspect

    from tidegate.policy.lines import KeyLines

    document = _load_toml(text, name)
    lines = KeyLines(text)
    found = itertools.islice(_unknown_keys(document, inspect.type_info(Policy), ()), MAX_NAMED_KEYS)
    unknown = [
        UnknownKey(path=".".join(path)[:200], line=lines.find_key(path), nearest=nearest) for path, nearest in found
    ]
    if unknown:
        listed = "; ".join(str(key) for key in unknown)
        raise PolicyUnknownKey(f"{name}: {listed}", line=unknown[0].line, nearest=unknown[0].nearest)
    try:
        return msgspec.convert(document, Policy, strict=True)
    except msgspec.ValidationError as error:
        raise _refuse_value(document, error, lines, name) from error


def _refuse_value(
    document: dict[str, object], error: msgspec.ValidationError, lines: KeyLines, name: str
) -> PolicyValue:
    """Return the refusal of the first wrong value: its line, what it is, what it should be, and what is nearest."""
    from tidegate.policy.values import explain_value, find_value

    path = _locate(document, error)
    is_key = "at `key` in `" in str(error)
    value = path[-1] if is_key and path else find_value(document, path)
    why = explain_value(Policy, path, value, str(error).partition(" - at `")[0], is_key=is_key)
    line = lines.find(path) if is_key else lines.find_value(path, value)
    hint = f"; did you mean {why.spelling}?" if why.spelling else ""
    where = f"{'.'.join(path)[:200]!r}: " if path else ""
    return PolicyValue(f"{name}: line {line}: {where}{why.reason}{hint}", line=line, nearest=why.nearest)


def _load_toml(text: str, name: str) -> dict[str, object]:
    import tomllib  # here and below: only who writes a policy pays for reading one, not the device that follows it

    if deep := re.search(_DEEP_KEY, text):
        line = text.count("\n", 0, deep.start()) + 1
        raise PolicySyntax(f"{name}: line {line}: a dotted key has more than {MAX_KEY_PARTS} parts", line=line)
    try:
        if len(text.encode()) > MAX_POLICY_BYTES:
            raise PolicySyntax(f"{name} is larger than {MAX_POLICY_BYTES} bytes")
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of 5,000 digits, a lone surrogate
        from tidegate.policy.syntax import explain_syntax

        line, reason, nearest = explain_syntax(text, error)
        hint = f"; did you mean {nearest}?" if nearest else ""
        raise PolicySyntax(f"{name}: line {line}: {reason}{hint}", line=line, nearest=nearest) from error


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
