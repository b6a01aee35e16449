"""Tests in a guest with Debian's kernel (QEMU, emulated): `make test-vm`, some minutes.

What is tested is in tests/vm/guest and, of other tests, what this machine's kernel lacks something for.
"""

import os
import sys
from pathlib import Path

import pytest

from tidegate.cli.main import main
from tidegate.testing.guest import run_in_guest

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / "build" / "guest-kernel"
HERE = Path(__file__).parent / "guest"
MARKER = "Jane Roe, born 1970-01-01, diagnosis Z21. "

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not (KERNEL / "boot").exists(), reason="no kernel for guests is unpacked: make test-vm does it"),
]


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    with path.open("wb") as stream:
        stream.truncate(96 << 20)
    return path


def pytest_in_guest(*tests, disk, **environment):
    """Run tests in a guest; every one of them has to pass, none may be skipped."""
    told = [f"{name}={value}" for name, value in environment.items()]
    command = ["env", *told, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=300", *tests]
    run = run_in_guest(KERNEL, command, disks=[disk], timeout_s=1100)
    assert run.status == 0, run.console
    assert " passed" in run.console or "[100%]" in run.console, run.console
    assert "SKIPPED" not in run.console, run.console


def test_what_this_kernel_lacks(disk):
    luks = "tests/interop/test_luks.py::"
    pytest_in_guest(
        str(HERE / "test_kernel_parts.py"),
        luks + "test_open_and_close",
        luks + "test_a_block_device_in_use",
        disk=disk,
    )


def test_a_volume_and_a_power_cut(disk, tmp_path):
    """Formatted here, opened there, cut with the file system mounted, opened again; nothing of it is on the disk."""
    (tmp_path / "secret").touch(mode=0o600)
    (tmp_path / "secret").write_bytes(os.urandom(32))
    store = f"file:{tmp_path}/keys?device-secret={tmp_path}/secret"
    key = store.replace("?", "?key=vault&")
    vault = str(tmp_path / "vault")
    assert main(["keys", "create-store", store]) == 0
    assert main(["keys", "generate", key, "--purpose", "seal"]) == 0
    assert main(["vault", "create", vault, "--key", key]) == 0
    assert main(["vault", "volume-format", str(disk), "--vault", vault, "--key", key]) == 0
    script = str(HERE / "volume_and_power_cut.py")
    run = run_in_guest(KERNEL, [sys.executable, script, vault, key, MARKER], disks=[disk], timeout_s=550)
    assert run.status is None, run.console
    raw = disk.read_bytes()
    assert len(raw) - raw.count(b"\0") > 64_000, "the guest wrote next to nothing"
    assert MARKER.encode() not in raw
    pytest_in_guest(
        str(HERE / "test_volume_after_power_cut.py"),
        disk=disk,
        TIDEGATE_VAULT=vault,
        TIDEGATE_KEY=key,
        TIDEGATE_MARKER=MARKER,
    )
