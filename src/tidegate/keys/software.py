"""The software provider: keys in files, each sealed under a passphrase or a device secret.

Touches: the key store's folder (mode 700, files 600, both checked at every use), which is locked while something in it
changes. A software counter does not resist somebody who restores an old copy of the storage, and the capabilities say
so. Bytes: docs/formats/keystore.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tidegate.base.clock import Entropy, SystemEntropy
from tidegate.base.durable import (
    erase_file,
    erase_left,
    read_file_bounded,
    require_private,
    sync_folder,
    translate_os_errors,
    write_file_atomic,
    write_file_new,
)
from tidegate.base.errors import StorageMissing
from tidegate.crypto import cbor
from tidegate.crypto.aead import KEY_BYTES, NONCE_BYTES, Secret, open_aes256gcm, seal_aes256gcm
from tidegate.crypto.errors import AeadFailed, CborLimit, CborMalformed
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, parse_public_key
from tidegate.keys.errors import (
    CapabilityMissing,
    ImportRefused,
    KeyExists,
    KeyMissing,
    KeyPurposeWrong,
    KeyUriMalformed,
    NotExportable,
    PinMissing,
    PinRefused,
    SealedMalformed,
    StoreClosed,
    StoreMalformed,
    UnlockRefused,
)
from tidegate.keys.software_keys import SoftwareSigner, from_pkcs8, generate_pair, to_pkcs8
from tidegate.keys.software_unlock import (
    SALT_BYTES,
    STORE_FORMAT,
    Argon2Cost,
    DeviceSecretUnlock,
    PassphraseUnlock,
    Unlock,
    new_store_file,
)
from tidegate.keys.store import (
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATES,
    MAX_RANDOM_BYTES,
    AskPin,
    Capabilities,
    KeyInfo,
    KeyPolicy,
    KeyPurpose,
    KeySpec,
    Quote,
    check_chain,
    check_key_name,
)
from tidegate.keys.uri import KeyUri, read_pin

__all__ = ["Argon2Cost", "DeviceSecretUnlock", "PassphraseUnlock", "SoftwareKeyStore", "SoftwareSigner", "open_uri"]

_MAX_FILE_BYTES = 8192  # an ML-DSA-87 public key and a seed; RSA: 4096 bits, modulus and PKCS#1
_MAX_CHAIN_BYTES = MAX_CERTIFICATES * (MAX_CERTIFICATE_BYTES + 8) + 64
_WRAPPED = b"store key"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A key's file after its seal held; ``pin`` is how its own PIN was stretched."""

    info: KeyInfo
    head: dict[cbor.Value, cbor.Value]
    sealed: bytes
    pin: dict[cbor.Value, cbor.Value] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _StoreFile:
    """``store.cbor``."""

    kdf: str
    salt: bytes
    parameters: dict[cbor.Value, cbor.Value]
    check: bytes
    wrapped: bytes | None


