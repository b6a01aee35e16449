"""A row per finding; the error findings stop the ruleset with their own code."""

from __future__ import annotations

import re
import time
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.budget import HASH_BYTES, INTERVAL_BYTES, measure_cost
from tidegate.firewall.checks import check_ruleset, check_written, count_elements, verify_ruleset
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.findings import Finding
from tidegate.firewall.model import Direction, Packet, Ruleset, State, plan_ruleset
from tidegate.firewall.section import FirewallSection, Protocol

GOOD: dict[str, Any] = {
    "management": {"peers": ["192.0.2.0/24", "2001:db8::/64"], "service": "ssh"},
    "services": {"ssh": {"protocol": "tcp", "ports": [22], "peers": []}},
    "zones": {"lan": {"interfaces": ["eth0"]}, "wan": {"interfaces": ["wan0"]}},
}
LIMIT = {"new_per_s": 1}
READS = {"protocol": "modbus", "allow": [{"functions": [3]}]}
WRITES = {"protocol": "modbus", "allow": [{"functions": [6]}]}
FIELDS = {"reads": READS, "writes": WRITES}
BOTH = ("10.0.0.0/8", "fd00::/8")
SOURCE_THRESHOLD = {"high": 10}


def service(*peers: str, ports: tuple[int | str, ...] = (80,), **more: Any) -> dict[str, Any]:
    return {"protocol": "tcp", "ports": list(ports), "peers": list(peers), **more}


def route(**more: Any) -> dict[str, Any]:
    base = {"protocol": "tcp", "ports": [80], "sources": ["any"], "destinations": ["any"]}
    return base | {"from_zones": ["lan"], "to_zones": ["wan"]} | more


def forward(**more: Any) -> dict[str, Any]:
    return {"protocol": "tcp", "port": 8080, "zones": ["wan"], "peers": ["any"], "to": "10.0.0.5"} | more


def section(changes: dict[str, Any]) -> FirewallSection:
    merged = {**GOOD, **changes}
    merged["services"] = {**GOOD["services"], **changes.get("services", {})}
    return msgspec.convert(merged, FirewallSection)


def find(changes: dict[str, Any], **arguments: Any) -> list[Finding]:
    return check_ruleset(plan_ruleset(section(changes)), **arguments)


def codes(changes: dict[str, Any]) -> list[str]:
    return [finding.code.removeprefix("firewall.check.") for finding in find(changes)]


def test_a_good_policy_has_no_findings() -> None:
    good = {
        "services": {"web": service("any"), "plc": service(*BOTH, ports=(502,), fields="reads")},
        "fields": {"reads": READS},
        "egress": {"services": {"dns": service(*BOTH, ports=(53,), protocol="udp"), "up": service("example.org")}},
        "routes": {"out": route()},
        "nat": {
            "masquerade": {"all": {"sources": ["10.0.0.0/8"], "zones": ["wan"]}},
            "port_forwards": {"a": forward()},
        },
    }
    assert codes(good) == []


