"""Watches the flows of this machine through the kernel's connection tracking.

Touches: a ctnetlink socket, a table ``inet tidegate_learn`` of its own while it watches (connection tracking sleeps
until some rule asks for it), ``/proc`` for this machine's addresses; all of the network namespace of the calling
thread. Changes nothing that decides about a packet.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tidegate.base.errors import NotRoot
from tidegate.firewall.errors import NoConntrack
from tidegate.firewall.eveflows import find_direction
from tidegate.firewall.learn import Flow, is_group
from tidegate.firewall.model import Address
from tidegate.firewall.netlink import parse_attributes, parse_messages
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import Protocol

LEARN_TABLE = "tidegate_learn"
MAX_OPEN = 8192  # flows that have begun and not ended: a kilobyte each; the oldest makes room for a new one
MAX_DONE = 16_384  # flows of which later notices tell nothing new: 100 bytes each
DUMP_EVERY_S = 1.0  # after notices were lost, the table is read again, but not more often
RECEIVE_BYTES = 4 << 20  # of the kernel's queue: about 20,000 notices, a second of a busy small device
MAX_DATAGRAM = 65_536

# linux/netlink.h, linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h
_AF_NETLINK, _NETLINK_NETFILTER, _SOL_NETLINK = 16, 12, 270
_ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 1, 33
_GROUPS = (1, 2, 3)  # new, update, destroy
_CT_SUBSYSTEM, _CT_GET, _CT_DELETE = 1, 1, 2
_REQUEST_DUMP = 0x001 | 0x300
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _COUNTERS_ORIGINAL, _COUNTERS_REPLY, _ID = 1, 2, 3, 4, 9, 10, 12
_SEEN_REPLY = 0x02
_TCP_SYN_SENT, _TCP_ESTABLISHED, _TCP_TIME_WAIT, _TCP_SYN_SENT2 = 1, 3, 7, 9
_ECHO = {1: 8, 58: 128}
_NUMBERS = {
    2: Protocol.IGMP,
    6: Protocol.TCP,
    17: Protocol.UDP,
    47: Protocol.GRE,
    50: Protocol.ESP,
    51: Protocol.AH,
    89: Protocol.OSPF,
    112: Protocol.VRRP,
    132: Protocol.SCTP,
}
_TCP = 6

_TABLE = f"""\
table inet {LEARN_TABLE} {{
	chain incoming {{
		type filter hook prerouting priority 0; policy accept;
		ct state new counter
	}}
	chain outgoing {{
		type filter hook output priority 0; policy accept;
		ct state new counter
	}}
}}
"""


@dataclass(slots=True)
class Notice:
    """What one message says of one tracked connection."""

    key: int
    is_end: bool
    number: int  # the IP protocol's
    source: Address
    destination: Address
    reply_source: Address | None
    port: int
    source_port: int
    icmp_type: int | None
    status: int
    tcp_state: int | None
    size_bytes: int


@dataclass(slots=True)
class _Open:
    """A connection between its first and its last notice."""

    notice: Notice
    first_s: float
    last_s: float
    is_answered: bool = False
    is_late: bool = False
    size_bytes: int = 0


class ConntrackWatch:
    """The flows of this machine from now on. Use it in a ``with`` statement; afterwards ``flows`` yields the rest."""

    def __init__(
        self, own: frozenset[Address], *, broadcasts: frozenset[Address] = frozenset(), nft: Nft | None = None
    ) -> None:
        """``own``: this machine's addresses; ``broadcasts``: those of its networks.

        Raises ``base.privilege.missing``, ``firewall.learn.no-conntrack``, ``firewall.nft.refused``,
        ``firewall.kernel.no-nftables``.
        """
        self._own, self._broadcasts = own, broadcasts
        self._open: dict[int, _Open] = {}
        self._nft = nft or Nft.open()
        self._done: dict[int, None] = {}  # in the order of their end
        self._dumped_s = 0.0
        self.lost = 0  # times that the kernel's queue overflowed
        self._socket = _open_socket()
        try:
            self._nft.run(f"table inet {LEARN_TABLE}\ndelete table inet {LEARN_TABLE}\n{_TABLE}")
            self._dump()  # what is open already
        except BaseException:
            self._socket.close()
            raise

    def watch(self, timeout_s: float) -> Iterator[Flow]:
        """Yield the flows that end within ``timeout_s``; returns when the time is over."""
        deadline = time.monotonic() + timeout_s
        while (left_s := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._socket], [], [], left_s)
            if ready:
                yield from self._take(time.time())

    def flows(self) -> Iterator[Flow]:
        """Yield the flows that have not ended."""
        for one in self._open.values():
            if (flow := self._finish(one)) is not None:
                yield flow
        self._open.clear()

    def close(self) -> None:
        """End the watch and remove its table; harmless when repeated."""
        self._socket.close()
        self._nft.run(f"table inet {LEARN_TABLE}\ndelete table inet {LEARN_TABLE}\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, now_s: float) -> Iterator[Flow]:
        try:
            data = self._socket.recv(MAX_DATAGRAM)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.lost += 1
            self._dump()  # what began unnoticed is still in the table: closed TCP for two minutes, UDP for half a one
            return
        for message in parse_messages(memoryview(data)):
            notice = None if message.control else parse_notice(message.kind, message.body)
            if notice is not None:
                yield from self._note(notice, now_s)

    def _dump(self) -> None:
        """Have the kernel list its table; while it still does, it refuses, and the refusal is skipped when read."""
        if time.monotonic() - self._dumped_s >= DUMP_EVERY_S:
            self._dumped_s = time.monotonic()
            self._socket.send(_encode_dump())

    def _note(self, notice: Notice, now_s: float) -> Iterator[Flow]:
        known = self._open.get(notice.key)
        if known is None:
            if notice.is_end:
                self._done.pop(notice.key, None)  # the kernel may use its number again
            if notice.is_end or notice.key in self._done:
                return
            if len(self._open) >= MAX_OPEN:
                yield from self._end(next(iter(self._open)), is_early=True)
            is_late = notice.number == _TCP and notice.tcp_state not in (None, _TCP_SYN_SENT, _TCP_SYN_SENT2)
            known = self._open[notice.key] = _Open(notice=notice, first_s=now_s, last_s=now_s, is_late=is_late)
        known.last_s = now_s
        known.size_bytes = max(known.size_bytes, notice.size_bytes)
        known.is_answered |= _is_answered(notice)
        if notice.is_end:
            yield from self._end(notice.key, is_early=False)

    def _end(self, key: int, *, is_early: bool) -> Iterator[Flow]:
        """Yield a flow that has ended, or that has to make room: an attacker's thousands hide nothing that is new."""
        if is_early:
            if len(self._done) >= MAX_DONE:
                del self._done[next(iter(self._done))]
            self._done[key] = None
        if (flow := self._finish(self._open.pop(key))) is not None:
            yield flow

    def _finish(self, one: _Open) -> Flow | None:
        notice = one.notice
        if (
            notice.source.is_loopback
            or notice.destination.is_loopback
            or (notice.source in self._own and notice.destination in self._own)
        ):
            return None
        protocol = _NUMBERS.get(notice.number)
        if notice.number in _ECHO and notice.icmp_type == _ECHO[notice.number]:
            protocol = Protocol.PING
        has_ports = protocol is not None and protocol.has_ports
        return Flow(
            direction=find_direction(notice.source, notice.destination, self._own, self._broadcasts),
            protocol=protocol,
            source=notice.source,
            destination=notice.destination,
            port=notice.port if has_ports else 0,
            source_port=notice.source_port if has_ports else 0,
            first_s=one.first_s,
            last_s=one.last_s,
            size_bytes=one.size_bytes,
            is_answered=one.is_answered,
            is_translated=notice.reply_source not in (None, notice.destination) and not is_group(notice.destination),
            is_late=one.is_late,
        )


