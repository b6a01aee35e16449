"""Directories that the kernel encrypts (ext4, f2fs): made, unlocked, locked, asked for their state.

Touches: ioctl on directories, ``/proc`` to name the processes that keep a directory busy. No other program is needed.
Not promised: integrity. The kernel's encryption hides contents and names, but whoever holds the storage can put back
older blocks or files unseen; sizes, times, permissions and the tree's shape are readable too. What must not be rolled
back belongs into the file vault (``store.py``).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.durable import sync_folder, translate_os_errors
from tidegate.base.errors import StorageFailed, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.vault import fscrypt_layout as layout
from tidegate.vault.fscrypt_layout import KeyState, KeyStatus, Policy, Request
from tidegate.vault.kernel_errors import (
    DirectoryBusy,
    DirectoryEncrypted,
    DirectoryKeyWrong,
    DirectoryLocked,
    DirectoryNotEmpty,
    DirectoryPermission,
    DirectoryPlain,
    DirectoryPolicyUnknown,
    DirectoryShared,
    DirectoryUnsupported,
)

# A file that is being closed while we lock keeps the directory busy for a moment; the kernel drops it on the next try.
_REMOVAL_TRIES = 4
_REMOVAL_PAUSE_S = 0.05
# Of the processes that keep a directory busy so many are named; more would not help and the answer stays readable.
_NAMED_PROCESSES = 8
_FILES_PER_PROCESS = 4096

_UNSUPPORTED = {
    errno.ENOTTY: "this kind of file system cannot encrypt directories",
    errno.EOPNOTSUPP: "the file system was made without the feature `encrypt`",
    errno.ENOPKG: "the kernel lacks the cipher",
    errno.ENOENT: "the kernel lacks HMAC-SHA-512, from which it derives keys",  # the directory itself is open
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryStatus:
    """A directory's policy and what the kernel says of its key; both ``None`` for a plain directory."""

    policy: Policy | None
    key: KeyStatus | None

    @property
    def unlocked(self) -> bool:
        """Whether files can be opened now."""
        return self.key is not None and self.key.state is KeyState.PRESENT


@dataclass(frozen=True, slots=True, kw_only=True)
class LockOutcome:
    """What became of one directory that was to be locked; ``error`` is ``None`` when it is locked."""

    directory: Path
    error: TidegateError | None


