"""The child of the key process that holds the token, and the parent's end of it.

Touches: the provider (here alone), a socket pair between both. A token's module that crashes or hangs takes this child
with it and nothing else: the request in flight fails, the next one gets a new child.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from tidegate.base.durable import write_all
from tidegate.base.errors import TidegateError
from tidegate.crypto import cbor
from tidegate.keys.errors import (
    CapabilityMissing,
    KeydMessageMalformed,
    PinLocked,
    PinMissing,
    PinRefused,
    ProviderFailed,
    UnlockRefused,
)
from tidegate.keys.keyd_channel import receive_message, send_message
from tidegate.keys.keyd_harden import harden
from tidegate.keys.keyd_wire import (
    MAX_MESSAGE_BYTES,
    Operation,
    Request,
    encode_answer,
    encode_error,
    parse_reply,
    parse_request,
)
from tidegate.keys.store import KeyStore
from tidegate.keys.uri import KeyUri, open_store, read_pin

_PIN_OPTIONS = ("pin-source", "passphrase-file", "key-pin-source", "auth-source", "owner-auth-source")
_OPENING_S = 30.0
_STOPPING_S = 3.0
_FOREVER_S = 1e9
_FINAL = (PinRefused, PinLocked, PinMissing, UnlockRefused)  # trying once more would only cost the token a try


def hold_pins(uri: KeyUri) -> tuple[KeyUri, tuple[int, ...]]:
    """Return ``uri`` with every PIN in a descriptor in place of its file, and these descriptors.

    The files are read now, as the user who may; each new child gets the descriptors, as the user that is left.
    Raises what ``read_pin`` does.
    """
    options, descriptors = dict(uri.options), []
    for option in _PIN_OPTIONS:
        if option in options:
            with read_pin(options[option], None, f"the PIN of {option}") as pin:
                descriptor = os.memfd_create(option)
                write_all(descriptor, pin.view())
            descriptors.append(descriptor)
            options[option] = f"/dev/fd/{descriptor}"
    held = KeyUri(scheme=uri.scheme, location=uri.location, name=uri.name, options=options)
    return held, tuple(descriptors)


class Worker:
    """The child, started when it is needed; one request at a time."""

    def __init__(self, uri: KeyUri, pins: tuple[int, ...], *, within_s: float, report: Callable[..., None]) -> None:
        self._uri = uri
        self._pins = pins
        self._within_s = within_s
        self._report = report
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._refusal: TidegateError | None = None

    def start(self) -> None:
        """Open the store; raise what the provider says to that."""
        with self._lock:
            self._ready()

    def call(self, body: bytes) -> bytes:
        """Return the child's reply to a request; raise ``keys.provider.failed`` if it dies over it."""
        with self._lock:
            channel = self._ready()
            try:
                send_message(channel, body, within_s=self._within_s)
                reply = receive_message(channel, idle_s=self._within_s, within_s=self._within_s)
            except (OSError, KeydMessageMalformed):
                reply = None
            if reply is None:
                raise self._lost()
            return reply

    def stop(self) -> None:
        """End the child, within seconds even if it is in the middle of something."""
        if not self._lock.acquire(timeout=_STOPPING_S):
            child = self._child
            if child is not None:
                child.kill()
            self._lock.acquire()
        try:
            self._bury()
        finally:
            self._lock.release()

    def _ready(self) -> socket.socket:
        """Return the way to a child that has opened the store."""
        if self._refusal is not None:
            raise type(self._refusal)(self._refusal.message, **self._refusal.fields)
        if self._channel is not None and self._child is not None and self._child.poll() is None:
            return self._channel
        self._bury()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            # -P: not with the modules of whatever folder it was started in
            command = [sys.executable, "-P", "-m", "tidegate.keys.keyd_worker", str(theirs.fileno())]
            try:
                self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
            except OSError as error:  # after becoming another user: can he run this interpreter?
                ours.close()
                raise ProviderFailed(f"{sys.executable} does not start: {error.strerror}") from error
        self._channel = ours
        try:
            send_message(ours, _opening(self._uri, self._pins), within_s=_OPENING_S)
            if self._pins:  # not inherited: until it has hardened itself, its user's other processes can look into it
                socket.send_fds(ours, [b"\0"], self._pins)
            reply = receive_message(ours, idle_s=_OPENING_S, within_s=_OPENING_S)
        except (OSError, KeydMessageMalformed):
            reply = None
        if reply is None:
            raise self._lost()
        try:
            parse_reply(Operation.DESTROY, reply)  # "nothing": the store is open
        except TidegateError as error:
            self._bury()
            if isinstance(error, _FINAL):
                self._refusal = error
            raise
        return ours

    def _lost(self) -> ProviderFailed:
        status = self._bury()
        self._report("keyd.worker.lost", status=status)
        return ProviderFailed("the process that talks to the token ended or hung; it is started anew", status=status)

    def _bury(self) -> int | None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._child is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=0.2)  # it may be ending by itself; its own status says more than ours
        if self._child.poll() is None:
            self._child.kill()
        status = self._child.wait()
        self._child = None
        return status


