"""The file watcher on real files: each kind of change once, inotify and full check alike, a bound on the number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tidegate.ids import files
from tidegate.ids.errors import WatchTooManyFiles
from tidegate.ids.files import FileWatcher
from tidegate.ids.filestate import FileChange
from tidegate.ids.section import WatchSection


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "watched"
    (root / "sub").mkdir(parents=True)
    (root / "program").write_text("one")
    (root / "sub" / "setting").write_text("two")
    (root / "link").symlink_to("program")
    return root


def kinds(changes: list[FileChange], root: Path) -> list[tuple[str, str]]:
    return [(os.path.relpath(change.path, root), change.kind.value) for change in changes]


def watcher(*paths: Path, interval_s: int = 3600) -> FileWatcher:
    return FileWatcher(WatchSection(paths=tuple(str(path) for path in paths), interval_s=interval_s))


def replace_link(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("sub/setting")


CHANGES = [
    (lambda root: (root / "program").write_text("changed"), [("program", "modified")]),
    (lambda root: (root / "sub" / "setting").write_text("changed"), [("sub/setting", "modified")]),
    (lambda root: (root / "program").unlink(), [("program", "removed")]),
    (lambda root: (root / "new").write_text("x"), [("new", "created")]),
    (lambda root: (root / "program").chmod(0o4755), [("program", "mode")]),
    (lambda root: (root / "sub").chmod(0o777), [("sub", "mode")]),
    (lambda root: (root / "program").rename(root / "moved"), [("moved", "created"), ("program", "removed")]),
    (replace_link, [("link", "modified")]),
    (lambda root: (root / "program").write_text("one"), []),
    (lambda root: os.utime(root / "program", (1, 1)), []),
]


@pytest.mark.parametrize("look", [lambda w: w.wait(1.0), lambda w: w.check()], ids=["inotify", "full-check"])
@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_each_change_is_reported_once_with_its_kind(tree, change, expected, look):
    with watcher(tree) as watched:
        change(tree)
        assert kinds(look(watched), tree) == expected
        assert watched.wait(0) == []
        assert watched.check() == []


def test_a_new_folder_is_watched_too(tree):
    with watcher(tree) as watched:
        (tree / "deep" / "er").mkdir(parents=True)
        seen = kinds(watched.wait(1.0), tree)
        seen += kinds(watched.wait(0.2), tree)
        assert ("deep", "created") in seen
        assert ("deep/er", "created") in seen
        (tree / "deep" / "er" / "file").write_text("x")
        assert kinds(watched.wait(1.0), tree) == [("deep/er/file", "created")]


def test_a_single_file_is_watched_without_its_neighbours(tree):
    with watcher(tree / "program") as watched:
        (tree / "neighbour").write_text("x")
        assert watched.wait(0.2) == []
        replacement = tree / "program.new"
        replacement.write_text("swapped in by rename")
        replacement.rename(tree / "program")
        assert kinds(watched.wait(1.0), tree) == [("program", "modified")]


def test_a_file_that_does_not_exist_yet_is_reported_when_it_does(tree):
    with watcher(tree / "later") as watched:
        (tree / "later").write_text("x")
        assert kinds(watched.wait(1.0), tree) == [("later", "created")]


def test_digests_before_and_after_are_in_the_record(tree):
    with watcher(tree) as watched:
        (tree / "program").write_text("changed")
        [change] = watched.wait(1.0)
        assert change.before.digest == "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"  # of "one"
        assert change.after.digest != change.before.digest


def test_the_full_check_comes_by_itself(tree, monkeypatch):
    with watcher(tree, interval_s=1) as watched:
        monkeypatch.setattr(watched._queue, "read", lambda timeout_s: set())  # a change inotify does not see
        (tree / "program").write_text("changed")
        watched._next_check_s = 0
        assert kinds(watched.wait(5.0), tree) == [("program", "modified")]


def test_a_full_queue_leads_to_a_full_check(tree, monkeypatch):
    with watcher(tree) as watched:
        monkeypatch.setattr(watched._queue, "read", lambda timeout_s: None)
        (tree / "program").write_text("changed")
        assert kinds(watched.wait(1.0), tree) == [("program", "modified")]


def test_more_files_than_the_limit_are_refused_whole(tree, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILES", 4)
    with pytest.raises(WatchTooManyFiles) as caught:
        watcher(tree)
    assert caught.value.code == "ids.watch.too-many-files"
