"""The bytes of the format, and what only somebody with the vault's keys could try."""

import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.vault.errors import ItemNameInvalid
from tidegate.vault.format import (
    BODY_OFFSET,
    CHUNK_OVERHEAD,
    SLOT_BYTES,
    ChunkCipher,
    Expected,
    Header,
    VaultKeys,
    check_name,
    encode_slot,
    hash_path,
    slot_mac,
    verify_size,
    verify_slots,
)
from tidegate.vault.manifest import Manifest, encode_manifest, verify_anchor, verify_manifest

VAULT_ID, FILE_ID = b"V" * 16, b"F" * 16
NONCE = bytes(12)


@pytest.fixture(scope="module")
def keys():
    return VaultKeys(Secret(bytes(32)), VAULT_ID)


def header_for(keys, name="a", **changes):
    values = {"file_id": FILE_ID, "generation": 3, "sequence": 1, "length_bytes": 5, "path_hash": hash_path(keys, name)}
    return Header(**{**values, **changes})


def slots_for(keys, header):
    first = encode_slot(replace(header, sequence=0), file_key=Secret(b"k" * 32), nonce=NONCE, keys=keys)
    return first + encode_slot(header, file_key=Secret(b"k" * 32), nonce=NONCE, keys=keys)


def expect(slots, header):
    mac = slot_mac(slots[SLOT_BYTES:])
    return Expected(
        file_id=header.file_id, generation=header.generation, sequence=1, length_bytes=header.length_bytes, mac=mac
    )


def test_slots_round_trip(keys):
    header = header_for(keys)
    slots = slots_for(keys, header)
    assert len(slots) == BODY_OFFSET
    found, file_key = verify_slots(slots, expected=expect(slots, header), path_hash=hash_path(keys, "a"), keys=keys)
    assert found == header
    assert bytes(file_key.view()) == b"k" * 32


def test_slot_has_the_documented_bytes(keys):
    slot = slots_for(keys, header_for(keys))[:SLOT_BYTES]
    assert slot[:16] == b"TGVAULT1" + b"\0\1" + b"\1" + b"\x0e" + bytes(4)
    assert slot[16:32] == FILE_ID
    assert [int.from_bytes(slot[at : at + 8], "big") for at in (32, 40, 48)] == [3, 0, 5]
    assert slot[56:88] == hash_path(keys, "a")
    assert slot[88:100] == NONCE
    assert set(slot[148:4064]) == {0}


def test_path_of_another_item_is_refused(keys):
    header = header_for(keys)
    slots = slots_for(keys, header)
    with pytest.raises(Rejected) as caught:
        verify_slots(slots, expected=expect(slots, header), path_hash=hash_path(keys, "b"), keys=keys)
    assert caught.value.code == "vault.file.path"


def test_authentic_header_of_unknown_shape_is_refused(keys):
    header = header_for(keys, chunk_log2=30)
    slots = slots_for(keys, header)
    with pytest.raises(Rejected) as caught:
        verify_slots(slots, expected=expect(slots, header), path_hash=hash_path(keys, "a"), keys=keys)
    assert caught.value.code == "vault.header.unsupported"


def test_slot_that_is_not_the_listed_one_is_refused(keys):
    header = header_for(keys)
    slots = slots_for(keys, header)
    with pytest.raises(Rejected) as caught:
        verify_slots(
            slots,
            expected=replace(expect(slots, header), mac=bytes(32)),
            path_hash=hash_path(keys, "a"),
            keys=keys,
        )
    assert caught.value.code == "vault.file.rollback"


def test_header_slots_alternate(keys):
    """The slot in force is the one that the listing names, not the one that claims the most."""
    header = header_for(keys)
    slots = slots_for(keys, header)
    newer = encode_slot(replace(header, sequence=2), file_key=Secret(b"k" * 32), nonce=NONCE, keys=keys)
    updated = newer + slots[SLOT_BYTES:]
    found, _ = verify_slots(updated, expected=expect(slots, header), path_hash=hash_path(keys, "a"), keys=keys)
    assert found.sequence == 1
    named = replace(expect(slots, header), sequence=2, mac=slot_mac(newer))
    found, _ = verify_slots(updated, expected=named, path_hash=hash_path(keys, "a"), keys=keys)
    assert found.sequence == 2


@pytest.mark.parametrize(
    ("length", "chunks", "size"),
    [
        (0, 1, BODY_OFFSET + CHUNK_OVERHEAD),
        (1, 1, BODY_OFFSET + CHUNK_OVERHEAD + 1),
        (16384, 1, BODY_OFFSET + CHUNK_OVERHEAD + 16384),
        (16385, 2, BODY_OFFSET + 2 * CHUNK_OVERHEAD + 16385),
    ],
)
def test_sizes(keys, length, chunks, size):
    header = header_for(keys, length_bytes=length)
    assert (header.chunks, header.file_bytes) == (chunks, size)
    verify_size(header, size)
    assert header.chunk_offset(chunks - 1) + header.chunk_size(chunks - 1) == size


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cipher():
    return ChunkCipher(Secret(b"k" * 32), file_id=FILE_ID, path_hash=b"P" * 32)


