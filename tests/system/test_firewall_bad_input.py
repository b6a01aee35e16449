"""Malformed policies through the real command line: refused with a place and a hint, and the kernel left as it was."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tidegate.firewall.commit import effective_digest
from tidegate.firewall.nft import Nft
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

REJECTED = 3
POLICY = """\
[policy]
version = 1
devices = ["gw-*"]
expires = 2030-01-01T00:00:00Z

[firewall]
mode = "enforce"

[firewall.zones.lan]
interfaces = ["eth0"]

[firewall.peers]
plcs = ["10.0.0.0/24"]

[firewall.management]
peers = ["192.0.2.0/24"]
service = "ssh"

[firewall.services.ssh]
protocol = "tcp"
ports = [22]
peers = ["192.0.2.0/24"]

[firewall.services.web]
protocol = "tcp"
ports = [80, "8000-8010"]
peers = ["@plcs"]
zones = ["lan"]
limit = { new_per_s = 5 }

[firewall.link.lan]
ethertypes = ["ipv4", "ipv6", "arp"]
"""

SYNTAX, KEY, VALUE = "policy.syntax", "policy.key.unknown", "policy.value.invalid"

# what is replaced, by what, the code, a text on the line that is named, a hint ("": none can be given)
ROWS = [
    ('mode = "enforce"', "mode = enforce", SYNTAX, "mode = ", 'mode = "enforce"'),
    ("ports = [22]", "ports = [22", SYNTAX, "ports = ", "ports = [22]"),
    ("[firewall.services.web]", "[firewall.services.ssh]", SYNTAX, "[firewall.services.ssh]", ""),
    ("[firewall.management]", "[firewall.managment]", KEY, "[firewall.managment]", "management"),
    ("ports = [22]", "port = [22]", KEY, "port = ", "ports"),
    ('mode = "enforce"', 'mode = "monitor"', VALUE, "mode = ", "'observe'"),
    ('protocol = "tcp"', 'protocol = "icmp"', VALUE, "protocol = ", "'ping'"),
    ("ports = [22]", "ports = [70000]", VALUE, "70000", ""),
    ("new_per_s = 5", "new_per_s = 0", VALUE, "new_per_s", ""),
    ('interfaces = ["eth0"]', "interfaces = ['eth0\"; flush ruleset']", VALUE, "interfaces", ""),
    ('"8000-8010"', '"8010-8000"', "firewall.policy.port", "8010-8000", "'8000-8010'"),
    ('"10.0.0.0/24"', '"10.0.0.1/24"', "firewall.policy.peer", "10.0.0.1/24", "'10.0.0.0/24'"),
    ('"@plcs"', '"@plc"', "firewall.policy.peer", "@plc", "plcs"),
    ('zones = ["lan"]', 'zones = ["lna"]', "firewall.policy.zone", "lna", "'lan'"),
    ('service = "ssh"', 'service = "shs"', "firewall.policy.unknown-service", "shs", "'ssh'"),
    ('"arp"]', '"apr"]', "firewall.policy.link", "[firewall.link.lan]", "'arp'"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    device: Namespace
    nft: Nft
    state: Path

    def command(self, *words: str) -> tuple[int, dict[str, Any], str]:
        """Run the program as an operator does; return its status, what it says to programs, and to people."""
        program = [sys.executable, "-m", "tidegate.cli.main", "firewall", *words, "--state", str(self.state)]
        told = self.device.run([*program, "--json"], check=False)
        assert told.stdout, told.stderr.decode()
        return told.returncode, json.loads(told.stdout), told.stderr.decode()

    def files(self) -> dict[str, bytes]:
        """Return what lies in the state folder: a change that waits would leave something there.

        Not the diary of the guard, which one that is started and dismissed may have written.
        """
        return {one.name: one.read_bytes() for one in self.state.iterdir() if one.is_file() and one.name != "guard.log"}

    def kernel(self) -> tuple[str, bytes]:
        """Return the digest of our tables, and every table there is as the program lists it without counts."""
        return effective_digest(self.nft), self.device.run(["nft", "-s", "list", "ruleset"]).stdout


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A device with a confirmed policy in force."""
    state = tmp_path_factory.mktemp("state")
    state.chmod(0o700)
    with Namespace.create(make_unique("tgbi-dev")) as device, Namespace.create(make_unique("tgbi-oth")) as others:
        join(device, others, addresses_a=["192.0.2.1/24"], addresses_b=["192.0.2.2/24"])
        with device.inside():
            nft = Nft.open()
        made = Lab(device=device, nft=nft, state=state)
        policy = tmp_path_factory.mktemp("policy") / "good.toml"
        policy.write_text(POLICY)
        assert made.command("apply", str(policy))[0] == 0
        assert made.command("confirm")[0] == 0
        yield made
        nft.close()


