"""Which kernel and which rights: each answer of the kernel to the probe has its own error."""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
import subprocess
import sys
from typing import Any, Self

import pytest

from tidegate.base import program
from tidegate.base.errors import TidegateError
from tidegate.firewall import nft
from tidegate.firewall.libnftables import LibraryEngine
from tidegate.firewall.nft import Nft, ProgramEngine, require_kernel


class Link:
    """A netlink socket of a kernel with another configuration."""

    def __init__(self, reply: bytes) -> None:
        self.reply = reply

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def settimeout(self, _seconds: float) -> None:
        return None

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, _count: int) -> bytes:
        return self.reply


def netlink_error(number: int) -> bytes:
    return struct.pack("=IHHIIi", 36, 2, 0, 1, 0, -number) + bytes(16)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EINVAL, "firewall.kernel.no-nftables"),
        (errno.EOPNOTSUPP, "firewall.kernel.no-nftables"),
        (errno.EPERM, "base.privilege.missing"),
    ],
)
def test_answers_of_the_kernel(number: int, code: str) -> None:
    def open_socket(*_: Any) -> Any:
        return Link(netlink_error(number))

    with pytest.raises(TidegateError) as caught:
        require_kernel(open_socket)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EPROTONOSUPPORT, "firewall.kernel.no-nftables"),
        (errno.EAFNOSUPPORT, "firewall.kernel.no-nftables"),
        (errno.EPERM, "base.privilege.missing"),
    ],
)
def test_kernels_without_the_socket(number: int, code: str) -> None:
    def open_socket(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with pytest.raises(TidegateError) as caught:
        require_kernel(open_socket)
    assert caught.value.code == code


# A kernel without netfilter, made from this one: seccomp refuses socket(AF_NETLINK, *, NETLINK_NETFILTER) as a kernel
# without the protocol does, for this process and all that it starts. Filter: arch is left to the test's skip.
WITHOUT_NETFILTER = """
import ctypes, struct, sys
NUMBER = {number}
def op(code, jt, jf, k): return struct.pack("=HBBI", code, jt, jf, k)
program = b"".join([
    op(0x20, 0, 0, 0), op(0x15, 0, 5, NUMBER),    # the system call's number
    op(0x20, 0, 0, 16), op(0x15, 0, 3, 16),       # first argument: AF_NETLINK
    op(0x20, 0, 0, 32), op(0x15, 0, 1, 12),       # third argument: NETLINK_NETFILTER
    op(0x06, 0, 0, 0x00050000 | 93),              # SECCOMP_RET_ERRNO, EPROTONOSUPPORT
    op(0x06, 0, 0, 0x7FFF0000),                   # SECCOMP_RET_ALLOW
])
buffer = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, ctypes.addressof(buffer))), 0, 0) == 0
"""
SOCKET_CALL = {"x86_64": 41, "aarch64": 198}.get(platform.machine())
APPLY = """
import pathlib, sys, msgspec
from tidegate.base.errors import TidegateError
from tidegate.firewall.commit import apply_section
from tidegate.firewall.section import FirewallSection
section = msgspec.convert({
    "management": {"peers": ["any"], "service": "ssh"},
    "services": {"ssh": {"protocol": "tcp", "ports": [22], "peers": []}},
}, FirewallSection)
try:
    apply_section(section, state_dir=pathlib.Path(sys.argv[1]))
except TidegateError as error:
    print(error.code)
"""


@pytest.mark.skipif(SOCKET_CALL is None, reason="the filter is written for x86-64 and aarch64")
def test_a_kernel_without_netfilter_is_a_clear_error_and_leaves_nothing(tmp_path: Any) -> None:
    script = WITHOUT_NETFILTER.format(number=SOCKET_CALL) + APPLY
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "state")], capture_output=True, check=False, timeout=15
    )
    assert (done.stdout.decode().strip(), done.stderr.decode()) == ("firewall.kernel.no-nftables", "")
    assert not (tmp_path / "state").exists()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_without_root_says_so(tmp_path: Any) -> None:
    script = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n" + APPLY
    # The interpreter and the sources may lie where nobody else may look, so import before the switch.
    script = "import tidegate.firewall.commit, msgspec\n" + script
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "state")], capture_output=True, check=False, timeout=15
    )
    assert (done.stdout.decode().strip(), done.stderr.decode()) == ("base.privilege.missing", "")


def test_neither_library_nor_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> LibraryEngine:
        return LibraryEngine("libnot-there.so.1")

    monkeypatch.setattr(nft, "LibraryEngine", no_library)
    monkeypatch.setattr(program, "_ADMIN_PATH", "/nonexistent")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(TidegateError) as caught:
        nft.open_engine()
    assert caught.value.code == "base.program.missing"


class Refusing:
    """An engine with a kernel that refuses, at length."""

    name = "library"

    def execute(
        self, text: str, *, dry_run: bool = False, stateless: bool = True, handles: bool = False
    ) -> tuple[int, str, str]:
        return 1, "", "Error: " + "x" * 100_000

    def close(self) -> None:
        return None


def test_a_refusal_keeps_nfts_words_but_not_all_of_them() -> None:
    with pytest.raises(TidegateError) as caught:
        Nft(Refusing()).run("add table inet x")
    assert caught.value.code == "firewall.nft.refused"
    assert "Error: xxx" in caught.value.message
    assert len(caught.value.message) < 3000


class Beside(Refusing):
    """An engine beside another program, which makes a table after the first question for it."""

    def __init__(self, *, refuses: bool) -> None:
        self.refuses, self.asked = refuses, 0

    def execute(self, text: str, **how: bool) -> tuple[int, str, str]:
        if text == "list tables":
            return 0, "table inet guard\n", ""
        self.asked += 1
        return (1, "", "Error: no") if self.refuses or self.asked == 1 else (0, "table inet guard {}", "")


def test_a_table_that_comes_between_two_questions() -> None:
    assert Nft(Beside(refuses=False)).list_table("guard") == "table inet guard {}"
    with pytest.raises(TidegateError) as caught:
        Nft(Beside(refuses=True)).list_table("guard")
    assert caught.value.code == "firewall.nft.refused"
    assert Nft(Beside(refuses=True)).list_table("other") is None


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="nftables needs root")
@pytest.mark.parametrize("engine", [LibraryEngine, ProgramEngine])
def test_both_engines_check_without_changing(engine: Any) -> None:
    # -c changes nothing, so this may run in the test's own namespace
    connection = Nft(engine())
    connection.check("table inet tidegate_check_only { chain c { }; }")
    assert connection.list_table("tidegate_check_only") is None
    with pytest.raises(TidegateError) as caught:
        connection.check("table inet tidegate_check_only { chain c { nonsense; }; }")
    assert caught.value.code == "firewall.nft.refused"
    assert "nonsense" in caught.value.message
    connection.close()


def test_a_nul_byte_does_not_cut_the_text() -> None:
    if os.geteuid() != 0:
        pytest.skip("nftables needs root")
    engine = LibraryEngine()
    assert engine.execute("list tables\0garbage")[0] != 0
    engine.close()


def test_sockets_are_closed_by_the_probe() -> None:
    opened: list[socket.socket] = []

    def remember(*arguments: int) -> socket.socket:
        opened.append(socket.socket(*arguments))
        return opened[-1]

    try:
        require_kernel(remember)
    except TidegateError as error:
        assert error.code in ("base.privilege.missing", "firewall.kernel.no-nftables")
    assert all(one.fileno() == -1 for one in opened)
