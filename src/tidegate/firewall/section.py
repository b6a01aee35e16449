"""The ``[firewall]`` section of the policy, as an operator writes it and as the signed document carries it.

Nothing here depends on the order of rules: a signed policy has no order. A packet passes when some rule allows it.
Types and ranges are checked by msgspec while decoding; names and addresses by ``model.plan_ruleset``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct, field

from tidegate.firewall.fields import FieldRules

MAX_SERVICES = 1000  # per direction; bench/firewall.py measures what they cost
MAX_PEERS = 10_000  # a list of this length loads in 0.1 s; longer lists are feeds, not policy
MAX_FIELD_RULES = 63  # six bits of the packet's mark name one (docs/firewall-fields.md)
MAX_DNS_NAME = 253  # RFC 1035 §2.3.4, as text

# Names become nft identifiers; "_" is kept for the joints that the compiler adds, so two names never meet.
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Interface = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")]  # IFNAMSIZ; no quote can get out
Interfaces = Annotated[tuple[Interface, ...], Meta(max_length=64)]
PortNumber = Annotated[int, Meta(ge=1, le=65535)]
Port = PortNumber | Annotated[str, Meta(pattern=r"^[0-9]{1,5}-[0-9]{1,5}\Z")]
Ports = Annotated[tuple[Port, ...], Meta(max_length=256)]
Peers = Annotated[tuple[Annotated[str, Meta(max_length=MAX_DNS_NAME + 1)], ...], Meta(max_length=MAX_PEERS)]
Rate = Annotated[int, Meta(ge=1, le=1_000_000)]
Connections = Annotated[int, Meta(ge=1, le=65535)]
Sources = Annotated[int, Meta(ge=16, le=1_048_576)]
Mac = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}\Z")]
Seconds = Annotated[int, Meta(ge=1, le=3600)]


class Mode(StrEnum):
    """How the ruleset treats what it does not allow."""

    ENFORCE = "enforce"  # refuse it
    OBSERVE = "observe"  # count and log it, let it pass: for learning a policy
    LOCKDOWN = "lockdown"  # refuse everything but the management path, running sessions included


class RuleMode(StrEnum):
    """How one rule treats what goes beyond its limits and thresholds."""

    ENFORCE = "enforce"  # refuse it
    OBSERVE = "observe"  # report it (and each new connection), let it pass


class Default(StrEnum):
    """What an unwanted packet meets."""

    DENY = "deny"  # silence
    REJECT = "reject"  # an answer (TCP reset or ICMP), at a bounded rate


class EgressDefault(StrEnum):
    """What a connection that the device opens meets when no egress service allows it."""

    ALLOW = "allow"
    DENY = "deny"


class Forward(StrEnum):
    """What happens to packets that pass through the device and that no route allows."""

    DENY = "deny"
    LEAVE = "leave"  # no forward chain: another table decides


class Protocol(StrEnum):
    """What a rule can name: transports with ports, and protocols without."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"
    PING = "ping"  # ICMP and ICMPv6 echo request
    IGMP = "igmp"
    GRE = "gre"
    ESP = "esp"
    AH = "ah"
    OSPF = "ospf"
    VRRP = "vrrp"

    @property
    def has_ports(self) -> bool:
        """Whether rules for it name ports."""
        return self in (Protocol.TCP, Protocol.UDP, Protocol.SCTP)


class Per(StrEnum):
    """What a threshold counts together."""

    SOURCE = "source"
    SERVICE = "service"  # all sources of one service
    TOTAL = "total"  # everything that comes in; in [[firewall.thresholds]] only


class Count(StrEnum):
    """What a threshold counts."""

    NEW = "new"  # packets that begin something: a TCP connection; each datagram until one is answered
    PACKETS = "packets"  # every packet, those of established connections too


class Tamper(StrEnum):
    """What follows when somebody else changes our rules in the kernel."""

    REPORT = "report"
    RESTORE = "restore"  # report, and put ours back


class Limit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Limits per source address. A source that finds no room in the table of sources is refused."""

    new_per_s: Rate | None = None
    burst: Rate | None = None  # default: one second's worth
    connections: Connections | None = None
    total_connections: Connections | None = None  # of all sources together
    sources: Sources = 4096  # remembered per address family


class Threshold(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Refuse from ``high`` in an interval on, until an interval goes by with less than ``low``.

    A source that finds no room in the table of sources is refused.
    """

    per: Per = Per.SOURCE
    count: Count = Count.NEW
    interval_s: Seconds = 1
    high: Rate
    low: Rate | None = None  # default: high, so no hysteresis
    sources: Sources = 4096
    prefix_v4: Annotated[int, Meta(ge=8, le=32)] = 32  # sources in one such prefix count as one
    prefix_v6: Annotated[int, Meta(ge=16, le=128)] = 64  # a host picks its addresses within a /64


Thresholds = Annotated[tuple[Threshold, ...], Meta(max_length=4)]


