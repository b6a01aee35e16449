"""One CA and one key of every kind for the whole run: making RSA keys takes longer than the tests."""

import pytest

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.testing.certificates import Authority, MemorySigner

ALGORITHMS = [
    SignatureAlgorithm.ECDSA_P256,
    SignatureAlgorithm.ECDSA_P384,
    SignatureAlgorithm.ED25519,
    SignatureAlgorithm.RSA_PSS,
]


class World:
    """A CA, and for each algorithm a key with its certificate for ``localhost``."""

    def __init__(self):
        self.ca = Authority()
        self.signers = {one: MemorySigner(one) for one in ALGORITHMS}
        self.certificates = {one: self.ca.issue(signer.public_key) for one, signer in self.signers.items()}

    def identity(self, algorithm=SignatureAlgorithm.ECDSA_P256):
        return self.signers[algorithm], [self.certificates[algorithm]]


@pytest.fixture(scope="session")
def world():
    return World()
