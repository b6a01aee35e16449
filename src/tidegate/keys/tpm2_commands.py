"""The TPM commands of a key store in our terms: digests and raw signatures, registers of the SHA-256 bank.

Touches: the TPM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tidegate.crypto.errors import SignatureInvalid
from tidegate.crypto.signing import RSA_GENERATED_BITS, PublicKey, SignatureAlgorithm
from tidegate.keys.attest import parse_attest, pcr_digest
from tidegate.keys.errors import CapabilityMissing, KeyExists, ProviderFailed
from tidegate.keys.pcr_policy import ALG_ECDSA, ALG_RSAPSS, ALG_SHA256, ECC, HASHES, PCR_BYTES
from tidegate.keys.store import MAX_PCR, KeyPurpose, Quote
from tidegate.keys.tpm2_device import RC_NV_DEFINED, Chip, response_code, tss

_ALG_RSA = 0x0001
_MAX_QUOTES = 3  # when the registers change between quote and reading


@dataclass(frozen=True, slots=True)
class Use:
    """A loaded key and the session that authorises its use."""

    handle: Any
    session: Any


class Tpm2Signer:
    """Signs with a key inside the TPM; the message is hashed here, the TPM sees its digest."""

    def __init__(self, public_key: PublicKey, sign: Callable[[bytes], bytes]) -> None:
        self._public_key = public_key
        self._sign = sign

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """Return the raw signature over ``message``; raises ``keys.pcr.mismatch``, ``keys.pin.*``."""
        return self._sign(message)


def algorithms_of(chip: Chip) -> frozenset[SignatureAlgorithm]:
    """Return what this TPM signs with: it lists its algorithms and curves, and is asked about the size of RSA keys."""
    _, curves = chip.esys.get_capability(tss.TPM2_CAP.ECC_CURVES, 0, 64)
    known = {int(curve) for curve in curves.data.eccCurves}
    found = {algorithm for algorithm, (curve, _, _) in ECC.items() if curve in known}
    _, answer = chip.esys.get_capability(tss.TPM2_CAP.ALGS, _ALG_RSA, 64)
    names = {int(one.alg) for one in answer.data.algorithms}
    if {_ALG_RSA, ALG_RSAPSS} <= names and _takes_rsa(chip):
        found.add(SignatureAlgorithm.RSA_PSS)
    if ALG_ECDSA not in names:
        found -= set(ECC)
    return frozenset(found)


def _takes_rsa(chip: Chip) -> bool:
    detail = tss.TPMS_RSA_PARMS(
        symmetric=tss.TPMT_SYM_DEF_OBJECT(algorithm=tss.TPM2_ALG.NULL),
        scheme=tss.TPMT_RSA_SCHEME(scheme=tss.TPM2_ALG.NULL),
        keyBits=RSA_GENERATED_BITS,
        exponent=0,
    )
    parameters = tss.TPMT_PUBLIC_PARMS(type=tss.TPM2_ALG.RSA, parameters=tss.TPMU_PUBLIC_PARMS(rsaDetail=detail))
    try:
        chip.esys.test_parms(parameters)
    except tss.TSS2_Exception:  # TPM_RC_VALUE by the standard, other codes by some chips; all mean no
        return False
    return True


def command_sign(chip: Chip, use: Use, algorithm: SignatureAlgorithm, message: bytes) -> bytes:
    """Return the raw signature over ``message``, whose digest is made here."""
    rsa = algorithm is SignatureAlgorithm.RSA_PSS
    number = ALG_SHA256 if rsa else ECC[algorithm][1]
    hashed = tss.TPMS_SCHEME_HASH(hashAlg=number)
    details = tss.TPMU_SIG_SCHEME(rsapss=hashed) if rsa else tss.TPMU_SIG_SCHEME(ecdsa=hashed)
    scheme = tss.TPMT_SIG_SCHEME(scheme=ALG_RSAPSS if rsa else ALG_ECDSA, details=details)
    ticket = tss.TPMT_TK_HASHCHECK(tag=tss.TPM2_ST.HASHCHECK, hierarchy=tss.TPM2_RH.NULL)
    digest = tss.TPM2B_DIGEST(HASHES[number](message).digest())
    return _raw(chip.esys.sign(use.handle, digest, scheme, ticket, session1=use.session))


def command_quote(chip: Chip, use: Use, nonce: bytes, pcrs: frozenset[int]) -> tuple[bytes, bytes]:
    """Return the TPMS_ATTEST over ``pcrs`` and its raw signature."""
    attest, signature = chip.esys.quote(use.handle, selection(pcrs), tss.TPM2B_DATA(nonce), session1=use.session)
    return bytes(attest), _raw(signature)


def require_salt(chip: Chip, use: Use, key: PublicKey, purpose: KeyPurpose) -> None:
    """Raise ``keys.capability.missing`` if the TPM salts RSA-PSS otherwise than TLS 1.3 and COSE want it."""
    try:
        if purpose is KeyPurpose.SIGN:
            key.verify(command_sign(chip, use, key.algorithm, b"salt"), b"salt")
        else:
            attest, signature = command_quote(chip, use, bytes(8), frozenset({0}))
            key.verify(signature, attest)
    except SignatureInvalid as error:
        raise CapabilityMissing("this TPM's RSA-PSS salt has not 32 bytes", provider="tpm2") from error


def quote_with_values(chip: Chip, use: Use, key: PublicKey, nonce: bytes, pcrs: frozenset[int]) -> Quote:
    """Return a quote and the values that belong to it, though registers may change between the two commands."""
    for _ in range(_MAX_QUOTES):
        attest, signature = command_quote(chip, use, nonce, pcrs)
        values = chip.pcr_values(pcrs)
        if parse_attest(attest).pcr_digest == pcr_digest(key.algorithm, values):
            return Quote(attest=attest, signature=signature, pcrs=values)
    raise ProviderFailed("the platform's registers change while they are quoted")


def extend_pcr(chip: Chip, pcr: int, digest: bytes) -> None:
    """Extend a register of the SHA-256 bank."""
    one = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))
    chip.esys.pcr_extend(tss.ESYS_TR(pcr), tss.TPML_DIGEST_VALUES([one]))


def persist_key(chip: Chip, loaded: Any, name: bytes, handle: int) -> None:
    """Keep a loaded key at a persistent handle; raise ``keys.key.exists`` if another one is there."""
    try:
        chip.esys.evict_control(tss.ESYS_TR.OWNER, loaded, handle, session1=chip.owner_session())
    except tss.TSS2_Exception as error:
        there = chip.persistent(handle) if response_code(error) == RC_NV_DEFINED else None
        if there is None:
            raise
        if chip.name(there) != name:
            raise KeyExists(f"another key is persistent at 0x{handle:x}", handle=handle) from error


def evict_key(chip: Chip, name: bytes, handle: int) -> None:
    """Remove a persistent key, if it is this one that is there."""
    there = chip.persistent(handle)
    if there is not None and chip.name(there) == name:
        chip.esys.evict_control(tss.ESYS_TR.OWNER, there, handle, session1=chip.owner_session())


def selection(pcrs: Iterable[int]) -> str:
    """Return the library's text for registers of the SHA-256 bank."""
    return "sha256:" + ",".join(map(str, sorted(pcrs)))


def check_pcrs(pcrs: frozenset[int]) -> None:
    """Return if these registers exist, else raise ``keys.capability.missing``."""
    if not pcrs or not all(0 <= pcr <= MAX_PCR for pcr in pcrs):
        raise CapabilityMissing(f"name at least one register; they have the numbers 0 to {MAX_PCR}", provider="tpm2")


def check_digest(digest: bytes) -> None:
    """Return if a register can be extended by ``digest``, else raise ``keys.capability.missing``."""
    if len(digest) != PCR_BYTES:
        raise CapabilityMissing(f"registers are extended by {PCR_BYTES} bytes", provider="tpm2")


def _raw(signature: Any) -> bytes:
    """Return the raw form of a TPMT_SIGNATURE; r and s come without leading zeros."""
    if int(signature.sigAlg) == ALG_RSAPSS:
        return bytes(signature.signature.rsapss.sig)
    pair = signature.signature.ecdsa
    size = next(size for _, number, size in ECC.values() if number == int(pair.hash))
    return bytes(pair.signatureR).rjust(size, b"\0") + bytes(pair.signatureS).rjust(size, b"\0")
