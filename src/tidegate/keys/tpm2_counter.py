"""Counters in the TPM's NV memory, which nobody can turn back.

Touches: two NV indices per counter. The first is a TPM counter: it can only be incremented, and one that is deleted and
made again starts above every count that any counter of this TPM ever had. The second keeps the raw count that stands
for our 0; it is written once and locked for good. Both carry the counter's name as their policy, which nothing
satisfies.
Bytes and limits: docs/formats/tpm2.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tidegate.keys.errors import ProviderFailed, StoreMalformed
from tidegate.keys.tpm2_device import RC_HANDLE, Chip, response_code, tss
from tidegate.keys.tpm2_floor import counter_label
from tidegate.keys.tpm2_nvpolicy import COUNT_ATTRIBUTES, COUNT_BYTES, WRITTEN
from tidegate.keys.tpm2_records import COUNTER_INDICES, CounterRecord

_MAX_PROBES = 8  # slots that a name may take; more names of one hash do not meet in a TPM with a few dozen indices
_AUTH_WRITE, _WRITE_LOCKED, _WRITE_DEFINE = 1 << 2, 1 << 11, 1 << 13
_OWNER_READ, _AUTH_READ, _NO_DA = 1 << 17, 1 << 18, 1 << 25
_BASE_ATTRIBUTES = _AUTH_WRITE | _AUTH_READ | _OWNER_READ | _NO_DA | _WRITE_DEFINE


class Counter:
    """The counter called ``name`` in the TPM that ``chip`` is."""

    def __init__(self, chip: Chip, name: str) -> None:
        self._chip = chip
        self._name = name
        self._label = counter_label(name)

    def read(self, record: CounterRecord | None) -> int:
        """Return the count; 0 if there is none. ``record`` is what the folder remembers of it.

        Raises ``keys.store.malformed`` if the TPM's indices are not those that the folder remembers: somebody with the
        owner's authorisation deleted them, or the folder is another TPM's.
        """
        found = self._find()
        if found is None or found[1] is None:
            if record is not None:
                raise StoreMalformed(f"the TPM has no counter {self._name!r}, the folder has", counter=self._name)
            return 0
        raw, base = found[1], self._base(found[0] + 1)
        if base is None and record is None:
            return 0  # the power was cut while it was made
        if base is None or raw < base or record not in (None, CounterRecord(index=found[0], base=base)):
            raise StoreMalformed(f"counter {self._name!r} in the TPM is not the folder's", counter=self._name)
        return raw - base

    def record(self) -> CounterRecord | None:
        """Return where the counter lies, ``None`` if it never counted; ``read`` comes first."""
        found = self._find()
        base = None if found is None else self._base(found[0] + 1)
        return None if found is None or base is None else CounterRecord(index=found[0], base=base)

    def increment(self) -> tuple[int, CounterRecord]:
        """Add one and return the count, and what the folder shall remember; ``read`` comes first.

        A new counter is made in three steps, each of which may be the last before a power cut: define and count once
        (the raw count that stands for 0), write that into the second index, lock it. Needs the owner's authorisation.
        """
        found = self._find()
        index = found[0] if found else self._free()
        if found is None:
            self._define(index, COUNT_ATTRIBUTES)
        if found is None or found[1] is None:
            self._add(index)
        base = self._base(index + 1)
        if base is None:
            base = self._raw(index)
            self._keep_base(index + 1, base)
        self._add(index)
        return self._raw(index) - base, CounterRecord(index=index, base=base)

    def _slots(self) -> list[int]:
        first = int.from_bytes(self._label[:4], "big")
        pairs = len(COUNTER_INDICES) // 2
        return [COUNTER_INDICES.start + 2 * ((first + probe) % pairs) for probe in range(_MAX_PROBES)]

    def _find(self) -> tuple[int, int | None] | None:
        """Return index and raw count (``None``: never incremented) of this counter, or ``None`` where it is not."""
        for index in self._slots():
            public = self._public(index)
            if public is None:
                return None
            if public[1] == self._label:
                if public[0] & ~WRITTEN != COUNT_ATTRIBUTES:
                    raise StoreMalformed(f"NV index 0x{index:x} is no counter of ours", counter=self._name)
                return index, self._raw(index) if public[0] & WRITTEN else None
        return None

    def _free(self) -> int:
        for index in self._slots():
            if self._public(index) is None:
                return index
        raise ProviderFailed(f"no NV index is free for counter {self._name!r}", counter=self._name)

    def _base(self, index: int) -> int | None:
        """Return the raw count that stands for 0, or ``None`` if it was not locked yet."""
        public = self._public(index)
        if public is None:
            return None
        if public[1] != self._label or public[0] & ~(WRITTEN | _WRITE_LOCKED) != _BASE_ATTRIBUTES:
            raise StoreMalformed(f"NV index 0x{index:x} is no base of a counter of ours", counter=self._name)
        return self._raw(index) if public[0] & _WRITE_LOCKED and public[0] & WRITTEN else None

    def _keep_base(self, index: int, base: int) -> None:
        if self._public(index) is None:
            self._define(index, _BASE_ATTRIBUTES)
        data = tss.TPM2B_MAX_NV_BUFFER(base.to_bytes(COUNT_BYTES, "big"))
        self._with(index, lambda handle: self._chip.esys.nv_write(handle, data, 0, auth_handle=handle))
        self._with(index, lambda handle: self._chip.esys.nv_write_lock(handle, auth_handle=handle))

    def _define(self, index: int, attributes: int) -> None:
        public = tss.TPMS_NV_PUBLIC(
            nvIndex=index,
            nameAlg=tss.TPM2_ALG.SHA256,
            attributes=tss.TPMA_NV(attributes),
            authPolicy=tss.TPM2B_DIGEST(self._label),
            dataSize=COUNT_BYTES,
        )
        esys = self._chip.esys
        session = self._chip.owner_session()
        made = esys.nv_define_space(tss.TPM2B_AUTH(b""), tss.TPM2B_NV_PUBLIC(public), session1=session)
        esys.tr_close(made)

    def _add(self, index: int) -> None:
        self._with(index, lambda handle: self._chip.esys.nv_increment(handle, auth_handle=handle))

    def _raw(self, index: int) -> int:
        read = self._with(index, lambda handle: self._chip.esys.nv_read(handle, COUNT_BYTES, 0, auth_handle=handle))
        return int.from_bytes(bytes(read), "big")

    def _public(self, index: int) -> tuple[int, bytes] | None:
        """Return attributes and policy of an index, or ``None`` if there is none."""
        try:
            public = self._with(index, lambda handle: self._chip.esys.nv_read_public(handle)[0])
        except tss.TSS2_Exception as error:
            if response_code(error) != RC_HANDLE:
                raise
            return None
        return int(public.nvPublic.attributes), bytes(public.nvPublic.authPolicy)

    def _with(self, index: int, command: Callable[[Any], Any]) -> Any:
        handle = self._chip.esys.tr_from_tpmpublic(index)
        try:
            return command(handle)
        finally:
            self._chip.esys.tr_close(handle)
