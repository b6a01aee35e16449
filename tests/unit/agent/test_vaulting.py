"""The agent's part of the vault without its process: decisions outlive a restart, an erasure that fails goes on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import shutil

import msgspec
import pytest

from tidegate.agent import vaulting
from tidegate.agent.vault_errors import VaultEraseRefused, VaultUnlockRefused, VaultUnused
from tidegate.agent.vaulting import Vaulting
from tidegate.base.clock import SystemClock
from tidegate.base.errors import StorageFailed, StorageFull
from tidegate.events import catalogue
from tidegate.vault.errors import EraseIncomplete
from tidegate.vault.section import Trigger, VaultSection


class RecordedEvents:
    def __init__(self) -> None:
        self.events: list = []

    def append(self, event) -> None:
        self.events.append(event)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


class Stage:
    """A ``Vaulting`` on a device's real home; nobody has a grant, so there is no process."""

    def __init__(self, device, **section) -> None:
        self.home = dataclasses.replace(device.home)
        self.keys = device.home.open_keys()
        self.events = RecordedEvents()
        self.section = msgspec.convert({"lock": ["/nowhere"], **section}, VaultSection)

    def make(self) -> Vaulting:
        return Vaulting(self.home, self.keys, self.events, SystemClock(), section=lambda: self.section)

    def play(self, scene) -> Vaulting:
        async def run() -> Vaulting:
            made = self.make()
            task = asyncio.create_task(made.run())
            try:
                async with asyncio.timeout(15):
                    await scene(made)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            return made

        return asyncio.run(run())


async def until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.fixture
def stage(device):
    made = []

    def begin(**section) -> Stage:
        made.append(Stage(device, **section))
        return made[-1]

    yield begin
    for one in made:
        one.keys.close()


def test_a_lock_is_written_down_before_it_is_done(stage):
    stage = stage()
    stage.make().notice(Trigger.TAMPER, "x")
    assert stage.home.vault_marks[0].exists()
    assert stage.make().state()["locked"] == "tamper"
    assert stage.events.kinds() == [], "nothing was done yet"


def test_a_directory_that_cannot_be_locked_is_named_once(stage):
    stage = stage()

    async def scene(made: Vaulting) -> None:
        for _ in range(3):
            made.notice(Trigger.TAMPER, "x")
            await made._settle()

    stage.play(scene)
    (event,) = stage.events.events
    assert (event.kind, event.data["failed"]) == ("vault.locked", ["/nowhere: base.storage.missing"])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", bytes(5000)], ids=["empty", "torn", "other", "large"])
def test_a_damaged_mark_counts(stage, content):
    stage = stage()
    stage.home.vault_marks[0].write_bytes(content)
    assert stage.make().state()["locked"] == "operator"


def test_a_tampered_lock_is_not_lifted_with_a_lockdown_but_a_lockdowns_is_taken_over(stage):
    stage = stage()
    made = stage.make()
    made.notice(Trigger.LOCKDOWN, "x")
    assert made.state()["locked"] == "lockdown"
    made.notice(Trigger.TAMPER, "x")
    assert made.state()["locked"] == "tamper"
    made.notice(Trigger.LOCKDOWN, "x")
    assert made.state()["locked"] == "tamper"


def test_a_full_storage_keeps_nothing_open(stage, monkeypatch):
    def refuse(*_, **__) -> None:
        raise StorageFull("no room")

    monkeypatch.setattr(vaulting, "write_file_atomic", refuse)
    stage = stage()
    made = stage.make()
    made.notice(Trigger.TAMPER, "x")
    assert made.state()["locked"] == "tamper"
    assert [event.code for event in stage.events.events] == ["base.storage.full"]


def test_an_erasure_that_fails_is_told_keeps_the_vault_closed_and_is_tried_again(stage, monkeypatch):
    stage, fails = stage(erase_on=["end-of-life"]), [True]

    def erase(*_) -> object:
        if fails[0]:
            raise EraseIncomplete("a key still works", failures=1)
        return catalogue.vault_erased(vault="v", trigger="t", reason="r", files=1, receipt="")

    monkeypatch.setattr(vaulting, "_erase", erase)
    monkeypatch.setattr(vaulting, "ERASE_PAUSE_S", 0.1)

    async def scene(made: Vaulting) -> None:
        with pytest.raises(EraseIncomplete):
            await made.erase("sold")
        with pytest.raises(VaultUnlockRefused):
            made.unlock()
        assert stage.home.vault_marks[1].exists()
        fails[0] = False
        await until(lambda: "vault.erased" in stage.events.kinds())
        await until(lambda: not stage.home.vault_marks[1].exists())

    stage.play(scene)
    assert "agent.failed" in stage.events.kinds()


