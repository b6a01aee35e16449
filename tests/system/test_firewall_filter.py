"""The compiled ruleset on the real kernel: what passes and what does not, between two namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tidegate.base.errors import TidegateError
from tidegate.firewall.bans import Bans
from tidegate.firewall.checks import verify_ruleset
from tidegate.firewall.commit import apply_section, effective_digest
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

DEVICE, MANAGER, STRANGER, STRANGER2 = "192.0.2.1", "192.0.2.2", "192.0.2.66", "192.0.2.67"
DEVICE6, STRANGER6 = "2001:db8::1", "2001:db8::66"
REFUSED_S = 0.25  # a veth pair answers in microseconds; a SYN is sent again only after a second

SECTION: dict[str, Any] = {
    "management": {"peers": [f"{MANAGER}/32"], "service": "ssh"},
    "services": {
        "ssh": {"protocol": "tcp", "ports": [22], "peers": []},
        "web": {"protocol": "tcp", "ports": [8080], "peers": ["any"]},
        "coap": {"protocol": "udp", "ports": [5683], "peers": [f"{STRANGER}/32"]},
    },
}


class Lab:
    """A device and, on the other end of a cable, everybody else."""

    def __init__(self, device: Namespace, others: Namespace) -> None:
        self.device, self.others = device, others
        self.open: list[socket.socket] = []
        self.closing = contextlib.ExitStack()
        with device.inside():
            self.nft = Nft.open()

    def load(self, **changes: Any) -> str:
        """Put a policy in force without a guard: that is the commit tests' business."""
        text = encode_ruleset(verify_ruleset(plan_ruleset(msgspec.convert(SECTION | changes, FirewallSection))).ruleset)
        self.nft.run(text)
        return text

    def listen(self, port: int) -> socket.socket:
        with self.device.inside():
            server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
        server.settimeout(2)
        self.open.append(server)
        return server

    def connect(self, port: int, source: str = STRANGER, timeout_s: float = 2.0) -> socket.socket | None:
        """Return a connection to the device, or nothing if it does not answer in time."""
        six = ":" in source
        with self.others.inside():
            client = socket.socket(socket.AF_INET6 if six else socket.AF_INET)
        self.open.append(client)
        client.settimeout(timeout_s)
        client.bind((source, 0))
        try:
            client.connect((DEVICE6 if six else DEVICE, port))
        except TimeoutError:
            client.close()
            return None
        return client

    def refused(self, port: int, source: str = STRANGER) -> bool:
        return self.connect(port, source, REFUSED_S) is None

    def counter(self, name: str, table: str = "tidegate") -> int:
        listing = self.device.run(["nft", "list", "counter", "inet", table, name]).stdout.decode()
        return int(listing.split("packets ")[1].split()[0])

    def bans(self) -> Bans:
        """Return the device's bans: whoever holds them acts on the namespace in which they were made."""
        with self.device.inside():
            made = Bans()
        self.closing.callback(made.close)
        return made

    def close(self) -> None:
        self.closing.close()
        self.nft.close()
        for one in self.open:
            one.close()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("tgfw-dev")) as device, Namespace.create(make_unique("tgfw-oth")) as others:
        join(
            device,
            others,
            addresses_a=[f"{DEVICE}/24", f"{DEVICE6}/64"],
            addresses_b=[f"{address}/24" for address in (MANAGER, STRANGER, STRANGER2)] + [f"{STRANGER6}/64"],
        )
        made = Lab(device, others)
        try:
            yield made
        finally:
            made.close()


def test_default_deny_and_what_is_allowed(lab: Lab) -> None:
    for port in (22, 8080, 9999):
        lab.listen(port)
    assert lab.connect(9999) is not None  # before the policy
    lab.load()
    assert lab.refused(9999)
    assert lab.refused(9999, STRANGER6)
    assert lab.connect(8080) is not None
    assert lab.connect(8080, STRANGER6) is not None  # so neighbour discovery works under default deny
    assert lab.refused(22)
    assert lab.connect(22, MANAGER) is not None
    assert lab.counter("denied") >= 3
    # A plain rule is an element of a map and still counts: each connection once, whatever its family.
    assert (lab.counter("svc_web"), lab.counter("svc_ssh"), lab.counter("management")) == (2, 0, 1)


