"""Which policy is in force: verified, applied with an armed rollback, kept only when it was confirmed.

Touches: the confirmed policy's file; nftables through ``firewall.commit``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.agent.errors import NothingPending
from tidegate.agent.home import DeviceHome
from tidegate.agent.reporting import report
from tidegate.base.clock import Clock
from tidegate.base.durable import translate_os_errors, write_file_atomic
from tidegate.base.errors import TidegateError
from tidegate.events import catalogue
from tidegate.events.spool import EventLog
from tidegate.firewall.commit import (
    PendingChange,
    apply_section,
    drop_pending,
    effective_digest,
    restore_last_confirmed,
)
from tidegate.firewall.errors import Expired
from tidegate.firewall.live import find_must_pass
from tidegate.firewall.model import Packet, plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection, Management, Protocol, Service
from tidegate.firewall.statefolder import load_section_in_force
from tidegate.policy.check import verify_sections
from tidegate.policy.document import Policy
from tidegate.policy.errors import PolicyExpired, PolicyRollback
from tidegate.policy.sign import PolicyRule, VerifiedPolicy, verify_policy

CONFIRM_TIMEOUT_S = 30  # of a policy without a [firewall] section; the section's own default
# What a device does that has no policy to follow: nothing comes in, it is managed on the machine itself.
CLOSED = FirewallSection(
    management=Management(peers=("127.0.0.1",), service="local"),
    services={"local": Service(protocol=Protocol.TCP, ports=(22,), peers=("127.0.0.1",))},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A policy in force but not confirmed; ``deadline_s`` is the clock's, for one that changes no firewall."""

    raw: bytes
    verified: VerifiedPolicy
    change: PendingChange | None
    deadline_s: float

    def is_pending(self, now_s: float) -> bool:
        """Return whether it can still be confirmed; with a firewall its guard decides, else the time alone."""
        return now_s < self.deadline_s if self.change is None else self.change.is_pending


