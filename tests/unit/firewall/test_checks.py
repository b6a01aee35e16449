"""A row per finding; the error findings stop the ruleset with their own code."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.checks import check_ruleset, count_elements, verify_ruleset
from tidegate.firewall.model import Packet, plan_ruleset
from tidegate.firewall.section import FirewallSection, Protocol

GOOD: dict[str, Any] = {
    "management": {"peers": ["192.0.2.0/24", "2001:db8::/64"], "service": "ssh"},
    "services": {"ssh": {"protocol": "tcp", "ports": [22], "peers": []}},
}


def service(*peers: str, ports: tuple[int | str, ...] = (80,), **more: Any) -> dict[str, Any]:
    return {"protocol": "tcp", "ports": list(ports), "peers": list(peers), **more}


def codes(changes: dict[str, Any]) -> list[str]:
    merged = {**GOOD, **changes}
    merged["services"] = {**GOOD["services"], **changes.get("services", {})}
    return [finding.code for finding in check_ruleset(plan_ruleset(msgspec.convert(merged, FirewallSection)))]


def test_a_good_policy_has_no_findings() -> None:
    assert codes({"services": {"web": service("any")}}) == []


LIMIT = {"new_per_s": 1}


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"management": None}, "firewall.check.management-cut"),
        ({"management": {"peers": [], "service": "ssh"}}, "firewall.check.management-cut"),
        (
            {
                "management": {"peers": ["192.0.2.1"], "service": "ssh", "egress": "up"},
                "egress": {"services": {"up": service()}},
            },
            "firewall.check.management-cut",
        ),
        ({"management": {"peers": ["any"], "service": "ssh"}}, "firewall.check.management-any"),
        ({"set_budget": 64}, "firewall.check.set-budget"),
        ({"services": {"web": service("any", limit={**LIMIT, "sources": 1_000_000})}}, "firewall.check.set-budget"),
        ({"services": {"a": service("any"), "b": service("any")}}, "firewall.check.duplicate"),
        (
            {"services": {"a": service("any"), "b": service("10.0.0.0/8", "fd00::/8", limit=LIMIT)}},
            "firewall.check.shadowed",
        ),
        (
            {"services": {"a": service("any", ports=("80-90",)), "b": service("any", ports=(85,), limit=LIMIT)}},
            "firewall.check.shadowed",
        ),
        ({"services": {"a": service("10.0.0.0/8")}}, "firewall.check.family-parity"),
        ({"services": {"a": service("fd00::/8")}}, "firewall.check.family-parity"),
        ({"services": {"a": service()}}, "firewall.check.no-peers"),
    ],
)
def test_findings(changes: dict[str, Any], code: str) -> None:
    assert code in codes(changes)


@pytest.mark.parametrize(
    "services",
    [
        {"a": service("any", limit=LIMIT), "b": service("any", ports=(81,))},
        {"a": service("any", interfaces=["eth0"]), "b": service("any", limit=LIMIT)},
        {"a": service("10.0.0.0/8", "fd00::/8"), "b": service("any", limit=LIMIT)},
        {"a": service("any", limit=LIMIT), "b": service("any", limit={"new_per_s": 2})},
        {"a": service("any"), "b": {**service("any"), "protocol": "udp"}},
    ],
)
def test_services_that_only_meet_are_no_finding(services: dict[str, Any]) -> None:
    assert codes({"services": services}) == []


def test_errors_come_first_and_stop_the_ruleset() -> None:
    section = msgspec.convert({"services": {"a": service("10.0.0.0/8")}}, FirewallSection)
    ruleset = plan_ruleset(section)
    assert [finding.severity.value for finding in check_ruleset(ruleset)] == ["error", "warning"]
    with pytest.raises(TidegateError) as caught:
        verify_ruleset(ruleset)
    assert caught.value.code == "firewall.check.management-cut"


def test_the_session_that_applies_must_pass() -> None:
    ruleset = plan_ruleset(msgspec.convert(GOOD, FirewallSection))

    def session(source: str) -> Packet:
        return Packet(
            interface=None,
            source=ip_address(source),
            destination=ip_address("192.0.2.1"),
            protocol=Protocol.TCP,
            port=22,
        )

    verify_ruleset(ruleset, must_pass=[session("192.0.2.77")])
    with pytest.raises(TidegateError) as caught:
        verify_ruleset(ruleset, must_pass=[session("198.51.100.1")])
    assert caught.value.code == "firewall.check.session-cut"


def test_elements_are_counted() -> None:
    section = msgspec.convert(
        {**GOOD, "bans": {"max": 100}, "services": {"ssh": service("any", limit={**LIMIT, "sources": 16})}},
        FirewallSection,
    )
    # 2 x 100 bans, 2 x 2 management prefixes, one port, 2 families x 16 sources
    assert count_elements(plan_ruleset(section)) == 200 + 4 + 1 + 32
