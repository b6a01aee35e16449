from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.base.errors import TidegateError
from tidegate.firewall import banstore
from tidegate.firewall.banstore import (
    JOURNAL,
    RECORD_BYTES,
    Act,
    BanStore,
    Newest,
    Record,
    encode_header,
    encode_record,
    parse_header,
    parse_record,
)

NOW = 1_800_000_000


def ban(number: int, *, seconds: int = 600, act: Act = Act.BAN, noted_s: int = NOW) -> Record:
    return Record(act=act, name="banned4", key=number.to_bytes(4, "big"), noted_s=noted_s, seconds=seconds)


def newest(store: BanStore) -> tuple[dict[int, int], Newest]:
    state = Newest()
    found = {}
    for raw in store.read_newest_first():
        record = state.take(raw)
        if state.cleared:
            break
        if record is not None:
            found[int.from_bytes(record.key, "big")] = record.seconds
    return found, state


@pytest.fixture
def store(tmp_path: Path) -> BanStore:
    tmp_path.chmod(0o700)
    return BanStore(tmp_path)


@given(
    st.sampled_from([("banned4", 4), ("banned4_24", 4), ("banned6_48", 16), ("banned6", 16)]),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 31),
)
def test_records_come_back(where: tuple[str, int], key: bytes, noted_s: int, seconds: int) -> None:
    record = Record(act=Act.BAN, name=where[0], key=key[: where[1]], noted_s=noted_s, seconds=seconds)
    assert parse_record(encode_record(record)) == record


def test_any_flipped_byte_makes_a_record_damaged() -> None:
    raw = encode_record(ban(7))
    for place in range(RECORD_BYTES):
        assert parse_record(raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]) is None
    assert parse_record(raw[:-1]) is None


@pytest.mark.parametrize(
    ("later_s", "left_s"),
    [(0, 600), (100, 500), (600, 0), (700, -100), (-1, 600), (-NOW, 600)],  # the last two: the clock ran backwards
)
def test_what_is_left_of_a_ban(later_s: int, left_s: int) -> None:
    assert ban(1).left_s(NOW + later_s) == left_s


def test_the_newest_record_counts(store: BanStore) -> None:
    store.append([ban(1), ban(2), ban(3)])
    store.append([ban(2, seconds=50), ban(3, act=Act.LIFT)])
    assert newest(store)[0] == {1: 600, 2: 50}
    store.append([Record(act=Act.CLEAR, name="", key=b"", noted_s=NOW, seconds=0), ban(9)])
    assert newest(store)[0] == {9: 600}


def test_bans_outlive_the_object(store: BanStore) -> None:
    store.append([ban(1)])
    store.sync()
    store.close()
    assert newest(BanStore(store.path.parent))[0] == {1: 600}
    assert store.path.stat().st_mode & 0o777 == 0o600


