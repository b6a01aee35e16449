"""Secrets leave no copy behind on purpose; AEAD refuses everything that is not exactly what was sealed."""

import copy
import pickle

import pytest

from tidegate.crypto.aead import Secret, argon2id, hkdf_sha256, open_aes256gcm, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed

KEY, NONCE, AAD = bytes(range(32)), bytes(12), b"which record this is"


def test_a_secret_does_not_show_itself():
    secret = Secret(b"correct horse")
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}", "%s" % secret):  # noqa: UP031
        assert "horse" not in text
    assert len(secret) == 13


def test_a_secret_is_not_compared_hashed_pickled_or_copied():
    secret = Secret(b"x")
    for operation in (
        lambda: secret == Secret(b"x"),
        lambda: secret != Secret(b"x"),
        lambda: secret == b"x",
        lambda: hash(secret),
        lambda: {secret: 1},
        lambda: pickle.dumps(secret),
        lambda: copy.copy(secret),
        lambda: copy.deepcopy([secret]),
        lambda: bytes(secret),
        lambda: vars(secret),
    ):
        with pytest.raises(TypeError):
            operation()


def test_wipe_reaches_every_view():
    data = bytearray(b"correct horse")
    with Secret(data) as secret:
        view = secret.view()
        assert bytes(view) == b"correct horse"
    assert not any(view)
    assert not any(secret.view())
    assert bytes(data) == b"correct horse", "the caller's own buffer is the caller's"
    secret.wipe()


def test_a_with_block_wipes_on_errors_too():
    secret = Secret(b"correct horse")
    with pytest.raises(KeyError), secret:
        raise KeyError
    assert not any(secret.view())


def test_aead_round_trip():
    sealed = seal_aes256gcm(KEY, NONCE, b"plain", AAD)
    assert open_aes256gcm(memoryview(KEY), NONCE, memoryview(sealed), AAD) == b"plain"


def test_every_other_bit_is_refused():
    sealed = seal_aes256gcm(KEY, NONCE, b"plain", AAD)
    parts = [KEY, NONCE, sealed, AAD]
    for which, part in enumerate(parts):
        for bit in range(8 * len(part)):
            altered = bytearray(part)
            altered[bit // 8] ^= 1 << bit % 8
            with pytest.raises(AeadFailed):
                open_aes256gcm(*(bytes(altered) if at == which else parts[at] for at in range(4)))


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 20])
def test_cut_ciphertext(cut):
    with pytest.raises(AeadFailed):
        open_aes256gcm(KEY, NONCE, seal_aes256gcm(KEY, NONCE, b"plain", AAD)[:cut], AAD)


@pytest.mark.parametrize("nonce", [b"", bytes(8), bytes(11), bytes(13), bytes(16)])
def test_nonces_of_another_length(nonce):
    """GCM hashes a nonce of another length into one of 96 bits, where two may meet."""
    with pytest.raises(ValueError, match="nonce"):
        seal_aes256gcm(KEY, nonce, b"plain", AAD)
    with pytest.raises(AeadFailed):
        open_aes256gcm(KEY, nonce, bytes(32), AAD)


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33, 64])
def test_a_key_of_another_length_is_never_a_weaker_cipher(size):
    with pytest.raises(ValueError, match="key"):
        seal_aes256gcm(bytes(size), NONCE, b"plain", AAD)
    with pytest.raises(ValueError, match="key"):
        open_aes256gcm(bytes(size), NONCE, bytes(32), AAD)


def test_hkdf_separates_purposes():
    first = hkdf_sha256(KEY, salt=b"salt", info=b"one", length=32)
    assert first != hkdf_sha256(KEY, salt=b"salt", info=b"two", length=32)
    assert first != hkdf_sha256(KEY, salt=b"tlas", info=b"one", length=32)
    assert first == hkdf_sha256(memoryview(KEY), salt=b"salt", info=b"one", length=32)


def test_argon2id_agrees_with_a_published_value():
    """argon2's own test.c: version 0x13, t=2, m=2^8 KiB, p=1, "password", "somesalt"."""
    key = argon2id(b"password", salt=b"somesalt", iterations=2, lanes=1, memory_kib=256)
    assert key.hex() == "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"
