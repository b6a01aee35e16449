"""Which conversations a MUD file lets each side begin. Pure.

A MUD file describes packets one by one; our rules describe who may begin a conversation, and connection tracking lets
the answers through. So an entry is either an *opening*, or the answers to one, which need no rule. Where a file says
less than our rules need to know, it is read the narrower way and the finding says so: it never becomes wider silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network

from tidegate.firewall.mud import Ace, Forwarding, MudFile, Side
from tidegate.firewall.mud_match import MAX_PORT, Match, PeerKind, Span
from tidegate.firewall.section import Protocol

EVERY_PORT = (Span(first=1, last=MAX_PORT),)
_NUMBERED = {
    2: Protocol.IGMP,
    6: Protocol.TCP,
    17: Protocol.UDP,
    47: Protocol.GRE,
    50: Protocol.ESP,
    51: Protocol.AH,
    89: Protocol.OSPF,
    112: Protocol.VRRP,
    132: Protocol.SCTP,
}
_ICMP_FAMILY = {1: 4, 58: 6}
_ECHO = {4: (8, 0), 6: (128, 129)}  # request, reply
# Errors about a conversation come with it; IPv6 neighbours and routers always talk (docs/firewall.md).
_ATTACHED_ICMP = {4: (3, 4, 11, 12), 6: (1, 2, 3, 4, 130, 131, 132, 133, 134, 135, 136, 143)}


class FindingKind(StrEnum):
    """What became of an entry, or what is to be known about the file."""

    LEFT_OUT = "left-out"  # no rule of ours can say it
    WIDENED = "widened"  # the rule allows more than the entry; only where it was asked for, or nothing else can be said
    NARROWED = "narrowed"  # the rule allows less
    NOTE = "note"
    EXPIRED = "expired"
    NOT_SUPPORTED = "not-supported"  # the manufacturer supports the device no longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the operator has to know; ``where`` is ``list/entry`` or a node of the file."""

    kind: FindingKind
    where: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One conversation that ``side`` may begin, in one address family."""

    side: Side
    protocol: Protocol
    ports: tuple[Span, ...]  # of the side that answers
    family: int
    peer: PeerKind
    peer_value: str
    origin: str


def plan_openings(mud: MudFile, *, any_source_port: bool = False) -> tuple[list[Opening], list[Finding]]:
    """Return what each side may begin, and what became of every entry that is not taken over word for word.

    ``any_source_port``: an entry that also asks for the port from which a conversation is begun is taken over without
    that, as *widened*; otherwise it is *left out*, because our rules look at the port that answers alone.
    """
    reader = _Reader(mud, any_source_port=any_source_port)
    for side in Side:
        refused: list[Ace] = []
        for ace in mud.of_policy(side):
            if ace.forwarding is not Forwarding.ACCEPT:
                refused.append(ace)
            else:
                reader.read(ace, refused)
    return reader.openings, reader.findings


class _Reader:
    def __init__(self, mud: MudFile, *, any_source_port: bool) -> None:
        self._mud = mud
        self._any_source_port = any_source_port
        self.openings: list[Opening] = []
        self.findings: list[Finding] = []

    def read(self, ace: Ace, refused: Sequence[Ace]) -> None:
        match = ace.match
        if match.layer2:
            self._say(FindingKind.NOTE, ace, "it is about frames: [firewall.link] says which pass, by default most")
        elif ace.unsupported:
            self._say(FindingKind.LEFT_OUT, ace, "; ".join(ace.unsupported))
        elif any(_overlap(earlier, ace) for earlier in refused):
            self._say(FindingKind.LEFT_OUT, ace, "an entry before it refuses a part of it, and our rules have no order")
        elif () in (match.device_ports, match.peer_ports):
            self._say(FindingKind.LEFT_OUT, ace, "port 0 is nobody's")
        elif match.protocol is None:
            self._read_any(ace)
        elif match.protocol in _ICMP_FAMILY:
            self._read_icmp(ace)
        elif match.protocol not in _NUMBERED:
            self._say(FindingKind.LEFT_OUT, ace, f"our rules cannot name protocol {match.protocol}")
        elif _NUMBERED[match.protocol].has_ports:
            self._read_transport(ace, _NUMBERED[match.protocol])
        else:
            self._open(ace, _NUMBERED[match.protocol], ())

    def _read_any(self, ace: Ace) -> None:
        if ace.match.device_ports or ace.match.peer_ports:
            self._say(FindingKind.LEFT_OUT, ace, "it has ports and no protocol")
            return
        self._say(FindingKind.NARROWED, ace, "of every protocol, TCP, UDP and echo requests are taken over")
        for protocol in (Protocol.TCP, Protocol.UDP):
            self._open(ace, protocol, EVERY_PORT)
        self._open(ace, Protocol.PING, ())

    def _read_icmp(self, ace: Ace) -> None:
        family = ace.family or 4
        kind = ace.match.icmp_type
        if _ICMP_FAMILY[ace.match.protocol or 0] != family:
            self._say(FindingKind.LEFT_OUT, ace, "ICMP of the other address family")
        elif kind is None:
            self._say(FindingKind.NARROWED, ace, "of every ICMP message, the echo request is taken over")
            self._open(ace, Protocol.PING, ())
        elif kind == _ECHO[family][0]:
            self._open(ace, Protocol.PING, ())
        elif kind != _ECHO[family][1] and kind not in _ATTACHED_ICMP[family]:
            self._say(FindingKind.LEFT_OUT, ace, f"our rules cannot name ICMP type {kind}")

    def _read_transport(self, ace: Ace, protocol: Protocol) -> None:
        began = ace.match.began_by_device
        if began is not None and began is not (ace.policy is Side.DEVICE):
            return  # answers; without an opening there is nothing to answer
        own, other = _ports(ace)
        if own is None:
            if other is None:
                self._say(FindingKind.NOTE, ace, f"{_beginner(ace)} may begin at every {protocol} port")
            self._open(ace, protocol, other or EVERY_PORT)
        elif other is None and began is None:
            if not self._has_mirror(ace):
                text = f"a port to come from alone is read as answers: {_beginner(ace)} may not begin from there"
                self._say(FindingKind.NARROWED, ace, text)
        elif ace.policy is Side.PEER and began is None and self._has_mirror(ace):
            self._say(FindingKind.NARROWED, ace, "the same ports both ways: read as answers to the device")
        elif not self._any_source_port:
            self._say(FindingKind.LEFT_OUT, ace, "our rules cannot ask for the port from which a conversation begins")
        else:
            self._say(FindingKind.WIDENED, ace, "the port from which the conversation begins is not looked at")
            self._open(ace, protocol, other or EVERY_PORT)

    def _has_mirror(self, ace: Ace) -> bool:
        """Return whether the other policy has the entry whose answers this one describes."""
        mine = ace.match
        return any(
            other.policy is not ace.policy
            and other.forwarding is Forwarding.ACCEPT
            and other.family == ace.family
            and _facts(other.match) == _facts(mine)
            for other in self._mud.aces
        )

    def _open(self, ace: Ace, protocol: Protocol, ports: tuple[Span, ...]) -> None:
        if ace.policy is Side.PEER and ace.match.peer is PeerKind.ANY:
            self._say(FindingKind.NOTE, ace, f"everybody may begin {protocol} with the device")
        opening = Opening(
            side=ace.policy,
            protocol=protocol,
            ports=ports,
            family=ace.family or 4,
            peer=ace.match.peer,
            peer_value=ace.match.peer_value,
            origin=ace.label,
        )
        self.openings.append(opening)

    def _say(self, kind: FindingKind, ace: Ace, message: str) -> None:
        self.findings.append(Finding(kind=kind, where=ace.label, message=message))


def _ports(ace: Ace) -> tuple[tuple[Span, ...] | None, tuple[Span, ...] | None]:
    """Return the ports of the sender and of the receiver."""
    match = ace.match
    return (
        (match.device_ports, match.peer_ports) if ace.policy is Side.DEVICE else (match.peer_ports, match.device_ports)
    )


def _facts(match: Match) -> tuple[object, ...]:
    return match.protocol, match.peer, match.peer_value, match.device_ports, match.peer_ports


def _beginner(ace: Ace) -> str:
    return "the device" if ace.policy is Side.DEVICE else "the other side"


def _overlap(earlier: Ace, ace: Ace) -> bool:
    """Return whether a packet may match both; what is not understood may match everything."""
    if earlier.unsupported or earlier.match.layer2:
        return True
    if earlier.family != ace.family:
        return False
    a, b = earlier.match, ace.match
    for mine, theirs in ((a.protocol, b.protocol), (a.icmp_type, b.icmp_type), (a.began_by_device, b.began_by_device)):
        if mine is not None and theirs is not None and mine != theirs:
            return False
    for mine_ports, their_ports in ((a.device_ports, b.device_ports), (a.peer_ports, b.peer_ports)):
        if mine_ports is not None and their_ports is not None and not _share(mine_ports, their_ports):
            return False
    if a.peer is b.peer is PeerKind.NETWORK:
        return ip_network(a.peer_value).overlaps(ip_network(b.peer_value))
    return True


def _share(a: Sequence[Span], b: Sequence[Span]) -> bool:
    return any(one.first <= other.last and other.first <= one.last for one in a for other in b)
