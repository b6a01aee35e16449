"""A device's identity: its table of states, renewal, back-off, clocks, and what the store refuses."""

import random

import msgspec
import pytest

from tidegate.base.clock import SystemEntropy
from tidegate.base.errors import TidegateError
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.pki import identity
from tidegate.pki.errors import EstPending, EstRefused, EstUnavailable
from tidegate.pki.identity import Event, Generation, Record, State, Step
from tidegate.pki.identity_store import IdentityStore, read_record
from tidegate.testing.identity import (
    ELSEWHERE,
    ENDPOINT,
    LIFETIME_S,
    START_S,
    Device,
    MemoryServer,
    SetClock,
    SteadyEntropy,
)

DEAD = EstUnavailable("nobody answers")


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_bytes(bytes(range(32)))
    return path


@pytest.fixture
def world(tmp_path, secret):
    (tmp_path / "device").mkdir(mode=0o700)
    return Device(tmp_path / "device", secret)


def refused(code, call, *arguments, **options):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **options)
    assert caught.value.code == code


# -- the table


def test_table_names_known_states_and_reaches_all():
    reached, frontier = {State.NONE}, [State.NONE]
    while frontier:
        state = frontier.pop()
        for (before, _), after in identity.TRANSITIONS.items():
            if before is state and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(State)


def test_retired_is_for_ever():
    assert {after for (before, _), after in identity.TRANSITIONS.items() if before is State.RETIRED} == {State.RETIRED}


@pytest.mark.parametrize(
    ("state", "event"),
    [(State.NONE, Event.CONFIRM), (State.IDEVID, Event.EXPIRE), (State.ACTIVE, Event.CONFIRM),
     (State.RETIRED, Event.BEGIN), (State.RETIRED, Event.RESET), (State.REVOKED, Event.CONFIRM)],
)  # fmt: skip
def test_steps_that_do_not_exist(state, event):
    refused("pki.identity.transition", identity.follow, state, event)


def test_nothing_is_issued_confirmed_or_abandoned_that_was_not_begun():
    refused("pki.identity.transition", identity.issue, Record(), (b"x",), range(1, 2))
    refused("pki.identity.transition", identity.confirm, Record(), SteadyEntropy())
    refused("pki.identity.transition", identity.abandon, Record())


# -- when


def test_renewal_is_spread_around_two_thirds():
    generation = Generation(number=1, endpoint=ENDPOINT, chain=(b"x",), not_before_s=0, not_after_s=LIFETIME_S)
    moments = [identity.renewal_moment(generation, SystemEntropy()) / LIFETIME_S for _ in range(500)]
    assert 0.61 < min(moments) < 0.64
    assert 0.69 < max(moments) < 0.72


def test_backoff_doubles_up_to_its_cap():
    waits = [identity.backoff_s(number, SteadyEntropy()) for number in range(1, 40)]
    assert waits == sorted(waits)
    assert waits[1] == 2 * waits[0]
    assert waits[-1] <= identity.BACKOFF_CAP_S
    assert len({identity.backoff_s(5, SystemEntropy()) for _ in range(20)}) > 10


def test_floor_rises_by_signed_times_only():
    record = identity.raise_floor(Record(), START_S)
    assert identity.raise_floor(record, START_S - 5).floor_s == START_S
    assert identity.trusted_now_s(record, 0.0) == START_S  # a clock that came up in 1970
    assert identity.trusted_now_s(record, START_S + 9.5) == START_S + 9.5


# -- what is kept


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}x", b"[]", b'{"format":"tidegate.identity.v2"}', b'{"state":"famous"}', b"\xff",
     b'{"next_number":1,"leaving":[1]}', b'{"next_number":-5,"leaving":[-6]}',
     identity.encode_record(Record(active=Generation(number=1, endpoint=ENDPOINT), next_number=2)),
     identity.encode_record(Record(pending=Generation(number=1, endpoint=ENDPOINT), next_number=2, leaving=(1,)))],
)  # fmt: skip
def test_damaged_records(raw):
    refused("pki.identity.corrupt", identity.parse_record, raw)


