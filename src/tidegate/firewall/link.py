"""What a zone's interfaces take from the wire, before anything looks at addresses. Pure: plan, text, evaluator.

One table, ``netdev tidegate_link``: a chain for each interface at its ingress hook, and one for each zone that the
chains of its interfaces lead to. A frame passes when no duty of its zone refuses it; what it carries is then for the
other tables to decide. Limits are in positive logic: what is under them goes on.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_network

from tidegate.firewall import section as written
from tidegate.firewall.blocks import Block, comment, identifier
from tidegate.firewall.errors import BadLink
from tidegate.firewall.section import RuleMode

LINK_TABLE = "tidegate_link"
PRIORITY = -500  # before everything else at the ingress hook
# IEEE 802 Numbers: the ones that devices of ours meet.
ETHERTYPES = {
    "ipv4": 0x0800,
    "arp": 0x0806,
    "vlan": 0x8100,
    "ipv6": 0x86DD,
    "pppoe-discovery": 0x8863,
    "pppoe": 0x8864,
    "eapol": 0x888E,
    "profinet": 0x8892,
    "ethercat": 0x88A4,
    "qinq": 0x88A8,
    "goose": 0x88B8,
    "sampled-values": 0x88BA,
    "lldp": 0x88CC,
    "ptp": 0x88F7,
}
MIN_ETHERTYPE = 0x0600  # below, the field is a length (IEEE 802.3)
# Sources that no packet from a wire can have: RFC 6890's "Source: False", and IPv4 in IPv6 clothes.
BOGONS4 = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")
BOGONS6 = ("::1/128", "::ffff:0.0.0.0/96", "ff00::/8")
FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ALL_FLAGS = FIN | SYN | RST | PSH | ACK | URG
# (mask, value): flags that no stack sends together: SYN+FIN, SYN+RST, FIN without ACK (Xmas among them), none at all.
ODD_FLAGS = ((SYN | FIN, SYN | FIN), (SYN | RST, SYN | RST), (FIN | ACK, FIN), (_ALL_FLAGS, 0))
_FLAG_NAMES = {FIN: "fin", SYN: "syn", RST: "rst", PSH: "psh", ACK: "ack", URG: "urg"}
_FIRST = "ip frag-off & 0x1fff == 0"  # not a later fragment
_ND = "icmpv6 type { 133, 134, 135, 136, 137 }"  # RFC 4861: neighbours must find each other in a storm, too


class Reason(StrEnum):
    """Why a frame is refused; also the last part of the counter's name."""

    ETHERTYPE = "ethertype"
    MAC = "mac"
    BINDING = "binding"
    BOGON = "bogon"
    FLAGS = "flags"
    ARP_STORM = "arp"
    BROADCAST_STORM = "broadcast"
    MULTICAST_STORM = "multicast"
    FRAGMENT_STORM = "fragments"


class Cast(StrEnum):
    """To whom a frame is addressed on the link; the value is nft's ``meta pkttype``."""

    HOST = "host"
    BROADCAST = "broadcast"
    MULTICAST = "multicast"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPlan:
    """The layer-2 rules of one zone; ``None`` where there is no limit."""

    zone: str
    interfaces: tuple[str, ...]
    ethertypes: tuple[int, ...] = (0x0800, 0x0806, 0x86DD)
    macs: tuple[str, ...] = ()  # none: every sender
    bindings: tuple[tuple[IPv4Address, str], ...] = ()
    arp_per_s: int | None = None
    broadcast_per_s: int | None = None
    multicast_per_s: int | None = None
    fragments_per_s: int | None = None
    bogons: bool = True
    observe: bool = False

    @property
    def label(self) -> str:
        """The rules' name in messages and comments."""
        return f"link.{self.zone}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the evaluator needs to know of a frame. A tagged frame's ``ethertype`` is that of its tag."""

    ethertype: int
    source_mac: str
    cast: Cast = Cast.HOST
    arp_sender: IPv4Address | None = None
    arp_sender_mac: str | None = None
    source: IPv4Address | IPv6Address | None = None  # of the IP packet inside, of a tagged frame too
    is_unconfigured: bool = False  # DHCP from 0.0.0.0 to everybody, or IGMP: who has no address yet says so
    tcp_flags: int | None = None  # None: no TCP header
    is_fragment: bool = False
    is_neighbour_talk: bool = False  # ICMPv6 types 133 to 137
    over_limit: bool = False  # every limit that applies is used up


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDecision:
    """Whether a frame goes on, and why not (or why it would not: a zone that observes lets it pass)."""

    accept: bool
    reason: Reason | None = None


def plan_links(zones: Mapping[str, tuple[Sequence[str], written.Link | None]]) -> tuple[LinkPlan, ...]:
    """Return the plan of every zone that has layer-2 rules, sorted by zone; raises ``firewall.policy.link``."""
    return tuple(
        _plan_link(zone, interfaces, link) for zone, (interfaces, link) in sorted(zones.items()) if link is not None
    )


def link_interfaces(links: Sequence[LinkPlan]) -> tuple[str, ...]:
    """Return the interfaces that have layer-2 rules."""
    return tuple(sorted(name for link in links for name in link.interfaces))


