"""Other TLS stacks at the other end: OpenSSL's and GnuTLS's programs, as clients and as servers, each algorithm."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.request

import pytest

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.testing.certificates import Authority, CountingSigner, MemorySigner, to_pem
from tidegate.tls.context import client_context, server_context
from tidegate.tls.failures import last_failure
from tidegate.tls.staple import OcspRule, Stapler

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("openssl", "gnutls-cli", "gnutls-serv"))), reason="openssl or gnutls-bin is missing"
)
ALGORITHMS = [
    SignatureAlgorithm.ECDSA_P256,
    SignatureAlgorithm.ECDSA_P384,
    SignatureAlgorithm.ED25519,
    SignatureAlgorithm.RSA_PSS,
]
WAIT_S = 10.0
ANSWER = b"HTTP/1.0 200 ok\r\nContent-Length: 5\r\n\r\nhello"


class Files:
    """What the other programs read: the CA, and a key and certificate of their own."""

    def __init__(self, folder):
        self.ca = Authority()
        self.peer = MemorySigner(SignatureAlgorithm.ECDSA_P256)
        self.peer_certificate = self.ca.issue(self.peer.public_key)
        self.signers = {one: MemorySigner(one) for one in ALGORITHMS}
        for name, content in {
            "ca.pem": self.ca.pem,
            "peer.pem": to_pem(self.peer_certificate),
            "peer.key": self.peer.pem(),
        }.items():
            (folder / name).write_bytes(content)
        self.folder = folder

    def identity(self, algorithm):
        signer = CountingSigner(self.signers[algorithm])
        return signer, [self.ca.issue(signer.public_key)]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return Files(tmp_path_factory.mktemp("peers"))


@contextlib.contextmanager
def serving(context):
    """Serve one connection; yield the port and a list that gets the peer's certificate or the error."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(WAIT_S)

        def serve():
            raw, _ = listener.accept()
            raw.settimeout(WAIT_S)
            try:
                with context.wrap_socket(raw, server_side=True) as stream:
                    seen.append((stream.version(), stream.getpeercert(binary_form=True)))
                    stream.recv(1024)
                    stream.sendall(ANSWER)
            except OSError as error:
                seen.append(error)
                raw.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], seen
        thread.join()


def openssl_client(files, port, version):
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", "-quiet"]
    command += ["-CAfile", "ca.pem", "-cert", "peer.pem", "-key", "peer.key", "-verify_return_error"]
    command += ["-verify_hostname", "localhost", "-tls1_3" if version == "TLSv1.3" else "-tls1_2"]
    return run(files, command)


def gnutls_client(files, port, version):
    priority = "NORMAL:-VERS-ALL:+VERS-" + ("TLS1.3" if version == "TLSv1.3" else "TLS1.2")
    command = ["gnutls-cli", "--port", str(port), "localhost", "--x509cafile", "ca.pem", "--priority", priority]
    return run(files, [*command, "--x509certfile", "peer.pem", "--x509keyfile", "peer.key"])


def run(files, command):
    return subprocess.run(
        command, cwd=files.folder, input=b"GET / HTTP/1.0\r\n\r\n", capture_output=True, timeout=WAIT_S, check=False
    )


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda one: one.label)
@pytest.mark.parametrize("client", [openssl_client, gnutls_client], ids=["openssl", "gnutls"])
def test_their_client_our_server(files, client, algorithm, version) -> None:
    signer, chain = files.identity(algorithm)
    with serving(server_context(signer, chain, clients=[files.ca.der])) as (port, seen):
        done = client(files, port, version)
    assert b"hello" in done.stdout, done.stdout + done.stderr
    assert seen == [(version, files.peer_certificate)]
    assert signer.signatures == 1


@contextlib.contextmanager
def their_server(files, command, port):
    quiet = subprocess.DEVNULL  # gnutls-serv prints more than a pipe holds
    process = subprocess.Popen(command, cwd=files.folder, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)
    try:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.communicate()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def openssl_server(port):
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-CAfile", "ca.pem", "-Verify", "3"]
    return [*command, "-verify_return_error", "-cert", "peer.pem", "-key", "peer.key"]


def gnutls_server(port):
    command = ["gnutls-serv", "--http", "--port", str(port), "--x509cafile", "ca.pem", "--require-client-cert"]
    return [*command, "--verify-client-cert", "--x509certfile", "peer.pem", "--x509keyfile", "peer.key"]


