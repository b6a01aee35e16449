"""Firewall, the packets' side: what 1,000 services and 10,000 banned prefixes cost, against none and against others.

The same policy is loaded in three ways, each into a namespace of its own: compiled by us; as iptables rules
in ufw's order (one rule a service, one a prefix); by firewalld's own code from its own zone files. Figures of one run
compare, figures of two do not: the machine has two cores and both ends of the cable run on it.
Needs root, iperf3, iptables and Debian's firewalld.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from bench.machine import row
from tidegate.base.program import find_program, run_program
from tidegate.firewall.bans import Bans
from tidegate.firewall.compile import encode_ruleset
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.nft import Nft
from tidegate.firewall.section import FirewallSection
from tidegate.testing.netns import Namespace, join, make_unique

ROOT = Path(__file__).resolve().parent.parent
SERVICES, PREFIXES = 1000, 10_000
ROUNDS = 9
SECONDS = 1
BINARY = ROOT / "rust/target/release/examples/connections"
NONE, STATEFUL, OURS = "no ruleset", "an empty stateful ruleset", "ours"
LINEAR, FIREWALLD = "iptables, a rule each, in ufw's order", "firewalld"
# What any stateful filter costs: connection tracking, and one look at what it says.
_STATEFUL = """
table inet empty {
 chain input {
  type filter hook input priority filter; policy accept;
  ct state vmap { established : accept, related : accept }
 }
 chain output {
  type filter hook output priority filter; policy accept;
  ct state vmap { established : accept, related : accept }
 }
}
"""
THROUGHPUT_PORT, CONNECTION_PORT = 1998, 1999  # the last two of the services
# firewalld is a daemon of Debian's own Python; its own classes load its own files without the message bus. Its data is
# unpacked, never installed: installing it would start it, and have it rule over this machine from then on.
_FIREWALLD = """
import sys, firewall.config
firewall.config.set_system_config_paths(sys.argv[1])
firewall.config.set_default_config_paths(sys.argv[2])
from firewall.core.fw import Firewall
Firewall().start()
"""


def run() -> list[dict[str, Any]]:
    """Return throughput and connections a second as ratios to an empty ruleset, and to each peer.

    Every way is loaded into a device of its own; they are measured in turns, and a ratio is the median of those of the
    rounds, so that what else the machine does meets them all alike.
    """
    with _lab() as devices:
        rounds: dict[str, dict[str, list[float]]] = {"throughput": {}, "connections": {}}
        for number in range(-1, ROUNDS):  # the first is for warming up
            for device in devices[number % len(devices) :] + devices[: number % len(devices)]:
                for what, measure in (("throughput", device.throughput), ("connections", device.connections)):
                    figure = measure()
                    if number >= 0:
                        rounds[what].setdefault(device.way, []).append(figure)
    titles = {"throughput": ("TCP throughput", "Gbit/s"), "connections": ("new TCP connections", "1/s")}
    return [
        _compare(f"{title}, {SERVICES:,} services and {PREFIXES:,} banned prefixes", unit, rounds[what], peer)
        for what, (title, unit) in titles.items()
        for peer in rounds[what]
        if peer != OURS
    ]


def _compare(title: str, unit: str, figures: dict[str, list[float]], peer: str) -> dict[str, Any]:
    pairs = zip(figures[OURS], figures[peer], strict=True)
    made = row(title, statistics.median(figures[OURS]), unit, peer=peer, higher=True)
    made["peer_value"] = statistics.median(figures[peer])
    made["ratio"] = statistics.median(mine / theirs for mine, theirs in pairs)
    return made


class _Device:
    """A device with one way's rules, at the end of a cable of its own."""

    def __init__(self, way: str, device: Namespace, peer: Namespace, number: int) -> None:
        self.way, self.device, self.peer = way, device, peer
        self.address = f"10.99.{number}.1"
        join(
            device,
            peer,
            interfaces=("eth0", f"peer{number}"),
            addresses_a=[f"{self.address}/24"],
            addresses_b=[f"10.99.{number}.2/24"],
        )

    def load(self, folder: Path) -> None:
        load: dict[str, Callable[[], object]] = {
            NONE: lambda: None,
            STATEFUL: lambda: self.device.run(["nft", "-f", "-"], stdin=_STATEFUL.encode()),
            OURS: self._load_ours,
            LINEAR: self._load_linear,
            FIREWALLD: lambda: self._load_firewalld(folder),
        }
        load[self.way]()

    def _load_ours(self) -> None:
        services = {
            f"s{n}": {"protocol": "udp" if n % 3 == 1 else "tcp", "ports": [1000 + n], "peers": [_prefix(n)]}
            for n in range(SERVICES - 1)
        }
        for port in (THROUGHPUT_PORT, CONNECTION_PORT):
            services[f"s{port - 1000}"] = {"protocol": "tcp", "ports": [port], "peers": ["10.99.0.0/16"]}
        services.pop("s0")
        section = msgspec.convert(
            {
                "management": {"peers": ["192.0.2.1"], "service": "s1"},
                "services": services,
                "bans": {"max": 16_384},
                "set_budget": 1_000_000,
            },
            FirewallSection,
        )
        with self.device.inside():
            nft, bans = Nft.open(), Bans()
        nft.run(encode_ruleset(plan_ruleset(section)))
        bans.ban_all(map(ip_network, _banned()), 86_400)
        bans.close()
        nft.close()

    def _load_linear(self) -> None:
        lines = ["*filter", ":INPUT DROP [0:0]", "-A INPUT -i lo -j ACCEPT"]
        lines += ["-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"]
        lines += [f"-A INPUT -s {prefix} -j DROP" for prefix in _banned()]
        lines += [f"-A INPUT -p tcp --dport {port} -s {source} -j ACCEPT" for port, source in _rules()]
        self.device.run(["iptables-nft-restore"], stdin="\n".join([*lines, "COMMIT", ""]).encode())

    def _load_firewalld(self, folder: Path) -> None:
        """The peer's own file: a rich rule for each service in the default zone, the prefixes in the zone ``drop``."""
        for name in ("zones", "ipsets", "services", "policies", "icmptypes", "helpers"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "firewalld.conf").write_text("DefaultZone=public\nFirewallBackend=nftables\nLogDenied=off\n")
        rules = "".join(
            f'<rule family="ipv4"><source address="{source}"/><port port="{port}" protocol="tcp"/><accept/></rule>'
            for port, source in _rules()
        )
        (folder / "zones/public.xml").write_text(f"<zone><short>public</short>{rules}</zone>")
        entries = "".join(f"<entry>{prefix}</entry>" for prefix in _banned())
        (folder / "ipsets/banned.xml").write_text(
            f'<ipset type="hash:net"><option name="maxelem" value="65536"/>{entries}</ipset>'
        )
        (folder / "zones/drop.xml").write_text('<zone target="DROP"><short>drop</short><source ipset="banned"/></zone>')
        data = _unpack_firewalld() / "usr" / "lib" / "firewalld"
        self.device.run(["/usr/bin/python3", "-c", _FIREWALLD, str(folder), str(data)], timeout_s=300)

    def throughput(self) -> float:
        """Return Gbit/s of one TCP connection into the device."""
        with self._server(["iperf3", "-s", "-1", "-p", str(THROUGHPUT_PORT), "--forceflush"], b"listening"):
            command = ["iperf3", "-c", self.address, "-p", str(THROUGHPUT_PORT), "-t", str(SECONDS), "-J"]
            done = json.loads(self.peer.run(command).stdout)
        return float(done["end"]["sum_received"]["bits_per_second"]) / 1e9

    def connections(self) -> float:
        """Return TCP connections a second into the device."""
        where = f"{self.address}:{CONNECTION_PORT}"
        with self._server([str(BINARY), "server", where], b"ready"):
            done = json.loads(self.peer.run([str(BINARY), "client", where, str(SECONDS)]).stdout)
        return float(done["connections"]) / float(done["seconds"])

    @contextmanager
    def _server(self, command: list[str], ready: bytes) -> Iterator[None]:
        with self.device.popen(command) as server:
            try:
                if server.stdout is None:
                    raise SystemExit("the server has no output")
                while line := server.stdout.readline():
                    if ready in line:
                        break
                yield
            finally:
                server.kill()


