"""Certificates a second: our CA with a software key, its durable store included, against ``openssl x509 -req``.

``openssl x509 -req`` is a process for each certificate, reads its key from a file, and remembers nothing. Ours verifies
the request, signs, records the certificate durably before handing it out, and tells its event callback. The rows
without the store's fsync and without the store at all show where the time goes.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bench.machine import row
from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.base.program import run_program
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.authority import Authority
from tidegate.pki.ca_store import CaStore
from tidegate.pki.certificate import encode_pem
from tidegate.pki.path import PathRule, Purpose, verify_chain
from tidegate.pki.profiles import PROFILES, Order, Subject, draw_serial, sign_certificate
from tidegate.pki.requests import Wish, encode_request, verify_request
from tidegate.pki.revocation import encode_ocsp_request
from tidegate.testing.certificates import MemorySigner

CERTIFICATES = 1500
BY_OPENSSL = 100
ANSWERS = 1500
PATHS = 2000


def run() -> list[dict[str, object]]:
    """Return the figures; the peer runs on the same machine in the same minute."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        signer, device = (MemorySigner(SignatureAlgorithm.ECDSA_P256) for _ in range(2))
        root = _root(signer)
        request = encode_request(device, Wish(serial_number="SN-1"))
        openssl = _openssl(folder, root, signer, request)
        durable = _issue(folder / "durable", root, signer, request, unsynced=False)
        unsynced = _issue(folder / "unsynced", root, signer, request, unsynced=True)
        answers, paths = _judge(folder / "durable", root, signer)
    peer = "openssl x509 -req, a process each (no store)"
    return [
        row("certificates, durably recorded", durable, "certificates/s", peer=peer, peer_value=openssl, higher=True),
        row(
            "certificates, store without fsync", unsynced, "certificates/s", peer=peer, peer_value=openssl, higher=True
        ),
        row("OCSP answers signed", answers, "answers/s", higher=True),
        row("chains of two judged", paths, "chains/s", higher=True),
    ]


def _root(signer: MemorySigner) -> x509.Certificate:
    order = Order(
        profile=PROFILES["root-ca"],
        subject=Subject(common_name="Bench"),
        public_key=signer.public_key,
        now=datetime.datetime.now(tz=datetime.UTC) - datetime.timedelta(days=1),
        serial=draw_serial(SystemEntropy().random_bytes(20)),
    )
    return sign_certificate(order, None, signer)


def _authority(root: x509.Certificate, signer: MemorySigner, store: CaStore) -> Authority:
    return Authority([root], signer, store, clock=SystemClock(), entropy=SystemEntropy(), report=lambda _: None)


def _rate(count: int, call: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for number in range(count):
        call(number)
    return count / (time.perf_counter() - start)


def _issue(folder: Path, root: x509.Certificate, signer: MemorySigner, request: bytes, *, unsynced: bool) -> float:
    with CaStore(folder, create=True, test_only_unsynced=unsynced) as store:
        authority = _authority(root, signer, store)

        def issue(number: int) -> None:
            verified = verify_request(request)
            authority.issue(authority.grant(PROFILES["ldevid"], verified, request_id=number.to_bytes(8, "big")))

        return _rate(CERTIFICATES, issue)


def _judge(folder: Path, root: x509.Certificate, signer: MemorySigner) -> tuple[float, float]:
    with CaStore(folder) as store:
        authority = _authority(root, signer, store)
        device = x509.load_der_x509_certificate(store.certificates(limit=1)[0].der)
        question = encode_ocsp_request(device, root, b"n" * 16)
        answers = _rate(ANSWERS, lambda _: authority.answer_ocsp(question))
        now = datetime.datetime.now(tz=datetime.UTC)
        rule = PathRule(anchors=[root.public_bytes(Encoding.DER)], now=now, purpose=Purpose.CLIENT)
        chain = [device.public_bytes(Encoding.DER)]
        return answers, _rate(PATHS, lambda _: verify_chain(chain, rule))


def _openssl(folder: Path, root: x509.Certificate, signer: MemorySigner, request: bytes) -> float:
    (folder / "root.pem").write_bytes(encode_pem(root))
    (folder / "root.key").write_bytes(signer.pem())
    (folder / "request").write_bytes(request)
    command = ["openssl", "x509", "-req", "-inform", "DER", "-in", str(folder / "request"), "-days", "7"]
    command += ["-CA", str(folder / "root.pem"), "-CAkey", str(folder / "root.key"), "-out", str(folder / "made")]
    return _rate(BY_OPENSSL, lambda _: run_program(command))


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
