"""What the vault's process gives up: core files, others' looks, new rights, root's capabilities, an orphan's life.

It keeps its user, to whom the vault's and the key store's files belong. Touches: this process (prctl(2), capset(2)).
"""

from __future__ import annotations

import ctypes
import os
import struct

from tidegate.agent.vault_errors import VaultConfinement
from tidegate.keys.keyd_harden import harden

_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
# A key process's socket may belong to another user; a connection that was lost has to be made anew.
_KEPT = 1 << _CAP_DAC_OVERRIDE | 1 << _CAP_DAC_READ_SEARCH
_PR_SET_PDEATHSIG, _SIGTERM = 1, 15


def confine_vault() -> bool:
    """Give the rights up for good, and return whether memory is locked as a whole; raise ``agent.vault.confinement``.

    For a process of one thread. It ends with its parent.
    """
    parent = os.getppid()
    is_locked = harden()
    library = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0))
    sets = ctypes.create_string_buffer(24)
    if library.capget(header, sets) != 0:
        raise VaultConfinement(f"capget: {os.strerror(ctypes.get_errno())}")
    _, permitted = struct.unpack_from("=2I", sets)
    kept = permitted & _KEPT
    given = ctypes.create_string_buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0))  # effective, permitted, inherited
    if library.capset(header, given) != 0:
        raise VaultConfinement(f"capset: {os.strerror(ctypes.get_errno())}")
    if library.prctl(_PR_SET_PDEATHSIG, *[ctypes.c_ulong(number) for number in (_SIGTERM, 0, 0, 0)]) != 0:
        raise VaultConfinement(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:  # it died before the signal was armed
        raise VaultConfinement("the parent process is gone")
    return is_locked