# what is changed, the code, the label of the rule
ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"management": None}, "management-cut", "management"),
    ({"management": {"peers": [], "service": "ssh"}}, "management-cut", "management"),
    (
        {
            "management": {"peers": ["192.0.2.1"], "service": "ssh", "egress": "up"},
            "egress": {"services": {"up": service()}},
        },
        "management-cut",
        "egress.up",
    ),
    (  # the port of the management service is sent to another host
        {"nat": {"port_forwards": {"a": forward(port=22, zones=["wan", "lan"])}}}
        | {"services": {"ssh": service(ports=(22,), zones=["lan"])}},
        "management-cut",
        "port-forwards.a",
    ),
    (  # the managers come in where IPv6 is not let in
        {"services": {"ssh": service(ports=(22,), zones=["lan"])}, "link": {"lan": {"ethertypes": ["ipv4", "arp"]}}},
        "management-cut",
        "link.lan",
    ),
    ({"link": {"lan": {"ethertypes": ["ipv4", "arp"]}}}, "management-link", "link.lan"),  # they may come by another
    ({"management": {"peers": ["any"], "service": "ssh"}}, "management-any", "management"),
    ({"services": {"ssh": service("any", ports=(22,), syn_proxy=True)}}, "management-syn-proxy", "services.ssh"),
    ({"set_budget": 64}, "set-budget", "set_budget"),
    ({"services": {"web": service("any", limit={**LIMIT, "sources": 1_000_000})}}, "set-budget", "set_budget"),
    ({"services": {"web": service("any", thresholds=[{"high": 2, "sources": 99_999}])}}, "set-budget", "set_budget"),
    ({"services": {"a": service("any"), "b": service("any")}}, "duplicate", "services.b"),
    ({"services": {"a": service("any"), "b": service(*BOTH, limit=LIMIT)}}, "shadowed", "services.b"),
    ({"services": {"b": service("any"), "a": service(*BOTH, limit=LIMIT)}}, "shadowed", "services.a"),
    (
        {"services": {"a": service("any", ports=("80-90",)), "b": service("any", ports=(85,), limit=LIMIT)}},
        "shadowed",
        "services.b",
    ),
    (
        {"services": {"a": service("any", "!10.9.0.0/16"), "b": service("10.8.1.0/24", "fd00::/8", limit=LIMIT)}},
        "shadowed",
        "services.b",
    ),
    (
        {"services": {"a": service("x.example.org", *BOTH), "b": service("x.example.org", limit=LIMIT)}},
        "shadowed",
        "services.b",
    ),
    ({"routes": {"a": route(), "b": route(destinations=list(BOTH), limit=LIMIT)}}, "shadowed", "routes.b"),
    ({"egress": {"services": {"a": service("any"), "b": service(*BOTH)}}}, "shadowed", "egress.b"),
    (
        {"services": {f"p{n}": {"protocol": "ping", "peers": list(BOTH)} for n in range(2)}},
        "duplicate",
        "services.p1",
    ),
    ({"services": {"a": service("any", limit=LIMIT), "b": service(*BOTH, limit=LIMIT)}}, "overlapping", "services.b"),
    (
        {
            "services": {
                "a": service("any", ports=("1-80",), limit=LIMIT),
                "b": service("any", ports=("80-99",), limit=LIMIT),
            }
        },
        "overlapping",
        "services.b",
    ),
    (
        {
            "services": {
                "a": service("aa:bb:cc:dd:ee:ff", limit=LIMIT),
                "b": service("aa:bb:cc:dd:ee:ff", *BOTH, limit=LIMIT),
            }
        },
        "overlapping",
        "services.b",
    ),
    (
        {"services": {"a": service("any", fields="reads"), "b": service(*BOTH, fields="writes")}, "fields": FIELDS},
        "fields-overlap",
        "services.b",
    ),
    (
        {"services": {"a": service("any", fields="reads"), "b": service(*BOTH)}, "fields": FIELDS},
        "fields-overlap",
        "services.b",
    ),
    ({"services": {"a": service("10.0.0.0/8")}}, "family-parity", "services.a"),
    ({"services": {"a": service("fd00::/8")}}, "family-parity", "services.a"),
    ({"routes": {"a": route(destinations=["10.0.0.0/8"])}}, "family-parity", "routes.a"),
    ({"routes": {"a": route(sources=["10.0.0.0/8"], destinations=["fd00::/8"])}}, "unreachable", "routes.a"),
    ({"nat": {"port_forwards": {"a": forward(peers=["fd00::/8"])}}}, "unreachable", "port-forwards.a"),
    ({"services": {"a": service()}}, "no-peers", "services.a"),
    ({"services": {"a": service("10.0.0.1", "!10.0.0.0/8")}}, "no-peers", "services.a"),
    ({"routes": {"a": route(destinations=[])}}, "no-peers", "routes.a"),
    ({"nat": {"masquerade": {"a": {"sources": [], "zones": ["wan"]}}}}, "no-peers", "nat.masquerade.a"),
    ({"routes": {"a": route(to_zones=["lan"])}}, "route-hairpin", "routes.a"),
    ({"egress": {"default": "allow", "services": {"a": service("any")}}}, "egress-open", "egress.a"),
    (
        {"services": {"a": service("any", ports=("8000-9000",))}, "nat": {"port_forwards": {"a": forward()}}},
        "port-taken",
        "services.a",
    ),
    (
        {"nat": {"masquerade": {"a": {"sources": ["fd00::/8"], "zones": ["wan"]}}}},
        "masquerade-ipv6",
        "nat.masquerade.a",
    ),
    ({"nat": {"port_forwards": {"a": forward(to="127.0.0.1")}}}, "forward-to-self", "port-forwards.a"),
    (
        {
            "conntrack": {"max": 1024},
            "services": {
                name: service("any", ports=(port,), limit={"total_connections": 600})
                for name, port in (("a", 1), ("b", 2))
            },
        },
        "conntrack-small",
        "conntrack",
    ),
    (
        {"thresholds": [{"per": "total", "high": 10}], "services": {"a": service("any", limit={"new_per_s": 11})}},
        "threshold-low",
        "services.a",
    ),
    (
        {
            "thresholds": [{"per": "total", "high": 10, "count": "packets"}],
            "management": {"peers": ["192.0.2.1"], "service": "ssh", "egress": "up"},
            "egress": {"services": {"up": service("any")}},
        },
        "threshold-manager",
        "egress.up",
    ),
    ({"egress": {"services": {"up": service("example.org")}}}, "names-unresolvable", "egress"),
    ({"mode": "observe", "log_per_s": 0}, "observe-silent", "mode"),
    ({"services": {"a": service("any", mode="observe")}, "log_per_s": 0}, "observe-silent", "services.a"),
]


