"""Answers and lists that were forged, outdated, about somebody else or by somebody else; a row for each code."""

import datetime
import secrets

import pytest
from asn1crypto import core as strict_core
from asn1crypto import ocsp as strict
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.pki.ca_store import Reason
from tidegate.pki.keyadapter import hash_for, padding_for, private_key_for
from tidegate.pki.ocsp import Responder
from tidegate.pki.profiles import Subject
from tidegate.pki.revocation import VerifiedCrl, VerifiedOcsp, encode_ocsp_request, verify_crl, verify_ocsp
from tidegate.testing.certificates import MemorySigner

DAY = datetime.timedelta(days=1)


@pytest.fixture
def device(bench):
    return bench.issue(profile="code-signing")


def judge_ocsp(bench, raw, device, **named):
    return verify_ocsp(raw, certificate=device, issuer=bench.issuing, **{"now": bench.now, **named})


def answer(bench, device, nonce=None):
    return bench.authority.answer_ocsp(encode_ocsp_request(device, bench.issuing, nonce))


def forge(bench, device, key=None, **change):
    """Make an answer by hand, as another responder or an attacker would."""
    key = key or bench.issuing_key
    fields = {
        "cert": device,
        "issuer": bench.issuing,
        "algorithm": hashes.SHA256(),
        "cert_status": ocsp.OCSPCertStatus.GOOD,
        "this_update": bench.now,
        "next_update": bench.now + DAY,
        "revocation_time": None,
        "revocation_reason": None,
    }
    fields |= {name: value for name, value in change.items() if name in fields}
    builder = ocsp.OCSPResponseBuilder().add_response(**fields)
    who = change.get("responder", bench.issuing)
    builder = builder.responder_id(change.get("encoding", ocsp.OCSPResponderEncoding.HASH), who)
    if change.get("sent"):
        builder = builder.certificates(change["sent"])
    for extension, critical in change.get("extensions", ()):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(private_key_for(key), hash_for(key.public_key)).public_bytes(Encoding.DER)


def test_good(bench, device):
    nonce = secrets.token_bytes(16)
    verified = judge_ocsp(bench, answer(bench, device, nonce), device, nonce=nonce)
    assert (verified.serial, verified.delegated) == (device.serial_number, False)
    with pytest.raises(TypeError):
        VerifiedOcsp(1, bench.now, bench.now, False, None)


def test_names_as_responder_and_sha1_as_a_name(bench, device):
    raw = forge(bench, device, encoding=ocsp.OCSPResponderEncoding.NAME, algorithm=hashes.SHA1())  # noqa: S303
    assert judge_ocsp(bench, raw, device)


def test_revoked(bench, device, code_of):
    bench.authority.revoke(device.serial_number, Reason.KEY_COMPROMISE)
    assert code_of(judge_ocsp, bench, answer(bench, device), device) == "pki.certificate.revoked"


def test_unknown(bench, device, code_of):
    stranger = bench.sign(
        "ldevid", Subject(serial_number="X"), bench.device_key, above=(bench.issuing, bench.issuing_key)
    )
    assert code_of(judge_ocsp, bench, answer(bench, stranger), stranger) == "pki.ocsp.unknown"


def test_a_delegate_answers(bench, device):
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    certificate = bench.authority.issue(bench.grant(profile="ocsp-responder", key=key))
    responder = Responder(issuer=bench.issuing, certificate=certificate, signer=key)
    raw = bench.make_authority(responder=responder).answer_ocsp(encode_ocsp_request(device, bench.issuing))
    assert judge_ocsp(bench, raw, device).delegated


