"""``tidegate ids baseline``: learn a device's peers and services, show them, say what is new."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.ids.baseline import Baseline

MAX_FILE_BYTES = 64 << 20  # MAX_LINES entries of some 300 bytes, three times over


def add_to(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs below ``baseline``."""
    baseline = add_verb(verbs, "baseline", "learn who talks to whom about what, and say later what is new")
    below = baseline.add_subparsers(dest="subverb", metavar="ACTION", required=True)

    learn = add_verb(below, "learn", "learn from captures or EVE files (flow events); answered flows alone count")
    learn.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="a capture file or an EVE file")
    learn.add_argument("--output", type=Path, required=True, metavar="FILE", help="write the baseline here")
    learn.add_argument("--add", action="store_true", help="add to the baseline that is there")
    learn.set_defaults(run=run_learn)

    show = add_verb(below, "show", "list services with their peers")
    show.add_argument("baseline", type=Path, metavar="FILE", help="the baseline")
    show.set_defaults(run=run_show)

    diff = add_verb(
        below, "diff", "say what a capture, an EVE file or a second baseline has that is new; 1 if anything"
    )
    diff.add_argument("baseline", type=Path, metavar="FILE", help="the baseline")
    diff.add_argument("source", type=Path, metavar="SOURCE", help="a capture file, an EVE file or a baseline")
    diff.set_defaults(run=run_diff)


def run_learn(arguments: argparse.Namespace, output: Output) -> int:
    """Learn and write."""
    from tidegate.base.durable import write_file_atomic
    from tidegate.cli.ids_events import read_events
    from tidegate.ids.baseline import Baseline, encode_baseline

    baseline = _read(arguments.output) if arguments.add and arguments.output.exists() else Baseline()
    for source in arguments.sources:
        for event in read_events(source):
            baseline.learn(event)
    write_file_atomic(arguments.output, encode_baseline(baseline))
    services = baseline.services()
    output.line(f"{len(baseline.talks)} peers with {len(services)} services, written to {arguments.output}")
    if baseline.forgotten:
        output.line(f"not complete: {baseline.forgotten} flows found no room")
    output.result({"talks": len(baseline.talks), "services": len(services), "forgotten": baseline.forgotten})
    return 0


def run_show(arguments: argparse.Namespace, output: Output) -> int:
    """Show a table of who talks to whom."""
    from msgspec import to_builtins

    baseline = _read(arguments.baseline)
    rows = [
        (talk.server, _service(talk.proto, talk.port, talk.app), talk.client, seen.flows, seen.last)
        for talk, seen in sorted(baseline.talks.items(), key=lambda one: str(one[0]))
    ]
    output.table(("server", "service", "client", "flows", "last seen"), rows)
    if baseline.forgotten:
        output.line(f"not complete: {baseline.forgotten} flows found no room")
    entries = [{**to_builtins(talk), **to_builtins(seen)} for talk, seen in baseline.talks.items()]
    output.result({"entries": entries, "forgotten": baseline.forgotten})
    return 0


def run_diff(arguments: argparse.Namespace, output: Output) -> int:
    """Compare; what is gone is said too but is no finding: a quiet day is not an attack."""
    from msgspec import to_builtins

    from tidegate.ids.baseline import compare_baselines

    difference = compare_baselines(_read(arguments.baseline), _read_any(arguments.source))
    fresh = set(difference.new_services)
    for talk in difference.new:
        output.line(f"{'new service' if talk in fresh else 'new peer   '}  {talk}")
    for talk in difference.gone:
        output.line(f"not seen     {talk}")
    output.line(
        f"{len(difference.new)} new, {len(difference.new_peers)} of them new addresses; {len(difference.gone)} not seen"
    )
    output.result(
        {
            "new": [to_builtins(talk) for talk in difference.new],
            "new_services": [to_builtins(talk) for talk in difference.new_services],
            "new_peers": list(difference.new_peers),
            "gone": [to_builtins(talk) for talk in difference.gone],
        }
    )
    return 1 if difference.new else 0


def _read(path: Path) -> Baseline:
    from tidegate.base.durable import read_file_bounded
    from tidegate.ids.baseline import parse_baseline

    return parse_baseline(read_file_bounded(path, limit_bytes=MAX_FILE_BYTES))


def _read_any(path: Path) -> Baseline:
    """Read a baseline, or learn one from a capture or an EVE file."""
    from tidegate.base.durable import translate_os_errors
    from tidegate.cli.ids_events import read_events
    from tidegate.ids.baseline import FORMAT, learn_baseline

    with translate_os_errors(path), path.open("rb") as stream:
        head = stream.read(64)
    return _read(path) if FORMAT.encode() in head else learn_baseline(read_events(path))


def _service(proto: str, port: int | None, app: str) -> str:
    return f"{proto.lower()}{'' if port is None else f'/{port}'}{f' {app}' if app else ''}"
