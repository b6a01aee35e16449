"""What opens a vault, on the command line: the options that say it; ``tidegate vault unlockers``, ``rekey``, keys."""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.crypto.aead import Secret
    from tidegate.vault.store import Vault
    from tidegate.vault.unlockers import Unlocker


def add_unlock_options(parser: argparse.ArgumentParser, *, new: bool = False) -> None:
    """Add the options that say what opens the vault; with ``new`` those of an unlocker that is added to it."""
    prefix, whose = ("new-", "the new unlocker: ") if new else ("", "")
    group = parser.add_argument_group("the new unlocker" if new else "what opens the vault")

    def add(name: str, metavar: str | None, purpose: str, **more: Any) -> None:
        dest = f"{prefix}{name}".replace("-", "_")
        extra = {"action": "store_true"} if metavar is None else {"metavar": metavar, "action": "append"}
        group.add_argument(f"--{prefix}{name}", dest=dest, help=whose + purpose, **{**extra, **more})

    add("key", "URI", "sealing key, such as file:/FOLDER?key=NAME&device-secret=/FILE or tpm2:… (`tidegate keys`)")
    add("passphrase-fd", "N", "read a passphrase from this open file descriptor", type=int)
    add("passphrase", None, "ask for a passphrase on the terminal")
    add("usb", "LABEL[:FILE]", "key file on the drive whose file system has this label; default tidegate.key")
    add("tang", "URL", "network key server")
    add("tang-thumbprint", "TEXT", "key of the key server to trust (`tidegate vault tang-keys URL`)", action="store")
    add("escrow-key", "FILE", "escrow key: the private half opens, the public half is enough to add", action="store")
    add("need", "K", "threshold: so many of the ones above are needed", type=int, action="store")


def read_unlocker(arguments: argparse.Namespace, *, new: bool = False) -> Unlocker:
    """Return what the options say; raise ``vault.unlock.missing``."""
    from tidegate.vault.errors import UnlockerMissing

    values = {name.removeprefix("new_"): value for name, value in vars(arguments).items() if name.startswith("new_")}
    if not new:
        values = vars(arguments)
    parts = [*_from_keys(values), *_from_passphrases(values, new=new), *_from_elsewhere(values, new=new)]
    if not parts:
        raise UnlockerMissing("nothing is given that opens the vault")
    if values.get("need"):
        from tidegate.vault.threshold import ThresholdUnlocker

        return ThresholdUnlocker(values["need"], parts)
    if len(parts) > 1:
        raise UnlockerMissing("several unlockers are given; say with --need how many of them are needed")
    return parts[0]


def open_vault(arguments: argparse.Namespace) -> Vault:
    """Return the vault of ``arguments.folder`` open; warnings about this machine go to standard error."""
    from tidegate.vault.store import Vault

    vault = Vault.open(arguments.folder, read_unlocker(arguments))
    for warning in vault.warnings:
        print(f"tidegate: warning: {warning}", file=sys.stderr)
    if vault.recovery.torn_bytes or vault.recovery.files:
        print(
            f"tidegate: the vault was not closed: recovered {vault.recovery.files} files, "
            f"cut off {vault.recovery.torn_bytes} bytes of a change that never counted",
            file=sys.stderr,
        )
    return vault


def _from_keys(values: dict[str, Any]) -> list[Unlocker]:
    from tidegate.cli.keyuri import open_keys
    from tidegate.vault.unlockers import KeyStoreUnlocker

    return [KeyStoreUnlocker(*open_keys(uri)) for uri in values.get("key") or ()]


def _from_passphrases(values: dict[str, Any], *, new: bool) -> list[Unlocker]:
    from tidegate.keys.uri import read_passphrase
    from tidegate.vault.unlockers import PassphraseUnlocker

    found: list[Unlocker] = [
        PassphraseUnlocker(read_passphrase(Path(f"/dev/fd/{number}"))) for number in values.get("passphrase_fd") or ()
    ]
    if values.get("passphrase"):
        found.append(PassphraseUnlocker(_ask(new=new)))
    return found


def _ask(*, new: bool) -> Secret:
    from tidegate.cli.keyuri import ask_on_terminal, ask_twice

    return ask_twice("the vault's new passphrase") if new else ask_on_terminal("the vault's passphrase")


def _from_elsewhere(values: dict[str, Any], *, new: bool) -> list[Unlocker]:
    found: list[Unlocker] = []
    for text in values.get("usb") or ():
        from tidegate.vault.usbdrive import UsbUnlocker

        label, _, file = text.partition(":")
        found.append(UsbUnlocker(label, file or "tidegate.key"))
    for url in values.get("tang") or ():
        from tidegate.vault.errors import UnlockerMissing
        from tidegate.vault.tang import TangUnlocker

        if not values.get("tang_thumbprint"):
            raise UnlockerMissing("a key server needs --tang-thumbprint; `tidegate vault tang-keys URL` shows it")
        found.append(TangUnlocker(url, thumbprint=values["tang_thumbprint"]))
    if values.get("escrow_key"):
        from tidegate.vault.escrow import EscrowUnlocker, read_escrow_private, read_escrow_public

        path = Path(values["escrow_key"])
        found.append(
            EscrowUnlocker(public=read_escrow_public(path)) if new else EscrowUnlocker(seed=read_escrow_private(path))
        )
    return found


# -- verbs ------------------------------------------------------------------------------------------------------------


