"""EVE files as they grow, alerts that flood, baselines, and the tables of who talks."""

from __future__ import annotations

import contextlib
import json

import pytest

from tidegate.base.errors import TidegateError
from tidegate.cli.ids_top import screen_lines
from tidegate.cli.main import main
from tidegate.ids.aggregate import MANY, MAX_GROUPS, Aggregator, event_of_finding
from tidegate.ids.baseline import Baseline, compare_baselines, encode_baseline, learn_baseline, parse_baseline
from tidegate.ids.evefile import MAX_LINE_BYTES, EveTail, read_eve
from tidegate.ids.fastlog import encode_fast
from tidegate.ids.talkers import MAX_ROWS, Talkers


def alert(sid: int = 1, source: str = "192.0.2.1", destination: str = "192.0.2.9", second: int = 0) -> dict:
    return {
        "timestamp": f"2026-01-02T03:04:{second:02}.000000+0000",
        "event_type": "alert",
        "src_ip": source,
        "dest_ip": destination,
        "alert": {"signature_id": sid, "gid": 1, "signature": f"rule {sid}", "severity": 1, "category": "c"},
    }


def flow(client: str = "192.0.2.1", port: int = 502, *, app: str = "modbus", answered: bool = True) -> dict:
    return {
        "timestamp": "2026-01-02T03:04:05.000000+0000",
        "event_type": "flow",
        "src_ip": client,
        "dest_ip": "192.0.2.9",
        "dest_port": port,
        "proto": "TCP",
        "app_proto": app,
        "flow": {"pkts_toclient": int(answered), "bytes_toserver": 10, "bytes_toclient": 20, "start": "a", "end": "b"},
    }


def write(path, *events, mode="a"):
    with path.open(mode) as stream:
        stream.writelines(json.dumps(event) + "\n" for event in events)


def sids(events):
    return [event["alert"]["signature_id"] for event in events]


def test_the_tail_survives_rotation_truncation_and_absence(tmp_path):
    path = tmp_path / "eve.json"
    tail = EveTail(path)
    assert tail.poll() == []
    write(path, alert(1))
    assert sids(tail.poll()) == [1]
    path.rename(tmp_path / "eve.json.1")
    assert tail.poll() == []
    write(tmp_path / "eve.json.1", alert(2))  # the writer has not been told yet
    path.touch()
    assert sids(tail.poll()) == [2]
    write(tmp_path / "eve.json.1", alert(3))
    write(path, alert(4))
    assert sids(tail.poll()) == [3, 4]
    assert tail.rotations == 1
    path.write_text("")
    assert tail.poll() == []
    write(path, alert(5))
    assert sids(tail.poll()) == [5]
    assert (tail.rotations, tail.damaged) == (2, 0)
    tail.close()


def test_the_tail_begins_at_the_end_unless_told(tmp_path):
    path = tmp_path / "eve.json"
    write(path, alert(1))
    with contextlib.closing(EveTail(path)) as tail:
        assert tail.poll() == []
    with contextlib.closing(EveTail(path, from_start=True)) as tail:
        assert sids(tail.poll()) == [1]


def test_half_lines_wait_and_damaged_ones_are_counted(tmp_path):
    path = tmp_path / "eve.json"
    text = json.dumps(alert(1)).encode()
    path.write_bytes(text[:20])
    tail = EveTail(path, from_start=True)
    assert tail.poll() == []
    with path.open("ab") as stream:
        stream.write(text[20:] + b"\n{broken\n[1]\n\xff\n" + b"x" * (MAX_LINE_BYTES + 100_000) + b"\n" + text + b"\n")
    assert sids(tail.poll()) == [1, 1]
    assert tail.damaged == 4
    tail.close()


def test_a_file_without_events_is_refused(tmp_path):
    (tmp_path / "a").write_text("hello\n")
    with pytest.raises(TidegateError) as caught:
        list(read_eve(tmp_path / "a"))
    assert caught.value.code == "ids.eve.invalid"


def test_a_flood_of_the_same_alert_is_one_with_a_count():
    aggregator = Aggregator(window_s=60)
    first = aggregator.add(alert(second=1), 0.0)
    assert first is not None
    assert (first.count, first.is_first) == (1, True)
    for number in range(999):
        assert aggregator.add(alert(destination=f"192.0.2.{number % 9}", second=2), 1.0) is None
    assert list(aggregator.due(30.0)) == []
    (counted,) = aggregator.due(60.0)
    assert (counted.count, counted.is_first, counted.destination, counted.last[17:19]) == (999, False, None, "02")
    assert list(aggregator.due(120.0)) == []
    again = aggregator.add(alert(second=3), 121.0)
    assert again is not None
    assert again.is_first


