"""``tidegate ids``: run the sensor on an interface, replay captures."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tidegate.base.durable import translate_os_errors
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.ids.section import IdsSection

POLL_MS = 250  # the sensor's own tick


def build(parser: argparse.ArgumentParser) -> None:
    """Add the verbs."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    run = add_verb(verbs, "run", "watch an interface and print EVE lines until interrupted (needs CAP_NET_RAW)")
    run.add_argument("--interface", required=True, metavar="IF", help="the interface to capture on")
    run.add_argument("--seconds", type=float, metavar="N", help="stop by itself after so long")
    _add_settings(run, flows="answered")
    run.set_defaults(run=run_live)

    replay = add_verb(verbs, "replay", "run a pcap or pcapng file through the sensor")
    replay.add_argument("capture", type=Path, metavar="CAPTURE", help="the capture file, uncompressed")
    replay.add_argument(
        "--eve", default=None, metavar="FILE", help="write the EVE lines to FILE; '-' is standard output"
    )
    replay.add_argument("--stats", action="store_true", help="print the counters")
    _add_settings(replay, flows="all")
    replay.set_defaults(run=run_replay)


def run_live(arguments: argparse.Namespace, _output: Output) -> int:
    """Print EVE lines until a signal or the time is up; the last one has the counters."""
    from tidegate.ids.section import plan_sensor
    from tidegate.ids.sensor import LiveSensor

    plan = plan_sensor(_section(arguments))
    deadline_s = time.monotonic() + (arguments.seconds if arguments.seconds is not None else float("inf"))
    with LiveSensor(arguments.interface, plan.config_json) as sensor:
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < deadline_s:
                _print_lines(sensor.poll(POLL_MS))
        _print_lines([*sensor.finish(), sensor.stats_line()])
    return 0


def run_replay(arguments: argparse.Namespace, output: Output) -> int:
    """Replay one file and say what was in it; the exit status is 0 whether or not there were alerts."""
    from tidegate.ids.section import REPLAY_FLOW_EVENTS_PER_S, plan_sensor
    from tidegate.ids.sensor import Replay

    plan = plan_sensor(_section(arguments), flow_events_per_s=REPLAY_FLOW_EVENTS_PER_S)
    with translate_os_errors(arguments.capture):
        arguments.capture.stat()
    replay = Replay(str(arguments.capture), plan.config_json)
    kinds: dict[str, int] = {}
    alerts: list[dict[str, object]] = []
    with _open_eve(arguments.eve) as eve:
        for line in replay:
            if eve is not None:
                eve.write(line + "\n")
            event = json.loads(line)
            kinds[event["event_type"]] = kinds.get(event["event_type"], 0) + 1
            if event["event_type"] == "alert" and event["metadata"]["state"] == "start":
                alerts.append(event)
        if eve is not None:
            eve.write(replay.stats_line() + "\n")
    stats = replay.stats()
    if arguments.eve == "-":
        return 0  # the lines are the answer
    _show_replay(output, kinds, alerts, stats if arguments.stats else None)
    output.result({"events": kinds, "alerts": alerts, "stats": stats})
    return 0


def _show_replay(
    output: Output, kinds: dict[str, int], alerts: list[dict[str, object]], stats: dict[str, dict[str, int]] | None
) -> None:
    output.line("events: " + (", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"))
    for alert in alerts:
        metadata = alert["metadata"]
        detector = metadata["detector"] if isinstance(metadata, dict) else ""
        output.line(f"{alert['timestamp']}  {detector}  {alert.get('src_ip', 'many sources')} -> {alert['dest_ip']}")
    for group, counters in (stats or {}).items():
        if isinstance(counters, dict):
            output.line(f"{group}: " + ", ".join(f"{name} {value}" for name, value in counters.items() if value))


def _add_settings(parser: argparse.ArgumentParser, *, flows: str) -> None:
    parser.add_argument("--memory", default="8MiB", metavar="SIZE", help="bounds the whole sensor; default 8MiB")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="take the [ids] section of this policy instead")
    parser.add_argument(
        "--flows", choices=("off", "answered", "all"), default=flows, help=f"which flows to report; default {flows}"
    )


def _section(arguments: argparse.Namespace) -> IdsSection:
    from tidegate.ids.section import FlowEvents, IdsSection

    if arguments.policy is None:
        return IdsSection(memory=arguments.memory, flow_events=FlowEvents(arguments.flows))
    from tidegate.base.durable import read_file_bounded
    from tidegate.policy.document import MAX_POLICY_BYTES, parse_policy

    text = read_file_bounded(arguments.policy, limit_bytes=MAX_POLICY_BYTES).decode(errors="replace")
    return parse_policy(text, name=str(arguments.policy)).ids or IdsSection()


@contextlib.contextmanager
def _open_eve(target: str | None) -> Iterator[TextIO | None]:
    if target is None:
        yield None
    elif target == "-":
        yield sys.stdout
    else:
        with translate_os_errors(target), Path(target).open("w", encoding="ascii") as stream:
            yield stream


def _print_lines(lines: list[str]) -> None:
    if lines:
        data = memoryview(("\n".join(lines) + "\n").encode())
        while data:
            data = data[os.write(sys.stdout.fileno(), data) :]
