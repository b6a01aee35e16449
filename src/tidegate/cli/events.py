"""``tidegate events``: show, verify and export the event log."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.base.durable import read_file_bounded
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.crypto.trust import TrustPolicy
    from tidegate.events.lines import StoredLine

DEFAULT_FOLDER = "/var/lib/tidegate/events"
_FOLLOW_POLL_S = 0.25
_MAX_KEY_BYTES = 4096  # a public key in COSE_Key form
_SEVERITIES = ("unknown", "info", "low", "medium", "high", "critical", "fatal")


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    show = add_verb(verbs, "show", "print events, oldest first, without verifying them")
    _add_folder_option(show)
    show.add_argument("--follow", action="store_true", help="wait for further events until interrupted")
    show.add_argument("--class", dest="ocsf_class", type=int, metavar="UID", help="only this OCSF class, such as 2004")
    show.add_argument("--kind", metavar="PREFIX", help="only kinds that begin so, such as boot or boot.stage.refused")
    show.set_defaults(run=_show)

    verify = add_verb(verbs, "verify", "check that the log is whole, in order and signed; name the place if not")
    verify.add_argument("folder", type=Path, metavar="FOLDER", help="the log's folder")
    verify.add_argument(
        "--trust",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="public key of the device's checkpoints (`tidegate keys public`); repeat it if any of several may sign",
    )
    verify.add_argument(
        "--require-signed", action="store_true", help="answer no if events are newer than the last checkpoint"
    )
    verify.set_defaults(run=_verify)

    export = add_verb(verbs, "export", "print the log's events as they were written, for another program")
    _add_folder_option(export)
    export.add_argument("--format", choices=["jsonl"], default="jsonl", help="OCSF JSON, one event a line")
    export.set_defaults(run=_export)


def _add_folder_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=Path(DEFAULT_FOLDER), help=f"the log's folder (default {DEFAULT_FOLDER})"
    )


def _show(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.events.segments import follow_log, read_log

    lines = follow_log(arguments.folder, _wait) if arguments.follow else read_log(arguments.folder)
    shown = []
    for document in _documents(lines):
        kind = str(_inside(document, "metadata", "event_code"))
        if arguments.ocsf_class not in (None, document.get("class_uid")) or not kind.startswith(arguments.kind or ""):
            continue
        if arguments.follow and output.as_json:
            print(json.dumps(document), flush=True)
        elif output.as_json:
            shown.append(document)
        else:
            output.line(_text(document, kind))
    if not arguments.follow:
        output.result({"verified": False, "events": shown})
    return 0


def _verify(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.events.segments import verify_folder

    log = verify_folder(arguments.folder, load_trust(arguments.trust))
    output.line(f"device {log.device}: {log.signed} events of {len(log.boots)} boots are whole, in order and signed")
    if log.removed:
        output.line(f"{log.removed} events gave way to the size limit, and a signed event says so")
    if log.unsigned_tail:
        output.line(f"{log.unsigned_tail} events are newer than the last checkpoint: in order, not signed yet")
    output.line(f"head: boot {log.last_boot} event {log.last_sequence} {log.head.hex()}")
    output.result(
        {
            "device": log.device,
            "boots": list(log.boots),
            "signed": log.signed,
            "unsigned_tail": log.unsigned_tail,
            "removed": log.removed,
            "checkpoints": log.checkpoints,
            "head": {"boot": log.last_boot, "sequence": log.last_sequence, "hash": log.head.hex()},
        }
    )
    return 1 if arguments.require_signed and log.unsigned_tail else 0


def _export(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001  # the format is JSON either way
    from tidegate.events.segments import read_log

    for line in read_log(arguments.folder):
        if not line.raw.startswith(b'{"gap":'):
            print(line.raw.decode(errors="replace"))
    return 0


def load_trust(paths: list[Path]) -> TrustPolicy:
    """Return the trust in any one of the public keys in these files."""
    from tidegate.crypto.signing import parse_public_key
    from tidegate.crypto.trust import TrustPolicy

    keys = tuple(parse_public_key(read_file_bounded(path, limit_bytes=_MAX_KEY_BYTES)) for path in paths)
    return TrustPolicy(keys=keys, threshold=1, required_classes=frozenset())


def _documents(lines: Iterator[StoredLine]) -> Iterator[dict[str, object]]:
    """Yield what can be read; a damaged line is shown as such, because showing is not verifying."""
    for line in lines:
        try:
            document = json.loads(line.raw)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            document = {"message": f"{line.file} line {line.number} cannot be read", "severity_id": 5}
        if "gap" not in document:
            yield document


def _text(document: dict[str, object], kind: str) -> str:
    moment, severity = document.get("time"), document.get("severity_id")
    stamp = "-" * 23
    if isinstance(moment, int) and abs(moment) < 1 << 47:
        stamp = datetime.fromtimestamp(moment / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    name = _SEVERITIES[severity] if isinstance(severity, int) and 0 <= severity < len(_SEVERITIES) else "unknown"
    code = f" [{document['status_code']}]" if "status_code" in document else ""
    text = f"{stamp}  {name:8}  {kind:20}  {document.get('message', '')}{code}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)  # no escape sequence to the terminal


def _inside(document: dict[str, object], *names: str) -> object:
    value: object = document
    for name in names:
        value = value.get(name, "") if isinstance(value, dict) else ""
    return value


def _wait() -> None:
    time.sleep(_FOLLOW_POLL_S)
