"""The vault under the agent: its process for applications, and what locks and erases it.

Touches: the vault's process, kernel-encrypted directories, the vault's marks and receipt. Loaded only where a policy
has a ``[vault]`` section. What was decided is on the storage before it is done: a power cut lifts no lock, no erasure.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from msgspec import structs

from tidegate.agent.errors import AgentBusy
from tidegate.agent.home import DeviceHome
from tidegate.agent.reporting import report
from tidegate.agent.vault_errors import (
    GrantUserUnknown,
    VaultEraseRefused,
    VaultRefusedThere,
    VaultUnlockRefused,
    VaultUnused,
)
from tidegate.agent.workers import Worker
from tidegate.base.clock import Clock
from tidegate.base.durable import read_file_bounded, sync_folder, translate_os_errors, write_file_atomic
from tidegate.base.errors import Fault, StorageMissing, TidegateError, registered_codes
from tidegate.crypto.signing import PublicKey
from tidegate.events import catalogue
from tidegate.events.model import Event
from tidegate.events.spool import EventLog
from tidegate.firewall.statefolder import load_lockdown
from tidegate.keys.store import KeyStore
from tidegate.vault.section import EraseTrigger, Trigger, VaultSection

LOOK_S = 0.5  # the lockdown can be switched without the agent
GRACE_S = 5.0  # of the vault's process to finish what it does and close the vault
RESTART_PAUSE_S, MAX_PAUSE_S = 2.0, 30.0  # as for the inspector
ERASE_PAUSE_S = 60.0  # until an erasure that failed is tried again
SETTLE_S = 300.0  # what an operator waits for: an erasure is a handful of writes for each item
MAX_MARK_BYTES = 4096
MAX_REASON = 256
VAULT_KEY = "vault"
OPERATOR = "operator"


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Why the vault is locked, or is being erased."""

    trigger: str
    reason: str


