"""Packets that two rulesets decide differently, as an operator reads it. Pure; ``diff`` finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, summarize_address_range
from itertools import islice
from typing import Any

from tidegate.firewall.model import Address, Direction, Network, Packet, PortSpan, Resolved
from tidegate.firewall.section import Protocol

MAX_SHOWN = 4  # spans of ports, or prefixes of a family, in one line; the change itself has all
WHOLE = {4: (0, (1 << 32) - 1), 6: (0, (1 << 128) - 1)}
NOT = "!"  # before an interface that is left out; no interface's name begins with it

Identity = tuple[str, ...]
Span = tuple[int, int]  # first and last address, both included


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What becomes of a packet, by which rule, and the content rules that still have their say."""

    accepted: bool
    rule: str
    fields: str | None

    def __str__(self) -> str:
        content = f", content by {self.fields}" if self.fields else ""
        return f"{'accepted' if self.accepted else 'refused'} ({self.rule}{content})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """Addresses of both families, as rising ranges that do not touch."""

    v4: tuple[Span, ...] = ()
    v6: tuple[Span, ...] = ()

    def has(self, address: Address) -> bool:
        """Return whether ``address`` is among them."""
        spans = self.v4 if address.version == 4 else self.v6
        return any(first <= int(address) <= last for first, last in spans)

    def prefixes(self) -> Iterator[Network]:
        """Yield the addresses as the fewest prefixes."""
        for first, last in self.v4:
            yield from summarize_address_range(IPv4Address(first), IPv4Address(last))
        for first, last in self.v6:
            yield from summarize_address_range(IPv6Address(first), IPv6Address(last))

    def __str__(self) -> str:
        parts = [_spell_addresses(self.v4, 4), _spell_addresses(self.v6, 6)]
        return "anywhere" if parts == ["any IPv4", "any IPv6"] else ", ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Packets that begin something and are decided differently: all that fit every field.

    Empty ``interfaces``: every one; ``!eth0``: every one but this. ``names``: MAC addresses of senders and DNS names
    (of destinations: ``to NAME``) that make a difference here, and ``identities``: for which of them together it is so;
    the empty one is everybody else. ``load``:
    whether it is so only within, or only beyond, the limits that apply. ``translated``: whether it is so only for
    connections that a port forward translated, or only for others.
    """

    direction: Direction
    protocol: Protocol | None  # None: one that no rule can name
    spans: tuple[PortSpan, ...] = ()
    is_rest: bool = False  # ``spans`` are all the ports that neither ruleset names
    interfaces: tuple[str, ...] = ()
    out_interfaces: tuple[str, ...] = ()
    far: Who
    near: Who | None = None  # of what passes through: the destinations
    names: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ((),)
    load: str = ""
    translated: bool | None = None
    old: Outcome
    new: Outcome

    def has(self, packet: Packet, resolved: Resolved | None = None) -> bool:
        """Return whether ``packet`` is one of those."""
        far = packet.destination if packet.direction is Direction.OUT else packet.source
        known = {name for name, addresses in (resolved or {}).items() if far in addresses}
        known |= {f"to {name}" for name, addresses in (resolved or {}).items() if packet.destination in addresses}
        known |= {packet.mac} if packet.mac is not None else set()
        return (
            packet.direction is self.direction
            and packet.protocol is self.protocol
            and (not self.spans or any(span.first <= packet.port <= span.last for span in self.spans))
            and _is_on(packet.interface, self.interfaces)
            and _is_on(packet.out_interface, self.out_interfaces)
            and self.far.has(far)
            and (self.near is None or self.near.has(packet.destination))
            and tuple(name for name in self.names if name in known) in self.identities
            and self.load in ("", BEYOND if packet.over_threshold else WITHIN)
            and self.translated in (None, packet.translated)
        )

    def __str__(self) -> str:
        ports = f"/{self._spell_ports()}" if self.spans else ""
        words = [self.direction.value, *_spell_interfaces(self.interfaces)]
        words += ["->", *_spell_interfaces(self.out_interfaces)] if self.out_interfaces else []
        words += [f"{self.protocol.value if self.protocol else 'other protocols'}{ports}"]
        words += ["to" if self.direction is Direction.OUT else "from", str(self.far)]
        words += [f"to {self.near}"] if self.near is not None else []
        words += self._spell_identities()
        words += ["translated"] if self.translated else []
        words += [self.load] if self.load else []
        return f"{' '.join(words)}: {self.old} -> {self.new}"

    def _spell_identities(self) -> list[str]:
        if () not in self.identities:
            return ["as", " or ".join(" ".join(one) for one in self.identities)]
        left_out = [name for name in self.names if (name,) not in self.identities]
        return [f"but not {', '.join(left_out)}"] if left_out else []

    def _spell_ports(self) -> str:
        if self.spans == (PortSpan(first=1, last=65535),):
            return "every-port"
        if self.is_rest:
            return "every-other-port"
        shown = ",".join(str(span) for span in self.spans[:MAX_SHOWN])
        return shown if len(self.spans) <= MAX_SHOWN else f"{shown} and {len(self.spans) - MAX_SHOWN} more"


