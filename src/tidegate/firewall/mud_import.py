"""From a MUD file to the part of a ``[firewall]`` section that says the same. Pure.

``Role.DEVICE``: for the device that the file describes; what it may begin becomes an egress service, what others may
begin a service. ``Role.GATEWAY``: for the gateway in front of it; both become routes, or, towards the gateway's own
addresses, services of the gateway. Rules are an allow-list: what the operator's other rules allow the same device is
not taken away.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address, ip_network

import msgspec

from tidegate.firewall.errors import BadPeer, MudPeers, MudUnsupported
from tidegate.firewall.mud import MudFile, Side
from tidegate.firewall.mud_match import PeerKind, Span
from tidegate.firewall.mud_openings import Finding, FindingKind, Opening, plan_openings
from tidegate.firewall.peers import PeerGroup, parse_peers
from tidegate.firewall.section import FirewallSection, Protocol

MAX_PREFIX = 12  # of a rule's name, which has 32 characters with direction, protocol and port
MAX_ORIGINS = 6  # entries named in a rule's comment
MAX_PORTS = 256  # of one rule (section.Ports)
MAX_NAMED = 20  # findings in one message: more than a person corrects in one go
_NAME = re.compile(rf"[a-z][a-z0-9-]{{0,{MAX_PREFIX - 1}}}\Z")
_ZONE = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")
_EVERYBODY = {4: "0.0.0.0/0", 6: "::/0"}
_LISTS = {
    PeerKind.MY_CONTROLLER: ("my-controller", "--my-controller PEERS"),
    PeerKind.LOCAL: ("local-networks", "--local-networks PEERS"),
    PeerKind.SAME_MANUFACTURER: ("same-manufacturer", "--same-manufacturer PEERS"),
}
_CLASSES = {
    PeerKind.CONTROLLER: "--controller",
    PeerKind.MANUFACTURER: "--manufacturer",
    PeerKind.MODEL: "--model",
}


class Role(StrEnum):
    """Whose policy is made."""

    DEVICE = "device"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What the file leaves to the network's owner. Peers are written as in a policy; ``classes`` are by URI or name."""

    role: Role
    device: tuple[str, ...] = ()  # gateway: addresses of the device, and its MAC
    gateway: tuple[str, ...] = ()  # the gateway's own addresses, towards which it is not a route
    my_controller: tuple[str, ...] = ()
    local_networks: tuple[str, ...] = ()
    same_manufacturer: tuple[str, ...] = ()
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    zone: str | None = None  # gateway: where the device is
    far_zone: str | None = None  # gateway: where everybody else is that it talks to through the gateway
    name: str | None = None  # begins the names of rules
    partial: bool = False
    any_source_port: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """The fragment as TOML, the same typed, and what is to be known about it."""

    text: str
    section: FirewallSection
    findings: tuple[Finding, ...]


@dataclass(slots=True, kw_only=True)
class _Rule:
    """One rule under construction."""

    table: str  # services | egress.services | routes
    side: Side
    protocol: Protocol
    ports: tuple[Span, ...]
    fixed: tuple[tuple[str, tuple[str, ...]], ...]  # keys besides the peers
    key: str  # the key that the peers stand under
    peers: list[str]
    origins: list[str]


def plan_import(
    mud: MudFile,
    site: Site,
    *,
    now: datetime.datetime,
    retrieved: datetime.datetime | None = None,
    signer: str | None = None,
) -> Imported:
    """Return the fragment that says what ``mud`` says at ``site``.

    ``retrieved``: when the file was fetched; ``signer``: who signed, for the comment. Raises
    ``firewall.mud.unsupported`` when an entry cannot be taken over and ``site.partial`` is off; ``firewall.mud.peers``.
    """
    openings, findings = plan_openings(mud, any_source_port=site.any_source_port)
    findings = [*_judge_file(mud, now, retrieved), *findings]
    planner = _Planner(site)
    rules = planner.plan(openings)
    findings += planner.findings
    missing = [one for one in findings if one.kind is FindingKind.LEFT_OUT]
    if missing and not site.partial:
        listed = "; ".join(f"{one.where}: {one.message}" for one in missing[:MAX_NAMED])
        more = f"; and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
        raise MudUnsupported(f"{len(missing)} entries cannot be taken over: {listed}{more}", count=len(missing))
    prefix = site.name or _prefix(mud)
    text = _encode(mud, site, rules=rules, lists=planner.lists, prefix=prefix, findings=findings, signer=signer)
    return Imported(text=text, section=_parse(text), findings=tuple(findings))


