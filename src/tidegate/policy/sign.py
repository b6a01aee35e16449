"""The signed form of a policy: CBOR in an envelope of role ``tidegate.policy.v1`` (docs/formats/policy.md)."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from tidegate.crypto import cbor
from tidegate.crypto.cose import sign_envelope, verify_envelope
from tidegate.crypto.signing import Signer
from tidegate.crypto.trust import TrustPolicy
from tidegate.policy.document import Policy
from tidegate.policy.errors import PolicyExpired, PolicyRollback, PolicyValue

CONTEXT = "tidegate.policy.v1"
MAX_SIGNED_BYTES = 61_440  # what an envelope has room for
_PROOF = object()


@dataclass(frozen=True, slots=True)
class VerifiedPolicy:
    """A policy that the owner signed for this device; only ``verify_policy`` makes one."""

    policy: Policy
    digest: bytes
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedPolicy comes from verify_policy alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRule:
    """What a device accepts as its policy: whose, for whom, at or above which version, at what time."""

    trust: TrustPolicy
    device: str
    min_version: int
    now_s: float


def sign_policy(policy: Policy, signers: Sequence[Signer]) -> bytes:
    """Return ``policy`` signed by every one of ``signers``.

    A policy that says nothing of the vault has no such key: devices from before there was one accept it still.
    """
    document = msgspec.to_builtins(policy)
    if document["vault"] is None:
        del document["vault"]
    return sign_envelope(CONTEXT, cbor.encode(document), signers)


def verify_policy(raw: bytes, rule: PolicyRule) -> VerifiedPolicy:
    """Return the policy if this device may follow it, or raise a ``Rejected``.

    Duties: 1. the owner's keys signed it as a policy (``crypto.*``); 2. it is of our format
    (``policy.value.invalid``); 3. it is for this device (``policy.device.mismatch``); 4. it is not older than one seen
    before (``policy.version.rollback``); 5. it has not expired (``policy.expired``).
    """
    envelope = verify_envelope(raw, context=CONTEXT, trust=rule.trust)  # 1
    try:  # 2
        policy = msgspec.convert(cbor.decode(envelope.payload, limit_bytes=MAX_SIGNED_BYTES), Policy, strict=True)
    except msgspec.ValidationError as error:
        raise PolicyValue(f"signed policy: {error}") from error
    policy.require_device(rule.device)  # 3
    if policy.policy.version < rule.min_version:  # 4
        raise PolicyRollback(
            f"policy version {policy.policy.version} is older than {rule.min_version}",
            version=policy.policy.version,
            seen=rule.min_version,
        )
    expires = policy.policy.expires
    if expires is not None:  # 5
        moment = expires if expires.tzinfo else expires.replace(tzinfo=datetime.UTC)
        if rule.now_s >= moment.timestamp():
            raise PolicyExpired(f"the policy expired at {moment.isoformat()}", expires=moment.isoformat())
    return VerifiedPolicy(policy, hashlib.sha256(envelope.payload).digest(), _PROOF)
