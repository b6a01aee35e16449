"""Hostile bytes in a vault's folder: a parser returns a value or raises ``Rejected``, whatever it is given."""

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidegate.base.errors import Rejected
from tidegate.crypto import cbor
from tidegate.crypto.aead import AeadAlgorithm, Secret
from tidegate.crypto.kem import kem_public
from tidegate.crypto.seedsign import seed_public
from tidegate.vault.format import BODY_OFFSET, SLOT_BYTES, Expected, VaultKeys, open_slot, verify_slots
from tidegate.vault.journal import (
    Change,
    Tail,
    Transaction,
    decode_transaction,
    encode_entry,
    iter_entries,
)
from tidegate.vault.listing import decode_item
from tidegate.vault.manifest import verify_manifest
from tidegate.vault.padding import Padding
from tidegate.vault.record import Record, Slot, encode_record, parse_record
from tidegate.vault.redo import recover_redo
from tidegate.vault.snapshot import SnapshotReader, encode_snapshot
from tidegate.vault.threshold import ThresholdUnlocker
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker
from tidegate.vault.usbdrive import UsbUnlocker

ID = b"V" * 16
KEYS = VaultKeys(Secret(bytes(32)), ID)
KEY = Secret(b"j" * 32)
IDENTITY = Secret(b"i" * 32)
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
EXPECTED = Expected(
    file_id=bytes(16), generation=1, sequence=0, tag=bytes(16), length_bytes=0, stored_bytes=0, epoch=1, modified_s=0
)
PUBLIC = kem_public(Secret(bytes(32)))


def record_bytes():
    slot = Slot(
        number=1, label="x", kind="passphrase", public=PUBLIC, sealed={"salt": b"s"}, bound=bytes(32), wrapped=b"w"
    )
    record = Record(
        vault_id=ID,
        version=1,
        epoch=1,
        algorithm=AeadAlgorithm.AES_256_GCM,
        padding=Padding("padme"),
        slots=(slot,),
        vault_keys={1: bytes(60)},
        identity=seed_public(IDENTITY),
        identity_key=bytes(60),
    )
    return encode_record(record, IDENTITY)


@SETTINGS
@given(raw=st.binary(max_size=300))
def test_any_bytes(raw):
    for parse in (
        parse_record,
        lambda raw: verify_manifest(raw, vault_id=ID, keys=KEYS),
        decode_item,
        decode_transaction,
        lambda raw: open_slot(raw.ljust(SLOT_BYTES, b"\0"), KEYS),
        lambda raw: verify_slots(raw, expected=EXPECTED, path_hash=bytes(32), keys=KEYS),
        lambda raw: verify_slots(raw.ljust(BODY_OFFSET, b"\0"), expected=EXPECTED, path_hash=bytes(32), keys=KEYS),
        lambda raw: list(iter_entries(memoryview(raw), key=KEY, upto=len(raw))),
    ):
        with contextlib.suppress(Rejected):
            parse(raw)


@SETTINGS
@given(position=st.integers(0), bit=st.integers(0, 7), cut=st.booleans())
def test_record_with_one_change(position, bit, cut):
    raw = bytearray(record_bytes())
    position %= len(raw)
    if cut:
        del raw[position:]
    else:
        raw[position] ^= 1 << bit
    with contextlib.suppress(Rejected):
        parse_record(bytes(raw))


members = st.dictionaries(
    st.sampled_from(["salt", "memory", "iterations", "lanes", "sealed", "key", "label", "file", "need", "shares", "x"]),
    st.integers(-1, 1 << 40)
    | st.binary(max_size=64)
    | st.text(max_size=10)
    | st.lists(st.binary(max_size=4), max_size=3),
    max_size=6,
)


class _NoStore:
    def unseal(self, name, sealed, context):
        raise AssertionError("a malformed slot reached the key store")


@SETTINGS
@given(slot=members)
def test_slot_of_an_unlocker(slot):
    for unlocker in (
        PassphraseUnlocker(Secret(b"x")),
        KeyStoreUnlocker(_NoStore(), "vault"),
        UsbUnlocker("LABEL"),
        ThresholdUnlocker(1, [PassphraseUnlocker(Secret(b"x"))]),
    ):
        if isinstance(slot.get("key"), str) and isinstance(slot.get("sealed"), bytes):
            continue  # well formed for the key store
        with contextlib.suppress(Rejected):
            unlocker.unwrap(slot, b"context")


@SETTINGS
@given(
    entries=st.dictionaries(st.binary(min_size=1, max_size=40), st.binary(max_size=3000), max_size=40), data=st.data()
)
def test_snapshot_round_trip(entries, data):
    content = b"".join(encode_snapshot(sorted(entries.items())))

    class Source:
        def read_range(self, offset, count):
            return content[offset : offset + count]

    reader = SnapshotReader(Source(), len(content))
    assert reader.count == len(entries)
    assert dict(reader.scan()) == entries
    start = data.draw(st.binary(max_size=3))
    assert list(reader.scan(start)) == [item for item in sorted(entries.items()) if item[0] >= start]
    for key in [*entries, start]:
        assert reader.get(key) == entries.get(key)


changes = st.lists(
    st.builds(Change, st.binary(min_size=1, max_size=20), st.binary(max_size=50), st.booleans()), max_size=5
)


@SETTINGS
@given(transactions=st.lists(changes, min_size=1, max_size=5), data=st.data())
def test_journal_round_trip_and_any_change_to_it(transactions, data):
    raw, tail = b"", Tail()
    for number, made in enumerate(transactions):
        transaction = Transaction(generation=number, anchor=0, redo=bytes(32), changes=tuple(made))
        raw += encode_entry(transaction, after=tail, nonce=number.to_bytes(12, "big"), key=KEY)
        tail = Tail(number=number + 1, tag=raw[-16:], size=len(raw))
    read = [entry.transaction.changes for entry in iter_entries(memoryview(raw), key=KEY, upto=len(raw))]
    assert read == [tuple(made) for made in transactions]
    damaged = bytearray(raw)
    damaged[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Rejected) as caught:
        list(iter_entries(memoryview(damaged), key=KEY, upto=len(raw)))
    assert caught.value.code == "vault.journal.altered"


@SETTINGS
@given(
    document=st.recursive(st.integers(-5, 5) | st.text(max_size=5) | st.binary(max_size=5000), st.lists, max_leaves=8)
)
def test_authentic_redo_of_any_shape(tmp_path_factory, document):
    """Only who has the vault's keys gets here; a bug of ours must not become anything but a refusal."""
    import hashlib

    from tidegate.crypto.aead import seal_aes256gcm

    folder = tmp_path_factory.mktemp("redo")
    head = b"TGREDO02" + (1).to_bytes(4, "big") + bytes(12)
    raw = head + seal_aes256gcm(KEYS.redo.view(), bytes(12), cbor.encode(document), head)
    (folder / "redo").write_bytes(raw)
    if document == []:
        assert recover_redo(folder, hashlib.sha256(raw).digest(), {1: KEYS}) == 0
        return
    with pytest.raises(Rejected):
        recover_redo(folder, hashlib.sha256(raw).digest(), {1: KEYS})
