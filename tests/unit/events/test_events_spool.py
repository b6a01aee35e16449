"""The writer: bounded, durable, one at a time, and never silent about what it lost."""

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.base.clock import SystemClock
from tidegate.base.errors import Fault, Rejected, StorageFull, TidegateError
from tidegate.base.program import run_program
from tidegate.crypto.signing import SignatureAlgorithm
from tidegate.crypto.trust import TrustPolicy
from tidegate.events import catalogue, segments
from tidegate.events.errors import SpoolBusy
from tidegate.events.lines import hash_line
from tidegate.events.model import encode_canonical
from tidegate.events.retention import DropSegment, Segment, SegmentKind, ThinSegments, plan_next
from tidegate.events.segments import AppendFile, follow_log, read_log, verify_folder
from tidegate.events.spool import EventLog, SpoolLimits
from tidegate.keys.software import DeviceSecretUnlock, SoftwareKeyStore
from tidegate.keys.store import KeyPurpose, KeySpec

INFO = catalogue.update_progress(version="1", step="written")
ALERT = catalogue.firewall_banned(address="192.0.2.9", duration_s=60.0, reason="scan")
SMALL = SpoolLimits(total_bytes=65_536, segment_bytes=8_192, checkpoint_every_events=16)


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


@pytest.fixture
def open_log(tmp_path, signer):
    def open_it(boot="b1", **options):
        options.setdefault("signer", signer)
        options.setdefault("wait_s", 0.0)
        return EventLog(tmp_path / "log", device_id="dev-1", boot_id=boot, **options)

    return open_it


def documents(folder):
    return [json.loads(line.raw) for line in read_log(folder)]


def kinds(folder):
    return [document["metadata"]["event_code"] for document in documents(folder) if "gap" not in document]


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.wall, self.mono = 1_700_000_000.0, 0.0

    def now_s(self):
        return self.wall

    def monotonic_s(self):
        return self.mono


class Counted:
    """A signer that counts."""

    def __init__(self, signer):
        self.public_key, self._signer, self.count = signer.public_key, signer, 0

    def sign(self, message):
        self.count += 1
        return self._signer.sign(message)


# -- writing ----------------------------------------------------------------------------------------------------------


def test_events_are_written_chained_and_signed(open_log, tmp_path, trust):
    with open_log() as log:
        identities = [log.append(INFO), log.append(ALERT)]
    assert [str(identity) for identity in identities] == ["dev-1/b1/1", "dev-1/b1/2"]
    assert kinds(tmp_path / "log") == ["update.progress", "firewall.banned"]
    assert verify_folder(tmp_path / "log", trust).signed == 2


def test_short_lived_writers_take_turns(open_log, tmp_path, trust):
    for step in range(5):
        with open_log() as log:
            assert log.append(INFO).sequence == step + 1
    verified = verify_folder(tmp_path / "log", trust)
    assert (verified.signed, verified.checkpoints, verified.boots) == (5, 5, ("b1",))


def test_each_boot_continues_the_one_before(open_log, tmp_path, trust):
    for boot in ("b1", "b2", "b3"):
        with open_log(boot) as log:
            log.append(INFO)
    assert verify_folder(tmp_path / "log", trust).boots == ("b1", "b2", "b3")
    shutil.move(tmp_path / "log" / "00000002.events", tmp_path / "elsewhere")
    with pytest.raises(Rejected) as caught:
        verify_folder(tmp_path / "log", trust)
    assert caught.value.code == "events.chain.missing"


def test_renamed_segments_are_reordered_events(open_log, tmp_path, trust):
    for boot in ("b1", "b2"):
        with open_log(boot) as log:
            log.append(INFO)
    folder = tmp_path / "log"
    (folder / "00000001.events").rename(folder / "00000003.events")
    (folder / "00000001.checkpoints").rename(folder / "00000003.checkpoints")
    with pytest.raises(Rejected) as caught:
        verify_folder(folder, trust)
    assert caught.value.code == "events.chain.reordered"


