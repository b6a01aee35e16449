"""Put a ruleset in force so that a mistake undoes itself: apply, confirm, roll back, restore at boot.

Touches: nftables, the state folder, the guard's process.

The state folder holds the story; ``pending.nft`` is its hinge. It is written before the change and renamed exactly
once: to ``confirmed.nft`` by a confirmation (that is also what makes the ruleset survive a reboot) or to
``rolling-back.nft`` by a rollback. A rename succeeds for one of them only, whichever processes they run in.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tidegate
from tidegate.base.durable import (
    read_file_bounded,
    require_private,
    sync_folder,
    translate_os_errors,
    write_file_atomic,
)
from tidegate.base.errors import ProgramMissing
from tidegate.base.program import find_program
from tidegate.firewall import guard
from tidegate.firewall.checks import VerifiedRuleset, verify_ruleset
from tidegate.firewall.compile import BAN_TABLE, TABLE, encode_ruleset
from tidegate.firewall.errors import (
    BadTimeout,
    Changed,
    ChangePending,
    Expired,
    GuardFailed,
    NftRefused,
    NothingPending,
    ProbeFailed,
    RestoreFailed,
    SnapshotFailed,
    StateCorrupt,
)
from tidegate.firewall.model import Packet, plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.firewall.snapshot import digest_listings, encode_restore

DEFAULT_STATE = Path("/var/lib/tidegate/firewall")
CONFIRMED = "confirmed.nft"
EFFECTIVE = "pending.digest"  # of the kernel's listing right after the change
APPLY_LOCK = "apply.lock"
MAX_STATE_BYTES = 64 << 20  # three million peers; the set budget ends long before
MAX_CONFIRM_S = 3600.0
GUARD_START_S = 10.0  # an interpreter's start from cold flash, with room
GUARD_END_S = 2.0  # it looks every tenth of a second whether its change was confirmed
ROLLBACK_WAIT_S = 10.0  # the guard's attempts (20 of 0.25 s) and its poll
_HEADER = "# tidegate firewall ruleset, sha256 "

Probe = Callable[[], bool]


def apply_section(
    section: FirewallSection,
    *,
    state_dir: Path = DEFAULT_STATE,
    nft: Nft | None = None,
    confirm_timeout_s: float | None = None,
    probes: Sequence[Probe] = (),
    must_pass: Sequence[Packet] = (),
) -> PendingChange:
    """Put ``section`` in force, guarded: without ``confirm()`` in time, what was in force before comes back by itself.

    From the policy's section to the pending change: plan, check, ``apply_ruleset``. ``confirm_timeout_s`` overrides
    the section's; ``must_pass`` as in ``checks.verify_ruleset``. Raises ``firewall.policy.*``, ``firewall.check.*``
    and what ``apply_ruleset`` raises.
    """
    verified = verify_ruleset(plan_ruleset(section), must_pass=must_pass)
    return apply_ruleset(verified, state_dir=state_dir, nft=nft, confirm_timeout_s=confirm_timeout_s, probes=probes)


def apply_ruleset(
    verified: VerifiedRuleset,
    *,
    state_dir: Path,
    nft: Nft | None = None,
    confirm_timeout_s: float | None = None,
    probes: Sequence[Probe] = (),
) -> PendingChange:
    """Put a verified ruleset in force in one transaction, with the rollback armed before it.

    1. Refuse while another change waits. 2. Have the kernel check the new text, and the text that would restore what
    is in force. 3. Write both. 4. Start the guard and wait until it is ready. 5. One transaction. 6. Make sure that
    the guard has not given up meanwhile. 7. Run ``probes``; one that returns ``False`` or raises rolls back.

    Raises ``firewall.commit.timeout``, ``.pending``, ``.snapshot``, ``.guard``, ``.expired``, ``.probe-failed``,
    ``firewall.nft.refused``, ``firewall.kernel.no-nftables``, ``base.privilege.missing``, ``base.storage.*``,
    ``base.permissions.unsafe``. Whenever it raises, the ruleset in force is the one from before.
    """
    timeout_s = float(verified.ruleset.confirm_timeout_s if confirm_timeout_s is None else confirm_timeout_s)
    if not 1.0 <= timeout_s <= MAX_CONFIRM_S:
        raise BadTimeout(f"a confirmation timeout of {timeout_s:g} s is out of range")
    nft = nft or Nft.open()
    candidate = encode_ruleset(verified.ruleset)
    with _exclusive(state_dir):
        _refuse_pending(state_dir)  # 1
        nft.check(candidate)  # 2
        restore = _plan_restore(nft)
        write_file_atomic(state_dir / guard.RESTORE, restore.encode(), mode=0o600)  # 3
        write_file_atomic(state_dir / guard.PENDING, _seal(candidate), mode=0o600)
        change = _arm(state_dir, nft, timeout_s)  # 4
        _change(change, candidate, restore)  # 5, 6
    _run_probes(change, probes)  # 7
    return change


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingChange:
    """A change in force but not confirmed. Doing nothing rolls it back at ``deadline_monotonic_s``."""

    state_dir: Path
    nft: Nft = field(repr=False)
    deadline_monotonic_s: float | None = None  # None: found by load_pending; its guard knows

    def confirm(self) -> str:
        """Keep the change, over reboots too, and return the digest of what is in force.

        Raises ``firewall.commit.expired`` when it was rolled back before, ``firewall.commit.changed`` when the kernel
        holds something else than what was applied (the change then stays pending).
        """
        applied = self._applied_digest()
        effective = effective_digest(self.nft)
        if not (self.state_dir / guard.PENDING).exists():
            raise Expired("the change was rolled back before it was confirmed")
        if effective != applied:
            raise Changed("the ruleset in force differs from the one that was applied", applied=applied)
        with translate_os_errors(self.state_dir / CONFIRMED):
            try:
                (self.state_dir / guard.PENDING).rename(self.state_dir / CONFIRMED)
            except FileNotFoundError as error:
                raise Expired("the change was rolled back before it was confirmed") from error
            sync_folder(self.state_dir)
        return effective

    def rollback(self) -> None:
        """Bring back what was in force before; returns when it is. Harmless if that has happened already.

        Asks the guard; does it here if the guard is gone. Raises ``firewall.commit.restore-failed``,
        ``firewall.commit.nothing-pending`` when the change was confirmed.
        """
        deadline = time.monotonic() + ROLLBACK_WAIT_S
        with translate_os_errors(self.state_dir / guard.REQUEST):
            (self.state_dir / guard.REQUEST).touch(mode=0o600)
        while guard.guard_lives(str(self.state_dir)) and time.monotonic() < deadline:
            time.sleep(guard.POLL_S / 5)
        _finish_open_rollback(self.state_dir, self.nft)

    @property
    def is_pending(self) -> bool:
        """Whether the change still waits for its confirmation."""
        return (self.state_dir / guard.PENDING).exists()

    def _applied_digest(self) -> str:
        try:
            return (self.state_dir / EFFECTIVE).read_text()
        except FileNotFoundError as error:
            raise Changed("the change was interrupted before it was complete; roll it back") from error


def load_pending(state_dir: Path = DEFAULT_STATE, *, nft: Nft | None = None) -> PendingChange:
    """Return the change that waits in ``state_dir``, applied by whatever process.

    Raises ``firewall.commit.nothing-pending``, ``firewall.commit.expired`` when the last change was rolled back.
    """
    if state_dir.exists():
        require_private(state_dir)
    if not any((state_dir / name).exists() for name in (guard.PENDING, guard.ROLLING_BACK)):
        if (state_dir / guard.ROLLED_BACK).exists():
            raise Expired("no change waits; the last one was rolled back")
        raise NothingPending("no change waits for its confirmation")
    return PendingChange(state_dir=state_dir, nft=nft or Nft.open())


def drop_pending(state_dir: Path = DEFAULT_STATE) -> None:
    """Forget a change that was pending when the machine went down; undo at once one whose guard still waits.

    For who applies a policy of his own next, as the agent does at its start. Raises ``firewall.commit.*``,
    ``firewall.nft.*``, ``base.permissions.unsafe``.
    """
    if guard.guard_lives(str(state_dir)) and (state_dir / guard.PENDING).exists():
        load_pending(state_dir).rollback()
    with _exclusive(state_dir):
        _drop_leftovers(state_dir)


def _drop_leftovers(state_dir: Path) -> None:
    _await_old_guard(state_dir)
    for name in (guard.PENDING, guard.ROLLING_BACK):
        with contextlib.suppress(FileNotFoundError):
            (state_dir / name).rename(state_dir / guard.ROLLED_BACK)


def restore_last_confirmed(state_dir: Path = DEFAULT_STATE, *, nft: Nft | None = None) -> str | None:
    """Put the last confirmed ruleset in force, as at boot, and return the digest of what is effective.

    ``None`` when nothing was ever confirmed: the caller decides what a device without a policy does. A change that was
    pending when the machine went down is dropped. Raises ``firewall.commit.pending`` while a guard is alive,
    ``firewall.state.corrupt``, ``base.permissions.unsafe``, ``firewall.nft.refused``. Trusts the folder, which only
    root can write; the signed policy stays the authority and is applied anew by the agent.
    """
    with _exclusive(state_dir):
        if guard.guard_lives(str(state_dir)) and (state_dir / guard.PENDING).exists():
            raise ChangePending("a change waits for its confirmation; its guard is alive")
        _drop_leftovers(state_dir)
        if not (state_dir / CONFIRMED).exists():
            return None
        text = _unseal(state_dir / CONFIRMED)
        nft = nft or Nft.open()
        nft.run(text)
        return effective_digest(nft)


def effective_digest(nft: Nft | None = None) -> str:
    """Return the SHA-256 (hex) of the ruleset in force in both of our tables.

    Without counters, thresholds' memory and bans, so that it changes only when somebody changes the rules.
    """
    nft = nft or Nft.open()
    return digest_listings(nft.list_table(TABLE), nft.list_table(BAN_TABLE))


def _plan_restore(nft: Nft) -> str:
    """Return the text that restores what is in force, checked by the kernel while it can still be refused."""
    restore = encode_restore(nft.list_table(TABLE), nft.list_table(BAN_TABLE))
    try:
        nft.check(restore)
    except NftRefused as error:
        raise SnapshotFailed(f"the ruleset in force cannot be restored: {error.message}") from error
    return restore


def _start_guard(state_dir: Path, timeout_s: float) -> None:
    """Start the rollback process and return once it guards; raises ``firewall.commit.guard``."""
    for name in (guard.REQUEST, guard.ROLLED_BACK, EFFECTIVE):
        (state_dir / name).unlink(missing_ok=True)
    start = (
        f"import sys; sys.path.insert(0, {str(Path(tidegate.__file__).parent.parent)!r}); "
        "from tidegate.firewall.guard import main; sys.exit(main(sys.argv[1], float(sys.argv[2]), sys.argv[3]))"
    )
    # -I -S: no user site, no .pth files, no environment: small, and nothing foreign in a privileged process.
    command = [sys.executable, "-I", "-S", "-c", start, str(state_dir.absolute()), str(timeout_s), _nft_program()]
    with (
        translate_os_errors(state_dir / "guard.log"),
        (state_dir / "guard.log").open("wb") as log,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
        ) as starter,
    ):
        said = b""
        if starter.stdout is not None and select.select([starter.stdout], [], [], GUARD_START_S)[0]:
            said = os.read(starter.stdout.fileno(), len(guard.READY))
        if said != guard.READY:
            starter.kill()
    if said != guard.READY:
        raise GuardFailed(f"the rollback process did not start; see {state_dir / 'guard.log'}", path=str(state_dir))


def _arm(state_dir: Path, nft: Nft, timeout_s: float) -> PendingChange:
    """Start the guard over what was written; on failure nothing is left waiting."""
    try:
        _start_guard(state_dir, timeout_s)
    except BaseException:
        _disarm(state_dir)
        raise
    return PendingChange(state_dir=state_dir, nft=nft, deadline_monotonic_s=time.monotonic() + timeout_s)


def _change(change: PendingChange, candidate: str, restore: str) -> None:
    """Run the transaction and note what it made; undo it if anything at all goes wrong after it may have happened."""
    try:
        change.nft.run(candidate)
        if not (change.is_pending and guard.guard_lives(str(change.state_dir))):
            raise Expired("the guard ended before the change was complete; the change was undone")
        write_file_atomic(change.state_dir / EFFECTIVE, effective_digest(change.nft).encode(), mode=0o600)
    except NftRefused:
        _disarm(change.state_dir)  # all or nothing: it was nothing
        raise
    except BaseException:
        # An interrupt, a full disk, a guard that gave up: not the moment to ask which of these changed the kernel.
        change.nft.run(restore)
        _disarm(change.state_dir)
        raise


def _nft_program() -> str:
    """Return the path of ``nft`` for a guard without the library; empty where the library is all there is."""
    try:
        return find_program("nft")
    except ProgramMissing:
        return ""


def _disarm(state_dir: Path) -> None:
    """Take back the offer of a change that did not happen; its guard sees that and ends."""
    (state_dir / guard.PENDING).unlink(missing_ok=True)


def _run_probes(change: PendingChange, probes: Sequence[Probe]) -> None:
    """Roll back, and raise ``firewall.commit.probe-failed``, unless every probe says ``True``."""
    for number, probe in enumerate(probes):
        name = getattr(probe, "__name__", f"number {number}")
        try:
            passed = probe()
        except BaseException:
            change.rollback()
            raise
        if not passed:
            change.rollback()
            raise ProbeFailed(f"the probe {name} failed under the new policy", probe=name)


def _finish_open_rollback(state_dir: Path, nft: Nft) -> None:
    """Do what a guard that died left undone."""
    pending, rolling = state_dir / guard.PENDING, state_dir / guard.ROLLING_BACK
    if pending.exists() or rolling.exists():
        restore = read_file_bounded(state_dir / guard.RESTORE, limit_bytes=MAX_STATE_BYTES).decode()

        def execute(text: str) -> str:
            try:
                nft.run(text)
            except NftRefused as error:
                return error.message
            return ""

        finish = guard.roll_back if pending.exists() else guard.finish_rollback
        if not finish(str(state_dir), execute, restore):
            raise RestoreFailed("nftables refused the ruleset that was in force before", path=str(state_dir))
    elif not (state_dir / guard.ROLLED_BACK).exists():
        raise NothingPending("the change was confirmed; apply another policy instead")


def _refuse_pending(state_dir: Path) -> None:
    """Return once no change waits and no guard of an earlier one is left, which would take a new change for its own."""
    for name in (guard.PENDING, guard.ROLLING_BACK):
        if (state_dir / name).exists():
            raise ChangePending(f"an unconfirmed change lies in {state_dir}", path=str(state_dir))
    _await_old_guard(state_dir)


def _await_old_guard(state_dir: Path) -> None:
    """Return once the guard of a decided change has noticed and ended."""
    deadline = time.monotonic() + GUARD_END_S
    while guard.guard_lives(str(state_dir)):
        if time.monotonic() > deadline:
            raise ChangePending("the guard of an earlier change does not end", path=str(state_dir))
        time.sleep(guard.POLL_S / 5)


@contextlib.contextmanager
def _exclusive(state_dir: Path) -> Iterator[None]:
    """Hold the folder for one applying process; ``firewall.commit.pending`` if another one is at work.

    The guard never takes this lock: a process that hangs while it applies must not stop the rollback.
    """
    with translate_os_errors(state_dir):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    require_private(state_dir)  # what lies here is loaded into the kernel: nobody else may write it
    with translate_os_errors(state_dir / APPLY_LOCK):
        lock = os.open(state_dir / APPLY_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ChangePending("another process is applying a policy") from error
        yield
    finally:
        os.close(lock)


def _seal(text: str) -> bytes:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{_HEADER}{digest}\n{text}".encode()


def _unseal(path: Path) -> str:
    """Return the text that ``_seal`` stored; guards against decay, not against whoever may write the folder."""
    header, _, text = read_file_bounded(path, limit_bytes=MAX_STATE_BYTES).decode(errors="replace").partition("\n")
    if header != _HEADER + hashlib.sha256(text.encode()).hexdigest():
        raise StateCorrupt(f"{path} does not match its digest", path=str(path))
    return text
