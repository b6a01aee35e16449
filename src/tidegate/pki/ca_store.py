"""A CA's memory: every certificate before it is handed out, revocations, enrolment tokens, CRL numbers.

Touches: one SQLite file in a folder of mode 700; one writer at a time by a lock. A transaction is on the storage when
it returns (``synchronous=FULL``): what was answered is never forgotten, and what was forgotten was never answered.
Tables: docs/formats/ca-store.md.
"""

from __future__ import annotations

import contextlib
import enum
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tidegate.base.durable import require_private, sync_folder, translate_os_errors
from tidegate.base.errors import StorageFailed, StorageFull
from tidegate.pki.errors import (
    CaStoreBusy,
    CaStoreCorrupt,
    EntropyRepeated,
    RequestConflict,
    SerialUnknown,
    TokenExpired,
    TokenReplayed,
    TokenUnknown,
    TokenWrongDevice,
)

Result = TypeVar("Result")

DATABASE = "ca.sqlite"
VERSION = 1
_LOCK_WAIT_S = 5.0
_SCHEMA = """
CREATE TABLE certificates (
    serial BLOB PRIMARY KEY CHECK (length(serial) = 20),
    profile TEXT NOT NULL,
    subject TEXT NOT NULL,
    device TEXT NOT NULL,
    issued_s INTEGER NOT NULL,
    expires_s INTEGER NOT NULL,
    der BLOB NOT NULL,
    request_id BLOB UNIQUE,
    request_digest BLOB,
    revoked_s INTEGER,
    reason INTEGER
) WITHOUT ROWID;
CREATE INDEX certificates_device ON certificates (device);
CREATE INDEX certificates_revoked ON certificates (revoked_s) WHERE revoked_s IS NOT NULL;
CREATE TABLE tokens (
    digest BLOB PRIMARY KEY CHECK (length(digest) = 32),
    device TEXT NOT NULL,
    profile TEXT NOT NULL,
    issued_s INTEGER NOT NULL,
    expires_s INTEGER NOT NULL,
    used_s INTEGER,
    request_id BLOB
) WITHOUT ROWID;
CREATE TABLE crls (
    number INTEGER PRIMARY KEY,
    made_s INTEGER NOT NULL,
    base INTEGER,
    der BLOB NOT NULL
);
CREATE TABLE acts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    act TEXT NOT NULL,
    serial BLOB,
    crl INTEGER
);
"""


class Reason(enum.IntEnum):
    """Why a certificate was revoked (RFC 5280 §5.3.1); there is no hold: what is back is issued anew."""

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    CA_COMPROMISE = 2
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    PRIVILEGE_WITHDRAWN = 9

    @property
    def label(self) -> str:
        """Return the name used on the command line."""
        return self.name.lower().replace("_", "-")


class Act(enum.Enum):
    """What a CA did."""

    ISSUED = "issued"
    REVOKED = "revoked"
    LISTED = "listed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate as the store has it. ``device`` is its subject's serial number, "" for others."""

    serial: int
    profile: str
    subject: str
    device: str
    issued_s: int
    expires_s: int
    der: bytes
    request_id: bytes | None = None
    request_digest: bytes | None = None
    revoked_s: int | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """An enrolment token as the store has it: its digest, never itself."""

    digest: bytes
    device: str
    profile: str
    issued_s: int
    expires_s: int
    used_s: int | None = None
    request_id: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CrlRecord:
    """A CRL that was made; ``base`` is the number of the full one that a delta belongs to."""

    number: int
    made_s: int
    base: int | None
    der: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingAct:
    """An act that nobody was told of yet: about a certificate, or the making of a CRL."""

    number: int
    act: Act
    issued: Issued | None
    crl: CrlRecord | None


