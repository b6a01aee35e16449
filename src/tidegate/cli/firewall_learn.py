"""``tidegate firewall learn``: watch for a time, then propose the smallest policy that allows what was seen."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.firewall.learn import Flow, Learner, Proposal, Proposed, Session, Wishes
    from tidegate.firewall.model import Address

MAX_SECONDS = 31 * 86_400.0  # a month: what happens once a month is in it
_STEP_S = 0.5  # between two looks at the clock


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    learn = add_verb(verbs, "learn", "watch this machine's flows and propose the smallest policy that allows them")
    learn.add_argument("--for", dest="seconds", type=float, metavar="SECONDS", help="how long; Ctrl-C ends it early")
    learn.add_argument(
        "--eve", type=Path, metavar="FILE", help="learn from the flow events of this file instead (EVE JSON lines)"
    )
    learn.add_argument(
        "--device", nargs="+", default=[], metavar="ADDR", help="the device's addresses; default: this machine's"
    )
    learn.add_argument("--interface", metavar="IF", help="only flows of peers that are reached by IF; rules name IF")
    learn.add_argument("--widen-v4", type=int, metavar="LENGTH", help="gather many peers into prefixes of this length")
    learn.add_argument("--widen-v6", type=int, metavar="LENGTH", help="the same for IPv6")
    learn.add_argument("--dns-names", action="store_true", help="write names for addresses that DNS answers gave them")
    learn.add_argument("-o", "--output", type=Path, metavar="FILE.toml", help="write the proposal there, not here")
    learn.set_defaults(run=run_learn)


def run_learn(arguments: argparse.Namespace, output: Output) -> int:
    """Watch and propose; 1 when nothing was seen that could be proposed.

    Raises ``firewall.learn.wish``, ``firewall.learn.no-conntrack``, ``base.privilege.missing``, ``base.storage.*``.
    """
    from tidegate.base.durable import write_file_atomic
    from tidegate.firewall.proposal import encode_proposal
    from tidegate.policy.document import MAX_POLICY_BYTES

    _check(arguments)
    begin = time.time()
    learner, names, lost = _learn_from_eve(arguments) if arguments.eve is not None else _learn_live(arguments, output)
    proposal = learner.propose(_wishes(arguments, names))
    source = arguments.eve.name if arguments.eve is not None else f"{time.time() - begin:.0f} s of watching"
    text = encode_proposal(proposal, description=f"learnt from {source}: {learner.flows} flows")
    if lost:
        text = (
            f"# Counts are not exact: {lost} times the kernel's notices overflowed; its table was read again.\n{text}"
        )
    if len(text) > MAX_POLICY_BYTES:
        text = (
            f"# Too long for a policy ({len(text)} bytes of {MAX_POLICY_BYTES}): gather peers with --widen-v4.\n{text}"
        )
    if arguments.output is not None:
        write_file_atomic(arguments.output, text.encode())
        output.line(f"{len(proposal.rules)} rules from {learner.flows} flows, {len(proposal.aside)} left out")
        output.line(f"{arguments.output}: read it, then `tidegate firewall plan {arguments.output}`")
    else:
        output.line(text.rstrip())
    output.result(_document(proposal, learner.flows, lost, text))
    return 0 if proposal.rules else 1


def _learn_live(arguments: argparse.Namespace, output: Output) -> tuple[Learner, dict[Address, str], int]:
    from tidegate.firewall.learn import Learner
    from tidegate.firewall.observe import ConntrackWatch, broadcast_addresses, own_addresses

    broadcasts = broadcast_addresses()
    learner = Learner(broadcasts)
    with ConntrackWatch(_own(arguments) or own_addresses(), broadcasts=broadcasts) as watch:
        deadline = time.monotonic() + arguments.seconds
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                for flow in watch.watch(min(_STEP_S, left_s)):
                    _add(learner, flow, arguments.interface)
                output.progress(f"{max(0, deadline - time.monotonic()):.0f} s left, {learner.flows} flows have ended")
        except KeyboardInterrupt:
            output.progress("")
        for flow in watch.flows():
            _add(learner, flow, arguments.interface)
        lost = watch.lost
    output.progress("")
    return learner, {}, lost


def _learn_from_eve(arguments: argparse.Namespace) -> tuple[Learner, dict[Address, str], int]:
    from tidegate.firewall.eveflows import parse_flow, parse_names
    from tidegate.firewall.learn import Learner
    from tidegate.firewall.observe import own_addresses

    learner = Learner()
    names: dict[Address, str] = {}
    own = _own(arguments) or own_addresses()
    for line in _read_lines(arguments.eve):
        flow = parse_flow(line, own)
        if flow is not None:
            _add(learner, flow, arguments.interface)
        elif arguments.dns_names and len(names) < _MAX_NAMES:
            names |= parse_names(line)
    return learner, names, 0


_MAX_NAMES = 65_536  # as many as flows are remembered


def _read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file that may be longer than memory; what is left of an overlong line is one of its own."""
    from tidegate.base.durable import translate_os_errors
    from tidegate.firewall.eveflows import MAX_LINE_BYTES

    with translate_os_errors(path), path.open("rb") as stream:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            yield line


