"""What opens a TPM key that is bound to registers: the values of its birth, or a statement of its PCR authority.

Touches: the TPM. The deciding half is ``pcr_policy.py``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.keys.errors import CapabilityMissing, PcrMismatch, PcrStatementRefused, StoreMalformed
from tidegate.keys.pcr_policy import (
    ALG_ECDSA,
    ALG_RSAPSS,
    ECC,
    VerifiedStatement,
    authority_area,
    authority_name,
    choose_statement,
    message_digest,
    pcr_policy,
    policy_reference,
    values_digest,
)
from tidegate.keys.store import KeyPolicy, PcrAuthority
from tidegate.keys.tpm2_commands import selection
from tidegate.keys.tpm2_counter import Counter
from tidegate.keys.tpm2_device import (
    RC_PCR_CHANGED,
    RC_POLICY,
    RC_POLICY_FAIL,
    RC_VALUE,
    Chip,
    public_of,
    response_code,
    tss,
)
from tidegate.keys.tpm2_floor import Floor, either, floor_branches, operand
from tidegate.keys.tpm2_nvpolicy import UNSIGNED_LE
from tidegate.keys.tpm2_records import CounterRecord, KeyRecord

Statements = Callable[[], list[tuple[str, bytes]]]
_RC_SIGNATURE = 0x9B
_FORMAT_ONE = 0x80  # of codes that find fault with a parameter; the others are about the TPM's state


@dataclass(frozen=True, slots=True)
class Approval:
    """A statement that the TPM itself found to be signed by the authority, and the ticket by which it knows that."""

    statement: VerifiedStatement
    ticket: Any


def require_authority(chip: Chip, policy: KeyPolicy) -> None:
    """Return if this TPM can load the policy's PCR authority, if it has one; else ``keys.capability.missing``."""
    if policy.pcr_authority is not None:
        with _loaded(chip, policy.pcr_authority.key):
            pass


def floor_at_birth(chip: Chip, policy: KeyPolicy, known: CounterRecord | None) -> Floor | None:
    """Return the floor of a new key, whose counter has counted once at least; ``known`` is what the folder says of it.

    Raises ``keys.store.malformed`` for a counter that is not the folder's, or that was not made yet.
    """
    if policy.pcr_authority is None or policy.pcr_authority.floor is None:
        return None
    name = policy.pcr_authority.floor
    counter = Counter(chip, name)
    first, record = counter.read(known), counter.record()
    if record is None or not first:
        raise StoreMalformed(f"the floor's counter {name!r} was not made", counter=name)
    return Floor(counter=name, index=record.index, base=record.base, first=first)


def find_approval(chip: Chip, record: KeyRecord, statements: Statements) -> Approval | None:
    """Return what allows the present register values, ``None`` for a key without a PCR authority.

    Nothing stays loaded: a bare TPM has room for the storage key and one key. Raises ``keys.pcr.no-statement``,
    ``keys.pcr.statement``.
    """
    authority = record.spec.policy.pcr_authority
    return None if authority is None else approve(chip, _choose(chip, record, authority, statements))


def _choose(chip: Chip, record: KeyRecord, authority: PcrAuthority, statements: Statements) -> VerifiedStatement:
    current, floor = chip.pcr_values(record.spec.policy.pcrs), record.floor
    versions: Container[int | None] = (None,)
    if floor is not None:
        count = Counter(chip, floor.counter).read(CounterRecord(index=floor.index, base=floor.base))
        versions = range(max(count, floor.first), floor.versions.stop)
    return choose_statement(statements(), authority=authority, current=current, versions=versions)


def approve(chip: Chip, statement: VerifiedStatement) -> Approval:
    """Return the statement with the TPM's ticket for it; raise ``keys.pcr.statement`` if the TPM finds no signature."""
    key = statement.authority.key
    try:
        with _loaded(chip, key) as handle:
            ticket = chip.esys.verify_signature(handle, message_digest(statement), _signature(key, statement.signature))
    except tss.TSS2_Exception as error:
        if response_code(error) != _RC_SIGNATURE:
            raise
        raise PcrStatementRefused("the TPM refuses the statement's signature", check="signature") from error
    return Approval(statement=statement, ticket=ticket)


