"""JOSE as Tang and clevis use it: keys, signed advertisements, encrypted slots, and the blinding of McCallum-Relyea.

Decides only: no network, no randomness of its own. Elliptic-curve keys on P-256, P-384 and P-521, ES256 to ES512,
ECDH-ES with A256GCM; every other algorithm, header member or spelling is refused.
Source: RFC 7515 (JWS), 7516 (JWE), 7517 (JWK), 7518 (algorithms), 7638 (thumbprints); docs/vault-network-key.md.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash

from tidegate.crypto.aead import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Secret
from tidegate.vault.tang_errors import JoseMalformed, TangRefused, TangSignatureInvalid, TangUntrusted

MAX_KEYS = 16  # of an advertisement; tangd makes two
MAX_SIGNATURES = 32  # one for each signing key and one for each retired key that was asked for
MAX_JSON_BYTES = 65_536  # 16 keys and 32 signatures of P-521 are 17 KiB
MAX_JWE_CHARACTERS = 32_768  # what clevis writes for 16 keys is 10 KiB
_ENCRYPTION = "A256GCM"

Point = tuple[int, int]


class Curve(enum.Enum):
    """A curve that Tang's keys may be on; all have a = -3, prime order, and a prime that leaves 3 when divided by 4.

    Source: SP 800-186 §3.2.1; the names of ECDSA with their hashes RFC 7518 §3.4.
    """

    P256 = ("P-256", 2**256 - 2**224 + 2**192 + 2**96 - 1, ec.SECP256R1(), "ES256", hashes.SHA256())
    P384 = ("P-384", 2**384 - 2**128 - 2**96 + 2**32 - 1, ec.SECP384R1(), "ES384", hashes.SHA384())
    P521 = ("P-521", 2**521 - 1, ec.SECP521R1(), "ES512", hashes.SHA512())

    def __init__(
        self, label: str, prime: int, group: ec.EllipticCurve, signature: str, digest: hashes.HashAlgorithm
    ) -> None:
        self.label, self.prime, self.group, self.signature, self.digest = label, prime, group, signature, digest
        self.size_bytes = (prime.bit_length() + 7) // 8  # of a coordinate


_CURVES = {curve.label: curve for curve in Curve}


class KeyUse(enum.Enum):
    """What a key of an advertisement is for, by its ``key_ops``."""

    SIGN = "verify"
    EXCHANGE = "deriveKey"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicJwk:
    """A public key whose point is on its curve."""

    curve: Curve
    point: Point
    use: KeyUse | None = None

    def members(self) -> dict[str, str]:
        """Return the members that make up the key (RFC 7638 §3.2)."""
        size = self.curve.size_bytes
        x, y = (encode_base64url(number.to_bytes(size, "big")) for number in self.point)
        return {"crv": self.curve.label, "kty": "EC", "x": x, "y": y}

    def describe(self) -> dict[str, object]:
        """Return the key as an advertisement lists it."""
        algorithm = self.curve.signature if self.use is KeyUse.SIGN else "ECMR"
        return {**self.members(), "alg": algorithm, "key_ops": [self.use.value]} if self.use else {**self.members()}

    def thumbprint(self) -> str:
        """Return the SHA-256 thumbprint, base64url (RFC 7638)."""
        return encode_base64url(hashlib.sha256(encode_json(self.members())).digest())

    def old_thumbprint(self) -> str:
        """Return the SHA-1 thumbprint by which slots of an older clevis name their key; nothing is trusted by it."""
        return encode_base64url(hashlib.sha1(encode_json(self.members()), usedforsecurity=False).digest())

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Return the library's form of the key."""
        return ec.EllipticCurvePublicNumbers(*self.point, self.curve.group).public_key()


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """What a server says of its keys, signed by each of its signing keys. Whether they are the right ones is open."""

    signing: tuple[PublicJwk, ...]
    exchange: tuple[PublicJwk, ...]

    @property
    def thumbprints(self) -> tuple[str, ...]:
        """Return the signing keys' SHA-256 thumbprints, for a person to compare with those on the server."""
        return tuple(key.thumbprint() for key in self.signing)


