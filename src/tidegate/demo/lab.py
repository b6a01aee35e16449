"""The demo's network: device, attacker and operator in namespaces of their own, joined by a bridge.

Touches: network namespaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tidegate.testing.netns import Namespace, join

DEVICE_ADDRESS = "192.0.2.1"  # RFC 5737: addresses for documentation
OPERATOR_ADDRESS = "192.0.2.10"
ATTACKER_ADDRESS = "192.0.2.66"
INTERFACE = "eth0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """The hosts on the wire."""

    device: Namespace
    operator: Namespace
    attacker: Namespace


@contextmanager
def built_lab(prefix: str) -> Iterator[Lab]:
    """Make the namespaces ``PREFIX-device``, ``-operator``, ``-attacker`` and their switch; all gone at the end.

    Raises ``testing.netns.busy`` if one of the names is taken, ``base.privilege.missing`` without root.
    """
    with ExitStack() as stack:
        switch, device, operator, attacker = (
            stack.enter_context(Namespace.create(f"{prefix}-{role}"))
            for role in ("switch", "device", "operator", "attacker")
        )
        switch.run(["ip", "link", "add", "br0", "type", "bridge"])
        switch.run(["ip", "link", "set", "br0", "up"])
        hosts = {DEVICE_ADDRESS: device, OPERATOR_ADDRESS: operator, ATTACKER_ADDRESS: attacker}
        for port, (address, host) in enumerate(hosts.items()):
            join(host, switch, interfaces=(INTERFACE, f"port{port}"), addresses_a=[f"{address}/24"])
            switch.run(["ip", "link", "set", f"port{port}", "master", "br0"])
        yield Lab(device=device, operator=operator, attacker=attacker)
