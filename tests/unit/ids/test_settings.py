"""How a suricata.yaml becomes settings, and what is refused."""

from __future__ import annotations

import sys

import pytest

from tidegate.base.errors import TidegateError
from tidegate.ids import settings
from tidegate.ids.settings import flatten_config, merge_settings, parse_setting, with_defaults
from tidegate.ids.suricatayaml import MAX_INCLUDES, read_suricata_config

YAML = """%YAML 1.1
---
vars:
  address-groups:
    HOME_NET: "[192.0.2.0/24]"
    DNS_SERVERS: [192.0.2.1, 192.0.2.2]
action-order: [pass, drop]
outputs:
  - fast: {enabled: no}
  - eve-log:
      enabled: yes
      types:
        - alert:
            payload: yes
        - anomaly: {enabled: no}
        - dns:
            types: [a, aaaa]
        - flow:
        - http
  - eve-log: {enabled: yes, filename: second.json}
af-packet:
  - interface: eth0
    cluster-id: 99
stream:
  reassembly: {depth: 0x10, empty: }
"""


def test_the_rules_of_the_module(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    path = tmp_path / "suricata.yaml"
    path.write_text(YAML)
    assert dict(read_suricata_config(path)) == {
        "vars.address-groups.HOME_NET": "[192.0.2.0/24]",
        "vars.address-groups.DNS_SERVERS": "[192.0.2.1,192.0.2.2]",
        "action-order": "pass,drop",
        "outputs.fast.enabled": "no",
        "outputs.eve-log.enabled": "yes",
        "outputs.eve-log.types.alert.payload": "yes",
        "outputs.eve-log.types.anomaly.enabled": "no",
        "outputs.eve-log.types.dns.types": "a,aaaa",
        "outputs.eve-log.enabled-types": "alert,dns,flow,http",
        "outputs.eve-log#2.enabled": "yes",
        "outputs.eve-log#2.filename": "second.json",
        "af-packet.0.interface": "eth0",
        "af-packet.0.cluster-id": "99",
        "stream.reassembly.depth": "0x10",
        "stream.reassembly.empty": "",
    }


def test_a_file_of_comments_says_nothing(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    (tmp_path / "a.yaml").write_text("%YAML 1.1\n---\n# nothing\n")
    assert read_suricata_config(tmp_path / "a.yaml") == ()


def test_files_are_included(tmp_path):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    (tmp_path / "main.yaml").write_text("include: [one.yaml]\na: 1\nvars: !include two.yaml\n")
    (tmp_path / "one.yaml").write_text("a: 2\nb: 3\n")
    (tmp_path / "two.yaml").write_text("address-groups: {HOME_NET: any}\n")
    assert dict(read_suricata_config(tmp_path / "main.yaml")) == {
        "a": "1",
        "b": "3",
        "vars.address-groups.HOME_NET": "any",
    }


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "- a list",
        "? [1, 2]\n: 3",
        "include: loop.yaml\n",
        "!!python/object/apply:os.getpid []",
        "a0: &a0 [{x: y}, z]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)),
        "a: " + "[" * 40 + "[x: y]" + "]" * 40,
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path, text):
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    (tmp_path / "loop.yaml").write_text(text)
    with pytest.raises(TidegateError) as caught:
        read_suricata_config(tmp_path / "loop.yaml")
    assert caught.value.code == "ids.settings.invalid"


def test_aliases_cannot_multiply_without_end():
    value: object = "x"
    for _ in range(settings.MAX_DEPTH - 2):
        value = {"a": value, "b": value}
    with pytest.raises(TidegateError) as caught:
        flatten_config(value)
    assert caught.value.code == "ids.settings.invalid"


def test_without_pyyaml_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(TidegateError) as caught:
        read_suricata_config(tmp_path / "a.yaml")
    assert caught.value.code == "ids.yaml.missing"
    assert MAX_INCLUDES > 1


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("stream.midstream=true", ("stream.midstream", "true")),
        ("a=b=c", ("a", "b=c")),
        ("rule-files=", ("rule-files", "")),
        ("outputs.1.eve-log.types.0.alert.payload=yes", ("outputs.eve-log.types.alert.payload", "yes")),
        ("logging.outputs.1.file.type=json", ("logging.outputs.file.type", "json")),
    ],
)
def test_settings_are_read_as_suricata_reads_them(text, setting):
    assert parse_setting(text) == setting


@pytest.mark.parametrize("text", ["", "=x", "a b=c", "n" * 1000 + "=x"])
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(TidegateError) as caught:
        parse_setting(text)
    assert caught.value.code == "ids.settings.invalid"


def test_the_built_in_output_gives_way_to_a_chosen_one():
    written = dict(with_defaults(()))["outputs.eve-log.enabled-types"].split(",")
    assert {"modbus", "coap", "bacnet", "s7comm", "iec104", "opcua", "mdns", "llmnr"} <= set(written)
    more = dict(with_defaults([("outputs.eve-log.types.alert.payload", "yes")]))
    assert more["outputs.eve-log.types.http.extended"] == "yes"
    chosen = dict(with_defaults([("outputs.eve-log.enabled-types", "alert,http")]))
    assert "outputs.eve-log.types.http.extended" not in chosen
    assert chosen["vars.port-groups.HTTP_PORTS"] == "80"


def test_the_last_wins():
    merged = merge_settings([("a", "1"), ("b", "2")], [("a", "3")])
    assert merged == (("a", "3"), ("b", "2"))
