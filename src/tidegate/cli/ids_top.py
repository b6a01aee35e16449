"""``tidegate ids top``: a live view of talkers, flows and alerts."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    import curses

    from tidegate.ids.talkers import Talkers

ROWS = 10  # of each table where no screen says how many fit
REDRAW_S = 1.0
POLL_MS = 250


class Feed(Protocol):
    """Where events come from."""

    def poll(self) -> list[dict[str, Any]]: ...


def add_to(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    top = add_verb(verbs, "top", "show who talks most, the largest flows and the alerts, live; q ends it")
    source = top.add_mutually_exclusive_group(required=True)
    source.add_argument("--interface", metavar="IF", help="watch this interface (needs CAP_NET_RAW)")
    source.add_argument("--eve", type=Path, metavar="FILE", help="follow this EVE file; with --once, a capture will do")
    top.add_argument(
        "--rules", action="append", default=[], type=Path, metavar="FILE", help="signature rules; repeat it"
    )
    top.add_argument("--once", action="store_true", help="print the tables once and end; so it is without a terminal")
    top.add_argument(
        "--seconds", type=float, metavar="N", help="stop by itself after so long; with --once, look so long"
    )
    top.add_argument(
        "--rows", type=int, default=ROWS, metavar="N", help=f"rows of each table with --once; default {ROWS}"
    )
    top.set_defaults(run=run_top)


def run_top(arguments: argparse.Namespace, output: Output) -> int:
    """Show until asked to stop; ``--once``, ``--json`` and where there is no terminal print one state."""
    from tidegate.ids.talkers import Talkers

    talkers = Talkers()
    if arguments.once or output.as_json or not _has_terminal():
        _fill(talkers, arguments)
        _print(talkers, arguments.rows, output)
        return 0
    import curses

    with _open_feed(arguments) as feed, contextlib.suppress(KeyboardInterrupt):
        curses.wrapper(_run_screen, feed, talkers, arguments.seconds)
    return 0


def _has_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _fill(talkers: Talkers, arguments: argparse.Namespace) -> None:
    if arguments.eve is not None:
        from tidegate.cli.ids_events import read_events

        for event in read_events(arguments.eve):
            talkers.add(event)
        return
    deadline_s = time.monotonic() + (arguments.seconds if arguments.seconds is not None else 10.0)
    with _open_feed(arguments) as feed:
        while time.monotonic() < deadline_s:
            for event in feed.poll():
                talkers.add(event)


def _print(talkers: Talkers, rows: int, output: Output) -> None:
    from tidegate.ids.talkers import HEADERS

    tables = talkers.tables(rows)
    for name, header in HEADERS.items():
        output.line(f"{name}:")
        output.table(header, tables[name])
        output.line()
    documents = {name: [dict(zip(HEADERS[name], row, strict=True)) for row in tables[name]] for name in HEADERS}
    output.result({"events": talkers.kinds, **documents})


@contextlib.contextmanager
def _open_feed(arguments: argparse.Namespace) -> Iterator[Feed]:
    if arguments.eve is not None:
        from tidegate.ids.evefile import EveTail

        with contextlib.closing(EveTail(arguments.eve, from_start=True)) as tail:
            yield tail
        return
    from tidegate.base.confine import confine
    from tidegate.cli.ids_options import has_engine
    from tidegate.ids.errors import WorkerConfinement

    if has_engine() or arguments.rules:
        from tidegate.ids.inspector import Sensor, SensorConfig

        sensor = Sensor(SensorConfig(rules=tuple(arguments.rules), interface=arguments.interface))
        with sensor.open_interface() as capture:
            confine(keep=None, ends_with_parent=False, failed=WorkerConfinement)
            yield _LineFeed(capture)
        return
    from tidegate.ids.section import FlowEvents, IdsSection, plan_sensor
    from tidegate.ids.sensor import LiveSensor

    plan = plan_sensor(IdsSection(flow_events=FlowEvents.ALL))
    with LiveSensor(arguments.interface, plan.config_json) as live:
        confine(keep=None, ends_with_parent=False, failed=WorkerConfinement)
        yield _LineFeed(live)


class _LineFeed:
    """A source of lines as a source of events."""

    def __init__(self, source: Any) -> None:
        self._source = source

    def poll(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._source.poll(POLL_MS)]


def _run_screen(screen: curses.window, feed: Feed, talkers: Talkers, seconds: float | None) -> None:
    import curses

    with contextlib.suppress(curses.error):  # a terminal without this has a cursor that blinks
        curses.curs_set(0)
    screen.timeout(POLL_MS)
    deadline_s = time.monotonic() + (seconds if seconds is not None else float("inf"))
    next_s = 0.0
    while time.monotonic() < deadline_s and screen.getch() not in (ord("q"), 27):
        for event in feed.poll():
            talkers.add(event)
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + REDRAW_S
            _draw(screen, talkers)


def _draw(screen: curses.window, talkers: Talkers) -> None:
    import curses

    height, width = screen.getmaxyx()
    screen.erase()
    for number, (line, is_head) in enumerate(screen_lines(talkers, height, width)):
        with contextlib.suppress(curses.error):  # the terminal became smaller meanwhile
            screen.addnstr(number, 0, line, max(width - 1, 1), curses.A_BOLD if is_head else curses.A_NORMAL)
    screen.refresh()


def screen_lines(talkers: Talkers, height: int, width: int) -> Iterator[tuple[str, bool]]:
    """Yield the lines of a screen of that size, and of each whether it is a heading."""
    from tidegate.ids.talkers import HEADERS

    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(talkers.kinds.items()))
    yield f"tidegate ids top   {talkers.events} events: {kinds}"[:width], True
    rows = max((height - 2) // len(HEADERS) - 2, 1)
    for name, table in talkers.tables(rows).items():
        header = HEADERS[name]
        texts = [[str(cell) for cell in row] for row in (header, *table)]
        widths = [max(len(row[column]) for row in texts) for column in range(len(header))]
        yield "", False
        for number, row in enumerate(texts):
            line = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip()
            yield line[:width], number == 0
