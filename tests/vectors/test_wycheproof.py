"""C2SP's Wycheproof vectors against the algorithms that we wrap. A disagreement is a failure, and so is a vector that
nobody looked at: every one that is not judged counts under a reason that stands here.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import utils

from tidegate.base.errors import TidegateError
from tidegate.crypto.aead import hkdf_sha256, open_aes256gcm, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed, SignatureInvalid
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, parse_public_key

_DEFAULT = Path(__file__).resolve().parents[2].parent / "shared" / "corpora"
CORPORA = Path(os.environ.get("TIDEGATE_CORPORA", _DEFAULT))
VECTORS = CORPORA / "vectors" / "wycheproof"

pytestmark = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="no Wycheproof vectors here (TIDEGATE_CORPORA names the folder of corpora)"
)


class Tally:
    """Disagreements by vector, judged vectors, and the others by reason."""

    def __init__(self, name):
        self.document = json.loads((VECTORS / name).read_text())
        self.judged, self.set_aside, self.wrong = 0, Counter(), []

    def tests(self):
        for group in self.document["testGroups"]:
            for test in group["tests"]:
                yield group, test

    def judge(self, test, accepted):
        """Vectors called "acceptable" are those on which libraries may differ; there are none in these files."""
        assert test["result"] in {"valid", "invalid"}
        self.judged += 1
        if accepted != (test["result"] == "valid"):
            self.wrong.append((test["tcId"], test["result"], test.get("comment"), test.get("flags")))

    def close(self, **set_aside):
        """Check that nothing disagreed, and that exactly what is announced was set aside."""
        assert self.wrong == []
        assert dict(self.set_aside) == set_aside
        assert self.judged + sum(self.set_aside.values()) == self.document["numberOfTests"]


def holds(key, signature, message):
    """Verify as an envelope does: only an invalid signature may be the reason to refuse."""
    try:
        key.verify(signature, message)
    except SignatureInvalid:
        return False
    return True


def through_cose(algorithm, raw):
    """Bring a key in the way every key comes in: as a COSE_Key."""
    return parse_public_key(PublicKey(algorithm, raw).encode())


def test_ed25519():
    tally = Tally("ed25519_test.json")
    for group, test in tally.tests():
        key = through_cose(SignatureAlgorithm.ED25519, bytes.fromhex(group["publicKey"]["pk"]))
        tally.judge(test, holds(key, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])))
    tally.close()


def raw_signature(der, size):
    """Return r and s side by side, or None where ``der`` is not the one encoding of two numbers that fit.

    What such a vector tests has no place in a raw signature, which cannot carry the mistake.
    """
    try:
        r, s = utils.decode_dss_signature(der)
    except ValueError:
        return None
    if min(r, s) < 0 or max(r, s) >= 1 << (8 * size) or utils.encode_dss_signature(r, s) != der:
        return None
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


@pytest.mark.parametrize(
    ("name", "algorithm", "size"),
    [
        ("ecdsa_secp256r1_sha256_test.json", SignatureAlgorithm.ECDSA_P256, 32),
        ("ecdsa_secp384r1_sha384_test.json", SignatureAlgorithm.ECDSA_P384, 48),
    ],
)
def test_ecdsa(name, algorithm, size):
    """The files at hand write signatures in DER; ours are raw, so each is written anew where that is possible."""
    tally = Tally(name)
    for group, test in tally.tests():
        key = through_cose(algorithm, bytes.fromhex(group["publicKey"]["uncompressed"]))
        der, message = bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])
        assert not holds(key, der, message), "DER is never accepted in the place of a raw signature"
        raw = raw_signature(der, size)
        if raw is None:
            assert test["result"] == "invalid"
            tally.set_aside["no_raw_form"] += 1
            continue
        tally.judge(test, holds(key, raw, message))
    tally.close(no_raw_form=235)  # each of them is checked above: invalid, and refused as it stands


@pytest.mark.parametrize(
    "name", ["rsa_pss_3072_sha256_mgf1_32_test.json", "rsa_pss_3072_sha256_mgf1_32_params_test.json"]
)
def test_rsa_pss(name):
    """Keys come as modulus alone: the exponent is a constant with us, and it is that of the vectors."""
    tally = Tally(name)
    for group, test in tally.tests():
        assert group["publicKey"]["publicExponent"] == "010001"
        key = through_cose(SignatureAlgorithm.RSA_PSS, bytes.fromhex(group["publicKey"]["modulus"]).lstrip(b"\0"))
        tally.judge(test, holds(key, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])))
    tally.close()


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("mldsa_65_verify_test.json", SignatureAlgorithm.ML_DSA_65),
        ("mldsa_87_verify_test.json", SignatureAlgorithm.ML_DSA_87),
    ],
)
def test_ml_dsa(name, algorithm):
    """FIPS 204's own context stays empty with us (the role is in the signed bytes): vectors with one are set aside."""
    tally = Tally(name)
    for group, test in tally.tests():
        if test.get("ctx"):
            tally.set_aside["context"] += 1
            continue
        try:
            key = through_cose(algorithm, bytes.fromhex(group["publicKey"]))
        except TidegateError as error:
            assert error.code == "crypto.key.malformed"
            tally.judge(test, accepted=False)
            continue
        tally.judge(test, holds(key, bytes.fromhex(test["sig"]), bytes.fromhex(test["msg"])))
    tally.close(context=7)


def test_aes_gcm():
    """AES-256 with nonces of 96 bits is judged; everything else must be refused as such."""
    tally = Tally("aes_gcm_test.json")
    for _, test in tally.tests():
        key, nonce, aad, message, ciphertext, tag = (
            bytes.fromhex(test[part]) for part in ("key", "iv", "aad", "msg", "ct", "tag")
        )
        if len(key) != 32:
            tally.set_aside["key_size"] += 1
            with pytest.raises(ValueError, match="key"):
                open_aes256gcm(key, nonce, ciphertext + tag, aad)
            continue
        if len(nonce) != 12:
            tally.set_aside["nonce_size"] += 1
            with pytest.raises(AeadFailed):
                open_aes256gcm(key, nonce, ciphertext + tag, aad)
            continue
        try:
            opened = open_aes256gcm(key, nonce, ciphertext + tag, aad)
        except AeadFailed:
            tally.judge(test, accepted=False)
            continue
        assert opened == message
        assert seal_aes256gcm(key, nonce, message, aad) == ciphertext + tag
        tally.judge(test, accepted=True)
    tally.close(key_size=tally.set_aside["key_size"], nonce_size=tally.set_aside["nonce_size"])
    assert tally.judged == 66


def test_hkdf_sha256():
    tally = Tally("hkdf_sha256_test.json")
    for _, test in tally.tests():
        key, salt, info = (bytes.fromhex(test[part]) for part in ("ikm", "salt", "info"))
        try:
            derived = hkdf_sha256(key, salt=salt, info=info, length=test["size"])
        except ValueError:  # more than 255 hashes: the caller's mistake, our lengths are constants
            tally.judge(test, accepted=False)
            continue
        tally.judge(test, accepted=derived.hex() == test["okm"])
    tally.close()
