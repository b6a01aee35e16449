"""A key ceremony's plan and its signed transcript: who made which keys where, and how many it takes to use them. Pure.

Bytes of the transcript: docs/formats/ceremony.md.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from tidegate.crypto import cbor
from tidegate.crypto.cose import sign_envelope, unverified_payload, verify_envelope
from tidegate.crypto.signing import KeyId, PublicKey, Signer, parse_algorithm, parse_public_key
from tidegate.crypto.trust import TrustPolicy
from tidegate.factory.errors import CeremonyPlanInvalid, TranscriptMalformed
from tidegate.factory.shares import MAX_OPERATORS
from tidegate.keys.store import check_key_name
from tidegate.keys.uri import parse_key_uri

ROLE = "tidegate.ceremony.v1"
MAX_PLAN_BYTES = 16_384
MAX_KEYS = 8  # an envelope has room for 8 signatures, and each new key signs the transcript
_FORMAT = "tidegate.transcript.v1"
_PROOF = object()

Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[\w .'-]+\Z")]


class KeyPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One key to generate; with ``backup`` it may leave its token wrapped for the second one, and for no other use."""

    name: str
    algorithm: str
    backup: bool = False


class CeremonyPlan(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is to happen: decided before, printed, and checked against the transcript afterwards."""

    maker: Name
    token: str
    backup_token: str | None = None
    threshold: Annotated[int, Meta(ge=2, le=MAX_OPERATORS)]
    operators: Annotated[tuple[Name, ...], Meta(min_length=2, max_length=MAX_OPERATORS)]
    pin_letters: Annotated[int, Meta(ge=8, le=26)] = 16
    place: Annotated[str, Meta(max_length=128)] = ""
    keys: Annotated[tuple[KeyPlan, ...], Meta(min_length=1, max_length=MAX_KEYS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as the transcript has it."""

    name: str
    public_key: PublicKey
    is_backed_up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """What happened. ``tokens`` says role → label, manufacturer, model and serial as the token itself says them;
    ``shares`` operator → SHA-256 of the share file handed to him."""

    ceremony: str
    maker: str
    place: str
    started_s: int
    ended_s: int
    version: str
    threshold: int
    shares: dict[str, bytes]
    tokens: dict[str, dict[str, str]]
    keys: tuple[KeyRecord, ...]

    def encode(self) -> bytes:
        """Return the payload of the envelope."""
        return cbor.encode(
            {
                "format": _FORMAT,
                "ceremony": self.ceremony,
                "maker": self.maker,
                "place": self.place,
                "started": self.started_s,
                "ended": self.ended_s,
                "version": self.version,
                "threshold": self.threshold,
                "shares": dict(self.shares),
                "tokens": {role: dict(told) for role, told in self.tokens.items()},
                "keys": [
                    {"name": key.name, "public": key.public_key.encode(), "backup": key.is_backed_up}
                    for key in self.keys
                ],
            }
        )


@dataclass(frozen=True, slots=True)
class VerifiedTranscript:
    """A transcript that every key it lists has signed; only ``verify_transcript`` makes one."""

    transcript: Transcript
    signers: tuple[KeyId, ...]
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedTranscript comes from verify_transcript alone")


def parse_plan(raw: bytes, *, name: str) -> CeremonyPlan:
    """Return the plan that a TOML file writes, or raise ``factory.ceremony.plan`` with the place.

    The URIs and algorithms are checked as far as that goes without a token; ``keys.uri.malformed``,
    ``crypto.algorithm.unknown`` and ``keys.name.invalid`` name what is wrong with them.
    """
    try:
        plan = msgspec.convert(tomllib.loads(raw[: MAX_PLAN_BYTES + 1].decode()), CeremonyPlan, strict=True)
    except (ValueError, RecursionError, msgspec.ValidationError) as error:
        raise CeremonyPlanInvalid(f"{name}: {str(error)[:300]}") from error
    names = [key.name for key in plan.keys]
    if len(raw) > MAX_PLAN_BYTES:
        raise CeremonyPlanInvalid(f"{name} has more than {MAX_PLAN_BYTES} bytes")
    if len(set(names)) != len(names) or len(set(map(share_name, plan.operators))) != len(plan.operators):
        raise CeremonyPlanInvalid(f"{name}: a key or an operator is named twice")
    if plan.threshold > len(plan.operators):
        raise CeremonyPlanInvalid(f"{name}: {len(plan.operators)} operators never make a threshold of {plan.threshold}")
    if plan.backup_token is None and any(key.backup for key in plan.keys):
        raise CeremonyPlanInvalid(f"{name}: a backup is asked for, but no backup_token is named")
    for key in plan.keys:
        check_key_name(key.name)
        parse_algorithm(key.algorithm)
    for uri in filter(None, (plan.token, plan.backup_token)):
        parse_key_uri(uri)
    return plan


def share_name(operator: str) -> str:
    """Return the name of an operator's share file."""
    return f"{operator.lower().replace(' ', '-')}.share"


def sign_transcript(transcript: Transcript, signers: list[Signer]) -> bytes:
    """Return the transcript signed by every key of the ceremony."""
    return sign_envelope(ROLE, transcript.encode(), signers)


def verify_transcript(raw: bytes) -> VerifiedTranscript:
    """Return a transcript that all keys it lists have signed, or raise ``factory.ceremony.transcript``, ``crypto.*``.

    Not checked: whether these are the keys that anybody trusts; compare the key ids with the trust anchors in use.
    """
    transcript = _parse(unverified_payload(raw))
    keys = tuple(key.public_key for key in transcript.keys)
    trust = TrustPolicy(keys=keys, threshold=len(keys), required_classes=frozenset())
    verified = verify_envelope(raw, context=ROLE, trust=trust)
    return VerifiedTranscript(transcript, verified.signers, _PROOF)


def _parse(payload: bytes) -> Transcript:
    document = cbor.decode(payload, limit_bytes=len(payload))
    if not isinstance(document, dict):
        raise TranscriptMalformed("a transcript is a map")
    match document:
        case {
            "format": "tidegate.transcript.v1",
            "ceremony": str() as ceremony,
            "maker": str() as maker,
            "place": str() as place,
            "started": int() as started,
            "ended": int() as ended,
            "version": str() as version,
            "threshold": int() as threshold,
            "shares": dict() as shares,
            "tokens": dict() as tokens,
            "keys": [*keys],
        } if len(document) == 11 and 1 <= len(keys) <= MAX_KEYS:
            transcript = Transcript(
                ceremony=ceremony,
                maker=maker,
                place=place,
                started_s=started,
                ended_s=ended,
                version=version,
                threshold=threshold,
                shares={_text(name): _bytes(digest) for name, digest in shares.items()},
                tokens={_text(role): _texts(told) for role, told in tokens.items()},
                keys=tuple(_key(key) for key in keys),
            )
            if len({key.public_key.key_id for key in transcript.keys}) == len(transcript.keys):
                return transcript
    raise TranscriptMalformed("no transcript of this version")


def _key(value: cbor.Value) -> KeyRecord:
    match value:
        case {"name": str() as name, "public": bytes() as public, "backup": bool() as backup, **rest} if not rest:
            return KeyRecord(name=name, public_key=parse_public_key(public), is_backed_up=backup)
    raise TranscriptMalformed("a key of the transcript is malformed")


def _texts(value: cbor.Value) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TranscriptMalformed("a token of the transcript is malformed")
    return {_text(name): _text(text) for name, text in value.items()}


def _text(value: cbor.Value) -> str:
    if not isinstance(value, str):
        raise TranscriptMalformed("a text of the transcript is malformed")
    return value


def _bytes(value: cbor.Value) -> bytes:
    if not isinstance(value, bytes):
        raise TranscriptMalformed("a digest of the transcript is malformed")
    return value


def differences(plan: CeremonyPlan, transcript: Transcript) -> list[str]:
    """Return what a transcript has otherwise than its plan, in words; empty if they agree."""
    pairs = [
        ("maker", plan.maker, transcript.maker),
        ("threshold", plan.threshold, transcript.threshold),
        ("operators", sorted(plan.operators), sorted(transcript.shares)),
        (
            "keys",
            [(key.name, key.algorithm, key.backup) for key in plan.keys],
            [(key.name, key.public_key.algorithm.label, key.is_backed_up) for key in transcript.keys],
        ),
    ]
    return [f"{what}: planned {planned}, done {done}" for what, planned, done in pairs if planned != done]
