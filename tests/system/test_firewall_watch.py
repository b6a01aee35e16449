"""The watch over our tables on the real kernel: who changed them is named, and what is ours raises no alarm."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.firewall.bans import Bans
from tidegate.firewall.commit import apply_section, effective_digest
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.firewall.watch import SETTLE_S, RulesetWatch, Tampering, undo
from tidegate.testing.netns import Namespace, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

SECTION: dict[str, Any] = {
    "management": {"peers": ["192.0.2.2/32"], "service": "ssh"},
    "services": {
        "ssh": {"protocol": "tcp", "ports": [22], "peers": []},
        "web": {"protocol": "tcp", "ports": [8080], "peers": ["198.51.100.0/24"]},
    },
    "bans": {"never": ["203.0.113.1"]},
}


class Watched:
    """A namespace with our policy in force and confirmed, and a watch over it."""

    def __init__(self, device: Namespace, state: Path) -> None:
        self.device, self.state = device, state
        with device.inside():
            self.nft = Nft.open()
            self.expected: str | None = self.apply()
            self.watch = RulesetWatch(self.nft, lambda: self.expected)
            self.bans = Bans()
        assert self.settle() == []

    def apply(self, **changes: Any) -> str:
        section = msgspec.convert(SECTION | changes, FirewallSection)
        with self.device.inside():
            return apply_section(section, state_dir=self.state, nft=self.nft, confirm_timeout_s=20).confirm()

    def settle(self) -> list[Tampering]:
        """Poll as an event loop would until nothing is open; return what was reported."""
        found: list[Tampering] = []
        deadline = time.monotonic() + 5
        while True:
            select.select([self.watch], [], [], SETTLE_S / 5)
            found += self.watch.poll()
            if not self.watch.unsettled:
                return found
            assert time.monotonic() < deadline

    def nft_program(self, *words: str) -> int:
        """Run nft as somebody else would; return its process id."""
        program = self.device.popen(["nft", *words])
        _, complaint = program.communicate(timeout=10)
        assert program.returncode == 0, complaint
        return program.pid


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    tmp_path.chmod(0o700)
    with Namespace.create(make_unique("tgfw-watch")) as device:
        made = Watched(device, tmp_path)
        try:
            yield made
        finally:
            made.watch.close()
            made.bans.close()
            made.nft.close()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("add", "rule", "inet", "tidegate", "input", "accept"), "rule added in tidegate"),
        (("insert", "rule", "inet", "tidegate_bans", "early", "accept"), "rule added in tidegate_bans"),
        (("flush", "chain", "inet", "tidegate", "input"), "rule deleted in tidegate"),
        (("delete", "table", "inet", "tidegate"), "tidegate: table deleted"),
        (("flush", "ruleset"), "tidegate_bans: table deleted"),
        (
            ("add", "element", "inet", "tidegate_bans", "never4", "{ 10.0.0.1 }"),
            "element added in set never4 of tidegate_bans",
        ),
    ],
)
def test_a_change_by_others_names_them_and_is_undone(watched: Watched, words: tuple[str, ...], what: str) -> None:
    pid = watched.nft_program(*words)
    (found,) = watched.settle()
    assert (found.pid, found.program) == (pid, "nft")
    assert what in found.what.split(", ")
    assert found.digest_before == watched.expected != found.digest_after
    assert watched.settle() == []  # said once
    with watched.device.inside():
        assert undo(watched.state, watched.nft) == watched.expected
    assert watched.settle() == []
    assert effective_digest(watched.nft) == watched.expected


def test_what_is_ours_raises_no_alarm(watched: Watched) -> None:
    watched.bans.ban("198.51.100.9", 60)
    watched.bans.ban("10.0.0.0/20", 60)
    watched.bans.unban("198.51.100.9")
    watched.bans.clear()
    assert not watched.watch.unsettled
    assert watched.settle() == []
    watched.expected = watched.apply(mode="observe")
    assert watched.settle() == []


def test_other_tables_are_not_our_business(watched: Watched) -> None:
    watched.nft_program("add table inet foreign; add chain inet foreign input; add rule inet foreign input accept")
    watched.watch.poll()
    assert not watched.watch.unsettled
    watched.nft_program("delete table inet foreign")
    assert watched.settle() == []


def test_two_who_change_are_both_named(watched: Watched) -> None:
    first = watched.nft_program("add", "rule", "inet", "tidegate", "input", "accept")
    second = watched.nft_program("add", "element", "inet", "tidegate_bans", "never4", "{ 10.0.0.1 }")
    assert {found.pid for found in watched.settle()} == {first, second}


def test_a_change_that_is_taken_back_at_once_is_none(watched: Watched) -> None:
    watched.nft_program("add", "element", "inet", "tidegate_bans", "never4", "{ 10.0.0.1 }")
    watched.nft_program("delete", "element", "inet", "tidegate_bans", "never4", "{ 10.0.0.1 }")
    assert watched.settle() == []
    watched.nft_program("add", "element", "inet", "tidegate_bans", "never4", "{ 10.0.0.1 }")
    assert len(watched.settle()) == 1  # and it is still watched


def test_nothing_is_said_while_nothing_is_expected(watched: Watched) -> None:
    known, watched.expected = watched.expected, None
    watched.nft_program("flush", "ruleset")
    assert watched.settle() == []
    watched.expected = known
    watched.nft_program("add table inet tidegate")
    assert len(watched.settle()) == 1


def test_notices_that_the_kernel_dropped_are_made_up_for(watched: Watched, tmp_path: Path) -> None:
    """The socket overflows with changes elsewhere, among which one of ours is lost."""
    elements = ", ".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(60_000))
    flood = tmp_path / "flood.nft"
    flood.write_text(
        f"table inet foreign {{\n set s {{ type ipv4_addr\n elements = {{ {elements} }}\n }}\n}}\n"
        "delete table inet foreign\n"
    )
    for _ in range(3):
        watched.nft_program("-f", str(flood))
    watched.nft_program("flush", "chain", "inet", "tidegate", "input")
    (found,) = watched.settle()
    assert found.digest_after == effective_digest(watched.nft)
    assert found.pid == 0  # the notice that names the process was among the lost ones


def test_changes_from_before_the_watch_count(watched: Watched) -> None:
    watched.nft_program("flush", "ruleset")
    with watched.device.inside():
        late = RulesetWatch(watched.nft, lambda: watched.expected)
    (found,) = late.poll()
    late.close()
    assert (found.pid, found.program) == (0, "")


def test_in_an_event_loop(watched: Watched) -> None:
    async def run() -> Tampering:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(watched.watch.fileno(), readable.set)
        changing = subprocess.Popen(watched.device.command(["nft", "flush", "ruleset"]))
        while True:
            await asyncio.wait_for(readable.wait(), 5)
            readable.clear()
            while True:
                if found := watched.watch.poll():
                    loop.remove_reader(watched.watch.fileno())
                    assert changing.wait() == 0
                    return found[0]
                if not watched.watch.unsettled:
                    break
                await asyncio.sleep(SETTLE_S / 5)

    assert asyncio.run(run()).program == "nft"
