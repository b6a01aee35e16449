"""Storage that remembers every change, so that a power cut can be tried after each one.

The functions of ``os`` that change files are wrapped while something is recorded; what they did below one folder is
kept as a list of steps. ``images`` then rebuilds the folder as it may be found after a cut behind any step:

* ``written``: everything up to the step reached the storage, the last write only in half;
* ``synced``: only what was synchronised did, names as well as content;
* ``named``: every name did, but content only where it was synchronised (the order that file systems are free to use);
* ``content``, where asked for: every content did, but names only where they were synchronised.

Mappings and ``open`` of a path for writing are not seen: who is tried uses descriptors. ``fallocate`` that keeps the
size changes nothing that can be read and is no step.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tidegate.vault import beside

WAYS = ("written", "synced", "named")
_RECORDED = (
    "open",
    "write",
    "writev",
    "pwrite",
    "pwritev",
    "posix_fallocate",
    "ftruncate",
    "fsync",
    "fdatasync",
    "rename",
    "replace",
    "unlink",
    "remove",
    "link",
    "mkdir",
    "rmdir",
)


@dataclass
class State:
    """Names and contents of a folder; names are relative paths, contents belong to numbered inodes."""

    names: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    contents: dict[int, bytes] = field(default_factory=dict)

    def copy(self):
        return State(dict(self.names), set(self.folders), dict(self.contents))

    def write_to(self, target: Path) -> None:
        """Make ``target`` this state."""
        shutil.rmtree(target, ignore_errors=True)
        mask = os.umask(0o077)  # as private as the real ones, folders on the way included
        try:
            for folder in ("", *sorted(self.folders)):
                (target / folder).mkdir(parents=True, exist_ok=True)
            for name, inode in self.names.items():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                (target / name).write_bytes(self.contents.get(inode, b""))
        finally:
            os.umask(mask)


class RecordedStorage:
    """A folder whose changes are recorded."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._steps = []
        self._start = State()
        self._inodes = {}
        self._next = 0
        self.reached = 0  # while ``images`` runs: how many marks are behind the cut

    def mark(self) -> None:
        """Say that what was done so far has returned; ``images`` tries a cut here as well."""
        self._steps.append(("mark",))

    def written_bytes(self) -> bytes:
        """Return everything that was written to any file, torn away or not."""
        return b"".join(step[3] for step in self._steps if step[0] == "write")

    def created_names(self) -> list[str]:
        """Return every name that was there at some time."""
        return [step[-1] if step[0] in ("rename", "link") else step[1] for step in self._steps if _names(step)]

    @contextlib.contextmanager
    def recording(self, monkeypatch) -> Iterator[None]:
        """Record what the body changes below the root; what is there before counts as durable."""
        self._steps = []
        self._snapshot()
        with monkeypatch.context() as patch:
            for name in _RECORDED:
                patch.setattr(os, name, getattr(self, f"_{name}")(getattr(os, name)))
            patch.setattr(beside, "_LIBRARY", None)  # what the C library writes by itself would not be seen
            yield

    def images(self, target: Path, *, ways: tuple[str, ...] = WAYS) -> Iterator[str]:
        """Rebuild ``target`` after each step in each way, and yield a name for it."""
        live, durable = self._start.copy(), self._start.copy()
        self.reached = 0
        for number, step in enumerate(self._steps, start=1):
            torn = live.copy()
            _apply(torn, step, half=True)
            if step[0] == "mark":
                self.reached += 1
            _apply(live, step)
            _sync(durable, live, step)
            found = {
                "written": torn,
                "synced": durable,
                "named": State(live.names, live.folders, durable.contents),
                "content": State(durable.names, durable.folders, live.contents),
            }
            for way in ways:
                found[way].write_to(target)
                yield f"{way} {number}/{len(self._steps)} {step[0]}"

    def _snapshot(self) -> None:
        self._start, self._inodes = State(), {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_dir():
                self._start.folders.add(name)
            else:
                self._start.names[name] = self._inode(path.stat().st_ino)
                self._start.contents[self._start.names[name]] = path.read_bytes()

    def _inode(self, real: int, *, fresh: bool = False) -> int:
        """Number inodes ourselves: the file system reuses numbers of removed files."""
        if fresh or real not in self._inodes:
            self._next += 1
            self._inodes[real] = self._next
        return self._inodes[real]

    def _note(self, kind: str, *paths, dir_fd: int | None = None) -> None:
        names = [self._relative(path, dir_fd) for path in paths]
        if None not in names:
            self._steps.append((kind, *names))

    def _relative(self, path, dir_fd: int | None = None) -> str | None:
        absolute = Path(os.fspath(path))
        if dir_fd is not None and not absolute.is_absolute():
            absolute = Path(f"/proc/self/fd/{dir_fd}").readlink() / absolute
        return str(absolute.relative_to(self.root)) if absolute.is_relative_to(self.root) else None

    def _of(self, descriptor: int) -> tuple[str | None, int]:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink()).removesuffix(" (deleted)")
        return self._relative(path), self._inode(os.fstat(descriptor).st_ino)

    def _open(self, real):
        def call(path, flags, mode=0o777, **options):
            existed = os.path.lexists(path)
            descriptor = real(path, flags, mode, **options)
            name = self._relative(path)
            if name is not None and flags & os.O_CREAT and not existed:
                self._steps.append(("create", name, self._inode(os.fstat(descriptor).st_ino, fresh=True)))
            return descriptor

        return call

    def _write(self, real):
        def call(descriptor, data):
            done = real(descriptor, data)
            name, inode = self._of(descriptor)
            if name is not None:
                offset = os.lseek(descriptor, 0, os.SEEK_CUR) - done
                self._steps.append(("write", inode, offset, bytes(memoryview(data)[:done])))
            return done

        return call

    def _writev(self, real):
        def call(descriptor, pieces):
            return os.write(descriptor, b"".join(pieces))  # the same bytes in one step

        return call

    def _pwrite(self, real):
        def call(descriptor, data, offset):
            done = real(descriptor, data, offset)
            name, inode = self._of(descriptor)
            if name is not None:
                self._steps.append(("write", inode, offset, bytes(memoryview(data).cast("B")[:done])))
            return done

        return call

    def _pwritev(self, real):
        def call(descriptor, pieces, offset, flags=0):  # they say how, not what
            return os.pwrite(descriptor, b"".join(pieces), offset)

        return call

    def _posix_fallocate(self, real):
        def call(descriptor, offset, length):
            real(descriptor, offset, length)
            name, inode = self._of(descriptor)
            if name is not None:
                self._steps.append(("extend", inode, offset + length))

        return call

    def _ftruncate(self, real):
        def call(descriptor, size):
            real(descriptor, size)
            name, inode = self._of(descriptor)
            if name is not None:
                self._steps.append(("truncate", inode, size))

        return call

    def _fsync(self, real):
        def call(descriptor):
            real(descriptor)
            name, inode = self._of(descriptor)
            if name is not None:
                folder = (self.root / name).is_dir()
                self._steps.append(("sync folder", "" if name == "." else name) if folder else ("sync", inode))

        return call

    _fdatasync = _fsync

    def _rename(self, real):
        def call(source, target, **options):
            real(source, target, **options)
            self._note("rename", source, target)

        return call

    _replace = _rename

    def _unlink(self, real):
        def call(path, **options):
            real(path, **options)
            self._note("unlink", path, dir_fd=options.get("dir_fd"))

        return call

    _remove = _unlink

    def _link(self, real):
        def call(source, target, **options):
            real(source, target, **options)
            self._note("link", source, target)

        return call

    def _mkdir(self, real):
        def call(path, *arguments, **options):
            real(path, *arguments, **options)
            self._note("mkdir", path)

        return call

    def _rmdir(self, real):
        def call(path, **options):
            real(path, **options)
            self._note("rmdir", path, dir_fd=options.get("dir_fd"))

        return call


