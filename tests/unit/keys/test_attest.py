"""Quotes without a TPM: statements are built by hand, so that each field can be wrong on its own."""

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.attest import MAX_ATTEST_BYTES, VerifiedQuote, parse_attest, verify_quote
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec, Quote

NONCE = b"0123456789abcdef"
VALUES = {0: hashlib.sha256(b"0").digest(), 7: hashlib.sha256(b"7").digest(), 16: bytes(32)}


def sized(data):
    return struct.pack(">H", len(data)) + data


def attest(values=VALUES, hashed=hashlib.sha256, **change):
    """Return a TPMS_ATTEST, its fields in order; ``change`` replaces some."""
    bits = sum(1 << pcr for pcr in values)
    fields = {
        "magic": bytes.fromhex("ff544347"),
        "type": bytes.fromhex("8018"),
        "signer": sized(b"\x00\x0b" + bytes(32)),
        "nonce": sized(NONCE),
        "clock": struct.pack(">QIIB", 1234, 5, 6, 1),
        "firmware": struct.pack(">Q", 0x2019102300163636),
        "count": struct.pack(">I", 1),
        "bank": struct.pack(">H", 0x000B),
        "select": b"\x03" + bits.to_bytes(3, "little"),
        "digest": sized(hashed(b"".join(values[pcr] for pcr in sorted(values))).digest()),
        "end": b"",
    }
    return b"".join((fields | change).values())


