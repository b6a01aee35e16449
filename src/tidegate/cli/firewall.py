"""``tidegate firewall``: plan, apply, confirm, roll back, show; ban and unban."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.firewall.model import Packet
    from tidegate.firewall.section import FirewallSection

_STATE = "/var/lib/tidegate/firewall"


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    plan = add_verb(verbs, "plan", "say what a policy's [firewall] section means and what is wrong with it")
    plan.add_argument("policy", type=Path, metavar="POLICY.toml", help="the policy as an operator writes it")
    plan.add_argument("--nft", action="store_true", help="print the nftables transaction instead")
    plan.set_defaults(run=run_plan)

    apply = add_verb(verbs, "apply", "put a policy's [firewall] section in force until it is confirmed")
    apply.add_argument("policy", type=Path, metavar="POLICY.toml", help="the policy as an operator writes it")
    apply.add_argument(
        "--confirm-timeout", type=float, metavar="SECONDS", help="roll back after so long; default: the policy's"
    )
    _add_state(apply)
    apply.set_defaults(run=run_apply)

    for name, purpose, function in (
        ("confirm", "keep the change that waits, over reboots too", run_confirm),
        ("rollback", "undo the change that waits, now", run_rollback),
        ("restore", "put the last confirmed ruleset in force, as at boot", run_restore),
        ("show", "show what is in force in the kernel, and whether a change waits", run_show),
    ):
        verb = add_verb(verbs, name, purpose)
        _add_state(verb)
        verb.set_defaults(run=function)

    ban = add_verb(verbs, "ban", "drop everything from an address for a time")
    ban.add_argument("address", metavar="ADDR", help="one IPv4 or IPv6 address")
    ban.add_argument("--for", dest="seconds", type=int, default=600, metavar="SECONDS", help="how long; default 600")
    ban.set_defaults(run=run_ban)
    unban = add_verb(verbs, "unban", "lift a ban")
    unban.add_argument("address", metavar="ADDR", help="the banned address")
    unban.set_defaults(run=run_unban)
    add_verb(verbs, "bans", "list the bans in force").set_defaults(run=run_bans)


def run_plan(arguments: argparse.Namespace, output: Output) -> int:
    """Print the meaning and the findings, or the transaction; 1 when an error finding stands."""
    from tidegate.firewall.checks import Severity, check_ruleset, count_elements
    from tidegate.firewall.compile import encode_ruleset
    from tidegate.firewall.model import plan_ruleset

    ruleset = plan_ruleset(_read_section(arguments.policy))
    findings = check_ruleset(ruleset)
    text = encode_ruleset(ruleset)
    if arguments.nft:
        output.line(text.rstrip())
    else:
        output.line(f"mode {ruleset.mode}, default {ruleset.default}, egress {ruleset.egress_default}")
        rows = [
            (direction, service.name, service.protocol, _words(service.spans), _words(service.interfaces) or "all")
            for direction, services in (("in", ruleset.services), ("out", ruleset.egress))
            for service in services
        ]
        output.table(("way", "service", "protocol", "ports", "interfaces"), rows)
        output.line(f"at most {count_elements(ruleset)} set elements of {ruleset.set_budget}")
        for finding in findings:
            output.line(f"{finding.severity}: {finding.message} [{finding.code}]")
    output.result(
        {
            "mode": ruleset.mode,
            "elements": count_elements(ruleset),
            "findings": [
                {"severity": one.severity, "code": one.code, "subject": one.subject, "message": one.message}
                for one in findings
            ],
            "nft": text,
        }
    )
    return 1 if any(finding.severity is Severity.ERROR for finding in findings) else 0


def run_apply(arguments: argparse.Namespace, output: Output) -> int:
    """Apply, guarded, and say how to keep it."""
    from tidegate.firewall.commit import apply_section, effective_digest

    section = _read_section(arguments.policy)
    timeout_s = section.confirm_timeout_s if arguments.confirm_timeout is None else arguments.confirm_timeout
    apply_section(section, state_dir=arguments.state, confirm_timeout_s=timeout_s, must_pass=_own_session())
    digest = effective_digest()
    output.line(f"In force, not confirmed: {digest}")
    output.line(f"Keep it within {timeout_s:g} s: tidegate firewall confirm --state {arguments.state}")
    output.result({"state": "pending", "digest": digest, "confirm_timeout_s": timeout_s})
    return 0


def run_confirm(arguments: argparse.Namespace, output: Output) -> int:
    """Confirm the change that waits."""
    from tidegate.firewall.commit import load_pending

    digest = load_pending(arguments.state).confirm()
    output.line(f"Confirmed: {digest}")
    output.result({"state": "confirmed", "digest": digest})
    return 0


def run_rollback(arguments: argparse.Namespace, output: Output) -> int:
    """Undo the change that waits."""
    from tidegate.firewall.commit import effective_digest, load_pending

    change = load_pending(arguments.state)
    change.rollback()
    digest = effective_digest(change.nft)
    output.line(f"Rolled back to: {digest}")
    output.result({"state": "rolled-back", "digest": digest})
    return 0


def run_restore(arguments: argparse.Namespace, output: Output) -> int:
    """Load the last confirmed ruleset; 1 when there is none."""
    from tidegate.firewall.commit import restore_last_confirmed

    digest = restore_last_confirmed(arguments.state)
    output.line("Nothing was ever confirmed here." if digest is None else f"In force: {digest}")
    output.result({"state": "none" if digest is None else "confirmed", "digest": digest})
    return 1 if digest is None else 0


def run_show(arguments: argparse.Namespace, output: Output) -> int:
    """Print the kernel's rules, their digest, and whether a change waits; 1 when no ruleset of ours is there."""
    from tidegate.base.errors import TidegateError
    from tidegate.firewall.commit import effective_digest, load_pending
    from tidegate.firewall.compile import BAN_TABLE, TABLE
    from tidegate.firewall.nft import Nft

    nft = Nft.open()
    listings = {name: nft.list_table(name) for name in (TABLE, BAN_TABLE)}
    try:
        load_pending(arguments.state, nft=nft)
        state = "pending"
    except TidegateError as error:
        state = error.code.rpartition(".")[2]
    digest = effective_digest(nft)
    for listing in listings.values():
        output.line((listing or "").rstrip())
    output.line(f"digest {digest}; change: {state}")
    output.result({"digest": digest, "change": state, "tables": listings})
    return 0 if listings[TABLE] is not None else 1


