"""DNS names in rules: what an answer may say, how long it is believed, and that no hostile message does harm."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import TidegateError
from tidegate.firewall import blocks, compile, nameplan, names, nameset  # noqa: A004 - the room's own name for it
from tidegate.firewall.dnsmessage import MAX_ALIASES, MAX_POINTERS, MAX_RECORDS, Trouble, encode_question, parse_answer
from tidegate.firewall.errors import KernelRefused
from tidegate.firewall.nameplan import (
    Answer,
    Limits,
    NameState,
    adopt,
    expire,
    is_host,
    parse_resolv_conf,
    take_answers,
)
from tidegate.firewall.resolver import MAX_STRAYS, Resolver, parse_server, resolve_once

NAME, IDENT = "plc.example.com", 0x1234
A, B, C = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"), IPv6Address("2001:db8::1")
LIMITS = Limits()
NONE: dict[int, Answer | None] = {4: None, 6: None}


def found(*addresses: IPv4Address | IPv6Address, ttl_s: int = 300) -> dict[int, Answer | None]:
    return {
        family: Answer(addresses=tuple(a for a in addresses if a.version == family), ttl_s=ttl_s) for family in (4, 6)
    }


def answer(*rrsets: str, family: int = 4, name: str = NAME, ident: int = IDENT, rcode: int = 0) -> bytes:
    """Return the answer that a server would build, by a library that is not ours."""
    query = dns.message.make_query(name, "A" if family == 4 else "AAAA", id=ident)
    response = dns.message.make_response(query, recursion_available=True)
    response.set_rcode(dns.rcode.Rcode(rcode))
    response.answer = [_rrset(*line.split(maxsplit=3)) for line in rrsets]
    return response.to_wire(max_size=65_535)


def _rrset(owner: str, ttl_s: str, kind: str, value: str) -> dns.rrset.RRset:
    return dns.rrset.from_text(dns.name.from_text(owner), int(ttl_s), "IN", kind, value)


def addresses(data: bytes, family: int = 4) -> tuple[str, ...]:
    parsed = parse_answer(data, NAME, family, IDENT)
    assert isinstance(parsed, Answer), parsed
    return tuple(map(str, parsed.addresses))


# -- how long ----------------------------------------------------------------------------------------------------------


def test_the_set_in_the_kernel_is_as_large_as_what_we_put_there() -> None:
    assert nameplan.MAX_ADDRESSES == blocks.DNS_SET_SIZE
    assert nameset.TABLE == compile.TABLE


@pytest.mark.parametrize(("ttl_s", "counts_s"), [(0, 30), (29, 30), (31, 31), (86_401, 86_400), (2**31 - 1, 86_400)])
def test_ttl_is_bounded(ttl_s: int, counts_s: int) -> None:
    state = take_answers(NameState(name=NAME), found(A, ttl_s=ttl_s), 1000.0, LIMITS)
    assert state.held[A].fresh_until_s == 1000 + counts_s + LIMITS.linger_s
    assert state.held[A].gone_at_s == state.held[A].fresh_until_s + 3600


def test_next_question_comes_when_the_lowest_ttl_ends() -> None:
    state = take_answers(NameState(name=NAME), found(A, C, ttl_s=300), 1000.0, LIMITS)
    assert state.ask_at_s == 1300
    state = take_answers(NameState(name=NAME), found(A, ttl_s=300), 1000.0, LIMITS)
    assert state.ask_at_s == 1000 + LIMITS.negative_ttl_s  # no IPv6 address: a minute


def test_an_address_that_is_not_named_any_more_ends_with_its_ttl() -> None:
    state = take_answers(NameState(name=NAME), found(A, ttl_s=300), 0.0, LIMITS)
    state = take_answers(state, found(B, ttl_s=300), 300.0, LIMITS)
    assert set(state.seconds_left(304.9)) == {A, B}  # its last user has a moment to connect
    assert set(state.seconds_left(305.0)) == {B}
    assert set(expire(state, 305.0).held) == {B}


def test_a_name_that_is_gone_closes_after_its_ttl() -> None:
    state = take_answers(NameState(name=NAME), found(A, ttl_s=300), 0.0, LIMITS)
    state = take_answers(state, found(), 300.0, LIMITS)
    assert state.failures == 0
    assert state.seconds_left(305.0) == {}


def test_no_answer_keeps_addresses_for_the_grace_and_not_longer() -> None:
    state, now_s = take_answers(NameState(name=NAME), found(A, C, ttl_s=300), 0.0, LIMITS), 300.0
    asked = 0
    while state.held:
        state = expire(take_answers(state, NONE, now_s, LIMITS), now_s)
        assert 5 <= state.ask_at_s - now_s <= 60
        assert set(state.held) in ({A, C}, set())
        now_s, asked = min(state.ask_at_s, state.wake_at_s), asked + 1
    assert now_s == pytest.approx(300 + 5 + 3600, abs=60)
    assert asked < 100
    assert state.failures == asked


def test_one_family_without_an_answer_keeps_its_addresses_only() -> None:
    state = take_answers(NameState(name=NAME), found(A, C), 0.0, LIMITS)
    state = take_answers(state, {4: Answer(addresses=(B,), ttl_s=300), 6: None}, 300.0, LIMITS)
    assert set(state.seconds_left(400.0)) == {B, C}
    assert state.failures == 1
    assert state.ask_at_s == 305


def test_addresses_are_bounded_and_the_newest_stay() -> None:
    old = [IPv4Address(f"10.0.0.{n}") for n in range(1, 65)]
    new = [IPv4Address(f"10.0.1.{n}") for n in range(1, 65)]
    state = take_answers(NameState(name=NAME), found(*old), 0.0, LIMITS)
    state = take_answers(state, found(*new), 10.0, LIMITS)
    assert set(state.held) == set(new)


def test_a_restart_believes_nothing_longer() -> None:
    state = take_answers(NameState(name=NAME), found(A, ttl_s=300), 0.0, LIMITS)
    again = adopt(NAME, state.seconds_left(100.0), 5000.0, LIMITS)
    assert again.held[A].gone_at_s - 5000 == state.held[A].gone_at_s - 100
    assert again.held[A].fresh_until_s - 5000 == state.held[A].fresh_until_s - 100
    assert again.ask_at_s == 5000
    assert adopt(NAME, {A: 1e9}, 0.0, LIMITS).held[A].gone_at_s <= 86_400 + 5 + 3600
    assert adopt(NAME, {A: 0.0}, 0.0, LIMITS).seconds_left(0.0) == {}  # put there by hand, without a time


@given(
    st.lists(
        st.tuples(
            st.floats(0, 5000), st.one_of(st.none(), st.lists(st.integers(1, 200), max_size=80)), st.integers(0, 2**31)
        ),
        max_size=30,
    )
)
@settings(max_examples=200, deadline=None)
def test_nothing_outlives_its_last_answer_by_more_than_ttl_and_grace(
    steps: list[tuple[float, list[int] | None, int]],
) -> None:
    state, now_s = NameState(name=NAME), 0.0
    latest: dict[object, float] = {}
    for pause_s, listed, ttl_s in steps:
        now_s += pause_s
        answered = (
            None if listed is None else nameplan.pick_addresses((IPv4Address(0x0A000000 + n) for n in listed), ttl_s)
        )
        if answered is not None:
            latest.update((a, now_s + LIMITS.clamp_ttl(answered.ttl_s) + 5 + 3600) for a in answered.addresses)
        state = take_answers(state, {4: answered, 6: answered and Answer()}, now_s, LIMITS)
        assert len(state.held) <= nameplan.MAX_ADDRESSES
        assert all(now_s < now_s + left_s <= latest[a] + 1e-6 for a, left_s in state.seconds_left(now_s).items())
        assert state.ask_at_s > now_s
        if answered is not None:
            assert set(answered.addresses) <= set(state.held)


# -- what is a host ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.1", "0.1.2.3", "224.0.0.1", "239.255.255.250", "255.255.255.255"),
        *("240.0.0.1", "169.254.169.254", "::", "::1", "ff02::1", "fe80::1"),
        *("::ffff:192.0.2.1", "::ffff:127.0.0.1", "::192.0.2.1"),
    ],
)
def test_no_host(text: str) -> None:
    assert not is_host(ip_address(text))


@pytest.mark.parametrize("text", ["192.0.2.1", "10.0.0.1", "192.168.1.1", "2001:db8::1", "fd00::1", "64:ff9b::1"])
def test_host(text: str) -> None:
    assert is_host(ip_address(text))


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_our_question_is_one_that_others_read(family: int) -> None:
    message = dns.message.from_wire(encode_question("Plc.Example.COM", family, IDENT))
    assert message.id == IDENT
    assert message.flags == dns.flags.RD
    (asked,) = message.question
    assert asked.name.to_text() == "plc.example.com."
    assert asked.rdtype == (1 if family == 4 else 28)


def test_addresses_at_the_end_of_a_chain() -> None:
    data = answer(
        "plc.example.com. 300 CNAME a.example.net.",
        "A.example.net. 100 CNAME b.example.org.",
        "b.example.org. 200 A 192.0.2.2",
        "b.example.org. 200 A 192.0.2.1",
        "evil.example.org. 1 A 203.0.113.66",
    )
    assert parse_answer(data, NAME, 4, IDENT) == Answer(addresses=(A, B), ttl_s=100)


@pytest.mark.parametrize(
    "rrsets",
    [
        ["evil.example.com. 300 A 203.0.113.66"],
        ["x.plc.example.com. 300 A 203.0.113.66"],
        ["plc.example.com. 300 AAAA 2001:db8::66"],
        ["plc.example.com. 300 TXT x"],
        ["plc.example.com. 300 CNAME a.example.net."],
        [],
    ],
)
def test_records_of_others_are_no_address(rrsets: list[str]) -> None:
    parsed = parse_answer(answer(*rrsets), NAME, 4, IDENT)
    assert isinstance(parsed, Answer)
    assert parsed.addresses == ()


@pytest.mark.parametrize(("rcode", "expected"), [(2, Trouble.REFUSED), (5, Trouble.REFUSED), (3, None)])
def test_rcode(rcode: int, expected: Trouble | None) -> None:
    parsed = parse_answer(answer(rcode=rcode), NAME, 4, IDENT)
    assert parsed is expected or (expected is None and isinstance(parsed, Answer) and not parsed.addresses)


GOOD = answer("plc.example.com. 300 A 192.0.2.1")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (answer("plc.example.com. 300 A 192.0.2.1", ident=IDENT ^ 1), Trouble.FOREIGN),
        (answer("evil.example.com. 300 A 192.0.2.1", name="evil.example.com"), Trouble.FOREIGN),
        (answer("plc.example.com. 300 AAAA 2001:db8::1", family=6), Trouble.FOREIGN),
        (encode_question(NAME, 4, IDENT), Trouble.FOREIGN),
        (GOOD[:2] + bytes((GOOD[2] | 0x28, GOOD[3])) + GOOD[4:], Trouble.FOREIGN),  # another opcode
        (b"", Trouble.FOREIGN),
        (GOOD[:11], Trouble.FOREIGN),
        (GOOD[:2] + bytes((GOOD[2] | 2, GOOD[3])) + GOOD[4:], Trouble.TRUNCATED),
        (GOOD[:-1], Trouble.MALFORMED),
        (GOOD[:6] + b"\0\2" + GOOD[8:], Trouble.MALFORMED),  # more records than there are
        (GOOD[:6] + b"\xff\xff" + GOOD[8:], Trouble.MALFORMED),
        (answer("plc.example.com. 300 CNAME plc.example.com."), Trouble.MALFORMED),
        (answer("plc.example.com. 9 CNAME a.b.", "a.b. 9 CNAME plc.example.com."), Trouble.MALFORMED),
        (GOOD[:33] + b"\xc0\x21" + GOOD[35:], Trouble.MALFORMED),  # the owner is a pointer to itself
        (GOOD[:33] + b"\xc0\xff" + GOOD[35:], Trouble.MALFORMED),  # forwards
        (GOOD[:33] + b"\x80\x0c" + GOOD[35:], Trouble.MALFORMED),  # a label of a reserved kind
        (GOOD[:43] + b"\0\5" + GOOD[45:] + b"\0", Trouble.MALFORMED),  # an A record of five bytes
    ],
)
def test_hostile_message(data: bytes, expected: Trouble) -> None:
    assert parse_answer(data, NAME, 4, IDENT) is expected


def test_a_long_chain_has_an_end() -> None:
    def chain(links: int) -> bytes:
        lines = [f"{NAME if n == 0 else f'n{n}.x'}. 60 CNAME n{n + 1}.x." for n in range(links)]
        return answer(*lines, f"n{links}.x. 60 A 192.0.2.1")

    assert addresses(chain(MAX_ALIASES)) == ("192.0.2.1",)
    assert parse_answer(chain(MAX_ALIASES + 1), NAME, 4, IDENT) is Trouble.MALFORMED


def test_pointers_to_pointers_have_an_end() -> None:
    def chain(pointers: int) -> bytes:
        """A record with the root and ``pointers - 1`` pointers, each to the one before, and another record there."""
        places = [44, *range(45, 45 + 2 * (pointers - 1), 2)]
        value = b"\0" + b"".join(struct.pack(">H", 0xC000 | place) for place in places[:-1])
        first = b"\0" + struct.pack(">HHIH", 16, 1, 60, len(value)) + value
        second = struct.pack(">HHHIH", 0xC000 | places[-1], 16, 1, 60, 0)
        return GOOD[:6] + b"\0\2" + GOOD[8:33] + first + second

    assert isinstance(parse_answer(chain(MAX_POINTERS), NAME, 4, IDENT), Answer)
    assert parse_answer(chain(MAX_POINTERS + 1), NAME, 4, IDENT) is Trouble.MALFORMED


def test_a_thousand_addresses_become_the_lowest_64() -> None:
    many = [f"plc.example.com. 60 A 10.0.{n >> 8}.{n & 255}" for n in range(1000)]
    parsed = parse_answer(answer(*random.Random(1).sample(many, 1000)), NAME, 4, IDENT)
    assert isinstance(parsed, Answer)
    assert list(parsed.addresses) == [IPv4Address(0x0A000000 + n) for n in range(64)]
    assert parsed.left_out == 1000 - 64
    more = [f"plc.example.com. 60 A 10.1.{n >> 8}.{n & 255}" for n in range(MAX_RECORDS + 1)]
    assert parse_answer(answer(*more), NAME, 4, IDENT) is Trouble.MALFORMED


def test_addresses_that_are_no_hosts_are_left_out() -> None:
    data = answer(
        "plc.example.com. 60 A 127.0.0.1", "plc.example.com. 60 A 224.0.0.1", "plc.example.com. 60 A 192.0.2.1"
    )
    parsed = parse_answer(data, NAME, 4, IDENT)
    assert parsed == Answer(addresses=(A,), ttl_s=60, left_out=2)


def test_ttl_with_the_topmost_bit_is_0() -> None:
    data = GOOD[:39] + b"\xff\xff\xff\xff" + GOOD[43:]
    assert parse_answer(data, NAME, 4, IDENT) == Answer(addresses=(A,), ttl_s=0)


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_noise_is_never_an_address(noise: bytes) -> None:
    assert not isinstance(parse_answer(noise, NAME, 4, IDENT), Answer)


def test_changed_bytes_raise_nothing_and_end_soon() -> None:
    chance = random.Random(7)
    base = answer(
        "plc.example.com. 300 CNAME a.example.net.", "a.example.net. 60 A 192.0.2.1", "a.example.net. 60 A 192.0.2.2"
    )
    began_s = time.monotonic()
    for _ in range(20_000):
        data = bytearray(base[: chance.randint(12, len(base))] if chance.random() < 0.3 else base)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        parse_answer(bytes(data), NAME, 4, IDENT)
    worst = struct.pack(">6H", IDENT, 0x8180, 1, MAX_RECORDS, 0, 0) + encode_question(NAME, 4, IDENT)[12:]
    long = len(worst)
    worst += b"\1a" * 126 + b"\0" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes(4)
    worst += (struct.pack(">H", 0xC000 | long) + struct.pack(">HHIH", 1, 1, 60, 4) + bytes(4)) * (MAX_RECORDS - 1)
    assert isinstance(parse_answer(worst, NAME, 4, IDENT), Answer)
    assert time.monotonic() - began_s < 8


# -- asking ------------------------------------------------------------------------------------------------------------


def _pair() -> tuple[socket.socket, socket.socket]:
    """A UDP and a listening TCP socket on one loopback port: a port free for UDP may be held by another test."""
    for tries_left in reversed(range(20)):
        udp, tcp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket()
        try:
            udp.bind(("127.0.0.1", 0))
            tcp.bind(udp.getsockname())
            tcp.listen()
        except OSError as error:
            udp.close()
            tcp.close()
            if error.errno != errno.EADDRINUSE or not tries_left:
                raise
        else:
            return udp, tcp
    raise AssertionError("unreachable: the last try raises")


class Server:
    """A DNS server on loopback whose answers the test makes."""

    def __init__(self, reply: Callable[[bytes, bool], list[bytes]]) -> None:
        self.udp, self.tcp = _pair()
        self.address: tuple[str, int] = self.udp.getsockname()
        self.reply, self.asked = reply, [0, 0]
        self.keeps_open = self._is_closing = False
        self._open: list[socket.socket] = []
        self.sources: set[tuple[str, int]] = set()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._datagrams, self._streams)]
        for thread in self._threads:
            thread.start()

    def _datagrams(self) -> None:
        while True:
            data, source = self.udp.recvfrom(512)
            if not data:
                return
            self.asked[0] += 1
            self.sources.add(source)
            for message in self.reply(data, False):
                self.udp.sendto(message, source)

    def _streams(self) -> None:
        while True:
            peer = self.tcp.accept()[0]
            self._open.append(peer)
            data = peer.recv(600)
            if self._is_closing:
                return
            self.asked[1] += bool(data)
            for message in self.reply(data[2:], True) if data else []:
                peer.sendall(struct.pack(">H", len(message)) + message)
            if not self.keeps_open:
                peer.close()

    def close(self) -> None:
        self._is_closing = True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self.address)
        socket.create_connection(self.address).close()
        for thread in self._threads:
            thread.join()
        for peer in self._open:
            peer.close()
        self.udp.close()
        self.tcp.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[bytes, bool], list[bytes]]], Server]]:
    servers: list[Server] = []

    def start(reply: Callable[[bytes, bool], list[bytes]]) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def reply(data: bytes, *, a: tuple[str, ...] = ("192.0.2.1",), flags: int = 0, ident: int = 0, rcode: int = 0) -> bytes:
    query = dns.message.from_wire(data)
    response = dns.message.make_response(query, recursion_available=True)
    response.id ^= ident
    response.flags |= flags
    response.set_rcode(dns.rcode.Rcode(rcode))
    if query.question[0].rdtype == 1 and a:
        response.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "A", *a)]
    return response.to_wire(max_size=65_535)


def ask(*servers: tuple[str, int], timeout_s: float = 0.3) -> tuple[str, ...] | None:
    (found,) = resolve_once([NAME], servers, within_s=5.0, timeout_s=timeout_s).values()
    return None if found[4] is None else tuple(map(str, found[4].addresses))


def test_asks_and_is_answered(serve) -> None:
    server = serve(lambda data, _: [reply(data)])
    assert ask(server.address) == ("192.0.2.1",)
    assert server.asked == [2, 0]
    assert len(server.sources) == 2  # a port of its own for each question


def test_wrong_ids_are_ignored_until_the_true_answer(serve) -> None:
    def spoofed(data: bytes, _: bool) -> list[bytes]:
        return [*(reply(data, a=("203.0.113.66",), ident=n) for n in range(1, 20)), reply(data)]

    assert ask(serve(spoofed).address) == ("192.0.2.1",)


def test_too_many_wrong_ids_end_the_turn(serve) -> None:
    server = serve(lambda data, _: [reply(data, a=("203.0.113.66",), ident=n) for n in range(1, MAX_STRAYS + 20)])
    began_s = time.monotonic()
    assert ask(server.address, timeout_s=4.0) is None
    assert time.monotonic() - began_s < 2  # there was no waiting for the timeout


def test_another_sender_is_not_heard(serve) -> None:
    """The kernel drops what does not come from the asked address and port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        server: list[Server] = []

        def from_elsewhere(data: bytes, _: bool) -> list[bytes]:
            for source in server[0].sources:
                other.sendto(reply(data, a=("203.0.113.66",)), source)
            return []

        server.append(serve(from_elsewhere))
        assert ask(server[0].address) is None


