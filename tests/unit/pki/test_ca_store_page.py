"""docs/formats/ca-store.md is true: another program reads a CA's folder by the page alone."""

import hashlib
import re
import sqlite3
from pathlib import Path

from tidegate.base.clock import SystemEntropy
from tidegate.pki.ca_store import DATABASE, Reason
from tidegate.pki.tokens import issue_token

PAGE = Path(__file__).resolve().parents[3] / "docs" / "formats" / "ca-store.md"


def columns_on_the_page():
    found = {}
    for part in re.split(r"^\*\*(\w+)\*\*", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        if re.fullmatch(r"\w+", part):
            table = found.setdefault(part, [])
            continue
        for row in re.findall(r"^\| (`.+?) \|", part, re.MULTILINE):
            table += re.findall(r"`(\w+)`", row)
    return found


def test_another_reader(bench, der):
    token = issue_token(bench.store, "SN-1", now_s=bench.clock.now_s(), entropy=SystemEntropy())
    certificate = bench.issue(request_id=b"id", token=token)
    bench.authority.revoke(certificate.serial_number, Reason.SUPERSEDED)
    bench.authority.crl()
    bench.authority.delta_crl()
    database = sqlite3.connect(bench.folder / DATABASE)
    database.row_factory = sqlite3.Row
    assert database.execute("PRAGMA user_version").fetchone()[0] == 1
    assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    on_disk = {
        table: [row["name"] for row in database.execute(f"PRAGMA table_info({table})")]
        for (table,) in database.execute(
            "SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite%'"
        )
    }
    assert on_disk == columns_on_the_page()
    (row,) = database.execute("SELECT * FROM certificates").fetchall()
    assert int.from_bytes(row["serial"], "big") == certificate.serial_number
    assert (row["der"], row["request_id"], row["reason"]) == (der(certificate), b"id", 4)
    assert row["expires_s"] == certificate.not_valid_after_utc.timestamp()
    (used,) = database.execute("SELECT * FROM tokens").fetchall()
    assert used["digest"] == hashlib.sha256(b"tidegate enrolment token\0" + bytes(token.view())).digest()
    assert (used["device"], used["request_id"]) == ("SN-1", b"id")
    assert [tuple(one) for one in database.execute("SELECT number, base FROM crls ORDER BY number")] == [
        (1, None),
        (2, 1),
    ]
    database.close()
    assert bench.folder.stat().st_mode & 0o777 == 0o700
