"""``tidegate vault``: keep files encrypted at rest."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tidegate.base.durable import translate_os_errors, write_all
from tidegate.base.errors import Rejected
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.vault.store import Vault
    from tidegate.vault.unlockers import Unlocker


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = add_verb(verbs, "create", "create an empty vault in a new or empty folder")
    _add_common(create)
    create.set_defaults(run=_create)

    put = add_verb(verbs, "put", "store a file, or standard input, under a name")
    _add_common(put)
    put.add_argument("name", metavar="NAME", help="name in the vault, such as patients/17")
    put.add_argument("file", metavar="FILE", nargs="?", default="-", help="what to store; - is standard input")
    put.set_defaults(run=_put)

    get = add_verb(verbs, "get", "write an item to standard output or to a file")
    _add_common(get)
    get.add_argument("name", metavar="NAME", help="name in the vault")
    get.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="new file, readable by you alone; it is plaintext"
    )
    get.set_defaults(run=_get)

    ls = add_verb(verbs, "ls", "list the items")
    _add_common(ls)
    ls.set_defaults(run=_ls)

    rm = add_verb(verbs, "rm", "delete an item and destroy its key")
    _add_common(rm)
    rm.add_argument("name", metavar="NAME", help="name in the vault")
    rm.set_defaults(run=_rm)

    verify = add_verb(verbs, "verify", "authenticate every byte of every item; name each one that is not as written")
    _add_common(verify)
    verify.set_defaults(run=_verify)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the vault's folder")
    unlock = parser.add_mutually_exclusive_group()
    unlock.add_argument(
        "--key", metavar="URI", help="sealing key, such as file:/FOLDER?key=NAME&device-secret=/FILE (`tidegate keys`)"
    )
    unlock.add_argument(
        "--passphrase-fd", type=int, metavar="N", help="read the passphrase from this open file descriptor"
    )


def _create(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault.store import Vault

    Vault.create(arguments.folder, _unlocker(arguments)).close()
    output.line(f"created the vault {arguments.folder}")
    output.result({"vault": str(arguments.folder)})
    return 0


def _put(arguments: argparse.Namespace, output: Output) -> int:
    with _open(arguments) as vault:
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
    with _open(arguments) as vault, vault.open_item(arguments.name) as reader:
        if arguments.output is None:
            for content in reader.iter_content():
                sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return 0
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


def _ls(arguments: argparse.Namespace, output: Output) -> int:
    with _open(arguments) as vault:
        items = vault.list()
    output.table(["name", "bytes", "generation"], [(item.name, item.size_bytes, item.generation) for item in items])
    rows = [{"name": item.name, "size": item.size_bytes, "generation": item.generation} for item in items]
    output.result({"items": rows})
    return 0


def _rm(arguments: argparse.Namespace, output: Output) -> int:
    with _open(arguments) as vault:
        vault.delete(arguments.name)
    output.line(f"deleted {arguments.name} and destroyed its key")
    output.result({"deleted": arguments.name})
    return 0


def _verify(arguments: argparse.Namespace, output: Output) -> int:
    """Go on behind a damaged item, so that the answer names all of them; then fail as the first one did."""
    failures: dict[str, Rejected] = {}
    with _open(arguments) as vault:
        items = vault.list()
        for item in items:
            try:
                vault.verify(item.name)
            except Rejected as error:
                failures[item.name] = error
                output.line(f"{item.name}: {error.message} [{error.code}]")
    output.line(f"{len(items) - len(failures)} of {len(items)} items are as they were written")
    if failures:
        name, first = next(iter(failures.items()))
        raise type(first)(
            f"{len(failures)} of {len(items)} items are not as they were written; first: {name}: {first.message}",
            **{**first.fields, "item": name, "failed": len(failures)},
        )
    output.result({"items": len(items), "verified": True})
    return 0


def _open(arguments: argparse.Namespace) -> Vault:
    from tidegate.vault.store import Vault

    return Vault.open(arguments.folder, _unlocker(arguments))


def _unlocker(arguments: argparse.Namespace) -> Unlocker:
    from tidegate.vault.errors import UnlockerMissing
    from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

    if arguments.key is not None:
        from tidegate.cli.keyuri import open_keys

        return KeyStoreUnlocker(*open_keys(arguments.key))
    if arguments.passphrase_fd is not None:
        from tidegate.keys.uri import read_passphrase

        return PassphraseUnlocker(read_passphrase(Path(f"/dev/fd/{arguments.passphrase_fd}")))
    raise UnlockerMissing("nothing is given that opens the vault")
