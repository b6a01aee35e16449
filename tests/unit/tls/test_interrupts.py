"""Ctrl-C and its like inside a callback from OpenSSL: raised behind it, whatever runs meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import signal
import ssl
import subprocess
import sys
import threading
import time

import pytest
from tests.unit.tls.tls_shared import Broken

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.testing.certificates import MemorySigner
from tidegate.tls.context import client_context, server_context
from tidegate.tls.dispatch import CTables
from tidegate.tls.failures import Failures, last_failure
from tidegate.tls.revocation import RevocationLists
from tidegate.tls.selfcheck import require_platform, shake_hands

P256 = SignatureAlgorithm.ECDSA_P256
NOT_LOST_S = 5  # it comes at once, or never


def spin(seconds: float) -> None:
    """Run bytecode, between any two of which a signal's handler may come."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


class Slow(KeyboardInterrupt):
    """Holds up who notes it, as a busy machine does."""

    @property
    def __traceback__(self):
        return None

    @__traceback__.setter
    def __traceback__(self, _) -> None:
        spin(0.2)


def c_function(function):
    """``function`` of a number as C calls it."""
    kept = CTables()
    made = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(kept.function("int(int)", function))
    made.kept = kept
    return made


@pytest.fixture
def shake(world):
    """A handshake whose server's key meets ``error``; the wait behind it is for one that was lost."""

    def shake(error):
        broken = Broken(world.signers[P256].public_key, error)
        server = server_context(broken, [world.certificates[P256]], clients=None)
        try:
            shake_hands(server, client_context(anchors=[world.ca.der]), "localhost")
        except ssl.SSLError:
            time.sleep(NOT_LOST_S)

    return shake


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Slow(), SystemExit(3)], ids=["Ctrl-C", "slowly", "exit"])
def test_while_a_token_signs(shake, error, capfd) -> None:
    """The person's wish is not turned into a handshake failure."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(type(error)) as raised:
        shake(error)
    assert raised.value is error
    assert signal.getsignal(signal.SIGINT) is before
    assert capfd.readouterr() == ("", "")


def test_the_first_of_several_counts() -> None:
    """Who presses Ctrl-C again while the first one waits gets one."""

    def fail(_):
        Failures().note(SystemExit(3))
        raise KeyboardInterrupt

    with pytest.raises(SystemExit, match="3"):
        assert c_function(fail)(0) == 0
        time.sleep(NOT_LOST_S)
    time.sleep(0.1)  # nothing comes later


def test_where_ctrl_c_is_ignored(shake) -> None:
    """As in a shell's background job: an exit still counts, and Ctrl-C is ignored afterwards as before."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit):
            shake(SystemExit(3))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_it_is_a_failure_like_any(world) -> None:
    broken = Broken(world.signers[P256].public_key, KeyboardInterrupt())
    server = server_context(broken, [world.certificates[P256]], clients=None)
    met = []

    def run():
        try:
            shake_hands(server, client_context(anchors=[world.ca.der]), "localhost")
        except ssl.SSLError as error:
            met.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    time.sleep(0.1)  # the main thread goes on
    assert met
    assert isinstance(last_failure(server), KeyboardInterrupt)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_callback_after_callback(capfd) -> None:
    """Wherever the wake-up hits: each interrupt comes once, between callbacks, and nothing is reported as ignored."""
    rounds, inside = 300, []

    def call(us):
        inside.append(True)
        spin(us / 1e6)
        inside.pop()
        return 1

    def fail(_):
        raise KeyboardInterrupt

    called, failing = c_function(call), c_function(fail)
    came = 0
    for _ in range(rounds):
        try:
            assert failing(0) == 0
            end = time.monotonic() + NOT_LOST_S
            while time.monotonic() < end:
                assert called(random.randrange(300)) == 1
                time.sleep(random.randrange(300) / 1e6)
        except KeyboardInterrupt:
            came += 1
            assert not inside
    assert came == rounds
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_signals_at_any_moment_of_a_handshake(world) -> None:
    """Each is raised, no handle stays behind, and who may not come in does not."""
    signer, device = MemorySigner(P256), MemorySigner(P256)
    lists = RevocationLists([world.ca.der])  # none has come, so nobody is admitted
    server = server_context(signer, [world.ca.issue(signer.public_key)], clients=[world.ca.der], lists=lists)
    client = client_context(device, [world.ca.issue(device.public_key)], anchors=[world.ca.der])
    rounds, admitted, raised = 300, 0, 0
    main, go, over = threading.get_ident(), threading.Semaphore(0), threading.Event()

    def send():
        for _ in range(rounds):
            go.acquire()
            over.wait(random.random() * 0.004)
            signal.pthread_kill(main, signal.SIGINT)

    gc.collect()
    before = require_platform().provider.live_handles()
    sender = threading.Thread(target=send)
    sender.start()
    for _ in range(rounds):
        try:
            go.release()
            end = time.monotonic() + NOT_LOST_S
            while time.monotonic() < end:
                with contextlib.suppress(ssl.SSLError):
                    shake_hands(server, client, "localhost")
                    admitted += 1
        except KeyboardInterrupt:
            raised += 1
    sender.join()
    gc.collect()
    assert (raised, admitted) == (rounds, 0)
    assert require_platform().provider.live_handles() == before


AT_THE_END_OF_THE_STACK = """
import ssl, sys
from tests.unit.tls.tls_shared import Broken
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.testing.certificates import Authority, MemorySigner
from tidegate.tls.context import client_context, server_context
from tidegate.tls.revocation import RevocationLists
from tidegate.tls.selfcheck import shake_hands

ca, key = Authority(), MemorySigner(SignatureAlgorithm.ECDSA_P256)
chain = [ca.issue(key.public_key)]
server = server_context(key, chain, clients=[ca.der], lists=RevocationLists([ca.der]))
client = client_context(key, chain, anchors=[ca.der])

def deep(left):
    return deep(left - 1) if left else shake_hands(server, client, "localhost")

sys.unraisablehook = lambda _: None
ends = []
for left in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit()):
    try:
        deep(left)
        ends.append("admitted")
    except (ssl.SSLError, RecursionError) as error:
        ends.append(type(error).__name__)
print(*sorted(set(ends)))
"""


def test_at_the_end_of_the_stack() -> None:
    """A callback for which there is no room any more fails; it does not answer with what lay in memory."""
    done = subprocess.run([sys.executable, "-c", AT_THE_END_OF_THE_STACK], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["RecursionError", "SSLCertVerificationError", "SSLError"]
