"""Private keys in memory, and a forge that writes envelopes which ``sign_envelope`` would never write."""

from dataclasses import dataclass

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, padding, rsa, utils

from tidegate.crypto import cbor
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm

_EC = {
    SignatureAlgorithm.ECDSA_P256: (ec.SECP256R1(), hashes.SHA256(), 32),
    SignatureAlgorithm.ECDSA_P384: (ec.SECP384R1(), hashes.SHA384(), 48),
}


class MemorySigner:
    """A signer that needs no store."""

    def __init__(self, algorithm: SignatureAlgorithm) -> None:
        self.algorithm = algorithm
        if algorithm in _EC:
            curve, self._digest, self._size = _EC[algorithm]
            self._key = ec.generate_private_key(curve)
            point = self._key.public_key().public_numbers()
            raw = b"\x04" + point.x.to_bytes(self._size, "big") + point.y.to_bytes(self._size, "big")
        elif algorithm is SignatureAlgorithm.RSA_PSS:
            self._key = rsa.generate_private_key(65537, 3072)
            raw = self._key.public_key().public_numbers().n.to_bytes(384, "big")
        else:
            makers = {
                SignatureAlgorithm.ED25519: ed25519.Ed25519PrivateKey,
                SignatureAlgorithm.ML_DSA_65: mldsa.MLDSA65PrivateKey,
                SignatureAlgorithm.ML_DSA_87: mldsa.MLDSA87PrivateKey,
            }
            self._key = makers[algorithm].generate()
            raw = self._key.public_key().public_bytes_raw()
        self.public_key = PublicKey(algorithm, raw)

    def sign(self, message: bytes) -> bytes:
        if self.algorithm is SignatureAlgorithm.RSA_PSS:
            salted = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
            return self._key.sign(message, salted, hashes.SHA256())
        if self.algorithm not in _EC:
            return self._key.sign(message)
        r, s = utils.decode_dss_signature(self._key.sign(message, ec.ECDSA(self._digest)))
        return r.to_bytes(self._size, "big") + s.to_bytes(self._size, "big")


@dataclass(frozen=True)
class Forge:
    """Writes any envelope, signed truthfully over whatever it says."""

    context: str = "tidegate.test.v1"

    def entry(self, signer, payload, *, body=None, header=None, unprotected=None, context=b"Signature"):
        """Return one COSE_Signature by ``signer``; everything in it can be replaced."""
        key = signer.public_key
        protected = cbor.encode({1: int(key.algorithm), 4: key.key_id.digest} if header is None else header)
        body = self.body() if body is None else body
        message = cbor.encode([context.decode(), body, protected, b"", payload])
        return [protected, {} if unprotected is None else unprotected, signer.sign(message)]

    def body(self, context=None):
        return cbor.encode({16: context or self.context})

    def envelope(self, entries, payload, *, body=None, unprotected=None, tag=98):
        body = self.body() if body is None else body
        value = [body, {} if unprotected is None else unprotected, payload, entries]
        return cbor.encode(value if tag is None else cbor.Tagged(tag=tag, value=value))


@pytest.fixture(scope="session")
def make_signer():
    return lambda label="ed25519": MemorySigner(
        next(algorithm for algorithm in SignatureAlgorithm if algorithm.label == label)
    )


@pytest.fixture(scope="session")
def classical(make_signer):
    return make_signer("ed25519")


@pytest.fixture(scope="session")
def post_quantum(make_signer):
    return make_signer("ml-dsa-65")


@pytest.fixture(scope="session")
def forge():
    return Forge()
