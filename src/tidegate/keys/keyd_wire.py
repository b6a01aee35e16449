"""What the key process and its clients say to each other: requests and replies as bytes, strict both ways.

A message is four bytes of length, big endian, and that many bytes of deterministic CBOR (``crypto.cbor``):

- request ``[version, operation, name, [argument, …]]``; what follows the name depends on the operation alone;
- reply ``[version, 0, value]``, or ``[version, 1, [code, message, {field: value}]]`` for an error.

Pure: no socket here. Private keys travel in ``export`` and ``import`` only.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tidegate.base.errors import TidegateError, registered_codes
from tidegate.crypto import cbor
from tidegate.crypto.aead import Secret
from tidegate.crypto.errors import CborLimit, CborMalformed
from tidegate.crypto.signing import PublicKey, SignatureAlgorithm, parse_public_key
from tidegate.keys.errors import KeydMessageMalformed, ProviderFailed
from tidegate.keys.store import (
    Capabilities,
    KeyInfo,
    KeyPolicy,
    KeyPurpose,
    KeySpec,
    PcrAuthority,
    Quote,
    check_key_name,
)

VERSION = 1
HEAD_BYTES = 4
MAX_MESSAGE_BYTES = 1 << 20  # what is signed or sealed in one piece: manifests, policies, CRLs; never firmware itself

_Packed: TypeAlias = cbor.Value


class Operation(enum.Enum):
    """What a client may ask for; the same words stand in the grants."""

    CAPABILITIES = "capabilities"
    LIST = "list"
    RANDOM = "random"
    PUBLIC = "public"
    SIGN = "sign"
    SEAL = "seal"
    UNSEAL = "unseal"
    COUNTER_READ = "counter-read"
    COUNTER_INCREMENT = "counter-increment"
    QUOTE = "quote"
    CERTIFICATES = "certificates"
    KEEP_CERTIFICATES = "keep-certificates"
    GENERATE = "generate"
    EXPORT = "export"
    IMPORT = "import"
    DESTROY = "destroy"


NAMELESS = frozenset({Operation.CAPABILITIES, Operation.LIST, Operation.RANDOM})

# operation -> kinds of its arguments, kind of its answer
_SHAPES: dict[Operation, tuple[tuple[str, ...], str]] = {
    Operation.CAPABILITIES: ((), "capabilities"),
    Operation.LIST: ((), "infos"),
    Operation.RANDOM: (("int",), "bytes"),
    Operation.PUBLIC: ((), "public"),
    Operation.SIGN: (("bytes",), "bytes"),
    Operation.SEAL: (("bytes", "bytes"), "bytes"),
    Operation.UNSEAL: (("bytes", "bytes"), "secret"),
    Operation.COUNTER_READ: ((), "int"),
    Operation.COUNTER_INCREMENT: ((), "int"),
    Operation.QUOTE: (("bytes", "pcrs"), "quote"),
    Operation.CERTIFICATES: ((), "chain"),
    Operation.KEEP_CERTIFICATES: (("chain",), "nothing"),
    Operation.GENERATE: (("spec",), "info"),
    Operation.EXPORT: ((), "secret"),
    Operation.IMPORT: (("bytes", "spec"), "info"),
    Operation.DESTROY: ((), "nothing"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request; ``name`` is empty where the operation needs no key. Its repr shows no argument."""

    operation: Operation
    name: str
    arguments: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"<Request {self.operation.value} {self.name}>"


def frame(body: bytes) -> bytes:
    """Return ``body`` with its length before it."""
    if len(body) > MAX_MESSAGE_BYTES:
        raise KeydMessageMalformed(f"a message has at most {MAX_MESSAGE_BYTES} bytes, this one {len(body)}")
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def parse_head(head: bytes) -> int:
    """Return the length that a message's head tells; raise ``keys.keyd.malformed`` for one over the limit, or zero."""
    length = int.from_bytes(head, "big")
    if len(head) != HEAD_BYTES or not 0 < length <= MAX_MESSAGE_BYTES:
        raise KeydMessageMalformed(f"a message of {length} bytes; at most {MAX_MESSAGE_BYTES}")
    return length


def encode_request(request: Request) -> bytes:
    """Return the body of a request."""
    kinds = _SHAPES[request.operation][0]
    packed = [_PACK[kind](value) for kind, value in zip(kinds, request.arguments, strict=True)]
    return cbor.encode([VERSION, request.operation.value, request.name, packed])


