"""C2SP's Wycheproof vectors against the algorithms of the vault that ``test_wycheproof.py`` does not judge (AES-GCM and
HKDF are there): bulk cipher, key wrapping, and the key agreements below age. Each vector is judged, or counted under a
reason that stands here.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import keywrap
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from tidegate.crypto.aead import AeadAlgorithm

_DEFAULT = Path(__file__).resolve().parents[2].parent / "shared" / "corpora"
CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", _DEFAULT))
VECTORS = CORPORA / "vectors" / "wycheproof"

pytestmark = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="no Wycheproof vectors here (TIDEGATE_CORPORA names the folder of corpora)"
)


class Judge:
    """Runs over a file of vectors; ``close`` checks that none disagreed and none was forgotten."""

    def __init__(self, name):
        self.document = json.loads((VECTORS / name).read_text())
        self.accepted, self.refused, self.wrong, self.set_aside = 0, 0, [], Counter()

    def tests(self):
        for group in self.document["testGroups"]:
            for test in group["tests"]:
                yield group, test

    def judge(self, test, accepted):
        assert test["result"] in {"valid", "invalid"}
        self.accepted += accepted
        self.refused += not accepted
        if accepted != (test["result"] == "valid"):
            self.wrong.append((test["tcId"], test["result"], test.get("comment"), test.get("flags")))

    def close(self, accepted, refused, **set_aside):
        assert self.wrong == []
        assert (self.accepted, self.refused, self.set_aside) == (accepted, refused, Counter(set_aside))
        assert accepted + refused + sum(set_aside.values()) == self.document["numberOfTests"]


def unhex(test, *names):
    return [bytes.fromhex(test[name]) for name in names]


def test_chacha20_poly1305():
    """The vault's second bulk cipher, and age's only one; nonces that have not 12 bytes are refused."""
    judge = Judge("chacha20_poly1305_test.json")
    for _, test in judge.tests():
        key, nonce, aad, message, sealed, tag = unhex(test, "key", "iv", "aad", "msg", "ct", "tag")
        cipher = AeadAlgorithm.CHACHA20_POLY1305.use(key)
        opened = bytearray(len(message))
        try:
            cipher.decrypt_into(nonce, sealed + tag, aad, opened)
        except (InvalidTag, ValueError):
            judge.judge(test, accepted=False)
            continue
        assert opened == message
        assert cipher.encrypt(nonce, message, aad) == sealed + tag
        judge.judge(test, accepted=True)
    judge.close(accepted=256, refused=69)


@pytest.mark.parametrize(
    ("name", "wrap", "unwrap", "counts"),
    [
        ("aes_wrap_test.json", keywrap.aes_key_wrap, keywrap.aes_key_unwrap, (13, 54, 97, 1)),
        ("aes_kwp_test.json", keywrap.aes_key_wrap_with_padding, keywrap.aes_key_unwrap_with_padding, (25, 69, 160, 0)),
    ],
)
def test_key_wrap(name, wrap, unwrap, counts):
    """NIST SP 800-38F with keys of 256 bits, the only ones that we make."""
    judge = Judge(name)
    for group, test in judge.tests():
        if group["keySize"] != 256:
            judge.set_aside["key_size"] += 1
            continue
        key, message, sealed = unhex(test, "key", "msg", "ct")
        try:
            opened = unwrap(key, sealed)
        except (keywrap.InvalidUnwrap, ValueError):
            opened = None
        if test["result"] == "acceptable":  # a wrapped key of 8 bytes, which SP 800-38F does not have
            assert opened is None
            judge.set_aside["short_key"] += 1
            continue
        if opened is not None:
            assert opened == message
            assert wrap(key, message) == sealed
        judge.judge(test, accepted=opened is not None)
    accepted, refused, key_size, short_key = counts
    judge.close(accepted, refused, key_size=key_size, short_key=short_key)


def test_x25519():
    """Every agreement is the vector's; only those whose secret is zero are refused, as age wants it.

    "Acceptable" are points on the twist and not in canonical form, which RFC 7748 has every implementation take.
    """
    judge = Judge("x25519_test.json")
    for _, test in judge.tests():
        public, private, shared = unhex(test, "public", "private", "shared")
        told = test | {"result": "valid" if any(shared) else "invalid"}
        try:
            found = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            judge.judge(told, accepted=False)
            continue
        assert found == shared
        judge.judge(told, accepted=True)
    judge.close(accepted=487, refused=31)


def test_ml_kem_768_decapsulation():
    """From the seed, as hybrid identities are made; a ciphertext that was altered gives the secret of FIPS 203."""
    judge = Judge("mlkem_768_test.json")
    for _, test in judge.tests():
        seed, ciphertext = unhex(test, "seed", "c")
        try:
            key = MLKEM768PrivateKey.from_seed_bytes(seed)
            shared = key.decapsulate(ciphertext)
        except ValueError:
            judge.judge(test, accepted=False)
            continue
        assert key.public_key().public_bytes_raw().hex() == test["ek"]
        judge.judge(test, accepted=shared.hex() == test["K"])
    judge.close(accepted=153, refused=40)


def test_ml_kem_768_keys():
    """A seed gives the vector's public key."""
    judge = Judge("mlkem_768_keygen_seed_test.json")
    for _, test in judge.tests():
        public = MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(test["seed"])).public_key()
        judge.judge(test, accepted=public.public_bytes_raw().hex() == test["ek"])
    judge.close(accepted=100, refused=0)


def test_ml_kem_768_public_keys():
    """Keys that are none are refused. The library draws the randomness, so a valid key's ciphertext is its own."""
    judge = Judge("mlkem_768_encaps_test.json")
    for _, test in judge.tests():
        try:
            MLKEM768PublicKey.from_public_bytes(bytes.fromhex(test["ek"])).encapsulate()
        except ValueError:
            judge.judge(test, accepted=False)
            continue
        judge.judge(test, accepted=True)
    judge.close(accepted=133, refused=132)
