"""Keeps the kernel's sets of DNS names filled: ``python -m tidegate.firewall.names``.

Reads its configuration (one JSON line, ``encode_names_config``) from standard input, opens nftables, becomes user
nobody with CAP_NET_ADMIN as its only capability, and writes JSON lines to standard output: ``ready`` first, or
``error`` and exit status 3 or 4; ``names`` when what a name stands for has changed, ``unresolved`` when no resolver
answers any more, ``unwritten`` when the kernel refused, ``refilled`` when somebody else had changed a set. Ends on
SIGTERM, on SIGINT, when its reader is gone, and with its parent. What it put into the kernel has a time there: without
this process everything is closed in the end.

Imports little on purpose: it lives as long as the device does. Touches: nftables, DNS resolvers, process credentials,
pipes.
"""

from __future__ import annotations

import errno
import json
import os
import re
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

from tidegate.base.confine import CAP_NET_ADMIN, confine
from tidegate.base.errors import TidegateError
from tidegate.firewall.errors import BadNamesConfig, KernelRefused, NamesConfinement
from tidegate.firewall.nameplan import (
    Address,
    Answer,
    Limits,
    NameState,
    adopt,
    expire,
    take_answers,
)
from tidegate.firewall.nameset import FAMILIES, MAX_NAMES, TABLE, encode_names_config, read_held, read_resolved
from tidegate.firewall.netlink import DELETE_ELEMENT, NEW_ELEMENT, Link, Monitor, encode_elements
from tidegate.firewall.resolver import MAX_RESOLVERS, UDP_TIMEOUT_S, Resolver, Server, parse_server, read_servers

__all__ = ["Keeper", "NamesConfig", "encode_names_config", "main", "parse_names_config", "read_held", "read_resolved"]

MAX_CONFIG_BYTES = 131_072  # MAX_NAMES names of 253 bytes with two sets each take 100,000
MAX_LINES = 1_000  # for a reader that does not read: the oldest are dropped
LOOK_PAUSE_S = 0.25  # after somebody changed nftables: a flood of bans is looked at four times a second
RETRY_S = 5.0  # after the kernel refused
LONGEST_PAUSE_S = 60.0
WRITE_TRIES = 3  # an element may expire between our look and our change
MONITOR_BYTES = 65_536  # what overflows is a change, too

