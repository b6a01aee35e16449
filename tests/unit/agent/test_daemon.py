"""The agent as a process, in a namespace: its life, its local API under hostile requests, its trial."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tidegate.agent.api import ask_agent
from tidegate.agent.errors import AgentAbsent
from tidegate.agent.home import SOCKET
from tidegate.agent.updates import install_update
from tidegate.boot.chain import choose_slot
from tidegate.boot.control import RecordBootControl
from tidegate.boot.measure import Began, Refusal, Started
from tidegate.boot.slots import SlotState
from tidegate.cli.main import main
from tidegate.factory.provision import install_first_image
from tidegate.testing.maker import TestRelease

pytestmark = pytest.mark.root
START_S = 10.0


class Running:
    """The agent's process; asks it over its socket."""

    def __init__(self, device, netns, log: Path) -> None:
        self.home = device.home
        words = ["--storage", device.home.storage.folder, "--data", device.home.data, "--run", device.home.run]
        with log.open("ab") as console:
            self.process = subprocess.Popen(
                netns.command([sys.executable, "-m", "tidegate.agent", *map(str, words)]),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.ask(op="status")
                return
            except AgentAbsent:
                time.sleep(0.02)
        raise AssertionError(f"the agent is not ready: {log.read_text()}")

    def ask(self, **request) -> dict:
        return ask_agent(self.home.run / SOCKET, request, timeout_s=10)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)


@pytest.fixture
def start(device, netns, tmp_path):
    running: list[Running] = []

    def begin() -> Running:
        running.append(Running(device, netns, tmp_path / "console"))
        return running[-1]

    yield begin
    for agent in running:
        if agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()


@pytest.fixture
def boot(device, tmp_path):
    """Version 1.0.0 runs on trial from slot a, as after the first boot."""
    bundle = tmp_path / "first.tgb"
    bundle.write_bytes(device.maker.build(TestRelease(version="1.0.0")))
    install_first_image(device.home.storage, bundle)

    def run() -> str:
        with device.home.storage.opened(writable=True) as parts:
            control = RecordBootControl(parts.state)
            return choose_slot(control, dict(parts.slots), device.home.storage.maker_rule(), lambda _: None)[0]

    run()
    return run


def state_of(device, slot: str) -> SlotState:
    with device.home.storage.opened(writable=False) as parts:
        return RecordBootControl(parts.state).state().slots[slot].state


