"""Captures to measure with: every Ethernet packet of the corpora round after round, and flows that are made up."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", ROOT.parent / "shared" / "corpora"))
FOLDER = ROOT / "build" / "bench"
ROUNDS = 4  # a quarter, a half and the whole are then of the same traffic
LEAST_PACKETS = 500_000  # of a whole capture; fewer measure the start of processes
PAUSE_S = 700  # between two rounds through the corpora: flows of the last round are over
BEGIN_US = 1_700_000_000_000_000

_PCAP = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")

Packet = tuple[int, int, bytes]  # microseconds, length on the wire, what was captured of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A capture file and what is in it."""

    path: Path
    packets: int
    origin: str


def build_rounds(rounds: int = ROUNDS, *, name: str = "replay.pcap") -> Capture:
    """Write the corpora's packets ``rounds`` quarters of a whole capture; made-up ones where there are no corpora."""
    packets = [packet for path in corpus_files() for packet in read_pcap(path)]
    origin = "merged from the corpora"
    if not packets:
        packets, origin = list(_made_up_packets()), "made up: the corpora are absent"
    if len(packets) * ROUNDS < LEAST_PACKETS:
        packets *= -(-LEAST_PACKETS // (len(packets) * ROUNDS))
    path = FOLDER / name
    count = write_pcap(path, _repeated(packets, rounds))
    return Capture(path=path, packets=count, origin=origin)


def build_slice(capture: Capture, packets: int) -> Capture:
    """Write the first packets of a capture that this module wrote."""
    path = FOLDER / "slice.pcap"
    with capture.path.open("rb", buffering=1 << 20) as source, path.open("wb") as target:
        target.write(source.read(_PCAP.size))
        for _ in range(packets):
            header = source.read(_RECORD.size)
            target.write(header + source.read(_RECORD.unpack(header)[2]))
    return Capture(path=path, packets=packets, origin=capture.origin)


def build_flows(flows: int, packets: int) -> Capture:
    """Write ``packets`` small datagrams of ``flows`` flows in turn, client and server by turns, 10 microseconds apart.

    All flows are alive at once: where there are more than a table has slots, each packet meets a table that has
    forgotten its flow.
    """
    path = FOLDER / f"flows-{flows}.pcap"
    write_pcap(path, _datagrams(flows, packets))
    return Capture(path=path, packets=packets, origin="made up")


def write_pcap(path: Path, packets: Iterable[Packet]) -> int:
    """Write an Ethernet capture with microseconds; return how many packets it has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("wb", buffering=1 << 20) as stream:
        stream.write(_PCAP.pack(0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for time_us, wire_bytes, data in packets:
            stream.write(_RECORD.pack(*divmod(time_us, 1_000_000), len(data), wire_bytes) + data)
            count += 1
    return count


def corpus_files() -> list[Path]:
    """Return the capture files of the corpora, in order."""
    return sorted(path for path in CORPORA.rglob("*") if path.suffix in {".pcap", ".cap"} and path.is_file())


def _repeated(packets: list[Packet], rounds: int) -> Iterator[Packet]:
    now_us = BEGIN_US
    for _ in range(rounds):
        last_us = packets[0][0]
        for time_us, wire_bytes, data in packets:
            # time runs on across files: inside one its own gaps hold, up to a second
            now_us += min(max(time_us - last_us, 1), 1_000_000)
            last_us = time_us
            yield now_us, wire_bytes, data
        now_us += PAUSE_S * 1_000_000


def read_pcap(path: Path) -> Iterator[Packet]:
    """Yield the packets of a pcap with Ethernet frames; nothing of any other file."""
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


def _made_up_packets() -> Iterator[Packet]:
    """Yield 2,000 short TCP conversations with data both ways."""
    for number in range(2000):
        client, server = b"\x0a\x01" + struct.pack("!H", number), b"\x0a\x02\x00\x01"
        for step, (flags, size) in enumerate([(2, 0), (0x12, 0), (0x10, 0), (0x18, 200), (0x18, 1200), (0x11, 0)]):
            to_server = step in {0, 2, 3, 5}
            ports = (10_000 + number, 443) if to_server else (443, 10_000 + number)
            segment = struct.pack("!HHIIBBHHH", *ports, 1, 1, 0x50, flags, 1024, 0, 0) + bytes(size)
            data = _frame(6, *((client, server) if to_server else (server, client)), segment)
            yield number * 100 + step, len(data), data


def _datagrams(flows: int, packets: int) -> Iterator[Packet]:
    payload = bytes(range(0x80, 0x98))  # of no protocol
    for number in range(packets):
        turn, flow = divmod(number, flows)
        client, server = struct.pack("!I", 0x0A01_0000 + flow), b"\x0a\x02\x00\x01"
        ports = (20_000, 40_000) if turn % 2 == 0 else (40_000, 20_000)
        ends = (client, server) if turn % 2 == 0 else (server, client)
        data = _frame(17, *ends, struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload)
        yield BEGIN_US + 10 * number, len(data), data


def _frame(protocol: int, source: bytes, destination: bytes, rest: bytes) -> bytes:
    start = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(rest), 1, 0, 64, protocol, 0) + source + destination
    words = struct.unpack("!10H", start)
    checksum = sum(words)
    checksum = ~((checksum & 0xFFFF) + (checksum >> 16)) & 0xFFFF
    return bytes(12) + b"\x08\x00" + start[:10] + struct.pack("!H", checksum) + start[12:] + rest