def test_neighbour_discovery_works_from_nothing(lab: Lab) -> None:
    lab.listen(8080)
    with lab.others.inside():
        lab.open.append(socket.create_server((STRANGER6, 443), family=socket.AF_INET6))
    lab.load(egress={"services": {"manager": {"protocol": "tcp", "ports": [443], "peers": [STRANGER6]}}})
    for space in (lab.device, lab.others):
        space.run(["ip", "-6", "neigh", "flush", "all"])
    assert lab.connect(8080, STRANGER6, timeout_s=2) is not None  # asked for by the other side
    lab.device.run(["ip", "-6", "neigh", "flush", "all"])
    with lab.device.inside():
        lab.open.append(socket.create_connection((STRANGER6, 443), timeout=2))  # asked for by the device


def test_udp_service_for_its_peer_only(lab: Lab) -> None:
    with lab.device.inside():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with lab.others.inside():
        clients = {source: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for source in (STRANGER, STRANGER2)}
    lab.open += [server, *clients.values()]
    server.bind((DEVICE, 5683))
    lab.load()
    for source, client in clients.items():
        client.bind((source, 0))
        client.sendto(source.encode(), (DEVICE, 5683))
    assert select.select([server], [], [], 2)[0]
    assert server.recv(100) == STRANGER.encode()
    assert not select.select([server], [], [], REFUSED_S)[0]


def test_a_rate_threshold_holds_per_source(lab: Lab) -> None:
    lab.listen(8080)
    web = {"protocol": "tcp", "ports": [8080], "peers": ["any"], "limit": {"new_per_s": 1, "burst": 5}}
    lab.load(services={**SECTION["services"], "web": web})
    answers = [lab.connect(8080, timeout_s=0.15) is not None for _ in range(12)]
    assert answers[:5] == [True] * 5
    assert 5 <= sum(answers) <= 8  # five at once, then one a second
    assert lab.counter("svc_web_over") >= 5
    assert lab.connect(8080, STRANGER2) is not None  # somebody else's share is untouched


def test_a_connection_threshold_counts_what_is_open(lab: Lab) -> None:
    lab.listen(8080)
    web = {"protocol": "tcp", "ports": [8080], "peers": ["any"], "limit": {"connections": 3}}
    lab.load(services={**SECTION["services"], "web": web})
    held = [lab.connect(8080, timeout_s=REFUSED_S) for _ in range(5)]
    assert [one is not None for one in held] == [True, True, True, False, False]
    assert lab.connect(8080, STRANGER2) is not None


@pytest.mark.skipif(shutil.which("hping3") is None, reason="the program hping3 is not installed")
def test_a_full_table_of_sources_fails_closed(lab: Lab) -> None:
    web = {
        "protocol": "tcp",
        "ports": [8080],
        "peers": ["any"],
        "limit": {"new_per_s": 1, "burst": 1, "sources": 16},
    }
    lab.listen(8080)
    lab.listen(22)
    lab.load(services={**SECTION["services"], "web": web})
    flood = ["hping3", "-q", "-S", "-p", "8080", "--rand-source", "-i", "u200", "-c", "2000", DEVICE]
    lab.others.run(flood, check=False, timeout_s=10)
    sent = lab.counter("svc_web") + lab.counter("svc_web_over")
    assert sent >= 1000
    assert lab.counter("svc_web") == 16  # one each for sixteen sources; everybody else found no room
    assert lab.refused(8080)
    assert lab.connect(22, MANAGER) is not None  # and the manager is not concerned


@pytest.mark.skipif(shutil.which("nmap") is None, reason="the program nmap is not installed")
def test_a_xmas_scan_learns_nothing(lab: Lab) -> None:
    lab.listen(8080)
    lab.load()
    scan = ["nmap", "-n", "-Pn", "-sX", "--max-retries", "0", "--host-timeout", "8s", "-p", "8080,9999", DEVICE]
    said = lab.others.run(scan, check=False, timeout_s=15).stdout.decode()
    assert "closed" not in said
    assert lab.counter("invalid") >= 2


def test_an_established_session_survives_policy_swaps(lab: Lab) -> None:
    server = lab.listen(8080)
    lab.load()
    client = lab.connect(8080)
    assert client is not None
    peer, _ = server.accept()
    lab.open.append(peer)
    for number in range(20):
        # The service is gone from every second policy: nobody new gets in, who is in stays.
        lab.load(services={"ssh": SECTION["services"]["ssh"]} if number % 2 else SECTION["services"])
        client.sendall(b"%02d" % number)
        assert peer.recv(10) == b"%02d" % number
    assert lab.refused(8080)