@pytest.mark.parametrize(("changes", "code", "subject"), ROWS)
def test_findings(changes: dict[str, Any], code: str, subject: str) -> None:
    found = {(one.code.removeprefix("firewall.check."), one.subject) for one in find(changes)}
    assert (code, subject) in found


@pytest.mark.parametrize(
    "services",
    [
        {"a": service("any", limit=LIMIT), "b": service("any", ports=(81,), limit=LIMIT)},
        {"a": service("any", limit=LIMIT), "b": service(*BOTH)},  # an exemption from a limit
        {"a": service("any", interfaces=["eth0"]), "b": service("any", limit=LIMIT)},
        {"a": service("any", interfaces=["eth0"], limit=LIMIT), "b": service("any", zones=["wan"], limit=LIMIT)},
        {"a": service("any"), "b": {**service("any"), "protocol": "udp"}},
        {"a": service("any"), "b": service(*BOTH, lockdown=True)},  # it stays open when the other closes
        {"a": service("any"), "b": service(*BOTH, thresholds=[{"high": 9, "count": "packets"}])},
        {"a": service(*BOTH, fields="reads"), "b": service("172.16.0.0/12", "fe80::/10", fields="writes")},
        {"a": service("any", limit=LIMIT, mode="observe"), "b": service(*BOTH, limit=LIMIT)},
        {"a": service("1.example.org", limit=LIMIT), "b": service("2.example.org", limit=LIMIT)},
    ],
)
def test_services_that_only_meet_are_no_finding(services: dict[str, Any]) -> None:
    dns = {"services": {"dns": service("any", ports=(53,), protocol="udp")}}
    assert codes({"services": services, "fields": FIELDS, "egress": dns}) == []


def test_a_pair_that_meets_on_many_ports_is_told_once() -> None:
    ports = tuple(range(100, 300, 2))
    changes = {"services": {"a": service("any", ports=ports), "b": service("any", ports=ports)}}
    assert codes(changes) == ["duplicate"]


def test_a_policy_of_one_family_is_told_once() -> None:
    changes = {
        "management": {"peers": ["192.0.2.1"], "service": "ssh"},
        "services": {f"s{n}": service("10.0.0.0/8", ports=(n,)) for n in range(100, 110)} | {"web": service("any")},
    }
    assert [(one.code, one.subject) for one in find(changes)] == [("firewall.check.family-parity", "policy")]


def test_overlaps_that_nobody_can_judge_stop_the_ruleset() -> None:
    changes = {"services": {f"s{n}": service("any", limit={**LIMIT, "sources": 16}) for n in range(460)}}
    ruleset = plan_ruleset(section(changes))
    with pytest.raises(TidegateError) as caught:
        verify_ruleset(ruleset)
    assert caught.value.code == "firewall.check.too-many-overlaps"


def test_rules_with_many_prefixes_each_can_be_judged() -> None:
    services = {f"s{n}": service("any", *(f"!10.{k}.0.{n}" for k in range(20))) for n in range(60)}
    assert {one.code for one in find({"services": services})} == set()
    twins = services | {"twin": services["s7"]}
    assert [(one.code, one.subject) for one in find({"services": twins})] == [
        ("firewall.check.duplicate", "services.twin")
    ]


