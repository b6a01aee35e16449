"""Opens a volume in a guest, writes, and cuts the guest's power with the volume mounted: ``SCRIPT VAULT KEY``."""

import os
import sys
from pathlib import Path

from tidegate.base.program import run_program
from tidegate.cli.main import main
from tidegate.testing.guest import guest_disk

vault, key, marker = sys.argv[1:]
mount = Path("/run/data")
mount.mkdir()
assert main(["vault", "volume-open", str(guest_disk(0)), "data", "--vault", vault, "--key", key]) == 0
run_program(["mkfs.ext4", "-q", "/dev/mapper/data"])
run_program(["mount", "/dev/mapper/data", str(mount)])
for name, synced in (("kept", True), ("perhaps", False)):
    with (mount / name).open("wb") as stream:
        stream.write(marker.encode() * 1000)
        if synced:
            stream.flush()
            os.fsync(stream.fileno())
descriptor = os.open(mount, os.O_RDONLY)
os.fsync(descriptor)
Path("/proc/sysrq-trigger").write_text("b")
