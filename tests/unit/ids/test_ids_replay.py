"""Made-up captures through the whole sensor: what is reported, what is not, and which errors have which code."""

from __future__ import annotations

import ipaddress
import json
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tidegate.ids.errors import SensorMissing
from tidegate.ids.section import IdsSection, Scan, plan_sensor
from tidegate.ids.sensor import Replay, load_module, translate_sensor_errors

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32

Packet = tuple[float, bytes]


def tcp(
    source: str,
    destination: str,
    source_port: int,
    port: int,
    flags: int,
    *,
    seq: int = 0,
    ack: int = 0,
    data: bytes = b"",
) -> bytes:
    """Return an Ethernet frame with one TCP segment."""
    segment = struct.pack("!HHIIBBHHH", source_port, port, seq, ack, 0x50, flags, 1024, 0, 0) + data
    addresses = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if len(addresses) == 8:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0)
        return bytes(12) + b"\x08\x00" + header + addresses + segment
    header = struct.pack("!IHBB", 0x60000000, len(segment), 6, 64)
    return bytes(12) + b"\x86\xdd" + header + addresses + segment


def conversation(start_s: float, client: str, server: str, client_port: int, port: int) -> list[Packet]:
    """Return a whole connection with data both ways."""
    there, back = (client, server, client_port, port), (server, client, port, client_port)
    frames = [
        tcp(*there, SYN, seq=10),
        tcp(*back, SYN | ACK, seq=50, ack=11),
        tcp(*there, ACK, seq=11, ack=51),
        tcp(*there, PSH | ACK, seq=11, ack=51, data=b"question"),
        tcp(*back, PSH | ACK, seq=51, ack=19, data=b"answer"),
        tcp(*there, ACK, seq=19, ack=57),
    ]
    return [(start_s + 0.01 * number, frame) for number, frame in enumerate(frames)]


@pytest.fixture
def capture_file(tmp_path: Path) -> Callable[[Iterable[Packet]], Path]:
    """Return a function that writes packets into a pcap file."""

    def write(packets: Iterable[Packet]) -> Path:
        path = tmp_path / "made-up.pcap"
        with path.open("wb") as stream:
            stream.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
            for time_s, data in packets:
                seconds, micros = divmod(round(time_s * 1_000_000), 1_000_000)
                stream.write(struct.pack("<IIII", seconds, micros, len(data), len(data)) + data)
        return path

    return write


CONFIG = plan_sensor(IdsSection(memory="4MiB", scan=Scan(ports=20)), flow_events_per_s=100_000).config_json
SCANNER, DEVICE = "198.51.100.7", "192.0.2.1"


def replay(path: Path) -> tuple[list[dict], dict]:
    run = Replay(str(path), CONFIG)
    events = [json.loads(line) for line in run]
    return events, run.stats()


def alerts(events: list[dict]) -> list[tuple[str, str, str | None]]:
    found = [event for event in events if event["event_type"] == "alert"]
    return [(alert["metadata"]["detector"], alert["metadata"]["state"], alert.get("src_ip")) for alert in found]


def scan(flags: int, ports: int, *, answer: int | None = None) -> Iterator[Packet]:
    for number in range(ports):
        yield 1000 + number * 0.001, tcp(SCANNER, DEVICE, 40_000, 1 + number, flags, seq=7)
        if answer is not None:
            yield 1000 + number * 0.001, tcp(DEVICE, SCANNER, 1 + number, 40_000, answer, ack=8)


def test_a_conversation_is_a_flow_and_no_alert(capture_file):
    events, stats = replay(capture_file(conversation(1000, SCANNER, DEVICE, 40_000, 80)))
    [flow] = events
    assert (flow["event_type"], flow["src_ip"], flow["dest_port"], flow["proto"]) == ("flow", SCANNER, 80, "TCP")
    assert (flow["flow"]["pkts_toserver"], flow["flow"]["pkts_toclient"]) == (4, 2)
    assert flow["flow"]["state"] == "established"
    assert flow["timestamp"] == "1970-01-01T00:16:40.050000+0000"
    assert stats["decoder"]["tcp"] == 6


@pytest.mark.parametrize(
    ("packets", "detector"),
    [
        (scan(SYN, 30, answer=RST | ACK), "scan.syn"),
        (scan(SYN, 30), "scan.syn"),
        (scan(FIN | PSH | URG, 5), "scan.xmas"),
        (scan(0, 5), "scan.null"),
        (scan(FIN, 5), "scan.fin"),
        (scan(SYN | FIN, 5), "scan.synfin"),
        (scan(SYN, 19, answer=RST | ACK), None),
        (scan(SYN, 60, answer=SYN | ACK), None),
        (scan(FIN | PSH | URG, 4), None),
        (scan(ACK, 60), None),
    ],
)
def test_each_scan_is_reported_once_and_ends(capture_file, packets, detector):
    last = (1003.0, tcp(DEVICE, SCANNER, 9, 9, ACK))  # time passes
    events, _ = replay(capture_file([*packets, last]))
    expected = [] if detector is None else [(detector, "start", SCANNER), (detector, "end", SCANNER)]
    assert alerts(events) == expected


