"""The HTTPS server and client with each other, and with peers that misbehave."""

import asyncio
import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tidegate.base.errors import TidegateError
from tidegate.tls.asgi import HttpServer, Limits, open_listener
from tidegate.tls.https import HttpsClient

LIMIT = 100_000


def certify(folder, name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(tz=datetime.UTC)
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), 7, now, now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{name}.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    return {name: certify(folder, name) for name in ("server", "client", "stranger")}


def server_side(pems, **changes):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pems["server"])
    context.load_verify_locations(pems["client"])
    context.verify_mode = ssl.CERT_OPTIONAL
    for name, value in changes.items():
        setattr(context, name, value)
    return context


def client_side(pems, own=None, anchor="server", **changes):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pems[anchor])
    if own:
        context.load_cert_chain(pems[own])
    for name, value in changes.items():
        setattr(context, name, value)
    return context


@contextlib.contextmanager
def serving(application, context, **options):
    """Run the server in a thread of its own and yield its port."""
    listener = open_listener("127.0.0.1", 0)
    server = HttpServer(application, listener, context, **options)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    port = listener.getsockname()[1]
    thread.start()
    try:
        yield port
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()


class Echo:
    """Answers with the body and keeps what it was told of the peer."""

    def __init__(self):
        self.peers = []

    async def __call__(self, scope, receive, send):
        self.peers.append(scope["extensions"]["tls"])
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_peer_and_binding_are_known_at_both_ends(pems, version):
    echo = Echo()
    with serving(echo, server_side(pems)) as port:
        context = client_side(pems, "client", maximum_version=version, minimum_version=version)
        with HttpsClient("127.0.0.1", port, context) as client:
            binding = client.binding()
            for _ in range(2):  # one connection
                assert client.request("POST", "/", headers={}, body=b"hello", limit_bytes=LIMIT).body == b"hello"
            assert client.binding() == binding
        with HttpsClient("127.0.0.1", port, client_side(pems)) as client:
            client.request("GET", "/", headers={}, limit_bytes=LIMIT)
    first, again, other = echo.peers
    pem = pems["client"].read_bytes()
    assert first.chain == (x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER),)
    assert (first.version, first.binding) == (version.name.replace("v1_", "v1."), binding)
    assert len(binding) >= 12
    assert again == first
    assert other.chain == ()
    assert other.binding != binding


def test_strangers_are_refused_and_reported(pems):
    reasons = []
    with serving(Echo(), server_side(pems), report_handshake=reasons.append) as port:
        with HttpsClient("127.0.0.1", port, client_side(pems, "stranger")) as client:
            with pytest.raises(TidegateError) as caught:
                client.request("GET", "/", headers={}, limit_bytes=LIMIT)
            assert caught.value.code == "tls.http.unreachable"
        with pytest.raises(TidegateError) as caught:
            HttpsClient("127.0.0.1", port, client_side(pems, anchor="stranger")).connect()
        assert caught.value.code == "tls.http.untrusted"
    assert len(reasons) == 2


def test_old_versions_are_refused(pems):
    with (
        pytest.warns(DeprecationWarning),
        serving(Echo(), server_side(pems, minimum_version=ssl.TLSVersion.TLSv1_2)) as port,
    ):
        context = client_side(pems, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(TidegateError) as caught:
            HttpsClient("127.0.0.1", port, context).connect()
    assert caught.value.code == "tls.http.unreachable"


def test_trickling_peer_is_dropped(pems):
    limits = Limits(request_s=0.3, idle_s=0)
    with serving(Echo(), None, limits=limits) as port, socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(5)
        peer.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            assert peer.recv(100) == b""
        assert time.monotonic() - start < 3


def test_too_many_connections_are_turned_away(pems):
    with serving(Echo(), None, limits=Limits(connections=2)) as port, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)]
        time.sleep(0.2)
        peers[2].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert peers[2].recv(100).startswith(b"HTTP/1.1 503 ")


def test_trickling_peer_is_dropped_after_an_answer_too(pems):
    limits = Limits(request_s=0.5, idle_s=0)
    with serving(Echo(), None, limits=limits) as port, socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(0.1)
        peer.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        time.sleep(0.1)
        assert peer.recv(65_536).startswith(b"HTTP/1.1 200 ")
        start, ended = time.monotonic(), False
        peer.sendall(b"GET / HTTP/1.1\r\n")
        while not ended and time.monotonic() - start < 3:
            with contextlib.suppress(TimeoutError):
                try:
                    peer.sendall(b"a: b\r\n")
                    ended = peer.recv(100) == b""
                except ConnectionError:
                    ended = True
        assert ended


def test_request_of_two_lengths_and_what_is_smuggled_behind_it(pems):
    """RFC 9112 §6.1: whoever stands between us may have seen another end of the first request."""
    application = Echo()
    with serving(application, None) as port, socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(5)
        lengths = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        peer.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n" + lengths + b"0\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        found = b""
        while piece := peer.recv(65_536):
            found += piece
    assert found.startswith(b"HTTP/1.1 400 ")
    assert found.count(b"HTTP/1.1") == 1
    assert application.peers == []


def test_connections_that_ask_nothing_are_cut_beyond_a_number(pems):
    limits = Limits(connections=2, request_s=20, idle_s=20)
    with serving(Echo(), None, limits=limits) as port, contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(5)]
        peers[4].settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert peers[4].recv(100) == b""
        peers[0].setblocking(False)
        with pytest.raises(BlockingIOError):
            peers[0].recv(100)


@contextlib.contextmanager
def answering(pems, answer):
    """A TLS server that sends ``answer`` to whatever is asked, once, and hangs up."""
    context = server_side(pems)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run():
            with contextlib.suppress(OSError):
                peer, _ = listener.accept()
                with context.wrap_socket(peer, server_side=True) as connection:
                    connection.recv(10_000)
                    connection.sendall(answer)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(5)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000), "tls.http.too-large"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "tls.http.unreachable"),
        (b"", "tls.http.unreachable"),
        (b"SSH-2.0-nonsense\r\n", "tls.http.malformed"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "tls.http.malformed"),
    ],
    ids=["large", "cut", "nothing", "ssh", "headers"],
)
def test_misbehaving_servers(pems, answer, code):
    with answering(pems, answer) as port, HttpsClient("127.0.0.1", port, client_side(pems)) as client:
        with pytest.raises(TidegateError) as caught:
            client.request("GET", "/", headers={}, limit_bytes=LIMIT)
        assert caught.value.code == code


def test_redirects_are_not_followed(pems):
    answer = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with answering(pems, answer) as port, HttpsClient("127.0.0.1", port, client_side(pems)) as client:
        assert client.request("GET", "/", headers={}, limit_bytes=LIMIT).status == 302


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TidegateError) as caught:
        HttpsClient("127.0.0.1", port, ssl.create_default_context()).connect()
    assert caught.value.code == "tls.http.unreachable"
