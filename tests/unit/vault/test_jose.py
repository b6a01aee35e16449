"""JOSE by its RFCs' own examples; a row per way in which a key, an advertisement or a slot can be wrong."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.vault import jose
from tidegate.vault.jose import Curve, KeyUse, PublicJwk

SECRET = bytes(range(32))
NONCE = bytes(range(12))


class Party:
    """A private key and what the world sees of it."""

    def __init__(self, curve=Curve.P521, use=None):
        self.private = ec.generate_private_key(curve.group)
        numbers = self.private.public_key().public_numbers()
        self.jwk = PublicJwk(curve=curve, point=(numbers.x, numbers.y), use=use)

    def sign(self, payload, header=None):
        protected = jose.encode_base64url(
            jose.encode_json(header or {"alg": self.jwk.curve.signature, "cty": "jwk-set+json"})
        )
        der = self.private.sign(f"{protected}.{payload}".encode(), ec.ECDSA(self.jwk.curve.digest))
        r, s = utils.decode_dss_signature(der)
        size = self.jwk.curve.size_bytes
        raw = r.to_bytes(size, "big") + s.to_bytes(size, "big")
        return {"protected": protected, "signature": jose.encode_base64url(raw)}

    def shared(self, other):
        return self.private.exchange(ec.ECDH(), other.public_key())


SIGNER, SECOND, RETIRED = (Party(use=KeyUse.SIGN) for _ in range(3))
SERVER = Party(use=KeyUse.EXCHANGE)


def payload_of(*parties):
    return jose.encode_base64url(jose.encode_json({"keys": [one.jwk.describe() for one in parties]}))


def advertise(*parties, by):
    payload = payload_of(*parties)
    return jose.encode_json({"payload": payload, "signatures": [one.sign(payload) for one in by]})


def trusted(server=SERVER):
    advertisement = jose.verify_advertisement(advertise(SIGNER, server, by=[SIGNER]))
    return jose.verify_trust(advertisement, SIGNER.jwk.thumbprint())


def make_slot(server=SERVER, context=b"vault 1", secret=SECRET):
    one_time = jose.OneTime(ephemeral=ec.generate_private_key(server.jwk.curve.group), nonce=NONCE)
    return jose.seal_compact(
        Secret(secret), trusted(server), url="http://tang.test", context=context, one_time=one_time
    )


def open_slot(text, server=SERVER):
    """Open as somebody could who has the server's private key."""
    jwe = jose.parse_compact(text)
    return bytes(jose.open_compact(jwe, [bytearray(server.shared(jwe.ephemeral))]).view())


def header_of(text):
    return json.loads(jose.parse_base64url(text.split(".")[0]))


def with_header(text, header):
    return ".".join([jose.encode_base64url(jose.encode_json(header)), *text.split(".")[1:]])


# -- published examples -----------------------------------------------------------------------------------------------

# RFC 7518 appendix C
_ALICE = {
    "kty": "EC",
    "crv": "P-256",
    "x": "gI0GAILBdu7T53akrFmMyGcsF3n5dO7MmwNBHKW5SV0",
    "y": "SLW_xSffzlPWrHEVI30DHM_4egVwt3NQqeUD7nMFpps",
}
_BOB_D = "VEmDZpDXXK8p8N0Cndsxs924q6nS1RXFASRl6BfUqdw"
_Z = bytes.fromhex("9e56d91d817135d372834283bf84269cfb316ea3da806a48f6daa7798cfe90c4")

