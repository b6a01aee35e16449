"""What operators may write about fields, what it becomes, and that the inspector's own reader takes it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.firewall.errors import BadField
from tidegate.firewall.field_names import KEYS, Numbers
from tidegate.firewall.fields import FieldMatch, FieldProtocol, FieldRules, encode_field_config, plan_fields

PAGE = Path(__file__).resolve().parents[3] / "docs" / "formats" / "fields.md"

EXAMPLE = """
[plc-reads]
protocol = "modbus"
allow = [{ units = [1], functions = ["read-holding-registers", 4], registers = ["10-19", "0-9", 100] }]

[broker]
protocol = "mqtt"
mode = "observe"
when_down = "open"
unparsable = "pass"
allow = [{ actions = ["connect"], clients = ["pump-*"] }, { actions = ["publish"], topics = ["plant/+/state"] }]
deny = [{ topics = ["plant/secret/#"] }]
"""


def plan(rules: dict[str, Any]) -> Any:
    return plan_fields(msgspec.convert(rules, dict[str, FieldRules]))


def one(protocol: str, **keys: list[int | str]) -> Any:
    (planned,) = plan({"rule": {"protocol": protocol, "allow": [keys]}})
    (entry,) = planned.document["allow"]
    return entry


def test_rules_are_numbered_by_their_names_and_become_numbers():
    broker, reads = plan(tomllib.loads(EXAMPLE))
    assert (broker.id, broker.name, broker.observe, broker.fail_open) == (1, "broker", True, True)
    assert (reads.id, reads.name, reads.observe, reads.fail_open) == (2, "plc-reads", False, False)
    assert reads.protocol is FieldProtocol.MODBUS
    config = json.loads(encode_field_config((broker, reads), memory_bytes=65536))
    assert (config["version"], config["memory_bytes"]) == (1, 65536)
    first, second = config["rules"]
    assert second == {
        "id": 2,
        "name": "plc-reads",
        "protocol": "modbus",
        "mode": "enforce",
        "unparsable": "drop",
        "allow": [{"units": [[1, 1]], "functions": [[3, 4]], "registers": [[0, 19], [100, 100]]}],
        "deny": [],
    }
    assert first["allow"][1] == {"actions": [[3, 3]], "topics": ["plant/+/state"]}
    assert (first["mode"], first["unparsable"]) == ("observe", "pass")


def test_a_configuration_is_one_line_whatever_names_hold():
    planned = plan({"r": {"protocol": "coap", "allow": [{"paths": ["/grün/été"]}]}})
    line = encode_field_config(planned, memory_bytes=1)
    assert line.isascii()
    assert "\n" not in line


@pytest.mark.parametrize(
    ("protocol", "key", "written", "planned"),
    [
        ("modbus", "functions", ["Write-Single-Coil"], [[5, 5]]),
        ("modbus", "functions", ["100-110", 105], [[100, 110]]),
        ("modbus", "values", [0, "65535"], [[0, 0], [65535, 65535]]),
        ("dnp3", "functions", ["read", "confirm"], [[0, 1]]),
        ("dnp3", "objects", [12, 60], [[12, 12], [60, 60]]),
        ("bacnet", "services", ["read-property", "who-is"], [[12, 12], [0x108, 0x108]]),
        ("bacnet", "services", ["confirmed:15", "network:0"], [[15, 15], [0x300, 0x300]]),
        ("bacnet", "objects", ["analog-input", "analog-output"], [[0, 1]]),
        ("mqtt", "actions", ["publish", "subscribe"], [[3, 3], [8, 8]]),
        ("mqtt", "topics", ["#"], ["#"]),
        ("coap", "methods", ["get", "PUT"], [[1, 1], [3, 3]]),
        ("coap", "paths", ["/", "/a/*"], ["/", "/a/*"]),
        ("dns", "names", ["Example.COM.", "*.b.example"], ["example.com", "*.b.example"]),
        ("dns", "types", ["AAAA", "a"], [[1, 1], [28, 28]]),
    ],
)
def test_words_ranges_and_texts(protocol, key, written, planned):
    assert one(protocol, **{key: written}) == {key: planned}


@pytest.mark.parametrize(
    ("protocol", "entry", "told"),
    [
        ("modbus", {"topics": ["a"]}, "'topics' does not belong to modbus; it has units, functions, registers, values"),
        ("modbus", {"functions": ["read-holding-register"]}, "did you mean 'read-holding-registers'?"),
        ("modbus", {"functions": ["write_single_coil"]}, "did you mean 'write-single-coil'?"),
        ("coap", {"methods": ["GETT"]}, "did you mean 'GET'?"),
        ("modbus", {"functions": [128]}, "'128' is not within 0-127"),
        ("modbus", {"registers": ["9-0"]}, "'9-0' is not within"),
        ("modbus", {"registers": ["0-65536"]}, "'0-65536' is not within"),
        ("modbus", {"registers": ["0-"]}, "no number, range or name"),
        ("modbus", {"registers": [-1]}, "'-1' is not within"),
        ("modbus", {"registers": []}, "'registers' is empty"),
        ("modbus", {}, "it has no key"),
        ("bacnet", {"services": ["confirmed:256"]}, "no number, range or name"),
        ("bacnet", {"services": ["acked:1"]}, "no number, range or name"),
        ("mqtt", {"topics": ["a/#/b"]}, "'#' stands alone and last"),
        ("mqtt", {"topics": ["a+/b"]}, "'+' stands for one whole level"),
        ("mqtt", {"topics": ["$share/g/a"]}, "judged by their filter"),
        ("mqtt", {"topics": ["a\nb"]}, "control characters"),
        ("mqtt", {"topics": [7]}, "is a number; write a text"),
        ("mqtt", {"clients": ["a*b"]}, "only at its end"),
        ("coap", {"paths": ["a"]}, "begins with '/'"),
        ("coap", {"paths": ["/a/../b"]}, "no segment may be"),
        ("coap", {"paths": ["/a*"]}, "'*' stands alone and last"),
        ("coap", {"paths": ["/a?b=1"]}, "no query"),
        ("dns", {"names": ["a..b"]}, "write a name"),
        ("dns", {"names": ["grün.example"]}, "write a name"),
        ("dns", {"names": ["a.*.b"]}, "write a name"),
    ],
)
def test_what_no_message_could_match_is_refused(protocol, entry, told):
    with pytest.raises(BadField) as caught:
        plan({"rule": {"protocol": protocol, "deny": [{}, entry][1:]}})
    assert caught.value.code == "firewall.policy.field"
    assert told in caught.value.message
    assert caught.value.message.startswith("fields.rule.deny[0]")


def test_a_rule_that_says_nothing_is_refused():
    with pytest.raises(BadField):
        plan({"rule": {"protocol": "dns"}})


def test_there_are_no_more_rules_than_the_mark_has_numbers():
    rule = {"protocol": "dns", "allow": [{"types": [1]}]}
    assert plan({f"r{number}": rule for number in range(63)})[-1].id == 63
    with pytest.raises(BadField):
        plan({f"r{number}": rule for number in range(64)})


@pytest.mark.parametrize(
    "wrong", [{"protocol": "s7"}, {"protocol": "dns", "allow": [{"qnames": ["a"]}]}, {"mode": "x"}]
)
def test_unknown_words_do_not_decode(wrong):
    with pytest.raises(msgspec.ValidationError):
        plan({"rule": wrong})


def test_every_key_belongs_to_some_protocol():
    assert {key for keys in KEYS.values() for key in keys} == set(FieldMatch.__struct_fields__)
    assert set(KEYS) == {protocol.value for protocol in FieldProtocol}


def test_every_name_lies_within_its_key():
    for keys in KEYS.values():
        for key in keys.values():
            assert not isinstance(key, Numbers) or all(0 <= number <= key.last for number in key.names.values())


def test_the_page_names_every_key_of_every_protocol():
    page = PAGE.read_text()
    for protocol, keys in KEYS.items():
        section = page.split(f"### {protocol}\n", 1)[1].split("\n### ", 1)[0]
        assert [key for key in keys if f"`{key}`" not in section] == []


def test_the_inspector_reads_every_rule_that_can_be_planned():
    sensor = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
    texts = {"topic": "a/+/#", "client": "pump-*", "path": "/a/*", "name": "*.example.com"}
    rules = {
        protocol: {
            "protocol": protocol,
            "deny": [{key: [k.last] if isinstance(k, Numbers) else [texts[k.form]] for key, k in keys.items()}],
        }
        for protocol, keys in KEYS.items()
    }
    planned = plan(rules)
    config = encode_field_config(planned, memory_bytes=65536)
    for rule in planned:
        sensor.FieldStream(config, rule.id, True)


def test_a_planned_rule_decides_on_requests():
    sensor = pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
    _, reads = plan(tomllib.loads(EXAMPLE))
    stream = sensor.FieldStream(encode_field_config((reads,), memory_bytes=65536), reads.id, False)
    read, write = bytes.fromhex("00010000000601030009000b"), bytes.fromhex("000200000006010600280001")
    assert stream.feed(read[:7])[0] == b""
    passed, told, _, _ = stream.feed(read[7:] + write)
    assert passed == read
    assert told == ["modbus function 6 unit 1 register 40 value 1"]
