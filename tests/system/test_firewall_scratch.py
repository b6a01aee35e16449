"""The planned ruleset against the one in force, on the real kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.effective import effective_digest
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.scratch import diff_with_kernel, list_planned
from tidegate.firewall.section import FirewallSection
from tidegate.firewall.transaction import load_whole
from tidegate.testing.netns import Namespace, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
]

PLC = {"protocol": "tcp", "ports": [502], "peers": ["10.0.0.0/24", "10.0.2.0/23"], "limit": {"new_per_s": 5}}
WEB = {"protocol": "tcp", "ports": [443, "8000-8010"], "peers": ["any"], "interfaces": ["eth0"]}


def encode(*, link: bool = False, **services: Any) -> str:
    ssh = {"protocol": "tcp", "ports": [22], "peers": ["10.0.0.0/24", "2001:db8::/32"]}
    written: dict[str, Any] = {
        "management": {"peers": ["10.0.0.9"], "service": "ssh"},
        "zones": {"lan": {"interfaces": ["eth0", "eth7"]}},
        "services": {"ssh": ssh, **services},
        "egress": {"services": {"manager": {"protocol": "tcp", "ports": [443], "peers": ["m.example.com"]}}},
        "routes": {"r": {"protocol": "udp", "ports": [53], "sources": ["10.0.0.7"], "destinations": ["any"]}},
        "link": {"lan": {"macs": ["02:00:00:00:00:01"]}} if link else {},
    }
    return encode_ruleset(plan_ruleset(msgspec.convert(written, FirewallSection)))


@pytest.fixture
def device() -> Iterator[Namespace]:
    with Namespace.create(make_unique("scratch")) as space:
        yield space


def test_what_is_in_force_changes_nothing(device: Namespace) -> None:
    text = encode(link=True, plc=PLC, web=WEB)
    device.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth7"])
    with device.inside():
        assert load_whole(Nft.open(), text) == ()
        assert diff_with_kernel(text) == []


def test_each_object_is_told_and_nothing_else(device: Namespace) -> None:
    with device.inside():
        load_whole(Nft.open(), encode(plc=PLC))
        before = effective_digest()
        changes = diff_with_kernel(encode(plc=PLC, web=WEB))
        assert effective_digest() == before
        assert any("8000" in line or "443" in line for line in changes)
        assert not any("502" in line and line.startswith(("+", "-")) for line in changes)
        gone = diff_with_kernel(encode())
        assert any(line.startswith("- inet tidegate") and "plc" in line for line in gone)
        assert not any(line.startswith("+") for line in gone)


def test_in_an_empty_kernel_everything_is_new(device: Namespace) -> None:
    with device.inside():
        changes = diff_with_kernel(encode(plc=PLC))
        assert "+ inet tidegate chain input" in changes
        assert all(line.startswith("+ ") for line in changes)
        assert device.run(["nft", "list", "tables"]).stdout == b""


def test_devices_keep_their_names_and_missing_ones_are_to_come(device: Namespace) -> None:
    device.run(["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "other"])
    text = encode(link=True)
    assert 'device "eth7"' in list_planned(text)
    assert 'device "lo"' not in list_planned(text)
    with device.inside():
        assert load_whole(Nft.open(), text) == ("eth7",)
        assert diff_with_kernel(text) == ["+ netdev tidegate_link chain device_2"]


def test_hand_edits_show(device: Namespace) -> None:
    text = encode(plc=PLC)
    with device.inside():
        nft = Nft.open()
        load_whole(nft, text)
        nft.run("insert rule inet tidegate input tcp dport 23 accept")
        assert diff_with_kernel(text) == ["~ inet tidegate chain input", "    - tcp dport 23 accept"]


def test_what_nft_refuses_is_refused_here(device: Namespace) -> None:
    with device.inside(), pytest.raises(TidegateError) as refused:
        list_planned("table inet tidegate { chain x { no such thing } }")
    assert refused.value.code == "firewall.nft.refused"
