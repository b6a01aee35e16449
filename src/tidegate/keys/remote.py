"""The client of the key process: a ``KeyStore`` whose keys are in another process.

Touches: the key process's socket, one connection a process. It survives a restart of the key process (it connects once
more), a fork (the child gets a connection of its own) and threads (one request at a time).
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import PublicKey
from tidegate.keys.errors import CapabilityMissing, KeydMessageMalformed, KeydUnreachable, StoreClosed
from tidegate.keys.keyd_channel import receive_message, send_message
from tidegate.keys.keyd_wire import NAMELESS, Operation, Request, encode_request, parse_reply
from tidegate.keys.store import (
    AskPin,
    Capabilities,
    KeyInfo,
    KeySpec,
    Quote,
    check_chain,
    check_key_name,
)
from tidegate.keys.uri import KeyUri

_CONNECT_S = 5.0
_LAST_WORDS_S = 0.5
_ANSWER_S = 180.0  # more than the key process allows its provider, and others before us
# what may be asked once more if the key process went away before it answered: doing it twice changes nothing
_REPEATABLE = frozenset(
    {
        *NAMELESS,
        Operation.PUBLIC,
        Operation.SIGN,
        Operation.SEAL,
        Operation.UNSEAL,
        Operation.COUNTER_READ,
        Operation.QUOTE,
        Operation.CERTIFICATES,
        Operation.KEEP_CERTIFICATES,
        Operation.EXPORT,
    }
)


class RemoteSigner:
    """Signs with a key in the key process."""

    def __init__(self, store: RemoteKeyStore, name: str, public_key: PublicKey) -> None:
        self._store = store
        self._name = name
        self._public_key = public_key

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """Return the raw signature over ``message``."""
        return self._store.sign(self._name, message)


class _Connection:
    """What one process has: a lock and, once it was needed, a socket. Another process never touches it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.socket: socket.socket | None = None

    def drop(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def __del__(self) -> None:
        self.drop()  # many callers keep only a signer and never close the store


class RemoteKeyStore:
    """A ``KeyStore`` behind the key process's socket at ``path``; raises ``keys.keyd.unreachable`` and what it says."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closed = False
        self._connection = _Connection()
        able: Capabilities = self._ask(Operation.CAPABILITIES, "")
        self._capabilities = able

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def generate(self, name: str, spec: KeySpec) -> KeyInfo:
        check_key_name(name)
        self._check_open()
        self._capabilities.require(spec)
        info: KeyInfo = self._ask(Operation.GENERATE, name, spec)
        return info

    def list_keys(self) -> list[KeyInfo]:
        infos: list[KeyInfo] = self._ask(Operation.LIST, "")
        return infos

    def public_key(self, name: str) -> PublicKey:
        public: PublicKey = self._ask(Operation.PUBLIC, name)
        return public

    def signer(self, name: str) -> RemoteSigner:
        return RemoteSigner(self, name, self.public_key(name))

    def sign(self, name: str, message: bytes) -> bytes:
        """Return the raw signature over ``message``; what ``signer(name)`` calls."""
        return bytes(self._ask(Operation.SIGN, name, message))

    def seal(self, name: str, secret: bytes | memoryview, context: bytes) -> bytes:
        return bytes(self._ask(Operation.SEAL, name, secret, context))

    def unseal(self, name: str, sealed: bytes, context: bytes) -> Secret:
        secret: Secret = self._ask(Operation.UNSEAL, name, sealed, context)
        return secret

    def counter_read(self, name: str) -> int:
        return int(self._ask(Operation.COUNTER_READ, name))

    def counter_increment(self, name: str) -> int:
        return int(self._ask(Operation.COUNTER_INCREMENT, name))

    def random(self, count: int) -> bytes:
        return bytes(self._ask(Operation.RANDOM, "", count))

    def quote(self, name: str, nonce: bytes, pcrs: frozenset[int]) -> Quote:
        quote: Quote = self._ask(Operation.QUOTE, name, nonce, pcrs)
        return quote

    def keep_certificates(self, name: str, chain: Sequence[bytes]) -> None:
        self._ask(Operation.KEEP_CERTIFICATES, name, check_chain(chain))

    def certificates(self, name: str) -> tuple[bytes, ...]:
        chain: tuple[bytes, ...] = self._ask(Operation.CERTIFICATES, name)
        return chain

    def export_key(self, name: str) -> Secret:
        secret: Secret = self._ask(Operation.EXPORT, name)
        return secret

    def import_key(self, name: str, pkcs8: bytes | memoryview, spec: KeySpec) -> KeyInfo:
        info: KeyInfo = self._ask(Operation.IMPORT, name, pkcs8, spec)
        return info

    def destroy(self, name: str) -> None:
        self._ask(Operation.DESTROY, name)

    def close(self) -> None:
        """Leave the key process; every later use raises ``keys.store.closed``."""
        self._closed = True
        connection = self._mine()
        with connection.lock:
            connection.drop()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"the key process at {self._path} was left", path=str(self._path))

    def _mine(self) -> _Connection:
        """Return this process's connection; after a fork the parent's is left alone, lock and all."""
        if self._connection.pid != os.getpid():
            self._connection = _Connection()
        return self._connection

    def _ask(self, operation: Operation, name: str, *arguments: object) -> Any:  # as keyd_wire says
        if operation not in NAMELESS:
            check_key_name(name)
        self._check_open()
        body = encode_request(Request(operation=operation, name=name, arguments=arguments))
        connection = self._mine()
        with connection.lock:
            reply = self._exchange(connection, body, repeatable=operation in _REPEATABLE)
        return parse_reply(operation, reply)

    def _exchange(self, connection: _Connection, body: bytes, *, repeatable: bool) -> bytes:
        """Return the reply, on a new connection if the old one turns out to be dead."""
        if connection.socket is not None and _is_dead(connection.socket):
            connection.drop()
        is_used = connection.socket is not None
        for is_last in (not is_used, True):
            sent = False
            try:
                stream = connection.socket or self._connect()
                connection.socket = stream
                send_message(stream, body, within_s=_ANSWER_S)
                sent = True
                reply = receive_message(stream, idle_s=_ANSWER_S, within_s=_ANSWER_S)
            except OSError as error:
                reply = None if sent else _last_words(connection.socket)
                connection.drop()
                if reply is not None:
                    return reply
                if is_last or (sent and not repeatable):
                    raise self._unreachable(error.strerror or str(error) or "no answer in time", sent=sent) from error
                continue
            except BaseException:
                connection.drop()  # half a message is behind us: the rest must not be read as the next reply
                raise
            if reply is not None:
                return reply
            connection.drop()
            if is_last or not repeatable:
                raise self._unreachable("it went away before it answered", sent=True)
        raise self._unreachable("it went away twice", sent=True)

    def _connect(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            stream.settimeout(_CONNECT_S)
            stream.connect(str(self._path))
        except BaseException:
            stream.close()
            raise
        return stream

    def _unreachable(self, why: str, *, sent: bool) -> KeydUnreachable:
        doubt = "; the request may have been carried out" if sent else ""
        return KeydUnreachable(f"the key process at {self._path}: {why}{doubt}", path=str(self._path))


def _is_dead(stream: socket.socket) -> bool:
    """Return whether the peer has closed, or said something that nobody asked for."""
    stream.settimeout(0)
    try:
        stream.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _last_words(stream: socket.socket | None) -> bytes | None:
    """Return why the key process hung up before it heard us, if it said so."""
    if stream is None:
        return None
    try:
        return receive_message(stream, idle_s=_LAST_WORDS_S, within_s=_LAST_WORDS_S)
    except (OSError, KeydMessageMalformed):
        return None


def open_uri(uri: KeyUri, *, create: bool, ask: AskPin | None) -> RemoteKeyStore:  # noqa: ARG001  # keyd knows the PIN
    """Return the store behind the key process of a ``keyd:`` URI; raise ``keys.keyd.unreachable``."""
    if create:
        raise CapabilityMissing("the key process makes no stores; make it with the provider's own URI")
    return RemoteKeyStore(Path(uri.location))