_VERIFIER = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedAdvertisement:
    """An advertisement that the trusted key has signed; made by ``verify_trust`` alone."""

    advertisement: Advertisement
    proof: object = field(repr=False)

    def __post_init__(self) -> None:
        if self.proof is not _VERIFIER:
            raise TypeError("verify_trust makes these")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactJwe:
    """A slot taken apart; nothing in it is authentic before ``open_compact`` returned."""

    header: bytes
    ephemeral: PublicJwk
    key_id: str
    recipient: PublicJwk
    keys: tuple[PublicJwk, ...]
    url: str
    context_hash: bytes | None
    nonce: bytes
    sealed: bytes


def _refuse(message: str) -> NoReturn:
    raise JoseMalformed(message)


def encode_base64url(data: bytes) -> str:
    """Return base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def parse_base64url(text: object) -> bytes:
    """Return the bytes of the one spelling that they have, or raise ``vault.jose.malformed``."""
    if not isinstance(text, str) or not text.isascii() or "=" in text:
        _refuse("something is not base64url")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise JoseMalformed("something is not base64url") from error
    if encode_base64url(data) != text:  # stray bits at the end: another text for the same bytes
        _refuse("something is not base64url in its one spelling")
    return data


def encode_json(value: object) -> bytes:
    """Return JSON without spaces, members in order: what a thumbprint is made of."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=True).encode()