def test_sources_without_end_do_not_fill_memory():
    aggregator = Aggregator()
    for number in range(MAX_GROUPS + 500):
        aggregator.add(alert(source=f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"), 0.0)
    (counted,) = aggregator.close()
    assert (counted.source, counted.count) == (MANY, 499)


def test_a_finding_becomes_the_event_of_our_own_sensor():
    aggregator = Aggregator()
    found = aggregator.add(alert(2013028, second=5), 0.0)
    assert found is not None
    event = event_of_finding(found)
    assert (event.kind, event.ocsf_class, event.severity) == ("ids.detected", 2004, 4)
    assert event.attributes["finding_info"] == {"uid": "2013028", "title": "rule 2013028"}
    assert event.occurred_ms == 1767323045000
    assert event.data["state"] == "start"


def test_an_alert_is_a_line_of_text():
    event = {**alert(7), "src_port": 1, "dest_port": 2, "proto": "TCP"}
    event["alert"]["signature"] = "seven\x1b"
    assert encode_fast(event) == (
        "01/02/2026-03:04:00.000000  [**] [1:7:0] seven? [**] [Classification: c] [Priority: 1] {TCP} "
        "192.0.2.1:1 -> 192.0.2.9:2"
    )
    event["alert"]["action"] = "blocked"
    assert "  [Drop] [**] [1:7:0]" in str(encode_fast(event))
    assert encode_fast(flow()) is None


@pytest.mark.parametrize("event", [{}, {"event_type": "alert"}, {"event_type": "alert", "alert": 3}, flow()])
def test_what_is_no_alert_is_passed_over(event):
    assert Aggregator().add(event, 0.0) is None


def test_follow_prints_and_writes_the_log(tmp_path, capsys):
    write(tmp_path / "eve.json", alert(7), alert(7), flow(), alert(8))
    log = tmp_path / "log"
    assert main(["ids", "follow", str(tmp_path / "eve.json"), "--once", "--events", str(log)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [("[7]" in line, "1 more times" in line) for line in lines] == [(True, False), (False, False), (True, True)]
    assert main(["events", "show", "--folder", str(log), "--kind", "ids.detected", "--json"]) == 0
    events = json.loads(capsys.readouterr().out)["events"]
    assert [event["finding_info"]["uid"] for event in events] == ["7", "8", "7"]


def test_a_baseline_learns_answered_flows_and_says_what_is_new(tmp_path):
    before = learn_baseline([flow(), flow(), flow(port=22, answered=False), alert(), {"event_type": "flow"}])
    assert [str(talk) for talk in before.talks] == ["192.0.2.1 -> 192.0.2.9 tcp/502 modbus"]
    assert parse_baseline(encode_baseline(before)) == before
    after = learn_baseline([flow(app=""), flow("192.0.2.3"), flow(port=23, app="telnet")])
    difference = compare_baselines(before, after)
    assert [talk.client for talk in difference.new] == ["192.0.2.1", "192.0.2.3"]
    assert [talk.port for talk in difference.new_services] == [23]
    assert difference.new_peers == ("192.0.2.3",)
    assert difference.gone == ()
    assert compare_baselines(before, Baseline()).gone == tuple(before.talks)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"format": "other", "entries": []}', b"\xff"])
def test_what_is_no_baseline_is_refused(data):
    with pytest.raises(TidegateError) as caught:
        parse_baseline(data)
    assert caught.value.code == "ids.baseline.invalid"


def test_the_verbs_of_a_baseline(tmp_path, capsys):
    eve, baseline = tmp_path / "eve.json", tmp_path / "baseline.json"
    write(eve, flow())
    assert main(["ids", "baseline", "learn", str(eve), "--output", str(baseline)]) == 0
    assert main(["ids", "baseline", "diff", str(baseline), str(eve)]) == 0
    assert main(["ids", "baseline", "diff", str(baseline), str(baseline)]) == 0
    assert main(["ids", "baseline", "show", str(baseline)]) == 0
    assert "tcp/502 modbus" in capsys.readouterr().out
    write(eve, flow("192.0.2.66", 23, app="telnet"))
    assert main(["ids", "baseline", "diff", str(baseline), str(eve), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["new_peers"] == ["192.0.2.66"]
    assert main(["ids", "baseline", "learn", str(eve), "--output", str(baseline), "--add"]) == 0
    assert main(["ids", "baseline", "diff", str(baseline), str(eve)]) == 0


def test_the_tables_are_bounded_and_keep_the_largest():
    talkers = Talkers()
    for _ in range(10):
        talkers.add(flow("192.0.2.77"))
    for number in range(MAX_ROWS + 10):
        talkers.add(flow(f"10.1.{number >> 8}.{number & 255}"))
    talkers.add(alert(5))
    tables = talkers.tables(3)
    assert tables["flows"][0][0] == "192.0.2.77"
    assert tables["alerts"] == [("5", "rule 5", "192.0.2.1", 1, "2026-01-02T03:04:00.000000+0000")]
    assert talkers.forgotten > 0
    assert len(talkers._flows) <= MAX_ROWS


def test_top_prints_once(tmp_path, capsys):
    write(tmp_path / "eve.json", flow(), alert(5))
    assert main(["ids", "top", "--eve", str(tmp_path / "eve.json"), "--once"]) == 0
    out = capsys.readouterr().out
    assert "192.0.2.1  192.0.2.9  tcp/502 modbus  1      30" in out
    assert "rule 5" in out
    assert main(["ids", "top", "--eve", str(tmp_path / "eve.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["events"] == {"flow": 1, "alert": 1}


def test_a_screen_has_the_lines_that_fit():
    talkers = Talkers()
    for number in range(50):
        talkers.add(flow(f"192.0.2.{number}"))
        talkers.add(alert(number))
    lines = list(screen_lines(talkers, 24, 60))
    assert len(lines) <= 24
    assert all(len(line) <= 60 for line, _ in lines)
    assert lines[0][1]
