"""Chapter 8: keys in tokens and in a TPM, and a certificate from birth to revocation, by the commands that people type.

Touches: software tokens and a software TPM in the work folder, a key process, a CA's server in the operator's
namespace.
"""

from __future__ import annotations

import datetime
import json
import secrets
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.base.clock import SystemEntropy
from tidegate.base.durable import read_file_bounded, write_file_atomic
from tidegate.base.program import find_program, run_program
from tidegate.demo.board import Board
from tidegate.demo.drills import run_drills
from tidegate.demo.lab import OPERATOR_ADDRESS, Lab
from tidegate.demo.report import Report, Step, require, wait_until
from tidegate.keys.errors import PcrMismatch
from tidegate.keys.store import KeyInfo, KeyStore
from tidegate.keys.tpm2 import open_uri as open_tpm
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.pki.certificate import (
    MAX_PEM_BYTES,
    Issuance,
    encode_pem,
    issue_factory_ca,
    issue_idevid,
    parse_pem_chain,
)
from tidegate.testing.certificates import CountingSigner
from tidegate.testing.swtpm import SwTpm
from tidegate.tls.context import server_context

DEVICE = "gateway-tpm"
IDEVID = "idevid"
SEALED = "sealed-to-pcr-7"
DRILLS = ("ceremony", "rotation", "revocation", "loss")
EST_PORT, STATUS_PORT = 8443, 8080
_CONTEXT = b"demo"
_KEYD = """
[keyd]
socket = "{socket}"
store = "{store}"
mode = 0o600
[[grant]]
user = "root"
keys = ["*"]
operations = ["list", "public", "generate", "sign", "seal", "unseal", "destroy", "certificates", "keep-certificates"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this chapter keeps things, and who else is there."""

    folder: Path
    board: Board
    lab: Lab
    tpm: SwTpm

    @property
    def direct(self) -> str:
        """Return the URI of the store over the TPM itself."""
        return f"tpm2:{self.folder / 'tpm-keys'}?tcti={self.tpm.tcti}"

    @property
    def socket(self) -> Path:
        """Return the key process's socket, in the device's run folder: a socket's path has at most 107 bytes."""
        return self.board.run / "keyd.sock"

    def through_keyd(self, key: str = "") -> str:
        """Return the URI of the same store, or of a key in it, by way of the key process."""
        return f"keyd:{self.socket}" + (f"?key={key}" if key else "")

    def owner(self, key: str = "") -> str:
        """Return the URI of the owner's keys."""
        return f"file:{self.folder / 'owner'}?{f'key={key}&' if key else ''}device-secret={self.folder / 'secret'}"

    def run(self, *words: object, inside: Sequence[str] = ()) -> dict[str, object]:
        """Run ``tidegate`` with ``words`` and return its JSON answer; ``inside`` is how to get into a namespace."""
        command = [*inside, sys.executable, "-m", "tidegate.cli.main", *map(str, words), "--json"]
        done = subprocess.run(command, capture_output=True, check=False)
        text = done.stdout.decode(errors="replace")
        said = done.stderr.decode(errors="replace").strip() or text.strip()
        require(done.returncode == 0, f"tidegate {' '.join(map(str, words[:2]))}: {said[-500:]}")
        answer = json.loads(text[text.index("{\n") :]) if "{\n" in text else {}
        return dict(answer)

    def on_device(self, *words: object) -> dict[str, object]:
        """Run ``tidegate identity`` as the device does, over the wire, with its keys in the TPM."""
        folder = self.folder / "identity"
        options = ["--folder", folder] + ([] if words[0] in ("status", "export") else ["--keys", self.through_keyd()])
        return self.run("identity", words[0], *options, *words[1:], inside=self.board.inside([]))


