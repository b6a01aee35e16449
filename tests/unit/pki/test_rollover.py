"""From one root to the next: who may follow, and who may not be led astray."""

import datetime
import secrets

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.path import PathRule, Purpose, verify_chain
from tidegate.pki.profiles import Subject, draw_serial
from tidegate.pki.rollover import VerifiedAnchor, make_rollover, verify_new_root, verify_old_key
from tidegate.testing.certificates import MemorySigner

DAY = datetime.timedelta(days=1)


def der(certificate):
    return certificate.public_bytes(Encoding.DER)


def serials():
    return [draw_serial(secrets.token_bytes(20)) for _ in range(3)]


@pytest.fixture
def new_key():
    return MemorySigner(SignatureAlgorithm.ECDSA_P384)


@pytest.fixture
def made(bench, new_key):
    return make_rollover(bench.root, bench.root_key, new_key, now=bench.now, serials=serials())


def follow(bench, root, cross, anchors=None, now=None):
    held = [der(one) for one in anchors or [bench.root]]
    return verify_new_root(der(root), der(cross), anchors=held, now=now or bench.now)


def test_the_three_certificates(bench, made):
    assert made.new_root.subject == made.new_root.issuer == bench.root.subject
    made.new_root.verify_directly_issued_by(made.new_root)
    made.new_with_old.verify_directly_issued_by(bench.root)
    made.old_with_new.verify_directly_issued_by(made.new_root)
    assert made.new_with_old.public_key() == made.new_root.public_key()
    assert made.old_with_new.public_key() == bench.root.public_key()
    assert made.new_with_old.not_valid_after_utc <= bench.root.not_valid_after_utc


def test_a_device_follows_and_verifies_both_worlds(bench, made, new_key):
    old_device = bench.issue()
    anchor = follow(bench, made.new_root, made.new_with_old)
    assert (anchor.certificate, anchor.vouched_by) == (made.new_root, bench.root)
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    issuing = bench.sign("issuing-ca", Subject(common_name="New"), key, above=(made.new_root, new_key), now=bench.now)
    device = bench.sign("ldevid", Subject(serial_number="1"), bench.device_key, above=(issuing, key), now=bench.now)
    rule = PathRule(anchors=[anchor.encode()], now=bench.now + DAY, purpose=Purpose.CLIENT)
    assert verify_chain([der(device), der(issuing)], rule)
    # and one that holds the new root alone goes on with what is below the old one
    old = verify_old_key(der(made.old_with_new), anchors=[der(made.new_root)], now=bench.now)
    rule = PathRule(anchors=[old.encode()], now=bench.now, purpose=Purpose.CLIENT)
    assert verify_chain([der(old_device), der(bench.issuing)], rule)


def test_only_verifiers_make_anchors(bench):
    with pytest.raises(TypeError):
        VerifiedAnchor(bench.root, bench.root, None)


def test_who_is_not_led_over(bench, made, new_key, code_of):
    thief = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    name = Subject(common_name="Root", organization="Owner")
    forged = bench.sign("root-ca", name, thief)
    forged_cross = bench.sign("root-ca", name, thief, above=(forged, thief))
    other = bench.sign("root-ca", Subject(common_name="Other"), thief)
    issuing_as_root = bench.sign("root-ca", Subject(common_name="Issuing", organization="Owner"), bench.issuing_key)
    for root, cross, anchors in (
        (forged, made.new_with_old, None),  # a root that has not the key
        (forged, forged_cross, None),  # a cross-certificate that the old root did not sign
        (made.new_root, made.new_with_old, [other]),  # an anchor that is not held
        (issuing_as_root, bench.issuing, None),  # an issuing CA that would be a root
        (bench.root, bench.root, None),  # nothing new
        (bench.issue(), bench.issue(), None),  # devices
        (made.new_root, made.old_with_new, None),  # the wrong way round
    ):
        assert code_of(follow, bench, root, cross, anchors) == "pki.rollover.refused"


def test_out_of_date(bench, made, code_of):
    late = bench.root.not_valid_after_utc + DAY
    assert code_of(follow, bench, made.new_root, made.new_with_old, now=late) == "pki.rollover.refused"
    assert code_of(follow, bench, made.new_root, made.new_with_old, now=bench.now - 9 * DAY) == "pki.rollover.refused"


def test_what_is_no_certificate(bench, made, code_of):
    for raw in (b"", b"x" * 100, b"x" * 20_000):
        code = code_of(verify_new_root, der(made.new_root), raw, anchors=[der(bench.root)], now=bench.now)
        assert code == "pki.rollover.refused"
    code = code_of(verify_new_root, der(made.new_root), der(made.new_with_old), anchors=[], now=bench.now)
    assert code == "pki.rollover.refused"


def test_roots_that_cannot_be_rolled_over(bench, new_key, code_of):
    def make(root, key, new):
        return code_of(make_rollover, root, key, new, now=bench.now, serials=serials())

    assert make(bench.root, bench.root_key, bench.root_key) == "pki.rollover.refused"
    assert make(bench.issuing, bench.issuing_key, new_key) == "pki.rollover.refused"
    assert make(bench.root, bench.issuing_key, new_key) == "pki.issuer.mismatch"
