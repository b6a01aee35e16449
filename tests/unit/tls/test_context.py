"""Contexts: who is admitted, with which key, and everything else refused."""

import asyncio
import ctypes
import gc
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.unit.tls.tls_shared import Broken

from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.keys.errors import ProviderFailed
from tidegate.testing.certificates import DAY, Authority, CountingSigner, MemorySigner
from tidegate.tls.context import client_context, server_context
from tidegate.tls.failures import Failures, last_failure
from tidegate.tls.identity import use_identity
from tidegate.tls.libssl import CTRL_SIGNATURE_ALGORITHMS
from tidegate.tls.selfcheck import require_platform, shake_hands

ALGORITHMS = [
    SignatureAlgorithm.ECDSA_P256,
    SignatureAlgorithm.ECDSA_P384,
    SignatureAlgorithm.ED25519,
    SignatureAlgorithm.RSA_PSS,
]
P256 = SignatureAlgorithm.ECDSA_P256
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def code_of(call, *arguments, **options):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **options)
    return caught.value.code


def refusal(server, client, name="localhost"):
    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(server, client, name)
    return caught.value


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize("client_algorithm", ALGORITHMS, ids=lambda one: one.label)
@pytest.mark.parametrize("server_algorithm", ALGORITHMS, ids=lambda one: one.label)
def test_mutual_handshakes_sign_once_on_each_side(world, server_algorithm, client_algorithm, version) -> None:
    """Every algorithm on either end: each handshake costs either key exactly one signature."""
    keys = [CountingSigner(world.signers[one]) for one in (server_algorithm, client_algorithm)]
    server = server_context(keys[0], [world.certificates[server_algorithm]], clients=[world.ca.der])
    client = client_context(keys[1], [world.certificates[client_algorithm]], anchors=[world.ca.der])
    client.maximum_version = version
    for done in (1, 2):
        server_end, client_end = shake_hands(server, client, "localhost")
        assert [key.signatures for key in keys] == [done, done]
    assert server_end.getpeercert(binary_form=True) == world.certificates[client_algorithm]
    assert client_end.getpeercert(binary_form=True) == world.certificates[server_algorithm]
    assert client_end.version() == ("TLSv1.2" if version is VERSIONS[0] else "TLSv1.3")
    assert not client_end.session_reused


def test_contexts_are_ordinary_and_hardened(world) -> None:
    server = server_context(*world.identity(), clients=[world.ca.der])
    client = client_context(anchors=[world.ca.der])
    for context in (server, client):
        assert type(context) is ssl.SSLContext
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode is ssl.CERT_REQUIRED
        for option in (ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION, ssl.OP_NO_TICKET):
            assert context.options & option
        old = [one["name"] for one in context.get_ciphers() if one["protocol"] == "TLSv1.2"]
        assert old
        assert all(name.startswith("ECDHE-") and ("GCM" in name or "CHACHA20" in name) for name in old)
    assert client.check_hostname
    assert server.num_tickets == 0


@pytest.mark.parametrize(
    ("signer", "chain", "clients", "code"),
    [
        ("p256", "p256", [], "tls.anchors.missing"),
        ("p256", "p256", [b"junk"], "tls.chain.malformed"),
        ("p256", "none", None, "tls.chain.missing"),
        ("p256", "junk", None, "tls.chain.malformed"),
        ("p256", "trailing", None, "tls.chain.malformed"),
        ("p256", "long", None, "tls.chain.malformed"),
        ("p256", "other key", None, "tls.certificate.mismatch"),
        ("p256", "other kind", None, "tls.certificate.mismatch"),
        ("ml-dsa", "p256", None, "tls.key.unsupported"),
    ],
)
def test_misused_contexts(world, signer, chain, clients, code) -> None:
    good = world.certificates[P256]
    chains = {
        "p256": [good],
        "none": [],
        "junk": [b"junk"],
        "trailing": [good + b"\0"],
        "long": [good] * 9,
        "other key": [world.ca.issue(MemorySigner(P256).public_key)],
        "other kind": [world.certificates[SignatureAlgorithm.RSA_PSS]],
    }
    lattice = Broken(PublicKey(SignatureAlgorithm.ML_DSA_65, bytes(1952)), ValueError())
    key = lattice if signer == "ml-dsa" else world.signers[P256]
    assert code_of(server_context, key, chains[chain], clients=clients) == code


