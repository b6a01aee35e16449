"""Measured boot: each stage adds the digest of what it is about to start, before it starts it.

A register is extended as a TPM extends a PCR: new = SHA-256(old ‖ digest). Registers follow the usual use of PCRs: 0
first stage, 4 second stage, 8 manifest, 9 operating system and applications. The log replays to the same registers, so
a verifier elsewhere can tell what ran; until a TPM signs them (``KeyStore.quote``) the log is evidence only as far as
the second stage is trusted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

_REGISTER_BYTES = 32
Hex = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]


class Began(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="began"):
    """The first stage started: power came on, or the watchdog reset the board. Registers are zero again."""

    stage: Literal["stage1"] = "stage1"


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="measured"):
    """One digest that a stage took before it handed over."""

    stage: Literal["stage1", "stage2"]
    register: Annotated[int, msgspec.Meta(ge=0, le=23)]
    what: str
    digest: Hex


class Refusal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="refused"):
    """One thing that a stage did not start, with the code that says why."""

    stage: Literal["stage1", "stage2"]
    slot: str
    code: str
    message: str


class Started(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="started"):
    """What a boot ended in."""

    stage: Literal["stage1", "stage2"]
    slot: str
    version: str


BootLogEntry = Began | Measurement | Refusal | Started


def replay(entries: Iterable[BootLogEntry]) -> dict[int, str]:
    """Return each register, in hex, as the measurements since the last reset in a boot log leave it."""
    registers: dict[int, bytes] = {}
    for entry in entries:
        if isinstance(entry, Began):
            registers.clear()
        elif isinstance(entry, Measurement):
            old = registers.get(entry.register, bytes(_REGISTER_BYTES))
            registers[entry.register] = hashlib.sha256(old + bytes.fromhex(entry.digest)).digest()
    return {number: value.hex() for number, value in sorted(registers.items())}
