"""What this machine does with secrets in RAM: locked memory, core dumps, swap; and what a vault asks of it.

Touches: this process (prctl(2), setrlimit(2)); reads /proc and /sys.
"""

from __future__ import annotations

import ctypes
import enum
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tidegate.crypto.memory import Protection, protection
from tidegate.vault.errors import MemoryUnlocked, SwapInUse

_PR_SET_DUMPABLE = 4
_MAX_PROC_BYTES = 65_536


class Attitude(enum.Enum):
    """What to do where the machine does not hold what it should."""

    REFUSE = "refuse"
    WARN = "warn"
    IGNORE = "ignore"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRules:
    """What a vault asks for before it opens. ``no_dumps`` keeps this process from leaving core dumps for good."""

    swap: Attitude = Attitude.WARN
    memory: Attitude = Attitude.WARN
    no_dumps: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that protects secrets in RAM: whether it holds here, and what that rests on."""

    what: str
    holds: bool
    detail: str


def harden_process(rules: MachineRules) -> tuple[str, ...]:
    """Switch core dumps off, return warnings; raise ``vault.machine.swap``, ``vault.machine.memory`` by the rules."""
    if rules.no_dumps:
        forbid_dumps()
    warnings = []
    for finding, attitude, error in (
        (examine_swap(), rules.swap, SwapInUse),
        (examine_memory(), rules.memory, MemoryUnlocked),
    ):
        if finding.holds or attitude is Attitude.IGNORE:
            continue
        if attitude is Attitude.REFUSE:
            raise error(f"{finding.what}: {finding.detail}")
        warnings.append(f"{finding.what}: {finding.detail}")
    return tuple(warnings)


def forbid_dumps() -> None:
    """Keep this process from leaving a core dump, piped ones included, and others of its user from tracing it."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def examine_machine() -> Iterator[Finding]:
    """Yield everything that ``tidegate vault doctor`` tells of this machine."""
    yield examine_memory()
    yield examine_swap()
    yield _examine_dumps()
    yield _examine_hibernation()
    yield _examine_aes()


def examine_memory() -> Finding:
    """Return how keys are kept in RAM."""
    found = protection()
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    said = "no limit" if limit == resource.RLIM_INFINITY else f"{limit >> 10} KiB may be locked"
    details = {
        Protection.HIDDEN: f"memfd_secret: not swapped, not dumped, not readable by debuggers ({said})",
        Protection.LOCKED: f"mlock: not swapped, not dumped ({said})",
        Protection.PLAIN: f"the limit on locked memory is used up ({said}): keys may reach swap",
    }
    return Finding(what="memory of keys", holds=found is not Protection.PLAIN, detail=details[found])


def examine_swap() -> Finding:
    """Return whether plaintext can reach a swap device in the clear. Swap in RAM (zram) without a backing device is
    fine, and so is swap on a device of device mapper's crypt target."""
    bad: list[str] = []
    good: list[str] = []
    for line in _read(Path("/proc/swaps")).splitlines()[1:]:
        device = Path(line.split()[0])
        (good if _swap_is_safe(device) else bad).append(str(device))
    if bad:
        return Finding(what="swap", holds=False, detail=f"on, in the clear: {', '.join(bad)}")
    return Finding(what="swap", holds=True, detail=f"in RAM or encrypted: {', '.join(good)}" if good else "off")


def _swap_is_safe(device: Path) -> bool:
    sysfs = Path("/sys/class/block") / device.resolve().name
    if device.name.startswith("zram"):
        return _read(sysfs / "backing_dev").strip() in ("", "none")
    return _read(sysfs / "dm" / "uuid").startswith("CRYPT-")


def _examine_dumps() -> Finding:
    pattern = _read(Path("/proc/sys/kernel/core_pattern")).strip()
    suid = _read(Path("/proc/sys/fs/suid_dumpable")).strip()
    detail = f"the process that opens a vault leaves none (core_pattern {pattern or 'empty'}, suid_dumpable {suid})"
    if suid == "1":
        return Finding(what="core dumps", holds=False, detail=f"fs.suid_dumpable is 1: set it to 0 ({detail})")
    return Finding(what="core dumps", holds=True, detail=detail)


def _examine_hibernation() -> Finding:
    states = _read(Path("/sys/power/state")).split()
    resume = _read(Path("/sys/power/resume")).strip()
    able = "disk" in states and resume not in ("", "0:0")
    detail = f"RAM is written to device {resume}" if able else "not set up"
    return Finding(what="hibernation", holds=not able, detail=detail)


def _examine_aes() -> Finding:
    flags = _read(Path("/proc/cpuinfo"), limit=4096).split()
    able = "aes" in flags
    detail = "AES in hardware" if able else "no AES instructions: new vaults measure and take ChaCha20-Poly1305"
    return Finding(what="cipher", holds=True, detail=detail)


def _read(path: Path, *, limit: int = _MAX_PROC_BYTES) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, limit).decode(errors="replace")
    finally:
        os.close(descriptor)
