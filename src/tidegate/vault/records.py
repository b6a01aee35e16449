"""Records: small things under keys, in tables, with transactions.

sessions = vault.records("sessions")
sessions["17"] = b"..."
with sessions.transaction() as change:
    change["17"] = b"new"
    del change["18"]
"""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tidegate.vault.errors import RecordNameInvalid, RecordTooLarge
from tidegate.vault.journal import MAX_VALUE_BYTES, Change
from tidegate.vault.listing import MAX_KEY_BYTES, table_prefix

if TYPE_CHECKING:
    from tidegate.vault.store import Vault


class Records:
    """A table of records. A key is text or bytes (1 to 1024), a value has at most 65,536 bytes.

    A change is durable when it returns. What a deleted record was is erased when the vault is closed.
    """

    def __init__(self, vault: Vault, table: str) -> None:
        self._vault = vault
        self._prefix = table_prefix(table)

    def get(self, key: str | bytes) -> bytes | None:
        """Return the value, or None."""
        return self._vault.table_get(self._full(key))

    def __getitem__(self, key: str | bytes) -> bytes:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: str | bytes, value: bytes) -> None:
        self._vault.table_commit((self._put(key, value),))

    def __delitem__(self, key: str | bytes) -> None:
        if self.get(key) is None:
            raise KeyError(key)
        self._vault.table_commit((Change(self._full(key), b"", deletes=True),))

    def __contains__(self, key: str | bytes) -> bool:
        return self.get(key) is not None

    def __iter__(self) -> Iterator[bytes]:
        """Yield the keys in order."""
        return (key for key, _ in self.items())

    def items(self, prefix: str | bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield keys that begin with ``prefix``, and their values, in order; changes meanwhile may be seen or not."""
        raw = prefix.encode() if isinstance(prefix, str) else prefix
        for key, value in self._vault.table_scan(self._prefix + raw):
            yield key[len(self._prefix) :], value

    def transaction(self) -> RecordTransaction:
        """Return a group of changes that count all together at the end of a ``with``, or not at all if it raises."""
        return RecordTransaction(self)

    def _full(self, key: str | bytes) -> bytes:
        raw = key.encode() if isinstance(key, str) else bytes(key)
        if not 1 <= len(raw) <= MAX_KEY_BYTES:
            raise RecordNameInvalid(f"a key of {len(raw)} bytes", size=len(raw))
        return self._prefix + raw

    def _put(self, key: str | bytes, value: bytes) -> Change:
        if len(value) > MAX_VALUE_BYTES:
            raise RecordTooLarge(f"a record of {len(value)} bytes", size=len(value))
        return Change(self._full(key), bytes(value))


class RecordTransaction:
    """Changes of one table that wait for the end of their ``with``; reading sees them."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._changes: dict[bytes, Change] = {}

    def __setitem__(self, key: str | bytes, value: bytes) -> None:
        change = self._records._put(key, value)  # the same thing's other half
        self._changes[change.key] = change

    def __delitem__(self, key: str | bytes) -> None:
        if self.get(key) is None:
            raise KeyError(key)
        full = self._records._full(key)
        self._changes[full] = Change(full, b"", deletes=True)

    def get(self, key: str | bytes) -> bytes | None:
        """Return the value as it will be, or None."""
        change = self._changes.get(self._records._full(key))
        if change is None:
            return self._records.get(key)
        return None if change.deletes else change.value

    def commit(self) -> None:
        """Make what waits count now, together; more may follow."""
        if self._changes:
            self._records._vault.table_commit(tuple(self._changes.values()))
            self._changes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.commit()
        self._changes.clear()
