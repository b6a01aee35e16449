"""Families and exit codes; programs that are missing, fail or never end."""

import pytest

from tidegate.base import errors
from tidegate.base.clock import SystemClock, SystemEntropy
from tidegate.base.errors import Fault, Misuse, Rejected, TidegateError, registered_codes
from tidegate.base.program import find_program, run_program


def test_families_have_their_exit_codes():
    assert (Misuse.exit_status, Rejected.exit_status, Fault.exit_status) == (2, 3, 4)
    assert not issubclass(Misuse, (Rejected, Fault))
    assert not issubclass(Rejected, Fault)


def test_an_error_describes_itself():
    error = errors.StorageFull("the disk is full", path="/x", errno=28)
    assert error.describe() == {
        "code": "base.storage.full",
        "message": "the disk is full",
        "advice": errors.StorageFull.advice,
        "fields": {"path": "/x", "errno": 28},
    }
    assert str(error) == "the disk is full"
    assert registered_codes()["base.storage.full"] is errors.StorageFull


def test_a_code_is_taken_once():
    before = registered_codes()
    with pytest.raises(RuntimeError, match="taken"):
        type("Another", (Fault,), {"code": "base.storage.full", "advice": "x"})
    with pytest.raises(RuntimeError, match="taken"):
        # the same class name in another room
        type("StorageFull", (Fault,), {"code": "base.storage.full", "advice": "x", "__module__": "elsewhere.errors"})
    assert registered_codes() == before


def test_the_registry_cannot_be_changed_through_its_copy():
    registered_codes().clear()
    assert registered_codes()


def test_a_missing_program_names_its_package():
    with pytest.raises(Fault) as caught:
        run_program(["no-such-program-at-all", "--version"])
    assert caught.value.code == "base.program.missing"
    assert caught.value.fields == {"program": "no-such-program-at-all", "package": "no-such-program-at-all"}


def test_a_known_program_names_the_debian_package(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tidegate.base.program._ADMIN_PATH", str(tmp_path))
    with pytest.raises(Fault) as caught:
        find_program("veritysetup")
    assert caught.value.fields["package"] == "cryptsetup-bin"


def test_programs_of_the_administrator_are_found_without_their_path(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_program("sh").startswith("/")


def test_a_failing_program():
    with pytest.raises(Fault) as caught:
        run_program(["sh", "-c", "echo out of cheese >&2; exit 7"])
    assert caught.value.code == "base.program.failed"
    assert caught.value.fields["status"] == 7
    assert run_program(["sh", "-c", "exit 7"], check=False).returncode == 7


def test_a_program_that_never_ends():
    with pytest.raises(Fault) as caught:
        run_program(["sleep", "60"], timeout_s=0.2)
    assert caught.value.code == "base.program.failed"


def test_a_program_that_says_very_much_and_no_text():
    with pytest.raises(Fault) as caught:
        run_program(["sh", "-c", r"yes | head -c 1000000 >&2; printf '\377\376' >&2; exit 1"])
    assert len(caught.value.message) < 1000


def test_no_shell():
    assert run_program(["echo", "$(id)", ";", "id"]).stdout == b"$(id) ; id\n"


def test_input_reaches_the_program():
    assert run_program(["cat"], stdin=b"\0\xff").stdout == b"\0\xff"


def test_clock_and_entropy():
    clock = SystemClock()
    assert clock.monotonic_s() <= clock.monotonic_s()
    assert clock.now_s() > 1_600_000_000
    for count in (0, 1, 32, 256, 257, 100_000):
        assert len(SystemEntropy().random_bytes(count)) == count
    assert SystemEntropy().random_bytes(32) != SystemEntropy().random_bytes(32)


def test_the_root_is_no_leaf():
    assert TidegateError.code == ""
    assert "" not in registered_codes()