def test_truncated_answers_come_over_tcp(serve) -> None:
    many = tuple(f"10.0.0.{n}" for n in range(1, 60))
    server = serve(lambda data, tcp: [reply(data, a=many) if tcp else reply(data, a=(), flags=dns.flags.TC)])
    assert ask(server.address) == many
    assert server.asked == [2, 2]


@pytest.mark.parametrize("stubborn", ["truncated", "other question", "nothing", "half"])
def test_bad_tcp_answers_are_no_answer(serve, stubborn: str) -> None:
    def bad(data: bytes, tcp: bool) -> list[bytes]:
        if not tcp:
            return [reply(data, a=(), flags=dns.flags.TC)]
        if stubborn == "truncated":
            return [reply(data, flags=dns.flags.TC)]
        return {"other question": [reply(data, ident=1)], "nothing": [], "half": [reply(data)[:20]]}[stubborn]

    server, began_s = serve(bad), time.monotonic()
    server.keeps_open = stubborn == "other question"
    assert ask(server.address, timeout_s=2.0) is None
    assert time.monotonic() - began_s < 2  # known at once: a stream has no stray messages


def test_next_resolver_is_asked(serve) -> None:
    silent, failing = serve(lambda data, _: []), serve(lambda data, _: [reply(data, a=(), rcode=2)])
    good = serve(lambda data, _: [reply(data)])
    assert ask(silent.address, failing.address, good.address) == ("192.0.2.1",)


