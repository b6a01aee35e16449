"""Settings by their names in Suricata's configuration: how a suricata.yaml becomes a list of names and texts. Pure.

The sensor takes settings as pairs of texts. A configuration file becomes such pairs in one way, which is described here
and in docs/formats/ids-settings.md:

1. A mapping's keys are joined by dots: ``stream.reassembly.depth=1mb``. A key without a value has the empty text.
2. A list of texts is joined by commas: ``action-order=pass,drop``; below ``vars`` in brackets, as rules write it.
3. A list of named things (one key each, with settings or nothing below) drops the position and keeps the name:
   ``outputs.eve-log.types.alert.payload=yes``. The second of the same name is called ``NAME#2``.
4. Any other list keeps positions, from 0: ``af-packet.0.interface=eth0``.
5. Which event types an EVE output writes, in their order: ``outputs.eve-log.enabled-types=alert,flow``; a type with
   ``enabled: no`` is not among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from tidegate.ids.errors import ConfigInvalid, SettingsInvalid

Setting: TypeAlias = tuple[str, str]

# The bounds of rust/sensor/src/config.rs and budget.rs; a test compares the defaults.
MIN_MEMORY_BYTES = 2 << 20
MAX_MEMORY_BYTES = 1 << 30
DEFAULT_MEMORY = "8MiB"  # scans and floods; with the agent below 60 MB in all (bench/agent.py)
RULES_MEMORY = "24MiB"  # some 5,000 rules, and the streams and protocol states that they look at
_MEMORY = re.compile(r"([1-9][0-9]{0,9})(KiB|MiB)")
_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20}


MAX_SETTINGS = 20_000  # Suricata's own file has some 900; what YAML's aliases could multiply ends here
MAX_DEPTH = 32  # Suricata's own file has 9
MAX_NAME = 512  # names are made of keys; the longest known has 90 characters
MAX_VALUE = 65_536  # a HOME_NET of 3,000 prefixes

_NO = frozenset({"no", "false", "off", "0"})
_EVE_TYPES = re.compile(r"outputs\.eve-log(#[0-9]+)?\.types\Z")
_POSITION = re.compile(r"(?<=\.)(outputs|types)\.[0-9]+\.|\A(outputs|types)\.[0-9]+\.")

_PRIVATE = "[192.168.0.0/16,10.0.0.0/8,172.16.0.0/12]"  # as Suricata's own configuration says
DEFAULTS: tuple[Setting, ...] = (
    ("vars.address-groups.HOME_NET", _PRIVATE),
    ("vars.address-groups.EXTERNAL_NET", "!$HOME_NET"),
    *(
        (f"vars.address-groups.{name}", "$HOME_NET")
        for name in (
            *("HTTP_SERVERS", "SMTP_SERVERS", "SQL_SERVERS", "DNS_SERVERS", "TELNET_SERVERS"),
            *("AIM_SERVERS", "DC_SERVERS", "DNP3_SERVER", "DNP3_CLIENT", "MODBUS_CLIENT", "MODBUS_SERVER"),
            *("ENIP_CLIENT", "ENIP_SERVER"),
        )
    ),
    ("vars.port-groups.HTTP_PORTS", "80"),
    ("vars.port-groups.SHELLCODE_PORTS", "!80"),
    ("vars.port-groups.ORACLE_PORTS", "1521"),
    ("vars.port-groups.SSH_PORTS", "22"),
    ("vars.port-groups.DNP3_PORTS", "20000"),
    ("vars.port-groups.MODBUS_PORTS", "502"),
    ("vars.port-groups.FILE_DATA_PORTS", "[$HTTP_PORTS,110,143]"),
    ("vars.port-groups.FTP_PORTS", "21"),
    ("vars.port-groups.GENEVE_PORTS", "6081"),
    ("vars.port-groups.VXLAN_PORTS", "4789"),
    ("vars.port-groups.TEREDO_PORTS", "3544"),
    ("vars.port-groups.SIP_PORTS", "[5060, 5061]"),
)

# What an EVE output writes where no configuration says it: as Suricata's own file, and the protocols of things and of
# industry besides.
_EVE_DEFAULT_TYPES = (
    "alert anomaly http dns tls files smtp websocket ftp rdp nfs smb tftp ike dcerpc krb5 bittorrent-dht snmp rfb sip "
    "quic ldap pop3 dhcp ssh mqtt http2 doh2 mdns llmnr modbus dnp3 enip coap bacnet s7comm iec104 opcua stats flow"
)
DEFAULT_OUTPUTS: tuple[Setting, ...] = (
    ("outputs.eve-log.enabled", "yes"),
    ("outputs.eve-log.enabled-types", ",".join(_EVE_DEFAULT_TYPES.split())),
    ("outputs.eve-log.types.alert.tagged-packets", "yes"),
    ("outputs.eve-log.types.anomaly.enabled", "yes"),
    ("outputs.eve-log.types.anomaly.types.decode", "no"),
    ("outputs.eve-log.types.anomaly.types.stream", "no"),
    ("outputs.eve-log.types.anomaly.types.applayer", "yes"),
    ("outputs.eve-log.types.http.extended", "yes"),
    ("outputs.eve-log.types.tls.extended", "yes"),
    ("outputs.eve-log.types.dhcp.extended", "no"),
)


def with_defaults(settings: Sequence[Setting]) -> tuple[Setting, ...]:
    """Return settings behind the built-in variables and, unless they choose event types, the built-in output."""
    chosen = any(name == "outputs.eve-log.enabled-types" for name, _ in settings)
    return merge_settings(DEFAULTS, () if chosen else DEFAULT_OUTPUTS, settings)


def parse_setting(text: str) -> Setting:
    """Return ``"NAME=VALUE"`` as a pair, without positions in lists of outputs and types (rule 3).

    Raises ``ids.settings.invalid`` for what has no name.
    """
    name, _, value = text.partition("=")
    name = _POSITION.sub(lambda found: f"{found[1] or found[2]}.", name.strip())
    if not name or len(name) > MAX_NAME or len(value) > MAX_VALUE or any(letter.isspace() for letter in name):
        raise SettingsInvalid(f"{text[:80]!r} is no setting; write NAME=VALUE", setting=text[:80])
    return name, value.strip()


def merge_settings(*groups: Iterable[Setting]) -> tuple[Setting, ...]:
    """Return all settings, each name once: the last wins, in the place of the first."""
    merged: dict[str, str] = {}
    for group in groups:
        merged.update(group)
    return tuple(merged.items())


def flatten_config(document: object) -> tuple[Setting, ...]:
    """Return a configuration document as settings, by the five rules of this module.

    ``document`` has mappings, lists, texts and None, as a YAML reader without types gives them. Raises
    ``ids.settings.invalid`` for anything else, and beyond ``MAX_SETTINGS`` and ``MAX_DEPTH``.
    """
    if document is None or document == "":  # a file of comments
        return ()
    if not isinstance(document, Mapping):
        raise SettingsInvalid("the configuration is no mapping of names to values")
    settings: list[Setting] = []
    for setting in _flatten("", document, 0):
        settings.append(setting)
        if len(settings) > MAX_SETTINGS:
            raise SettingsInvalid(f"the configuration has more than {MAX_SETTINGS} settings", limit=MAX_SETTINGS)
    return merge_settings(settings)


def _flatten(name: str, value: object, depth: int) -> Iterator[Setting]:
    if depth > MAX_DEPTH or len(name) > MAX_NAME:
        raise SettingsInvalid(f"{name[:80]!r} is nested deeper than {MAX_DEPTH}", limit=MAX_DEPTH)
    if isinstance(value, Mapping):
        for key, below in value.items():
            if not isinstance(key, str):
                raise SettingsInvalid(f"a key below {name[:80]!r} is no text", setting=name[:80])
            yield from _flatten(f"{name}.{key}" if name else key, below, depth + 1)
    elif isinstance(value, list):
        yield from _flatten_list(name, value, depth)
    elif value is None or isinstance(value, str):
        yield name, (value or "")[:MAX_VALUE]
    else:
        raise SettingsInvalid(f"{name[:80]!r} is neither text, list nor mapping", setting=name[:80])


def _flatten_list(name: str, items: list[object], depth: int) -> Iterator[Setting]:
    is_types = _EVE_TYPES.fullmatch(name) is not None
    if all(isinstance(item, str) for item in items) and not is_types:
        joined = ",".join(map(str, items))
        yield name, f"[{joined}]" if name.startswith("vars.") else joined
        return
    seen: dict[str, int] = {}
    enabled = []
    for position, item in enumerate(items):
        own_name, below = _named(item)
        if own_name is None:
            yield from _flatten(f"{name}.{position}", item, depth + 1)
            continue
        seen[own_name] = seen.get(own_name, 0) + 1
        label = own_name if seen[own_name] == 1 else f"{own_name}#{seen[own_name]}"
        if below is not None:
            yield from _flatten(f"{name}.{label}", below, depth + 1)
        if not isinstance(below, Mapping) or str(below.get("enabled", "yes")).lower() not in _NO:
            enabled.append(own_name)
    if is_types:
        yield f"{name.removesuffix('types')}enabled-types", ",".join(dict.fromkeys(enabled))


def _named(item: object) -> tuple[str | None, object]:
    """Return an item's name and what stands below it, or no name where it has none."""
    if isinstance(item, str):
        return item, None
    if isinstance(item, Mapping) and len(item) == 1:
        ((key, below),) = item.items()
        if isinstance(key, str) and (not below or isinstance(below, Mapping)):
            return key, below or None
    return None, None


def parse_memory(text: str) -> int:
    """Return the bytes of ``"24MiB"`` or ``"6144KiB"``, or raise ``ids.config.invalid``."""
    match = _MEMORY.fullmatch(text)
    size_bytes = int(match[1]) * _UNITS[match[2]] if match else 0
    if not MIN_MEMORY_BYTES <= size_bytes <= MAX_MEMORY_BYTES:
        raise ConfigInvalid(f"memory must be from 2MiB to 1024MiB, as in '24MiB', not {text!r}", field="memory")
    return size_bytes
