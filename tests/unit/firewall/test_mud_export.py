"""From rules to MUD files: valid by another reader, the same in meaning when read again, honest about the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from tests.unit.firewall.mudfiles import CLASSES, FILES, NOW, RESOLVED, packets, site

from tidegate.firewall.errors import BadPeer, BadPort, MudExport
from tidegate.firewall.evaluate import evaluate_packet
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.mud import parse_mud
from tidegate.firewall.mud_export import KNOWN_LISTS, About, encode_mud
from tidegate.firewall.mud_import import list_name, plan_import
from tidegate.firewall.mud_match import PeerKind
from tidegate.firewall.section import FirewallSection

LISTS = {list_name(PeerKind.CONTROLLER, uri): (PeerKind.CONTROLLER, uri) for uri in CLASSES}
ABOUT = About(
    url="https://things.example.com/thing.json",
    manufacturer="Example Things",
    model="T-1",
    last_update=NOW,
    classes={**KNOWN_LISTS, **LISTS},
)

# The YANG modules of RFC 8519 and RFC 8520, as far as our files use them, written down as JSON (RFC 7951).
PORT = {"type": "integer", "minimum": 0, "maximum": 65535}
PORTS = {
    "oneOf": [
        {
            "type": "object",
            "properties": {"operator": {"enum": ["eq", "lte", "gte", "neq"]}, "port": PORT},
            "required": ["port"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {"lower-port": PORT, "upper-port": PORT},
            "required": ["lower-port", "upper-port"],
            "additionalProperties": False,
        },
    ]
}
HOST = {"type": "string", "pattern": r"^[a-z0-9_-]+(\.[a-z0-9_-]+)+$"}
TRANSPORT = {"source-port": PORTS, "destination-port": PORTS}


def _closed(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _ip(version: int) -> dict[str, Any]:
    pattern = r"^[0-9.]+/[0-9]+$" if version == 4 else r"^[0-9a-f:]+/[0-9]+$"
    ends = {f"{end}-ipv{version}-network": {"type": "string", "pattern": pattern} for end in ("source", "destination")}
    names = {f"ietf-acldns:{end}-dnsname": HOST for end in ("src", "dst")}
    return _closed(protocol={"type": "integer", "minimum": 0, "maximum": 255}, **ends, **names)


EMPTY = {"const": [None]}
MATCHES = _closed(
    ipv4=_ip(4),
    ipv6=_ip(6),
    tcp=_closed(**TRANSPORT, **{"ietf-mud:direction-initiated": {"enum": ["to-device", "from-device"]}}),
    udp=_closed(**TRANSPORT),
    icmp=_closed(type={"type": "integer", "maximum": 255}, code={"type": "integer", "maximum": 255}),
    **{
        "ietf-mud:mud": _closed(
            controller={"type": "string", "format": "uri"},
            **{"my-controller": EMPTY, "local-networks": EMPTY, "same-manufacturer": EMPTY},
        )
    },
)
NAME = {"type": "string", "minLength": 1, "maxLength": 64}
ACE = _closed(name=NAME, matches=MATCHES, actions=_closed(forwarding={"const": "accept"}))
POLICY = _closed(
    **{"access-lists": _closed(**{"access-list": {"type": "array", "items": _closed(name=NAME), "minItems": 1}})}
)
ACL = _closed(
    name=NAME,
    type={"enum": ["ipv4-acl-type", "ipv6-acl-type"]},
    aces=_closed(ace={"type": "array", "items": ACE}),
)
MUD = _closed(
    **{
        "mud-version": {"const": 1},
        "mud-url": {"type": "string", "pattern": "^https://"},
        "mud-signature": {"type": "string", "pattern": "^https://"},
        "last-update": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\+00:00|Z)$"},
        "cache-validity": {"type": "integer", "minimum": 1, "maximum": 168},
        "is-supported": {"type": "boolean"},
        "systeminfo": {"type": "string", "maxLength": 60},
        "mfg-name": {"type": "string"},
        "model-name": {"type": "string"},
        "from-device-policy": POLICY,
        "to-device-policy": POLICY,
    }
)
MUD["required"] = ["mud-version", "mud-url", "last-update", "is-supported"]
SCHEMA = _closed(**{"ietf-mud:mud": MUD, "ietf-access-control-list:acls": _closed(acl={"type": "array", "items": ACL})})


def strict(text: str) -> dict[str, Any]:
    """Return the document after another reader's checks."""
    document: dict[str, Any] = json.loads(text)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    acls = document["ietf-access-control-list:acls"]["acl"]
    names = [acl["name"] for acl in acls]
    assert len(names) == len(set(names))
    for acl in acls:
        entries = [one["name"] for one in acl["aces"]["ace"]]
        assert len(entries) == len(set(entries))
        for one in acl["aces"]["ace"]:
            assert ("ipv4" in one["matches"]) is (acl["type"] == "ipv4-acl-type")
    for policy in ("from-device-policy", "to-device-policy"):
        for one in document["ietf-mud:mud"][policy]["access-lists"]["access-list"]:
            assert one["name"] in names
    return document


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_import_and_export_mean_the_same(path: Path) -> None:
    once = plan_import(parse_mud(path.read_bytes()), site(), now=NOW).section
    made = encode_mud(once, ABOUT)
    assert not made.warnings
    strict(made.text)
    again = plan_import(parse_mud(made.text.encode()), site(), now=NOW).section
    first, second = plan_ruleset(once), plan_ruleset(again)
    asked = accepted = 0
    for one in packets():
        verdict = evaluate_packet(first, one, resolved=RESOLVED)
        assert evaluate_packet(second, one, resolved=RESOLVED) is verdict, one
        asked += 1
        accepted += verdict == "accept"
    assert asked > 1000
    assert accepted


