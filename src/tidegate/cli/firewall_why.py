"""``tidegate firewall why``: which rule decides about a packet, by the policy and in the kernel."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.base.errors import TidegateError
    from tidegate.firewall.bantable import Prefix
    from tidegate.firewall.evaluate import Decision
    from tidegate.firewall.model import Ruleset
    from tidegate.firewall.peers import Address
    from tidegate.firewall.probe_packet import Probe, Question
    from tidegate.firewall.section import FirewallSection, Protocol
    from tidegate.firewall.why import KernelDecision

_ARROWS = ("→", "->", "to")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}\Z", re.IGNORECASE)
MAX_WAIT_S = 3600.0  # as long as a change may wait for its confirmation
MAX_PORT = 65535


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    why = add_verb(verbs, "why", "say which rule decides about a packet, by the policy and in the kernel")
    why.add_argument("source", metavar="SOURCE", help="an address, or `self` for this device")
    why.add_argument("->", dest="arrow", action="store_true", help=argparse.SUPPRESS)  # a word, for argparse an option
    why.add_argument("words", nargs="+", metavar="[→] [DESTINATION] PROTOCOL", help="tcp/502, udp/53, ping, esp, ...")
    why.add_argument("--policy", type=Path, metavar="POLICY.toml", help="the policy that the model answers from")
    why.add_argument("--interface", metavar="NAME", help="where it arrives, or leaves; default: as routing has it")
    why.add_argument("--mac", metavar="MAC", help="the sender's on the link; default: the neighbour's, if known")
    how = why.add_mutually_exclusive_group()
    how.add_argument("--model-only", action="store_true", help="do not ask the kernel; needs --policy")
    how.add_argument(
        "--wait", type=float, metavar="SECONDS", help="send nothing: trace the next such packet that comes by itself"
    )
    why.set_defaults(run=run_why)


def run_why(arguments: argparse.Namespace, output: Output, section: FirewallSection | None = None) -> int:
    """Print the answer; 1 when the packet is refused, undecided, or model and kernel disagree.

    ``section`` is the policy where ``--policy`` names none. Raises ``firewall.why.question``, ``.no-route``, ``.busy``,
    ``.trace-lost``; ``.no-injection`` only where there is no policy to answer from instead.
    """
    from tidegate.firewall.model import plan_ruleset
    from tidegate.firewall.probe import prepare_probe
    from tidegate.firewall.probe_packet import plan_unrouted
    from tidegate.firewall.why import Answer, compare, encode_document, encode_lines

    question = parse_question([arguments.source, *arguments.words], interface=arguments.interface, mac=arguments.mac)
    if arguments.policy is not None:
        section = _read_section(arguments.policy)
    elif section is None:
        section = _section_in_force()
    ruleset = None if section is None else plan_ruleset(section)
    _check_options(arguments, ruleset)
    probe = plan_unrouted(question) if arguments.model_only else prepare_probe(question)
    kernel, excuse = (None, None) if arguments.model_only else _ask_kernel(probe, arguments.wait, ruleset)
    why = compare(None if ruleset is None else _ask_model(probe, ruleset, question.mac), kernel)
    for line in encode_lines(probe, why):
        output.line(line)
    if excuse is not None:
        output.line(f"kernel: not asked: {excuse.message} [{excuse.code}]")
    output.result(encode_document(probe, why) | {"excuse": None if excuse is None else excuse.describe()})
    return 0 if why.answer is Answer.ALLOWED and why.conflict is None else 1


def parse_question(words: Sequence[str], *, interface: str | None = None, mac: str | None = None) -> Question:
    """Return what ``words`` ask: ``10.0.0.9 → tcp/502``, ``10.0.0.9 192.168.1.20 udp/53``, ``self → 192.0.2.7 ping``.

    Raises ``firewall.why.question``.
    """
    from tidegate.firewall.errors import BadQuestion
    from tidegate.firewall.probe_packet import Question

    rest = [word for word in " ".join(words).split() if word not in _ARROWS]
    if not 2 <= len(rest) <= 3:
        raise BadQuestion(f"{' '.join(rest)!r} is not a source, perhaps a destination, and a protocol")
    source, zone = (None, None) if rest[0] == "self" else _parse_address(rest[0])
    destination, far_zone = _parse_address(rest[1]) if len(rest) == 3 else (None, None)
    protocol, port = _parse_protocol(rest[-1])
    if source is None and destination is None:
        raise BadQuestion("a packet of this device itself needs a destination")
    if source is not None and destination is not None and source.version != destination.version:
        raise BadQuestion(f"{source} and {destination} are not of one IP version")
    if mac is not None and not _MAC.match(mac):
        raise BadQuestion(f"{mac!r} is no MAC address such as 02:00:5e:10:00:01")
    return Question(
        source=source,
        destination=destination,
        protocol=protocol,
        port=port,
        interface=interface or zone or far_zone,
        mac=None if mac is None else bytes.fromhex(mac.replace(":", "")),
    )


def _parse_address(word: str) -> tuple[Address, str | None]:
    from tidegate.firewall.errors import BadQuestion

    text, _, zone = word.partition("%")
    try:
        return ip_address(text), zone or None
    except ValueError as error:
        raise BadQuestion(f"{word!r} is no IPv4 or IPv6 address") from error


def _parse_protocol(word: str) -> tuple[Protocol, int]:
    from tidegate.firewall.errors import BadQuestion
    from tidegate.firewall.section import Protocol

    name, slash, port = word.partition("/")
    try:
        protocol = Protocol(name)
    except ValueError as error:
        names = ", ".join(one.value for one in Protocol)
        raise BadQuestion(f"{name!r} is none of {names}") from error
    if protocol.has_ports is not bool(slash):
        raise BadQuestion(f"{word!r}: {name} " + ("needs a port, as in tcp/502" if not slash else "has no ports"))
    if not slash:
        return protocol, 0
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= MAX_PORT):
        raise BadQuestion(f"{port!r} is no port from 1 to {MAX_PORT}")
    return protocol, int(port)


def _check_options(arguments: argparse.Namespace, ruleset: Ruleset | None) -> None:
    from tidegate.firewall.errors import BadQuestion

    if arguments.model_only and ruleset is None:
        raise BadQuestion("--model-only needs a policy (--policy POLICY.toml)")
    if arguments.wait is not None and not 0 < arguments.wait <= MAX_WAIT_S:
        raise BadQuestion(f"--wait takes up to {MAX_WAIT_S:g} seconds")


def _ask_kernel(
    probe: Probe, wait_s: float | None, ruleset: Ruleset | None
) -> tuple[KernelDecision | None, TidegateError | None]:
    """Return what the kernel decided, or why it could not be asked where the model can answer in its place."""
    from tidegate.firewall.errors import NoInjection, NothingCame
    from tidegate.firewall.nft import Nft
    from tidegate.firewall.probe import trace_next, trace_probe
    from tidegate.firewall.why import judge_path, plan_path

    nft = Nft.open()
    try:
        traced = trace_probe(nft, probe) if wait_s is None else trace_next(nft, probe, wait_s=wait_s)
    except NoInjection as error:
        if ruleset is None:
            raise
        return None, error
    finally:
        nft.close()
    if traced is None:
        missing = NothingCame(f"no such packet came within {wait_s:g} s", wait_s=int(wait_s or 0))
        if ruleset is None:
            raise missing
        return None, missing
    return judge_path(probe, plan_path(probe, traced.events, traced.tables)), None


def _ask_model(probe: Probe, ruleset: Ruleset, mac: bytes | None) -> Decision:
    from tidegate.firewall.evaluate import explain_packet
    from tidegate.firewall.why import plan_packet

    return explain_packet(ruleset, plan_packet(probe, ruleset, mac=mac), banned=_read_bans())


def _read_bans() -> list[Prefix]:
    """Return who is banned now; nobody where there is no table of bans, or no right to read it."""
    from tidegate.base.errors import TidegateError
    from tidegate.firewall.bans import Bans

    try:
        bans = Bans()
    except TidegateError:
        return []
    try:
        return [ban.prefix for ban in bans.list_bans()]
    except TidegateError:
        return []
    finally:
        bans.close()


def _section_in_force() -> FirewallSection | None:
    """Return the policy in force on this machine, where it can be read."""
    from tidegate.firewall.statefolder import DEFAULT_STATE, load_section_in_force

    return load_section_in_force() if os.geteuid() == 0 and DEFAULT_STATE.exists() else None


def _read_section(path: Path) -> FirewallSection:
    from tidegate.base.durable import read_file_bounded
    from tidegate.firewall.section import FirewallSection
    from tidegate.policy.document import MAX_POLICY_BYTES, parse_policy

    text = read_file_bounded(path, limit_bytes=MAX_POLICY_BYTES).decode(errors="replace")
    return parse_policy(text, name=path.name).firewall or FirewallSection()
