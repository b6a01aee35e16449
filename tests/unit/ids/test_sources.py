"""Live sources on the command line and several workers, on a module that stands in for the built one."""

from __future__ import annotations

import json

import pytest
from tests.unit.ids import fakesensor

from tidegate.base import confine
from tidegate.base.errors import TidegateError
from tidegate.cli.main import main
from tidegate.ids import inspector, sensor
from tidegate.ids.fanout import MAX_WORKERS, Workers, merge_stats
from tidegate.ids.inspector import Sensor, SensorConfig

INLINE = (("simulate-ips", "yes"),)


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(inspector, "load_module", lambda: fakesensor)
    monkeypatch.setattr(sensor, "load_module", lambda: fakesensor)
    fakesensor.Inspector.made.clear()
    fakesensor.LiveCapture.made.clear()


@pytest.fixture
def kept(monkeypatch):
    """What was kept when privileges were given up; this process keeps its own."""
    given_up = []
    monkeypatch.setattr(confine, "confine", lambda *, keep, **_: given_up.append(keep))
    return given_up


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "test.rules"
    path.write_text("drop tcp any any -> any any (sid:1;)\n")
    return path


@pytest.mark.parametrize(
    ("words", "opened", "keep", "is_inline"),
    [
        (["--queue", "5"], (5, False), confine.CAP_NET_ADMIN, True),
        (["--queue", "5", "--fail-open"], (5, True), confine.CAP_NET_ADMIN, True),
        (["--nflog", "7"], (7,), None, False),
    ],
)
def test_the_firewall_is_a_source(rules, kept, capfd, words, opened, keep, is_inline):
    assert main(["ids", "run", *words, "--rules", str(rules), "--seconds", "0.3"]) == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["event_type"] for line in out.splitlines()] == ["flow", "alert", "stats"]
    (capture,) = fakesensor.LiveCapture.made
    assert capture.opened == opened
    assert capture.is_closed
    assert kept == [keep]
    assert (dict(fakesensor.Inspector.made[0].settings).get("simulate-ips") == "yes") == is_inline
    assert "ready" in err


@pytest.mark.parametrize(
    "words",
    [
        ["--interface", "eth9", "--fail-open"],
        ["--nflog", "7", "--fail-open"],
        ["--queue", "5", "--workers", "2"],
        ["--queue", "65536"],
        ["--queue", "-1"],
        ["--nflog", "65536"],
        ["--interface", "eth9", "--workers", "0"],
        ["--interface", "eth9", "--workers", str(MAX_WORKERS + 1)],
    ],
)
def test_what_does_not_go_together_is_refused(words, kept, capsys):
    assert main(["ids", "run", *words, "--seconds", "0.01"]) == 3
    assert "ids.config.invalid" in capsys.readouterr().err
    assert kept == []


def test_one_source_is_named():
    for words in ([], ["--queue", "5", "--nflog", "7"]):
        with pytest.raises(SystemExit) as caught:
            main(["ids", "run", *words])
        assert caught.value.code == 2


def test_a_queue_needs_a_sensor_that_decides():
    with pytest.raises(TidegateError) as caught:
        Sensor().open_queue(5)
    assert caught.value.code == "ids.config.invalid"
    Sensor(SensorConfig(settings=INLINE)).open_queue(5).close()


def test_workers_divide_the_memory_and_share_the_rules(rules, kept, capfd):
    words = ["--interface", "eth9", "--workers", "3", "--memory", "30MiB", "--rules", str(rules)]
    assert main(["ids", "run", *words, "--seconds", "0.3"]) == 0
    kinds = [json.loads(line)["event_type"] for line in capfd.readouterr().out.splitlines()]
    assert (kinds.count("flow"), kinds.count("alert"), kinds[-1]) == (3, 3, "stats")
    made = fakesensor.Inspector.made
    assert [one.memory_bytes for one in made] == [10 << 20] * 3
    assert len({id(one.ruleset) for one in made}) == 1
    assert len({capture.opened[1] for capture in fakesensor.LiveCapture.made}) == 1, "one group"
    assert all(capture.is_closed for capture in fakesensor.LiveCapture.made)
    assert kept == [None]


def test_a_worker_that_fails_is_heard_of():
    with Workers(SensorConfig(interface="eth9"), 2) as workers:
        fakesensor.LiveCapture.made[1].failure = fakesensor.SensorError("ids.capture.failed", "gone")
        workers.start()

        def until_it_fails():
            for _ in range(100):
                workers.poll(10)

        with pytest.raises(TidegateError) as caught:
            until_it_fails()
    assert caught.value.code == "ids.capture.failed"


def test_what_was_opened_is_closed_where_another_cannot_be(monkeypatch):
    monkeypatch.setattr(fakesensor.LiveCapture, "most", 1)
    with pytest.raises(TidegateError):
        Workers(SensorConfig(interface="eth9"), 2)
    assert [capture.is_closed for capture in fakesensor.LiveCapture.made] == [True]


def test_counters_add_up_and_ages_do_not():
    def line(time, **stats):
        return json.dumps({"timestamp": time, "event_type": "stats", "stats": {"sensor": "inspect", **stats}})

    merged = json.loads(
        merge_stats(
            [
                line("2026-01-01", uptime=5, decoder={"pkts": 3}, memcap={"pressure": 9}, detect={"engines": [1]}),
                line(
                    "2026-01-02", uptime=4, decoder={"pkts": 4, "tcp": 1}, memcap={"pressure": 2}, detect={"alert": 1}
                ),
                line("2026-01-01", uptime=4, flow={"tcp": 2}, detect={"engines": [1]}),
            ]
        )
    )
    assert merged["timestamp"] == "2026-01-02"
    assert merged["stats"] == {
        "sensor": "inspect",
        "uptime": 5,
        "decoder": {"pkts": 7, "tcp": 1},
        "memcap": {"pressure": 9},
        "detect": {"engines": [1], "alert": 1},
        "flow": {"tcp": 2},
    }
