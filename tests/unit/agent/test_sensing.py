"""Sensor and watch under the agent, fed by a scripted worker: what becomes an event, what becomes a ban, what heals."""

from __future__ import annotations

import asyncio
import json
import os
import time
import types
from pathlib import Path

import pytest

from tidegate.agent import sensing, workers
from tidegate.agent.sensing import Sensing
from tidegate.base.clock import SystemClock
from tidegate.base.errors import StorageFull
from tidegate.events.errors import EventInvalid
from tidegate.firewall.errors import BanNever
from tidegate.policy.document import Policy, parse_policy

ALERT = {
    "event_type": "alert",
    "src_ip": "203.0.113.9",
    "dest_ip": "192.0.2.1",
    "alert": {"signature_id": 9000001, "signature": "TIDEGATE port scan"},
    "metadata": {"detector": "scan.syn", "state": "start", "count": 10, "window_s": 10, "direction": "in"},
}
STATS = {"event_type": "stats", "stats": {"packets": 7}}


class RecordedBans:
    def __init__(self) -> None:
        self.banned: list[tuple[str, int]] = []

    def ban(self, address: str, seconds: int) -> None:
        if address == "192.0.2.10":
            raise BanNever("the operator")
        self.banned.append((address, seconds))


class RecordedEvents:
    """An event log with as much room as a test says."""

    def __init__(self) -> None:
        self.events: list = []
        self.full = False

    def append(self, event) -> None:
        if self.full:
            raise StorageFull("no room")
        self.events.append(event)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