class Vaulting:
    """Keeps the vault's process running while it may, and locks and erases as the policy says."""

    def __init__(
        self,
        home: DeviceHome,
        keys: KeyStore,
        events: EventLog,
        clock: Clock,
        *,
        section: Callable[[], VaultSection | None],
    ) -> None:
        self._home, self._keys, self._events, self._clock, self._section = home, keys, events, clock, section
        self._locked_path, self._erasing_path = home.vault_marks
        self._locked, self._erasing = _read_mark(self._locked_path), _read_mark(self._erasing_path)
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._must_lock = self._locked is not None  # a restart locks what somebody unlocked meanwhile
        self._must_tell = False
        self._failed: list[str] = []
        self._in_lockdown = False
        self._failed_at_s = -ERASE_PAUSE_S
        self._failure: TidegateError | None = None
        self._worker: Worker | None = None
        self._serving: asyncio.Task[None] | None = None
        self._served: bytes | None = None
        self._vault, self._told = "device", ""
        self._pause_s, self._not_before_s = RESTART_PAUSE_S, 0.0

    def state(self) -> dict[str, object]:
        """Return what runs, and why it does not."""
        worker = self._worker
        return {
            "process": None if worker is None else worker.pid,
            "serving": worker is not None and worker.is_ready,
            "locked": None if self._locked is None else self._locked.trigger,
            "erased": self._home.erase_receipt.exists() and self._erasing is None and not self._has_vault(),
        }

    def look(self) -> None:
        """Have the vault follow the policy and the lockdown as they are now, at once."""
        self._wake.set()

    def notice(self, trigger: Trigger, reason: str) -> None:
        """Lock and erase as the policy says: decided, durable, when this returns; done soon after."""
        section = self._section()
        if section is None:
            return
        mark = Mark(trigger=trigger.value, reason=reason[:MAX_REASON])
        if section.erases_on(EraseTrigger(trigger.value)) and self._is_left():
            self._decide_erase(mark)
        if section.locks_on(trigger) and (section.lock or section.grants):
            self._decide_lock(mark)

    # -- what an operator asks for ------------------------------------------------------------------------------------

    async def lock(self, reason: str) -> dict[str, object]:
        """Lock now, until ``unlock``."""
        self._require_section()
        self._decide_lock(Mark(trigger=OPERATOR, reason=reason[:MAX_REASON]))
        await self._settle()
        return {"locked": True}

    def unlock(self) -> dict[str, object]:
        """Let applications have the vault again; raise ``agent.vault.unlock-refused`` while what locked it goes on.

        Directories stay locked: their keys are not the agent's (``tidegate vault``).
        """
        section = self._require_section()
        if self._erasing is not None:
            raise VaultUnlockRefused("the vault is being erased")
        if section.locks_on(Trigger.LOCKDOWN) and self._is_in_lockdown():
            raise VaultUnlockRefused("the device is locked down")
        if self._locked is not None:
            self._free("asked for")
        return {"locked": False}

    async def erase(self, reason: str) -> dict[str, object]:
        """Erase the vault for ever, and return the receipt's place; raise ``agent.vault.erase-refused``."""
        if not self._require_section().erases_on(EraseTrigger.END_OF_LIFE):
            raise VaultEraseRefused("the policy in force does not let an operator erase the vault")
        if self._erasing is None and not self._is_left():
            raise VaultEraseRefused("there is no vault")
        self._failed_at_s = -ERASE_PAUSE_S
        self._decide_erase(Mark(trigger=EraseTrigger.END_OF_LIFE.value, reason=reason[:MAX_REASON]))
        await self._settle()
        if self._failure is not None:
            raise self._failure
        return {"erased": True, "receipt": str(self._home.erase_receipt)}

    # -- the loop -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Do what was decided, and keep the process running in between."""
        try:
            while True:
                self._wake.clear()
                waiting, self._waiting = self._waiting, []
                try:
                    self._notice_lockdown()
                    if self._must_lock or self._may_erase():
                        await self._act()
                    await self._follow_policy()
                except TidegateError as error:  # nobody else locks: this goes on
                    report(self._events, catalogue.agent_failed(part="vault", error=error))
                for one in waiting:
                    if not one.done():
                        one.set_result(None)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._wake.wait()
        finally:
            await self._stop_serving()

    async def _settle(self) -> None:
        """Return when the loop has done what is decided by now."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(done)
        self._wake.set()
        try:
            async with asyncio.timeout(SETTLE_S):
                await done
        except TimeoutError as error:
            raise AgentBusy("the vault's part of the agent is still at it") from error

    def _notice_lockdown(self) -> None:
        is_on = self._is_in_lockdown()
        if is_on and not self._in_lockdown:
            self.notice(Trigger.LOCKDOWN, "the firewall's lockdown")
        elif not is_on and self._locked is not None and self._locked.trigger == Trigger.LOCKDOWN.value:
            self._free("the lockdown was lifted")
        self._in_lockdown = is_on

    def _is_in_lockdown(self) -> bool:
        try:
            return load_lockdown(self._home.firewall_state) is not None
        except TidegateError:  # a mark that cannot be read still locks
            return True

    async def _act(self) -> None:
        """Take the keys out of RAM and the kernel, then erase what is to be erased."""
        section, must_tell = self._section(), self._must_tell
        self._must_lock = self._must_tell = False
        stopping = asyncio.create_task(self._stop_serving())
        failed = await asyncio.to_thread(_lock_directories, section.lock) if section is not None else []
        await stopping
        mark = self._locked
        if mark is not None and (must_tell or failed != self._failed):
            event = catalogue.vault_locked(on=True, trigger=mark.trigger, reason=mark.reason, failed=failed)
            report(self._events, event)
        self._failed = failed
        if self._may_erase() and self._erasing is not None:
            await self._erase(self._erasing)

    def _may_erase(self) -> bool:
        return self._erasing is not None and self._clock.monotonic_s() - self._failed_at_s >= ERASE_PAUSE_S

    async def _erase(self, mark: Mark) -> None:
        try:
            event = await asyncio.to_thread(_erase, self._home, self._keys, mark, self._clock.now_s())
        except TidegateError as error:  # tried again until nothing fails; the mark keeps the vault closed until then
            told, self._failure, self._failed_at_s = self._failure, error, self._clock.monotonic_s()
            if told is None or told.message != error.message:  # what fails again and again is told once
                report(self._events, catalogue.agent_failed(part="erasure of the vault", error=error))
            return
        report(self._events, event)
        _remove_mark(self._erasing_path)
        self._erasing = self._failure = None

    # -- the process --------------------------------------------------------------------------------------------------

    async def _follow_policy(self) -> None:
        """Start, stop or restart the process so that it is what the policy and the marks ask for."""
        wanted = self._wanted()
        if self._serving is not None and (self._serving.done() or wanted != self._served):
            is_over = self._serving.done()
            await self._stop_serving()
            if is_over:
                self._not_before_s = self._clock.monotonic_s() + self._pause_s
                self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        if wanted is not None and self._serving is None and self._clock.monotonic_s() >= self._not_before_s:
            self._served = wanted
            self._serving = asyncio.create_task(self._serve(wanted))
            self._serving.add_done_callback(lambda _: self._wake.set())

    def _wanted(self) -> bytes | None:
        """Return the configuration that the process has to run with, if it has to."""
        section = self._section()
        if section is None or not section.grants or self._locked is not None or self._erasing is not None:
            return None
        told = structs.replace(section, lock=(), lock_on=None, erase_on=())  # what is not its own restarts it not
        return msgspec.json.encode(told) if self._has_vault() else None

    async def _serve(self, config: bytes) -> None:
        places = (self._home.storage.folder, self._home.data, self._home.run)
        arguments = [str(word) for pair in zip(("--storage", "--data", "--run"), places, strict=True) for word in pair]
        worker = self._worker = Worker("the vault's process", "tidegate.agent.vaultd", arguments, grace_s=GRACE_S)
        began_s = self._clock.monotonic_s()
        try:
            await worker.run(config.decode(), self._take)
        except TidegateError as error:
            if self._clock.monotonic_s() - began_s > MAX_PAUSE_S:
                self._pause_s, self._told = RESTART_PAUSE_S, ""
            if self._told != error.message:  # what fails again and again is told once
                report(self._events, catalogue.agent_failed(part="vault's process", error=error))
            self._told = error.message
        finally:
            self._worker = None

    async def _stop_serving(self) -> None:
        serving, self._serving = self._serving, None
        if serving is not None:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)

    def _take(self, line: Mapping[str, object]) -> None:
        kind = line.get("event_type")
        if kind == "opened":
            self._vault = str(line.get("vault"))
            warnings = line.get("warnings")
            said = [str(one) for one in warnings] if isinstance(warnings, list) else []
            report(self._events, catalogue.vault_opened(vault=self._vault, user="tidegate", warnings=said))
        elif kind == "unknown-user":
            name = str(line.get("grant"))
            error = GrantUserUnknown(f"the user of {name} is not on this device", grant=name)
            report(self._events, catalogue.agent_failed(part="grant of the vault", error=error))
        elif kind == "refused":
            self._take_refusal(line)

    def _take_refusal(self, line: Mapping[str, object]) -> None:
        from tidegate.vault import errors as _errors  # noqa: F401  # the codes of what is seldom refused

        code, operation = str(line.get("code")), str(line.get("operation"))
        if operation == "open" and code == self._told:
            return
        left_out = line.get("left_out")
        more = f", and {left_out} refusals more" if isinstance(left_out, int) and left_out > 0 else ""
        refusal = registered_codes().get(code, VaultRefusedThere)(f"{operation} refused: {code}{more}")
        user = str(line.get("user"))
        report(self._events, catalogue.vault_refused(vault=self._vault, user=user, error=refusal))

    # -- decisions ----------------------------------------------------------------------------------------------------

    def _decide_lock(self, mark: Mark) -> None:
        """Lock again whatever is locked already; the end of a lockdown ends no other cause's lock."""
        by = None if self._locked is None else self._locked.trigger
        if by is None or (by == Trigger.LOCKDOWN.value and mark.trigger != by):
            self._locked, self._must_tell = mark, True
            self._write_mark(self._locked_path, mark)
        self._must_lock = True
        self._wake.set()

    def _decide_erase(self, mark: Mark) -> None:
        if self._erasing is None:
            self._erasing, self._failure = mark, None
            self._write_mark(self._erasing_path, mark)
        self._wake.set()

    def _free(self, reason: str) -> None:
        locked, self._locked, self._must_lock, self._must_tell = self._locked, None, False, False
        _remove_mark(self._locked_path)
        self._wake.set()
        if locked is not None:
            report(self._events, catalogue.vault_locked(on=False, trigger=locked.trigger, reason=reason))

    def _write_mark(self, path: Path, mark: Mark) -> None:
        """Write it down; a full storage must not keep the vault open until then."""
        try:
            write_file_atomic(path, msgspec.json.encode(mark), mode=0o600)
        except Fault as error:
            report(self._events, catalogue.agent_failed(part="mark of the vault", error=error))

    def _require_section(self) -> VaultSection:
        section = self._section()
        if section is None:
            raise VaultUnused("the policy in force says nothing of the vault")
        return section

    def _has_vault(self) -> bool:
        return (self._home.vault / "vault.cbor").exists()

    def _is_left(self) -> bool:
        """Return whether there is anything to erase, a file or the key: who removes the record disarms nothing.

        What cannot be looked at counts as being there.
        """
        try:
            with translate_os_errors(self._home.vault):
                if any(path.name != "lock" for path in self._home.vault.iterdir()):
                    return True
        except StorageMissing:
            pass
        except Fault:
            return True
        try:
            return any(key.name == VAULT_KEY for key in self._keys.list_keys())
        except TidegateError:
            return True


