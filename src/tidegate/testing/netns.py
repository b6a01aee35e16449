"""Network namespaces joined by veth pairs: a device, an attacker and an honest client on one machine.

Promises: a namespace is made whole or not at all, never one that somebody else owns, and nothing that ran inside
survives its deletion. Leaves to others: bridges, routing between more than two namespaces, assertions.

Touches: the ``ip`` program, processes. A socket belongs for good to the namespace in which its thread was when it made
it; hence ``run`` and ``popen`` for programs, and ``inside`` for a few lines of Python.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from tidegate.base.errors import NotRoot, ProgramFailed
from tidegate.base.program import find_program, run_program
from tidegate.testing.errors import NamespaceBusy, NamespaceFailed, NamespaceGone, NamespaceName

NETNS_FOLDER = Path("/run/netns")  # where ip-netns(8) keeps the names
MAX_INTERFACE_NAME = 15  # IFNAMSIZ - 1 in linux/if.h
MAX_NAMESPACE_NAME = 64  # ours; the file system would take 255
CLONE_NEWNET = 0x40000000  # linux/sched.h
KILL_PATIENCE_S = 5.0  # SIGKILL acts at once unless a process hangs in the kernel
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")

_serial = itertools.count()


def make_unique(prefix: str) -> str:
    """Return ``prefix`` with this process's id and a serial number: a name no other test run has."""
    return f"{prefix}-{os.getpid()}-{next(_serial)}"


