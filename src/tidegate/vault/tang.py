"""The network key server: a vault that opens only where the server can be reached (Tang, as clevis uses it).

Touches: one TCP connection per question, to the configured server alone. The server learns neither the secret nor
which slot is asked for; who listens, or stands in between, learns nothing and can at most refuse.
Source: the Tang protocol (tangd 11), docs/vault-network-key.md.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from typing import TYPE_CHECKING, cast

from cryptography.hazmat.primitives.asymmetric import ec

from tidegate.base.clock import SystemEntropy
from tidegate.crypto import cbor
from tidegate.crypto.aead import NONCE_BYTES, Secret
from tidegate.vault import jose
from tidegate.vault.jose import Advertisement, CompactJwe, PublicJwk
from tidegate.vault.tang_errors import (
    JoseMalformed,
    TangAnswerMalformed,
    TangCertificateInvalid,
    TangKeyGone,
    TangRefused,
    TangSettingInvalid,
    TangSlotMalformed,
    TangSlow,
    TangUnreachable,
    TangUntrusted,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_ANSWER_BYTES = 65_536  # head and body; an advertisement with 16 keys and their signatures is 17 KiB
MAX_ADDRESSES = 8  # of a name, each tried for its share of the time
MAX_TIMEOUT_S = 300.0
_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}")
_PATH = re.compile(r"(/(?!\.)[A-Za-z0-9._~-]+)*/?")  # no "." and ".."


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """Where the server is and how long it may take to answer, all in all."""

    url: str
    host: str
    port: int
    path: str
    timeout_s: float
    tls: ssl.SSLContext | None


class TangUnlocker:
    """Wrap by a key server's public key; unwrap with its help, which it can give only while it has that key.

    ``url`` is where to ask, http or https; the URL inside a slot is never followed. ``thumbprint`` is the SHA-256
    thumbprint of the signing key that is trusted when a slot is made. ``timeout_s`` bounds a whole question: name,
    connection and answer. ``tls`` is for https alone and defaults to the system's authorities.

    Opening proves nothing about who made the slot: everybody can encrypt to the server's key. There is no counter.
    Raises ``vault.tang.setting``.
    """

    kind = "tang"

    def __init__(
        self, url: str, *, thumbprint: str, timeout_s: float = 10.0, tls: ssl.SSLContext | None = None
    ) -> None:
        if not _THUMBPRINT.fullmatch(thumbprint):
            raise TangSettingInvalid("a trusted key is named by its SHA-256 thumbprint: 43 characters of base64url")
        self._server = _parse_server(url, timeout_s, tls)
        self._thumbprint = thumbprint

    def wrap(self, secret: Secret, context: bytes) -> dict[str, cbor.Value]:
        """Return the members of a new slot, bound to ``context``, for the server's first exchange key.

        Raises ``vault.tang.untrusted``, ``vault.tang.signature`` and those of ``fetch_advertisement``.
        """
        trusted = jose.verify_trust(_fetch(self._server), self._thumbprint)
        curve = jose.exchange_key(trusted).curve
        one_time = jose.OneTime(
            ephemeral=ec.generate_private_key(curve.group), nonce=SystemEntropy().random_bytes(NONCE_BYTES)
        )
        return {"jwe": jose.seal_compact(secret, trusted, url=self._server.url, context=context, one_time=one_time)}

    def unwrap(self, slot: Mapping[str, cbor.Value], context: bytes) -> Secret:
        """Return the secret of a slot that ``wrap`` made for the same ``context``.

        Raises ``vault.tang.slot``, ``vault.tang.refused``, ``vault.tang.key-gone``, ``vault.tang.unreachable``,
        ``vault.tang.slow``, ``vault.tang.answer``, ``vault.tang.certificate``.
        """
        jwe = _parse_slot(slot)
        if jwe.context_hash is None:
            raise TangSlotMalformed("the slot is bound to nothing: clevis made it, not Tidegate")
        if jwe.context_hash != hashlib.sha256(context).digest():
            raise TangRefused("the slot was made for another vault", key_id=jwe.key_id)
        return _recover(self._server, jwe)

    def anchor(self, vault_id: bytes) -> None:  # noqa: ARG002  # the server keeps nothing that could count
        """Return nothing: an old copy of the whole vault opens."""
        return

    def open_foreign(self, text: str) -> Secret:
        """Return the content of a JWE that clevis wrote, which is bound to nothing; raise as ``unwrap``."""
        return _recover(self._server, _parse_text(text))

    def follow_rotation(self, slot: Mapping[str, cbor.Value]) -> tuple[str, ...]:
        """Return the thumbprints of the keys that sign today, after the trusted key vouched for them.

        The trusted key's public part comes from the slot. With one of the thumbprints a new unlocker makes the slot
        that outlives the retired keys. Raises ``vault.tang.slot`` if the trusted key is not in the slot,
        ``vault.tang.untrusted`` if the server no longer signs with it, ``vault.tang.signature``, and those of
        ``fetch_advertisement``.
        """
        for key in _parse_slot(slot).keys:
            if key.use is jose.KeyUse.SIGN and key.thumbprint() == self._thumbprint:
                return _fetch(self._server, by=key).thumbprints
        raise TangSlotMalformed("the trusted key is not among those in the slot", trusted=self._thumbprint)


def fetch_advertisement(url: str, *, timeout_s: float = 10.0, tls: ssl.SSLContext | None = None) -> Advertisement:
    """Return what the server advertises, for a person to compare ``thumbprints`` with those on the server itself.

    That its signing keys signed it is checked; whether they are the server's is not. Raises ``vault.tang.setting``,
    ``vault.tang.signature``, ``vault.tang.answer``, ``vault.tang.unreachable``, ``vault.tang.slow``,
    ``vault.tang.certificate``.
    """
    return _fetch(_parse_server(url, timeout_s, tls))


def _fetch(server: _Server, *, by: PublicJwk | None = None) -> Advertisement:
    """Return the advertisement, signed by the key ``by`` as well if there is one."""
    status, body = _ask(server, "GET", f"/adv/{by.thumbprint()}" if by else "/adv")
    if status == 404 and by:
        raise TangUntrusted("the server does not have the trusted key any more", trusted=by.thumbprint())
    _require_ok(server, status)
    try:
        return jose.verify_advertisement(body, also=(by,) if by else ())
    except JoseMalformed as error:
        raise TangAnswerMalformed(f"{server.url}: {error.message}", url=server.url) from error


def _recover(server: _Server, jwe: CompactJwe) -> Secret:
    """Return the slot's content with the server's help, which sees a blinded point and nothing of the slot.

    C is the slot's key, S the server's, E a fresh one. The server multiplies C + E by its secret; minus S times E's
    secret, that is S times C's secret, which no one has any more.
    """
    fresh = ec.generate_private_key(jwe.recipient.curve.group)
    question = {**jose.blind(jwe, fresh.public_key()).members(), "alg": "ECMR"}
    status, body = _ask(server, "POST", f"/rec/{jwe.key_id}", jose.encode_json(question))
    if status == 404:
        raise TangKeyGone(
            f"{server.url} does not have the slot's key", url=server.url, key_id=jwe.key_id, slot_url=jwe.url
        )
    _require_ok(server, status)
    try:
        answer = jose.parse_jwk(jose.parse_json(body))
    except JoseMalformed as error:
        raise TangAnswerMalformed(f"{server.url}: {error.message}", url=server.url) from error
    if answer.curve is not jwe.recipient.curve:
        raise TangAnswerMalformed(f"{server.url} answers with a key on another curve", url=server.url)
    mask = fresh.exchange(ec.ECDH(), jwe.recipient.public_key())
    return jose.open_compact(jwe, jose.unblind(answer, mask, jwe.recipient))


def _parse_slot(slot: Mapping[str, cbor.Value]) -> CompactJwe:
    match slot:
        case {"jwe": str() as text, **rest} if not rest:
            return _parse_text(text)
        case _:
            raise TangSlotMalformed("the slot of the network key server is malformed")


def _parse_text(text: str) -> CompactJwe:
    try:
        return jose.parse_compact(text)
    except JoseMalformed as error:
        raise TangSlotMalformed(error.message) from error


def _parse_server(url: str, timeout_s: float, tls: ssl.SSLContext | None) -> _Server:
    """Return where to ask; a URL holds nothing but scheme, host, port and path, so that it can stand in messages."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TangSettingInvalid("the server's URL is malformed") from error
    default = {"http": 80, "https": 443}.get(parts.scheme)
    host = parts.hostname or ""
    plain = url.isascii() and url.isprintable() and not set(" ?#@\\").intersection(url)
    if default is None or not host or not plain or not _PATH.fullmatch(parts.path):
        raise TangSettingInvalid("the server's URL is not http(s)://HOST[:PORT][/PATH]")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise TangSettingInvalid(f"a time limit is between 0 and {MAX_TIMEOUT_S:g} s")
    context = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
    return _Server(
        url=url.rstrip("/"),
        host=host,
        port=default if port is None else port,
        path=parts.path.rstrip("/"),
        timeout_s=timeout_s,
        tls=context,
    )


