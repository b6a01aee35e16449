"""Debian's network key server (tangd) on a port of the loopback interface, for tests: stopped, slowed, replaced.

Touches: a thread, a process for each connection, the folder with the server's keys. Leaves to others: tangd itself
(Debian package tang).
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegate.base.program import run_program

LIBEXEC = Path("/usr/libexec")
_ANSWER_S = 10.0


class Tangd:
    """A running server with the keys in ``folder``, made at the first start. A context manager that stops it."""

    def __init__(self, folder: Path, *, port: int = 0) -> None:
        """Start on ``port``, or on a free one."""
        self.folder = folder
        self.delay_s = 0.0  # how long each question waits
        self._closing = False
        if not folder.exists():
            folder.mkdir()
            run_program([str(LIBEXEC / "tangd-keygen"), str(folder)])
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._serve, name="tangd")
        self._thread.start()

    @staticmethod
    def is_installed() -> bool:
        """Return whether tangd can be started here."""
        return all((LIBEXEC / name).exists() for name in ("tangd", "tangd-keygen"))

    def thumbprint(self) -> str:
        """Return what names the server's signing key."""
        for path in self.folder.glob("[!.]*.jwk"):
            if json.loads(path.read_text())["alg"] == "ES512":
                return path.stem
        raise LookupError("the server has no signing key")

    def close(self) -> None:
        """Stop; harmless when repeated. The keys stay in ``folder``."""
        if not self._closing:
            self._closing = True
            with socket.create_connection(("127.0.0.1", self.port)):
                pass
            self._thread.join()
            self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if self._closing:
                    return
                time.sleep(self.delay_s)
                subprocess.run(
                    [LIBEXEC / "tangd", self.folder],
                    stdin=connection.fileno(),
                    stdout=connection.fileno(),
                    stderr=subprocess.DEVNULL,
                    timeout=_ANSWER_S,
                    check=False,
                )
