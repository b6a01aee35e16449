"""From a ruleset to the text of one nftables transaction.

Pure, and deterministic: equal rulesets give equal text. Written for the grammar of nft 1.0.6.

``inet tidegate`` is replaced whole by each policy; ``netdev tidegate_link`` likewise (``link``). ``inet tidegate_bans``
keeps its bans through every policy (``bantable``). The hooks of ``inet tidegate``: ``input``, ``output`` and
``forward`` decide (priority filter); ``prerouting`` and ``postrouting`` translate addresses; ``early`` leaves
handshakes to the SYN proxy; ``fields_*`` hand packets of rules with content rules to the inspector (``inspection``).
How a packet finds its rule: ``dispatch``. How limits count: ``meters``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.firewall.bantable import BAN_TABLE, encode_ban_table
from tidegate.firewall.blocks import (
    DADDR,
    PROTOCOL_NUMBERS,
    SADDR,
    Block,
    Match,
    comment,
    dns_set,
    identifier,
    interface_words,
    join_matches,
    log_words,
    protocol_matches,
)
from tidegate.firewall.dispatch import FORWARD, INPUT, OUTPUT, add_rules, chain_name, lead_to_portless, plan_port_groups
from tidegate.firewall.evaluate import MLD_OUT, ND_HOP_LIMIT, ND_IN, ND_OUT
from tidegate.firewall.inspection import add_inspection
from tidegate.firewall.link import encode_links
from tidegate.firewall.meters import Exits, add_total, rate_words
from tidegate.firewall.model import PeerGroup, Rule, Ruleset, Threshold
from tidegate.firewall.peers import Resolved
from tidegate.firewall.section import Count, Default, EgressDefault, Forward, Mode, Protocol

__all__ = ["BAN_TABLE", "TABLE", "KernelFeatures", "dns_set", "encode_ruleset", "plan_port_groups"]

TABLE = "tidegate"
REJECTS_PER_S = 10  # answers to refused packets: enough for a person's mistakes, useless as a reflector
# What the kernel answers a SYN with in the service's name: an Ethernet frame's worth, and RFC 7323's options.
SYN_PROXY = "synproxy mss 1460 wscale 7 timestamp sack-perm"
_ICMP = "meta l4proto { 1, 58 } "
_PING = protocol_matches(Protocol.PING, ())
_ANSWERS = "ct state established,related accept"  # no set to look in: it holds while the rules behind it are replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFeatures:
    """What a kernel may lack. ``queue``: nft's own; without it the inspector is fed through iptables' NFQUEUE."""

    queue: bool = False
    synproxy: bool = True


def encode_ruleset(ruleset: Ruleset, *, resolved: Resolved | None = None, kernel: KernelFeatures | None = None) -> str:
    """Return the transaction that puts ``ruleset`` in force: all of it or, when the kernel refuses, nothing.

    ``resolved`` fills the sets of DNS names: addresses, each with the seconds for which it holds. Sets of bans keep
    their elements and remaining times. Older kernels may also keep their old size.
    """
    return "".join(
        (
            # Declared first so that the delete cannot fail on a fresh kernel.
            f"table inet {TABLE}\ndelete table inet {TABLE}\n",
            _encode_table(ruleset, resolved, kernel or KernelFeatures()),
            _encode_bans(ruleset),
            encode_links(ruleset.links),
        )
    )


def _encode_bans(ruleset: Ruleset) -> str:
    management = ruleset.management
    managers = PeerGroup() if management is None or management.peers.everyone else management.peers
    return encode_ban_table(
        verdict=_final_verdict(ruleset), never=ruleset.never, managers=managers, size=ruleset.ban_max
    )


def _encode_table(ruleset: Ruleset, resolved: Resolved | None, kernel: KernelFeatures) -> str:
    block = Block(resolved)
    locked = ruleset.mode is Mode.LOCKDOWN
    for name in ("invalid", "denied", "egress_denied", "forward_denied", "management", "ping"):
        block.counter(name)
    _add_management(block, ruleset)
    if locked:
        _add_locked(block, ruleset)
    else:
        _add_input(block, ruleset, kernel)
        _add_output(block, ruleset)
        _add_forward(block, ruleset)
    _add_translation(block, ruleset)
    add_inspection(block, ruleset, queue=kernel.queue)
    return block.encode(TABLE)


def _add_input(block: Block, ruleset: Ruleset, kernel: KernelFeatures) -> None:
    """Everything that has a threshold stands behind management: a flood must not use up the manager's share.

    What counts packets of established connections has to stand before those are admitted, and so has management then.
    """
    verdict = _final_verdict(ruleset)
    log = _log_words(ruleset, "tidegate-observed ")
    packets = _packet_thresholds(block, ruleset, ruleset.services, "in", log)
    states = _states(block, ruleset, admit=not packets)
    bounds = _new_thresholds(block, ruleset, log)
    lines = [
        f"type filter hook input priority filter; policy {verdict};",
        *(_lead_to_proven(block, ruleset, bounds) if kernel.synproxy else ()),
        'iifname "lo" accept',
        *_add_syn_proxies(block, ruleset, kernel),
        *states,
        *_management_lead(ruleset),
        *packets,
        *([_ANSWERS] if packets else []),
        f"{_ICMP}jump neighbours",
        *([*bounds, f"{_ICMP}jump pings"] if bounds else []),
        *add_rules(block, INPUT, ruleset.services, log=log),
        *lead_to_portless(ruleset.services),
        *_log(ruleset, "tidegate-denied "),
    ]
    block.chain("neighbours", [*_neighbour_in(), *([] if bounds else ["goto pings"])])
    limit = f"limit rate {ruleset.ping_per_s}/second burst {ruleset.ping_per_s} packets counter name ping accept"
    pings = [f"{match.words} {limit} {comment('ping')}" for match in _PING if ruleset.ping_per_s]
    block.chain("pings", pings)
    if ruleset.default is Default.REJECT and ruleset.mode is Mode.ENFORCE:
        bound = f"limit rate {REJECTS_PER_S}/second burst {REJECTS_PER_S} packets counter name denied"
        lines += [
            f"meta l4proto 6 {bound} reject with tcp reset {comment('default')}",
            f"meta l4proto != 6 {bound} reject with icmpx type admin-prohibited {comment('default')}",
        ]
    block.chain("input", [*lines, f"counter name denied {verdict} {comment('default')}"])


def _states(block: Block, ruleset: Ruleset, *, admit: bool) -> list[str]:
    """Return the lines that decide by what connection tracking says; ``admit``: packets of known connections."""
    name = block.chain_once("invalid", [f"counter name invalid {_final_verdict(ruleset)} {comment('invalid')}"])
    return [*([_ANSWERS] if admit else []), f"ct state invalid jump {name}"]


def _management_lead(ruleset: Ruleset) -> list[str]:
    management = ruleset.management
    if management is None:
        return []
    start = interface_words("iifname", management.service.interfaces)
    ports = protocol_matches(management.service.protocol, management.service.spans)
    return [f"{start}{match.words} jump management" for match in ports]


def _add_output(block: Block, ruleset: Ruleset) -> None:
    """Only local programs see the refusal, and it tells them at once what a silent drop would tell after minutes."""
    allowing = ruleset.egress_default is EgressDefault.ALLOW
    if allowing and not any(rule.observe or rule.fields for rule in ruleset.egress):
        return
    refuses = not allowing and ruleset.mode is not Mode.OBSERVE
    refusal = "reject with icmpx type admin-prohibited" if refuses else "accept"
    lines = [
        f"type filter hook output priority filter; policy {'drop' if refuses else 'accept'};",
        'oifname "lo" accept',
        _ANSWERS,
        f"{_ICMP}jump neighbours_out",
        *(line for rule in ruleset.services if rule.syn_proxy for line in _proxied_answers(rule)),
        *add_rules(block, OUTPUT, ruleset.egress, log=_log_words(ruleset, "tidegate-observed ")),
        *lead_to_portless(ruleset.egress),
    ]
    block.chain("neighbours_out", _neighbour_out())
    if not allowing:
        lines += [*_log(ruleset, "tidegate-egress "), f"counter name egress_denied {refusal} {comment('egress')}"]
    block.chain("output", lines)


def _add_forward(block: Block, ruleset: Ruleset) -> None:
    if ruleset.forward is Forward.LEAVE:
        return
    verdict = _final_verdict(ruleset)
    head = f"type filter hook forward priority filter; policy {verdict};"
    log = _log_words(ruleset, "tidegate-observed ")
    lines = [head]
    if ruleset.routes:
        packets = _packet_thresholds(block, ruleset, ruleset.routes, "fwd", log)
        lines += [*_states(block, ruleset, admit=not packets), *packets, *([_ANSWERS] if packets else [])]
        lines += [*add_rules(block, FORWARD, ruleset.routes, log=log), *lead_to_portless(ruleset.routes)]
        lines += _log(ruleset, "tidegate-forward ")
    block.chain("forward", [*lines, f"counter name forward_denied {verdict} {comment('forward')}"])


def _add_locked(block: Block, ruleset: Ruleset) -> None:
    """Running sessions of other rules end too, so ``established`` alone admits nothing."""
    management, about_errors = ruleset.management, f"{_ICMP}ct state related accept"
    egress = [] if management is None or management.egress is None else [management.egress]
    incoming = [
        "type filter hook input priority filter; policy drop;",
        'iifname "lo" accept',
        f"ct state invalid counter name invalid drop {comment('invalid')}",
        *_neighbour_in(),
        *_management_lead(ruleset),
        about_errors,
    ]
    outgoing = ["type filter hook output priority filter; policy drop;", 'oifname "lo" accept', *_neighbour_out()]
    outgoing.append(about_errors)
    if management is not None:
        answering = Rule(
            kind=management.service.kind,
            name="management",
            protocol=management.service.protocol,
            spans=management.service.spans,
            interfaces=management.service.interfaces,
            peers=management.peers,
        )
        outgoing += _stateless(block, answering, "oifname", DADDR, port="sport", label="management")
    for rule in ruleset.services:
        if rule.kept:
            incoming += _stateless(block, rule, "iifname", SADDR, port="dport", label=rule.label)
            outgoing += _stateless(block, rule, "oifname", DADDR, port="sport", label=rule.label, answers=True)
    for rule in dict.fromkeys((*egress, *(rule for rule in ruleset.egress if rule.kept))):
        outgoing += _stateless(block, rule, "oifname", DADDR, port="dport", label=rule.label)
        incoming += _stateless(block, rule, "iifname", SADDR, port="sport", label=rule.label, answers=True)
    refused = f"counter name denied drop {comment('lockdown')}"
    block.chain("input", [*incoming, *_log(ruleset, "tidegate-locked "), refused])
    refused = f"counter name egress_denied reject with icmpx type admin-prohibited {comment('lockdown')}"
    block.chain("output", [*outgoing, refused])
    passing = [line for rule in ruleset.routes if rule.kept for line in _stateless_route(block, rule)]
    refused = f"counter name forward_denied drop {comment('lockdown')}"
    block.chain("forward", ["type filter hook forward priority filter; policy drop;", *passing, refused])


def _stateless(
    block: Block, rule: Rule, interface: str, field: dict[int, str], *, port: str, label: str, answers: bool = False
) -> list[str]:
    """Return the lines that admit one direction of a rule whatever connection tracking says of it.

    ``answers``: only packets of a connection that exists, and nothing for protocols without ports: by a port that
    stays open, no program may call out.
    """
    if answers and not rule.spans:
        return []
    start = interface_words(interface, rule.interfaces)
    state = "ct state established " if answers else ""
    peers = block.peer_matches(f"{chain_name(rule)}_kept", rule.peers, field)
    matches = join_matches(protocol_matches(rule.protocol, rule.spans, port=port), peers) if peers else []
    return [f"{start}{state}{match.words} accept {comment(label)}" for match in matches]


def _stateless_route(block: Block, rule: Rule) -> list[str]:
    name = f"{chain_name(rule)}_kept"
    there = interface_words("iifname", rule.interfaces) + interface_words("oifname", rule.out_interfaces)
    back = interface_words("oifname", rule.interfaces) + interface_words("iifname", rule.out_interfaces)
    if rule.translated:
        there, back = f"{there}ct status dnat ", f"{back}ct status dnat "
    lines = []
    for start, port, far, near in ((there, "dport", SADDR, DADDR), (back, "sport", DADDR, SADDR)):
        if port == "sport" and not rule.spans:
            continue
        state = "ct state established " if port == "sport" else ""
        sides = (block.peer_matches(name, rule.peers, far), block.peer_matches(f"{name}_to", rule.destinations, near))
        if all(sides):
            matches = join_matches(protocol_matches(rule.protocol, rule.spans, port=port), *sides)
            lines += [f"{start}{state}{match.words} accept {comment(rule.label)}" for match in matches]
    return lines


def _add_management(block: Block, ruleset: Ruleset) -> None:
    management = ruleset.management
    matches = block.peer_matches("management", management.peers, SADDR) if management is not None else []
    end = f"counter name management accept {comment('management')}"
    block.chain("management", [f"{match.words} {end}".strip() for match in matches])


def _new_thresholds(block: Block, ruleset: Ruleset, log: str) -> list[str]:
    """Return the jumps to what bounds new connections of all services together."""
    return [
        f"jump {_add_threshold(block, ruleset, number, one, log)}"
        for number, one in enumerate(ruleset.thresholds)
        if one.count is Count.NEW
    ]


def _packet_thresholds(block: Block, ruleset: Ruleset, rules: Sequence[Rule], side: str, log: str) -> list[str]:
    """Return the lines, before established packets are admitted, of everything that counts every packet."""
    lines = []
    if side == "in":
        lines += [
            f"jump {_add_threshold(block, ruleset, number, one, log)}"
            for number, one in enumerate(ruleset.thresholds)
            if one.count is Count.PACKETS
        ]
    for rule in rules:
        for number, one in enumerate(rule.thresholds):
            if one.count is not Count.PACKETS:
                continue
            name = f"{chain_name(rule)}_k{number}"
            verdict = "accept" if rule.observe else _final_verdict(ruleset)
            exits = Exits(
                admit="return",
                refuse=f"{verdict} {comment(rule.label)}",
                counter=block.counter(f"{name}_over"),
                report=log if rule.observe else "",
            )
            gate = add_total(block, name, one, exits)
            lines += [f"{words} jump {gate}" for words in _rule_words(block, rule, side)]
    return lines


def _rule_words(block: Block, rule: Rule, side: str) -> list[str]:
    """Return every way to be a packet of the rule, whatever its connection's state."""
    start = interface_words("iifname", rule.interfaces) + interface_words("oifname", rule.out_interfaces)
    name = f"{chain_name(rule)}_k"
    sides = [block.peer_matches(name, rule.peers, SADDR)]
    if side == "fwd":
        sides.append(block.peer_matches(f"{name}_to", rule.destinations, DADDR))
    if not all(sides):
        return []
    matches = join_matches(protocol_matches(rule.protocol, rule.spans), *sides)
    return [f"{start}{match.words}" for match in matches]


