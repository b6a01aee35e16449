"""The inline inspector's process: ``python -m tidegate.ids.inline --queue N``.

Reads the field rules (one JSON line, docs/formats/fields.md) from standard input, binds the packet queue, becomes user
nobody with CAP_NET_ADMIN as its only capability (the kernel asks for it with each verdict), and then writes EVE lines
to standard output: first ``{"event_type":"ready", ...}`` (or ``{"event_type":"error","code":...}`` and exit status 3 or
4), a ``drop`` or ``alert`` line for each refused message, a ``stats`` line every ``STATS_S`` and a last one at the end.
Ends on SIGTERM, on SIGINT, when its reader is gone, and with its parent. Packets never wait for the reader.

Imports little on purpose: it lives as long as the device does. Touches: packet queue, raw sockets, process credentials,
pipes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tidegate.base.confine import CAP_NET_ADMIN, confine
from tidegate.base.errors import TidegateError
from tidegate.ids import errors
from tidegate.ids.sensor import load_module, translate_sensor_errors
from tidegate.ids.worker import Output

if TYPE_CHECKING:
    from tidegate.ids import _sensor

MAX_CONFIG_BYTES = 4 << 20  # 63 rules of 64 entries; the largest that plan_fields makes is below 2 MiB
MAX_QUEUE = 65535
POLL_MS = 250  # signals and a lost reader are noticed within this time
LINES_A_STEP = 256
STATS_S = 60.0
LAST_WORDS_S = 1.0


class InlineQueue:
    """A packet queue of the kernel and the inspector that answers it.

    While it is open and polled, the queue's packets get verdicts by ``config_json``; while nobody polls, they wait, and
    what finds the queue full is dropped. Needs CAP_NET_ADMIN; without CAP_NET_RAW clients get no resets. Raises
    ``ids.queue.busy``, ``ids.queue.permission``, ``ids.config.invalid``, ``ids.sensor.missing``.
    """

    def __init__(self, number: int, config_json: str) -> None:
        if not 0 <= number <= MAX_QUEUE:
            raise errors.ConfigInvalid(f"queue numbers are 0 to {MAX_QUEUE}, not {number}", field="queue")
        self._module = load_module()
        with translate_sensor_errors(self._module):
            self._queue: _sensor.InlineQueue = self._module.InlineQueue(number, config_json)

    def poll(self, timeout_ms: int, *, max_lines: int = LINES_A_STEP) -> list[str]:
        """Answer packets for at most ``timeout_ms`` and return the reports as EVE lines, as soon as there are some."""
        with translate_sensor_errors(self._module):
            return self._queue.poll(timeout_ms, max_lines)

    def stats_line(self) -> str:
        """Return the counters as one EVE line of type ``stats``."""
        with translate_sensor_errors(self._module):
            return self._queue.stats_line()

    def close(self) -> None:
        """Give the queue back; harmless when repeated."""
        with translate_sensor_errors(self._module):
            self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FieldStream:
    """One rule's decisions for one direction of one connection, or (``datagram``) for datagrams, each by itself.

    Raises ``ids.config.invalid`` (no such rule, say), ``ids.sensor.missing``.
    """

    def __init__(self, config_json: str, rule_id: int, *, datagram: bool = False) -> None:
        self._module = load_module()
        with translate_sensor_errors(self._module):
            self._stream: _sensor.FieldStream = self._module.FieldStream(config_json, rule_id, datagram)

    def feed(self, data: bytes) -> tuple[bytes, list[str], list[bytes], bool]:
        """Return what of ``data`` and of what waited may go to the server; what the rule does not allow, in words; the
        first 8 bytes of each message that is held back for good; whether nothing can be read any more."""
        with translate_sensor_errors(self._module):
            return self._stream.feed(data)


def main(arguments: list[str]) -> int:
    """Run until asked to stop; return the exit status."""
    if len(arguments) != 2 or arguments[0] != "--queue" or not arguments[1].isdecimal():
        sys.stderr.write("usage: python -m tidegate.ids.inline --queue N < RULES\n")
        return 2
    try:
        with InlineQueue(int(arguments[1]), _read_config()) as queue:
            confine(keep=CAP_NET_ADMIN, ends_with_parent=True, failed=errors.WorkerConfinement)
            return _serve(queue, int(arguments[1]))
    except TidegateError as error:
        sys.stdout.write(json.dumps({"event_type": "error", "code": error.code, "message": error.message}) + "\n")
        sys.stdout.flush()
        return error.exit_status


def _serve(queue: InlineQueue, number: int) -> int:
    stopping: list[bool] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.append(True))
    out = Output(sys.stdout.fileno())
    out.put([json.dumps({"event_type": "ready", "queue": number, "pid": os.getpid()})])
    next_stats_s = time.monotonic() + STATS_S
    while not stopping and out.has_reader():
        lines = queue.poll(POLL_MS, max_lines=0 if out.is_full() else LINES_A_STEP)
        if time.monotonic() >= next_stats_s:
            next_stats_s += STATS_S
            lines.append(queue.stats_line())
        out.put(lines)
    out.put([*queue.poll(0), queue.stats_line()])
    out.drain(LAST_WORDS_S)
    return 0


def _read_config() -> str:
    line = sys.stdin.buffer.readline(MAX_CONFIG_BYTES + 1)
    if not line.endswith(b"\n"):
        raise errors.ConfigInvalid("standard input has no line of field rules", limit=MAX_CONFIG_BYTES)
    return line.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