def test_a_key_without_certificate_or_the_other_way_round(world) -> None:
    signer, chain = world.identity()
    assert code_of(client_context, signer, (), anchors=[world.ca.der]) == "tls.chain.missing"
    assert code_of(client_context, None, chain, anchors=[world.ca.der]) == "tls.chain.missing"
    assert code_of(client_context, anchors=[]) == "tls.anchors.missing"


def test_openssl_itself_refuses_another_key_s_certificate(world) -> None:
    """The provider's ``match`` tells the truth, should the comparison before it ever fail."""
    platform = require_platform()
    for algorithm in ALGORITHMS:
        key = platform.provider.new_key(world.signers[algorithm], Failures())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        other = world.ca.issue(MemorySigner(algorithm).public_key)
        pointer = platform.layout.pointer(context)
        assert code_of(use_identity, platform.library, pointer, [other], key) == "tls.certificate.mismatch"
        use_identity(platform.library, pointer, [world.certificates[algorithm]], key)
        platform.library.EVP_PKEY_free(key)


def test_a_weak_ca_is_refused_by_openssl_s_level(world) -> None:
    weak = Authority("weak CA", key=rsa.generate_private_key(65_537, 1024))  # noqa: S505  # the attack
    signer = world.signers[P256]
    server = server_context(signer, [weak.issue(signer.public_key)], clients=None)
    assert "CA certificate key too weak" in str(refusal(server, client_context(anchors=[weak.der])))


def test_a_weak_certificate_of_our_own_is_refused(world) -> None:
    """``tls.key.unsupported`` and the comparison of keys come first; OpenSSL's level stands behind them."""
    weak = Authority("weak", key=rsa.generate_private_key(65_537, 1024))  # noqa: S505  # the attack
    platform = require_platform()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ECDHE+AESGCM:@SECLEVEL=2")
    key = platform.provider.new_key(world.signers[P256], Failures())
    pointer = platform.layout.pointer(context)
    assert code_of(use_identity, platform.library, pointer, [weak.der], key) == "tls.context.refused"
    platform.library.EVP_PKEY_free(key)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("wrong host name", "Hostname mismatch"),
        ("expired", "certificate has expired"),
        ("not yet valid", "certificate is not yet valid"),
        ("another CA", "unable to get local issuer certificate"),
        ("client's certificate", "unsuitable certificate purpose"),
    ],
)
def test_servers_that_a_client_refuses(world, attack, message) -> None:
    signer = world.signers[P256]
    certificate = {
        "wrong host name": lambda: world.ca.issue(signer.public_key, "elsewhere"),
        "expired": lambda: world.ca.issue(signer.public_key, span=(-3 * DAY, -DAY)),
        "not yet valid": lambda: world.ca.issue(signer.public_key, span=(DAY, 3 * DAY)),
        "another CA": lambda: Authority("other").issue(signer.public_key),
        "client's certificate": lambda: world.ca.issue(signer.public_key, usage=[ExtendedKeyUsageOID.CLIENT_AUTH]),
    }[attack]()
    error = refusal(server_context(signer, [certificate], clients=None), client_context(anchors=[world.ca.der]))
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert message in error.verify_message


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ("no certificate", "peer did not return a certificate"),
        ("another CA", "certificate verify failed"),
        ("expired", "certificate verify failed"),
        ("server's certificate", "certificate verify failed"),
        ("another's certificate", "bad signature"),
    ],
)
def test_clients_that_a_server_refuses(world, attack, message) -> None:
    server = server_context(*world.identity(), clients=[world.ca.der])
    signer = MemorySigner(P256)
    if attack == "no certificate":
        client = client_context(anchors=[world.ca.der])
    else:
        certificate = {
            "another CA": lambda: Authority("other").issue(signer.public_key),
            "expired": lambda: world.ca.issue(signer.public_key, span=(-3 * DAY, -DAY)),
            "server's certificate": lambda: world.ca.issue(signer.public_key, usage=[ExtendedKeyUsageOID.SERVER_AUTH]),
            "another's certificate": lambda: world.ca.issue(signer.public_key),
        }[attack]()
        if attack == "another's certificate":  # the thief has the certificate, not the key
            stolen = signer.public_key
            signer = MemorySigner(P256)
            signer.public_key = stolen
        client = client_context(signer, [certificate], anchors=[world.ca.der])
    assert message in str(refusal(server, client))