def _add_threshold(block: Block, ruleset: Ruleset, number: int, one: Threshold, log: str) -> str:
    name = f"all_{number}"
    counter = block.counter(f"{name}_over")
    refuse = f"{_final_verdict(ruleset)} {comment('thresholds')}"
    return add_total(block, name, one, Exits(admit="return", refuse=refuse, counter=counter, report=log))


def _add_syn_proxies(block: Block, ruleset: Ruleset, kernel: KernelFeatures) -> list[str]:
    """Leave handshakes of proxied services untracked; return the input lines that answer them.

    A SYN costs neither a connection entry nor a look at the service until its sender has proved its address.
    """
    proxied = [rule for rule in ruleset.services if rule.syn_proxy] if kernel.synproxy else []
    early, lines = [], []
    for rule in proxied:
        name, label = f"{chain_name(rule)}_syn", comment(rule.label)
        start = interface_words("iifname", rule.interfaces)
        peers = block.peer_matches(name, rule.peers, SADDR)
        words = [f"{start}{one.words}" for one in join_matches(protocol_matches(rule.protocol, rule.spans), peers)]
        early += [f"{match} tcp flags & (fin | syn | rst | ack) == syn notrack {label}" for match in words if peers]
        counter = block.counter(f"{name}_over")
        rates = {family: rate_words(block, name, rule.limit, family) for family in (4, 6)}
        gate = block.chain(
            name,
            [
                f"ct state invalid {SYN_PROXY} {label}",
                *(f"{one.words} {SYN_PROXY} {label}".strip() for one in _managers(block, ruleset, rule)),
                *(f"meta nfproto ipv{family} {rates[family]}{SYN_PROXY} {label}" for family in (4, 6)),
                f"counter name {counter} {'accept' if rule.observe else _final_verdict(ruleset)} {label}",
            ],
        )
        lines += [f"{match} ct state {{ invalid, untracked }} jump {gate}" for match in words if peers]
    if early:
        block.chain("early", ["type filter hook prerouting priority raw; policy accept;", *early])
    return lines


