"""A TPM 2.0 in software (swtpm) for tests: started in a folder, restarted with its state, killed, wiped.

Touches: processes, the folder. Nobody but this user reaches it: it listens on a socket in a folder of mode 700, or on a
free port of the loopback interface where a test needs TCP.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegate.base.program import find_program
from tidegate.testing.errors import SwTpmFailed

_START_S = 10.0
_STOP_S = 5.0
_TCP_TRIES = 5


class SwTpm:
    """A running TPM with its state in ``folder``; ``tcti`` says how to reach it. A context manager that stops it."""

    def __init__(self, folder: Path, *, tcp: bool = False) -> None:
        self.folder = folder
        self._tcp = tcp
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._sockets = Path(tempfile.mkdtemp(prefix="swtpm-"))  # a socket's path has at most 107 bytes
        self.start()

    @property
    def tcti(self) -> str:
        """Return the TCTI for tpm2-tss and tpm2-tools."""
        return f"swtpm:host=127.0.0.1,port={self._port}" if self._tcp else f"swtpm:path={self._sockets / 'tpm'}"

    def start(self) -> None:
        """Start the TPM with the state it has; raise ``testing.swtpm.failed``."""
        for _ in range(_TCP_TRIES):
            if self._tcp and not self._port:
                self._port = _free_ports()
            if self._started():
                return
            self.stop()
            self._port = 0
        raise SwTpmFailed(f"swtpm did not start: {self._log()}")

    def stop(self) -> None:
        """End the TPM's process in an orderly way; harmless when repeated."""
        self._end(kill=False)

    def kill(self) -> None:
        """End the TPM as a power cut does."""
        self._end(kill=True)

    def restart(self) -> None:
        """Stop and start with the same state, as a reboot does: PCRs begin anew, keys and counters stay."""
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Replace the TPM by another one: new seeds, so no key of the old one loads."""
        self.stop()
        shutil.rmtree(self.folder)
        self.folder.mkdir(mode=0o700)
        self.start()

    def close(self) -> None:
        """Stop for good; the state stays in ``folder``."""
        self.kill()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self) -> bool:
        for path in self._sockets.glob("tpm*"):
            path.unlink()
        where = [
            f"type=tcp,port={port},bindaddr=127.0.0.1" if self._tcp else f"type=unixio,path={path}"
            for port, path in ((self._port, self._sockets / "tpm"), (self._port + 1, self._sockets / "tpm.ctrl"))
        ]
        command = [find_program("swtpm"), "socket", "--tpm2", "--tpmstate", f"dir={self.folder},mode=0600"]
        command += ["--server", where[0], "--ctrl", where[1], "--flags", "not-need-init,startup-clear"]
        command += ["--log", f"file={self._sockets / 'log'},level=1,truncate"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < end:
            if self._answers():
                return True
            time.sleep(0.01)
        return False

    def _answers(self) -> bool:
        family = socket.AF_INET if self._tcp else socket.AF_UNIX
        address = ("127.0.0.1", self._port) if self._tcp else os.fspath(self._sockets / "tpm")
        with socket.socket(family) as client:
            return client.connect_ex(address) == 0

    def _end(self, *, kill: bool) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if not kill:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                kill = True
        if kill:
            process.kill()
        process.wait()

    def _log(self) -> str:
        log = self._sockets / "log"
        return log.read_text(errors="replace")[-400:] if log.exists() else "no log"


def _free_ports() -> int:
    """Return a port that is free together with the next one, which swtpm's clients take for the control channel."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
