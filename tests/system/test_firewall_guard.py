"""The paths of commit-confirm that need something broken: a listing, a library, a slow kernel, a bad restore text."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall import commit, guard, statefolder
from tidegate.firewall.commit import PendingChange, apply_section, effective_digest
from tidegate.firewall.libnftables import LibraryEngine
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.firewall.sysctl import encode_undo
from tidegate.testing.netns import Namespace, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

SSH = {"protocol": "tcp", "ports": [22], "peers": []}
GOOD: dict[str, Any] = {"management": {"peers": ["192.0.2.2"], "service": "ssh"}, "services": {"ssh": SSH}}
OTHER = {**GOOD, "management": {"peers": ["192.0.2.3"], "service": "ssh"}}


@pytest.fixture
def space() -> Iterator[Namespace]:
    with Namespace.create(make_unique("tggu")) as made, made.inside():
        yield made


@pytest.fixture
def nft(space: Namespace) -> Iterator[Nft]:
    connection = Nft.open()
    yield connection
    connection.close()


def apply(values: dict[str, Any], folder: Path, nft: Nft, timeout_s: float = 15) -> PendingChange:
    return apply_section(
        msgspec.convert(values, FirewallSection), state_dir=folder, nft=nft, confirm_timeout_s=timeout_s
    )


def kill_guards(space: Namespace, folder: Path) -> None:
    for pid in space.pids():
        file = Path(f"/proc/{pid}/cmdline")
        if file.exists() and b"tidegate.firewall.guard" in file.read_bytes():
            os.kill(pid, signal.SIGKILL)
    while guard.guard_lives(str(folder)):
        time.sleep(0.01)


def test_what_cannot_be_restored_is_not_replaced(nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit, "encode_restore", lambda *_: "add rule inet tidegate nowhere accept\n")
    with pytest.raises(TidegateError) as caught:
        apply(GOOD, tmp_path, nft)
    assert caught.value.code == "firewall.commit.snapshot"
    assert nft.list_table("tidegate") is None


def test_a_change_that_outlasts_its_guard_is_undone(nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(GOOD, tmp_path, nft).confirm()
    before = effective_digest(nft)
    run = nft.run

    def slow(text: str) -> str:
        if "192.0.2.3" in text:
            time.sleep(1.5)  # a machine that swaps
        return run(text)

    monkeypatch.setattr(nft, "run", slow)
    with pytest.raises(TidegateError) as caught:
        apply(OTHER, tmp_path, nft, timeout_s=1)
    assert caught.value.code == "firewall.commit.expired"
    assert effective_digest(nft) == before


def test_an_interrupt_after_the_transaction_undoes_it(
    nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(GOOD, tmp_path, nft).confirm()
    before = effective_digest(nft)

    def interrupt(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(commit, "effective_digest", interrupt)
        apply(OTHER, tmp_path, nft)
    assert effective_digest(nft) == before
    apply(OTHER, tmp_path, nft).confirm()


def test_a_restore_that_nftables_refuses_is_reported(
    space: Namespace, nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = apply(GOOD, tmp_path, nft)
    kill_guards(space, tmp_path)
    (tmp_path / guard.RESTORE).write_text("nonsense\n")
    monkeypatch.setattr(guard, "RETRY_S", 0.01)
    with pytest.raises(TidegateError) as caught:
        change.rollback()
    assert caught.value.code == "firewall.commit.restore-failed"
    (tmp_path / guard.RESTORE).write_text("table inet tidegate\ndelete table inet tidegate\n")
    change.rollback()  # the mark is still there, so it can be finished
    assert nft.list_table("tidegate") is None


@pytest.mark.skipif(shutil.which("nft") is None, reason="the program nft (nftables) is not installed")
def test_a_guard_without_the_library_uses_the_program(
    nft: Nft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_library() -> LibraryEngine:
        raise OSError("libnftables.so.1: cannot open shared object file")

    monkeypatch.setattr(guard, "LibraryEngine", no_library)
    restore = "table inet tidegate_proof {\n}\n"
    (tmp_path / guard.PENDING).write_text("")
    execute = guard._open_engine(shutil.which("nft") or "")
    assert guard.roll_back(str(tmp_path), execute, restore, "")
    assert nft.list_table("tidegate_proof") is not None
    assert (tmp_path / guard.ROLLED_BACK).exists()
    with pytest.raises(OSError, match="libnftables"):
        guard._open_engine("")


def test_a_confirmation_and_a_rollback_cannot_both_win(nft: Nft, tmp_path: Path) -> None:
    """Confirm as close to the deadline as can be: whoever loses says so, and the kernel agrees with the winner."""
    apply(GOOD, tmp_path, nft).confirm()
    good = effective_digest(nft)
    outcomes = []
    for delay_s in (0.3, 0.95, 1.0, 1.05, 1.5):
        change = apply(OTHER, tmp_path, nft, timeout_s=1)
        time.sleep(max(0.0, delay_s - 0.05))
        try:
            won = change.confirm() != good
        except TidegateError as error:
            assert error.code in ("firewall.commit.expired", "firewall.commit.changed")
            won = False
        while guard.guard_lives(str(tmp_path)):
            time.sleep(0.01)
        assert (effective_digest(nft) != good) is won
        assert ("192.0.2.3" in (tmp_path / statefolder.CONFIRMED).read_text()) is won
        outcomes.append(won)
        apply(GOOD, tmp_path, nft).confirm()
    assert outcomes[0] is True
    assert outcomes[-1] is False


def test_whoever_asks_whether_a_guard_lives_keeps_none_from_living(nft: Nft, tmp_path: Path) -> None:
    (tmp_path / guard.LOCK).touch(mode=0o600)
    asker = os.open(tmp_path / guard.LOCK, os.O_RDWR)
    try:
        fcntl.flock(asker, fcntl.LOCK_SH)  # one that asks, at the very moment at which another one does
        assert not guard.guard_lives(str(tmp_path))
        threading.Timer(0.5, fcntl.flock, (asker, fcntl.LOCK_UN)).start()
        change = apply(GOOD, tmp_path, nft)  # while the guard starts
        assert guard.guard_lives(str(tmp_path))
        change.confirm()
    finally:
        os.close(asker)


def test_who_applied_does_not_confirm_what_somebody_else_applied_since(nft: Nft, tmp_path: Path) -> None:
    first = apply(GOOD, tmp_path, nft)
    first.rollback()
    second = apply(OTHER, tmp_path, nft)
    assert not first.is_pending
    with pytest.raises(TidegateError) as caught:
        first.confirm()
    assert caught.value.code == "firewall.commit.expired"
    assert second.is_pending
    second.confirm()


def test_a_confirmation_waits_for_whoever_is_at_work_in_the_folder(space: Namespace, nft: Nft, tmp_path: Path) -> None:
    change = apply(GOOD, tmp_path, nft)
    said: list[str] = []

    def confirm() -> None:
        try:
            said.append(change.confirm())
        except TidegateError as error:
            said.append(error.code)

    with statefolder.exclusive(tmp_path):
        thread = threading.Thread(target=confirm)
        thread.start()
        thread.join(0.5)
        assert said == []
        (tmp_path / guard.PENDING).rename(tmp_path / guard.ROLLED_BACK)  # as a lockdown decides
    thread.join()
    assert said == ["firewall.commit.expired"]


def test_a_setting_that_could_not_be_changed_is_none_that_stays_changed(
    space: Namespace, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "net/netfilter/nf_conntrack_max"  # cannot be set outside of the initial namespace
    value = Path(f"/proc/sys/{name}").read_text().strip()
    guard.undo_settings(encode_undo({name: value}))
    assert capfd.readouterr().err == ""
    guard.undo_settings(encode_undo({name: str(int(value) + 1)}))
    assert "stays changed" in capfd.readouterr().err
