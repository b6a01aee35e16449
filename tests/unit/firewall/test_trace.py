"""Trace messages of the kernel: what is read of them, and that broken ones do no harm."""

from __future__ import annotations

import random
import struct
from typing import Any

import pytest

from tidegate.firewall.netlink import encode_attribute
from tidegate.firewall.trace import MAX_IDS, Follower, Kind, Outcome, TraceEvent, parse_messages

TRACE = (10 << 8) | 17


def be32(value: int) -> bytes:
    return struct.pack("!i" if value < 0 else "!I", value)


def message(*attributes: bytes, family: int = 1, kind: int = TRACE) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def rule(code: int, *extra: bytes, target: bytes = b"", handle: int = 7, **more: Any) -> bytes:
    verdict = encode_attribute(1, be32(code)) + (encode_attribute(2, target + b"\0") if target else b"")
    return message(
        encode_attribute(6, be32(42)),
        encode_attribute(4, be32(3)),
        encode_attribute(1, b"tidegate\0"),
        encode_attribute(2, b"input\0"),
        encode_attribute(3, struct.pack("!Q", handle)),
        encode_attribute(5 | 0x8000, verdict),
        *extra,
        **more,
    )


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0, Outcome.DROP),
        (1, Outcome.ACCEPT),
        (2, Outcome.STOLEN),
        (-1, Outcome.CONTINUE),
        (-2, Outcome.BREAK),
        (-5, Outcome.RETURN),
        (99, Outcome.UNKNOWN),
        (-99, Outcome.UNKNOWN),
        (1 << 16, Outcome.DROP),  # a drop with an error number in its upper half
    ],
)
def test_a_rules_verdict(code: int, outcome: Outcome) -> None:
    (event,) = parse_messages(rule(code))
    assert event == TraceEvent(
        packet=42, family="inet", table="tidegate", chain="input", kind=Kind.RULE, handle=7, outcome=outcome
    )


@pytest.mark.parametrize(("code", "outcome"), [(-3, Outcome.JUMP), (-4, Outcome.GOTO)])
def test_a_jump_has_its_target(code: int, outcome: Outcome) -> None:
    (event,) = parse_messages(rule(code, target=b"svc_web"))
    assert (event.outcome, event.target) == (outcome, "svc_web")


def test_a_queue_has_its_number() -> None:
    (event,) = parse_messages(rule((9 << 16) | 3))
    assert (event.outcome, event.queue) == (Outcome.QUEUE, 9)
    (bypass,) = parse_messages(rule((9 << 16) | 0x8003))
    assert (bypass.outcome, bypass.queue) == (Outcome.QUEUE, 9)


def test_a_policy_and_its_headers() -> None:
    raw = message(
        encode_attribute(6, be32(1)),
        encode_attribute(4, be32(1)),
        encode_attribute(1, b"t\0"),
        encode_attribute(2, b"c\0"),
        encode_attribute(16, be32(0)),
        encode_attribute(8, b"n" * 20),
        encode_attribute(9, b"t" * 20),
        encode_attribute(14, be32(0x40000000)),
        encode_attribute(999, b"of a later kernel"),
        family=10,
    )
    (event,) = parse_messages(raw)
    assert (event.kind, event.outcome, event.family, event.handle) == (Kind.POLICY, Outcome.DROP, "ip6", None)
    assert (event.network, event.transport, event.mark) == (b"n" * 20, b"t" * 20, 0x40000000)


def test_several_messages_and_others_between_them() -> None:
    other = message(encode_attribute(1, b"t\0"), kind=(10 << 8) | 6)
    assert [event.handle for event in parse_messages(rule(1, handle=1) + other + rule(0, handle=2))] == [1, 2]


@pytest.mark.parametrize("missing", [1, 4, 6])
def test_without_table_kind_or_number_it_is_no_event(missing: int) -> None:
    parts = {1: encode_attribute(1, b"t\0"), 4: encode_attribute(4, be32(3)), 6: encode_attribute(6, be32(1))}
    del parts[missing]
    assert list(parse_messages(message(*parts.values()))) == []


def test_broken_messages_do_no_harm() -> None:
    whole = rule(-3, encode_attribute(8, b"n" * 20), encode_attribute(9, b"t" * 20), target=b"svc_web")
    for length in range(len(whole)):
        for event in parse_messages(whole[:length]):
            assert event.packet == 42  # what is left of it is still read as what it is
    chance = random.Random(4)
    read = 0
    for _ in range(3000):
        broken = bytearray(whole)
        for _ in range(chance.randint(1, 6)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        read += len(list(parse_messages(bytes(broken))))
    assert 0 < read < 3000


def event(packet: int, *, network: bytes = b"", transport: bytes = b"", handle: int = 1) -> TraceEvent:
    return TraceEvent(
        packet=packet,
        family="inet",
        table="t",
        chain="c",
        kind=Kind.RULE,
        handle=handle,
        outcome=Outcome.CONTINUE,
        network=network,
        transport=transport,
    )


def test_the_follower_follows_one_packet_over_copies() -> None:
    follower = Follower(lambda network, transport: transport == b"ours")
    assert not follower.takes(event(1))  # nothing known yet
    assert follower.takes(event(1, transport=b"ours"))
    assert follower.takes(event(1))
    assert not follower.takes(event(2, transport=b"theirs"))
    assert not follower.takes(event(2))
    assert follower.takes(event(3, transport=b"ours"))  # the same packet after a copy
    assert follower.takes(event(3))
    assert not follower.takes(event(1, transport=b"theirs"))  # a number that is used again
    assert not follower.takes(event(1))


def test_the_follower_remembers_so_many_numbers_and_no_more() -> None:
    follower = Follower(lambda network, transport: True)
    for number in range(MAX_IDS + 1):
        follower.takes(event(number, network=b"n"))
    assert follower.takes(event(0))
    assert not follower.takes(event(MAX_IDS))
