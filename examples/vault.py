"""Keep a record at rest, change it in place, keep small things beside it, see tampering refused.

Run: python examples/vault.py
"""

import tempfile
from pathlib import Path

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

unlocker = PassphraseUnlocker(Secret(b"correct horse battery staple"))  # on a device: KeyStoreUnlocker

with tempfile.TemporaryDirectory() as base:
    folder = Path(base) / "vault"
    with Vault.create(folder, unlocker) as vault:
        vault.write("patients/4711", b"blood group AB")
        with vault.open_file("patients/4711", "a") as item:
            item.write(b", penicillin allergy")
        print("read back:", vault.read("patients/4711").decode())
        with vault.records("sessions").transaction() as change:  # both or none, whenever the power goes
            change["17"] = b"jane"
            change["18"] = b"john"

    (path,) = (folder / "items").iterdir()
    raw = bytearray(path.read_bytes())
    print("on the storage:", b"blood" in raw)
    raw[-1] ^= 1
    path.write_bytes(raw)
    with Vault.open(folder, unlocker) as vault:
        try:
            vault.read("patients/4711")
        except Rejected as error:
            print("refused:", error.code)
