"""What a MUD file (RFC 8520, access lists of RFC 8519) says, as values. Pure.

The parser is strict where a file decides what passes, and lenient where the RFC asks for it: nodes that it does not
know are ignored outside of access list entries (§3), and make an entry *unsupported* inside of them, because a match
that is left out widens what the entry allows. Names that drafts before the RFC used for the same nodes are understood
and noted. How a file is turned into rules: ``mud_import``.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tidegate.firewall.errors import BadMud
from tidegate.firewall.mud_match import Match, PeerKind, Span, parse_matches

__all__ = ["Ace", "Forwarding", "Match", "MudFile", "PeerKind", "Side", "Span", "parse_mud"]

MAX_MUD_BYTES = 262_144  # MAX_ACES entries of 260 bytes; those of one device are some dozens
MAX_ACLS = 64  # four are enough: IPv4 and IPv6, from and to
MAX_ACES = 1000  # as many rules as a policy may have (section.MAX_SERVICES)
MAX_TEXT = 256  # of texts that are only shown; RFC 8520 §3.7 allows 60 for systeminfo
MAX_NAME = 64  # RFC 8519: a name has 1 to 64 characters
CACHE_HOURS = (1, 168)  # RFC 8520 §3.5
DEFAULT_CACHE_HOURS = 48

_MUD, _ACLS = "ietf-mud:mud", "ietf-access-control-list:acls"
_DRAFT_ACLS = "ietf-access-control-list:access-lists"
_FAMILIES = {"ipv4-acl-type": 4, "ipv6-acl-type": 6}
_SHOWN = ("systeminfo", "mfg-name", "model-name", "firmware-rev", "software-rev", "documentation", "extensions")
_POLICIES = ("from-device-policy", "to-device-policy")
_KNOWN = {"mud-version", "mud-url", "mud-signature", "last-update", "cache-validity", "is-supported"}
_KNOWN |= {*_SHOWN, *_POLICIES}


class Side(StrEnum):
    """Which of the two ends: of a policy, or that began a connection."""

    DEVICE = "from-device"
    PEER = "to-device"


class Forwarding(StrEnum):
    """What becomes of a packet that an entry matches."""

    ACCEPT = "accept"
    DROP = "drop"
    REJECT = "reject"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ace:
    """One entry of an access list. ``unsupported``: why it cannot be taken over; empty: it can."""

    acl: str
    name: str
    policy: Side
    family: int | None  # None: not about IP
    match: Match
    forwarding: Forwarding
    unsupported: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """How messages and comments name the entry."""
        return f"{self.acl}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MudFile:
    """One file. ``aces`` stand in the order in which the access lists apply; what none accepts is refused."""

    url: str
    last_update: datetime.datetime
    cache_validity_h: int
    is_supported: bool
    systeminfo: str
    manufacturer: str
    model: str
    signature_url: str | None
    aces: tuple[Ace, ...]
    notes: tuple[str, ...]  # what was ignored or is written as in a draft

    def of_policy(self, side: Side) -> tuple[Ace, ...]:
        """Return the entries of one policy."""
        return tuple(ace for ace in self.aces if ace.policy is side)


def parse_mud(raw: bytes) -> MudFile:
    """Return what ``raw`` says, or raise ``firewall.mud.malformed`` with the place.

    Not checked: the signature (``mud_signature``), whether the file is still current (``mud_import``).
    """
    document = _load(raw)
    notes: list[str] = []
    mud = _object(document.get(_MUD), _MUD)
    acls = _object(_either(document, (_ACLS, _DRAFT_ACLS), notes) or {}, _ACLS)
    _whole(mud.get("mud-version"), "mud-version", (1, 1))
    unknown = sorted({*mud} - _KNOWN) + sorted({*document} - {_MUD, _ACLS, _DRAFT_ACLS})
    notes += [f"ignored, as RFC 8520 §3 asks: {_clean(name)}" for name in unknown[:20]]
    return MudFile(
        url=_url(mud.get("mud-url"), "mud-url"),
        last_update=_time(mud.get("last-update")),
        cache_validity_h=_whole(mud.get("cache-validity", DEFAULT_CACHE_HOURS), "cache-validity", CACHE_HOURS),
        is_supported=_boolean(mud.get("is-supported"), "is-supported"),
        systeminfo=_text(mud.get("systeminfo", ""), "systeminfo"),
        manufacturer=_text(mud.get("mfg-name", ""), "mfg-name"),
        model=_text(mud.get("model-name", ""), "model-name"),
        signature_url=_url(mud["mud-signature"], "mud-signature") if "mud-signature" in mud else None,
        aces=_parse_policies(mud, acls, notes),
        notes=tuple(notes),
    )


def _load(raw: bytes) -> Mapping[str, object]:
    if len(raw) > MAX_MUD_BYTES:
        raise BadMud(f"the file has more than {MAX_MUD_BYTES} bytes", where="")
    try:
        document = json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadMud(f"no JSON: {str(error)[:200]}", where="") from error
    return _object(document, "the file")


def _unique(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Two readers of a repeated key can see two policies (RFC 8259 §4)."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return made


def _refuse(text: str) -> object:
    raise ValueError(f"{text[:20]!r} is no number of this format")


def _parse_policies(mud: Mapping[str, object], acls: Mapping[str, object], notes: list[str]) -> tuple[Ace, ...]:
    lists = _array(acls.get("acl", []), "acl", MAX_ACLS)
    by_name: dict[str, Mapping[str, object]] = {}
    for number, one in enumerate(lists):
        acl = _object(one, f"acl {number}")
        name = _name(acl.get("name"), f"acl {number}")
        if name in by_name:
            raise BadMud(f"two access lists are called {name!r}", where=name)
        by_name[name] = acl
    wanted: dict[str, Side] = {}
    for side in Side:
        for name in _references(mud, side):
            if name not in by_name:
                raise BadMud(f"{side}-policy names the access list {name!r}, which is not there", where=name)
            if wanted.setdefault(name, side) is not side:
                raise BadMud(f"the access list {name!r} stands in both policies", where=name)
    notes += [f"no policy names the access list {name}" for name in sorted({*by_name} - {*wanted})]
    aces = tuple(ace for name, side in wanted.items() for ace in _parse_acl(by_name[name], name, side, notes))
    if len(aces) > MAX_ACES:
        raise BadMud(f"more than {MAX_ACES} entries", where="acl")
    return aces


def _references(mud: Mapping[str, object], side: Side) -> list[str]:
    where = f"{side}-policy"
    if where not in mud:
        return []
    lists = _object(_object(mud[where], where).get("access-lists"), f"{where}/access-lists")
    entries = _array(lists.get("access-list", []), where, MAX_ACLS)
    return [_name(_object(entry, where).get("name"), where) for entry in entries]


def _parse_acl(acl: Mapping[str, object], name: str, side: Side, notes: list[str]) -> list[Ace]:
    kind = _text(_either(acl, ("type", "acl-type"), notes), f"{name}/type").rpartition(":")[2]
    aces = _object(_either(acl, ("aces", "access-list-entries"), notes) or {}, f"{name}/aces")
    found = []
    names = set()
    for number, one in enumerate(_array(aces.get("ace", []), name, MAX_ACES)):
        ace = _object(one, f"{name}, entry {number}")
        label = _name(_either(ace, ("name", "rule-name"), notes), f"{name}, entry {number}")
        if label in names:
            raise BadMud(f"{name}: two entries are called {label!r}", where=f"{name}/{label}")
        names.add(label)
        found.append(_parse_ace(ace, (name, label), side, _FAMILIES.get(kind), notes))
    return found


def _parse_ace(
    ace: Mapping[str, object], label: tuple[str, str], side: Side, family: int | None, notes: list[str]
) -> Ace:
    where = "/".join(label)
    actions = _object(ace.get("actions"), f"{where}/actions")
    forwarding = _text(actions.get("forwarding"), f"{where}/forwarding").rpartition(":")[2]
    if forwarding not in [*Forwarding]:
        raise BadMud(f"{where}: forwarding {forwarding!r} is neither accept, drop nor reject", where=where)
    matches = _object(ace.get("matches", {}), f"{where}/matches")
    match, reasons, drafts = parse_matches(matches, where, from_device=side is Side.DEVICE, family=family)
    notes += [draft for draft in drafts if draft not in notes]
    known = {"name", "rule-name", "matches", "actions", "statistics"}
    reasons += [f"unknown node {_clean(key)}" for key in sorted({*ace} - known)]
    reasons += [f"unknown action {_clean(key)}" for key in sorted({*actions} - {"forwarding", "logging"})]
    return Ace(
        acl=label[0],
        name=label[1],
        policy=side,
        family=family,
        match=match,
        forwarding=Forwarding(forwarding),
        unsupported=tuple(reasons),
    )


def _either(value: Mapping[str, object], names: tuple[str, str], notes: list[str]) -> object:
    """Return the value of the RFC's name for a node, or else of a draft's; of two, who could say which is meant?"""
    ours, draft = names
    if ours in value and draft in value:
        raise BadMud(f"{ours} and {draft} are one node of two names", where=ours)
    if ours not in value and draft in value:
        note = f"written as in a draft of the RFC: {draft}"
        if note not in notes:
            notes.append(note)
        return value[draft]
    return value.get(ours)


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise BadMud(f"{where}: there is no object here", where=where)
    return value


def _array(value: object, where: str, limit: int) -> Sequence[object]:
    if not isinstance(value, list):
        raise BadMud(f"{where}: there is no list here", where=where)
    if len(value) > limit:
        raise BadMud(f"{where}: more than {limit} entries", where=where)
    return value


def _text(value: object, where: str) -> str:
    """Return a text that can be printed and put into a comment: no control characters."""
    if not isinstance(value, str) or len(value) > MAX_TEXT or not value.isprintable():
        raise BadMud(f"{where}: {_show(value)} is no printable text of up to {MAX_TEXT} characters", where=where)
    return value


def _name(value: object, where: str) -> str:
    name = _text(value, f"{where}/name")
    if not 1 <= len(name) <= MAX_NAME:
        raise BadMud(f"{where}: a name has 1 to {MAX_NAME} characters", where=where)
    return name


def _url(value: object, where: str) -> str:
    """RFC 8520 §6 asks for https."""
    url = _text(value, where)
    if re.match(r"https://[^\s/?#]+", url) is None:
        raise BadMud(f"{where}: {_show(value)} does not begin with https:// and a host", where=where)
    return url


def _time(value: object) -> datetime.datetime:
    text = _text(value, "last-update")
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise BadMud(f"last-update: {text!r} is no date and time of RFC 3339", where="last-update") from error
    if time.tzinfo is None:
        raise BadMud(f"last-update: {text!r} says no time zone", where="last-update")
    return time


def _whole(value: object, where: str, bounds: tuple[int, int]) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not bounds[0] <= value <= bounds[1]:
        raise BadMud(f"{where}: {_show(value)} is not a number from {bounds[0]} to {bounds[1]}", where=where)
    return value


def _boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise BadMud(f"{where}: {_show(value)} is neither true nor false", where=where)
    return value


def _show(value: object) -> str:
    return "nothing" if value is None else repr(value)[:60]


def _clean(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:60]
