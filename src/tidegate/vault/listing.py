"""What the table holds: the keys of its four name spaces, and the value that stands for an item's file. Pure."""

from __future__ import annotations

import struct

from tidegate.vault.errors import ManifestAltered, RecordNameInvalid
from tidegate.vault.format import Expected, Header

ITEMS = b"i"  # + the item's name
RECORDS = b"r"  # + the table's name, a zero, the record's key
KEYS = b"k"  # + the application key's name
MAX_TABLE_NAME_BYTES = 255
MAX_KEY_BYTES = 1024
_ITEM = struct.Struct(">16sQQ16sQQIQ")


def item_key(name: str) -> bytes:
    """Return where the item called ``name`` stands."""
    return ITEMS + name.encode()


def application_key(name: str) -> bytes:
    """Return where the application key called ``name`` stands."""
    return KEYS + name.encode()


def table_prefix(table: str) -> bytes:
    """Return what the keys of a record table begin with; raise ``vault.record.name``."""
    raw = table.encode(errors="surrogatepass")
    if not 1 <= len(raw) <= MAX_TABLE_NAME_BYTES or not table.isprintable():
        raise RecordNameInvalid(f"{table[:40]!r} is no name for a table")
    return RECORDS + raw + b"\0"


def file_name(item: Expected | Header) -> str:
    """Return what the item's file is called; it tells nothing but the generation."""
    return f"{item.file_id.hex()}.{item.generation}"


def encode_item(item: Expected) -> bytes:
    """Return the 76 bytes that stand for an item's file."""
    return _ITEM.pack(
        item.file_id,
        item.generation,
        item.sequence,
        item.tag,
        item.length_bytes,
        item.stored_bytes,
        item.epoch,
        item.modified_s,
    )


def decode_item(raw: bytes) -> Expected:
    """Return what the bytes say; they were authenticated before. Raises ``vault.manifest.altered``."""
    if len(raw) != _ITEM.size:
        raise ManifestAltered("an item in the vault's table is malformed")
    file_id, generation, sequence, tag, length, stored, epoch, modified = _ITEM.unpack(raw)
    return Expected(
        file_id=file_id,
        generation=generation,
        sequence=sequence,
        tag=tag,
        length_bytes=length,
        stored_bytes=stored,
        epoch=epoch,
        modified_s=modified,
    )
