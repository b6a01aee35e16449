"""Authenticated encryption, key derivation and secrets that leave no copy behind on purpose.

Source: AES-256-GCM NIST SP 800-38D, ChaCha20-Poly1305 RFC 8439, HKDF RFC 5869, Argon2id RFC 9106.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import hmac
import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tidegate.crypto.errors import AeadFailed
from tidegate.crypto.heap import overwritten_heap

KEY_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16
_TRIAL_BYTES = 65_536
_TRIALS = 5


class AeadObject:
    """The library's cipher for one key. It keeps copies of the key until it is dropped, and clears what is left in the
    processor's registers then: keep it in a variable while it is used, and drop it soon.

    Its methods are the library's own, so that a call costs nothing more.
    """

    __slots__ = ("decrypt", "decrypt_into", "encrypt", "encrypt_into")

    def __init__(self, cipher: AESGCM | ChaCha20Poly1305) -> None:
        self.encrypt = cipher.encrypt
        self.encrypt_into = cipher.encrypt_into
        self.decrypt = cipher.decrypt
        self.decrypt_into = cipher.decrypt_into

    def __del__(self) -> None:
        clear_registers()


class AeadAlgorithm(enum.Enum):
    """The ciphers for bulk data; the number stands in files."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2

    def use(self, key: bytes | memoryview) -> AeadObject:
        """Return the cipher for ``key`` (32 bytes)."""
        _check_key(key)
        return AeadObject(AESGCM(key) if self is AeadAlgorithm.AES_256_GCM else ChaCha20Poly1305(key))


_IDLE = AESGCM(bytes(KEY_BYTES))  # not a key of anything
_SCRATCH = bytearray(4 * TAG_BYTES + TAG_BYTES)


def clear_registers() -> None:
    """Leave nothing of a key in the processor's vector registers, where AES and copying put it.

    From there the dynamic linker writes it to the stack when it resolves a function at its first call, and the kernel
    when a signal arrives. Zeros are encrypted under a key of zeros: a microsecond.
    """
    _IDLE.encrypt_into(bytes(NONCE_BYTES), bytes(4 * TAG_BYTES), b"", _SCRATCH)


def _resolve() -> None:
    """Have the linker look everything up that the ciphers call, while there is no key in any register yet."""
    for algorithm in AeadAlgorithm:
        sealed = bytearray(2 * TAG_BYTES)
        for text in (sealed, bytes(len(sealed))):
            cipher = algorithm.use(bytes(KEY_BYTES))
            cipher.encrypt_into(bytes(NONCE_BYTES), bytes(TAG_BYTES), b"", sealed)
            with contextlib.suppress(InvalidTag):
                cipher.decrypt_into(bytes(NONCE_BYTES), text, b"", bytearray(TAG_BYTES))


def fastest_aead() -> AeadAlgorithm:
    """Return the cipher that encrypts faster here, by measuring both for a few milliseconds.

    AES wins wherever the processor has instructions for it; without them ChaCha20 does, and keeps constant time.
    """
    data, target = bytes(_TRIAL_BYTES), bytearray(_TRIAL_BYTES + TAG_BYTES)
    best: dict[AeadAlgorithm, float] = {}
    for algorithm in AeadAlgorithm:
        cipher = algorithm.use(bytes(KEY_BYTES))  # not a key of anything
        for _ in range(_TRIALS):
            start = time.perf_counter()
            cipher.encrypt_into(bytes(NONCE_BYTES), data, b"", target)
            best[algorithm] = min(best.get(algorithm, 1.0), time.perf_counter() - start)
    return min(best, key=lambda algorithm: best[algorithm])


class Secret:
    """Bytes that do not print, compare or pickle, and are overwritten by ``wipe`` or at the end of a ``with``.

    Python and OpenSSL may still have made copies (docs/threat-model.md, "secrets in RAM").
    """

    __slots__ = ("_buffer",)

    def __init__(self, data: bytes | bytearray) -> None:
        self._buffer = bytearray(data)

    def view(self) -> memoryview:
        """Return the secret's own memory; it reads zeros after ``wipe``."""
        return memoryview(self._buffer)

    def wipe(self) -> None:
        """Overwrite the secret; harmless when repeated."""
        self._buffer[:] = bytes(len(self._buffer))

    def __len__(self) -> int:
        return len(self._buffer)

    def __repr__(self) -> str:
        return "<Secret>"

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are not compared; use an authenticated operation")

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __reduce__(self) -> NoReturn:
        raise TypeError("secrets are not pickled")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()