# RFC 7520 §4.3
_BILBO = {
    "kty": "EC",
    "use": "sig",
    "crv": "P-521",
    "x": "AHKZLLOsCOzz5cY97ewNUajB957y-C-U88c3v13nmGZx6sYl_oJXu9A5RkTKqjqvjyekWF-7ytDyRXYgCF5cj0Kt",
    "y": "AdymlHvOiLxXkEhayXQnNCvDX4h9htZaCJN34kfmC6pV5OhQHiraVySsUdaQkAgDPrwQrJmbnX9cwlGfP-HqHZR1",
}
_BILBO_PROTECTED = "eyJhbGciOiJFUzUxMiIsImtpZCI6ImJpbGJvLmJhZ2dpbnNAaG9iYml0b24uZXhhbXBsZSJ9"
_BILBO_PAYLOAD = (
    "SXTigJlzIGEgZGFuZ2Vyb3VzIGJ1c2luZXNzLCBGcm9kbywgZ29pbmcgb3V0IHlvdXIgZG9vci4gWW91IHN0ZXAgb250byB0aGUgcm9hZCwgYW5kI"
    "GlmIHlvdSBkb24ndCBrZWVwIHlvdXIgZmVldCwgdGhlcmXigJlzIG5vIGtub3dpbmcgd2hlcmUgeW91IG1pZ2h0IGJlIHN3ZXB0IG9mZiB0by4"
)
_BILBO_SIGNATURE = (
    "AE_R_YZCChjn4791jSQCrdPZCNYqHXCTZH0-JZGYNlaAjP2kqaluUIIUnC9qvbu9Plon7KRTzoNEuT4Va2cmL1eJAQy3mtPBu_u_sDDyYjnAMDxXP"
    "n7XrT0lw-kvAD890jl8e2puQens_IEKBpHABlsbEPX6sFY8OcGDqoRuBomu9xQ2"
)


def test_key_agreement_of_rfc7518():
    """The example has party names, which our slots have not: Z is judged here, the derivation with its names below."""
    alice = jose.parse_jwk(_ALICE)
    bob = ec.derive_private_key(int.from_bytes(jose.parse_base64url(_BOB_D), "big"), Curve.P256.group)
    assert bob.exchange(ec.ECDH(), alice.public_key()) == _Z


def test_derivation_is_that_of_rfc7518_without_party_names():
    """One round of the hash over counter, Z, algorithm, no parties, length in bits (RFC 7518 §4.6.2)."""
    other = b"\0\0\0\x07A256GCM" + bytes(8) + (256).to_bytes(4, "big")
    expected = hashlib.sha256(b"\0\0\0\x01" + _Z + other).digest()
    assert bytes(jose.derive_key(bytearray(_Z)).view()) == expected


def test_the_hash_above_is_right_with_the_names_of_rfc7518():
    """So that the formula in the test before stands on a published number."""
    other = b"\0\0\0\x07A128GCM\0\0\0\x05Alice\0\0\0\x03Bob" + (128).to_bytes(4, "big")
    assert hashlib.sha256(b"\0\0\0\x01" + _Z + other).digest()[:16] == jose.parse_base64url("VqqN6vgjbSBcIijNcacQGg")


def test_signature_of_rfc7520():
    key = jose.parse_jwk(_BILBO)
    signature = jose.parse_base64url(_BILBO_SIGNATURE)
    assert jose._has_signed(key, _BILBO_PROTECTED, _BILBO_PAYLOAD, signature)
    assert not jose._has_signed(key, _BILBO_PROTECTED, _BILBO_PAYLOAD[:-1] + "5", signature)


# -- text -------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=40))
def test_base64url_has_one_spelling(data):
    text = jose.encode_base64url(data)
    assert jose.parse_base64url(text) == data
    assert base64.urlsafe_b64decode(text + "==") == data


@pytest.mark.parametrize(
    "text", ["AA==", "A", "AB", "A+/A", "AA A", "AAA\n", "ÄAAA", None, 3, b"AAAA", "AAA.", "AAAA="]
)
def test_base64url_refused(text):
    with pytest.raises(Rejected) as caught:
        jose.parse_base64url(text)
    assert caught.value.code == "vault.jose.malformed"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"3",
        b'{"a":1,"a":2}',
        b'{"a":{"b":1,"b":1}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"\xff{}",
        b'{"a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"a":' + b"9" * 5_000 + b"}",
        b"{}" + b" " * jose.MAX_JSON_BYTES,
        b"{} {}",
    ],
    ids=range(12),
)
def test_json_refused(raw):
    with pytest.raises(Rejected) as caught:
        jose.parse_json(raw)
    assert caught.value.code == "vault.jose.malformed"


@given(st.binary(max_size=60))
def test_json_raises_nothing_else(raw):
    try:
        assert isinstance(jose.parse_json(raw), dict)
    except Rejected as error:
        assert error.code == "vault.jose.malformed"


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", Curve)
@pytest.mark.parametrize("use", [None, *KeyUse])
def test_keys_come_back(curve, use):
    party = Party(curve, use)
    assert jose.parse_jwk(party.jwk.describe()) == party.jwk


