"""Put a ruleset in force so that a mistake undoes itself: apply, confirm, roll back, restore at boot.

Touches: nftables, kernel settings, the state folder (``statefolder`` says what lies there), the guard's process.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from tidegate.base.durable import (
    read_file_bounded,
    require_private,
    sync_folder,
    translate_os_errors,
    write_file_atomic,
)
from tidegate.base.errors import TidegateError
from tidegate.firewall import guard
from tidegate.firewall.arming import Watch
from tidegate.firewall.checks import VerifiedRuleset, verify_ruleset
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.effective import Reading, effective_digest
from tidegate.firewall.errors import (
    BadTimeout,
    Changed,
    ChangePending,
    Expired,
    NftRefused,
    NothingPending,
    ProbeFailed,
    RestoreFailed,
    SnapshotFailed,
)
from tidegate.firewall.lockdown import load_lockdown_text, start_timer
from tidegate.firewall.model import Address, Packet, plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection, Mode
from tidegate.firewall.snapshot import DELETE_LINK, Listings, digest_listings, encode_names, encode_restore
from tidegate.firewall.statefolder import (
    APPLIER_WAIT_S,
    CONFIRMED,
    DEFAULT_STATE,
    LOCKDOWN,
    MAX_STATE_BYTES,
    PENDING_LOCKDOWN,
    PENDING_STORY,
    UNKNOWN,
    Story,
    await_old_guard,
    exclusive,
    load_expected_digest,
    load_lockdown,
    load_section_in_force,
    load_story,
    note_effective,
    read_sha256,
    refuse_pending,
    seal,
    settle,
    sha256_of,
    unseal,
    write_story,
    write_volatile,
)
from tidegate.firewall.sysctl import SysctlPlan, apply_sysctls, encode_undo, namespace_name, plan_sysctls, read_plan
from tidegate.firewall.transaction import Parts, find_hooked, load_devices, load_what_can_be, load_whole, plan_parts

MAX_CONFIRM_S = 3600.0
ROLLBACK_WAIT_S = 10.0  # the guard's attempts (20 of 0.25 s) and its poll

__all__ = [
    "DEFAULT_STATE",
    "PendingChange",
    "apply_ruleset",
    "apply_section",
    "effective_digest",
    "load_section_in_force",
]

Probe = Callable[[], bool]


def apply_section(
    section: FirewallSection,
    *,
    state_dir: Path = DEFAULT_STATE,
    nft: Nft | None = None,
    confirm_timeout_s: float | None = None,
    probes: Sequence[Probe] = (),
    must_pass: Sequence[Packet] | None = None,
    cut: Collection[Address] = (),
) -> PendingChange:
    """Put ``section`` in force, guarded: without ``confirm()`` in time, what was in force before comes back by itself.

    In one transaction, with the rollback armed before it:

    1. Refuse while another change waits; start the guard's process. 2. Plan and check, against the sessions that
    manage the device right now (``live.find_must_pass``), except those of the addresses in ``cut``; ``must_pass``
    replaces what the live sessions say. 3. Make sure that what is in force can be restored, write what restores it and
    what is new, and wait until the guard has loaded the former. 4. One transaction, then kernel settings. 5. Make sure
    that the guard has not given up meanwhile. 6. Run ``probes``; one that returns ``False`` or raises rolls back.

    While the device is locked down, what comes into force is the section's lockdown form. ``confirm_timeout_s``
    overrides the section's.

    Raises ``firewall.policy.*``, ``firewall.check.*``, ``firewall.commit.timeout``, ``.pending``, ``.snapshot``,
    ``.guard``, ``.expired``, ``.probe-failed``, ``firewall.nft.refused``, ``firewall.kernel.no-nftables``,
    ``base.privilege.missing``, ``base.storage.*``, ``base.permissions.unsafe``. Whenever it raises, the ruleset in
    force is the one from before.
    """
    timeout_s = _check_timeout(section.confirm_timeout_s if confirm_timeout_s is None else confirm_timeout_s)
    nft = nft or Nft.open()
    with exclusive(state_dir):
        refuse_pending(state_dir)
        with Watch.start(state_dir, timeout_s) as watch, Reading(nft, load_expected_digest(state_dir)) as reading:
            verified = _verify(section, state_dir, must_pass, cut)
            change = _put_in_force(_Work(state_dir, nft, watch, reading, timeout_s), verified, section)
    _run_probes(change, probes)
    return change


def apply_ruleset(
    verified: VerifiedRuleset,
    *,
    state_dir: Path,
    nft: Nft | None = None,
    confirm_timeout_s: float | None = None,
    probes: Sequence[Probe] = (),
) -> PendingChange:
    """Put a verified ruleset in force as ``apply_section`` does, whose section is not known to later questions."""
    ruleset = verified.ruleset
    timeout_s = _check_timeout(ruleset.confirm_timeout_s if confirm_timeout_s is None else confirm_timeout_s)
    nft = nft or Nft.open()
    with exclusive(state_dir):
        refuse_pending(state_dir)
        with Watch.start(state_dir, timeout_s) as watch, Reading(nft, load_expected_digest(state_dir)) as reading:
            change = _put_in_force(_Work(state_dir, nft, watch, reading, timeout_s), verified, None)
    _run_probes(change, probes)
    return change


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingChange:
    """A change in force but not confirmed. Doing nothing rolls it back at ``deadline_monotonic_s``.

    ``missing_devices`` have layer-2 rules and are not there: ``load_missing_links`` loads those later.
    ``unset`` are kernel settings that could not be set: in a network namespace, or that this kernel has not.
    ``nft_sha256`` tells it from a change that somebody else makes after it was rolled back.
    """

    state_dir: Path
    nft: Nft = field(repr=False)
    deadline_monotonic_s: float | None = None  # None: found by load_pending; its guard knows
    missing_devices: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    nft_sha256: str | None = None

    def confirm(self) -> str:
        """Keep the change, over reboots too, and return the digest of what is in force.

        Raises ``firewall.commit.expired`` when it was rolled back before, ``firewall.commit.changed`` when the kernel
        holds something else than what was applied (the change then stays pending).
        """
        with contextlib.ExitStack() as stack:
            # Not beside a lockdown that is being switched on; nor kept from confirming by a process that hangs.
            with contextlib.suppress(ChangePending):
                stack.enter_context(exclusive(self.state_dir, wait_s=APPLIER_WAIT_S))
            return self._confirm()

    def _confirm(self) -> str:
        story = load_story(self.state_dir) if self.is_pending else None
        effective = effective_digest(self.nft, expected=story.effective if story is not None else None)
        if not self.is_pending:
            raise Expired("the change was rolled back before it was confirmed")
        if story is None:
            raise Changed("the change was interrupted before it was complete; roll it back")
        if effective != story.effective:
            raise Changed("the ruleset in force differs from the one that was applied", applied=story.effective)
        with translate_os_errors(self.state_dir / CONFIRMED):
            try:
                (self.state_dir / guard.PENDING).rename(self.state_dir / CONFIRMED)
            except FileNotFoundError as error:
                raise Expired("the change was rolled back before it was confirmed") from error
            sync_folder(self.state_dir)
        settle(self.state_dir)
        note_effective(self.state_dir, effective)
        if story.namespace == namespace_name():
            apply_sysctls(self.state_dir, read_plan(self.state_dir, story.sysctls).at_confirmation)
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
        pending = self.state_dir / guard.PENDING
        return pending.exists() if self.nft_sha256 is None else read_sha256(pending) == self.nft_sha256


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
    sha256 = read_sha256(state_dir / guard.PENDING)
    return PendingChange(state_dir=state_dir, nft=nft or Nft.open(), nft_sha256=sha256)


def drop_pending(state_dir: Path = DEFAULT_STATE) -> None:
    """Forget a change that was pending when the machine went down; undo at once one whose guard still waits.

    For who applies a policy of his own next, as the agent does at its start. Raises ``firewall.commit.*``,
    ``firewall.nft.*``, ``base.permissions.unsafe``.
    """
    if guard.guard_lives(str(state_dir)) and (state_dir / guard.PENDING).exists():
        load_pending(state_dir).rollback()
    with exclusive(state_dir):
        _drop_leftovers(state_dir)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What a boot has put in force. ``missing_devices``: their layer-2 rules wait for ``load_missing_links``."""

    digest: str
    locked: bool
    missing_devices: tuple[str, ...]
    unset: tuple[str, ...]


