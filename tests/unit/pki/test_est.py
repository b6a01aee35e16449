"""EST on the wire: what is read, what is refused."""

import base64
import datetime

import pytest
from asn1crypto import cms, core
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from tidegate.base.errors import Rejected
from tidegate.pki import est

NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)


KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "middle", "leaf", "middle again")}


def make(name, issuer=None, *, key=None):
    key = KEYS[key or name]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    above = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer or name)])
    builder = x509.CertificateBuilder(above, subject, key.public_key(), 7, NOW, NOW + datetime.timedelta(1))
    return builder.sign(KEYS[issuer or name], hashes.SHA256())


@pytest.fixture(scope="module")
def certificates():
    return [make("root"), make("middle", "root"), make("leaf", "middle")]


def refused(code, call, *arguments, **options):
    with pytest.raises(Rejected) as caught:
        call(*arguments, **options)
    assert caught.value.code == code


def test_certificates_round_trip_and_strict_parse(certificates):
    raw = est.encode_certificates(certificates)
    found = est.parse_certificates(raw)
    assert set(found) == {one.public_bytes(Encoding.DER) for one in certificates}
    message = cms.ContentInfo.load(raw, strict=True)
    assert len(message["content"]["certificates"]) == 3
    assert not message["content"]["signer_infos"]


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw + b"\0",
        lambda raw: raw[:-1],
        lambda raw: raw[:1] + b"\x80" + raw[2:] + b"\0\0",
        lambda raw: b"",
        lambda raw: b"\x30",
        lambda raw: raw.replace(bytes.fromhex("2a864886f70d010702"), bytes.fromhex("2a864886f70d010703")),
        lambda raw: raw.replace(bytes.fromhex("020101"), bytes.fromhex("020103"), 1),
        lambda raw: b"\x1f" + raw[1:],
    ],
    ids=["behind", "cut", "indefinite", "empty", "lone", "enveloped", "version", "long-tag"],
)
def test_broken_messages(certificates, change):
    refused("pki.est.body-malformed", est.parse_certificates, change(est.encode_certificates(certificates[:1])))


def test_signed_and_empty_messages_are_refused(certificates):
    message = cms.ContentInfo.load(est.encode_certificates(certificates))
    carried = cms.ContentInfo({"content_type": "data", "content": b"payload"})
    message["content"]["encap_content_info"] = carried
    refused("pki.est.body-malformed", est.parse_certificates, message.dump(force=True))
    many = est.encode_certificates([certificates[0]] * (est.MAX_CERTIFICATES + 1))
    refused("pki.est.body-malformed", est.parse_certificates, many)


@given(st.binary(max_size=300))
def test_noise_is_refused_with_a_code(noise):
    for parse in (est.parse_certificates, est.parse_csr_attributes):
        try:
            parse(noise)
        except Rejected as error:
            assert error.code == "pki.est.body-malformed"


def test_base64_as_the_field_sends_it():
    raw = bytes(range(200))
    plain = base64.b64encode(raw)
    for form in (plain, est.encode_body(raw), plain[:7] + b" \t\r\n" + plain[7:] + b"\r\n"):
        assert est.decode_body(form, limit_bytes=1000) == raw


@pytest.mark.parametrize(
    "body",
    [b"", b"\r\n", b"AAA", b"AA-_", b"AAAA=", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA", b"AAAA\xff", b"=AAA"],
)
def test_broken_base64(body):
    refused("pki.est.body-malformed", est.decode_body, body, limit_bytes=1000)


def test_too_large():
    refused("pki.est.too-large", est.decode_body, b"A" * 1001, limit_bytes=1000)


def test_csr_attributes_round_trip():
    wanted = est.CsrAttributes(challenge_password=True, algorithms=("ecdsa-p256", "ecdsa-p384"))
    raw = est.encode_csr_attributes(wanted)
    assert est.parse_csr_attributes(raw) == wanted
    assert core.Sequence.load(raw, strict=True).contents
    none = est.CsrAttributes(challenge_password=False, algorithms=())
    assert est.parse_csr_attributes(est.encode_csr_attributes(none)) == none


def test_csr_attributes_of_the_rfc():
    """The example of RFC 7030 §4.5.2: challengePassword, an extension request, P-384, SHA-384."""
    raw = base64.b64decode(
        "MEEGCSqGSIb3DQEJBzASBgcqhkjOPQIBMQcGBSuBBAAiMBYGCSqGSIb3DQEJDjEJBgcrBgEBAQEWBggqhkjOPQQDAw=="
    )
    assert est.parse_csr_attributes(raw) == est.CsrAttributes(challenge_password=True, algorithms=("ecdsa-p384",))


def test_paths():
    assert est.parse_path("/.well-known/est/cacerts") == ("", est.Operation.CACERTS)
    assert est.parse_path("/.well-known/est/line-2/simpleenroll") == ("line-2", est.Operation.SIMPLE_ENROLL)
    for operation in est.Operation:
        for label in ("", "line-2"):
            assert est.parse_path(est.encode_path(operation, label)) == (label, operation)


@pytest.mark.parametrize(
    "path",
    ["/", "/.well-known/est", "/.well-known/est/", "/.well-known/est/x", "/.well-known/est/a/b/cacerts",
     "/.well-known/est//cacerts", "/.well-known/est/" + "a" * 65 + "/cacerts", "/.well-known/est/\n/cacerts"],
)  # fmt: skip
def test_unknown_paths(path):
    refused("pki.est.operation-unknown", est.parse_path, path)


def test_content_types():
    est.check_content_type("application/pkcs7-mime", est.CERTS_ONLY)
    est.check_content_type("Application/PKCS7-MIME; smime-type=certs-only", est.CERTS_ONLY)
    for wrong in (None, "", "text/html", "application/pkcs7"):
        refused("pki.est.content-type", est.check_content_type, wrong, est.CERTS_ONLY)


def test_chain_is_ordered_by_issuer(certificates):
    root, middle, leaf = certificates
    assert est.order_chain(leaf, [root, middle]) == (leaf, middle)
    assert est.order_chain(leaf, []) == (leaf,)


def test_chain_has_the_key_that_signed(certificates):
    """A CA with a new key keeps its name; the order of a SET says nothing about which of both is meant."""
    root, middle, leaf = certificates
    again = make("middle", "root", key="middle again")
    assert (
        est.order_chain(leaf, [again, middle, root]) == est.order_chain(leaf, [middle, again, root]) == (leaf, middle)
    )
