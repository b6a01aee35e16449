"""Mounts and hand-over on Linux: loop devices over sealed memory, tmpfs, chroot.

Touches: mounts of the calling process's mount namespace, which the power supply (``unshare --mount``) makes private,
so that all of it goes when the process goes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tidegate.base.durable import translate_os_errors
from tidegate.base.errors import ProgramFailed
from tidegate.base.program import run_program
from tidegate.boot.errors import MountFailed
from tidegate.boot.stage1 import sealed_memory

_TMPFS = {"run": "size=4m,mode=755", "tmp": "size=8m,mode=1777", "apps": "size=1m,mode=755", "dev": "size=1m,mode=755"}
# name, mode, major, minor: what a small system needs below /dev
_DEVICES = (("null", 0o666, 1, 3), ("zero", 0o666, 1, 5), ("random", 0o666, 1, 8), ("urandom", 0o666, 1, 9))


class SystemRoot:
    """The root file system being put together at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mount_image(self, name: str, image: bytes, where: str) -> None:
        """Mount the squashfs ``image`` read-only at ``where``, from memory that can no longer change."""
        target = self.path / where
        descriptor = sealed_memory(name, image)
        try:
            with translate_os_errors(target):
                target.mkdir(parents=True, exist_ok=True)
            options = "ro,nodev,nosuid,loop"
            _mount("-t", "squashfs", "-o", options, f"/proc/{os.getpid()}/fd/{descriptor}", str(target))
        finally:
            os.close(descriptor)

    def mount_folders(self) -> None:
        """Mount what a running system writes to: memory only, apart from /data."""
        for name, options in _TMPFS.items():
            _mount("-t", "tmpfs", "-o", f"nosuid,{options}", "tmpfs", str(self.path / name))
        _mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", str(self.path / "proc"))
        with translate_os_errors(self.path / "dev"):
            for name, mode, major, minor in _DEVICES:
                os.mknod(self.path / "dev" / name, stat.S_IFCHR | mode, os.makedev(major, minor))
                (self.path / "dev" / name).chmod(mode)

    def mount_data(self, image: Path, offset: int) -> None:
        """Mount the data partition, from which nothing is ever executed."""
        options = f"nodev,nosuid,noexec,loop,offset={offset}"
        _mount("-t", "ext4", "-o", options, str(image), str(self.path / "data"))


def enter_root(root: Path, command: Sequence[str]) -> None:
    """Replace this process by ``command`` with ``root`` as its root; does not return."""
    with translate_os_errors(root):
        os.chroot(root)
        os.chdir("/")
        os.execve(command[0], list(command), {"PATH": "/bin:/sbin", "HOME": "/"})  # noqa: S606  # verified, no shell


def _mount(*arguments: str) -> None:
    try:
        run_program(["mount", *arguments])
    except ProgramFailed as error:
        raise MountFailed(error.message, target=arguments[-1]) from error