def _judge_file(mud: MudFile, now: datetime.datetime, retrieved: datetime.datetime | None) -> list[Finding]:
    found = [Finding(kind=FindingKind.NOTE, where="file", message=note) for note in mud.notes]
    if not mud.is_supported:
        text = "the manufacturer supports the device no longer: nobody will correct the file or the device"
        found.append(Finding(kind=FindingKind.NOT_SUPPORTED, where="is-supported", message=text))
    if retrieved is not None and now - retrieved > datetime.timedelta(hours=mud.cache_validity_h):
        text = f"fetched {retrieved:%Y-%m-%d %H:%M}, valid for {mud.cache_validity_h} hours: ask {mud.url} for a newer"
        found.append(Finding(kind=FindingKind.EXPIRED, where="cache-validity", message=text))
    if mud.last_update > now:
        found.append(Finding(kind=FindingKind.NOTE, where="last-update", message="it lies in the future"))
    return found


class _Planner:
    """Turns openings into rules with the peers of one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.findings: list[Finding] = []
        self.lists: dict[str, tuple[tuple[str, ...], str]] = {}  # name -> peers, what it stands for
        self._list_names: dict[tuple[PeerKind, str], str] = {}
        device = _static(site.device, "--device", macs=True)
        self._macs = device.macs
        self._device = {4: tuple(map(_short, device.v4)), 6: tuple(map(_short, device.v6))}
        self._own = _static(site.gateway, "--gateway-address", macs=False)
        if site.role is Role.GATEWAY and not site.device:
            raise MudPeers("--as gateway needs --device: the device's address, or its MAC")
        if device.everyone:
            raise MudPeers("--device names one device, not everybody")
        for zone in (site.zone, site.far_zone):
            if zone is not None and _ZONE.match(zone) is None:
                raise MudPeers(f"{zone!r} is no name of a zone")
        if site.name is not None and _NAME.match(site.name) is None:
            raise MudPeers(f"--name: {site.name!r} is not a letter and up to {MAX_PREFIX - 1} letters, digits, '-'")

    def plan(self, openings: Sequence[Opening]) -> list[_Rule]:
        rules: dict[tuple[object, ...], _Rule] = {}
        for families, origins, one in _both_families(openings):
            for table, fixed, key, peers in self._place(one, families, origins):
                apart = peers if self._excludes(peers) else ()  # or it would take somebody out of others' peers
                where = (table, one.side, one.protocol, one.ports, fixed, key, apart)
                rule = rules.setdefault(where, _rule(table, one, fixed, key))
                rule.peers += [peer for peer in peers if peer not in rule.peers]
                rule.origins += [origin for origin in origins if origin not in rule.origins]
        return _join_ports(rules.values())

    def _place(
        self, one: Opening, families: tuple[int, ...], origins: Sequence[str]
    ) -> Iterable[tuple[str, tuple[tuple[str, tuple[str, ...]], ...], str, tuple[str, ...]]]:
        """Yield (table, other keys, key of the peers, peers) of each rule that the opening needs."""
        peers = self._peers(one, families, origins)
        if not peers:
            return
        begins = one.side is Side.DEVICE
        if self._site.role is Role.DEVICE:
            yield ("egress.services" if begins else "services"), (), "peers", peers
            return
        device = self._device_words(one, families, origins)
        if not device:
            return
        own = tuple(peer for peer in peers if self._is_own(peer))
        if own:
            text = "towards the gateway itself the rule looks at who asks, not at which of its addresses is asked"
            self._say(FindingKind.WIDENED, origins, text)
            where = (("zones", (self._site.zone,)),) if self._site.zone else ()
            yield ("services" if begins else "egress.services"), where, "peers", device
        others = tuple(peer for peer in peers if peer not in own)
        if others:
            near, far = ("sources", "destinations") if begins else ("destinations", "sources")
            yield "routes", ((near, device), *self._zones(begins=begins)), far, others

    def _zones(self, *, begins: bool) -> Iterable[tuple[str, tuple[str, ...]]]:
        near, far = ("from_zones", "to_zones") if begins else ("to_zones", "from_zones")
        for key, zone in ((near, self._site.zone), (far, self._site.far_zone)):
            if zone:
                yield key, (zone,)

    def _excludes(self, peers: Sequence[str]) -> bool:
        """Return whether somebody is taken out of ``peers`` or of a list that they name."""
        named = (word for peer in peers if peer.startswith("@") for word in self.lists[peer[1:]][0])
        return any(word.startswith("!") for word in (*peers, *named))

    def _device_words(self, one: Opening, families: tuple[int, ...], origins: Sequence[str]) -> tuple[str, ...]:
        """Return how a route names the device: by its MAC where that can be seen, else by its addresses."""
        if one.side is Side.DEVICE and self._macs:
            return self._macs
        words = tuple(word for family in families for word in self._device[family])
        if not words:
            named = " and ".join(f"IPv{family}" for family in families)
            self._say(FindingKind.LEFT_OUT, origins, f"--device has no {named} address")
        return words

    def _peers(self, one: Opening, families: tuple[int, ...], origins: Sequence[str]) -> tuple[str, ...]:
        if one.peer is PeerKind.ANY:
            return ("any",) if len(families) == 2 else (_EVERYBODY[families[0]],)
        if one.peer is PeerKind.NETWORK:
            return (one.peer_value,)
        if one.peer is PeerKind.NAME:
            self._note_name(one.peer_value, families, origins, one.side)
            return (one.peer_value,)
        name, given, option = self._given(one)
        if not given:
            self._say(FindingKind.LEFT_OUT, origins, f"who that is has to be said: {option}")
            return ()
        group = _static(given, option, macs=False, names=True)
        for known in group.names:
            self._note_name(known, families, origins, one.side)
        left = _of_families(given, families)
        if not left:
            self._say(FindingKind.NOTE, origins, f"{option} has nobody of this address family")
        if left != given or any(self._is_own(peer) for peer in given):
            return left
        self.lists[name] = (given, one.peer_value or one.peer)
        return (f"@{name}",)

    def _given(self, one: Opening) -> tuple[str, tuple[str, ...], str]:
        """Return the name of the list, the peers that the operator gave, and the option that gives them."""
        site = self._site
        if one.peer in _LISTS:
            name, option = _LISTS[one.peer]
            return name, getattr(site, name.replace("-", "_")), option
        option = f"{_CLASSES[one.peer]} {one.peer_value}=PEERS"
        return self._list_name(one), site.classes.get(one.peer_value, ()), option

    def _list_name(self, one: Opening) -> str:
        """Return a name that no other class has: two of them may end in the same word."""
        key = (one.peer, one.peer_value)
        if key not in self._list_names:
            base = name = list_name(*key)
            number = 1
            while name in self._list_names.values():
                number += 1
                name = f"{base[:27].rstrip('-')}-{number}"
            self._list_names[key] = name
        return self._list_names[key]

    def _note_name(self, name: str, families: tuple[int, ...], origins: Sequence[str], side: Side) -> None:
        """A rule cannot ask for one family of a name's addresses, unless its other side has no other."""
        if len(families) == 2:
            return
        if self._site.role is Role.GATEWAY and not (side is Side.DEVICE and self._macs):
            return  # the device's own addresses are of the one family
        text = f"the entry is for IPv{families[0]} alone, the rule for every address of {name}"
        self._say(FindingKind.WIDENED, origins, text)

    def _is_own(self, peer: str) -> bool:
        try:
            return self._own.has(ip_address(peer))
        except ValueError:
            return False

    def _say(self, kind: FindingKind, origins: Sequence[str], message: str) -> None:
        finding = Finding(kind=kind, where=", ".join(origins), message=message)
        if finding not in self.findings:
            self.findings.append(finding)


