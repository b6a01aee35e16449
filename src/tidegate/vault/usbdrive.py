"""Unlock by a key file on a removable drive, found by the label of its file system. The file is never copied.

Touches: the drive: it is looked for with ``blkid``, and mounted read-only on a folder of its own unless it is mounted
already. docs/vault.md says how to prepare one.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from tidegate.base.durable import translate_os_errors
from tidegate.base.errors import ProgramFailed
from tidegate.base.program import run_program
from tidegate.crypto import cbor
from tidegate.crypto.aead import KEY_BYTES, NONCE_BYTES, Secret, hkdf_sha256_into, open_aes256gcm_into, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed
from tidegate.crypto.memory import ProtectedSecret
from tidegate.vault.errors import DriveKeyMissing, DriveMissing, RecordMalformed, UnlockRefused
from tidegate.vault.unlockers import Anchor

MIN_KEY_BYTES, MAX_KEY_BYTES = 32, 4096
_SALT_BYTES = 32
_LABEL = re.compile(r"[A-Za-z0-9 ._+-]{1,32}")
_TIMEOUT_S = 20.0
_MOUNT_POINT = 4  # field of a line of mountinfo


class UsbUnlocker:
    """Unlock by the key file ``file`` on the drive called ``label``; ``write_key_file`` makes one."""

    kind = "usb"

    def __init__(self, label: str, file: str = "tidegate.key") -> None:
        self._label, self._file = _check(label, file)

    def wrap(self, secret: Secret, context: bytes) -> dict[str, cbor.Value]:
        salt, nonce = os.urandom(_SALT_BYTES), os.urandom(NONCE_BYTES)
        with _drive_key(self._label, self._file, salt, context) as key:
            sealed = seal_aes256gcm(key.view(), nonce, secret.view(), _bind(context, self._label, self._file))
        return {"label": self._label, "file": self._file, "salt": salt, "sealed": nonce + sealed}

    def unwrap(self, slot: Mapping[str, cbor.Value], context: bytes) -> Secret:
        match slot:
            case {
                "label": str() as label,
                "file": str() as file,
                "salt": bytes() as salt,
                "sealed": bytes() as sealed,
                **rest,
            } if not rest and len(salt) == _SALT_BYTES and len(sealed) == NONCE_BYTES + KEY_BYTES + 16:
                pass
            case _:
                raise RecordMalformed("the drive's slot of the vault's record is malformed")
        if (label, file) != (self._label, self._file):
            raise UnlockRefused(f"the vault opens with {file} on the drive {label[:32]!r}", label=label[:32])
        with _drive_key(label, file, salt, context) as key:
            try:
                return ProtectedSecret.fill(
                    KEY_BYTES,
                    lambda target: open_aes256gcm_into(
                        key.view(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bind(context, label, file), target
                    ),
                )
            except AeadFailed as error:
                raise UnlockRefused("the key file on the drive does not open the vault") from error

    def anchor(self, vault_id: bytes) -> Anchor | None:  # noqa: ARG002  # a drive is copied with its counter
        return None


def write_key_file(path: Path) -> None:
    """Write a new key file of 64 random bytes, mode 400; raise ``FileExistsError``, ``base.storage.*``."""
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
        try:
            with ProtectedSecret.random(64) as key:
                os.write(descriptor, key.view())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def find_drive(label: str) -> Path:
    """Return the device whose file system is called ``label``; raise ``vault.drive.missing`` (also for two of them)."""
    try:
        done = run_program(["blkid", "-c", "/dev/null", "-o", "device", "-t", f"LABEL={label}"], timeout_s=_TIMEOUT_S)
    except ProgramFailed as error:
        raise DriveMissing(f"no drive called {label!r} is plugged in", label=label) from error
    devices = done.stdout.decode(errors="replace").split()
    if len(devices) != 1:
        raise DriveMissing(f"{len(devices)} drives are called {label!r}", label=label)
    return Path(devices[0])


@contextlib.contextmanager
def _mounted(device: Path) -> Iterator[Path]:
    """Give a folder where the drive can be read: where it is mounted, or a read-only mount of our own."""
    wanted = device.stat().st_rdev
    mounted = _find_mount(Path("/proc/self/mountinfo").read_bytes(), f"{os.major(wanted)}:{os.minor(wanted)}")
    if mounted is not None:
        yield mounted
        return
    with tempfile.TemporaryDirectory(prefix="tidegate-drive-", dir="/run") as place:
        options = "ro,nosuid,nodev,noexec"
        try:
            run_program(["mount", "-o", options, str(device), place], timeout_s=_TIMEOUT_S)
        except ProgramFailed as error:
            raise DriveMissing(f"{device} cannot be mounted: {error.message}", device=str(device)) from error
        try:
            yield Path(place)
        finally:
            run_program(["umount", place], timeout_s=_TIMEOUT_S)


def _find_mount(mountinfo: bytes, device: str) -> Path | None:
    """Return where the device's whole file system is mounted, or None (proc_pid_mountinfo(5)).

    Spaces and the like are octal there; every other byte of a name stands as it is, whatever its encoding.
    """
    for line in mountinfo.split(b"\n"):
        fields = line.split(b" ")
        if len(fields) > _MOUNT_POINT and fields[2] == device.encode() and fields[3] == b"/":
            name = re.sub(rb"\\([0-3][0-7]{2})", lambda match: bytes([int(match[1], 8)]), fields[_MOUNT_POINT])
            return Path(os.fsdecode(name))
    return None


def _drive_key(label: str, file: str, salt: bytes, context: bytes) -> ProtectedSecret:
    """Return what the key file gives for this vault; the file's bytes go straight into secret memory."""
    with translate_os_errors(label):
        device = find_drive(label)
        with _mounted(device) as root, _read_key(root / file) as raw:
            info = b"tidegate.vault.usb " + context
            return ProtectedSecret.fill(
                KEY_BYTES, lambda target: hkdf_sha256_into(raw.view(), salt=salt, info=info, target=target)
            )


def _read_key(path: Path) -> ProtectedSecret:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise DriveKeyMissing(f"the drive has no readable file {path.name}", file=path.name) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not MIN_KEY_BYTES <= status.st_size <= MAX_KEY_BYTES:
            raise DriveKeyMissing(f"{path.name} on the drive is no key file", file=path.name, size=status.st_size)
        return ProtectedSecret.fill(status.st_size, lambda target: _read_whole(descriptor, target))
    finally:
        os.close(descriptor)


def _read_whole(descriptor: int, target: memoryview) -> None:
    done = 0
    while done < len(target):
        more = os.readv(descriptor, [target[done:]])
        if not more:
            raise DriveKeyMissing("the drive went away while its key was read")
        done += more


def _check(label: str, file: str) -> tuple[str, str]:
    """Return both; a record that was altered must not lead anywhere else."""
    parts = PurePosixPath(file).parts
    if not _LABEL.fullmatch(label) or not parts or PurePosixPath(file).is_absolute() or ".." in parts:
        raise DriveMissing(f"{label[:40]!r}, {file[:40]!r}: no label of a file system, or no path on it")
    return label, file


def _bind(context: bytes, label: str, file: str) -> bytes:
    return cbor.encode([context, label, file])