def test_optional_clients_are_verified_if_they_show_something(world) -> None:
    server = server_context(*world.identity(), clients=[world.ca.der], clients_required=False)
    end, _ = shake_hands(server, client_context(anchors=[world.ca.der]), "localhost")
    assert end.getpeercert(binary_form=True) is None
    signer = MemorySigner(P256)
    stranger = client_context(signer, [Authority("other").issue(signer.public_key)], anchors=[world.ca.der])
    assert "certificate verify failed" in str(refusal(server, stranger))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_downgrade_is_refused(world) -> None:
    server = server_context(*world.identity(), clients=None)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(cadata=world.ca.der)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    assert refusal(server, old).reason in {"UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"}


@pytest.mark.parametrize("ciphers", ["AES256-GCM-SHA384", "DHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-SHA256"])
def test_rsa_key_exchange_and_old_suites_are_refused(world, ciphers) -> None:
    server = server_context(*world.identity(SignatureAlgorithm.RSA_PSS), clients=None)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(cadata=world.ca.der)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers(ciphers)
    assert refusal(server, old).reason == "NO_SHARED_CIPHER"


def plain_client(world, sigalgs):
    """A client that accepts only some signature algorithms, as another program would."""
    platform = require_platform()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=world.ca.der)
    pointer = platform.layout.pointer(client)
    assert platform.library.SSL_CTX_ctrl(pointer, CTRL_SIGNATURE_ALGORITHMS, 0, sigalgs.encode()) == 1
    return client


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    ("algorithm", "sigalgs", "works"),
    [
        (SignatureAlgorithm.RSA_PSS, "rsa_pkcs1_sha256", False),  # PSS or nothing
        (SignatureAlgorithm.RSA_PSS, "rsa_pkcs1_sha256:rsa_pss_rsae_sha256", True),
        (SignatureAlgorithm.RSA_PSS, "rsa_pss_rsae_sha512:rsa_pss_rsae_sha384", False),
        (SignatureAlgorithm.RSA_PSS, "rsa_pss_rsae_sha512:rsa_pss_rsae_sha256", True),
        (SignatureAlgorithm.ECDSA_P256, "ECDSA+SHA1", False),
        (SignatureAlgorithm.ECDSA_P256, "ECDSA+SHA512:ECDSA+SHA384", False),
        (SignatureAlgorithm.ECDSA_P256, "ECDSA+SHA512:ECDSA+SHA256", True),
        (SignatureAlgorithm.ECDSA_P384, "ECDSA+SHA256", False),
        (SignatureAlgorithm.ECDSA_P384, "ECDSA+SHA256:ECDSA+SHA384", True),
        (SignatureAlgorithm.ED25519, "ed25519", True),
        (SignatureAlgorithm.ED25519, "ECDSA+SHA256", False),
    ],
)
def test_only_the_key_s_own_hash_and_padding_sign(world, algorithm, sigalgs, works, version) -> None:
    """A peer that insists on another hash, on PKCS #1 or on SHA-1 gets no connection, and never a wrong signature."""
    signer = CountingSigner(world.signers[algorithm])
    server = server_context(signer, [world.certificates[algorithm]], clients=None)
    client = plain_client(world, sigalgs)
    client.maximum_version = version
    if works:
        shake_hands(server, client, "localhost")
        assert signer.signatures == 1
    else:
        refusal(server, client)
        assert signer.signatures == 0


@pytest.mark.parametrize("side", ["server", "client"])
@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_a_signer_s_failure_is_an_ssl_error_and_kept(world, side, version, capfd) -> None:
    error = ProviderFailed("the token was pulled out")
    broken = Broken(world.signers[P256].public_key, error)
    chain = [world.certificates[P256]]
    server = server_context(broken if side == "server" else world.signers[P256], chain, clients=[world.ca.der])
    client = client_context(broken if side == "client" else world.signers[P256], chain, anchors=[world.ca.der])
    client.maximum_version = version
    refusal(server, client)
    failed, well = (server, client) if side == "server" else (client, server)
    assert last_failure(failed) is error
    assert last_failure(failed).__traceback__ is None
    assert last_failure(well) is None
    assert capfd.readouterr() == ("", "")
    assert last_failure(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)) is None


