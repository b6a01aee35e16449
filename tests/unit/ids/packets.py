"""Packets that are made here, and captures of them."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path

START_S = 1_700_000_000
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
CLIENT, SERVER = ("198.51.100.7", 40_000), ("192.168.1.2", 80)

End = tuple[str, int]


def ipv4(source: str, target: str, protocol: int, body: bytes, *, number: int = 7, fragment: int = 0) -> bytes:
    """Return an Ethernet frame with an IPv4 packet whose checksum is right."""
    addresses = IPv4Address(source).packed + IPv4Address(target).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), number, fragment, 64, protocol, 0) + addresses
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return bytes(12) + b"\x08\x00" + head + body


def checksum(data: bytes) -> int:
    """Return the Internet checksum."""
    padded = data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp(source: End, target: End, flags: int, numbers: tuple[int, int], data: bytes = b"") -> bytes:
    """Return a frame with a segment whose checksum is right."""
    segment = struct.pack("!HHIIBBHHH", source[1], target[1], *numbers, 0x50, flags, 65535, 0, 0) + data
    addresses = IPv4Address(source[0]).packed + IPv4Address(target[0]).packed
    pseudo = addresses + struct.pack("!BBH", 0, 6, len(segment))
    segment = segment[:16] + struct.pack("!H", checksum(pseudo + segment)) + segment[18:]
    return ipv4(source[0], target[0], 6, segment)


def udp(source: End, target: End, data: bytes) -> bytes:
    """Return a frame with a datagram without a checksum."""
    return ipv4(source[0], target[0], 17, struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data)


def conversation(talk: Iterable[tuple[str, bytes]], client: End = CLIENT, server: End = SERVER) -> Iterator[bytes]:
    """Yield the frames of a connection; ``talk``: who speaks (``>`` the client, ``<`` the server) and what is said."""
    sent = {">": 1000, "<": 5000}
    ends = {">": (client, server), "<": (server, client)}
    yield tcp(client, server, SYN, (sent[">"], 0))
    yield tcp(server, client, SYN | ACK, (sent["<"], sent[">"] + 1))
    sent = {way: number + 1 for way, number in sent.items()}
    yield tcp(client, server, ACK, (sent[">"], sent["<"]))
    for way, data in talk:
        other = "<" if way == ">" else ">"
        yield tcp(*ends[way], PSH | ACK, (sent[way], sent[other]), data)
        sent[way] += len(data)
        yield tcp(*ends[other], ACK, (sent[other], sent[way]))
    yield tcp(client, server, FIN | ACK, (sent[">"], sent["<"]))
    yield tcp(server, client, FIN | ACK, (sent["<"], sent[">"] + 1))
    yield tcp(client, server, ACK, (sent[">"] + 1, sent["<"] + 1))


def write_capture(path: Path, frames: Iterable[bytes], *, step_us: int = 1000) -> Path:
    """Write a pcap file, a frame each ``step_us``."""
    with path.open("wb") as stream:
        stream.write(struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        for number, frame in enumerate(frames):
            seconds, us = divmod(number * step_us, 1_000_000)
            stream.write(struct.pack("<IIII", START_S + seconds, us, len(frame), len(frame)) + frame)
    return path