def parse_notice(kind: int, body: memoryview) -> Notice | None:
    """Return what a ctnetlink message says; ``None`` for one that lacks the connection's addresses."""
    found = dict(parse_attributes(body))
    original = _parse_tuple(found.get(_ORIGINAL))
    if original is None or "source" not in original or "destination" not in original:
        return None
    reply = _parse_tuple(found.get(_REPLY)) or {}
    sizes = [_parse_counter(found[name]) for name in (_COUNTERS_ORIGINAL, _COUNTERS_REPLY) if name in found]
    return Notice(
        key=int.from_bytes(found.get(_ID, b""), "big"),
        is_end=kind == _CT_DELETE,
        number=original.get("number", 0),
        source=original["source"],
        destination=original["destination"],
        reply_source=reply.get("source"),
        port=original.get("port", 0),
        source_port=original.get("source_port", 0),
        icmp_type=original.get("icmp_type"),
        status=int.from_bytes(found.get(_STATUS, b""), "big"),
        tcp_state=_parse_tcp_state(found.get(_PROTOINFO)),
        size_bytes=sum(sizes),
    )


def own_addresses() -> frozenset[Address]:
    """Return the addresses of the calling thread's network namespace, without loopback."""
    return frozenset(address for address in (*_trie("host LOCAL"), *_inet6()) if not address.is_loopback)


