"""The suite of key providers on a TPM in software."""

import hashlib

import pytest

from tidegate.crypto.aead import Secret
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.testing.keystores import KeyStoreConformance
from tidegate.testing.swtpm import SwTpm


class TestTpm2(KeyStoreConformance):
    @pytest.fixture(autouse=True)
    def tpm(self, tmp_path):
        with SwTpm(tmp_path / "tpm") as self.chip:
            self.root, self.stores = tmp_path, 0
            yield

    def make_store(self):
        self.stores += 1
        return self._open(create=True)

    def reopen(self, store):
        return self._open()

    def reopen_with_key_pin(self, store, pin):
        return self._open(ask=lambda what: Secret(pin))

    def extend_pcr(self, pcr):
        self._open().extend(pcr, hashlib.sha256(b"another system").digest())

    def _open(self, **how):
        return open_store(parse_key_uri(f"tpm2:{self.root}/store{self.stores}?tcti={self.chip.tcti}"), **how)
