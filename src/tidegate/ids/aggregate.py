"""Alerts become findings: a flood of the same alert is one finding with a count. Pure.

The first alert of its kind is reported at once; those that follow within ``window_s`` are counted and reported together
when the window ends, and then every window as long as they go on. The same kind: rule, source and, unless it differs
between alerts, destination. Once ``most_groups`` kinds are open, what is new is counted under its rule alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tidegate.events.catalogue import ids_detected
from tidegate.events.model import Event, Json, Severity

WINDOW_S = 60.0  # as often as Suricata's own thresholds are usually written
MAX_GROUPS = 4096  # some 2 MB; a scanner that forges sources opens one a source
MANY = "several sources"  # as the agent writes for the sensor's own floods

_SEVERITIES = {1: Severity.HIGH, 2: Severity.MEDIUM, 3: Severity.LOW}  # of a rule: 1 is worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found, how often since the last finding of its kind, and whether it is the first."""

    rule: str
    title: str
    category: str
    severity: int
    action: str
    source: str
    destination: str | None
    count: int
    first: str
    last: str
    is_first: bool
    detector: str = "signature"  # or one of the sensor's own, docs/formats/eve.md
    flow_id: int | None = None

    def document(self) -> dict[str, object]:
        """Return it for a program."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class _Group:
    finding: Finding
    until_s: float
    count: int = 0
    last: str = ""
    destination: str | None = None


@dataclass(slots=True)
class Aggregator:
    """Give it every event with the time, and ``due`` now and then; both return findings to report."""

    window_s: float = WINDOW_S
    most_groups: int = MAX_GROUPS
    suppressed: int = 0  # alerts that were counted instead of reported
    _groups: dict[tuple[str, str], _Group] = field(default_factory=dict)

    def add(self, event: Mapping[str, object], now_s: float) -> Finding | None:
        """Take one event; return a finding if it is an alert of a kind that is not open."""
        found = finding_of(event)
        if found is None:
            return None
        key = (found.rule, found.source)
        if key not in self._groups and len(self._groups) >= self.most_groups:
            key = (found.rule, MANY)
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = _Group(
                finding=found, until_s=now_s + self.window_s, last=found.last, destination=found.destination
            )
            return found
        group.count += 1
        self.suppressed += 1
        group.last = found.last or group.last
        if group.destination != found.destination:
            group.destination = None
        return None

    def due(self, now_s: float) -> Iterator[Finding]:
        """Yield what was counted in windows that are over; a window without a further alert closes its kind."""
        over = [(key, group) for key, group in self._groups.items() if group.until_s <= now_s]
        for key, group in over:
            if group.count:
                yield _counted(key, group)
                group.count, group.until_s = 0, now_s + self.window_s
            else:
                del self._groups[key]

    def close(self) -> Iterator[Finding]:
        """Yield what is still to be reported at the end."""
        for key, group in self._groups.items():
            if group.count:
                yield _counted(key, group)
        self._groups.clear()


def finding_of(event: Mapping[str, object]) -> Finding | None:
    """Return an alert event as a finding; None for other events and for alerts that lack their rule."""
    alert = event.get("alert")
    if event.get("event_type") != "alert" or not isinstance(alert, Mapping) or "signature_id" not in alert:
        return None
    severity, flow_id, destination = alert.get("severity"), event.get("flow_id"), event.get("dest_ip")
    metadata, moment = event.get("metadata"), str(event.get("timestamp", ""))[:40]
    return Finding(
        rule=str(alert["signature_id"])[:20],
        title=str(alert.get("signature", ""))[:512],
        category=str(alert.get("category", ""))[:128],
        severity=severity if isinstance(severity, int) and 1 <= severity <= 255 else 3,
        action=str(alert.get("action", "allowed"))[:16],
        source=str(event.get("src_ip", MANY))[:64],
        destination=str(destination)[:64] if destination is not None else None,
        count=1,
        first=moment,
        last=moment,
        is_first=True,
        detector=str(metadata["detector"])[:64]
        if isinstance(metadata, Mapping) and "detector" in metadata
        else "signature",
        flow_id=flow_id if isinstance(flow_id, int) else None,
    )


def event_of_finding(finding: Finding) -> Event:
    """Return a finding as an event of the log: the kind, class and identity that our sensor's alerts get."""
    evidence: dict[str, Json] = {
        "detector": finding.detector,
        "state": "start" if finding.is_first else "update",
        "count": finding.count,
        "category": finding.category,
        "first": finding.first,
        "last": finding.last,
    }
    if finding.action != "allowed":
        evidence["action"] = finding.action
    return ids_detected(
        rule=finding.rule,
        title=finding.title,
        source=finding.source,
        destination=finding.destination,
        severity=_SEVERITIES.get(finding.severity, Severity.LOW) if finding.is_first else Severity.LOW,
        evidence=evidence,
        occurred_ms=_milliseconds(finding.first),
    )


def _counted(key: tuple[str, str], group: _Group) -> Finding:
    first = group.finding
    return Finding(
        rule=first.rule,
        title=first.title,
        category=first.category,
        severity=first.severity,
        action=first.action,
        source=key[1],
        destination=group.destination,
        count=group.count,
        first=first.first,
        last=group.last,
        is_first=False,
        detector=first.detector,
    )


def _milliseconds(moment: str) -> int | None:
    try:
        return int(datetime.fromisoformat(moment).timestamp() * 1000)
    except (ValueError, OverflowError):
        return None
