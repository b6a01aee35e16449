"""What the demo's bystanders see: the event log as it grows, an honest client's success, an operator over SSH.

Touches: the event log's folder, processes in the namespaces.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tidegate.base.program import find_program, run_program
from tidegate.demo.board import Board
from tidegate.demo.errors import StepFailed
from tidegate.demo.lab import DEVICE_ADDRESS
from tidegate.demo.report import wait_until
from tidegate.events.segments import read_log
from tidegate.testing.netns import Namespace

# An honest client: a new connection every 50 ms; at the end it prints how many requests there were and how many failed.
_CLIENT = """
import http.client, json, signal, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
asked = failed = 0
slowest = 0.0
print("ready", flush=True)
while not stop:
    began = time.monotonic()
    try:
        connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=2)
        connection.request("GET", "/version")
        ok = connection.getresponse().status == 200
        connection.close()
    except OSError:
        ok = False
    asked += 1
    failed += not ok
    slowest = max(slowest, time.monotonic() - began)
    time.sleep(0.05)
print(json.dumps({"asked": asked, "failed": failed, "slowest_ms": round(slowest * 1000)}))
"""


class EventReader:
    """Reads the device's event log from outside, without taking part in it."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def folder(self) -> Path:
        """Return where the running device's log lies, as seen from outside."""
        return self._board.data() / "events"

    def events(self) -> list[dict[str, Any]]:
        """Return every event in the log."""
        return [json.loads(line.raw) for line in read_log(self.folder()) if line.complete]

    def count(self) -> int:
        """Return how many events there are."""
        return len(self.events())

    def wait_for(
        self, wanted: Callable[[Mapping[str, Any]], bool], complaint: str, *, after: int, timeout_s: float
    ) -> dict[str, Any]:
        """Return the first event behind the first ``after`` ones that is ``wanted``."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [event for event in self.events()[after:] if wanted(event)]
            return bool(found)

        wait_until(look, complaint, timeout_s=timeout_s)
        return found[0]


def kind_of(event: Mapping[str, Any]) -> str:
    """Return Tidegate's own name for what an event reports."""
    return str(event["unmapped"]["tidegate"]["kind"])


@contextmanager
def honest_client(host: Namespace, port: int) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run an honest client; the function handed out ends it and returns what it counted."""
    client = host.popen(["python3", "-I", "-c", _CLIENT, DEVICE_ADDRESS, str(port)])
    if client.stdout is None or client.stdout.readline() != b"ready\n":
        raise StepFailed("the honest client did not start")

    def result() -> dict[str, Any]:
        client.terminate()
        said, _ = client.communicate(timeout=10)
        counted: dict[str, Any] = json.loads(said)
        return counted

    try:
        yield result
    finally:
        if client.poll() is None:
            client.kill()
            client.communicate()


class OperatorShell:
    """The operator's SSH way to the device: a real server on it, a real client in the operator's namespace."""

    def __init__(self, work: Path, board: Board, operator: Namespace) -> None:
        self._board, self._operator = board, operator
        self._folder = work / "ssh"
        self._key, self._host_key = self._folder / "operator", self._folder / "host"

    def prepare(self) -> None:
        """Make host key and operator key, and the home folder in which the server finds the latter."""
        home = self._folder / "home" / ".ssh"
        home.mkdir(parents=True, mode=0o700)
        (self._folder / "home").chmod(0o700)
        for path in (self._host_key, self._key):
            run_program(["dropbearkey", "-t", "ed25519", "-f", str(path)])
        said = run_program(["dropbearkey", "-y", "-f", str(self._key)]).stdout.decode()
        public = next(line for line in said.splitlines() if line.startswith("ssh-ed25519"))
        authorized = home / "authorized_keys"
        authorized.write_text(public + "\n")
        authorized.chmod(0o600)
        users = self._folder / "passwd"
        users.write_text(f"root:x:0:0:root:{self._folder / 'home'}:/bin/sh\n")

    def serve(self) -> None:
        """Start the SSH server on the device, which sees only the operator's key."""
        run_program(self._board.inside(["mount", "--bind", str(self._folder / "passwd"), "/etc/passwd"]))
        server = find_program("dropbear")
        self._board.start_inside([server, "-F", "-E", "-s", "-r", str(self._host_key), "-p", "22", "-P", "/dev/null"])
        wait_until(self.works, "the SSH server does not answer", timeout_s=5)

    def run(self, command: str, *, timeout_s: float = 10.0) -> str:
        """Run a command on the device over a new SSH connection; raise ``demo.step.failed`` if that fails."""
        done = self._connect(command, timeout_s)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise StepFailed(f"over SSH: {command.rsplit(maxsplit=1)[-1]}: {said[-300:]}")
        return done.stdout.decode()

    def complaint(self, command: str, *, timeout_s: float = 10.0) -> str:
        """Return what a command on the device complains of; raise ``demo.step.failed`` if it succeeds."""
        done = self._connect(command, timeout_s)
        if done.returncode == 0:
            raise StepFailed(f"over SSH: {command.rsplit(maxsplit=1)[-1]} was not refused")
        return (done.stdout + done.stderr).decode(errors="replace")

    def works(self, *, timeout_s: float = 1.5) -> bool:
        """Return whether a new connection succeeds."""
        return self._connect("true", timeout_s).returncode == 0

    def _connect(self, command: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        limit = ["timeout", f"{timeout_s:g}"]
        client = [find_program("dbclient"), "-y", "-y", "-T", "-i", str(self._key), f"root@{DEVICE_ADDRESS}", command]
        return self._operator.run([*limit, *client], check=False, timeout_s=timeout_s + 5)


def seconds_since(started_s: float) -> float:
    """Return the seconds since a reading of the monotonic clock."""
    return time.monotonic() - started_s
