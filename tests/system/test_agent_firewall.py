"""What the agent keeps beside the ruleset, on the real kernel: the inspector, its tables, bans over a reboot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.agent.guarding import MAX_RESTORES, Guarding
from tidegate.base.clock import SystemClock
from tidegate.events.model import Event
from tidegate.firewall import commit, xtqueue
from tidegate.firewall.bans import Bans
from tidegate.firewall.banstore import BanStore
from tidegate.firewall.commit import apply_section, effective_digest
from tidegate.firewall.compile import dns_set, encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, join, make_unique

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
    pytest.mark.skipif(shutil.which("iptables-nft-restore") is None, reason="iptables is not installed"),
]

DEVICE, PEER = "192.0.2.1", "192.0.2.2"
READ, WRITE = b"\0\1\0\0\0\6\1\3\0\x28\0\1", b"\0\1\0\0\0\6\1\6\0\x28\0\1"
SECTION: dict[str, Any] = {
    "management": {"peers": ["192.0.2.100"], "service": "ssh"},
    "services": {
        "ssh": {"protocol": "tcp", "ports": [22], "peers": []},
        "plc": {"protocol": "tcp", "ports": [502], "peers": ["any"], "fields": "reads"},
    },
    "fields": {"reads": {"protocol": "modbus", "allow": [{"functions": ["read-holding-registers"]}]}},
}


class RecordedEvents:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


class Stage:
    """A device's ``Guarding`` in a namespace of its own, and a peer beside it."""

    def __init__(self, device: Namespace, peer: Namespace, folder: Path) -> None:
        self.device, self.peer, self.folder = device, peer, folder
        self.section = msgspec.convert(SECTION, FirewallSection)
        self.events = RecordedEvents()
        self.nft = Nft.open()
        self.bans = Bans(store=BanStore(folder))
        self.guarding = Guarding(
            self.events,  # type: ignore[arg-type]
            self.bans,
            self.nft,
            SystemClock(),
            section=lambda: self.section,
            state_dir=folder,
        )

    def put_in_force(self, **changes: Any) -> None:
        self.section = msgspec.convert(SECTION | changes, FirewallSection)
        apply_section(self.section, state_dir=self.folder, nft=self.nft, must_pass=()).confirm()

    async def until(self, condition: Callable[[], bool], patience_s: float = 8.0) -> None:
        deadline_s = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline_s, [event.message for event in self.events.events]
            await asyncio.sleep(0.02)

    async def play(self, work: Awaitable[None], scene: Callable[[], Awaitable[None]]) -> None:
        task = asyncio.ensure_future(work)
        try:
            await scene()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def ask(self, message: bytes) -> bytes:
        """Return the PLC's answer to one message on a new connection, or nothing."""
        return await asyncio.to_thread(self._ask, message)

    def _ask(self, message: bytes) -> bytes:
        with self.peer.inside(), socket.socket() as client:
            client.settimeout(0.5)
            try:
                client.connect((DEVICE, 502))
                client.sendall(message)
                return client.recv(100)
            except OSError:
                return b""

    def serve(self) -> socket.socket:
        listener = socket.create_server((DEVICE, 502))
        threading.Thread(target=_answer, args=(listener,), daemon=True).start()
        return listener


async def change(*words: str) -> None:
    """Have another program change the ruleset."""
    process = await asyncio.create_subprocess_exec("nft", *words)
    assert await process.wait() == 0


