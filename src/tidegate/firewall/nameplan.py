"""What DNS names stand for, when to ask again, and for how long an address holds. Pure: times are arguments.

An address holds for the time that the last answer which had it gave it, and a little longer (``slack_s``), so that a
slow answer leaves no hole. It is not taken away when the next answer lacks it, because programs go on using what they
were told for that long, too. While the resolver fails, what the last good answer had is kept ``grace_s`` beyond its
time; then the name stands for nobody: the rules that name it are closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, ip_address

from tidegate.firewall.dnswire import Answer, AnswerKind
from tidegate.firewall.peers import Address

MAX_NAMES = 1000  # of one policy, as services are
MAX_RESOLVERS = 3  # resolv.conf(5): MAXNS
# Per family, so 64 for a name. The kernel's set has room for 64 of a family: on kernels before 6.12 an element that is
# renewed counts twice for the length of a transaction.
MAX_ADDRESSES = 32
_FAMILIES = (4, 6)
Key = tuple[str, int]  # a name and an address family


class NameState(StrEnum):
    """What is known of a name."""

    UNKNOWN = "unknown"  # not answered yet
    GOOD = "good"
    STALE = "stale"  # the resolver fails; the last answer is kept, for a while
    EMPTY = "empty"  # no address: rules that name it are closed


@dataclass(frozen=True, slots=True, kw_only=True)
class NameLimits:
    """Bounds on what a resolver says, all in seconds."""

    min_ttl_s: int = 30  # a time of 0 or 1, as some content networks give, would mean a question a second
    max_ttl_s: int = 86_400  # an answer forged once does not last longer
    slack_s: int = 30  # more than one question takes with every resolver and retry
    grace_s: int = 3600  # of a resolver that fails
    retry_s: int = 5  # after a failure; doubled with each, up to max_retry_s
    max_retry_s: int = 300


@dataclass(slots=True, kw_only=True)
class _Entry:
    """One name in one family."""

    next_at: float
    held: dict[Address, float] = field(default_factory=dict)  # until when
    current: tuple[Address, ...] = ()  # of the last good answer
    good_until: float = 0.0
    failures: int = 0
    answered: bool = False
    asking: bool = False


class NamePlan:
    """The state of a set of names. Every ``now`` is of one monotonic clock, in seconds."""

    def __init__(self, limits: NameLimits | None = None) -> None:
        self._limits = limits or NameLimits()
        self._entries: dict[Key, _Entry] = {}

    def set_names(self, names: Iterable[str], now: float) -> None:
        """Have exactly ``names`` kept, up to ``MAX_NAMES``; what is known of those that stay is kept."""
        wanted = [(name, family) for name in sorted(set(names))[:MAX_NAMES] for family in _FAMILIES]
        self._entries = {key: self._entries.get(key) or _Entry(next_at=now) for key in wanted}

    def seed(self, name: str, addresses: Mapping[Address, int], now: float) -> None:
        """Take over what was known before: ``addresses`` with the seconds that they have left."""
        for address, left_s in addresses.items():
            entry = self._entries.get((name, address.version))
            if entry is not None and is_usable(address) and left_s > 0:
                until = now + min(left_s, self._limits.max_ttl_s)
                entry.held[address] = max(until, entry.held.get(address, 0.0))
        for family in _FAMILIES:
            self._bound((name, family), now)

    def names(self) -> tuple[str, ...]:
        """Return the names that are kept."""
        return tuple(sorted({name for name, _ in self._entries}))

    def take_due(self, now: float) -> list[Key]:
        """Return what is to be asked now; each is out until it is answered or has failed."""
        due = [key for key, entry in self._entries.items() if not entry.asking and entry.next_at <= now]
        for key in due:
            self._entries[key].asking = True
        return due

    def next_at(self) -> float | None:
        """Return when something is to be asked next; ``None`` when everything is out, or there is nothing."""
        return min((entry.next_at for entry in self._entries.values() if not entry.asking), default=None)

    def take_answer(self, key: Key, answer: Answer, now: float) -> None:
        """Note an answer; ``FAILED`` and ``TRUNCATED`` count as a failure."""
        entry = self._entries.get(key)
        if entry is None:
            return  # the policy does not name it any more
        if answer.kind not in (AnswerKind.FOUND, AnswerKind.NOTHING):
            self.take_failure(key, now)
            return
        entry.asking, entry.answered, entry.failures = False, True, 0
        usable = {one: self._clamp(ttl_s) for one, ttl_s in answer.addresses.items() if is_usable(one)}
        # Resolvers turn the order round; the longest holding ones are the same every time.
        kept = sorted(usable, key=lambda one: (-usable[one], one.packed))[:MAX_ADDRESSES]
        ttl_s = min((usable[one] for one in kept), default=self._clamp(answer.ttl_s))
        for one in kept:
            entry.held[one] = max(now + usable[one] + self._limits.slack_s, entry.held.get(one, 0.0))
        entry.current, entry.good_until = tuple(kept), now + ttl_s
        entry.next_at = now + 0.8 * ttl_s  # within its time, with room for a retry
        self._bound(key, now)

    def take_failure(self, key: Key, now: float) -> None:
        """Note that no resolver answered: keep the last good answer, but not beyond its grace."""
        entry = self._entries.get(key)
        if entry is None:
            return
        entry.asking = False
        entry.failures += 1
        limits = self._limits
        wait_s = min(limits.retry_s * 2 ** min(entry.failures - 1, 16), limits.max_retry_s)
        entry.next_at = now + wait_s
        # Never far beyond the next try, so that addresses lapse soon when nobody keeps them any more.
        until = min(entry.good_until + limits.grace_s, now + wait_s + limits.slack_s)
        for one in entry.current:
            if until > now:
                entry.held[one] = max(until, entry.held.get(one, 0.0))

    def held(self, name: str, now: float) -> dict[Address, float]:
        """Return the addresses that ``name`` stands for now, each with the seconds that it has left."""
        return {
            one: until - now
            for family in _FAMILIES
            if (entry := self._entries.get((name, family))) is not None
            for one, until in entry.held.items()
            if until > now
        }

    def state(self, name: str, now: float) -> NameState:
        """Return what is known of ``name``."""
        entries = [entry for family in _FAMILIES if (entry := self._entries.get((name, family))) is not None]
        if not self.held(name, now):
            answered = any(entry.answered or entry.failures for entry in entries)
            return NameState.EMPTY if answered else NameState.UNKNOWN
        return NameState.STALE if any(entry.failures for entry in entries) else NameState.GOOD

    def wait_s(self, name: str, now: float) -> float:
        """Return in how many seconds ``name`` is asked for next."""
        entries = [entry for family in _FAMILIES if (entry := self._entries.get((name, family))) is not None]
        return max(0.0, min((entry.next_at for entry in entries), default=now) - now)

    def lapse_at(self, now: float) -> float | None:
        """Return when the next address ceases to hold."""
        ends = [until for entry in self._entries.values() for until in entry.held.values() if until > now]
        return min(ends, default=None)

    def _clamp(self, ttl_s: int) -> int:
        return max(self._limits.min_ttl_s, min(ttl_s, self._limits.max_ttl_s))

    def _bound(self, key: Key, now: float) -> None:
        """Forget what has lapsed, and the soonest to lapse where there are too many."""
        entry = self._entries.get(key)
        if entry is None:
            return
        left = sorted(
            ((until, one) for one, until in entry.held.items() if until > now),
            key=lambda item: (item[1] not in entry.current, -item[0], item[1].packed),
        )
        entry.held = {one: until for until, one in left[:MAX_ADDRESSES]}


def is_usable(address: Address) -> bool:
    """Return whether an address can be somebody else's: a name must not open a rule for this device's own loopback.

    Private addresses are taken: names of one's own network stand for them. docs/firewall-names.md has the risk.
    """
    return not (
        address.is_loopback
        or address.is_unspecified
        or address.is_multicast
        or (isinstance(address, IPv4Address) and address.packed[0] in (0, 255))
        or (not isinstance(address, IPv4Address) and address.ipv4_mapped is not None)
    )


def parse_resolvers(text: str) -> tuple[str, ...]:
    """Return the ``nameserver`` addresses of a resolv.conf(5), the first three; others and other lines are ignored."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                ip_address(words[1])
            except ValueError:
                continue
            found.append(words[1])
    return tuple(found[:MAX_RESOLVERS])