def run_ban(arguments: argparse.Namespace, output: Output) -> int:
    """Ban one address."""
    from tidegate.firewall.bans import Bans

    Bans().ban(arguments.address, arguments.seconds)
    output.line(f"{arguments.address} is banned for {arguments.seconds} s.")
    output.result({"address": arguments.address, "seconds": arguments.seconds})
    return 0


def run_unban(arguments: argparse.Namespace, output: Output) -> int:
    """Lift one ban."""
    from tidegate.firewall.bans import Bans

    Bans().unban(arguments.address)
    output.line(f"{arguments.address} is not banned any more.")
    output.result({"address": arguments.address})
    return 0


def run_bans(_arguments: argparse.Namespace, output: Output) -> int:
    """List the bans."""
    from tidegate.firewall.bans import Bans

    bans = Bans().list_bans()
    output.table(("address", "seconds left"), [(ban.address, f"{ban.remaining_s:.0f}") for ban in bans])
    output.result({"bans": [{"address": str(ban.address), "remaining_s": ban.remaining_s} for ban in bans]})
    return 0


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", type=Path, default=Path(_STATE), metavar="DIR", help=f"the state folder; default {_STATE}"
    )


def _read_section(path: Path) -> FirewallSection:
    """Return the policy's section; without one, the empty section, whose check then says what is missing."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.firewall.section import FirewallSection
    from tidegate.policy.document import MAX_POLICY_BYTES, parse_policy

    text = read_file_bounded(path, limit_bytes=MAX_POLICY_BYTES).decode(errors="replace")
    return parse_policy(text, name=path.name).firewall or FirewallSection()


def _own_session() -> list[Packet]:
    """Return the SSH session that runs this command as a packet that must pass; nothing on a console."""
    from ipaddress import ip_address

    from tidegate.firewall.model import Packet
    from tidegate.firewall.section import Protocol

    words = os.environ.get("SSH_CONNECTION", "").split()
    try:
        source, source_port, destination, port = words
        session = Packet(
            interface=None,
            source=ip_address(source.partition("%")[0]),
            destination=ip_address(destination.partition("%")[0]),
            protocol=Protocol.TCP,
            port=int(port),
            source_port=int(source_port),
        )
    except ValueError:
        return []  # no SSH session, or a variable that somebody else made up
    return [session]


def _words(values: tuple[object, ...]) -> str:
    return ", ".join(str(value) for value in values)