def test_log_without_signer_is_written_but_not_verified(open_log, tmp_path, trust):
    with open_log(signer=None) as log:
        log.append(ALERT)
    with pytest.raises(Rejected) as caught:
        verify_folder(tmp_path / "log", trust)
    assert caught.value.code == "events.chain.unsigned"


def test_folder_is_private(open_log, tmp_path):
    open_log().close()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "log").iterdir()}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o700


def test_checkpoint_is_due_after_its_number_of_events(open_log, signer):
    counted = Counted(signer)
    with open_log(signer=counted, limits=SpoolLimits(checkpoint_every_events=10)) as log:
        for _ in range(25):
            log.append(INFO)
        assert counted.count == 2
        log.checkpoint()
        log.checkpoint()
        assert counted.count == 3
    assert counted.count == 3


def test_alerts_are_durable_at_once_and_others_by_number_or_time(open_log, monkeypatch):
    syncs = []
    monkeypatch.setattr(AppendFile, "sync", lambda self: syncs.append(self.path.suffix))
    clock = Clock()
    limits = SpoolLimits(sync_every_events=5, sync_every_s=1.0)
    log = open_log(signer=None, clock=clock, limits=limits)
    log.append(ALERT)
    assert len(syncs) == 1
    for _ in range(4):
        log.append(INFO)
    assert len(syncs) == 1
    log.append(INFO)
    assert len(syncs) == 2
    log.append(INFO)
    clock.mono += 1.5
    log.append(INFO)
    assert len(syncs) == 3
    log.close()


def test_time_comes_from_the_clock(open_log, tmp_path):
    with open_log(clock=Clock()) as log:
        log.append(INFO)
        log.append(catalogue.ids_detected(rule="r", title="t", source="192.0.2.1", occurred_ms=5))
    first, second = documents(tmp_path / "log")
    assert first["time"] == 1_700_000_000_000
    assert (second["time"], second["metadata"]["logged_time"]) == (5, 1_700_000_000_000)


# -- one writer -------------------------------------------------------------------------------------------------------


def test_second_writer_is_busy(open_log):
    with open_log(), pytest.raises(SpoolBusy):
        open_log()
    open_log().close()


def _append_many(folder, count):
    for _ in range(count):
        with EventLog(folder, device_id="dev-1", boot_id="b1", signer=None, wait_s=10.0) as log:
            log.append(INFO)


