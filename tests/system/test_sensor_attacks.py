"""Real attacks between two namespaces, seen by the real worker; beside them an honest client that is not."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidegate.base.errors import TidegateError
from tidegate.base.program import find_program
from tidegate.ids.section import IdsSection, plan_sensor
from tidegate.testing.evelines import EveReader
from tidegate.testing.netns import Namespace, join, make_unique

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and packet sockets need root"),
]

DEVICE, STRANGER = "192.0.2.1", "192.0.2.2"
BAR_S = 2.0  # an attack is reported within this time of its first packet
PORT = 8080
WITHOUT_CAPABILITY = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw"]
CONFIG = plan_sensor(IdsSection(memory="12MiB")).config_json


class Worker(EveReader):
    """The worker process, and every line it wrote with the time at which we read it."""

    def __init__(self, space: Namespace, interface: str, config: str = CONFIG) -> None:
        command = [sys.executable, "-m", "tidegate.ids.worker", "--interface", interface]
        process = space.popen(command, stdin=subprocess.PIPE, stderr=None)
        process.stdin.write(config.encode() + b"\n")
        process.stdin.close()
        super().__init__(process)

    def wait_ready(self) -> None:
        assert self.read_until(lambda event: event["event_type"] == "ready", 10.0) is not None


@dataclass
class Bench:
    device: Namespace
    stranger: Namespace
    worker: Worker


@pytest.fixture
def bench() -> Iterator[Bench]:
    with (
        Namespace.create(make_unique("tg-sensor-d")) as device,
        Namespace.create(make_unique("tg-sensor-s")) as stranger,
    ):
        join(device, stranger, addresses_a=[f"{DEVICE}/24"], addresses_b=[f"{STRANGER}/24"])
        worker = Worker(device, "eth0")
        worker.wait_ready()
        try:
            yield Bench(device, stranger, worker)
        finally:
            if worker.process.poll() is None:
                assert worker.stop() == 0


@contextlib.contextmanager
def service(space: Namespace) -> Iterator[None]:
    """A service that answers one line and closes."""
    with space.inside():
        listener = socket.create_server((DEVICE, PORT), backlog=512)

    def answer() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(64)
                    connection.sendall(b"answer\n")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5.0)


def require(program: str) -> None:
    try:
        find_program(program)
    except TidegateError as error:
        pytest.skip(error.message)


def seconds_between(start: float, event: dict) -> float:
    return datetime.datetime.strptime(event["timestamp"], "%Y-%m-%dT%H:%M:%S.%f%z").timestamp() - start


ATTACKS = [
    (["nmap", "-sS", "-n", "-Pn", "--max-retries", "1", "-p1-1000", DEVICE], "scan.syn"),
    (["nmap", "-sX", "-n", "-Pn", "--max-retries", "1", "-p1-200", DEVICE], "scan.xmas"),
    (["nmap", "-sN", "-n", "-Pn", "--max-retries", "1", "-p1-200", DEVICE], "scan.null"),
    (["nmap", "-sF", "-n", "-Pn", "--max-retries", "1", "-p1-200", DEVICE], "scan.fin"),
    (["hping3", "-q", "-S", "-p", str(PORT), "-i", "u100", "-c", "15000", DEVICE], "flood.syn"),
]


@pytest.mark.parametrize(("command", "detector"), ATTACKS, ids=[detector for _, detector in ATTACKS])
def test_each_attack_is_reported_within_two_seconds_with_its_source(bench, command, detector):
    require(command[0])
    with service(bench.device):
        attack = bench.stranger.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        start = time.time()
        alert = bench.worker.read_until(
            lambda event: event["event_type"] == "alert" and event["metadata"]["detector"] == detector, 12.0
        )
        attack.kill()
        attack.wait(5.0)
    assert alert is not None
    assert (alert["metadata"]["state"], alert["src_ip"], alert["dest_ip"]) == ("start", STRANGER, DEVICE)
    assert alert["metadata"]["direction"] == "in"
    read_s = bench.worker.read_s(alert)
    assert seconds_between(start, alert) < BAR_S  # the program's own start included
    assert read_s - seconds_between(0, alert) < 0.5, "written at once"


def test_a_scan_of_a_host_that_drops_everything_is_reported_in_time_too(bench):
    require("nmap")
    require("nft")
    bench.device.run(
        ["nft", "add table inet t; add chain inet t c { type filter hook input priority 0; policy drop; }"]
    )
    attack = bench.stranger.popen(
        ["nmap", "-sS", "-n", "-Pn", "-p1-1000", DEVICE], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    start = time.time()
    alert = bench.worker.read_until(lambda event: event["event_type"] == "alert", 8.0)
    attack.kill()
    attack.wait(5.0)
    assert alert is not None
    assert (alert["metadata"]["detector"], alert["src_ip"]) == ("scan.syn", STRANGER)
    assert seconds_between(start, alert) < BAR_S


def test_a_flood_is_a_handful_of_alerts(bench):
    require("hping3")
    with service(bench.device):
        bench.stranger.run(
            ["timeout", "6", "hping3", "-q", "-S", "--flood", "-p", str(PORT), DEVICE], check=False, timeout_s=10.0
        )
        ended = bench.worker.read_until(
            lambda event: event["event_type"] == "alert" and event["metadata"]["state"] == "end", 5.0
        )
    assert ended is not None
    assert ended["metadata"]["count"] > 5000
    assert 2 <= len(bench.worker.alerts()) <= 5


def test_a_flood_from_invented_sources_names_the_victim_and_nobody_else(bench):
    require("hping3")
    attack = bench.stranger.popen(
        ["hping3", "-q", "-S", "--rand-source", "-i", "u100", "-c", "15000", "-p", str(PORT), DEVICE],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    alert = bench.worker.read_until(lambda event: event["event_type"] == "alert", 8.0)
    attack.kill()
    attack.wait(5.0)
    assert alert is not None
    assert (alert["metadata"]["detector"], alert.get("src_ip"), alert["dest_port"]) == ("flood.syn", None, PORT)


def test_an_honest_client_is_never_reported_however_busy(bench):
    connections = 0
    with service(bench.device), bench.stranger.inside():
        deadline_s = time.monotonic() + 4.0
        while time.monotonic() < deadline_s:
            with socket.create_connection((DEVICE, PORT), timeout=5.0) as connection:
                connection.sendall(b"question\n")
                assert connection.recv(64) == b"answer\n"
            connections += 1
    assert connections > 500
    assert bench.worker.stop() == 0
    assert bench.worker.alerts() == []
    stats = bench.worker.events[-1][1]["stats"]
    assert stats["flow"]["created"] >= connections
    assert stats["capture"]["kernel_drops"] == 0


def test_an_honest_client_goes_unreported_beside_a_flood(bench):
    require("hping3")
    attack = bench.stranger.popen(
        ["hping3", "-q", "-S", "--rand-source", "-i", "u200", "-c", "15000", "-p", "9", DEVICE],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with service(bench.device), bench.stranger.inside():
        for _ in range(300):
            with socket.create_connection((DEVICE, PORT), timeout=5.0) as connection:
                connection.sendall(b"question\n")
                connection.recv(64)
    attack.kill()
    attack.wait(5.0)
    assert bench.worker.stop() == 0
    assert all(alert["dest_port"] == 9 and "src_ip" not in alert for alert in bench.worker.alerts())


def test_the_worker_is_nobody_and_cannot_become_anybody(bench):
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{bench.worker.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Gid"].split() == ["65534"] * 4
    assert status["Groups"].strip() == ""
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"].strip() == "1"


def test_the_worker_ends_with_a_last_stats_line(bench):
    assert bench.worker.stop() == 0
    assert bench.worker.events[-1][1]["event_type"] == "stats"


def test_the_worker_ends_when_nobody_reads(bench):
    bench.worker.process.stdout.close()
    assert bench.worker.process.wait(5.0) == 0


def test_the_worker_dies_with_its_parent(bench):
    parent = (
        "import subprocess, sys, time\n"
        f"worker = subprocess.Popen([{sys.executable!r}, '-m', 'tidegate.ids.worker', '--interface', 'eth0'],"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "worker.stdin.write(b'{}\\n')\nworker.stdin.flush()\nworker.stdout.readline()\n"
        "print(worker.pid, flush=True)\ntime.sleep(60)\n"
    )
    process = bench.device.popen([sys.executable, "-c", parent])
    pid = int(process.stdout.readline())
    process.kill()
    process.wait(5.0)
    process.stdout.close()
    process.stderr.close()
    deadline_s = time.monotonic() + 5.0
    while pid in bench.device.pids() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert pid not in bench.device.pids()


@pytest.mark.parametrize(
    ("interface", "config", "code"),
    [
        ("nowhere0", "{}", "ids.capture.no-interface"),
        ("eth0", '{"memory_bytes":1}', "ids.config.invalid"),
        ("eth0", "no json", "ids.config.invalid"),
    ],
)
def test_a_worker_that_cannot_start_says_why_and_exits(bench, interface, config, code):
    worker = Worker(bench.device, interface, config)
    error = worker.read_until(lambda event: event["event_type"] == "error", 10.0)
    assert error is not None
    assert error["code"] == code
    assert worker.process.wait(5.0) in {3, 4}
    worker.process.stdout.close()


def test_without_the_capability_the_code_says_so(bench):
    worker = bench.device.popen(
        [*WITHOUT_CAPABILITY, sys.executable, "-m", "tidegate.ids.worker", "--interface", "eth0"],
        stdin=subprocess.PIPE,
    )
    out, _ = worker.communicate(b"{}\n", timeout=10.0)
    assert json.loads(out)["code"] == "ids.capture.permission"
    assert worker.returncode == 4
