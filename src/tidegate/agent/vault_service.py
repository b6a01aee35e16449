"""The operations of the vault's process: each is granted first, then done.

Touches: the open vault that it is given. Answers hold content; no error and no report of a refusal does.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator

import msgspec

from tidegate.agent.vault_errors import VaultRecordUnknown, VaultRequestMalformed
from tidegate.agent.vault_grants import Grants, Scope
from tidegate.agent.vault_requests import (
    ChangeRecords,
    DeleteItem,
    DeleteRecord,
    GetRecord,
    ItemRequest,
    ListItems,
    ListRecords,
    PutRecord,
    ReadItem,
    RecordRequest,
    Request,
    StatItem,
    WriteItem,
)
from tidegate.vault.errors import ItemUnknown
from tidegate.vault.files import erase_buffer
from tidegate.vault.format import Expected
from tidegate.vault.listing import ITEMS, decode_item, item_key, table_prefix
from tidegate.vault.records import Records
from tidegate.vault.store import ItemInfo, Vault


class VaultService:
    """Answers requests of users; one at a time."""

    def __init__(self, vault: Vault, grants: Grants) -> None:
        self._vault, self._grants = vault, grants

    def answer(self, request: Request, user: int) -> bytes:
        """Return the answer's line; raise ``agent.vault.denied``, what the vault raises, ``…record-unknown``."""
        if isinstance(request, ReadItem | WriteItem | DeleteItem | StatItem | ListItems):
            return self._answer_item(request, user)
        self._grants.require_table(user, request.table, write=not isinstance(request, GetRecord | ListRecords))
        try:
            return msgspec.json.encode(self._answer_record(request))
        except KeyError as error:
            raise VaultRecordUnknown("the table has no such record") from error

    # -- items --------------------------------------------------------------------------------------------------------

    def _answer_item(self, request: ItemRequest, user: int) -> bytes:
        if isinstance(request, ListItems):
            return msgspec.json.encode(self._list(request, user))
        self._grants.require_item(user, request.name, write=isinstance(request, WriteItem | DeleteItem))
        if isinstance(request, ReadItem):
            return self._read(request)
        if isinstance(request, WriteItem):
            self._write(request)
        elif isinstance(request, DeleteItem):
            self._vault.delete(request.name)
            return msgspec.json.encode({"deleted": True})
        return msgspec.json.encode(_describe(self._vault.stat(request.name)))

    def _read(self, request: ReadItem) -> bytes:
        with self._vault.open_item(request.name) as reader:
            header = reader.header
            buffer = memoryview(bytearray(max(0, min(request.count, header.length_bytes - request.offset))))
            try:
                reader.read_into(request.offset, buffer)
                version = f"{header.generation}.{header.sequence}"
                return msgspec.json.encode({"content": buffer, "size": header.length_bytes, "version": version})
            finally:
                erase_buffer(buffer)

    def _write(self, request: WriteItem) -> None:
        if not request.append and request.offset is None:
            self._vault.write(request.name, request.content)
            return
        with self._vault.open_file(request.name, "a" if request.append else "r+") as file:
            if request.offset is not None:
                size = file.seek(0, io.SEEK_END)
                if request.offset > size:  # a gap would be filled: one request could fill the storage
                    raise VaultRequestMalformed(f"`offset` is behind the end of the item ({size} bytes)")
                file.seek(request.offset)
            file.write(request.content)

    def _list(self, request: ListItems, user: int) -> dict[str, object]:
        scopes = [scope for scope in self._grants.scopes(user, request.prefix) if not scope.is_before(request.after)]
        found = (info for scope in scopes for info in self._look(scope, request.after))
        page = [_describe(info) for info in itertools.islice(found, request.limit + 1)]
        more = len(page) > request.limit
        page = page[: request.limit]
        return {"items": page, "next": page[-1]["name"] if more else None}

    def _look(self, scope: Scope, after: str) -> Iterator[ItemInfo]:
        """Yield the items of a scope that are behind ``after``; what is before it is not read."""
        if not scope.is_name:
            start = item_key(scope.prefix)
            for key, value in self._vault.table_scan(start, after=_behind(start, item_key(after))):
                yield _info(key[len(ITEMS) :].decode(), decode_item(value))
        elif scope.prefix > after:
            with contextlib.suppress(ItemUnknown):
                yield self._vault.stat(scope.prefix)

    # -- records ------------------------------------------------------------------------------------------------------

    def _answer_record(self, request: RecordRequest) -> dict[str, object]:
        records = self._vault.records(request.table)
        if isinstance(request, GetRecord):
            return {"value": records[request.key]}
        if isinstance(request, PutRecord):
            records[request.key] = request.value
            return {"put": True}
        if isinstance(request, DeleteRecord):
            del records[request.key]
            return {"deleted": True}
        if isinstance(request, ChangeRecords):
            _change(records, request)
            return {"changed": len(request.changes)}
        return self._list_records(request)

    def _list_records(self, request: ListRecords) -> dict[str, object]:
        table = table_prefix(request.table)
        start = table + request.prefix.encode()
        scan = self._vault.table_scan(start, after=_behind(start, table + request.after))
        page = [(key[len(table) :], len(value)) for key, value in itertools.islice(scan, request.limit + 1)]
        more = len(page) > request.limit
        page = page[: request.limit]
        return {"records": [_describe_key(key, size) for key, size in page], "next": page[-1][0] if more else None}


def _change(records: Records, request: ChangeRecords) -> None:
    with records.transaction() as changes:
        for change in request.changes:
            if change.value is None:
                del changes[change.key]
            else:
                changes[change.key] = change.value


def _behind(start: bytes, after: bytes) -> bytes | None:
    """Return the key behind which a scan of what begins with ``start`` goes on, or None for all of it."""
    return after if after >= start else None


def _describe_key(key: bytes, size: int) -> dict[str, object]:
    """Return what is told of a record; a key that a library wrote as bytes may be no text."""
    try:
        return {"key": key.decode(), "size": size}
    except UnicodeDecodeError:
        return {"key64": key, "size": size}


def _describe(info: ItemInfo) -> dict[str, object]:
    return {
        "name": info.name,
        "size": info.size_bytes,
        "generation": info.generation,
        "modified_s": info.modified_s,
    }


def _info(name: str, item: Expected) -> ItemInfo:
    return ItemInfo(name=name, size_bytes=item.length_bytes, generation=item.generation, modified_s=item.modified_s)