def test_a_scan_over_ipv6_is_seen_too(capture_file):
    scanner, device = "2001:db8::7", "2001:db8::1"
    packets = [(1000 + port / 1000, tcp(scanner, device, 40_000, port, SYN)) for port in range(1, 31)]
    events, stats = replay(capture_file([*packets, (1003.0, tcp(device, scanner, 9, 9, ACK))]))
    assert alerts(events) == [("scan.syn", "start", scanner), ("scan.syn", "end", scanner)]
    assert stats["decoder"]["ipv6"] == 31


def test_a_flood_of_invented_sources_names_only_the_victim(capture_file):
    packets = [(1000 + n / 1000, tcp(f"10.{n % 200}.{n // 200}.1", DEVICE, 9, 80, SYN)) for n in range(2000)]
    events, stats = replay(capture_file(packets))
    assert alerts(events) == [("flood.syn", "start", None), ("flood.syn", "end", None)]
    [start, _] = [event for event in events if event["event_type"] == "alert"]
    assert (start["dest_ip"], start["dest_port"], start["metadata"]["source_share_percent"] < 50) == (DEVICE, 80, True)
    assert stats["detect"]["sources_evicted"] > 0


def test_a_peer_that_proved_itself_is_marked_in_the_alert(capture_file):
    packets = [*conversation(990, SCANNER, DEVICE, 50_000, 80), *scan(SYN, 30, answer=RST | ACK)]
    events, _ = replay(capture_file(packets))
    [start, _] = [event for event in events if event["event_type"] == "alert"]
    assert start["metadata"]["peer_age_s"] == 9


def test_half_a_handshake_proves_nothing(capture_file):
    there, back = (SCANNER, DEVICE, 50_000, 80), (DEVICE, SCANNER, 80, 50_000)
    guessed = [
        (990, tcp(*there, SYN, seq=10)),
        (990, tcp(*back, SYN | ACK, seq=50, ack=11)),
        (990, tcp(*there, ACK, seq=11, ack=1234)),
        (990, tcp(*there, PSH | ACK, seq=11, ack=1234, data=b"hello")),
        (990, tcp(*back, PSH | ACK, seq=51, ack=16, data=b"hello")),
    ]
    events, _ = replay(capture_file([*guessed, *scan(SYN, 30, answer=RST | ACK)]))
    [start, _] = [event for event in events if event["event_type"] == "alert"]
    assert "peer_age_s" not in start["metadata"]


def test_malformed_packets_are_one_anomaly_a_kind(capture_file):
    broken = tcp(SCANNER, DEVICE, 1, 2, SYN)[:-1]
    events, stats = replay(capture_file([(1000 + n / 100, broken) for n in range(500)]))
    assert [event["anomaly"]["event"] for event in events] == ["decoder.ipv4.trunc_pkt"] * 2
    assert [event["metadata"]["count"] for event in events] == [1, 499]
    assert stats["decoder"]["invalid"] == 500


def test_a_truncated_file_is_read_and_counted(capture_file):
    path = capture_file(conversation(1000, SCANNER, DEVICE, 40_000, 80))
    path.write_bytes(path.read_bytes()[:-5])
    _, stats = replay(path)
    assert (stats["decoder"]["pkts"], stats["capture"]["truncated_records"]) == (5, 1)


def test_every_flow_is_reported_however_small_the_queue(capture_file):
    packets = [packet for n in range(3000) for packet in conversation(1000 + n, SCANNER, DEVICE, 10_000 + n, 80)]
    events, stats = replay(capture_file(packets))
    assert len(events) == stats["flow"]["created"] == 3000
    assert stats["output"]["refused"] == 0


def test_a_file_that_is_no_capture_has_its_code(tmp_path):
    path = tmp_path / "text"
    path.write_text("no capture at all, but long enough to have a header")
    module = load_module()
    with pytest.raises(Exception, match="neither pcap nor pcapng") as caught:
        Replay(str(path), CONFIG)
    assert caught.value.code == "ids.capture.not-a-capture"
    with pytest.raises(Exception, match="Is a directory") as caught, translate_sensor_errors(module):
        list(Replay(str(tmp_path), CONFIG))
    assert caught.value.code == "ids.capture.failed"


def test_a_missing_module_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tidegate.ids._sensor", None)
    monkeypatch.delattr("tidegate.ids._sensor", raising=False)
    with pytest.raises(SensorMissing) as caught:
        load_module()
    assert caught.value.code == "ids.sensor.missing"
