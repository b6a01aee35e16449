"""What may be asked of the vault's process: one JSON object a line, its types and limits. Pure."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct

from tidegate.agent.vault_errors import VaultRequestMalformed

MAX_PIECE_BYTES = 196_608  # 256 KiB in base64: what a request or an answer carries of an item
MAX_LINE_BYTES = 4 * MAX_PIECE_BYTES // 3 + 65_536  # the names of a transaction's records besides
MAX_PAGE = 256  # items or records of one page of a list
MAX_CHANGES = 256  # of a transaction: their values fill a request first

# Lengths are of characters; the vault refuses what is too long in bytes.
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Prefix = Annotated[str, Meta(max_length=1024)]
Content = Annotated[bytes, Meta(max_length=MAX_PIECE_BYTES)]
Offset = Annotated[int, Meta(ge=0, le=1 << 40)]


class _Request(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="op"):
    """What all have in common."""


class ReadItem(_Request, frozen=True, tag="vault-read"):
    """A piece of an item."""

    name: Name
    offset: Offset = 0
    count: Annotated[int, Meta(ge=1, le=MAX_PIECE_BYTES)] = MAX_PIECE_BYTES


class WriteItem(_Request, frozen=True, tag="vault-write"):
    """A new content; with ``append`` or ``offset`` a change in place."""

    name: Name
    content: Content
    append: bool = False
    offset: Offset | None = None


class DeleteItem(_Request, frozen=True, tag="vault-delete"):
    """An item to erase."""

    name: Name


class StatItem(_Request, frozen=True, tag="vault-stat"):
    """What is known of an item."""

    name: Name


class ListItems(_Request, frozen=True, tag="vault-list"):
    """A page of names: those behind ``after``."""

    prefix: Prefix = ""
    after: Prefix = ""
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = MAX_PAGE


class GetRecord(_Request, frozen=True, tag="record-get"):
    """A record."""

    table: Name
    key: Name


class PutRecord(_Request, frozen=True, tag="record-put"):
    """A record's new value."""

    table: Name
    key: Name
    value: Content


class DeleteRecord(_Request, frozen=True, tag="record-delete"):
    """A record to remove."""

    table: Name
    key: Name


class ListRecords(_Request, frozen=True, tag="record-list"):
    """A page of keys; ``after`` is what the page before gave as ``next``."""

    table: Name
    prefix: Prefix = ""
    after: Annotated[bytes, Meta(max_length=1024)] = b""
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = MAX_PAGE


class Change(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One change of a transaction: a value, or ``delete``."""

    key: Name
    value: Content | None = None
    delete: bool = False


class ChangeRecords(_Request, frozen=True, tag="record-transaction"):
    """Changes of one table that count together or not at all."""

    table: Name
    changes: Annotated[tuple[Change, ...], Meta(min_length=1, max_length=MAX_CHANGES)]


ItemRequest: TypeAlias = ReadItem | WriteItem | DeleteItem | StatItem | ListItems
RecordRequest: TypeAlias = GetRecord | PutRecord | DeleteRecord | ListRecords | ChangeRecords
Request: TypeAlias = ItemRequest | RecordRequest
_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)


def parse_request(line: bytes) -> Request:
    """Return what a line asks for; raise ``agent.vault.malformed``."""
    try:
        request = _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VaultRequestMalformed(f"the request is malformed: {str(error)[:200]}") from error
    if isinstance(request, WriteItem) and request.append and request.offset is not None:
        raise VaultRequestMalformed("`append` or `offset`, not both")
    if isinstance(request, ChangeRecords) and any((one.value is None) != one.delete for one in request.changes):
        raise VaultRequestMalformed("a change has a `value`, or `delete` as true")
    return request


def name_of(request: Request) -> str:
    """Return the operation's name."""
    return str(type(request).__struct_config__.tag)