def encode_links(links: Sequence[LinkPlan], *, present: Collection[str] | None = None) -> str:
    """Return the transaction text that replaces the layer-2 table; nothing when there are no rules.

    ``present``: only these interfaces get their chain, for a chain cannot be loaded without its device.
    """
    if not links:
        return ""
    block = Block()
    for link in links:
        _add_zone(block, link)
    number = 0
    for link in links:
        for interface in link.interfaces:
            number += 1
            if present is None or interface in present:
                hook = f'type filter hook ingress device "{interface}" priority {PRIORITY}; policy accept;'
                block.chain(f"device_{number}", [hook, f"jump {identifier('link', link.zone)}"])
    head = f"table netdev {LINK_TABLE}\ndelete table netdev {LINK_TABLE}\n"
    return head + block.encode(LINK_TABLE, family="netdev")


def evaluate_frame(link: LinkPlan, frame: Frame) -> LinkDecision:
    """Return what the compiled rules of ``link`` do with ``frame``, and the first duty that refuses it."""
    reason = next((reason for reason, refuses in _duties(link, frame) if refuses), None)
    return LinkDecision(accept=reason is None or link.observe, reason=reason)


def check_links(
    links: Sequence[LinkPlan], *, management_interfaces: tuple[str, ...], needs_v4: bool, needs_v6: bool
) -> list[tuple[str, str]]:
    """Return (subject, what is wrong) for rules that no frame of the management path can pass.

    ``management_interfaces``: where managers come in; none: everywhere. A MAC address that is missing from a list of
    senders cannot be seen here; the armed rollback is for that.
    """
    found = []
    needed = {"ipv4": needs_v4, "arp": needs_v4, "ipv6": needs_v6}
    for link in links:
        if link.observe or (management_interfaces and not set(management_interfaces) & set(link.interfaces)):
            continue
        missing = [name for name, needs in needed.items() if needs and ETHERTYPES[name] not in link.ethertypes]
        if missing:
            text = f"{link.label} refuses {', '.join(missing)}, by which this device is managed"
            found.append((link.label, text))
    return found


def _duties(link: LinkPlan, frame: Frame) -> list[tuple[Reason, bool]]:
    """Return the duties in their order, each with whether it refuses the frame."""
    bound = dict(link.bindings)
    owner = bound.get(frame.arp_sender) if frame.arp_sender is not None else None
    over = frame.over_limit
    is_arp = frame.ethertype == ETHERTYPES["arp"]
    return [
        (Reason.ETHERTYPE, frame.ethertype not in link.ethertypes),
        (Reason.MAC, bool(link.macs) and frame.source_mac not in link.macs),
        (Reason.BINDING, owner is not None and not frame.source_mac == frame.arp_sender_mac == owner),
        (Reason.BOGON, link.bogons and _is_bogon(frame)),
        (Reason.FLAGS, link.bogons and _is_odd(frame.tcp_flags)),
        (Reason.ARP_STORM, is_arp and link.arp_per_s is not None and over),
        (Reason.FRAGMENT_STORM, frame.is_fragment and link.fragments_per_s is not None and over),
        (
            Reason.BROADCAST_STORM,
            frame.cast is Cast.BROADCAST and not is_arp and link.broadcast_per_s is not None and over,
        ),
        (Reason.MULTICAST_STORM, frame.cast is Cast.MULTICAST and link.multicast_per_s is not None and over),
    ]


def _is_bogon(frame: Frame) -> bool:
    if frame.source is None or frame.is_unconfigured:
        return False
    return any(frame.source in ip_network(prefix) for prefix in BOGONS4 + BOGONS6)


def _is_odd(flags: int | None) -> bool:
    return flags is not None and any(flags & mask == value for mask, value in ODD_FLAGS)


def _plan_link(zone: str, interfaces: Sequence[str], link: written.Link) -> LinkPlan:
    where = f"firewall.link.{zone}"
    return LinkPlan(
        zone=zone,
        interfaces=tuple(sorted(set(interfaces))),
        ethertypes=tuple(sorted({_plan_ethertype(where, name) for name in link.ethertypes})),
        macs=tuple(sorted({mac.lower() for mac in link.macs})),
        bindings=tuple(sorted((_plan_bound(where, ip), mac.lower()) for ip, mac in link.arp_bindings.items())),
        arp_per_s=link.arp_per_s,
        broadcast_per_s=link.broadcast_per_s,
        multicast_per_s=link.multicast_per_s,
        fragments_per_s=link.fragments_per_s,
        bogons=link.bogons,
        observe=link.mode is RuleMode.OBSERVE,
    )


