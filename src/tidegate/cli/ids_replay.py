"""``tidegate ids replay``: a capture file through the sensor."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tidegate.base.durable import translate_os_errors
from tidegate.cli.ids_options import (
    REFUSED_STATUS,
    add_sensor_options,
    load_section,
    sensor_config,
    tell_refused,
    wants_engine,
)
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.ids.inspector import Sensor

MAX_SHOWN = 1000  # alerts in the answer; --eve has all
PROGRESS_S = 0.5


def add_to(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    replay = add_verb(verbs, "replay", "run a pcap or pcapng file through the sensor")
    replay.add_argument("capture", type=Path, metavar="CAPTURE", help="the capture file, uncompressed")
    replay.add_argument(
        "--eve", default=None, metavar="FILE", help="write the EVE lines to FILE; '-' is standard output"
    )
    replay.add_argument("--fast", metavar="FILE", help="write a line of text for each alert to FILE, as in fast.log")
    replay.add_argument("--stats", action="store_true", help="print the counters")
    replay.add_argument(
        "--fail-on-refused", action="store_true", help="exit status 3 if a rule was refused; the rest is inspected"
    )
    replay.add_argument("--progress", action="store_true", help="say on standard error how far it is")
    add_sensor_options(replay, flows="all")
    replay.set_defaults(run=run_replay)


def run_replay(arguments: argparse.Namespace, output: Output) -> int:
    """Replay one file and say what was in it; the exit status is 0 whether or not there were alerts."""
    from tidegate.ids.fastlog import encode_fast

    lines, stats_line, refused, sensor = _open_replay(arguments)
    tally = _Tally(progress=arguments.progress)
    with _open_eve(arguments.eve) as eve, _open_eve(arguments.fast) as fast:
        for line in lines:
            if eve is not None:
                eve.write(line + "\n")
            if fast is not None and (text := encode_fast(json.loads(line))) is not None:
                fast.write(text + "\n")
            if arguments.eve != "-":
                tally.add(line)
        last = stats_line()
        if sensor is not None and (folder := dict(sensor.settings).get("default-data-dir")):
            sensor.keep_datasets(Path(folder))
        if eve is not None:
            eve.write(last + "\n")
    status = REFUSED_STATUS if refused and arguments.fail_on_refused else 0
    if arguments.eve == "-":
        return status  # the lines are the answer
    stats = json.loads(last).get("stats", {})
    _show(output, tally, stats if arguments.stats else None)
    output.result({"events": tally.kinds, "alerts": tally.alerts, "alerts_left_out": tally.left_out, "stats": stats})
    return status


def _open_replay(arguments: argparse.Namespace) -> tuple[Iterator[str], Callable[[], str], int, Sensor | None]:
    """Return the EVE lines to come, what gives the counters at the end, how many rules were refused, the engine."""
    with translate_os_errors(arguments.capture):
        arguments.capture.stat()
    if wants_engine(arguments):
        from tidegate.ids.inspector import Sensor

        sensor = Sensor(sensor_config(arguments))
        return sensor.replay_lines(arguments.capture), sensor.stats_line, tell_refused(sensor), sensor
    from tidegate.ids.section import REPLAY_FLOW_EVENTS_PER_S, plan_sensor
    from tidegate.ids.sensor import Replay

    plan = plan_sensor(load_section(arguments), flow_events_per_s=REPLAY_FLOW_EVENTS_PER_S)
    replay = Replay(str(arguments.capture), plan.config_json)
    return iter(replay), replay.stats_line, 0, None


@dataclass(slots=True)
class _Tally:
    """Counts events by kind and keeps the first alerts; of a detector's alert, its beginning alone."""

    progress: bool
    kinds: dict[str, int] = field(default_factory=dict)
    alerts: list[dict[str, object]] = field(default_factory=list)
    left_out: int = 0
    _next_s: float = 0.0

    def add(self, line: str) -> None:
        event = json.loads(line)
        kind = event["event_type"]
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        state = event["metadata"].get("state") if isinstance(event.get("metadata"), dict) else None
        if kind == "alert" and state in (None, "start"):
            if len(self.alerts) < MAX_SHOWN:
                self.alerts.append(event)
            else:
                self.left_out += 1
        if self.progress and time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + PROGRESS_S
            count = sum(self.kinds.values())
            print(
                f"\r{count} events, {self.kinds.get('alert', 0)} alerts, {event.get('timestamp', '')}",
                end="",
                file=sys.stderr,
            )


def _show(output: Output, tally: _Tally, stats: dict[str, object] | None) -> None:
    if tally.progress:
        print(file=sys.stderr)
    output.line("events: " + (", ".join(f"{count} {kind}" for kind, count in sorted(tally.kinds.items())) or "none"))
    for alert in tally.alerts:
        metadata, rule = alert.get("metadata"), alert.get("alert")
        detector = metadata.get("detector") if isinstance(metadata, dict) else None
        if detector is None and isinstance(rule, dict):
            detector = f"[{rule.get('gid')}:{rule.get('signature_id')}:{rule.get('rev')}] {rule.get('signature')}"
        source, target = alert.get("src_ip", "many sources"), alert.get("dest_ip", "")
        output.line(f"{alert.get('timestamp')}  {detector}  {source} -> {target}")
    if tally.left_out:
        output.line(f"{tally.left_out} more alerts; --eve FILE has all")
    for group, counters in (stats or {}).items():
        if isinstance(counters, dict):
            shown = ((name, value) for name, value in counters.items() if value and not isinstance(value, (dict, list)))
            output.line(f"{group}: " + ", ".join(f"{name} {value}" for name, value in shown))


@contextlib.contextmanager
def _open_eve(target: str | None) -> Iterator[TextIO | None]:
    if target is None:
        yield None
    elif target == "-":
        yield sys.stdout
    else:
        with translate_os_errors(target), Path(target).open("w", encoding="utf-8") as stream:
            yield stream
