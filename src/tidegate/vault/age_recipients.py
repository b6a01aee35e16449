"""Who an age file is for: recipients wrap its file key, identities unwrap it.

Three pairs: X25519, the post-quantum hybrid MLKEM768-X25519, and a passphrase (scrypt). Source: C2SP age, "Native
recipient types"; Bech32 is BIP 173 without its limit of length.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from typing import Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from tidegate.base.clock import Entropy, SystemEntropy
from tidegate.crypto.aead import NONCE_BYTES, TAG_BYTES, Secret
from tidegate.vault.age_errors import (
    AgeKeyMalformed,
    AgeKeyUnsupported,
    AgeMemoryShort,
    AgeNoMatch,
    AgeRecipientsWrong,
    AgeSettingWrong,
    AgeStanzaMalformed,
    AgeWorkFactorTooHigh,
)
from tidegate.vault.age_format import (
    FILE_KEY_BYTES,
    MAX_STANZAS,
    Stanza,
    decode_base64,
    decode_bech32,
    encode_base64,
    encode_bech32,
)

MAX_WORK_FACTOR = 20  # 2^20 blocks of 1 KiB: 1 GiB and some seconds, which a stranger's file could ask for
DEFAULT_WORK_FACTOR = 18  # of the age command: 256 MiB
MAX_KEY_FILE_BYTES = 64 << 10  # 32 hybrid recipients or 800 identities

_WRAPPED_BYTES = FILE_KEY_BYTES + TAG_BYTES
_ZERO_NONCE = bytes(NONCE_BYTES)  # every wrapping key is used once
_POINT_BYTES = 32
_SEED_BYTES = 32
_SALT_BYTES = 16
_MLKEM_PUBLIC_BYTES = 1184
_MLKEM_SEED_BYTES = 64
_ENCAPSULATION_BYTES = 1088 + _POINT_BYTES
_X25519_INFO = b"age-encryption.org/v1/X25519"
_SCRYPT_LABEL = b"age-encryption.org/v1/scrypt"
_HYBRID_INFO = b"age-encryption.org/mlkem768x25519"
_HYBRID_SUITE = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)


class Company(enum.Enum):
    """Which recipients may stand beside one another in a file."""

    CLASSICAL = "classical"
    POST_QUANTUM = "post-quantum"
    ALONE = "alone"


class Recipient(Protocol):
    """Whoever a file is encrypted for."""

    @property
    def company(self) -> Company:
        """Say with which others this recipient may share a file."""
        ...

    def wrap(self, file_key: Secret) -> list[Stanza]:
        """Return stanzas that give the file key to this recipient alone."""
        ...


class Identity(Protocol):
    """Whoever can open a file."""

    def unwrap(self, stanzas: Sequence[Stanza]) -> Secret | None:
        """Return the file key, or None if no stanza is for this identity; raise ``Rejected`` for a malformed one."""
        ...


def wrap_file_key(file_key: Secret, recipients: Sequence[Recipient]) -> list[Stanza]:
    """Return every recipient's stanzas, or raise ``vault.age.recipients`` where they may not share a file.

    A classical recipient beside a post-quantum one would leave the file open to whoever has a quantum computer; a
    passphrase beside anything would no longer say that its owner made the file.
    """
    companies = {recipient.company for recipient in recipients}
    if len(companies) != 1 or (Company.ALONE in companies and len(recipients) > 1):
        raise AgeRecipientsWrong(
            "recipients that may not share a file: "
            + (", ".join(sorted(c.value for c in companies)) or "there are none")
        )
    if len(recipients) > MAX_STANZAS:
        raise AgeRecipientsWrong(f"a file has at most {MAX_STANZAS} recipients")
    return [stanza for recipient in recipients for stanza in recipient.wrap(file_key)]


def unwrap_file_key(stanzas: Sequence[Stanza], identities: Sequence[Identity]) -> Secret:
    """Return the file key that the first fitting identity finds; ``vault.age.no-match``, ``.stanza`` and others."""
    for identity in identities:
        file_key = identity.unwrap(stanzas)
        if file_key is not None:
            return file_key
    raise AgeNoMatch("no stanza of the file is for one of the identities")


class _SeedIdentity:
    """A private key that is made from 32 random bytes."""

    __slots__ = ("_seed",)

    def __init__(self, seed: Secret) -> None:
        """``seed`` has 32 bytes and belongs to the identity from here on."""
        if len(seed) != _SEED_BYTES:
            raise AgeKeyMalformed(f"an identity has not {_SEED_BYTES} bytes")
        if not any(seed.view()):
            raise AgeKeyMalformed("an identity of zeros is everybody's")
        self._seed = seed

    @classmethod
    def generate(cls, *, entropy: Entropy | None = None) -> Self:
        """Return a new private key."""
        return cls(Secret((entropy or SystemEntropy()).random_bytes(_SEED_BYTES)))

    def wipe(self) -> None:
        """Overwrite the private key."""
        self._seed.wipe()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class X25519Recipient:
    """A public key, ``age1…``."""

    __slots__ = ("_entropy", "_point")
    company = Company.CLASSICAL

    def __init__(self, point: bytes, *, entropy: Entropy | None = None) -> None:
        """``point`` has 32 bytes; raises ``vault.age.key`` if it is none or of low order."""
        _check_point(point)
        self._point = point
        self._entropy = entropy or SystemEntropy()

    def encode(self) -> str:
        """Return the recipient as people exchange it."""
        return encode_bech32(b"age", self._point).decode("ascii")

    def wrap(self, file_key: Secret) -> list[Stanza]:
        with Secret(self._entropy.random_bytes(_SEED_BYTES)) as seed:
            ephemeral = X25519PrivateKey.from_private_bytes(seed.view())
        share = ephemeral.public_key().public_bytes_raw()
        with _x25519_wrapping_key(ephemeral, self._point, share + self._point) as key:
            body = _seal(key, file_key)
        return [Stanza(kind="X25519", arguments=(_to_text(share),), body=body)]

    def __repr__(self) -> str:
        return f"<X25519Recipient {self.encode()}>"


class X25519Identity(_SeedIdentity):
    """A private key, ``AGE-SECRET-KEY-1…``; ``wipe`` ends its use."""

    __slots__ = ()

    def encode(self) -> Secret:
        """Return the identity as it stands in an identity file."""
        return _encode_identity(b"age-secret-key-", self._seed)

    def recipient(self) -> X25519Recipient:
        """Return the public half."""
        return X25519Recipient(self._key().public_key().public_bytes_raw())

    def unwrap(self, stanzas: Sequence[Stanza]) -> Secret | None:
        key = self._key()
        point = key.public_key().public_bytes_raw()
        for stanza in stanzas:
            if stanza.kind != "X25519":
                continue
            (share,) = _parse_arguments(stanza, 1)
            share_bytes = _parse_bytes(share, _POINT_BYTES)
            _check_body(stanza)
            with _x25519_wrapping_key(key, share_bytes, share_bytes + point) as wrapping_key:
                file_key = _open(wrapping_key, stanza.body)
            if file_key is not None:
                return file_key
        return None

    def _key(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(_unwiped(self._seed))


class HybridRecipient:
    """A public key that a quantum computer does not open, ``age1pq1…``: ML-KEM-768 and X25519, both to be broken."""

    __slots__ = ("_point",)
    company = Company.POST_QUANTUM

    def __init__(self, point: bytes) -> None:
        """``point`` has 1216 bytes, ML-KEM-768's key and X25519's; raises ``vault.age.key`` if either is none."""
        if len(point) != _MLKEM_PUBLIC_BYTES + _POINT_BYTES:
            raise AgeKeyMalformed("a hybrid recipient has the wrong length")
        _check_point(point[_MLKEM_PUBLIC_BYTES:])
        self._point = point
        self._key()

    def encode(self) -> str:
        """Return the recipient as people exchange it."""
        return encode_bech32(b"age1pq", self._point).decode("ascii")

    def wrap(self, file_key: Secret) -> list[Stanza]:
        # the library draws the encapsulation's randomness itself: there is no Entropy to pass
        sealed = _HYBRID_SUITE.encrypt(file_key.view(), self._key(), info=_HYBRID_INFO)
        encapsulation, body = sealed[:_ENCAPSULATION_BYTES], sealed[_ENCAPSULATION_BYTES:]
        return [Stanza(kind="mlkem768x25519", arguments=(_to_text(encapsulation),), body=body)]

    def _key(self) -> hpke.MLKEM768X25519PublicKey:
        try:
            lattice = MLKEM768PublicKey.from_public_bytes(self._point[:_MLKEM_PUBLIC_BYTES])
        except ValueError as error:
            raise AgeKeyMalformed("the hybrid recipient holds no ML-KEM-768 key") from error
        curve = X25519PublicKey.from_public_bytes(self._point[_MLKEM_PUBLIC_BYTES:])
        return hpke.MLKEM768X25519PublicKey(lattice, curve)

    def __repr__(self) -> str:
        return f"<HybridRecipient {self.encode()[:24]}…>"


class HybridIdentity(_SeedIdentity):
    """A private key for hybrid recipients, ``AGE-SECRET-KEY-PQ-1…``; ``wipe`` ends its use."""

    __slots__ = ()

    def encode(self) -> Secret:
        """Return the identity as it stands in an identity file."""
        return _encode_identity(b"age-secret-key-pq-", self._seed)

    def recipient(self) -> HybridRecipient:
        """Return the public half."""
        lattice, curve = self._keys()
        return HybridRecipient(lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw())

    def unwrap(self, stanzas: Sequence[Stanza]) -> Secret | None:
        lattice, curve = self._keys()
        key = hpke.MLKEM768X25519PrivateKey(lattice, curve)
        for stanza in stanzas:
            if stanza.kind != "mlkem768x25519":
                continue
            (text,) = _parse_arguments(stanza, 1)
            encapsulation = _parse_bytes(text, _ENCAPSULATION_BYTES)
            _check_body(stanza)
            # HPKE would go on with a shared secret of zeros, which tells nobody's secret key apart
            _exchange(curve, encapsulation[-_POINT_BYTES:]).wipe()
            try:
                return Secret(_HYBRID_SUITE.decrypt(encapsulation + stanza.body, key, info=_HYBRID_INFO))
            except InvalidTag:
                continue
        return None

    def _keys(self) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
        with Secret(hashlib.shake_256(_unwiped(self._seed)).digest(_MLKEM_SEED_BYTES + _SEED_BYTES)) as expanded:
            lattice = MLKEM768PrivateKey.from_seed_bytes(expanded.view()[:_MLKEM_SEED_BYTES])
            return lattice, X25519PrivateKey.from_private_bytes(expanded.view()[_MLKEM_SEED_BYTES:])


class ScryptRecipient:
    """Everybody who knows the passphrase; no other recipient may stand beside it."""

    __slots__ = ("_entropy", "_passphrase", "_work_factor")
    company = Company.ALONE

    def __init__(
        self, passphrase: Secret, *, work_factor: int = DEFAULT_WORK_FACTOR, entropy: Entropy | None = None
    ) -> None:
        """``work_factor`` is the power of two of scrypt's N, 1 to 20: 2^N KiB here and at the reader's."""
        _check_passphrase(passphrase, work_factor, MAX_WORK_FACTOR)
        self._passphrase = passphrase
        self._work_factor = work_factor
        self._entropy = entropy or SystemEntropy()

    def wrap(self, file_key: Secret) -> list[Stanza]:
        salt = self._entropy.random_bytes(_SALT_BYTES)
        with _scrypt_wrapping_key(self._passphrase, salt, self._work_factor) as key:
            body = _seal(key, file_key)
        return [Stanza(kind="scrypt", arguments=(_to_text(salt), str(self._work_factor)), body=body)]

    def __repr__(self) -> str:
        return "<ScryptRecipient>"


class ScryptIdentity:
    """Somebody who knows the passphrase, and how much memory and time a file may cost."""

    __slots__ = ("_max_work_factor", "_passphrase")

    def __init__(self, passphrase: Secret, *, max_work_factor: int = MAX_WORK_FACTOR) -> None:
        """``max_work_factor`` is the power of two up to which a file's N is accepted, 1 to 30."""
        _check_passphrase(passphrase, max_work_factor, 30)
        self._passphrase = passphrase
        self._max_work_factor = max_work_factor

    def unwrap(self, stanzas: Sequence[Stanza]) -> Secret | None:
        for stanza in stanzas:
            if stanza.kind != "scrypt":
                continue
            salt, factor = _parse_arguments(stanza, 2)
            salt_bytes = _parse_bytes(salt, _SALT_BYTES)
            work_factor = self._parse_work_factor(factor)
            _check_body(stanza)
            with _scrypt_wrapping_key(self._passphrase, salt_bytes, work_factor) as key:
                file_key = _open(key, stanza.body)
            if file_key is not None:
                return file_key
        return None

    def _parse_work_factor(self, text: str) -> int:
        if not (text.isascii() and text.isdigit()) or text.startswith("0"):
            raise AgeStanzaMalformed("the work factor is no decimal number without leading zeros")
        if len(text) > 2 or int(text) > self._max_work_factor:
            raise AgeWorkFactorTooHigh(
                f"the passphrase's work factor is above {self._max_work_factor}", limit=self._max_work_factor
            )
        return int(text)

    def __repr__(self) -> str:
        return "<ScryptIdentity>"


