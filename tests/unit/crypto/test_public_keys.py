"""Public keys and trust anchors: exact encodings of valid keys only, with the published names."""

import pytest

from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, parse_algorithm, parse_public_key
from tidegate.crypto.trust import MAX_TRUST_BYTES, hybrid_trust, parse_trust

LABELS = ["ed25519", "ecdsa-p256", "ecdsa-p384", "ml-dsa-65", "ml-dsa-87", "rsa-pss"]


def code_of(call, *arguments):
    with pytest.raises(TidegateError) as caught:
        call(*arguments)
    return caught.value.code


@pytest.mark.parametrize("label", LABELS)
def test_round_trip(make_signer, label):
    key = make_signer(label).public_key
    assert parse_public_key(key.encode()) == key
    assert parse_algorithm(label) is key.algorithm
    assert len(key.key_id.digest) == 32
    assert key.key_id.digest.hex().startswith(str(key.key_id))


def test_thumbprint_of_the_standard():
    """RFC 9679 §6: the P-256 example key and its SHA-256 thumbprint."""
    x = bytes.fromhex("65eda5a12577c2bae829437fe338701a10aaa375e1bb5b5de108de439c08551d")
    y = bytes.fromhex("1e52ed75701163f7f9e40ddf9f341b3dc9ba860af7e0ca7ca7e9eecd0084d19c")
    key = PublicKey(SignatureAlgorithm.ECDSA_P256, b"\x04" + x + y)
    assert key.key_id.digest.hex() == "496bd8afadf307e5b08c64b0421bf9dc01528a344a43bda88fadd1669da253ec"


@pytest.mark.parametrize("label", ["", "ED25519", "rsa", "ecdsa-p521", "ml-dsa-44", "ed25519 ", "ed25519\0"])
def test_algorithms_that_are_not_allowed(label):
    assert code_of(parse_algorithm, label) == "crypto.algorithm.unknown"


@pytest.mark.parametrize("number", [-8, -7, -35, -36, -48, -257, 0, 5, 2**60, -(2**60)])
def test_cose_algorithms_that_are_not_allowed(number):
    raw = cbor.encode({1: 1, 3: number, -1: 6, -2: bytes(32)})
    assert code_of(parse_public_key, raw) == "crypto.algorithm.unknown"


@pytest.mark.parametrize("label", LABELS)
def test_every_member_counts(make_signer, label):
    raw = make_signer(label).public_key.encode()
    members = cbor.decode(raw, limit_bytes=4096)
    for name, value in members.items():
        without = {key: item for key, item in members.items() if key != name}
        assert code_of(parse_public_key, cbor.encode(without)) == "crypto.key.malformed"
        for strange in (None, "text", [], {}, True, b"", 2**40):
            if name == 3 and strange == 2**40:
                continue
            changed = {**members, name: strange}
            assert code_of(parse_public_key, cbor.encode(changed)) in {
                "crypto.key.malformed",
                "crypto.algorithm.unknown",
            }
        if isinstance(value, bytes):
            for other in (value[:-1], value + b"\0", b"\0" + value):
                changed = cbor.encode({**members, name: other})
                assert code_of(parse_public_key, changed) == "crypto.key.malformed"


@pytest.mark.parametrize("extra", [{2: b"kid"}, {4: [2]}, {5: b"iv"}, {-4: b"the private half"}, {"x": 1}, {b"x": 1}])
def test_members_that_a_public_key_may_not_have(make_signer, extra):
    members = cbor.decode(make_signer("ecdsa-p256").public_key.encode(), limit_bytes=4096)
    assert code_of(parse_public_key, cbor.encode({**members, **extra})) == "crypto.key.malformed"


