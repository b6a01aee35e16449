"""Lockdown: a ruleset that was prepared beforehand, switched on in one transaction.

Touches: nftables, the state folder, the process that ends a lockdown in time.

It needs nothing but the state folder and nftables: no agent, no compiler. Whatever else goes on, it wins: a change
that waits for its confirmation is dropped, and neither a rollback nor a reboot lifts it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.durable import sync_folder, translate_os_errors
from tidegate.base.errors import Rejected, TidegateError
from tidegate.firewall import guard
from tidegate.firewall.arming import python_command
from tidegate.firewall.effective import effective_digest
from tidegate.firewall.errors import BadLockdownTime, ChangePending, LockdownNotPrepared, NotLockedDown, StateCorrupt
from tidegate.firewall.nft import Nft
from tidegate.firewall.statefolder import (
    APPLIER_WAIT_S,
    CONFIRMED,
    DEFAULT_STATE,
    LOCKDOWN,
    LOCKED,
    Lockdown,
    exclusive,
    load_lockdown,
    load_section_confirmed,
    note_effective,
    refuse_pending,
    settle,
    unseal,
    write_lockdown,
)
from tidegate.firewall.transaction import load_what_can_be

MAX_LOCKDOWN_S = 30 * 86_400.0  # as the longest ban
GUARD_WAIT_S = 10.0  # the guard's attempts to restore


@dataclass(frozen=True, slots=True, kw_only=True)
class LockdownReport:
    """What a switch did. ``digest`` is the kernel's ruleset now; ``dropped_change``: one that waited is gone."""

    digest: str
    dropped_change: bool = False
    missing_devices: tuple[str, ...] = ()


def lock_down(
    state_dir: Path = DEFAULT_STATE, *, reason: str = "", for_s: float | None = None, nft: Nft | None = None
) -> LockdownReport:
    """Leave nothing open but the management path and the rules with ``lockdown = true``; running sessions end.

    1. Mark the device as locked down, so that a reboot finds it locked. 2. Load the prepared ruleset. 3. Drop a change
    that waits: its guard ends without restoring; if it had begun to, load again behind it. ``for_s`` ends it by itself
    after so many seconds (counted anew after a reboot, which needs no clock); ``None``: until ``lift_lockdown``.
    Locking what is locked sets reason and time anew.

    Raises ``firewall.lockdown.not-prepared`` when no policy was ever confirmed here, ``firewall.lockdown.time``,
    ``firewall.nft.refused``, ``firewall.state.corrupt``, ``base.permissions.unsafe``, ``base.storage.*``.
    """
    if for_s is not None and not 1.0 <= for_s <= MAX_LOCKDOWN_S:
        raise BadLockdownTime(f"a lockdown of {for_s:g} s is out of range")
    with contextlib.ExitStack() as stack:
        # A process that hangs while it applies must not keep the lockdown away.
        with contextlib.suppress(ChangePending):
            stack.enter_context(exclusive(state_dir, wait_s=APPLIER_WAIT_S))
        settle(state_dir)
        nft = nft or Nft.open()
        text = load_lockdown_text(state_dir)
        before = load_lockdown(state_dir)
        lockdown = Lockdown(reason=reason[:1024], token=os.urandom(8).hex(), since_s=time.time(), for_s=for_s)
        write_lockdown(state_dir, lockdown)  # 1
        try:
            missing = load_what_can_be(nft, text)  # 2
        except TidegateError:
            if before is None:
                (state_dir / LOCKED).unlink(missing_ok=True)
            else:
                write_lockdown(state_dir, before)  # still on, with its own time
            raise
        dropped = _drop_change(state_dir, nft, text)  # 3
        if for_s is not None:
            start_timer(state_dir, lockdown)
        digest = effective_digest(nft)
        note_effective(state_dir, digest)
    return LockdownReport(digest=digest, dropped_change=dropped, missing_devices=missing)


