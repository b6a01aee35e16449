"""Ban addresses and prefixes in the kernel for a time, list and lift bans, bring them back after a reboot.

Touches: the sets of table ``inet tidegate_bans``; through ``banstore`` the journal of bans. No policy is compiled or
read for it. What a ban may not contain is read from the kernel's own lists of protected addresses.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, NoReturn

from tidegate.base.clock import Clock, SystemClock
from tidegate.base.errors import Rejected, TidegateError
from tidegate.firewall.banstore import Act, BanStore, Record
from tidegate.firewall.bantable import (
    BAN_LENGTHS,
    BAN_TABLE,
    Prefix,
    Ranges,
    gate_of,
    length_of,
    network_of,
    parse_ranges,
    plan_elements,
    plan_length,
    prefix_of,
    set_name,
    set_names,
)
from tidegate.firewall.errors import (
    BanAddress,
    BanDuration,
    BanFile,
    BanFull,
    BanLoopback,
    BanManagement,
    BanNever,
    BanTableMissing,
    KernelRefused,
    NotBanned,
)
from tidegate.firewall.netlink import (
    DELETE_ELEMENT,
    GET_ELEMENT,
    MAX_ELEMENTS_A_MESSAGE,
    NEW_ELEMENT,
    Link,
    Message,
    encode_elements,
    parse_elements,
)

if TYPE_CHECKING:
    from tidegate.firewall.nft import Nft
    from tidegate.firewall.peers import Address

MAX_BAN_S = 30 * 24 * 3600  # longer belongs into the policy, where somebody signs it
MAX_FEED = 100_000  # prefixes: ten times the feeds that are meant
ASK_AT_ONCE = 128  # elements asked for in one go: the answers, 120 bytes each, fit the socket's buffer many times
IMPORT_ELEMENTS = 2048  # of one transaction of ban_all; beside them may stand one prefix's MAX_ELEMENTS
LEARN_MS = 1000  # far above a tick of the kernel's clock
CHUNK_ELEMENTS = 8192  # of one transaction: half a megabyte of messages
_GROUPS = ("never", "managers")
_NO_SOURCES = {
    4: Ranges([(0, 0), (0x7F000000, 0x7FFFFFFF), (0xE0000000, 0xEFFFFFFF)]),  # this host, loopback, multicast
    6: Ranges([(0, 1), (0xFF << 120, (1 << 128) - 1)]),
}

Element = tuple[str, bytes]  # the set's name and the key in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """One element of the bans in force."""

    name: str
    key: bytes
    remaining_s: float

    @property
    def prefix(self) -> Prefix:
        """Everything that this bans."""
        return prefix_of(self.name, self.key)

    @property
    def address(self) -> Address:
        """The banned address, or the first one of the banned prefix."""
        return ip_address(self.key)

    def __str__(self) -> str:
        prefix = self.prefix
        return str(self.address if prefix.prefixlen == prefix.max_prefixlen else prefix)


class Bans:
    """The kernel's bans; keep one for many bans, made in the network namespace that it shall act on.

    Whom the policy protects is read from the kernel once; call ``refresh`` after a policy was applied or rolled back.
    A ban that slips through in between is harmless: the kernel's own lists stand before the drop. With a ``store``
    every change is noted there too; a failure to do so does not undo the ban and is kept in ``complaint``.
    """

    def __init__(
        self,
        _nft: Nft | None = None,  # bans needed it once
        *,
        link: Link | None = None,
        store: BanStore | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Raises ``firewall.kernel.no-nftables``, ``base.privilege.missing``."""
        self.link = link or Link()
        self.store = store
        self.complaint: TidegateError | None = None
        self._clock = clock or SystemClock()
        self._protected: dict[str, Ranges] | None = None
        self._renews: bool | None = None  # whether this kernel renews the time of an element that is there

    def ban(self, source: Address | Prefix | str, seconds: int) -> float:
        """Drop everything from ``source`` for ``seconds`` from now, running sessions too; return the seconds it lasts.

        A running ban that lasts longer stays as it is: a short ban that an attacker can bring upon himself must not
        end the long one of an operator. Lift it first to shorten it. All elements of a prefix are banned or none.

        Raises ``firewall.ban.address``, ``.prefix``, ``.loopback``, ``.never``, ``.management``, ``.duration``,
        ``.full``, ``.no-table``, ``firewall.netlink.refused``.
        """
        if not 1 <= seconds <= MAX_BAN_S:
            raise BanDuration(f"a ban of {seconds} s is out of range")
        prefix = parse_source(source)
        wanted = list(plan_elements(prefix))
        self._refuse_protected(prefix)
        try:
            running = self._extend(wanted, int(seconds))
        except KernelRefused as error:
            self._explain(error, str(prefix))
        return max(seconds, min(running.get(place, 0) for place in wanted) / 1000)

    def ban_all(self, prefixes: Iterable[Prefix], seconds: int) -> list[tuple[Prefix, Rejected]]:
        """Ban all of ``prefixes`` as ``ban`` would but for what may not be banned; return that, and why.

        Many prefixes go into one transaction. When one is refused, ``firewall.ban.full`` say, those before it are in
        force and those behind it are not. Raises what ``ban`` raises, but for what it returns.
        """
        if not 1 <= seconds <= MAX_BAN_S:
            raise BanDuration(f"a ban of {seconds} s is out of range")
        refused: list[tuple[Prefix, Rejected]] = []
        chunk: list[Element] = []
        try:
            for prefix in prefixes:
                try:
                    self._refuse_protected(prefix)
                    chunk += plan_elements(prefix)
                except Rejected as error:
                    refused.append((prefix, error))
                if len(chunk) >= IMPORT_ELEMENTS:
                    self._extend(chunk, seconds)
                    chunk = []
            self._extend(chunk, seconds)
        except KernelRefused as error:
            self._explain(error, "the rest")
        return refused

    def unban(self, source: Address | Prefix | str) -> None:
        """Lift the ban of ``source``; raises ``firewall.ban.not-banned``, ``.address``, ``.prefix``, ``.no-table``."""
        prefix = parse_source(source)
        there = list(self._ask(list(plan_elements(prefix))))
        if not there:
            self._require_table()
            raise NotBanned(f"{prefix} is not banned{self._hint(prefix)}", address=str(prefix))
        self._delete(there)
        self._note(Act.LIFT, there, 0)

    def clear(self) -> int:
        """Lift every ban and return how many elements there were; raises ``firewall.ban.no-table``."""
        self._require_table()
        count = 0
        for name in (*set_names(), "gate4", "gate6"):
            keys = [(name, key) for key, _, _ in self.link.elements(BAN_TABLE, name)]
            count += 0 if name.startswith("gate") else len(keys)
            self._delete(keys)
        if self.store is not None:
            self._append([Record(act=Act.CLEAR, name="", key=b"", noted_s=int(self._clock.now_s()), seconds=0)])
        return count

    def list_bans(self) -> list[Ban]:
        """Return the bans in force, by address; raises ``firewall.ban.no-table``."""
        return list(self.iterate_bans())

    def iterate_bans(self) -> Iterator[Ban]:
        """Yield the bans in force, by address; some 100 bytes of memory each. Raises ``firewall.ban.no-table``."""
        self._require_table()
        found = [(len(key), key, name, left_ms) for name in set_names() for key, left_ms, _ in self._live(name)]
        found.sort()
        last = None
        for _, key, name, left_ms in found:
            if (key, name) != last:  # a set that grows while the kernel lists it may name an element twice
                yield Ban(name=name, key=key, remaining_s=left_ms / 1000)
            last = key, name

    def refresh(self) -> None:
        """Read anew whom the policy protects; raises ``firewall.ban.no-table``."""
        self._require_table()
        self._protected = {
            f"{group}{version}": parse_ranges(
                self.link.elements(BAN_TABLE, f"{group}{version}"), bits=32 if version == 4 else 128
            )
            for group in _GROUPS
            for version in (4, 6)
        }

    def lift_protected(self) -> int:
        """Take out of the sets, after a policy changed, what the policy now protects; return how many elements.

        The kernel's lists spare these addresses already; this ends what the listing shows and the journal keeps.
        """
        self.refresh()
        lifted = 0
        for name in set_names():
            found = [(name, key) for key, _, _ in self._live(name) if self.protector(key, length_of(name, key))]
            self._delete(found)
            self._note(Act.LIFT, found, 0)
            lifted += len(found)
        return lifted

    def close(self) -> None:
        """Give the connection back and close the journal; harmless when repeated."""
        self.link.close()
        if self.store is not None:
            self.store.close()

    # -- the kernel's sets --------------------------------------------------------------------------------------------

    def _live(self, name: str) -> Iterator[tuple[bytes, int, int]]:
        try:
            yield from self.link.elements(BAN_TABLE, name)
        except KernelRefused as error:
            if error.fields["errno"] != errno.ENOENT:  # a table that an older version made lacks some sets
                raise

    def _ask(self, places: Sequence[Element]) -> dict[Element, int]:
        """Return the milliseconds left of those elements that are there."""
        left: dict[Element, int] = {}
        for start in range(0, len(places), ASK_AT_ONCE):
            part = places[start : start + ASK_AT_ONCE]
            requests = [encode_elements(GET_ELEMENT, BAN_TABLE, name, [(key, None)]) for name, key in part]
            for place, answer in zip(part, self.link.ask(requests), strict=True):
                if isinstance(answer, Message):
                    left.update((place, left_ms) for _, left_ms, _ in parse_elements(answer.body))
        return left

    def _extend(self, wanted: Sequence[Element], seconds: int) -> dict[Element, int]:
        """Have ``wanted`` last ``seconds`` or longer, and note it; return what was running before."""
        plan = list(dict.fromkeys([*(gate_of(key) for _, key in wanted), *wanted]))
        running = self._ask(plan)
        renew = [place for place in plan if running.get(place, 0) < seconds * 1000]
        self._put(renew, seconds * 1000, running)
        self._note(Act.BAN, set(wanted).intersection(renew), seconds)
        return running

    def _put(self, places: Sequence[Element], late_ms: int, running: dict[Element, int]) -> None:
        """Have the elements last ``late_ms`` from now, those that are there already (``running``) as well."""
        if not places:
            return
        adding = encode_places(NEW_ELEMENT, [(place, late_ms) for place in places])
        old = [place for place in places if place in running]
        if old and self._renews is None:
            self.link.commit(adding)
            adding = []
            if late_ms - running[old[0]] < LEARN_MS:
                return  # too little to see; nothing to learn, and nothing lost
            self._renews = self._ask(old[:1]).get(old[0], 0) > running[old[0]]
        if old and not self._renews:
            # Before Linux 6.12 an "add" leaves the time of what is there. Deleted and added in one transaction it
            # counts twice against the set's size for a moment; where that is too much, there is a gap between the two.
            again = encode_places(NEW_ELEMENT, [(place, late_ms) for place in old])
            deleting = encode_places(DELETE_ELEMENT, [(place, None) for place in old])
            try:
                self.link.commit([*deleting, *again])
            except KernelRefused as error:
                if error.fields["errno"] != errno.ENFILE:
                    raise
                self.link.commit(deleting)
                self.link.commit(again)
        if adding:
            self.link.commit(adding)

    def _delete(self, places: Sequence[Element]) -> None:
        for start in range(0, len(places), CHUNK_ELEMENTS):
            part = places[start : start + CHUNK_ELEMENTS]
            try:
                self.link.commit(encode_places(DELETE_ELEMENT, [(place, None) for place in part]))
            except KernelRefused as error:
                if error.fields["errno"] != errno.ENOENT:
                    raise
                self._delete_singly(part)

    def _delete_singly(self, places: Sequence[Element]) -> None:
        """Delete what is there: some expired between the listing and now, which refuses a whole transaction."""
        for place in places:
            try:
                self.link.commit(encode_places(DELETE_ELEMENT, [(place, None)]))
            except KernelRefused as error:
                if error.fields["errno"] != errno.ENOENT:
                    raise

    # -- what may not be banned ---------------------------------------------------------------------------------------

    def protector(self, key: bytes, length: int) -> str | None:
        """Return ``never`` or ``managers`` when an address of the prefix is on that list of the policy."""
        if self._protected is None:
            self.refresh()
        version = 4 if len(key) == 4 else 6
        ranges = self._protected or {}
        return next((group for group in _GROUPS if ranges[f"{group}{version}"].has_any(key, length)), None)

    def _refuse_protected(self, prefix: Prefix) -> None:
        key, length = prefix.network_address.packed, prefix.prefixlen
        if _NO_SOURCES[prefix.version].has_any(key, length):
            raise BanLoopback(f"{prefix} holds what is no source of traffic from outside", address=str(prefix))
        group = self.protector(key, length)
        if group == "never":
            raise BanNever(f"the policy says never to ban {prefix} or an address inside", address=str(prefix))
        if group == "managers":
            raise BanManagement(f"{prefix} may manage this device, or an address inside may", address=str(prefix))

    # -- the journal --------------------------------------------------------------------------------------------------

    def _note(self, act: Act, places: Iterable[Element], seconds: int) -> None:
        if self.store is not None:
            now_s = int(self._clock.now_s())
            self._append(
                [Record(act=act, name=name, key=key, noted_s=now_s, seconds=int(seconds)) for name, key in places]
            )

    def _append(self, records: Sequence[Record]) -> None:
        if self.store is None or not records:
            return
        try:
            self.store.append(records)
            if self.store.is_due:
                self.store.start_compaction()
        except TidegateError as error:
            self.complaint = error

    # -- words --------------------------------------------------------------------------------------------------------

    def _hint(self, prefix: Prefix) -> str:
        """Return a remark when a wider prefix is banned, which is what has to be lifted."""
        wider = [
            prefix.supernet(new_prefix=length) for length in BAN_LENGTHS[prefix.version] if length < prefix.prefixlen
        ]
        places = [(set_name(one.version, one.prefixlen), one.network_address.packed) for one in wider]
        there = self._ask(places)
        return "".join(f"; {prefix_of(*place)} is" for place in places if place in there)

    def _require_table(self, error: Exception | None = None) -> None:
        if not self.link.has_table(BAN_TABLE):
            raise BanTableMissing("there is no table of bans") from error

    def _explain(self, error: KernelRefused, what: str) -> NoReturn:
        """Raise what the kernel's refusal of a ban means."""
        if error.fields["errno"] == errno.ENFILE:
            raise BanFull(f"no room to ban {what}: the set of bans is full", address=what) from error
        if error.fields["errno"] == errno.ENOENT:
            raise BanTableMissing("there is no table of bans, or it was made by an older version") from error
        raise error


