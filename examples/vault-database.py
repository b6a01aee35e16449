"""Keep an SQLite database encrypted under a key of the vault.

Run: python examples/vault-database.py   (needs the extra: pip install 'tidegate[sqlite]')
"""

import tempfile
from pathlib import Path

from tidegate.base.errors import Rejected
from tidegate.crypto.aead import Secret
from tidegate.vault.sqlite import open_database
from tidegate.vault.store import Vault
from tidegate.vault.unlockers import PassphraseUnlocker

with tempfile.TemporaryDirectory() as folder:
    base = Path(folder)
    with Vault.create(base / "vault", PassphraseUnlocker(Secret(b"correct horse battery staple"))) as vault:
        database = open_database(vault, base / "patients.db")
        database.execute("CREATE TABLE patients (name TEXT, blood TEXT)")
        database.execute("INSERT INTO patients VALUES ('Jane Roe', 'AB')")
        database.commit()
        print("read back:", database.execute("SELECT name, blood FROM patients").fetchone())
        database.close()
        print("on the storage:", b"Jane" in (base / "patients.db").read_bytes())

        vault.destroy_application_key("database/patients.db")  # nobody reads the database any more
        try:
            open_database(vault, base / "patients.db")
        except Rejected as error:
            print("refused:", error.code)
