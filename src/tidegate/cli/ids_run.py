"""``tidegate ids run``: the sensor on an interface, a packet log or a packet queue, in the foreground."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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

if TYPE_CHECKING:
    from tidegate.ids.inspector import SensorConfig

POLL_MS = 250  # the sensor's own tick
STATS_S = 60.0


class Source(Protocol):
    """Where lines come from: one capture, or several workers."""

    def poll(self, timeout_ms: int) -> list[str]: ...
    def finish(self) -> list[str]: ...
    def stats_line(self) -> str: ...


def add_to(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    run = add_verb(verbs, "run", "watch live packets, or decide about them, and print EVE lines until interrupted")
    source = run.add_mutually_exclusive_group(required=True)
    source.add_argument("--interface", metavar="IF", help="capture on this interface (needs CAP_NET_RAW)")
    source.add_argument(
        "--nflog",
        type=int,
        metavar="GROUP",
        help="read the packets that firewall rules log to this NFLOG group (needs CAP_NET_ADMIN to open)",
    )
    source.add_argument(
        "--queue",
        type=int,
        metavar="N",
        help="stand inline: the firewall hands packets to this NFQUEUE, `drop` and `reject` rules stop them "
        "(needs CAP_NET_ADMIN; implies --simulate-ips)",
    )
    run.add_argument(
        "--fail-open",
        action="store_true",
        help="with --queue: let packets go on unseen when the queue is full, instead of dropping them; when nobody "
        "reads the queue, the firewall's rule decides (--queue-bypass)",
    )
    run.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="with --interface: share its flows among N threads; the memory is divided too",
    )
    run.add_argument("--seconds", type=float, metavar="N", help="stop by itself after so long")
    run.add_argument("--eve", default="-", metavar="FILE", help="append the EVE lines to FILE; default standard output")
    add_sensor_options(run, flows="answered")
    run.set_defaults(run=run_live)


def run_live(arguments: argparse.Namespace, _output: Output) -> int:
    """Write EVE lines until a signal or the time is up; the last one has the counters."""
    _check(arguments)
    deadline_s = time.monotonic() + (arguments.seconds if arguments.seconds is not None else float("inf"))
    with _open_sink(arguments.eve) as write:
        if wants_engine(arguments) or arguments.workers > 1:
            with _open_engine(arguments) as source:
                _follow(source, deadline_s, write)
        else:
            _run_detectors(arguments, deadline_s, write)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    from tidegate.ids.errors import ConfigInvalid

    if arguments.fail_open and arguments.queue is None:
        raise ConfigInvalid("--fail-open is about --queue", field="fail-open")
    if arguments.workers != 1 and arguments.interface is None:
        raise ConfigInvalid("--workers share an --interface", field="workers")


@contextlib.contextmanager
def _open_engine(arguments: argparse.Namespace) -> Iterator[Source]:
    """Open the source as root, and be nobody from there on; a queue's verdicts need CAP_NET_ADMIN each."""
    from tidegate.base.confine import CAP_NET_ADMIN, confine
    from tidegate.ids.errors import WorkerConfinement
    from tidegate.ids.inspector import Sensor

    config = sensor_config(arguments, interface=arguments.interface)
    if arguments.workers != 1:
        with _open_workers(config, arguments.workers) as workers:
            yield workers
        return
    sensor = Sensor(config)
    tell_refused(sensor)
    keep = None
    if arguments.interface is not None:
        opened = sensor.open_interface()
    elif arguments.queue is not None:
        opened, keep = sensor.open_queue(arguments.queue, fail_open=arguments.fail_open), CAP_NET_ADMIN
    else:
        opened = sensor.open_log(arguments.nflog)
    with opened as capture:
        confine(keep=keep, ends_with_parent=False, failed=WorkerConfinement)
        yield capture


@contextlib.contextmanager
def _open_workers(config: SensorConfig, count: int) -> Iterator[Source]:
    from tidegate.base.confine import confine
    from tidegate.ids.errors import WorkerConfinement
    from tidegate.ids.fanout import Workers

    with Workers(config, count) as workers:
        tell_refused(workers.sensors[0])
        confine(keep=None, ends_with_parent=False, failed=WorkerConfinement)
        workers.start()
        yield workers


def _follow(source: Source, deadline_s: float, write: Callable[[list[str]], None]) -> None:
    next_stats_s = time.monotonic() + STATS_S
    with _stop_signal() as stopping:
        print("ready", file=sys.stderr, flush=True)  # behind the handlers: whoever reads it may send a signal at once
        while not stopping and time.monotonic() < deadline_s:
            write(source.poll(POLL_MS))
            if time.monotonic() >= next_stats_s:
                next_stats_s += STATS_S
                write([source.stats_line()])
        write([*source.finish(), source.stats_line()])


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[bool]]:
    """Give a list that is not empty once SIGTERM or SIGINT came: open flows and counters are written then too.

    An exception would leave an EVE line half-written; only the second signal is one, for a reader that hangs.
    """
    stopping: list[bool] = []

    def note(*_: object) -> None:
        if stopping:
            raise KeyboardInterrupt
        stopping.append(True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_detectors(arguments: argparse.Namespace, deadline_s: float, write: Callable[[list[str]], None]) -> None:
    from tidegate.base.confine import confine
    from tidegate.ids.errors import WorkerConfinement
    from tidegate.ids.section import plan_sensor
    from tidegate.ids.sensor import LiveSensor

    plan = plan_sensor(load_section(arguments))
    with LiveSensor(arguments.interface, plan.config_json) as sensor, _stop_signal() as stopping:
        confine(keep=None, ends_with_parent=False, failed=WorkerConfinement)
        while not stopping and time.monotonic() < deadline_s:
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
