from __future__ import annotations

from ipaddress import collapse_addresses, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.base.errors import TidegateError
from tidegate.firewall.bantable import (
    BAN_LENGTHS,
    GATE_LENGTHS,
    MAX_ELEMENTS,
    Ranges,
    encode_ban_table,
    gate_of,
    length_of,
    parse_ranges,
    plan_elements,
    prefix_of,
    set_names,
)
from tidegate.firewall.model import PeerGroup
from tidegate.firewall.netlink import INTERVAL_END


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("192.0.2.1/32", "banned4", 1),
        ("192.0.2.128/25", "banned4", 128),
        ("192.0.2.0/24", "banned4_24", 1),
        ("10.0.0.0/20", "banned4_24", 16),
        ("10.0.0.0/16", "banned4_16", 1),
        ("16.0.0.0/4", "banned4_16", 4096),
        ("2001:db8::1/128", "banned6", 1),
        ("2001:db8::/64", "banned6_64", 1),
        ("2001:db8::/56", "banned6_64", 256),
        ("2001:db8::/36", "banned6_48", 4096),
        ("2001:db8::/29", "banned6_32", 8),
    ],
)
def test_a_prefix_becomes_elements_that_make_it_up(text: str, name: str, count: int) -> None:
    elements = list(plan_elements(ip_network(text)))
    assert {where for where, _ in elements} == {name}
    assert len(elements) == count <= MAX_ELEMENTS
    assert list(collapse_addresses(prefix_of(*element) for element in elements)) == [ip_network(text)]  # type: ignore[type-var]


@pytest.mark.parametrize("text", ["0.0.0.0/0", "32.0.0.0/3", "2001:db8::/65", "2001:db8::/49", "2001:db8::/35", "::/0"])
def test_a_prefix_of_too_many_elements_is_refused(text: str) -> None:
    with pytest.raises(TidegateError) as caught:
        list(plan_elements(ip_network(text)))
    assert caught.value.code == "firewall.ban.prefix"


def test_every_element_lies_behind_one_gate() -> None:
    for version, lengths in BAN_LENGTHS.items():
        assert min(lengths) >= GATE_LENGTHS[version]
        assert list(lengths) == sorted(lengths, reverse=True)
    for text in ("10.9.8.7/32", "10.9.0.0/16", "2001:db8:1:2::3/128", "2001:db8::/32"):
        for name, key in plan_elements(ip_network(text)):
            gate, short = gate_of(key)
            wide = ip_network((short, GATE_LENGTHS[int(gate[-1])]))
            assert prefix_of(name, key).subnet_of(wide)  # type: ignore[arg-type]


def test_lengths_of_sets() -> None:
    assert [length_of(name, bytes(4 if "banned4" in name else 16)) for name in set_names()] == [
        32, 24, 16, 128, 64, 48, 32,
    ]  # fmt: skip


spans = st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted), max_size=5)


@given(spans, st.integers(0, 255), st.integers(0, 8))
def test_ranges_from_the_kernels_listing(pairs: list[list[int]], value: int, host_bits: int) -> None:
    """Against the plain set of all addresses, in the top byte so that open ends are met."""
    covered = sorted({number for first, last in pairs for number in range(first, last + 1)})
    edges = [
        (bytes([number, 0, 0, 0]), 0, 0 if number in covered else INTERVAL_END)
        for number in range(256)
        if (number in covered) != (number - 1 in covered)
    ]
    ranges = parse_ranges(reversed(edges), bits=32)
    base = value >> host_bits << host_bits
    expected = any(base <= number < base + (1 << host_bits) for number in covered)
    assert ranges.has_any(bytes([base, 0, 0, 0]), 8 - host_bits) == expected


def test_no_ranges_have_nothing() -> None:
    assert not Ranges().has_any(bytes(4), 0)
    assert not parse_ranges([(bytes(4), 0, INTERVAL_END)], bits=32).has_any(bytes(4), 0)


def test_the_table_is_deterministic_and_declares_before_it_flushes() -> None:
    group = PeerGroup(v4=(ip_network("192.0.2.0/24"),))  # type: ignore[arg-type]
    text = encode_ban_table(verdict="drop", never=group, managers=PeerGroup(), size=64)
    assert text == encode_ban_table(verdict="drop", never=group, managers=PeerGroup(), size=64)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("flush "):
            kind, name = line.split()[1], line.split()[-1]
            assert any(one.strip() == f"{kind} {name} {{" for one in lines[:number])
            assert "banned" not in name
            assert "gate" not in name
    assert "accept" not in text.replace("policy accept", "")
    assert "0.0.0.0/0" in encode_ban_table(
        verdict="drop", never=PeerGroup(everyone=True), managers=PeerGroup(), size=64
    )
