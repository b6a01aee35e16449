"""The probe: one packet that differs from every other in the world, and the nftables table that watches it.

Pure. The probe carries a nonce at a place that no filter rewrites (a TCP sequence number, the payload of the others).
By it the temporary table knows the probe and nothing else: at the first hooks it switches the kernel's rule tracing on
for it, at the last it drops it, so that no program and no network ever sees it; connection tracking forgets with it,
since it confirms only what passes the very last hook. What the kernel answers to it (a reset, an ICMP error, a SYN
proxy's handshake) is dropped as well.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tidegate.firewall.model import Address, Direction
from tidegate.firewall.section import Protocol

WHY_TABLE = "tidegate_why"
# The first and the last place in a hook: conntrack confirms at 2147483647 (NF_IP_PRI_LAST in linux/netfilter_ipv4.h).
FIRST, LAST = -2147483648, 2147483646
NONCE_BYTES = 8
TRACED_PER_S = 5  # packets that --wait traces; each costs one message for each rule that matches
_HOP_LIMIT = 64
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_FAMILY = {4: "ip", 6: "ip6"}
# What a kernel says to the sender; the offending packet stands at byte 8 of the message (RFC 792, RFC 4443).
_ERRORS = {
    4: "icmp type { destination-unreachable, time-exceeded, parameter-problem }",
    6: "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }",
}
_IP_HEADER_BYTES = {4: 20, 6: 40}
_ICMP_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The question to the kernel. ``interface`` is where the packet arrives, or, going out, where it must leave.

    ``nonce`` are eight random bytes. ``macs`` are the Ethernet header's destination and source, six bytes each.
    """

    direction: Direction
    interface: str | None
    source: Address
    destination: Address
    protocol: Protocol
    port: int
    source_port: int
    nonce: bytes
    macs: bytes = bytes(12)
    out_interface: str | None = None  # where routing sends it on
    unrouted: str | None = None  # routing's refusal, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked. ``source`` ``None``: this device itself. ``destination`` ``None``: this device."""

    source: Address | None
    destination: Address | None
    protocol: Protocol
    port: int = 0
    interface: str | None = None
    mac: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A protocol's number and what of the transport header tells the probe from others: offset (bytes) and bytes."""

    number: int
    body: bytes
    checksum_at: int | None
    nonce: tuple[tuple[int, bytes], ...]


def plan_unrouted(question: Question) -> Probe:
    """Return the packet that asks the model alone, on whatever machine: no routing is asked, so the interface is that
    of the question or none, and a packet with a destination goes through the device.
    """
    given = question.source or question.destination
    nowhere = IPv6Address(0) if isinstance(given, IPv6Address) else IPv4Address(0)
    direction = Direction.IN if question.destination is None else Direction.THROUGH
    return Probe(
        direction=Direction.OUT if question.source is None else direction,
        interface=question.interface,
        source=question.source or nowhere,
        destination=question.destination or nowhere,
        protocol=question.protocol,
        port=question.port,
        source_port=0,
        nonce=bytes(NONCE_BYTES),
    )


def plan_layout(probe: Probe) -> Layout | None:
    """Return how ``probe`` looks behind its IP header, or ``None`` for a protocol of which no probe is made."""
    build = _BUILDERS.get(probe.protocol)
    return None if build is None else build(probe)


def encode_packet(probe: Probe, layout: Layout) -> bytes:
    """Return the IP packet with all its checksums."""
    source, destination = probe.source.packed, probe.destination.packed
    body = bytearray(layout.body)
    if layout.checksum_at is not None:
        pseudo = source + destination + struct.pack("!II", len(body), layout.number)
        covered = bytes(body) if layout.number == 1 else pseudo + bytes(body)
        total = _checksum(covered)
        struct.pack_into("!H", body, layout.checksum_at, total or 0xFFFF)
    if probe.source.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(body), layout.number, _HOP_LIMIT) + source + destination + body
    identity = int.from_bytes(probe.nonce[:2], "big")
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), identity, 0, _HOP_LIMIT, layout.number, 0)
    total = _checksum(head + source + destination)
    return head[:10] + struct.pack("!H", total) + source + destination + body


def encode_frame(probe: Probe, packet: bytes) -> bytes:
    """Return the Ethernet frame around ``packet``."""
    return probe.macs + struct.pack("!H", _ETHERTYPE[probe.source.version]) + packet


