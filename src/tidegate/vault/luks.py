"""LUKS2 volumes: formatted, described, opened and closed with ``cryptsetup``.

Touches: block devices (or files), the program ``cryptsetup``, ``/proc`` and ``/sys``. A key goes through a pipe to the
program's standard input: never into arguments, an environment or a file. Promises no integrity: AES-XTS hides content,
but whoever holds the device can put older sectors back, and change the header (a denial of service, no disclosure).
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from uuid import UUID, uuid4

from tidegate.base.durable import translate_os_errors
from tidegate.base.errors import ProgramFailed
from tidegate.base.program import find_program
from tidegate.crypto.aead import Secret
from tidegate.vault import luks_layout as layout
from tidegate.vault.kernel_errors import (
    VolumeBackupExists,
    VolumeBusy,
    VolumeErased,
    VolumeKeyWrong,
    VolumeMalformed,
    VolumeNoDeviceMapper,
    VolumeNotBlank,
    VolumeNotOpen,
    VolumeTooSmall,
)
from tidegate.vault.luks_layout import VolumeHeader, VolumeToken

# Where file systems, partition tables, RAID and LVM keep their marks: in the first and the last MiB.
_LOOK_BYTES = 1 << 20
_MIN_BYTES = 2 * layout.HEADER_BYTES
_TIMEOUT_S = 60.0
_MAX_ANSWER_BYTES = 8 << 20
# cryptsetup(8), "RETURN CODES"
_WRONG_KEY, _WRONG_DEVICE, _BUSY = 2, 4, 5


def format_volume(
    device: Path, key: Secret, *, volume: UUID | None = None, label: str = "tidegate", overwrite: bool = False
) -> UUID:
    """Make ``device`` an empty LUKS2 volume that ``key`` (64 random bytes) opens; return its id (``volume`` or new).

    All that was on it is lost, so a device whose first or last MiB is not erased is refused unless ``overwrite``.
    AES-256-XTS; header of 1 MiB with three key slots. Raises ``vault.volume.not-blank``, ``.too-small``, ``.busy``,
    ``.key-size``, ``.name`` (the label), ``base.program.*``, ``base.storage.*``.
    """
    layout.require_key(key)
    layout.require_label(label)
    volume = volume or uuid4()
    require_blank(device, overwrite=overwrite)
    _run(layout.plan_format(_path(device), volume_id=str(volume), label=label), stdin=key.view())
    return volume


def require_blank(device: Path, *, overwrite: bool = False) -> None:
    """Refuse a device that is in use, too small, or not erased (all bytes 00 or FF); ``overwrite`` skips the last.

    Raises ``vault.volume.not-blank``, ``.too-small``, ``.busy``, ``base.storage.*``.
    """
    with translate_os_errors(device):
        try:
            descriptor = os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise VolumeBusy(f"{device} is in use", device=str(device)) from error
            raise
        try:
            size = os.lseek(descriptor, 0, os.SEEK_END)
            if size < _MIN_BYTES:
                raise VolumeTooSmall(f"{device} has {size} bytes, a volume needs {_MIN_BYTES}", size=size)
            marks = os.pread(descriptor, _LOOK_BYTES, 0) + os.pread(descriptor, _LOOK_BYTES, size - _LOOK_BYTES)
        finally:
            os.close(descriptor)
    if not overwrite and marks.strip(b"\x00\xff"):
        raise VolumeNotBlank(f"{device} is not erased", device=str(device))


def add_token(device: Path, token: VolumeToken) -> None:
    """Note in the header which key of which vault opens it; raises ``vault.volume.malformed``, ``base.program.*``."""
    command = ["cryptsetup", "token", "import", "--json-file", "-", _path(device)]
    _run(command, stdin=memoryview(layout.encode_token(token)))


def export_token(device: Path, number: int) -> bytes:
    """Return token ``number`` as cryptsetup keeps it; raises ``vault.volume.malformed``, ``base.program.failed``."""
    return _run(["cryptsetup", "token", "export", "--token-id", str(int(number)), _path(device)])


def dump(device: Path) -> VolumeHeader:
    """Return what the header says; needs no key. Raises ``vault.volume.malformed``, ``base.storage.*``."""
    with translate_os_errors(device):
        os.close(os.open(device, os.O_RDONLY | os.O_CLOEXEC))
    try:
        raw = _run(["cryptsetup", "luksDump", "--batch-mode", "--dump-json-metadata", _path(device)])
    except ProgramFailed as failed:
        raise VolumeMalformed(f"{device} has no LUKS2 header: {failed.message}", device=str(device)) from failed
    return layout.parse_header(raw)


def volume_id(device: Path) -> UUID:
    """Return the volume's id; raises ``vault.volume.malformed``, ``base.storage.*``."""
    dump(device)
    raw = _run(["cryptsetup", "luksUUID", _path(device)])
    try:
        return UUID(raw.decode().strip())
    except ValueError as error:
        raise VolumeMalformed(f"{device}: the volume's id is no UUID", device=str(device)) from error


