"""A device's identity from birth to retirement: its states, its generations, when to renew, what time it is. Pure.

Every change is one function from a record to the next record; ``identity_store`` makes each durable before the world
is changed to match, so that a power cut leaves a record that says what remains to be done.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from tidegate.base.clock import Entropy
from tidegate.pki.errors import IdentityCorrupt, IdentityTransition

FORMAT = "tidegate.identity.v1"
MAX_RECORD_BYTES = 1_048_576  # two chains and two sets of anchors, in base64, with room to spare
BUILD_FLOOR_S = 1_793_491_200  # 2026-11-01: this file was not there before, so no earlier time can be right
BACKOFF_BASE_S = 30
BACKOFF_CAP_S = 6 * 3600  # long enough for a fleet not to wake a server up in one moment, short against any lifetime
MAX_TRIALS = 8  # failed uses of a new certificate before it is given up and another one is asked for
RENEW_FRACTION = 2 / 3  # of the lifetime: what is left is for servers that are down
RENEW_JITTER = 1 / 20  # of the lifetime, to either side: devices made on one day must not all renew on one day


class State(enum.Enum):
    """What a device is to its peers."""

    NONE = "none"  # not even a birth certificate
    IDEVID = "idevid"  # the birth certificate alone
    ENROLLING = "enrolling"  # asks for its first certificate here, or for one after losing the last
    ACTIVE = "active"
    RENEWING = "renewing"  # active, with a successor under way
    EXPIRED = "expired"
    REVOKED = "revoked"
    RETIRED = "retired"  # for ever; every key since delivery is gone


class Event(enum.Enum):
    """What changes it."""

    BORN = "born"  # an IDevID is there
    BEGIN = "begin"  # a new generation was begun
    CONFIRM = "confirm"  # its certificate worked at a real peer
    ABANDON = "abandon"  # it was given up
    EXPIRE = "expire"
    RESTORE = "restore"  # it was not expired: the clock was wrong
    REVOKE = "revoke"
    RESET = "reset"  # back to the state of delivery
    RETIRE = "retire"


_S, _E = State, Event
TRANSITIONS: dict[tuple[State, Event], State] = {
    (_S.NONE, _E.BORN): _S.IDEVID,
    (_S.NONE, _E.BEGIN): _S.ENROLLING,  # with a token
    (_S.IDEVID, _E.BEGIN): _S.ENROLLING,
    (_S.ENROLLING, _E.CONFIRM): _S.ACTIVE,
    (_S.ENROLLING, _E.ABANDON): _S.NONE,
    (_S.ACTIVE, _E.BEGIN): _S.RENEWING,
    (_S.ACTIVE, _E.EXPIRE): _S.EXPIRED,
    (_S.ACTIVE, _E.REVOKE): _S.REVOKED,
    (_S.RENEWING, _E.CONFIRM): _S.ACTIVE,
    (_S.RENEWING, _E.ABANDON): _S.ACTIVE,
    (_S.RENEWING, _E.EXPIRE): _S.ENROLLING,
    (_S.RENEWING, _E.REVOKE): _S.ENROLLING,
    (_S.EXPIRED, _E.RESTORE): _S.ACTIVE,
    (_S.EXPIRED, _E.BEGIN): _S.ENROLLING,
    (_S.EXPIRED, _E.REVOKE): _S.REVOKED,
    (_S.REVOKED, _E.BEGIN): _S.ENROLLING,
    **{(state, _E.RESET): _S.NONE for state in _S if state is not _S.RETIRED},
    **{(state, _E.RETIRE): _S.RETIRED for state in _S},
}


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An EST server and the anchors (DER) that it and the certificates from it have to lead to."""

    host: str
    port: int
    label: str = ""
    anchors: tuple[bytes, ...] = ()


