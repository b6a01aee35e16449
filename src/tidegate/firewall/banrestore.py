"""Bring the bans of the journal back into the kernel, as at boot.

Touches: the sets of table ``inet tidegate_bans``; reads ``bans.journal``.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tidegate.firewall.bans import CHUNK_ELEMENTS, Bans, Element, encode_places
from tidegate.firewall.banstore import BanStore, Newest
from tidegate.firewall.bantable import BAN_TABLE, gate_of, length_of, set_names
from tidegate.firewall.errors import BanTableMissing, KernelRefused
from tidegate.firewall.netlink import DELETE_ELEMENT, NEW_ELEMENT, Link

_GATES = ("gate4", "gate6")


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What became of the elements that the journal bans."""

    restored: int
    expired: int
    protected: int  # left out: the policy protects an address inside
    full: int  # left out: the kernel's set has no room
    corrupt: int  # damaged records; what they said is lost, an older record of the same element counts


def restore_bans(state_dir: Path, now_s: float, *, link: Link | None = None) -> Restored:
    """Ban again what the journal in ``state_dir`` says, each for the time it has left at ``now_s`` (seconds of 1970).

    The table of bans must be there, with the lists of the policy in force: nothing that they protect is banned, and
    never more than the sets hold; when they hold less, the newest bans win. Memory does not grow with the journal but
    for one short key per banned element. Raises ``firewall.ban.no-table``, ``firewall.ban.store``,
    ``base.permissions.unsafe``, ``base.storage.*``, ``firewall.netlink.refused``.
    """
    bans = Bans(link=link)
    bans.refresh()
    work = _Restore(bans)
    newest = Newest()
    for raw in BanStore(state_dir).read_newest_first():
        record = newest.take(raw)
        if newest.cleared:
            break
        if record is None:
            continue
        left_ms = int(record.left_s(now_s) * 1000)
        if left_ms <= 0:
            work.expired += 1
        elif bans.protector(record.key, length_of(record.name, record.key)):
            work.protected += 1
        else:
            work.add((record.name, record.key), left_ms)
    work.finish()
    return Restored(
        restored=work.restored,
        expired=work.expired,
        protected=work.protected,
        full=work.full,
        corrupt=newest.corrupt,
    )


class _Restore:
    """Elements on their way into the kernel, a chunk at a time; the gates before them at the end."""

    def __init__(self, bans: Bans) -> None:
        self.restored = self.expired = self.protected = self.full = 0
        self._link = bans.link
        self._room = {name: self._room_in(name) for name in set_names()}
        self._chunk: list[tuple[Element, int]] = []
        self._gates: dict[Element, int] = {}

    def add(self, place: Element, left_ms: int) -> None:
        if self._room[place[0]] == 0:
            self.full += 1
            return
        self._room[place[0]] -= 1
        gate = gate_of(place[1])
        if left_ms > self._gates.get(gate, 0):
            self._gates[gate] = left_ms
        self._chunk.append((place, left_ms))
        if len(self._chunk) == CHUNK_ELEMENTS:
            self._load()

    def finish(self) -> None:
        self._load()
        # Without its gate an element is not looked up: so these must get in, also where a gate has less time left.
        old = {(name, key): left_ms for name in _GATES for key, left_ms, _ in self._link.elements(BAN_TABLE, name)}
        late = [(gate, left_ms) for gate, left_ms in self._gates.items() if left_ms > old.get(gate, 0)]
        for start in range(0, len(late), CHUNK_ELEMENTS):
            part = late[start : start + CHUNK_ELEMENTS]
            deleting = encode_places(DELETE_ELEMENT, [(gate, None) for gate, _ in part if gate in old])
            self._link.commit([*deleting, *encode_places(NEW_ELEMENT, part)])

    def _load(self) -> None:
        try:
            self._commit(self._chunk)
            self.restored += len(self._chunk)
        except KernelRefused as error:
            if error.fields["errno"] != errno.ENFILE:
                raise
            self.full += len(self._chunk)  # somebody else fills the set at the same time
        self._chunk.clear()

    def _commit(self, chunk: Iterable[tuple[Element, int]]) -> None:
        messages = encode_places(NEW_ELEMENT, chunk)
        if messages:
            self._link.commit(messages)

    def _room_in(self, name: str) -> int:
        size = self._link.set_size(BAN_TABLE, name)
        if size is None:
            raise BanTableMissing(f"the table of bans has no set {name}; an older version made it")
        return size - sum(1 for _ in self._link.elements(BAN_TABLE, name)) if size else -1