class EncryptedDirectory:
    """A directory whose contents and names are readable only while its key is in the kernel.

    ``directory`` need not exist yet. The key's identifier is kept by the kernel in the directory itself.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def create(cls, directory: Path, key: Secret) -> EncryptedDirectory:
        """Return ``directory`` encrypted from now on under ``key`` (64 bytes), and unlocked.

        A missing directory is made, mode 700. Raises ``vault.directory.not-empty``, ``.encrypted``, ``.key-size``,
        ``.unsupported``, ``.permission``, ``base.storage.*``; then the key is not left in the kernel.
        """
        layout.require_key(key)
        made = False
        with translate_os_errors(directory), suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            made = True
            sync_folder(directory.parent)
        try:
            _encrypt(directory, key)
        except BaseException:
            if made:  # what is left must not be taken for an encrypted directory
                with suppress(OSError):
                    directory.rmdir()
            raise
        return cls(directory)

    def unlock(self, key: Secret) -> None:
        """Make the files readable for whoever their permissions let; harmless when repeated.

        Nothing reaches the kernel unless ``key`` is the one that the directory was encrypted with. Raises
        ``vault.directory.wrong-key``, ``.plain``, ``.policy``, ``.key-size``, ``.unsupported``, ``base.storage.*``.
        """
        policy = self._policy()
        if layout.key_identifier(key) != policy.identifier:
            raise DirectoryKeyWrong(
                f"{self.directory} was encrypted with another key",
                path=str(self.directory),
                key=policy.identifier.hex(),
            )
        add_key(self.directory, key)

    def lock(self) -> None:
        """Wipe the key from the kernel, and the cached contents and names of files that are not open.

        Harmless when repeated. With CAP_SYS_ADMIN the key is removed whoever added it. Raises ``vault.directory.busy``
        (the key is gone, files still open are not; field ``processes``), ``.shared``, ``.plain``, ``.policy``,
        ``base.storage.*``.
        """
        policy = self._policy()
        # The directory itself must not be open while its key is removed: that alone would keep it busy.
        top = mount_top(self.directory)
        try:
            try:
                remove_key(top, policy.identifier, all_users=True)
            except DirectoryPermission:  # without CAP_SYS_ADMIN the key that we added is all that we can take away
                remove_key(top, policy.identifier)
        except DirectoryBusy as busy:
            users = list(_processes_inside(self.directory))[:_NAMED_PROCESSES]
            named = ", ".join(f"{name} ({process})" for process, name in users) or "a process that cannot be seen"
            raise DirectoryBusy(
                f"{self.directory}: the key is wiped, but files are still open: {named}",
                path=str(self.directory),
                processes=" ".join(str(process) for process, _name in users),
            ) from busy

    def status(self) -> DirectoryStatus:
        """Return policy and key state; see ``status``."""
        return status(self.directory)

    def _policy(self) -> Policy:
        policy = status(self.directory).policy
        if policy is None:
            raise DirectoryPlain(f"{self.directory} is not encrypted", path=str(self.directory))
        return policy


def lock_directories(directories: Iterable[Path]) -> tuple[LockOutcome, ...]:
    """Lock every directory, whatever happens to the others, and return what became of each.

    For tamper alarms, lockdown and suspend: no error of one directory keeps the next one open.
    """
    outcomes = []
    for directory in directories:
        error: TidegateError | None = None
        try:
            EncryptedDirectory(directory).lock()
        except TidegateError as caught:
            error = caught
        outcomes.append(LockOutcome(directory=directory, error=error))
    return tuple(outcomes)


def add_key(mount: Path, key: Secret) -> bytes:
    """Put ``key`` (64 bytes) into the kernel for the file system of ``mount`` and return its 16-byte identifier.

    Any directory of the file system will do. Raises ``vault.directory.key-size``, ``.unsupported``, ``.permission``,
    ``base.storage.*``.
    """
    argument = layout.encode_add_key(key)
    try:
        with _opened(mount) as descriptor:
            _ioctl(descriptor, Request.ADD_KEY, argument, mount)
        return layout.parse_added_identifier(argument)
    finally:
        argument[:] = bytes(len(argument))


def set_policy(directory: Path, identifier: bytes) -> None:
    """Have everything created below the empty ``directory`` encrypted: AES-256-XTS, names AES-256-CTS padded to 32.

    The key must have been added before. Raises ``vault.directory.not-empty``, ``.encrypted``, ``.locked`` (the key is
    not there), ``.unsupported``, ``.permission``, ``base.storage.*``.
    """
    argument = layout.encode_policy(Policy(identifier=identifier))
    with _opened(directory) as descriptor:
        if _policy(descriptor, directory) is not None:
            # The kernel would say yes to the same policy once more, whatever is in the directory.
            raise DirectoryEncrypted(f"{directory} is encrypted already", path=str(directory))
        try:
            _ioctl(descriptor, Request.SET_POLICY, argument, directory)
        except _Refused as refused:
            raise _policy_error(refused, directory) from refused
        with translate_os_errors(directory):
            os.fsync(descriptor)


def status(directory: Path) -> DirectoryStatus:
    """Return the policy of ``directory`` and whether its key is in the kernel.

    Raises ``vault.directory.policy`` for a kind of encryption that is not accepted, ``.unsupported``,
    ``base.storage.*``.
    """
    with _opened(directory) as descriptor:
        policy = _policy(descriptor, directory)
        key = None if policy is None else _key_status(descriptor, policy.identifier, directory)
    return DirectoryStatus(policy=policy, key=key)


def key_status(mount: Path, identifier: bytes) -> KeyStatus:
    """Return what the kernel says of a key of the file system of ``mount``; raises ``vault.directory.unsupported``."""
    with _opened(mount) as descriptor:
        return _key_status(descriptor, identifier, mount)


def remove_key(mount: Path, identifier: bytes, *, all_users: bool = False) -> None:
    """Wipe a key from the kernel and drop what is cached of its files; harmless if it is not there.

    ``mount`` must lie outside the encrypted directory (see ``mount_top``). ``all_users`` needs CAP_SYS_ADMIN and takes
    the key from users who added it too. Raises ``vault.directory.busy``, ``.shared``, ``.permission``,
    ``.unsupported``, ``base.storage.*``.
    """
    request = Request.REMOVE_KEY_ALL_USERS if all_users else Request.REMOVE_KEY
    with _opened(mount) as descriptor:
        for left in reversed(range(_REMOVAL_TRIES)):
            argument = layout.encode_remove_key(identifier)
            try:
                _ioctl(descriptor, request, argument, mount)
            except _Refused as refused:
                if refused.errno != errno.ENOKEY:
                    raise _general_error(refused, mount) from refused
                _require_removed(descriptor, identifier, mount)
                return
            removal = layout.parse_removal(argument)
            if removal.other_users:
                raise DirectoryShared(f"{mount}: another user has added the key {identifier.hex()}", path=str(mount))
            if not removal.files_busy:
                return
            if left:
                time.sleep(_REMOVAL_PAUSE_S)
    raise DirectoryBusy(f"{mount}: files under the key {identifier.hex()} are still open", path=str(mount))


def mount_top(directory: Path) -> Path:
    """Return the topmost directory of the mount that ``directory`` is on; ``base.storage.*``."""
    with translate_os_errors(directory):
        place = directory.resolve(strict=True)
        while not place.is_mount():
            place = place.parent
    return place


def _encrypt(directory: Path, key: Secret) -> None:
    """Add the key and set the policy; if that fails, leave the kernel with the keys that it had."""
    if status(directory).policy is not None:
        raise DirectoryEncrypted(f"{directory} is encrypted already", path=str(directory))
    identifier = layout.key_identifier(key)
    before = key_status(directory, identifier)
    add_key(directory, key)
    try:
        set_policy(directory, identifier)
    except BaseException:
        if not before.added_by_us:
            with suppress(TidegateError):
                remove_key(mount_top(directory), identifier)
        raise


def _require_removed(descriptor: int, identifier: bytes, mount: Path) -> None:
    """Tell "the key was never there" from "the key is another user's", for which the kernel has one answer."""
    if _key_status(descriptor, identifier, mount).state is KeyState.PRESENT:
        raise DirectoryShared(f"{mount}: the key {identifier.hex()} is another user's", path=str(mount))


def _policy(descriptor: int, directory: Path) -> Policy | None:
    argument = layout.encode_policy_query()
    try:
        _ioctl(descriptor, Request.GET_POLICY, argument, directory)
    except _Refused as refused:
        if refused.errno == errno.ENODATA:
            return None
        if refused.errno in (errno.EINVAL, errno.EOVERFLOW):
            raise DirectoryPolicyUnknown(
                f"{directory} has a policy that the kernel does not know", path=str(directory)
            ) from refused
        raise _general_error(refused, directory) from refused
    return layout.parse_policy(argument)


def _key_status(descriptor: int, identifier: bytes, mount: Path) -> KeyStatus:
    argument = layout.encode_key_status(identifier)
    _ioctl(descriptor, Request.KEY_STATUS, argument, mount)
    return layout.parse_key_status(argument)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    """Open a directory, never through a symbolic link in its place; what the body raises is not translated."""
    with translate_os_errors(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class _Refused(StorageFailed):
    """An ioctl's error number, for callers that know what it means; has StorageFailed's code for those that do not."""

    def __init__(self, message: str, number: int, path: Path) -> None:
        super().__init__(message, path=str(path), errno=number)
        self.errno = number


def _ioctl(descriptor: int, request: Request, argument: bytearray, path: Path) -> None:
    """Make a request; the kernel's answer is in ``argument``."""
    try:
        fcntl.ioctl(descriptor, request.number(os.uname().machine), argument)
    except OSError as error:
        number = error.errno or 0
        refused = _Refused(f"{path}: {request.name}: {os.strerror(number)}", number, path)
        if number in _UNSUPPORTED or number in (errno.EACCES, errno.EPERM):
            raise _general_error(refused, path) from error
        raise refused from error