def test_lockdown_ends_sessions_and_keeps_the_management_path(lab: Lab) -> None:
    server, admin_server = lab.listen(8080), lab.listen(22)
    lab.load()
    client, admin = lab.connect(8080), lab.connect(22, MANAGER)
    assert client is not None
    assert admin is not None
    peer, admin_peer = server.accept()[0], admin_server.accept()[0]
    lab.open += [peer, admin_peer]
    lab.load(mode="lockdown")
    client.sendall(b"x")
    assert not select.select([peer], [], [], REFUSED_S)[0]
    admin.sendall(b"y")
    assert admin_peer.recv(10) == b"y"
    admin_peer.sendall(b"z")
    assert admin.recv(10) == b"z"
    assert lab.refused(8080)
    assert lab.connect(22, MANAGER) is not None


def test_observing_lets_pass_and_counts(lab: Lab) -> None:
    lab.listen(9999)
    lab.load(mode="observe")
    assert lab.connect(9999) is not None
    assert lab.counter("denied") >= 1


def test_rejecting_answers_at_once(lab: Lab) -> None:
    lab.load(default="reject")
    with pytest.raises(ConnectionRefusedError):
        lab.connect(9999)


@pytest.mark.parametrize("egress", [{}, {"default": "deny"}])
def test_egress_is_refused_at_once(lab: Lab, egress: dict[str, Any]) -> None:
    with lab.others.inside():
        servers = [socket.create_server((STRANGER, port)) for port in (443, 444)]
    lab.open += servers
    allowed = {"protocol": "tcp", "ports": [443], "peers": [STRANGER]}
    lab.load(egress={**egress, "services": {"manager": allowed}})

    def call(port: int) -> None:
        with lab.device.inside():
            client = socket.socket()
        lab.open.append(client)
        client.settimeout(2)
        client.connect((STRANGER, port))

    call(443)
    begin = time.monotonic()
    with pytest.raises(OSError) as caught:
        call(444)
    assert caught.value.errno in (errno.EACCES, errno.EHOSTUNREACH)
    assert time.monotonic() - begin < 1  # a silent drop would cost the timeout
    assert (lab.counter("out_manager"), lab.counter("egress_denied")) == (1, 1)
    lab.load(egress={"default": "allow"})
    call(444)


def test_bans_cut_everything_and_expire(lab: Lab) -> None:
    server = lab.listen(8080)
    lab.load()
    bans = lab.bans()
    client = lab.connect(8080)
    assert client is not None
    peer, _ = server.accept()
    lab.open.append(peer)
    bans.ban(STRANGER, 600)
    bans.ban(STRANGER6, 600)
    bans.ban(STRANGER2, 1)
    client.sendall(b"x")
    assert not select.select([peer], [], [], REFUSED_S)[0]  # the running session too
    assert lab.refused(8080)
    assert lab.refused(8080, STRANGER6)
    assert lab.counter("banned", "tidegate_bans") >= 3
    lab.load()  # a new policy changes nothing about it
    remaining = {str(ban.address): ban.remaining_s for ban in bans.list_bans()}
    assert 590 < remaining[STRANGER] < 600
    assert lab.refused(8080)
    assert lab.connect(8080, STRANGER2, timeout_s=3) is not None  # expired, the repeated SYN gets in
    bans.unban(STRANGER)
    assert lab.connect(8080) is not None


@pytest.mark.parametrize(
    ("address", "seconds", "code"),
    [
        ("192.0.2.10", 5, "firewall.ban.never"),
        (MANAGER, 5, "firewall.ban.management"),
        (f"::ffff:{MANAGER}", 5, "firewall.ban.management"),
        ("127.0.0.5", 5, "firewall.ban.loopback"),
        ("::1", 5, "firewall.ban.loopback"),
        ("0.0.0.0", 5, "firewall.ban.loopback"),  # noqa: S104 - nothing is bound
        ("ff02::1", 5, "firewall.ban.loopback"),
        (f"{MANAGER}/32", 5, "firewall.ban.management"),
        ("192.0.2.0/24", 5, "firewall.ban.never"),  # such an address inside protects the whole prefix
        ("192.0.2.66/24", 5, "firewall.ban.address"),  # host bits: one of the two is a mistake
        (STRANGER, 0, "firewall.ban.duration"),
        (STRANGER, 31 * 86400, "firewall.ban.duration"),
    ],
)
def test_bans_that_are_refused(lab: Lab, address: str, seconds: int, code: str) -> None:
    lab.load(bans={"never": ["192.0.2.10"]})
    bans = lab.bans()
    with pytest.raises(TidegateError) as caught:
        bans.ban(address, seconds)
    assert caught.value.code == code
    assert bans.list_bans() == []


