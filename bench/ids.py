"""Sensor: replay speed against ndpiReader, drops and CPU of a live capture over veth, memory of the worker.

Run by ``make bench NAME=ids``, or by itself: prints JSON. Needs root (namespaces, packet sockets), cargo for the frame
sender, and ``ndpiReader`` from Debian's libndpi-bin. The capture is merged from the corpora (TIDEGATE_CORPORA, or
``shared/corpora`` beside the repository); without them it is made up, and the row's name says so.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.machine import row  # noqa: E402  # found through the line above when run by itself
from tidegate.base.program import find_program  # noqa: E402
from tidegate.ids.section import IdsSection, plan_sensor  # noqa: E402
from tidegate.testing.netns import Namespace, join, make_unique  # noqa: E402

CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", ROOT.parent / "shared" / "corpora"))
CAPTURE = ROOT / "build" / "bench" / "replay.pcap"
PACKETS = 1_000_000  # enough that the start of the processes, which is counted in, is the smaller part
RUNS = 3  # the best of each: the machine is shared, and nothing makes a program faster than it is
PAUSE_S = 700  # between two rounds through the corpora: flows of the last round are over
LIVE_RATE_PER_S = 100_000
LIVE_S = 10
MEMORY = "12MiB"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

REPLAY = """
import sys
from tidegate.ids import _sensor
print(_sensor.Sensor(sys.argv[2]).replay(sys.argv[1])["decoder"]["pkts"])
"""


def run() -> list[dict[str, Any]]:
    """Return the rows of all three measurements."""
    try:
        replay = _bench_replay(_build_capture())
    finally:
        CAPTURE.unlink(missing_ok=True)  # some hundred megabytes
    return [*replay, *_bench_live()]


# -- replay -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Capture:
    path: Path
    packets: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    cpu_s: float
    max_rss_mb: float
    output: str


def _bench_replay(capture: _Capture) -> list[dict[str, Any]]:
    config = plan_sensor(IdsSection(memory=MEMORY)).config_json
    ours_command = [sys.executable, "-c", REPLAY, str(capture.path), config]
    peer_command = [find_program("ndpiReader"), "-i", str(capture.path)]
    ours, peer = [], []
    for _ in range(RUNS):
        ours.append(_run_measured(ours_command))
        peer.append(_run_measured(peer_command))
    if int(ours[0].output) != capture.packets:
        raise SystemExit(f"the sensor read {ours[0].output} of {capture.packets} packets")
    best_ours, best_peer = min(cost.cpu_s for cost in ours), min(cost.cpu_s for cost in peer)
    rss_ours, rss_peer = max(cost.max_rss_mb for cost in ours), max(cost.max_rss_mb for cost in peer)
    what = f"replay of {capture.packets:,} packets ({capture.origin})"
    return [
        row(
            f"{what}: CPU of the whole process, flows and detectors on",
            capture.packets / best_ours,
            "packets/s/core",
            peer="ndpiReader -i",
            peer_value=capture.packets / best_peer,
            higher=True,
        ),
        row(f"{what}: largest RSS", rss_ours, "MB", peer="ndpiReader -i", peer_value=rss_peer, higher=False),
    ]


def _run_measured(command: list[str]) -> _Cost:
    """Run a program to its end; user and system CPU of the whole process, its start included.

    The peak of memory is read while it runs: what wait4 reports includes the parent's own at the time of the fork.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        peak_mb = 0.0
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            peak = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            peak_mb = max(peak_mb, int(peak[1]) / 1024 if peak else 0.0)
            time.sleep(0.005)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output = process.stdout.read().decode(errors="replace") if process.stdout else ""
    if process.returncode != 0:
        raise SystemExit(f"{command[0]} ended with status {process.returncode}")
    return _Cost(cpu_s=usage.ru_utime + usage.ru_stime, max_rss_mb=peak_mb, output=output)


def _build_capture() -> _Capture:
    """Write ``CAPTURE``: every Ethernet packet of the corpora, round after round, until there are enough."""
    CAPTURE.parent.mkdir(parents=True, exist_ok=True)
    packets = [packet for path in _corpus_files() for packet in _read_pcap(path)]
    origin = "merged from the corpora"
    if not packets:
        packets, origin = list(_made_up_packets()), "made up: the corpora are absent"
    count, now_us = 0, 1_700_000_000_000_000
    with CAPTURE.open("wb", buffering=1 << 20) as stream:
        stream.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        while count < PACKETS:
            last_us = packets[0][0]
            for time_us, wire_bytes, data in packets:
                # time runs on across files: inside one its own gaps hold, up to a second
                now_us += min(max(time_us - last_us, 1), 1_000_000)
                last_us = time_us
                stream.write(struct.pack("<IIII", *divmod(now_us, 1_000_000), len(data), wire_bytes) + data)
            count += len(packets)
            now_us += PAUSE_S * 1_000_000
    return _Capture(path=CAPTURE, packets=count, origin=origin)


def _corpus_files() -> list[Path]:
    return sorted(path for path in CORPORA.rglob("*") if path.suffix in {".pcap", ".cap"} and path.is_file())