def _lead_to_proven(block: Block, ruleset: Ruleset, bounds: Sequence[str]) -> list[str]:
    """Return the lines to what bounds connections whose handshake the SYN proxy has finished.

    It opens them anew, from the caller's address and by the loopback device: that is where they are new.
    """
    lines = []
    for rule in ruleset.services:
        if not rule.syn_proxy or not (rule.is_limited or bounds):
            continue
        refusal = f"{'accept' if rule.observe else _final_verdict(ruleset)} {comment(rule.label)}"
        spared = [f"{one.words} accept".strip() for one in _managers(block, ruleset, rule)]
        decided = [f"jump {chain_name(rule)}_gate", refusal] if rule.is_limited else ["accept"]
        chain = block.chain(f"{chain_name(rule)}_proven", [*spared, *bounds, *decided])
        known = PeerGroup(everyone=True) if rule.peers.macs else rule.peers  # no MAC address has come this way
        peers = block.peer_matches(f"{chain_name(rule)}_syn", known, SADDR)
        matches = join_matches(protocol_matches(rule.protocol, rule.spans), peers) if peers else []
        lines += [f'iifname "lo" ct state new fib saddr type != local {one.words} jump {chain}' for one in matches]
    return lines


def _managers(block: Block, ruleset: Ruleset, rule: Rule) -> list[Match]:
    """Return every way to be a manager, where ``rule`` is what they manage by; no flood may use up their share."""
    management = ruleset.management
    if management is None or management.service is not rule:
        return []
    return block.peer_matches("management", management.peers, SADDR)


