"""An SQLite database of an application's, encrypted by SQLCipher under a key that the vault keeps.

Touches: the database's files, which SQLCipher writes. Needs the extra ``[sqlite]``. What SQLCipher protects and what it
does not (an older copy of the database opens) is in docs/vault.md, "Databases".
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.base.durable import translate_os_errors
from tidegate.vault.errors import DatabaseLibraryMissing, DatabaseRefused

if TYPE_CHECKING:
    from tidegate.vault.store import Vault

KEY_BYTES = 32


def open_database(vault: Vault, path: Path | str, *, key_name: str | None = None, create: bool = True) -> Any:
    """Return a DB-API connection to the database at ``path``, encrypted under the vault's key ``key_name``.

    ``key_name`` is the file's name if it is not given; the key is made at the first use if ``create`` is on. The
    connection stays open when the vault is closed: SQLCipher has the key then. It is in WAL mode, synchronous FULL, and
    wipes memory. Raises ``vault.database.refused`` if the file was encrypted under another key or is none,
    ``vault.database.library``, ``vault.key.unknown``.
    """
    try:
        import sqlcipher3  # type: ignore[import-untyped]  # only who has a database pays for it
    except ImportError as error:
        raise DatabaseLibraryMissing("the package sqlcipher3 is missing") from error

    path = Path(path)
    with translate_os_errors(path):
        path.touch(mode=0o600, exist_ok=True)  # SQLite would make it readable for others
    connection = sqlcipher3.connect(str(path))
    try:
        name = key_name or f"database/{path.name}"
        with vault.application_key(name, size_bytes=KEY_BYTES, create=create) as key:
            connection.execute("PRAGMA cipher_log_level = NONE")  # it would write to standard error
            # SQLCipher takes a raw key as text alone; Python keeps that text until it reuses the memory
            connection.execute(f"PRAGMA key = \"x'{bytes(key.view()).hex()}'\"")
        connection.execute("PRAGMA cipher_memory_security = ON")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlcipher3.DatabaseError as error:
        connection.close()
        raise DatabaseRefused(f"{path} does not open with the vault's key", path=str(path)) from error
    except BaseException:
        connection.close()
        raise
    return connection