def parse_address(address: Address | str) -> Address:
    """Return one address; an IPv4 address in IPv6 clothes becomes IPv4, which is what the wire carries.

    Raises ``firewall.ban.address``.
    """
    try:
        parsed = ip_address(address)
    except ValueError as error:
        raise BanAddress(f"{address!r} is no address", address=str(address)) from error
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            raise BanAddress(f"{address!r} has a zone", address=str(address))
        return parsed.ipv4_mapped or parsed
    return parsed


def parse_source(source: Address | Prefix | str) -> Prefix:
    """Return what to ban as a prefix, a single address as one of full length; IPv4 in IPv6 clothes becomes IPv4.

    Raises ``firewall.ban.address``, for a prefix with host bits too.
    """
    if not isinstance(source, IPv4Network | IPv6Network) and "/" not in str(source):
        return network_of(parse_address(source))
    try:
        prefix = ip_network(source)
    except ValueError as error:
        raise BanAddress(f"{source!r} is no prefix without host bits", address=str(source)) from error
    if isinstance(prefix, IPv6Network):
        if prefix.network_address.scope_id is not None:
            raise BanAddress(f"{source!r} has a zone", address=str(source))
        mapped = prefix.network_address.ipv4_mapped
        if mapped is not None and prefix.prefixlen >= 96:
            return IPv4Network((int(mapped), prefix.prefixlen - 96))
    return prefix


