"""Stands in for ``tidegate.ids._sensor`` where the rule engine is not needed: what it is asked for is remembered."""

from __future__ import annotations

import json
from typing import ClassVar


class SensorError(Exception):
    pass


class RuleSet:
    def __init__(self, sources, settings, files):
        self.sources, self.settings, self.files = list(sources), settings, files

    def report(self):
        rules = []
        for name, text in self.sources:
            for number, line in enumerate(text.decode().splitlines(), 1):
                if line.strip() and not line.startswith("#"):
                    refused = "nonsense" in line
                    rules.append(
                        {
                            "source": name,
                            "line": number,
                            "sid": number,
                            "outcome": "refused" if refused else "loaded",
                            "reason": "unknown keyword nonsense" if refused else None,
                        }
                    )
        refused = [rule for rule in rules if rule["outcome"] == "refused"]
        loaded = len(rules) - len(refused)
        return json.dumps({"loaded": loaded, "approximated": 0, "refused": len(refused), "rules": refused})

    def budget(self, config):
        limit = json.loads(config)["limit"]
        all_rules = [
            {"source": name, "line": number, "sid": number, "reason": "tcp/502"}
            for name, text in self.sources
            for number, line in enumerate(text.decode().splitlines(), 1)
            if line.startswith("alert")
        ]
        return json.dumps({"kept": all_rules[:limit], "left_out": all_rules[limit:]})


class Inspector:
    made: ClassVar[list[Inspector]] = []

    def __init__(self, ruleset, settings, memory_bytes):
        self.ruleset, self.settings, self.memory_bytes = ruleset, settings, memory_bytes
        self.steps = [[event("flow", flow={"pkts_toclient": 2, "bytes_toserver": 10, "bytes_toclient": 20})], []]
        self.last = [[event("alert", alert={"signature_id": 7, "signature": "seven", "gid": 1, "rev": 1})]]
        Inspector.made.append(self)

    def replay(self, path, most_lines):
        if path.endswith("bad.pcap"):
            raise SensorError("ids.capture.not-a-capture", "no capture")
        return self.steps.pop(0) if self.steps else None

    def finish(self):
        return self.last.pop(0) if self.last else []

    def stats_line(self):
        return event("stats", stats={"decoder": {"pkts": 3}})


class LiveCapture:
    made: ClassVar[list[LiveCapture]] = []
    most: ClassVar[int] = 100

    def __init__(self, interface, inspector, *fanout):
        self._open(inspector, interface, *fanout)

    def _open(self, inspector, *opened):
        if len(LiveCapture.made) >= self.most:
            raise SensorError("ids.capture.failed", "no more")
        self.inspector, self.opened, self.is_closed, self.failure = inspector, opened, False, None
        LiveCapture.made.append(self)

    def poll(self, timeout_ms, max_lines):
        if self.failure:
            raise self.failure
        return self.inspector.steps.pop(0) if self.inspector.steps else []

    def close(self):
        self.is_closed = True


class LogCapture(LiveCapture):
    def __init__(self, group, inspector):
        self._open(inspector, group)


class InlineInspector(LiveCapture):
    def __init__(self, queue_number, inspector, fail_open):
        self._open(inspector, queue_number, fail_open)


def event(kind, **more):
    return json.dumps(
        {
            "timestamp": "2026-01-02T03:04:05.000006+0000",
            "event_type": kind,
            "flow_id": 9,
            "src_ip": "192.0.2.1",
            "src_port": 4000,
            "dest_ip": "192.0.2.2",
            "dest_port": 502,
            "proto": "TCP",
            **more,
        }
    )
