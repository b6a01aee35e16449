"""Chapters 4 and 5: one signed policy, and real attacks against it.

Touches: nmap and hping3 in the attacker's namespace, an SSH session in the operator's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidegate.base.durable import write_file_atomic
from tidegate.base.program import find_program, run_program
from tidegate.demo.board import Board
from tidegate.demo.booting import fetch_version
from tidegate.demo.lab import ATTACKER_ADDRESS, DEVICE_ADDRESS, Lab
from tidegate.demo.making import Bench, config_folder, write_policy
from tidegate.demo.product import SERVICE_PORT
from tidegate.demo.report import Report, require, wait_until
from tidegate.demo.witness import EventReader, OperatorShell, honest_client, kind_of
from tidegate.policy.document import parse_policy
from tidegate.policy.sign import sign_policy

DETECT_WITHIN_S = 2.0
CUT_TIMEOUT_S = 4
FORBIDDEN_PORT = 9999
WRONG_SENDERS = """
[firewall.zones]
cable = { interfaces = ["eth0"] }
[firewall.link.cable]
macs = ["02:00:00:00:00:99"]
"""
READ, WRITE = "000100000006010300000001", "000200000006010600000007"  # Modbus: function 3, function 6
PLC = """
import socket
server = socket.create_server(("0.0.0.0", 502))
while True:
    connection, _ = server.accept()
    connection.settimeout(2)
    try:
        said = connection.recv(260)
        connection.sendall(said[:4] + bytes([0, 5]) + said[6:8] + bytes([2, 0, 7]))
    except OSError:
        pass
    connection.close()
"""
ASK_PLC = """
import socket, sys
with socket.create_connection((sys.argv[1], 502), timeout=1) as client:
    client.sendall(bytes.fromhex(sys.argv[2]))
    sys.exit(not client.recv(100))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """An attack as the attacker types it, and the detector that has to name it."""

    title: str
    command: tuple[str, ...]
    detector: str


ATTACKS = (
    Attack(
        title="nmap SYN scan",
        command=("nmap", "-n", "-Pn", "-sS", "-p", "1-2000", "-T4", "--max-retries", "1", DEVICE_ADDRESS),
        detector="scan.syn",
    ),
    Attack(
        title="nmap Xmas scan",
        command=("nmap", "-n", "-Pn", "-sX", "-p", "1-200", "-T4", "--max-retries", "1", DEVICE_ADDRESS),
        detector="scan.xmas",
    ),
    Attack(
        title="hping3 SYN flood",
        command=("hping3", "-q", "-n", "-S", "-p", str(SERVICE_PORT), "--flood", DEVICE_ADDRESS),
        detector="flood.syn",
    ),
)


