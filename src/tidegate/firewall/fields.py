"""Field rules: which messages of a protocol may reach a service, as an operator writes them and as the inspector reads.

Pure. ``plan_fields`` turns names into numbers and refuses what no message could ever match; the inspector's parsers
(``rust/sensor/src/fields``) decide on packets. docs/formats/fields.md is the format in between.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from tidegate.firewall.errors import BadField
from tidegate.firewall.field_names import KEYS, Key, Numbers

VERSION = 1  # of docs/formats/fields.md
MAX_RULES = 63  # identifiers are six bits of the packet mark, and 0 means "none"
MAX_MATCHES = 64  # entries of one list: each is tried on each message
MAX_ITEMS = 256  # numbers, ranges or texts of one key

Items = Annotated[tuple[int | Annotated[str, Meta(min_length=1, max_length=1024)], ...], Meta(max_length=MAX_ITEMS)]


class FieldProtocol(StrEnum):
    """Protocols whose messages can be judged."""

    MODBUS = "modbus"
    DNP3 = "dnp3"
    BACNET = "bacnet"
    MQTT = "mqtt"
    COAP = "coap"
    DNS = "dns"


class FieldMode(StrEnum):
    """What happens to a message that the rule does not allow."""

    ENFORCE = "enforce"  # it does not reach the service
    OBSERVE = "observe"  # it is reported and passes


class Unparsable(StrEnum):
    """What happens to bytes that are no message of the protocol."""

    DROP = "drop"
    PASS = "pass"  # noqa: S105 - a verdict, no password


class WhenDown(StrEnum):
    """What happens to the service's packets while no inspector runs."""

    CLOSED = "closed"
    OPEN = "open"