SECTION: dict[str, Any] = {
    "ping_per_s": 0,
    "management": {"peers": ["10.0.0.0/24"], "service": "ssh"},
    "peers": {"plant": ["10.5.0.0/16", "!10.5.9.0/24"]},
    "services": {
        "ssh": {"protocol": "tcp", "ports": [22], "peers": []},
        "modbus": {"protocol": "tcp", "ports": [502, "5020-5029"], "peers": ["@plant", "2001:db8::/32"]},
        "all": {"protocol": "udp", "ports": ["1-65535"], "peers": ["192.0.2.1"]},
    },
    "egress": {"services": {"cloud": {"protocol": "tcp", "ports": [443], "peers": ["a.example.com", "0.0.0.0/0"]}}},
}


ANY = {"protocol": "tcp", "ports": [9], "peers": ["any"]}


def export(**changes: Any) -> Any:
    return encode_mud(msgspec.convert(SECTION | changes, FirewallSection), ABOUT)


def test_a_policy_of_our_own_means_the_same_when_read_again() -> None:
    made = export()
    strict(made.text)
    assert not made.warnings
    before = plan_ruleset(msgspec.convert(SECTION, FirewallSection))
    after = plan_ruleset(plan_import(parse_mud(made.text.encode()), site(), now=NOW).section)
    assert _probe(before) == _probe(after)


def _probe(ruleset: Any) -> list[Any]:
    """Return the verdicts about who may begin what, around every edge of the policy above."""
    from ipaddress import ip_address

    from tidegate.firewall.model import Direction, Packet
    from tidegate.firewall.section import Protocol

    found = []
    for far in ("10.0.0.9", "10.0.1.9", "10.5.8.255", "10.5.9.1", "192.0.2.1", "192.0.2.2", "2001:db8::5", "fd00::1"):
        other = ip_address(far)
        own = ip_address("192.168.1.77" if other.version == 4 else "fd00::77")
        for port in (22, 23, 443, 502, 503, 5019, 5020, 5029, 5030, 65535):
            for protocol in (Protocol.TCP, Protocol.UDP):
                for direction, ends in ((Direction.IN, (other, own)), (Direction.OUT, (own, other))):
                    packet = Packet(
                        direction=direction,
                        interface="eth0",
                        source=ends[0],
                        destination=ends[1],
                        protocol=protocol,
                        port=port,
                        source_port=40000,
                    )
                    found.append((packet, evaluate_packet(ruleset, packet)))
    assert {verdict.value for _, verdict in found} == {"accept", "drop", "reject"}
    return found


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"services": {**SECTION["services"], "a": {"protocol": "gre", "peers": ["10.0.0.1"]}}}, "services.a"),
        ({"services": {**SECTION["services"], "a": {"protocol": "sctp", "ports": [9], "peers": ["any"]}}}, "sctp"),
        ({"ping_per_s": 10}, "ping_per_s"),
        ({"egress": {"default": "allow"}}, "egress.default"),
        ({"mode": "observe"}, "mode"),
        ({"thresholds": [{"high": 5}]}, "thresholds"),
        ({"zones": {"lan": {"interfaces": ["lan0"]}}, "link": {"lan": {}}}, "link"),
        (
            {"routes": {"a": {"protocol": "tcp", "ports": [1], "sources": ["any"], "destinations": ["any"]}}},
            "routes",
        ),
        *(
            (
                {
                    "services": {
                        **SECTION["services"],
                        "a": {"protocol": "tcp", "ports": [9], "peers": ["any"], **extra},
                    }
                },
                word,
            )
            for extra, word in (
                ({"limit": {"new_per_s": 5}}, "services.a.limit"),
                ({"thresholds": [{"high": 5}]}, "services.a.thresholds"),
                ({"interfaces": ["eth0"]}, "services.a.interfaces"),
                ({"syn_proxy": True}, "services.a.syn_proxy"),
                ({"mode": "observe"}, "services.a.mode"),
                ({"lockdown": True}, "services.a.lockdown"),
                ({"peers": ["02:00:00:00:00:07"]}, "02:00:00:00:00:07"),
            )
        ),
    ],
)
def test_what_a_mud_file_cannot_say_is_listed(changes: dict[str, Any], word: str) -> None:
    made = export(**changes)
    strict(made.text)
    assert any(word in warning for warning in made.warnings)
    parse_mud(made.text.encode())


