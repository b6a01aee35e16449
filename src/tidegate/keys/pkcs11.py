"""The PKCS#11 provider: keys born on a token or HSM, behind any vendor's module.

Touches: the token (``pkcs11_session.py`` says how carefully). A key's name is its CKA_LABEL, its private half is
CKA_SENSITIVE from birth. PKCS#11 has no operation that counts, and none that vouches for a platform: the capabilities
say so. Sealed bytes are nonce (12), ciphertext and tag (16) of AES-256-GCM, made inside the token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tidegate.base.clock import Entropy, SystemEntropy
from tidegate.crypto.aead import NONCE_BYTES, TAG_BYTES, Secret
from tidegate.crypto.errors import SignatureInvalid
from tidegate.crypto.signing import PublicKey
from tidegate.keys import pkcs11_certificates as kept
from tidegate.keys import pkcs11_transfer as transfer
from tidegate.keys.errors import (
    CapabilityMissing,
    KeyExists,
    KeyMissing,
    KeyNameInvalid,
    KeyPurposeWrong,
    KeyUriMalformed,
    PinRefused,
    ProviderFailed,
    SealedMalformed,
    StoreClosed,
    StoreMalformed,
)
from tidegate.keys.pkcs11_objects import (
    ID_BYTES,
    Attribute,
    Mechanism,
    ObjectClass,
    TokenKey,
    find_token_keys,
    generate_key,
    look_at_token,
    prove_public_half,
    require_purpose,
    search,
    sign,
)
from tidegate.keys.pkcs11_session import TokenLogin, load_module, open_apart, open_login, p11, pin_text, pkcs11
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
from tidegate.keys.uri import KeyUri, read_pin

Result = TypeVar("Result")

_TAG_BITS = 8 * TAG_BYTES
_NOT_OPENED = (  # what tokens say of a tag that does not hold; SoftHSM says only that something failed
    p11.EncryptedDataInvalid,
    p11.EncryptedDataLenRange,
    p11.DataInvalid,
    p11.DataLenRange,
    p11.SignatureInvalid,
    p11.GeneralError,
    p11.FunctionFailed,
)
_UNUSABLE = (  # a key of another kind than it says, or half written when the power went: it must not hide the others
    p11.KeyTypeInconsistent,
    p11.MechanismInvalid,
    p11.KeySizeRange,
    p11.GeneralError,
    p11.FunctionFailed,
)
_GONE = (p11.ObjectHandleInvalid, p11.KeyHandleInvalid)


class Pkcs11Signer:
    """Signs with a key inside the token; its handle is looked up again when the session was."""

    def __init__(self, store: Pkcs11KeyStore, key: TokenKey, public_key: PublicKey, generation: int) -> None:
        self._store = store
        self._key = key
        self._public_key = public_key
        self._generation = generation

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    def sign(self, message: bytes) -> bytes:
        """Return the raw signature over ``message``; raise ``keys.key.missing`` once the key was destroyed."""
        if self._key.user_auth:
            return self._store.sign_with_pin(self._key, self._public_key, message)
        return self._store.use(lambda session: self._sign(session, message))

    def _sign(self, session: pkcs11.Session, message: bytes) -> bytes:
        if self._generation == self._store.generation:
            with contextlib.suppress(*_GONE):
                return sign(self._key.handle, self._public_key.algorithm, message)
        key = self._store.find(session, self._key.label)
        if self._store.prove(session, key) != self._public_key:
            raise KeyMissing(f"another key is called {key.label!r} now", key=key.label)
        self._key, self._generation = key, self._store.generation
        return sign(key.handle, self._public_key.algorithm, message)


class Pkcs11KeyStore:
    """A ``KeyStore`` on a token.

    ``key_pin`` gives the PIN for one use of a key made with ``user_auth``. One that comes from no person
    (``key_pin_by_person``) is not tried again once it was refused: a loop in a service must not lock the token.
    """

    def __init__(
        self,
        login: TokenLogin,
        key_pin: Callable[[str], Secret],
        *,
        key_pin_by_person: bool,
        entropy: Entropy | None = None,
    ) -> None:
        self._login = login
        self._key_pin = key_pin
        self._key_pin_by_person = key_pin_by_person
        self._key_pin_refused = False
        self._entropy = entropy or SystemEntropy()
        self._closed = False
        self._capabilities: Capabilities | None = None
        self._proven: tuple[int, dict[tuple[int, bytes], PublicKey]] = (0, {})  # of this generation, by handle
        self._sealing: tuple[int, dict[str, Any]] = (0, {})  # handles of this generation, by name
        self._skipped = 0

    @property
    def generation(self) -> int:
        """Return which session this is; handles of an older one are worthless."""
        return self._login.generation

    @property
    def skipped_keys(self) -> int:
        """Return how many keys the last ``list_keys`` left out.

        They are of other tools: named outside our rules, of another algorithm, two with one name, or without a public
        half that belongs to them.
        """
        return self._skipped

    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            self._capabilities = self.use(look_at_token)
        return self._capabilities

    def generate(self, name: str, spec: KeySpec) -> KeyInfo:
        """Make a key; raise ``keys.key.exists``, ``keys.capability.missing``.

        Tokens do not keep labels apart: should two processes make one name in the same moment, and the token show them
        each other's key late, nobody uses it (``keys.store.malformed``) until one was removed with another tool.
        """
        check_key_name(name)
        self.capabilities().require(spec)
        if spec.algorithm is None and spec.policy.user_auth:
            raise CapabilityMissing("the pkcs11 provider cannot ask for a PIN at each use of a sealing key", key=name)
        key_id = self._entropy.random_bytes(ID_BYTES)

        def act(session: pkcs11.Session) -> KeyInfo:
            self.require_free(session, name)
            generate_key(session, name, key_id, spec)
            with self._undo(session, key_id):
                key = self.find(session, name)  # two of them: another process was as quick
                if spec.policy.exportable:
                    transfer.require_wrappable(session, key)
                return self._require_as_asked(key.info(self._public_half(session, key)), spec)

        return self.use(act)

    def list_keys(self) -> list[KeyInfo]:
        return self.use(self._list)

    def public_key(self, name: str) -> PublicKey:
        return self.use(lambda session: self._signing_key(session, name)[1])

    def signer(self, name: str) -> Pkcs11Signer:
        def act(session: pkcs11.Session) -> Pkcs11Signer:
            return Pkcs11Signer(self, *self._signing_key(session, name), self.generation)

        return self.use(act)

    def seal(self, name: str, secret: bytes | memoryview, context: bytes) -> bytes:
        nonce = self._entropy.random_bytes(NONCE_BYTES)
        parameters = pkcs11.GCMParams(nonce, context, _TAG_BITS)

        def act(handle: Any) -> bytes:
            sealed = handle.encrypt(bytes(secret), mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
            return nonce + bytes(sealed)

        return self.use(lambda session: self._with_sealing_key(session, name, act))

    def unseal(self, name: str, sealed: bytes, context: bytes) -> Secret:
        parameters = pkcs11.GCMParams(sealed[:NONCE_BYTES], context, _TAG_BITS)

        def act(handle: Any) -> Secret:
            if len(sealed) < NONCE_BYTES + TAG_BYTES:
                raise SealedMalformed(f"key {name!r} does not open {len(sealed)} bytes", key=name)
            try:
                return Secret(
                    handle.decrypt(sealed[NONCE_BYTES:], mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
                )
            except _NOT_OPENED as error:
                raise SealedMalformed(f"key {name!r} does not open these bytes", key=name) from error

        return self.use(lambda session: self._with_sealing_key(session, name, act))

    def counter_read(self, name: str) -> int:
        """Raise ``keys.capability.missing``.

        Reading, adding and writing an object is no counter: two processes would both write the same next value.
        """
        check_key_name(name)
        raise CapabilityMissing("PKCS#11 tokens have no counters", provider="pkcs11")

    def counter_increment(self, name: str) -> int:
        return self.counter_read(name)

    def random(self, count: int) -> bytes:
        if not 1 <= count <= MAX_RANDOM_BYTES:
            raise CapabilityMissing(f"random bytes come 1 to {MAX_RANDOM_BYTES} at a time", provider="pkcs11")
        return self.use(lambda session: bytes(session.generate_random(8 * count)))

    def quote(self, name: str, nonce: bytes, pcrs: frozenset[int]) -> Quote:  # noqa: ARG002  # the protocol's form
        check_key_name(name)
        raise CapabilityMissing("PKCS#11 tokens vouch for no platform", provider="pkcs11")

    def keep_certificates(self, name: str, chain: Sequence[bytes]) -> None:
        """Keep the chain as CKO_CERTIFICATE objects, the first with the key's own CKA_ID and label.

        Anybody can add public objects to most tokens: what comes back is not to be trusted before ``pki`` looked.
        """
        checked = check_chain(chain)
        self.use(lambda session: kept.replace_chain(session, self.find(session, name), checked))

    def certificates(self, name: str) -> tuple[bytes, ...]:
        return self.use(lambda session: kept.read_chain(session, self.find(session, name)))

    def export_key(self, name: str) -> Secret:
        """Return PKCS#8 DER, by way of an AES key known on both sides, if the key was born exportable."""
        wrapping = Secret(self._entropy.random_bytes(transfer.WRAPPING_KEY_BYTES))

        def act(session: pkcs11.Session) -> Secret:
            key, public = self._signing_key(session, name)
            return transfer.export_pkcs8(session, key, public, wrapping)

        with wrapping:
            return self.use(act)

    def import_key(self, name: str, pkcs8: bytes | memoryview, spec: KeySpec) -> KeyInfo:
        check_key_name(name)
        self.capabilities().require(spec)
        public, der = transfer.parse_pkcs8(pkcs8, spec)
        wrapping = Secret(self._entropy.random_bytes(transfer.WRAPPING_KEY_BYTES))
        with wrapping, der:
            wrapped = transfer.wrap_in_software(wrapping, der)

            def act(session: pkcs11.Session) -> KeyInfo:
                with transfer.session_wrapping_key(session, wrapping) as unwrapping:
                    return self.restore(session, name, spec, public, transfer.Wrapped(unwrapping, wrapped))

            return self.use(act)

    def destroy(self, name: str) -> None:
        def act(session: pkcs11.Session) -> None:
            key = self.find(session, name)
            kept.remove_chain(session, key)
            key.handle.destroy()
            self._remove_public(session, key.key_id, name)

        self.use(act)

    def change_pin(self, new: Secret) -> None:
        """Give the token another user PIN, for every store and for ever; raise ``keys.pin.*``."""
        self.use(lambda _session: self._login.change_pin(new))

    def describe(self) -> dict[str, str]:
        """Return label, manufacturer, model, serial and firmware as the token says them."""
        return self.use(lambda _session: self._login.describe())

    def close(self) -> None:
        """Leave the token; the last store of this process that leaves logs out and wipes the PIN."""
        if not self._closed:
            self._closed = True
            self._login.leave()

    def use(self, act: Callable[[pkcs11.Session], Result]) -> Result:
        """Return what ``act`` makes of the token's session, alone in the module; raise ``keys.store.closed``."""
        if self._closed:
            raise StoreClosed(f"the key store on {self._login.what} was closed", token=self._login.label)
        return self._login.run(act)

    def find(self, session: pkcs11.Session, name: str) -> TokenKey:
        """Return the one key called ``name``; raise ``keys.key.missing``, ``keys.store.malformed`` for two of them."""
        found = find_token_keys(session, check_key_name(name))
        if not found:
            raise KeyMissing(f"no key {name!r} on {self._login.what}", key=name)
        if len(found) > 1:
            raise StoreMalformed(f"{self._login.what} has {len(found)} keys called {name!r}; one has to go", key=name)
        return found[0]

    def prove(self, session: pkcs11.Session, key: TokenKey) -> PublicKey:
        """Return the proven public half of ``key``; proven once a session, not for each use."""
        generation, proven = self._proven
        if generation != self.generation:
            proven = {}
            self._proven = (self.generation, proven)
        handle = (int(key.handle.handle), key.key_id)  # a handle alone may be given again
        if handle not in proven:
            proven[handle] = prove_public_half(session, key)
        return proven[handle]

    def require_free(self, session: pkcs11.Session, name: str) -> None:
        """Return if no key is called ``name``, else raise ``keys.key.exists``."""
        if find_token_keys(session, check_key_name(name)):
            raise KeyExists(f"there is a key {name!r} already", key=name)

    def restore(
        self,
        session: pkcs11.Session,
        name: str,
        spec: KeySpec,
        public: PublicKey | None,
        wrapped: transfer.Wrapped,
    ) -> KeyInfo:
        """Make a key of ``wrapped`` private bytes, kept only after it was seen to belong to ``public``."""
        self.require_free(session, name)
        key_id = self._entropy.random_bytes(ID_BYTES)
        with self._undo(session, key_id):
            transfer.restore_key(session, name, key_id, spec, public, wrapped)
            key = self.find(session, name)
            return self._require_as_asked(key.info(self._public_half(session, key)), spec)

    def sign_with_pin(self, key: TokenKey, public_key: PublicKey, message: bytes) -> bytes:
        """Return a signature for which the PIN is asked now, in a session of its own that ends with it.

        A refused PIN leaves the operation open in its session (SoftHSM), which nobody else may inherit. The signature
        is verified: the public half of such a key could not be proven before.
        """
        with self._key_pin(key.label) as pin:

            def act(session: pkcs11.Session) -> bytes:
                if self._key_pin_refused:
                    raise PinRefused(f"{self._login.what} refused this PIN before; it is not tried again")
                self._login.require_try_left(by_person=self._key_pin_by_person)
                with open_apart(session) as apart:
                    found = self.find(apart, key.label)
                    try:
                        return sign(found.handle, public_key.algorithm, message, pin_text(pin))
                    except (p11.PinIncorrect, p11.PinInvalid, p11.PinLenRange) as error:
                        self._key_pin_refused = not self._key_pin_by_person
                        raise self._login.refusal() from error

            signature = self.use(act)
        try:
            public_key.verify(signature, message)
        except SignatureInvalid as error:
            raise StoreMalformed(f"the public half of key {key.label!r} is another key's", key=key.label) from error
        return signature

    def _with_sealing_key(self, session: pkcs11.Session, name: str, act: Callable[[Any], Result]) -> Result:
        """Return what ``act`` makes of the key's handle, looked up once a session and again once it is gone."""
        generation, known = self._sealing
        if generation != self.generation:
            known = {}
            self._sealing = (self.generation, known)
        if name in known:
            with contextlib.suppress(*_GONE):
                return act(known[name])
        key = self.find(session, name)
        require_purpose(key, KeyPurpose.SEAL)
        known[name] = key.handle
        return act(key.handle)

    def _list(self, session: pkcs11.Session) -> list[KeyInfo]:
        keys = find_token_keys(session)
        names = [key.label for key in keys]
        infos = []
        for key in keys:
            with contextlib.suppress(KeyNameInvalid, StoreMalformed, *_GONE, *_UNUSABLE):
                check_key_name(key.label)
                if names.count(key.label) == 1:
                    infos.append(key.info(self._public_half(session, key)))
        self._skipped = len(keys) - len(infos)
        return sorted(infos, key=lambda info: info.name)

    def _public_half(self, session: pkcs11.Session, key: TokenKey) -> PublicKey | None:
        return None if key.purpose is KeyPurpose.SEAL else self.prove(session, key)

    def _signing_key(self, session: pkcs11.Session, name: str) -> tuple[TokenKey, PublicKey]:
        key = self.find(session, name)
        if key.purpose is not KeyPurpose.SIGN:
            raise KeyPurposeWrong(f"key {name!r} seals; it has no public half", key=name)
        return key, self.prove(session, key)

    def _require_as_asked(self, info: KeyInfo, spec: KeySpec) -> KeyInfo:
        """Return ``info`` if the token made what was asked for: some ignore what they do not know."""
        if info.spec != spec:
            raise ProviderFailed(f"{self._login.what} made key {info.name!r} with other properties", key=info.name)
        return info

    @contextlib.contextmanager
    def _undo(self, session: pkcs11.Session, key_id: bytes) -> Iterator[None]:
        """Remove what has ``key_id`` again if what follows fails; nobody else has that identifier."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(p11.PKCS11Error):
                for handle in search(session, {Attribute.TOKEN: True, Attribute.ID: key_id}):
                    handle.destroy()
            raise

    @staticmethod
    def _remove_public(session: pkcs11.Session, key_id: bytes, name: str) -> None:
        same: dict[pkcs11.Attribute, Any] = {Attribute.ID: key_id} if key_id else {Attribute.LABEL: name}
        for handle in search(session, {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.TOKEN: True, **same}):
            handle.destroy()


def open_uri(uri: KeyUri, *, create: bool, ask: AskPin | None) -> Pkcs11KeyStore:  # noqa: ARG001  # the token exists
    """Return the store on the token of a ``pkcs11:`` URI, logged in with one try.

    ``create`` makes nothing: a token is initialised by its vendor's tool. Raises ``keys.provider.absent``,
    ``keys.token.missing``, ``keys.pin.*``, ``base.permissions.unsafe``.
    """
    if "module-path" not in uri.options:
        raise KeyUriMalformed("a token's URI names its module: module-path=/MODULE.so")
    serial = uri.options["serial"].encode() if "serial" in uri.options else None
    source = uri.options.get("pin-source")

    def ask_pin(has_keypad: bool) -> tuple[Secret | None, bool]:
        if has_keypad and source is None:
            return None, True
        return read_pin(source, ask, f"the PIN of token {uri.location!r}"), source is None

    def key_pin(name: str) -> Secret:
        return read_pin(uri.options.get("key-pin-source"), ask, f"the PIN for this use of key {name!r}")

    login = open_login(load_module(Path(uri.options["module-path"])), uri.location, serial, ask_pin)
    return Pkcs11KeyStore(login, key_pin, key_pin_by_person="key-pin-source" not in uri.options)
