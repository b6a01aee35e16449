"""A row per attack on a vault's storage: each is refused with the code that names it."""

import gc
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidegate.base.errors import Rejected
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.kem import kem_public
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault import errors
from tidegate.vault.engine import Engine
from tidegate.vault.format import BODY_OFFSET, CHUNK_OVERHEAD, SLOT_BYTES
from tidegate.vault.listing import file_name
from tidegate.vault.rotation import rekey
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

CHUNK = (1 << 14) + CHUNK_OVERHEAD
FAST = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
LONG = bytes(range(256)) * 200  # 51,200 bytes: four chunks
THIRD_CHUNK = 2 * (1 << 14)


@dataclass
class Scene:
    """A vault with three items and three records, closed, and everything that opens it."""

    folder: Path
    keys: SoftwareKeyStore
    keys_folder: Path
    unlocker: object
    spare: Path

    def open(self, unlocker=None):
        return Vault.open(self.folder, unlocker or self.unlocker)

    def check(self):
        with self.open() as vault:
            look_at_everything(vault)

    def file_of(self, name):
        """Return an item's file, found by its generation and size, as an attacker would have to."""
        with self.open() as vault:
            return self.folder / "items" / file_name(vault.engine.find(name))

    def table_file(self, kind):
        return next((self.folder / "table").glob(f"*.{kind}"))

    def copy_journal_away(self):
        """Set the vault's newest state but for the journal aside; return where."""
        shutil.copytree(self.folder, self.spare)
        return self.spare / "table" / self.table_file("journal").name

    def patch(self, path, offset, data):
        raw = bytearray(path.read_bytes())
        raw[offset : offset + len(data)] = data
        path.write_bytes(raw)

    def flip(self, path, offset):
        """Change one bit, whatever stands there."""
        self.patch(path, offset, bytes([path.read_bytes()[offset] ^ 1]))

    def change_record(self, change):
        """Write the record as ``change`` leaves it, in the same encoding."""
        path = self.folder / "vault.cbor"
        document = cbor.decode(path.read_bytes(), limit_bytes=1 << 20)
        change(document)
        path.write_bytes(cbor.encode(document))

    def overwrite_third_chunk(self, data):
        with self.open() as vault, vault.open_file("long", "r+") as stream:
            stream.seek(THIRD_CHUNK)
            stream.write(data)


def look_at_everything(vault):
    for name in vault:
        vault.verify(name)
    for _ in vault.records("sessions").items():
        pass
    vault.verify_folder()


def make_keys(folder):
    folder.mkdir(mode=0o700)
    secret = folder / "device-secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(range(32)))
    store = SoftwareKeyStore.create(folder / "store", DeviceSecretUnlock(secret))
    store.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    store.generate("other", KeySpec(purpose=KeyPurpose.SEAL))
    return store


@pytest.fixture
def scene(tmp_path):
    keys = make_keys(tmp_path / "keys")
    unlocker = KeyStoreUnlocker(keys, "vault")
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        vault.write("long", LONG)
        vault.write("twin", LONG[::-1])
        vault.write("short", b"secret")
        for key in "abc":
            vault.records("sessions")[key] = key.encode() * 20
    return Scene(tmp_path / "vault", keys, tmp_path / "keys" / "store", unlocker, tmp_path / "spare")


ATTACKS = []


def attack(code):
    def register(function):
        ATTACKS.append(pytest.param(function, code, id=function.__name__))
        return function

    return register


# -- one file ---------------------------------------------------------------------------------------------------------


@attack("vault.chunk.altered")
def flip_a_bit_of_the_content(scene):
    scene.flip(scene.file_of("long"), BODY_OFFSET + 100)


@attack("vault.chunk.altered")
def flip_a_bit_of_a_nonce(scene):
    scene.flip(scene.file_of("long"), BODY_OFFSET + CHUNK)


@attack("vault.chunk.altered")
def flip_a_bit_of_the_last_tag(scene):
    path = scene.file_of("short")
    raw = path.read_bytes()
    scene.patch(path, len(raw) - 1, bytes([raw[-1] ^ 1]))


