"""The kernel's own account of a packet: the messages by which nftables tells each rule that matched.

Touches: the netlink group of nftables' traces, of the network namespace of the calling thread. ``parse_messages`` is
pure: attributes of unknown kinds are skipped, since each kernel adds some; broken ones end the message.

Source: linux/netfilter/nf_tables.h (NFTA_TRACE_*), net/netfilter/nf_tables_trace.c of Linux 6.1 and 6.18.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from tidegate.base.errors import NotRoot
from tidegate.firewall.errors import NoNftables, TraceLost
from tidegate.firewall.netlink import parse_attributes

MAX_EVENTS = 4096  # of one packet: the kernel allows 16 jumps deep; each rule that matches is one event
MAX_MESSAGE_BYTES = 65536
RECEIVE_BUFFER_BYTES = 1 << 20  # MAX_EVENTS messages of some 200 bytes
MAX_IDS = 64  # of packets that look like the probe at one time; it is one, under a new number when it is copied

_AF_NETLINK = 16
_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_SO_RCVBUFFORCE = 33
_NFNLGRP_NFTRACE = 9
_TRACE = (10 << 8) | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_TABLE, _CHAIN, _HANDLE, _KIND, _VERDICT, _ID = 1, 2, 3, 4, 5, 6
_NETWORK, _TRANSPORT, _IIF, _OIF, _MARK, _PROTO, _POLICY = 8, 9, 10, 12, 14, 15, 16
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_FAMILIES = {0: "unspec", 1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}


class Kind(StrEnum):
    """What a message is about."""

    POLICY = "policy"  # a base chain's end was reached
    RETURN = "return"
    RULE = "rule"


class Outcome(StrEnum):
    """What a rule or a policy did with the packet."""

    DROP = "drop"
    ACCEPT = "accept"
    STOLEN = "stolen"  # taken over: a SYN proxy, a fragment, a copy elsewhere
    QUEUE = "queue"
    REPEAT = "repeat"
    CONTINUE = "continue"
    BREAK = "break"
    JUMP = "jump"
    GOTO = "goto"
    RETURN = "return"
    UNKNOWN = "unknown"


_OUTCOMES = {
    0: Outcome.DROP,
    1: Outcome.ACCEPT,
    2: Outcome.STOLEN,
    3: Outcome.QUEUE,
    4: Outcome.REPEAT,
    -1: Outcome.CONTINUE,
    -2: Outcome.BREAK,
    -3: Outcome.JUMP,
    -4: Outcome.GOTO,
    -5: Outcome.RETURN,
}
_KINDS = {1: Kind.POLICY, 2: Kind.RETURN, 3: Kind.RULE}


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """One step of one packet. The headers are there in the first message of each base chain only."""

    packet: int
    family: str
    table: str
    chain: str
    kind: Kind
    handle: int | None
    outcome: Outcome
    target: str | None = None
    queue: int | None = None
    network: bytes = b""
    transport: bytes = b""
    mark: int = 0


def parse_messages(datagram: bytes) -> Iterator[TraceEvent]:
    """Yield the trace events of one netlink datagram; what is something else, or broken, is left out."""
    position = 0
    while position + 16 <= len(datagram):
        length, kind = struct.unpack_from("=IH", datagram, position)
        if length < 16:
            return
        if kind == _TRACE:
            event = _parse_trace(datagram[position + 16 : position + length])
            if event is not None:
                yield event
        position += length + (-length % 4)


class Follower:
    """Picks one packet's events from those of all traced packets.

    ``is_ours`` judges network and transport header. A packet's number changes when the kernel copies it, and the
    number of a packet that is gone is used again; so each message that has headers is judged anew.
    """

    def __init__(self, is_ours: Callable[[bytes, bytes], bool]) -> None:
        self._is_ours = is_ours
        self._ids: set[int] = set()

    def takes(self, event: TraceEvent) -> bool:
        """Return whether the event is of our packet."""
        if event.network or event.transport:
            if not self._is_ours(event.network, event.transport):
                self._ids.discard(event.packet)
                return False
            if len(self._ids) < MAX_IDS:
                self._ids.add(event.packet)
        return event.packet in self._ids


class TraceListener:
    """The kernel's trace messages from the moment at which this was made; close it soon: each costs the kernel work."""

    def __init__(self) -> None:
        """Raises ``base.privilege.missing`` without CAP_NET_ADMIN, ``firewall.kernel.no-nftables``."""
        try:
            self._link = socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            self._link.bind((0, 0))
            self._link.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _NFNLGRP_NFTRACE)
            with contextlib.suppress(OSError):  # without CAP_NET_ADMIN over the machine the usual buffer has to do
                self._link.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EACCES):
                raise NotRoot("tracing packets needs root", capability="CAP_NET_ADMIN") from error
            raise NoNftables(f"this kernel tells no traces: {error}", errno=error.errno) from error

    def collect(
        self, takes: Callable[[TraceEvent], bool], is_last: Callable[[TraceEvent], bool], *, within_s: float
    ) -> list[TraceEvent]:
        """Return the events that ``takes`` wants, until one ``is_last`` or ``within_s`` have passed.

        Raises ``firewall.why.trace-lost`` when the kernel had to throw messages away, or there are too many.
        """
        events: list[TraceEvent] = []
        seen = 0
        end_s = time.monotonic() + within_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._link.settimeout(left_s)
            try:
                datagram = self._link.recv(MAX_MESSAGE_BYTES)
            except TimeoutError:
                break
            except OSError as error:
                raise TraceLost(f"the kernel's trace is incomplete: {error}", errno=error.errno) from error
            for event in parse_messages(datagram):
                seen += 1
                if takes(event):
                    events.append(event)
                    if is_last(event):
                        return events
            if seen > MAX_EVENTS:
                raise TraceLost(f"more than {MAX_EVENTS} trace messages", events=seen)
        return events

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()


