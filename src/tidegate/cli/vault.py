"""``tidegate vault``: keep files encrypted at rest."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tidegate.base.durable import translate_os_errors, write_all
from tidegate.base.errors import Fault, Rejected
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output
from tidegate.cli.vault_backup import build_backup
from tidegate.cli.vault_care import build_care
from tidegate.cli.vault_kernel import build_kernel
from tidegate.cli.vault_unlock import add_unlock_options, build_unlockers, open_vault, read_unlocker

if TYPE_CHECKING:
    from tidegate.vault.store import Vault


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = add_verb(verbs, "create", "create an empty vault in a new or empty folder")
    _add_common(create)
    create.add_argument("--label", default="", metavar="TEXT", help="what people call what opens it")
    create.add_argument(
        "--padding", default="none", metavar="RULE", help="hide sizes: none (default), padme, or a block size in bytes"
    )
    create.add_argument(
        "--cipher",
        choices=("measured", "aes-256-gcm", "chacha20-poly1305"),
        default="measured",
        help="cipher of new items; default: the faster one on this machine",
    )
    create.set_defaults(run=_create)

    put = add_verb(verbs, "put", "store a file, or standard input, under a name")
    _add_common(put, item=True)
    put.add_argument("file", metavar="FILE", nargs="?", default="-", help="what to store; - is standard input")
    put.set_defaults(run=_put)

    get = add_verb(verbs, "get", "write an item to standard output or to a file")
    _add_common(get, item=True)
    get.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="new file, readable by you alone; it is plaintext"
    )
    get.set_defaults(run=_get)

    cat = add_verb(verbs, "cat", "write items to standard output, one behind the other")
    _add_common(cat)
    cat.add_argument("names", metavar="NAME", nargs="+", help="name in the vault")
    cat.set_defaults(run=_cat)

    ls = add_verb(verbs, "ls", "list the items")
    _add_common(ls)
    ls.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only names that begin with this")
    ls.set_defaults(run=_ls)

    rm = add_verb(verbs, "rm", "delete an item and destroy its key")
    _add_common(rm, item=True)
    rm.set_defaults(run=_rm)

    edit = add_verb(verbs, "edit", "change an item in an editor, in RAM alone")
    _add_common(edit, item=True)
    edit.add_argument("--editor", metavar="PROGRAM", help="default: $VISUAL, $EDITOR, or vi")
    edit.set_defaults(run=_edit)

    importing = add_verb(verbs, "import", "store every file of a directory")
    _add_common(importing)
    importing.add_argument("directory", type=Path, metavar="DIRECTORY", help="what to store; it stays as it is")
    importing.add_argument("--prefix", default="", metavar="TEXT", help="what names begin with, such as logs/")
    importing.set_defaults(run=_import)

    verify = add_verb(verbs, "verify", "authenticate every byte of the vault; name each item that is not as written")
    _add_common(verify)
    verify.set_defaults(run=_verify)

    build_unlockers(verbs)
    build_backup(verbs)
    build_care(verbs)
    build_kernel(verbs)


def _add_common(parser: argparse.ArgumentParser, *, item: bool = False) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the vault's folder")
    if item:
        parser.add_argument("name", metavar="NAME", help="name in the vault, such as patients/17")
    add_unlock_options(parser)


def _create(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.crypto.aead import AeadAlgorithm
    from tidegate.vault.store import Vault

    named = {"aes-256-gcm": AeadAlgorithm.AES_256_GCM, "chacha20-poly1305": AeadAlgorithm.CHACHA20_POLY1305}
    vault = Vault.create(
        arguments.folder,
        read_unlocker(arguments),
        label=arguments.label,
        padding=arguments.padding,
        algorithm=named.get(arguments.cipher),
    )
    with vault:
        cipher = vault.keyring.record.algorithm.name.lower().replace("_", "-")
        vault_id = vault.vault_id
    output.line(f"created the vault {arguments.folder} ({cipher}, padding {arguments.padding})")
    output.result({"vault": str(arguments.folder), "id": vault_id, "cipher": cipher, "padding": arguments.padding})
    return 0


def _put(arguments: argparse.Namespace, output: Output) -> int:
    with open_vault(arguments) as vault:
        if arguments.file == "-":
            item = vault.write_from(arguments.name, sys.stdin.buffer)
        else:
            with translate_os_errors(arguments.file):
                stream: BinaryIO = Path(arguments.file).open("rb")  # noqa: SIM115  # closed two lines below
            with stream:
                item = vault.write_from(arguments.name, stream)
    output.line(f"stored {item.name}: {item.size_bytes} bytes")
    output.result({"name": item.name, "size": item.size_bytes, "generation": item.generation})
    return 0


def _get(arguments: argparse.Namespace, output: Output) -> int:
    if arguments.output is None:
        arguments.names = [arguments.name]
        return _cat(arguments, output)
    with open_vault(arguments) as vault, vault.open_item(arguments.name) as reader:
        with translate_os_errors(arguments.output):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(arguments.output, flags, 0o600)
        try:
            for content in reader.iter_content():
                with translate_os_errors(arguments.output):
                    write_all(descriptor, content)
        except BaseException:
            arguments.output.unlink()  # the part before a damaged place is not the item
            raise
        finally:
            os.close(descriptor)
        size = reader.header.length_bytes
    output.line(f"wrote {arguments.name} to {arguments.output} as plaintext: {size} bytes")
    output.result({"name": arguments.name, "size": size, "output": str(arguments.output)})
    return 0


def _cat(arguments: argparse.Namespace, output: Output) -> int:  # noqa: ARG001  # the items are the answer
    with open_vault(arguments) as vault:
        _print_items(vault, arguments.names)
    return 0


def _print_items(vault: Vault, names: list[str]) -> None:
    for name in names:
        with vault.open_item(name) as reader:
            for content in reader.iter_content():
                sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def _ls(arguments: argparse.Namespace, output: Output) -> int:
    with open_vault(arguments) as vault:
        items = vault.list(arguments.prefix)
    output.table(
        ["name", "bytes", "generation", "modified"],
        [
            (item.name, item.size_bytes, item.generation, time.strftime("%F %T", time.gmtime(item.modified_s)))
            for item in items
        ],
    )
    rows = [
        {"name": item.name, "size": item.size_bytes, "generation": item.generation, "modified": item.modified_s}
        for item in items
    ]
    output.result({"items": rows})
    return 0


def _rm(arguments: argparse.Namespace, output: Output) -> int:
    with open_vault(arguments) as vault:
        vault.delete(arguments.name)
    output.line(f"deleted {arguments.name} and destroyed its key")
    output.result({"deleted": arguments.name})
    return 0


def _edit(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.ramedit import edit_in_ram

    editor = arguments.editor or os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with open_vault(arguments) as vault:
        old = vault.read(arguments.name) if arguments.name in vault else b""
        new = edit_in_ram(old, editor=editor, name=Path(arguments.name).name)
        changed = new != old
        if changed:
            vault.write(arguments.name, new)
    output.line(f"stored {arguments.name}: {len(new)} bytes" if changed else f"{arguments.name} was not changed")
    output.result({"name": arguments.name, "changed": changed, "size": len(new)})
    return 0


def _import(arguments: argparse.Namespace, output: Output) -> int:
    with translate_os_errors(arguments.directory):
        files = sorted(path for path in arguments.directory.rglob("*") if path.is_file() and not path.is_symlink())
        total = sum(path.stat().st_size for path in files)
    done = 0
    with open_vault(arguments) as vault:
        for number, path in enumerate(files, 1):
            name = arguments.prefix + path.relative_to(arguments.directory).as_posix()
            output.progress(f"{number} of {len(files)} files, {done >> 20} of {total >> 20} MiB: {name}")
            with translate_os_errors(path):
                stream = path.open("rb")
            with stream:
                done += vault.write_from(name, stream).size_bytes
    output.progress("")
    output.line(f"stored {len(files)} files, {done} bytes; {arguments.directory} is still there, in the clear")
    output.result({"files": len(files), "size": done})
    return 0


def _verify(arguments: argparse.Namespace, output: Output) -> int:
    """Go on behind a damaged item, so that the answer names all of them; then fail as the first one did."""
    failures: dict[str, Rejected | Fault] = {}
    count = records = 0
    with open_vault(arguments) as vault:
        for item in vault.iter_items():
            count += 1
            output.progress(f"{count} items: {item.name}")
            try:
                vault.verify(item.name)
            except (Rejected, Fault) as error:  # a bad sector is one item's too
                failures[item.name] = error
                output.line(f"{item.name}: {error.message} [{error.code}]")
        records = sum(1 for _ in vault.table_scan(b"r"))
        output.progress("")
        vault.verify_folder()
    output.line(f"{count - len(failures)} of {count} items are as they were written, and {records} records")
    if failures:
        name, first = next(iter(failures.items()))
        raise type(first)(
            f"{len(failures)} of {count} items are not as they were written; first: {name}: {first.message}",
            **{**first.fields, "item": name, "failed": len(failures)},
        )
    output.result({"items": count, "records": records, "verified": True})
    return 0
