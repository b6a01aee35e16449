"""``tidegate ca serve`` seen by curl and openssl, and by those who misuse it; what it logs is what it refused."""

import base64
import contextlib
import datetime
import json
import re
import socket
import ssl
import subprocess
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tidegate.cli.main import main
from tidegate.events.segments import read_log
from tidegate.pki.keyadapter import public_key_of
from tidegate.pki.profiles import Subject
from tidegate.testing.ca import Lab

BASE = "/.well-known/est"
_CURL = ("curl", "-sS")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    folder.chmod(0o700)
    return Lab(folder)


@pytest.fixture(scope="module")
def tokens(lab):
    """Tokens by device; recorded before the server has the store for itself."""
    devices = ["CURL-1", "CURL-2", "CURL-3", "CURL-4"]
    return dict(zip(devices, lab.many_tokens(devices), strict=True))


@pytest.fixture(scope="module")
def server(lab, tokens):
    with lab.serving("--label", "line-2", "--address-rate", "100000") as server:
        yield server


def run(*words, **options):
    return subprocess.run([str(word) for word in words], capture_output=True, check=True, timeout=15, **options)


class Curl:
    """curl at the server, its answers taken apart."""

    def __init__(self, lab, server):
        self.lab, self.server = lab, server

    def __call__(self, path, *options, host="127.0.0.1"):
        head = self.lab.folder / "head"
        url = f"https://{host}:{self.server.port}{path}"
        done = subprocess.run(
            [*_CURL, "--cacert", self.lab.folder / "root.pem", "-D", head, *options, url],
            capture_output=True,
            timeout=15,
            check=False,
        )
        if done.returncode:
            return done.returncode, {}, done.stderr
        lines = head.read_text().splitlines()
        status = int([line for line in lines if line.startswith("HTTP/")][-1].split()[1])
        pairs = [line.split(": ", 1) for line in lines if ": " in line]
        return status, {name.lower(): value for name, value in pairs}, done.stdout

    def post(self, operation, body, *options):
        path = self.lab.folder / "body"
        path.write_bytes(body)
        given = ["-H", "Content-Type: application/pkcs10"] if "-H" not in options else []
        return self(f"{BASE}/{operation}", "--data-binary", f"@{path}", *given, *options)


@pytest.fixture(scope="module")
def curl(lab, server):
    return Curl(lab, server)


def request(folder, device):
    """Return a key file and a request in base64, both by openssl."""
    key, csr = folder / f"{device}.key", folder / f"{device}.csr"
    run("openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key,
        "-subj", f"/serialNumber={device}", "-outform", "DER", "-out", csr)  # fmt: skip
    return key, base64.encodebytes(csr.read_bytes())


def unpacked(lab, body):
    """Return the PEM certificates in an answer, by openssl's reading of it."""
    path = lab.folder / "answer.p7"
    path.write_bytes(base64.b64decode(body))
    out = run("openssl", "pkcs7", "-inform", "DER", "-in", path, "-print_certs").stdout
    return re.findall(rb"-----BEGIN.*?-----END CERTIFICATE-----\n", out, re.DOTALL)


def enrolled(lab, curl, tokens, device):
    key, body = request(lab.folder, device)
    status, _, answer = curl.post("simpleenroll", body, "-u", f"{device}:{tokens[device]}")
    assert status == 200
    (pem,) = unpacked(lab, answer)
    path = lab.folder / f"{device}.pem"
    path.write_bytes(pem)
    return key, path


def last(server):
    return server.log()[-1]


# -- as it should be


def test_certificates_of_the_authority(lab, curl):
    status, headers, body = curl(f"{BASE}/cacerts")
    assert (status, headers["content-type"]) == (200, "application/pkcs7-mime; smime-type=certs-only")
    assert headers["content-transfer-encoding"] == "base64"
    assert len(unpacked(lab, body)) == 2
    printed = run("openssl", "cms", "-cmsout", "-print", "-inform", "DER", "-in", lab.folder / "answer.p7").stdout
    assert b"signerInfos:\n      <EMPTY>" in printed
    known = run("certtool", "--p7-info", "--inder", "--infile", lab.folder / "answer.p7").stdout
    assert b"Number of certificates: 2" in known
    assert run("openssl", "base64", "-d", input=body).stdout == (lab.folder / "answer.p7").read_bytes()


def test_attributes(curl):
    status, _, body = curl(f"{BASE}/csrattrs")
    assert status == 200
    parsed = run("openssl", "asn1parse", "-inform", "DER", input=base64.b64decode(body)).stdout
    assert b"challengePassword" in parsed
    assert b"prime256v1" in parsed