@pytest.mark.parametrize("wrong", ["profile", "issuer", "late", "absent", "no-nocheck"])
def test_who_is_no_delegate(bench, device, code_of, wrong):
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    above = (bench.root, bench.root_key) if wrong == "issuer" else (bench.issuing, bench.issuing_key)
    profile = "code-signing" if wrong == "profile" else "ocsp-responder"
    lifetime = DAY * 1.5 if wrong == "late" else None
    certificate = bench.sign(profile, Subject(common_name="Responder"), key, above=above, lifetime=lifetime)
    if wrong == "no-nocheck":
        certificate = (
            x509.CertificateBuilder()
            .subject_name(certificate.subject)
            .issuer_name(bench.issuing.subject)
            .public_key(certificate.public_key())
            .serial_number(7)
            .not_valid_before(bench.now - DAY)
            .not_valid_after(bench.now + DAY)
            .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.OCSP_SIGNING]), critical=False)
            .sign(private_key_for(bench.issuing_key), hashes.SHA256())
        )
    sent = [] if wrong == "absent" else [certificate]
    now = bench.now + DAY if wrong == "late" else bench.now
    raw = forge(bench, device, key, responder=certificate, sent=sent, next_update=now + DAY)
    assert code_of(judge_ocsp, bench, raw, device, now=now) == "pki.ocsp.responder"


def test_forged(bench, device, code_of):
    thief = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    lookalike = bench.sign("issuing-ca", Subject(common_name="Issuing", organization="Owner"), thief)
    raw = forge(bench, device, thief, responder=lookalike, encoding=ocsp.OCSPResponderEncoding.NAME)
    assert code_of(judge_ocsp, bench, raw, device) == "pki.ocsp.forged"


def test_signed_with_sha1(bench, device, code_of):
    """The library signs nothing with SHA-1, a strict encoder does."""
    answer = strict.OCSPResponse.load(forge(bench, device))
    basic = answer["response_bytes"]["response"].parsed
    key = bench.issuing_key.key
    basic["signature"] = key.sign(basic["tbs_response_data"].dump(), ec.ECDSA(hashes.SHA1()))  # noqa: S303
    basic["signature_algorithm"] = {"algorithm": "sha1_ecdsa"}
    answer["response_bytes"]["response"] = strict_core.ParsableOctetString(basic.dump(force=True))
    assert code_of(judge_ocsp, bench, answer.dump(force=True), device) == "pki.ocsp.forged"


def test_every_changed_byte_is_seen(bench, device):
    """Whatever is changed, the answer is refused, or it is the same answer still."""
    from tidegate.base.errors import Rejected

    raw = answer(bench, device)
    for at in range(0, len(raw), 3):
        changed = bytearray(raw)
        changed[at] ^= 0x41
        with pytest.raises(Rejected):
            judge_ocsp(bench, bytes(changed), device)


def test_about_another_certificate(bench, device, code_of):
    other = bench.issue("SN-2")
    assert code_of(judge_ocsp, bench, answer(bench, other), device) == "pki.ocsp.other"


def test_about_the_same_number_of_another_issuer(bench, device, code_of):
    raw = forge(bench, device, issuer=bench.root)
    assert code_of(judge_ocsp, bench, raw, device) == "pki.ocsp.other"


@pytest.mark.parametrize(("start", "end"), [(-2, -1), (1, 2), (-1, None)])
def test_out_of_its_time(bench, device, code_of, start, end):
    raw = forge(
        bench,
        device,
        this_update=bench.now + start * DAY,
        next_update=None if end is None else bench.now + end * DAY,
    )
    assert code_of(judge_ocsp, bench, raw, device) == "pki.ocsp.stale"


def test_a_replay(bench, device, code_of):
    for raw in (answer(bench, device, b"yesterday's"), answer(bench, device)):
        assert code_of(judge_ocsp, bench, raw, device, nonce=b"today's") == "pki.ocsp.nonce"


@pytest.mark.parametrize("question", [b"", b"x" * 100, b"0" * 100_000])
def test_the_responder_refuses_what_is_no_question(bench, device, code_of, question):
    raw = bench.authority.answer_ocsp(question)
    assert code_of(judge_ocsp, bench, raw, device) == "pki.ocsp.unsuccessful"


def test_the_responder_does_not_speak_for_others(bench, device, code_of):
    raw = bench.authority.answer_ocsp(encode_ocsp_request(bench.issuing, bench.root))
    assert code_of(judge_ocsp, bench, raw, device) == "pki.ocsp.unsuccessful"


