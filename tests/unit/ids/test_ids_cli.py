"""``tidegate ids replay``: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from tidegate.cli.main import main

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A capture of ten Xmas probes."""
    path = tmp_path / "xmas.pcap"
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, b"\xc6\x33\x64\x07", b"\xc0\x00\x02\x01")
    with path.open("wb") as stream:
        stream.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))
        for port in range(10):
            data = header + struct.pack("!HHIIBBHHH", 40_000, port, 0, 0, 0x50, 0x29, 0, 0, 0)
            stream.write(struct.pack("<IIII", 1000, port, len(data), len(data)) + data)
    return path


def test_a_person_reads_the_attack(scan, capsys):
    assert main(["ids", "replay", str(scan), "--stats"]) == 0
    out = capsys.readouterr().out
    assert "scan.xmas  198.51.100.7 -> 192.0.2.1" in out
    assert "pkts 10" in out


def test_a_program_reads_one_document(scan, capsys):
    assert main(["ids", "replay", str(scan), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [alert["metadata"]["detector"] for alert in document["alerts"]] == ["scan.xmas"]
    assert document["stats"]["decoder"]["pkts"] == 10


def test_the_lines_go_where_they_are_sent(scan, tmp_path, capsys):
    assert main(["ids", "replay", str(scan), "--eve", str(tmp_path / "eve.json")]) == 0
    capsys.readouterr()
    assert main(["ids", "replay", str(scan), "--eve", "-"]) == 0
    for text in ((tmp_path / "eve.json").read_text(), capsys.readouterr().out):
        kinds = [json.loads(line)["event_type"] for line in text.splitlines()]
        assert kinds.count("alert") == 2
        assert kinds[-1] == "stats"


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["replay", "/nonexistent/file.pcap"], 4, "base.storage.missing"),
        (["replay", "/dev/null"], 3, "ids.capture.not-a-capture"),
        (["replay", "/dev/null", "--memory", "lots"], 3, "ids.config.invalid"),
        (["run", "--interface", "nowhere0"], 4, "ids.capture.no-interface"),
    ],
)
def test_each_refusal_has_its_exit_status_and_code(arguments, status, code, capsys):
    assert main(["ids", "--json", *arguments]) == status
    error = json.loads(capsys.readouterr().out)["error"]
    # without root the socket comes before the name
    assert error["code"] in {code, "ids.capture.permission"}
