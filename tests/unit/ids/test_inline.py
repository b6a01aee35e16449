"""Field rules through the binding: streams and datagrams, the worker's words, its refusals."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from typing import Any

import pytest

from tidegate.base.errors import TidegateError
from tidegate.ids.inline import FieldStream, InlineQueue

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")


def config(
    protocol: str, *, memory_bytes: int = 4 << 20, mode: str = "enforce", unparsable: str = "drop", **lists: Any
) -> str:
    rule = {
        "id": 7,
        "name": "one",
        "protocol": protocol,
        "mode": mode,
        "unparsable": unparsable,
        "allow": lists.get("allow", []),
        "deny": lists.get("deny", []),
    }
    return json.dumps({"version": 1, "memory_bytes": memory_bytes, "rules": [rule]})


READS = [{"functions": [[1, 4]]}]
MODBUS = config("modbus", allow=READS)
MQTT = config("mqtt", allow=[{"actions": [[1, 1]]}, {"actions": [[3, 3]], "topics": ["plant/+/temperature"]}])


def modbus(function: int, transaction: int = 1) -> bytes:
    return transaction.to_bytes(2) + b"\0\0\0\6\1" + bytes([function]) + b"\0\x28\0\1"


def publish(topic: str, payload: bytes) -> bytes:
    body = len(topic).to_bytes(2) + topic.encode() + payload
    length, rest = b"", len(body)
    while rest > 127:
        length, rest = length + bytes([rest % 128 | 0x80]), rest // 128
    return b"\x30" + length + bytes([rest]) + body


CONNECT = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02me"


def test_reads_pass_and_writes_do_not_whatever_the_pieces():
    written = modbus(3) + modbus(6) + modbus(4)
    for size in (1, 2, 5, 7, 12, 13, len(written)):
        stream = FieldStream(MODBUS, 7)
        allowed, violations, heads = b"", [], []
        for start in range(0, len(written), size):
            passed, said, refused, is_condemned = stream.feed(written[start : start + size])
            allowed, violations, heads = allowed + passed, violations + said, heads + refused
            assert not is_condemned
        assert allowed == modbus(3) + modbus(4), size
        assert len(violations) == 1
        assert "function 6" in violations[0]
        assert heads == [modbus(6)[:8]]


def test_an_incomplete_message_is_held_back():
    stream = FieldStream(MODBUS, 7)
    assert stream.feed(modbus(3)[:11])[0] == b""
    assert stream.feed(modbus(3)[11:])[0] == modbus(3)


def test_what_is_no_message_condemns_or_passes_as_the_rule_says():
    noise = b"GET / HTTP/1.1\r\n"
    stream = FieldStream(MODBUS, 7)
    allowed, violations, _, is_condemned = stream.feed(modbus(3) + noise)
    assert (allowed, is_condemned, len(violations)) == (modbus(3), True, 1)
    assert stream.feed(modbus(3)) == (b"", [], [], True)
    lenient = FieldStream(config("modbus", unparsable="pass", allow=READS), 7)
    assert lenient.feed(noise)[0] == noise
    assert lenient.feed(modbus(6))[0] == modbus(6)


def test_observing_reports_and_passes():
    stream = FieldStream(config("modbus", mode="observe", allow=READS), 7)
    allowed, violations, heads, is_condemned = stream.feed(modbus(6) + modbus(3))
    assert (allowed, heads, is_condemned, len(violations)) == (modbus(6) + modbus(3), [], False, 1)


def test_a_payload_is_not_held_and_a_forbidden_message_ends_the_stream():
    payload = modbus(3) * 10_000  # looks like anything
    stream = FieldStream(MQTT, 7)
    assert stream.feed(CONNECT)[0] == CONNECT
    wanted, other = publish("plant/1/temperature", payload), publish("plant/1/valve", payload)
    passed, refused, ends = b"", [], []
    sent = wanted + wanted + other + wanted
    for start in range(0, len(sent), 4000):
        allowed, violations, _, is_condemned = stream.feed(sent[start : start + 4000])
        passed, refused, ends = passed + allowed, refused + violations, [*ends, is_condemned]
    assert passed == wanted + wanted
    assert len(refused) == 1
    assert "plant/1/valve" in refused[0]
    assert ends == sorted(ends)
    assert ends[-1]


@pytest.mark.parametrize(
    ("protocol", "allow", "good", "bad"),
    [
        (
            "dns",
            [{"names": ["*.example.com"]}],
            bytes.fromhex("000101000001000000000000") + b"\x03www\x07example\x03com\0\0\1\0\1",
            bytes.fromhex("000101000001000000000000") + b"\x03www\x07example\x03org\0\0\1\0\1",
        ),
        ("coap", [{"methods": [[1, 1]], "paths": ["/a/*"]}], b"\x40\x01\0\1\xb1a\x01b", b"\x40\x01\0\1\xb1b\x01b"),
        ("modbus", READS, modbus(3), modbus(3) + modbus(6)),
    ],
)
def test_a_datagram_is_all_or_nothing(protocol: str, allow: list[dict[str, object]], good: bytes, bad: bytes):
    stream = FieldStream(config(protocol, allow=allow), 7, datagram=True)
    assert stream.feed(good) == (good, [], [], False)
    for refused in (bad, good[:-1], good + b"\xff", b""):
        assert stream.feed(refused)[0] == b"", refused
    assert stream.feed(good)[0] == good  # each is judged by itself


def dnp3(function: int) -> bytes:
    """A request for class 1 data, or whatever ``function`` makes of it (IEEE 1815, 9.2)."""

    def checked(block: bytes) -> bytes:
        crc = 0
        for byte in block:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ 0xA6BC if crc & 1 else crc >> 1
        return block + (~crc & 0xFFFF).to_bytes(2, "little")

    body = b"\xc0\xc0" + bytes([function]) + b"\x3c\x02\x06"
    return checked(b"\x05\x64" + bytes([5 + len(body)]) + b"\xc4\x0a\0\x01\0") + checked(body)


ANYTHING: dict[str, list[dict[str, object]]] = {
    "dnp3": [{"functions": [[0, 1]]}],
    "bacnet": [{"objects": [[0, 8]]}],
    "coap": [{"methods": [[1, 1]]}],
    "dns": [{"names": ["example.com"]}],
}
SAMPLES = {
    "modbus": [modbus(3), modbus(6), modbus(4)],
    "mqtt": [CONNECT, publish("plant/1/temperature", b"x" * 300), publish("plant/1/valve", b"y"), b"\xc0\x00"],
    "dnp3": [dnp3(1), dnp3(5), dnp3(1)],
    "bacnet": [bytes.fromhex("810a001101040005010c0c023fffff1955"), bytes.fromhex("810b000c0120ffff00ff1008")],
    "coap": [b"\x00\x01", b"\x20\x01\xb1a", b"\x00\xe1"],
    "dns": [b"\x00\x1d" + bytes.fromhex("000101000001000000000000") + b"\x07example\x03com\0\0\1\0\1"],
}


@pytest.mark.parametrize("protocol", SAMPLES)
def test_what_passes_does_not_depend_on_the_pieces(protocol: str):
    rules = (
        MQTT if protocol == "mqtt" else MODBUS if protocol == "modbus" else config(protocol, allow=ANYTHING[protocol])
    )
    total = 0
    for seed in range(300):
        dice = random.Random(seed)
        sent = bytearray(b"".join(dice.choices(SAMPLES[protocol], k=dice.randint(1, 6))))
        if protocol == "mqtt" and dice.random() < 0.8:
            sent[:0] = CONNECT
        for _ in range(dice.choice((0, 0, 1, 3))):
            sent[dice.randrange(len(sent))] = dice.randrange(256)
        whole, pieces = FieldStream(rules, 7), FieldStream(rules, 7)
        expected = whole.feed(bytes(sent))
        passed, ended, at = b"", False, 0
        while at < len(sent):
            size = dice.randint(1, 9)
            allowed, _, _, ended = pieces.feed(bytes(sent[at : at + size]))
            passed, at = passed + allowed, at + size
        assert (passed, ended) == (expected[0], expected[3]), (seed, bytes(sent))
        total += len(passed)
    assert total > 1000  # otherwise it proves nothing


@pytest.mark.parametrize("protocol", SAMPLES)
def test_an_empty_datagram_is_no_message(protocol: str):
    rules = (
        MQTT if protocol == "mqtt" else MODBUS if protocol == "modbus" else config(protocol, allow=ANYTHING[protocol])
    )
    allowed, violations, _, _ = FieldStream(rules, 7, datagram=True).feed(b"")
    assert (allowed, len(violations)) == (b"", 1)


@pytest.mark.parametrize(
    ("document", "rule"),
    [
        ("{", 7),
        ("[]", 7),
        (MODBUS.replace('"version": 1', '"version": 2'), 7),
        (MODBUS.replace("functions", "function"), 7),
        (MODBUS, 8),
        (config("modbus", allow=READS, memory_bytes=1024), 7),
        (config("modbus", allow=READS, memory_bytes=1 << 40), 7),
    ],
)
def test_a_configuration_that_is_none_is_refused(document: str, rule: int):
    with pytest.raises(TidegateError) as caught:
        FieldStream(document, rule)
    assert caught.value.code == "ids.config.invalid"


def test_queue_numbers_have_sixteen_bits():
    for number in (-1, 65_536):
        with pytest.raises(TidegateError) as caught:
            InlineQueue(number, MODBUS)
        assert caught.value.code == "ids.config.invalid"


def run_worker(
    arguments: list[str], stdin: bytes, *, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[bytes]:
    command = [*before, sys.executable, "-m", "tidegate.ids.inline", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=15, check=False)


def test_the_worker_names_what_it_cannot_use():
    assert run_worker([], b"").returncode == 2
    assert run_worker(["--queue", "x"], b"").returncode == 2
    for stdin in (b"", b"{}", b"{}\n", b"x" * 100 + b"\n"):
        done = run_worker(["--queue", "61000"], stdin)
        assert done.returncode == 3
        assert json.loads(done.stdout)["code"] == "ids.config.invalid"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a capability up")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="the program setpriv (util-linux) is not installed")
def test_the_worker_says_which_privilege_it_lacks():
    done = run_worker(["--queue", "61000"], MODBUS.encode() + b"\n", before=("setpriv", "--bounding-set", "-net_admin"))
    assert done.returncode == 4
    assert json.loads(done.stdout)["code"] == "ids.queue.permission"
