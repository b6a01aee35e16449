"""The power is cut after every change that the event log makes, and at every byte of an append."""

import shutil

import pytest

from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.crypto.trust import TrustPolicy
from tidegate.events import catalogue
from tidegate.events.segments import read_log, verify_folder
from tidegate.events.spool import EventLog, SpoolLimits
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

INFO = catalogue.update_progress(version="1", step="written")
ALERT = catalogue.firewall_banned(address="192.0.2.9", duration_s=60.0, reason="scan")


@pytest.fixture(scope="module")
def signer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    secret = folder / "secret"
    secret.touch(mode=0o600)
    secret.write_bytes(bytes(32))
    store = SoftwareKeyStore.create(folder / "store", DeviceSecretUnlock(secret))
    store.generate("device", KeySpec(purpose=KeyPurpose.SIGN, algorithm=SignatureAlgorithm.ED25519))
    return store.signer("device")


@pytest.fixture
def trust(signer):
    return TrustPolicy(keys=(signer.public_key,), threshold=1, required_classes=frozenset())


def open_log(folder, signer, *, boot="b1", limits=None):
    return EventLog(folder, device_id="dev-1", boot_id=boot, signer=signer, limits=limits, wait_s=0.0)


def alerts(folder):
    return sum(b'"event_code":"firewall.banned"' in line.raw for line in read_log(folder))


@pytest.mark.parametrize("part", range(4))
def test_cut_at_every_byte_of_an_append(tmp_path, signer, trust, part):
    """What is cut off was never there: the log is as before the append, and goes on."""
    folder = tmp_path / "log"
    with open_log(folder, signer) as log:
        log.append(INFO)
    before = (folder / "00000001.events").read_bytes()
    with open_log(folder, signer) as log:
        log.append(ALERT)
    points = (folder / "00000001.checkpoints").read_bytes()
    whole = (folder / "00000001.events").read_bytes()
    for size in range(len(before), len(whole) + 1)[part::4]:
        image = tmp_path / "image"
        shutil.rmtree(image, ignore_errors=True)
        image.mkdir(mode=0o700)
        (image / "00000001.events").write_bytes(whole[:size])
        (image / "00000001.checkpoints").write_bytes(points if size == len(whole) else points[: points.find(b"\n") + 1])
        verify_folder(image, trust)  # before anybody mended it
        complete = size == len(whole)
        with open_log(image, signer) as log:
            assert log.append(INFO).sequence == 2 + complete + (size not in (len(before), len(whole)))
        assert alerts(image) == complete
        assert verify_folder(image, trust).unsigned_tail == 0


def test_cut_at_every_byte_of_a_checkpoint(tmp_path, signer, trust):
    folder = tmp_path / "log"
    with open_log(folder, signer) as log:
        log.append(INFO)
    points = (folder / "00000001.checkpoints").read_bytes()
    lines = (folder / "00000001.events").read_bytes()
    for size in range(len(points)):
        image = tmp_path / "image"
        shutil.rmtree(image, ignore_errors=True)
        image.mkdir(mode=0o700)
        (image / "00000001.events").write_bytes(lines)
        (image / "00000001.checkpoints").write_bytes(points[:size])
        with open_log(image, signer) as log:
            log.append(INFO)
        assert verify_folder(image, trust).unsigned_tail == 0


@pytest.mark.parametrize("next_boot", ["b1", "b2"])
def test_cut_after_every_change(storage, tmp_path, monkeypatch, signer, trust, next_boot):
    """Appends, checkpoints and new segments: acknowledged alerts are there, and the log goes on and verifies."""
    limits = SpoolLimits(total_bytes=65_536, segment_bytes=4_096, checkpoint_every_events=4)
    acknowledged = []
    with open_log(storage.root / "log", signer, limits=limits) as log:
        log.append(INFO)
        with storage.recording(monkeypatch):
            for number in range(12):
                log.append(ALERT if number % 3 == 0 else INFO)
                acknowledged.append((len(storage._steps), number // 3 + 1))
    for cut in storage.images(tmp_path / "image"):
        folder = tmp_path / "image" / "log"
        step = int(cut.split()[1].partition("/")[0])
        durable = max((count for steps, count in acknowledged if steps <= step), default=0)
        with open_log(folder, signer, boot=next_boot, limits=limits) as log:
            log.append(INFO)
        assert alerts(folder) >= durable, cut
        verified = verify_folder(folder, trust)
        assert verified.unsigned_tail == 0, cut


def test_cut_after_every_change_while_old_events_give_way(storage, tmp_path, monkeypatch, signer, trust):
    """Thinning, merging and dropping: whatever the moment, the log verifies, and thinning costs no alert."""
    limits = SpoolLimits(total_bytes=16_384, segment_bytes=4_096, checkpoint_every_events=8)
    with open_log(storage.root / "log", signer, limits=limits) as log:
        for number in range(40):
            log.append(ALERT if number % 20 == 0 else INFO)
        before = alerts(storage.root / "log")
        with storage.recording(monkeypatch):
            for _ in range(12):
                log.append(INFO)
    replaced = sum(step[0] == "rename" for step in storage._steps)
    assert replaced >= 2
    for cut in storage.images(tmp_path / "image"):
        folder = tmp_path / "image" / "log"
        with open_log(folder, signer, boot="b2", limits=limits) as log:
            log.append(INFO)
        assert alerts(folder) == before, cut
        assert verify_folder(folder, trust).unsigned_tail == 0, cut


def test_cut_after_every_change_while_alerts_are_dropped(storage, tmp_path, monkeypatch, signer, trust):
    limits = SpoolLimits(total_bytes=16_384, segment_bytes=4_096, checkpoint_every_events=8)
    with open_log(storage.root / "log", signer, limits=limits) as log:
        for _ in range(20):
            log.append(ALERT)
        with storage.recording(monkeypatch):
            for _ in range(8):
                log.append(ALERT)
    assert sum(step[0] == "unlink" for step in storage._steps) >= 2
    for cut in storage.images(tmp_path / "image"):
        folder = tmp_path / "image" / "log"
        with open_log(folder, signer, boot="b2", limits=limits) as log:
            log.append(INFO)
        assert verify_folder(folder, trust).unsigned_tail == 0, cut