def test_token_by_hand(lab, curl, server, tokens):
    _, body = request(lab.folder, "CURL-1")
    status, headers, word = curl.post("simpleenroll", body)
    assert (status, headers["www-authenticate"], word) == (401, 'Basic realm="est"', b"unauthenticated\n")
    status, _, answer = curl.post("line-2/simpleenroll", body, "-u", f"CURL-1:{tokens['CURL-1']}")
    assert status == 200
    (pem,) = unpacked(lab, answer)
    (lab.folder / "one.pem").write_bytes(pem)
    lab.write("issuing.pem", [lab.issuing])
    verify = ("openssl", "verify", "-x509_strict", "-CAfile", lab.folder / "root.pem", "-untrusted")
    assert b": OK" in run(*verify, lab.folder / "issuing.pem", lab.folder / "one.pem").stdout
    _, again = request(lab.folder, "CURL-1")
    assert curl.post("simpleenroll", again, "-u", f"CURL-1:{tokens['CURL-1']}")[0] == 403
    assert last(server)["code"] == "pki.token.replayed"
    events = [json.loads(line.raw) for line in read_log(lab.store / "events") if line.complete]
    refused = [event for event in events if event["unmapped"]["tidegate"]["kind"] == "pki.refused"]
    assert refused[-1]["status_code"] == "pki.token.replayed"
    assert "pki.est.unauthenticated" not in {event["status_code"] for event in refused}, "strangers fill no log"


def test_renewal_over_mutual_tls(lab, curl, server, tokens):
    key, pem = enrolled(lab, curl, tokens, "CURL-2")
    old_key = key.rename(lab.folder / "old.key")
    _, body = request(lab.folder, "CURL-2")
    status, _, answer = curl.post("simplereenroll", body, "--cert", pem, "--key", old_key)
    assert status == 200
    (renewed,) = unpacked(lab, answer)
    assert x509.load_pem_x509_certificate(renewed).subject == x509.load_pem_x509_certificate(pem.read_bytes()).subject
    _, others = request(lab.folder, "CURL-9")
    assert curl.post("simplereenroll", others, "--cert", pem, "--key", old_key)[0] == 403
    assert last(server)["code"] == "pki.est.identity"


def idevid_files(lab, serial, issuer=None, **options):
    key = ec.generate_private_key(ec.SECP256R1())
    profile = options.pop("profile", "idevid")
    above = issuer or (lab.factory, "factory")
    certificate = lab.sign(profile, public_key_of(key.public_key()), Subject(serial_number=serial), above, **options)
    path = lab.folder / f"{serial}-idevid.pem"
    path.write_bytes(
        certificate.public_bytes(Encoding.PEM) + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


def test_birth_certificate_enrols(lab, curl, server):
    birth = idevid_files(lab, "CURL-7")
    _, body = request(lab.folder, "CURL-7")
    assert curl.post("simpleenroll", body, "--cert", birth)[0] == 200
    _, others = request(lab.folder, "CURL-8")
    assert curl.post("simpleenroll", others, "--cert", birth)[0] == 403
    assert last(server)["code"] == "pki.est.identity"


# -- as it should not be


def test_versions_of_old(lab, server):
    context = ssl.create_default_context(cafile=lab.folder / "root.pem")
    with pytest.warns(DeprecationWarning):
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    before = len(server.log())
    with socket.create_connection(("127.0.0.1", server.port), 5) as raw, pytest.raises(ssl.SSLError) as caught:
        context.wrap_socket(raw, server_hostname="localhost")
    closed = isinstance(caught.value, ssl.SSLZeroReturnError)  # as this Python calls it when no alert was sent
    assert closed or caught.value.reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "UNEXPECTED_EOF_WHILE_READING")
    wait_for(lambda: len(server.log()) > before)
    assert last(server)["kind"] == "tls.refused"


def wait_for(condition):
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_strangers_and_expired_ones_do_not_get_through_the_handshake(lab, curl, server):
    long_ago = datetime.datetime.now(tz=datetime.UTC) - datetime.timedelta(days=60)
    short = {"profile": "ldevid", "now": long_ago, "lifetime": datetime.timedelta(days=1)}
    factory = lab.certify("factory-ca", "old-factory", Subject(common_name="Example Factory"), now=long_ago)
    for birth in (
        idevid_files(lab, "CURL-5", (factory, "old-factory")),
        idevid_files(lab, "CURL-6", (lab.issuing, "issuing"), **short)
        if long_ago > lab.issuing.not_valid_before_utc
        else idevid_files(lab, "CURL-6", (factory, "old-factory"), **short),
    ):
        before = len(server.log())
        _, body = request(lab.folder, "CURL-5")
        status, _, word = curl.post("simpleenroll", body, "--cert", birth)
        assert status in (35, 52, 55, 56), word  # curl's own codes for a broken connection
        wait_for(lambda before=before: len(server.log()) > before)
        assert last(server)["kind"] == "tls.refused"


