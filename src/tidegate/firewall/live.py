"""Which connections that are open now manage this device, so that no policy cuts them unnoticed.

Touches: ``/proc`` of the calling thread's network namespace, reading only; the routing table through ``rtnetlink``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import structs

from tidegate.base.errors import Rejected
from tidegate.firewall.errors import NoRoute
from tidegate.firewall.evaluate import evaluate_packet
from tidegate.firewall.model import Address, Direction, ManagementPath, Packet, Ruleset, Verdict, plan_ruleset
from tidegate.firewall.section import FirewallSection, Nat, Protocol

MAX_SOCKETS = 65_536  # per address family: more than the ports of one address; 150 bytes each while they are read
MAX_MANAGING = 256  # nobody manages one device from more places; each is evaluated against every rule
MAX_PROCESSES = 32_768  # the default of kernel.pid_max
SSH_PORT = 22
_SHELLS = frozenset(("sshd", "sshd-session", "dropbear"))  # proc_pid_comm(5): 15 characters
_ESTABLISHED, _LISTEN = 0x01, 0x0A  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One established TCP connection of this device."""

    local: Address
    local_port: int
    remote: Address
    remote_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """What is open: connections, the ports that listen, and the ports of those that belong to a remote shell."""

    sessions: tuple[Session, ...]
    listening: frozenset[int]
    shell_ports: frozenset[int]


def find_must_pass(
    wanted: Ruleset,
    in_force: FirewallSection | None,
    *,
    cut: Collection[Address] = (),
    shells: bool = True,
    environment: Mapping[str, str] | None = None,
) -> list[Packet]:
    """Return what ``checks.verify_ruleset`` must see accepted: one packet for each session that manages this device.

    ``pick_managing`` says which those are, plus the SSH session that the ``environment`` (default: the process's own)
    names. ``in_force`` is ``None`` where nothing is known of it. What it refuses to begin anew has no claim: that is
    somebody whom an earlier change shut out. ``cut`` are addresses whose sessions may end: the operator named each.
    ``shells=False`` is for a caller who is no person with a shell: a stranger's SSH session does not keep a signed
    policy away.
    """
    old = None if in_force is None else _plan_management(in_force)
    own = _own_session(os.environ if environment is None else environment) if shells else []
    picked = pick_managing(read_sockets(), wanted, old, shells=shells)
    packets = list(dict.fromkeys((*own, *(_locate(packet) for packet in islice(picked, MAX_MANAGING)))))
    packets = [packet for packet in packets if _far(packet) not in cut]
    if in_force is not None and any(evaluate_packet(wanted, packet) is not Verdict.ACCEPT for packet in packets):
        before = _plan(in_force)
        packets = [packet for packet in packets if before is None or _has_claim(before, packet) or packet in own]
    return packets


def pick_managing(
    sockets: Sockets, wanted: Ruleset, old: ManagementPath | None, *, shells: bool = True
) -> Iterator[Packet]:
    """Yield the packet that would begin each session that manages the device; the same client's sessions are one.

    1. Management peers on the management service, of the policy in force (``old``) and of the one that is wanted;
    where nothing is known of the former, everyone on the latter's service. 2. The way out to the manager, likewise.
    3. With ``shells``: whoever is on port 22 or on a port at which sshd or dropbear answers. Loopback never matters,
    and what depends on a DNS name is left out: its addresses are in the kernel's set only.
    """
    paths = [path for path in (old, wanted.management) if path is not None]
    shell_ports = sockets.shell_ports | {SSH_PORT} if shells else frozenset()
    seen: set[Packet] = set()
    for session in sockets.sessions:
        if session.remote.is_loopback or session.remote == session.local:
            continue
        packet = _describe(session, incoming=session.local_port in sockets.listening)
        managing = any(_is_managing(path, packet, known=old is not None) for path in paths)
        on_shell = packet.direction is Direction.IN and packet.port in shell_ports
        if (managing or on_shell) and packet not in seen and not _needs_names(wanted, packet):
            seen.add(packet)
            yield packet


def read_sockets() -> Sockets:
    """Return the TCP sockets of the calling thread's network namespace, at most ``MAX_SOCKETS`` of each family.

    Of what cannot be read (no IPv6, a process that has just ended, no right to look) there is nothing.
    """
    sessions: list[Session] = []
    inodes: dict[str, int] = {}
    listening: set[int] = set()
    for name in ("tcp", "tcp6"):
        for session, state, inode in _read_table(Path(f"/proc/thread-self/net/{name}")):
            if state == _ESTABLISHED:
                sessions.append(session)
            if state == _LISTEN:
                listening.add(session.local_port)
            inodes[inode] = session.local_port
    owned = {inodes[inode] for inode in _shell_inodes() if inode in inodes}
    return Sockets(sessions=tuple(sessions), listening=frozenset(listening), shell_ports=frozenset(owned & listening))


