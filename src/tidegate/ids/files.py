"""Watches files: a baseline of digests, modes and owners, inotify for what changes now, a full check for the rest.

inotify misses writes through a memory mapping, changes below a mount point, and whatever happens while its queue is
full; so every ``interval_s`` everything is read again. Changes made while nobody watches are not seen: the first
snapshot is the baseline. Links are not followed. Touches: the file system, inotify through ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import select
import stat
import struct
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegate.ids.errors import WatchFailed, WatchTooManyFiles
from tidegate.ids.filestate import FileChange, FileState, compare_snapshots
from tidegate.ids.section import WatchSection

MAX_FILES = 10_000  # about 3 MB of baseline; the programs and settings of a device are some thousand files
READ_BYTES = 1 << 18
UNREADABLE = "unreadable"

# linux/inotify.h
_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED_FROM, _MOVED_TO = 0x2, 0x4, 0x8, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF, _Q_OVERFLOW = 0x100, 0x200, 0x400, 0x800, 0x4000
_ONLYDIR, _DONT_FOLLOW = 0x0100_0000, 0x0200_0000
_INTEREST = _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows
_QUEUE_BYTES = 65_536


class FileWatcher:
    """Reports changes below ``section.paths``, each once; a path that does not exist yet is reported when it does.

    Raises ``ids.watch.too-many-files`` rather than watch a part, and ``ids.watch.failed`` where the kernel refuses.
    """

    def __init__(self, section: WatchSection) -> None:
        self._roots = [os.path.normpath(path) for path in section.paths]
        self._interval_s = section.interval_s
        self._queue = _Queue()
        try:
            # watched first, read afterwards: what changes in between is read, or seen, or both
            for folder in self._folders():
                self._queue.add(folder)
            self._states = self._read_all()
        except BaseException:
            self._queue.close()
            raise
        self._next_check_s = time.monotonic() + self._interval_s

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when ``wait(0)`` has something to look at."""
        return self._queue.descriptor

    def wait(self, timeout_s: float) -> list[FileChange]:
        """Return what changed, after at most ``timeout_s``; does the full check when it is due."""
        timeout_s = max(0.0, min(timeout_s, self._next_check_s - time.monotonic()))
        touched = self._queue.read(timeout_s)
        if touched is None or time.monotonic() >= self._next_check_s:
            return self.check()
        return self._look_again(touched)

    def check(self) -> list[FileChange]:
        """Read everything again and return what changed."""
        for folder in self._folders():
            self._queue.add(folder)
        changes = self._become(self._read_all())
        self._next_check_s = time.monotonic() + self._interval_s
        return changes

    def close(self) -> None:
        """Stop watching; harmless when repeated."""
        self._queue.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _look_again(self, touched: Iterable[str]) -> list[FileChange]:
        """Read only what inotify named, and what is or was below it."""
        states = dict(self._states)
        for path in sorted(touched):
            if not self._is_watched(path):
                continue  # a neighbour of a single watched file
            for known in [known for known in states if known == path or known.startswith(path + "/")]:
                del states[known]
            for folder in _folders_below(path):
                self._queue.add(folder)
            _read_tree(path, states)
        return self._become(states)

    def _become(self, states: dict[str, FileState]) -> list[FileChange]:
        changes = list(compare_snapshots(self._states, states))
        self._states = states
        return changes

    def _is_watched(self, path: str) -> bool:
        return any(path == root or path.startswith(root.rstrip("/") + "/") for root in self._roots)

    def _folders(self) -> list[str]:
        """Return every folder in which something watched lives; the roots' parents too, for roots that come and go."""
        found = set()
        for root in self._roots:
            parent = str(Path(root).parent)
            if stat.S_ISDIR(_mode(parent)):
                found.add(parent)
            found.update(_folders_below(root))
        return sorted(found)

    def _read_all(self) -> dict[str, FileState]:
        states: dict[str, FileState] = {}
        for root in self._roots:
            _read_tree(root, states)
        return states


class _Queue:
    """The inotify descriptor, and which folder each watch stands for."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor: int = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if self.descriptor < 0:
            raise WatchFailed(f"inotify: {os.strerror(ctypes.get_errno())}")
        self._folders: dict[int, str] = {}

    def add(self, folder: str) -> None:
        """Watch a folder; one that vanished meanwhile, or is no folder any more, is left to the next look."""
        watch = self._libc.inotify_add_watch(self.descriptor, os.fsencode(folder), _INTEREST | _ONLYDIR | _DONT_FOLLOW)
        if watch >= 0:
            self._folders[watch] = folder
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOENT, errno.ENOTDIR):
            raise WatchFailed(f"cannot watch {folder}: {os.strerror(number)}", path=folder, errno=number)

    def read(self, timeout_s: float) -> set[str] | None:
        """Return the paths that events name, or ``None`` when events were lost."""
        readable, _, _ = select.select([self.descriptor], [], [], timeout_s)
        touched: set[str] = set()
        while readable:
            try:
                data = os.read(self.descriptor, _QUEUE_BYTES)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, at)
                name = data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
                at += _EVENT.size + length
                if mask & _Q_OVERFLOW:
                    return None
                folder = self._folders.get(watch)
                if folder is not None:
                    touched.add(f"{folder.rstrip('/')}/{os.fsdecode(name)}" if name else folder)
        return touched

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _folders_below(root: str) -> list[str]:
    """Return ``root`` and every folder below it; nothing if it is no folder."""
    if not stat.S_ISDIR(_mode(root)):
        return []
    return [folder for folder, _, _ in os.walk(root, followlinks=False)]


def _read_tree(root: str, states: dict[str, FileState]) -> None:
    """Add the state of ``root`` and of all below it."""
    paths = [root]
    for folder, folders, files in os.walk(root, followlinks=False):
        paths.extend(f"{folder.rstrip('/')}/{name}" for name in (*folders, *files))
        if len(states) + len(paths) > MAX_FILES:
            raise WatchTooManyFiles(f"more than {MAX_FILES} files to watch, in {folder}", limit=MAX_FILES, path=folder)
    for path in paths:
        state = _read_state(path)
        if state is not None:
            states[path] = state


def _read_state(path: str) -> FileState | None:
    """Return the state of one path; ``None`` if it is not there."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return FileState(digest=UNREADABLE, mode=0, owner=0, group=0)
    digest = ""
    try:
        if stat.S_ISREG(status.st_mode):
            digest = _digest_file(path)
        elif stat.S_ISLNK(status.st_mode):
            digest = hashlib.sha256(os.fsencode(Path(path).readlink())).hexdigest()
    except FileNotFoundError:
        return None
    except OSError:
        digest = UNREADABLE  # a state like any other: becoming unreadable is a change to report
    return FileState(digest=digest, mode=status.st_mode, owner=status.st_uid, group=status.st_gid)


def _digest_file(path: str) -> str:
    digest = hashlib.sha256()
    # neither a link put here since the look above, nor a pipe that would block us
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while data := stream.read(READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _mode(path: str) -> int:
    try:
        return os.lstat(path).st_mode
    except OSError:
        return 0
