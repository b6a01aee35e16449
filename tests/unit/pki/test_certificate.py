"""Factory CA and device identity: what the standards ask for, and keys that never come out."""

import copy
import datetime

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.pki.certificate import Issuance, encode_pem, issue_factory_ca, issue_idevid, parse_pem
from tidegate.pki.keyadapter import KeyStoreEcKey

START = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("pki")
    (root / "secret").write_bytes(bytes(32))
    (root / "secret").chmod(0o600)
    store = SoftwareKeyStore.create(root / "store", DeviceSecretUnlock(root / "secret"))
    for name, algorithm in (
        ("ca", SignatureAlgorithm.ECDSA_P384),
        ("other-ca", SignatureAlgorithm.ECDSA_P256),
        ("device", SignatureAlgorithm.ECDSA_P256),
        ("plain", SignatureAlgorithm.ML_DSA_65),
    ):
        store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
    return store


def issuance(serial=0x1234):
    return Issuance(not_before=START, serial=serial)


@pytest.fixture(scope="module")
def ca(store):
    return issue_factory_ca(store.signer("ca"), organization="Example Maker", issuance=issuance(1))


@pytest.fixture(scope="module")
def device(store, ca):
    return issue_idevid(
        ca, store.signer("ca"), store.public_key("device"), serial_number="SN-0001", issuance=issuance()
    )


def test_ca_profile(ca, store):
    assert ca.version is x509.Version.v3
    assert ca.issuer == ca.subject
    assert isinstance(ca.signature_hash_algorithm, hashes.SHA384)
    basic = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca, basic.value.path_length) == (True, True, 0)
    usage = ca.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
    ca.verify_directly_issued_by(ca)


def test_device_profile(device, ca, store):
    assert device.issuer == ca.subject
    assert device.serial_number == 0x1234
    assert device.not_valid_before_utc == START
    assert device.not_valid_after_utc == datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    (serial,) = device.subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)
    assert serial.value == "SN-0001"
    basic = device.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    usage = device.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    authority = device.extensions.get_extension_for_oid(ExtensionOID.AUTHORITY_KEY_IDENTIFIER).value
    subject = ca.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_KEY_IDENTIFIER).value
    assert authority.key_identifier == subject.digest
    device.verify_directly_issued_by(ca)
    numbers = device.public_key().public_numbers()
    assert b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big") == store.public_key("device").raw


def test_another_ca_of_the_same_name_did_not_issue_it(device, store):
    other = issue_factory_ca(store.signer("other-ca"), organization="Example Maker", issuance=issuance(2))
    with pytest.raises((InvalidSignature, ValueError, TypeError)):
        device.verify_directly_issued_by(other)


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_a_signer_that_is_not_the_ca_s_is_refused(ca, device, store):
    """Else a line of devices leaves the factory with identities that nobody can verify."""
    for issuer, signer in ((ca, "other-ca"), (device, "ca"), (device, "device")):
        code = code_of(
            issue_idevid,
            issuer,
            store.signer(signer),
            store.public_key("device"),
            serial_number="SN",
            issuance=issuance(),
        )
        assert code == "pki.issuer.mismatch"


@pytest.mark.parametrize("who", ["CA", "signer", "device"])
def test_keys_that_certificates_do_not_carry(ca, store, who):
    if who == "CA":
        code = code_of(issue_factory_ca, store.signer("plain"), organization="M", issuance=issuance())
    else:
        signer, key = ("plain", "device") if who == "signer" else ("ca", "plain")
        code = code_of(
            issue_idevid,
            ca,
            store.signer(signer),
            store.public_key(key),
            serial_number="S",
            issuance=issuance(),
        )
    assert code == "pki.key.unsupported"


@pytest.mark.parametrize(
    "raw", [b"", b"text", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"\xff"]
)
def test_files_that_are_no_certificate(raw):
    assert code_of(parse_pem, raw) == "pki.certificate.malformed"


def test_two_certificates_are_not_one(ca, device):
    assert code_of(parse_pem, encode_pem(ca) + encode_pem(device)) == "pki.certificate.malformed"


@pytest.mark.parametrize("serial", [0, -1, 1 << 160])
def test_serial_numbers_outside_the_standard(store, serial):
    with pytest.raises(ValueError, match="serial"):
        issue_factory_ca(store.signer("ca"), organization="M", issuance=issuance(serial))


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "a\0"])
def test_names_outside_the_standard(store, ca, name):
    assert code_of(issue_factory_ca, store.signer("ca"), organization=name, issuance=issuance()) == "pki.name.invalid"
    key = store.public_key("device")
    code = code_of(issue_idevid, ca, store.signer("ca"), key, serial_number=name, issuance=issuance())
    assert code == "pki.name.invalid"


def test_the_longest_names(store, ca):
    issue_factory_ca(store.signer("ca"), organization="x" * 53, issuance=issuance())
    issue_idevid(ca, store.signer("ca"), store.public_key("device"), serial_number="x" * 64, issuance=issuance())


def test_a_name_cannot_smuggle_in_attributes(store, ca):
    device = issue_idevid(
        ca, store.signer("ca"), store.public_key("device"), serial_number="SN,CN=admin+O=Other", issuance=issuance()
    )
    assert [attribute.oid for attribute in device.subject] == [NameOID.ORGANIZATION_NAME, NameOID.SERIAL_NUMBER]


def test_the_key_object_gives_nothing_away(store):
    key = KeyStoreEcKey(store.signer("device"))
    for use in (
        key.private_numbers,
        lambda: key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        lambda: key.exchange(ec.ECDH(), key.public_key()),
    ):
        with pytest.raises(TypeError):
            use()
    assert copy.deepcopy(key) is key
    assert copy.copy(key) is key
    assert key.key_size == 256
    assert key.curve.name == "secp256r1"


def test_the_key_object_signs_with_the_hash_of_its_curve_only(store):
    key = KeyStoreEcKey(store.signer("device"))
    key.public_key().verify(key.sign(b"data", ec.ECDSA(hashes.SHA256())), b"data", ec.ECDSA(hashes.SHA256()))
    for digest in (hashes.SHA1(), hashes.SHA384(), hashes.SHA512()):  # noqa: S303  # refused, not used
        with pytest.raises(ValueError, match="hash"):
            key.sign(b"data", ec.ECDSA(digest))


def test_pem_round_trip(ca):
    assert parse_pem(encode_pem(ca)) == ca
