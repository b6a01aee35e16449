"""From a device's ``[firewall]`` section to a MUD file (RFC 8520) for the owners of the networks it is put in. Pure.

Services and egress services become entries for both directions of their conversations, so that a network that does not
track connections can enforce the file too. What a MUD file cannot say is listed, never guessed.
"""

from __future__ import annotations

import datetime
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tidegate.firewall.errors import MudExport
from tidegate.firewall.model import plan_ruleset
from tidegate.firewall.mud import CACHE_HOURS, DEFAULT_CACHE_HOURS, MAX_ACES, MAX_MUD_BYTES, MAX_TEXT
from tidegate.firewall.mud_match import MAX_PORT, PeerKind
from tidegate.firewall.peers import Network, parse_peers
from tidegate.firewall.section import (
    EgressDefault,
    EgressService,
    FirewallSection,
    Mode,
    Protocol,
    RuleMode,
    Service,
)

# Lists of peers that stand for a class of MUD by their name, as mud_import names them; URNs: RFC 8520 §17.
KNOWN_LISTS: Mapping[str, tuple[PeerKind, str]] = {
    "my-controller": (PeerKind.MY_CONTROLLER, ""),
    "local-networks": (PeerKind.LOCAL, ""),
    "same-manufacturer": (PeerKind.SAME_MANUFACTURER, ""),
    "controller-dns": (PeerKind.CONTROLLER, "urn:ietf:params:mud:dns"),
    "controller-ntp": (PeerKind.CONTROLLER, "urn:ietf:params:mud:ntp"),
}
MAX_SYSTEMINFO = 60  # RFC 8520 §3.7
_NUMBERS = {
    Protocol.TCP: 6,
    Protocol.UDP: 17,
    Protocol.IGMP: 2,
    Protocol.GRE: 47,
    Protocol.ESP: 50,
    Protocol.AH: 51,
    Protocol.OSPF: 89,
    Protocol.VRRP: 112,
}
_ICMP = {4: (1, 8, 0), 6: (58, 128, 129)}  # protocol, echo request, echo reply


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What the file says besides its access lists. ``classes``: list of peers -> what it stands for."""

    url: str
    manufacturer: str
    model: str
    last_update: datetime.datetime
    systeminfo: str = ""
    signature_url: str | None = None
    cache_validity_h: int = DEFAULT_CACHE_HOURS
    classes: Mapping[str, tuple[PeerKind, str]] = field(default_factory=lambda: KNOWN_LISTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """The file, and what it does not say of the policy."""

    text: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Far:
    """One description of the other side, for the families it is of."""

    families: tuple[int, ...]
    kind: PeerKind
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Talk:
    """One conversation: who begins it, and the first and last port that answers (None: no ports)."""

    name: str
    by_device: bool
    protocol: Protocol
    ports: tuple[int, int] | None
    far: _Far


def encode_mud(section: FirewallSection, about: About) -> Exported:
    """Return the MUD file for ``section``, and a sentence for everything that it leaves unsaid.

    Raises ``firewall.mud.export``, and ``firewall.policy.*`` for a section that is none.
    """
    _check(about)
    plan_ruleset(section)  # what has no meaning cannot be said in other words
    warnings = list(_warn_section(section))
    talks = list(_talks(section, about, warnings))
    names = {
        (family, out): f"mud-{zlib.crc32(about.url.encode()) % 100_000:05d}-v{family}{'fr' if out else 'to'}"
        for family in (4, 6)
        for out in (True, False)
    }
    lists: dict[tuple[int, bool], list[object]] = {key: [] for key in names}
    for number, talk in enumerate(talks):
        for family in talk.far.families:
            for out in (True, False):
                if (ace := _encode_ace(talk, number, family, out=out)) is not None:
                    lists[family, out].append(ace)
    if sum(map(len, lists.values())) > MAX_ACES:
        raise MudExport(f"the policy would become more than {MAX_ACES} entries", count=len(talks))
    document = {
        "ietf-mud:mud": _encode_head(about, names),
        "ietf-access-control-list:acls": {
            "acl": [
                {"name": names[key], "type": f"ipv{key[0]}-acl-type", "aces": {"ace": aces}}
                for key, aces in lists.items()
            ]
        },
    }
    text = json.dumps(document, indent=1) + "\n"
    if len(text) > MAX_MUD_BYTES:
        raise MudExport(f"the policy would become a file of more than {MAX_MUD_BYTES} bytes", count=len(talks))
    return Exported(text=text, warnings=tuple(dict.fromkeys(warnings)))


def _check(about: About) -> None:
    for text, limit in ((about.manufacturer, MAX_TEXT), (about.model, MAX_TEXT), (about.systeminfo, MAX_SYSTEMINFO)):
        if not text.isprintable() or len(text) > limit:
            raise MudExport(f"{text[:40]!r} is no printable text of up to {limit} characters")
    for url in (about.url, about.signature_url or about.url):
        if re.match(r"https://[^\s/?#]+[!-~]*\Z", url) is None or len(url) > MAX_TEXT:
            raise MudExport(f"{url[:60]!r} is no https URL of up to {MAX_TEXT} characters")
    if not CACHE_HOURS[0] <= about.cache_validity_h <= CACHE_HOURS[1]:
        raise MudExport(f"a file is valid for {CACHE_HOURS[0]} to {CACHE_HOURS[1]} hours")


def _encode_head(about: About, names: Mapping[tuple[int, bool], str]) -> dict[str, object]:
    head: dict[str, object] = {"mud-version": 1, "mud-url": about.url}
    if about.signature_url is not None:
        head["mud-signature"] = about.signature_url
    head |= {
        "last-update": about.last_update.isoformat(timespec="seconds"),
        "cache-validity": about.cache_validity_h,
        "is-supported": True,
        "systeminfo": about.systeminfo or f"{about.manufacturer} {about.model}"[:MAX_SYSTEMINFO],
        "mfg-name": about.manufacturer,
        "model-name": about.model,
    }
    for policy, out in (("from-device-policy", True), ("to-device-policy", False)):
        head[policy] = {"access-lists": {"access-list": [{"name": names[family, out]} for family in (4, 6)]}}
    return head


def _talks(section: FirewallSection, about: About, warnings: list[str]) -> Iterator[_Talk]:
    management = section.management
    for name, service in sorted(section.services.items()):
        managers = management.peers if management is not None and management.service == name else ()
        yield from _of_rule(section, about, (name, False, service), (*service.peers, *managers), warnings)
    if section.ping_per_s:
        warnings.append(f"ping_per_s: a MUD file has no rates; everybody may ping, not {section.ping_per_s} a second")
        yield _Talk(name="ping", by_device=False, protocol=Protocol.PING, ports=None, far=_everybody())
    for name, egress in sorted(section.egress.services.items()):
        yield from _of_rule(section, about, (name, True, egress), egress.peers, warnings)
    if section.egress.default is EgressDefault.ALLOW:
        warnings.append("egress.default: the device may call everybody by TCP, UDP and echo requests")
        for protocol in (Protocol.TCP, Protocol.UDP, Protocol.PING):
            ports = (1, MAX_PORT) if protocol.has_ports else None
            yield _Talk(name=f"any-{protocol}", by_device=True, protocol=protocol, ports=ports, far=_everybody())


def _of_rule(
    section: FirewallSection,
    about: About,
    rule: tuple[str, bool, Service | EgressService],
    peers: Sequence[str],
    warnings: list[str],
) -> Iterator[_Talk]:
    name, by_device, written = rule
    where = f"{'egress.services' if by_device else 'services'}.{name}"
    warnings += _warn_rule(where, written)
    if written.protocol is not Protocol.PING and written.protocol not in _NUMBERS:
        warnings.append(f"{where}: left out, a MUD file has no ports of {written.protocol}")
        return
    if not written.protocol.has_ports and written.protocol is not Protocol.PING:
        warnings.append(f"{where}: only what begins the conversation is listed; answers cannot be told apart")
    for far in _far_sides(section, about, peers, where, warnings):
        for port in written.ports or (None,):
            first, _, last = str(port or "").partition("-")
            ports = None if port is None else (int(first), int(last or first))
            yield _Talk(name=name, by_device=by_device, protocol=written.protocol, ports=ports, far=far)


def _far_sides(
    section: FirewallSection, about: About, peers: Sequence[str], where: str, warnings: list[str]
) -> Iterator[_Far]:
    """Yield every description of the peers; a list that stands for a class of MUD is named, others are spelt out.

    A MUD file cannot take anybody out of a class, so beside an exclusion, which counts for all peers of a rule
    whatever list it stands in, every list is spelt out; but not where the class is all there is.
    """
    named = [peer[1:] for peer in dict.fromkeys(peers) if peer[:1] == "@"]
    spelt = len(set(peers)) > 1 and _excludes(section, peers)
    classes = [] if spelt else [name for name in named if name in about.classes]
    rest = [peer for peer in peers if peer.removeprefix("@") not in classes]
    for name in classes:
        kind, value = about.classes[name]
        yield _Far(families=(4, 6), kind=kind, value=value)
    group = parse_peers(rest, where, named=section.peers)
    if group.everyone:
        yield _everybody()
    networks: list[Network] = [*group.v4, *group.v6]
    for network in networks:
        kind = PeerKind.NETWORK if network.prefixlen else PeerKind.ANY
        yield _Far(families=(network.version,), kind=kind, value=str(network))
    for dns in group.names:
        yield _Far(families=(4, 6), kind=PeerKind.NAME, value=dns)
    if group.macs:
        warnings.append(f"{where}: a MUD file has no MAC addresses: {', '.join(group.macs)} left out")


def _excludes(section: FirewallSection, peers: Sequence[str]) -> bool:
    """Return whether somebody is taken out of ``peers`` or of a list that they name (which planning found finite)."""
    named = (section.peers[peer[1:]] for peer in peers if peer[:1] == "@")
    return any(peer[:1] == "!" for peer in peers) or any(_excludes(section, one) for one in named)


def _everybody() -> _Far:
    return _Far(families=(4, 6), kind=PeerKind.ANY, value="")


def _encode_ace(talk: _Talk, number: int, family: int, *, out: bool) -> dict[str, object] | None:
    """Return the entry for one direction; None where answers cannot be told from what begins a conversation."""
    begins = talk.by_device is out
    network: dict[str, object] = {}
    matches: dict[str, object] = {}
    if talk.far.kind is PeerKind.NAME:
        network[f"ietf-acldns:{'dst' if out else 'src'}-dnsname"] = talk.far.value
    elif talk.far.kind is PeerKind.NETWORK:
        network[f"{'destination' if out else 'source'}-ipv{family}-network"] = talk.far.value
    elif talk.far.kind is not PeerKind.ANY:
        matches["ietf-mud:mud"] = {talk.far.kind.value: talk.far.value or [None]}
    if talk.protocol is Protocol.PING:
        protocol, request, reply = _ICMP[family]
        matches["icmp"] = {"type": request if begins else reply, "code": 0}
    else:
        protocol = _NUMBERS[talk.protocol]
        if talk.ports is None and not begins:
            return None
    network["protocol"] = protocol
    if talk.ports is not None:
        matches[talk.protocol.value] = _encode_transport(talk, talk.ports, begins=begins)
    return {
        "name": f"{talk.name}-{number}-{'frdev' if out else 'todev'}",
        "matches": matches | {f"ipv{family}": network},
        "actions": {"forwarding": "accept"},
    }


def _encode_transport(talk: _Talk, ports: tuple[int, int], *, begins: bool) -> dict[str, object]:
    first, last = ports
    words: dict[str, object] = {"lower-port": first, "upper-port": last}
    if first == last:
        words = {"operator": "eq", "port": first}
    transport: dict[str, object] = {"destination-port" if begins else "source-port": words}
    if talk.protocol is Protocol.TCP:
        transport["ietf-mud:direction-initiated"] = "from-device" if talk.by_device else "to-device"
    return transport


def _warn_rule(where: str, rule: Service | EgressService) -> Iterator[str]:
    unsaid = [key for key in ("interfaces", "zones", "fields", "lockdown") if getattr(rule, key)]
    if isinstance(rule, Service):
        unsaid += [key for key in ("limit", "thresholds", "syn_proxy") if getattr(rule, key)]
    if rule.mode is RuleMode.OBSERVE:
        unsaid.append("mode")
    yield from (f"{where}.{key}: not in the file, a MUD file cannot say it" for key in unsaid)


def _warn_section(section: FirewallSection) -> Iterator[str]:
    if section.mode is not Mode.ENFORCE:
        yield f"mode = {section.mode}: the file says what the rules allow when they are enforced"
    for key, value in (
        ("routes", section.routes),
        ("nat", section.nat.masquerade or section.nat.port_forwards),
        ("link", section.link),
        ("thresholds", section.thresholds),
    ):
        if value:
            yield f"{key}: not in the file, which is about this device's own conversations"
