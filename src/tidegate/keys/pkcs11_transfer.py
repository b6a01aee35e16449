"""Keys on their way into and out of a token, wrapped under AES-KWP (RFC 5649).

Touches: the token behind the session, with keys that live no longer than the transfer (session objects: they end with
this process, however it ends).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from tidegate.crypto.aead import NONCE_BYTES, TAG_BYTES, Secret
from tidegate.crypto.errors import PublicKeyMalformed, SignatureInvalid
from tidegate.crypto.signing import (
    RSA_EXPONENT,
    RSA_GENERATED_BITS,
    PublicKey,
    SignatureAlgorithm,
    curve_of,
    parse_public_key,
)
from tidegate.keys.errors import CapabilityMissing, ImportRefused, NotExportable, ProviderFailed
from tidegate.keys.pkcs11_objects import (
    Attribute,
    KeyType,
    Mechanism,
    ObjectClass,
    Template,
    TokenKey,
    key_type_of,
    private_template,
    public_template,
    sign,
)
from tidegate.keys.pkcs11_session import p11, pkcs11
from tidegate.keys.store import KeySpec

WRAPPING_KEY_BYTES = 32
_MAX_PKCS8_BYTES = 8192  # RSA with 4096 bits has 2.4 KiB
_WRAP, _UNWRAP = pkcs11.MechanismFlag.WRAP, pkcs11.MechanismFlag.UNWRAP
_KWP = Mechanism.AES_KEY_WRAP_PAD
_OAEP = (Mechanism.SHA_1, pkcs11.MGF.SHA1, None)
_CANNOT_WRAP = (p11.KeyNotWrappable, p11.KeyUnextractable, p11.KeyTypeInconsistent, p11.MechanismInvalid)


@dataclass(frozen=True, slots=True)
class Probe:
    """What the source sealed and what has to come out of it."""

    context: bytes
    sealed: bytes
    secret: bytes


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A key under ``unwrapping``, an AES key on the token; a sealing key has to open ``probe``."""

    unwrapping: Any
    raw: bytes
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """What goes from token to token: an AES key under the target's RSA key, and the key under the AES key."""

    aes: bytes
    key: bytes


