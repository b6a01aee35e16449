"""What a room refuses gets the line of the operator's policy, the reason, and what was probably meant."""

from __future__ import annotations

import pytest

from tidegate.base.errors import Rejected, TidegateError
from tidegate.policy.check import read_ruleset
from tidegate.policy.places import find_subjects

POLICY = """\
[policy]
version = 1

[firewall]
forward = "deny"
[firewall.zones.lan]
interfaces = ["eth0"]
[firewall.zones.wan]
interfaces = ["wan0"]

[firewall.peers]
plant = ["10.0.0.0/8"]

[firewall.management]
peers = ["192.0.2.0/24"]
service = "ssh"

[firewall.services.ssh]
protocol = "tcp"
ports = [22]
peers = []

[firewall.services.web]
protocol = "tcp"
ports = [
  80,
  "8000-8010",
]
peers = [
  "10.0.0.0/8",
  "@plant",
]
zones = ["lan"]
syn_proxy = false
fields = "reads"
thresholds = [{ high = 10, low = 5 }]

[firewall.fields.reads]
protocol = "modbus"
allow = [{ functions = ["read-coils"] }]

[firewall.egress.services]
ntp = { protocol = "udp", ports = [123], peers = ["198.51.100.1"] }

[firewall.routes.out]
protocol = "tcp"
ports = [443]
sources = ["@plant"]
destinations = ["any"]
from_zones = ["lan"]
to_zones = ["wan"]

[firewall.nat.masquerade.all]
sources = ["10.0.0.0/8"]
zones = ["wan"]
[firewall.nat.port_forwards.camera]
protocol = "tcp"
port = 8443
zones = ["wan"]
peers = ["any"]
to = "10.0.0.7"

[[firewall.thresholds]]
per = "total"
high = 100
low = 50

[firewall.link.lan]
ethertypes = ["ipv4", "arp"]
arp_bindings = { "10.0.0.7" = "aa:bb:cc:dd:ee:ff" }

[firewall.bans]
never = ["192.0.2.10"]
"""

# what is replaced, by what, the code, a part of the line that has to be named, the nearest valid spelling
ROWS: list[tuple[str, str, str, str, str]] = [
    ('  "10.0.0.0/8",', '  "10.0.0.1/8",', "firewall.policy.peer", '"10.0.0.1/8"', "10.0.0.0/8"),
    ('  "@plant",', '  "@palnt",', "firewall.policy.peer", '"@palnt"', "@plant"),
    ('  "@plant",', '  "ayn",', "firewall.policy.peer", '"ayn"', "any"),
    ('plant = ["10.0.0.0/8"]', 'plant = ["10.0.0.1/8"]', "firewall.policy.peer", "plant = ", "10.0.0.0/8"),
    ("peers = []", 'peers = ["10.0.0.300"]', "firewall.policy.peer", "10.0.0.300", ""),
    ('peers = ["192.0.2.0/24"]', 'peers = ["192.0.2.1/24"]', "firewall.policy.peer", "192.0.2.1/24", "192.0.2.0/24"),
    ('peers = ["192.0.2.0/24"]', 'peers = ["a.example.org"]', "firewall.policy.peer", "[firewall.management]", ""),
    ('peers = ["198.51.100.1"]', 'peers = ["198.51.100.1/8"]', "firewall.policy.peer", "ntp = ", "198.0.0.0/8"),
    ('sources = ["@plant"]', 'sources = ["@plan"]', "firewall.policy.peer", 'sources = ["@plan"]', "@plant"),
    ('to = "10.0.0.7"', 'to = "10.0.0"', "firewall.policy.peer", 'to = "10.0.0"', ""),
    ('never = ["192.0.2.10"]', 'never = ["192.0.2.10/24"]', "firewall.policy.peer", "never = ", "192.0.2.0/24"),
    ('  "8000-8010",', '  "8010-8000",', "firewall.policy.port", '"8010-8000"', ""),
    ("ports = [22]", "ports = []", "firewall.policy.port", "ports = []", ""),
    ('service = "ssh"', 'service = "shh"', "firewall.policy.unknown-service", 'service = "shh"', "ssh"),
    ('service = "ssh"', 'service = "ssh"\negress = "npt"', "firewall.policy.unknown-service", "egress = ", "ntp"),
    ('zones = ["lan"]\nsyn', 'zones = ["lna"]\nsyn', "firewall.policy.zone", 'zones = ["lna"]', "lan"),
    ('to_zones = ["wan"]', 'to_zones = ["wam"]', "firewall.policy.zone", 'to_zones = ["wam"]', "wan"),
    ("[firewall.link.lan]", "[firewall.link.lam]", "firewall.policy.zone", "[firewall.link.lam]", "lan"),
    ('interfaces = ["wan0"]', 'interfaces = ["wan0", "eth0"]', "firewall.policy.zone", "[firewall.zones.wan]", ""),
    ('fields = "reads"', 'fields = "raeds"', "firewall.policy.rule", 'fields = "raeds"', "reads"),
    ("low = 5 }", "low = 50 }", "firewall.policy.rule", "thresholds = [{", ""),
    (
        '"total"\nhigh = 100\nlow = 50',
        '"total"\nhigh = 100\nlow = 500',
        "firewall.policy.rule",
        "low = 500",
        "",
    ),
    ('forward = "deny"', 'forward = "leave"', "firewall.policy.rule", "[firewall.routes.out]", ""),
    ('functions = ["read-coils"]', 'functions = ["read-coil"]', "firewall.policy.field", "allow = ", "read-coils"),
    ('ethertypes = ["ipv4"', 'ethertypes = ["ivp4"', "firewall.policy.link", "[firewall.link.lan]", "ipv4"),
]


@pytest.mark.parametrize(("old", "new", "code", "on_line", "nearest"), ROWS)
def test_a_refusal_has_line_reason_and_the_nearest_spelling(
    old: str, new: str, code: str, on_line: str, nearest: str
) -> None:
    assert old in POLICY
    text = POLICY.replace(old, new, 1)
    with pytest.raises(Rejected) as caught:
        read_ruleset(text, "policy.toml")
    error = caught.value
    assert error.code == code
    number = error.fields["line"]
    assert isinstance(number, int)
    assert on_line in text.split("\n")[number - 1]
    assert error.message.startswith(f"policy.toml: line {number}: ")
    assert f"'{nearest}'" in error.message or not nearest


def test_the_good_policy_is_read() -> None:
    policy, ruleset = read_ruleset(POLICY, "policy.toml")
    assert policy.firewall is not None
    assert len(ruleset.services) == 2


def test_a_refusal_that_has_its_line_keeps_it() -> None:
    with pytest.raises(TidegateError) as caught:
        read_ruleset(POLICY.replace("protocol", "protokol", 1), "policy.toml")
    assert caught.value.code == "policy.key.unknown"
    assert caught.value.message.count("line") == 1


@pytest.mark.parametrize(
    ("subject", "line"),
    [
        ("services.web", "[firewall.services.web]"),
        ("egress.ntp", "ntp = "),
        ("routes.out", "[firewall.routes.out]"),
        ("port-forwards.camera", "[firewall.nat.port_forwards.camera]"),
        ("nat.masquerade.all", "[firewall.nat.masquerade.all]"),
        ("management", "[firewall.management]"),
        ("link.lan", "[firewall.link.lan]"),
        ("peers.plant", "plant = "),
        ("policy", "[firewall]"),
        ("set_budget", "[firewall]"),
    ],
)
def test_findings_have_a_line(subject: str, line: str) -> None:
    assert line in POLICY.split("\n")[find_subjects(POLICY, [subject])[0] - 1]
