"""A token's PIN divided among operators: any ``threshold`` of them have it back, fewer know nothing of it. Pure.

The division is SLIP-39 (words that can also be written on paper), each share sealed under its operator's own
passphrase. Bytes of a share file: docs/formats/ceremony.md.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tidegate.base.clock import Entropy
from tidegate.crypto import cbor
from tidegate.crypto.aead import NONCE_BYTES, Secret, argon2id, open_aes256gcm, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed, CborLimit, CborMalformed
from tidegate.factory.errors import ShareMalformed, ShareRefused, SharesInsufficient, SharesUnavailable
from tidegate.keys.software import Argon2Cost

MAX_SHARE_BYTES = 4096  # 33 words of at most 8 letters, sealed, and who they belong to
MAX_OPERATORS = 16  # of SLIP-39
NEW_PASSPHRASE = "a passphrase for the share of"  # noqa: S105  # so a question begins that has to be asked twice
_FORMAT = "tidegate.share.v1"
_SECRET_BYTES = 16  # what SLIP-39 divides at least; a PIN of 26 letters holds all of it
_SALT_BYTES = 32
_COST = Argon2Cost()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareHead:
    """Whose share it is, of which ceremony, and how many are needed."""

    ceremony: str
    operator: str
    threshold: int
    shares: int
    letters: int

    def members(self) -> dict[cbor.Value, cbor.Value]:
        """Return what a share file says in the clear, and what its sealed words are bound to."""
        return {
            "format": _FORMAT,
            "ceremony": self.ceremony,
            "operator": self.operator,
            "threshold": self.threshold,
            "shares": self.shares,
            "letters": self.letters,
        }

    def context(self) -> bytes:
        return cbor.encode(self.members())


def make_pin(entropy: Entropy, letters: int) -> tuple[Secret, Secret]:
    """Return a new secret and the PIN that follows from it: ``letters`` (6 to 26) of a-z and 2-7, 5 bits each."""
    secret = Secret(entropy.random_bytes(_SECRET_BYTES))
    return secret, pin_of(secret, letters)


def pin_of(secret: Secret, letters: int) -> Secret:
    """Return the PIN of a divided secret."""
    return Secret(base64.b32encode(secret.view()).lower()[:letters])


def divide(secret: Secret, heads: Sequence[ShareHead]) -> list[Secret]:
    """Return the words of each share, in the order of ``heads``; raise ``factory.shares.unavailable``."""
    mnemonic = _library()
    count, threshold = len(heads), heads[0].threshold
    # SLIP-39 has no "1 of n" within a group that would not be n copies of one share; the plan refuses it before
    (words,) = mnemonic.generate_mnemonics(1, [(threshold, count)], bytes(secret.view()))
    return [Secret(one.encode()) for one in words]


def join(words: Sequence[Secret]) -> Secret:
    """Return the secret; raise ``factory.shares.insufficient`` for too few shares or such as do not fit together."""
    mnemonic = _library()
    try:
        return Secret(mnemonic.combine_mnemonics([bytes(one.view()).decode() for one in words]))
    except (mnemonic.MnemonicError, UnicodeDecodeError) as error:
        raise SharesInsufficient(f"{len(words)} shares do not give the PIN: too few, or of different ceremonies") from (
            error if isinstance(error, mnemonic.MnemonicError) else None
        )


def seal_share(head: ShareHead, words: Secret, passphrase: Secret, entropy: Entropy) -> bytes:
    """Return the file that operator ``head.operator`` takes home; only his passphrase opens it."""
    salt, nonce = entropy.random_bytes(_SALT_BYTES), entropy.random_bytes(NONCE_BYTES)
    key = argon2id(
        passphrase.view(), salt=salt, iterations=_COST.iterations, lanes=_COST.lanes, memory_kib=_COST.memory_kib
    )
    sealed = nonce + seal_aes256gcm(key, nonce, words.view(), head.context())
    return cbor.encode({**head.members(), "salt": salt, "sealed": sealed})


def parse_share(raw: bytes) -> tuple[ShareHead, bytes, bytes]:
    """Return head, salt and sealed words of a share file; raise ``factory.share.malformed``.

    Nothing is authenticated yet: ``open_share`` does that.
    """
    try:
        document = cbor.decode(raw, limit_bytes=MAX_SHARE_BYTES)
    except (CborMalformed, CborLimit) as error:
        raise ShareMalformed(f"no share file: {error.message}") from error
    match document:
        case {
            "format": "tidegate.share.v1",
            "ceremony": str() as ceremony,
            "operator": str() as operator,
            "threshold": int() as threshold,
            "shares": int() as shares,
            "letters": int() as letters,
            "salt": bytes() as salt,
            "sealed": bytes() as sealed,
        } if len(salt) == _SALT_BYTES and 2 <= threshold <= shares <= MAX_OPERATORS:
            head = ShareHead(ceremony=ceremony, operator=operator, threshold=threshold, shares=shares, letters=letters)
            if document == {**head.members(), "salt": salt, "sealed": sealed}:
                return head, salt, sealed
    raise ShareMalformed("no share file of this version")


def open_share(raw: bytes, passphrase: Secret) -> tuple[ShareHead, Secret]:
    """Return the share's head and its words; raise ``factory.share.malformed``, ``factory.share.refused``."""
    head, salt, sealed = parse_share(raw)
    key = argon2id(
        passphrase.view(), salt=salt, iterations=_COST.iterations, lanes=_COST.lanes, memory_kib=_COST.memory_kib
    )
    try:
        words = open_aes256gcm(key, sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], head.context())
    except AeadFailed as error:
        raise ShareRefused(f"the share of {head.operator} does not open", operator=head.operator) from error
    return head, Secret(words)


def _library() -> Any:
    """Return the SLIP-39 package, which is on a maker's bench and never on a device."""
    try:
        import shamir_mnemonic  # type: ignore[import-untyped]
    except ImportError as error:
        raise SharesUnavailable("the package shamir-mnemonic is missing") from error
    return shamir_mnemonic
