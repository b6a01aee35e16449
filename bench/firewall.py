"""Firewall: our way into the kernel against the ``nft`` program, in the same run, in a namespace of its own.

Run by ``make bench NAME=firewall``, or by itself: prints JSON. Needs root and the ``nft`` program.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.machine import row
from tidegate.base.program import find_program
from tidegate.firewall import guard
from tidegate.firewall.bans import Bans
from tidegate.firewall.checks import verify_ruleset
from tidegate.firewall.commit import apply_section
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, make_unique

BANS = 200
APPLIES = 15
SERVICES = 200


def run() -> list[dict[str, object]]:
    """Return one entry per comparison; medians, with ours and the peer's runs taking turns."""
    with Namespace.create(make_unique("tgbench")) as space, space.inside(), TemporaryDirectory() as folder:
        nft = Nft.open()
        try:
            return [
                _bench_ban(nft),
                _bench_policy(nft, Path(folder)),
                *_bench_commit(space, nft, Path(folder) / "state"),
            ]
        finally:
            nft.close()


def _bench_ban(nft: Nft) -> dict[str, object]:
    nft.run(encode_ruleset(plan_ruleset(_section(1))))
    bans, program = Bans(nft), find_program("nft")
    bans.ban("198.51.100.1", 60)  # reads whom the policy protects, once
    ours, peer = [], []
    for number in range(BANS):
        ours.append(_timed(lambda number=number: bans.ban(f"10.1.0.{number}", 600)))  # type: ignore[misc]
        element = f"add element inet tidegate_bans banned4 {{ 10.2.0.{number} timeout 600s }}"
        if number % 5 == 0:
            peer.append(_timed(lambda text=element: subprocess.run([program, text], check=True)))  # type: ignore[misc]
    assert len(bans.list_bans()) == BANS + len(peer) + 1
    return _entry("one ban", "nft add element", ours, peer)


def _bench_policy(nft: Nft, folder: Path) -> dict[str, object]:
    section, program, stored = _section(SERVICES), find_program("nft"), folder / "policy.nft"
    ours, peer = [], []
    stored.write_text(encode_ruleset(plan_ruleset(section)))

    def compile_and_apply() -> None:
        nft.run(encode_ruleset(verify_ruleset(plan_ruleset(section)).ruleset))

    for _ in range(APPLIES):
        ours.append(_timed(compile_and_apply))
        peer.append(_timed(lambda: subprocess.run([program, "-f", str(stored)], check=True)))
    return _entry(f"check, compile and load {SERVICES} services", "nft -f of the compiled text", ours, peer)


def _bench_commit(space: Namespace, nft: Nft, state: Path) -> list[dict[str, object]]:
    """The price of the guard: the whole guarded apply and confirmation beside the bare load of the same text."""
    section, program = _section(SERVICES), find_program("nft")
    text = encode_ruleset(plan_ruleset(section)).encode()
    ours, peer, resident = [], [], []
    for _ in range(5):
        start = time.perf_counter()
        change = apply_section(section, state_dir=state, nft=nft, confirm_timeout_s=60)
        resident.append(_guard_resident_mib(space))
        change.confirm()
        ours.append((time.perf_counter() - start) * 1e3)
        while guard.guard_lives(str(state)):
            time.sleep(0.01)
        peer.append(_timed(lambda: subprocess.run([program, "-f", "-"], input=text, check=True)))
    guarded = _entry(f"guarded apply and confirm, {SERVICES} services", "nft -f, unguarded", ours, peer)
    # What it would be as a script: a shell that sleeps and then starts nft.
    script = subprocess.Popen(["/bin/sh", "-c", "sleep 60 & wait"], start_new_session=True)
    time.sleep(0.2)
    shell = sum(_resident_mib(pid) for pid in _group(script.pid))
    os.killpg(script.pid, 15)
    script.wait()
    memory = _entry("resident memory of the rollback process", "sh and sleep, nothing preloaded", resident, [shell])
    return [guarded, {**memory, "unit": "MiB"}]


def _section(services: int) -> FirewallSection:
    listed = {
        f"s{number}": {
            "protocol": "udp" if number % 3 == 0 else "tcp",
            "ports": [1000 + number],
            "peers": [f"10.{number}.0.0/16", f"fd00:{number:x}::/32"],
            "limit": {"new_per_s": 50, "connections": 64, "sources": 64} if number % 10 == 0 else None,
        }
        for number in range(services)
    }
    ssh = {"protocol": "tcp", "ports": [22], "peers": []}
    return msgspec.convert(
        {"management": {"peers": ["192.0.2.0/24"], "service": "ssh"}, "services": {**listed, "ssh": ssh}},
        FirewallSection,
    )


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _guard_resident_mib(space: Namespace) -> float:
    """Return the resident memory of the guard; the namespace is ours, so it has the only one."""
    files = [Path(f"/proc/{pid}/cmdline") for pid in space.pids()]
    # The one that listed them was inside too, and is gone.
    guards = [int(file.parent.name) for file in files if file.exists() and b"firewall.guard" in file.read_bytes()]
    return _resident_mib(guards[0])


def _resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _group(leader: int) -> list[int]:
    children = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
    return [leader, *(int(child) for child in children)]


def _entry(name: str, peer_name: str, ours: list[float], peer: list[float]) -> dict[str, object]:
    return row(name, statistics.median(ours), "ms", peer=peer_name, peer_value=statistics.median(peer), higher=False)


if __name__ == "__main__":
    json.dump(run(), sys.stdout, indent=2)
    print()