@pytest.mark.parametrize("made", [b"", bytes(64), bytes(63), bytes(65), bytes(200), "text", None])
def test_signers_that_return_nonsense(world, made, capfd) -> None:
    class Nonsense:
        public_key = world.signers[P256].public_key

        def sign(self, message):
            return made

    server = server_context(Nonsense(), [world.certificates[P256]], clients=None)
    refusal(server, client_context(anchors=[world.ca.der]))
    assert capfd.readouterr() == ("", "")


def test_two_contexts_with_the_same_public_key_keep_their_own_signers(world) -> None:
    signers = [CountingSigner(world.signers[P256]) for _ in range(2)]
    servers = [server_context(one, [world.certificates[P256]], clients=None) for one in signers]
    client = client_context(anchors=[world.ca.der])
    for _ in range(3):
        shake_hands(servers[1], client, "localhost")
    assert [one.signatures for one in signers] == [0, 3]


def test_contexts_come_and_go_without_a_trace(world) -> None:
    """3,000 contexts: OpenSSL and our tables hold nothing afterwards, and memory does not grow with them."""
    platform = require_platform()
    signer, chain = world.identity()

    def make(count):
        for _ in range(count):
            server_context(signer, chain, clients=[world.ca.der])
            client_context(signer, chain, anchors=[world.ca.der])

    def resident_kib():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024

    gc.collect()
    before = (platform.provider.live_handles(), platform.hooks.live())
    make(500)
    gc.collect()
    warm = resident_kib()
    make(1000)
    gc.collect()
    assert (platform.provider.live_handles(), platform.hooks.live()) == before
    assert resident_kib() - warm < 2048  # a leaked SSL_CTX has 10 KiB: 1,000 of them would be seen


def test_the_signer_goes_with_its_context(world) -> None:
    signer = MemorySigner(P256)
    gone = weakref.ref(signer)
    context = server_context(signer, [world.ca.issue(signer.public_key)], clients=None)
    shake_hands(context, client_context(anchors=[world.ca.der]), "localhost")
    del signer
    gc.collect()
    assert gone() is not None
    del context
    gc.collect()
    assert gone() is None


def test_the_rest_of_the_process_never_meets_the_provider(world) -> None:
    """It lives in a library context of its own: ordinary contexts and keys go on as before."""
    platform = require_platform()
    library = platform.library
    assert not library.EVP_PKEY_CTX_new_from_name(None, b"EC", b"provider=tidegate")
    library.ERR_clear_error()


def leave_an_error():
    """Do as SoftHSM does, which shares libcrypto with us: leave something in this thread's error queue."""
    library = require_platform().library
    assert not library.d2i_X509(None, ctypes.byref(ctypes.c_void_p(ctypes.addressof(JUNK))), len(JUNK))


JUNK = ctypes.create_string_buffer(b"junk")


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_errors_that_a_token_s_module_leaves_behind_fail_nothing(world, version) -> None:
    class Untidy(CountingSigner):
        def sign(self, message):
            leave_an_error()
            return super().sign(message)

    signer, chain = world.identity()
    leave_an_error()
    server = server_context(Untidy(signer), chain, clients=[world.ca.der])
    leave_an_error()
    client = client_context(Untidy(signer), chain, anchors=[world.ca.der])
    client.maximum_version = version
    for _ in range(3):
        server_end, client_end = shake_hands(server, client, "localhost")
        with pytest.raises(ssl.SSLWantReadError):
            server_end.read()
        with pytest.raises(ssl.SSLWantReadError):
            client_end.read()
    assert require_platform().library.ERR_peek_last_error() == 0


