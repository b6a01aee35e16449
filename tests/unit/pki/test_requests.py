"""Certification requests: proof of possession, allowed keys, names that stay wishes."""

import ipaddress

import pytest
from asn1crypto import csr as strict
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from tidegate.base.errors import Rejected
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.requests import MAX_REQUEST_BYTES, VerifiedRequest, Wish, encode_request, verify_request
from tidegate.testing.certificates import MemorySigner

NAMES = (x509.DNSName("gw.example.org"), x509.IPAddress(ipaddress.ip_address("10.0.0.1")))
WISH = Wish(common_name="gateway", serial_number="SN-1", names=NAMES)


def build(key, digest, *, subject=(), extensions=()):
    """Make a request as somebody else's tool would."""
    name = x509.Name([x509.NameAttribute(kind, text) for kind, text in subject])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(key, digest).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    "algorithm",
    [
        SignatureAlgorithm.ECDSA_P256,
        SignatureAlgorithm.ECDSA_P384,
        SignatureAlgorithm.ED25519,
        SignatureAlgorithm.RSA_PSS,
    ],
)
def test_round_trip(algorithm):
    signer = MemorySigner(algorithm)
    raw = encode_request(signer, WISH, challenge_password=b"binding")
    request = verify_request(raw)
    assert (request.common_name, request.serial_number, request.names) == ("gateway", "SN-1", NAMES)
    assert (request.public_key, request.challenge_password) == (signer.public_key, b"binding")
    assert strict.CertificationRequest.load(raw, strict=True).dump() == raw


def test_only_the_verifier_makes_one():
    with pytest.raises(TypeError):
        VerifiedRequest(b"", x509.Name([]), "", "", (), None, None, None)


def test_the_key_has_to_have_signed(code_of):
    """A copied public key is no key: the signature is another one's."""
    victim = strict.CertificationRequest.load(encode_request(MemorySigner(SignatureAlgorithm.ECDSA_P256), WISH))
    thief = strict.CertificationRequest.load(encode_request(MemorySigner(SignatureAlgorithm.ECDSA_P256), WISH))
    victim["signature"] = thief["signature"].native
    assert code_of(verify_request, victim.dump(force=True)) == "pki.request.forged"


@pytest.mark.parametrize(
    ("key", "digest"),
    [
        (rsa.generate_private_key(65_537, 2048), hashes.SHA256()),
        (rsa.generate_private_key(3, 3072), hashes.SHA256()),
        (ec.generate_private_key(ec.SECP521R1()), hashes.SHA512()),
        (mldsa.MLDSA65PrivateKey.generate(), None),
    ],
)
def test_keys_that_are_not_allowed(code_of, key, digest):
    assert code_of(verify_request, build(key, digest)) == "pki.key.not-allowed"


def test_sha1(code_of):
    key = ec.generate_private_key(ec.SECP256R1())
    request = strict.CertificationRequest.load(build(key, hashes.SHA256()))
    body = request["certification_request_info"].dump()
    request["signature_algorithm"] = {"algorithm": "sha1_ecdsa"}
    request["signature"] = key.sign(body, ec.ECDSA(hashes.SHA1()))  # noqa: S303  # to be refused
    assert code_of(verify_request, request.dump(force=True)) == "pki.key.not-allowed"


def test_a_name_twice_in_the_subject(code_of):
    """Whose serial number counts? Neither."""
    key = ed25519.Ed25519PrivateKey.generate()
    raw = build(key, None, subject=[(NameOID.SERIAL_NUMBER, "SN-1"), (NameOID.SERIAL_NUMBER, "SN-2")])
    assert code_of(verify_request, raw) == "pki.request.malformed"


def test_too_many_names(code_of):
    raw = encode_request(
        MemorySigner(SignatureAlgorithm.ED25519), Wish(names=tuple(x509.DNSName(f"h{n}.example") for n in range(65)))
    )
    assert code_of(verify_request, raw) == "pki.request.malformed"


@pytest.mark.parametrize("raw", [b"", b"x" * 100, b"0" * (MAX_REQUEST_BYTES + 1)])
def test_what_is_no_request(code_of, raw):
    assert code_of(verify_request, raw) == "pki.request.malformed"


def test_something_behind_the_end(code_of):
    raw = encode_request(MemorySigner(SignatureAlgorithm.ED25519), WISH)
    assert code_of(verify_request, raw + b"\0") == "pki.request.malformed"


def test_every_changed_byte_is_refused():
    raw = encode_request(MemorySigner(SignatureAlgorithm.ECDSA_P256), WISH, challenge_password=b"x" * 40)
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 0x41
        with pytest.raises(Rejected):
            verify_request(bytes(changed))


def test_what_a_request_asks_for_is_not_what_it_gets(bench):
    """CA rights, uses, policies: none of it reaches the certificate; only names that the profile allows do."""
    from tidegate.pki.profiles import PROFILES

    everything = x509.KeyUsage(*[True] * 7, False, False)
    raw = build(
        bench.device_key.key,
        hashes.SHA256(),
        subject=[(NameOID.SERIAL_NUMBER, "SN-1"), (NameOID.ORGANIZATION_NAME, "Another")],
        extensions=[
            (x509.BasicConstraints(ca=True, path_length=9), True),
            (everything, True),
            (x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False),
            (x509.SubjectAlternativeName(NAMES), False),
            (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0"), True),
        ],
    )
    request = verify_request(raw)
    certificate = bench.authority.issue(bench.authority.grant(PROFILES["ldevid"], request))
    extensions = certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value) == list(NAMES)
    uses = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert x509.oid.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in uses
    assert "1.2.3.4" not in {one.oid.dotted_string for one in extensions}
    assert certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "Owner"


@pytest.mark.parametrize(
    ("profile", "name"),
    [
        ("idevid", x509.DNSName("a.example")),
        ("operator", x509.DNSName("a.example")),
        ("ldevid", x509.RFC822Name("a@a.example")),
        ("ldevid", x509.DNSName("*.example.org")),
        ("ldevid", x509.DirectoryName(x509.Name([]))),
        ("code-signing", x509.UniformResourceIdentifier("https://a.example")),
    ],
)
def test_names_that_a_profile_does_not_take(bench, code_of, profile, name):
    from tidegate.pki.profiles import PROFILES

    request = verify_request(encode_request(bench.device_key, Wish(serial_number="SN-1", names=(name,))))
    grant = bench.authority.grant(PROFILES[profile], request)
    assert code_of(bench.authority.issue, grant) == "pki.profile.refused"


@pytest.mark.parametrize("name", [b"\x30\x04\xa5\x02\x05\x00", b"\x30\x04\xa3\x02\x05\x00"], ids=["edi", "x400"])
def test_names_that_the_library_knows_but_does_not_take(code_of, name):
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), name)
    raw = build(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256(), extensions=[(extension, False)])
    assert code_of(verify_request, raw) == "pki.request.malformed"


def test_the_same_extension_twice(code_of):
    twice = [(x509.UnrecognizedExtension(x509.ObjectIdentifier(f"2.5.29.{one}"), b"\x05\0"), False) for one in (98, 99)]
    raw = build(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256(), extensions=twice)
    assert (
        code_of(verify_request, raw.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x62"))
        == "pki.request.malformed"
    )
