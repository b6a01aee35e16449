"""Who talks how much, and what was alerted: a bounded tally of EVE events. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")

MAX_ROWS = 4096  # of each table; the smallest half gives way, and is counted
HEADERS = {
    "talkers": ("address", "flows", "sent", "received", "alerts"),
    "flows": ("client", "server", "service", "flows", "bytes"),
    "alerts": ("rule", "signature", "source", "count", "last"),
}


@dataclass(slots=True)
class Talker:
    """An address: flows that it took part in, bytes that it sent and got, alerts that name it as the source."""

    flows: int = 0
    sent: int = 0
    received: int = 0
    alerts: int = 0


@dataclass(slots=True)
class _Count:
    count: int = 0
    bytes: int = 0
    text: str = ""
    last: str = ""


@dataclass(slots=True)
class Talkers:
    """Give it events; ``tables`` says what is at the top."""

    events: int = 0
    forgotten: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    _talkers: dict[str, Talker] = field(default_factory=dict)
    _flows: dict[tuple[str, str, str], _Count] = field(default_factory=dict)
    _alerts: dict[tuple[str, str], _Count] = field(default_factory=dict)

    def add(self, event: Mapping[str, object]) -> None:
        """Take one EVE event into account."""
        kind = str(event.get("event_type", ""))[:32]
        self.events += 1
        if kind in self.kinds or len(self.kinds) < MAX_ROWS:
            self.kinds[kind] = self.kinds.get(kind, 0) + 1
        if kind == "flow":
            self._add_flow(event)
        elif kind == "alert":
            self._add_alert(event)

    def tables(self, rows: int) -> dict[str, list[tuple[object, ...]]]:
        """Return the largest ``rows`` of each table, in the order of ``HEADERS``."""
        talkers = sorted(self._talkers.items(), key=lambda one: (-one[1].alerts, -one[1].sent - one[1].received))
        flows = sorted(self._flows.items(), key=lambda one: -one[1].bytes)
        alerts = sorted(self._alerts.items(), key=lambda one: -one[1].count)
        return {
            "talkers": [(name, one.flows, one.sent, one.received, one.alerts) for name, one in talkers[:rows]],
            "flows": [(*key, one.count, one.bytes) for key, one in flows[:rows]],
            "alerts": [(rule, one.text, source, one.count, one.last) for (rule, source), one in alerts[:rows]],
        }

    def _add_flow(self, event: Mapping[str, object]) -> None:
        flow = event.get("flow")
        if not isinstance(flow, Mapping):
            return
        client, server = _text(event, "src_ip"), _text(event, "dest_ip")
        to_server, to_client = _number(flow, "bytes_toserver"), _number(flow, "bytes_toclient")
        for name, sent, received in ((client, to_server, to_client), (server, to_client, to_server)):
            talker = self._talkers.setdefault(name, Talker())
            talker.flows += 1
            talker.sent += sent
            talker.received += received
        port = event.get("dest_port")
        service = _text(event, "proto").lower() + (f"/{port}" if isinstance(port, int) else "")
        app = _text(event, "app_proto")
        count = self._flows.setdefault((client, server, f"{service} {app}" if app else service), _Count())
        count.count += 1
        count.bytes += to_server + to_client
        self._thin()

    def _add_alert(self, event: Mapping[str, object]) -> None:
        alert = event.get("alert")
        if not isinstance(alert, Mapping):
            return
        source = _text(event, "src_ip") or "several sources"
        self._talkers.setdefault(source, Talker()).alerts += 1
        count = self._alerts.setdefault((str(alert.get("signature_id", ""))[:20], source), _Count())
        count.count += 1
        count.text = _text(alert, "signature")
        count.last = _text(event, "timestamp")
        self._thin()

    def _thin(self) -> None:
        """Drop the smaller half of a table that is full: who matters comes back or stays."""
        if len(self._talkers) > MAX_ROWS:
            least_first = sorted(self._talkers.items(), key=lambda one: (one[1].alerts, one[1].sent + one[1].received))
            self.forgotten += _drop(self._talkers, [name for name, _ in least_first])
        if len(self._flows) > MAX_ROWS:
            self.forgotten += _drop(self._flows, sorted(self._flows, key=lambda key: self._flows[key].bytes))
        if len(self._alerts) > MAX_ROWS:
            self.forgotten += _drop(self._alerts, sorted(self._alerts, key=lambda key: self._alerts[key].count))


def _drop(table: dict[_Key, _Value], keys: list[_Key]) -> int:
    for key in keys[: len(keys) // 2]:
        del table[key]
    return len(keys) // 2


def _number(document: Mapping[str, object], name: str) -> int:
    value = document.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def _text(document: Mapping[str, object], name: str) -> str:
    value = document.get(name)
    return "".join(letter if letter.isprintable() else "?" for letter in value[:128]) if isinstance(value, str) else ""
