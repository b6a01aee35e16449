"""Chains that must not be believed, each refused with the code that says why; those that must."""

import dataclasses
import datetime
import ipaddress

import pytest
from asn1crypto import x509 as strict
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.keyadapter import hash_for, library_public_key, padding_for, private_key_for
from tidegate.pki.path import MAX_CERTIFICATES, PathRule, Purpose, VerifiedChain, verify_chain
from tidegate.pki.profiles import NameLimits, Subject
from tidegate.testing.certificates import MemorySigner

DAY = datetime.timedelta(days=1)


def der(certificate):
    return certificate.public_bytes(Encoding.DER)


@pytest.fixture
def judge(bench):
    def judge(*chain, anchor=None, **named):
        rule = PathRule(
            **{"anchors": [der(anchor or bench.root)], "now": bench.now, "purpose": Purpose.CLIENT, **named}
        )
        return verify_chain([der(one) for one in chain], rule)

    return judge


def wrong(bench, *, key=None, subject="SN-9", above=None, **change):
    """Make a certificate that no profile would."""
    key = key or bench.device_key
    issuer, signer = above or (bench.issuing, bench.issuing_key)
    public = key.public_key() if hasattr(key, "public_key") and callable(key.public_key) else None
    basic = change.get("basic", x509.BasicConstraints(ca=False, path_length=None))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, subject)]))
        .issuer_name(issuer.subject)
        .public_key(public or library_public_key(key.public_key))
        .serial_number(change.get("serial", 77))
        .not_valid_before(bench.now - DAY)
        .not_valid_after(bench.now + DAY)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    builder = builder.add_extension(x509.SubjectKeyIdentifier(b"somebody"), critical=False)
    if basic is not None:
        builder = builder.add_extension(basic, critical=True)
    for extension, critical in change.get("extensions", ()):
        builder = builder.add_extension(extension, critical=critical)
    public = signer.public_key
    return builder.sign(private_key_for(signer), change.get("hash", hash_for(public)), rsa_padding=padding_for(public))


def usage(*wanted):
    names = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{name: name in wanted for name in names})


def test_a_device_s_certificate(bench, judge):
    device = bench.issue()
    verified = judge(device, bench.issuing)
    assert (verified.certificate, verified.issuer, verified.anchor) == (device, bench.issuing, bench.root)
    assert verified.encode() == (der(device), der(bench.issuing), der(bench.root))
    assert judge(device, anchor=bench.issuing).anchor == bench.issuing
    with pytest.raises(TypeError):
        VerifiedChain((device,), None)


def test_a_birth_certificate(bench, judge):
    factory_key = MemorySigner(SignatureAlgorithm.ECDSA_P384)
    factory = bench.sign("factory-ca", Subject(common_name="Factory", organization="Maker"), factory_key)
    device = bench.sign("idevid", Subject(serial_number="SN-1"), bench.device_key, above=(factory, factory_key))
    assert judge(device, anchor=factory, now=bench.now + 3650 * DAY)


def test_others_in_any_order_and_strangers_between(bench, judge):
    stranger = bench.sign("root-ca", Subject(common_name="Stranger"), MemorySigner(SignatureAlgorithm.ECDSA_P256))
    assert judge(bench.issue(), stranger, bench.root, bench.issuing)


@pytest.mark.parametrize("algorithm", [SignatureAlgorithm.RSA_PSS, SignatureAlgorithm.ECDSA_P384])
def test_other_algorithms(bench, judge, algorithm):
    key = MemorySigner(algorithm)
    root = bench.sign("root-ca", Subject(common_name="Other"), key)
    device = bench.sign("ldevid", Subject(serial_number="1"), MemorySigner(algorithm), above=(root, key))
    assert judge(device, anchor=root)


def test_devices_with_ed25519_keys(bench, judge):
    device = bench.issue(key=MemorySigner(SignatureAlgorithm.ED25519))
    assert judge(device, bench.issuing)


def test_servers_by_name_and_address(bench, judge, code_of):
    names = (x509.DNSName("gw.example.org"), x509.IPAddress(ipaddress.ip_address("10.0.0.1")))
    grant = dataclasses.replace(bench.grant(profile="server"), subject=Subject(common_name="gw", names=names))
    server = bench.authority.issue(grant)
    for name in ("gw.example.org", "10.0.0.1"):
        assert judge(server, bench.issuing, purpose=Purpose.SERVER, server_name=name)
    for name in ("other.example.org", "10.0.0.2", "gw", "", "*", "gw.example.org\0", "ä.example"):
        code = code_of(judge, server, bench.issuing, purpose=Purpose.SERVER, server_name=name)
        assert code == "pki.path.name", name


