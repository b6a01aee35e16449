"""The counter by which a revocable key lives, in the TPM: made before the key, incremented when it is destroyed.

Touches: one NV index per revocable key. Its digests: ``tpm2_nvpolicy.py``. Bytes and limits: docs/formats/tpm2.md.
"""

from __future__ import annotations

from typing import Any

from tidegate.base.clock import Entropy
from tidegate.keys.errors import KeyMissing, PinMissing, PinRefused, ProviderFailed
from tidegate.keys.tpm2_device import (
    RC_AUTH_FAIL,
    RC_BAD_AUTH,
    RC_NV_SPACE,
    RC_POLICY,
    Chip,
    response_code,
    tss,
)
from tidegate.keys.tpm2_nvpolicy import (
    AUTH_BYTES,
    COUNT_ATTRIBUTES,
    COUNT_BYTES,
    UNSIGNED_LE,
    WRITTEN,
    Lifeline,
    Revocation,
)
from tidegate.keys.tpm2_records import REVOCATION_INDICES

_MAX_PROBES = 8  # at random among tens of thousands: a TPM has a few dozen indices


def choose_lifeline(chip: Chip, entropy: Entropy) -> Lifeline:
    """Return a lifeline at an index that is free."""
    for _ in range(_MAX_PROBES):
        drawn = int.from_bytes(entropy.random_bytes(4), "big") % len(REVOCATION_INDICES)
        index = REVOCATION_INDICES[drawn]
        if chip.persistent(index) is None:
            return Lifeline(index=index, auth=entropy.random_bytes(AUTH_BYTES))
    raise ProviderFailed("no NV index is free for a revocable key")


def begin_lifeline(chip: Chip, line: Lifeline) -> Revocation:
    """Make the counter and return where it stands. Needs the owner's authorisation.

    Raises ``keys.provider.failed`` if the TPM has no room for it.
    """
    public = tss.TPMS_NV_PUBLIC(
        nvIndex=line.index,
        nameAlg=tss.TPM2_ALG.SHA256,
        attributes=tss.TPMA_NV(COUNT_ATTRIBUTES),
        authPolicy=tss.TPM2B_DIGEST(line.label),
        dataSize=COUNT_BYTES,
    )
    session = chip.owner_session()
    try:
        made = chip.esys.nv_define_space(tss.TPM2B_AUTH(line.auth), tss.TPM2B_NV_PUBLIC(public), session1=session)
    except tss.TSS2_Exception as error:
        if response_code(error) != RC_NV_SPACE:
            raise
        raise ProviderFailed(
            "the TPM has no room for a revocable key's counter; destroy one, or make a key that is not revocable"
        ) from error
    chip.esys.tr_close(made)
    index = _own_index(chip, line)
    if index is None:
        raise ProviderFailed("the TPM lost the counter that it just made")
    chip.esys.nv_increment(index, auth_handle=index)
    return Revocation(index=line.index, auth=line.auth, count=_raw_count(chip, index))


def end_lifeline(chip: Chip, line: Lifeline) -> None:
    """Count once more, so that the key of this counter is dead for ever, and free the index if the owner allows it.

    Harmless when repeated. Without the owner's authorisation the index stays: it takes a few bytes and opens nothing.
    """
    index = _own_index(chip, line)
    if index is None:
        return
    chip.esys.nv_increment(index, auth_handle=index)
    if isinstance(line, Revocation) and _raw_count(chip, index) <= line.count:
        raise ProviderFailed("the TPM did not count: the key lives")
    try:
        chip.esys.nv_undefine_space(index, session1=chip.owner_session())
    except (PinMissing, PinRefused):
        return
    except tss.TSS2_Exception as error:
        if response_code(error) not in (RC_AUTH_FAIL, RC_BAD_AUTH):
            raise


def satisfy_lifeline(chip: Chip, session: Any, name: str, revocation: Revocation) -> None:
    """Have the TPM compare the counter with the one of the key's birth; raise ``keys.key.missing`` for a dead key.

    Also who has a copy of its files meets this; the TPM, not this code, refuses.
    """
    index = _own_index(chip, revocation)
    if index is None:
        raise KeyMissing(f"key {name!r} was destroyed: its counter is gone from the TPM", key=name)
    try:
        bound = tss.TPM2B_OPERAND(revocation.count.to_bytes(COUNT_BYTES, "big"))
        chip.esys.policy_nv(index, index, session, bound, tss.TPM2_EO(UNSIGNED_LE))
    except tss.TSS2_Exception as error:
        if response_code(error) != RC_POLICY:
            raise
        raise KeyMissing(f"key {name!r} was destroyed: its counter in the TPM went on", key=name) from error


def _own_index(chip: Chip, line: Lifeline) -> Any | None:
    """Return the index with its authorisation set, ``None`` where there is none, or another's."""
    index = chip.persistent(line.index)
    if index is None:
        return None
    found = chip.esys.nv_read_public(index)[0].nvPublic
    if bytes(found.authPolicy) != line.label or int(found.attributes) & ~WRITTEN != COUNT_ATTRIBUTES:
        return None
    chip.esys.tr_set_auth(index, line.auth)
    return index


def _raw_count(chip: Chip, index: Any) -> int:
    return int.from_bytes(bytes(chip.esys.nv_read(index, COUNT_BYTES, 0, auth_handle=index)), "big")
