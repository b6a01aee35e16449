"""Register values that an authority signed: what a TPM key's policy is, and the statements that satisfy it. Pure.

A key bound to a PCR authority holds no register values. Its policy names the authority's public key and a reference
(product and registers); whoever has the private half signs, for each system that is shipped, the policy "these
registers hold these values". The TPM itself verifies that signature and compares the registers; what is verified here
before is for telling people what is wrong. Read ``choose_statement`` first.

Source: TPM 2.0 Library Part 1, §19.7 (policies); Part 3, §23.7 (PolicyPCR), §23.16 (PolicyAuthorize), §23.17
(PolicyAuthValue). Bytes: docs/formats/tpm2.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.crypto import cbor
from tidegate.crypto.errors import CborLimit, CborMalformed, SignatureInvalid
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, Signer
from tidegate.keys.errors import CapabilityMissing, PcrStatementMissing, PcrStatementRefused
from tidegate.keys.store import AUTHORITY_ALGORITHMS, MAX_PCR, PcrAuthority, is_name

MAX_STATEMENT_BYTES = 2048  # 24 registers and an RSA-4096 signature have 1.5 KiB
MAX_STATEMENTS = 256  # in one folder: one for each system a device may boot, for some products
MAX_VERSION = (1 << 32) - 1
PCR_BYTES = 32
ALG_SHA256, ALG_SHA384, ALG_RSAPSS, ALG_ECDSA = 0x000B, 0x000C, 0x0016, 0x0018
_ALG_RSA, _ALG_ECC, _ALG_NULL = 0x0001, 0x0023, 0x0010
_USER_WITH_AUTH, _SIGN = 1 << 6, 1 << 18
_CC_POLICY_AUTHORIZE, _CC_POLICY_AUTH_VALUE, _CC_POLICY_PCR = 0x16A, 0x16B, 0x17F
_KEY_ID_BYTES = 32
_FORMAT = "tidegate.pcr-statement.v1"
_REFERENCE = b"tidegate pcr authority v1\0"
_PROOF = object()

# algorithm -> curve (TPM_ECC_CURVE), hash, bytes of a coordinate
ECC = {
    SignatureAlgorithm.ECDSA_P256: (0x0003, ALG_SHA256, 32),
    SignatureAlgorithm.ECDSA_P384: (0x0004, ALG_SHA384, 48),
}
HASHES: dict[int, Callable[[bytes], Any]] = {ALG_SHA256: hashlib.sha256, ALG_SHA384: hashlib.sha384}


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What a statement claims; nothing in it counts before its signature does."""

    product: str
    key_id: bytes
    pcrs: dict[int, bytes]
    signature: bytes
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedStatement:
    """Register values that the authority of a key allows; only ``verify_statement`` makes one."""

    authority: PcrAuthority
    pcrs: dict[int, bytes]
    signature: bytes
    version: int | None
    _proof: object

    def __post_init__(self) -> None:
        if self._proof is not _PROOF:
            raise TypeError("a VerifiedStatement comes from verify_statement alone")


# ---- policies ------------------------------------------------------------------------------------------------


def encode_pcr_selection(pcrs: frozenset[int]) -> bytes:
    """Return the TPML_PCR_SELECTION of registers of the SHA-256 bank."""
    bits = sum(1 << pcr for pcr in pcrs)
    return (1).to_bytes(4, "big") + _u16(ALG_SHA256) + b"\x03" + bits.to_bytes(3, "little")


def values_digest(pcrs: Mapping[int, bytes]) -> bytes:
    """Return the digest over register values that TPM2_PolicyPCR compares."""
    return hashlib.sha256(b"".join(pcrs[pcr] for pcr in sorted(pcrs))).digest()


def pcr_policy(pcrs: Mapping[int, bytes]) -> bytes:
    """Return the policy digest after TPM2_PolicyPCR alone."""
    return _extended(bytes(32), _CC_POLICY_PCR, encode_pcr_selection(frozenset(pcrs)) + values_digest(pcrs))


def authorized_policy(authority: PcrAuthority, pcrs: frozenset[int], version: int | None) -> bytes:
    """Return the policy digest after TPM2_PolicyAuthorize: the same whatever values the authority allowed.

    The command begins anew from zeros and extends twice: by the authority's name, and by the reference alone.
    """
    named = _extended(bytes(32), _CC_POLICY_AUTHORIZE, authority_name(authority.key))
    return hashlib.sha256(named + policy_reference(authority.product, pcrs, version)).digest()


def with_auth_value(policy: bytes) -> bytes:
    """Return ``policy`` extended by TPM2_PolicyAuthValue: the key's PIN has to be given as well."""
    return _extended(policy, _CC_POLICY_AUTH_VALUE, b"")


def policy_reference(product: str, pcrs: frozenset[int], version: int | None) -> bytes:
    """Return the policyRef, which the TPM compares: another product, set of registers or version has another."""
    numbered = b"" if version is None else version.to_bytes(4, "big")
    return hashlib.sha256(_REFERENCE + product.encode() + b"\0" + encode_pcr_selection(pcrs) + numbered).digest()