GOOD = Party(Curve.P256, KeyUse.EXCHANGE).jwk.describe()
SIGN = Party(Curve.P256, KeyUse.SIGN).jwk.describe()
_SHORT = jose.encode_base64url(bytes(31))
_LONG = jose.encode_base64url(bytes(1) + jose.parse_base64url(GOOD["x"]))
_PRIME = jose.encode_base64url(Curve.P256.prime.to_bytes(32, "big"))


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "key",
        {},
        {**GOOD, "kty": "RSA"},
        {**GOOD, "kty": "OKP"},
        {**GOOD, "crv": "secp256k1"},
        {**GOOD, "crv": "P-384"},
        {**GOOD, "crv": ["P-256"]},
        {**GOOD, "crv": None},
        {**GOOD, "d": "AAAA"},
        {**GOOD, "x": GOOD["y"]},
        {**GOOD, "x": _SHORT},
        {**GOOD, "x": _LONG},
        {**GOOD, "x": _PRIME},
        {**GOOD, "x": 3},
        {**GOOD, "x": jose.encode_base64url(bytes(32)), "y": jose.encode_base64url(bytes(32))},
        {name: text for name, text in GOOD.items() if name != "y"},
        {**GOOD, "alg": "ES256"},
        {**GOOD, "alg": "ECDH"},
        {**GOOD, "key_ops": "deriveKey"},
        {**GOOD, "key_ops": ["deriveKey", "verify"]},
        {**SIGN, "key_ops": ["verify", "deriveKey"]},
        {**SIGN, "alg": "ES512"},
        {**SIGN, "alg": "none"},
        {name: text for name, text in SIGN.items() if name != "alg"},
    ],
    ids=range(26),
)
def test_key_refused(value):
    with pytest.raises(Rejected) as caught:
        jose.parse_jwk(value)
    assert caught.value.code == "vault.jose.malformed"


@pytest.mark.parametrize("value", [None, {}, {"keys": []}, {"keys": {}}, {"keys": [GOOD] * 17}, {"keys": [GOOD, 3]}])
def test_set_refused(value):
    with pytest.raises(Rejected) as caught:
        jose.parse_jwk_set(value)
    assert caught.value.code == "vault.jose.malformed"


def test_thumbprint_is_over_the_necessary_members_in_order():
    text = f'{{"crv":"P-256","kty":"EC","x":"{GOOD["x"]}","y":"{GOOD["y"]}"}}'.encode()
    key = jose.parse_jwk({**GOOD, "kid": "mine", "use": "enc"})
    assert jose.parse_base64url(key.thumbprint()) == hashlib.sha256(text).digest()
    assert jose.parse_base64url(key.old_thumbprint()) == hashlib.sha1(text).digest()  # noqa: S324


# -- advertisements ---------------------------------------------------------------------------------------------------


def test_advertisement_signed_by_all_its_keys():
    raw = advertise(SIGNER, SECOND, SERVER, by=[SECOND, SIGNER])
    assert jose.verify_advertisement(raw).thumbprints == (SIGNER.jwk.thumbprint(), SECOND.jwk.thumbprint())


def test_flattened_form():
    payload = payload_of(SIGNER, SERVER)
    raw = jose.encode_json({"payload": payload, **SIGNER.sign(payload)})
    assert jose.verify_advertisement(raw).exchange == (SERVER.jwk,)


@pytest.mark.parametrize("curve", Curve)
def test_every_curve_signs(curve):
    party = Party(curve, KeyUse.SIGN)
    assert jose.verify_advertisement(advertise(party, SERVER, by=[party])).signing == (party.jwk,)


def test_a_retired_key_vouches():
    raw = advertise(SIGNER, SERVER, by=[SIGNER, RETIRED])
    assert jose.verify_advertisement(raw, also=[RETIRED.jwk]).signing == (SIGNER.jwk,)


def _of(changes, payload=None, by=SIGNER, header=None):
    payload = payload or payload_of(SIGNER, SERVER)
    return {"payload": payload, **by.sign(payload, header), **changes}