def test_the_resolver_that_answered_is_asked_first(serve) -> None:
    silent, good = serve(lambda data, _: []), serve(lambda data, _: [reply(data)])
    resolver = Resolver([silent.address, good.address], timeout_s=0.3)
    for number in range(5):
        resolver.ask(f"n{number}.example.com", 4)
        while not resolver.is_idle:
            for _, answered in resolver.poll(1):
                assert answered is not None
    assert silent.asked == [1, 0]
    assert good.asked == [5, 0]


def test_no_resolver_is_no_answer() -> None:
    assert ask() is None
    began_s = time.monotonic()
    assert ask(("127.0.0.1", 9)) is None  # refused by ICMP: known at once
    assert time.monotonic() - began_s < 0.3


def test_a_silent_resolver_does_not_hold_up_other_names(serve) -> None:
    """Forty names, of which one is never answered, are through in the time of one."""
    server = serve(lambda data, _: [] if b"dead" in data else [reply(data)])
    wanted = [*(f"n{n}.example.com" for n in range(39)), "dead.example.com"]
    began_s = time.monotonic()
    got = resolve_once(wanted, [server.address], within_s=5, timeout_s=0.5)
    assert time.monotonic() - began_s < 2.5
    assert [name for name, one in got.items() if one[4] is None] == ["dead.example.com"]