def _proxied_answers(rule: Rule) -> list[str]:
    """Return the lines that let out the kernel's answer to a handshake, which no connection stands behind yet."""
    start = interface_words("oifname", rule.interfaces)
    answer = "tcp flags & (fin | syn | rst | ack) == syn | ack ct state != established"
    matches = protocol_matches(rule.protocol, rule.spans, port="sport")
    return [f"{start}{match.words} {answer} accept {comment(rule.label)}" for match in matches]


def _add_translation(block: Block, ruleset: Ruleset) -> None:
    if ruleset.masquerades:
        lines = []
        for one in ruleset.masquerades:
            start = interface_words("oifname", one.interfaces)
            name = identifier("masq", one.name)
            matches = block.peer_matches(name, one.sources, SADDR)
            label = comment(f"nat.masquerade.{one.name}")
            lines += [f"{start}{match.words} masquerade {label}".replace("  ", " ") for match in matches]
        block.chain("postrouting", ["type nat hook postrouting priority srcnat; policy accept;", *lines])
    if ruleset.port_forwards:
        lines = []
        for forward in ruleset.port_forwards:
            family = forward.to.version
            # What only passes through on its way to another host is not the gateway's to translate.
            local = f"meta nfproto ipv{family} fib daddr type local"
            match = f"{local} meta l4proto {PROTOCOL_NUMBERS[forward.protocol]} th dport {forward.port}"
            to = f"{forward.to}" if family == 4 else f"[{forward.to}]"
            label = comment(f"nat.port-forwards.{forward.name}")
            start = interface_words("iifname", forward.interfaces)
            lines.append(f"{start}{match} dnat {'ip' if family == 4 else 'ip6'} to {to}:{forward.to_port} {label}")
        block.chain("prerouting", ["type nat hook prerouting priority dstnat; policy accept;", *lines])


def _neighbour_in() -> list[str]:
    hop = f"ip6 hoplimit {ND_HOP_LIMIT}"
    label = comment("neighbours")
    return [
        f"icmpv6 type {{ {', '.join(ND_IN)} }} {hop} accept {label}",
        f"icmpv6 type mld-listener-query ip6 saddr fe80::/10 accept {label}",
    ]


def _neighbour_out() -> list[str]:
    return [f"icmpv6 type {{ {', '.join((*ND_OUT, *MLD_OUT))} }} accept {comment('neighbours')}"]


def _log(ruleset: Ruleset, prefix: str) -> list[str]:
    words = _log_words(ruleset, prefix)
    return [words] if words else []


def _log_words(ruleset: Ruleset, prefix: str) -> str:
    return log_words(ruleset.log_per_s, ruleset.log_group, prefix)


def _final_verdict(ruleset: Ruleset) -> str:
    return "accept" if ruleset.mode is Mode.OBSERVE else "drop"
