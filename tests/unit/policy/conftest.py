"""An owner with two keys."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa

from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.crypto.trust import hybrid_trust


class MemorySigner:
    def __init__(self, key, algorithm) -> None:
        self._key = key
        self.public_key = PublicKey(algorithm, key.public_key().public_bytes_raw())

    def sign(self, message):
        return self._key.sign(message)


class Owner:
    def __init__(self) -> None:
        self.signers = (
            MemorySigner(ed25519.Ed25519PrivateKey.generate(), SignatureAlgorithm.ED25519),
            MemorySigner(mldsa.MLDSA65PrivateKey.generate(), SignatureAlgorithm.ML_DSA_65),
        )
        self.trust = hybrid_trust([signer.public_key for signer in self.signers])


@pytest.fixture(scope="session")
def owner():
    return Owner()


@pytest.fixture(scope="session")
def code_of():
    def code_of(call, *arguments, **named):
        with pytest.raises(TidegateError) as caught:
            call(*arguments, **named)
        return caught.value.code

    return code_of