@attack("vault.chunk.reordered")
def swap_two_chunks(scene):
    path = scene.file_of("long")
    raw = path.read_bytes()
    first, second = raw[BODY_OFFSET : BODY_OFFSET + CHUNK], raw[BODY_OFFSET + CHUNK : BODY_OFFSET + 2 * CHUNK]
    scene.patch(path, BODY_OFFSET, second + first)


@attack("vault.chunk.reordered")
def repeat_a_chunk(scene):
    path = scene.file_of("long")
    scene.patch(path, BODY_OFFSET + CHUNK, path.read_bytes()[BODY_OFFSET : BODY_OFFSET + CHUNK])


@attack("vault.chunk.reordered")
def repeat_a_chunk_that_was_changed_in_place(scene):
    scene.overwrite_third_chunk(b"changed")
    path = scene.file_of("long")
    third = path.read_bytes()[BODY_OFFSET + 2 * CHUNK : BODY_OFFSET + 3 * CHUNK]
    scene.patch(path, BODY_OFFSET + CHUNK, third)


@attack("vault.chunk.rollback")
def put_an_older_chunk_back(scene):
    old = scene.file_of("long").read_bytes()[BODY_OFFSET + 2 * CHUNK : BODY_OFFSET + 3 * CHUNK]
    scene.overwrite_third_chunk(b"changed")
    scene.patch(scene.file_of("long"), BODY_OFFSET + 2 * CHUNK, old)


@attack("vault.chunk.rollback")
def put_the_older_of_two_changes_back(scene):
    scene.overwrite_third_chunk(b"changed")
    old = scene.file_of("long").read_bytes()[BODY_OFFSET + 2 * CHUNK : BODY_OFFSET + 3 * CHUNK]
    scene.overwrite_third_chunk(b"again")
    scene.patch(scene.file_of("long"), BODY_OFFSET + 2 * CHUNK, old)


@attack("vault.chunk.rollback")
def put_the_older_end_back(scene):
    """The last chunk was the last before as well: only its sequence tells."""
    old = scene.file_of("short").read_bytes()[BODY_OFFSET:]
    with scene.open() as vault, vault.open_file("short", "r+") as stream:
        stream.write(b"SECRET")
    scene.patch(scene.file_of("short"), BODY_OFFSET, old)


@attack("vault.chunk.altered")
def take_a_chunk_of_another_file(scene):
    chunk = scene.file_of("twin").read_bytes()[BODY_OFFSET : BODY_OFFSET + CHUNK]
    scene.patch(scene.file_of("long"), BODY_OFFSET, chunk)


@attack("vault.file.truncated")
def cut_off_the_last_chunk(scene):
    path = scene.file_of("long")
    path.write_bytes(path.read_bytes()[: BODY_OFFSET + 3 * CHUNK])


@attack("vault.file.truncated")
def cut_off_a_byte(scene):
    path = scene.file_of("long")
    path.write_bytes(path.read_bytes()[:-1])


@attack("vault.file.truncated")
def cut_off_everything_behind_the_header(scene):
    path = scene.file_of("short")
    path.write_bytes(path.read_bytes()[:BODY_OFFSET])


@attack("vault.file.truncated")
def cut_into_the_header(scene):
    path = scene.file_of("short")
    path.write_bytes(path.read_bytes()[: SLOT_BYTES + 7])


@attack("vault.file.truncated")
def empty_the_file(scene):
    scene.file_of("short").write_bytes(b"")


@attack("vault.file.extended")
def append_a_byte(scene):
    path = scene.file_of("short")
    path.write_bytes(path.read_bytes() + b"\0")


@attack("vault.file.extended")
def append_a_chunk(scene):
    path = scene.file_of("long")
    raw = path.read_bytes()
    path.write_bytes(raw + raw[BODY_OFFSET : BODY_OFFSET + CHUNK])


