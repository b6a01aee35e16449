"""Editing plaintext in RAM: an editor sees one file on a file system that is in memory and nobody else sees.

Touches: a child process with a mount namespace of its own, in it a tmpfs that is not swapped, and the editor. The
editor's swap, backup and history files land there too. Linux before 6.4 swaps every tmpfs: there nothing is edited
while swap is on in the clear.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

from tidegate.vault.errors import EditFailed, ItemTooLarge, SwapInUse
from tidegate.vault.machine import examine_swap

MAX_EDIT_BYTES = 64 << 20
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_FAILED, _SWAPPED = 125, 124  # 125 as env(1) and others; an editor may have the same, so swap is looked at twice
MAX_SUFFIX = 16  # characters, the dot among them


def edit_in_ram(content: bytes, *, editor: str, name: str) -> bytes:
    """Return what a person made of ``content``; nothing of it was on the storage.

    ``editor`` is a command, split as the shell does; ``name`` gives the file its suffix. Raises ``vault.edit.failed``,
    ``vault.item.size`` above 64 MiB, and ``vault.machine.swap`` where the kernel cannot keep a tmpfs out of swap.
    """
    if len(content) > MAX_EDIT_BYTES:
        raise ItemTooLarge(f"an editor gets at most {MAX_EDIT_BYTES} bytes", size=len(content))
    result = os.memfd_create("edited", os.MFD_CLOEXEC)
    try:
        with tempfile.TemporaryDirectory(prefix="tidegate-edit-") as place:  # a place to mount on: stays empty
            child = os.fork()
            if child == 0:
                _run_child(Path(place), content, editor, name, result)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        _require_success(status)
        size = os.fstat(result).st_size
        return os.pread(result, size, 0)
    finally:
        os.close(result)


def _require_success(status: int) -> None:
    swap = examine_swap()
    if status == _SWAPPED and not swap.holds:
        raise SwapInUse(f"this kernel cannot keep a file system in RAM out of swap, and swap is {swap.detail}")
    if status != 0:
        what = "no file system in RAM could be mounted for it, or it is full" if status == _FAILED else f"{status}"
        raise EditFailed(f"the editor did not end well: {what}; the item stays as it was", status=status)


def _run_child(place: Path, content: bytes, editor: str, name: str, result: int) -> NoReturn:
    """Be the child, to its end: what is raised here must not go on as the parent, in the parent's ``with`` blocks."""
    status = _FAILED
    try:
        status = _edit(place, content, shlex.split(editor), _file_name(name), result)
    except BaseException:  # noqa: BLE001, S110  # the parent says that it failed; the text could hold what is edited
        pass
    finally:
        os._exit(status)


def _file_name(name: str) -> str:
    """Return a short name with the item's suffix, by which editors tell what it is."""
    suffix = Path(name).suffix
    return f"item{suffix}" if len(suffix) <= MAX_SUFFIX and suffix.isascii() and suffix[1:].isalnum() else "item"


def _edit(place: Path, content: bytes, command: list[str], name: str, result: int) -> int:
    """Mount, write, run the editor, hand the content back; return the exit status."""
    if not _mount_private(place) and not examine_swap().holds:
        return _SWAPPED
    path = place / name
    path.write_bytes(content)
    environment = {**os.environ, "HOME": str(place), "TMPDIR": str(place), "XDG_CACHE_HOME": str(place)}
    try:
        status = subprocess.run([*command, str(path)], env=environment, check=False).returncode
    except OSError:
        return 127
    if status == 0:
        data = path.read_bytes()
        while data:
            data = data[os.write(result, data) :]
    return status if status >= 0 else 128 - status


def _mount_private(place: Path) -> bool:
    """Give this process a mount namespace with a tmpfs at ``place``; return whether it is kept out of swap.

    Without root this goes by a user namespace, where ``noswap`` is not allowed by every kernel.
    """
    library = ctypes.CDLL(None, use_errno=True)

    def require(status: int) -> None:
        if status != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    user, group = os.geteuid(), os.getegid()
    if user == 0:
        require(library.unshare(_CLONE_NEWNS))
    else:
        require(library.unshare(_CLONE_NEWNS | _CLONE_NEWUSER))
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    require(library.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    target = os.fsencode(place)
    for options in (b"mode=700,noswap", b"mode=700"):  # Linux before 6.4 does not know noswap
        if library.mount(b"tidegate-edit", target, b"tmpfs", flags, options) == 0:
            return b"noswap" in options
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