def perform(store: KeyStore, request: Request) -> Any:  # what keyd_wire says of the operation
    """Return what the store answers to a request."""
    name, given = request.name, request.arguments
    actions: dict[Operation, Callable[..., Any]] = {
        Operation.CAPABILITIES: store.capabilities,
        Operation.LIST: store.list_keys,
        Operation.RANDOM: lambda: store.random(*given),
        Operation.PUBLIC: lambda: store.public_key(name),
        Operation.SIGN: lambda: store.signer(name).sign(*given),
        Operation.SEAL: lambda: store.seal(name, *given),
        Operation.UNSEAL: lambda: store.unseal(name, *given),
        Operation.COUNTER_READ: lambda: store.counter_read(name),
        Operation.COUNTER_INCREMENT: lambda: store.counter_increment(name),
        Operation.QUOTE: lambda: store.quote(name, *given),
        Operation.CERTIFICATES: lambda: store.certificates(name),
        Operation.KEEP_CERTIFICATES: lambda: store.keep_certificates(name, *given),
        Operation.GENERATE: lambda: store.generate(name, *given),
        Operation.EXPORT: lambda: store.export_key(name),
        Operation.IMPORT: lambda: store.import_key(name, *given),
        Operation.DESTROY: lambda: store.destroy(name),
    }
    return actions[request.operation]()


def serve(channel: socket.socket) -> None:
    """Open the store that the first message names and answer requests until the parent is gone."""
    first = receive_message(channel, idle_s=_OPENING_S, within_s=_OPENING_S)
    if first is None:
        return
    try:
        store = _open(first, channel)
    except TidegateError as error:
        send_message(channel, encode_error(error), within_s=_OPENING_S)
        return
    send_message(channel, encode_answer(Operation.DESTROY, None), within_s=_OPENING_S)
    while (body := receive_message(channel, idle_s=_FOREVER_S, within_s=_OPENING_S)) is not None:
        try:
            request = parse_request(body)
            answer = encode_answer(request.operation, perform(store, request))
            if len(answer) > MAX_MESSAGE_BYTES:
                raise CapabilityMissing(f"the answer to {request.operation.value} is longer than a message may be")
        except TidegateError as error:
            answer = encode_error(error)
        send_message(channel, answer, within_s=_OPENING_S)
    store.close()


def _opening(uri: KeyUri, pins: tuple[int, ...]) -> bytes:
    return cbor.encode([uri.scheme, uri.location, dict(uri.options), list(pins)])


def _open(first: bytes, channel: socket.socket) -> KeyStore:
    """Return the store that the first message names, with the PINs whose descriptors come behind it."""
    match cbor.decode(first, limit_bytes=MAX_MESSAGE_BYTES):
        case [str() as scheme, str() as location, dict() as told, list() as pins]:
            here = socket.recv_fds(channel, 1, len(pins))[1] if pins else []
            for descriptor in here:
                os.set_inheritable(descriptor, False)
            moved = {f"/dev/fd/{there}": f"/dev/fd/{ours}" for there, ours in zip(pins, here, strict=True)}
            options = {str(option): moved.get(str(value), str(value)) for option, value in told.items()}
            return open_store(KeyUri(scheme=scheme, location=location, name="", options=options))
    raise KeydMessageMalformed("no opening message")


def main() -> int:
    """Serve the parent over the descriptor in the only argument."""
    harden()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        os.set_inheritable(channel.fileno(), False)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the parent is gone, and so are we
            serve(channel)
    return 0


if __name__ == "__main__":
    sys.exit(main())