class SoftwareKeyStore:
    """A ``KeyStore`` in a folder. Opening it proves the unlocker: a wrong one raises ``keys.unlock.refused``.

    ``key_pin`` is asked for the PIN of a key with ``user_auth``, at each use; ``pin_cost`` is what guessing the PIN of
    a new one costs who has opened the store already.
    """

    def __init__(
        self,
        folder: Path,
        unlock: Unlock,
        *,
        entropy: Entropy | None = None,
        key_pin: AskPin | None = None,
        pin_cost: Argon2Cost | None = None,
    ) -> None:
        self._folder = folder
        self._entropy = entropy or SystemEntropy()
        self._key_pin = key_pin
        self._pin_cost = pin_cost or Argon2Cost()
        self._closed = False
        stored = self._read_store_file()
        if stored.kdf != unlock.kind:
            raise UnlockRefused(f"{folder} opens with {stored.kdf}, not with {unlock.kind}", needs=stored.kdf)
        self._key = Secret(unlock.derive(stored.salt, stored.parameters))
        with self._open(stored.check, b"check"):
            pass
        if stored.wrapped is not None:  # the unlocker was changed once: what it derives opens the key that it was
            inner = self._open(stored.wrapped, _WRAPPED)
            self._key.wipe()
            self._key = inner

    @classmethod
    def create(cls, folder: Path, unlock: Unlock, *, entropy: Entropy | None = None) -> SoftwareKeyStore:
        """Make an empty store in ``folder`` (created, mode 700); raise ``keys.key.exists`` if one is there."""
        entropy = entropy or SystemEntropy()
        with translate_os_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(folder)
        if (folder / "store.cbor").exists():
            raise KeyExists(f"{folder} holds a key store already")
        document, key = new_store_file(unlock, entropy)
        key.wipe()
        write_file_atomic(folder / "store.cbor", cbor.encode(document), mode=0o600)
        return cls(folder, unlock, entropy=entropy)

    def change_unlock(self, unlock: Unlock) -> None:
        """Let the store open with ``unlock`` and with nothing else from now on; the keys stay as they are.

        One file is replaced atomically. An old copy of it still opens with the old passphrase: who may have both
        needs new keys, not a new passphrase.
        """
        document, key = new_store_file(unlock, self._entropy)
        nonce = self._entropy.random_bytes(NONCE_BYTES)
        with key, self._store_key() as store_key:
            document["wrapped"] = nonce + seal_aes256gcm(key.view(), nonce, store_key.view(), _WRAPPED)
        with self._changing():
            self._read_store_file()
            write_file_atomic(self._folder / "store.cbor", cbor.encode(document), mode=0o600)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            provider="software",
            hardware=False,
            algorithms=frozenset(SignatureAlgorithm),
            can_seal=True,
            can_count=True,
            counter_resists_rollback=False,
            can_quote=False,
            can_export=True,
            can_user_auth=True,
            can_keep_certificates=True,
        )

    def generate(self, name: str, spec: KeySpec) -> KeyInfo:
        path = self._path(name)
        self.capabilities().require(spec)
        if spec.purpose is KeyPurpose.SEAL and spec.policy.exportable:
            raise CapabilityMissing("PKCS#8 has no form for sealing keys: none can be exported", provider="software")
        if path.exists():
            raise KeyExists(f"there is a key {name!r} already", key=name)
        if spec.algorithm is None:
            return self._keep(name, spec, self._entropy.random_bytes(KEY_BYTES), None)
        return self._keep(name, spec, *generate_pair(spec.algorithm))

    def list_keys(self) -> list[KeyInfo]:
        with self._changing():
            names = sorted(path.name.removesuffix(".key") for path in self._folder.glob("*.key"))
            return [self._load(name).info for name in names]

    def public_key(self, name: str) -> PublicKey:
        public = self._load(name).info.public_key
        if public is None:
            raise KeyPurposeWrong(f"key {name!r} seals; it has no public half", key=name)
        return public

    def signer(self, name: str) -> SoftwareSigner:
        public = self.public_key(name)
        return SoftwareSigner(public, lambda: self._private(name, KeyPurpose.SIGN))

    def seal(self, name: str, secret: bytes | memoryview, context: bytes) -> bytes:
        nonce = self._entropy.random_bytes(NONCE_BYTES)
        with self._private(name, KeyPurpose.SEAL) as key:
            return nonce + seal_aes256gcm(key.view(), nonce, secret, context)

    def unseal(self, name: str, sealed: bytes, context: bytes) -> Secret:
        with self._private(name, KeyPurpose.SEAL) as key:
            try:
                return Secret(open_aes256gcm(key.view(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context))
            except AeadFailed as error:
                raise SealedMalformed(f"key {name!r} does not open these bytes", key=name) from error

    def counter_read(self, name: str) -> int:
        path = self._path(name, ".counter")
        try:
            self._require_private(path)
            raw = read_file_bounded(path, limit_bytes=64)
        except StorageMissing:
            return 0
        with self._open(raw, b"counter " + name.encode()) as value:
            return int.from_bytes(value.view(), "big")

    def counter_increment(self, name: str) -> int:
        path = self._path(name, ".counter")
        with self._changing():
            value = self.counter_read(name) + 1
            write_file_atomic(path, self._close(value.to_bytes(8, "big"), b"counter " + name.encode()), mode=0o600)
        return value

    def random(self, count: int) -> bytes:
        self._check_open()
        if not 1 <= count <= MAX_RANDOM_BYTES:
            raise CapabilityMissing(f"random bytes come 1 to {MAX_RANDOM_BYTES} at a time", provider="software")
        return self._entropy.random_bytes(count)

    def quote(self, name: str, nonce: bytes, pcrs: frozenset[int]) -> Quote:  # noqa: ARG002  # the protocol's form
        raise CapabilityMissing("a software store has no platform to vouch for", provider="software", key=name)

    def keep_certificates(self, name: str, chain: Sequence[bytes]) -> None:
        raw = cbor.encode(list(check_chain(chain)))
        with self._changing():
            sealed = self._close(raw, _chain_context(self._load(name)))
            write_file_atomic(self._path(name, ".certs"), sealed, mode=0o600)

    def certificates(self, name: str) -> tuple[bytes, ...]:
        context, path = _chain_context(self._load(name)), self._path(name, ".certs")
        try:
            self._require_private(path)
            sealed = read_file_bounded(path, limit_bytes=_MAX_CHAIN_BYTES)
        except StorageMissing:
            return ()
        with self._open(sealed, context) as raw:
            chain = cbor.decode(bytes(raw.view()), limit_bytes=_MAX_CHAIN_BYTES)
        if not isinstance(chain, list):
            raise StoreMalformed(f"the certificates of key {name!r} are damaged", key=name)
        return tuple(one for one in chain if isinstance(one, bytes))

    def export_key(self, name: str) -> Secret:
        info = self._load(name).info
        if not info.spec.policy.exportable:
            raise NotExportable(f"key {name!r} was made to stay in its store", key=name)
        if info.spec.algorithm is None:
            raise KeyPurposeWrong(f"key {name!r} seals; PKCS#8 is for keys that sign", key=name)
        with self._private(name, KeyPurpose.SIGN) as private:
            return Secret(to_pkcs8(info.spec.algorithm, bytes(private.view())))

    def import_key(self, name: str, pkcs8: bytes | memoryview, spec: KeySpec) -> KeyInfo:
        if self._path(name).exists():
            raise KeyExists(f"there is a key {name!r} already", key=name)
        if spec.algorithm is None or not spec.policy.exportable:
            raise ImportRefused("what was outside already is a key that signs and is called exportable", key=name)
        self.capabilities().require(spec)
        return self._keep(name, spec, *from_pkcs8(bytes(pkcs8), spec.algorithm))

    def destroy(self, name: str) -> None:
        """Overwrite and remove the key's file, durably.

        Flash and journals may keep old blocks; who finds one *and* holds the store's unlocker can open it still
        (docs/threat-model.md).
        """
        path = self._path(name)
        with self._changing(), translate_os_errors(path):
            try:
                self._require_private(path)
            except StorageMissing as error:
                raise KeyMissing(f"no key {name!r} in {self._folder}", key=name) from error
            erase_left(self._folder)
            self._path(name, ".certs").unlink(missing_ok=True)  # first: a new key of this name must not meet it
            sync_folder(self._folder)
            erase_file(path)

    def close(self) -> None:
        """Wipe the store's own key; every later use raises ``keys.store.closed``."""
        self._closed = True
        self._key.wipe()

    def _keep(self, name: str, spec: KeySpec, private: bytes, public: PublicKey | None) -> KeyInfo:
        """Write a new key's file, durably."""
        head: dict[cbor.Value, cbor.Value] = {
            "purpose": spec.purpose.value,
            "public": public.encode() if public else None,
        }
        pin = self._new_pin(spec)
        if spec.policy != KeyPolicy():
            head["policy"] = {"exportable": spec.policy.exportable, "pin": pin}
        context = _key_context(name, head)
        if pin is not None:
            with self._pin_key(name, pin) as key:
                nonce = self._entropy.random_bytes(NONCE_BYTES)
                private = nonce + seal_aes256gcm(key.view(), nonce, private, context)
        document = {**head, "sealed": self._close(private, context)}
        try:
            with self._changing():
                write_file_new(self._path(name), cbor.encode(document), mode=0o600)
        except FileExistsError as error:  # somebody was quicker than the look before
            raise KeyExists(f"there is a key {name!r} already", key=name) from error
        return KeyInfo(name=name, spec=spec, public_key=public)

    def _new_pin(self, spec: KeySpec) -> dict[cbor.Value, cbor.Value] | None:
        if not spec.policy.user_auth:
            return None
        cost = PassphraseUnlock(Secret(b""), self._pin_cost).parameters()
        return {"salt": self._entropy.random_bytes(SALT_BYTES), **cost}

    def _pin_key(self, name: str, pin: Mapping[cbor.Value, cbor.Value]) -> Secret:
        """Return what the key's own PIN stretches to; the caller's seal tells whether it was the right one."""
        if self._key_pin is None:
            raise PinMissing(f"key {name!r} asks for a PIN of its own; nothing says where it comes from", key=name)
        salt = pin["salt"]
        cost = {field: value for field, value in pin.items() if field != "salt"}
        with self._key_pin(f"the PIN of key {name}") as words:
            return Secret(PassphraseUnlock(words).derive(salt if isinstance(salt, bytes) else b"", cost))

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep other threads and processes from changing the folder meanwhile."""
        self._check_open()
        with translate_os_errors(self._folder):
            descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except BaseException:
                os.close(descriptor)
                raise
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # not by close alone: a child forked meanwhile has it open too
            os.close(descriptor)

    def _path(self, name: str, suffix: str = ".key") -> Path:
        check_key_name(name)
        self._check_open()
        return self._folder / (name + suffix)

    def _require_private(self, path: Path) -> None:
        require_private(self._folder)
        require_private(path)

    def _read_document(self, path: Path) -> dict[cbor.Value, cbor.Value]:
        self._require_private(path)
        try:
            document = cbor.decode(read_file_bounded(path, limit_bytes=_MAX_FILE_BYTES), limit_bytes=_MAX_FILE_BYTES)
        except (CborMalformed, CborLimit) as error:
            raise StoreMalformed(f"{path} is damaged: {error.message}", path=str(path)) from error
        if not isinstance(document, dict):
            raise StoreMalformed(f"{path} is damaged", path=str(path))
        return document

    def _read_store_file(self) -> _StoreFile:
        document = self._read_document(self._folder / "store.cbor")
        match document:
            case {
                "format": str() as form,
                "kdf": str() as kdf,
                "salt": bytes() as salt,
                "parameters": dict() as parameters,
                "check": bytes() as check,
                **rest,
            } if form == STORE_FORMAT and len(salt) == SALT_BYTES and set(rest) <= {"wrapped"}:
                wrapped = rest.get("wrapped")
                if wrapped is None or isinstance(wrapped, bytes):
                    return _StoreFile(kdf=kdf, salt=salt, parameters=parameters, check=check, wrapped=wrapped)
        raise StoreMalformed(f"{self._folder} holds no key store of this version")

    def _load(self, name: str) -> _Stored:
        """Return what is known of a key, after its seal held.

        The public half and the policy count only then, for they are bound to the private half: else whoever can write
        the file could have his own key exported as a trust anchor.
        """
        try:
            document = self._read_document(self._path(name))
        except StorageMissing as error:
            raise KeyMissing(f"no key {name!r} in {self._folder}", key=name) from error
        policy, pin = _policy_of(document, name)
        match document:
            case {"purpose": "sign", "public": bytes() as raw, "sealed": bytes() as sealed}:
                public: PublicKey | None = parse_public_key(raw)
                purpose = KeyPurpose.SIGN
            case {"purpose": "seal", "public": None, "sealed": bytes() as sealed}:
                public, purpose = None, KeyPurpose.SEAL
            case _:
                raise StoreMalformed(f"the file of key {name!r} is damaged", key=name)
        head = {part: value for part, value in document.items() if part != "sealed"}
        if not set(head) <= {"purpose", "public", "policy"}:
            raise StoreMalformed(f"the file of key {name!r} is damaged", key=name)
        with self._open(sealed, _key_context(name, head)):
            pass
        spec = KeySpec(purpose=purpose, algorithm=public.algorithm if public else None, policy=policy)
        info = KeyInfo(name=name, spec=spec, public_key=public)
        return _Stored(info=info, head=head, sealed=sealed, pin=pin)

    def _private(self, name: str, purpose: KeyPurpose) -> Secret:
        stored = self._load(name)
        if stored.info.spec.purpose is not purpose:
            raise KeyPurposeWrong(
                f"key {name!r} is for {stored.info.spec.purpose.value}, not {purpose.value}", key=name
            )
        context = _key_context(name, stored.head)
        private = self._open(stored.sealed, context)
        if stored.pin is None:
            return private
        with private, self._pin_key(name, stored.pin) as key:
            raw = bytes(private.view())
            try:
                return Secret(open_aes256gcm(key.view(), raw[:NONCE_BYTES], raw[NONCE_BYTES:], context))
            except AeadFailed as error:
                raise PinRefused(f"the PIN of key {name!r} is another one", key=name) from error

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosed(f"the key store {self._folder} was closed", path=str(self._folder))

    def _store_key(self) -> Secret:
        """Return a copy of the store's own key; never the zeros that are left of it after ``close``."""
        key = Secret(bytearray(self._key.view()))
        self._check_open()  # after copying: another thread's ``close`` says so first and wipes then
        return key

    def _close(self, secret: bytes, context: bytes) -> bytes:
        nonce = self._entropy.random_bytes(NONCE_BYTES)
        with self._store_key() as key:
            return nonce + seal_aes256gcm(key.view(), nonce, secret, context)

    def _open(self, sealed: bytes, context: bytes) -> Secret:
        with self._store_key() as key:
            try:
                return Secret(open_aes256gcm(key.view(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context))
            except AeadFailed as error:
                raise UnlockRefused(
                    f"{self._folder} does not open with this unlocker", path=str(self._folder)
                ) from error


def open_uri(uri: KeyUri, *, create: bool, ask: AskPin | None) -> SoftwareKeyStore:
    """Return the store of a ``file:`` URI, unlocked; raise ``keys.unlock.refused``, ``base.permissions.unsafe``."""
    folder, unlock = Path(uri.location), unlock_of(uri, ask)
    if create:
        SoftwareKeyStore.create(folder, unlock).close()
    source = uri.options.get("key-pin-source")
    return SoftwareKeyStore(folder, unlock, key_pin=lambda what: read_pin(source, ask, what))


def unlock_of(uri: KeyUri, ask: AskPin | None) -> Unlock:
    """Return what a ``file:`` URI unlocks with; a person is asked for a passphrase where it names nothing."""
    if {"device-secret", "passphrase-file"} <= set(uri.options):
        raise KeyUriMalformed("name one way to unlock: device-secret=/FILE or passphrase-file=/FILE")
    if "device-secret" in uri.options:
        return DeviceSecretUnlock(Path(uri.options["device-secret"]))
    return PassphraseUnlock(read_pin(uri.options.get("passphrase-file"), ask, f"the passphrase of {uri.location}"))


def _policy_of(
    document: dict[cbor.Value, cbor.Value], name: str
) -> tuple[KeyPolicy, dict[cbor.Value, cbor.Value] | None]:
    """Return a key's policy and how its own PIN is stretched; files from before there were policies have none."""
    if "policy" not in document:
        return KeyPolicy(), None
    match document["policy"]:
        case {"exportable": bool() as exportable, "pin": None, **rest} if not rest:
            return KeyPolicy(exportable=exportable), None
        case {"exportable": bool() as exportable, "pin": dict() as pin, **rest} if not rest:
            return KeyPolicy(exportable=exportable, user_auth=True), pin
    raise StoreMalformed(f"the file of key {name!r} is damaged", key=name)


def _key_context(name: str, head: object) -> bytes:
    """Return what binds a sealed private key to its name, purpose, public half and policy."""
    return cbor.encode(["tidegate.key.v1", name, head])


def _chain_context(stored: _Stored) -> bytes:
    """Return what binds a chain to the key beside which it was kept: not to a later one of the same name."""
    return cbor.encode(["tidegate.certs.v1", stored.info.name, stored.sealed[-16:]])
