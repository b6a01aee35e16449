"""The sensor with signature rules, for programs: load rules, inspect a capture or live traffic, add detectors.

    rules = RuleSet.load("emerging.rules")
    print(rules.report().refused)
    sensor = Sensor(SensorConfig(rules=("emerging.rules",)))

    @sensor.detector
    def talks_at_night(event):
        if event["event_type"] == "flow" and event["flow"]["bytes_toclient"] > 10_000_000:
            return Finding(signature="more than 10 MB in one flow")

    for event in sensor.replay("capture.pcap"):
        print(event["event_type"])

Events are EVE objects (docs/formats/eve.md). Touches: ``tidegate.ids._sensor``, rule files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

from tidegate.base.durable import translate_os_errors, write_file_atomic
from tidegate.ids.errors import ConfigInvalid, SensorInternal, SensorMissing
from tidegate.ids.rulefiles import NamedFiles, read_rules
from tidegate.ids.sensor import LINES_A_STEP, load_module, translate_sensor_errors
from tidegate.ids.settings import RULES_MEMORY, Setting, parse_memory, with_defaults

MAX_DETECTORS = 64  # each is called for every flow and transaction
FIRST_DETECTOR_ID = 2_990_001  # behind the numbers of our own detectors (docs/formats/eve.md)
POLL_MS = 250  # the sensor's own tick
MAX_NUMBER = 65_535  # of queues and log groups: 16 bits on the wire
_NO_TRANSACTION = frozenset({"alert", "drop", "anomaly", "stats", "ready", "error", "frame"})

Event: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOutcome:
    """What became of one rule: ``loaded``, ``approximated`` or ``refused``, and why."""

    source: str
    line: int
    sid: int
    outcome: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Totals, and an entry for each rule that was not loaded exactly as written."""

    loaded: int
    approximated: int
    refused: int
    rules: tuple[RuleOutcome, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a detector in Python says about an event; ``severity`` is 1 (worst) to 4, as of rules."""

    signature: str
    severity: int = 2
    category: str = "Detection by a Program"
    signature_id: int | None = None


Detector: TypeAlias = Callable[[Event], "Finding | str | None"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorConfig:
    """What a sensor is to run with. Settings have Suricata's names; those given win over the built-in variables."""

    rules: tuple[str | Path, ...] = ()
    settings: tuple[Setting, ...] = ()
    memory: str = RULES_MEMORY
    interface: str | None = None
    folders: tuple[Path, ...] = ()  # where files that rules name are looked for, before the rules' own folders


class RuleSet:
    """Rules as the sensor understands them; a rule never fails the reading, its entry in the report says why."""

    def __init__(self, module: Any, handle: Any, paths: tuple[Path, ...]) -> None:
        self._module, self.handle, self.paths = module, handle, paths

    @classmethod
    def load(cls, *paths: str | Path, settings: Sequence[Setting] = (), folders: Sequence[Path] = ()) -> RuleSet:
        """Read rule files; raises ``base.storage.*``, ``ids.config.invalid``, ``ids.sensor.missing``."""
        files = [Path(path) for path in paths]
        module = _load_engine()
        named = NamedFiles([*folders, *(path.parent for path in files)])
        with translate_sensor_errors(module):
            handle = module.RuleSet(read_rules(files), list(with_defaults(settings)), named)
        return cls(module, handle, tuple(files))

    def report(self) -> LoadReport:
        """Return what became of the rules."""
        with translate_sensor_errors(self._module):
            document = json.loads(self.handle.report())
        outcomes = tuple(
            RuleOutcome(
                source=str(rule.get("source", "")),
                line=int(rule.get("line", 0)),
                sid=int(rule.get("sid", 0)),
                outcome=str(rule.get("outcome", "refused")),
                reason=str(rule.get("reason") or ""),
            )
            for rule in document.get("rules", ())
        )
        totals = {name: int(document.get(name, 0)) for name in ("loaded", "approximated", "refused")}
        return LoadReport(**totals, rules=outcomes)

    def budget(self, config: Mapping[str, object]) -> dict[str, Any]:
        """Return which rules fit a device; ``rulebudget.py`` makes the question and reads the answer."""
        with translate_sensor_errors(self._module):
            answer = json.loads(self.handle.budget(json.dumps(config)))
        if not isinstance(answer, dict):
            raise SensorInternal("the rule budget is no JSON object")
        return answer


class Sensor:
    """Signature rules, protocol parsers and detectors over a capture file or live packets, in bounded memory.

    Raises ``ids.sensor.missing``, ``ids.config.invalid``, ``base.storage.*`` where it is made, ``ids.capture.*`` where
    it runs. One sensor inspects one capture, or one live source, once. Sensors may share ``rules``.
    """

    def __init__(self, config: SensorConfig | None = None, *, rules: RuleSet | None = None) -> None:
        self.config = config or SensorConfig()
        self._module = _load_engine()
        self.settings = settings = with_defaults(self.config.settings)
        self.rules = rules
        if self.config.rules and rules is None:
            self.rules = RuleSet.load(*self.config.rules, settings=settings, folders=self.config.folders)
        handle = self.rules.handle if self.rules else None
        with translate_sensor_errors(self._module):
            self._inspector = self._module.Inspector(handle, list(settings), parse_memory(self.config.memory))
        self._detectors: list[Detector] = []

    def detector(self, function: Detector) -> Detector:
        """Add a detector: it is called with every flow and transaction event, and a finding becomes an alert.

        What it raises ends the iteration: it is the program's own code.
        """
        if len(self._detectors) >= MAX_DETECTORS:
            raise ConfigInvalid(f"more than {MAX_DETECTORS} detectors", field="detectors", limit=MAX_DETECTORS)
        self._detectors.append(function)
        return function

    def replay(self, path: str | Path) -> Iterator[Event]:
        """Yield the events of a capture file, each alert of a detector behind the event that it is about."""
        for line in self.replay_lines(path):
            yield json.loads(line)

    def replay_lines(self, path: str | Path) -> Iterator[str]:
        """Yield the same as EVE lines."""
        with translate_os_errors(path):
            Path(path).stat()
        with translate_sensor_errors(self._module):
            while (lines := self._inspector.replay(str(path), LINES_A_STEP)) is not None:
                yield from self.with_findings(lines)
        yield from self.finish_lines()

    def __iter__(self) -> Iterator[Event]:
        """Yield the events of the configured interface until the program stops asking."""
        with self.open_interface() as capture:
            while True:
                for line in capture.poll():
                    yield json.loads(line)

    def open_interface(self, *, fanout: int | None = None) -> LiveCapture:
        """Open the configured interface; needs CAP_NET_RAW here, nothing afterwards.

        Captures of one ``fanout`` group share the interface: each flow goes to one of them, both ways.
        """
        if self.config.interface is None:
            raise ConfigInvalid("the sensor has no interface; replay a capture file instead", field="interface")
        group = () if fanout is None else (fanout,)
        with translate_sensor_errors(self._module):
            capture = self._module.LiveCapture(self.config.interface, self._inspector, *group)
        return LiveCapture(self, capture)

    def open_log(self, group: int) -> LiveCapture:
        """Read what firewall rules log to NFLOG ``group``; needs CAP_NET_ADMIN here, nothing afterwards.

        Raises ``ids.log.busy``, ``ids.queue.permission``.
        """
        _check_number("log group", group)
        with translate_sensor_errors(self._module):
            capture = self._module.LogCapture(group, self._inspector)
        return LiveCapture(self, capture)

    def open_queue(self, number: int, *, fail_open: bool = False) -> LiveCapture:
        """Decide about the packets of NFQUEUE ``number``: they go on, or ``drop`` and ``reject`` rules stop them.

        Needs CAP_NET_ADMIN as long as it runs, and CAP_NET_RAW here for the replies of ``reject``. While it is open and
        nobody polls, packets wait; what finds the queue full is dropped, or with ``fail_open`` goes on unseen. What
        becomes of packets when it is closed is the firewall rule's decision. Raises ``ids.queue.*``, and
        ``ids.config.invalid`` without the setting ``simulate-ips``.
        """
        _check_number("queue", number)
        if dict(self.settings).get("simulate-ips") != "yes":
            raise ConfigInvalid("a sensor on a queue needs the setting simulate-ips=yes", field="simulate-ips")
        with translate_sensor_errors(self._module):
            capture = self._module.InlineInspector(number, self._inspector, fail_open)
        return LiveCapture(self, capture)

    def finish_lines(self) -> Iterator[str]:
        """End every open flow and yield its EVE lines."""
        with translate_sensor_errors(self._module):
            while lines := self._inspector.finish():
                yield from self.with_findings(lines)

    def keep_datasets(self, folder: Path) -> list[Path]:
        """Write the data sets that rules declare as ``save`` or ``state`` below ``folder``; return what was written.

        Call it after the last event. A rule's name that leads out of the folder is refused with
        ``ids.config.invalid``; raises ``base.storage.*``.
        """
        with translate_sensor_errors(self._module):
            files: list[tuple[str, bytes]] = self._inspector.kept_files()
        written = []
        for name, text in files:
            place = Path(name)
            if place.is_absolute() or ".." in place.parts:
                raise ConfigInvalid(
                    f"a data set would be written outside the data folder: {name[:128]!r}", field="dataset"
                )
            target = folder / place
            with translate_os_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            write_file_atomic(target, text)
            written.append(target)
        return written

    def stats_line(self) -> str:
        """Return the counters so far as one EVE line."""
        with translate_sensor_errors(self._module):
            return str(self._inspector.stats_line())

    def with_findings(self, lines: Sequence[str]) -> Iterator[str]:
        """Yield each line, and behind it what the detectors found in it."""
        for line in lines:
            yield line
            if not self._detectors:
                continue
            event = json.loads(line)
            if event.get("event_type") in _NO_TRANSACTION:
                continue
            for number, detector in enumerate(self._detectors):
                finding = detector(event)
                if finding is not None:
                    yield json.dumps(_alert(event, finding, FIRST_DETECTOR_ID + number))


class LiveCapture:
    """An open interface, packet log or queue; poll it, or it fills and the kernel counts what it drops."""

    def __init__(self, sensor: Sensor, capture: Any) -> None:
        self._sensor, self._capture = sensor, capture
        self._module = load_module()

    def poll(self, timeout_ms: int = POLL_MS, *, max_lines: int = LINES_A_STEP) -> list[str]:
        """Return EVE lines of what has arrived, after at most ``timeout_ms`` (a signal ends the waiting early)."""
        with translate_sensor_errors(self._module):
            lines = self._capture.poll(timeout_ms, max_lines)
        return list(self._sensor.with_findings(lines))

    def finish(self) -> list[str]:
        """End every open flow and return its EVE lines."""
        return list(self._sensor.finish_lines())

    def stats_line(self) -> str:
        """Return the counters so far as one EVE line."""
        return self._sensor.stats_line()

    def close(self) -> None:
        """Give the interface, group or queue back; harmless when repeated."""
        with translate_sensor_errors(self._module):
            self._capture.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _alert(event: Event, finding: Finding | str, signature_id: int) -> Event:
    """Return the alert of a detector: who and when as in the event, and what was found."""
    found = Finding(signature=finding) if isinstance(finding, str) else finding
    kept = ("timestamp", "flow_id", "in_iface", "src_ip", "src_port", "dest_ip", "dest_port", "proto", "app_proto")
    return {
        **{name: event[name] for name in (*kept, "tx_id") if name in event},
        "event_type": "alert",
        "alert": {
            "action": "allowed",
            "gid": 1,
            "signature_id": found.signature_id or signature_id,
            "rev": 1,
            "signature": found.signature,
            "category": found.category,
            "severity": found.severity,
        },
    }


def _check_number(what: str, number: int) -> None:
    if not 0 <= number <= MAX_NUMBER:
        raise ConfigInvalid(f"a {what} has a number from 0 to {MAX_NUMBER}, not {number}", field=what, limit=MAX_NUMBER)


def _load_engine() -> Any:
    module = load_module()
    if not hasattr(module, "Inspector") or not hasattr(module, "RuleSet"):
        raise SensorMissing("the Rust module that is built here is older and knows no signature rules")
    return module
