"""Keys as objects of a PKCS#11 token: how they are made, found, proven and used; a session is a parameter.

Touches: the token behind the session. Somebody without the PIN can add and remove *public* objects on most tokens, so a
private key counts only if it is CKA_PRIVATE, and a public half only if a signature proves it.
Source: PKCS#11 2.40 and its mechanisms; 3.0 for Ed25519.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tidegate.crypto.errors import PublicKeyMalformed, SignatureInvalid
from tidegate.crypto.signing import (
    RSA_EXPONENT,
    RSA_GENERATED_BITS,
    RSA_PSS_SALT_BYTES,
    PublicKey,
    SignatureAlgorithm,
    curve_of,
    parse_public_key,
)
from tidegate.keys.errors import CapabilityMissing, KeyPurposeWrong, ProviderFailed, StoreMalformed
from tidegate.keys.pkcs11_session import p11, pkcs11
from tidegate.keys.store import Capabilities, KeyInfo, KeyPolicy, KeyPurpose, KeySpec

Attribute, Mechanism, ObjectClass, KeyType = pkcs11.Attribute, pkcs11.Mechanism, pkcs11.ObjectClass, pkcs11.KeyType
Template = dict[pkcs11.Attribute, Any]

ID_BYTES = 16
MAX_OBJECTS = 4096  # looked at in one search; a token that answers with more is not asked further
_SEARCHES = 8  # in a row that other processes may disturb
MAX_CANDIDATES = 8  # public halves tried for one private key: others may have been planted to cost time
_CURVE_PARAMETERS = {  # CKA_EC_PARAMS: an object identifier, for Ed25519 also its name
    bytes.fromhex("06082a8648ce3d030107"): SignatureAlgorithm.ECDSA_P256,
    bytes.fromhex("06052b81040022"): SignatureAlgorithm.ECDSA_P384,
    bytes.fromhex("130c656477617264733235353139"): SignatureAlgorithm.ED25519,
    bytes.fromhex("06032b6570"): SignatureAlgorithm.ED25519,
}
_PSS = (Mechanism.SHA256, pkcs11.MGF.SHA256, RSA_PSS_SALT_BYTES)
_SIGN, _VERIFY = pkcs11.MechanismFlag.SIGN, pkcs11.MechanismFlag.VERIFY
_ABOUT_KEY = [
    Attribute.LABEL,
    Attribute.ID,
    Attribute.KEY_TYPE,
    Attribute.SIGN,
    Attribute.ENCRYPT,
    Attribute.DECRYPT,
    Attribute.EXTRACTABLE,
    Attribute.ALWAYS_AUTHENTICATE,
    Attribute.EC_PARAMS,
    Attribute.MODULUS,
]
_ABOUT_PUBLIC = [
    Attribute.PRIVATE,
    Attribute.KEY_TYPE,
    Attribute.EC_PARAMS,
    Attribute.EC_POINT,
    Attribute.MODULUS,
    Attribute.PUBLIC_EXPONENT,
]
_MECHANISMS = {  # what the token has to have for each algorithm; one of each group
    SignatureAlgorithm.ECDSA_P256: ({Mechanism.EC_KEY_PAIR_GEN}, {Mechanism.ECDSA}),
    SignatureAlgorithm.ECDSA_P384: ({Mechanism.EC_KEY_PAIR_GEN}, {Mechanism.ECDSA}),
    SignatureAlgorithm.ED25519: ({Mechanism.EC_EDWARDS_KEY_PAIR_GEN}, {Mechanism.EDDSA}),
    SignatureAlgorithm.RSA_PSS: (
        {Mechanism.RSA_PKCS_KEY_PAIR_GEN},
        {Mechanism.RSA_PKCS_PSS, Mechanism.SHA256_RSA_PKCS_PSS},
    ),
}
_EC_BITS = {SignatureAlgorithm.ECDSA_P256: 256, SignatureAlgorithm.ECDSA_P384: 384}
_CHALLENGE = b"tidegate proves that the halves of this key belong together "


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A private or secret key on the token, as its attributes describe it."""

    handle: Any = field(repr=False)  # python-pkcs11 makes a class for each object
    label: str
    key_id: bytes
    purpose: KeyPurpose
    exportable: bool
    user_auth: bool
    modulus: bytes

    def info(self, public: PublicKey | None) -> KeyInfo:
        """Return what may be told about the key."""
        policy = KeyPolicy(exportable=self.exportable, user_auth=self.user_auth)
        algorithm = public.algorithm if public else None
        return KeyInfo(
            name=self.label,
            spec=KeySpec(purpose=self.purpose, algorithm=algorithm, policy=policy),
            public_key=public,
        )