def parse_json(raw: bytes) -> dict[str, object]:
    """Return a JSON object of at most 64 KiB in which no name stands twice, or raise ``vault.jose.malformed``."""
    if len(raw) > MAX_JSON_BYTES:
        _refuse(f"a JSON text has more than {MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise JoseMalformed("a text is not JSON") from error
    if not isinstance(value, dict):
        _refuse("a JSON text is no object")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        _refuse("a JSON object has a name twice")
    return members


def parse_jwk(value: object) -> PublicJwk:
    """Return a public elliptic-curve key that is on its curve, or raise ``vault.jose.malformed``.

    A private key, a key for two purposes, and an algorithm that does not belong to curve and purpose are refused;
    members that say nothing about these are ignored (RFC 7517 §4).
    """
    if not isinstance(value, Mapping) or value.get("kty") != "EC":
        _refuse("a key is no elliptic-curve key")
    if "d" in value:
        _refuse("a private key is where a public one belongs")
    name = value.get("crv")
    curve = _CURVES.get(name) if isinstance(name, str) else None
    if curve is None:
        _refuse("a key is on a curve that is not supported")
    x, y = (_parse_coordinate(value.get(name), curve) for name in "xy")
    key = PublicJwk(curve=curve, point=(x, y), use=_parse_use(value, curve))
    try:
        key.public_key()
    except ValueError as error:
        raise JoseMalformed("a key is not on its curve") from error
    return key


def _parse_coordinate(text: object, curve: Curve) -> int:
    raw = parse_base64url(text)
    if len(raw) != curve.size_bytes:  # RFC 7518 §6.2.1.2: with leading zeros
        _refuse("a coordinate has the wrong length")
    return int.from_bytes(raw, "big")


def _parse_use(value: Mapping[str, object], curve: Curve) -> KeyUse | None:
    match value.get("key_ops", []):
        case [*operations]:
            uses = [use for use in KeyUse if use.value in operations]
        case _:
            _refuse("a key's operations are no list")
    algorithm = value.get("alg")
    if KeyUse.SIGN in uses and algorithm != curve.signature:
        _refuse("a signing key's algorithm is not that of its curve")
    if KeyUse.EXCHANGE in uses and algorithm != "ECMR":  # so that no key is for both
        _refuse("an exchange key's algorithm is not ECMR")
    return uses[0] if uses else None


def parse_jwk_set(value: object) -> tuple[PublicJwk, ...]:
    """Return the 1 to 16 keys of a JWK Set, each as ``parse_jwk`` takes it, or raise ``vault.jose.malformed``."""
    match value:
        case {"keys": [*entries]} if 0 < len(entries) <= MAX_KEYS:
            return tuple(parse_jwk(entry) for entry in entries)
        case _:
            _refuse(f"a set of keys is none, or has not 1 to {MAX_KEYS} keys")


# -- advertisements ---------------------------------------------------------------------------------------------------


def verify_advertisement(raw: bytes, *, also: Sequence[PublicJwk] = ()) -> Advertisement:
    """Return what a JWS in JSON form advertises after every signing key in it, and each of ``also``, has signed it.

    1. It is a JWS (RFC 7515 §7.2, general or flattened) over a JWK Set of supported keys.
    2. It lists a signing key and an exchange key at least.
    3. Each signing key's signature holds, as clevis wants it; so that none can be added by somebody else.
    4. Each key of ``also`` has signed: a retired key vouches for those that came after it.

    Signatures by other keys are not looked at. Whether a key is the right one is ``verify_trust``'s to say.
    Raises ``vault.jose.malformed``, ``vault.tang.signature``.
    """
    payload = (document := parse_json(raw)).get("payload")
    signatures, keys = _parse_signatures(document), parse_jwk_set(parse_json(parse_base64url(payload)))  # 1
    signing = tuple(key for key in keys if key.use is KeyUse.SIGN)
    exchange = tuple(key for key in keys if key.use is KeyUse.EXCHANGE)
    if not signing or not exchange:  # 2
        _refuse("an advertisement lists no signing key or no exchange key")
    for key in (*signing, *also):  # 3, 4
        if not any(_has_signed(key, protected, str(payload), signature) for protected, signature in signatures):
            raise TangSignatureInvalid("a key has not signed the advertisement", thumbprint=key.thumbprint())
    return Advertisement(signing=signing, exchange=exchange)


def _parse_signatures(document: Mapping[str, object]) -> list[tuple[str, bytes]]:
    """Return each signature with its protected header as it was signed."""
    entries = document.get("signatures", [document])
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_SIGNATURES:
        _refuse(f"an advertisement has not 1 to {MAX_SIGNATURES} signatures")
    found = []
    for entry in entries:
        match entry:
            case {"protected": str() as protected, "signature": str() as signature}:
                found.append((protected, parse_base64url(signature)))
            case _:
                _refuse("a signature of an advertisement is malformed")
    return found


def _has_signed(key: PublicJwk, protected: str, payload: str, signature: bytes) -> bool:
    """Tell whether the signature is the key's; one of another algorithm, or with critical extensions, is not."""
    header = parse_json(parse_base64url(protected))
    size = key.curve.size_bytes
    if header.get("alg") != key.curve.signature or "crit" in header or len(signature) != 2 * size:
        return False
    r, s = int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    try:
        key.public_key().verify(
            utils.encode_dss_signature(r, s), f"{protected}.{payload}".encode(), ec.ECDSA(key.curve.digest)
        )
    except InvalidSignature:
        return False
    return True


def verify_trust(advertisement: Advertisement, thumbprint: str) -> TrustedAdvertisement:
    """Return the advertisement as trusted if ``thumbprint`` (SHA-256) is that of a key that signed it.

    Raises ``vault.tang.untrusted``.
    """
    if thumbprint not in advertisement.thumbprints:
        raise TangUntrusted(
            "the server's keys are not the trusted one",
            trusted=thumbprint,
            found=", ".join(advertisement.thumbprints),
        )
    return TrustedAdvertisement(advertisement=advertisement, proof=_VERIFIER)


# -- encrypted slots --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTime:
    """What is made afresh for each slot and never used again: a key on the exchange key's curve, and 12 bytes."""

    ephemeral: ec.EllipticCurvePrivateKey
    nonce: bytes


def exchange_key(trusted: TrustedAdvertisement) -> PublicJwk:
    """Return the key that new slots are made for: the first exchange key, as clevis takes it."""
    return trusted.advertisement.exchange[0]


def seal_compact(secret: Secret, trusted: TrustedAdvertisement, *, url: str, context: bytes, one_time: OneTime) -> str:
    """Return the secret encrypted to the server's exchange key, in the form that ``clevis decrypt`` opens.

    The hash of ``context`` stands in the protected header, whose every byte is authenticated. ``url`` is for clevis.
    Source: RFC 7516 §7.1, RFC 7518 §4.6 (direct key agreement).
    """
    recipient = exchange_key(trusted)
    advertised = (*trusted.advertisement.signing, *trusted.advertisement.exchange)
    numbers = one_time.ephemeral.public_key().public_numbers()
    header = {
        "alg": "ECDH-ES",
        "enc": _ENCRYPTION,
        "epk": PublicJwk(curve=recipient.curve, point=(numbers.x, numbers.y)).members(),
        "kid": recipient.thumbprint(),
        "clevis": {"pin": "tang", "tang": {"adv": {"keys": [key.describe() for key in advertised]}, "url": url}},
        "tidegate": {"context": encode_base64url(hashlib.sha256(context).digest())},
    }
    protected = encode_base64url(encode_json(header))
    with (
        Secret(one_time.ephemeral.exchange(ec.ECDH(), recipient.public_key())) as shared,
        derive_key(shared.view()) as key,
    ):
        sealed = AESGCM(key.view()).encrypt(one_time.nonce, secret.view(), protected.encode())
    parts = (one_time.nonce, sealed[:-TAG_BYTES], sealed[-TAG_BYTES:])
    return ".".join([protected, "", *map(encode_base64url, parts)])


def parse_compact(text: str) -> CompactJwe:
    """Return a slot's parts, checked for form alone, or raise ``vault.jose.malformed``.

    1. Five parts of bounded length, no wrapped key, a nonce and a tag of GCM's lengths, and some content.
    2. A header with the members that clevis writes, and ours, and no other: ``crit``, ``zip``, ``apu`` change meanings.
    3. Of the advertised keys, one that the key id names; the ephemeral key on its curve.
    """
    parts = text.split(".") if len(text) <= MAX_JWE_CHARACTERS and text.isascii() else []
    if len(parts) != 5 or parts[1]:  # 1
        _refuse("a slot is no JWE with five parts and direct key agreement")
    raw, _, nonce, content, tag = (parse_base64url(part) for part in parts)
    if len(nonce) != NONCE_BYTES or len(tag) != TAG_BYTES or not content:
        _refuse("a part of a slot has the wrong length")
    match parse_json(raw):  # 2
        case {
            "alg": "ECDH-ES",
            "enc": "A256GCM",
            "epk": ephemeral,
            "kid": str() as key_id,
            "clevis": {"pin": "tang", "tang": {"adv": advertised, "url": str() as url, **more_tang}, **more_clevis},
            **more,
        } if not more_tang and not more_clevis:
            pass
        case _:
            _refuse("a slot's header is none of clevis' for Tang")
    keys = parse_jwk_set(advertised)
    recipient, epk = _find_recipient(keys, key_id), parse_jwk(ephemeral)  # 3
    if epk.curve is not recipient.curve:
        _refuse("a slot's ephemeral key is on another curve than the server's")
    return CompactJwe(
        header=parts[0].encode(),
        ephemeral=epk,
        key_id=key_id,
        recipient=recipient,
        keys=keys,
        url=url,
        context_hash=_parse_context(more),
        nonce=nonce,
        sealed=content + tag,
    )


def _find_recipient(keys: Sequence[PublicJwk], key_id: str) -> PublicJwk:
    found = [key for key in keys if key.use is KeyUse.EXCHANGE and key_id in (key.thumbprint(), key.old_thumbprint())]
    return found[0] if found else _refuse("a slot's key id names none of its exchange keys")


def _parse_context(members: Mapping[str, object]) -> bytes | None:
    """Return the hash of what the slot is bound to, None where there are no members: clevis binds to nothing."""
    match members:
        case {"tidegate": {"context": text, **more_context}, **more} if not more and not more_context:
            digest = parse_base64url(text)
            if len(digest) == hashlib.sha256().digest_size:
                return digest
            _refuse("a slot's context is no hash")
        case _ if not members:
            return None
        case _:
            _refuse("a slot's header has members that are not known")


def open_compact(jwe: CompactJwe, candidates: Sequence[bytearray]) -> Secret:
    """Return the content under the first of the shared secrets whose tag holds, or raise ``vault.tang.refused``.

    The candidates are wiped, whatever happens.
    """
    content = bytearray(len(jwe.sealed) - TAG_BYTES)
    try:
        for candidate in candidates:
            with derive_key(candidate) as key:
                try:
                    AESGCM(key.view()).decrypt_into(jwe.nonce, jwe.sealed, jwe.header, content)
                except InvalidTag:
                    continue
                return Secret(content)
    finally:
        for buffer in (content, *candidates):
            buffer[:] = bytes(len(buffer))
    raise TangRefused("the recovered key does not open the slot", key_id=jwe.key_id)


def derive_key(shared: bytearray | memoryview, *, algorithm: str = _ENCRYPTION, length: int = KEY_BYTES) -> Secret:
    """Return the content key of ECDH-ES in direct agreement, without party information (RFC 7518 §4.6.2)."""
    name = algorithm.encode()
    info = b"".join([len(name).to_bytes(4, "big"), name, bytes(4), bytes(4), (8 * length).to_bytes(4, "big")])
    key = bytearray(length)
    try:
        ConcatKDFHash(hashes.SHA256(), length, info).derive_into(shared, key)
        return Secret(key)
    finally:
        key[:] = bytes(length)


# -- McCallum-Relyea --------------------------------------------------------------------------------------------------


def add_points(curve: Curve, left: Point, right: Point) -> Point | None:
    """Return the sum of two points of the curve; None is the point at infinity."""
    p = curve.prime
    (x1, y1), (x2, y2) = left, right
    if x1 == x2:
        if (y1 + y2) % p == 0:
            return None
        slope = (3 * x1 * x1 - 3) * pow(2 * y1, -1, p) % p
    else:
        slope = (y2 - y1) * pow(x2 - x1, -1, p) % p
    x3 = (slope * slope - x1 - x2) % p
    return x3, (slope * (x1 - x3) - y1) % p


def lift_x(curve: Curve, x: int, neighbour: Point) -> Point | None:
    """Return one of the two points with this ``x``; ``neighbour``, any point of the curve, tells the curve's b."""
    p = curve.prime
    b = neighbour[1] ** 2 - neighbour[0] ** 3 + 3 * neighbour[0]
    square = (x**3 - 3 * x + b) % p
    y = pow(square, (p + 1) // 4, p)
    return (x, y) if y * y % p == square else None


def blind(jwe: CompactJwe, ephemeral: ec.EllipticCurvePublicKey) -> PublicJwk:
    """Return what the server gets to see: the slot's key plus a fresh one, which says nothing of either.

    Raises ``vault.tang.refused`` for the sum at infinity, which only the holder of the fresh key could bring about.
    """
    numbers = ephemeral.public_numbers()
    total = add_points(jwe.recipient.curve, jwe.ephemeral.point, (numbers.x, numbers.y))
    if total is None:
        raise TangRefused("the slot's key cancels the fresh one", key_id=jwe.key_id)
    return PublicJwk(curve=jwe.recipient.curve, point=total)


def unblind(answer: PublicJwk, mask: bytes, recipient: PublicJwk) -> list[bytearray]:
    """Return the two secrets that the answer can mean; which one it is, the slot's tag says.

    ``mask`` is the x coordinate of the fresh key times the server's, from the library's constant-time ECDH. It is
    new each time, so that the arithmetic here, whose time depends on its numbers, tells nothing worth to be told.
    As only x counts, the negative of the right answer means the same secret.
    """
    curve = answer.curve
    point = lift_x(curve, int.from_bytes(mask, "big"), recipient.point)
    if point is None:
        return []
    sums = [add_points(curve, answer.point, (point[0], y)) for y in (point[1], curve.prime - point[1])]
    return [bytearray(one[0].to_bytes(curve.size_bytes, "big")) for one in sums if one is not None]
