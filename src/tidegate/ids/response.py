"""What to do about an alert. Pure.

The rule, and why it is this one. Everything that the sensor's detectors count can be sent under somebody else's
address: SYNs, packets with odd flags, datagrams. A ban on such evidence alone would let a stranger on the same link
cut off any address he likes, at one packet each. So a source is banned only if all of this holds:

1. the alert is one of a detector of ours that begins or goes on (an ended one needs no answer), or of a signature rule
   whose severity is in ``respond_severity``; and the policy says ``ban`` (or ``lockdown``, which is decided alike: a
   stranger must not be able to lock the device down by a forged packet either);
2. it names a source: a flood is named after one only if that one sent at least half of it, else a ban would not help
   and would hit whoever was invented last. Nor is it the source whom somebody imitates: who is named by an alert about
   spoofing is the victim, and a rule may say itself (``target``) that it is the other end;
3. the packets came in: an alert about what this device sends is about this device;
4. the address is one that a host can have: not multicast, loopback, unspecified or broadcast;
5. the policy does not list it as never to be banned;
6. it has not, within ``PEER_MEMORY_S``, completed a handshake *and* exchanged data with us: only the real owner of
   an address can do that, so it is a peer whom somebody may be framing. It is reported; thresholds in the kernel
   hold it if it is hostile after all. In a TCP connection that proof comes with the attack itself: there, a peer is who
   had given it before this connection began. A sensor that cannot say who is a peer (``peer`` is absent) bans nobody.

What remains: an address that is no known peer can still be framed, for ``ban_s`` and no longer; addresses that matter
belong into ``allow``. And a hostile peer that talks normally first is reported but not banned by this rule.
"""

from __future__ import annotations

import functools
import ipaddress
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tidegate.ids.section import IdsSection, Network, Respond, parse_prefixes

IsOwn = Callable[[str], bool]

PEER_MEMORY_S = 3600  # a device's peers poll at least hourly; the sensor forgets them when its table is full


class Action(StrEnum):
    """What follows."""

    REPORT = "report"
    BAN = "ban"
    LOCKDOWN = "lockdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What to do about one alert, and the reason in words for the event log."""

    action: Action
    detector: str
    address: str | None
    duration_s: int  # 0 for a report
    until_s: float  # seconds since 1970; ``now_s`` for a report
    reason: str


def decide_response(
    eve_event: Mapping[str, object], section: IdsSection, now_s: float, is_own: IsOwn = lambda _: False
) -> Decision | None:
    """Return the decision about one EVE event, or ``None`` where duty 1 says that nothing follows.

    ``is_own`` says whether an address is this device's; only alerts that do not say their direction need it.

    The numbered duties stand in the module's docstring. Raises ``ids.config.invalid`` if ``section.allow`` is not
    valid (``plan_sensor`` would have refused it). Does not check whether the address is banned already: a repeated
    ban renews it.
    """
    alert, metadata = eve_event.get("alert"), eve_event.get("metadata")
    if eve_event.get("event_type") != "alert":
        return None
    if isinstance(metadata, Mapping) and "detector" in metadata:
        if metadata.get("state") not in ("start", "update"):  # 1
            return None
        detector, extent = str(metadata["detector"]), f"{metadata.get('count')} packets"
    elif isinstance(alert, Mapping) and _is_answered(alert, section):  # 1
        detector, extent = f"rule {alert.get('signature_id')}", str(alert.get("signature"))[:128]
    else:
        return None
    source = eve_event.get("src_ip")
    reason = _reason_to_spare(eve_event, section, is_own)
    if reason is not None:
        address = source if isinstance(source, str) else None
        return Decision(
            action=Action.REPORT, detector=detector, address=address, duration_s=0, until_s=now_s, reason=reason
        )
    return Decision(
        action=Action.BAN if section.respond is Respond.BAN else Action.LOCKDOWN,
        detector=detector,
        address=str(source),
        duration_s=section.ban_s,
        until_s=now_s + section.ban_s,
        reason=f"{detector}: {extent}",
    )


def _is_answered(alert: Mapping[str, object], section: IdsSection) -> bool:
    severity = alert.get("severity")
    return isinstance(severity, int) and 1 <= severity <= section.respond_severity


def _reason_to_spare(event: Mapping[str, object], section: IdsSection, is_own: IsOwn) -> str | None:
    """Return why the source must not be banned, or ``None``."""
    source, metadata = event.get("src_ip"), event.get("metadata")
    if not isinstance(metadata, Mapping):
        metadata = {}
    if section.respond is Respond.REPORT:  # 1
        return "the policy only reports"
    if not isinstance(source, str):  # 2
        return "no single source sent most of it"
    if str(metadata.get("detector")).startswith("spoof.") or _blames_other(event, source):  # 2
        return "the source is the victim"
    if metadata.get("direction") == "out" or ("direction" not in metadata and is_own(source)):  # 3
        return "this device is the sender"
    address = ipaddress.ip_address(source)
    if not _can_be_a_host(address):  # 4
        return "no host can have this address"
    if any(address in network for network in _allowed(section.allow)):  # 5
        return "the policy never bans this address"
    return _reason_of_peer(event, metadata)  # 6


def _reason_of_peer(event: Mapping[str, object], metadata: Mapping[str, object]) -> str | None:
    if "direction" in metadata:  # of the tally of scans and floods, which says it in its own alerts
        age_s, known_s = metadata.get("peer_age_s"), None
    else:
        peer = event.get("peer")
        if not isinstance(peer, Mapping):
            return "the sensor cannot say whether it is a genuine peer"
        age_s, known_s = peer.get("age_s"), peer.get("known_s")
    if not isinstance(age_s, int) or age_s > PEER_MEMORY_S:
        return None
    connection_s = _connection_s(event)
    if connection_s is not None and isinstance(known_s, int) and known_s <= connection_s:
        return None
    return f"a genuine peer {age_s} s ago: the packets may be somebody else's"


def _connection_s(event: Mapping[str, object]) -> int | None:
    """Return how long ago the alert's TCP connection began, rounded up; ``None`` where it is of none."""
    flow, moment = event.get("flow"), event.get("timestamp")
    if event.get("proto") != "TCP" or not isinstance(flow, Mapping):
        return None
    try:
        begun, now = datetime.fromisoformat(str(flow.get("start"))), datetime.fromisoformat(str(moment))
        return math.ceil((now - begun).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _blames_other(event: Mapping[str, object], source: str) -> bool:
    """Say whether the rule says itself who attacks, and it is not who sent the packet."""
    alert = event.get("alert")
    blamed = alert.get("source") if isinstance(alert, Mapping) else None
    return isinstance(blamed, Mapping) and blamed.get("ip") != source


def _can_be_a_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    broadcast = ipaddress.IPv4Address(0xFFFFFFFF)
    return not (address.is_multicast or address.is_loopback or address.is_unspecified or address == broadcast)


@functools.lru_cache(maxsize=8)
def _allowed(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return parse_prefixes(texts)
