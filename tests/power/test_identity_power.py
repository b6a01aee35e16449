"""The power is cut after every change to a device's identity and its keys: it always has one, no key is left over."""

import pytest

from tidegate.base.errors import TidegateError
from tidegate.pki.errors import EstUnavailable
from tidegate.pki.identity import Event, State
from tidegate.pki.identity_store import read_record
from tidegate.testing.identity import ELSEWHERE, LIFETIME_S, Device


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "device-secret"
    path.touch(mode=0o600)
    path.write_bytes(bytes(range(32)))
    return path


def enrol(device):
    with device.keeper() as (keeper, _):
        device.settle(keeper)


def renew(device):
    device.clock.time_s += LIFETIME_S * 0.7
    enrol(device)


def move(device):
    with device.keeper() as (keeper, _):
        keeper.begin(ELSEWHERE)
        device.settle(keeper)


def reset(device):
    with device.keeper() as (keeper, _):
        keeper.forget(Event.RESET)


def fail(device):
    """A renewal whose server dies in the middle, given up in the end."""
    device.clock.time_s += LIFETIME_S * 0.7
    with device.keeper() as (keeper, _):
        keeper.step()
        device.server.refusal = EstUnavailable("nobody answers")
        device.settle(keeper)
        device.server.refusal = None


@pytest.mark.parametrize(
    ("before", "change"),
    [((), enrol), ((enrol,), renew), ((enrol,), move), ((enrol,), fail), ((enrol, fail), reset)],
    ids=["enrol", "renew", "move", "fail", "reset"],
)
def test_identity_is_usable_after_a_cut_anywhere(storage, tmp_path, monkeypatch, secret, before, change):
    device = Device(storage.root, secret)
    for step in before:
        step(device)
    had = read_record(storage.root / "identity").state in (State.ACTIVE, State.RENEWING)
    with storage.recording(monkeypatch):
        change(device)
    cuts = 0
    for cut in storage.images(tmp_path / "image"):
        cuts += 1
        found = Device(tmp_path / "image", secret, clock=device.clock, server=device.server)
        with found.keeper() as (keeper, store):
            try:
                credential = store.active(now_s=device.clock.now_s())
            except TidegateError:
                assert not had or change is reset, cut
                credential = found.idevid
            found.prove(credential)
            named = {one.key_name for one in (store.record.active, store.record.pending) if one}
            assert found.key_names() <= named | {"idevid"}, cut  # nothing is left over
            device.clock.time_s += 6 * 3600  # whatever it had to wait for
            found.settle(keeper)
            found.prove(store.active(now_s=device.clock.now_s()))
            assert store.record.state is State.ACTIVE, cut
            assert found.key_names() == {"idevid", store.record.active.key_name}, cut
    assert cuts > 20
    assert len(device.server.issued) <= 3 + cuts  # a cut costs at most one key
