"""Asks recursive DNS resolvers for addresses, many names at a time, and waits for no single one.

Each question has a socket of its own: a source port and an id that nobody can predict, connected, so that the kernel
takes datagrams from the asked resolver only. Touches: UDP and TCP sockets, resolv.conf. Not thread-safe.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from tidegate.firewall.dnsmessage import MAX_UDP_BYTES, Trouble, encode_question, parse_answer
from tidegate.firewall.errors import BadNamesConfig
from tidegate.firewall.nameplan import FAMILIES, Answer, parse_resolv_conf

DNS_PORT = 53
MAX_RESOLVERS = 8  # resolv.conf(5) has room for three
MAX_AT_ONCE = 16  # sockets, and what a small resolver takes from one client
MAX_STRAYS = 32  # datagrams with a wrong id: nobody gets to guess on for the whole timeout
TURNS = 2  # each resolver is asked so many times
UDP_TIMEOUT_S = 2.0
TCP_TIMEOUT_S = 4.0
MAX_RESOLV_CONF_BYTES = 65_536
RESOLV_CONF = Path("/etc/resolv.conf")

Server = tuple[str, int]
Question = tuple[str, int]  # a name and a family
Given = Answer | Trouble | None  # None: no answer in time


class Resolver:
    """Questions under way; ``poll`` moves them on. Every question ends, with an answer or with ``None``."""

    def __init__(self, servers: Sequence[Server], *, timeout_s: float = UDP_TIMEOUT_S) -> None:
        self.servers: tuple[Server, ...] = tuple(servers)
        self._timeout_s = timeout_s
        self._waiting: deque[Question] = deque()
        self._asking: dict[int, _Asking] = {}
        self._ended: list[tuple[Question, Answer | None]] = []
        self._best = 0  # the resolver that answered last is asked first
        self._poll = select.poll()

    def ask(self, name: str, family: int) -> None:
        """Put a question into the queue."""
        self._waiting.append((name, family))

    @property
    def is_idle(self) -> bool:
        """Whether no question is under way."""
        return not (self._waiting or self._asking or self._ended)

    def poll(self, timeout_s: float, others: Iterable[int] = ()) -> list[tuple[Question, Answer | None]]:
        """Return questions that ended, after at most ``timeout_s``, sooner when one of ``others`` is readable.

        Of ``others`` an end that its peer has closed counts as readable.
        """
        self._begin_waiting()
        watched = list(others)
        for descriptor in watched:
            self._poll.register(descriptor, select.POLLIN)
        try:
            ready = self._poll.poll(max(0.0, 0.0 if self._ended else self._pause_s(timeout_s)) * 1000)
        finally:
            for descriptor in watched:
                self._poll.unregister(descriptor)
        for descriptor, _ in ready:
            if descriptor in self._asking:
                self._advance(self._asking[descriptor])
        now_s = time.monotonic()
        for asking in list(self._asking.values()):
            if now_s >= asking.deadline_s:
                self._give_up_turn(asking)
        self._begin_waiting()
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Drop every question."""
        self._waiting.clear()
        for asking in list(self._asking.values()):
            self._forget(asking)

    def _pause_s(self, timeout_s: float) -> float:
        soonest_s = min((asking.deadline_s for asking in self._asking.values()), default=None)
        return timeout_s if soonest_s is None else min(timeout_s, soonest_s - time.monotonic() + 0.001)

    def _begin_waiting(self) -> None:
        while self._waiting and len(self._asking) < MAX_AT_ONCE:
            self._turn(_Asking(self._waiting.popleft(), self._best))

    def _turn(self, asking: _Asking) -> None:
        """Ask the next resolver, or end the question when each has had its turns."""
        while self.servers and asking.turn < TURNS * len(self.servers):
            server = self.servers[(asking.first + asking.turn) % len(self.servers)]
            if self._open(asking, server, tcp=False):
                return
            asking.turn += 1
        self._ended.append((asking.question, None))

    def _open(self, asking: _Asking, server: Server, *, tcp: bool) -> bool:
        timeout_s = self._timeout_s * (TCP_TIMEOUT_S / UDP_TIMEOUT_S if tcp else 1.0)
        if not asking.open(server, time.monotonic() + timeout_s, tcp=tcp):
            return False
        self._asking[asking.descriptor] = asking
        self._poll.register(asking.descriptor, select.POLLOUT if tcp else select.POLLIN)
        return True

    def _advance(self, asking: _Asking) -> None:
        """Take what came, or what may be sent now."""
        try:
            if asking.is_tcp and asking.send():
                self._poll.modify(asking.descriptor, select.POLLIN)
                return
            given = asking.receive()
        except BlockingIOError:
            return
        except OSError:  # refused, unreachable, or closed in the middle
            self._give_up_turn(asking)
            return
        if isinstance(given, Answer):
            self._best = (asking.first + asking.turn) % len(self.servers)
            self._forget(asking)
            self._ended.append((asking.question, given))
        elif given is Trouble.TRUNCATED and not asking.is_tcp:
            server = asking.server
            self._forget(asking)
            if not self._open(asking, server, tcp=True):
                self._next_turn(asking)
        elif given is not None and (given is not Trouble.FOREIGN or asking.strays >= MAX_STRAYS):
            self._give_up_turn(asking)

    def _give_up_turn(self, asking: _Asking) -> None:
        self._forget(asking)
        self._next_turn(asking)

    def _next_turn(self, asking: _Asking) -> None:
        asking.turn += 1
        self._turn(asking)

    def _forget(self, asking: _Asking) -> None:
        self._poll.unregister(asking.descriptor)
        del self._asking[asking.descriptor]
        asking.close()


