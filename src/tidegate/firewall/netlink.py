"""nftables' own netlink messages, as far as bans and the watch over the rules need them.

libnftables reads whole sets before it changes one element; these messages say just what is meant. Encoding and
decoding are pure; ``Link`` touches the kernel's packet filter, of the network namespace in which it was made.
Numbers: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tidegate.base.errors import NotRoot
from tidegate.firewall.errors import KernelRefused, NoNftables

NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT, NEW_GENERATION, GET_GENERATION, GET_TABLE, GET_SET = 12, 13, 14, 15, 16, 1, 10
GROUP_NFTABLES = 7
INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
MAX_ELEMENTS_A_MESSAGE = 1024  # an attribute's length is 16 bits; an IPv6 element with its times takes 52 bytes
REPLY_TIMEOUT_S = 5.0
RECEIVE_BYTES = 64 << 10  # the kernel fills at most 32 KiB a message of a dump
SEND_BUFFER_BYTES = 2 << 20  # of one transaction: 32 full messages of elements
MAX_DUMP_MESSAGES = 1 << 20  # a dump of the largest set is some 3,000

_AF_NETLINK, _NETLINK_NETFILTER, _SOL_NETLINK = 16, 12, 270
_ADD_MEMBERSHIP, _CAP_ACK = 1, 10
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_REQUEST, _ACK, _CREATE, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x4, 0x400, 0x300, 0x10
_ERROR, _DONE, _BATCH_BEGIN, _BATCH_END = 2, 3, 16, 17
_SUBSYSTEM, _INET = 10, 1
_FAMILIES = {"inet": _INET, "netdev": 5}  # linux/netfilter.h: NFPROTO_*
_NESTED, _TYPE_MASK = 0x8000, 0x3FFF
_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message from the kernel; ``kind`` is without its subsystem, ``body`` without nfnetlink's own header."""

    kind: int
    control: bool  # an error, an acknowledgement or an end, not nftables' own
    interrupted: bool
    sequence: int
    body: memoryview

    @property
    def error(self) -> int | None:
        """``errno`` of an error, 0 of an acknowledgement, ``None`` of anything else."""
        return -int(struct.unpack_from("=i", self.body)[0]) if self.control and self.kind == _ERROR else None

    @property
    def is_end(self) -> bool:
        """Whether a dump ends here."""
        return self.control and self.kind == _DONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """The ruleset's generation and the process that made it (0 and empty where the kernel does not say)."""

    number: int
    pid: int
    program: str


def encode_attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def encode_message(kind: int, body: bytes = b"", *, flags: int = 0, family: int = _INET, sequence: int = 0) -> bytes:
    """Return one nftables request."""
    return (
        _HEADER.pack(20 + len(body), _SUBSYSTEM << 8 | kind, _REQUEST | flags, sequence, 0)
        + struct.pack("=BBH", family, 0, 0)
        + body
    )


def encode_elements(kind: int, table: str, name: str, elements: Sequence[tuple[bytes, int | None]]) -> bytes:
    """Return the request ``kind`` for elements of set ``inet table name``: pairs of key and milliseconds to live.

    At most ``MAX_ELEMENTS_A_MESSAGE`` of them. ``None``: without a time. The time is given as timeout and as
    expiration, so that it also counts anew for an element that is there (kernels since 6.12; others ignore it).
    """
    if len(elements) > MAX_ELEMENTS_A_MESSAGE:
        raise ValueError("too many elements for one message")
    size = len(elements[0][0]) if elements else 4
    key_only = struct.Struct(f"=HHHHHH{size}s")
    timed = struct.Struct(f"=HHHHHH{size}sHHQHHQ")
    key_head = (8 + size, _NESTED | 1, 4 + size, 1)
    swap = struct.Struct(">Q")
    parts = []
    for key, left_ms in elements:
        if left_ms is None:
            parts.append(key_only.pack(key_only.size, _NESTED | 1, *key_head, key))
        else:
            time_ms = int.from_bytes(swap.pack(left_ms), sys.byteorder)
            parts.append(timed.pack(timed.size, _NESTED | 1, *key_head, key, 12, 4, time_ms, 12, 5, time_ms))
    body = encode_set(table, name) + encode_attribute(_NESTED | 3, b"".join(parts))
    return encode_message(kind, body, flags=_CREATE if kind == NEW_ELEMENT else 0)


def encode_set(table: str, name: str) -> bytes:
    """Return the attributes that name a set."""
    return encode_attribute(1, table.encode() + b"\0") + encode_attribute(2, name.encode() + b"\0")


def parse_messages(data: memoryview) -> Iterator[Message]:
    """Yield the messages of one datagram; what is shorter than it says ends it."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
        if not 16 <= length <= len(data) - at:
            return
        control = kind < _BATCH_BEGIN
        start = at + (16 if control else 20)
        yield Message(
            kind=kind & 0xFF,
            control=control,
            interrupted=bool(flags & _DUMP_INTERRUPTED),
            sequence=sequence,
            body=data[start : at + length],
        )
        at += length + (-length % 4)


def parse_attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (type, payload) of every attribute."""
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if not 4 <= length <= len(data) - at:
            return
        yield kind & _TYPE_MASK, data[at + 4 : at + length]
        at += length + (-length % 4)


