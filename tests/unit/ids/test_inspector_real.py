"""The Python API of the sensor with the module that is built here, over captures that are made here."""

from __future__ import annotations

import base64
import json

import pytest
from tests.unit.ids.packets import CLIENT, SERVER, conversation, udp, write_capture

from tidegate.base.errors import TidegateError
from tidegate.ids.inspector import FIRST_DETECTOR_ID, Finding, RuleSet, Sensor, SensorConfig
from tidegate.ids.rulebudget import encode_rules, parse_budget, plan_budget
from tidegate.ids.rulefiles import read_rules

sensor_module = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
if not hasattr(sensor_module, "Inspector"):
    pytest.skip("the Rust module is older", allow_module_level=True)

EVIL = 'alert http any any -> any any (msg:"evil path"; http.uri; content:"/evil"; classtype:trojan-activity; sid:1;)\n'
REQUEST = b"GET /evil HTTP/1.1\r\nHost: example.org\r\nUser-Agent: made-up\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
def capture(tmp_path):
    return write_capture(tmp_path / "made-up.pcap", conversation([(">", REQUEST), ("<", ANSWER)]))


@pytest.fixture
def rules(tmp_path):
    def write(text, name="made-up.rules"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def code_of(function, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        function(*arguments, **named)
    return caught.value.code


def kinds(events):
    return [event["event_type"] for event in events]


def test_a_rule_fires_and_the_request_is_logged(capture, rules):
    sensor = Sensor(SensorConfig(rules=(rules(EVIL),)))
    events = list(sensor.replay(capture))
    assert {"alert", "flow", "http"} <= set(kinds(events)) <= {"alert", "flow", "http", "fileinfo"}
    alert = next(event for event in events if event["event_type"] == "alert")
    assert alert["alert"]["signature_id"] == 1
    assert alert["alert"]["category"] == "A Network Trojan was detected"
    assert (alert["src_ip"], alert["dest_port"], alert["app_proto"]) == (*CLIENT[:1], SERVER[1], "http")
    assert alert["http"]["hostname"] == "example.org"
    http = next(event for event in events if event["event_type"] == "http")
    assert (http["http"]["url"], http["http"]["status"], http["flow_id"]) == ("/evil", 200, alert["flow_id"])
    flow = next(event for event in events if event["event_type"] == "flow")
    assert (flow["flow"]["alerted"], flow["flow"]["pkts_toserver"]) == (True, 6)
    stats = json.loads(sensor.stats_line())["stats"]
    assert (stats["decoder"]["pkts"], stats["detect"]["alert"]) == (10, 1)


def test_settings_choose_what_is_written(capture, rules):
    settings = (("outputs.eve-log.enabled-types", "alert"), ("outputs.eve-log.types.alert.payload", "yes"))
    sensor = Sensor(SensorConfig(rules=(rules(EVIL),), settings=settings))
    (alert,) = sensor.replay(capture)
    assert base64.b64decode(alert["payload"]).startswith(b"GET /evil")


def test_without_rules_records_are_written_all_the_same(capture):
    assert {"http", "flow"} <= set(kinds(Sensor().replay(capture)))


def test_a_sensor_reads_one_capture_once(capture):
    sensor = Sensor()
    assert list(sensor.replay(capture))
    assert list(sensor.replay(capture)) == []


def test_a_detector_in_python_sees_what_rules_see(capture):
    sensor = Sensor()

    @sensor.detector
    def old_browser(event):
        if event["event_type"] == "http" and event["http"].get("http_user_agent") == "made-up":
            return Finding(signature="a made-up browser", severity=1)
        return None

    @sensor.detector
    def every_flow(event):
        return "a flow" if event["event_type"] == "flow" else None

    alerts = [event for event in sensor.replay(capture) if event["event_type"] == "alert"]
    assert [alert["alert"]["signature_id"] for alert in alerts] == [FIRST_DETECTOR_ID, FIRST_DETECTOR_ID + 1]
    assert alerts[0]["alert"]["severity"] == 1
    assert alerts[0]["src_ip"] == CLIENT[0]


def test_what_a_detector_raises_comes_through(capture):
    sensor = Sensor()

    @sensor.detector
    def broken(event):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(sensor.replay(capture))


def test_the_report_says_what_became_of_each_rule(rules):
    text = (
        EVIL + "# alert tcp any any -> any any (sid:2;)\n\nalert tcp any any -> any any (nonsense:1; sid:3;)\n" + EVIL
    )
    report = RuleSet.load(rules(text)).report()
    assert (report.loaded, report.refused) == (1, 2)
    assert [(rule.line, rule.sid, rule.outcome) for rule in report.rules] == [(4, 3, "refused"), (5, 1, "refused")]
    assert all(rule.reason and rule.source.endswith("made-up.rules") for rule in report.rules)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "\0\1\2",
        "alert",
        "alert tcp any any -> any any (",
        "é" * 100,
        "alert tcp any any -> any any (sid:1;) x",
    ],
)
def test_no_text_makes_loading_fail(rules, text):
    report = RuleSet.load(rules(text)).report()
    assert report.loaded + report.approximated + report.refused <= 1