class Stage:
    """A ``Sensing`` whose worker is a shell script that says what ``lines`` hold, then what ``ending`` does."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.bans, self.events = RecordedBans(), RecordedEvents()
        self.policy = make_policy()
        self._folder = folder
        self._program = folder / "worker"
        monkeypatch.setattr(workers, "sys", types.SimpleNamespace(executable=str(self._program)))
        monkeypatch.setattr(sensing, "RESTART_PAUSE_S", 0.05)
        monkeypatch.setattr(sensing, "WATCH_LOOK_S", 0.02)
        self.lockdowns: list[tuple[str, float]] = []
        self.sensing = Sensing(
            self.events,
            self.bans,
            lambda: self.policy,
            SystemClock(),
            interface="eth9",
            lock_down=lambda reason, seconds: self.lockdowns.append((reason, seconds)),
        )

    def script(self, *lines: dict | bytes, ending: str = "exec sleep 60") -> None:
        feed = self._folder / "feed"
        feed.write_bytes(
            b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
        )
        text = f'#!/bin/sh\nread -r config\necho "$@ $config" >> {self._folder}/started\ncat {feed}\n{ending}\n'
        self._program.write_text(text)
        self._program.chmod(0o755)

    def started(self) -> list[str]:
        path = self._folder / "started"
        return path.read_text().splitlines() if path.exists() else []

    async def run_both(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sensing.run_sensor())
            tasks.create_task(self.sensing.run_counts())

    def play(self, until, *, timeout_s: float = 5.0, work=None) -> None:
        """Run the sensor until ``until`` holds, then cancel it as the agent does when it stops."""

        async def run() -> None:
            task = asyncio.create_task((work or self.sensing.run_sensor)())
            deadline = time.monotonic() + timeout_s
            while not until() and time.monotonic() < deadline:
                assert not task.done() or task.result() is None
                await asyncio.sleep(0.01)
            assert not task.done(), task
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(run())
        assert until(), (self.events.kinds(), self.started())


def make_policy(extra: str = "") -> Policy:
    return parse_policy(
        "[policy]\nversion = 1\n[ids]\nmemory = '2MiB'\nrespond = 'ban'\nban_s = 60\nallow = ['198.51.100.7/32']\n"
        + extra
    )


@pytest.fixture
def stage(tmp_path, monkeypatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


def test_an_alert_is_an_event_first_and_then_a_ban(stage) -> None:
    stage.script(ALERT)
    stage.play(lambda: len(stage.events.events) >= 2)
    assert stage.events.kinds() == ["ids.detected", "firewall.banned"]
    assert stage.bans.banned == [("203.0.113.9", 60)]
    assert "--interface eth9" in stage.started()[0]
    assert json.loads(stage.started()[0].split(" ", 4)[-1])["memory_bytes"] == 2 << 20


def test_an_alert_locks_the_device_down_where_the_policy_says_so(stage) -> None:
    stage.policy = parse_policy(
        '[policy]\nversion = 1\n[ids]\ninterfaces = ["eth9"]\nrespond = "lockdown"\nban_s = 60\nmemory = "2MiB"\n'
    )
    stage.script(ALERT, varied(peer_age_s=10))
    stage.play(lambda: len(stage.events.events) >= 2)
    assert [seconds for _, seconds in stage.lockdowns] == [60]  # a genuine peer's alert may be forged
    assert stage.bans.banned == []


def varied(**changes) -> dict:
    alert = json.loads(json.dumps(ALERT))
    for name, value in changes.items():
        target = alert["metadata"] if name in alert["metadata"] or name == "peer_age_s" else alert
        if value is None:
            target.pop(name)
        else:
            target[name] = value
    return alert


@pytest.mark.parametrize(
    ("title", "line"),
    [
        ("it ended", varied(state="end")),
        ("many sources", varied(src_ip=None)),
        ("we sent it", varied(direction="out")),
        ("the policy allows it", varied(src_ip="198.51.100.7")),
        ("a genuine peer", varied(peer_age_s=10)),
        ("multicast", varied(src_ip="224.0.0.1")),
        ("loopback", varied(src_ip="::1")),
    ],
)
def test_reported_but_not_banned(stage, title: str, line: dict) -> None:
    stage.script(line, STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    assert stage.events.kinds() == ["ids.detected"], title
    assert stage.bans.banned == []


RULE_ALERT = {
    "timestamp": "2026-11-28T10:00:02.500000+0000",
    "flow_id": 7,
    "event_type": "alert",
    "src_ip": "203.0.113.9",
    "dest_ip": "192.0.2.1",
    "proto": "TCP",
    "alert": {
        "action": "allowed",
        "signature_id": 1000001,
        "signature": "LOCAL exploit",
        "severity": 1,
        "category": "x",
    },
    "metadata": {"flowbits": ["seen"]},
    "peer": {},
}


def rule_alert(**changes) -> dict:
    return {**RULE_ALERT, **changes}


def test_a_flood_of_one_rule_s_alerts_is_an_event_and_then_a_count(stage, monkeypatch) -> None:
    monkeypatch.setattr(sensing, "COUNT_LOOK_S", 0.02)
    stage.sensing._findings.window_s = 0.2
    stage.script(*[rule_alert()] * 500, STATS)

    stage.play(lambda: len(stage.events.events) == 2, work=stage.run_both)
    first, counted = stage.events.events
    assert stage.events.kinds() == ["ids.detected", "ids.detected"]
    assert [event.attributes["finding_info"]["uid"] for event in (first, counted)] == ["1000001", "1000001"]
    assert (first.data["count"], first.data["detector"], counted.data["count"]) == (1, "signature", 499)
    assert first.occurred_ms == 1_795_860_002_500
    assert stage.sensing.state()["alerts_counted"] == 499
    assert stage.bans.banned == []


def test_what_was_counted_is_told_when_the_agent_stops(stage) -> None:
    stage.script(*[rule_alert()] * 3, STATS)

    stage.play(lambda: stage.sensing.state()["stats"], work=stage.run_both)
    assert [event.data["count"] for event in stage.events.events] == [1, 2]


def test_a_rule_s_source_is_banned_once_where_the_policy_says_so(stage) -> None:
    stage.policy = make_policy("respond_severity = 1\n")
    stage.script(*[rule_alert()] * 20, STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    assert stage.bans.banned == [("203.0.113.9", 60)]
    assert stage.events.kinds() == ["ids.detected", "firewall.banned"]
    assert "rule 1000001" in stage.events.events[1].message


@pytest.mark.parametrize(
    ("title", "line"),
    [
        ("the policy wants worse ones", rule_alert(alert={**RULE_ALERT["alert"], "severity": 2})),
        ("a genuine peer", rule_alert(peer={"age_s": 5, "known_s": 900})),
        ("nobody knows who is a peer", {name: value for name, value in RULE_ALERT.items() if name != "peer"}),
        ("this device sent it", rule_alert(src_ip="127.0.0.1")),
    ],
)
def test_a_rule_s_source_that_is_spared(stage, title: str, line: dict) -> None:
    stage.policy = make_policy("respond_severity = 1\n")
    stage.script(line, STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    assert (stage.events.kinds(), stage.bans.banned) == (["ids.detected"], []), title


def test_a_device_s_own_address_is_known(monkeypatch) -> None:
    assert sensing._is_own("lo", "127.0.0.1")
    assert not sensing._is_own("lo", "203.0.113.9")
    assert not sensing._is_own("nowhere0", "fe80::1")


def test_rules_of_the_policy_reach_the_worker(stage, tmp_path) -> None:
    stage.policy = make_policy(
        f'rules = ["{tmp_path}/device.rules"]\n[ids.settings]\n"stream.midstream" = "yes"\n'
        '"outputs.eve-log.enabled-types" = "http"\n'
    )
    stage.script(STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    config = json.loads(stage.started()[0].split(" ", 4)[-1])
    assert config["rules"] == [f"{tmp_path}/device.rules"]
    settings = dict(config["settings"])
    assert settings["stream.midstream"] == "yes"
    assert settings["outputs.eve-log.enabled-types"] == "alert,stats"  # nobody reads what the policy asks for
    assert settings["tidegate.peers"] == "yes"


def test_without_rules_the_worker_does_not_load_the_engine(stage) -> None:
    stage.script(STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    assert "settings" not in json.loads(stage.started()[0].split(" ", 4)[-1])


def test_a_line_that_is_too_long_is_passed_over_and_told_once(stage) -> None:
    long = json.dumps(rule_alert(payload="x" * 200_000)).encode() + b"\n"
    stage.script(long, rule_alert(), long, ALERT, STATS)
    stage.play(lambda: stage.sensing.state()["stats"] and stage.sensing.state()["lines_skipped"] == 2)
    assert stage.events.kinds() == ["agent.failed", "ids.detected", "ids.detected", "firewall.banned"]
    assert stage.events.events[0].code == "agent.worker.line"
    assert len(stage.started()) == 1


def test_an_alert_that_the_sensor_cut_says_so(stage) -> None:
    stage.script(rule_alert(cut_bytes=99_000), STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    assert stage.events.events[0].data["cut_bytes"] == 99_000
    assert stage.sensing.state()["alerts_cut"] == 1


def test_a_ban_that_the_firewall_refuses_is_reported(stage) -> None:
    stage.script(varied(src_ip="192.0.2.10"), STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    assert stage.events.kinds() == ["ids.detected", "agent.failed"]
    assert stage.events.events[1].code == "firewall.ban.never"


def test_a_full_event_log_does_not_stop_the_ban(stage) -> None:
    stage.events.full = True
    stage.script(ALERT, STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    assert stage.bans.banned == [("203.0.113.9", 60)]


def test_an_event_that_no_line_can_hold_does_not_end_the_sensor(stage, monkeypatch) -> None:
    real, asked = stage.events.append, []

    def refuse_once(event) -> None:
        asked.append(event)
        if len(asked) == 1:
            raise EventInvalid("too long")
        real(event)

    monkeypatch.setattr(stage.events, "append", refuse_once)
    stage.script(ALERT)
    stage.play(lambda: len(stage.started()) >= 2)


@pytest.mark.parametrize(
    "line",
    [
        {"event_type": "flow"},
        {"event_type": "alert"},
        {"event_type": "alert", "alert": [], "metadata": {}},
        {"event_type": "alert", "alert": {}, "metadata": "x"},
        {"event_type": None},
        {},
    ],
)
def test_lines_that_mean_nothing_are_passed_by(stage, line: dict) -> None:
    stage.script(line, STATS)
    stage.play(lambda: stage.sensing.state()["stats"])
    assert stage.events.kinds() == []


@pytest.mark.parametrize(
    ("title", "line", "ending"),
    [
        ("it exits", b"", "exit 1"),
        ("it is killed", b"", "kill -9 $$"),
        ("it dies within a line", b'{"event_type": "al', "kill -9 $$"),
        ("it says rubbish", b"Segmentation fault\n", "exec sleep 60"),
        ("it says no object", b"[1, 2]\n", "exec sleep 60"),
        ("its line never ends", b"x" * 1_200_000, "exec sleep 60"),
        ("its source is no address", json.dumps(varied(src_ip="not an address")).encode() + b"\n", "exec sleep 60"),
        ("it names an error", b'{"event_type": "error", "message": "no such interface"}\n', "exec sleep 60"),
    ],
)
def test_a_worker_that_fails_is_reported_and_started_again(stage, title: str, line: bytes, ending: str) -> None:
    stage.script(line, ending=ending)
    stage.play(lambda: len(stage.started()) >= 3)
    failures = [event for event in stage.events.events if event.kind == "agent.failed"]
    assert len(failures) >= 2, title
    assert {event.code for event in failures} == {"agent.worker.ended"}


def test_a_worker_that_can_not_be_started_is_tried_again(stage) -> None:
    def healed() -> bool:
        if stage.events.kinds().count("agent.failed") == 2 and not stage._program.exists():
            stage.script(STATS)
        return bool(stage.sensing.state()["stats"])

    stage.play(healed)
    assert {event.code for event in stage.events.events} == {"agent.worker.ended"}


def test_no_worker_outlives_the_agent(stage) -> None:
    stage.script(STATS)
    pids: list[int] = []

    def running() -> bool:
        pids[:] = stage.sensing.state()["workers"].values()
        return bool(pids and stage.sensing.state()["stats"])

    async def run() -> None:
        task = asyncio.create_task(stage.sensing.run_sensor())
        while not running():
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 5))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_the_sensor_follows_the_policy(stage) -> None:
    stage.script(STATS)

    async def run() -> None:
        task = asyncio.create_task(stage.sensing.run_sensor())
        await until(lambda: len(stage.started()) == 1)
        stage.sensing.policy_changed()  # nothing changed: the worker goes on
        await asyncio.sleep(0.1)
        assert len(stage.started()) == 1
        stage.policy = make_policy("interfaces = ['eth1', 'eth2']\n")
        stage.sensing.policy_changed()
        await until(lambda: len(stage.started()) == 3)
        stage.policy = parse_policy("[policy]\nversion = 2\n")
        stage.sensing.policy_changed()
        await until(lambda: not stage.sensing.state()["workers"])
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def until(condition) -> None:
        while not condition():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 8))
    assert [line.split()[3] for line in stage.started()[1:]] in (["eth1", "eth2"], ["eth2", "eth1"])
    assert stage.events.kinds() == []


def test_the_watch_reports_each_change(stage, tmp_path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    (watched / "config").write_text("old")
    stage.policy = parse_policy(f"[policy]\nversion = 1\n[watch]\npaths = ['{watched}']\n")

    async def run() -> None:
        task = asyncio.create_task(stage.sensing.run_watch())
        await asyncio.sleep(0.3)
        (watched / "config").write_text("new content")
        (watched / "added").write_text("x")
        while len({event.message for event in stage.events.events}) < 2:
            await asyncio.sleep(0.01)
        assert not task.done()
        stage.policy = parse_policy("[policy]\nversion = 2\n")
        await asyncio.sleep(0.1)
        told = len(stage.events.events)
        (watched / "config").write_text("unwatched now")
        await asyncio.sleep(0.2)
        assert len(stage.events.events) == told
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), 8))
    said = " ".join(event.message for event in stage.events.events)
    assert "config: modified" in said
    assert "added: created" in said
