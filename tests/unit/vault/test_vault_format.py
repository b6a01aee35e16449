"""The bytes of the format, and what only somebody with the vault's keys could try."""

import math
import os
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Misuse, Rejected
from tidegate.crypto.aead import AeadAlgorithm, Secret
from tidegate.crypto.seedsign import seed_public
from tidegate.vault.errors import ItemNameInvalid
from tidegate.vault.extents import MAX_EXTENTS, Extent
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
    slot_tag,
    verify_size,
    verify_slots,
)
from tidegate.vault.listing import decode_item, encode_item
from tidegate.vault.manifest import Manifest, encode_manifest, manifest_epoch, verify_anchor, verify_manifest
from tidegate.vault.padding import Padding
from tidegate.vault.record import Record, Slot, bind_slot, encode_record, parse_record, verify_record, verify_slot

VAULT_ID, FILE_ID = b"V" * 16, b"F" * 16
NONCE = bytes(12)
FILE_KEY = Secret(b"k" * 32)
IDENTITY = Secret(b"i" * 32)
CHUNK = 1 << 14


@pytest.fixture(scope="module")
def keys():
    return VaultKeys(Secret(bytes(32)), VAULT_ID)


def header_for(name="a", **changes):
    values = {
        "file_id": FILE_ID,
        "generation": 3,
        "sequence": 1,
        "length_bytes": 5,
        "stored_bytes": 5,
        "path_hash": hash_path(VAULT_ID, name),
        "epoch": 7,
        "algorithm": AeadAlgorithm.AES_256_GCM,
        "writes": 9,
    }
    return Header(**{**values, **changes})


def slots_for(keys, header):
    return 2 * encode_slot(header, file_key=FILE_KEY, nonce=NONCE, keys=keys)


def expect(slots, header):
    return Expected(
        file_id=header.file_id,
        generation=header.generation,
        sequence=header.sequence,
        tag=slot_tag(slots[:SLOT_BYTES]),
        length_bytes=header.length_bytes,
        stored_bytes=header.stored_bytes,
        epoch=header.epoch,
        modified_s=0,
    )


def verify(slots, expected, keys, name="a"):
    return verify_slots(slots, expected=expected, path_hash=hash_path(VAULT_ID, name), keys=keys)


def refused(code, call):
    with pytest.raises(Rejected) as caught:
        call()
    assert caught.value.code == code


# -- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        header_for(),
        header_for(length_bytes=0, stored_bytes=0),
        header_for(length_bytes=1 << 40, stored_bytes=1 << 40, writes=1 << 31),
        header_for(length_bytes=10, stored_bytes=100_000, algorithm=AeadAlgorithm.CHACHA20_POLY1305),
        header_for(
            stored_bytes=MAX_EXTENTS * CHUNK, extents=tuple(Extent(at, 1000 + at % 2) for at in range(MAX_EXTENTS))
        ),
    ],
    ids=["plain", "empty", "largest", "padded", "many extents"],
)
def test_slots_round_trip(keys, header):
    slots = slots_for(keys, header)
    assert len(slots) == BODY_OFFSET
    found, file_key = verify(slots, expect(slots, header), keys)
    assert found == header
    assert bytes(file_key.view()) == b"k" * 32


def test_slot_has_the_documented_bytes(keys):
    slot = slots_for(keys, header_for())[:SLOT_BYTES]
    assert slot[:16] == b"TGVAULT2" + b"\0\2" + b"\1" + b"\x0e" + bytes([0, 0, 0, 7])
    assert slot[16:32] == FILE_ID
    assert [int.from_bytes(slot[at : at + 8], "big") for at in (32, 40)] == [3, 1]
    assert slot[48:60] == NONCE
    assert b"k" * 8 not in slot
    assert hash_path(VAULT_ID, "a")[:8] not in slot


