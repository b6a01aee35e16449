from __future__ import annotations

from tidegate.firewall.snapshot import Listings, digest_listings, encode_restore, parse_listing

LISTING = """table inet tidegate {
\tcounter denied {
\t}

\tset peers {
\t\ttype ipv4_addr
\t\tflags interval
\t\telements = { 10.0.0.0/8, 192.0.2.0/24,
\t\t\t     198.51.100.7 }
\t}

\tset rate {
\t\ttype ipv4_addr
\t\tsize 64
\t\tflags dynamic,timeout
\t\ttimeout 1m
\t\telements = { 10.0.0.1 limit rate 5/second burst 5 packets timeout 1m expires 59s }
\t}

\tchain input {
\t\ttype filter hook input priority filter; policy drop;
\t\tiifname { "eth0", "eth1" } accept
\t}
}
"""


def digest(policy: str, bans: str | None = None) -> str:
    return digest_listings(Listings(policy=policy, bans=bans))


def test_objects_are_told_apart() -> None:
    objects = {thing.name: thing for thing in parse_listing(LISTING)}
    assert list(objects) == ["denied", "peers", "rate", "input"]
    assert objects["peers"].elements == ("10.0.0.0/8", "192.0.2.0/24", "198.51.100.7")
    assert objects["rate"].filled_by_rules
    assert not objects["peers"].filled_by_rules


def test_restore_keeps_lists_and_forgets_thresholds() -> None:
    text = encode_restore(Listings(policy=LISTING))
    assert text.startswith("table inet tidegate\ndelete table inet tidegate\n")
    assert "198.51.100.7" in text
    assert "expires" not in text


def test_no_table_restores_to_none() -> None:
    assert encode_restore(Listings()) == "table inet tidegate\ndelete table inet tidegate\n"


def test_the_digest_sees_rules_and_lists_only() -> None:
    base = digest(LISTING)
    assert digest(LISTING.replace("expires 59s", "expires 3s")) == base
    assert digest(LISTING.replace("10.0.0.0/8, 192.0.2.0/24", "192.0.2.0/24, 10.0.0.0/8")) == base
    assert digest(LISTING.replace("198.51.100.7", "198.51.100.8")) != base
    assert digest(LISTING.replace("policy drop", "policy accept")) != base
    assert digest(LISTING, LISTING) != base