@attack("vault.file.extended")
def give_a_file_back_what_was_cut_off_in_place(scene):
    old = scene.file_of("long").read_bytes()
    with scene.open() as vault, vault.open_file("long", "r+") as stream:
        stream.truncate(THIRD_CHUNK)
    path = scene.file_of("long")
    path.write_bytes(path.read_bytes() + old[BODY_OFFSET + 2 * CHUNK :])


@attack("vault.header.altered")
def damage_the_encrypted_part_of_the_header(scene):
    path = scene.file_of("long")
    for slot in (0, SLOT_BYTES):
        scene.patch(path, slot + 124, (16384).to_bytes(8, "big"))
    path.write_bytes(path.read_bytes()[: BODY_OFFSET + CHUNK])


@attack("vault.header.altered")
def raise_the_sequence_in_the_header(scene):
    for slot in (0, SLOT_BYTES):
        scene.patch(scene.file_of("long"), slot + 47, b"\7")


@attack("vault.header.altered")
def damage_the_second_slot_alone(scene):
    scene.flip(scene.file_of("long"), SLOT_BYTES + 3000)


@attack("vault.header.altered")
def copy_one_slot_over_half_the_other(scene):
    """Both are the same until the file is changed in place; then the older one is authentic, and still refused."""
    old = scene.file_of("long").read_bytes()[:SLOT_BYTES]
    scene.overwrite_third_chunk(b"changed")
    scene.patch(scene.file_of("long"), 0, old[:2048])


@attack("vault.header.altered")
def put_the_older_header_in_one_slot(scene):
    old = scene.file_of("long").read_bytes()[:SLOT_BYTES]
    scene.overwrite_third_chunk(b"changed")
    scene.patch(scene.file_of("long"), SLOT_BYTES, old)


@attack("vault.file.rollback")
def put_the_older_header_in_both_slots(scene):
    old = scene.file_of("long").read_bytes()[:BODY_OFFSET]
    scene.overwrite_third_chunk(b"changed")
    scene.patch(scene.file_of("long"), 0, old)


@attack("vault.header.unsupported")
def claim_another_version(scene):
    scene.patch(scene.file_of("long"), 8, b"\0\3")


@attack("vault.header.altered")
def claim_another_algorithm(scene):
    path = scene.file_of("long")
    for slot in (0, SLOT_BYTES):
        scene.patch(path, slot + 10, bytes([3 - path.read_bytes()[10]]))


@attack("vault.header.altered")
def bring_a_file_of_another_vault(scene):
    with Vault.create(scene.spare, scene.unlocker) as other:
        other.write("long", LONG)
    shutil.copy(next((scene.spare / "items").iterdir()), scene.file_of("long"))


# -- the folder -------------------------------------------------------------------------------------------------------


@attack("vault.file.swapped")
def exchange_two_files(scene):
    first, second = scene.file_of("long"), scene.file_of("twin")
    first.rename(scene.spare)
    second.rename(first)
    scene.spare.rename(second)


@attack("vault.file.swapped")
def put_one_file_in_the_place_of_another(scene):
    shutil.copy(scene.file_of("short"), scene.file_of("long"))


@attack("vault.file.swapped")
def put_an_item_in_the_place_of_the_table(scene):
    shutil.copy(scene.file_of("short"), scene.table_file("snapshot"))


@attack("vault.file.swapped")
def put_the_table_in_the_place_of_an_item(scene):
    shutil.copy(scene.table_file("snapshot"), scene.file_of("short"))


@attack("vault.file.missing")
def remove_a_file(scene):
    scene.file_of("short").unlink()


@attack("vault.file.missing")
def remove_the_snapshot(scene):
    scene.table_file("snapshot").unlink()


@attack("vault.file.missing")
def put_a_pipe_in_the_place_of_a_file(scene):
    path = scene.file_of("short")
    path.unlink()
    os.mkfifo(path)


@attack("vault.file.missing")
def put_a_link_in_the_place_of_a_file(scene):
    path = scene.file_of("short")
    path.rename(scene.spare)
    path.symlink_to(scene.spare)


@attack("vault.file.missing")
def put_a_folder_in_the_place_of_a_file(scene):
    path = scene.file_of("short")
    path.unlink()
    path.mkdir()