def test_a_device_carries_the_rules_of_its_services(rules):
    modbus = 'alert tcp $EXTERNAL_NET any -> $HOME_NET 502 (msg:"m"; flow:to_server; content:"|00 00|"; sid:2;)\n'
    ftp = 'alert tcp $EXTERNAL_NET any -> $HOME_NET 21 (msg:"f"; flow:to_server; content:"USER"; sid:3;)\n'
    rule_set = RuleSet.load(rules(modbus + ftp))
    answer = parse_budget(rule_set.budget(plan_budget(["tcp/502"], 10, year=2026)))
    assert [choice.sid for choice in answer.kept] == [2]
    assert [(choice.sid, bool(choice.reason)) for choice in answer.left_out] == [(3, True)]
    assert encode_rules(read_rules(rule_set.paths), answer.kept) == modbus.encode()
    assert [choice.sid for choice in parse_budget(rule_set.budget(plan_budget(["modbus"], 10, year=2026))).kept] == [2]
    both = parse_budget(rule_set.budget(plan_budget(["tcp/502", "tcp/21"], 1, year=2026)))
    assert (len(both.kept), len(both.left_out)) == (1, 1)
    assert code_of(rule_set.budget, {"services": [{"application": "no-such"}], "limit": 1}) == "ids.config.invalid"
    assert code_of(rule_set.budget, {"limit": 1}) == "ids.config.invalid"


def test_data_sets_are_read_and_kept(tmp_path, capture, rules):
    known = base64.b64encode(b"example.org").decode()
    (tmp_path / "hosts.lst").write_text(known + "\n")
    text = (
        "alert http any any -> any any (http.host; dataset:isset,hosts,type string,load hosts.lst; sid:1;)\n"
        "alert http any any -> any any (http.user_agent; dataset:set,seen,type string,save kept/seen.lst; sid:2;)\n"
    )
    sensor = Sensor(SensorConfig(rules=(rules(text),)))
    assert sensor.rules.report().refused == 0
    found = {event["alert"]["signature_id"] for event in sensor.replay(capture) if event["event_type"] == "alert"}
    assert found == {1, 2}
    (written,) = sensor.keep_datasets(tmp_path / "data")
    assert written == tmp_path / "data" / "kept" / "seen.lst"
    assert base64.b64decode(written.read_text()) == b"made-up"


@pytest.mark.parametrize("name", ["../seen.lst", "/tmp/seen.lst", "a/../../seen.lst"])
def test_no_rule_writes_outside_the_data_folder(tmp_path, capture, rules, name):
    text = f"alert http any any -> any any (http.user_agent; dataset:set,seen,type string,save {name}; sid:2;)\n"
    sensor = Sensor(SensorConfig(rules=(rules(text),)))
    list(sensor.replay(capture))
    if sensor.rules.report().refused:
        return  # refused where it was read: as good
    assert code_of(sensor.keep_datasets, tmp_path / "data") == "ids.config.invalid"
    assert not (tmp_path / "seen.lst").exists()


def test_each_error_has_its_code(tmp_path, capture, rules):
    nothing = tmp_path / "nothing"
    (tmp_path / "text.pcap").write_text("this is no capture, but long enough for a header")
    assert code_of(RuleSet.load, nothing) == "base.storage.missing"
    assert code_of(lambda: list(Sensor().replay(nothing))) == "base.storage.missing"
    assert code_of(lambda: list(Sensor().replay(tmp_path / "text.pcap"))) == "ids.capture.not-a-capture"
    assert code_of(Sensor, SensorConfig(memory="a lot")) == "ids.config.invalid"
    assert code_of(lambda: Sensor().open_interface()) == "ids.config.invalid"


def test_a_capture_that_ends_in_the_middle_is_read_to_there(tmp_path, capture, rules):
    whole = capture.read_bytes()
    for end in range(24, len(whole), 37):
        cut = tmp_path / "cut.pcap"
        cut.write_bytes(whole[:end])
        sensor = Sensor(SensorConfig(rules=(rules(EVIL),)))
        events = list(sensor.replay(cut))
        assert all(isinstance(event, dict) for event in events)
        assert json.loads(sensor.stats_line())["stats"]["memory"]["stream_held_bytes"] == 0


def test_two_sensors_of_the_same_rules_do_not_disturb_each_other(capture, rules):
    path = rules(EVIL)
    sensors = [Sensor(SensorConfig(rules=(path,))) for _ in range(2)]
    streams = [sensor.replay(capture) for sensor in sensors]
    events = [list(stream) for stream in streams]
    assert kinds(events[0]) == kinds(events[1])


def test_the_same_capture_gives_the_same_lines(tmp_path, rules):
    talk = [
        frame
        for number in range(50)
        for frame in conversation([(">", REQUEST)], client=("198.51.100.7", 1000 + number))
    ]
    path = write_capture(
        tmp_path / "many.pcap", [*talk, *(udp(CLIENT, ("192.168.1.2", 53), b"x" * 20) for _ in range(9))]
    )

    def lines():
        events = list(Sensor(SensorConfig(rules=(rules(EVIL),))).replay(path))
        return [{name: value for name, value in event.items() if name != "flow_id"} for event in events]

    assert lines() == lines()
