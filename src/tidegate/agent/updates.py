"""Updates on a device: storage, slot states and journal put together for the installer, every outcome an event.

Touches: the device's storage; one writer at a time by a lock on the data image.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.agent.reporting import report
from tidegate.base.blockdev import FileBlockDevice
from tidegate.base.durable import translate_os_errors
from tidegate.base.errors import TidegateError
from tidegate.boot.control import RecordBootControl
from tidegate.boot.slots import SlotState
from tidegate.boot.storage import JOURNAL_OFFSET, DeviceStorage
from tidegate.events import catalogue
from tidegate.events.spool import EventLog
from tidegate.update.errors import UpdateBusy

if TYPE_CHECKING:  # at run time where an update is written: seldom, and not in every agent's memory until then
    from tidegate.update.installer import Installed, Observer, Target


@contextmanager
def opened_target(storage: DeviceStorage) -> Iterator[tuple[Target, RecordBootControl]]:
    """Open a device's storage for an update; raise ``update.busy`` while another one is being written."""
    from tidegate.image.manifest import Version
    from tidegate.image.verify import AcceptanceRule
    from tidegate.update.installer import Target
    from tidegate.update.journal import UpdateJournal

    with storage.opened(writable=True) as parts, _locked(storage.data_path):
        control = RecordBootControl(parts.state)
        state, rule = control.state(), storage.maker_rule()
        running = state.slots[state.started].version if state.started else ""
        yield (
            Target(
                slots=dict(parts.slots),
                control=control,
                journal=UpdateJournal(parts.state, JOURNAL_OFFSET),
                rule=AcceptanceRule(trust=rule.trust, hardware=rule.hardware, security_floor=state.security_floor),
                running=Version.parse(running) if running else None,
            ),
            control,
        )


def install_update(
    storage: DeviceStorage, bundle: Path, events: EventLog | None, *, tries: int, observe: Observer = lambda *_: None
) -> Installed:
    """Install ``bundle`` into the idle slot and have the next boot try it; every outcome becomes an event.

    Raises what ``install_bundle`` raises; the running system is untouched then.
    """
    from tidegate.update.installer import install_bundle

    try:
        with opened_target(storage) as (target, control), FileBlockDevice(bundle) as source:
            installed = install_bundle(source, target, observe)
            control.activate(installed.slot, tries=tries)
    except TidegateError as error:
        if events is not None:
            report(events, catalogue.update_refused(source=bundle.name, error=error))
        raise
    if events is not None:
        version = installed.image.manifest.version
        report(events, catalogue.update_progress(version=version, step=f"written to slot {installed.slot}, verified"))
    return installed


def settle_trial(storage: DeviceStorage, complaint: str | None, events: EventLog) -> bool:
    """Confirm the running slot if it is on trial and there is no ``complaint``; reject it if there is one.

    Returns whether the device has to reboot to leave a rejected system.
    """
    with storage.opened(writable=True) as parts:
        control = RecordBootControl(parts.state)
        state = control.state()
        name = state.started
        if name is None or state.slots[name].state is not SlotState.TRIAL:
            return False
        version = state.slots[name].version
        if complaint is None:
            control.confirm(name)
            report(events, catalogue.update_confirmed(version=version, slot=name))
            return False
        control.reject(name)
        previous = state.slots[state.preferred].version
        report(events, catalogue.update_rolled_back(version=version, to_version=previous, reason=complaint))
        return True


def running_version(storage: DeviceStorage) -> str:
    """Return the version in the slot that was started last."""
    with storage.opened(writable=False) as parts:
        state = RecordBootControl(parts.state).state()
    return state.slots[state.started].version if state.started else ""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with translate_os_errors(path), path.open("rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UpdateBusy(f"{path} is locked by another update", path=str(path)) from error
        yield
