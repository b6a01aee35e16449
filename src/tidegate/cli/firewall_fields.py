"""``tidegate firewall fields``: run the inspector of a policy's field rules, or a proxy with one of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tidegate.cli.main import add_verb
from tidegate.cli.output import Output

if TYPE_CHECKING:
    from tidegate.firewall.fields import PlannedField
    from tidegate.ids.fieldproxy import FieldProxy

_MEMORY_KIB = 4096


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verbs."""
    fields = add_verb(verbs, "fields", "inspect the content of services: as the policy's field rules say")
    actions = fields.add_subparsers(dest="subverb", metavar="ACTION", required=True)

    run = add_verb(actions, "run", "answer the packet queue until interrupted, print EVE lines (root)")
    run.add_argument("policy", type=Path, metavar="POLICY.toml", help="the policy as an operator writes it")
    run.add_argument("--no-rules", action="store_true", help="leave iptables' queue rules as they are")
    run.add_argument(
        "--queue", type=_number(0, 65535), metavar="N", help="the queue's number; default: the one that policies use"
    )
    _add_memory(run)
    run.set_defaults(run=run_inspector)

    proxy = add_verb(actions, "proxy", "stand before a TCP service and pass on what one field rule allows")
    proxy.add_argument("policy", type=Path, metavar="POLICY.toml", help="the policy as an operator writes it")
    proxy.add_argument("--listen", required=True, metavar="ADDR:PORT", help="where clients connect to")
    proxy.add_argument("--to", required=True, metavar="ADDR:PORT", help="the server")
    proxy.add_argument("--rules", required=True, metavar="NAME", help="a name under [firewall.fields]")
    _add_memory(proxy)
    proxy.set_defaults(run=run_proxy)

    support = add_verb(actions, "support", "say which ways this kernel has to an inspector; 1 when none")
    support.set_defaults(run=run_support)


def run_inspector(arguments: argparse.Namespace, _output: Output) -> int:
    """Replace this process by the inspector's, with the policy's rules on its standard input.

    Where nft has no queue of its own, iptables' rules to the queue are put in place first.
    """
    from tidegate.firewall.errors import NoQueue
    from tidegate.firewall.inspection import QUEUE
    from tidegate.firewall.xtqueue import install_queue_rules, queue_support

    config = _config(_planned(arguments.policy), arguments.memory_kib)
    number = QUEUE if arguments.queue is None else arguments.queue
    support = queue_support()
    if not support.any:
        raise NoQueue("packets cannot be handed to an inspector here")
    if not support.nft and not arguments.no_rules:
        install_queue_rules(number)
    reader = os.memfd_create("rules")  # a pipe would have to hold all of it
    with os.fdopen(reader, "wb", closefd=False) as stream:
        stream.write(config.encode() + b"\n")
    os.lseek(reader, 0, os.SEEK_SET)
    os.dup2(reader, sys.stdin.fileno())
    os.execv(sys.executable, [sys.executable, "-m", "tidegate.ids.inline", "--queue", str(number)])  # noqa: S606


def run_proxy(arguments: argparse.Namespace, _output: Output) -> int:
    """Relay until interrupted; each refusal is printed as an EVE line."""
    import asyncio

    from tidegate.firewall.errors import BadField
    from tidegate.ids.fieldproxy import FieldProxy, ProxyRule, parse_endpoint

    planned = _planned(arguments.policy)
    wanted = next((rule for rule in planned if rule.name == arguments.rules), None)
    if wanted is None:
        names = ", ".join(rule.name for rule in planned) or "none"
        raise BadField(f"[firewall.fields] has no {arguments.rules!r}; it has {names}", name=arguments.rules)
    rule = ProxyRule(
        config_json=_config(planned, arguments.memory_kib),
        id=wanted.id,
        name=wanted.name,
        protocol=wanted.protocol.value,
        observe=wanted.observe,
    )
    listen, to = parse_endpoint(arguments.listen), parse_endpoint(arguments.to)
    proxy = FieldProxy(rule, listen=listen, to=to, report=lambda event: print(json.dumps(event), flush=True))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_relay(proxy, f"{listen} -> {to}"))
    return 0


async def _relay(proxy: FieldProxy, what: str) -> None:
    import asyncio

    from tidegate.base.confine import confine
    from tidegate.ids.errors import WorkerConfinement

    stopping = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    await proxy.start()
    confine(keep=None, ends_with_parent=False, failed=WorkerConfinement)  # the port is bound
    print(json.dumps({"event_type": "ready", "proxy": what, "pid": os.getpid()}), flush=True)
    try:
        await stopping.wait()
    finally:
        await proxy.close()


def run_support(_arguments: argparse.Namespace, output: Output) -> int:
    """Probe the kernel."""
    from tidegate.firewall.xtqueue import queue_support

    support = queue_support()
    output.line(f"nft queue: {'yes' if support.nft else 'no'}")
    output.line(f"NFQUEUE through iptables-nft: {'yes' if support.xt else 'no'}")
    if not support.any:
        output.line("Content can be inspected by the proxy only: tidegate firewall fields proxy")
    output.result({"nft": support.nft, "xt": support.xt})
    return 0 if support.any else 1


def _planned(path: Path) -> tuple[PlannedField, ...]:
    from tidegate.base.durable import read_file_bounded
    from tidegate.firewall.errors import BadField
    from tidegate.firewall.fields import plan_fields
    from tidegate.policy.document import MAX_POLICY_BYTES, parse_policy

    text = read_file_bounded(path, limit_bytes=MAX_POLICY_BYTES).decode(errors="replace")
    section = parse_policy(text, name=path.name).firewall
    planned = plan_fields(section.fields) if section is not None else ()
    if not planned:
        raise BadField(f"{path.name} has no field rules: nothing could be inspected", name=path.name)
    return planned


def _config(planned: tuple[PlannedField, ...], memory_kib: int) -> str:
    from tidegate.firewall.fields import encode_field_config

    return encode_field_config(planned, memory_bytes=memory_kib * 1024)


def _number(least: int, most: int) -> Callable[[str], int]:
    """Return what reads a number from ``least`` to ``most`` of the command line."""

    def number(word: str) -> int:
        if not least <= int(word) <= most:
            raise ValueError(word)
        return int(word)

    return number


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory-kib",
        type=_number(64, 1 << 20),
        default=_MEMORY_KIB,
        metavar="KIB",
        help=f"the inspector's; default {_MEMORY_KIB}",
    )
