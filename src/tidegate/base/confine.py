"""Gives up what a long-lived process does not need: root, new rights, core files, an orphan's life.

Touches: this process (setresuid(2), capset(2), prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import struct

from tidegate.base.errors import Fault

NOBODY = 65534  # user and group of Debian and of the kernel's overflow ids; no lookup, which would load libnss
CAP_NET_ADMIN = 12  # linux/capability.h

_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 38
_SIGTERM = 15


def confine(*, keep: int | None, ends_with_parent: bool, failed: type[Fault]) -> None:
    """Become nobody for good, with ``keep`` as the only capability (or none), where we are root; no new rights or core.

    With ``ends_with_parent`` the process ends with its parent; that signal comes last, as a change of user clears it.
    Sockets stay open. For a process of one thread: capabilities belong to threads. Raises ``failed`` (a room's own
    error) with what could not be given up; the caller then ends.
    """
    parent = os.getppid()
    library = ctypes.CDLL(None, use_errno=True)

    def require(done: bool, what: str) -> None:
        if not done:
            raise failed(f"{what}: {os.strerror(ctypes.get_errno())}")

    def set_process(option: int, value: int) -> None:
        words = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
        require(library.prctl(option, *words) == 0, f"prctl {option}")

    if os.geteuid() == 0:
        set_process(_PR_SET_KEEPCAPS, 1)
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError as error:
            raise failed(f"cannot become user {NOBODY}: {error.strerror}") from error
        bit = 0 if keep is None else 1 << keep
        header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
        sets = ctypes.create_string_buffer(struct.pack("=6I", bit, bit, 0, 0, 0, 0))  # effective, permitted, inherited
        require(library.capset(header, sets) == 0, "cannot give up capabilities")
    set_process(_PR_SET_NO_NEW_PRIVS, 1)
    set_process(_PR_SET_DUMPABLE, 0)  # packets and keys must not end up in a core file
    if ends_with_parent:
        set_process(_PR_SET_PDEATHSIG, _SIGTERM)
        if os.getppid() != parent:  # it died before the signal was armed
            raise failed("the parent process is gone")
