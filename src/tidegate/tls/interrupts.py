"""What ends a program (Ctrl-C, ``sys.exit`` in a signal's handler), met inside a callback from OpenSSL.

It may not cross C, and it may not be lost: it is raised again as soon as the main thread is out of every callback.
Until then a handler of our own answers SIGINT, because the wake-up itself may come while another callback runs.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_CALLBACKS: set[CodeType] = set()
_AGAIN_S = 0.001  # between two tries while the main thread is inside a callback


def remember_callback(function: Callable[..., Any]) -> None:
    """Remember that ``function`` runs inside a call from C; a builtin needs no remembering, no handler runs in it."""
    if code := getattr(function, "__code__", None):
        _CALLBACKS.add(code)


def raise_behind(error: BaseException) -> None:
    """Let an ``error`` that ends a program be raised in the main thread once that is out of its callbacks.

    Of several, the first one. Only the main thread meets them from outside: what a signer raises in another thread is
    a failure like any. Not where a program embeds Python and has its own handler of SIGINT beneath Python's.
    """
    before = signal.getsignal(signal.SIGINT)
    if isinstance(error, Exception) or threading.current_thread() is not threading.main_thread() or before is None:
        return
    if getattr(before, "__func__", None) is not _Raising.answer:
        raising = _Raising(error, before)
        signal.signal(signal.SIGINT, raising.answer)
        # not ``Thread.start``: it waits for the thread, and meanwhile another signal's handler could raise
        _thread.start_new_thread(raising.wake, (threading.get_ident(),))


class _Raising:
    """An error on its way out of the callbacks."""

    def __init__(self, error: BaseException, before: Any) -> None:
        self._error: BaseException | None = error
        self._before = before
        self._seen = False  # no lock: a handler may come while a handler runs

    def answer(self, _: int, frame: FrameType | None) -> None:
        """Raise the error, if the main thread is out of the callbacks."""
        self._seen = True
        if not _in_callback(frame) and (error := self._error):
            signal.signal(signal.SIGINT, self._before)
            self._error = None
            raise error.with_traceback(None)  # its frames hold what a signer had in its hands

    def wake(self, main: int) -> None:
        """Send SIGINT until the error was raised: it wakes the main thread wherever it waits."""
        while self._error:
            self._seen = False
            signal.pthread_kill(main, signal.SIGINT)
            while not self._seen:  # one at a time: a second one would hit the program's own handler
                time.sleep(_AGAIN_S)


def _in_callback(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code not in _CALLBACKS:
        frame = frame.f_back
    return frame is not None
