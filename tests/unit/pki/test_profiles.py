"""Each profile says what it says, within its issuer's time, under keys that stay in their provider."""

import copy
import datetime

import pytest
from asn1crypto import core as strict_core
from asn1crypto import x509 as strict
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID as Use
from cryptography.x509.oid import SignatureAlgorithmOID

from tidegate.crypto.signing import SignatureAlgorithm, rsa_pss_padding
from tidegate.pki.keyadapter import library_public_key, private_key_for, public_key_of
from tidegate.pki.path import PathRule, Purpose, verify_chain
from tidegate.pki.profiles import NO_EXPIRY, PROFILES, Subject, hardware_module_name, require_ca_key
from tidegate.testing.certificates import MemorySigner

DAY = datetime.timedelta(days=1)
KINDS = (
    SignatureAlgorithm.ECDSA_P256,
    SignatureAlgorithm.ECDSA_P384,
    SignatureAlgorithm.ED25519,
    SignatureAlgorithm.RSA_PSS,
)
CAS = {"root-ca": 1, "issuing-ca": 0, "factory-ca": 0}
USES = {
    "idevid": None,
    "ldevid": {Use.CLIENT_AUTH, Use.SERVER_AUTH},
    "server": {Use.SERVER_AUTH},
    "operator": {Use.CLIENT_AUTH},
    "code-signing": {Use.CODE_SIGNING},
    "ocsp-responder": {Use.OCSP_SIGNING},
}


def value(certificate, kind):
    return certificate.extensions.get_extension_for_class(kind).value


def subject_for(profile):
    names = (x509.DNSName("a.example"),) if profile == "server" else ()
    return Subject(common_name="A", serial_number="SN-1", organization="Owner", names=names)


def test_no_profile_is_forgotten():
    assert set(PROFILES) == {*CAS, *USES}


@pytest.mark.parametrize("profile", sorted(USES))
def test_end_entities(bench, profile):
    factory_key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    factory = bench.sign("factory-ca", Subject(common_name="F"), factory_key)
    made = bench.sign(profile, subject_for(profile), bench.device_key, above=(factory, factory_key))
    basic = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, False, None)
    usage = made.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.digital_signature, usage.value.key_cert_sign, usage.value.crl_sign) == (True, False, False)
    found = [one.value for one in made.extensions if isinstance(one.value, x509.ExtendedKeyUsage)]
    assert (set(found[0]) if found else None) == USES[profile]
    nocheck = [one for one in made.extensions if isinstance(one.value, x509.OCSPNoCheck)]
    assert bool(nocheck) == (profile == "ocsp-responder")
    assert value(made, x509.AuthorityKeyIdentifier).key_identifier == value(factory, x509.SubjectKeyIdentifier).digest
    raw = made.public_bytes(Encoding.DER)
    assert strict.Certificate.load(raw, strict=True).dump(force=True) == raw


@pytest.mark.parametrize("profile", sorted(CAS))
def test_cas(bench, profile):
    made = bench.sign(profile, Subject(common_name="CA"), bench.device_key)
    basic = made.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, CAS[profile])
    usage = value(made, x509.KeyUsage)
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)


def test_birth_certificates_do_not_expire_and_others_do(bench):
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    factory = bench.sign("factory-ca", Subject(common_name="F"), key)
    made = bench.sign("idevid", Subject(serial_number="1"), bench.device_key, above=(factory, key))
    assert made.not_valid_after_utc == NO_EXPIRY
    device = bench.issue()
    assert device.not_valid_after_utc - bench.now == 7 * DAY


def test_hardware_module_names(bench, code_of):
    """A birth certificate may say which kind of module it is (IEEE 802.1AR §8.10.4)."""
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    above = (bench.sign("factory-ca", Subject(common_name="F"), key), key)
    name = hardware_module_name("1.3.6.1.4.1.55555.1.300", b"\x01\x02SN")
    made = bench.sign("idevid", Subject(serial_number="1", names=(name,)), bench.device_key, above=above)
    (found,) = value(made, x509.SubjectAlternativeName)
    parsed = strict_core.load(found.value, strict=True)
    assert parsed[0].dotted == "1.3.6.1.4.1.55555.1.300"
    assert parsed[1].native == b"\x01\x02SN"
    rule = PathRule(anchors=[above[0].public_bytes(Encoding.DER)], now=bench.now, purpose=Purpose.CLIENT)
    assert verify_chain([made.public_bytes(Encoding.DER)], rule)
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.5"), b"\x05\0")
    subject = Subject(serial_number="1", names=(other,))
    assert code_of(bench.sign, "idevid", subject, bench.device_key, above=above) == "pki.profile.refused"
    for oid, serial in (("1.3", b"1"), ("x.y.z", b"1"), ("1.3..4", b"1"), ("3.3.4", b"1"), ("1.40.4", b"1")):
        assert code_of(hardware_module_name, oid, serial) == "pki.name.invalid"
    for serial in (b"", b"x" * 65):
        assert code_of(hardware_module_name, "1.3.6", serial) == "pki.name.invalid"