def test_processes_wait_for_each_other(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(tmp_path / "log", 20)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    sequences = [document["metadata"]["sequence"] for document in documents(tmp_path / "log")]
    assert sequences == list(range(1, 81))


def test_lock_goes_with_its_process(tmp_path, open_log):
    context = multiprocessing.get_context("fork")

    def hold():
        open_log().append(ALERT)
        os._exit(9)

    worker = context.Process(target=hold)
    worker.start()
    worker.join()
    with open_log() as log:
        assert log.append(INFO).sequence == 2


# -- size -------------------------------------------------------------------------------------------------------------


def segment(first, kind=SegmentKind.FULL, size=100, last=None):
    return Segment(first=first, last=last or first, size_bytes=size, kind=kind)


def test_plan_thins_the_oldest_merges_small_ones_and_drops_last():
    thinned = [segment(1, SegmentKind.THINNED, last=2), segment(3, SegmentKind.KEPT)]
    full = [segment(4), segment(5)]
    assert plan_next([*thinned, *full], limit_bytes=400, merge_bytes=50) is None
    assert plan_next([*thinned, *full], limit_bytes=399, merge_bytes=500) == ThinSegments(segments=(full[0],))
    assert plan_next([thinned[0], *full], limit_bytes=0, merge_bytes=99) == ThinSegments(segments=(full[0],))
    merged = ThinSegments(segments=(thinned[0], full[0]))
    assert plan_next([thinned[0], *full], limit_bytes=0, merge_bytes=100) == merged
    assert plan_next(thinned, limit_bytes=100, merge_bytes=500) == DropSegment(segment=thinned[0])
    assert plan_next([], limit_bytes=0, merge_bytes=0) is None


def size_of(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("boots", [1, 4])
def test_information_never_pushes_out_alerts(open_log, tmp_path, trust, boots):
    folder = tmp_path / "log"
    for boot in range(boots):
        with open_log(f"b{boot}", limits=SMALL) as log:
            for number in range(3000 // boots):
                log.append(ALERT if number % 200 == 0 else INFO)
                assert number % 50 or size_of(folder) <= SMALL.total_bytes + 2048
    assert kinds(folder).count("firewall.banned") == len(range(0, 3000 // boots, 200)) * boots
    assert "events.dropped" not in kinds(folder)
    verified = verify_folder(folder, trust)
    assert verified.removed > 2000
    assert verified.signed + verified.removed == sum(log_length(folder).values())


def log_length(folder):
    """Return the highest sequence number of each boot."""
    highest = {}
    for document in documents(folder):
        if "gap" in document:
            highest[document["gap"]["boot"]] = document["gap"]["last"]
        else:
            highest[document["device"]["boot_uid"]] = document["metadata"]["sequence"]
    return highest


def test_oldest_alerts_go_last_and_are_counted(open_log, tmp_path, trust):
    folder = tmp_path / "log"
    with open_log(limits=SMALL) as log:
        for _ in range(400):
            log.append(ALERT)
    assert size_of(folder) <= SMALL.total_bytes + 2048
    drops = [document for document in documents(folder) if document["metadata"]["event_code"] == "events.dropped"]
    assert drops[0]["unmapped"]["tidegate"]["data"]["count"] > 0
    assert verify_folder(folder, trust).last_sequence > 400
    with open_log("b2", limits=SMALL) as log:
        log.append(INFO)
    verify_folder(folder, trust)
    oldest = min(path for path in folder.iterdir() if path.suffix == ".thinned")
    oldest.unlink()
    with pytest.raises(Rejected) as caught:
        verify_folder(folder, trust)
    assert caught.value.code == "events.chain.missing"


def test_alert_in_a_thinned_segment_is_still_protected(open_log, tmp_path, trust):
    with open_log(limits=SMALL) as log:
        for number in range(700):
            log.append(ALERT if number % 50 == 0 else INFO)
    thinned = next(path for path in sorted((tmp_path / "log").iterdir()) if path.suffix == ".thinned")
    whole = thinned.read_bytes()
    rows = whole.splitlines(True)
    banned = next(index for index, row in enumerate(rows) if b"banned" in row)
    gap = next(index for index, row in enumerate(rows) if row.startswith(b'{"gap":'))
    for attack in (
        whole.replace(b"192.0.2.9", b"192.0.2.8", 1),
        b"".join(row for row in rows if b"banned" not in row),
        b"".join(rows[:banned] + rows[banned + 1 :]),
        b"".join(rows[:gap] + rows[gap + 1 :]),
        b"".join(row for row in rows if not row.startswith(b'{"boot":')),
        whole.replace(b'"last":', b'"last":1', 1),
    ):
        assert attack != whole
        thinned.write_bytes(attack)
        with pytest.raises(Rejected):
            verify_folder(tmp_path / "log", trust)
    thinned.write_bytes(whole)
    verify_folder(tmp_path / "log", trust)


@pytest.mark.parametrize("attack", ["alter", "drop", "rewrite"])
def test_writer_does_not_sign_what_was_altered(open_log, tmp_path, trust, attack):
    """Thinning signs anew: an altered segment is kept as it is instead, and the verifier still names it."""
    with open_log(limits=SMALL) as log:
        for _ in range(20):
            log.append(ALERT)
            log.append(INFO)
    first = tmp_path / "log" / "00000001.events"
    rows = first.read_bytes().splitlines(True)
    if attack == "alter":
        rows[4] = rows[4].replace(b"192.0.2.9", b"192.0.2.8")
    else:
        del rows[4]
    if attack == "rewrite":  # and make the chain whole again, up to the next segment
        documents_ = [json.loads(row) for row in rows]
        for number, document in enumerate(documents_, start=1):
            place = document["unmapped"]["tidegate"]
            place["seq"] = document["metadata"]["sequence"] = number
            document["metadata"]["uid"] = f"dev-1/b1/{number}"
            if number > 1:
                place["prev"] = hash_line(rows[number - 2].rstrip(b"\n")).hex()
            rows[number - 1] = encode_canonical(document) + b"\n"
    first.write_bytes(b"".join(rows))
    with open_log(limits=SMALL) as log:
        for _ in range(300):
            log.append(INFO)
    kept = [path for path in (tmp_path / "log").iterdir() if path.suffix == ".kept"]
    assert [path.name for path in kept] == ["00000001-00000001.kept"]
    with pytest.raises(Rejected) as caught:
        verify_folder(tmp_path / "log", trust)
    assert caught.value.code.startswith("events.chain.")


def test_log_without_signer_is_bounded_as_well(open_log, tmp_path):
    with open_log(signer=None, limits=SMALL) as log:
        for number in range(1000):
            log.append(ALERT if number % 100 == 0 else INFO)
    assert size_of(tmp_path / "log") <= SMALL.total_bytes + 2048
    assert kinds(tmp_path / "log").count("firewall.banned") == 10


@pytest.mark.parametrize("size", [{"segment_bytes": 100}, {"total_bytes": 4096}])
def test_senseless_limits_are_misuse(size):
    with pytest.raises(ValueError, match="segment"):
        SpoolLimits(**size)


# -- storage full -----------------------------------------------------------------------------------------------------


def test_full_storage_leaves_nothing_half_written(open_log, tmp_path, trust, monkeypatch):
    folder = tmp_path / "log"
    log = open_log()
    log.append(INFO)
    size = (folder / "00000001.events").stat().st_size

    def half_then_full(descriptor, data):
        os.write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "write_all", half_then_full)
        for _ in range(3):
            with pytest.raises(StorageFull):
                log.append(ALERT)
    assert (folder / "00000001.events").stat().st_size == size
    assert log.append(INFO).sequence == 3
    log.close()
    assert kinds(folder) == ["update.progress", "events.lost", "update.progress"]
    assert documents(folder)[1]["unmapped"]["tidegate"]["data"]["count"] == 3
    verify_folder(folder, trust)


@pytest.mark.root
def test_really_full_file_system(tmp_path, signer, trust):
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    place = tmp_path / "small"
    place.mkdir()
    try:
        run_program(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)])
    except Fault as fault:
        pytest.skip(f"a tmpfs cannot be mounted here: {fault.message}")
    try:
        (place / "other").write_bytes(bytes(192 << 10))
        log = EventLog(place / "log", device_id="dev-1", boot_id="b1", signer=signer)
        with pytest.raises(StorageFull):
            for _ in range(500):
                log.append(ALERT)
        (place / "other").unlink()
        log.append(INFO)
        log.close()
        assert verify_folder(place / "log", trust).unsigned_tail == 0
        assert kinds(place / "log")[-2:] == ["events.lost", "update.progress"]
    finally:
        run_program(["umount", str(place)])


# -- opening what a crash or an attacker left -------------------------------------------------------------------------


def test_torn_line_is_removed_and_reported(open_log, tmp_path, trust):
    with open_log() as log:
        log.append(INFO)
        log.append(INFO)
    path = tmp_path / "log" / "00000001.events"
    with path.open("ab") as stream:
        stream.write(b'{"activity_id":8,"app')
    assert verify_folder(tmp_path / "log", trust).signed == 2
    with open_log() as log:
        assert log.append(INFO).sequence == 4
    assert kinds(tmp_path / "log")[2] == "events.recovered"
    assert documents(tmp_path / "log")[2]["unmapped"]["tidegate"]["data"]["cut"] == 21
    assert verify_folder(tmp_path / "log", trust).signed == 4


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\0" * 100 + b"\n", b"{}\n[]\n"], ids=["text", "zeros", "json"])
def test_damaged_end_is_kept_as_evidence_and_writing_goes_on(open_log, tmp_path, trust, garbage):
    with open_log() as log:
        log.append(INFO)
    path = tmp_path / "log" / "00000001.events"
    with path.open("ab") as stream:
        stream.write(garbage)
    with open_log() as log:
        log.append(ALERT)
    assert garbage in path.read_bytes()
    assert b"events.recovered" in path.read_bytes()
    with pytest.raises(Rejected) as caught:
        verify_folder(tmp_path / "log", trust)
    assert (caught.value.code, caught.value.fields["line"]) == ("events.chain.malformed", 2)


def test_segment_of_nothing_but_garbage_does_not_stop_the_writer(open_log, tmp_path, trust):
    open_log().close()
    (tmp_path / "log" / "00000001.events").write_bytes(b"garbage\n")
    (tmp_path / "log" / "00000001.checkpoints").write_bytes(b"garbage\n")
    with open_log() as log:
        log.append(ALERT)
    with pytest.raises(Rejected):
        verify_folder(tmp_path / "log", trust)


def test_empty_segment_left_by_a_power_cut(open_log, tmp_path, trust):
    with open_log() as log:
        log.append(INFO)
    (tmp_path / "log" / "00000002.events").touch()
    with open_log() as log:
        assert log.append(INFO).sequence == 2
    assert verify_folder(tmp_path / "log", trust).signed == 2


def put_a_link(path):
    path.symlink_to("/dev/zero")


def put_a_huge_file(path):
    with path.open("wb") as stream:
        stream.truncate(3 << 30)


@pytest.mark.parametrize("put", [put_a_link, os.mkfifo, put_a_huge_file, Path.mkdir], ids=lambda put: put.__name__)
@pytest.mark.parametrize("name", ["00000001.events", "00000001.checkpoints", "00000001-00000001.thinned"])
def test_strange_file_stops_neither_writer_nor_verifier(open_log, tmp_path, trust, put, name):
    with open_log() as log:
        log.append(INFO)
    path = tmp_path / "log" / name
    path.unlink(missing_ok=True)
    put(path)
    with pytest.raises(TidegateError) as caught:
        verify_folder(tmp_path / "log", trust)
    assert caught.value.code in {"events.chain.malformed", "base.input.too-large", "base.storage.failed"}
    with open_log("b2") as log:
        log.append(ALERT)
    assert path.with_name(f"{name}.aside").lstat()
    assert kinds(tmp_path / "log")[-2:] == ["events.recovered", "firewall.banned"]


def test_follow_yields_what_is_appended(open_log, tmp_path):
    with open_log() as log:
        log.append(INFO)
        pending = [ALERT, INFO]

        def wait():
            log.append(pending.pop(0))

        followed = follow_log(tmp_path / "log", wait)
        seen = [json.loads(next(followed).raw)["metadata"]["sequence"] for _ in range(3)]
    assert seen == [1, 2, 3]


def test_writing_without_a_signature_loads_no_cryptography():
    program = (
        "import sys, tempfile, pathlib\n"
        "from tidegate.events.spool import EventLog\n"
        "from tidegate.events.catalogue import agent_started\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    with EventLog(pathlib.Path(folder), device_id='d', boot_id='b', signer=None) as log:\n"
        "        log.append(agent_started())\n"
        "assert not [name for name in sys.modules if name.startswith('cryptography')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_default_clock_is_the_machine(open_log, tmp_path):
    with open_log() as log:
        log.append(INFO)
    assert abs(documents(tmp_path / "log")[0]["time"] / 1000 - SystemClock().now_s()) < 60
