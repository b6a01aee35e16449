"""The text: its order, its positive logic, its limits. That it does what it says is the system tests' business."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from tidegate.firewall.compile import encode_ruleset, plan_port_groups
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.section import FirewallSection


def compile_section(**changes: Any) -> str:
    values: dict[str, Any] = {
        "management": {"peers": ["192.0.2.0/24"], "service": "ssh"},
        "services": {
            "ssh": {"protocol": "tcp", "ports": [22], "peers": []},
            "web": {
                "protocol": "tcp",
                "ports": [80],
                "peers": ["any"],
                "limit": {"new_per_s": 5, "connections": 3, "sources": 99},
            },
        },
    }
    return encode_ruleset(plan_ruleset(msgspec.convert(values | changes, FirewallSection)))


def rules(text: str, chain: str) -> list[str]:
    body = re.search(rf"\tchain {chain} {{\n(.*?)\t}}\n", text, re.DOTALL)
    assert body is not None
    return [line.strip() for line in body[1].splitlines()]


def test_equal_policies_give_equal_text_whatever_their_order() -> None:
    one = {"protocol": "tcp", "ports": [1, 2], "peers": ["10.0.0.1", "10.0.0.2"]}
    two = {"protocol": "tcp", "ports": [2, 1], "peers": ["10.0.0.2", "10.0.0.1"]}
    ssh = {"protocol": "tcp", "ports": [22], "peers": []}
    assert compile_section(services={"a": one, "b": one, "ssh": ssh}) == compile_section(
        services={"ssh": ssh, "b": two, "a": two}
    )


def test_the_management_path_stands_before_every_threshold() -> None:
    lines = rules(compile_section(), "input")
    assert lines.index("jump management") < min(number for number, line in enumerate(lines) if "limit rate" in line)


def test_every_log_is_behind_a_limit() -> None:
    for mode in ("enforce", "observe", "lockdown"):
        for line in compile_section(mode=mode, egress={"default": "deny"}).splitlines():
            if " log " in line:
                assert line.strip().startswith("limit rate "), mode
    assert " log " not in compile_section(log_per_s=0)


def test_thresholds_are_positive() -> None:
    lines = rules(compile_section(), "svc_web")
    guarded = [line for line in lines if "limit rate" in line]
    assert len(guarded) == 2
    assert all(line.endswith("accept") and " over " not in line and "ct count 3 }" in line for line in guarded)
    assert not any("accept" in line for line in lines if line not in guarded)


def test_dynamic_sets_are_bounded() -> None:
    text = compile_section()
    for body in re.findall(r"\tset \S+ {\n(.*?)\t}\n", text, re.DOTALL):
        if "dynamic" in body or "timeout" in body:
            assert "size " in body


def test_the_number_of_rules_does_not_grow_with_peers() -> None:
    few = compile_section(services={"ssh": {"protocol": "tcp", "ports": [22], "peers": ["10.0.0.1"]}})
    peers = [f"10.{i // 250}.{i % 250}.1" for i in range(5000)]
    many = compile_section(services={"ssh": {"protocol": "tcp", "ports": [22], "peers": peers}})
    assert few.count("\n") == many.count("\n")


@pytest.mark.parametrize(("mode", "refuses"), [("enforce", True), ("lockdown", True), ("observe", False)])
def test_observing_refuses_nothing(mode: str, refuses: bool) -> None:
    text = compile_section(mode=mode, egress={"default": "deny"}, default="reject")
    assert ("policy drop" in text or " reject " in text or " drop" in text) is refuses


def test_lockdown_admits_no_running_session() -> None:
    lines = rules(compile_section(mode="lockdown"), "input")
    assert not any("established" in line and line.endswith("accept") for line in lines)


def test_ports_of_several_services_are_cut_into_disjoint_spans() -> None:
    values = {
        "a": {"protocol": "tcp", "ports": ["10-20"], "peers": ["any"]},
        "b": {"protocol": "tcp", "ports": ["15-30"], "peers": ["any"]},
        "c": {"protocol": "udp", "ports": [15], "peers": ["any"]},
        "d": {"protocol": "tcp", "ports": [65535], "peers": ["any"]},
    }
    ruleset = plan_ruleset(msgspec.convert({"services": values}, FirewallSection))
    groups = [(group.key, group.services) for group in plan_port_groups(ruleset.services)]
    assert groups == [
        ("tcp . 10-14", ("a",)),
        ("tcp . 15-20", ("a", "b")),
        ("tcp . 21-30", ("b",)),
        ("tcp . 65535", ("d",)),
        ("udp . 15", ("c",)),
    ]


def test_a_source_is_remembered_until_its_burst_has_refilled() -> None:
    web = {"protocol": "tcp", "ports": [80], "peers": ["any"], "limit": {"new_per_s": 2, "burst": 99}}
    ssh = {"protocol": "tcp", "ports": [22], "peers": []}
    assert "timeout 51s" in compile_section(services={"web": web, "ssh": ssh})
    assert "timeout 10s" in compile_section()