def test_a_certificate_lives_within_its_issuer(bench, code_of):
    short = bench.sign(
        "issuing-ca", Subject(common_name="Short"), bench.issuing_key, above=(bench.root, bench.root_key), lifetime=DAY
    )
    above = (short, bench.issuing_key)
    made = bench.sign("ldevid", Subject(serial_number="1"), bench.device_key, above=above, lifetime=DAY / 2)
    assert short.not_valid_before_utc <= made.not_valid_before_utc < made.not_valid_after_utc
    assert made.not_valid_after_utc <= short.not_valid_after_utc
    code = code_of(bench.sign, "ldevid", Subject(serial_number="1"), bench.device_key, above=above)
    assert code == "pki.profile.refused"


@pytest.mark.parametrize("lifetime", [datetime.timedelta(), -DAY, 399 * DAY, 10**8 * DAY])
def test_lifetimes_that_a_profile_does_not_have(bench, code_of, lifetime):
    assert code_of(bench.issue, lifetime=lifetime) == "pki.profile.refused"


@pytest.mark.parametrize(
    ("profile", "subject"),
    [
        ("idevid", Subject(common_name="A")),
        ("ldevid", Subject(common_name="A")),
        ("operator", Subject()),
        ("server", Subject(common_name="A")),
    ],
)
def test_subjects_that_lack_something(bench, code_of, profile, subject):
    code = code_of(bench.sign, profile, subject, bench.device_key, above=(bench.issuing, bench.issuing_key))
    assert code == "pki.profile.refused"


def test_only_a_ca_signs(bench, code_of):
    device = bench.issue()
    for above in ((device, bench.device_key), (bench.issuing, bench.device_key)):
        code = code_of(bench.sign, "ldevid", Subject(serial_number="1"), bench.device_key, above=above)
        assert code == "pki.issuer.mismatch"


@pytest.mark.parametrize("algorithm", [SignatureAlgorithm.RSA_PSS, SignatureAlgorithm.ECDSA_P384])
def test_cas_of_other_algorithms(bench, algorithm):
    key = MemorySigner(algorithm)
    root = bench.sign("root-ca", Subject(common_name="R"), key)
    root.verify_directly_issued_by(root)
    if algorithm is SignatureAlgorithm.RSA_PSS:
        assert root.signature_algorithm_oid == SignatureAlgorithmOID.RSASSA_PSS
        parameters = root.signature_algorithm_parameters
        assert (parameters._salt_length, parameters._mgf._algorithm.name) == (32, "sha256")


def test_cas_have_no_ed25519_keys(code_of):
    for algorithm in (SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.RSA_PSS):
        require_ca_key(MemorySigner(algorithm).public_key)
    assert code_of(require_ca_key, MemorySigner(SignatureAlgorithm.ED25519).public_key) == "pki.key.unsupported"


@pytest.mark.parametrize("algorithm", KINDS)
def test_public_keys_go_both_ways(algorithm):
    key = MemorySigner(algorithm).public_key
    assert public_key_of(library_public_key(key)) == key


@pytest.mark.parametrize("algorithm", KINDS)
def test_adapters_give_nothing_away(algorithm):
    key = private_key_for(MemorySigner(algorithm))
    forms = (Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(TypeError):
        key.private_bytes(*forms)
    for name in ("private_numbers", "private_bytes_raw"):
        with pytest.raises(TypeError):
            getattr(key, name)()
    assert copy.copy(key) is copy.deepcopy(key) is key


def test_rsa_keys_sign_in_one_way_only():
    key = private_key_for(MemorySigner(SignatureAlgorithm.RSA_PSS))
    key.public_key().verify(
        key.sign(b"m", rsa_pss_padding(), hashes.SHA256()), b"m", rsa_pss_padding(), hashes.SHA256()
    )
    long_salt = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.MAX_LENGTH)
    for scheme, digest in (
        (padding.PKCS1v15(), hashes.SHA256()),
        (long_salt, hashes.SHA256()),
        (rsa_pss_padding(), hashes.SHA1()),  # noqa: S303  # refused, not used
    ):
        with pytest.raises(ValueError, match="only"):
            key.sign(b"m", scheme, digest)
    with pytest.raises(TypeError):
        key.decrypt(b"", padding.PKCS1v15())