def serve(server, count):
    """Accept ``count`` connections, echo one line on each."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def one(raw):
        try:
            with server.wrap_socket(raw, server_side=True) as stream:
                stream.sendall(stream.recv(16))
        except OSError:
            raw.close()

    def loop():
        with listener:
            threads = []
            for _ in range(count):
                threads.append(threading.Thread(target=one, args=(listener.accept()[0],)))
                threads[-1].start()
            for thread in threads:
                thread.join()

    thread = threading.Thread(target=loop)
    thread.start()
    return listener.getsockname(), thread


def talk(client, address):
    with (
        socket.create_connection(address, timeout=10) as raw,
        client.wrap_socket(raw, server_hostname="localhost") as stream,
    ):
        stream.sendall(b"hello")
        return stream.recv(16)


def test_sockets_threads_and_a_forked_child(world) -> None:
    signer, chain = world.identity()
    server = server_context(signer, chain, clients=[world.ca.der])
    client = client_context(signer, chain, anchors=[world.ca.der])
    address, thread = serve(server, 42)
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.extend(talk(client, address) for _ in range(5))) for _ in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert answers == [b"hello"] * 40
    assert talk(client, address) == b"hello"
    child = os.fork()
    if child == 0:
        os._exit(0 if talk(client, address) == b"hello" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    thread.join()


def test_asyncio_both_ends(world) -> None:
    signer, chain = world.identity(SignatureAlgorithm.ED25519)
    server = server_context(signer, chain, clients=[world.ca.der])
    client = client_context(signer, chain, anchors=[world.ca.der])

    async def echo(reader, writer):
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def one(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
        writer.write(b"hello")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    async def main():
        async with asyncio.timeout(15):
            listener = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=server)
            async with listener:
                port = listener.sockets[0].getsockname()[1]
                return await asyncio.gather(*(one(port) for _ in range(20)))

    assert asyncio.run(main()) == [b"hello"] * 20


ENDING = """
import sys, threading, time
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.testing.certificates import Authority, MemorySigner
from tidegate.tls.context import client_context, server_context
from tidegate.tls.selfcheck import shake_hands
ca, signer = Authority(), MemorySigner(SignatureAlgorithm.ECDSA_P256)
chain = [ca.issue(signer.public_key)]
server = server_context(signer, chain, clients=[ca.der])
client = client_context(signer, chain, anchors=[ca.der])
kept = [shake_hands(server, client, "localhost")]
kept.append(kept)
def loop():
    while True:
        shake_hands(server, client, "localhost")
for _ in range(int(sys.argv[1])):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.2)
"""


@pytest.mark.parametrize("threads", [0, 4])
def test_a_process_ends_in_peace(threads) -> None:
    """With contexts in global variables and in cycles, and with threads in the middle of their signatures."""
    for _ in range(3):
        command = [sys.executable, "-W", "error", "-c", ENDING, str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_server_with_a_context_for_each_name(world) -> None:
    """``sni_callback`` changes the context in the middle of a handshake; each signs with its own key."""
    signers = {name: CountingSigner(MemorySigner(P256)) for name in ("a.example", "b.example")}
    contexts = {
        name: server_context(key, [world.ca.issue(key.public_key, name)], clients=None) for name, key in signers.items()
    }
    front = server_context(*world.identity(), clients=None)

    def choose(connection, name, _):
        connection.context = contexts[name]

    front.sni_callback = choose
    client = client_context(anchors=[world.ca.der])
    for name in ("a.example", "b.example", "b.example"):
        shake_hands(front, client, name)
    assert [one.signatures for one in signers.values()] == [1, 2]


def test_contexts_are_made_and_dropped_while_others_work(world) -> None:
    """4 threads for two seconds: contexts of every kind, good and failing signers, each dropped after its handshake."""
    wrong, until = [], time.monotonic() + 2
    broken = Broken(world.signers[P256].public_key, ProviderFailed("away"))

    def work(algorithm):
        while time.monotonic() < until:
            for signer in (world.signers[algorithm], broken):
                chain = [world.certificates[algorithm if signer is not broken else P256]]
                server = server_context(signer, chain, clients=[world.ca.der])
                client = client_context(world.signers[P256], [world.certificates[P256]], anchors=[world.ca.der])
                try:
                    shake_hands(server, client, "localhost")
                except ssl.SSLError as error:
                    if signer is not broken or last_failure(server) is not broken.error:
                        wrong.append(error)

    threads = [threading.Thread(target=work, args=(one,)) for one in ALGORITHMS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_no_error_behind_a_kept_one_keeps_its_frames() -> None:
    """``raise … from`` while a third error is handled: cause and context are two errors, each with frames."""

    def fail() -> None:
        try:
            try:
                raise ValueError("what was handled first")
            except ValueError:
                raise KeyError("what was being handled")  # noqa: B904  # so that it has a context
        except KeyError:
            raise RuntimeError("told") from OSError("the cause")

    failures = Failures()
    try:
        fail()
    except RuntimeError as error:
        failures.note(error)
    context = failures.last.__context__
    assert [one.__traceback__ for one in (failures.last, context, context.__context__)] == [None, None, None]
