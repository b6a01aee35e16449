"""Hostile bytes: a parser returns a value or raises ``Rejected``, whatever it is given; encodings are unique."""

import contextlib
import datetime
import hashlib
import tomllib

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto import cbor
from tidegate.crypto.cose import sign_envelope, unverified_payload, verify_envelope
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, parse_public_key
from tidegate.crypto.trust import TrustPolicy, parse_trust
from tidegate.image.layout import parse_head
from tidegate.image.manifest import Manifest, Payload, PayloadKind, parse_manifest
from tidegate.image.verity import VerityVerifier, build_tree, count_blocks, tree_bytes
from tidegate.keys.uri import parse_key_uri
from tidegate.policy.document import parse_policy

BLOCK = 4096
SETTINGS = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

keys = st.integers(-(2**64), 2**64 - 1) | st.text(max_size=40) | st.binary(max_size=40)
leaves = keys | st.booleans() | st.none()
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(keys, inner, max_size=6)
        | st.builds(lambda number, value: cbor.Tagged(tag=number, value=value), st.integers(0, 2**64 - 1), inner)
    ),
    max_leaves=25,
)


def depth(value):
    if isinstance(value, cbor.Tagged):
        return 1 + depth(value.value)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1


def same(ours, theirs):
    """Compare values with their types: 1 is not True."""
    if isinstance(ours, dict):
        return (
            isinstance(theirs, dict)
            and len(ours) == len(theirs)
            and all(key in theirs and same(item, theirs[key]) for key, item in ours.items())
        )
    if isinstance(ours, list):
        return isinstance(theirs, (list, tuple)) and len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, cbor.Tagged) and isinstance(theirs, cbor.Tagged):
        return ours.tag == theirs.tag and same(ours.value, theirs.value)
    return type(ours) is type(theirs) and ours == theirs


# ---- CBOR ----------------------------------------------------------------------------------------------------------


@SETTINGS
@given(values.filter(lambda value: depth(value) <= cbor.MAX_DEPTH))
def test_cbor_round_trip(value):
    raw = cbor.encode(value)
    decoded = cbor.decode(raw, limit_bytes=len(raw))
    assert decoded == value
    assert cbor.encode(decoded) == raw


def _without_tags(inner):
    return st.lists(inner, max_size=6) | st.dictionaries(keys, inner, max_size=6)


@SETTINGS
@given(st.recursive(leaves, _without_tags, max_leaves=25).filter(lambda value: depth(value) <= cbor.MAX_DEPTH))
def test_cbor2_reads_what_we_write(value):
    assert same(value, cbor2.loads(cbor.encode(value)))


@SETTINGS
@given(
    st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=6)
            # cbor2 sorts as RFC 7049 did, by length first: with keys of one kind and length both orders agree
            | st.dictionaries(st.text("abcdef", min_size=3, max_size=3), inner, max_size=6)
            | st.dictionaries(st.integers(0, 23), inner, max_size=6)
        ),
        max_leaves=25,
    ).filter(lambda value: depth(value) <= cbor.MAX_DEPTH)
)
def test_cbor2_writes_what_we_write(value):
    raw = cbor2.dumps(value, canonical=True)
    assert raw == cbor.encode(value)
    assert same(value, cbor.decode(raw, limit_bytes=len(raw)))


@settings(SETTINGS, max_examples=2000)
@given(st.binary(max_size=64))
@example(bytes.fromhex("a1f97e00f97e00"))
@example(bytes.fromhex("d9010081a0"))
def test_cbor_of_random_bytes(raw):
    """Refused, or the one encoding of a value that the other library reads alike."""
    try:
        value = cbor.decode(raw, limit_bytes=64)
    except Rejected:
        return
    assert cbor.encode(value) == raw
    if b"\xc0" not in raw and not isinstance(value, cbor.Tagged) and "Tagged" not in repr(value):
        assert same(value, cbor2.loads(raw))


