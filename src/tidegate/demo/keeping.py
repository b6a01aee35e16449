"""Chapters 7 and 9: a patient record at rest, and the evidence of the whole story.

Touches: the vault and the event log of the device; its raw data image.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidegate.base.errors import Rejected
from tidegate.crypto.signing import AlgorithmClass, PublicKey
from tidegate.crypto.trust import TrustPolicy
from tidegate.demo.board import Board
from tidegate.demo.report import Report, require
from tidegate.demo.witness import EventReader, kind_of
from tidegate.events.segments import events_path, list_segments, verify_folder
from tidegate.keys.errors import UnlockRefused
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault.erase import erase_vault, verify_receipt
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker

RECORD_NAME = "patients/4711.json"
PIECE_BYTES = 12  # no piece of the record this long may be found


def tell_vault(report: Report, board: Board) -> None:
    """Chapter 7: stored and read back; not in the raw data image; not to be opened without the ROM's secret."""
    report.chapter("7  Vault")
    record = json.dumps({"name": "Erika Mustermann", "born": "1964-08-12", "note": secrets.token_hex(40)}).encode()
    with report.step("an application stores a patient record and reads it back") as step:
        _vault(board, ["put", RECORD_NAME, "-"], record)
        require(_vault(board, ["get", RECORD_NAME]) == record, "the record reads back differently")
        step.evidence.append(f"{len(record)} bytes stored as {RECORD_NAME} and read back by another process")
    with report.step("the raw data image holds no piece of it, nor its name, nor the key") as step:
        subprocess.run(board.inside(["sync"]), check=False)
        raw = board.storage.data_path.read_bytes()
        pieces = [record[start : start + PIECE_BYTES] for start in range(len(record) - PIECE_BYTES + 1)]
        found = [piece for piece in (*pieces, RECORD_NAME.encode()) if piece in raw]
        require(not found, f"found in the clear: {found[:1]}")
        secret = (board.storage.rom / "device-secret").read_bytes()
        require(secret not in raw and secret[:16] not in raw, "the device secret is on the data image")
        step.evidence.append(f"searched {len(raw):,} bytes for {len(pieces)} pieces of {PIECE_BYTES} bytes each: none")
    with report.step("a thief with the storage but another ROM does not open it") as step:
        step.evidence.append(_stolen(board))
    with report.step("an older copy of the record's file put back is refused") as step:
        step.evidence.append(_put_back(board, record))
    with report.step("an escrow key is added, the vault gets new keys, and the offline half opens it") as step:
        private, public = (board.storage.folder.with_name(name) for name in ("escrow.private", "escrow.public"))
        _vault(board, ["escrow-key", str(private), str(public)], opened=False)
        _vault(board, ["unlockers", "add", "--new-escrow-key", str(public), "--label", "safe"])
        rekeyed = json.loads(_vault(board, ["rekey", "--json"]))
        step.evidence.append(f"epoch {rekeyed['epoch']}, {rekeyed['items']} headers written anew, no content")
        escrowed = _vault(board, ["get", RECORD_NAME, "--escrow-key", str(private)], opened=False)
        require(escrowed == record, "the escrow key does not give the record")
    with report.step("a vault that is retired is erased, its key first, with a signed receipt") as step:
        step.evidence += _retire(board, record)


def tell_evidence(report: Report, board: Board, reader: EventReader, event_key: PublicKey, work: Path) -> None:
    """Chapter 9: the log verifies; with one event altered, dropped or reordered it names the place."""
    report.chapter("9  Evidence")
    trust = TrustPolicy(keys=(event_key,), threshold=1, required_classes=frozenset({AlgorithmClass.CLASSICAL}))
    with report.step("the whole story is in the event log, and the log verifies") as step:
        board.ask({"op": "checkpoint"})
        folder = work / "events"
        shutil.copytree(reader.folder(), folder)
        verified = verify_folder(folder, trust)
        step.evidence.append(
            f"{len(reader.events())} events of {len(verified.boots)} boots, chained, signed by key {event_key.key_id}"
        )
        step.evidence += _count_kinds(reader.events())
    for title, change, code in (
        ("altered", _alter, "events.chain.altered"),
        ("dropped", _drop, "events.chain.missing"),
        ("reordered", _swap, "events.chain.reordered"),
    ):
        with report.step(f"with one event {title} the place is named") as step:
            tampered = work / f"events-{title}"
            shutil.copytree(folder, tampered)
            _rewrite(tampered, change)
            try:
                verify_folder(tampered, trust)
            except Rejected as error:
                require(error.code == code, f"refused as {error.code}, not as {code}")
                step.evidence.append(f"{error.message} [{error.code}]")
            else:
                require(condition=False, complaint="the tampered log verifies")


