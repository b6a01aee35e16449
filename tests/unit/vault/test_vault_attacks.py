"""A row per attack on a vault's storage: each is refused with the code that names it."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tidegate.base.errors import Rejected, TidegateError
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault import errors
from tidegate.vault.format import BODY_OFFSET, CHUNK_OVERHEAD, SLOT_BYTES
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker

CHUNK = (1 << 14) + CHUNK_OVERHEAD
FAST = Argon2Cost(memory_kib=64, iterations=1, lanes=1)
LONG = bytes(range(256)) * 200  # 51,200 bytes: four chunks


@dataclass
class Scene:
    """A vault with three items, closed, and everything that opens it."""

    folder: Path
    keys: SoftwareKeyStore
    keys_folder: Path
    unlocker: object
    spare: Path

    def open(self, unlocker=None):
        return Vault.open(self.folder, unlocker or self.unlocker)

    def check(self):
        with self.open() as vault:
            for name in vault:
                vault.verify(name)

    def file_of(self, name):
        """Return an item's file, found by its generation and size, as an attacker would have to."""
        with self.open() as vault:
            item = vault._manifest.items[name]
        return self.folder / "items" / f"{item.file_id.hex()}.{item.generation}"

    def patch(self, path, offset, data):
        raw = bytearray(path.read_bytes())
        raw[offset : offset + len(data)] = data
        path.write_bytes(raw)


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
    scene.patch(scene.file_of("long"), BODY_OFFSET + 100, b"?")


@attack("vault.chunk.altered")
def flip_a_bit_of_a_nonce(scene):
    scene.patch(scene.file_of("long"), BODY_OFFSET + CHUNK, b"?")


@attack("vault.chunk.altered")
def flip_a_bit_of_the_last_tag(scene):
    path = scene.file_of("short")
    scene.patch(path, path.stat().st_size - 1, b"?")


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


@attack("vault.header.altered")
def change_the_length_in_the_header(scene):
    path = scene.file_of("long")
    for slot in (0, SLOT_BYTES):
        scene.patch(path, slot + 48, (16384).to_bytes(8, "big"))
    path.write_bytes(path.read_bytes()[: BODY_OFFSET + CHUNK])


@attack("vault.header.altered")
def damage_the_slot_that_is_not_in_force(scene):
    scene.patch(scene.file_of("long"), 3000, b"?")


@attack("vault.header.altered")
def copy_one_slot_over_half_the_other(scene):
    path = scene.file_of("long")
    scene.patch(path, SLOT_BYTES, path.read_bytes()[:2048])


@attack("vault.file.rollback")
def put_the_older_slot_over_the_one_in_force(scene):
    path = scene.file_of("long")
    scene.patch(path, SLOT_BYTES, path.read_bytes()[:SLOT_BYTES])


@attack("vault.header.unsupported")
def claim_another_version(scene):
    scene.patch(scene.file_of("long"), 8, b"\0\2")


@attack("vault.header.altered")
def bring_a_file_of_another_vault(scene):
    with Vault.create(scene.spare, scene.unlocker) as other:
        other.write("long", LONG)
    shutil.copy(next((scene.spare / "items").iterdir()), scene.file_of("long"))


# -- the whole vault --------------------------------------------------------------------------------------------------


@attack("vault.file.swapped")
def exchange_two_files(scene):
    first, second = scene.file_of("long"), scene.file_of("twin")
    first.rename(scene.spare)
    second.rename(first)
    scene.spare.rename(second)


@attack("vault.file.swapped")
def put_one_file_in_the_place_of_another(scene):
    shutil.copy(scene.file_of("short"), scene.file_of("long"))


@attack("vault.file.missing")
def remove_a_file(scene):
    scene.file_of("short").unlink()


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


@attack("vault.file.rollback")
def put_an_older_copy_of_one_file_back(scene):
    shutil.copy(scene.file_of("short"), scene.spare)
    with scene.open() as vault:
        vault.write("short", b"newer")
    shutil.copy(scene.spare, scene.file_of("short"))