def test_resolver_leaves_no_descriptor_behind(serve) -> None:
    server = serve(lambda data, tcp: [reply(data) if tcp else reply(data, a=(), flags=dns.flags.TC)])
    before = len(list(Path("/proc/self/fd").iterdir()))
    resolver = Resolver([server.address], timeout_s=0.3)
    for number in range(50):
        resolver.ask(f"n{number}.example.com", 4)
    resolver.poll(0.01)
    resolver.close()
    assert resolver.is_idle
    for _ in range(100):  # the server's own ends close a moment later
        if len(list(Path("/proc/self/fd").iterdir())) == before:
            return
        time.sleep(0.02)
    pytest.fail("descriptors are left")


# -- keeping -----------------------------------------------------------------------------------------------------------


class RefusingKernel:
    """Stands in for the link to the kernel and its notices: empty sets, and refusals that no test can bring about."""

    def __init__(self, *refusals: int) -> None:
        self.refusals, self.commits = list(refusals), 0
        self._silent, self._end = os.pipe()

    def elements(self, table: str, name: str) -> list[tuple[bytes, int, int]]:
        return []

    def commit(self, messages: list[bytes]) -> None:
        self.commits += 1
        if self.refusals:
            raise KernelRefused("refused", errno=self.refusals.pop(0))

    def fileno(self) -> int:
        return self._silent

    def read(self) -> list[object]:
        return []

    def close(self) -> None:
        os.close(self._silent)
        os.close(self._end)