def _answer(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection = listener.accept()[0]
            connection.settimeout(2)
            with connection, contextlib.suppress(OSError):
                while said := connection.recv(100):
                    connection.sendall(said[:8] + b"\2\0\7")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    with Namespace.create(make_unique("tgag")) as device, Namespace.create(make_unique("tgag-peer")) as peer:
        join(device, peer, addresses_a=[f"{DEVICE}/24"], addresses_b=[f"{PEER}/24"])
        with device.inside():
            made = Stage(device, peer, folder)
            yield made
            made.bans.close()
            made.nft.close()


def test_content_rules_bring_their_inspector(stage: Stage) -> None:
    """Closed until it stands; reads pass, writes do not and are events; killed, it is closed and comes back."""

    async def scene() -> None:
        await stage.until(lambda: bool(stage.guarding.state()["inspecting"]))
        assert await stage.ask(READ)
        assert not await stage.ask(WRITE)
        await stage.until(lambda: bool(stage.events.of("firewall.field-refused")))
        assert "modbus function 6" in stage.events.of("firewall.field-refused")[0].message
        os.kill(int(str(stage.guarding.state()["inspector"])), signal.SIGKILL)
        await stage.until(lambda: not stage.guarding.state()["inspecting"])
        assert not await stage.ask(READ)
        await stage.until(lambda: bool(stage.guarding.state()["inspecting"]))
        assert await stage.ask(READ)
        assert [event.code for event in stage.events.of("agent.failed")] == ["agent.worker.ended"]

    stage.put_in_force()
    with stage.serve():
        assert not stage._ask(READ)
        asyncio.run(stage.play(stage.guarding.run_inspector(), scene))


@pytest.mark.parametrize("stray", ["interface", "mac", "name"])
def test_an_open_connection_that_strays_from_its_rule_is_inspected_all_the_same(stage: Stage, stray: str) -> None:
    """What let it in no longer says who it is: it goes on by another interface, or its name is somebody else's."""
    join(
        stage.device,
        stage.peer,
        interfaces=("eth1", "eth1"),
        addresses_a=["198.51.100.1/24"],
        addresses_b=["198.51.100.2/24"],
    )
    mac = stage.peer.run(["cat", "/sys/class/net/eth0/address"]).stdout.decode().strip()
    known: dict[str, Any] = {
        "interface": {"interfaces": ["eth0"]},
        "mac": {"peers": [mac]},
        "name": {"peers": ["plc.example.com"]},
    }
    services = {**SECTION["services"], "plc": {**SECTION["services"]["plc"], **known[stray]}}
    # A port that rules without content rules share: whom they let in is spared, and nobody else.
    services["other"] = {"protocol": "tcp", "ports": [502, 503], "peers": ["203.0.113.9"], "interfaces": ["eth2"]}
    said: list[bytes] = []

    def talk() -> None:
        with stage.peer.inside(), socket.socket() as client:
            client.settimeout(2.0)
            client.connect((DEVICE, 502))
            for message in (READ, WRITE):
                client.sendall(message)
                with contextlib.suppress(OSError):
                    said.append(client.recv(100))
                if stray == "name":
                    stage.nft.run("flush set inet tidegate " + dns_set("plc.example.com", 4))
                else:
                    stage.peer.run(["ip", "route", "replace", f"{DEVICE}/32", "via", "198.51.100.1", "dev", "eth1"])

    async def scene() -> None:
        await stage.until(lambda: bool(stage.guarding.state()["inspecting"]))
        await asyncio.to_thread(talk)
        assert len(said) == 1, said

    stage.put_in_force(services=services)
    if stray == "name":
        resolved = {"plc.example.com": {ip_address(PEER): 60}}
        stage.nft.run(encode_ruleset(plan_ruleset(stage.section), resolved=resolved))
    with stage.serve():
        asyncio.run(stage.play(stage.guarding.run_inspector(), scene))


def test_the_inspector_follows_the_policy(stage: Stage) -> None:
    async def scene() -> None:
        with stage.serve():
            await stage.until(lambda: bool(stage.guarding.state()["inspecting"]))
            wider = {"reads": {"protocol": "modbus", "allow": [{"functions": [3, 6]}]}}
            stage.put_in_force(fields=wider)
            before = stage.guarding.state()["inspector"]
            stage.guarding.policy_changed()
            await stage.until(
                lambda: bool(stage.guarding.state()["inspecting"]) and stage.guarding.state()["inspector"] != before
            )
            assert await stage.ask(WRITE)
            services = {**SECTION["services"], "plc": {**SECTION["services"]["plc"], "fields": None}}
            stage.put_in_force(services=services)
            stage.guarding.policy_changed()
            await stage.until(lambda: stage.guarding.state()["inspector"] is None)
            assert await stage.ask(WRITE)

    stage.put_in_force()
    asyncio.run(stage.play(stage.guarding.run_inspector(), scene))


@pytest.mark.parametrize("tamper", ["report", "restore"])
def test_somebody_elses_change_is_an_event_and_undone_where_the_policy_says_so(stage: Stage, tamper: str) -> None:
    async def scene() -> None:
        await asyncio.sleep(0.6)  # what is there is ours
        assert not stage.events.of("firewall.tampered")
        before = effective_digest(stage.nft)
        await change("flush", "chain", "inet", "tidegate", "input")
        await stage.until(lambda: bool(stage.events.of("firewall.tampered")))
        assert "nft" in stage.events.of("firewall.tampered")[0].message
        assert (effective_digest(stage.nft) == before) is (tamper == "restore")
        await asyncio.sleep(1.0)
        assert len(stage.events.of("firewall.tampered")) == 1

    stage.put_in_force(tamper=tamper)
    asyncio.run(stage.play(stage.guarding.run_watch(), scene))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_two_programs_that_undo_each_other_do_not_go_on_for_ever(stage: Stage) -> None:
    async def scene() -> None:
        for number in range(MAX_RESTORES + 1):
            await change("flush", "ruleset")
            await stage.until(lambda number=number: len(stage.events.of("firewall.tampered")) > number)  # type: ignore[misc]
        await asyncio.sleep(1.5)
        # What is owed is paid when the minute is over; until then it is told once.
        undone = ["put back" in event.message for event in stage.events.of("firewall.tampered")]
        assert undone == [True] * MAX_RESTORES + [False], [event.message for event in stage.events.events]

    stage.put_in_force(tamper="restore")
    asyncio.run(stage.play(stage.guarding.run_watch(), scene))


def test_bans_go_on_after_a_reboot(stage: Stage) -> None:
    stage.put_in_force()
    stage.bans.ban("203.0.113.9", 600)
    stage.bans.ban("203.0.114.0/24", 600)
    assert stage.bans.store is not None
    stage.bans.store.sync()
    stage.nft.run("flush ruleset")  # the kernel starts anew
    stage.put_in_force()
    assert stage.bans.list_bans() == []

    async def scene() -> None:
        await stage.until(lambda: len(stage.bans.list_bans()) == 2)
        assert all(500 < ban.remaining_s <= 600 for ban in stage.bans.list_bans())

    asyncio.run(stage.play(stage.guarding.run_bans(), scene))


def test_a_kernel_with_a_queue_of_nft_leaves_no_ruleset_without_one(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is applied does not know which kernel it is for: packets have to find the inspector all the same."""

    async def scene() -> None:
        await stage.until(lambda: bool(stage.guarding.state()["inspecting"]))
        assert await stage.ask(READ)
        assert not await stage.ask(WRITE)

    monkeypatch.setattr(xtqueue, "queue_support", lambda _: xtqueue.QueueSupport(nft=True, xt=True))
    stage.put_in_force()
    with stage.serve():
        asyncio.run(stage.play(stage.guarding.run_inspector(), scene))


def test_observing_refuses_no_message_either(stage: Stage) -> None:
    async def scene() -> None:
        await stage.until(lambda: bool(stage.guarding.state()["inspecting"]))
        for message in (READ, WRITE, b"no modbus at all"):
            assert await stage.ask(message)
        await stage.until(lambda: bool(stage.events.of("firewall.field-refused")))

    stage.put_in_force(mode="observe")
    with stage.serve():
        asyncio.run(stage.play(stage.guarding.run_inspector(), scene))


def test_a_policy_without_a_firewall_has_no_bans_to_lift(stage: Stage) -> None:
    async def scene() -> None:
        stage.guarding.policy_changed()
        await asyncio.sleep(0.3)
        assert "journal of bans" not in " ".join(event.message for event in stage.events.events)

    asyncio.run(stage.play(stage.guarding.run_bans(), scene))


def test_bans_of_whom_a_new_policy_protects_are_lifted(stage: Stage) -> None:
    async def scene() -> None:
        stage.put_in_force(bans={"never": ["203.0.113.0/24"]})
        stage.guarding.policy_changed()
        await stage.until(lambda: [str(ban) for ban in stage.bans.list_bans()] == ["203.0.114.9"])

    stage.put_in_force()
    stage.bans.ban("203.0.113.9", 600)
    stage.bans.ban("203.0.114.9", 600)
    asyncio.run(stage.play(stage.guarding.run_bans(), scene))


def test_the_watch_goes_on_after_a_failure(stage: Stage) -> None:
    async def scene() -> None:
        await asyncio.sleep(0.6)
        stage.folder.chmod(0o755)  # where others may write nothing is trusted, so nothing can be compared
        await change("flush", "chain", "inet", "tidegate", "input")
        await stage.until(lambda: bool(stage.events.of("agent.failed")))
        assert stage.events.of("agent.failed")[0].code == "base.permissions.unsafe"
        assert not stage.events.of("firewall.tampered")
        stage.folder.chmod(0o700)
        await stage.until(lambda: bool(stage.events.of("firewall.tampered")))

    stage.put_in_force()
    asyncio.run(stage.play(stage.guarding.run_watch(), scene))


def test_layer_2_rules_of_a_late_device_are_loaded_and_nothing_is_asked_until_then(stage: Stage) -> None:
    def is_guarded() -> bool:
        return '"eth1"' in (stage.nft.list_table("tidegate_link", family="netdev") or "")

    async def scene() -> None:
        await asyncio.sleep(1.1)
        with monkeypatch.context() as patched:
            patched.setattr(commit, "load_missing_links", lambda *_, **__: pytest.fail("no device is new"))
            await asyncio.sleep(1.1)
        assert not is_guarded()
        join(stage.device, stage.peer, interfaces=("eth1", "eth1"))
        await stage.until(is_guarded)

    monkeypatch = pytest.MonkeyPatch()
    stage.put_in_force(zones={"lan": {"interfaces": ["eth0", "eth1"]}}, link={"lan": {}})
    asyncio.run(stage.play(stage.guarding.run_watch(), scene))
