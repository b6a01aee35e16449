"""The vault under a real agent: programs of other users in another language, lockdown, tampering, kills, the end."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tidegate.agent.api import ask_agent
from tidegate.agent.errors import AgentAbsent
from tidegate.agent.home import SOCKET, VAULT_SOCKET
from tidegate.base.errors import Fault
from tidegate.base.program import run_program
from tidegate.cli.main import main
from tidegate.crypto.aead import Secret
from tidegate.crypto.trust import TrustPolicy
from tidegate.testing.loopfs import mounted_ext4
from tidegate.vault.erase import verify_receipt
from tidegate.vault.fscrypt import EncryptedDirectory

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("agent_conftest", ROOT / "tests/unit/agent/conftest.py")
_conftest = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _conftest
_spec.loader.exec_module(_conftest)
works, provisioned, netns = _conftest.works, _conftest.device, _conftest.netns

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and other users need root"),
    pytest.mark.skipif(shutil.which("socat") is None, reason="socat is not installed"),
]
PROGRAM = ROOT / "examples/vault-api.sh"
WARD, AUDIT, STRANGER = 61_001, 61_002, 61_003
GRANTS = f"""
[vault.grants.ward]
user = {WARD}
items = ["patients/"]
write = true
[vault.grants.audit]
user = {AUDIT}
items = ["patients/1"]
"""


class Agent:
    """The agent's process in its namespace, and the programs around it."""

    def __init__(self, device, netns, console: Path) -> None:
        self.device, self.home = device, device.home
        self._netns, self._console = netns, console
        self.vault_socket = self.home.run / VAULT_SOCKET
        self.start()

    def start(self) -> None:
        words = ["--storage", self.home.storage.folder, "--data", self.home.data, "--run", self.home.run]
        with self._console.open("ab") as console:
            self.process = subprocess.Popen(
                self._netns.command([sys.executable, "-m", "tidegate.agent", *map(str, words)]),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
            )
        self.until(self._answers)

    def in_namespace(self, *words: str) -> list[str]:
        return self._netns.command(list(words))

    def _answers(self) -> bool:
        with contextlib.suppress(AgentAbsent):
            return "device" in self.ask(op="status")
        return False

    def ask(self, **request) -> dict:
        return ask_agent(self.home.run / SOCKET, request, timeout_s=10)

    def code(self, **request) -> str:
        return self.ask(**request)["error"]["code"]

    @property
    def vault(self) -> dict:
        return self.ask(op="status")["vault"]

    def follow(self, version: int, head: str) -> None:
        """Have the agent follow a policy with ``head``, for good."""
        policy = base64.b64encode(self.device.policy(version, head=head)).decode()
        assert "error" not in (answer := self.ask(op="apply-policy", policy=policy)), answer
        assert self.ask(op="confirm-policy") == {"policy": version}

    def serving(self, *, instead_of: int | None = None) -> None:
        """Wait until the vault's process serves, another one than that of before."""

        def is_up() -> bool:
            vault = self.vault
            return vault is not None and vault["serving"] and vault["process"] != instead_of

        self.until(is_up)

    def until(self, condition, patience_s: float = 10.0) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert self.process.poll() is None, self._console.read_text()
            assert time.monotonic() < deadline, (self.device.kinds(), self._console.read_text())
            time.sleep(0.02)

    def of(self, kind: str) -> list[dict]:
        return [event for event in self.device.events() if event["unmapped"]["tidegate"]["kind"] == kind]

    def program(self, user: int, *words: str, content: bytes = b"") -> subprocess.CompletedProcess:
        """Run the example, a shell program without any of our code, as ``user``."""
        return subprocess.run(
            ["/bin/sh", str(self.home.run / "program.sh"), *words],
            input=content,
            capture_output=True,
            timeout=15,
            check=False,
            user=user,
            group=user,
            extra_groups=[],
            env={"PATH": "/usr/bin:/bin", "TIDEGATE_VAULT": str(self.vault_socket)},
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)


@pytest.fixture
def device(provisioned):
    """The device with a run folder that other users can pass through, as the unit makes it."""
    with tempfile.TemporaryDirectory(prefix="tgva-") as folder:
        Path(folder).chmod(0o711)
        shutil.copyfile(PROGRAM, Path(folder) / "program.sh")
        (Path(folder) / "program.sh").chmod(0o755)
        yield dataclasses.replace(provisioned, home=dataclasses.replace(provisioned.home, run=Path(folder)))


@pytest.fixture
def agent(device, netns, tmp_path):
    made = Agent(device, netns, tmp_path / "console")
    yield made
    if made.process.poll() is None:
        assert made.stop() == 0
    assert "Traceback" not in (tmp_path / "console").read_text()