def list_name(kind: PeerKind, value: str) -> str:
    """Return the name of the list of peers that a controller, a manufacturer or a model becomes."""
    last = re.split(r"[:/]", value.rstrip("/"))[-1]
    return f"{kind}-{_slug(last) or 'x'}"[:32].rstrip("-")


def _both_families(
    openings: Sequence[Opening],
) -> Iterable[tuple[tuple[int, ...], list[str], Opening]]:
    """Yield (families, origins, opening): what is said of IPv4 and of IPv6 in the same words is one."""
    joined: dict[tuple[object, ...], tuple[set[int], list[str], Opening]] = {}
    for one in openings:
        key = (one.side, one.protocol, one.ports, one.peer, one.peer_value)
        families, origins, _ = joined.setdefault(key, (set(), [], one))
        families.add(one.family)
        if one.origin not in origins:
            origins.append(one.origin)
    return [(tuple(sorted(families)), origins, one) for families, origins, one in joined.values()]


def _rule(table: str, one: Opening, fixed: tuple[tuple[str, tuple[str, ...]], ...], key: str) -> _Rule:
    return _Rule(
        table=table,
        side=one.side,
        protocol=one.protocol,
        ports=one.ports,
        fixed=fixed,
        key=key,
        peers=[],
        origins=[],
    )


