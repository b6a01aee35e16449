"""Envelopes: each way to be wrong has its own code, and nothing but the untouched bytes is accepted."""

import pytest

from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.cose import (
    MAX_ENVELOPE_BYTES,
    MAX_SIGNATURES,
    VerifiedEnvelope,
    sign_envelope,
    unverified_payload,
    verify_envelope,
)
from tidegate.crypto.errors import EnvelopeSigners, EnvelopeTooLarge, TrustPolicyEmpty
from tidegate.crypto.signing import AlgorithmClass
from tidegate.crypto.trust import TrustPolicy, hybrid_trust

CONTEXT = "tidegate.test.v1"
PAYLOAD = b"what the maker says"


def refused(raw, trust, context=CONTEXT):
    with pytest.raises(Rejected) as caught:
        verify_envelope(raw, context=context, trust=trust)
    return caught.value.code


@pytest.fixture(scope="session")
def trust(classical, post_quantum):
    return hybrid_trust([classical.public_key, post_quantum.public_key])


@pytest.fixture(scope="session")
def good(classical, post_quantum):
    return sign_envelope(CONTEXT, PAYLOAD, [classical, post_quantum])


def alone(*signers, threshold=1):
    return TrustPolicy(
        keys=tuple(signer.public_key for signer in signers), threshold=threshold, required_classes=frozenset()
    )


def test_both_keys_are_accepted(good, trust, classical, post_quantum):
    verified = verify_envelope(good, context=CONTEXT, trust=trust)
    assert verified.payload == PAYLOAD
    assert verified.context == CONTEXT
    assert verified.signers == (classical.public_key.key_id, post_quantum.public_key.key_id)
    assert unverified_payload(good) == PAYLOAD


@pytest.mark.parametrize("label", ["ed25519", "ecdsa-p256", "ecdsa-p384", "ml-dsa-65", "ml-dsa-87"])
def test_every_algorithm_signs_and_another_key_of_it_does_not(label, make_signer):
    signer, other = make_signer(label), make_signer(label)
    raw = sign_envelope(CONTEXT, PAYLOAD, [signer])
    assert verify_envelope(raw, context=CONTEXT, trust=alone(signer)).payload == PAYLOAD
    assert refused(raw, alone(other)) == "crypto.signature.unknown-key"


def test_one_of_the_two_keys_only(classical, post_quantum, trust):
    assert refused(sign_envelope(CONTEXT, PAYLOAD, [classical]), trust) == "crypto.signature.missing-class"
    assert refused(sign_envelope(CONTEXT, PAYLOAD, [post_quantum]), trust) == "crypto.signature.missing-class"


def test_threshold(make_signer):
    first, second, third = (make_signer() for _ in range(3))
    policy = alone(first, second, third, threshold=2)
    assert refused(sign_envelope(CONTEXT, PAYLOAD, [first]), policy) == "crypto.signature.threshold"
    assert len(verify_envelope(sign_envelope(CONTEXT, PAYLOAD, [first, third]), context=CONTEXT, trust=policy).signers)


def test_unknown_key_beside_two_trusted_ones(classical, post_quantum, trust, make_signer):
    raw = sign_envelope(CONTEXT, PAYLOAD, [classical, post_quantum, make_signer()])
    assert refused(raw, trust) == "crypto.signature.unknown-key"


@pytest.mark.parametrize("other", ["tidegate.policy.v1", "tidegate.test.v2", "", CONTEXT + "\0", CONTEXT[:-1]])
def test_another_role(good, trust, other):
    assert refused(good, trust, other) == "crypto.envelope.context"


def test_role_exchanged_after_signing(good, trust, forge):
    other = forge.body("tidegate.text.v1")
    raw = good.replace(forge.body(), other)
    assert raw != good
    assert refused(raw, trust, "tidegate.text.v1") == "crypto.signature.invalid"


def test_one_key_twice(forge, classical, post_quantum, trust):
    entries = [forge.entry(signer, PAYLOAD) for signer in (classical, classical, post_quantum)]
    assert refused(forge.envelope(entries, PAYLOAD), trust) == "crypto.signature.duplicate"


def test_one_key_twice_does_not_reach_a_threshold(forge, make_signer):
    first, second = make_signer(), make_signer()
    entries = [forge.entry(first, PAYLOAD), forge.entry(first, PAYLOAD)]
    assert refused(forge.envelope(entries, PAYLOAD), alone(first, second, threshold=2)) == "crypto.signature.duplicate"


