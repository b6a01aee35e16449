"""A device's life by its command line against the real server: enrolled, renewed, moved, reset; key in its provider."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.cli.main import main
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.events.segments import read_log
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.pki.profiles import Subject
from tidegate.testing.ca import Lab
from tidegate.testing.processes import started
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tokens import SoftHsm


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    folder.chmod(0o700)
    return Lab(folder)


class Board:
    """A device with its keys in the store that ``uri`` names and its certificate of birth in a file."""

    def __init__(self, lab, folder, serial, uri):
        self.lab, self.folder, self.serial, self.uri = lab, folder, serial, uri
        with self.opened() as keys:
            keys.generate("identity", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ECDSA_P256))
            public = keys.public_key("identity")
        idevid = lab.sign("idevid", public, Subject(serial_number=serial), (lab.factory, "factory"))
        (folder / "idevid.pem").write_bytes(idevid.public_bytes(Encoding.PEM))
        self.place = ["--folder", str(folder / "identity")]
        self.store = [*self.place, "--keys", uri]
        self.birth = ["--idevid-chain", str(folder / "idevid.pem")]

    def opened(self):
        return contextlib.closing(open_store(parse_key_uri(self.uri)))

    def at(self, port):
        return ["--url", f"https://127.0.0.1:{port}", "--anchors", str(self.lab.folder / "root.pem")]

    def key_names(self):
        with self.opened() as keys:
            return {info.name for info in keys.list_keys()}


@contextlib.contextmanager
def software(folder):
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(os.urandom(32))
    yield f"file:{folder}/keys?device-secret={secret}"


@contextlib.contextmanager
def token(folder):
    with SoftHsm(folder / "hsm") as hsm:
        pin = hsm.make_token("device")
        yield f"pkcs11:token=device?module-path={hsm.module}&pin-source={pin}"


@contextlib.contextmanager
def tpm(folder):
    with SwTpm(folder / "tpm") as chip:
        yield f"tpm2:{folder}/keys?tcti={chip.tcti}"


@pytest.fixture
def make_board(lab, tmp_path, request):
    """Return what makes a board with its keys in one kind of provider."""
    with contextlib.ExitStack() as stack:

        def make(kind):
            folder = tmp_path / "board"
            folder.mkdir(mode=0o700)
            uri = stack.enter_context(kind(folder))
            if kind is not token:
                open_store(parse_key_uri(uri), create=True).close()
            return Board(lab, folder, f"SN-{abs(hash(request.node.name)) % 10**9}", uri)

        yield make


@pytest.fixture
def board(make_board):
    return make_board(software)


def run(capsys, *arguments):
    status = main(["identity", *arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("provider", [software, token, tpm], ids=["software", "pkcs11", "tpm2"])
def test_whole_life(lab, make_board, capsys, provider):
    board = make_board(provider)
    with lab.serving() as server:
        assert run(capsys, "status", *board.place)[0] == 1
        log = ("--events", str(board.folder / "events"))
        status, answer = run(capsys, "enrol", *board.store, *log, *board.at(server.port), *board.birth)
        assert (status, answer["state"], answer["generation"]) == (0, "active", 1)
        assert run(capsys, "enrol", *board.store, *board.at(server.port), *board.birth)[0] == 2
        first = answer["serial"]
        assert run(capsys, "renew", *board.store, *board.birth)[1]["serial"] == first  # not due
        status, answer = run(capsys, "renew", "--force", *board.store, *board.birth)
        assert (status, answer["generation"]) == (0, 2)
        assert answer["serial"] != first
        assert board.key_names() == {"identity", "identity-2"}
        shown = run(capsys, "show", *board.place)[1]["chain"]
        assert shown[0]["serial"] == answer["serial"]
        chain = board.folder / "chain.pem"
        assert run(capsys, "export", *board.place, "-o", str(chain))[0] == 0
        issued = x509.load_pem_x509_certificates(chain.read_bytes())
        assert f"{issued[0].serial_number:x}" == answer["serial"]
        assert issued[1] == lab.issuing
    status, answer = run(capsys, "renew", "--force", *board.store, *board.birth)  # nobody is there
    assert (status, answer["error"]["code"]) == (4, "tls.http.unreachable")
    status, answer = run(capsys, "status", *board.place)
    assert (status, answer["usable"], answer["generation"]) == (0, True, 2)
    with lab.serving() as server:  # on another port
        status, answer = run(capsys, "move", *board.store, *board.at(server.port), *board.birth)
        assert (status, answer["server"]) == (0, f"127.0.0.1:{server.port}")
        assert [one["kind"] for one in server.log()].count("ca.issued") >= 3
    assert run(capsys, "reset", *board.store, *log, "--yes")[0] == 0
    events = [json.loads(line.raw) for line in read_log(board.folder / "events")]
    kinds = [event["unmapped"]["tidegate"]["kind"] for event in events]
    assert set(kinds) == {"identity.changed"}
    assert len(kinds) > 2
    assert board.key_names() == {"identity"}
    assert run(capsys, "status", *board.place)[0] == 1


def test_enrolment_with_a_token(lab, board, capsys, tmp_path):
    secret = tmp_path / "token"
    secret.touch(mode=0o600)
    with lab.serving("--require-binding") as server:
        secret.write_bytes(bytes(lab.token(board.serial).view()))  # while the server runs
        words = [*board.store, *board.at(server.port), "--token-file", str(secret)]
        assert run(capsys, "enrol", *words, "--serial", "SN-other")[1]["error"]["code"] == "pki.est.refused"
        assert server.log()[-1]["code"] == "pki.token.device"
        status, answer = run(capsys, "enrol", *words, "--serial", board.serial)
        assert (status, answer["usable"]) == (0, True)
        assert board.serial in answer["subject"]


def test_untrusted_server(lab, board, capsys):
    (board.folder / "other.pem").write_bytes((lab.folder / "factory.pem").read_bytes())
    with lab.serving() as server:
        words = ["--url", f"https://127.0.0.1:{server.port}", "--anchors", str(board.folder / "other.pem")]
        status, answer = run(capsys, "enrol", *board.store, *words, *board.birth)
    assert (status, answer["error"]["code"]) == (3, "tls.http.untrusted")


@pytest.mark.parametrize("url", ["http://127.0.0.1", "https://", "https://a/b/c", "https://u@a", "https://a:99999"])
def test_what_is_no_server(lab, board, capsys, url):
    anchors = ["--anchors", str(lab.folder / "root.pem")]
    status, answer = run(capsys, "enrol", *board.store, "--url", url, *anchors, *board.birth)
    assert (status, answer["error"]["code"]) == (2, "pki.est.url")


def test_service_enrols_waits_and_stops(lab, board, capsys):
    """The server comes up late and is killed in between; the service enrols all the same, and ends on SIGTERM."""
    with lab.serving() as server:
        server.stop()
        command = [sys.executable, "-m", "tidegate.cli.main", "identity", "run", *board.store, *board.birth]
        with started([*command, *board.at(server.port)], stdout=subprocess.PIPE, text=True) as service:
            line = next(line for line in service.stdout if "failed" in line)
            assert "tls.http.unreachable" in line
            service.send_signal(signal.SIGTERM)
            assert service.wait(10) == 0
        server.start()
        record = board.folder / "identity" / "identity.json"
        content = json.loads(record.read_bytes())
        assert content["failures"] == 1
        record.write_text(json.dumps(content | {"retry_at_s": 0}))  # so that nobody has to wait half a minute
        with started(command, stdout=subprocess.PIPE, text=True) as service:
            assert any("active:" in line for line in service.stdout)
            service.send_signal(signal.SIGTERM)
            assert service.wait(10) == 0
    assert run(capsys, "status", *board.place)[0] == 0
