"""A worker process of another room: told its configuration in one line, read line by line, never left behind.

Touches: processes, pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence

from tidegate.agent.errors import WorkerEnded

MAX_LINE_BYTES = 65_536  # the sensor cuts its own at half of it; others have below 2 KiB
MAX_SKIPPED_BYTES = 1 << 20  # a line beyond this is no line, and its worker is broken

Handle = Callable[[Mapping[str, object]], None]


class Worker:
    """Runs ``python -m MODULE ARGUMENTS...`` once, from its start to its end."""

    def __init__(self, title: str, module: str, arguments: Sequence[str] = (), *, grace_s: float = 0.0) -> None:
        """``grace_s``: how long it may take to end by itself when it is asked to, before it is killed."""
        self.title = title
        self._grace_s = grace_s
        self.is_ready = False
        self.pid: int | None = None
        self.skipped = 0
        self._command = [sys.executable, "-m", module, *arguments]

    async def run(self, config: str, handle: Handle) -> None:
        """Give the worker ``config`` and hand every line that it writes to ``handle``, until it ends.

        A line above ``MAX_LINE_BYTES`` is passed over and counted in ``skipped``; ``handle`` gets an event of the type
        ``skipped`` in its place. Whatever ends this ends the worker. Always raises: ``agent.worker.ended``, or
        ``asyncio.CancelledError``.
        """
        try:
            await self._run(config, handle)
        except (OSError, ValueError) as error:  # it could not start, took no configuration, or died within a line
            raise WorkerEnded(f"{self.title}: {error}", worker=self.title) from error

    async def _run(self, config: str, handle: Handle) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=MAX_LINE_BYTES
        )
        self.pid = process.pid
        try:
            if process.stdin is None or process.stdout is None:
                raise WorkerEnded(f"{self.title} has no pipes", worker=self.title)
            process.stdin.write(config.encode() + b"\n")
            await process.stdin.drain()
            while (line := await _read_line(process.stdout)) != b"":
                if line is None:
                    self.skipped += 1
                    handle({"event_type": "skipped"})
                    continue
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise ValueError("a line that is no event")
                self._take(event, handle)
            raise WorkerEnded(f"{self.title} ended", worker=self.title)
        finally:
            self.is_ready, self.pid = False, None
            ending = asyncio.create_task(_end(process, self._grace_s))
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:  # asked to stop within these milliseconds: no orphan all the same
                await ending
                raise

    def _take(self, event: Mapping[str, object], handle: Handle) -> None:
        kind = event.get("event_type")
        if kind == "ready":
            self.is_ready = True
        elif kind == "error":
            raise WorkerEnded(f"{self.title}: {event.get('message')}", worker=self.title)
        else:
            handle(event)


async def _read_line(stream: asyncio.StreamReader) -> bytes | None:
    """Return the next line, empty at the end, ``None`` for one that was too long and is passed over."""
    skipped = 0
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            line = error.partial  # the end, or what was said before it
        except asyncio.LimitOverrunError as error:
            skipped += len(await stream.read(error.consumed))
            if skipped > MAX_SKIPPED_BYTES:
                raise ValueError(f"a line of more than {MAX_SKIPPED_BYTES} bytes") from error
            continue
        return None if skipped else line


async def _end(process: asyncio.subprocess.Process, grace_s: float) -> None:
    if process.returncode is None and grace_s:
        process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await _drain(process)
                await process.wait()
    if process.returncode is None:
        process.kill()  # it has nothing to save, and it may hang
    await _drain(process)
    await process.wait()
    if process.stdin is not None:
        process.stdin.close()
        with contextlib.suppress(OSError):  # nobody reads it any more
            await process.stdin.wait_closed()


async def _drain(process: asyncio.subprocess.Process) -> None:
    """Read what it still says: its pipe is given back only at the end."""
    while process.stdout is not None and await process.stdout.read(MAX_LINE_BYTES):
        pass
