"""Who is meant by a list of peers: addresses, prefixes, MAC addresses, DNS names, named lists, exclusions. Pure."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
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
_EVERYBODY = ("*", "all", "everyone", "anyone", "everybody", "world")  # other tools' words
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
    """What a list says, before exclusions are taken out; ``height``: how deep lists are nested below it."""

    everyone: bool = False
    networks: set[Network] = field(default_factory=set)
    macs: set[str] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    excluded: set[Network] = field(default_factory=set)
    height: int = 0


class PeerReader:
    """Reads lists of peers within one policy's named lists; what many rules share is read once."""

    def __init__(self, named: Mapping[str, Sequence[str]]) -> None:
        self._named = named
        self._parts: dict[str, _Parts] = {}
        self._groups: dict[tuple[str, ...], PeerGroup] = {}

    def read(self, peers: Sequence[str], where: str) -> PeerGroup:
        """Return whom ``peers`` name, or raise ``firewall.policy.peer`` with the place in the policy.

        An exclusion (``!10.0.0.7``) is taken out of the prefixes of its own list and has no effect on MAC addresses
        and DNS names. The same list gives the same object.
        """
        key = tuple(peers)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _plan_group(self._collect(peers, where, depth=0), where)
        return group

    def _collect(self, peers: Iterable[str], where: str, *, depth: int) -> _Parts:
        parts = _Parts()
        for peer in peers:
            if peer == "any":
                parts.everyone = True
            elif peer.startswith("@"):
                self._include(parts, self._look_up(peer, where, depth))
            elif peer.startswith("!"):
                self._exclude(parts, peer[1:], where, depth)
            elif _MAC.match(peer.lower()):
                parts.macs.add(peer.lower())
            elif _DNS_NAME.match(peer.lower().removesuffix(".")):
                parts.names.add(peer.lower().removesuffix("."))
            else:
                parts.networks.add(_parse_network(peer, where, self._named))
        if parts.height > MAX_NESTING:
            raise BadPeer(f"{where}: named lists are nested more than {MAX_NESTING} deep", where=where)
        return parts

    def _include(self, parts: _Parts, inner: _Parts) -> None:
        parts.everyone |= inner.everyone
        parts.networks |= inner.networks
        parts.macs |= inner.macs
        parts.names |= inner.names
        parts.excluded |= inner.excluded
        parts.height = max(parts.height, inner.height + 1)

    def _exclude(self, parts: _Parts, peer: str, where: str, depth: int) -> None:
        if not peer.startswith("@"):
            parts.excluded.add(_parse_network(peer, where, self._named))
            return
        inner = self._look_up(peer, where, depth)
        if inner.everyone or inner.macs or inner.names or inner.excluded:
            text = f"{where}: '!{peer}': only addresses and networks can be excluded"
            raise BadPeer(text, where=where, peer=f"!{peer}")
        parts.excluded |= inner.networks
        parts.height = max(parts.height, inner.height + 1)

    def _look_up(self, peer: str, where: str, depth: int) -> _Parts:
        """Return what a named list says; a mistake in it is one of that list, whoever uses it."""
        name = peer[1:]
        if name not in self._named:
            near = difflib.get_close_matches(name, self._named, n=1, cutoff=0.5)
            hint = f"; did you mean '@{near[0]}'?" if near else ""
            raise BadPeer(f"{where}: [firewall.peers] defines no {name!r}{hint}", where=where, peer=peer)
        if depth >= MAX_NESTING:
            text = f"{where}: named lists are nested more than {MAX_NESTING} deep, or in a circle"
            raise BadPeer(text, where=where, peer=peer)
        parts = self._parts.get(name)
        if parts is None:
            parts = self._parts[name] = self._collect(self._named[name], f"peers.{name}", depth=depth + 1)
        return parts


def parse_peers(peers: Sequence[str], where: str, *, named: Mapping[str, Sequence[str]] | None = None) -> PeerGroup:
    """Return whom ``peers`` name, or raise ``firewall.policy.peer`` with the place in the policy.

    ``named`` are the lists that ``@name`` stands for; for many lists of one policy, ``PeerReader`` is quicker.
    """
    return PeerReader(named or {}).read(peers, where)


