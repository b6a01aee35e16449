"""A device's identity at rest: its record in a folder, its keys in their provider, in step through any power cut.

Touches: the identity's folder (mode 700: ``identity.json``, ``lock``) and keys called ``identity-N`` in a ``KeyStore``.
The rule: what is going to be there is written down before it is made, what is going to be gone is written down before
it is destroyed. Opening finishes what a cut interrupted and destroys keys that the record named once. Keys of this form
that it cannot have made are another folder's (or this one's before it was replaced): they are left alone until
``claim``.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tidegate.base.durable import read_file_bounded, require_private, translate_os_errors, write_file_atomic
from tidegate.base.errors import StorageMissing
from tidegate.base.lock import FolderLock
from tidegate.crypto.signing import SignatureAlgorithm, Signer
from tidegate.keys.errors import KeyExists, KeyMissing
from tidegate.keys.store import KeyPurpose, KeySpec, KeyStore
from tidegate.pki import identity
from tidegate.pki.errors import IdentityBusy, IdentityCorrupt, IdentityMissing
from tidegate.pki.identity import Generation, Record

_OURS = re.compile(r"identity-([1-9][0-9]{0,17})")
_LOCK_WAIT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """A key and the chain (DER, its own certificate first) that says whose it is."""

    signer: Signer
    chain: tuple[bytes, ...]


class IdentityStore:
    """The identity in ``folder``, created if it is not there; one process at a time (``pki.identity.busy``).

    ``keys`` holds the keys of all generations; ``algorithm`` is what new ones are made of. Opening raises also
    ``pki.identity.corrupt``, ``base.permissions.unsafe`` and what the provider raises.
    """

    def __init__(
        self,
        folder: Path,
        keys: KeyStore,
        *,
        algorithm: SignatureAlgorithm = SignatureAlgorithm.ECDSA_P256,
        for_reset: bool = False,
    ) -> None:
        """``for_reset`` takes a corrupt record and an empty provider as they are: a reset ends everything in both.

        Else a provider without any key raises ``pki.identity.missing``: it is likelier another one than one that lost
        them all, and what is forgotten here is destroyed there later.
        """
        with translate_os_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(folder)
        self._path, self._keys = folder / "identity.json", keys
        self._spec = KeySpec(purpose=KeyPurpose.SIGN, algorithm=algorithm)
        self._lock = FolderLock(folder, wait_s=_LOCK_WAIT_S, busy=IdentityBusy)
        try:
            self._record = self._read(folder, for_reset=for_reset)
            self._recover(for_reset=for_reset)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def record(self) -> Record:
        """Return what is written down."""
        return self._record

    def change(self, step: Callable[[Record], Record]) -> Record:
        """Make ``step(record)`` the record, durable before this returns; nothing is written where nothing changes."""
        changed = step(self._record)
        if changed != self._record:
            write_file_atomic(self._path, identity.encode_record(changed), mode=0o600)
            self._record = changed
        return changed

    def pending_signer(self) -> Signer:
        """Return the signer of the generation under way, its key made now if a cut came before.

        A key that is there already is this generation's: numbers are used once. Asking with the same key again lets a
        server answer with the same certificate. One of another algorithm than is wanted now is made anew: a server
        that takes none of its kind would refuse it for ever.
        """
        pending = self._record.pending
        if pending is None:
            raise IdentityMissing("no new identity is under way")
        with contextlib.suppress(KeyExists):
            self._keys.generate(pending.key_name, self._spec)
        signer = self._keys.signer(pending.key_name)
        if signer.public_key.algorithm is not self._spec.algorithm:
            self._keys.destroy(pending.key_name)
            self._keys.generate(pending.key_name, self._spec)
            signer = self._keys.signer(pending.key_name)
        return signer

    def credential(self, generation: Generation) -> Credential:
        """Return key and chain of a generation."""
        return Credential(signer=self._keys.signer(generation.key_name), chain=generation.chain)

    def keep_chain(self, generation: Generation) -> None:
        """Keep the chain beside the key as well, where the provider can: whoever has the key's URI finds it there."""
        if self._keys.capabilities().can_keep_certificates:
            self._keys.keep_certificates(generation.key_name, generation.chain)

    def active(self, *, now_s: float) -> Credential:
        """Return what the device proves itself with today, or raise ``pki.identity.missing``."""
        active = self._record.active
        now_s = identity.trusted_now_s(self._record, now_s)
        if active is None or now_s > active.not_after_s:
            raise IdentityMissing(f"no valid certificate: the identity is {self._record.state.value}")
        return self.credential(active)

    def clean(self) -> None:
        """Destroy the keys of every generation that is leaving, then forget that they were."""
        for number in self._record.leaving:
            self._destroy(identity.key_name(number))
        self.change(identity.cleaned)

    def claim(self) -> None:
        """Let go of every key of our form that the record does not name, whoever made it; ``clean`` destroys them."""
        found = tuple(sorted(self._numbers_there() - self._record.numbers()))
        self.change(lambda record: identity.disown(record, found))

    def close(self) -> None:
        """Let another process at it."""
        self._lock.release()

    def _recover(self, *, for_reset: bool) -> None:
        """Finish what a cut interrupted.

        1. Keys of generations that are leaving go. 2. So do those that were named before; numbers that others took are
        passed by. 3. A generation whose certificate is there while its key is not is no identity: it is left behind.
        """
        if self._record.active is not None and not for_reset and not self._keys.list_keys():
            raise IdentityMissing("the provider has no key at all: is it the right one? Else reset the identity first")
        self.clean()  # 1
        there = self._numbers_there()
        strays = tuple(sorted(there - self._record.numbers()))
        ours = tuple(number for number in strays if number < self._record.next_number)
        self.change(lambda record: identity.pass_by(identity.disown(record, ours), strays))  # 2
        record = self._record
        if record.pending is not None and record.pending.chain and record.pending.number not in there:  # 3
            self.change(identity.abandon)
        if record.active is not None and record.active.number not in there:
            self.change(identity.lose)
        self.clean()

    def _numbers_there(self) -> set[int]:
        names = (info.name for info in self._keys.list_keys())
        return {int(match[1]) for name in names if (match := _OURS.fullmatch(name))}

    @staticmethod
    def _read(folder: Path, *, for_reset: bool) -> Record:
        try:
            return read_record(folder)
        except IdentityCorrupt:
            if not for_reset:
                raise
            return Record()

    def _destroy(self, name: str) -> None:
        with contextlib.suppress(KeyMissing):  # destroyed before the cut
            self._keys.destroy(name)


def read_record(folder: Path) -> Record:
    """Return the record in ``folder``, a new one where there is none; raise ``pki.identity.corrupt``."""
    path = folder / "identity.json"
    try:
        require_private(path)
        raw = read_file_bounded(path, limit_bytes=identity.MAX_RECORD_BYTES)
    except StorageMissing:
        return Record()
    return identity.parse_record(raw)


def idevid_credential(keys: KeyStore, name: str, chain: Sequence[bytes] = ()) -> Credential:
    """Return the identity of birth: key ``name`` with ``chain``, else with the chain kept beside the key.

    Raises ``pki.identity.missing`` where there is neither.
    """
    kept = tuple(chain) or (keys.certificates(name) if keys.capabilities().can_keep_certificates else ())
    if not kept:
        raise IdentityMissing(f"no certificate of birth is known for key {name!r}", key=name)
    return Credential(signer=keys.signer(name), chain=kept)