@attack("vault.file.rollback")
def put_an_older_copy_of_one_file_back(scene):
    shutil.copy(scene.file_of("short"), scene.spare)
    with scene.open() as vault:
        vault.write("short", b"newer")
    shutil.copy(scene.spare, scene.file_of("short"))


@attack("vault.file.rollback")
def put_an_older_copy_of_a_file_changed_in_place_back(scene):
    shutil.copy(scene.file_of("long"), scene.spare)
    scene.overwrite_third_chunk(b"changed")
    shutil.copy(scene.spare, scene.file_of("long"))


@attack("vault.file.swapped")
def put_an_older_snapshot_in_the_place_of_the_newest(scene):
    """Every snapshot has an identity of its own."""
    shutil.copy(scene.table_file("snapshot"), scene.spare)
    with scene.open() as vault:
        vault.table.merge()
    shutil.copy(scene.spare, scene.table_file("snapshot"))


@attack("vault.chunk.altered")
def damage_the_snapshot(scene):
    with scene.open() as vault:
        vault.table.merge()
    scene.flip(scene.table_file("snapshot"), BODY_OFFSET + 30)


@attack("vault.file.truncated")
def cut_off_the_snapshot(scene):
    path = scene.table_file("snapshot")
    path.write_bytes(path.read_bytes()[:-1])


@attack("vault.file.unexpected")
def add_a_file_to_the_items(scene):
    (scene.folder / "items" / "stranger").touch()


@attack("vault.file.unexpected")
def add_a_copy_of_a_file_under_another_generation(scene):
    path = scene.file_of("short")
    shutil.copy(path, path.with_suffix(".7"))


@attack("vault.file.unexpected")
def add_a_link_to_the_items(scene):
    (scene.folder / "items" / "stranger").symlink_to("/etc/passwd")


@attack("vault.file.unexpected")
def add_a_file_to_the_folder(scene):
    (scene.folder / "note").touch()


# -- the journal ------------------------------------------------------------------------------------------------------


@attack("vault.journal.truncated")
def cut_off_a_byte_of_the_journal(scene):
    path = scene.table_file("journal")
    path.write_bytes(path.read_bytes()[:-1])


@attack("vault.journal.truncated")
def cut_off_the_last_transaction(scene):
    path = scene.table_file("journal")
    path.write_bytes(path.read_bytes()[: sum(entry_sizes(path)[:-1])])


@attack("vault.journal.truncated")
def empty_the_journal(scene):
    scene.table_file("journal").write_bytes(b"")


@attack("vault.journal.extended")
def append_a_byte_to_the_journal(scene):
    path = scene.table_file("journal")
    path.write_bytes(path.read_bytes() + b"\0")


@attack("vault.journal.extended")
def append_a_transaction_again(scene):
    path = scene.table_file("journal")
    raw = path.read_bytes()
    path.write_bytes(raw + raw[-entry_sizes(path)[-1] :])


@attack("vault.journal.altered")
def alter_the_last_transaction(scene):
    path = scene.table_file("journal")
    scene.flip(path, path.stat().st_size - 30)


@attack("vault.journal.altered")
def alter_the_first_transaction(scene):
    scene.flip(scene.table_file("journal"), 20)


@attack("vault.journal.altered")
def exchange_two_transactions(scene):
    path = scene.table_file("journal")
    raw, sizes = path.read_bytes(), entry_sizes(path)
    assert sizes[-1] == sizes[-2]
    path.write_bytes(raw[: -2 * sizes[-1]] + raw[-sizes[-1] :] + raw[-2 * sizes[-1] : -sizes[-1]])


@attack("vault.journal.altered")
def leave_a_transaction_out_and_repeat_the_last(scene):
    path = scene.table_file("journal")
    raw, sizes = path.read_bytes(), entry_sizes(path)
    path.write_bytes(raw[: -2 * sizes[-1]] + 2 * raw[-sizes[-1] :])


@attack("vault.journal.altered")
def claim_a_longer_transaction(scene):
    scene.patch(scene.table_file("journal"), 0, b"\0\x3f")


