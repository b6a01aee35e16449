from __future__ import annotations

import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.bans import parse_address, parse_ban


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("192.0.2.1 timeout 10m expires 9m59s980ms", 599.98),
        ("2001:db8::1 timeout 30d expires 1d2h3m4s", 93784.0),
        ("192.0.2.1 timeout 5s", 5.0),
    ],
)
def test_listed_bans_are_read(text: str, seconds: float) -> None:
    assert parse_ban(text).remaining_s == pytest.approx(seconds)


def test_mapped_addresses_are_what_the_wire_carries() -> None:
    assert str(parse_address("::ffff:192.0.2.1")) == "192.0.2.1"


@pytest.mark.parametrize("text", ["", "192.0.2.0/24", "fe80::1%eth0", "192.0.2.1 }; flush ruleset", "1.2.3"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(TidegateError) as caught:
        parse_address(text)
    assert caught.value.code == "firewall.ban.address"
