"""Who is meant by a list of peers: addresses, prefixes, MAC addresses, DNS names, named lists, exclusions. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
)
from typing import TypeVar

from tidegate.firewall.errors import BadPeer

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolved = Mapping[str, Mapping[Address, int]]  # what DNS names stand for, and for how many more seconds

MAX_EXCLUSIONS = 64  # each may split a prefix into up to 128
MAX_NESTING = 8  # named lists within named lists

_EVERY_V4, _EVERY_V6 = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")
_DNS_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]\Z")  # RFC 1123 §2.1
_ONE_NETWORK = TypeVar("_ONE_NETWORK", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerGroup:
    """Who is meant: disjoint sorted prefixes, MAC addresses, DNS names; ``everyone`` stands for all of them."""

    everyone: bool = False
    v4: tuple[IPv4Network, ...] = ()
    v6: tuple[IPv6Network, ...] = ()
    macs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def has(self, address: Address, *, mac: str | None = None, resolved: Resolved | None = None) -> bool:
        """Return whether ``address`` belongs to the group, or the sender's ``mac``, or a name that resolves to it."""
        if self.everyone or (mac is not None and mac in self.macs):
            return True
        if any(address in (resolved or {}).get(name, ()) for name in self.names):
            return True
        if isinstance(address, IPv4Address):
            return any(address in prefix for prefix in self.v4)
        return any(address in prefix for prefix in self.v6)

    def covers(self, other: PeerGroup) -> bool:
        """Return whether everybody of ``other`` belongs to this group, whatever names resolve to."""
        if self.everyone:
            return True
        if other.everyone or not (set(other.macs) <= set(self.macs) and set(other.names) <= set(self.names)):
            return False
        return _covered(self.v4, other.v4) and _covered(self.v6, other.v6)

    def overlaps(self, other: PeerGroup) -> bool:
        """Return whether somebody may belong to both; names and MAC addresses overlap with their equals only."""
        if self.empty or other.empty:
            return False
        if self.everyone or other.everyone:
            return True
        if set(self.macs) & set(other.macs) or set(self.names) & set(other.names):
            return True
        return any(a.overlaps(b) for a in self.v4 for b in other.v4) or any(
            a.overlaps(b) for a in self.v6 for b in other.v6
        )

    @property
    def empty(self) -> bool:
        """Whether nobody belongs to the group."""
        return not (self.everyone or self.v4 or self.v6 or self.macs or self.names)

    @property
    def is_static(self) -> bool:
        """Whether addresses alone say who belongs: no MAC address, no name."""
        return not (self.macs or self.names)

    def prefixes(self, version: int) -> tuple[Network, ...]:
        """Return the prefixes of IP ``version``; the whole of it for everyone."""
        if self.everyone:
            return (_EVERY_V4,) if version == 4 else (_EVERY_V6,)
        return self.v4 if version == 4 else self.v6


@dataclass(slots=True)
class _Parts:
    """What a list says, before exclusions are taken out."""

    everyone: bool = False
    networks: list[Network] = field(default_factory=list)
    macs: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    excluded: list[Network] = field(default_factory=list)


def parse_peers(peers: Sequence[str], where: str, *, named: Mapping[str, Sequence[str]] | None = None) -> PeerGroup:
    """Return whom ``peers`` name, or raise ``firewall.policy.peer`` with the place in the policy.

    ``named`` are the lists that ``@name`` stands for. An exclusion (``!10.0.0.7``) is taken out of the prefixes of its
    own list and has no effect on MAC addresses and DNS names.
    """
    parts = _collect(peers, where, named or {}, depth=0)
    if len(parts.excluded) > MAX_EXCLUSIONS:
        raise BadPeer(f"{where}: more than {MAX_EXCLUSIONS} exclusions", where=where)
    if parts.everyone and not parts.excluded:
        return PeerGroup(everyone=True)
    networks: list[Network] = [_EVERY_V4, _EVERY_V6] if parts.everyone else parts.networks
    return PeerGroup(
        v4=_subtract([one for one in networks if isinstance(one, IPv4Network)], parts.excluded, IPv4Network),
        v6=_subtract([one for one in networks if isinstance(one, IPv6Network)], parts.excluded, IPv6Network),
        macs=tuple(sorted(parts.macs)),
        names=tuple(sorted(parts.names)),
    )