# -- one question, one answer -----------------------------------------------------------------------------------------


def _require_ok(server: _Server, status: int) -> None:
    """Refuse every status but 200; a redirection would lead where nobody configured."""
    if status >= 500:
        raise TangUnreachable(f"{server.url} answers {status}", url=server.url, status=status)
    if status != 200:
        raise TangAnswerMalformed(f"{server.url} answers {status}", url=server.url, status=status)


def _ask(server: _Server, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Return status and body of one answer, received within the time limit as a whole.

    No proxy is used and no redirection followed. Raises ``vault.tang.unreachable``, ``vault.tang.slow``,
    ``vault.tang.certificate``, ``vault.tang.answer``.
    """
    deadline_s = time.monotonic() + server.timeout_s
    connection = _connect(server, deadline_s)
    try:
        connection = _secure(server, connection, deadline_s)
        connection.settimeout(_left(deadline_s))
        connection.sendall(_encode_request(server, method, path, body))
        return _receive(connection, deadline_s, method)
    except TimeoutError as error:
        raise TangSlow(f"{server.url} did not answer within {server.timeout_s:g} s", url=server.url) from error
    except ssl.SSLCertVerificationError as error:
        raise TangCertificateInvalid(f"{server.url}: {error.verify_message}", url=server.url) from error
    except OSError as error:
        raise TangUnreachable(
            f"{server.url} broke the connection off: {error.strerror or error}", url=server.url
        ) from error
    except (HTTPException, ValueError) as error:
        raise TangAnswerMalformed(f"{server.url} does not answer in HTTP", url=server.url) from error
    finally:
        connection.close()


def _encode_request(server: _Server, method: str, path: str, body: bytes) -> bytes:
    host = server.host.partition("%")[0]  # an interface's name is ours alone
    host = f"[{host}]" if ":" in host else host
    lines = [
        f"{method} {server.path}{path} HTTP/1.1",
        f"Host: {host}:{server.port}",
        "Accept: application/jose+json, application/jwk+json",
        "Connection: close",
    ]
    if body:
        lines += ["Content-Type: application/jwk+json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _receive(connection: socket.socket, deadline_s: float, method: str) -> tuple[int, bytes]:
    response = HTTPResponse(cast(socket.socket, _Wire(connection, deadline_s)), method=method)
    try:
        response.begin()
        body = response.read(MAX_ANSWER_BYTES + 1)  # a length, or the library makes room for what the peer announces
        if response.length:
            raise TangAnswerMalformed("an answer ends early")
        return response.status, body
    finally:
        response.close()


class _Wire:
    """A socket as far as ``HTTPResponse`` needs one."""

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._connection, self._deadline_s = connection, deadline_s

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002  # always "rb"
        return io.BufferedReader(_Stream(self._connection, self._deadline_s))


class _Stream(io.RawIOBase):
    """Reads until the deadline, however often the peer sends a byte, and no more than one answer may have."""

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        super().__init__()
        self._connection, self._deadline_s = connection, deadline_s
        self._received_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        self._connection.settimeout(_left(self._deadline_s))
        count = self._connection.recv_into(buffer)
        self._received_bytes += count
        if self._received_bytes > MAX_ANSWER_BYTES:
            raise TangAnswerMalformed(f"an answer has more than {MAX_ANSWER_BYTES} bytes")
        return count


def _left(deadline_s: float) -> float:
    """Return the seconds that are left, or raise ``TimeoutError``; a socket's limit of 0 would mean another thing."""
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("the deadline has passed")
    return left_s


def _connect(server: _Server, deadline_s: float) -> socket.socket:
    """Return a connection to the first address that takes one; each gets its share of the time that is left."""
    failure: OSError = OSError("the name has no address")
    try:
        addresses = _resolve(server, deadline_s)
        for number, (family, address) in enumerate(addresses):
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(_left(deadline_s) / (len(addresses) - number))
                connection.connect(address)
                return connection
            except OSError as error:
                connection.close()
                failure = error
    except OSError as error:
        failure = error
    raise TangUnreachable(f"{server.url} cannot be reached: {failure.strerror or failure}", url=server.url) from failure


def _resolve(server: _Server, deadline_s: float) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Return the host's addresses; the C library, which knows no deadline, is asked in a thread that may be left."""
    try:
        literal = ipaddress.ip_address(server.host)
    except ValueError:
        pass
    else:
        family = socket.AF_INET6 if literal.version == 6 else socket.AF_INET
        return [(family, (server.host, server.port))]
    answers: queue.Queue[list[tuple[socket.AddressFamily, tuple[str, int]]] | OSError] = queue.Queue()

    def look_up() -> None:
        try:
            found = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
            answers.put([(entry[0], cast(tuple[str, int], entry[4])) for entry in found[:MAX_ADDRESSES]])
        except OSError as error:
            answers.put(error)
        except UnicodeError as error:
            answers.put(OSError(f"the name is malformed: {error}"))

    threading.Thread(target=look_up, name="tang-name", daemon=True).start()
    try:
        answer = answers.get(timeout=_left(deadline_s))
    except queue.Empty as error:
        raise TimeoutError("the name was not resolved in time") from error
    if isinstance(answer, OSError):
        raise answer
    return answer


def _secure(server: _Server, connection: socket.socket, deadline_s: float) -> socket.socket:
    if server.tls is None:
        return connection
    connection.settimeout(_left(deadline_s))
    return server.tls.wrap_socket(connection, server_hostname=server.host)
