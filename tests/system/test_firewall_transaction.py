"""One transaction on the real kernel: soft swaps that leave what a whole replacement leaves, and missing devices."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall import commit, guard
from tidegate.firewall.commit import (
    apply_section,
    effective_digest,
    load_missing_links,
    load_pending,
    restore_last_confirmed,
)
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.firewall.snapshot import find_names
from tidegate.firewall.statefolder import load_expected_digest
from tidegate.firewall.transaction import load_whole, plan_parts, soften
from tidegate.testing.netns import Namespace, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

SSH = {"protocol": "tcp", "ports": [22], "peers": []}
GOOD: dict[str, Any] = {
    "management": {"peers": ["192.0.2.2"], "service": "ssh"},
    "services": {"ssh": SSH},
    "zones": {"lan": {"interfaces": ["lan0"]}, "wan": {"interfaces": ["wan0", "wan1"]}},
}
LINKED = {**GOOD, "link": {"lan": {"macs": ["02:00:00:00:00:01"]}, "wan": {}}}


def web(**more: Any) -> dict[str, Any]:
    rule = {"protocol": "tcp", "ports": [8080], "peers": ["10.0.0.0/8", "2001:db8::/32"], **more}
    return {**GOOD, "services": {"ssh": SSH, "web": rule}}


def many(start: int, count: int) -> dict[str, Any]:
    rules = {
        f"s{number}": {"protocol": "udp", "ports": [9000 + number], "peers": [f"10.1.{number}.0/24"]}
        for number in range(start, start + count)
    }
    return {**GOOD, "services": {"ssh": SSH, **rules}}


LIMIT = {"new_per_s": 5, "connections": 3, "total_connections": 50}
POLICIES: dict[str, dict[str, Any]] = {
    "small": GOOD,
    "web": web(),
    "web elsewhere": web(peers=["10.0.0.0/9", "192.0.2.77"]),
    "web for all": web(peers=["any"]),
    "web limited": web(limit=LIMIT),
    "web with ranges": web(ports=["8000-9000", 80]),
    "web by name": web(peers=["www.example.com"]),
    "web by MAC": web(peers=["02:00:00:00:00:09"]),
    "web observed": web(mode="observe"),
    "web on one interface": web(interfaces=["lan0"]),
    "web in lockdown": {**web(lockdown=True), "mode": "lockdown"},
    "observe": {**web(), "mode": "observe"},
    "reject": {**web(), "default": "reject", "log_per_s": 0},
    "thresholds": {**web(), "thresholds": [{"per": "source", "count": "packets", "high": 50, "low": 10}]},
    "many": many(0, 60),
    "many others": many(30, 60),
    "egress": {**GOOD, "egress": {"services": {"dns": {"protocol": "udp", "ports": [53], "peers": ["any"]}}}},
    "egress open": {**GOOD, "egress": {"default": "allow"}},
    "gateway": {
        **GOOD,
        "routes": {
            "out": {
                "protocol": "tcp", "ports": [443], "sources": ["10.0.0.0/24"], "destinations": ["any"],
                "from_zones": ["lan"], "to_zones": ["wan"],
            }
        },
        "nat": {"masquerade": {"inside": {"sources": ["10.0.0.0/24"], "zones": ["wan"]}}},
    },
    "forward left": {**GOOD, "forward": "leave"},
}  # fmt: skip


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace.create(make_unique("tgtr")) as made, made.inside():
        yield made


@pytest.fixture
def nft(space: Namespace) -> Iterator[Nft]:
    connection = Nft.open()
    yield connection
    connection.close()


def convert(values: dict[str, Any]) -> FirewallSection:
    return msgspec.convert(values, FirewallSection)


def compile_text(values: dict[str, Any]) -> str:
    return encode_ruleset(plan_ruleset(convert(values)))


def apply(values: dict[str, Any], folder: Path, nft: Nft) -> commit.PendingChange:
    return apply_section(convert(values), state_dir=folder, nft=nft, must_pass=())


def add_device(space: Namespace, name: str) -> None:
    space.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}-far"])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_soft_swap_leaves_what_a_whole_replacement_leaves(nft: Nft) -> None:
    """From every policy to every other, from the text that was loaded and from the kernel's listing."""
    texts = {name: compile_text(values) for name, values in POLICIES.items()}
    digests = {}
    for name, text in texts.items():
        nft.run(text)
        digests[name] = effective_digest(nft)
    assert len(set(digests.values())) == len(POLICIES)
    pairs = 0
    for before, after in itertools.product(texts, repeat=2):
        nft.run(texts[before])
        nft.run(soften(texts[after], texts[before]))
        assert effective_digest(nft) == digests[after], (before, after)
        listing = nft.list_table("tidegate") or ""
        nft.run(soften(texts[before], listing))
        assert effective_digest(nft) == digests[before], (after, before, "by listing")
        pairs += 2
    assert pairs == 2 * len(POLICIES) ** 2