class Namespace:
    """One network namespace that this object created and will delete.

    Use ``Namespace.create(name)`` in a ``with`` statement: leaving it, by whatever way, kills what still runs inside
    and deletes the namespace with its interfaces.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._alive = True

    @classmethod
    def create(cls, name: str) -> Self:
        """Create namespace ``name`` with its loopback up.

        Raises ``base.privilege.missing`` without root, ``testing.netns.busy`` when the name is taken (the other
        namespace is left alone), ``testing.netns.name``, ``testing.netns.failed``, ``base.program.missing``.
        """
        _check_name(name, MAX_NAMESPACE_NAME)
        if os.geteuid() != 0:
            raise NotRoot("network namespaces need root", capability="CAP_SYS_ADMIN")
        if (NETNS_FOLDER / name).exists():
            raise NamespaceBusy(f"the network namespace {name!r} exists already", name=name)
        try:
            run_program(["ip", "netns", "add", name])
        except ProgramFailed as error:
            if "File exists" in error.message:  # somebody was quicker than the look above
                raise NamespaceBusy(f"the network namespace {name!r} exists already", name=name) from error
            raise NamespaceFailed(f"cannot create the network namespace {name!r}: {error.message}") from error
        made = cls(name)
        try:
            _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            made.delete()
            raise
        return made

    def command(self, arguments: Sequence[str]) -> list[str]:
        """Return the argument list that runs ``arguments`` inside, for callers that start processes themselves."""
        if not self._alive:
            raise NamespaceGone(f"the network namespace {self.name!r} was deleted", name=self.name)
        return [find_program("ip"), "netns", "exec", self.name, *arguments]

    def run(
        self, arguments: Sequence[str], *, stdin: bytes | None = None, timeout_s: float = 60.0, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program inside to its end and return its output; errors as ``base.program.run_program``."""
        return run_program(self.command(arguments), stdin=stdin, timeout_s=timeout_s, check=check)

    def popen(
        self,
        arguments: Sequence[str],
        *,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        stdout: int | IO[bytes] | None = subprocess.PIPE,
        stderr: int | IO[bytes] | None = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a program inside and return it; ``ip netns exec`` replaces itself, so the pid is the program's own.

        The caller waits for it and closes its pipes; ``delete`` kills it at the latest.
        """
        return subprocess.Popen(
            self.command(arguments),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=None if env is None else dict(env),
        )

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Have the calling thread, and what it starts, inside the namespace for the body; other threads stay outside.

        Sockets and nftables connections that the body makes stay inside for good. Raises ``testing.netns.gone``,
        ``testing.netns.failed``.
        """
        if not self._alive:
            raise NamespaceGone(f"the network namespace {self.name!r} was deleted", name=self.name)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(NETNS_FOLDER / self.name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _enter(target)
            finally:
                os.close(target)
            try:
                yield
            finally:
                _enter(home)
        finally:
            os.close(home)

    def pids(self) -> list[int]:
        """Return the ids of all processes that run inside."""
        return [int(word) for word in _ip("netns", "pids", self.name).split()]

    def delete(self) -> None:
        """Kill what still runs inside, then delete the namespace and its interfaces; harmless when repeated.

        Raises ``testing.netns.failed`` when a process outlives SIGKILL for five seconds.
        """
        if not self._alive:
            return
        deadline = time.monotonic() + KILL_PATIENCE_S
        while running := self.pids():
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise NamespaceFailed(f"processes {running} in {self.name!r} do not die", name=self.name)
            time.sleep(0.01)
        # A namespace lives on while anything refers to it; its veth ends go with it only later. Delete them now, so
        # that the names are free when this returns.
        for interface in _virtual_interfaces(self.name):
            with contextlib.suppress(NamespaceFailed):  # the far end may have been deleted first
                _ip("-n", self.name, "link", "delete", interface)
        _ip("netns", "delete", self.name)
        self._alive = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()


def join(
    a: Namespace,
    b: Namespace,
    *,
    interfaces: tuple[str, str] = ("eth0", "eth0"),
    addresses_a: Sequence[str] = (),
    addresses_b: Sequence[str] = (),
) -> None:
    """Join two namespaces by a veth pair with the given addresses, both ends up and usable when this returns.

    ``addresses_*`` are interface addresses with their prefix length (``"192.0.2.1/24"``, ``"2001:db8::1/64"``). IPv6
    duplicate address detection is off on both ends, because it would make the addresses unusable for a second.
    Raises ``testing.netns.name``, ``testing.netns.failed`` (an interface of that name exists, say).
    """
    for interface in interfaces:
        _check_name(interface, MAX_INTERFACE_NAME)
    ends = ((a, interfaces[0], addresses_a), (b, interfaces[1], addresses_b))
    _ip("-n", a.name, "link", "add", interfaces[0], "type", "veth", "peer", "name", interfaces[1], "netns", b.name)
    try:
        for space, interface, addresses in ends:
            # By sysctl before the link comes up, so that the link-local address is not tentative either.
            space.run(["sh", "-c", f"echo 0 > /proc/sys/net/ipv6/conf/{interface}/accept_dad"], check=False)
            for address in addresses:
                _ip("-n", space.name, "address", "add", str(ipaddress.ip_interface(address)), "dev", interface)
            _ip("-n", space.name, "link", "set", interface, "up")
    except BaseException:
        with contextlib.suppress(NamespaceFailed):
            _ip("-n", a.name, "link", "delete", interfaces[0])
        raise


def _enter(descriptor: int) -> None:
    """Move the calling thread into an open network namespace (os.setns exists from Python 3.12 on only)."""
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
        raise NamespaceFailed(f"cannot enter the network namespace: {os.strerror(ctypes.get_errno())}")


def _check_name(name: str, limit: int) -> None:
    if len(name) > limit or not _NAME.match(name):
        raise NamespaceName(f"{name!r} is no usable name", name=name)


def _virtual_interfaces(name: str) -> list[str]:
    """Return the veth ends inside a namespace."""
    lines = _ip("-n", name, "-o", "link", "show", "type", "veth").splitlines()
    return [line.split(":")[1].strip().split("@")[0] for line in lines]


def _ip(*arguments: str) -> str:
    """Run ``ip`` and return what it prints; its refusal becomes ``testing.netns.failed``."""
    try:
        return run_program(["ip", *arguments]).stdout.decode()
    except ProgramFailed as error:
        raise NamespaceFailed(error.message, command=" ".join(arguments)) from error