@pytest.mark.parametrize("server", [openssl_server, gnutls_server], ids=["openssl", "gnutls"])
def test_our_client_their_server(files, server) -> None:
    """Every algorithm and version in turn, each one signature; the server demands and verifies our certificate."""
    port = free_port()
    with their_server(files, server(port), port):
        for algorithm in ALGORITHMS:
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                signer, chain = files.identity(algorithm)
                context = client_context(signer, chain, anchors=[files.ca.der])
                context.minimum_version = context.maximum_version = version
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as raw,
                    context.wrap_socket(raw, server_hostname="localhost") as stream,
                ):
                    stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    answer = stream.recv(4096)
                assert answer.startswith(b"HTTP/1.0 200"), (algorithm, version, answer)
                assert signer.signatures == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
        ["-tls1_2", "-cipher", "AES256-GCM-SHA384"],  # RSA key exchange
        ["-tls1_2", "-cipher", "ECDHE-RSA-AES256-SHA384"],  # CBC
        ["-tls1_2", "-sigalgs", "RSA+SHA1"],
    ],
    ids=["TLS 1.1", "RSA key exchange", "CBC", "SHA-1"],
)
def test_downgrades_are_refused(files, arguments) -> None:
    signer, chain = files.identity(SignatureAlgorithm.RSA_PSS)
    with serving(server_context(signer, chain, clients=None)) as (port, seen):
        run(files, ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", "ca.pem", *arguments])
    assert isinstance(seen[0], ssl.SSLError)
    assert signer.signatures == 0


def test_an_openssl_client_cannot_resume(files) -> None:
    """No tickets, no cache: every connection proves its certificate afresh."""
    signer, chain = files.identity(SignatureAlgorithm.ECDSA_P256)
    for version in ("-tls1_2", "-tls1_3"):
        with serving(server_context(signer, chain, clients=None)) as (port, _):
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", "ca.pem", version]
            done = run(files, [*command, "-servername", "localhost", "-ign_eof"])
        assert b"TLS session ticket:" not in done.stdout
        assert b"Post-Handshake New Session Ticket arrived" not in done.stdout


def test_openssl_reads_our_staple(files) -> None:
    signer, chain = files.identity(SignatureAlgorithm.ECDSA_P256)
    stapler = Stapler(lambda: files.ca.answer(chain[0]), [*chain, files.ca.der])
    for version in ("-tls1_2", "-tls1_3"):
        with serving(server_context(signer, chain, clients=None, stapler=stapler)) as (port, _):
            command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-CAfile", "ca.pem", version, "-status"]
            done = run(files, [*command, "-servername", "localhost", "-ign_eof"])
        assert b"OCSP Response Status: successful" in done.stdout
        assert b"Cert Status: good" in done.stdout


@pytest.mark.parametrize("revoked", [False, True])
def test_gnutls_judges_our_staple(files, revoked) -> None:
    """GnuTLS verifies what is stapled; the answer of a revoked certificate is sent past our own check.

    Without the issuer in the chain GnuTLS 3.7 finds no responder that is named by the hash of its key.
    """
    signer, chain = files.identity(SignatureAlgorithm.ECDSA_P256)
    chain.append(files.ca.der)

    class Raw:
        def current(self):
            return files.ca.answer(chain[0], revoked=revoked)

    with serving(server_context(signer, chain, clients=None, stapler=Raw())) as (port, _):
        done = run(files, ["gnutls-cli", "--port", str(port), "localhost", "--x509cafile", "ca.pem"])
    assert (b"hello" in done.stdout) is not revoked
    assert b"OCSP status request" in done.stdout or revoked


@pytest.mark.parametrize("state", ["good", "revoked", "forged", "none"])
def test_our_client_judges_openssl_s_staple(files, state) -> None:
    answer = files.ca.answer(files.peer_certificate, revoked=state == "revoked")
    if state == "forged":
        answer = Authority().answer(files.peer_certificate)
    (files.folder / "answer.der").write_bytes(answer)
    port = free_port()
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-www", "-cert", "peer.pem", "-key", "peer.key"]
    if state != "none":
        command += ["-status_file", "answer.der"]
    with their_server(files, command, port):
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            client = client_context(anchors=[files.ca.der], ocsp=OcspRule.REQUIRE)
            client.minimum_version = client.maximum_version = version
            with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as raw:
                if state == "good":
                    client.wrap_socket(raw, server_hostname="localhost").close()
                    continue
                with pytest.raises(ssl.SSLError):
                    client.wrap_socket(raw, server_hostname="localhost")
            codes = {"revoked": "pki.certificate.revoked", "none": "tls.staple.missing"}
            assert last_failure(client).code == codes.get(state, "pki.ocsp.responder")


def test_standard_library_clients_take_our_contexts(files) -> None:
    """``http.client`` and ``urllib`` know nothing of us."""
    signer, chain = files.identity(SignatureAlgorithm.ECDSA_P384)
    client = client_context(signer, chain, anchors=[files.ca.der])
    server = server_context(*files.identity(SignatureAlgorithm.ED25519), clients=[files.ca.der])
    with serving(server) as (port, seen):
        connection = http.client.HTTPSConnection("localhost", port, context=client, timeout=WAIT_S)
        connection.request("GET", "/")
        assert connection.getresponse().read() == b"hello"
        connection.close()
    with serving(server) as (port, seen):
        opened = urllib.request.urlopen(f"https://localhost:{port}/", context=client, timeout=WAIT_S)
        with opened:
            assert opened.read() == b"hello"
    assert seen[0][1] == chain[0]
