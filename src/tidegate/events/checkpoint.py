"""Checkpoints: a signature over the head of the chain, and with it over every line before. Pure.

The envelope is ``tidegate.checkpoint.v1`` (docs/formats/envelope.md) over deterministic CBOR; in the log it stands in
a line of its own file, in base64, beside two plain numbers that let a writer continue without verifying.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tidegate.base.errors import Rejected
from tidegate.crypto import cbor
from tidegate.events.errors import CheckpointInvalid
from tidegate.events.lines import HASH_BYTES, StoredLine
from tidegate.events.model import encode_canonical

if TYPE_CHECKING:  # signing loads the cryptography library, which a writer without a signer never needs
    from tidegate.crypto.signing import Signer
    from tidegate.crypto.trust import TrustPolicy

CONTEXT = "tidegate.checkpoint.v1"
CHECKPOINT_START = b'{"boot":'  # how a checkpoint's line begins, and no event's or gap record's does
MAX_CHECKPOINT_LINE_BYTES = 98_304  # the largest envelope (60 KiB) in base64, with its numbers
_MAX_PAYLOAD_BYTES = 512  # two identifiers, two numbers, two hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The statement that is signed: events ``first`` to ``last`` of this boot end in the hash ``head``.

    ``gaps`` accounts for the gap records among them (``lines.hash_gaps``): empty if every event is there.
    """

    device: str
    boot: str
    first: int
    last: int
    head: bytes
    gaps: bytes = b""


class CheckpointLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of a checkpoint file; only ``envelope`` is signed, the others are hints for the writer."""

    boot: str
    envelope: str
    last: int


_decoder = msgspec.json.Decoder(CheckpointLine)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Return the payload that is signed."""
    return cbor.encode(
        {
            "device": checkpoint.device,
            "boot": checkpoint.boot,
            "first_seq": checkpoint.first,
            "last_seq": checkpoint.last,
            "head": checkpoint.head,
            "gaps": checkpoint.gaps,
        }
    )


def sign_checkpoint(checkpoint: Checkpoint, signers: Sequence[Signer]) -> bytes:
    """Return the checkpoint's line for the log, signed by every one of ``signers``."""
    from tidegate.crypto.cose import sign_envelope  # heavy: only for who signs

    envelope = sign_envelope(CONTEXT, encode_checkpoint(checkpoint), signers)
    return encode_canonical(
        {"boot": checkpoint.boot, "envelope": base64.b64encode(envelope).decode(), "last": checkpoint.last}
    )


def parse_checkpoint_line(line: StoredLine) -> CheckpointLine:
    """Return the line's parts, unverified, or raise ``events.checkpoint.invalid``."""
    try:
        if len(line.raw) > MAX_CHECKPOINT_LINE_BYTES:
            raise _invalid(line, "it is too long")
        return _decoder.decode(line.raw)
    except (msgspec.MsgspecError, ValueError) as error:
        raise _invalid(line, "it is no checkpoint line") from error


def verify_checkpoint(line: StoredLine, trust: TrustPolicy) -> Checkpoint:
    """Return the checkpoint that ``trust`` vouches for, or raise ``events.checkpoint.invalid`` naming the line.

    The cause (unknown key, broken signature, wrong role, …) is in the field ``cause``. Whether the chain agrees with
    the checkpoint is not checked.
    """
    from tidegate.crypto.cose import verify_envelope  # heavy: only for who verifies

    parts = parse_checkpoint_line(line)
    try:
        envelope = base64.b64decode(parts.envelope, validate=True)
        payload = verify_envelope(envelope, context=CONTEXT, trust=trust).payload
        checkpoint = _parse_payload(payload)
    except Rejected as error:
        raise _invalid(line, error.message, cause=error.code) from error
    except (binascii.Error, ValueError) as error:
        raise _invalid(line, "it is not base64") from error
    if checkpoint is None:
        raise _invalid(line, "its payload is no checkpoint")
    if (parts.boot, parts.last) != (checkpoint.boot, checkpoint.last):
        raise _invalid(line, "its plain numbers are not those that were signed")
    return checkpoint


def _parse_payload(payload: bytes) -> Checkpoint | None:
    match cbor.decode(payload, limit_bytes=_MAX_PAYLOAD_BYTES):
        case {
            "device": str() as device,
            "boot": str() as boot,
            "first_seq": int() as first,
            "last_seq": int() as last,
            "head": bytes() as head,
            "gaps": bytes() as gaps,
            **rest,
        } if not rest and 1 <= first <= last and len(head) == HASH_BYTES and len(gaps) in (0, HASH_BYTES):
            return Checkpoint(device=device, boot=boot, first=first, last=last, head=head, gaps=gaps)
    return None


def _invalid(line: StoredLine, why: str, **fields: str) -> CheckpointInvalid:
    return CheckpointInvalid(
        f"checkpoint in {line.file} line {line.number}: {why}", file=line.file, line=line.number, **fields
    )