def _plan_ethertype(where: str, name: str | int) -> int:
    if isinstance(name, int):
        if not MIN_ETHERTYPE <= name <= 0xFFFF:
            raise BadLink(f"{where}: {name} is no ethertype: they go from 0x0600 to 0xffff", where=where)
        return name
    if name not in ETHERTYPES:
        near = difflib.get_close_matches(name.lower(), ETHERTYPES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadLink(f"{where}: no ethertype is called {name!r}{hint}", where=where)
    return ETHERTYPES[name]


def _plan_bound(where: str, address: str) -> IPv4Address:
    try:
        return IPv4Address(address)
    except AddressValueError as error:
        raise BadLink(f"{where}: arp_bindings: {address!r} is no IPv4 address", where=where) from error


def _add_zone(block: Block, link: LinkPlan) -> None:
    name = identifier("link", link.zone)
    refusals = {reason: _refusal(block, link, reason) for reason in Reason}
    lines = [f"ether type != {_among(f'{kind:#06x}' for kind in link.ethertypes)} {refusals[Reason.ETHERTYPE]}"]
    if not link.ethertypes:
        lines = [refusals[Reason.ETHERTYPE]]
    if link.macs:
        known = block.static_set(f"{name}_macs", "ether_addr", link.macs, flags="")
        lines.append(f"ether saddr != @{known} {refusals[Reason.MAC]}")
    lines += _binding_lines(block, name, link, refusals[Reason.BINDING])
    if link.bogons:
        lines += _bogon_lines(block, name, refusals)
    lines += _storm_lines(block, name, link, refusals)
    block.chain(name, lines)


def _refusal(block: Block, link: LinkPlan, reason: Reason) -> str:
    """Return the words that refuse a frame; a zone that observes counts and goes on."""
    counter = block.counter(f"{identifier('link', link.zone)}_{reason}")
    return f"counter name {counter} {'continue' if link.observe else 'drop'} {comment(link.label)}"


def _binding_lines(block: Block, name: str, link: LinkPlan, refusal: str) -> list[str]:
    """Who claims a bound address must be its owner, in the ARP packet and on the frame around it."""
    if not link.bindings:
        return []
    addresses = block.static_set(f"{name}_bound", "ipv4_addr", [address for address, _ in link.bindings], flags="")
    pairs = [f"{address} . {mac}" for address, mac in link.bindings]
    owners = block.static_set(f"{name}_owners", "ipv4_addr . ether_addr", pairs, flags="")
    start = f"arp saddr ip @{addresses} arp saddr ip"
    return [f"{start} . {field} != @{owners} {refusal}" for field in ("arp saddr ether", "ether saddr")]


def _bogon_lines(block: Block, name: str, refusals: Mapping[Reason, str]) -> list[str]:
    """A later fragment has no header of its protocol, and at this hook the kernel would read its data for one."""
    unconfigured = block.chain(
        f"{name}_bogon",
        [
            f"{_FIRST} ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 return",
            "ip saddr 0.0.0.0 ip protocol 2 return",
            refusals[Reason.BOGON],
        ],
    )
    odd = [f"tcp flags & {_flags(mask)} == {_flags(value)} {refusals[Reason.FLAGS]}" for mask, value in ODD_FLAGS]
    flags = block.chain(f"{name}_odd", ["ip frag-off & 0x1fff != 0 return", *odd])
    return [
        f"ip saddr {_among(BOGONS4)} jump {unconfigured}",
        f"ip6 saddr {_among(BOGONS6)} {refusals[Reason.BOGON]}",
        f"meta l4proto 6 jump {flags}",
    ]


def _storm_lines(block: Block, name: str, link: LinkPlan, refusals: Mapping[Reason, str]) -> list[str]:
    """A limit has a chain of its own: what is under it returns, what is not is refused."""

    def bound(reason: Reason, per_s: int) -> str:
        rate = f"limit rate {per_s}/second burst {per_s} packets return"
        return block.chain(f"{name}_{reason}_limit", [rate, refusals[reason]])

    lines = []
    if link.arp_per_s is not None:
        lines.append(f"ether type 0x0806 jump {bound(Reason.ARP_STORM, link.arp_per_s)}")
    if link.fragments_per_s is not None:
        chain = bound(Reason.FRAGMENT_STORM, link.fragments_per_s)
        lines += [f"ip frag-off & 0x3fff != 0 jump {chain}", f"exthdr frag exists jump {chain}"]
    if link.broadcast_per_s is not None:
        chain = bound(Reason.BROADCAST_STORM, link.broadcast_per_s)
        lines.append(f"meta pkttype broadcast ether type != 0x0806 jump {chain}")
    if link.multicast_per_s is not None:
        rate = f"limit rate {link.multicast_per_s}/second burst {link.multicast_per_s} packets return"
        # Neighbours have a bound of their own: a storm of anything else leaves them theirs.
        talk = block.chain(f"{name}_neighbours_limit", [rate, refusals[Reason.MULTICAST_STORM]])
        chain = bound(Reason.MULTICAST_STORM, link.multicast_per_s)
        block.chain(f"{name}_multicast", [f"{_ND} goto {talk}", f"goto {chain}"])
        lines.append(f"meta pkttype multicast jump {name}_multicast")
    return lines


def _among(values: Iterable[str]) -> str:
    return f"{{ {', '.join(values)} }}"


def _flags(bits: int) -> str:
    names = [name for bit, name in _FLAG_NAMES.items() if bits & bit]
    return f"({' | '.join(names)})" if len(names) > 1 else (names[0] if names else "0x0")
