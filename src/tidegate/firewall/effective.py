"""What the kernel holds of our tables, and its digest.

Touches: nftables, reading only.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from tidegate.firewall.compile import BAN_TABLE, TABLE
from tidegate.firewall.errors import Unsteady
from tidegate.firewall.link import LINK_TABLE
from tidegate.firewall.nft import Nft
from tidegate.firewall.snapshot import Listings, count_growing, digest_listings, fill_sets, find_names

MAX_READINGS = 8  # a table of thousands grows within milliseconds; somebody who changes ours all the time does not
_LISTS = ("never4", "never6", "managers4", "managers6")  # of the ban table: fixed by the policy


def effective_digest(nft: Nft | None = None, *, expected: str | None = None, loaded: str | None = None) -> str:
    """Return the SHA-256 (hex) of the ruleset in force in our tables.

    Without counters, thresholds' memory, bans and what DNS names stand for, so that it changes only when somebody
    changes the rules (or a device with layer-2 rules comes or goes). ``expected``, the digest, or ``loaded``, the text
    that was loaded, save a second reading where they hold.
    """
    return digest_listings(read_listings(nft or Nft.open(), expected=expected, loaded=loaded, with_names=False))


def read_listings(
    nft: Nft, *, expected: str | None = None, loaded: str | None = None, with_names: bool = True
) -> Listings:
    """Return our tables as the kernel lists them; sets of bans, which may be huge, without their elements.

    ``with_names`` adds what DNS names stand for, as a restore needs it. Raises ``firewall.kernel.unsteady``.

    Right after it was filled the kernel grows a hash table in the background, and whoever lists it meanwhile gets some
    elements twice and others not at all (seen on Linux 6.18 in one of a hundred listings). Hence the tables are read
    until two readings agree; unless no set can grow, or the first reading has the digest that is ``expected``, or all
    elements of the text that was ``loaded``, each once.
    """
    before: Listings | None = None
    for _ in range(MAX_READINGS):
        read = _read(nft, with_names=with_names)
        growing = count_growing("".join(filter(None, (read.policy, read.bans, read.link))))
        if not growing or (expected is not None and digest_listings(read) == expected):
            return read
        if loaded is not None and growing == count_growing(loaded):
            return read
        if before is not None and (read.policy, read.bans, read.link) == (before.policy, before.bans, before.link):
            return read
        before = read
    raise Unsteady(f"{MAX_READINGS} readings of the kernel's tables disagree")


def _read(nft: Nft, *, with_names: bool) -> Listings:
    policy = nft.list_table(TABLE) if nft.has_table(TABLE) else None
    link = nft.list_table(LINK_TABLE, family="netdev") if nft.has_table(LINK_TABLE, family="netdev") else None
    bans = _read_bans(nft) if nft.has_table(BAN_TABLE) else None
    names = {}
    if policy is not None and with_names:
        names = {name: nft.list_set(TABLE, name, stateless=False) for name in find_names(policy)}
    return Listings(policy=policy, bans=bans, link=link, names=names)


class Reading:
    """The kernel's listings, being read while the caller plans: libnftables works without the interpreter's lock."""

    def __init__(self, nft: Nft, expected: str | None) -> None:
        self._nft, self._expected = nft, expected
        self._listings: Listings | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._read, name="firewall listing", daemon=True)

    def result(self) -> Listings:
        """Return what ``read_listings`` returned, or raise what it raised."""
        self._thread.join()
        if self._listings is None:
            raise self._error or RuntimeError("nothing was read")
        return self._listings

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.join()

    def _read(self) -> None:
        try:
            self._listings = read_listings(self._nft, expected=self._expected)
        except BaseException as error:  # noqa: BLE001 - raised again by result, in the thread that asks
            self._error = error


def _read_bans(nft: Nft) -> str:
    outline = nft.list_outline(BAN_TABLE)
    listings = {name: nft.list_set(BAN_TABLE, name) for name in _LISTS if f"\tset {name} {{" in outline}
    return fill_sets(outline, listings)
