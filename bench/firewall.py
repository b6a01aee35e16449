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
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.machine import row
from tidegate.base.program import find_program
from tidegate.firewall import guard
from tidegate.firewall.banrestore import restore_bans
from tidegate.firewall.bans import Bans
from tidegate.firewall.banstore import BanStore
from tidegate.firewall.checks import verify_ruleset
from tidegate.firewall.commit import apply_section
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, make_unique

BANS = 200
APPLIES = 9
SERVICES = 1000
MANY_BANS = 100_000


def run() -> list[dict[str, object]]:
    """Return one entry per comparison; medians, with ours and the peer's runs taking turns."""
    with Namespace.create(make_unique("tgbench")) as space, space.inside(), TemporaryDirectory() as folder:
        nft = Nft.open()
        try:
            return [
                *_bench_ban(nft),
                _bench_policy(nft, Path(folder)),
                *_bench_commit(space, nft, Path(folder) / "state"),
                *_bench_restore(nft, Path(folder) / "bans"),
                *_bench_memory(Path(folder)),
            ]
        finally:
            nft.close()


def _bench_ban(nft: Nft) -> list[dict[str, object]]:
    """One ban beside the program's, and one more where 100,000 addresses are banned already."""
    nft.run(encode_ruleset(plan_ruleset(_section(1))))
    bans, program = Bans(), find_program("nft")
    bans.ban("198.51.100.1", 60)  # reads whom the policy protects, once
    ours, peer = [], []
    for number in range(BANS):
        ours.append(_timed(lambda number=number: bans.ban(f"10.1.0.{number}", 600)))  # type: ignore[misc]
        element = f"add element inet tidegate_bans banned4 {{ 10.2.0.{number} timeout 600s }}"
        if number % 5 == 0:
            peer.append(_timed(lambda text=element: subprocess.run([program, text], check=True)))  # type: ignore[misc]
    rows = [_entry("one ban (bar: 1)", "nft add element", ours, peer)]
    nft.run("flush ruleset")
    nft.run(encode_ruleset(plan_ruleset(_section(1, bans=MANY_BANS + BANS))))
    bans.refresh()
    bans.ban_all((ip_network(int(IPv4Address("20.0.0.0")) + number * 7) for number in range(MANY_BANS)), 86_400)
    among = [_timed(lambda number=number: bans.ban(f"10.1.0.{number}", 600)) for number in range(BANS)]  # type: ignore[misc]
    title = f"one ban more beside {MANY_BANS:,} (bar: 1)"
    bans.close()
    return [*rows, row(title, statistics.median(among), "ms", higher=False)]


def _bench_policy(nft: Nft, folder: Path) -> dict[str, object]:
    section, program, stored = _section(SERVICES), find_program("nft"), folder / "policy.nft"
    ours, peer = [], []
    stored.write_text(encode_ruleset(plan_ruleset(section)))

    def compile_and_apply() -> None:
        nft.run(encode_ruleset(verify_ruleset(plan_ruleset(section)).ruleset))

    for _ in range(APPLIES):
        ours.append(_timed(compile_and_apply))
        peer.append(_timed(lambda: subprocess.run([program, "-f", str(stored)], check=True)))
    title = f"check, compile and load {SERVICES:,} services, unguarded"
    return _entry(title, "nft -f of the compiled text", ours, peer)


def _bench_commit(space: Namespace, nft: Nft, state: Path) -> list[dict[str, object]]:
    """The price of the guard: the whole guarded apply and confirmation beside the bare load of the same text."""
    section, program = _section(SERVICES), find_program("nft")
    text = encode_ruleset(plan_ruleset(section)).encode()
    ours, peer, resident = [], [], []
    for _ in range(APPLIES):
        start = time.perf_counter()
        change = apply_section(section, state_dir=state, nft=nft, confirm_timeout_s=60)
        ours.append((time.perf_counter() - start) * 1e3)
        resident.append(_guard_resident_mib(space))
        change.confirm()
        while guard.guard_lives(str(state)):
            time.sleep(0.01)
        peer.append(_timed(lambda: subprocess.run([program, "-f", "-"], input=text, check=True)))
    title = f"check, compile, guard and apply {SERVICES:,} services (bar: 300)"
    guarded = _entry(title, "nft -f, unguarded", ours, peer)
    # What it would be as a script: a shell that sleeps and then starts nft.
    script = subprocess.Popen(["/bin/sh", "-c", "sleep 60 & wait"], start_new_session=True)
    time.sleep(0.2)
    shell = sum(_resident_mib(pid) for pid in _group(script.pid))
    os.killpg(script.pid, 15)
    script.wait()
    memory = _entry("resident memory of the rollback process", "sh and sleep, nothing preloaded", resident, [shell])
    return [guarded, {**memory, "unit": "MiB"}]


