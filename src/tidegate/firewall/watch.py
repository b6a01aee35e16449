"""Tell when somebody else changes our tables, and who.

Touches: a socket on which the kernel reports every change to nftables. The deciding part, ``Transactions``, is pure: it
turns notices into what was done to our tables and by whom. Whether a change matters is then a question of the digest
of what is in force: bans, thresholds and our own policies do not make a difference to the digest that is expected.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tidegate.firewall.bantable import BAN_TABLE, set_names
from tidegate.firewall.netlink import (
    DELETE_ELEMENT,
    NEW_ELEMENT,
    NEW_GENERATION,
    Message,
    Monitor,
    parse_attributes,
    parse_generation,
    parse_name,
)
from tidegate.firewall.nft import Nft

TABLES = frozenset({"tidegate", BAN_TABLE, "tidegate_link"})
# An apply of ours changes the kernel first and says after that what it expects: a listing and a file's rename later.
SETTLE_S = 0.5
MAX_READS = 4096  # of the socket in one ``poll``: its buffer holds no more; what a flood leaves is read next time
MAX_DEEDS = 32  # kinds of changes named in one report
_VERBS = {0: "table added", 2: "table deleted", 3: "chain added", 5: "chain deleted", 6: "rule added"}
_VERBS |= {8: "rule deleted", 9: "set added", 11: "set deleted", 12: "element added", 14: "element deleted"}
_VERBS |= {18: "object added", 20: "object deleted", 22: "flowtable added", 24: "flowtable deleted"}
_FREE_SETS = frozenset({*set_names(), "gate4", "gate6"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tampering:
    """A change to our tables that was not ours; ``pid`` 0 and no ``program`` where the kernel did not say who."""

    what: str
    pid: int
    program: str
    digest_before: str
    digest_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deeds:
    """What one process did to our tables."""

    pid: int
    program: str
    what: tuple[str, ...]


@dataclass(slots=True)
class Transactions:
    """What was done to our tables since the last ``take``, by process."""

    _open: dict[str, None] = field(default_factory=dict)  # of the transaction whose end has not been seen; ordered
    _done: dict[tuple[int, str], dict[str, None]] = field(default_factory=dict)

    def feed(self, messages: Iterable[Message]) -> bool:
        """Take in notices; return whether our tables are among them."""
        touched = False
        for message in messages:
            if message.control:
                continue
            if message.kind == NEW_GENERATION:
                self._close(message)
            elif message.kind in _VERBS and (deed := _deed(message)):
                touched = True
                if len(self._open) < MAX_DEEDS:
                    self._open[deed] = None
        return touched

    def lose(self) -> None:
        """Notices were lost: whoever ends the next transaction need not be who began this one."""
        if self._open:
            self._done.setdefault((0, ""), {}).update(self._open)
            self._open = {}

    def take(self) -> list[Deeds]:
        """Return what was done by whom, and forget it."""
        self.lose()
        found = [Deeds(pid=pid, program=program, what=tuple(what)) for (pid, program), what in self._done.items()]
        self._done = {}
        return found

    def _close(self, message: Message) -> None:
        if not self._open:
            return
        generation = parse_generation(message.body)
        if len(self._done) < MAX_DEEDS:
            self._done.setdefault((generation.pid, generation.program), {}).update(self._open)
        self._open = {}


class RulesetWatch:
    """Watches the network namespace in which it is made.

    Call ``poll`` when ``fileno`` is readable, and every ``SETTLE_S`` as long as ``unsettled`` is true. It looks at the
    rules themselves only after somebody touched our tables and a moment has passed.
    """

    def __init__(
        self,
        nft: Nft,
        expected_digest: Callable[[], str | None],
        *,
        effective_digest: Callable[[Nft], str] | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """``expected_digest``: of what we put in force last, ``None`` while there is nothing to hold it against.

        Raises ``firewall.kernel.no-nftables``, ``base.privilege.missing``.
        """
        self._nft, self._expected, self._monotonic_s = nft, expected_digest, monotonic_s
        self._effective = effective_digest or _effective
        self._monitor = Monitor()
        self._transactions = Transactions()
        self._due_s: float | None = monotonic_s()  # what happened before we looked counts too
        self._reported: str | None = None

    def fileno(self) -> int:
        """Return the descriptor that becomes readable when nftables changed."""
        return self._monitor.fileno()

    @property
    def unsettled(self) -> bool:
        """Whether there was a change on which nothing has been decided yet."""
        return self._due_s is not None

    def poll(self) -> list[Tampering]:
        """Return what others did, one entry per process, once for each state that they brought about.

        Raises ``firewall.nft.refused``.
        """
        self._read()
        if self._due_s is None or self._monotonic_s() < self._due_s:
            return []
        expected = self._expected()
        effective = self._effective(self._nft) if expected is not None else None
        self._due_s = None  # not earlier: what could not be read is still to be looked at
        # Ours are no tampering, even when somebody else's came between them.
        deeds = [deed for deed in self._transactions.take() if deed.pid != os.getpid()]
        if expected is None or effective is None or effective == expected:
            self._reported = None
            return []
        if effective == self._reported:
            return []
        self._reported = effective
        return [
            Tampering(
                what=", ".join(deed.what),
                pid=deed.pid,
                program=deed.program,
                digest_before=expected,
                digest_after=effective,
            )
            for deed in deeds or [Deeds(pid=0, program="", what=("changed while nobody watched",))]
        ]

    def expect_anew(self) -> None:
        """Forget what was reported, after ours was put back: the same deed is then told again."""
        self._reported = None
        self._due_s = self._monotonic_s() + SETTLE_S

    def close(self) -> None:
        """End the subscription; harmless when repeated."""
        self._monitor.close()

    def _read(self) -> None:
        for _ in range(MAX_READS):
            messages = self._monitor.read()
            if messages == []:
                return
            if messages is None:  # the kernel had more to say than the buffer holds; the digest knows what came of it
                self._transactions.lose()
            if messages is None or self._transactions.feed(messages):
                self._due_s = self._monotonic_s() + SETTLE_S


def undo(state_dir: Path, nft: Nft) -> str | None:
    """Put the last confirmed ruleset back in force and return the digest; ``None`` when there is none.

    Raises ``firewall.commit.pending`` while a change waits for its confirmation (its rollback will restore what was
    before), ``firewall.state.corrupt``, ``firewall.nft.refused``.
    """
    from tidegate.firewall.commit import restore_last_confirmed

    restored = restore_last_confirmed(state_dir, nft=nft)
    return None if restored is None else restored.digest


def _effective(nft: Nft) -> str:
    from tidegate.firewall.commit import effective_digest

    return effective_digest(nft)


def _deed(message: Message) -> str:
    """Return what a notice says in words; nothing when it is not about our tables, or about bans."""
    table = parse_name(message.body)
    if table not in TABLES:
        return ""
    if message.kind in (NEW_ELEMENT, DELETE_ELEMENT):
        name = _second(message)
        if table == BAN_TABLE and name in _FREE_SETS:
            return ""
        return f"{_VERBS[message.kind]} in set {name} of {table}"
    return f"{_VERBS[message.kind]} in {table}" if message.kind > 2 else f"{table}: {_VERBS[message.kind]}"


def _second(message: Message) -> str:
    value = dict(parse_attributes(message.body)).get(2, memoryview(b""))
    return bytes(value).partition(b"\0")[0].decode(errors="replace")
