"""The rules that hand marked packets to the inspector, through iptables-nft where nft has no ``queue`` of its own.

Touches: the ``security`` table of iptables-nft and ip6tables-nft, of the network namespace in which the process runs.

A chain of our own holds the one rule; its built-in chains jump there. What others have in that table stays. The rule
has ``--queue-bypass``: with no inspector, packets go on to the policy's own chain behind it, which drops them or, where
the policy says so, lets them pass. So these rules only ever *allow* inspected traffic: when somebody flushes them, what
has to be inspected stops.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.program import find_program, run_program
from tidegate.firewall.errors import NftRefused, QueueRulesRefused
from tidegate.firewall.nft import Nft

CHAIN = "TIDEGATE-FIELDS"
HOOKS = ("INPUT", "FORWARD", "OUTPUT")
MARK_INSPECT = 0x40000000  # the bit of the packet mark that means "must be inspected"
# Where iptables-nft hooks its security table in: 150, not the 50 of the kernel's own iptables (NF_IP_PRI_SECURITY).
# Marks must be set before, leftovers dropped behind, both numbers.
PRIORITIES = (50, 150)
TIMEOUT_S = 10.0  # a transaction of five rules takes milliseconds; another program may hold the lock

_IPV6 = Path("/proc/net/if_inet6")  # absent where the kernel has no IPv6 or it is off
_NFT_PROBE = """\
add table inet tidegate_probe
add chain inet tidegate_probe probe
add rule inet tidegate_probe probe queue flags bypass to 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSupport:
    """Which ways lead from this kernel to an inspector."""

    nft: bool  # nft's own ``queue``
    xt: bool  # NFQUEUE through iptables-nft, for every address family that this kernel has

    @property
    def any(self) -> bool:
        """Whether content rules can be enforced on packets at all."""
        return self.nft or self.xt


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRules:
    """What is in the kernel for one family: the queues that our chain leads to, and which hooks lead to the chain."""

    program: str
    queues: tuple[int, ...]
    hooks: tuple[str, ...]

    def is_complete(self, number: int) -> bool:
        """Return whether every hook leads to queue ``number``, once, and to no other."""
        return self.queues == (number,) and sorted(self.hooks) == sorted(HOOKS)


def queue_support(nft: Nft | None = None) -> QueueSupport:
    """Return what the kernel has, without changing anything: nft is asked for a dry run, iptables-nft in a network
    namespace of its own that goes away at once.

    Raises as ``Nft.open``.
    """
    nft = nft or Nft.open()
    try:
        nft.check(_NFT_PROBE)
        has_nft = True
    except NftRefused:
        has_nft = False
    return QueueSupport(nft=has_nft, xt=all(_has_xt(program) for program in _programs()))


def install_queue_rules(number: int) -> None:
    """Hand marked packets of every hook to queue ``number``: true when this returns, in one transaction per family.

    Harmless when repeated. Raises ``firewall.queue.refused``, ``base.program.missing``.
    """
    for program in _programs():
        state = _inspect(program)
        lines = [f":{CHAIN} - [0:0]", f"-F {CHAIN}", _rule(number)]
        for hook in HOOKS:
            count = state.hooks.count(hook)
            lines += [f"-D {hook} -j {CHAIN}"] * max(count - 1, 0)
            lines += [f"-A {hook} -j {CHAIN}"] * (count == 0)
        _restore(program, lines)


def remove_queue_rules() -> None:
    """Take our rules and our chain away; harmless when there are none. Marked packets stop then (see above).

    The table's empty built-in chains stay: they belong to iptables. Raises as ``install_queue_rules``.
    """
    for program in _programs():
        state = _inspect(program)
        if not state.hooks and not _has_chain(program):
            continue
        lines = [f":{CHAIN} - [0:0]", *(f"-D {hook} -j {CHAIN}" for hook in state.hooks), f"-F {CHAIN}", f"-X {CHAIN}"]
        _restore(program, lines)


def inspect_queue_rules() -> tuple[QueueRules, ...]:
    """Return what is in the kernel, one record for each address family. Raises as ``install_queue_rules``."""
    return tuple(_inspect(program) for program in _programs())


def _programs() -> tuple[str, ...]:
    return ("iptables-nft", "ip6tables-nft") if _IPV6.exists() else ("iptables-nft",)


def _rule(number: int) -> str:
    mark = f"{MARK_INSPECT:#x}/{MARK_INSPECT:#x}"
    return f"-A {CHAIN} -m mark --mark {mark} -j NFQUEUE --queue-num {number} --queue-bypass"


def _save(program: str) -> list[str]:
    done = run_program([f"{program}-save", "-t", "security"], timeout_s=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise QueueRulesRefused(f"{program}-save: {_said(done.stderr)}", program=program)
    return done.stdout.decode(errors="replace").splitlines()


def _has_chain(program: str) -> bool:
    return any(line.startswith(f":{CHAIN} ") for line in _save(program))


def _inspect(program: str) -> QueueRules:
    queues: list[int] = []
    hooks: list[str] = []
    for line in _save(program):
        words = line.split()
        if words[:2] == ["-A", CHAIN] and "NFQUEUE" in words:
            is_ours = " ".join(words) == _rule(_number(words)) and not queues
            queues.append(_number(words) if is_ours else -1)
        elif words[:2] == ["-A", CHAIN]:
            queues.append(-1)  # somebody else's rule in our chain
        elif words[:1] == ["-A"] and words[2:] == ["-j", CHAIN]:
            hooks.append(words[1])
    return QueueRules(program=program, queues=tuple(queues), hooks=tuple(hooks))


def _number(words: Sequence[str]) -> int:
    word = words[words.index("--queue-num") + 1] if "--queue-num" in words[:-1] else ""
    return int(word) if word.isdecimal() else -1


def _restore(program: str, lines: Sequence[str]) -> None:
    text = "\n".join(["*security", *lines, "COMMIT", ""])
    done = run_program([f"{program}-restore", "--noflush"], stdin=text.encode(), timeout_s=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise QueueRulesRefused(f"{program}-restore: {_said(done.stderr)}", program=program)


def _has_xt(program: str) -> bool:
    """Try the rule where nobody is: whether the kernel takes it shows only when it is really put there."""
    if shutil.which(f"{program}-restore") is None:
        return False
    text = "\n".join(["*security", f":{CHAIN} - [0:0]", _rule(0), "COMMIT", ""])
    command = ["unshare", "-n", find_program(f"{program}-restore"), "--noflush"]
    return run_program(command, stdin=text.encode(), timeout_s=TIMEOUT_S, check=False).returncode == 0


def _said(complaint: bytes) -> str:
    return complaint.decode(errors="replace").strip()[-400:] or "no message"
