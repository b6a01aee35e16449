"""``tidegate ids follow``: the alerts of a growing EVE file, floods of the same one counted, into the event log."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.ids.aggregate import Finding

POLL_S = 0.25


def add_to(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    follow = add_verb(
        verbs,
        "follow",
        "follow an EVE file through rotation and truncation; the same alert many times is one with a count",
    )
    follow.add_argument("eve", type=Path, metavar="EVE", help="the file that Suricata or the sensor writes")
    follow.add_argument("--from-start", action="store_true", help="read what is there already as well")
    follow.add_argument("--once", action="store_true", help="read what is there and end")
    follow.add_argument("--seconds", type=float, metavar="N", help="stop by itself after so long")
    follow.add_argument(
        "--window", type=float, default=60.0, metavar="S", help="count the same alert for so long; default 60"
    )
    follow.add_argument("--events", type=Path, metavar="FOLDER", help="write each finding into this event log (OCSF)")
    follow.add_argument("--device", default="ids", metavar="ID", help="the device's id in that log; default ids")
    follow.add_argument("--event-key", metavar="URI", help="the key that signs that log's checkpoints")
    follow.set_defaults(run=run_follow)


def run_follow(arguments: argparse.Namespace, output: Output) -> int:
    """Print a line for each finding (with --json a JSON object a line), and write it to the log where one is named."""
    from tidegate.ids.aggregate import Aggregator
    from tidegate.ids.evefile import EveTail

    tail = EveTail(arguments.eve, from_start=arguments.from_start or arguments.once)
    aggregator = Aggregator(window_s=arguments.window)
    deadline_s = time.monotonic() + (arguments.seconds if arguments.seconds is not None else float("inf"))
    with contextlib.closing(tail), _opened_log(arguments) as log:

        def tell(findings: Iterable[Finding]) -> None:
            for finding in findings:
                log(finding)
                print(json.dumps(finding.document()) if output.as_json else _text(finding), flush=True)

        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < deadline_s:
                events = tail.poll()
                for event in events:
                    found = aggregator.add(event, time.monotonic())
                    tell([found] if found is not None else [])
                tell(aggregator.due(time.monotonic()))
                if not events:
                    if arguments.once:
                        break
                    time.sleep(POLL_S)
        tell(aggregator.close())
    if tail.damaged:
        print(f"{tail.damaged} lines were no events", file=sys.stderr)
    return 0


@contextlib.contextmanager
def _opened_log(arguments: argparse.Namespace) -> Iterator[Callable[[Finding], None]]:
    """Yield what writes a finding into the event log that the arguments name, if they do."""
    if arguments.events is None:
        yield lambda _: None
        return
    from tidegate.base.clock import SystemEntropy
    from tidegate.base.errors import TidegateError
    from tidegate.cli.keyuri import open_key
    from tidegate.events.spool import EventLog
    from tidegate.ids.aggregate import event_of_finding

    log = EventLog(
        arguments.events,
        device_id=arguments.device,
        boot_id=SystemEntropy().random_bytes(8).hex(),  # of this run
        signer=open_key(arguments.event_key) if arguments.event_key else None,
    )

    def write(finding: Finding) -> None:
        try:
            log.append(event_of_finding(finding))
        except TidegateError as error:  # a full log must not end the watch; the terminal has both
            print(f"event not written: {error.message} [{error.code}]", file=sys.stderr, flush=True)

    with log:
        yield write


def _text(finding: Finding) -> str:
    times = "" if finding.is_first else f"  {finding.count} more times until {finding.last}"
    ends = f"{finding.source} -> {finding.destination or 'several'}"
    text = f"{finding.first}  [{finding.rule}] {finding.title}  {ends}{times}"
    return "".join(letter if letter.isprintable() else "?" for letter in text)  # no escape sequence to the terminal
