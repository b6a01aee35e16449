"""The policy's ``[ids]`` and ``[watch]`` sections, and the sensor's configuration that follows from the first. Pure."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct, field

from tidegate.ids.errors import ConfigInvalid
from tidegate.ids.settings import DEFAULT_MEMORY, RULES_MEMORY, Setting, merge_settings, parse_memory

# The bounds of rust/sensor/src/config.rs and budget.rs; a test compares the defaults.
LIVE_FLOW_EVENTS_PER_S = 200  # a record is some 600 bytes: 120 kB a second at most into the event log
REPLAY_FLOW_EVENTS_PER_S = 1_000_000  # nobody waits behind a replay
MAX_INTERFACES = 16  # a worker process each
MAX_RULE_FILES = 64  # large public sets come in some 60 categories
MAX_SECTION_SETTINGS = 256  # a device changes a handful of Suricata's defaults
MAX_ALLOWED = 1024  # compared one by one, for a handful of alerts a second


Interface = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}\Z")]  # IFNAMSIZ
RuleFile = Annotated[str, Meta(pattern=r"^/[^\0]{0,4094}\Z")]
SettingName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._#-]{0,127}\Z")]
SettingValue = Annotated[str, Meta(max_length=1024)]
Rate = Annotated[int, Meta(ge=0, le=10_000_000)]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Respond(StrEnum):
    """What follows an alert."""

    REPORT = "report"  # an event
    BAN = "ban"  # an event, and a ban where response.py allows one
    LOCKDOWN = "lockdown"  # an event, and a lockdown for the time of a ban, under the same rule


class FlowEvents(StrEnum):
    """Which flows are reported when they end."""

    OFF = "off"
    ANSWERED = "answered"  # both sides took part
    ALL = "all"


class Detectors(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which of the sensor's own detectors run beside the rules."""

    scan: bool = True
    flood: bool = True


class Scan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a source counts as a scanner: distinct ports that refused or ignored it, or packets with illegal flags.

    nmap asks 10 ports before it waits a second for a host that drops; 8 leave room for two that answer.
    """

    ports: Annotated[int, Meta(ge=3, le=64)] = 8
    window_s: Annotated[int, Meta(ge=1, le=3600)] = 10
    flag_packets: Annotated[int, Meta(ge=1, le=1_000_000)] = 5


class Flood(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a destination counts as flooded. An alert begins at the high mark and ends below the low one.

    The SYN marks count handshakes that are not completed, so honest load is none. 0 switches the other two off.
    """

    high_per_s: Annotated[int, Meta(ge=1, le=10_000_000)] = 200
    low_per_s: Rate = 50
    window_s: Annotated[int, Meta(ge=1, le=60)] = 1
    udp_high_per_s: Rate = 10_000
    icmp_high_per_s: Rate = 500


class IdsSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[ids]`` section. ``memory`` bounds the sensor of each interface, capture ring included."""

    enabled: bool = True
    interfaces: Annotated[tuple[Interface, ...], Meta(max_length=MAX_INTERFACES)] = ()
    memory: Annotated[str, Meta(max_length=16)] | None = None  # DEFAULT_MEMORY, with rules RULES_MEMORY
    rules: Annotated[tuple[RuleFile, ...], Meta(max_length=MAX_RULE_FILES)] = ()
    settings: Annotated[dict[SettingName, SettingValue], Meta(max_length=MAX_SECTION_SETTINGS)] = field(
        default_factory=dict
    )
    home_net: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=MAX_ALLOWED)] = ()
    detectors: Detectors = field(default_factory=Detectors)
    scan: Scan = field(default_factory=Scan)
    flood: Flood = field(default_factory=Flood)
    flow_events: FlowEvents = FlowEvents.ANSWERED
    allow: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(max_length=MAX_ALLOWED)] = ()
    ban_s: Annotated[int, Meta(ge=1, le=2_592_000)] = 600  # to 30 days
    respond: Respond = Respond.REPORT
    respond_severity: Annotated[int, Meta(ge=0, le=255)] = 0  # of rules: 1 is worst, as in EVE; 0: never


class WatchSection(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ``[watch]`` section: files and folders whose changes are reported, and how often all are read again."""

    paths: Annotated[tuple[Annotated[str, Meta(pattern=r"^/[^\0]{0,4094}\Z")], ...], Meta(max_length=256)] = ()
    interval_s: Annotated[int, Meta(ge=1, le=604_800)] = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class SensorPlan:
    """What a valid section means: the memory number, prefixes never banned, the worker's configuration line.

    ``rules`` and ``settings`` are for the sensor with rules (``inspector.py``).
    """

    memory_bytes: int
    allow: tuple[Network, ...]
    config_json: str
    rules: tuple[Path, ...] = ()
    settings: tuple[Setting, ...] = ()


def plan_sensor(section: IdsSection, *, flow_events_per_s: int = LIVE_FLOW_EVENTS_PER_S) -> SensorPlan:
    """Return what the sensor is to run with, or raise ``ids.config.invalid`` naming the field.

    msgspec has checked each field's type and range; this checks what a type cannot say.
    """
    memory_bytes = parse_memory(section.memory or (RULES_MEMORY if section.rules else DEFAULT_MEMORY))
    if section.flood.low_per_s >= section.flood.high_per_s:
        raise ConfigInvalid("flood.low_per_s must be below flood.high_per_s", field="flood.low_per_s")
    document: dict[str, object] = {
        "memory_bytes": memory_bytes,
        **_plan_tally(section),
        "flow_events": section.flow_events.value,
        "flow_events_per_s": flow_events_per_s,
    }
    settings = _plan_settings(section)
    if needs_rules(section):
        document |= {"rules": list(section.rules), "settings": settings}
    return SensorPlan(
        memory_bytes=memory_bytes,
        allow=parse_prefixes(section.allow),
        config_json=json.dumps(document, separators=(",", ":")),
        rules=tuple(Path(name) for name in section.rules),
        settings=settings,
    )


def _plan_tally(section: IdsSection) -> dict[str, object]:
    """Return the marks of scans and floods as the tally reads them, alone or beside rules."""
    return {
        "scan": {name: getattr(section.scan, name) for name in Scan.__struct_fields__},
        "flood": {name: getattr(section.flood, name) for name in Flood.__struct_fields__},
    }


def needs_rules(section: IdsSection) -> bool:
    """Say whether the sensor with rules has to run: the one for scans and floods alone is smaller."""
    return bool(section.rules or section.settings or section.home_net or section.detectors != Detectors())


def _plan_settings(section: IdsSection) -> tuple[Setting, ...]:
    """Return the section as settings; what ``settings`` itself says wins."""
    planned: list[Setting] = [
        ("tidegate.detectors.scan", "yes" if section.detectors.scan else "no"),
        ("tidegate.detectors.flood", "yes" if section.detectors.flood else "no"),
        ("tidegate.flow-events", section.flow_events.value),
        ("detectors.config", json.dumps(_plan_tally(section), separators=(",", ":"))),
    ]
    if section.home_net:
        networks = parse_prefixes(section.home_net, field="home_net")
        planned.append(("vars.address-groups.HOME_NET", f"[{','.join(map(str, networks))}]"))
    return merge_settings(planned, section.settings.items())


def parse_prefixes(texts: tuple[str, ...], *, field: str = "allow") -> tuple[Network, ...]:
    """Return the prefixes of ``texts`` (a bare address is one), or raise ``ids.config.invalid``."""
    networks = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            raise ConfigInvalid(f"{field}: {error}", field=field) from error
    return tuple(networks)