@pytest.mark.parametrize(
    "change",
    [
        {"url": "http://things.example.com/"},
        {"url": "https://a.example/\n"},
        {"manufacturer": "a\nb"},
        {"systeminfo": "x" * 61},
        {"signature_url": "things.p7s"},
        {"cache_validity_h": 0},
    ],
)
def test_a_file_that_nobody_could_use_is_not_made(change: dict[str, Any]) -> None:
    from dataclasses import replace

    with pytest.raises(MudExport):
        encode_mud(msgspec.convert(SECTION, FirewallSection), replace(ABOUT, **change))


def test_a_policy_with_too_many_rules_is_refused() -> None:
    services = {f"s{number}": {"protocol": "tcp", "ports": [1000 + number], "peers": ["any"]} for number in range(600)}
    with pytest.raises(MudExport):
        export(services=SECTION["services"] | services)


def test_a_class_with_somebody_taken_out_is_spelt_out() -> None:
    """Else the file would let in the one whom the policy keeps out."""
    lists = {"my-controller": ["10.7.0.0/30"]}
    guarded = {"protocol": "tcp", "ports": [9], "peers": ["@my-controller", "!10.7.0.2"]}
    made = export(peers=SECTION["peers"] | lists, services=SECTION["services"] | {"a": guarded})
    strict(made.text)
    assert "my-controller" not in made.text
    assert "10.7.0.3/32" in made.text
    assert "10.7.0.2/32" not in made.text
    guarded["peers"] = ["@my-controller"]
    made = export(peers=SECTION["peers"] | lists, services=SECTION["services"] | {"a": guarded})
    assert "my-controller" in made.text
    assert "10.7.0" not in made.text


def test_rules_of_one_name_both_ways_are_told_apart() -> None:
    made = export(services=SECTION["services"] | {"a": ANY}, egress={"services": {"a": ANY}})
    strict(made.text)
    parse_mud(made.text.encode())


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"ports": ["22-21"]}, BadPort),
        ({"ports": ["1-99999"]}, BadPort),
        ({"ports": []}, BadPort),
        ({"peers": ["10.0.0.1/8"]}, BadPeer),
        ({"peers": ["@my-controller"]}, BadPeer),  # which the policy does not define
    ],
)
def test_a_section_without_meaning_becomes_no_file(rule: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        export(services=SECTION["services"] | {"a": ANY | rule})


def test_a_list_that_takes_somebody_out_is_a_class_only_alone() -> None:
    """An exclusion counts for all peers of its rule, whatever list it stands in."""
    lists = SECTION["peers"] | {"local-networks": ["10.7.0.0/30", "!10.7.0.2"]}
    rule = {"protocol": "tcp", "ports": [9], "peers": ["@local-networks"]}
    alone = export(peers=lists, services=SECTION["services"] | {"a": rule})
    assert "local-networks" in alone.text
    rule["peers"] = ["@local-networks", "10.7.0.2"]
    beside = export(peers=lists, services=SECTION["services"] | {"a": rule})
    assert "local-networks" not in beside.text
    assert "10.7.0.2/32" not in beside.text
