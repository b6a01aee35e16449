"""What nftables lists, turned into a text that restores it and into one digest.

Pure. The listing is that of ``nft -s list table`` (nft 1.0.6): one tab before each object, two before its lines,
elements possibly wrapped over several lines. Contents of sets that rules or bans fill are left out: thresholds begin
anew after a restore, bans live on in the kernel.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tidegate.firewall.compile import BAN_TABLE, TABLE

_OPENING = re.compile(r"\t(?P<kind>[a-z][a-z ]*?) (?P<name>\S+) \{\Z")
_FILLED_BY_RULES = re.compile(r"\t\tflags (?:\w+,)*(?:dynamic|timeout)(?:,\w+)*\Z")
_ELEMENTS = "\t\telements = {"


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
        if opening is None:
            continue
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
        objects.append(
            Listed(
                kind=opening["kind"],
                name=opening["name"],
                lines=tuple(body),
                elements=tuple(elements),
                filled_by_rules=any(_FILLED_BY_RULES.match(inner) for inner in body),
            )
        )
    return tuple(objects)


def encode_restore(policy_listing: str | None, ban_listing: str | None) -> str:
    """Return the transaction that brings back what was listed (``None``: there was no such table).

    A table of bans that was not there before stays: to delete it would end bans that were made since.
    """
    parts = [f"table inet {TABLE}\ndelete table inet {TABLE}\n"]
    if policy_listing is not None:
        parts.append(_encode_table(TABLE, parse_listing(policy_listing)))
    if ban_listing is not None:
        objects = parse_listing(ban_listing)
        # Declared empty first: the flush must find them even if somebody deleted the table meanwhile.
        parts.append(_encode_table(BAN_TABLE, [_emptied(thing) for thing in objects]))
        parts += [f"flush {thing.kind} inet {BAN_TABLE} {thing.name}\n" for thing in objects if _is_rewritten(thing)]
        parts.append(_encode_table(BAN_TABLE, objects))
    return "".join(parts)


def digest_listings(policy_listing: str | None, ban_listing: str | None) -> str:
    """Return the SHA-256 (hex) of both tables without what changes by itself: counters, thresholds' memory, bans."""
    return hashlib.sha256(encode_restore(policy_listing, ban_listing).encode()).hexdigest()


def _encode_table(table: str, objects: Sequence[Listed]) -> str:
    return f"table inet {table} {{\n{''.join(thing.encode() for thing in objects)}}}\n"


def _emptied(thing: Listed) -> Listed:
    """Return the declaration alone: a chain without rules (its hook stays), a set without elements."""
    lines = thing.lines
    if thing.kind == "chain":
        lines = tuple(line for line in lines if line.startswith("\t\ttype "))
    return replace(thing, lines=lines, elements=())


def _is_rewritten(thing: Listed) -> bool:
    """Chains and fixed lists are emptied before they are filled again; sets of bans are not."""
    return thing.kind == "chain" or (thing.kind in ("set", "map") and not thing.filled_by_rules)
