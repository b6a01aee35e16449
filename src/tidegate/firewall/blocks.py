"""The text of one nftables table under construction. Pure; written for the grammar of nft 1.0.6."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from tidegate.firewall.peers import Address, PeerGroup, Resolved
from tidegate.firewall.section import Protocol

LOG_SNAPLEN = 128  # IPv6 header, TCP header and options; no payload leaves by the log
DNS_SET_SIZE = 64  # addresses of one name per family; answers over UDP hold fewer
SADDR = {4: "ip saddr", 6: "ip6 saddr"}
DADDR = {4: "ip daddr", 6: "ip6 daddr"}
NFPROTO = {4: "meta nfproto ipv4", 6: "meta nfproto ipv6"}
# Numbers, because nft reads names of protocols from a file that a small device may lack.
PROTOCOL_NUMBERS = {
    Protocol.IGMP: 2,
    Protocol.TCP: 6,
    Protocol.UDP: 17,
    Protocol.GRE: 47,
    Protocol.ESP: 50,
    Protocol.AH: 51,
    Protocol.OSPF: 89,
    Protocol.VRRP: 112,
    Protocol.SCTP: 132,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One way to be of a group: the family it is for (None: either) and the words that match it."""

    family: int | None
    words: str


class Block:
    """One table: its objects and chains as text. Equal sets are declared once."""

    def __init__(self, resolved: Resolved | None = None) -> None:
        self._parts: list[str] = []
        self._sets: dict[tuple[str, tuple[object, ...]], str] = {}
        self._named: set[str] = set()
        self._resolved: Resolved = resolved or {}

    def counter(self, name: str) -> str:
        """Declare a named counter and return its name."""
        self._parts.append(f"\tcounter {name} {{ }}\n")
        return name

    def static_set(self, name: str, kind: str, elements: Sequence[object], *, flags: str = "interval") -> str:
        """Add a fixed set, or find the one with the same elements, and return its name."""
        key = (kind, tuple(elements))
        if key not in self._sets:
            self._sets[key] = name
            lines = [f"type {kind}", *([f"flags {flags}"] if flags else [])]
            self._add("set", name, [*lines, *_elements(map(str, elements))])
        return self._sets[key]

    def dynamic_set(self, name: str, kind: str, *, size: int, timeout_s: int | None) -> str:
        """Add a set that rules fill, once, and return its name; ``size`` bounds its memory."""
        if name in self._named:
            return name
        self._named.add(name)
        flags = "dynamic" if timeout_s is None else "dynamic,timeout"
        timeout = [] if timeout_s is None else [f"timeout {timeout_s}s"]
        self._add("set", name, [f"type {kind}", f"size {size}", f"flags {flags}", *timeout])
        return name

    def map(self, name: str, kind: str, elements: Iterable[str], *, interval: bool = False) -> str:
        """Add a map, and return its name."""
        self._add("map", name, [f"type {kind}", *(["flags interval"] if interval else []), *_elements(elements)])
        return name

    def chain(self, name: str, lines: Sequence[str]) -> str:
        """Add a chain, and return its name."""
        self._add("chain", name, lines)
        return name

    def chain_once(self, name: str, lines: Sequence[str]) -> str:
        """Add a chain unless it is there, and return its name."""
        if name not in self._named:
            self._named.add(name)
            self.chain(name, lines)
        return name

    def peer_matches(self, name: str, group: PeerGroup, field: dict[int, str]) -> list[Match]:
        """Return every way to be of ``group``, with the sets that it needs declared under names from ``name``."""
        if group.everyone:
            return [Match(family=None, words="")]
        matches = []
        for family in (4, 6):
            if prefixes := group.prefixes(family):
                known = self.static_set(f"{name}_peers{family}", f"ipv{family}_addr", prefixes)
                matches.append(Match(family=family, words=f"{field[family]} @{known}"))
            named = [self._dns_set(dns, family) for dns in group.names]
            matches += [Match(family=family, words=f"{field[family]} @{known}") for known in named]
        if group.macs:
            known = self.static_set(f"{name}_macs", "ether_addr", group.macs, flags="")
            matches.append(Match(family=None, words=f"ether saddr @{known}"))
        return matches

    def encode(self, table: str, family: str = "inet") -> str:
        """Return the table as nft reads it."""
        return f"table {family} {table} {{\n{''.join(self._parts)}}}\n"

    def _dns_set(self, dns: str, family: int) -> str:
        name = dns_set(dns, family)
        key = ("dns", (name,))
        if key not in self._sets:
            self._sets[key] = name
            known = _of_family(self._resolved.get(dns, {}), family)
            elements = _elements(f"{address} timeout {left_s}s" for address, left_s in known)
            self._add("set", name, [f"type ipv{family}_addr", f"size {DNS_SET_SIZE}", "flags timeout", *elements])
        return name

    def _add(self, kind: str, name: str, lines: Iterable[str]) -> None:
        body = "".join(f"\t\t{line}\n" for line in lines)
        self._parts.append(f"\t{kind} {name} {{\n{body}\t}}\n")