@pytest.mark.parametrize("raw", [b"", b"0", b"x" * 70_000])
def test_what_is_no_answer(bench, device, code_of, raw):
    assert code_of(judge_ocsp, bench, raw, device) == "pki.ocsp.malformed"


def test_an_unknown_critical_extension_of_an_answer(bench, device, code_of):
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0")
    raw = forge(bench, device, extensions=[(unknown, True)])
    assert code_of(judge_ocsp, bench, raw, device) == "pki.ocsp.malformed"


# -- lists ------------------------------------------------------------------------------------------------------------


def judge_crl(bench, raw, **named):
    return verify_crl(raw, **{"issuer": bench.issuing, "now": bench.now, **named})


def write(bench, key=None, **change):
    """Make a list by hand."""
    key = key or bench.issuing_key
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(change.get("issuer", bench.issuing).subject)
        .last_update(bench.now + change.get("start", 0) * DAY)
        .next_update(bench.now + change.get("end", 1) * DAY)
    )
    extensions = [(x509.CRLNumber(change.get("number", 5)), False)] if change.get("number", 5) else []
    for extension, critical in (*extensions, *change.get("extensions", ())):
        builder = builder.add_extension(extension, critical=critical)
    for entry in change.get("entries", ()):
        builder = builder.add_revoked_certificate(entry)
    made = builder.sign(private_key_for(key), hash_for(key.public_key), rsa_padding=padding_for(key.public_key))
    return made.public_bytes(Encoding.DER)


def entry(serial, now, *extensions):
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.build()


def test_a_full_list(bench, device, code_of):
    good = bench.issue("SN-2")
    bench.authority.revoke(device.serial_number, Reason.SUPERSEDED)
    verified = judge_crl(bench, bench.authority.crl())
    verified.require_good(good)
    assert code_of(verified.require_good, device) == "pki.certificate.revoked"
    assert code_of(verified.require_good, bench.issuing) == "pki.crl.issuer"
    with pytest.raises(TypeError):
        VerifiedCrl(bench.issuing.subject, 1, bench.now, bench.now, {}, None)


def test_a_delta_on_its_base(bench, device, code_of):
    base = judge_crl(bench, bench.authority.crl())
    bench.clock.now += DAY / 24
    bench.authority.revoke(device.serial_number, Reason.SUPERSEDED)
    raw = bench.authority.delta_crl()
    base.require_good(device)
    assert code_of(judge_crl(bench, raw, base=base).require_good, device) == "pki.certificate.revoked"
    assert code_of(judge_crl, bench, raw) == "pki.crl.delta"


def test_a_delta_takes_back(bench, device):
    base = judge_crl(bench, write(bench, entries=[entry(device.serial_number, bench.now)]))
    removed = (x509.CRLReason(x509.ReasonFlags.remove_from_crl), False)
    raw = write(
        bench,
        number=6,
        extensions=[(x509.DeltaCRLIndicator(5), True)],
        entries=[entry(device.serial_number, bench.now, removed)],
    )
    judge_crl(bench, raw, base=base).require_good(device)


@pytest.mark.parametrize(("base_number", "number", "against"), [(4, 6, 5), (6, 5, 5)])
def test_a_delta_that_does_not_continue(bench, code_of, base_number, number, against):
    base = judge_crl(bench, write(bench, number=base_number))
    raw = write(bench, number=number, extensions=[(x509.DeltaCRLIndicator(against), True)])
    assert code_of(judge_crl, bench, raw, base=base) == "pki.crl.delta"


def test_lists_forged_or_by_others(bench, code_of):
    thief = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    assert code_of(judge_crl, bench, write(bench, thief)) == "pki.crl.forged"
    assert code_of(judge_crl, bench, write(bench, bench.root_key, issuer=bench.root)) == "pki.crl.issuer"
    assert code_of(judge_crl, bench, write(bench, MemorySigner(SignatureAlgorithm.RSA_PSS))) == "pki.crl.forged"
    other = x509.AuthorityKeyIdentifier(b"another", None, None)
    assert code_of(judge_crl, bench, write(bench, extensions=[(other, False)])) == "pki.crl.issuer"


