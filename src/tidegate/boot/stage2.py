"""The second stage as a program: verifies the system of one slot, mounts what it verified, starts it.

The maker packs this module with its trust anchors into a zip archive (``stage2_build.py``); the first stage runs that
archive. What is mounted is the verified copy in sealed memory, not the slot, so nothing can be swapped in between;
it costs the size of the system in RAM. On kernels with a device mapper dm-verity can take over without that cost, with
the same hash tree (docs/boot-and-update.md).
"""

from __future__ import annotations

import argparse
import pkgutil
import shlex
import sys
import time
from pathlib import Path

from tidegate.base.blockdev import FileBlockDevice
from tidegate.base.errors import Fault, Rejected, TidegateError
from tidegate.boot.chain import verify_system
from tidegate.boot.control import RecordBootControl
from tidegate.boot.errors import OsCorrupt
from tidegate.boot.linux import SystemRoot, enter_root
from tidegate.boot.log import BootLog
from tidegate.boot.measure import Refusal, Started
from tidegate.boot.slots import boot_order
from tidegate.boot.storage import STATE_BYTES
from tidegate.crypto.trust import TrustPolicy, parse_trust
from tidegate.image.manifest import Manifest, PayloadKind
from tidegate.image.verify import AcceptanceRule, VerifiedImage

INIT = "/sbin/init"
READ_TRIES = 3  # a bus that hiccups answers the second time; a dead one has cost two seconds
READ_PAUSE_S = 1.0
ANCHORS = "anchors.cbor"


def main() -> int:
    """Verify, measure, mount, start; return only on failure."""
    parser = argparse.ArgumentParser(prog="tidegate-stage2")
    for name in ("slot", "image", "data", "run", "hardware", "floor", "manifest"):
        parser.add_argument(f"--{name}", required=True)
    arguments = parser.parse_args()
    log = BootLog(Path(arguments.run))
    try:
        rule = AcceptanceRule(trust=_own_anchors(), hardware=arguments.hardware, security_floor=int(arguments.floor))
        image, loaded = _verify_slot(Path(arguments.image), rule, log)
        if image.digest.hex() != arguments.manifest:
            raise OsCorrupt("the manifest changed between the stages")
        _mount(image.manifest, loaded, arguments)
        log(Started(stage="stage2", slot=arguments.slot, version=image.manifest.version))
        enter_root(Path(arguments.run) / "root", [INIT])
    except TidegateError as error:
        log(Refusal(stage="stage2", slot=arguments.slot, code=error.code, message=error.message))
        _refuse_slot(Path(arguments.data), arguments.slot, for_good=isinstance(error, Rejected))
        print(f"stage2: {error.message} [{error.code}]", file=sys.stderr)  # noqa: T201  # the console of the device
        return error.exit_status
    return 0


def _verify_slot(path: Path, rule: AcceptanceRule, log: BootLog) -> tuple[VerifiedImage, dict[str, bytes]]:
    """Verify the system in a slot, again if its storage does not answer; ``base.storage.*`` when it never does."""
    for _ in range(READ_TRIES - 1):
        try:
            with FileBlockDevice(path) as source:
                return verify_system(source, rule, log)
        except Fault as error:
            print(f"stage2: {error.message}; once more", file=sys.stderr)  # noqa: T201  # the console of the device
            time.sleep(READ_PAUSE_S)
    with FileBlockDevice(path) as source:
        return verify_system(source, rule, log)


def _refuse_slot(data: Path, slot: str, *, for_good: bool) -> None:
    """Have the next boot take the other slot.

    What does not verify will not verify then either. What only failed (storage, a mount) may heal: it is given up
    only where another slot can start instead.
    """
    with FileBlockDevice(data, writable=True) as state:
        control = RecordBootControl(state)
        if for_good or any(other != slot for other in boot_order(control.state())):
            control.refuse(slot)


def _own_anchors() -> TrustPolicy:
    """Return the trust anchors packed beside this code, which the first stage verified together with it."""
    raw = pkgutil.get_data("tidegate.boot", ANCHORS)
    return parse_trust(raw or b"")


def _mount(manifest: Manifest, loaded: dict[str, bytes], arguments: argparse.Namespace) -> None:
    """Mount the verified system below the run folder and say which applications to start."""
    (rootfs,) = manifest.of_kind(PayloadKind.ROOTFS)
    root = SystemRoot(Path(arguments.run) / "root")
    root.mount_image(rootfs.name, loaded[rootfs.name], "")
    root.mount_folders()
    root.mount_data(Path(arguments.data), STATE_BYTES)
    commands = []
    for payload in manifest.of_kind(PayloadKind.APPLICATION):
        root.mount_image(payload.name, loaded[payload.name], f"apps/{payload.name}")
        if payload.start:
            commands.append(shlex.join(payload.start))
    (root.path / "run" / "services").write_text("".join(f"{command}\n" for command in commands))


if __name__ == "__main__":
    sys.exit(main())
