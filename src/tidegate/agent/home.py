"""Where a running device keeps things, and the way to open each of them.

Touches: the folder ``tidegate`` on the data file system, the run folder (memory), the storage below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tidegate.agent.errors import FloorMalformed
from tidegate.base.clock import Clock, Entropy
from tidegate.base.durable import read_file_bounded, write_file_atomic
from tidegate.boot.log import BootLog
from tidegate.boot.storage import DeviceStorage
from tidegate.crypto.cose import MAX_ENVELOPE_BYTES
from tidegate.events.spool import EventLog
from tidegate.keys.store import KeyStore
from tidegate.keys.uri import open_store, parse_key_uri

SOCKET = "agent.sock"
VAULT_SOCKET = "vault.sock"
_FLOOR = re.compile(rb"([0-9]{1,10}) ([0-9a-f]{64})\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHome:
    """The paths of one device. ``data`` is the mounted data file system, ``run`` lives until the next boot."""

    storage: DeviceStorage
    data: Path
    run: Path

    @property
    def folder(self) -> Path:
        """Return our folder on the data file system."""
        return self.data / "tidegate"

    @property
    def events(self) -> Path:
        """Return the event log's folder."""
        return self.folder / "events"

    @property
    def firewall_state(self) -> Path:
        """Return where the firewall keeps its pending and its last confirmed ruleset."""
        return self.folder / "firewall"

    @property
    def policy_paths(self) -> tuple[Path, Path]:
        """Return the two copies of the confirmed policy: one damaged block must not close the device."""
        return self.folder / "policy.cose", self.folder / "policy.copy.cose"

    @property
    def policy_floor(self) -> Path:
        """Return where the newest confirmed policy's version and digest are kept."""
        return self.folder / "policy-floor"

    @property
    def vault(self) -> Path:
        """Return the vault's folder."""
        return self.folder / "vault"

    @property
    def vault_marks(self) -> tuple[Path, Path]:
        """Return the notes that the vault is locked, and that it is being erased: a power cut lifts neither."""
        return self.folder / "vault-locked", self.folder / "vault-erasing"

    @property
    def erase_receipt(self) -> Path:
        """Return where the receipt of the vault's erasure is kept."""
        return self.folder / "erase-receipt.cose"

    @property
    def boot_log(self) -> BootLog:
        """Return this boot's log."""
        return BootLog(self.run)

    def device_id(self) -> str:
        """Return the id that the factory burnt into the ROM."""
        return self.storage.device_id()

    def boot_id(self, entropy: Entropy) -> str:
        """Return the id of this boot: drawn once, kept in memory until the next one."""
        path = self.run / "boot-id"
        if not path.exists():
            write_file_atomic(path, entropy.random_bytes(8).hex().encode())
        return read_file_bounded(path, limit_bytes=64).decode()

    def open_keys(self) -> KeyStore:
        """Return the device's key store: the one whose URI the factory burnt into the ROM."""
        return open_store(parse_key_uri(self.storage.keystore(self.folder)))

    def open_events(self, keys: KeyStore, clock: Clock, entropy: Entropy) -> EventLog:
        """Return the event log, its checkpoints signed by the device's event key."""
        return EventLog(
            self.events,
            device_id=self.device_id(),
            boot_id=self.boot_id(entropy),
            signer=keys.signer("events"),
            clock=clock,
        )

    def read_policy(self, path: Path) -> bytes:
        """Return one copy of the signed policy that was confirmed last."""
        return read_file_bounded(path, limit_bytes=MAX_ENVELOPE_BYTES)

    def read_policy_floor(self) -> tuple[int, str]:
        """Return version and digest (hex) of the newest policy ever confirmed; (0, "") before the first.

        Not authenticated: who writes to the data partition can put it back (docs/threat-model.md).
        """
        if not self.policy_floor.exists():
            return 0, ""
        raw = read_file_bounded(self.policy_floor, limit_bytes=128)
        match = _FLOOR.fullmatch(raw)
        if match is None:
            raise FloorMalformed(f"{self.policy_floor} is damaged")
        return int(match[1]), match[2].decode()
