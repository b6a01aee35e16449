"""TLS with keys in real tokens: 10,000 mutual handshakes, every signature the token's, the key nowhere in memory.

SoftHSM lies in this process and a token's own memory holds its key there; so the search of memory is of a process whose
key is held by another one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.certificates import Authority, CountingSigner, MemorySigner, to_pem
from tidegate.testing.keyd import running_keyd
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tokens import MODULE, SoftHsm
from tidegate.tls.context import client_context, server_context
from tidegate.tls.failures import last_failure
from tidegate.tls.selfcheck import require_platform, shake_hands

SPY = Path("/usr/lib/x86_64-linux-gnu/pkcs11-spy.so")
P256 = SignatureAlgorithm.ECDSA_P256
THREADS = 8
_SIGN = 0x15D  # TPM_CC_Sign, TPM 2.0 Part 2, 6.5.2
pytestmark = [
    pytest.mark.skipif(not MODULE.exists(), reason="softhsm2 is not installed"),
    pytest.mark.skipif(not shutil.which("swtpm"), reason="swtpm is not installed"),
]


def spec(algorithm):
    return KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm)


class Pair:
    """A server and a client, both with keys in ``store``, that trust one CA; signatures are counted."""

    def __init__(self, store, algorithm=P256):
        self.ca = Authority()
        for name in ("server", "client"):
            store.generate(f"{name}-{algorithm.label}", spec(algorithm))
        self.server_key, self.client_key = (
            CountingSigner(store.signer(f"{name}-{algorithm.label}")) for name in ("server", "client")
        )
        chains = [[self.ca.issue(key.public_key)] for key in (self.server_key, self.client_key)]
        self.server = server_context(self.server_key, chains[0], clients=[self.ca.der])
        self.client = client_context(self.client_key, chains[1], anchors=[self.ca.der])

    @property
    def signatures(self):
        return self.server_key.signatures + self.client_key.signatures

    def shake(self, count):
        for _ in range(count):
            shake_hands(self.server, self.client, "localhost")

    def shake_in_threads(self, count):
        """Let every thread do its share; return what went wrong."""
        wrong = []

        def share():
            try:
                self.shake(count // THREADS)
            except Exception as error:  # noqa: BLE001  # the test shows whatever it was
                wrong.append(error)

        threads = [threading.Thread(target=share) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return wrong

    def shake_in_children(self, count, children):
        """Let forked children do it with the contexts they were born with; return their exit codes."""
        started = []
        for _ in range(children):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    self.shake(count // children)
                    status = 0
                finally:
                    os._exit(status)
            started.append(child)
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in started]


def tpm_store(folder, tcti):
    return open_store(parse_key_uri(f"tpm2:{folder}?tcti={tcti}"), create=True)


@pytest.fixture
def softhsm(tmp_path):
    with SoftHsm(tmp_path / "hsm") as hsm:
        hsm.make_token("tls")
        store = open_store(hsm.uri("tls"))
        yield store
        store.close()


@pytest.fixture
def swtpm(tmp_path):
    with SwTpm(tmp_path / "tpm") as tpm:
        store = tpm_store(tmp_path / "keys", tpm.tcti)
        yield store
        store.close()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ten_thousand_mutual_handshakes(softhsm, swtpm) -> None:
    """8 threads, then forked children: no crash, no failure, and as many signatures as handshakes ask for."""
    started = time.monotonic()
    hsm, tpm = Pair(softhsm), Pair(swtpm)
    assert hsm.shake_in_threads(6_400) == []
    assert hsm.signatures == 2 * 6_400
    assert tpm.shake_in_threads(1_600) == []
    assert tpm.signatures == 2 * 1_600
    assert hsm.shake_in_children(1_600, children=4) == [0] * 4
    assert tpm.shake_in_children(400, children=2) == [0] * 2
    hsm.shake(10)  # the parent's sessions are as good as before
    tpm.shake(10)
    assert require_platform().provider.live_handles()[1] == 0
    print(f"10,020 mutual handshakes in {time.monotonic() - started:.0f} s")  # noqa: T201


@pytest.mark.parametrize("algorithm", [P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.ED25519], ids=str)
def test_every_algorithm_in_softhsm(softhsm, algorithm) -> None:
    pair = Pair(softhsm, algorithm)
    pair.shake(5)
    assert pair.signatures == 10


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_rsa_in_both_tokens(softhsm, swtpm) -> None:
    """Making the keys is what takes long."""
    for store in (softhsm, swtpm):
        if SignatureAlgorithm.RSA_PSS not in store.capabilities().algorithms:
            continue
        pair = Pair(store, SignatureAlgorithm.RSA_PSS)
        pair.shake(5)
        assert pair.signatures == 10


@contextlib.contextmanager
def counting_proxy(tpm, folder):
    """Stand between a TPM and its user; yield the new TCTI and the list of command codes that went by."""
    real = Path(tpm.tcti.partition("path=")[2])
    (folder / "tpm.ctrl").symlink_to(f"{real}.ctrl")
    commands = []
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "tpm"))
    listener.listen()

    def relay(client):
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(real))
            for source, target in iter(lambda: (client, server), None):
                request = source.recv(65_536)
                if not request:
                    return
                commands.append(int.from_bytes(request[6:10], "big"))
                target.sendall(request)
                source.sendall(server.recv(65_536))

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=relay, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"swtpm:path={folder / 'tpm'}", commands
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_the_tpm_saw_every_signature(tmp_path) -> None:
    """Counted on the wire to the TPM: one TPM2_Sign a signature, two a mutual handshake, none besides."""
    with SwTpm(tmp_path / "tpm") as tpm:
        folder = Path(tpm.tcti.partition("path=")[2]).parent / "proxy"
        folder.mkdir()
        with counting_proxy(tpm, folder) as (tcti, commands):
            store = tpm_store(tmp_path / "keys", tcti)
            pair = Pair(store)
            commands.clear()
            pair.shake(50)
            assert commands.count(_SIGN) == pair.signatures == 100
            store.close()


SPIED = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from test_tls_hardware import Pair, open_store
    from tidegate.testing.tokens import SoftHsm
    hsm = SoftHsm(Path(sys.argv[1]))
    hsm.module = Path(sys.argv[2])
    pair = Pair(open_store(hsm.uri("tls")))
    log = Path(sys.argv[4])
    before = log.read_text().count("C_SignInit\\n")
    pair.shake(50)
    print(pair.signatures, log.read_text().count("C_SignInit\\n") - before)
"""