def parse_request(body: bytes) -> Request:
    """Return the request in ``body``, or raise ``keys.keyd.malformed`` or ``keys.name.invalid``."""
    match _decode(body):
        case [version, str() as word, str() as name, list() as packed] if _is(version, VERSION):
            pass
        case _:
            raise KeydMessageMalformed("no request of this version")
    try:
        operation = Operation(word)
    except ValueError as error:
        raise KeydMessageMalformed("a request for an unknown operation") from error
    kinds = _SHAPES[operation][0]
    if len(packed) != len(kinds) or (operation in NAMELESS and name):
        raise KeydMessageMalformed(f"a request to {word} with too many or too few arguments")
    if operation not in NAMELESS:
        check_key_name(name)
    arguments = tuple(_unpack(kind, value) for kind, value in zip(kinds, packed, strict=True))
    return Request(operation=operation, name=name, arguments=arguments)


def encode_answer(operation: Operation, value: object) -> bytes:
    """Return the body of a reply that says ``value``."""
    return cbor.encode([VERSION, 0, _PACK[_SHAPES[operation][1]](value)])


def encode_error(error: TidegateError) -> bytes:
    """Return the body of a reply that says that ``error`` happened there."""
    return cbor.encode([VERSION, 1, [error.code, error.message, dict(error.fields)]])


def parse_reply(operation: Operation, body: bytes) -> Any:  # what _SHAPES says of the operation
    """Return what a reply says, or raise the error that it carries: the same class, message and fields.

    An error of an unknown code is ``keys.provider.failed``; ``keys.keyd.malformed`` if this is no reply.
    """
    match _decode(body):
        case [version, failed, value] if _is(version, VERSION) and _is(failed, 0):
            return _unpack(_SHAPES[operation][1], value)
        case [version, failed, [str() as code, str() as message, dict() as told]] if _is(version, VERSION) and _is(
            failed, 1
        ):
            fields = {
                field: value
                for field, value in told.items()
                if isinstance(field, str) and (value is None or isinstance(value, (str, int)))
            }
            if len(fields) != len(told) or not {"self", "message"}.isdisjoint(fields):
                raise KeydMessageMalformed("an error with fields that none has")
            kind = registered_codes().get(code)
            if kind is None:
                raise ProviderFailed(f"{message} [{code}]", **fields)
            raise kind(message, **fields)
        case _:
            raise KeydMessageMalformed("no reply of this version")


def _is(value: _Packed, number: int) -> bool:
    """Return whether ``value`` is this number, and not a truth that Python takes for it."""
    return type(value) is int and value == number


def _decode(body: bytes) -> _Packed:
    try:
        return cbor.decode(body, limit_bytes=MAX_MESSAGE_BYTES)
    except (CborMalformed, CborLimit) as error:
        raise KeydMessageMalformed(f"a message that is no CBOR of ours: {error.message}") from error


def _unpack(kind: str, value: _Packed) -> Any:
    try:
        return _UNPACK[kind](value)
    except (ValueError, TypeError, KeyError) as error:  # a wrong type, size, number or member
        raise KeydMessageMalformed(f"a value that is no {kind}") from error


def _typed(kind: type) -> Callable[[_Packed], Any]:
    def unpack(value: _Packed) -> Any:
        if type(value) is not kind:
            raise TypeError(f"no {kind.__name__}")
        return value

    return unpack


def _pack_spec(spec: KeySpec) -> _Packed:
    policy, authority = spec.policy, spec.policy.pcr_authority
    return [
        spec.purpose.value,
        None if spec.algorithm is None else int(spec.algorithm),
        [
            policy.exportable,
            [*sorted(policy.pcrs)],
            policy.user_auth,
            None if authority is None else [authority.key.encode(), authority.product, authority.floor],
            policy.revocable,
        ],
    ]


def _unpack_spec(value: _Packed) -> KeySpec:
    match value:
        case [
            str() as purpose,
            None | int() as algorithm,
            [bool() as exportable, pcrs, bool() as user_auth, authority, bool() as revocable],
        ]:
            return KeySpec(
                purpose=KeyPurpose(purpose),
                algorithm=None if algorithm is None else SignatureAlgorithm(algorithm),
                policy=KeyPolicy(
                    exportable=exportable,
                    pcrs=_unpack_pcrs(pcrs),
                    user_auth=user_auth,
                    pcr_authority=_unpack_authority(authority),
                    revocable=revocable,
                ),
            )
    raise TypeError("no specification")


def _unpack_authority(value: _Packed) -> PcrAuthority | None:
    match value:
        case None:
            return None
        case [bytes() as key, str() as product, None | str() as floor]:
            return PcrAuthority(key=_unpack_given_public(key), product=product, floor=floor)
    raise TypeError("no PCR authority")


