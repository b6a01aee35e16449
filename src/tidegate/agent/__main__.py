"""``python -m tidegate.agent``: the device daemon as a process."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidegate.base.errors import TidegateError


def build_parser() -> argparse.ArgumentParser:
    """Return the daemon's arguments."""
    parser = argparse.ArgumentParser(prog="tidegate-agent", description="Run the device daemon until SIGTERM.")
    parser.add_argument("--storage", type=Path, required=True, help="folder with slots, data image and ROM")
    parser.add_argument("--data", type=Path, required=True, help="where the data file system is mounted")
    parser.add_argument("--run", type=Path, required=True, help="folder in memory: boot log, socket")
    parser.add_argument("--interface", help="network interface that the sensor watches")
    parser.add_argument("--reboot-request", type=Path, help="file to create when the device has to reboot")
    parser.add_argument("--report-boot", action="store_true", help="only turn the boot log into events, then end")
    return parser


def main() -> int:
    """Run the agent; the exit code is that of the error's family when it cannot start."""
    arguments = build_parser().parse_args()
    try:
        return _run(arguments)
    except TidegateError as error:
        print(f"tidegate-agent: {error.message} [{error.code}]\n  what to do: {error.advice}", file=sys.stderr)  # noqa: T201
        return error.exit_status


def _run(arguments: argparse.Namespace) -> int:
    # The agent speaks no TLS in this process, and asyncio does without the module: memory that a device keeps.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    import asyncio

    from tidegate.agent.daemon import Agent, AgentOptions, report_boot
    from tidegate.agent.home import DeviceHome
    from tidegate.base.clock import SystemClock, SystemEntropy
    from tidegate.boot.storage import DeviceStorage

    home = DeviceHome(storage=DeviceStorage(arguments.storage), data=arguments.data, run=arguments.run)
    clock, entropy = SystemClock(), SystemEntropy()
    if arguments.report_boot:
        with home.open_events(home.open_keys(), clock, entropy) as events:
            report_boot(home, events)
        return 0
    reboot = arguments.reboot_request or arguments.run / "reboot-request"
    options = AgentOptions(interface=arguments.interface, reboot_request=reboot)
    return asyncio.run(Agent(home, options, clock, entropy).run())


if __name__ == "__main__":
    sys.exit(main())
