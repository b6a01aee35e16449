"""DNS names in rules, on the real kernel: the keeper as a process of its own, a server whose answers change.

The device may connect to what its policy names. The names stand for addresses of the other end of a cable, where the
DNS server runs as well: the datagrams and the rules are real, only the answers are the test's.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import msgspec
import pytest

from tidegate.cli.firewall_names import add
from tidegate.cli.output import Output
from tidegate.firewall.bantable import BAN_TABLE
from tidegate.firewall.compile import TABLE, dns_set, encode_ruleset
from tidegate.firewall.effective import effective_digest
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nameplan import Limits
from tidegate.firewall.nameset import encode_names_config, read_resolved
from tidegate.firewall.netlink import GET_ELEMENT, Link, Message, encode_elements
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, join, make_unique

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and nftables need root"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="the program ip (iproute2) is not installed"),
]

NAME, OTHER = "cloud.example.com", "time.example.org"
RESOLVER, FIRST, SECOND, DEVICE = "10.40.0.53", "10.40.0.1", "10.40.0.2", "10.40.0.9"
FIRST6, RESOLVER6 = "fd00:40::1", "fd00:40::53"
PORT = 8443
QUICK = Limits(min_ttl_s=1.0, grace_s=3.0, linger_s=0.5, negative_ttl_s=1.0)
TIMEOUT_S = 0.3
POLICY = {
    "egress": {
        "default": "deny",
        "services": {
            "cloud": {"protocol": "tcp", "ports": [PORT], "peers": [NAME]},
            "resolver": {"protocol": "udp", "ports": [53], "peers": [RESOLVER]},
            "resolver-tcp": {"protocol": "tcp", "ports": [53], "peers": [RESOLVER]},
        },
    },
}


class DnsServer:
    """Answers over UDP and TCP with what ``records`` says at the moment, or as ``reply`` does."""

    def __init__(self, space: Namespace) -> None:
        with space.inside():
            self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.udp.bind((RESOLVER, 53))
            self.tcp = socket.create_server((RESOLVER, 53))
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl_s, self.asked, self.is_alive = 1, 0, True
        self.reply: Callable[[bytes, bool], list[bytes]] = self.honest
        for work in (self._datagrams, self._streams):
            threading.Thread(target=work, daemon=True).start()

    def honest(self, data: bytes, tcp: bool) -> list[bytes]:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query, recursion_available=True)
        asked = query.question[0]
        values = self.records.get((asked.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(asked.rdtype)), [])
        if values:
            response.answer = [dns.rrset.from_text(asked.name, self.ttl_s, "IN", asked.rdtype, *values)]
        wire = response.to_wire(max_size=65_535)
        if len(wire) > 512 and not tcp:
            response.answer, response.flags = [], response.flags | dns.flags.TC
            wire = response.to_wire()
        return [wire]

    def _datagrams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, source = self.udp.recvfrom(512)
                if not data:  # closed
                    return
                self.asked += 1
                for message in self.reply(data, False) if self.is_alive else []:
                    self.udp.sendto(message, source)

    def _streams(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer = self.tcp.accept()[0]
                with peer, contextlib.suppress(OSError):
                    data = peer.recv(600)
                    for message in self.reply(data[2:], True) if self.is_alive else []:
                        peer.sendall(struct.pack(">H", len(message)) + message)

    def close(self) -> None:
        for one in (self.udp, self.tcp):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


class Keeper:
    """The keeper's process and the lines that it writes."""

    def __init__(self, space: Namespace, config: str) -> None:
        self.process = space.popen(
            [sys.executable, "-m", "tidegate.firewall.names"], stdin=subprocess.PIPE, stderr=None
        )
        self._lines: queue.Queue[dict[str, object]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdin is not None
        self.process.stdin.write(config.encode() + b"\n")
        self.process.stdin.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def line(self, kind: str, *, within_s: float = 8.0) -> dict[str, object]:
        """Return the next line of a kind; others are dropped."""
        deadline_s = time.monotonic() + within_s
        while True:
            line = self._lines.get(timeout=max(0.01, deadline_s - time.monotonic()))
            if line["event_type"] == kind:
                return line

    def lines(self) -> list[dict[str, object]]:
        found = []
        while not self._lines.empty():
            found.append(self._lines.get())
        return found

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(5)
        self.close()
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Lab:
    def __init__(self, device: Namespace, others: Namespace) -> None:
        self.device, self.others = device, others
        with device.inside():
            self.nft, self.link = Nft.open(), Link()
        with others.inside():
            self.cloud = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
        self.dns = DnsServer(others)
        self.keepers: list[Keeper] = []
        self.section = msgspec.convert(POLICY, FirewallSection)

    def apply(self, *names: str) -> None:
        """Put the policy in force as a commit does: whole, with what the kernel knew of names."""
        ruleset = plan_ruleset(self.section)
        self.nft.run(encode_ruleset(ruleset, resolved=read_resolved(names, self.link)))

    def keep(self, *names: str, limits: Limits = QUICK) -> Keeper:
        document = json.loads(encode_names_config(names or (NAME,), resolvers=[RESOLVER], limits=limits))
        keeper = Keeper(self.device, json.dumps(document | {"timeout_s": TIMEOUT_S}))
        self.keepers.append(keeper)
        assert keeper.line("ready")["pid"] == keeper.process.pid
        return keeper

    def held(self, name: str = NAME) -> set[str]:
        with self.device.inside():
            found = read_resolved([name], self.link).get(name, {})
        left = {str(address) for address in found}
        # seconds are whole there; what is about to go counts as well
        for family in (4, 6):
            left |= {str(ip_address(key)) for key, _, _ in self.link.elements(TABLE, dns_set(name, family))}
        return left

    def wait_held(self, *addresses: str, within_s: float = 6.0) -> float:
        """Return after how long the sets hold exactly these."""
        began_s = time.monotonic()
        while self.held() != set(addresses):
            assert time.monotonic() - began_s < within_s, self.held()
            time.sleep(0.01)
        return time.monotonic() - began_s

    def connects(self, address: str) -> bool:
        with self.device.inside():
            link = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        with link:
            link.settimeout(3)  # the first packet waits for neighbour discovery; a refusal is told at once
            try:
                link.connect((address, PORT))
            except OSError:
                return False
            return True


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Namespace.create(make_unique("names-d")) as device, Namespace.create(make_unique("names-o")) as others:
        far = [f"{address}/24" for address in (FIRST, SECOND, RESOLVER)]
        join(device, others, addresses_a=[f"{DEVICE}/24", "fd00:40::9/64"], addresses_b=[*far, f"{FIRST6}/64"])
        made = Lab(device, others)
        made.apply()
        yield made
        for keeper in made.keepers:
            keeper.close()
        made.dns.close()
        made.cloud.close()
        made.link.close()
        made.nft.close()


def test_an_allowed_name_opens_and_a_changed_address_moves_the_permission(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST], (NAME, "AAAA"): [FIRST6]}
    assert not lab.connects(FIRST)
    keeper = lab.keep()
    line = keeper.line("names")
    assert line["name"] == NAME
    assert line["addresses"] == [FIRST, FIRST6]
    assert line["gone"] == []
    assert lab.connects(FIRST)
    assert lab.connects(FIRST6)
    assert not lab.connects(SECOND)

    lab.dns.records = {(NAME, "A"): [SECOND]}
    took_s = lab.wait_held(SECOND)
    assert took_s < 1.0 + QUICK.linger_s + 1.0  # the TTL, the moment for its last user, and our own time
    assert lab.connects(SECOND)
    assert not lab.connects(FIRST)
    assert not lab.connects(FIRST6)
    told = [keeper.line("names"), keeper.line("names")]
    assert told[0]["addresses"] == [FIRST, SECOND, FIRST6]
    assert told[1]["gone"] == [FIRST, FIRST6]
    assert keeper.end() == 0