def parse_around(address: str, length: int) -> Prefix:
    """Return the prefix of ``length`` bits that ``address`` lies in; raises ``firewall.ban.address``."""
    parsed = parse_address(address)
    try:
        return ip_network((parsed, length), strict=False)
    except ValueError as error:
        raise BanAddress(f"{parsed} has no prefix of {length} bits", address=str(parsed)) from error


def parse_feed(text: str) -> Iterator[Prefix]:
    """Yield the prefixes of a list: one address or prefix a line; ``#`` or ``;`` begins a comment.

    Raises ``firewall.ban.file`` with the field ``line`` for the first line that is neither, or that cannot be banned
    for its length, and for more than ``MAX_FEED`` prefixes.
    """
    count = 0
    for number, line in enumerate(StringIO(text), start=1):
        word = line.partition("#")[0].partition(";")[0].strip()
        if not word:
            continue
        try:
            prefix = parse_source(word)
            plan_length(prefix)
        except Rejected as error:
            raise BanFile(f"line {number}: {error.message}", line=number) from error
        count += 1
        if count > MAX_FEED:
            raise BanFile(f"line {number}: more than {MAX_FEED} prefixes", line=number)
        yield prefix


def encode_places(kind: int, elements: Iterable[tuple[Element, int | None]]) -> list[bytes]:
    """Return the messages that carry out ``kind`` for the elements, in as few as their size allows."""
    by_set: dict[str, list[tuple[bytes, int | None]]] = {}
    for (name, key), left_ms in elements:
        by_set.setdefault(name, []).append((key, left_ms))
    return [
        encode_elements(kind, BAN_TABLE, name, members[start : start + MAX_ELEMENTS_A_MESSAGE])
        for name, members in by_set.items()
        for start in range(0, len(members), MAX_ELEMENTS_A_MESSAGE)
    ]
