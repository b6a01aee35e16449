"""Quotes: a platform's signed measurements, verified without a TPM.

Read ``verify_quote`` first. Source: TPM 2.0 Library Part 2, §10.12 (TPMS_ATTEST) and Part 3, §18.4 (TPM2_Quote).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from tidegate.crypto.errors import SignatureInvalid
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.keys.errors import QuoteInvalid
from tidegate.keys.store import MAX_PCR, Quote

MAX_ATTEST_BYTES = 512  # a quote with SHA-512 everywhere and a 64-byte nonce has 251
MIN_NONCE_BYTES = 8
MAX_NONCE_BYTES = 32  # the least that every TPM takes as qualifying data
_MAGIC = 0xFF544347  # TPM_GENERATED_VALUE: a TPM signs nothing else that begins so with a restricted key
_ST_ATTEST_QUOTE = 0x8018
_ALG_SHA256 = 0x000B
_MAX_SIZED_BYTES = 68  # TPM2B_NAME and TPM2B_DATA: a hash identifier and 64 bytes, 66 and 68
_PCR_BYTES = 32
_PROOF = object()
# the hash of the signing scheme is also the hash over the registers
_HASHES = {
    SignatureAlgorithm.ECDSA_P256: hashlib.sha256,
    SignatureAlgorithm.ECDSA_P384: hashlib.sha384,
    SignatureAlgorithm.RSA_PSS: hashlib.sha256,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """The fields of a TPMS_ATTEST of a quote; nothing in it counts before its signature does."""

    qualified_signer: bytes
    nonce: bytes
    clock_ms: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    pcrs: frozenset[int]
    pcr_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedQuote:
    """Register values that a TPM vouched for in answer to our nonce; only ``verify_quote`` makes one."""

    pcrs: dict[int, bytes]
    attestation: Attestation
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedQuote comes from verify_quote alone")


def verify_quote(quote: Quote, *, key: PublicKey, nonce: bytes, expected: Mapping[int, bytes] | None) -> VerifiedQuote:
    """Return the register values that the TPM holding ``key`` had when it answered ``nonce``.

    Duties, in this order; each refusal is ``keys.quote.invalid``:
    1. the signature over the statement is ``key``'s;
    2. the statement is a TPM's own (magic) and a quote (type), in the one form that we ask for;
    3. it answers this nonce;
    4. it covers exactly the registers whose values came with it, and its digest is the digest of these values;
    5. the values are the ``expected`` ones (SHA-256 bank), where any are given; the message names each that differs.
       ``None`` says on purpose that the caller judges ``pcrs`` himself.

    Not checked: that ``key`` is a restricted key of a genuine TPM (a certificate or the factory's record says so; a key
    that signs anything could sign a forged statement), and the clock and reset count, which are returned.
    """
    try:
        key.verify(quote.signature, quote.attest)
    except SignatureInvalid as error:
        raise QuoteInvalid("the quote's signature is not this key's", check="signature") from error
    attestation = parse_attest(quote.attest)
    if not MIN_NONCE_BYTES <= len(nonce) <= MAX_NONCE_BYTES or not hmac.compare_digest(attestation.nonce, nonce):
        raise QuoteInvalid("the quote answers another nonce: it was replayed or mixed up", check="nonce")
    _check_values(quote.pcrs, attestation, key.algorithm)
    if expected is not None:
        _check_expected(quote.pcrs, expected)
    return VerifiedQuote(pcrs=dict(quote.pcrs), attestation=attestation, _proof=_PROOF)


def pcr_digest(algorithm: SignatureAlgorithm, pcrs: Mapping[int, bytes]) -> bytes:
    """Return the digest that a quote signed with a key of ``algorithm`` has over these register values."""
    if algorithm not in _HASHES:
        raise QuoteInvalid(f"no TPM quotes with {algorithm.label}", check="algorithm")
    return _HASHES[algorithm](b"".join(pcrs[pcr] for pcr in sorted(pcrs))).digest()


def _check_values(pcrs: Mapping[int, bytes], attestation: Attestation, algorithm: SignatureAlgorithm) -> None:
    if frozenset(pcrs) != attestation.pcrs or any(len(value) != _PCR_BYTES for value in pcrs.values()):
        raise QuoteInvalid("the quote covers other registers than the values that came with it", check="selection")
    if not hmac.compare_digest(pcr_digest(algorithm, pcrs), attestation.pcr_digest):
        raise QuoteInvalid("the register values are not those that the TPM signed", check="digest")


def _check_expected(pcrs: Mapping[int, bytes], expected: Mapping[int, bytes]) -> None:
    wrong = sorted(pcr for pcr in expected if pcrs.get(pcr) != expected[pcr])
    if wrong or not expected:
        told = ", ".join(f"PCR {pcr} is {_shown(pcrs.get(pcr))}, not {_shown(expected[pcr])}" for pcr in wrong)
        names = ",".join(map(str, wrong))
        raise QuoteInvalid(told or "no register value is expected: nothing would be checked", check="pcrs", pcrs=names)


def _shown(value: bytes | None) -> str:
    return value.hex() if value is not None else "not in the quote"


def parse_attest(raw: bytes) -> Attestation:
    """Return the fields of a quote over registers of the SHA-256 bank, or raise ``keys.quote.invalid``."""
    if len(raw) > MAX_ATTEST_BYTES:
        raise _malformed("it is longer than any quote")
    reader = _Reader(raw)
    if reader.number(4) != _MAGIC or reader.number(2) != _ST_ATTEST_QUOTE:
        raise _malformed("it is no quote of a TPM")
    signer, nonce = reader.sized(), reader.sized()
    clock, resets, restarts, safe = reader.number(8), reader.number(4), reader.number(4), reader.number(1)
    firmware = reader.number(8)
    if safe > 1:
        raise _malformed("its clock is neither safe nor unsafe")
    if reader.number(4) != 1 or reader.number(2) != _ALG_SHA256:
        raise _malformed("it covers another bank of registers than SHA-256")
    width = reader.number(1)
    if not 1 <= width <= 4:
        raise _malformed("its selection has an impossible size")
    bits = int.from_bytes(reader.take(width), "little")
    digest = reader.sized()
    reader.end()
    if bits >> (MAX_PCR + 1) or not bits:
        raise _malformed("it covers registers that do not exist")
    return Attestation(
        qualified_signer=signer,
        nonce=nonce,
        clock_ms=clock,
        reset_count=resets,
        restart_count=restarts,
        safe=bool(safe),
        firmware_version=firmware,
        pcrs=frozenset(pcr for pcr in range(MAX_PCR + 1) if bits >> pcr & 1),
        pcr_digest=digest,
    )


def _malformed(why: str) -> QuoteInvalid:
    return QuoteInvalid(f"the quote's statement is malformed: {why}", check="form")


class _Reader:
    """A position in hostile bytes."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._position = 0

    def take(self, count: int) -> bytes:
        piece = self._raw[self._position : self._position + count]
        if len(piece) != count:
            raise _malformed("it ends early")
        self._position += count
        return piece

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "big")

    def sized(self) -> bytes:
        size = self.number(2)
        if size > _MAX_SIZED_BYTES:
            raise _malformed("a field is longer than its type allows")
        return self.take(size)

    def end(self) -> None:
        if self._position != len(self._raw):
            raise _malformed("bytes follow its end")
