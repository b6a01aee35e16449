"""What holds for every test."""

import signal

from hypothesis import settings

settings.register_profile("patient", deadline=None)  # another program may stop this one for a moment
settings.load_profile("patient")


def pytest_configure() -> None:
    """Take Ctrl-C as in the foreground: a shell lets what it starts in the background ignore it, children too."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
