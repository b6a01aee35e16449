"""The files of a TPM store, without a TPM: whatever is in them is read exactly or refused with one code."""

import base64
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tpm2_pytss.types import TPM2B_PUBLIC

from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.pcr_policy import encode_pcr_selection
from tidegate.keys.store import KeyPolicy, KeyPurpose, KeySpec
from tidegate.keys.tpm2_files import (
    PRIMARY_TEMPLATE,
    WrappedKey,
    check_key,
    encode_pem,
    encode_template,
    parse_pem,
    parse_public_area,
    policy_of,
    spec_of,
)
from tidegate.keys.tpm2_records import (
    CounterRecord,
    KeyRecord,
    StoreRecord,
    encode_counter,
    encode_record,
    encode_store,
    parse_counter,
    parse_record,
    parse_store,
)

P256 = SignatureAlgorithm.ECDSA_P256
POINT = bytes.fromhex(
    "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)  # P-256's own generator
SIGN = KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256)


def area(spec=SIGN, point=POINT):
    """Return the public area of a key of ``spec`` on P-256."""
    policy = policy_of(spec.policy, dict.fromkeys(spec.policy.pcrs, bytes(32)))
    half = len(point) // 2
    unique = b"".join(len(part).to_bytes(2, "big") + part for part in (point[:half], point[half:]))
    return encode_template(spec, policy)[:-4] + unique


PRIVATE = bytes(range(126))
KEY = WrappedKey(parent=0x40000001, public=area(), private=PRIVATE)
PEM = encode_pem(KEY)
RECORD = KeyRecord(name="k", spec=SIGN, certificates=(b"certificate",))


@contextlib.contextmanager
def malformed():
    with pytest.raises(TidegateError) as caught:
        yield
    assert caught.value.code == "keys.store.malformed"


def read_or_refused(parse, encode, raw):
    try:
        read = parse(raw)
    except TidegateError as error:
        assert error.code == "keys.store.malformed"
    else:
        assert encode is None or encode(read) == raw


def test_there_and_back():
    assert parse_pem(PEM) == KEY
    assert parse_record(encode_record(RECORD), "k") == RECORD
    for parent in (0x40000001, 0x81000001):
        store = StoreRecord(parent=parent, parent_name=bytes(34))
        assert parse_store(encode_store(store)) == store
    counter = CounterRecord(index=0x01500002, base=7)
    assert parse_counter(encode_counter(counter)) == counter
    assert parse_public_area(area()).public_key.raw == b"\4" + POINT
    assert check_key(RECORD, KEY, 0x40000001).spec == SIGN
    assert spec_of(area()) == SIGN


@pytest.mark.parametrize("purpose", [KeyPurpose.SIGN, KeyPurpose.ATTEST])
@pytest.mark.parametrize("algorithm", [P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.RSA_PSS])
def test_the_library_reads_our_templates(purpose, algorithm):
    template = encode_template(KeySpec(purpose=purpose, algorithm=algorithm), bytes(32))
    for raw in (template, encode_template(KeySpec(purpose=KeyPurpose.SEAL), b""), PRIMARY_TEMPLATE):
        sized = len(raw).to_bytes(2, "big") + raw
        read, used = TPM2B_PUBLIC.unmarshal(sized)
        assert used == len(sized)
        assert read.marshal() == sized


def test_selections():
    assert encode_pcr_selection(frozenset({7, 8})).hex() == "00000001000b03800100"
    assert encode_pcr_selection(frozenset({0, 23})).hex() == "00000001000b03010080"


def test_a_key_of_another_parent_in_the_file():
    with malformed():
        check_key(RECORD, KEY, 0x81000001)


def test_an_empty_auth_that_is_not():
    with malformed():
        check_key(RECORD, WrappedKey(parent=KEY.parent, public=KEY.public, private=PRIVATE, user_auth=True), KEY.parent)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        PEM[1:],
        PEM[:-1],
        PEM + b"\n",
        PEM.replace(b"\n", b"\r\n"),
        PEM.replace(b"TSS2 PRIVATE", b"EC PRIVATE"),
        PEM.replace(b"-----\n", b"-----\n\n", 1),
        PEM * 8,
        PEM[:33] + b"MAA=\n" + PEM[-31:],
        encode_pem(WrappedKey(parent=0, public=b"", private=b""))[:-33] + PEM[-31:],
    ],
)
def test_pem_files_that_are_none(raw):
    with malformed():
        parse_pem(raw)


def test_other_forms_of_the_same_key():
    """Other lengths, another boolean, an explicit parent of five bytes: one key has one file."""
    der = base64.b64decode(b"".join(PEM.splitlines()[1:-1]))
    forms = [
        der.replace(bytes.fromhex("a0030101ff"), bytes.fromhex("a003010101")),
        der.replace(bytes.fromhex("020440000001"), bytes.fromhex("02050040000001")),
        der.replace(bytes.fromhex("0606678105"), bytes.fromhex("0606678106")),
        der + b"\0",
        der[:-1],
    ]
    for form in forms:
        assert form != der
        text = base64.b64encode(form)
        lines = b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
        with malformed():
            parse_pem(PEM[:33] + lines + PEM[-31:])


@pytest.mark.parametrize(
    "raw",
    [
        PRIMARY_TEMPLATE,
        area()[:-1],
        area() + b"\0",
        area(point=POINT[:-1] + b"\xf6"),
        b"\0\x25" + area()[2:],
        area()[:2] + b"\0\x0c" + area()[4:],
        area().replace(b"\0\x10\0\x10\0\x03", b"\0\x10\0\x10\0\x05"),
        area().replace(b"\0\x10\0\x10\0\x03", b"\0\x10\0\x1a\0\x0b\0\x03"),
    ],
    ids=["storage", "short", "long", "no point", "symmetric", "sha-384 name", "p-521", "ecdaa"],
)
def test_public_areas_that_are_none(raw):
    with malformed():
        parse_public_area(raw)


@pytest.mark.parametrize("bit", [1, 4, 5, 6, 17, 18])
def test_keys_of_others_that_could_have_left_or_do_more(bit):
    raw = area()
    bits = int.from_bytes(raw[4:8], "big") ^ (1 << bit)
    with malformed():
        spec_of(raw[:4] + bits.to_bytes(4, "big") + raw[8:])


def test_keys_of_others_with_a_policy():
    with malformed():
        spec_of(area(KeySpec(purpose=KeyPurpose.SIGN, algorithm=P256, policy=KeyPolicy(pcrs=frozenset({7})))))


damage = (st.integers(0, 700), st.binary(max_size=5), st.integers(0, 6))


@settings(max_examples=500, deadline=None)
@given(*damage)
def test_damaged_files(at, data, gap):
    record = encode_record(RECORD)
    read_or_refused(parse_pem, encode_pem, PEM[:at] + data + PEM[at + gap :])
    read_or_refused(lambda raw: parse_record(raw, "k"), encode_record, record[:at] + data + record[at + gap :])
    read_or_refused(parse_public_area, None, KEY.public[:at] + data + KEY.public[at + gap :])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(raw):
    read_or_refused(parse_pem, encode_pem, raw)
    text = base64.b64encode(raw)
    lines = b"".join(text[start : start + 64] + b"\n" for start in range(0, len(text), 64))
    read_or_refused(parse_pem, encode_pem, PEM[:33] + lines + PEM[-31:])
    read_or_refused(parse_public_area, None, raw)
    read_or_refused(parse_store, encode_store, raw)
    read_or_refused(parse_counter, encode_counter, raw)
    read_or_refused(lambda raw: parse_record(raw, "k"), encode_record, raw)
