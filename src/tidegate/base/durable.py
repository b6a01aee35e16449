"""Files that are wholly old or wholly new after a power cut, and reads that cannot grow without bound.

Touches: the file system. Every ``OSError`` leaves here as a coded ``Fault``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tidegate.base.errors import Fault, InputTooLarge, StorageFailed, StorageFull, StorageMissing, UnsafePermissions

_GONE = ".gone"  # of a file that is being erased


@contextlib.contextmanager
def translate_os_errors(path: os.PathLike[str] | str) -> Iterator[None]:
    """Turn an ``OSError`` of the body into ``base.storage.full``, ``.missing`` or ``.failed`` naming ``path``."""
    try:
        yield
    except OSError as error:
        kind: type[Fault] = StorageFailed
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            kind = StorageFull
        elif error.errno in (errno.ENOENT, errno.ENOTDIR):
            kind = StorageMissing
        raise kind(f"{path}: {os.strerror(error.errno or 0)}", path=str(path), errno=error.errno) from error


def write_file_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace ``path`` by ``data`` so that a reader, or a boot after a power cut, finds the old or the new whole.

    Write to a neighbour created with ``mode`` (never wider, whatever the umask), fsync it, rename it over ``path``,
    fsync the folder. On any failure the neighbour is removed. Raises ``base.storage.*``.
    """
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.new")
    with translate_os_errors(path):
        with contextlib.suppress(FileNotFoundError):
            neighbour.unlink()
        try:
            descriptor = os.open(neighbour, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
            try:
                os.fchmod(descriptor, mode)
                write_all(descriptor, data)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            neighbour.rename(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                neighbour.unlink()
            raise
        sync_folder(path.parent)


def write_file_new(path: Path, data: bytes, *, mode: int) -> None:
    """Create ``path`` with ``data``, whole and durable; raise ``FileExistsError`` if there is one already.

    Of two writers at once exactly one succeeds. Raises ``base.storage.*`` otherwise.
    """
    complete = path.with_name(f".{path.name}.{os.getpid()}.whole")
    write_file_atomic(complete, data, mode=mode)
    try:
        os.link(complete, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageFailed(f"{path}: {error.strerror}", path=str(path), errno=error.errno) from error
    finally:
        complete.unlink()
    with translate_os_errors(path):
        sync_folder(path.parent)


def erase_file(path: Path) -> None:
    """Take a file's name away, then overwrite its content and remove it, each step durable; ``base.storage.*``.

    A power cut leaves the file as it was or without its name; what it left of the content the next ``erase_left``
    removes. Flash and journals may keep old blocks of it all the same.
    """
    with translate_os_errors(path):
        gone = path.with_name(f".{path.name}{_GONE}")
        path.rename(gone)
        sync_folder(path.parent)
        _overwrite(gone)


def erase_left(folder: Path) -> None:
    """Finish what a power cut interrupted in ``erase_file`` below ``folder``; ``base.storage.*``."""
    with translate_os_errors(folder):
        for left in folder.glob(f".*{_GONE}"):
            _overwrite(left)


def _overwrite(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        write_all(descriptor, bytes(os.fstat(descriptor).st_size))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    path.unlink()
    sync_folder(path.parent)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte of ``data`` to ``descriptor``, however short the kernel's single writes are."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(path: Path) -> None:
    """Make the names inside folder ``path`` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file_bounded(path: Path, *, limit_bytes: int) -> bytes:
    """Return the content of ``path``, or raise ``base.input.too-large`` without reading more than the limit."""
    with translate_os_errors(path), path.open("rb") as stream:
        data = stream.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise InputTooLarge(f"{path} is larger than {limit_bytes} bytes", path=str(path), limit=limit_bytes)
    return data


def require_private(path: Path) -> None:
    """Raise ``base.permissions.unsafe`` unless ``path`` belongs to this user and nobody else can reach into it.

    A symbolic link is refused: what it points at may change between this check and the use.
    """
    with translate_os_errors(path):
        status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise UnsafePermissions(f"{path} is a symbolic link", path=str(path))
    if status.st_uid != os.geteuid():
        raise UnsafePermissions(f"{path} belongs to user {status.st_uid}, not to us", path=str(path))
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise UnsafePermissions(f"{path} has mode {stat.S_IMODE(status.st_mode):o}, open to others", path=str(path))
