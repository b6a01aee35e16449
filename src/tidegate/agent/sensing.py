"""Sensor and file watch under the agent: what they report becomes events and, by policy, bans.

Touches: the sensor's worker processes, the kernel's bans.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from msgspec import structs

from tidegate.agent.reporting import report
from tidegate.agent.workers import Worker
from tidegate.base.clock import Clock
from tidegate.base.errors import TidegateError
from tidegate.events import catalogue
from tidegate.events.model import Json, Severity
from tidegate.events.spool import EventLog
from tidegate.firewall.bans import Bans
from tidegate.ids.files import FileWatcher
from tidegate.ids.filestate import ChangeKind
from tidegate.ids.response import Action, decide_response
from tidegate.ids.section import FlowEvents, IdsSection, WatchSection, plan_sensor
from tidegate.policy.document import Policy

RESTART_PAUSE_S = 2.0
WATCH_LOOK_S = 0.5
_CHANGES = {
    ChangeKind.CREATED: "created",
    ChangeKind.REMOVED: "deleted",
    ChangeKind.MODIFIED: "modified",
    ChangeKind.MODE: "permissions",
}
_EVIDENCE = ("detector", "state", "count", "window_s", "direction")


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
    ) -> None:
        self._lock_down = lock_down
        self._events, self._bans, self._policy, self._clock = events, bans, policy, clock
        self._interface = interface
        self._changed = asyncio.Event()
        self._section: IdsSection | None = None
        self._workers: dict[str, Worker] = {}
        self._stats: dict[str, object] = {}

    def state(self) -> dict[str, object]:
        """Return which workers run and what they counted last."""
        return {"workers": {name: worker.pid for name, worker in self._workers.items()}, "stats": self._stats}

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
        try:
            await worker.run(plan_sensor(quiet).config_json, lambda line: self._handle_line(interface, line, section))
        finally:
            self._workers.pop(interface, None)

    def _handle_line(self, interface: str, line: Mapping[str, object], section: IdsSection) -> None:
        kind = line.get("event_type")
        if kind == "stats":
            self._stats[interface] = line.get("stats")
        elif kind == "alert":
            self._handle_alert(line, section)

    def _handle_alert(self, line: Mapping[str, object], section: IdsSection) -> None:
        """Write the event first, then act: the evidence is durable even if the answer fails."""
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
        decision = decide_response(line, section, self._clock.now_s())
        if decision is not None and decision.action is Action.LOCKDOWN:
            self._lock_down(decision.reason, decision.duration_s)
            return
        if decision is None or decision.action is not Action.BAN or decision.address is None:
            return
        try:
            self._bans.ban(decision.address, decision.duration_s)
        except TidegateError as error:
            report(self._events, catalogue.agent_failed(part=f"ban of {decision.address}", error=error))
            return
        report(
            self._events,
            catalogue.firewall_banned(address=decision.address, duration_s=decision.duration_s, reason=decision.reason),
        )
