"""Which packets of open connections are marked for the inspector, and which are spared, as the compiler's text says."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.section import FirewallSection

PLC: dict[str, Any] = {"protocol": "tcp", "ports": [502], "peers": ["10.0.0.0/8"], "fields": "reads"}
FIELDS = {name: {"protocol": "modbus", "allow": [{"functions": [3]}]} for name in ("reads", "writes")}
STRAY = "ct state established ct direction original"


def marking(hook: str, **changes: Any) -> list[str]:
    text = encode_ruleset(plan_ruleset(msgspec.convert({"fields": FIELDS} | changes, FirewallSection)))
    found = re.search(rf"\tchain fields_mark_{hook} {{\n(.*?)\t}}\n", text, re.DOTALL)
    assert found is not None
    return found[1].split("\n")


def place(lines: list[str], words: str) -> int:
    return next(number for number, line in enumerate(lines) if words in line)


def test_managers_and_rules_without_content_rules_are_spared_behind_what_marks_strays() -> None:
    services = {"plc": PLC, "other": {"protocol": "tcp", "ports": ["500-600"], "peers": ["192.0.2.7"]}}
    management = {"peers": ["192.0.2.100"], "service": "plc"}
    lines = marking("input", services=services, management=management)
    stray, own = place(lines, STRAY), place(lines, "@svc_plc_peers4")
    for name in ("svc_other_peers4", "management_peers4"):
        spared = place(lines, name)
        assert stray < spared < own
        assert "| 0x4" not in lines[spared]


def test_two_content_rules_on_a_port_leave_a_stray_to_neither() -> None:
    services = {"a": PLC, "b": PLC | {"peers": ["192.0.2.7"], "fields": "writes"}}
    marks = {line.partition(" | ")[2].split()[0] for line in marking("input", services=services) if STRAY in line}
    assert marks == {"0x40000000"}


@pytest.mark.parametrize(
    ("egress_default", "mode", "strays"),
    [("deny", "enforce", True), ("allow", "enforce", False), ("deny", "observe", False)],
)
def test_strays_are_marked_where_the_rule_alone_lets_them_out(egress_default: str, mode: str, strays: bool) -> None:
    egress = {"default": egress_default, "services": {"plc": PLC}}
    assert (STRAY in " ".join(marking("output", egress=egress, mode=mode))) is strays
