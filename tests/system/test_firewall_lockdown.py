"""Lockdown on the real kernel: at once, whatever else goes on, over reboots, and until it is lifted."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.cli import firewall_lockdown
from tidegate.cli.output import Output
from tidegate.firewall import guard, lockdown
from tidegate.firewall.commit import (
    PendingChange,
    apply_section,
    drop_pending,
    effective_digest,
    load_section_in_force,
    restore_last_confirmed,
)
from tidegate.firewall.errors import NftRefused
from tidegate.firewall.lockdown import lift_lockdown, lock_down
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection, Mode
from tidegate.firewall.statefolder import LOCKDOWN, load_expected_digest, load_lockdown
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

DEVICE, MANAGER = "192.0.2.1", "192.0.2.2"
SSH = {"protocol": "tcp", "ports": [22], "peers": []}
WEB = {"protocol": "tcp", "ports": [8080], "peers": ["any"]}
KEPT = {"protocol": "tcp", "ports": [8081], "peers": ["any"], "lockdown": True}
POLICY: dict[str, Any] = {
    "management": {"peers": [MANAGER], "service": "ssh"},
    "services": {"ssh": SSH, "web": WEB, "kept": KEPT},
}
OTHER = {**POLICY, "services": {"ssh": SSH, "web": {**WEB, "ports": [8080, 8082]}, "kept": KEPT}}
PORTS = (22, 8080, 8081, 8082)
OPEN, LOCKED, WIDER = {22, 8080, 8081}, {22, 8081}, {22, 8080, 8081, 8082}


class Lab:
    def __init__(self, device: Namespace, manager: Namespace, state: Path) -> None:
        self.device, self.manager, self.state = device, manager, state
        with device.inside():
            self.nft = Nft.open()
            self.servers = [socket.create_server((DEVICE, port), backlog=100) for port in PORTS]

    def apply(self, values: dict[str, Any], timeout_s: float = 15) -> PendingChange:
        section = msgspec.convert(values, FirewallSection)
        with self.device.inside():
            return apply_section(section, state_dir=self.state, nft=self.nft, confirm_timeout_s=timeout_s, must_pass=())

    def lock(self, **more: Any) -> Any:
        with self.device.inside():
            return lock_down(self.state, reason="test", nft=self.nft, **more)

    def lift(self) -> Any:
        with self.device.inside():
            return lift_lockdown(self.state, nft=self.nft)

    def open_ports(self) -> set[int]:
        return {port for port in PORTS if self.connects(port)}

    def connects(self, port: int) -> bool:
        with self.manager.inside(), socket.socket() as client:
            client.settimeout(0.15)
            return client.connect_ex((DEVICE, port)) == 0

    def kill_all(self) -> None:
        for pid in self.device.pids():
            os.kill(pid, signal.SIGKILL)
        while guard.guard_lives(str(self.state)):
            time.sleep(0.01)

    def reboot(self) -> None:
        self.kill_all()
        self.nft.run("flush ruleset")

    def close(self) -> None:
        self.nft.close()
        for server in self.servers:
            server.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Namespace.create(make_unique("tgld-dev")) as device, Namespace.create(make_unique("tgld-man")) as manager:
        join(device, manager, addresses_a=[f"{DEVICE}/24"], addresses_b=[f"{MANAGER}/24"])
        made = Lab(device, manager, tmp_path / "state")
        try:
            yield made
        finally:
            made.close()


def test_on_and_off_and_what_it_cuts(lab: Lab) -> None:
    digest = lab.apply(POLICY).confirm()
    with lab.manager.inside(), socket.create_connection((DEVICE, 8080), timeout=2) as customer:
        served, _ = lab.servers[1].accept()
        customer.sendall(b"a")
        assert served.recv(1) == b"a"
        start = time.monotonic()
        done = lab.lock()
        sys.stdout.write(f"lockdown on: {1000 * (time.monotonic() - start):.0f} ms\n")
        customer.sendall(b"b")  # a running session of another service ends
        served.settimeout(0.4)
        with pytest.raises(TimeoutError):
            served.recv(1)
        served.close()
    assert lab.open_ports() == LOCKED
    assert done.digest == effective_digest(lab.nft) == load_expected_digest(lab.state) != digest
    in_force = load_section_in_force(lab.state)
    assert in_force is not None
    assert in_force.mode is Mode.LOCKDOWN
    assert lab.lift().digest == digest == load_expected_digest(lab.state)
    assert lab.open_ports() == OPEN
    with pytest.raises(TidegateError) as caught:
        lab.lift()
    assert caught.value.code == "firewall.lockdown.off"


def test_it_outlives_a_reboot_and_an_agent_that_applies(lab: Lab) -> None:
    digest = lab.apply(POLICY).confirm()
    locked = lab.lock().digest
    lab.reboot()
    restored = restore_last_confirmed(lab.state, nft=lab.nft)
    assert restored is not None
    assert (restored.locked, restored.digest) == (True, locked)
    assert lab.open_ports() == LOCKED
    drop_pending(lab.state)
    lab.apply(OTHER).confirm()  # as the agent does at its start: what it applies is the lockdown form
    assert lab.open_ports() == LOCKED
    lab.apply(POLICY, timeout_s=1)  # and a change that nobody confirms goes back to a lockdown
    time.sleep(1.5)
    assert lab.open_ports() == LOCKED
    assert effective_digest(lab.nft) == load_expected_digest(lab.state)
    assert lab.lift().digest != digest
    assert lab.open_ports() == WIDER


def test_a_change_that_waits_is_dropped(lab: Lab) -> None:
    digest = lab.apply(POLICY).confirm()
    change = lab.apply(OTHER, timeout_s=4)
    assert lab.open_ports() == WIDER
    assert lab.lock().dropped_change
    assert lab.open_ports() == LOCKED
    time.sleep(4.3)  # its guard's time is over
    assert lab.open_ports() == LOCKED
    with pytest.raises(TidegateError) as caught:
        change.confirm()
    assert caught.value.code == "firewall.commit.expired"
    change.rollback()  # harmless
    assert lab.open_ports() == LOCKED
    assert lab.lift().digest == digest


def test_a_rollback_that_has_begun_does_not_lift_it(lab: Lab) -> None:
    """The guard has claimed the change and is about to restore; or it has died over that."""
    lab.apply(POLICY).confirm()
    change = lab.apply(OTHER)
    for pid in lab.device.pids():
        os.kill(pid, signal.SIGKILL)
    (lab.state / guard.PENDING).rename(lab.state / guard.ROLLING_BACK)
    assert lab.lock().dropped_change
    change.rollback()
    assert lab.open_ports() == LOCKED
    lab.lift()
    for _ in range(5):  # the guard restores at the same moment
        change = lab.apply(OTHER)
        (lab.state / guard.REQUEST).touch()
        time.sleep(0.09)
        lab.lock()
        time.sleep(0.3)
        assert lab.open_ports() == LOCKED
        lab.lift()


def test_a_rollback_does_not_lift_it_when_who_switched_it_on_has_died(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.apply(POLICY).confirm()
    for is_guard_gone in (False, True):
        change = lab.apply(OTHER, timeout_s=1)
        if is_guard_gone:
            lab.kill_all()

        def die(*_: object) -> bool:
            raise InterruptedError

        with monkeypatch.context() as patched:
            patched.setattr(lockdown, "_drop_change", die)
            with pytest.raises(InterruptedError):
                lab.lock()
        with lab.device.inside():
            if is_guard_gone:
                change.rollback()
        while guard.guard_lives(str(lab.state)):
            time.sleep(0.01)
        assert (lab.state / guard.ROLLED_BACK).exists()
        assert lab.open_ports() == LOCKED
        lab.lift()
        assert lab.open_ports() == OPEN


def test_a_lockdown_that_is_refused_leaves_the_one_that_is_on(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.apply(POLICY).confirm()
    lab.lock(for_s=600)
    before = load_lockdown(lab.state)

    def refuse(*_: object) -> None:
        raise NftRefused("no", engine="test")

    with monkeypatch.context() as patched:
        patched.setattr(lockdown, "load_what_can_be", refuse)
        with pytest.raises(NftRefused):
            lab.lock()
    assert load_lockdown(lab.state) == before


def test_an_apply_that_hangs_does_not_keep_it_away(lab: Lab) -> None:
    lab.apply(POLICY).confirm()
    code = (
        "import sys, time; from pathlib import Path; from tidegate.firewall.statefolder import exclusive\n"
        "with exclusive(Path(sys.argv[1])): print('held', flush=True); time.sleep(1000)"
    )
    process = lab.device.popen([sys.executable, "-c", code, str(lab.state)])
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    lab.lock()
    assert lab.open_ports() == LOCKED
    process.kill()
    process.communicate()


def test_it_ends_by_itself(lab: Lab) -> None:
    digest = lab.apply(POLICY).confirm()
    lab.lock(for_s=4)
    assert lab.open_ports() == LOCKED
    deadline = time.monotonic() + 10
    while load_lockdown(lab.state) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert lab.open_ports() == OPEN
    assert effective_digest(lab.nft) == digest
    lab.lock(for_s=2)
    lab.reboot()
    with lab.device.inside():
        restore_last_confirmed(lab.state)
    assert lab.open_ports() == LOCKED
    time.sleep(4)  # its time began anew
    assert lab.open_ports() == OPEN
    lab.lock(for_s=1)
    lab.lock()  # without a time: the timer of the lockdown before does not end this one
    time.sleep(2.5)
    assert lab.open_ports() == LOCKED


def test_without_a_confirmed_policy_there_is_none(lab: Lab) -> None:
    for _ in range(2):
        with pytest.raises(TidegateError) as caught:
            lab.lock()
        assert caught.value.code == "firewall.lockdown.not-prepared"
        assert load_lockdown(lab.state) is None
        if not (lab.state / guard.PENDING).exists():
            change = lab.apply(POLICY)
    change.confirm()
    lab.lock()
    with pytest.raises(TidegateError) as caught:
        lab.lock(for_s=0)
    assert caught.value.code == "firewall.lockdown.time"


def test_a_decayed_or_missing_lockdown_is_compiled_anew(lab: Lab) -> None:
    lab.apply(POLICY).confirm()
    prepared = lab.state / LOCKDOWN
    prepared.write_bytes(prepared.read_bytes().replace(b"22", b"23"))
    lab.lock()
    assert lab.open_ports() == LOCKED
    lab.lift()
    prepared.unlink()
    lab.lock()
    assert lab.open_ports() == LOCKED


def test_one_at_a_time(lab: Lab) -> None:
    lab.apply(POLICY).confirm()
    lab.lock()
    change = lab.apply(OTHER)
    with pytest.raises(TidegateError) as caught:
        lab.lift()
    assert caught.value.code == "firewall.commit.pending"
    change.confirm()
    lab.lift()
    assert lab.open_ports() == WIDER


def test_the_verb(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    firewall_lockdown.add(parser.add_subparsers())

    def run(*words: str) -> tuple[int, dict[str, Any]]:
        arguments = parser.parse_args(["lockdown", *words, "--state", str(lab.state), "--json"])
        output = Output(as_json=True)
        with lab.device.inside():
            status = arguments.run(arguments, output)
        return status, json.loads(capsys.readouterr().out)

    lab.apply(POLICY).confirm()
    assert run("status") == (1, {"locked": False})
    assert run("on", "--reason", "scan", "--for", "3600")[0] == 0
    status, told = run("status")
    assert (status, told["reason"], told["for_s"], told["intact"]) == (0, "scan", 3600.0, True)
    lab.nft.run("add rule inet tidegate input accept")
    assert run("status")[1]["intact"] is False
    assert run("off")[1]["locked"] is False
    assert lab.open_ports() == OPEN
