"""The sensor with rules as a Python API, on a module that stands in for the built one."""

from __future__ import annotations

import json

import pytest
from tests.unit.ids import fakesensor

from tidegate.base import confine
from tidegate.base.errors import TidegateError
from tidegate.cli.main import main
from tidegate.ids import inspector, sensor, worker
from tidegate.ids.inspector import Finding, RuleSet, Sensor, SensorConfig
from tidegate.ids.rulebudget import encode_rules, parse_budget, plan_budget
from tidegate.ids.section import IdsSection, plan_sensor


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(inspector, "load_module", lambda: fakesensor)
    monkeypatch.setattr(sensor, "load_module", lambda: fakesensor)
    fakesensor.Inspector.made.clear()


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "test.rules"
    path.write_text("alert tcp any any -> any any (sid:1;)\nalert nonsense\n# alert\n")
    return path


@pytest.fixture
def capture(tmp_path):
    path = tmp_path / "a.pcap"
    path.write_bytes(b"\xd4\xc3\xb2\xa1")
    return path


def test_events_come_in_order_and_to_the_end(capture, rules):
    running = Sensor(SensorConfig(rules=(rules,), settings=(("stream.midstream", "yes"),), memory="16MiB"))
    assert [event["event_type"] for event in running.replay(capture)] == ["flow", "alert"]
    (made,) = fakesensor.Inspector.made
    assert made.memory_bytes == 16 << 20
    assert dict(made.settings)["stream.midstream"] == "yes"
    assert dict(made.settings)["vars.address-groups.HOME_NET"].startswith("[192.168.")


def test_a_detector_sees_flows_and_its_findings_are_alerts(capture):
    running = Sensor()
    seen = []

    @running.detector
    def by_name(event):
        seen.append(event["event_type"])
        return "a flow"

    @running.detector
    def by_finding(event):
        return Finding(signature="worse", severity=1, signature_id=5) if event["dest_port"] == 502 else None

    events = list(running.replay(capture))
    assert seen == ["flow"]
    assert [event["event_type"] for event in events] == ["flow", "alert", "alert", "alert"]
    assert [event["alert"]["signature_id"] for event in events[1:]] == [2990001, 5, 7]
    assert (events[1]["flow_id"], events[1]["dest_port"]) == (9, 502)


def test_too_many_detectors_are_refused():
    running = Sensor()
    for _ in range(inspector.MAX_DETECTORS):
        running.detector(lambda event: None)
    with pytest.raises(TidegateError) as caught:
        running.detector(lambda event: None)
    assert caught.value.code == "ids.config.invalid"


def test_the_report_names_what_was_refused(rules):
    report = RuleSet.load(rules).report()
    assert (report.loaded, report.refused) == (1, 1)
    assert (report.rules[0].line, report.rules[0].reason) == (2, "unknown keyword nonsense")


def test_files_that_rules_name_are_found_beside_them(rules, tmp_path):
    (tmp_path / "list.txt").write_text("x")
    handle = RuleSet.load(rules).handle
    assert handle.files("list.txt") == b"x"
    with pytest.raises(TidegateError) as caught:
        handle.files("absent.txt")
    assert caught.value.code == "base.storage.missing"


def test_an_interface_is_polled():
    running = Sensor(SensorConfig(interface="eth9"))
    with running.open_interface() as opened:
        assert [json.loads(line)["event_type"] for line in opened.poll()] == ["flow"]
    assert next(iter(Sensor(SensorConfig(interface="eth9"))))["event_type"] == "flow"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: Sensor().open_interface(), "ids.config.invalid"),
        (lambda: Sensor(SensorConfig(memory="much")), "ids.config.invalid"),
        (lambda: Sensor(SensorConfig(rules=("/nonexistent.rules",))), "base.storage.missing"),
        (lambda: list(Sensor().replay("/nonexistent.pcap")), "base.storage.missing"),
        (lambda: plan_budget([], 5, year=2026), "ids.budget.invalid"),
        (lambda: plan_budget(["tcp/70000"], 5, year=2026), "ids.budget.invalid"),
        (lambda: plan_budget(["Modbus!"], 5, year=2026), "ids.budget.invalid"),
        (lambda: plan_budget(["modbus"], 0, year=2026), "ids.budget.invalid"),
        (lambda: parse_budget({"kept": 3}), "ids.sensor.internal"),
    ],
)
def test_refusals_have_their_codes(make, code):
    with pytest.raises(TidegateError) as caught:
        make()
    assert caught.value.code == code


def test_a_module_without_an_engine_is_missing_one(monkeypatch, capture):
    monkeypatch.setattr(inspector, "load_module", object)
    with pytest.raises(TidegateError) as caught:
        Sensor()
    assert caught.value.code == "ids.sensor.missing"


def test_replay_prints_lines_and_refused_rules(capture, rules, capsys):
    words = [
        "ids",
        "replay",
        str(capture),
        "--rules",
        str(rules),
        "--eve",
        "-",
        "--checksums",
        "none",
        "--simulate-ips",
    ]
    assert main(words) == 0
    assert main([*words, "--fail-on-refused"]) == 3
    out, err = capsys.readouterr()
    assert [json.loads(line)["event_type"] for line in out.splitlines()] == ["flow", "alert", "stats"] * 2
    assert "unknown keyword nonsense" in err
    settings = dict(fakesensor.Inspector.made[0].settings)
    assert (settings["pcap-file.checksum-checks"], settings["simulate-ips"]) == ("no", "yes")


