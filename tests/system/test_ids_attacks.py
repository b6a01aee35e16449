"""Real attacks on a device that `tidegate ids run` watches, and beside each its honest counterpart, not reported.

A switch, a device with services, an honest neighbour that gives names and addresses, a stranger. The sensor runs on the
device as an operator starts it: default settings, a handful of rules.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidegate.base.program import run_program
from tidegate.testing.evelines import Event, EveReader
from tidegate.testing.netns import Namespace, join, make_unique

pytest.importorskip("tidegate.ids._sensor", reason="the Rust module is not built")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and packet sockets need root"),
    pytest.mark.slow,
    pytest.mark.timeout(60),
]

DEVICE, HONEST, STRANGER = "10.77.0.1", "10.77.0.2", "10.77.0.66"
PREFIX, ELSEWHERE = "10.77.0.0/24", "10.88.0.0/27"
BAR_S = 2.0  # from the start of an attack's program to the alert in our hands
PEERS = Path(__file__).with_name("ids_peers.py")
TIDEGATE = [sys.executable, "-c", "import sys; from tidegate.cli.main import main; sys.exit(main())"]
WRITES, PUBLISHES, REFUSED, FIRMWARE = 3_000_001, 3_000_002, 3_000_003, 3_000_004
RULES = f"""
alert modbus any any -> any 502 (msg:"LAB Modbus write"; modbus: access write; sid:{WRITES}; rev:1;)
alert mqtt any any -> any any (msg:"LAB command published"; mqtt.publish.topic; content:"plant/command"; startswith; \
sid:{PUBLISHES}; rev:1;)
alert mqtt any any -> any any (msg:"LAB MQTT login refused"; mqtt.type:CONNACK; mqtt.reason_code:5; \
sid:{REFUSED}; rev:1;)
alert coap any any -> any any (msg:"LAB firmware written"; coap.path; content:"firmware"; sid:{FIRMWARE}; rev:1;)
"""


def peer(role: str, address: str = DEVICE) -> list[str]:
    return [sys.executable, str(PEERS), role, address]


class Lab:
    """Four namespaces on a switch, and the services of the device and of its honest neighbour."""

    def __init__(self, closing: contextlib.ExitStack, folder: Path) -> None:
        self.closing, self.folder = closing, folder
        names = ("device", "honest", "stranger", "switch")
        spaces = [closing.enter_context(Namespace.create(make_unique(f"tg-ids-{name[:2]}"))) for name in names]
        self.device, self.honest, self.stranger, switch = spaces
        switch.run(["ip", "link", "add", "br0", "type", "bridge"])
        switch.run(["ip", "link", "set", "br0", "up"])
        for number, (space, address) in enumerate(zip(spaces, (DEVICE, HONEST, STRANGER), strict=False)):
            join(space, switch, interfaces=("eth0", f"port{number}"), addresses_a=[f"{address}/24"])
            switch.run(["ip", "link", "set", f"port{number}", "master", "br0"])
        for space in (self.honest, self.stranger):
            space.run(["ip", "route", "add", ELSEWHERE, "via", DEVICE])
        self.rules = folder / "lab.rules"
        self.rules.write_text(RULES)
        for role in ("modbus-server", "web-server", "ftp-server"):
            self.start(self.device, peer(role))
        self.start_ssh()
        self.start_brokers()
        self.start(self.honest, dnsmasq(HONEST, 100))
        time.sleep(1.0)

    def start(self, space: Namespace, command: Sequence[str]) -> subprocess.Popen[bytes] | None:
        """Start a program that runs until the lab ends; ``None`` where it is not installed."""
        if shutil.which(command[0]) is None:
            return None
        quiet = subprocess.DEVNULL
        process = space.popen(command, stdout=quiet, stderr=quiet)
        self.closing.callback(process.wait, 5.0)
        self.closing.callback(process.kill)
        return process

    def start_ssh(self) -> None:
        sshd = shutil.which("sshd")
        if sshd is None:
            return
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it separates its privileges
        for name in ("host", "user"):
            run_program(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)])
        config = self.folder / "sshd_config"
        config.write_text(
            f"HostKey {self.folder}/host\nAuthorizedKeysFile {self.folder}/user.pub\nStrictModes no\nUsePAM no\n"
            f"PermitRootLogin yes\nPasswordAuthentication yes\nPidFile none\nMaxStartups 200\nListenAddress {DEVICE}\n"
        )
        self.start(self.device, [sshd, "-D", "-f", str(config)])

    def ssh(self) -> list[str]:
        """Return the command of a login that succeeds and does little."""
        options = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        return ["ssh", *options, "-i", str(self.folder / "user"), f"root@{DEVICE}", "uptime"]

    def start_brokers(self) -> None:
        passwords, config = self.folder / "passwords", self.folder / "mosquitto.conf"
        passwords.touch(mode=0o600)
        config.write_text(f"user root\nlistener 1883 {DEVICE}\nallow_anonymous false\npassword_file {passwords}\n")
        if shutil.which("mosquitto_passwd"):
            run_program(["mosquitto_passwd", "-b", str(passwords), "lab", "tidegate"])
        self.start(self.device, ["mosquitto", "-c", str(config)])
        self.start(self.device, ["coap-server-notls", "-A", DEVICE])


def dnsmasq(address: str, first: int) -> list[str]:
    """Return the command of a server of names and addresses."""
    options = [
        "--no-daemon",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--no-ping",
        "--dhcp-leasefile=/dev/null",
    ]
    served = ["--no-ping", f"--dhcp-range=10.77.0.{first},10.77.0.{first + 20},2m", "--address=/#/198.51.100.7"]
    return [
        "dnsmasq",
        *options,
        *served,
        f"--listen-address={address}",
        "--bind-interfaces",
        "--user=root",
        "--no-ping",
    ]


class Sensor(EveReader):
    """`tidegate ids run` on the device."""

    def __init__(self, lab: Lab, *options: str) -> None:
        command = [*TIDEGATE, "ids", "run", "--interface", "eth0", "--rules", str(lab.rules), *options]
        super().__init__(lab.device.popen(command))
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == b"ready\n"

    def end(self) -> list[Event]:
        """Stop it and return all its alerts."""
        try:
            if self.process.poll() is None:
                assert self.stop(signal.SIGINT) == 0
        finally:
            self.process.kill()
            self.process.stderr.close()
        return self.alerts()


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Lab]:
    with contextlib.ExitStack() as closing:
        yield Lab(closing, tmp_path_factory.mktemp("lab"))


@pytest.fixture
def sensor(lab) -> Iterator[Sensor]:
    running = Sensor(lab)
    yield running
    running.end()


def test_the_sensor_is_nobody(sensor):
    status = Path(f"/proc/{sensor.process.pid}/status").read_text()
    assert "Uid:\t65534\t65534\t65534\t65534\n" in status
    assert "CapEff:\t0000000000000000\n" in status


def name_of(alert: Event) -> object:
    """Return the detector of an alert, or the number of its rule."""
    return alert.get("metadata", {}).get("detector", alert["alert"]["signature_id"])


def require(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"the program {program} is not installed")


@contextlib.contextmanager
def attacking(space: Namespace, command: Sequence[str]) -> Iterator[float]:
    """Run a program beside the body, and yield when it began; it ends with the body."""
    require(command[0])
    start_s = time.time()
    process = space.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield start_s
    finally:
        process.kill()
        process.wait(5.0)


def expect(sensor: Sensor, start_s: float, names: object, timeout_s: float = 15.0) -> tuple[Event, float]:
    """Wait for an alert of one of these names; return it and how long after the start it was read."""
    wanted = names if isinstance(names, set) else {names}
    alert = sensor.read_until(lambda event: event["event_type"] == "alert" and name_of(event) in wanted, timeout_s)
    assert alert is not None, [name_of(other) for other in sensor.alerts()]
    return alert, sensor.read_s(alert) - start_s


@dataclass(frozen=True, kw_only=True)
class Attack:
    """A program of the stranger and what is to be said about it."""

    name: str
    command: list[str]
    says: object
    bar_s: float = BAR_S
    source: str | None = STRANGER


NMAP = ["nmap", "-n", "-Pn", "--max-retries", "1"]
ATTACKS = [
    *(
        Attack(name=f"nmap -sS -T{speed}", command=[*NMAP, "-sS", f"-T{speed}", "-p1-1000", DEVICE], says="scan.syn")
        for speed in (3, 4, 5)
    ),
    Attack(
        name="nmap -sS slow",  # five probes a second
        command=[*NMAP, "-sS", "--scan-delay", "200ms", "-p100-200", DEVICE],
        says="scan.syn",
        bar_s=8 * 0.2 + BAR_S,
    ),
    Attack(name="nmap -sT", command=[*NMAP, "-sT", "-p1-1000", DEVICE], says={"scan.connect", "scan.syn"}),
    Attack(name="nmap -sN", command=[*NMAP, "-sN", "-p1-200", DEVICE], says="scan.null"),
    Attack(name="nmap -sF", command=[*NMAP, "-sF", "-p1-200", DEVICE], says="scan.fin"),
    Attack(name="nmap -sX", command=[*NMAP, "-sX", "-p1-200", DEVICE], says="scan.xmas"),
    Attack(name="nmap -sA", command=[*NMAP, "-sA", "-p1-200", DEVICE], says="scan.ack"),
    Attack(name="nmap -sU", command=[*NMAP, "-sU", "-p1-200", DEVICE], says="scan.udp"),
    Attack(name="nmap -sn link", command=["nmap", "-n", "-sn", PREFIX], says="sweep.arp", source=None),
    Attack(name="nmap -sn routed", command=["nmap", "-n", "-sn", "-PE", ELSEWHERE], says="sweep.icmp"),
    Attack(name="hping3 SYN", command=["hping3", "-q", "-S", "--flood", "-p", "9", DEVICE], says="flood.syn"),
    Attack(name="hping3 UDP", command=["hping3", "-q", "-2", "--flood", "-p", "9", DEVICE], says="flood.udp"),
    Attack(name="hping3 ICMP", command=["hping3", "-q", "-1", "--flood", DEVICE], says="flood.icmp"),
    Attack(name="hping3 ACK", command=["hping3", "-q", "-A", "--flood", "-p", "9", DEVICE], says="flood.ack"),
    Attack(name="slowloris", command=peer("slowloris"), says="flood.slow-http"),
    Attack(name="Modbus writes", command=peer("modbus-writes"), says=WRITES),
    Attack(
        name="CoAP put",
        command=["coap-client-notls", "-m", "put", "-e", "x", f"coap://{DEVICE}/firmware"],
        says=FIRMWARE,
    ),
    Attack(
        name="MQTT command",
        command=[
            *("mosquitto_pub", "-h", DEVICE, "-u", "lab", "-P", "tidegate"),
            *("-t", "plant/command/valve", "-m", "open"),
        ],
        says=PUBLISHES,
    ),
    Attack(
        name="MQTT login refused",
        command=["mosquitto_pub", "-h", DEVICE, "-u", "lab", "-P", "wrong", "-t", "plant/level", "-m", "1"],
        says=REFUSED,
    ),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_each_attack_is_told_within_two_seconds(lab, sensor, attack):
    with attacking(lab.stranger, attack.command) as start_s:
        alert, taken_s = expect(sensor, start_s, attack.says)
    assert attack.source is None or alert.get("src_ip") == attack.source
    assert taken_s < attack.bar_s


# -- passwords --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("words") / "words"
    path.write_text("\n".join(f"wrong{number}" for number in range(200)))
    return path


def login_s(lab: Lab) -> float:
    """Return how long one honest login takes."""
    start_s = time.monotonic()
    lab.honest.run(lab.ssh(), timeout_s=15)
    return time.monotonic() - start_s


@pytest.mark.parametrize("service", ["ssh", "ftp"])
def test_passwords_that_are_tried_are_told_within_two_seconds(lab, sensor, words, service):
    require("sshd" if service == "ssh" else "hydra")
    bar_s = (
        max(BAR_S, 10 * login_s(lab)) if service == "ssh" else BAR_S
    )  # ten have to fail, however slow the machine is
    # when stopped, hydra leaves a file where it was started
    command = [
        "env",
        "-C",
        str(words.parent),
        "hydra",
        "-I",
        "-t",
        "16",
        "-l",
        "lab",
        "-P",
        str(words),
        f"{service}://{DEVICE}",
    ]
    with attacking(lab.stranger, command) as start_s:
        alert, taken_s = expect(sensor, start_s, "login.brute-force")
    assert alert["src_ip"] == STRANGER
    assert taken_s < bar_s


# -- control networks -------------------------------------------------------------------------------------------------


def test_a_function_that_a_client_never_used_is_told(lab):
    sensor = Sensor(lab, "--set", "detectors.ics.learn-s=2")
    lab.honest.run(peer("modbus-reads"), timeout_s=20)  # four seconds: two to learn, two that are like them
    assert sensor.alerts() == []
    with attacking(lab.stranger, peer("modbus-writes")) as start_s:
        alert, taken_s = expect(sensor, start_s, "ics.new-function")
    assert (alert["src_ip"], alert["metadata"]["new_client"]) == (STRANGER, 1)
    assert taken_s < BAR_S
    assert {name_of(one) for one in sensor.end()} == {"ics.new-function", WRITES}


# -- names ------------------------------------------------------------------------------------------------------------


def test_a_tunnel_in_names_is_told(lab, sensor):
    require("dnsmasq")
    with attacking(lab.device, peer("dns-tunnel", HONEST)) as start_s:
        alert, taken_s = expect(sensor, start_s, "dns.tunnel")
    assert (alert["src_ip"], alert["metadata"]["domain"]) == (DEVICE, "example.com")
    assert taken_s < BAR_S


def test_iodine_is_told(lab, sensor):
    require("iodine")
    require("iodined")
    if not Path("/dev/net/tun").exists():
        pytest.skip("the kernel has no tunnel devices")
    server = ["iodined", "-f", "-c", "-P", "tidegate", "-l", STRANGER, "10.99.0.1", "t.example.org"]
    client = ["iodine", "-f", "-r", "-P", "tidegate", STRANGER, "t.example.org"]
    with attacking(lab.stranger, server):
        time.sleep(0.5)
        with attacking(lab.device, client) as start_s:
            alert, taken_s = expect(sensor, start_s, "dns.tunnel")
    assert (alert["src_ip"], alert["metadata"]["domain"]) == (DEVICE, "example.org")
    assert taken_s < BAR_S + 2.0  # its first questions find out which records pass, one after the other


# -- the link ---------------------------------------------------------------------------------------------------------


def test_an_address_that_is_taken_over_is_told(lab, sensor):
    require("arpspoof")
    lab.device.run(["ip", "neigh", "flush", "dev", "eth0"])  # so that the sensor sees who answers
    lab.device.run(peer("dns-lookups", HONEST), timeout_s=20)  # the owner is known, and alive
    command = ["arpspoof", "-i", "eth0", "-t", DEVICE, HONEST]
    with attacking(lab.stranger, command) as start_s:
        alert, taken_s = expect(sensor, start_s, "spoof.arp")
    assert alert["metadata"]["address"] == HONEST
    assert taken_s < BAR_S


LEASE = ["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-s", "/bin/true", "-t", "3", "-T", "1"]


def test_a_second_server_of_addresses_is_told(lab, sensor):
    require("dnsmasq")
    lab.device.run(LEASE, timeout_s=10)
    assert sensor.alerts() == []
    with attacking(lab.stranger, dnsmasq(STRANGER, 200)):
        time.sleep(0.5)
        start_s = time.time()
        lab.device.run(LEASE, timeout_s=10, check=False)
        alert, taken_s = expect(sensor, start_s, "rogue.dhcp")
    assert taken_s < BAR_S
    assert (alert["metadata"]["server"], alert["metadata"]["known"]) == (STRANGER, HONEST)


def test_a_second_router_is_told(lab, sensor):
    lab.honest.run(peer("router"), timeout_s=10)
    assert sensor.alerts() == []
    with attacking(lab.stranger, peer("router")) as start_s:
        _, taken_s = expect(sensor, start_s, "rogue.router")
    assert taken_s < BAR_S


# -- what is in order -------------------------------------------------------------------------------------------------


def test_a_browser_is_not_reported(lab, sensor):
    lab.honest.run(peer("browser"), timeout_s=40)
    assert sensor.end() == []


def test_reads_are_not_reported(lab, sensor):
    lab.honest.run(peer("modbus-reads"), timeout_s=20)
    assert sensor.end() == []


def test_a_broker_s_use_is_not_reported(lab, sensor):
    require("mosquitto_pub")
    login = ["-h", DEVICE, "-u", "lab", "-P", "tidegate"]
    listening = lab.honest.popen(
        ["mosquitto_sub", *login, "-t", "plant/#"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for number in range(25):
        lab.honest.run(["mosquitto_pub", *login, "-t", f"plant/level/{number}", "-m", str(number)])
    listening.kill()
    listening.wait(5.0)
    assert sensor.end() == []


def test_a_resource_s_use_is_not_reported(lab, sensor):
    require("coap-client-notls")
    for path in ("time", ".well-known/core", "example_data") * 4:
        lab.honest.run(["coap-client-notls", "-m", "get", f"coap://{DEVICE}/{path}"])
    assert sensor.end() == []


def test_logins_that_succeed_are_not_reported(lab, sensor):
    require("sshd")
    for _ in range(15):
        lab.honest.run(lab.ssh(), timeout_s=15)
    lab.honest.run(peer("ftp-logins"), timeout_s=20)
    assert sensor.end() == []


def test_names_and_addresses_are_not_reported(lab, sensor):
    require("dnsmasq")
    for _ in range(3):
        lab.device.run(LEASE, timeout_s=10)
    lab.device.run(peer("dns-lookups", HONEST), timeout_s=30)
    assert sensor.end() == []