def wait_for(condition, timeout_s: float = 8.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_life_from_boot_report_to_orderly_end(start, boot, device) -> None:
    for entry in (
        Began(),
        Refusal(stage="stage2", slot="b", code="boot.os.corrupt", message="flipped"),
        Started(stage="stage2", slot="a", version="1.0.0"),
    ):
        device.home.boot_log(entry)
    agent = start()
    status = agent.ask(op="status")
    assert (status["device"], status["version"], status["policy"]) == ("gateway-0001", "1.0.0", 1)
    wait_for(lambda: state_of(device, "a") is SlotState.CONFIRMED)
    assert agent.stop() == 0
    kinds = device.kinds()
    assert kinds[:4] == ["boot.stage.refused", "boot.fell-back", "agent.started", "policy.applied"]
    assert "update.confirmed" in kinds
    assert kinds[-1] == "agent.stopped"
    again = start()
    assert again.stop() == 0
    assert device.kinds().count("boot.stage.refused") == 1, "each boot is reported once"


HOSTILE = [
    ({"op": "no-such"}, "agent.request.malformed"),
    ({"op": "__init__"}, "agent.request.malformed"),
    ({"op": "apply-policy"}, "agent.request.malformed"),
    ({"op": "apply-policy", "policy": 7}, "agent.request.malformed"),
    ({"op": "apply-policy", "policy": "%%%"}, "agent.request.malformed"),
    ({"op": "apply-policy", "policy": "ÄÖÜ"}, "agent.request.malformed"),
    ({"op": "apply-policy", "policy": ""}, "crypto.cbor.malformed"),
    ({"op": "apply-policy", "policy": base64.b64encode(bytes(60_000)).decode()}, "crypto.cbor.malformed"),
    ({"op": "confirm-policy"}, "agent.policy.nothing-pending"),
    ({"op": "rollback-policy"}, "agent.policy.nothing-pending"),
    ({"op": "ban"}, "agent.request.malformed"),
    ({"op": "ban", "address": "x"}, "firewall.ban.address"),
    ({"op": "ban", "address": "203.0.113.9; flush ruleset"}, "firewall.ban.address"),
    ({"op": "ban", "address": "127.0.0.1"}, "firewall.ban.loopback"),
    ({"op": "ban", "address": "192.0.2.10"}, "firewall.ban.management"),
    ({"op": "ban", "address": "203.0.113.9", "seconds": "60"}, "agent.request.malformed"),
    ({"op": "ban", "address": "203.0.113.9", "seconds": 1.5}, "agent.request.malformed"),
    ({"op": "ban", "address": "203.0.113.9", "seconds": -1}, "firewall.ban.duration"),
    ({"op": "ban", "address": "203.0.113.9", "seconds": 10**300}, "firewall.ban.duration"),
    ({"op": "unban", "address": "203.0.113.77"}, "firewall.ban.not-banned"),
    ({"op": "install-update"}, "agent.request.malformed"),
    ({"op": "install-update", "bundle": "/nowhere"}, "base.storage.missing"),
    ({"op": "install-update", "bundle": "/etc/hostname"}, "base.input.truncated"),
    ({"op": "install-update", "bundle": "/etc"}, "base.storage.failed"),
    ({"op": "install-update", "bundle": "/etc/passwd/x"}, "base.storage.missing"),
    ({"op": "install-update", "bundle": "a\0b"}, "agent.unexpected"),
    ({"op": "install-update", "bundle": "\ud800"}, "agent.unexpected"),
    ({"op": "install-update", "bundle": "x" * 5000}, "base.storage.failed"),
]


def test_hostile_requests_are_answered_by_code_and_the_agent_goes_on(start, boot, device) -> None:
    agent = start()
    wait_for(lambda: state_of(device, "a") is SlotState.CONFIRMED)
    for request, code in HOSTILE:
        answer = agent.ask(**request)
        assert answer.get("error", {}).get("code") == code, (request, answer)
    status = agent.ask(op="status")
    assert status["policy"] == 1
    assert agent.ask(op="ban", address="203.0.113.9", seconds=60)["banned"] == "203.0.113.9"
    assert agent.ask(op="unban", address="203.0.113.9") == {"unbanned": "203.0.113.9"}
    assert agent.stop() == 0
    refused = [event for event in device.events() if "refused" in event["unmapped"]["tidegate"]["kind"]]
    assert {event["status_code"] for event in refused} >= {"crypto.cbor.malformed", "base.storage.missing"}


def test_policies_over_the_command_line(start, boot, device, tmp_path, capsys) -> None:
    agent = start()
    run = ["--run", str(device.home.run)]
    signed = tmp_path / "policy.cose"
    signed.write_bytes(device.policy(2, port=9090))
    before = agent.ask(op="status")["firewall_digest"]
    assert main(["agent", "apply", str(signed), *run]) == 0
    assert agent.ask(op="status")["policy_pending"] == 2
    assert main(["agent", "apply", str(signed), *run]) == 4
    assert "agent.busy" in capsys.readouterr().err
    assert main(["agent", "rollback", *run]) == 0
    assert agent.ask(op="status")["firewall_digest"] == before
    assert main(["agent", "apply", str(signed), *run]) == 0
    assert main(["agent", "confirm", *run]) == 0
    assert main(["agent", "confirm", *run]) == 2
    assert "agent.policy.nothing-pending" in capsys.readouterr().err
    signed.write_bytes(device.policy(3, signer=device.maker))
    assert main(["agent", "apply", str(signed), *run]) == 3
    assert "crypto.signature.unknown-key" in capsys.readouterr().err
    assert main(["agent", "--json", "status", *run]) == 0
    assert '"policy": 2' in capsys.readouterr().out
    assert main(["agent", "status", "--run", str(tmp_path)]) == 4
    assert "agent.absent" in capsys.readouterr().err


def test_an_update_by_the_agent_and_one_that_is_not_healthy(start, boot, device, tmp_path, capsys) -> None:
    unhealthy = "[update]\ndeadline_s = 1\n[[update.http]]\nport = 9\n"
    agent = start()
    wait_for(lambda: state_of(device, "a") is SlotState.CONFIRMED)
    bundle = tmp_path / "second.tgb"
    bundle.write_bytes(device.maker.build(TestRelease(version="2.0.0")))
    assert main(["update", "install", str(bundle), "--run", str(device.home.run)]) == 0
    assert "slot b holds version 2.0.0" in capsys.readouterr().out
    applied = agent.ask(op="apply-policy", policy=base64.b64encode(device.policy(2, head=unhealthy)).decode())
    assert applied["policy_pending"] == 2
    agent.ask(op="confirm-policy")
    assert agent.stop() == 0
    assert boot() == "b"
    start()
    wait_for((device.home.run / "reboot-request").exists)
    assert state_of(device, "b") is SlotState.FAILED
    assert boot() == "a"
    (rolled_back,) = (e for e in device.events() if e["unmapped"]["tidegate"]["kind"] == "update.rolled-back")
    assert "2.0.0" in rolled_back["message"]
    assert "1.0.0" in rolled_back["message"]


def test_one_that_is_killed_finds_everything_again(start, boot, device) -> None:
    agent = start()
    wait_for(lambda: state_of(device, "a") is SlotState.CONFIRMED)
    agent.ask(op="ban", address="203.0.113.9", seconds=600)
    agent.process.kill()
    agent.process.wait()
    again = start()
    assert again.ask(op="status")["policy"] == 1
    assert again.ask(op="unban", address="203.0.113.9"), "bans live in the kernel"
    assert again.stop() == 0


@pytest.mark.parametrize("damage", ["boot log", "policy"])
def test_damage_on_the_device_does_not_keep_the_agent_from_running(start, boot, device, damage: str) -> None:
    if damage == "boot log":
        device.home.boot_log.path.write_bytes(b"\xff\xfe torn")
    else:
        for path in device.home.policy_paths:
            path.write_bytes(b"rubbish")
    agent = start()
    status = agent.ask(op="status")
    assert status["ready"] == (damage == "boot log"), "without a policy it is closed and not ready"
    assert status["firewall_digest"]
    assert agent.stop() == 0
    failed = [event.get("status_code") for event in device.events()]
    assert {"boot log": "boot.state.malformed", "policy": "crypto.cbor.malformed"}[damage] in failed


def test_it_says_why_it_can_not_start(device, netns, tmp_path) -> None:
    (device.home.storage.rom / "device-secret").unlink()
    command = [sys.executable, "-m", "tidegate.agent", "--storage", str(device.home.storage.folder)]
    command += ["--data", str(device.home.data), "--run", str(device.home.run)]
    done = subprocess.run(netns.command(command), capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "base.storage.missing" in done.stderr
    assert not (device.home.run / SOCKET).exists()


def test_updates_by_two_hands_at_once(start, boot, device, tmp_path) -> None:
    agent = start()
    wait_for(lambda: state_of(device, "a") is SlotState.CONFIRMED)
    bundle = tmp_path / "second.tgb"
    bundle.write_bytes(device.maker.build(TestRelease(version="2.0.0")))
    reader, writer = os.pipe()

    def hold(*_) -> None:
        os.write(writer, agent.ask(op="install-update", bundle=str(bundle))["error"]["code"].encode() + b"\n")

    install_update(device.home.storage, bundle, None, tries=2, observe=hold)
    assert os.read(reader, 11) == b"update.busy"
    os.close(reader)
    os.close(writer)