def tell_keys(report: Report, board: Board, lab: Lab, work: Path) -> None:
    """Chapter 8: ceremony, TPM keys, enrolment, TLS, refusals."""
    report.chapter("8  Keys and certificates")
    folder = work / "keys"
    folder.mkdir(mode=0o700)
    with report.step("a key ceremony and three bad days, rehearsed on two tokens") as step:
        step.evidence += run_drills(DRILLS, tell=lambda _: None)
    with ExitStack() as stack:
        tpm = stack.enter_context(SwTpm(folder / "tpm"))
        place = Place(folder=folder, board=board, lab=lab, tpm=tpm)
        with report.step("the device's key is born in a TPM 2.0, behind the key process") as step:
            keyd = _start_keyd(place, stack)
            _bear_keys(place, step)
        with report.step("the owner's CA: root offline, issuing CA, EST server in the operator's network") as step:
            log = _start_ca(place, stack, step)
        with report.step("the device enrols by EST over TLS with its birth certificate, nobody touching it") as step:
            _enrol(place, step)
        with report.step("it renews with a new key; the old one is destroyed in the TPM") as step:
            _renew(place, step)
        with report.step("TLS 1.2 and 1.3 by Python's own ssl, the key in the TPM, openssl at the other end") as step:
            _shake_hands(place, step)
        with report.step("refused: a token that was issued for another device") as step:
            step.evidence.append(_wrong_token(place, log))
        with report.step("a revoked certificate is known as such by CRL and OCSP") as step:
            _revoke(place, step)
        with report.step(
            "what is sealed to PCR 7 does not open once it has changed, and the register is named"
        ) as step:
            _stop(keyd)
            step.evidence.append(_change_pcr(place))