def tell_policy(
    report: Report, bench: Bench, board: Board, lab: Lab, shell: OperatorShell, reader: EventReader
) -> None:
    """Chapter 4: the policy at work, and one that would cut the operator off."""
    report.chapter("4  Policy")
    with report.step("one signed policy turns on firewall, sensor and file watch") as step:
        board.start_inside([sys.executable, "-I", "-m", "http.server", str(FORBIDDEN_PORT)])
        wait_until(lambda: _connects(lab.operator, FORBIDDEN_PORT), "the forbidden port has no listener", timeout_s=5)
        status = board.start_agent()
        shell.serve()
        require(status["policy"] == 1, "policy 1 is not in force")
        step.evidence.append(f"policy 1 in force; nftables ruleset sha256 {str(status['firewall_digest'])[:16]}…")
        require(fetch_version(lab.operator) is not None, "the service does not answer the operator")
        require(not _connects(lab.operator, FORBIDDEN_PORT), "a port that nobody allowed answers")
        require(not _connects(lab.attacker, 22), "the attacker reaches SSH")
        step.evidence.append(f"service answers; SSH only for the operator; port {FORBIDDEN_PORT}, open before, is shut")
    with report.step("a new policy is applied over SSH and confirmed over SSH") as step:
        shell.run(_tidegate("agent", "apply", "--run", board.run, _signed(bench, board, version=2)))
        shell.run(_tidegate("agent", "confirm", "--run", board.run))
        require(board.ask({"op": "status"})["policy"] == 2, "policy 2 is not confirmed")
        step.evidence.append("policy 2 in force: one nftables transaction, its rollback armed before")
    with report.step("a policy that would cut the session that manages the device is refused") as step:
        wrong = _signed(bench, board, version=3, peers="203.0.113.7")
        said = shell.complaint(_tidegate("agent", "apply", "--run", board.run, wrong))
        require("firewall.check.session-cut" in said, f"refused for another reason: {said[-200:]}")
        step.evidence.append(f"policy 3 manages from 203.0.113.7 only: {_first_line(said)}")
    with report.step("one whose cut no check can see rolls itself back") as step:
        wrong = _signed(bench, board, version=3, timeout_s=CUT_TIMEOUT_S, more=WRONG_SENDERS)
        answer = shell.run(_tidegate("agent", "apply", "--run", board.run, wrong))
        step.evidence.append(f"policy 3 takes frames from one strange network card only: {' '.join(answer.split())}")
        require(not shell.works(), "the operator still gets in: the policy cuts nothing")
        step.evidence.append("the operator is locked out and cannot confirm")
        seconds = wait_until(shell.works, "SSH does not come back", timeout_s=CUT_TIMEOUT_S + 8)
        wait_until(lambda: _policy_state(board) == (2, None), "the agent does not report policy 2", timeout_s=3)
        step.evidence.append(f"{seconds:.1f} s later SSH works again: policy 2 is back by itself")
    with report.step("a Modbus read passes, a write behind it does not") as step:
        step.evidence += _ask_plc(board, lab, reader)
    with report.step("lockdown leaves the operator's path and nothing else") as step:
        shell.run(_tidegate("firewall", "lockdown", "on", "--reason", "drill", "--state", board.home.firewall_state))
        require(not _connects(lab.visitor, SERVICE_PORT), "the service still answers")
        require(shell.works(), "the operator is locked out")
        shell.run(_tidegate("firewall", "lockdown", "off", "--state", board.home.firewall_state))
        require(_connects(lab.visitor, SERVICE_PORT), "the service does not answer again")
        step.evidence.append("the service falls silent, SSH works; lifted, the service answers again")
    with report.step("why a packet is refused: the policy and the kernel say the same") as step:
        words = ["firewall", "why", ATTACKER_ADDRESS, "tcp/22", "--policy", _written(bench, board, version=2)]
        why = run_program(board.inside([sys.executable, "-m", "tidegate.cli.main", *map(str, words)]), check=False)
        lines = [line.strip() for line in why.stdout.decode().splitlines() if line.strip()]
        require(why.returncode == 1 and any(line.startswith("kernel:") for line in lines), f"no answer: {lines}")
        step.evidence += lines[:3]


def _ask_plc(board: Board, lab: Lab, reader: EventReader) -> list[str]:
    """Ask a Modbus server on the device from the visitor's place; return what came of it."""
    server = board.start_inside([sys.executable, "-I", "-c", PLC])
    wait_until(lambda: _modbus(lab.visitor, READ), "the PLC does not answer a read", timeout_s=8)
    before = reader.count()
    require(not _modbus(lab.visitor, READ + WRITE), "a write behind a read reached the PLC")
    event = reader.wait_for(
        lambda event: kind_of(event) == "firewall.field-refused", "the write is not reported", after=before, timeout_s=3
    )
    server.kill()
    return [
        "function 3 is answered; function 6 pipelined behind it is not, and ends the connection",
        str(event["message"]),
    ]


def _modbus(host: Any, messages: str) -> bool:
    """Return whether the device answers Modbus ``messages`` (hexadecimal) at all."""
    done = host.run(["python3", "-I", "-c", ASK_PLC, DEVICE_ADDRESS, messages], check=False)
    return bool(done.returncode == 0)


def _first_line(text: str) -> str:
    """Return the line in which our own command says what it refuses."""
    return next((line.strip() for line in text.splitlines() if "tidegate" in line or "refuse" in line), text[-200:])


