"""A ruleset's text in one transaction, or, where a network device is missing, everything but that device's rules.

Touches: nftables; the list of network interfaces of the calling thread's namespace.

A chain at a device's ingress hook cannot be loaded without the device, and would take the whole transaction with it.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tidegate.firewall import guard
from tidegate.firewall.compile import TABLE
from tidegate.firewall.errors import NftRefused
from tidegate.firewall.link import LINK_TABLE
from tidegate.firewall.nft import Nft
from tidegate.firewall.snapshot import DNS_PREFIX, Listed, parse_listing, split_tables

_LINK = f"table netdev {LINK_TABLE}"
_DELETED = (
    "map",
    "set",
    "chain",
    "counter",  # maps before the chains and counters that they lead to
    "limit",
    "quota",
    "ct helper",
    "ct timeout",
    "synproxy",
)
_HOOK = re.compile(r'\t\ttype filter hook (?:in|e)gress device "?([^"\s]+)"? ')


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """One ruleset's text in parts: ``devices`` holds the chain of each network device, all else is ``main``."""

    main: str
    devices: dict[str, str]

    def encode(self, present: Collection[str]) -> str:
        """Return one transaction with the chains of ``present`` devices, from which the guard can leave them out."""
        chains = (text for device, text in self.devices.items() if device in present)
        return guard.PART.join((self.main, *chains))


def plan_parts(text: str) -> Parts:
    """Return a ruleset's text in parts. Pure; ``text`` is one that ``compile`` or ``snapshot`` made."""
    main, devices, kept = [], {}, []
    inet, start, link = text.partition(f"\n{_LINK}\n")
    if not start:
        return Parts(main=text, devices={})
    for thing in parse_listing(link):
        found = [match[1] for line in thing.lines if (match := _HOOK.match(line)) is not None]
        if found:
            devices[found[0]] = f"{_LINK} {{\n{thing.encode()}}}\n"
        else:
            kept.append(thing.encode())
    main = [f"{inet}\n", f"{_LINK}\ndelete {_LINK}\n", f"{_LINK} {{\n{''.join(kept)}}}\n"]
    if not kept and not devices:
        main.pop()  # nothing but the deletion
    return Parts(main="".join(main), devices=devices)


def load_whole(nft: Nft, text: str, *, replaces: str | None = None) -> tuple[str, ...]:
    """Run ``text`` as one transaction and return the devices that are missing, whose chains were left out.

    ``replaces`` is the text, or listing, of the ruleset that it takes the place of: with it no packet is lost (see
    ``soften``). Raises ``firewall.nft.refused``, with nothing changed.
    """
    if replaces is not None:
        with contextlib.suppress(NftRefused):  # the kernel holds something else by now
            return _load(nft, soften(text, replaces))
    return _load(nft, text)


def soften(text: str, before: str) -> str:
    """Return ``text`` so that what it has in common with the policy's table in ``before`` stays in place.

    Pure. ``before`` is the text that was loaded, or the table's listing; the more it agrees with ``text``, the
    less is touched. A deleted table's chains have lost their rules a fraction of a millisecond before the kernel takes
    them off their hooks, and packets meet the bare policy, which is to drop: 14,000 datagrams a second lost three at
    each swap. A packet that is on its way through the old rules at that moment sees the new contents of every set:
    elements that both policies have must not be made anew either.
    """
    table = f"inet {TABLE}"
    if not text.startswith(f"table {table}\ndelete table {table}\n"):
        return text  # not one that takes the table's place
    old, new = (
        {(thing.kind, thing.name): thing for thing in parse_listing(split_tables(one)[table])} for one in (before, text)
    )
    lines, deleted = [f"flush table {table}\n"], []
    for thing in old.values():
        successor = new.get((thing.kind, thing.name))
        if successor is None or not _can_stay(thing, successor):
            deleted.append(thing)
        elif gone := set(thing.elements) - set(successor.elements):
            keys = ", ".join(sorted(element.partition(" : ")[0] for element in gone))
            lines.append(f"delete element {table} {thing.name} {{ {keys} }}\n")
    for kind in _DELETED:
        lines += [f"delete {kind} {table} {thing.name}\n" for thing in deleted if thing.kind == kind]
    return text.replace(f"table {table}\ndelete table {table}\n", "".join(lines), 1)


def _can_stay(old: Listed, new: Listed) -> bool:
    """Return whether ``new`` can be declared over ``old``, whose rules have been flushed."""
    if old.kind == "chain":
        return find_hooks(old) == find_hooks(new)
    if old.kind not in ("set", "map"):
        return True
    if old.lines != new.lines:
        return False
    if old.filled_by_rules:
        return old.name.startswith(DNS_PREFIX)  # known addresses stay known; thresholds begin anew
    return old.elements == new.elements or not any("interval" in line for line in old.lines)


def find_hooks(thing: Listed) -> list[str]:
    """Return what makes a chain a base chain, without its policy."""
    return [line.partition("; policy")[0] for line in thing.lines if line.startswith("\t\ttype ")]


def _load(nft: Nft, text: str) -> tuple[str, ...]:
    parts = plan_parts(text)
    present = find_devices()
    try:
        nft.run(parts.encode(present))
    except NftRefused:
        now = find_devices()
        if not parts.devices or now == present:
            raise
        present = now  # one came or went meanwhile
        nft.run(parts.encode(present))
    return tuple(sorted(set(parts.devices) - present))


def load_what_can_be(nft: Nft, text: str) -> tuple[str, ...]:
    """Run ``text``, in one transaction if possible, and return the devices whose chains could not be loaded.

    For a boot and a lockdown: no device's trouble keeps the rest from being in force. Raises
    ``firewall.nft.refused`` when the rest is refused.
    """
    try:
        return load_whole(nft, text)
    except NftRefused:
        parts = plan_parts(text)
        if not parts.devices:
            raise
        nft.run(parts.main)
        return tuple(sorted(device for device, chain in parts.devices.items() if not _try(nft, chain)))


def load_devices(nft: Nft, text: str) -> tuple[str, ...]:
    """Load the chains of devices that are there by now and have none in the kernel; return which those were."""
    parts = plan_parts(text)
    listing = nft.list_table(LINK_TABLE, family="netdev") if parts.devices else None
    if listing is None:
        return ()
    covered = set(find_hooked(listing))
    wanted = [device for device in sorted(find_devices() & set(parts.devices)) if device not in covered]
    return tuple(device for device in wanted if _try(nft, parts.devices[device]))


def find_hooked(listing: str) -> Iterator[str]:
    """Yield the devices for which a text of the layer-2 table has a chain."""
    for line in listing.splitlines():
        if (match := _HOOK.match(line)) is not None:
            yield match[1]


def find_devices() -> set[str]:
    """Return the names of the network interfaces in the calling thread's namespace."""
    return {name for _, name in socket.if_nameindex()}


def _try(nft: Nft, text: str) -> bool:
    try:
        nft.run(text)
    except NftRefused:
        return False
    return True