@attack("vault.manifest.rollback")
def put_an_older_copy_of_the_whole_vault_back(scene):
    shutil.copytree(scene.folder, scene.spare)
    with scene.open() as vault:
        vault.write("short", b"newer")
    shutil.rmtree(scene.folder)
    scene.spare.rename(scene.folder)


@attack("vault.manifest.rollback")
def put_an_older_listing_back(scene):
    shutil.copy(scene.folder / "manifest", scene.spare)
    with scene.open() as vault:
        vault.delete("short")
    shutil.copy(scene.spare, scene.folder / "manifest")


@attack("vault.manifest.missing")
def remove_the_listing(scene):
    (scene.folder / "manifest").unlink()


@attack("vault.manifest.missing")
def put_a_pipe_in_the_place_of_the_listing(scene):
    (scene.folder / "manifest").unlink()
    os.mkfifo(scene.folder / "manifest")


@attack("vault.manifest.altered")
def alter_the_listing(scene):
    scene.patch(scene.folder / "manifest", 60, b"??")


@attack("vault.manifest.altered")
def raise_the_generation_of_the_listing(scene):
    scene.patch(scene.folder / "manifest", 31, b"\xff")


@attack("vault.manifest.altered")
def cut_off_the_listing(scene):
    (scene.folder / "manifest").write_bytes((scene.folder / "manifest").read_bytes()[:40])


@attack("vault.manifest.altered")
def bring_the_listing_of_another_vault(scene):
    Vault.create(scene.spare, scene.unlocker).close()
    shutil.copy(scene.spare / "manifest", scene.folder / "manifest")


@attack("vault.anchor.mismatch")
def put_an_older_copy_of_the_key_store_back(scene):
    shutil.copytree(scene.keys_folder, scene.spare)
    for _ in range(2):
        with scene.open() as vault:
            vault.write("short", b"newer")
    shutil.rmtree(scene.keys_folder)
    scene.spare.rename(scene.keys_folder)


@attack("vault.record.malformed")
def damage_the_record(scene):
    scene.patch(scene.folder / "vault.cbor", 0, b"\xff")


@attack("vault.record.malformed")
def claim_another_format(scene):
    raw = (scene.folder / "vault.cbor").read_bytes()
    (scene.folder / "vault.cbor").write_bytes(raw.replace(b"tidegate.vault.v1", b"tidegate.vault.v9"))


@attack("vault.unlock.refused")
def give_the_vault_another_identity(scene):
    raw = (scene.folder / "vault.cbor").read_bytes()
    with scene.open() as vault:
        identity = vault._id
    (scene.folder / "vault.cbor").write_bytes(raw.replace(identity, bytes(16)))


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


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")], ids=["pipe", "link"])
def test_strange_file_among_the_items_is_removed(scene, make):
    make(scene.folder / "items" / "stranger")
    scene.check()
    assert not os.path.lexists(scene.folder / "items" / "stranger")


def test_every_code_of_the_vault_has_an_attack():
    codes = {value.code for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Rejected)}
    elsewhere = {"vault.file.path"}  # needs the vault's keys: test_vault_format.py
    assert codes - {""} - elsewhere <= {param.values[1] for param in ATTACKS}


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


def test_every_flipped_byte_of_a_small_vault_is_detected(tmp_path):
    folder = tmp_path / "vault"
    unlocker = PassphraseUnlocker(Secret(b"correct horse"), cost=FAST)
    with Vault.create(folder, unlocker) as vault:
        vault.write("a", b"secret")
    undetected = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        step = 1 if len(whole) < 1000 else 7  # headers are mostly one authenticated block of zeros
        for offset in {*range(0, len(whole), step), *range(min(len(whole), 200)), len(whole) - 1} if whole else ():
            flipped = bytearray(whole)
            flipped[offset] ^= 1 << offset % 8
            path.write_bytes(flipped)
            try:
                with Vault.open(folder, unlocker) as vault:
                    for name in vault:
                        vault.verify(name)
            except TidegateError as error:
                assert isinstance(error, Rejected), error
            else:
                undetected.append((path.name, offset))
        path.write_bytes(whole)
    assert undetected == []
    with Vault.open(folder, unlocker) as vault:
        assert vault.read("a") == b"secret"


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