def seal_aes256gcm(key: bytes | memoryview, nonce: bytes, plaintext: bytes | memoryview, aad: bytes) -> bytes:
    """Return ciphertext and tag; ``key`` has 32 bytes, ``nonce`` 12 that this key never sees again."""
    _check_key(key)
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    try:
        return AESGCM(key).encrypt(nonce, plaintext, aad)
    finally:
        clear_registers()


def open_aes256gcm(key: bytes | memoryview, nonce: bytes, ciphertext: bytes | memoryview, aad: bytes) -> bytes:
    """Return the plaintext, or raise ``crypto.aead.failed`` if key, nonce, ciphertext or ``aad`` is another one."""
    _check_key(key)
    if len(nonce) != NONCE_BYTES:
        raise AeadFailed("the nonce has the wrong length")
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, aad)
    except (InvalidTag, ValueError) as error:
        raise AeadFailed("the authentication tag does not hold") from error
    finally:
        clear_registers()


def hkdf_sha256(key: bytes | memoryview, *, salt: bytes, info: bytes, length: int) -> bytes:
    """Return ``length`` bytes derived from ``key`` for the purpose ``info``."""
    try:
        return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(key)
    finally:
        clear_registers()


def hkdf_sha256_into(key: bytes | memoryview, *, salt: bytes, info: bytes, target: memoryview) -> None:
    """Fill ``target`` (1 to 32 bytes) with bytes derived from ``key`` for the purpose ``info``; no copy of them stays.

    One block of RFC 5869 by hand: the library's own leaves it behind in freed memory.
    """
    extracted = hmac.digest(salt, key, "sha256")
    expanded = hmac.digest(extracted, info + b"\1", "sha256")
    if not 1 <= len(target) <= len(expanded):
        raise ValueError("one block is derived")
    target[:] = memoryview(expanded)[: len(target)]
    overwrite_bytes(extracted)
    overwrite_bytes(expanded)
    clear_registers()


def overwrite_bytes(data: bytes) -> None:
    """Overwrite ``bytes`` that held a secret and that nobody else holds. CPython's memory has them inline."""
    if sys.implementation.name == "cpython" and len(data) > 1:  # shorter ones are shared by everybody
        ctypes.memset(id(data) + bytes.__basicsize__ - 1, 0, len(data))


def open_aes256gcm_into(
    key: bytes | memoryview, nonce: bytes, ciphertext: bytes | memoryview, aad: bytes, target: memoryview
) -> None:
    """Decrypt into ``target`` (16 bytes shorter than ``ciphertext``), or raise ``crypto.aead.failed``; ``target`` is
    then zeros."""
    _check_key(key)
    try:
        AESGCM(key).decrypt_into(nonce, ciphertext, aad, target)
    except (InvalidTag, ValueError) as error:
        target[:] = bytes(len(target))
        raise AeadFailed("the authentication tag does not hold") from error
    finally:
        clear_registers()


def argon2id(passphrase: bytes | memoryview, *, salt: bytes, iterations: int, lanes: int, memory_kib: int) -> bytes:
    """Return a 32-byte key from a passphrase; the caller bounds parameters that come from outside."""
    kdf = Argon2id(salt=salt, length=KEY_BYTES, iterations=iterations, lanes=lanes, memory_cost=memory_kib)
    try:
        with overwritten_heap():  # OpenSSL gets the passphrase in a block that is freed as it is
            return kdf.derive(passphrase)  # type: ignore[arg-type]  # it takes any buffer, the stubs do not know
    finally:
        clear_registers()


def _check_key(key: bytes | memoryview) -> None:
    """Refuse what the library would take for a key of AES-128 or AES-192: the caller's mistake, never the data's."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes")


_resolve()