def test_records_survive_their_encoding():
    record = identity.begin(identity.born(Record()), ENDPOINT)
    assert identity.parse_record(identity.encode_record(record)) == record


def test_one_user_at_a_time(world, monkeypatch):
    monkeypatch.setattr("tidegate.pki.identity_store._LOCK_WAIT_S", 0.05)
    with IdentityStore(world.root / "identity", world.keys):
        refused("pki.identity.busy", IdentityStore, world.root / "identity", world.keys)


# -- the whole life


def test_birth_to_retirement(world):
    with world.keeper() as (keeper, store):
        assert store.record.state is State.IDEVID
        wait = world.settle(keeper)
        assert store.record.state is State.ACTIVE
        assert abs(wait - LIFETIME_S * 2 / 3) < 5
        assert world.server.uses[0] == ("enrol", "est.example", world.idevid)
        assert world.key_names() == {"idevid", "identity-1"}
        first = store.active(now_s=world.clock.now_s())
        assert world.keys.certificates("identity-1") == first.chain
        world.clock.time_s += wait
        world.settle(keeper)
        assert world.server.uses[2][0] == "renew"
        assert world.server.uses[2][2].chain == first.chain
        assert world.key_names() == {"idevid", "identity-2"}  # a new key each time, the old one gone
        world.prove(store.active(now_s=world.clock.now_s()))
        keeper.forget(Event.RETIRE)
        assert world.key_names() == {"idevid"}
        assert store.record.state is State.RETIRED
        refused("pki.identity.transition", keeper.begin, ENDPOINT)
        assert keeper.step() > 0
    states = [report.state for report in world.reports]
    assert states[0] == "enrolling"
    assert "renewing" in states


def test_dead_server_is_waited_for(world):
    world.server.refusal = DEAD
    with world.keeper() as (keeper, store):
        waits = []
        for _ in range(12):
            waits.append(world.settle(keeper))
            world.clock.time_s += waits[-1] + 1
        assert waits == sorted(waits)
        assert waits[0] < 60 < waits[-1] <= identity.BACKOFF_CAP_S
        assert store.record.failures == 12
        assert {report.code for report in world.reports if report.kind == "failed"} == {"pki.est.unavailable"}
        world.server.refusal = None
        world.settle(keeper)
        world.prove(store.active(now_s=world.clock.now_s()))
        assert len(world.key_names()) == 2


def test_old_certificate_serves_while_renewal_fails(world):
    with world.keeper() as (keeper, store):
        world.clock.time_s += world.settle(keeper)
        world.server.refusal = DEAD
        for _ in range(5):
            world.clock.time_s += world.settle(keeper) + 1
            assert store.record.state is State.RENEWING
            world.prove(store.active(now_s=world.clock.now_s()))


def test_servers_wish_to_be_left_alone_is_heard(world):
    world.server.refusal = EstPending("a person decides", retry_after_s=3000)
    with world.keeper() as (keeper, _store):
        assert 2999 <= world.settle(keeper) <= 3000


def test_new_certificate_that_no_peer_takes_is_given_up(world):
    with world.keeper() as (keeper, store):
        world.clock.time_s += world.settle(keeper)
        old = store.active(now_s=world.clock.now_s()).chain
        world.server.is_refused = lambda credential: credential.chain not in ((b"idevid",), old)
        for _ in range(identity.MAX_TRIALS + 1):
            world.clock.time_s += world.settle(keeper) + 1
        assert store.record.next_number == 4  # a third one is tried
        assert store.active(now_s=world.clock.now_s()).chain == old
        assert "identity-2" not in world.key_names()
        world.server.is_refused = lambda credential: False
        world.clock.time_s += identity.BACKOFF_CAP_S
        world.settle(keeper)
        assert store.active(now_s=world.clock.now_s()).chain != old


def test_revoked_device_comes_back_with_its_idevid(world):
    with world.keeper() as (keeper, store):
        world.clock.time_s += world.settle(keeper)
        revoked = store.active(now_s=world.clock.now_s()).chain
        world.server.is_refused = lambda credential: credential.chain == revoked
        for _ in range(4):
            world.clock.time_s += world.settle(keeper) + 1
        assert world.server.uses[-2][:1] == ("enrol",)
        assert store.active(now_s=world.clock.now_s()).chain != revoked


