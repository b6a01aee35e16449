"""What a zone's interfaces take from the wire, before anything looks at addresses. Pure: plan, text, evaluator.

One table, ``netdev tidegate_link``: a chain for each interface at its ingress hook, and one for each zone that the
chains of its interfaces lead to. A frame passes when no duty of its zone refuses it; what it carries is then for the
other tables to decide. Limits and lists of senders are in positive logic: what is under or on them goes on. What a VLAN
tag covers is judged as if it were bare: the kernel has taken off the outer tag by then.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    "llc": 0x0004,  # Linux's number for IEEE 802.3 frames with a length, spanning tree's among them
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
TAGS = (0x8100, 0x88A8)
MIN_ETHERTYPE = 0x0600  # below, the field is a length (IEEE 802.3)
# Sources that no packet from a wire can have: RFC 6890's "Source: False", and IPv4 in IPv6 clothes.
BOGONS4 = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4")
BOGONS6 = ("::1/128", "::ffff:0.0.0.0/96", "ff00::/8")
FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ALL_FLAGS = FIN | SYN | RST | PSH | ACK | URG
# (mask, value): flags that no stack sends together: SYN+FIN, SYN+RST, FIN without ACK (Xmas among them), none at all.
ODD_FLAGS = ((SYN | FIN, SYN | FIN), (SYN | RST, SYN | RST), (FIN | ACK, FIN), (_ALL_FLAGS, 0))
_FLAG_NAMES = {FIN: "fin", SYN: "syn", RST: "rst", PSH: "psh", ACK: "ack", URG: "urg"}
_FORGET_S = 10  # longer than a second's worth takes to refill
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
    log: str = ""  # words that report a refused frame, at a bounded rate

    @property
    def label(self) -> str:
        """The rules' name in messages and comments."""
        return f"link.{self.zone}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What the evaluator needs to know of a frame. ``ethertype`` is what stands behind the outer ``tag``."""

    ethertype: int
    tag: int | None = None
    source_mac: str | None  # None: no Ethernet frame
    cast: Cast = Cast.HOST
    arp_sender: IPv4Address | None = None
    arp_sender_mac: str | None = None
    source: IPv4Address | IPv6Address | None = None  # of the IP packet inside, of a tagged frame too
    is_unconfigured: bool = False  # DHCP from 0.0.0.0 to everybody, or IGMP: who has no address yet says so
    tcp_flags: int | None = None  # None: no TCP header
    is_fragment: bool = False
    over_limit: bool = False  # every limit that applies is used up


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkDecision:
    """Whether a frame goes on, and why not (or why it would not: a zone that observes lets it pass)."""

    accept: bool
    reason: Reason | None = None


def plan_links(
    zones: Mapping[str, tuple[Sequence[str], written.Link | None]], *, observe: bool = False, log: str = ""
) -> tuple[LinkPlan, ...]:
    """Return the plan of every zone that has layer-2 rules, sorted by zone; raises ``firewall.policy.link``.

    ``observe``: whatever a zone says, nothing is refused. ``log``: nft's words that report a refused frame.
    """
    plans = (_plan_link(zone, interfaces, link) for zone, (interfaces, link) in sorted(zones.items()) if link)
    return tuple(replace(plan, observe=plan.observe or observe, log=log) for plan in plans)


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
        (Reason.ETHERTYPE, not {frame.ethertype, frame.tag or frame.ethertype} <= set(link.ethertypes)),
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
    if "lo" in interfaces:
        raise BadLink(f"{where}: lo is no wire: its own addresses would be refused there", where=where)
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
        if name != ETHERTYPES["llc"] and not MIN_ETHERTYPE <= name <= 0xFFFF:
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
    refuse = {reason: f"jump {_add_refusal(block, name, link, reason)}" for reason in Reason}
    plain = [f"{kind:#06x}" for kind in link.ethertypes]
    lines = [f"meta protocol != {_among(plain)} {refuse[Reason.ETHERTYPE]}" if plain else refuse[Reason.ETHERTYPE]]
    if unwanted := [f"{tag:#06x}" for tag in TAGS if tag not in link.ethertypes]:
        lines.append(f"ether type {_among(unwanted)} {refuse[Reason.ETHERTYPE]}")
    if link.macs:
        known = block.static_set(f"{name}_macs", "ether_addr", link.macs, flags="")
        senders = block.chain(f"{name}_senders", [f"ether saddr @{known} return", refuse[Reason.MAC]])
        lines.append(f"jump {senders}")
    lines += _binding_lines(block, name, link, refuse[Reason.BINDING])
    if link.bogons:
        lines += _bogon_lines(block, name, refuse)
    lines += _storm_lines(block, name, link, refuse)
    block.chain(name, lines)


