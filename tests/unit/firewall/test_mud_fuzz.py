"""MUD files that nobody wrote: reading ends in a value or in ``Rejected``, and no rule is wider than its entry."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.firewall.mudfiles import FILES, NOW, RESOLVED, ace, file, packets, site

from tidegate.base.errors import Rejected
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.evaluate import evaluate_packet
from tidegate.firewall.model import Direction, Verdict, plan_ruleset
from tidegate.firewall.mud import parse_mud
from tidegate.firewall.mud_import import Role, plan_import

SEEDS = [path.read_bytes() for path in FILES]
DOCUMENTS = [json.loads(raw) for raw in SEEDS]
# Values that confuse readers: wrong types, edges of ranges, texts that mean something to TOML, nft or a terminal.
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-1, 70_000),
    st.integers(),
    st.text(max_size=20),
    st.sampled_from(
        [
            [],
            {},
            [None],
            "",
            '"]\n[firewall]',
            "a" * 300,
            "@own",
            "!10.0.0.1",
            "any",
            "0.0.0.0/0",
            "::/0",
            "10.0.0.1%eth0",
            "fe80::1%eth0",
            "02:00:00:00:00:01",
            "*.example.com",
            "xn--nxasmq6b.example",
            "\u202e",
            "\ud800",
            "eq",
            "neq",
            "gte",
            "ipv6-acl-type",
            "from-device",
            "accept",
        ]
    ),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
)
NODES = sorted(
    {
        *("ipv4", "ipv6", "tcp", "udp", "icmp", "eth", "ietf-mud:mud", "l3", "l4", "protocol", "type", "code", "port"),
        *("source-port", "destination-port", "lower-port", "upper-port", "operator", "ietf-acldns:dst-dnsname"),
        *("ietf-acldns:src-dnsname", "source-ipv4-network", "destination-ipv6-network", "controller", "model"),
        *("my-controller", "local-networks", "same-manufacturer", "manufacturer", "ietf-mud:direction-initiated"),
        *("forwarding", "matches", "actions", "aces", "ace", "acl", "name", "from-device-policy", "access-lists"),
        *("flags", "dscp", "ttl", "length", "logging", "cache-validity", "mud-signature", "systeminfo"),
    }
)
FEW = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def read(raw: bytes) -> None:
    """Do everything that a file from outside goes through; only ``Rejected`` may come out."""
    try:
        mud = parse_mud(raw)
    except Rejected:
        return
    for role in Role:
        try:
            made = plan_import(mud, site(role, partial=True, any_source_port=True), now=NOW)
            encode_ruleset(plan_ruleset(made.section), resolved=RESOLVED)
        except Rejected:
            continue


@FEW
@given(st.binary(max_size=400))
def test_any_bytes(raw: bytes) -> None:
    read(raw)


@FEW
@given(st.sampled_from(SEEDS), st.data())
def test_a_file_with_bytes_changed(seed: bytes, data: st.DataObject) -> None:
    raw = bytearray(seed)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    read(bytes(raw))


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return (holder, key) of every value inside of ``value``."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in list(pairs):
        found.append((value, key))
        found += _places(inner)
    return found


@FEW
@given(st.sampled_from(DOCUMENTS), st.data())
def test_a_file_with_values_changed(document: Any, data: st.DataObject) -> None:
    changed = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        holder, key = data.draw(st.sampled_from(_places(changed)))
        match data.draw(st.sampled_from(("replace", "remove", "add"))):
            case "remove":
                del holder[key]
            case "add" if isinstance(holder, dict):
                holder[data.draw(st.sampled_from(NODES))] = data.draw(ODD)
            case _:
                holder[key] = data.draw(ODD)
        if not _places(changed):
            break
    read(json.dumps(changed).encode())


PORT = st.one_of(
    st.builds(
        lambda operator, port: {"operator": operator, "port": port},
        st.sampled_from(("eq", "lte", "gte", "neq")),
        st.sampled_from((0, 1, 53, 443, 8883, 65535)),
    ),
    st.builds(
        lambda first, more: {"lower-port": first, "upper-port": first + more}, st.integers(0, 500), st.integers(0, 9)
    ),
)
PEER = st.sampled_from(
    [
        {},
        {"ipv4": {"destination-ipv4-network": "203.0.113.0/28"}},
        {"ipv4": {"ietf-acldns:dst-dnsname": "mqtt.thermo.example"}},
        {"ietf-mud:mud": {"controller": "urn:ietf:params:mud:dns"}},
        {"ietf-mud:mud": {"my-controller": [None]}},
        {"ietf-mud:mud": {"local-networks": [None]}},
    ]
)
MATCHES = st.builds(
    lambda peer, transport, source, destination, began: {
        **peer,
        transport: {
            **({"source-port": source} if source else {}),
            **({"destination-port": destination} if destination else {}),
            **({"ietf-mud:direction-initiated": began} if began and transport == "tcp" else {}),
        },
    },
    PEER,
    st.sampled_from(("tcp", "udp")),
    st.one_of(st.none(), PORT),
    st.one_of(st.none(), PORT),
    st.sampled_from((None, "from-device", "to-device")),
)
ACES = st.lists(st.tuples(MATCHES, st.sampled_from(("accept", "accept", "accept", "drop"))), min_size=1, max_size=5)
PACKETS = [one for one in packets() if one.direction is Direction.OUT and one.source.version == 4]


def _port_is(words: Any, port: int) -> bool:
    """Read RFC 8519's port-range-or-operator anew, not by the code that is tested."""
    if words is None:
        return True
    if "lower-port" in words:
        return bool(words["lower-port"] <= port <= words["upper-port"])
    return {
        "eq": port == words["port"],
        "lte": port <= words["port"],
        "gte": port >= words["port"],
        "neq": port != words["port"],
    }[words["operator"]]


