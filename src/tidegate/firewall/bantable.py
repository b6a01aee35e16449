"""The table of bans as nftables text, and into which of its sets a banned prefix goes.

Pure. A ban is looked up in hash sets, one for each of a few prefix lengths: the kernel masks the source and looks it
up once per length, so neither a packet nor a ban costs more when there are more bans, and prefixes inside one another
do not get into each other's way, as they would in an interval set. A prefix of another length is written as the
prefixes of the next longer length that make it up. Before them stands a gate: a set of the short prefixes inside which
anything is banned, so that most packets are looked up once and not once per length. A gate outlives what is behind it.
docs/firewall-bans.md has the measurements behind this.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses
from typing import TYPE_CHECKING, TypeVar

from tidegate.firewall.errors import BanPrefix
from tidegate.firewall.netlink import INTERVAL_END

if TYPE_CHECKING:
    from tidegate.firewall.model import PeerGroup

Prefix = IPv4Network | IPv6Network
_Network = TypeVar("_Network", IPv4Network, IPv6Network)

BAN_TABLE = "tidegate_bans"
# One address, and what providers hand out: /24 is the longest prefix in the global IPv4 routing table; RFC 6177: a
# site has a /48 to /64; a provider has a /32.
BAN_LENGTHS = {4: (32, 24, 16), 6: (128, 64, 48, 32)}
# Elements that one ban may become: a /36 of a provider, as feeds have them, is 4,096 /48s. A longer list is a policy.
MAX_ELEMENTS = 4096
GATE_LENGTHS = {4: 16, 6: 32}  # the shortest of the lengths above, so that every element lies behind one gate
_GATE_FACTOR = 4  # room for the gates of all the sets of a family
_MAX_GATES = 1 << 16  # there are no more /16s
LOOPBACK = {4: "127.0.0.0/8", 6: "::1"}
_SADDR = {4: "ip saddr", 6: "ip6 saddr"}


def set_name(version: int, length: int) -> str:
    """Return the name of the set for prefixes of ``length`` bits; that of single addresses is ``banned4``/``6``."""
    return f"banned{version}" if length == BAN_LENGTHS[version][0] else f"banned{version}_{length}"


def set_names() -> tuple[str, ...]:
    """Return the names of all sets of bans, without the gates."""
    return tuple(set_name(version, length) for version, lengths in BAN_LENGTHS.items() for length in lengths)


def gate_of(key: bytes) -> tuple[str, bytes]:
    """Return (set, key) of the gate before an element."""
    version = 4 if len(key) == 4 else 6
    size = GATE_LENGTHS[version] // 8
    return f"gate{version}", key[:size] + bytes(len(key) - size)


def plan_length(prefix: Prefix) -> int:
    """Return the length of the set that ``prefix`` goes into: its own, or else the next longer one there is.

    Raises ``firewall.ban.prefix`` when it would become more than ``MAX_ELEMENTS`` elements there.
    """
    length = min(length for length in BAN_LENGTHS[prefix.version] if length >= prefix.prefixlen)
    if 1 << (length - prefix.prefixlen) > MAX_ELEMENTS:
        raise BanPrefix(f"{prefix} would be {1 << (length - prefix.prefixlen)} prefixes of /{length}")
    return length


def plan_elements(prefix: Prefix) -> Iterator[tuple[str, bytes]]:
    """Yield (set, key) for every element that bans ``prefix``; raises ``firewall.ban.prefix``."""
    length = plan_length(prefix)
    name = set_name(prefix.version, length)
    step = 1 << (prefix.max_prefixlen - length)
    first, size = int(prefix.network_address), prefix.max_prefixlen // 8
    for number in range(1 << (length - prefix.prefixlen)):
        yield name, (first + number * step).to_bytes(size, "big")


def length_of(name: str, key: bytes) -> int:
    """Return the prefix length of the elements of set ``name``, of which ``key`` is one."""
    return int(name.partition("_")[2] or 8 * len(key))


def prefix_of(name: str, key: bytes) -> Prefix:
    """Return the prefix for which ``key`` stands in set ``name``."""
    length = length_of(name, key)
    return IPv4Network((key, length)) if len(key) == 4 else IPv6Network((key, length))


def encode_ban_table(*, verdict: str, never: PeerGroup, managers: PeerGroup, size: int) -> str:
    """Return the transaction that writes the table's rules anew and keeps the bans in its sets with their times.

    ``verdict`` (``drop``, or ``accept`` to observe) meets a banned source before connection tracking, so that a banned
    flood costs no entry there. Sources in ``never`` and ``managers``, and what comes over ``lo``, are spared even if
    they are in a set. ``size`` bounds the elements of each set; a set that is there already may keep its old bound.
    """
    rewritten = {"never4": _FIXED[4], "never6": _FIXED[6], "managers4": _FIXED[4], "managers6": _FIXED[6]}
    parts = [f"table inet {BAN_TABLE} {{\n\tcounter banned {{ }}\n"]
    # Declared empty first, so that the flush finds what they held before.
    parts += [_block("set", name, lines) for name, lines in rewritten.items()]
    for version, lengths in BAN_LENGTHS.items():
        body = (f"type ipv{version}_addr", "flags timeout", f"size {size}")
        parts += [_block("set", set_name(version, length), body) for length in lengths]
        gates = min(_GATE_FACTOR * size, _MAX_GATES)
        parts.append(_block("set", f"gate{version}", (*body[:2], f"size {gates}")))
    parts += [_block("chain", name, ()) for name in ("spare", *_LOOKUPS)]
    parts += [_block("chain", "early", (_HOOK,)), "}\n"]
    parts += [f"flush set inet {BAN_TABLE} {name}\n" for name in rewritten]
    parts += [f"flush chain inet {BAN_TABLE} {name}\n" for name in ("early", *_LOOKUPS, "spare")]
    parts.append(f"table inet {BAN_TABLE} {{\n")
    parts += [_block("set", name, lines) for name, lines in _protected(never, managers).items()]
    spare = [f"{_SADDR[version]} @{name}{version} return" for name in ("never", "managers") for version in (4, 6)]
    parts.append(_block("chain", "spare", ('iifname "lo" return', *spare, f"counter name banned {verdict}")))
    parts += [_block("chain", name, tuple(_lookups(version))) for name, version in _LOOKUPS.items()]
    early = tuple(
        f"{_SADDR[version]} & {_mask(version, GATE_LENGTHS[version])} @gate{version} jump {name}"
        for name, version in _LOOKUPS.items()
    )
    parts += [_block("chain", "early", early), "}\n"]
    return "".join(parts)


_HOOK = "type filter hook prerouting priority raw; policy accept;"
_FIXED = {4: ("type ipv4_addr", "flags interval"), 6: ("type ipv6_addr", "flags interval")}


_LOOKUPS = {"lookup4": 4, "lookup6": 6}  # chains


def _lookups(version: int) -> Iterator[str]:
    first, *others = BAN_LENGTHS[version]
    yield f"{_SADDR[version]} @{set_name(version, first)} jump spare"
    for length in others:
        yield f"{_SADDR[version]} & {_mask(version, length)} @{set_name(version, length)} jump spare"


def _mask(version: int, length: int) -> object:
    return (IPv4Network if version == 4 else IPv6Network)((0, length)).netmask


def _protected(never: PeerGroup, managers: PeerGroup) -> dict[str, tuple[str, ...]]:
    """Return the fixed sets with their elements; an empty one has no such line, which the grammar would refuse."""
    elements = {
        "never4": ["0.0.0.0/0"] if never.everyone else _with_loopback(never.v4, IPv4Network(LOOPBACK[4])),
        "never6": ["::/0"] if never.everyone else _with_loopback(never.v6, IPv6Network(LOOPBACK[6])),
        "managers4": [str(prefix) for prefix in managers.v4],
        "managers6": [str(prefix) for prefix in managers.v6],
    }
    return {
        name: (*_FIXED[int(name[-1])], *([f"elements = {{ {', '.join(found)} }}"] if found else []))
        for name, found in elements.items()
    }


def _with_loopback(prefixes: Iterable[_Network], loopback: _Network) -> list[str]:
    """Return the prefixes with loopback among them, disjoint: nftables refuses intervals that overlap."""
    together = list(prefixes)
    together.append(loopback)
    return [str(prefix) for prefix in collapse_addresses(together)]


def _block(kind: str, name: str, lines: tuple[str, ...]) -> str:
    body = "".join(f"\t\t{line}\n" for line in lines)
    return f"\t{kind} {name} {{\n{body}\t}}\n"


class Ranges:
    """Addresses of one family as ranges, to be asked quickly whether a prefix has any of them."""

    def __init__(self, spans: Iterable[tuple[int, int]] = ()) -> None:
        """``spans``: pairs of first and last address, both included, disjoint."""
        ordered = sorted(spans)
        self._firsts = [first for first, _ in ordered]
        self._lasts = [last for _, last in ordered]

    def overlap(self, first: int, last: int) -> bool:
        """Return whether any address from ``first`` to ``last`` belongs to the ranges."""
        place = bisect_right(self._firsts, last)
        return place > 0 and self._lasts[place - 1] >= first

    def has_any(self, key: bytes, length: int) -> bool:
        """Return whether any address of the prefix with ``key`` and ``length`` bits belongs to the ranges."""
        first = int.from_bytes(key, "big")
        return self.overlap(first, first | (1 << (8 * len(key) - length)) - 1)


def parse_ranges(elements: Iterable[tuple[bytes, int, int]], *, bits: int) -> Ranges:
    """Return what the elements of an interval set cover; the kernel lists each range's first and the one after it."""
    edges = sorted((int.from_bytes(key, "big"), not flags & INTERVAL_END) for key, _, flags in elements)
    spans: list[tuple[int, int]] = []
    start: int | None = None
    for value, opens in edges:
        if start is not None:
            spans.append((start, value - 1))
        start = value if opens else None
    if start is not None:
        spans.append((start, (1 << bits) - 1))
    return Ranges(spans)


def network_of(address: IPv4Address | IPv6Address) -> Prefix:
    """Return the prefix that holds ``address`` alone."""
    return IPv4Network(address) if isinstance(address, IPv4Address) else IPv6Network(address)