@attack("vault.journal.altered")
def bring_the_journal_of_another_vault(scene):
    with Vault.create(scene.spare, scene.unlocker) as other:
        other.write("long", LONG)
        other.write("twin", LONG[::-1])
        other.write("short", b"secret")
        for key in "abc":
            other.records("sessions")[key] = key.encode() * 20
    shutil.copy(next((scene.spare / "table").glob("*.journal")), scene.table_file("journal"))


@attack("vault.journal.missing")
def remove_the_journal(scene):
    scene.table_file("journal").unlink()


@attack("vault.journal.missing")
def put_a_pipe_in_the_place_of_the_journal(scene):
    path = scene.table_file("journal")
    path.unlink()
    os.mkfifo(path)


@attack("vault.journal.altered")
def alter_a_transaction_that_is_vouched_for_of_a_vault_that_was_not_closed(scene):
    """The part that an earlier close vouches for is no torn end, even if it is the last one there."""
    name = scene.table_file("journal").name
    with scene.open() as vault:
        vault.table.settle()
        shutil.copytree(scene.folder, scene.spare)
        vault.records("sessions")["a"] = b"newer"
        shutil.copy(scene.folder / "manifest", scene.spare / "manifest")  # not closed, vouches for what was
    shutil.rmtree(scene.folder)
    scene.spare.rename(scene.folder)
    path = scene.folder / "table" / name
    scene.flip(path, path.stat().st_size - 30)


def entry_sizes(path):
    """Return the sizes of a journal's entries, as anybody can see them."""
    raw, sizes, at = path.read_bytes(), [], 0
    while at < len(raw):
        sizes.append(4 + int.from_bytes(raw[at : at + 4], "big"))
        at += sizes[-1]
    return sizes


# -- a change in place under way --------------------------------------------------------------------------------------


def cut_the_power_in_a_change_in_place(scene, tamper=lambda digest: digest):
    """Leave the folder as it is behind the transaction, before anything is written to the item's file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tidegate.vault.engine.apply_redo", lambda folder, changes: shutil.copytree(folder, scene.spare))
        real = Engine.commit
        patch.setattr(
            Engine, "commit", lambda self, changes, *, redo: real(self, changes, redo=tamper(redo)), raising=True
        )
        vault = scene.open()
        stream = vault.open_file("long", "r+")
        stream.write(b"changed")
        stream.flush()
        patch.undo()
        vault._release()
    shutil.rmtree(scene.folder)
    scene.spare.rename(scene.folder)


@attack("vault.redo.altered")
def bring_a_redo_file_that_the_transaction_names_but_no_key_opens(scene):
    """Somebody without the keys cannot: the digest stands in the journal. Here the vault itself names the wrong one."""
    junk = b"TGREDO02" + bytes(4) + bytes(200)

    def tamper(digest):
        (scene.folder / "redo").write_bytes(junk)
        return hashlib.sha256(junk).digest()

    cut_the_power_in_a_change_in_place(scene, tamper)


@attack("vault.file.rollback")
def remove_the_redo_file(scene):
    """The item's file is the one before the change that counts: reading it tells."""
    cut_the_power_in_a_change_in_place(scene)
    (scene.folder / "redo").unlink()


@attack("vault.file.rollback")
def alter_the_redo_file(scene):
    cut_the_power_in_a_change_in_place(scene)
    scene.flip(scene.folder / "redo", 100)


# -- the whole vault --------------------------------------------------------------------------------------------------


@attack("vault.manifest.rollback")
def put_an_older_copy_of_the_whole_vault_back(scene):
    shutil.copytree(scene.folder, scene.spare)
    with scene.open() as vault:
        vault.write("short", b"newer")
    shutil.rmtree(scene.folder)
    scene.spare.rename(scene.folder)


@attack("vault.manifest.rollback")
def put_a_copy_before_the_last_record_back(scene):
    shutil.copytree(scene.folder, scene.spare)
    with scene.open() as vault:
        vault.records("sessions")["a"] = b"newer"
    shutil.rmtree(scene.folder)
    scene.spare.rename(scene.folder)