def test_a_cut_at_every_byte_costs_only_what_was_torn(store: BanStore) -> None:
    store.append([ban(number) for number in range(3)])
    whole = store.path.read_bytes()
    for cut in range(len(whole) + 1):
        store.close()
        store.path.write_bytes(whole[:cut])
        found, state = newest(store)
        complete = max(0, cut // RECORD_BYTES - 1)
        assert set(found) == set(range(complete))
        assert state.corrupt == (1 if cut > RECORD_BYTES and cut % RECORD_BYTES else 0)
        store.append([ban(77)])  # and the journal goes on behind it
        assert set(newest(store)[0]) == {*range(complete), 77}


def test_damage_in_the_middle_leaves_the_rest(store: BanStore) -> None:
    store.append([ban(number) for number in range(10)])
    data = bytearray(store.path.read_bytes())
    data[RECORD_BYTES * 4 + 7] ^= 1
    store.path.write_bytes(data)
    found, state = newest(store)
    assert set(found) == set(range(10)) - {3}
    assert state.corrupt == 1


def test_a_damaged_header_costs_nothing(store: BanStore) -> None:
    store.append([ban(1)])
    data = bytearray(store.path.read_bytes())
    data[0] ^= 1
    store.path.write_bytes(data)
    assert newest(store)[0] == {1: 600}


def test_a_foreign_file_is_refused(store: BanStore) -> None:
    body = b"tidegate bans 2\n".ljust(32, b"\0")
    store.path.write_bytes(body + zlib.crc32(body).to_bytes(4, "big"))
    for call in (lambda: list(store.read_newest_first()), lambda: store.append([ban(1)]), lambda: store.compact(NOW)):
        with pytest.raises(TidegateError) as caught:
            call()
        assert caught.value.code == "firewall.ban.store"
    assert parse_header(encode_header(5)) == 5


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(TidegateError) as caught:
        BanStore(tmp_path)
    assert caught.value.code == "base.permissions.unsafe"


def test_compaction_keeps_what_counts_and_what_comes_meanwhile(
    store: BanStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = BanStore(store.path.parent)
    store.append([ban(number % 500, seconds=1000 + number) for number in range(3000)])
    store.append([ban(7, act=Act.LIFT), ban(8, seconds=10)])
    before = newest(store)[0]
    original = os.fsync
    calls: list[int] = []

    def interrupted(descriptor: int) -> None:
        if not calls:  # the bulk is written and the journal is open to others
            other.append([ban(9999)])
        calls.append(descriptor)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    assert store.compact(NOW + 20) == 0
    after = newest(store)[0]
    assert after == {key: value for key, value in before.items() if key != 8} | {9999: 600}
    assert store.path.stat().st_size == RECORD_BYTES * (1 + len(after))
    store.append([ban(1234)])  # into the new file, though this object had the old one open
    other.append([ban(1235)])
    assert newest(store)[0].keys() >= {1234, 1235}
    assert sorted(path.name for path in store.path.parent.iterdir()) == ["bans.journal", "bans.lock", "compact.lock"]


def test_a_cut_in_a_compaction_leaves_the_old_journal(store: BanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append([ban(number) for number in range(100)])
    expected = newest(store)[0]
    for limit in range(2):
        calls: list[int] = []

        def cut(descriptor: int, limit: int = limit, calls: list[int] = calls) -> None:
            calls.append(descriptor)
            if len(calls) > limit:
                raise OSError(5, "power")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", cut)
            with pytest.raises(TidegateError) as caught:
                store.compact(NOW)
        assert caught.value.code == "base.storage.failed"
        assert newest(store)[0] == expected


def test_the_journal_is_bounded_by_a_process_of_its_own(store: BanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banstore, "MIN_COMPACTION", 100)
    now = int(time.time())
    assert [store.is_due] == [False]
    store.append([ban(number % 10, noted_s=now) for number in range(200)])
    assert [store.is_due] == [True]
    store.start_compaction()
    store.close()  # waits for it
    assert [store.is_due] == [False]
    assert store.path.stat().st_size == 11 * RECORD_BYTES
    store.append([ban(number % 10, noted_s=now) for number in range(80)])
    assert [store.is_due] == [False]  # it had ten when it was written anew, but so small a file is not worth it


def test_a_compaction_that_fails_is_not_tried_at_every_ban(store: BanStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(banstore, "MIN_COMPACTION", 100)
    store.append([ban(number % 10) for number in range(200)])
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: _Failed())
    store.start_compaction()
    assert [store.is_due] == [False]
    store.append([ban(number % 10) for number in range(101)])
    assert [store.is_due] == [True]


class _Failed:
    returncode = 1

    def poll(self) -> int:
        return 1


def test_several_processes_append_at_once(store: BanStore) -> None:
    code = (
        "import sys; from pathlib import Path; from tidegate.firewall.banstore import *\n"
        "store = BanStore(Path(sys.argv[1])); first = int(sys.argv[2])\n"
        "for n in range(first, first + 200):\n"
        "    store.append([Record(act=Act.BAN, name='banned4', key=n.to_bytes(4, 'big'), noted_s=2**31, seconds=5)])\n"
        "    if n % 50 == 0: store.compact(2**31)\n"
    )
    folder = str(store.path.parent)
    running = [subprocess.Popen([sys.executable, "-c", code, folder, str(base)]) for base in (0, 1000, 2000)]
    assert [one.wait(timeout=15) for one in running] == [0, 0, 0]
    found, state = newest(store)
    assert set(found) == {base + n for base in (0, 1000, 2000) for n in range(200)}
    assert state.corrupt == 0
    assert (Path(folder) / JOURNAL).exists()
