"""Durable files: wholly old or wholly new, private when asked, and no litter, on a real full disk too."""

import errno
import os
import stat

import pytest

from tidegate.base.durable import read_file_bounded, require_private, translate_os_errors, write_all, write_file_atomic
from tidegate.base.errors import Fault, Rejected, TidegateError
from tidegate.base.program import run_program


def code_of(call, *arguments, **named):
    with pytest.raises(TidegateError) as caught:
        call(*arguments, **named)
    return caught.value.code


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    place = tmp_path / "disk"
    place.mkdir()
    run_program(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)])
    yield place
    run_program(["umount", str(place)])


def test_new_and_replaced(tmp_path):
    path = tmp_path / "file"
    write_file_atomic(path, b"old")
    write_file_atomic(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"
    write_file_atomic(path, b"")
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400, 0o000])
def test_mode_whatever_the_umask_and_the_old_mode(tmp_path, umask, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o666)
    before = os.umask(umask)
    try:
        write_file_atomic(path, b"new", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_never_wider_than_asked_while_it_is_written(tmp_path, monkeypatch):
    modes = []
    real = os.write

    def write(descriptor, data):
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    write_file_atomic(tmp_path / "file", b"secret", mode=0o600)
    assert modes == [0o600]


def test_order_of_the_steps(tmp_path, monkeypatch):
    """Content before name, name before return: any other order loses the file in a power cut."""
    steps = []
    for name in ("write", "fsync", "rename"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, _real=real, _name=name: (steps.append(_name), _real(*args))[1])
    write_file_atomic(tmp_path / "file", b"content")
    assert steps == ["write", "fsync", "rename", "fsync"]


@pytest.mark.root
def test_full_disk(tiny_disk):
    path = tiny_disk / "file"
    write_file_atomic(path, b"old")
    with pytest.raises(Fault) as caught:
        write_file_atomic(path, os.urandom(200_000))
    assert caught.value.code == "base.storage.full"
    assert caught.value.fields["errno"] == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert list(tiny_disk.iterdir()) == [path]
    write_file_atomic(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.root
def test_read_only_disk(tiny_disk):
    path = tiny_disk / "file"
    write_file_atomic(path, b"old")
    run_program(["mount", "-o", "remount,ro", str(tiny_disk)])
    assert code_of(write_file_atomic, path, b"new") == "base.storage.failed"
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
def test_failure_at_each_step_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    write_file_atomic(path, b"old")

    def fail(*_args, **_named):
        raise OSError(errno.EIO, "the device is gone")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        assert code_of(write_file_atomic, path, b"new") == "base.storage.failed"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_file_atomic(path, b"old")

    def interrupt(*_args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_file_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_litter_of_an_earlier_crash_is_no_obstacle(tmp_path):
    litter = tmp_path / f".file.{os.getpid()}.new"
    litter.write_bytes(b"half")
    write_file_atomic(tmp_path / "file", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_links_are_replaced_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "file").symlink_to(victim)
    (tmp_path / f".file.{os.getpid()}.new").symlink_to(victim)
    write_file_atomic(tmp_path / "file", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "file").mkdir()
    assert code_of(write_file_atomic, tmp_path / "file", b"x") == "base.storage.failed"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_no_folder(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    assert code_of(write_file_atomic, tmp_path / "none" / "file", b"x") == "base.storage.missing"
    assert code_of(write_file_atomic, tmp_path / "plain" / "file", b"x") == "base.storage.missing"


def test_short_writes_of_the_kernel(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    with (tmp_path / "file").open("wb", buffering=0) as stream:
        write_all(stream.fileno(), b"twelve bytes")
    assert (tmp_path / "file").read_bytes() == b"twelve bytes"


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "fits"), [(0, True), (99, True), (100, True), (101, False), (5000, False)])
def test_bounded_reading(tmp_path, size, fits):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    if fits:
        assert read_file_bounded(path, limit_bytes=100) == bytes(size)
    else:
        assert code_of(read_file_bounded, path, limit_bytes=100) == "base.input.too-large"


def test_bounded_reading_of_something_without_an_end(tmp_path):
    path = tmp_path / "file"
    path.symlink_to("/dev/zero")
    assert code_of(read_file_bounded, path, limit_bytes=1000) == "base.input.too-large"


def test_bounded_reading_of_a_3_gib_file(tmp_path):
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, 3 << 30)
    assert code_of(read_file_bounded, path, limit_bytes=1000) == "base.input.too-large"


def test_reading_what_is_no_file(tmp_path):
    assert code_of(read_file_bounded, tmp_path / "none", limit_bytes=1) == "base.storage.missing"
    assert code_of(read_file_bounded, tmp_path, limit_bytes=1) == "base.storage.failed"
    (tmp_path / "loop").symlink_to("loop")
    assert code_of(read_file_bounded, tmp_path / "loop", limit_bytes=1) == "base.storage.failed"
    (tmp_path / "dangling").symlink_to("none")
    assert code_of(read_file_bounded, tmp_path / "dangling", limit_bytes=1) == "base.storage.missing"


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "base.storage.full"),
        (errno.EDQUOT, "base.storage.full"),
        (errno.ENOENT, "base.storage.missing"),
        (errno.ENOTDIR, "base.storage.missing"),
        (errno.EIO, "base.storage.failed"),
        (errno.EACCES, "base.storage.failed"),
        (errno.EROFS, "base.storage.failed"),
        (None, "base.storage.failed"),
    ],
)
def test_translation(tmp_path, number, code):
    with pytest.raises(Fault) as caught, translate_os_errors(tmp_path):
        raise OSError(number, "text") if number else OSError("text without a number")
    assert caught.value.code == code
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.fields["path"] == str(tmp_path)


# ---- privacy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700, 0o000])
def test_private(tmp_path, mode):
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    require_private(path)


@pytest.mark.parametrize("mode", [0o601, 0o602, 0o604, 0o610, 0o620, 0o640, 0o644, 0o666, 0o4604])
def test_not_private(tmp_path, mode):
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    with pytest.raises(Rejected) as caught:
        require_private(path)
    assert caught.value.code == "base.permissions.unsafe"


def test_links_are_not_private(tmp_path):
    path = tmp_path / "file"
    path.touch(0o600)
    (tmp_path / "link").symlink_to(path)
    (tmp_path / "dangling").symlink_to("none")
    assert code_of(require_private, tmp_path / "link") == "base.permissions.unsafe"
    assert code_of(require_private, tmp_path / "dangling") == "base.permissions.unsafe"
    assert code_of(require_private, tmp_path / "none") == "base.storage.missing"


@pytest.mark.root
def test_owner(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("needs root to give a file away")
    path = tmp_path / "file"
    path.touch(0o600)
    os.chown(path, 65534, 65534)
    assert code_of(require_private, path) == "base.permissions.unsafe"
