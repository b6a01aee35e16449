"""What to do about an alert. Pure.

The rule, and why it is this one. Everything that the sensor's detectors count can be sent under somebody else's
address: SYNs, packets with odd flags, datagrams. A ban on such evidence alone would let a stranger on the same link
cut off any address he likes, at one packet each. So a source is banned only if all of this holds:

1. the alert is one of ours, begins or goes on (an ended one needs no answer), and the policy says ``ban`` (or
   ``lockdown``, which is decided alike: a stranger must not be able to lock the device down by a forged packet either);
2. it names a source: a flood is named after one only if that one sent at least half of it, else a ban would not help
   and would hit whoever was invented last;
3. the packets came in: an alert about what this device sends is about this device;
4. the address is one that a host can have: not multicast, loopback, unspecified or broadcast;
5. the policy does not list it as never to be banned;
6. it has not, within ``PEER_MEMORY_S``, completed a handshake *and* exchanged data with us: only the real owner of
   an address can do that, so it is a peer whom somebody may be framing. It is reported; thresholds in the kernel
   hold it if it is hostile after all.

What remains: an address that is no known peer can still be framed, for ``ban_s`` and no longer; addresses that matter
belong into ``allow``. And a hostile peer that talks normally first is reported but not banned by this rule.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tidegate.ids.section import IdsSection, Network, Respond, parse_prefixes

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


def decide_response(eve_event: Mapping[str, object], section: IdsSection, now_s: float) -> Decision | None:
    """Return the decision about one EVE event, or ``None`` where it is no alert of a detector that begins or goes on.

    The numbered duties stand in the module's docstring. Raises ``ids.config.invalid`` if ``section.allow`` is not
    valid (``plan_sensor`` would have refused it). Does not check whether the address is banned already: a repeated
    ban renews it.
    """
    metadata = eve_event.get("metadata")
    if eve_event.get("event_type") != "alert" or not isinstance(metadata, Mapping):
        return None
    if metadata.get("state") not in ("start", "update"):  # 1
        return None
    detector = str(metadata.get("detector"))
    source = eve_event.get("src_ip")
    reason = _reason_to_spare(source, metadata, section)
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
        reason=f"{detector}: {metadata.get('count')} packets",
    )


def _reason_to_spare(source: object, metadata: Mapping[str, object], section: IdsSection) -> str | None:
    """Return why the source must not be banned, or ``None``."""
    if section.respond is Respond.REPORT:  # 1
        return "the policy only reports"
    if not isinstance(source, str):  # 2
        return "no single source sent most of it"
    if metadata.get("direction") == "out":  # 3
        return "this device is the sender"
    address = ipaddress.ip_address(source)
    if not _can_be_a_host(address):  # 4
        return "no host can have this address"
    if any(address in network for network in _allowed(section.allow)):  # 5
        return "the policy never bans this address"
    age_s = metadata.get("peer_age_s")
    if isinstance(age_s, int) and age_s <= PEER_MEMORY_S:  # 6
        return f"a genuine peer {age_s} s ago: the packets may be somebody else's"
    return None


def _can_be_a_host(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    broadcast = ipaddress.IPv4Address(0xFFFFFFFF)
    return not (address.is_multicast or address.is_loopback or address.is_unspecified or address == broadcast)


@functools.lru_cache(maxsize=8)
def _allowed(texts: tuple[str, ...]) -> tuple[Network, ...]:
    return parse_prefixes(texts)
