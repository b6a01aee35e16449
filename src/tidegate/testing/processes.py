"""A program beside a test, which never outlives it nor keeps it waiting.

Touches: a process.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run a program during the body, with the options of ``subprocess.Popen``; at the end it is killed if it goes on.

    ``Popen``'s own ``with`` would wait for a program that nobody ended, for ever, when the body fails.
    """
    process: subprocess.Popen[Any] = subprocess.Popen(list(command), **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()
