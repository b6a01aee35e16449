"""Ask the kernel what it does with a packet, by giving it one.

Touches: the network namespace of the calling thread: routing (reading), one temporary nftables table, one packet that
arrives as if from the wire or leaves, and that no program and no network ever sees.

Going in, the packet is put behind the driver by ``BPF_PROG_TEST_RUN`` with live frames (Linux 5.18): a program of two
instructions, "pass it on", runs on it once as if the driver had received it. Going out, it is sent by a raw socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import secrets
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tidegate.firewall.errors import BadQuestion, NftRefused, NoInjection, NoRoute, WhyBusy
from tidegate.firewall.model import Address, Direction
from tidegate.firewall.nft import Nft
from tidegate.firewall.probe_packet import (
    NONCE_BYTES,
    WHY_TABLE,
    Probe,
    Question,
    encode_frame,
    encode_packet,
    encode_probe_table,
    encode_wait_table,
    is_like,
    is_probe,
    plan_layout,
    read_constant,
)
from tidegate.firewall.rtnetlink import (
    Reach,
    Route,
    find_interface,
    find_mac,
    find_own_mac,
    find_route,
    read_reverse_path_filter,
)
from tidegate.firewall.trace import Follower, Kind, Outcome, TraceEvent, TraceListener

PATIENCE_S = 1.0  # an inspector behind a queue answers in milliseconds; nothing else takes the packet off its path
SETTLE_S = 0.3  # after the verdict of a rule: what else is told of the same packet
MAX_TABLES = 32  # that one packet passes: a table for each of a few tools, in three families
_SOURCE_PORTS = (49152, 65535)  # the dynamic ports, as a client's would be (RFC 6335 §6)

# linux/bpf.h
_BPF_PROG_LOAD, _BPF_PROG_TEST_RUN = 5, 10
_BPF_PROG_TYPE_XDP = 6
_BPF_F_TEST_XDP_LIVE_FRAMES = 2
_XDP_PASS = 2
_RETURN_PASS = struct.pack("=BBhi", 0xB7, 0, 0, _XDP_PASS) + struct.pack("=BBhi", 0x95, 0, 0, 0)
_ATTRIBUTE_BYTES = 128  # longer than either command's attributes; the kernel wants what it does not know to be zero
# asm/unistd.h of each; by pointer size too, since a 32-bit program may run on a 64-bit kernel
_BPF_CALLS = {
    ("x86_64", 8): 321,
    ("x86_64", 4): 357,
    ("i686", 4): 357,
    ("aarch64", 8): 280,
    ("aarch64", 4): 386,
    ("armv7l", 4): 386,
    ("armv6l", 4): 386,
    ("riscv64", 8): 280,
    ("ppc64le", 8): 361,
    ("s390x", 8): 351,
    ("loongarch64", 8): 280,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """What the kernel told of one packet, and the tables that it met: (family, name) -> rules with handles."""

    events: tuple[TraceEvent, ...]
    tables: dict[tuple[str, str], str]


def prepare_probe(question: Question) -> Probe:
    """Return the packet that asks ``question`` on this device: addresses, interface and way filled in by its routing.

    Raises ``firewall.why.no-route`` when the kernel cannot say where the source or this device's own address is.
    """
    if question.source is None or _is_own(question.source):
        return _prepare_out(question)
    if question.interface is not None:
        find_interface(question.interface)
    back = _find_way_back(question)
    interface = question.interface or (back.interface if back else "")
    destination = question.destination or (back.own if back else None)
    if not interface or destination is None:
        raise NoRoute(
            f"it is not known on which interface, or at which address of this device, {question.source} arrives"
        )
    probe = _new_probe(question, Direction.IN, interface, question.source, destination)
    try:
        route = find_route(destination, source=question.source, arriving=interface)
        here, out_interface, unrouted = route.reach is Reach.HERE, route.interface, None
    except NoRoute as error:
        here, out_interface, unrouted = (
            _is_own(destination),
            None,
            _explain_unrouted(error, question.source, interface),
        )
    sender = question.mac or _find_sender(question.source, back.gateway if back else None, interface, probe.nonce)
    return replace(
        probe,
        direction=Direction.IN if here else Direction.THROUGH,
        out_interface=None if here else out_interface,
        unrouted=unrouted,
        macs=_find_receiver(destination, interface) + sender,
    )


def trace_probe(nft: Nft, probe: Probe) -> Traced:
    """Return what the kernel's rules do with ``probe``; it has been dropped when this returns, and the table removed.

    Raises ``firewall.why.no-injection``, ``firewall.why.busy``, ``firewall.why.trace-lost``, ``firewall.nft.refused``,
    ``base.privilege.missing``.
    """
    layout = plan_layout(probe)
    if layout is None:
        raise NoInjection(f"no probe is made of {probe.protocol}", protocol=probe.protocol.value)
    packet = encode_packet(probe, layout)
    follower = Follower(lambda network, transport: is_probe(layout, network, transport))

    def table(owned: bool, ingress: bool) -> str:
        return encode_probe_table(probe, layout, owned=owned, ingress=ingress)

    with TraceListener() as listener, _temporary_table(nft, table):
        if probe.direction is Direction.OUT:
            _send(probe, packet)
        else:
            _inject(probe, encode_frame(probe, packet))
        events = listener.collect(follower.takes, _is_final, within_s=PATIENCE_S)
    if not events:
        raise NoInjection(
            f"the packet did not arrive on {probe.interface}: it is down, or a tc filter took it"
            if probe.direction is not Direction.OUT
            else "the packet did not reach the output hook",
            interface=probe.interface,
        )
    return _with_tables(nft, events)


def trace_next(nft: Nft, probe: Probe, *, wait_s: float) -> Traced | None:
    """Return what the kernel does with the next real packet like ``probe``, or ``None`` when none came in ``wait_s``.

    Nothing is sent and nothing dropped. Raises as ``trace_probe``.
    """
    follower = _Waiting(probe)

    def table(owned: bool, ingress: bool) -> str:
        return encode_wait_table(probe, owned=owned, ingress=ingress)

    with TraceListener() as listener, _temporary_table(nft, table):
        events = listener.collect(follower.takes, lambda _: True, within_s=wait_s)
        if events and not _is_final(events[-1]):
            events += listener.collect(follower.takes, _is_final, within_s=SETTLE_S)
    return _with_tables(nft, events) if events else None


class _Waiting:
    """Follows the first packet that is like the probe, by what no address translation rewrites of it."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._known = b""
        self._follower = Follower(self._is_it)

    def takes(self, event: TraceEvent) -> bool:
        return self._follower.takes(event)

    def _is_it(self, network: bytes, transport: bytes) -> bool:
        known = read_constant(self._probe, transport)
        if self._known:
            return known == self._known
        if is_like(self._probe, network, transport):
            self._known = known
            return True
        return False