def look_at_token(session: pkcs11.Session) -> Capabilities:
    """Return what the token can do, by its mechanisms and flags; what they do not say is tried."""
    slot = session.token.slot
    there = slot.get_mechanisms()
    hardware = bool(slot.flags & pkcs11.SlotFlag.HW_SLOT)
    algorithms = set()
    for algorithm, groups in _MECHANISMS.items():
        fits = algorithm not in _EC_BITS or _curve_fits(slot, _EC_BITS[algorithm])
        if fits and all(group & there for group in groups):
            algorithms.add(algorithm)
    return Capabilities(
        provider="pkcs11",
        hardware=hardware,
        algorithms=frozenset(algorithms),
        can_seal={Mechanism.AES_KEY_GEN, Mechanism.AES_GCM} <= there,
        can_count=False,
        counter_resists_rollback=False,
        can_quote=False,
        can_export=Mechanism.AES_KEY_WRAP_PAD in there and session.rw,
        can_user_auth=SignatureAlgorithm.ECDSA_P256 in algorithms and _asks_each_time(session),
        can_keep_certificates=session.rw,
    )


def _asks_each_time(session: pkcs11.Session) -> bool:
    """Return whether the token makes keys that ask for the PIN at each use: tried with one that ends here."""
    p256 = _parameters_of(SignatureAlgorithm.ECDSA_P256)[0]
    template = {Attribute.ALWAYS_AUTHENTICATE: True, Attribute.PRIVATE: True}
    domain = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: p256}, local=True)
    try:
        public, private = domain.generate_keypair(
            capabilities=pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY, private_template=template
        )
    except (p11.AttributeTypeInvalid, p11.AttributeValueInvalid, p11.TemplateInconsistent, p11.FunctionFailed):
        return False
    answer = private.get_attributes([Attribute.ALWAYS_AUTHENTICATE]).get(Attribute.ALWAYS_AUTHENTICATE, False)
    private.destroy()
    public.destroy()
    return bool(answer)


def _curve_fits(slot: pkcs11.Slot, bits: int) -> bool:
    if Mechanism.ECDSA not in slot.get_mechanisms():
        return False
    about = slot.get_mechanism_info(Mechanism.ECDSA)
    return (about.min_key_length or 0) <= bits <= (about.max_key_length or bits)


def find_token_keys(session: pkcs11.Session, label: str | None = None) -> list[TokenKey]:
    """Return the keys that sign or seal, with ``label`` or all."""
    keys = []
    for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY):
        template: Template = {Attribute.CLASS: kind, Attribute.TOKEN: True, Attribute.PRIVATE: True}
        if label is not None:
            template[Attribute.LABEL] = label
        for handle in search(session, template):
            about = attributes_of(handle, _ABOUT_KEY)
            signs = kind is ObjectClass.PRIVATE_KEY and about.get(Attribute.SIGN)
            seals = (
                about.get(Attribute.KEY_TYPE) == KeyType.AES
                and about.get(Attribute.ENCRYPT)
                and about.get(Attribute.DECRYPT)
            )
            if signs or seals:
                keys.append(
                    TokenKey(
                        handle=handle,
                        label=about.get(Attribute.LABEL, ""),
                        key_id=about.get(Attribute.ID, b""),
                        purpose=KeyPurpose.SIGN if signs else KeyPurpose.SEAL,
                        exportable=bool(about.get(Attribute.EXTRACTABLE)),
                        user_auth=bool(about.get(Attribute.ALWAYS_AUTHENTICATE)),
                        modulus=about.get(Attribute.MODULUS, b""),
                    )
                )
    return keys


def search(session: pkcs11.Session, template: Template) -> list[Any]:
    """Return the objects that match, at most ``MAX_OBJECTS``; the search has ended when this returns."""
    with contextlib.suppress(p11.RandomNoRNG, p11.FunctionNotSupported):
        session.generate_random(8)  # fails cleanly for a lost session; a search leaves a half-open operation then
    for _ in range(_SEARCHES - 1):
        with contextlib.suppress(p11.ObjectHandleInvalid):  # another process destroyed one that was just found
            return list(islice(session.get_objects(template), MAX_OBJECTS))
    return list(islice(session.get_objects(template), MAX_OBJECTS))


def attributes_of(handle: Any, names: list[pkcs11.Attribute]) -> Template:
    """Return those attributes that the object has; none if another process destroyed it since it was found."""
    try:
        found: Template = handle.get_attributes(names)
    except p11.ObjectHandleInvalid:
        return {}
    return found


