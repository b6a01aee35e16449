"""``tidegate error CODE``: what a code means, whose fault it is and what to do."""

from __future__ import annotations

import argparse
import difflib
import importlib
import pkgutil

import tidegate
from tidegate.base.errors import Fault, Misuse, Rejected, TidegateError, registered_codes
from tidegate.cli.output import Output

_FAMILIES = {
    Misuse: "the caller's code or command line is wrong",
    Rejected: "outside data is not acceptable",
    Fault: "the machine or a peer failed; it may heal",
}


def build(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("code", nargs="?", help="the code in brackets behind an error message; all are listed without")
    parser.set_defaults(run=explain)


def load_all_codes() -> dict[str, type[TidegateError]]:
    """Import every room's errors and return all codes."""
    for room in pkgutil.iter_modules(tidegate.__path__):
        if pkgutil.resolve_name(f"tidegate.{room.name}").__spec__.submodule_search_locations is None:
            continue
        names = [
            module.name for module in pkgutil.iter_modules(importlib.import_module(f"tidegate.{room.name}").__path__)
        ]
        for name in names:
            if name == "errors" or name.endswith("_errors"):
                importlib.import_module(f"tidegate.{room.name}.{name}")
    return registered_codes()


def explain(arguments: argparse.Namespace, output: Output) -> int:
    """Explain one code or list all of them."""
    codes = load_all_codes()
    if arguments.code is None:
        output.table(("code", "advice"), [(code, codes[code].advice) for code in sorted(codes)])
        output.result({"codes": {code: codes[code].advice for code in sorted(codes)}})
        return 0
    found = codes.get(arguments.code)
    if found is None:
        near = difflib.get_close_matches(arguments.code, codes, n=3)
        output.line(f"no error has the code {arguments.code!r}" + (f"; near it: {', '.join(near)}" if near else ""))
        output.result({"error": None, "near": near})
        return 1
    family = next(meaning for kind, meaning in _FAMILIES.items() if issubclass(found, kind))
    output.line(
        f"{arguments.code}\n  whose fault: {family} (exit code {found.exit_status})\n  what to do: {found.advice}"
    )
    output.result({"code": arguments.code, "family": family, "exit_code": found.exit_status, "advice": found.advice})
    return 0
