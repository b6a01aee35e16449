"""The agent's life: boot report, policy, trial, sensor, watch, local API; one task each, one event log.

Touches: everything through the rooms. This is the outermost loop: here, and only here, any exception becomes an event.
"""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.agent.api import serve
from tidegate.agent.bootreport import plan_boot_events
from tidegate.agent.errors import AgentBusy, RequestMalformed, UnexpectedFailure
from tidegate.agent.guarding import Guarding
from tidegate.agent.health import prove_health
from tidegate.agent.home import SOCKET, DeviceHome
from tidegate.agent.policies import PolicyKeeper
from tidegate.agent.reporting import report, sign_off
from tidegate.agent.sensing import Sensing
from tidegate.agent.updates import install_update, running_version, settle_trial
from tidegate.base.clock import Clock, Entropy
from tidegate.base.durable import read_file_bounded, write_file_atomic
from tidegate.base.errors import TidegateError
from tidegate.events import catalogue
from tidegate.events.spool import EventLog
from tidegate.firewall.bans import Bans
from tidegate.firewall.banstore import BanStore
from tidegate.firewall.lockdown import lift_lockdown, lock_down
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.firewall.statefolder import load_lockdown
from tidegate.update.section import UpdateSection
from tidegate.vault.section import Trigger, VaultSection

if TYPE_CHECKING:
    from tidegate.agent.vaulting import Vaulting

HOUSEKEEPING_S = 0.5
CHECKPOINT_EVERY_S = 10.0