def test_no_answer_keeps_what_was_known_for_the_grace_and_then_closes(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST]}
    keeper = lab.keep()
    keeper.line("names")
    lab.dns.is_alive = False
    told = keeper.line("unresolved")
    assert told["addresses"] == [FIRST]
    time.sleep(1.0)
    assert lab.connects(FIRST)  # its TTL of a second is over
    lab.wait_held(within_s=QUICK.grace_s + 2)
    assert not lab.connects(FIRST)
    gone = keeper.line("names")
    assert gone["gone"] == [FIRST]
    assert gone["addresses"] == []
    lab.dns.is_alive = True  # the resolver is asked again 5 seconds later at the latest, then 10, ...
    assert keeper.line("names", within_s=12)["addresses"] == [FIRST]
    assert lab.connects(FIRST)


def test_without_the_keeper_the_kernel_closes_by_itself(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST]}
    keeper = lab.keep()
    keeper.line("names")
    os.kill(keeper.process.pid, signal.SIGKILL)
    assert lab.connects(FIRST)
    lab.wait_held(within_s=1 + QUICK.linger_s + QUICK.grace_s + 1)
    assert not lab.connects(FIRST)


def test_a_new_keeper_goes_on_where_the_old_one_ended(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST]}
    first = lab.keep(limits=Limits(min_ttl_s=1, grace_s=600))
    first.line("names")
    assert first.end() == 0
    lab.dns.is_alive = False
    second = lab.keep(limits=Limits(min_ttl_s=1, grace_s=600))
    assert second.line("unresolved")["addresses"] == [FIRST]
    assert lab.connects(FIRST)