def check_key(device: Path, key: Secret) -> None:
    """Return if ``key`` opens a key slot, without opening the volume; needs no device mapper.

    Raises ``vault.volume.wrong-key``, ``.erased``, ``.malformed``, ``.key-size``, ``base.program.*``.
    """
    layout.require_key(key)
    _require_slots(device)
    _run(layout.plan_check(_path(device)), stdin=key.view())


def header_backup(device: Path, path: Path) -> None:
    """Copy the header with its key slots into a new file ``path``, readable by its owner alone.

    Who has the copy and an old key can open the volume, even after the slot was erased on the device. Raises
    ``vault.volume.backup-exists``, ``.malformed``, ``base.program.*``.
    """
    dump(device)
    if os.path.lexists(path):
        raise VolumeBackupExists(f"{path} exists", path=str(path))
    _run(["cryptsetup", "luksHeaderBackup", "--batch-mode", "--header-backup-file", _path(path), _path(device)])
    with translate_os_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.fchmod(descriptor, 0o400)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_volume(device: Path, name: str, key: Secret) -> Path:
    """Open ``device`` as ``/dev/mapper/NAME`` and return that path.

    Raises ``vault.volume.no-device-mapper``, ``.wrong-key``, ``.erased``, ``.malformed``, ``.name``, ``.busy``,
    ``.key-size``, ``base.program.*``.
    """
    layout.require_key(key)
    layout.require_name(name)
    _require_slots(device)
    _run(layout.plan_open(_path(device), name), stdin=key.view(), mapper=True)
    return Path("/dev/mapper") / name


def close_volume(name: str) -> None:
    """Close a mapping, which wipes its key from the kernel.

    Raises ``vault.volume.no-device-mapper``, ``.not-open``, ``.busy``, ``.name``, ``base.program.*``.
    """
    layout.require_name(name)
    try:
        _run(["cryptsetup", "close", "--batch-mode", name], mapper=True)
    except ProgramFailed as failed:
        if failed.fields.get("status") == _WRONG_DEVICE:
            raise VolumeNotOpen(f"no mapping {name} is open", name=name) from failed
        raise


def erase_volume(device: Path) -> None:
    """Destroy every key slot: without a backup of the header nobody can open the volume again.

    Flash may keep the old blocks until it reuses them. Raises ``vault.volume.malformed``, ``base.program.*``.
    """
    dump(device)
    _run(["cryptsetup", "erase", "--batch-mode", _path(device)])


def open_mappings(volume: UUID, *, blocks: Path = Path("/sys/block")) -> tuple[str, ...]:
    """Return the names under which the volume is open now; ``blocks`` is where the kernel lists block devices."""
    names = []
    for entry in sorted(blocks.glob("dm-*/dm")):
        with translate_os_errors(entry):
            kind, _, rest = (entry / "uuid").read_text().strip().rpartition("CRYPT-LUKS2-")
            if not kind and rest.startswith(f"{volume.hex}-"):
                names.append((entry / "name").read_text().strip())
    return tuple(names)


def device_mapper_present() -> bool:
    """Say whether the kernel has a device mapper now."""
    with translate_os_errors("/proc/misc"):
        return any(line.split()[1:] == ["device-mapper"] for line in Path("/proc/misc").read_text().splitlines())


def _require_slots(device: Path) -> None:
    if not dump(device).keyslots:
        raise VolumeErased(f"{device} has no key slot left", device=str(device))


def _path(path: Path) -> str:
    """Return a path that no program takes for an option."""
    return str(path.absolute())


def _run(command: list[str], *, stdin: memoryview | None = None, mapper: bool = False) -> bytes:
    """Run cryptsetup and return its answer; ``stdin`` is not copied into ``bytes``, as ``base.program`` would have it.

    Which failure it was is told by the exit code, and for the device mapper by the kernel: never by the message.
    """
    program = [find_program(command[0]), *command[1:]]
    feed = subprocess.DEVNULL if stdin is None else subprocess.PIPE
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    with subprocess.Popen(
        program, stdin=feed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        try:
            answer, said = process.communicate(stdin, timeout=_TIMEOUT_S)  # type: ignore[arg-type]  # any buffer does
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise ProgramFailed(f"cryptsetup did not end within {_TIMEOUT_S:g} s", program="cryptsetup") from error
    if process.returncode == 0 and len(answer) <= _MAX_ANSWER_BYTES:
        return bytes(answer)
    message = f"cryptsetup {command[1]}: {bytes(said).decode(errors='replace').strip()[-400:]}"
    if mapper and not device_mapper_present():
        raise VolumeNoDeviceMapper(message)
    if process.returncode == _WRONG_KEY and stdin is not None:
        raise VolumeKeyWrong(message)
    if process.returncode == _BUSY:
        raise VolumeBusy(message)
    raise ProgramFailed(message, program="cryptsetup", status=process.returncode)