def key_names(stage) -> set[str]:
    return {key.name for key in stage.keys.list_keys()}


def remove_folder(home) -> None:
    shutil.rmtree(home.vault)


def remove_record(home) -> None:
    (home.vault / "vault.cbor").unlink()


def leave_the_key_alone(home) -> None:
    for path in list(home.vault.rglob("*")):
        if path.is_file() and path.name != "lock":
            path.unlink()
    for name in ("items", "new", "table"):
        (home.vault / name).rmdir()


@pytest.mark.parametrize("harm", [remove_record, remove_folder, leave_the_key_alone])
def test_who_removes_the_record_disarms_nothing(stage, harm):
    stage = stage(erase_on=["tamper"])
    harm(stage.home)

    async def scene(made: Vaulting) -> None:
        made.notice(Trigger.TAMPER, "x")
        assert stage.home.vault_marks[1].exists()
        await until(lambda: "vault.erased" in stage.events.kinds())
        await until(lambda: not stage.home.vault_marks[1].exists())
        made.notice(Trigger.TAMPER, "again")
        assert not stage.home.vault_marks[1].exists(), "nothing is left to erase"

    stage.play(scene)
    assert "vault" not in key_names(stage)
    assert stage.home.erase_receipt.exists()
    assert not stage.home.vault.exists() or [path.name for path in stage.home.vault.iterdir()] == ["lock"]


def test_a_damaged_event_key_does_not_keep_the_vault(stage, monkeypatch):
    stage, damaged = stage(erase_on=["tamper"]), [True]
    real = stage.keys.signer

    def signer(name: str):
        if damaged[0]:
            raise StorageFailed("the key's file is damaged")
        return real(name)

    monkeypatch.setattr(stage.keys, "signer", signer)
    monkeypatch.setattr(vaulting, "ERASE_PAUSE_S", 0.1)
    unsigned = stage.home.erase_receipt.with_name("erase-receipt.unsigned.json")

    async def scene(made: Vaulting) -> None:
        made.notice(Trigger.TAMPER, "x")
        await until(unsigned.exists)
        await until(lambda: "agent.failed" in stage.events.kinds())
        assert "vault" not in key_names(stage)
        assert not (stage.home.vault / "vault.cbor").exists()
        assert stage.home.vault_marks[1].exists()
        await asyncio.sleep(0.3)
        damaged[0] = False
        await until(lambda: "vault.erased" in stage.events.kinds())

    stage.play(scene)
    assert stage.events.kinds().count("agent.failed") <= 2, "what fails alike is told once"
    document = msgspec.json.decode(unsigned.read_bytes())
    assert (document["record"], document["slots"][0]["state"]) == ("read", "destroyed")
    assert stage.home.erase_receipt.exists()


def test_an_erasure_goes_on_after_the_record_is_gone(stage, monkeypatch):
    stage = stage(erase_on=["tamper"])
    strange = stage.home.vault / "items" / "strange"
    strange.mkdir()
    (strange / "file").touch()
    monkeypatch.setattr(vaulting, "ERASE_PAUSE_S", 0.1)

    async def scene(made: Vaulting) -> None:
        made.notice(Trigger.TAMPER, "x")
        await until(lambda: "agent.failed" in stage.events.kinds())
        assert not (stage.home.vault / "vault.cbor").exists()
        assert stage.home.vault_marks[1].exists()
        assert not made.state()["erased"]
        shutil.rmtree(strange)
        await until(lambda: "vault.erased" in stage.events.kinds())

    stage.play(scene)
    assert not stage.home.vault_marks[1].exists()


def test_nothing_is_erased_that_the_policy_does_not_say(stage):
    stage = stage(erase_on=["tamper"])

    async def scene(made: Vaulting) -> None:
        made.notice(Trigger.LOCKDOWN, "x")
        with pytest.raises(VaultEraseRefused):
            await made.erase("sold")
        await made._settle()

    stage.play(scene)
    assert (stage.home.vault / "vault.cbor").exists()
    assert not stage.home.vault_marks[1].exists()


def test_a_policy_without_the_section_does_nothing(stage):
    stage = stage(erase_on=["tamper", "lockdown", "end-of-life"])
    stage.section = None

    async def scene(made: Vaulting) -> None:
        made.notice(Trigger.TAMPER, "x")
        with pytest.raises(VaultUnused):
            await made.erase("sold")
        with pytest.raises(VaultUnused):
            made.unlock()
        await made._settle()

    stage.play(scene)
    assert stage.events.kinds() == []
    assert (stage.home.vault / "vault.cbor").exists()
