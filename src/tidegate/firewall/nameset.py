"""The kernel's sets of DNS names: what they hold, and the line that has the keeper (``names``) fill them.

Apart from the keeper, because the agent and a commit need no more than this. Touches: nftables, reading only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import TYPE_CHECKING

from tidegate.firewall.errors import BadNamesConfig, KernelRefused
from tidegate.firewall.netlink import Link

if TYPE_CHECKING:
    from tidegate.firewall.nameplan import Limits
    from tidegate.firewall.peers import Address

FAMILIES = (4, 6)
MAX_NAMES = 256  # of one policy; sixteen questions at a time to dead resolvers take six minutes of the hour's grace
TABLE = "tidegate"  # compile.TABLE, whose imports the keeper does without


def encode_names_config(names: Iterable[str], *, resolvers: Iterable[str] = (), limits: Limits | None = None) -> str:
    """Return the keeper's configuration line for the names of a policy, without a line end.

    Raises ``firewall.names.config`` for more than ``MAX_NAMES`` names.
    """
    from tidegate.firewall.blocks import dns_set

    sets = {name: {str(family): dns_set(name, family) for family in FAMILIES} for name in names}
    if len(sets) > MAX_NAMES:
        raise BadNamesConfig(f"more than {MAX_NAMES} DNS names", names=len(sets))
    document: dict[str, object] = {"version": 1, "names": sets, "resolvers": list(resolvers)}
    if limits is not None:
        document["limits"] = {name: getattr(limits, name) for name in limits.__slots__}
    return json.dumps(document)


def read_held(link: Link, sets: Mapping[int, str], table: str = TABLE) -> dict[Address, float]:
    """Return what the kernel's sets of one name hold: each address with the seconds that it has left.

    Raises ``firewall.netlink.refused`` when there are no such sets.
    """
    held: dict[Address, float] = {}
    for name in sets.values():
        for key, left_ms, _ in link.elements(table, name):
            held[ip_address(key)] = left_ms / 1000
    return held


def read_resolved(names: Iterable[str], link: Link | None = None) -> dict[str, dict[Address, int]]:
    """Return what names stand for in the kernel now, as ``encode_ruleset`` takes it: a new policy begins with it.

    Names without sets are left out. Raises ``base.privilege.missing``, ``firewall.kernel.no-nftables``.
    """
    from tidegate.firewall.blocks import dns_set

    opened = link or Link()
    found = {}
    try:
        for name in names:
            try:
                held = read_held(opened, {family: dns_set(name, family) for family in FAMILIES})
            except KernelRefused:
                continue
            found[name] = {address: int(left_s) for address, left_s in held.items() if left_s >= 1}
    finally:
        if link is None:
            opened.close()
    return found