def _lock_directories(directories: tuple[str, ...]) -> list[str]:
    """Lock each and return those that are not, with the code of the reason."""
    if not directories:
        return []
    from tidegate.vault.fscrypt import lock_directories  # in an emergency only: not in every agent's memory

    outcomes = lock_directories(Path(one) for one in directories)
    return [f"{one.directory}: {one.error.code}" for one in outcomes if one.error is not None]


class _EventSigner:
    """The device's event key, asked for when the receipt is signed: if it is damaged, erasing does not wait for it."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    @property
    def public_key(self) -> PublicKey:
        return self._keys.signer("events").public_key

    def sign(self, message: bytes) -> bytes:
        return self._keys.signer("events").sign(message)


def _erase(home: DeviceHome, keys: KeyStore, mark: Mark, now_s: float) -> Event:
    """Erase, keep the receipt, return the event that says so."""
    from tidegate.vault.erase import erase_vault
    from tidegate.vault.errors import EraseIncomplete

    reason = f"{mark.trigger}: {mark.reason}"
    try:
        receipt = erase_vault(home.vault, [(keys, VAULT_KEY)], reason=reason, signer=_EventSigner(keys), now_s=now_s)
    except EraseIncomplete as error:
        _keep_unsigned(home, str(error.fields["receipt"]).encode())
        raise
    signed, files = receipt.signed or b"", receipt.document["files_erased"]
    write_file_atomic(home.erase_receipt, signed, mode=0o600)
    return catalogue.vault_erased(
        vault=str(receipt.document["vault"] or "unknown"),
        trigger=mark.trigger,
        reason=mark.reason,
        files=files if isinstance(files, int) else 0,
        receipt=hashlib.sha256(signed).hexdigest(),
    )


def _keep_unsigned(home: DeviceHome, document: bytes) -> None:
    """Keep what the first attempt did: the next one finds no record, and signs that."""
    path = home.erase_receipt.with_name("erase-receipt.unsigned.json")
    if not path.exists() or msgspec.json.decode(document)["record"] != "missing":
        with contextlib.suppress(Fault):  # of a full storage the erasure itself will tell
            write_file_atomic(path, document, mode=0o600)


def _read_mark(path: Path) -> Mark | None:
    """Return the mark; one that cannot be read counts all the same."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(read_file_bounded(path, limit_bytes=MAX_MARK_BYTES), type=Mark)
    except (msgspec.DecodeError, TidegateError):
        return Mark(trigger=OPERATOR, reason="unknown")


def _remove_mark(path: Path) -> None:
    with translate_os_errors(path):
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