def generate_key(session: pkcs11.Session, label: str, key_id: bytes, spec: KeySpec, *, store: bool = True) -> None:
    """Make the key's objects on the token; raise ``keys.capability.missing`` where it lacks the mechanism."""
    common = {"id": key_id, "label": label, "store": store}
    private = private_template(spec)
    if spec.algorithm is None:
        uses = pkcs11.MechanismFlag.ENCRYPT | pkcs11.MechanismFlag.DECRYPT
        session.generate_key(KeyType.AES, 256, capabilities=uses, template=private, **common)  # type: ignore[arg-type]
        return
    halves: dict[str, Any] = {
        **common,
        "capabilities": _SIGN | _VERIFY,
        "private_template": private,
        "public_template": {Attribute.PRIVATE: spec.policy.user_auth},
    }
    if spec.algorithm is SignatureAlgorithm.RSA_PSS:
        session.generate_keypair(KeyType.RSA, RSA_GENERATED_BITS, **halves)
        return
    refused: p11.PKCS11Error | None = None
    for parameters in _parameters_of(spec.algorithm):
        kind, mechanism = _curve_kind(spec.algorithm)
        domain = session.create_domain_parameters(kind, {Attribute.EC_PARAMS: parameters}, local=True)
        try:
            domain.generate_keypair(mechanism=mechanism, **halves)
        except (p11.DomainParamsInvalid, p11.AttributeValueInvalid, p11.TemplateInconsistent) as error:
            refused = error  # the curve is perhaps known by its other name
        else:
            return
    raise CapabilityMissing(f"the token makes no {spec.algorithm.label} keys like this") from refused


def private_template(spec: KeySpec) -> Template:
    """Return what every private or secret key of ours is: readable by nobody, wrappable only if born exportable."""
    template: Template = {
        Attribute.PRIVATE: True,
        Attribute.SENSITIVE: True,
        Attribute.EXTRACTABLE: spec.policy.exportable,
    }
    if spec.algorithm is not None and spec.algorithm is not SignatureAlgorithm.RSA_PSS:
        template[Attribute.DERIVE] = False
    if spec.policy.user_auth:
        template[Attribute.ALWAYS_AUTHENTICATE] = True
    return template


def public_template(public: PublicKey, label: str, key_id: bytes, *, private: bool, store: bool) -> Template:
    """Return the object that holds the public half."""
    template: Template = {
        Attribute.CLASS: ObjectClass.PUBLIC_KEY,
        Attribute.TOKEN: store,
        Attribute.PRIVATE: private,
        Attribute.LABEL: label,
        Attribute.ID: key_id,
        Attribute.VERIFY: True,
        Attribute.KEY_TYPE: key_type_of(public.algorithm),
    }
    if public.algorithm is SignatureAlgorithm.RSA_PSS:
        exponent = RSA_EXPONENT.to_bytes(3, "big")
        return {**template, Attribute.MODULUS: public.raw, Attribute.PUBLIC_EXPONENT: exponent}
    parameters = _parameters_of(public.algorithm)[0]
    point = bytes([4, len(public.raw)]) + public.raw  # a DER OCTET STRING; no point has more than 97 bytes
    return {**template, Attribute.EC_PARAMS: parameters, Attribute.EC_POINT: point}


def prove_public_half(session: pkcs11.Session, key: TokenKey) -> PublicKey:
    """Return the public half of ``key``, proven by a signature with the private one.

    A key that asks for its PIN at each use cannot prove it here: its public half has to be CKA_PRIVATE, which nobody
    writes without the PIN. Raises ``keys.store.malformed`` where none fits.
    """
    for public in islice(_candidates(session, key), MAX_CANDIDATES):
        if key.user_auth:
            return public
        challenge = _CHALLENGE + session.generate_random(256)
        try:
            public.verify(sign(key.handle, public.algorithm, challenge), challenge)
        except SignatureInvalid:
            continue
        return public
    raise StoreMalformed(f"no public half on the token belongs to key {key.label!r}", key=key.label)


def sign(handle: Any, algorithm: SignatureAlgorithm, message: bytes, pin: str | None = None) -> bytes:
    """Return the raw signature over ``message``, made in the token over the digest that is computed here."""
    if algorithm is SignatureAlgorithm.ED25519:
        raw = handle.sign(message, mechanism=Mechanism.EDDSA, pin=pin)
        expected = 64
    elif algorithm is SignatureAlgorithm.RSA_PSS:
        try:
            digest = hashlib.sha256(message).digest()
            raw = handle.sign(digest, mechanism=Mechanism.RSA_PKCS_PSS, mechanism_param=_PSS, pin=pin)
        except p11.MechanismInvalid:  # some tokens insist on hashing themselves
            raw = handle.sign(message, mechanism=Mechanism.SHA256_RSA_PKCS_PSS, mechanism_param=_PSS, pin=pin)
        expected = len(raw)
    else:
        _, digest_of, size = curve_of(algorithm)
        digest = hashlib.new(digest_of.name, message).digest()
        raw = handle.sign(digest, mechanism=Mechanism.ECDSA, pin=pin)
        expected = 2 * size
    if len(raw) != expected:
        raise ProviderFailed(f"the token made a signature of {len(raw)} bytes instead of {expected}")
    return bytes(raw)