@attack("vault.journal.extended")
def put_an_older_listing_back(scene):
    shutil.copy(scene.folder / "manifest", scene.spare)
    with scene.open() as vault:
        vault.delete("short")
    shutil.copy(scene.spare, scene.folder / "manifest")


@attack("vault.manifest.rollback")
def put_an_older_listing_and_journal_back(scene):
    shutil.copytree(scene.folder, scene.spare)
    with scene.open() as vault:
        vault.delete("short")
    shutil.copy(scene.spare / "manifest", scene.folder / "manifest")
    shutil.copy(scene.spare / "table" / scene.table_file("journal").name, scene.table_file("journal"))


@attack("vault.manifest.missing")
def remove_the_listing(scene):
    (scene.folder / "manifest").unlink()


@attack("vault.manifest.missing")
def put_a_pipe_in_the_place_of_the_listing(scene):
    (scene.folder / "manifest").unlink()
    os.mkfifo(scene.folder / "manifest")


@attack("vault.manifest.altered")
def alter_the_listing(scene):
    scene.flip(scene.folder / "manifest", 60)


@attack("vault.manifest.altered")
def raise_the_epoch_of_the_listing(scene):
    scene.patch(scene.folder / "manifest", 27, b"\xff")


@attack("vault.manifest.altered")
def cut_off_the_listing(scene):
    (scene.folder / "manifest").write_bytes((scene.folder / "manifest").read_bytes()[:40])


@attack("vault.manifest.altered")
def bring_the_listing_of_another_vault(scene):
    Vault.create(scene.spare, scene.unlocker).close()
    shutil.copy(scene.spare / "manifest", scene.folder / "manifest")


@attack("vault.manifest.altered")
def bring_the_listing_of_a_vault_with_this_ones_name(scene):
    with scene.open() as vault:
        identity = vault.keyring.vault_id
    Vault.create(scene.spare, scene.unlocker).close()
    raw = bytearray((scene.spare / "manifest").read_bytes())
    raw[8:24] = identity
    (scene.folder / "manifest").write_bytes(raw)


@attack("vault.anchor.mismatch")
def put_an_older_copy_of_the_key_store_back(scene):
    shutil.copytree(scene.keys_folder, scene.spare)
    for _ in range(2):
        with scene.open() as vault:
            vault.write("short", b"newer")
    shutil.rmtree(scene.keys_folder)
    scene.spare.rename(scene.keys_folder)


# -- the record -------------------------------------------------------------------------------------------------------


@attack("vault.record.malformed")
def damage_the_record(scene):
    scene.patch(scene.folder / "vault.cbor", 0, b"\xff")


@attack("vault.record.malformed")
def empty_the_record(scene):
    (scene.folder / "vault.cbor").write_bytes(b"")


@attack("vault.record.malformed")
def remove_every_slot(scene):
    scene.change_record(lambda document: document.update(slots=[]))


@attack("vault.record.malformed")
def add_a_member_to_the_record(scene):
    scene.change_record(lambda document: document.update(more=1))


@attack("vault.record.malformed")
def give_two_slots_one_number(scene):
    scene.change_record(lambda document: document["slots"].append(document["slots"][0]))


@attack("vault.record.malformed")
def name_an_epoch_without_a_key(scene):
    scene.change_record(lambda document: document.update(epoch=9))


@attack("vault.record.unsupported")
def claim_another_format(scene):
    scene.change_record(lambda document: document.update(format="tidegate.vault.v1"))


@attack("vault.record.altered")
def exchange_the_public_key_of_a_slot(scene):
    """Whoever succeeded would be given the next root key."""
    mine = kem_public(Secret(bytes(32)))
    scene.change_record(lambda document: document["slots"][0].update(public=mine))


@attack("vault.record.altered")
def add_a_slot(scene):
    def add(document):
        document["slots"].append({**document["slots"][0], "number": 2, "public": kem_public(Secret(bytes(32)))})

    scene.change_record(add)


@attack("vault.record.altered")
def switch_the_anchor_off(scene):
    scene.change_record(lambda document: document.update(anchor=0))