def _vault(board: Board, words: list[str], data: bytes = b"", *, opened: bool = True) -> bytes:
    """Run ``tidegate vault`` on the device as an application would; return what it writes.

    The device's own key opens the vault unless ``opened`` is off; then ``words`` say what does, or nothing has to.
    """
    folder = [] if words[0] == "escrow-key" else [str(board.home.vault)]
    verb = words[:2] if words[0] == "unlockers" else words[:1]
    key = ["--key", _key(board, "vault")] if opened else []
    command = [sys.executable, "-m", "tidegate.cli.main", "vault", *verb, *folder, *words[len(verb) :], *key]
    done = subprocess.run(board.inside(command), input=data, capture_output=True, check=False)
    require(done.returncode == 0, f"tidegate vault {words[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _key(board: Board, name: str) -> str:
    return f"file:{board.home.folder / 'keys'}?key={name}&device-secret={board.storage.rom / 'device-secret'}"


def _put_back(board: Board, record: bytes) -> str:
    """Replace the record, put the older file in the place of the newer one, and return the refusal."""
    items = board.data() / "vault" / "items"
    (old,) = items.iterdir()
    kept = old.read_bytes()
    _vault(board, ["put", RECORD_NAME, "-"], b"newer: " + record)
    (new,) = items.iterdir()
    newer = new.read_bytes()
    new.write_bytes(kept)
    keys = SoftwareKeyStore(board.data() / "keys", DeviceSecretUnlock(board.storage.rom / "device-secret"))
    try:
        with Vault.open(board.data() / "vault", KeyStoreUnlocker(keys, "vault")) as vault:
            vault.read(RECORD_NAME)
    except Rejected as error:
        new.write_bytes(newer)
        _vault(board, ["put", RECORD_NAME, "-"], record)
        return f"{error.message} [{error.code}]"
    require(condition=False, complaint="the older record was accepted")
    return ""


def _retire(board: Board, record: bytes) -> list[str]:
    """Make a vault beside the device's, erase it, and show that a copy from before opens no more."""
    folder, copy = board.data() / "retired", board.storage.folder.with_name("retired-copy")
    keys = SoftwareKeyStore(board.data() / "keys", DeviceSecretUnlock(board.storage.rom / "device-secret"))
    keys.generate("retired", KeySpec(purpose=KeyPurpose.SEAL))
    with Vault.create(folder, KeyStoreUnlocker(keys, "retired")) as vault:
        vault.write(RECORD_NAME, record)
    shutil.copytree(folder, copy)
    receipt = erase_vault(
        folder, [(keys, "retired")], reason="end of life", signer=keys.signer("events"), now_s=time.time()
    )
    trust = TrustPolicy(keys=(keys.public_key("events"),), threshold=1, required_classes=frozenset())
    document = verify_receipt(receipt.signed or b"", trust)
    try:
        Vault.open(copy, KeyStoreUnlocker(keys, "retired")).close()
    except Rejected as error:
        return [
            f"receipt of {document['files_erased']} files, signed by key {keys.public_key('events').key_id}",
            f"the copy made before: {error.message} [{error.code}]",
        ]
    require(condition=False, complaint="a copy of the erased vault opened")
    return []


def _stolen(board: Board) -> str:
    """Try to open the vault with the storage as it is but the secret of another device's ROM; return the refusal."""
    SoftwareKeyStore(board.data() / "keys", DeviceSecretUnlock(board.storage.rom / "device-secret")).close()
    thief = board.storage.folder.with_name("thief-secret")
    thief.write_bytes(secrets.token_bytes(32))
    thief.chmod(0o400)
    try:
        keys = SoftwareKeyStore(board.data() / "keys", DeviceSecretUnlock(thief))
        Vault.open(board.data() / "vault", KeyStoreUnlocker(keys, "vault")).close()
    except UnlockRefused as error:
        return f"{error.message} [{error.code}]"
    finally:
        thief.unlink()
    require(condition=False, complaint="the vault opened")
    return ""


def _count_kinds(events: list[dict[str, Any]]) -> list[str]:
    kinds: dict[str, int] = {}
    for event in events:
        kinds[kind_of(event)] = kinds.get(kind_of(event), 0) + 1
    words = [f"{count} {kind}" for kind, count in sorted(kinds.items())]
    return [", ".join(words[start : start + 5]) for start in range(0, len(words), 5)]


def _rewrite(folder: Path, change: Callable[[list[bytes]], None]) -> None:
    """Change the lines of the largest segment in place."""
    path = max((events_path(folder, segment.first) for segment in list_segments(folder)), key=_size)
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _alter(lines: list[bytes]) -> None:
    middle = len(lines) // 2
    lines[middle] = lines[middle].replace(b'"severity_id":', b'"severity_id":9', 1)


def _drop(lines: list[bytes]) -> None:
    del lines[len(lines) // 2]


def _swap(lines: list[bytes]) -> None:
    middle = len(lines) // 2
    lines[middle], lines[middle + 1] = lines[middle + 1], lines[middle]
