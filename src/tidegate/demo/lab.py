"""The demo's network: device, attacker and operator in namespaces of their own, joined by a bridge.

Touches: network namespaces.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from tidegate.testing.netns import NETNS_FOLDER, Namespace, join

DEVICE_ADDRESS = "192.0.2.1"  # RFC 5737: addresses for documentation
OPERATOR_ADDRESS = "192.0.2.10"
VISITOR_ADDRESS = "192.0.2.20"  # an honest client without any privilege
ATTACKER_ADDRESS = "192.0.2.66"
INTERFACE = "eth0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """The hosts on the wire."""

    device: Namespace
    operator: Namespace
    visitor: Namespace
    attacker: Namespace


ROLES = ("switch", "device", "operator", "visitor", "attacker")


def delete_lab(prefix: str) -> list[str]:
    """Delete what a lab of this prefix left behind, processes included; return the names."""
    left = [name for name in (f"{prefix}-{role}" for role in ROLES) if (NETNS_FOLDER / name).exists()]
    for name in left:
        Namespace(name).delete()
    return left


def build_lab(prefix: str, stack: ExitStack) -> Lab:
    """Make the namespaces ``PREFIX-device``, ``-operator``, ``-attacker`` and their switch; ``stack`` deletes them.

    Raises ``testing.netns.busy`` if one of the names is taken, ``base.privilege.missing`` without root; nothing is
    left then.
    """
    with ExitStack() as made:
        switch, device, operator, visitor, attacker = (
            made.enter_context(Namespace.create(f"{prefix}-{role}")) for role in ROLES
        )
        switch.run(["ip", "link", "add", "br0", "type", "bridge"])
        switch.run(["ip", "link", "set", "br0", "up"])
        hosts = {
            DEVICE_ADDRESS: device,
            OPERATOR_ADDRESS: operator,
            VISITOR_ADDRESS: visitor,
            ATTACKER_ADDRESS: attacker,
        }
        for port, (address, host) in enumerate(hosts.items()):
            join(host, switch, interfaces=(INTERFACE, f"port{port}"), addresses_a=[f"{address}/24"])
            switch.run(["ip", "link", "set", f"port{port}", "master", "br0"])
        stack.push(made.pop_all())
        return Lab(device=device, operator=operator, visitor=visitor, attacker=attacker)
