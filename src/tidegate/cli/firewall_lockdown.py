"""tidegate firewall lockdown: leave nothing open but the management path, at once; lift it; say what is on."""

from __future__ import annotations

import argparse
from pathlib import Path

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

_STATE = "/var/lib/tidegate/firewall"


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb ``lockdown`` with its three words."""
    lockdown = add_verb(verbs, "lockdown", "switch the prepared lockdown ruleset on or off, or say whether it is on")
    words = lockdown.add_subparsers(dest="subverb", metavar="on | off | status", required=True)

    on = add_verb(words, "on", "leave nothing open but the management path and rules with lockdown = true")
    on.add_argument("--reason", default="operator", metavar="TEXT", help="kept with the lockdown, shown by status")
    on.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="lift it by itself; default: never")
    off = add_verb(words, "off", "put the confirmed ruleset in force again")
    status = add_verb(words, "status", "say whether a lockdown is on; exits 1 when none is")
    for verb, function in ((on, run_on), (off, run_off), (status, run_status)):
        verb.add_argument(
            "--state", type=Path, default=Path(_STATE), metavar="DIR", help=f"the state folder; default {_STATE}"
        )
        verb.set_defaults(run=function)


def run_on(arguments: argparse.Namespace, output: Output) -> int:
    """Lock down."""
    from tidegate.firewall.lockdown import lock_down

    done = lock_down(arguments.state, reason=arguments.reason, for_s=arguments.seconds)
    output.line(f"Locked down: {done.digest}")
    if done.dropped_change:
        output.line("The change that waited for its confirmation was dropped.")
    for device in done.missing_devices:
        output.line(f"{device} is not there; its layer-2 rules are loaded when it appears.")
    output.result({"locked": True, "digest": done.digest, "dropped_change": done.dropped_change})
    return 0


def run_off(arguments: argparse.Namespace, output: Output) -> int:
    """Lift the lockdown."""
    from tidegate.firewall.lockdown import lift_lockdown

    done = lift_lockdown(arguments.state)
    output.line(f"The confirmed ruleset is in force: {done.digest}")
    output.result({"locked": False, "digest": done.digest})
    return 0


def run_status(arguments: argparse.Namespace, output: Output) -> int:
    """Say whether a lockdown is on, and whether the kernel still holds what it loaded; 1 when none is on."""
    from tidegate.firewall.effective import effective_digest
    from tidegate.firewall.statefolder import load_expected_digest, load_lockdown

    lockdown = load_lockdown(arguments.state)
    if lockdown is None:
        output.line("No lockdown is on.")
        output.result({"locked": False})
        return 1
    intact = effective_digest() == load_expected_digest(arguments.state)
    until = "until it is lifted" if lockdown.for_s is None else f"for {lockdown.for_s:g} s"
    output.line(f"Locked down {until}: {lockdown.reason}")
    if not intact:
        output.line("The kernel does not hold what the lockdown loaded: switch it on again.")
    output.result(
        {"locked": True, "reason": lockdown.reason, "since_s": lockdown.since_s, "for_s": lockdown.for_s}
        | {"intact": intact}
    )
    return 0
