"""CRL and OCSP over plain HTTP: the right bytes for the right question, and little patience for others."""

import asyncio
import base64
import datetime
from urllib.parse import quote

import pytest

from tidegate.base.clock import SystemEntropy
from tidegate.pki.authority import Authority, Grant
from tidegate.pki.ca_store import CaStore, Reason
from tidegate.pki.profiles import PROFILES, Subject
from tidegate.pki.revocation import encode_ocsp_request, verify_crl, verify_ocsp
from tidegate.pki.status_server import StatusServer
from tidegate.testing.ca import Lab
from tidegate.testing.identity import SetClock


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    folder.chmod(0o700)
    return Lab(folder)


class Desk:
    """A status server on a store of its own, with one certificate."""

    def __init__(self, lab, folder):
        self.lab, self.clock = lab, SetClock(datetime.datetime.now(tz=datetime.UTC).timestamp())
        self.store, self.acts = CaStore(folder, create=True), []
        self.authority = Authority(
            [lab.issuing],
            lab.keys.signer("issuing"),
            self.store,
            clock=self.clock,
            entropy=SystemEntropy(),
            report=self.acts.append,
        )
        subject = Subject(serial_number="SN-1")
        self.one = self.authority.issue(
            Grant(profile=PROFILES["ldevid"], subject=subject, public_key=lab.keys.public_key("server"))
        )
        self.server = StatusServer(self.authority, clock=self.clock)

    def ask(self, method, path, body=b""):
        sent = []

        async def receive():
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": []}
        asyncio.run(self.server(scope, receive, send))
        return sent[0]["status"], dict(sent[0]["headers"])[b"content-type"], sent[1]["body"]

    def now(self):
        return datetime.datetime.fromtimestamp(self.clock.now_s(), tz=datetime.UTC)


@pytest.fixture
def desk(lab, tmp_path):
    desk = Desk(lab, tmp_path / "store")
    yield desk
    desk.server.close()
    desk.store.close()


def test_list_is_kept_until_it_is_old_or_something_was_revoked(desk, lab):
    status, content_type, first = desk.ask("GET", "/crl")
    assert (status, content_type) == (200, b"application/pkix-crl")
    verify_crl(first, issuer=lab.issuing, now=desk.now()).require_good(desk.one)
    desk.clock.time_s += 60
    assert desk.ask("GET", "/crl")[2] == first
    desk.authority.revoke(desk.one.serial_number, Reason.KEY_COMPROMISE)
    desk.clock.time_s += 1
    second = desk.ask("GET", "/crl")[2]
    assert desk.one.serial_number in verify_crl(second, issuer=lab.issuing, now=desk.now()).revoked
    desk.clock.time_s += 60
    assert desk.ask("GET", "/crl")[2] == second
    desk.clock.time_s += 700
    assert desk.ask("GET", "/crl")[2] != second


@pytest.mark.parametrize("way", ["POST", "GET"])
def test_questions(desk, lab, way):
    question = encode_ocsp_request(desk.one, lab.issuing, b"nonce")
    if way == "POST":
        status, content_type, answer = desk.ask("POST", "/ocsp", question)
    else:
        status, content_type, answer = desk.ask("GET", "/ocsp/" + quote(base64.b64encode(question).decode(), safe=""))
    assert (status, content_type) == (200, b"application/ocsp-response")
    verify_ocsp(answer, certificate=desk.one, issuer=lab.issuing, now=desk.now(), nonce=b"nonce")


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/", b"", 404),
        ("POST", "/crl", b"", 404),
        ("DELETE", "/ocsp", b"", 404),
        ("GET", "/ocsp/???", b"", 404),
        ("GET", "/ocsp/" + "A" * 5000, b"", 413),
        ("POST", "/ocsp", b"x" * 5000, 413),
        ("POST", "/ocsp", b"nonsense", 200),  # answered: malformedRequest, as RFC 6960 wants it
    ],
)
def test_misuse(desk, method, path, body, status):
    assert desk.ask(method, path, body)[0] == status
