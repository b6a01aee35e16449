"""``tidegate vault export``, ``import-age``, ``backup``, ``restore``: what leaves the vault, as age files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from tidegate.base.durable import read_file_bounded, require_private, sync_folder, translate_os_errors
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output
from tidegate.cli.vault_unlock import add_unlock_options, open_vault

if TYPE_CHECKING:
    from tidegate.vault.age_recipients import Identity, Recipient

_MAX_KEY_FILE_BYTES = 65_536


def build_backup(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verbs."""
    export = add_verb(verbs, "export", "write an item as an age file, for recipients")
    _add_folder(export)
    export.add_argument("name", metavar="NAME", help="name in the vault")
    _add_recipients(export)
    export.add_argument("--armor", action="store_true", help="as text, for mail and terminals")
    export.set_defaults(run=_export)

    importing = add_verb(verbs, "import-age", "store what an age file holds under a name")
    _add_folder(importing)
    importing.add_argument("name", metavar="NAME", help="name in the vault")
    _add_identities(importing)
    importing.set_defaults(run=_import_age)

    backup = add_verb(verbs, "backup", "write everything in the vault as one age file, for recipients")
    _add_folder(backup)
    _add_recipients(backup)
    backup.set_defaults(run=_backup)

    restore = add_verb(verbs, "restore", "put everything of a backup into the vault")
    _add_folder(restore)
    _add_identities(restore)
    restore.set_defaults(run=_restore)

    key = add_verb(verbs, "age-key", "make an age key, also against quantum computers; the file is its private half")
    key.add_argument("file", type=Path, metavar="FILE", help="new file, mode 600")
    key.add_argument("--classical", action="store_true", help="X25519 alone, which every age reads")
    key.set_defaults(run=_age_key)


def _add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the vault's folder")
    add_unlock_options(parser)


def _add_recipients(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-r", "--recipient", action="append", required=True, metavar="AGE1…", help="who can read it; may be repeated"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="new file")


def _add_identities(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the age file")
    parser.add_argument(
        "-i", "--identity", action="append", type=Path, required=True, metavar="FILE", help="private half of a key"
    )


def _export(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault import age

    with open_vault(arguments) as vault, _new_file(arguments.output) as target:
        size = vault.stat(arguments.name).size_bytes
        with vault.open_file(arguments.name) as source:
            age.encrypt(cast("BinaryIO", source), target, _recipients(arguments), armored=arguments.armor)
    output.line(f"wrote {arguments.name} to {arguments.output}: {size} bytes for {len(arguments.recipient)} recipients")
    output.result({"name": arguments.name, "size": size, "output": str(arguments.output)})
    return 0


def _import_age(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault import age

    with open_vault(arguments) as vault, _open(arguments.file) as source:
        pieces = age.decrypt(source, _identities(arguments))
        with vault.open_file(arguments.name, "w") as target:
            for piece in pieces:
                target.write(piece)
        item = vault.stat(arguments.name)
    output.line(f"stored {item.name}: {item.size_bytes} bytes")
    output.result({"name": item.name, "size": item.size_bytes, "generation": item.generation})
    return 0


def _backup(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.backup import write_backup

    with open_vault(arguments) as vault, _new_file(arguments.output) as target:
        count = write_backup(vault, target, _recipients(arguments), report=output.progress)
    output.progress("")
    output.line(f"wrote {count} items to {arguments.output}, for {len(arguments.recipient)} recipients")
    output.result({"items": count, "output": str(arguments.output)})
    return 0


def _restore(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.backup import read_backup

    with open_vault(arguments) as vault, _open(arguments.file) as source:
        count = read_backup(vault, source, _identities(arguments), report=output.progress)
    output.progress("")
    output.line(f"stored {count} items of {arguments.file}")
    output.result({"items": count})
    return 0


def _age_key(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.base.durable import write_all
    from tidegate.vault.age_recipients import HybridIdentity, X25519Identity

    identity = X25519Identity.generate() if arguments.classical else HybridIdentity.generate()
    recipient = identity.recipient().encode()
    with _new_file(arguments.file) as target, identity.encode() as text:
        write_all(target.fileno(), f"# public key: {recipient}\n".encode())
        write_all(target.fileno(), text.view())
        write_all(target.fileno(), b"\n")
    identity.wipe()
    output.line(recipient)
    output.result({"recipient": recipient, "file": str(arguments.file)})
    return 0


def _recipients(arguments: argparse.Namespace) -> list[Recipient]:
    from tidegate.vault.age_recipients import parse_recipient

    return [parse_recipient(text) for text in arguments.recipient]


def _identities(arguments: argparse.Namespace) -> list[Identity]:
    from tidegate.vault.age_recipients import parse_identities

    found: list[Identity] = []
    for path in arguments.identity:
        require_private(path)
        found += parse_identities(read_file_bounded(path, limit_bytes=_MAX_KEY_FILE_BYTES))
    return found


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Give a new file of mode 600, durable at the end; removed if anything fails."""
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as target:
            yield target
            with translate_os_errors(path):
                target.flush()
                os.fsync(target.fileno())
        with translate_os_errors(path):
            sync_folder(path.parent)
    except BaseException:
        path.unlink()
        raise


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    with translate_os_errors(path):
        stream = path.open("rb")
    with stream:
        yield stream