@attack("vault.record.altered")
def switch_padding_on(scene):
    scene.change_record(lambda document: document.update(padding="padme"))


@attack("vault.record.altered")
def exchange_the_cipher(scene):
    scene.change_record(lambda document: document.update(cipher=3 - document["cipher"]))


@attack("vault.record.altered")
def raise_the_version_of_the_record(scene):
    scene.change_record(lambda document: document.update(version=document["version"] + 1))


@attack("vault.record.altered")
def rename_a_slot(scene):
    scene.change_record(lambda document: document["slots"][0].update(label="my own"))


@attack("vault.record.altered")
def alter_a_vault_key(scene):
    scene.change_record(lambda document: document["keys"].update({1: bytes(60)}))


@attack("vault.record.altered")
def alter_the_code_of_the_record(scene):
    scene.change_record(lambda document: document.update(signature=bytes(64)))


@attack("vault.record.rollback")
def put_a_removed_unlocker_back(scene):
    with scene.open() as vault:
        slot = vault.add_unlocker(PassphraseUnlocker(Secret(b"an employee's"), cost=FAST))
        shutil.copy(scene.folder / "vault.cbor", scene.spare)
        vault.remove_unlocker(slot.number)
    shutil.copy(scene.spare, scene.folder / "vault.cbor")
    scene.unlocker = PassphraseUnlocker(Secret(b"an employee's"), cost=FAST)


@attack("vault.record.rollback")
def put_the_record_before_an_added_unlocker_back(scene):
    shutil.copy(scene.folder / "vault.cbor", scene.spare)
    with scene.open() as vault:
        vault.add_unlocker(PassphraseUnlocker(Secret(b"more"), cost=FAST))
    shutil.copy(scene.spare, scene.folder / "vault.cbor")


@attack("vault.manifest.altered")
def put_the_record_before_a_rekeying_back(scene):
    """It still unwraps the old keys, but nothing on the storage is under them."""
    shutil.copy(scene.folder / "vault.cbor", scene.spare)
    with scene.open() as vault:
        rekey(vault)
    shutil.copy(scene.spare, scene.folder / "vault.cbor")


@attack("vault.unlock.refused")
def give_the_vault_another_identity(scene):
    scene.change_record(lambda document: document.update(id=bytes(16)))


@attack("vault.unlock.refused")
def alter_the_wrapped_root_key(scene):
    def flip(document):
        wrapped = bytearray(document["slots"][0]["wrapped"])
        wrapped[-1] ^= 1
        document["slots"][0]["wrapped"] = bytes(wrapped)

    scene.change_record(flip)


@attack("vault.record.altered")
def renumber_a_slot(scene):
    scene.change_record(lambda document: document["slots"][0].update(number=2))


@attack("vault.unlock.refused")
def bring_the_record_of_another_key(scene):
    Vault.create(scene.spare, KeyStoreUnlocker(scene.keys, "other")).close()
    shutil.copy(scene.spare / "vault.cbor", scene.folder / "vault.cbor")


@attack("vault.manifest.altered")
def bring_the_record_of_another_vault(scene):
    Vault.create(scene.spare, scene.unlocker).close()
    shutil.copy(scene.spare / "vault.cbor", scene.folder / "vault.cbor")


@attack("base.permissions.unsafe")
def open_the_folder_to_others(scene):
    scene.folder.chmod(0o755)


@pytest.mark.parametrize(("tamper", "code"), ATTACKS)
def test_attack_is_refused(scene, tamper, code):
    scene.check()
    tamper(scene)
    with pytest.raises(Rejected) as caught:
        scene.check()
    assert caught.value.code == code


def test_every_code_of_the_vault_has_an_attack():
    codes = {value.code for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Rejected)}
    elsewhere = {"vault.file.path"}  # needs the vault's keys: test_vault_format.py
    parts = {"file", "header", "chunk", "manifest", "journal", "redo", "anchor", "record", "unlock"}
    codes = {code for code in codes if code.count(".") == 2 and code.split(".")[1] in parts}
    assert codes - elsewhere <= {param.values[1] for param in ATTACKS}


