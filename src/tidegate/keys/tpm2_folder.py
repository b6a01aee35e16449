"""The folder of a TPM store: which files a key has, and in which order they appear and go.

Touches: the folder. A key is there when its record is: the TSS2 file is written before it and removed before it, so a
power cut leaves a whole key, or none and a file that the next one of this name replaces. ``NAME.making`` says which NV
index a revocable key is being made with, so that the next one of this name frees it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tidegate.base.durable import (
    erase_file,
    erase_left,
    read_file_bounded,
    require_private,
    translate_os_errors,
    write_file_atomic,
    write_file_new,
)
from tidegate.base.errors import StorageMissing
from tidegate.base.lock import FolderLock
from tidegate.keys.errors import KeyExists, KeyMissing, PcrStatementRefused, ProviderFailed
from tidegate.keys.pcr_policy import MAX_STATEMENT_BYTES, MAX_STATEMENTS
from tidegate.keys.store import check_key_name
from tidegate.keys.tpm2_files import MAX_PEM_BYTES, WrappedKey, encode_pem, parse_pem
from tidegate.keys.tpm2_nvpolicy import Lifeline
from tidegate.keys.tpm2_records import (
    MAX_RECORD_BYTES,
    CounterRecord,
    KeyRecord,
    StoreRecord,
    encode_counter,
    encode_lifeline,
    encode_record,
    encode_store,
    parse_counter,
    parse_lifeline,
    parse_record,
    parse_store,
)

_LOCK_WAIT_S = 30.0  # a slow TPM takes seconds for an RSA key
_MAX_STORE_BYTES = 512
_STATEMENTS = "statements"


class Tpm2Folder:
    """A TPM store's folder; every use checks that nobody else can reach into it (``base.permissions.unsafe``)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> Tpm2Folder:
        """Make the folder; raise ``keys.key.exists`` if it is a store already."""
        with translate_os_errors(path):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(path)
        if (path / "store.cbor").exists():
            raise KeyExists(f"{path} holds a key store already", path=str(path))
        return cls(path)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other writers out of the folder."""
        require_private(self.path)
        held = FolderLock(self.path, wait_s=_LOCK_WAIT_S, busy=ProviderFailed)
        try:
            yield
        finally:
            held.release()

    def write_store(self, record: StoreRecord) -> None:
        """Make the folder a store."""
        write_file_atomic(self.path / "store.cbor", encode_store(record), mode=0o600)

    def store(self) -> StoreRecord:
        """Return which storage key the folder's keys hang under."""
        return parse_store(self._read(self.path / "store.cbor", _MAX_STORE_BYTES))

    def names(self) -> list[str]:
        """Return the names of all keys."""
        require_private(self.path)
        return sorted(path.name.removesuffix(".key") for path in self.path.glob("*.key"))

    def has(self, name: str) -> bool:
        """Return whether there is a key of this name."""
        return self._path(name, ".key").exists()

    def key(self, name: str) -> tuple[KeyRecord, WrappedKey]:
        """Return a key's two files; raise ``keys.key.missing``, ``keys.store.malformed``."""
        record = self.record(name)
        try:
            pem = self._read(self._path(name, ".pem"), MAX_PEM_BYTES)
        except StorageMissing as error:
            raise KeyMissing(f"no key {name!r} in {self.path}", key=name) from error
        return record, parse_pem(pem)

    def record(self, name: str) -> KeyRecord:
        """Return a key's record alone; raise ``keys.key.missing``, ``keys.store.malformed``."""
        try:
            return parse_record(self._read(self._path(name, ".key"), MAX_RECORD_BYTES), name)
        except StorageMissing as error:
            raise KeyMissing(f"no key {name!r} in {self.path}", key=name) from error

    def making(self, name: str) -> Lifeline | None:
        """Return what an interrupted making of a revocable key left in the TPM."""
        try:
            return parse_lifeline(self._read(self._path(name, ".making"), _MAX_STORE_BYTES))
        except StorageMissing:
            return None

    def begin_making(self, name: str, line: Lifeline) -> None:
        """Remember, before there is anything in the TPM, where a revocable key's counter will be."""
        write_file_atomic(self._path(name, ".making"), encode_lifeline(line), mode=0o600)

    def end_making(self, name: str) -> None:
        """Forget it: the key's record says it now, or the TPM has nothing."""
        with contextlib.suppress(StorageMissing):
            erase_file(self._path(name, ".making"))

    def add(self, record: KeyRecord, key: WrappedKey) -> None:
        """Keep a new key; raise ``keys.key.exists``."""
        write_file_atomic(self._path(record.name, ".pem"), encode_pem(key), mode=0o600)
        try:
            write_file_new(self._path(record.name, ".key"), encode_record(record), mode=0o600)
        except FileExistsError as error:
            raise KeyExists(f"there is a key {record.name!r} already", key=record.name) from error

    def replace(self, record: KeyRecord) -> None:
        """Keep a key's changed record."""
        write_file_atomic(self._path(record.name, ".key"), encode_record(record), mode=0o600)

    def remove(self, name: str) -> None:
        """Overwrite and remove a key's files, the record last."""
        erase_left(self.path)
        for suffix in (".pem", ".key"):
            path = self._path(name, suffix)
            with contextlib.suppress(StorageMissing):
                require_private(path)
                erase_file(path)

    def counter(self, name: str) -> CounterRecord | None:
        """Return what the folder remembers of a counter."""
        try:
            return parse_counter(self._read(self._path(name, ".counter"), _MAX_STORE_BYTES))
        except StorageMissing:
            return None

    def write_counter(self, name: str, record: CounterRecord) -> None:
        """Remember a counter."""
        write_file_atomic(self._path(name, ".counter"), encode_counter(record), mode=0o600)

    def statements(self) -> list[tuple[str, bytes]]:
        """Return name and content of each file in the folder ``statements``, by name; nothing where there is none.

        It may be a link, to where the system that was booted brings its own. Statements are public and signed, so who
        may write there is not checked: he can take statements away and make none. Raises ``keys.pcr.statement`` if
        there are more than 256.
        """
        folder = self.path / _STATEMENTS
        with translate_os_errors(folder):
            if not folder.exists():
                return []
            found = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
        if len(found) > MAX_STATEMENTS:
            raise PcrStatementRefused(f"{folder} holds {len(found)} files, over {MAX_STATEMENTS}", check="number")
        return [(path.name, _beginning(path)) for path in found]

    def _path(self, name: str, suffix: str) -> Path:
        return self.path / (check_key_name(name) + suffix)

    def _read(self, path: Path, limit_bytes: int) -> bytes:
        require_private(self.path)
        require_private(path)
        return read_file_bounded(path, limit_bytes=limit_bytes)


def _beginning(path: Path) -> bytes:
    """Return a file, or of one that is too large to be a statement as much as shows it."""
    with translate_os_errors(path), path.open("rb") as stream:
        return stream.read(MAX_STATEMENT_BYTES + 1)