@pytest.mark.parametrize(
    ("refusals", "told", "commits"),
    [
        ([], ["names"], 1),
        ([errno.ENOENT, errno.ENOENT], ["names"], 3),  # an element expired between our look and our change
        ([errno.ENOMEM], ["unwritten", "names"], 2),  # tried again later, without any notice
        ([errno.ENOENT] * 3, ["unwritten", "names"], 4),
        ([errno.ENOMEM] * 2, ["unwritten", "names"], 3),  # told once
    ],
)
def test_a_refused_change_is_made_again(serve, monkeypatch, refusals: list[int], told: list[str], commits: int) -> None:
    monkeypatch.setattr(names, "RETRY_S", 0.1)
    server, kernel = serve(lambda data, _: [reply(data)]), RefusingKernel(*refusals)
    resolvers = [f"{server.address[0]}:{server.address[1]}"]
    config = names.parse_names_config(names.encode_names_config([NAME], resolvers=resolvers).encode())
    keeper = names.Keeper(config, kernel, kernel)
    seen, deadline_s = [], time.monotonic() + 3
    while kernel.commits < commits and time.monotonic() < deadline_s:
        seen += [line["event_type"] for line in keeper.step()]
    kernel.close()
    assert kernel.commits == commits
    assert [kind for kind in seen if kind != "refilled"] == told