def test_each_flipped_bit_is_refused(make_signer):
    signer, second = make_signer("ed25519"), make_signer("ecdsa-p256")
    policy = alone(signer, second, threshold=2)
    raw = sign_envelope(CONTEXT, PAYLOAD, [signer, second])
    for position in range(len(raw)):
        for bit in range(8):
            flipped = bytearray(raw)
            flipped[position] ^= 1 << bit
            refused(bytes(flipped), policy)


def test_flipped_bit_in_each_part_of_a_hybrid_envelope(good, trust):
    body, _, payload, signatures = cbor.decode(good, limit_bytes=MAX_ENVELOPE_BYTES).value
    parts = {"payload": payload}
    for number, (protected, _, signature) in enumerate(signatures):
        parts |= {f"protected {number}": protected[-32:], f"signature {number}": signature}
    expected = {
        "payload": "crypto.signature.invalid",
        "protected 0": "crypto.signature.unknown-key",
        "protected 1": "crypto.signature.unknown-key",
        "signature 0": "crypto.signature.invalid",
        "signature 1": "crypto.signature.invalid",
    }
    assert body
    for name, part in parts.items():
        for position in (0, len(part) // 2, len(part) - 1):
            at = good.index(part) + position
            assert refused(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :], trust) == expected[name], name


@pytest.mark.parametrize("tail", [b"\0", b"\xf6", b"\xd8\x62"])
def test_bytes_behind_the_envelope(good, trust, tail):
    assert refused(good + tail, trust) == "crypto.cbor.malformed"


def test_every_truncation_is_refused(good, trust):
    for length in [*range(40), *range(40, len(good), 97), len(good) - 1]:
        assert refused(good[:length], trust) == "crypto.cbor.malformed"


def test_too_long(trust):
    assert refused(bytes(MAX_ENVELOPE_BYTES + 1), trust) == "crypto.cbor.limit"


def test_payload_of_another_envelope(good, trust, classical, post_quantum):
    other = sign_envelope(CONTEXT, b"what the thief says", [classical, post_quantum])
    assert len(other) != 0
    assert refused(good.replace(PAYLOAD, b"what the thief says"), trust) == "crypto.signature.invalid"


def test_signature_of_another_envelope(forge, make_signer):
    signer = make_signer()
    entry = forge.entry(signer, b"another payload")
    assert refused(forge.envelope([entry], PAYLOAD), alone(signer)) == "crypto.signature.invalid"


def test_signature_of_another_cose_structure(forge, make_signer):
    """A COSE_Sign1 signature is over "Signature1" and has no protected header of its own."""
    signer = make_signer()
    entry = forge.entry(signer, PAYLOAD, context=b"Signature1")
    assert refused(forge.envelope([entry], PAYLOAD), alone(signer)) == "crypto.signature.invalid"


def test_unprotected_headers_must_be_empty(forge, make_signer):
    signer = make_signer()
    entry = forge.entry(signer, PAYLOAD)
    outer = forge.envelope([entry], PAYLOAD, unprotected={4: b"kid"})
    inner = forge.envelope([forge.entry(signer, PAYLOAD, unprotected={1: -19})], PAYLOAD)
    assert refused(outer, alone(signer)) == "crypto.envelope.malformed"
    assert refused(inner, alone(signer)) == "crypto.envelope.malformed"


@pytest.mark.parametrize("algorithm", [-9, -8, -7, -50, -49, -257, 0, 1, 5, 2**63, True, None, "ed25519", b"\x13"])
def test_algorithm_that_the_key_does_not_have(forge, make_signer, algorithm):
    signer = make_signer("ed25519")
    header = {1: algorithm, 4: signer.public_key.key_id.digest}
    raw = forge.envelope([forge.entry(signer, PAYLOAD, header=header)], PAYLOAD)
    assert refused(raw, alone(signer)) == "crypto.algorithm.unknown"


def test_same_bytes_as_a_key_of_another_algorithm(forge, make_signer):
    """The key id covers the algorithm, so a key's bytes under another name are another key."""
    signer = make_signer("ml-dsa-65")
    kid = signer.public_key.key_id.digest
    raw = forge.envelope([forge.entry(signer, PAYLOAD, header={1: -50, 4: kid})], PAYLOAD)
    assert refused(raw, alone(signer)) == "crypto.algorithm.unknown"