def satisfy(chip: Chip, session: Any, record: KeyRecord, approval: Approval | None) -> None:
    """Bring a policy session to the digest that the key asks for, as far as registers go; the TPM compares them."""
    if approval is None:
        chip.esys.policy_pcr(session, values_digest(record.pcrs), selection(record.pcrs))
        return
    statement, authority = approval.statement, approval.statement.authority
    reference = policy_reference(authority.product, frozenset(statement.pcrs), statement.version)
    chip.esys.policy_pcr(session, values_digest(statement.pcrs), selection(statement.pcrs))
    chip.esys.policy_authorize(
        session,
        pcr_policy(statement.pcrs),
        tss.TPM2B_NAME(authority_name(authority.key)),
        approval.ticket,
        tss.TPM2B_NONCE(reference),
    )
    if record.floor is not None and statement.version is not None:
        _satisfy_floor(chip, session, record.floor, statement)


def _satisfy_floor(chip: Chip, session: Any, floor: Floor, statement: VerifiedStatement) -> None:
    """Have the TPM compare its counter with the statement's version, and go on from this branch to the key's policy."""
    index, version = chip.persistent(floor.index), statement.version or 0
    if index is None:
        raise StoreMalformed(f"the TPM has no counter {floor.counter!r}, the key has", counter=floor.counter)
    bound = tss.TPM2B_OPERAND(operand(floor, version))
    chip.esys.policy_nv(index, index, session, bound, tss.TPM2_EO(UNSIGNED_LE))
    groups = floor_branches(statement.authority, frozenset(statement.pcrs), floor)
    at = (version - floor.first) // len(groups[0])
    for branches in (groups[at], [either(group) for group in groups]):
        chip.esys.policy_or(session, tss.TPML_DIGEST([tss.TPM2B_DIGEST(one) for one in branches]))


def require_state(chip: Chip, error: Any, record: KeyRecord, statements: Statements) -> None:
    """Return if the TPM's ``error`` is not about registers, or they are as they have to be.

    Raises ``keys.pcr.mismatch`` naming those that changed since the key's birth, ``keys.pcr.no-statement``.
    """
    policy = record.spec.policy
    if not policy.pcrs or response_code(error) not in (RC_VALUE, RC_POLICY_FAIL, RC_PCR_CHANGED, RC_POLICY):
        return
    if policy.pcr_authority is not None:
        _choose(chip, record, policy.pcr_authority, statements)
    else:
        _require_registers(record.name, record.pcrs, chip.pcr_values(policy.pcrs))


def _require_registers(name: str, recorded: Mapping[int, bytes], current: Mapping[int, bytes]) -> None:
    wrong = [pcr for pcr in sorted(recorded) if current[pcr] != recorded[pcr]]
    if not wrong:
        return
    told = "; ".join(f"PCR {pcr} was {recorded[pcr].hex()}, is {current[pcr].hex()}" for pcr in wrong)
    fields = {f"pcr{pcr}_{kind}": values[pcr].hex() for pcr in wrong for kind, values in
              (("recorded", recorded), ("current", current))}  # fmt: skip
    listed = ",".join(map(str, wrong))
    raise PcrMismatch(f"key {name!r} is bound to another state: {told}", key=name, pcrs=listed, **fields)


@contextlib.contextmanager
def _loaded(chip: Chip, key: PublicKey) -> Iterator[Any]:
    """Load an authority's public key for the body: in the owner hierarchy, because the null one gives no tickets."""
    try:
        handle = chip.esys.load_external(public_of(authority_area(key)), None, tss.ESYS_TR.OWNER)
    except tss.TSS2_Exception as error:
        code = response_code(error)
        if code is None or not code & _FORMAT_ONE:
            raise
        told = f"this TPM takes no {key.algorithm.label} key like the authority's: {error}"
        raise CapabilityMissing(told, provider="tpm2") from error
    try:
        yield handle
    finally:
        with contextlib.suppress(tss.TSS2_Exception):
            chip.esys.flush_context(handle)


def _signature(key: PublicKey, raw: bytes) -> Any:
    if key.algorithm is SignatureAlgorithm.RSA_PSS:
        pss = tss.TPMS_SIGNATURE_RSA(hash=tss.TPM2_ALG.SHA256, sig=raw)
        return tss.TPMT_SIGNATURE(sigAlg=ALG_RSAPSS, signature=tss.TPMU_SIGNATURE(rsapss=pss))
    _, hashed, size = ECC[key.algorithm]
    pair = tss.TPMS_SIGNATURE_ECC(hash=hashed, signatureR=raw[:size], signatureS=raw[size:])
    return tss.TPMT_SIGNATURE(sigAlg=ALG_ECDSA, signature=tss.TPMU_SIGNATURE(ecdsa=pair))
