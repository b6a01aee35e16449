"""A second reader, written from docs/formats/vault.md alone: it shares no code with the vault, and no constant.

If this file and the vault disagree, one of them contradicts the document.
"""

import hashlib
import hmac
import math
import os
import shutil
import time

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.crypto.aead import AeadAlgorithm, Secret
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker, PassphraseUnlocker


def number(raw):
    return int.from_bytes(raw, "big")


def big(value, size):
    return value.to_bytes(size, "big")


def split(raw, *sizes):
    """Return the pieces of ``raw`` of these sizes, then what is left."""
    pieces, at = [], 0
    for size in sizes:
        pieces.append(raw[at : at + size])
        at += size
    return [*pieces, raw[at:]]


def unseal(key, sealed, associated):
    return AESGCM(key).decrypt(sealed[:12], sealed[12:], associated)


def derive(key, salt, info):
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=info).derive(key)


def open_seed(slot, vault_id, passphrase):
    sealed = slot["sealed"]
    costs = {name: sealed[name] for name in ("salt", "memory", "iterations", "lanes")}
    kdf = Argon2id(
        salt=costs["salt"], length=32, iterations=costs["iterations"], lanes=costs["lanes"], memory_cost=costs["memory"]
    )
    associated = cbor2.dumps([b"tidegate.vault.v2 " + vault_id, costs], canonical=True)
    return unseal(kdf.derive(passphrase), sealed["sealed"], associated)


def open_root_key(slot, vault_id, seed):
    expanded = hashlib.shake_256(seed).digest(96)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
    x25519 = X25519PrivateKey.from_private_bytes(expanded[64:])
    public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
    assert public == slot["public"]
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    info = b"tidegate.vault.v2 root " + vault_id + big(slot["number"], 8)
    return suite.decrypt(slot["wrapped"], hpke.MLKEM768X25519PrivateKey(mlkem, x25519), info)


