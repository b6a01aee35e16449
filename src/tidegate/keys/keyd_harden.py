"""What a process with keys in its memory gives up: core files, other users' looks, new rights, swap.

Touches: this process (prctl(2), setrlimit(2), mlockall(2), setuid(2)).
"""

from __future__ import annotations

import ctypes
import os
import resource

from tidegate.base.errors import NotRoot

_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_MCL_CURRENT_AND_FUTURE = 3


def harden() -> bool:
    """Forbid core files, tracing by this user's other processes and new rights; return whether memory is locked too.

    Memory is locked only where RLIMIT_MEMLOCK has no limit (``LimitMEMLOCK=infinity``): below one, locking would let
    some later allocation fail.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_DUMPABLE, 0), (_PR_SET_NO_NEW_PRIVS, 1)):
        if library.prctl(option, value, 0, 0, 0) != 0:
            raise NotRoot(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != resource.RLIM_INFINITY:
        return False
    return bool(library.mlockall(_MCL_CURRENT_AND_FUTURE) == 0)


def become(uid: int, gid: int) -> None:
    """Give up root for a user without any other group, for good; raise ``base.privilege.missing`` if we cannot."""
    if (os.getuid(), os.getgid()) == (uid, gid):
        return
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except PermissionError as error:
        raise NotRoot(f"becoming user {uid} needs root") from error
