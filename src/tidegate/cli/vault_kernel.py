"""``tidegate vault dir-*``, ``lock`` and ``volume-*``: what the kernel encrypts with keys that the vault keeps."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidegate.base.durable import translate_os_errors
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.crypto.aead import Secret
    from tidegate.vault.fscrypt import DirectoryStatus
    from tidegate.vault.store import Vault


def build_kernel(verbs: argparse._SubParsersAction[Any]) -> None:
    """Add the verbs of encrypted directories and volumes."""
    _build_directories(verbs)
    _build_volumes(verbs)


def _build_directories(verbs: argparse._SubParsersAction[Any]) -> None:
    create = add_verb(verbs, "dir-create", "have the kernel encrypt a new or empty directory")
    _add_directory(create)
    _add_vault(create, required=True)
    _add_raw_key(create, "let `fscrypt unlock --key=FILE` open it too: FILE's 32 bytes come from this descriptor")
    create.set_defaults(run=_dir_create)

    unlock = add_verb(verbs, "dir-unlock", "make an encrypted directory readable until it is locked")
    _add_directory(unlock)
    _add_vault(unlock, required=False)
    _add_raw_key(unlock, "instead of the vault: the raw key (32 bytes) of a protector of the fscrypt tool")
    unlock.set_defaults(run=_dir_unlock)

    lock = add_verb(verbs, "lock", "wipe the keys of encrypted directories from the kernel; needs no key")
    lock.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="encrypted directory")
    lock.set_defaults(run=_lock)

    status = add_verb(
        verbs, "dir-status", "say how a directory is encrypted and whether it is open; exits 1 for a plain one"
    )
    _add_directory(status)
    status.set_defaults(run=_dir_status)


def _build_volumes(verbs: argparse._SubParsersAction[Any]) -> None:
    volume_format = add_verb(verbs, "volume-format", "make an erased device an encrypted volume (LUKS2)")
    _add_device(volume_format)
    _add_vault(volume_format, required=True)
    volume_format.add_argument("--label", default="tidegate", metavar="TEXT", help="the volume's label")
    volume_format.add_argument("--overwrite", action="store_true", help="destroy what is on the device")
    volume_format.set_defaults(run=_volume_format)

    volume_open = add_verb(verbs, "volume-open", "open a volume as /dev/mapper/NAME")
    _add_device(volume_open)
    volume_open.add_argument("name", metavar="NAME", help="name of the mapping")
    _add_vault(volume_open, required=True)
    volume_open.set_defaults(run=_volume_open)

    close = add_verb(verbs, "volume-close", "close a volume and wipe its key from the kernel")
    close.add_argument("name", metavar="NAME", help="name of the mapping")
    close.set_defaults(run=_volume_close)

    status = add_verb(verbs, "volume-status", "say what a volume's header holds and whether it is open")
    _add_device(status)
    status.set_defaults(run=_volume_status)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the directory")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", type=Path, metavar="DEVICE", help="block device, or a file")


def _add_vault(parser: argparse.ArgumentParser, *, required: bool) -> None:
    from tidegate.cli.vault_unlock import add_unlock_options

    parser.add_argument(
        "--vault", dest="folder", type=Path, required=required, metavar="FOLDER", help="the vault that keeps the key"
    )
    parser.add_argument(
        "--key-name",
        metavar="NAME",
        help="the key's name in the vault; default: by the directory's path, the volume's id",
    )
    add_unlock_options(parser)


def _add_raw_key(parser: argparse.ArgumentParser, purpose: str) -> None:
    parser.add_argument("--raw-key-fd", type=int, metavar="N", help=purpose)


def _dir_create(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault import fscrypt_tool
    from tidegate.vault.fscrypt import EncryptedDirectory

    name = _directory_key_name(arguments)
    with _raw_key(arguments) as raw_key, _vault_key(arguments, name, create=True) as key:
        directory = EncryptedDirectory.create(arguments.directory, key)
        protector = None
        if raw_key is not None:
            protector = fscrypt_tool.publish(arguments.directory, key, raw_key, name="tidegate")
    output.line(f"{arguments.directory} is encrypted and unlocked; its key is {name!r} in {arguments.folder}")
    if protector is not None:
        output.line(f"`fscrypt unlock {arguments.directory} --key=FILE` opens it too (protector {protector})")
    output.result({**_describe(directory.status()), "key_name": name, "protector": protector})
    return 0


def _dir_unlock(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault import fscrypt_tool
    from tidegate.vault.errors import UnlockerMissing
    from tidegate.vault.fscrypt import EncryptedDirectory

    directory = EncryptedDirectory(arguments.directory)
    with _raw_key(arguments) as raw_key:
        if raw_key is not None:
            with fscrypt_tool.recover_key(arguments.directory, raw_key) as key:
                directory.unlock(key)
        elif arguments.folder is None:
            raise UnlockerMissing("give --vault FOLDER or --raw-key-fd N")
        else:
            with _vault_key(arguments, _directory_key_name(arguments), create=False) as key:
                directory.unlock(key)
    output.line(f"{arguments.directory} is unlocked")
    output.result(_describe(directory.status()))
    return 0


def _lock(arguments: argparse.Namespace, output: Output) -> int:
    """Lock all of them, then fail as the first one did."""
    from tidegate.vault.fscrypt import lock_directories

    outcomes = lock_directories(arguments.directories)
    for outcome in outcomes:
        said = "locked" if outcome.error is None else f"{outcome.error.message} [{outcome.error.code}]"
        output.line(f"{outcome.directory}: {said}")
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        raise errors[0]
    output.result({"locked": [str(outcome.directory) for outcome in outcomes]})
    return 0


def _dir_status(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault import fscrypt

    status = fscrypt.status(arguments.directory)
    output.result(_describe(status))
    if status.policy is None or status.key is None:
        output.line(f"{arguments.directory} is not encrypted")
        return 1
    state = {"present": "unlocked", "absent": "locked"}.get(
        status.key.state.name.lower(), "locked, but files that are still open stay readable"
    )
    output.line(f"{arguments.directory} is encrypted and {state}")
    output.line(f"  key       {status.policy.identifier.hex()}")
    output.line(f"  contents  {status.policy.contents.name}")
    output.line(f"  names     {status.policy.names.name}, padded to {status.policy.padding_bytes} bytes")
    return 0


def _describe(status: DirectoryStatus) -> dict[str, object]:
    if status.policy is None or status.key is None:
        return {"encrypted": False}
    return {
        "encrypted": True,
        "unlocked": status.unlocked,
        "key_state": status.key.state.name.lower().replace("_", "-"),
        "key": status.policy.identifier.hex(),
        "contents": status.policy.contents.name,
        "names": status.policy.names.name,
        "padding": status.policy.padding_bytes,
    }


def _volume_format(arguments: argparse.Namespace, output: Output) -> int:
    """The key is in the vault before the volume needs it, and the device is looked at before the key is made."""
    from uuid import uuid4

    from tidegate.cli.vault_unlock import open_vault
    from tidegate.vault import luks
    from tidegate.vault.luks_layout import KEY_BYTES, VolumeToken

    luks.require_blank(arguments.device, overwrite=arguments.overwrite)
    volume = uuid4()
    name = arguments.key_name or f"volume/{volume}"
    with (
        open_vault(arguments) as vault,
        vault.application_key(name, size_bytes=KEY_BYTES, create=True) as key,
    ):
        vault_id = vault.vault_id
        luks.format_volume(arguments.device, key, volume=volume, label=arguments.label, overwrite=arguments.overwrite)
        luks.add_token(arguments.device, VolumeToken(vault_id=vault_id, key_name=name))
        luks.check_key(arguments.device, key)
    output.line(f"{arguments.device} is the empty volume {volume}; its key is {name!r} in {arguments.folder}")
    output.result({"volume": str(volume), "key_name": name, "vault": vault_id})
    return 0


def _volume_open(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.cli.vault_unlock import open_vault
    from tidegate.vault import luks
    from tidegate.vault.luks_layout import KEY_BYTES

    header = luks.dump(arguments.device)
    with open_vault(arguments) as vault:
        name = arguments.key_name or header.key_name(vault.vault_id)
        with vault.application_key(name, size_bytes=KEY_BYTES, create=False) as key:
            mapping = luks.open_volume(arguments.device, arguments.name, key)
    output.line(f"{arguments.device} is open as {mapping}")
    output.result({"mapping": str(mapping), "key_name": name})
    return 0


def _volume_close(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault import luks

    luks.close_volume(arguments.name)
    output.line(f"{arguments.name} is closed")
    output.result({"closed": arguments.name})
    return 0


def _volume_status(arguments: argparse.Namespace, output: Output) -> int:
    from tidegate.vault import luks

    header = luks.dump(arguments.device)
    volume = luks.volume_id(arguments.device)
    mappings = luks.open_mappings(volume)
    output.line(f"{arguments.device} is the LUKS2 volume {volume}, {'open' if mappings else 'closed'}")
    output.line(f"  cipher     {header.cipher}, sectors of {header.sector_bytes} bytes")
    output.line(f"  key slots  {', '.join(header.keyslots) or 'none: erased'}")
    for mapping in mappings:
        output.line(f"  open as    /dev/mapper/{mapping}")
    for token in header.tokens:
        output.line(f"  token      key {token.key_name!r} of vault {token.vault_id}, slots {', '.join(token.keyslots)}")
    output.result(
        {
            "volume": str(volume),
            "cipher": header.cipher,
            "keyslots": header.keyslots,
            "tokens": [{"vault": token.vault_id, "key": token.key_name} for token in header.tokens],
            "foreign_tokens": header.foreign_tokens,
            "open_as": mappings,
        }
    )
    return 0


def _directory_key_name(arguments: argparse.Namespace) -> str:
    """Return the key's name in the vault: each path has its own key, so that locking one locks no other."""
    return arguments.key_name or f"directory{arguments.directory.resolve()}"


