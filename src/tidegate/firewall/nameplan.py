"""How long what a DNS name stands for is believed, and when to ask again. Pure; times are seconds of one clock.

An address that an answer names holds for its TTL, bounded at both ends. While no resolver answers it holds longer, to
the end of the grace; then it is gone: what cannot be resolved is closed. An answer that does not name it any more ends
it with its TTL.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

Address = IPv4Address | IPv6Address

FAMILIES = (4, 6)
MAX_ADDRESSES = 64  # of one name per family: the size of its set in the kernel (blocks.DNS_SET_SIZE)
MIN_TTL_S = 30.0  # shorter ones, down to 0, would have a device ask all day
MAX_TTL_S = 86_400.0  # a day; RFC 8767 §4 bounds a cache to a week, but a firewall opens what it believes
GRACE_S = 3_600.0  # one hour without any answer; RFC 8767 §5 lets caches serve stale data for one to three days
LINGER_S = 5.0  # a program that asked just before the TTL ended needs a moment to connect
NEGATIVE_TTL_S = 60.0  # a name without addresses is asked for again after that; RFC 2308 §5 allows up to hours
RETRY_FIRST_S, RETRY_MAX_S = 5.0, 60.0  # doubling from the one to the other while no resolver answers

_THIS_NETWORK = 0  # 0.0.0.0/8, RFC 1122 §3.2.1.3
_RESERVED_FROM = 240  # 240.0.0.0/4 and the broadcast address, RFC 1112 §4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of belief; other values than the defaults are for tests."""

    min_ttl_s: float = MIN_TTL_S
    max_ttl_s: float = MAX_TTL_S
    grace_s: float = GRACE_S
    linger_s: float = LINGER_S
    negative_ttl_s: float = NEGATIVE_TTL_S

    def clamp_ttl(self, ttl_s: float) -> float:
        """Return the TTL that counts."""
        return min(max(ttl_s, self.min_ttl_s), self.max_ttl_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a resolver says of one name in one family; no addresses: it says that there are none."""

    addresses: tuple[Address, ...] = ()
    ttl_s: int = 0
    left_out: int = 0  # addresses that are no hosts, or beyond MAX_ADDRESSES


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How long an address holds: by its TTL, and at the longest."""

    fresh_until_s: float
    gone_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NameState:
    """One name: its addresses, when to ask again, how many times in a row nobody answered."""

    name: str
    held: Mapping[Address, Held] = field(default_factory=dict)
    ask_at_s: float = 0.0
    failures: int = 0

    @property
    def wake_at_s(self) -> float:
        """When there is something to do: to ask, or to let an address go."""
        return min([self.ask_at_s, *(held.gone_at_s for held in self.held.values())])

    def seconds_left(self, now_s: float) -> dict[Address, float]:
        """Return for how long each address may stay in the kernel if nobody comes back to it."""
        return {
            address: held.gone_at_s - now_s
            for address, held in sorted(self.held.items(), key=lambda item: (item[0].version, int(item[0])))
            if held.gone_at_s > now_s
        }


def adopt(name: str, seconds_left: Mapping[Address, float], now_s: float, limits: Limits) -> NameState:
    """Return the state of a name whose set was filled before: nothing is believed longer for a restart."""
    longest_s = limits.max_ttl_s + limits.linger_s + limits.grace_s
    held = {}
    for address, left_s in seconds_left.items():
        gone_at_s = now_s + min(left_s, longest_s)
        held[address] = Held(fresh_until_s=gone_at_s - limits.grace_s, gone_at_s=gone_at_s)
    return NameState(name=name, held=_bounded(held), ask_at_s=now_s)


def take_answers(state: NameState, answers: Mapping[int, Answer | None], now_s: float, limits: Limits) -> NameState:
    """Return the state after both families were asked for; ``None``: no resolver gave a usable answer.

    A family without an answer keeps its addresses to the end of their grace; one with an answer keeps those that the
    answer does not name to the end of their TTL.
    """
    held = dict(state.held)
    next_s = []
    for family, answer in answers.items():
        if answer is None:
            continue
        next_s.append(limits.clamp_ttl(answer.ttl_s) if answer.addresses else limits.negative_ttl_s)
        held.update(_answered(held, family, answer, now_s, limits))
    held = {address: one for address, one in held.items() if one.gone_at_s > now_s}
    failed = not answers or None in answers.values()
    failures = state.failures + 1 if failed else 0
    if failed:
        next_s.append(min(RETRY_FIRST_S * 2 ** min(state.failures, 10), RETRY_MAX_S))
    return replace(state, held=_bounded(held), ask_at_s=now_s + min(next_s), failures=failures)


def expire(state: NameState, now_s: float) -> NameState:
    """Return the state without the addresses whose time is over."""
    return replace(state, held={address: one for address, one in state.held.items() if one.gone_at_s > now_s})


def pick_addresses(found: Iterable[Address], ttl_s: int) -> Answer:
    """Return the answer that holds the hosts among ``found``, the lowest ``MAX_ADDRESSES`` of them.

    The lowest, so that a server that rotates a long list does not have the set change with each answer.
    """
    seen = list(dict.fromkeys(found))
    hosts = sorted((address for address in seen if is_host(address)), key=int)
    kept = tuple(hosts[:MAX_ADDRESSES])
    return Answer(addresses=kept, ttl_s=ttl_s, left_out=len(seen) - len(kept))


def is_host(address: Address) -> bool:
    """Return whether a rule may be opened for the address because a DNS answer names it.

    Refused: loopback, unspecified, multicast, link-local, broadcast, reserved, and IPv6 addresses that stand for an
    IPv4 one. Private addresses are hosts: names of a plant's own DNS stand for them.
    """
    if address.is_loopback or address.is_unspecified or address.is_multicast or address.is_link_local:
        return False
    if isinstance(address, IPv4Address):
        return address.packed[0] != _THIS_NETWORK and address.packed[0] < _RESERVED_FROM
    return address.ipv4_mapped is None and int(address) >> 32 != 0  # ::/96 is RFC 4291 §2.5.5.1, deprecated


def parse_resolv_conf(text: str, limit: int) -> tuple[str, ...]:
    """Return the ``nameserver`` addresses of a resolv.conf(5), at most ``limit``; what is no address is left out."""
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and _is_address(words[1]):
            servers.append(words[1])
    return tuple(dict.fromkeys(servers))[:limit]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _answered(
    held: Mapping[Address, Held], family: int, answer: Answer, now_s: float, limits: Limits
) -> dict[Address, Held]:
    fresh_until_s = now_s + limits.clamp_ttl(answer.ttl_s) + limits.linger_s
    changed = {
        address: Held(fresh_until_s=one.fresh_until_s, gone_at_s=min(one.gone_at_s, one.fresh_until_s))
        for address, one in held.items()
        if address.version == family
    }
    for address in answer.addresses:
        changed[address] = Held(fresh_until_s=fresh_until_s, gone_at_s=fresh_until_s + limits.grace_s)
    return changed


def _bounded(held: Mapping[Address, Held]) -> dict[Address, Held]:
    """Return at most ``MAX_ADDRESSES`` of each family: those that hold longest."""
    kept: dict[Address, Held] = {}
    for family in FAMILIES:
        mine = [(address, one) for address, one in held.items() if address.version == family]
        mine.sort(key=lambda item: (-item[1].gone_at_s, int(item[0])))
        kept.update(mine[:MAX_ADDRESSES])
    return kept