def parse_elements(body: memoryview) -> Iterator[tuple[bytes, int, int]]:
    """Yield (key, milliseconds left or 0, flags) of the elements in one message of a set's elements."""
    for kind, listed in parse_attributes(body):
        if kind == 3:
            yield from _parse_timed(listed) or _parse_any(listed)


def _parse_timed(listed: memoryview) -> list[tuple[bytes, int, int]] | None:
    """Return the elements where each has a key, a timeout and an expiration and nothing else; a fifth of the time."""
    key_bytes = _ATTRIBUTE.unpack_from(listed, 8)[0] - 4 if len(listed) >= 12 else 0
    if key_bytes not in (4, 16) or len(listed) % (36 + key_bytes):
        return None
    found = []
    for fields in struct.iter_unpack(f"=HHHHHH{key_bytes}sHH8sHH8s", listed):
        size, key, timeout, expiration, left = fields[0], fields[6], fields[8], fields[11], fields[12]
        if (size, timeout, expiration) != (36 + key_bytes, 4, 5):
            return None
        found.append((key, int.from_bytes(left, "big"), 0))
    return found


def _parse_any(listed: memoryview) -> Iterator[tuple[bytes, int, int]]:
    for _, element in parse_attributes(listed):
        key, left_ms, flags = b"", 0, 0
        for name, value in parse_attributes(element):
            if name == 1:
                key = bytes(value[4:])  # one nested attribute, the value
            elif name == 5:
                left_ms = int.from_bytes(value, "big")
            elif name == 3:
                flags = int.from_bytes(value, "big")
        yield key, left_ms, flags


def parse_generation(body: memoryview) -> Generation:
    """Return what a notice about a new generation says."""
    found = dict(parse_attributes(body))
    program = bytes(found.get(3, b"")).partition(b"\0")[0].decode(errors="replace")
    return Generation(
        number=int.from_bytes(found.get(1, b""), "big"), pid=int.from_bytes(found.get(2, b""), "big"), program=program
    )


def parse_name(body: memoryview) -> str:
    """Return the table's name, which nftables puts first in every message about a thing inside one."""
    for kind, value in parse_attributes(body):
        if kind == 1:
            return bytes(value).partition(b"\0")[0].decode(errors="replace")
    return ""


class Link:
    """A socket to the kernel's nftables; one exchange at a time, other threads wait."""

    def __init__(self) -> None:
        """Raises ``firewall.kernel.no-nftables``, ``base.privilege.missing``."""
        self._lock = threading.Lock()
        self._sequence = 0
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._open()

    def _open(self) -> None:
        self._owner = os.getpid()
        try:
            self._socket = socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            self._socket.settimeout(REPLY_TIMEOUT_S)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
            self._socket.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)  # a refusal need not repeat the request
        except OSError as error:
            raise _translate(error.errno or 0, "no netlink socket") from error

    def close(self) -> None:
        """Give the socket back; harmless when repeated."""
        self._socket.close()

    def __del__(self) -> None:
        """Many callers make one ban and are gone; they hold nothing that would be lost."""
        if hasattr(self, "_socket"):
            self._socket.close()

    def commit(self, messages: Sequence[bytes]) -> None:
        """Have the kernel carry out ``messages`` as one transaction: all of them or, when this raises, none.

        Raises ``firewall.netlink.refused`` with the field ``errno`` of the first that was refused.
        """
        with self._lock:
            first = self._take(len(messages) + 2)
            parts = [_batch_edge(_BATCH_BEGIN, first)]
            for number, message in enumerate(messages, start=1):
                parts.append(_stamp(message, first + number, _ACK if number == len(messages) else 0))
            parts.append(_batch_edge(_BATCH_END, first + len(messages) + 1))
            self._send(b"".join(parts))
            self._await_ack(first, first + len(messages))

    def ask(self, messages: Sequence[bytes]) -> list[Message | int]:
        """Return the kernel's answer to each request: its first message, or the ``errno`` of its refusal."""
        answers: list[Message | int] = []
        with self._lock:
            first = self._take(len(messages))
            # Each with an acknowledgement, so that it is known when its last answer has come.
            self._send(b"".join(_stamp(message, first + n, _ACK) for n, message in enumerate(messages)))
            found: dict[int, Message] = {}
            done = 0
            while done < len(messages):
                for message in self._receive():
                    place = message.sequence - first
                    if not 0 <= place < len(messages):
                        continue  # left over from an exchange that timed out
                    if message.error is None:
                        found.setdefault(place, _keep(message))
                    else:
                        done += 1
                        answers.append(message.error or found.get(place, message))
        return answers

    def dump(self, kind: int, body: bytes) -> Iterator[Message]:
        """Yield the messages of a dump; each is to be used before the next is asked for.

        A dump that the kernel interrupts, because the ruleset changed meanwhile, goes on: it may miss or repeat what
        was added or removed since it began. Raises ``firewall.netlink.refused``.
        """
        with self._lock:
            sequence = self._take(1)
            self._send(_stamp(encode_message(kind, body), sequence, _DUMP))
            for _ in range(MAX_DUMP_MESSAGES):
                for message in self._receive():
                    if message.sequence != sequence:
                        continue
                    if message.is_end:
                        return
                    if message.error:
                        raise _translate(message.error, "a dump")
                    yield message

    def elements(self, table: str, name: str) -> Iterator[tuple[bytes, int, int]]:
        """Yield (key, milliseconds left or 0, flags) of every element of set ``inet table name``."""
        for message in self.dump(GET_ELEMENT, encode_set(table, name)):
            yield from parse_elements(message.body)

    def set_size(self, table: str, name: str) -> int | None:
        """Return how many elements set ``inet table name`` may hold (0: no bound), ``None`` when there is none."""
        answer = self.ask([encode_message(GET_SET, encode_set(table, name))])[0]
        if not isinstance(answer, Message):
            return None
        described = dict(parse_attributes(dict(parse_attributes(answer.body)).get(9, memoryview(b""))))
        return int.from_bytes(described.get(1, b""), "big")

    def has_table(self, name: str, *, family: str = "inet") -> bool:
        """Return whether there is a table ``family name``; ``family`` is inet or netdev."""
        wanted = encode_attribute(1, name.encode() + b"\0")
        answer = self.ask([encode_message(GET_TABLE, wanted, family=_FAMILIES[family])])[0]
        return isinstance(answer, Message)

    def _take(self, count: int) -> int:
        if self._owner != os.getpid():
            self._open()  # after a fork the socket would be shared with the parent
        self._sequence = (self._sequence + 1) & 0x3FFFFFFF
        first = self._sequence
        self._sequence += count
        return first

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise _translate(error.errno or 0, "a request") from error

    def _receive(self) -> Iterator[Message]:
        try:
            length = self._socket.recv_into(self._buffer)
        except TimeoutError as error:
            raise KernelRefused("the kernel does not answer", errno=errno.ETIMEDOUT) from error
        except OSError as error:
            raise _translate(error.errno or 0, "an answer") from error
        return parse_messages(self._buffer[:length])

    def _await_ack(self, first: int, last: int) -> None:
        """Return at the acknowledgement of ``last``; the kernel reports every message that it refused before that."""
        refused = 0
        while True:
            for message in self._receive():
                if message.error is None or not first <= message.sequence <= last + 1:
                    continue
                refused = refused or message.error
                if message.sequence in (first, last):
                    # Of the first: the transaction as a whole was refused. Of the last: everything has been said.
                    if refused:
                        raise _translate(refused, "a transaction")
                    return