def test_replay_says_what_was_in_it(capture, capsys):
    assert main(["ids", "replay", str(capture), "--stats", "--filter", "port 22"]) == 0
    out = capsys.readouterr().out
    assert "events: 1 alert, 1 flow" in out
    assert "[1:7:1] seven  192.0.2.1 -> 192.0.2.2" in out
    assert dict(fakesensor.Inspector.made[0].settings)["bpf-filter"] == "port 22"


def test_a_config_gives_settings_and_rules(capture, rules, tmp_path, capsys):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    config = tmp_path / "suricata.yaml"
    config.write_text("stream:\n  midstream: yes\nrule-files:\n - test.rules\n")
    assert main(["ids", "replay", str(capture), "--config", str(config), "--set", "stream.midstream=no", "--json"]) == 0
    made = fakesensor.Inspector.made[0]
    assert dict(made.settings)["stream.midstream"] == "no"
    assert [name for name, _ in made.ruleset.sources] == [str(rules)]
    assert json.loads(capsys.readouterr().out)["events"] == {"flow": 1, "alert": 1}


def test_a_policy_gives_rules_and_memory(capture, rules, tmp_path):
    policy = tmp_path / "policy.toml"
    section = f'[ids]\nrules = ["{rules}"]\nhome_net = ["198.51.100.0/24"]\nmemory = "9MiB"\n'
    policy.write_text('[policy]\nversion = 1\ndevices = ["*"]\n' + section)
    assert main(["ids", "replay", str(capture), "--policy", str(policy)]) == 0
    made = fakesensor.Inspector.made[0]
    assert made.memory_bytes == 9 << 20
    assert dict(made.settings)["vars.address-groups.HOME_NET"] == "[198.51.100.0/24]"


@pytest.mark.parametrize("is_json", [False, True])
def test_rules_check_says_no_by_its_status(rules, capsys, is_json):
    assert main(["ids", "rules", "check", str(rules), *(["--json"] if is_json else [])]) == 3
    out = capsys.readouterr().out
    if is_json:
        assert json.loads(out)["refused"] == 1
    else:
        assert f"refused: {rules}:2  sid 2  unknown keyword nonsense" in out
        assert "1 loaded, 0 approximated, 1 refused" in out


def test_rules_budget_writes_what_the_device_should_carry(rules, tmp_path, capsys):
    kept = tmp_path / "kept.rules"
    words = ["ids", "rules", "budget", str(rules), "--service", "tcp/502", "--service", "modbus", "--limit", "1"]
    assert main([*words, "--output", str(kept)]) == 0
    assert kept.read_text() == "alert tcp any any -> any any (sid:1;)\n"
    assert "1 rules chosen, 1 left out" in capsys.readouterr().out


def test_a_rule_over_several_lines_is_kept_whole():
    choice = parse_budget({"kept": [{"source": "a", "line": 2, "sid": 1}] * 2}).kept
    assert encode_rules([("a", b"# x\nalert tcp \\\n  any \\\n (sid:1;)\nalert y\n")], choice) == (
        b"alert tcp \\\n  any \\\n (sid:1;)\n"
    )


@pytest.fixture
def given_up(monkeypatch):
    """What was kept each time privileges were given up: this process goes on with its own."""
    kept: list[int | None] = []
    monkeypatch.setattr(confine, "confine", lambda *, keep, **_: kept.append(keep))
    return kept


def test_run_polls_and_ends_with_the_counters(rules, given_up, capfd):
    assert main(["ids", "run", "--interface", "eth9", "--rules", str(rules), "--seconds", "0.01"]) == 0
    out, err = capfd.readouterr()
    kinds = [json.loads(line)["event_type"] for line in out.splitlines()]
    assert (kinds[0], kinds[-1]) == ("flow", "stats")
    assert "refused" in err
    assert given_up == [None]


def test_the_worker_runs_rules_where_the_policy_has_some(rules):
    plan = plan_sensor(IdsSection(rules=(str(rules),), memory="10MiB"))
    with worker.open_sensor("eth9", plan.config_json) as opened:
        assert [json.loads(line)["event_type"] for line in opened.poll(0, max_lines=5)] == ["flow"]
        assert [json.loads(line)["event_type"] for line in opened.finish()] == ["alert"]
        assert json.loads(opened.stats_line())["event_type"] == "stats"
    (made,) = fakesensor.Inspector.made
    assert made.memory_bytes == 10 << 20
    assert dict(made.settings)["tidegate.detectors.scan"] == "yes"
    assert "settings" not in json.loads(plan_sensor(IdsSection()).config_json)


@pytest.mark.parametrize("line", ["", "{", "nothing"])
def test_the_worker_refuses_a_line_that_is_no_configuration(line):
    with pytest.raises(TidegateError) as caught:
        worker.open_sensor("eth9", line)
    assert caught.value.code == "ids.config.invalid"


def test_top_of_an_interface(given_up, capsys):
    assert main(["ids", "top", "--interface", "eth9", "--once", "--seconds", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["flows"][0]["service"] == "tcp/502"
    assert given_up == [None]
