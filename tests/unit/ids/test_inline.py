"""Field rules through the binding: streams and datagrams, the worker's words, its refusals."""

from __future__ import annotations

import json
import os
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
