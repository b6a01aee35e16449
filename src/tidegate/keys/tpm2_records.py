"""The records of a TPM store's folder: bytes to values and back, nothing else.

A record is nobody's signature: what it says of a key counts once ``tpm2_files.check_key`` found the TPM's object to say
the same. Bytes: docs/formats/tpm2.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tidegate.base.errors import Rejected
from tidegate.crypto import cbor
from tidegate.crypto.errors import CborLimit, CborMalformed
from tidegate.crypto.signing import SignatureAlgorithm, parse_public_key
from tidegate.keys.errors import StoreMalformed
from tidegate.keys.pcr_policy import MAX_VERSION, PCR_BYTES
from tidegate.keys.store import (
    MAX_CERTIFICATE_BYTES,
    MAX_CERTIFICATES,
    MAX_PCR,
    KeyPolicy,
    KeyPurpose,
    KeySpec,
    PcrAuthority,
)
from tidegate.keys.tpm2_floor import Floor
from tidegate.keys.tpm2_nvpolicy import AUTH_BYTES, Lifeline, Revocation

MAX_RECORD_BYTES = MAX_CERTIFICATES * (MAX_CERTIFICATE_BYTES + 8) + 4096
RH_OWNER = 0x40000001
PERSISTENT_HANDLES = range(0x81000000, 0x81800000)  # the owner's half (TPM 2.0 Part 2, §7.4)
COUNTER_INDICES = range(0x01500000, 0x01510000)
REVOCATION_INDICES = range(0x01510000, 0x01520000)
NAME_BYTES = 34
_STORE, _KEY, _COUNTER = "tidegate.tpm2.v1", "tidegate.tpm2.key.v1", "tidegate.tpm2.counter.v1"
_LIFELINE = "tidegate.tpm2.lifeline.v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreRecord:
    """Which key wraps the others: its handle (or the owner hierarchy), and its name so that no other passes for it."""

    parent: int
    parent_name: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What the folder says about a key besides its TSS2 file.

    ``pcrs`` are the values at birth, which bind a key without a PCR authority; of one with it there are none.
    ``floor`` is the counter of an authority with a floor, ``revocation`` that of a revocable key.
    """

    name: str
    spec: KeySpec
    pcrs: dict[int, bytes] = field(default_factory=dict)
    floor: Floor | None = None
    revocation: Revocation | None = None
    handle: int | None = None
    certificates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterRecord:
    """Where a counter lies and the raw count that stands for 0."""

    index: int
    base: int


def encode_store(record: StoreRecord) -> bytes:
    """Return ``store.cbor``."""
    return cbor.encode({"format": _STORE, "parent": record.parent, "parent_name": record.parent_name})


def parse_store(raw: bytes) -> StoreRecord:
    """Return what ``store.cbor`` says, or raise ``keys.store.malformed``."""
    match _document(raw, 512):
        case {"format": str(form), "parent": int(parent), "parent_name": bytes(name), **rest} if (
            form == _STORE
            and not rest
            and len(name) == NAME_BYTES
            and (parent == RH_OWNER or parent in PERSISTENT_HANDLES)
        ):
            return StoreRecord(parent=parent, parent_name=name)
    raise StoreMalformed("the folder holds no TPM key store of this version")


def encode_counter(record: CounterRecord) -> bytes:
    """Return ``NAME.counter``."""
    return cbor.encode({"format": _COUNTER, "index": record.index, "base": record.base})


def parse_counter(raw: bytes) -> CounterRecord:
    """Return what ``NAME.counter`` says, or raise ``keys.store.malformed``."""
    match _document(raw, 512):
        case {"format": str(form), "index": int(index), "base": int(base), **rest} if (
            form == _COUNTER and not rest and index in COUNTER_INDICES and base >= 0 and not isinstance(base, bool)
        ):
            return CounterRecord(index=index, base=base)
    raise StoreMalformed("a counter's record is damaged")


def encode_lifeline(line: Lifeline) -> bytes:
    """Return ``NAME.making``."""
    return cbor.encode({"format": _LIFELINE, "index": line.index, "auth": line.auth})


def parse_lifeline(raw: bytes) -> Lifeline:
    """Return what ``NAME.making`` says, or raise ``keys.store.malformed``."""
    match _document(raw, 512):
        case {"format": str(form), "index": int(index), "auth": bytes(auth), **rest} if (
            form == _LIFELINE and not rest and index in REVOCATION_INDICES and len(auth) == AUTH_BYTES
        ):
            return Lifeline(index=index, auth=auth)
    raise StoreMalformed("the note of a key that was being made is damaged")


