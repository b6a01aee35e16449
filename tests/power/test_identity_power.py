"""The power is cut after every change to a device's identity and its keys: it always has one, no key is left over."""

import contextlib

import pytest

from tidegate.base.errors import TidegateError
from tidegate.keys.uri import open_store, parse_key_uri
from tidegate.pki.errors import EstUnavailable
from tidegate.pki.identity import Event, State
from tidegate.pki.identity_store import read_record
from tidegate.testing.errors import PowerCut
from tidegate.testing.identity import ELSEWHERE, LIFETIME_S, Device
from tidegate.testing.swtpm import SwTpm
from tidegate.testing.tokens import SoftHsm


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


class CutStore:
    """A provider whose power goes away at one operation: before it is done, or when it is done and nobody knows."""

    def __init__(self, real, *, done):
        self._real, self._done, self.cut_at, self.operations = real, done, 0, 0

    def __getattr__(self, name):
        real = getattr(self._real, name)
        if name not in ("generate", "destroy", "list_keys"):
            return real

        def call(*arguments, **options):
            self.operations += 1
            if self.operations == self.cut_at and not self._done:
                raise PowerCut("before")
            result = real(*arguments, **options)
            if self.operations == self.cut_at:
                raise PowerCut("after")
            return result

        return call


@contextlib.contextmanager
def software(folder):
    (folder / "secret").touch(mode=0o600)
    (folder / "secret").write_bytes(bytes(range(32)))
    uri = parse_key_uri(f"file:{folder}/store?device-secret={folder}/secret")
    open_store(uri, create=True)
    yield uri


@contextlib.contextmanager
def token(folder):
    with SoftHsm(folder / "hsm") as hsm:
        pin = hsm.make_token("device")
        yield parse_key_uri(f"pkcs11:token=device?module-path={hsm.module}&pin-source={pin}")


@contextlib.contextmanager
def tpm(folder):
    with SwTpm(folder / "tpm") as chip:
        uri = parse_key_uri(f"tpm2:{folder}/store?tcti={chip.tcti}")
        open_store(uri, create=True).close()
        yield uri


@pytest.mark.parametrize("provider", [software, token, tpm], ids=["software", "pkcs11", "tpm2"])
def test_provider_is_cut_off_at_each_operation(tmp_path, provider):
    """Whatever the provider: enrol, renew, move and reset, with the power gone before or after each of its steps."""
    with provider(tmp_path) as uri, contextlib.closing(open_store(uri)) as keys:
        cuts = 0
        for change in (enrol, renew, move, reset):
            for done in (False, True):
                cut_at, is_cut = 0, True
                while is_cut:
                    cut_at += 1
                    root = tmp_path / f"{change.__name__}-{done}-{cut_at}"
                    root.mkdir(mode=0o700)
                    is_cut = cut_once(root, keys, change, done=done, cut_at=cut_at)
                    cuts += is_cut
        assert cuts >= 20


def cut_once(root, keys, change, *, done, cut_at):
    """Take a device up to ``change``, cut it there, start it again; return whether there was something to cut."""
    for info in keys.list_keys():  # of the device before, which had another folder and the same provider
        if info.name.startswith("identity-"):
            keys.destroy(info.name)
    before = Device(root, keys)
    if change is not enrol:
        enrol(before)
    cut = CutStore(keys, done=done)
    device = Device(root, cut, clock=before.clock, server=before.server)
    cut.operations, cut.cut_at = 0, cut_at
    try:
        change(device)
        return False
    except PowerCut:
        pass
    again = Device(root, keys, clock=before.clock, server=before.server)
    with again.keeper() as (keeper, store):
        try:
            again.prove(store.active(now_s=again.clock.now_s()))
        except TidegateError:
            assert change in (enrol, reset)
        again.clock.time_s += 6 * 3600
        again.settle(keeper)
        again.prove(store.active(now_s=again.clock.now_s()))
        assert again.key_names() == {"idevid", store.record.active.key_name}
        keeper.forget(Event.RESET)
    return True