class PolicyKeeper:
    """Keeps one confirmed policy and at most one candidate."""

    def __init__(self, home: DeviceHome, events: EventLog, clock: Clock, nft: Nft | None) -> None:
        self._home, self._events, self._clock, self._nft = home, events, clock, nft
        self.confirmed: VerifiedPolicy | None = None
        self.candidate: Candidate | None = None

    @property
    def policy(self) -> Policy | None:
        """Return the policy in force, confirmed or not."""
        if self.candidate is not None:
            return self.candidate.verified.policy
        return self.confirmed.policy if self.confirmed else None

    def start(self) -> None:
        """Put the confirmed policy in force at boot; its own check is all the confirmation it needs then.

        The signed policy alone is the authority, whatever sessions there are. Where neither of its two copies holds,
        the device closes. One that has expired since it was confirmed stays in force and is reported. A change that
        was pending is undone.
        """
        drop_pending(self._home.firewall_state)
        try:
            verified = self._verify_stored()
        except TidegateError:
            self._enforce(CLOSED, must_pass=()).confirm()
            raise
        if verified.policy.firewall is not None:
            self._enforce(verified.policy.firewall, must_pass=()).confirm()
        else:  # a room without a section is left alone: what was in force before the boot is in force again
            restore_last_confirmed(self._home.firewall_state, nft=self._nft)
        self.confirmed = verified
        self._report_applied(verified)

    def _enforce(self, section: FirewallSection, *, must_pass: Sequence[Packet]) -> PendingChange:
        return apply_section(section, state_dir=self._home.firewall_state, nft=self._nft, must_pass=must_pass)

    def _managing_sessions(self, section: FirewallSection) -> list[Packet]:
        """Return the sessions that manage the device now. Somebody's shell is none: it keeps no signed policy away."""
        in_force = load_section_in_force(self._home.firewall_state)
        return find_must_pass(plan_ruleset(section), in_force, shells=False)

    def _verify_stored(self) -> VerifiedPolicy:
        """Return the confirmed policy from whichever of its two copies holds; raise what the first one raised."""
        first: TidegateError | None = None
        for path in self._home.policy_paths:
            try:
                raw = self._home.read_policy(path)
                try:
                    return self._verify(raw, self._clock.now_s())
                except PolicyExpired as error:
                    verified = self._verify(raw, 0.0)
                    report(self._events, catalogue.agent_failed(part="renewal of the policy", error=error))
                    return verified
            except TidegateError as error:
                first = first or error
        raise first or PolicyRollback("there is no policy")

    def apply(self, raw: bytes) -> Candidate:
        """Put a new policy in force; unless ``confirm`` comes in time the one before is in force again.

        Raises ``policy.*``, ``crypto.*``, ``firewall.*`` with nothing changed.
        """
        verified = self._verify(raw, self._clock.now_s())
        change, timeout_s = None, CONFIRM_TIMEOUT_S
        if verified.policy.firewall is not None:
            section = verified.policy.firewall
            change = self._enforce(section, must_pass=self._managing_sessions(section))
            timeout_s = verified.policy.firewall.confirm_timeout_s
        deadline_s = self._clock.monotonic_s() + timeout_s
        self.candidate = Candidate(raw=raw, verified=verified, change=change, deadline_s=deadline_s)
        return self.candidate

    def confirm(self) -> VerifiedPolicy:
        """Keep the candidate for good; raise ``agent.policy.nothing-pending`` or ``firewall.commit.expired``."""
        candidate = self.candidate
        if candidate is None:
            raise NothingPending("no policy waits for a confirmation")
        first, second = self._home.policy_paths
        staged = first.with_name("policy.next")
        write_file_atomic(staged, candidate.raw)  # room and storage are proved before anything is final
        if candidate.change is not None:
            candidate.change.confirm()
        elif not candidate.is_pending(self._clock.monotonic_s()):
            raise Expired("the policy was not confirmed in time")
        self.confirmed, self.candidate = candidate.verified, None
        write_file_atomic(self._home.policy_floor, _encode_floor(candidate.verified))
        with translate_os_errors(first):
            staged.rename(first)
        write_file_atomic(second, candidate.raw)
        self._report_applied(candidate.verified)
        return candidate.verified

    def rollback(self) -> None:
        """Put the policy before the candidate in force at once."""
        if self.candidate is None:
            raise NothingPending("no policy waits for a confirmation")
        if self.candidate.change is not None:
            self.candidate.change.rollback()
        self._forget_candidate("asked for")

    def notice_expiry(self) -> bool:
        """Return whether the armed rollback has acted since the last look, and report it."""
        candidate = self.candidate
        if candidate is None or candidate.is_pending(self._clock.monotonic_s()):
            return False
        self._forget_candidate("not confirmed in time")
        return True

    def effective_digest(self) -> str:
        """Return the hash of what the kernel really holds."""
        return effective_digest(self._nft)

    def _forget_candidate(self, reason: str) -> None:
        if self.candidate is not None:
            version = self.candidate.verified.policy.policy.version
            self.candidate = None
            report(self._events, catalogue.policy_rolled_back(version=version, reason=reason))

    def _verify(self, raw: bytes, now_s: float) -> VerifiedPolicy:
        """Return the policy if this device may follow it and every room can do what it says."""
        floor, digest = self._home.read_policy_floor()
        rule = PolicyRule(
            trust=self._home.storage.owner_trust(),
            device=self._home.device_id(),
            min_version=max(1, floor),
            now_s=now_s,
        )
        verified = verify_policy(raw, rule)
        if verified.policy.policy.version == floor and verified.digest.hex() != digest:
            raise PolicyRollback(f"policy version {floor} was confirmed with another content", version=floor)
        verify_sections(verified.policy)
        return verified

    def _report_applied(self, verified: VerifiedPolicy) -> None:
        event = catalogue.policy_applied(version=verified.policy.policy.version, digest=self.effective_digest())
        report(self._events, event)


def _encode_floor(verified: VerifiedPolicy) -> bytes:
    return f"{verified.policy.policy.version} {verified.digest.hex()}\n".encode()