def is_probe(layout: Layout, network: bytes, transport: bytes) -> bool:
    """Return whether the headers, as the kernel's trace shows them, are those of the probe."""
    return bool(network) and all(transport[at : at + len(part)] == part for at, part in layout.nonce)


def is_like(probe: Probe, network: bytes, transport: bytes) -> bool:
    """Return whether the headers are of a real packet with the probe's addresses and destination port."""
    width = len(probe.source.packed)
    at = 12 if width == 4 else 8
    addresses = network[at : at + 2 * width] == probe.source.packed + probe.destination.packed
    return addresses and (not probe.protocol.has_ports or transport[2:4] == struct.pack("!H", probe.port))


def read_constant(probe: Probe, transport: bytes) -> bytes:
    """Return what of a transport header stays as it is when addresses and ports are translated; never empty."""
    kept = transport[4:8] if probe.protocol is Protocol.TCP else transport[8:20]
    return kept or b"\0"


def encode_probe_table(probe: Probe, layout: Layout, *, owned: bool, ingress: bool) -> str:
    """Return the transaction that puts the temporary table in place of one that a killed run left behind.

    ``owned``: the kernel removes the table when the netlink socket closes that made it. ``ingress``: trace from the
    device's ingress hook on, where layer-2 tables are; kernels before 5.10 have none for ``inet``.
    """
    nonce = _match_nonce(layout, 0)
    mark = f"{_match_addresses(probe)} meta l4proto {layout.number} {nonce} meta nftrace set 1"
    end = f"meta l4proto {layout.number} {nonce} drop"
    silence = [f"{_ERRORS[probe.source.version]} {_match_nonce(layout, _quoted_at(probe))} drop"]
    if probe.protocol is Protocol.TCP:
        follows = (int.from_bytes(probe.nonce[:4], "big") + 1) % 2**32
        family = _FAMILY[probe.source.version]
        back = f"{family} daddr {probe.source} tcp dport {probe.source_port} tcp ackseq {follows} drop"
        silence.append(back)
    return _encode_table(probe, mark, end, silence, owned=owned, ingress=ingress)


def encode_wait_table(probe: Probe, *, owned: bool, ingress: bool) -> str:
    """Return the transaction for a table that traces real packets like ``probe`` and drops nothing."""
    ports = f"{probe.protocol.value} dport {probe.port} " if probe.protocol.has_ports else ""
    if probe.protocol is Protocol.TCP:
        ports += "tcp flags & (syn | ack) == syn "  # later packets are let through for their connection's sake
    match = f"{_match_addresses(probe)} {ports or _match_kind(probe)}"
    mark = f"{match}limit rate {TRACED_PER_S}/second burst {TRACED_PER_S} packets meta nftrace set 1"
    return _encode_table(probe, mark, "accept", [], owned=owned, ingress=ingress)


def _encode_table(probe: Probe, mark: str, end: str, silence: list[str], *, owned: bool, ingress: bool) -> str:
    """The first chain of the way in is not traced itself; the last ones are: that is how the probe's arrival shows."""
    chains = {"input_end": ("input", LAST, [end]), "postrouting_end": ("postrouting", LAST, [end])}
    if probe.direction is Direction.OUT:
        chains["output"] = ("output", FIRST, [*silence, mark])
    else:
        chains["prerouting"] = ("prerouting", FIRST, [mark])
        if silence:
            chains["output"] = ("output", FIRST, silence)
        if ingress and probe.interface is not None:
            chains["ingress"] = (f'ingress device "{probe.interface}"', FIRST, [mark])
    lines = [f"table inet {WHY_TABLE}", f"delete table inet {WHY_TABLE}", f"table inet {WHY_TABLE} {{"]
    if owned:
        lines.append("\tflags owner")
    for name, (hook, priority, rules) in chains.items():
        body = "".join(f"\t\t{rule}\n" for rule in rules)
        lines.append(f"\tchain {name} {{\n\t\ttype filter hook {hook} priority {priority}; policy accept;\n{body}\t}}")
    return "\n".join([*lines, "}", ""])


def _match_addresses(probe: Probe) -> str:
    family = _FAMILY[probe.source.version]
    return f"{family} saddr {probe.source} {family} daddr {probe.destination}"


def _match_kind(probe: Probe) -> str:
    if probe.protocol is Protocol.PING:
        return "icmp type echo-request " if probe.source.version == 4 else "icmpv6 type echo-request "
    return f"meta l4proto {_NUMBERS[probe.protocol]} "