@pytest.mark.parametrize(
    ("operation", "body", "options", "status", "code"),
    [
        ("simpleenroll", b"AAAA", ["-H", "Content-Type: text/plain"], 415, "pki.est.content-type"),
        ("simpleenroll", b"A" * 100_000, [], 413, "pki.est.too-large"),
        ("simpleenroll", b"A" * 100_000, ["-H", "Content-Type: application/pkcs10", "-H",
                                          "Transfer-Encoding: chunked"], 413, "pki.est.too-large"),
        ("simpleenroll", b"***", [], 400, "pki.est.body-malformed"),
        ("simpleenroll", b"AAAA", ["-u", "CURL-4:wrong"], 403, "pki.request.malformed"),
        ("serverkeygen", b"AAAA", [], 501, "pki.est.operation-refused"),
        ("line-9/simpleenroll", b"AAAA", [], 404, "pki.est.operation-unknown"),
        ("cacerts", b"AAAA", [], 405, "pki.est.method"),
    ],
)  # fmt: skip
def test_misuse(curl, server, operation, body, options, status, code):
    assert curl.post(operation, body, *options)[0] == status
    assert last(server)["code"] == code


def test_request_with_a_broken_signature(lab, curl, server, tokens):
    _, body = request(lab.folder, "CURL-4")
    raw = bytearray(base64.b64decode(body))
    raw[-1] ^= 1
    assert curl.post("simpleenroll", base64.encodebytes(raw), "-u", f"CURL-4:{tokens['CURL-4']}")[0] == 403
    assert last(server)["code"] == "pki.request.forged"


# -- revocation, and the server's own end


def test_revoked_device(lab, curl, server, tokens):
    """The CA takes a certificate back; the server refuses it, and openssl hears of it by OCSP and by CRL."""
    key, pem = enrolled(lab, curl, tokens, "CURL-3")
    old_key = key.rename(lab.folder / "revoked.key")
    serial = x509.load_pem_x509_certificate(pem.read_bytes()).serial_number
    lab.write("issuing.pem", [lab.issuing])
    issuing, root = lab.folder / "issuing.pem", lab.folder / "root.pem"
    ask = ["openssl", "ocsp", "-issuer", issuing, "-cert", pem, "-CAfile", root, "-verify_other", issuing]
    ask += ["-url", f"http://127.0.0.1:{server.status_port}/ocsp"]
    assert b": good" in run(*ask).stdout
    words = ["--store", str(lab.store), "--key", lab.key_uri + "issuing", "--chain", str(lab.folder / "chain.pem")]
    assert main(["ca", "revoke", f"{serial:x}", "--reason", "key-compromise", *words]) == 0  # while the server runs
    assert b": revoked" in run(*ask).stdout
    where = f"http://127.0.0.1:{server.status_port}"
    crl = run("curl", "-sS", where + "/crl").stdout
    text = run("openssl", "crl", "-inform", "DER", "-noout", "-text", "-CAfile", lab.folder / "issuing.pem", input=crl)
    assert f"{serial:X}".encode() in text.stdout
    assert b"verify OK" in text.stderr
    _, body = request(lab.folder, "CURL-3")
    assert curl.post("simplereenroll", body, "--cert", pem, "--key", old_key)[0] == 403
    assert last(server)["code"] == "pki.certificate.revoked"
    status = ("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}")
    assert run(*status, where + "/elsewhere").stdout == b"404"
    assert run(*status, "--data-binary", "@-", where + "/ocsp", input=b"x" * 5000).stdout == b"413"


def test_ocsp_in_the_path(lab, server):
    question = lab.folder / "question.der"
    run("openssl", "ocsp", "-issuer", lab.folder / "chain.pem", "-cert", lab.folder / "server.pem", "-no_nonce",
        "-reqout", question)  # fmt: skip
    path = base64.b64encode(question.read_bytes()).decode().replace("/", "%2F").replace("+", "%2B").replace("=", "%3D")
    answer = run("curl", "-sS", f"http://127.0.0.1:{server.status_port}/ocsp/{path}").stdout
    assert answer[:1] == b"\x30"


def test_killed_in_the_middle_of_a_request(lab, curl, server, tokens):
    context = ssl.create_default_context(cafile=lab.folder / "root.pem")
    start = b"POST /.well-known/est/simpleenroll HTTP/1.1\r\nHost: a\r\nContent-Length: 900\r\n\r\nMII"
    raw = socket.create_connection(("127.0.0.1", server.port), 5)
    with raw, context.wrap_socket(raw, server_hostname="localhost") as connection:
        connection.sendall(start)
        server.kill()
        with contextlib.suppress(OSError):
            assert connection.recv(100) == b""
    server.start()
    enrolled(lab, curl, tokens, "CURL-4")
    assert server.stop() == 0
    assert last(server)["kind"] == "stopped"
    for line in (lab.folder / "server.jsonl").read_text().splitlines():
        assert not any(token in line for token in tokens.values())
        json.loads(line)
    server.start()
