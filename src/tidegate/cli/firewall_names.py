"""``tidegate firewall names``: what the DNS names of a policy stand for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.firewall.nameplan import Answer
    from tidegate.firewall.peers import Address
    from tidegate.firewall.resolver import Server

_WITHIN_S = 15.0  # two turns of two resolvers that say nothing, and a little


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    names = add_verb(verbs, "names", "say what the DNS names of a policy stand for now, and what the kernel believes")
    names.add_argument("policy", type=Path, metavar="POLICY.toml", help="the policy as an operator writes it")
    names.add_argument(
        "--resolver",
        dest="resolvers",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="ask this one, 192.0.2.1 or [2001:db8::1]:53; repeatable; default: those of /etc/resolv.conf",
    )
    names.set_defaults(run=run_names)


def run_names(arguments: argparse.Namespace, output: Output) -> int:
    """Resolve every DNS name of a policy once; 1 when one has no address or no answer."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.firewall.resolver import parse_server, read_servers, resolve_once
    from tidegate.policy.check import read_ruleset
    from tidegate.policy.document import MAX_POLICY_BYTES

    text = read_file_bounded(arguments.policy, limit_bytes=MAX_POLICY_BYTES).decode(errors="replace")
    _, ruleset = read_ruleset(text, arguments.policy.name)
    names = ruleset.dns_names()
    servers = tuple(map(parse_server, arguments.resolvers)) or read_servers()
    answers = resolve_once(names, servers, within_s=_WITHIN_S) if names else {}
    held = _read_kernel(names)
    rows = [_describe(name, answers[name], None if held is None else held.get(name)) for name in names]
    _print(output, rows, servers)
    output.result({"resolvers": [f"{host} port {port}" for host, port in servers], "names": rows})
    return 0 if all(_has_address(answers[name]) for name in names) else 1


def _read_kernel(names: tuple[str, ...]) -> Mapping[str, Mapping[Address, int]] | None:
    """Return what the sets hold; ``None`` for who may not look, or on a machine without nftables."""
    from tidegate.base.errors import NotRoot
    from tidegate.firewall.errors import NoNftables
    from tidegate.firewall.nameset import read_resolved

    try:
        return read_resolved(names)
    except (NotRoot, NoNftables):
        return None


def _has_address(answers: Mapping[int, Answer | None]) -> bool:
    return any(answer is not None and answer.addresses for answer in answers.values())


def _describe(name: str, answers: Mapping[int, Answer | None], held: Mapping[Address, int] | None) -> dict[str, object]:
    from tidegate.firewall.nameplan import Limits, NameState, take_answers

    families = {
        str(family): None
        if answer is None
        else {"addresses": list(map(str, answer.addresses)), "ttl_s": answer.ttl_s, "left_out": answer.left_out}
        for family, answer in answers.items()
    }
    return {
        "name": name,
        "families": families,
        "next_s": take_answers(NameState(name=name), answers, 0.0, Limits()).ask_at_s,
        "in_kernel": None if held is None else {str(address): left_s for address, left_s in held.items()},
    }


def _print(output: Output, rows: list[dict[str, object]], servers: tuple[Server, ...]) -> None:
    if not rows:
        output.line("The policy names no DNS name.")
        return
    if not servers:
        output.line("There is no resolver: /etc/resolv.conf names none; see --resolver.")
    shown = []
    for row in rows:
        families, held = row["families"], row["in_kernel"]
        for family, answer in families.items() if isinstance(families, dict) else []:
            if answer is None:
                said, ttl = "no answer", ""
            else:
                said, ttl = ", ".join(answer["addresses"]) or "none", str(answer["ttl_s"])
                said += f" and {answer['left_out']} left out" if answer["left_out"] else ""
            mine = [one for one in held if (":" in one) == (family == "6")] if isinstance(held, dict) else []
            shown.append((row["name"], f"IPv{family}", said, ttl, f"{row['next_s']:g}", ", ".join(mine) or "-"))
    output.table(("name", "family", "addresses", "TTL", "next question in s", "in the kernel"), shown)
