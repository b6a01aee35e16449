"""The vault's process: ``python -m tidegate.agent.vaultd --storage F --data F --run F``.

Reads the policy's ``[vault]`` section (one JSON line) from standard input, opens the device's vault, gives up what it
does not need, serves ``vault.sock`` in the run folder, and writes lines to standard output that the agent reports:
``opened``, ``unknown-user``, ``ready``, ``refused``, or ``error`` before it ends with the status of the error's family.
Ends on SIGTERM, on SIGINT and with its parent; the vault is closed and its keys are wiped.

It is a process of its own so that keys and contents are in no memory but its own, and leave it when it is stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Run until asked to stop; return the exit status."""
    parser = argparse.ArgumentParser(prog="tidegate-vaultd", description="Serve the device's vault to its programs.")
    parser.add_argument("--storage", type=Path, required=True, help="folder with slots, data image and ROM")
    parser.add_argument("--data", type=Path, required=True, help="where the data file system is mounted")
    parser.add_argument("--run", type=Path, required=True, help="folder in memory: the socket")
    arguments = parser.parse_args()
    sys.modules["ssl"] = None  # type: ignore[assignment]  # asyncio does without, and a device keeps its memory
    from tidegate.agent.home import DeviceHome
    from tidegate.agent.vault_server import run
    from tidegate.boot.storage import DeviceStorage

    return run(DeviceHome(storage=DeviceStorage(arguments.storage), data=arguments.data, run=arguments.run))


if __name__ == "__main__":
    sys.exit(main())