def test_a_hole_of_no_packet_while_times_are_renewed(lab: Lab) -> None:
    """The kernel is asked for the element as fast as possible over several renewals: it is always there.

    Asked for one by one, as a packet does; a listing of the set may show old and new at once.
    """
    question = encode_elements(GET_ELEMENT, TABLE, dns_set(NAME, 4), [(ip_address(FIRST).packed, None)])
    lab.dns.records = {(NAME, "A"): [FIRST]}
    keeper = lab.keep()
    keeper.line("names")
    asked, looks, until_s = lab.dns.asked, 0, time.monotonic() + 4
    while time.monotonic() < until_s:
        assert isinstance(lab.link.ask([question])[0], Message)
        looks += 1
    assert looks > 1000
    assert lab.dns.asked - asked >= 4
    assert keeper.lines() == []  # nothing changed, nothing told
    absent = encode_elements(GET_ELEMENT, TABLE, dns_set(NAME, 4), [(ip_address(SECOND).packed, None)])
    assert lab.link.ask([absent]) == [errno.ENOENT]


def test_a_new_policy_begins_with_what_was_known(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST]}
    lab.keep(limits=Limits(min_ttl_s=60)).line("names")
    for _ in range(20):
        lab.apply(NAME)
        assert lab.connects(FIRST)


def test_sets_that_somebody_emptied_or_filled_are_put_right(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST]}
    keeper = lab.keep(limits=Limits(min_ttl_s=60))
    keeper.line("names")
    asked = lab.dns.asked
    lab.apply()  # whole and without the elements: a rollback, say
    lab.wait_held(FIRST, within_s=2)
    assert keeper.line("refilled") == {"event_type": "refilled", "name": NAME, "foreign": [], "missing": [FIRST]}
    keeper.process.send_signal(signal.SIGSTOP)  # so that what was put in is seen to work before it goes
    lab.nft.run(f"add element inet {TABLE} {dns_set(NAME, 4)} {{ {SECOND} }}")
    assert lab.connects(SECOND)
    keeper.process.send_signal(signal.SIGCONT)
    lab.wait_held(FIRST, within_s=2)
    assert keeper.line("refilled")["foreign"] == [SECOND]
    assert not lab.connects(SECOND)
    assert lab.dns.asked == asked  # from memory


def test_a_policy_without_the_name_is_no_end(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST]}
    lab.nft.run(f"delete table inet {TABLE}")
    keeper = lab.keep(limits=Limits(min_ttl_s=60))
    assert keeper.line("unwritten")["code"] == "firewall.netlink.refused"
    lab.apply()
    lab.wait_held(FIRST)
    assert keeper.end() == 0


