"""nftables: through libnftables in this process, else through the ``nft`` program.

Touches: the kernel's packet filter, of the network namespace in which the process was when ``Nft.open`` ran.

libnftables ends the calling process when it cannot open its netlink socket; ``require_kernel`` asks first. Only text
goes in and out: the JSON interface is left out of small builds of the library.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tidegate.base.errors import Fault, NotRoot
from tidegate.firewall.errors import NftRefused, NoNftables

LIBRARY = "libnftables.so.1"
MAX_MESSAGE = 2000  # of nft's own words in an error: it repeats the refused line, which can hold thousands of elements
PROGRAM_TIMEOUT_S = 30.0  # 100,000 elements load in under a second on the bench machine
PROBE_TIMEOUT_S = 5.0

# linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/netlink.h; AF_NETLINK is not in every socket module
_AF_NETLINK = 16
_NETLINK_NETFILTER = 12
_GET_GENERATION = (10 << 8) | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
# nftables/libnftables.h
_CTX_DEFAULT = 0
_OUTPUT_STATELESS = 1 << 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What nftables said: a status (0 is success), its output, its complaint."""

    status: int
    output: str
    complaint: str


class Engine(Protocol):
    """One way to reach nftables."""

    name: str

    def execute(self, text: str, *, dry_run: bool = False) -> Answer:
        """Run commands as one transaction; listings leave counters out."""
        ...

    def close(self) -> None:
        """Give back what the engine holds."""
        ...


class Nft:
    """nftables, ready to use; one transaction per call, from one thread at a time (others wait)."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()

    @classmethod
    def open(cls) -> Nft:
        """Return a working connection to the kernel's nftables.

        Raises ``firewall.kernel.no-nftables``, ``base.privilege.missing`` without CAP_NET_ADMIN,
        ``base.program.missing`` when neither the library nor the program is installed.
        """
        require_kernel()
        return cls(open_engine())

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

    def list_table(self, name: str) -> str | None:
        """Return table ``inet name`` as text that loads again, counters left out; ``None`` when there is none."""
        # Asked this way because "no such table" and "no permission" differ only in wording otherwise.
        if f"table inet {name}" not in self.run("list tables inet").splitlines():
            return None
        return self.run(f"list table inet {name}")

    def close(self) -> None:
        """Give the connection back; harmless when repeated."""
        self._engine.close()

    def _execute(self, text: str, *, dry_run: bool) -> str:
        with self._lock:
            answer = self._engine.execute(text, dry_run=dry_run)
        if answer.status != 0:
            said = answer.complaint.strip()[:MAX_MESSAGE] or "no message"
            raise NftRefused(f"nftables refused: {said}", engine=self._engine.name)
        return answer.output


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


class LibraryEngine:
    """libnftables by ctypes: a ban takes a fraction of a millisecond, a process start takes ten."""

    name = "library"

    def __init__(self, library: str = LIBRARY) -> None:
        """Raises ``OSError`` when the library is not installed."""
        self._library = ctypes.CDLL(library)
        declare = {
            "nft_ctx_new": (ctypes.c_void_p, [ctypes.c_uint32]),
            "nft_ctx_free": (None, [ctypes.c_void_p]),
            "nft_ctx_buffer_output": (ctypes.c_int, [ctypes.c_void_p]),
            "nft_ctx_buffer_error": (ctypes.c_int, [ctypes.c_void_p]),
            "nft_ctx_get_output_buffer": (ctypes.c_char_p, [ctypes.c_void_p]),
            "nft_ctx_get_error_buffer": (ctypes.c_char_p, [ctypes.c_void_p]),
            "nft_ctx_output_set_flags": (None, [ctypes.c_void_p, ctypes.c_uint]),
            "nft_ctx_set_dry_run": (None, [ctypes.c_void_p, ctypes.c_bool]),
            "nft_run_cmd_from_buffer": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
        }
        for name, (result, arguments) in declare.items():
            function = getattr(self._library, name)
            function.restype, function.argtypes = result, arguments
        self._context: int | None = None
        self._owner = 0
        self._renew()

    def execute(self, text: str, *, dry_run: bool = False) -> Answer:
        if "\0" in text:
            return Answer(status=1, output="", complaint="the text holds a NUL byte")
        if self._owner != os.getpid():
            self._renew()  # after a fork the netlink socket would be shared with the parent
        self._library.nft_ctx_set_dry_run(self._context, dry_run)
        status = self._library.nft_run_cmd_from_buffer(self._context, text.encode())
        # Both buffers are read each time: reading one resets it for the next command.
        output = self._library.nft_ctx_get_output_buffer(self._context)
        complaint = self._library.nft_ctx_get_error_buffer(self._context)
        return Answer(status=status, output=_text(output), complaint=_text(complaint))

    def close(self) -> None:
        if self._context is not None and self._owner == os.getpid():
            self._library.nft_ctx_free(self._context)
        self._context = None
        self._owner = 0

    def _renew(self) -> None:
        context = self._library.nft_ctx_new(_CTX_DEFAULT)
        if not context:
            raise Fault("libnftables gave no context: out of memory")
        self._context, self._owner = context, os.getpid()
        self._library.nft_ctx_buffer_output(context)
        self._library.nft_ctx_buffer_error(context)
        self._library.nft_ctx_output_set_flags(context, _OUTPUT_STATELESS)


class ProgramEngine:
    """The ``nft`` program, one process per transaction."""

    name = "program"

    def __init__(self) -> None:
        """Raises ``base.program.missing``."""
        # Imported here: the rollback process, which has the library as a rule, stays small without it.
        from tidegate.base.program import find_program, run_program

        find_program("nft")
        self._run_program = run_program

    def execute(self, text: str, *, dry_run: bool = False) -> Answer:
        arguments = ["nft", "-s", *(["-c"] if dry_run else []), "-f", "-"]
        done = self._run_program(arguments, stdin=text.encode(), timeout_s=PROGRAM_TIMEOUT_S, check=False)
        return Answer(
            status=done.returncode,
            output=done.stdout.decode(errors="replace"),
            complaint=done.stderr.decode(errors="replace"),
        )

    def close(self) -> None:
        """Nothing is held between calls."""


def _text(raw: bytes | None) -> str:
    return "" if raw is None else raw.decode(errors="replace")
