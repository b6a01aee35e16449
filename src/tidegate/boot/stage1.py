"""The first stage as a program: ``python -m tidegate.boot.stage1 --storage FOLDER --run FOLDER``.

Stands for the code in a device's ROM: it trusts the anchors in the ROM folder and nothing else, picks a slot, verifies
manifest and second stage, and replaces itself by exactly the verified bytes, from sealed memory. Exit code 3 if no
slot may start.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from pathlib import Path
from typing import NoReturn

from tidegate.base.durable import write_all
from tidegate.base.errors import TidegateError
from tidegate.boot.chain import choose_slot
from tidegate.boot.control import RecordBootControl
from tidegate.boot.log import BootLog
from tidegate.boot.measure import Began
from tidegate.boot.storage import DeviceStorage


def sealed_memory(name: str, data: bytes) -> int:
    """Return a descriptor of memory that holds ``data`` and that nobody, not even root, can change any more."""
    descriptor = os.memfd_create(name, os.MFD_ALLOW_SEALING)
    write_all(descriptor, data)
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def main() -> int:
    """Verify, measure, hand over; return only on failure."""
    parser = argparse.ArgumentParser(prog="tidegate-stage1", description=__doc__)
    parser.add_argument("--storage", type=Path, required=True, help="folder with slots, data image and ROM")
    parser.add_argument("--run", type=Path, required=True, help="folder in memory for the boot log and the mounts")
    arguments = parser.parse_args()
    storage = DeviceStorage(arguments.storage)
    log = BootLog(arguments.run)
    try:
        log(Began())
        with storage.opened_for_boot() as (slots, state):
            rule = storage.maker_rule()
            control = RecordBootControl(state)
            slot, image, program = choose_slot(control, slots, rule, log)
            floor = max(rule.security_floor, control.state().security_floor)
    except TidegateError as error:
        print(f"stage1: {error.message} [{error.code}]", file=sys.stderr)  # noqa: T201  # the console of the device
        return error.exit_status
    options = {
        "--slot": slot,
        "--image": storage.slot_path(slot),
        "--data": storage.data_path,
        "--run": arguments.run,
        "--hardware": rule.hardware,
        "--floor": floor,
        "--manifest": image.digest.hex(),
    }
    return _hand_over(program, [str(word) for pair in options.items() for word in pair])


def _hand_over(program: bytes, arguments: list[str]) -> NoReturn:
    """Replace this process by the verified second stage, run from sealed memory."""
    descriptor = sealed_memory("stage2", program)
    os.set_inheritable(descriptor, True)
    command = [sys.executable, "-I", "-B", f"/proc/self/fd/{descriptor}", *arguments]
    os.execv(sys.executable, command)  # noqa: S606  # the verified program, without a shell


if __name__ == "__main__":
    sys.exit(main())