OTHER_CURVE = Party(Curve.P384, KeyUse.SIGN)
MALFORMED, SIGNATURE = "vault.jose.malformed", "vault.tang.signature"


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (_of({}, by=SECOND), SIGNATURE),
        (_of({}, payload_of(SIGNER, SECOND, SERVER)), SIGNATURE),  # a key put beside the honest one
        (_of({"payload": payload_of(SIGNER, Party(use=KeyUse.EXCHANGE))}), SIGNATURE),  # the exchange key exchanged
        (_of({"protected": jose.encode_base64url(b'{"alg":"ES512"}')}), SIGNATURE),
        (_of({}, header={"alg": "none"}), SIGNATURE),
        (_of({}, header={"alg": "ES256"}), SIGNATURE),
        (_of({}, header={"alg": "ES512", "crit": ["b64"], "b64": False}), SIGNATURE),
        (_of({"signature": jose.encode_base64url(bytes(132))}), SIGNATURE),
        (_of({"signature": ""}), SIGNATURE),
        (_of({"signature": jose.encode_base64url(b"\xff" * 132)}), SIGNATURE),
        (_of({"signature": "A"}), MALFORMED),
        (_of({"signature": 3}), MALFORMED),
        (_of({"signatures": []}), MALFORMED),
        (_of({"signatures": {}}), MALFORMED),
        (_of({"signatures": [3]}), MALFORMED),
        (_of({"signatures": [SIGNER.sign(payload_of(SIGNER, SERVER))] * 33}), MALFORMED),
        (_of({"protected": jose.encode_base64url(b"[]")}), MALFORMED),
        (_of({}, payload_of(SIGNER)), MALFORMED),
        (_of({}, payload_of(SERVER)), MALFORMED),
        (_of({}, jose.encode_base64url(b"{}")), MALFORMED),
        (_of({}, jose.encode_base64url(b"no JSON")), MALFORMED),
        (_of({"payload": None}), MALFORMED),
        ({}, MALFORMED),
    ],
    ids=range(23),
)
def test_advertisement_refused(document, code):
    with pytest.raises(Rejected) as caught:
        jose.verify_advertisement(jose.encode_json(document))
    assert caught.value.code == code


def test_a_retired_key_that_did_not_sign_does_not_vouch():
    with pytest.raises(Rejected) as caught:
        jose.verify_advertisement(advertise(SIGNER, SERVER, by=[SIGNER]), also=[RETIRED.jwk])
    assert caught.value.code == SIGNATURE


@pytest.mark.parametrize(
    "thumbprint",
    [SECOND.jwk.thumbprint(), SERVER.jwk.thumbprint(), SIGNER.jwk.old_thumbprint(), ""],
    ids=["another signer", "exchange key", "sha-1", "none"],
)
def test_another_thumbprint_is_not_trusted(thumbprint):
    advertisement = jose.verify_advertisement(advertise(SIGNER, SERVER, by=[SIGNER]))
    with pytest.raises(Rejected) as caught:
        jose.verify_trust(advertisement, thumbprint)
    assert caught.value.code == "vault.tang.untrusted"


def test_trust_cannot_be_made_up():
    advertisement = jose.verify_advertisement(advertise(SIGNER, SERVER, by=[SIGNER]))
    with pytest.raises(TypeError):
        jose.TrustedAdvertisement(advertisement=advertisement, proof=object())


# -- slots ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", Curve)
def test_slot_opens(curve):
    server = Party(curve, KeyUse.EXCHANGE)
    text = make_slot(server)
    jwe = jose.parse_compact(text)
    assert open_slot(text, server) == SECRET
    assert jwe.context_hash == hashlib.sha256(b"vault 1").digest()
    assert jwe.url == "http://tang.test"
    assert len(text) < jose.MAX_JWE_CHARACTERS


def test_sixteen_keys_fit():
    many = [Party(use=KeyUse.SIGN) for _ in range(15)]
    advertisement = jose.verify_advertisement(advertise(*many, SERVER, by=many))
    trust = jose.verify_trust(advertisement, many[0].jwk.thumbprint())
    one_time = jose.OneTime(ephemeral=ec.generate_private_key(Curve.P521.group), nonce=NONCE)
    text = jose.seal_compact(Secret(SECRET), trust, url="http://t", context=b"", one_time=one_time)
    assert open_slot(text) == SECRET


def test_another_server_does_not_open():
    with pytest.raises(Rejected) as caught:
        open_slot(make_slot(), Party())
    assert caught.value.code == "vault.tang.refused"


def test_the_tag_decides_among_candidates_and_they_are_wiped():
    jwe = jose.parse_compact(make_slot())
    right, wrong = bytearray(SERVER.shared(jwe.ephemeral)), bytearray(66)
    assert bytes(jose.open_compact(jwe, [wrong, right]).view()) == SECRET
    assert right == wrong == bytes(66)


