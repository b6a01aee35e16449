"""nftables: through libnftables in this process, else through the ``nft`` program.

Touches: the kernel's packet filter, of the network namespace in which the process was when ``Nft.open`` ran.

libnftables ends the calling process when it cannot open its netlink socket; ``require_kernel`` asks first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from tidegate.base.errors import NotRoot, ProgramMissing
from tidegate.base.program import find_program, run_program
from tidegate.firewall.errors import NftRefused, NoNftables
from tidegate.firewall.libnftables import LibraryEngine
from tidegate.firewall.netlink import Link

MAX_MESSAGE = 2000  # of nft's own words in an error: it repeats the refused line, which can hold thousands of elements
LARGE_TEXT = 16_384  # characters; below, the library is quicker than a process starts
PROGRAM_TIMEOUT_S = 30.0  # 100,000 elements load in under a second on the bench machine
PROBE_TIMEOUT_S = 5.0

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netlink.h; AF_NETLINK is not in every socket module
_AF_NETLINK = 16
_NETLINK_NETFILTER = 12
_GET_GENERATION = (10 << 8) | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2


class Engine(Protocol):
    """One way to reach nftables."""

    name: str

    def execute(
        self,
        text: str,
        *,
        dry_run: bool = False,
        stateless: bool = True,
        handles: bool = False,
        terse: bool = False,
    ) -> tuple[int, str, str]:
        """Run commands as one transaction; return status (0: done), output, complaint.

        ``stateless`` leaves counters and the time that elements have left out of listings. ``handles`` puts the
        kernel's number behind each rule, and leaves the elements of named sets out, as ``terse`` does alone.
        """
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


class Nft:
    """nftables, ready to use; one transaction per call, from one thread at a time (others wait).

    The library keeps all that it has read in this process's memory, 14 MB for a thousand services. So what is large
    (long texts, listings of whole tables) goes to the program where that is installed, and what has to be quick to the
    library.
    """

    def __init__(self, engine: Engine, heavy: Engine | None = None, link: Link | None = None) -> None:
        self._engine = engine
        self._heavy = heavy
        self._link = link
        self._namespace = _namespace()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, *, lean: bool = False) -> Nft:
        """Return a working connection to the kernel's nftables.

        ``lean``: where the program is installed, the library is not even loaded, for a process that lives long and
        asks seldom. Raises ``firewall.kernel.no-nftables``, ``base.privilege.missing`` without CAP_NET_ADMIN,
        ``base.program.missing`` when neither the library nor the program is installed.
        """
        require_kernel()
        if lean:
            with contextlib.suppress(ProgramMissing):
                return cls(ProgramEngine(), link=Link())
        engine = open_engine()
        try:
            return cls(engine, engine if engine.name == ProgramEngine.name else ProgramEngine(), Link())
        except ProgramMissing:
            return cls(engine, link=Link())

    @property
    def engine(self) -> str:
        """``library`` or ``program``."""
        return self._engine.name

    def run(self, text: str) -> str:
        """Run ``text`` as one transaction: all of it took effect when this returns, nothing when it raises.

        Raises ``firewall.nft.refused`` with nftables' own message.
        """
        return self._execute(text, dry_run=False)

    def check(self, text: str) -> None:
        """Have library and kernel check ``text`` without changing anything; raises ``firewall.nft.refused``."""
        self._execute(text, dry_run=True)

    def list_table(self, name: str, *, family: str = "inet", stateless: bool = True) -> str | None:
        """Return table ``family name`` as text, or ``None`` when there is none.

        ``stateless`` gives a text that loads again: without counters and the time that elements have left.
        """
        command = f"list table {family} {name}"
        try:
            return self._execute(command, dry_run=False, stateless=stateless, is_large=True)
        except NftRefused:
            # "No such table" and "no permission" differ only in wording otherwise.
            if not self.has_table(name, family=family):
                return None
            # it may have come only now, by another program
            return self._execute(command, dry_run=False, stateless=stateless, is_large=True)

    def has_table(self, name: str, *, family: str = "inet") -> bool:
        """Return whether there is a table ``family name``.

        Asked of the kernel itself where there is a socket for it: nft reads every rule there is before it answers.
        """
        if self._link is not None:
            return self._link.has_table(name, family=family)
        return f"table {family} {name}" in self.run("list tables").splitlines()

    def list_set(self, table: str, name: str, *, stateless: bool = True) -> str:
        """Return one set of table ``inet table`` as text, in far less than the table takes where that is large."""
        return self._execute(f"list set inet {table} {name}", dry_run=False, stateless=stateless)

    def list_outline(self, name: str) -> str:
        """Return table ``inet name`` without the elements of its named sets, which alone make a listing slow."""
        with self._lock:
            status, output, complaint = self._engine.execute(f"list table inet {name}", terse=True)
        return self._judge(status, output, complaint)

    def list_rules(self, family: str, name: str) -> str | None:
        """Return any table with the kernel's number (``# handle 7``) behind each rule and without the elements of
        its named sets, or ``None`` when there is none.
        """
        if f"table {family} {name}" not in self.run("list tables").splitlines():
            return None
        return self._execute(f"list table {family} {name}", dry_run=False, handles=True)

    def close(self) -> None:
        """Give the connection back; harmless when repeated."""
        self._engine.close()
        if self._link is not None:
            self._link.close()

    def _execute(
        self, text: str, *, dry_run: bool, stateless: bool = True, handles: bool = False, is_large: bool = False
    ) -> str:
        with self._lock:
            engine = self._choose(is_large=is_large or len(text) > LARGE_TEXT)
            status, output, complaint = engine.execute(text, dry_run=dry_run, stateless=stateless, handles=handles)
        return self._judge(status, output, complaint)

    def _choose(self, *, is_large: bool) -> Engine:
        """Return the engine for a job. A program would act on the namespace that the thread is in by now."""
        if is_large and self._heavy is not None and _namespace() == self._namespace:
            return self._heavy
        return self._engine

    def _judge(self, status: int, output: str, complaint: str) -> str:
        if status != 0:
            said = complaint.strip()[:MAX_MESSAGE] or "no message"
            raise NftRefused(f"nftables refused: {said}", engine=self._engine.name)
        return output


def _namespace() -> tuple[int, int]:
    """Return what tells the calling thread's network namespace from others."""
    try:
        found = os.stat("/proc/thread-self/ns/net")  # noqa: PTH116 - one call, on the way of every transaction
    except OSError:
        return 0, 0  # no /proc: nobody changes namespaces there
    return found.st_dev, found.st_ino


