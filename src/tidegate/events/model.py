"""The event model: one OCSF 1.8.0 record an event, with our identity beside it. Pure.

``catalogue.py`` has a typed constructor for every kind of event; this file knows none of them.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from tidegate import __version__
from tidegate.events.errors import EventInvalid, IdentityInvalid

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"

SCHEMA_VERSION = "1.8.0"  # the newest that the packaged validators know (docs/formats/events.md)
MAX_LINE_BYTES = 16_384  # two RFC 5425 minimum messages of 8 KiB; larger evidence belongs into a file
_IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_DEVICE_TYPE_IOT = 7  # OCSF device.type_id
_encoder = msgspec.json.Encoder(order="sorted")


class OcsfClass(enum.IntEnum):
    """The OCSF classes that we use; their category is the number without its last three digits."""

    FILE_SYSTEM_ACTIVITY = 1001
    EVENT_LOG_ACTIVITY = 1008
    DETECTION_FINDING = 2004
    AUTHORIZE_SESSION = 3003
    NETWORK_ACTIVITY = 4001
    DEVICE_CONFIG_STATE_CHANGE = 5019
    APPLICATION_LIFECYCLE = 6002
    API_ACTIVITY = 6003
    NETWORK_REMEDIATION_ACTIVITY = 7004


class Severity(enum.IntEnum):
    """OCSF severities. From ``MEDIUM`` on somebody has to act: such an event is an alert and durable at once."""

    INFORMATIONAL = 1
    LOW = 2
    MEDIUM = 3
    HIGH = 4
    CRITICAL = 5
    FATAL = 6


class Outcome(enum.IntEnum):
    """OCSF ``status_id``."""

    UNKNOWN = 0
    SUCCESS = 1
    FAILURE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class EventId:
    """The identity of an event for ever: which device, which of its boots, which one in that boot (from 1)."""

    device: str
    boot: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.device}/{self.boot}/{self.sequence}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What happened, before it has a place in the log.

    ``kind`` is our permanent name (``boot.stage.refused``), ``code`` the error code of a refusal, ``attributes`` the
    class's own OCSF attributes, ``data`` what OCSF has no place for. Nothing in it may be secret.
    """

    kind: str
    ocsf_class: OcsfClass
    activity: int
    severity: Severity
    message: str
    outcome: Outcome = Outcome.SUCCESS
    code: str | None = None
    attributes: Mapping[str, Json] = field(default_factory=dict)
    data: Mapping[str, Json] = field(default_factory=dict)
    profiles: tuple[str, ...] = ("host",)
    occurred_ms: int | None = None  # when, if another time than that of writing it down

    @property
    def is_alert(self) -> bool:
        """Return whether somebody has to act on it."""
        return self.severity >= Severity.MEDIUM


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What ties a line to the one before: its SHA-256 and, on the first line of a boot, the boot before."""

    prev: bytes
    previous_boot: str | None = None
    previous_head: bytes | None = None


def check_identifier(text: str) -> str:
    """Return ``text`` if it may name a device or a boot, else raise ``events.identity.invalid``."""
    if not _IDENTIFIER.fullmatch(text):
        raise IdentityInvalid(f"{text!r} is no device or boot identifier")
    return text


def encode_line(event: Event, *, identity: EventId, link: Link, time_ms: int) -> bytes:
    """Return the event as one line of canonical JSON without its newline, valid against OCSF 1.8.0.

    Canonical: UTF-8, members sorted by name, no spaces. Raises ``events.event.invalid`` for a value outside JSON or
    a line over 16 KiB.
    """
    place: dict[str, Json] = {
        "device": identity.device,
        "boot": identity.boot,
        "seq": identity.sequence,
        "prev": link.prev.hex(),
        "kind": event.kind,
    }
    if event.data:
        place["data"] = dict(event.data)
    if link.previous_head is not None:
        place["previous"] = {"boot": link.previous_boot, "head": link.previous_head.hex()}
    document: dict[str, Json] = {
        **event.attributes,
        "activity_id": event.activity,
        "category_uid": event.ocsf_class // 1000,
        "class_uid": int(event.ocsf_class),
        "type_uid": event.ocsf_class * 100 + event.activity,
        "time": time_ms if event.occurred_ms is None else event.occurred_ms,
        "severity_id": int(event.severity),
        "message": event.message,
        "device": {"uid": identity.device, "type_id": _DEVICE_TYPE_IOT, "boot_uid": identity.boot},
        "metadata": {
            "version": SCHEMA_VERSION,
            "product": {"name": "Tidegate", "vendor_name": "Tidegate", "version": __version__},
            "uid": str(identity),
            "event_code": event.kind,
            "logged_time": time_ms,
            "sequence": identity.sequence,
            "profiles": list(event.profiles),
        },
        "unmapped": {"tidegate": place},
    }
    if event.ocsf_class is not OcsfClass.DETECTION_FINDING:  # a finding's status is its consumer's progress
        document["status_id"] = int(event.outcome)
    if event.code is not None:
        document["status_code"] = event.code
    return _encode(document)


def encode_canonical(document: Mapping[str, Json]) -> bytes:
    """Return ``document`` as canonical JSON: UTF-8, members sorted by name, no spaces."""
    return _encoder.encode(document)


def _encode(document: Mapping[str, Json]) -> bytes:
    try:
        line = _encoder.encode(document)
    except (TypeError, ValueError) as error:  # UnicodeEncodeError of a lone surrogate is a ValueError
        raise EventInvalid(f"the event holds a value that JSON has no place for: {error}") from error
    if len(line) > MAX_LINE_BYTES:
        raise EventInvalid(f"the event has {len(line)} bytes, over {MAX_LINE_BYTES}", size=len(line))
    return line