class Monitor:
    """A socket on which the kernel tells of every change to nftables, whoever makes it."""

    def __init__(self, receive_bytes: int = 1 << 20) -> None:
        """Subscribe; raises ``firewall.kernel.no-nftables``, ``base.privilege.missing``."""
        try:
            self._socket = socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
            self._socket.settimeout(REPLY_TIMEOUT_S)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
            # A socket has to have an address before it can be a member; its first request gives it one.
            self._socket.send(encode_message(GET_GENERATION))
            self._socket.recv(RECEIVE_BYTES)
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, GROUP_NFTABLES)
            self._socket.setblocking(False)
        except OSError as error:
            raise _translate(error.errno or 0, "no netlink socket") from error
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to ``read``."""
        return self._socket.fileno()

    def read(self) -> list[Message] | None:
        """Return the next notices, ``[]`` when there are none, ``None`` when the kernel dropped some."""
        try:
            length = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return []
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                return None
            raise _translate(error.errno or 0, "a notice") from error
        return [_keep(message) for message in parse_messages(self._buffer[:length])]

    def close(self) -> None:
        """End the subscription; harmless when repeated."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _batch_edge(kind: int, sequence: int) -> bytes:
    # nfgenmsg's resource id names the subsystem, in network order.
    return _HEADER.pack(20, kind, _REQUEST, sequence, 0) + struct.pack(">BBH", 0, 0, _SUBSYSTEM)


def _stamp(message: bytes, sequence: int, flags: int) -> bytes:
    """Return ``message`` with its sequence number and more flags."""
    length, kind, old, _, port = _HEADER.unpack_from(message)
    return _HEADER.pack(length, kind, old | flags, sequence, port) + message[16:]


def _keep(message: Message) -> Message:
    """Return the message with a body of its own: the receive buffer is used again."""
    return Message(
        kind=message.kind,
        control=message.control,
        interrupted=message.interrupted,
        sequence=message.sequence,
        body=memoryview(bytes(message.body)),
    )


def _translate(number: int, what: str) -> NotRoot | NoNftables | KernelRefused:
    if number in (errno.EPERM, errno.EACCES):
        return NotRoot("changing the firewall needs root", capability="CAP_NET_ADMIN")
    if number in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
        return NoNftables(f"this kernel has no netfilter interface: {os.strerror(number)}", errno=number)
    return KernelRefused(f"the kernel refused {what}: {os.strerror(number)}", errno=number)