def authority_area(key: PublicKey) -> bytes:
    """Return the TPMT_PUBLIC under which a TPM loads the authority's public key: it verifies this one scheme.

    Raises ``keys.capability.missing`` for an algorithm that no TPM has.
    """
    hashed = _hash_of(key.algorithm)
    kind = _ALG_RSA if key.algorithm is SignatureAlgorithm.RSA_PSS else _ALG_ECC
    head = _u16(kind) + _u16(hashed) + (_USER_WITH_AUTH | _SIGN).to_bytes(4, "big") + _sized(b"") + _u16(_ALG_NULL)
    if kind == _ALG_RSA:
        scheme = _u16(ALG_RSAPSS) + _u16(hashed)
        return head + scheme + _u16(8 * len(key.raw)) + (0).to_bytes(4, "big") + _sized(key.raw)  # exponent: 65537
    curve, _, size = ECC[key.algorithm]
    scheme = _u16(ALG_ECDSA) + _u16(hashed) + _u16(curve) + _u16(_ALG_NULL)
    return head + scheme + _sized(key.raw[1 : 1 + size]) + _sized(key.raw[1 + size :])


def authority_name(key: PublicKey) -> bytes:
    """Return the TPM's name of the authority's public key."""
    hashed = _hash_of(key.algorithm)
    return _u16(hashed) + bytes(HASHES[hashed](authority_area(key)).digest())


def authorized_message(product: str, pcrs: Mapping[int, bytes], version: int | None) -> bytes:
    """Return what the authority signs: approved policy and reference; the signature's own hash goes over it."""
    return pcr_policy(pcrs) + policy_reference(product, frozenset(pcrs), version)


def message_digest(statement: VerifiedStatement) -> bytes:
    """Return the aHash of TPM2_PolicyAuthorize; the hash is that of the authority's name and of its signature."""
    message = authorized_message(statement.authority.product, statement.pcrs, statement.version)
    return bytes(HASHES[_hash_of(statement.authority.key.algorithm)](message).digest())


# ---- statements ----------------------------------------------------------------------------------------------


def sign_statement(signer: Signer, product: str, pcrs: Mapping[int, bytes], *, version: int | None = None) -> bytes:
    """Return the statement that keys of ``product`` may be used while the registers hold ``pcrs`` (32 bytes each).

    One with a ``version`` (1 to 2^32 - 1) is for keys with a floor and ends where the device's counter is above it;
    one without is for keys without a floor and valid for ever: there is no taking back. Raises
    ``keys.capability.missing`` for a key that no TPM can verify, ``keys.pcr.statement`` for values, registers, a
    version or product that are none; what the signer raises.
    """
    public = signer.public_key
    _hash_of(public.algorithm)
    _require_claims(product, pcrs, version)
    statement = Statement(
        product=product,
        key_id=public.key_id.digest,
        pcrs=dict(pcrs),
        signature=signer.sign(authorized_message(product, pcrs, version)),
        version=version,
    )
    authority = PcrAuthority(key=public, product=product, floor=None if version is None else "any")
    verify_statement(statement, authority=authority, pcrs=frozenset(pcrs))
    return encode_statement(statement)


def encode_statement(statement: Statement) -> bytes:
    """Return the file of a statement."""
    return cbor.encode(
        {
            "format": _FORMAT,
            "product": statement.product,
            "key_id": statement.key_id,
            "pcrs": statement.pcrs,
            "version": statement.version,
            "signature": statement.signature,
        }
    )


def parse_statement(raw: bytes) -> Statement:
    """Return what a statement claims, or raise ``keys.pcr.statement``; its signature is not looked at."""
    try:
        document = cbor.decode(raw, limit_bytes=MAX_STATEMENT_BYTES)
    except (CborMalformed, CborLimit) as error:
        raise _refused(f"it is damaged: {error.message}", "form") from error
    match document:
        case {
            "format": str(form),
            "product": str(product),
            "key_id": bytes(key_id),
            "pcrs": dict(pcrs),
            "version": int() | None as version,
            "signature": bytes(signature),
            **rest,
        } if form == _FORMAT and not rest and len(key_id) == _KEY_ID_BYTES:
            values = {pcr: value for pcr, value in pcrs.items() if isinstance(pcr, int) and isinstance(value, bytes)}
            if len(values) == len(pcrs):
                _require_claims(product, values, version)
                return Statement(product=product, key_id=key_id, pcrs=values, signature=signature, version=version)
    raise _refused("it is no statement of this version", "form")


