"""The kernel's settings that a policy bounds connection tracking with: planned, set, and put back.

Touches: ``/proc/sys/net`` of the calling thread's network namespace. Forwarding (``ip_forward``) is never touched:
whether a device routes is its maker's decision, the policy only says what may pass if it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidegate.base.durable import read_file_bounded, write_file_atomic
from tidegate.base.errors import TidegateError
from tidegate.firewall.model import Ruleset

ORIGINALS = "sysctl.json"
MAX_FILE_BYTES = 16_384  # a handful of settings
# Refuses to take a connection in the middle for a known one. Set when a change is confirmed, not with it: until then
# tracking gets to know the sessions that are open, which it may never have seen before.
LOOSE = "net/netfilter/nf_conntrack_tcp_loose"
_ROOT = Path("/proc/sys")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Originals(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the settings were before any policy of this boot set them."""

    boot: str
    namespace: str
    values: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SysctlPlan:
    """Settings by name (``net/netfilter/...``): to set with a change, when it is confirmed, and when it is undone."""

    now: Mapping[str, str]
    at_confirmation: Mapping[str, str]
    undo: Mapping[str, str]
    unknown: tuple[str, ...] = ()  # this kernel, or namespace, does not have them


def plan_sysctls(ruleset: Ruleset) -> dict[str, str]:
    """Return the settings that the policy asks for. Pure.

    A SYN proxy needs SYN cookies and timestamps, and tracking that takes no connection in the middle for a known one
    (nftables wiki, "Synproxy").
    """
    wanted: dict[str, str] = {}
    if ruleset.conntrack.max is not None:
        wanted["net/netfilter/nf_conntrack_max"] = str(ruleset.conntrack.max)
    if ruleset.conntrack.syn_timeout_s is not None:
        for state in ("sent", "recv"):
            wanted[f"net/netfilter/nf_conntrack_tcp_timeout_syn_{state}"] = str(ruleset.conntrack.syn_timeout_s)
    if any(rule.syn_proxy for rule in ruleset.services):
        wanted |= {"net/ipv4/tcp_syncookies": "1", "net/ipv4/tcp_timestamps": "1", LOOSE: "0"}
    return wanted


def read_plan(state_dir: Path, wanted: Mapping[str, str]) -> SysctlPlan:
    """Return what has to be set for ``wanted``, and to what a rollback sets it back.

    What an earlier policy of this boot set and this one does not ask for goes back to what it was before.
    """
    originals = load_originals(state_dir)
    targets = {**originals, **wanted}
    present = {name: value for name in targets if (value := _read(name)) is not None}
    changed = {name: value for name, value in targets.items() if name in present and present[name] != value}
    return SysctlPlan(
        now={name: value for name, value in changed.items() if (name, value) != (LOOSE, "0")},
        at_confirmation={name: value for name, value in changed.items() if (name, value) == (LOOSE, "0")},
        undo={name: present[name] for name in changed},
        unknown=tuple(name for name in wanted if name not in present),
    )


def apply_sysctls(state_dir: Path, values: Mapping[str, str]) -> list[str]:
    """Set ``values``, remembering what was there first; return the names that this kernel did not let us set."""
    originals = load_originals(state_dir)
    first = {name: was for name in values if name not in originals and (was := _read(name)) is not None}
    if first:
        made = Originals(boot=_boot_id(), namespace=namespace_name(), values={**originals, **first})
        write_file_atomic(state_dir / ORIGINALS, msgspec.json.encode(made), mode=0o600)
    return [name for name, value in values.items() if not _write(name, value)]


def load_originals(state_dir: Path) -> dict[str, str]:
    """Return what was there before any policy of this boot; nothing when nothing (or nothing readable) is stored."""
    try:
        raw = read_file_bounded(state_dir / ORIGINALS, limit_bytes=MAX_FILE_BYTES)
        made = msgspec.json.decode(raw, type=Originals)
    except (TidegateError, msgspec.DecodeError):
        return {}
    return made.values if (made.boot, made.namespace) == (_boot_id(), namespace_name()) else {}


def encode_undo(values: Mapping[str, str]) -> str:
    """Return the file from which the guard sets ``values`` back: the namespace, then a name and a value a line."""
    return f"{namespace_name()}\n" + "".join(f"{name} {value}\n" for name, value in values.items())


def namespace_name() -> str:
    """Return the kernel's name of the calling thread's network namespace."""
    return str(Path("/proc/thread-self/ns/net").readlink())


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _read(name: str) -> str | None:
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None


def _write(name: str, value: str) -> bool:
    """Return whether the value stands. In a namespace of its own ``nf_conntrack_max`` can be read but not set."""
    try:
        (_ROOT / name).write_text(value)
    except OSError:
        return False
    return _read(name) == value