def test_a_flood_of_bans_costs_little(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST]}
    keeper = lab.keep(limits=Limits(min_ttl_s=60))
    keeper.line("names")

    def used_s() -> float:
        words = Path(f"/proc/{keeper.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    before_s, began_s, changes = used_s(), time.monotonic(), 0
    while time.monotonic() - began_s < 3:
        act, ends = ("add", " timeout 60s") if changes % 2 == 0 else ("delete", "")
        lab.nft.run(f"{act} element inet {BAN_TABLE} banned4 {{ 203.0.113.1{ends} }}")
        changes += 1
    share = (used_s() - before_s) / 3
    sys.stdout.write(f"{changes / 3:.0f} changes a second: {share:.1%} of a processor\n")
    assert changes > 300
    assert share < 0.2
    assert lab.held() == {FIRST}


def test_the_digest_of_the_ruleset_does_not_change_with_addresses(lab: Lab) -> None:
    with lab.device.inside():
        before = effective_digest(lab.nft)
    lab.dns.records = {(NAME, "A"): [FIRST]}
    lab.keep().line("names")
    assert lab.held() == {FIRST}
    with lab.device.inside():
        assert effective_digest(lab.nft) == before


def hostile(lab: Lab, kind: str) -> Callable[[bytes, bool], list[bytes]]:
    """Return a server that is not to be believed: each would open SECOND if it were."""

    def lie(data: bytes, tcp: bool) -> list[bytes]:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        asked, evil = query.question[0].name, dns.name.from_text("evil.example.net")
        address = (1, "IN", "A", SECOND)
        response.answer = [dns.rrset.from_text(asked, *address)]
        if kind == "wrong id":
            response.id ^= 0x5555
        elif kind == "other question":
            response.question = [dns.rrset.RRset(evil, 1, 1)]
        elif kind == "other owner":
            response.answer = [dns.rrset.from_text(evil, *address)]
        elif kind == "additional section":
            response.additional, response.answer = response.answer, []
        elif kind == "alias loop":
            response.answer = [
                dns.rrset.from_text(asked, 1, "IN", "CNAME", "evil.example.net."),
                dns.rrset.from_text(evil, 1, "IN", "CNAME", asked.to_text()),
            ]
        elif kind == "alias and address":
            response.answer = [dns.rrset.from_text(asked, 1, "IN", "CNAME", "evil.example.net."), *response.answer]
        elif kind == "truncated for ever":
            response.flags |= dns.flags.TC
        elif kind == "cut":
            return [response.to_wire()[:-3]]
        elif kind == "noise":
            return [os.urandom(100), b"", data]
        return [response.to_wire()]

    return lie


HOSTILE = [
    *("wrong id", "other question", "other owner", "additional section", "alias loop", "alias and address"),
    *("truncated for ever", "cut", "noise"),
]


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_answer(lab: Lab, kind: str) -> None:
    """Neither opens anything, nor ends the keeper: an honest answer works afterwards."""
    lab.dns.records = {(NAME, "A"): [FIRST]}
    keeper = lab.keep()
    keeper.line("names")
    lab.dns.reply, asked = hostile(lab, kind), lab.dns.asked
    deadline_s = time.monotonic() + 2.5
    while time.monotonic() < deadline_s:
        assert lab.held() <= {FIRST}
        time.sleep(0.02)
    assert lab.dns.asked > asked
    assert not lab.connects(SECOND)
    lab.dns.reply = lab.dns.honest
    lab.wait_held(FIRST, within_s=8)
    assert keeper.end() == 0


def test_the_lie_would_work_if_it_were_believed(lab: Lab) -> None:
    """The same server without a fault opens SECOND: the refusals above are not accidents."""
    lab.dns.reply = hostile(lab, "none")
    lab.keep()
    lab.wait_held(SECOND)
    assert lab.connects(SECOND)


def test_a_thousand_addresses_and_some_that_are_no_hosts(lab: Lab) -> None:
    many = [f"10.40.{n >> 8}.{n & 255}" for n in range(1000)]
    lab.dns.records = {(NAME, "A"): [*many, "127.0.0.1", "224.0.0.1"], (NAME, "AAAA"): ["::1", "fd00:40::1"]}
    lab.dns.ttl_s = 60
    keeper = lab.keep()
    line = keeper.line("names")
    assert line["left_out"] == 1000 + 2 - 64 + 1
    assert lab.held() == {*many[:64], FIRST6}
    assert lab.connects(FIRST)


def test_many_names(lab: Lab) -> None:
    names = [f"n{number}.example.com" for number in range(100)]
    for number, name in enumerate(names):
        lab.dns.records[name, "A"] = [f"10.40.9.{number}"]
    lab.section = msgspec.convert(
        POLICY | {"services": {"web": {"protocol": "tcp", "ports": [443], "peers": names}}}, FirewallSection
    )
    lab.apply()
    lab.dns.ttl_s, began_s = 60, time.monotonic()
    keeper = lab.keep(*names)
    told = {keeper.line("names")["name"] for _ in names}
    sys.stdout.write(f"100 names after {time.monotonic() - began_s:.2f} s\n")
    assert told == set(names)
    for number, name in enumerate(names):
        assert lab.held(name) == {f"10.40.9.{number}"}


@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="the program dnsmasq (dnsmasq-base) is not installed")
def test_a_server_that_others_wrote(lab: Lab, tmp_path: Path) -> None:
    """dnsmasq with an alias, a list too long for a datagram, and a name that does not exist."""
    long, hosts = "long.example.com", tmp_path / "hosts"
    many = [f"10.40.7.{number}" for number in range(1, 51)]
    hosts.write_text("".join(f"{address} {long}\n" for address in many) + f"{FIRST} real.example.com\n")
    port = "5300"
    options = (
        f"--no-resolv --no-hosts --bind-interfaces --user=root --pid-file= --port={port} --local-ttl=1 --local=/com/"
    )
    names = [f"--addn-hosts={hosts}", f"--cname={NAME},real.example.com", f"--listen-address={RESOLVER}"]
    server = lab.others.popen(["dnsmasq", "-k", "-C", "/dev/null", *options.split(), *names])
    web = {"protocol": "tcp", "ports": [443], "peers": [NAME, long, "no.example.com"]}
    lab.section = msgspec.convert({"egress": {"default": "allow"}, "services": {"web": web}}, FirewallSection)
    lab.apply()
    config = encode_names_config([NAME, long, "no.example.com"], resolvers=[f"{RESOLVER}:{port}"], limits=QUICK)
    keeper = Keeper(lab.device, config)
    lab.keepers.append(keeper)
    deadline_s = time.monotonic() + 12
    while lab.held() != {FIRST} or lab.held(long) != set(many):
        assert time.monotonic() < deadline_s, (lab.held(), lab.held(long), keeper.lines())
        time.sleep(0.05)
    assert lab.held("no.example.com") == set()
    hosts.write_text(f"{SECOND} real.example.com\n")
    server.send_signal(signal.SIGHUP)
    lab.wait_held(SECOND)
    server.kill()
    server.communicate()


