"""Verbs of ``tidegate keys`` for sealing: a small secret in a file that one key alone opens; and keys kept in a TPM."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

_MAX_SECRET_BYTES = 65_536  # passphrases, keys, small settings; files belong into a vault
_MAX_SEALED_BYTES = _MAX_SECRET_BYTES + 1024


def build(verbs: argparse._SubParsersAction[argparse.ArgumentParser], *, key: str) -> None:
    """Add the verbs."""
    seal = add_verb(verbs, "seal", "encrypt a small secret so that only this sealing key opens it")
    seal.add_argument("key", help=key)
    seal.add_argument("file", type=Path, help="private file with the secret, or - for standard input")
    seal.add_argument("--context", default="", help="text that has to be given again to open it")
    seal.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    seal.set_defaults(run=seal_file)
    unseal = add_verb(verbs, "unseal", "open what was sealed; a key bound to PCRs names those that changed")
    unseal.add_argument("key", help=key)
    unseal.add_argument("file", type=Path, help="sealed file")
    unseal.add_argument("--context", default="", help="the text that it was sealed with")
    unseal.add_argument("-o", "--output", type=Path, required=True, help="new private file, or - for standard output")
    unseal.set_defaults(run=unseal_file)
    persist = add_verb(verbs, "persist", "keep a key in the TPM itself, at a persistent handle (tpm2: alone)")
    persist.add_argument("key", help=key)
    persist.add_argument("handle", help="0x81000002 to 0x817fffff; needs the owner's authorisation")
    persist.set_defaults(run=persist_key)


def seal_file(arguments: argparse.Namespace, output: Output) -> int:
    """Seal one secret."""
    from tidegate.base.durable import read_file_bounded, require_private, write_file_atomic
    from tidegate.base.errors import InputTooLarge
    from tidegate.cli.keyuri import open_keys
    from tidegate.crypto.aead import Secret

    store, name = open_keys(arguments.key)
    if str(arguments.file) == "-":
        secret = Secret(sys.stdin.buffer.read(_MAX_SECRET_BYTES + 1))
        if len(secret) > _MAX_SECRET_BYTES:
            raise InputTooLarge(f"a secret to be sealed has at most {_MAX_SECRET_BYTES} bytes; use a vault")
    else:
        require_private(arguments.file)
        secret = Secret(read_file_bounded(arguments.file, limit_bytes=_MAX_SECRET_BYTES))
    with secret:
        sealed = store.seal(name, secret.view(), arguments.context.encode())
    write_file_atomic(arguments.output, sealed)
    output.line(f"wrote {arguments.output}: {len(sealed)} bytes that {name} opens")
    output.result({"file": str(arguments.output), "bytes": len(sealed), "key": name})
    return 0


def unseal_file(arguments: argparse.Namespace, output: Output) -> int:
    """Open one sealed file."""
    from tidegate.base.durable import read_file_bounded, write_file_new
    from tidegate.base.errors import StorageFailed
    from tidegate.cli.keyuri import open_keys

    store, name = open_keys(arguments.key)
    sealed = read_file_bounded(arguments.file, limit_bytes=_MAX_SEALED_BYTES)
    with store.unseal(name, sealed, arguments.context.encode()) as secret:
        if str(arguments.output) == "-":
            sys.stdout.buffer.write(secret.view())
            sys.stdout.buffer.flush()
            return 0
        try:
            write_file_new(arguments.output, secret.view().tobytes(), mode=0o600)
        except FileExistsError as error:
            raise StorageFailed(f"{arguments.output} exists; a secret is written into a new file") from error
    output.line(f"wrote {arguments.output}")
    output.result({"file": str(arguments.output), "key": name})
    return 0


def persist_key(arguments: argparse.Namespace, output: Output) -> int:
    """Keep one key in the TPM."""
    from tidegate.cli.keyuri import open_keys
    from tidegate.keys.errors import CapabilityMissing, KeyNameInvalid

    try:
        handle = int(arguments.handle, 16)
    except ValueError as error:
        raise KeyNameInvalid(f"{arguments.handle!r} is no handle: write it as 0x81000010") from error
    store, name = open_keys(arguments.key)
    persist = getattr(store, "persist", None)
    if persist is None:
        raise CapabilityMissing("only a TPM opened directly (tpm2:) has persistent handles")
    persist(name, handle)
    output.line(f"{name} is at 0x{handle:08x} now")
    output.result({"key": name, "handle": f"0x{handle:08x}"})
    return 0