def parse_recipient(text: str, *, entropy: Entropy | None = None) -> X25519Recipient | HybridRecipient:
    """Return the recipient that ``age1…`` or ``age1pq1…`` names; ``vault.age.key`` or ``vault.age.key-type``."""
    if text.startswith(("ssh-", "ecdsa-", "sk-")):
        raise AgeKeyUnsupported("SSH keys are no recipients here")
    try:
        kind, point = decode_bech32(bytearray(text, "ascii"))
    except UnicodeEncodeError as error:
        raise AgeKeyMalformed("a recipient is plain ASCII") from error
    match kind:
        case b"age":
            return X25519Recipient(bytes(point), entropy=entropy)
        case b"age1pq":
            return HybridRecipient(bytes(point))
        case _ if kind.startswith(b"age1"):
            raise AgeKeyUnsupported("recipients of plugins and hardware tokens are not supported")
    raise AgeKeyMalformed("the text is no recipient")


def parse_identities(text: bytes | bytearray | memoryview) -> list[X25519Identity | HybridIdentity]:
    """Return the identities of a file: one a line, empty lines and ``#`` comments between them, at least one.

    What is copied of ``text`` on the way is overwritten; pass the view of a ``Secret`` and wipe that. Raises
    ``vault.age.key`` and ``vault.age.key-type`` with the number of the line.
    """
    if len(text) > MAX_KEY_FILE_BYTES:
        raise AgeKeyMalformed(f"a file of identities has at most {MAX_KEY_FILE_BYTES} bytes", limit=MAX_KEY_FILE_BYTES)
    copy = bytearray(text)
    lines = copy.splitlines()
    try:
        found = [
            _parse_identity(line, number)
            for number, line in enumerate(lines, start=1)
            if line and not line.startswith(b"#")
        ]
    finally:
        for buffer in (copy, *lines):
            buffer[:] = bytes(len(buffer))
    if not found:
        raise AgeKeyMalformed("the file holds no identity")
    return found