def _join_ports(rules: Iterable[_Rule]) -> list[_Rule]:
    """Return the rules with those joined that differ in nothing but their ports."""
    joined: dict[tuple[object, ...], _Rule] = {}
    full: list[_Rule] = []
    for rule in rules:
        if "any" in rule.peers and not any(peer.startswith("!") for peer in rule.peers):
            rule.peers = ["any"]
        key = (rule.table, rule.side, rule.protocol, rule.fixed, rule.key, frozenset(rule.peers))
        known = joined.setdefault(key, rule)
        if known is not rule:
            ports = _merge((*known.ports, *rule.ports))
            if len(ports) > MAX_PORTS:
                full.append(known)
                joined[key] = rule
                continue
            known.ports = ports
            known.origins += [origin for origin in rule.origins if origin not in known.origins]
    return [*full, *joined.values()]


def _merge(spans: Iterable[Span]) -> tuple[Span, ...]:
    merged: list[Span] = []
    for span in sorted(set(spans)):
        if merged and span.first <= merged[-1].last + 1:
            merged[-1] = Span(first=merged[-1].first, last=max(merged[-1].last, span.last))
        else:
            merged.append(span)
    return tuple(merged)


def _static(peers: Sequence[str], option: str, *, macs: bool, names: bool = False) -> PeerGroup:
    try:
        group = parse_peers(peers, option)
    except BadPeer as error:
        raise MudPeers(error.message) from error
    if (group.macs and not macs) or (group.names and not names):
        raise MudPeers(f"{option}: {', '.join((*group.macs, *group.names))} cannot stand here")
    return group


def _of_families(peers: Sequence[str], families: tuple[int, ...]) -> tuple[str, ...]:
    """Return the peers that are of ``families``, as they were written; everybody becomes everybody of these."""
    left: list[str] = []
    for peer in peers:
        try:
            if ip_network(peer.removeprefix("!")).version in families:
                left.append(peer)
        except ValueError:
            left += [_EVERYBODY[families[0]]] if peer == "any" and len(families) == 1 else [peer]
    return tuple(left) if any(not peer.startswith("!") for peer in left) else ()


def _short(network: object) -> str:
    """Return a network as it is written; one address without its length."""
    return str(network).removesuffix("/32").removesuffix("/128")


