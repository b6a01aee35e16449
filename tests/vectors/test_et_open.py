"""A public rule set of some 18 thousand rules: how much of it is loaded as written, and that a rule out of it fires.

The folder is found through TIDEGATE_CORPORA, or beside the repository as ``shared/corpora``.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from tests.unit.ids.packets import conversation, write_capture

from tidegate.ids.inspector import Sensor, SensorConfig

sensor_module = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")

CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", Path(__file__).resolve().parents[2].parent / "shared" / "corpora"))
FOLDER = CORPORA / "et-open-rules"
LEAST_AS_WRITTEN = 0.99  # of enabled rules
LEAST_RULES = 1000  # fewer are not the set that is meant


@pytest.fixture(scope="module")
def sensor():
    files = tuple(sorted(FOLDER.glob("*.rules")))
    if not files:
        pytest.skip("no corpus et-open-rules: set TIDEGATE_CORPORA")
    return Sensor(SensorConfig(rules=files))


def test_nearly_every_rule_is_loaded_as_it_is_written(sensor):
    report = sensor.rules.report()
    rules = report.loaded + report.approximated + report.refused
    assert rules >= LEAST_RULES
    reasons = Counter(rule.reason for rule in report.rules).most_common(8)
    assert report.loaded >= LEAST_AS_WRITTEN * rules, reasons


def test_each_rule_that_is_not_loaded_as_written_has_a_place_and_a_reason(sensor):
    for rule in sensor.rules.report().rules:
        assert rule.reason, rule
        assert rule.line > 0, rule
        assert rule.outcome in {"approximated", "refused"}, rule
        assert Path(rule.source).is_file(), rule


def test_a_rule_out_of_it_fires_and_ordinary_requests_set_off_none(tmp_path, sensor):
    text = "".join(path.read_text(errors="replace") for path in FOLDER.glob("*.rules"))
    if "sid:2016521;" not in text:
        pytest.skip("this set lacks the rule that the capture is made for")
    exploit = b"GET /x/Java-SPLOIT.jar HTTP/1.1\r\nHost: example.net\r\nUser-Agent: Java/1.6.0\r\n\r\n"
    ordinary = (
        b"GET /index.html HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n"
        b"Accept: text/html\r\nConnection: close\r\n\r\n"
    )
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\n\r\n<html></html>"
    talks = [([(">", exploit)], 40_001), ([(">", ordinary), ("<", answer)], 40_002)]
    frames = [
        frame
        for talk, port in talks
        for frame in conversation(talk, client=("192.168.1.5", port), server=("203.0.113.9", 80))
    ]
    capture = write_capture(tmp_path / "made-up.pcap", frames)
    alerts = [event for event in sensor.replay(capture) if event["event_type"] == "alert"]
    assert 2016521 in {alert["alert"]["signature_id"] for alert in alerts if alert["src_port"] == 40_001}
    assert [alert["alert"]["signature"] for alert in alerts if alert["src_port"] == 40_002] == []
    stats = json.loads(sensor.stats_line())["stats"]
    assert stats["detect"]["engines"][0]["rules_loaded"] >= LEAST_RULES
