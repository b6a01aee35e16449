"""Who may do what with which key: the key process's file, and the decision.

Default deny. Pure: names of users and groups are resolved by the callables it is given.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from tidegate.keys.errors import GrantRefused, KeydConfigInvalid, KeyNameInvalid
from tidegate.keys.keyd_wire import NAMELESS, Operation, Request
from tidegate.keys.store import KeyInfo, check_key_name

MAX_CONFIG_BYTES = 65_536
_PUBLIC_COMES_WITH = frozenset({Operation.SIGN, Operation.QUOTE, Operation.GENERATE, Operation.IMPORT})
_FIELD = re.compile(r"unknown field `([^`]*)`")
_PLACE = re.compile(r"at `\$([^`]*)`")

_Count = Annotated[int, msgspec.Meta(ge=1, le=4096)]
_Seconds = Annotated[int, msgspec.Meta(ge=1, le=86_400)]


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What clients may cost."""

    clients: _Count = 64
    clients_per_user: _Count = 32
    requests_per_second: _Count = 500  # of one user; beyond it he waits
    idle_s: _Seconds = 300
    message_s: _Seconds = 10  # from the first byte of a message to its last
    provider_s: _Seconds = 120  # a TPM makes an RSA key in half a minute


class KeydSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the process is: its socket, its store, whom it runs as."""

    socket: str
    store: str
    user: str | None = None
    group: str | None = None
    mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)] = 0o660


class GrantSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A user or a group, keys (``name`` or ``prefix*``), operations."""

    keys: list[str]
    operations: list[Operation]
    user: str | int | None = None
    group: str | int | None = None


class KeydFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    keyd: KeydSection
    limits: Limits = Limits()
    grant: list[GrantSection] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who is at the other end, as the kernel says."""

    pid: int
    uid: int
    gids: frozenset[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One line of permission; exactly one of ``uid`` and ``gid`` is set."""

    uid: int | None
    gid: int | None
    keys: tuple[str, ...]
    operations: frozenset[Operation]

    def is_for(self, peer: Peer) -> bool:
        return self.uid == peer.uid if self.uid is not None else self.gid in peer.gids

    def covers(self, name: str) -> bool:
        """Return whether ``name`` is one of the keys (or counters) meant."""
        return any(name == key or (key.endswith("*") and name.startswith(key[:-1])) for key in self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grants:
    """Every permission there is."""

    grants: tuple[Grant, ...]

    def require(self, peer: Peer, request: Request) -> None:
        """Return if the peer may do this, else raise ``keys.grant.refused``, whether there is such a key or not."""
        for grant in self.of(peer):
            if request.operation is Operation.CAPABILITIES or (
                self._allows(grant, request.operation) and (request.operation in NAMELESS or grant.covers(request.name))
            ):
                return
        raise GrantRefused(
            f"user {peer.uid} may not {request.operation.value} {request.name}".rstrip(),
            uid=peer.uid,
            operation=request.operation.value,
            key=request.name or None,
        )

    def of(self, peer: Peer) -> list[Grant]:
        """Return what concerns the peer."""
        return [grant for grant in self.grants if grant.is_for(peer)]

    def visible(self, peer: Peer, infos: Iterable[KeyInfo]) -> list[KeyInfo]:
        """Return the keys that the peer may do anything with."""
        grants = self.of(peer)
        return [info for info in infos if any(grant.covers(info.name) for grant in grants)]

    @staticmethod
    def _allows(grant: Grant, operation: Operation) -> bool:
        return operation in grant.operations or (
            operation is Operation.PUBLIC and not _PUBLIC_COMES_WITH.isdisjoint(grant.operations)
        )


def parse_config(
    raw: bytes, *, name: str, uid_of: Callable[[str], int], gid_of: Callable[[str], int]
) -> tuple[KeydFile, Grants]:
    """Return the file and its grants, or raise ``keys.keyd.config`` naming the line; nothing unknown is skipped.

    ``uid_of`` and ``gid_of`` raise ``KeyError`` for users and groups that there are not.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise KeydConfigInvalid(f"{name} has more than {MAX_CONFIG_BYTES} bytes")
    try:
        text = raw.decode()
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise KeydConfigInvalid(f"{name}: {str(error)[:300]}") from error
    try:
        config = msgspec.convert(document, KeydFile, strict=True)
    except msgspec.ValidationError as error:
        line = _line_of(text, str(error))
        raise KeydConfigInvalid(f"{name}: line {line}: {str(error)[:300]}", line=line) from error
    grants = []
    for index, section in enumerate(config.grant):
        try:
            grants.append(_grant(section, uid_of, gid_of))
        except (KeyError, ValueError, KeyNameInvalid) as error:
            line = _line_of(text, f"at `$.grant[{index}]`")
            raise KeydConfigInvalid(f"{name}: line {line}: {str(error)[:300]}", line=line) from error
    return config, Grants(grants=tuple(grants))


def _grant(section: GrantSection, uid_of: Callable[[str], int], gid_of: Callable[[str], int]) -> Grant:
    if (section.user is None) == (section.group is None):
        raise ValueError("a grant names a user or a group")
    for key in section.keys:
        if key != "*":
            check_key_name(key.removesuffix("*"))
    uid = section.user if section.user is None or isinstance(section.user, int) else uid_of(section.user)
    gid = section.group if section.group is None or isinstance(section.group, int) else gid_of(section.group)
    return Grant(uid=uid, gid=gid, keys=tuple(section.keys), operations=frozenset(section.operations))


def _line_of(text: str, message: str) -> int:
    """Return the line that a message of the validator is about; only for people, so near is good enough."""
    field, place = _FIELD.search(message), _PLACE.search(message)
    path = place[1] if place else ""
    table, _, index = path.removeprefix(".").partition("[")
    table, wanted = table.split(".")[0], int(index.partition("]")[0] or 0) if index else 0
    key = field[1] if field else path.rpartition(".")[2].partition("[")[0]
    current, seen, header = "", -1, 1
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if stripped.startswith("["):
            current = stripped.strip("[] ")
            seen += current == table
            if current == table and seen == wanted:
                header = number
            if current == key and not table:
                return number
        elif current == table and (not index or seen == wanted) and re.match(rf'"?{re.escape(key)}"?\s*=', stripped):
            return number
    return header