class _Asking:
    """One question on its way: at most one socket."""

    def __init__(self, question: Question, first: int) -> None:
        self.question, self.first, self.turn = question, first, 0
        self.strays, self.deadline_s, self.is_tcp = 0, 0.0, False
        self.server: Server = ("", 0)
        self.descriptor = -1
        self._socket: socket.socket | None = None
        self._ident = 0
        self._unsent, self._got = b"", b""

    def open(self, server: Server, deadline_s: float, *, tcp: bool) -> bool:
        """Send the question to ``server``, or begin to; return whether that was possible."""
        self.server, self.deadline_s, self.is_tcp, self.strays = server, deadline_s, tcp, 0
        self._ident = int.from_bytes(os.urandom(2), "big")
        message = encode_question(*self.question, self._ident)
        self._unsent, self._got = struct.pack(">H", len(message)) + message if tcp else b"", b""
        try:
            family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)
        except OSError:  # no IPv6 in this kernel, no descriptors left
            return False
        self._socket.setblocking(False)
        self.descriptor = self._socket.fileno()
        try:
            with contextlib.suppress(BlockingIOError):  # TCP connects while we wait for it to be writable
                self._socket.connect(server)  # the kernel takes a free port at random
            if not tcp:
                self._socket.send(message)
        except OSError:
            self.close()
            return False
        return True

    def send(self) -> bool:
        """Send over TCP what is unsent; return whether something was."""
        if self._socket is None or not self._unsent:
            return False
        self._unsent = self._unsent[self._socket.send(self._unsent) :]
        return True

    def receive(self) -> Given:
        """Return what came, ``None`` when it is not whole yet; raise ``OSError`` when nothing will come."""
        if self._socket is None:
            return None
        if not self.is_tcp:
            given = parse_answer(self._socket.recv(MAX_UDP_BYTES + 1), *self.question, self._ident)
            self.strays += given is Trouble.FOREIGN
            return given
        chunk = self._socket.recv(65_537 - len(self._got))
        if not chunk:
            raise ConnectionResetError
        self._got += chunk
        if len(self._got) < 2 or len(self._got) - 2 < int.from_bytes(self._got[:2], "big"):
            return None
        given = parse_answer(self._got[2:], *self.question, self._ident)
        return Trouble.MALFORMED if given is Trouble.FOREIGN else given

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def parse_server(text: str) -> Server:
    """Return address and port of ``192.0.2.1``, ``192.0.2.1:5353``, ``2001:db8::1`` or ``[2001:db8::1]:5353``.

    Raises ``firewall.names.config``.
    """
    host, port = text, str(DNS_PORT)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ip_address(host)
        number = int(port)
    except ValueError as error:
        raise BadNamesConfig(f"{text!r} is no resolver's address", resolver=text) from error
    if not 1 <= number <= 65535:
        raise BadNamesConfig(f"{text!r}: a port is 1 to 65535", resolver=text)
    return host, number


def read_servers(path: Path = RESOLV_CONF) -> tuple[Server, ...]:
    """Return the resolvers that the system uses; none when it has no resolv.conf."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_RESOLV_CONF_BYTES).decode(errors="replace")
    except OSError:
        return ()
    return tuple((address, DNS_PORT) for address in parse_resolv_conf(text, MAX_RESOLVERS))


def resolve_once(
    names: Iterable[str], servers: Sequence[Server], *, within_s: float, timeout_s: float = UDP_TIMEOUT_S
) -> dict[str, Mapping[int, Answer | None]]:
    """Return, for each name, the answer for IPv4 and for IPv6; ``None`` where no resolver gave one ``within_s``."""
    resolver = Resolver(servers, timeout_s=timeout_s)
    found: dict[str, dict[int, Answer | None]] = {name: dict.fromkeys(FAMILIES) for name in names}
    for name in found:
        for family in FAMILIES:
            resolver.ask(name, family)
    deadline_s = time.monotonic() + within_s
    try:
        while not resolver.is_idle and time.monotonic() < deadline_s:
            for (name, family), answer in resolver.poll(deadline_s - time.monotonic()):
                found[name][family] = answer
    finally:
        resolver.close()
    return dict(found)
