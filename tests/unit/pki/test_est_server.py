"""EST over HTTP: each refusal has its status and its code, and reaches the report; the registrar is a stub here."""

import asyncio
import base64
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tidegate.base.clock import SystemClock
from tidegate.base.errors import Misuse
from tidegate.pki import est
from tidegate.pki.errors import EstIdentityMismatch, EstPending, EstUnavailable, KeyUnsupported
from tidegate.pki.est_server import MAX_WAITING, EstServer
from tidegate.pki.rate import MAX_NAMES, Rate, RateLimit

BASE = "/.well-known/est"
TYPE = (b"content-type", b"application/pkcs10")


def basic(value):
    return (b"authorization", value)


class NobodyOverTls:
    chain = ()
    binding = b"binding"


def certificate():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "one")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return x509.CertificateBuilder(name, name, key.public_key(), 7, now, now + datetime.timedelta(1)).sign(
        key, hashes.SHA256()
    )


class Stub:
    """Keeps what it was asked; answers with one certificate or raises ``error``."""

    def __init__(self):
        self.asked, self.error, self.one = [], None, certificate()

    def authorities(self):
        return [self.one]

    def wanted(self):
        return est.CsrAttributes()

    def enrol(self, application):
        self.asked.append(application)
        if self.error:
            raise self.error
        return self.one


