"""The TPM provider: keys born in a TPM 2.0, wrapped by it, their files in a folder.

Touches: the folder (mode 700, files 600, both checked at every use) and the TPM. Read ``Tpm2KeyStore`` first.
Bytes, templates, NV indices and limits: docs/formats/tpm2.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from tidegate.base.clock import Entropy, SystemEntropy
from tidegate.base.errors import StorageFailed, TidegateError
from tidegate.crypto.aead import KEY_BYTES, NONCE_BYTES, Secret, open_aes256gcm, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm
from tidegate.keys.attest import MAX_NONCE_BYTES, MIN_NONCE_BYTES
from tidegate.keys.errors import (
    CapabilityMissing,
    KeyExists,
    KeyMissing,
    KeyNameInvalid,
    KeyPurposeWrong,
    NotExportable,
    SealedMalformed,
    StoreClosed,
)
from tidegate.keys.store import (
    MAX_RANDOM_BYTES,
    AskPin,
    Capabilities,
    KeyInfo,
    KeyPurpose,
    KeySpec,
    Quote,
    check_chain,
    check_key_name,
)
from tidegate.keys.tpm2_commands import (
    Tpm2Signer,
    Use,
    algorithms_of,
    check_digest,
    check_pcrs,
    command_sign,
    evict_key,
    extend_pcr,
    persist_key,
    quote_with_values,
    require_salt,
)
from tidegate.keys.tpm2_counter import Counter
from tidegate.keys.tpm2_device import (
    RC_AUTH_FAIL,
    RC_BAD_AUTH,
    Chip,
    is_handle_name,
    refused,
    require_try_left,
    response_code,
    tpm_at,
    tss,
)
from tidegate.keys.tpm2_files import WrappedKey, check_key, encode_template, parse_public_area, policy_of, spec_of
from tidegate.keys.tpm2_folder import Tpm2Folder
from tidegate.keys.tpm2_nvpolicy import Revocation
from tidegate.keys.tpm2_pins import KeyPins, Tpm2Pins
from tidegate.keys.tpm2_policy import find_approval, floor_at_birth, require_authority, require_state, satisfy
from tidegate.keys.tpm2_records import PERSISTENT_HANDLES, RH_OWNER, KeyRecord, StoreRecord
from tidegate.keys.tpm2_revocation import Lifelines, satisfy_lifeline
from tidegate.keys.uri import KeyUri, read_pin

T = TypeVar("T")
DEFAULT_TCTI = "device:/dev/tpmrm0"
SRK_HANDLE = 0x81000001  # where provisioned platforms keep the storage key (TCG TPM 2.0 Provisioning Guidance)
_RANDOM_BYTES = 32  # what every TPM gives in one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Key:
    """A key of the folder, or (without ``wrapped``) one that lives in the TPM alone."""

    record: KeyRecord
    info: KeyInfo
    name: bytes
    wrapped: WrappedKey | None


class Tpm2KeyStore:
    """A ``KeyStore`` in a folder whose private keys only one TPM can use.

    Signing and attesting keys never leave the TPM in the clear. A sealing key is an AES-256 key that the TPM keeps
    wrapped: to seal or unseal, the TPM gives it out (encrypted on the bus, after its PCR policy and PIN hold), it is
    used here for one operation and wiped. So what a sealing key protects is out of reach while the policy does not
    hold; somebody who reads this process's memory in that moment has that key. Opening proves that the TPM is the one
    the folder was made with (``keys.unlock.refused``).
    """

    def __init__(
        self, folder: Path, tcti: str, *, pins: Tpm2Pins | None = None, entropy: Entropy | None = None
    ) -> None:
        self._folder = Tpm2Folder(folder)
        self._pins = pins or Tpm2Pins()
        self._entropy = entropy or SystemEntropy()
        self._closed = False
        self._tpm = tpm_at(tcti)
        self._lifelines = Lifelines(self._folder, self._run, self._primary, self._entropy)
        self._key_pins = KeyPins(self._pins, self._entropy)
        self._store = self._folder.store()
        self._capabilities = self._run(self._open)

    @classmethod
    def create(cls, folder: Path, tcti: str, *, pins: Tpm2Pins | None = None) -> Tpm2KeyStore:
        """Make an empty store; the persistent storage key at 0x81000001 is its root if there is one.

        Else it is the standard ECC storage key of the owner hierarchy, made again whenever it is needed.
        """
        place, owner = Tpm2Folder.create(folder), (pins or Tpm2Pins()).owner

        def choose(chip: Chip) -> StoreRecord:
            handle = chip.persistent(SRK_HANDLE)
            if handle is not None:
                return StoreRecord(parent=SRK_HANDLE, parent_name=chip.name(handle))
            return StoreRecord(parent=RH_OWNER, parent_name=chip.name(chip.create_primary()))

        place.write_store(tpm_at(tcti).run(choose, owner=owner))
        return cls(folder, tcti, pins=pins)

    def capabilities(self) -> Capabilities:
        return self._capabilities

    def generate(self, name: str, spec: KeySpec) -> KeyInfo:
        if is_handle_name(check_key_name(name)):
            raise KeyNameInvalid(f"{name!r} names a persistent handle; give the key another name, then persist it")
        self._capabilities.require(spec)
        self._refuse_existing(name)
        floor = spec.policy.pcr_authority and spec.policy.pcr_authority.floor
        if floor and not self.counter_read(floor):
            self.counter_increment(floor)  # versions begin at 1
        pin = self._key_pins.ask(name, "the new PIN") if spec.policy.user_auth else None
        with contextlib.ExitStack() as held:
            held.enter_context(self._folder.lock())
            if pin is not None:
                held.enter_context(pin)
            self._refuse_existing(name)
            self._lifelines.free_left(name)
            revocation = held.enter_context(self._lifelines.making(name)) if spec.policy.revocable else None
            key = self._run(lambda chip: self._create(chip, name, spec, pin, revocation))
            if key.wrapped is not None:
                self._folder.add(key.record, key.wrapped)
        return key.info

    def list_keys(self) -> list[KeyInfo]:
        """Return every key of the folder, by name; ``public_key`` alone asks the TPM whether it is its own."""
        self._require_open()
        return [self._key(name).info for name in self._folder.names()]

    def public_key(self, name: str) -> PublicKey:
        """Return the public half, after the TPM loaded the private half that belongs to it."""
        key = self._key(name)
        if key.info.public_key is None:
            raise KeyPurposeWrong(f"key {name!r} seals; it has no public half", key=name)
        self._run(lambda chip: self._load(chip, key))
        return key.info.public_key

    def signer(self, name: str) -> Tpm2Signer:
        self._key(name, KeyPurpose.SIGN)
        public = self.public_key(name)

        def sign(message: bytes) -> bytes:
            return self._operate(
                name, KeyPurpose.SIGN, lambda chip, use: command_sign(chip, use, public.algorithm, message)
            )

        return Tpm2Signer(public, sign)

    def seal(self, name: str, secret: bytes | memoryview, context: bytes) -> bytes:
        nonce = self._entropy.random_bytes(NONCE_BYTES)
        with self._sealing_key(name) as key:
            return nonce + seal_aes256gcm(key.view(), nonce, secret, context)

    def unseal(self, name: str, sealed: bytes, context: bytes) -> Secret:
        with self._sealing_key(name) as key:
            try:
                return Secret(open_aes256gcm(key.view(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context))
            except AeadFailed as error:
                raise SealedMalformed(f"key {name!r} does not open these bytes", key=name) from error

    def counter_read(self, name: str) -> int:
        check_key_name(name)
        return self._run(lambda chip: Counter(chip, name).read(self._folder.counter(name)))

    def counter_increment(self, name: str) -> int:
        """Add one and return the count; the first time of a counter needs the owner's authorisation."""
        check_key_name(name)
        with self._folder.lock():
            known = self._folder.counter(name)

            def work(chip: Chip) -> tuple[int, Any]:
                Counter(chip, name).read(known)
                return Counter(chip, name).increment()

            value, record = self._run(work, once=True)
            if record != known:
                self._folder.write_counter(name, record)
        return value

    def random(self, count: int) -> bytes:
        """Return 1 to 4096 bytes from the TPM's generator."""
        if not 1 <= count <= MAX_RANDOM_BYTES:
            raise CapabilityMissing(f"1 to {MAX_RANDOM_BYTES} random bytes come at once", provider="tpm2")

        def work(chip: Chip) -> bytes:
            got = b""
            while len(got) < count:
                got += bytes(chip.esys.get_random(min(_RANDOM_BYTES, count - len(got))))
            return got

        return self._run(work)

    def quote(self, name: str, nonce: bytes, pcrs: frozenset[int]) -> Quote:
        if not MIN_NONCE_BYTES <= len(nonce) <= MAX_NONCE_BYTES:
            raise CapabilityMissing(f"a nonce has {MIN_NONCE_BYTES} to {MAX_NONCE_BYTES} bytes", key=name)
        check_pcrs(pcrs)
        key = self._key(name, KeyPurpose.ATTEST).info.public_key
        if key is None:
            raise KeyPurposeWrong(f"key {name!r} does not attest", key=name)
        return self._operate(name, KeyPurpose.ATTEST, lambda chip, use: quote_with_values(chip, use, key, nonce, pcrs))

    def pcr_values(self, pcrs: frozenset[int]) -> dict[int, bytes]:
        """Return what the registers (SHA-256 bank) hold now."""
        check_pcrs(pcrs)
        return self._run(lambda chip: chip.pcr_values(pcrs))

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a register of the SHA-256 bank by a digest of 32 bytes; the others banks stay as they are."""
        check_pcrs(frozenset({pcr}))
        check_digest(digest)
        self._run(lambda chip: extend_pcr(chip, pcr, digest), once=True)

    def keep_certificates(self, name: str, chain: Sequence[bytes]) -> None:
        self._require_open()
        kept = check_chain(chain)
        with self._folder.lock():
            record, _ = self._folder.key(name)
            self._folder.replace(replace(record, certificates=kept))

    def certificates(self, name: str) -> tuple[bytes, ...]:
        return self._key(name).record.certificates

    def export_key(self, name: str) -> Secret:
        self._key(name)
        raise NotExportable(f"key {name!r} was born in the TPM and cannot leave it", key=name)

    def import_key(self, name: str, pkcs8: bytes | memoryview, spec: KeySpec) -> KeyInfo:  # noqa: ARG002  # the protocol's form
        raise CapabilityMissing("a TPM store takes only keys that were born in the TPM", key=name)

    def persist(self, name: str, handle: int) -> None:
        """Keep the key in the TPM itself, at ``handle`` (0x81000000 to 0x817fffff), so that it needs no loading.

        Raises ``keys.key.exists`` if another key is there. Needs the owner's authorisation.
        """
        if handle not in PERSISTENT_HANDLES or handle == SRK_HANDLE:
            raise KeyNameInvalid(f"0x{handle:x} is no persistent handle for a key", key=name)
        with self._folder.lock():
            key = self._key(name)
            if key.record.handle not in (None, handle):
                raise KeyExists(f"key {name!r} is persistent at 0x{key.record.handle:x} already", key=name)
            if key.wrapped is None:
                raise KeyExists(f"key {name!r} is persistent already", key=name)
            wrapped = key.wrapped
            self._run(lambda chip: persist_key(chip, chip.load(wrapped, lambda: self._primary(chip)), key.name, handle))
            self._folder.replace(replace(key.record, handle=handle))

    def destroy(self, name: str) -> None:
        """End a revocable key in the TPM, take a persistent one out of it, then remove the key's files.

        Of a key that is not revocable, whoever kept a copy of the files and has this very TPM can put them back: it is
        valid for as long as the owner's storage seed is (``tpm2_clear`` ends all of them).
        """
        self._require_open()
        check_key_name(name)
        try:
            with self._folder.lock():
                self._lifelines.free_left(name)
                self._end(name)
                self._folder.remove(name)
        except StorageFailed:  # the folder cannot be written: the TPM's half is done all the same
            with contextlib.suppress(TidegateError):
                self._end(name)
            raise

    def _end(self, name: str) -> None:
        """End the TPM's part of a key; raise ``keys.key.missing``."""
        if not is_handle_name(name):
            revocation = self._folder.record(name).revocation
            if revocation is not None:
                self._lifelines.end(revocation)
        try:
            key = self._key(name)
        except KeyMissing:  # its TSS2 file went before the power did, if it was one of the folder's
            if is_handle_name(name):
                raise
            return
        if key.record.handle is not None:
            handle = key.record.handle
            self._run(lambda chip: evict_key(chip, key.name, handle))
        if key.wrapped is not None:
            self._tpm.forget(key.wrapped)

    def close(self) -> None:
        """Close the connection; every later use raises ``keys.store.closed``."""
        if not self._closed:
            self._closed = True
            self._tpm.disconnect()

    def _require_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"the key store {self._folder.path} was closed", path=str(self._folder.path))

    def _refuse_existing(self, name: str) -> None:
        self._require_open()
        if self._folder.has(name):
            raise KeyExists(f"there is a key {name!r} already", key=name)

    def _run(self, work: Callable[[Chip], T], *, once: bool = False) -> T:
        self._require_open()
        return self._tpm.run(work, once=once, owner=self._pins.owner)

    def _primary(self, chip: Chip) -> Any:
        return chip.primary(self._store, self._pins.parent)

    def _open(self, chip: Chip) -> Capabilities:
        self._primary(chip)
        return Capabilities(
            provider="tpm2",
            hardware=True,
            algorithms=algorithms_of(chip),
            can_seal=True,
            can_count=True,
            counter_resists_rollback=True,
            can_quote=True,
            can_bind_pcrs=True,
            can_user_auth=True,
            can_keep_certificates=True,
            can_follow_pcr_authority=True,
            can_revoke=True,
        )

    def _key(self, name: str, purpose: KeyPurpose | None = None) -> _Key:
        """Return a key by name or by persistent handle; raise ``keys.key.purpose`` for one of another purpose."""
        self._require_open()
        if is_handle_name(check_key_name(name)):
            key = self._run(lambda chip: self._foreign(chip, name))
        else:
            record, wrapped = self._folder.key(name)
            info = check_key(record, wrapped, self._store.parent)
            key = _Key(record=record, info=info, name=wrapped.name, wrapped=wrapped)
        if purpose not in (None, key.record.spec.purpose):
            raise KeyPurposeWrong(f"key {name!r} is for {key.record.spec.purpose.value}", key=name)
        return key

    def _foreign(self, chip: Chip, name: str) -> _Key:
        """Return a key that somebody else (the TPM's or the device's maker) put at a persistent handle."""
        number = int(name, 16)
        handle = chip.persistent(number)
        if handle is None:
            raise KeyMissing(f"the TPM has no key at {name}", key=name)
        public = bytes(chip.esys.read_public(handle)[0].publicArea.marshal())
        record = KeyRecord(name=name, spec=spec_of(public), handle=number)
        wrapped = WrappedKey(parent=RH_OWNER, public=public, private=b"", user_auth=record.spec.policy.user_auth)
        info = KeyInfo(name=name, spec=record.spec, public_key=parse_public_area(public).public_key)
        return _Key(record=record, info=info, name=wrapped.name, wrapped=None)

    def _create(self, chip: Chip, name: str, spec: KeySpec, pin: Secret | None, revocation: Revocation | None) -> _Key:
        require_authority(chip, spec.policy)
        authority = spec.policy.pcr_authority
        values = {} if authority else chip.pcr_values(spec.policy.pcrs)
        known = self._folder.counter(authority.floor) if authority and authority.floor else None
        floor = floor_at_birth(chip, spec.policy, known)
        template = encode_template(spec, policy_of(spec.policy, values, floor=floor, revocation=revocation))
        data = Secret(self._entropy.random_bytes(KEY_BYTES)) if spec.purpose is KeyPurpose.SEAL else None
        with data or contextlib.nullcontext():
            public, private = chip.create(self._primary(chip), template, auth=pin, data=data)
        wrapped = WrappedKey(parent=self._store.parent, public=public, private=private, user_auth=spec.policy.user_auth)
        record = KeyRecord(name=name, spec=spec, pcrs=values, floor=floor, revocation=revocation)
        key = _Key(
            record=record, info=check_key(record, wrapped, self._store.parent), name=wrapped.name, wrapped=wrapped
        )
        if spec.algorithm is SignatureAlgorithm.RSA_PSS and key.info.public_key is not None:
            require_salt(chip, self._use(chip, key, pin), key.info.public_key, spec.purpose)
        return key

    def _load(self, chip: Chip, key: _Key) -> Any:
        """Return the key's handle: the persistent one if it holds this very key, else the loaded file's."""
        if key.record.handle is not None:
            handle = chip.persistent(key.record.handle)
            if handle is not None and chip.name(handle) == key.name:
                return handle
        if key.wrapped is None:
            raise KeyMissing(f"the TPM has no key at {key.record.name}", key=key.record.name)
        return chip.load(key.wrapped, lambda: self._primary(chip))

    def _use(self, chip: Chip, key: _Key, pin: Secret | None, *, private: bool = False) -> Use:
        """Return the key loaded, and a session that satisfies its policy and carries its PIN."""
        approval = find_approval(chip, key.record, self._folder.statements)
        handle, record = self._load(chip, key), key.record
        if pin is not None:
            chip.esys.tr_set_auth(handle, bytes(pin.view()))
        salt = self._primary(chip) if private or pin is not None else None
        if not record.spec.policy.pcrs and record.revocation is None:
            session = tss.ESYS_TR.PASSWORD if salt is None else chip.session(salt, private=private)
            return Use(handle=handle, session=session)
        session = chip.session(salt, policy=True, private=private)
        if record.spec.policy.pcrs:
            satisfy(chip, session, record, approval)
        if record.revocation is not None:
            satisfy_lifeline(chip, session, record.name, record.revocation)
        if pin is not None:
            chip.esys.policy_auth_value(session)
        return Use(handle=handle, session=session)

    def _operate(self, name: str, purpose: KeyPurpose, work: Callable[[Chip, Use], T], *, private: bool = False) -> T:
        """Return ``work`` done with the key; what the TPM refuses is told as the PIN's or the registers' fault."""
        key = self._key(name, purpose)
        pin = self._pin(key)

        def within(chip: Chip) -> T:
            if pin is not None and not self._pins.key_by_person:
                require_try_left(chip, name)
            with self._told(chip, key, pin):
                return work(chip, self._use(chip, key, pin, private=private))

        with pin or contextlib.nullcontext():
            return self._run(within, once=pin is not None)

    @contextlib.contextmanager
    def _told(self, chip: Chip, key: _Key, pin: Secret | None) -> Iterator[None]:
        try:
            yield
        except tss.TSS2_Exception as error:
            code = response_code(error)
            require_state(chip, error, key.record, self._folder.statements)
            if pin is not None and code in (RC_AUTH_FAIL, RC_BAD_AUTH):
                self._key_pins.remember_wrong(key.name, pin)
                raise refused(chip, key.record.name) from error
            raise

    def _pin(self, key: _Key) -> Secret | None:
        """Return the key's PIN if it has one."""
        return self._key_pins.ask_again(key.record.name, key.name) if key.record.spec.policy.user_auth else None

    def _sealing_key(self, name: str) -> Secret:
        return self._operate(
            name,
            KeyPurpose.SEAL,
            lambda chip, use: Secret(bytes(chip.esys.unseal(use.handle, session1=use.session))),
            private=True,
        )


def open_uri(uri: KeyUri, *, create: bool, ask: AskPin | None) -> Tpm2KeyStore:
    """Return the store of a ``tpm2:`` URI; raise ``keys.token.missing``, ``keys.unlock.refused``, ``keys.pin.*``."""

    def source(option: str, what: str) -> Callable[[], Secret] | None:
        chosen = uri.options.get(option)
        return None if chosen is None else lambda: read_pin(chosen, ask, what)

    pins = Tpm2Pins(
        key=lambda what: read_pin(uri.options.get("key-pin-source"), ask, what),
        key_by_person="key-pin-source" not in uri.options,
        owner=source("owner-auth-source", "the owner's authorisation of the TPM"),
        parent=source("auth-source", "the authorisation of the TPM's storage key"),
    )
    tcti, folder = uri.options.get("tcti", DEFAULT_TCTI), Path(uri.location)
    return Tpm2KeyStore.create(folder, tcti, pins=pins) if create else Tpm2KeyStore(folder, tcti, pins=pins)
