"""Block devices of fixed size, and the record of two copies under torn writes at every byte."""

import os

import pytest

from tidegate.base.blockdev import BLOCK_BYTES, FileBlockDevice, create_device_file
from tidegate.base.errors import TidegateError
from tidegate.base.record import MAX_BODY_BYTES, RECORD_BYTES, AlternatingRecord

MAGIC = b"TESTREC1"


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "device"
    create_device_file(path, 4 * BLOCK_BYTES)
    return path


def test_device_reads_and_writes(path):
    with FileBlockDevice(path, writable=True) as device:
        assert device.size_bytes == 4 * BLOCK_BYTES
        device.write_at(100, b"abc")
        device.flush()
        assert device.read_at(99, 5) == b"\0abc\0"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("offset", "count"), [(4 * BLOCK_BYTES, 1), (4 * BLOCK_BYTES - 1, 2), (0, 4 * BLOCK_BYTES + 1), (1 << 40, 1)]
)
def test_nothing_behind_the_end(path, offset, count):
    with FileBlockDevice(path, writable=True) as device:
        assert code_of(device.read_at, offset, count) == "base.input.truncated"
        assert code_of(device.write_at, offset, bytes(count)) == "base.storage.failed"
    assert path.stat().st_size == 4 * BLOCK_BYTES
    assert not any(path.read_bytes())


def test_nothing_before_the_start(path):
    with FileBlockDevice(path, writable=True) as device:
        assert code_of(device.write_at, -1, b"x") == "base.storage.failed"
        assert code_of(device.read_at, -1, 1) == "base.storage.failed"


def test_a_reader_does_not_write(path):
    with FileBlockDevice(path) as device:
        assert code_of(device.write_at, 0, b"x") == "base.storage.failed"


def test_short_reads_of_the_kernel(path, monkeypatch):
    path.write_bytes(os.urandom(4 * BLOCK_BYTES))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, offset: real(descriptor, min(count, 1000), offset))
    with FileBlockDevice(path) as device:
        assert device.read_at(10, 9000) == path.read_bytes()[10:9010]


def test_missing_and_existing_devices(path, tmp_path):
    assert code_of(FileBlockDevice, tmp_path / "none") == "base.storage.missing"
    assert code_of(create_device_file, path, 1) == "base.storage.failed"
    device = FileBlockDevice(path)
    device.close()
    device.close()


# ---- the record -----------------------------------------------------------------------------------------------------


class MemoryDevice:
    """A device whose next write stops after ``tear_at`` bytes."""

    size_bytes = 4 * BLOCK_BYTES

    def __init__(self, content=bytes(4 * BLOCK_BYTES)) -> None:
        self.content = bytearray(content)
        self.tear_at = None
        self.flushed = 0

    def read_at(self, offset, count):
        return bytes(self.content[offset : offset + count])

    def write_at(self, offset, data):
        data = data[: self.tear_at]
        self.content[offset : offset + len(data)] = data

    def flush(self):
        self.flushed += 1


def record_of(device):
    return AlternatingRecord(device, BLOCK_BYTES, MAGIC)


def test_a_fresh_device_has_no_record():
    record = record_of(MemoryDevice())
    assert not record.exists()
    assert code_of(record.read) == "base.record.corrupt"


@pytest.mark.parametrize("body", [b"", b"x", bytes(MAX_BODY_BYTES), b"\xff" * MAX_BODY_BYTES])
def test_bodies(body):
    device = MemoryDevice()
    record_of(device).write(body)
    assert record_of(device).read() == body
    assert device.flushed == 1
    assert RECORD_BYTES == 2 * BLOCK_BYTES
    assert not any(device.content[:BLOCK_BYTES])
    assert not any(device.content[3 * BLOCK_BYTES :])


def test_too_large_a_body_changes_nothing():
    device = MemoryDevice()
    record_of(device).write(b"old")
    with pytest.raises(ValueError, match="at most"):
        record_of(device).write(bytes(MAX_BODY_BYTES + 1))
    assert record_of(device).read() == b"old"


@pytest.mark.parametrize(("offset", "magic"), [(1, MAGIC), (BLOCK_BYTES - 1, MAGIC), (0, b"SHORT"), (0, MAGIC + b"x")])
def test_misuse(offset, magic):
    with pytest.raises(ValueError, match="magic"):
        AlternatingRecord(MemoryDevice(), offset, magic)


@pytest.mark.parametrize("earlier", [1, 2, 3])
def test_a_write_torn_at_every_byte(earlier):
    """``earlier`` writes decide which copy is overwritten and what lies in it."""
    device = MemoryDevice()
    for number in range(earlier):
        record_of(device).write(b"body number %d" % number * (10 - number))
    old = record_of(device).read()
    before = bytes(device.content)
    for tear in range(BLOCK_BYTES + 1):
        torn = MemoryDevice(before)
        torn.tear_at = tear
        record_of(torn).write(b"the new body")
        found = record_of(torn).read()
        assert found in {old, b"the new body"}, tear
        if tear == 0:
            assert found == old
        if tear == BLOCK_BYTES:
            assert found == b"the new body"
        torn.tear_at = None
        record_of(torn).write(b"after the cut")
        assert record_of(torn).read() == b"after the cut"


def test_a_write_torn_from_behind():
    """Storage may also write the end of a block first."""
    device = MemoryDevice()
    for body in (b"one", b"two", b"three"):
        record_of(device).write(body)
    before, new = bytes(device.content), MemoryDevice(bytes(device.content))
    record_of(new).write(b"four")
    for cut in range(0, 4 * BLOCK_BYTES, 7):
        torn = MemoryDevice(before[:cut] + bytes(new.content[cut:]))
        assert record_of(torn).read() in {b"three", b"four"}


def test_each_flipped_bit_leaves_the_record_or_the_one_before():
    device = MemoryDevice()
    for body in (b"one", b"two"):
        record_of(device).write(body)
    for copy in (1, 2):
        for at in range(copy * BLOCK_BYTES, copy * BLOCK_BYTES + 64):
            for bit in range(8):
                decayed = MemoryDevice(device.content)
                decayed.content[at] ^= 1 << bit
                assert record_of(decayed).read() in ({b"two"} if copy == 1 else {b"one", b"two"})


def test_both_copies_lost():
    device = MemoryDevice()
    for body in (b"one", b"two"):
        record_of(device).write(body)
    device.content[BLOCK_BYTES + 52] ^= 1
    device.content[2 * BLOCK_BYTES + 52] ^= 1
    assert code_of(record_of(device).read) == "base.record.corrupt"
    record_of(device).write(b"new")
    assert record_of(device).read() == b"new"


def test_a_record_of_another_kind_or_with_a_wild_length():
    device = MemoryDevice()
    record_of(device).write(b"one")
    assert not AlternatingRecord(device, BLOCK_BYTES, b"TESTREC2").exists()
    device.content[BLOCK_BYTES + 16 : BLOCK_BYTES + 20] = b"\xff\xff\xff\xff"
    assert not record_of(device).exists()