def _general_error(refused: _Refused, path: Path) -> TidegateError:
    if refused.errno in _UNSUPPORTED:
        return DirectoryUnsupported(f"{path}: {_UNSUPPORTED[refused.errno]}", path=str(path), errno=refused.errno)
    if refused.errno in (errno.EACCES, errno.EPERM):
        return DirectoryPermission(refused.message, path=str(path))
    return refused


def _policy_error(refused: _Refused, directory: Path) -> TidegateError:
    match refused.errno:
        case errno.ENOTEMPTY:
            return DirectoryNotEmpty(f"{directory} is not empty", path=str(directory))
        case errno.EEXIST:
            return DirectoryEncrypted(f"{directory} has another encryption policy", path=str(directory))
        case errno.ENOKEY:
            return DirectoryLocked(f"{directory}: the key was not added by this user", path=str(directory))
        case _:
            return _general_error(refused, directory)


def _processes_inside(directory: Path) -> Iterator[tuple[int, str]]:
    """Yield the processes that have something below ``directory`` open, and their names, as far as we may see."""
    inside = str(directory.resolve())
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if any(target == inside or target.startswith(inside + "/") for target in _links(entry)):
                yield int(entry.name), (entry / "comm").read_text(errors="replace").strip()


def _links(process: Path) -> Iterator[str]:
    for name in ("cwd", "root", "exe"):
        with suppress(OSError):
            yield str((process / name).readlink())
    for count, link in enumerate((process / "fd").iterdir()):
        if count == _FILES_PER_PROCESS:
            break
        with suppress(OSError):
            yield str(link.readlink())
    with (process / "maps").open("rb") as maps:
        for count, line in enumerate(maps):
            if count == _FILES_PER_PROCESS:
                break
            yield os.fsdecode(line.rstrip(b"\n").split(None, 5)[-1])
