"""One system call beside the ciphers: order, results, errors, an interruption, the end of the thread."""

import threading
import time

import pytest

from tidegate.vault.overlap import Overlap


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "vault-io"]


def test_results_come_in_order_one_behind():
    beside = Overlap()
    assert beside.wait() is None
    assert [beside.begin(lambda number=number: number) for number in range(1, 5)] == [None, 1, 2, 3]
    assert beside.wait() == 4
    assert beside.wait() is None
    assert threads() == []


def test_the_job_is_running_when_begin_returns():
    beside, order = Overlap(), []

    def job():
        order.append("job")
        time.sleep(0.05)
        order.append("done")

    beside.begin(job)
    order.append("owner")
    beside.wait()
    assert order[-2:] == ["owner", "done"] or order == ["job", "owner", "done"]


def test_what_a_job_raised_is_raised_by_the_next_call():
    beside = Overlap()
    beside.begin(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        beside.begin(lambda: 2)
    assert beside.wait() == 2
    beside.begin(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        beside.wait()
    beside.begin(lambda: 1 / 0)
    beside.close()
    assert beside.wait() is None
    assert threads() == []


def test_an_interrupted_owner_can_close(monkeypatch):
    beside = Overlap()

    class Interrupted:
        def acquire(self):
            raise KeyboardInterrupt

        def release(self):
            pass

    beside.begin(lambda: 1)
    beside.wait()
    monkeypatch.setattr(beside, "_begun", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        beside.begin(lambda: time.sleep(0.05))
    beside.close()
    assert threads() == []