class FieldMatch(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One entry of ``allow`` or ``deny``. It matches when every key that it has matches; which keys depends on the
    protocol. Numbers, ranges such as "0-99", and names such as "read-holding-registers", "GET", "publish"."""

    units: Items | None = None
    functions: Items | None = None
    registers: Items | None = None
    values: Items | None = None
    sources: Items | None = None
    destinations: Items | None = None
    objects: Items | None = None
    services: Items | None = None
    properties: Items | None = None
    actions: Items | None = None
    topics: Items | None = None
    clients: Items | None = None
    methods: Items | None = None
    paths: Items | None = None
    names: Items | None = None
    types: Items | None = None


Matches = Annotated[tuple[FieldMatch, ...], Meta(max_length=MAX_MATCHES)]


class FieldRules(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which messages reach a service: none that ``deny`` matches; where ``allow`` is there, only those it matches."""

    protocol: FieldProtocol
    mode: FieldMode = FieldMode.ENFORCE
    unparsable: Unparsable = Unparsable.DROP
    when_down: WhenDown = WhenDown.CLOSED
    allow: Matches = ()
    deny: Matches = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedField:
    """A field rule with its place in the packet mark; ``document`` is its part of the inspector's configuration."""

    id: int
    name: str
    protocol: FieldProtocol
    observe: bool
    fail_open: bool
    document: dict[str, object]


def plan_fields(rules: Mapping[str, FieldRules]) -> tuple[PlannedField, ...]:
    """Return the rules, numbered from 1 in the order of their names, with every name and range as numbers.

    Raises BadField (``firewall.policy.field``): more than 63 rules, a rule or an entry that says nothing, a key that
    its protocol does not have, a name, range or text that no message can match.
    """
    if len(rules) > MAX_RULES:
        raise BadField(f"fields: {len(rules)} rules are more than the {MAX_RULES} that a packet mark can tell apart")
    return tuple(_plan_rule(number, name, rules[name]) for number, name in enumerate(sorted(rules), start=1))


def encode_field_config(planned: Sequence[PlannedField], *, memory_bytes: int) -> str:
    """Return the inspector's configuration as one line of JSON (docs/formats/fields.md); ``memory_bytes``: what it may
    hold of messages that are not complete."""
    rules = [rule.document for rule in planned]
    return json.dumps({"version": VERSION, "memory_bytes": memory_bytes, "rules": rules}, separators=(",", ":"))


def _plan_rule(number: int, name: str, rule: FieldRules) -> PlannedField:
    where = f"fields.{name}"
    if not rule.allow and not rule.deny:
        raise BadField(f"{where}: neither allow nor deny: it would say nothing", where=where)
    document: dict[str, object] = {
        "id": number,
        "name": name,
        "protocol": rule.protocol.value,
        "mode": rule.mode.value,
        "unparsable": rule.unparsable.value,
        "allow": [_plan_match(rule.protocol, m, f"{where}.allow[{i}]") for i, m in enumerate(rule.allow)],
        "deny": [_plan_match(rule.protocol, m, f"{where}.deny[{i}]") for i, m in enumerate(rule.deny)],
    }
    return PlannedField(
        id=number,
        name=name,
        protocol=rule.protocol,
        observe=rule.mode is FieldMode.OBSERVE,
        fail_open=rule.when_down is WhenDown.OPEN,
        document=document,
    )


def _plan_match(protocol: FieldProtocol, match: FieldMatch, where: str) -> dict[str, object]:
    keys = KEYS[protocol]
    planned: dict[str, object] = {}
    for key in FieldMatch.__struct_fields__:
        items: tuple[int | str, ...] | None = getattr(match, key)
        if items is None:
            continue
        if key not in keys:
            raise BadField(f"{where}: '{key}' does not belong to {protocol}; it has {', '.join(keys)}", where=where)
        if not items:
            raise BadField(f"{where}: '{key}' is empty and could match nothing; leave it out to match all", where=where)
        planned[key] = _plan_items(keys[key], items, f"{where}.{key}")
    if not planned:
        raise BadField(f"{where}: it has no key; {protocol} has {', '.join(keys)}", where=where)
    return planned


def _plan_items(key: Key, items: tuple[int | str, ...], where: str) -> object:
    if isinstance(key, Numbers):
        return _merge([_plan_range(key, item, where) for item in items])
    check = _FORMS[key.form]
    return [_plan_text(check, item, where) for item in items]


def _plan_text(check: Callable[[str], str], item: int | str, where: str) -> str:
    if isinstance(item, int):
        raise BadField(f"{where}: {item} is a number; write a text", where=where)
    try:
        return check(item)
    except ValueError as error:
        raise BadField(f"{where}: {item!r}: {error}", where=where) from error


def _plan_range(key: Numbers, item: int | str, where: str) -> tuple[int, int]:
    if isinstance(item, int):
        return _in_bounds(key, item, item, where)
    if span := re.fullmatch(r"([0-9]{1,7})(?:-([0-9]{1,7}))?", item):
        return _in_bounds(key, int(span[1]), int(span[2] or span[1]), where)
    spellings = {name.lower(): number for name, number in key.names.items()}
    if (number := spellings.get(item.lower())) is not None:
        return number, number
    block, _, rest = item.partition(":")
    if block in key.prefixes and re.fullmatch(r"[0-9]{1,3}", rest) and int(rest) <= 0xFF:
        return key.prefixes[block] + int(rest), key.prefixes[block] + int(rest)
    raise BadField(f"{where}: {item!r} is no number, range or name{_nearest(item, key)}", where=where)


def _in_bounds(key: Numbers, first: int, last: int, where: str) -> tuple[int, int]:
    if not 0 <= first <= last <= key.last:
        span = str(first) if first == last else f"{first}-{last}"
        raise BadField(f"{where}: {span!r} is not within 0-{key.last} and rising", where=where)
    return first, last


def _nearest(item: str, key: Numbers) -> str:
    spellings = {name.lower(): name for name in key.names}
    near = difflib.get_close_matches(item.lower().replace("_", "-"), spellings, n=1, cutoff=0.5)
    return f"; did you mean {spellings[near[0]]!r}?" if near else ""


def _merge(spans: list[tuple[int, int]]) -> list[list[int]]:
    """Return the spans sorted, with neighbours joined: an access to 9 and 10 lies in "0-9" and "10-19" together."""
    merged: list[list[int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], last)
        else:
            merged.append([first, last])
    return merged


def _topic(text: str) -> str:
    """MQTT 5.0 section 4.7: "+" and "#" stand for whole levels, "#" only for the last ones."""
    levels = text.split("/")
    if "\0" in text or not text.isprintable():
        raise ValueError("a topic has no control characters")
    if any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):
        raise ValueError("'#' stands alone and last")
    if any("+" in level and level != "+" for level in levels):
        raise ValueError("'+' stands for one whole level")
    if levels[0] == "$share":
        raise ValueError("write the filter without '$share/GROUP/': shared subscriptions are judged by their filter")
    return text


def _client(text: str) -> str:
    if not text.isprintable() or "*" in text[:-1]:
        raise ValueError("a client identifier has no control characters, and '*' only at its end")
    return text


def _path(text: str) -> str:
    """RFC 7252 section 5.10.1: one option per segment, none of them "." or ".."."""
    if not text.startswith("/"):
        raise ValueError("a path begins with '/'")
    segments = text[1:].split("/")
    if any(segment in {".", ".."} for segment in segments):
        raise ValueError("no segment may be '.' or '..'")
    if any("*" in segment for segment in segments[:-1]) or ("*" in segments[-1] and segments[-1] != "*"):
        raise ValueError("'*' stands alone and last, for everything below")
    if "?" in text or "#" in text or not text.isprintable() or any(len(part.encode()) > 255 for part in segments):
        raise ValueError("no query, no fragment, no control characters, 255 bytes a segment")
    return text


def _name(text: str) -> str:
    name = text.lower().removesuffix(".")
    labels = name.removeprefix("*.").split(".") if name != "*" else []
    if len(name) > 253 or not all(re.fullmatch(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", part) for part in labels):
        raise ValueError("write a name ('example.com') or '*.example.com' for all below it, in ASCII")
    return name


_FORMS: Mapping[str, Callable[[str], str]] = {"topic": _topic, "client": _client, "path": _path, "name": _name}
