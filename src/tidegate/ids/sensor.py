"""The Rust sensor with coded errors: on an interface, or over a capture file.

Touches: ``tidegate.ids._sensor`` (packet sockets, capture files).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tidegate.base.errors import TidegateError
from tidegate.ids import errors

if TYPE_CHECKING:
    from tidegate.ids import _sensor

LINES_A_STEP = 512  # some 400 KiB; more has waited long enough to wait a step longer
RECORDS_A_STEP = 50_000  # a few milliseconds of work between two looks at the events

_ERRORS: dict[str, type[TidegateError]] = {
    kind.code: kind
    for kind in (
        errors.ConfigInvalid,
        errors.SettingsInvalid,
        errors.CapturePermission,
        errors.CaptureNoInterface,
        errors.CaptureUnsupportedInterface,
        errors.CaptureNotACapture,
        errors.CaptureFailed,
        errors.CaptureClosed,
        errors.LogBusy,
        errors.QueueBusy,
        errors.QueuePermission,
        errors.SensorInternal,
    )
}


class LiveSensor:
    """A sensor on one interface: bounded memory, EVE lines out. Needs CAP_NET_RAW to open, nothing afterwards.

    ``config_json`` comes from ``plan_sensor``. Raises ``ids.capture.*``, ``ids.config.invalid``,
    ``ids.sensor.missing``.
    """

    def __init__(self, interface: str, config_json: str) -> None:
        module = load_module()
        with translate_sensor_errors(module):
            self._sensor: _sensor.Sensor = module.Sensor(config_json)
            self._capture: _sensor.LiveCapture = module.LiveCapture(interface, self._sensor)
        self._module = module

    def poll(self, timeout_ms: int, *, max_lines: int = LINES_A_STEP) -> list[str]:
        """Return EVE lines of what has arrived, after at most ``timeout_ms`` (a signal ends the waiting early).

        What is beyond ``max_lines`` waits in the sensor's bounded queue. A caller that cannot hand lines on asks for 0:
        packets are still looked at, and events that find no room are counted.
        """
        with translate_sensor_errors(self._module):
            return self._capture.poll(timeout_ms, max_lines)

    def stats_line(self) -> str:
        """Return the counters as one EVE line of type ``stats``."""
        with translate_sensor_errors(self._module):
            return self._sensor.stats_line()

    def finish(self) -> list[str]:
        """End every open alert and flow, and return their EVE lines (flows within their rate limit)."""
        lines: list[str] = []
        with translate_sensor_errors(self._module):
            while more := self._sensor.finish():
                lines += more
        return lines

    def close(self) -> None:
        """Give the capture ring back; harmless when repeated."""
        with translate_sensor_errors(self._module):
            self._capture.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Replay:
    """A capture file on its way through a sensor: iterate for the EVE lines, then read ``stats``.

    The file is read as a stream; one that ends inside a record is read up to there and counted. Raises
    ``ids.capture.not-a-capture``, ``ids.capture.failed``, ``ids.config.invalid``, ``ids.sensor.missing``.
    """

    def __init__(self, path: str, config_json: str) -> None:
        module = load_module()
        with translate_sensor_errors(module):
            self._sensor: _sensor.Sensor = module.Sensor(config_json)
            self._capture: _sensor.FileCapture = module.FileCapture(path, self._sensor)
        self._module = module

    def __iter__(self) -> Iterator[str]:
        with translate_sensor_errors(self._module):
            while (lines := self._capture.poll(RECORDS_A_STEP)) is not None:
                yield from lines
            while lines := self._sensor.finish():
                yield from lines

    def stats(self) -> dict[str, Any]:
        """Return the counters so far, as they stand under ``stats`` in EVE."""
        with translate_sensor_errors(self._module):
            return self._sensor.stats()

    def stats_line(self) -> str:
        """Return the counters so far as one EVE line."""
        with translate_sensor_errors(self._module):
            return self._sensor.stats_line()


def load_module() -> Any:
    """Return the Rust module or raise ``ids.sensor.missing``."""
    try:
        from tidegate.ids import _sensor
    except ImportError as error:
        raise errors.SensorMissing(f"the Rust module is not usable: {error}") from error
    return _sensor


@contextlib.contextmanager
def translate_sensor_errors(module: Any) -> Iterator[None]:
    """Turn the binding's one exception into the coded error that it names."""
    try:
        yield
    except module.SensorError as error:
        code, message = error.args
        raise _ERRORS[code](message) from error
