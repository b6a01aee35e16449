"""Stores in folders as a device has them."""

import pytest

from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, PassphraseUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec
from tidegate.testing.tokens import MODULE, SoftHsm

CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


class Bench:
    """A folder with a device secret and a store that opens with it."""

    def __init__(self, root) -> None:
        self.root = root
        self.folder = root / "store"
        self.secret = root / "secret"
        self.secret.write_bytes(bytes(range(32)))
        self.secret.chmod(0o600)
        self.store = SoftwareKeyStore.create(self.folder, self.unlock())

    def unlock(self):
        return DeviceSecretUnlock(self.secret)

    def reopen(self):
        return SoftwareKeyStore(self.folder, self.unlock())

    def rewrite(self, name, raw):
        """Write a file of the store as somebody with the storage in hand would."""
        path = self.folder / name
        path.write_bytes(raw)
        path.chmod(0o600)

    @staticmethod
    def signing(label="ed25519"):
        algorithm = next(member for member in SignatureAlgorithm if member.label == label)
        return KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm)

    @staticmethod
    def sealing():
        return KeySpec(purpose=KeyPurpose.SEAL)

    @staticmethod
    def passphrase(text=b"correct horse", cost=CHEAP):
        return PassphraseUnlock(Secret(text), cost)


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


@pytest.fixture
def hsm(tmp_path):
    with SoftHsm(tmp_path / "softhsm") as helper:
        helper.make_token("one")
        yield helper
        from tidegate.keys.pkcs11_session import load_module

        for login in list(load_module(MODULE).logins.values()):
            login._users = 1
            login.leave()


@pytest.fixture
def store(hsm):
    """A store on the token; other providers' tests have their own."""
    from tidegate.keys.uri import open_store

    opened = open_store(hsm.uri("one"))
    yield opened
    opened.close()
