"""The software provider: keys in files, each sealed under a passphrase or a device secret.

Touches: the key store's folder (mode 700, files 600, both checked at every use). A software counter does not resist
somebody who restores an old copy of the storage, and the capabilities say so.
Bytes: docs/formats/keystore.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa, utils

from tidegate.base.clock import Entropy, SystemEntropy
from tidegate.base.durable import (
    read_file_bounded,
    require_private,
    sync_folder,
    translate_os_errors,
    write_file_atomic,
    write_file_new,
)
from tidegate.base.errors import StorageMissing
from tidegate.crypto import cbor
from tidegate.crypto.aead import (
    KEY_BYTES,
    NONCE_BYTES,
    Secret,
    argon2id,
    hkdf_sha256,
    open_aes256gcm,
    seal_aes256gcm,
)
from tidegate.crypto.errors import AeadFailed, CborLimit, CborMalformed
from tidegate.crypto.signing import (
    RSA_EXPONENT,
    RSA_GENERATED_BITS,
    PublicKey,
    SignatureAlgorithm,
    curve_of,
    parse_public_key,
    rsa_pss_padding,
)
from tidegate.keys.errors import (
    CapabilityMissing,
    KeyExists,
    KeyMissing,
    KeyPurposeWrong,
    KeyUriMalformed,
    SealedMalformed,
    StoreClosed,
    StoreMalformed,
    UnlockRefused,
)
from tidegate.keys.store import AskPin, Capabilities, KeyInfo, KeyPurpose, KeySpec, Quote, check_key_name
from tidegate.keys.uri import KeyUri, read_pin

_MAX_FILE_BYTES = 8192  # an ML-DSA-87 public key and a seed
_MAX_MEMORY_KIB = 1 << 20  # 1 GiB: more would let an altered file exhaust the device
_MAX_ITERATIONS = 16
_SALT_BYTES = 32
_FORMAT = "tidegate.keystore.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Argon2Cost:
    """Cost of guessing a passphrase; the default is RFC 9106's second recommendation (64 MiB, 3 passes, 4 lanes)."""

    memory_kib: int = 65_536
    iterations: int = 3
    lanes: int = 4


class PassphraseUnlock:
    """Unlock by something a person knows."""

    kind = "argon2id"

    def __init__(self, passphrase: Secret, cost: Argon2Cost | None = None) -> None:
        self._passphrase = passphrase
        self._cost = cost or Argon2Cost()

    def parameters(self) -> dict[str, int]:
        """Return what the store's file records, so that later cost changes do not lock anybody out."""
        return {
            "memory": self._cost.memory_kib,
            "iterations": self._cost.iterations,
            "lanes": self._cost.lanes,
        }

    def derive(self, salt: bytes, parameters: Mapping[str, cbor.Value]) -> bytes:
        """Return the store's key; raise ``keys.store.malformed`` for costs that no sane store asks for."""
        match parameters:
            case {"memory": int() as memory, "iterations": int() as iterations, "lanes": int() as lanes} if (
                len(parameters) == 3
                and not any(isinstance(value, bool) for value in parameters.values())
                and 8 * lanes <= memory <= _MAX_MEMORY_KIB
                and 1 <= iterations <= _MAX_ITERATIONS
                and 1 <= lanes <= 16
            ):
                return argon2id(
                    self._passphrase.view(), salt=salt, iterations=iterations, lanes=lanes, memory_kib=memory
                )
        raise StoreMalformed("the store asks for an Argon2id cost outside the limits")


class DeviceSecretUnlock:
    """Unlock by a 32-byte secret that the hardware keeps (fuses, protected memory), given as a private file."""

    kind = "device-secret"

    def __init__(self, path: Path) -> None:
        self._path = path

    def parameters(self) -> dict[str, int]:
        return {}

    def derive(self, salt: bytes, parameters: Mapping[str, cbor.Value]) -> bytes:
        """Return the store's key; raise ``base.permissions.unsafe`` if others can read the secret."""
        if parameters:
            raise StoreMalformed("a device secret has no parameters")
        require_private(self._path)
        secret = read_file_bounded(self._path, limit_bytes=KEY_BYTES)
        if len(secret) != KEY_BYTES:
            raise UnlockRefused(f"{self._path} holds no {KEY_BYTES}-byte device secret", path=str(self._path))
        return hkdf_sha256(secret, salt=salt, info=b"tidegate keystore device-secret", length=KEY_BYTES)