# -- configuration -----------------------------------------------------------------------------------------------------


def test_resolv_conf() -> None:
    text = "# x\nnameserver 192.0.2.1\nsearch nameserver\n nameserver  fe80::1%eth0 # y\nnameserver evil\n"
    text += "nameserver 192.0.2.1\n"
    assert parse_resolv_conf(text, 8) == ("192.0.2.1", "fe80::1%eth0")
    assert parse_resolv_conf("nameserver 192.0.2.1\nnameserver 192.0.2.2", 1) == ("192.0.2.1",)


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
        ("dns.example.com", None),
        ("192.0.2.1:0", None),
        ("192.0.2.1:x", None),
        ("", None),
    ],
)
def test_server(text: str, server: tuple[str, int] | None) -> None:
    if server is not None:
        assert parse_server(text) == server
        return
    with pytest.raises(TidegateError) as caught:
        parse_server(text)
    assert caught.value.code == "firewall.names.config"


def test_configuration_comes_back() -> None:
    line = names.encode_names_config([NAME], resolvers=["192.0.2.1"], limits=Limits(min_ttl_s=1))
    config = names.parse_names_config(line.encode())
    assert config.sets == {NAME: {4: blocks.dns_set(NAME, 4), 6: blocks.dns_set(NAME, 6)}}
    assert config.resolvers == (("192.0.2.1", 53),)
    assert config.limits == Limits(min_ttl_s=1)


