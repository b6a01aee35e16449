"""``tidegate demo``: what it refuses to begin with, and the whole story with nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tidegate.cli.main import main
from tidegate.testing.netns import NETNS_FOLDER, Namespace, make_unique

NOBODY = 65534
COMMAND = [sys.executable, "-m", "tidegate.cli.main", "demo"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the demo needs root")


def demo(tmp_path: Path, *arguments: str, before: tuple[str, ...] = (), **options) -> subprocess.CompletedProcess[str]:
    """Run the demo with a temporary folder of its own, so that what it leaves there can be told apart."""
    folder = tmp_path / "tmp"
    folder.mkdir(exist_ok=True, mode=0o777)
    environment = {**os.environ, "TMPDIR": str(folder)}
    return subprocess.run(
        [*before, *COMMAND, *arguments], capture_output=True, text=True, check=False, env=environment, **options
    )


def namespaces(prefix: str) -> list[str]:
    return sorted(path.name for path in NETNS_FOLDER.glob(f"{prefix}-*")) if NETNS_FOLDER.exists() else []


def left_in_memory(before: set[Path]) -> list[Path]:
    """Return the run folders made since ``before`` that belong to no process (of other tests at the same time)."""
    words = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words.append(entry.read_text(errors="replace"))
        except OSError:
            continue
    return [path for path in run_folders() - before if not any(str(path) in line for line in words)]


def run_folders() -> set[Path]:
    return set(Path("/dev/shm").glob("tidegate-*"))


def assert_nothing_left(tmp_path: Path, prefix: str, before: set[Path], *, others: list[str] | None = None) -> None:
    assert namespaces(prefix) == (others or [])
    assert list((tmp_path / "tmp").iterdir()) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
    loops = subprocess.run(["/sbin/losetup", "-a"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in loops
    assert left_in_memory(before) == []


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("role", ["device", "operator", "attacker", "switch"])
def test_a_busy_namespace_name(tmp_path, role: str) -> None:
    prefix, before = make_unique("tgb"), run_folders()
    with Namespace.create(f"{prefix}-{role}") as taken:
        done = demo(tmp_path, "--prefix", prefix)
        assert done.returncode == 2, done.stderr
        assert "testing.netns.busy" in done.stderr
        assert "what to do" in done.stderr
        assert taken.run(["true"]).returncode == 0, "somebody else's namespace is left alone"
        assert_nothing_left(tmp_path, prefix, before, others=[f"{prefix}-{role}"])


@pytest.mark.root
@needs_root
def test_a_busy_namespace_name_as_json(tmp_path) -> None:
    prefix = make_unique("tgb")
    with Namespace.create(f"{prefix}-device"):
        done = demo(tmp_path, "--json", "--prefix", prefix)
    error = json.loads(done.stdout)["error"]
    assert (error["code"], done.returncode) == ("testing.netns.busy", 2)
    assert error["advice"]


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("prefix", ["a/b", "", "-x", "x" * 100, "a b"])
def test_a_prefix_that_names_nothing(tmp_path, prefix: str) -> None:
    before = run_folders()
    done = demo(tmp_path, f"--prefix={prefix}")
    assert done.returncode == 2, done.stderr
    assert "testing.netns.name" in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    assert left_in_memory(before) == []


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("program", ["mksquashfs", "veritysetup", "nmap", "hping3", "busybox"])
def test_a_missing_program(tmp_path, program: str) -> None:
    """The program is covered by a file that cannot be run, in a mount namespace of this test."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"{program} is not installed, so it cannot be covered")
    prefix, before = make_unique("tgm"), run_folders()
    cover = f'mount --bind /dev/null {Path(found).resolve()} && exec "$@"'
    done = demo(tmp_path, "--prefix", prefix, before=("unshare", "--mount", "sh", "-c", cover, "sh"))
    assert done.returncode == 4, done.stderr
    assert "base.program.missing" in done.stderr
    assert program in done.stderr
    assert_nothing_left(tmp_path, prefix, before)


@pytest.mark.root
@needs_root
def test_without_root(tmp_path) -> None:
    try:
        probe = subprocess.run([sys.executable, "-c", "import tidegate"], user=NOBODY, group=NOBODY, check=False)
    except PermissionError:
        pytest.skip("another user cannot reach this interpreter")
    if probe.returncode != 0:
        pytest.skip("another user cannot run this interpreter")
    done = demo(tmp_path, user=NOBODY, group=NOBODY, extra_groups=[])
    assert done.returncode == 4, done.stderr
    assert "base.privilege.missing" in done.stderr
    assert list((tmp_path / "tmp").iterdir()) == []


def test_without_root_in_this_process(monkeypatch, capsys) -> None:
    monkeypatch.setattr("tidegate.demo.story.os.geteuid", lambda: 1000)
    assert main(["demo", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "base.privilege.missing"


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(180)
@needs_root
def test_the_whole_story(tmp_path) -> None:
    prefix, before = make_unique("tgs"), run_folders()
    done = demo(tmp_path, "--json", "--prefix", prefix)
    told = json.loads(done.stdout)
    failed = [(step["title"], step["evidence"]) for step in told["steps"] if not step["passed"]]
    assert (failed, told["error"]) == ([], None), done.stderr
    assert told["passed"]
    assert done.returncode == 0
    assert {step["chapter"].split()[0] for step in told["steps"]} == set("123456789")
    assert all(step["evidence"] or step["title"].startswith("bundles") for step in told["steps"])
    assert_nothing_left(tmp_path, prefix, before)