SLOT = make_slot(Party256 := Party(Curve.P256, KeyUse.EXCHANGE))
_HEADER = header_of(SLOT)
_PARTS = SLOT.split(".")
_TANG = _HEADER["clevis"]["tang"]


def _clevis(**changes):
    return {**_HEADER, "clevis": {"pin": "tang", "tang": {**_TANG, **changes}}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "....",
        SLOT + ".",
        ".".join(_PARTS[:4]),
        SLOT + "=",
        SLOT + "\n",
        " " + SLOT,
        SLOT.replace("..", ".AAAA."),  # a wrapped key
        ".".join([*_PARTS[:2], "AAAA", *_PARTS[3:]]),
        ".".join([*_PARTS[:3], "", _PARTS[4]]),
        ".".join([*_PARTS[:4], _PARTS[4][:-4]]),
        ".".join([*_PARTS[:3], "A" * jose.MAX_JWE_CHARACTERS, _PARTS[4]]),
        SLOT.replace(".", "ä", 1),
        with_header(SLOT, {**_HEADER, "alg": "ECDH-ES+A256KW"}),
        with_header(SLOT, {**_HEADER, "alg": "dir"}),
        with_header(SLOT, {**_HEADER, "enc": "A128GCM"}),
        with_header(SLOT, {**_HEADER, "crit": ["exp"], "exp": 1}),
        with_header(SLOT, {**_HEADER, "zip": "DEF"}),
        with_header(SLOT, {**_HEADER, "apu": "QQ"}),
        with_header(SLOT, {**_HEADER, "kid": Party().jwk.thumbprint()}),
        with_header(SLOT, {**_clevis(adv={"keys": [SIGN]}), "kid": jose.parse_jwk(SIGN).thumbprint()}),  # for signing
        with_header(SLOT, {**_HEADER, "kid": 3}),
        with_header(SLOT, {**_HEADER, "kid": "../adv"}),
        with_header(SLOT, {**_HEADER, "epk": Party(Curve.P384).jwk.members()}),
        with_header(SLOT, {**_HEADER, "epk": {}}),
        with_header(SLOT, {**_HEADER, "clevis": {"pin": "sss", "sss": {}}}),
        with_header(SLOT, {**_HEADER, "clevis": {**_HEADER["clevis"], "more": 1}}),
        with_header(SLOT, _clevis(adv=[])),
        with_header(SLOT, _clevis(url=None)),
        with_header(SLOT, _clevis(proxy="http://other")),
        with_header(SLOT, {**_HEADER, "tidegate": {}}),
        with_header(SLOT, {**_HEADER, "tidegate": {"context": "AAAA"}}),
        with_header(SLOT, {**_HEADER, "tidegate": {**_HEADER["tidegate"], "more": 1}}),
        with_header(SLOT, {**_HEADER, "more": 1}),
    ],
    ids=range(34),
)
def test_slot_refused(text):
    with pytest.raises(Rejected) as caught:
        jose.parse_compact(text)
    assert caught.value.code == "vault.jose.malformed"


def test_a_slot_of_clevis_is_bound_to_nothing():
    header = {name: value for name, value in _HEADER.items() if name != "tidegate"}
    assert jose.parse_compact(with_header(SLOT, header)).context_hash is None


def test_every_flipped_bit_of_a_slot_is_refused():
    """One bit of each character, going through all eight; the server would answer whatever it is asked."""
    raw = SLOT.encode()
    assert open_slot(SLOT, Party256) == SECRET
    for place in range(len(raw)):
        for bit in {place % 8, (place + 3) % 8}:
            changed = bytearray(raw)
            changed[place] ^= 1 << bit
            with pytest.raises(Rejected) as caught:
                open_slot(changed.decode("latin-1"), Party256)
            assert caught.value.code in {"vault.jose.malformed", "vault.tang.refused"}


@pytest.mark.parametrize("member", ["epk", "tidegate"])
def test_a_header_of_another_slot_is_refused(member):
    """Both slots are for one server and secret; whatever moves from one to the other is noticed."""
    other = header_of(make_slot(Party256, context=b"vault 2"))
    assert other[member] != _HEADER[member]
    with pytest.raises(Rejected) as caught:
        open_slot(with_header(SLOT, {**_HEADER, member: other[member]}), Party256)
    assert caught.value.code == "vault.tang.refused"