def test_programs_of_two_users_and_a_stranger(agent):
    assert agent.vault is None
    agent.follow(2, GRANTS)
    agent.serving()
    assert agent.program(WARD, "write", "patients/1", content=b"blood group \0\xff").returncode == 0
    assert agent.program(WARD, "read", "patients/1").stdout == b"blood group \0\xff"
    assert agent.program(AUDIT, "read", "patients/1").stdout == b"blood group \0\xff"
    assert json.loads(agent.program(AUDIT, "list").stdout)["items"][0]["name"] == "patients/1"
    for user, words in [
        (AUDIT, ("write", "patients/1")),
        (AUDIT, ("read", "patients/2")),
        (WARD, ("read", "other")),
        (STRANGER, ("list",)),
        (0, ("read", "patients/1")),
    ]:
        done = agent.program(user, *words)
        assert (done.returncode, json.loads(done.stderr)["error"]["code"]) == (3, "agent.vault.denied")
    agent.until(lambda: len(agent.of("vault.refused")) == 5)
    assert {event["status_code"] for event in agent.of("vault.refused")} == {"agent.vault.denied"}
    assert len(agent.of("vault.opened")) == 1
    log = b"".join(path.read_bytes() for path in agent.home.events.glob("*.events"))
    assert b"patients" not in log
    assert b"blood" not in log


def test_grants_follow_the_policy(agent):
    agent.follow(2, GRANTS)
    agent.serving()
    first = agent.vault["process"]
    agent.follow(3, GRANTS + f"[vault.grants.more]\nuser = {STRANGER}\nitems = ['*']\n")
    agent.serving(instead_of=first)
    assert agent.program(STRANGER, "list").returncode == 0
    agent.follow(4, "[vault]\n")
    agent.until(lambda: agent.vault["process"] is None)
    assert agent.program(STRANGER, "list").returncode != 0
    assert not agent.of("agent.failed")


def test_a_lockdown_takes_the_vault_away_until_it_is_lifted(agent):
    agent.follow(2, GRANTS)
    agent.serving()
    agent.program(WARD, "write", "patients/1", content=b"x")
    agent.ask(op="lockdown", on=True, reason="an attack")
    agent.until(lambda: agent.vault["locked"] == "lockdown" and agent.vault["process"] is None)
    assert agent.program(WARD, "read", "patients/1").returncode not in (0, 3)
    assert agent.code(op="vault-unlock") == "agent.vault.unlock-refused"
    agent.ask(op="lockdown", on=False)
    agent.serving()
    assert agent.vault["locked"] is None
    assert agent.program(WARD, "read", "patients/1").stdout == b"x"
    told = [event["unmapped"]["tidegate"]["data"] for event in agent.of("vault.locked")]
    assert [(data["on"], data["trigger"]) for data in told] == [(True, "lockdown"), (False, "lockdown")]


def test_tampering_locks_until_an_operator_asks_even_over_a_restart(agent, tmp_path):
    watched = tmp_path / "watched"
    watched.write_text("as it was")
    agent.follow(2, GRANTS + f"[watch]\npaths = ['{watched}']\n")
    agent.serving()
    time.sleep(1.0)  # the watch has read it
    watched.write_text("changed")
    agent.until(lambda: agent.vault["locked"] == "tamper" and agent.vault["process"] is None)
    agent.ask(op="lockdown", on=True)
    agent.ask(op="lockdown", on=False)
    time.sleep(1.0)
    assert agent.vault["locked"] == "tamper", "the end of another cause is not the end of this one"
    assert agent.stop() == 0
    agent.start()
    time.sleep(1.0)
    assert (agent.vault["locked"], agent.vault["process"]) == ("tamper", None)
    assert agent.ask(op="vault-unlock") == {"locked": False}
    agent.serving()


def test_somebody_elses_firewall_change_is_tampering(agent):
    agent.follow(2, GRANTS)
    agent.serving()
    time.sleep(1.0)  # what is there is ours
    run_program(agent.in_namespace("nft", "flush", "chain", "inet", "tidegate", "input"))
    agent.until(lambda: agent.vault["locked"] == "tamper" and agent.vault["process"] is None)
    assert len(agent.of("firewall.tampered")) == 1


def test_a_lockdown_does_not_lock_where_the_policy_says_so(agent):
    agent.follow(2, "[vault]\nlock_on = []\n" + GRANTS)
    agent.serving()
    agent.ask(op="lockdown", on=True)
    time.sleep(1.0)
    assert agent.vault["locked"] is None
    assert agent.program(WARD, "list").returncode == 0


def test_an_operator_locks(agent):
    agent.follow(2, GRANTS)
    agent.serving()
    run = ["--run", str(agent.home.run)]
    assert main(["agent", "vault-lock", *run, "--reason", "service"]) == 0
    assert (agent.vault["locked"], agent.vault["process"]) == ("operator", None)
    assert not agent.vault_socket.exists()
    assert main(["agent", "vault-unlock", *run]) == 0
    agent.serving()
    assert main(["agent", "vault-erase", *run, "--reason", "sold", "--for-ever"]) == 3, "the policy does not let him"