class DocumentReader:
    """Everything a closed vault holds, read strictly: what the document does not allow fails an assertion."""

    def __init__(self, folder, passphrase):
        self.folder = folder
        self.record = cbor2.loads((folder / "vault.cbor").read_bytes())
        self.id = self.record["id"]
        self._open_keys(passphrase)
        self.manifest = self._read_manifest()
        table = dict(self._read_snapshot())
        self._play_journal(table)
        self.items = {key[1:].decode(): value for key, value in table.items() if key[:1] == b"i"}
        self.records = {tuple(key[1:].split(b"\0", 1)): value for key, value in table.items() if key[:1] == b"r"}
        self.application_keys = {key[1:]: self._open_key(key, raw) for key, raw in table.items() if key[:1] == b"k"}
        files = {f"{item[:16].hex()}.{number(item[16:24])}" for item in self.items.values()}
        assert files == {path.name for path in (folder / "items").iterdir()}

    def key(self, epoch, purpose):
        return derive(self.vault_keys[epoch], self.id, b"tidegate.vault.v2 " + purpose)

    def _open_keys(self, passphrase):
        names = "format id version epoch cipher padding slots anchor keys identity identity_key signature"
        assert set(self.record) == set(names.split())
        assert self.record["format"] == "tidegate.vault.v2"
        (slot,) = (slot for slot in self.record["slots"] if slot["kind"] == "passphrase")
        assert set(slot) == {"number", "label", "kind", "public", "sealed", "bound", "wrapped"}
        seed = open_seed(slot, self.id, passphrase)
        code = derive(seed, self.id, b"tidegate.vault.v2 slot")
        identity = self.record["identity"]
        assert hmac.digest(code, identity + big(slot["number"], 8), hashlib.sha256) == slot["bound"]
        root_key = open_root_key(slot, self.id, seed)
        wrapping = derive(root_key, self.id, b"tidegate.vault.v2 wrapping")
        self.vault_keys = {
            epoch: unseal(wrapping, sealed, b"tidegate.vault.v2 key " + self.id + big(epoch, 8))
            for epoch, sealed in self.record["keys"].items()
        }
        identity_seed = unseal(wrapping, self.record["identity_key"], b"tidegate.vault.v2 identity " + self.id)
        private = Ed25519PrivateKey.from_private_bytes(identity_seed)
        assert private.public_key().public_bytes_raw() == identity
        others = {name: value for name, value in self.record.items() if name != "signature"}
        signed = b"tidegate.vault.v2 record\0" + cbor2.dumps(others, canonical=True)
        private.public_key().verify(self.record["signature"], signed)

    def _read_manifest(self):
        raw = (self.folder / "manifest").read_bytes()
        magic, vault_id, epoch, nonce, encrypted = split(raw, 8, 16, 4, 12)
        assert (magic, vault_id) == (b"TGVMANI2", self.id)
        self.manifest_key = self.key(number(epoch), b"manifest")
        manifest = cbor2.loads(unseal(self.manifest_key, nonce + encrypted, raw[:40]))
        names = "generation anchor clean uncounted number snapshot salt journal tag record"
        assert set(manifest) == set(names.split())
        assert manifest["record"] <= self.record["version"]
        return manifest

    def _read_snapshot(self):
        path = self.folder / "table" / f"{self.manifest['number']}.snapshot"
        value = self.manifest["snapshot"]
        assert number(value[16:24]) == self.manifest["number"]
        raw = self.read_file(path, "\0table", value)
        fences_at, fences, entries, magic = split(raw[-28:], 8, 4, 8)[:4]
        assert magic == b"TGTABLE2"
        at, starts, firsts, pairs = number(fences_at), [], [], []
        for _ in range(number(fences)):
            size, start = number(raw[at : at + 2]), number(raw[at + 2 : at + 10])
            firsts.append(raw[at + 10 : at + 10 + size])
            starts.append(start)
            at += 10 + size
        assert at == len(raw) - 28
        at, block, blocks = 0, None, []
        while at < number(fences_at):
            key_size, value_size = number(raw[at : at + 2]), number(raw[at + 2 : at + 6])
            key, value = split(raw[at + 6 :], key_size, value_size)[:2]
            if block is None or at - block >= 8192:
                block = at
                blocks.append((at, key))
            pairs.append((key, value))
            at += 6 + key_size + value_size
        assert blocks == list(zip(starts, firsts, strict=True))
        assert [key for key, _ in pairs] == sorted({key for key, _ in pairs})
        assert len(pairs) == number(entries)
        return pairs

    def _play_journal(self, table):
        path = self.folder / "table" / f"{self.manifest['number']}.journal"
        raw = path.read_bytes() if path.exists() else b""
        assert self.manifest["clean"]
        assert len(raw) == self.manifest["journal"]
        key = derive(self.manifest_key, self.manifest["salt"], b"tidegate.vault.v2 journal")
        at, index, tag, generation, anchor = 0, 0, bytes(16), None, None
        while at < len(raw):
            size = raw[at : at + 4]
            entry = raw[at + 4 : at + 4 + number(size)]
            plain = unseal(key, entry, big(index, 8) + tag + size)
            generation, anchor, _redo, changes = split(plain, 8, 8, 32)
            self._apply(table, changes)
            at, index, tag = at + 4 + number(size), index + 1, entry[-16:]
        assert tag == self.manifest["tag"]
        if index:
            assert number(generation) == self.manifest["generation"]
            assert number(anchor) == self.manifest["anchor"]

    def _apply(self, table, changes):
        while changes:
            kind, key_size, value_size, changes = split(changes, 1, 2, 4)
            key, value, changes = split(changes, number(key_size), number(value_size))
            if number(kind) == 1:
                table[key] = value
            else:
                assert number(kind) == 2
                deleted = table.pop(key)
                assert key[:1] != b"i" or value == deleted

    def _open_key(self, key, raw):
        return unseal(self.key(number(raw[:4]), b"header"), raw[4:], raw[:4] + key)

    def read(self, name):
        item = self.items[name]
        return self.read_file(self.folder / "items" / f"{item[:16].hex()}.{number(item[16:24])}", name, item)

    def read_file(self, path, name, value):
        assert len(value) == 76
        file_id, generation, sequence, tag, length, stored, epoch, _time = split(value, 16, 8, 8, 16, 8, 8, 4, 8)[:8]
        raw = path.read_bytes()
        slot = raw[:4096]
        assert slot == raw[4096:8192]
        assert slot[-16:] == tag
        magic, version, algorithm, log2, head = split(slot, 8, 2, 1, 1)
        assert (magic, number(version)) == (b"TGVAULT2", 2)
        assert head[:36] == epoch + file_id + generation + sequence
        plain = unseal(self.key(number(epoch), b"header"), slot[48:], slot[:48])
        assert len(plain) == 4020
        file_key, path_hash, *lengths, count, extents = split(plain, 32, 32, 8, 8, 8, 2)
        assert lengths[:2] == [length, stored]
        size = number(count) * 12
        assert not any(extents[size:])
        extents = [(number(extents[at : at + 4]), extents[at + 4 : at + 12]) for at in range(0, size, 12)]
        assert extents[0][0] == 0
        assert path_hash == hashlib.sha256(b"tidegate.vault.v2 path\0" + self.id + name.encode()).digest()
        cipher = {1: AESGCM, 2: ChaCha20Poly1305}[number(algorithm)](file_key)
        chunk_size = 1 << number(log2)
        chunks = max(1, -(-number(stored) // chunk_size))
        assert len(raw) == 8192 + number(stored) + 28 * chunks
        content = []
        for i in range(chunks):
            written = [sequence for first, sequence in extents if first <= i][-1]
            associated = file_id + big(i, 8) + written + bytes([i == chunks - 1]) + path_hash
            assert len(associated) == 65
            chunk = raw[8192 + i * (chunk_size + 28) :][: chunk_size + 28]
            content.append(cipher.decrypt(chunk[:12], chunk[12:], associated))
        content = b"".join(content)
        assert not any(content[number(length) :])
        return content[: number(length)]


PASSPHRASE = b"correct horse battery staple"
SIZES = [0, 1, 16383, 16384, 16385, 100_000]
CIPHERS = list(AeadAlgorithm)


@pytest.fixture
def unlocker():
    return PassphraseUnlocker(Secret(PASSPHRASE), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))


def padded(rule, length):
    """What the document says a content of ``length`` is rounded up to."""
    if rule == "none":
        return length
    if rule != "padme":
        return max(1, math.ceil(length / int(rule))) * int(rule)
    if length < 2:
        return length
    exponent = math.floor(math.log2(length))
    step = 2 ** (exponent - len(f"{exponent:b}")) if exponent > len(f"{exponent:b}") else 1
    return math.ceil(length / step) * step


@pytest.mark.parametrize("cipher", CIPHERS, ids=lambda cipher: cipher.name)
@pytest.mark.parametrize("padding", ["none", "padme", "4096", "100000"])
def test_document_is_enough_to_read_items(tmp_path, unlocker, padding, cipher):
    items = {f"item/{size}": os.urandom(size) for size in SIZES}
    items["folder/Größe"] = b"small"
    with Vault.create(tmp_path / "vault", unlocker, padding=padding, algorithm=cipher) as vault:
        vault.write("item/1", b"replaced below")
        for name, content in items.items():
            vault.write(name, content)
        vault.write("gone", b"gone")
        vault.delete("gone")
    reader = DocumentReader(tmp_path / "vault", PASSPHRASE)
    assert {name: reader.read(name) for name in reader.items} == items
    assert reader.manifest["generation"] == 1 + len(items) + 3
    assert number(reader.items["item/1"][16:24]) == 2
    assert reader.record["cipher"] == cipher.value
    stored = {name: number(value[56:64]) for name, value in reader.items.items()}
    assert stored == {name: padded(padding, len(content)) for name, content in items.items()}
    assert all(abs(number(value[68:]) - time.time()) < 60 for value in reader.items.values())


@pytest.mark.parametrize("padding", ["none", "padme", "4096"])
def test_document_is_enough_to_read_what_was_changed_in_place(tmp_path, unlocker, padding):
    content = bytearray(os.urandom(100_000))
    with Vault.create(tmp_path / "vault", unlocker, padding=padding) as vault:
        vault.write("a", content)
        with vault.open_file("a", "r+") as stream:
            for offset in (0, 40_000, 90_000, 16_380):
                stream.seek(offset)
                stream.write(b"changed!")
                stream.flush()
                content[offset : offset + 8] = b"changed!"
            stream.truncate(50_000)
            stream.seek(70_000)
            stream.write(b"behind the end")
        content = content[:50_000] + bytes(20_000) + b"behind the end"
    reader = DocumentReader(tmp_path / "vault", PASSPHRASE)
    assert number(reader.items["a"][24:32]) >= 5  # it was changed in place, not written anew
    assert reader.read("a") == content


def test_document_is_enough_to_read_records_and_application_keys(tmp_path, unlocker):
    model = {f"{at:05}".encode(): os.urandom(at % 300) for at in range(400)}
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        table = vault.records("sessions")
        with table.transaction() as change:
            for key, value in model.items():
                change[key] = value
        with vault.application_key("database") as key:
            database = bytes(key.view())
        vault.table.merge()  # so that a snapshot of many blocks is read, then a journal over it
        table["00007"] = b"newer"
        with table.transaction() as change:
            change["new"] = b"new"
            del change["new"]
        vault.write("a", b"item")
        with vault.application_key("disk") as key:
            disk = bytes(key.view())
    model[b"00007"] = b"newer"
    reader = DocumentReader(tmp_path / "vault", PASSPHRASE)
    assert reader.records == {(b"sessions", key): value for key, value in model.items()}
    assert reader.application_keys == {b"database": database, b"disk": disk}
    assert reader.read("a") == b"item"


def test_document_is_enough_to_read_a_vault_that_counts(tmp_path, unlocker, key_store):
    """Anchored: the journal's last anchor and the manifest's agree with the counter the document names."""
    with Vault.create(tmp_path / "vault", KeyStoreUnlocker(key_store, "vault"), label="key store") as vault:
        vault.add_unlocker(unlocker, label="paper")
        vault.write("a", b"1")
        vault.write("a", b"2")
    reader = DocumentReader(tmp_path / "vault", PASSPHRASE)
    assert [(slot["number"], slot["kind"], slot["label"]) for slot in reader.record["slots"]] == [
        (1, "keystore", "key store"),
        (2, "passphrase", "paper"),
    ]
    assert reader.record["anchor"] == 1
    assert reader.record["version"] == reader.manifest["record"] == 2
    assert key_store.counter_read(f"vault-{reader.id.hex()}") == reader.manifest["anchor"] == 3


@pytest.fixture
def key_store(tmp_path):
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    secret = folder / "device-secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(range(32)))
    store = SoftwareKeyStore.create(folder / "store", DeviceSecretUnlock(secret))
    store.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))
    return store


