"""The key process on its own, for tests: ready when the body begins, asked to stop when it ends.

Touches: a process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidegate.testing.errors import KeydFailed
from tidegate.testing.processes import started

_READY_S = 15.0
_STOP_S = 10.0


@contextmanager
def running_keyd(config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``tidegate-keyd CONFIG`` during the body. One that is not ready, or does not stop when asked, is an error.

    Raises ``testing.keyd.failed`` with what it wrote to standard error; no process is left in any case.
    """
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "tidegate.keys.keyd", str(config)]

        def said() -> bytes:
            log.seek(0)
            return log.read()

        with started(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log) as process:
            deadline = time.monotonic() + _READY_S
            while b"keyd.ready" not in said():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise KeydFailed(f"the key process is not ready: {said().decode(errors='replace')}")
                time.sleep(0.02)
            yield process
            process.terminate()
            try:
                process.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired as error:
                raise KeydFailed("the key process does not stop") from error
