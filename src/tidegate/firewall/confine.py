"""Gives up what a process that only changes nftables does not need: root, new rights, core files, an orphan's life.

Touches: this process (setresuid(2), capset(2), prctl(2)).
"""

from __future__ import annotations

import ctypes
import os
import struct

from tidegate.firewall.errors import NamesConfinement

NOBODY = 65534  # user and group of Debian and of the kernel's overflow ids; no lookup, which would load libnss
CAP_NET_ADMIN = 12  # linux/capability.h

_CAPABILITY_VERSION_3 = 0x20080522
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_NO_NEW_PRIVS = 1, 4, 8, 38
_SIGTERM = 15


def keep_net_admin_only() -> None:
    """Become nobody for good, with CAP_NET_ADMIN as the only capability where we are root; end with our parent.

    Sockets stay open. The parent-death signal comes last, as a change of user clears it. Raises
    ``firewall.names.confinement``.
    """
    parent = os.getppid()
    library = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        _prctl(library, _PR_SET_KEEPCAPS, 1)
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError as error:
            raise NamesConfinement(f"cannot become user {NOBODY}: {error.strerror}") from error
        bit = 1 << CAP_NET_ADMIN
        header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
        sets = ctypes.create_string_buffer(struct.pack("=6I", bit, bit, 0, 0, 0, 0))
        if library.capset(header, sets) != 0:
            raise NamesConfinement(f"cannot give up capabilities: {os.strerror(ctypes.get_errno())}")
    _prctl(library, _PR_SET_NO_NEW_PRIVS, 1)
    _prctl(library, _PR_SET_DUMPABLE, 0)
    _prctl(library, _PR_SET_PDEATHSIG, _SIGTERM)
    if os.getppid() != parent:  # it died before the signal was armed
        raise NamesConfinement("the parent process is gone")


def _prctl(library: ctypes.CDLL, option: int, value: int) -> None:
    words = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    if library.prctl(option, *words) != 0:
        raise NamesConfinement(f"prctl {option}: {os.strerror(ctypes.get_errno())}")
