"""COSE_Sign envelopes (RFC 9052 §4.1): one payload, several signatures, one role.

The role (``tidegate.image.v1``, …) stands as ``typ`` (RFC 9596) in the protected body header, which every signature
covers, so that a signature made for one role never counts in another. Bytes: docs/formats/envelope.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.crypto import cbor
from tidegate.crypto.errors import (
    AlgorithmUnknown,
    EnvelopeContext,
    EnvelopeMalformed,
    EnvelopeSigners,
    EnvelopeTooLarge,
    SignatureDuplicate,
    SignatureMissingClass,
    SignatureThreshold,
    SignatureUnknownKey,
)
from tidegate.crypto.signing import KeyId, PublicKey, Signer
from tidegate.crypto.trust import TrustPolicy

MAX_ENVELOPE_BYTES = 61_440  # what the head of a slot has room for (docs/formats/image.md); a policy fits as well
MAX_SIGNATURES = 8
_TAG_COSE_SIGN = 98
_ALG, _KID, _TYP = 1, 4, 16
_PROOF = object()


@dataclass(frozen=True, slots=True)
class VerifiedEnvelope:
    """A payload that the trust policy accepted for ``context``; only ``verify_envelope`` makes one."""

    context: str
    payload: bytes
    signers: tuple[KeyId, ...]
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedEnvelope comes from verify_envelope alone")


def sign_envelope(context: str, payload: bytes, signers: Sequence[Signer]) -> bytes:
    """Return ``payload`` signed by every one of ``signers`` for the role ``context``, and for no other.

    Nothing comes out that ``verify_envelope`` would refuse for its form: raises ``crypto.envelope.signers`` for no key,
    too many or one key twice, ``crypto.envelope.too-large`` over 60 KiB.
    """
    if not 1 <= len(signers) <= MAX_SIGNATURES:
        raise EnvelopeSigners(f"{len(signers)} keys; an envelope has 1 to {MAX_SIGNATURES} signatures")
    if len({signer.public_key.key_id for signer in signers}) != len(signers):
        raise EnvelopeSigners("one key is to sign twice")
    body = cbor.encode({_TYP: context})
    signatures: list[cbor.Value] = []
    for signer in signers:
        key = signer.public_key
        protected = cbor.encode({_ALG: int(key.algorithm), _KID: key.key_id.digest})
        signatures.append([protected, {}, signer.sign(_to_be_signed(body, protected, payload))])
    envelope = cbor.encode(cbor.Tagged(tag=_TAG_COSE_SIGN, value=[body, {}, payload, signatures]))
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise EnvelopeTooLarge(f"the envelope has {len(envelope)} bytes, over {MAX_ENVELOPE_BYTES}", size=len(envelope))
    return envelope


def verify_envelope(raw: bytes, *, context: str, trust: TrustPolicy) -> VerifiedEnvelope:
    """Return the payload that ``trust`` vouches for in the role ``context``, or raise a ``Rejected``.

    Duties, in this order:
    1. the bytes are one envelope in the strict profile, no longer than 60 KiB (``crypto.cbor.*``,
       ``crypto.envelope.malformed``);
    2. it was made for this role (``crypto.envelope.context``);
    3. every signature names a trusted key and that key's own algorithm (``crypto.signature.unknown-key``,
       ``crypto.algorithm.unknown``); no key signs twice (``crypto.signature.duplicate``);
    4. every signature holds (``crypto.signature.invalid``);
    5. each required class of algorithm is among the signers (``crypto.signature.missing-class``);
    6. the signers reach the threshold (``crypto.signature.threshold``).

    Not checked: what the payload says, how old it is.
    """
    body, payload, signatures = _parse(raw)  # 1
    if body != cbor.encode({_TYP: context}):  # 2
        raise EnvelopeContext(f"the envelope was not signed as {context}", expected=context)
    signers = [_trusted_key(protected, trust) for protected, _ in signatures]  # 3
    if len({key.key_id for key in signers}) != len(signers):
        raise SignatureDuplicate("one key signed more than once")
    for key, (protected, signature) in zip(signers, signatures, strict=True):  # 4
        key.verify(signature, _to_be_signed(body, protected, payload))
    missing = trust.required_classes - {key.algorithm.algorithm_class for key in signers}  # 5
    if missing:
        names = ", ".join(sorted(required.value for required in missing))
        raise SignatureMissingClass(f"no {names} signature is there", missing=names)
    if len(signers) < trust.threshold:  # 6
        raise SignatureThreshold(f"{len(signers)} of {trust.threshold} signatures", have=len(signers))
    return VerifiedEnvelope(context, payload, tuple(key.key_id for key in signers), _PROOF)


def unverified_payload(raw: bytes) -> bytes:
    """Return what an envelope claims to carry, for showing it to a person; no signature was looked at."""
    return _parse(raw)[1]


def _to_be_signed(body: bytes, protected: bytes, payload: bytes) -> bytes:
    """Return the Sig_structure of RFC 9052 §4.4."""
    return cbor.encode(["Signature", body, protected, b"", payload])


def _parse(raw: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]]]:
    """Return protected body header, payload and the (protected header, signature) pairs."""
    document = cbor.decode(raw, limit_bytes=MAX_ENVELOPE_BYTES)
    if not isinstance(document, cbor.Tagged) or document.tag != _TAG_COSE_SIGN:
        raise EnvelopeMalformed("no COSE_Sign tag")
    match document.value:
        case [bytes() as body, dict() as unprotected, bytes() as payload, [*entries]] if not unprotected:
            pass
        case _:
            raise EnvelopeMalformed("no COSE_Sign array of four")
    if not 1 <= len(entries) <= MAX_SIGNATURES:
        raise EnvelopeMalformed(f"{len(entries)} signatures; 1 to {MAX_SIGNATURES} are allowed")
    pairs = []
    for entry in entries:
        match entry:
            case [bytes() as protected, dict() as empty, bytes() as signature] if not empty:
                pairs.append((protected, signature))
            case _:
                raise EnvelopeMalformed("no COSE_Signature array of three")
    return body, payload, pairs


def _trusted_key(protected: bytes, trust: TrustPolicy) -> PublicKey:
    """Return the trusted key that the protected header of a signature names, with exactly its algorithm."""
    header = cbor.decode(protected, limit_bytes=256)
    if not isinstance(header, dict) or set(header) != {_ALG, _KID} or not isinstance(kid := header[_KID], bytes):
        raise EnvelopeMalformed("a signature's protected header holds an algorithm and a key id, nothing else")
    key = trust.find(kid)
    if key is None:
        raise SignatureUnknownKey(f"key {KeyId(kid)} is not among the trust anchors", key=str(KeyId(kid)))
    if header[_ALG] != key.algorithm:
        raise AlgorithmUnknown(f"key {key.key_id} signs with {key.algorithm.label} only", key=str(key.key_id))
    return key