def _parse_trace(body: bytes) -> TraceEvent | None:
    """Return the event, or ``None`` when what makes it one is missing."""
    if len(body) < 4:
        return None
    found = _read_attributes(body[4:])
    kind = _KINDS.get(_number(found, _KIND, 4) or 0)
    packet = _number(found, _ID, 4)
    if kind is None or packet is None or _TABLE not in found:
        return None
    outcome, target, queue = _parse_verdict(found, kind)
    return TraceEvent(
        packet=packet,
        family=_FAMILIES.get(body[0], "unspec"),
        table=_name(found[_TABLE]),
        chain=_name(found.get(_CHAIN, b"")),
        kind=kind,
        handle=_number(found, _HANDLE, 8),
        outcome=outcome,
        target=target,
        queue=queue,
        network=found.get(_NETWORK, b""),
        transport=found.get(_TRANSPORT, b""),
        mark=_number(found, _MARK, 4) or 0,
    )


def _parse_verdict(found: dict[int, bytes], kind: Kind) -> tuple[Outcome, str | None, int | None]:
    policy = _number(found, _POLICY, 4)
    if kind is Kind.POLICY and policy is not None:
        return _OUTCOMES.get(policy, Outcome.UNKNOWN), None, None
    nested = _read_attributes(found.get(_VERDICT, b""))
    raw = nested.get(_VERDICT_CODE, b"")
    if len(raw) != 4:
        return Outcome.UNKNOWN, None, None
    code: int = struct.unpack("!i", raw)[0]
    if code > 0 and code & 0xFF == 3:  # NF_QUEUE has the queue's number in its upper half
        return Outcome.QUEUE, None, code >> 16
    outcome = _OUTCOMES.get(code if code < 0 else code & 0xFF, Outcome.UNKNOWN)
    return outcome, _name(nested[_VERDICT_CHAIN]) if _VERDICT_CHAIN in nested else None, None


def _read_attributes(body: bytes) -> dict[int, bytes]:
    return {kind: bytes(payload) for kind, payload in parse_attributes(memoryview(body))}


def _number(found: dict[int, bytes], kind: int, size: int) -> int | None:
    raw = found.get(kind, b"")
    return int.from_bytes(raw, "big") if len(raw) == size else None


def _name(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")