def test_expired_device_enrols_anew(world):
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        world.clock.time_s += LIFETIME_S + 10
        refused("pki.identity.missing", store.active, now_s=world.clock.now_s())
        world.settle(keeper)
        assert "expired" in [report.state for report in world.reports]
        assert world.server.uses[-2][0] == "enrol"
        world.prove(store.active(now_s=world.clock.now_s()))


def test_clock_that_jumps_and_comes_back(world):
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        world.server.refusal = DEAD
        world.clock.time_s += 20 * LIFETIME_S
        keeper.step()
        assert store.record.state is State.EXPIRED
        world.clock.time_s -= 20 * LIFETIME_S
        world.settle(keeper)
        assert store.record.state is State.ACTIVE
        world.prove(store.active(now_s=world.clock.now_s()))


def test_device_without_a_clock(world):
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        world.clock.time_s = 0  # 1970, after a reset
        record = store.record
        assert identity.trusted_now_s(record, 0) >= START_S
        world.prove(store.active(now_s=world.clock.now_s()))
        step, wait = identity.plan_step(record, now_s=0)
        assert step is Step.WAIT
        assert wait <= LIFETIME_S


def test_server_whose_clock_ran_ahead_once(world):
    """The floor that it left behind stops neither the next renewal nor what that one brings."""
    world.server = MemoryServer(SetClock(START_S + 4 * 365 * 86_400))
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        wrong = store.record
        assert wrong.floor_s == START_S + 4 * 365 * 86_400
        world.server.clock.time_s = world.clock.time_s = START_S + LIFETIME_S
        world.settle(keeper)
        assert store.record.active.number == wrong.active.number + 1
        assert store.record.floor_s == START_S + LIFETIME_S
        assert store.active(now_s=world.clock.now_s())
        uses = len(world.server.uses)
        assert world.settle(keeper) > 86_400
        assert len(world.server.uses) == uses


def test_move_to_another_authority(world):
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        old = store.active(now_s=world.clock.now_s()).chain
        world.server.refusal = DEAD
        keeper.begin(ELSEWHERE)
        world.settle(keeper)
        assert store.active(now_s=world.clock.now_s()).chain == old
        world.server.refusal = None
        keeper.run_until_settled()
        assert store.record.active.endpoint == ELSEWHERE
        assert world.server.uses[-2][:2] == ("enrol", "other.example")
        assert world.server.uses[-2][2] == world.idevid
        assert world.key_names() == {"idevid", "identity-2"}


def test_other_anchors_for_the_same_server_are_no_move(world):
    """In a rollover anchors change; a device without an IDevID can only go on with the certificate that it has."""
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        changed = msgspec.structs.replace(ENDPOINT, anchors=(b"anchor", b"next"))
        keeper.begin(changed)
        keeper.run_until_settled()
        assert store.record.active.endpoint == changed
        assert [use[0] for use in world.server.uses] == ["enrol", "prove", "renew", "prove"]


def test_server_that_moved_while_it_was_asked(world):
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        world.server.refusal = DEAD
        keeper.begin(ELSEWHERE)
        world.settle(keeper)
        keeper.follow()  # told of the first server again
        assert store.record.pending.endpoint == ENDPOINT
        number = store.record.pending.number
        keeper.follow()
        assert store.record.pending.number == number
        world.server.refusal = None
        keeper.run_until_settled()
        keeper.follow()
        assert store.record.pending is None


def test_factory_reset_keeps_the_birth_certificate(world):
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        keeper.begin(ENDPOINT)
        store.pending_signer()
        keeper.forget(Event.RESET)
        assert world.key_names() == {"idevid"}
        refused("pki.identity.missing", store.active, now_s=world.clock.now_s())
    with world.keeper() as (keeper, store):
        assert store.record.state is State.IDEVID
        world.settle(keeper)
        assert world.key_names() == {"idevid", "identity-3"}  # no number is used twice


def test_asking_by_hand_tells_the_refusal(world):
    world.server.refusal = EstRefused("no")
    with world.keeper() as (keeper, store):
        refused("pki.est.refused", keeper.run_until_settled)
        world.server.refusal = None
        keeper.run_until_settled()
        world.prove(store.active(now_s=world.clock.now_s()))


