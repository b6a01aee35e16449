"""How each of our signature algorithms is called, sized and encoded in OpenSSL's terms. Pure.

Source: OpenSSL provider-keymgmt(7), provider-signature(7), EVP_PKEY-EC(7), EVP_PKEY-RSA(7), EVP_PKEY-ED25519(7);
signature schemes RFC 8446 §4.2.3.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tidegate.crypto.signing import RSA_EXPONENT, PublicKey, SignatureAlgorithm
from tidegate.tls.errors import KeyUnsupported

SHA256_NAMES = frozenset({b"SHA256", b"SHA2-256", b"SHA-256"})
SHA384_NAMES = frozenset({b"SHA384", b"SHA2-384", b"SHA-384"})

# what peers may sign with, best first; RSA with PKCS #1 v1.5 is there for their certificates, SHA-1 is not
_PEERS = (
    "ecdsa_secp256r1_sha256:ecdsa_secp384r1_sha384:ed25519:"
    "rsa_pss_rsae_sha256:rsa_pss_rsae_sha384:rsa_pss_rsae_sha512:"
    "rsa_pss_pss_sha256:rsa_pss_pss_sha384:rsa_pss_pss_sha512"
)
_PKCS1 = ":rsa_pkcs1_sha256:rsa_pkcs1_sha384:rsa_pkcs1_sha512"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One OpenSSL key type."""

    names: bytes  # as OpenSSL's own provider registers them
    operation: bytes  # what its signatures are called


EC = Family(names=b"EC:id-ecPublicKey:1.2.840.10045.2.1", operation=b"ECDSA")
RSA = Family(names=b"RSA:rsaEncryption:1.2.840.113549.1.1.1", operation=b"RSA")
ED25519 = Family(names=b"ED25519:1.3.101.112", operation=b"ED25519")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What OpenSSL asks of a key of one algorithm; ``digests`` is empty where none may be named."""

    family: Family
    scheme: str
    group: bytes | None
    digests: frozenset[bytes]
    bits: int
    security_bits: int
    max_signature: int
    coordinate: int = 0

    def encode_signature(self, raw: bytes) -> bytes:
        """Return our raw signature as it goes over the wire."""
        size = self.coordinate
        if not size:
            return raw
        return encode_dss_signature(int.from_bytes(raw[:size], "big"), int.from_bytes(raw[size:], "big"))

    def parameters(self) -> Mapping[bytes, int | bytes]:
        """Return the answers to OSSL_FUNC_keymgmt_get_params."""
        known: dict[bytes, int | bytes] = {
            b"bits": self.bits,
            b"security-bits": self.security_bits,
            b"max-size": self.max_signature,
        }
        if self.group:
            known[b"group"] = self.group
        if self.digests:
            known[b"default-digest"] = b"SHA384" if self.digests is SHA384_NAMES else b"SHA256"
        else:
            known[b"mandatory-digest"] = b""  # says: names no digest, hashes itself
        return known

    def sigalgs(self) -> str:
        """Return the signature algorithms of a context with such a key: its own first, then what peers may use.

        A context with an RSA key does not offer PKCS #1: OpenSSL would choose it for our own signature too.
        """
        others = ":".join(one for one in _PEERS.split(":") if one != self.scheme)
        return f"{self.scheme}:{others}" + ("" if self.family is RSA else _PKCS1)


SIGALGS_WITHOUT_KEY = _PEERS + _PKCS1

_TRAITS: dict[SignatureAlgorithm, Callable[[int], Traits]] = {
    SignatureAlgorithm.ECDSA_P256: lambda _: Traits(
        family=EC,
        scheme="ecdsa_secp256r1_sha256",
        group=b"prime256v1",
        digests=SHA256_NAMES,
        bits=256,
        security_bits=128,
        max_signature=72,
        coordinate=32,
    ),
    SignatureAlgorithm.ECDSA_P384: lambda _: Traits(
        family=EC,
        scheme="ecdsa_secp384r1_sha384",
        group=b"secp384r1",
        digests=SHA384_NAMES,
        bits=384,
        security_bits=192,
        max_signature=104,
        coordinate=48,
    ),
    SignatureAlgorithm.ED25519: lambda _: Traits(
        family=ED25519,
        scheme="ed25519",
        group=None,
        digests=frozenset(),
        bits=256,
        security_bits=128,
        max_signature=64,
    ),
    SignatureAlgorithm.RSA_PSS: lambda size: Traits(
        family=RSA,
        scheme="rsa_pss_rsae_sha256",
        group=None,
        digests=SHA256_NAMES,
        bits=8 * size,
        security_bits=128,
        max_signature=size,
    ),
}


def supported_labels() -> list[str]:
    """Return the algorithms of keys that TLS can use."""
    return [algorithm.label for algorithm in _TRAITS]


def traits_of(key: PublicKey) -> Traits:
    """Return what OpenSSL is told about ``key``, or raise ``tls.key.unsupported``."""
    if key.algorithm not in _TRAITS:
        raise KeyUnsupported(f"no {key.algorithm.label} keys in TLS", algorithm=key.algorithm.label)
    return _TRAITS[key.algorithm](len(key.raw))


def public_identity(members: Mapping[bytes, bytes]) -> tuple[bytes, ...] | None:
    """Return what two equal public keys have in common, from the members that OpenSSL exports; None if incomplete."""
    if b"n" in members:
        numbers = (int.from_bytes(members.get(name, b""), sys.byteorder) for name in (b"n", b"e"))
        return (b"RSA", *(number.to_bytes((number.bit_length() + 7) // 8, "big") for number in numbers))
    point = members.get(b"pub")
    return (members.get(b"group", b"ED25519"), point) if point else None


def identity_of(key: PublicKey) -> tuple[bytes, ...]:
    """Return the same for a key of ours."""
    traits = traits_of(key)
    if traits.family is RSA:
        return (b"RSA", key.raw, RSA_EXPONENT.to_bytes(3, "big"))
    return (traits.group or b"ED25519", key.raw)
