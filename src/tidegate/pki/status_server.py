"""CRL and OCSP over plain HTTP, as an ASGI application: what it serves is signed, so nobody has to trust the way.

``GET /crl``, ``POST /ocsp`` and ``GET /ocsp/BASE64`` (RFC 6960, appendix A). Touches: the CA's store and key, through
the ``Authority``, in one worker thread.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from tidegate.base.clock import Clock
from tidegate.base.errors import TidegateError
from tidegate.pki.authority import Authority

_MAX_QUESTION_BYTES = 2048  # one certificate and a nonce have a tenth of it
_MAX_WAITING = 256
_FRESH_S = 600  # a list as old as this is made anew, and one from before the last revocation at once
_DER = {"crl": b"application/pkix-crl", "ocsp": b"application/ocsp-response"}


class StatusServer:
    """Answers what was revoked. Whoever asks too much meets a full queue, not a slow CA: it has its own thread."""

    def __init__(self, authority: Authority, *, clock: Clock) -> None:
        self._authority, self._clock = authority, clock
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="status")
        self._waiting = 0

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Answer one request."""
        status, content_type, body = await self._answer(scope, receive)
        headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def close(self) -> None:
        """End the worker."""
        self._worker.shutdown(wait=True)

    async def _answer(self, scope: Mapping[str, Any], receive: Any) -> tuple[int, bytes, bytes]:
        path, method = str(scope["path"]).removeprefix(scope.get("root_path") or ""), scope["method"]
        if (method, path) == ("GET", "/crl"):
            return await self._work("crl", b"")
        question: bytes | None = None
        if (method, path) == ("POST", "/ocsp"):
            question = await _read(receive)
        elif method == "GET" and path.startswith("/ocsp/"):
            question = _decode(unquote(bytes(scope.get("raw_path") or path.encode()).decode("latin-1")))
        if question is None:
            return 404, b"text/plain", b"unknown\n"
        if len(question) > _MAX_QUESTION_BYTES:
            return 413, b"text/plain", b"too-large\n"
        return await self._work("ocsp", question)

    async def _work(self, kind: str, question: bytes) -> tuple[int, bytes, bytes]:
        if self._waiting >= _MAX_WAITING:
            return 503, b"text/plain", b"busy\n"
        self._waiting += 1
        try:
            call = self._list if kind == "crl" else lambda: self._authority.answer_ocsp(question)
            body = await asyncio.get_running_loop().run_in_executor(self._worker, call)
        except TidegateError:
            return 503, b"text/plain", b"busy\n"
        finally:
            self._waiting -= 1
        return 200, _DER[kind], body

    def _list(self) -> bytes:
        """Return the list in force, made anew where it is old or somebody was revoked since."""
        newest, now_s = self._authority.store.newest_crl(delta=False), self._clock.now_s()
        age_s = now_s - newest.made_s if newest else -1.0
        if newest is None or not 0 <= age_s < _FRESH_S:
            return self._authority.crl()
        # a second has passed: what was revoked in the one in which the list was made would look new for ever
        if age_s >= 2 and self._authority.store.revoked(since_s=newest.made_s, alive_s=int(now_s)):
            return self._authority.crl()
        return newest.der


async def _read(receive: Any) -> bytes:
    body, more = bytearray(), True
    while more and len(body) <= _MAX_QUESTION_BYTES:
        message = await receive()
        body += message.get("body", b"")
        more = message["type"] == "http.request" and bool(message.get("more_body", False))
    return bytes(body)


def _decode(path: str) -> bytes | None:
    """Return the question in a path; base64 there may hold slashes."""
    text = path.partition("/ocsp/")[2]
    try:
        return base64.b64decode(text, validate=True) if len(text) <= 2 * _MAX_QUESTION_BYTES else b"x" * len(text)
    except (binascii.Error, ValueError):
        return None
