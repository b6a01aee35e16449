"""The suite of key providers on a SoftHSM token."""

import pytest

from tidegate.crypto.aead import Secret
from tidegate.keys.pkcs11_session import load_module
from tidegate.keys.uri import open_store
from tidegate.testing.keystores import KeyStoreConformance
from tidegate.testing.tokens import MODULE, SoftHsm

PIN = b"258036"


class TestPkcs11(KeyStoreConformance):
    @pytest.fixture(autouse=True)
    def token(self, tmp_path):
        with SoftHsm(tmp_path / "softhsm") as self.hsm:
            self.tokens, self.open = 0, []
            before = set(load_module(MODULE).logins)  # of other tests in this process
            yield
            for store in self.open:
                store.close()
            assert set(load_module(MODULE).logins) == before

    def make_store(self):
        self.tokens += 1
        self.hsm.make_token(f"token{self.tokens}")
        return self._kept(open_store(self.hsm.uri(f"token{self.tokens}")))

    def reopen(self, store):
        return self._kept(open_store(self.hsm.uri(f"token{self.tokens}")))

    def reopen_with_key_pin(self, store, pin):
        """A token's keys ask for the token's own PIN: that is what the suite's right one stands for."""
        answer = PIN if pin == b"first pin 1" else pin
        store = open_store(self.hsm.uri(f"token{self.tokens}"), ask=lambda what: Secret(answer))
        return self._kept(store)

    def _kept(self, store):
        self.open.append(store)
        return store
