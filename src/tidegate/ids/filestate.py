"""What a watched file was and is, and what changed in between. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class ChangeKind(StrEnum):
    """What happened to a path. A changed owner counts as a changed mode: both are who may do what."""

    CREATED = "created"
    REMOVED = "removed"
    MODIFIED = "modified"
    MODE = "mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """One path at one moment.

    ``digest`` is the SHA-256 of a file's content or of a link's target in hex, ``""`` for folders and special files,
    ``"unreadable"`` where the content could not be read; ``mode`` includes the file type.
    """

    digest: str
    mode: int
    owner: int
    group: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """One change; ``before`` is ``None`` for what was created, ``after`` for what was removed."""

    path: str
    kind: ChangeKind
    before: FileState | None
    after: FileState | None


Snapshot = Mapping[str, FileState]


def compare_snapshots(before: Snapshot, after: Snapshot) -> Iterator[FileChange]:
    """Yield every difference in the order of the paths, exactly once a path: content goes before mode and owner."""
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        if old is None:
            kind = ChangeKind.CREATED
        elif new is None:
            kind = ChangeKind.REMOVED
        else:
            kind = ChangeKind.MODE if old.digest == new.digest else ChangeKind.MODIFIED
        yield FileChange(path=path, kind=kind, before=old, after=new)
