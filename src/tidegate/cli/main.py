"""Entry point: find the noun, import its file, run its verb, turn errors into exit codes.

Exit codes: 0 done; 1 the command ran and its answer is "no" (a check failed, a finding stands); 2 misuse of the
command line; 3 outside data was rejected; 4 the machine or a peer failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence

from tidegate import __version__
from tidegate.base.errors import TidegateError
from tidegate.cli.output import Output

# noun -> what it is for; the file of the same name in this folder has its verbs
NOUNS = {
    "agent": "run the device daemon, ask it for its state",
    "boot": "provision a device's storage, boot it, show slots and measurements",
    "ca": "make a root and issuing CAs, issue and revoke certificates, run the EST server",
    "demo": "show a protected device from end to end on this machine",
    "doctor": "say what this kernel and system can and cannot do for each room",
    "error": "explain an error code",
    "events": "show, verify and export the event log",
    "factory": "make a factory CA, give a blank device its identity, keys, policy and vault",
    "firewall": "plan, apply and confirm the firewall, lock down, ban; explain and learn what it decides",
    "identity": "enrol, renew, move and show the device's certificate",
    "ids": "run the network sensor, replay captures; check rules, learn baselines, follow EVE files",
    "image": "build, sign, inspect and verify images and update bundles",
    "keys": "generate, use, list and destroy keys in any provider; hold a key ceremony",
    "policy": "check, sign and verify the policy",
    "tls": "say whether TLS can use keys that stay in their provider",
    "update": "install a bundle into the idle slot, confirm it, show progress",
    "vault": "keep files encrypted at rest",
}


def build_parser(noun: str | None) -> argparse.ArgumentParser:
    """Return the parser with every noun listed, and the verbs of ``noun`` alone filled in."""
    parser = argparse.ArgumentParser(
        prog="tidegate",
        description="Security building blocks for connected embedded-Linux devices.",
        epilog="Exit codes: 0 done, 1 answer is no, 2 misuse, 3 data rejected, 4 machine or peer failed. "
        "`tidegate error CODE` explains an error code.",
    )
    parser.add_argument("--version", action="version", version=f"tidegate {__version__}")
    parser.add_argument("--json", action="store_true", help="answer with one JSON document")
    nouns = parser.add_subparsers(dest="noun", metavar="NOUN", required=True)
    for name, purpose in NOUNS.items():
        child = nouns.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
        child.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="answer with one JSON document"
        )
        if name == noun:
            importlib.import_module(f"tidegate.cli.{name}").build(child)
    return parser


def add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, purpose: str
) -> argparse.ArgumentParser:
    """Add a verb to a noun's parser; it takes ``--json`` behind the verb as well as before it."""
    parser = verbs.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="answer with one JSON document")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    noun = next((word for word in words if not word.startswith("-")), None)
    parsed = build_parser(noun).parse_args(words)
    output = Output(as_json=parsed.json)
    try:
        status: int = parsed.run(parsed, output)
    except TidegateError as error:
        return _report(error, output)
    except KeyboardInterrupt:
        print("tidegate: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 4
    return status


def _report(error: TidegateError, output: Output) -> int:
    """Show the whole story to the operator and return the family's exit code."""
    if output.as_json:
        print(json.dumps({"error": error.describe()}, indent=2), file=sys.stdout, flush=True)
    else:
        print(f"tidegate: {error.message} [{error.code}]\n  what to do: {error.advice}", file=sys.stderr)
    return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
