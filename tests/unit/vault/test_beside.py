"""One transfer beside the ciphers, by the C library and at once: results, errors, an interruption, a fork, the end."""

import errno
import os
import signal
import time

import pytest

from tidegate.vault import beside as module
from tidegate.vault.beside import Beside


@pytest.fixture(params=["by the C library", "at once"])
def beside(request, monkeypatch):
    if request.param == "at once":
        monkeypatch.setattr(module, "_LIBRARY", None)
    made = Beside()
    yield made
    made.close()


@pytest.fixture
def file(tmp_path):
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    yield descriptor
    os.close(descriptor)


def test_this_machines_library_is_known():
    assert module._LIBRARY is not None


def test_what_is_written_is_read(beside, file):
    data = bytearray(os.urandom(3_000_000))
    for turn in range(4):
        beside.write(file, memoryview(data), turn * len(data))
        assert beside.wait() == len(data)
    assert beside.wait() == 0, "nothing is under way"
    target = bytearray(len(data))
    for turn in range(4):
        beside.read(file, memoryview(target), turn * len(data))
        assert beside.wait() == len(data)
        assert target == data
    beside.read(file, memoryview(target), 4 * len(data) - 7)
    assert beside.wait() == 7, "fewer at the end of the file"
    beside.write(file, memoryview(bytearray()), 0)
    assert beside.wait() == 0


def test_a_part_of_a_buffer_is_what_it_is(beside, file):
    memory = memoryview(bytearray(b"0123456789"))
    beside.write(file, memory[3:6], 1)
    assert beside.wait() == 3
    assert os.pread(file, 9, 0) == b"\x00345"
    beside.read(file, memory[8:], 2)
    assert beside.wait() == 2
    assert bytes(memory) == b"0123456745"


@pytest.mark.parametrize(("flags", "call"), [(os.O_RDONLY, "write"), (os.O_WRONLY, "read")])
def test_an_error_is_raised_and_over(beside, tmp_path, flags, call):
    (tmp_path / "file").write_bytes(b"x")
    descriptor = os.open(tmp_path / "file", flags)

    def use():
        getattr(beside, call)(descriptor, memoryview(bytearray(10)), 0)
        beside.wait()

    for _ in range(2):
        with pytest.raises(OSError) as caught:
            use()
        assert caught.value.errno == errno.EBADF
    assert beside.wait() == 0
    os.close(descriptor)


def test_a_full_device_is_told(beside):
    descriptor = os.open("/dev/full", os.O_WRONLY)

    def use():
        beside.write(descriptor, memoryview(bytearray(10)), 0)
        beside.wait()

    with pytest.raises(OSError) as caught:
        use()
    assert caught.value.errno == errno.ENOSPC
    os.close(descriptor)


class Stalled:
    """A read that goes on until ``feed``."""

    def __init__(self) -> None:
        self.end, self.feeds = os.pipe()
        self.memory = bytearray(10)
        self.beside = Beside()
        self.beside.read(self.end, memoryview(self.memory), 0)

    def feed(self):
        os.write(self.feeds, b"ten bytes!")

    def close(self):
        self.beside.close()
        os.close(self.end)
        os.close(self.feeds)


@pytest.fixture
def stalled():
    made = Stalled()
    yield made
    made.close()


def test_one_at_a_time_and_its_memory_is_held(stalled):
    with pytest.raises(RuntimeError):
        stalled.beside.read(stalled.end, memoryview(bytearray(1)), 0)
    with pytest.raises(BufferError):
        stalled.memory.clear()
    stalled.feed()
    assert stalled.beside.wait() == 10
    assert stalled.memory == b"ten bytes!"
    stalled.memory.clear()


def test_who_is_interrupted_while_waiting_can_go_on(stalled):
    def alarm(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            stalled.beside.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    stalled.feed()
    assert stalled.beside.wait() == 10


def test_dropping_it_waits(stalled):
    """Else the C library would fill memory that is somebody else's by then."""
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        time.sleep(0.1)
        stalled.feed()
        os._exit(0)
    stalled.beside.__del__()
    assert time.monotonic() - begun > 0.05
    assert stalled.memory == b"ten bytes!"
    os.waitpid(child, 0)


def test_a_forked_child_waits_for_nobody(stalled):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if stalled.beside.wait() == 0 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stalled.feed()
    assert stalled.beside.wait() == 10