@pytest.fixture(scope="module")
def signers(tmp_path_factory):
    root = tmp_path_factory.mktemp("signers")
    (root / "secret").write_bytes(bytes(32))
    (root / "secret").chmod(0o600)
    store = SoftwareKeyStore.create(root / "store", DeviceSecretUnlock(root / "secret"))
    for algorithm in SignatureAlgorithm:
        store.generate(algorithm.label, KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
    return {algorithm: store.signer(algorithm.label) for algorithm in SignatureAlgorithm}


@pytest.fixture
def signer(signers):
    return signers[SignatureAlgorithm.ECDSA_P256]


def signed(signer, raw, values=VALUES):
    return Quote(attest=raw, signature=signer.sign(raw), pcrs=dict(values))


def check(quote, signer, *, nonce=NONCE, expected=None):
    return verify_quote(quote, key=signer.public_key, nonce=nonce, expected=expected)


def refusal(*arguments, **named):
    with pytest.raises(TidegateError) as caught:
        check(*arguments, **named)
    assert caught.value.code == "keys.quote.invalid"
    return caught.value.fields


@pytest.mark.parametrize(
    ("algorithm", "hashed"),
    [
        (SignatureAlgorithm.ECDSA_P256, hashlib.sha256),
        (SignatureAlgorithm.ECDSA_P384, hashlib.sha384),
        (SignatureAlgorithm.RSA_PSS, hashlib.sha256),
    ],
)
def test_a_good_quote(signers, algorithm, hashed):
    verified = check(signed(signers[algorithm], attest(hashed=hashed)), signers[algorithm], expected={7: VALUES[7]})
    assert verified.pcrs == VALUES
    told = verified.attestation
    assert (told.clock_ms, told.reset_count, told.restart_count, told.safe) == (1234, 5, 6, True)
    assert told.firmware_version == 0x2019102300163636
    assert told.nonce == NONCE


FORMS = {
    "magic": {"magic": bytes.fromhex("ff544348")},
    "type": {"type": bytes.fromhex("8017")},
    "signer": {"signer": sized(bytes(69))},
    "nonce": {"nonce": sized(bytes(69))},
    "clock": {"clock": struct.pack(">QIIB", 1, 1, 1, 2)},
    "no bank": {"count": bytes(4)},
    "two banks": {"count": struct.pack(">I", 2)},
    "many banks": {"count": b"\xff" * 4},
    "sha-1": {"bank": struct.pack(">H", 4)},
    "select of 0 bytes": {"select": b"\x00"},
    "select of 5 bytes": {"select": b"\x05" + bytes(4) + b"\x01"},
    "pcr 24": {"select": b"\x04\x81\x00\x01\x01"},
    "no pcr": {"select": b"\x03" + bytes(3)},
    "digest": {"digest": sized(bytes(70))},
    "end": {"end": b"\0"},
    "length": {"end": bytes(MAX_ATTEST_BYTES)},
}


@pytest.mark.parametrize("row", FORMS)
def test_statements_that_are_none(signer, row):
    assert refusal(signed(signer, attest(**FORMS[row])), signer)["check"] == "form"


def test_statements_that_end_early(signer):
    whole = attest()
    for end in range(len(whole)):
        assert refusal(signed(signer, whole[:end]), signer)["check"] == "form"


def test_every_bit_is_signed(signer):
    good = signed(signer, attest())
    for at in range(len(good.attest)):
        raw = bytearray(good.attest)
        raw[at] ^= 1
        altered = Quote(attest=bytes(raw), signature=good.signature, pcrs=good.pcrs)
        assert refusal(altered, signer)["check"] == "signature"


def test_another_key(signer, signers):
    other = signers[SignatureAlgorithm.RSA_PSS]
    assert refusal(signed(signer, attest()), other)["check"] == "signature"
    for signature in (b"", bytes(64), signed(signer, attest()).signature[:-1]):
        assert refusal(Quote(attest=attest(), signature=signature, pcrs=VALUES), signer)["check"] == "signature"


@pytest.mark.parametrize("algorithm", [SignatureAlgorithm.ED25519, SignatureAlgorithm.ML_DSA_65])
def test_keys_that_no_tpm_has(signers, algorithm):
    assert refusal(signed(signers[algorithm], attest()), signers[algorithm])["check"] == "algorithm"


@pytest.mark.parametrize("nonce", [b"0123456789abcdeg", NONCE[:-1], NONCE + b"\0", b"", b"short"])
def test_replays(signer, nonce):
    assert refusal(signed(signer, attest()), signer, nonce=nonce)["check"] == "nonce"


@pytest.mark.parametrize("nonce", [b"", b"1234567", bytes(33)])
def test_nonces_that_are_none_match_nothing(signer, nonce):
    """Not even themselves: an empty nonce would make every old quote a fresh one."""
    assert refusal(signed(signer, attest(nonce=sized(nonce))), signer, nonce=nonce)["check"] == "nonce"


def test_values_that_were_not_signed(signer):
    assert refusal(signed(signer, attest(), VALUES | {7: bytes(32)}), signer)["check"] == "digest"
    assert refusal(signed(signer, attest(), VALUES | {8: bytes(32)}), signer)["check"] == "selection"
    assert refusal(signed(signer, attest(), {0: VALUES[0]}), signer)["check"] == "selection"
    assert refusal(signed(signer, attest(), {}), signer)["check"] == "selection"
    shifted = VALUES | {0: VALUES[0] + VALUES[7][:1], 7: VALUES[7][1:]}
    assert refusal(signed(signer, attest(), shifted), signer)["check"] == "selection"


def test_unexpected_values_are_named(signer):
    quote = signed(signer, attest())
    fields = refusal(quote, signer, expected={0: VALUES[0], 7: bytes(32), 9: bytes(32)})
    assert fields == {"check": "pcrs", "pcrs": "7,9"}
    assert refusal(quote, signer, expected={})["check"] == "pcrs"


def test_nobody_else_makes_a_verified_quote(signer):
    told = check(signed(signer, attest()), signer).attestation
    with pytest.raises(TypeError):
        VerifiedQuote(pcrs={}, attestation=told, _proof=object())


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(raw):
    with pytest.raises(TidegateError) as caught:
        parse_attest(raw)
    assert caught.value.code == "keys.quote.invalid"


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 180), st.binary(max_size=6), st.integers(0, 8))
def test_any_damage(at, data, gap):
    whole = attest()
    raw = whole[:at] + data + whole[at + gap :]
    try:
        told = parse_attest(raw)
    except TidegateError as error:
        assert error.code == "keys.quote.invalid"
    else:
        assert told.pcrs
        assert len(raw) == len(whole) or len(told.nonce) + len(told.qualified_signer) + len(told.pcr_digest) < len(raw)