def _parse_identity(line: bytearray, number: int) -> X25519Identity | HybridIdentity:
    if line.startswith((b"-----BEGIN", b"age-encryption.org/")):
        raise AgeKeyUnsupported(
            f"line {number} begins an SSH key or an encrypted file, which has to be decrypted first", line=number
        )
    kind, seed = decode_bech32(line)
    secret = _take(seed)
    match kind:
        case b"AGE-SECRET-KEY-":
            return X25519Identity(secret)
        case b"AGE-SECRET-KEY-PQ-":
            return HybridIdentity(secret)
    secret.wipe()
    if kind.startswith(b"AGE-PLUGIN-"):
        raise AgeKeyUnsupported(f"line {number} is the identity of a plugin", line=number)
    raise AgeKeyMalformed(f"line {number} is no identity", line=number)


def _encode_identity(kind: bytes, seed: Secret) -> Secret:
    text = encode_bech32(kind, _unwiped(seed))
    upper = _take(text.upper())
    text[:] = bytes(len(text))
    return upper


def _check_point(point: bytes) -> None:
    """Refuse a public key for which every shared secret is zero: anybody could open what is meant for it."""
    if len(point) != _POINT_BYTES:
        raise AgeKeyMalformed(f"an X25519 public key has not {_POINT_BYTES} bytes")
    try:
        X25519PrivateKey.from_private_bytes(b"\x01" * _SEED_BYTES).exchange(X25519PublicKey.from_public_bytes(point))
    except ValueError as error:
        raise AgeKeyMalformed("an X25519 public key is of low order") from error


