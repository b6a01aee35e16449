"""The software provider under the conformance suite, and the suite under providers that do not conform."""

import pytest

from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.software import Argon2Cost, DeviceSecretUnlock, SoftwareKeyStore
from tidegate.testing.keystores import KeyStoreConformance, run_conformance

CHEAP = Argon2Cost(memory_kib=64, iterations=1, lanes=1)


class SoftwareSuite(KeyStoreConformance):
    def __init__(self, root=None) -> None:
        if root is not None:
            self.prepare(root)

    def prepare(self, root):
        self.root = root
        self.secret = root / "secret"
        self.secret.write_bytes(bytes(range(32)))
        self.secret.chmod(0o600)

    def make_store(self):
        return SoftwareKeyStore.create(self.root / "store", DeviceSecretUnlock(self.secret))

    def reopen(self, store):
        return SoftwareKeyStore(self.root / "store", DeviceSecretUnlock(self.secret))

    def reopen_with_key_pin(self, store, pin):
        unlock = DeviceSecretUnlock(self.secret)
        return SoftwareKeyStore(self.root / "store", unlock, key_pin=lambda what: Secret(pin), pin_cost=CHEAP)


class TestSoftware(SoftwareSuite):
    __init__ = object.__init__

    @pytest.fixture(autouse=True)
    def _prepare(self, tmp_path):
        self.prepare(tmp_path)


class Broken(SoftwareKeyStore):
    """Each flaw is one that a real provider had."""

    flaw = ""

    def counter_increment(self, name):
        value = super().counter_increment(name)
        return min(value, 2) if self.flaw == "counter sticks" else value

    def unseal(self, name, sealed, context):
        if self.flaw == "context ignored":
            context = b"context"
        return super().unseal(name, sealed, context)

    def seal(self, name, secret, context):
        return super().seal(name, secret, b"context" if self.flaw == "context ignored" else context)

    def random(self, count):
        return bytes(count) if self.flaw == "zeros for random" else super().random(count)

    def destroy(self, name):
        if self.flaw != "destroy does nothing":
            super().destroy(name)

    def close(self):
        if self.flaw != "close does nothing":
            super().close()

    def public_key(self, name):
        if self.flaw == "uncoded":
            raise KeyError(name)
        return super().public_key(name)

    def capabilities(self):
        told = super().capabilities()
        if self.flaw == "algorithm denied":
            object.__setattr__(told, "algorithms", told.algorithms - {SignatureAlgorithm.ED25519})
        if self.flaw == "binds to nothing":
            object.__setattr__(told, "can_bind_pcrs", True)
        return told

    def generate(self, name, spec):
        if self.flaw == "algorithm denied":  # it says that it cannot, and does
            self.flaw = ""
            try:
                return super().generate(name, spec)
            finally:
                self.flaw = "algorithm denied"
        return super().generate(name, spec)


FLAWS = {
    "counter sticks": "counters only grow",
    "context ignored": "sealed bytes belong to key context and nothing else",
    "zeros for random": "random",
    "destroy does nothing": "a destroyed key is of no use",
    "close does nothing": "a closed store is of no use",
    "uncoded": "a key that is not there",
    "algorithm denied": "what it cannot do is refused before anything is made",
    "binds to nothing": "it says who it is",
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_the_suite_finds(tmp_path, flaw):
    class Suite(SoftwareSuite):
        turn = 0

        def make_store(self):
            self.turn += 1
            self.folder = self.root / f"store{self.turn}"
            SoftwareKeyStore.create(self.folder, DeviceSecretUnlock(self.secret))
            return self.reopen(None)

        def reopen(self, store):
            opened = Broken(self.folder, DeviceSecretUnlock(self.secret))
            opened.flaw = flaw
            return opened

        def test_every_algorithm_signs_and_survives(self):
            """Take no time for RSA here."""

        test_what_may_leave_leaves_as_pkcs8_and_nothing_else_does = test_every_algorithm_signs_and_survives
        test_threads = test_after_a_fork_both_go_on = test_every_algorithm_signs_and_survives

    outcomes = run_conformance(Suite(tmp_path), tell=lambda outcome: None)
    assert FLAWS[flaw] in [outcome.test for outcome in outcomes if outcome.verdict == "failed"]
