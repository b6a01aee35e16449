"""The device's half of EST against servers that answer wrongly; it believes none of them."""

import base64
import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import Secret
from tidegate.pki import est
from tidegate.pki.est_client import EstClient, Token, require_answer
from tidegate.tls.https import HttpAnswer

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def name(*serials):
    return x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, one) for one in serials])


def certificate(key=KEY, serial="SN-1"):
    builder = x509.CertificateBuilder(name("ca"), name(serial), key.public_key(), 7, NOW, NOW + datetime.timedelta(1))
    return builder.sign(OTHER, hashes.SHA256())


def request(serial="SN-1"):
    return x509.CertificateSigningRequestBuilder().subject_name(name(serial)).sign(KEY, hashes.SHA256())


class Canned:
    """A connection that answers what it was told to, and keeps what it was asked."""

    def __init__(self, status, body=b"", **headers):
        self.answer = HttpAnswer(status=status, headers=headers, body=body)
        self.asked = []

    def binding(self):
        return b"\1\2\3"

    def request(self, method, path, *, headers, body=b"", limit_bytes):
        self.asked.append((method, path, headers, body))
        return self.answer


def good(*certificates, **headers):
    body = est.encode_body(est.encode_certificates(certificates))
    return Canned(200, body, **{"content-type": est.CERTS_ONLY} | headers)


def refused(code, call, *arguments, **options):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code
    return caught.value


def test_enrolment_with_a_token():
    transport = good(certificate(), date="Thu, 01 Jan 2026 00:00:10 GMT")
    client = EstClient(transport, label="line-2")
    found = client.enrol(b"request", renew=False, token=Token(device="SN-1", secret=Secret(b"tok:en")))
    assert found == certificate() or found.public_key() == KEY.public_key()
    ((method, path, headers, body),) = transport.asked
    assert (method, path) == ("POST", "/.well-known/est/line-2/simpleenroll")
    assert headers["Content-Type"] == "application/pkcs10"
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"SN-1:tok:en"
    assert base64.b64decode(body) == b"request"
    assert client.server_time_s == NOW.timestamp() + 10
    assert client.binding() == b"AQID"


def test_renewal_has_no_token():
    transport = good(certificate())
    EstClient(transport).enrol(b"request", renew=True)
    assert transport.asked[0][1].endswith("/simplereenroll")
    assert "Authorization" not in transport.asked[0][2]


@pytest.mark.parametrize(
    ("transport", "code"),
    [
        (Canned(401, b"unauthenticated\n"), "pki.est.refused"),
        (Canned(403, b"\xff\x1b[2J"), "pki.est.refused"),
        (Canned(404), "pki.est.refused"),
        (Canned(501), "pki.est.refused"),
        (Canned(302, location="https://elsewhere.example/"), "pki.est.unavailable"),
        (Canned(503), "pki.est.unavailable"),
        (Canned(200, b"AAAA", **{"content-type": "text/html"}), "pki.est.content-type"),
        (Canned(200, b"!", **{"content-type": est.CERTS_ONLY}), "pki.est.body-malformed"),
        (Canned(200, b"MAA=", **{"content-type": est.CERTS_ONLY}), "pki.est.body-malformed"),
        (good(certificate(), certificate(serial="SN-2")), "pki.est.answer"),
    ],
)
def test_answers_that_are_none(transport, code):
    error = refused(code, EstClient(transport).enrol, b"request", renew=False)
    assert error.message.isprintable()


@pytest.mark.parametrize(
    ("status", "after", "code", "wait"),
    [(202, "600", "pki.est.pending", 600), (429, "7", "pki.est.rate", 7), (503, "5", "pki.est.unavailable", 5),
     (202, "Fri, 31 Dec 2027", "pki.est.pending", 0), (202, "9" * 40, "pki.est.pending", 0)],
)  # fmt: skip
def test_when_to_come_again(status, after, code, wait):
    error = refused(code, EstClient(Canned(status, **{"retry-after": after})).enrol, b"request", renew=False)
    assert error.fields["retry_after_s"] == wait


def test_certificate_in_the_message_that_is_none():
    raw = est.encode_certificates([certificate()])
    inside = certificate().public_bytes(Encoding.DER)
    body = est.encode_body(raw.replace(inside[8:40], bytes(32)))
    refused("pki.est.body-malformed", EstClient(Canned(200, body, **{"content-type": est.CERTS_ONLY})).authorities)


def test_certificate_with_a_name_that_is_no_text():
    raw = est.encode_certificates([certificate(serial="zzzz")]).replace(b"zzzz", b"\xff\xff\xff\xff")
    canned = Canned(200, est.encode_body(raw), **{"content-type": est.CERTS_ONLY})
    refused("pki.est.body-malformed", EstClient(canned).authorities)


def test_attributes_that_are_not_said():
    for status in (204, 404):
        assert not EstClient(Canned(status)).wanted().challenge_password
    body = est.encode_body(est.encode_csr_attributes(est.CsrAttributes()))
    assert EstClient(Canned(200, body, **{"content-type": est.CSR_ATTRIBUTES})).wanted().challenge_password


def test_another_key_or_name_is_no_answer():
    require_answer(certificate(), request())
    refused("pki.est.answer", require_answer, certificate(OTHER), request())
    refused("pki.est.answer", require_answer, certificate(serial="SN-2"), request())


def test_a_key_that_nobody_reads_is_no_answer():
    raw = certificate().public_bytes(Encoding.DER)
    strange = x509.load_der_x509_certificate(
        raw.replace(b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x71")
    )
    refused("pki.est.answer", require_answer, strange, request())