def _bench_restore(nft: Nft, state: Path) -> list[dict[str, object]]:
    """A boot with 100,000 bans in the journal, and the same as a file of nft's."""
    text = encode_ruleset(plan_ruleset(_section(1, bans=MANY_BANS)))
    nft.run(f"flush ruleset\n{text}")
    bans = Bans(store=BanStore(state))
    bans.ban_all((ip_network(int(IPv4Address("20.0.0.0")) + number * 7) for number in range(MANY_BANS)), 86_400)
    bans.close()
    stored = state / "bans.nft"
    elements = ", ".join(f"{IPv4Address(int(IPv4Address('20.0.0.0')) + n * 7)} timeout 1d" for n in range(MANY_BANS))
    stored.write_text(f"add element inet tidegate_bans banned4 {{ {elements} }}\n")
    ours, peer = [], []
    for _ in range(5):
        nft.run(f"flush ruleset\n{text}")
        ours.append(_timed(lambda: restore_bans(state, time.time())) / 1e3)
        nft.run(f"flush ruleset\n{text}")
        peer.append(_timed(lambda: subprocess.run([find_program("nft"), "-f", str(stored)], check=True)) / 1e3)
    made = _entry(f"{MANY_BANS:,} bans restored at boot (bar: 1.5)", "nft -f of the elements", ours, peer)
    return [{**made, "unit": "s"}]


def _bench_memory(folder: Path) -> list[dict[str, object]]:
    """The peak of the command itself, as the kernel counted it for the process that ended."""
    policy, state = folder / "policy.toml", folder / "memory"
    policy.write_text(_policy_text(SERVICES))
    command = [sys.executable, "-m", "tidegate.cli.main", "firewall"]
    apply = _peak_mb([*command, "apply", str(policy), "--state", str(state), "--confirm-timeout", "1"])
    restore = _peak_mb([*command, "bans", "restore", "--state", str(folder / "bans")])
    return [
        row(f"peak of `firewall apply`, {SERVICES:,} services (bar: 40)", apply, "MB", higher=False),
        row(f"peak of `firewall bans restore`, {MANY_BANS:,} bans (bar: 40)", restore, "MB", higher=False),
    ]


def _peak_mb(command: list[str]) -> float:
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True)
    return int(done.stdout) * 1024 / 1e6


def _services(count: int) -> dict[str, dict[str, object]]:
    """Return so many services, none with another's port or peers; every tenth is limited."""
    services: dict[str, dict[str, object]] = {
        f"s{number}": {
            "protocol": "udp" if number % 3 == 0 else "tcp",
            "ports": [1000 + number],
            "peers": [f"10.{number % 256}.{number // 256}.0/24", f"fd00:{number:x}::/32"],
        }
        for number in range(count - 1)
    }
    for number in range(0, count - 1, 10):
        services[f"s{number}"]["limit"] = {"new_per_s": 50, "connections": 64, "sources": 64}
    return {**services, "ssh": {"protocol": "tcp", "ports": [22], "peers": []}}


def _section(services: int, *, bans: int = 4096) -> FirewallSection:
    values = {
        "management": {"peers": ["192.0.2.0/24"], "service": "ssh"},
        "services": _services(services),
        "bans": {"max": bans},
        "set_budget": 4_000_000,
    }
    return msgspec.convert(values, FirewallSection)


def _policy_text(services: int) -> str:
    lines = [
        "[policy]",
        "version = 1",
        "[firewall]",
        "[firewall.management]",
        'peers = ["192.0.2.0/24"]',
        'service = "ssh"',
    ]
    for name, values in _services(services).items():
        lines.append(f"[firewall.services.{name}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    return "\n".join([*lines, ""])


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


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