@pytest.mark.parametrize(
    ("reader", "index", "chunks", "code"),
    [
        (ChunkCipher(Secret(b"k" * 32), file_id=b"G" * 16, path_hash=b"P" * 32), 1, 3, "vault.chunk.altered"),
        (ChunkCipher(Secret(b"k" * 32), file_id=FILE_ID, path_hash=b"Q" * 32), 1, 3, "vault.chunk.altered"),
        (ChunkCipher(Secret(b"l" * 32), file_id=FILE_ID, path_hash=b"P" * 32), 1, 3, "vault.chunk.altered"),
        (ChunkCipher(Secret(b"k" * 32), file_id=FILE_ID, path_hash=b"P" * 32), 0, 3, "vault.chunk.reordered"),
        (ChunkCipher(Secret(b"k" * 32), file_id=FILE_ID, path_hash=b"P" * 32), 1, 2, "vault.chunk.reordered"),
    ],
    ids=["another file", "another path", "another key", "another position", "an end that is none"],
)
def test_chunk_is_bound(cipher, reader, index, chunks, code):
    chunk = cipher.encrypt(1, b"content", nonce=NONCE, final=False)
    assert cipher.decrypt(1, chunk, chunks=3) == b"content"
    with pytest.raises(Rejected) as caught:
        reader.decrypt(index, chunk, chunks=chunks)
    assert caught.value.code == code


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300), index=st.integers(0, 1 << 40), final=st.booleans(), bit=st.integers(0))
def test_any_flipped_bit_of_a_chunk_is_refused(content, index, final, bit):
    cipher = ChunkCipher(Secret(b"k" * 32), file_id=FILE_ID, path_hash=b"P" * 32)
    chunks = index + 1 if final else index + 2
    chunk = bytearray(cipher.encrypt(index, content, nonce=os.urandom(12), final=final))
    assert cipher.decrypt(index, bytes(chunk), chunks=chunks) == content
    chunk[bit // 8 % len(chunk)] ^= 1 << bit % 8
    with pytest.raises(Rejected) as caught:
        cipher.decrypt(index, bytes(chunk), chunks=chunks)
    assert caught.value.code == "vault.chunk.altered"


# -- listing ----------------------------------------------------------------------------------------------------------


def items_of(count):
    return {
        f"folder/{number}": Expected(
            file_id=number.to_bytes(16, "big"), generation=1, sequence=1, length_bytes=number, mac=bytes(32)
        )
        for number in range(count)
    }


def test_manifest_round_trip_hides_names(keys):
    manifest = Manifest(generation=7, items=items_of(50))
    raw = encode_manifest(manifest, vault_id=VAULT_ID, nonce=NONCE, keys=keys)
    assert verify_manifest(raw, vault_id=VAULT_ID, keys=keys) == manifest
    assert b"folder" not in raw


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=200))
def test_manifest_parser_raises_only_rejected(raw):
    with pytest.raises(Rejected):
        verify_manifest(raw, vault_id=VAULT_ID, keys=VaultKeys(Secret(bytes(32)), VAULT_ID))


@pytest.mark.parametrize(
    ("generation", "counter", "code"),
    [(5, 5, None), (6, 5, None), (4, 5, "vault.manifest.rollback"), (7, 5, "vault.anchor.mismatch")],
    ids=["equal", "cut before the counter moved", "older", "too new"],
)
def test_anchor(generation, counter, code):
    if code is None:
        verify_anchor(generation, counter)
    else:
        with pytest.raises(Rejected) as caught:
            verify_anchor(generation, counter)
        assert caught.value.code == code


# -- names and keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\nb", "a\0", "\ud800", "ä" * 600]
)
def test_name_is_refused(name):
    with pytest.raises(ItemNameInvalid):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "a/b/c", "Größe 1.txt", "...", "x" * 1024])
def test_name_is_accepted(name):
    assert check_name(name) == name


def test_keys_differ_by_purpose_and_vault_and_are_wiped(keys):
    other = VaultKeys(Secret(bytes(32)), b"W" * 16)
    every = [
        bytes(getattr(set_, name).view())
        for set_ in (keys, other)
        for name in ("wrapping", "header", "manifest", "name")
    ]
    assert len(set(every)) == 8
    other.wipe()
    assert bytes(other.wrapping.view()) == bytes(32)
