"""The ``[firewall]`` section of the policy, as an operator writes it and as the signed document carries it.

Nothing here depends on the order of services: a signed policy has no order. A packet passes when some service allows
it. Types and ranges are checked by msgspec while decoding; names and addresses by ``model.plan_ruleset``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct, field

MAX_SERVICES = 1000  # what a verdict map was measured with at no cost in throughput
MAX_PEERS = 10_000  # a list of this length loads in 0.1 s; longer lists are feeds, not policy

# Names become nft identifiers; "_" is kept for the joints that the compiler adds, so two names never meet.
Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Interface = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")]  # IFNAMSIZ; no quote can get out
Port = Annotated[int, Meta(ge=1, le=65535)] | Annotated[str, Meta(pattern=r"^[0-9]{1,5}-[0-9]{1,5}\Z")]
Ports = Annotated[tuple[Port, ...], Meta(min_length=1, max_length=256)]
Peers = Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=MAX_PEERS)]
Rate = Annotated[int, Meta(ge=1, le=1_000_000)]


class Mode(StrEnum):
    """How the ruleset treats what it does not allow."""

    ENFORCE = "enforce"  # refuse it
    OBSERVE = "observe"  # count and log it, let it pass: for learning a policy
    LOCKDOWN = "lockdown"  # refuse everything but the management path, running sessions included


class Default(StrEnum):
    """What an unwanted packet meets."""

    DENY = "deny"  # silence
    REJECT = "reject"  # an answer (TCP reset or ICMP), at a bounded rate


class EgressDefault(StrEnum):
    """What a connection that the device opens meets when no egress service allows it."""

    ALLOW = "allow"
    DENY = "deny"


class Forward(StrEnum):
    """What happens to packets that pass through the device."""

    DENY = "deny"  # it is no router
    LEAVE = "leave"  # no forward chain: another table decides


class Protocol(StrEnum):
    """Transport protocols that a service can name."""

    TCP = "tcp"
    UDP = "udp"


class Limit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Thresholds per source address. A source that finds no room in the table of sources is refused."""

    new_per_s: Rate | None = None
    burst: Rate | None = None  # default: one second's worth
    connections: Annotated[int, Meta(ge=1, le=65535)] | None = None
    sources: Annotated[int, Meta(ge=16, le=1_048_576)] = 4096  # remembered per address family


class Service(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A port that this device answers on, and for whom. No interfaces means every interface."""

    protocol: Protocol
    ports: Ports
    peers: Peers
    interfaces: tuple[Interface, ...] = ()
    limit: Limit | None = None


class EgressService(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A port that this device may call, and at whom."""

    protocol: Protocol
    ports: Ports
    peers: Peers
    interfaces: tuple[Interface, ...] = ()


class Management(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The path that no policy may cut: who reaches which service, and which egress service leads to the manager.

    These peers are never limited and never banned on this path, and it alone stays open in lockdown.
    """

    peers: Peers
    service: Name
    egress: Name | None = None


class Egress(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the device itself may call."""

    default: EgressDefault = EgressDefault.ALLOW
    services: Annotated[dict[Name, EgressService], Meta(max_length=MAX_SERVICES)] = field(default_factory=dict)


class Bans(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many addresses can be banned per family at a time, and which never."""

    max: Annotated[int, Meta(ge=16, le=1_048_576)] = 4096
    never: Peers = ()


class FirewallSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole ``[firewall]`` section; unknown keys are refused."""

    mode: Mode = Mode.ENFORCE
    default: Default = Default.DENY
    forward: Forward = Forward.DENY
    confirm_timeout_s: Annotated[int, Meta(ge=1, le=3600)] = 30
    ping_per_s: Annotated[int, Meta(ge=0, le=1_000_000)] = 10  # 0: no echo reply
    log_group: Annotated[int, Meta(ge=0, le=65535)] = 5
    log_per_s: Annotated[int, Meta(ge=0, le=1000)] = 5  # 0: no log; NFLOG readers lose records far above this
    # 131,072 elements of 170 B (measured for an interval set) are 22 MB of kernel memory, were they all full.
    set_budget: Annotated[int, Meta(ge=64, le=16_777_216)] = 131_072
    management: Management | None = None
    services: Annotated[dict[Name, Service], Meta(max_length=MAX_SERVICES)] = field(default_factory=dict)
    egress: Egress = field(default_factory=Egress)
    bans: Bans = field(default_factory=Bans)