def encode_record(record: KeyRecord) -> bytes:
    """Return ``NAME.key``; only a key with a PCR authority has that member, and only a revocable one its own."""
    spec, authority, revocation = record.spec, record.spec.policy.pcr_authority, record.revocation
    document: dict[str, object] = {
        "format": _KEY,
        "name": record.name,
        "purpose": spec.purpose.value,
        "algorithm": None if spec.algorithm is None else int(spec.algorithm),
        "user_auth": spec.policy.user_auth,
        "pcrs": record.pcrs,
        "handle": record.handle,
        "certificates": list(record.certificates),
    }
    if authority is not None:
        floor = record.floor
        document["authority"] = {
            "key": authority.key.encode(),
            "product": authority.product,
            "pcrs": [*sorted(spec.policy.pcrs)],
            "floor": None if floor is None else [floor.counter, floor.index, floor.base, floor.first],
        }
    if revocation is not None:
        document["revocation"] = [revocation.index, revocation.count, revocation.auth]
    return cbor.encode(document)


def parse_record(raw: bytes, name: str) -> KeyRecord:
    """Return the record of key ``name``, or raise ``keys.store.malformed``; one under another name is refused."""
    match _document(raw, MAX_RECORD_BYTES):
        case {
            "format": str(form),
            "name": str(named),
            "purpose": str(purpose),
            "algorithm": int() | None as algorithm,
            "user_auth": bool(user_auth),
            "pcrs": dict(pcrs),
            "handle": int() | None as handle,
            "certificates": list(chain),
            **rest,
        } if form == _KEY and set(rest) <= {"authority", "revocation"} and named == name:
            values = {pcr: value for pcr, value in pcrs.items() if isinstance(pcr, int) and isinstance(value, bytes)}
            certificates = tuple(one for one in chain if isinstance(one, bytes))
            sound = (
                len(values) == len(pcrs)
                and all(0 <= pcr <= MAX_PCR and len(value) == PCR_BYTES for pcr, value in values.items())
                and len(certificates) == len(chain) <= MAX_CERTIFICATES
                and all(0 < len(one) <= MAX_CERTIFICATE_BYTES for one in certificates)
                and (handle is None or handle in PERSISTENT_HANDLES)
                and not (values and "authority" in rest)
            )
            if sound:
                revocation = _parse_revocation(rest["revocation"]) if "revocation" in rest else None
                policy = KeyPolicy(pcrs=frozenset(values), user_auth=user_auth, revocable=revocation is not None)
                floor = None
                if "authority" in rest:
                    policy, floor = _with_authority(policy, rest["authority"])
                return KeyRecord(
                    name=name,
                    spec=_parse_spec(purpose, algorithm, policy),
                    pcrs=values,
                    floor=floor,
                    revocation=revocation,
                    handle=handle,
                    certificates=certificates,
                )
    raise StoreMalformed(f"the record of key {name!r} is damaged", key=name)


def _with_authority(policy: KeyPolicy, value: object) -> tuple[KeyPolicy, Floor | None]:
    match value:
        case {"key": bytes(key), "product": str(product), "pcrs": list(pcrs), "floor": counted, **rest} if not rest:
            registers = [pcr for pcr in pcrs if isinstance(pcr, int) and not isinstance(pcr, bool)]
            floor = _parse_floor(counted)
            if len(registers) == len(pcrs) and registers == sorted({*registers}):
                try:
                    named = None if floor is None else floor.counter
                    authority = PcrAuthority(key=parse_public_key(key), product=product, floor=named)
                    return replace(policy, pcrs=frozenset(registers), pcr_authority=authority), floor
                except (Rejected, ValueError) as error:
                    raise StoreMalformed(f"a key's PCR authority is none: {error}") from error
    raise StoreMalformed("a key's PCR authority is damaged")


def _parse_floor(value: object) -> Floor | None:
    match value:
        case None:
            return None
        case [str(counter), int(index), int(base), int(first)] if (
            index in COUNTER_INDICES and 0 <= base < 1 << 63 and 1 <= first <= MAX_VERSION and first is not True
        ):
            return Floor(counter=counter, index=index, base=base, first=first)
    raise StoreMalformed("the floor of a key's PCR authority is damaged")


def _parse_revocation(value: object) -> Revocation:
    match value:
        case [int(index), int(count), bytes(auth)] if (
            index in REVOCATION_INDICES
            and 0 <= count < 1 << 63
            and not isinstance(count, bool)
            and len(auth) == AUTH_BYTES
        ):
            return Revocation(index=index, count=count, auth=auth)
    raise StoreMalformed("the counter of a revocable key is damaged")


def _parse_spec(purpose: str, algorithm: int | None, policy: KeyPolicy) -> KeySpec:
    try:
        chosen = None if algorithm is None else SignatureAlgorithm(algorithm)
        return KeySpec(purpose=KeyPurpose(purpose), algorithm=chosen, policy=policy)
    except ValueError as error:
        raise StoreMalformed(f"a key's record is damaged: {error}") from error


def _document(raw: bytes, limit_bytes: int) -> cbor.Value:
    try:
        return cbor.decode(raw, limit_bytes=limit_bytes)
    except (CborMalformed, CborLimit) as error:
        raise StoreMalformed(f"a record of the TPM store is damaged: {error.message}") from error