def require_purpose(key: TokenKey, purpose: KeyPurpose) -> None:
    """Return if ``key`` is for ``purpose``, else raise ``keys.key.purpose``."""
    if key.purpose is not purpose:
        raise KeyPurposeWrong(f"key {key.label!r} is for {key.purpose.value}, not {purpose.value}", key=key.label)


def key_type_of(algorithm: SignatureAlgorithm | None) -> pkcs11.KeyType:
    """Return the token's kind of key for ``algorithm``; a sealing key has none."""
    if algorithm is None:
        return KeyType.AES
    return KeyType.RSA if algorithm is SignatureAlgorithm.RSA_PSS else _curve_kind(algorithm)[0]


def _candidates(session: pkcs11.Session, key: TokenKey) -> Iterator[PublicKey]:
    """Yield what may be the public half: of the private object itself, of public objects, of certificates."""
    if key.modulus:
        own = _public_key({Attribute.KEY_TYPE: KeyType.RSA, Attribute.MODULUS: key.modulus})
        if own is not None:
            yield own
        return
    same: Template = {Attribute.ID: key.key_id} if key.key_id else {Attribute.LABEL: key.label}
    template: Template = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.TOKEN: True, **same}
    if key.user_auth:
        template[Attribute.PRIVATE] = True
    for handle in search(session, template):
        public = _public_key(attributes_of(handle, _ABOUT_PUBLIC))
        if public is not None:
            yield public
    if not key.user_auth:
        for handle in search(session, {Attribute.CLASS: ObjectClass.CERTIFICATE, Attribute.TOKEN: True, **same}):
            public = _certified_key(attributes_of(handle, [Attribute.VALUE]).get(Attribute.VALUE, b""))
            if public is not None:
                yield public


def _public_key(about: Template) -> PublicKey | None:
    """Return the key that the attributes describe, or none for a kind, curve, size or point that is not allowed."""
    if about.get(Attribute.KEY_TYPE) == KeyType.RSA:
        exponent = int.from_bytes(about.get(Attribute.PUBLIC_EXPONENT, RSA_EXPONENT.to_bytes(3, "big")), "big")
        if exponent != RSA_EXPONENT:
            return None
        return _checked(PublicKey(SignatureAlgorithm.RSA_PSS, about.get(Attribute.MODULUS, b"").lstrip(b"\0")))
    algorithm = _CURVE_PARAMETERS.get(about.get(Attribute.EC_PARAMS, b""))
    if algorithm is None:
        return None
    size = 32 if algorithm is SignatureAlgorithm.ED25519 else 1 + 2 * curve_of(algorithm)[2]
    point = about.get(Attribute.EC_POINT, b"")
    if point[:2] == bytes([4, size]) and len(point) == size + 2:  # some tokens leave the OCTET STRING away
        point = point[2:]
    return _checked(PublicKey(algorithm, point))


def _certified_key(der: bytes) -> PublicKey | None:
    with contextlib.suppress(ValueError):
        key = x509.load_der_x509_certificate(der).public_key()
        if isinstance(key, rsa.RSAPublicKey) and key.public_numbers().e == RSA_EXPONENT:
            modulus = key.public_numbers().n
            raw = modulus.to_bytes((modulus.bit_length() + 7) // 8, "big")
            return _checked(PublicKey(SignatureAlgorithm.RSA_PSS, raw))
        if isinstance(key, ed25519.Ed25519PublicKey):
            return PublicKey(SignatureAlgorithm.ED25519, key.public_bytes_raw())
        if isinstance(key, ec.EllipticCurvePublicKey):
            point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            for algorithm in (SignatureAlgorithm.ECDSA_P256, SignatureAlgorithm.ECDSA_P384):
                if curve_of(algorithm)[0].name == key.curve.name:
                    return PublicKey(algorithm, point)
    return None


def _checked(key: PublicKey) -> PublicKey | None:
    try:
        return parse_public_key(key.encode())
    except PublicKeyMalformed:
        return None


def _curve_kind(algorithm: SignatureAlgorithm) -> tuple[pkcs11.KeyType, pkcs11.Mechanism]:
    if algorithm is SignatureAlgorithm.ED25519:
        return KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN
    return KeyType.EC, Mechanism.EC_KEY_PAIR_GEN


def _parameters_of(algorithm: SignatureAlgorithm) -> list[bytes]:
    return [parameters for parameters, named in _CURVE_PARAMETERS.items() if named is algorithm]