def _encode(
    mud: MudFile,
    site: Site,
    *,
    rules: Sequence[_Rule],
    lists: Mapping[str, tuple[tuple[str, ...], str]],
    prefix: str,
    findings: Sequence[Finding],
    signer: str | None,
) -> str:
    about = ", ".join(word for word in (mud.manufacturer, mud.model, mud.systeminfo) if word)
    lines = [
        _comment(f"What {mud.url} of {mud.last_update:%Y-%m-%d} lets the device do{f' ({about})' if about else ''}."),
        _comment(f"Signed by {signer}." if signer else "NOT SIGNED: anybody on its way here can have written it."),
    ]
    lines += [_comment(f"{one.kind}: {one.where}: {one.message}") for one in findings]
    if site.role is Role.DEVICE:
        lines += ["", "[firewall]", "ping_per_s = 0  # the file's own entries say who may ping"]
        lines += ["", "[firewall.egress]", 'default = "deny"']
    if lists:
        lines += ["", "[firewall.peers]"]
        lines += [f"{name} = {_array(peers)}  {_comment(meaning)}" for name, (peers, meaning) in sorted(lists.items())]
    taken: set[str] = set()
    order = {"services": 0, "egress.services": 1, "routes": 2}
    for rule in sorted(rules, key=lambda one: (order[one.table], one.side is Side.PEER, one.protocol, one.ports)):
        lines += _encode_rule(rule, _name(rule, prefix, taken))
    return "\n".join(lines) + "\n"


def _encode_rule(rule: _Rule, name: str) -> list[str]:
    shown = ", ".join(rule.origins[:MAX_ORIGINS])
    more = f" and {len(rule.origins) - MAX_ORIGINS} more" if len(rule.origins) > MAX_ORIGINS else ""
    lines = ["", _comment(f"{shown}{more}"), f"[firewall.{rule.table}.{name}]", f'protocol = "{rule.protocol}"']
    if rule.ports:
        words = [str(one.first) if one.first == one.last else f'"{one.first}-{one.last}"' for one in rule.ports]
        lines.append(f"ports = [{', '.join(words)}]")
    keys = dict((*rule.fixed, (rule.key, tuple(rule.peers))))
    order = ("sources", "destinations", "peers", "from_zones", "to_zones", "zones")
    return lines + [f"{key} = {_array(keys[key])}" for key in order if key in keys]


def _name(rule: _Rule, prefix: str, taken: set[str]) -> str:
    """Return a name that no other rule of this fragment has."""
    way = {"services": "", "egress.services": "", "routes": "-out" if rule.side is Side.DEVICE else "-in"}[rule.table]
    port = "" if not rule.ports else "-all" if rule.ports[0].last - rule.ports[0].first > 65000 else ""
    port = port or (f"-{rule.ports[0].first}" if rule.ports else "")
    base = f"{prefix}{way}-{rule.protocol}{port}"
    name, number = base, 1
    while f"{rule.table}.{name}" in taken:
        number += 1
        name = f"{base[:28]}-{number}"
    taken.add(f"{rule.table}.{name}")
    return name


def _prefix(mud: MudFile) -> str:
    for text in (mud.model, mud.url.rstrip("/").rpartition("/")[2].partition(".")[0], mud.systeminfo):
        slug = _slug(text)[:MAX_PREFIX].rstrip("-")
        if slug and slug[0].isalpha():
            return slug
    return "mud"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _array(words: Sequence[str]) -> str:
    return f"[{', '.join(json.dumps(word) for word in words)}]"


def _comment(text: str) -> str:
    """A comment ends with its line, and what stands in it comes from outside."""
    return f"# {re.sub(r'[^ -~]', '?', text)}"


def _parse(text: str) -> FirewallSection:
    import tomllib  # who imports a file pays for it, not the device that follows the policy

    document = tomllib.loads(text)
    try:
        return msgspec.convert(document.get("firewall", {}), FirewallSection, strict=True)
    except msgspec.ValidationError as error:  # too many rules, or a zone that can be none
        raise MudPeers(f"what is given or in the file does not fit a policy: {error}") from error