class Desk:
    """An ``EstServer`` and a way to ask it."""

    def __init__(self, **options):
        self.stub, self.reports = Stub(), []
        self.server = EstServer(self.stub, clock=SystemClock(), report=self.reports.append, **options)

    def ask(self, method, path, headers=(), body=b"", **scope):
        return asyncio.run(self.asked(method, path, headers, body, **scope))

    async def asked(self, method, path, headers=(), body=b"", **scope):
        pieces = [body[at : at + 10_000] for at in range(0, max(1, len(body)), 10_000)]
        sent = []

        async def receive():
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        async def send(message):
            sent.append(message)

        full = {"type": "http", "method": method, "path": path, "headers": list(headers), "client": ("192.0.2.1", 9)}
        full["extensions"] = {"tls": NobodyOverTls}
        await self.server(full | scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.fixture
def desk():
    desk = Desk(labels=frozenset({"", "line-2"}))
    yield desk
    desk.server.close()


def test_certificates_of_the_authority(desk):
    status, headers, body = desk.ask("GET", BASE + "/cacerts")
    assert status == 200
    assert headers[b"content-type"] == b"application/pkcs7-mime; smime-type=certs-only"
    assert headers[b"content-transfer-encoding"] == b"base64"
    assert len(est.parse_certificates(base64.b64decode(body))) == 1


def test_attributes_and_labels(desk):
    for path in ("/csrattrs", "/line-2/csrattrs"):
        status, _, body = desk.ask("GET", BASE + path)
        assert status == 200
        assert est.parse_csr_attributes(base64.b64decode(body)) == est.CsrAttributes()


def test_mounted_below_a_root_path(desk):
    assert desk.ask("GET", "/manager" + BASE + "/cacerts", root_path="/manager")[0] == 200


def test_what_the_registrar_is_told(desk):
    headers = [TYPE, (b"authorization", b"Basic " + base64.b64encode(b"SN-1:tok:en"))]
    status, _, _ = desk.ask("POST", BASE + "/line-2/simpleenroll", headers, base64.encodebytes(b"request"))
    assert status == 200
    (asked,) = desk.stub.asked
    assert (asked.label, asked.request, asked.renew, asked.chain, asked.binding) == (
        "line-2",
        b"request",
        False,
        (),
        b"binding",
    )
    user, token = asked.token
    assert (user, bytes(token.view())) == ("SN-1", b"tok:en")
    assert asked.address == "192.0.2.1"
    desk.ask("POST", BASE + "/simplereenroll", [TYPE], base64.encodebytes(b"request"))
    assert desk.stub.asked[1].renew


@pytest.mark.parametrize(
    ("code", "status", "method", "path", "headers", "body"),
    [
        ("pki.est.operation-unknown", 404, "GET", BASE + "/nothing", [], b""),
        ("pki.est.operation-unknown", 404, "GET", BASE + "/line-9/cacerts", [], b""),
        ("pki.est.operation-refused", 501, "POST", BASE + "/serverkeygen", [TYPE], b"AAAA"),
        ("pki.est.operation-refused", 501, "POST", BASE + "/fullcmc", [TYPE], b"AAAA"),
        ("pki.est.method", 405, "POST", BASE + "/cacerts", [TYPE], b""),
        ("pki.est.method", 405, "GET", BASE + "/simpleenroll", [], b""),
        ("pki.est.content-type", 415, "POST", BASE + "/simpleenroll", [], b"AAAA"),
        ("pki.est.content-type", 415, "POST", BASE + "/simpleenroll", [(b"content-type", b"text/html")], b"AAAA"),
        ("pki.est.too-large", 413, "POST", BASE + "/simpleenroll", [TYPE], b"A" * 40_000),
        ("pki.est.too-large", 413, "POST", BASE + "/simpleenroll", [TYPE, (b"content-length", b"9" * 30)], b"AAAA"),
        ("pki.est.too-large", 413, "POST", BASE + "/simpleenroll", [TYPE, (b"content-length", b"-1")], b"AAAA"),
        ("pki.est.body-malformed", 400, "POST", BASE + "/simpleenroll", [TYPE], b"!!!!"),
        ("pki.est.body-malformed", 400, "POST", BASE + "/simpleenroll", [TYPE, TYPE], b"AAAA"),
        ("pki.est.unauthenticated", 401, "POST", BASE + "/simpleenroll", [TYPE, basic(b"Digest x")], b"AAAA"),
        ("pki.est.unauthenticated", 401, "POST", BASE + "/simpleenroll", [TYPE, basic(b"Basic ???")], b"AAAA"),
        ("pki.est.unauthenticated", 401, "POST", BASE + "/simpleenroll", [TYPE, basic(b"Basic QQ==")], b"AAAA"),
    ],
)  # fmt: skip
def test_refusals(desk, code, status, method, path, headers, body):
    found, answer, word = desk.ask(method, path, headers, body)
    assert (found, [report.code for report in desk.reports]) == (status, [code])
    assert len(word.split()) == 1
    if status == 401:
        assert answer[b"www-authenticate"].startswith(b"Basic ")
    if status == 405:
        assert answer[b"allow"] in (b"GET", b"POST")


def test_plain_http_is_no_place_for_tokens(desk):
    headers = [TYPE, basic(b"Basic " + base64.b64encode(b"SN-1:token"))]
    assert desk.ask("POST", BASE + "/simpleenroll", headers, b"AAAA", extensions={})[0] == 401
    assert desk.stub.asked == []
    assert desk.reports[0].code == "pki.est.unauthenticated"


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (EstIdentityMismatch("another's"), 403, None),
        (EstPending("a person decides", retry_after_s=600), 202, b"600"),
        (EstUnavailable("the store is away"), 503, b"10"),
        (KeyUnsupported("not such a key"), 500, None),
    ],
)
def test_what_the_registrar_refuses(desk, error, status, retry):
    desk.stub.error = error
    found, headers, _ = desk.ask("POST", BASE + "/simpleenroll", [TYPE], b"AAAA")
    assert (found, headers.get(b"retry-after")) == (status, retry)
    assert desk.reports[0].code == error.code
    assert isinstance(error, Misuse) == (status == 500)


def test_one_address_cannot_have_it_all():
    desk = Desk(rate=Rate(burst=3, per_minute=1))
    statuses = [desk.ask("GET", BASE + "/cacerts")[0] for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    assert desk.ask("GET", BASE + "/cacerts", client=("192.0.2.2", 9))[0] == 200
    assert desk.reports[0].code == "pki.est.rate"
    desk.server.close()


def test_a_full_queue_turns_requests_away():
    desk = Desk(rate=Rate(burst=10_000, per_minute=1))

    async def flood():
        return await asyncio.gather(*(desk.asked("GET", BASE + "/cacerts") for _ in range(MAX_WAITING + 50)))

    statuses = [answer[0] for answer in asyncio.run(flood())]
    assert statuses.count(200) == MAX_WAITING
    assert statuses.count(429) == 50
    desk.server.close()


def test_buckets_fill_again_and_stay_few():
    limit = RateLimit(Rate(burst=2, per_minute=60))
    assert [limit.take("a", 0.0) for _ in range(3)] == [0, 0, 2]
    assert limit.take("a", 1.5) == 0
    for number in range(MAX_NAMES + 10):
        limit.take(str(number), 2.0)
    assert len(limit._buckets) == MAX_NAMES
