"""The sensor's process: ``python -m tidegate.ids.worker --interface IF``.

Reads its configuration (one JSON line, ``SensorPlan.config_json``) from standard input, opens the capture ring, becomes
user nobody without a way back, and then writes EVE lines to standard output: first ``{"event_type":"ready", ...}`` (or
``{"event_type":"error","code":...}`` and exit status 4), a ``stats`` line every ``STATS_S`` and a last one at the end.
Ends on SIGTERM, on SIGINT, when its reader is gone, and with its parent.

Imports little on purpose: it lives as long as the device does. Touches: packet socket, process credentials, pipes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

from tidegate.base.errors import TidegateError
from tidegate.ids.errors import ConfigInvalid, WorkerConfinement
from tidegate.ids.sensor import LiveSensor, load_module, translate_sensor_errors

MAX_CONFIG_BYTES = 65_536  # ours are below 1 KiB
POLL_MS = 250  # the sensor's own tick
STATS_S = 60.0
NOBODY = 65534  # user and group of Debian and of the kernel's overflow ids; no lookup, which would load libnss


def main(arguments: list[str]) -> int:
    """Run until asked to stop; return the exit status."""
    if len(arguments) != 2 or arguments[0] != "--interface":
        sys.stderr.write("usage: python -m tidegate.ids.worker --interface IF < CONFIG\n")
        return 2
    try:
        with LiveSensor(arguments[1], _read_config()) as sensor:
            _drop_privileges()
            return _serve(sensor, arguments[1])
    except TidegateError as error:
        _write([json.dumps({"event_type": "error", "code": error.code, "message": error.message})])
        return error.exit_status


def _serve(sensor: LiveSensor, interface: str) -> int:
    stopping = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(True))
    reader = select.poll()
    reader.register(sys.stdout.fileno(), 0)  # only "the other end is gone" is of interest
    alive = _write([json.dumps({"event_type": "ready", "interface": interface, "pid": os.getpid()})])
    next_stats_s = time.monotonic() + STATS_S
    while alive and not stopping and not reader.poll(0):
        lines = sensor.poll(POLL_MS)
        if time.monotonic() >= next_stats_s:
            next_stats_s += STATS_S
            lines.append(sensor.stats_line())
        alive = not lines or _write(lines)
    _write([*sensor.finish(), sensor.stats_line()])
    return 0


def _read_config() -> str:
    line = sys.stdin.buffer.readline(MAX_CONFIG_BYTES + 1)
    if not line.endswith(b"\n"):
        raise ConfigInvalid("standard input has no configuration line", limit=MAX_CONFIG_BYTES)
    return line.decode(errors="replace")


def _drop_privileges() -> None:
    """Become nobody for good. Order: groups before the user; the parent-death signal is cleared by both."""
    parent = os.getppid()
    module = load_module()
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError as error:
            raise WorkerConfinement(f"cannot become user {NOBODY}: {error.strerror}") from error
    with translate_sensor_errors(module):
        module.confine()
    if os.getppid() != parent:  # it died before the signal was armed
        raise WorkerConfinement("the parent process is gone")


def _write(lines: list[str]) -> bool:
    """Write whole lines at once; return whether anybody still reads them."""
    rest = memoryview(("\n".join(lines) + "\n").encode())
    try:
        while rest:
            rest = rest[os.write(sys.stdout.fileno(), rest) :]
    except BrokenPipeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
