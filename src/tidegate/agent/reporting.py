"""Events from the agent: what happens to the log never stops what is being reported.

Touches: the event log.
"""

from __future__ import annotations

import contextlib

from tidegate.base.errors import Fault
from tidegate.events.model import Event
from tidegate.events.spool import EventLog


def report(events: EventLog, event: Event) -> None:
    """Write ``event``, or leave it to the log to count and tell the loss as soon as it has room again.

    A full disk must not keep the agent from banning an attacker, falling back from a broken system, or saying why a
    bundle was refused.
    """
    with contextlib.suppress(Fault):
        events.append(event)


def sign_off(events: EventLog) -> None:
    """Make durable and sign what was written so far, or leave it for the next time."""
    with contextlib.suppress(Fault):
        events.checkpoint()
