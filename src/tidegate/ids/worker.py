"""The sensor's process: ``python -m tidegate.ids.worker --interface IF``.

Reads its configuration (one JSON line, ``SensorPlan.config_json``) from standard input and the rules that it names,
opens the capture ring, becomes user nobody without a way back, and then writes EVE lines to standard output: first
``{"event_type":"ready", ...}`` (or ``{"event_type":"error","code":...}`` and exit status 3 or 4), a ``stats`` line
every ``STATS_S`` and a last one at the end.
Ends on SIGTERM, on SIGINT, when its reader is gone, and with its parent.

Imports little on purpose: it lives as long as the device does. Touches: packet socket, process credentials, pipes.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from tidegate.base.confine import confine
from tidegate.base.errors import TidegateError
from tidegate.ids.errors import ConfigInvalid, WorkerConfinement
from tidegate.ids.sensor import LINES_A_STEP, LiveSensor

if TYPE_CHECKING:
    from tidegate.ids.inspector import LiveCapture

MAX_CONFIG_BYTES = 1 << 20  # below 1 KiB without rules; 64 rule files and 256 settings, each at its longest, fit
POLL_MS = 250  # the sensor's own tick
RETIRE_MS = 60  # the ring hands over a block that is not full after 50 ms
STATS_S = 60.0
MAX_LINE = (
    32_768  # half of what the agent reads; an alert of ours has below 2 KiB, with all that a rule can log some 20
)
MAX_MEMBERS = 24  # of it and of its parts: Suricata's alerts have some 20 that are plain
MAX_TEXT = 256  # of a member of what is cut; a rule's message is seldom longer
LAST_WORDS_S = 1.0  # for a reader that is still there when we are asked to stop


def main(arguments: list[str]) -> int:
    """Run until asked to stop; return the exit status."""
    if len(arguments) != 2 or arguments[0] != "--interface":
        sys.stderr.write("usage: python -m tidegate.ids.worker --interface IF < CONFIG\n")
        return 2
    try:
        with open_sensor(arguments[1], _read_config()) as sensor:
            confine(keep=None, ends_with_parent=True, failed=WorkerConfinement)
            return _serve(sensor, arguments[1])
    except TidegateError as error:
        sys.stdout.write(json.dumps({"event_type": "error", "code": error.code, "message": error.message}) + "\n")
        sys.stdout.flush()
        return error.exit_status


def open_sensor(interface: str, config_json: str) -> LiveSensor | LiveCapture:
    """Open the interface: for scans and floods alone, or, where the configuration has settings, with rules.

    Rules are read here, while files of root can still be read.
    """
    try:
        config = json.loads(config_json)
    except ValueError as error:
        raise ConfigInvalid(f"the configuration line is no JSON: {error}") from error
    if not isinstance(config, dict) or "settings" not in config:
        return LiveSensor(interface, config_json)
    from tidegate.ids.inspector import Sensor, SensorConfig

    sensor = Sensor(
        SensorConfig(
            rules=tuple(config["rules"]),
            settings=tuple((name, value) for name, value in config["settings"]),
            memory=f"{config['memory_bytes'] >> 10}KiB",
            interface=interface,
        )
    )
    return sensor.open_interface()


def _serve(sensor: LiveSensor | LiveCapture, interface: str) -> int:
    stopping: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(True))
    out = Output(sys.stdout.fileno())
    out.put([json.dumps({"event_type": "ready", "interface": interface, "pid": os.getpid()})])
    next_stats_s = time.monotonic() + STATS_S
    while not stopping and out.has_reader():
        # while the reader is slow, events wait (and are counted) in the sensor: the ring is emptied all the same
        lines = sensor.poll(POLL_MS, max_lines=0 if out.is_full() else LINES_A_STEP)
        if time.monotonic() >= next_stats_s:
            next_stats_s += STATS_S
            lines.append(sensor.stats_line())
        out.put(lines)
    for _ in range(2):  # what is complete, then the block that the kernel is still filling
        out.put(sensor.poll(RETIRE_MS))
    out.put([*sensor.finish(), sensor.stats_line()])
    out.drain(LAST_WORDS_S)
    return 0


def fit_line(line: str) -> str:
    """Return an EVE line that its reader can take: of one that is too long, who, when and which rule.

    ``cut_bytes`` says in it how long it was.
    """
    if len(line) <= MAX_LINE:
        return line
    event = json.loads(line)
    kept = _short(event)
    kept |= {name: _short(event[name]) for name in _KEPT if isinstance(event.get(name), dict)}
    cut = {"cut_bytes": len(line)}
    fitted = json.dumps({**kept, **cut})
    return fitted if len(fitted) <= MAX_LINE else json.dumps({"event_type": event.get("event_type"), **cut})


_KEPT = ("alert", "metadata", "peer", "flow")


def _short(members: dict[str, Any]) -> dict[str, Any]:
    """Return the first members that are numbers or short texts."""
    plain = {name: value for name, value in members.items() if isinstance(value, str | int | float) and len(name) < 64}
    texts = {name: value[:MAX_TEXT] if isinstance(value, str) else value for name, value in plain.items()}
    return dict(itertools.islice(texts.items(), MAX_MEMBERS))


class Output:
    """Standard output that never makes us wait for its reader."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(descriptor, 0)  # only "the other end is gone" is of interest
        self._is_open = True
        os.set_blocking(descriptor, False)

    def has_reader(self) -> bool:
        return self._is_open and not self._poll.poll(0)

    def is_full(self) -> bool:
        """Write what can be written; return whether something is left over."""
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._is_open, self._rest = False, b""
        return bool(self._rest)

    def put(self, lines: list[str]) -> None:
        if lines:
            self._rest += ("\n".join(map(fit_line, lines)) + "\n").encode()
            self.is_full()

    def drain(self, timeout_s: float) -> None:
        """Give the reader a last chance."""
        writable = select.poll()
        writable.register(self._descriptor, select.POLLOUT)
        deadline_s = time.monotonic() + timeout_s
        while self.is_full() and time.monotonic() < deadline_s:
            writable.poll(100)


def _read_config() -> str:
    line = sys.stdin.buffer.readline(MAX_CONFIG_BYTES + 1)
    if not line.endswith(b"\n"):
        raise ConfigInvalid("standard input has no configuration line", limit=MAX_CONFIG_BYTES)
    return line.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