@settings(SETTINGS, max_examples=1000)
@given(values, st.data())
def test_cbor_altered(value, data):
    """One byte more, less or other is refused or has another meaning."""
    raw = bytearray(cbor.encode(value))
    at = data.draw(st.integers(0, len(raw)))
    change = data.draw(st.sampled_from(["insert", "delete", "replace"]))
    before = bytes(raw)
    if change == "insert":
        raw.insert(at, data.draw(st.integers(0, 255)))
    elif change == "delete":
        del raw[at : at + 1]
    elif at < len(raw):
        raw[at] = data.draw(st.integers(0, 255))
    try:
        other = cbor.decode(bytes(raw), limit_bytes=100_000)
    except Rejected:
        return
    assert cbor.encode(other) == bytes(raw)
    if bytes(raw) != before:
        assert not (other == value and same(value, other))


# ---- envelopes, keys, heads, URIs -----------------------------------------------------------------------------------


class _Signer:
    def __init__(self, seed):
        self._key = ed25519.Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = PublicKey(SignatureAlgorithm.ED25519, self._key.public_key().public_bytes_raw())

    def sign(self, message):
        return self._key.sign(message)


SIGNER = _Signer(bytes(range(32)))
TRUST = TrustPolicy(keys=(SIGNER.public_key,), threshold=1, required_classes=frozenset())
ENVELOPE = sign_envelope("tidegate.test.v1", b"payload", [SIGNER])


@settings(SETTINGS, max_examples=1000)
@given(
    st.binary(max_size=200) | values.map(cbor.encode) | values.map(lambda v: cbor.encode(cbor.Tagged(tag=98, value=v)))
)
def test_no_bytes_are_an_envelope_by_chance(raw):
    with pytest.raises(Rejected):
        verify_envelope(raw, context="tidegate.test.v1", trust=TRUST)


_part = st.binary(max_size=40) | values
_entries = st.lists(st.lists(_part, max_size=4) | _part, max_size=10)


@pytest.mark.slow
@pytest.mark.timeout(120)
@settings(SETTINGS, max_examples=1000)
@given(st.tuples(st.sampled_from([ENVELOPE[4:24], b""]) | _part, st.just({}) | _part, _part, _entries).map(list))
def test_nothing_of_the_shape_of_an_envelope_is_one(parts):
    raw = cbor.encode(cbor.Tagged(tag=98, value=parts))
    with pytest.raises(Rejected):
        verify_envelope(raw, context="tidegate.test.v1", trust=TRUST)
    with contextlib.suppress(Rejected):
        assert isinstance(unverified_payload(raw), bytes)


@settings(SETTINGS, max_examples=500)
@given(st.data())
def test_an_altered_envelope_is_refused(data):
    raw = bytearray(ENVELOPE)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    if bytes(raw) == ENVELOPE:
        return
    with pytest.raises(Rejected):
        verify_envelope(bytes(raw), context="tidegate.test.v1", trust=TRUST)


@SETTINGS
@given(st.binary(max_size=100) | st.dictionaries(st.integers(-4, 5), leaves, max_size=6).map(cbor.encode))
def test_public_keys(raw):
    with contextlib.suppress(Rejected):
        assert parse_public_key(raw).encode() == raw


@SETTINGS
@given(
    st.binary(max_size=100)
    | st.fixed_dictionaries(
        {"keys": st.lists(leaves | st.just(SIGNER.public_key.encode()), max_size=3) | leaves},
        optional={"threshold": leaves, "classes": st.lists(leaves | st.just("classical"), max_size=3), "x": leaves},
    ).map(cbor.encode)
)
def test_trust_anchors(raw):
    """``crypto.trust.empty`` is a misuse and documented here; everything else is the data's fault."""
    try:
        assert parse_trust(raw).encode() == raw
    except TidegateError as error:
        assert isinstance(error, Rejected) or error.code == "crypto.trust.empty"