@pytest.mark.skipif(not SPY.exists(), reason="opensc's pkcs11-spy is not installed")
def test_the_token_saw_every_signature(tmp_path) -> None:
    """Counted by OpenSC's spy between us and SoftHSM: one C_SignInit a signature."""
    with SoftHsm(tmp_path / "hsm") as hsm:
        hsm.make_token("tls")
        log = tmp_path / "spy.log"
        environment = {**hsm.environment, "PKCS11SPY": str(MODULE), "PKCS11SPY_OUTPUT": str(log)}
        arguments = [
            sys.executable,
            "-c",
            textwrap.dedent(SPIED),
            str(hsm.folder),
            str(SPY),
            str(Path(__file__).parent),
            str(log),
        ]
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["100", "100"]


HOLDER = """
    import socket, sys
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from tidegate.crypto.signing import SignatureAlgorithm
    from tidegate.testing.certificates import MemorySigner
    signer = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    signer.key = load_pem_private_key(sys.stdin.buffer.read(), None)
    link = socket.socket(fileno=int(sys.argv[1]))
    while message := link.recv(65536):
        link.sendall(signer.sign(message))
"""

USER = """
    import socket, ssl, sys
    from pathlib import Path
    from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
    from tidegate.tls.context import client_context, server_context
    from tidegate.tls.selfcheck import shake_hands
    folder, number = Path(sys.argv[1]), sys.argv[2]
    ca, chain = (folder / "ca.der").read_bytes(), [(folder / "key.der").read_bytes()]
    if number == "file":
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(folder / "key.pem")
        client = client_context(anchors=[ca])
    elif number.startswith("keyd:"):
        from tidegate.keys.uri import open_store, parse_key_uri
        signer = open_store(parse_key_uri(number)).signer("tls")
        server = server_context(signer, chain, clients=[ca])
        client = client_context(signer, chain, anchors=[ca])
    else:
        link = socket.socket(fileno=int(number))
        class Remote:
            public_key = PublicKey(SignatureAlgorithm.ECDSA_P256, (folder / "point").read_bytes())
            def sign(self, message):
                link.sendall(message)
                return link.recv(64)
        server = server_context(Remote(), chain, clients=[ca])
        client = client_context(Remote(), chain, anchors=[ca])
    for _ in range(50):
        kept = shake_hands(server, client, "localhost")
    print("done", flush=True)
    sys.stdin.read()
"""


def memory_of(process):
    """Yield everything that is readable of a process's memory."""
    for line in Path(f"/proc/{process}/maps").read_text().splitlines():
        span, rights = line.split()[:2]
        start, end = (int(part, 16) for part in span.split("-"))
        if rights.startswith("r") and not line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
            with Path(f"/proc/{process}/mem").open("rb", buffering=0) as stream, contextlib.suppress(OSError):
                stream.seek(start)
                left = end - start
                parts = []
                while left > 0 and (part := stream.read(left)):
                    parts.append(part)
                    left -= len(part)
                yield b"".join(parts)