def _add(learner: Learner, flow: Flow, interface: str | None) -> None:
    if interface is None or _passes(flow, interface):
        learner.add(flow)


def _passes(flow: Flow, interface: str) -> bool:
    """Return whether routing reaches the flow's far side by ``interface``; groups are on every link."""
    from tidegate.firewall.errors import NoRoute
    from tidegate.firewall.model import Direction
    from tidegate.firewall.rtnetlink import find_route

    far = flow.destination if flow.direction is Direction.OUT else flow.source
    if far.is_multicast or far.is_link_local or far.is_unspecified or str(far) == "255.255.255.255":
        return True
    try:
        return find_route(far).interface == interface
    except (NoRoute, OSError):
        return False


def _own(arguments: argparse.Namespace) -> frozenset[Address]:
    from tidegate.firewall.errors import BadWish

    try:
        return frozenset(ip_address(text) for text in arguments.device)
    except ValueError as error:
        raise BadWish(f"--device: {error}") from error


def _check(arguments: argparse.Namespace) -> None:
    from tidegate.firewall.errors import BadWish

    if (arguments.eve is None) == (arguments.seconds is None):
        raise BadWish("either --for SECONDS or --eve FILE")
    if arguments.seconds is not None and not 0 < arguments.seconds <= MAX_SECONDS:
        raise BadWish(f"--for {arguments.seconds:g} is not above 0 and at most {MAX_SECONDS:.0f}")
    for name, value, least, most in (("v4", arguments.widen_v4, 8, 32), ("v6", arguments.widen_v6, 16, 128)):
        if value is not None and not least <= value <= most:
            raise BadWish(f"--widen-{name} {value} is not from {least} to {most}")


def _wishes(arguments: argparse.Namespace, names: dict[Address, str]) -> Wishes:
    from tidegate.firewall.learn import Wishes

    return Wishes(
        widen_v4=arguments.widen_v4,
        widen_v6=arguments.widen_v6,
        interface=arguments.interface,
        names=names,
        session=None if arguments.eve is not None else _session(),
    )


def _session() -> Session | None:
    """Return the SSH session that this runs in (sshd(8), SSH_CONNECTION: client, its port, server, its port)."""
    from tidegate.firewall.learn import Session

    words = os.environ.get("SSH_CONNECTION", "").split()
    try:
        return Session(client=ip_address(words[0].partition("%")[0]), port=int(words[3]))
    except (ValueError, IndexError):
        return None


def _document(proposal: Proposal, flows: int, lost: int, text: str) -> dict[str, object]:
    from msgspec import to_builtins

    return {
        "flows": flows,
        "forgotten": proposal.forgotten,
        "lost": lost,
        "answers_ping": proposal.answers_ping,
        "rules": [_rule(rule) for rule in proposal.rules],
        "left_out": [
            {"why": str(one.why), "flow": one.label, "evidence": to_builtins(one.evidence)} for one in proposal.aside
        ],
        "policy": text,
    }


def _rule(rule: Proposed) -> dict[str, object]:
    from msgspec import to_builtins

    return {
        "direction": rule.direction.value,
        "name": rule.name,
        "protocol": rule.protocol.value,
        "ports": list(rule.ports),
        "far": list(rule.far),
        "near": list(rule.near),
        "seen": rule.seen,
        "once": rule.evidence.is_once,
        "wider": rule.is_wider,
        "evidence": to_builtins(rule.evidence),
    }