@pytest.mark.parametrize(
    ("profile", "purposes"),
    [
        ("ldevid", {Purpose.CLIENT, Purpose.SERVER}),
        ("idevid", {Purpose.CLIENT}),
        ("operator", {Purpose.CLIENT}),
        ("code-signing", {Purpose.CODE_SIGNING}),
        ("ocsp-responder", {Purpose.OCSP}),
    ],
)
def test_what_each_profile_is_for(bench, judge, code_of, profile, purposes):
    above = (bench.issuing, bench.issuing_key)
    lifetime = DAY * 30 if profile != "idevid" else None
    if profile == "idevid":
        key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
        factory = bench.sign("factory-ca", Subject(common_name="F"), key)
        above = (factory, key)
    names = (x509.DNSName("a.example"),) if profile == "ldevid" else ()
    subject = Subject(serial_number="SN-1", names=names)
    certificate = bench.sign(profile, subject, bench.device_key, above=above, lifetime=lifetime)
    for purpose in Purpose:
        named = {"purpose": purpose, "anchor": above[0]}
        if purpose is Purpose.SERVER:
            named["server_name"] = "a.example"
        if purpose in purposes:
            assert judge(certificate, **named)
        else:
            assert code_of(judge, certificate, **named) == "pki.path.usage"


def test_a_ca_is_no_identity(bench, judge, code_of):
    assert code_of(judge, bench.issuing) == "pki.path.usage"


def test_a_ca_for_other_uses(bench, judge, code_of):
    only = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CODE_SIGNING])
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    ca = wrong(
        bench,
        key=key,
        above=(bench.root, bench.root_key),
        basic=x509.BasicConstraints(ca=True, path_length=0),
        extensions=[(usage("key_cert_sign"), True), (only, False)],
    )
    assert code_of(judge, wrong(bench, above=(ca, key)), ca) == "pki.path.usage"


def test_keys_that_may_not_sign(bench, judge, code_of):
    device = wrong(bench, extensions=[(usage("key_agreement"), True)])
    assert code_of(judge, device, bench.issuing) == "pki.path.usage"


def test_out_of_date(bench, judge, code_of):
    device = bench.issue()
    assert code_of(judge, device, bench.issuing, now=bench.now + 8 * DAY) == "pki.path.expired"
    assert code_of(judge, device, bench.issuing, now=bench.now - 2 * DAY) == "pki.path.expired"


def test_an_expired_ca_between(bench, judge, code_of):
    issuing = bench.sign(
        "issuing-ca", Subject(common_name="Old"), bench.issuing_key, above=(bench.root, bench.root_key), lifetime=DAY
    )
    device = wrong(bench, above=(issuing, bench.issuing_key))
    assert code_of(judge, device, issuing, now=bench.now + DAY / 2) == "pki.path.expired"


def test_nobody_leads_to_an_anchor(bench, judge, code_of):
    other = bench.sign("root-ca", Subject(common_name="Other"), MemorySigner(SignatureAlgorithm.ECDSA_P256))
    device = bench.issue()
    assert code_of(judge, device, bench.issuing, anchor=other) == "pki.path.untrusted"
    assert code_of(judge, device) == "pki.path.untrusted"


def test_a_ca_of_the_same_name(bench, judge, code_of):
    thief = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    forged = bench.sign("root-ca", Subject(common_name="Root", organization="Owner"), thief)
    device = bench.sign("ldevid", Subject(serial_number="SN"), bench.device_key, above=(forged, thief))
    assert code_of(judge, device, forged) == "pki.path.signature"


def test_a_device_that_plays_ca(bench, judge, code_of):
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    device = bench.sign("ldevid", Subject(serial_number="SN"), key, above=(bench.issuing, bench.issuing_key))
    forged = wrong(bench, above=(device, key))
    assert code_of(judge, forged, device, bench.issuing) == "pki.path.not-ca"


def test_a_ca_below_one_that_may_have_none(bench, judge, code_of):
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    below = bench.sign("issuing-ca", Subject(common_name="Below"), key, above=(bench.issuing, bench.issuing_key))
    device = bench.sign("ldevid", Subject(serial_number="SN"), bench.device_key, above=(below, key))
    assert code_of(judge, device, below, bench.issuing) == "pki.path.length"


def test_deeper_than_the_rule(bench, judge, code_of):
    assert code_of(judge, bench.issue(), bench.issuing, depth=0) == "pki.path.length"


