"""The folder ``.fscrypt`` at the top of a file system, shared with the tool ``fscrypt``: written and read.

Touches: the file system. So a directory that we made opens with Debian's ``fscrypt unlock --key=FILE``, and one that
the tool made with a raw key opens here. Nothing in the folder is trusted: what it yields is the directory's key, or is
refused.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tidegate.base.durable import sync_folder, translate_os_errors, write_file_atomic
from tidegate.crypto.aead import Secret
from tidegate.vault import fscrypt, fscrypt_metadata
from tidegate.vault.fscrypt_layout import KEY_BYTES, Policy, key_identifier
from tidegate.vault.kernel_errors import (
    DirectoryPlain,
    MetadataExists,
    MetadataMalformed,
    MetadataMissing,
    MetadataRefused,
)

_FOLDER, _POLICIES, _PROTECTORS = ".fscrypt", "policies", "protectors"


def publish(directory: Path, key: Secret, raw_key: Secret, *, name: str) -> str:
    """Let ``fscrypt unlock --key=FILE`` open ``directory``, FILE being ``raw_key`` (32 bytes); return the protector.

    ``key`` is the directory's own; ``name`` is what the tool shows. Makes ``.fscrypt`` as ``fscrypt setup`` does (only
    root may write) if it is missing; the protector is durable before the policy names it. Raises
    ``vault.fscrypt.exists``, ``vault.directory.plain``, ``.key-size``, ``base.storage.*``.
    """
    policy = _policy(directory)
    folder = fscrypt.mount_top(directory) / _FOLDER
    files = fscrypt_metadata.plan_files(key, raw_key, name=name, policy=policy, entropy=os.urandom)
    for place in (folder, folder / _POLICIES, folder / _PROTECTORS):
        with translate_os_errors(place):
            if not place.is_dir():
                place.mkdir(mode=0o755)
                place.chmod(0o755)  # the tool reads as any user, whatever our umask
                sync_folder(place.parent)
    if (folder / _POLICIES / files.policy_name).exists():
        raise MetadataExists(f"{directory} has metadata of the fscrypt tool already", path=str(directory))
    write_file_atomic(folder / _PROTECTORS / files.protector_name, files.protector, mode=0o600)
    write_file_atomic(folder / _POLICIES / files.policy_name, files.policy, mode=0o600)
    return files.protector_name


def recover_key(directory: Path, raw_key: Secret) -> Secret:
    """Return the key of ``directory`` that a protector of ``raw_key`` (32 bytes) opens; the caller wipes it.

    Raises ``vault.fscrypt.missing``, ``.refused``, ``.malformed``, ``vault.directory.plain``, ``.key-size``,
    ``base.storage.*``. Protectors of passphrases and links to other file systems are passed over.
    """
    policy = _policy(directory)
    folder = fscrypt.mount_top(directory) / _FOLDER
    raw = _read(folder / _POLICIES / policy.identifier.hex())
    if raw is None:
        raise MetadataMissing(f"{directory} has no metadata of the fscrypt tool", path=str(directory))
    for descriptor, wrapped in fscrypt_metadata.parse_policy_record(raw).wrapped_keys:
        stored = _read(folder / _PROTECTORS / descriptor)
        if stored is None:
            continue
        protector = fscrypt_metadata.parse_protector(stored)
        if protector.source != fscrypt_metadata.SOURCE_RAW_KEY:
            continue
        try:
            with fscrypt_metadata.unwrap(raw_key, protector.wrapped) as protector_key:
                key = fscrypt_metadata.unwrap(protector_key, wrapped)
        except MetadataRefused:
            continue  # another protector's key
        if len(key) == KEY_BYTES and key_identifier(key) == policy.identifier:
            return key
        key.wipe()
    raise MetadataRefused(f"the raw key opens no protector of {directory}", path=str(directory))


def _policy(directory: Path) -> Policy:
    policy = fscrypt.status(directory).policy
    if policy is None:
        raise DirectoryPlain(f"{directory} is not encrypted", path=str(directory))
    return policy


def _read(path: Path) -> bytes | None:
    """Return a small file's content, or ``None`` if there is none; no link is followed, no pipe is waited for.

    The folder may be writable for every user (``fscrypt setup --all-users``).
    """
    with translate_os_errors(path):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise MetadataMalformed(f"{path} is not a file", path=str(path))
            return os.read(descriptor, fscrypt_metadata.MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
