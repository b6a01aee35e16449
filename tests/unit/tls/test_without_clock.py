"""A device whose clock stands in the past: by which moment a server is verified, and what patience does not open."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.base.errors import TidegateError
from tidegate.pki.profiles import Subject
from tidegate.testing.ca import Lab
from tidegate.tls.context import client_context, server_context
from tidegate.tls.https import connect_at

DAY_S = 86_400


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    folder.chmod(0o700)
    return Lab(folder)


@contextlib.contextmanager
def serving(lab, *, begins_in_s=0.0, days=30):
    """Serve TLS with a certificate that begins then; yield the port and how many came through."""
    begin = datetime.datetime.fromtimestamp(time.time() + begins_in_s, tz=datetime.UTC)
    subject = Subject(common_name="localhost", names=(x509.DNSName("localhost"),))
    certificate = lab.sign(
        "server",
        lab.keys.public_key("server"),
        subject,
        (lab.issuing, "issuing"),
        now=begin,
        lifetime=datetime.timedelta(days=days),
    )
    chain = [one.public_bytes(Encoding.DER) for one in (certificate, lab.issuing)]
    context = server_context(lab.keys.signer("server"), chain, clients=None)
    shaken = []

    def serve(listener):
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as stream:
                shaken.append(stream.version())
                stream.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1], shaken
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)


def connect(lab, port, *, floor_s=0.0, patient=False, anchor=None, host="localhost"):
    trusted = [(anchor or lab.root).public_bytes(Encoding.DER)]

    def make(moment_s) -> ssl.SSLContext:
        return client_context(anchors=trusted, at_s=moment_s)

    connect_at(host, port, make, floor_s, patient=patient).close()


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_a_clock_in_the_past_gives_way_to_the_floor(lab):
    """The system's clock stands a month before the certificate begins; the floor stands within it, or behind it."""
    with serving(lab, begins_in_s=30 * DAY_S) as (port, _):
        assert code_of(connect, lab, port) == "tls.http.untrusted"
        connect(lab, port, floor_s=time.time() + 31 * DAY_S)
        assert code_of(connect, lab, port, floor_s=time.time() + 90 * DAY_S) == "tls.http.untrusted"


def test_a_floor_that_ran_ahead_does_not_keep_a_device_from_its_server(lab):
    with serving(lab) as (port, _):
        connect(lab, port, floor_s=time.time() + 3650 * DAY_S)


def test_patience_takes_a_server_that_is_newer_than_clock_and_floor(lab):
    with serving(lab, begins_in_s=30 * DAY_S) as (port, _):
        assert code_of(connect, lab, port, floor_s=time.time() + DAY_S) == "tls.http.untrusted"
        connect(lab, port, floor_s=time.time() + DAY_S, patient=True)
        connect(lab, port, patient=True)


def test_patience_opens_nothing_else(lab):
    """Neither an expired certificate, nor one of another CA, nor another name."""
    with serving(lab, days=1 / DAY_S) as (port, _):
        time.sleep(2.1)  # it lived a second
        assert code_of(connect, lab, port, patient=True) == "tls.http.untrusted"
    with serving(lab) as (port, _):
        assert code_of(connect, lab, port, patient=True, anchor=lab.factory) == "tls.http.untrusted"
    with serving(lab, begins_in_s=30 * DAY_S) as (port, _):
        assert code_of(connect, lab, port, patient=True, anchor=lab.factory) == "tls.http.untrusted"
        assert code_of(connect, lab, port, patient=True, host="127.0.0.1") == "tls.http.untrusted"


def test_a_server_that_is_gone(lab):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert code_of(connect, lab, port, patient=True) == "tls.http.unreachable"
