"""The firewall under the agent: bans that last, the inspector, DNS names, and what others do to our tables.

Touches: nftables' notices, the ban journal, worker processes, iptables' queue rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from msgspec.structs import replace

from tidegate.agent.reporting import report
from tidegate.agent.workers import Worker
from tidegate.base.clock import Clock
from tidegate.base.errors import TidegateError
from tidegate.events import catalogue
from tidegate.events.spool import EventLog
from tidegate.firewall.bans import Bans
from tidegate.firewall.errors import BansLost, BanTableMissing, NamesTrouble
from tidegate.firewall.fields import FieldMode, FieldRules, encode_field_config, plan_fields
from tidegate.firewall.inspection import QUEUE
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection, Mode, Tamper

if TYPE_CHECKING:
    from tidegate.firewall.watch import RulesetWatch, Tampering

INSPECTOR_BYTES = 4 << 20  # some 2,300 connections at a time (docs/firewall-fields.md)
RESTART_PAUSE_S = 2.0
# What fails again and again is tried, and told, ever more seldom: each try is a process and a record on the flash.
MAX_PAUSE_S = 30.0
SYNC_S = 5.0  # how much of the ban journal a power cut may cost
LOOK_S = 0.5
# Two programs that each put their own rules back would fill the log and the processor: after so many in a minute it
# is only reported.
MAX_RESTORES, RESTORES_WITHIN_S = 5, 60.0
Plan = TypeVar("Plan")
MAX_DENIED_PER_S = 20  # events of refused messages; the inspector counts them all


class Guarding:
    """Keeps what the policy's ``[firewall]`` section needs beside the ruleset itself."""

    def __init__(
        self,
        events: EventLog,
        bans: Bans,
        nft: Nft,
        clock: Clock,
        *,
        section: Callable[[], FirewallSection | None],
        state_dir: Path,
        tampered: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._tampered = tampered
        self._events, self._bans, self._nft, self._clock = events, bans, nft, clock
        self._section, self._state_dir = section, state_dir
        self._changed = {name: asyncio.Event() for name in ("inspector", "resolver of names", "bans")}
        self._inspector: Worker | None = None
        self._restores: list[float] = []
        self._owes = False  # whether our tables still have to be put back
        self._linked: object = None  # the network devices for which layer-2 rules were looked after last
        self._denied_at: tuple[int, int] = (0, 0)

    def state(self) -> dict[str, object]:
        """Return whether the inspector is needed and runs."""
        inspector = self._inspector
        return {
            "inspector": None if inspector is None else inspector.pid,
            "inspecting": inspector is not None and inspector.is_ready,
        }

    def policy_changed(self) -> None:
        """Have bans, inspector, names and layer-2 rules follow the policy that is in force now, soon."""
        self._linked = None
        for event in self._changed.values():
            event.set()

    async def run_bans(self) -> None:
        """Put the bans of before back in force, then keep the journal on the storage."""
        from tidegate.firewall.banrestore import restore_bans

        try:
            done = await asyncio.to_thread(restore_bans, self._state_dir, self._clock.now_s())
            if done.corrupt or done.full:
                raise BansLost(f"{done.corrupt} damaged records, {done.full} bans without room")
        except TidegateError as error:
            report(self._events, catalogue.agent_failed(part="bans of before", error=error))
        changed, told = self._changed["bans"], ""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SYNC_S):
                    await changed.wait()
            try:
                await self._keep_bans(lift=changed.is_set())
                told = ""
            except TidegateError as error:
                if error.code != told:  # a storage that fails does so every few seconds
                    report(self._events, catalogue.agent_failed(part="journal of bans", error=error))
                told = error.code

    async def _keep_bans(self, *, lift: bool) -> None:
        """Lift what the policy protects since it changed, if it did, and have the journal on the storage."""
        if lift:
            self._changed["bans"].clear()
            with contextlib.suppress(BanTableMissing):  # the policy has no firewall
                await asyncio.to_thread(self._bans.lift_protected)  # 0.7 s for 100,000 bans
        store, complaint = self._bans.store, self._bans.complaint
        if store is not None:
            await asyncio.to_thread(store.sync)
        if complaint is not None:
            self._bans.complaint = None
            raise complaint

    async def run_watch(self) -> None:
        """Report who else changes our tables and, by policy, put them back; load layer-2 rules of late interfaces."""
        from tidegate.firewall.statefolder import load_expected_digest
        from tidegate.firewall.watch import RulesetWatch

        watch = RulesetWatch(self._nft, lambda: load_expected_digest(self._state_dir))
        pause_s = RESTART_PAUSE_S
        try:
            while True:
                try:
                    self._answer(await self._next(watch), watch)
                    self._load_late_links()
                    pause_s = RESTART_PAUSE_S
                except TidegateError as error:  # nobody else watches: this goes on
                    report(self._events, catalogue.agent_failed(part="ruleset watch", error=error))
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, MAX_PAUSE_S)
        finally:
            watch.close()

    def _load_late_links(self) -> None:
        """Load the layer-2 rules of network devices that are new, in the few moments when some are.

        Asking the kernel what it holds takes 0.15 s for a policy of a thousand services, too much for every look.
        """
        section = self._section()
        if section is None or not section.link:
            return
        from tidegate.firewall.commit import load_missing_links
        from tidegate.firewall.errors import ChangePending

        devices = socket.if_nameindex()
        if devices == self._linked:
            return
        with contextlib.suppress(ChangePending):  # a policy is being applied: it loads them itself, or we do next time
            load_missing_links(self._state_dir, nft=self._nft)
            self._linked = devices

    async def run_inspector(self) -> None:
        """Keep an inspector running while the policy has content rules; one that dies is reported and started again."""
        await self._keep("inspector", self._rules_in_use, self._inspect)

    async def run_names(self) -> None:
        """Keep the sets of DNS names filled while the policy has names."""
        await self._keep("resolver of names", self._names_in_use, self._resolve)

    async def _keep(self, part: str, plan: Callable[[], Plan], work: Callable[[Plan], Awaitable[None]]) -> None:
        """Have ``work`` done with what ``plan`` says, begun anew when that changes or when the work ends."""
        changed, pause_s = self._changed[part], RESTART_PAUSE_S
        while True:
            changed.clear()
            wanted, began_s = plan(), self._clock.monotonic_s()
            working = [asyncio.create_task(_as_coroutine(work(wanted)))] if wanted else []
            try:
                while plan() == wanted:
                    waiting = asyncio.create_task(changed.wait())
                    await asyncio.wait([waiting, *working], return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    for task in working:
                        if task.done():
                            task.result()
                    changed.clear()
            except TidegateError as error:
                report(self._events, catalogue.agent_failed(part=part, error=error))
                lasted = self._clock.monotonic_s() - began_s > MAX_PAUSE_S
                pause_s = RESTART_PAUSE_S if lasted else pause_s
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await changed.wait()
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            finally:
                for task in working:
                    task.cancel()
                await asyncio.gather(*working, return_exceptions=True)

    async def _inspect(self, rules: Mapping[str, FieldRules]) -> None:
        from tidegate.firewall.xtqueue import install_queue_rules, queue_support

        support = await asyncio.to_thread(queue_support, self._nft)
        if support.xt or not support.nft:  # also where nft could: a ruleset that was applied has no queue of its own
            await asyncio.to_thread(install_queue_rules, QUEUE)
        self._inspector = Worker("the inspector", "tidegate.ids.inline", ("--queue", str(QUEUE)))
        try:
            config = encode_field_config(plan_fields(rules), memory_bytes=INSPECTOR_BYTES)
            await self._inspector.run(config, self._take_denial)
        finally:
            self._inspector = None

    def _rules_in_use(self) -> dict[str, FieldRules]:
        """Return the content rules of the policy in force; empty when no rule of it uses any."""
        section = self._section()
        if section is None:
            return {}
        used = [rule.fields for rule in section.services.values()]
        used += [rule.fields for rule in section.egress.services.values()]
        used += [rule.fields for rule in section.routes.values()]
        if not any(used):
            return {}
        if section.mode is Mode.OBSERVE:  # then nothing is refused, whatever its rule says
            return {name: replace(rule, mode=FieldMode.OBSERVE) for name, rule in section.fields.items()}
        return dict(section.fields)

    def _names_in_use(self) -> tuple[str, ...]:
        from tidegate.firewall.model import plan_ruleset

        section = self._section()
        return plan_ruleset(section).dns_names() if section is not None else ()

    async def _resolve(self, names: tuple[str, ...]) -> None:
        from tidegate.firewall.nameset import encode_names_config

        worker = Worker("the resolver of names", "tidegate.firewall.names")
        await worker.run(encode_names_config(names), self._take_names)

    def _take_names(self, line: Mapping[str, object]) -> None:
        if line.get("event_type") in ("unresolved", "unwritten"):
            trouble = NamesTrouble(f"{line.get('name')}: {line.get('message', 'no resolver answers')}")
            report(self._events, catalogue.agent_failed(part="resolver of names", error=trouble))
        if line.get("event_type") != "names":
            return
        addresses, gone = line.get("addresses"), line.get("gone")
        report(
            self._events,
            catalogue.firewall_names_changed(
                name=str(line.get("name")),
                addresses=[str(one) for one in addresses] if isinstance(addresses, list) else [],
                gone=[str(one) for one in gone] if isinstance(gone, list) else [],
            ),
        )

    def _take_denial(self, line: Mapping[str, object]) -> None:
        """Make an event of a refused message, up to so many a second: a flood of them is not to fill the log."""
        metadata = line.get("metadata")
        if line.get("event_type") not in ("drop", "alert") or not isinstance(metadata, Mapping):
            return
        second = int(self._clock.monotonic_s())
        count = self._denied_at[1] + 1 if self._denied_at[0] == second else 1
        self._denied_at = (second, count)
        if count > MAX_DENIED_PER_S:
            return
        port = line.get("dest_port")
        report(
            self._events,
            catalogue.firewall_field_refused(
                source=str(line.get("src_ip")),
                destination=str(line.get("dest_ip")),
                port=port if isinstance(port, int) else None,
                rule=f"fields.{metadata.get('rule')}",
                what=str(metadata.get("what") or metadata.get("detector")),
                passed=line.get("event_type") == "alert",
            ),
        )

    async def _next(self, watch: RulesetWatch) -> list[Tampering]:
        """Return what the watch has to tell, after a moment at most."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(watch.fileno(), readable.set)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):  # wait_for could lose a cancellation that comes with the event
                    await readable.wait()
        finally:
            loop.remove_reader(watch.fileno())
        return watch.poll()

    def _answer(self, found: list[Tampering], watch: RulesetWatch) -> None:
        """Put our tables back where the policy says so, and report; what may not be put back yet is owed."""
        section = self._section()
        wanted = section is not None and section.tamper is Tamper.RESTORE
        self._owes = wanted and (self._owes or bool(found))
        restored = self._owes and self._may_restore() and self._restore()
        if restored:
            self._owes = False
            watch.expect_anew()
        for tampering in found:
            report(
                self._events,
                catalogue.firewall_tampered(
                    what=tampering.what,
                    program=tampering.program,
                    pid=tampering.pid,
                    digest_before=tampering.digest_before,
                    digest_after=tampering.digest_after,
                    restored=restored,
                ),
            )
            self._tampered(f"the firewall was changed: {tampering.what}")

    def _restore(self) -> bool:
        from tidegate.firewall.watch import undo

        try:
            return undo(self._state_dir, self._nft) is not None
        except TidegateError as error:
            report(self._events, catalogue.agent_failed(part="restoring the firewall", error=error))
            return False

    def _may_restore(self) -> bool:
        now_s = self._clock.monotonic_s()
        self._restores = [at for at in self._restores if now_s - at < RESTORES_WITHIN_S]
        if len(self._restores) >= MAX_RESTORES:
            return False
        self._restores.append(now_s)
        return True


async def _as_coroutine(work: Awaitable[None]) -> None:
    await work