def test_path_of_another_item_is_refused(keys):
    slots = slots_for(keys, header_for())
    refused("vault.file.path", lambda: verify(slots, expect(slots, header_for()), keys, name="b"))


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_log2": 30},
        {"chunk_log2": 11},
        {"length_bytes": 6},
        {"stored_bytes": (1 << 40) + 1},
        {"extents": ()},
        {"extents": (Extent(1, 0),)},
        {"extents": (Extent(0, 0), Extent(1, 1))},
        {"extents": (Extent(0, 0), Extent(0, 1)), "stored_bytes": 3 * CHUNK},
    ],
    ids=str,
)
def test_authentic_header_of_unknown_shape_is_refused(keys, changes):
    header = header_for(**changes)
    slots = slots_for(keys, header)
    refused("vault.header.unsupported", lambda: verify(slots, expect(slots, header), keys))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"tag": bytes(16)}, "vault.file.rollback"),
        ({"generation": 4}, "vault.file.rollback"),
        ({"sequence": 2}, "vault.file.rollback"),
        ({"file_id": b"G" * 16}, "vault.file.swapped"),
    ],
    ids=str,
)
def test_slot_that_is_not_the_listed_one_is_refused(keys, changes, code):
    slots = slots_for(keys, header_for())
    refused(code, lambda: verify(slots, replace(expect(slots, header_for()), **changes), keys))


def test_two_authentic_slots_that_differ_are_refused(keys):
    """An update writes both; between the two only the redo file says which one counts."""
    first, second = slots_for(keys, header_for()), slots_for(keys, header_for(sequence=2))
    for slots in (first[:SLOT_BYTES] + second[:SLOT_BYTES], second[:SLOT_BYTES] + first[:SLOT_BYTES]):
        refused("vault.header.altered", lambda slots=slots: verify(slots, expect(slots, header_for()), keys))


def test_slot_of_other_keys_is_refused(keys):
    for other in (VaultKeys(Secret(b"x" * 32), VAULT_ID), VaultKeys(Secret(bytes(32)), b"W" * 16)):
        slots = slots_for(other, header_for())
        refused("vault.header.altered", lambda slots=slots: verify(slots, expect(slots, header_for()), keys))


def test_wrong_version_in_an_authentic_frame(keys):
    slots = slots_for(keys, header_for())
    for version in (1, 3, 0xFFFF):
        altered = slots[:8] + version.to_bytes(2, "big") + slots[10:]
        refused("vault.header.unsupported", lambda altered=altered: verify(altered, expect(slots, header_for()), keys))
    refused("vault.header.altered", lambda: verify(b"TGVAULT1" + slots[8:], expect(slots, header_for()), keys))


@settings(max_examples=200, deadline=None)
@given(raw=st.one_of(st.binary(max_size=100), st.binary(min_size=80, max_size=80).map(lambda raw: raw * 110)))
def test_header_parser_raises_only_rejected(raw):
    keys = VaultKeys(Secret(bytes(32)), VAULT_ID)
    good = slots_for(keys, header_for())
    for slots in (raw, b"TGVAULT2\0\2" + raw, good[:48] + raw):
        with pytest.raises(Rejected):
            verify(slots, expect(good, header_for()), keys)


@pytest.mark.parametrize(
    ("stored", "chunks", "size"),
    [
        (0, 1, BODY_OFFSET + CHUNK_OVERHEAD),
        (1, 1, BODY_OFFSET + CHUNK_OVERHEAD + 1),
        (CHUNK, 1, BODY_OFFSET + CHUNK_OVERHEAD + CHUNK),
        (CHUNK + 1, 2, BODY_OFFSET + 2 * CHUNK_OVERHEAD + CHUNK + 1),
    ],
)
def test_sizes(stored, chunks, size):
    header = header_for(length_bytes=0, stored_bytes=stored)
    assert (header.chunks, header.file_bytes) == (chunks, size)
    verify_size(header, size)
    assert header.chunk_offset(chunks - 1) + header.chunk_size(chunks - 1) == size
    refused("vault.file.truncated", lambda: verify_size(header, size - 1))
    refused("vault.file.extended", lambda: verify_size(header, size + 1))


# -- chunks -----------------------------------------------------------------------------------------------------------

