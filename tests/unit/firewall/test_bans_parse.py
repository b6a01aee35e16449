from __future__ import annotations

import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.bans import parse_address, parse_around, parse_feed, parse_source


def test_mapped_addresses_are_what_the_wire_carries() -> None:
    assert str(parse_address("::ffff:192.0.2.1")) == "192.0.2.1"
    assert str(parse_source("::ffff:192.0.2.0/120")) == "192.0.2.0/24"
    assert str(parse_source("::/64")) == "::/64"  # shorter than the mapping: IPv6 it is


@pytest.mark.parametrize("text", ["", "192.0.2.0/24", "fe80::1%eth0", "192.0.2.1 }; flush ruleset", "1.2.3"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(TidegateError) as caught:
        parse_address(text)
    assert caught.value.code == "firewall.ban.address"


@pytest.mark.parametrize("text", ["", "192.0.2.1/24", "192.0.2.0/33", "fe80::%eth0/64", "any/8", "1.2.3.4/-1"])
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(TidegateError) as caught:
        parse_source(text)
    assert caught.value.code == "firewall.ban.address"


def test_the_prefix_around_an_address() -> None:
    assert str(parse_around("2001:db8::7:1", 64)) == "2001:db8::/64"
    assert str(parse_around("192.0.2.77", 24)) == "192.0.2.0/24"
    for length in (-1, 33):
        with pytest.raises(TidegateError) as caught:
            parse_around("192.0.2.77", length)
        assert caught.value.code == "firewall.ban.address"


def test_a_feed_is_read() -> None:
    text = "# a feed\n192.0.2.0/24 ; SBL1\n\n  2001:db8::/48\n198.51.100.7 # one\n"
    assert [str(prefix) for prefix in parse_feed(text)] == ["192.0.2.0/24", "2001:db8::/48", "198.51.100.7/32"]


@pytest.mark.parametrize("bad", ["nonsense", "192.0.2.1/24", "2001:db8::/65", "0.0.0.0/0", "192.0.2.1 192.0.2.2"])
def test_a_feed_says_which_line_is_bad(bad: str) -> None:
    with pytest.raises(TidegateError) as caught:
        list(parse_feed(f"192.0.2.0/24\n# comment\n{bad}\n198.51.100.0/24\n"))
    assert (caught.value.code, caught.value.fields["line"]) == ("firewall.ban.file", 3)


def test_a_feed_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidegate.firewall.bans.MAX_FEED", 3)
    assert len(list(parse_feed("1.1.1.1\n" * 3))) == 3
    with pytest.raises(TidegateError) as caught:
        list(parse_feed("1.1.1.1\n" * 4))
    assert caught.value.fields["line"] == 4
