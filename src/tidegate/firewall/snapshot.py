"""What nftables lists, turned into a text that restores it and into one digest.

Pure. The listing is that of ``nft -s list table`` (nft 1.0.6): one tab before each object, two before its lines,
elements possibly wrapped over several lines. Contents of sets that rules or bans fill are left out: thresholds begin
anew after a restore, bans live on in the kernel. What DNS names stand for is restored, but is no part of the digest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tidegate.base.digest import sha256
from tidegate.firewall.compile import BAN_TABLE, TABLE
from tidegate.firewall.link import LINK_TABLE

DNS_PREFIX = "dns_"  # of the sets that hold what DNS names stand for (blocks.dns_set)
_OPENING = re.compile(r"\t(?P<kind>[a-z][a-z ]*?) (?P<name>\S+) \{(?P<closed> \})?\Z")
_FILLED_BY_RULES = re.compile(r"\t\tflags (?:\w+,)*(?:dynamic|timeout)(?:,\w+)*\Z")
_FIXED_SHAPE = re.compile(r"^\t\t(?:size |flags (?:\w+,)*interval)", re.MULTILINE)
_ELEMENTS = "\t\telements = {"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listings:
    """Our tables as the kernel lists them; ``None``: there is no such table.

    ``bans`` without the elements of its sets of bans. ``names``: for each set of a DNS name, its own listing with the
    time that each address has left.
    """

    policy: str | None = None
    bans: str | None = None
    link: str | None = None
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One object of a table: ``set``, ``map``, ``chain``, ``counter``; ``lines`` are what stands between its braces."""

    kind: str
    name: str
    lines: tuple[str, ...]
    elements: tuple[str, ...]
    filled_by_rules: bool

    def encode(self) -> str:
        """Return the object as nft reads it; contents that rules or bans filled are left out."""
        body = "".join(f"{line}\n" for line in self.lines)
        if self.elements and not self.filled_by_rules:
            body += f"{_ELEMENTS} {', '.join(sorted(self.elements))} }}\n"
        return f"\t{self.kind} {self.name} {{\n{body}\t}}\n"


def parse_listing(text: str) -> tuple[Listed, ...]:
    """Return the objects of one listed table in their order; lines outside objects are the table's braces."""
    objects: list[Listed] = []
    lines = iter(text.splitlines())
    for line in lines:
        opening = _OPENING.match(line)
        if opening is not None:
            objects.append(_parse_object(opening, iter(()) if opening["closed"] else lines))
    return tuple(objects)


def split_tables(text: str) -> dict[str, str]:
    """Return the tables of a ruleset's listing by family and name (``inet tidegate``)."""
    tables: dict[str, str] = {}
    for part in re.split(r"^(?=table )", text, flags=re.MULTILINE):
        heading = part.partition(" {")[0]
        if heading.startswith("table "):
            tables[heading.removeprefix("table ")] = part
    return tables


def encode_restore(listings: Listings) -> str:
    """Return the transaction that brings back what was listed.

    A table of bans that was not there before stays: to delete it would end bans that were made since.
    """
    parts = [f"table inet {TABLE}\ndelete table inet {TABLE}\n"]
    if listings.policy is not None:
        parts.append(_encode_table(f"inet {TABLE}", parse_listing(listings.policy)))
        parts.append(encode_names(listings.names))
    if listings.bans is not None:
        objects = parse_listing(listings.bans)
        # Declared empty first: the flush must find them even if somebody deleted the table meanwhile.
        parts.append(_encode_table(f"inet {BAN_TABLE}", [_emptied(thing) for thing in objects]))
        parts += [f"flush {thing.kind} inet {BAN_TABLE} {thing.name}\n" for thing in objects if _is_rewritten(thing)]
        parts.append(_encode_table(f"inet {BAN_TABLE}", objects))
    if listings.link is not None:
        parts.append(f"{DELETE_LINK}{_encode_table(f'netdev {LINK_TABLE}', parse_listing(listings.link))}")
    return "".join(parts)