def _matches(matches: Any, one: Any) -> bool:
    """Return whether the entry is about this first packet of the device, by the RFC's own words."""
    transport = "tcp" if "tcp" in matches else "udp"
    if one.protocol is None or one.protocol.value != transport:
        return False
    words = matches[transport]
    if words.get("ietf-mud:direction-initiated") == "to-device":
        return False
    if not _port_is(words.get("destination-port"), one.port):
        return False
    if not _port_is(words.get("source-port"), one.source_port):
        return False
    far = str(one.destination)
    given = site()
    if "ipv4" in matches:
        network = matches["ipv4"].get("destination-ipv4-network")
        return far.startswith("203.0.113.") and int(far[10:]) < 16 if network else far == "203.0.113.14"
    mud = matches.get("ietf-mud:mud", {})
    if "controller" in mud:
        return far in given.classes[mud["controller"]]
    if "my-controller" in mud:
        return far in given.my_controller
    return far.startswith("192.168.1.") if "local-networks" in mud else True


@FEW
@given(ACES)
def test_what_passes_some_entry_accepts_before_any_refuses_it(entries: Any) -> None:
    """Never wider than the file: the verdicts are compared with a reader of the RFC written for this test."""
    aces = [ace(f"e{number}", forwarding=verb, **matches) for number, (matches, verb) in enumerate(entries)]
    made = plan_import(parse_mud(file(aces)), site(partial=True), now=NOW)
    ruleset = plan_ruleset(made.section)
    for one in PACKETS:
        if evaluate_packet(ruleset, one, resolved=RESOLVED) is Verdict.ACCEPT:
            verb = next((verb for matches, verb in entries if _matches(matches, one)), "nothing")
            assert verb == "accept", one


@FEW
@given(ACES)
def test_what_is_lost_is_said(entries: Any) -> None:
    """Narrower than the file only where a finding names the entry."""
    aces = [ace(f"e{number}", forwarding=verb, **matches) for number, (matches, verb) in enumerate(entries)]
    made = plan_import(parse_mud(file(aces)), site(partial=True), now=NOW)
    ruleset = plan_ruleset(made.section)
    said = {name for one in made.findings for name in one.where.split(", ")}
    for one in PACKETS:
        first = next((number for number, (matches, _) in enumerate(entries) if _matches(matches, one)), None)
        if first is None or entries[first][1] != "accept" or f"list/e{first}" in said:
            continue
        assert evaluate_packet(ruleset, one, resolved=RESOLVED) is Verdict.ACCEPT, one