class Service(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this device answers, and for whom. No interfaces and no zones means every interface."""

    protocol: Protocol
    ports: Ports = ()
    peers: Peers
    interfaces: Interfaces = ()
    zones: tuple[Name, ...] = ()
    limit: Limit | None = None
    thresholds: Thresholds = ()
    fields: Name | None = None  # a name under firewall.fields
    syn_proxy: bool = False  # TCP: the kernel answers the handshake and tells the service of finished ones only
    mode: RuleMode = RuleMode.ENFORCE
    lockdown: bool = False  # stays open in lockdown


class EgressService(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this device may call, and at whom."""

    protocol: Protocol
    ports: Ports = ()
    peers: Peers
    interfaces: Interfaces = ()
    zones: tuple[Name, ...] = ()
    fields: Name | None = None
    mode: RuleMode = RuleMode.ENFORCE
    lockdown: bool = False


class Route(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What may pass through this device from one side to another."""

    protocol: Protocol
    ports: Ports = ()
    sources: Peers
    destinations: Peers
    from_zones: tuple[Name, ...] = ()
    to_zones: tuple[Name, ...] = ()
    limit: Limit | None = None
    thresholds: Thresholds = ()
    fields: Name | None = None
    mode: RuleMode = RuleMode.ENFORCE
    lockdown: bool = False


class Zone(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Interfaces that are trusted alike. An interface belongs to one zone at most."""

    interfaces: Annotated[tuple[Interface, ...], Meta(min_length=1, max_length=64)]


class Masquerade(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sources of a gateway's inside that leave under the gateway's own address."""

    sources: Peers
    zones: Annotated[tuple[Name, ...], Meta(min_length=1)]  # through which they leave


class PortForward(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One port of the gateway that an inside host answers. Brings its own route."""

    protocol: Protocol
    port: PortNumber
    zones: Annotated[tuple[Name, ...], Meta(min_length=1)]  # through which callers come
    peers: Peers
    to: Annotated[str, Meta(max_length=64)]
    to_port: PortNumber | None = None  # default: the same


class Nat(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Address translation for a gateway."""

    masquerade: Annotated[dict[Name, Masquerade], Meta(max_length=64)] = field(default_factory=dict)
    port_forwards: Annotated[dict[Name, PortForward], Meta(max_length=MAX_SERVICES)] = field(default_factory=dict)


class Link(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one zone's interfaces take from the wire, before anything looks at addresses (netdev ingress)."""

    # "ipv4", "ipv6", "arp", "eapol", "lldp" or a number; VLAN tags are named by "vlan"
    ethertypes: Annotated[tuple[str | int, ...], Meta(max_length=32)] = ("ipv4", "ipv6", "arp")
    macs: Annotated[tuple[Mac, ...], Meta(max_length=1024)] = ()  # none: every sender
    arp_bindings: Annotated[dict[str, Mac], Meta(max_length=1024)] = field(default_factory=dict)  # IPv4 -> its MAC
    arp_per_s: Rate | None = 100
    broadcast_per_s: Rate | None = 200
    multicast_per_s: Rate | None = 500
    fragments_per_s: Rate | None = 100
    bogons: bool = True  # refuse sources that no packet from a wire can have, and TCP flags that no stack sends
    mode: RuleMode = RuleMode.ENFORCE


class Conntrack(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of the kernel's connection tracking; ``None`` leaves the system's value."""

    max: Annotated[int, Meta(ge=1024, le=4_194_304)] | None = None  # 256 bytes of kernel memory each
    syn_timeout_s: Seconds | None = None  # of connections that are not answered


class Management(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The path that no policy may cut: who reaches which service, and which egress service leads to the manager.

    These peers are never limited and never banned on this path, and it stays open in lockdown.
    """

    peers: Peers
    service: Name
    egress: Name | None = None


class Egress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the device itself may call."""

    default: EgressDefault = EgressDefault.DENY
    services: Annotated[dict[Name, EgressService], Meta(max_length=MAX_SERVICES)] = field(default_factory=dict)


class Bans(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many addresses (and as many prefixes) can be banned per family at a time, and which never."""

    max: Annotated[int, Meta(ge=16, le=1_048_576)] = 4096
    never: Peers = ()


class FirewallSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole ``[firewall]`` section; unknown keys are refused."""

    mode: Mode = Mode.ENFORCE
    default: Default = Default.DENY
    forward: Forward = Forward.DENY
    tamper: Tamper = Tamper.REPORT
    confirm_timeout_s: Annotated[int, Meta(ge=1, le=3600)] = 30
    ping_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = 10  # 0: no echo reply unless a service says so
    log_group: Annotated[int, Meta(ge=0, le=65535)] = 5
    log_per_s: Annotated[int, Meta(ge=0, le=1000)] = 5  # 0: no log; NFLOG readers lose records far above this
    # 131,072 elements of 170 B (measured for an interval set) are 22 MB of kernel memory, were they all full.
    set_budget: Annotated[int, Meta(ge=64, le=16_777_216)] = 131_072
    zones: Annotated[dict[Name, Zone], Meta(max_length=64)] = field(default_factory=dict)
    peers: Annotated[dict[Name, Peers], Meta(max_length=MAX_SERVICES)] = field(default_factory=dict)
    management: Management | None = None
    services: Annotated[dict[Name, Service], Meta(max_length=MAX_SERVICES)] = field(default_factory=dict)
    egress: Egress = field(default_factory=Egress)
    routes: Annotated[dict[Name, Route], Meta(max_length=MAX_SERVICES)] = field(default_factory=dict)
    nat: Nat = field(default_factory=Nat)
    thresholds: Thresholds = ()  # over everything that comes in, whatever service it is for
    fields: Annotated[dict[Name, FieldRules], Meta(max_length=MAX_FIELD_RULES)] = field(default_factory=dict)
    link: Annotated[dict[Name, Link], Meta(max_length=64)] = field(default_factory=dict)  # by zone
    conntrack: Conntrack = field(default_factory=Conntrack)
    bans: Bans = field(default_factory=Bans)