def parse_pkcs8(raw: bytes | memoryview, spec: KeySpec) -> tuple[PublicKey, Secret]:
    """Return the public half of a PKCS#8 key and the key in the one form that goes to the token.

    Raises ``keys.import.refused`` unless it is a key of ``spec``'s algorithm and ``spec`` is exportable.
    """
    if not spec.policy.exportable or spec.algorithm is None:
        raise ImportRefused("a key from outside is one that signs, named as exportable: it was outside already")
    if len(raw) > _MAX_PKCS8_BYTES:
        raise ImportRefused(f"a PKCS#8 key has at most {_MAX_PKCS8_BYTES} bytes")
    try:
        key = serialization.load_der_private_key(bytes(raw), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ImportRefused("no unencrypted PKCS#8 key in DER of a known kind") from error
    public = _public_of(key)
    if public is None or public.algorithm is not spec.algorithm:
        raise ImportRefused(f"the key is no {spec.algorithm.label} key of an allowed size")
    if not isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise ImportRefused("a key of a kind that tokens do not have")
    return public, Secret(_pkcs8(key))


def export_pkcs8(session: pkcs11.Session, key: TokenKey, public: PublicKey, wrapping: Secret) -> Secret:
    """Return the private half as PKCS#8, checked to be the one of ``public``."""
    require_exportable(key)
    with session_wrapping_key(session, wrapping) as handle:
        wrapped = _wrap(handle, key)
    try:
        raw = aes_key_unwrap_with_padding(bytes(wrapping.view()), wrapped)
    except InvalidUnwrap as error:
        raise ProviderFailed(f"the token wrapped key {key.label!r} in another form") from error
    exported = _load_exported(raw)
    if exported is None or _public_of(exported) != public:
        raise ProviderFailed(f"the token gave out another key than {key.label!r}", key=key.label)
    return Secret(_pkcs8(exported))


def wrap_in_software(wrapping: Secret, der: Secret) -> bytes:
    """Return ``der`` under the AES key ``wrapping``."""
    return aes_key_wrap_with_padding(bytes(wrapping.view()), bytes(der.view()))


def require_exportable(key: TokenKey) -> None:
    """Return if ``key`` may leave, else raise ``keys.key.not-exportable``."""
    if not key.exportable:
        raise NotExportable(f"key {key.label!r} was made to stay on its token", key=key.label)


def require_wrappable(session: pkcs11.Session, key: TokenKey) -> None:
    """Return if the token can wrap this exportable key, else raise ``keys.capability.missing``: better at its birth."""
    aes: Any = session.generate_key(KeyType.AES, 256, capabilities=_WRAP, template={Attribute.SENSITIVE: True})
    try:
        aes.wrap_key(key.handle, mechanism=_KWP)
    except _CANNOT_WRAP as error:
        raise CapabilityMissing(f"the token cannot wrap a key like {key.label!r}", key=key.label) from error
    finally:
        aes.destroy()


@contextlib.contextmanager
def session_wrapping_key(session: pkcs11.Session, value: Secret) -> Iterator[Any]:
    """Give an AES key on the token with a value that this process knows, gone at the end."""
    template: Template = {
        Attribute.CLASS: ObjectClass.SECRET_KEY,
        Attribute.KEY_TYPE: KeyType.AES,
        Attribute.TOKEN: False,
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: False,
        Attribute.WRAP: True,
        Attribute.UNWRAP: True,
        Attribute.VALUE: bytes(value.view()),
    }
    handle = session.create_object(template)
    try:
        yield handle
    finally:
        handle.destroy()


def make_transfer_key(session: pkcs11.Session) -> tuple[bytes, Any]:
    """Return the modulus and the private half of an RSA key for one transfer; nothing of it is stored."""
    public, private = session.generate_keypair(
        KeyType.RSA,
        RSA_GENERATED_BITS,
        capabilities=_WRAP | _UNWRAP,
        private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
    )
    modulus = bytes(public[Attribute.MODULUS])
    public.destroy()
    return modulus, private


def wrap_for(session: pkcs11.Session, key: TokenKey, modulus: bytes) -> Sent:
    """Return ``key`` wrapped for the token that has the RSA key with ``modulus``."""
    there: Any = session.create_object(
        {
            Attribute.CLASS: ObjectClass.PUBLIC_KEY,
            Attribute.KEY_TYPE: KeyType.RSA,
            Attribute.TOKEN: False,
            Attribute.WRAP: True,
            Attribute.MODULUS: modulus,
            Attribute.PUBLIC_EXPONENT: RSA_EXPONENT.to_bytes(3, "big"),
        }
    )
    try:
        template: Template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True, Attribute.PRIVATE: True}
        aes: Any = session.generate_key(KeyType.AES, 256, capabilities=_WRAP | _UNWRAP, template=template)
        try:
            under_rsa = there.wrap_key(aes, mechanism=Mechanism.RSA_PKCS_OAEP, mechanism_param=_OAEP)
            return Sent(aes=under_rsa, key=_wrap(aes, key))
        finally:
            aes.destroy()
    finally:
        there.destroy()


@contextlib.contextmanager
def received_wrapping_key(unwrapping: Any, sent: Sent) -> Iterator[Any]:
    """Give the AES key that was sent, on the target, gone at the end."""
    template: Template = {Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True}
    handle = unwrapping.unwrap_key(
        ObjectClass.SECRET_KEY,
        KeyType.AES,
        sent.aes,
        mechanism=Mechanism.RSA_PKCS_OAEP,
        mechanism_param=_OAEP,
        capabilities=_UNWRAP,
        template=template,
    )
    try:
        yield handle
    finally:
        handle.destroy()


def restore_key(
    session: pkcs11.Session,
    label: str,
    key_id: bytes,
    spec: KeySpec,
    public: PublicKey | None,
    wrapped: Wrapped,
) -> None:
    """Store the wrapped key, after a copy in this session was seen to be the private half of ``public``.

    The public half is stored first: a power cut leaves at most that.
    """
    trial = _unwrap(wrapped, spec, {Attribute.TOKEN: False, Attribute.ALWAYS_AUTHENTICATE: False})
    try:
        _require_same_key(session, trial, public, wrapped.probe)
    finally:
        trial.destroy()
    if public is not None:
        private = spec.policy.user_auth
        session.create_object(public_template(public, label, key_id, private=private, store=True))
    stored = _unwrap(wrapped, spec, {Attribute.TOKEN: True, Attribute.LABEL: label, Attribute.ID: key_id})
    if not stored[Attribute.SENSITIVE]:
        raise ProviderFailed(f"the token stored key {label!r} readable", key=label)