def _is_final(event: TraceEvent) -> bool:
    """Return whether nothing more can follow: it was dropped, or came to the end of its way."""
    at_end = event.table == WHY_TABLE and event.chain.endswith("_end") and event.kind is Kind.RULE
    return at_end or event.outcome in (Outcome.DROP, Outcome.STOLEN)


def _with_tables(nft: Nft, events: list[TraceEvent]) -> Traced:
    """List the tables afterwards: a rule that was removed meanwhile is named by its number alone."""
    names = dict.fromkeys((event.family, event.table) for event in events if event.table != WHY_TABLE)
    tables = {}
    for family, table in list(names)[:MAX_TABLES]:
        with contextlib.suppress(NftRefused):  # removed meanwhile
            tables[family, table] = nft.list_rules(family, table) or ""
    return Traced(events=tuple(events), tables=tables)


@contextlib.contextmanager
def _temporary_table(nft: Nft, encode: Callable[[bool, bool], str]) -> Iterator[None]:
    """Hold the temporary table. The kernel removes it by itself when this process dies (``flags owner``), except when
    each transaction is a process of its own; the next question removes it then.
    """
    owned = nft.engine == "library"
    try:
        _load(nft, encode, owned)
    except NftRefused as error:
        if f"table inet {WHY_TABLE}" in nft.run("list tables inet").splitlines():
            raise WhyBusy("somebody else's question is under way") from error
        raise
    try:
        yield
    finally:
        nft.run(f"delete table inet {WHY_TABLE}")


def _load(nft: Nft, encode: Callable[[bool, bool], str], owned: bool) -> None:
    try:
        nft.run(encode(owned, True))
    except NftRefused:
        nft.run(encode(owned, False))  # a kernel without the ingress hook for inet; another reason is refused again


def _send(probe: Probe, packet: bytes) -> None:
    """Send from a raw socket; the filter's refusal comes back as EPERM, which is an answer and no error."""
    four = probe.source.version == 4
    try:
        with socket.socket(
            socket.AF_INET if four else socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW
        ) as sender:
            if probe.interface is not None and probe.interface != "lo":
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, probe.interface.encode() + b"\0")
            index = find_interface(probe.interface) if probe.interface is not None else 0
            where = (str(probe.destination), 0) if four else (str(probe.destination), 0, 0, index)
            sender.sendto(packet, where)
    except PermissionError:
        return
    except OSError as error:
        raise NoInjection(f"the packet cannot be sent: {error}", errno=error.errno) from error


def _inject(probe: Probe, frame: bytes) -> None:
    index = find_interface(probe.interface or "")
    number = _BPF_CALLS.get((platform.machine(), ctypes.sizeof(ctypes.c_void_p)))
    if number is None:
        raise NoInjection(f"bpf(2) has no known number on {platform.machine()}", machine=platform.machine())
    try:
        program = _load_program(number)
        try:
            _run_program(number, program, frame, index)
        finally:
            os.close(program)
    except OSError as error:
        raise NoInjection(
            f"the kernel takes no packet for {probe.interface}: {error.strerror}", errno=error.errno
        ) from error