def parse_one_address(text: str, where: str) -> Address:
    """Return one address, or raise ``firewall.policy.peer``."""
    try:
        address = ip_address(text)
    except ValueError as error:
        raise BadPeer(f"{where}: {text!r} is no address", where=where, peer=text) from error
    if "%" in text:
        raise BadPeer(f"{where}: {text!r} has a zone; name the interface instead", where=where, peer=text)
    return address


def _collect(peers: Iterable[str], where: str, named: Mapping[str, Sequence[str]], *, depth: int) -> _Parts:
    if depth > MAX_NESTING:
        raise BadPeer(f"{where}: named lists are nested more than {MAX_NESTING} deep, or in a circle", where=where)
    parts = _Parts()
    for peer in peers:
        if peer == "any":
            parts.everyone = True
        elif peer.startswith("@"):
            inner = _collect(_look_up(peer, where, named), where, named, depth=depth + 1)
            parts.everyone |= inner.everyone
            parts.networks += inner.networks
            parts.macs |= inner.macs
            parts.names |= inner.names
            parts.excluded += inner.excluded
        elif peer.startswith("!"):
            parts.excluded += _excluded(peer[1:], where, named, depth)
        elif _MAC.match(peer.lower()):
            parts.macs.add(peer.lower())
        elif _DNS_NAME.match(peer.lower().removesuffix(".")):
            parts.names.add(peer.lower().removesuffix("."))
        else:
            parts.networks.append(_parse_network(peer, where))
    return parts


def _excluded(peer: str, where: str, named: Mapping[str, Sequence[str]], depth: int) -> list[Network]:
    if not peer.startswith("@"):
        return [_parse_network(peer, where)]
    inner = _collect(_look_up(peer, where, named), where, named, depth=depth + 1)
    if inner.everyone or inner.macs or inner.names or inner.excluded:
        raise BadPeer(f"{where}: '!{peer}': only addresses and networks can be excluded", where=where, peer=peer)
    return inner.networks


def _look_up(peer: str, where: str, named: Mapping[str, Sequence[str]]) -> Sequence[str]:
    name = peer[1:]
    if name not in named:
        near = difflib.get_close_matches(name, named, n=1, cutoff=0.5)
        hint = f"; did you mean '@{near[0]}'?" if near else ""
        raise BadPeer(f"{where}: [firewall.peers] defines no {name!r}{hint}", where=where, peer=peer)
    return named[name]


def _parse_network(peer: str, where: str) -> Network:
    try:
        network = ip_network(peer)  # strict: host bits beside a prefix are more often a slip than a wish
    except ValueError as error:
        raise BadPeer(f"{where}: {peer!r}: {error}{_hint(peer)}", where=where, peer=peer) from error
    if "%" in peer:
        raise BadPeer(f"{where}: {peer!r} has a zone; name the interface instead", where=where, peer=peer)
    return network


def _hint(peer: str) -> str:
    """Return what was probably meant."""
    try:
        return f"; did you mean '{ip_network(peer, strict=False)}'?"
    except ValueError:
        near = difflib.get_close_matches(peer.lower(), ("any",), n=1, cutoff=0.6)
        return f"; did you mean '{near[0]}'?" if near else ""


def _subtract(
    networks: list[_ONE_NETWORK], excluded: Sequence[Network], kind: type[_ONE_NETWORK]
) -> tuple[_ONE_NETWORK, ...]:
    """Return ``networks`` without ``excluded``, disjoint and sorted."""
    left = list(collapse_addresses(networks))
    for gone in excluded:
        if not isinstance(gone, kind):
            continue
        kept: list[_ONE_NETWORK] = []
        for network in left:
            if network.subnet_of(gone):
                continue
            kept += network.address_exclude(gone) if gone.subnet_of(network) else [network]
        left = kept
    return tuple(collapse_addresses(left))


def _covered(outer: Sequence[_ONE_NETWORK], inner: Sequence[_ONE_NETWORK]) -> bool:
    return all(any(mine.supernet_of(theirs) for mine in outer) for theirs in inner)
