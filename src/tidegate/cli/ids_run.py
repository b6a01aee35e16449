"""``tidegate ids run``: the sensor on an interface, in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tidegate.base.durable import translate_os_errors
from tidegate.cli.ids_options import (
    add_sensor_options,
    load_section,
    print_lines,
    sensor_config,
    tell_refused,
    wants_engine,
)
from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

POLL_MS = 250  # the sensor's own tick
_ENDING = (signal.SIGINT, signal.SIGTERM)


def add_to(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    run = add_verb(verbs, "run", "watch an interface and print EVE lines until interrupted (needs CAP_NET_RAW)")
    run.add_argument("--interface", required=True, metavar="IF", help="the interface to capture on")
    run.add_argument("--seconds", type=float, metavar="N", help="stop by itself after so long")
    run.add_argument("--eve", default="-", metavar="FILE", help="append the EVE lines to FILE; default standard output")
    add_sensor_options(run, flows="answered")
    run.set_defaults(run=run_live)


def run_live(arguments: argparse.Namespace, _output: Output) -> int:
    """Write EVE lines until a signal or the time is up; the last one has the counters."""
    deadline_s = time.monotonic() + (arguments.seconds if arguments.seconds is not None else float("inf"))
    with _open_sink(arguments.eve) as write, _until_signal() as is_stopped:
        if wants_engine(arguments):
            _run_engine(arguments, lambda: is_stopped() or time.monotonic() >= deadline_s, write)
        else:
            _run_detectors(arguments, lambda: is_stopped() or time.monotonic() >= deadline_s, write)
    return 0


@contextlib.contextmanager
def _until_signal() -> Iterator[Callable[[], bool]]:
    """Note SIGINT and SIGTERM for the body, so that no EVE line is left half-written; the second one interrupts."""
    stopping: list[int] = []

    def note(number: int, _: object) -> None:
        if stopping:
            raise KeyboardInterrupt
        stopping.append(number)

    before = {number: signal.signal(number, note) for number in _ENDING}
    try:
        yield lambda: bool(stopping)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_engine(arguments: argparse.Namespace, is_over: Callable[[], bool], write: Callable[[list[str]], None]) -> None:
    from tidegate.ids.inspector import Sensor

    sensor = Sensor(sensor_config(arguments, interface=arguments.interface))
    tell_refused(sensor)
    with sensor.open_interface() as capture:
        while not is_over():
            write(capture.poll())
        write([*sensor.finish_lines(), sensor.stats_line()])


def _run_detectors(
    arguments: argparse.Namespace, is_over: Callable[[], bool], write: Callable[[list[str]], None]
) -> None:
    from tidegate.ids.section import plan_sensor
    from tidegate.ids.sensor import LiveSensor

    plan = plan_sensor(load_section(arguments))
    with LiveSensor(arguments.interface, plan.config_json) as sensor:
        while not is_over():
            write(sensor.poll(POLL_MS))
        write([*sensor.finish(), sensor.stats_line()])


@contextlib.contextmanager
def _open_sink(target: str) -> Iterator[Callable[[list[str]], None]]:
    if target == "-":
        yield print_lines
        return
    with translate_os_errors(target), Path(target).open("a", encoding="utf-8") as stream:

        def write(lines: list[str]) -> None:
            if lines:
                stream.write("\n".join(lines) + "\n")
                stream.flush()

        yield write