@pytest.mark.parametrize(("label", "size"), [("ecdsa-p256", 32), ("ecdsa-p384", 48)])
def test_points_off_the_curve(make_signer, label, size):
    members = cbor.decode(make_signer(label).public_key.encode(), limit_bytes=4096)
    y = bytearray(members[-3])
    y[-1] ^= 1
    points = [(members[-2], bytes(y)), (bytes(size), bytes(size)), (b"\xff" * size, members[-3])]
    for x, other in points:
        assert code_of(parse_public_key, cbor.encode({**members, -2: x, -3: other})) == "crypto.key.malformed"


def test_a_key_of_one_curve_under_the_other_curve_or_type(make_signer):
    members = cbor.decode(make_signer("ecdsa-p256").public_key.encode(), limit_bytes=4096)
    for change in ({-1: 2}, {3: -51}, {1: 1}, {3: -51, -1: 2}, {-3: True}):
        assert code_of(parse_public_key, cbor.encode({**members, **change})) == "crypto.key.malformed"


def test_rsa_keys_of_other_sizes_and_exponents(make_signer):
    members = cbor.decode(make_signer("rsa-pss").public_key.encode(), limit_bytes=4096)
    modulus = members[-1]
    changes = [
        {-2: b"\x03"},
        {-2: b"\x01\x00\x03"},
        {-1: modulus[:256]},
        {-1: modulus + b"\x01" * 256},
        {-1: modulus[:-1] + b"\x02"},
        {-1: b"\x7f" + modulus[1:]},
    ]
    for change in changes:
        assert code_of(parse_public_key, cbor.encode({**members, **change})) == "crypto.key.malformed"


@pytest.mark.parametrize("raw", [b"", b"\xa0", b"\x80", b"\xf6", b"\xff", bytes(4097)])
def test_bytes_that_are_no_key(raw):
    assert code_of(parse_public_key, raw) in {"crypto.key.malformed", "crypto.cbor.malformed", "crypto.cbor.limit"}


def test_each_byte_of_a_key_changed(make_signer):
    key = make_signer("ecdsa-p256").public_key
    raw = key.encode()
    for position in range(len(raw)):
        for mask in (1, 0x80):
            changed = bytearray(raw)
            changed[position] ^= mask
            try:
                other = parse_public_key(bytes(changed))
            except Rejected:
                continue
            assert other.key_id != key.key_id


# ---- trust anchors -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def anchors(classical, post_quantum):
    return hybrid_trust([classical.public_key, post_quantum.public_key])


def test_trust_round_trip(anchors):
    assert parse_trust(anchors.encode()) == anchors


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": None},
        {"threshold": "2"},
        {"threshold": True},
        {"keys": None},
        {"keys": {}},
        {"keys": ["text", 1]},
        {"keys": [b"", b""]},
        {"classes": None},
        {"classes": ["quantum"]},
        {"classes": [1]},
        {"classes": [["classical"]]},
        {"classes": ["post-quantum", "classical"]},
        {"classes": ["classical", "classical", "post-quantum"]},
        {"extra": 1},
    ],
)
def test_trust_that_is_malformed(anchors, change):
    document = cbor.decode(anchors.encode(), limit_bytes=MAX_TRUST_BYTES)
    code = code_of(parse_trust, cbor.encode({**document, **change}))
    assert code in {"crypto.key.malformed", "crypto.cbor.malformed"}


@pytest.mark.parametrize("threshold", [0, -1, 3, 2**60])
def test_trust_with_a_threshold_that_means_nothing(anchors, threshold):
    document = cbor.decode(anchors.encode(), limit_bytes=MAX_TRUST_BYTES)
    assert code_of(parse_trust, cbor.encode({**document, "threshold": threshold})) == "crypto.trust.empty"


@pytest.mark.parametrize("missing", ["keys", "threshold", "classes"])
def test_trust_with_a_member_missing(anchors, missing):
    document = cbor.decode(anchors.encode(), limit_bytes=MAX_TRUST_BYTES)
    del document[missing]
    assert code_of(parse_trust, cbor.encode(document)) == "crypto.key.malformed"


def test_trust_too_large():
    assert code_of(parse_trust, bytes(MAX_TRUST_BYTES + 1)) == "crypto.cbor.limit"
