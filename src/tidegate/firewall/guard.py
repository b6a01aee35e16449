"""The rollback's own process: waits, and restores unless the change was confirmed.

Started before the change, in a session of its own, away from its parent: neither the parent's death, nor a hang-up, nor
a lost terminal stops it. It starts while the change is still being planned, and waits for the word that what it needs
to restore is written; all of that is loaded before it says that it is ready: the text, the library, the connection to
the kernel. SIGTERM (a service manager that stops everything) makes it restore at once.

It lives as long as a change waits, on devices with little memory: run by ``python -I -S``, and imports neither pathlib
nor typing nor the error families, which would double what it occupies.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time

from tidegate.firewall.libnftables import LibraryEngine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    # Runs a transaction and returns the complaint, empty when it was done.
    Execute = Callable[[str], str]

PENDING = "pending.nft"  # the change; who renames it first decides its fate
ROLLING_BACK = "rolling-back.nft"  # claimed by a rollback that has not finished
ROLLED_BACK = "rolled-back.nft"  # the last change that was undone, kept for the operator
RESTORE = "rollback.nft"  # the transaction that undoes it
UNDO = "rollback.sysctl"  # the settings that go back with it: the namespace, then a name and a value a line
REQUEST = "rollback.request"  # "do it now"
LOCK = "guard.lock"  # held by a living guard
LOCKED = "lockdown.on"  # the device is locked down
LOCKDOWN = "lockdown.nft"  # what that loads
GO = b"go\n"  # to the guard: everything is written
READY = b"ready\n"  # from the guard
PART = "# -- part --\n"  # in a restoring text: what follows is for one device, and can be left out if that is gone
POLL_S = 0.1  # two system calls each; a request is served within it
TIMER_POLL_S = 1.0  # of a lockdown's timer: one file read
ATTEMPTS = 20  # a restore meets at worst another transaction or a moment without memory
RETRY_S = 0.25
LOCK_S = 2.0  # whoever asks whether a guard lives holds the lock for microseconds


def main(folder: str, timeout_s: float, nft_program: str) -> int:
    """Guard the change in ``folder`` for ``timeout_s`` seconds and return the exit status.

    ``nft_program`` is what restores where the library is missing.
    """
    _detach()
    _outlive_memory_shortage()
    told = _listen_to_signals()
    execute = _open_engine(nft_program)
    if os.read(0, len(GO)) != GO:
        return 0  # there is no change after all
    _take_lock(folder)
    restore, undo = read_text(f"{folder}/{RESTORE}"), read_text(f"{folder}/{UNDO}")
    was_locked = _exists(folder, LOCKED)
    deadline = _now_s() + timeout_s
    _say_ready()
    while _now_s() < deadline and not told and not _exists(folder, REQUEST):
        if not _exists(folder, PENDING):
            return 0  # confirmed, or never applied
        time.sleep(POLL_S)
    is_done = roll_back(folder, execute, restore, undo)
    if not was_locked and _exists(folder, LOCKED):
        _lock_again(folder, execute)
    return 0 if is_done else 1


def roll_back(folder: str, execute: Execute, restore: str, undo: str) -> bool:
    """Claim the pending change and undo it; ``False`` when every attempt failed, and the claim stays as a mark.

    Returns at once when somebody else has decided already.
    """
    if not _rename(folder, PENDING, ROLLING_BACK):
        return True
    return finish_rollback(folder, execute, restore, undo)


def finish_rollback(folder: str, execute: Execute, restore: str, undo: str) -> bool:
    """Restore what was in force, and say so in the folder; ``False`` when every attempt failed."""
    for _ in range(ATTEMPTS):
        complaint = _restore(execute, restore)
        if not complaint:
            undo_settings(undo)
            _rename(folder, ROLLING_BACK, ROLLED_BACK)
            return True
        _note(f"rollback refused: {complaint}")
        time.sleep(RETRY_S)
    return False


def undo_settings(undo: str) -> None:
    """Set the kernel's settings back; elsewhere than in the namespace that they belong to, do nothing."""
    namespace, *lines = undo.splitlines() or [""]
    if not lines or namespace != os.readlink("/proc/thread-self/ns/net"):  # noqa: PTH115 - pathlib costs 2 MB
        return
    for line in lines:
        name, _, value = line.partition(" ")
        try:
            if read_text(f"/proc/sys/{name}").strip() == value:
                continue  # it could not be changed in the first place
            with open(f"/proc/sys/{name}", "w") as stream:  # noqa: PTH123 - as above
                stream.write(value)
        except OSError as error:
            _note(f"{name} stays changed: {error}")