BODY = header_for(stored_bytes=4 * CHUNK, length_bytes=4 * CHUNK, sequence=5, extents=(Extent(0, 0), Extent(2, 5)))


def encrypt(content, *, first=0, sequence=0, ends=False, header=BODY, key=FILE_KEY):
    target = memoryview(bytearray(len(content) + CHUNK_OVERHEAD * max(1, math.ceil(len(content) / CHUNK))))
    count = len(target) // CHUNK + 1
    size = ChunkCipher(key, header).encrypt(
        first, memoryview(content), target, nonces=os.urandom(12 * count), sequence=sequence, ends=ends
    )
    assert size == len(target)
    return target


def decrypt(sealed, *, first=0, header=BODY, key=FILE_KEY):
    target = memoryview(bytearray(len(sealed)))
    try:
        return bytes(target[: ChunkCipher(key, header).decrypt(first, sealed, target, header=header)])
    except Rejected:
        assert not any(target)
        raise


@pytest.mark.parametrize("algorithm", AeadAlgorithm)
def test_chunks_round_trip(algorithm):
    header = replace(BODY, algorithm=algorithm)
    content = os.urandom(2 * CHUNK)
    assert decrypt(encrypt(content, header=header), header=header) == content
    assert decrypt(encrypt(content, first=2, sequence=5, ends=True, header=header), first=2, header=header) == content


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"header": replace(BODY, file_id=b"G" * 16)}, "vault.chunk.altered"),
        ({"header": replace(BODY, path_hash=b"Q" * 32)}, "vault.chunk.altered"),
        ({"header": replace(BODY, algorithm=AeadAlgorithm.CHACHA20_POLY1305)}, "vault.chunk.altered"),
        ({"key": Secret(b"l" * 32)}, "vault.chunk.altered"),
        ({"first": 0}, "vault.chunk.reordered"),
        ({"header": replace(BODY, extents=(Extent(0, 5),))}, "vault.chunk.rollback"),
        ({"header": replace(BODY, stored_bytes=2 * CHUNK, extents=(Extent(0, 0),))}, "vault.chunk.rollback"),
    ],
    ids=["file", "path", "cipher", "key", "position", "sequence", "an end that is none"],
)
def test_chunk_is_bound(changes, code):
    sealed = encrypt(bytes(CHUNK), first=1)
    assert decrypt(sealed, first=1) == bytes(CHUNK)
    refused(code, lambda: decrypt(sealed, **{"first": 1, **changes}))