def test_who_may_not_sign_lists(bench, code_of):
    device = bench.issue(key=bench.device_key)
    raw = write(bench, bench.device_key, issuer=device)
    assert code_of(judge_crl, bench, raw, issuer=device) == "pki.crl.issuer"


@pytest.mark.parametrize(("start", "end"), [(-2, -1), (1, 2)])
def test_lists_out_of_their_time(bench, code_of, start, end):
    assert code_of(judge_crl, bench, write(bench, start=start, end=end)) == "pki.crl.stale"


def scope(**named):
    names = ("only_contains_user_certs", "only_contains_ca_certs", "indirect_crl", "only_contains_attribute_certs")
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier("http://ca.example/crl")],
        relative_name=None,
        only_some_reasons=named.pop("only_some_reasons", None),
        **{name: named.get(name, False) for name in names},
    )


def test_a_list_with_an_address_is_still_whole(bench):
    assert judge_crl(bench, write(bench, extensions=[(scope(), True)]))


@pytest.mark.parametrize(
    "extension",
    [
        scope(only_contains_user_certs=True),
        scope(only_contains_ca_certs=True),
        scope(indirect_crl=True),
        scope(only_some_reasons=frozenset({x509.ReasonFlags.key_compromise})),
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\0"),
    ],
)
def test_partial_lists(bench, code_of, extension):
    assert code_of(judge_crl, bench, write(bench, extensions=[(extension, True)])) == "pki.crl.extension"


def test_an_entry_of_another_issuer(bench, device, code_of):
    other = (x509.CertificateIssuer([x509.DirectoryName(bench.root.subject)]), True)
    raw = write(bench, entries=[entry(device.serial_number, bench.now, other)])
    assert code_of(judge_crl, bench, raw) == "pki.crl.extension"


def test_what_is_no_list(bench, code_of):
    for raw in (b"", b"x" * 100, write(bench, number=None)):
        assert code_of(judge_crl, bench, raw) == "pki.crl.malformed"


def test_every_changed_byte_of_a_list_is_seen(bench, device):
    from tidegate.base.errors import Rejected

    bench.authority.revoke(device.serial_number, Reason.SUPERSEDED)
    raw = bench.authority.crl()
    for at in range(0, len(raw), 3):
        changed = bytearray(raw)
        changed[at] ^= 0x41
        with pytest.raises(Rejected):
            judge_crl(bench, bytes(changed))


@pytest.mark.parametrize("algorithm", [SignatureAlgorithm.RSA_PSS, SignatureAlgorithm.ECDSA_P384])
def test_lists_of_other_keys(bench, algorithm):
    key = MemorySigner(algorithm)
    root = bench.sign("root-ca", Subject(common_name="Other"), key)
    assert judge_crl(bench, write(bench, key, issuer=root), issuer=root).number == 5


STRANGE = b"\x30\x04\xa5\x02\x05\x00"  # GeneralNames with an ediPartyName, which the library does not take


def test_a_list_with_a_name_that_the_library_does_not_take(bench, code_of):
    on_list = (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.18"), STRANGE), False)
    on_entry = (x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.29"), STRANGE), False)
    assert code_of(judge_crl, bench, write(bench, extensions=[on_list])) == "pki.crl.malformed"
    raw = write(bench, entries=[entry(7, bench.now, on_entry)])
    assert code_of(judge_crl, bench, raw) == "pki.crl.malformed"


@pytest.mark.parametrize("part", ["2a8648ce3d0201", "2a8648ce3d030107"], ids=["algorithm", "curve"])
def test_a_responder_with_a_key_that_nobody_reads(bench, device, code_of, part):
    key = MemorySigner(SignatureAlgorithm.ECDSA_P256)
    certificate = bench.sign("ocsp-responder", Subject(common_name="Responder"), key)
    raw = forge(bench, device, key, responder=certificate, sent=[certificate])
    known = bytes.fromhex(part)
    changed = raw.replace(known, known[:-1] + b"\x71")
    assert changed != raw
    assert code_of(judge_ocsp, bench, changed, device) == "pki.ocsp.responder"