def test_errors_come_first_and_stop_the_ruleset() -> None:
    ruleset = plan_ruleset(msgspec.convert({"services": {"a": service("10.0.0.0/8")}}, FirewallSection))
    assert [finding.severity.value for finding in check_ruleset(ruleset)] == ["error", "warning"]
    with pytest.raises(TidegateError) as caught:
        verify_ruleset(ruleset)
    assert caught.value.code == "firewall.check.management-cut"


ERRORS = {(code, subject) for _, code, subject in ROWS if code in ("management-cut", "set-budget", "fields-overlap")}


@pytest.mark.parametrize(("changes", "code", "subject"), [row for row in ROWS if (row[1], row[2]) in ERRORS])
def test_every_error_is_raised_under_its_own_code(changes: dict[str, Any], code: str, subject: str) -> None:
    with pytest.raises(TidegateError) as caught:
        verify_ruleset(plan_ruleset(section(changes)))
    assert (caught.value.code, caught.value.fields["subject"]) == (f"firewall.check.{code}", subject)


def session(source: str, port: int = 22, interface: str | None = None) -> Packet:
    return Packet(
        interface=interface,
        source=ip_address(source),
        destination=ip_address("192.0.2.1"),
        protocol=Protocol.TCP,
        port=port,
    )


CALL = Packet(
    direction=Direction.OUT,
    interface=None,
    source=ip_address("192.0.2.1"),
    destination=ip_address("198.51.100.1"),
    protocol=Protocol.TCP,
    port=443,
)


@pytest.mark.parametrize(
    ("packet", "rule"),
    [
        (session("198.51.100.1"), "default"),
        (session("192.0.2.77", 23), "default"),
        (CALL, "egress"),
        (session("198.51.100.1", 8080, "wan0"), "port-forwards.a"),  # a service of the device, until it was forwarded
    ],
)
def test_the_session_that_applies_must_pass(packet: Packet, rule: str) -> None:
    changes = {"services": {"web": service("any", ports=(8080,))}, "nat": {"port_forwards": {"a": forward()}}}
    ruleset = plan_ruleset(section(changes))
    verify_ruleset(ruleset, must_pass=[session("192.0.2.77"), session("198.51.100.1", 8080, "eth0")])
    with pytest.raises(TidegateError) as caught:
        verify_ruleset(ruleset, must_pass=[session("192.0.2.77"), packet])
    assert caught.value.code == "firewall.check.session-cut"
    for words in (str(packet.source if packet.direction is Direction.IN else packet.destination), rule):
        assert words in caught.value.message


def test_nothing_is_cut_while_only_observing() -> None:
    ruleset = plan_ruleset(section({"mode": "observe"}))
    verify_ruleset(ruleset, must_pass=[session("198.51.100.1")])


def test_a_forward_to_an_address_of_our_own_is_found() -> None:
    changes = {"nat": {"port_forwards": {"a": forward(to="192.0.2.1")}}}
    assert "firewall.check.forward-to-self" not in [one.code for one in find(changes)]
    for arguments in ({"own": [ip_address("192.0.2.1")]}, {"must_pass": [session("192.0.2.77")]}):
        assert "firewall.check.forward-to-self" in [one.code for one in find(changes, **arguments)]


@pytest.mark.parametrize(
    ("changes", "code", "subject"),
    [
        ({"peers": {"plant": ["10.0.0.0/8"]}}, "unused", "peers.plant"),
        ({"fields": FIELDS, "services": {"a": service("any", fields="reads")}}, "unused", "fields.writes"),
        ({"services": {"a": service("any", zones=["lan"])}}, "unused", "zones.wan"),
        ({"services": {"a": service("any", limit={"burst": 5})}}, "limit-empty", "services.a"),
        ({"services": {"a": service("any", interfaces=["eth7"])}}, "no-zone", "services.a"),
        ({"egress": {"services": {"a": service("any", interfaces=["eth7"])}}}, "no-zone", "egress.a"),
    ],
)
def test_what_only_the_written_section_shows(changes: dict[str, Any], code: str, subject: str) -> None:
    found = {(one.code.removeprefix("firewall.check."), one.subject) for one in check_written(section(changes))}
    assert (code, subject) in found