def _add_refusal(block: Block, name: str, link: LinkPlan, reason: Reason) -> str:
    """Return the chain that counts, reports and refuses a frame; one that observes lets it pass."""
    counter = block.counter(f"{name}_{reason}")
    verdict = "accept" if link.observe else "drop"
    report = [link.log] if link.log else []
    return block.chain(f"{name}_no_{reason}", [*report, f"counter name {counter} {verdict} {comment(link.label)}"])


def _binding_lines(block: Block, name: str, link: LinkPlan, refusal: str) -> list[str]:
    """Who claims a bound address must be its owner, in the ARP packet and on the frame around it."""
    if not link.bindings:
        return []
    addresses = _bound_set(block, name, link)
    pairs = [f"{address} . {mac}" for address, mac in link.bindings]
    owners = block.static_set(f"{name}_owners", "ipv4_addr . ether_addr", pairs, flags="")
    start = f"arp saddr ip @{addresses} arp saddr ip"
    return [f"{start} . {field} != @{owners} {refusal}" for field in ("arp saddr ether", "ether saddr")]


def _bogon_lines(block: Block, name: str, refuse: Mapping[Reason, str]) -> list[str]:
    """A later fragment has no header of its protocol, and at this hook the kernel would read its data for one."""
    unconfigured = block.chain(
        f"{name}_unconfigured",
        [
            f"{_FIRST} ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 return",
            "ip saddr 0.0.0.0 ip protocol 2 return",
            refuse[Reason.BOGON],
        ],
    )
    odd = [f"tcp flags & {_flags(mask)} == {_flags(value)} {refuse[Reason.FLAGS]}" for mask, value in ODD_FLAGS]
    flags = block.chain(f"{name}_odd", ["ip frag-off & 0x1fff != 0 return", "frag frag-off != 0 return", *odd])
    return [
        f"ip saddr {_among(BOGONS4)} jump {unconfigured}",
        f"ip6 saddr {_among(BOGONS6)} {refuse[Reason.BOGON]}",
        f"meta l4proto 6 jump {flags}",
    ]


def _storm_lines(block: Block, name: str, link: LinkPlan, refuse: Mapping[Reason, str]) -> list[str]:
    """A limit has a chain of its own: what is under it returns, what is not is refused."""

    def bound(part: str, reason: Reason, per_s: int, *exempt: str) -> str:
        rate = f"limit rate {per_s}/second burst {per_s} packets return"
        return block.chain(f"{name}_{part}_limit", [*exempt, rate, refuse[reason]])

    lines = []
    if link.arp_per_s is not None:
        exempt = _bound_meter(block, name, link, link.arp_per_s)
        lines.append(f"meta protocol 0x0806 jump {bound('arp', Reason.ARP_STORM, link.arp_per_s, *exempt)}")
    if link.fragments_per_s is not None:
        chain = bound("fragments", Reason.FRAGMENT_STORM, link.fragments_per_s)
        lines += [f"ip frag-off & 0x3fff != 0 jump {chain}", f"exthdr frag exists jump {chain}"]
    if link.broadcast_per_s is not None:
        chain = bound("broadcast", Reason.BROADCAST_STORM, link.broadcast_per_s)
        lines.append(f"meta pkttype broadcast meta protocol != 0x0806 jump {chain}")
    if link.multicast_per_s is not None:
        # Neighbours have a bound of their own: a storm of anything else leaves them theirs.
        talk = bound("neighbours", Reason.MULTICAST_STORM, link.multicast_per_s)
        chain = bound("multicast", Reason.MULTICAST_STORM, link.multicast_per_s)
        cast = block.chain(f"{name}_cast", [f"{_ND} goto {talk}", f"goto {chain}"])
        lines.append(f"meta pkttype multicast jump {cast}")
    return lines


def _bound_meter(block: Block, name: str, link: LinkPlan, per_s: int) -> list[str]:
    """Whoever is bound is measured by himself: a stranger's storm of ARP cuts off nobody whose address is known.

    Only bound addresses get here as senders (the others were sent away), so the set cannot fill.
    """
    if not link.bindings:
        return []
    kept = block.dynamic_set(f"{name}_owners_rate", "ipv4_addr", size=len(link.bindings), timeout_s=_FORGET_S)
    rate = f"limit rate {per_s}/second burst {per_s} packets"
    return [f"arp saddr ip @{_bound_set(block, name, link)} update @{kept} {{ arp saddr ip {rate} }} return"]


def _bound_set(block: Block, name: str, link: LinkPlan) -> str:
    """Return the set of bound addresses; zones that bind the same ones share it, under the first one's name."""
    return block.static_set(f"{name}_bound", "ipv4_addr", [address for address, _ in link.bindings], flags="")


def _among(values: Iterable[str]) -> str:
    return f"{{ {', '.join(values)} }}"


def _flags(bits: int) -> str:
    names = [name for bit, name in _FLAG_NAMES.items() if bits & bit]
    return f"({' | '.join(names)})" if len(names) > 1 else (names[0] if names else "0x0")
