"""Policies over a counter in the TPM's NV memory, as digests: "the counter holds at most this".

Two things end by such a counter: old statements of a PCR authority (``tpm2_floor.py``), and a revocable key, which has
a counter of its own that is incremented when the key is destroyed. A TPM starts a counter above every count that any
counter of it ever had, so deleting it and making it again ends the same things.

Pure. Source: TPM 2.0 Library Part 2, §13.5 (TPMS_NV_PUBLIC); Part 3, §23.9 (PolicyNV).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tidegate.keys.pcr_policy import ALG_SHA256

COUNT_BYTES = 8
AUTH_BYTES = 16
WRITTEN = 1 << 29
UNSIGNED_LE = 0x0009  # TPM_EO: what the index holds is at most the operand
_AUTH_WRITE, _COUNTER, _OWNER_READ, _AUTH_READ, _NO_DA = 1 << 2, 1 << 4, 1 << 17, 1 << 18, 1 << 25
COUNT_ATTRIBUTES = _AUTH_WRITE | _AUTH_READ | _OWNER_READ | _NO_DA | _COUNTER
_CC_POLICY_NV = 0x149


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifeline:
    """The counter that a revocable key is to live by: its NV index, and what authorises incrementing it (16 bytes)."""

    index: int
    auth: bytes

    @property
    def label(self) -> bytes:
        """Return what the index carries as its policy: who knows the authorisation knows whose index it is."""
        return hashlib.sha256(b"tidegate key revocation v1\0" + self.auth).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation(Lifeline):
    """The counter of a revocable key; ``count`` is the raw count above which the key is dead."""

    count: int


def nv_name(index: int, label: bytes) -> bytes:
    """Return the TPM's name of a counter's index: it says that it is a counter, where, and of which label."""
    public = index.to_bytes(4, "big") + _u16(ALG_SHA256) + (COUNT_ATTRIBUTES | WRITTEN).to_bytes(4, "big")
    public += _u16(len(label)) + label + _u16(COUNT_BYTES)
    return _u16(ALG_SHA256) + hashlib.sha256(public).digest()


def with_count_at_most(policy: bytes, name: bytes, operand: bytes) -> bytes:
    """Return ``policy`` extended by TPM2_PolicyNV: the index of this name holds at most ``operand``."""
    arguments = hashlib.sha256(operand + _u16(0) + _u16(UNSIGNED_LE)).digest()
    return hashlib.sha256(policy + _CC_POLICY_NV.to_bytes(4, "big") + arguments + name).digest()


def revocable_policy(policy: bytes, revocation: Revocation) -> bytes:
    """Return ``policy`` (empty: none yet) extended so that it ends with the revocation's counter."""
    name = nv_name(revocation.index, revocation.label)
    return with_count_at_most(policy or bytes(32), name, revocation.count.to_bytes(COUNT_BYTES, "big"))


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "big")