def read_text(path: str) -> str:
    """Return the text of a file."""
    with open(path) as stream:  # noqa: PTH123 - as above
        return stream.read()


def _restore(execute: Execute, restore: str) -> str:
    """Return the complaint about the whole text, or about the part that depends on no network device."""
    complaint = execute(restore)
    main, *others = restore.split(PART)
    if not complaint or not others:
        return complaint
    # A device that went away with its rules must not keep all the others from coming back.
    complaint = execute(main)
    if not complaint:
        for part in others:
            lost = execute(part)
            if lost:
                _note(f"left out: {lost}")
    return complaint


def outlast(mark: str, token: str, seconds: str, *command: str) -> None:
    """Become ``command`` after ``seconds``; end at once when the file ``mark`` is gone or names another ``token``.

    The timer of a lockdown. Told to end, it ends and lifts nothing: who stops everything does not open the device.
    """
    _detach()
    deadline = _now_s() + float(seconds)
    while _now_s() < deadline:
        try:
            if token not in read_text(mark):
                return
        except FileNotFoundError:
            return
        time.sleep(min(TIMER_POLL_S, max(0.0, deadline - _now_s())))
    os.execv(command[0], command)  # noqa: S606 - no shell wanted


def guard_lives(folder: str) -> bool:
    """Return whether a guard watches this folder now."""
    try:
        lock = os.open(f"{folder}/{LOCK}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who ask do not take each other for a guard
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _take_lock(folder: str) -> None:
    """Hold the lock of a living guard until this process ends; raise ``BlockingIOError`` if another one lives."""
    lock = os.open(f"{folder}/{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = _now_s() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if _now_s() > deadline:
                raise
            time.sleep(POLL_S / 20)
        else:
            return


def _lock_again(folder: str, execute: Execute) -> None:
    """Load the lockdown behind a restore: who switched it on may have died before he dropped the change."""
    try:
        complaint = execute(read_text(f"{folder}/{LOCKDOWN}"))
    except OSError as error:
        complaint = str(error)
    if complaint:
        _note(f"not locked down again: {complaint}")


def _detach() -> None:
    """Leave the parent: it gets no zombie, and a kill of its process group does not reach here."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")


def _outlive_memory_shortage() -> None:
    """Ask the kernel to kill others first; a device that is short of memory needs its rollback most."""
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:  # noqa: PTH123 - as above
            stream.write("-900")  # proc(5): -1000 would exempt us wholly
    except OSError as error:
        _note(f"no protection from the out-of-memory killer: {error}")


def _listen_to_signals() -> list[int]:
    """Return a list that is not empty once SIGTERM came; other requests to end are ignored."""
    told: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, remember)
    return told


def _open_engine(nft_program: str) -> Execute:
    """Return the library, connected, or the program."""
    try:
        engine = LibraryEngine()
    except OSError:
        if not nft_program:
            raise
    else:

        def run_library(text: str) -> str:
            status, _, complaint = engine.execute(text)
            return (complaint or "no message") if status else ""

        return run_library

    def run_program(text: str) -> str:
        # From a file in memory: a pipe would need a thread or a second process, a file a disk with room.
        memory = os.memfd_create("restore", 0)
        try:
            with open(memory, "w", closefd=False) as stream:
                stream.write(text)
            path = f"/proc/self/fd/{memory}"
            status = os.spawnv(os.P_WAIT, nft_program, ["nft", "-f", path])  # noqa: S606 - no shell wanted
        finally:
            os.close(memory)
        return f"nft ended with status {status}" if status else ""

    return run_program


def _say_ready() -> None:
    """Tell the parent that the change is guarded from now on, then let go of its pipe."""
    try:
        os.write(1, READY)
    except BrokenPipeError:
        _note("the process that changes the firewall is gone")  # the guard still ends in order
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)


def _note(text: str) -> None:
    """Write a line to guard.log in the state folder, if the disk takes it: a full one must not stop the rollback."""
    try:
        os.write(2, f"{text}\n".encode())
    except OSError:
        return


def _rename(folder: str, old: str, new: str) -> bool:
    """Return whether there was an ``old`` to rename."""
    try:
        os.rename(f"{folder}/{old}", f"{folder}/{new}")  # noqa: PTH104 - as above
    except FileNotFoundError:
        return False
    return True


def _exists(folder: str, name: str) -> bool:
    return os.access(f"{folder}/{name}", os.F_OK)


def _now_s() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