def _unpack_pcrs(value: _Packed) -> frozenset[int]:
    if not isinstance(value, list) or any(type(pcr) is not int for pcr in value):
        raise TypeError("no registers")
    pcrs = frozenset(pcr for pcr in value if isinstance(pcr, int))
    KeyPolicy(pcrs=pcrs)  # its range check
    if value != sorted(pcrs):
        raise ValueError("registers out of order or repeated")
    return pcrs


def _pack_public(public: PublicKey | None) -> _Packed:
    return None if public is None else public.encode()


def _unpack_public(value: _Packed) -> PublicKey | None:
    if value is None:
        return None
    if not isinstance(value, bytes):
        raise TypeError("no public key")
    return parse_public_key(value)


def _unpack_given_public(value: _Packed) -> PublicKey:
    public = _unpack_public(value)
    if public is None:
        raise TypeError("no public key")
    return public


def _pack_info(info: KeyInfo) -> _Packed:
    return [info.name, _pack_spec(info.spec), _pack_public(info.public_key)]


def _unpack_info(value: _Packed) -> KeyInfo:
    match value:
        case [str() as name, spec, public]:
            return KeyInfo(name=check_key_name(name), spec=_unpack_spec(spec), public_key=_unpack_public(public))
    raise TypeError("no key")


def _unpack_list(unpack: Callable[[_Packed], Any]) -> Callable[[_Packed], list[Any]]:
    def unpack_all(value: _Packed) -> list[Any]:
        if not isinstance(value, list):
            raise TypeError("no list")
        return [unpack(one) for one in value]

    return unpack_all


def _unpack_chain(value: _Packed) -> tuple[bytes, ...]:
    return tuple(_unpack_list(_typed(bytes))(value))


_FLAGS = (
    "hardware",
    "can_seal",
    "can_count",
    "counter_resists_rollback",
    "can_quote",
    "can_export",
    "can_bind_pcrs",
    "can_user_auth",
    "can_keep_certificates",
    "can_follow_pcr_authority",
    "can_revoke",
)


def _pack_capabilities(able: Capabilities) -> _Packed:
    return [
        able.provider,
        [int(one) for one in sorted(able.algorithms)],
        {flag: bool(getattr(able, flag)) for flag in _FLAGS},
    ]


def _unpack_capabilities(value: _Packed) -> Capabilities:
    match value:
        case [str() as provider, list() as algorithms, dict() as flags] if set(flags) == set(_FLAGS):
            known = set(SignatureAlgorithm)
            return Capabilities(
                provider=provider,
                algorithms=frozenset(SignatureAlgorithm(one) for one in algorithms if one in known),
                **{flag: _typed(bool)(flags[flag]) for flag in _FLAGS},
            )
    raise TypeError("no capabilities")


def _pack_quote(quote: Quote) -> _Packed:
    return [quote.attest, quote.signature, {pcr: digest for pcr, digest in quote.pcrs.items()}]  # noqa: C416  # its type


def _unpack_quote(value: _Packed) -> Quote:
    match value:
        case [bytes() as attest, bytes() as signature, dict() as pcrs]:
            values = {_typed(int)(pcr): _typed(bytes)(digest) for pcr, digest in pcrs.items()}
            return Quote(attest=attest, signature=signature, pcrs=values)
    raise TypeError("no quote")


def _unpack_nothing(value: _Packed) -> None:
    if value is not None:
        raise TypeError("something")


_PACK: dict[str, Callable[[Any], _Packed]] = {
    "nothing": lambda _: None,
    "int": int,
    "bytes": bytes,
    "secret": lambda secret: bytes(secret.view()),
    "pcrs": sorted,
    "chain": lambda chain: [bytes(one) for one in chain],
    "spec": _pack_spec,
    "public": _pack_public,
    "info": _pack_info,
    "infos": lambda infos: [_pack_info(info) for info in infos],
    "capabilities": _pack_capabilities,
    "quote": _pack_quote,
}
_UNPACK: dict[str, Callable[[_Packed], Any]] = {
    "nothing": _unpack_nothing,
    "int": _typed(int),
    "bytes": _typed(bytes),
    "secret": lambda value: Secret(_typed(bytes)(value)),
    "pcrs": _unpack_pcrs,
    "chain": _unpack_chain,
    "spec": _unpack_spec,
    "public": _unpack_given_public,
    "info": _unpack_info,
    "infos": _unpack_list(_unpack_info),
    "capabilities": _unpack_capabilities,
    "quote": _unpack_quote,
}