def require_kernel(open_socket: Callable[[int, int, int], socket.socket] = socket.socket) -> None:
    """Return if this kernel has nftables and lets us change it.

    Raises ``firewall.kernel.no-nftables`` or ``base.privilege.missing``. Asks for the ruleset's generation number,
    the smallest request there is; it also loads the module where modules load by themselves.
    """
    request = struct.pack("=IHHII", 20, _GET_GENERATION, _NLM_F_REQUEST, 1, 0) + struct.pack("=BBH", 0, 0, 0)
    try:
        with open_socket(_AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as link:
            link.settimeout(PROBE_TIMEOUT_S)
            link.send(request)
            reply = link.recv(4096)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise NotRoot("changing the firewall needs root", capability="CAP_NET_ADMIN") from error
        raise NoNftables(f"this kernel has no netfilter interface: {error}", errno=error.errno) from error
    kind = struct.unpack_from("=H", reply, 4)[0] if len(reply) >= 20 else 0
    if kind != _NLMSG_ERROR:
        return
    number = -struct.unpack_from("=i", reply, 16)[0]
    if number in (errno.EPERM, errno.EACCES):
        raise NotRoot("changing the firewall needs root", capability="CAP_NET_ADMIN")
    raise NoNftables(f"this kernel has no nf_tables: {os.strerror(number)}", errno=number)


def open_engine() -> Engine:
    """Return the library if it loads, else the program; raises ``base.program.missing`` when neither is there."""
    try:
        return LibraryEngine()
    except OSError:
        return ProgramEngine()


class ProgramEngine:
    """The ``nft`` program, one process per transaction."""

    name = "program"

    def __init__(self) -> None:
        """Raises ``base.program.missing``."""
        find_program("nft")

    def execute(
        self,
        text: str,
        *,
        dry_run: bool = False,
        stateless: bool = True,
        handles: bool = False,
        terse: bool = False,
    ) -> tuple[int, str, str]:
        chosen = {"-s": stateless, "-c": dry_run, "-a": handles, "-t": handles or terse}
        arguments = ["nft", *(option for option, wanted in chosen.items() if wanted), "-f", "-"]
        done = run_program(arguments, stdin=text.encode(), timeout_s=PROGRAM_TIMEOUT_S, check=False)
        return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")

    def close(self) -> None:
        """Nothing is held between calls."""