class CaStore:
    """The store in ``folder``, usable from every thread."""

    def __init__(self, folder: Path, *, create: bool = False, test_only_unsynced: bool = False) -> None:
        """Raise ``pki.ca-store.busy``, ``pki.ca-store.corrupt``, ``base.permissions.unsafe``, ``base.storage.*``.

        ``test_only_unsynced`` shows what durability costs: with it a power cut forgets certificates.
        """
        if create:
            with translate_os_errors(folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(folder)
        path = folder / DATABASE
        if not create:
            require_private(path)
        self._lock = threading.Lock()
        self._reported: list[int] = []
        self._database = self._open(path, create=create, synchronous="OFF" if test_only_unsynced else "FULL")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; harmless when repeated."""
        if self._reported:
            with contextlib.suppress(sqlite3.ProgrammingError, CaStoreBusy, StorageFailed), self._transaction():
                pass  # what was reported is struck out; if that fails it is reported once more
        with self._lock:
            self._database.close()

    def issue_once(
        self,
        request_id: bytes | None,
        request_digest: bytes,
        make: Callable[[], Issued],
        *,
        token: bytes | None = None,
        now_s: int = 0,
        device: str = "",
    ) -> tuple[Issued, bool]:
        """Return the certificate of a request, and whether it is new.

        All in one transaction: the same ``request_id`` with the same ``request_digest`` gives the certificate that is
        there, with another digest it is refused (``pki.request.conflict``); ``token`` (the digest of one) is redeemed
        for ``device``; ``make`` signs, and what it returns is recorded before it is returned. Raises ``pki.token.*``.
        """
        with self._transaction() as database:
            known = self._by_request(database, request_id) if request_id is not None else None
            if known is not None:
                if known.request_digest != request_digest:
                    raise RequestConflict("the request id stands for another request")
                return known, False
            if token is not None:
                self._redeem(database, token, device, now_s, request_id)
            made = make()
            self._insert(database, made, request_id, request_digest)
            self._note(database, Act.ISSUED, serial=made.serial)
            return made, True

    def revoke(self, serial: int, reason: Reason, now_s: int) -> tuple[Issued, bool]:
        """Mark a certificate as revoked; return it and whether it was not before. Raise ``pki.serial.unknown``."""
        with self._transaction() as database:
            found = self._by_serial(database, serial)
            if found is None:
                raise SerialUnknown(f"no certificate has serial {serial:x}", serial=f"{serial:x}")
            if found.revoked_s is not None:
                return found, False
            database.execute(
                "UPDATE certificates SET revoked_s = ?, reason = ? WHERE serial = ?",
                (now_s, int(reason), _serial(serial)),
            )
            self._note(database, Act.REVOKED, serial=serial)
            updated = self._by_serial(database, serial)
        return updated or found, True

    def find(self, serial: int) -> Issued | None:
        """Return the certificate with this serial number, None if it is not ours."""
        return self._read(lambda database: self._by_serial(database, serial))

    def newest(self, device: str, profile: str) -> Issued | None:
        """Return the certificate that a device got last; of several of one second one that was revoked."""
        query = (
            "SELECT * FROM certificates WHERE device = ? AND profile = ? "
            "ORDER BY issued_s DESC, revoked_s IS NULL, serial LIMIT 1"
        )
        row = self._read(lambda database: database.execute(query, (device, profile)).fetchone())
        return _issued(row) if row else None

    def certificates(self, *, device: str | None = None, limit: int = 1000, after: int = 0) -> list[Issued]:
        """Return certificates by serial number from behind ``after`` on, of one device or of all."""
        query = "SELECT * FROM certificates WHERE serial > ? AND (? IS NULL OR device = ?) ORDER BY serial LIMIT ?"
        return self._read(
            lambda database: [
                _issued(row) for row in database.execute(query, (_serial(after), device, device, limit)).fetchall()
            ]
        )

    def revoked(self, *, since_s: int | None = None, alive_s: int = 0) -> list[Issued]:
        """Return what was revoked (at or after ``since_s``) and has not expired before ``alive_s``."""
        return self._read(lambda database: self._revoked(database, since_s or 0, alive_s))

    def count(self) -> int:
        """Return how many certificates were issued."""
        return int(self._read(lambda database: database.execute("SELECT count(*) FROM certificates").fetchone()[0]))

    def add_token(self, record: TokenRecord) -> None:
        """Record a token before it is shown to anybody."""
        with self._transaction() as database:
            database.execute(
                "INSERT INTO tokens (digest, device, profile, issued_s, expires_s) VALUES (?, ?, ?, ?, ?)",
                (record.digest, record.device, record.profile, record.issued_s, record.expires_s),
            )

    def token(self, digest: bytes) -> TokenRecord | None:
        """Return what is known of a token."""
        return self._read(lambda database: self._token(database, digest))

    def drop_tokens(self, before_s: int) -> int:
        """Forget tokens that expired before ``before_s``; return how many."""
        with self._transaction() as database:
            return database.execute("DELETE FROM tokens WHERE expires_s < ?", (before_s,)).rowcount

    def add_crl(self, make: Callable[[int, list[Issued]], CrlRecord], *, alive_s: int) -> CrlRecord:
        """Make and record the next CRL.

        ``make`` gets its number, which only ever rises, and what is revoked and has not expired before ``alive_s``. It
        is one transaction: what another process revokes meanwhile is missing from no list with a higher number.
        """
        with self._transaction() as database:
            number = database.execute("SELECT coalesce(max(number), 0) + 1 FROM crls").fetchone()[0]
            record = make(int(number), self._revoked(database, 0, alive_s))
            database.execute(
                "INSERT INTO crls (number, made_s, base, der) VALUES (?, ?, ?, ?)",
                (record.number, record.made_s, record.base, record.der),
            )
            self._note(database, Act.LISTED, crl=record.number)
            # the newest full list and its deltas are enough; numbers go on from the newest row
            database.execute(
                "DELETE FROM crls WHERE number < (SELECT max(number) FROM crls WHERE base IS NULL) AND number != "
                "(SELECT max(number) FROM crls)"
            )
        return record

    def newest_crl(self, *, delta: bool) -> CrlRecord | None:
        """Return the newest full CRL, or the newest delta."""
        query = f"SELECT * FROM crls WHERE base IS {'NOT ' if delta else ''}NULL ORDER BY number DESC LIMIT 1"  # noqa: S608  # two constants
        row = self._read(lambda database: database.execute(query).fetchone())
        return CrlRecord(**dict(row)) if row else None

    def pending_acts(self) -> list[PendingAct]:
        """Return the acts that were not reported yet, oldest first; a hundred at most."""

        def read(database: sqlite3.Connection) -> list[PendingAct]:
            rows = database.execute("SELECT * FROM acts ORDER BY number LIMIT 100").fetchall()
            return [self._pending(database, row) for row in rows if row["number"] not in self._reported]

        return self._read(read)

    def strike_out(self, act: PendingAct) -> None:
        """Forget an act that was reported; durable with the next transaction, so a power cut repeats a report."""
        with self._lock:
            self._reported.append(act.number)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _open(self, path: Path, *, create: bool, synchronous: str) -> sqlite3.Connection:
        new = not path.exists()
        with _translated(path):
            database = sqlite3.connect(
                path, timeout=_LOCK_WAIT_S, isolation_level=None, check_same_thread=False, cached_statements=64
            )
            try:
                path.chmod(0o600)
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA journal_mode = WAL")
                database.execute(f"PRAGMA synchronous = {synchronous}")
                database.execute("PRAGMA foreign_keys = ON")
                (version,) = database.execute("PRAGMA user_version").fetchone()
                if version == 0 and (new or create):
                    database.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")
                elif version != VERSION:
                    raise CaStoreCorrupt(f"{path} has schema version {version}, not {VERSION}", path=str(path))
                (sound,) = database.execute("PRAGMA quick_check(1)").fetchone()
                if sound != "ok":
                    raise CaStoreCorrupt(f"{path}: {sound}", path=str(path))
            except BaseException:
                database.close()
                raise
        with translate_os_errors(path):
            sync_folder(path.parent)
        self._path = path
        return database

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: wholly there, durable, when it ends; not there at all if anything is raised."""
        with self._lock, _translated(self._path):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                struck = [(number,) for number in self._reported]
                self._database.executemany("DELETE FROM acts WHERE number = ?", struck)
                yield self._database
                self._database.execute("COMMIT")
                del self._reported[: len(struck)]
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk may have rolled back already
                    self._database.execute("ROLLBACK")
                raise

    def _read(self, query: Callable[[sqlite3.Connection], Result]) -> Result:
        with self._lock, _translated(self._path):
            return query(self._database)

    @staticmethod
    def _by_serial(database: sqlite3.Connection, serial: int) -> Issued | None:
        if not 0 <= serial < 1 << 160:
            return None
        row = database.execute("SELECT * FROM certificates WHERE serial = ?", (_serial(serial),)).fetchone()
        return _issued(row) if row else None

    @staticmethod
    def _revoked(database: sqlite3.Connection, since_s: int, alive_s: int) -> list[Issued]:
        query = (
            "SELECT * FROM certificates WHERE revoked_s IS NOT NULL AND revoked_s >= ? AND expires_s >= ? "
            "ORDER BY revoked_s, serial"
        )
        return [_issued(row) for row in database.execute(query, (since_s, alive_s)).fetchall()]

    @staticmethod
    def _by_request(database: sqlite3.Connection, request_id: bytes) -> Issued | None:
        row = database.execute("SELECT * FROM certificates WHERE request_id = ?", (request_id,)).fetchone()
        return _issued(row) if row else None

    @staticmethod
    def _insert(database: sqlite3.Connection, made: Issued, request_id: bytes | None, digest: bytes) -> None:
        database.execute(
            "INSERT INTO certificates (serial, profile, subject, device, issued_s, expires_s, der, request_id, "
            "request_digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                _serial(made.serial),
                made.profile,
                made.subject,
                made.device,
                made.issued_s,
                made.expires_s,
                made.der,
                request_id,
                digest,
            ),
        )

    @staticmethod
    def _note(database: sqlite3.Connection, act: Act, *, serial: int | None = None, crl: int | None = None) -> None:
        packed = None if serial is None else _serial(serial)
        database.execute("INSERT INTO acts (act, serial, crl) VALUES (?, ?, ?)", (act.value, packed, crl))

    def _pending(self, database: sqlite3.Connection, row: sqlite3.Row) -> PendingAct:
        serial, number = row["serial"], row["crl"]
        found = self._by_serial(database, int.from_bytes(serial, "big")) if serial is not None else None
        made = database.execute("SELECT * FROM crls WHERE number = ?", (number,)).fetchone()
        crl = CrlRecord(**dict(made)) if made else None
        return PendingAct(number=row["number"], act=Act(row["act"]), issued=found, crl=crl)

    @staticmethod
    def _token(database: sqlite3.Connection, digest: bytes) -> TokenRecord | None:
        row = database.execute("SELECT * FROM tokens WHERE digest = ?", (digest,)).fetchone()
        return TokenRecord(**dict(row)) if row else None

    def _redeem(
        self, database: sqlite3.Connection, digest: bytes, device: str, now_s: int, request_id: bytes | None
    ) -> None:
        """Use up a token for one request, or raise what is wrong with it."""
        token = self._token(database, digest)
        if token is None:
            raise TokenUnknown("no such enrolment token was issued")
        if token.device != device:
            raise TokenWrongDevice(f"the token is for {token.device}, not for {device}", device=token.device)
        if token.used_s is not None:
            raise TokenReplayed(f"the token of {device} was used before", device=device)
        if now_s >= token.expires_s:
            raise TokenExpired(f"the token of {device} has expired", device=device)
        database.execute("UPDATE tokens SET used_s = ?, request_id = ? WHERE digest = ?", (now_s, request_id, digest))


def _serial(serial: int) -> bytes:
    """Return a serial number as the table has it; blobs of one length sort as their numbers do."""
    return serial.to_bytes(20, "big")


def _issued(row: sqlite3.Row) -> Issued:
    values = dict(row)
    values["serial"] = int.from_bytes(values["serial"], "big")
    values["reason"] = None if values["reason"] is None else Reason(values["reason"])
    return Issued(**values)


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into coded ones that name the file."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:
            raise CaStoreBusy(f"{path} is being written by another process (waited {_LOCK_WAIT_S:g} s)") from error
        full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        raise (StorageFull if full else StorageFailed)(f"{path}: {error}", path=str(path)) from error
    except sqlite3.IntegrityError as error:  # a random number that was there before
        raise EntropyRepeated(f"{path}: {error}", path=str(path)) from error
    except sqlite3.DatabaseError as error:
        raise CaStoreCorrupt(f"{path}: {error}", path=str(path)) from error
