"""The words that field rules may use for numbers, per protocol and key, with the ranges that the standards give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# Modbus Application Protocol V1.1b3, section 6
MODBUS_FUNCTIONS = {
    "read-coils": 1,
    "read-discrete-inputs": 2,
    "read-holding-registers": 3,
    "read-input-registers": 4,
    "write-single-coil": 5,
    "write-single-register": 6,
    "read-exception-status": 7,
    "diagnostics": 8,
    "get-comm-event-counter": 11,
    "get-comm-event-log": 12,
    "write-multiple-coils": 15,
    "write-multiple-registers": 16,
    "report-server-id": 17,
    "read-file-record": 20,
    "write-file-record": 21,
    "mask-write-register": 22,
    "read-write-multiple-registers": 23,
    "read-fifo-queue": 24,
    "encapsulated-interface-transport": 43,
}

# IEEE 1815-2012, table 4-2: what a master may send
DNP3_FUNCTIONS = {
    "confirm": 0,
    "read": 1,
    "write": 2,
    "select": 3,
    "operate": 4,
    "direct-operate": 5,
    "direct-operate-no-response": 6,
    "immediate-freeze": 7,
    "immediate-freeze-no-response": 8,
    "freeze-clear": 9,
    "freeze-clear-no-response": 10,
    "freeze-at-time": 11,
    "freeze-at-time-no-response": 12,
    "cold-restart": 13,
    "warm-restart": 14,
    "initialize-data": 15,
    "initialize-application": 16,
    "start-application": 17,
    "stop-application": 18,
    "save-configuration": 19,
    "enable-unsolicited": 20,
    "disable-unsolicited": 21,
    "assign-class": 22,
    "delay-measurement": 23,
    "record-current-time": 24,
    "open-file": 25,
    "close-file": 26,
    "delete-file": 27,
    "get-file-information": 28,
    "authenticate-file": 29,
    "abort-file": 30,
    "activate-configuration": 31,
    "authentication-request": 32,
    "authentication-request-no-response": 33,
}

# One number per BACnet message: the confirmed services, then blocks of 256 for each other kind.
BACNET_UNCONFIRMED, BACNET_BVLC, BACNET_NETWORK, BACNET_ANSWER = 0x100, 0x200, 0x300, 0x400
_CONFIRMED = {
    "acknowledge-alarm": 0,
    "confirmed-cov-notification": 1,
    "confirmed-event-notification": 2,
    "get-alarm-summary": 3,
    "get-enrollment-summary": 4,
    "subscribe-cov": 5,
    "atomic-read-file": 6,
    "atomic-write-file": 7,
    "add-list-element": 8,
    "remove-list-element": 9,
    "create-object": 10,
    "delete-object": 11,
    "read-property": 12,
    "read-property-multiple": 14,
    "write-property": 15,
    "write-property-multiple": 16,
    "device-communication-control": 17,
    "confirmed-private-transfer": 18,
    "confirmed-text-message": 19,
    "reinitialize-device": 20,
    "read-range": 26,
    "life-safety-operation": 27,
    "subscribe-cov-property": 28,
    "get-event-information": 29,
}
_UNCONFIRMED = {
    "i-am": 0,
    "i-have": 1,
    "unconfirmed-cov-notification": 2,
    "unconfirmed-event-notification": 3,
    "unconfirmed-private-transfer": 4,
    "unconfirmed-text-message": 5,
    "time-synchronization": 6,
    "who-has": 7,
    "who-is": 8,
    "utc-time-synchronization": 9,
    "write-group": 10,
}
_BVLC = {
    "bvlc-result": 0,
    "write-broadcast-distribution-table": 1,
    "read-broadcast-distribution-table": 2,
    "register-foreign-device": 5,
    "read-foreign-device-table": 6,
    "delete-foreign-device": 8,
}
_ANSWERS = {"simple-ack": 2, "complex-ack": 3, "segment-ack": 4, "error": 5, "reject": 6, "abort": 7}
BACNET_SERVICES = (
    _CONFIRMED
    | {name: BACNET_UNCONFIRMED + number for name, number in _UNCONFIRMED.items()}
    | {name: BACNET_BVLC + number for name, number in _BVLC.items()}
    | {name: BACNET_ANSWER + number for name, number in _ANSWERS.items()}
)
# "confirmed:15" and the like, for services without a name above
BACNET_PREFIXES = {
    "confirmed": 0,
    "unconfirmed": BACNET_UNCONFIRMED,
    "bvlc": BACNET_BVLC,
    "network": BACNET_NETWORK,
    "answer": BACNET_ANSWER,
}
BACNET_OBJECTS = {
    "analog-input": 0,
    "analog-output": 1,
    "analog-value": 2,
    "binary-input": 3,
    "binary-output": 4,
    "binary-value": 5,
    "calendar": 6,
    "command": 7,
    "device": 8,
    "event-enrollment": 9,
    "file": 10,
    "group": 11,
    "loop": 12,
    "multi-state-input": 13,
    "multi-state-output": 14,
    "notification-class": 15,
    "program": 16,
    "schedule": 17,
    "averaging": 18,
    "multi-state-value": 19,
    "trend-log": 20,
}
BACNET_PROPERTIES = {
    "all": 8,
    "description": 28,
    "high-limit": 45,
    "low-limit": 59,
    "max-pres-value": 65,
    "min-pres-value": 69,
    "object-identifier": 75,
    "object-list": 76,
    "object-name": 77,
    "object-type": 79,
    "optional": 80,
    "out-of-service": 81,
    "present-value": 85,
    "priority-array": 87,
    "reliability": 103,
    "relinquish-default": 104,
    "required": 105,
    "status-flags": 111,
    "units": 117,
}

MQTT_ACTIONS = {"connect": 1, "publish": 3, "subscribe": 8, "unsubscribe": 10, "auth": 15}  # packet types
COAP_METHODS = {"GET": 1, "POST": 2, "PUT": 3, "DELETE": 4, "FETCH": 5, "PATCH": 6, "IPATCH": 7}  # RFC 7252, RFC 8132
DNS_TYPES = {
    "A": 1,
    "NS": 2,
    "CNAME": 5,
    "SOA": 6,
    "NULL": 10,
    "PTR": 12,
    "MX": 15,
    "TXT": 16,
    "AAAA": 28,
    "SRV": 33,
    "NAPTR": 35,
    "DS": 43,
    "DNSKEY": 48,
    "TLSA": 52,
    "SVCB": 64,
    "HTTPS": 65,
    "IXFR": 251,
    "AXFR": 252,
    "ANY": 255,
    "CAA": 257,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """A key that takes numbers up to ``last``, rising ranges, and ``names``; ``prefixes`` open blocks of 256."""

    last: int
    names: Mapping[str, int] = field(default_factory=dict)
    prefixes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """A key that takes texts of the named form."""

    form: str


Key = Numbers | Texts

# What each protocol can be judged by: the order is the one that messages list.
KEYS: Mapping[str, Mapping[str, Key]] = {
    "modbus": {
        "units": Numbers(last=255),
        "functions": Numbers(last=127, names=MODBUS_FUNCTIONS),
        "registers": Numbers(last=0xFFFF),
        "values": Numbers(last=0xFFFF),
    },
    "dnp3": {
        "sources": Numbers(last=0xFFFF),
        "destinations": Numbers(last=0xFFFF),
        "functions": Numbers(last=128, names=DNP3_FUNCTIONS),
        "objects": Numbers(last=255),
    },
    "bacnet": {
        "services": Numbers(last=0x4FF, names=BACNET_SERVICES, prefixes=BACNET_PREFIXES),
        "objects": Numbers(last=1023, names=BACNET_OBJECTS),
        "properties": Numbers(last=4_194_303, names=BACNET_PROPERTIES),
    },
    "mqtt": {
        "actions": Numbers(last=15, names=MQTT_ACTIONS),
        "topics": Texts(form="topic"),
        "clients": Texts(form="client"),
    },
    "coap": {"methods": Numbers(last=31, names=COAP_METHODS), "paths": Texts(form="path")},
    "dns": {"names": Texts(form="name"), "types": Numbers(last=0xFFFF, names=DNS_TYPES)},
}
