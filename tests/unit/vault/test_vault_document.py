"""A second reader, written from docs/formats/vault.md alone: it shares no code with the vault, and no constant.

If this file and the vault disagree, one of them contradicts the document.
"""

import hashlib
import hmac
import io
import os

import cbor2
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

PASSPHRASE = b"correct horse battery staple"


def number(raw):
    return int.from_bytes(raw, "big")


def open_vault_key(record):
    (slot,) = record["slots"]
    assert slot["kind"] == "passphrase"
    kdf = Argon2id(
        salt=slot["salt"],
        length=32,
        iterations=slot["iterations"],
        lanes=slot["lanes"],
        memory_cost=slot["memory"],
    )
    context = b"tidegate.vault.v1 " + record["id"]
    four = {name: slot[name] for name in ("salt", "memory", "iterations", "lanes")}
    sealed = slot["sealed"]
    associated = cbor2.dumps([context, four], canonical=True)
    return AESGCM(kdf.derive(PASSPHRASE)).decrypt(sealed[:12], sealed[12:], associated)


def derive(vault_key, vault_id, purpose):
    info = b"tidegate.vault.v1 " + purpose
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=vault_id, info=info).derive(vault_key)


def read_vault(folder):
    """Return every item of the vault, by name."""
    record = cbor2.load(io.BytesIO((folder / "vault.cbor").read_bytes()))
    assert record["format"] == "tidegate.vault.v1"
    vault_key = open_vault_key(record)
    keys = {p: derive(vault_key, record["id"], p) for p in (b"wrapping", b"header", b"manifest", b"name")}
    manifest = (folder / "manifest").read_bytes()
    assert manifest[:8] == b"TGVMANI1"
    assert manifest[8:24] == record["id"]
    listing = cbor2.loads(AESGCM(keys[b"manifest"]).decrypt(manifest[32:44], manifest[44:], manifest[:44]))
    return number(manifest[24:32]), {name: read_item(folder, keys, name, *item) for name, item in listing.items()}


def read_item(folder, keys, name, file_id, generation, sequence, length, mac):
    raw = (folder / "items" / f"{file_id.hex()}.{generation}").read_bytes()
    slot = raw[4096 * (sequence % 2) :][:4096]
    path_hash = hmac.digest(keys[b"name"], name.encode(), hashlib.sha256)
    for one in (raw[:4096], raw[4096:8192]):
        assert hmac.digest(keys[b"header"], one[:4064], hashlib.sha256) == one[4064:]
    assert slot[4064:] == mac
    assert slot[:16] == b"TGVAULT1" + bytes([0, 1, 1, 14, 0, 0, 0, 0])
    assert slot[16:32] == file_id
    assert [number(slot[at : at + 8]) for at in (32, 40, 48)] == [generation, sequence, length]
    assert slot[56:88] == path_hash
    assert not any(slot[148:4064])
    file_key = AESGCM(keys[b"wrapping"]).decrypt(slot[88:100], slot[100:148], slot[:88])
    chunks = max(1, -(-length // 16384))
    content, at = b"", 8192
    for index in range(chunks):
        size = min(16384, length - index * 16384) + 28
        chunk = raw[at : at + size]
        last = bytes([index == chunks - 1])
        associated = file_id + index.to_bytes(8, "big") + last + path_hash
        assert len(associated) == 57
        content += AESGCM(file_key).decrypt(chunk[:12], chunk[12:], associated)
        at += size
    assert at == len(raw)
    return content


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 100_000])
def test_document_is_enough_to_read_a_vault(tmp_path, size):
    items = {"a": os.urandom(size), "folder/Größe": b"small"}
    unlocker = PassphraseUnlocker(Secret(PASSPHRASE), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
    with Vault.create(tmp_path / "vault", unlocker) as vault:
        vault.write("a", b"replaced below")
        for name, content in items.items():
            vault.write(name, content)
    assert read_vault(tmp_path / "vault") == (4, items)