def parse_socket(line: str, byteorder: str = sys.byteorder) -> tuple[Session, int, str] | None:
    """Return a line of ``/proc/net/tcp`` or ``tcp6`` as connection, state and inode; ``None`` for any other line."""
    words = line.split()
    try:
        (local, local_port), (remote, remote_port) = (_parse_end(word, byteorder) for word in words[1:3])
        state, inode = int(words[3], 16), words[9]
    except (ValueError, IndexError):
        return None
    return Session(local=local, local_port=local_port, remote=remote, remote_port=remote_port), state, inode


def _plan_management(section: FirewallSection) -> ManagementPath | None:
    """Return the management path of a section, planned without the rest, which may be a thousand services."""
    management = section.management
    if management is None:
        return None
    services = {name: rule for name, rule in section.services.items() if name == management.service}
    callers = {name: rule for name, rule in section.egress.services.items() if name == management.egress}
    plain: dict[str, Any] = {"routes": {}, "nat": Nat(), "link": {}, "thresholds": ()}
    egress = structs.replace(section.egress, services=callers)
    small = _plan(structs.replace(section, services=services, egress=egress, **plain))
    return None if small is None else small.management


def _plan(section: FirewallSection) -> Ruleset | None:
    try:
        return plan_ruleset(section)
    except Rejected:  # another version's
        return None


def _is_managing(path: ManagementPath, packet: Packet, *, known: bool) -> bool:
    if packet.direction is Direction.IN:
        on_service = any(span.first <= packet.port <= span.last for span in path.service.spans)
        return on_service and (not known or path.peers.has(packet.source))
    egress = path.egress
    if egress is None or not any(span.first <= packet.port <= span.last for span in egress.spans):
        return False
    # Where a name stands for the manager, whoever answers on that port may be the manager.
    return bool(egress.peers.names) or egress.peers.has(packet.destination)


def _has_claim(in_force: Ruleset, packet: Packet) -> bool:
    return _needs_names(in_force, packet) or evaluate_packet(in_force, packet) is Verdict.ACCEPT


def _needs_names(ruleset: Ruleset, packet: Packet) -> bool:
    """Return whether a DNS name may decide about the packet: what it resolves to is known in the kernel's set only."""
    rules = ruleset.egress if packet.direction is Direction.OUT else ruleset.services
    return any(
        rule.peers.names
        and rule.protocol is packet.protocol
        and any(s.first <= packet.port <= s.last for s in rule.spans)
        for rule in rules
    )


def _describe(session: Session, *, incoming: bool) -> Packet:
    """Return the packet that would begin ``session`` anew. Without source port: it would be another one."""
    if incoming:
        return Packet(
            interface=None,
            source=session.remote,
            destination=session.local,
            protocol=Protocol.TCP,
            port=session.local_port,
        )
    return Packet(
        direction=Direction.OUT,
        interface=None,
        source=session.local,
        destination=session.remote,
        protocol=Protocol.TCP,
        port=session.remote_port,
    )


def _locate(packet: Packet) -> Packet:
    """Return the packet with interface and, where it is a neighbour's, MAC address; as it was without a route."""
    from dataclasses import replace

    from tidegate.firewall.rtnetlink import find_mac, find_route

    try:
        route = find_route(_far(packet))
        raw = None if route.gateway is not None else find_mac(_far(packet), route.interface)
    except (NoRoute, OSError):
        return packet
    return replace(packet, interface=route.interface or None, mac=None if raw is None else raw.hex(":"))


def _own_session(environment: Mapping[str, str]) -> list[Packet]:
    """Return the SSH session that this process serves; nothing on a console, or for a value that is none."""
    words = environment.get("SSH_CONNECTION", "").split()
    try:
        source, _, destination, port = words
        return [
            Packet(
                interface=None,
                source=ip_address(source.partition("%")[0]),
                destination=ip_address(destination.partition("%")[0]),
                protocol=Protocol.TCP,
                port=int(port),
            )
        ]
    except ValueError:
        return []


def _far(packet: Packet) -> Address:
    return packet.destination if packet.direction is Direction.OUT else packet.source


def _read_table(path: Path) -> Iterator[tuple[Session, int, str]]:
    try:
        with path.open(encoding="ascii", errors="replace") as stream:
            for line in islice(stream, MAX_SOCKETS):
                if (parsed := parse_socket(line)) is not None:
                    yield parsed
    except OSError:
        return


def _shell_inodes() -> Iterator[str]:
    """Yield the inode numbers of the sockets that remote shells' processes hold."""
    for process in islice(Path("/proc").glob("[0-9]*"), MAX_PROCESSES):
        try:
            if (process / "comm").read_text(errors="replace").strip() not in _SHELLS:
                continue
            for descriptor in islice((process / "fd").iterdir(), MAX_SOCKETS):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    yield target[8:-1]
        except OSError:
            continue


def _parse_end(word: str, byteorder: str) -> tuple[Address, int]:
    """Return address and port; the kernel prints addresses as 32-bit words in its own byte order."""
    text, _, port = word.partition(":")
    raw = bytes.fromhex(text)
    if len(raw) not in (4, 16):
        raise ValueError("no address")
    if byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    address: Address = IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address, int(port, 16)
