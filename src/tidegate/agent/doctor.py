"""What this kernel and system can and cannot do for each room, and what to install.

Touches: the machine, reading only (a packet socket and a netlink socket are opened and closed).
"""

from __future__ import annotations

import ctypes.util
import enum
import importlib.util
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.errors import ProgramMissing, TidegateError
from tidegate.base.program import PACKAGES, find_program

_ETH_P_ALL = 0x0003
# room -> programs that it starts
_PROGRAMS = {
    "image": ("mksquashfs", "veritysetup"),
    "boot": ("mount", "umount", "mkfs.ext4", "unshare"),
    "demo": ("ip", "nsenter", "busybox", "nmap", "hping3", "dropbear", "openssl", "softhsm2-util", "swtpm"),
    "bench": ("ndpiReader", "tshark"),
}
_OPTIONAL_ROOMS = frozenset({"demo", "bench"})


class State(enum.Enum):
    """How a check ended."""

    OK = "ok"
    LIMITED = "limited"  # works, with a limitation that the detail names
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that a room needs of the machine."""

    room: str
    what: str
    state: State
    detail: str = ""
    needed: bool = True


def examine() -> Iterator[Check]:
    """Yield every check, room by room."""
    yield from _examine_base()
    for room, names in _PROGRAMS.items():
        yield from (_program(room, name) for name in names)
    yield from _examine_boot()
    yield from _examine_keys()
    yield from _examine_tls()
    yield from _examine_firewall()
    yield from _examine_sensor()
    yield from _examine_vault()


def _examine_base() -> Iterator[Check]:
    version = platform.python_version()
    yield Check(
        room="base", what=f"Python {version}", state=_state(sys.version_info >= (3, 11)), detail="3.11 or newer"
    )
    root = os.geteuid() == 0
    yield Check(
        room="base",
        what="root",
        state=State.OK if root else State.LIMITED,
        detail="" if root else "firewall, sensor, boot and demo need it; signing and verifying do not",
    )


def _program(room: str, name: str) -> Check:
    needed = room not in _OPTIONAL_ROOMS
    try:
        path = find_program(name)
    except ProgramMissing:
        detail = f"apt-get install {PACKAGES.get(name, name)}"
        return Check(room=room, what=name, state=State.MISSING, detail=detail, needed=needed)
    return Check(room=room, what=name, state=State.OK, detail=path, needed=needed)


def _examine_boot() -> Iterator[Check]:
    for name in ("squashfs", "ext4", "tmpfs"):
        detail = f"the kernel lacks {name}, and there is no module of that name"
        yield _check("boot", f"{name} in the kernel", ok=_has_file_system(name), detail=detail)
    loop = Path("/dev/loop-control").exists()
    yield _check("boot", "loop devices", ok=loop, detail="load the module loop")
    mapper = Path("/sys/class/misc/device-mapper").exists()
    yield Check(
        room="boot",
        what="device mapper",
        state=State.OK if mapper else State.LIMITED,
        detail="" if mapper else "no dm-verity by the kernel: the whole image is verified at boot and kept in RAM",
    )


def _has_file_system(name: str) -> bool:
    """Return whether the kernel has a file system, or a module for it that a mount would load."""
    if f"\t{name}\n" in Path("/proc/filesystems").read_text():
        return True
    modules = Path("/lib/modules") / platform.release() / "modules.dep"
    return modules.exists() and f"/{name}.ko" in modules.read_text()


def _examine_keys() -> Iterator[Check]:
    tpm = Path("/dev/tpmrm0").exists()
    yield Check(
        room="keys",
        what="TPM 2.0",
        state=State.OK if tpm else State.LIMITED,
        detail="/dev/tpmrm0" if tpm else "none: software keys have counters that do not resist a restored copy",
    )
    for extra, module, what in (("tpm2", "tpm2_pytss", "TPM keys"), ("pkcs11", "pkcs11", "keys in tokens and HSMs")):
        there = importlib.util.find_spec(module) is not None
        yield Check(
            room="keys",
            what=f"extra [{extra}]",
            state=State.OK if there else State.LIMITED,
            detail=what if there else f"missing, no {what}: pip install 'tidegate[{extra}]'",
        )


def _examine_tls() -> Iterator[Check]:
    from tidegate.tls.selfcheck import require_platform

    yield _probe("tls", "TLS with keys in hardware", require_platform)


def _examine_firewall() -> Iterator[Check]:
    from tidegate.firewall.nft import require_kernel

    def probe() -> None:
        require_kernel()

    yield _probe("firewall", "nf_tables in the kernel", probe)
    library = ctypes.util.find_library("nftables")
    program = _program("firewall", "nft")
    if library:
        yield Check(room="firewall", what="libnftables", state=State.OK, detail=library)
    elif program.state is State.OK:
        yield Check(
            room="firewall",
            what="libnftables",
            state=State.LIMITED,
            detail="missing: the nft program is used, slower for every ban (apt-get install libnftables1)",
        )
    yield program


def _examine_sensor() -> Iterator[Check]:
    built = importlib.util.find_spec("tidegate.ids._sensor") is not None
    yield _check("ids", "sensor module", ok=built, detail="not built: make setup (needs Rust)")

    def probe() -> None:
        try:
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)).close()
        except OSError as error:
            raise _Unavailable(f"{error.strerror}: needs CAP_NET_RAW and a kernel with packet sockets") from error

    yield _probe("ids", "packet socket", probe)


def _examine_vault() -> Iterator[Check]:
    swaps = Path("/proc/swaps").read_text().splitlines()[1:]
    yield Check(
        room="vault",
        what="swap",
        state=State.LIMITED if swaps else State.OK,
        detail=f"on ({swaps[0].split()[0]}): secrets in RAM may reach storage; encrypt it or switch it off"
        if swaps
        else "off",
    )


class _Unavailable(Exception):
    """A probe found that something is not there."""


def _probe(room: str, what: str, probe: Callable[[], object]) -> Check:
    try:
        probe()
    except TidegateError as error:
        return Check(room=room, what=what, state=State.MISSING, detail=f"{error.message}; {error.advice}")
    except _Unavailable as error:
        return Check(room=room, what=what, state=State.MISSING, detail=str(error))
    return Check(room=room, what=what, state=State.OK)


def _check(room: str, what: str, *, ok: bool, detail: str) -> Check:
    return Check(room=room, what=what, state=_state(ok), detail="" if ok else detail)


def _state(ok: bool) -> State:
    return State.OK if ok else State.MISSING
