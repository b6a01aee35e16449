"""The vault for asyncio: each operation runs in a thread, so that the loop never waits for storage or ciphers.

async with await AsyncVault.open(folder, unlocker) as vault:
    await vault.write("patients/17", record)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from tidegate.vault.machine import MachineRules
from tidegate.vault.records import Records
from tidegate.vault.store import ItemInfo, Vault
from tidegate.vault.unlockers import Unlocker

_PIECE_BYTES = 1 << 19


class AsyncVault:
    """A ``Vault`` whose operations are awaited; they promise and raise what those of ``Vault`` do.

    A task that is cancelled while one runs leaves it running to its end: the item is wholly old or wholly new.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    @classmethod
    async def open(
        cls, folder: Path | str, unlock: Unlocker, *, wait_s: float = 2.0, machine: MachineRules | None = None
    ) -> Self:
        """Open as ``Vault.open`` does."""
        return cls(await asyncio.to_thread(Vault.open, folder, unlock, wait_s=wait_s, machine=machine))

    @property
    def blocking(self) -> Vault:
        """Return the vault itself, for what is not here."""
        return self._vault

    async def read(self, name: str) -> bytes:
        """See ``Vault.read``."""
        return await asyncio.to_thread(self._vault.read, name)

    async def read_range(self, name: str, offset: int, count: int) -> bytes:
        """See ``Vault.read_range``."""
        return await asyncio.to_thread(self._vault.read_range, name, offset, count)

    async def iter_content(self, name: str) -> AsyncIterator[bytes]:
        """Yield the item's content in pieces of half a MiB, each authenticated."""
        with await asyncio.to_thread(self._vault.open_item, name) as reader:
            for offset in range(0, reader.header.length_bytes, _PIECE_BYTES):
                yield await asyncio.to_thread(reader.read_range, offset, _PIECE_BYTES)

    async def write(self, name: str, data: bytes | bytearray | memoryview) -> ItemInfo:
        """See ``Vault.write``."""
        return await asyncio.to_thread(self._vault.write, name, data)

    async def write_from(self, name: str, stream: BinaryIO) -> ItemInfo:
        """See ``Vault.write_from``; the stream is read in a thread."""
        return await asyncio.to_thread(self._vault.write_from, name, stream)

    async def delete(self, name: str) -> None:
        """See ``Vault.delete``."""
        await asyncio.to_thread(self._vault.delete, name)

    async def list(self, prefix: str = "") -> tuple[ItemInfo, ...]:
        """See ``Vault.list``."""
        return await asyncio.to_thread(self._vault.list, prefix)

    async def stat(self, name: str) -> ItemInfo:
        """See ``Vault.stat``."""
        return await asyncio.to_thread(self._vault.stat, name)

    async def get_record(self, table: str, key: str | bytes) -> bytes | None:
        """Return a record, or None."""
        return await asyncio.to_thread(Records(self._vault, table).get, key)

    async def put_records(self, table: str, changes: dict[str | bytes, bytes | None]) -> None:
        """Put records, and delete those whose value is None, all in one transaction."""
        await asyncio.to_thread(_put_records, Records(self._vault, table), changes)

    async def close(self) -> None:
        """See ``Vault.close``."""
        await asyncio.to_thread(self._vault.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _put_records(records: Records, changes: dict[str | bytes, bytes | None]) -> None:
    with records.transaction() as change:
        for key, value in changes.items():
            if value is not None:
                change[key] = value
            elif change.get(key) is not None:
                del change[key]