Operation = Callable[[dict[str, object]], Awaitable[dict[str, object]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """What the service manager decides: the interface to watch, the file that asks for a reboot."""

    interface: str | None
    reboot_request: Path


class Agent:
    """Runs until SIGTERM. Made with everything it touches; ``run`` is its life."""

    def __init__(self, home: DeviceHome, options: AgentOptions, clock: Clock, entropy: Entropy) -> None:
        self._home, self._options, self._clock, self._entropy = home, options, clock, entropy
        self._stop = asyncio.Event()
        self._started = False
        self._updating = False
        self._operations: dict[str, Operation] = {
            "status": self._status,
            "apply-policy": self._apply_policy,
            "confirm-policy": self._confirm_policy,
            "rollback-policy": self._rollback_policy,
            "lockdown": self._lockdown,
            "ban": self._ban,
            "unban": self._unban,
            "install-update": self._install_update,
            "checkpoint": self._checkpoint,
            "vault-lock": self._lock_vault,
            "vault-unlock": self._unlock_vault,
            "vault-erase": self._erase_vault,
        }
        self._vaulting: Vaulting | None = None
        self._vault_task: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Serve until asked to stop; return 0."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        keys = self._keys = self._home.open_keys()
        self._nft = Nft.open(lean=True)  # bans have their own way; the rest is seldom
        with self._home.open_events(keys, self._clock, self._entropy) as self._events:
            self._report_boot()
            report(self._events, catalogue.agent_started())
            self._policies = PolicyKeeper(self._home, self._events, self._clock, self._nft)
            self._start_policy()
            self._bans = Bans(store=BanStore(self._home.firewall_state))
            self._guarding = Guarding(
                self._events,
                self._bans,
                self._nft,
                self._clock,
                section=self._firewall_section,
                state_dir=self._home.firewall_state,
                tampered=self._tampered,
            )
            self._sensing = Sensing(
                self._events,
                self._bans,
                lambda: self._policies.policy,
                self._clock,
                interface=self._options.interface,
                lock_down=self._respond_by_lockdown,
                tampered=self._tampered,
            )
            self._follow_vault()
            server = await serve(self._home.run / SOCKET, self._handle)
            tasks = [
                asyncio.create_task(self._guarded("sensor", self._sensing.run_sensor())),
                asyncio.create_task(self._guarded("alert counts", self._sensing.run_counts())),
                asyncio.create_task(self._guarded("watch", self._sensing.run_watch())),
                asyncio.create_task(self._guarded("trial", self._settle_trial())),
                asyncio.create_task(self._guarded("housekeeping", self._keep_house())),
                asyncio.create_task(self._guarded("bans", self._guarding.run_bans())),
                asyncio.create_task(self._guarded("ruleset watch", self._guarding.run_watch())),
                asyncio.create_task(self._guarded("inspector", self._guarding.run_inspector())),
                asyncio.create_task(self._guarded("names", self._guarding.run_names())),
            ]
            self._started = True
            await self._stop.wait()
            server.close()
            if self._vault_task is not None:
                tasks.append(self._vault_task)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            report(self._events, catalogue.agent_stopped(reason="asked to stop"))
        self._bans.close()
        self._nft.close()
        keys.close()
        return 0

    # -- life ---------------------------------------------------------------------------------------------------------

    def _report_boot(self) -> None:
        try:
            report_boot(self._home, self._events)
        except TidegateError as error:  # a damaged log of the boot must not keep the policy from being enforced
            report(self._events, catalogue.agent_failed(part="boot report", error=error))

    def _start_policy(self) -> None:
        try:
            self._policies.start()
        except TidegateError as error:  # without a policy the device stays reachable by what the kernel holds
            report(self._events, catalogue.policy_refused(error=error))

    async def _guarded(self, name: str, work: Awaitable[None]) -> None:
        """Run one task; whatever ends it becomes an event and the agent lives on without it."""
        try:
            await work
        except TidegateError as error:
            report(self._events, catalogue.agent_failed(part=name, error=error))
        except Exception as error:  # noqa: BLE001  # the outermost loop: an unknown failure is an event, not silence
            report(self._events, catalogue.agent_failed(part=name, error=_unexpected(error)))

    async def _settle_trial(self) -> None:
        policy = self._policies.policy
        if policy is None:
            complaint: str | None = "no policy is in force"
        else:
            section = policy.update or UpdateSection()
            complaint = await prove_health(section, running_version(self._home.storage))
            complaint = complaint or await self._sensing.prove_watching(section.deadline_s)
        if settle_trial(self._home.storage, complaint, self._events):
            sign_off(self._events)
            self._options.reboot_request.touch()

    async def _keep_house(self) -> None:
        last_s = self._clock.monotonic_s()
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            if self._policies.notice_expiry():
                self._policy_changed()
            if self._clock.monotonic_s() - last_s >= CHECKPOINT_EVERY_S:
                sign_off(self._events)
                last_s = self._clock.monotonic_s()

    def _firewall_section(self) -> FirewallSection | None:
        policy = self._policies.policy
        return policy.firewall if policy is not None else None

    def _respond_by_lockdown(self, reason: str, seconds: float) -> None:
        """Lock the device down for a time, unless it is locked already: an alert that goes on does not prolong it."""
        if load_lockdown(self._home.firewall_state) is not None:
            return
        try:
            lock_down(self._home.firewall_state, reason=reason, for_s=seconds, nft=self._nft)
        except TidegateError as error:
            report(self._events, catalogue.agent_failed(part="lockdown", error=error))
            return
        report(self._events, catalogue.firewall_lockdown(on=True, reason=reason))
        self._follow_vault()

    def _policy_changed(self) -> None:
        self._guarding.policy_changed()
        self._sensing.policy_changed()
        self._follow_vault()

    def _follow_vault(self) -> None:
        """Have the vault's part follow the policy; it is loaded where there is something for it to do."""
        marks = self._home.vault_marks
        if self._vaulting is not None:
            self._vaulting.look()
        elif self._vault_section() is not None or any(mark.exists() for mark in marks):
            from tidegate.agent.vaulting import Vaulting

            self._vaulting = Vaulting(self._home, self._keys, self._events, self._clock, section=self._vault_section)
            self._vault_task = asyncio.create_task(self._guarded("vault", self._vaulting.run()))

    def _vault_section(self) -> VaultSection | None:
        policy = self._policies.policy
        return policy.vault if policy is not None else None

    def _tampered(self, reason: str) -> None:
        if self._vaulting is not None:
            self._vaulting.notice(Trigger.TAMPER, reason)

    # -- local API ----------------------------------------------------------------------------------------------------

    async def _handle(self, request: dict[str, object]) -> dict[str, object]:
        operation = self._operations.get(str(request["op"]))
        if operation is None:
            raise RequestMalformed(f"no operation {request['op']!r}; there are {', '.join(self._operations)}")
        try:
            return await operation(request)
        except TidegateError:
            raise
        except Exception as error:  # the outermost loop: the asker is answered, and it is an event
            failure = _unexpected(error)
            report(self._events, catalogue.agent_failed(part=f"answer to {request['op']}", error=failure))
            raise failure from error

    async def _status(self, _: dict[str, object]) -> dict[str, object]:
        confirmed, candidate = self._policies.confirmed, self._policies.candidate
        return {
            "device": self._home.device_id(),
            "boot": self._home.boot_id(self._entropy),
            "version": running_version(self._home.storage),
            "policy": confirmed.policy.policy.version if confirmed else None,
            "policy_pending": candidate.verified.policy.policy.version if candidate else None,
            "firewall_digest": self._policies.effective_digest(),
            "sensor": self._sensing.state(),
            "firewall": self._guarding.state(),
            "lockdown": load_lockdown(self._home.firewall_state) is not None,
            "vault": None if self._vaulting is None else self._vaulting.state(),
            "ready": self._started and self._policies.policy is not None,
        }

    async def _apply_policy(self, request: dict[str, object]) -> dict[str, object]:
        raw = _base64_field(request, "policy")
        if self._policies.candidate is not None:
            raise AgentBusy("a policy waits for its confirmation already")
        try:
            candidate = self._policies.apply(raw)
        except TidegateError as error:
            report(self._events, catalogue.policy_refused(error=error))
            raise
        self._policy_changed()
        return {
            "policy_pending": candidate.verified.policy.policy.version,
            "confirm_within_s": round(candidate.deadline_s - self._clock.monotonic_s()),
        }

    async def _confirm_policy(self, _: dict[str, object]) -> dict[str, object]:
        verified = self._policies.confirm()
        self._policy_changed()
        return {"policy": verified.policy.policy.version}

    async def _rollback_policy(self, _: dict[str, object]) -> dict[str, object]:
        self._policies.rollback()
        self._policy_changed()
        return {"rolled_back": True}

    async def _lockdown(self, request: dict[str, object]) -> dict[str, object]:
        on, reason, seconds = request.get("on"), str(request.get("reason", "operator")), request.get("seconds")
        if not isinstance(on, bool) or not (seconds is None or isinstance(seconds, int | float)):
            raise RequestMalformed("`on` is true or false, `seconds` a number or missing")
        if on:
            lock_down(self._home.firewall_state, reason=reason, for_s=seconds, nft=self._nft)
        else:
            lift_lockdown(self._home.firewall_state, nft=self._nft)
        report(self._events, catalogue.firewall_lockdown(on=on, reason=reason))
        self._follow_vault()
        return {"locked": on}

    async def _ban(self, request: dict[str, object]) -> dict[str, object]:
        address, seconds = _text_field(request, "address"), request.get("seconds", 600)
        if not isinstance(seconds, int):
            raise RequestMalformed("`seconds` is a whole number")
        self._bans.ban(address, seconds)
        report(self._events, catalogue.firewall_banned(address=address, duration_s=seconds, reason="operator"))
        return {"banned": address, "seconds": seconds}

    async def _unban(self, request: dict[str, object]) -> dict[str, object]:
        address = _text_field(request, "address")
        self._bans.unban(address)
        report(self._events, catalogue.firewall_unbanned(address=address, reason="operator"))
        return {"unbanned": address}

    async def _install_update(self, request: dict[str, object]) -> dict[str, object]:
        bundle = Path(_text_field(request, "bundle"))
        if self._updating:
            raise AgentBusy("an update is being written already")
        policy = self._policies.policy
        tries = policy.update.tries if policy is not None and policy.update is not None else UpdateSection().tries
        self._updating = True
        try:
            # The event log has one thread: the installer runs in another one and reports nothing by itself.
            installed = await asyncio.to_thread(install_update, self._home.storage, bundle, None, tries=tries)
        except TidegateError as error:
            report(self._events, catalogue.update_refused(source=bundle.name, error=error))
            raise
        finally:
            self._updating = False
        version = installed.image.manifest.version
        report(
            self._events,
            catalogue.update_progress(version=version, step=f"written to slot {installed.slot} and verified"),
        )
        return {"slot": installed.slot, "version": version, "resumed_at": installed.resumed_at}

    async def _lock_vault(self, request: dict[str, object]) -> dict[str, object]:
        return await self._require_vaulting().lock(_text_field(request, "reason"))

    async def _unlock_vault(self, _: dict[str, object]) -> dict[str, object]:
        return self._require_vaulting().unlock()

    async def _erase_vault(self, request: dict[str, object]) -> dict[str, object]:
        return await self._require_vaulting().erase(_text_field(request, "reason"))

    def _require_vaulting(self) -> Vaulting:
        if self._vaulting is None:
            from tidegate.agent.vault_errors import VaultUnused

            raise VaultUnused("the policy in force says nothing of the vault")
        return self._vaulting

    async def _checkpoint(self, _: dict[str, object]) -> dict[str, object]:
        self._events.checkpoint()
        return {"checkpoint": True}


def report_boot(home: DeviceHome, events: EventLog) -> None:
    """Turn what the boot log has gained since the last report into events.

    The log outlives a watchdog's reset, and so does the note of how much of it was reported.
    """
    noted = home.run / "boot-reported"
    done = int(read_file_bounded(noted, limit_bytes=20)) if noted.exists() else 0
    entries = home.boot_log.read()
    for event in plan_boot_events(entries[done if done <= len(entries) else 0 :]):  # the oldest boots give way
        report(events, event)
    write_file_atomic(noted, str(len(entries)).encode())


def _unexpected(error: Exception) -> UnexpectedFailure:
    return UnexpectedFailure(f"{type(error).__name__}: {error}")


def _text_field(request: dict[str, object], name: str) -> str:
    value = request.get(name)
    if not isinstance(value, str):
        raise RequestMalformed(f"`{name}` is missing or no text")
    return value


def _base64_field(request: dict[str, object], name: str) -> bytes:
    try:
        return base64.b64decode(_text_field(request, name), validate=True)
    except ValueError as error:
        raise RequestMalformed(f"`{name}` is not base64") from error