def test_second_chunk_of_a_batch_is_bound_as_well():
    one, two = encrypt(b"1" * CHUNK), encrypt(b"2" * CHUNK, first=1)
    assert decrypt(memoryview(bytes(one) + bytes(two))) == b"1" * CHUNK + b"2" * CHUNK
    for wrong in (
        bytes(two) + bytes(one),
        bytes(one) + bytes(one),
        bytes(one) + bytes(two[:-1]) + bytes([two[-1] ^ 1]),
    ):
        with pytest.raises(Rejected):
            decrypt(memoryview(wrong))


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=300), index=st.integers(0, (1 << 26) - 1), sequence=st.integers(0), bit=st.integers(0)
)
def test_any_flipped_bit_of_a_chunk_is_refused(content, index, sequence, bit):
    sequence %= 1 << 64
    header = header_for(stored_bytes=index * CHUNK + len(content), extents=(Extent(0, sequence),), sequence=sequence)
    if header.chunks != index + 1:
        return  # an empty last chunk is one of an empty file alone
    sealed = encrypt(content, first=index, sequence=sequence, ends=True, header=header)
    assert decrypt(sealed, first=index, header=header) == content
    sealed[bit // 8 % len(sealed)] ^= 1 << bit % 8
    refused("vault.chunk.altered", lambda: decrypt(sealed, first=index, header=header))


# -- manifest, items, record ------------------------------------------------------------------------------------------

ITEM = Expected(
    file_id=FILE_ID, generation=1, sequence=2, tag=b"t" * 16, length_bytes=3, stored_bytes=4, epoch=5, modified_s=6
)
MANIFEST = Manifest(
    epoch=7,
    generation=8,
    anchor=3,
    clean=True,
    uncounted=True,
    number=2,
    snapshot=ITEM,
    salt=b"s" * 32,
    journal_bytes=100,
    journal_tag=b"t" * 16,
    record_version=4,
)


def test_item_has_the_documented_bytes():
    raw = encode_item(ITEM)
    sizes = [16, 8, 8, 16, 8, 8, 4, 8]
    parts = [raw[sum(sizes[:at]) : sum(sizes[: at + 1])] for at in range(len(sizes))]
    assert len(raw) == 76
    assert (parts[0], parts[3]) == (FILE_ID, b"t" * 16)
    assert [int.from_bytes(part, "big") for part in (*parts[1:3], *parts[4:])] == [1, 2, 3, 4, 5, 6]
    assert decode_item(raw) == ITEM
    for wrong in (raw[:-1], raw + b"\0", b""):
        refused("vault.manifest.altered", lambda wrong=wrong: decode_item(wrong))


@pytest.mark.parametrize("clean", [True, False])
def test_manifest_round_trip(keys, clean):
    manifest = replace(MANIFEST, clean=clean)
    raw = encode_manifest(manifest, vault_id=VAULT_ID, nonce=NONCE, keys=keys)
    assert raw[:40] == b"TGVMANI2" + VAULT_ID + bytes([0, 0, 0, 7]) + NONCE
    assert manifest_epoch(raw, vault_id=VAULT_ID) == 7
    assert verify_manifest(raw, vault_id=VAULT_ID, keys=keys) == manifest
    refused("vault.manifest.altered", lambda: verify_manifest(raw, vault_id=b"W" * 16, keys=keys))
    other = VaultKeys(Secret(b"x" * 32), VAULT_ID)
    refused("vault.manifest.altered", lambda: verify_manifest(raw, vault_id=VAULT_ID, keys=other))


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(max_size=200))
def test_manifest_parser_raises_only_rejected(raw):
    keys = VaultKeys(Secret(bytes(32)), VAULT_ID)
    for whole in (raw, b"TGVMANI2" + VAULT_ID + raw):
        with pytest.raises(Rejected):
            verify_manifest(whole, vault_id=VAULT_ID, keys=keys)


@pytest.mark.parametrize(
    ("anchor", "counter", "code"),
    [(5, 5, None), (6, 5, None), (4, 5, "vault.manifest.rollback"), (7, 5, "vault.anchor.mismatch"), (0, 0, None)],
    ids=["equal", "cut before the counter moved", "older", "too new", "not counted yet"],
)
def test_anchor(anchor, counter, code):
    if code is None:
        verify_anchor(anchor, counter)
    else:
        refused(code, lambda: verify_anchor(anchor, counter))


SLOT = Slot(
    number=1,
    label="paper",
    kind="passphrase",
    public=bytes(1216),
    sealed={"salt": b""},
    wrapped=b"w",
    bound=bytes(32),
)
RECORD = Record(
    vault_id=VAULT_ID,
    version=3,
    epoch=2,
    algorithm=AeadAlgorithm.CHACHA20_POLY1305,
    padding=Padding("4096"),
    slots=(
        Slot(
            number=1,
            label="paper",
            kind="passphrase",
            public=bytes(1216),
            sealed={"salt": b""},
            wrapped=b"w",
            bound=bytes(32),
        ),
    ),
    anchor=1,
    vault_keys={1: bytes(60), 2: bytes(60)},
    identity=seed_public(IDENTITY),
    identity_key=bytes(60),
)


def test_record_round_trip():
    unverified, signature = parse_record(encode_record(RECORD, IDENTITY))
    assert verify_record(unverified, signature) == RECORD
    refused("vault.record.altered", lambda: verify_record(unverified, bytes(64)))
    refused("vault.record.altered", lambda: verify_record(replace(unverified, anchor=0), signature))


