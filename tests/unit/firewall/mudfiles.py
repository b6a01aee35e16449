"""What the tests of MUD files share: the files of this folder, a site, packets."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from tidegate.firewall.model import Direction, Icmp, Packet
from tidegate.firewall.mud_import import Role, Site
from tidegate.firewall.section import Protocol

FOLDER = Path(__file__).parent / "mud"
FILES = sorted(FOLDER.glob("*.json"))
NOW = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
DEVICE, DEVICE6, MAC = "192.168.1.77", "fd00::77", "02:00:00:00:00:07"
CLASSES = {
    "urn:ietf:params:mud:dns": ("192.168.1.1", "fd00::1"),
    "urn:ietf:params:mud:ntp": ("192.168.1.1",),
    "urn:ietf:params:mud:gateway": ("192.168.1.1",),
    "https://automation.example/scada": ("10.1.0.5", "10.1.0.6"),
}
NAMES = {
    "service.bulb.example.com": ("203.0.113.10", "2001:db8:1::10"),
    "relay.cameras.example": ("203.0.113.11", "2001:db8:1::11"),
    "firmware.cameras.example": ("203.0.113.12",),
    "stun.cameras.example": ("203.0.113.13",),
    "mqtt.thermo.example": ("203.0.113.14", "2001:db8:1::14"),
    "push.doorbell.example": ("203.0.113.15",),
    "2.pool.ntp.example": ("203.0.113.16",),
    "service.bms.example.com": ("2001:db8:1::17",),
    "api.audio.example": ("203.0.113.18", "2001:db8:1::18"),
    "cdn.audio.example": ("203.0.113.19",),
}
RESOLVED = {name: {ip_address(one): 60 for one in addresses} for name, addresses in NAMES.items()}


def site(role: Role = Role.DEVICE, **changes: Any) -> Site:
    given: dict[str, Any] = {
        "role": role,
        "my_controller": ("192.168.1.5",),
        "local_networks": ("192.168.1.0/24", "fd00::/64"),
        "same_manufacturer": ("192.168.1.80",),
        "classes": CLASSES,
    }
    if role is Role.GATEWAY:
        given |= {"device": (DEVICE, DEVICE6)}
    return Site(**(given | changes))


def file(aces: list[dict[str, Any]], *, side: str = "from", family: int = 4, **mud: Any) -> bytes:
    """Return a MUD file with one access list."""
    head = {
        "mud-version": 1,
        "mud-url": "https://things.example.com/thing.json",
        "last-update": "2024-05-02T11:20:51+01:00",
        "is-supported": True,
        f"{side}-device-policy": {"access-lists": {"access-list": [{"name": "list"}]}},
    }
    acl = {"name": "list", "type": f"ipv{family}-acl-type", "aces": {"ace": aces}}
    return json.dumps({"ietf-mud:mud": head | mud, "ietf-access-control-list:acls": {"acl": [acl]}}).encode()


def ace(name: str = "one", *, forwarding: str = "accept", **matches: Any) -> dict[str, Any]:
    renamed = {{"mud": "ietf-mud:mud"}.get(key, key): value for key, value in matches.items()}
    return {"name": name, "matches": renamed, "actions": {"forwarding": forwarding}}


def policy(fragment: str, role: Role = Role.DEVICE) -> str:
    """Return a whole policy with the fragment in it."""
    if role is Role.DEVICE:
        return f"[policy]\nversion = 1\n{fragment}"
    return f'[policy]\nversion = 1\n[firewall.zones.iot]\ninterfaces = ["iot0"]\n{fragment}'


def packets() -> Iterator[Packet]:
    """Yield what the device and others may try to begin: to and from known and unknown others, on many ports."""
    far = [one for known in RESOLVED.values() for one in known]
    far += [ip_address(one) for given in CLASSES.values() for one in given]
    far += map(ip_address, ("192.168.1.5", "192.168.1.80", "192.168.1.99", "10.9.9.9", "198.51.100.7", "192.0.2.55"))
    far += map(ip_address, ("fd00::5", "fd00::99", "2001:db8:9::9"))
    ports = (
        22,
        53,
        67,
        80,
        123,
        443,
        502,
        514,
        554,
        3478,
        3481,
        3482,
        3500,
        4840,
        5683,
        8009,
        8883,
        9100,
        49151,
        49152,
        65535,
    )
    for other in dict.fromkeys(far):
        own = ip_address(DEVICE if other.version == 4 else DEVICE6)
        for direction, source, destination in ((Direction.OUT, own, other), (Direction.IN, other, own)):
            ends = {"direction": direction, "interface": "eth0", "source": source, "destination": destination}
            for protocol in (Protocol.TCP, Protocol.UDP):
                for port in ports:
                    yield Packet(**ends, protocol=protocol, port=port, source_port=40000)
            yield Packet(**ends, protocol=Protocol.PING, icmp=Icmp.ECHO_REQUEST)
            yield Packet(**ends, protocol=Protocol.GRE)