def test_name_constraints(bench, judge, code_of):
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    limits = NameLimits(dns=("example.org",), networks=(ipaddress.ip_network("10.0.0.0/8"),))
    ca = bench.sign(
        "issuing-ca", Subject(common_name="Limited"), key, above=(bench.root, bench.root_key), limits=limits
    )
    for name, good in (
        (x509.DNSName("gw.example.org"), True),
        (x509.DNSName("gw.example.com"), False),
        (x509.IPAddress(ipaddress.ip_address("10.1.2.3")), True),
        (x509.IPAddress(ipaddress.ip_address("192.0.2.1")), False),
    ):
        device = bench.sign("ldevid", Subject(serial_number="SN", names=(name,)), bench.device_key, above=(ca, key))
        if good:
            assert judge(device, ca)
        else:
            assert code_of(judge, device, ca) == "pki.path.name"


@pytest.mark.parametrize("place", ["device", "CA"])
def test_unknown_critical_extensions(bench, judge, code_of, place):
    unknown = [(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0"), True)]
    if place == "device":
        assert code_of(judge, wrong(bench, extensions=unknown), bench.issuing) == "pki.path.extension"
        return
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    basic = x509.BasicConstraints(ca=True, path_length=0)
    extensions = [(usage("key_cert_sign"), True), *unknown]
    ca = wrong(bench, key=key, above=(bench.root, bench.root_key), basic=basic, extensions=extensions)
    assert code_of(judge, wrong(bench, above=(ca, key)), ca) == "pki.path.extension"


def test_an_unknown_extension_that_is_not_critical(bench, judge):
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0")
    assert judge(wrong(bench, extensions=[(unknown, False)]), bench.issuing)


def test_small_keys_and_strange_curves(bench, judge, code_of):
    for key in (rsa.generate_private_key(65_537, 2048), ec.generate_private_key(ec.SECP521R1())):
        assert code_of(judge, wrong(bench, key=key), bench.issuing) == "pki.path.key"


def test_ed25519_cas_are_not_understood(bench, judge, code_of):
    key = MemorySigner(SignatureAlgorithm.ED25519)
    root = wrong(
        bench,
        key=key,
        above=(bench.root, bench.root_key),
        basic=x509.BasicConstraints(ca=True, path_length=0),
        extensions=[(usage("key_cert_sign"), True)],
    )
    assert code_of(judge, wrong(bench, above=(root, key)), root) == "pki.path.signature"


def test_signed_with_sha1(bench, judge, code_of):
    forged = _with_sha1(bench)
    assert code_of(judge, forged, bench.issuing) == "pki.path.signature"


def _with_sha1(bench):
    """The library signs nothing with SHA-1, a strict encoder does."""
    certificate = strict.Certificate.load(der(bench.issue()))
    body = certificate["tbs_certificate"].copy()
    body["signature"] = {"algorithm": "sha1_ecdsa"}
    signature = bench.issuing_key.key.sign(body.dump(force=True), ec.ECDSA(hashes.SHA1()))  # noqa: S303  # to be refused
    made = strict.Certificate(
        {"tbs_certificate": body, "signature_algorithm": {"algorithm": "sha1_ecdsa"}, "signature_value": signature}
    )
    return x509.load_der_x509_certificate(made.dump())


@pytest.mark.parametrize("chain", [[], [b""], [b"x" * 100], [b"x" * 20_000], [b"0"] * (MAX_CERTIFICATES + 1)])
def test_what_is_no_chain(bench, code_of, chain):
    rule = PathRule(anchors=[der(bench.root)], now=bench.now, purpose=Purpose.CLIENT)
    assert code_of(verify_chain, chain, rule) in {"pki.path.malformed", "pki.path.limit"}


def test_no_anchors(bench, code_of):
    rule = PathRule(anchors=[], now=bench.now, purpose=Purpose.CLIENT)
    assert code_of(verify_chain, [der(bench.issue())], rule) == "pki.path.limit"


def test_rules_that_make_no_sense(bench):
    for wrong_rule in (
        {"server_name": "x"},
        {"purpose": Purpose.SERVER},
        {"depth": -1},
        {"now": datetime.datetime(2027, 1, 1)},
    ):
        with pytest.raises(ValueError, match=r"."):
            PathRule(**{"anchors": [b""], "now": bench.now, "purpose": Purpose.CLIENT, **wrong_rule})


def test_a_name_that_the_library_does_not_take(bench, judge, code_of):
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x04\xa5\x02\x05\x00")
    assert code_of(judge, wrong(bench, extensions=[(strange, False)]), bench.issuing) == "pki.path.malformed"
