"""Messages of the key process over a socket.

Touches: the socket it is given. A peer that is slow, silent or gone costs at most the time that the caller allows.
"""

from __future__ import annotations

import socket
import time

from tidegate.keys.errors import KeydMessageMalformed
from tidegate.keys.keyd_wire import HEAD_BYTES, frame, parse_head

_PIECE_BYTES = 65_536


def send_message(connection: socket.socket, body: bytes, *, within_s: float) -> None:
    """Send one message; raise ``OSError`` if the peer does not take it in time."""
    connection.settimeout(within_s)
    connection.sendall(frame(body))


def receive_message(connection: socket.socket, *, idle_s: float, within_s: float) -> bytes | None:
    """Return the next message, ``None`` if the peer closed before one began.

    Waits ``idle_s`` for its first byte, and ``within_s`` from there to its last. Raises ``keys.keyd.malformed`` for a
    length over the limit or an end inside a message, ``TimeoutError`` and other ``OSError``.
    """
    connection.settimeout(idle_s)
    first = connection.recv(1)
    if not first:
        return None
    deadline = time.monotonic() + within_s
    head = first + _receive(connection, HEAD_BYTES - 1, deadline)
    return _receive(connection, parse_head(head), deadline)


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    pieces = bytearray()  # grows by what came, never by what was announced
    while len(pieces) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the message did not come in time")
        connection.settimeout(left)
        piece = connection.recv(min(_PIECE_BYTES, count - len(pieces)))
        if not piece:
            raise KeydMessageMalformed("the peer closed inside a message")
        pieces += piece
    return bytes(pieces)
