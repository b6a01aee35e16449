"""The ceremony and its drills on real tokens (SoftHSM), as a maker rehearses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.demo import drills
from tidegate.demo.drills import Maker, run_drills
from tidegate.factory.ceremony import CeremonyPlan, KeyPlan
from tidegate.factory.token import TRANSCRIPT, hold_ceremony, renew_shares
from tidegate.keys.uri import open_store
from tidegate.testing.tokens import SoftHsm


def code_of(call, *arguments, **named) -> str:
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_every_drill_holds() -> None:
    steps = run_drills(("ceremony", "rotation", "revocation", "loss"), tell=lambda _: None)
    assert len(steps) >= 15


def test_a_drill_that_does_not_hold_says_so(monkeypatch) -> None:
    """Anchors that accept everything: the step that shows a refusal fails."""
    monkeypatch.setattr(drills, "verify_envelope", lambda *_, **__: None)
    assert code_of(run_drills, ("rotation",), tell=lambda _: None) == "demo.step.failed"


@pytest.fixture
def hsm(tmp_path):
    with SoftHsm(tmp_path / "hsm") as hsm:
        yield hsm


def names_on(hsm: SoftHsm, label: str) -> list[str]:
    store = open_store(hsm.uri(label))
    names = [info.name for info in store.list_keys()]
    store.close()
    return names


def test_a_ceremony_that_fails_takes_its_keys_back(hsm, tmp_path: Path) -> None:
    """The last key cannot be made; the tokens are as before, with the PINs that they had."""
    maker = Maker(hsm, tmp_path / "ceremony")
    keys = (*maker.plan.keys, KeyPlan(name="quantum", algorithm="ml-dsa-65"))
    plan = CeremonyPlan(**{name: getattr(maker.plan, name) for name in maker.plan.__struct_fields__} | {"keys": keys})
    assert code_of(hold_ceremony, plan, maker.folder, maker.room()) == "keys.capability.missing"
    assert names_on(hsm, "maker") == names_on(hsm, "backup") == []
    assert not maker.folder.exists()


def test_shares_that_cannot_be_written_change_no_pin(hsm, tmp_path: Path) -> None:
    maker = Maker(hsm, tmp_path / "there")
    maker.folder.mkdir()
    assert code_of(hold_ceremony, maker.plan, maker.folder, maker.room()) == "base.storage.failed"
    assert names_on(hsm, "maker") == names_on(hsm, "backup") == []


def test_no_pin_and_no_words_lie_about(hsm, tmp_path: Path) -> None:
    maker = Maker(hsm, tmp_path / "ceremony")
    told = hold_ceremony(maker.plan, maker.folder, maker.room())
    pin = bytes(maker.pin("Alice", "Bob").view())
    assert len(pin) == drills.LETTERS
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert pin not in path.read_bytes(), path
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in maker.folder.glob("*.share")} == {
        "alice.share": "0o600",
        "bob.share": "0o600",
        "carol.share": "0o600",
    }
    assert (maker.folder / TRANSCRIPT).exists()
    assert set(told.tokens) == {"first", "backup"}


def test_new_shares_need_the_present_pin(hsm, tmp_path: Path) -> None:
    maker = Maker(hsm, tmp_path / "ceremony")
    hold_ceremony(maker.plan, maker.folder, maker.room())
    wrong = maker.room(Secret(b"999999"))
    assert code_of(renew_shares, maker.plan, tmp_path / "again", wrong) == "keys.pin.refused"
    assert not (tmp_path / "again").exists()
