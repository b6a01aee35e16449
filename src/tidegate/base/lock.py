"""One user of a folder at a time, by a lock that goes when its process does.

Touches: the file ``lock`` in the folder (flock(2)).
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from tidegate.base.durable import translate_os_errors
from tidegate.base.errors import Fault

_POLL_S = 0.02


class FolderLock:
    """The right to use ``folder``; raises ``busy`` (a room's own error) if another one keeps it for ``wait_s``."""

    def __init__(self, folder: Path, *, wait_s: float, busy: type[Fault]) -> None:
        path = folder / "lock"
        with translate_os_errors(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            for attempt in range(int(wait_s / _POLL_S) + 1):
                if attempt:
                    time.sleep(_POLL_S)
                try:
                    fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                return
        self.release()
        raise busy(f"{folder} is in use by another process (waited {wait_s:g} s)", folder=str(folder))

    def release(self) -> None:
        """Let the next one in; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
