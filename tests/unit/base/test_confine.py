"""What a process may still do after it was confined; each case in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tidegate.base.confine import CAP_NET_ADMIN, NOBODY

LOOK = """
import ctypes, json, os
from tidegate.base.confine import confine
from tidegate.base.errors import NotRoot, TidegateError
{first}
try:
    confine(keep={keep}, ends_with_parent={ends}, failed=NotRoot)
except TidegateError as error:
    print(json.dumps({{"code": error.code, "message": error.message}}))
    raise SystemExit(0)
status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
signal = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(signal), 0, 0, 0)  # PR_GET_PDEATHSIG
dumpable = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
print(json.dumps({{name: status[name].split() for name in status}} | {{"signal": signal.value, "dumpable": dumpable}}))
"""


def look(*before: str, keep: int | None, ends: bool, first: str = "") -> dict[str, object]:
    command = [*before, sys.executable, "-c", LOOK.format(keep=keep, ends=ends, first=first)]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give it up")
@pytest.mark.parametrize("keep", [None, CAP_NET_ADMIN])
@pytest.mark.parametrize("ends", [True, False])
def test_root_becomes_nobody_with_what_it_keeps_and_no_more(keep: int | None, ends: bool) -> None:
    status = look(keep=keep, ends=ends)
    assert status["Uid"] == status["Gid"] == [str(NOBODY)] * 4
    assert status["Groups"] == []
    assert status["CapEff"] == status["CapPrm"] == [f"{0 if keep is None else 1 << keep:016x}"]
    assert status["CapInh"] == status["CapAmb"] == ["0" * 16]
    assert status["NoNewPrivs"] == ["1"]
    assert status["dumpable"] == 0
    assert status["signal"] == (15 if ends else 0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be another user")
def test_another_user_stays_who_it_is_and_gains_nothing_any_more() -> None:
    status = look(keep=CAP_NET_ADMIN, ends=True, first=f"os.setresuid({NOBODY}, {NOBODY}, {NOBODY})")
    assert status["Uid"] == [str(NOBODY)] * 4
    assert status["CapEff"] == ["0" * 16]
    assert (status["NoNewPrivs"], status["dumpable"], status["signal"]) == (["1"], 0, 15)


def test_a_process_that_cannot_give_up_its_groups_is_told_so() -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-r", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    answer = look(unshare, "-r", keep=None, ends=False)  # there setgroups(2) is refused
    assert answer["code"] == "base.privilege.missing"
    assert "cannot become user 65534" in str(answer["message"])


def test_a_process_whose_parent_is_gone_is_told_so() -> None:
    answer = look(keep=None, ends=True, first="parents = [7, 1]; os.getppid = lambda: parents.pop(0)")
    assert answer["message"] == "the parent process is gone"
