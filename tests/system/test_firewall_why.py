"""``tidegate firewall why`` on the real kernel: what the answer says, and that the question leaves no trace."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.cli import firewall_why
from tidegate.cli.output import Output
from tidegate.firewall.bans import Bans
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.link import LINK_TABLE
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft, ProgramEngine
from tidegate.firewall.probe import prepare_probe, trace_probe
from tidegate.firewall.probe_packet import WHY_TABLE
from tidegate.firewall.section import FirewallSection
from tidegate.firewall.why import Answer, judge_path, plan_path
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

DEVICE, MANAGER, PEER, STRANGER = "192.0.2.1", "192.0.2.2", "192.0.2.9", "192.0.2.66"
DEVICE6, PEER6 = "2001:db8::1", "2001:db8::9"
INSIDE, INSIDE_DEVICE = "198.51.100.20", "198.51.100.1"

SECTION: dict[str, Any] = {
    "forward": "deny",
    "zones": {"outside": {"interfaces": ["veth0"]}, "inside": {"interfaces": ["veth-in"]}},
    "management": {"peers": [MANAGER], "service": "ssh"},
    "services": {
        "ssh": {"protocol": "tcp", "ports": [22], "peers": []},
        "web": {"protocol": "tcp", "ports": [8080], "peers": ["any"], "limit": {"new_per_s": 50}},
        "coap": {"protocol": "udp", "ports": [5683], "peers": [PEER, PEER6]},
        "tunnel": {"protocol": "esp", "peers": [PEER]},
        "signals": {"protocol": "sctp", "ports": [2905], "peers": [PEER]},
    },
    "egress": {
        "default": "deny",
        "services": {"dns": {"protocol": "udp", "ports": [53], "peers": [INSIDE, PEER6]}},
    },
    "routes": {"tls": {"protocol": "tcp", "ports": [443], "sources": [PEER], "destinations": [INSIDE]}},
    "nat": {
        "masquerade": {"out": {"sources": [f"{PEER}/32"], "zones": ["inside"]}},
        "port_forwards": {
            "plc": {
                "protocol": "tcp",
                "port": 1502,
                "zones": ["outside"],
                "peers": ["any"],
                "to": INSIDE,
                "to_port": 502,
            }
        },
    },
}


class Lab:
    """A gateway with a cable to everybody (veth0) and one to its inside."""

    def __init__(self, device: Namespace, others: Namespace) -> None:
        self.device, self.others = device, others
        with device.inside():
            self.nft = Nft.open()

    def load(self, **changes: Any) -> FirewallSection:
        section = msgspec.convert(SECTION | changes, FirewallSection)
        self.nft.run(encode_ruleset(plan_ruleset(section)))
        return section

    def ask(
        self, question: str, section: FirewallSection | None, capsys: pytest.CaptureFixture[str], *options: str
    ) -> tuple[int, dict[str, Any]]:
        """Return exit status and JSON document of ``why``, asked inside the device."""
        parser = argparse.ArgumentParser()
        firewall_why.add(parser.add_subparsers())
        arguments = parser.parse_args(["why", *question.split(), *options])
        capsys.readouterr()
        with self.device.inside():
            status = firewall_why.run_why(arguments, Output(as_json=True), section)
        return status, json.loads(capsys.readouterr().out)

    def tables(self) -> list[str]:
        return self.device.run(["nft", "list", "tables"]).stdout.decode().split()

    def connections(self) -> str:
        return self.device.run(["conntrack", "-L"]).stdout.decode()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("tgwhy-dev")) as device, Namespace.create(make_unique("tgwhy-oth")) as others:
        join(
            device,
            others,
            interfaces=("veth0", "far0"),
            addresses_a=[f"{DEVICE}/24", f"{DEVICE6}/64"],
            addresses_b=[f"{one}/24" for one in (MANAGER, PEER, STRANGER)] + [f"{PEER6}/64"],
        )
        join(
            device,
            others,
            interfaces=("veth-in", "far-in"),
            addresses_a=[f"{INSIDE_DEVICE}/24"],
            addresses_b=[f"{INSIDE}/24"],
        )
        device.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
        made = Lab(device, others)
        try:
            yield made
        finally:
            made.nft.close()


# question, exit status, verdict, the model's rule, the chain of the kernel's deciding rule
QUESTIONS = [
    (f"{PEER} tcp/502", 1, "drop", "default", "input"),
    (f"{PEER} → tcp/8080", 0, "accept", "services.web", "svc_web_gate"),
    (f"{PEER} -> tcp/22", 1, "drop", "default", "input"),
    (f"{MANAGER} to tcp/22", 0, "accept", "management", "management"),
    (f"{PEER} udp/5683", 0, "accept", "services.coap", "in_admit"),
    (f"{STRANGER} udp/5683", 1, "drop", "default", "input"),
    (f"{PEER6} udp/5683", 0, "accept", "services.coap", "in_admit"),
    (f"2001:db8::a {DEVICE6} udp/5683", 1, "drop", "default", "input"),
    (f"{PEER} ping", 0, "accept", "ping", "pings"),
    (f"{PEER6} ping", 0, "accept", "ping", "pings"),
    (f"{PEER} sctp/2905", 0, "accept", "services.signals", "in_admit"),
    (f"{STRANGER} sctp/2905", 1, "drop", "default", "input"),
    (f"{PEER} gre", 1, "drop", "default", "input"),
    (f"{PEER} → {INSIDE} tcp/443", 0, "accept", "routes.tls", "fwd_admit"),
    (f"{STRANGER} → {INSIDE} tcp/443", 1, "drop", "forward", "forward"),
    (f"self → {INSIDE} udp/53", 0, "accept", "egress.dns", "out_admit"),
    (f"self → {PEER6} udp/53", 0, "accept", "egress.dns", "out_admit"),
    (f"self → {PEER} tcp/53", 1, "reject", "egress", "output"),
    (f"{DEVICE} → {PEER} udp/53", 1, "reject", "egress", "output"),
    ("self → 127.0.0.1 tcp/80", 0, "accept", "loopback", "output"),
]


@pytest.mark.parametrize(("question", "status", "verdict", "rule", "chain"), QUESTIONS)
def test_the_answer_names_the_rule(
    lab: Lab, capsys: pytest.CaptureFixture[str], question: str, status: int, verdict: str, rule: str, chain: str
) -> None:
    given, answer = lab.ask(question, lab.load(), capsys)
    assert (given, answer["verdict"], answer["model"]["rule"]) == (status, verdict, rule)
    assert answer["agree"] is True
    assert answer["code"] is None
    step = answer["kernel"]["decided_by"]
    assert (step["table"], step["chain"]) == ("tidegate", chain)
    assert step["rule"] is not None
    if chain.endswith("_admit"):
        led = answer["kernel"]["led_by"]
        protocol, _, port = question.rpartition(" ")[2].partition("/")
        assert led["key"].startswith(f"{protocol} . {port}")


def test_esp_is_decided_by_its_rule(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.ask(f"{PEER} esp", lab.load(), capsys)[0] == 0
    assert lab.ask(f"{STRANGER} esp", lab.load(), capsys)[0] == 1


def test_a_port_forward_is_followed_to_its_end(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = lab.ask(f"{PEER} → {DEVICE} tcp/1502", lab.load(), capsys)
    assert (status, answer["agree"]) == (0, True)
    assert answer["model"]["rule"] == "port-forwards.plc"
    hooks = {step["hook"] for step in answer["kernel"]["path"]}
    assert {"prerouting", "forward", "postrouting"} <= hooks
    assert "input" not in hooks


def test_a_ban_is_named(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    with lab.device.inside(), contextlib.closing(Bans()) as bans:
        bans.ban(PEER, 60)
    status, answer = lab.ask(f"{PEER} tcp/8080", section, capsys)
    assert (status, answer["verdict"]) == (1, "drop")
    assert answer["kernel"]["decided_by"]["table"] == "tidegate_bans"


def test_another_table_that_drops_is_named(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    lab.nft.run(
        "table ip elsewhere {\n chain late {\n type filter hook input priority 5; policy accept;\n"
        " counter\n tcp dport 8080 drop\n }\n}"
    )
    status, answer = lab.ask(f"{PEER} tcp/8080", section, capsys)
    assert (status, answer["answer"], answer["agree"]) == (1, "refused", False)
    assert answer["code"] == "firewall.why.disagree"
    step = answer["kernel"]["decided_by"]
    assert (step["family"], step["table"], step["chain"], step["number"]) == ("ip", "elsewhere", "late", 2)
    assert "elsewhere" in answer["conflict"]


def test_another_tables_policy_is_named(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    lab.nft.run("table inet elsewhere {\n chain c {\n type filter hook forward priority 5; policy drop;\n }\n}")
    status, answer = lab.ask(f"{PEER} {INSIDE} tcp/443", section, capsys)
    assert (status, answer["agree"]) == (1, False)
    assert (answer["kernel"]["decided_by"]["chain"], answer["kernel"]["decided_by"]["kind"]) == ("c", "policy")


def test_a_policy_that_is_not_in_force_is_a_disagreement(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = msgspec.convert(SECTION, FirewallSection)
    status, answer = lab.ask(f"{PEER} tcp/502", section, capsys)
    assert (status, answer["answer"], answer["code"]) == (1, "allowed", "firewall.why.disagree")


def test_without_a_policy_the_kernel_alone_answers(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.load()
    status, answer = lab.ask(f"{PEER} tcp/502", None, capsys)
    assert (status, answer["model"], answer["agree"]) == (1, None, None)
    assert answer["kernel"]["decided_by"]["name"] == "default"


def test_the_model_alone_asks_nothing_of_the_kernel(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = lab.ask(f"{PEER} tcp/502", msgspec.convert(SECTION, FirewallSection), capsys, "--model-only")
    assert (status, answer["kernel"], answer["verdict"]) == (1, None, "drop")


def test_the_reverse_path_filter_is_named(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    lab.device.run(["sysctl", "-qw", "net.ipv4.conf.veth0.rp_filter=1"])
    question = f"198.51.100.77 {DEVICE} tcp/8080"
    status, answer = lab.ask(question, section, capsys, "--interface", "veth0")
    assert (status, answer["answer"], answer["kernel"]["decided_by"]) == (1, "refused", None)
    assert "rp_filter" in answer["kernel"]["reason"]
    lab.device.run(["sysctl", "-qw", "net.ipv4.conf.veth0.rp_filter=0"])
    assert lab.ask(question, section, capsys, "--interface", "veth0")[0] == 0


def test_a_table_of_the_link_is_seen(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    lab.nft.run(
        'table netdev wire {\n chain c {\n type filter hook ingress device "veth0" priority -500; policy accept;\n'
        " ether saddr 02:00:5e:10:00:66 drop\n }\n}"
    )
    assert lab.ask(f"{PEER} tcp/8080", section, capsys)[0] == 0
    status, answer = lab.ask(f"{PEER} tcp/8080", section, capsys, "--mac", "02:00:5e:10:00:66")
    assert (status, answer["kernel"]["decided_by"]["table"]) == (1, "wire")


def test_the_neighbours_own_address_is_in_the_frame(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    mac = lab.others.run(["cat", "/sys/class/net/far0/address"]).stdout.decode().strip()
    lab.device.run(["ip", "neigh", "replace", PEER, "lladdr", mac, "dev", "veth0"])
    lab.nft.run(
        'table netdev wire {\n chain c {\n type filter hook ingress device "veth0" priority -500; policy accept;\n'
        f" ether saddr {mac} drop\n }}\n}}"
    )
    assert lab.ask(f"{PEER} tcp/8080", section, capsys)[0] == 1
    assert lab.ask(f"{STRANGER} tcp/8080", section, capsys)[0] == 0


def test_a_queue_without_a_program_is_undecided(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("iptables-nft") is None:
        pytest.skip("the program iptables-nft is not installed")
    section = lab.load()
    rule = ["-A", "INPUT", "-p", "tcp", "--dport", "8080", "-j", "NFQUEUE", "--queue-num", "7"]
    lab.device.run(["iptables-nft", "-t", "security", *rule])
    status, answer = lab.ask(f"{PEER} tcp/8080", section, capsys)
    # Nobody listens to the queue, so the kernel drops what goes there.
    assert status == 1
    assert answer["kernel"]["decided_by"]["chain"] == "INPUT"
    lab.device.run(["iptables-nft", "-t", "security", "-F", "INPUT"])
    lab.device.run(["iptables-nft", "-t", "security", *rule, "--queue-bypass"])
    assert lab.ask(f"{PEER} tcp/8080", section, capsys)[0] == 0


def test_a_syn_proxy_that_answers_is_named(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with watched(lab) as frames:
        lab.nft.run(
            "table inet proxy {\n chain early {\n type filter hook prerouting priority raw;\n"
            " tcp dport 8080 tcp flags syn notrack\n }\n"
            " chain in {\n type filter hook input priority filter;\n"
            " tcp dport 8080 ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm\n }\n}"
        )
        status, answer = lab.ask(f"{PEER} tcp/8080", None, capsys)
        assert (status, answer["verdict"]) == (0, "synproxy")
        assert frames() == []  # its handshake stays here, too


@contextlib.contextmanager
def watched(lab: Lab) -> Iterator[Any]:
    """Give a function that returns the IP packets that came out of the device since, without IPv6 housekeeping."""
    with lab.others.inside(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as tap:
        tap.settimeout(0.2)

        def frames() -> list[bytes]:
            found = []
            with contextlib.suppress(TimeoutError):
                while True:
                    frame = tap.recv(2048)
                    housekeeping = frame[12:14] == b"\x86\xdd" and (frame[20] == 0 or frame[54] in range(130, 144))
                    if frame[12:14] in (b"\x08\x00", b"\x86\xdd") and not housekeeping:
                        found.append(frame)
            return found

        yield frames


@pytest.mark.parametrize("default", ["deny", "reject"])
def test_nobody_and_nothing_sees_the_probe(lab: Lab, capsys: pytest.CaptureFixture[str], default: str) -> None:
    section = lab.load(default=default)
    before = lab.tables()
    with contextlib.ExitStack() as stack:
        frames = stack.enter_context(watched(lab))
        with lab.device.inside():
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind((DEVICE, 5683))
            tcp = stack.enter_context(socket.create_server((DEVICE, 8080)))
        udp.settimeout(0.2)
        tcp.settimeout(0.2)
        for question, *_ in QUESTIONS:
            lab.ask(question, section, capsys)
        lab.ask(f"{PEER} tcp/1502", section, capsys)
        with pytest.raises(TimeoutError):
            udp.recv(100)
        with pytest.raises(TimeoutError):
            tcp.accept()
        assert frames() == []
    assert lab.connections() == ""
    assert lab.tables() == before


def test_a_real_packet_of_the_same_peer_is_not_touched(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """While questions are asked, real datagrams to the same port all arrive."""
    section = lab.load()
    sent, stop = 0, threading.Event()
    with lab.device.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((DEVICE, 5683))
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        with lab.others.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((PEER, 0))

            def send() -> None:
                nonlocal sent
                while not stop.is_set():
                    client.sendto(b"x", (DEVICE, 5683))
                    sent += 1
                    time.sleep(0.002)

            sender = threading.Thread(target=send)
            sender.start()
            for _ in range(5):
                assert lab.ask(f"{PEER} udp/5683", section, capsys)[0] == 0
            stop.set()
            sender.join()
        server.settimeout(0.2)
        got = 0
        with contextlib.suppress(TimeoutError):
            while server.recv(10):
                got += 1
    assert got == sent > 0


def test_a_real_packet_is_waited_for(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    with lab.device.inside(), socket.create_server((DEVICE, 8080)) as server:
        server.settimeout(5)
        with lab.others.inside():
            client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            client.bind((PEER, 0))
        timer = threading.Timer(0.5, lambda: client.connect((DEVICE, 8080)))
        timer.start()
        status, answer = lab.ask(f"{PEER} tcp/8080", section, capsys, "--wait", "5")
        timer.join()
        assert (status, answer["agree"], answer["kernel"]["decided_by"]["name"]) == (0, True, "services.web")
        server.accept()[0].close()  # it was not dropped
        client.close()
    assert WHY_TABLE not in lab.tables()


def test_a_real_packet_that_does_not_come(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TidegateError) as caught:
        lab.ask(f"{PEER} tcp/8080", None, capsys, "--wait", "0.3")
    assert caught.value.code == "firewall.why.nothing-came"
    assert WHY_TABLE not in lab.tables()


HOLD = """
import sys, time
from tidegate.firewall.nft import Nft
nft = Nft.open()
nft.run("table inet tidegate_why {\\n flags owner\\n chain c { }\\n}")
print("held", flush=True)
time.sleep(60)
"""


def test_two_questions_at_a_time_and_a_killed_one(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    with lab.device.popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(TidegateError) as caught:
                lab.ask(f"{PEER} tcp/8080", section, capsys)
            assert caught.value.code == "firewall.why.busy"
        finally:
            holder.kill()
    assert WHY_TABLE not in lab.tables()  # the kernel removed it with its owner
    assert lab.ask(f"{PEER} tcp/8080", section, capsys)[0] == 0


def test_a_table_that_was_left_behind_is_replaced(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    lab.nft.run(f"table inet {WHY_TABLE} {{\n chain c {{\n type filter hook input priority 0; policy drop;\n }}\n}}")
    assert lab.ask(f"{PEER} tcp/8080", section, capsys)[0] == 0
    assert WHY_TABLE not in lab.tables()


def test_the_nft_program_does_as_well(lab: Lab) -> None:
    lab.load()
    question = firewall_why.parse_question([PEER, "tcp/502"])
    with lab.device.inside():
        probe = prepare_probe(question)
        traced = trace_probe(Nft(ProgramEngine()), probe)
    decision = judge_path(probe, plan_path(probe, traced.events, traced.tables))
    assert (decision.answer, decision.step is not None and decision.step.name) == (Answer.REFUSED, "default")
    assert WHY_TABLE not in lab.tables()


@pytest.mark.parametrize("kind", ["dummy", "bridge", "tun"])
def test_other_kinds_of_interfaces(lab: Lab, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    section = lab.load()
    made = (
        ["tuntap", "add", "dev", "other0", "mode", "tun"] if kind == "tun" else ["link", "add", "other0", "type", kind]
    )
    done = subprocess.run(lab.device.command(["ip", *made]), capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"this kernel makes no {kind} interface: {done.stderr.decode().strip()}")
    lab.device.run(["ip", "address", "add", "203.0.113.1/24", "dev", "other0"])
    lab.device.run(["ip", "link", "set", "other0", "up"])
    status, answer = lab.ask("203.0.113.5 tcp/8080", section, capsys)
    assert (status, answer["packet"]["interface"], answer["agree"]) == (0, "other0", True)
    assert lab.ask("203.0.113.5 tcp/502", section, capsys)[0] == 1


def test_without_bpf_the_model_answers_alone(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tidegate.firewall.probe._BPF_CALLS", {})
    section = lab.load()
    status, answer = lab.ask(f"{PEER} tcp/8080", section, capsys)
    assert (status, answer["kernel"], answer["excuse"]["code"]) == (0, None, "firewall.why.no-injection")
    with pytest.raises(TidegateError) as caught:
        lab.ask(f"{PEER} tcp/8080", None, capsys)
    assert caught.value.code == "firewall.why.no-injection"
    assert WHY_TABLE not in lab.tables()


def test_an_interface_that_is_not_there(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TidegateError) as caught:
        lab.ask(f"{PEER} tcp/8080", None, capsys, "--interface", "nosuch0")
    assert caught.value.code == "firewall.why.no-route"


def test_from_a_policy_file(lab: Lab, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lab.load()
    file = tmp_path / "policy.toml"
    file.write_text(
        '[policy]\nversion = 1\ndevices = ["*"]\n[firewall.management]\npeers = ["192.0.2.2"]\nservice = "ssh"\n'
        '[firewall.services.ssh]\nprotocol = "tcp"\nports = [22]\npeers = []\n'
    )
    status, answer = lab.ask(f"{MANAGER} tcp/22", None, capsys, "--policy", str(file))
    assert (status, answer["model"]["rule"]) == (0, "management")


MODES: list[dict[str, Any]] = [
    {},
    {"mode": "observe"},
    {"mode": "lockdown"},
    {"default": "reject", "forward": "leave", "nat": {}, "routes": {}},
    {"link": {"outside": {}}},
]


@pytest.mark.parametrize("changes", MODES, ids=str)
def test_random_questions_find_model_and_kernel_of_one_mind(
    lab: Lab, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    section = lab.load(**changes)
    chance = random.Random(str(changes))
    verdicts = []
    for _ in range(60):
        source = chance.choice([MANAGER, PEER, STRANGER, "self"])
        destination = chance.choice([DEVICE, INSIDE]) if source != "self" else chance.choice([PEER, INSIDE])
        port = chance.choice([22, 53, 443, 502, 1502, 2905, 5683, 8080])
        question = f"{source} {destination} {chance.choice(['tcp', 'udp', 'sctp'])}/{port}"
        if chance.random() < 0.5:  # or the way of some rule, perhaps from somebody else
            question = chance.choice(QUESTIONS)[0]
            question = question.replace(PEER, chance.choice([PEER, PEER, STRANGER]))
        status, answer = lab.ask(question, section, capsys)
        assert answer["agree"] is True, (question, answer["conflict"])
        verdicts.append(status)
    sys.stdout.write(f"{len(verdicts)} questions, {verdicts.count(0)} allowed\n")
    assert verdicts.count(0) > 0
    assert lab.connections() == ""


def test_a_syn_proxy_of_the_policy_is_no_disagreement(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    web = {"protocol": "tcp", "ports": [8080], "peers": ["any"], "syn_proxy": True}
    section = lab.load(services=SECTION["services"] | {"web": web})
    with watched(lab) as frames:
        status, answer = lab.ask(f"{PEER} tcp/8080", section, capsys)
        assert (status, answer["agree"], answer["verdict"]) == (0, True, "synproxy")
        assert answer["kernel"]["decided_by"]["name"] == "services.web"
        assert frames() == []


def test_the_policys_rules_for_the_link_are_named(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    section = lab.load()
    lab.nft.run(
        f'table netdev {LINK_TABLE} {{\n chain c {{\n type filter hook ingress device "veth0" priority -500;\n'
        ' ether saddr 02:00:5e:10:00:02 drop comment "link.outside"\n }\n}'
    )
    assert lab.ask(f"{PEER} tcp/8080", section, capsys, "--mac", "02:00:5e:10:00:01")[0] == 0
    status, answer = lab.ask(f"{PEER} tcp/8080", section, capsys, "--mac", "02:00:5e:10:00:02")
    assert (status, answer["code"]) == (1, None)
    assert answer["kernel"]["decided_by"]["table"] == "tidegate_link"
    assert len(answer["notes"]) == 1