def restore_last_confirmed(state_dir: Path = DEFAULT_STATE, *, nft: Nft | None = None) -> Restored | None:
    """Put the last confirmed ruleset in force, as at boot; its lockdown form if the device was locked down.

    ``None`` when nothing was ever confirmed: the caller decides what a device without a policy does. A change that was
    pending when the machine went down is dropped. Bans are the caller's next step (``banstore``). Raises
    ``firewall.commit.pending`` while a guard is alive, ``firewall.state.corrupt``, ``base.permissions.unsafe``,
    ``firewall.nft.refused``. Trusts the folder, which only root can write; the signed policy stays the authority and
    is applied anew by the agent.
    """
    with exclusive(state_dir):
        if guard.guard_lives(str(state_dir)) and (state_dir / guard.PENDING).exists():
            raise ChangePending("a change waits for its confirmation; its guard is alive")
        _drop_leftovers(state_dir)
        if not (state_dir / CONFIRMED).exists():
            return None
        lockdown = load_lockdown(state_dir)
        text = unseal(state_dir / CONFIRMED) if lockdown is None else load_lockdown_text(state_dir)
        nft = nft or Nft.open()
        missing = load_what_can_be(nft, text)
        if lockdown is not None and lockdown.for_s is not None:
            start_timer(state_dir, lockdown)
        digest = effective_digest(nft)
        story = load_story(state_dir)
        unset: list[str] = []
        if story is not None:
            plan = read_plan(state_dir, story.sysctls)
            unset = [*plan.unknown, *apply_sysctls(state_dir, {**plan.now, **plan.at_confirmation})]
        note_effective(state_dir, digest)
        return Restored(digest=digest, locked=lockdown is not None, missing_devices=missing, unset=tuple(unset))


