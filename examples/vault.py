"""Keep a record encrypted at rest, read it back, see tampering refused.

Run: python examples/vault.py
"""

import secrets
import tempfile
from pathlib import Path

from tidegate.base.errors import Rejected
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import KeyStoreUnlocker

with tempfile.TemporaryDirectory() as folder:
    base = Path(folder)
    (base / "device-secret").touch(mode=0o600)
    (base / "device-secret").write_bytes(secrets.token_bytes(32))
    store = SoftwareKeyStore.create(base / "keys", DeviceSecretUnlock(base / "device-secret"))
    store.generate("vault", KeySpec(purpose=KeyPurpose.SEAL))

    with Vault.create(base / "vault", KeyStoreUnlocker(store, "vault")) as vault:
        vault.write("patients/4711", b"blood group AB")
        print("read back:", vault.read("patients/4711").decode())

    (item,) = (base / "vault" / "items").iterdir()
    print("on the storage:", b"blood" in item.read_bytes())
    raw = bytearray(item.read_bytes())
    raw[-1] ^= 1
    item.write_bytes(raw)
    with Vault.open(base / "vault", KeyStoreUnlocker(store, "vault")) as vault:
        try:
            vault.read("patients/4711")
        except Rejected as error:
            print("refused:", error.code)
