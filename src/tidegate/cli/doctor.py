"""``tidegate doctor``: what this machine can and cannot do for each room."""

from __future__ import annotations

import argparse

from tidegate.cli.output import Output


def build(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.set_defaults(run=show_checks)


def show_checks(_: argparse.Namespace, output: Output) -> int:
    """Show every check; 1 if something that a room needs is missing."""
    from tidegate.agent.doctor import State, examine

    checks = list(examine())
    rows = [(check.room, check.what, check.state.value, check.detail) for check in checks]
    output.table(("room", "what", "state", "detail"), rows)
    missing = [check for check in checks if check.state is State.MISSING]
    needed = [check for check in missing if check.needed]
    output.line(f"\n{len(checks)} checks, {len(missing)} missing, {len(needed)} of them needed on a device")
    output.result(
        {
            "ok": not needed,
            "checks": [
                {"room": check.room, "what": check.what, "state": check.state.value, "detail": check.detail}
                for check in checks
            ],
        }
    )
    return 1 if needed else 0
