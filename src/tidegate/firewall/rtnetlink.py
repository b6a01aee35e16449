"""What the kernel's routing says about a packet, by rtnetlink.

Touches: the routing tables and the neighbour table, reading only, of the network namespace of the calling thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from pathlib import Path

from tidegate.firewall.errors import NoRoute
from tidegate.firewall.netlink import encode_attribute, parse_attributes
from tidegate.firewall.peers import Address

TIMEOUT_S = 2.0  # the kernel answers a single look-up at once
MAX_REPLY_BYTES = 8192  # one message; a route with hundreds of next hops is longer and is not needed whole

# linux/netlink.h, linux/rtnetlink.h, linux/neighbour.h, linux/sockios.h, linux/if_arp.h
_AF_NETLINK = 16
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_RTM_GETROUTE, _RTM_GETNEIGH = 26, 30
_RTA_DST, _RTA_SRC, _RTA_IIF, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC = 1, 2, 3, 4, 5, 7
_RTN_LOCAL, _RTN_BROADCAST, _RTN_MULTICAST = 2, 3, 5
_NDA_DST, _NDA_LLADDR = 1, 2
_SIOCGIFHWADDR = 0x8927
_ARPHRD_ETHER = 1
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
MAC_BYTES = 6
_SETTINGS = Path("/proc/sys/net/ipv4/conf")


class Reach(Enum):
    """Where routing sends a packet."""

    HERE = "here"
    ELSEWHERE = "elsewhere"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Routing's answer: to this device or elsewhere, by which interface and router, from which address of our own."""

    reach: Reach
    interface: str
    own: Address | None
    gateway: Address | None


def find_route(
    destination: Address, *, source: Address | None = None, arriving: str | None = None, leaving: str | None = None
) -> Route:
    """Return where the kernel would send a packet to ``destination``: one of our own, or one that arrives on
    ``arriving`` from ``source``. ``leaving`` asks for the way through one interface.

    Raises ``firewall.why.no-route``; its field ``errno`` is the kernel's: ``EXDEV`` for a source that the reverse path
    filter refuses, ``EINVAL`` for one that cannot come from there.
    """
    attributes = [(_RTA_DST, destination.packed)]
    if source is not None:
        attributes.append((_RTA_SRC, source.packed))
    for kind, interface in ((_RTA_IIF, arriving), (_RTA_OIF, leaving)):
        if interface is not None:
            attributes.append((kind, struct.pack("=I", find_interface(interface))))
    bits = destination.max_prefixlen
    head = struct.pack("=BBBBBBBBI", _FAMILY[destination.version], bits, bits if source else 0, 0, 0, 0, 0, 0, 0)
    try:
        reply = _ask(_RTM_GETROUTE, head, attributes)
    except OSError as error:
        raise NoRoute(
            f"the kernel has no route for {destination}: {os.strerror(error.errno or 0)}", errno=error.errno
        ) from error
    kind = reply[7]
    found = _read_attributes(reply[12:])
    own, gateway = found.get(_RTA_PREFSRC), found.get(_RTA_GATEWAY)
    here = kind in (_RTN_LOCAL, _RTN_BROADCAST, _RTN_MULTICAST)
    index = struct.unpack("=I", found[_RTA_OIF])[0] if _RTA_OIF in found else 0
    return Route(
        reach=Reach.HERE if here else Reach.ELSEWHERE,
        interface=socket.if_indextoname(index) if index else "",
        own=None if own is None else ip_address(own),
        gateway=None if gateway is None else ip_address(gateway),
    )


def find_mac(address: Address, interface: str) -> bytes | None:
    """Return the neighbour's MAC address that the kernel knows, or ``None``."""
    head = struct.pack("=BxHiHBB", _FAMILY[address.version], 0, find_interface(interface), 0, 0, 0)
    try:
        reply = _ask(_RTM_GETNEIGH, head, [(_NDA_DST, address.packed)])
    except OSError:
        return None  # not known, or a kernel before 5.0, which only lists
    found = _read_attributes(reply[12:]).get(_NDA_LLADDR)
    return found if found is not None and len(found) == MAC_BYTES and any(found) else None


def find_own_mac(interface: str) -> bytes:
    """Return the interface's MAC address; zeros where it has none (a tunnel)."""
    request = interface.encode()[:15].ljust(40, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as handle:
        try:
            reply = fcntl.ioctl(handle, _SIOCGIFHWADDR, request)
        except OSError as error:
            raise _no_interface(interface) from error
    kind: int = struct.unpack_from("=H", reply, 16)[0]
    return reply[18 : 18 + MAC_BYTES] if kind == _ARPHRD_ETHER else bytes(MAC_BYTES)


def read_reverse_path_filter(interface: str) -> bool:
    """Return whether the kernel checks that IPv4 sources are expected on ``interface``; False where it cannot tell."""
    values = []
    for name in ("all", interface):
        with contextlib.suppress(OSError, ValueError):
            values.append(int((_SETTINGS / name / "rp_filter").read_text()))
    return any(values)  # the kernel takes the higher of the two; 1 and 2 both check


def find_interface(interface: str) -> int:
    """Return the index of ``interface``; raises ``firewall.why.no-route``."""
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise _no_interface(interface) from error


def _no_interface(interface: str) -> NoRoute:
    return NoRoute(f"there is no interface {interface!r}", interface=interface, errno=errno.ENODEV)


def _ask(kind: int, head: bytes, attributes: list[tuple[int, bytes]]) -> bytes:
    """Return the body of the answer; raises ``OSError`` with the kernel's error."""
    body = head + b"".join(encode_attribute(number, value) for number, value in attributes)
    request = struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST, 1, 0) + body
    with socket.socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        link.settimeout(TIMEOUT_S)
        link.send(request)
        reply = link.recv(MAX_REPLY_BYTES)
    answer = struct.unpack_from("=H", reply, 4)[0]
    if answer == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", reply, 16)[0]
        raise OSError(number, os.strerror(number))
    return reply[16 : struct.unpack_from("=I", reply)[0]]


def _read_attributes(body: bytes) -> dict[int, bytes]:
    return {kind: bytes(payload) for kind, payload in parse_attributes(memoryview(body))}