# -- the process -------------------------------------------------------------------------------------------------------


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_it_is_nobody_with_one_capability_and_small(lab: Lab) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST]}
    keeper = lab.keep()
    keeper.line("names")
    status = status_of(keeper.process.pid)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {"65534"}
    assert status["Groups"] == ""
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 1 << 12
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    kib = int(status["VmRSS"].split()[0])
    sys.stdout.write(f"the keeper takes {kib / 1024:.1f} MiB\n")
    assert kib < 20 * 1024


@pytest.mark.parametrize("way", ["parent", "reader"])
def test_it_ends_with_its_parent_and_with_its_reader(lab: Lab, way: str, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(encode_names_config([NAME], resolvers=[RESOLVER], limits=QUICK) + "\n")
    start = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-m', 'tidegate.firewall.names'], stdin=open({str(config)!r}),"
        f" stdout={'subprocess.PIPE' if way == 'reader' else 'None'})\n"
        f"{'print(child.stdout.readline().decode(), flush=True); child.stdout.close()' if way == 'reader' else ''}\n"
        "time.sleep(60)\n"
    )
    parent = lab.device.popen([sys.executable, "-W", "ignore", "-c", start])
    assert parent.stdout is not None
    pid = json.loads(parent.stdout.readline())["pid"]
    if way == "parent":
        parent.kill()  # the keeper's reader, this test, is still there
    deadline_s = time.monotonic() + 5
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while status_of(pid)["State"][0] != "Z":
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
    parent.kill()
    parent.communicate()


def test_a_bad_configuration_is_an_error_line(lab: Lab) -> None:
    done = lab.device.run([sys.executable, "-m", "tidegate.firewall.names"], stdin=b"{}\n", check=False)
    assert done.returncode == 3
    line = json.loads(done.stdout)
    assert line["event_type"] == "error"
    assert line["code"] == "firewall.names.config"


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("applied", [True, False])
def test_the_command_says_what_names_stand_for(
    lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str], applied: bool
) -> None:
    lab.dns.records = {(NAME, "A"): [FIRST, SECOND]}
    lab.dns.ttl_s = 300
    if applied:
        lab.keep().line("names")
    else:
        lab.nft.run(f"delete table inet {TABLE}")
    policy = tmp_path / "policy.toml"
    policy.write_text(
        "[policy]\nversion = 1\n"
        "[firewall.egress.services.cloud]\n"
        f'protocol = "tcp"\nports = [443]\npeers = ["{NAME}", "{OTHER}"]\n'
    )
    parser = argparse.ArgumentParser()
    add(parser.add_subparsers())
    arguments = parser.parse_args(["names", str(policy), "--resolver", RESOLVER])
    with lab.device.inside():
        assert arguments.run(arguments, Output(as_json=True)) == 1  # one of them stands for nothing
    first, second = json.loads(capsys.readouterr().out)["names"]
    assert first["name"] == NAME
    assert first["families"]["4"] == {"addresses": [FIRST, SECOND], "ttl_s": 300, "left_out": 0}
    assert first["next_s"] == 60  # it has no IPv6 address
    assert sorted(first["in_kernel"] or []) == ([FIRST, SECOND] if applied else [])
    assert second["families"]["4"]["addresses"] == []
    lab.dns.is_alive = False
    with lab.device.inside():
        assert arguments.run(arguments, Output(as_json=False)) == 1
    assert "no answer" in capsys.readouterr().out
    assert asdict(Limits())["grace_s"] == 3600
