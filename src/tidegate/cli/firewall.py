"""``tidegate firewall``: plan, apply, confirm, roll back, show; the other verbs stand in files of their own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli import (
    firewall_bans,
    firewall_fields,
    firewall_learn,
    firewall_lockdown,
    firewall_mud,
    firewall_names,
    firewall_plan,
    firewall_why,
)
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.firewall.section import FirewallSection

_STATE = "/var/lib/tidegate/firewall"


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    firewall_plan.add(verbs, _STATE)

    apply = add_verb(verbs, "apply", "put a policy's [firewall] section in force until it is confirmed")
    apply.add_argument("policy", type=Path, metavar="POLICY.toml", help="the policy as an operator writes it")
    apply.add_argument(
        "--confirm-timeout", type=float, metavar="SECONDS", help="roll back after so long; default: the policy's"
    )
    apply.add_argument(
        "--cut",
        action="append",
        default=[],
        metavar="ADDR",
        help="let the policy end the managing session from this address; repeatable",
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

    thresholds = add_verb(verbs, "thresholds", "show what limits and water marks remember: who, how full, until when")
    thresholds.add_argument("--all", action="store_true", help="name every source, not only those that are refused")
    thresholds.set_defaults(run=run_thresholds)
    for part in (
        firewall_bans,
        firewall_lockdown,
        firewall_fields,
        firewall_why,
        firewall_learn,
        firewall_mud,
        firewall_names,
    ):
        part.add(verbs)


def run_apply(arguments: argparse.Namespace, output: Output) -> int:
    """Apply, guarded, and say how to keep it."""
    from tidegate.firewall.commit import apply_section, effective_digest
    from tidegate.firewall.peers import parse_one_address

    section = _read_section(arguments.policy)
    timeout_s = section.confirm_timeout_s if arguments.confirm_timeout is None else arguments.confirm_timeout
    cut = [parse_one_address(one, "--cut") for one in arguments.cut]
    change = apply_section(section, state_dir=arguments.state, confirm_timeout_s=timeout_s, cut=cut)
    digest = effective_digest()
    output.line(f"In force, not confirmed: {digest}")
    for device in change.missing_devices:
        output.line(f"warning: there is no device {device}; its layer-2 rules wait for it")
    for name in change.unset:
        output.line(f"warning: the kernel setting {name} could not be set here")
    output.line(f"Keep it within {timeout_s:g} s: tidegate firewall confirm --state {arguments.state}")
    output.result(
        {
            "state": "pending",
            "digest": digest,
            "confirm_timeout_s": timeout_s,
            "missing_devices": list(change.missing_devices),
            "unset": list(change.unset),
        }
    )
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
    """Load the last confirmed ruleset and the bans that were in force; 1 when nothing was ever confirmed."""
    import time

    from tidegate.firewall.banrestore import restore_bans
    from tidegate.firewall.commit import restore_last_confirmed

    restored = restore_last_confirmed(arguments.state)
    if restored is None:
        output.line("Nothing was ever confirmed here.")
        output.result({"state": "none", "digest": None})
        return 1
    output.line(f"In force{', locked down' if restored.locked else ''}: {restored.digest}")
    for name in restored.unset:
        output.line(f"warning: the kernel setting {name} could not be set here")
    for device in restored.missing_devices:
        output.line(f"There is no device {device} yet; its layer-2 rules wait for it.")
    bans = restore_bans(arguments.state, time.time())
    output.line(f"{bans.restored} bans go on; {bans.expired} ended meanwhile, {bans.protected} are protected now.")
    if bans.full or bans.corrupt:
        output.line(f"warning: {bans.full} bans found no room, {bans.corrupt} records cannot be read")
    output.result(
        {
            "state": "locked-down" if restored.locked else "confirmed",
            "digest": restored.digest,
            "missing_devices": list(restored.missing_devices),
            "unset": list(restored.unset),
            "bans": {
                "restored": bans.restored,
                "expired": bans.expired,
                "protected": bans.protected,
                "corrupt": bans.corrupt,
                "full": bans.full,
            },
        }
    )
    return 0


def run_show(arguments: argparse.Namespace, output: Output) -> int:
    """Print the kernel's rules, their digest, and whether a change waits; 1 when no ruleset of ours is there."""
    from tidegate.base.errors import TidegateError
    from tidegate.firewall.commit import effective_digest, load_pending
    from tidegate.firewall.compile import BAN_TABLE, TABLE
    from tidegate.firewall.link import LINK_TABLE
    from tidegate.firewall.nft import Nft

    nft = Nft.open()
    listings = {name: nft.list_table(name) for name in (TABLE, BAN_TABLE)}
    listings[LINK_TABLE] = nft.list_table(LINK_TABLE, family="netdev")
    try:
        load_pending(arguments.state, nft=nft)
        state = "pending"
    except TidegateError as error:
        state = "rolled-back" if error.code == "firewall.commit.expired" else "none"
    digest = effective_digest(nft)
    for listing in listings.values():
        output.line((listing or "").rstrip())
    output.line(f"digest {digest}; change: {state}")
    output.result({"digest": digest, "change": state, "tables": listings})
    return 0 if listings[TABLE] is not None else 1


def run_thresholds(arguments: argparse.Namespace, output: Output) -> int:
    """Print the state of every meter; 1 when no ruleset of ours is in force."""
    from tidegate.firewall.compile import TABLE
    from tidegate.firewall.nft import Nft
    from tidegate.firewall.thresholds import Table, parse_meters

    listing = Nft.open().list_table(TABLE, stateless=False)
    meters = parse_meters(listing or "")
    rows = [
        (meter.rule, meter.table, f"{len(meter.sources):,} of {meter.size:,}", "full" if meter.is_full else "")
        for meter in meters
    ]
    output.table(("rule", "table", "sources", ""), rows)
    for meter in meters:
        if arguments.all or meter.table is Table.HOT:
            for source, left_s in meter.sources:
                until = "" if left_s is None else f", {left_s:.0f} s left"
                output.line(f"{meter.rule}: {source} {meter.table}{until}")
    output.result(
        {
            "meters": [
                {
                    "rule": meter.rule,
                    "table": meter.table,
                    "size": meter.size,
                    "sources": [{"source": source, "left_s": left_s} for source, left_s in meter.sources],
                }
                for meter in meters
            ]
        }
    )
    return 0 if listing is not None else 1


def _add_state(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state", type=Path, default=Path(_STATE), metavar="DIR", help=f"the state folder; default {_STATE}"
    )


def _read_section(path: Path) -> FirewallSection:
    """Return the policy's section; without one, the empty section, whose check then says what is missing.

    Whatever is wrong with it is told with its line, before anything is touched.
    """
    from tidegate.cli.policy import read_text
    from tidegate.firewall.section import FirewallSection
    from tidegate.policy.check import read_ruleset

    policy, _ = read_ruleset(read_text(path), path.name)
    return policy.firewall or FirewallSection()
