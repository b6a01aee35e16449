"""``tidegate agent``: run the device daemon, ask it."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    run = add_verb(verbs, "run", "run the device daemon until SIGTERM (root)")
    run.add_argument("--storage", type=Path, required=True, help="folder with slots, data image and ROM")
    run.add_argument("--data", type=Path, required=True, help="where the data file system is mounted")
    run.add_argument("--run", dest="run_folder", type=Path, required=True, help="folder in memory: boot log, socket")
    run.add_argument("--interface", help="network interface that the sensor watches")
    run.set_defaults(run=run_agent)
    for name, purpose in (
        ("status", "show policy, version and sensor of the running agent"),
        ("confirm", "confirm the policy that was applied; without it the one before comes back by itself"),
        ("rollback", "put the policy before the candidate in force at once"),
        ("checkpoint", "sign the events up to now"),
        ("vault-unlock", "let applications have the vault again after a lock"),
    ):
        verb = _asking(verbs, name, purpose)
        verb.set_defaults(run=ask_plain)
    apply = _asking(verbs, "apply", "put a signed policy in force; confirm it in time or it is rolled back")
    apply.add_argument("policy", type=Path, help="signed policy (tidegate policy sign)")
    apply.set_defaults(run=apply_policy)
    ban = _asking(verbs, "ban", "drop everything from an address in the kernel, for a time")
    ban.add_argument("address")
    ban.add_argument("--for", dest="seconds", type=int, default=600, help="seconds (default 600)")
    ban.set_defaults(run=ban_address)
    lock = _asking(verbs, "vault-lock", "lock encrypted directories and take the vault's keys out of memory")
    lock.add_argument("--reason", default="operator", help="for the event log")
    lock.set_defaults(run=lock_vault)
    erase = _asking(verbs, "vault-erase", "destroy the vault's keys and files for ever, if the policy allows it")
    erase.add_argument("--reason", required=True, help="for the receipt and the event log")
    erase.add_argument("--for-ever", action="store_true", required=True, help="say that this cannot be undone")
    erase.set_defaults(run=lock_vault)
    unban = _asking(verbs, "unban", "lift a ban")
    unban.add_argument("address")
    unban.set_defaults(run=ban_address)


def ask(run_folder: Path, request: dict[str, object]) -> dict[str, object]:
    """Return the agent's answer; an error in it is raised with its own code."""
    from tidegate.agent.api import ask_agent
    from tidegate.agent.home import SOCKET
    from tidegate.base.errors import Fault
    from tidegate.cli.error import load_all_codes

    answer = ask_agent(run_folder / SOCKET, request)
    error = answer.get("error")
    if isinstance(error, dict):
        kind = load_all_codes().get(str(error.get("code")), Fault)
        raise kind(str(error.get("message")))
    return answer


def run_agent(arguments: argparse.Namespace, output: Output) -> NoReturn:
    """Replace this process by the daemon, so that the command line's own memory is given back."""
    words = ["--storage", arguments.storage, "--data", arguments.data, "--run", arguments.run_folder]
    if arguments.interface:
        words += ["--interface", arguments.interface]
    output.line("agent starts")
    command = [sys.executable, "-m", "tidegate.agent", *map(str, words)]
    os.execv(sys.executable, command)  # noqa: S606  # no shell


def ask_plain(arguments: argparse.Namespace, output: Output) -> int:
    """Ask for something that takes no argument."""
    operation = {"confirm": "confirm-policy", "rollback": "rollback-policy"}.get(arguments.verb, arguments.verb)
    return _show(ask(arguments.run_folder, {"op": operation}), output)


def apply_policy(arguments: argparse.Namespace, output: Output) -> int:
    """Hand a signed policy to the agent."""
    import base64

    from tidegate.base.durable import read_file_bounded
    from tidegate.crypto.cose import MAX_ENVELOPE_BYTES

    raw = read_file_bounded(arguments.policy, limit_bytes=MAX_ENVELOPE_BYTES)
    answer = ask(arguments.run_folder, {"op": "apply-policy", "policy": base64.b64encode(raw).decode()})
    return _show(answer, output)


def ban_address(arguments: argparse.Namespace, output: Output) -> int:
    """Ban or unban an address."""
    request: dict[str, object] = {"op": arguments.verb, "address": arguments.address}
    if arguments.verb == "ban":
        request["seconds"] = arguments.seconds
    return _show(ask(arguments.run_folder, request), output)


def lock_vault(arguments: argparse.Namespace, output: Output) -> int:
    """Have the vault locked or erased."""
    return _show(ask(arguments.run_folder, {"op": arguments.verb, "reason": arguments.reason}), output)


def _asking(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str
) -> argparse.ArgumentParser:
    verb = add_verb(verbs, name, purpose)
    verb.add_argument(
        "--run", dest="run_folder", type=Path, default=Path("/run/tidegate"), help="the agent's run folder"
    )
    return verb


def _show(answer: dict[str, object], output: Output) -> int:
    for name, value in answer.items():
        output.line(f"{name.replace('_', ' ')}: {value}")
    output.result(answer)
    return 0