def _rules() -> list[tuple[int, str]]:
    """Return port and source of each service, as the peers are told of them; those that are measured come last."""
    found = [(1000 + n, _prefix(n)) for n in range(SERVICES - 2)]
    return [*found, (THROUGHPUT_PORT, "10.99.0.0/16"), (CONNECTION_PORT, "10.99.0.0/16")]


def _prefix(number: int) -> str:
    return f"10.{number % 90}.{number // 90}.0/24"


def _unpack_firewalld() -> Path:
    """Return the folder that holds what Debian's package of firewalld holds."""
    folder = ROOT / "build" / "firewalld"
    if not (folder / "usr" / "lib" / "firewalld" / "zones").exists():
        folder.mkdir(parents=True, exist_ok=True)
        unpack = "apt-get --quiet download firewalld && dpkg-deb --extract firewalld_*.deb ."
        run_program(["sh", "-c", f"cd '{folder}' && {unpack}"], timeout_s=120)
    return folder


def _banned() -> list[str]:
    """Return 10,000 prefixes of a length that providers hand out, none of them the bench's."""
    chance = random.Random(1)
    found: dict[str, None] = {}
    while len(found) < PREFIXES:
        found[f"{chance.randint(20, 200)}.{chance.randint(0, 255)}.{chance.randint(0, 255)}.0/24"] = None
    return list(found)


@contextmanager
def _lab() -> Iterator[list[_Device]]:
    command = [find_program("cargo"), "build", "--quiet", "--release", "-p", "capture", "--example", "connections"]
    run_program([*command, "--manifest-path", str(ROOT / "rust/Cargo.toml")], timeout_s=600)
    with ExitStack() as stack:
        peer = stack.enter_context(Namespace.create(make_unique("tgbp-peer")))
        devices = []
        for number, way in enumerate((NONE, STATEFUL, OURS, LINEAR, FIREWALLD)):
            space = stack.enter_context(Namespace.create(make_unique("tgbp")))
            device = _Device(way, space, peer, number)
            device.load(Path(stack.enter_context(TemporaryDirectory())))
            print(f"   {way}: loaded", flush=True)
            devices.append(device)
        yield devices


if __name__ == "__main__":
    json.dump(run(), sys.stdout, indent=2)
    print()
