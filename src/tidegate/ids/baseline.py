"""What a device normally does: its services and its peers, learnt from flow events, compared later. Pure.

A line of the baseline is who talks to whom about what: client, server, transport, server port and, where the sensor
knew it, the application protocol. Client ports are not part of it. Only flows that both sides took part in count: a
scan that nobody answers teaches nothing.

What an attacker did while the baseline was learnt is part of it. Read it before you rely on it.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from tidegate.ids.errors import BaselineInvalid

MAX_LINES = 65_536  # some 10 MB as a file; a device has dozens, a site some thousands
FORMAT = "tidegate-baseline-1"


class Talk(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, order=True):
    """Who talks to whom about what."""

    server: str
    port: int | None
    proto: str
    client: str
    app: str = ""

    def __str__(self) -> str:
        port = "" if self.port is None else f"/{self.port}"
        name = f" {self.app}" if self.app else ""
        return f"{self.client} -> {self.server} {self.proto.lower()}{port}{name}"


class Seen(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How often and how much."""

    flows: int = 0
    bytes_toserver: int = 0
    bytes_toclient: int = 0
    first: str = ""
    last: str = ""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A line of the file."""

    talk: Talk
    seen: Seen


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file."""

    format: str
    entries: tuple[Entry, ...]
    forgotten: int = 0


@dataclass(slots=True)
class Baseline:
    """Learns; ``forgotten`` counts flows for whose line there was no room, so that nobody trusts it as complete."""

    talks: dict[Talk, Seen] = field(default_factory=dict)
    forgotten: int = 0

    def learn(self, event: Mapping[str, object]) -> None:
        """Take one EVE event into account; what is no answered flow changes nothing."""
        talk, flow = _talk_of(event), event.get("flow")
        if talk is None or not isinstance(flow, Mapping) or not _number(flow, "pkts_toclient"):
            return
        seen = self.talks.get(talk)
        if seen is None:
            if len(self.talks) >= MAX_LINES:
                self.forgotten += 1
                return
            seen = self.talks[talk] = Seen(first=_text(flow, "start"))
        seen.flows += 1
        seen.bytes_toserver += _number(flow, "bytes_toserver")
        seen.bytes_toclient += _number(flow, "bytes_toclient")
        seen.last = max(seen.last, _text(flow, "end") or _text(flow, "start"))

    def services(self) -> dict[tuple[str, str, int | None, str], int]:
        """Return each service (server, transport, port, application) with the number of its clients."""
        clients: dict[tuple[str, str, int | None, str], set[str]] = {}
        for talk in self.talks:
            clients.setdefault((talk.server, talk.proto, talk.port, talk.app), set()).add(talk.client)
        return {service: len(who) for service, who in sorted(clients.items(), key=lambda one: str(one[0]))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What is new and what is gone; ``new_services`` are those whose server and port nobody used before."""

    new: tuple[Talk, ...]
    new_services: tuple[Talk, ...]
    new_peers: tuple[str, ...]
    gone: tuple[Talk, ...]


def learn_baseline(events: Iterable[Mapping[str, object]]) -> Baseline:
    """Return what the events teach."""
    baseline = Baseline()
    for event in events:
        baseline.learn(event)
    return baseline


def compare_baselines(before: Baseline, after: Baseline) -> Difference:
    """Return how ``after`` differs from ``before``; an application that was not recognised equals every one."""
    known = {_place(talk): talk.app for talk in before.talks}
    exact = set(before.talks)
    new = sorted((talk for talk in after.talks if talk not in exact and not _is_same(talk, known)), key=str)
    services = {(talk.server, talk.proto, talk.port) for talk in before.talks}
    peers = {name for talk in before.talks for name in (talk.client, talk.server)}
    now = {_place(talk) for talk in after.talks}
    return Difference(
        new=tuple(new),
        new_services=tuple(talk for talk in new if (talk.server, talk.proto, talk.port) not in services),
        new_peers=tuple(sorted({name for talk in new for name in (talk.client, talk.server)} - peers)),
        gone=tuple(sorted((talk for talk in before.talks if _place(talk) not in now), key=str)),
    )


def encode_baseline(baseline: Baseline) -> bytes:
    """Return the file, one entry a line, in an order that does not depend on the traffic's."""
    entries = sorted(baseline.talks.items(), key=lambda one: str(one[0]))
    lines = [
        json.dumps({"talk": msgspec.to_builtins(talk), "seen": msgspec.to_builtins(seen)}) for talk, seen in entries
    ]
    head = f'{{"format": "{FORMAT}", "forgotten": {baseline.forgotten}, "entries": ['
    return (head + "\n " + ",\n ".join(lines) + "\n]}\n").encode() if lines else (head + "]}\n").encode()


def parse_baseline(data: bytes) -> Baseline:
    """Return a baseline from its file, or raise ``ids.baseline.invalid``."""
    try:
        document = msgspec.json.decode(data, type=Document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BaselineInvalid(f"this is no baseline: {error}") from error
    if document.format != FORMAT or len(document.entries) > MAX_LINES:
        raise BaselineInvalid(f"the format is {document.format[:32]!r}, not {FORMAT!r}", format=document.format[:32])
    talks = {entry.talk: entry.seen for entry in document.entries}
    return Baseline(talks=talks, forgotten=document.forgotten)


def _talk_of(event: Mapping[str, object]) -> Talk | None:
    if event.get("event_type") != "flow":
        return None
    client, server = _address(event, "src_ip"), _address(event, "dest_ip")
    if client is None or server is None:
        return None
    port = event.get("dest_port")
    app = _text(event, "app_proto")[:32]
    return Talk(
        server=server,
        port=port if isinstance(port, int) and 0 <= port <= 65535 else None,
        proto=_text(event, "proto")[:16].upper(),
        client=client,
        app="" if app == "failed" else app,
    )


def _place(talk: Talk) -> tuple[str, str, str, int | None]:
    return talk.client, talk.server, talk.proto, talk.port


def _is_same(talk: Talk, known: Mapping[tuple[str, str, str, int | None], str]) -> bool:
    app = known.get(_place(talk))
    return app is not None and (not app or not talk.app)


def _address(event: Mapping[str, object], name: str) -> str | None:
    try:
        return str(ipaddress.ip_address(_text(event, name)))
    except ValueError:
        return None


def _number(document: Mapping[str, object], name: str) -> int:
    value = document.get(name)
    return value if isinstance(value, int) and 0 <= value < 1 << 63 else 0


def _text(document: Mapping[str, object], name: str) -> str:
    value = document.get(name)
    return value[:64] if isinstance(value, str) else ""
