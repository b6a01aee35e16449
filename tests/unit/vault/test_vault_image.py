"""A whole file system image, searched raw: journal, slack and freed blocks included."""

import contextlib
import os

import pytest

from tidegate.base.errors import Fault
from tidegate.crypto.aead import Secret
from tidegate.keys.software import Argon2Cost
from tidegate.testing.loopfs import mounted_ext4
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

RECORD = b"Jane Roe, born 1970-01-01, diagnosis Z21 / card 4111 1111 1111 1111 "
PASSPHRASE = b"correct horse battery staple"


def every_key(vault):
    """Yield the vault's keys, and the keys of its files."""
    yield vault.keyring.root
    for name in ("header", "manifest", "redo"):
        yield getattr(vault.keyring.keys[1], name)
    yield vault.table._journal_key
    yield vault.table._reader.file_key
    with vault.application_key("database") as key:
        yield key
    with vault.open_item("patients/jane-roe") as reader:
        yield reader.file_key


@pytest.mark.root
def test_image_holds_neither_content_nor_names_nor_keys(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount an image")
    with contextlib.ExitStack() as stack:
        try:
            place, image = stack.enter_context(mounted_ext4(tmp_path, options=["data=journal"]))
        except Fault as fault:
            pytest.skip(f"an ext4 image cannot be mounted here: {fault.message}")
        (place / "control").write_bytes(b"this is in the clear" * 100)
        unlocker = PassphraseUnlocker(Secret(PASSPHRASE), cost=Argon2Cost(memory_kib=64, iterations=1, lanes=1))
        with Vault.create(place / "vault", unlocker) as vault:
            for size in (10, 1000, 3000):
                vault.write("patients/jane-roe", RECORD * size)
            vault.write("patients/deleted", RECORD)
            vault.delete("patients/deleted")
            vault.records("visits")["jane-roe"] = RECORD
            vault.records("visits")["deleted"] = RECORD * 10
            del vault.records("visits")["deleted"]
            with vault.open_file("patients/jane-roe", "r+") as stream:
                stream.write(b"Jane Roe, born 1970-01-01, diagnosis Z22")
            keys = [bytes(key.view()) for key in every_key(vault)]
            vault.table.merge()
            assert vault.read("patients/jane-roe")[40:] == (RECORD * 3000)[40:]
    raw = image.read_bytes()
    assert raw.count(b"this is in the clear") >= 100
    pieces = [RECORD[start : start + 8] for start in range(len(RECORD) - 8)]
    found = [piece for piece in [*pieces, b"jane-roe", b"patients", PASSPHRASE, *keys] if piece in raw]
    assert found == []
