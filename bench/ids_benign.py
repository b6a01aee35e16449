"""Sensor: alerts an hour of benign captures, all detectors on and no rules: each of them would be a false alert.

Run by ``make bench NAME=ids_benign``, or by itself: prints the rows as JSON and each alert on standard error. Benign
are the corpora's captures of ordinary protocol use (``BENIGN``), but for those that hold an attack or a fault by
design: each is named in ``ATTACKS`` with what it is. A capture's time is that between its first and last packet, where
at most ``MOST_GAP_S`` between two packets count: nobody was there to be alerted in the hours in between.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.machine import row  # noqa: E402
from bench.sensor.captures import read_pcap  # noqa: E402  # found through the line above when run by itself
from tidegate.ids.inspector import Sensor, SensorConfig  # noqa: E402

CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", ROOT.parent / "shared" / "corpora"))
BENIGN = ("ndpi-pcap", "ics-pcap", "ja4")
MOST_GAP_S = 60.0
LEAST_S = 3600.0  # less time says nothing about a rate an hour
ATTACKS = {
    "bad-dns-traffic.pcap": "a tunnel in names (dnscat2)",
    "synscan.pcap": "a port scan (nmap)",
    "fuzz-2006-06-26-2594.pcap": "packets with random faults, ARP replies with a wrong station among them",
}
# Honest captures in which something is reported, and why that is right. It counts all the same.
EXPLAINED = {
    "DNP3-TestDataPart1.pcap": "a test set: two masters use one function after the other for hours, restart among them",
    "dnp3.pcap": "the same capture",
}


def run() -> list[dict[str, Any]]:
    """Return the rows: hours of captures, alerts an hour."""
    seconds, captures, unexplained, alerts = 0.0, 0, 0, Counter[str]()
    for path in benign_captures():
        lasted_s = capture_s(path)
        if lasted_s is None:
            continue
        seconds, captures = seconds + lasted_s, captures + 1
        for alert in alerts_of(path):
            alerts[alert["metadata"]["detector"]] += 1
            unexplained += path.name not in EXPLAINED
            why = EXPLAINED.get(path.name, "NOT EXPLAINED")
            print(f"{path.name}: {describe(alert)}: {why}", file=sys.stderr)
    if seconds < LEAST_S:
        raise SystemExit(f"the corpora have {seconds:.0f} s of benign captures only")
    hours = seconds / 3600
    what = f"{captures} benign captures, {hours:.1f} h, all detectors"
    return [
        row(f"{what}: alerts an hour", sum(alerts.values()) / hours, "alerts/h", higher=False),
        row(f"{what}: of these not explained", unexplained / hours, "alerts/h", higher=False),
        *(row(f"{what}: {name}", count / hours, "alerts/h", higher=False) for name, count in sorted(alerts.items())),
    ]


def benign_captures() -> Iterator[Path]:
    """Yield the captures without those that are attacks."""
    for corpus in BENIGN:
        for path in sorted((CORPORA / corpus).rglob("*")):
            if path.suffix in {".pcap", ".cap"} and path.is_file() and path.name not in ATTACKS:
                yield path


def capture_s(path: Path) -> float | None:
    """Return how long a capture lasted, long gaps left out; ``None`` for files of other kinds."""
    last_us, seconds = None, 0.0
    for time_us, _, _ in read_pcap(path):
        if last_us is not None:
            seconds += min(max(time_us - last_us, 0) / 1e6, MOST_GAP_S)
        last_us = time_us
    return None if last_us is None else seconds


def alerts_of(path: Path) -> Iterator[dict[str, Any]]:
    """Yield each alert that a fresh sensor begins."""
    sensor = Sensor(SensorConfig(settings=(("outputs.eve-log.enabled-types", "alert"),)))
    for event in sensor.replay(path):
        if event["event_type"] == "alert" and event.get("metadata", {}).get("state") == "start":
            yield event


def describe(alert: dict[str, Any]) -> str:
    """Return one line about an alert."""
    ends = f"{alert.get('src_ip', '-')} to {alert.get('dest_ip', '-')}:{alert.get('dest_port', '-')}"
    return f"{alert['metadata']['detector']} {ends} {json.dumps(alert['metadata'])[:300]}"


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
