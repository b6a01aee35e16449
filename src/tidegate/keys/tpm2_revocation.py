"""The counter by which a revocable key lives, in the TPM: made before the key, incremented when it is destroyed.

Touches: one NV index per revocable key. Its digests: ``tpm2_nvpolicy.py``. Bytes and limits: docs/formats/tpm2.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from tidegate.base.clock import Entropy
from tidegate.base.errors import TidegateError
from tidegate.keys.errors import KeyMissing, PinRefused, ProviderFailed
from tidegate.keys.tpm2_device import (
    RC_AUTH_FAIL,
    RC_BAD_AUTH,
    RC_NV_SPACE,
    RC_POLICY,
    Chip,
    response_code,
    tss,
)
from tidegate.keys.tpm2_folder import Tpm2Folder
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

T = TypeVar("T")
_MAX_PROBES = 8  # at random among tens of thousands: a TPM has a few dozen indices


class Run(Protocol):
    """Does a piece of work with the TPM."""

    def __call__(self, work: Callable[[Chip], T], *, once: bool = False) -> T: ...


class Lifelines:
    """The lifelines of a store's keys; ``primary`` loads its storage key, which only its own TPM has."""

    def __init__(self, folder: Tpm2Folder, run: Run, primary: Callable[[Chip], Any], entropy: Entropy) -> None:
        self._folder = folder
        self._run = run
        self._primary = primary
        self._entropy = entropy

    @contextlib.contextmanager
    def making(self, name: str) -> Iterator[Revocation]:
        """Make the counter of a new key for the body, which keeps the key; if that fails, both go."""
        if self._folder.making(name) is not None:
            raise PinRefused("an NV index is left of this key's making: removing it needs the owner's authorisation")
        line = self._run(lambda chip: choose_lifeline(chip, self._entropy))
        self._folder.begin_making(name, line)
        try:
            yield self._run(lambda chip: begin_lifeline(chip, line), once=True)
        except TidegateError:
            for undo in (self.free_left, self._folder.remove):  # what fails here the next making of this name does
                with contextlib.suppress(TidegateError):
                    undo(name)
            raise
        self._folder.end_making(name)

    def free_left(self, name: str) -> None:
        """Take away what an interrupted making left in the TPM, if the owner allows it. The folder is locked."""
        left = self._folder.making(name)
        if left is not None and self.end(left):
            self._folder.end_making(name)

    def end(self, line: Lifeline) -> bool:
        """End a lifeline in the TPM of this store, and in no other: that one would know nothing of it.

        Returns whether its index is gone. Raises ``keys.unlock.refused`` at another TPM.
        """

        def work(chip: Chip) -> bool:
            self._primary(chip)
            return end_lifeline(chip, line)

        return self._run(work)


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


def end_lifeline(chip: Chip, line: Lifeline) -> bool:
    """Count once more, so that the key of this counter is dead for ever; free the index and return whether it is gone.

    The caller made sure that this is the TPM of the key: in another one there is no such index. Harmless when repeated.
    Without the owner's authorisation the index stays: it takes a few bytes and opens nothing.
    """
    index = _own_index(chip, line)
    if index is None:
        return True
    chip.esys.nv_increment(index, auth_handle=index)
    if isinstance(line, Revocation) and _raw_count(chip, index) <= line.count:
        raise ProviderFailed("the TPM did not count: the key lives")
    try:
        chip.esys.nv_undefine_space(index, session1=chip.owner_session())
    except TidegateError:  # nobody says what the owner's authorisation is
        return False
    except tss.TSS2_Exception as error:
        if response_code(error) not in (RC_AUTH_FAIL, RC_BAD_AUTH):
            raise
        return False
    return True


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