def tell_attacks(report: Report, board: Board, lab: Lab, reader: EventReader) -> None:
    """Chapter 5: each attack is named within two seconds, its source banned; an honest client notices nothing."""
    report.chapter("5  Attack")
    with honest_client(lab.visitor, SERVICE_PORT) as client_result:
        for attack in ATTACKS:
            with report.step(f"{attack.title}: reported and banned") as step:
                step.evidence += _attack(board, lab, reader, attack)
        with report.step("an honest client's requests succeed throughout") as step:
            counted = client_result()
            step.evidence.append(
                f"{counted['asked']} requests, {counted['failed']} failed, slowest {counted['slowest_ms']} ms"
            )
            require(counted["asked"] > 20 and counted["failed"] == 0, "the honest client was disturbed")
    with report.step("a changed file under watch is reported") as step:
        before = reader.count()
        watched = config_folder(board.storage) / "gateway.conf"
        write_file_atomic(watched, b"upstream = 203.0.113.66\n")
        event = reader.wait_for(
            lambda event: kind_of(event) == "ids.file-changed", "the change is not reported", after=before, timeout_s=5
        )
        step.evidence.append(str(event["message"]))


def _attack(board: Board, lab: Lab, reader: EventReader, attack: Attack) -> list[str]:
    """Run one attack and return the evidence that it was seen and stopped."""
    before = reader.count()
    started_ms = time.time() * 1000
    process = lab.attacker.popen(attack.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:

        def named(event: Mapping[str, Any]) -> bool:
            data = event["unmapped"]["tidegate"].get("data", {})
            return kind_of(event) == "ids.detected" and data.get("detector") == attack.detector

        alert = reader.wait_for(named, f"{attack.title} is not reported", after=before, timeout_s=5)
        seconds = (alert["time"] - started_ms) / 1000
        require(seconds <= DETECT_WITHIN_S, f"reported only after {seconds:.1f} s")
        ban = reader.wait_for(
            lambda event: kind_of(event) == "firewall.banned", "no ban follows", after=before, timeout_s=2
        )
        time.sleep(0.5)  # the attack goes on against the ban
        require(not _connects(lab.attacker, SERVICE_PORT), "the attacker still reaches the service")
    finally:
        process.kill()
        process.wait()
    board.ask({"op": "unban", "address": ATTACKER_ADDRESS})
    time.sleep(1.5)  # the detectors' windows run out, so that the next attack is a new one
    return [f"{alert['message']} ({seconds:.2f} s after its start)", str(ban["message"])]


def _policy_state(board: Board) -> tuple[object, object]:
    """Return the confirmed and the pending policy's version."""
    status = board.ask({"op": "status"})
    return status["policy"], status["policy_pending"]


def _connects(host: Any, port: int) -> bool:
    script = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=0.7)"
    return bool(host.run(["python3", "-I", "-c", script, DEVICE_ADDRESS, str(port)], check=False).returncode == 0)


def _signed(bench: Bench, board: Board, *, version: int, **wishes: Any) -> Path:
    """Have the owner sign one more policy; return its file."""
    text = write_policy(version=version, watched=config_folder(board.storage), **wishes)
    path = bench.work / f"policy-{version}.cose"
    write_file_atomic(path, sign_policy(parse_policy(text, name=f"policy-{version}.toml"), bench.owner.signers))
    return path


def _written(bench: Bench, board: Board, *, version: int) -> Path:
    """Return the file of one policy as an operator writes it."""
    path = bench.work / f"policy-{version}.toml"
    write_file_atomic(path, write_policy(version=version, watched=config_folder(board.storage)).encode())
    return path


def _tidegate(*words: object) -> str:
    """Return the shell command that runs our own command line."""
    return " ".join([sys.executable, "-m", "tidegate.cli.main", *map(str, words)])


def required_programs() -> list[str]:
    """Return the paths of the programs that the attacks and the operator need, or raise ``base.program.missing``."""
    return [
        find_program(name) for name in ("nmap", "hping3", "iptables-nft-restore", "dropbear", "dbclient", "dropbearkey")
    ]
