"""Rule files and the files that rules name: where they are looked for, how large they may be.

Touches: rule files, data sets, the small files beside a configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tidegate.base.durable import read_file_bounded
from tidegate.ids.errors import ConfigInvalid

MAX_RULE_BYTES = 64 << 20  # the largest public set, all categories in one file, has some 45 MB
MAX_NAMED_BYTES = 64 << 20  # a data set of a million SHA-256 digests
MAX_FILES = 256  # rule files of one sensor: large sets come in some 60 categories


def read_rules(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield each rule file's name and text, so that one is in memory at a time.

    Raises ``base.storage.*`` and, for too many files, ``ids.config.invalid``.
    """
    for count, path in enumerate(paths, start=1):
        if count > MAX_FILES:
            raise ConfigInvalid(f"more than {MAX_FILES} rule files", field="rules", limit=MAX_FILES)
        yield str(path), read_file_bounded(path, limit_bytes=MAX_RULE_BYTES)


class NamedFiles:
    """Reads a file that a rule or setting names: as it stands if absolute, else beside what named it.

    Calling it returns the bytes or raises ``base.storage.*``; the sensor reports the rule as refused then.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = tuple(dict.fromkeys(folders)) or (Path(),)

    def __call__(self, name: str) -> bytes:
        return read_file_bounded(self._find(name), limit_bytes=MAX_NAMED_BYTES)

    def _find(self, name: str) -> Path:
        path = Path(name)
        if path.is_absolute():
            return path
        found = (folder / path for folder in self._folders)
        return next((place for place in found if place.is_file()), self._folders[0] / path)
