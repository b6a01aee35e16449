"""Is the system that runs on trial healthy? Asked over loopback, each question with a deadline.

Touches: sockets on this machine.
"""

from __future__ import annotations

import asyncio

from tidegate.update.section import HttpProbe, UpdateSection

_ANSWER_LIMIT_BYTES = 65_536
_PROBE_TIMEOUT_S = 3.0
_PAUSE_S = 0.3


async def ask_http(probe: HttpProbe, version: str) -> str | None:
    """Return None if the probe passes, else what was wrong with the answer."""
    wanted = probe.expect.replace("{version}", version)
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", probe.port, limit=_ANSWER_LIMIT_BYTES)
            try:
                request = f"GET {probe.path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                await writer.drain()
                answer = b""
                while len(answer) < _ANSWER_LIMIT_BYTES and (piece := await reader.read(_ANSWER_LIMIT_BYTES)):
                    answer += piece  # a server may send head and body apart
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        return f"port {probe.port}: {str(error) or 'no answer in time'}"
    status, _, body = answer.partition(b"\r\n\r\n")
    if status.split(b"\r\n", 1)[0].split(b" ")[1:2] != [b"200"]:
        return f"port {probe.port}{probe.path}: {status[:64].decode(errors='replace')!r}"
    if wanted and wanted not in body.decode(errors="replace"):
        return f"port {probe.port}{probe.path}: the answer lacks {wanted!r}"
    return None


async def prove_health(section: UpdateSection, version: str) -> str | None:
    """Return None if every probe passed before the deadline, else the last complaint."""
    complaint = "no probe was answered in time"
    try:
        async with asyncio.timeout(section.deadline_s):
            for probe in section.http:
                while found := await ask_http(probe, version):
                    complaint = found
                    await asyncio.sleep(_PAUSE_S)
                complaint = f"port {probe.port} passed, the probes after it did not in time"
    except TimeoutError:
        return complaint
    return None