DELETE_LINK = f"table netdev {LINK_TABLE}\ndelete table netdev {LINK_TABLE}\n"


def encode_names(names: Mapping[str, str]) -> str:
    """Return the lines that fill the sets of DNS names with what was listed of them, and with nothing else."""
    lines = []
    for name, listing in names.items():
        lines.append(f"flush set inet {TABLE} {name}\n")
        elements = [element for thing in parse_listing(listing) for element in thing.elements]
        if elements:
            lines.append(f"add element inet {TABLE} {name} {{ {', '.join(elements)} }}\n")
    return "".join(lines)


def find_names(policy_listing: str) -> list[str]:
    """Return the names of the listed sets that hold what DNS names stand for."""
    return re.findall(rf"^\tset ({DNS_PREFIX}\S+) {{$", policy_listing, flags=re.MULTILINE)


def count_growing(text: str) -> dict[str, tuple[int, int]]:
    """Return how many elements, and how many different ones, each set has that the kernel holds in a table that grows.

    That is a set of exact elements without a size: a listing may catch it while it grows, or shrinks to what it holds.
    """
    return {
        thing.name: (len(thing.elements), len(set(thing.elements)))
        for thing in parse_listing(text)
        if thing.kind in ("set", "map")
        and not thing.filled_by_rules
        and not _FIXED_SHAPE.search("\n".join(thing.lines))
    }


def fill_sets(outline: str, listings: Mapping[str, str]) -> str:
    """Return a listed table with the elements of some of its sets, each listed by itself."""
    filled = {thing.name: thing for text in listings.values() for thing in parse_listing(text)}
    objects = [filled.get(thing.name, thing) if thing.kind == "set" else thing for thing in parse_listing(outline)]
    return _encode_table(outline.partition(" {")[0].removeprefix("table "), objects)


def digest_listings(listings: Listings) -> str:
    """Return the SHA-256 (hex) of our tables without what changes by itself.

    That is: counters, thresholds' memory, bans, what DNS names stand for; and the order of objects, which tells when
    each was made. The order of rules counts.
    """
    digest = sha256()
    for name, listing in (("policy", listings.policy), ("bans", listings.bans), ("link", listings.link)):
        objects = sorted(parse_listing(listing or ""), key=lambda thing: (thing.kind, thing.name))
        digest.update(f"{name} {listing is not None}\n{''.join(thing.encode() for thing in objects)}".encode())
    return digest.hexdigest()


def _parse_object(opening: re.Match[str], lines: Iterator[str]) -> Listed:
    body: list[str] = []
    elements: list[str] = []
    for inner in lines:
        if inner == "\t}":
            break
        if inner.startswith(_ELEMENTS):
            wrapped = inner[len(_ELEMENTS) :]
            while not wrapped.rstrip().endswith("}"):
                wrapped += next(lines, "}")
            elements = [element.strip() for element in wrapped.rstrip().removesuffix("}").split(",")]
        else:
            body.append(inner)
    return Listed(
        kind=opening["kind"],
        name=opening["name"],
        lines=tuple(body),
        elements=tuple(elements),
        filled_by_rules=any(_FILLED_BY_RULES.match(inner) for inner in body),
    )


def _encode_table(table: str, objects: Iterable[Listed] | Sequence[Listed]) -> str:
    return f"table {table} {{\n{''.join(thing.encode() for thing in objects)}}}\n"


def _emptied(thing: Listed) -> Listed:
    """Return the declaration alone: a chain without rules (its hook stays), a set without elements."""
    lines = thing.lines
    if thing.kind == "chain":
        lines = tuple(line for line in lines if line.startswith("\t\ttype "))
    return replace(thing, lines=lines, elements=())


def _is_rewritten(thing: Listed) -> bool:
    """Chains and fixed lists are emptied before they are filled again; sets of bans are not."""
    return thing.kind == "chain" or (thing.kind in ("set", "map") and not thing.filled_by_rules)
