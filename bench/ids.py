"""Sensor: replay speed and memory against ndpiReader and tshark, growth with packets and flows, drops of live captures.

Run by ``make bench NAME=ids``, or by itself: prints JSON. Needs root (namespaces, packet sockets), cargo for the frame
sender, and Debian's libndpi-bin and tshark. The capture is merged from the corpora (TIDEGATE_CORPORA, or
``shared/corpora`` beside the repository); without them it is made up, and the row's name says so. Rules are ET Open,
``et-open-rules`` in the corpora; without it, its rows are missing. Parts: ``bench/sensor``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.machine import row  # noqa: E402  # found through the line above when run by itself
from bench.sensor.captures import CORPORA, FOLDER, ROUNDS, Capture, build_flows, build_rounds, build_slice  # noqa: E402
from bench.sensor.live import Load, bench_live  # noqa: E402
from bench.sensor.plot import write_plot  # noqa: E402
from bench.sensor.process import run_measured, run_subject  # noqa: E402
from tidegate.base.program import find_program  # noqa: E402
from tidegate.ids.section import IdsSection, plan_sensor  # noqa: E402
from tidegate.ids.settings import DEFAULT_MEMORY, RULES_MEMORY  # noqa: E402

RUNS = 3  # the best of each: the machine is shared, and nothing makes a program faster than it is
SLICE_PACKETS = 50_000  # tshark needs minutes and a gigabyte for a million
FLOW_COUNTS = (1_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
FLOW_PACKETS = 1_000_000
LIVE_RATE_PER_S = 200_000
TALLY_RATE_PER_S = 100_000

Rows = list[dict[str, Any]]


def run() -> Rows:
    """Return the rows of all measurements; plots are written to ``build/bench/ids-*.svg``."""
    return [*_bench_replay(), *_bench_growth(), *_bench_flows(), *_bench_live()]


def rule_files() -> list[str]:
    """Return the paths of ET Open's rules; none where the corpora have none."""
    return [str(path) for path in sorted((CORPORA / "et-open-rules").rglob("*.rules"))]


# -- replay -----------------------------------------------------------------------------------------------------------


def _bench_replay() -> Rows:
    """All sensors and peers over one capture, on one core, in turn."""
    capture = build_rounds()
    try:
        return _compare(capture)
    finally:
        capture.path.unlink(missing_ok=True)  # some hundred megabytes


def _compare(capture: Capture) -> Rows:
    bare_mb = run_subject(interpreter=True)["hwm_mb"]
    tally = plan_sensor(IdsSection(memory=DEFAULT_MEMORY)).config_json
    ours = {
        f"tally alone, {DEFAULT_MEMORY}": _best(capture, tally=tally),
        f"inspector, no rules, {RULES_MEMORY}": _best(capture, rules=[], memory=RULES_MEMORY),
    }
    if rule_files():
        found = _best(capture, rules=rule_files(), memory=RULES_MEMORY)
        ours[f"inspector, {found['rules']:,} rules of ET Open, {RULES_MEMORY}"] = found
    ndpi = _peer([find_program("ndpiReader"), "-i", str(capture.path)])
    part = build_slice(capture, SLICE_PACKETS)
    tshark = _peer([find_program("tshark"), "-q", "-z", "io,phs", "-r", str(part.path)], runs=1)
    part.path.unlink()
    peers = (
        ("ndpiReader -i", capture.packets / ndpi["cpu_s"], ndpi["rss_mb"]),
        (f"tshark -z io,phs, first {SLICE_PACKETS:,} only", SLICE_PACKETS / tshark["cpu_s"], tshark["rss_mb"]),
    )
    what = f"{capture.packets:,} packets ({capture.origin}), one core"
    rows = []
    for name, found in ours.items():
        speed = capture.packets / (found["whole_cpu_s"] - found.get("load_s", 0.0))
        for peer, peer_speed, peer_mb in peers:
            rows.append(row(f"{what}: {name}", speed, "packets/s", peer=peer, peer_value=peer_speed, higher=True))
            rows.append(
                row(f"{what}: {name}: VmHWM", found["hwm_mb"], "MB", peer=peer, peer_value=peer_mb, higher=False)
            )
        rows.append(
            row(f"{what}: {name}: VmHWM above the bare interpreter", found["hwm_mb"] - bare_mb, "MB", higher=False)
        )
        if found.get("rules"):
            rows.append(row(f"{name}: loading the rules, CPU", found["load_s"], "s", higher=False))
            rows.append(row(f"{name}: RSS when loaded", found["load_mb"], "MB", higher=False))
    return rows