@pytest.mark.parametrize(("old", "new", "code", "on_line", "hint"), ROWS)
def test_a_malformed_policy_changes_nothing(
    lab: Lab, tmp_path: Path, old: str, new: str, code: str, on_line: str, hint: str
) -> None:
    assert old in POLICY
    text = POLICY.replace(old, new, 1)
    policy = tmp_path / "bad.toml"
    policy.write_text(text)
    before, files = lab.kernel(), lab.files()
    status, told, words = lab.command("apply", str(policy))
    error = told["error"]
    assert (status, error["code"]) == (REJECTED, code)
    line = error["fields"]["line"]
    assert on_line in text.split("\n")[line - 1]
    assert f"line {line}: " in error["message"]
    hints = error["message"].partition("did you mean ")[2]
    assert hint in hints
    assert bool(hint) is bool(hints)
    assert "Traceback" not in words
    assert lab.kernel() == before
    assert lab.files() == files


def test_people_are_told_the_same(lab: Lab, tmp_path: Path) -> None:
    policy = tmp_path / "bad.toml"
    policy.write_text(POLICY.replace('"arp"]', '"apr"]'))
    program = [sys.executable, "-m", "tidegate.cli.main", "firewall", "apply", str(policy), "--state", str(lab.state)]
    told = lab.device.run(program, check=False)
    assert told.returncode == REJECTED
    for part in ("firewall.policy.link", "line 31", "'arp'"):
        assert part in told.stderr.decode()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", VALUE),
        (POLICY.encode("utf-16"), SYNTAX),
        (POLICY.encode().replace(b"eth0", b"eth\xff"), SYNTAX),
        (POLICY.encode().replace(b"\n", b"\0\n"), SYNTAX),
        (POLICY.encode() + b"# " + bytes([120]) * (16 << 20), "base.input.too-large"),
        # Well formed, and not acceptable: nobody could manage the device any more.
        (
            POLICY.replace('peers = ["192.0.2.0/24"]\nservice', "peers = []\nservice").encode(),
            "firewall.check.management-cut",
        ),
        (
            POLICY.replace('["ipv4", "ipv6", "arp"]', '["ipv6"]').replace("[22]", '[22]\nzones = ["lan"]').encode(),
            "firewall.check.management-cut",
        ),
        (POLICY.replace('mode = "enforce"', 'mode = "enforce"\nset_budget = 64').encode(), "firewall.check.set-budget"),
    ],
    ids=["empty", "utf-16", "no utf-8", "null bytes", "16 MiB", "no manager", "no way to the manager", "too big"],
)
def test_what_is_no_policy_at_all_or_none_to_have_changes_nothing(
    lab: Lab, tmp_path: Path, raw: bytes, code: str
) -> None:
    policy = tmp_path / "bad.toml"
    policy.write_bytes(raw)
    before, files = lab.kernel(), lab.files()
    status, told, words = lab.command("apply", str(policy))
    assert (status, told["error"]["code"]) == (REJECTED, code)
    assert "Traceback" not in words
    assert lab.kernel() == before
    assert lab.files() == files


def test_a_good_policy_does_change_the_kernel(lab: Lab, tmp_path: Path) -> None:
    """The counter-proof: the same command, the same comparison, one port more."""
    policy = tmp_path / "good.toml"
    policy.write_text(POLICY.replace("ports = [80,", "ports = [80, 81,"))
    before = lab.kernel()
    status, told, _ = lab.command("apply", str(policy))
    assert (status, told["state"]) == (0, "pending")
    digest, listing = lab.kernel()
    assert digest != before[0]
    assert listing != before[1]
    assert lab.command("rollback")[0] == 0
    assert lab.kernel()[0] == before[0]
