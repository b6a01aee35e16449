"""The process of the sensor under attack: what it holds, measured from outside as the kernel counts it.

A child loads rules, is reset to what it holds then (``clear_refs``), and inspects a made-up capture of a million
packets: SYN floods from random sources, datagrams, fragments that never become packets, requests that never end.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.ids.packets import ACK, PSH, START_S, SYN, ipv4, tcp, udp

sensor_module = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")

CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", Path(__file__).resolve().parents[3].parent / "shared" / "corpora"))
PACKETS = 1_000_000
MEMORY_MIB = 24
# besides the number: counters of thresholds and bits of hosts, whose files say 3.5 MiB; what the allocator cannot give
# back; and Python's copies of the lines of a step
BESIDES_MIB = 6
# interpreter and modules 30 MiB at most, and some 60 MiB for the public set of 18 thousand rules
MOST_MIB = 100 + MEMORY_MIB
VICTIM = "192.168.1.2"

CHILD = """
import json, re, sys
from pathlib import Path
from tidegate.ids.inspector import Sensor, SensorConfig

def kib(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

capture, memory, *rules = sys.argv[1:]
# the packets get their sources when they are written: their checksums are wrong
settings = (("stream.checksum-validation", "no"),)
sensor = Sensor(SensorConfig(rules=tuple(rules), memory=memory, settings=settings))
Path("/proc/self/clear_refs").write_text("5")
before = kib("VmRSS")
lines = sum(1 for _ in sensor.replay_lines(capture))
stats = json.loads(sensor.stats_line())["stats"]
print(json.dumps({"before": before, "peak": kib("VmHWM"), "lines": lines, "stats": stats}))
"""


def attack(rng: random.Random) -> list[bytes]:
    """Return the packets of one round: each with places for another source and port, at the same offsets."""
    request = b"POST /upload HTTP/1.1\r\nHost: example.org\r\nContent-Length: 99999\r\n\r\n" + b"a" * 300
    source = ("10.0.0.0", 0)
    number = rng.randrange(1, 1 << 30)
    syn = tcp(source, (VICTIM, 80), SYN, (number, 0))
    half_open = [
        tcp(source, (VICTIM, 80), SYN, (number, 0)),
        tcp((VICTIM, 80), source, SYN | ACK, (number, number + 1)),
        tcp(source, (VICTIM, 80), ACK, (number + 1, number + 1)),
        tcp(source, (VICTIM, 80), PSH | ACK, (number + 1, number + 1), request),
        tcp((VICTIM, 80), source, ACK, (number + 1, number + 1 + len(request))),
        tcp(source, (VICTIM, 80), PSH | ACK, (number + 900, number + 1), b"behind a hole"),
    ]
    fragment = ipv4("10.0.0.0", VICTIM, 17, rng.randbytes(64), number=number & 0xFFFF, fragment=0x2001)
    datagram = udp(source, (VICTIM, rng.choice((53, 69, 161, 5060))), rng.randbytes(40))
    return [*([syn] * 8), *half_open, fragment, fragment, datagram, datagram]


def with_source(frame: bytes, address: bytes, port: bytes) -> bytes:
    """Return the frame from or to another source: the end that is not the victim."""
    at = 26 if frame[30:34] == b"\xc0\xa8\x01\x02" else 30
    frame = frame[:at] + address + frame[at + 4 :]
    if frame[23] == 17 and frame[20:22] != b"\0\0":
        return frame  # a fragment has no ports
    place = 34 if at == 26 else 36
    return frame[:place] + port + frame[place + 2 :]


def write_attack(path: Path) -> None:
    rng = random.Random(1)
    rounds = [attack(rng) for _ in range(16)]
    written = 0
    with path.open("wb") as stream:
        stream.write(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        while written < PACKETS:
            parts, frames = [], rounds[written % len(rounds)]
            address, port = rng.randbytes(4), rng.randbytes(2)
            for number, frame in enumerate(frames):
                if number < 8:
                    address, port = rng.randbytes(4), rng.randbytes(2)
                seconds, us = divmod((written + number) * 20, 1_000_000)
                parts.append(struct.pack("<IIII", START_S + seconds, us, len(frame), len(frame)))
                parts.append(with_source(frame, address, port))
            stream.write(b"".join(parts))
            written += len(frames)


def rule_files(folder: Path) -> list[Path]:
    public = sorted((CORPORA / "et-open-rules").glob("*.rules"))
    if public:
        return public
    path = folder / "made-up.rules"
    options = (f'http.uri; content:"/path{sid}"; http.host; content:"h"; sid:{sid};' for sid in range(1, 501))
    path.write_text("".join(f"alert http any any -> any any ({option})\n" for option in options))
    return [path]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_million_packets_of_an_attack_leave_the_process_within_its_number(tmp_path):
    capture = tmp_path / "attack.pcap"
    write_attack(capture)
    rules = rule_files(tmp_path)
    command = [sys.executable, "-c", CHILD, str(capture), f"{MEMORY_MIB}MiB", *map(str, rules)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=110, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    told = json.loads(done.stdout)
    stats = told["stats"]
    assert stats["decoder"]["pkts"] >= PACKETS
    grown_mib, peak_mib = (told["peak"] - told["before"]) / 1024, told["peak"] / 1024
    assert grown_mib <= MEMORY_MIB + BESIDES_MIB, f"grew by {grown_mib:.1f} MiB"
    assert peak_mib <= MOST_MIB, f"{peak_mib:.1f} MiB"
    # what found no room is counted
    assert stats["flow"]["end"]["reason"]["forced"] > 100_000
    assert stats["memory"]["fragments_refused"] > 1000
    assert stats["memory"]["stream_held_bytes"] == 0
    assert stats["memory"]["budget_bytes"] <= MEMORY_MIB << 20
    assert told["lines"] > 0
