"""A device's storage as it lies in a folder: two slots, a data image, a protected ROM.

Touches: the files that stand for partitions and fuses. Layout: docs/formats/storage.md.

- ``slot-a.img``, ``slot-b.img``: one image each, written by ``update`` alone
- ``data.img``: 1 MiB of raw state (boot record at 0, update journal at 64 KiB), then an ext4 file system
- ``rom/``: ``anchors.cbor`` (the maker's keys), ``policy-anchors.cbor`` (the owner's), ``hardware``, ``device-secret``
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tidegate.base.blockdev import FileBlockDevice, create_device_file
from tidegate.base.clock import Entropy
from tidegate.base.durable import read_file_bounded, translate_os_errors, write_file_atomic, write_file_new
from tidegate.base.errors import Fault, StorageFailed
from tidegate.base.program import run_program
from tidegate.boot.control import RecordBootControl
from tidegate.boot.errors import (
    DeviceIdBurnt,
    DeviceKeystoreInvalid,
    DeviceNameInvalid,
    DeviceSizeInvalid,
    NotProvisioned,
)
from tidegate.boot.slots import SLOT_NAMES
from tidegate.crypto.trust import MAX_TRUST_BYTES, TrustPolicy, parse_trust
from tidegate.image.manifest import NAME_PATTERN
from tidegate.image.verify import AcceptanceRule, ImageSource

STATE_BYTES = 1 << 20
JOURNAL_OFFSET = 65_536
MIN_SLOT_BYTES = 1 << 20
MAX_KEYSTORE_BYTES = 1024  # of the key URI that says where a device's keys are
SOFTWARE_KEYSTORE = "file:{data}/keys?device-secret={rom}/device-secret"
MIN_DATA_BYTES = STATE_BYTES + (4 << 20)  # ext4 with its journal needs some room


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSizes:
    """How large to make each part, in bytes."""

    slot: int
    data: int


class DeviceStorage:
    """The storage in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rom = folder / "rom"

    @classmethod
    def provision(
        cls,
        folder: Path,
        sizes: StorageSizes,
        *,
        maker: TrustPolicy,
        owner: TrustPolicy,
        hardware: str,
        entropy: Entropy,
    ) -> DeviceStorage:
        """Create slots, data image (formatted) and ROM, all or nothing; a fresh device secret is drawn into the ROM.

        Raises ``base.storage.failed`` where any of them exists already, ``base.storage.*``, ``base.program.*``.
        """
        storage = cls(folder)
        if not re.fullmatch(NAME_PATTERN, hardware):
            raise DeviceNameInvalid(f"{hardware!r} is no hardware id", hardware=hardware)
        if sizes.slot < MIN_SLOT_BYTES:
            raise DeviceSizeInvalid(f"a slot of {sizes.slot} bytes holds no image", size=sizes.slot)
        for path in storage._parts():
            if path.exists():
                raise StorageFailed(f"{path} exists already; no part of a device is replaced", path=str(path))
        try:
            storage._make_rom(maker, owner, hardware, entropy.random_bytes(32))
            storage._make_devices(sizes)
        except BaseException:
            storage._remove_parts()
            raise
        return storage

    @property
    def data_path(self) -> Path:
        """Return the data image."""
        return self.folder / "data.img"

    def data_kib(self) -> str:
        """Return the size of the file system inside the data image, as mkfs wants it."""
        return f"{(self.data_path.stat().st_size - STATE_BYTES) // 1024}k"

    def slot_path(self, name: str) -> Path:
        """Return the image of one slot."""
        return self.folder / f"slot-{name}.img"

    def maker_rule(self) -> AcceptanceRule:
        """Return what the ROM accepts as an image; the floor is 0 here, the boot state may raise it."""
        return AcceptanceRule(
            trust=self._anchors("anchors.cbor"),
            hardware=self._text("hardware", limit_bytes=64),
            security_floor=0,
        )

    def owner_trust(self) -> TrustPolicy:
        """Return whose policies the ROM accepts."""
        return self._anchors("policy-anchors.cbor")

    @contextmanager
    def opened(self, *, writable: bool) -> Iterator[OpenStorage]:
        """Open every part; closed again at the end."""
        if not self.data_path.exists():
            raise NotProvisioned(f"{self.folder} holds no provisioned storage", path=str(self.folder))
        with ExitStack() as stack:
            slots = {
                name: stack.enter_context(FileBlockDevice(self.slot_path(name), writable=writable))
                for name in SLOT_NAMES
            }
            yield OpenStorage(
                slots=slots, state=stack.enter_context(FileBlockDevice(self.data_path, writable=writable))
            )

    @contextmanager
    def opened_for_boot(self) -> Iterator[tuple[dict[str, ImageSource], FileBlockDevice]]:
        """Open the slots for reading and the state for writing; a slot that is not there answers with its fault."""
        with ExitStack() as stack:
            slots: dict[str, ImageSource] = {}
            for name in SLOT_NAMES:
                try:
                    slots[name] = stack.enter_context(FileBlockDevice(self.slot_path(name)))
                except Fault as error:
                    slots[name] = _AbsentSlot(error)
            yield slots, stack.enter_context(FileBlockDevice(self.data_path, writable=True))

    def device_id(self) -> str:
        """Return the id that the factory burnt in; raise ``boot.device.not-provisioned``."""
        return self._text("device-id", limit_bytes=64)

    def require_blank(self) -> None:
        """Raise ``boot.device.id-burnt`` if the factory has given this device its id already."""
        if (self.rom / "device-id").exists():
            raise DeviceIdBurnt(f"this device is {self.device_id()} already")

    def keystore(self, data: Path) -> str:
        """Return the key URI of the device's key store; ``data`` is our folder on the mounted data file system.

        What the factory burnt in may say ``{data}`` and ``{rom}``; without it the keys are software keys that the ROM's
        secret opens.
        """
        path = self.rom / "keystore"
        text = self._text("keystore", limit_bytes=MAX_KEYSTORE_BYTES) if path.exists() else SOFTWARE_KEYSTORE
        return self.place(text, data)

    def place(self, template: str, data: Path) -> str:
        """Return a key URI with this device's folders in the places of ``{data}`` and ``{rom}``."""
        return template.replace("{data}", quote(str(data))).replace("{rom}", quote(str(self.rom)))

    def burn_keystore(self, template: str) -> None:
        """Write into the ROM of a device that is still blank where its keys are.

        Raises ``boot.device.id-burnt``, and ``boot.device.keystore`` for a text that could not be read back.
        """
        self.require_blank()
        if not template.isascii() or not 0 < len(template) <= MAX_KEYSTORE_BYTES:
            raise DeviceKeystoreInvalid(f"a key URI in the ROM has 1 to {MAX_KEYSTORE_BYTES} ASCII characters")
        write_file_atomic(self.rom / "keystore", template.encode(), mode=0o444)

    def burn_device_id(self, device: str) -> None:
        """Write the device's id into the ROM, once; raise ``boot.device.id-burnt`` if it has one."""
        try:
            write_file_new(self.rom / "device-id", device.encode(), mode=0o444)
        except FileExistsError as error:
            raise DeviceIdBurnt(f"this device is {self.device_id()} already") from error

    def _parts(self) -> tuple[Path, ...]:
        return (self.rom, self.data_path, *(self.slot_path(name) for name in SLOT_NAMES))

    def _make_rom(self, maker: TrustPolicy, owner: TrustPolicy, hardware: str, secret: bytes) -> None:
        with translate_os_errors(self.rom):
            self.rom.mkdir(mode=0o700, parents=True)
        write_file_atomic(self.rom / "anchors.cbor", maker.encode(), mode=0o444)
        write_file_atomic(self.rom / "policy-anchors.cbor", owner.encode(), mode=0o444)
        write_file_atomic(self.rom / "hardware", hardware.encode(), mode=0o444)
        write_file_atomic(self.rom / "device-secret", secret, mode=0o400)
        with translate_os_errors(self.rom):
            self.rom.chmod(0o500)

    def _make_devices(self, sizes: StorageSizes) -> None:
        for name in SLOT_NAMES:
            create_device_file(self.slot_path(name), sizes.slot)
        create_device_file(self.data_path, max(sizes.data, MIN_DATA_BYTES))
        run_program(["mkfs.ext4", "-q", "-F", "-E", f"offset={STATE_BYTES}", str(self.data_path), self.data_kib()])
        with FileBlockDevice(self.data_path, writable=True) as device:
            RecordBootControl.provision(device)

    def _remove_parts(self) -> None:
        """Take back what was made; it was not there before."""
        if self.rom.exists():
            self.rom.chmod(0o700)
            shutil.rmtree(self.rom)
        for path in self._parts():
            path.unlink(missing_ok=True)

    def _anchors(self, name: str) -> TrustPolicy:
        return parse_trust(read_file_bounded(self._rom_file(name), limit_bytes=MAX_TRUST_BYTES))

    def _text(self, name: str, *, limit_bytes: int) -> str:
        raw = read_file_bounded(self._rom_file(name), limit_bytes=limit_bytes)
        try:
            return raw.decode("ascii")
        except UnicodeDecodeError as error:
            raise NotProvisioned(f"{self.rom / name} holds no name", path=str(self.rom / name)) from error

    def _rom_file(self, name: str) -> Path:
        path = self.rom / name
        if not os.access(path, os.R_OK):
            raise NotProvisioned(f"{path} is missing: the device was not provisioned", path=str(path))
        return path


class _AbsentSlot:
    """A slot whose storage could not even be opened: every read raises why."""

    size_bytes = 0

    def __init__(self, error: Fault) -> None:
        self._error = error

    def read_at(self, offset: int, count: int) -> bytes:  # noqa: ARG002  # the interface's
        raise self._error


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStorage:
    """The open parts of a storage: slots by name, and the partition with the raw state."""

    slots: dict[str, FileBlockDevice]
    state: FileBlockDevice