def test_a_prefix_of_one_address_is_that_address(lab: Lab) -> None:
    lab.listen(8080)
    lab.load()
    bans = lab.bans()
    bans.ban(f"{STRANGER}/32", 600)
    assert lab.refused(8080)
    assert lab.connect(8080, STRANGER2) is not None
    assert [str(ban) for ban in bans.list_bans()] == [STRANGER]
    bans.unban(STRANGER)
    assert lab.connect(8080) is not None


def test_protection_stands_in_the_kernel_too(lab: Lab) -> None:
    """A ban that goes past our checks (another program, a stale list) still does not cut the manager."""
    lab.listen(22)
    lab.load()
    lab.nft.run(f"add element inet tidegate_bans banned4 {{ {MANAGER} timeout 60s }}")
    assert lab.connect(22, MANAGER) is not None


def test_bans_without_table_or_room_or_ban(lab: Lab) -> None:
    bans = lab.bans()
    for call in (lambda: bans.ban(STRANGER, 5), lambda: bans.unban(STRANGER), bans.list_bans):
        with pytest.raises(TidegateError) as caught:
            call()
        assert caught.value.code == "firewall.ban.no-table"
    lab.load(bans={"max": 16})
    for number in range(16):
        bans.ban(f"198.51.100.{number}", 60)
    with pytest.raises(TidegateError) as caught:
        bans.ban(STRANGER, 60)
    assert caught.value.code == "firewall.ban.full"
    bans.ban("198.51.100.3", 600)  # one that is there can be renewed
    assert max(ban.remaining_s for ban in bans.list_bans()) > 500
    with pytest.raises(TidegateError) as caught:
        bans.unban(STRANGER)
    assert caught.value.code == "firewall.ban.not-banned"


def test_a_transaction_with_one_bad_line_changes_nothing(lab: Lab) -> None:
    text = lab.load()
    before = effective_digest(lab.nft)
    # The last line names a chain that does not exist: library and kernel see it after everything else.
    with pytest.raises(TidegateError) as caught:
        lab.nft.run(text.replace("8080", "9090") + "add rule inet tidegate nowhere accept\n")
    assert caught.value.code == "firewall.nft.refused"
    assert effective_digest(lab.nft) == before
    # One that only the kernel can see: an element of a set that is too small for it.
    crowd = ", ".join(f"198.51.100.{number}" for number in range(20))
    small = "table inet tidegate {\n set crowd {\n type ipv4_addr\n size 2\n elements = { " + crowd + " }\n }\n}\n"
    with pytest.raises(TidegateError):
        lab.nft.run(text.replace("8080", "9090") + small)
    assert effective_digest(lab.nft) == before


def test_no_packet_gets_through_or_lost_while_policies_change(lab: Lab) -> None:
    """Atomicity under traffic: an allowed stream loses nothing, a refused one gains nothing."""
    with lab.device.inside():
        good, bad = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    with lab.others.inside():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    lab.open += [good, bad, client]
    for server, port in ((good, 5683), (bad, 7000)):
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        server.bind((DEVICE, port))
        server.setblocking(False)
    client.bind((STRANGER, 0))
    lab.load(log_per_s=0)
    sent = received = 0
    for number in range(40):
        lab.load(log_per_s=0, ping_per_s=1 + number % 5)
        for _ in range(50):
            client.sendto(b"x", (DEVICE, 5683))
            client.sendto(b"x", (DEVICE, 7000))
            sent += 1
        with contextlib.suppress(BlockingIOError):
            while good.recv(10):
                received += 1
    assert received == sent == 2000
    with pytest.raises(BlockingIOError):
        bad.recv(10)


def test_a_whole_section_by_the_program_alone(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no library, the program does the same."""
    from tidegate.firewall.nft import ProgramEngine

    with lab.device.inside():
        nft = Nft(ProgramEngine())
        change = apply_section(
            msgspec.convert(SECTION, FirewallSection), state_dir=tmp_path, nft=nft, confirm_timeout_s=20
        )
        assert change.confirm() == effective_digest(lab.nft)  # library and program list alike
        lab.bans().ban(STRANGER, 100)
        assert len(lab.bans().list_bans()) == 1
        subprocess.run(["/usr/sbin/nft", "delete", "table", "inet", "tidegate"], check=True)
