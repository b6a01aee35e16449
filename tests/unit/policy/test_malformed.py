"""Malformed policies, a row per slip: the code, the line, what is expected and the nearest valid spelling."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from tidegate.base.errors import Rejected
from tidegate.policy.check import check_text

# Line numbers of the rows count from the line that is marked, which the row replaces.
POLICY = """\
[policy]
version = 1
devices = ["gw-*"]
expires = 2030-01-01T00:00:00Z

[firewall]
mode = "enforce"
default = "deny"
ping_per_s = 10

[firewall.zones.lan]
interfaces = ["eth0"]

[firewall.management]
peers = ["192.0.2.0/24"]
service = "ssh"

[firewall.services.ssh]
protocol = "tcp"
ports = [22]
peers = ["192.0.2.0/24"]

[firewall.services.web]
protocol = "tcp"
ports = [
  80,
  "8000-8010",
]
peers = [
  "10.0.0.0/8",
  "2001:db8::/32",
]
zones = ["lan"]
syn_proxy = false
limit = { new_per_s = 5, connections = 10 }
thresholds = [
  { high = 10 },
  { high = 20, interval_s = 60 },
]

[firewall.link.lan]
macs = ["02:00:5e:10:00:01"]
arp_bindings = { "10.0.0.7" = "02:00:5e:10:00:01" }

[[firewall.thresholds]]
per = "total"
high = 100

