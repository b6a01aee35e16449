"""What one entry of a MUD file's access list matches. Pure.

Every match of an entry has to hold. Whatever is not understood here, or cannot be said by a rule of ours, becomes a
reason why the entry cannot be taken over: a match that is left out would widen what the entry allows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address, ip_network

from tidegate.firewall.errors import BadMud
from tidegate.firewall.section import MAX_DNS_NAME

MAX_PORT = 65535
ICMP = {4: 1, 6: 58}
_TRANSPORTS = {"tcp": 6, "udp": 17}
_DNS_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]\Z")
_DRAFT_CONTAINERS = {"ipv4-acl": "ipv4", "ipv6-acl": "ipv6", "ietf-mud:mud-acl": "ietf-mud:mud"}
_DRAFT_PORTS = {f"{side}-port-range-or-operator": f"{side}-port" for side in ("source", "destination")}
_MAX_REASONS = 8  # of one entry; the first says enough


class PeerKind(StrEnum):
    """How an entry says who the other side is."""

    ANY = "any"
    NAME = "dnsname"
    NETWORK = "network"
    CONTROLLER = "controller"
    MY_CONTROLLER = "my-controller"
    LOCAL = "local-networks"
    SAME_MANUFACTURER = "same-manufacturer"
    MANUFACTURER = "manufacturer"
    MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Span:
    """Ports ``first`` to ``last``, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Which packets an entry is about; ``None``: not looked at. Ports are those of each end, whoever sends."""

    protocol: int | None = None
    peer: PeerKind = PeerKind.ANY
    peer_value: str = ""
    device_ports: tuple[Span, ...] | None = None
    peer_ports: tuple[Span, ...] | None = None
    icmp_type: int | None = None
    began_by_device: bool | None = None  # TCP alone
    layer2: bool = False  # about frames, not about IP


def parse_matches(
    matches: Mapping[str, object], where: str, *, from_device: bool, family: int | None
) -> tuple[Match, list[str], list[str]]:
    """Return the match, the reasons why it cannot be taken over, and how it is written as in a draft.

    Raises ``firewall.mud.malformed``.
    """
    reader = _Reader(where, from_device=from_device, family=family)
    reader.read(matches)
    return reader.match(), reader.reasons[:_MAX_REASONS], reader.drafts


class _Reader:
    """Collects what the containers of one entry say."""

    def __init__(self, where: str, *, from_device: bool, family: int | None) -> None:
        self._where = where
        self._family = family
        self._near, self._far = ("source", "destination") if from_device else ("destination", "source")
        self._protocols: list[int] = []
        self._peers: list[tuple[PeerKind, str]] = []
        self._ports: dict[str, tuple[Span, ...]] = {}
        self._icmp: int | None = None
        self._began: bool | None = None
        self._layer2 = family is None
        self._packets = False  # whether a match on more than frames was seen
        self.reasons: list[str] = []
        self.drafts: list[str] = []

    def match(self) -> Match:
        protocols = sorted(set(self._protocols))
        if len(protocols) > 1:
            self.reasons.append(f"it asks for protocols {protocols[0]} and {protocols[1]} at once")
        if self._layer2 and self._packets:
            self.reasons.append(
                "it is about packets in a list that is neither for IPv4 nor for IPv6, or about frames too"
            )
        if len(self._peers) > 1:
            self.reasons.append("it describes the other side in more than one way")
        peer, value = self._peers[0] if self._peers else (PeerKind.ANY, "")
        return Match(
            protocol=protocols[0] if protocols else None,
            peer=peer,
            peer_value=value,
            device_ports=self._ports.get(self._near),
            peer_ports=self._ports.get(self._far),
            icmp_type=self._icmp,
            began_by_device=self._began,
            layer2=self._layer2 and not self._packets,
        )

    def read(self, matches: Mapping[str, object]) -> None:
        for key, value in matches.items():
            name = _DRAFT_CONTAINERS.get(key, key)
            if name != key:
                self._draft(key)
            self._packets |= name in ("ipv4", "ipv6", "icmp", *_TRANSPORTS) or self._family is not None
            if name in ("l2", "l3", "l4"):  # the choices of RFC 8519, which are no nodes of their own
                self._draft(name)
                self.read(self._object(value, name))
            elif name in ("ipv4", "ipv6"):
                self._read_ip(int(name[-1]), self._object(value, name))
            elif name in _TRANSPORTS:
                self._protocols.append(_TRANSPORTS[name])
                self._read_transport(self._object(value, name))
            elif name == "icmp":
                self._read_icmp(self._object(value, name))
            elif name == "ietf-mud:mud":
                self._read_mud(self._object(value, name))
            elif name == "eth":
                self._layer2 = True
            else:
                self.reasons.append(f"unknown match {_clean(key)}")

    def _read_ip(self, version: int, value: Mapping[str, object]) -> None:
        if version != self._family:
            self.reasons.append(f"an IPv{version} match in a list of another type")
        for key, item in value.items():
            name = key.removeprefix("ietf-acldns:")
            if name == "protocol":
                self._protocols.append(self._number(item, name, 255))
            elif name in ("src-dnsname", "dst-dnsname"):
                self._read_name("source" if name.startswith("src") else "destination", item)
            elif name in (f"source-ipv{version}-network", f"destination-ipv{version}-network"):
                self._read_network(name.partition("-")[0], item, version)
            elif key in _DRAFT_PORTS:
                self._draft(key)
                self._add_ports(_DRAFT_PORTS[key], item)
            else:
                self.reasons.append(f"unknown match {_clean(key)}")

    def _read_name(self, end: str, value: object) -> None:
        if not isinstance(value, str):
            raise BadMud(f"{self._where}: a DNS name is a text", where=self._where)
        if end == self._near:
            self.reasons.append("it names the device's own side by a DNS name")
            return
        name = value.lower().removesuffix(".")
        try:
            address = ip_address(name)
        except ValueError:
            if not value.isascii() or _DNS_NAME.match(name) is None or len(name) > MAX_DNS_NAME:
                self.reasons.append(f"{_clean(value)} is no DNS name of one host")
            self._peers.append((PeerKind.NAME, name))
            return
        if "%" in name or address.version != self._family:
            self.reasons.append(f"{_clean(name)} is an address of another family")
        self._peers.append((PeerKind.NETWORK, name))

    def _read_network(self, end: str, value: object, version: int) -> None:
        try:
            # A network whose host bits are set means the same (RFC 6991, ipv4-prefix).
            network = ip_network(value if isinstance(value, str) else "", strict=False)
        except ValueError as error:
            raise BadMud(f"{self._where}: {_clean(str(value))} is no network", where=self._where) from error
        if network.version != version or "%" in str(network):
            raise BadMud(f"{self._where}: {network} is not IPv{version}", where=self._where)
        if network.prefixlen == 0:
            return  # everybody
        if end == self._near:
            self.reasons.append("it names the device's own side by an address")
        else:
            self._peers.append((PeerKind.NETWORK, str(network)))

    def _read_transport(self, value: Mapping[str, object]) -> None:
        for key, item in value.items():
            name = _DRAFT_PORTS.get(key, key)
            if name != key:
                self._draft(key)
            if name in ("source-port", "destination-port"):
                self._add_ports(name, item)
            elif name.removeprefix("ietf-mud:") == "direction-initiated":
                if item not in ("from-device", "to-device"):
                    raise BadMud(f"{self._where}: direction-initiated is {_clean(str(item))}", where=self._where)
                self._add_beginner(item == "from-device")
            else:
                self.reasons.append(f"unknown match {_clean(key)}")

    def _read_icmp(self, value: Mapping[str, object]) -> None:
        self._protocols.append(ICMP[self._family or 4])
        for key, item in value.items():
            if key == "type":
                self._icmp = self._number(item, key, 255)
            elif key == "code" and item == 0:
                continue  # the only code of an echo; other types are judged by the type
            else:
                self.reasons.append(f"unknown match {_clean(key)} of ICMP")

    def _read_mud(self, value: Mapping[str, object]) -> None:
        for key, item in value.items():
            name = key.removeprefix("ietf-mud:")
            if name in (PeerKind.MY_CONTROLLER, PeerKind.LOCAL, PeerKind.SAME_MANUFACTURER):
                if item not in ([None], None, {}):  # "empty" is [null] in JSON (RFC 7951 §6.9); tools also write {}
                    raise BadMud(f"{self._where}: {name} has no value", where=self._where)
                self._peers.append((PeerKind(name), ""))
            elif name in (PeerKind.CONTROLLER, PeerKind.MANUFACTURER, PeerKind.MODEL):
                if not isinstance(item, str) or not 1 <= len(item) <= 256 or not item.isprintable():
                    raise BadMud(f"{self._where}: {name} is a text", where=self._where)
                self._peers.append((PeerKind(name), item))
            elif name.removeprefix("ietf-mud:") == "direction-initiated" and item in ("from-device", "to-device"):
                self._draft(name)
                self._add_beginner(item == "from-device")
            else:
                self.reasons.append(f"unknown match {_clean(key)}")

    def _add_ports(self, name: str, value: object) -> None:
        end = name.partition("-")[0]
        if end in self._ports:
            self.reasons.append(f"two matches on the {end} port")
        self._ports[end] = self._spans(value, name)

    def _add_beginner(self, by_device: bool) -> None:
        if self._began is not None and self._began is not by_device:
            self.reasons.append("two matches on who begins")
        self._began = by_device
        self._protocols.append(6)

    def _spans(self, value: object, name: str) -> tuple[Span, ...]:
        """Return the ports of RFC 8519's port-range-or-operator; port 0 is no port that anybody uses."""
        ports = self._object(value, name)
        if {*ports} in ({"lower-port", "upper-port"}, {"operator", "lower-port", "upper-port"}):
            first, last = (self._number(ports[key], key, MAX_PORT) for key in ("lower-port", "upper-port"))
            if ports.get("operator", "range") != "range" or last < first:
                raise BadMud(f"{self._where}: {name} is no rising range", where=self._where)
            return _ports(first, last)
        if {*ports} not in ({"operator", "port"}, {"port"}):
            raise BadMud(f"{self._where}: {name} has neither a port nor a range", where=self._where)
        port = self._number(ports["port"], name, MAX_PORT)
        match ports.get("operator", "eq"):  # RFC 8519: the operator is eq where none is given
            case "eq":
                return _ports(port, port)
            case "lte":
                return _ports(1, port)
            case "gte":
                return _ports(port, MAX_PORT)
            case "neq":
                return (*_ports(1, port - 1), *_ports(port + 1, MAX_PORT))
        raise BadMud(f"{self._where}: unknown operator {_clean(str(ports['operator']))}", where=self._where)

    def _number(self, value: object, name: str, last: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= last:
            raise BadMud(f"{self._where}: {name} is not a number from 0 to {last}", where=self._where)
        return value

    def _object(self, value: object, name: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise BadMud(f"{self._where}: {name} is no object", where=self._where)
        return value

    def _draft(self, name: str) -> None:
        self.drafts.append(f"written as in a draft of the RFC: {name}")


def _ports(first: int, last: int) -> tuple[Span, ...]:
    first = max(first, 1)
    return (Span(first=first, last=last),) if first <= last else ()


def _clean(text: str) -> str:
    return re.sub(r"[^ -~]", "?", text)[:60]