def test_slot_vouches_for_the_identity():
    slot = bind_slot(RECORD.slots[0], Secret(b"s" * 32), RECORD)
    verify_slot(slot, Secret(b"s" * 32), RECORD)
    other = replace(RECORD, identity=bytes(32))
    refused("vault.record.altered", lambda: verify_slot(slot, Secret(b"s" * 32), other))
    refused("vault.record.altered", lambda: verify_slot(slot, Secret(b"t" * 32), RECORD))
    refused("vault.record.altered", lambda: verify_slot(replace(slot, number=2), Secret(b"s" * 32), RECORD))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"epoch": 0},
        {"epoch": 3},
        {"slots": ()},
        {"slots": RECORD.slots * 2},
        {"slots": tuple(replace(RECORD.slots[0], number=number) for number in range(1, 34))},
        {"slots": (replace(RECORD.slots[0], number=0),)},
        {"slots": (replace(RECORD.slots[0], label="a\nb"),)},
        {"slots": (replace(RECORD.slots[0], label="x" * 65),)},
        {"slots": (replace(RECORD.slots[0], public=bytes(1215)),)},
        {"vault_keys": {1: bytes(60), 2: bytes(59)}},
        {"vault_keys": {epoch: bytes(60) for epoch in range(1, 6)}},
        {"slots": (replace(RECORD.slots[0], bound=b""),)},
        {"slots": (replace(RECORD.slots[0], kind="escrow"),)},
        {"identity": bytes(31)},
        {"vault_id": bytes(15)},
    ],
    ids=lambda changes: str(changes)[:30],
)
def test_malformed_record_is_refused(changes):
    refused("vault.record.malformed", lambda: parse_record(encode_record(replace(RECORD, **changes), IDENTITY)))


@settings(max_examples=300, deadline=None)
@given(at=st.integers(0), byte=st.integers(0, 255), cut=st.integers(0, 20))
def test_record_parser_raises_only_rejected(at, byte, cut):
    raw = bytearray(encode_record(RECORD, IDENTITY))
    raw[at % len(raw)] = byte
    try:
        unverified, signature = parse_record(bytes(raw[: len(raw) - cut]))
        verify_record(unverified, signature)
    except Rejected as error:
        assert error.code.startswith("vault.record.")
    else:
        assert bytes(raw) == encode_record(RECORD, IDENTITY)


# -- names, padding and keys ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "/", "/a", "a/", "a//b", ".", "..", "a/../b", "./a", "a\nb", "a\0", "\0table", "\ud800", "ä" * 600]
)
def test_name_is_refused(name):
    with pytest.raises(ItemNameInvalid):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "a/b/c", "Größe 1.txt", "...", "x" * 1024])
def test_name_is_accepted(name):
    assert check_name(name) == name


@pytest.mark.parametrize(("length", "stored"), [(0, 0), (1, 1), (2, 2), (9, 10), (1000, 1024), (100_000, 100_352)])
def test_padme_by_the_paper(length, stored):
    assert Padding("padme").padded(length) == stored


@settings(max_examples=300, deadline=None)
@given(length=st.integers(0, 1 << 40), block=st.integers(1, 1 << 30))
def test_padding_pads_enough_and_not_too_much(length, block):
    padme = Padding("padme").padded(length)
    assert length <= padme <= length * 1.12
    assert Padding("padme").padded(padme) == padme
    stored = Padding(str(block)).padded(length)
    assert stored % block == 0
    assert max(length, 1) <= stored < length + block + (length == 0)
    assert Padding("none").padded(length) == length


@pytest.mark.parametrize("rule", ["", "PADME", "0", "-5", " 5", "5 ", "0x10", "1" * 11])
def test_padding_that_is_none(rule):
    with pytest.raises(Misuse):
        Padding(rule)


def test_keys_differ_by_purpose_and_vault_and_are_wiped(keys):
    other = VaultKeys(Secret(bytes(32)), b"W" * 16)
    names = ("header", "manifest", "redo")
    every = [bytes(getattr(one, name).view()) for one in (keys, other) for name in names]
    assert len(set(every)) == 6
    views = [getattr(other, name).view() for name in names]
    other.wipe()
    assert not any(any(view) for view in views)