def forms_of(scalar):
    """The private number as bytes, as OpenSSL's words, as text."""
    big = scalar.to_bytes(32, "big")
    return [big, big[::-1], big.hex().encode(), big.hex().upper().encode(), str(scalar).encode()]


def found_in(process, needles):
    return [needle in block for block in memory_of(process) for needle in needles].count(True)


@contextlib.contextmanager
def user_process(folder, where, descriptors=()):
    command = [sys.executable, "-c", textwrap.dedent(USER), str(folder), where]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=descriptors)
    try:
        assert process.stdout.readline() == b"done\n"
        yield process.pid
    finally:
        process.communicate()


@pytest.fixture
def known(tmp_path):
    """A key that the test knows, its certificate and its CA's in a folder, and the key's forms in memory."""
    signer, ca = MemorySigner(P256), Authority()
    certificate = ca.issue(signer.public_key)
    folder = tmp_path / "known"
    folder.mkdir()
    for name, content in {
        "ca.der": ca.der,
        "key.der": certificate,
        "point": signer.public_key.raw,
        "key.pem": to_pem(certificate) + signer.pem(),
    }.items():
        (folder / name).write_bytes(content)
    return signer, certificate, folder, forms_of(signer.key.private_numbers().private_value)


def test_the_private_key_is_nowhere_in_the_process_that_speaks_tls(known) -> None:
    """After 50 mutual handshakes with a key that another process holds: no copy, in any form, in all memory.

    The same search finds the certificate there, the key in the holder, and in a process that loaded it from a file.
    """
    signer, certificate, folder, needles = known
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    holding = [sys.executable, "-c", textwrap.dedent(HOLDER), str(theirs.fileno())]
    holder = subprocess.Popen(holding, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()])
    holder.stdin.write(signer.pem())
    holder.stdin.close()
    theirs.close()
    with user_process(folder, str(ours.fileno()), [ours.fileno()]) as process:
        assert found_in(process, needles) == 0
        assert found_in(process, [certificate]) > 0
        assert found_in(holder.pid, needles) > 0
    ours.close()
    assert holder.wait(10) == 0
    with user_process(folder, "file") as process:
        assert found_in(process, needles) > 0


@contextlib.contextmanager
def keyd(folder, signer):
    """Run a key process that has ``signer``'s key, as ``tls``, and lets this user sign with it; yield its socket."""
    (folder / "secret").write_bytes(bytes(32))
    (folder / "secret").chmod(0o600)
    uri = f"file:{folder}/store?device-secret={folder}/secret"
    pkcs8 = signer.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    exportable = KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256, policy=KeyPolicy(exportable=True))
    open_store(parse_key_uri(uri), create=True).import_key("tls", pkcs8, exportable)
    config = folder / "keyd.toml"
    config.write_text(
        f'[keyd]\nsocket = "{folder}/keyd.sock"\nstore = "{uri}"\n'
        f'[[grant]]\nuser = {os.getuid()}\nkeys = ["tls"]\noperations = ["sign"]\n'
    )
    config.chmod(0o600)
    with running_keyd(config):
        yield folder / "keyd.sock"


def test_the_private_key_is_nowhere_when_the_key_process_holds_it(known, tmp_path) -> None:
    """The same with the real key process, which lets its client sign and nothing else."""
    signer, certificate, folder, needles = known
    with keyd(tmp_path, signer) as path, user_process(folder, f"keyd:{path}?key=tls") as process:
        assert found_in(process, needles) == 0
        assert found_in(process, [certificate]) > 0
        store = open_store(parse_key_uri(f"keyd:{path}"))
        with pytest.raises(TidegateError) as caught:
            store.export_key("tls")
        assert caught.value.code == "keys.grant.refused"
        store.close()


def test_a_key_process_that_dies_and_comes_back(known, tmp_path) -> None:
    """While it is away a handshake fails with its reason; when it is back the same context goes on."""
    signer, certificate, folder, _ = known
    ca = (folder / "ca.der").read_bytes()
    (tmp_path / "first").mkdir()
    with keyd(tmp_path / "first", signer) as path:
        store = open_store(parse_key_uri(f"keyd:{path}"))
        server = server_context(store.signer("tls"), [certificate], clients=None)
        client = client_context(anchors=[ca])
        shake_hands(server, client, "localhost")
    with pytest.raises(ssl.SSLError):
        shake_hands(server, client, "localhost")
    assert last_failure(server).code == "keys.keyd.unreachable"
    shutil.rmtree(tmp_path / "first" / "store")
    with keyd(tmp_path / "first", signer):
        shake_hands(server, client, "localhost")
    store.close()
