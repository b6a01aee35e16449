"""A ceremony's plan, shares and transcript without a token: a row per refusal."""

from __future__ import annotations

import pytest

from tidegate.base.clock import SystemEntropy
from tidegate.base.errors import TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.cose import sign_envelope
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.factory.ceremony import (
    ROLE,
    KeyRecord,
    Transcript,
    differences,
    parse_plan,
    share_name,
    sign_transcript,
    verify_transcript,
)
from tidegate.factory.shares import ShareHead, divide, join, make_pin, open_share, parse_share, pin_of, seal_share
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

PLAN = """
maker = "Example Maker"
token = "pkcs11:token=maker?module-path=/m.so"
backup_token = "pkcs11:token=backup?module-path=/m.so"
threshold = 2
operators = ["Alice", "Bob", "Carol"]
[[keys]]
name = "release"
algorithm = "ecdsa-p384"
backup = true
[[keys]]
name = "policy"
algorithm = "ecdsa-p256"
"""
HEADS = [
    ShareHead(ceremony="c" * 16, operator=name, threshold=2, shares=3, letters=16) for name in ("Alice", "Bob", "Carol")
]


def code_of(call, *arguments, **named) -> str:
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


def test_a_plan_says_what_it_says() -> None:
    plan = parse_plan(PLAN.encode(), name="plan.toml")
    assert plan.operators == ("Alice", "Bob", "Carol")
    assert [key.name for key in plan.keys] == ["release", "policy"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "factory.ceremony.plan"),
        ("\x00", "factory.ceremony.plan"),
        (PLAN.replace("threshold = 2", "threshold = 4"), "factory.ceremony.plan"),
        (PLAN.replace("threshold = 2", "threshold = 1"), "factory.ceremony.plan"),
        (PLAN.replace('"Bob"', '"alice"'), "factory.ceremony.plan"),
        (PLAN.replace('"Bob"', '"../x"'), "factory.ceremony.plan"),
        (PLAN.replace('name = "policy"', 'name = "release"'), "factory.ceremony.plan"),
        (PLAN.replace("backup_token", "#"), "factory.ceremony.plan"),
        (PLAN.replace("place", "plaze") + "\nplaze = 1", "factory.ceremony.plan"),
        (PLAN + "#" * 17_000, "factory.ceremony.plan"),
        (PLAN.replace('name = "policy"', 'name = "../policy"'), "keys.name.invalid"),
        (PLAN.replace("ecdsa-p256", "rsa-1024"), "crypto.algorithm.unknown"),
        (PLAN.replace("pkcs11:token=maker", "pkcs11:token=maker;pin-value=1"), "keys.uri.malformed"),
    ],
)
def test_a_bad_plan_is_refused(text: str, code: str) -> None:
    assert code_of(parse_plan, text.encode(), name="plan.toml") == code


def test_any_two_of_three_shares_give_the_pin() -> None:
    secret, pin = make_pin(SystemEntropy(), 16)
    words = divide(secret, HEADS)
    for pair in ((0, 1), (0, 2), (1, 2), (2, 0)):
        assert bytes(pin_of(join([words[one] for one in pair]), 16).view()) == bytes(pin.view())
    assert len(pin) == 16
    assert set(bytes(pin.view())) <= set(b"abcdefghijklmnopqrstuvwxyz234567")


def test_one_share_or_shares_of_two_ceremonies_give_nothing() -> None:
    words, others = (divide(make_pin(SystemEntropy(), 16)[0], HEADS) for _ in range(2))
    altered = Secret(bytes(words[1].view()).replace(bytes(words[1].view()).split()[-1], b"academic"))
    for bad in ([words[0]], [words[0], words[0]], [words[0], others[1]], [words[0], altered], [], [Secret(b"\xff")]):
        assert code_of(join, bad) == "factory.shares.insufficient"


def test_a_share_opens_with_its_operators_passphrase_alone() -> None:
    raw = seal_share(HEADS[0], Secret(b"some words"), Secret(b"alice's"), SystemEntropy())
    head, words = open_share(raw, Secret(b"alice's"))
    assert (head, bytes(words.view())) == (HEADS[0], b"some words")
    assert code_of(open_share, raw, Secret(b"bob's")) == "factory.share.refused"
    assert b"some words" not in raw


def test_a_share_is_bound_to_its_head() -> None:
    raw = seal_share(HEADS[0], Secret(b"some words"), Secret(b"p"), SystemEntropy())
    document = cbor.decode(raw, limit_bytes=4096)
    assert isinstance(document, dict)
    for member, value in (("operator", "Bob"), ("threshold", 3), ("letters", 8), ("salt", bytes(32))):
        assert code_of(open_share, cbor.encode({**document, member: value}), Secret(b"p")) == "factory.share.refused"


