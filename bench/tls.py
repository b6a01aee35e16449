"""TLS: mutual handshakes a second, the client's key in several providers, beside the same with a key from a file.

Both ends run in one thread of this process and talk through memory, so no network and no scheduler is measured. The
rates take turns in short rounds and the best round of each counts: the others measured the neighbours.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.machine import row
from tidegate.crypto.signing import SignatureAlgorithm, Signer
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec, KeyStore
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.certificates import Authority, MemorySigner, to_pem
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tokens import MODULE, SoftHsm
from tidegate.tls.context import client_context, server_context
from tidegate.tls.selfcheck import examine_platform, shake_hands

ROUNDS, ROUND_S = 5, 0.4
_P256 = KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256)
_VERSIONS = {"TLS 1.3": ssl.TLSVersion.TLSv1_3, "TLS 1.2": ssl.TLSVersion.TLSv1_2}


def run() -> list[dict[str, object]]:
    """Return the figures; the file key is measured in the same rounds."""
    ca = Authority()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        signers: dict[str, Signer] = {"in memory": MemorySigner(SignatureAlgorithm.ECDSA_P256)}
        for name, store in _stores(stack, folder):
            store.generate("tls", _P256)
            signers[name] = store.signer("tls")
        clients = {"file": _file_client(folder, ca)}
        for name, signer in signers.items():
            clients[name] = client_context(signer, [ca.issue(signer.public_key)], anchors=[ca.der])
        rows = [one for label in _VERSIONS for one in _compare(label, ca, clients)]
    rows.append(row("tls self-check, once a process", _best_check_ms(), "ms", higher=False))
    return rows


def _compare(label: str, ca: Authority, clients: dict[str, ssl.SSLContext]) -> Iterator[dict[str, object]]:
    server_key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    server = server_context(server_key, [ca.issue(server_key.public_key)], clients=[ca.der])
    server.maximum_version = _VERSIONS[label]
    best = dict.fromkeys(clients, 0.0)
    for _ in range(ROUNDS):
        for name, client in clients.items():
            best[name] = max(best[name], _rate(server, client))
    plain = best.pop("file")
    for name, rate in best.items():
        peer = "the client's key from a file"
        yield row(f"{label} handshake, client's key {name}", rate, "/s", peer=peer, peer_value=plain, higher=True)


def _rate(server: ssl.SSLContext, client: ssl.SSLContext) -> float:
    start = time.perf_counter()
    count = 0
    while (passed := time.perf_counter() - start) < ROUND_S:
        shake_hands(server, client, "localhost")
        count += 1
    return count / passed


def _stores(stack: contextlib.ExitStack, folder: Path) -> Iterator[tuple[str, KeyStore]]:
    """Open every provider that this machine has."""
    secret = folder / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o600)
    yield "in a software store", SoftwareKeyStore.create(folder / "soft", DeviceSecretUnlock(secret))
    if MODULE.exists():
        hsm = stack.enter_context(SoftHsm(folder / "hsm"))
        hsm.make_token("bench")
        store = open_store(hsm.uri("bench"))
        stack.callback(store.close)
        yield "in SoftHSM", store
    if shutil.which("swtpm"):
        tpm = stack.enter_context(SwTpm(folder / "tpm"))
        chip = open_store(parse_key_uri(f"tpm2:{folder}/tpm-keys?tcti={tpm.tcti}"), create=True)
        stack.callback(chip.close)
        yield "in swtpm", chip


def _file_client(folder: Path, ca: Authority) -> ssl.SSLContext:
    """Return the same client with its key loaded as everybody does it."""
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    file = folder / "client.pem"
    file.write_bytes(to_pem(ca.issue(key.public_key)) + key.pem())
    context = client_context(anchors=[ca.der])
    context.load_cert_chain(file)
    return context


def _best_check_ms() -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        examine_platform()
        times.append(time.perf_counter() - start)
    return min(times) * 1000


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
