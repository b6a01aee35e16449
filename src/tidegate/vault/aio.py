"""The vault for asyncio: each operation runs in a thread, so that the loop never waits for storage or ciphers.

async with await AsyncVault.open(folder, unlocker) as vault:
    await vault.write("patients/17", record)
    async with await vault.open_file("log", "a") as file:
        await file.write(line)
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, ParamSpec, Self, TypeVar

from tidegate.vault.fileobject import EditingFile, ReadingFile, WritingFile
from tidegate.vault.machine import MachineRules
from tidegate.vault.records import Records
from tidegate.vault.store import ItemInfo, Vault
from tidegate.vault.unlockers import Unlocker

P = ParamSpec("P")
T = TypeVar("T")
_PIECE_BYTES = 1 << 19


class AsyncFile:
    """An open item whose operations are awaited, one after the other; they promise what the file object's own do.

    In an ``async with`` that ends by an exception nothing that waits counts. A task that is cancelled while an
    operation runs leaves it running to its end; the next one waits for that.
    """

    def __init__(self, file: ReadingFile | WritingFile | EditingFile) -> None:
        self._file = file
        self._turn = threading.Lock()

    @property
    def name(self) -> str:
        """Return the item's name."""
        return self._file.name

    async def read(self, count: int = -1) -> bytes:
        """Return up to ``count`` bytes from the position on, by default all; none at the end."""
        return await self._run(self._file.read, count) or b""

    async def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write all of ``data`` at the position, of a file opened by ``a`` at the end; return its size."""
        return await self._run(self._file.write, data) or 0

    async def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move the position and return it."""
        return await self._run(self._file.seek, offset, whence)

    async def tell(self) -> int:
        """Return the position."""
        return await self._run(self._file.tell)

    async def truncate(self, size: int | None = None) -> int:
        """Cut the item, or fill it with zeros, to ``size`` bytes, by default to the position."""
        return await self._run(self._file.truncate, size)

    async def flush(self) -> None:
        """Make what was written count, in a file opened by ``r+`` or ``a``."""
        await self._run(self._file.flush)

    async def close(self) -> None:
        """Make what was written count, and let the item go; harmless when repeated."""
        await self._run(self._file.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._run(self._file.__exit__, kind, error, trace)

    async def _run(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        def in_turn() -> T:
            with self._turn:
                return call(*arguments, **named)

        return await asyncio.to_thread(in_turn)


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

    async def open_file(self, name: str, mode: Literal["r", "w", "r+", "a"] = "r") -> AsyncFile:
        """See ``Vault.open_file``."""
        return AsyncFile(await asyncio.to_thread(self._vault.open_file, name, mode))

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
