"""One interface, several workers: a thread, a sensor and a share of the memory for each, one set of rules for all.

The kernel gives each flow, both ways and with its fragments, to one worker, by a hash of its addresses and ports. The
Rust sensor runs without the interpreter lock: workers use as many cores. What one worker alone sees is what its flows
are: a threshold that counts over several flows of one source counts in each worker by itself.

Touches: packet sockets, threads.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

from tidegate.ids.errors import ConfigInvalid
from tidegate.ids.inspector import POLL_MS, LiveCapture, Sensor, SensorConfig
from tidegate.ids.sensor import LINES_A_STEP
from tidegate.ids.settings import parse_memory

MAX_WORKERS = 64  # cores of the largest machine that anybody would call a gateway
STEPS_WAITING = 4  # of lines, for each worker; then lines wait in its sensor, which counts what finds no room there
_HIGHEST = frozenset({"uptime", "pressure", "pressure_max"})  # of these the workers' highest counts; the rest is summed


class Workers:
    """An interface that ``count`` workers share. Open it, give up privileges, ``start``, then poll it as one capture.

    Raises as ``Sensor.open_interface``; ``ids.config.invalid`` where the memory is too little for so many.
    """

    def __init__(self, config: SensorConfig, count: int) -> None:
        if not 1 <= count <= MAX_WORKERS:
            raise ConfigInvalid(f"a sensor has 1 to {MAX_WORKERS} workers, not {count}", field="workers")
        share = replace(config, memory=f"{parse_memory(config.memory) // count >> 10}KiB")
        first = Sensor(share)
        self.sensors = (first, *(Sensor(share, rules=first.rules) for _ in range(count - 1)))
        # each worker that saw room puts one step at most: that is the bound, and nobody ever waits
        self._lines: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
        self._steps = STEPS_WAITING * count
        self._is_over = threading.Event()
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="ids-worker")
        self._working: list[Future[None]] = []
        group = os.getpid() & 0xFFFF  # groups are numbered for the whole network namespace
        self._captures: list[LiveCapture] = []
        try:
            for sensor in self.sensors:
                self._captures.append(sensor.open_interface(fanout=group))
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Begin; capabilities belong to threads, so what is to be given up is given up before."""
        self._working = [self._executor.submit(self._work, capture) for capture in self._captures]

    def poll(self, timeout_ms: int = POLL_MS) -> list[str]:
        """Return EVE lines of all workers as soon as there are some, after at most ``timeout_ms``."""
        for work in self._working:
            if work.done():
                work.result()  # raises what ended it
        try:
            return self._lines.get(timeout=timeout_ms / 1000)
        except queue.Empty:
            return []

    def finish(self) -> list[str]:
        """Stop the workers, end every open flow and return the lines that are left."""
        self._stop()
        lines: list[str] = []
        while not self._lines.empty():
            lines += self._lines.get_nowait()
        for sensor in self.sensors:
            lines += sensor.finish_lines()
        return lines

    def stats_line(self) -> str:
        """Return the counters of all workers so far as one EVE line."""
        return merge_stats([sensor.stats_line() for sensor in self.sensors])

    def close(self) -> None:
        """Give the interface back; harmless when repeated."""
        self._stop()
        for capture in self._captures:
            capture.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        self._is_over.set()
        self._executor.shutdown()

    def _work(self, capture: LiveCapture) -> None:
        while not self._is_over.is_set():
            # while the reader is slow the ring is emptied all the same
            lines = capture.poll(max_lines=0 if self._lines.qsize() >= self._steps else LINES_A_STEP)
            if lines:
                self._lines.put(lines)


def merge_stats(lines: Sequence[str]) -> str:
    """Return one ``stats`` line for several: counters are added up, ages and levels are the highest."""
    first, *others = (json.loads(line) for line in lines)
    for other in others:
        first["timestamp"] = max(first["timestamp"], other["timestamp"])
        _add(first["stats"], other["stats"])
    return json.dumps(first, separators=(",", ":"))


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        held = total.get(name)
        if isinstance(held, dict) and isinstance(value, dict):
            _add(held, value)
        elif isinstance(held, int) and isinstance(value, int):
            total[name] = max(held, value) if name in _HIGHEST else held + value
        elif held is None:  # what another worker has not met yet; texts and lists are the same in all
            total[name] = value
