"""Requests, chains, lists, answers with bytes changed, cut, moved: accepted or ``Rejected``, never anything else."""

import contextlib
import datetime
import secrets

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.ca_store import Issued, Reason
from tidegate.pki.crl import CrlPlan, encode_crl
from tidegate.pki.ocsp import Responder, answer_question
from tidegate.pki.path import PathRule, Purpose, verify_chain
from tidegate.pki.profiles import PROFILES, Order, Subject, draw_serial, sign_certificate
from tidegate.pki.requests import Wish, encode_request, verify_request
from tidegate.pki.revocation import encode_ocsp_request, verify_crl, verify_ocsp
from tidegate.pki.rollover import make_rollover, verify_new_root
from tidegate.testing.certificates import MemorySigner

pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
SETTINGS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)
KEY, DEVICE_KEY, NEW_KEY = (MemorySigner(SignatureAlgorithm.ECDSA_P256) for _ in range(3))


def sign(profile, subject, key, above=None):
    order = Order(
        profile=PROFILES[profile],
        subject=subject,
        public_key=key.public_key,
        now=NOW,
        serial=draw_serial(secrets.token_bytes(20)),
    )
    return sign_certificate(order, above, KEY)


def der(one):
    return one.public_bytes(Encoding.DER)


ROOT = sign("root-ca", Subject(common_name="Root"), KEY)
NAMES = (x509.DNSName("a.example"),)
DEVICE = sign("ldevid", Subject(serial_number="SN-1", names=NAMES), DEVICE_KEY, ROOT)
RECORD = Issued(
    serial=DEVICE.serial_number,
    profile="ldevid",
    subject="",
    device="SN-1",
    issued_s=0,
    expires_s=0,
    der=der(DEVICE),
    revoked_s=int(NOW.timestamp()),
    reason=Reason.SUPERSEDED,
)
RESPONDER = Responder(issuer=ROOT, certificate=ROOT, signer=KEY)
REQUEST = encode_request(DEVICE_KEY, Wish(serial_number="SN-1", names=NAMES), challenge_password=b"x" * 44)
CRL = encode_crl(CrlPlan(number=1, now=NOW, lifetime=datetime.timedelta(days=1)), [RECORD], ROOT, KEY)
QUESTION = encode_ocsp_request(DEVICE, ROOT, b"n" * 16)
ANSWER = answer_question(QUESTION, RESPONDER, lambda _: RECORD, NOW)
ROLLOVER = make_rollover(ROOT, KEY, NEW_KEY, now=NOW, serials=[1, 2, 3])
RULE = PathRule(anchors=[der(ROOT)], now=NOW, purpose=Purpose.CLIENT)


@st.composite
def damaged(draw, raw):
    """Change, cut, repeat and insert a few pieces of ``raw``."""
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("change", "cut", "insert", "repeat", "remove")))
        if kind == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=8))
        elif kind == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
        else:
            del data[at : at + draw(st.integers(1, 8))]
    return bytes(data)


@SETTINGS
@given(damaged(REQUEST))
def test_requests(raw):
    with contextlib.suppress(Rejected):
        assert verify_request(raw).public_key == DEVICE_KEY.public_key


@SETTINGS
@given(damaged(der(DEVICE)))
def test_certificates(raw):
    with contextlib.suppress(Rejected):
        assert verify_chain([raw], RULE).certificate.tbs_certificate_bytes == DEVICE.tbs_certificate_bytes


@SETTINGS
@given(damaged(CRL))
def test_lists(raw):
    with contextlib.suppress(Rejected):
        assert DEVICE.serial_number in verify_crl(raw, issuer=ROOT, now=NOW).revoked


@SETTINGS
@given(damaged(ANSWER))
def test_answers(raw):
    with pytest.raises(Rejected):  # the certificate is revoked, whatever becomes of the answer
        verify_ocsp(raw, certificate=DEVICE, issuer=ROOT, now=NOW)


@SETTINGS
@given(damaged(QUESTION))
def test_questions(raw):
    assert ocsp.load_der_ocsp_response(answer_question(raw, RESPONDER, lambda _: RECORD, NOW))


@SETTINGS
@given(damaged(der(ROLLOVER.new_with_old)))
def test_cross_certificates(raw):
    with contextlib.suppress(Rejected):
        anchor = verify_new_root(der(ROLLOVER.new_root), raw, anchors=[der(ROOT)], now=NOW)
        assert anchor.certificate == ROLLOVER.new_root
