"""The guard's process: started while a change is planned, told to guard when everything is written.

Touches: the guard's process, its files in the state folder.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

import tidegate
from tidegate.base.durable import translate_os_errors
from tidegate.base.errors import ProgramMissing
from tidegate.base.program import find_program
from tidegate.firewall import guard
from tidegate.firewall.errors import GuardFailed

GUARD_START_S = 10.0  # an interpreter's start from cold flash, with room
# -I -S: no user site, no .pth files, no environment: small, and nothing foreign in a privileged process.
_FLAGS = ("-I", "-S")


class Watch:
    """A guard that has been started and does not guard yet. Leaving the ``with`` block dismisses one not armed."""

    def __init__(self, state_dir: Path, starter: subprocess.Popen[bytes]) -> None:
        self._state_dir, self._starter = state_dir, starter

    @classmethod
    def start(cls, state_dir: Path, timeout_s: float) -> Self:
        """Start the process, without waiting for it; raises ``firewall.commit.guard``, ``base.storage.*``."""
        call = "from tidegate.firewall.guard import main; sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3]))"
        command = [*python_command(call, *_FLAGS), str(state_dir.absolute()), str(timeout_s), _nft_program()]
        with translate_os_errors(state_dir / "guard.log"):
            log = os.open(state_dir / "guard.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            starter = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        except OSError as error:
            raise GuardFailed(f"the rollback process did not start: {error}", path=str(state_dir)) from error
        finally:
            os.close(log)
        return cls(state_dir, starter)

    def arm(self) -> None:
        """Return once the guard has loaded what it needs and guards; raises ``firewall.commit.guard``."""
        said, orders, answer = b"", self._starter.stdin, self._starter.stdout
        if orders is not None:
            with contextlib.suppress(BrokenPipeError):
                os.write(orders.fileno(), guard.GO)
        if answer is not None and select.select([answer], [], [], GUARD_START_S)[0]:
            said = os.read(answer.fileno(), len(guard.READY))
        if said != guard.READY:
            log = self._state_dir / "guard.log"
            raise GuardFailed(f"the rollback process did not start; see {log}", path=str(self._state_dir))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._starter.stdin, self._starter.stdout):
            if pipe is not None:
                pipe.close()  # a guard that was not told to guard ends by that
        if kind is not None:
            self._starter.kill()  # one that hangs at its start; a guard that guards is not this process any more
        self._starter.wait()


def python_command(call: str, *flags: str) -> list[str]:
    """Return the command that runs ``call`` in an interpreter of its own with this package in its path."""
    folder = str(Path(tidegate.__file__).parent.parent)
    return [sys.executable, *flags, "-c", f"import sys; sys.path.insert(0, {folder!r}); {call}"]


def _nft_program() -> str:
    """Return the path of ``nft`` for a guard without the library; empty where the library is all there is."""
    try:
        return find_program("nft")
    except ProgramMissing:
        return ""
