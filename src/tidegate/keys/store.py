"""The ``KeyStore`` protocol: what every provider of keys offers, and the records it speaks in.

Adding a provider is one file with a class of this shape and one line in ``uri.py`` (or, outside this package, an entry
point); ``tidegate.testing.keystores`` judges it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from tidegate.crypto.aead import Secret
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.keys.errors import CapabilityMissing, KeyNameInvalid

MAX_RANDOM_BYTES = 4096  # of one call; nobody needs more at once, and a TPM gives 32 to 64 a command
MAX_CERTIFICATES = 8  # of a chain kept beside a key
MAX_CERTIFICATE_BYTES = 16_384  # of one of them: one with ML-DSA keys has 6 KiB
MAX_PCR = 23  # a PC client TPM has 24
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
# what a TPM verifies: nothing else can be a PCR authority
AUTHORITY_ALGORITHMS = frozenset(
    {SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384, SignatureAlgorithm.RSA_PSS}
)

AskPin: TypeAlias = Callable[[str], Secret]
"""Asks a person (or a credential store) for the PIN or passphrase that the text describes."""


class KeyPurpose(enum.Enum):
    """What a key is for; a key has one purpose for life."""

    SIGN = "sign"
    SEAL = "seal"
    ATTEST = "attest"  # signs the platform's own statements (quotes) and nothing that anybody hands it


@dataclass(frozen=True, slots=True, kw_only=True)
class PcrAuthority:
    """Who says which register values a key may be used under: the holder of ``key``, in statements for ``product``.

    A product's statements open no key of another product, though one authority signs for both (``pcr_policy.py``).
    Statements are valid for ever, unless ``floor`` names a counter of the provider: then they have versions, and those
    lower than its count open nothing any more.
    """

    key: PublicKey
    product: str
    floor: str | None = None

    def __post_init__(self) -> None:
        if self.key.algorithm not in AUTHORITY_ALGORITHMS:
            raise ValueError(f"no TPM verifies {self.key.algorithm.label} signatures")
        if not is_name(self.product) or not (self.floor is None or is_name(self.floor)):
            raise ValueError("products and counters are named as keys are")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPolicy:
    """What a key may do, fixed at birth; the default is the safe choice, as far as every provider has it.

    ``exportable``: its private half may leave as PKCS#8 or wrapped for another token. ``pcrs``: it works only while
    these registers (SHA-256 bank) hold what they held when it was made; with a ``pcr_authority``, while they hold what
    a statement that this authority signed says. ``user_auth``: each use asks for a PIN of its own, besides what opens
    the store. ``revocable``: ``destroy`` ends every copy of it, too, because the provider itself refuses them from then
    on, whatever storage it keeps them on. Ask ``Capabilities.can_revoke``: it takes a place in a TPM.
    """

    exportable: bool = False
    pcrs: frozenset[int] = frozenset()
    user_auth: bool = False
    pcr_authority: PcrAuthority | None = None
    revocable: bool = False

    def __post_init__(self) -> None:
        if not all(0 <= pcr <= MAX_PCR for pcr in self.pcrs):
            raise ValueError(f"PCRs are numbered 0 to {MAX_PCR}")
        if self.pcr_authority is not None and not self.pcrs:
            raise ValueError("an authority over no register: the key would be bound to nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySpec:
    """What to generate: a key of ``algorithm`` that signs or attests, or a sealing key (AES-256-GCM, no algorithm)."""

    purpose: KeyPurpose
    algorithm: SignatureAlgorithm | None = None
    policy: KeyPolicy = field(default_factory=KeyPolicy)

    def __post_init__(self) -> None:
        if (self.purpose is KeyPurpose.SEAL) != (self.algorithm is None):
            raise ValueError("a key that signs has an algorithm, a sealing key has none")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    """What may be told about a key: all but its secret."""

    name: str
    spec: KeySpec
    public_key: PublicKey | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A platform's signed statement of its measurements (TPM 2.0 Part 2, §10.12.8); ``attest.py`` verifies it.

    ``attest`` is the TPMS_ATTEST, ``signature`` raw as ``PublicKey.verify`` takes it, ``pcrs`` the values (SHA-256
    bank) that the platform says it had; they count only after their digest was compared.
    """

    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a provider can do; ask before, instead of failing late."""

    provider: str
    hardware: bool
    algorithms: frozenset[SignatureAlgorithm]
    can_seal: bool
    can_count: bool
    counter_resists_rollback: bool
    can_quote: bool
    can_export: bool = False
    can_bind_pcrs: bool = False
    can_user_auth: bool = False
    can_keep_certificates: bool = False
    can_follow_pcr_authority: bool = False
    can_revoke: bool = False

    def require(self, spec: KeySpec) -> None:
        """Return if a key like ``spec`` can be made here, else raise ``keys.capability.missing`` saying what lacks."""
        lacking = [
            (spec.algorithm is not None and spec.algorithm not in self.algorithms, f"make {_label(spec)} keys"),
            (spec.purpose is KeyPurpose.SEAL and not self.can_seal, "seal"),
            (spec.purpose is KeyPurpose.ATTEST and not self.can_quote, "vouch for a platform"),
            (spec.policy.exportable and not self.can_export, "make exportable keys"),
            (bool(spec.policy.pcrs) and not self.can_bind_pcrs, "bind keys to PCRs"),
            (
                spec.policy.pcr_authority is not None and not self.can_follow_pcr_authority,
                "bind keys to what a PCR authority signs",
            ),
            (spec.policy.user_auth and not self.can_user_auth, "ask for a PIN at each use of a key"),
            (spec.policy.revocable and not self.can_revoke, "end copies of a key that it destroys"),
        ]
        for is_lacking, what in lacking:
            if is_lacking:
                raise CapabilityMissing(f"the {self.provider} provider cannot {what}", provider=self.provider)


class KeyStore(Protocol):
    """A provider of keys. No operation but ``export_key`` returns a private key.

    Stores may be used from several threads and after a fork. Every operation on a name raises ``keys.name.invalid``,
    and ``keys.key.missing`` where there is no such key; one that the provider lacks raises ``keys.capability.missing``.
    """

    def capabilities(self) -> Capabilities:
        """Return what this provider can do."""
        ...

    def generate(self, name: str, spec: KeySpec) -> KeyInfo:
        """Make a key called ``name``, durable before this returns; raise ``keys.key.exists``."""
        ...

    def list_keys(self) -> list[KeyInfo]:
        """Return every key, by name."""
        ...

    def public_key(self, name: str) -> PublicKey:
        """Return the public half; raise ``keys.key.missing`` or ``keys.key.purpose``."""
        ...

    def signer(self, name: str) -> Signer:
        """Return something that signs with the key inside the provider."""
        ...

    def seal(self, name: str, secret: bytes | memoryview, context: bytes) -> bytes:
        """Return ``secret`` encrypted so that only this key, asked with this ``context``, opens it."""
        ...

    def unseal(self, name: str, sealed: bytes, context: bytes) -> Secret:
        """Return what was sealed, or raise ``keys.sealed.malformed``.

        ``keys.pcr.mismatch`` names the registers that changed; ``keys.pcr.no-statement`` and ``keys.pcr.statement``
        say that no statement of the key's PCR authority allows the present ones.
        """
        ...

    def counter_read(self, name: str) -> int:
        """Return a counter's value; 0 if it never was incremented."""
        ...

    def counter_increment(self, name: str) -> int:
        """Return the counter's value after adding one, durable before this returns."""
        ...

    def random(self, count: int) -> bytes:
        """Return 1 to 4096 bytes from the provider's own generator."""
        ...

    def quote(self, name: str, nonce: bytes, pcrs: frozenset[int]) -> Quote:
        """Return the platform's measurements signed by attestation key ``name`` over ``nonce`` (8 to 32 bytes)."""
        ...

    def keep_certificates(self, name: str, chain: Sequence[bytes]) -> None:
        """Keep a certificate chain (DER, the key's own first) beside the key, durably, in place of the one before.

        The provider does not look into it but for its size; ``pki`` does.
        """
        ...

    def certificates(self, name: str) -> tuple[bytes, ...]:
        """Return the chain kept beside the key; empty where there is none."""
        ...

    def export_key(self, name: str) -> Secret:
        """Return the private half as PKCS#8 DER; raise ``keys.key.not-exportable`` unless it was born exportable."""
        ...

    def import_key(self, name: str, pkcs8: bytes | memoryview, spec: KeySpec) -> KeyInfo:
        """Take a private key from PKCS#8 DER; ``spec.policy.exportable`` has to be set: it was outside already.

        Raises ``keys.key.exists``, ``keys.import.refused``.
        """
        ...

    def destroy(self, name: str) -> None:
        """Make the key unusable for ever; using it afterwards raises ``keys.key.missing``.

        Of a ``revocable`` key that holds for every copy that was made of the provider's files before. Of others a copy
        may work again where what unlocked the store still does.
        """
        ...

    def close(self) -> None:
        """Forget what opened the store; every later use raises ``keys.store.closed``."""
        ...


def check_key_name(name: str) -> str:
    """Return ``name`` if it may name a key, else raise ``keys.name.invalid``."""
    if not is_name(name):
        raise KeyNameInvalid(f"{name!r} is no key name")
    return name


def is_name(text: str) -> bool:
    """Return whether ``text`` has the form of the names of keys, counters and products."""
    return _NAME.fullmatch(text) is not None


def check_chain(chain: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return ``chain`` if its size may be kept beside a key, else raise ``keys.capability.missing``."""
    if len(chain) > MAX_CERTIFICATES or any(not 0 < len(one) <= MAX_CERTIFICATE_BYTES for one in chain):
        raise CapabilityMissing(f"a chain has at most {MAX_CERTIFICATES} certificates of {MAX_CERTIFICATE_BYTES} bytes")
    return tuple(chain)


def _label(spec: KeySpec) -> str:
    return spec.algorithm.label if spec.algorithm else spec.purpose.value