def load_missing_links(state_dir: Path = DEFAULT_STATE, *, nft: Nft | None = None) -> tuple[str, ...]:
    """Load the layer-2 rules of network devices that have appeared since the ruleset was loaded; return those devices.

    For the agent to call when an interface comes up. Raises ``firewall.commit.pending`` while a policy is being
    applied, ``firewall.state.corrupt``.
    """
    with exclusive(state_dir):
        nft = nft or Nft.open()
        locked = load_lockdown(state_dir) is not None
        if (state_dir / guard.PENDING).exists():
            text = unseal(state_dir / (PENDING_LOCKDOWN if locked else guard.PENDING))
        elif (state_dir / CONFIRMED).exists():
            text = load_lockdown_text(state_dir) if locked else unseal(state_dir / CONFIRMED)
        else:
            return ()
        expected = load_expected_digest(state_dir)
        was_known = effective_digest(nft, expected=expected) == expected
        loaded = load_devices(nft, text)
        if loaded and was_known:
            note_effective(state_dir, effective_digest(nft))
        return loaded


@dataclass(frozen=True, slots=True)
class _Work:
    """What one change works with."""

    state_dir: Path
    nft: Nft
    watch: Watch
    reading: Reading
    timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One change, ready: the text to load, what undoes it, and what will be told of it."""

    loaded: str
    replaces: str | None
    restore: str
    sysctls: SysctlPlan
    story: Story


def _verify(
    section: FirewallSection, state_dir: Path, must_pass: Sequence[Packet] | None, cut: Collection[Address]
) -> VerifiedRuleset:
    from tidegate.firewall.live import find_must_pass

    ruleset = plan_ruleset(section)
    if must_pass is None:
        must_pass = find_must_pass(ruleset, load_section_in_force(state_dir), cut=cut)
    return verify_ruleset(ruleset, must_pass=must_pass)


def _put_in_force(work: _Work, verified: VerifiedRuleset, section: FirewallSection | None) -> PendingChange:
    ruleset, state_dir = verified.ruleset, work.state_dir
    locked = load_lockdown(state_dir) is not None
    texts = encode_ruleset(ruleset), encode_ruleset(replace(ruleset, mode=Mode.LOCKDOWN))
    listings = work.reading.result()
    loaded, wanted = texts[1 if locked else 0], plan_sysctls(ruleset)
    if listings.link is not None and DELETE_LINK not in loaded:
        loaded += DELETE_LINK
    stored = _find_stored(state_dir, digest_listings(listings))
    step = _Step(
        loaded=loaded,
        replaces=listings.policy if stored is None else stored,
        restore=_plan_restore(work, listings, stored, has_link=DELETE_LINK in loaded),
        sysctls=read_plan(state_dir, wanted),
        story=Story(
            nft_sha256=sha256_of(texts[0]),
            lockdown_sha256=sha256_of(texts[1]),
            effective="",
            locked=locked,
            section=UNKNOWN if section is None else msgspec.Raw(msgspec.json.encode(section)),
            sysctls=wanted,
            namespace=namespace_name(),
        ),
    )
    try:
        _write_before(state_dir, step, texts)
        work.watch.arm()
    except BaseException:
        _disarm(state_dir)
        raise
    deadline_s = time.monotonic() + work.timeout_s
    sha256 = step.story.nft_sha256
    change = PendingChange(state_dir=state_dir, nft=work.nft, deadline_monotonic_s=deadline_s, nft_sha256=sha256)
    return _change(change, step)


def _plan_restore(work: _Work, listings: Listings, stored: str | None, *, has_link: bool) -> str:
    """Return the text that restores what is in force.

    ``stored`` is the text of the ruleset that was loaded last, if the kernel still lists the same as right after that:
    the kernel has taken it once. Else it is what the kernel lists, checked by it while it can still be refused.
    """
    parts = plan_parts(encode_restore(listings) if stored is None else stored)
    main = parts.main
    if stored is not None:
        main += encode_names(listings.names)
    if has_link and DELETE_LINK not in main:
        main += DELETE_LINK
    restore = Parts(main=main, devices=parts.devices).encode(set(find_hooked(listings.link or "")))
    if stored is None:
        try:
            work.nft.check(restore)
        except NftRefused as error:
            raise SnapshotFailed(f"the ruleset in force cannot be restored: {error.message}") from error
    return restore


def _find_stored(state_dir: Path, effective: str) -> str | None:
    if load_expected_digest(state_dir) != effective or not (state_dir / CONFIRMED).exists():
        return None
    name = CONFIRMED if load_lockdown(state_dir) is None else LOCKDOWN
    with contextlib.suppress(TidegateError):
        return unseal(state_dir / name)
    return None


def _write_before(state_dir: Path, step: _Step, texts: tuple[str, str]) -> None:
    """Write everything that the guard, a confirmation and a reboot need; the hinge last."""
    for name in (guard.REQUEST, guard.ROLLED_BACK, PENDING_STORY):
        (state_dir / name).unlink(missing_ok=True)
    write_volatile(state_dir / guard.RESTORE, step.restore)
    write_volatile(state_dir / guard.UNDO, encode_undo(step.sysctls.undo))
    write_file_atomic(state_dir / PENDING_LOCKDOWN, seal(texts[1]), mode=0o600)
    write_file_atomic(state_dir / guard.PENDING, seal(texts[0]), mode=0o600)


def _change(change: PendingChange, step: _Step) -> PendingChange:
    """Run the transaction and note what it made; undo it if anything at all goes wrong after it may have happened."""
    folder, began = change.state_dir, False
    try:
        missing = load_whole(change.nft, step.loaded, replaces=step.replaces)
        began = True
        unset = [*step.sysctls.unknown, *apply_sysctls(folder, step.sysctls.now)]
        effective = effective_digest(change.nft, loaded=step.loaded)
        write_story(folder, PENDING_STORY, msgspec.structs.replace(step.story, effective=effective))
        if not (change.is_pending and guard.guard_lives(str(folder))):
            raise Expired("the guard ended before the change was complete; the change was undone")
    except BaseException as error:
        # A refused transaction was all or nothing: it was nothing. With an interrupt, a full disk, a guard that gave
        # up it is not the moment to ask which of these changed the kernel.
        if began or not isinstance(error, NftRefused):
            _undo(change, step)
        _disarm(folder)
        raise
    return replace(change, missing_devices=missing, unset=tuple(unset))


def _undo(change: PendingChange, step: _Step) -> None:
    change.nft.run(step.restore)
    guard.undo_settings(encode_undo(step.sysctls.undo))
    if not step.story.locked and load_lockdown(change.state_dir) is not None:
        load_what_can_be(change.nft, load_lockdown_text(change.state_dir))  # it came meanwhile, and stays


def _disarm(state_dir: Path) -> None:
    """Take back the offer of a change that did not happen; its guard sees that and ends."""
    (state_dir / guard.PENDING).unlink(missing_ok=True)


def _drop_leftovers(state_dir: Path) -> None:
    await_old_guard(state_dir)
    for name in (guard.PENDING, guard.ROLLING_BACK):
        with contextlib.suppress(FileNotFoundError):
            (state_dir / name).rename(state_dir / guard.ROLLED_BACK)


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
        undo = read_file_bounded(state_dir / guard.UNDO, limit_bytes=MAX_STATE_BYTES).decode()

        def execute(text: str) -> str:
            try:
                nft.run(text)
            except NftRefused as error:
                return error.message
            return ""

        finish = guard.roll_back if pending.exists() else guard.finish_rollback
        if not finish(str(state_dir), execute, restore, undo):
            raise RestoreFailed("nftables refused the ruleset that was in force before", path=str(state_dir))
        if load_lockdown(state_dir) is not None:
            load_what_can_be(nft, load_lockdown_text(state_dir))  # it may have come meanwhile, and stays
    elif not (state_dir / guard.ROLLED_BACK).exists():
        raise NothingPending("the change was confirmed; apply another policy instead")


def _check_timeout(timeout_s: float) -> float:
    if not 1.0 <= timeout_s <= MAX_CONFIRM_S:
        raise BadTimeout(f"a confirmation timeout of {timeout_s:g} s is out of range")
    return float(timeout_s)