@pytest.mark.parametrize(
    "unlocker",
    [
        lambda scene: KeyStoreUnlocker(scene.keys, "other"),
        lambda scene: KeyStoreUnlocker(scene.keys, "missing"),
        lambda scene: PassphraseUnlocker(Secret(b"guess"), cost=FAST),
    ],
    ids=["another key", "no such key", "another kind"],
)
def test_wrong_unlocker_is_refused(scene, unlocker):
    with pytest.raises(Rejected) as caught:
        scene.open(unlocker(scene))
    assert caught.value.code == "vault.unlock.refused"
    scene.check()  # and the lock was given back


def test_removed_unlocker_opens_no_longer(scene):
    leaver = PassphraseUnlocker(Secret(b"an employee's"), cost=FAST)
    with scene.open() as vault:
        slot = vault.add_unlocker(leaver)
    with scene.open(leaver) as vault:
        assert vault.read("short") == b"secret"
    with scene.open() as vault:
        vault.remove_unlocker(slot.number)
    with pytest.raises(Rejected) as caught:
        scene.open(leaver)
    assert caught.value.code == "vault.unlock.refused"


@pytest.mark.parametrize("place", ["new", "table"])
@pytest.mark.parametrize("make", [Path.touch, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_strange_file_is_removed_where_unfinished_ones_are(scene, place, make):
    stranger = scene.folder / place / "stranger"
    make(stranger)
    scene.check()
    assert not os.path.lexists(stranger)
    assert Path("/etc/passwd").read_bytes()


def oversized(path):
    path.touch()
    os.truncate(path, (32 << 20) + 1)


@pytest.mark.timeout(4)
@pytest.mark.parametrize(
    "make",
    [
        Path.touch,
        os.mkfifo,
        Path.mkdir,
        oversized,
        lambda path: path.symlink_to("/etc/passwd"),
    ],
)
def test_strange_redo_file_changes_nothing(scene, make):
    make(scene.folder / "redo")
    scene.check()


@pytest.mark.parametrize("place", ["new", "table"])
def test_strange_folder_is_reported(scene, place):
    (scene.folder / place / "stranger").mkdir()
    with pytest.raises(Rejected):
        scene.check()


def test_journal_of_a_closed_vault_does_not_go_on(tmp_path):
    """The newest transaction fits behind the older journal, but the older manifest says that the journal ended."""
    unlocker = PassphraseUnlocker(Secret(b"x"), cost=FAST)
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        vault.records("sessions")["a"] = b"old"
    shutil.copytree(tmp_path / "vault", tmp_path / "copy")
    with Vault.open(tmp_path / "vault", unlocker) as vault:
        vault.records("sessions")["a"] = b"new"
    (journal,) = (tmp_path / "vault" / "table").glob("*.journal")
    shutil.copy(journal, tmp_path / "copy" / "table" / journal.name)
    with pytest.raises(Rejected) as caught:
        Vault.open(tmp_path / "copy", unlocker)
    assert caught.value.code == "vault.journal.extended"


def test_refused_file_is_closed_once(scene):
    """Closed twice, its number may by then be somebody else's file."""
    append_a_byte(scene)
    with scene.open() as vault:
        try:
            vault.verify("short")
        except Rejected:
            spare = os.open("/dev/null", os.O_RDONLY)  # takes the number that was given back
        gc.collect()
        os.fstat(spare)
        os.close(spare)


def test_older_copy_under_a_passphrase_is_a_known_limitation(tmp_path):
    """Without a counter outside the storage nothing can tell: docs/formats/vault.md says so."""
    unlocker = PassphraseUnlocker(Secret(b"x"), cost=FAST)
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        vault.write("a", b"old")
    shutil.copytree(tmp_path / "vault", tmp_path / "copy")
    with Vault.open(tmp_path / "vault", unlocker) as vault:
        vault.write("a", b"new")
    with Vault.open(tmp_path / "copy", unlocker) as vault:
        assert vault.read("a") == b"old"
