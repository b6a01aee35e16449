"""A sensor's worker on a veth interface, and a sender at a fixed rate: what it drops, what it costs."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import row
from bench.sensor.process import CORE, cpu_s, memory_mb
from tidegate.base.program import find_program
from tidegate.ids.section import IdsSection, plan_sensor
from tidegate.testing.netns import Namespace, join, make_unique

ROOT = Path(__file__).resolve().parent.parent.parent
SECONDS = 10
LAST_WORDS_S = 30  # flows that are still open end with the worker
DRAIN_S = 0.5  # the ring hands over a block that is not full after 50 ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent: ``flows`` (acknowledgements of 1,024 flows) or ``syn`` (SYNs of 65,536 made-up senders)."""

    what: str
    rate_per_s: int


def bench_live(title: str, section: IdsSection, *loads: Load) -> list[dict[str, Any]]:
    """Send each load in turn; the worker's own counters and the kernel's say what became of it."""
    sender = build_sender()
    with _beside_the_worker(), _pair() as (device, stranger):
        worker = _start_worker(device, section)
        reader = _Reader(worker)
        idle_rss_mb, _ = memory_mb(worker.pid)
        sent, shares = [], []
        for load in loads:
            before_s, start_s = cpu_s(worker.pid), time.monotonic()
            command = [str(sender), "eth0", str(load.rate_per_s), str(SECONDS), load.what]
            sent.append(json.loads(stranger.run(command, timeout_s=SECONDS + 30).stdout))
            time.sleep(DRAIN_S)
            shares.append((cpu_s(worker.pid) - before_s) / (time.monotonic() - start_s))
        rss_mb, pss_mb = memory_mb(worker.pid)
        stats = reader.stop()
    lost = sum(one["sent"] for one in sent) - stats["decoder"]["tcp"]
    rates = " then ".join(
        f"{one['sent'] / one['seconds']:,.0f} packets/s ({load.what})" for one, load in zip(sent, loads, strict=True)
    )
    what = f"live, {title}, {rates}, {SECONDS} s each"
    return [
        row(f"{what}: dropped by the kernel", stats["capture"]["kernel_drops"], "packets", higher=False),
        row(f"{what}: sent and not seen", lost, "packets", higher=False),
        *(
            row(f"live, {title}: CPU of the worker, {load.what}", 100 * share, "% of a core", higher=False)
            for load, share in zip(loads, shares, strict=True)
        ),
        row(f"live, {title}: RSS idle", idle_rss_mb, "MB", higher=False),
        row(f"live, {title}: RSS afterwards", rss_mb, "MB", higher=False),
        row(f"live, {title}: PSS afterwards", pss_mb, "MB", higher=False),
    ]


@contextlib.contextmanager
def _pair() -> Iterator[tuple[Namespace, Namespace]]:
    with Namespace.create(make_unique("tgb-d")) as device, Namespace.create(make_unique("tgb-s")) as stranger:
        join(device, stranger, addresses_a=["192.0.2.1/24"], addresses_b=["192.0.2.2/24"])
        yield device, stranger


def build_sender() -> Path:
    """Build the frame sender and return its path."""
    command = [find_program("cargo"), "build", "--quiet", "--release", "--package", "capture", "--example", "blast"]
    subprocess.run(command, cwd=ROOT / "rust", check=True)
    return ROOT / "rust" / "target" / "release" / "examples" / "blast"


def _start_worker(device: Namespace, section: IdsSection) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tidegate.ids.worker", "--interface", "eth0"]
    worker = device.popen(command, stdin=subprocess.PIPE, stderr=None)
    if worker.stdin is None or worker.stdout is None:
        raise SystemExit("the worker has no pipes")
    if len(os.sched_getaffinity(0)) > 1:
        os.sched_setaffinity(worker.pid, {CORE})
    worker.stdin.write(plan_sensor(section).config_json.encode() + b"\n")
    worker.stdin.close()
    ready = json.loads(worker.stdout.readline())
    if ready["event_type"] != "ready":
        raise SystemExit(str(ready))
    return worker


class _Reader(threading.Thread):
    """Reads the worker's lines, as the agent would, and keeps the last."""

    def __init__(self, worker: subprocess.Popen[bytes]) -> None:
        super().__init__(daemon=True)
        self._worker, self.last = worker, b"{}"
        self.start()

    def run(self) -> None:
        rest = b""
        descriptor = self._worker.stdout.fileno() if self._worker.stdout else -1
        while chunk := os.read(descriptor, 1 << 20):
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            self.last = lines[-1] if lines else self.last

    def stop(self) -> Any:
        """Ask the worker to end; return the counters of its last line."""
        self._worker.terminate()
        self.join(LAST_WORDS_S)
        self._worker.wait(5)
        return json.loads(self.last)["stats"]


@contextlib.contextmanager
def _beside_the_worker() -> Iterator[None]:
    """Keep this process, and the sender that it starts, on other cores where there are any."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores - {CORE} or cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
