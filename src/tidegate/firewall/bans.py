"""Ban addresses in the kernel for a time, list and lift bans.

Touches: the sets of table ``inet tidegate_bans``. One transaction a call; no policy is compiled or read for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from tidegate.firewall.compile import BAN_TABLE
from tidegate.firewall.errors import (
    BanAddress,
    BanDuration,
    BanFull,
    BanLoopback,
    BanManagement,
    BanNever,
    BanTableMissing,
    NftRefused,
    NotBanned,
)
from tidegate.firewall.model import Address, PeerGroup, parse_peers
from tidegate.firewall.nft import Nft
from tidegate.firewall.snapshot import parse_listing

MAX_BAN_S = 30 * 24 * 3600  # longer belongs into the policy, where somebody signs it
_UNITS_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d+)(ms|[dhms])")
_EXPIRES = re.compile(r"(?P<address>\S+)(?: timeout (?P<timeout>\S+))?(?: expires (?P<expires>\S+))?\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """One ban in force."""

    address: Address
    remaining_s: float


class Bans:
    """The kernel's bans; keep one for many bans.

    Whom the policy protects is read from the kernel once; call ``refresh`` after a policy was applied or rolled back.
    A ban that slips through in between is harmless: the kernel's own lists stand before the drop.
    """

    def __init__(self, nft: Nft | None = None) -> None:
        self._nft = nft or Nft.open()
        self._never: PeerGroup | None = None
        self._managers = PeerGroup()

    def ban(self, address: Address | str, seconds: int) -> None:
        """Drop everything from ``address`` for ``seconds`` from now, running sessions too; a ban in force is renewed.

        Raises ``firewall.ban.address``, ``.loopback``, ``.never``, ``.management``, ``.duration``, ``.full``,
        ``.no-table``.
        """
        if not 1 <= seconds <= MAX_BAN_S:
            raise BanDuration(f"a ban of {seconds} s is out of range")
        source = parse_address(address)
        self._refuse_protected(source)
        where = _element_prefix(source)
        # A plain "add" leaves the timeout of an element that is there; so: make sure it is, delete it, add it anew.
        text = f"add {where} }}\ndelete {where} }}\nadd {where} timeout {int(seconds)}s }}\n"
        try:
            self._nft.run(text)
        except NftRefused as error:
            self._explain(error, source)

    def unban(self, address: Address | str) -> None:
        """Lift the ban of ``address``; raises ``firewall.ban.not-banned``, ``firewall.ban.address``, ``.no-table``."""
        source = parse_address(address)
        try:
            self._nft.run(f"delete {_element_prefix(source)} }}\n")
        except NftRefused as error:
            self._require_table(error)
            raise NotBanned(f"{source} is not banned", address=str(source)) from error

    def list_bans(self) -> list[Ban]:
        """Return the bans in force, by address; raises ``firewall.ban.no-table``."""
        listing = self._nft.list_table(BAN_TABLE, stateless=False)
        if listing is None:
            raise BanTableMissing("there is no table of bans")
        found = []
        for thing in parse_listing(listing):
            if thing.name in ("banned4", "banned6"):
                found += [parse_ban(element) for element in thing.elements]
        return sorted(found, key=lambda ban: (ban.address.version, int(ban.address)))

    def refresh(self) -> None:
        """Read anew whom the policy protects; raises ``firewall.ban.no-table``."""
        listing = self._nft.list_table(BAN_TABLE)
        if listing is None:
            raise BanTableMissing("there is no table of bans")
        elements = {thing.name: thing.elements for thing in parse_listing(listing)}
        self._never = _group(elements, "never")
        self._managers = _group(elements, "managers")

    def _refuse_protected(self, source: Address) -> None:
        if self._never is None:
            self.refresh()
        if source.is_loopback or source.is_unspecified or source.is_multicast:
            raise BanLoopback(f"{source} is no source of traffic from outside", address=str(source))
        if self._never is not None and self._never.has(source):
            raise BanNever(f"the policy says never to ban {source}", address=str(source))
        if self._managers.has(source):
            raise BanManagement(f"{source} may manage this device", address=str(source))

    def _explain(self, error: NftRefused, source: Address) -> None:
        """Raise what nft's refusal of a ban means."""
        self._require_table(error)
        # ENFILE; the words are strerror's in the C locale, which neither we nor nft change.
        if "Too many open files" in error.message:
            raise BanFull(f"no room to ban {source}: the set of bans is full", address=str(source)) from error
        raise error

    def _require_table(self, error: NftRefused) -> None:
        if self._nft.list_table(BAN_TABLE) is None:
            raise BanTableMissing("there is no table of bans") from error


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


def parse_ban(element: str) -> Ban:
    """Return the ban that one listed element stands for (``192.0.2.1 timeout 10m expires 9m59s980ms``)."""
    match = _EXPIRES.match(element)
    if match is None:
        raise ValueError(f"nft listed an element of unknown form: {element!r}")
    parts = _DURATION.findall(match["expires"] or match["timeout"] or "")
    return Ban(
        address=ip_address(match["address"]), remaining_s=sum(int(number) * _UNITS_S[unit] for number, unit in parts)
    )


def _element_prefix(source: Address) -> str:
    family = 4 if isinstance(source, IPv4Address) else 6
    return f"element inet {BAN_TABLE} banned{family} {{ {source}"


def _group(elements: dict[str, tuple[str, ...]], name: str) -> PeerGroup:
    return parse_peers((*elements.get(f"{name}4", ()), *elements.get(f"{name}6", ())), f"set {name}")