@SETTINGS
@given(st.binary(max_size=100), st.booleans())
def test_heads(raw, has_magic):
    try:
        envelope = parse_head((b"TGIMAGE1" if has_magic else b"") + raw)
    except Rejected:
        return
    assert envelope in raw


@settings(SETTINGS, max_examples=1000)
@given(
    st.text(max_size=60)
    | st.text(max_size=60).map(lambda text: "file:" + text)
    | st.text("file:/?&=#%+[]a0.", max_size=60)
)
def test_key_uris(text):
    try:
        uri = parse_key_uri(text)
    except TidegateError as error:
        assert error.code in {"keys.uri.malformed", "keys.provider.unknown", "keys.name.invalid"}
        return
    assert uri.scheme == "file"
    assert "\0" not in str(uri.location)


# ---- manifests ------------------------------------------------------------------------------------------------------

digests = st.binary(min_size=32, max_size=32)
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
payload_values = st.fixed_dictionaries(
    {},
    optional={
        "name": names | leaves,
        "kind": st.sampled_from(["stage2", "rootfs", "application"]) | leaves,
        "size": st.integers(1, 10**6) | leaves,
        "sha256": digests | leaves,
        "verity_root": digests | leaves,
        "verity_salt": digests | leaves,
        "start": st.lists(leaves, max_size=3) | leaves,
        "unknown": leaves,
    },
)
manifest_values = st.fixed_dictionaries(
    {},
    optional={
        "vendor": st.just("v") | leaves,
        "product": st.just("p") | leaves,
        "hardware": st.lists(names, min_size=1, max_size=2) | st.lists(leaves, max_size=3) | leaves,
        "version": st.just("1.2.3") | leaves,
        "security_version": st.just(1) | leaves,
        "payloads": st.lists(payload_values | values, max_size=4) | values,
        "sbom_sha256": digests | leaves,
        "unknown": values,
    },
)


@settings(SETTINGS, max_examples=1000)
@given(st.binary(max_size=200) | values.map(cbor.encode) | manifest_values.map(cbor.encode))
def test_manifests_of_nonsense(raw):
    with contextlib.suppress(Rejected):
        parse_manifest(raw)


def _payload(name, kind):
    return st.builds(
        Payload,
        name=st.just(name),
        kind=st.just(kind),
        size=st.integers(1, 2 << 30),
        sha256=digests,
        verity_root=digests,
        verity_salt=digests,
    )


manifests = st.builds(
    Manifest,
    vendor=st.text("abc \u00e9\u6c34", min_size=1, max_size=128),
    product=st.text("abc", min_size=1, max_size=128),
    hardware=st.lists(names, min_size=1, max_size=5).map(tuple),
    version=st.tuples(*[st.integers(0, 999_999_999)] * 3).map(lambda parts: ".".join(map(str, parts))),
    security_version=st.integers(0, 2**32 - 1),
    payloads=st.tuples(_payload("s", PayloadKind.STAGE2), _payload("r", PayloadKind.ROOTFS)),
    sbom_sha256=st.none() | digests,
)


@SETTINGS
@given(manifests)
def test_manifests_round_trip(manifest):
    assert parse_manifest(manifest.encode()) == manifest


# ---- policies -------------------------------------------------------------------------------------------------------

POLICY = """\
[policy]
version = 7
devices = ["gw-*", "lab-1"]
expires = 2030-01-01T00:00:00Z

[firewall.services.ssh]
protocol = "tcp"
ports = [22, "8000-8100"]
peers = ["10.0.0.0/24"]
limit = { new_per_s = 5, burst = 10 }

[ids]
interfaces = ["eth0"]
scan.ports = 10

[[update.http]]
port = 8080
"""
LINES = POLICY.splitlines()
TOKENS = [
    "[",
    "]",
    "=",
    '"',
    "'",
    "\n",
    ".",
    "{",
    "}",
    ",",
    "#",
    "9" * 30,
    "1e400",
    "nan",
    "true",
    "\u2028",
    "\ud800",
    "\0",
]


