"""Trust policies: which keys may sign, how many have to, and which classes of algorithm must be among them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tidegate.crypto import cbor
from tidegate.crypto.errors import PublicKeyMalformed, TrustPolicyEmpty
from tidegate.crypto.signing import AlgorithmClass, KeyId, PublicKey, parse_public_key

MAX_TRUST_BYTES = 65_536  # 16 anchors of the largest kind, with room


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """Trusted keys, ``threshold`` of which must sign, with every class of ``required_classes`` among the signers.

    A policy that nothing could fail is refused when it is made (``crypto.trust.empty``): no keys, a threshold below
    one or above the number of keys, a required class without a key.
    """

    keys: tuple[PublicKey, ...]
    threshold: int
    required_classes: frozenset[AlgorithmClass]

    def __post_init__(self) -> None:
        distinct = {key.key_id for key in self.keys}
        classes = {key.algorithm.algorithm_class for key in self.keys}
        if not 1 <= self.threshold <= len(distinct) or len(distinct) != len(self.keys):
            raise TrustPolicyEmpty(f"{self.threshold} of {len(distinct)} different keys can never be asked for")
        if not self.required_classes <= classes:
            raise TrustPolicyEmpty("a required class of algorithm has no key in this policy")

    def find(self, key_id: bytes) -> PublicKey | None:
        """Return the trusted key with this thumbprint."""
        return next((key for key in self.keys if key.key_id == KeyId(key_id)), None)

    def encode(self) -> bytes:
        """Return the policy as deterministic CBOR (docs/formats/envelope.md, "trust anchors")."""
        return cbor.encode(
            {
                "keys": [key.encode() for key in self.keys],
                "threshold": self.threshold,
                "classes": sorted(required.value for required in self.required_classes),
            }
        )


def hybrid_trust(keys: Iterable[PublicKey]) -> TrustPolicy:
    """Return the policy in which every one of ``keys`` must sign, a classical and a post-quantum one among them."""
    anchors = tuple(keys)
    return TrustPolicy(keys=anchors, threshold=len(anchors), required_classes=frozenset(AlgorithmClass))


def parse_trust(raw: bytes) -> TrustPolicy:
    """Return the policy that ``raw`` encodes; raise ``crypto.key.malformed``, ``crypto.cbor.*``, ``crypto.trust.*``.

    Where the bytes come from is not checked: trust anchors are read from memory that only the maker could write.
    """
    document = cbor.decode(raw, limit_bytes=MAX_TRUST_BYTES)
    if not isinstance(document, dict) or set(document) != {"keys", "threshold", "classes"}:
        raise PublicKeyMalformed("trust anchors are a map of keys, threshold and classes")
    keys, threshold, classes = document["keys"], document["threshold"], document["classes"]
    if not isinstance(keys, list) or type(threshold) is not int or not isinstance(classes, list):
        raise PublicKeyMalformed("trust anchors have members of the wrong type")
    known = {member.value: member for member in AlgorithmClass}
    if not all(isinstance(name, str) and name in known for name in classes):
        raise PublicKeyMalformed("trust anchors name an unknown class of algorithm")
    policy = TrustPolicy(
        keys=tuple(parse_public_key(key if isinstance(key, bytes) else b"") for key in keys),
        threshold=threshold,
        required_classes=frozenset(known[str(name)] for name in classes),
    )
    if policy.encode() != raw:
        raise PublicKeyMalformed("trust anchors are not in the one form that they have")
    return policy
