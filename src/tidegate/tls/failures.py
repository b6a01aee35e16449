"""Errors that could not cross C: a callback from OpenSSL may not raise, so what went wrong waits here."""

from __future__ import annotations

import ssl
import weakref

from tidegate.tls.interrupts import raise_behind

_BY_CONTEXT: weakref.WeakKeyDictionary[ssl.SSLContext, Failures] = weakref.WeakKeyDictionary()
_MAX_CHAIN = 16  # errors behind an error; a loop among them would be the signer's own doing


class Failures:
    """What the callbacks of one context last met."""

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: BaseException | None = None

    def note(self, error: BaseException) -> None:
        """Keep ``error`` without its tracebacks: their frames would keep alive what a signer had in its hands."""
        raise_behind(error)
        left = [error]
        for _ in range(_MAX_CHAIN):
            if not left:
                break
            one = left.pop()
            one.__traceback__ = None
            # two ways on: ``raise … from`` while another error is being handled
            behind = {id(cause): cause for cause in (one.__cause__, one.__context__) if cause is not None}
            left += behind.values()
        self.last = error


def keep_failures(context: ssl.SSLContext, failures: Failures) -> None:
    """Let ``last_failure`` find what belongs to ``context``."""
    _BY_CONTEXT[context] = failures


def last_failure(context: ssl.SSLContext) -> BaseException | None:
    """Return why a signature, an OCSP answer or a revocation list last failed in a handshake of ``context``.

    The handshake itself ended with an ``ssl.SSLError``, which says less. Where several threads shake hands on one
    context at the same time, it is the last failure of any of them.
    """
    found = _BY_CONTEXT.get(context)
    return found.last if found else None