@given(st.integers(0, len(SLOT)), st.integers(0, len(SLOT)), st.text(max_size=5))
@settings(max_examples=300)
def test_a_spliced_slot_is_refused(start, end, middle):
    text = SLOT[:start] + middle + SLOT[end:]
    if text == SLOT:
        return
    with pytest.raises(Rejected):
        open_slot(text, Party256)


# -- the exchange -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", Curve)
def test_points_add_as_in_the_library(curve):
    """a G + b G = (a + b) G, with doubling and the point at infinity."""
    for left, right in [(1, 2), (2, 2), (5, 7), (1, 1), (123_456_789, 987_654_321)]:
        expected = ec.derive_private_key(left + right, curve.group).public_key().public_numbers()
        first, second = (
            ec.derive_private_key(number, curve.group).public_key().public_numbers() for number in (left, right)
        )
        assert jose.add_points(curve, (first.x, first.y), (second.x, second.y)) == (expected.x, expected.y)
    assert jose.add_points(curve, (first.x, first.y), (first.x, curve.prime - first.y)) is None


@pytest.mark.parametrize("curve", Curve)
def test_an_x_has_two_points_or_none(curve):
    one, other = Party(curve).jwk.point, Party(curve).jwk.point
    lifted = jose.lift_x(curve, one[0], other)
    assert lifted[0] == one[0]
    assert lifted[1] in (one[1], curve.prime - one[1])
    assert None in [jose.lift_x(curve, x, other) for x in range(1, 64)]  # about half of all numbers are no x


@pytest.mark.parametrize("curve", Curve)
def test_blinding_recovers_what_the_server_never_sees(curve):
    server, fresh = Party(curve, KeyUse.EXCHANGE), Party(curve)
    text = make_slot(server)
    jwe = jose.parse_compact(text)
    seen = jose.blind(jwe, fresh.private.public_key())
    assert seen.point not in (jwe.ephemeral.point, fresh.jwk.point)
    answer = multiply(server, seen)
    candidates = jose.unblind(answer, fresh.shared(server.jwk), server.jwk)
    assert len(candidates) == 2
    assert server.shared(jwe.ephemeral) in map(bytes, candidates)
    assert bytes(jose.open_compact(jwe, candidates).view()) == SECRET


def multiply(server, point):
    """Multiply as tangd does, by double and add in Python: a test's server has no secret to lose."""
    scalar = server.private.private_numbers().private_value
    curve, total, power = point.curve, None, point.point
    while scalar:
        if scalar & 1:
            total = jose.add_points(curve, total, power) if total else power
        power = jose.add_points(curve, power, power)
        scalar >>= 1
    return PublicJwk(curve=curve, point=total)


def test_the_cancelling_key_is_refused():
    fresh = ec.generate_private_key(Curve.P256.group)
    numbers = fresh.public_key().public_numbers()
    negative = PublicJwk(curve=Curve.P256, point=(numbers.x, Curve.P256.prime - numbers.y))
    jwe = jose.parse_compact(with_header(SLOT, {**_HEADER, "epk": negative.members()}))
    with pytest.raises(Rejected) as caught:
        jose.blind(jwe, fresh.public_key())
    assert caught.value.code == "vault.tang.refused"


def test_an_answer_that_cancels_the_mask_gives_no_key():
    """Y = S e or its negative: one of the sums is infinity, which has no coordinate; the other one opens nothing."""
    fresh = Party(Curve.P256)
    mask = fresh.shared(Party256.jwk)
    point = jose.lift_x(Curve.P256, int.from_bytes(mask, "big"), Party256.jwk.point)
    candidates = jose.unblind(PublicJwk(curve=Curve.P256, point=point), mask, Party256.jwk)
    assert len(candidates) == 1
    with pytest.raises(Rejected) as caught:
        jose.open_compact(jose.parse_compact(SLOT), candidates)
    assert caught.value.code == "vault.tang.refused"


def test_the_content_is_plain_jwe():
    """Opened with nothing but the standard's words: header as associated data, content and tag apart."""
    header, _, nonce, content, tag = SLOT.split(".")
    epk = jose.parse_jwk(_HEADER["epk"])
    info = b"\0\0\0\x07A256GCM" + bytes(8) + (256).to_bytes(4, "big")
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"\0\0\0\x01" + Party256.shared(epk) + info)
    sealed = jose.parse_base64url(content) + jose.parse_base64url(tag)
    assert AESGCM(digest.finalize()).decrypt(jose.parse_base64url(nonce), sealed, header.encode()) == SECRET