def build_unlockers(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verbs about unlockers and keys."""
    unlockers = add_verb(verbs, "unlockers", "list, add and remove what opens the vault")
    actions = unlockers.add_subparsers(dest="subverb", metavar="ACTION", required=True)
    listing = add_verb(actions, "list", "list what would open the vault; needs no key, and believes the record unread")
    listing.add_argument("folder", type=Path, metavar="FOLDER", help="the vault's folder")
    listing.set_defaults(run=_list)

    adding = add_verb(actions, "add", "add a way to open the vault")
    adding.add_argument("folder", type=Path, metavar="FOLDER", help="the vault's folder")
    adding.add_argument("--label", default="", metavar="TEXT", help="what people call it")
    add_unlock_options(adding)
    add_unlock_options(adding, new=True)
    adding.set_defaults(run=_add)

    removing = add_verb(actions, "remove", "take a way to open the vault away, and re-key the vault")
    removing.add_argument("folder", type=Path, metavar="FOLDER", help="the vault's folder")
    removing.add_argument("number", type=int, metavar="NUMBER", help="its number in the list")
    add_unlock_options(removing)
    removing.set_defaults(run=_remove)

    rekeying = add_verb(verbs, "rekey", "give the vault new keys; goes on where it was interrupted")
    rekeying.add_argument("folder", type=Path, metavar="FOLDER", help="the vault's folder")
    rekeying.add_argument("--contents", action="store_true", help="encrypt every item anew, not its header alone")
    add_unlock_options(rekeying)
    rekeying.set_defaults(run=_rekey)

    escrow = add_verb(verbs, "escrow-key", "make an escrow key: keep the private half offline")
    escrow.add_argument("private", type=Path, metavar="PRIVATE", help="new file for the private half")
    escrow.add_argument("public", type=Path, metavar="PUBLIC", help="new file for the public half")
    escrow.set_defaults(run=_escrow_key)

    drive = add_verb(verbs, "drive-key", "write a key file on a mounted removable drive")
    drive.add_argument("file", type=Path, metavar="FILE", help="new file, such as /media/DRIVE/tidegate.key")
    drive.set_defaults(run=_drive_key)

    tang = add_verb(verbs, "tang-keys", "show the thumbprints of a key server, to compare with what its owner says")
    tang.add_argument("url", metavar="URL", help="where the server is, such as http://keys.example:7500")
    tang.set_defaults(run=_tang_keys)


def _list(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.keyring import read_slots

    record = read_slots(arguments.folder)
    rows = [
        {
            "number": slot.number,
            "kind": slot.kind,
            "label": slot.label,
            "anchors": slot.number == record.anchor,
            "detail": _describe(slot.sealed),
        }
        for slot in record.slots
    ]
    output.table(
        ["number", "kind", "label", "anchors", "detail"],
        [(row["number"], row["kind"], row["label"], "yes" if row["anchors"] else "", row["detail"]) for row in rows],
    )
    pending = len(record.vault_keys) > 1
    if pending:
        output.line("a re-keying was interrupted: go on with `tidegate vault rekey`")
    fingerprint = hashlib.sha256(record.identity).hexdigest()[:16]
    output.line(f"fingerprint of the vault: {fingerprint}")
    output.result(
        {
            "vault": record.vault_id.hex(),
            "fingerprint": fingerprint,
            "epoch": record.epoch,
            "cipher": record.algorithm.name.lower().replace("_", "-"),
            "padding": record.padding.rule,
            "rekeying": pending,
            "unlockers": rows,
        }
    )
    return 0


def _describe(sealed: Any) -> str:
    """Return what tells one slot from another of its kind."""
    for name in ("key", "label"):
        if isinstance(sealed.get(name), str):
            return str(sealed[name])
    if "need" in sealed:
        kinds = ", ".join(share["kind"] for share in sealed["shares"])
        return f"{sealed['need']} of {len(sealed['shares'])}: {kinds}"
    return ""


def _add(arguments: argparse.Namespace, output: Output) -> int:
    with open_vault(arguments) as vault:
        slot = vault.add_unlocker(read_unlocker(arguments, new=True), label=arguments.label)
    output.line(f"added unlocker {slot.number}: {slot.kind}")
    output.result({"number": slot.number, "kind": slot.kind})
    return 0


def _remove(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.rotation import rekey

    with open_vault(arguments) as vault:
        slot = vault.remove_unlocker(arguments.number)
        output.line(f"removed unlocker {slot.number}: {slot.kind}; giving the vault new keys")
        count = rekey(vault, report=lambda done: output.progress(f"{done.done} of {done.total} items"))
    output.line(f"the vault has new keys; {count} items were written anew under them")
    output.result({"number": slot.number, "kind": slot.kind, "items": count})
    return 0


def _rekey(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.rotation import rekey

    with open_vault(arguments) as vault:
        count = rekey(
            vault,
            contents=arguments.contents,
            report=lambda done: output.progress(f"{done.done} of {done.total} items: {done.name}"),
        )
        epoch = vault.keyring.record.epoch
    what = "encrypted anew" if arguments.contents else "given new headers"
    output.line(f"the vault has new keys (epoch {epoch}); {count} items were {what}")
    output.result({"epoch": epoch, "items": count, "contents": arguments.contents})
    return 0


def _escrow_key(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.escrow import write_escrow_pair

    print_of_key = write_escrow_pair(arguments.private, arguments.public)
    output.line(f"escrow key {print_of_key}: keep {arguments.private} offline, give {arguments.public} to the vaults")
    output.result({"fingerprint": print_of_key, "private": str(arguments.private), "public": str(arguments.public)})
    return 0


def _drive_key(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.usbdrive import write_key_file

    write_key_file(arguments.file)
    output.line(f"wrote {arguments.file}: whoever has this file has what it opens")
    output.result({"file": str(arguments.file)})
    return 0


def _tang_keys(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.tang import fetch_advertisement

    prints = fetch_advertisement(arguments.url).thumbprints
    for one in prints:
        output.line(one)
    output.result({"url": arguments.url, "thumbprints": list(prints)})
    return 0
