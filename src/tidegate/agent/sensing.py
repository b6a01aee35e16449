"""Sensor and file watch under the agent: what they report becomes events and, by policy, bans.

Touches: the sensor's worker processes, the kernel's bans.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace

from msgspec import structs

from tidegate.agent.errors import LineSkipped
from tidegate.agent.reporting import report
from tidegate.agent.workers import Worker
from tidegate.base.clock import Clock
from tidegate.base.errors import TidegateError
from tidegate.events import catalogue
from tidegate.events.model import Json, Severity
from tidegate.events.spool import EventLog
from tidegate.firewall.bans import Bans
from tidegate.ids.aggregate import Aggregator, Finding, event_of_finding
from tidegate.ids.files import FileWatcher
from tidegate.ids.filestate import ChangeKind
from tidegate.ids.response import Action, Decision, decide_response
from tidegate.ids.section import FlowEvents, IdsSection, WatchSection, needs_rules, plan_sensor
from tidegate.policy.document import Policy

RESTART_PAUSE_S = 2.0
WATCH_LOOK_S = 0.5
COUNT_LOOK_S = 1.0  # of alerts that are counted for a minute
MOST_FINDINGS = 512  # kinds of alerts that are told apart at once: some 256 kB
_CHANGES = {
    ChangeKind.CREATED: "created",
    ChangeKind.REMOVED: "deleted",
    ChangeKind.MODIFIED: "modified",
    ChangeKind.MODE: "permissions",
}
_EVIDENCE = ("detector", "state", "count", "window_s", "direction")
# What the sensor with rules is told besides the policy: nobody here reads other lines; what is known of a source's
# genuineness is needed for the response.
_AGENT_SETTINGS = {"outputs.eve-log.enabled-types": "alert,stats", "tidegate.peers": "yes"}


class Sensing:
    """Runs what the policy's ``[ids]`` and ``[watch]`` sections ask for; ``changed`` makes it read them again."""

    def __init__(
        self,
        events: EventLog,
        bans: Bans,
        policy: Callable[[], Policy | None],
        clock: Clock,
        *,
        interface: str | None,
        lock_down: Callable[[str, float], None],
        tampered: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._lock_down, self._tampered = lock_down, tampered
        self._events, self._bans, self._policy, self._clock = events, bans, policy, clock
        self._interface = interface
        self._changed = asyncio.Event()
        self._section: IdsSection | None = None
        self._workers: dict[str, Worker] = {}
        self._stats: dict[str, object] = {}
        self._findings = Aggregator(most_groups=MOST_FINDINGS)
        self._answered: dict[str, float] = {}  # address: until when an alert of a rule has had its answer
        self._cut = self._skipped = 0

    def state(self) -> dict[str, object]:
        """Return which workers run, what they counted last, and how many alerts were counted only, cut, or lost."""
        return {
            "workers": {name: worker.pid for name, worker in self._workers.items()},
            "stats": self._stats,
            "alerts_counted": self._findings.suppressed,
            "alerts_cut": self._cut,
            "lines_skipped": self._skipped,
        }

    def policy_changed(self) -> None:
        """Have the sensor follow the policy that is in force now; the watch looks by itself."""
        if self._ids_section() != self._section:
            self._changed.set()

    async def run_sensor(self) -> None:
        """Keep one worker per interface running as the policy says; one that dies is reported and started again."""
        while True:
            self._changed.clear()
            section = self._section = self._ids_section()
            names = self._interfaces(section)
            followers = [asyncio.create_task(self._follow(name, section)) for name in names if section is not None]
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait([*followers, changed], return_when=asyncio.FIRST_COMPLETED)
                for follower in followers:
                    if follower.done():
                        follower.result()
            except TidegateError as error:
                report(self._events, catalogue.agent_failed(part="sensor", error=error))
                await asyncio.sleep(RESTART_PAUSE_S)
            finally:
                for task in (*followers, changed):
                    task.cancel()
                await asyncio.gather(*followers, changed, return_exceptions=True)

    async def run_counts(self) -> None:
        """Report what was counted of alerts of rules since their first, once a minute for each kind."""
        try:
            while True:
                await asyncio.sleep(COUNT_LOOK_S)
                for finding in self._findings.due(self._clock.monotonic_s()):
                    report(self._events, event_of_finding(finding))
        finally:
            for finding in self._findings.close():
                report(self._events, event_of_finding(finding))

    async def prove_watching(self, timeout_s: float) -> str | None:
        """Return None once every interface of the policy is watched, or a complaint when the time is over."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while missing := set(self._interfaces(self._ids_section())) - self._watching():
            if self._clock.monotonic_s() >= deadline_s:
                return f"the sensor does not watch {', '.join(sorted(missing))}"
            await asyncio.sleep(WATCH_LOOK_S / 5)
        return None

    async def run_watch(self) -> None:
        """Report every change of the watched files."""
        section: WatchSection | None = None
        watcher: FileWatcher | None = None
        try:
            while True:
                policy = self._policy()
                wanted = policy.watch if policy is not None else None
                if wanted != section:
                    section = wanted
                    if watcher is not None:
                        watcher.close()
                    watcher = FileWatcher(section) if section is not None and section.paths else None
                if watcher is not None:
                    for change in watcher.wait(0):
                        report(self._events, catalogue.file_changed(path=change.path, change=_CHANGES[change.kind]))
                        self._tampered(f"a watched file changed: {change.path}")
                await asyncio.sleep(WATCH_LOOK_S)
        finally:
            if watcher is not None:
                watcher.close()

    def _watching(self) -> set[str]:
        return {name for name, worker in self._workers.items() if worker.is_ready}

    def _ids_section(self) -> IdsSection | None:
        policy = self._policy()
        return policy.ids if policy is not None and policy.ids is not None and policy.ids.enabled else None

    def _interfaces(self, section: IdsSection | None) -> tuple[str, ...]:
        if section is None:
            return ()
        return section.interfaces or ((self._interface,) if self._interface else ())

    async def _follow(self, interface: str, section: IdsSection) -> None:
        """Run one worker and handle its lines until it ends, however it ends; raise ``agent.worker.ended``."""
        worker = Worker(f"the sensor of {interface}", "tidegate.ids.worker", ("--interface", interface))
        self._workers[interface] = worker
        quiet = structs.replace(section, flow_events=FlowEvents.OFF)  # nobody here reads them
        if needs_rules(section):
            quiet = structs.replace(quiet, settings={**section.settings, **_AGENT_SETTINGS})
        try:
            await worker.run(plan_sensor(quiet).config_json, lambda line: self._handle_line(interface, line, section))
        finally:
            self._workers.pop(interface, None)

    def _handle_line(self, interface: str, line: Mapping[str, object], section: IdsSection) -> None:
        kind = line.get("event_type")
        if kind == "stats":
            self._stats[interface] = line.get("stats")
        elif kind == "alert":
            self._handle_alert(interface, line, section)
        elif kind == "skipped":
            self._skipped += 1
            if self._workers[interface].skipped == 1:  # more of the same worker are counted only
                error = LineSkipped(f"a line of the sensor of {interface} is too long", interface=interface)
                report(self._events, catalogue.agent_failed(part="line of the sensor", error=error))

    def _handle_alert(self, interface: str, line: Mapping[str, object], section: IdsSection) -> None:
        """Write the event first, then act: the evidence is durable even if the answer fails."""
        if isinstance(line.get("cut_bytes"), int):
            self._cut += 1
        if _has_detector(line):
            self._report_detector(line)
        else:
            finding = self._findings.add(line, self._clock.monotonic_s())
            if finding is not None:
                self._report_finding(finding, line)
        self._respond(line, section, functools.partial(_is_own, interface))

    def _report_detector(self, line: Mapping[str, object]) -> None:
        """Report an alert of a detector as it is: the sensor has counted already."""
        alert, metadata = line.get("alert"), line.get("metadata")
        if not isinstance(alert, Mapping) or not isinstance(metadata, Mapping):
            return
        evidence: dict[str, Json] = {name: metadata[name] for name in _EVIDENCE if name in metadata}
        report(
            self._events,
            catalogue.ids_detected(
                rule=str(alert.get("signature_id")),
                title=str(alert.get("signature")),
                source=str(line.get("src_ip", "several sources")),
                destination=str(line["dest_ip"]) if "dest_ip" in line else None,
                severity=Severity.HIGH if metadata.get("state") == "start" else Severity.LOW,
                evidence=evidence,
            ),
        )

    def _report_finding(self, finding: Finding, line: Mapping[str, object]) -> None:
        event, cut = event_of_finding(finding), line.get("cut_bytes")
        if isinstance(cut, int):
            event = replace(event, data={**event.data, "cut_bytes": cut})
        report(self._events, event)

    def _respond(self, line: Mapping[str, object], section: IdsSection, is_own: Callable[[str], bool]) -> None:
        decision = decide_response(line, section, self._clock.now_s(), is_own)
        if decision is None or self._is_answered(decision, line):
            return
        if decision.action is Action.LOCKDOWN:
            self._lock_down(decision.reason, decision.duration_s)
        elif decision.action is Action.BAN and decision.address is not None:
            self._ban(decision.address, decision.duration_s, decision.reason)

    def _is_answered(self, decision: Decision, line: Mapping[str, object]) -> bool:
        """Say whether an alert of a rule asks for what lasts still; of a detector's few, each renews it."""
        address, now_s = decision.address, self._clock.monotonic_s()
        if decision.action is Action.REPORT or address is None or _has_detector(line):
            return False
        if now_s < self._answered.get(address, now_s):
            return True
        if len(self._answered) >= MOST_FINDINGS:
            self._answered.pop(next(iter(self._answered)))  # the oldest; at worst its ban is renewed
        self._answered[address] = now_s + decision.duration_s
        return False

    def _ban(self, address: str, duration_s: int, reason: str) -> None:
        try:
            self._bans.ban(address, duration_s)
        except TidegateError as error:
            report(self._events, catalogue.agent_failed(part=f"ban of {address}", error=error))
            return
        report(self._events, catalogue.firewall_banned(address=address, duration_s=duration_s, reason=reason))


def _has_detector(line: Mapping[str, object]) -> bool:
    metadata = line.get("metadata")
    return isinstance(metadata, Mapping) and "detector" in metadata


def _is_own(interface: str, address: str) -> bool:
    """Say whether an address is this device's: the kernel lets a socket have no other."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        # link-local addresses are of an interface
        probe.bind((address, 0, 0, socket.if_nametoindex(interface)) if address.startswith("fe80:") else (address, 0))
        return True
    return False