@settings(SETTINGS, max_examples=600)
@given(st.data())
def test_mutated_policies(data):
    """Read, or refused with a code; never another exception, and always a line within the text."""
    text = POLICY
    for _ in range(data.draw(st.integers(1, 4))):
        how = data.draw(st.sampled_from(["token", "cut", "swap line", "drop line", "twice"]))
        at = data.draw(st.integers(0, len(text)))
        lines = text.split("\n")
        number = data.draw(st.integers(0, len(lines) - 1))
        if how == "token":
            text = text[:at] + data.draw(st.sampled_from(TOKENS) | st.text(max_size=5)) + text[at:]
        elif how == "cut":
            text = text[:at] + text[at + data.draw(st.integers(0, 12)) :]
        elif how == "swap line":
            lines[number] = data.draw(st.sampled_from(LINES))
            text = "\n".join(lines)
        elif how == "drop line":
            text = "\n".join(lines[:number] + lines[number + 1 :])
        else:
            text = "\n".join([*lines[:number], lines[number], *lines[number:]])
    try:
        policy = parse_policy(text)
    except Rejected as error:
        if error.code != "policy.syntax":
            assert 1 <= error.fields["line"] <= text.count("\n") + 1
        return
    assert policy.policy.version == tomllib.loads(text)["policy"]["version"]
    assert policy.policy.expires is None or isinstance(policy.policy.expires, datetime.datetime)


@settings(SETTINGS, max_examples=500)
@given(st.text(max_size=100))
def test_policies_of_random_text(text):
    with contextlib.suppress(Rejected):
        parse_policy(text)


# ---- dm-verity ------------------------------------------------------------------------------------------------------


def naive_tree(blocks, salt):
    """Build the tree level by level from the kernel's description, with nothing shared with our code."""
    if len(blocks) == 1:
        return hashlib.sha256(salt + blocks[0]).digest(), b""
    stored = []
    level = blocks
    while len(level) > 1:
        digests = [hashlib.sha256(salt + block).digest() for block in level]
        packed = b"".join(digests)
        packed += bytes(-len(packed) % BLOCK)
        level = [packed[at : at + BLOCK] for at in range(0, len(packed), BLOCK)]
        stored.insert(0, packed)
    return hashlib.sha256(salt + level[0]).digest(), b"".join(stored)


@settings(SETTINGS, max_examples=60)
@given(st.integers(1, 300) | st.sampled_from([1, 2, 127, 128, 129, 256, 257]), st.binary(max_size=64), st.randoms())
@example(128 * 128 + 1, b"salt", __import__("random").Random(1))
def test_verity_trees(count, salt, random):
    blocks = [number.to_bytes(4, "big") * (BLOCK // 4) for number in range(count)]
    root, tree = build_tree(blocks, salt)
    assert (root, tree) == naive_tree(blocks, salt)
    assert len(tree) == tree_bytes(count)
    assert count_blocks(count * BLOCK) == count == count_blocks(count * BLOCK - 1)
    verifier = VerityVerifier(root=root, salt=salt, data_blocks=count, tree=tree)
    number = random.randrange(count)
    verifier.verify_block(number, blocks[number])
    for wrong in (count, count + 1, number ^ 1, -1):
        with pytest.raises(Rejected):
            verifier.verify_block(wrong, blocks[number])
    altered = bytearray(blocks[number])
    altered[random.randrange(BLOCK)] ^= 1 << random.randrange(8)
    with pytest.raises(Rejected):
        verifier.verify_block(number, altered)
    if tree:
        altered = bytearray(tree)
        altered[random.randrange(len(tree))] ^= 1 << random.randrange(8)
        with pytest.raises(Rejected):
            VerityVerifier(root=root, salt=salt, data_blocks=count, tree=bytes(altered))
    for other in (tree + bytes(BLOCK), tree[:-1] if tree else b"x"):
        with pytest.raises(Rejected):
            VerityVerifier(root=root, salt=salt, data_blocks=count, tree=other)