def broadcast_addresses() -> frozenset[Address]:
    """Return the broadcast addresses of the networks of the calling thread's network namespace."""
    return frozenset(_trie("link BROADCAST"))


def _trie(kind: str) -> Iterator[Address]:
    """Yield the addresses of one kind in the kernel's table of local routes."""
    text = _read(Path("/proc/thread-self/net/fib_trie"))
    for match in re.finditer(rf"\|-- (\S+)\n(?:\s+/32 host \S+\n)*?\s+/32 {kind}$", text, re.MULTILINE):
        yield ip_address(match[1])


def _inet6() -> Iterator[Address]:
    for line in _read(Path("/proc/thread-self/net/if_inet6")).splitlines():
        yield ip_address(bytes.fromhex(line.split()[0]))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""  # no IPv6, say


def _open_socket() -> socket.socket:
    try:
        made = socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BYTES)
        made.bind((0, sum(1 << (group - 1) for group in _GROUPS)))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise NotRoot("watching connections needs root", capability="CAP_NET_ADMIN") from error
        text = f"this kernel does not tell of connections: {os.strerror(error.errno or 0)}"
        raise NoConntrack(text, errno=error.errno) from error
    return made


def _encode_dump() -> bytes:
    return struct.pack("=IHHIIBBH", 20, _CT_SUBSYSTEM << 8 | _CT_GET, _REQUEST_DUMP, 1, 0, socket.AF_UNSPEC, 0, 0)


def _is_answered(notice: Notice) -> bool:
    """TCP: a handshake that was completed, for a reset is a reply, too."""
    if notice.number == _TCP:
        state = notice.tcp_state
        return state is not None and _TCP_ESTABLISHED <= state <= _TCP_TIME_WAIT
    return bool(notice.status & _SEEN_REPLY)


def _parse_tuple(data: memoryview | None) -> dict[str, Any] | None:
    """Return addresses, protocol and ports of one direction."""
    if data is None:
        return None
    parts = dict(parse_attributes(data))
    found: dict[str, Any] = {}
    for name, value in parse_attributes(parts.get(1, memoryview(b""))):  # CTA_TUPLE_IP
        if len(value) in (4, 16) and name in _IP:
            found[_IP[name]] = ip_address(bytes(value))
    for name, value in parse_attributes(parts.get(2, memoryview(b""))):  # CTA_TUPLE_PROTO
        if name in _PROTO:
            found[_PROTO[name]] = int.from_bytes(value, "big")
    return found


_IP = {1: "source", 2: "destination", 3: "source", 4: "destination"}
_PROTO = {1: "number", 2: "source_port", 3: "port", 5: "icmp_type", 8: "icmp_type"}


def _parse_tcp_state(data: memoryview | None) -> int | None:
    tcp = dict(parse_attributes(data)).get(1) if data is not None else None
    state = dict(parse_attributes(tcp)).get(1) if tcp is not None else None
    return int.from_bytes(state, "big") if state is not None else None


def _parse_counter(data: memoryview) -> int:
    return int.from_bytes(dict(parse_attributes(data)).get(2, b""), "big")  # CTA_COUNTERS_BYTES