def _load_program(number: int) -> int:
    """Return a descriptor of the program that passes every frame on."""
    code = ctypes.create_string_buffer(_RETURN_PASS, len(_RETURN_PASS))
    licence = ctypes.create_string_buffer(b"MIT")
    attributes = struct.pack(
        "=IIQQ", _BPF_PROG_TYPE_XDP, len(_RETURN_PASS) // 8, ctypes.addressof(code), ctypes.addressof(licence)
    )
    return _bpf(number, _BPF_PROG_LOAD, attributes)


def _run_program(number: int, program: int, frame: bytes, index: int) -> None:
    """Run the program once on ``frame`` as if it had arrived on interface ``index``."""
    data = ctypes.create_string_buffer(frame, len(frame))
    context = struct.pack("=IIIIII", 0, len(frame), 0, index, 0, 0)  # struct xdp_md
    held = ctypes.create_string_buffer(context, len(context))
    attributes = struct.pack(
        "=IIIIQQIIIIQQII",
        *(program, 0, len(frame), 0),
        *(ctypes.addressof(data), 0),
        *(1, 0, len(context), 0),  # once
        *(ctypes.addressof(held), 0),
        *(_BPF_F_TEST_XDP_LIVE_FRAMES, 0),
    )
    _bpf(number, _BPF_PROG_TEST_RUN, attributes)


def _bpf(number: int, command: int, attributes: bytes) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    held = ctypes.create_string_buffer(attributes, _ATTRIBUTE_BYTES)
    result: int = library.syscall(ctypes.c_long(number), ctypes.c_int(command), held, ctypes.c_uint(_ATTRIBUTE_BYTES))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _prepare_out(question: Question) -> Probe:
    if question.destination is None:
        raise BadQuestion("a packet of this device itself needs a destination")
    route = find_route(question.destination, leaving=question.interface)
    source = question.source or route.own
    if source is None:
        raise NoRoute(f"the kernel names no address of its own for {question.destination}")
    interface = question.interface or route.interface or None
    if route.reach is Reach.HERE and _is_own(question.destination):
        interface = "lo"  # the kernel brings packets to itself over the loopback, whatever address they carry
    return _new_probe(question, Direction.OUT, interface, source, question.destination)


def _new_probe(
    question: Question, direction: Direction, interface: str | None, source: Address, destination: Address
) -> Probe:
    if source.version != destination.version:
        raise BadQuestion(f"{source} and {destination} are not of one IP version")
    first, last = _SOURCE_PORTS
    return Probe(
        direction=direction,
        interface=interface,
        source=source,
        destination=destination,
        protocol=question.protocol,
        port=question.port,
        source_port=first + secrets.randbelow(last - first + 1) if question.protocol.has_ports else 0,
        nonce=secrets.token_bytes(NONCE_BYTES),
    )


def _find_way_back(question: Question) -> Route | None:
    """Return the route to the source: its interface is where packets from there are expected."""
    try:
        return find_route(question.source, leaving=question.interface) if question.source is not None else None
    except NoRoute:
        return None


def _find_sender(source: Address, gateway: Address | None, interface: str, nonce: bytes) -> bytes:
    """Return the MAC address of the neighbour that would deliver the packet, else one that belongs to nobody."""
    return find_mac(gateway or source, interface) or b"\x02" + nonce[:5]


def _find_receiver(destination: Address, interface: str) -> bytes:
    if destination.is_multicast:
        if destination.version == 6:
            return b"\x33\x33" + destination.packed[-4:]  # RFC 2464 §7
        return b"\x01\x00\x5e" + bytes((destination.packed[1] & 0x7F,)) + destination.packed[2:]  # RFC 1112 §6.4
    return find_own_mac(interface)


def _is_own(address: Address) -> bool:
    if address.is_multicast:
        return False
    try:
        return find_route(address).reach is Reach.HERE
    except NoRoute:
        return False


def _explain_unrouted(error: NoRoute, source: Address, interface: str) -> str:
    """Return routing's refusal in words; kernels since 6.13 give one error number for nearly all of them."""
    code = error.fields.get("errno")
    if code == errno.EXDEV or (code == errno.EINVAL and _is_astray(source, interface)):
        return f"the reverse path filter (rp_filter) of {interface} does not expect {source} there"
    if code in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return "there is no route on, or forwarding is off"
    if code == errno.EINVAL:
        return f"{source} cannot come from {interface} (a martian), or there is no route on, or forwarding is off"
    return error.message


def _is_astray(source: Address, interface: str) -> bool:
    if source.version == 6 or source.is_multicast or not read_reverse_path_filter(interface):
        return False
    try:
        return find_route(source).interface != interface
    except NoRoute:
        return True
