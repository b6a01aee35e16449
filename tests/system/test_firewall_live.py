"""Policies held against the sessions that really are open, and the kernel settings that go with a policy."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall import guard
from tidegate.firewall.commit import PendingChange, apply_section, restore_last_confirmed
from tidegate.firewall.live import find_must_pass
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

DEVICE, MANAGER, OTHER = "192.0.2.1", "192.0.2.2", "192.0.2.3"
SSH = {"protocol": "tcp", "ports": [22], "peers": []}
CALL = {"protocol": "tcp", "ports": [8883], "peers": [MANAGER]}
GOOD: dict[str, Any] = {
    "management": {"peers": [MANAGER], "service": "ssh", "egress": "manager"},
    "services": {"ssh": SSH},
    "egress": {"services": {"manager": CALL}},
}
FOR_OTHER = {**GOOD, "management": {"peers": [OTHER], "service": "ssh"}}
PROC = Path("/proc/sys/net")


def convert(values: dict[str, Any]) -> FirewallSection:
    return msgspec.convert(values, FirewallSection)


class Lab:
    def __init__(self, device: Namespace, manager: Namespace, state: Path, stack: contextlib.ExitStack) -> None:
        self.device, self.manager, self.state, self._stack = device, manager, state, stack
        self._servers: dict[int, socket.socket] = {}
        with device.inside():
            self.nft = Nft.open()
        stack.callback(self.nft.close)

    def connect(self, port: int, *, source: str = MANAGER, outgoing: bool = False) -> None:
        """Open a session that lasts as long as the lab."""
        server_space, client_space = (self.manager, self.device) if outgoing else (self.device, self.manager)
        address = MANAGER if outgoing else DEVICE
        if port not in self._servers:
            with server_space.inside():
                self._servers[port] = self._stack.enter_context(socket.create_server((address, port)))
        with client_space.inside():
            bound = ("", 0) if outgoing else (source, 0)
            self._stack.enter_context(socket.create_connection((address, port), timeout=5, source_address=bound))
        self._stack.enter_context(self._servers[port].accept()[0])

    def apply(self, values: dict[str, Any], **more: Any) -> PendingChange:
        with self.device.inside():
            return apply_section(convert(values), state_dir=self.state, nft=self.nft, **more)

    def refuses(self, values: dict[str, Any], **more: Any) -> str:
        with pytest.raises(TidegateError) as caught:
            self.apply(values, **more)
        assert caught.value.code == "firewall.check.session-cut"
        return caught.value.message

    def setting(self, name: str) -> str:
        with self.device.inside():
            return (PROC / name).read_text().strip()

    def await_guard(self) -> None:
        while guard.guard_lives(str(self.state)):
            time.sleep(0.01)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    with Namespace.create(make_unique("tglv-dev")) as device, Namespace.create(make_unique("tglv-man")) as manager:
        join(device, manager, addresses_a=[f"{DEVICE}/24"], addresses_b=[f"{MANAGER}/24", f"{OTHER}/24"])
        with contextlib.ExitStack() as stack:
            yield Lab(device, manager, tmp_path / "state", stack)


def test_an_ssh_session_is_not_cut(lab: Lab) -> None:
    lab.connect(22)
    assert MANAGER in lab.refuses(FOR_OTHER)
    assert lab.nft.list_table("tidegate") is None
    lab.apply(FOR_OTHER, cut=[ip_address(MANAGER)]).confirm()  # the operator says so
    lab.connect(22, source=OTHER)
    lab.apply({**FOR_OTHER, "ping_per_s": 3}).confirm()  # whom the policy in force shut out has no claim any more
    assert OTHER in lab.refuses(GOOD)
    assert OTHER in lab.refuses({**GOOD, "mode": "lockdown"})
    lab.apply({**GOOD, "mode": "observe"}).rollback()  # refuses nobody


def test_sessions_on_the_management_service_and_to_the_manager(lab: Lab) -> None:
    console = {**GOOD, "services": {"ssh": {**SSH, "ports": [8443]}}}
    lab.connect(8443)
    lab.connect(8883, outgoing=True)
    lab.apply(console).confirm()
    assert MANAGER in lab.refuses(GOOD)  # on port 22 only
    assert MANAGER in lab.refuses({**console, "services": {"ssh": {**SSH, "ports": [8443], "interfaces": ["eth7"]}}})
    assert MANAGER in lab.refuses({**console, "egress": {"services": {"manager": {**CALL, "ports": [8884]}}}})
    lab.apply({**console, "ping_per_s": 3}).confirm()


def test_a_shell_on_another_port_is_known_by_its_process(lab: Lab) -> None:
    """The process that listens is called sshd; its port stands in no policy."""
    code = (
        "import socket; open('/proc/self/comm', 'w').write('sshd')\n"
        f"server = socket.create_server(('{DEVICE}', 2222))\n"
        "print('ready', flush=True); caller = server.accept(); caller[0].recv(1)"
    )
    with lab.device.popen([sys.executable, "-c", code]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with lab.manager.inside(), socket.create_connection((DEVICE, 2222), timeout=5):
            time.sleep(0.05)
            assert MANAGER in lab.refuses(GOOD)
            lab.apply({**GOOD, "services": {"ssh": {**SSH, "ports": [22, 2222]}}}).rollback()
        process.wait(5)


def test_the_own_session_and_who_is_no_person(lab: Lab) -> None:
    environment = {"SSH_CONNECTION": f"203.0.113.5 50000 {DEVICE} 22"}
    wanted = plan_ruleset(convert(GOOD))
    with lab.device.inside():
        [packet] = find_must_pass(wanted, None, environment=environment)
        assert str(packet.source) == "203.0.113.5"
        assert find_must_pass(wanted, None, environment=environment, shells=False) == []
        for nonsense in ("", "a b c d", "203.0.113.5 1 192.0.2.1", "203.0.113.5 1 192.0.2.1 x"):
            assert find_must_pass(wanted, None, environment={"SSH_CONNECTION": nonsense}) == []


SYN = "netfilter/nf_conntrack_tcp_timeout_syn_recv"
LOOSE = "netfilter/nf_conntrack_tcp_loose"
BOUNDED = {**GOOD, "conntrack": {"max": 4096, "syn_timeout_s": 7}}
PROXIED = {
    **GOOD,
    "services": {"ssh": SSH, "web": {"protocol": "tcp", "ports": [80], "peers": ["any"], "syn_proxy": True}},
}


def test_settings_come_and_go_with_their_policy(lab: Lab) -> None:
    before = lab.setting(SYN)
    change = lab.apply(BOUNDED)
    assert lab.setting(SYN) == "7"
    assert change.unset == ("net/netfilter/nf_conntrack_max",)  # only the initial namespace may set it
    change.rollback()
    assert lab.setting(SYN) == before
    lab.apply(BOUNDED, confirm_timeout_s=3)
    assert lab.setting(SYN) == "7"
    time.sleep(3.2)
    lab.await_guard()  # the guard puts it back as well
    assert lab.setting(SYN) == before
    lab.apply(BOUNDED).confirm()
    lab.apply({**BOUNDED, "ping_per_s": 3}).rollback()
    assert lab.setting(SYN) == "7"
    lab.apply(GOOD).confirm()  # a policy that does not ask for it
    assert lab.setting(SYN) == before


def test_settings_are_set_at_boot(lab: Lab) -> None:
    lab.apply(BOUNDED).confirm()
    with lab.device.inside():
        (PROC / SYN).write_text("60")
        restored = restore_last_confirmed(lab.state)
    assert restored is not None
    assert lab.setting(SYN) == "7"
    assert restored.unset == ("net/netfilter/nf_conntrack_max",)


def test_strict_tracking_waits_for_the_confirmation(lab: Lab) -> None:
    change = lab.apply(PROXIED)
    assert lab.setting(LOOSE) == "1"
    with lab.device.inside():
        change.confirm()
    assert lab.setting(LOOSE) == "0"
    change = lab.apply(GOOD)
    assert lab.setting(LOOSE) == "1"
    change.rollback()
    assert lab.setting(LOOSE) == "0"
