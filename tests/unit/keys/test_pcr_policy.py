"""Policies and statements of a PCR authority, without a TPM: digests by hand, every refusal, any bytes."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.signing import SignatureAlgorithm, Signer
from tidegate.keys.keyd_wire import Operation, Request, encode_request, parse_request
from tidegate.keys.pcr_policy import (
    MAX_STATEMENT_BYTES,
    Statement,
    VerifiedStatement,
    authority_area,
    authority_name,
    authorized_message,
    authorized_policy,
    choose_statement,
    encode_pcr_selection,
    encode_statement,
    message_digest,
    parse_statement,
    pcr_policy,
    policy_reference,
    sign_statement,
    verify_statement,
    with_auth_value,
)
from tidegate.keys.store import Capabilities, KeyPolicy, KeyPurpose, KeySpec, PcrAuthority
from tidegate.keys.tpm2_files import policy_of
from tidegate.pki.keyadapter import public_key_of

P256, P384, RSA = SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.RSA_PSS
VALUES = {7: hashlib.sha256(b"7").digest(), 11: hashlib.sha256(b"11").digest()}
PCRS = frozenset(VALUES)


class Holder(Signer):
    """A private key in memory."""

    def __init__(self, private, algorithm):
        self.private, self.algorithm = private, algorithm

    @property
    def public_key(self):
        return public_key_of(self.private.public_key())

    def sign(self, message):
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import utils

        from tidegate.crypto.signing import curve_of, rsa_pss_padding

        if self.algorithm is RSA:
            return self.private.sign(message, rsa_pss_padding(), hashes.SHA256())
        if self.algorithm is SignatureAlgorithm.ED25519:
            return self.private.sign(message)
        _, hashed, size = curve_of(self.algorithm)
        r, s = utils.decode_dss_signature(self.private.sign(message, ec.ECDSA(hashed)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")


@pytest.fixture(scope="module")
def holders():
    return {
        P256: Holder(ec.generate_private_key(ec.SECP256R1()), P256),
        P384: Holder(ec.generate_private_key(ec.SECP384R1()), P384),
        RSA: Holder(rsa.generate_private_key(65_537, 3072), RSA),
        None: Holder(ec.generate_private_key(ec.SECP256R1()), P256),
    }


@pytest.fixture
def signer(holders):
    return holders[P256]


@pytest.fixture
def authority(signer):
    return PcrAuthority(key=signer.public_key, product="box")


def refusal(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value


# ---- digests -------------------------------------------------------------------------------------------------


def test_policies_by_hand(authority):
    """Part 3 of the standard, written down once more."""

    def sha256(*parts):
        return hashlib.sha256(b"".join(parts)).digest()

    selection = bytes.fromhex("00000001000b03800800")
    assert encode_pcr_selection(PCRS) == selection
    pcr = sha256(bytes(32), bytes.fromhex("0000017f"), selection, sha256(VALUES[7], VALUES[11]))
    assert pcr_policy(VALUES) == pcr_policy(dict(reversed(VALUES.items()))) == pcr
    reference = sha256(b"tidegate pcr authority v1\0box\0", selection)
    assert policy_reference("box", PCRS, None) == reference
    assert policy_reference("box", PCRS, 258) == sha256(b"tidegate pcr authority v1\0box\0", selection, b"\0\0\1\2")
    point = authority.key.raw
    area = bytes.fromhex("0023000b0004004000000010" + "0018000b" + "00030010")
    area += b"\0\x20" + point[1:33] + b"\0\x20" + point[33:]
    assert authority_area(authority.key) == area
    name = b"\0\x0b" + sha256(area)
    assert authority_name(authority.key) == name
    authorized = sha256(sha256(bytes(32), bytes.fromhex("0000016a"), name), reference)
    assert authorized_policy(authority, PCRS, None) == authorized
    assert with_auth_value(authorized) == sha256(authorized, bytes.fromhex("0000016b"))
    assert authorized_message("box", VALUES, None) == pcr + reference
    policy = KeyPolicy(pcrs=PCRS, pcr_authority=authority)
    assert policy_of(policy, {}) == authorized
    policy = KeyPolicy(pcrs=PCRS, pcr_authority=authority, user_auth=True)
    assert policy_of(policy, {}) == with_auth_value(authorized)
    assert policy_of(KeyPolicy(pcrs=PCRS), VALUES) == pcr


@pytest.mark.parametrize("algorithm", [P256, P384, RSA])
def test_what_the_authority_signs_is_what_the_tpm_hashes(holders, algorithm):
    holder = holders[algorithm]
    authority = PcrAuthority(key=holder.public_key, product="box")
    statement = parse_statement(sign_statement(holder, "box", VALUES))
    verified = verify_statement(statement, authority=authority, pcrs=PCRS)
    hashed = {P256: "sha256", P384: "sha384", RSA: "sha256"}[algorithm]
    message = authorized_message("box", VALUES, None)
    assert message_digest(verified) == hashlib.new(hashed, message).digest()
    assert authority_name(holder.public_key)[2:] == hashlib.new(hashed, authority_area(holder.public_key)).digest()
    assert len(sign_statement(holder, "x" * 64, dict.fromkeys(range(24), bytes(32)))) < MAX_STATEMENT_BYTES


def test_each_part_of_the_reference_counts():
    sets = (PCRS, PCRS - {7}, PCRS | {0})
    known = {policy_reference(product, pcrs, one) for product in "abc" for pcrs in sets for one in (None, 1, 2)}
    assert len(known) == 27


# ---- statements ----------------------------------------------------------------------------------------------


def test_there_and_back(signer, authority):
    raw = sign_statement(signer, "box", VALUES)
    statement = parse_statement(raw)
    assert encode_statement(statement) == raw
    assert verify_statement(statement, authority=authority, pcrs=PCRS).pcrs == VALUES
    assert (
        choose_statement([("a", raw)], authority=authority, current=VALUES, versions=(None,)).signature
        == statement.signature
    )


def test_a_proof_comes_from_the_check_alone(authority):
    with pytest.raises(TypeError):
        VerifiedStatement(authority=authority, pcrs=VALUES, signature=b"", version=None, _proof=None)


@pytest.mark.parametrize(
    ("product", "values"),
    [
        ("Box", VALUES),
        ("", VALUES),
        ("a\0b", VALUES),
        ("box", {}),
        ("box", {24: bytes(32)}),
        ("box", {-1: bytes(32)}),
        ("box", {7: bytes(31)}),
        ("box", VALUES | {0: b""}),
    ],
)
def test_statements_that_nobody_can_make(signer, product, values):
    assert refusal(sign_statement, signer, product, values).code == "keys.pcr.statement"


def test_signers_that_no_tpm_verifies():
    signer = Holder(ed25519.Ed25519PrivateKey.generate(), SignatureAlgorithm.ED25519)
    assert refusal(sign_statement, signer, "box", VALUES).code == "keys.capability.missing"
    assert refusal(authority_area, signer.public_key).code == "keys.capability.missing"
    with pytest.raises(ValueError, match="ed25519"):
        PcrAuthority(key=signer.public_key, product="box")


def test_a_signer_that_fails_gives_no_statement(signer, monkeypatch):
    monkeypatch.setattr(signer, "sign", lambda message: bytes(64), raising=False)
    assert refusal(sign_statement, signer, "box", VALUES).fields["check"] == "signature"


FORMS = {
    "version": lambda one: one | {"format": "tidegate.pcr-statement.v2"},
    "more": lambda one: one | {"more": 1},
    "less": lambda one: {name: value for name, value in one.items() if name != "signature"},
    "product": lambda one: one | {"product": "B"},
    "product bytes": lambda one: one | {"product": b"box"},
    "key id": lambda one: one | {"key_id": bytes(31)},
    "no registers": lambda one: one | {"pcrs": {}},
    "register": lambda one: one | {"pcrs": {24: bytes(32)}},
    "negative": lambda one: one | {"pcrs": {-1: bytes(32)}},
    "text register": lambda one: one | {"pcrs": {"7": bytes(32)}},
    "value": lambda one: one | {"pcrs": {7: bytes(20)}},
    "text value": lambda one: one | {"pcrs": {7: "0" * 32}},
    "signature": lambda one: one | {"signature": None},
    "version 0": lambda one: one | {"version": 0},
    "true version": lambda one: one | {"version": True},
    "text version": lambda one: one | {"version": "1"},
    "large version": lambda one: one | {"version": 1 << 32},
    "long": lambda one: one | {"signature": bytes(MAX_STATEMENT_BYTES)},
    "text": lambda one: "text",
    "tag": lambda one: cbor.Tagged(tag=18, value=one),
}


@pytest.mark.parametrize("row", FORMS)
def test_files_that_are_no_statements(signer, row):
    document = cbor.decode(sign_statement(signer, "box", VALUES), limit_bytes=MAX_STATEMENT_BYTES)
    error = refusal(parse_statement, cbor.encode(FORMS[row](document)))
    assert (error.code, error.fields["check"]) == ("keys.pcr.statement", "form")


def statement_of(signer, **members):
    one = parse_statement(sign_statement(signer, "box", VALUES))
    known = {name: getattr(one, name) for name in ("product", "key_id", "pcrs", "signature", "version")}
    return Statement(**(known | members))


def test_each_duty_refuses(holders, signer, authority):
    other = {7: bytes(32), 11: VALUES[11]}
    key_id = authority.key.key_id.digest
    rows = [
        (statement_of(signer, product="cam"), "product"),
        (statement_of(signer, pcrs={7: VALUES[7]}), "registers"),
        (statement_of(signer, pcrs=VALUES | {0: bytes(32)}), "registers"),
        (statement_of(signer, key_id=bytes(32)), "authority"),
        (statement_of(holders[None]), "authority"),
        (statement_of(signer, version=1), "version"),
        (statement_of(holders[None], key_id=key_id), "signature"),
        (statement_of(holders[P384], key_id=key_id), "signature"),
        (statement_of(signer, pcrs=other), "signature"),
        (statement_of(signer, signature=b""), "signature"),
        (statement_of(signer, signature=bytes(64)), "signature"),
    ]
    for statement, check in rows:
        error = refusal(verify_statement, statement, authority=authority, pcrs=PCRS)
        assert (error.code, error.fields["check"]) == ("keys.pcr.statement", check)


def test_the_right_one_among_many(holders, signer, authority):
    other = VALUES | {7: bytes(32)}
    files = [
        ("damaged", b"\xff"),
        ("other product", sign_statement(signer, "cam", VALUES)),
        ("other registers", sign_statement(signer, "box", {7: VALUES[7]})),
        ("other authority", sign_statement(holders[None], "box", VALUES)),
        ("other values", sign_statement(signer, "box", other)),
    ]
    error = refusal(choose_statement, files, authority=authority, current=VALUES, versions=(None,))
    assert error.code == "keys.pcr.no-statement"
    assert (error.fields["other_keys"], error.fields["other_values"], error.fields["damaged"]) == (3, 1, 1)
    assert error.fields["pcr7_current"] == VALUES[7].hex()
    forged = ("forged", encode_statement(statement_of(holders[None], key_id=authority.key.key_id.digest)))
    error = refusal(choose_statement, [*files, forged], authority=authority, current=VALUES, versions=(None,))
    assert (error.code, error.fields["file"]) == ("keys.pcr.statement", "forged")
    good = ("good", sign_statement(signer, "box", VALUES))
    assert (
        choose_statement([forged, *files, good], authority=authority, current=VALUES, versions=(None,)).pcrs == VALUES
    )
    assert choose_statement([*files, good], authority=authority, current=other, versions=(None,)).pcrs == other
    assert (
        refusal(choose_statement, [], authority=authority, current=VALUES, versions=(None,)).code
        == "keys.pcr.no-statement"
    )


def test_versions_from_the_floor_on(signer, authority):
    floored = PcrAuthority(key=authority.key, product="box", floor="count")
    files = [(str(version), sign_statement(signer, "box", VALUES, version=version)) for version in (None, 1, 2, 3)]
    choose = {"authority": floored, "current": VALUES}
    for floor in (1, 2, 3):
        assert choose_statement(files, **choose, versions=range(floor, 9)).version == floor
    error = refusal(choose_statement, files, **choose, versions=range(4, 9))
    assert (error.code, error.fields["other_versions"], error.fields["other_keys"]) == ("keys.pcr.no-statement", 3, 1)
    raised = parse_statement(files[1][1])
    lie = Statement(product="box", key_id=raised.key_id, pcrs=raised.pcrs, signature=raised.signature, version=4)
    error = refusal(choose_statement, [("lie", encode_statement(lie))], **choose, versions=range(4, 9))
    assert (error.code, error.fields["check"]) == ("keys.pcr.statement", "signature")
    for version in (0, -1, True, 1 << 32):
        assert refusal(sign_statement, signer, "box", VALUES, version=version).code == "keys.pcr.statement"


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 400), st.binary(max_size=5), st.integers(0, 6))
def test_damaged_statements(at, data, gap):
    raw = RAW[:at] + data + RAW[at + gap :]
    try:
        read = parse_statement(raw)
    except TidegateError as error:
        assert error.code == "keys.pcr.statement"
    else:
        assert encode_statement(read) == raw
        if raw != RAW:
            with pytest.raises(TidegateError):
                verify_statement(read, authority=OWNER, pcrs=PCRS)


_SIGNER = Holder(ec.derive_private_key(7, ec.SECP256R1()), P256)
OWNER = PcrAuthority(key=_SIGNER.public_key, product="box")
RAW = sign_statement(_SIGNER, "box", VALUES)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes(raw):
    try:
        assert encode_statement(parse_statement(raw)) == raw
    except TidegateError as error:
        assert error.code == "keys.pcr.statement"


# ---- policies in records and on wires ------------------------------------------------------------------------


def test_policies_that_are_none(authority):
    with pytest.raises(ValueError, match="bound to nothing"):
        KeyPolicy(pcr_authority=authority)
    with pytest.raises(ValueError, match="named"):
        PcrAuthority(key=authority.key, product="no name")


def test_a_provider_that_binds_to_registers_may_not_follow_authorities(authority):
    """Not to know the field must not mean to ignore it."""
    able = Capabilities(
        provider="other",
        hardware=True,
        algorithms=frozenset({P256}),
        can_seal=True,
        can_count=False,
        counter_resists_rollback=False,
        can_quote=True,
        can_bind_pcrs=True,
    )
    spec = KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(pcrs=PCRS, pcr_authority=authority))
    assert refusal(able.require, spec).code == "keys.capability.missing"
    able.require(KeySpec(purpose=KeyPurpose.SEAL, policy=KeyPolicy(pcrs=PCRS)))


def test_the_key_process_carries_the_authority(holders):
    for algorithm in (P256, P384, RSA):
        authority = PcrAuthority(key=holders[algorithm].public_key, product="box")
        floored = PcrAuthority(key=authority.key, product="box", floor="count")
        policies = [KeyPolicy(pcrs=PCRS, pcr_authority=one) for one in (authority, floored, None)]
        for policy in policies:
            request = Request(
                operation=Operation.GENERATE, name="k", arguments=(KeySpec(purpose=KeyPurpose.SEAL, policy=policy),)
            )
            assert parse_request(encode_request(request)).arguments == request.arguments


@pytest.mark.parametrize(
    "row", ["no key", "bad product", "no register", "ed25519", "short", "bad floor", "text", "old form"]
)
def test_what_the_key_process_refuses(authority, row):
    key = authority.key.encode()
    edward = public_key_of(ed25519.Ed25519PrivateKey.generate().public_key())
    member, pcrs = {
        "no key": ([b"", "box", None], [7]),
        "bad product": ([key, "Box", None], [7]),
        "no register": ([key, "box", None], []),
        "ed25519": ([edward.encode(), "box", None], [7]),
        "short": ([key, "box"], [7]),
        "bad floor": ([key, "box", "Count"], [7]),
        "text": ("box", [7]),
        "old form": (None, [7]),
    }[row]
    policy = [False, pcrs, False] if row == "old form" else [False, pcrs, False, member]
    body = cbor.encode([1, "generate", "k", [["seal", None, policy]]])
    error = refusal(parse_request, body)
    assert error.code.startswith(("keys.keyd.malformed", "crypto."))