[ids]
memory = "24MiB"
interfaces = ["eth0"]
"""

SYNTAX, KEY, VALUE = "policy.syntax", "policy.key.unknown", "policy.value.invalid"

# what is replaced, by what, the code, the line's text, the nearest valid spelling in the message ("": none can be told)
ROWS: list[tuple[str, str, str, str, str]] = [
    # TOML
    ('mode = "enforce"', "mode = enforce", SYNTAX, "mode = enforce", 'mode = "enforce"'),
    ('mode = "enforce"', 'mode: "enforce"', SYNTAX, "mode: ", 'mode = "enforce"'),
    ('mode = "enforce"', "mode = \u201cenforce\u201d", SYNTAX, "mode = ", 'mode = "enforce"'),
    ('mode = "enforce"', 'mode = "enforce', SYNTAX, "mode = ", 'mode = "enforce"'),
    ('mode = "enforce"', "mode =", SYNTAX, "mode =", ""),
    ('mode = "enforce"', "mode", SYNTAX, "mode", ""),
    ('mode = "enforce"', 'mode = "enforce"\nmode = "observe"', SYNTAX, 'mode = "observe"', ""),
    ("syn_proxy = false", "syn_proxy = False", SYNTAX, "syn_proxy", "syn_proxy = false"),
    ("syn_proxy = false", "syn_proxy = yes", SYNTAX, "syn_proxy", "syn_proxy = true"),
    ("ports = [22]", "ports = [22 23]", SYNTAX, "ports = [22 23]", "ports = [22, 23]"),
    ("ports = [22]", "ports = [22", SYNTAX, "ports = [22", "ports = [22]"),
    ("ports = [22]", "ports = [022]", SYNTAX, "ports = [022]", ""),
    ('peers = ["192.0.2.0/24"]\n', "peers = [192.0.2.0/24]\n", SYNTAX, "[192.0", 'peers = ["192.0.2.0/24"]'),
    ('zones = ["lan"]', "zones = [lan]", SYNTAX, "zones = ", 'zones = ["lan"]'),
    ("[firewall.services.web]", "[firewall.services.web", SYNTAX, "[firewall.services.web", "[firewall.services.web]"),
    ("[firewall.services.web]", "[firewall.services.ssh]", SYNTAX, "[firewall.services.ssh]", ""),
    ("expires = 2030-01-01T00:00:00Z", "expires = 2030-13-01T00:00:00Z", SYNTAX, "expires", ""),
    ("version = 1", "version = " + "9" * 5000, SYNTAX, "999", ""),
    # keys
    ("[firewall.services.web]", "[firewall.service.web]", KEY, "[firewall.service.web]", "services"),
    ("[firewall.management]", "[firewall.managment]", KEY, "[firewall.managment]", "management"),
    ("[firewall.link.lan]", "[firewal.link.lan]", KEY, "[firewal.link.lan]", "firewall"),
    ('service = "ssh"', 'servcie = "ssh"', KEY, "servcie", "service"),
    ("ports = [22]", "port = [22]", KEY, "port = ", "ports"),
    ("syn_proxy = false", "syn-proxy = false", KEY, "syn-proxy", "syn_proxy"),
    ("connections = 10", "conections = 10", KEY, "limit = ", "connections"),
    ("interval_s = 60", "interval = 60", KEY, "high = 20, interval", "interval_s"),
    ("ping_per_s = 10", "qwertz = 10", KEY, "qwertz", ""),
    # words
    ('mode = "enforce"', 'mode = "enforec"', VALUE, "mode = ", "'enforce'"),
    ('mode = "enforce"', 'mode = "ENFORCE"', VALUE, "mode = ", "'enforce'"),
    ('mode = "enforce"', 'mode = "monitor"', VALUE, "mode = ", "'observe'"),
    ('mode = "enforce"', 'mode = "xyzzy"', VALUE, "mode = ", ""),
    ('default = "deny"', 'default = "drop"', VALUE, "default = ", "'deny'"),
    ('default = "deny"', 'default = "rejct"', VALUE, "default = ", "'reject'"),
    ('protocol = "tcp"', 'protocol = "tpc"', VALUE, "protocol = ", "'tcp'"),
    ('protocol = "tcp"', 'protocol = "icmp"', VALUE, "protocol = ", "'ping'"),
    ('per = "total"', 'per = "totla"', VALUE, "per = ", "'total'"),
    # numbers
    ("version = 1", "version = '1'", VALUE, "version", "1"),
    ("version = 1", "version = 1.0", VALUE, "version", "1"),
    ("version = 1", "version = true", VALUE, "version", ""),
    ("version = 1", "version = 0", VALUE, "version", ""),
    ("ping_per_s = 10", "ping_per_s = -1", VALUE, "ping_per_s", ""),
    ("ping_per_s = 10", 'ping_per_s = "10"', VALUE, "ping_per_s", "10"),
    ("ping_per_s = 10", 'ping_per_s = "many"', VALUE, "ping_per_s", ""),
    ("new_per_s = 5", "new_per_s = 0", VALUE, "limit = ", ""),
    ("high = 20, interval_s = 60", "high = 20, interval_s = 7200", VALUE, "interval_s = 7200", ""),
    # truth
    ("syn_proxy = false", 'syn_proxy = "false"', VALUE, "syn_proxy", "false"),
    ("syn_proxy = false", 'syn_proxy = "on"', VALUE, "syn_proxy", "true"),
    ("syn_proxy = false", "syn_proxy = 0", VALUE, "syn_proxy", "false"),
    ("syn_proxy = false", "syn_proxy = 2", VALUE, "syn_proxy", ""),
    # lists
    ("ports = [22]", "ports = 22", VALUE, "ports = 22", "[22]"),
    ("ports = [22]", 'ports = "22"', VALUE, "ports = ", "[22]"),
    ('zones = ["lan"]', 'zones = "lan"', VALUE, "zones = ", '["lan"]'),
    ('devices = ["gw-*"]', 'devices = "gw-*"', VALUE, "devices", '["gw-*"]'),
    ('devices = ["gw-*"]', "devices = []", VALUE, "devices", ""),
    ('interfaces = ["eth0"]', "interfaces = []", VALUE, "interfaces", ""),
    ('interfaces = ["eth0"]', 'interfaces = "eth0, eth1"', VALUE, "interfaces", '["eth0", "eth1"]'),
    # ports
    ("  80,", "  80", SYNTAX, "ports = [", ""),
    ("  80,", "  70000,", VALUE, "70000", ""),
    ("  80,", '  "80",', VALUE, '"80"', "80"),
    ("  80,", '  "http",', VALUE, '"http"', "80"),
    ('"8000-8010"', '"8000:8010"', VALUE, '"8000:8010"', "'8000-8010'"),
    ('"8000-8010"', '"8000..8010"', VALUE, '"8000..8010"', "'8000-8010'"),
    ('"8000-8010"', '"8010-8000"', "firewall.policy.port", '"8010-8000"', "'8000-8010'"),
    ('"8000-8010"', '"8000-80100"', "firewall.policy.port", '"8000-80100"', ""),
    # names
    ("[firewall.services.web]", "[firewall.services.Web_1]", VALUE, "[firewall.services.Web_1]", "'web-1'"),
    ("[firewall.services.web]", "[firewall.services.'a; b']", VALUE, "[firewall.services.'a; b']", "'a-b'"),
    ("[firewall.services.web]", "[firewall.services.1]", VALUE, "[firewall.services.1]", ""),
    ('zones = ["lan"]', 'zones = ["LAN"]', VALUE, "zones = ", "'lan'"),
    ('zones = ["lan"]', 'zones = ["lna"]', "firewall.policy.zone", "zones = ", "'lan'"),
    ('interfaces = ["eth0"]', 'interfaces = ["eth0; reboot"]', VALUE, "interfaces", ""),
    ('macs = ["02:00:5e:10:00:01"]', 'macs = ["02-00-5E-10-00-01"]', VALUE, "macs", "'02:00:5e:10:00:01'"),
    ('macs = ["02:00:5e:10:00:01"]', 'macs = ["0200.5e10.0001"]', VALUE, "macs", "'02:00:5e:10:00:01'"),
    ('"10.0.0.7" = "02:00:5e:10:00:01"', '"10.0.0.7" = "02:00:5e"', VALUE, "arp_bindings", ""),
    ('"10.0.0.7" = ', '"10.0.0.0/24" = ', "firewall.policy.link", "arp_bindings", ""),
    # addresses
    ('  "10.0.0.0/8",', '  "10.0.0.1/8",', "firewall.policy.peer", "10.0.0.1/8", "'10.0.0.0/8'"),
    ('  "10.0.0.0/8",', '  "10.*.*.*",', "firewall.policy.peer", "10.*", "'10.0.0.0/8'"),
    ('  "2001:db8::/32",', '  "2001:db8::/129",', "firewall.policy.peer", "/129", ""),
    ('  "2001:db8::/32",', '  "[2001:db8::1]",', "firewall.policy.peer", "[2001", "'2001:db8::1'"),
    ('  "10.0.0.0/8",', "  10,", VALUE, "  10,", ""),
    # tables and moments
    ("limit = { new_per_s = 5, connections = 10 }", "limit = 5", VALUE, "limit = 5", ""),
    ("limit = { new_per_s = 5, connections = 10 }", "limit = [5]", VALUE, "limit = [5]", ""),
    ("[[firewall.thresholds]]", "[firewall.thresholds]", VALUE, "[firewall.thresholds]", ""),
    ("[firewall.zones.lan]", "[[firewall.zones.lan]]", VALUE, "[[firewall.zones.lan]]", ""),
    ("expires = 2030-01-01T00:00:00Z", "expires = 2030-01-01", VALUE, "expires", "2030-01-01T00:00:00Z"),
    ("expires = 2030-01-01T00:00:00Z", "expires = 'soon'", VALUE, "expires", ""),
    # what is missing
    ('service = "ssh"\n', "", VALUE, "[firewall.management]", ""),
    ('per = "total"\nhigh = 100\n', 'per = "total"\n', VALUE, "[[firewall.thresholds]]", ""),
    ("  { high = 10 },", "  {},", VALUE, "thresholds = [", ""),
    ('protocol = "tcp"\nports = [22]', "ports = [22]", VALUE, "[firewall.services.ssh]", ""),
    # another room
    ('memory = "24MiB"', 'memory = "24 MB"', "ids.config.invalid", "memory", ""),
    ('memory = "24MiB"', "memory = 24", VALUE, "memory", ""),
]


@pytest.mark.parametrize(("old", "new", "code", "on_line", "nearest"), ROWS)
def test_a_slip_has_its_line_and_what_was_meant(old: str, new: str, code: str, on_line: str, nearest: str) -> None:
    assert old in POLICY
    text = POLICY.replace(old, new, 1)
    with pytest.raises(Rejected) as caught:
        check_text(text, "policy.toml")
    error = caught.value
    assert error.code == code, error.message
    line = error.fields["line"]
    assert isinstance(line, int)
    assert on_line in text.split("\n")[line - 1], (line, error.message)
    assert f"line {line}: " in error.message
    assert len(error.message) < 600
    if nearest:
        assert f"did you mean {nearest}?" in error.message or f"did you mean '{nearest}'?" in error.message
    else:
        assert "did you mean" not in error.message


def test_there_are_rows_enough() -> None:
    assert len(ROWS) >= 60
    assert len({(old, new) for old, new, *_ in ROWS}) == len(ROWS)


def test_the_policy_without_a_slip_is_read_and_its_findings_have_lines() -> None:
    text = POLICY.replace("[firewall.link.lan]", '[firewall.peers]\noffice = ["10.0.0.1"]\n[firewall.link.lan]')
    policy, findings = check_text(text, "policy.toml")
    assert policy.firewall is not None
    lines = {finding.subject: text.split("\n")[line - 1] for line, finding in findings}
    assert lines["peers.office"] == 'office = ["10.0.0.1"]'


def test_every_suggestion_is_accepted_in_the_place_of_the_slip() -> None:
    tried = 0
    for old, new, code, *_ in ROWS:
        text = POLICY.replace(old, new, 1)
        with pytest.raises(Rejected) as caught:
            check_text(text, "policy.toml")
        suggested = re.search(r"did you mean (.*)\?\Z", caught.value.message)
        lines = text.split("\n")
        index = int(caught.value.fields["line"] or 0) - 1
        shape = re.fullmatch(r"(  |[a-z_]+ = )([^\s{},]+|\".*\")(,?)", lines[index])
        if suggested is None or (code != SYNTAX and shape is None) or code == KEY or "icmp" in new:
            continue  # a key, a value within a table, a ping: which has no ports to give next
        whole = suggested[1]
        if code != SYNTAX and shape is not None:
            is_item = shape[2].startswith("[") and not whole.startswith("[")  # of a list on one line
            whole = f"{shape[1]}{f'[{whole}]' if is_item else whole}{shape[3]}"
        lines[index] = whole
        check_text("\n".join(lines), "policy.toml")
        tried += 1
    assert tried >= 40


def mutate(text: str, chance: random.Random) -> str:
    """Return ``text`` with one to three characters, words or lines lost, doubled or exchanged."""
    for _ in range(chance.randint(1, 3)):
        pieces = re.split(chance.choice(["()", r"(\s+)", "(\n)"]), text)
        place, other = chance.randrange(len(pieces)), chance.randrange(len(pieces))
        change = chance.randrange(4)
        if change == 0:
            del pieces[place]
        elif change == 1:
            pieces.insert(place, pieces[other])
        elif change == 2:
            pieces[place], pieces[other] = pieces[other], pieces[place]
        else:
            pieces[place] = chance.choice(["'", '"', "[", "]", "{", "=", "1", "-1", "true", '"x"', "[1]", "2030-01-01"])
        text = "".join(pieces)
    return text


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_whatever_is_malformed_has_a_line() -> None:
    chance = random.Random(20261128)
    refused: Counter[str] = Counter()
    for _ in range(2500):
        text = mutate(POLICY, chance)
        try:
            check_text(text, "policy.toml")
        except Rejected as error:
            line = error.fields["line"]
            assert isinstance(line, int), error.message
            assert 1 <= line <= text.count("\n") + 1
            assert f"line {line}: " in error.message
            refused[error.code] += 1
    assert set(refused) >= {SYNTAX, KEY, VALUE, "firewall.policy.peer"}
    assert refused.total() > 1500