@pytest.mark.parametrize("raw", [b"", b"\xa0", cbor.encode([1]), cbor.encode({"format": "tidegate.share.v1"})])
def test_what_is_no_share(raw: bytes) -> None:
    assert code_of(parse_share, raw) == "factory.share.malformed"


def test_a_share_with_more_than_it_may_have() -> None:
    raw = seal_share(HEADS[0], Secret(b"w"), Secret(b"p"), SystemEntropy())
    document = cbor.decode(raw, limit_bytes=4096)
    assert isinstance(document, dict)
    for extra in ({"more": 1}, {"threshold": 1}, {"shares": 17}, {"salt": b""}, {"letters": "x"}):
        assert code_of(parse_share, cbor.encode({**document, **extra})) == "factory.share.malformed"


class Bench:
    def __init__(self, folder) -> None:
        secret = folder / "secret"
        secret.write_bytes(bytes(range(32)))
        secret.chmod(0o600)
        self.store = SoftwareKeyStore.create(folder / "keys", DeviceSecretUnlock(secret))
        for name, algorithm in (("release", SignatureAlgorithm.ECDSA_P384), ("policy", SignatureAlgorithm.ECDSA_P256)):
            self.store.generate(name, KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm))
        self.signers = [self.store.signer(name) for name in ("release", "policy")]

    def transcript(self, **changes) -> Transcript:
        members = {
            "ceremony": "00112233",
            "maker": "Example Maker",
            "place": "",
            "started_s": 1,
            "ended_s": 2,
            "version": "0",
            "threshold": 2,
            "shares": {"Alice": bytes(32), "Bob": bytes(32), "Carol": bytes(32)},
            "tokens": {"first": {"label": "maker"}},
            "keys": tuple(
                KeyRecord(name=name, public_key=signer.public_key, is_backed_up=name == "release")
                for name, signer in zip(("release", "policy"), self.signers, strict=True)
            ),
        }
        return Transcript(**{**members, **changes})


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def test_a_transcript_comes_back(bench) -> None:
    told = bench.transcript()
    assert verify_transcript(sign_transcript(told, bench.signers)).transcript == told


def test_every_flipped_byte_of_a_transcript_is_refused(bench) -> None:
    raw = sign_transcript(bench.transcript(), bench.signers)
    for place in range(len(raw)):
        altered = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        with pytest.raises(TidegateError):
            verify_transcript(altered)


def test_a_transcript_lacking_a_signature_or_signed_by_a_stranger(bench, tmp_path) -> None:
    told = bench.transcript()
    assert code_of(verify_transcript, sign_transcript(told, bench.signers[:1])) == "crypto.signature.threshold"
    (tmp_path / "other").mkdir()
    stranger = Bench(tmp_path / "other")
    assert code_of(verify_transcript, sign_transcript(told, stranger.signers)) == "crypto.signature.unknown-key"


def test_another_role_is_no_transcript(bench) -> None:
    raw = sign_envelope("tidegate.policy.v1", bench.transcript().encode(), bench.signers)
    assert code_of(verify_transcript, raw) == "crypto.envelope.context"


@pytest.mark.parametrize(
    "payload",
    [
        1,
        {},
        {"keys": []},
        {"keys": [1] * 9},
        {"shares": {1: b""}},
        {"shares": {"a": 1}},
        {"tokens": {"first": 1}},
        {"keys": [{"name": "x"}]},
        {"more": 1},
    ],
)
def test_a_malformed_transcript(bench, payload) -> None:
    whole = cbor.decode(bench.transcript().encode(), limit_bytes=8192)
    changed = {**whole, **payload} if isinstance(payload, dict) and payload else payload
    raw = sign_envelope(ROLE, cbor.encode(changed), bench.signers)
    assert code_of(verify_transcript, raw) == "factory.ceremony.transcript"


def test_the_same_key_twice(bench) -> None:
    told = bench.transcript()
    raw = sign_envelope(ROLE, bench.transcript(keys=told.keys[:1] * 2).encode(), bench.signers[:1])
    assert code_of(verify_transcript, raw) == "factory.ceremony.transcript"


def test_differences_are_named(bench) -> None:
    plan = parse_plan(PLAN.encode(), name="plan")
    assert differences(plan, bench.transcript()) == []
    found = differences(plan, bench.transcript(threshold=3, maker="Other", shares={}, keys=()))
    assert [one.split(":")[0] for one in found] == ["maker", "threshold", "operators", "keys"]


def test_a_share_file_is_named_after_its_operator() -> None:
    assert share_name("Alice B") == "alice-b.share"
