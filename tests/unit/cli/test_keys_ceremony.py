"""``tidegate keys ceremony`` on SoftHSM tokens, as a maker types it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tidegate.cli.main import main
from tidegate.crypto.aead import Secret
from tidegate.testing.tokens import SoftHsm

PLAN = """
maker = "Example Maker"
token = "pkcs11:token=maker?module-path={module}{first}"
backup_token = "pkcs11:token=backup?module-path={module}{second}"
threshold = 2
operators = ["Alice", "Bob", "Carol"]
[[keys]]
name = "release"
algorithm = "ecdsa-p256"
backup = true
"""


class Room:
    def __init__(self, hsm: SoftHsm, folder: Path, capsys) -> None:
        self.hsm, self.folder, self._capsys = hsm, folder, capsys
        pins = [hsm.make_token(label) for label in ("maker", "backup")]
        self.plan = folder / "plan.toml"
        sources = [f"&pin-source={pin}" for pin in pins]
        self.plan.write_text(PLAN.format(module=hsm.module, first=sources[0], second=sources[1]))
        self.out = folder / "out"
        self.passphrases = []
        for name in ("alice", "bob", "carol"):
            path = folder / f"{name}.phrase"
            path.write_text(f"the phrase of {name}\n")
            path.chmod(0o600)
            self.passphrases.append(path)

    def run(self, *words) -> tuple[int, str, str]:
        status = main(["keys", "ceremony", *map(str, words)])
        said = self._capsys.readouterr()
        return status, said.out, said.err

    def phrases(self, *numbers: int) -> list[str]:
        return [word for number in numbers for word in ("--passphrase-file", str(self.passphrases[number]))]

    def shares(self, *names: str, folder: Path | None = None) -> list[str]:
        return [word for name in names for word in ("--share", str((folder or self.out) / f"{name}.share"))]

    def hold(self) -> str:
        status, out, err = self.run("hold", self.plan, "-o", self.out, *self.phrases(0, 1, 2))
        assert status == 0, err
        return out


@pytest.fixture
def room(tmp_path, capsys):
    with SoftHsm(tmp_path / "hsm") as hsm:
        yield Room(hsm, tmp_path, capsys)


def signing(room: Room, target: Path) -> list[str]:
    """Return a command that signs with the token's key and takes its PIN from ``{pin}``."""
    key = f"pkcs11:token=maker;object=release?module-path={room.hsm.module}&pin-source={{pin}}"
    target.write_text("something to sign")
    command = [sys.executable, "-m", "tidegate.cli.main", "keys", "sign", key, str(target)]
    return ["--", *command, "-o", f"{target}.sig"]


def test_hold_show_and_sign_with_two_of_three(room):
    told = room.hold()
    assert "2 of 3 operators are needed" in told
    status, out, _ = room.run("show", room.out / "transcript.cose", "--plan", room.plan, "--json")
    shown = json.loads(out)
    assert status == 0
    assert [key["name"] for key in shown["keys"]] == ["release"]
    assert shown["keys"][0]["backup"] == "yes"
    assert set(shown["shares"]) == {"Alice", "Bob", "Carol"}
    words = ["with-pin", *room.shares("alice", "carol"), *room.phrases(0, 2)]
    status, _, err = room.run(*words, *signing(room, room.folder / "document"))
    assert status == 0, err
    document = room.folder / "document"
    verify = ["keys", "verify", "--public", room.out / "release.pub", document, f"{document}.sig"]
    assert main([str(word) for word in verify]) == 0


def test_the_status_of_the_command_is_the_answer(room):
    room.hold()
    words = ["with-pin", *room.shares("alice", "bob"), *room.phrases(0, 1)]
    assert room.run(*words, "--", sys.executable, "-c", "raise SystemExit(7)")[0] == 7


def test_a_command_that_there_is_not(room):
    room.hold()
    words = ["with-pin", *room.shares("alice", "bob"), *room.phrases(0, 1)]
    status, _, err = room.run(*words, "--", "no-such-command", "{pin}")
    assert status == 4
    assert "base.storage.missing" in err


def test_more_shares_than_needed_are_enough(room):
    room.hold()
    words = ["with-pin", *room.shares("alice", "bob", "carol"), *room.phrases(0, 1, 2)]
    assert room.run(*words, *signing(room, room.folder / "document"))[0] == 0


def test_an_operators_new_passphrase_is_typed_twice_alike(room, monkeypatch):
    """It is typed unseen and nobody tries it: a slip of the finger would be found when the keys are needed."""
    typed = iter([b"mine", b"mien"])
    monkeypatch.setattr("tidegate.cli.keyuri.ask_on_terminal", lambda _: Secret(next(typed)))
    status, _, err = room.run("hold", room.plan, "-o", room.out)
    assert status == 3
    assert "keys.unlock.refused" in err
    assert not room.out.exists()


def test_one_share_is_too_few_and_a_wrong_passphrase_opens_none(room):
    room.hold()
    command = ["--", sys.executable, "-c", "raise SystemExit(0)"]
    status, _, err = room.run("with-pin", *room.shares("alice"), *room.phrases(0), *command)
    assert status == 3
    assert "factory.shares.insufficient" in err
    status, _, err = room.run("with-pin", *room.shares("alice", "bob"), *room.phrases(0, 2), *command)
    assert status == 3
    assert "factory.share.refused" in err


def test_a_plan_that_was_not_followed_is_the_answer_no(room):
    room.hold()
    room.plan.write_text(room.plan.read_text().replace('maker = "Example Maker"', 'maker = "Another"'))
    status, out, _ = room.run("show", room.out / "transcript.cose", "--plan", room.plan)
    assert status == 1
    assert "differs from the plan: maker" in out


def test_new_shares_end_the_old_ones(room):
    room.hold()
    again = room.folder / "again"
    words = ["reshare", room.plan, *room.shares("bob", "carol"), "-o", again]
    status, _, err = room.run(*words, *room.phrases(1, 2, 0, 1, 2))
    assert status == 0, err
    old = ["with-pin", *room.shares("alice", "bob"), *room.phrases(0, 1)]
    new = ["with-pin", *room.shares("alice", "bob", folder=again), *room.phrases(0, 1)]
    assert room.run(*old, *signing(room, room.folder / "one"))[0] == 3
    assert room.run(*new, *signing(room, room.folder / "two"))[0] == 0


def test_words_for_paper(room):
    room.hold()
    status, out, _ = room.run("words", room.out / "alice.share", *room.phrases(0))
    assert status == 0
    assert len(out.splitlines()[1].split()) == 20  # a SLIP-39 share of 128 bits


def test_a_passphrase_that_nobody_can_type_is_missed(room):
    status, _, err = room.run("hold", room.plan, "-o", room.out, *room.phrases(0))
    assert status == 2
    assert "keys.pin.missing" in err
    assert not room.out.exists()


def test_a_drill(room):
    status, out, _ = room.run("drill", "loss", "--json")
    assert status == 0
    assert any("backup signs" in step for step in json.loads(out)["steps"])