def lift_lockdown(
    state_dir: Path = DEFAULT_STATE, *, nft: Nft | None = None, token: str | None = None
) -> LockdownReport:
    """Put the confirmed ruleset in force again. With ``token``: only if that lockdown is still the one that is on.

    Addresses of DNS names are those of the confirmation until they are resolved anew. Raises
    ``firewall.lockdown.off`` when none is on, ``firewall.commit.pending`` while a change waits or is being applied,
    ``firewall.nft.refused``, ``firewall.state.corrupt``; the device then stays locked down.
    """
    with exclusive(state_dir, wait_s=APPLIER_WAIT_S):
        lockdown = load_lockdown(state_dir)
        if lockdown is None or token not in (None, lockdown.token):
            raise NotLockedDown("no lockdown is on, or another one by now")
        refuse_pending(state_dir)
        nft = nft or Nft.open()
        missing = load_what_can_be(nft, unseal(state_dir / CONFIRMED))
        with translate_os_errors(state_dir / LOCKED):
            (state_dir / LOCKED).unlink()
            sync_folder(state_dir)
        digest = effective_digest(nft)
        note_effective(state_dir, digest)
    return LockdownReport(digest=digest, missing_devices=missing)


def load_lockdown_text(state_dir: Path) -> str:
    """Return the ruleset that a lockdown loads: the prepared one, or, if that is missing or decayed, compiled anew.

    Raises ``firewall.lockdown.not-prepared``, ``firewall.state.corrupt``.
    """
    if not (state_dir / CONFIRMED).exists():
        raise LockdownNotPrepared("no policy was ever confirmed on this device")
    try:
        if (state_dir / LOCKDOWN).exists():
            return unseal(state_dir / LOCKDOWN)
    except StateCorrupt:
        compiled = _compile(state_dir)
        if compiled is None:
            raise
        return compiled
    compiled = _compile(state_dir)
    if compiled is None:
        raise LockdownNotPrepared("the policy in force was confirmed by a version that prepared no lockdown")
    return compiled


def start_timer(state_dir: Path, lockdown: Lockdown) -> None:
    """Start the process that lifts ``lockdown`` when its time is over; another lockdown, or none, ends it before.

    It sleeps in a bare interpreter, away from its parent, and becomes a whole one when it lifts.
    """
    seconds = lockdown.for_s or 0.0
    lift = python_command("from tidegate.firewall.lockdown import main; sys.exit(main(*sys.argv[1:]))", "-I")
    wait = python_command("from tidegate.firewall.guard import outlast; outlast(*sys.argv[1:])", "-I", "-S")
    arguments = [str(state_dir.absolute() / LOCKED), lockdown.token, str(seconds), *lift]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(
        [*wait, *arguments, str(state_dir.absolute()), lockdown.token],
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,
    ):
        pass  # it leaves at once


def main(folder: str, token: str) -> int:
    """Lift the lockdown ``token`` and return the exit status; what fails now is tried again for a while."""
    for attempt in range(guard.ATTEMPTS):
        try:
            lift_lockdown(Path(folder), token=token)
        except NotLockedDown:
            return 0
        except TidegateError:
            time.sleep(guard.RETRY_S * (attempt + 1))
        else:
            return 0
    return 1


def _drop_change(state_dir: Path, nft: Nft, text: str) -> bool:
    """Decide a change that waits as undone, and return whether there was one; afterwards ``text`` is in force."""
    if _claim(state_dir, guard.PENDING):
        _undo_settings(state_dir)
        return True
    if not (state_dir / guard.ROLLING_BACK).exists():
        return False
    deadline = time.monotonic() + GUARD_WAIT_S
    while guard.guard_lives(str(state_dir)) and time.monotonic() < deadline:
        time.sleep(guard.POLL_S / 20)
    _claim(state_dir, guard.ROLLING_BACK)
    load_what_can_be(nft, text)
    return True


def _claim(state_dir: Path, name: str) -> bool:
    try:
        (state_dir / name).rename(state_dir / guard.ROLLED_BACK)
    except FileNotFoundError:
        return False
    return True


def _undo_settings(state_dir: Path) -> None:
    with contextlib.suppress(OSError):
        guard.undo_settings(guard.read_text(str(state_dir / guard.UNDO)))


def _compile(state_dir: Path) -> str | None:
    """Return the lockdown form of the section that was confirmed; ``None`` where that is not known."""
    from dataclasses import replace

    from tidegate.firewall.compile import encode_ruleset
    from tidegate.firewall.model import plan_ruleset
    from tidegate.firewall.section import Mode

    section = load_section_confirmed(state_dir)
    if section is None:
        return None
    try:
        return encode_ruleset(replace(plan_ruleset(section), mode=Mode.LOCKDOWN))
    except Rejected:
        return None
