"""``tidegate vault doctor`` and ``erase``: what protects a vault on this machine, and its end."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.base.durable import read_file_bounded, write_file_atomic
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.vault.machine import Finding


def build_care(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verbs."""
    doctor = add_verb(verbs, "doctor", "say what protects secrets in RAM here, and what opens a vault; exits 1 if weak")
    doctor.add_argument("folder", type=Path, metavar="FOLDER", nargs="?", help="the vault's folder")
    doctor.set_defaults(run=_doctor)

    erase = add_verb(
        verbs, "erase", "destroy a vault: its keys where they live, then the storage; there is no way back"
    )
    erase.add_argument("folder", type=Path, metavar="FOLDER", help="the vault's folder")
    erase.add_argument(
        "--key", action="append", default=[], metavar="URI", help="sealing key of the vault to destroy; may be repeated"
    )
    erase.add_argument("--reason", default="operator", metavar="TEXT", help="for the receipt")
    erase.add_argument("--sign", metavar="URI", help="key that signs the receipt (with --receipt)")
    erase.add_argument("--receipt", type=Path, metavar="FILE", help="where to write the signed receipt")
    erase.add_argument("--yes", action="store_true", help="do it")
    erase.set_defaults(run=_erase)

    receipt = add_verb(verbs, "receipt", "verify an erasure receipt and show it")
    receipt.add_argument("file", type=Path, metavar="FILE", help="the receipt")
    receipt.add_argument(
        "--trust",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="public key of the signer (`tidegate keys public`); repeat it if any of several may have signed",
    )
    receipt.set_defaults(run=_receipt)


def _doctor(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.machine import examine_machine

    findings = list(examine_machine())
    if arguments.folder is not None:
        findings += _examine_vault(arguments.folder)
    output.table(
        ["what", "holds", "detail"], [(one.what, "yes" if one.holds else "NO", one.detail) for one in findings]
    )
    weak = [one.what for one in findings if not one.holds]
    if weak:
        output.line(f"weak: {', '.join(weak)}")
    rows = [{"what": one.what, "holds": one.holds, "detail": one.detail} for one in findings]
    output.result({"findings": rows, "weak": weak})
    return 1 if weak else 0


def _examine_vault(folder: Path) -> list[Finding]:
    """Return what can be told of a vault without opening it."""
    from tidegate.vault.keyring import read_slots
    from tidegate.vault.machine import Finding

    record = read_slots(folder)
    kinds = ", ".join(slot.kind for slot in record.slots)
    anchored = bool(record.anchor)
    return [
        Finding(
            what="unlockers",
            holds=len(record.slots) > 1,
            detail=kinds
            if len(record.slots) > 1
            else f"{kinds} alone: if it is lost, so is the vault; add another one",
        ),
        Finding(
            what="rollback",
            holds=anchored,
            detail=f"a counter of slot {record.anchor} anchors the vault"
            if anchored
            else "no counter: an older copy of the whole vault opens",
        ),
        Finding(
            what="re-keying",
            holds=len(record.vault_keys) == 1,
            detail="none is under way" if len(record.vault_keys) == 1 else "interrupted: `tidegate vault rekey`",
        ),
    ]


def _erase(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.cli.keyuri import open_key, open_keys
    from tidegate.keys.store import check_key_name
    from tidegate.vault.erase import erase_vault, require_erasable
    from tidegate.vault.errors import EraseIncomplete, EraseUnconfirmed

    if not arguments.yes or (arguments.receipt is None) != (arguments.sign is None):
        raise EraseUnconfirmed("say --yes to destroy the vault, and --sign together with --receipt")
    require_erasable(arguments.folder)
    keys = [open_keys(uri) for uri in arguments.key]
    for _, name in keys:
        check_key_name(name)
    signer = open_key(arguments.sign) if arguments.sign else None
    try:
        receipt = erase_vault(arguments.folder, keys, reason=arguments.reason, signer=signer, now_s=time.time())
    except EraseIncomplete as error:  # what was done is told, and then what was not
        _show(json.loads(str(error.fields["receipt"])), output)
        raise
    if receipt.signed is not None:
        write_file_atomic(arguments.receipt, receipt.signed, mode=0o644)
    _show(receipt.document, output)
    output.result(receipt.document)
    return 0


def _receipt(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.cli.events import load_trust
    from tidegate.vault.erase import MAX_RECEIPT_BYTES, verify_receipt

    raw = read_file_bounded(arguments.file, limit_bytes=MAX_RECEIPT_BYTES)
    document = verify_receipt(raw, load_trust(arguments.trust))
    _show(document, output)
    output.result(document)
    return 0


def _show(document: Any, output: Output) -> None:
    when = time.strftime("%F %T UTC", time.gmtime(document["erased_at"]))
    output.line(f"vault {document['vault']} erased {when} ({document['reason']}): {document['files_erased']} files")
    if document["record"] != "read":
        output.line(f"  the vault's record was {document['record']}: nobody knows what opens a copy of the storage")
    for key in document["keys"]:
        unnamed = "" if key["slots"] or document["record"] != "read" else "; no unlocker of the vault names this key"
        copies = "; every copy of it is dead" if key.get("copies") == "dead" else ""
        output.line(f"  key {key['key']} ({key['provider']}): {key['state']}; {key['proof']}{copies}{unnamed}")
    for slot in document["slots"]:
        output.line(f"  unlocker {slot['number']} ({slot['kind']} {slot['key']}): {slot['state']}; {slot['proof']}")
    for failure in document["failures"]:
        output.line(f"  NOT DONE: {failure}")
    left = [slot["number"] for slot in document["slots"] if slot["state"] == "left"]
    if left:
        output.line("  a copy of the storage taken before opens with what was left, if somebody has it")
