"""The rollback's own process: waits, and restores unless the change was confirmed.

Started by ``commit`` before the change, in a session of its own, away from its parent: neither the parent's death, nor
a hang-up, nor a lost terminal stops it. What it needs to restore is loaded before it says that it is ready: the text,
the library, the connection to the kernel. SIGTERM (a service manager that stops everything) makes it restore at once.

Kept small: no import beyond the firewall's own and the standard library's core; run by ``python -I -S``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from tidegate.base.errors import TidegateError
from tidegate.firewall.nft import Nft

PENDING = "pending.nft"  # the change; who renames it first decides its fate
ROLLING_BACK = "rolling-back.nft"  # claimed by a rollback that has not finished
ROLLED_BACK = "rolled-back.nft"  # the last change that was undone, kept for the operator
RESTORE = "rollback.nft"  # the transaction that undoes it
REQUEST = "rollback.request"  # "do it now"
LOCK = "guard.lock"  # held by a living guard
READY = b"ready\n"
POLL_S = 0.1  # two system calls each; a request is served within it
ATTEMPTS = 20  # a restore meets at worst another transaction or a moment without memory
RETRY_S = 0.25


def main(arguments: list[str]) -> int:
    """Guard the change in folder ``arguments[0]`` for ``arguments[1]`` seconds; returns the exit status."""
    folder, timeout_s = Path(arguments[0]), float(arguments[1])
    _detach()
    told = _listen_to_signals()
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    restore = (folder / RESTORE).read_text()
    nft = Nft.open()
    deadline = _now_s() + timeout_s
    _say_ready()
    while _now_s() < deadline and not told and not (folder / REQUEST).exists():
        if not (folder / PENDING).exists():
            return 0  # confirmed, or never applied
        time.sleep(POLL_S)
    return 0 if roll_back(folder, nft, restore) else 1


def roll_back(folder: Path, nft: Nft, restore: str) -> bool:
    """Claim the pending change and undo it; ``False`` when every attempt failed, and the claim stays as a mark.

    Returns at once when somebody else has decided already.
    """
    try:
        (folder / PENDING).rename(folder / ROLLING_BACK)
    except FileNotFoundError:
        return True
    return finish_rollback(folder, nft, restore)


def finish_rollback(folder: Path, nft: Nft, restore: str) -> bool:
    """Restore what was in force, and say so in the folder; ``False`` when every attempt failed."""
    for _ in range(ATTEMPTS):
        try:
            nft.run(restore)
        except TidegateError as error:
            sys.stderr.write(f"{error.code}: {error.message}\n")  # guard.log in the state folder
            sys.stderr.flush()
            time.sleep(RETRY_S)
            continue
        with contextlib.suppress(FileNotFoundError):
            (folder / ROLLING_BACK).rename(folder / ROLLED_BACK)
        return True
    return False


def guard_lives(folder: Path) -> bool:
    """Return whether a guard watches this folder now."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _detach() -> None:
    """Leave the parent: it gets no zombie, and a kill of its process group does not reach here."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")


def _listen_to_signals() -> list[int]:
    """Return a list that is not empty once SIGTERM came; other requests to end are ignored."""
    told: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, remember)
    return told


def _say_ready() -> None:
    """Tell the parent that the change is guarded from now on, then let go of its pipe."""
    with contextlib.suppress(BrokenPipeError):  # the parent is dead already: the guard still ends in order
        os.write(1, READY)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)


def _now_s() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
