"""MUD files as they are read: what is refused, what cannot be taken over, what is ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.firewall.mudfiles import FILES, ace, file

from tidegate.firewall.errors import BadMud
from tidegate.firewall.mud import MAX_ACES, MAX_MUD_BYTES, Side, parse_mud
from tidegate.firewall.mud_match import PeerKind, Span

TCP = {"protocol": 6}


def test_every_file_of_the_folder_is_read() -> None:
    assert len(FILES) >= 6
    for path in FILES:
        mud = parse_mud(path.read_bytes())
        assert mud.aces, path.name
        assert {one.policy for one in mud.aces} == {*Side}, path.name


def _broken(change: Any) -> bytes:
    document = json.loads(file([ace(ipv4=TCP)]))
    change(document)
    return json.dumps(document).encode()


def _mud(**values: Any) -> Any:
    return lambda document: document["ietf-mud:mud"].update(values)


def _acl(**values: Any) -> Any:
    return lambda document: document["ietf-access-control-list:acls"]["acl"][0].update(values)


MALFORMED = {
    "no JSON": b"{",
    "no object": b"[]",
    "a key twice": b'{"ietf-mud:mud": {}, "ietf-mud:mud": {}}',
    "deep": b"[" * 100_000,
    "too large": b" " * (MAX_MUD_BYTES + 1),
    "not UTF-8": b'{"\xff": 1}',
    "a fraction": file([ace(ipv4={"protocol": 6.0})]),
    "no number": b'{"ietf-mud:mud": NaN}',
    "a version of its own": _broken(_mud(**{"mud-version": 2})),
    "no version": _broken(lambda document: document["ietf-mud:mud"].pop("mud-version")),
    "no URL": _broken(lambda document: document["ietf-mud:mud"].pop("mud-url")),
    "http": _broken(_mud(**{"mud-url": "http://things.example.com/"})),
    "a URL of two lines": _broken(_mud(**{"mud-url": "https://a.example/\n[firewall]"})),
    "no time": _broken(_mud(**{"last-update": "yesterday"})),
    "a time without a zone": _broken(_mud(**{"last-update": "2024-05-02T11:20:51"})),
    "no support": _broken(_mud(**{"is-supported": "true"})),
    "validity 0": _broken(_mud(**{"cache-validity": 0})),
    "validity 169": _broken(_mud(**{"cache-validity": 169})),
    "a model of two lines": _broken(_mud(**{"model-name": "a\nb"})),
    "a list that is not there": _broken(_acl(name="another")),
    "an entry of two lines": file([ace("a\nb", ipv4=TCP)]),
    "an entry without a name": file([ace("", ipv4=TCP)]),
    "a name twice": file([ace(ipv4=TCP), ace(ipv4=TCP)]),
    "no list of entries": _broken(_acl(aces={"ace": {}})),
    "two lists of access lists": _broken(
        lambda document: document.update({"ietf-access-control-list:access-lists": {"acl": []}})
    ),
    "two types": _broken(_acl(**{"acl-type": "ipv6-acl-type"})),
    "a network with a zone": file([ace(ipv6={"destination-ipv6-network": "fe80::1%eth0/128"})], family=6),
    "no actions": _broken(_acl(aces={"ace": [{"name": "a", "matches": {}}]})),
    "an unknown forwarding": file([ace(forwarding="pass", ipv4=TCP)]),
    "too many": file([ace(f"a{number}") for number in range(MAX_ACES + 1)]),
    "matches of text": file([{"name": "a", "matches": "all", "actions": {"forwarding": "accept"}}]),
    "a protocol of text": file([ace(ipv4={"protocol": "6"})]),
    "protocol 256": file([ace(ipv4={"protocol": 256})]),
    "protocol true": file([ace(ipv4={"protocol": True})]),
    "a network that is none": file([ace(ipv4={"destination-ipv4-network": "10.0.0.0/33"})]),
    "IPv6 in IPv4": file([ace(ipv4={"destination-ipv4-network": "2001:db8::/64"})]),
    "port 65536": file([ace(tcp={"destination-port": {"operator": "eq", "port": 65536}})]),
    "a falling range": file([ace(tcp={"destination-port": {"lower-port": 9, "upper-port": 8}})]),
    "an unknown operator": file([ace(tcp={"destination-port": {"operator": "about", "port": 8}})]),
    "a port of text": file([ace(tcp={"destination-port": 443})]),
    "no port": file([ace(tcp={"destination-port": {"operator": "eq"}})]),
    "a direction of its own": file([ace(tcp={"ietf-mud:direction-initiated": "both"})]),
    "an empty leaf with a value": file([ace(mud={"local-networks": "10.0.0.0/8"})]),
    "a controller without a name": file([ace(mud={"controller": ""})]),
    "a DNS name of two lines": file([ace(mud={"controller": "a\nb"})]),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_mud_file_is_refused(case: str) -> None:
    with pytest.raises(BadMud):
        parse_mud(MALFORMED[case])


def test_a_file_cut_anywhere_is_refused() -> None:
    whole = FILES[0].read_bytes().rstrip()
    for length in range(0, len(whole), 37):
        with pytest.raises(BadMud):
            parse_mud(whole[:length])


@pytest.mark.parametrize(
    "matches",
    [
        {"ipv4": {"dscp": 8}},
        {"ipv4": {"ttl": 1}},
        {"ipv4": {"source-ipv4-network": "192.168.1.77/32"}},  # from the device: its own address
        {"ipv4": {"ietf-acldns:src-dnsname": "device.example.com"}},
        {"ipv4": {"ietf-acldns:dst-dnsname": "*.example.com"}},
        {"ipv4": {"ietf-acldns:dst-dnsname": "2001:db8::1"}},
        {"ipv4": {"ietf-acldns:dst-dnsname": "a.example.com", "destination-ipv4-network": "192.0.2.1/32"}},
        {"ipv6": {"protocol": 6}},
        {"ipv4": {"protocol": 17}, "tcp": {}},
        {"tcp": {"flags": "syn"}},
        {"icmp": {"type": 8, "code": 1}},
        {"mud": {"controller": "https://a.example/", "local-networks": [None]}},
        {"mud": {"new-class": [None]}},
        {"egress-interface": "eth0"},
        {"tcp": {"source-port": {"port": 1}, "source-port-range-or-operator": {"port": 2}}},
        {"ipv4": {"destination-port-range-or-operator": {"port": 2}}, "udp": {"destination-port": {"port": 1}}},
        {"ipv4": TCP, "eth": {"ethertype": "0x0800"}},
        {
            "mud": {"direction-initiated": "to-device"},
            "tcp": {"ietf-mud:direction-initiated": "from-device"},
        },
        {"vendor:quantum": {}},
    ],
)
def test_a_match_that_no_rule_can_say_makes_the_entry_unsupported(matches: dict[str, Any]) -> None:
    (one,) = parse_mud(file([ace(**matches)])).aces
    assert one.unsupported


@pytest.mark.parametrize(
    ("words", "spans"),
    [
        ({"operator": "eq", "port": 443}, [(443, 443)]),
        ({"port": 443}, [(443, 443)]),
        ({"operator": "lte", "port": 1023}, [(1, 1023)]),
        ({"operator": "gte", "port": 1024}, [(1024, 65535)]),
        ({"operator": "neq", "port": 80}, [(1, 79), (81, 65535)]),
        ({"operator": "neq", "port": 1}, [(2, 65535)]),
        ({"operator": "neq", "port": 65535}, [(1, 65534)]),
        ({"lower-port": 0, "upper-port": 9}, [(1, 9)]),
        ({"operator": "range", "lower-port": 5, "upper-port": 9}, [(5, 9)]),
        ({"operator": "eq", "port": 0}, []),
    ],
)
def test_ports(words: dict[str, Any], spans: list[tuple[int, int]]) -> None:
    (one,) = parse_mud(file([ace(udp={"destination-port": words})])).aces
    assert one.match.peer_ports == tuple(Span(first=first, last=last) for first, last in spans)
    assert not one.unsupported


def test_the_other_side_is_the_destination_from_the_device_and_the_source_to_it() -> None:
    ports = {"source-port": {"port": 1}, "destination-port": {"port": 2}}
    (out,) = parse_mud(file([ace(ipv4={"ietf-acldns:dst-dnsname": "a.example.com"}, tcp=ports)])).aces
    (into,) = parse_mud(file([ace(ipv4={"ietf-acldns:src-dnsname": "A.example.com."}, tcp=ports)], side="to")).aces
    assert (out.match.peer, out.match.peer_value) == (into.match.peer, into.match.peer_value)
    assert out.match.peer is PeerKind.NAME
    assert (out.match.device_ports, out.match.peer_ports) == (into.match.peer_ports, into.match.device_ports)


def test_a_list_of_another_type_is_about_frames_unless_it_has_packets() -> None:
    frames = {"name": "frames", "matches": {"eth": {"ethertype": "0x888e"}}, "actions": {"forwarding": "accept"}}
    raw = file([frames, ace("packets", ipv4=TCP, tcp={})]).replace(b"ipv4-acl-type", b"mixed-eth-ipv4-acl-type")
    one, other = parse_mud(raw).aces
    assert one.match.layer2
    assert not one.unsupported
    assert not other.match.layer2
    assert other.unsupported


def test_what_is_not_known_outside_of_entries_is_ignored_and_said() -> None:
    mud = parse_mud(file([ace(ipv4=TCP)], **{"example:colour": "red\nblue", "extensions": ["quantum"]}))
    assert any("example:colour" in note for note in mud.notes)
    assert not mud.aces[0].unsupported


def test_a_draft_is_noted_and_says_the_same(tmp_path: Path) -> None:
    draft = next(path for path in FILES if path.name == "lamp-draft.json")
    mud = parse_mud(draft.read_bytes())
    assert any("draft" in note for note in mud.notes)
    assert not any(one.unsupported for one in mud.aces)
    assert {one.match.peer_value for one in mud.aces} == {"service.bms.example.com"}
