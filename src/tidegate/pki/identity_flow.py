"""Keeps a device's identity alive: one step after the other, each of them safe to be cut off and taken again.

Touches nothing itself: the store keeps, ``connect`` reaches the server, ``report`` hears of every change and refusal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tidegate.base.clock import Clock, Entropy
from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import Signer
from tidegate.pki import identity
from tidegate.pki.errors import IdentityMissing
from tidegate.pki.identity import Endpoint, Event, Record, State, Step
from tidegate.pki.identity_store import Credential, IdentityStore

_BOOTSTRAP_EVERY = 4  # failed renewals: then the IDevID is tried once, in case the certificate was revoked


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A verified certificate with its chain (DER), and its validity in seconds since 1970, both ends included."""

    chain: tuple[bytes, ...]
    not_before_s: int
    not_after_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityReport:
    """What happened to the identity: ``kind`` is a step or an event, ``code`` a refusal's; nothing in it is secret."""

    kind: str
    state: str
    generation: int | None
    message: str
    code: str | None = None


class EnrolmentPeer(Protocol):
    """An open connection to an EST server, made with a credential or with a token."""

    def enrol(self, signer: Signer, *, renew: bool) -> Issued:
        """Return a certificate for ``signer``'s key, verified; raise ``pki.est.*`` and what the connection raises."""
        ...

    def prove(self) -> float:
        """Do something that only a server which accepts the credential answers; return the server's signed time."""
        ...


Connect = Callable[[Endpoint, Credential | None], AbstractContextManager[EnrolmentPeer]]


class Keeper:
    """Takes the steps that ``identity.plan_step`` names.

    ``bootstrap`` is the IDevID; without one ``connect`` is called without a credential and has to have a token.
    """

    def __init__(
        self,
        store: IdentityStore,
        connect: Connect,
        *,
        endpoint: Endpoint,
        bootstrap: Credential | None,
        clock: Clock,
        entropy: Entropy,
        report: Callable[[IdentityReport], None],
    ) -> None:
        self._store, self._connect, self._endpoint = store, connect, endpoint
        self._bootstrap, self._clock, self._entropy, self._report = bootstrap, clock, entropy, report
        self._floor = (store.record.floor_s, clock.monotonic_s())
        if bootstrap is not None and store.record.state is State.NONE:
            store.change(identity.born)

    def step(self) -> float:
        """Take the next step and return for how many seconds nothing is to be done (0: another step is due).

        What the server refuses, the network loses or the provider of keys fails at is reported and waited for. What
        the identity's own storage cannot do is raised.
        """
        step, wait = identity.plan_step(self._store.record, now_s=self._now_s())
        if step is Step.CLEAN:
            self._store.clean()
        elif step is Step.EXPIRE:
            self._note(step.value, self._store.change(identity.expire), "the certificate ran out")
        elif step is Step.RESTORE:
            self._note(step.value, self._store.change(identity.restore), "the clock was wrong, the certificate is not")
        elif step is Step.BEGIN:
            self.begin(self._endpoint)
        elif step in (Step.REQUEST, Step.TRY):
            return self._attempt(step)
        return wait

    def run_until_settled(self) -> None:
        """Take steps until there is nothing to do at present; raise the first refusal instead of waiting for it."""
        for _ in range(16):  # the longest way, from an expired identity to a cleaned new one, has eight
            record = self._store.record
            step, wait = identity.plan_step(record, now_s=self._now_s())
            if wait and record.pending is None:
                return
            if step is Step.WAIT:  # somebody asks now: the back-off is for a service alone
                step = Step.TRY if record.pending and record.pending.chain else Step.REQUEST
            if step in (Step.REQUEST, Step.TRY):
                self._take(step)
            else:
                self.step()

    def begin(self, endpoint: Endpoint) -> None:
        """Begin a new generation at ``endpoint``, whether or not the present one is due; with another one, move."""
        record = self._store.change(lambda record: identity.begin(record, endpoint))
        self._note("begin", record, f"a new certificate is asked for at {endpoint.host}")

    def follow(self) -> None:
        """Ask the server that we were told of, if what is under way is asked for elsewhere or with other anchors.

        Else a device whose server moved while it was asking would go on asking at the old place for ever.
        """
        pending = self._store.record.pending
        if pending is not None and pending.endpoint != self._endpoint:
            self.begin(self._endpoint)

    def forget(self, event: Event) -> None:
        """Go back to the state of delivery (``RESET``) or end (``RETIRE``): every key but the IDevID's is destroyed."""
        record = self._store.change(lambda record: identity.forget(record, event))
        self._store.clean()
        self._note(event.value, record, "every certificate and key since delivery is gone")

    def _now_s(self) -> float:
        """Return the clock's time; while that stands before the floor, the floor's and what has passed since.

        Else a device would wait for ever at a floor that its own clock does not reach.
        """
        floor_s, now_s = self._store.record.floor_s, self._clock.monotonic_s()
        if floor_s != self._floor[0]:
            self._floor = (floor_s, now_s)
        return max(self._clock.now_s(), floor_s + max(0.0, now_s - self._floor[1]))

    def _attempt(self, step: Step) -> float:
        try:
            self._take(step)
        except TidegateError as error:
            after = error.fields.get("retry_after_s")
            asked_s = after if isinstance(after, int) else 0
            now_s = self._now_s()
            record = self._store.change(
                lambda record: identity.fail(record, now_s=now_s, entropy=self._entropy, retry_after_s=asked_s)
            )
            self._note("failed", record, error.message, error.code)
            return identity.plan_step(record, now_s=now_s)[1]
        return 0.0

    def _take(self, step: Step) -> None:
        pending = self._store.record.pending
        if pending is None:
            raise IdentityMissing("no new identity is under way")
        if step is Step.REQUEST:
            signer = self._store.pending_signer()
            credential, renew = self._choose(pending.endpoint)
            with self._connect(pending.endpoint, credential) as peer:
                issued = peer.enrol(signer, renew=renew)
            validity = range(issued.not_before_s, issued.not_after_s + 1)
            self._note("issued", self._store.change(lambda r: identity.issue(r, issued.chain, validity)), "issued")
            return
        self._store.keep_chain(pending)
        with self._connect(pending.endpoint, self._store.credential(pending)) as peer:
            signed_s = peer.prove()
        # a server whose clock runs ahead may make us renew, but not take everything later for expired
        self._store.change(lambda record: identity.raise_floor(record, min(signed_s, pending.not_after_s)))
        record = self._store.change(lambda record: identity.confirm(record, self._entropy))
        self._note("active", record, "the new certificate worked at the server; the one before it leaves")

    def _choose(self, endpoint: Endpoint) -> tuple[Credential | None, bool]:
        """Return what to authenticate with, and whether that is a renewal.

        A valid certificate of the same server renews itself; else, and now and then while that is refused, the IDevID
        or a token enrols.
        """
        record, now_s = self._store.record, self._clock.now_s()
        renewable = record.active is not None and identity.is_same_server(record.active.endpoint, endpoint)
        if renewable and not (self._bootstrap and record.failures % _BOOTSTRAP_EVERY == _BOOTSTRAP_EVERY - 1):
            try:
                return self._store.active(now_s=now_s), True
            except IdentityMissing:
                pass
        return self._bootstrap, False

    def _note(self, kind: str, record: Record, message: str, code: str | None = None) -> None:
        generation = record.pending or record.active
        self._report(
            IdentityReport(
                kind=kind,
                state=record.state.value,
                generation=generation.number if generation else None,
                message=message,
                code=code,
            )
        )