def test_what_is_used_is_not_told() -> None:
    changes = {
        "peers": {"plant": ["10.0.0.0/8"], "bad": ["10.0.0.9"]},
        "services": {"a": service("@plant", "!@bad", zones=["lan"], fields="reads")},
        "fields": {"reads": READS},
        "link": {"wan": {}},
    }
    assert check_written(section(changes)) == []


MANY = {f"s{n}": service(f"10.{n // 250}.{n % 250}.0/24", f"2001:db8:{n:x}::/48", ports=(n + 100,)) for n in range(999)}
COSTLY: list[dict[str, Any]] = [
    {},
    {"services": MANY, "bans": {"max": 100}},
    {"services": {"a": service("any", ports=("1000-1100", 7, "9-60"), limit={"new_per_s": 1, "connections": 3})}},
    {"services": {"a": service(*BOTH, "x.example.org", thresholds=[{"high": 9, "low": 3}, {"high": 2}])}},
    {"thresholds": [{"high": 9, "low": 3}, {"per": "total", "high": 100}], "bans": {"never": ["10.0.0.1"]}},
    {"routes": {"a": route(sources=list(BOTH), destinations=["10.0.0.0/9", "fd00::/9", "172.16.0.0/12"])}},
    {"routes": {"a": route(sources=["any", "!10.1.2.3"], limit={"new_per_s": 1, "total_connections": 5})}},
    {"services": {"a": service("any", syn_proxy=True, limit=LIMIT), "b": service("aa:bb:cc:dd:ee:ff", ports=(81,))}},
]


@pytest.mark.parametrize("changes", COSTLY)
def test_the_budget_is_no_less_than_what_the_compiler_writes(changes: dict[str, Any]) -> None:
    ruleset = plan_ruleset(section(changes))
    written = count_written(ruleset)
    assert written <= count_elements(ruleset) <= 3 * written
    cost = measure_cost(ruleset)
    assert cost.size_bytes > cost.hashed * HASH_BYTES + cost.intervals * INTERVAL_BYTES


def count_written(ruleset: Ruleset) -> int:
    """Count, in the text for the kernel, the elements of fixed sets and the sizes of the others."""
    text = encode_ruleset(ruleset)
    total = 0
    for body in re.findall(r"\t(?:set|map) \w+ \{\n(.*?)\n\t\}", text, re.DOTALL):
        size, elements = re.search(r"size (\d+)", body), re.search(r"elements = \{ (.*) \}", body)
        total += int(size[1]) if size else len(elements[1].split(", ")) if elements else 0
    return total


def test_the_message_of_the_budget_says_bytes() -> None:
    [finding] = find({"set_budget": 64})
    assert f"{measure_cost(plan_ruleset(section({}))).size_bytes} bytes" in finding.message


@pytest.mark.parametrize("same_port", [False, True])
def test_a_thousand_services_are_checked_at_once(same_port: bool) -> None:
    """30 ms is the bar on an idle machine; the test allows for a busy one, and not for the square of a thousand."""
    services = {name: {**one, "ports": [80]} if same_port else one for name, one in MANY.items()}
    ruleset = plan_ruleset(section({"services": services}))
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        assert check_ruleset(ruleset) == []
        took.append(time.perf_counter() - begin)
    assert min(took) < 0.06


def test_a_reply_is_no_session() -> None:
    """What tracking knows already passes; the check is about what would begin anew."""
    ruleset = plan_ruleset(section({}))
    packet = Packet(
        interface="eth0",
        source=ip_address("198.51.100.1"),
        destination=ip_address("192.0.2.1"),
        protocol=Protocol.TCP,
        port=22,
        state=State.ESTABLISHED,
    )
    verify_ruleset(ruleset, must_pass=[packet])


def test_no_content_rules_on_the_way_in_of_the_manager() -> None:
    values = {**GOOD, "services": {"ssh": service(ports=(22,), fields="reads")}, "fields": FIELDS}
    with pytest.raises(TidegateError) as caught:
        verify_ruleset(plan_ruleset(msgspec.convert(values, FirewallSection)))
    assert caught.value.code == "firewall.check.management-cut"