def _check_passphrase(passphrase: Secret, work_factor: int, limit: int) -> None:
    if not len(passphrase):
        raise AgeSettingWrong("the passphrase is empty")
    if not 1 <= work_factor <= limit:
        raise AgeSettingWrong(f"a work factor is 1 to {limit}", limit=limit)


def _parse_arguments(stanza: Stanza, count: int) -> tuple[str, ...]:
    if len(stanza.arguments) != count:
        raise AgeStanzaMalformed(f"a stanza of type {stanza.kind} has not {count} arguments")
    return stanza.arguments


def _parse_bytes(text: str, length: int) -> bytes:
    data = decode_base64(text.encode("ascii"), AgeStanzaMalformed)
    if len(data) != length:
        raise AgeStanzaMalformed(f"an argument of a stanza has not {length} bytes")
    return data


def _check_body(stanza: Stanza) -> None:
    """Refuse another length before decrypting: a longer body could be made to open under several keys."""
    if len(stanza.body) != _WRAPPED_BYTES:
        raise AgeStanzaMalformed(f"the body of a stanza of type {stanza.kind} has not {_WRAPPED_BYTES} bytes")


def _to_text(data: bytes) -> str:
    return encode_base64(data).decode("ascii")


def _exchange(key: X25519PrivateKey, share: bytes) -> Secret:
    try:
        return Secret(key.exchange(X25519PublicKey.from_public_bytes(share)))
    except ValueError as error:
        raise AgeStanzaMalformed("the share of a stanza is of low order") from error