def test_largest_configuration_fits() -> None:
    longest = [
        f"{n:03}." + "a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "." + "d" * 53 + ".com"
        for n in range(nameset.MAX_NAMES)
    ]
    line = names.encode_names_config(longest)
    assert len(line) < names.MAX_CONFIG_BYTES
    assert len(names.parse_names_config(line.encode()).sets) == nameset.MAX_NAMES
    with pytest.raises(TidegateError) as caught:
        names.encode_names_config([*longest, NAME])
    assert caught.value.code == "firewall.names.config"


GOOD_CONFIG = json.loads(names.encode_names_config([NAME]))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"names": {}},
        {"names": {NAME: {"4": "ban4", "6": blocks.dns_set(NAME, 6)}}},
        {"names": {NAME: {"4": blocks.dns_set(NAME, 6), "6": blocks.dns_set(NAME, 4)}}},
        {"names": {NAME: {"4": blocks.dns_set(NAME, 4)}}},
        {"names": [NAME]},
        {"resolvers": ["evil"]},
        {"resolvers": ["192.0.2.1"] * 9},
        {"limits": {"grace_s": -1}},
        {"limits": {"grace_s": "1"}},
        {"limits": {"other": 1}},
        {"timeout_s": 0},
        {"more": 1},
    ],
)
def test_bad_configuration(change: dict[str, object]) -> None:
    with pytest.raises(TidegateError) as caught:
        names.parse_names_config(json.dumps(GOOD_CONFIG | change).encode())
    assert caught.value.code == "firewall.names.config"


@pytest.mark.parametrize("line", [b"", b"\n", b"[]", b"{", b"\xff"])
def test_no_configuration(line: bytes) -> None:
    with pytest.raises(TidegateError) as caught:
        names.parse_names_config(line)
    assert caught.value.code == "firewall.names.config"