@contextmanager
def _vault_key(arguments: argparse.Namespace, name: str, *, create: bool) -> Iterator[Secret]:
    from tidegate.cli.vault_unlock import open_vault
    from tidegate.vault.fscrypt_layout import KEY_BYTES

    vault: Vault
    with open_vault(arguments) as vault, vault.application_key(name, size_bytes=KEY_BYTES, create=create) as key:
        yield key


@contextmanager
def _raw_key(arguments: argparse.Namespace) -> Iterator[Secret | None]:
    """Read the raw key of the fscrypt tool from its descriptor, if one was given."""
    from tidegate.crypto.aead import Secret
    from tidegate.vault.fscrypt_metadata import RAW_KEY_BYTES
    from tidegate.vault.kernel_errors import DirectoryKeySize

    if arguments.raw_key_fd is None:
        yield None
        return
    # One byte of room more tells a longer file from a key.
    with Secret(bytes(RAW_KEY_BYTES + 1)) as room:
        count = 0
        with translate_os_errors(f"/dev/fd/{arguments.raw_key_fd}"):
            while count < len(room) and (read := os.readv(arguments.raw_key_fd, [room.view()[count:]])):
                count += read
        if count != RAW_KEY_BYTES:
            raise DirectoryKeySize(
                f"the raw key on descriptor {arguments.raw_key_fd} does not have {RAW_KEY_BYTES} bytes"
            )
        with Secret(bytes(RAW_KEY_BYTES)) as raw_key:
            raw_key.view()[:] = room.view()[:RAW_KEY_BYTES]
            yield raw_key
