"""Commit-confirm on the real kernel: a change that nobody confirms undoes itself, whoever dies."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall import commit, guard
from tidegate.firewall.bans import Bans
from tidegate.firewall.commit import (
    PendingChange,
    apply_section,
    effective_digest,
    load_pending,
    restore_last_confirmed,
)
from tidegate.firewall.compile import TABLE
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

DEVICE, MANAGER = "192.0.2.1", "192.0.2.2"
SSH = {"protocol": "tcp", "ports": [22], "peers": []}
WEB = {"protocol": "tcp", "ports": [8080], "peers": ["any"]}
GOOD: dict[str, Any] = {"management": {"peers": [f"{MANAGER}/32"], "service": "ssh"}, "services": {"ssh": SSH}}
WIDER = {**GOOD, "services": {"ssh": SSH, "web": WEB}}
# Well written, and yet the wrong network: nothing that reads the policy can know it.
LOCK_OUT = {**GOOD, "management": {"peers": ["203.0.113.0/24"], "service": "ssh"}}


def section(values: dict[str, Any]) -> FirewallSection:
    return msgspec.convert(values, FirewallSection)


def booted(restored: commit.Restored | None) -> str:
    assert restored is not None
    return restored.digest


def report(text: str) -> None:
    """Figures for whoever runs pytest with -s."""
    sys.stdout.write(f"{text}\n")


class Lab:
    """A device with an SSH port and its manager."""

    def __init__(self, device: Namespace, manager: Namespace, state: Path) -> None:
        self.device, self.manager, self.state = device, manager, state
        with device.inside():
            self.nft = Nft.open()
            self.server = socket.create_server((DEVICE, 22), backlog=100)

    def apply(self, values: dict[str, Any], timeout_s: float = 15, **more: Any) -> PendingChange:
        with self.device.inside():
            more = {"must_pass": (), **more}  # what live sessions say has tests of its own
            return apply_section(
                section(values), state_dir=self.state, nft=self.nft, confirm_timeout_s=timeout_s, **more
            )

    def manageable(self, timeout_s: float = 0.2) -> bool:
        with self.manager.inside(), socket.socket() as client:
            client.settimeout(timeout_s)
            return client.connect_ex((DEVICE, 22)) == 0

    def time_until_manageable(self, limit_s: float) -> float:
        start = time.monotonic()
        while time.monotonic() < start + limit_s:
            if self.manageable(0.1):
                return time.monotonic() - start
        pytest.fail("the management path did not come back")

    def await_guard_end(self) -> None:
        deadline = time.monotonic() + 5
        while guard.guard_lives(str(self.state)) and time.monotonic() < deadline:
            time.sleep(0.01)

    def digest(self) -> str:
        return effective_digest(self.nft)

    def close(self) -> None:
        self.nft.close()
        self.server.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Namespace.create(make_unique("tgcc-dev")) as device, Namespace.create(make_unique("tgcc-man")) as manager:
        join(device, manager, addresses_a=[f"{DEVICE}/24"], addresses_b=[f"{MANAGER}/24"])
        made = Lab(device, manager, tmp_path / "state")
        try:
            yield made
        finally:
            made.close()


def test_a_lock_out_rolls_back_by_itself(lab: Lab) -> None:
    lab.apply(GOOD).confirm()
    before = lab.digest()
    start = time.monotonic()
    change = lab.apply(LOCK_OUT, timeout_s=1)
    assert not lab.manageable()
    lab.time_until_manageable(5)
    took = time.monotonic() - start
    report(f"lock-out with a 1 s timeout: manageable again {took:.2f} s after the apply began")
    assert 1.0 <= took < 3
    lab.await_guard_end()
    assert lab.digest() == before
    with pytest.raises(TidegateError) as caught:
        change.confirm()
    assert caught.value.code == "firewall.commit.expired"
    with pytest.raises(TidegateError) as caught:
        load_pending(lab.state, nft=lab.nft)
    assert caught.value.code == "firewall.commit.expired"
    change.rollback()  # harmless
    # A reboot now loads what was confirmed, not what locked out.
    assert (lab.state / "confirmed.nft").exists()
    assert "203.0.113.0" not in (lab.state / "confirmed.nft").read_text()


APPLY_AND_HANG = """
import json, pathlib, sys, time, msgspec
from tidegate.firewall.commit import apply_section
from tidegate.firewall.section import FirewallSection
section = msgspec.convert(json.loads(sys.argv[1]), FirewallSection)
apply_section(section, state_dir=pathlib.Path(sys.argv[2]), confirm_timeout_s=float(sys.argv[3]))
print("applied", flush=True)
time.sleep(1000)
"""


def start_applier(lab: Lab, timeout_s: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", APPLY_AND_HANG, json.dumps(LOCK_OUT), str(lab.state), str(timeout_s)]
    process = lab.device.popen(command, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"applied\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.wait(5)
    assert process.stdout is not None
    process.stdout.close()


def test_it_rolls_back_when_the_applying_process_is_killed(lab: Lab) -> None:
    lab.apply(GOOD).confirm()
    before = lab.digest()
    process = start_applier(lab, 1)
    assert not lab.manageable()
    process.send_signal(signal.SIGKILL)
    end(process)
    report(f"applier killed: manageable again {lab.time_until_manageable(5):.2f} s later")
    lab.await_guard_end()
    assert lab.digest() == before


def test_killed_at_any_moment_of_the_apply_the_old_ruleset_comes_back(lab: Lab) -> None:
    """Before, while and after the change: an interpreter's start and the apply take about 0.4 s together."""
    lab.apply(GOOD).confirm()
    before = lab.digest()
    changed = 0
    for number in range(7):
        command = [sys.executable, "-c", APPLY_AND_HANG, json.dumps(LOCK_OUT), str(lab.state), "1"]
        process = lab.device.popen(command, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 5
        while not (lab.state / guard.PENDING).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(number * 0.05)
        process.kill()
        end(process)
        changed += lab.digest() != before
        lab.time_until_manageable(5)
        deadline = time.monotonic() + 5
        while guards(lab.device) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lab.digest() == before
        restore_last_confirmed(lab.state, nft=lab.nft)  # as the restarted agent does
    report(f"killed 7 times, {changed} times with the change in force")
    assert changed > 0


@pytest.mark.parametrize(("number", "ends_now"), [(signal.SIGHUP, False), (signal.SIGINT, False), (15, True)])
def test_signals_to_the_guard(lab: Lab, number: int, ends_now: bool) -> None:
    """A hang-up is ignored; a service manager's SIGTERM restores at once."""
    change = lab.apply(LOCK_OUT, timeout_s=15)
    for pid in guards(lab.device):
        os.kill(pid, number)
    time.sleep(0.4)
    assert change.is_pending is not ends_now
    assert lab.manageable() is ends_now
    change.rollback()
    assert lab.manageable()


def guards(space: Namespace) -> list[int]:
    return [pid for pid in space.pids() if b"tidegate.firewall.guard" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_the_guard_has_left_its_parent_and_is_small(lab: Lab) -> None:
    change = lab.apply(GOOD)
    [pid] = guards(lab.device)
    assert os.getsid(pid) != os.getsid(0)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(status["PPid"]) != os.getpid()
    resident_kib = int(status["VmRSS"].split()[0])
    report(f"guard: {resident_kib} KiB resident, {status['RssAnon'].split()[0]} KiB of its own")
    assert resident_kib < 16_384
    spared = Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "-900"
    assert spared or "out-of-memory" in (lab.state / "guard.log").read_text()  # containers may not have the right
    change.confirm()


def test_a_guard_that_is_killed_leaves_the_rollback_to_others(lab: Lab) -> None:
    lab.apply(GOOD).confirm()
    before = lab.digest()
    change = lab.apply(LOCK_OUT)
    for pid in guards(lab.device):
        os.kill(pid, signal.SIGKILL)
    lab.await_guard_end()
    load_pending(lab.state, nft=lab.nft).rollback()
    assert lab.digest() == before
    assert not change.is_pending
    # And the next change is guarded again.
    lab.apply(WIDER).confirm()


def test_a_guard_killed_half_way_is_finished_by_others(lab: Lab) -> None:
    lab.apply(GOOD).confirm()
    before = lab.digest()
    lab.apply(LOCK_OUT)
    for pid in guards(lab.device):
        os.kill(pid, signal.SIGKILL)
    lab.await_guard_end()
    (lab.state / guard.PENDING).rename(lab.state / guard.ROLLING_BACK)  # claimed, and then killed
    with pytest.raises(TidegateError) as caught:
        lab.apply(WIDER)
    assert caught.value.code == "firewall.commit.pending"
    load_pending(lab.state, nft=lab.nft).rollback()
    assert lab.digest() == before


def test_what_is_confirmed_stays_and_comes_back_at_boot(lab: Lab) -> None:
    change = lab.apply(WIDER, timeout_s=1)
    digest = change.confirm()
    time.sleep(1.3)
    assert lab.digest() == digest
    with pytest.raises(TidegateError) as caught:
        change.rollback()
    assert caught.value.code == "firewall.commit.nothing-pending"
    lab.nft.run("flush ruleset")  # a reboot
    with lab.device.inside():
        assert booted(restore_last_confirmed(lab.state)) == digest
    assert lab.digest() == digest
    assert lab.manageable()


def test_a_change_that_was_pending_at_power_off_is_dropped_at_boot(lab: Lab) -> None:
    digest = lab.apply(GOOD).confirm()
    lab.apply(LOCK_OUT)
    with pytest.raises(TidegateError) as caught:
        restore_last_confirmed(lab.state, nft=lab.nft)  # not while its guard is alive
    assert caught.value.code == "firewall.commit.pending"
    for pid in guards(lab.device):
        os.kill(pid, signal.SIGKILL)
    lab.await_guard_end()
    lab.nft.run("flush ruleset")
    assert booted(restore_last_confirmed(lab.state, nft=lab.nft)) == digest
    with pytest.raises(TidegateError) as caught:
        load_pending(lab.state, nft=lab.nft)
    assert caught.value.code == "firewall.commit.expired"


def test_boot_without_anything_confirmed_says_so(lab: Lab) -> None:
    assert restore_last_confirmed(lab.state, nft=lab.nft) is None


def test_a_decayed_file_is_not_loaded(lab: Lab) -> None:
    lab.apply(GOOD).confirm()
    stored = lab.state / "confirmed.nft"
    stored.write_bytes(stored.read_bytes().replace(b"192.0.2.2", b"192.0.2.3"))
    with pytest.raises(TidegateError) as caught:
        restore_last_confirmed(lab.state, nft=lab.nft)
    assert caught.value.code == "firewall.state.corrupt"


def test_a_folder_that_others_can_write_is_refused(lab: Lab) -> None:
    lab.state.mkdir(mode=0o777)
    lab.state.chmod(0o777)
    for call in (lambda: lab.apply(GOOD), lambda: restore_last_confirmed(lab.state, nft=lab.nft)):
        with pytest.raises(TidegateError) as caught:
            call()
        assert caught.value.code == "base.permissions.unsafe"
    assert lab.nft.list_table(TABLE) is None


def test_another_process_confirms_and_rolls_back(lab: Lab) -> None:
    before = lab.digest()
    lab.apply(GOOD)
    command = [sys.executable, "-c", "from tidegate.cli.main import main; raise SystemExit(main())", "firewall"]
    done = lab.device.run([*command, "confirm", "--json", "--state", str(lab.state)])
    assert json.loads(done.stdout)["digest"] == lab.digest() != before
    lab.apply(WIDER)
    lab.device.run([*command, "rollback", "--state", str(lab.state)])
    shown = json.loads(lab.device.run([*command, "show", "--json", "--state", str(lab.state)]).stdout)
    assert shown["change"] == "rolled-back"
    assert shown["digest"] == lab.digest()
    again = lab.device.run([*command, "confirm", "--json", "--state", str(lab.state)], check=False)
    assert again.returncode == 4
    assert json.loads(again.stdout)["error"]["code"] == "firewall.commit.expired"


POLICY = """
[policy]
version = 1
[firewall.management]
peers = ["192.0.2.2"]
service = "ssh"
[firewall.services.ssh]
protocol = "tcp"
ports = [22]
peers = []
"""


def test_the_command_line_from_plan_to_bans(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)

    def firewall(*words: str, status: int = 0) -> str:
        script = "from tidegate.cli.main import main; raise SystemExit(main())"
        done = lab.device.run([sys.executable, "-c", script, "firewall", *words], check=False)
        assert done.returncode == status, done.stderr.decode()
        return done.stdout.decode()

    assert "ssh" in firewall("plan", str(policy))
    monkeypatch.setenv("SSH_CONNECTION", f"203.0.113.5 50000 {DEVICE} 22")
    firewall("apply", str(policy), "--state", str(lab.state), status=3)  # would cut who is typing
    monkeypatch.setenv("SSH_CONNECTION", f"{MANAGER} 50000 {DEVICE} 22")
    text = firewall("plan", str(policy), "--nft")
    lab.nft.check(text)
    assert lab.nft.list_table(TABLE) is None  # planning changes nothing
    firewall("apply", str(policy), "--state", str(lab.state), "--confirm-timeout", "15")
    firewall("apply", str(policy), "--state", str(lab.state), status=2)  # one at a time
    firewall("confirm", "--state", str(lab.state))
    firewall("ban", "198.51.100.9", "--for", "60")
    assert "198.51.100.9" in firewall("bans")
    firewall("unban", "198.51.100.9")
    firewall("ban", MANAGER, status=3)
    policy.write_text(POLICY.replace("[firewall.management]\n", "[firewall.other]\n"))
    firewall("apply", str(policy), "--state", str(lab.state), status=3)
    policy.write_text('[policy]\nversion = 1\n[firewall.services.x]\nprotocol = "tcp"\nports = [1]\npeers = ["any"]\n')
    assert "firewall.check.management-cut" in firewall("plan", str(policy), status=1)


def test_bans_live_through_apply_and_rollback(lab: Lab) -> None:
    lab.apply(GOOD).confirm()
    with lab.device.inside():
        bans = Bans()
    bans.ban("198.51.100.1", 600)
    change = lab.apply({**WIDER, "bans": {"never": ["198.51.100.7"]}})
    bans.ban("198.51.100.2", 500)
    bans.refresh()
    with pytest.raises(TidegateError) as caught:
        bans.ban("198.51.100.7", 5)
    assert caught.value.code == "firewall.ban.never"
    change.rollback()
    remaining = {str(ban.address): ban.remaining_s for ban in bans.list_bans()}
    assert 580 < remaining["198.51.100.1"] < 600
    assert 480 < remaining["198.51.100.2"] < 500
    bans.refresh()
    bans.ban("198.51.100.7", 5)  # the list of protected addresses went back with the policy
    bans.close()


def test_one_change_at_a_time(lab: Lab) -> None:
    change = lab.apply(GOOD)
    with pytest.raises(TidegateError) as caught:
        lab.apply(WIDER)
    assert caught.value.code == "firewall.commit.pending"
    change.confirm()
    lab.apply(WIDER).confirm()  # at once: the old guard's last moments do not confuse the new change
    time.sleep(0.3)
    assert "svc_web" in (lab.nft.list_table(TABLE) or "")


def test_a_changed_ruleset_is_not_confirmed(lab: Lab) -> None:
    lab.apply(GOOD).confirm()
    before = lab.digest()
    change = lab.apply(WIDER)
    lab.nft.run("insert rule inet tidegate input tcp dport 4444 accept")  # somebody else's hand
    with pytest.raises(TidegateError) as caught:
        change.confirm()
    assert caught.value.code == "firewall.commit.changed"
    change.rollback()
    assert lab.digest() == before


def test_probes_decide(lab: Lab) -> None:
    lab.apply(GOOD).confirm()
    before = lab.digest()
    with pytest.raises(TidegateError) as caught:
        lab.apply(LOCK_OUT, probes=[lab.manageable])
    assert caught.value.code == "firewall.commit.probe-failed"
    assert lab.digest() == before

    def broken() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lab.apply(WIDER, probes=[broken])
    assert lab.digest() == before
    lab.apply(WIDER, probes=[lab.manageable]).confirm()


@pytest.mark.parametrize("timeout_s", [0, 0.5, 3601, float("nan")])
def test_timeouts_out_of_range(lab: Lab, timeout_s: float) -> None:
    with pytest.raises(TidegateError) as caught:
        lab.apply(GOOD, timeout_s=timeout_s)
    assert caught.value.code == "firewall.commit.timeout"


def test_without_a_guard_nothing_is_changed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(TidegateError) as caught:
        lab.apply(GOOD)
    assert caught.value.code == "firewall.commit.guard"
    assert lab.nft.list_table(TABLE) is None
    with pytest.raises(TidegateError) as caught:
        load_pending(lab.state, nft=lab.nft)
    assert caught.value.code == "firewall.commit.nothing-pending"


def test_a_refused_transaction_leaves_nothing_waiting(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.apply(GOOD).confirm()
    before = lab.digest()
    monkeypatch.setattr(commit, "encode_ruleset", lambda _: "add rule inet tidegate nowhere accept\n")
    with pytest.raises(TidegateError) as caught:
        lab.apply(WIDER)
    assert caught.value.code == "firewall.nft.refused"
    assert lab.digest() == before
    monkeypatch.undo()
    lab.apply(WIDER).confirm()


@pytest.mark.parametrize("size", ["4k", "8k", "16k", "24k"])
def test_a_full_disk_changes_nothing(lab: Lab, size: str) -> None:
    """A real file system that is full before the change, at the change, or right after it."""
    lab.apply(GOOD).confirm()
    before = lab.digest()
    full = lab.state.with_name("full")
    full.mkdir()
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(full)], check=True)
    try:
        with pytest.raises(TidegateError) as caught, lab.device.inside():
            apply_section(section(WIDER), state_dir=full, nft=lab.nft)
        assert caught.value.code == "base.storage.full"
        assert lab.digest() == before
        lab.await_guard_end()
        time.sleep(0.15)  # the first guard looks every tenth of a second
        assert not guards(lab.device)
    finally:
        subprocess.run(["/bin/umount", str(full)], check=True)
