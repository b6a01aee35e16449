"""``tidegate firewall ban``, ``unban``, ``bans``: who is dropped in the kernel, and for how long."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.firewall.bans import Bans
    from tidegate.firewall.bantable import Prefix

_STATE = "/var/lib/tidegate/firewall"
_MAX_FEED_BYTES = 8 << 20  # 100,000 prefixes with a comment each
_LIMIT = 10_000  # of a listing: keeps the command under 40 MB, also with a hundred thousand bans
_MAX_SHOWN = 20  # of what an import left out; --json has all


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    ban = add_verb(verbs, "ban", "drop everything from an address or a prefix for a time")
    _add_source(ban)
    ban.add_argument("--for", dest="seconds", type=int, default=600, metavar="SECONDS", help="how long; default 600")
    ban.set_defaults(run=run_ban)
    unban = add_verb(verbs, "unban", "lift a ban")
    _add_source(unban)
    unban.set_defaults(run=run_unban)

    bans = add_verb(verbs, "bans", "list the bans in force; import, restore or clear them")
    bans.add_argument(
        "--limit", type=_count, default=_LIMIT, metavar="COUNT", help=f"list so many at most; 0: all; default {_LIMIT}"
    )
    _add_state(bans)
    bans.set_defaults(run=run_bans)
    acts = bans.add_subparsers(dest="subverb", metavar="ACT")
    imported = add_verb(acts, "import", "ban every address and prefix of a file")
    imported.add_argument("file", type=Path, metavar="FILE", help="one a line; # or ; begins a comment")
    imported.add_argument(
        "--for", dest="seconds", type=int, default=86400, metavar="SECONDS", help="how long; default a day"
    )
    imported.set_defaults(run=run_import)
    restore = add_verb(acts, "restore", "ban again what the journal says, as at boot")
    restore.set_defaults(run=run_restore_bans)
    clear = add_verb(acts, "clear", "lift all bans")
    clear.set_defaults(run=run_clear)
    for act in (imported, restore, clear):  # not to hide what stands before the word
        _add_state(act, default=argparse.SUPPRESS)


def run_ban(arguments: argparse.Namespace, output: Output) -> int:
    """Ban one address or prefix."""
    source = _source(arguments)
    bans = _open(arguments)
    lasts_s = bans.ban(source, arguments.seconds)
    kept = _finish(bans, output)
    output.line(f"{source} is banned for {lasts_s:.0f} s.")
    output.result({"address": str(source), "seconds": arguments.seconds, "lasts_s": lasts_s, "kept": kept})
    return 0


def run_unban(arguments: argparse.Namespace, output: Output) -> int:
    """Lift one ban."""
    source = _source(arguments)
    bans = _open(arguments)
    bans.unban(source)
    kept = _finish(bans, output)
    output.line(f"{source} is not banned any more.")
    output.result({"address": str(source), "kept": kept})
    return 0


def run_bans(arguments: argparse.Namespace, output: Output) -> int:
    """List the bans."""
    from itertools import islice

    from tidegate.firewall.bans import Bans

    opened = Bans()
    bans = opened.iterate_bans()
    shown = list(islice(bans, arguments.limit or None))
    total = len(shown) + sum(1 for _ in bans)
    opened.close()
    output.table(("address", "seconds left"), [(ban, f"{ban.remaining_s:.0f}") for ban in shown])
    if total > len(shown):
        output.line(f"{total - len(shown)} more; see --limit")
    output.result({"total": total, "bans": [{"address": str(ban), "remaining_s": ban.remaining_s} for ban in shown]})
    return 0


def run_import(arguments: argparse.Namespace, output: Output) -> int:
    """Ban what a file lists; 1 when some of it may not be banned."""
    from tidegate.base.durable import read_file_bounded
    from tidegate.firewall.bans import parse_feed

    text = read_file_bounded(arguments.file, limit_bytes=_MAX_FEED_BYTES).decode(errors="replace")
    count = sum(1 for _ in parse_feed(text))  # all of it is read before any of it counts
    bans = _open(arguments)
    refused = bans.ban_all(parse_feed(text), arguments.seconds)
    kept = _finish(bans, output)
    output.line(f"{count - len(refused)} of {count} are banned for {arguments.seconds} s or longer.")
    for _, error in refused[:_MAX_SHOWN]:
        output.line(f"left out: {error.message} [{error.code}]")
    if len(refused) > _MAX_SHOWN:
        output.line(f"left out: {len(refused) - _MAX_SHOWN} more")
    output.result(
        {
            "banned": count - len(refused),
            "seconds": arguments.seconds,
            "kept": kept,
            "left_out": [{"address": str(prefix), "code": error.code} for prefix, error in refused],
        }
    )
    return 1 if refused else 0


def run_restore_bans(arguments: argparse.Namespace, output: Output) -> int:
    """Ban again what the journal says; 1 when some of it was left out or damaged."""
    from dataclasses import asdict

    from tidegate.base.clock import SystemClock
    from tidegate.firewall.banrestore import restore_bans

    found = restore_bans(arguments.state, SystemClock().now_s())
    output.line(
        f"{found.restored} bans restored, {found.expired} over, {found.protected} protected by the policy, "
        f"{found.full} without room, {found.corrupt} damaged records."
    )
    output.result(asdict(found))
    return 1 if found.full or found.corrupt else 0


def run_clear(arguments: argparse.Namespace, output: Output) -> int:
    """Lift all bans."""
    bans = _open(arguments)
    count = bans.clear()
    kept = _finish(bans, output)
    output.line(f"{count} bans lifted.")
    output.result({"lifted": count, "kept": kept})
    return 0


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("address", metavar="ADDR|PREFIX", help="an IPv4 or IPv6 address, or a prefix (192.0.2.0/24)")
    parser.add_argument(
        "--prefix", type=int, metavar="BITS", help="the whole prefix of so many bits around the address (64)"
    )
    _add_state(parser)


def _add_state(parser: argparse.ArgumentParser, *, default: object = Path(_STATE)) -> None:
    parser.add_argument(
        "--state", type=Path, default=default, metavar="DIR", help=f"the state folder; default {_STATE}"
    )


def _count(word: str) -> int:
    count = int(word)
    if count < 0:
        raise ValueError(word)
    return count


def _source(arguments: argparse.Namespace) -> Prefix | str:
    """Return what the command line names, as a prefix if it names one."""
    from tidegate.firewall.bans import parse_around

    if arguments.prefix is None:
        return str(arguments.address)
    return parse_around(arguments.address, arguments.prefix)


def _open(arguments: argparse.Namespace) -> Bans:
    from tidegate.firewall.bans import Bans
    from tidegate.firewall.banstore import BanStore

    return Bans(store=BanStore(arguments.state))


def _finish(bans: Bans, output: Output) -> bool:
    """Make the change durable and return whether it is; the kernel has it in any case."""
    from tidegate.base.errors import TidegateError

    complaint = bans.complaint
    if bans.store is not None:
        try:
            bans.store.sync()
        except TidegateError as error:
            complaint = error
    bans.close()
    if complaint is not None:
        output.line(f"warning: in force, but not kept over a reboot: {complaint.message} [{complaint.code}]")
    return complaint is None