def is_same_server(one: Endpoint, other: Endpoint) -> bool:
    """Say whether both name one server, whatever anchors it was reached with: those change in a rollover."""
    return (one.host, one.port, one.label) == (other.host, other.port, other.label)


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """A key and, once issued, its chain (DER, its own certificate first) from ``endpoint``."""

    number: int
    endpoint: Endpoint
    chain: tuple[bytes, ...] = ()
    not_before_s: int = 0
    not_after_s: int = 0

    @property
    def key_name(self) -> str:
        """Return the name of the key in its provider; a number is used once."""
        return key_name(self.number)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of an identity.

    ``leaving`` are generations whose keys are to be destroyed. ``floor_s`` is the newest time that something signed
    and verified vouched for, unless ``issue`` found that to be wrong.
    """

    format: str = FORMAT
    state: State = State.NONE
    next_number: int = 1
    active: Generation | None = None
    pending: Generation | None = None
    leaving: tuple[int, ...] = ()
    failures: int = 0
    retry_at_s: int = 0
    renew_at_s: int = 0
    floor_s: int = BUILD_FLOOR_S

    def numbers(self) -> frozenset[int]:
        """Return the generations whose keys have to be there."""
        return frozenset(one.number for one in (self.active, self.pending) if one is not None)


class Step(enum.Enum):
    """What is to be done next."""

    WAIT = "wait"
    CLEAN = "clean"  # destroy the keys of generations that are leaving
    BEGIN = "begin"
    REQUEST = "request"
    TRY = "try"  # use the new certificate at its server
    EXPIRE = "expire"
    RESTORE = "restore"


def key_name(number: int) -> str:
    """Return the provider's name of a generation's key."""
    return f"identity-{number}"


def encode_record(record: Record) -> bytes:
    """Return a record as JSON."""
    return msgspec.json.encode(record)


def parse_record(raw: bytes) -> Record:
    """Return the record in ``raw``, whole and consistent with itself, or raise ``pki.identity.corrupt``."""
    try:
        record = msgspec.json.decode(raw, type=Record)
    except (msgspec.MsgspecError, ValueError) as error:
        raise IdentityCorrupt(f"the identity's journal cannot be read: {error}") from error
    numbers = [one.number for one in (record.active, record.pending) if one is not None]
    plausible = (
        record.format == FORMAT
        and len(set(numbers)) == len(numbers)
        and all(0 < number < record.next_number for number in (*numbers, *record.leaving))
        and (record.active is None or bool(record.active.chain))
        and not set(numbers) & set(record.leaving)
    )
    if not plausible:
        raise IdentityCorrupt("the identity's journal contradicts itself")
    return record


def follow(state: State, event: Event) -> State:
    """Return the state after ``event``, or raise ``pki.identity.transition``."""
    found = TRANSITIONS.get((state, event))
    if found is None:
        raise IdentityTransition(f"an identity that is {state.value} does not {event.value}", state=state.value)
    return found


def born(record: Record) -> Record:
    """Return the record of a device that found its IDevID."""
    return _change(record, Event.BORN)


def begin(record: Record, endpoint: Endpoint) -> Record:
    """Return the record with a new generation under way at ``endpoint``; one that was under way is left behind."""
    if record.pending is not None:
        record = abandon(record)
    fresh = Generation(number=record.next_number, endpoint=endpoint)
    return _change(record, Event.BEGIN, pending=fresh, next_number=record.next_number + 1)


def issue(record: Record, chain: tuple[bytes, ...], validity: range) -> Record:
    """Return the record with the certificate of the generation under way; its notBefore is a signed time.

    One that ended before the floor shows that the floor was raised by a server whose clock ran ahead: nobody could have
    signed it earlier, as its key is new. The floor falls to it; else no certificate would count for years.
    """
    if record.pending is None:
        raise IdentityTransition("no certificate was asked for", state=record.state.value)
    pending = msgspec.structs.replace(
        record.pending, chain=chain, not_before_s=validity.start, not_after_s=validity.stop - 1
    )
    floor_s = validity.start if validity.stop - 1 < record.floor_s else record.floor_s
    changed = msgspec.structs.replace(record, pending=pending, failures=0, retry_at_s=0, floor_s=floor_s)
    return raise_floor(changed, validity.start)


def confirm(record: Record, entropy: Entropy) -> Record:
    """Return the record in which the new generation is the active one, and the old one leaves."""
    if record.pending is None or not record.pending.chain:
        raise IdentityTransition("no new certificate is waiting", state=record.state.value)
    leaving = record.leaving + ((record.active.number,) if record.active else ())
    return _change(
        record,
        Event.CONFIRM,
        active=record.pending,
        pending=None,
        leaving=leaving,
        renew_at_s=renewal_moment(record.pending, entropy),
        failures=0,
        retry_at_s=0,
    )


def abandon(record: Record) -> Record:
    """Return the record without the generation under way."""
    if record.pending is None:
        raise IdentityTransition("nothing is under way", state=record.state.value)
    return _change(record, Event.ABANDON, pending=None, leaving=(*record.leaving, record.pending.number))


def fail(record: Record, *, now_s: float, entropy: Entropy, retry_after_s: int = 0) -> Record:
    """Return the record after an attempt that failed; the next one waits longer.

    ``retry_after_s`` is what the server asked for, obeyed up to the cap. A new certificate that failed too often is
    given up.
    """
    failures = record.failures + 1
    wait = max(backoff_s(failures, entropy), min(retry_after_s, BACKOFF_CAP_S))
    if record.pending is not None and record.pending.chain and failures >= MAX_TRIALS:
        record = abandon(record)
    return msgspec.structs.replace(record, failures=failures, retry_at_s=int(now_s + wait))


def disown(record: Record, numbers: tuple[int, ...]) -> Record:
    """Return the record that also lets go of the keys ``numbers``, whoever made them."""
    passed = pass_by(record, numbers)
    return msgspec.structs.replace(passed, leaving=tuple(sorted({*record.leaving, *numbers})))


def pass_by(record: Record, numbers: tuple[int, ...]) -> Record:
    """Return the record that never uses ``numbers``: keys of these names are there, and it did not make them."""
    return msgspec.structs.replace(record, next_number=max((record.next_number, *(one + 1 for one in numbers))))


def cleaned(record: Record) -> Record:
    """Return the record after the keys of all leaving generations were destroyed."""
    return msgspec.structs.replace(record, leaving=())


def expire(record: Record) -> Record:
    """Return the record of a device whose certificate ran out."""
    return _change(record, Event.EXPIRE)


def restore(record: Record) -> Record:
    """Return the record of a device whose certificate had not run out after all."""
    return _change(record, Event.RESTORE)


def revoke(record: Record) -> Record:
    """Return the record of a device whose certificate its CA took back: its key leaves."""
    leaving = record.leaving + ((record.active.number,) if record.active else ())
    return _change(record, Event.REVOKE, active=None, leaving=leaving)


def lose(record: Record) -> Record:
    """Return the record of a device whose active key is gone, whoever destroyed it: nothing but enrolment is left."""
    changed = record if record.state in (State.ENROLLING, State.NONE, State.IDEVID) else _change(record, Event.REVOKE)
    return msgspec.structs.replace(changed, active=None)


def forget(record: Record, event: Event) -> Record:
    """Return the record after ``RESET`` or ``RETIRE``: every generation leaves, numbers and floor stay."""
    return _change(
        record,
        event,
        active=None,
        pending=None,
        leaving=tuple(sorted({*record.leaving, *record.numbers()})),
        failures=0,
        retry_at_s=0,
        renew_at_s=0,
    )


def plan_step(record: Record, *, now_s: float) -> tuple[Step, float]:
    """Return what to do at ``now_s`` (never before the floor), and for how many seconds nothing is to be done.

    An expired identity is begun anew by who has an IDevID or token: the step is ``BEGIN`` whenever nothing is active.
    """
    now_s = max(now_s, record.floor_s)
    wait = max(0.0, record.retry_at_s - now_s)
    if record.leaving:
        return Step.CLEAN, 0.0
    if record.state is State.RETIRED:
        return Step.WAIT, float(BACKOFF_CAP_S)
    if record.active is not None:
        is_over = now_s > record.active.not_after_s
        if is_over and record.state in (State.ACTIVE, State.RENEWING):
            return Step.EXPIRE, 0.0
        if not is_over and record.state is State.EXPIRED:
            return Step.RESTORE, 0.0
    if wait > BACKOFF_CAP_S:  # the clock was put back since: the server was not asked to wait for that
        wait = 0.0
    if record.pending is not None:
        step = Step.TRY if record.pending.chain else Step.REQUEST
        return (Step.WAIT, wait) if wait else (step, 0.0)
    if record.state is State.ACTIVE and now_s < record.renew_at_s:
        return Step.WAIT, record.renew_at_s - now_s
    return (Step.WAIT, wait) if wait else (Step.BEGIN, 0.0)


def renewal_moment(generation: Generation, entropy: Entropy) -> int:
    """Return when to renew, in seconds since 1970: at two thirds of the lifetime, give or take a twentieth."""
    lifetime = generation.not_after_s - generation.not_before_s
    fraction = RENEW_FRACTION + RENEW_JITTER * (2 * _chance(entropy) - 1)
    return generation.not_before_s + int(lifetime * fraction)


def backoff_s(failures: int, entropy: Entropy) -> float:
    """Return how long to wait after so many failures in a row: doubling, capped, the upper half by chance."""
    full = min(BACKOFF_CAP_S, BACKOFF_BASE_S << min(failures - 1, 20))
    return full * (0.5 + 0.5 * _chance(entropy))


def raise_floor(record: Record, signed_s: float) -> Record:
    """Return the record whose time is not before ``signed_s``, a time that a verified signature vouched for.

    The device's own clock never raises the floor: one that runs ahead once would else make every certificate look
    expired for ever.
    """
    return msgspec.structs.replace(record, floor_s=max(record.floor_s, int(signed_s)))


def trusted_now_s(record: Record, clock_s: float) -> float:
    """Return the best time known: the clock's, unless it stands before the floor (a device without a battery)."""
    return max(clock_s, float(record.floor_s))


def _chance(entropy: Entropy) -> float:
    return int.from_bytes(entropy.random_bytes(4), "big") / 4_294_967_296


def _change(record: Record, event: Event, **fields: Any) -> Record:
    return msgspec.structs.replace(record, state=follow(record.state, event), **fields)