@pytest.mark.parametrize(
    "change",
    [
        lambda header: {1: header[1]},
        lambda header: {4: header[4]},
        lambda header: {},
        lambda header: [header[1], header[4]],
        lambda header: {**header, 2: [1]},
        lambda header: {**header, 5: b"iv"},
        lambda header: {**header, "x": 1},
        lambda header: {1: header[1], 4: header[4].hex()},
        lambda header: {1: header[1], 4: None},
        lambda header: header[4],
    ],
)
def test_protected_header_with_more_or_less(forge, make_signer, change):
    signer = make_signer()
    header = change({1: int(signer.public_key.algorithm), 4: signer.public_key.key_id.digest})
    raw = forge.envelope([forge.entry(signer, PAYLOAD, header=header)], PAYLOAD)
    assert refused(raw, alone(signer)) == "crypto.envelope.malformed"


@pytest.mark.parametrize("kid", [b"", b"\0" * 32, b"short", b"\xff" * 200])
def test_key_ids_that_nobody_has(forge, make_signer, kid):
    signer = make_signer()
    raw = forge.envelope([forge.entry(signer, PAYLOAD, header={1: -19, 4: kid})], PAYLOAD)
    assert refused(raw, alone(signer)) == "crypto.signature.unknown-key"


def test_key_id_truncated_to_what_a_person_sees(forge, make_signer):
    signer = make_signer()
    kid = signer.public_key.key_id.digest[:8]
    raw = forge.envelope([forge.entry(signer, PAYLOAD, header={1: -19, 4: kid})], PAYLOAD)
    assert refused(raw, alone(signer)) == "crypto.signature.unknown-key"


@pytest.mark.parametrize("count", [0, MAX_SIGNATURES + 1])
def test_number_of_signatures(forge, make_signer, count):
    signers = [make_signer() for _ in range(count)]
    raw = forge.envelope([forge.entry(signer, PAYLOAD) for signer in signers], PAYLOAD)
    policy = alone(*(signers or [make_signer()]))
    assert refused(raw, policy) == "crypto.envelope.malformed"


def test_eight_signatures_are_accepted(make_signer):
    signers = [make_signer() for _ in range(MAX_SIGNATURES)]
    raw = sign_envelope(CONTEXT, PAYLOAD, signers)
    assert len(verify_envelope(raw, context=CONTEXT, trust=alone(*signers, threshold=8)).signers) == 8


def test_shapes_that_are_no_envelope(forge, make_signer, classical):
    entry = forge.entry(classical, PAYLOAD)
    body = forge.body()
    shapes = [
        forge.envelope([entry], PAYLOAD, tag=None),
        forge.envelope([entry], PAYLOAD, tag=18),  # COSE_Sign1
        forge.envelope([entry], PAYLOAD, tag=97),
        cbor.encode(cbor.Tagged(tag=98, value=cbor.Tagged(tag=98, value=[body, {}, PAYLOAD, [entry]]))),
        cbor.encode(cbor.Tagged(tag=98, value=[body, {}, None, [entry]])),  # detached payload
        cbor.encode(cbor.Tagged(tag=98, value=[body, {}, PAYLOAD.decode(), [entry]])),
        cbor.encode(cbor.Tagged(tag=98, value=[body, {}, PAYLOAD])),
        cbor.encode(cbor.Tagged(tag=98, value=[body, {}, PAYLOAD, [entry], 0])),
        cbor.encode(cbor.Tagged(tag=98, value=[body, [], PAYLOAD, [entry]])),
        cbor.encode(cbor.Tagged(tag=98, value=[{16: CONTEXT}, {}, PAYLOAD, [entry]])),
        cbor.encode(cbor.Tagged(tag=98, value=[body, {}, PAYLOAD, {0: entry}])),
        cbor.encode(cbor.Tagged(tag=98, value=[body, {}, PAYLOAD, entry])),
        cbor.encode(cbor.Tagged(tag=98, value=[body, {}, PAYLOAD, [[*entry, 0]]])),
        cbor.encode(cbor.Tagged(tag=98, value=[body, {}, PAYLOAD, [entry[:2]]])),
        cbor.encode(cbor.Tagged(tag=98, value={})),
        cbor.encode(cbor.Tagged(tag=98, value=None)),
        cbor.encode({}),
    ]
    for raw in shapes:
        assert refused(raw, alone(classical)) == "crypto.envelope.malformed"
        with pytest.raises(Rejected) as caught:
            unverified_payload(raw)
        assert caught.value.code == "crypto.envelope.malformed"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        cbor.encode({}),
        cbor.encode({16: b"tidegate.test.v1"}),
        cbor.encode({16: CONTEXT, 1: -19}),
        cbor.encode({16: CONTEXT, 2: [16]}),
        cbor.encode(CONTEXT),
        bytes.fromhex("a11810") + cbor.encode(CONTEXT),  # the label not in its shortest form
        cbor.encode({16: CONTEXT}) + b"\0",
    ],
)
def test_body_header_that_is_not_exactly_the_role(forge, make_signer, body):
    signer = make_signer()
    raw = forge.envelope([forge.entry(signer, PAYLOAD, body=body)], PAYLOAD, body=body)
    assert refused(raw, alone(signer)) == "crypto.envelope.context"


