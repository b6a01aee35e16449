"""What the sensor's worker does with lines that its reader could not take."""

from __future__ import annotations

import json

from tidegate.ids.worker import MAX_LINE, fit_line


def test_a_line_that_fits_is_left_alone():
    line = json.dumps({"event_type": "alert", "text": "x" * (MAX_LINE - 100)})
    assert fit_line(line) is line


def test_a_long_alert_keeps_who_and_which_rule_and_says_how_long_it_was():
    alert = {
        "timestamp": "2026-11-28T10:00:02.500000+0000",
        "event_type": "alert",
        "src_ip": "192.0.2.9",
        "payload": "A" * 100_000,
        "alert": {"signature_id": 7, "signature": "long", "metadata": {"x": ["y"] * 50_000}},
        "metadata": {"detector": "scan.syn", "state": "start"},
        "peer": {"age_s": 1, "known_s": 2},
        "http": {"url": "/" + "a" * 60_000},
    }
    line = json.dumps(alert)
    cut = json.loads(fit_line(line))
    assert (cut["src_ip"], cut["event_type"], cut["timestamp"]) == ("192.0.2.9", "alert", alert["timestamp"])
    assert cut["alert"] == {"signature_id": 7, "signature": "long"}
    assert (cut["metadata"], cut["peer"]) == (alert["metadata"], alert["peer"])
    assert cut["cut_bytes"] == len(line)
    assert "http" not in cut


def test_whatever_the_line_holds_the_result_fits():
    wide = {f"name{number}": "\U0001f300" * 400 for number in range(500)}
    line = json.dumps({"event_type": "alert", **wide, "alert": wide, "metadata": wide, "flow": wide, "peer": wide})
    assert len(fit_line(line)) <= MAX_LINE
    assert json.loads(fit_line(line))["event_type"] == "alert"
