"""The simulator itself: what a cut may take, and what it may not."""

from __future__ import annotations

import random

import pytest

from tidegate.base.errors import InputTruncated, StorageFailed, TidegateError
from tidegate.testing.errors import PowerCut
from tidegate.testing.power import (
    SECTOR_BYTES,
    CacheFate,
    PowerSupply,
    SimulatedBlockDevice,
    count_operations,
    plan_outages,
)

OLD, NEW = b"o" * 4096, b"n" * 4096


def cut_during_second_write(fate: CacheFate, seed: int) -> bytes:
    device = SimulatedBlockDevice(OLD * 2, PowerSupply(cut_at=2))
    device.write_at(0, NEW)
    with pytest.raises(PowerCut):
        device.write_at(4096, NEW)
    after = device.restart(PowerSupply(), fate, random.Random(seed))
    return after.read_at(0, after.size_bytes)


def test_no_handler_for_errors_swallows_a_cut() -> None:
    assert not issubclass(PowerCut, Exception)
    assert not issubclass(PowerCut, TidegateError)


def test_what_was_flushed_stays_whatever_happens() -> None:
    for fate in CacheFate:
        for seed in range(10):
            device = SimulatedBlockDevice(OLD, PowerSupply(cut_at=3))
            device.write_at(0, NEW)
            device.flush()
            with pytest.raises(PowerCut):
                device.write_at(512, b"later")
            after = device.restart(PowerSupply(), fate, random.Random(seed)).read_at(0, 4096)
            assert after[:512] == NEW[:512]
            assert after[1024:] == NEW[1024:]


def test_dropped_and_kept() -> None:
    assert cut_during_second_write(CacheFate.DROPPED, 0) == OLD * 2
    assert cut_during_second_write(CacheFate.KEPT, 0) == NEW * 2


def test_subset_takes_whole_writes_in_every_combination() -> None:
    seen = {cut_during_second_write(CacheFate.SUBSET, seed) for seed in range(50)}
    assert seen == {OLD * 2, NEW + OLD, OLD + NEW, NEW * 2}


def test_subset_reorders_overlapping_writes() -> None:
    seen = set()
    for seed in range(50):
        device = SimulatedBlockDevice(bytes(4), PowerSupply(cut_at=3))
        device.write_at(0, b"1111")
        device.write_at(0, b"2222")
        with pytest.raises(PowerCut):
            device.flush()
        seen.add(device.restart(PowerSupply(), CacheFate.SUBSET, random.Random(seed)).read_at(0, 4))
    assert seen == {bytes(4), b"1111", b"2222"}
    assert device.read_at  # the interrupted device itself stays for another try


def test_torn_keeps_whole_sectors_only() -> None:
    torn = 0
    for seed in range(50):
        after = cut_during_second_write(CacheFate.TORN, seed)
        for start in range(0, len(after), SECTOR_BYTES):
            assert len(set(after[start : start + SECTOR_BYTES])) == 1
        torn += any(len(set(after[block : block + 4096])) == 2 for block in (0, 4096))
    assert torn > 25


def test_a_write_that_does_not_begin_on_a_sector_is_torn_at_the_sectors_of_the_device() -> None:
    for seed in range(30):
        device = SimulatedBlockDevice(b"o" * 2048, PowerSupply(cut_at=1))
        with pytest.raises(PowerCut):
            device.write_at(256, b"n" * 1024)
        after = device.restart(PowerSupply(), CacheFate.TORN, random.Random(seed)).read_at(0, 2048)
        for piece in (after[256:512], after[512:1024], after[1024:1280]):
            assert len(set(piece)) == 1
        assert after[:256] == b"o" * 256
        assert after[1280:] == b"o" * 768


def test_one_supply_feeds_all_devices_and_nothing_works_after_the_cut() -> None:
    supply = PowerSupply(cut_at=3)
    first, second = (SimulatedBlockDevice(OLD, supply) for _ in range(2))
    first.write_at(0, b"x")
    second.write_at(0, b"x")
    with pytest.raises(PowerCut):
        first.flush()
    for use in (first.flush, second.flush, lambda: second.read_at(0, 1), lambda: second.write_at(0, b"y")):
        with pytest.raises(PowerCut):
            use()
    assert supply.operations == 3
    assert second.durable() == OLD
    assert second.unflushed == 1


def test_the_same_seed_gives_the_same_storage() -> None:
    for seed in range(5):
        assert cut_during_second_write(CacheFate.TORN, seed) == cut_during_second_write(CacheFate.TORN, seed)


def test_reader_sees_unflushed_writes_while_there_is_power() -> None:
    device = SimulatedBlockDevice(OLD, PowerSupply())
    device.write_at(10, b"seen")
    assert device.read_at(10, 4) == b"seen"


@pytest.mark.parametrize(("offset", "data"), [(4090, b"1234567"), (-1, b"x"), (4096, b"x")])
def test_writes_past_the_end_fail_as_a_partition_does(offset: int, data: bytes) -> None:
    device = SimulatedBlockDevice(OLD, PowerSupply())
    with pytest.raises(StorageFailed):
        device.write_at(offset, data)
    assert device.read_at(0, 4096) == OLD


@pytest.mark.parametrize(("offset", "count"), [(4090, 7), (-1, 1), (0, -1), (4096, 1)])
def test_reads_past_the_end_are_truncated(offset: int, count: int) -> None:
    with pytest.raises(InputTruncated):
        SimulatedBlockDevice(OLD, PowerSupply()).read_at(offset, count)


def test_operations_are_counted_from_one() -> None:
    with pytest.raises(ValueError, match="from 1"):
        PowerSupply(cut_at=0)


def test_a_drill_covers_every_operation_with_every_fate() -> None:
    def operate(supply: PowerSupply) -> None:
        device = SimulatedBlockDevice(OLD, supply)
        device.write_at(0, b"1")
        device.flush()
        device.write_at(0, b"2")

    operations = count_operations(operate)
    assert operations == 3
    outages = list(plan_outages(operations, seeds=(1, 2)))
    assert len(outages) == 3 * (2 + 2 * 2)
    for fate in CacheFate:
        assert {outage.at for outage in outages if outage.fate is fate} == {1, 2, 3}