def verify_statement(statement: Statement, *, authority: PcrAuthority, pcrs: frozenset[int]) -> VerifiedStatement:
    """Return the register values that ``authority`` allows for its product's keys bound to registers ``pcrs``.

    Duties, in this order; each refusal is ``keys.pcr.statement`` with the field ``check``:
    1. it is for this product (``product``);
    2. it is for exactly these registers (``registers``);
    3. it names this authority (``authority``);
    4. it has a version if the keys have a floor, and none if they have none (``version``);
    5. the signature over approved policy and reference is the authority's (``signature``).

    Not checked: whether the registers hold these values, and whether the version is at or above the floor.
    """
    if statement.product != authority.product:  # 1
        raise _refused(f"it is for {statement.product!r}, not for {authority.product!r}", "product")
    if frozenset(statement.pcrs) != pcrs:  # 2
        raise _refused(f"it is for registers {_listed(statement.pcrs)}, not for {_listed(pcrs)}", "registers")
    if statement.key_id != authority.key.key_id.digest:  # 3
        raise _refused(f"another authority made it than {authority.key.key_id}", "authority")
    if (statement.version is None) != (authority.floor is None):  # 4
        raise _refused("a key with a floor wants a version, one without wants none", "version")
    message = authorized_message(statement.product, statement.pcrs, statement.version)
    try:
        authority.key.verify(statement.signature, message)  # 5
    except SignatureInvalid as error:
        raise _refused(f"its signature is not that of authority {authority.key.key_id}", "signature") from error
    return VerifiedStatement(
        authority=authority,
        pcrs=dict(statement.pcrs),
        signature=statement.signature,
        version=statement.version,
        _proof=_PROOF,
    )


def choose_statement(
    files: Iterable[tuple[str, bytes]],
    *,
    authority: PcrAuthority,
    current: Mapping[int, bytes],
    versions: Container[int | None],
) -> VerifiedStatement:
    """Return the first statement among ``files`` (name and content) that allows the ``current`` register values.

    ``versions`` are those from the floor on; ``(None,)`` for a key without a floor.

    Several may lie there: of other systems, products and authorities. What is damaged beside a good one does no harm.
    Raises ``keys.pcr.statement`` if one claims to be the wanted one and its signature does not hold, else
    ``keys.pcr.no-statement``, which counts what is there and shows the registers.
    """
    counts = {"other_values": 0, "other_keys": 0, "other_versions": 0, "damaged": 0}
    forged: PcrStatementRefused | None = None
    for name, raw in files:
        try:
            statement = parse_statement(raw)
            verified = verify_statement(statement, authority=authority, pcrs=frozenset(current))
        except PcrStatementRefused as error:
            check = error.fields["check"]
            counts["damaged" if check in ("form", "signature") else "other_keys"] += 1
            if check == "signature" and statement.pcrs == current:
                forged = PcrStatementRefused(f"{name}: {error.message}", file=name, check=check)
            continue
        if verified.pcrs == current and verified.version in versions:
            return verified
        counts["other_versions" if verified.pcrs == current else "other_values"] += 1
    raise forged or _none_fits(authority, current, counts)


def _none_fits(authority: PcrAuthority, current: Mapping[int, bytes], counts: dict[str, int]) -> PcrStatementMissing:
    told = "; ".join(f"PCR {pcr} is {current[pcr].hex()}" for pcr in sorted(current))
    return PcrStatementMissing(
        f"no statement of authority {authority.key.key_id} for {authority.product!r} allows this state: {told} "
        f"(statements there: {counts['other_values']} for other values, {counts['other_versions']} of a version below "
        f"the floor or beyond what the key knows, {counts['other_keys']} for other keys, {counts['damaged']} damaged)",
        **counts,
        **{f"pcr{pcr}_current": current[pcr].hex() for pcr in sorted(current)},
    )


def _require_claims(product: str, pcrs: Mapping[int, bytes], version: int | None) -> None:
    if version is not None and (isinstance(version, bool) or not 1 <= version <= MAX_VERSION):
        raise _refused(f"a version is a number from 1 to {MAX_VERSION}", "form")
    if not is_name(product):
        raise _refused("its product has no name that products have", "form")
    if not pcrs or not all(0 <= pcr <= MAX_PCR for pcr in pcrs):
        raise _refused(f"it is about at least one register from 0 to {MAX_PCR}", "form")
    if any(len(value) != PCR_BYTES for value in pcrs.values()):
        raise _refused(f"the value of a register has {PCR_BYTES} bytes", "form")


def _refused(why: str, check: str) -> PcrStatementRefused:
    return PcrStatementRefused(f"the PCR statement is refused: {why}", check=check)


def _hash_of(algorithm: SignatureAlgorithm) -> int:
    if algorithm not in AUTHORITY_ALGORITHMS:
        raise CapabilityMissing(f"no TPM verifies {algorithm.label} signatures", algorithm=algorithm.label)
    return ECC[algorithm][1] if algorithm in ECC else ALG_SHA256


def _extended(policy: bytes, command: int, argument: bytes) -> bytes:
    return hashlib.sha256(policy + command.to_bytes(4, "big") + argument).digest()


def _listed(pcrs: Iterable[int]) -> str:
    return ",".join(map(str, sorted(pcrs)))


def _u16(number: int) -> bytes:
    return number.to_bytes(2, "big")


def _sized(data: bytes) -> bytes:
    return _u16(len(data)) + data