def _plan_group(parts: _Parts, where: str) -> PeerGroup:
    if len(parts.excluded) > MAX_EXCLUSIONS:
        raise BadPeer(f"{where}: more than {MAX_EXCLUSIONS} exclusions", where=where)
    if parts.everyone and not parts.excluded:
        return PeerGroup(everyone=True)
    networks = {_EVERY_V4, _EVERY_V6} if parts.everyone else parts.networks
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


def _parse_network(peer: str, where: str, named: Iterable[str]) -> Network:
    try:
        network = ip_network(peer)  # strict: host bits beside a prefix are more often a slip than a wish
    except ValueError as error:
        why = "has host bits" if "host bits" in str(error) else "is no address, network, MAC address or DNS name"
        raise BadPeer(f"{where}: {peer!r} {why}{_hint(peer, named)}", where=where, peer=peer) from error
    if "%" in peer:
        raise BadPeer(f"{where}: {peer!r} has a zone; name the interface instead", where=where, peer=peer)
    return network


def _hint(peer: str, named: Iterable[str]) -> str:
    """Return what was probably meant."""
    near = next((one for one in _spellings(peer.strip().lower(), named) if _is_peer(one)), None)
    return f"; did you mean '{near}'?" if near is not None else ""


def _spellings(peer: str, named: Iterable[str]) -> Iterator[str]:
    """Yield what a peer may have been meant to be, the likeliest first."""
    if peer in _EVERYBODY or difflib.get_close_matches(peer, ("any",), n=1, cutoff=0.6):
        yield "any"
    if near := difflib.get_close_matches(peer, list(named), n=1, cutoff=0.8):
        yield f"@{near[0]}"
    yield peer
    with contextlib.suppress(ValueError):
        yield str(ip_network(peer, strict=False))
    bare = peer.partition("://")[2].partition("/")[0] or peer
    if bracketed := re.match(r"\[([0-9a-f:.]+)\]", bare):
        yield bracketed[1]
    yield re.sub(r":[0-9]{1,5}\Z", "", bare)
    yield bare.replace("-", ":") if bare.count("-") == 5 else ""
    yield re.sub(r"(?<![0-9])0+(?=[0-9])", "", peer)  # 010.0.0.1: octal for some, decimal for others
    octets = peer.split(".")
    stars = octets.count("*")
    if len(octets) == 4 and stars > 0 and octets[4 - stars :] == ["*"] * stars:
        yield f"{peer.replace('*', '0')}/{8 * (4 - stars)}"


def _is_peer(text: str) -> bool:
    if text == "any" or text.startswith("@") or _MAC.match(text) or _DNS_NAME.match(text):
        return True
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


def _subtract(
    networks: list[_ONE_NETWORK], excluded: Iterable[Network], kind: type[_ONE_NETWORK]
) -> tuple[_ONE_NETWORK, ...]:
    """Return ``networks`` without ``excluded``, disjoint and sorted."""
    left = _collapse(networks)
    for gone in excluded:
        if not isinstance(gone, kind):
            continue
        kept: list[_ONE_NETWORK] = []
        for network in left:
            if network.subnet_of(gone):
                continue
            kept += network.address_exclude(gone) if gone.subnet_of(network) else [network]
        left = kept
    return tuple(_collapse(left))


def _collapse(networks: list[_ONE_NETWORK]) -> list[_ONE_NETWORK]:
    """Return the fewest prefixes with the same addresses, sorted; ``ipaddress.collapse_addresses`` in a tenth of
    its time: a policy has thousands."""
    kept: list[_ONE_NETWORK] = []
    ends: list[int] = []
    for first, _, network in sorted((int(one.network_address), one.prefixlen, one) for one in networks):
        if ends and first <= ends[-1]:
            continue  # prefixes lie inside one another or apart
        kept.append(network)
        ends.append(first | ((1 << (network.max_prefixlen - network.prefixlen)) - 1))
        while len(kept) > 1 and kept[-1].prefixlen == kept[-2].prefixlen:
            size_bits = network.max_prefixlen - kept[-1].prefixlen
            if ends[-1] >> (size_bits + 1) != ends[-2] >> (size_bits + 1):
                break
            kept.pop()
            ends[-2:] = ends[-1:]
            kept[-1] = kept[-1].supernet()
    return kept


def _covered(outer: Sequence[_ONE_NETWORK], inner: Sequence[_ONE_NETWORK]) -> bool:
    return all(any(mine.supernet_of(theirs) for mine in outer) for theirs in inner)