def _require_same_key(session: pkcs11.Session, trial: Any, public: PublicKey | None, probe: Probe | None) -> None:
    if public is not None:
        challenge = b"tidegate proves a restored key " + session.generate_random(256)
        try:
            public.verify(sign(trial, public.algorithm, challenge), challenge)
        except SignatureInvalid as error:
            raise ProviderFailed("the restored key signs as another key") from error
        return
    if probe is None or len(probe.sealed) < NONCE_BYTES + TAG_BYTES:
        raise ProviderFailed("nothing shows that the restored key is the same")
    parameters = pkcs11.GCMParams(probe.sealed[:NONCE_BYTES], probe.context, 8 * TAG_BYTES)
    opened = trial.decrypt(probe.sealed[NONCE_BYTES:], mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
    if opened != probe.secret:
        raise ProviderFailed("the restored key opens something else")


def _unwrap(wrapped: Wrapped, spec: KeySpec, extra: Template) -> Any:
    """Return the unwrapped key with exactly the uses of ``spec``: attributes of other kinds of keys are left out."""
    flags = pkcs11.MechanismFlag
    kind = ObjectClass.SECRET_KEY if spec.algorithm is None else ObjectClass.PRIVATE_KEY
    uses = flags.ENCRYPT | flags.DECRYPT if spec.algorithm is None else flags.SIGN
    template = {**private_template(spec), **extra}
    if not spec.policy.user_auth:
        template.pop(Attribute.ALWAYS_AUTHENTICATE, None)
    if kind is ObjectClass.PRIVATE_KEY:
        nothing = dict.fromkeys((Attribute.ENCRYPT, Attribute.VERIFY, Attribute.WRAP), pkcs11.constants.DEFAULT)
        template = {**nothing, **template}
    return wrapped.unwrapping.unwrap_key(
        kind, key_type_of(spec.algorithm), wrapped.raw, mechanism=_KWP, capabilities=uses, template=template
    )


def _wrap(wrapping: Any, key: TokenKey) -> bytes:
    try:
        return bytes(wrapping.wrap_key(key.handle, mechanism=_KWP))
    except _CANNOT_WRAP as error:
        raise NotExportable(f"the token does not wrap key {key.label!r}", key=key.label) from error


def _load_exported(raw: bytes) -> Any:
    """Return the key that the token wrapped, or none; SoftHSM adds zeros up to a whole block behind the DER."""
    head = 4 if raw[1:2] == b"\x82" else 3 if raw[1:2] == b"\x81" else 2
    size = head + (int.from_bytes(raw[2:head], "big") if head > 2 else int.from_bytes(raw[1:2], "big"))
    if any(raw[size:]):
        return None
    with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
        return serialization.load_der_private_key(raw[:size], password=None)
    return None


def _pkcs8(key: Any) -> bytes:
    return bytes(
        key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _public_of(key: Any) -> PublicKey | None:
    """Return the public half of a library's private key, or none for a kind or size that is not allowed."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return PublicKey(SignatureAlgorithm.ED25519, key.public_key().public_bytes_raw())
    if isinstance(key, rsa.RSAPrivateKey) and key.public_key().public_numbers().e == RSA_EXPONENT:
        modulus = key.public_key().public_numbers().n
        public = PublicKey(SignatureAlgorithm.RSA_PSS, modulus.to_bytes((modulus.bit_length() + 7) // 8, "big"))
        with contextlib.suppress(PublicKeyMalformed):
            return parse_public_key(public.encode())
    if isinstance(key, ec.EllipticCurvePrivateKey):
        point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
        for algorithm in (SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384):
            if curve_of(algorithm)[0].name == key.curve.name:
                return PublicKey(algorithm, point)
    return None