def test_what_others_added_goes_with_a_soft_swap(nft: Nft) -> None:
    text = compile_text(POLICIES["many"])
    nft.run(text)
    digest = effective_digest(nft)
    nft.run(
        "add chain inet tidegate foreign { type filter hook input priority -300; policy accept; }\n"
        "add rule inet tidegate input tcp dport 1 accept\n"
        "add set inet tidegate strange { type ipv4_addr; elements = { 192.0.2.9 } }\n"
    )
    assert effective_digest(nft) != digest
    load_whole(nft, text, replaces=nft.list_table("tidegate"))
    assert effective_digest(nft) == digest
    load_whole(nft, compile_text(GOOD), replaces=text.replace("counter", "counter x", 1))  # not what is there
    assert effective_digest(nft) != digest


def test_addresses_of_names_outlive_a_swap_and_a_rollback(nft: Nft, tmp_path: Path) -> None:
    """A swap to a policy with the same name, a change that is undone, and a digest that does not see addresses."""
    digest = apply(POLICIES["web by name"], tmp_path, nft).confirm()
    kept = next(one for one in find_names(nft.list_table("tidegate") or "") if one.endswith("_4"))
    nft.run(f"add element inet tidegate {kept} {{ 192.0.2.50 timeout 100s }}")
    assert effective_digest(nft) == digest
    change = apply({**POLICIES["web by name"], "ping_per_s": 3}, tmp_path, nft)
    assert "192.0.2.50" in nft.list_set("tidegate", kept)
    change.rollback()
    assert "192.0.2.50" in nft.list_set("tidegate", kept)
    assert effective_digest(nft) == digest
    change = apply(GOOD, tmp_path, nft)
    change.rollback()
    left = nft.list_set("tidegate", kept, stateless=False)
    assert "192.0.2.50 timeout 1m40s expires 1m" in left


def test_a_missing_device_costs_only_its_own_rules(space: Namespace, nft: Nft, tmp_path: Path) -> None:
    add_device(space, "lan0")
    change = apply(LINKED, tmp_path, nft)
    assert change.missing_devices == ("wan0", "wan1")
    digest = change.confirm()
    assert load_missing_links(tmp_path, nft=nft) == ()
    add_device(space, "wan1")
    assert load_missing_links(tmp_path, nft=nft) == ("wan1",)
    assert '"wan1"' in (nft.list_table("tidegate_link", family="netdev") or "")
    assert effective_digest(nft) == load_expected_digest(tmp_path) != digest
    nft.run("flush ruleset")
    restored = restore_last_confirmed(tmp_path, nft=nft)  # a reboot: now two of three are there
    assert restored is not None
    assert restored.missing_devices == ("wan0",)
    assert restored.digest == load_expected_digest(tmp_path)


def test_a_device_that_goes_away_does_not_stop_a_rollback(space: Namespace, nft: Nft, tmp_path: Path) -> None:
    for name in ("lan0", "wan0", "wan1"):
        add_device(space, name)
    apply(LINKED, tmp_path, nft).confirm()
    policy = effective_digest(nft)
    change = apply(GOOD, tmp_path, nft)
    assert nft.list_table("tidegate_link", family="netdev") is None
    space.run(["ip", "link", "del", "wan1"])
    change.rollback()
    listing = nft.list_table("tidegate_link", family="netdev") or ""
    assert '"lan0"' in listing
    assert '"wan0"' in listing
    kept_by_name = '"wan1"' in listing  # since Linux 6.16 a chain waits for its device
    add_device(space, "wan1")
    assert load_missing_links(tmp_path, nft=nft) == (() if kept_by_name else ("wan1",))
    assert effective_digest(nft) == policy


def test_the_layer_2_table_comes_and_goes_with_its_policy(space: Namespace, nft: Nft, tmp_path: Path) -> None:
    for name in ("lan0", "wan0", "wan1"):
        add_device(space, name)
    plain = apply(GOOD, tmp_path, nft).confirm()
    change = apply(LINKED, tmp_path, nft)
    assert nft.list_table("tidegate_link", family="netdev") is not None
    change.rollback()
    assert nft.list_table("tidegate_link", family="netdev") is None
    assert effective_digest(nft) == plain
    apply(LINKED, tmp_path, nft).confirm()
    with pytest.raises(TidegateError) as caught:
        load_pending(tmp_path, nft=nft)
    assert caught.value.code == "firewall.commit.nothing-pending"
    apply(GOOD, tmp_path, nft).confirm()
    assert effective_digest(nft) == plain


def test_parts_are_the_whole(nft: Nft) -> None:
    text = compile_text(LINKED)
    parts = plan_parts(text)
    assert sorted(parts.devices) == ["lan0", "wan0", "wan1"]
    assert 'device "' not in parts.main
    assert parts.encode(["lan0"]).count(guard.PART) == 1
    nft.run(parts.main)
    assert nft.list_table("tidegate_link", family="netdev") is not None
    assert plan_parts(compile_text(GOOD)).devices == {}
