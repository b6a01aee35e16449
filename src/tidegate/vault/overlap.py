"""One system call beside the ciphers: a thread that reads or writes while its owner encrypts.

The library's ciphers keep the interpreter's lock, and a thread that has just been given work would wait for it as long
as they run. So ``begin`` returns when the thread is in its system call (which gives the lock up), not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Overlap(Generic[Result]):
    """Runs jobs one after the other in a thread of its own, which ends with ``close``. For use by one thread."""

    def __init__(self) -> None:
        self._job: Callable[[], Result] | None = None
        self._result: list[Result] = []
        self._error: BaseException | None = None
        self._wanted, self._begun, self._done = (threading.Lock() for _ in range(3))
        for turn in (self._wanted, self._begun, self._done):
            turn.acquire()  # each is given by one thread and taken by the other
        self._thread: threading.Thread | None = None
        self._busy = False

    def begin(self, job: Callable[[], Result]) -> Result | None:
        """Have ``job`` run behind the one before, and return what that one returned; raise what it raised instead.

        Its first step should be a system call. One hand-over for both: waking a thread costs as much as a chunk.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vault-io", daemon=True)
            self._thread.start()
        self._job, self._busy = job, True
        self._wanted.release()
        self._begun.acquire()
        return self._take()

    def wait(self) -> Result | None:
        """Return what the last job returned, or raise what it raised; None if there is none."""
        self._end()
        return self._take()

    def close(self) -> None:
        """End the thread; what its job still raises is dropped: who closes gave up, or has waited."""
        self._end()
        self._error = None
        self._result.clear()

    def _end(self) -> None:
        """Have the thread end behind its job, and wait for that."""
        if self._busy:
            self._job, self._busy = None, False
            if (
                self._wanted.locked()
            ):  # else an interrupted ``begin`` has given it already, and the job is not taken yet
                self._wanted.release()
            self._done.acquire()
            self._thread = None

    def _take(self) -> Result | None:
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result.pop() if self._result else None

    def _run(self) -> None:
        result: list[Result] = []
        error: BaseException | None = None
        while True:
            self._wanted.acquire()
            job = self._job
            self._result, self._error = result, error
            if job is None:
                self._done.release()
                return
            self._begun.release()
            result, error = [], None
            try:
                result = [job()]
            except BaseException as raised:  # noqa: BLE001  # raised again in the thread that asked
                error = raised