Unlock = PassphraseUnlock | DeviceSecretUnlock


class SoftwareSigner:
    """Signs with a key of a software store; the private half is unsealed for each signature and dropped again."""

    def __init__(self, public_key: PublicKey, unseal: Callable[[], Secret]) -> None:
        self._public_key = public_key
        self._unseal = unseal

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """Return the raw signature over ``message``."""
        with self._unseal() as private:
            return _sign(self._public_key.algorithm, bytes(private.view()), message)


class SoftwareKeyStore:
    """A ``KeyStore`` in a folder. Opening it proves the unlocker: a wrong one raises ``keys.unlock.refused``."""

    def __init__(self, folder: Path, unlock: Unlock, *, entropy: Entropy | None = None) -> None:
        self._folder = folder
        self._entropy = entropy or SystemEntropy()
        self._closed = False
        document = self._read_document(folder / "store.cbor")
        match document:
            case {
                "format": str() as form,
                "kdf": str() as kdf,
                "salt": bytes() as salt,
                "parameters": dict() as parameters,
                "check": bytes() as check,
            } if form == _FORMAT and len(document) == 5 and len(salt) == _SALT_BYTES:
                pass
            case _:
                raise StoreMalformed(f"{folder} holds no key store of this version")
        if kdf != unlock.kind:
            raise UnlockRefused(f"{folder} opens with {kdf}, not with {unlock.kind}", needs=kdf)
        self._key = Secret(unlock.derive(salt, parameters))
        with self._open(check, b"check"):
            pass

    @classmethod
    def create(cls, folder: Path, unlock: Unlock, *, entropy: Entropy | None = None) -> SoftwareKeyStore:
        """Make an empty store in ``folder`` (created, mode 700); raise ``keys.key.exists`` if one is there."""
        entropy = entropy or SystemEntropy()
        with translate_os_errors(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_private(folder)
        if (folder / "store.cbor").exists():
            raise KeyExists(f"{folder} holds a key store already")
        salt, parameters = entropy.random_bytes(_SALT_BYTES), unlock.parameters()
        key = unlock.derive(salt, parameters)
        nonce = entropy.random_bytes(NONCE_BYTES)
        document = {
            "format": _FORMAT,
            "kdf": unlock.kind,
            "salt": salt,
            "parameters": parameters,
            "check": nonce + seal_aes256gcm(key, nonce, b"", b"check"),
        }
        write_file_atomic(folder / "store.cbor", cbor.encode(document), mode=0o600)
        return cls(folder, unlock, entropy=entropy)

    def capabilities(self) -> Capabilities:
        return Capabilities(
            provider="software",
            hardware=False,
            algorithms=frozenset(SignatureAlgorithm),
            can_seal=True,
            can_count=True,
            counter_resists_rollback=False,
            can_quote=False,
        )

    def generate(self, name: str, spec: KeySpec) -> KeyInfo:
        path = self._path(name)
        if path.exists():
            raise KeyExists(f"there is a key {name!r} already", key=name)
        if spec.algorithm is None:
            private, public = self._entropy.random_bytes(KEY_BYTES), None
        else:
            private, public = _generate(spec.algorithm)
        head = {
            "purpose": spec.purpose.value,
            "public": public.encode() if public else None,
        }
        document = {**head, "sealed": self._close(private, _key_context(name, head))}
        try:
            write_file_new(path, cbor.encode(document), mode=0o600)
        except FileExistsError as error:  # somebody was quicker than the look above
            raise KeyExists(f"there is a key {name!r} already", key=name) from error
        return KeyInfo(name=name, spec=spec, public_key=public)

    def list_keys(self) -> list[KeyInfo]:
        names = sorted(path.name.removesuffix(".key") for path in self._folder.glob("*.key"))
        return [self._load(name)[0] for name in names]

    def public_key(self, name: str) -> PublicKey:
        info, _ = self._load(name)
        if info.public_key is None:
            raise KeyPurposeWrong(f"key {name!r} seals; it has no public half", key=name)
        return info.public_key

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
        value = self.counter_read(name) + 1
        sealed = self._close(value.to_bytes(8, "big"), b"counter " + name.encode())
        write_file_atomic(self._path(name, ".counter"), sealed, mode=0o600)
        return value

    def quote(self, name: str, nonce: bytes, pcrs: frozenset[int]) -> Quote:  # noqa: ARG002  # the protocol's form
        raise CapabilityMissing("a software store has no platform to vouch for", key=name)

    def destroy(self, name: str) -> None:
        """Overwrite and remove the key's file, durably.

        Flash and journals may keep old blocks; who finds one *and* holds the store's unlocker can open it still
        (docs/threat-model.md).
        """
        path = self._path(name)
        try:
            self._require_private(path)
        except StorageMissing as error:
            raise KeyMissing(f"no key {name!r} in {self._folder}", key=name) from error
        with translate_os_errors(path):
            with path.open("r+b") as stream:
                stream.write(bytes(path.stat().st_size))
                stream.flush()
                os.fsync(stream.fileno())
            path.unlink()
            sync_folder(self._folder)

    def close(self) -> None:
        """Wipe the store's own key; every later use raises ``keys.store.closed``."""
        self._closed = True
        self._key.wipe()

    def _path(self, name: str, suffix: str = ".key") -> Path:
        return self._folder / (check_key_name(name) + suffix)

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

    def _load(self, name: str) -> tuple[KeyInfo, Callable[[], Secret]]:
        """Return what is known of a key, and a way to its private half.

        The public half counts only after the private one opened, which it is bound to: else whoever can write the file
        could have his own key exported as a trust anchor.
        """
        try:
            document = self._read_document(self._path(name))
        except StorageMissing as error:
            raise KeyMissing(f"no key {name!r} in {self._folder}", key=name) from error
        match document:
            case {"purpose": "sign", "public": bytes() as raw, "sealed": bytes() as sealed} if len(document) == 3:
                public: PublicKey | None = parse_public_key(raw)
                purpose = KeyPurpose.SIGN
            case {"purpose": "seal", "public": None, "sealed": bytes() as sealed} if len(document) == 3:
                public, purpose = None, KeyPurpose.SEAL
            case _:
                raise StoreMalformed(f"the file of key {name!r} is damaged", key=name)
        head = {"purpose": document["purpose"], "public": document["public"]}
        spec = KeySpec(purpose=purpose, algorithm=public.algorithm if public else None)
        info = KeyInfo(name=name, spec=spec, public_key=public)
        context = _key_context(name, head)
        with self._open(sealed, context):
            pass
        return info, lambda: self._open(sealed, context)

    def _private(self, name: str, purpose: KeyPurpose) -> Secret:
        info, unseal = self._load(name)
        if info.spec.purpose is not purpose:
            raise KeyPurposeWrong(f"key {name!r} is for {info.spec.purpose.value}, not {purpose.value}", key=name)
        return unseal()

    def _store_key(self) -> memoryview:
        """Return the store's own key; never the zeros that are left of it after ``close``."""
        if self._closed:
            raise StoreClosed(f"the key store {self._folder} was closed", path=str(self._folder))
        return self._key.view()

    def _close(self, secret: bytes, context: bytes) -> bytes:
        nonce = self._entropy.random_bytes(NONCE_BYTES)
        return nonce + seal_aes256gcm(self._store_key(), nonce, secret, context)

    def _open(self, sealed: bytes, context: bytes) -> Secret:
        try:
            return Secret(open_aes256gcm(self._store_key(), sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], context))
        except AeadFailed as error:
            raise UnlockRefused(f"{self._folder} does not open with this unlocker", path=str(self._folder)) from error