WITHIN, BEYOND = "within limits", "beyond limits"


def merge_changes(cells: Iterable[Change]) -> tuple[Change, ...]:
    """Return the same packets in as few changes as joining neighbours gives; in order of direction and ports."""
    changes = _fold(cells, "far", _join_who)
    changes = _fold(changes, "near", _join_who)
    changes = _fold(_join_families(changes), "spans", _join_spans)
    rank = {direction: number for number, direction in enumerate(Direction)}
    return tuple(
        sorted(changes, key=lambda one: (rank[one.direction], one.is_rest, one.protocol or "~", one.spans, str(one)))
    )


def _fold(changes: Iterable[Change], name: str, join: Callable[[list[Any]], Any]) -> list[Change]:
    """Return ``changes`` with those joined that differ in field ``name`` alone."""
    alike: dict[Change, list[Any]] = {}
    for change in changes:
        neutral: dict[str, Any] = {name: Who() if name == "far" else None if name == "near" else ()}
        alike.setdefault(replace(change, **neutral), []).append(getattr(change, name))
    joined = []
    for key, values in alike.items():
        whole: dict[str, Any] = {name: join(values)}
        joined.append(replace(key, **whole))
    return joined


def _join_who(groups: list[Who | None]) -> Who | None:
    found = [group for group in groups if group is not None]
    if not found:
        return None
    v4 = [span for group in found for span in group.v4]
    return Who(v4=_join_ranges(v4), v6=_join_ranges([span for group in found for span in group.v6]))


def _join_ranges(spans: list[Span]) -> tuple[Span, ...]:
    joined: list[Span] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def _join_spans(groups: list[tuple[PortSpan, ...]]) -> tuple[PortSpan, ...]:
    ranges = _join_ranges([(span.first, span.last) for group in groups for span in group])
    return tuple(PortSpan(first=first, last=last) for first, last in ranges)


def _join_families(changes: list[Change]) -> list[Change]:
    """Join what is the same for IPv4 and IPv6 but for the addresses; no packet has one on each side."""
    alike: dict[Change, list[Change]] = {}
    for change in changes:
        alike.setdefault(replace(change, far=Who(), near=None), []).append(change)
    joined = []
    for members in alike.values():
        versions = [(bool(one.far.v4), bool(one.far.v6)) for one in members]
        if sorted(versions) == [(False, True), (True, False)] and members[0].near is not None:
            a, b = members
            joined.append(replace(a, far=_join_who([a.far, b.far]) or a.far, near=_join_who([a.near, b.near])))
        else:
            joined += members
    return joined


def _is_on(interface: str | None, interfaces: tuple[str, ...]) -> bool:
    if interfaces and interfaces[0].startswith(NOT):
        return f"{NOT}{interface}" not in interfaces
    return not interfaces or interface in interfaces


def _spell_interfaces(interfaces: tuple[str, ...]) -> list[str]:
    names = ",".join(name.removeprefix(NOT) for name in interfaces)
    return [f"not:{names}" if interfaces[0].startswith(NOT) else names] if interfaces else []


def _spell_addresses(spans: tuple[Span, ...], version: int) -> str:
    if spans == (WHOLE[version],):
        return f"any IPv{version}"
    rest = _complement(spans, version)
    if spans and len(rest) < len(spans):
        return f"any IPv{version} but {_spell_addresses(rest, version)}"
    prefixes = (Who(v4=spans) if version == 4 else Who(v6=spans)).prefixes()
    shown = [str(prefix).removesuffix("/32" if version == 4 else "/128") for prefix in islice(prefixes, MAX_SHOWN)]
    more = sum(1 for _ in islice(prefixes, 10_000))
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _complement(spans: tuple[Span, ...], version: int) -> tuple[Span, ...]:
    rest: list[Span] = []
    begin = 0
    for first, last in spans:
        if begin < first:
            rest.append((begin, first - 1))
        begin = last + 1
    if begin <= WHOLE[version][1]:
        rest.append((begin, WHOLE[version][1]))
    return tuple(rest)