def _best(capture: Capture, **config: Any) -> dict[str, Any]:
    """Return the cheapest of some runs, with the largest memory of all."""
    runs = [run_subject(capture=str(capture.path), **config) for _ in range(RUNS)]
    for found in runs:
        if found["packets"] != capture.packets:
            raise SystemExit(f"the sensor read {found['packets']} of {capture.packets} packets")
    best = min(runs, key=lambda found: found["whole_cpu_s"] - found.get("load_s", 0.0))
    return {**best, "hwm_mb": max(found["hwm_mb"] for found in runs)}


def _peer(command: list[str], *, runs: int = RUNS) -> dict[str, float]:
    costs = [run_measured(command) for _ in range(runs)]
    return {"cpu_s": min(cost.cpu_s for cost in costs), "rss_mb": max(cost.max_rss_mb for cost in costs)}


# -- growth -----------------------------------------------------------------------------------------------------------


def _bench_growth() -> Rows:
    """A quarter, a half and the whole of the capture: the cost of a packet and the memory should not change."""
    seconds, memory = [], []
    for rounds in (1, 2, ROUNDS):
        capture = build_rounds(rounds, name=f"growth-{rounds}.pcap")
        found = _best(capture, rules=[], memory=RULES_MEMORY)
        capture.path.unlink()
        seconds.append((capture.packets, found["whole_cpu_s"]))
        memory.append((capture.packets, found["hwm_mb"]))
    write_plot(
        FOLDER / "ids-packets-cpu.svg", "inspector, no rules: CPU", "packets", "s", {"CPU of the process": seconds}
    )
    write_plot(FOLDER / "ids-packets-memory.svg", "inspector, no rules: VmHWM", "packets", "MB", {"VmHWM": memory})
    (few, few_s), (many, many_s) = seconds[0], seconds[-1]
    name = f"inspector, no rules: cost of a packet in {many:,} packets over that in {few:,} (1: linear)"
    return [
        row(name, many_s / many / (few_s / few), "times", higher=False),
        row(
            f"inspector, no rules: VmHWM with {many:,} packets",
            memory[-1][1],
            "MB",
            peer=f"with {few:,}",
            peer_value=memory[0][1],
            higher=False,
        ),
    ]


def _bench_flows() -> Rows:
    """As many packets in ever more flows that are alive at once."""
    tally = plan_sensor(IdsSection(memory=DEFAULT_MEMORY)).config_json
    cost: dict[str, list[tuple[float, float]]] = {"inspector": [], "tally": []}
    memory: dict[str, list[tuple[float, float]]] = {"inspector": [], "tally": []}
    slots = 0
    for flows in FLOW_COUNTS:
        capture = build_flows(flows, FLOW_PACKETS)
        deep = _best(capture, rules=[], memory=RULES_MEMORY)
        for name, found in (("inspector", deep), ("tally", _best(capture, tally=tally))):
            cost[name].append((flows, found["whole_cpu_s"] / FLOW_PACKETS * 1e9))
            memory[name].append((flows, found["hwm_mb"]))
        slots = deep["flow_slots"]
        capture.path.unlink()
    title = f"{FLOW_PACKETS:,} packets in flows alive at once (inspector: {slots:,} slots)"
    write_plot(FOLDER / "ids-flows-cost.svg", title, "flows", "ns a packet", cost, has_log_x=True)
    write_plot(FOLDER / "ids-flows-memory.svg", title, "flows", "VmHWM, MB", memory, has_log_x=True)
    beyond = [(flows, value) for flows, value in cost["inspector"] if flows > slots]
    name = f"inspector, {slots:,} slots: cost of a packet with {beyond[-1][0]:,} flows over that with {beyond[0][0]:,}"
    return [
        row(f"{name} (1: flat)", beyond[-1][1] / beyond[0][1], "times", higher=False),
        row(
            f"inspector: VmHWM with {FLOW_COUNTS[-1]:,} flows",
            memory["inspector"][-1][1],
            "MB",
            peer=f"with {FLOW_COUNTS[1]:,}",
            peer_value=memory["inspector"][1][1],
            higher=False,
        ),
    ]


# -- live -------------------------------------------------------------------------------------------------------------


def _bench_live() -> Rows:
    """Steady flows, then SYNs of made-up senders, which fill every table."""
    inspector = IdsSection(home_net=("192.0.2.0/24",), memory=RULES_MEMORY)
    tally = IdsSection(memory=DEFAULT_MEMORY)
    return [
        *bench_live(f"inspector, {RULES_MEMORY}", inspector, Load(what="flows", rate_per_s=LIVE_RATE_PER_S)),
        *bench_live(f"inspector, {RULES_MEMORY}, flood", inspector, Load(what="syn", rate_per_s=LIVE_RATE_PER_S)),
        *bench_live(
            f"tally, {DEFAULT_MEMORY}",
            tally,
            Load(what="flows", rate_per_s=TALLY_RATE_PER_S),
            Load(what="syn", rate_per_s=TALLY_RATE_PER_S),
        ),
    ]


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