def dns_set(dns: str, family: int) -> str:
    """Return the name of the set that holds what a DNS name stands for; unique by its checksum."""
    readable = re.sub(r"[^a-z0-9]", "_", dns)[:40]
    return f"dns_{readable}_{zlib.crc32(dns.encode()):08x}_{family}"


def identifier(kind: str, name: str) -> str:
    """Return the nft name of a rule's objects. Names have no "_", which joins their parts: no two ever meet."""
    return f"{kind}_{name}"


def log_words(per_s: int, group: int, prefix: str) -> str:
    """Return the words that report a packet; nothing when nothing is to be reported.

    Behind ``limit`` always: unlimited, a flood would turn into work for whoever reads the log.
    """
    if not per_s:
        return ""
    rate = f"limit rate {per_s}/second burst {2 * per_s} packets"
    return f'{rate} log prefix "{prefix}" group {group} snaplen {LOG_SNAPLEN}'


def comment(label: str) -> str:
    """Return the words that let a listing, a trace and a person find the policy's rule."""
    return f'comment "{label}"'


def interface_words(word: str, interfaces: Sequence[str]) -> str:
    """Return the match on interfaces, with a space behind it; nothing when every interface is meant."""
    if len(interfaces) == 1:
        return f'{word} "{interfaces[0]}" '
    names = ", ".join(f'"{name}"' for name in interfaces)
    return f"{word} {{ {names} }} " if names else ""


def protocol_matches(protocol: Protocol, spans: Sequence[object], *, port: str = "dport") -> list[Match]:
    """Return every way to be of the protocol (and ports)."""
    if protocol is Protocol.PING:
        return [Match(family=4, words="icmp type echo-request"), Match(family=6, words="icmpv6 type echo-request")]
    number = f"meta l4proto {PROTOCOL_NUMBERS[protocol]}"
    if not protocol.has_ports:
        return [Match(family=None, words=number)]
    ports = ", ".join(str(span) for span in spans)
    return [Match(family=None, words=f"{number} th {port} {ports if len(spans) == 1 else f'{{ {ports} }}'}")]


def join_matches(*choices: Sequence[Match]) -> list[Match]:
    """Return every combination of one match of each, leaving out those of two families."""
    combined = [Match(family=None, words="")]
    for matches in choices:
        combined = [
            Match(family=a.family or b.family, words=f"{a.words} {b.words}".strip())
            for a in combined
            for b in matches
            if a.family is None or b.family is None or a.family == b.family
        ]
    return combined


def masked(field: str, family: int, length: int) -> str:
    """Return the words for the first ``length`` bits of an address."""
    bits = 32 if family == 4 else 128
    if length == bits:
        return field
    mask = (1 << bits) - (1 << (bits - length))
    return f"{field} & {IPv4Address(mask) if family == 4 else IPv6Address(mask)}"


def _elements(elements: Iterable[str]) -> list[str]:
    """Return the line of elements; an empty set has none, which the grammar would refuse."""
    joined = ", ".join(elements)
    return [f"elements = {{ {joined} }}"] if joined else []


def _of_family(known: Mapping[Address, int], family: int) -> list[tuple[Address, int]]:
    found = [(address, left_s) for address, left_s in known.items() if address.version == family and left_s > 0]
    return sorted(found)[:DNS_SET_SIZE]