_NEVER_S = float("inf")
_SET_NAME = re.compile(r"dns_[a-z0-9_]{1,58}_([46])\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamesConfig:
    """What to keep. ``sets``: for each name its set per family. No ``resolvers``: those of /etc/resolv.conf."""

    sets: Mapping[str, Mapping[int, str]]
    resolvers: tuple[Server, ...] = ()
    limits: Limits = field(default_factory=Limits)
    timeout_s: float = UDP_TIMEOUT_S


def parse_names_config(line: bytes) -> NamesConfig:
    """Return the configuration, or raise ``firewall.names.config``; unknown keys are refused."""
    try:
        document = json.loads(line)
        if not isinstance(document, dict) or document.pop("version", None) != 1:
            raise BadNamesConfig("no configuration of version 1")
        sets = {name: _parse_sets(listed) for name, listed in dict(document.pop("names")).items()}
        resolvers = [str(one) for one in document.pop("resolvers", None) or []]
        limits = _parse_limits(dict(document.pop("limits", {})))
        timeout_s = float(document.pop("timeout_s", UDP_TIMEOUT_S))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadNamesConfig(f"not a configuration: {error}") from error
    if document or not 0 < len(sets) <= MAX_NAMES or len(resolvers) > MAX_RESOLVERS or not 0.01 <= timeout_s <= 60:
        raise BadNamesConfig("unknown keys, no names, or too many of something", unknown=", ".join(document))
    servers = tuple(parse_server(one) for one in resolvers)
    return NamesConfig(sets=sets, resolvers=servers, limits=limits, timeout_s=timeout_s)


class Keeper:
    """The sets of all names of one policy, kept filled; ``step`` moves everything on."""

    def __init__(self, config: NamesConfig, link: Link, monitor: Monitor) -> None:
        self._config, self._link, self._monitor = config, link, monitor
        self._resolver = Resolver(config.resolvers, timeout_s=config.timeout_s)
        self._under_way: dict[str, dict[int, Answer | None]] = {}
        self._look_at_s: float | None = None  # after somebody's change; the kernel's notices wait until then
        self._retry_at_s: float | None = None  # after a refusal
        self._refused = ""  # the code of the last refusal that was reported
        now_s = _now_s()
        self._states = {name: adopt(name, self._held(name), now_s, config.limits) for name in config.sets}

    def step(self, others: Iterable[int] = ()) -> list[dict[str, object]]:
        """Wait until there is something to do, one of ``others`` readable included; do it; return what to report."""
        self._ask_due(_now_s())
        watched = [*others, *([] if self._look_at_s is not None else [self._monitor.fileno()])]
        ended = self._resolver.poll(self._pause_s(_now_s()), watched)
        lines = []
        for (name, family), answer in ended:
            answers = self._under_way[name]
            answers[family] = answer
            if len(answers) == len(FAMILIES):
                lines += self._take(name, self._under_way.pop(name))
        lines += self._expire()
        lines += self._look()
        return lines

    def _ask_due(self, now_s: float) -> None:
        due = [name for name, state in self._states.items() if state.ask_at_s <= now_s and name not in self._under_way]
        if due and not self._config.resolvers and self._resolver.is_idle:
            self._resolver.servers = read_servers()  # DHCP may have brought others
        for name in due:
            self._under_way[name] = {}
            for family in FAMILIES:
                self._resolver.ask(name, family)

    def _pause_s(self, now_s: float) -> float:
        times = [now_s + LONGEST_PAUSE_S]
        for name, state in self._states.items():
            times += [held.gone_at_s for held in state.held.values()]
            if name not in self._under_way:
                times.append(state.ask_at_s)
        times += [at_s for at_s in (self._look_at_s, self._retry_at_s) if at_s is not None]
        return max(0.0, min(times) - now_s)

    def _take(self, name: str, answers: Mapping[int, Answer | None]) -> list[dict[str, object]]:
        now_s = _now_s()
        before = self._states[name]
        after = self._states[name] = take_answers(before, answers, now_s, self._config.limits)
        lines = self._write(name, now_s)
        left_out = sum(answer.left_out for answer in answers.values() if answer is not None)
        lines += _changes(before, after, now_s, left_out)
        if after.failures == 1:
            held = after.seconds_left(now_s)
            lines.append(
                {
                    "event_type": "unresolved",
                    "name": name,
                    "addresses": [str(address) for address in held],
                    "gone_in_s": round(max(held.values(), default=0.0)),
                }
            )
        return lines

    def _expire(self) -> list[dict[str, object]]:
        """The kernel has let go of them at the same time; here it is noticed and told."""
        now_s = _now_s()
        lines = []
        for name, before in self._states.items():
            after = expire(before, now_s)
            if len(after.held) != len(before.held):
                self._states[name] = after
                lines += [*self._write(name, now_s), *_changes(before, after, now_s, 0)]
        return lines

    def _look(self) -> list[dict[str, object]]:
        """See, a moment after anybody changed nftables, that our sets still hold what they should."""
        now_s = _now_s()
        if self._look_at_s is None and self._monitor.read() != []:
            self._look_at_s = now_s + LOOK_PAUSE_S
        if now_s < min(at_s for at_s in (self._look_at_s, self._retry_at_s, _NEVER_S) if at_s is not None):
            return []
        for _ in range(MONITOR_BYTES // 32):  # a notice takes more, so that it is empty then
            if self._monitor.read() == []:
                break
        self._look_at_s = self._retry_at_s = None
        lines = []
        for name, state in self._states.items():
            held, wanted = set(self._held(name)), set(state.seconds_left(now_s))
            if held != wanted:
                lines += self._write(name, now_s) or [_refilled(name, held - wanted, wanted - held)]
        return lines

    def _held(self, name: str) -> dict[Address, float]:
        try:
            return read_held(self._link, self._config.sets[name])
        except KernelRefused:  # no policy is in force, or one without the name
            return {}

    def _write(self, name: str, now_s: float) -> list[dict[str, object]]:
        """Have the kernel hold exactly what the state says, in one transaction."""
        wanted = self._states[name].seconds_left(now_s)
        refusal: KernelRefused | None = None
        for _ in range(WRITE_TRIES):
            try:
                if messages := plan_update(self._config.sets[name], self._held(name), wanted):
                    self._link.commit(messages)
            except KernelRefused as error:
                refusal = error
                if error.fields.get("errno") not in (errno.ENOENT, errno.EEXIST):
                    break
            else:
                self._refused = ""
                return []
        self._retry_at_s = now_s + RETRY_S
        if refusal is None or self._refused == refusal.message:
            return []
        self._refused = refusal.message
        return [{"event_type": "unwritten", "name": name, "code": refusal.code, "message": refusal.message}]


def plan_update(
    sets: Mapping[int, str], held: Mapping[Address, float], wanted: Mapping[Address, float], table: str = TABLE
) -> list[bytes]:
    """Return the messages of the transaction after which the sets hold ``wanted``, each for its seconds.

    Elements are taken out and put in again: kernels before 6.12 do not change the time of one that is there.
    """
    messages = []
    for family, name in sets.items():
        gone = [(address.packed, None) for address in held if address.version == family]
        there = [(a.packed, max(1, int(left_s * 1000))) for a, left_s in wanted.items() if a.version == family]
        if gone:
            messages.append(encode_elements(DELETE_ELEMENT, table, name, gone))
        if there:
            messages.append(encode_elements(NEW_ELEMENT, table, name, there))
    return messages


class _Lines:
    """Standard output that never makes us wait for its reader."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._waiting: deque[bytes] = deque(maxlen=MAX_LINES)
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(descriptor, 0)  # only "the other end is gone" is of interest
        self._is_open = True
        os.set_blocking(descriptor, False)

    def has_reader(self) -> bool:
        return self._is_open and not self._poll.poll(0)

    def put(self, documents: Iterable[Mapping[str, object]]) -> None:
        self._waiting.extend(json.dumps(document).encode() + b"\n" for document in documents)
        try:
            while self._rest or self._waiting:
                self._rest = self._rest or self._waiting.popleft()
                self._rest = self._rest[os.write(self.descriptor, self._rest) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._is_open = False


def main(arguments: list[str]) -> int:
    """Run until asked to stop; return the exit status."""
    if arguments:
        sys.stderr.write("usage: python -m tidegate.firewall.names < CONFIG\n")
        return 2
    try:
        config = parse_names_config(_read_config())
        link, monitor = Link(), Monitor(MONITOR_BYTES)
        confine(keep=CAP_NET_ADMIN, ends_with_parent=True, failed=NamesConfinement)
        return _serve(Keeper(config, link, monitor), len(config.sets))
    except TidegateError as error:
        sys.stdout.write(json.dumps({"event_type": "error", "code": error.code, "message": error.message}) + "\n")
        sys.stdout.flush()
        return error.exit_status


def _serve(keeper: Keeper, names: int) -> int:
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    stopping: list[bool] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.append(True))
    out = _Lines(sys.stdout.fileno())
    out.put([{"event_type": "ready", "names": names, "pid": os.getpid()}])
    while not stopping and out.has_reader():
        out.put(keeper.step((woken, out.descriptor)))
    return 0


def _changes(before: NameState, after: NameState, now_s: float, left_out: int) -> list[dict[str, object]]:
    added, gone = set(after.held) - set(before.held), set(before.held) - set(after.held)
    if not added and not gone:
        return []
    return [
        {
            "event_type": "names",
            "name": after.name,
            "addresses": [str(address) for address in after.seconds_left(now_s)],
            "gone": [str(address) for address in before.held if address in gone],
            "left_out": left_out,
            "next_s": round(max(0.0, after.ask_at_s - now_s), 1),
        }
    ]


def _refilled(name: str, foreign: Iterable[Address], missing: Iterable[Address]) -> dict[str, object]:
    return {
        "event_type": "refilled",
        "name": name,
        "foreign": sorted(map(str, foreign)),
        "missing": sorted(map(str, missing)),
    }


def _parse_sets(listed: object) -> dict[int, str]:
    sets = {}
    for family, name in dict(listed).items() if isinstance(listed, dict) else []:
        match = _SET_NAME.match(str(name))
        if match is None or match[1] != family:
            raise BadNamesConfig(f"{name!r} is no set of a DNS name", set=str(name))
        sets[int(family)] = str(name)
    if tuple(sets) != FAMILIES:
        raise BadNamesConfig("a name has two sets, for 4 and for 6")
    return sets


def _parse_limits(given: dict[str, object]) -> Limits:
    known = {one.name for one in fields(Limits)}
    if not set(given) <= known or not all(
        isinstance(value, int | float) and 0 <= value <= 604_800 for value in given.values()
    ):
        raise BadNamesConfig(f"limits are {', '.join(sorted(known))}, in seconds up to a week")
    return Limits(**{name: float(str(value)) for name, value in given.items()})


def _now_s() -> float:
    """Time that goes on while the device sleeps: a TTL does so, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _read_config() -> bytes:
    line = sys.stdin.buffer.readline(MAX_CONFIG_BYTES + 1)
    if not line.endswith(b"\n"):
        raise BadNamesConfig("standard input has no configuration line", limit=MAX_CONFIG_BYTES)
    return line


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