def _names(step) -> bool:
    return step[0] in ("create", "rename", "link", "mkdir")


def _apply(state: State, step, *, half: bool = False) -> None:
    match step:
        case ("create", name, inode):
            state.names[name] = inode
            state.contents[inode] = b""
        case ("write", inode, offset, data):
            data = data[: len(data) // 2] if half else data
            old = state.contents[inode].ljust(offset, b"\0")
            state.contents[inode] = old[:offset] + data + old[offset + len(data) :]
        case ("truncate", inode, size):
            state.contents[inode] = state.contents[inode][:size].ljust(size, b"\0")
        case ("extend", inode, size):
            state.contents[inode] = state.contents[inode].ljust(size, b"\0")
        case ("rename", source, target):
            state.names[target] = state.names.pop(source)
        case ("link", source, target):
            state.names[target] = state.names[source]
        case ("unlink", name):
            del state.names[name]
        case ("mkdir", name):
            state.folders.add(name)
        case ("rmdir", name):
            state.folders.discard(name)


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _sync(durable: State, live: State, step) -> None:
    match step:
        case ("sync", inode):
            durable.contents[inode] = live.contents[inode]
        case ("sync folder", folder):
            for name in [name for name in durable.names if _folder_of(name) == folder]:
                del durable.names[name]
            durable.names |= {name: inode for name, inode in live.names.items() if _folder_of(name) == folder}
            durable.folders |= {name for name in live.folders if _folder_of(name) == folder}


@pytest.fixture
def storage(tmp_path) -> RecordedStorage:
    """A folder whose changes are recorded, private to its owner."""
    root = tmp_path / "storage"
    root.mkdir(mode=0o700)
    return RecordedStorage(root)
