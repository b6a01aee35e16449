"""The demo's device as hardware: storage, power switch, and the way to look inside while it runs.

Touches: processes in the device's namespaces. Power off is SIGKILL to everything, as a pulled plug is.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tidegate.agent.api import ask_agent
from tidegate.agent.errors import AgentAbsent
from tidegate.agent.home import SOCKET, DeviceHome
from tidegate.base.program import find_program
from tidegate.boot.log import BootLog
from tidegate.boot.measure import BootLogEntry, Refusal, Started
from tidegate.boot.power import power_command
from tidegate.boot.storage import DeviceStorage
from tidegate.demo.errors import StepFailed
from tidegate.demo.lab import INTERFACE
from tidegate.demo.report import wait_until
from tidegate.testing.netns import Namespace

BOOT_TIMEOUT_S = 20.0
AGENT_TIMEOUT_S = 20.0
MAX_RESETS = 4
RUN_PARENT = Path("/dev/shm")  # noqa: S108  # memory; mkdtemp makes a private folder in it
RUN_PREFIX = "tidegate-run-"


class Board:
    """One device: ``storage`` survives, everything else goes with the power."""

    def __init__(self, storage: DeviceStorage, netns: Namespace, console: Path) -> None:
        self.storage = storage
        self._netns = netns
        self._console = console
        self._power: subprocess.Popen[bytes] | None = None
        self._helpers: list[subprocess.Popen[bytes]] = []
        self.run = Path()

    def power_on(self) -> Started:
        """Switch on and return once the second stage has started a system.

        A stage that refuses ends; the watchdog then resets the board, memory kept, and the first stage runs again.
        """
        self.run = Path(tempfile.mkdtemp(prefix=f"{RUN_PREFIX}{self._netns.name}-", dir=RUN_PARENT))
        (self.run / "root").mkdir()
        for _ in range(MAX_RESETS):
            started = self._reset()
            if started is not None:
                return started
        codes = ", ".join(refusal.code for refusal in self.refusals())
        raise StepFailed(f"nothing started: {codes or 'no reason given'}")

    def refusals(self) -> list[Refusal]:
        """Return what the boot stages refused since power on."""
        return [entry for entry in self.boot_log() if isinstance(entry, Refusal)]

    def _reset(self) -> Started | None:
        """Run the first stage; return what was started, or None if the stages ended by themselves."""
        command = power_command(self.storage.folder, self.run)
        with self._console.open("ab") as console:
            self._power = self._netns.popen(command, stdout=console, stderr=console)
        deadline_s = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for entry in self.boot_log():
                if isinstance(entry, Started):
                    return entry
            if self._power.poll() is not None:
                return None
            time.sleep(0.01)
        raise StepFailed(f"no system started within {BOOT_TIMEOUT_S:g} s")

    def power_off(self) -> None:
        """Pull the plug; harmless when it is off already."""
        if self._power is not None:
            for process in (self._power, *self._helpers):
                process.kill()
            for process in (self._power, *self._helpers):
                process.wait()
            wait_until(lambda: not self._netns.pids(), "the device does not switch off", timeout_s=5)
            self._netns.run(["nft", "flush", "ruleset"])  # a kernel that starts anew has no firewall
            self._power, self._helpers = None, []
        if self.run != Path():
            shutil.rmtree(self.run, ignore_errors=True)
            self.run = Path()

    def boot_log(self) -> list[BootLogEntry]:
        """Return what the boot stages logged since power on."""
        return BootLog(self.run).read()

    def init_pid(self) -> int:
        """Return the host's number of the device's first process."""
        if self._power is None:
            raise StepFailed("the device is switched off")
        children = Path(f"/proc/{self._power.pid}/task/{self._power.pid}/children").read_text().split()
        if not children:
            raise StepFailed("the device has died")
        return int(children[0])

    def inside(self, command: Sequence[str]) -> list[str]:
        """Return the argument list that runs ``command`` in the device's namespaces, its root the host's."""
        enter = [find_program("nsenter"), "--target", str(self.init_pid()), "--mount", "--pid", "--net", "--"]
        return [*enter, *command]

    def start_inside(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a program on the device that ends with its power at the latest."""
        with self._console.open("ab") as console:
            process = subprocess.Popen(self.inside(command), stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        self._helpers.append(process)
        return process

    @property
    def home(self) -> DeviceHome:
        """Return where the running device keeps things, as seen from inside."""
        return DeviceHome(storage=self.storage, data=self.run / "root" / "data", run=self.run)

    def data(self) -> Path:
        """Return the running device's data file system, as seen from outside."""
        return Path(f"/proc/{self.init_pid()}/root/data/tidegate")

    def start_agent(self) -> dict[str, object]:
        """Start the agent and return its status once it is ready."""
        home = self.home
        words = ["--storage", self.storage.folder, "--data", home.data, "--run", self.run, "--interface", INTERFACE]
        process = self.start_inside([sys.executable, "-m", "tidegate.agent", *map(str, words)])

        def ready() -> bool:
            if process.poll() is not None:
                raise StepFailed(f"the agent ended with status {process.returncode}; see {self._console}")
            return self._try_status() is not None

        wait_until(ready, "the agent is not ready", timeout_s=AGENT_TIMEOUT_S)
        return self.ask({"op": "status"})

    def report_boot(self) -> None:
        """Have the boot log turned into events without starting the agent for good."""
        home = self.home
        words = ["--storage", self.storage.folder, "--data", home.data, "--run", self.run, "--report-boot"]
        command = self.inside([sys.executable, "-m", "tidegate.agent", *map(str, words)])
        with self._console.open("ab") as console:
            status = subprocess.run(command, stdout=console, stderr=console, check=False).returncode
        if status != 0:
            raise StepFailed(f"the boot log could not be reported (status {status}); see {self._console}")

    def ask(self, request: dict[str, object]) -> dict[str, object]:
        """Ask the agent over its local socket."""
        return ask_agent(self.run / SOCKET, request)

    def agent_pids(self) -> list[int]:
        """Return the host's numbers of the agent's processes: itself, its sensor, an armed rollback."""
        mine = []
        for pid in self._netns.pids():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended meanwhile
            if {b"tidegate.agent", b"tidegate.ids.worker"} & set(words) or b"guard" in b" ".join(words):
                mine.append(pid)
        return mine

    def stop_agent(self) -> None:
        """Ask the agent to end in an orderly way and wait until it has."""
        for pid in self.agent_pids():
            if b"tidegate.agent" in Path(f"/proc/{pid}/cmdline").read_bytes():
                subprocess.run(["kill", f"-{signal.SIGTERM.value}", str(pid)], check=False)  # noqa: S607
        wait_until(lambda: self._try_status() is None, "the agent does not end", timeout_s=5)

    def _try_status(self) -> dict[str, object] | None:
        try:
            return self.ask({"op": "status"})
        except AgentAbsent:
            return None