def _match_nonce(layout: Layout, shift: int) -> str:
    """Match the nonce ``shift`` bytes behind its place in the transport header."""
    return " ".join(f"@th,{8 * (shift + offset)},{8 * len(part)} 0x{part.hex()}" for offset, part in layout.nonce)


def _quoted_at(probe: Probe) -> int:
    return _ICMP_HEADER_BYTES + _IP_HEADER_BYTES[probe.source.version]


def _build_tcp(probe: Probe) -> Layout:
    """A SYN as a host would send it; sequence number and window are the nonce."""
    sequence, window = probe.nonce[:4], bytes((probe.nonce[4] | 0x04, probe.nonce[5]))
    head = struct.pack("!HH", probe.source_port, probe.port) + sequence + bytes(4) + bytes((6 << 4, 0x02))
    body = head + window + bytes(4) + b"\x02\x04\x05\xb4"  # maximum segment size 1460
    return Layout(number=6, body=body, checksum_at=16, nonce=((4, sequence), (14, window)))


def _build_udp(probe: Probe) -> Layout:
    head = struct.pack("!HHHH", probe.source_port, probe.port, 8 + NONCE_BYTES, 0)
    return _behind(17, head, probe, checksum_at=6)


def _build_sctp(probe: Probe) -> Layout:
    """An INIT (RFC 9260 §3.3.2); its initiate tag is the nonce. Connection tracking drops a wrong checksum."""
    tag = probe.nonce[:4]
    head = struct.pack("!HHI", probe.source_port, probe.port, 0)
    chunk = struct.pack("!BBH", 1, 0, 20) + tag + struct.pack("!IHHI", 65535, 1, 1, 1)
    total = _crc32c(head + bytes(4) + chunk)
    return Layout(number=132, body=head + struct.pack("<I", total) + chunk, checksum_at=None, nonce=((16, tag),))


def _build_ping(probe: Probe) -> Layout:
    four = probe.source.version == 4
    head = struct.pack("!BBHHH", 8 if four else 128, 0, 0, int.from_bytes(probe.nonce[:2], "big"), 1)
    return _behind(1 if four else 58, head, probe, checksum_at=2)


def _build_esp(probe: Probe) -> Layout:
    return _behind(50, struct.pack("!II", 0x100, 1), probe)  # the smallest SPI that is not reserved (RFC 4303 §2.1)


def _build_gre(probe: Probe) -> Layout:
    return _behind(47, struct.pack("!HHI", 0x2000, 0x0800, 1), probe)  # with a key (RFC 2890)


def _build_vrrp(probe: Probe) -> Layout:
    return _behind(112, struct.pack("!BBBBHH", 0x31, 1, 1, 0, 100, 0), probe)


def _build_ospf(probe: Probe) -> Layout:
    return _behind(89, struct.pack("!BBHI", 2, 1, 24, 0), probe)


def _build_igmp(probe: Probe) -> Layout | None:
    if isinstance(probe.source, IPv6Address):
        return None
    return _behind(2, struct.pack("!BBHI", 0x16, 0, 0, 0xE00000FB), probe, checksum_at=None)


def _behind(number: int, head: bytes, probe: Probe, *, checksum_at: int | None = None) -> Layout:
    """Return a layout with the nonce as payload behind an eight-byte header."""
    return Layout(number=number, body=head + probe.nonce, checksum_at=checksum_at, nonce=_halves(probe.nonce))


def _halves(nonce: bytes) -> tuple[tuple[int, bytes], ...]:
    return ((8, nonce[:4]), (12, nonce[4:8]))


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _crc32c(data: bytes) -> int:
    """Return SCTP's checksum (RFC 9260, appendix A)."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


# AH has none: over IPv6 nft takes it for an extension header.
_BUILDERS: dict[Protocol, Callable[[Probe], Layout | None]] = {
    Protocol.TCP: _build_tcp,
    Protocol.UDP: _build_udp,
    Protocol.SCTP: _build_sctp,
    Protocol.PING: _build_ping,
    Protocol.ESP: _build_esp,
    Protocol.GRE: _build_gre,
    Protocol.VRRP: _build_vrrp,
    Protocol.OSPF: _build_ospf,
    Protocol.IGMP: _build_igmp,
}
_NUMBERS = {
    Protocol.IGMP: 2,
    Protocol.GRE: 47,
    Protocol.ESP: 50,
    Protocol.AH: 51,
    Protocol.OSPF: 89,
    Protocol.VRRP: 112,
    Protocol.SCTP: 132,
}
