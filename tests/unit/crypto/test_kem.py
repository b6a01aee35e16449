"""Keys wrapped for a recipient's public half open for its seed, in the same context, unaltered, and not otherwise."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.crypto.errors import KemRefused
from tidegate.crypto.kem import PUBLIC_BYTES, SEED_BYTES, kem_public, kem_unwrap, kem_wrap

SEED = Secret(bytes(range(32)))
KEY = b"the root key of a vault, 32 byte"
INFO = b"context"


@pytest.fixture(scope="module")
def wrapped():
    return kem_wrap(kem_public(SEED), Secret(KEY), INFO)


def test_round_trip(wrapped):
    assert bytes(kem_unwrap(SEED, wrapped, INFO).view()) == KEY
    assert KEY not in wrapped


def test_sizes(wrapped):
    assert (SEED_BYTES, PUBLIC_BYTES) == (32, 1216)
    assert len(kem_public(SEED)) == PUBLIC_BYTES
    assert len(wrapped) == 1088 + 32 + 32 + 16  # both encapsulated keys, the key, the tag


def test_public_half_follows_from_the_seed():
    assert kem_public(SEED) == kem_public(Secret(bytes(range(32))))
    assert kem_public(SEED) != kem_public(Secret(bytes(32)))


def test_public_half_is_that_of_the_draft():
    """First test vector of draft-connolly-cfrg-xwing-kem: seed and the beginning of pk."""
    seed = bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    assert (
        kem_public(Secret(seed)).hex().startswith("e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b07131713fc14b2b5b")
    )


def test_each_wrapping_is_another_one(wrapped):
    assert kem_wrap(kem_public(SEED), Secret(KEY), INFO) != wrapped


def test_other_seed_or_context_is_refused(wrapped):
    for seed, info in ((Secret(bytes(32)), INFO), (SEED, b"other"), (SEED, b"")):
        with pytest.raises(KemRefused):
            kem_unwrap(seed, wrapped, info)


@settings(max_examples=150, deadline=None)
@given(bit=st.integers(0, 8 * 1168 - 1))
def test_any_flipped_bit_is_refused(wrapped, bit):
    altered = bytearray(wrapped)
    altered[bit // 8] ^= 1 << bit % 8
    with pytest.raises(KemRefused):
        kem_unwrap(SEED, bytes(altered), INFO)


@pytest.mark.parametrize("size", [0, 1, 1087, 1119, 1120, 1135, 1136, 1167, 1169])
def test_other_length_is_refused(wrapped, size):
    with pytest.raises(KemRefused):
        kem_unwrap(SEED, (wrapped + b"\0")[:size], INFO)


@settings(max_examples=50, deadline=None)
@given(raw=st.binary(max_size=1300))
def test_parser_raises_only_rejected(raw):
    with pytest.raises(Rejected):
        kem_unwrap(SEED, raw, INFO)


@pytest.mark.parametrize("size", [0, 32, 1184, 1215, 1217])
def test_public_half_of_another_length_is_refused(size):
    with pytest.raises(KemRefused):
        kem_wrap(os.urandom(size), Secret(KEY), INFO)


def test_public_half_that_is_no_key_is_refused():
    """FIPS 203 §7.2: an encapsulation key with coefficients above q; RFC 7748 §6.1: a point of low order."""
    good = kem_public(SEED)
    for public in (b"\xff" * 1184 + good[1184:], good[:1184] + bytes(32)):
        with pytest.raises(KemRefused):
            kem_wrap(public, Secret(KEY), INFO)