def test_document_is_enough_to_read_a_redo_file(tmp_path, unlocker, monkeypatch):
    """A change in place, caught between its transaction and its writing: what the redo file holds becomes the item."""
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        vault.write("a", bytes(50_000))
        monkeypatch.setattr(
            "tidegate.vault.engine.apply_redo", lambda folder, changes: shutil.copytree(folder, tmp_path / "copy")
        )
        stream = vault.open_file("a", "r+")
        stream.seek(20_000)
        stream.write(b"changed")
        stream.flush()
        monkeypatch.undo()
    copy = tmp_path / "copy"
    raw = (copy / "redo").read_bytes()
    magic, epoch, nonce, encrypted = split(raw, 8, 4, 12)
    assert magic == b"TGREDO02"
    record = cbor2.loads((copy / "vault.cbor").read_bytes())
    root_key = open_root_key(record["slots"][0], record["id"], open_seed(record["slots"][0], record["id"], PASSPHRASE))
    wrapping = derive(root_key, record["id"], b"tidegate.vault.v2 wrapping")
    aad = b"tidegate.vault.v2 key " + record["id"] + big(number(epoch), 8)
    vault_key = unseal(wrapping, record["keys"][number(epoch)], aad)
    redo_key = derive(vault_key, record["id"], b"tidegate.vault.v2 redo")
    ((name, slot, sequence, size, pieces),) = cbor2.loads(unseal(redo_key, nonce + encrypted, raw[:24]))
    path = copy / "items" / name
    assert (len(slot), sequence, size) == (4096, 1, path.stat().st_size)
    (offset, piece), *others = pieces
    assert (offset, len(piece), others) == (8192 + 16384 + 28, 16384 + 28, [])
    whole = bytearray(path.read_bytes())
    whole[:8192] = slot + slot
    whole[offset : offset + len(piece)] = piece
    path.write_bytes(whole)
    (copy / "redo").unlink()
    with Vault.open(copy, unlocker) as vault:  # nothing was left to recover: the bytes are what the vault would write
        assert vault.recovery.files == 0
        assert vault.read_range("a", 19_999, 9) == b"\0changed\0"
    assert DocumentReader(copy, PASSPHRASE).read("a")[20_000:20_007] == b"changed"