def _read_pcap(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield (microseconds, length on the wire, data) of a pcap with Ethernet frames; nothing of any other file."""
    raw = path.read_bytes()
    order = {b"\xd4\xc3\xb2\xa1": "<", b"\xa1\xb2\xc3\xd4": ">"}.get(raw[:4])
    if order is None or len(raw) < 24 or struct.unpack_from(order + "I", raw, 20)[0] != 1:
        return
    header = struct.Struct(order + "IIII")
    at = 24
    while at + header.size <= len(raw):
        seconds, micros, captured, wire = header.unpack_from(raw, at)
        at += header.size
        if captured > 262_144 or at + captured > len(raw):
            return
        yield seconds * 1_000_000 + micros, max(wire, captured), raw[at : at + captured]
        at += captured


def _made_up_packets() -> Iterator[tuple[int, int, bytes]]:
    """Yield 2,000 short TCP conversations with data both ways."""
    for number in range(2000):
        client = b"\x0a\x01" + struct.pack("!H", number)
        for step, (flags, size) in enumerate([(2, 0), (0x12, 0), (0x10, 0), (0x18, 200), (0x18, 1200), (0x11, 0)]):
            to_server = step in {0, 2, 3, 5}
            ports = (10_000 + number, 443) if to_server else (443, 10_000 + number)
            addresses = client + b"\x0a\x02\x00\x01" if to_server else b"\x0a\x02\x00\x01" + client
            segment = struct.pack("!HHIIBBHHH", *ports, 1, 1, 0x50, flags, 1024, 0, 0) + bytes(size)
            header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 1, 0, 64, 6, 0) + addresses
            data = bytes(12) + b"\x08\x00" + header + segment
            yield number * 100 + step, len(data), data


# -- live -------------------------------------------------------------------------------------------------------------


def _bench_live() -> list[dict[str, Any]]:
    """Send frames over veth at the rate: first of steady flows, then SYNs of made-up senders, which fill every table.

    The worker's own counters and the kernel's say what became of them.
    """
    sender = _build_sender()
    with Namespace.create(make_unique("tgb-d")) as device, Namespace.create(make_unique("tgb-s")) as stranger:
        join(device, stranger, addresses_a=["192.0.2.1/24"], addresses_b=["192.0.2.2/24"])
        worker = device.popen(
            [sys.executable, "-m", "tidegate.ids.worker", "--interface", "eth0"], stdin=subprocess.PIPE, stderr=None
        )
        if worker.stdin is None or worker.stdout is None:
            raise SystemExit("the worker has no pipes")
        worker.stdin.write(plan_sensor(IdsSection(memory=MEMORY)).config_json.encode() + b"\n")
        worker.stdin.close()
        ready = json.loads(worker.stdout.readline())
        if ready["event_type"] != "ready":
            raise SystemExit(str(ready))
        idle_rss_mb, _ = _memory_mb(worker.pid)
        cpu_s, start_s = _cpu_s(worker.pid), time.monotonic()
        command = [str(sender), "eth0", str(LIVE_RATE_PER_S), str(LIVE_S)]
        done = stranger.run([*command, "flows"], timeout_s=LIVE_S + 30)
        share = (_cpu_s(worker.pid) - cpu_s) / (time.monotonic() - start_s)
        time.sleep(0.5)
        flooded = stranger.run([*command, "syn"], timeout_s=LIVE_S + 30)
        rss_mb, pss_mb = _memory_mb(worker.pid)
        worker.terminate()
        stats = json.loads(worker.stdout.read().splitlines()[-1])["stats"]
        worker.wait(5)
    sent = json.loads(done.stdout)
    rate = sent["sent"] / sent["seconds"]
    lost = sent["sent"] + json.loads(flooded.stdout)["sent"] - stats["decoder"]["tcp"]
    what = f"live over veth at {rate:,.0f} packets/s for 2 x {LIVE_S} s, memory {MEMORY}"
    return [
        row(f"{what}: dropped by the kernel", stats["capture"]["kernel_drops"], "packets", higher=False),
        row(f"{what}: sent and not seen", lost, "packets", higher=False),
        row(f"{what}: CPU of the worker in the first", 100 * share, "% of a core", higher=False),
        row(f"worker, memory {MEMORY}, every table full after a flood: RSS", rss_mb, "MB", higher=False),
        row(f"worker, memory {MEMORY}, every table full after a flood: PSS", pss_mb, "MB", higher=False),
        row(f"worker, memory {MEMORY}, idle: RSS", idle_rss_mb, "MB", higher=False),
    ]


def _build_sender() -> Path:
    command = [find_program("cargo"), "build", "--quiet", "--release", "--package", "capture", "--example", "blast"]
    subprocess.run(command, cwd=ROOT / "rust", check=True)
    return ROOT / "rust" / "target" / "release" / "examples" / "blast"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S  # utime and stime, proc(5)


def _memory_mb(pid: int) -> tuple[float, float]:
    """Return RSS and PSS; the capture ring's pages are part of both."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rss, pss = (re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in ("Rss", "Pss"))
    return int(rss[1]) / 1024 if rss else 0.0, int(pss[1]) / 1024 if pss else 0.0


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