@pytest.mark.parametrize(("label", "size"), [("ed25519", 64), ("ecdsa-p256", 64), ("ecdsa-p384", 96)])
def test_signatures_of_strange_length(forge, make_signer, label, size):
    signer = make_signer(label)
    protected, unprotected, signature = forge.entry(signer, PAYLOAD)
    assert len(signature) == size
    for strange in (b"", signature[:-1], signature + b"\0", b"\0" + signature, bytes(size), b"\xff" * size):
        raw = forge.envelope([[protected, unprotected, strange]], PAYLOAD)
        assert refused(raw, alone(signer)) == "crypto.signature.invalid"


def test_der_signature_is_no_raw_signature(forge, make_signer):
    from cryptography.hazmat.primitives.asymmetric import utils

    signer = make_signer("ecdsa-p256")
    protected, unprotected, signature = forge.entry(signer, PAYLOAD)
    der = utils.encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    assert (
        refused(forge.envelope([[protected, unprotected, der]], PAYLOAD), alone(signer)) == "crypto.signature.invalid"
    )


def test_nobody_else_makes_a_verified_envelope(classical):
    with pytest.raises(TypeError):
        VerifiedEnvelope(CONTEXT, PAYLOAD, (classical.public_key.key_id,), object())
    with pytest.raises(TypeError):
        VerifiedEnvelope(CONTEXT, PAYLOAD, (classical.public_key.key_id,), None)


def test_a_verified_envelope_cannot_be_changed_or_copied_with_changes(good, trust):
    import dataclasses

    verified = verify_envelope(good, context=CONTEXT, trust=trust)
    with pytest.raises(dataclasses.FrozenInstanceError):
        verified.payload = b"other"


@pytest.mark.parametrize("signers", [0, MAX_SIGNATURES + 1])
def test_signing_with_no_key_or_too_many(make_signer, signers):
    with pytest.raises(EnvelopeSigners):
        sign_envelope(CONTEXT, PAYLOAD, [make_signer() for _ in range(signers)])


def test_signing_twice_with_one_key(classical):
    with pytest.raises(EnvelopeSigners):
        sign_envelope(CONTEXT, PAYLOAD, [classical, classical])


def test_what_is_signed_can_be_verified(classical):
    """The signer learns of a payload that is too large, not every device in the field."""
    fits = 61_440 - len(sign_envelope(CONTEXT, bytes(60_000), [classical])) + 60_000
    raw = sign_envelope(CONTEXT, bytes(fits), [classical])
    assert len(verify_envelope(raw, context=CONTEXT, trust=alone(classical)).payload) == fits
    with pytest.raises(EnvelopeTooLarge):
        sign_envelope(CONTEXT, bytes(fits + 1), [classical])


@pytest.mark.parametrize("case", ["no keys", "zero", "negative", "too many", "twice", "class"])
def test_trust_that_nothing_could_fail(classical, post_quantum, case):
    keys, threshold, classes = {
        "no keys": ((), 0, ()),
        "zero": ((classical.public_key,), 0, ()),
        "negative": ((classical.public_key,), -1, ()),
        "too many": ((classical.public_key,), 2, ()),
        "twice": ((classical.public_key, classical.public_key), 2, ()),
        "class": ((classical.public_key,), 1, (AlgorithmClass.POST_QUANTUM,)),
    }[case]
    with pytest.raises(TrustPolicyEmpty) as caught:
        TrustPolicy(keys=keys, threshold=threshold, required_classes=frozenset(classes))
    assert caught.value.exit_status == 2


def test_hybrid_needs_both_classes(classical, make_signer):
    for keys in ([], [classical.public_key], [classical.public_key, make_signer("ecdsa-p256").public_key]):
        with pytest.raises(TrustPolicyEmpty):
            hybrid_trust(keys)


def test_errors_carry_no_payload(good, trust):
    """Refusals are logged and shown: what they say comes from headers, never from the payload."""
    with pytest.raises(TidegateError) as caught:
        verify_envelope(good.replace(PAYLOAD, b"what the Xhief says"), context=CONTEXT, trust=trust)
    assert "Xhief" not in repr(caught.value.describe())
