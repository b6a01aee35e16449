"""The text: its order, its positive logic, its limits. That it does what it says is the system tests' business."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Any

import msgspec
import pytest

from tidegate.firewall.compile import encode_ruleset, plan_port_groups
from tidegate.firewall.meters import encode_rate
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
    management = next(number for number, line in enumerate(lines) if line.endswith("jump management"))
    assert management < min(number for number, line in enumerate(lines) if "limit rate" in line)


def test_every_log_is_behind_a_limit() -> None:
    for mode in ("enforce", "observe", "lockdown"):
        for line in compile_section(mode=mode, egress={"default": "deny"}).splitlines():
            if " log " in line:
                assert line.strip().startswith("limit rate "), mode
    assert " log " not in compile_section(log_per_s=0)


def test_limits_are_positive() -> None:
    lines = rules(compile_section(), "svc_web_gate")
    guarded = [line for line in lines if "limit rate" in line]
    assert len(guarded) == 2
    assert all("accept" in line and " over " not in line and "ct count 3 }" in line for line in guarded)
    assert not any("accept" in line for line in lines if line not in guarded)


def compile_web(**changes: Any) -> str:
    """Return the text of a policy whose web service has ``changes``."""
    web = {"protocol": "tcp", "ports": [80], "peers": ["any"], **changes}
    return compile_section(services={"ssh": {"protocol": "tcp", "ports": [22], "peers": []}, "web": web})


def test_a_full_set_never_admits() -> None:
    """Whatever fills a set either admits by it or refuses whether or not it finds room."""
    hot = {"high": 10, "low": 2, "interval_s": 5}
    text = compile_web(thresholds=[hot, {**hot, "per": "service"}, {**hot, "count": "packets"}])
    for chain in re.findall(r"\tchain (\S+_(?:over|hot)) {", text):
        assert not any("accept" in line or "return" in line for line in rules(text, chain)), chain
    leads = {"svc_web_gate": "goto svc_web_gate1", "svc_web_gate1": "goto svc_web_gate2", "svc_web_k2_gate": "return"}
    for chain, lead in leads.items():
        lines = rules(text, chain)
        onwards = [line for line in lines if lead in line or "accept" in line]
        assert onwards, chain
        assert all("limit rate " in line for line in onwards), chain
        assert lines[-1].startswith("goto "), chain
    assert text.count("svc_web_gate2") == 1 + 1  # its only way in, and its own line


@pytest.mark.parametrize(
    ("high", "interval_s", "words"),
    [
        (10, 1, "limit rate 10/second burst 10 packets"),
        (100, 10, "limit rate 10/second burst 100 packets"),
        (7, 30, "limit rate 14/minute burst 7 packets"),
        (1, 3600, "limit rate 1/hour burst 1 packets"),
        (1, 7, "limit rate 12342/day burst 1 packets"),
    ],
)
def test_a_mark_over_an_interval_is_a_rate_that_nft_knows(high: int, interval_s: int, words: str) -> None:
    assert encode_rate(high, interval_s) == words


def test_plain_rules_have_no_chain_of_their_own() -> None:
    services = {f"s{n}": {"protocol": "tcp", "ports": [1000 + n], "peers": [f"10.0.{n}.0/24"]} for n in range(200)}
    services["ssh"] = {"protocol": "tcp", "ports": [22], "peers": []}
    text = compile_section(services=services)
    assert "chain svc_s1" not in text
    assert len(rules(text, "input")) < 16
    assert text.count("goto in_admit") == 200


@pytest.mark.parametrize("change", [{"mode": "observe"}, {"limit": {"new_per_s": 1}}, {"peers": ["02:00:00:00:00:01"]}])
def test_rules_that_a_map_cannot_say_have_a_chain(change: dict[str, Any]) -> None:
    assert "chain svc_web " in compile_web(**change)


def test_equal_lists_of_peers_are_declared_once() -> None:
    rule = {"protocol": "gre", "peers": ["10.0.0.0/8"]}
    ssh = {"protocol": "tcp", "ports": [22], "peers": []}
    text = compile_section(services={"a": rule, "b": rule, "ssh": ssh})
    assert text.count("10.0.0.0/8") == 1


def test_every_rule_that_decides_names_the_policys_rule() -> None:
    text = compile_web(limit={"new_per_s": 5}, thresholds=[{"high": 10, "low": 2}])
    for line in text.partition("table inet tidegate_bans")[0].splitlines():
        if (
            re.search(r" (accept|drop)( |$)", line)
            and "policy" not in line
            and '"lo"' not in line
            and "ct state" not in line
        ):
            assert "comment" in line, line


def test_what_content_rules_look_at_is_refused_without_the_inspector() -> None:
    modbus = {"protocol": "tcp", "ports": [502], "peers": ["any"], "fields": "reads"}
    ssh = {"protocol": "tcp", "ports": [22], "peers": []}
    allow = [{"functions": [3]}]
    for when_down, marks in (("closed", "0x41000000"), ("open", "0xc1000000")):
        fields = {"reads": {"protocol": "modbus", "allow": allow, "when_down": when_down}}
        text = compile_section(services={"ssh": ssh, "plc": modbus}, fields=fields)
        assert marks in " ".join(rules(text, "fields_mark_input"))
        check = rules(text, "fields_check_input")
        assert "meta mark & 0xc0000000 == 0x40000000" in check[1]
        assert "drop" in check[1]
    assert "fields_" not in compile_section()


def test_dynamic_sets_are_bounded() -> None:
    text = compile_section()
    for body in re.findall(r"\tset \S+ {\n(.*?)\t}\n", text, re.DOTALL):
        if "dynamic" in body or "timeout" in body:
            assert "size " in body


def test_the_number_of_rules_does_not_grow_with_peers() -> None:
    few = compile_section(services={"ssh": {"protocol": "tcp", "ports": [22], "peers": ["10.0.0.1"]}})
    peers = [f"10.{i // 250}.{i % 250}.1" for i in range(5000)]
    many = compile_section(services={"ssh": {"protocol": "tcp", "ports": [22], "peers": peers}})
    assert many.count("\n") <= few.count("\n") + 10  # a set and a chain, where a map held the one


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
    groups = [(group.key, tuple(rule.name for rule in group.rules)) for group in plan_port_groups(ruleset.services)]
    assert groups == [
        ("6 . 10-14", ("a",)),
        ("6 . 15-20", ("a", "b")),
        ("6 . 21-30", ("b",)),
        ("6 . 65535", ("d",)),
        ("17 . 15", ("c",)),
    ]


def test_a_source_is_remembered_until_its_burst_has_refilled() -> None:
    web = {"protocol": "tcp", "ports": [80], "peers": ["any"], "limit": {"new_per_s": 2, "burst": 99}}
    ssh = {"protocol": "tcp", "ports": [22], "peers": []}
    assert "timeout 51s" in compile_section(services={"web": web, "ssh": ssh})
    assert "timeout 10s" in compile_section()


def test_no_two_rules_share_an_object_whatever_they_are_called() -> None:
    """Names are made of parts, and one rule's name may be another's with a part behind it."""
    marks = [{"high": 5, "low": 2}, {"high": 5, "low": 2, "count": "packets"}]
    rule = {
        "protocol": "tcp",
        "peers": ["10.0.0.0/8"],
        "limit": {"new_per_s": 5, "connections": 3},
        "thresholds": marks,
    }
    parts = ["", "-gate", "-gate1", "-over", "-t0", "-t0-hot", "-k1", "-syn", "-peers4", "-rate4", "-conns4", "-fields"]
    services: dict[str, Any] = {"ssh": {"protocol": "tcp", "ports": [22], "peers": []}}
    services |= {f"web{part}": {**rule, "ports": [80 + n], "syn_proxy": n % 2 == 0} for n, part in enumerate(parts)}
    for table in compile_section(services=services).split("\ntable ")[1:]:
        names = re.findall(r"\t(chain|(?:set|map)|counter) (\S+) {", table)
        names = [("set" if kind == "map" else kind, name) for kind, name in names]
        if not table.startswith("inet tidegate_bans"):  # declared empty first, so that a flush finds them
            assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


@pytest.mark.parametrize("never", [["0.0.0.0/0"], ["127.0.0.0/8"], ["::/0"], ["any", "!10.0.0.1"]])
def test_who_is_never_banned_may_contain_loopback(never: list[str]) -> None:
    """nftables refuses a set whose intervals overlap, and with it the whole policy."""
    text = compile_section(bans={"never": never})
    for family, inside in ((4, "127.0.0.0/8"), (6, "::1/128")):
        body = re.findall(rf"\tset never{family} {{\n(.*?)\t}}\n", text, re.DOTALL)[-1]
        prefixes = [ip_network(one) for one in re.findall(r"[0-9a-f.:]+/\d+", body.partition("elements")[2])]
        assert any(ip_network(inside).subnet_of(prefix) for prefix in prefixes)  # type: ignore[arg-type]
        assert not any(a.overlaps(b) for a in prefixes for b in prefixes if a is not b)