def _x25519_wrapping_key(key: X25519PrivateKey, peer: bytes, salt: bytes) -> Secret:
    with _exchange(key, peer) as shared:
        derived = bytearray(32)
        HKDF(algorithm=hashes.SHA256(), length=32, salt=salt, info=_X25519_INFO).derive_into(shared.view(), derived)
    return _take(derived)


def _scrypt_wrapping_key(passphrase: Secret, salt: bytes, work_factor: int) -> Secret:
    derived = bytearray(32)
    try:
        kdf = Scrypt(salt=_SCRYPT_LABEL + salt, length=32, n=1 << work_factor, r=8, p=1)
        kdf.derive_into(_unwiped(passphrase), derived)
    except MemoryError as error:
        raise AgeMemoryShort(f"scrypt needs {1 << work_factor} KiB of memory", work_factor=work_factor) from error
    return _take(derived)


def _unwiped(secret: Secret) -> memoryview:
    """Return the secret's memory; after ``wipe`` it would be a key of zeros, which encrypts for everybody."""
    view = secret.view()
    if not any(view):
        raise AgeSettingWrong("the identity or the passphrase was wiped")
    return view


def _take(buffer: bytearray) -> Secret:
    """Move the content of a buffer into a secret."""
    secret = Secret(buffer)
    buffer[:] = bytes(len(buffer))
    return secret


def _seal(key: Secret, file_key: Secret) -> bytes:
    return ChaCha20Poly1305(key.view()).encrypt(_ZERO_NONCE, file_key.view(), None)


def _open(key: Secret, body: bytes) -> Secret | None:
    file_key = bytearray(FILE_KEY_BYTES)
    try:
        ChaCha20Poly1305(key.view()).decrypt_into(_ZERO_NONCE, body, None, file_key)
    except InvalidTag:
        return None
    return _take(file_key)
