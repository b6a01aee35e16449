"""Captures that nobody here made: every one is read to its end, nothing crashes, known attacks are seen.

The folder is found through TIDEGATE_CORPORA, or beside the repository as ``shared/corpora``.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tidegate.base.errors import TidegateError
from tidegate.base.program import find_program
from tidegate.ids.section import IdsSection, plan_sensor
from tidegate.ids.sensor import Replay

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")

REPOSITORY = Path(__file__).resolve().parents[2]
CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", REPOSITORY.parent / "shared" / "corpora"))
FOLDERS = ("malformed-pcap", "ics-pcap", "ndpi-pcap")
CONFIG = plan_sensor(IdsSection(memory="4MiB"), flow_events_per_s=1_000_000).config_json

# not one of the formats that we read: refused with this code, and nothing else is
UNREADABLE = "ids.capture.not-a-capture"


def captures(folder: str) -> list[Path]:
    return sorted(path for path in (CORPORA / folder).rglob("*") if path.is_file())


def require(folder: str) -> None:
    if not (CORPORA / folder).is_dir():
        pytest.skip(f"no corpus {folder}: set TIDEGATE_CORPORA")


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_capture_is_read_and_every_packet_is_accounted_for(folder):
    require(folder)
    read, refused = 0, []
    for path in captures(folder):
        try:
            replay = Replay(str(path), CONFIG)
        except TidegateError as error:
            assert error.code == UNREADABLE, path
            refused.append(path.suffix)
            continue
        for line in replay:
            assert json.loads(line)["event_type"] in {"alert", "flow", "anomaly"}
        stats = replay.stats()
        decoder, flow = stats["decoder"], stats["flow"]
        parts = sum(decoder[part] for part in ("ipv4", "ipv6", "arp", "other", "invalid"))
        assert parts + decoder.get("decoder.cut_by_capture", 0) == decoder["pkts"], path
        assert flow["created"] == flow["ended"], path
        assert stats["output"]["refused"] == 0, path
        read += 1
    assert read > 100 or folder == "ics-pcap"
    assert not [suffix for suffix in refused if suffix in {".pcap", ".pcapng", ".cap"}], refused


@pytest.mark.parametrize(
    ("capture", "detector"),
    [("ndpi-pcap/synscan.pcap", "scan.syn")],
)
def test_known_attacks_are_seen(capture, detector):
    require(capture.split("/", 1)[0])
    if not (CORPORA / capture).is_file():
        pytest.skip(f"no {capture} in this corpus")
    events = [json.loads(line) for line in Replay(str(CORPORA / capture), CONFIG)]
    assert detector in {event["metadata"]["detector"] for event in events if event["event_type"] == "alert"}


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("folder", ["ics-pcap", "ndpi-pcap"])
def test_the_counts_are_tshark_s(folder):
    """Packets of each kind on plain captures; tunnels and fragments are where decoders differ on purpose."""
    require(folder)
    try:
        tshark = find_program("tshark")
    except TidegateError as error:
        pytest.skip(error.message)
    compared = 0
    for path in [path for path in captures(folder) if path.stat().st_size < 60_000][:12]:
        fields = [
            "-T",
            "fields",
            "-e",
            "frame.protocols",
            "-o",
            "ip.defragment:FALSE",
            "-o",
            "tcp.desegment_tcp_streams:FALSE",
        ]
        done = subprocess.run([tshark, "-r", str(path), *fields], capture_output=True, check=False, timeout=15)
        frames = [line.split(":") for line in done.stdout.decode().splitlines()]
        replay = Replay(str(path), CONFIG)
        list(replay)
        decoder = replay.stats()["decoder"]
        first = [next((part for part in frame if part in {"ip", "ipv6"}), None) for frame in frames]
        tunnelled = any(frame.count("ip") + frame.count("ipv6") > 1 for frame in frames)
        if done.returncode != 0 or tunnelled or decoder["invalid"] or decoder["fragments"]:
            continue
        assert decoder["pkts"] == len(frames), path
        assert decoder["ipv4"] == first.count("ip"), path
        assert decoder["ipv6"] == first.count("ipv6"), path
        assert decoder["tcp"] == sum("tcp" in frame for frame in frames), path
        assert decoder["udp"] == sum("udp" in frame for frame in frames), path
        compared += 1
    assert compared >= 3