def test_a_killed_process_comes_back_with_everything_that_it_had_confirmed(agent):
    agent.follow(2, GRANTS)
    agent.serving()
    assert agent.program(WARD, "write", "patients/1", content=b"confirmed").returncode == 0
    before = agent.vault["process"]
    os.kill(before, signal.SIGKILL)
    agent.serving(instead_of=before)
    assert agent.program(WARD, "read", "patients/1").stdout == b"confirmed"
    assert [event["status_code"] for event in agent.of("agent.failed")] == ["agent.worker.ended"]


def test_it_ends_with_the_agent(agent):
    agent.follow(2, GRANTS)
    agent.serving()
    pid = agent.vault["process"]
    agent.process.kill()
    agent.process.wait(5)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def event_trust(device) -> TrustPolicy:
    keys = device.home.open_keys()
    signer = keys.signer("events")
    keys.close()
    return TrustPolicy(keys=(signer.public_key,), threshold=1, required_classes=frozenset())


def test_tampering_erases_where_the_policy_says_so(agent, device, tmp_path):
    watched = tmp_path / "watched"
    watched.write_text("as it was")
    agent.follow(2, f"[vault]\nerase_on = ['tamper']\n{GRANTS}[watch]\npaths = ['{watched}']\n")
    agent.serving()
    agent.program(WARD, "write", "patients/1", content=b"x")
    time.sleep(1.0)
    watched.write_text("changed")
    agent.until(lambda: agent.vault["erased"])
    agent.until(lambda: bool(agent.of("vault.erased")))
    (event,) = agent.of("vault.erased")
    data = event["unmapped"]["tidegate"]["data"]
    receipt = agent.home.erase_receipt.read_bytes()
    assert data["receipt"] == hashlib.sha256(receipt).hexdigest()
    assert verify_receipt(receipt, event_trust(device))["vault"] == data["vault"]
    assert not any(path.is_file() and path.name != "lock" for path in agent.home.vault.rglob("*"))
    assert agent.ask(op="vault-unlock") == {"locked": False}
    time.sleep(1.0)
    assert (agent.vault["erased"], agent.vault["process"]) == (True, None)
    assert not agent.of("agent.failed")


def test_an_operator_erases_only_where_the_policy_lets_him(agent):
    agent.follow(2, GRANTS)
    agent.serving()
    assert agent.code(op="vault-erase", reason="sold") == "agent.vault.erase-refused"
    agent.follow(3, "[vault]\nerase_on = ['end-of-life']\n" + GRANTS)
    agent.serving()
    assert agent.code(op="vault-erase") == "agent.request.malformed"
    assert agent.ask(op="vault-erase", reason="sold") == {"erased": True, "receipt": str(agent.home.erase_receipt)}
    assert agent.code(op="vault-erase", reason="again") == "agent.vault.erase-refused"
    assert [event["unmapped"]["tidegate"]["data"]["trigger"] for event in agent.of("vault.erased")] == ["end-of-life"]


def test_an_erasure_that_was_decided_goes_on_after_a_power_cut(agent):
    agent.follow(2, "[vault]\nerase_on = ['end-of-life']\n" + GRANTS)
    agent.serving()
    agent.process.kill()
    agent.process.wait(5)
    _, erasing = agent.home.vault_marks
    erasing.write_bytes(b'{"trigger":"end-of-life","reason":"sold"}')
    agent.start()
    agent.until(lambda: bool(agent.of("vault.erased")))
    assert agent.vault["erased"]
    assert not erasing.exists()


@pytest.fixture
def encrypted(tmp_path):
    """A directory that the kernel encrypts, unlocked."""
    with contextlib.ExitStack() as stack:
        try:
            mount, _ = stack.enter_context(mounted_ext4(tmp_path, features=["encrypt"]))
            directory = EncryptedDirectory.create(mount / "patients", Secret(os.urandom(64)))
        except Fault as fault:
            pytest.skip(f"no encrypted directories can be had here: {fault.message}")
        (mount / "patients" / "one").write_bytes(b"x")
        yield directory


def test_encrypted_directories_are_locked(encrypted, agent, tmp_path):
    agent.follow(2, f"[vault]\nlock = ['{encrypted.directory}', '{tmp_path}/missing']\n")
    agent.ask(op="lockdown", on=True)
    agent.until(lambda: bool(agent.of("vault.locked")))
    assert not encrypted.status().unlocked
    assert agent.of("vault.locked")[0]["unmapped"]["tidegate"]["data"]["failed"] == [
        f"{tmp_path}/missing: base.storage.missing"
    ]


def test_without_a_section_nothing_is_asked_of_the_vault(agent):
    assert agent.vault is None
    for request in ({"op": "vault-unlock"}, {"op": "vault-lock", "reason": "x"}, {"op": "vault-erase", "reason": "x"}):
        assert agent.code(**request) == "agent.vault.unused"
    assert not agent.vault_socket.exists()