def test_lost_key_is_enrolled_anew(world):
    with world.keeper() as (keeper, store):
        world.settle(keeper)
    world.keys.destroy("identity-1")
    with world.keeper() as (keeper, store):
        refused("pki.identity.missing", store.active, now_s=world.clock.now_s())
        world.settle(keeper)
        world.prove(store.active(now_s=world.clock.now_s()))


def test_keys_that_the_record_named_once_go(world):
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        keeper.begin(ENDPOINT)
        keeper.run_until_settled()
        assert store.record.active.number == 2
    world.keys.generate("identity-1", world.keys.list_keys()[0].spec)
    world.keys.generate("identity-card", world.keys.list_keys()[0].spec)
    with world.keeper():
        assert world.key_names() == {"idevid", "identity-2", "identity-card"}


def test_another_folder_destroys_nothing(world, tmp_path):
    """Whoever names the wrong folder beside the right keys would else end the identity that is in use."""
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        active = store.active(now_s=world.clock.now_s())
    with IdentityStore(tmp_path / "mistyped", world.keys) as other:
        assert world.key_names() == {"idevid", "identity-1"}
        assert other.record.next_number == 2  # and it takes no name that is taken
        other.claim()
        other.clean()  # who resets has said so
        assert world.key_names() == {"idevid"}
    assert active.chain


def test_a_key_of_an_algorithm_that_the_server_refuses_is_not_for_ever(world):
    with world.keeper() as (keeper, _store):
        world.server.refusal = EstRefused("not such a key")
        world.settle(keeper)
    with IdentityStore(world.root / "identity", world.keys, algorithm=SignatureAlgorithm.ECDSA_P384) as store:
        assert store.pending_signer().public_key.algorithm is SignatureAlgorithm.ECDSA_P384
        assert store.pending_signer().public_key == store.pending_signer().public_key
    assert world.key_names() == {"idevid", "identity-1"}


def test_an_empty_provider_is_another_one(world, tmp_path, secret):
    """Whoever names the wrong keys beside the right folder would else lose the identity in use."""
    with world.keeper() as (keeper, _store):
        world.settle(keeper)
    empty = SoftwareKeyStore.create(tmp_path / "empty", DeviceSecretUnlock(secret))
    refused("pki.identity.missing", IdentityStore, world.root / "identity", empty)
    with world.keeper() as (keeper, store):
        assert store.active(now_s=world.clock.now_s())
    with IdentityStore(world.root / "identity", empty, for_reset=True) as store:
        store.change(lambda record: identity.forget(record, Event.RESET))
        store.clean()
        assert store.record.state is State.NONE


def test_a_corrupt_record_is_reset(world):
    with world.keeper() as (keeper, _store):
        world.settle(keeper)
    (world.root / "identity" / "identity.json").write_bytes(b"{")
    refused("pki.identity.corrupt", IdentityStore, world.root / "identity", world.keys)
    with IdentityStore(world.root / "identity", world.keys, for_reset=True) as store:
        store.claim()
        store.change(lambda record: identity.forget(record, Event.RESET))
        store.clean()
    assert world.key_names() == {"idevid"}
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        assert store.record.active.number == 2


def test_reading_alone_takes_no_lock(world):
    with world.keeper() as (keeper, _store):
        world.settle(keeper)
        assert read_record(world.root / "identity").state is State.ACTIVE


def test_any_order_of_luck_ends_well(world):
    """Fifty days of a server that fails at random: always usable, never more keys than needed."""
    chance = random.Random(7)
    with world.keeper() as (keeper, store):
        world.settle(keeper)
        for _ in range(60):
            world.server.refusal = chance.choice([None, DEAD, EstRefused("no")])
            world.clock.time_s += world.settle(keeper) + chance.randrange(7 * 86_400)
            assert len(world.key_names()) <= 3
            if world.clock.now_s() < store.record.active.not_after_s:
                world.prove(store.active(now_s=world.clock.now_s()))
        msgspec.json.decode((world.root / "identity" / "identity.json").read_bytes())