def _key_context(name: str, head: object) -> bytes:
    """Return what binds a sealed private key to its name, purpose and public half."""
    return cbor.encode(["tidegate.key.v1", name, head])


def _generate(algorithm: SignatureAlgorithm) -> tuple[bytes, PublicKey]:
    """Return the private bytes (seed or scalar) and the public key of a new key pair."""
    if algorithm is SignatureAlgorithm.ED25519:
        classical = ed25519.Ed25519PrivateKey.generate()
        return classical.private_bytes_raw(), PublicKey(algorithm, classical.public_key().public_bytes_raw())
    if algorithm in (SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ML_DSA_87):
        lattice = _ml_dsa(algorithm).generate()
        return lattice.private_bytes_raw(), PublicKey(algorithm, lattice.public_key().public_bytes_raw())
    if algorithm is SignatureAlgorithm.RSA_PSS:
        legacy = rsa.generate_private_key(RSA_EXPONENT, RSA_GENERATED_BITS)
        modulus = legacy.public_key().public_numbers().n
        der = legacy.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        return der, PublicKey(algorithm, modulus.to_bytes((modulus.bit_length() + 7) // 8, "big"))
    curve, _, size = curve_of(algorithm)
    elliptic = ec.generate_private_key(curve)
    numbers = elliptic.private_numbers()
    point = numbers.public_numbers
    raw = b"\x04" + point.x.to_bytes(size, "big") + point.y.to_bytes(size, "big")
    return numbers.private_value.to_bytes(size, "big"), PublicKey(algorithm, raw)


def _ml_dsa(algorithm: SignatureAlgorithm) -> type[mldsa.MLDSA65PrivateKey | mldsa.MLDSA87PrivateKey]:
    return mldsa.MLDSA65PrivateKey if algorithm is SignatureAlgorithm.ML_DSA_65 else mldsa.MLDSA87PrivateKey


def _sign(algorithm: SignatureAlgorithm, private: bytes, message: bytes) -> bytes:
    if algorithm is SignatureAlgorithm.ED25519:
        return ed25519.Ed25519PrivateKey.from_private_bytes(private).sign(message)
    if algorithm in (SignatureAlgorithm.ML_DSA_65, SignatureAlgorithm.ML_DSA_87):
        return _ml_dsa(algorithm).from_seed_bytes(private).sign(message)
    if algorithm is SignatureAlgorithm.RSA_PSS:
        legacy = serialization.load_der_private_key(private, password=None, unsafe_skip_rsa_key_validation=True)
        if not isinstance(legacy, rsa.RSAPrivateKey):
            raise StoreMalformed("a sealed RSA key is another kind of key")
        return legacy.sign(message, rsa_pss_padding(), hashes.SHA256())
    curve, digest, size = curve_of(algorithm)
    key = ec.derive_private_key(int.from_bytes(private, "big"), curve)
    r, s = utils.decode_dss_signature(key.sign(message, ec.ECDSA(digest)))
    return r.to_bytes(size, "big") + s.to_bytes(size, "big")


def open_uri(uri: KeyUri, *, create: bool, ask: AskPin | None) -> SoftwareKeyStore:
    """Return the store of a ``file:`` URI, unlocked; raise ``keys.unlock.refused``, ``base.permissions.unsafe``."""
    if len(uri.options) > 1:
        raise KeyUriMalformed("name one way to unlock: device-secret=/FILE or passphrase-file=/FILE")
    if "device-secret" in uri.options:
        unlock: Unlock = DeviceSecretUnlock(Path(uri.options["device-secret"]))
    else:
        what = f"the passphrase of {uri.location}"
        unlock = PassphraseUnlock(read_pin(uri.options.get("passphrase-file"), ask, what))
    folder = Path(uri.location)
    return SoftwareKeyStore.create(folder, unlock) if create else SoftwareKeyStore(folder, unlock)
