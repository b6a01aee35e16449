"""EST: certificates by a second of the server's processor time, against ``openssl x509 -req`` and bare handshakes.

``openssl x509 -req`` verifies a request and signs a certificate from files; it speaks no TLS and no HTTP, knows no
token, and forgets what it issued. ``openssl s_server`` beside it does the handshakes alone. What ours does besides
stands in the ratio.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from http.client import HTTPSConnection
from itertools import islice
from pathlib import Path
from ssl import SSLContext, create_default_context

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from bench.machine import row
from tidegate.base.program import find_program
from tidegate.testing.ca import Lab, ServerProcess

ON_ONE_CONNECTION = 1500
WITH_HANDSHAKE = 400
BY_OPENSSL = 200
_TICKS = os.sysconf("SC_CLK_TCK")


def run() -> list[dict[str, object]]:
    """Return the figures; the peers run on the same machine in the same minute."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        lab = Lab(folder)
        requests = _requests(lab, ON_ONE_CONNECTION + WITH_HANDSHAKE)
        context = create_default_context(cafile=str(folder / "root.pem"))
        with lab.serving("--address-rate", "1000000") as server:
            kept = _enrol(server, context, islice(requests, ON_ONE_CONNECTION), keep=True)
            fresh = _enrol(server, context, requests, keep=False)
        signing = _openssl_x509(folder)
        handshakes = _openssl_handshakes(folder)
    return [
        row(
            "EST enrolments a core, kept connection",
            kept,
            "certificates/s",
            peer="openssl x509 -req a core (no TLS, no store)",
            peer_value=signing,
            higher=True,
        ),
        row(
            "EST enrolments a core, one handshake each",
            fresh,
            "certificates/s",
            peer="handshakes a core of openssl s_server (no certificates issued)",
            peer_value=handshakes,
            higher=True,
        ),
    ]


def _requests(lab: Lab, count: int) -> Iterator[tuple[dict[str, str], bytes]]:
    """Yield headers and body of enrolments by token; made before the clock runs."""
    devices = [f"BENCH-{number}" for number in range(count)]
    key = ec.generate_private_key(ec.SECP256R1())
    made = []
    for device, token in zip(devices, lab.many_tokens(devices), strict=True):
        name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, device)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        credentials = base64.b64encode(f"{device}:{token}".encode()).decode()
        headers = {"Content-Type": "application/pkcs10", "Authorization": f"Basic {credentials}"}
        made.append((headers, base64.encodebytes(request.public_bytes(Encoding.DER))))
    return iter(made)


def _enrol(
    server: ServerProcess, context: SSLContext, requests: Iterator[tuple[dict[str, str], bytes]], *, keep: bool
) -> float:
    """Return certificates by a second of the server's processor time."""
    if server.process is None:
        raise RuntimeError("the server is not there")
    before, count = _busy_s(server.process.pid), 0
    connection = HTTPSConnection("127.0.0.1", server.port, context=context)
    for headers, body in requests:
        connection.request("POST", "/.well-known/est/simpleenroll", body=body, headers=headers)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise RuntimeError(f"the server answers {response.status}")
        if not keep:
            connection.close()
        count += 1
    connection.close()
    return count / (_busy_s(server.process.pid) - before)


def _busy_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _openssl_x509(folder: Path) -> float:
    """Return certificates by a second of processor time; starting the program is part of it, as in scripts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, "BENCH")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    (folder / "peer.csr").write_bytes(request.public_bytes(Encoding.PEM))
    (folder / "peer.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    words = [find_program("openssl"), "req", "-x509", "-key", str(folder / "peer.key"), "-subj", "/CN=peer"]
    subprocess.run([*words, "-out", str(folder / "peer.pem")], check=True)
    words = [find_program("openssl"), "x509", "-req", "-in", str(folder / "peer.csr"), "-days", "7"]
    words += ["-CA", str(folder / "peer.pem"), "-CAkey", str(folder / "peer.key"), "-out", str(folder / "issued.pem")]
    before = _children_s()
    for _ in range(BY_OPENSSL):
        subprocess.run(words, check=True, capture_output=True)
    return BY_OPENSSL / (_children_s() - before)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _openssl_handshakes(folder: Path) -> float:
    """Return handshakes by a second of the processor time of ``openssl s_server``, with a key and our chain's size."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    peer = create_default_context(cafile=str(folder / "peer.pem"))
    peer.check_hostname = False
    words = [find_program("openssl"), "s_server", "-accept", f"127.0.0.1:{port}", "-quiet", "-naccept", "100000"]
    words += ["-cert", str(folder / "peer.pem"), "-key", str(folder / "peer.key"), "-num_tickets", "0"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as own:
        try:
            _await(port)
            before = _busy_s(own.pid)
            for _ in range(WITH_HANDSHAKE):
                with socket.create_connection(("127.0.0.1", port)) as raw, peer.wrap_socket(raw):
                    pass
            return WITH_HANDSHAKE / (_busy_s(own.pid) - before)
        finally:
            own.kill()


def _await(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("openssl s_server does not start")


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