def _start_keyd(place: Place, stack: ExitStack) -> subprocess.Popen[bytes]:
    place.run("keys", "create-store", place.direct)
    config = place.folder / "keyd.toml"
    write_file_atomic(config, _KEYD.format(socket=place.socket, store=place.direct).encode(), mode=0o600)
    with (place.folder / "keyd.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "tidegate.keys.keyd", str(config)], stdout=log, stderr=log)
    stack.callback(_stop, process)

    def listens() -> bool:
        said = (place.folder / "keyd.log").read_text(errors="replace").strip()
        require(process.poll() is None, f"the key process ended: {said[-300:]}")
        return place.socket.exists()

    wait_until(listens, "the key process does not listen", timeout_s=10)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(timeout=10)


def _bear_keys(place: Place, step: Step) -> None:
    """Make the device's keys in its TPM and have the maker vouch for the first one."""
    made = place.run("keys", "generate", place.through_keyd(IDEVID), "--algorithm", "ecdsa-p256")
    place.run("keys", "generate", place.through_keyd(SEALED), "--algorithm", "seal", "--pcrs", "7")
    (place.folder / "secret").touch(mode=0o600)
    (place.folder / "secret").write_bytes(secrets.token_bytes(32))
    place.run("keys", "create-store", place.owner())
    place.run("keys", "generate", place.owner("factory"), "--algorithm", "ecdsa-p256")
    factory, device = _open(place.owner()), _open(place.through_keyd())
    signer = factory.signer("factory")
    ca = issue_factory_ca(signer, organization="Example Maker", issuance=_issuance())
    idevid = issue_idevid(ca, signer, device.public_key(IDEVID), serial_number=DEVICE, issuance=_issuance())
    device.keep_certificates(IDEVID, [one.public_bytes(Encoding.DER) for one in (idevid, ca)])
    write_file_atomic(place.folder / "factory.pem", encode_pem(ca))
    for store in (factory, device):
        store.close()
    step.evidence.append(f"{IDEVID}: ecdsa-p256, key id {made['key_id']}; {SEALED}: opens while PCR 7 is as it is")
    step.evidence.append(f"IDevID {idevid.subject.rfc4514_string()}, kept beside the key")


def _start_ca(place: Place, stack: ExitStack, step: Step) -> Path:
    """Make the CA as its owner does, and start its server; return the server's log."""
    for key in ("root", "issuing", "server"):
        place.run("keys", "generate", place.owner(key), "--algorithm", "ecdsa-p256")
    folder = place.folder
    root, issuing = folder / "root-ca", folder / "issuing-ca"
    names = ("--organization", "Example Owner", "--common-name", "Example Root")
    place.run("ca", "init-root", "--store", root, "--key", place.owner("root"), *names)
    request, chain = folder / "issuing.csr", folder / "issuing.pem"
    place.run("ca", "request", "--key", place.owner("issuing"), "--common-name", "Example Issuing CA", "-o", request)
    place.run("ca", "sign-ca", "--store", root, "--key", place.owner("root"), request, "-o", chain)
    at_issuing = ("--store", issuing, "--key", place.owner("issuing"))
    place.run("ca", "init-issuing", *at_issuing, "--chain", chain)
    server = folder / "server.pem"
    names = ("--common-name", "est.example", "--ip", OPERATOR_ADDRESS)
    place.run("ca", "issue", "server", *at_issuing, "--subject-key", place.owner("server"), *names, "-o", server)
    certificates = parse_pem_chain(read_file_bounded(chain, limit_bytes=MAX_PEM_BYTES))
    write_file_atomic(folder / "root.pem", encode_pem(certificates[-1]))
    tls = ("--tls-key", place.owner("server"), "--tls-chain", server)
    listen = ("--listen", f"{OPERATOR_ADDRESS}:{EST_PORT}", "--status-listen", f"{OPERATOR_ADDRESS}:{STATUS_PORT}")
    words = ["ca", "serve", *at_issuing, "--chain", chain, *tls, *listen]
    command = [sys.executable, "-m", "tidegate.cli.main", *words, "--idevid-anchors", folder / "factory.pem"]
    log = folder / "est.log"
    with log.open("wb") as stream:
        process = place.lab.operator.popen([*map(str, command)], stdout=stream, stderr=stream)
    stack.callback(_stop, process)
    wait_until(lambda: b"status.listening" in log.read_bytes(), "the EST server does not listen", timeout_s=15)
    for certificate in certificates:
        step.evidence.append(
            f"{certificate.subject.rfc4514_string()}, until {certificate.not_valid_after_utc:%Y-%m-%d}"
        )
    return log


def _enrol(place: Place, step: Step) -> None:
    url = f"https://{OPERATOR_ADDRESS}:{EST_PORT}"
    anchors = ("--anchors", place.folder / "root.pem", "--idevid", IDEVID)
    told = place.on_device("enrol", "--url", url, *anchors)
    step.evidence.append(f"LDevID {told['subject']}, until {told['not_after']}, renewal from {told['renew_at']}")
    leaf = place.folder / "ldevid.pem"
    place.on_device("export", "-o", leaf)
    trust = ["-CAfile", str(place.folder / "root.pem"), "-untrusted", str(place.folder / "issuing.pem")]
    said = run_program(["openssl", "verify", "-x509_strict", *trust, str(leaf)]).stdout.decode()
    require(said.strip().endswith("OK"), f"openssl does not accept the certificate: {said.strip()}")
    step.evidence.append("accepted by openssl verify")


def _renew(place: Place, step: Step) -> None:
    before = {info.name for info in _keys(place)}
    told = place.on_device("renew", "--force", "--idevid", IDEVID)
    after = {info.name for info in _keys(place)}
    require(before - after != set(), f"the old key is still there: {sorted(after)}")
    step.evidence.append(
        f"generation {told['generation']}, key {told['key']}; gone: {', '.join(sorted(before - after))}"
    )


def _shake_hands(place: Place, step: Step) -> None:
    """Serve TLS with the LDevID's key and have openssl connect; the TPM signs once a handshake."""
    told = place.on_device("status")
    exported = place.folder / "ldevid.pem"
    place.on_device("export", "-o", exported)
    chain = [
        one.public_bytes(Encoding.DER)
        for one in parse_pem_chain(read_file_bounded(exported, limit_bytes=MAX_PEM_BYTES))
    ]
    store = _open(place.through_keyd())
    signer = CountingSigner(store.signer(str(told["key"])))
    for version in ("-tls1_2", "-tls1_3"):
        said = _connect(server_context(signer, chain, clients=None), place.folder / "root.pem", version)
        require("Verification: OK" in said, f"openssl s_client {version}: {said[-300:]}")
        protocol = next(line.strip() for line in said.splitlines() if line.startswith("New, "))
        step.evidence.append(f"openssl s_client: {protocol}; Verification: OK")
    require(signer.signatures == 2, f"{signer.signatures} signatures for 2 handshakes")
    step.evidence.append("2 handshakes, 2 signatures of the key process; the private half never left the TPM")
    store.close()


def _connect(context: ssl.SSLContext, anchors: Path, version: str) -> str:
    """Return what ``openssl s_client`` says of one connection over the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        words = ["-connect", f"127.0.0.1:{port}", "-CAfile", str(anchors), "-verify_return_error", version]
        done = subprocess.run(
            [find_program("openssl"), "s_client", *words], input=b"Q\n", capture_output=True, timeout=15, check=False
        )
        thread.join(timeout=15)
    return done.stdout.decode(errors="replace")


def _wrong_token(place: Place, log: Path) -> str:
    """Enrol with a token of another device; return how the server's log explains the refusal."""
    token = place.folder / "token"
    issued = place.run("ca", "token", "gateway-other", "--store", place.folder / "issuing-ca")
    token.touch(mode=0o600)
    token.write_text(f"{issued['token']}\n")
    words = ["identity", "enrol", "--folder", place.folder / "thief", "--keys", place.through_keyd()]
    words += ["--url", f"https://{OPERATOR_ADDRESS}:{EST_PORT}", "--anchors", place.folder / "root.pem"]
    words += ["--token-file", token, "--serial", DEVICE]
    command = place.board.inside([sys.executable, "-m", "tidegate.cli.main", *map(str, words)])
    done = subprocess.run(command, capture_output=True, check=False)
    require(done.returncode != 0, "the token of another device was accepted")
    refusals = [one for one in map(json.loads, log.read_text().splitlines()) if one["kind"] == "est.refused"]
    require(bool(refusals) and refusals[-1]["code"] == "pki.token.device", f"refused otherwise: {refusals[-1:]}")
    return f"{refusals[-1]['message']} [{refusals[-1]['code']}]; to the peer: one word"


def _revoke(place: Place, step: Step) -> None:
    told = place.on_device("status")
    at_issuing = ("--store", place.folder / "issuing-ca", "--key", place.owner("issuing"))
    place.run("ca", "revoke", told["serial"], "--reason", "key-compromise", *at_issuing)
    folder = place.folder
    url = f"http://{OPERATOR_ADDRESS}:{STATUS_PORT}/ocsp"
    ocsp = ["openssl", "ocsp", "-issuer", str(folder / "issuing.pem"), "-cert", str(folder / "ldevid.pem")]
    trust = ["-CAfile", str(folder / "root.pem"), "-verify_other", str(folder / "issuing.pem"), "-trust_other"]
    said = place.lab.operator.run([*ocsp, "-url", url, *trust], check=False)
    text = (said.stdout + said.stderr).decode(errors="replace")
    for wanted in ("Response verify OK", ": revoked", "Reason: keyCompromise"):
        require(wanted in text, f"openssl ocsp does not say {wanted!r}: {text[-300:]}")
    step.evidence.append("openssl ocsp: Response verify OK, revoked, keyCompromise")
    crl = folder / "ca.crl"
    place.run("ca", "crl", *at_issuing, "-o", crl)
    form = "DER" if crl.read_bytes()[:1] == b"\x30" else "PEM"
    listed = run_program(["openssl", "crl", "-in", str(crl), "-inform", form, "-noout", "-text"]).stdout.decode()
    require(str(told["serial"]).upper() in listed.replace(":", ""), "the certificate is not in the CRL")
    step.evidence.append(f"openssl crl: serial {str(told['serial'])[:16]}… is in the list")


def _change_pcr(place: Place) -> str:
    """Seal, change the register, try to open; return the refusal. The key process has left the TPM."""
    store = open_tpm(parse_key_uri(place.direct), create=False, ask=None)
    secret = secrets.token_bytes(32)
    sealed = store.seal(SEALED, secret, _CONTEXT)
    with store.unseal(SEALED, sealed, _CONTEXT) as opened:
        require(bytes(opened.view()) == secret, "it opens to something else")
    store.extend(7, secrets.token_bytes(32))
    try:
        store.unseal(SEALED, sealed, _CONTEXT).wipe()
    except PcrMismatch as error:
        return f"{error.message} [{error.code}]"
    finally:
        store.close()
    require(condition=False, complaint="it opened although PCR 7 changed")
    return ""


def _keys(place: Place) -> list[KeyInfo]:
    store = _open(place.through_keyd())
    try:
        return list(store.list_keys())
    finally:
        store.close()


def _open(uri: str) -> KeyStore:
    return open_store(parse_key_uri(uri))


def _issuance() -> Issuance:
    now = datetime.datetime.now(tz=datetime.UTC).replace(microsecond=0)
    return Issuance(not_before=now, serial=int.from_bytes(SystemEntropy().random_bytes(16), "big") | 1)
