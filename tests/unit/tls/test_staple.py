"""OCSP stapling on both ends: what a server sends, what a client takes."""

import datetime
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.testing.certificates import DAY, Authority, MemorySigner
from tidegate.tls.context import client_context, server_context
from tidegate.tls.errors import StapleMissing
from tidegate.tls.failures import last_failure
from tidegate.tls.selfcheck import require_platform, shake_hands
from tidegate.tls.staple import OcspRule, StapleCheck, Stapler

HOUR = DAY / 24
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


class Raw:
    """A server that staples whatever it was given, as an attacker would."""

    def __init__(self, answer):
        self.answer = answer

    def current(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Clock:
    def __init__(self, now_s):
        self.now = now_s

    def now_s(self):
        return self.now

    def monotonic_s(self):
        return self.now


@pytest.fixture
def server_of(world):
    """Return a function from an answer to a server's context that staples it."""

    def make(answer):
        return server_context(*world.identity(), clients=None, stapler=Raw(answer))

    return make


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize("rule", list(OcspRule), ids=lambda one: one.value)
def test_a_good_answer_is_taken(world, server_of, rule, version) -> None:
    certificate = world.identity()[1][0]
    client = client_context(anchors=[world.ca.der], ocsp=rule)
    client.maximum_version = version
    for _ in range(3):
        shake_hands(server_of(world.ca.answer(certificate)), client, "localhost")
    assert last_failure(client) is None


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize("rule", list(OcspRule), ids=lambda one: one.value)
@pytest.mark.parametrize(
    ("attack", "code"),
    [
        ("revoked", "pki.certificate.revoked"),
        ("forged", "pki.ocsp.forged"),
        ("another CA's", "pki.ocsp.responder"),
        ("another certificate's", "pki.ocsp.other"),
        ("stale", "pki.ocsp.stale"),
        ("from the future", "pki.ocsp.stale"),
        ("junk", "pki.ocsp.malformed"),
    ],
)
def test_bad_answers_are_refused_under_every_rule(world, server_of, rule, attack, code, version) -> None:
    certificate = world.identity()[1][0]
    good = world.ca.answer(certificate)
    flipped = bytearray(good)
    flipped[-40] ^= 1  # within the signature
    answer = {
        "revoked": lambda: world.ca.answer(certificate, revoked=True),
        "forged": lambda: bytes(flipped),
        "another CA's": lambda: Authority().answer(certificate),
        "another certificate's": lambda: world.ca.answer(world.certificates[SignatureAlgorithm.ED25519]),
        "stale": lambda: world.ca.answer(certificate, span=(-3 * DAY, -DAY)),
        "from the future": lambda: world.ca.answer(certificate, span=(DAY, 2 * DAY)),
        "junk": lambda: b"junk",
    }[attack]()
    client = client_context(anchors=[world.ca.der], ocsp=rule)
    client.maximum_version = version
    with pytest.raises(ssl.SSLError) as caught:
        shake_hands(server_of(answer), client, "localhost")
    assert caught.value.reason == "INVALID_STATUS_RESPONSE"
    failure = last_failure(client)
    assert isinstance(failure, TidegateError)
    assert failure.code == code


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize("answer", [None, b"", RuntimeError("the responder is away")], ids=["none", "empty", "failing"])
def test_no_answer_is_for_the_rule_to_judge(world, server_of, answer, version) -> None:
    for rule, taken in ((OcspRule.IF_PRESENT, True), (OcspRule.REQUIRE, False)):
        client = client_context(anchors=[world.ca.der], ocsp=rule)
        client.maximum_version = version
        if taken:
            shake_hands(server_of(answer), client, "localhost")
            continue
        with pytest.raises(ssl.SSLError):
            shake_hands(server_of(answer), client, "localhost")
        assert last_failure(client).code == "tls.staple.missing"


def test_an_anchor_that_serves_itself_has_nobody_to_vouch_for_it(world) -> None:
    with pytest.raises(StapleMissing):
        StapleCheck(OcspRule.IF_PRESENT).judge(b"answer", [world.ca.der])


def test_a_stapler_renews_in_time_and_never_sends_a_stale_answer(world) -> None:
    certificate = world.identity()[1][0]
    fetched = []

    def fetch():
        fetched.append(world.ca.answer(certificate, span=(-HOUR, HOUR)))
        return fetched[-1]

    stapler = Stapler(fetch, [certificate, world.ca.der])
    clock = stapler._clock = Clock(stapler._clock.now_s())
    start = clock.now
    assert stapler.current() == fetched[0]
    clock.now = start + 0.4 * HOUR.total_seconds()
    assert stapler.current() == fetched[0]
    assert len(fetched) == 1
    clock.now = start + 0.6 * HOUR.total_seconds()
    assert stapler.current() == fetched[1]
    assert len(fetched) == 2


@pytest.mark.parametrize("away", [StapleMissing, ConnectionRefusedError, TimeoutError])
def test_a_stapler_whose_responder_is_away(world, away) -> None:
    certificate = world.identity()[1][0]
    asked = []
    answers = [world.ca.answer(certificate, span=(-HOUR, HOUR))]

    def fetch():
        asked.append(1)
        if answers:
            return answers.pop()
        raise away("away")

    stapler = Stapler(fetch, [certificate, world.ca.der])
    clock = stapler._clock = Clock(stapler._clock.now_s())
    start = clock.now
    clock.now = start + 0.6 * HOUR.total_seconds()
    assert stapler.current() is not None
    assert stapler.current() is not None
    assert len(asked) == 2  # the failed attempt is not repeated by every handshake
    assert type(stapler.last_error) is away
    clock.now = start + 0.8 * HOUR.total_seconds()
    assert stapler.current() is not None
    assert len(asked) == 3
    clock.now = start + 1.1 * HOUR.total_seconds()
    assert stapler.current() is None  # what has expired is not sent, whatever comes of it


@pytest.mark.parametrize("attack", ["revoked", "another certificate's", "junk"])
def test_a_server_does_not_start_with_a_bad_answer(world, attack) -> None:
    certificate = world.identity()[1][0]
    answer = {
        "revoked": lambda: world.ca.answer(certificate, revoked=True),
        "another certificate's": lambda: world.ca.answer(world.certificates[SignatureAlgorithm.ED25519]),
        "junk": lambda: b"junk",
    }[attack]()
    with pytest.raises(TidegateError) as caught:
        Stapler(lambda: answer, [certificate, world.ca.der])
    assert caught.value.code.startswith("pki.")


def test_a_stapler_needs_the_issuer(world) -> None:
    for chain in ([], [world.identity()[1][0]], [b"junk", world.ca.der]):
        with pytest.raises(TidegateError) as caught:
            Stapler(lambda: b"", chain)
        assert caught.value.code == "tls.chain.malformed"


def test_staples_live_end_to_end(world) -> None:
    """The real source at one end, the real check at the other, the CA revoking in between."""
    signer = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    certificate = world.ca.issue(signer.public_key)
    answers = [world.ca.answer(certificate)]
    stapler = Stapler(lambda: answers[-1], [certificate, world.ca.der])
    server = server_context(signer, [certificate], clients=None, stapler=stapler)
    client = client_context(anchors=[world.ca.der], ocsp=OcspRule.REQUIRE)
    shake_hands(server, client, "localhost")
    answers.append(world.ca.answer(certificate, revoked=True))
    with pytest.raises(TidegateError) as caught:
        stapler.refresh()
    assert caught.value.code == "pki.certificate.revoked"


def test_attachments_go_with_their_contexts(world, server_of) -> None:
    hooks = require_platform().hooks
    before = hooks.live()
    server = server_of(None)
    assert hooks.live() == before + 1
    del server
    assert hooks.live() == before


def test_a_certificate_that_promises_an_answer_is_held_to_it(world) -> None:
    """RFC 7633: whoever stole the key cannot hide a revocation by sending nothing."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
    start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + datetime.timedelta(days=1))
    plain = builder.sign(key, hashes.SHA256())
    promising = builder.add_extension(x509.TLSFeature([x509.TLSFeatureType.status_request]), critical=False)
    check = StapleCheck(OcspRule.IF_PRESENT)
    check.judge(None, [plain.public_bytes(Encoding.DER), world.ca.der])
    with pytest.raises(StapleMissing):
        check.judge(None, [promising.sign(key, hashes.SHA256()).public_bytes(Encoding.DER), world.ca.der])


def test_a_clock_floor_judges_the_answer(world, server_of) -> None:
    """A device whose clock was set back has a clock floor: an old answer is stale by it."""
    certificate = world.identity()[1][0]
    answer = world.ca.answer(certificate, span=(-HOUR, HOUR))
    with pytest.raises(ssl.SSLError):
        client = client_context(anchors=[world.ca.der], at_s=time.time() + 2 * HOUR.total_seconds())
        shake_hands(server_of(answer), client, "localhost")
    assert last_failure(client).code == "pki.ocsp.stale"
    shake_hands(server_of(answer), client_context(anchors=[world.ca.der]), "localhost")
