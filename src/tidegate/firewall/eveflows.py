"""Flows and DNS answers from EVE JSON lines, the sensor's or Suricata's (docs/formats/eve.md). Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from datetime import datetime
from ipaddress import IPv6Address, ip_address
from typing import Any

from tidegate.firewall.learn import Flow, is_group
from tidegate.firewall.model import Address, Direction
from tidegate.firewall.section import Protocol

MAX_PORT = 65_535
_END_OF_TIME_S = 253_402_300_800  # the year 10000, which no calendar here can write
MAX_LINE_BYTES = 65_536  # the sensor's lines are a few hundred bytes, Suricata's a few thousand
_PROTOCOLS = {
    "TCP": Protocol.TCP,
    "UDP": Protocol.UDP,
    "SCTP": Protocol.SCTP,
    "002": Protocol.IGMP,
    "IGMP": Protocol.IGMP,
    "047": Protocol.GRE,
    "GRE": Protocol.GRE,
    "050": Protocol.ESP,
    "ESP": Protocol.ESP,
    "051": Protocol.AH,
    "AH": Protocol.AH,
    "089": Protocol.OSPF,
    "112": Protocol.VRRP,
}
_ECHO = {"ICMP": 8, "IPv6-ICMP": 128}
_SYN, _ACK = 0x02, 0x10
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]\Z")


def parse_flow(line: bytes | str, own: Collection[Address]) -> Flow | None:
    """Return the flow that a line tells of; ``None`` for another event, a line that is none, or traffic that the
    device with the addresses ``own`` only sent to itself."""
    event = _load(line)
    if event.get("event_type") != "flow" or not isinstance(event.get("flow"), dict):
        return None
    flow, tcp = event["flow"], event.get("tcp")
    try:
        source, destination = _address(event["src_ip"]), _address(event["dest_ip"])
        first_s, last_s = _time(flow["start"]), _time(flow["end"])
        sent = int(tcp["tcp_flags_ts"], 16) if isinstance(tcp, dict) else None
        answered = int(tcp["tcp_flags_tc"], 16) if isinstance(tcp, dict) else None
        ports = _port(event.get("dest_port", 0)), _port(event.get("src_port", 0))
        replies, size = int(flow["pkts_toclient"]), int(flow["bytes_toserver"]) + int(flow["bytes_toclient"])
    except (KeyError, ValueError, TypeError, OverflowError):  # JSON as Python reads it has an Infinity
        return None
    if source in own and destination in own:
        return None
    is_late = sent is not None and not sent & _SYN
    refused = answered is not None and not is_late and answered & (_SYN | _ACK) != _SYN | _ACK
    return Flow(
        direction=find_direction(source, destination, own),
        protocol=_protocol(event),
        source=source,
        destination=destination,
        port=ports[0],
        source_port=ports[1],
        first_s=first_s,
        last_s=last_s,
        size_bytes=size,
        is_answered=replies > 0 and not refused,
        is_late=is_late,
    )


def parse_names(line: bytes | str) -> dict[Address, str]:
    """Return the addresses in a line's DNS answer, each with the name that was asked for; usually none."""
    event = _load(line)
    dns = event.get("dns")
    if event.get("event_type") != "dns" or not isinstance(dns, dict) or not isinstance(dns.get("answers"), list):
        return {}
    asked = str(dns.get("rrname", "")).lower().removesuffix(".")
    found: dict[Address, str] = {}
    for answer in dns["answers"]:
        if isinstance(answer, dict) and answer.get("rrtype") in ("A", "AAAA") and _NAME.match(asked):
            try:
                found[_address(answer["rdata"])] = asked
            except (KeyError, ValueError):
                continue
    return found


def find_direction(
    source: Address, destination: Address, own: Collection[Address], broadcasts: Collection[Address] = ()
) -> Direction:
    """Return which way a flow goes, seen from the device with the addresses ``own``, whose networks have the broadcast
    addresses ``broadcasts``."""
    if source in own:
        return Direction.OUT
    if source.is_unspecified and not any(one.version == 4 and not one.is_link_local for one in own):
        return Direction.OUT  # a device that has no address yet asks for one; with one, it hears others ask
    if destination in own or destination in broadcasts or is_group(destination):
        return Direction.IN
    return Direction.THROUGH


def _protocol(event: Mapping[str, Any]) -> Protocol | None:
    name = str(event.get("proto"))
    if name in _ECHO:
        return Protocol.PING if event.get("icmp_type") == _ECHO[name] else None
    return _PROTOCOLS.get(name)


def _load(line: bytes | str) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        return {}
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _address(text: object) -> Address:
    """Return an address that can be written into a policy: a zone behind it may be any text, of several lines too."""
    address = ip_address(str(text))
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        raise ValueError("an address with a zone")
    return address


def _port(value: Any) -> int:
    port = int(value)
    if not 0 <= port <= MAX_PORT:
        raise ValueError("no port")
    return port


def _time(text: str) -> float:
    time_s = datetime.fromisoformat(text).timestamp()
    if not 0 <= time_s < _END_OF_TIME_S:
        raise ValueError("no time")
    return time_s
